"""One trunk's health: failures, ejection, return, people, restart."""

from __future__ import annotations

import pickle
from itertools import pairwise

import pytest

from tests.lines import POLICY, Line
from umpack.core.causes import Blame
from umpack.core.errors import ConfigError
from umpack.core.health import TrunkHealth
from umpack.core.health_policy import HealthPolicy, PackPolicy
from umpack.core.health_states import (
    Admission,
    AlarmKind,
    HealthMemory,
    HealthState,
)
from umpack.core.health_words import nth
from umpack.core.strikes import Strikes
from umpack.core.trunk import TrunkId

UP = HealthState.UP
SUSPECT = HealthState.SUSPECT
EJECTED = HealthState.EJECTED
HALF_OPEN = HealthState.HALF_OPEN
SLOW_START = HealthState.SLOW_START
ALARMED = HealthState.ALARMED
RED = AlarmKind.RED


@pytest.fixture
def line() -> Line:
    return Line()


# -- failures ---------------------------------------------------------------------------------


def test_a_healthy_call_changes_nothing(line: Line) -> None:
    health = line.health
    assert not health.attempt_started(1, 1000.0)
    assert not health.attempt_succeeded(1, 1000.1)
    assert not health.attempt_succeeded(1, 1000.2), "repeated hint"
    assert not health.call_ended(1, 1060.0, 59.9)
    assert line.seen() == (UP, Admission.OPEN, True)
    assert health.next_timer() is None
    assert (health.why, health.next_step(1060.0), line.changes) == ("", "", [])


def test_one_failure_makes_a_suspect_and_one_answer_clears_it(line: Line) -> None:
    assert line.fail()
    assert line.seen() == (SUSPECT, Admission.RESERVE, True)
    assert line.health.why == "cause 41"
    line.answer()
    assert line.seen() == (UP, Admission.OPEN, True)
    assert line.health.why == ""
    assert [change.after for change in line.changes] == [SUSPECT, UP]


def test_three_in_a_row_eject_and_the_words_say_so(line: Line) -> None:
    line.eject()
    assert line.seen() == (EJECTED, Admission.CLOSED, False)
    seconds = line.health.timer - line.now
    assert 30.0 <= seconds <= 33.0
    assert line.health.why == f"ejected {seconds:.0f} s, 1st time, 3× cause 41"
    line.wait(seconds - 11.5)
    assert line.health.next_step(line.now) == "trial in 12 s"


def test_an_answer_between_failures_begins_the_row_anew(line: Line) -> None:
    for _ in range(5):
        line.fail()
        line.fail()
        line.answer()
    assert line.health.state is UP


@pytest.mark.parametrize("blame", [Blame.NOBODY, Blame.CALL, Blame.CHANNEL])
def test_failures_of_others_do_not_count(line: Line, blame: Blame) -> None:
    for _ in range(50):
        assert not line.fail(blame, "glare")
    assert line.seen() == (UP, Admission.OPEN, True)


def test_different_reasons_are_told_apart(line: Line) -> None:
    line.fail(why="cause 41")
    line.fail(why="no answer")
    line.fail(why="cause 38")
    assert line.health.why.endswith("1st time, 3 failures, the last: cause 38")


def test_what_began_before_the_ejection_adds_nothing(line: Line) -> None:
    old = [line.start() for _ in range(20)]
    line.eject()
    until = line.health.timer
    for token in old:
        line.health.attempt_failed(token, line.now, Blame.TRUNK, "cause 41")
    assert (line.health.timer, line.health.times(line.now)) == (until, 1)


def test_the_last_usable_trunk_is_kept_and_says_why(line: Line) -> None:
    for _ in range(7):
        line.fail(spare="last usable trunk of um")
    assert line.seen() == (SUSPECT, Admission.RESERVE, True)
    assert line.health.why == "7× cause 41; kept, last usable trunk of um"
    line.fail()
    assert line.health.state is EJECTED


def test_a_suspect_nobody_needs_gets_one_trial_call(line: Line) -> None:
    line.fail()
    line.wait(POLICY.suspect_rest - 0.1)
    assert not line.health.wants_trial
    line.wait(0.1)
    assert line.health.wants_trial
    assert (line.health.admission, line.health.limit) == (Admission.LIMITED, 1)
    assert line.health.next_step(line.now).endswith("trial with the next call")
    token = line.start()
    assert not line.health.wants_trial
    assert line.health.admission is Admission.RESERVE
    line.health.attempt_failed(token, line.now, Blame.CALL, "busy")
    line.wait(POLICY.suspect_rest)
    assert line.health.wants_trial, "a trial without a verdict is followed by another"


def test_a_dead_trunk_others_stand_in_for_costs_three_calls_a_while() -> None:
    """Only trials go to a suspect while others are idle: one call per rest, then ejection."""
    line = Line()
    line.fail()
    victims = 1
    for _ in range(600):
        line.wait(0.05)
        if line.health.wants_trial:
            line.fail()
            victims += 1
    assert victims == 3
    assert line.health.state is EJECTED


# -- return -----------------------------------------------------------------------------------


def test_one_trial_at_a_time(line: Line) -> None:
    line.half_open()
    assert line.health.next_step(line.now) == "next call is the trial"
    token = line.start()
    assert not line.health.has_room
    assert not line.health.wants_trial
    assert line.health.next_step(line.now) == "trial call under way"
    line.health.attempt_abandoned(token, line.now)
    assert line.health.has_room
    assert line.health.wants_trial, "the caller left: no verdict"


def test_a_failed_trial_ejects_for_longer_up_to_the_cap(line: Line) -> None:
    line.half_open()
    for n in range(2, 15):
        line.fail()
        assert line.health.state is EJECTED
        base = min(30.0 * n, 300.0)
        seconds = line.health.timer - line.now
        assert base <= seconds <= base * 1.1
        times = min(n, 10)
        assert f"{nth(times)} time, trial failed: cause 41" in line.health.why
        line.wait(seconds)
        assert line.health.state is HALF_OPEN


def test_a_trial_that_fails_on_the_last_usable_trunk_leaves_a_suspect(line: Line) -> None:
    line.half_open()
    line.fail(spare="last usable trunk of um")
    assert line.seen() == (SUSPECT, Admission.RESERVE, True)


def test_an_attempt_from_before_the_trial_decides_nothing(line: Line) -> None:
    old, older = line.start(), line.start()
    line.half_open()
    line.health.attempt_failed(old, line.now, Blame.TRUNK, "cause 41")
    line.health.call_ended(older, line.now, 1.0)
    assert line.health.state is HALF_OPEN


def test_an_attempt_nobody_knows_decides_no_trial(line: Line) -> None:
    """After a restart, calls from before it still end."""
    line.half_open()
    line.health.attempt_failed(10_000, line.now, Blame.TRUNK, "cause 41")
    assert line.health.state is HALF_OPEN


def test_an_old_attempt_that_outlives_all_limits_proves_nothing(line: Line) -> None:
    line.start()
    line.half_open()
    line.wait(POLICY.answer_limit)
    assert line.health.state is HALF_OPEN


def test_calls_from_an_earlier_slow_start_do_not_fill_the_trial(line: Line) -> None:
    line.half_open()
    line.answer()
    line.answer()
    line.fail()
    line.fail()
    line.fail()
    assert line.health.state is EJECTED
    line.wait(line.health.timer - line.now)
    assert line.seen() == (HALF_OPEN, Admission.LIMITED, True)


def test_capacity_grows_in_slow_start(line: Line) -> None:
    line.half_open()
    line.answer()
    health = line.health
    assert line.seen() == (SLOW_START, Admission.LIMITED, True)
    assert health.limit == 3
    line.start()
    line.start()
    assert not health.has_room, "the trial call counts"
    assert health.next_step(line.now) == "3 of 30 calls at once, all in 30 s"
    limits, end = [health.limit], line.now + POLICY.slow_start
    while (timer := health.next_timer()) is not None and health.state is SLOW_START:
        line.wait(timer - line.now)
        limits.append(health.limit)
    assert limits == sorted(limits)
    assert limits[-1] == 30
    assert {b - a for a, b in pairwise(limits)} <= {0, 1}
    assert line.now == pytest.approx(end, abs=POLICY.slow_start / 50)
    assert line.seen() == (UP, Admission.OPEN, True)


def test_calls_that_end_make_room_in_slow_start(line: Line) -> None:
    line.half_open()
    tokens = [line.answer(), line.start(), line.start()]
    assert not line.health.has_room
    assert line.health.call_ended(tokens[0], line.now, 60.0)
    assert line.health.has_room
    line.health.call_ended(tokens[0], line.now, 60.0)
    line.start()
    assert not line.health.has_room, "a second end frees nothing"


def test_failures_in_slow_start_eject_again(line: Line) -> None:
    line.half_open()
    line.answer()
    line.fail()
    line.fail()
    assert line.health.state is SLOW_START
    line.fail()
    assert line.health.state is EJECTED
    assert line.health.times(line.now) == 2


def test_ejections_are_forgiven_one_by_one(line: Line) -> None:
    line.half_open()
    line.fail()
    line.wait(line.health.timer - line.now)
    line.answer()
    back = line.now
    assert line.health.times(back) == 2
    line.wait(POLICY.calm_period)
    assert line.health.times(line.now) == 1
    line.fail()
    line.answer()
    line.wait(POLICY.calm_period - 1.0)
    assert line.health.times(line.now) == 1, "a fault begins the calm anew"
    line.wait(1.0)
    assert line.health.times(line.now) == 0
    line.eject()
    assert line.health.times(line.now) == 1


def test_ejections_of_trunks_that_died_together_end_apart() -> None:
    ends = []
    for name in range(16):
        strikes = Strikes(f"um{name}", 0.0)
        strikes.eject(0.0, POLICY, None)
        ends.append(strikes.until)
    ends.sort()
    assert ends[0] >= 30.0
    assert ends[-1] <= 33.0
    assert ends[-1] - ends[0] > 1.0
    assert len(set(ends)) == 16


# -- operator, pack, configuration ------------------------------------------------------------


def test_the_operator_ejects_and_restores(line: Line) -> None:
    line.health.eject(line.now, "by anna: noisy", 600.0)
    assert line.health.timer == line.now + 600.0
    assert line.health.why == "ejected 600 s, 1st time, by anna: noisy"
    line.health.eject(line.now, "by anna: noisy", 60.0)
    assert line.health.timer == line.now + 60.0
    assert line.health.restore(line.now, "by anna")
    assert line.seen() == (UP, Admission.OPEN, True)
    assert (line.health.why, line.health.times(line.now)) == ("", 0)
    assert line.changes[-1].why == "by anna"


def test_nobody_restores_a_dead_line(line: Line) -> None:
    line.health.alarm_raised(line.now, RED)
    line.health.eject(line.now, "by anna")
    line.health.restore(line.now, "by anna")
    assert line.health.state is ALARMED
    assert line.health.why == "red"
    line.health.alarm_cleared(line.now, RED)
    line.wait(POLICY.alarm_settle)
    assert line.health.state is SLOW_START, "the ejection was taken back"


def test_an_ejection_during_an_alarm_takes_effect_after_it(line: Line) -> None:
    line.health.alarm_raised(line.now, RED)
    line.health.eject(line.now, "by anna", 1000.0)
    line.health.alarm_cleared(line.now, RED)
    line.wait(POLICY.alarm_settle)
    assert line.health.state is EJECTED


def test_failures_from_before_a_restore_do_not_count(line: Line) -> None:
    old = [line.start() for _ in range(5)]
    line.wait(1.0)
    line.health.restore(line.now, "by anna")
    for token in old:
        line.health.attempt_failed(token, line.now, Blame.TRUNK, "cause 41")
    assert line.health.state is UP


def test_a_pack_with_nothing_else_readmits(line: Line) -> None:
    assert not line.health.readmit(line.now, "last of um")
    line.eject()
    assert line.health.readmit(line.now, "last of um")
    assert line.seen() == (SUSPECT, Admission.RESERVE, True)
    assert line.health.why == "last of um"
    line.fail()
    assert line.health.state is SUSPECT, "the row begins anew"
    line.half_open()
    line.health.readmit(line.now, "last of um")
    assert line.health.state is SUSPECT


def test_a_new_configuration_is_taken_on(line: Line) -> None:
    line.half_open()
    line.answer()
    assert line.health.limit == 3
    line.health.adjust(HealthPolicy(slow_start_share=0.5), 10, line.now)
    assert line.health.limit == 5


@pytest.mark.parametrize("channels", [1, 2, 30, 30_000])
def test_slow_start_is_never_no_start_and_ends_with_all(channels: int) -> None:
    limits = [POLICY.slow_start_limit(channels, age / 10) for age in range(-1, 400)]
    assert limits == sorted(limits)
    assert limits[0] == max(1, channels // 10)
    assert limits[-1] == channels


def test_panic() -> None:
    assert PackPolicy().panics(14, 30)
    assert not PackPolicy().panics(15, 30)
    assert not PackPolicy(panic_share=0.0).panics(0, 30)


@pytest.mark.parametrize(
    "numbers",
    [
        {"failures_to_eject": 0},
        {"eject_base": 0.0},
        {"eject_base": float("nan")},
        {"eject_cap": 10.0},
        {"jitter": 1.5},
        {"short_call": -1.0},
        {"channel_rest_cap": 1.0},
    ],
)
def test_numbers_that_make_no_sense_are_refused(numbers: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(numbers)) + "|cap"):
        HealthPolicy(**numbers)  # type: ignore[arg-type]


# -- restart ----------------------------------------------------------------------------------


def recalled(line: Line, later: float = 0.0) -> TrunkHealth:
    memory = pickle.loads(pickle.dumps(line.health.saved(line.now)))  # noqa: S301
    return TrunkHealth.recalled(memory, POLICY, 30, line.now + later)


def test_an_ejection_survives_a_restart(line: Line) -> None:
    line.half_open()
    line.fail()
    again = recalled(line, 5.0)
    assert (again.state, again.since, again.why) == (EJECTED, line.now, line.health.why)
    assert (again.timer, again.times(line.now)) == (line.health.timer, 2)
    assert recalled(line, 1000.0).state is HALF_OPEN


def test_other_states_come_back_as_what_is_known_of_them(line: Line) -> None:
    assert recalled(line).state is UP
    line.fail()
    assert recalled(line).state is SUSPECT
    line.fail()
    line.fail()
    line.wait(line.health.timer - line.now)
    assert recalled(line).state is HALF_OPEN
    line.answer()
    assert recalled(line).state is SLOW_START
    assert recalled(line, POLICY.slow_start).state is UP
    line.health.alarm_raised(line.now, RED)
    again = recalled(line)
    assert (again.state, again.why) == (SUSPECT, "before the restart: red")
    line.health.eject(line.now, "by anna", 50.0)
    assert recalled(line).state is EJECTED


def test_a_clock_that_ran_ahead_keeps_nobody_out(line: Line) -> None:
    memory = HealthMemory(TrunkId("um1"), EJECTED, 9e9, 9e9 + 30, 99, 0, "")
    again = TrunkHealth.recalled(memory, POLICY, 30, line.now)
    assert again.timer - line.now <= 330.0
    assert (again.times(line.now), again.since) == (10, line.now)
