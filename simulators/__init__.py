"""Real peers (sockets, ptys) that behave like the boards, switches and callers umpack meets."""
