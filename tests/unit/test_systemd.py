from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.daemons import daemon_of, text
from umpack.systemd import Notifier


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.setblocking(False)
        yield receiver


def notifier(receiver: socket.socket, **more: str) -> Notifier:
    return Notifier({"NOTIFY_SOCKET": receiver.getsockname()} | more)


def heard(receiver: socket.socket) -> list[str]:
    messages = []
    try:
        while True:
            messages.append(receiver.recv(4096).decode())
    except BlockingIOError:
        return messages


def test_what_is_said(systemd: socket.socket) -> None:
    told = notifier(systemd)
    told.ready()
    told.reloading()
    told.stopping(30)
    told.alive("1/30 channels\nREADY=1\x1b")
    ready, reloading, stopping, alive = heard(systemd)
    assert ready == "READY=1"
    assert reloading.startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert int(reloading.rpartition("=")[2]) > 0
    assert stopping == "STOPPING=1\nEXTEND_TIMEOUT_USEC=35000000"
    assert alive == "WATCHDOG=1\nSTATUS=1/30 channels\\nREADY=1\\x1b"


def test_abstract_socket() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        name = f"umpack-test-{os.getpid()}"
        receiver.bind(f"\0{name}")
        receiver.setblocking(False)
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).ready()
        assert heard(receiver) == ["READY=1"]


def test_without_systemd_or_with_a_deaf_one_nothing_happens(tmp_path: Path) -> None:
    Notifier({}).ready()
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).alive("well")


@pytest.mark.parametrize(
    ("environment", "interval"),
    [
        ({}, 1.0),
        ({"WATCHDOG_USEC": "10000000"}, 1.0),
        ({"WATCHDOG_USEC": "500000"}, 0.25),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, 1.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.25),
        ({"WATCHDOG_USEC": "-1"}, 1.0),
        ({"WATCHDOG_USEC": "²"}, 1.0),
    ],
)
def test_how_often_it_is_due(environment: dict[str, str], interval: float) -> None:
    assert Notifier(environment).interval == interval


async def test_the_daemon_tells_its_life(tmp_path: Path, systemd: socket.socket) -> None:
    told = notifier(systemd, WATCHDOG_USEC="200000")
    messages: list[str] = []
    async with daemon_of(tmp_path, text(), notifier=told) as running:
        await running.daemon.reload()
        while sum(message.startswith("WATCHDOG") for message in messages) < 3:
            await asyncio.sleep(0.01)
            messages += heard(systemd)
    messages += heard(systemd)
    kinds = [message.partition("=")[0] for message in messages]
    assert kinds[0] == "READY"
    assert [kind for kind in kinds if kind != "WATCHDOG"] == [
        "READY", "RELOADING", "READY", "STOPPING",
    ]  # fmt: skip
    assert any("STATUS=0/3 channels, 1 packs, 0/1 PBX links" in message for message in messages)
