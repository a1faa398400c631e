"""Hints of answers that come late: the line was slow, not the trunk."""

from __future__ import annotations

from umpack.core.health import TrunkHealth
from umpack.core.health_policy import HealthPolicy
from umpack.core.trunk import TrunkId


def _learned() -> tuple[TrunkHealth, float]:
    health = TrunkHealth(TrunkId("t"), HealthPolicy(), 30, 0.0)
    health.hear(0.0, hints=True)
    now = 0.0
    for token in range(20):
        now += 5.0
        health.attempt_started(token, now)
        health.attempt_succeeded(token, now + 0.01)
        health.call_ended(token, now + 4.0, 3.99)
    assert health.answer_p99 < 0.02
    return health, now + 5.0


def _calls(health: TrunkHealth, now: float, *, hint: float, answer: float) -> None:
    """200 calls, answered after `answer` seconds and told of after `hint`."""
    for token in range(1000, 1200):
        health.attempt_started(token, now)
        health.attempt_succeeded(token, now + hint)
        health.call_ended(token, now + 10.0, 10.0 - answer)
        now += 20.0


def test_late_hints_of_fast_answers_teach_nothing_wrong() -> None:
    health, now = _learned()
    _calls(health, now, hint=4.0, answer=0.01)
    assert health.answer_p99 < 0.02


def test_a_trunk_that_has_become_slow_is_learned() -> None:
    health, now = _learned()
    _calls(health, now, hint=0.81, answer=0.8)
    assert 0.8 <= health.answer_p99 < 1.0


def test_what_is_held_until_the_end_ends() -> None:
    health, now = _learned()
    health.attempt_started(1, now)
    health.attempt_succeeded(1, now + 4.0)
    health.attempt_abandoned(1, now + 5.0)
    health.attempt_started(2, now)
    health.attempt_succeeded(2, now + 4.0)
    health.call_ended(2, now + 5.0, None)
    assert health._hesitation.unsure == {}
