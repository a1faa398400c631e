"""Ports of 127.0.0.1 for servers of a test's own."""

from __future__ import annotations

import itertools
import os
import random
import socket
from collections.abc import Iterator

# Below the kernel's ephemeral range (32768 up): a client that reconnects to a dead server's port
# inside that range may be given this very port as its own and be connected to itself.
PORTS = range(20000, 32000)


def free_port() -> int:
    """One, free for UDP and TCP now."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """So many, all different."""
    found = list(itertools.islice(filter(_is_free, itertools.islice(_ports, 200)), count))
    if len(found) < count:
        raise RuntimeError(f"no {count} free ports in {PORTS}")
    return found


def _turns() -> Iterator[int]:
    """The ports that are this process's to give, in turn.

    What is free now may be given but not yet taken: a peer's port before its server comes, a port
    whose server was killed. None is given twice by one process until it has given all, and test
    processes side by side share none.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    mine = PORTS[int(worker) % count :: count]
    # Own generator: tests that seed the shared one must not make parallel runs choose alike.
    return itertools.cycle(random.SystemRandom().sample(mine, len(mine)))


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


_ports = _turns()
