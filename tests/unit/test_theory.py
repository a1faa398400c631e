"""Packs under random calls carry and lose what traffic theory says.

Every statement is "theory lies within the confidence interval of what was measured". Confidences
are chosen (Bonferroni) so that with fresh seeds a correct program would fail this file once in a
thousand runs; the seeds are fixed, so it does not fail at all. That the intervals are narrow enough
to notice a wrong program is a test of its own.
"""

from __future__ import annotations

from functools import cache
from statistics import fmean

import pytest

from simulators.storm import StormReport, virtual_storm
from simulators.traffic import Exponential, Fixed, Holding, LogNormal, Poisson, Traffic
from tests.sites import all_of, one_pack, plan, site, trunk
from umpack.core import traffic
from umpack.core.pack import PackId, Strategy
from umpack.core.traffic import Interval

CONFIDENCE = 0.999
"""That all statements of this file hold at once, for seeds drawn at random."""
STATEMENTS = 400
EACH = traffic.simultaneous(CONFIDENCE, STATEMENTS)

SIZES = [(5, 4.0), (12, 9.0), (30, 24.0)]
SEEDS = [1, 2, 3]
CALLS = 20_000
WARM_UP = 20.0  # holding times; the start from all idle is forgotten after a few

UM, SPARE = PackId("um"), PackId("spare")
LINEAR, CYCLIC = Strategy.LINEAR, Strategy.CYCLIC


@cache
def storm(
    channels: int, erlangs: float, strategy: Strategy, seed: int, holding: Holding
) -> StormReport:
    stream = Traffic(Poisson.of(erlangs, holding.mean), holding, seed=seed, count=CALLS)
    one = one_pack(trunk("a", channels), strategy=strategy)
    return virtual_storm(one, UM, stream, warm_up=WARM_UP * holding.mean)


def blocking_of(report: StormReport, channels: int, erlangs: float) -> Interval:
    return traffic.blocking_interval(
        channels, erlangs, offered=report.offered, lost=report.blocked, confidence=EACH
    )


def load_of(report: StormReport, channel: int) -> Interval:
    return traffic.batch_interval([batch.loads[channel] for batch in report.batches], EACH)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("channels", "erlangs"), SIZES)
def test_linear_loads_are_those_of_sequential_hunting(
    channels: int, erlangs: float, seed: int
) -> None:
    report = storm(channels, erlangs, LINEAR, seed, Exponential(1.0))
    for n in range(1, channels + 1):
        a_n = erlangs * (traffic.blocking(n - 1, erlangs) - traffic.blocking(n, erlangs))
        assert a_n in load_of(report, n - 1), f"channel {n}"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("channels", "erlangs"), SIZES)
def test_cyclic_loads_are_equal(channels: int, erlangs: float, seed: int) -> None:
    report = storm(channels, erlangs, CYCLIC, seed, Exponential(1.0))
    share = erlangs * (1 - traffic.blocking(channels, erlangs)) / channels
    for n in range(channels):
        assert share in load_of(report, n), f"channel {n + 1}"


@pytest.mark.parametrize("strategy", Strategy)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("channels", "erlangs"), SIZES)
def test_blocking_is_erlangs(channels: int, erlangs: float, seed: int, strategy: Strategy) -> None:
    report = storm(channels, erlangs, strategy, seed, Exponential(1.0))
    assert traffic.blocking(channels, erlangs) in blocking_of(report, channels, erlangs)


@pytest.mark.parametrize("strategy", Strategy)
@pytest.mark.parametrize("holding", [Fixed(2.0), LogNormal(0.5, 1.5)], ids=repr)
@pytest.mark.parametrize("seed", SEEDS[:2])
def test_blocking_does_not_depend_on_how_holding_times_are_spread(
    holding: Holding, seed: int, strategy: Strategy
) -> None:
    channels, erlangs = SIZES[1]
    report = storm(channels, erlangs, strategy, seed, holding)
    lost = traffic.batch_interval([batch.blocking for batch in report.batches], EACH)
    assert traffic.blocking(channels, erlangs) in lost


@pytest.mark.parametrize(
    ("strategy", "spare"), [(LINEAR, CYCLIC), (CYCLIC, LINEAR)], ids=["cyclic", "linear"]
)
@pytest.mark.parametrize("seed", SEEDS[:2])
def test_overflow_pack_is_offered_wilkinsons_mean(
    seed: int, strategy: Strategy, spare: Strategy
) -> None:
    first, second, erlangs = 8, 5, 9.0
    a, b = trunk("a", first), trunk("b", second)
    both = site(
        [a, b],
        [plan("um", all_of(a), strategy, overflow=["spare"]), plan("spare", all_of(b), spare)],
    )
    stream = Traffic(Poisson.of(erlangs, 1.0), Exponential(1.0), seed=seed, count=CALLS)
    report = virtual_storm(both, UM, stream, warm_up=WARM_UP)

    total = first + second
    lost = erlangs * traffic.blocking(total, erlangs)
    passed_on = traffic.overflow(first, erlangs).mean
    carried = [sum(batch.loads[first:]) for batch in report.batches]
    assert passed_on - lost in traffic.batch_interval(carried, EACH)
    assert traffic.blocking(total, erlangs) in blocking_of(report, total, erlangs)


def test_intervals_are_narrow_enough_to_tell_linear_from_cyclic() -> None:
    for (channels, erlangs), seed in zip(SIZES, SEEDS, strict=True):
        linear = storm(channels, erlangs, LINEAR, seed, Exponential(1.0))
        cyclic = storm(channels, erlangs, CYCLIC, seed, Exponential(1.0))
        share = traffic.cyclic_load(channels, erlangs)
        for n in (0, channels - 1):
            assert share not in load_of(linear, n)
            assert traffic.linear_loads(channels, erlangs)[n] not in load_of(cyclic, n)


def test_intervals_are_narrow_enough_to_notice_a_missing_channel() -> None:
    for channels, erlangs in SIZES[:2]:
        lost = [storm(channels, erlangs, LINEAR, seed, Exponential(1.0)) for seed in SEEDS]
        one_less = traffic.blocking(channels - 1, erlangs)
        assert all(one_less not in blocking_of(report, channels, erlangs) for report in lost)


def test_mean_over_seeds_has_no_lean() -> None:
    # Averaged over seeds the error shrinks; a lean of the tally (say, of calls cut at the end)
    # would not.
    for channels, erlangs in SIZES:
        reports = [
            storm(channels, erlangs, strategy, seed, Exponential(1.0))
            for strategy in Strategy
            for seed in SEEDS
        ]
        assert fmean(report.erlangs_offered for report in reports) == pytest.approx(
            erlangs, rel=0.02
        )


def test_confidence_counts_all_statements() -> None:
    loads = 2 * len(SEEDS) * sum(channels for channels, _ in SIZES)
    blockings = 2 * len(SEEDS) * len(SIZES)
    insensitive, overflow = 8, 8
    assert loads + blockings + insensitive + overflow <= STATEMENTS
