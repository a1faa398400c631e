"""What AMI tells of attempts under way: that it rings, that it is answered, where it has gone.

Hints only: each may be late, lost, or of the attempt before. What comes without them stands in the
answers to a call's own commands, and the ledger is right without any of them: a call that was moved
unheard is found by the next pass over the PBX's channels.

A call that comes in on a line of ours takes its B channel there. `DAHDIChannel` names it as the
call begins, so it is adopted at once: until the next pass, calls out would be given that channel
and, where the exchange calls a lot, one after the other. The passes tell when it is over.

Where an exchange has cleared our call with 34 or 44, and another call sits on the very channel,
both ends had chosen it at the same moment (glare, Q.931 5.7): that says nothing against channel or
trunk. If the event of that other call has not come yet, the PBX is asked, for a moment.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from drivers.asterisk.occupancy import place_of
from drivers.base import Clock
from umpack.core.calls import Call, CallId
from umpack.core.causes import Outcome, Result
from umpack.core.channel import Channel, ChannelId
from umpack.core.distributor import Distributor, Offer
from umpack.core.errors import PeerFault
from umpack.core.ledger import Lease
from umpack.core.trunk import PbxId

HINT_EVENTS: Final = frozenset({"DAHDIChannel", "DialEnd", "DialState"})
"""All events that `Hints.hear` understands."""

_RINGS: Final = frozenset({"RINGING", "PROGRESS"})
"""DialState; its third word, PROCEEDING, is before anything rings (Q.931 CALL PROCEEDING)."""

_COLLISIONS: Final = frozenset({34, 44})
"""What the loser of a channel is cleared with (Q.931 5.7, Annex D.3)."""

_SAME_MOMENT = 5.0
"""Seconds a call may have been on its channel before our SETUP for it: longer than any SETUP is
under way (T303, 4 s); a channel in use for longer is none that chan_dahdi would have dialled."""

_ASK_WITHIN = 0.25
"""Seconds a refused call may wait for the PBX to tell who is on its channel."""

_SPAN = re.compile(r"DAHDI/i([0-9]{1,6})/")

Event: TypeAlias = Mapping[str, str]
Ask: TypeAlias = Callable[[str, Mapping[str, str] | None], Awaitable[Sequence[Mapping[str, str]]]]
"""`AmiLink.collect`."""


@dataclass(slots=True)
class _Attempt:
    lease: Lease[Offer]
    rang: bool = False
    leg: str = ""
    """Uniqueid of the channel on the line, once it was seen where we have dialled it."""


@dataclass(frozen=True, slots=True)
class _Incoming:
    call: Call
    at: float


class Hints:
    """The attempts of one PBX. All methods belong to the link's loop."""

    def __init__(
        self, pbx: PbxId, distributor: Distributor, clock: Clock, ask: Ask | None = None
    ) -> None:
        self._pbx = pbx
        self._distributor = distributor
        self._now = clock
        self._ask = ask
        self._attempts: dict[str, _Attempt] = {}
        self._incoming: dict[int, _Incoming] = {}
        """By B channel the last call that came in on it."""
        self.on_adopted: Callable[[], None] = lambda: None
        """Told when a call was adopted here: passes have to tell its end."""
        self.may_adopt: Callable[[], bool] = lambda: True
        """Whether they can. A manager's user who may read calls but list no channels hears of every
        call that comes in, and never of an end: each would hold its B channel for good."""

    # -- what the calls tell ----------------------------------------------------------------

    def begin(self, caller: str, lease: Lease[Offer]) -> None:
        """The call of this channel is being tried on a lease; the one before is over."""
        self._attempts[caller] = _Attempt(lease)

    def end(self, caller: str) -> None:
        """Nothing more is tried for the call."""
        self._attempts.pop(caller, None)

    def rang(self, caller: str) -> bool | None:
        """Whether the present attempt has rung; None where nobody knows."""
        attempt = self._attempts.get(caller)
        return True if attempt is not None and attempt.rang else None

    async def is_glare(self, caller: str, lease: Lease[Offer]) -> bool:
        """Whether an attempt that `may_be_glare` has lost its B channel to a call that came in on
        it. May take `_ASK_WITHIN` seconds."""
        if self._has_come(lease.channel.number, lease):
            return True
        attempt = self._attempts.get(caller)
        return await self._somebody_is_on(lease.channel.number, attempt.leg if attempt else "")

    def lost(self, channel: Channel) -> None:
        """The attempt that lost this channel to glare is over: whose it is, is adopted there. One
        that has left the configuration has gone with the attempt."""
        known = self._distributor.ledger.channels.get(channel.id) is channel
        if known and channel.lease is None and (seen := self._incoming.get(channel.number)):
            self._adopt(channel.id, seen.call)

    def _has_come(self, number: int, lease: Lease[Offer]) -> bool:
        """Whether somebody has come in on the B channel since about when the lease began."""
        seen = self._incoming.get(number)
        return seen is not None and seen.at >= lease.since - _SAME_MOMENT

    async def _somebody_is_on(self, number: int, but: str) -> bool:
        if self._ask is None:
            return False
        try:
            async with asyncio.timeout(_ASK_WITHIN):
                rows = await self._ask("DAHDIShowChannels", {"DAHDIChannel": str(number)})
        except (PeerFault, TimeoutError):
            return False  # nobody can tell: then the far end is taken at its word
        for row in rows:
            if _number(row) == number and row.get("Uniqueid", "") not in ("", but):
                self._incoming[number] = _Incoming(self._call(row), self._now())
                return True
        return False

    # -- what the link tells ----------------------------------------------------------------

    def hear(self, name: str, event: Event) -> None:
        """Take one of `HINT_EVENTS`; what is of no attempt here says nothing."""
        if name == "DAHDIChannel":
            self._channel(event)
            return
        attempt = self._attempts.get(event.get("Uniqueid", ""))
        if attempt is None:
            return
        status = event.get("DialStatus", "")
        if name == "DialEnd" and status == "ANSWER":
            self._distributor.answered(attempt.lease, self._now())
        elif name == "DialState" and status in _RINGS:
            leg = event.get("DestChannel", "")
            attempt.rang = attempt.rang or _may_be_on(attempt.lease.channel, leg)

    def _channel(self, event: Event) -> None:
        number, uniqueid = _number(event), event.get("Uniqueid", "")
        caller = event.get("Linkedid") or uniqueid
        if number is None or not uniqueid:
            return
        if caller == uniqueid:
            call = self._call(event)
            self._incoming[number] = _Incoming(call, self._now())
            for id_ in self._channels(number):
                self._adopt(id_, call)
            return
        attempt = self._attempts.get(caller)
        if attempt is None:
            return
        channel = attempt.lease.channel
        if number == channel.number:
            attempt.leg = uniqueid
        elif uniqueid == attempt.leg and self._distributor.ledger.holds(attempt.lease):
            # The first event of a leg names the channel that was dialled: one that does not know
            # its leg from there is of the attempt before.
            slot = number - channel.trunk.first_number + 1
            self._distributor.moved(attempt.lease, channel.trunk.channel_id(slot))
            if self._has_come(channel.number, attempt.lease):
                self.lost(channel)  # ours was moved because of it, and this is told last

    def _channels(self, number: int) -> Iterator[ChannelId]:
        for trunk in self._distributor.site.trunks.values():
            slot = number - trunk.first_number + 1
            if trunk.pbx == self._pbx and trunk.kind.is_line and slot in trunk.slots:
                yield trunk.channel_id(slot)

    def _adopt(self, id_: ChannelId, call: Call) -> None:
        if self.may_adopt() and self._distributor.adopt(id_, call, self._now()):
            self.on_adopted()

    def _call(self, event: Event) -> Call:
        id_ = CallId(f"{self._pbx}-{event.get('Uniqueid', '')}-adopted")
        caller = event.get("CallerIDNum", "")
        caller = "" if caller == "<unknown>" else caller
        return Call(id_, self._pbx, event.get("Exten", ""), caller, "", event.get("Channel", ""))


def may_be_glare(lease: Lease[Offer], outcome: Outcome) -> bool:
    """Whether the attempt ended as it does for the loser of a channel."""
    return (
        outcome.cause in _COLLISIONS
        and outcome.result is Result.REFUSED
        and lease.channel.trunk.kind.is_line
    )


def _may_be_on(channel: Channel, leg: str) -> bool:
    """Whether a leg of this name can be on the channel, and so of its attempt."""
    place, trunk = place_of(leg), channel.trunk
    if isinstance(place, str):
        return trunk.endpoint is None or trunk.endpoint == place
    if place is not None:
        return not trunk.kind.is_line or channel.number == place
    span = _SPAN.match(leg)
    return span is None or trunk.span is None or str(trunk.span) == span[1]


def _number(event: Event) -> int | None:
    # "no-media (5)" is a call without a channel (on hold), "pseudo" none on a line.
    text = event.get("DAHDIChannel", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 6 else None
