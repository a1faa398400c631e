from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umpack.core import traffic
from umpack.core.errors import OurFault

groups = st.integers(min_value=0, max_value=200)
loads = st.floats(min_value=0.01, max_value=300, allow_nan=False)
relaxed = settings(deadline=None)


def erlang_b(channels: int, erlangs: Fraction) -> Fraction:
    """Erlang's formula as he wrote it: no recursion, no rounding."""
    terms = [erlangs**n / math.factorial(n) for n in range(channels + 1)]
    return terms[-1] / sum(terms)


@pytest.mark.parametrize(
    ("channels", "erlangs"),
    [
        (0, Fraction(3)),
        (1, Fraction(1)),
        (10, Fraction(10)),
        (30, Fraction(20)),
        (30, Fraction(61, 2)),
        (60, Fraction(46)),
        (300, Fraction(280)),
        (120, Fraction(1, 10)),
    ],
)
def test_blocking_is_erlangs_formula(channels: int, erlangs: Fraction) -> None:
    exact = float(erlang_b(channels, erlangs))
    assert traffic.blocking(channels, float(erlangs)) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize(
    ("channels", "erlangs", "printed"),
    # As printed tables have them, to their four places.
    [(10, 10.0, 0.2146), (30, 20.0, 0.0085), (1, 1.0, 0.5), (2, 2.0, 0.4), (5, 2.0, 0.0367)],
)
def test_blocking_as_tabulated(channels: int, erlangs: float, printed: float) -> None:
    assert traffic.blocking(channels, erlangs) == pytest.approx(printed, abs=5e-5)


def test_nothing_offered_nothing_lost() -> None:
    assert traffic.blocking(5, 0.0) == 0.0
    assert traffic.linear_loads(3, 0.0) == [0.0, 0.0, 0.0]
    assert traffic.cyclic_load(3, 0.0) == 0.0
    assert traffic.cyclic_load(0, 3.0) == 0.0
    assert traffic.channels_needed(0.0, 0.01) == 1
    assert traffic.overflow(3, 0.0) == traffic.Overflow(0.0, 0.0)
    assert traffic.overflow(3, 0.0).peakedness == 1.0


@relaxed
@given(channels=groups, erlangs=loads)
def test_blocking_falls_with_channels_and_rises_with_traffic(channels: int, erlangs: float) -> None:
    b = traffic.blocking(channels, erlangs)
    assert 0.0 <= b <= 1.0
    assert traffic.blocking(channels + 1, erlangs) < b or b == 0.0
    assert traffic.blocking(channels, erlangs * 1.01) >= b


@relaxed
@given(channels=groups, erlangs=loads)
def test_blockings_are_the_single_answers(channels: int, erlangs: float) -> None:
    row = traffic.blockings(channels, erlangs)
    assert len(row) == channels + 1
    assert row[-1] == traffic.blocking(channels, erlangs)
    assert row[channels // 2] == traffic.blocking(channels // 2, erlangs)


@relaxed
@given(channels=groups, erlangs=loads)
def test_channel_loads_add_up_to_what_is_carried(channels: int, erlangs: float) -> None:
    carried = erlangs * (1 - traffic.blocking(channels, erlangs))
    linear = traffic.linear_loads(channels, erlangs)
    assert math.fsum(linear) == pytest.approx(carried, rel=1e-9, abs=1e-12)
    assert traffic.cyclic_load(channels, erlangs) * channels == pytest.approx(carried, abs=1e-9)
    # Sequential hunting: the first channel works hardest, and none carries more than one call.
    assert all(0 <= load <= 1 for load in linear)
    assert all(a >= b - 1e-12 for a, b in pairwise(linear))


def test_first_channel_alone_is_a_group_of_one() -> None:
    assert traffic.linear_loads(30, 4.0)[0] == pytest.approx(4.0 / 5.0)


@relaxed
@given(erlangs=loads, blocking=st.floats(min_value=1e-6, max_value=1.0))
def test_needed_channels_are_enough_and_one_fewer_are_not(erlangs: float, blocking: float) -> None:
    needed = traffic.channels_needed(erlangs, blocking)
    assert traffic.blocking(needed, erlangs) <= blocking
    if needed:
        assert traffic.blocking(needed - 1, erlangs) > blocking


@relaxed
@given(
    channels=st.integers(min_value=1, max_value=200),
    blocking=st.floats(min_value=1e-6, max_value=0.99),
)
def test_offered_for_inverts_blocking(channels: int, blocking: float) -> None:
    erlangs = traffic.offered_for(channels, blocking)
    assert traffic.blocking(channels, erlangs) == pytest.approx(blocking, rel=1e-9)


def test_offered_for_as_tabulated() -> None:
    # Every Erlang B table: 30 channels at 1 % take 20.3 erlangs.
    assert traffic.offered_for(30, 0.01) == pytest.approx(20.34, abs=0.005)


@pytest.mark.parametrize("erlangs", [1.0, 29_000.0, 30_000.0, 100_000.0])
def test_large_groups_neither_overflow_nor_lose_calls(erlangs: float) -> None:
    b = traffic.blocking(30_000, erlangs)
    # Heavy traffic: N channels can carry N erlangs at most, and a large group nearly does.
    assert max(0.0, 1 - 30_000 / erlangs) <= b < max(0.0, 1 - 30_000 / erlangs) + 0.01
    loads = traffic.linear_loads(30_000, erlangs)
    assert math.fsum(loads) == pytest.approx(erlangs * (1 - b), rel=1e-9)
    assert 0 <= traffic.loss_variance(30_000, erlangs) < 10
    assert traffic.overflow(30_000, erlangs).peakedness >= 1.0


def test_large_traffic_is_planned() -> None:
    needed = traffic.channels_needed(100_000.0, 0.01)
    assert traffic.blocking(needed, 100_000.0) <= 0.01 < traffic.blocking(needed - 1, 100_000.0)


def test_plan_shows_the_neighbours() -> None:
    plan = traffic.plan(20.0, 0.01)
    assert plan.channels == 30
    assert [row.channels for row in plan.rows] == [27, 28, 29, 30, 31, 32, 33]
    assert plan.rows[2].blocking > 0.01 >= plan.rows[3].blocking
    loads = traffic.linear_loads(33, 20.0)
    for row in plan.rows:
        assert row.blocking == traffic.blocking(row.channels, 20.0)
        assert row.carried == pytest.approx(20.0 * (1 - row.blocking))
        assert row.last_channel == pytest.approx(loads[row.channels - 1])


def test_plan_of_hardly_any_traffic_starts_at_none() -> None:
    assert [row.channels for row in traffic.plan(0.001, 0.5).rows] == [0, 1, 2, 3, 4]
    assert traffic.plan(3.0, 1.0).rows[0] == traffic.PlanRow(0, 1.0, 0.0, 0.0)


def overflow_exactly(channels: int, erlangs: float, room: int) -> tuple[float, float]:
    """Mean and variance of calls on a huge second group: the joint chain, solved by iteration."""
    p = [[1.0 / ((channels + 1) * room)] * room for _ in range(channels + 1)]
    for _ in range(4000):  # Gauss-Seidel on the balance equations
        for i in range(channels + 1):
            for j in range(room):
                full = i == channels
                up_i = p[i - 1][j] * erlangs if i else 0.0
                up_j = p[i][j - 1] * erlangs if full and j else 0.0
                down_i = p[i + 1][j] * (i + 1) if not full else 0.0
                down_j = p[i][j + 1] * (j + 1) if j + 1 < room else 0.0
                leave = i + j + (0.0 if full and j + 1 == room else erlangs)
                p[i][j] = (up_i + up_j + down_i + down_j) / leave
    total = sum(map(sum, p))
    mean = sum(j * p[i][j] for i in range(channels + 1) for j in range(room)) / total
    square = sum(j * j * p[i][j] for i in range(channels + 1) for j in range(room)) / total
    return mean, square - mean * mean


def test_overflow_moments_are_those_of_the_joint_chain() -> None:
    mean, variance = overflow_exactly(3, 2.5, 16)
    found = traffic.overflow(3, 2.5)
    assert found.mean == pytest.approx(mean, rel=1e-4)
    assert found.variance == pytest.approx(variance, rel=1e-4)
    assert found.peakedness == pytest.approx(variance / mean, rel=1e-4)


@relaxed
@given(channels=groups, erlangs=loads)
def test_overflow_is_peaked(channels: int, erlangs: float) -> None:
    assert traffic.overflow(channels, erlangs).peakedness >= 1.0
    assert traffic.overflow(0, erlangs).peakedness == 1.0  # all of a Poisson stream is Poisson


@pytest.mark.parametrize("channels", [1, 2, 5, 10, 100])
@pytest.mark.parametrize("erlangs", [1e3, 1e4, 1e5, 1e6])
def test_rounding_does_not_smooth_the_overflow(channels: int, erlangs: float) -> None:
    assert traffic.overflow(channels, erlangs).peakedness >= 1.0


def losses_between(channels: int, erlangs: float) -> tuple[float, float]:
    """Mean and second moment of calls from loss to loss, by first passage, without scaling."""
    mean, square = 1.0, 1.0
    for k in range(1, channels + 1):
        down = k / erlangs
        after = 1 + down * mean
        square = 1 + down * (square + 2 * mean * after)
        mean = after
    return mean, square


@relaxed
@given(channels=st.integers(min_value=0, max_value=40), erlangs=st.floats(0.5, 60))
def test_loss_variance_is_that_of_the_renewal_process(channels: int, erlangs: float) -> None:
    mean, square = losses_between(channels, erlangs)
    expected = (square - mean * mean) / mean**3
    assert traffic.loss_variance(channels, erlangs) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_losses_come_in_lumps() -> None:
    b = traffic.blocking(30, 25.0)
    assert traffic.loss_variance(30, 25.0) > 5 * b * (1 - b)
    assert traffic.loss_variance(0, 5.0) == 0.0


def lost_calls(channels: int, erlangs: float, calls: int, seed: int) -> int:
    """Losses of a group started full; its occupancy seen by arrivals is a Markov chain."""
    chance = Random(seed)
    busy, lost = channels, 0
    while calls:
        if chance.random() * (erlangs + busy) < erlangs:
            calls -= 1
            if busy == channels:
                lost += 1
            else:
                busy += 1
        else:
            busy -= 1
    return lost


def test_blocking_interval_keeps_its_promise() -> None:
    channels, erlangs, calls, runs = 6, 5.0, 2000, 300
    theory = traffic.blocking(channels, erlangs)
    held = sum(
        theory
        in traffic.blocking_interval(
            channels,
            erlangs,
            offered=calls,
            lost=lost_calls(channels, erlangs, calls, seed),
            confidence=0.9,
        )
        for seed in range(runs)
    )
    # 270 of 300 expected, standard deviation 5.2. Treating losses as independent gives about 215.
    assert 252 <= held <= 288


def test_blocking_interval_at_the_ends() -> None:
    none = traffic.blocking_interval(30, 10.0, offered=1000, lost=0)
    assert none.low == 0.0
    assert none.estimate == 0.0
    assert 0.0 < none.high < 0.1
    every = traffic.blocking_interval(0, 1.0, offered=100, lost=100)
    assert every.high == 1.0
    assert 0.9 < every.low < 1.0
    wide = traffic.blocking_interval(10, 10.0, offered=500, lost=100, confidence=0.99)
    slim = traffic.blocking_interval(10, 10.0, offered=500, lost=100, confidence=0.9)
    assert wide.low < slim.low < 0.2 < slim.high < wide.high


@pytest.mark.parametrize(
    ("freedom", "confidence", "printed"),
    # Any table of Student's t.
    [
        (1, 0.95, 12.706),
        (2, 0.95, 4.303),
        (3, 0.99, 5.841),
        (10, 0.95, 2.228),
        (29, 0.99, 2.756),
        (30, 0.95, 2.042),
        (120, 0.95, 1.980),
    ],
)
def test_student_t_as_tabulated(freedom: int, confidence: float, printed: float) -> None:
    assert traffic.student_t(confidence, freedom) == pytest.approx(printed, abs=5e-4)


def test_student_t_becomes_normal() -> None:
    assert traffic.student_t(0.95, 100_000) == pytest.approx(1.95996, abs=1e-4)


def test_batch_interval_is_students() -> None:
    interval = traffic.batch_interval([1.0, 2.0, 3.0], 0.95)
    assert interval.estimate == 2.0
    assert interval.high - 2.0 == pytest.approx(4.3027 / math.sqrt(3), abs=1e-3)
    assert 2.0 - interval.low == pytest.approx(interval.high - 2.0)
    assert 2.0 in interval
    assert 10.0 not in interval
    assert traffic.batch_interval([0.5, 0.5]) == traffic.Interval(0.5, 0.5, 0.5)


def test_batch_interval_keeps_its_promise() -> None:
    chance = Random(7)
    held = sum(
        0.0 in traffic.batch_interval([chance.gauss(0, 1) for _ in range(8)], 0.9)
        for _ in range(500)
    )
    assert 425 <= held <= 475  # 450 expected, standard deviation 6.7


def test_many_statements_each_need_more() -> None:
    assert traffic.simultaneous(0.95, 30) == pytest.approx(1 - 0.05 / 30)
    assert traffic.simultaneous(0.95, 1) == pytest.approx(0.95)


NAN = math.nan


@pytest.mark.parametrize(
    "ask",
    [
        lambda: traffic.blocking(-1, 1.0),
        lambda: traffic.blocking(traffic.LIMIT + 1, 1.0),
        lambda: traffic.blocking(1, -0.1),
        lambda: traffic.blocking(1, NAN),
        lambda: traffic.blocking(1, math.inf),
        lambda: traffic.blockings(3, NAN),
        lambda: traffic.channels_needed(1.0, 0.0),
        lambda: traffic.channels_needed(1.0, NAN),
        lambda: traffic.channels_needed(1e12, 0.01),
        lambda: traffic.channels_needed(1.0, 1.1),
        lambda: traffic.offered_for(3, 0.0),
        lambda: traffic.offered_for(3, 1.0),
        lambda: traffic.offered_for(0, 0.5),
        lambda: traffic.offered_for(-1, 0.5),
        lambda: traffic.linear_loads(-1, 1.0),
        lambda: traffic.cyclic_load(1, NAN),
        lambda: traffic.overflow(1, -1.0),
        lambda: traffic.plan(-1.0, 0.01),
        lambda: traffic.loss_variance(1, NAN),
        lambda: traffic.blocking_interval(1, 1.0, offered=0, lost=0),
        lambda: traffic.blocking_interval(1, 1.0, offered=5, lost=6),
        lambda: traffic.blocking_interval(1, 1.0, offered=5, lost=1, confidence=1.0),
        lambda: traffic.batch_interval([1.0]),
        lambda: traffic.batch_interval([1.0, NAN]),
        lambda: traffic.student_t(0.95, 0),
        lambda: traffic.student_t(NAN, 3),
        lambda: traffic.simultaneous(0.95, 0),
        lambda: traffic.simultaneous(0.0, 3),
    ],
)
def test_nonsense_is_refused(ask: object) -> None:
    assert callable(ask)
    with pytest.raises(OurFault):
        ask()
