"""Ports of 127.0.0.1 for servers of a test's own."""

from __future__ import annotations

import random
import socket

# Below the kernel's ephemeral range (32768 up): a client that reconnects to a dead server's port
# inside that range may be given this very port as its own and be connected to itself.
PORTS = range(20000, 32000)


def free_port() -> int:
    """One, free for UDP and TCP now."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """So many, all different."""
    found: list[int] = []
    # Own generator: tests that seed the shared one must not make parallel runs choose alike.
    for port in random.SystemRandom().sample(PORTS, 200):
        if _is_free(port):
            found.append(port)
            if len(found) == count:
                return found
    raise RuntimeError(f"no {count} free ports in {PORTS}")


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            if kind == socket.SOCK_STREAM:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True
