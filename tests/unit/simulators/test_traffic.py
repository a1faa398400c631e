from __future__ import annotations

import math
from itertools import islice, pairwise
from statistics import fmean, pvariance

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.traffic import (
    BLOCK,
    HOUR,
    Arrivals,
    ArrivingCall,
    Bursts,
    Exponential,
    Fixed,
    Holding,
    LogNormal,
    Poisson,
    Profile,
    Regular,
    Traffic,
    calls,
    number_block,
)
from umpack.core.errors import OurFault

MANY = 40_000
SIGMAS = 4.5  # of a normal variate: one false alarm in 150,000, and the seeds are fixed anyway


def drawn(arrivals: Arrivals, holding: Holding, seed: int = 1) -> list[ArrivingCall]:
    return list(calls(Traffic(arrivals, holding, seed=seed, count=MANY)))


def mean_is(values: list[float], mean: float, deviation: float) -> bool:
    return abs(fmean(values) - mean) < SIGMAS * deviation / math.sqrt(len(values))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_poisson_gaps_are_exponential(seed: int) -> None:
    ats = [call.at for call in drawn(Poisson(4.0), Fixed(1.0), seed)]
    gaps = [b - a for a, b in pairwise([0.0, *ats])]
    assert mean_is(gaps, 0.25, 0.25)
    assert mean_is([gap * gap for gap in gaps], 2 * 0.25**2, math.sqrt(20) * 0.25**2)
    assert mean_is([float(gap > 0.25) for gap in gaps], math.exp(-1), 0.49)
    # Without memory: a gap says nothing about the next.
    assert mean_is([a * b for a, b in pairwise(gaps)], 0.25**2, 3 * 0.25**2)


def test_poisson_of_erlangs_offers_them() -> None:
    arrivals = Poisson.of(30.0, 120.0)
    stream = drawn(arrivals, Exponential(120.0))
    assert arrivals.rate == 0.25
    assert math.fsum(call.hold for call in stream) / stream[-1].at == pytest.approx(30.0, rel=0.04)


def test_regular_calls_keep_their_beat() -> None:
    stream = drawn(Regular(8.0), Fixed(1.0))
    assert [call.at for call in stream] == [n / 8 for n in range(1, MANY + 1)]


@pytest.mark.parametrize("within", [0.0, 0.5, 30.0])
def test_bursts_come_whole_and_in_order(within: float) -> None:
    stream = drawn(Bursts(0.5, 20, within), Fixed(1.0))
    ats = [call.at for call in stream]
    assert ats == sorted(ats)
    assert ats[-1] == pytest.approx(MANY / 20 / 0.5, rel=0.1)
    if within == 0.0:
        assert all(len(set(ats[n : n + 20])) == 1 for n in range(0, MANY, 20))
    else:
        # Calls per second vary more than a Poisson stream's, as long as bursts fit into the second.
        counts = [0] * (int(ats[-1]) + 1)
        for at in ats:
            counts[int(at)] += 1
        assert pvariance(counts) / fmean(counts) > (1.2 if within == 30.0 else 5.0)


def test_bursts_larger_than_a_block() -> None:
    stream = list(islice(calls(Traffic(Bursts(1.0, BLOCK + 1), Fixed(1.0))), 2 * BLOCK + 2))
    assert len({call.at for call in stream}) == 2


@pytest.mark.parametrize("start", [0.0, 7.5 * HOUR, 200 * HOUR])
def test_profile_integrates(start: float) -> None:
    profile = Profile.office(600.0, 60.0, start)  # 10 calls/s at the busiest
    spec = Traffic(profile, Fixed(60.0), seed=5, until=24 * HOUR)
    found = [0] * 24
    for call in calls(spec):
        found[int(call.at / HOUR)] += 1
    for hour, count in enumerate(found):
        expected = profile.expected(hour * HOUR, (hour + 1) * HOUR)
        assert abs(count - expected) < SIGMAS * math.sqrt(expected)
    assert sum(profile.rates) * HOUR == pytest.approx(profile.expected(0.0, 24 * HOUR))


def test_profile_goes_round() -> None:
    profile = Profile((1.0, 0.0, 3.0), slot=10.0, start=5.0)
    assert profile.expected(0.0, 5.0) == 5.0
    assert profile.expected(5.0, 15.0) == 0.0
    assert profile.expected(15.0, 25.0) == pytest.approx(30.0)
    assert profile.expected(20.0, 30.0) == pytest.approx(15.0 + 5.0)
    assert profile.expected(0.0, 300.0) == pytest.approx(400.0)
    assert all((call.at + 5.0) % 30.0 // 10.0 != 1.0 for call in drawn(profile, Fixed(1.0)))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_exponential_holds(seed: int) -> None:
    holds = [call.hold for call in drawn(Poisson(1.0), Exponential(60.0), seed)]
    assert mean_is(holds, 60.0, 60.0)
    assert mean_is([(hold - 60.0) ** 2 for hold in holds], 3600.0, math.sqrt(8) * 3600.0)
    assert min(holds) >= 0.0


def test_fixed_holds() -> None:
    assert {call.hold for call in drawn(Poisson(1.0), Fixed(33.0))} == {33.0}


@pytest.mark.parametrize(("mean", "cv"), [(60.0, 0.5), (180.0, 1.0), (5.0, 0.1)])
def test_log_normal_holds(mean: float, cv: float) -> None:
    holds = [call.hold for call in drawn(Poisson(1.0), LogNormal(mean, cv))]
    assert mean_is(holds, mean, mean * cv)
    sigma = math.sqrt(math.log1p(cv * cv))
    logs = [math.log(hold) for hold in holds]
    assert mean_is(logs, math.log(mean) - sigma * sigma / 2, sigma)
    middle = fmean(logs)
    assert mean_is([(v - middle) ** 2 for v in logs], sigma**2, math.sqrt(2) * sigma**2)


arrivals = st.sampled_from(
    [Poisson(3.0), Regular(2.0), Bursts(1.0, 7, 2.0), Profile((1.0, 0.0, 5.0), 10.0, 3.0)]
)
holdings = st.sampled_from([Exponential(10.0), Fixed(10.0), LogNormal(10.0, 1.5)])
numbers = st.sampled_from([("1",), ("1", "2"), number_block("4930", 2)])


@settings(deadline=None, max_examples=40)
@given(
    spec=st.builds(
        Traffic,
        arrivals,
        holdings,
        seed=st.integers(0, 2**70),
        count=st.integers(0, 2 * BLOCK),
        until=st.none() | st.floats(0.0, 3000.0),
        called=numbers,
        callers=numbers,
    )
)
def test_the_same_spec_gives_the_same_calls_in_order(spec: Traffic) -> None:
    stream = list(calls(spec))
    assert stream == list(calls(spec))
    assert all(a.at <= b.at for a, b in pairwise(stream))
    assert all(call.hold >= 0.0 and call.at >= 0.0 for call in stream)
    assert {call.called for call in stream} <= set(spec.called)
    assert spec.count is not None
    if spec.until is None:
        assert len(stream) == spec.count
    else:
        assert len(stream) <= spec.count
        assert all(call.at < spec.until for call in stream)


def test_known_calls_stay_known() -> None:
    # A recorded storm must be repeatable by a later version.
    first = next(calls(Traffic(Poisson(1.0), Exponential(60.0), seed=42)))
    assert first.at == pytest.approx(0.13437382157153152)
    assert first.hold == pytest.approx(5.764365331477198)


def test_seeds_and_streams_are_independent() -> None:
    base = drawn(Poisson(1.0), Exponential(60.0), seed=1)
    assert base != drawn(Poisson(1.0), Exponential(60.0), seed=2)
    other = drawn(Poisson(1.0), LogNormal(60.0, 1.0), seed=1)
    assert [call.at for call in base] == [call.at for call in other]
    gaps = [b.at - a.at for a, b in pairwise(base)]
    products = [gap * call.hold for gap, call in zip(gaps, base[1:], strict=True)]
    assert mean_is(products, 60.0, math.sqrt(3) * 60.0)


def test_numbers_are_drawn_evenly() -> None:
    block = number_block("493020", 1)
    spec = Traffic(Regular(1.0), Fixed(1.0), count=MANY, called=block, callers=("a", "b"))
    stream = list(calls(spec))
    for number in block:
        share = sum(call.called == number for call in stream)
        assert abs(share - MANY / 10) < SIGMAS * math.sqrt(MANY * 0.09)
    both = sum(call.called == block[0] and call.caller == "a" for call in stream)
    assert abs(both - MANY / 20) < SIGMAS * math.sqrt(MANY / 20)


def test_number_block() -> None:
    assert number_block("49302000", 0) == ("49302000",)
    assert number_block("49302000", 3)[7] == "49302000007"
    assert len(number_block("49302000", 3)) == 1000


NAN = math.nan


@pytest.mark.parametrize(
    "make",
    [
        lambda: Poisson(0.0),
        lambda: Poisson(NAN),
        lambda: Poisson.of(10.0, 0.0),
        lambda: Poisson.of(-1.0, 60.0),
        lambda: Regular(math.inf),
        lambda: Bursts(0.0, 3),
        lambda: Bursts(1.0, 0),
        lambda: Bursts(1.0, 3, -1.0),
        lambda: Bursts(1.0, 3, NAN),
        lambda: Profile(()),
        lambda: Profile((0.0, 0.0)),
        lambda: Profile((1.0, -1.0)),
        lambda: Profile((1.0, NAN)),
        lambda: Profile((1.0,), slot=0.0),
        lambda: Profile((1.0,), start=-1.0),
        lambda: Exponential(-1.0),
        lambda: Fixed(NAN),
        lambda: LogNormal(1.0, 0.0),
        lambda: LogNormal(0.0, 1.0),
        lambda: Traffic(Poisson(1.0), Fixed(1.0), called=()),
        lambda: Traffic(Poisson(1.0), Fixed(1.0), callers=()),
        lambda: Traffic(Poisson(1.0), Fixed(1.0), count=-1),
        lambda: Traffic(Poisson(1.0), Fixed(1.0), until=NAN),
        lambda: number_block("1", 7),
    ],
)
def test_nonsense_is_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(OurFault):
        make()
