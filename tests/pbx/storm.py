"""Storms of calls against UM servers that fail in every way, and what their callers saw of it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from loguru import logger

from drivers.base import LinkState
from tests.pbx.beside import MAIN, until
from tests.pbx.lab import SECRET, Lab, LabConfig, SipPeer
from tests.pbx.sipp import Caller, CallerResult, Callers, Event, ServedCall, Server
from tests.ports import free_port
from umpack.config import Configuration, load
from umpack.daemon import Daemon
from umpack.dialplan import dialplan

SERVERS = ("um1", "um2", "um3", "um4")
LIFE_SECONDS = 3600

HEAD = """
pbx:
  main:
    ami: {{host: 127.0.0.1, port: {ami}, user: umpack, secret: {secret}}}
    agi: {{listen: "127.0.0.1:{agi}"}}
control: {{socket: "{here}/control.sock"}}
journal: {{path: "{here}/journal.db"}}
log: {{level: info, file: "{here}/log"}}
drain: {{deadline: 1s}}
"""


class UmServer:
    """The UM server at one port: it may die, freeze, refuse, ring, and come back.

    Asterisk repeats an INVITE nobody answered for 32 s (RFC 3261 17.1.1.2, timer B), also after its
    Dial has given up: a server that comes back answers calls that are long over, to nobody.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self._served: list[ServedCall] = []
        self._past: list[list[Event]] = []
        self._server = self._answering()

    def __enter__(self) -> UmServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.stop()

    def die(self) -> None:
        """As by the kernel's out-of-memory killer: nobody is told, nothing is answered."""
        if self._server.running:
            self._served = self.calls()
            self._past.append(self._server.events())
        self._server.stop()

    def freeze(self) -> None:
        """It neither reads nor answers; what is sent to it waits in the kernel."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on, with all that has waited."""
        self._signal(signal.SIGCONT)

    def refuse(self, code: int) -> None:
        """A process that refuses every call with a SIP status takes its place."""
        self.die()
        self._server = Server.rejecting(code, self.port)

    def ring(self) -> None:
        """A process that rings and never answers takes its place."""
        self.die()
        self._server = Server.ringing(self.port)

    def come_back(self) -> None:
        """A process that answers takes its place."""
        self.die()
        self._server = self._answering()

    def calls(self) -> list[ServedCall]:
        """Calls offered to it so far, by all its processes."""
        return [*self._served, *(self._server.calls() if self._server.running else ())]

    def most_at_once(self) -> int:
        """Most calls one of its processes had connected at any one time."""
        now = [self._server.events()] if self._server.running else []
        return max(map(_most_at_once, [*self._past, *now]), default=0)

    def _answering(self) -> Server:
        return Server("uas_answer", {"ring_ms": "1"}, self.port, LIFE_SECONDS)

    def _signal(self, number: signal.Signals) -> None:
        self._server._process.send_signal(number)


@dataclass(frozen=True, slots=True)
class Placed:
    """One call: when its INVITE was sent (epoch), and what its caller saw."""

    sent: float
    result: CallerResult

    @property
    def wait(self) -> float:
        """Seconds from the INVITE to the final answer; infinite if there was none."""
        seconds = self.result.seconds_to_final
        return float("inf") if seconds is None else seconds


def placed(callers: Callers) -> list[Placed]:
    """The calls of callers, in order. Of those that run, the last lines may be half written."""
    sent = {event.call: event.at for event in callers.events() if event.step == "invite"}
    results = callers.results()
    return [Placed(sent[result.call], result) for result in results if result.call in sent]


def lost(calls: Iterable[Placed], own: int | None = None) -> list[Placed]:
    """Those that were not answered, or cut before their caller hung up. `own` is a status that
    counts as an answer: the far end's own word."""
    return [
        call
        for call in calls
        if call.result.final not in (200, own)
        or (call.result.final == 200 and call.result.end != "hangup-local")
    ]


def slower(calls: Iterable[Placed], seconds: float) -> list[float]:
    """Waits above `seconds`, longest first."""
    return sorted((call.wait for call in calls if call.wait > seconds), reverse=True)


def _most_at_once(events: Sequence[Event]) -> int:
    answered = [event for event in events if event.step == "answered"]
    ends = {e.call: e.at for e in events if e.step in ("hangup-remote", "hangup-local")}
    moments = [(event.at, 1) for event in answered]
    moments += [(ends[event.call], -1) for event in answered if event.call in ends]
    count = most = 0
    for _, step in sorted(moments):
        count += step
        most = max(most, count)
    return most


def um_config(names: Sequence[str] = SERVERS) -> LabConfig:
    """A lab with these UM servers at ports that are free now."""
    return LabConfig("[from-line]\n", peers=[SipPeer(name, free_port()) for name in names])


def site_file(lab: Lab, site: str, here: Path, ami_port: int | None = None) -> Path:
    """A site beside a lab as a file in `here`, with all other files there, too."""
    file = here / "umpack.yaml"
    ami = ami_port or lab.ami_port
    head = HEAD.format(ami=ami, secret=SECRET, agi=free_port(), here=here)
    file.write_text(head + site, encoding="utf-8")
    return file


def load_dialplan(lab: Lab, wanted: Configuration) -> None:
    """Have the running PBX read the dialplan umpack prints."""
    lab.write("extensions.conf", f"[from-line]\ninclude => umpack-in\n{dialplan(wanted, MAIN)}")
    lab.rx("dialplan reload")


@asynccontextmanager
async def daemon_beside(
    lab: Lab, site: str, here: Path, ami_port: int | None = None
) -> AsyncIterator[Daemon]:
    """The whole daemon in this loop, AMI link up, the PBX with the dialplan it prints."""
    wanted = load(site_file(lab, site, here, ami_port))
    broken: list[str] = []
    sink = logger.add(lambda line: broken.append(str(line)), level="CRITICAL")
    try:
        async with Daemon(wanted, None) as daemon:
            await asyncio.to_thread(load_dialplan, lab, wanted)
            await until(lambda: linked(daemon))
            yield daemon
            await asyncio.to_thread(lab.wait_channels, 0)
    finally:
        logger.remove(sink)
    assert broken == []


def linked(daemon: Daemon) -> bool:
    """Whether its link is up."""
    link: str = daemon.status()["pbxs"][0]["link"]
    return link == LinkState.UP.value


async def place(lab: Lab, caller: Caller, seconds: int = 60) -> list[Placed]:
    """Make these calls and wait until all have ended."""
    callers = await asyncio.to_thread(caller.start, lab.sip_port, seconds)
    with callers:
        await asyncio.to_thread(callers.wait, seconds + 10.0)
        return placed(callers)
