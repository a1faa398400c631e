"""Fitness: the health of all trunks of a roster, and what it means for its packs.

`TrunkHealth` decides for one trunk. Here alarms, people and time speak to all of them, a reload
hands them on, and the packs are graded anew when a trunk has changed. What calls say of trunks
comes in through `evidence`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from math import inf
from typing import Generic

from umpack.core import grades
from umpack.core.administration import Drain
from umpack.core.causes import Blame
from umpack.core.channel import Channel, ChannelId
from umpack.core.channel_faults import ChannelFaults
from umpack.core.health import TrunkHealth
from umpack.core.health_policy import HealthPolicy
from umpack.core.health_states import (
    Admission,
    AlarmKind,
    HealthChange,
    HealthMemory,
    HealthState,
)
from umpack.core.heirs import heirs
from umpack.core.ledger import Holder
from umpack.core.pack import Pack, PackId
from umpack.core.roster import Roster, UnknownTarget
from umpack.core.site import Site
from umpack.core.trunk import PbxId, TrunkId

ALARM = "alarm"
"""Block source of an alarmed trunk's channels."""

REST = "rest"
"""Block source of a single channel that rests."""

_MARGIN = 5.0
"""Seconds after its time limit in which the PBX has surely told of an attempt that failed."""


class Fitness(Roster[Holder], Generic[Holder]):
    """A roster that knows how fit its trunks are."""

    def __init__(self) -> None:
        super().__init__()
        self.health: dict[TrunkId, TrunkHealth] = {}
        self._faults: dict[TrunkId, ChannelFaults] = {}
        self._memories: dict[TrunkId, HealthMemory] = {}
        self._hints: dict[PbxId, bool] = {}
        self._blind: set[PbxId] = set()
        """PBXs whose alarms nobody can tell of now."""
        self._concerned: dict[TrunkId, list[Pack]] = {}
        """Packs that are to be graded anew when a trunk has changed."""
        self._clock = 0.0
        self._alarmed: set[TrunkId] = set()
        """Trunks whose channels are blocked for an alarm."""
        self._changes: list[HealthChange] = []
        self._returns = inf
        """When the next trunk or channel comes back by itself; in the past when the packs must be
        graded anew."""

    def reload(self, site: Site, now: float = 0.0) -> None:
        """See `Roster.reload`. Health stays with the line, whatever that is called now; where the
        lines are new, it stays with the name."""
        now = max(now, self._clock)
        before, was = self.site, {id(c): c.trunk.id for c in self.ledger.channels.values()}
        names = {id(c): c.id for c in self.ledger.channels.values()}
        old, old_faults = self.health, self._faults
        super().reload(site)
        lines = {
            trunk.id: [was[id(c)] for c in self._channels_of(trunk.id) if id(c) in was]
            for trunk in site.trunks.values()
        }
        inherits = heirs(before.trunks, site.trunks, lines)
        self.health, self._faults = {}, {}
        for trunk in site.trunks.values():
            channels, policy = len(trunk.slots), self._policy(trunk.id)
            heir_of = inherits.get(trunk.id)
            memory = self._memories.pop(trunk.id, None)
            if heir_of is not None:
                health = old[heir_of]
                health.trunk = trunk.id
                health.adjust(policy, channels, now)
            elif memory is not None:
                health = TrunkHealth.recalled(memory, policy, channels, now, self._changes)
            else:
                health = TrunkHealth(trunk.id, policy, channels, now, self._changes)
            self._connect(health, trunk.pbx, now)
            self.health[trunk.id] = health
            faults = old_faults[trunk.id] if heir_of == trunk.id else ChannelFaults(policy, 0)
            there = tuple(self._channels_of(trunk.id))
            # First what was held against lines that have gone, though others have their names.
            faults.adjust(policy, [c.id for c in there if names.get(id(c)) == c.id])
            faults.adjust(policy, [c.id for c in there])
            self._faults[trunk.id] = faults
            for channel in there:
                if REST in channel.blocks and not faults.rests(channel.id):
                    self.ledger.unblock(channel, REST)
        for id_, health in old.items():
            gone = id_ not in inherits.values() and id_ not in site.trunks
            if gone and health.state is not HealthState.UP:
                self._memories[id_] = health.saved(now)
        for lease in self.ledger:
            first = old.get(was[id(lease.channel)])
            if first is not None and first is not self.health.get(lease.channel.trunk.id):
                # The line goes on under another health, which knows nothing of this attempt.
                first.attempt_failed(lease.token, now, Blame.NOBODY, "")
        self._concerned = {
            id_: [
                pack
                for pack in self.packs.values()
                if any(id_ in self.packs[at].trunks for at in self._chains[pack.id])
            ]
            for id_ in site.trunks
        }
        # A channel may have come back on which a call has outlived all that was known of its trunk.
        self._alarmed = set(site.trunks)
        for id_ in site.trunks:
            self._apply_alarm(id_)
        self._grade(self.packs.values(), now)

    def _policy(self, id_: TrunkId) -> HealthPolicy:
        """The numbers of a trunk; an attempt that outlives its own time limit was answered."""
        policy = self.site.policy(id_)
        limits = [pack.plan.answer_within for pack in self.packs.values() if id_ in pack.trunks]
        longest = max(limits, default=policy.answer_limit) + _MARGIN
        return replace(policy, answer_limit=longest)

    def restore(
        self, drains: Iterable[Drain], pointers: Iterable[tuple[PackId, ChannelId]]
    ) -> None:
        """See `Roster.restore`."""
        super().restore(drains, pointers)
        self._returns = -inf

    def drain(self, drain: Drain) -> None:
        """See `Roster.drain`."""
        super().drain(drain)
        self._returns = -inf

    def enable(self, target: str) -> bool:
        """See `Roster.enable`."""
        was_out = super().enable(target)
        self._returns = -inf
        return was_out

    # -- signals ----------------------------------------------------------------------------

    def alarm_raised(
        self,
        trunk: TrunkId,
        kind: AlarmKind,
        now: float,
        detail: str = "",
    ) -> None:
        """The line, its signalling or its far end is reported dead."""
        health = self.health.get(trunk)
        if health is not None and health.alarm_raised(now, kind, detail):
            self.changed(health, now)

    def alarm_cleared(self, trunk: TrunkId, kind: AlarmKind, now: float) -> None:
        """That is over; the trunk comes back when it has settled."""
        health = self.health.get(trunk)
        if health is not None and health.alarm_cleared(now, kind):
            self.changed(health, now)

    def alarms_seen(
        self, trunk: TrunkId, kinds: Mapping[AlarmKind, str], among: Iterable[AlarmKind], now: float
    ) -> None:
        """The whole truth of a poll: of the kinds `among`, these are on and no others."""
        health = self.health.get(trunk)
        if health is not None and health.alarms_seen(now, dict(kinds), frozenset(among)):
            self.changed(health, now)

    def hear(self, pbx: PbxId, now: float, *, hints: bool) -> None:
        """Whether this PBX tells of answers as they happen; without, no attempt is ever late."""
        self._hints[pbx] = hints
        for trunk in self.site.trunks.values():
            if trunk.pbx == pbx and self.health[trunk.id].hear(now, hints=hints):
                self.changed(self.health[trunk.id], now)

    def see(self, pbx: PbxId, now: float, *, linked: bool) -> None:
        """Whether alarms of this PBX, and their ends, can be told. Those that stand while they
        cannot are held for certain for `alarm_unseen` only: a trunk in doubt beats no trunk."""
        (self._blind.discard if linked else self._blind.add)(pbx)
        for trunk in self.site.trunks.values():
            if trunk.pbx == pbx and self.health[trunk.id].see(now, linked=linked):
                self.changed(self.health[trunk.id], now)

    def _connect(self, health: TrunkHealth, pbx: PbxId, now: float) -> None:
        health.hear(now, hints=self._hints.get(pbx, False))
        health.see(now, linked=pbx not in self._blind)

    def eject(self, trunk: TrunkId, now: float, why: str, seconds: float | None = None) -> None:
        """An operator ejects a trunk, as if it had failed. `UnknownTarget` if there is none."""
        health = self._health_of(trunk)
        health.eject(now, why, seconds)
        self.changed(health, now)

    def restore_trunk(self, trunk: TrunkId, now: float, why: str) -> None:
        """An operator takes back all that is held against a trunk, but no alarm and no drain."""
        health = self._health_of(trunk)
        health.restore(now, why)
        self._wake(trunk)
        self.changed(health, now)

    def _health_of(self, trunk: TrunkId) -> TrunkHealth:
        if trunk not in self.health:
            raise UnknownTarget(f"no trunk {trunk!r}")
        return self.health[trunk]

    # -- time -------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Let time pass: ejections end, attempts become late, alarms settle. Call it every second
        at least; whatever is needed for a call is looked at with the call."""
        self._clock = max(self._clock, now)
        for faults in self._faults.values():
            if faults.due <= now:
                self._end_rest(faults.rested(now))
        while self._returns == -inf:
            self._returns = inf
            self._grade(self.packs.values(), now)
        self._returns = inf
        for health in self.health.values():
            if health.due <= now and health.advance(now):
                self.changed(health, now)
        self._returns = min(
            self._returns,
            min((health.timer for health in self.health.values()), default=inf),
            min((faults.due for faults in self._faults.values()), default=inf),
        )

    def is_late(self, trunk: TrunkId, now: float) -> bool:
        """Whether the trunk just picked is due for a look, and the look has changed something."""
        health = self.health.get(trunk)
        if health is None or health.due > now or not health.advance(now):
            return False
        self.changed(health, now)
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
            policy = self._policy(trunk.id)
            health = TrunkHealth.recalled(memory, policy, len(trunk.slots), now, self._changes)
            self._connect(health, trunk.pbx, now)
            self.health[trunk.id] = health
            self.changed(health, now)

    def memories(self, now: float) -> tuple[HealthMemory, ...]:
        """What a restart must not lose."""
        return (*self._memories.values(), *(health.saved(now) for health in self.health.values()))

    # -- what it means for the packs --------------------------------------------------------

    def changed(self, health: TrunkHealth, now: float) -> None:
        """A trunk is to be used in another way: its packs must know."""
        self._apply_alarm(health.trunk)
        self._grade(self._concerned[health.trunk], now)
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

    def _grade(self, packs: Iterable[Pack], now: float) -> None:
        for pack in packs:
            readmitted = self._readmit(pack, now)
            # A panic is for a pack that has nowhere else to go. Where one of its overflow packs is
            # well, that goes first, suspects come before a refusal all the same, and each is tried
            # every `suspect_rest` (Envoy likewise: no panic while lower priorities can take the
            # load).
            panic = all(self._lacks(self.packs[id_]) for id_ in self._chains[pack.id])
            grades.grade(pack, self.health, panic=panic)
            for health in readmitted:
                self.changed(health, now)

    def _lacks(self, pack: Pack) -> bool:
        policy = self.site.pack_policy(pack.id)
        return not pack.trunks or grades.lacks(pack, self.health, policy)

    def _readmit(self, pack: Pack, now: float) -> list[TrunkHealth]:
        """A pack that has nothing else left takes its ejected trunks back."""
        healths = [self.health[id_] for id_ in pack.trunks]
        if any(grades.is_usable(pack, health) for health in healths):
            return []
        for health in healths:
            self._wake(health.trunk)
        closed = [health for health in healths if health.admission is Admission.CLOSED]
        why = f"{pack.id} has nothing else left"
        return [h for h in closed if pack.carries(h.trunk) and h.readmit(now, why)]

    def _wake(self, trunk: TrunkId) -> None:
        """End the rest of single channels."""
        self._end_rest(self._faults[trunk].restore())

    def _end_rest(self, resting: Iterable[ChannelId]) -> None:
        for id_ in resting:
            if channel := self.ledger.channels.get(id_):
                self.ledger.unblock(channel, REST)
                self._returns = -inf  # it may be all that its trunk has in a pack
