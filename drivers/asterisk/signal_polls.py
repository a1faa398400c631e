"""The truth about a PBX's trunks, asked for: what events have told is corrected, never trusted.

An event may be lost, and D channels have none of their own, so lines and endpoints are asked about
whenever the link comes up, when a signal only hints, and now and then; more often while a trunk is
out. An alarm whose end nobody reported so ends with the next answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final, TypeAlias

from loguru import logger

from drivers.asterisk.ami_wire import AmiEvent, AmiRefused
from drivers.asterisk.signals import (
    EVERYTHING,
    Message,
    Sighting,
    Source,
    is_line,
    read_endpoint,
    read_endpoints,
    read_event,
    read_lines,
)
from drivers.base import Clock
from umpack.core.distributor import Distributor
from umpack.core.errors import PeerFault, PeerGone
from umpack.core.health_states import HealthState
from umpack.core.printable import printable
from umpack.core.trunk import PbxId, Trunk, TrunkId


@dataclass(frozen=True, slots=True)
class PollTimes:
    """Seconds between two questions for the same list."""

    lines: float = 10.0
    lines_out: float = 2.0
    """While a line is alarmed: its D channel comes back without an event."""
    endpoints: float = 30.0
    """Endpoints have events of their own; this is for those that were lost."""
    endpoints_out: float = 10.0
    refused: float = 60.0
    """After a refusal: a module is not loaded, or the manager's user may not."""
    least: float = 0.2
    """Hints come in crowds: an alarm on a span is told channel by channel."""


AskAmi: TypeAlias = Callable[
    [str, Mapping[str, str] | None], Awaitable[Sequence[Mapping[str, str]]]
]
"""`AmiLink.collect`."""

_TIMES: Final = PollTimes()
_LIST: Final = {Source.LINES: "DAHDIShowChannels", Source.ENDPOINTS: "PJSIPShowEndpoints"}


class SignalPolls:
    """Keeps a distributor's alarms in step with one PBX. All methods belong to the link's loop."""

    def __init__(
        self,
        pbx: PbxId,
        distributor: Distributor,
        clock: Clock,
        ask: AskAmi,
        times: PollTimes = _TIMES,
    ) -> None:
        self._pbx = pbx
        self._distributor = distributor
        self._clock = clock
        self._collect = ask
        self._times = times
        self._woken = asyncio.Event()
        self._due = dict.fromkeys(Source, 0.0)
        self._asked = dict.fromkeys(Source, -times.least)
        self._heard = 0
        self._news: dict[TrunkId, int] = {}
        """When an event last spoke of a trunk, counted in events."""
        self._complaints: dict[str, str] = {}
        self._refused: set[str] = set()
        """Lists that were refused the last time."""

    # -- what the link tells ----------------------------------------------------------------

    def hear(self, event: AmiEvent) -> None:
        """Take what an event says of a trunk, and ask where it only hints."""
        signal = read_event(event.name, event, self._trunks(), self._alarmed())
        if signal.sightings:
            self._heard += 1
            for sighting in signal.sightings:
                self._news[sighting.trunk] = self._heard
            self._see(signal.sightings)
        if signal.ask:
            self.ask(signal.ask)

    def ask(self, sources: Iterable[Source] = EVERYTHING) -> None:
        """Ask soon: at once, but no two times within `PollTimes.least`."""
        for source in sources:
            soon = self._asked[source] + self._times.least
            self._due[source] = min(self._due[source], soon)
        self._woken.set()

    async def run(self) -> None:
        """Ask whenever something is due, until cancelled. What a lost link leaves unanswered is
        asked again when `ask` says so."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout_at(min(self._due.values())):
                    await self._woken.wait()
            except TimeoutError:
                pass
            self._woken.clear()
            for source in Source:
                if self._due[source] <= loop.time():
                    self._asked[source], self._due[source] = loop.time(), inf
                    await self._poll(source)
                    again = self._asked[source] + self._interval(source)
                    self._due[source] = min(self._due[source], again)

    # -- within -----------------------------------------------------------------------------

    async def _poll(self, source: Source) -> None:
        trunks, before = self._trunks(), self._heard
        look = self._lines if source is Source.LINES else self._endpoints
        sightings = await look(trunks)
        # An event that came while the list was on its way is newer than the list.
        fresh = [s for s in sightings if self._news.get(s.trunk, 0) <= before]
        if len(fresh) < len(sightings):
            self.ask((source,))
        self._see(fresh)

    async def _lines(self, trunks: list[Trunk]) -> list[Sighting]:
        if not any(map(is_line, trunks)):
            return []
        channels = await self._list(_LIST[Source.LINES])
        if channels is None:
            return []
        return read_lines(channels, await self._list("PRIShowSpans"), trunks)

    async def _endpoints(self, trunks: list[Trunk]) -> list[Sighting]:
        if not any(trunk.endpoint for trunk in trunks):
            return []
        items = await self._list(_LIST[Source.ENDPOINTS])
        if items is None:
            return []
        found = read_endpoints(items, trunks)
        dialled = {t.endpoint or "" for t in trunks if t.dial.technology == "PJSIP"}
        for name in dialled & set(found.unknown):
            self._complain(f"endpoint {name}", f"PJSIP has no endpoint {name}")
        sightings = found.sightings
        for name in found.unclear:
            details = await self._list("PJSIPShowEndpoint", {"Endpoint": name})
            sightings += read_endpoint(name, details or (), trunks)
        return sightings

    async def _list(
        self, action: str, headers: Mapping[str, str] | None = None
    ) -> Sequence[Message] | None:
        """The list an action brings; None if there is none to be had now, which is told once."""
        try:
            items = await self._collect(action, headers)
        except PeerGone:
            return None  # the link's own trouble, and told as such
        except PeerFault as fault:
            if isinstance(fault, AmiRefused):
                # Normal for a module that is not loaded; it says nothing of any trunk.
                self._refused.add(action)
            self._complain(action, printable(str(fault), 160))
            return None
        self._refused.discard(action)
        self._complaints.pop(action, None)
        return items

    def _complain(self, about: str, text: str) -> None:
        if self._complaints.get(about) != text:
            self._complaints[about] = text
            logger.warning("pbx {}: {}", self._pbx, text)

    def _see(self, sightings: Iterable[Sighting]) -> None:
        now, seen = self._clock(), self._distributor.alarms_seen
        for sighting in sightings:
            # First what stands, or a red alarm that turns yellow would be over in between.
            standing = frozenset(sighting.kinds)
            seen(sighting.trunk, sighting.kinds, standing, now)
            seen(sighting.trunk, {}, sighting.among - standing, now)

    def _interval(self, source: Source) -> float:
        times = self._times
        if _LIST[source] in self._refused:
            return times.refused
        out = self._alarmed()
        lines = source is Source.LINES
        if any(is_line(trunk) is lines for trunk in self._trunks() if trunk.id in out):
            return times.lines_out if lines else times.endpoints_out
        return times.lines if lines else times.endpoints

    def _trunks(self) -> list[Trunk]:
        """This PBX's, as they are configured now."""
        return [t for t in self._distributor.site.trunks.values() if t.pbx == self._pbx]

    def _alarmed(self) -> set[TrunkId]:
        health = self._distributor.health
        return {id_ for id_, one in health.items() if one.state is HealthState.ALARMED}
