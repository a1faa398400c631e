"""A trunk: a line or group of channels with one fate."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NewType

from umpack.core.channel import ChannelId
from umpack.core.dial import DialTemplate
from umpack.core.service import Service

TrunkId = NewType("TrunkId", str)
PbxId = NewType("PbxId", str)


class TrunkKind(Enum):
    """What carries the channels."""

    S2M = "s2m"
    S0 = "s0"
    SIP = "sip"
    FAX = "fax"
    VOICE = "voice"
    AUTO = "auto"
    """Fax or voice, as the caller's tones say."""

    @property
    def is_service(self) -> bool:
        """Whether umpack takes the calls itself, and nothing is dialled."""
        return self in _SERVICES

    @property
    def is_line(self) -> bool:
        """Whether its channels are B channels, each one what it is; else their number is a mere
        count of calls."""
        return self in B_CHANNEL_SLOTS


B_CHANNEL_SLOTS: dict[TrunkKind, tuple[int, ...]] = {
    TrunkKind.S2M: (*range(1, 16), *range(17, 32)),
    TrunkKind.S0: (1, 2),
}
"""Time slots that carry calls. Slot 0 of an E1 is framing and 16 the D channel (G.704, Q.931);
an S0 has two B channels and the D channel after them."""

_SERVICES = frozenset({TrunkKind.FAX, TrunkKind.VOICE, TrunkKind.AUTO})

SERVICE_DIAL = DialTemplate("Service/{trunk}")
"""What stands for the dial string of a service in records; it is never dialled."""

SPAN_SIZE: dict[TrunkKind, int] = {TrunkKind.S2M: 31, TrunkKind.S0: 3}
"""Channel numbers a span takes in DAHDI's counting, which runs over all spans, D channels
included."""


@dataclass(frozen=True, slots=True)
class Trunk:
    """What the configuration says of a trunk; state lives in its channels.

    `first_number` is DAHDI's number of slot 1 (for all others: 1), so that a channel's number is
    `first_number + slot - 1`.
    """

    id: TrunkId
    kind: TrunkKind
    pbx: PbxId
    dial: DialTemplate
    slots: tuple[int, ...]
    first_number: int = 1
    span: int | None = None
    endpoint: str | None = None
    service: Service | None = None
    """Of services only."""

    def number(self, slot: int) -> int:
        """The number Asterisk knows the channel by."""
        return self.first_number + slot - 1

    def channel_id(self, slot: int) -> ChannelId:
        """The id of the channel in `slot`."""
        return ChannelId(f"{self.id}:{slot}")
