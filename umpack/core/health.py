"""The health of one trunk: what its calls say of it, what people are told, what survives a restart.

Evidence goes in with the time, and `admission` and `has_room` say what follows. Every method
answers whether the way the trunk is to be used, or its `timer`, has changed; for a healthy call
it has not, and nothing more is to be done. Attempts are named by their lease's token.
"""

from __future__ import annotations

from math import inf

from umpack.core.causes import Blame
from umpack.core.health_machine import CALM_STATES, LIMITED_STATES, HealthMachine
from umpack.core.health_policy import HealthPolicy
from umpack.core.health_states import (
    Admission,
    HealthChange,
    HealthEvent,
    HealthMemory,
    HealthState,
)
from umpack.core.health_words import in_seconds

_DEAD = frozenset({HealthState.EJECTED, HealthState.ALARMED})


class TrunkHealth(HealthMachine):
    """One trunk, told and asked by the distributor only."""

    __slots__ = ()

    # -- calls ------------------------------------------------------------------------------

    def attempt_started(self, token: int, now: float) -> bool:
        """A call is being dialled on this trunk."""
        hesitation = self._hesitation
        hesitation.outstanding[token] = now  # its `started`, without the cost of a call
        look = now + hesitation.wait
        if look < self.due:  # noqa: PLR1730  # min() would cost a call for every call
            self.due = look
        if self._plain:
            return False
        if self.state is HealthState.SUSPECT:
            self._state_timer = now + self._policy.suspect_rest
        elif self.state in LIMITED_STATES:
            self._begun.add(token)
        return self._settle(now)

    def attempt_succeeded(self, token: int, now: float) -> bool:
        """The far end has answered. A hint: harmless if repeated or late, and it may be lost."""
        hesitation = self._hesitation
        started = hesitation.answered(token, now)
        if started is None:
            return False
        self._answers.good()
        if self._plain:
            if not hesitation.outstanding:
                self.due = inf  # a plain trunk has no other timer
            return False
        answered, now = now, max(now, self.since)  # told late, it changes nothing before today
        self._succeed(token, started, answered, now)
        return self._settle(now)

    def attempt_failed(
        self, token: int, now: float, blame: Blame, reason: str, *, spare: str = ""
    ) -> bool:
        """An attempt ended without an answer. `reason` is shown to people ("cause 41").

        `spare` says why it is not to be ejected whatever it does ("last usable trunk of um"); empty
        if it may be. It is wanted only where the trunk is blamed, or `outlying` already; there,
        trunks most of whose pack are outlying too are to be spared: what all have in common is
        their callers' doing.
        """
        started, trial = self._end(token)
        if blame is Blame.TRUNK or blame is Blame.CALL:
            outlying = self._is_evidence and self._answers.bad()
            if blame is Blame.TRUNK or outlying:
                why = reason if blame is Blame.TRUNK else self._answers.words
                self._strike(started, now, why, trial=trial, spare=spare)
        return not self._plain and self._settle(now)

    def attempt_abandoned(self, token: int, now: float, *, spare: str = "") -> bool:
        """The caller left before an answer: says something only if he had waited unusually long."""
        patience = self._hesitation.patience
        started, trial = self._end(token)
        waited = started is not None and now - started > patience
        if waited and self._is_evidence and self._answers.bad():
            self._strike(started, now, self._answers.words, trial=trial, spare=spare)
        return not self._plain and self._settle(now)

    def ended_well(self, token: int, talk: float | None) -> bool:
        """Like `call_ended`, where there is nothing to it: false, and nothing done, if there is."""
        if not self._plain or (talk is not None and talk < self._policy.short_call):
            return False
        if token in self._hesitation.unsure:
            return False
        if self._hesitation.gone(token) is not None:  # the hint of its answer was lost
            self._answers.good()
        if talk is not None:
            self._shorts.good()
        return True

    def call_ended(
        self, token: int, now: float, talk: float | None = None, *, spare: str = ""
    ) -> bool:
        """A connected call is over after `talk` seconds (`None`: not known when it was answered).

        To be told of every attempt that ended in an answer, whether there was a hint or not.
        """
        if self.ended_well(token, talk):
            return False
        self._hesitation.ended(token, None if talk is None else now - talk)
        if self._proof and self._proof[0] == token:
            if now >= self._proof[1]:
                self._prove(now)
            else:
                self._proof = None
        if talk is not None:
            self._talked(token, now, talk, spare=spare)
        started = self._hesitation.gone(token)
        if started is not None:  # the hint of its answer was lost
            self._answers.good()
            self._succeed(token, started, started, now)
        self._begun.discard(token)
        return not self._plain and self._settle(now)

    def hear(self, now: float, *, hints: bool) -> bool:
        """Whether the PBX tells of answers from now on; without, no attempt is ever late."""
        self._hesitation.hear(hints=hints)
        return self._settle(now)

    # -- what people see --------------------------------------------------------------------

    @property
    def why(self) -> str:
        """Why it is as it is; empty while there is nothing to say."""
        parts = [self._why] if self._why else []
        if self._hesitation.late_since is not None:
            normal = f"{self.answer_p99 * 1000:.0f} ms"
            parts.append(f"an attempt has had no answer, which normally takes {normal}")
        if self._alarms and self.state is not HealthState.ALARMED:
            parts.append(f"{self._alarms.words}: not yet certain")
        return "; ".join(parts)

    def next_step(self, now: float) -> str:
        """What it waits for; empty if nothing."""
        left = self._state_timer - now
        match self.state:
            case HealthState.UP:
                late = self._hesitation.late_since is not None
                return "first choice again with the next answer" if late else ""
            case HealthState.EJECTED:
                return f"trial {in_seconds(left)}"
            case HealthState.HALF_OPEN:
                return "next call is the trial" if self.has_room else "trial call under way"
            case HealthState.SUSPECT:
                return f"an answered call clears it; trial {in_seconds(left)}"
            case HealthState.SLOW_START:
                rest = self.since + self._policy.slow_start - now
                return f"{self.limit} of {self._channels} calls at once, all {in_seconds(rest)}"
            case HealthState.ALARMED:
                if self._alarms and self._doubt_at < inf:
                    return f"a suspect {in_seconds(self._doubt_at - now)} if the link stays down"
                if self._alarms:
                    return "back when the alarm clears"
                return f"back {in_seconds(left)} if the alarm stays clear"

    @property
    def trial_timeout(self) -> float:
        """Seconds after which an attempt on it is hopeless; infinite if nobody knows."""
        return self._hesitation.longest

    @property
    def rings_people(self) -> bool:
        """Whether its answers are known to take as long as people do."""
        return self._policy.hesitation_ceiling < self.answer_p99 < inf

    @property
    def is_proven(self) -> bool:
        """Whether it has nothing to prove, as far as anybody knows."""
        return self.state in CALM_STATES

    def is_doubtful(self, now: float) -> bool:
        """Whether a call had better have somewhere else to go: it has to prove itself, or an
        attempt waits longer than normal, be it late or not yet."""
        if not self._plain and (not self.is_proven or self.admission is Admission.RESERVE):
            return True
        return self._hesitation.is_slow(now)

    @property
    def answer_p99(self) -> float:
        """Learned 99th percentile of answer times in seconds; infinite until known."""
        return self._hesitation.answers.p99

    # -- restart ----------------------------------------------------------------------------

    def saved(self, now: float) -> HealthMemory:
        """What a restart must not lose."""
        state, strikes = self.state, self._strikes
        if state is HealthState.ALARMED and self._unproven:
            state = HealthState.EJECTED
        return HealthMemory(
            self.trunk,
            state,
            self.since,
            strikes.until,
            self.times(now),
            strikes.failures,
            self._why,
            self._answers.remembered,
            self._shorts.remembered,
        )

    @classmethod
    def recalled(
        cls,
        memory: HealthMemory,
        policy: HealthPolicy,
        channels: int,
        now: float,
        changes: list[HealthChange] | None = None,
    ) -> TrunkHealth:
        """As it was before a restart. An alarm is for the PBX to repeat; until it has been asked,
        the trunk is a suspect. No ejection lasts longer than the policy allows."""
        health = cls(memory.trunk, policy, channels, now, changes)
        health.since = min(memory.since, now)
        until = min(memory.until, now + policy.ejection(policy.most_times, 1.0))
        health._strikes.recall(min(memory.times, policy.most_times), memory.failures, until)
        health._why = memory.why
        health._answers.recall(memory.unanswered)
        health._shorts.recall(memory.short)
        state = memory.state
        if state is HealthState.ALARMED:
            state = HealthState.SUSPECT
            health._why = f"before the restart: {memory.why}"
        elif state is HealthState.HALF_OPEN:
            state = HealthState.EJECTED
        health._enter(state, health.since if state is HealthState.SLOW_START else now)
        health.advance(now)
        return health

    def __repr__(self) -> str:
        why = f": {self.why}" if self.why else ""
        return f"<{self.trunk} {self.state.value}, {self.admission.value}{why}>"

    # -- within -----------------------------------------------------------------------------

    @property
    def _is_evidence(self) -> bool:
        # What fails while the trunk is known to be dead says nothing of its ratios.
        return self.state not in _DEAD

    def _end(self, token: int) -> tuple[float | None, bool]:
        """An attempt is no more: when it began, and whether the limit counted it."""
        trial = token in self._begun
        self._begun.discard(token)
        if self._proof and self._proof[0] == token:
            self._proof = None
        return self._hesitation.gone(token), trial

    def _talked(self, token: int, now: float, talk: float, *, spare: str) -> None:
        if talk >= self._policy.short_call:
            self._shorts.good()
        elif self._is_evidence and self._shorts.bad():
            trial = token in self._begun
            self._strike(None, now, self._shorts.words, trial=trial, spare=spare)

    def _strike(
        self, started: float | None, now: float, reason: str, *, trial: bool, spare: str
    ) -> None:
        self._plain = False
        if started is not None and started < self._counts_from:
            return
        self._struck_at = now
        half_open = self.state is HealthState.HALF_OPEN
        if self.state in _DEAD or (half_open and not trial):
            self._move(HealthEvent.BLAMED, now)
            return
        strikes = self._strikes
        strikes.calm(now, self._policy, calm=False)
        why = strikes.strike(reason)
        if half_open or strikes.failures >= self._policy.failures_to_eject:
            why = f"trial failed: {reason}" if half_open else why
            if spare:
                self._move(HealthEvent.SPARE, now, f"{why}; kept, {spare}")
            else:
                self._eject(now, why, None)
        elif strikes.failures >= self._policy.suspect_after:
            self._move(HealthEvent.BLAMED, now, why)
        strikes.calm(now, self._policy, calm=self.state in CALM_STATES)
