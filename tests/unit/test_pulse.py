"""The proof of work: what is at the other end of a port, and a pump that does not come round."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from pathlib import Path

import pytest

from tests.unit.daemons import daemon_of
from umpack.pulse import Pulse, within_reach


async def test_all_well_with_nothing_to_serve() -> None:
    assert await Pulse(1.0).fault([]) == ""


async def test_a_real_listener_serves_and_keeps_nothing(tmp_path: Path) -> None:
    async with daemon_of(tmp_path) as running:
        for _ in range(5):
            assert await Pulse(5.0).fault([("127.0.0.1", running.port)]) == ""
        (driver,) = running.daemon._drivers.values()
        assert driver._server is not None
        stats = driver._server.stats
        assert (stats.accepted, stats.open, stats.calls, stats.faults) == (5, 0, 0, 0)


async def test_a_port_the_kernel_answers_for_a_process_that_does_not() -> None:
    """The connection is made and lies in the backlog: nobody accepts it."""
    with socket.create_server(("127.0.0.1", 0)) as stuck:
        port = stuck.getsockname()[1]
        fault = await Pulse(0.2).fault([("127.0.0.1", port)])
    assert fault == f"FastAGI on 127.0.0.1:{port} serves nobody within 0.2 s"


async def test_every_port_must_serve() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as living:
        good = ("127.0.0.1", living.sockets[0].getsockname()[1])
        fault = await Pulse(2.0).fault([good, ("127.0.0.1", port)])
        assert await Pulse(2.0).fault([good, good]) == ""
    assert fault.startswith(f"FastAGI on 127.0.0.1:{port}: ")
    assert "; " not in fault
    refused = os.strerror(errno.ECONNREFUSED)
    assert refused in fault or "Connect call failed" in fault


async def test_a_pump_that_does_not_come_round() -> None:
    pulse = Pulse(0.05)
    await asyncio.sleep(0.1)
    assert (await pulse.fault([])).startswith("the pump has stood still for 0.")
    pulse.pumped()
    assert await pulse.fault([]) == ""


@pytest.mark.parametrize(
    ("host", "reach"),
    [
        ("0.0.0.0", "127.0.0.1"),  # noqa: S104
        ("::", "::1"),
        ("127.0.0.1", "127.0.0.1"),
        ("192.0.2.7", "192.0.2.7"),
        ("pbx.example", "pbx.example"),
    ],
)
def test_where_a_listener_is_reached(host: str, reach: str) -> None:
    assert within_reach(host) == reach
