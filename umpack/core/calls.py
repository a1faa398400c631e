"""A call's way through the core: the offer, the answers to it, and the record it ends in.

What every call makes is a `value`: as fixed as the dataclasses here, and cheaper to make.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, NewType

from umpack.core.causes import Outcome, Verdict
from umpack.core.channel import ChannelId
from umpack.core.ledger import Lease
from umpack.core.pack import Exclusion, PackId
from umpack.core.trunk import PbxId, TrunkId
from umpack.core.values import value

CallId = NewType("CallId", str)


@value
class Call:
    """A call that asks for a channel. All but `id` and `pbx` comes off the line, unchecked."""

    id: CallId
    pbx: PbxId
    called: str
    caller: str = ""
    caller_name: str = ""
    inbound: str = ""
    """The PBX's name of the caller's channel."""


class Reason(Enum):
    """Why a call got no channel, or no further one."""

    FULL = "full"
    NO_USABLE_TRUNK = "no usable trunk"
    NO_ROUTE = "no route"
    MISCONFIGURED = "misconfigured"
    INVALID_NUMBER = "invalid number"
    REFUSED_BY_ROUTE = "refused by route"
    ATTEMPTS_FAILED = "attempts failed"
    OUT_OF_TIME = "out of time"
    SHUTTING_DOWN = "shutting down"


@value
class Assignment:
    """Dial this, for at most `timeout` seconds; then call `Distributor.outcome` with the lease."""

    lease: Lease[Any]
    channel: ChannelId
    dial: str
    timeout: float
    attempt: int
    """Counts from 1."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """End the call towards the caller with this Q.850 cause. No lease is held any more."""

    reason: Reason
    cause: int
    why: str


@dataclass(frozen=True, slots=True)
class Done:
    """The call has had its answer: it was connected and is over, or the far end said no.

    `cause` is what the caller is to be told (Q.850; 16 after a connected call).
    """

    cause: int


Decision = Assignment | Refusal | Done


@value
class Attempt:
    """One try of a call on one channel, after its end."""

    channel: ChannelId
    trunk: TrunkId
    pack: PackId
    position: int
    """Counts from 1."""
    after: ChannelId | None
    """The channel the hunt began behind, which was the last assigned; None: from the first."""
    passed_over: int
    """Positions between there and the channel that were busy, blocked or tried before."""
    started: float
    ended: float
    outcome: Outcome
    verdict: Verdict


class Ending(Enum):
    """How a call ended, as seen by umpack."""

    CONNECTED = "connected"
    DECLINED = "declined"
    """The far end gave the call's own answer: busy, unallocated number, ..."""
    REFUSED = "refused"
    """umpack had no channel, or no further one."""
    ABANDONED = "abandoned"
    """The caller hung up, or the connection to the PBX ended, before an answer."""
    ADOPTED = "adopted"
    """Found in the PBX on one of our channels, and over now; another umpack, or somebody else, had
    placed it there."""
    LEAKED = "leaked"
    """Its channel was gone from the PBX while its connection to us still stood."""


@dataclass(frozen=True, slots=True)
class PackTried:
    """What a call found in one pack of its chain when it got no channel there."""

    pack: PackId
    why: str
    exclusions: tuple[Exclusion, ...] = ()


@value
class CallRecord:
    """The one record every offer ends in."""

    call: Call
    offered: float
    ended: float
    ending: Ending
    cause: int
    why: str
    route: str
    attempts: tuple[Attempt, ...]
    passed_packs: tuple[PackTried, ...]
    """Packs of the chain that had nothing for the call, overflow in the order it was tried."""
    exclusions: tuple[Exclusion, ...]
    """Members left out of the hunt in the pack that served, at the last assignment."""
    reason: Reason | None = None
    answered: float | None = None
    """When the far end answered, where the driver could tell."""
    candidates: tuple[PackId, ...] = ()
    """The packs that could serve it, overflow in the order it would be tried; none without a
    route."""

    @property
    def channel(self) -> ChannelId | None:
        """The channel that served the call, or was tried last."""
        return self.attempts[-1].channel if self.attempts else None
