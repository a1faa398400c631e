"""The roster: the channels and packs of the present site, and what people have set on them.

A reload changes all of it at once under running calls; what is alive carries over.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Set
from itertools import chain, count
from typing import Generic

from umpack.core.administration import Drain
from umpack.core.channel import Channel, ChannelId
from umpack.core.errors import OurFault
from umpack.core.ledger import REMOVED as REMOVED  # noqa: PLC0414  # re-exported
from umpack.core.ledger import Holder, Ledger
from umpack.core.pack import Pack, PackId, carried_pointer
from umpack.core.routes import Routes
from umpack.core.site import Site
from umpack.core.trunk import Trunk


class UnknownTarget(OurFault):
    """A trunk or channel nobody has configured."""


class Roster(Generic[Holder]):
    """Everything a call can be given, by id. Empty until `reload`."""

    def __init__(self) -> None:
        self.ledger: Ledger[Holder] = Ledger()
        self.packs: dict[PackId, Pack] = {}
        self.site = Site()
        self._routes = Routes(())
        self._chains: dict[PackId, tuple[PackId, ...]] = {}
        self._drains: dict[str, Drain] = {}
        self._parked: dict[PackId, ChannelId] = {}
        """Pointers of packs that are not configured now and may come back."""

    # -- the site ---------------------------------------------------------------------------

    def reload(self, site: Site) -> None:
        """Take on a new site under running calls.

        A channel that stays keeps its lease, blocks and place in turn. A B channel is known by its
        number on its PBX, so it stays under a new name as well, and is never given twice. A channel
        that has gone while a call is on it drains, and leaves with its last call.
        """
        known = {_identity(c.trunk, c.slot): c for c in self.ledger.channels.values()}
        channels: dict[ChannelId, Channel] = {}
        fixed: list[tuple[Channel, Trunk, int, tuple[str, ...]]] = []
        for trunk in site.trunks.values():
            for slot in trunk.slots:
                id_, parts = trunk.channel_id(slot), _parts(trunk, slot)
                channel = known.pop(_identity(trunk, slot), None)
                if channel is None:
                    channel = Channel(id_, trunk, slot, trunk.number(slot), parts)
                channels[id_] = channel
                fixed.append((channel, trunk, slot, parts))
        removed = [channel for channel in known.values() if channel.lease is not None]
        names = self._names_after(channels, known.values())
        packs: dict[PackId, Pack] = {}
        for plan in site.packs.values():
            packs[plan.id] = pack = Pack(plan, [channels[id_] for id_ in plan.channels])
            pack.point_at(self._pointer_for(pack, names))
        routes = Routes(site.routes)
        chains = {id_: site.chain(id_) for id_ in packs}

        # All is prepared; from here on nothing can fail, so no half of a site is ever live.
        self._parked = {id_: at for id_, at in self.pointers.items() if id_ not in packs}
        self.site, self.packs, self._routes, self._chains = site, packs, routes, chains
        for channel, trunk, slot, parts in fixed:
            self._fix(channel, trunk, slot, parts)
        taken = channels.keys() | {channel.id for channel in removed}
        for channel in removed:
            if channel.id in channels:
                channel.id = _unused(channel.id, taken)
                taken.add(channel.id)
        self.ledger.channels = channels | {channel.id: channel for channel in removed}
        self.ledger.seat(packs.values())
        for channel in removed:
            self.ledger.block(channel, REMOVED, "removed from the configuration")
        for channel in channels.values():
            self.ledger.unblock(channel, REMOVED)
        for drain in self._drains.values():
            self._apply(drain)

    def _names_after(
        self, channels: dict[ChannelId, Channel], gone: Iterable[Channel]
    ) -> dict[int, ChannelId]:
        """What the channels of now are called in the new site, by their identity in memory.

        One that has gone keeps its name for a new line in its place, unless a channel that stays
        has taken it.
        """
        before = self.ledger.channels
        names = {id(c): id_ for id_, c in channels.items() if before.get(c.id) is c}
        taken = set(names.values())
        return names | {id(c): _unused(c.id, taken) for c in gone if c.id in taken}

    def _pointer_for(self, pack: Pack, names: dict[int, ChannelId]) -> ChannelId | None:
        before = self.packs.get(pack.id)
        if before is None:
            return self._parked.get(pack.id)
        old = [names.get(id(channel), channel.id) for channel in before.channels]
        last = old[before.last] if before.last >= 0 else None
        return carried_pointer(last, old, pack.plan.channels)

    def _fix(self, channel: Channel, trunk: Trunk, slot: int, parts: tuple[str, ...]) -> None:
        if channel.id != (id_ := trunk.channel_id(slot)):
            # What was said of the old name is not said of the new one.
            for source in tuple(channel.blocks):
                self.ledger.unblock(channel, source)
            channel.id = id_
        channel.trunk, channel.slot = trunk, slot
        channel.number, channel.dial_parts = trunk.number(slot), parts

    # -- administration ---------------------------------------------------------------------

    def drain(self, drain: Drain) -> None:
        """Take a trunk or channel out of service; its running calls finish.

        `UnknownTarget` if there is none of that id. A later drain of the same target replaces it.
        """
        if not self._members(drain.target):
            raise UnknownTarget(f"no trunk or channel {drain.target!r}")
        self._drains[drain.target] = drain
        self._apply(drain)

    def enable(self, target: str) -> bool:
        """Put back what `drain` took out; answers whether it was out."""
        drain = self._drains.pop(target, None)
        if drain is None:
            if not self._members(target):
                raise UnknownTarget(f"no trunk or channel {target!r}")
            return False
        for channel in self._members(target):
            self.ledger.unblock(channel, drain.source)
        return True

    def expire_drains(self, now: float) -> tuple[Drain, ...]:
        """Put back what was drained until now; answers those."""
        over = tuple(d for d in self._drains.values() if d.until is not None and d.until <= now)
        for drain in over:
            self.enable(drain.target)
        return over

    @property
    def drains(self) -> tuple[Drain, ...]:
        """Everything people have taken out."""
        return tuple(self._drains.values())

    def restore(
        self, drains: Iterable[Drain], pointers: Iterable[tuple[PackId, ChannelId]]
    ) -> None:
        """Take over what an earlier run had saved. What no longer exists waits for its return."""
        for drain in drains:
            self._drains[drain.target] = drain
            self._apply(drain)
        for pack_id, channel in pointers:
            if pack := self.packs.get(pack_id):
                pack.point_at(channel)
            else:
                self._parked[pack_id] = channel

    @property
    def pointers(self) -> dict[PackId, ChannelId]:
        """Where every pack stands, for saving; also those of packs that are away."""
        living = {id_: pack.pointer for id_, pack in self.packs.items() if pack.pointer}
        return self._parked | living if self._parked else living

    def _members(self, target: str) -> list[Channel]:
        if channel := self.ledger.channels.get(ChannelId(target)):
            return [channel]
        return [c for c in self.ledger.channels.values() if c.trunk.id == target]

    def _apply(self, drain: Drain) -> None:
        for channel in self._members(drain.target):
            self.ledger.block(channel, drain.source, drain.reason)


def _identity(trunk: Trunk, slot: int) -> Hashable:
    """What makes a channel the same one: a B channel its number, a SIP slot or port its name."""
    if not trunk.kind.is_line:
        return trunk.channel_id(slot)
    return trunk.pbx, trunk.number(slot)


def _unused(id_: ChannelId, taken: Set[ChannelId]) -> ChannelId:
    """A name for a channel whose own has been given to another one."""
    names = chain((f"{id_} (removed)",), (f"{id_} (removed {n})" for n in count(2)))
    return next(ChannelId(name) for name in names if name not in taken)


def _parts(trunk: Trunk, slot: int) -> tuple[str, ...]:
    return trunk.dial.parts(
        channel=trunk.number(slot),
        slot=slot,
        span=trunk.span,
        endpoint=trunk.endpoint,
        trunk=trunk.id,
    )
