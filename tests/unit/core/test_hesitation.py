"""Learned answer times, and which attempt is late."""

from __future__ import annotations

from math import inf
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from umpack.core.health_policy import HealthPolicy
from umpack.core.hesitation import EDGES, AnswerTimes, Hesitation

POLICY = HealthPolicy()
STEP = EDGES[1] / EDGES[0]


def learned(*seconds: float) -> AnswerTimes:
    times = AnswerTimes(20)
    for second in seconds:
        times.learn(second)
    return times


def used_to(answer: float, policy: HealthPolicy = POLICY) -> Hesitation:
    """A trunk that has answered twenty times after `answer` seconds."""
    hesitation = Hesitation(policy)
    for token in range(20):
        hesitation.started(token, token)
        hesitation.answered(token, token + answer)
    return hesitation


# -- learning ---------------------------------------------------------------------------------


def test_nothing_is_known_of_fewer_than_the_sample() -> None:
    assert learned(*[0.01] * 19).p99 == inf
    assert learned(*[0.01] * 20).p99 == pytest.approx(0.01, rel=STEP - 1)


@given(st.lists(st.floats(0.001, 50.0), min_size=20, max_size=20))
def test_the_first_sample_s_longest_answer_bounds_it(answers: list[float]) -> None:
    p99 = learned(*answers).p99
    assert max(answers) <= p99 <= max(answers) * STEP * 1.0001


@pytest.mark.parametrize("seed", range(5))
def test_p99_is_within_a_bin_of_the_truth(seed: int) -> None:
    dice = Random(seed)
    answers = [dice.lognormvariate(-4.0, 0.8) for _ in range(20 + 64 * 25)]
    truth = sorted(answers)[-len(answers) // 100]
    assert truth / STEP <= learned(*answers).p99 <= truth * STEP * STEP


def test_one_slow_answer_in_two_hundred_does_not_move_it() -> None:
    answers = [0.01] * 2000
    answers[500::200] = [5.0] * len(answers[500::200])
    assert learned(*answers).p99 < 0.02


def test_a_lasting_change_is_learned_both_ways() -> None:
    times = learned(*[0.01] * 5000, *[0.5] * 128)
    assert times.p99 > 0.4, "slower: soon, for lateness must not accuse what is now normal"
    for _ in range(20_000):
        times.learn(0.01)
    assert times.p99 < 0.02, "faster: when the slow past has faded"


def test_what_is_beyond_the_histogram_is_infinite() -> None:
    assert learned(*[100.0] * 20).p99 == inf


# -- lateness ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "patience"),
    [(0.005, 0.2), (0.05, 0.2), (0.1, 0.3), (0.3, 0.9), (1.2, inf), (8.0, inf)],
)
def test_patience_is_far_beyond_the_usual_with_a_floor(answer: float, patience: float) -> None:
    found = used_to(answer).patience
    assert patience <= found <= patience * STEP or (patience == found == inf)


def test_the_oldest_attempt_decides() -> None:
    hesitation = used_to(0.01)
    looks = [hesitation.started(token, 100.0 + token / 100) for token in (31, 32)]
    assert looks == [pytest.approx(100.51), pytest.approx(100.52)]
    again, _ = hesitation.look(100.50)
    assert again == pytest.approx(100.51)
    assert hesitation.late_since is None
    hesitation.look(100.51)
    assert hesitation.late_since == 100.31
    hesitation.gone(31)
    again, _ = hesitation.look(100.51)
    assert hesitation.late_since is None
    assert again == pytest.approx(100.52)
    hesitation.gone(32)
    assert hesitation.look(101.0) == (inf, None)


def test_an_attempt_overtaken_by_an_answer_was_answered_itself() -> None:
    """Its hint was lost; else one lost hint would put a trunk in reserve for a whole call."""
    hesitation = used_to(0.01)
    hesitation.started(31, 100.0)
    hesitation.started(32, 100.1)
    hesitation.answered(32, 100.11)
    hesitation.look(100.5)
    assert hesitation.late_since is None
    hesitation.started(33, 101.0)
    hesitation.look(101.5)
    assert hesitation.late_since == 101.0
    assert hesitation.answered(31, 101.5) is None, "too late to be learned from"
    assert hesitation.gone(31) == 100.0
    assert hesitation.gone(31) is None


def test_a_slow_answer_does_not_excuse_what_began_after_it() -> None:
    hesitation = used_to(0.01)
    hesitation.started(31, 100.0)
    hesitation.started(32, 100.1)
    hesitation.answered(31, 100.4)
    hesitation.look(100.4)
    assert hesitation.late_since == 100.1


def test_nothing_rings_longer_than_the_limit() -> None:
    hesitation = used_to(0.01)
    hesitation.started(31, 100.0)
    again, outlived = hesitation.look(101.0)
    assert (hesitation.late_since, again, outlived) == (100.0, 160.0, None)
    assert hesitation.look(160.0) == (inf, 100.0)
    assert hesitation.late_since is None
    assert hesitation.look(161.0) == (inf, None), "told once"


def test_what_began_in_silence_is_never_late_but_ends() -> None:
    hesitation = used_to(0.01)
    hesitation.hear(hints=False)
    hesitation.started(31, 100.0)
    hesitation.look(110.0)
    assert hesitation.late_since is None
    hesitation.hear(hints=True)
    hesitation.started(32, 110.0)
    again, _ = hesitation.look(110.1)
    assert again == pytest.approx(110.2)
    hesitation.look(111.0)
    assert hesitation.late_since == 110.0
    assert hesitation.look(160.0) == (170.0, 100.0)
    assert hesitation.gone(31) == 100.0


def test_what_began_in_silence_and_ended_is_forgotten() -> None:
    hesitation = used_to(0.01)
    hesitation.hear(hints=False)
    hesitation.started(31, 100.0)
    hesitation.hear(hints=True)
    assert hesitation.gone(31) == 100.0
    assert hesitation.look(160.0) == (inf, None)


def test_other_numbers_are_taken_on() -> None:
    hesitation = used_to(0.01)
    hesitation.adjust(HealthPolicy(hesitation_floor=0.7))
    assert hesitation.patience == 0.7
    assert repr(hesitation).startswith("<0 outstanding, not late")


class AnyAttempts(RuleBasedStateMachine):
    """Beside it, a naive list that is scanned. At most 63 answers, so patience stays as learned."""

    def __init__(self) -> None:
        super().__init__()
        self.hesitation = used_to(0.01)
        self.now = 100.0
        self.token = 100
        self.open: dict[int, float] = {}
        self.answers = 0
        self.last_answered_start = -inf

    @rule(count=st.integers(1, 5))
    def start(self, count: int) -> None:
        for _ in range(count):
            self.token += 1
            self.hesitation.started(self.token, self.now)
            self.open[self.token] = self.now

    @precondition(lambda self: self.open and self.answers < 40)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(list(self.open)))
        started = self.open.pop(token)
        if self.hesitation.answered(token, self.now) is not None:
            self.answers += 1
            self.last_answered_start = max(self.last_answered_start, started)
        else:
            assert started < self.last_answered_start or self.now >= started + POLICY.answer_limit

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(list(self.open)))
        assert self.hesitation.gone(token) == self.open.pop(token)

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.15, 0.2, 0.3, 5.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def late_is_what_a_scan_finds(self) -> None:
        again, _ = self.hesitation.look(self.now)
        assert again > self.now
        late = [
            started
            for started in self.open.values()
            if self.now >= started + 0.2
            and not self.now >= started + POLICY.answer_limit
            and not started < self.last_answered_start
        ]
        assert self.hesitation.late_since == min(late, default=None)
        assert set(self.hesitation.outstanding) <= set(self.open)


def test_any_sequence_of_attempts() -> None:
    run_state_machine_as_test(
        AnyAttempts,
        settings=settings(
            max_examples=100,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
