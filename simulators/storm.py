"""Storms: a stream of calls against the packs of a site, in virtual time, and what came of it.

The core that decides here is the one that runs beside a PBX; only the clock and the far ends are
simulated: every attempt is answered, and holds for as long as its call says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush

from simulators.traffic import Traffic, calls
from umpack import clock
from umpack.core.calls import Assignment, Call, CallId
from umpack.core.causes import Outcome, Result
from umpack.core.channel import ChannelId
from umpack.core.distributor import Distributor, Offer
from umpack.core.errors import OurFault
from umpack.core.ledger import Lease
from umpack.core.pack import PackId
from umpack.core.routes import Pattern, Route
from umpack.core.site import Site

Progress = Callable[[int], None]
"""Told how many calls have been offered so far, every few thousand."""

_STEP = 4096
_ANSWERED = Outcome(Result.ANSWERED, 16)


@dataclass(frozen=True, slots=True)
class ChannelLoad:
    """What one channel carried. `position` counts from 1, overflow packs behind their pack."""

    id: ChannelId
    position: int
    calls: int
    erlangs: float


@dataclass(frozen=True, slots=True)
class StormReport:
    """What was offered and carried from the first to the last arrival.

    Erlangs are measured within that time, what lasted longer is cut there; so no channel carries
    more than one. `calls_per_second` is how fast this machine went through the storm.
    """

    offered: int
    carried: int
    blocked: int
    blocking: float
    erlangs_offered: float
    erlangs_carried: float
    calls_per_second: float
    channels: tuple[ChannelLoad, ...]
    seed: int


class Tally:
    """Adds up calls as they come, in memory that does not grow with their number."""

    def __init__(self, channels: Sequence[ChannelId]) -> None:
        self.offered = 0
        self._calls = dict.fromkeys(channels, 0)
        self._seconds = dict.fromkeys(channels, 0.0)
        self._wanted = 0.0
        self._open: list[tuple[float, ChannelId | None]] = []
        """Ends of calls not over yet, and where they are; None for blocked ones."""

    def add(self, now: float, hold: float, channel: ChannelId | None) -> None:
        """A call came that wants `hold` seconds, and was carried on a channel or blocked."""
        self.offered += 1
        self._wanted += hold
        if channel is not None:
            self._calls[channel] += 1
            self._seconds[channel] += hold
        self._open.append((now + hold, channel))

    def forget(self, now: float) -> None:
        """Drop what is over; to be called now and then."""
        self._open = [entry for entry in self._open if entry[0] > now]

    def report(self, seed: int, until: float, seconds: float) -> StormReport:
        """The storm from 0 to `until`, which this machine took `seconds` for."""
        span = until or 1.0
        wanted, carried = self._wanted, dict(self._seconds)
        for end, channel in self._open:
            if end > until:
                wanted -= end - until
                if channel is not None:
                    carried[channel] -= end - until
        loads = tuple(
            ChannelLoad(id_, position, calls, carried[id_] / span)
            for position, (id_, calls) in enumerate(self._calls.items(), 1)
        )
        served = sum(load.calls for load in loads)
        blocked = self.offered - served
        return StormReport(
            offered=self.offered,
            carried=served,
            blocked=blocked,
            blocking=blocked / self.offered if self.offered else 0.0,
            erlangs_offered=wanted / span,
            erlangs_carried=sum(load.erlangs for load in loads),
            calls_per_second=self.offered / seconds if seconds > 0 else 0.0,
            channels=loads,
            seed=seed,
        )


def only(site: Site, pack: PackId) -> Site:
    """The site with every number routed to one pack. `OurFault` if there is no such pack."""
    if pack not in site.packs:
        known = ", ".join(site.packs) or "none"
        raise OurFault(f"no pack {pack!r}; there are: {known}")
    return replace(site, routes=(Route(Pattern.parse("*"), pack),))


def hunted(site: Site, pack: PackId) -> tuple[ChannelId, ...]:
    """The channels a call to `pack` may get, in order of packs and positions, each once."""
    return tuple(dict.fromkeys(c for id_ in site.chain(pack) for c in site.packs[id_].channels))


def virtual_storm(
    site: Site, pack: PackId, traffic: Traffic, progress: Progress | None = None
) -> StormReport:
    """Offer all calls of `traffic` (which must end) to `pack`, as fast as this machine can."""
    distributor = Distributor(only(site, pack))
    pbx = site.pbx_of(pack)
    tally = Tally(hunted(site, pack))
    running: list[tuple[float, int, Lease[Offer]]] = []
    now, number = 0.0, 0
    began = clock.monotonic()
    for number, arriving in enumerate(calls(traffic), 1):
        now = arriving.at
        while running and running[0][0] <= now:
            ended, _, lease = heappop(running)
            distributor.outcome(lease, _ANSWERED, ended)
        call = Call(CallId(str(number)), pbx, arriving.called, arriving.caller)
        decision = distributor.offer(call, now)
        if isinstance(decision, Assignment):
            heappush(running, (now + arriving.hold, number, decision.lease))
            tally.add(now, arriving.hold, decision.channel)
        else:
            tally.add(now, arriving.hold, None)
        if not number % _STEP:
            distributor.take_records()
            tally.forget(now)
            if progress:
                progress(number)
    for ended, _, lease in running:
        distributor.outcome(lease, _ANSWERED, ended)
    if progress:
        progress(number)
    return tally.report(traffic.seed, now, clock.monotonic() - began)
