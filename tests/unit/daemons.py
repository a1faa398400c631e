"""A whole daemon for tests: in this process, or as the program people start."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loguru import logger

from tests.unit.agi_peer import takes_calls
from umpack.config import load
from umpack.daemon import Daemon
from umpack.log import LogOutput
from umpack.systemd import Notifier

ROOT = Path(__file__).parents[2]
SECRET = "hunter2-is-not-it"  # noqa: S105

TRUNKS = "  um1: {kind: sip, pbx: main, endpoint: um1, channels: 3}\n"
PACKS = "  um: {strategy: cyclic, members: [um1], answer_within: 5s}\n"
ROUTES = '  - {called: "1*", pack: um}\n'


def pbx(name: str = "main", port: int = 0) -> str:
    """One PBX whose manager interface nobody answers (port 1)."""
    ami = f"{{host: 127.0.0.1, port: 1, user: u, secret: {SECRET}}}"
    return f'  {name}: {{ami: {ami}, agi: {{listen: "127.0.0.1:{port}"}}}}\n'


def text(
    *,
    pbxs: str = "",
    trunks: str = TRUNKS,
    packs: str = PACKS,
    routes: str = ROUTES,
    rest: str = "",
) -> str:
    """A configuration; all paths are in its own directory."""
    return (
        f"node: here\npbx:\n{pbxs or pbx()}trunks:\n{trunks}packs:\n{packs}routes:\n{routes}"
        f"control: {{socket: c.sock}}\njournal: {{path: j.db}}\ndrain: {{deadline: 5s}}\n{rest}"
    )


class RunningDaemon:
    """A daemon in this process and its configuration file."""

    def __init__(self, daemon: Daemon, file: Path) -> None:
        self.daemon = daemon
        self.file = file

    @property
    def port(self) -> int:
        """Where it takes calls."""
        return port_of(self.daemon)

    @property
    def socket(self) -> Path:
        """Where it is asked."""
        return self.daemon.configuration.control.socket

    def write(self, new: str) -> None:
        """Change the configuration file."""
        self.file.write_text(new)

    async def ask(self, method: str, *arguments: object, **query: str) -> Any:
        """`get`, `post` or `call` of a `ControlClient`, from a thread as it blocks."""
        from umpack.web.client import ControlClient

        function = getattr(ControlClient(self.socket), method)
        return await asyncio.to_thread(function, *arguments, **query)


def port_of(daemon: Daemon) -> int:
    """Where it takes calls of its first PBX."""
    return next(iter(daemon.agi_ports.values()))


async def daemon_at(file: Path, **more: Any) -> Daemon:
    """Not started yet."""
    return Daemon(await asyncio.to_thread(load, file), file, **more)


@asynccontextmanager
async def daemon_of(
    directory: Path,
    configuration: str = "",
    *,
    notifier: Notifier | None = None,
    log: LogOutput | None = None,
) -> AsyncIterator[RunningDaemon]:
    """Start, until it takes calls, to stop; at the end no task is left over."""
    file = directory / "umpack.yaml"
    if configuration or not file.exists():
        file.write_text(configuration or text())
    before, resumed = asyncio.all_tasks(), (directory / "j.db").exists()
    daemon = await daemon_at(file, notifier=notifier, log=log)
    async with daemon:
        if resumed:
            await takes_calls(port_of(daemon))
        yield RunningDaemon(daemon, file)
    assert asyncio.all_tasks() - before == set()


@contextlib.contextmanager
def logged(level: str = "TRACE") -> Iterator[list[str]]:
    """The log lines while it is open, in whatever thread."""
    lines: list[str] = []
    sink = logger.add(lines.append, level=level, format="{level} {message}", diagnose=False)
    try:
        yield lines
    finally:
        logger.remove(sink)


async def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for what another task, thread or process does."""
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def journal_rows(directory: Path) -> list[tuple[Any, ...]]:
    """id, ending, cause and channel of all calls, oldest first."""
    path = f"file:{directory / 'j.db'}?mode=ro"
    with contextlib.closing(sqlite3.connect(path, uri=True)) as connection:
        query = "SELECT id, ending, cause, channel FROM calls ORDER BY seq"
        return connection.execute(query).fetchall()


def pointers(directory: Path) -> dict[str, str]:
    """Saved pointers by pack."""
    path = f"file:{directory / 'j.db'}?mode=ro"
    with contextlib.closing(sqlite3.connect(path, uri=True)) as connection:
        return dict(connection.execute("SELECT pack, channel FROM pointers").fetchall())


# --- the program ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """One command from start to end."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


def _environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("UMPACK_")}
    path = os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH"))))
    return kept | {"PYTHONPATH": path, "COLUMNS": "120", "TERM": "dumb"} | more


async def umpack(*arguments: str, cwd: Path | None = None, **environment: str) -> Ran:
    """Run the command line as people do."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "umpack.cli", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        cwd=cwd, env=_environment(**environment),
    )  # fmt: skip
    async with asyncio.timeout(50):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(), err.decode())


class Program:
    """`umpack run` as a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, file: Path) -> None:
        self.process = process
        self.file = file
        self.lines: list[str] = []
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.lines.append(line.decode())

    @property
    def log(self) -> str:
        """All it has said so far."""
        return "".join(self.lines)

    async def port(self, name: str = "main") -> int:
        """Where it takes calls, when it does."""
        status = (await self.umpack("status", "--json")).json
        found = [link["agi"] for link in status["pbxs"] if link["id"] == name]
        port = int(found[0].rpartition(":")[2])
        await takes_calls(port)
        return port

    async def umpack(self, *arguments: str) -> Ran:
        """Ask it something."""
        return await umpack(*arguments, "--config", str(self.file))

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait; gives the exit status."""
        self.process.send_signal(number)
        async with asyncio.timeout(30):
            code = await self.process.wait()
            await self.reading
        return code


@asynccontextmanager
async def program(
    directory: Path,
    configuration: str = "",
    *,
    arguments: Sequence[str] = (),
    under: Sequence[str] = (),
    **environment: str,
) -> AsyncIterator[Program]:
    """`umpack run`, up; killed at the end if it still runs. `under` is a command that runs it."""
    file = directory / "umpack.yaml"
    if configuration or not file.exists():
        file.write_text(configuration or text())
    process = await asyncio.create_subprocess_exec(
        *under, sys.executable, "-m", "umpack.cli", "run", "--config", str(file), *arguments,
        stderr=asyncio.subprocess.PIPE, env=_environment(**environment),
    )  # fmt: skip
    running = Program(process, file)
    try:
        await until(lambda: " is up: " in running.log or process.returncode is not None, 40)
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await running.reading
