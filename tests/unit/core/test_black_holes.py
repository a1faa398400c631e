"""Trunks that fail no call and lose it all the same."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.lines import POLICY, Line
from umpack.core.causes import Blame
from umpack.core.health import TrunkHealth
from umpack.core.health_states import (
    Admission,
    HealthState,
)
from umpack.core.outliers import WINDOW

UP = HealthState.UP
SUSPECT = HealthState.SUSPECT
EJECTED = HealthState.EJECTED
HALF_OPEN = HealthState.HALF_OPEN
SLOW_START = HealthState.SLOW_START


@pytest.fixture
def line() -> Line:
    return Line()


def test_a_silent_trunk_is_left_alone_before_anything_failed(line: Line) -> None:
    for _ in range(20):
        line.call()
    assert line.health.trial_timeout == pytest.approx(0.2)
    token = line.start()
    assert line.health.next_timer() == pytest.approx(line.now + 0.2)
    line.wait(0.19)
    assert line.health.admission is Admission.OPEN
    line.wait(0.011)
    assert line.seen() == (UP, Admission.RESERVE, True)
    assert "no answer, which normally takes" in line.health.why
    assert line.health.next_step(line.now) == "first choice again with the next answer"
    assert line.health.attempt_succeeded(token, line.now)
    assert line.seen() == (UP, Admission.OPEN, True)
    assert line.changes == []


def test_a_hesitation_ends_with_its_attempt(line: Line) -> None:
    for _ in range(20):
        line.call()
    token = line.start()
    line.wait(1.0)
    assert line.health.admission is Admission.RESERVE
    line.health.attempt_abandoned(token, line.now)
    assert line.seen() == (UP, Admission.OPEN, True)


def test_an_answer_leaves_the_other_attempts_watched(line: Line) -> None:
    for _ in range(20):
        line.call()
    first = line.start()
    line.start()
    line.health.attempt_succeeded(first, line.now)
    assert line.health.next_timer() == pytest.approx(line.now + 0.2)


def test_a_call_that_ended_is_not_waited_for(line: Line) -> None:
    for _ in range(20):
        line.call()
    token = line.start()
    line.health.call_ended(token, line.now, 60.0)
    line.wait(1.0)
    assert line.seen() == (UP, Admission.OPEN, True)


def test_without_hints_nobody_hesitates_and_a_trial_still_ends(line: Line) -> None:
    for _ in range(20):
        line.call()
    line.health.hear(line.now, hints=False)
    line.half_open()
    trial = line.start()
    line.wait(POLICY.answer_limit - 0.1)
    assert line.health.state is HALF_OPEN
    line.health.hear(line.now, hints=True)
    line.wait(0.1)
    assert line.health.state is SLOW_START, "dialled longer than anything rings: it was answered"
    line.health.call_ended(trial, line.now, None)
    assert line.health.state is SLOW_START


def test_the_end_of_a_call_is_the_answer_whose_hint_was_lost(line: Line) -> None:
    line.fail()
    token = line.start()
    line.wait(5.0)
    line.health.call_ended(token, line.now)
    assert line.health.state is UP


def test_a_trunk_that_stops_answering_is_ejected_though_no_failure_is_its_own(line: Line) -> None:
    for _ in range(100):
        line.call()
    failed = 0
    while line.health.state is not EJECTED:
        line.fail(Blame.CALL, "cause 19")
        failed += 1
    assert failed <= 32
    assert "calls unanswered, normally 0%" in line.health.why


def test_a_trunk_that_answers_and_hangs_up_is_ejected_and_must_prove_itself(line: Line) -> None:
    for _ in range(100):
        line.call()
    calls = 0
    while line.health.state is not EJECTED:
        line.call(0.3)
        calls += 1
    assert calls <= 32
    assert "calls over at once, normally 0%" in line.health.why
    line.wait(line.health.timer - line.now)
    token = line.answer()
    assert line.health.state is HALF_OPEN, "answering proves nothing here"
    line.health.call_ended(token, line.now, 0.3)
    assert line.health.state is EJECTED
    assert line.health.times(line.now) == 2
    line.wait(line.health.timer - line.now)
    line.answer()
    line.wait(POLICY.short_call)
    assert line.health.state is SLOW_START
    for _ in range(19):
        line.call(0.3)
    assert line.health.state is SLOW_START, "a new window begins with the return"


@pytest.mark.parametrize(("lasted", "state"), [(1.0, HealthState.HALF_OPEN), (3.0, SLOW_START)])
def test_a_trial_call_of_unknown_length_is_timed_here(
    line: Line, lasted: float, state: HealthState
) -> None:
    for _ in range(100):
        line.call()
    while line.health.state is not EJECTED:
        line.call(0.3)
    line.wait(line.health.timer - line.now)
    token = line.answer()
    line.now += lasted
    line.health.call_ended(token, line.now, None)
    assert line.health.state is state
    line.wait(10.0)
    assert line.health.state is state


def test_a_trial_whose_call_ends_otherwise_proves_nothing(line: Line) -> None:
    for _ in range(100):
        line.call()
    while line.health.state is not EJECTED:
        line.call(0.3)
    line.wait(line.health.timer - line.now)
    token = line.answer()
    line.health.attempt_abandoned(token, line.now)
    line.wait(100.0)
    assert line.health.state is HALF_OPEN
    assert line.health.wants_trial


def test_a_caller_who_waited_long_speaks_against_the_trunk_and_a_hasty_one_does_not() -> None:
    for waited, ejected in ((30.0, True), (0.05, False)):
        line = Line()
        for _ in range(100):
            line.call()
        for _ in range(40):
            token = line.start()
            line.now += waited
            line.health.attempt_abandoned(token, line.now)
        assert (line.health.state is EJECTED) is ejected


def test_what_all_trunks_do_ejects_none_if_the_caller_says_so(line: Line) -> None:
    for _ in range(100):
        line.call()
    for _ in range(50):
        line.health.call_ended(line.answer(), line.now, 0.3, spare="3 of 4 trunks are alike")
    assert line.seen() == (SUSPECT, Admission.RESERVE, True)
    assert line.health.outlying
    assert line.health.why.endswith("kept, 3 of 4 trunks are alike")


# -- restarts ---------------------------------------------------------------------------------


def restarted(line: Line, *, remembering: bool) -> None:
    """umpack alone restarts, and has its journal or not."""
    memory = line.health.saved(line.now)
    if not remembering:
        memory = replace(memory, unanswered=None, short=None)
    line.health = TrunkHealth.recalled(memory, POLICY, 30, line.now, line.changes)


def swallowed(line: Line, most: int = 300) -> int:
    """Calls that a trunk which hangs up at once has before it is doubted."""
    for n in range(most):
        if line.health.state is not UP:
            return n
        line.call(0.1)
    return most


@pytest.mark.parametrize("at", [0, 5, 9])
def test_a_black_hole_is_found_though_umpack_restarts_in_it(line: Line, at: int) -> None:
    for _ in range(3 * WINDOW):
        line.call()
    for _ in range(at):
        line.call(0.1)
    restarted(line, remembering=True)
    assert swallowed(line) == POLICY.outlier_sample


def test_a_trunk_known_as_nothing_else_has_no_past_to_differ_from(line: Line) -> None:
    """What the memory is for: its first windows are all it would ever be held against."""
    for _ in range(3 * WINDOW):
        line.call()
    restarted(line, remembering=False)
    assert swallowed(line) == 300


def test_little_is_not_remembered_as_a_past(line: Line) -> None:
    for _ in range(2 * WINDOW - 1):
        line.call()
    assert line.health.saved(line.now).short is None
    line.call()
    memory = line.health.saved(line.now)
    assert (memory.unanswered, memory.short) == (0.0, 0.0)
