"""The Dial application of the simulated PBX: its argument, and one run of it."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, assert_never

from simulators.ami_events import PbxEvents
from simulators.endpoints import Leg, LegAnswered, LegEnded, LegRang, NoChannel
from simulators.pbx_causes import cause_text, dial_status, leg_status
from simulators.pbx_channel import ChannelState, PbxChannel, PbxTime


@dataclass(frozen=True, slots=True)
class DialArgument:
    """`(tech, resource)` destinations, seconds to try them for (infinite if none are named), and
    the letters of the options."""

    destinations: tuple[tuple[str, str], ...]
    timeout: float
    options: str = ""


def parse_dial(text: str) -> DialArgument | None:
    """Read Dial's argument as app_dial does, or None where it says INVALIDARGS.

    An argument without any destination is accepted, a destination without a slash is not. A limit
    that is not above zero is taken for none, as app_dial warns.
    """
    dialled, _, rest = text.partition(",")
    destinations = []
    for part in dialled.split("&"):
        if not part:
            continue
        tech, slash, resource = part.partition("/")
        if not slash:
            return None
        destinations.append((tech, resource))
    limit, _, options = rest.partition(",")
    try:
        seconds = float(limit)
    except ValueError:
        seconds = 0.0
    return DialArgument(
        tuple(destinations), seconds if seconds > 0 else math.inf, options.partition(",")[0]
    )


# --- what happens to a call --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The limit of this Dial has passed."""

    dialling: Dialling


@dataclass(frozen=True, slots=True)
class CallerLeft:
    """The caller hung up; `cause` is what his channel then shows."""

    cause: int


@dataclass(frozen=True, slots=True)
class CommandCame:
    """A whole line from the AGI server."""

    line: bytes


@dataclass(frozen=True, slots=True)
class ServerGone:
    """The AGI server has closed the connection, or lost it."""


Happening = LegRang | LegAnswered | LegEnded | TimedOut | CallerLeft | CommandCame | ServerGone


class Inbox:
    """What happens to one call, in order; it has one reader."""

    __slots__ = ("_items", "_loop", "_waiter")

    def __init__(self) -> None:
        self._items: deque[Happening] = deque()
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: Happening) -> None:
        """Add, and wake the reader."""
        self._items.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def put_back(self, items: list[Happening]) -> None:
        """What was read too early is read again, first."""
        self._items.extendleft(reversed(items))

    async def get(self) -> Happening:
        """The next item; waits for it."""
        while not self._items:
            self._waiter = self._loop.create_future()
            await self._waiter
        return self._items.popleft()


# --- one Dial ----------------------------------------------------------------------------------


class Exchange(Protocol):
    """What Dial needs of the PBX."""

    time: PbxTime
    events: PbxEvents

    def request(self, tech: str, resource: str, caller: PbxChannel) -> Leg | NoChannel:
        """A leg that could be started, or why there is none."""

    def forget(self, channel: PbxChannel) -> None:
        """The channel is gone."""


@dataclass(slots=True)
class DialEnd:
    """How a Dial ended. `cause` None leaves the caller's channel what it showed before: after a
    time-out HANGUPCAUSE is that of an earlier Dial (seen on Asterisk 22.10)."""

    status: str
    cause: int | None
    caller_left: bool = False
    served: Leg | None = None
    answered_at: float | None = None


_LOST_ELSEWHERE: Final = 26
_NORMAL: Final = 16


class Dialling:
    """One run of Dial for one caller."""

    def __init__(
        self,
        exchange: Exchange,
        caller: PbxChannel,
        inbox: Inbox,
        on_answer: Callable[[], None],
        on_ringing: Callable[[], None] = lambda: None,
    ) -> None:
        self._exchange = exchange
        self._caller = caller
        self._inbox = inbox
        self._on_answer = on_answer
        self._on_ringing = on_ringing
        self._begun: list[Leg] = []
        self._alive: list[Leg] = []
        self._failed: list[int] = []
        self._cause: int | None = None
        self._later: list[Happening] = []

    async def run(self, argument: DialArgument) -> DialEnd:
        """From the first leg until the call is over."""
        exchange = self._exchange
        limit: asyncio.Handle | None = None
        try:
            for tech, resource in argument.destinations:
                self._begin(tech, resource)
            if self._alive and "R" in argument.options:
                self._on_ringing()
            if self._alive and argument.timeout < math.inf:
                limit = exchange.time.after(
                    argument.timeout, lambda: self._inbox.put(TimedOut(self))
                )
            end = await self._until_answered(argument)
            if limit is not None:
                limit.cancel()
            if end.served is not None:
                await self._until_over(end, end.served)
        finally:
            # Nothing is left of these unless the PBX died under the call.
            for leg in self._begun:
                leg.hang_up(_NORMAL)
            if limit is not None:
                limit.cancel()
        self._inbox.put_back(self._later)
        return end

    def _begin(self, tech: str, resource: str) -> None:
        leg = self._exchange.request(tech, resource, self._caller)
        if isinstance(leg, NoChannel):
            self._fail(leg.cause)
            return
        self._alive.append(leg)
        self._begun.append(leg)
        self._exchange.events.dial_begin(self._caller, leg.channel, resource)
        leg.start(self._inbox.put)

    async def _until_answered(self, argument: DialArgument) -> DialEnd:
        while self._alive:
            item = await self._inbox.get()
            match item:
                case LegRang(leg) if leg in self._alive:
                    self._rang(leg)
                case LegAnswered(leg) if leg in self._alive:
                    return self._answered(leg)
                case LegEnded(leg, cause, other) if leg in self._alive:
                    counted = cause if other is None else other
                    self._close(leg, cause, leg_status(counted))
                    self._fail(cause, counted)
                case CallerLeft(cause):
                    self._close_all(cause, "CANCEL")
                    return DialEnd("CANCEL", cause, caller_left=True)
                case TimedOut(dialling) if dialling is self:
                    self._close_all(0, "NOANSWER")
                    return DialEnd("NOANSWER", self._cause)
                case _:
                    self._keep(item)
        if not argument.destinations:
            return DialEnd("CHANUNAVAIL", None)
        return DialEnd(dial_status(self._failed), self._cause)

    async def _until_over(self, end: DialEnd, leg: Leg) -> None:
        bridge = f"bridge-{leg.channel.uniqueid}"
        leg.channel.bridge = self._caller.bridge = bridge
        events = self._exchange.events
        events.bridge("BridgeEnter", bridge, 1, leg.channel)
        events.bridge("BridgeEnter", bridge, 2, self._caller)
        while True:
            item = await self._inbox.get()
            if isinstance(item, LegEnded) and item.leg is leg:
                end.cause = item.cause
                break
            if isinstance(item, CallerLeft):
                end.cause, end.caller_left = _NORMAL, True
                events.hangup_request(self._caller, _NORMAL)
                leg.hang_up(_NORMAL)
                break
            self._keep(item)
        self._caller.bridge = ""
        events.bridge("BridgeLeave", bridge, 1, self._caller)
        events.bridge("BridgeLeave", bridge, 0, leg.channel)
        self._gone(leg, end.cause)

    def _rang(self, leg: Leg) -> None:
        self._on_ringing()
        events = self._exchange.events
        events.channel("Newstate", leg.channel)
        events.dial_progress("DialState", self._caller, leg.channel, "RINGING")
        events.device_state(leg.device, "RINGING")

    def _answered(self, leg: Leg) -> DialEnd:
        events, caller = self._exchange.events, self._caller
        self._alive.remove(leg)
        self._close_all(_LOST_ELSEWHERE, "CANCEL")
        now = self._exchange.time.loop.time()
        events.channel("Newstate", leg.channel)
        events.dial_progress("DialEnd", caller, leg.channel, "ANSWER")
        if caller.state is not ChannelState.UP:
            caller.state = ChannelState.UP
            events.channel("Newstate", caller)
        events.device_state(leg.device, "INUSE")
        self._on_answer()
        return DialEnd("ANSWER", _NORMAL, served=leg, answered_at=now)

    def _fail(self, cause: int, counted: int | None = None) -> None:
        self._failed.append(cause if counted is None else counted)
        self._cause = cause

    def _close_all(self, cause: int, status: str) -> None:
        for leg in self._alive[:]:
            leg.hang_up(cause)
            self._close(leg, cause, status)

    def _close(self, leg: Leg, cause: int, status: str) -> None:
        self._alive.remove(leg)
        self._exchange.events.dial_progress("DialEnd", self._caller, leg.channel, status)
        self._gone(leg, cause)

    def _gone(self, leg: Leg, cause: int | None) -> None:
        if leg.words:
            self._caller.leg_words[leg.channel.name] = (leg.words, cause_text(cause or 0))
        self._exchange.events.hangup(leg.channel, cause or 0, leg.sip)
        self._exchange.events.device_state(leg.device, "NOT_INUSE")
        self._exchange.forget(leg.channel)

    def _keep(self, item: Happening) -> None:
        """Asterisk does not read the AGI socket while an application runs."""
        match item:
            case CommandCame() | ServerGone():
                self._later.append(item)
            case LegRang() | LegAnswered() | LegEnded() | CallerLeft() | TimedOut():
                pass  # of a leg or a Dial that is over
            case _:
                assert_never(item)
