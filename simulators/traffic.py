"""Callers: seeded streams of calls, each with its time of arrival and how long it would hold.

Specs are values; `calls(spec)` turns one into an endless or bounded iterator. Times are seconds
from the start of the stream. The same spec gives the same calls in every run; arrivals, holding
times and numbers have random streams of their own, so that a change of one does not shift the
others (common random numbers).

Everything is drawn in blocks with list comprehensions, because a virtual storm should spend its
time in the distributor, not here: one to two microseconds a call.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, islice, repeat
from random import Random
from typing import NamedTuple, assert_never

from umpack.core.errors import OurFault

BLOCK = 4096  # large enough to spread the cost of a block, small enough to start at once

# Share of the busy hour's traffic in each hour of a working day at an office's fax and voice-mail
# lines: two peaks, a noon dip, a trickle of faxes by night. Only a plausible default; measure your
# own.
OFFICE_DAY = (
    *(0.03, 0.02, 0.02, 0.02, 0.03, 0.05, 0.12, 0.35, 0.75, 1.00, 1.00, 0.90),
    *(0.60, 0.70, 0.90, 0.95, 0.85, 0.60, 0.35, 0.20, 0.12, 0.08, 0.05, 0.04),
)
HOUR = 3600.0


class ArrivingCall(NamedTuple):
    """One call: when it comes, how long it holds once answered (seconds), and its numbers.

    A named tuple rather than a frozen dataclass: it is made four times faster, a million times a
    storm.
    """

    at: float
    hold: float
    called: str
    caller: str


@dataclass(frozen=True, slots=True)
class Poisson:
    """Independent callers: exponential gaps, `rate` calls per second on average."""

    rate: float

    def __post_init__(self) -> None:
        _positive("rate", self.rate)

    @classmethod
    def of(cls, erlangs: float, hold: float) -> Poisson:
        """The rate that offers `erlangs` with calls of `hold` seconds on average."""
        _positive("erlangs", erlangs)
        _positive("hold", hold)
        return cls(erlangs / hold)


@dataclass(frozen=True, slots=True)
class Regular:
    """One call every 1/`rate` seconds, the first after one interval."""

    rate: float

    def __post_init__(self) -> None:
        _positive("rate", self.rate)


@dataclass(frozen=True, slots=True)
class Bursts:
    """Poisson bursts, `rate` per second, each of exactly `size` calls at random over `within` s.

    With `within` 0 all calls of a burst come at the same instant, as after a D channel's recovery.
    """

    rate: float
    size: int
    within: float = 0.0

    def __post_init__(self) -> None:
        _positive("rate", self.rate)
        if self.size < 1:
            raise OurFault(f"a burst has at least one call, not {self.size}")
        if not 0.0 <= self.within < math.inf:
            raise OurFault(f"within must be zero or more seconds, not {self.within}")


@dataclass(frozen=True, slots=True)
class Profile:
    """Poisson calls whose rate changes over the day: `rates` (calls/s) in turn, `slot` s each.

    After the last slot the first follows. `start` is the time of day (seconds into the profile) at
    stream time 0.
    """

    rates: tuple[float, ...]
    slot: float = HOUR
    start: float = 0.0

    def __post_init__(self) -> None:
        if not self.rates or not all(0.0 <= rate < math.inf for rate in self.rates):
            raise OurFault("a profile needs rates of zero or more calls per second")
        _positive("the highest rate", max(self.rates))
        _positive("slot", self.slot)
        if not 0.0 <= self.start < math.inf:
            raise OurFault(f"start must be zero or more seconds, not {self.start}")

    @classmethod
    def office(cls, busy_erlangs: float, hold: float, start: float = 0.0) -> Profile:
        """A working day (`OFFICE_DAY`) that offers `busy_erlangs` in its busy hour."""
        rate = Poisson.of(busy_erlangs, hold).rate
        return cls(tuple(rate * share for share in OFFICE_DAY), HOUR, start)

    def expected(self, begin: float, end: float) -> float:
        """Mean number of calls with begin <= at < end: the integral of the rate."""
        return self._integral(end + self.start) - self._integral(begin + self.start)

    def _integral(self, until: float) -> float:
        rounds, rest = divmod(until, self.slot * len(self.rates))
        total = rounds * self.slot * math.fsum(self.rates)
        for rate in self.rates:
            total += rate * min(max(rest, 0.0), self.slot)
            rest -= self.slot
        return total


@dataclass(frozen=True, slots=True)
class Exponential:
    """Holding times without memory: what Erlang's theory of overflow assumes."""

    mean: float

    def __post_init__(self) -> None:
        _positive("mean", self.mean)


@dataclass(frozen=True, slots=True)
class Fixed:
    """Every call holds `mean` seconds, such as a one-page fax."""

    mean: float

    def __post_init__(self) -> None:
        _positive("mean", self.mean)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Mostly short calls and a few long ones. `cv` is the standard deviation over the mean."""

    mean: float
    cv: float

    def __post_init__(self) -> None:
        _positive("mean", self.mean)
        _positive("cv", self.cv)


Arrivals = Poisson | Regular | Bursts | Profile
Holding = Exponential | Fixed | LogNormal


@dataclass(frozen=True, slots=True)
class Traffic:
    """A stream of calls. `called` and `callers` are drawn from with equal chances.

    It ends after `count` calls, or with the last call before `until` seconds, whichever is first;
    without either it is endless.
    """

    arrivals: Arrivals
    holding: Holding
    seed: int = 0
    count: int | None = None
    until: float | None = None
    called: tuple[str, ...] = ("49302000100",)
    callers: tuple[str, ...] = ("49891234567",)

    def __post_init__(self) -> None:
        if not self.called or not self.callers:
            raise OurFault("traffic needs at least one called and one calling number")
        if self.count is not None and self.count < 0:
            raise OurFault(f"count must be zero or more calls, not {self.count}")
        if self.until is not None and not self.until >= 0.0:
            raise OurFault(f"until must be zero or more seconds, not {self.until}")


def number_block(prefix: str, digits: int) -> tuple[str, ...]:
    """All numbers of a DDI block: `prefix` followed by every combination of 0 to 6 digits."""
    if not 0 <= digits <= 6:
        raise OurFault(f"a block has 0 to 6 open digits, not {digits}")
    return tuple(f"{prefix}{n:0{digits}d}" if digits else prefix for n in range(10**digits))


def calls(spec: Traffic) -> Iterator[ArrivingCall]:
    """The calls of `spec` in order of arrival; calling again starts the same stream anew."""
    stream = _stream(spec)
    if spec.count is not None:
        stream = islice(stream, spec.count)
    if spec.until is not None:
        stream = _before(stream, spec.until)
    return stream


def _stream(spec: Traffic) -> Iterator[ArrivingCall]:
    holds = _holds(spec.holding, _chance(spec, "holding"))
    called = _numbers(spec.called, _chance(spec, "called"))
    callers = _numbers(spec.callers, _chance(spec, "callers"))
    for ats in _times(spec.arrivals, _chance(spec, "arrivals")):
        n = len(ats)
        yield from map(ArrivingCall, ats, holds(n), called(n), callers(n))


def _chance(spec: Traffic, part: str) -> Random:
    # Random hashes a text seed (SHA-512), so the streams of neighbouring seeds share nothing.
    return Random(f"{spec.seed} {part}")


def _before(stream: Iterator[ArrivingCall], until: float) -> Iterator[ArrivingCall]:
    for call in stream:
        if call.at >= until:
            return
        yield call


def _times(arrivals: Arrivals, chance: Random) -> Iterator[list[float]]:
    match arrivals:
        case Poisson():
            return _poisson(arrivals.rate, chance)
        case Regular():
            return _regular(arrivals.rate)
        case Bursts():
            return _bursts(arrivals, chance)
        case Profile():
            return _thinned(arrivals, chance)
        case _:
            assert_never(arrivals)


def _poisson(rate: float, chance: Random) -> Iterator[list[float]]:
    now = 0.0
    uniform, log, scale = chance.random, math.log, -1.0 / rate
    while True:
        # 1 - random() lies in (0, 1]: never the logarithm of zero.
        gaps = [log(1.0 - uniform()) * scale for _ in range(BLOCK)]
        gaps[0] += now
        ats = list(accumulate(gaps))
        now = ats[-1]
        yield ats


def _regular(rate: float) -> Iterator[list[float]]:
    done = 0
    while True:
        # A product, not a running sum: the millionth call is still on its beat.
        yield [n / rate for n in range(done + 1, done + BLOCK + 1)]
        done += BLOCK


def _bursts(bursts: Bursts, chance: Random) -> Iterator[list[float]]:
    uniform, size, within = chance.random, bursts.size, bursts.within
    waiting: list[float] = []
    step = max(1, BLOCK // size)
    for starts in _poisson(bursts.rate, chance):
        for first in range(0, BLOCK, step):
            part = starts[first : first + step]
            waiting += [start + within * uniform() for start in part for _ in range(size)]
            waiting.sort()
            # Bursts overlap: what lies beyond the last known start must wait for the next calls.
            known = bisect_right(waiting, part[-1])
            yield waiting[:known]
            del waiting[:known]


def _thinned(profile: Profile, chance: Random) -> Iterator[list[float]]:
    # Thinning (P. A. W. Lewis, G. S. Shedler, 1979): draw at the highest rate, keep each with its
    # share.
    top = max(profile.rates)
    shares = [rate / top for rate in profile.rates]
    uniform, slot, start, slots = chance.random, profile.slot, profile.start, len(shares)
    for ats in _poisson(top, chance):
        yield [at for at in ats if uniform() < shares[int((at + start) / slot) % slots]]


def _holds(holding: Holding, chance: Random) -> Callable[[int], Iterator[float]]:
    uniform, log, exp = chance.random, math.log, math.exp
    match holding:
        case Exponential():
            scale = -holding.mean
            return lambda n: iter([log(1.0 - uniform()) * scale for _ in range(n)])
        case Fixed():
            return lambda n: repeat(holding.mean, n)
        case LogNormal():
            # The logarithm is normal with variance ln(1 + cv^2) and a mean that makes exp() average
            # out right.
            variance = math.log1p(holding.cv**2)
            mu, sigma = math.log(holding.mean) - variance / 2, math.sqrt(variance)
            gauss = chance.gauss
            return lambda n: iter([exp(gauss(mu, sigma)) for _ in range(n)])
        case _:
            assert_never(holding)


def _numbers(numbers: tuple[str, ...], chance: Random) -> Callable[[int], Iterator[str]]:
    if len(numbers) == 1:
        return lambda n: repeat(numbers[0], n)
    uniform, many = chance.random, len(numbers)
    return lambda n: iter([numbers[int(uniform() * many)] for _ in range(n)])


def _positive(name: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise OurFault(f"{name} must be above zero, not {value}")
