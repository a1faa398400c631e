"""What moves a trunk through the table of its health, and how it is to be used in each state.

Alarms, people, time and the verdicts on calls come in here; what calls say is worked out in
`health`, which builds on this.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import inf

from umpack.core.alarms import Alarms
from umpack.core.errors import StateError
from umpack.core.health_policy import HealthPolicy
from umpack.core.health_states import (
    TRANSITIONS,
    Admission,
    AlarmKind,
    HealthChange,
    HealthEvent,
    HealthState,
)
from umpack.core.health_words import nth
from umpack.core.hesitation import Hesitation
from umpack.core.outliers import Ratio
from umpack.core.strikes import Strikes
from umpack.core.trunk import TrunkId

_RAMP_STEPS = 50
"""Steps of a slow start: fine enough for 30 channels, few enough for 30,000."""

CALM_STATES = frozenset({HealthState.UP, HealthState.SLOW_START})
LIMITED_STATES = frozenset({HealthState.HALF_OPEN, HealthState.SLOW_START})


class HealthMachine:
    """The states of one trunk, its timers, alarms and limits. See `health.TrunkHealth`."""

    __slots__ = (
        "_alarms",
        "_answers",
        "_begun",
        "_blind",
        "_changes",
        "_channels",
        "_counts_from",
        "_doubt_at",
        "_hesitation",
        "_plain",
        "_policy",
        "_proof",
        "_settled",
        "_shorts",
        "_state_timer",
        "_strikes",
        "_struck_at",
        "_unproven",
        "_why",
        "admission",
        "due",
        "has_room",
        "limit",
        "since",
        "state",
        "trunk",
        "wants_trial",
    )

    def __init__(
        self,
        trunk: TrunkId,
        policy: HealthPolicy,
        channels: int,
        now: float,
        changes: list[HealthChange] | None = None,
    ) -> None:
        """Every change of state is appended to `changes`, which trunks may share."""
        self.trunk = trunk
        self.state = HealthState.UP
        self.since = now
        self.admission = Admission.OPEN
        self.limit = channels
        """Calls at once, counting those begun since the trunk came back."""
        self.has_room = True
        """Whether it may take one more call; false while the limit is reached or it is closed."""
        self.wants_trial = False
        """Whether the next call should go here first, or the trunk might never be tried."""
        self.due = inf
        """Look in again (`advance`) at this time. May be early, is never late."""
        self._policy = policy
        self._channels = channels
        self._changes = changes if changes is not None else []
        self._hesitation = Hesitation(policy)
        self._answers = Ratio("unanswered", policy)
        self._shorts = Ratio("over at once", policy)
        self._strikes = Strikes(trunk, now)
        self._alarms = Alarms()
        self._blind = False
        """The link that tells of alarms is down."""
        self._doubt_at = inf
        """When the alarms that stand, not seen since the link was lost, are certain no longer."""
        self._plain = True
        """Nothing is held against it, so that a good call changes nothing."""
        self._why = ""
        self._unproven = False
        """It was ejected when the alarm came, or has been since."""
        self._counts_from = -inf
        """Attempts begun before this say nothing of the trunk as it is now."""
        self._struck_at = -inf
        """When the last failure was blamed on it."""
        self._begun: set[int] = set()
        """Calls the limit counts."""
        self._proof: tuple[int, float] | None = None
        """A trial call that was answered, and the time it must reach to prove anything."""
        self._state_timer = inf
        self._settled = self._outward

    # -- alarms -----------------------------------------------------------------------------

    def alarm_raised(self, now: float, kind: AlarmKind, detail: str = "") -> bool:
        """Something is reported dead; believed after its debounce."""
        self._seen(now)
        believed_at = now + self._policy.debounce(kind)
        if kind is AlarmKind.D_CHANNEL:
            # It cannot be up where layer 1 is not (Q.921), so it is no news while that is in doubt.
            believed_at = max(believed_at, self._alarms.layer1_at)
        self._alarms.raised(kind, detail, believed_at)
        if self.state is HealthState.ALARMED:
            self._state_timer = inf
        return self.advance(now)

    def alarm_cleared(self, now: float, kind: AlarmKind) -> bool:
        """It lives again; harmless if nobody said it was dead."""
        cleared = self._alarms.cleared(kind)
        if cleared and self.state is HealthState.ALARMED and not self._alarms:
            self._state_timer = now + self._alarms.settling(self._policy)
        return self.advance(now)

    def alarms_seen(
        self, now: float, seen: Mapping[AlarmKind, str], among: Collection[AlarmKind]
    ) -> bool:
        """The whole truth about the kinds `among`, from a poll: an alarm whose end nobody reported
        ends here. `seen` maps the standing ones to their details."""
        self._seen(now)
        changed = False
        for kind in among:
            if kind in seen:
                changed |= self.alarm_raised(now, kind, seen[kind])
            else:
                changed |= self.alarm_cleared(now, kind)
        return changed

    def see(self, now: float, *, linked: bool) -> bool:
        """Whether alarms, and their ends, can be told. Where not, those that stand are certain for
        `alarm_unseen` more; with the link alone they are not seen again, but with what it says."""
        if self._blind is linked:
            self._blind = not linked
            if self._blind:
                self._doubt_at = min(self._doubt_at, now + self._policy.alarm_unseen)
        return self.advance(now)

    def _seen(self, now: float) -> None:
        # What was on its way when the link was lost is as new as any.
        self._doubt_at = now + self._policy.alarm_unseen if self._blind else inf

    # -- operator, pack, configuration ------------------------------------------------------

    def eject(self, now: float, why: str, seconds: float | None = None) -> bool:
        """Keep calls off for `seconds`, or for as long as failures would; then try it again."""
        self._eject(now, why, seconds)
        return self._settle(now)

    def restore(self, now: float, why: str) -> bool:
        """Forget all that spoke against it. What the line itself reports stands."""
        self._strikes.forget(now)
        self._unproven = False
        self._counts_from = now
        self._answers.forget_recent()
        self._shorts.forget_recent()
        self._move(HealthEvent.RESTORE, now, None if self.state is HealthState.ALARMED else why)
        return self._settle(now)

    def readmit(self, now: float, why: str) -> bool:
        """A pack has nothing else left: an ejected trunk becomes a suspect. Else no change."""
        if self.state in TRANSITIONS[HealthEvent.READMIT]:
            self._counts_from = now
            self._move(HealthEvent.READMIT, now, why)
        return self._settle(now)

    def adjust(self, policy: HealthPolicy, channels: int, now: float) -> bool:
        """Take on a new configuration; times that run end when they were to."""
        self._policy, self._channels = policy, channels
        self._hesitation.adjust(policy)
        self._answers.adjust(policy)
        self._shorts.adjust(policy)
        return self._settle(now)

    # -- time -------------------------------------------------------------------------------

    def advance(self, now: float) -> bool:
        """Do what has come due."""
        if self.state is not HealthState.ALARMED and self._alarms.believed_at <= now:
            self._alarms.count(now, self._policy)
            self._unproven = self.state in (HealthState.EJECTED, HealthState.HALF_OPEN)
            self._move(HealthEvent.ALARM, now, self._alarms.words)
        if self._doubt_at <= now and self._alarms:
            self._doubt_alarms(now)
        if self._proof and self._proof[1] <= now:
            self._prove(now)
        while self._state_timer <= now:
            self._time_out(now)
        return self._settle(now)

    def next_timer(self) -> float | None:
        """When to call `advance`; `None` if only events can change anything."""
        return None if self.due == inf else self.due

    @property
    def timer(self) -> float:
        """When the state itself may change with nobody calling: what a trunk without calls has to
        be woken for. Infinite if never."""
        proof = self._proof[1] if self._proof else inf
        alarm = inf if self.state is HealthState.ALARMED else self._alarms.believed_at
        doubt = self._doubt_at if self._alarms else inf
        return min(self._state_timer, proof, alarm, doubt)

    def times(self, now: float) -> int:
        """Ejections in a row, less those forgiven."""
        return self._strikes.times(now, self._policy)

    @property
    def outlying(self) -> bool:
        """Whether its calls come out unlike its own past."""
        return self._answers.outlying or self._shorts.outlying

    def __repr__(self) -> str:
        return f"<{self.trunk} {self.state.value}, {self.admission.value}>"

    # -- within -----------------------------------------------------------------------------

    def _succeed(self, token: int, started: float, answered: float, now: float) -> None:
        # Without hints a call tells of its answer when it is over; what was well before the last
        # failure does not make up for it.
        if started < self._counts_from or answered < self._struck_at:
            return
        half_open = self.state is HealthState.HALF_OPEN
        if half_open and self._shorts.outlying:
            # Answering is what this one does even when it is broken: the call must last.
            self._proof = self._proof or (token, now + self._policy.short_call)
        elif half_open or not self.outlying:
            self._strikes.failures = 0
            self._move(HealthEvent.SUCCEEDED, now)

    def _prove(self, now: float) -> None:
        self._proof = None
        self._strikes.failures = 0
        self._move(HealthEvent.SUCCEEDED, now)

    def _eject(self, now: float, why: str, seconds: float | None) -> None:
        seconds = self._strikes.eject(now, self._policy, seconds)
        if self.state is HealthState.ALARMED:
            self._unproven = True
            self._move(HealthEvent.EJECT, now)
            return
        time = nth(self.times(now))
        self._move(HealthEvent.EJECT, now, f"ejected {seconds:.0f} s, {time} time, {why}")
        self._state_timer = self._strikes.until

    def _doubt_alarms(self, now: float) -> None:
        words = self._alarms.words
        self._alarms.forget()
        if self.state is not HealthState.ALARMED:
            return
        why = f"not seen since the link was lost: {words}"
        self._come_back(HealthEvent.UNSEEN, now, why)

    def _come_back(self, event: HealthEvent, now: float, why: str) -> None:
        self._alarms.over(now)
        self._strikes.failures = 0
        self._counts_from = now
        if self._unproven:
            why = f"ejected before the alarm ({self._why})"
            event = HealthEvent.SETTLED_UNPROVEN
        self._move(event, now, why)

    def _time_out(self, now: float) -> None:
        match self.state:
            case HealthState.EJECTED:
                self._counts_from = now
                self._move(HealthEvent.TRIAL_DUE, now)
            case HealthState.SUSPECT:
                self._state_timer = inf  # which says: wants a trial
            case HealthState.SLOW_START:
                whole = self.since + self._policy.slow_start
                if now >= whole:
                    self._move(HealthEvent.RAMPED, now)
                else:
                    step = self._policy.slow_start / _RAMP_STEPS
                    self._state_timer = min(now + step, whole)
            case HealthState.ALARMED:
                self._come_back(HealthEvent.SETTLED, now, f"back from {self._why}")
            case HealthState.UP | HealthState.HALF_OPEN:
                raise StateError(f"{self!r} has no timer")

    def _move(self, event: HealthEvent, now: float, why: str | None = None) -> None:
        before = self.state
        try:
            goal = TRANSITIONS[event][before]
        except KeyError:
            raise StateError(f"{self!r}: no {event.name.lower()} here") from None
        if why is None:
            why = self._why
        self._why = "" if goal is HealthState.UP else why
        if goal is before:
            return
        self.since = now
        self._enter(goal, now)
        self._changes.append(HealthChange(self.trunk, now, before, goal, event, why))

    def _enter(self, goal: HealthState, now: float) -> None:
        policy = self._policy
        self.state = goal
        self._proof = None
        self._plain = False
        self._state_timer = inf
        self._strikes.calm(now, policy, calm=goal in CALM_STATES)
        if goal not in LIMITED_STATES:
            self._begun.clear()
        if goal is HealthState.SUSPECT:
            self._state_timer = now + policy.suspect_rest
        elif goal is HealthState.EJECTED:
            self._state_timer = self._strikes.until
        elif goal is HealthState.SLOW_START:
            self._state_timer = now + policy.slow_start / _RAMP_STEPS
            self._answers.forget_recent()
            self._shorts.forget_recent()

    @property
    def _outward(self) -> tuple[HealthState, Admission, bool, bool, float]:
        return self.state, self.admission, self.has_room, self.wants_trial, self.timer

    def _settle(self, now: float) -> bool:
        """Work out from all there is how the trunk is to be used; answers whether that changed."""
        policy = self._policy
        look, outlived = self._hesitation.look(now)
        if outlived is not None:
            self._succeed(-1, outlived, outlived, now)
        doubt = self._hesitation.late_since is not None or bool(self._alarms)
        self.limit, trial = self._channels, False
        match self.state:
            case HealthState.UP:
                self.admission = Admission.RESERVE if doubt else Admission.OPEN
            case HealthState.SUSPECT:
                trial = self._state_timer == inf
                self.admission = Admission.LIMITED if trial else Admission.RESERVE
                self.limit = 1 if trial else self._channels
            case HealthState.EJECTED:
                self.admission, self.limit = Admission.CLOSED, 0
            case HealthState.HALF_OPEN:
                self.admission, self.limit = Admission.LIMITED, policy.trial_calls
                trial = len(self._begun) < self.limit
            case HealthState.SLOW_START:
                self.admission = Admission.RESERVE if doubt else Admission.LIMITED
                self.limit = policy.slow_start_limit(self._channels, now - self.since)
            case HealthState.ALARMED:
                self.admission, self.limit = Admission.CLOSED_HARD, 0
        self.wants_trial = trial
        self.has_room = len(self._begun) < self.limit
        self.due = min(self.timer, look)
        self._plain = (
            self.state is HealthState.UP
            and not self._strikes.failures
            and not doubt
            and not self.outlying
        )
        before, self._settled = self._settled, self._outward
        return self._settled != before
