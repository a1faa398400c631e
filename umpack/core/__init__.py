"""The decisions: plain synchronous Python. No I/O; time comes in as an argument."""
