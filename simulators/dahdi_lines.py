"""The PBX's side of a simulated board: what chan_dahdi and sig_pri do with its spans.

The board is told the time and says what happened; here that becomes the progress of legs and
callers, and alarms. What Asterisk answers for a channel it cannot use was read in `dahdi_request`
(chan_dahdi.c): a dead or still releasing channel is cause 17, *user busy*, as soon as any DAHDI
channel at all has a call, else no cause; and no leg exists of which HANGUPCAUSE could tell more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, assert_never

from simulators import line_events as ev
from simulators.board import Board
from simulators.endpoints import (
    Answer,
    Behaviour,
    Clear,
    Hear,
    LegAnswered,
    LegEnded,
    LegRang,
    NoChannel,
    Reject,
    Ring,
    Silent,
    Unreachable,
)
from simulators.line import CallRef, Direction, End, Layer1, Layer2
from simulators.pbx_causes import BUSY, CONGESTION
from simulators.pbx_channel import ChannelState, PbxChannel, PbxTime
from umpack.core.errors import OurFault

ALARM_NAMES: Final = {
    Layer1.OK: "No Alarm",
    Layer1.RED: "Red Alarm",
    Layer1.BLUE: "Blue Alarm",
    Layer1.YELLOW: "Yellow Alarm",
    Layer1.RECOVERING: "Recovering",
}
"""chan_dahdi's words (`alarm2str`)."""

NO_CAUSE: Final = 0
CONGESTED: Final = frozenset({21, 27, 34, 38, 41, 42})
"""Causes sig_pri reports as congestion before an answer, while HANGUPCAUSE keeps them."""


class DahdiLeg:
    """A call out on a B channel."""

    __slots__ = ("_hear", "_lines", "_timer", "channel", "device", "number", "ref", "sip", "words")

    def __init__(self, lines: DahdiLines, number: int, channel: PbxChannel) -> None:
        self.channel = channel
        self.device = f"DAHDI/{number}"
        self.number = number
        self.ref: CallRef | None = None
        self.words = ""
        self.sip: int | None = None
        self._lines = lines
        self._hear: Hear | None = None
        self._timer: asyncio.Handle | None = None

    def start(self, hear: Hear) -> None:
        """See `Leg`."""
        self._hear = hear
        self._lines.set_up(self)

    def hang_up(self, cause: int) -> None:
        """See `Leg`."""
        self._hear = None
        self._stop_timer()
        self._lines.clear(self, cause)

    def rang(self) -> None:
        """ALERTING."""
        self.channel.state = ChannelState.RINGING
        if self._hear:
            self._hear(LegRang(self))

    def connected(self) -> None:
        """CONNECT."""
        self.channel.state = ChannelState.UP
        if self._hear:
            self._hear(LegAnswered(self))

    def ended(self, cause: int, words: str) -> None:
        """DISCONNECT from the far end, or the line has failed."""
        self._stop_timer()
        self.words = words
        hear, self._hear = self._hear, None
        if hear:
            hear(LegEnded(self, cause, CONGESTION if cause in CONGESTED else None))

    def refused_at_once(self, cause: int) -> None:
        """There was no SETUP: the line was lost since the channel was reserved."""
        self.later(0, lambda: self.ended(cause, ""))

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """The far end's next step."""
        self._timer = self._lines.time.after(seconds, call)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class DahdiCaller:
    """A call in from the line; `left` is told when the caller, or the line, has gone."""

    __slots__ = ("channel_number", "left", "ref", "span")

    def __init__(self, ref: CallRef, span: int, number: int) -> None:
        self.ref = ref
        self.span = span
        self.channel_number = number
        self.left: Callable[[int], None] = lambda cause: None


class DahdiLines:
    """All spans of a board. `far_ends` says per span how the other end takes our calls.

    With `exclusive` our SETUPs accept no other channel (`priexclusive` of chan_dahdi). `on_setup`
    is told each channel with a SETUP on its way: now the exchange can choose the same one.
    """

    def __init__(
        self,
        board: Board,
        time: PbxTime,
        *,
        far_ends: Mapping[int, Behaviour] | None = None,
        tell: Callable[[ev.Event], None] = lambda event: None,
    ) -> None:
        self.board = board
        self.time = time
        self.far_ends: dict[int, Behaviour] = dict(far_ends or {})
        self.exclusive = False
        self.on_setup: Callable[[int], None] = lambda channel: None
        self._tell = tell
        self._legs: dict[CallRef, DahdiLeg] = {}
        self._callers: dict[CallRef, DahdiCaller] = {}
        self._allocated: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._closed = False
        self.numbers = {
            view.number: span.number
            for span in board.spans()
            for view in board.channels(span.number)
            if view.bearer is not None
        }
        self._arm()

    def __repr__(self) -> str:
        return f"<DahdiLines {len(self._legs)} out, {len(self._callers)} in, {self.board!r}>"

    def drop_calls(self) -> None:
        """The PBX has died: the driver lets go of the board, and the far ends see a 41."""
        for leg in list(self._legs.values()):
            leg.hang_up(41)
        for caller in list(self._callers.values()):
            self.end(caller, 41, End.LOCAL)
        self._allocated.clear()

    def close(self) -> None:
        """The end: no more timers."""
        self.drop_calls()
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    # --- calls out -----------------------------------------------------------------------------

    def reserve(self, resource: str) -> int | NoChannel:
        """The B channel that `17/4930...` or `i2/4930...` means, or why there is none.

        Reserving comes before SETUP, as sig_pri's `allocated` does.
        """
        place = resource.partition("/")[0]
        cause = NO_CAUSE
        wanted: list[int] = []
        if place.isascii() and place.isdigit():
            wanted = [int(place)] if int(place) in self.numbers else []
            if wanted and (self._legs or self._callers or self._allocated):
                cause = BUSY
        elif place[:1] == "i" and place[1:].isdigit():
            wanted = [n for n, span in self.numbers.items() if span == int(place[1:])]
            cause = CONGESTION if wanted else NO_CAUSE
        for number in wanted:
            if number not in self._allocated and self.board.channel(number).usable:
                self._allocated.add(number)
                return number
        return NoChannel(cause)

    def set_up(self, leg: DahdiLeg) -> None:
        """Send SETUP on the leg's reserved channel."""
        called = leg.channel.variables.get("DIALEDPEERNUMBER", "").partition("/")[2]
        events = self.board.outgoing(
            self.time.now(), leg.number, caller=leg.channel.connected, called=called,
            exclusive=self.exclusive,
        )  # fmt: skip
        self._allocated.discard(leg.number)
        for event in events:
            if isinstance(event, ev.ChannelSeized) and event.direction is Direction.OUTGOING:
                leg.ref = event.call
                self._legs[event.call] = leg
            elif isinstance(event, ev.CallRefused) and event.direction is Direction.OUTGOING:
                leg.refused_at_once(event.cause)
        self._handle(events)
        if leg.ref is not None:
            self.on_setup(leg.number)
            self._play_far_end(leg, leg.ref)

    def clear(self, leg: DahdiLeg, cause: int) -> None:
        """Hang up from our side."""
        self._allocated.discard(leg.number)
        if leg.ref is not None and self._legs.pop(leg.ref, None) is not None:
            self._handle(self.board.hang_up(self.time.now(), leg.ref, cause))

    def _play_far_end(self, leg: DahdiLeg, ref: CallRef) -> None:
        """After the SETUP is out, so that glare can happen between it and the first reply."""
        behaviour = self.far_ends.get(self.numbers[leg.number], Answer())
        match behaviour:
            case Answer(after, hold):
                leg.later(0, lambda: self._far_end_rings(leg, ref, (after, hold)))
            case Clear(cause, after):
                leg.later(after, lambda: self._far_end_leaves(ref, cause))
            case Ring():
                leg.later(0, lambda: self._far_end_rings(leg, ref, None))
            case Silent():
                pass  # T303 will tell
            case Reject() | Unreachable():
                raise OurFault("the far end of a line refuses with a cause: Clear")
            case _:
                assert_never(behaviour)

    def _far_end_rings(
        self, leg: DahdiLeg, ref: CallRef, then: tuple[float, float | None] | None
    ) -> None:
        self._handle(self.board.proceed(self.time.now(), ref))
        if ref in self._legs:
            leg.rang()
            if then is not None:
                leg.later(then[0], lambda: self._far_end_answers(leg, ref, then[1]))

    def _far_end_answers(self, leg: DahdiLeg, ref: CallRef, hold: float | None) -> None:
        self._handle(self.board.answer(self.time.now(), ref))
        if hold is not None and ref in self._legs:
            leg.later(hold, lambda: self._far_end_leaves(ref, 16))

    def _far_end_leaves(self, ref: CallRef, cause: int) -> None:
        self._handle(self.board.hang_up(self.time.now(), ref, cause, End.REMOTE))

    # --- calls in ------------------------------------------------------------------------------

    def arrive(
        self, span: int, caller: str, called: str, channel: int | None = None
    ) -> DahdiCaller | int:
        """SETUP from the exchange, on `channel` and no other if one is given: the caller, or the
        cause it was refused with."""
        events = self.board.incoming(
            self.time.now(), span, caller=caller, called=called,
            channel=channel, exclusive=channel is not None,
        )  # fmt: skip
        found: DahdiCaller | int = 27
        for event in events:
            if isinstance(event, ev.CallRefused) and event.direction is Direction.INCOMING:
                found = event.cause
            elif isinstance(event, ev.ChannelSeized) and event.direction is Direction.INCOMING:
                found = DahdiCaller(event.call, span, event.channel)
                self._callers[event.call] = found
        self._handle(events)
        return found

    def answer(self, caller: DahdiCaller) -> None:
        """CONNECT towards the caller."""
        if caller.ref in self._callers:
            self._handle(self.board.answer(self.time.now(), caller.ref))

    def end(self, caller: DahdiCaller, cause: int, by: End) -> None:
        """The call in is over; `by` says who hung up."""
        if self._callers.pop(caller.ref, None) is not None:
            self._handle(self.board.hang_up(self.time.now(), caller.ref, cause, by))

    # --- accidents and time --------------------------------------------------------------------

    def happen(self, events: list[ev.Event]) -> None:
        """Pass on what an accident done to the board directly has returned."""
        self._handle(events)

    def in_alarm(self, span: int) -> bool:
        """Whether chan_dahdi counts the span's channels as in alarm: layer 1, or no D channel."""
        view = next(view for view in self.board.spans() if view.number == span)
        down = view.layer1 is not Layer1.OK or view.layer2 is Layer2.DOWN
        return down or not view.plugged

    def _handle(self, events: list[ev.Event]) -> None:
        for event in events:
            match event:
                case ev.CallConnected():
                    if leg := self._legs.get(event.call):
                        leg.connected()
                case ev.CallCleared():
                    self._cleared(event)
                case ev.ChannelMoved():
                    if leg := self._legs.get(event.call):
                        leg.number, leg.device = event.new, f"DAHDI/{event.new}"
                case _:
                    pass
            self._tell(event)
        self._arm()

    def _cleared(self, event: ev.CallCleared) -> None:
        if leg := self._legs.pop(event.call, None):
            kind = "HANGUP_REQ" if event.by is End.REMOTE else "HANGUP"
            leg.ended(event.cause, f"PRI PRI_EVENT_{kind} ({event.cause})")
        elif caller := self._callers.pop(event.call, None):
            caller.left(event.cause)

    def _arm(self) -> None:
        due = self.board.next_timer()
        if self._timer is not None:
            if due is not None and due >= self._timer_at and not self._timer.cancelled():
                return  # it will look again when it fires
            self._timer.cancel()
            self._timer = None
        if due is not None and not self._closed:
            self._timer_at = due
            self._timer = self.time.at(due, self._due)

    def _due(self) -> None:
        self._timer = None
        self._handle(self.board.advance(self.time.now()))
