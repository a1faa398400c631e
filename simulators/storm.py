"""Storms: a stream of calls against the packs of a site, in virtual time, and what came of it.

The core that decides here is the one that runs beside a PBX; only the clock and the far ends are
simulated: every attempt is answered at once, which the PBX tells as it happens, and holds for as
long as its call says.

`expected` is what theory says of the same storm, `compare` puts both side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush

from simulators.traffic import Traffic, calls
from umpack import clock
from umpack.core import traffic as theory
from umpack.core.calls import Assignment, Call, CallId
from umpack.core.causes import Outcome, Result
from umpack.core.channel import ChannelId
from umpack.core.distributor import Distributor, Offer
from umpack.core.errors import OurFault
from umpack.core.ledger import Lease
from umpack.core.pack import PackId, Strategy
from umpack.core.routes import Pattern, Route
from umpack.core.site import Site
from umpack.core.traffic import Interval

Progress = Callable[[int], None]
"""Told how many calls have been offered so far, every few thousand."""

BATCHES = 20
"""At least as many batches in a storm long enough for them, and fewer than twice as many: ten or
thirty would do, more only make each one shorter and less independent of the next (B. Schmeiser,
"Batch size effects in the analysis of simulation output", Operations Research 30, 1982)."""

_STEP = 4096
_READ = 128
"""Calls after which the records are read: so few that the garbage collector has nothing to do."""

_CROWD = 512

_ANSWERED = Outcome(Result.ANSWERED, 16)


@dataclass(frozen=True, slots=True)
class ChannelLoad:
    """What one channel carried. `position` counts from 1, overflow packs behind their pack."""

    id: ChannelId
    position: int
    calls: int
    erlangs: float


@dataclass(frozen=True, slots=True)
class Batch:
    """One of several stretches of equal length, for confidence intervals. All but `calls` (how
    many were offered) are means over the stretch; `loads` are erlangs, one for each channel."""

    calls: int
    blocking: float
    erlangs_offered: float
    loads: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class StormReport:
    """What was offered and carried from the end of the warm-up to the last arrival.

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
    seconds: float = 0.0
    """How long the storm took in its own time, without the warm-up."""
    batches: tuple[Batch, ...] = ()


@dataclass(frozen=True, slots=True)
class _Mark:
    """Everything added up to a moment. Calls not over yet count with what they had until then."""

    at: float
    offered: int
    wanted: float
    calls: tuple[int, ...]
    seconds: tuple[float, ...]


class Tally:
    """Adds up calls as they come, in memory that does not grow with their number.

    Calls before `since` load the channels, but are not counted. Batches are `batch` seconds long
    at first; whenever there are twice `BATCHES`, neighbours are joined. So nobody has to know
    beforehand how long a storm will be.
    """

    def __init__(
        self, channels: Sequence[ChannelId], *, since: float = 0.0, batch: float = 1.0
    ) -> None:
        self._offered = 0
        self._wanted = 0.0
        self._calls = dict.fromkeys(channels, 0)
        self._seconds = dict.fromkeys(channels, 0.0)
        self._open: list[tuple[float, ChannelId | None]] = []
        """Ends of calls that may not be over yet, and where they are; None for blocked ones."""
        self._crowd = _CROWD
        """So many of them, and it is time to forget those that are."""
        self._batch = batch
        self._due = since
        self._marks: list[_Mark] = []

    def add(self, now: float, hold: float, channel: ChannelId | None) -> None:
        """A call came that wants `hold` seconds, and was carried on a channel or blocked."""
        if now >= self._due:
            self._mark_until(now)
        self._offered += 1
        self._wanted += hold
        if channel is not None:
            self._calls[channel] += 1
            self._seconds[channel] += hold
        self._open.append((now + hold, channel))
        if len(self._open) > self._crowd:
            self._forget(now)

    def report(self, seed: int, until: float, seconds: float) -> StormReport:
        """The storm to `until`, which this machine took `seconds` for.

        `OurFault` if all of it was warm-up.
        """
        if not self._marks and self._offered:
            raise OurFault(f"all {self._offered} calls came within the warm-up")
        last = self._mark(until)
        first = self._marks[0] if self._marks else last
        span = until - first.at or 1.0
        loads = tuple(
            ChannelLoad(id_, position, after - before, (end - begin) / span)
            for position, (id_, before, after, begin, end) in enumerate(
                zip(self._calls, first.calls, last.calls, first.seconds, last.seconds, strict=True),
                1,
            )
        )
        offered = last.offered - first.offered
        carried = sum(load.calls for load in loads)
        blocked = offered - carried
        return StormReport(
            offered=offered,
            carried=carried,
            blocked=blocked,
            blocking=blocked / offered if offered else 0.0,
            erlangs_offered=(last.wanted - first.wanted) / span,
            erlangs_carried=math.fsum(load.erlangs for load in loads),
            calls_per_second=self._offered / seconds if seconds > 0 else 0.0,
            channels=loads,
            seed=seed,
            seconds=until - first.at,
            batches=tuple(map(_batch, self._marks, self._marks[1:])),
        )

    def _forget(self, until: float) -> None:
        """Calls that were over by then count as a whole at every later mark."""
        self._open = [entry for entry in self._open if entry[0] > until]
        self._crowd = 2 * len(self._open) + _CROWD

    def _mark_until(self, now: float) -> None:
        while self._due <= now:
            self._marks.append(self._mark(self._due))
            if len(self._marks) > 2 * BATCHES:
                self._marks = self._marks[::2]
                self._batch *= 2
            self._due += self._batch

    def _mark(self, at: float) -> _Mark:
        wanted, carried = self._wanted, dict(self._seconds)
        self._forget(at)
        for end, channel in self._open:
            wanted -= end - at
            if channel is not None:
                carried[channel] -= end - at
        return _Mark(
            at, self._offered, wanted, tuple(self._calls.values()), tuple(carried.values())
        )


def _batch(first: _Mark, last: _Mark) -> Batch:
    span, offered = last.at - first.at, last.offered - first.offered
    carried = sum(last.calls) - sum(first.calls)
    return Batch(
        offered,
        (offered - carried) / offered if offered else 0.0,
        (last.wanted - first.wanted) / span,
        tuple((b - a) / span for a, b in zip(first.seconds, last.seconds, strict=True)),
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
    site: Site,
    pack: PackId,
    traffic: Traffic,
    progress: Progress | None = None,
    *,
    warm_up: float = 0.0,
) -> StormReport:
    """Offer all calls of `traffic` (which must end) to `pack`, as fast as this machine can.

    Those of the first `warm_up` seconds are not counted. `OurFault` if that leaves none.
    """
    if not 0.0 <= warm_up < math.inf:
        raise OurFault(f"the warm-up must be zero or more seconds, not {warm_up}")
    distributor = Distributor(only(site, pack))
    pbx = site.pbx_of(pack)
    distributor.hear(pbx, 0.0, hints=True)
    tally = Tally(hunted(site, pack), since=warm_up, batch=traffic.holding.mean)
    running: list[tuple[float, int, Lease[Offer]]] = []
    now, number = 0.0, 0
    began = clock.monotonic()
    for number, arriving in enumerate(calls(traffic), 1):
        now, hold, called, caller = arriving
        if not math.isfinite(now):
            raise OurFault("too little traffic: the next call would never come")
        while running and running[0][0] <= now:
            ended, _, lease = heappop(running)
            distributor.outcome(lease, _ANSWERED, ended)
        decision = distributor.offer(Call(CallId(str(number)), pbx, called, caller), now)
        if isinstance(decision, Assignment):
            distributor.answered(decision.lease, now)
            heappush(running, (now + hold, number, decision.lease))
            tally.add(now, hold, decision.channel)
        else:
            tally.add(now, hold, None)
        if not number % _READ:
            distributor.take_records()
            if progress and not number % _STEP:
                progress(number)
    took = clock.monotonic() - began
    for ended, _, lease in running:
        distributor.outcome(lease, _ANSWERED, ended)
    if progress:
        progress(number)
    return tally.report(traffic.seed, now, took)


@dataclass(frozen=True, slots=True)
class Expectation:
    """What theory says of a storm of Poisson calls: erlangs, and `loads` in order of `hunted`."""

    offered: float
    blocking: float
    loads: tuple[float, ...]

    @property
    def carried(self) -> float:
        """Erlangs all channels carry together."""
        return self.offered * (1.0 - self.blocking)


def expected(site: Site, pack: PackId, erlangs: float) -> Expectation:
    """Theory for `erlangs` offered to a pack and nothing to any other.

    A call is lost only if the pack and all its overflow packs are full, so together they are one
    loss group whatever their strategies. The first n channels of a chain of packs carry what a
    group of n would, as far as n ends with a pack or lies in a linear one; the channels of a
    cyclic pack share what is theirs by symmetry, also where the calls are overflow.
    """
    only(site, pack)
    channels = hunted(site, pack)
    b = theory.blockings(len(channels), erlangs)
    loads: list[float] = []
    for id_ in site.chain(pack):
        plan, begin = site.packs[id_], len(loads)
        # A channel of several packs belongs to the first; where the others are tried, it is busy.
        end = begin + len(set(plan.channels).difference(channels[:begin]))
        match plan.strategy:
            case Strategy.LINEAR:
                loads += [erlangs * (b[n] - b[n + 1]) for n in range(begin, end)]
            case Strategy.CYCLIC:
                size = end - begin
                loads += [erlangs * (b[begin] - b[end]) / size] * size if size else []
    return Expectation(erlangs, b[-1], tuple(loads))


@dataclass(frozen=True, slots=True)
class Comparison:
    """A figure and its theory. `interval` is None where a storm is too short to have one."""

    measured: float
    theory: float
    interval: Interval | None

    @property
    def holds(self) -> bool | None:
        """Whether theory lies within the interval; None without one."""
        return None if self.interval is None else self.theory in self.interval


@dataclass(frozen=True, slots=True)
class Comparisons:
    """A storm beside its theory. The loads share one confidence: that all hold at once."""

    blocking: Comparison
    offered: Comparison
    carried: Comparison
    loads: tuple[Comparison, ...]


def compare(
    report: StormReport, expectation: Expectation, *, exponential: bool, confidence: float = 0.95
) -> Comparisons:
    """Put measured and theory side by side.

    With `exponential` holding times the interval of the blocking is exact theory for long storms;
    for others, as for loads, it comes from the batches.
    """
    batches = report.batches
    each = theory.simultaneous(confidence, len(report.channels))
    if exponential:
        blocking: Interval | None = theory.blocking_interval(
            len(report.channels),
            expectation.offered,
            offered=report.offered,
            lost=report.blocked,
            confidence=confidence,
        )
    else:
        blocking = _interval((batch.blocking for batch in batches), confidence)
    return Comparisons(
        Comparison(report.blocking, expectation.blocking, blocking),
        Comparison(
            report.erlangs_offered,
            expectation.offered,
            _interval((batch.erlangs_offered for batch in batches), confidence),
        ),
        Comparison(
            report.erlangs_carried,
            expectation.carried,
            _interval((math.fsum(batch.loads) for batch in batches), confidence),
        ),
        tuple(
            Comparison(channel.erlangs, load, _interval((b.loads[i] for b in batches), each))
            for i, (channel, load) in enumerate(
                zip(report.channels, expectation.loads, strict=True)
            )
        ),
    )


def _interval(values: Iterable[float], confidence: float) -> Interval | None:
    batches = tuple(values)
    return theory.batch_interval(batches, confidence) if len(batches) >= BATCHES else None
