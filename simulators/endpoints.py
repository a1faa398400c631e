"""SIP servers behind the simulated PBX: how they take calls, and the legs towards them.

A leg is what Dial has of one destination: it is started once, tells what happens to it through
`hear`, and is hung up at most once from our side. After `LegEnded` it tells nothing more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, assert_never

from simulators.pbx_causes import cause_of_sip, sip_words
from simulators.pbx_channel import ChannelState, PbxChannel, PbxTime
from umpack.core.errors import OurFault

# --- how a far end behaves ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """Ring, answer `after` seconds; hang up `hang_up_after` the answer unless the caller does."""

    after: float = 0.0
    hang_up_after: float | None = None


@dataclass(frozen=True, slots=True)
class Reject:
    """Refuse with a final SIP status."""

    status: int
    after: float = 0.0

    def __post_init__(self) -> None:
        if not 300 <= self.status < 700:
            raise OurFault(f"SIP {self.status} refuses nothing")


@dataclass(frozen=True, slots=True)
class Clear:
    """Refuse with a Q.850 cause (the far end of an ISDN line)."""

    cause: int
    after: float = 0.0


@dataclass(frozen=True, slots=True)
class Ring:
    """Ring until the PBX gives up."""


@dataclass(frozen=True, slots=True)
class Silent:
    """Not even a provisional answer to INVITE or SETUP."""


@dataclass(frozen=True, slots=True)
class Unreachable:
    """The PBX knows that the contact is gone (OPTIONS unanswered): no channel is made."""


Behaviour = Answer | Reject | Clear | Ring | Silent | Unreachable

# --- what a leg tells --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LegRang:
    """180 Ringing, ALERTING."""

    leg: Leg


@dataclass(frozen=True, slots=True)
class LegAnswered:
    """200 OK, CONNECT."""

    leg: Leg


@dataclass(frozen=True, slots=True)
class LegEnded:
    """The far end refused or hung up, or the line failed; `leg.words` has its own words.

    `counts_as` is the cause DIALSTATUS goes by where the channel driver reports another one.
    """

    leg: Leg
    cause: int
    counts_as: int | None = None


LegEvent = LegRang | LegAnswered | LegEnded
Hear = Callable[[LegEvent], None]


class Leg(Protocol):
    """One destination of a Dial."""

    channel: PbxChannel
    device: str
    """`PJSIP/um1`, `DAHDI/17`."""
    words: str
    """The last thing the far end said, as HANGUPCAUSE(...,tech) shows it; empty for nothing."""
    sip: int | None
    """The final SIP status, if there was one."""

    def start(self, hear: Hear) -> None:
        """INVITE, SETUP."""

    def hang_up(self, cause: int) -> None:
        """CANCEL or BYE, DISCONNECT; nothing is heard after it."""


@dataclass(frozen=True, slots=True)
class NoChannel:
    """There is nothing to dial: no leg, and so no words of anybody; 0 means no cause was given."""

    cause: int


# --- SIP ---------------------------------------------------------------------------------------

# RFC 3261 timer B, 64 * T1: then the INVITE has failed as if by a 408.
TIMER_B = 32.0


class SipEndpoint:
    """One SIP server; `behaviour` and `capacity` may be changed while calls run.

    Beyond `capacity` simultaneous calls it refuses with `full_status`.
    """

    def __init__(
        self,
        name: str,
        behaviour: Behaviour,
        time: PbxTime,
        *,
        capacity: int | None = None,
        full_status: int = 486,
    ) -> None:
        if isinstance(behaviour, Clear):
            raise OurFault(f"{name}: a SIP server refuses with a SIP status, not a cause")
        self.name = name
        self.behaviour: Behaviour = behaviour
        self.capacity = capacity
        self.full_status = full_status
        self.time = time
        self.active = 0
        self.most_active = 0
        self.offered = 0
        self.answered = 0
        self.refused = 0

    def __repr__(self) -> str:
        return (
            f"<SipEndpoint {self.name} {self.behaviour}: {self.active} now, {self.offered} offered,"
            f" {self.answered} answered, {self.refused} refused>"
        )

    @property
    def reachable(self) -> bool:
        """What qualifying it would say."""
        return not isinstance(self.behaviour, Unreachable)


class SipLeg:
    """A call to a SIP server."""

    __slots__ = ("_ended", "_endpoint", "_hear", "_timer", "channel", "device", "sip", "words")

    def __init__(self, endpoint: SipEndpoint, channel: PbxChannel) -> None:
        self.channel = channel
        self.device = f"PJSIP/{endpoint.name}"
        self.words = ""
        self.sip: int | None = None
        self._endpoint = endpoint
        self._hear: Hear
        self._timer: asyncio.Handle | None = None
        self._ended = False

    def start(self, hear: Hear) -> None:
        """See `Leg`."""
        self._hear = hear
        endpoint = self._endpoint
        full = endpoint.capacity is not None and endpoint.active >= endpoint.capacity
        endpoint.offered += 1
        endpoint.active += 1
        behaviour = endpoint.behaviour
        if full:
            behaviour = Reject(endpoint.full_status)
        else:
            endpoint.most_active = max(endpoint.most_active, endpoint.active)
        match behaviour:
            case Answer():
                self._ring()
                self._after(behaviour.after, lambda: self._answer(behaviour.hang_up_after))
            case Reject():
                self._after(behaviour.after, lambda: self._refuse(behaviour.status))
            case Ring():
                self._ring()
            case Silent() | Unreachable():
                self._after(TIMER_B, lambda: self._refuse(408))
            case Clear():
                raise OurFault(f"{self.device}: a SIP server refuses with a SIP status")
            case _:
                assert_never(behaviour)

    def hang_up(self, cause: int) -> None:
        """See `Leg`."""
        self._end()

    def _after(self, seconds: float, call: Callable[[], None]) -> None:
        self._timer = self._endpoint.time.after(seconds, call)

    def _ring(self) -> None:
        self.words = sip_words(180)
        self.channel.state = ChannelState.RINGING
        self._hear(LegRang(self))

    def _answer(self, hang_up_after: float | None) -> None:
        self._endpoint.answered += 1
        self.sip, self.words = 200, sip_words(200)
        self.channel.state = ChannelState.UP
        if hang_up_after is not None:
            self._after(hang_up_after, self._leave)
        self._hear(LegAnswered(self))

    def _leave(self) -> None:
        self._end()
        self._hear(LegEnded(self, 16))

    def _refuse(self, status: int) -> None:
        self._endpoint.refused += 1
        self.sip, self.words = status, sip_words(status)
        self._end()
        self._hear(LegEnded(self, cause_of_sip(status)))

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._endpoint.active -= 1
            if self._timer is not None:
                self._timer.cancel()
