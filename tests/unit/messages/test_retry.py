"""The retry schedule: properties, and the week in which the mail system was away."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umpack.core.errors import ConfigError
from umpack.messages.retry import (
    DAY,
    Decision,
    GiveUp,
    RetryPolicy,
    TryAt,
    decide,
    is_late,
)

DICE = st.floats(0, 1)
NOW = 1_700_000_000.0


@st.composite
def policies(draw: st.DrawFn) -> RetryPolicy:
    first = draw(st.floats(0.1, 600))
    factor = draw(st.floats(1.1, 4))
    return RetryPolicy(
        first, factor, draw(st.floats(first, 100_000)),
        draw(st.floats(0, 1)) * (1 - 1 / factor), draw(st.floats(1, 10 * DAY)),
    )  # fmt: skip


def tries(policy: RetryPolicy, dice: float, duration: float = 0.0) -> list[float]:
    """Ages at which a message is tried that nobody takes, each try lasting `duration`."""
    at, made = [0.0], 0
    while True:
        made += 1
        decision = decide(policy, NOW, made, NOW + at[-1] + duration, dice)
        if isinstance(decision, GiveUp):
            return at
        at.append(decision.due - NOW)


def test_from_half_a_minute_to_an_hour() -> None:
    delays = [RetryPolicy().delay(n, 0.0) for n in range(1, 11)]
    assert delays == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    assert RetryPolicy().delay(1, 1.0) == 22.5


@given(policies(), st.lists(DICE, min_size=2, max_size=40))
@settings(deadline=None)
def test_delays_never_fall_before_the_cap_and_jitter_stays_in_bounds(
    policy: RetryPolicy, dice: list[float]
) -> None:
    delays = [policy.delay(n, d) for n, d in enumerate(dice, 1)]
    for n, (delay, d) in enumerate(zip(delays, dice, strict=True), 1):
        nominal = policy.delay(n, 0.0)
        assert nominal * (1 - policy.jitter) <= delay * (1 + 1e-9)
        assert delay <= nominal <= policy.cap
        assert (delay == nominal) or d > 0
    for n, (one, after) in enumerate(pairwise(delays), 1):
        if policy.delay(n, 0.0) * policy.factor <= policy.cap:
            assert one <= after * (1 + 1e-9)


@given(DICE, st.floats(0, 1200))
@settings(deadline=None, max_examples=30)
def test_it_ends_after_five_days_with_a_last_try_at_the_end(dice: float, duration: float) -> None:
    at = tries(RetryPolicy(), dice, duration)
    assert at[-1] <= 5 * DAY <= at[-1] + duration + 1
    assert all(after > before for before, after in pairwise(at))
    assert 5 * 24 * 0.7 < len(at) < 5 * 24 * 1.4 + 10


@given(policies(), st.integers(1, 10_000), st.floats(0, 20 * DAY), DICE,
       st.none() | st.floats(0, 2 * DAY), st.booleans())  # fmt: skip
@settings(deadline=None)
def test_never_due_before_the_delay_unless_it_is_the_last(
    policy: RetryPolicy, made: int, age: float, dice: float, after: float | None, reached: bool
) -> None:
    now = NOW + age
    decision = decide(policy, NOW, made, now, dice, retry_after=after, reached=reached)
    ends = NOW + policy.lifetime
    if isinstance(decision, GiveUp):
        assert reached
        assert now >= ends
        return
    assert decision.due > now
    assert decision.due <= now + policy.cap + 1e-6
    if decision.due != ends:
        assert decision.due >= now + policy.delay(made, dice) - 1e-6
        assert decision.due >= now + min(after or 0.0, policy.cap) - 1e-6
    if now < ends:
        assert decision.due <= ends


def test_a_server_that_rests_puts_off_for_as_long() -> None:
    assert decide(RetryPolicy(), NOW, 1, NOW, 0.0, retry_after=200) == TryAt(NOW + 200)
    assert decide(RetryPolicy(), NOW, 1, NOW, 0.0, retry_after=5) == TryAt(NOW + 30)


def test_who_was_not_reached_outlives_the_five_days() -> None:
    late = NOW + 6 * DAY
    assert decide(RetryPolicy(), NOW, 99, late, 0.0, reached=False) == TryAt(late + 3600)
    given_up = decide(RetryPolicy(), NOW, 99, late, 0.0)
    assert given_up == GiveUp("not accepted in 5 days and 99 tries")


def test_an_alarm_in_minutes() -> None:
    assert not is_late(RetryPolicy(), NOW, NOW + 599)
    assert is_late(RetryPolicy(), NOW, NOW + 600)


@pytest.mark.parametrize(
    "wrong",
    [{"first": 0}, {"first": 4000}, {"factor": 1}, {"jitter": -0.1}, {"jitter": 0.6},
     {"lifetime": 0}, {"late_after": 0}],
)  # fmt: skip
def test_a_policy_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        RetryPolicy(**wrong)


def test_a_week_without_any_mail_system() -> None:
    """Nobody reached for seven days; then all is due within an hour."""
    policy = RetryPolicy()
    back = NOW + 7 * DAY
    dues: list[float] = []
    for number in range(50):
        queued = NOW + number * 60
        now, made = queued, 0
        while now < back:
            made += 1
            decision: Decision = decide(
                policy, queued, made, now, (number % 7) / 7, retry_after=600, reached=False
            )
            assert isinstance(decision, TryAt)
            now = decision.due
        dues.append(now)
    assert all(back <= due <= back + 3600 for due in dues)
