"""A channel (one B channel or SIP slot) and the table of what can happen to it.

Only the ledger moves channels through this table; everybody else reads.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, NewType

from umpack.core.errors import StateError

if TYPE_CHECKING:
    from umpack.core.ledger import Lease
    from umpack.core.pack import Seat
    from umpack.core.trunk import Trunk

ChannelId = NewType("ChannelId", str)
"""`trunk:number`, the number being the time slot of an ISDN span or the slot of a SIP trunk."""


class ChannelState(IntEnum):
    """Where a channel is. Int, because these tables are read for every call."""

    IDLE = 0
    LEASED = 1
    BLOCKED = 2
    DRAINING = 3
    """Leased, and blocked as soon as the running call ends."""


class ChannelEvent(IntEnum):
    """What the ledger does with a channel."""

    LEASE = 0
    RELEASE = 1
    BLOCK = 2
    UNBLOCK = 3
    ADOPT = 4
    """A call is found on it that nobody here gave it."""


TRANSITIONS: dict[ChannelEvent, dict[ChannelState, ChannelState]] = {
    ChannelEvent.LEASE: {ChannelState.IDLE: ChannelState.LEASED},
    ChannelEvent.ADOPT: {
        ChannelState.IDLE: ChannelState.LEASED,
        ChannelState.BLOCKED: ChannelState.DRAINING,
    },
    ChannelEvent.RELEASE: {
        ChannelState.LEASED: ChannelState.IDLE,
        ChannelState.DRAINING: ChannelState.BLOCKED,
    },
    ChannelEvent.BLOCK: {
        ChannelState.IDLE: ChannelState.BLOCKED,
        ChannelState.LEASED: ChannelState.DRAINING,
    },
    ChannelEvent.UNBLOCK: {
        ChannelState.BLOCKED: ChannelState.IDLE,
        ChannelState.DRAINING: ChannelState.LEASED,
    },
}
"""A missing key is the error: nothing else may happen to a channel."""


LEASE, RELEASE = ChannelEvent.LEASE, ChannelEvent.RELEASE
"""What happens with every call, at hand: in Python 3.11 a member of an enum costs a tenth of a
microsecond whenever it is asked for by name."""


class Channel:
    """One channel: its place in the packs, who holds it and why it is blocked.

    `blocks` maps the source of a block (a person, health, reload) to the reason in words;
    the channel is blocked while any is left, so one source never undoes another's.
    """

    __slots__ = ("blocks", "dial_parts", "id", "lease", "number", "seats", "slot", "state", "trunk")

    def __init__(
        self, id_: ChannelId, trunk: Trunk, slot: int, number: int, dial_parts: tuple[str, ...]
    ) -> None:
        self.id = id_
        self.trunk = trunk
        self.slot = slot
        self.number = number
        self.dial_parts = dial_parts
        self.state = ChannelState.IDLE
        self.lease: Lease[Any] | None = None
        self.seats: tuple[Seat, ...] = ()
        self.blocks: dict[str, str] = {}

    def move(self, event: ChannelEvent) -> ChannelState:
        """Go where the table says and answer the new state; `StateError` where it says nothing."""
        try:
            self.state = state = TRANSITIONS[event][self.state]
        except KeyError:
            raise StateError(f"{self!r}: no {event.name.lower()} here") from None
        return state

    def __repr__(self) -> str:
        why = f" ({'; '.join(self.blocks.values())})" if self.blocks else ""
        return f"<{self.id} {self.state.name.lower()}{why}>"
