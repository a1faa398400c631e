"""Comparing the ledger with the PBX: what is over, what has leaked, who else is on our lines.

A call's connection ends its lease; this is for what connections cannot tell. `compare` decides, on
lists which are older than the ledger by the time they are read:

- Ours is what was dialled by a call that lives here, before the list was asked for or after it
  came. A leg is gone before its Dial returns, so a leg of a call that has ended in between is in
  one list and not in the next: a stranger must be in two.
- The first list after the link has come up is believed at once. After a restart all calls in the
  PBX are strangers, and what umpack has dialled since lives here.
- After a restart calls are left to the dialplan until that list has come, or for as long as the
  driver waits for it (`driver.ADOPT_WITHIN`). Of calls offered without it, one that is given a B
  channel in use is refused by chan_dahdi, as the channel has an owner: the attempt ends without a
  leg and the call takes another channel. A SIP trunk may have that many calls too many, and its
  server's own limit then stands.
- Where one of our own legs sits on another B channel than its lease in two lists, the far end has
  moved it (Q.931 5.2.3), and the event that told so was lost: the lease goes after it.
- A fax goes on when umpack dies, and its caller's channel tells no port. The spool does: it knows
  the receptions that have no end, and those that are still in the PBX keep their ports.
- A lease is leaked when two lists in a row, some seconds apart, show nothing dialled by its call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from types import MappingProxyType
from typing import Protocol

from loguru import logger

from drivers.asterisk.ami_wire import AmiEvent, AmiRefused
from drivers.asterisk.calls import uniqueid_of
from drivers.asterisk.occupancy import Occupant, Place, needs_dahdi, occupants
from drivers.asterisk.outage import GIVEN_UP, Outage
from drivers.base import Clock
from umpack.core.calls import Call, CallId
from umpack.core.channel import Channel, ChannelId
from umpack.core.distributor import Distributor, Offer
from umpack.core.errors import PeerFault
from umpack.core.ledger import Lease, LeaseToken
from umpack.core.printable import printable
from umpack.core.roster import REMOVED
from umpack.core.trunk import PbxId

GRACE = 5.0
"""Seconds a leg may take to appear after its lease, and a leak must last."""

EVERY = 30.0
ADOPTED_EVERY = 2.0
"""Seconds between passes; the shorter one while there are adopted calls, whose end nothing else
tells. (AMI's Hangup would, at the price of two long events for every call for ever.)"""

_AGAIN = 0.5
"""Seconds from the first pass to the second."""
_HURRY = 1.0
"""Seconds between passes at least, however much they are wanted."""

_LOAD = 0.05
"""Part of the time that may go into passes, on a PBX that takes long to list its channels."""

_SECOND_LOOK = 0.3
_POLL = 0.1
NOBODY: Mapping[str, ChannelId] = MappingProxyType({})
LEAKED = "its channel is gone from the PBX"
OVER = "gone from the PBX"
NOT_TOLD = "its end could not have been told: the PBX does not list its channels to us"


class ChannelLists(Protocol):
    """What `AmiLink` is used for here."""

    @property
    def version(self) -> str:
        """AMI's version while the link is up, else empty."""

    async def collect(self, name: str) -> list[AmiEvent]:
        """See `AmiLink.collect`."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What one pass must know of the one before. `strangers` is None when there was none."""

    strangers: frozenset[str] | None = None
    missing: Mapping[LeaseToken, float] = field(default_factory=dict)
    """Leases without a leg, and since which pass."""
    elsewhere: frozenset[tuple[LeaseToken, ChannelId]] = frozenset()
    """Leases whose leg is on another channel."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What is to be done, in this order, and what to remember."""

    over: tuple[LeaseToken, ...]
    leaked: tuple[LeaseToken, ...]
    moved: tuple[tuple[Lease[Offer], ChannelId], ...]
    adopt: tuple[tuple[ChannelId, Occupant], ...]
    memory: Memory

    @property
    def doubtful(self) -> bool:
        """Whether a second look would tell strangers and calls that have moved from calls that were
        just ending."""
        return bool(self.memory.strangers or self.memory.elsewhere)


def compare(
    pbx: PbxId,
    distributor: Distributor,
    present: Collection[Occupant],
    callers: Collection[str],
    earlier: Memory,
    asked: float,
    left: Mapping[str, ChannelId] = NOBODY,
) -> Findings:
    """Compare the ledger of now with a list that was asked for at `asked`.

    `callers` are uniqueids of channels whose calls lived here when it was asked for; `left` those
    of receptions that another umpack has begun, and the ports of these.
    """
    mine = [lease for lease in distributor.ledger if lease.channel.trunk.pbx == pbx]
    own = [lease for lease in mine if lease.pack is not None]
    by_id = {occupant.uniqueid: occupant for occupant in present}
    living = {*callers, *(uniqueid_of(lease.holder.call) for lease in own)}
    linked = living | {by_id[caller].linkedid for caller in living if caller in by_id}

    over, kept = [], set()
    for lease in mine:
        if lease.pack is None:
            occupant = by_id.get(uniqueid_of(lease.holder.call))
            if lease.since > asked:
                continue  # the list is older, and cannot have it
            if occupant is None or not _is_on(lease.channel, occupant):
                over.append(lease.token)
            else:
                kept.add(occupant.uniqueid)

    # A leg of another call of ours that has moved there hides no leak.
    numbers = {
        occupant.place
        for occupant in present
        if not (occupant.dialled and occupant.linkedid in linked)
    }
    dialled_by: dict[str, set[str]] = {}
    for occupant in present:
        dialled_by.setdefault(occupant.linkedid, set()).add(occupant.uniqueid)
    leaked, missing = [], {}
    for lease in own:
        if asked - lease.since < GRACE or _has_leg(lease, by_id, dialled_by, numbers):
            continue
        since = missing[lease.token] = earlier.missing.get(lease.token, asked)
        if asked - since >= GRACE:
            leaked.append(lease.token)

    moved = list(_moved(own, by_id, dialled_by))
    elsewhere = frozenset((lease.token, id_) for lease, id_ in moved)
    moved = [(lease, id_) for lease, id_ in moved if (lease.token, id_) in earlier.elsewhere]
    places = _places(pbx, distributor)
    strangers = [
        occupant
        for occupant in present
        if occupant.place in places
        and occupant.uniqueid not in kept
        and not (occupant.dialled and occupant.linkedid in linked)
    ]
    sure = [o for o in strangers if earlier.strangers is None or o.uniqueid in earlier.strangers]
    freed = {*over, *leaked, *(lease.token for lease, _ in moved)}
    adopt = (
        *_places_for(sure, places, _next_in_turn(distributor), freed),
        *_ports_for(
            [by_id[uniqueid] for uniqueid in left if uniqueid in by_id.keys() - living],
            left,
            distributor.ledger.channels,
            freed,
        ),
    )
    adopted = {occupant.uniqueid for _, occupant in adopt}
    rest = frozenset(o.uniqueid for o in strangers if o.uniqueid not in adopted)
    return Findings(
        tuple(over), tuple(leaked), tuple(moved), adopt, Memory(rest, missing, elsewhere)
    )


def _is_on(channel: Channel, occupant: Occupant) -> bool:
    if channel.trunk.kind.is_service:
        return True  # it lives, and has no other place than its caller's
    # None: it lives, and only where was not told this time.
    return occupant.place is None or occupant.place == _place(channel)


def _place(channel: Channel) -> Place | None:
    trunk = channel.trunk
    # A service has nothing in the PBX but its callers' own channels: its endpoint is None.
    return channel.number if trunk.kind.is_line else trunk.endpoint


def _has_leg(
    lease: Lease[Offer],
    by_id: Mapping[str, Occupant],
    dialled_by: Mapping[str, set[str]],
    numbers: Collection[Place | None],
) -> bool:
    caller = uniqueid_of(lease.holder.call)
    linkedid = by_id[caller].linkedid if caller in by_id else caller
    if dialled_by.get(linkedid, set()) - {caller}:
        return True
    kind = lease.channel.trunk.kind
    if kind.is_service:
        return caller in by_id  # umpack itself is the far end
    # Whoever is on the B channel: it is taken.
    return kind.is_line and lease.channel.number in numbers


def _moved(
    own: Iterable[Lease[Offer]],
    by_id: Mapping[str, Occupant],
    dialled_by: Mapping[str, set[str]],
) -> Iterator[tuple[Lease[Offer], ChannelId]]:
    """Leases whose call is on another channel of their line. One leg tells; of several, nobody
    knows which is the line's."""
    for lease in own:
        trunk = lease.channel.trunk
        if not trunk.kind.is_line:
            continue
        caller = uniqueid_of(lease.holder.call)
        linkedid = by_id[caller].linkedid if caller in by_id else caller
        legs = [by_id[leg] for leg in dialled_by.get(linkedid, set()) - {caller}]
        if len(legs) != 1 or not legs[0].dialled:
            continue
        place = legs[0].place
        if isinstance(place, int) and place != lease.channel.number:
            yield lease, trunk.channel_id(place - trunk.first_number + 1)


def _places(pbx: PbxId, distributor: Distributor) -> dict[Place | None, list[Channel]]:
    places: dict[Place | None, list[Channel]] = {}
    for channel in distributor.ledger.channels.values():
        if channel.trunk.pbx == pbx and (place := _place(channel)) is not None:
            places.setdefault(place, []).append(channel)
    return places


def _next_in_turn(distributor: Distributor) -> set[ChannelId]:
    return {
        pack.channels[position].id
        for pack in distributor.packs.values()
        if (position := pack.next_position()) >= 0
    }


def _places_for(
    strangers: Iterable[Occupant],
    places: Mapping[Place | None, list[Channel]],
    next_in_turn: Collection[ChannelId],
    freed: Collection[LeaseToken],
) -> Iterator[tuple[ChannelId, Occupant]]:
    """A B channel is what it is; of an endpoint the slot that is used last.

    A stranger who finds no slot free waits: a SIP trunk may have more calls than it has slots.
    """
    taken: set[ChannelId] = set()
    for stranger in strangers:
        free = [
            channel
            for channel in places[stranger.place]
            if channel.id not in taken and _is_free(channel, freed)
        ]
        if free:
            channel = min(free, key=lambda c: (bool(c.blocks), c.id in next_in_turn, -c.slot))
            taken.add(channel.id)
            yield channel.id, stranger


def _ports_for(
    callers: Iterable[Occupant],
    left: Mapping[str, ChannelId],
    channels: Mapping[ChannelId, Channel],
    freed: Collection[LeaseToken],
) -> Iterator[tuple[ChannelId, Occupant]]:
    """Each the port its record names, if that is still one."""
    for caller in callers:
        port = channels.get(left[caller.uniqueid])
        if port is not None and port.trunk.kind.is_service and _is_free(port, freed):
            yield port.id, caller


def _is_free(channel: Channel, freed: Collection[LeaseToken]) -> bool:
    if channel.lease is None:
        return True
    # One that has left the configuration goes with its lease.
    return channel.lease.token in freed and REMOVED not in channel.blocks


class Reconciler:
    """Passes over one PBX; `run` makes them as they are due, for as long as it is let."""

    def __init__(
        self,
        distributor: Distributor,
        ami: ChannelLists,
        pbx: PbxId,
        clock: Clock,
        calls: Callable[[], int] = lambda: 0,
        left: Callable[[PbxId], Awaitable[Mapping[str, ChannelId]]] | None = None,
    ) -> None:
        """`calls`: how many the PBX has sent so far."""
        self.passes = 0
        """Passes that have come to their end, since the start."""
        self.works = True
        """The PBX has not refused to list its channels: the end of an adopted call will be told."""
        self._calls = calls
        self._outage = Outage()
        self._due = 0.0
        self._looked = -inf
        self._distributor = distributor
        self._ami = ami
        self._pbx = pbx
        self._now = clock
        self._left = left
        self._memory = Memory()
        self._dahdi_refused = False
        self._took = 0.0

    @property
    def pause(self) -> float:
        """Seconds until the next pass is due."""
        adopted = any(
            lease.pack is None and lease.channel.trunk.pbx == self._pbx
            for lease in self._distributor.ledger
        )
        return max(ADOPTED_EVERY if adopted else EVERY, self._took / _LOAD)

    def hurry(self) -> None:
        """Somebody was adopted whose end only a pass can tell: pass soon."""
        self._due = min(self._due, self._looked + max(_HURRY, self._took / _LOAD))

    async def run(self) -> None:
        """Pass after pass while the link is up, the first one as soon as it is. Never returns."""
        loop = asyncio.get_running_loop()
        first = True
        while True:
            if not self._ami.version:
                # Whatever was in the PBX may be gone, and somebody else there in its place.
                self._memory, self._due, first = Memory(), 0.0, True
                if self._outage.look(self._now(), self._calls()):
                    self._give_up(GIVEN_UP)
            elif loop.time() >= self._due:
                self._outage.over()
                self._looked, self._due = loop.time(), inf
                try:
                    await self.once()
                except AmiRefused as fault:
                    logger.warning("pbx {}: not reconciled: {}", self._pbx, printable(str(fault)))
                    self.works = False
                    self._give_up(NOT_TOLD)
                except PeerFault as fault:
                    logger.debug("pbx {}: not reconciled: {}", self._pbx, printable(str(fault)))
                # Calls that asked before we were there are placed by the dialplan meanwhile.
                pause, first = min(self.pause, _AGAIN) if first else self.pause, False
                self._due = min(self._due, loop.time() + pause)
            await asyncio.sleep(_POLL)

    async def once(self) -> None:
        """One pass, with a second look where there are strangers. Raises `PeerFault`."""
        findings = await self._look()
        if findings.doubtful:
            await asyncio.sleep(_SECOND_LOOK)
            await self._look()

    async def _look(self) -> Findings:
        # Only before the first pass can there be receptions of another umpack's.
        left = NOBODY
        if self._left is not None and self._memory.strangers is None:
            left = await self._left(self._pbx)
        asked = self._now()
        callers = {
            uniqueid_of(lease.holder.call)
            for lease in self._distributor.ledger
            if lease.pack is not None and lease.channel.trunk.pbx == self._pbx
        }
        channels = await self._ami.collect("CoreShowChannels")
        dahdi = await self._dahdi() if needs_dahdi(channels) else []
        self._took = self._now() - asked
        present = occupants(channels, dahdi)
        findings = compare(
            self._pbx, self._distributor, present, callers, self._memory, asked, left
        )
        self._memory = findings.memory
        self._carry_out(findings)
        self.passes += 1
        self.works = True
        return findings

    async def _dahdi(self) -> list[AmiEvent]:
        try:
            lines = await self._ami.collect("DAHDIShowChannels")
        except AmiRefused as fault:
            if not self._dahdi_refused:
                self._dahdi_refused = True
                logger.warning(
                    "pbx {}: B channels cannot be told: {}", self._pbx, printable(str(fault))
                )
            return []
        self._dahdi_refused = False
        return lines

    def _carry_out(self, findings: Findings) -> None:
        distributor, now = self._distributor, self._now()
        for token in findings.over:
            distributor.abandon(token, now, OVER)
        for token in findings.leaked:
            logger.error("pbx {}: lease {} has leaked: {}", self._pbx, token, LEAKED)
            distributor.abandon(token, now, LEAKED)
        left = list(findings.moved)
        while still := [move for move in left if not self._follow(*move)]:
            if len(still) == len(left):
                break  # held by others: theirs may be over by the next pass
            left = still
        for id_, stranger in findings.adopt:
            call_id = CallId(f"{self._pbx}-{stranger.uniqueid}-adopted")
            call = Call(call_id, self._pbx, stranger.called, stranger.caller, "", stranger.name)
            if distributor.adopt(id_, call, now):
                logger.info(
                    "pbx {}: {} is taken by {}", self._pbx, id_, printable(stranger.name, 100)
                )

    def _follow(self, lease: Lease[Offer], id_: ChannelId) -> bool:
        """Whether nothing is left to do for a lease whose call has moved."""
        distributor = self._distributor
        if not distributor.ledger.holds(lease):
            return True
        before = lease.channel.id
        if before == id_ or not distributor.moved(lease, id_):
            return before == id_
        logger.info("pbx {}: a call has moved from {} to {}", self._pbx, before, id_)
        return True

    def _give_up(self, why: str) -> None:
        adopted = [
            lease.token
            for lease in self._distributor.ledger
            if lease.pack is None and lease.channel.trunk.pbx == self._pbx
        ]
        for token in adopted:
            self._distributor.abandon(token, self._now(), why)
        if adopted:
            logger.warning("pbx {}: {} adopted calls: {}", self._pbx, len(adopted), why)
