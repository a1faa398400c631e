"""The distributor: gives every offered call a channel, or a reason.

One call goes `offer` → (`outcome` → ...)* and ends in exactly one `CallRecord`. Every answer is a
value (`Assignment`, `Done`, `Refusal`) the driver acts on; time comes in as an argument. What
happened is appended to one stream, read with `take_records`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import product

from umpack.core.calls import (
    Assignment,
    Call,
    CallRecord,
    Decision,
    Done,
    Ending,
    PackTried,
    Reason,
    Refusal,
)
from umpack.core.causes import (
    ANSWERED,
    CAUSE_VERDICTS,
    CONNECTED,
    Elsewhere,
    Outcome,
    Result,
    Verdict,
)
from umpack.core.channel import ChannelId
from umpack.core.dial import is_safe_number, render
from umpack.core.errors import LeaseError
from umpack.core.evidence import Evidence
from umpack.core.health import TrunkHealth
from umpack.core.ledger import Lease, LeaseToken
from umpack.core.no_route import LOST, NO_ROUTE, NoRoutes
from umpack.core.offer import Offer as Offer  # noqa: PLC0414  # re-exported
from umpack.core.pack import GOOD, GOOD_AGAIN, OPEN, OPEN_AGAIN, Pack
from umpack.core.roster import UnknownTarget
from umpack.core.site import Site
from umpack.core.trunk import TrunkId

_SHORTEST_ATTEMPT = 0.1
"""Seconds; with less of the setup budget left another attempt cannot succeed."""

_SHORTEST_TRIAL = 0.2
"""Seconds; a trunk that needs longer in its trial is not what it was, nor dead."""

_CONNECTED = Ending.CONNECTED

_CLEARED = Done(16)
"""Q.850 16: normal call clearing."""

_CHANNELS_PER_TRUNK = 3
"""Channels of one trunk a call may lose to glare before the trunk counts as tried."""


class Distributor(Evidence[Offer]):
    """The calls of one site, given channels of its roster."""

    def __init__(self, site: Site | None = None) -> None:
        super().__init__()
        self.accepting = True
        """False while shutting down: running calls finish, new ones are refused."""
        self._records: list[CallRecord] = []
        self._no_routes = NoRoutes()
        self.reload(site or Site())

    def reload(self, site: Site, now: float = 0.0) -> None:
        """See `Fitness.reload`."""
        before = self.site.trunks
        super().reload(site, now)
        for id_ in self._no_routes:
            if id_ not in site.trunks or site.trunks[id_] != before.get(id_):
                self._no_routes.forget(id_)

    def restore_trunk(self, trunk: TrunkId, now: float, why: str) -> None:
        """See `Fitness.restore_trunk`."""
        super().restore_trunk(trunk, now, why)
        self._no_routes.forget(trunk)

    def offer(self, call: Call, now: float) -> Assignment | Refusal:
        """A call asks for a channel."""
        offer = Offer(call, now)
        if now >= self._returns:
            self.tick(now)
        if not self.accepting:
            return self._refuse(offer, Reason.SHUTTING_DOWN, 41, "umpack is shutting down", now)
        route = self._routes.match(call.pbx, call.called, call.caller)
        if route is None:
            why = f"no route for {call.called!r}"
            return self._refuse(offer, Reason.NO_ROUTE, self.site.no_route_cause, why, now)
        offer.route = route.called.text
        if route.pack is None:
            cause = route.refuse or 21
            return self._refuse(offer, Reason.REFUSED_BY_ROUTE, cause, "the route says so", now)
        pack = self.packs.get(route.pack)
        if pack is None:
            why = f"route {offer.route} names pack {route.pack}, which is not there"
            return self._refuse(offer, Reason.MISCONFIGURED, 38, why, now)
        offer.chain = self._chains[route.pack]
        offer.deadline = now + pack.plan.setup_budget
        if not is_safe_number(call.called, digits_only=True):
            if not is_safe_number(call.called):
                why = f"{call.called!r} cannot stand in a dial string"
                return self._refuse(offer, Reason.INVALID_NUMBER, 28, why, now)
            offer.lettered = True
        if found := self._assign(offer, now):
            return found
        while self._takes_back(offer, now):
            if found := self._assign(offer, now):
                return found
        return self._no_channel(offer, now)

    def outcome(self, lease: Lease[Offer], outcome: Outcome, now: float) -> Decision:
        """An attempt has ended; its lease ends with it. `LeaseError` if it is not held."""
        self.ledger.release(lease)
        offer = lease.holder
        answered = outcome.result is CONNECTED
        verdict = ANSWERED if answered else self._verdict(lease, outcome)
        self._no_routes.ended(lease.channel.trunk.id, outcome, verdict)
        talk = None if offer.answered is None else now - offer.answered
        self.attempt_ends(lease, outcome, verdict, talk, now)
        offer.attempted(lease, outcome, verdict, now)
        if answered:
            self._records.append(offer.record(_CONNECTED, 16, "connected", now))
            return _CLEARED
        if outcome.result is Result.HUNG_UP:
            self._end(offer, Ending.ABANDONED, 16, "the caller hung up before an answer", now)
            return _CLEARED
        elsewhere = verdict.elsewhere
        own_cause = outcome.cause or 31
        if elsewhere is Elsewhere.NO or (elsewhere is Elsewhere.ONCE and offer.once):
            self._end(offer, Ending.DECLINED, own_cause, verdict.source, now)
            return Done(own_cause)
        offer.once = offer.once or elsewhere is Elsewhere.ONCE
        if offer.deadline - now < _SHORTEST_ATTEMPT:
            why = f"setup budget used up after {offer.tries}"
            return self._refuse(offer, Reason.OUT_OF_TIME, self._refusal_cause(offer), why, now)
        if elsewhere is not Elsewhere.CHANNEL:
            offer.closed_trunks |= {lease.channel.trunk.id}
        if again := self._reassign(offer, now):
            return again
        while elsewhere is not Elsewhere.ONCE and self._takes_back(offer, now):
            if again := self._reassign(offer, now):
                return again
        if elsewhere is Elsewhere.ONCE:
            self._end(offer, Ending.DECLINED, own_cause, verdict.source, now)
            return Done(own_cause)
        why = f"{offer.tries}, no other channel"
        return self._refuse(offer, Reason.ATTEMPTS_FAILED, self._refusal_cause(offer), why, now)

    def release(self, token: LeaseToken, now: float, why: str = "connection ended") -> None:
        """The call's connection ended without an outcome. `LeaseError` if the lease is not held."""
        lease = self.ledger.lease_of(token)
        self.ledger.release(lease)
        offer = lease.holder
        outcome = Outcome(Result.HUNG_UP, detail=why)
        verdict = self.site.causes.verdict(outcome)
        talk = None if offer.answered is None else now - offer.answered
        self.attempt_ends(lease, outcome, verdict, talk, now)
        offer.attempted(lease, outcome, verdict, now)
        ending = Ending.ABANDONED if offer.answered is None else Ending.CONNECTED
        self._end(offer, ending, 16, why, now)

    def adopt(self, id_: ChannelId, call: Call, now: float) -> Lease[Offer] | None:
        """Hold a channel for a call found on it in the PBX; None if it is held already.

        `UnknownTarget` if there is no such channel. End it with `abandon`.
        """
        channel = self.ledger.channels.get(id_)
        if channel is None:
            raise UnknownTarget(f"no channel {id_!r}")
        if channel.lease is not None:
            return None
        offer = Offer(call, now)
        offer.answered = now
        offer.lease = lease = self.ledger.adopt(channel, now, offer)
        return lease

    def abandon(self, token: LeaseToken, now: float, why: str) -> None:
        """The PBX has no call any more where we hold a channel: an adopted call is over, or a lease
        has leaked. `LeaseError` if the lease is not held."""
        lease = self.ledger.lease_of(token)
        self.ledger.release(lease)
        offer = lease.holder
        if lease.pack is None:
            offer.lease = None
            self._end(offer, Ending.ADOPTED, 16, f"{why} ({lease.channel.id})", now)
            return
        outcome = Outcome(Result.HUNG_UP, detail=why)
        self.attempt_ends(lease, outcome, self.site.causes.verdict(outcome), None, now)
        offer.attempted(lease, outcome, self.site.causes.verdict(outcome), now)
        self._end(offer, Ending.LEAKED, 16, why, now)

    def answered(self, lease: Lease[Offer], now: float) -> None:
        """A hint that the far end has answered: for status and statistics, never for the ledger."""
        offer = lease.holder
        if offer.lease is not lease:
            return
        if offer.answered is None:
            offer.answered = now
            self.attempt_answers(lease, now)
        elif now < offer.answered:
            offer.answered = now  # the hint came late; what the PBX has counted itself is exact

    def moved(self, lease: Lease[Offer], id_: ChannelId) -> bool:
        """The far end has put the call on another channel of the trunk. False if that is held by
        another call or is not the trunk's; `LeaseError` if the lease is not held."""
        if not self.ledger.holds(lease):
            raise LeaseError(f"{lease!r} is not held")
        channel = self.ledger.channels.get(id_)
        if channel is None or channel.trunk is not lease.channel.trunk:
            return False
        return self.ledger.move(lease, channel)

    def take_records(self) -> list[CallRecord]:
        """What ended since the last time, oldest first."""
        records, self._records = self._records, []
        return records

    @property
    def calls(self) -> Iterator[Offer]:
        """The calls that hold a channel now."""
        return (lease.holder for lease in self.ledger)

    def _verdict(self, lease: Lease[Offer], outcome: Outcome) -> Verdict:
        trunk = lease.channel.trunk
        table = self.site.causes.of(trunk.id, lease.pack.id if lease.pack else "")
        full = outcome.cause == 34 and self.is_full(trunk.id, but=lease.channel)
        # Slowness alone brings down nobody: all may have become slow together. A trunk that is to
        # prove itself has to keep the shorter time, though.
        health = self.health.get(trunk.id)
        cut_short = lease.holder.cut_short and health is not None and health.is_proven
        verdict = table.verdict(outcome, full=full, cut_short=cut_short)
        if outcome.cause in NO_ROUTE and verdict is CAUSE_VERDICTS[outcome.cause]:
            many = self.site.policy(trunk.id).no_route_numbers
            if self._no_routes.failed(trunk.id, lease.holder.call.called, many):
                return LOST
        return verdict

    def _assign(self, offer: Offer, now: float) -> Assignment | None:
        """Pack by pack for what is beyond doubt, and only then again for what is not."""
        accepts = self._takes_letters if offer.lettered else None
        for wanted in (GOOD, OPEN):
            graded = False
            offer.passed_packs = ()
            for pack_id in offer.chain:
                pack = self.packs[pack_id]
                while (position := pack.next_position(wanted, accepts)) >= 0:
                    health = self.health[pack.channels[position].trunk.id]
                    if health.due > now or not self.is_late(health.trunk, now):
                        return self._lease(offer, pack, position, health, now)
                graded = graded or pack.tiers is not None
                tried = PackTried(pack_id, _why_none(pack), pack.exclusions)
                offer.passed_packs = (*offer.passed_packs, tried)
            if not graded:
                break
        return None

    def _reassign(self, offer: Offer, now: float) -> Assignment | None:
        """Pack by pack: another trunk first, then trunks that have lost single channels only."""
        if now >= self._returns:
            self.tick(now)
        met = Counter(attempt.trunk for attempt in offer.attempts)
        tried = [self.ledger.channels.get(attempt.channel) for attempt in offer.attempts]
        for wanted, pack_id in product((GOOD_AGAIN, OPEN_AGAIN), offer.chain):
            pack = self.packs.get(pack_id)
            if pack is None or (wanted is OPEN_AGAIN and pack.tiers is None):
                continue
            here = [seat.position for c in tried if c for seat in c.seats if seat.pack is pack]
            for most in (1, _CHANNELS_PER_TRUNK):
                open_to = {t for t in pack.trunks if met[t] < most and self._is_open(offer, t)}
                position = pack.next_position_on(open_to.__contains__, here, wanted)
                while position >= 0:
                    health = self.health[pack.channels[position].trunk.id]
                    if not self.is_late(health.trunk, now):
                        return self._lease(offer, pack, position, health, now)
                    position = pack.next_position_on(open_to.__contains__, here, wanted)
        return None

    def _lease(
        self, offer: Offer, pack: Pack, position: int, health: TrunkHealth, now: float
    ) -> Assignment:
        timeout = min(pack.plan.answer_within, offer.deadline - now)
        offer.cut_short = False
        if (
            (offer.attempts or health.is_doubtful(now))
            and (least := max(_SHORTEST_TRIAL, health.trial_timeout)) < timeout
            and self._has_better(offer, health.trunk, now)
        ):
            # Nobody shall wait the whole time for a trunk that is doubtful already, or twice.
            timeout, offer.cut_short = least, True
        lease = self.ledger.lease(pack, position, now, offer)
        channel, call = lease.channel, offer.call
        offer.lease = lease
        offer.exclusions = pack.exclusions
        dial = render(channel.dial_parts, call.called, call.caller)
        if health.attempt_started(lease.token, now):
            self.changed(health, now)
        return Assignment(lease, channel.id, dial, timeout, len(offer.attempts) + 1)

    def _takes_back(self, offer: Offer, now: float) -> bool:
        useless = {attempt.trunk for attempt in offer.attempts}
        if offer.lettered:
            useless.update(id_ for id_ in self.site.trunks if not self._takes_letters(id_))
        return self.take_back(offer.chain, offer.closed_trunks | useless, now)

    def _has_better(self, offer: Offer, trunk: TrunkId, now: float) -> bool:
        """Whether the call has somewhere to go that is beyond doubt, if this trunk fails it. If
        not, as when all have become slow together, it must wait here."""
        tried = {trunk, *(attempt.trunk for attempt in offer.attempts)}

        def is_better(other: TrunkId) -> bool:
            return (
                other not in tried
                and self._is_open(offer, other)
                and not self.health[other].is_doubtful(now)
            )

        packs = (self.packs[id_] for id_ in offer.chain if id_ in self.packs)
        return any(pack.next_position_on(is_better, (), GOOD_AGAIN) >= 0 for pack in packs)

    def _is_open(self, offer: Offer, trunk: TrunkId) -> bool:
        """Whether a trunk may still have this call."""
        if trunk in offer.closed_trunks:
            return False
        return not offer.lettered or self._takes_letters(trunk)

    def _takes_letters(self, trunk: TrunkId) -> bool:
        return not self.site.trunks[trunk].dial.digits_only

    def _may_take_letters(self, pack: Pack) -> bool:
        return any(self._takes_letters(c.trunk.id) and not c.blocks for c in pack.channels)

    def _refusal_cause(self, offer: Offer) -> int:
        pack = self.packs.get(offer.chain[0])
        return pack.plan.refusal_cause if pack else 34

    def _no_channel(self, offer: Offer, now: float) -> Refusal:
        packs = [self.packs[id_] for id_ in offer.chain]
        why = "; ".join(f"{tried.pack} {tried.why}" for tried in offer.passed_packs)
        if not any(pack.usable for pack in packs):
            reason = Reason.NO_USABLE_TRUNK
        elif offer.lettered and not any(map(self._may_take_letters, packs)):
            reason, why = Reason.INVALID_NUMBER, f"no board can dial {offer.call.called!r}"
        else:
            reason = Reason.FULL
        return self._refuse(offer, reason, self._refusal_cause(offer), why, now)

    def _refuse(self, offer: Offer, reason: Reason, cause: int, why: str, now: float) -> Refusal:
        self._end(offer, Ending.REFUSED, cause, why, now, reason)
        return Refusal(reason, cause, why)

    def _end(
        self,
        offer: Offer,
        ending: Ending,
        cause: int,
        why: str,
        now: float,
        reason: Reason | None = None,
    ) -> None:
        self._records.append(offer.record(ending, cause, why, now, reason))


def _why_none(pack: Pack) -> str:
    if not pack.usable:
        return "has no usable channel"
    if pack.tiers and pack.next_position() >= 0:
        return "has only doubtful channels left"
    return f"is full ({len(pack.channels)} channels)"
