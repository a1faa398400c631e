from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import closing
from pathlib import Path

import pytest

from tests.unit.agi_peer import placed
from tests.unit.daemons import (
    PACKS,
    ROOT,
    TRUNKS,
    daemon_of,
    logged,
    program,
    text,
    until,
)
from umpack.config.mail_tables import Messages as MessagesTable
from umpack.daemon import _STILL
from umpack.systemd import Notifier
from umpack.web.client import ControlRefused


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
    assert any("STATUS=3/3 channels, 0 calls, 0/1 PBX links" in message for message in messages)


async def until_heard(receiver: socket.socket, text: str, without: str = "\0") -> None:
    """Until it is told so; `without` must not be told before."""
    messages: list[str] = []
    async with asyncio.timeout(20):
        while not any(text in message for message in messages):
            await asyncio.sleep(0.01)
            messages += heard(receiver)
    assert not any(without in message for message in messages)


async def test_the_status_line_says_what_is_wrong(tmp_path: Path, systemd: socket.socket) -> None:
    told = notifier(systemd, WATCHDOG_USEC="200000")
    trunks = TRUNKS + TRUNKS.replace("um1", "um2")
    packs = PACKS.replace("[um1]", "[um1, um2]")
    configuration = text(trunks=trunks, packs=packs)
    async with daemon_of(tmp_path, configuration, notifier=told) as running:
        async with await placed(running.port) as caller:
            await caller.dialled()
            await running.ask("post", "/v1/trunks/um2/eject", {})
            await until_heard(systemd, "STATUS=3/6 channels, 1 call, 1 trunk ejected, 0/1 PBX")
        with closing(sqlite3.connect(tmp_path / "j.db", check_same_thread=False)) as rival:
            await asyncio.to_thread(rival.execute, "BEGIN EXCLUSIVE")
            with pytest.raises(ControlRefused, match="um2 is ejected, but a restart may forget"):
                await running.ask("post", "/v1/trunks/um2/eject", {})
            # No reason to be restarted: calls go on without the disk.
            await until_heard(systemd, "PBX links; journal: database is locked (SQLITE_BUSY) for")
            heard(systemd)
            await until_heard(systemd, "WATCHDOG=1")


async def test_a_daemon_that_is_deaf_is_not_alive(tmp_path: Path, systemd: socket.socket) -> None:
    told = notifier(systemd, WATCHDOG_USEC="100000")
    with logged() as lines:
        async with daemon_of(tmp_path, notifier=told) as running:
            await until_heard(systemd, "WATCHDOG=1")
            (driver,) = running.daemon._drivers.values()
            assert driver._server is not None
            port = running.port
            driver._server._listener.close()
            await until_heard(systemd, f"STATUS=FastAGI on 127.0.0.1:{port}: ")
            await asyncio.sleep(0.3)
            assert not any("WATCHDOG" in message for message in heard(systemd))
            assert (await running.ask("get", "/v1/status"))["calls"] == 0
    assert sum(line.startswith("ERROR pulse: FastAGI on 127.0.0.1:") for line in lines) == 1


async def test_a_frozen_daemon_is_silent_until_it_thaws(
    tmp_path: Path, systemd: socket.socket
) -> None:
    systemd_of = {"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "200000"}
    async with program(tmp_path, text(), **systemd_of) as daemon:
        await until_heard(systemd, "WATCHDOG=1")
        # The guard, its only child, would end it: here it stands still as well.
        os.kill(only_child_of(daemon.process.pid), signal.SIGSTOP)
        daemon.process.send_signal(signal.SIGSTOP)
        await until(lambda: state_of(daemon.process.pid) == "T")
        heard(systemd)
        await asyncio.sleep(1.0)
        assert heard(systemd) == []
        daemon.process.send_signal(signal.SIGCONT)
        await until_heard(systemd, "WATCHDOG=1")
        assert await daemon.end() == 0


def state_of(pid: int) -> str:
    """T for stopped (proc(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def only_child_of(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


async def test_a_loop_that_is_blocked_starves_the_watchdog(
    tmp_path: Path, systemd: socket.socket
) -> None:
    told = notifier(systemd, WATCHDOG_USEC="100000")
    async with daemon_of(tmp_path, notifier=told):
        await until_heard(systemd, "WATCHDOG=1")
        heard(systemd)
        time.sleep(0.5)  # noqa: ASYNC251  # the fault itself
        assert heard(systemd) == []
        await until_heard(systemd, "WATCHDOG=1")


def test_the_unit_asks_for_what_the_daemon_does() -> None:
    unit = ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(ROOT / "etc" / "systemd" / "umpack.service")
    service = unit["Service"]
    assert (service["Type"], service["NotifyAccess"], service["Restart"]) == (
        "notify", "main", "always",
    )  # fmt: skip
    # Where the example puts a log file, which umpack's user could not make in /var/log itself.
    assert service["LogsDirectory"] == "umpack"
    assert "# file: /var/log/umpack/umpack.log" in (ROOT / "etc" / "umpack.yaml").read_text()
    # One that is slow, but works, takes _STILL to prove it, and may miss it once.
    assert int(service["WatchdogSec"]) > 2 * _STILL
    assert int(service["TimeoutAbortSec"]) == 1
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"


def test_the_unit_lets_umpack_and_asterisk_at_the_spool() -> None:
    text = (ROOT / "etc" / "systemd" / "umpack.service").read_text()
    lines = text.splitlines()
    spool = MessagesTable.model_fields["spool"].default
    assert "ProtectSystem=strict" in lines  # nothing may be written but what is named
    # Made by root before the name space is: what is missing then cannot be written to later.
    assert f"ExecStartPre=+/usr/bin/install -d -o umpack -g umpack -m 0750 {spool}" in lines
    assert f"ReadWritePaths=-{spool}" in lines
    assert {"User=umpack", "Group=umpack"} < set(lines)
    assert "UMask" not in text  # reservations are made writable for the group by themselves
    assert "usermod --append --groups umpack asterisk" in text
