"""A board with S2M and S0 ports, as DAHDI and libpri would show it, and the lines' far ends.

Plain and synchronous: every method takes `now` (seconds, never going back), first fires the timers
that were due, and returns what happened as events in order. `advance(now)` does only that;
`next_timer()` says when it is worth calling. The tables are in `simulators/line.py`, the
machines that run them in `line_span.py` and `line_calls.py`.

The caller plays both ends: `outgoing`, `answer`, `hang_up`, `restart`, `reset` are the PBX's;
`incoming`, `proceed`, `restart_by_exchange` are the exchange's; `defect`, `lose_dchannel`,
`mute_dchannel`, `restore_dchannel`, `unplug`, `replug`, `set_fault` are accidents. What the
exchange signals on a dead line is lost on the way: such a call returns no event, but a hang-up,
which is noticed when the line is back (STATUS ENQUIRY).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from simulators import line_events as ev
from simulators.line import (
    SHAPES,
    Bearer,
    CallRef,
    Cause,
    Defect,
    Direction,
    End,
    Fault,
    Kind,
    Layer1,
    Layer2,
    SpanSpec,
)
from simulators.line_calls import Call, Channel
from simulators.line_span import Span
from simulators.line_timers import Agenda, Timer
from umpack.core.errors import OurFault, StateError


@dataclass(frozen=True, slots=True)
class ChannelView:
    """One DAHDI channel now; a D channel has no bearer. `usable`: it could take a call."""

    number: int
    span: int
    timeslot: int
    bearer: Bearer | None
    call: CallRef | None
    usable: bool


@dataclass(frozen=True, slots=True)
class SpanView:
    """One span now. `first` to `last` are its DAHDI channels, `dchannel` among them."""

    number: int
    kind: Kind
    first: int
    last: int
    dchannel: int
    plugged: bool
    layer1: Layer1
    layer2: Layer2
    calls: int


@dataclass(frozen=True, slots=True)
class CallView:
    """One call that is not over."""

    ref: CallRef
    span: int
    channel: int
    direction: Direction
    bearer: Bearer
    exclusive: bool
    caller: str
    called: str


class Board:
    """One board; spans and DAHDI channels are numbered on from `first_span` and `first_channel`."""

    def __init__(
        self, specs: Sequence[SpanSpec], *, first_span: int = 1, first_channel: int = 1
    ) -> None:
        self.plugged = True
        self._agenda = Agenda()
        self._refs = 0
        self._calls: dict[CallRef, Call] = {}
        self._spans: dict[int, Span] = {}
        self._bearers: dict[int, tuple[Span, Channel]] = {}
        first = first_channel
        for number, spec in enumerate(specs, first_span):
            if spec.multipoint and spec.kind is not Kind.S0:
                raise OurFault("only an S0 can be multipoint")
            span = self._spans[number] = Span(number, first, spec, self._agenda, self._calls)
            for channel in span.calls.channels:
                self._bearers[channel.number] = (span, channel)
            first += SHAPES[spec.kind].numbers
        self.next_span = first_span + len(specs)
        self.next_channel = first

    def __repr__(self) -> str:
        spans = ", ".join(map(repr, self._spans.values()))
        return f"<Board {'' if self.plugged else 'unplugged '}{spans}>"

    def spans(self) -> list[SpanView]:
        """All spans in order, of an unplugged board too."""
        return [
            SpanView(
                number=span.number,
                kind=span.spec.kind,
                first=span.first,
                last=span.first + SHAPES[span.spec.kind].numbers - 1,
                dchannel=span.first + SHAPES[span.spec.kind].dchannel - 1,
                plugged=self.plugged,
                layer1=span.condition.layer1,
                layer2=span.condition.layer2,
                calls=sum(channel.call is not None for channel in span.calls.channels),
            )
            for span in self._spans.values()
        ]

    def channels(self, span: int) -> list[ChannelView]:
        """All channels of a span in order, the D channel in its place."""
        found = self._span(span)
        slot = SHAPES[found.spec.kind].dchannel
        views = [self.channel(channel.number) for channel in found.calls.channels]
        views.append(ChannelView(found.first + slot - 1, span, slot, None, None, usable=False))
        return sorted(views, key=lambda view: view.number)

    def channel(self, number: int) -> ChannelView:
        """One B channel; OurFault if there is none of this number."""
        span, channel = self._bearer(number)
        return ChannelView(
            number=channel.number,
            span=span.number,
            timeslot=channel.timeslot,
            bearer=channel.bearer,
            call=channel.call.ref if channel.call is not None else None,
            usable=self.plugged and span.condition.in_service and channel.bearer is Bearer.IDLE,
        )

    def usable(self, span: int) -> list[int]:
        """The B channels of a span on which a call could be placed, ascending."""
        found = self._span(span)
        if not (self.plugged and found.condition.in_service):
            return []
        return [channel.number for channel in found.calls.idle()]

    def call(self, ref: CallRef) -> CallView | None:
        """A call as it stands, or None when it is over."""
        call = self._calls.get(ref)
        if call is None:
            return None
        return CallView(
            ref=ref,
            span=self._bearers[call.channel.number][0].number,
            channel=call.channel.number,
            direction=call.direction,
            bearer=call.channel.bearer,
            exclusive=call.exclusive,
            caller=call.caller,
            called=call.called,
        )

    def calls(self) -> list[CallView]:
        """All calls that are not over, oldest first."""
        return [view for ref in sorted(self._calls) if (view := self.call(ref)) is not None]

    def next_timer(self) -> float | None:
        """When something happens by itself, or None."""
        return self._agenda.next()

    def advance(self, now: float) -> list[ev.Event]:
        """Fire all timers due by `now`, each at its own time. StateError if time goes back."""
        self._until(now)
        return self._agenda.taken()

    def outgoing(
        self, now: float, channel: int, *, caller: str, called: str, exclusive: bool = False
    ) -> list[ev.Event]:
        """Send SETUP on this channel: ChannelSeized, or CallRefused (44 busy, 27 out of service).

        Without a first reply (`proceed`, `answer`) within twice T303 the call is cleared (102).
        """
        self._until(now)
        span, bearer = self._bearer(channel)
        ref, way = self._new_ref(), Direction.OUTGOING
        if not (self.plugged and span.condition.in_service):
            span.calls.refuse(channel, ref, way, Cause.OUT_OF_ORDER)
        elif bearer.bearer is not Bearer.IDLE:
            span.calls.refuse(channel, ref, way, Cause.CHANNEL_UNAVAILABLE)
        else:
            span.wake()
            span.calls.place(Call(ref, bearer, way, exclusive, caller, called, replied=False))
        return self._agenda.taken()

    def answer(self, now: float, ref: CallRef) -> list[ev.Event]:
        """CONNECT: ours for an incoming call, the exchange's for an outgoing one."""
        self._until(now)
        call, span = self._live(ref)
        if call is None or span is None:
            return self._agenda.taken()
        if call.direction is Direction.INCOMING or span.condition.reachable:
            span.calls.connect(call)
        return self._agenda.taken()

    def hang_up(
        self, now: float, ref: CallRef, cause: int = Cause.NORMAL, by: End = End.LOCAL
    ) -> list[ev.Event]:
        """Clear a call from either end. Of a call that is over already nothing happens."""
        self._until(now)
        call, span = self._live(ref)
        if call is not None and span is not None:
            if by is End.REMOTE and not span.condition.reachable:
                call.far_cause = cause
            else:
                span.calls.disconnect(call, cause, by)
        return self._agenda.taken()

    def restart(self, now: float, channel: int) -> list[ev.Event]:
        """Send RESTART for this channel: its call dies (41), and ChannelRestarted follows."""
        self._until(now)
        span, bearer = self._bearer(channel)
        if self.plugged:
            span.calls.restart(bearer)
        return self._agenda.taken()

    def reset(self, now: float, span: int) -> list[ev.Event]:
        """Start the span's driver anew: all calls die (41), what was stuck comes loose."""
        self._until(now)
        found = self._span(span)
        if self.plugged:
            found.reset()
        return self._agenda.taken()

    def incoming(
        self,
        now: float,
        span: int,
        *,
        caller: str,
        called: str,
        channel: int | None = None,
        exclusive: bool = False,
    ) -> list[ev.Event]:
        """SETUP from the exchange on `channel`, or on its first idle one: exchanges hunt upwards.

        ChannelSeized says which channel and call it became; CallRefused carries 27 (line dead), 34
        (no channel left), 44 (this one or none) or 82 (no such channel), as sig_pri answers.
        """
        self._until(now)
        found = self._span(span)
        ref, way = self._new_ref(), Direction.INCOMING
        if channel is None:
            asked = next(iter(found.calls.idle()), None)
        else:
            asked = next((c for c in found.calls.channels if c.number == channel), None)
        if not (self.plugged and found.condition.reachable):
            found.calls.refuse(channel, ref, way, Cause.OUT_OF_ORDER)
        elif asked is None:
            cause = Cause.NO_CIRCUIT if channel is None else Cause.NO_SUCH_CHANNEL
            found.calls.refuse(channel, ref, way, cause)
        else:
            found.wake()
            found.calls.take(Call(ref, asked, way, exclusive, caller, called, replied=True))
        return self._agenda.taken()

    def proceed(self, now: float, ref: CallRef, channel: int | None = None) -> list[ev.Event]:
        """The exchange's first reply to our SETUP, perhaps naming another channel of the span.

        One we cannot use clears the call with cause 6. StateError if the first reply was before.
        """
        self._until(now)
        call, span = self._live(ref)
        if call is not None and span is not None and span.condition.reachable:
            if call.replied:
                raise StateError(f"call {ref} has no first reply to come")
            span.calls.proceed(call, channel)
        return self._agenda.taken()

    def restart_by_exchange(self, now: float, channel: int) -> list[ev.Event]:
        """RESTART from the exchange: the channel is idle at once, its call dead (41)."""
        self._until(now)
        span, bearer = self._bearer(channel)
        if self.plugged and span.condition.reachable:
            if bearer.call is not None:
                span.calls.drop(bearer.call, Cause.TEMPORARY_FAILURE, End.REMOTE)
            else:
                span.calls.free(bearer)
        return self._agenda.taken()

    def defect(self, now: float, span: int, defect: Defect | None) -> list[ev.Event]:
        """The wire shows `defect` from now on, or (None) is good again."""
        self._until(now)
        found = self._span(span)
        if self.plugged:
            found.defect(defect)
        else:
            found.condition.wire = defect
        return self._agenda.taken()

    def lose_dchannel(self, now: float, span: int) -> list[ev.Event]:
        """The exchange releases the data link and stays away: noticed at once.

        A multipoint S0 without calls just rests, and is woken by the next call.
        """
        self._until(now)
        found = self._span(span)
        if not found.rest():
            found.condition.silent = True
            if self.plugged:
                found.lose_link()
        return self._agenda.taken()

    def mute_dchannel(self, now: float, span: int) -> list[ev.Event]:
        """The exchange falls silent: noticed after T203 and N200 polls, some 13 s."""
        self._until(now)
        found = self._span(span)
        if self.plugged:
            found.mute()
        else:
            found.condition.silent = True
        return self._agenda.taken()

    def restore_dchannel(self, now: float, span: int) -> list[ev.Event]:
        """The exchange answers again. A link given up is re-established with the next SABME."""
        self._until(now)
        found = self._span(span)
        if self.plugged:
            found.restore()
        else:
            found.condition.silent = False
        return self._agenda.taken()

    def unplug(self, now: float) -> list[ev.Event]:
        """Pull the board: all calls die (27), no span answers."""
        self._until(now)
        if self.plugged:
            for span in self._spans.values():
                span.calls.kill(Cause.OUT_OF_ORDER)
                span.condition.layer2 = Layer2.DOWN  # nobody is left to tell
            self._agenda.clear()
            self.plugged = False
            self._agenda.out.append(ev.BoardUnplugged(self._agenda.now))
        return self._agenda.taken()

    def replug(self, now: float) -> list[ev.Event]:
        """Put the board back: its spans recover, or show what is on the wire."""
        self._until(now)
        if not self.plugged:
            self.plugged = True
            self._agenda.out.append(ev.BoardReplugged(self._agenda.now))
            for span in self._spans.values():
                span.start()
        return self._agenda.taken()

    def set_fault(self, span: int, fault: Fault, *, on: bool = True) -> None:
        """Let a span misbehave from now on. What is already stuck stays so until its cure."""
        faults = self._span(span).condition.faults
        if on:
            faults.add(fault)
        else:
            faults.discard(fault)

    def _fire(self, timer: Timer, key: int) -> None:
        match timer:
            case Timer.LAYER1:
                self._spans[key].layer1_due()
            case Timer.LAYER2:
                self._spans[key].layer2_due()
            case Timer.T309:
                self._spans[key].calls.link_lost_for_good()
            case Timer.T303:
                call = self._calls[CallRef(key)]
                span, _ = self._bearers[call.channel.number]
                span.calls.disconnect(call, Cause.TIMER_EXPIRED, End.LOCAL)
            case Timer.CHANNEL:
                span, channel = self._bearer(key)
                span.calls.free(channel)
            case _:
                assert_never(timer)

    def _until(self, now: float) -> None:
        self._agenda.run(now, self._fire)

    def _new_ref(self) -> CallRef:
        self._refs += 1
        return CallRef(self._refs)

    def _live(self, ref: CallRef) -> tuple[Call, Span] | tuple[None, None]:
        if not 0 < ref <= self._refs:
            raise StateError(f"call {ref} was never made")
        call = self._calls.get(ref)
        return (call, self._bearers[call.channel.number][0]) if call else (None, None)

    def _span(self, number: int) -> Span:
        if number not in self._spans:
            raise OurFault(f"no span {number} on this board")
        return self._spans[number]

    def _bearer(self, number: int) -> tuple[Span, Channel]:
        if number not in self._bearers:
            raise OurFault(f"no B channel {number} on this board")
        return self._bearers[number]
