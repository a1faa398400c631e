"""Fitness: the health of all trunks of a roster, and what it means for its packs.

`TrunkHealth` decides for one trunk. Here its evidence comes together (attempts, alarms, time), the
packs are graded anew when a trunk has changed, and what no trunk can know for itself is said: who
is the last usable one of a pack, and whether a pack has so little left that suspects are welcome.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import inf
from typing import Generic

from umpack.core.administration import Drain
from umpack.core.causes import Blame, Outcome, Result, Verdict, name_of
from umpack.core.channel import Channel, ChannelId
from umpack.core.channel_faults import ChannelFaults
from umpack.core.health import TrunkHealth
from umpack.core.health_states import Admission, AlarmKind, HealthChange, HealthMemory
from umpack.core.ledger import Holder, Lease
from umpack.core.pack import Exclusion, Grade, Pack
from umpack.core.roster import Roster, UnknownTarget
from umpack.core.site import Site
from umpack.core.trunk import PbxId, TrunkId

ALARM = "alarm"
"""Block source of an alarmed trunk's channels."""

REST = "rest"
"""Block source of a single channel that rests."""

_GRADES = {
    Admission.OPEN: Grade.FIRST,
    Admission.LIMITED: Grade.FIRST,
    Admission.RESERVE: Grade.RESERVE,
    Admission.CLOSED: Grade.CLOSED,
    Admission.CLOSED_HARD: Grade.CLOSED,
}


class Fitness(Roster[Holder], Generic[Holder]):
    """A roster that knows how fit its trunks are."""

    def __init__(self) -> None:
        super().__init__()
        self.health: dict[TrunkId, TrunkHealth] = {}
        self._faults: dict[TrunkId, ChannelFaults] = {}
        self._memories: dict[TrunkId, HealthMemory] = {}
        self._hints: dict[PbxId, bool] = {}
        self._alarmed: set[TrunkId] = set()
        """Trunks whose channels are blocked for an alarm."""
        self._changes: list[HealthChange] = []
        self._returns = inf
        """When the next trunk or channel comes back by itself; in the past when the packs must be
        graded anew."""

    def reload(self, site: Site, now: float = 0.0) -> None:
        """See `Roster.reload`; trunks that stay keep their health."""
        super().reload(site)
        old, old_faults = self.health, self._faults
        self.health, self._faults = {}, {}
        for trunk in site.trunks.values():
            channels, policy = len(trunk.slots), site.policy(trunk.id)
            health = old.get(trunk.id)
            if health is not None:
                health.adjust(policy, channels, now)
            elif memory := self._memories.pop(trunk.id, None):
                health = TrunkHealth.recalled(memory, policy, channels, now, self._changes)
            else:
                health = TrunkHealth(trunk.id, policy, channels, now, self._changes)
            health.hear(now, hints=self._hints.get(trunk.pbx, False))
            self.health[trunk.id] = health
            faults = old_faults.get(trunk.id)
            self._faults[trunk.id] = faults or ChannelFaults(policy, channels)
        self._alarmed.clear()
        for id_ in site.trunks:
            self._apply_alarm(id_)
        self._grade_packs(self.packs.values(), now)

    def drain(self, drain: Drain) -> None:
        """See `Roster.drain`."""
        super().drain(drain)
        self._returns = -inf

    def enable(self, target: str) -> bool:
        """See `Roster.enable`."""
        was_out = super().enable(target)
        self._returns = -inf
        return was_out

    # -- evidence ---------------------------------------------------------------------------

    def attempt_begins(self, lease: Lease[Holder], now: float) -> None:
        """A channel was leased and is being dialled."""
        health = self.health.get(lease.channel.trunk.id)
        if health is not None and health.attempt_started(lease.token, now):
            self._changed(health, now)

    def attempt_answers(self, lease: Lease[Holder], now: float) -> None:
        """A hint that the far end has answered."""
        health = self.health.get(lease.channel.trunk.id)
        if health is not None and health.attempt_succeeded(lease.token, now):
            self._changed(health, now)

    def attempt_ends(
        self,
        lease: Lease[Holder],
        outcome: Outcome,
        verdict: Verdict,
        talk: float | None,
        now: float,
    ) -> None:
        """What the attempt says of trunk and channel. `talk` is in seconds, where known."""
        trunk = lease.channel.trunk.id
        health = self.health.get(trunk)
        if health is None:
            return
        faults = self._faults[trunk]
        if outcome.result is Result.ANSWERED:
            faults.worked(lease.channel.id)
            spare = self._spare(trunk, now) if health.outlying else ""
            changed = health.call_ended(lease.token, now, talk, spare=spare)
        elif outcome.result is Result.HUNG_UP:
            spare = self._spare(trunk, now) if health.outlying else ""
            if talk is None:
                changed = health.attempt_abandoned(lease.token, now, spare=spare)
            else:
                changed = health.call_ended(lease.token, now, talk, spare=spare)
        else:
            blame, reason = verdict.blame, words_of(outcome)
            if blame is Blame.CHANNEL:
                self._channel_failed(faults, lease.channel.id, reason, now)
                blame = Blame.TRUNK if faults.blames_trunk else blame
            blamed = blame is Blame.TRUNK or health.outlying
            spare = self._spare(trunk, now) if blamed else ""
            changed = health.attempt_failed(lease.token, now, blame, reason, spare=spare)
        if changed:
            self._changed(health, now)

    def _channel_failed(
        self, faults: ChannelFaults, id_: ChannelId, reason: str, now: float
    ) -> None:
        rest = faults.failed(id_, now, reason)
        if rest is not None and (channel := self.ledger.channels.get(rest.channel)):
            self.ledger.block(channel, REST, rest.why)
            self._returns = min(self._returns, rest.until)

    def _spare(self, trunk: TrunkId, now: float) -> str:
        """Why this trunk is not to be ejected, whatever it did; empty if it may be."""
        for pack in self.packs.values():
            if trunk not in pack.trunks:
                continue
            others = [self.health[id_] for id_ in pack.trunks if id_ != trunk]
            usable = [h for h in others if self._is_usable(h)]
            if not usable:
                return f"the last usable trunk of {pack.id}"
            if self.health[trunk].outlying and 2 * sum(h.outlying for h in others) > len(others):
                return f"most trunks of {pack.id} are out of the ordinary"
        return ""

    def _is_usable(self, health: TrunkHealth) -> bool:
        if _GRADES[health.admission] is Grade.CLOSED:
            return False
        return any(not channel.blocks for channel in self._channels_of(health.trunk))

    # -- signals ----------------------------------------------------------------------------

    def alarm_raised(
        self,
        trunk: TrunkId,
        kind: AlarmKind,
        now: float,
        detail: str = "",
        *,
        certain: bool = False,
    ) -> None:
        """The line, its signalling or its far end is reported dead."""
        health = self.health.get(trunk)
        if health is not None and health.alarm_raised(now, kind, detail, certain=certain):
            self._changed(health, now)

    def alarm_cleared(self, trunk: TrunkId, kind: AlarmKind, now: float) -> None:
        """That is over; the trunk comes back when it has settled."""
        health = self.health.get(trunk)
        if health is not None and health.alarm_cleared(now, kind):
            self._changed(health, now)

    def alarms_seen(
        self, trunk: TrunkId, kinds: Mapping[AlarmKind, str], among: Iterable[AlarmKind], now: float
    ) -> None:
        """The whole truth of a poll: of the kinds `among`, these are on and no others."""
        health = self.health.get(trunk)
        if health is not None and health.alarms_seen(now, dict(kinds), frozenset(among)):
            self._changed(health, now)

    def hear(self, pbx: PbxId, now: float, *, hints: bool) -> None:
        """Whether this PBX tells of answers as they happen; without, no attempt is ever late."""
        self._hints[pbx] = hints
        for trunk in self.site.trunks.values():
            if trunk.pbx == pbx and self.health[trunk.id].hear(now, hints=hints):
                self._changed(self.health[trunk.id], now)

    def eject(self, trunk: TrunkId, now: float, why: str, seconds: float | None = None) -> None:
        """An operator ejects a trunk, as if it had failed. `UnknownTarget` if there is none."""
        health = self._health_of(trunk)
        health.eject(now, why, seconds)
        self._changed(health, now)

    def restore_trunk(self, trunk: TrunkId, now: float, why: str) -> None:
        """An operator takes back all that is held against a trunk, but no alarm and no drain."""
        health = self._health_of(trunk)
        health.restore(now, why)
        for id_ in self._faults[trunk].restore():
            if channel := self.ledger.channels.get(id_):
                self.ledger.unblock(channel, REST)
        self._changed(health, now)

    def _health_of(self, trunk: TrunkId) -> TrunkHealth:
        if trunk not in self.health:
            raise UnknownTarget(f"no trunk {trunk!r}")
        return self.health[trunk]

    # -- time -------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Let time pass: ejections end, attempts become late, alarms settle. Call it every second
        at least; whatever is needed for a call is looked at with the call."""
        if self._returns == -inf:
            self._grade_packs(self.packs.values(), now)
        for health in self.health.values():
            if health.due <= now and health.advance(now):
                self._changed(health, now)
        for faults in self._faults.values():
            if faults.due <= now:
                for id_ in faults.rested(now):
                    if channel := self.ledger.channels.get(id_):
                        self.ledger.unblock(channel, REST)
        self._returns = min(
            min((health.timer for health in self.health.values()), default=inf),
            min((faults.due for faults in self._faults.values()), default=inf),
        )

    def is_late(self, trunk: TrunkId, now: float) -> bool:
        """Whether the trunk just picked is due for a look, and the look has changed something."""
        health = self.health.get(trunk)
        if health is None or health.due > now or not health.advance(now):
            return False
        self._changed(health, now)
        return True

    def take_changes(self) -> list[HealthChange]:
        """State changes since the last time, oldest first."""
        changes = self._changes[:]
        self._changes.clear()
        return changes

    def remembered(self, memories: Iterable[HealthMemory], now: float) -> None:
        """What an earlier run had saved. Trunks that are not configured may come back."""
        for memory in memories:
            trunk = self.site.trunks.get(memory.trunk)
            if trunk is None:
                self._memories[memory.trunk] = memory
                continue
            policy = self.site.policy(trunk.id)
            health = TrunkHealth.recalled(memory, policy, len(trunk.slots), now, self._changes)
            health.hear(now, hints=self._hints.get(trunk.pbx, False))
            self.health[trunk.id] = health
            self._changed(health, now)

    def memories(self, now: float) -> tuple[HealthMemory, ...]:
        """What a restart must not lose."""
        return (*self._memories.values(), *(health.saved(now) for health in self.health.values()))

    # -- what it means for the packs --------------------------------------------------------

    def _changed(self, health: TrunkHealth, now: float) -> None:
        self._apply_alarm(health.trunk)
        self._grade_packs([p for p in self.packs.values() if health.trunk in p.trunks], now)
        self._returns = min(self._returns, health.timer)

    def _apply_alarm(self, id_: TrunkId) -> None:
        """An alarmed trunk's channels are blocked: their calls end, and no others come."""
        health = self.health[id_]
        if health.admission is Admission.CLOSED_HARD:
            self._alarmed.add(id_)
            why = f"{health.state.value}: {health.why}"
            for channel in self._channels_of(id_):
                if channel.blocks.get(ALARM) != why:
                    self.ledger.block(channel, ALARM, why)
        elif id_ in self._alarmed:
            self._alarmed.discard(id_)
            for channel in self._channels_of(id_):
                self.ledger.unblock(channel, ALARM)

    def _channels_of(self, id_: TrunkId) -> Iterator[Channel]:
        trunk = self.site.trunks[id_]
        return (self.ledger.channels[trunk.channel_id(slot)] for slot in trunk.slots)

    def _grade_packs(self, packs: Iterable[Pack], now: float) -> None:
        for pack in packs:
            readmitted = self._readmit(pack, now)
            healths = [self.health[id_] for id_ in pack.trunks]
            grades = {health.trunk: _grade_of(health) for health in healths}
            good = sum(
                _size(pack, health.trunk)
                for health in healths
                if grades[health.trunk] <= Grade.FIRST and self._is_usable(health)
            )
            policy = self.site.policy(healths[0].trunk)
            pack.grade(grades, panic=policy.panics(good, len(pack.channels)))
            pack.note(
                Exclusion(health.trunk, _size(pack, health.trunk), _note_of(health))
                for health in healths
                if health.admission not in (Admission.OPEN, Admission.CLOSED_HARD)
            )
            for health in readmitted:
                self._changed(health, now)

    def _readmit(self, pack: Pack, now: float) -> list[TrunkHealth]:
        """A pack that has nothing else left takes its ejected trunks back: doubtful beats none."""
        healths = [self.health[id_] for id_ in pack.trunks]
        closed = [health for health in healths if health.admission is Admission.CLOSED]
        if not closed or any(self._is_usable(health) for health in healths):
            return []
        return [h for h in closed if h.readmit(now, f"{pack.id} has nothing else left")]


def _size(pack: Pack, trunk: TrunkId) -> int:
    return sum(word.bit_count() for word in pack.trunks[trunk])


def _grade_of(health: TrunkHealth) -> Grade:
    if health.wants_trial:
        return Grade.TRIAL
    if health.admission is Admission.LIMITED and not health.has_room:
        # Full of the calls it may have for now: better than refusing one, worse than any other.
        return Grade.RESERVE
    return _GRADES[health.admission]


def _note_of(health: TrunkHealth) -> str:
    why = f": {health.why}" if health.why else ""
    return f"{health.state.value}{why}"


def words_of(outcome: Outcome) -> str:
    """An outcome in a few words, for people."""
    if outcome.result is Result.TIMED_OUT:
        return "no answer in time"
    if outcome.result is Result.NO_CHANNEL:
        return "no channel"
    sip = f"SIP {outcome.sip}" if outcome.sip else ""
    cause = f"cause {outcome.cause} {name_of(outcome.cause)}" if outcome.cause else ""
    return ", ".join(part for part in (sip, cause) if part) or outcome.detail or "failed"
