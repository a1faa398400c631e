"""The last known good order of a pack: what the dialplan needs to hunt well without umpack.

The dialplan has the pack's channels and their order; it is told what to leave out. People's drains
are left out for good. What health has closed or doubts comes last, after all overflow packs: while
umpack is away nobody tries it again, and by then it may be the only one that works. An order is a
text of `SIGNS` only, three fields parted by `/`, names parted by `:`:

    1/line1:line2.7/um2:um3      line1 and slot 7 of line2 are drained, um2 and um3 come last
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from umpack.core.channel import Channel
from umpack.core.distributor import Distributor
from umpack.core.health_states import Admission
from umpack.core.pack import Pack
from umpack.core.trunk import TrunkId

VERSION = "1"
SIGNS = string.digits + string.ascii_letters + "_.:-"
"""Of names and what parts them. Ids are letters, digits, `_` and `-`."""

_LONGEST = 900
"""Bytes; Asterisk reads lines of 1024 from a manager, name and all."""

_TRUSTED = frozenset({Admission.OPEN, Admission.LIMITED})


@dataclass(frozen=True, slots=True)
class LastOrder:
    """What to leave out of a pack, and to keep for the end."""

    out: tuple[str, ...] = ()
    """Trunks, and single B channels as `trunk.slot`."""
    last: tuple[str, ...] = ()
    """Trunks."""

    @property
    def text(self) -> str:
        """As the dialplan reads it. Too many to be said: single channels are left unsaid first, as
        a channel nobody may use costs a call less than a dead trunk."""
        out, last = list(self.out), list(self.last)
        while len(text := f"{VERSION}/{':'.join(out)}/{':'.join(last)}") > _LONGEST:
            single = next((name for name in reversed(out) if "." in name), None)
            if single is not None:
                out.remove(single)
            else:
                (last or out).pop()
        return text


def last_order(pack: Pack, distributor: Distributor) -> LastOrder:
    """The order of now."""
    sources = {drain.source for drain in distributor.drains}
    members: dict[TrunkId, list[Channel]] = {trunk: [] for trunk in pack.trunks}
    for channel in pack.channels:
        members[channel.trunk.id].append(channel)
    out: list[str] = []
    last: list[str] = []
    for trunk, channels in members.items():
        drained = [channel for channel in channels if not sources.isdisjoint(channel.blocks)]
        if len(drained) == len(channels):
            out.append(trunk)
            continue
        # The slots of a SIP trunk are a count: one of them less is nothing a dialplan could keep.
        out += [f"{trunk}.{c.slot}" for c in drained if c.trunk.kind.is_line]
        if distributor.health[trunk].admission not in _TRUSTED:
            last.append(trunk)
    return LastOrder(tuple(out), tuple(last))


def next_start(pack: Pack) -> int | None:
    """Where a cyclic pack goes on: the position behind its pointer; None if it is linear.

    It may be busy or closed. Whoever hunts from there passes it over, as umpack would.
    """
    return (pack.last + 1) % len(pack.channels) if pack.cyclic else None


def entries(packs: Iterable[Pack], distributor: Distributor) -> Mapping[str, str]:
    """All that is to be kept of these packs: `order/PACK`, and `start/PACK` of cyclic ones."""
    found: dict[str, str] = {}
    for pack in packs:
        found[f"order/{pack.id}"] = last_order(pack, distributor).text
        if (start := next_start(pack)) is not None:
            found[f"start/{pack.id}"] = str(start)
    return found
