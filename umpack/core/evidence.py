"""What calls say of the trunks they are tried on, and what that costs the trunk.

No trunk can know for itself whether it is the last usable one of a pack, whether all the others
are out of the ordinary as well, or whether a single channel is at fault: that is worked out here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from math import inf
from typing import Generic

from umpack.core import grades
from umpack.core.causes import CONNECTED, Blame, Outcome, Result, Verdict, words_of
from umpack.core.channel import Channel
from umpack.core.fitness import REST, Fitness
from umpack.core.health_states import Admission
from umpack.core.ledger import REMOVED, Holder, Lease
from umpack.core.pack import PackId
from umpack.core.trunk import TrunkId


class Evidence(Fitness[Holder], Generic[Holder]):
    """Fitness that learns from calls."""

    def __init__(self) -> None:
        super().__init__()
        self.collisions: Counter[TrunkId] = Counter()
        """Attempts lost to glare, which blames nobody; many of them ask for another direction of
        hunting. Metric and status show them."""
        self._blemished = False
        """Whether any channel has ever failed by itself."""

    def attempt_answers(self, lease: Lease[Holder], now: float) -> None:
        """A hint that the far end has answered."""
        health = self.health.get(lease.channel.trunk.id)
        if health is not None and health.attempt_succeeded(lease.token, now):
            self.changed(health, now)

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
        connected = outcome.result is CONNECTED
        if self._blemished and (connected or talk is not None):
            self._faults[trunk].worked(lease.channel.id)
        if connected:
            if health.ended_well(lease.token, talk):
                return
            spare = self._spare(trunk) if health.outlying else ""
            changed = health.call_ended(lease.token, now, talk, spare=spare)
        elif outcome.result is Result.HUNG_UP:
            spare = self._spare(trunk) if health.outlying else ""
            if talk is None:
                changed = health.attempt_abandoned(lease.token, now, spare=spare)
            else:
                changed = health.call_ended(lease.token, now, talk, spare=spare)
        else:
            blame = self._blame(lease, outcome, verdict, now)
            spare = self._spare(trunk) if blame is Blame.TRUNK or health.outlying else ""
            reason = words_of(outcome)
            changed = health.attempt_failed(lease.token, now, blame, reason, spare=spare)
        if changed:
            self.changed(health, now)

    def _blame(self, lease: Lease[Holder], outcome: Outcome, verdict: Verdict, now: float) -> Blame:
        """Whom a failure speaks against, by all that is known of its trunk."""
        trunk, blame = lease.channel.trunk.id, verdict.blame
        if REMOVED in lease.channel.blocks:
            return Blame.NOBODY  # the trunk of that name has other lines by now
        if outcome.glare:
            self.collisions[trunk] += 1
        if outcome.result is Result.TIMED_OUT and blame is Blame.CALL:
            # It rang on. People may do that; what normally answers at once, or may, does not.
            return blame if self.health[trunk].rings_people else Blame.TRUNK
        if blame is not Blame.CHANNEL:
            return blame
        self._blemished = True
        faults, id_ = self._faults[trunk], lease.channel.id
        rest = faults.failed(id_, now, words_of(outcome))
        if rest is not None and (channel := self.ledger.channels.get(rest.channel)):
            self.ledger.block(channel, REST, rest.why)
            self._returns = -inf  # it may have been the last one of a pack
        return Blame.TRUNK if faults.blames_trunk else blame

    def is_full(self, id_: TrunkId, *, but: Channel) -> bool:
        """Whether no channel of a trunk of several is idle, `but` one that has just failed."""
        trunk = self.site.trunks.get(id_)
        if trunk is None or len(trunk.slots) == 1:
            return False
        others = (channel for channel in self._channels_of(id_) if channel is not but)
        return all(channel.lease or channel.blocks for channel in others)

    def _spare(self, trunk: TrunkId) -> str:
        """Why this trunk is not to be ejected, whatever it did; empty if it may be."""
        packs = (pack for pack in self.packs.values() if trunk in pack.trunks)
        return next(
            filter(None, (grades.reason_to_spare(p, trunk, self.health) for p in packs)), ""
        )

    def take_back(self, chain: Iterable[PackId], tried: Collection[TrunkId], now: float) -> bool:
        """Take an ejected trunk back for a call that would be refused: doubtful beats none.

        Answers whether there was one. A trunk is taken back no sooner than `suspect_rest` after
        its ejection, so that not every call of a bad time waits for it in vain.
        """
        for id_ in chain:
            pack = self.packs.get(id_)
            ripe = [
                health
                for health in (self.health[trunk] for trunk in (pack.trunks if pack else ()))
                if health.admission is Admission.CLOSED
                and health.trunk not in tried
                and now >= health.since + self.site.policy(health.trunk).suspect_rest
                and pack is not None
                and pack.has_idle(health.trunk)
            ]
            if ripe:
                best = min(ripe, key=lambda health: health.timer)
                best.readmit(now, f"{id_} has nothing else for a call")
                self.changed(best, now)
                return True
        return False
