"""The ledger: which call holds which channel.

Every busy channel is one lease with a token. Picking a channel and reserving it is one step, a
lease ends once, and every count anybody sees is derived from leases and channel states. Nothing
else in umpack moves a channel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Generic, NewType, TypeVar, cast

from umpack.core.channel import (
    LEASE,
    RELEASE,
    Channel,
    ChannelEvent,
    ChannelId,
    ChannelState,
)
from umpack.core.errors import LeaseError
from umpack.core.pack import Pack, Seat

LeaseToken = NewType("LeaseToken", int)
Holder = TypeVar("Holder")

REMOVED = "removed"
"""Block source of channels that left the configuration while a call was on them. Such a channel
lives on for that call only."""

_IDLE = ChannelState.IDLE


class Lease(Generic[Holder]):
    """One channel held by one call. Compare by identity; `token` is its name.

    `after` is the pack's pointer before the assignment (-1: none), from which the hunt began.
    An adopted call came by no pack: `pack` is None, and `position` and `after` are -1.
    """

    __slots__ = ("after", "channel", "holder", "pack", "position", "since", "token")

    def __init__(
        self,
        token: LeaseToken,
        channel: Channel,
        pack: Pack | None,
        position: int,
        after: int,
        since: float,
        holder: Holder,
    ) -> None:
        self.token = token
        self.channel = channel
        self.pack = pack
        self.position = position
        self.after = after
        self.since = since
        self.holder = holder

    def __repr__(self) -> str:
        where = f" in {self.pack.id}" if self.pack else ", adopted"
        return f"<lease {self.token} of {self.channel.id}{where}>"


class Ledger(Generic[Holder]):
    """All channels and all leases of one node."""

    def __init__(self) -> None:
        self.channels: dict[ChannelId, Channel] = {}
        self._leases: dict[LeaseToken, Lease[Holder]] = {}
        self._tokens = cast("Iterator[LeaseToken]", count(1))

    def lease_next(self, pack: Pack, now: float, holder: Holder) -> Lease[Holder] | None:
        """Take the channel the pack's strategy names; `None` when none is idle."""
        position = pack.next_position()
        return self.lease(pack, position, now, holder) if position >= 0 else None

    def lease(self, pack: Pack, position: int, now: float, holder: Holder) -> Lease[Holder]:
        """Take the channel at `position`, which must be idle, and move the pack's pointer if it is
        in turn."""
        channel = pack.channels[position]
        channel.move(LEASE)
        for seated, seat in channel.seats:
            seated.idle.discard(seat)
        token = next(self._tokens)
        lease = Lease(token, channel, pack, position, pack.last, now, holder)
        channel.lease = self._leases[token] = lease
        if pack.tiers is None or pack.in_turn(position):
            pack.last = position
        return lease

    def adopt(self, channel: Channel, now: float, holder: Holder) -> Lease[Holder]:
        """Hold a channel for a call that is on it already. No pointer moves."""
        channel.move(ChannelEvent.ADOPT)
        for pack, seat in channel.seats:
            pack.idle.discard(seat)
        token = next(self._tokens)
        lease = Lease(token, channel, None, -1, -1, now, holder)
        channel.lease = self._leases[token] = lease
        return lease

    def move(self, lease: Lease[Holder], channel: Channel) -> bool:
        """The call of a lease is on another channel than it was given, as the peer's first answer
        may say (Q.931 5.2.3). Its own is idle at once. False if that channel is held already."""
        if channel.lease is not None:
            return False
        old, old.lease = lease.channel, None
        if old.move(RELEASE) is _IDLE:
            for pack, position in old.seats:
                pack.idle.add(position)
        elif REMOVED in old.blocks:
            del self.channels[old.id]
        channel.move(ChannelEvent.ADOPT)
        for pack, position in channel.seats:
            pack.idle.discard(position)
        lease.channel, channel.lease = channel, lease
        return True

    def release(self, lease: Lease[Holder]) -> None:
        """End this very lease. One that is not held is a `LeaseError` and changes nothing."""
        if self._leases.get(lease.token) is not lease:
            raise LeaseError(f"{lease!r} is not held: ended before, or never given")
        del self._leases[lease.token]
        channel = lease.channel
        channel.lease = None
        if channel.move(RELEASE) is _IDLE:
            for pack, position in channel.seats:
                pack.idle.add(position)
        elif REMOVED in channel.blocks:
            del self.channels[channel.id]

    def block(self, channel: Channel, source: str, why: str) -> None:
        """Keep new calls off a channel for `source`, which may be blocking it already."""
        first = not channel.blocks
        channel.blocks[source] = why
        if first and channel.move(ChannelEvent.BLOCK) is ChannelState.BLOCKED:
            for pack, position in channel.seats:
                pack.idle.discard(position)
        for pack, _ in channel.seats:
            pack.forget_exclusions()

    def unblock(self, channel: Channel, source: str) -> None:
        """Take back what `source` said; harmless if it said nothing."""
        if channel.blocks.pop(source, None) is None:
            return
        if not channel.blocks and channel.move(ChannelEvent.UNBLOCK) is ChannelState.IDLE:
            for pack, position in channel.seats:
                pack.idle.add(position)
        for pack, _ in channel.seats:
            pack.forget_exclusions()

    def seat(self, packs: Iterable[Pack]) -> None:
        """Give every channel its seats in `packs`, and only in those; idle ones are theirs at
        once. This is how a new set of packs takes over, running calls and all."""
        seats: dict[ChannelId, list[Seat]] = {}
        for pack in packs:
            for position, channel in enumerate(pack.channels):
                seats.setdefault(channel.id, []).append(Seat(pack, position))
                if channel.state is ChannelState.IDLE:
                    pack.idle.add(position)
        for channel in self.channels.values():
            channel.seats = tuple(seats.get(channel.id, ()))

    def lease_of(self, token: LeaseToken) -> Lease[Holder]:
        """The lease held by a token; `LeaseError` if it is not held."""
        lease = self._leases.get(token)
        if lease is None:
            raise LeaseError(f"lease {token} is not held: released before, or never given")
        return lease

    def holds(self, lease: Lease[Holder]) -> bool:
        """Whether this very lease is held."""
        return self._leases.get(lease.token) is lease

    def __iter__(self) -> Iterator[Lease[Holder]]:
        return iter(tuple(self._leases.values()))

    def __len__(self) -> int:
        return len(self._leases)

    def __repr__(self) -> str:
        return f"<{len(self)} of {len(self.channels)} channels leased>"
