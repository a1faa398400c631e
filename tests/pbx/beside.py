"""umpack beside a lab: in the test's own loop, in a process to be killed, or absent.

A site's text names its AGI listener as 127.0.0.1:PORT; what really listens is put in here.
"""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from loguru import logger

from drivers.asterisk.ami import AmiAddress
from drivers.asterisk.driver import AsteriskDriver, AsteriskPlan
from drivers.base import LinkState
from tests.pbx.lab import POLL_SECONDS, SECRET, Lab, LabConfig, SipPeer
from tests.pbx.sipp import CallerResult, Callers, Sipp, _responses
from tests.ports import free_port
from umpack import clock
from umpack.config import Configuration, parse
from umpack.core.calls import CallRecord, Ending
from umpack.core.distributor import Distributor
from umpack.core.trunk import PbxId
from umpack.dialplan import dialplan

MAIN = PbxId("main")
HEAD = 'pbx: {main: {ami: {user: umpack, secret: s}, agi: {listen: "127.0.0.1:PORT"}}}\n'
PEERS = ("um1", "um2", "um3", "um4")
DEAD = "dead"
"""A peer of its own: Asterisk repeats an INVITE nobody answers for 32 s (RFC 3261 17.1.1.2), and a
server started there by a later test would get it."""
REPOSITORY = Path(__file__).parents[2]


def configuration(site: str, port: int) -> Configuration:
    """A site's text, its FastAGI listener at `port`."""
    return parse((HEAD + site).replace("PORT", str(port)), "site.yaml")


def lab_config() -> LabConfig:
    """Four UM servers at ports that are free now; a test starts those that shall live."""
    peers = [SipPeer(name, free_port()) for name in (*PEERS, DEAD)]
    return LabConfig("[from-line]\n", peers=peers)


def patient(lab: Lab) -> Lab:
    """A lab, not started yet, whose PJSIP takes calls whatever else is behind with its work.

    By default PJSIP answers 503 by itself while any queue of Asterisk is too long, and on a busy
    machine the manager's is (3000 events): such calls never come to the dialplan.
    """
    file = lab.directory / "etc/pjsip.conf"
    text = file.read_text(encoding="utf-8")
    head = "type=global\n"
    assert text.count(head) == 1
    lab.write("pjsip.conf", text.replace(head, f"{head}taskprocessor_overload_trigger=none\n"))
    return lab


def port_of(lab: Lab, name: str) -> int:
    """Where the PBX looks for a UM server."""
    return next(peer.port for peer in lab.config.peers if peer.name == name)


def load_dialplan(lab: Lab, site: str, agi_port: int) -> None:
    """Have the running PBX read the dialplan of a site."""
    text = dialplan(configuration(site, agi_port), MAIN)
    lab.write("extensions.conf", f"[from-line]\ninclude => umpack-in\n{text}")
    lab.rx("dialplan reload")


async def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    """Look until something holds; TimeoutError after `seconds`."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110  # what is looked at has no event to wait for
            await asyncio.sleep(0.01)


@dataclass
class Beside:
    """A running umpack; `records` grows, `complaints` are log lines from WARNING up."""

    distributor: Distributor
    driver: AsteriskDriver
    complaints: list[str] = field(default_factory=list)
    _records: list[CallRecord] = field(default_factory=list)

    @property
    def records(self) -> list[CallRecord]:
        """All calls so far, in the order they were offered."""
        self._records += self.distributor.take_records()
        return sorted(self._records, key=lambda record: record.offered)

    @property
    def offered(self) -> list[CallRecord]:
        """The same without legs that a busy Asterisk cleared so late that they were adopted."""
        return [record for record in self.records if record.ending is not Ending.ADOPTED]

    async def idle(self, seconds: float = 20.0) -> None:
        """Wait until no channel is leased; TimeoutError after `seconds`."""
        await self.leased(0, seconds)

    async def leased(self, count: int, seconds: float = 20.0) -> None:
        """Wait until exactly `count` channels are leased; TimeoutError after `seconds`."""
        await until(lambda: len(self.distributor.ledger) == count, seconds)


@asynccontextmanager
async def umpack(lab: Lab, site: str, *, ami: bool = True) -> AsyncIterator[Beside]:
    """The real core and driver in this loop, the PBX told where they are."""
    distributor = Distributor(configuration(site, 1).site)
    address = AmiAddress("127.0.0.1", lab.ami_port, "umpack", SECRET) if ami else None
    driver = AsteriskDriver(AsteriskPlan(MAIN, "127.0.0.1", 0, address), distributor, clock.now)
    beside = Beside(distributor, driver)
    sink = logger.add(lambda line: beside.complaints.append(str(line)), level="WARNING")
    try:
        await driver.start()
        try:
            await asyncio.to_thread(load_dialplan, lab, site, driver.agi_port)
            if ami:
                await until(lambda: driver.link.state is LinkState.UP)
            yield beside
        finally:
            await driver.close(0.0)
            await asyncio.to_thread(lab.wait_channels, 0)
    finally:
        logger.remove(sink)


class UmpackProcess:
    """An umpack of its own process, made to be killed."""

    def __init__(self, lab: Lab, site: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.pbx.beside", site],
            cwd=REPOSITORY, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        load_dialplan(lab, site, self.port)

    def __enter__(self) -> UmpackProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """As the kernel's out-of-memory killer would; may be called twice."""
        self._process.kill()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def freeze(self) -> None:
        """Let it neither read nor write; the kernel still accepts connections for it."""
        self._process.send_signal(signal.SIGSTOP)


class Individuals(Callers):
    """Callers each of whom is different: `(number, from, diverted)`, raw but for ";" and "[".

    `from` is a whole From value without tag, "@here" for the address; `diverted` is the user
    part of a Diversion header (RFC 5806).
    """

    def __init__(
        self,
        lines: Sequence[tuple[str, str, str]],
        sip_port: int,
        *,
        rate: int = 20,
        hold_ms: int = 50,
        seconds: int = 60,
    ) -> None:
        assert not any(set(";[\n") & set("".join(line)) for line in lines)
        rows = "".join(f"{';'.join(line).replace('@here', '@127.0.0.1')}\n" for line in lines)
        patience = str((seconds + 5) * 1000)
        fill = {
            "number": "[field0]",
            # The scenario puts the tag's semicolon behind it: it lands in the Diversion header.
            "from": "[field1];tag=c[pid]-[call_number]\n"
            "    Diversion: <sip:[field2]@127.0.0.1>;reason=unknown",
            "hold_ms": str(hold_ms),
            "patience_ms": patience,
            "responses": _responses(patience),
        }
        with tempfile.NamedTemporaryFile("w", suffix=".csv", encoding="utf-8") as file:
            file.write(f"SEQUENTIAL\n{rows}")
            file.flush()
            argv = ("-m", str(len(lines)), "-l", "50", "-r", str(rate), "-inf", file.name)
            Sipp.__init__(
                self, "uac_call", fill, (*argv, f"127.0.0.1:{sip_port}"), free_port(), seconds
            )
            self._wait_for_calls()

    def _wait_for_calls(self) -> None:
        """The file has been read when the first call begins."""
        for _ in range(200):
            if self.events() or not self.running:
                return
            time.sleep(POLL_SECONDS)


def individuals(lines: Sequence[tuple[str, str, str]], lab: Lab) -> list[CallerResult]:
    """Make these calls, wait until they have ended, give them in the same order."""
    with Individuals(lines, lab.sip_port) as callers:
        results = callers.wait(70.0)
    assert [result.call for result in results] == list(range(1, len(lines) + 1))
    return results


class Dialled:
    """Listens to the PBX's manager for what Dial() was really given, and to nothing else."""

    def __init__(self, lab: Lab) -> None:
        self._socket = socket.create_connection(("127.0.0.1", lab.ami_port), timeout=10)
        self._heard = b""
        self._log_in()
        self._socket.settimeout(None)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def __enter__(self) -> Dialled:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._socket.close()

    @property
    def strings(self) -> list[str]:
        """Resources dialled so far, without the technology."""
        text = self._heard.decode("utf-8", "replace")
        begun = [block for block in text.split("\r\n\r\n") if "Event: DialBegin" in block]
        return [re.findall(r"^DialString: (.*?)\r?$", block, re.MULTILINE)[0] for block in begun]

    def _log_in(self) -> None:
        self._socket.sendall(
            f"Action: Login\r\nUsername: umpack\r\nSecret: {SECRET}\r\n\r\n".encode("ascii")
        )
        while b"Authentication accepted" not in self._heard:
            piece = self._socket.recv(4096)
            assert piece, self._heard
            self._heard += piece

    def _read(self) -> None:
        while piece := self._socket.recv(65536):
            self._heard += piece


def steps_of(beside: Beside) -> list[tuple[int, int, int]]:
    """Of every attempt in order: its position, where the pack stood, how many it passed over."""
    plan = beside.distributor.packs[next(iter(beside.distributor.packs))].channels
    at = {channel.id: position for position, channel in enumerate(plan)}
    attempts = [attempt for record in beside.offered for attempt in record.attempts]
    return [
        (at[a.channel], -1 if a.after is None else at[a.after], a.passed_over)
        for a in sorted(attempts, key=lambda attempt: attempt.started)
    ]


def in_turn(steps: Iterable[tuple[int, int, int]], size: int) -> bool:
    """Whether each hunt began where the one before ended."""
    last = -1
    for position, after, passed in steps:
        if after != last or (after + 1 + passed) % size != position:
            return False
        last = position
    return True


async def _serve(site: str) -> None:
    distributor = Distributor(configuration(site, 1).site)
    driver = AsteriskDriver(AsteriskPlan(MAIN, "127.0.0.1", 0, None), distributor, clock.now)
    await driver.start()
    print(driver.agi_port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
