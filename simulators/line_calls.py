"""The B channels of one span and the calls on them, from SETUP to RELEASE, glare and RESTART."""

from __future__ import annotations

from dataclasses import dataclass, field

from simulators import line_events as ev
from simulators.line import (
    BEARER,
    GLARE,
    SHAPES,
    Bearer,
    CallRef,
    Cause,
    Defect,
    Direction,
    End,
    Fault,
    Layer1,
    Layer2,
    SpanSpec,
    Step,
    step,
)
from simulators.line_timers import Agenda, Timer


@dataclass(slots=True)
class Condition:
    """What carries the calls of a span: both layers, the wire, the exchange, and faults told."""

    layer1: Layer1 = Layer1.OK
    layer2: Layer2 = Layer2.UP
    wire: Defect | None = None
    silent: bool = False
    faults: set[Fault] = field(default_factory=set)

    @property
    def in_service(self) -> bool:
        """As far as the board knows."""
        return self.layer1 is Layer1.OK and self.layer2 is not Layer2.DOWN

    @property
    def reachable(self) -> bool:
        """A message sent now arrives, either way."""
        return self.in_service and self.wire is None and not self.silent


@dataclass(slots=True)
class Call:
    """A call that is not over. After its first reply it neither meets glare nor moves."""

    ref: CallRef
    channel: Channel
    direction: Direction
    exclusive: bool
    caller: str
    called: str
    replied: bool
    far_cause: int | None = None  # the exchange hung up while it could not tell us


@dataclass(slots=True)
class Channel:
    """One B channel. `cleared` is the call, and its cause, whose release it still awaits."""

    number: int
    timeslot: int
    bearer: Bearer = Bearer.IDLE
    call: Call | None = None
    cleared: tuple[CallRef, int] | None = None
    answered: bool = False  # the RESTART under way


class LineCalls:
    """All B channels of span `number`, whose first DAHDI channel is `first`."""

    def __init__(
        self,
        number: int,
        first: int,
        spec: SpanSpec,
        condition: Condition,
        agenda: Agenda,
        calls: dict[CallRef, Call],
    ) -> None:
        self.number = number
        self.channels = [Channel(first + s - 1, s) for s in SHAPES[spec.kind].bearers]
        self._spec = spec
        self._condition = condition
        self._agenda = agenda
        self._calls = calls

    def idle(self) -> list[Channel]:
        """The idle channels, ascending."""
        return [channel for channel in self.channels if channel.bearer is Bearer.IDLE]

    def place(self, call: Call) -> None:
        """Our SETUP on an idle channel."""
        self._seize(call, call.channel)
        self._agenda.arm(Timer.T303, call.ref, 2 * self._spec.timers.t303)

    def take(self, call: Call) -> None:
        """The exchange's SETUP on any channel, by the rules of sig_pri and Annex D.3."""
        asked = call.channel
        held = asked.call
        if asked.bearer is Bearer.IDLE:
            self._seize(call, asked)
        elif held is not None and held.direction is Direction.OUTGOING and not held.replied:
            self._collide(held, call)
        elif call.exclusive:
            self.refuse(asked.number, call.ref, call.direction, Cause.CHANNEL_UNAVAILABLE)
        else:
            self._take_elsewhere(call)

    def refuse(self, channel: int | None, ref: CallRef, direction: Direction, cause: Cause) -> None:
        """The call ends before it has a channel."""
        self._agenda.out.append(
            ev.CallRefused(self._agenda.now, self.number, channel, ref, direction, int(cause))
        )

    def proceed(self, call: Call, named: int | None) -> None:
        """The exchange's first reply, on the channel it names."""
        self._agenda.disarm(Timer.T303, call.ref)
        call.replied = True
        if named is not None and named != call.channel.number:
            new = next((channel for channel in self.idle() if channel.number == named), None)
            if new is None or call.exclusive:
                # Not 44: upon that a peer might RESTART the channel and kill the call there.
                self.disconnect(call, Cause.CHANNEL_UNACCEPTABLE, End.LOCAL)
                return
            self._move(call, new)
        self._agenda.out.append(ev.CallProceeded(self._agenda.now, call.ref, call.channel.number))

    def connect(self, call: Call) -> None:
        """Either end answered."""
        call.channel.bearer = step(BEARER, call.channel.bearer, Step.CONNECT)
        call.replied = True
        self._agenda.disarm(Timer.T303, call.ref)
        self._agenda.out.append(ev.CallConnected(self._agenda.now, call.ref, call.channel.number))

    def disconnect(self, call: Call, cause: int, by: End) -> None:
        """Clear a call; its channel is idle once the release is answered or timed out."""
        channel, condition, timers = call.channel, self._condition, self._spec.timers
        channel.bearer = step(BEARER, channel.bearer, Step.DISCONNECT)
        self._clear(call, cause, by)
        if Fault.STUCK_CHANNEL in condition.faults:
            return
        if condition.layer2 is Layer2.DOWN:
            self.free(channel)
        elif condition.reachable and Fault.NO_RELEASE not in condition.faults:
            self._agenda.arm(Timer.CHANNEL, channel.number, timers.round_trip)
        else:
            self._agenda.arm(Timer.CHANNEL, channel.number, 2 * timers.t308)

    def drop(self, call: Call, cause: int, by: End = End.LOCAL) -> None:
        """Over and idle at once: there is nobody to await a release from."""
        self._clear(call, cause, by)
        self.free(call.channel)

    def restart(self, channel: Channel) -> None:
        """Our RESTART (Q.931 5.5) of one channel."""
        if channel.call is not None:
            self._clear(channel.call, Cause.TEMPORARY_FAILURE, End.LOCAL)
        channel.bearer = step(BEARER, channel.bearer, Step.RESTART)
        self._await_restart(channel)

    def free(self, channel: Channel) -> None:
        """Idle again; whatever ran for the old use ends."""
        restarting = channel.bearer is Bearer.RESTARTING
        channel.bearer = step(BEARER, channel.bearer, Step.FREE)
        self._agenda.disarm(Timer.CHANNEL, channel.number)
        now, number = self._agenda.now, channel.number
        if channel.cleared is not None:
            ref, cause = channel.cleared
            channel.cleared = None
            self._agenda.out.append(ev.ChannelReleased(now, self.number, number, ref, cause))
        if restarting:
            self._agenda.out.append(ev.ChannelRestarted(now, self.number, number, channel.answered))

    def kill(self, cause: Cause) -> None:
        """Everything ends at once, stuck or not."""
        for channel in self.channels:
            channel.answered = False
            if channel.call is not None:
                self.drop(channel.call, cause)
            elif channel.bearer is not Bearer.IDLE:
                self.free(channel)

    def link_lost(self) -> None:
        """As libpri: connected calls wait for T309, others go at once, no release is awaited."""
        t309 = self._spec.timers.t309
        for channel in self.channels:
            if channel.bearer is Bearer.RELEASING:
                if Fault.STUCK_CHANNEL not in self._condition.faults:
                    self.free(channel)
            elif channel.call is not None and (channel.bearer is not Bearer.CONNECTED or t309 <= 0):
                self.drop(channel.call, Cause.OUT_OF_ORDER)
        self._agenda.arm(Timer.T309, self.number, t309)

    def link_lost_for_good(self) -> None:
        """T309 expired (Q.931 5.8.9)."""
        for channel in self.channels:
            if channel.call is not None:
                self.drop(channel.call, Cause.OUT_OF_ORDER)

    def reached(self) -> None:
        """Messages arrive again: what the exchange could not tell us, and our RESTARTs."""
        self._agenda.disarm(Timer.T309, self.number)
        for channel in self.channels:
            if channel.call is not None and channel.call.far_cause is not None:
                self.disconnect(channel.call, channel.call.far_cause, End.REMOTE)
            elif channel.bearer is Bearer.RESTARTING:
                self._await_restart(channel)

    def _take_elsewhere(self, call: Call) -> None:
        idle = self.idle()
        if idle and not call.exclusive:
            self._seize(call, idle[-1])  # as sig_pri: the far end from where exchanges hunt
        else:
            self.refuse(call.channel.number, call.ref, call.direction, Cause.NO_CIRCUIT)

    def _collide(self, ours: Call, theirs: Call) -> None:
        channel = ours.channel
        winner = GLARE[self._spec.side, ours.exclusive, theirs.exclusive]
        kept, lost = (ours, theirs) if winner is End.LOCAL else (theirs, ours)
        self._agenda.out.append(
            ev.GlareMet(self._agenda.now, self.number, channel.number, kept.ref, lost.ref)
        )
        if winner is End.LOCAL:
            self._take_elsewhere(theirs)
            return
        idle = self.idle()
        if idle and not ours.exclusive:
            self._move(ours, idle[0])  # the exchange chooses, and hunts upwards
        else:
            self.drop(ours, Cause.NO_CIRCUIT, End.REMOTE)
        self._seize(theirs, channel)

    def _seize(self, call: Call, channel: Channel) -> None:
        setup = Step.SETUP_IN if call.direction is Direction.INCOMING else Step.SETUP_OUT
        channel.bearer = step(BEARER, channel.bearer, setup)
        channel.call, call.channel = call, channel
        self._calls[call.ref] = call
        self._agenda.out.append(
            ev.ChannelSeized(
                at=self._agenda.now,
                span=self.number,
                channel=channel.number,
                call=call.ref,
                direction=call.direction,
                caller=call.caller,
                called=call.called,
            )
        )

    def _move(self, call: Call, new: Channel) -> None:
        old = call.channel
        new.bearer = step(BEARER, new.bearer, Step.SETUP_OUT)
        old.bearer = step(BEARER, old.bearer, Step.FREE)
        old.call, new.call, call.channel = None, call, new
        self._agenda.out.append(
            ev.ChannelMoved(self._agenda.now, self.number, call.ref, old.number, new.number)
        )

    def _clear(self, call: Call, cause: int, by: End) -> None:
        """The call is over; its channel is not idle yet."""
        channel = call.channel
        del self._calls[call.ref]
        self._agenda.disarm(Timer.T303, call.ref)
        channel.call, channel.cleared = None, (call.ref, int(cause))
        self._agenda.out.append(
            ev.CallCleared(
                at=self._agenda.now,
                span=self.number,
                channel=channel.number,
                call=call.ref,
                cause=int(cause),
                by=by,
            )
        )

    def _await_restart(self, channel: Channel) -> None:
        timers, condition = self._spec.timers, self._condition
        channel.answered = condition.reachable and Fault.NO_RESTART not in condition.faults
        wait = timers.round_trip if channel.answered else (1 + timers.restarts) * timers.t316
        self._agenda.arm(Timer.CHANNEL, channel.number, wait)
