"""Alarms: debounced, settled, never forgotten, never for ever."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.lines import POLICY, Line
from umpack.core.causes import Blame
from umpack.core.health_states import (
    Admission,
    AlarmKind,
    HealthEvent,
    HealthState,
)

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


@pytest.fixture
def debouncing() -> Line:
    """Of a board that waits for nothing itself."""
    return Line(replace(POLICY, debounce_loss=2.5, debounce_remote=0.7))


@pytest.mark.parametrize(
    ("kind", "debounce"),
    [
        (AlarmKind.RED, 2.5),
        (AlarmKind.AIS, 2.5),
        (AlarmKind.RAI, 0.7),
        (AlarmKind.D_CHANNEL, 0.0),
        (AlarmKind.UNREACHABLE, 0.0),
    ],
)
def test_an_alarm_is_believed_after_its_debounce(
    debouncing: Line, kind: AlarmKind, debounce: float
) -> None:
    line = debouncing
    line.health.alarm_raised(line.now, kind, "span 1")
    if debounce:
        assert line.seen() == (UP, Admission.RESERVE, True)
        assert line.health.why == f"{kind.value} (span 1): not yet certain"
        line.wait(debounce - 0.01)
        assert line.health.state is UP
        line.wait(0.01)
    assert line.seen() == (ALARMED, Admission.CLOSED_HARD, False)
    assert line.health.why == f"{kind.value} (span 1)"
    assert line.health.next_timer() is None
    assert line.health.next_step(line.now) == "back when the alarm clears"


@pytest.mark.parametrize("kind", AlarmKind)
def test_by_default_the_board_has_waited_already(line: Line, kind: AlarmKind) -> None:
    line.health.alarm_raised(line.now, kind)
    assert line.health.state is ALARMED


def test_polls_that_see_an_alarm_again_do_not_put_off_when_it_is_believed(debouncing: Line) -> None:
    line = debouncing
    for _ in range(3):
        line.health.alarms_seen(line.now, {RED: "LOS"}, (RED,))
        assert line.health.state is UP
        line.wait(1.0)
    assert line.health.state is ALARMED


def test_a_d_channel_that_falls_with_its_line_waits_with_it(debouncing: Line) -> None:
    line = debouncing
    line.health.alarm_raised(line.now, RED)
    line.wait(1.0)
    line.health.alarm_raised(line.now, AlarmKind.D_CHANNEL)
    assert line.health.state is UP
    line.health.alarm_cleared(line.now, RED)
    line.health.alarm_cleared(line.now, AlarmKind.D_CHANNEL)
    line.wait(10.0)
    assert line.changes == []
    line.health.alarm_raised(line.now, AlarmKind.D_CHANNEL)
    assert line.health.state is ALARMED


def test_a_d_channel_that_stays_away_is_believed_when_its_line_would_have_been(
    debouncing: Line,
) -> None:
    line = debouncing
    line.health.alarm_raised(line.now, RED)
    line.health.alarm_raised(line.now, AlarmKind.D_CHANNEL)
    line.wait(1.0)
    line.health.alarm_cleared(line.now, RED)
    assert line.health.state is UP
    line.wait(1.5)
    assert line.health.state is ALARMED
    assert line.health.why == "D channel down"


def test_a_short_alarm_leaves_nothing_behind(debouncing: Line) -> None:
    line = debouncing
    line.health.alarm_raised(line.now, RED)
    line.wait(1.0)
    line.health.alarm_cleared(line.now, RED)
    assert line.seen() == (UP, Admission.OPEN, True)
    assert line.health.next_timer() is None
    line.wait(10.0)
    assert line.changes == []


def test_a_cleared_alarm_settles_and_starts_slowly(line: Line) -> None:
    line.health.alarm_raised(line.now, RED)
    line.health.alarm_cleared(line.now, RED)
    assert line.health.state is ALARMED
    assert line.health.next_step(line.now) == "back in 2 s if the alarm stays clear"
    line.wait(POLICY.alarm_settle)
    assert line.seen() == (SLOW_START, Admission.LIMITED, True)
    assert line.health.why == "back from red"


def test_all_alarms_must_be_gone(line: Line) -> None:
    line.health.alarm_raised(line.now, RED)
    line.health.alarm_raised(line.now, AlarmKind.D_CHANNEL)
    line.health.alarm_cleared(line.now, RED)
    line.wait(100.0)
    assert line.health.state is ALARMED
    line.health.alarm_cleared(line.now, AlarmKind.D_CHANNEL)
    line.wait(POLICY.alarm_settle)
    assert line.health.state is SLOW_START


def test_an_alarm_nobody_cleared_ends_with_the_next_poll(line: Line) -> None:
    span = (AlarmKind.RED, AlarmKind.AIS, AlarmKind.RAI)
    line.health.alarm_raised(line.now, RED)
    line.health.alarms_seen(line.now, {RED: "LOS"}, span)
    line.health.alarms_seen(line.now, {}, (AlarmKind.D_CHANNEL,))
    line.wait(100.0)
    assert line.health.state is ALARMED
    line.health.alarms_seen(line.now, {}, span)
    line.wait(POLICY.alarm_settle)
    assert line.health.state is SLOW_START


def test_a_flapping_span_waits_longer_but_never_for_ever(line: Line) -> None:
    waits = []
    for _ in range(50):
        line.health.alarm_raised(line.now, RED)
        line.wait(0.2)
        line.health.alarm_cleared(line.now, RED)
        waits.append(line.health.timer - line.now)
        line.wait(waits[-1])
        assert line.health.state is SLOW_START
    assert waits == sorted(waits)
    assert waits[0] == pytest.approx(2.0)
    assert waits[-1] == pytest.approx(POLICY.alarm_settle_cap)
    line.wait(60 * POLICY.calm_period)
    line.health.alarm_raised(line.now, RED)
    line.health.alarm_cleared(line.now, RED)
    assert line.health.timer - line.now == pytest.approx(2.0)


def test_an_alarm_that_returns_while_settling_is_not_forgotten(line: Line) -> None:
    line.health.alarm_raised(line.now, RED)
    line.health.alarm_cleared(line.now, RED)
    line.wait(1.0)
    line.health.alarm_raised(line.now, RED)
    line.wait(100.0)
    assert line.health.state is ALARMED


def test_an_ejection_outlasts_an_alarm(line: Line) -> None:
    line.eject()
    until = line.health.timer
    line.health.alarm_raised(line.now, RED)
    line.health.alarm_cleared(line.now, RED)
    line.wait(POLICY.alarm_settle)
    assert line.seen() == (EJECTED, Admission.CLOSED, False)
    assert line.health.timer == until
    line.health.alarm_raised(line.now, RED)
    line.wait(100.0)
    line.health.alarm_cleared(line.now, RED)
    line.wait(2 * POLICY.alarm_settle)
    assert line.health.state is HALF_OPEN, "it still has to prove itself"


def test_calls_that_fail_in_an_alarm_are_the_alarms(line: Line) -> None:
    tokens = [line.start() for _ in range(25)]
    line.health.alarm_raised(line.now, RED)
    for token in tokens[:20]:
        line.health.attempt_failed(token, line.now, Blame.TRUNK, "cause 41")
    line.health.alarm_cleared(line.now, RED)
    line.wait(POLICY.alarm_settle)
    for token in tokens[20:]:
        line.health.attempt_failed(token, line.now, Blame.TRUNK, "cause 41")
    assert line.health.state is SLOW_START
    assert line.health.times(line.now) == 0


# -- the link that tells of alarms is down ----------------------------------------------------


def blind(line: Line) -> None:
    """An alarm stands, and the link is lost."""
    line.health.alarm_raised(line.now, RED, "LOS")
    line.wait(3600.0)
    line.health.see(line.now, linked=False)


def test_an_alarm_nobody_can_see_is_doubted_after_a_while(line: Line) -> None:
    blind(line)
    line.wait(POLICY.alarm_unseen - 0.01)
    assert line.health.state is ALARMED
    assert line.health.next_step(line.now) == "a suspect in 1 s if the link stays down"
    line.wait(0.01)
    assert line.seen() == (SUSPECT, Admission.RESERVE, True)
    assert line.health.why == "not seen since the link was lost: red (LOS)"
    assert line.changes[-1].event is HealthEvent.UNSEEN
    line.wait(POLICY.suspect_rest)
    assert line.health.wants_trial


@pytest.mark.parametrize("outage", [0.0, 29.9, 1e5])
def test_the_first_poll_restores_the_truth(line: Line, outage: float) -> None:
    blind(line)
    line.wait(outage)
    line.health.see(line.now, linked=True)
    line.wait(0.05)
    line.health.alarms_seen(line.now, {RED: "LOS"}, (RED,))
    assert line.health.state is ALARMED
    line.wait(1e5)
    assert line.health.state is ALARMED, "certain again, for as long as the link is up"


def test_a_link_that_is_back_but_tells_nothing_makes_no_alarm_certain(line: Line) -> None:
    """It comes and goes, and no poll gets through: else the alarm would stand for ever."""
    blind(line)
    for _ in range(10):
        line.wait(4.0)
        line.health.see(line.now, linked=True)
        line.wait(4.0)
        line.health.see(line.now, linked=False)
    (doubted,) = [change for change in line.changes if change.event is HealthEvent.UNSEEN]
    assert doubted.at == pytest.approx(1000.0 + 3600.0 + POLICY.alarm_unseen, abs=4.0)


def test_what_was_on_its_way_when_the_link_was_lost_is_as_new_as_any(line: Line) -> None:
    line.health.see(line.now, linked=False)
    line.wait(1e5)
    line.health.alarm_raised(line.now, RED)
    line.wait(POLICY.alarm_unseen - 0.01)
    assert line.health.state is ALARMED
    line.wait(0.01)
    assert line.health.state is SUSPECT


def test_an_alarm_that_settles_when_the_link_is_lost_settles(line: Line) -> None:
    line.health.alarm_raised(line.now, RED)
    line.health.alarm_cleared(line.now, RED)
    line.health.see(line.now, linked=False)
    line.wait(POLICY.alarm_settle)
    assert line.health.state is SLOW_START


def test_an_alarm_not_yet_certain_is_not_held_against_the_trunk_for_ever() -> None:
    line = Line(replace(POLICY, debounce_loss=90.0))
    line.health.alarm_raised(line.now, RED)
    line.health.see(line.now, linked=False)
    line.wait(POLICY.alarm_unseen)
    assert line.seen() == (UP, Admission.OPEN, True)
    assert line.changes == []


def test_an_ejection_outlasts_the_doubt_too(line: Line) -> None:
    line.health.eject(line.now, "by anna", 300.0)
    until = line.health.timer
    line.health.alarm_raised(line.now, RED)
    line.health.see(line.now, linked=False)
    line.wait(POLICY.alarm_unseen)
    assert line.health.state is EJECTED
    assert line.health.timer == until
    assert line.changes[-1].event is HealthEvent.SETTLED_UNPROVEN


def test_alarms_print_themselves(line: Line) -> None:
    assert repr(line.health._alarms) == "<no alarm>"
    line.health.alarm_raised(line.now, RED, "LOS")
    assert repr(line.health._alarms) == "<red (LOS)>"
    assert repr(line.health) == "<um1 alarmed, closed hard: red (LOS)>"
    assert repr(line.health._strikes) == "<0 failures, 0 ejections in a row>"
