"""Whatever is said of a trunk in whatever order, it stays in its table and comes back."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.lines import POLICY, Line
from umpack.core.causes import Blame
from umpack.core.health import TrunkHealth
from umpack.core.health_states import (
    TRANSITIONS,
    Admission,
    AlarmKind,
    HealthState,
)

UP = HealthState.UP
SUSPECT = HealthState.SUSPECT
EJECTED = HealthState.EJECTED
HALF_OPEN = HealthState.HALF_OPEN
SLOW_START = HealthState.SLOW_START
ALARMED = HealthState.ALARMED


LONGEST = POLICY.eject_cap * (1.0 + POLICY.jitter)
TIMES = st.sampled_from([0.0, 0.01, 0.1, 0.21, 0.6, 1.0, 2.5, 10.0, 31.0, 61.0, 310.0, 1000.0])
TALKS = st.sampled_from([None, 0.1, 2.4, 2.6, 60.0])

ADMISSIONS = {
    UP: {Admission.OPEN, Admission.RESERVE},
    SUSPECT: {Admission.RESERVE, Admission.LIMITED},
    EJECTED: {Admission.CLOSED},
    HALF_OPEN: {Admission.LIMITED},
    SLOW_START: {Admission.LIMITED, Admission.RESERVE},
    ALARMED: {Admission.CLOSED_HARD},
}


class AnyLife(RuleBasedStateMachine):
    """One trunk under everything that can be said of it, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.line = Line(replace(POLICY, debounce_loss=2.5, debounce_remote=0.5))
        for _ in range(70):
            self.line.call()
        self.outstanding: list[int] = []
        self.connected: list[int] = []
        self.alarms: set[AlarmKind] = set()

    def told(self, changed: bool, before: object) -> None:
        """A change of use is never kept from the caller."""
        assert changed or before == self.line.health._outward

    @rule(count=st.integers(1, 4))
    def begin(self, count: int) -> None:
        health = self.line.health
        for _ in range(count):
            if health.has_room:
                before = health._outward
                self.line.token += 1
                self.told(health.attempt_started(self.line.token, self.line.now), before)
                self.outstanding.append(self.line.token)

    @precondition(lambda self: self.outstanding)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(self.outstanding))
        self.outstanding.remove(token)
        self.connected.append(token)
        if data.draw(st.integers(0, 9)):  # else the hint is lost
            before = self.line.health._outward
            self.told(self.line.health.attempt_succeeded(token, self.line.now), before)

    @precondition(lambda self: self.outstanding)
    @rule(data=st.data(), blame=st.sampled_from(Blame), may=st.booleans())
    def fail(self, data: st.DataObject, blame: Blame, may: bool) -> None:
        token = data.draw(st.sampled_from(self.outstanding))
        self.outstanding.remove(token)
        health, before = self.line.health, self.line.health._outward
        was = health.state
        args = (token, self.line.now, blame, "cause 41")
        self.told(health.attempt_failed(*args, spare="" if may else "last"), before)
        if not may:
            assert was is EJECTED or health.state is not EJECTED, "ejected against orders"

    @precondition(lambda self: self.outstanding)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(self.outstanding))
        self.outstanding.remove(token)
        before = self.line.health._outward
        self.told(self.line.health.attempt_abandoned(token, self.line.now), before)

    @precondition(lambda self: self.connected)
    @rule(data=st.data(), talk=TALKS)
    def hang_up(self, data: st.DataObject, talk: float | None) -> None:
        token = data.draw(st.sampled_from(self.connected))
        self.connected.remove(token)
        before = self.line.health._outward
        self.told(self.line.health.call_ended(token, self.line.now, talk), before)

    @rule(talk=TALKS, count=st.integers(1, 40))
    def run_of_calls(self, talk: float | None, count: int) -> None:
        for _ in range(count):
            if self.line.health.has_room:
                self.line.call(talk)

    @rule(blame=st.sampled_from([Blame.CALL, Blame.TRUNK]), count=st.integers(1, 40))
    def run_of_failures(self, blame: Blame, count: int) -> None:
        for _ in range(count):
            if self.line.health.has_room:
                self.line.fail(blame)

    @rule(kind=st.sampled_from(AlarmKind))
    def alarm(self, kind: AlarmKind) -> None:
        self.alarms.add(kind)
        before = self.line.health._outward
        changed = self.line.health.alarm_raised(self.line.now, kind)
        self.told(changed, before)

    @rule(kind=st.sampled_from(AlarmKind))
    def clear(self, kind: AlarmKind) -> None:
        self.alarms.discard(kind)
        before = self.line.health._outward
        self.told(self.line.health.alarm_cleared(self.line.now, kind), before)

    @rule(hints=st.booleans())
    def hear(self, hints: bool) -> None:
        before = self.line.health._outward
        self.told(self.line.health.hear(self.line.now, hints=hints), before)

    @rule(linked=st.booleans())
    def see(self, linked: bool) -> None:
        before = self.line.health._outward
        self.told(self.line.health.see(self.line.now, linked=linked), before)

    @rule(what=st.sampled_from(["eject", "restore", "readmit"]))
    def people(self, what: str) -> None:
        before = self.line.health._outward
        self.told(getattr(self.line.health, what)(self.line.now, "by anna"), before)

    @rule()
    def restart(self) -> None:
        """umpack alone restarts; calls and alarms go on, and are told anew."""
        line = self.line
        memory = line.health.saved(line.now)
        line.changes = []
        line.health = TrunkHealth.recalled(memory, POLICY, 30, line.now, line.changes)
        line.health.alarms_seen(line.now, dict.fromkeys(self.alarms, ""), tuple(AlarmKind))

    @rule(seconds=TIMES)
    def time_passes(self, seconds: float) -> None:
        self.line.now += seconds
        before = self.line.health._outward
        self.told(self.line.health.advance(self.line.now), before)
        due = self.line.health.next_timer()
        assert due is None or due > self.line.now

    @invariant()
    def never_leaves_its_table(self) -> None:
        changes = self.line.changes
        for change in changes:
            assert TRANSITIONS[change.event][change.before] is change.after
        for a, b in pairwise(changes):
            assert a.after is b.before
            assert a.at <= b.at
        if changes:
            assert changes[-1].after is self.line.health.state

    @invariant()
    def admission_fits_the_state(self) -> None:
        health = self.line.health
        assert health.admission in ADMISSIONS[health.state]
        assert health.has_room or health.state not in (UP, SUSPECT)
        if health.state in (EJECTED, ALARMED):
            assert not health.has_room
        assert health.has_room or not health.wants_trial
        assert not health._plain or health.state is UP
        assert 0 <= health.limit <= 30

    @invariant()
    def timers_are_never_late(self) -> None:
        health = self.line.health
        assert health.due <= health.timer
        for started in health._hesitation.outstanding.values():
            assert health.due <= started + POLICY.answer_limit

    @invariant()
    def ejections_are_bounded(self) -> None:
        health, now = self.line.health, self.line.now
        assert 0 <= health.times(now) <= 10
        if health.state is EJECTED:
            assert health.timer - now <= LONGEST
        assert health.times(now + 10 * POLICY.calm_period) == 0 or health.state not in (
            UP,
            SLOW_START,
        )

    @invariant()
    def nobody_hesitates_over_nothing(self) -> None:
        hesitation = self.line.health._hesitation
        assert hesitation.late_since is None or hesitation.outstanding
        assert len(hesitation.outstanding) <= len(self.outstanding) + len(self.connected)

    @invariant()
    def everything_can_be_said(self) -> None:
        health = self.line.health
        assert repr(health).startswith("<um1 ")
        assert health.state is UP or health.next_step(self.line.now)
        assert health.state is UP or health.why

    def teardown(self) -> None:
        """Once the line is well and calls come, it is back within known time."""
        line = self.line
        for kind in tuple(self.alarms):
            line.health.alarm_cleared(line.now, kind)
        for token in self.outstanding:
            line.health.attempt_abandoned(token, line.now)
        for token in self.connected:
            line.health.call_ended(token, line.now, 60.0)
        line.wait(POLICY.alarm_settle_cap)
        assert line.health.state is not ALARMED
        if line.health.state is EJECTED:
            line.wait(LONGEST)
            assert line.health.wants_trial, "tried again"
        for _ in range(80):
            if line.health.has_room:
                token = line.answer()
                line.wait(POLICY.short_call)
                line.health.call_ended(token, line.now, POLICY.short_call)
        line.wait(POLICY.slow_start)
        assert line.seen() == (UP, Admission.OPEN, True)


def test_health_survives_any_life() -> None:
    run_state_machine_as_test(
        AnyLife,
        settings=settings(
            max_examples=150,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
