"""Layer 1 (alarms) and layer 2 (the D channel's data link) of one span."""

from __future__ import annotations

from typing import assert_never

from simulators import line_events as ev
from simulators.line import (
    ALARM_OF,
    LAYER1,
    LAYER2,
    Bearer,
    CallRef,
    Cause,
    Defect,
    Fault,
    Layer1,
    Layer2,
    Link,
    Signal,
    SpanSpec,
    step,
)
from simulators.line_calls import Call, Condition, LineCalls
from simulators.line_timers import Agenda, Timer


class Span:
    """One port of a board: its layers, and in `calls` its B channels."""

    def __init__(
        self,
        number: int,
        first: int,
        spec: SpanSpec,
        agenda: Agenda,
        calls: dict[CallRef, Call],
    ) -> None:
        self.number = number
        self.first = first
        self.spec = spec
        self.condition = Condition()
        self.calls = LineCalls(number, first, spec, self.condition, agenda, calls)
        self._alarm = Layer1.OK  # the last one worse than Recovering since the span was OK
        self._agenda = agenda

    def defect(self, defect: Defect | None) -> None:
        """The wire changed under a board that is plugged in."""
        condition = self.condition
        before, condition.wire = condition.wire, defect
        if before is defect:
            return
        if defect is None:
            self._signal(Signal.GOOD)
            if condition.reachable:
                self.calls.reached()
        elif before is None or ALARM_OF[before] != ALARM_OF[defect]:
            self._agenda.arm(Timer.LAYER1, self.number, self.spec.timers.debounce(defect))

    def start(self) -> None:
        """The driver starts: no link yet; layer 1 recovers, or shows what is on the wire."""
        condition = self.condition
        self._agenda.disarm(Timer.LAYER1, self.number)
        self._agenda.disarm(Timer.LAYER2, self.number)
        self._show(ALARM_OF[condition.wire][0] if condition.wire else Layer1.RECOVERING)
        if condition.layer1 is Layer1.RECOVERING:
            self._settle()

    def reset(self) -> None:
        """The driver starts anew; what was stuck comes loose."""
        self.condition.faults -= {
            Fault.STUCK_ALARM,
            Fault.STUCK_DCHANNEL,
            Fault.STUCK_CHANNEL,
        }
        self.calls.kill(Cause.TEMPORARY_FAILURE)
        self.lose_link()
        self.start()

    def lose_link(self, why: Link = Link.LOST) -> None:
        """The data link is gone, and known to be."""
        condition = self.condition
        before, condition.layer2 = condition.layer2, step(LAYER2, condition.layer2, why)
        self._establish(self.spec.timers.t200)
        if before is Layer2.DOWN:
            return
        if not self.spec.multipoint:
            self._agenda.out.append(ev.DChannelDown(self._agenda.now, self.number))
        self.calls.link_lost()

    def rest(self) -> bool:
        """Let the link of a multipoint S0 without calls go to rest; False for any other span."""
        if not self.spec.multipoint or len(self.calls.idle()) < len(self.calls.channels):
            return False
        if self.condition.layer2 is Layer2.UP:
            self.condition.layer2 = step(LAYER2, self.condition.layer2, Link.DROPPED)
            self._agenda.disarm(Timer.LAYER2, self.number)
        return True

    def wake(self) -> None:
        """A SETUP is about to use the link."""
        condition = self.condition
        if condition.layer2 is Layer2.ASLEEP:
            condition.layer2 = step(LAYER2, condition.layer2, Link.ESTABLISHED)
            if condition.silent:
                self._agenda.arm(Timer.LAYER2, self.number, self.spec.timers.t203)

    def mute(self) -> None:
        """The exchange fell silent; the board has yet to notice."""
        if not self.condition.silent:
            self.condition.silent = True
            if self.condition.layer2 is Layer2.UP:
                self._agenda.arm(Timer.LAYER2, self.number, self.spec.timers.t203)

    def restore(self) -> None:
        """The exchange answers again."""
        condition = self.condition
        condition.silent = False
        if condition.layer2 is Layer2.DOWN:
            self._establish(self.spec.timers.t200)
            return
        self._agenda.disarm(Timer.LAYER2, self.number)
        if condition.layer2 is Layer2.POLLING:
            condition.layer2 = step(LAYER2, condition.layer2, Link.ANSWER)
        if condition.reachable:
            self.calls.reached()

    def layer1_due(self) -> None:
        """A defect outlasted its debounce, or the signal settled."""
        wire = self.condition.wire
        self._signal(ALARM_OF[wire][1] if wire else Signal.SETTLED)

    def layer2_due(self) -> None:
        """T203, the N200 polls or the next SABME are due."""
        condition, timers = self.condition, self.spec.timers
        match condition.layer2:
            case Layer2.UP | Layer2.ASLEEP:  # a link at rest runs no timer: not in the table
                condition.layer2 = step(LAYER2, condition.layer2, Link.SILENCE)
                self._agenda.arm(Timer.LAYER2, self.number, timers.n200 * timers.t200)
            case Layer2.POLLING:
                self.lose_link(Link.GIVEN_UP)
            case Layer2.DOWN:
                if condition.wire is None and not condition.silent:
                    self._regain_link()
                else:
                    self._establish(timers.t200)
            case _:
                assert_never(condition.layer2)

    def _signal(self, signal: Signal) -> None:
        condition = self.condition
        self._agenda.disarm(Timer.LAYER1, self.number)
        before, after = condition.layer1, step(LAYER1, condition.layer1, signal)
        if after is not before:
            self._show(after)
        match after:
            case Layer1.OK:
                if before is not after:
                    self._establish(self.spec.timers.round_trip)
            case Layer1.RECOVERING:
                self._settle()
            case Layer1.RED | Layer1.BLUE | Layer1.YELLOW:
                # sig_pri takes a D channel in alarm out at once; it does not wait for Q.921.
                self.lose_link()
            case _:
                assert_never(after)

    def _show(self, state: Layer1) -> None:
        before, self.condition.layer1 = self.condition.layer1, state
        now = self._agenda.now
        if state is Layer1.OK:
            self._agenda.out.append(ev.AlarmCleared(now, self.number, self._alarm))
            return
        if before is Layer1.OK or state is not Layer1.RECOVERING:
            self._alarm = state
        self._agenda.out.append(ev.AlarmRaised(now, self.number, state))

    def _settle(self) -> None:
        if Fault.STUCK_ALARM not in self.condition.faults:
            self._agenda.arm(Timer.LAYER1, self.number, self.spec.timers.settle)

    def _establish(self, wait: float) -> None:
        """Send SABME after `wait`; without layer 1 there is nothing to send it on."""
        self._agenda.disarm(Timer.LAYER2, self.number)
        stuck = Fault.STUCK_DCHANNEL in self.condition.faults
        if self.condition.layer1 is Layer1.OK and not stuck:
            self._agenda.arm(Timer.LAYER2, self.number, wait)

    def _regain_link(self) -> None:
        self.condition.layer2 = step(LAYER2, self.condition.layer2, Link.ESTABLISHED)
        if not self.spec.multipoint:
            self._agenda.out.append(ev.DChannelUp(self._agenda.now, self.number))
        self.calls.reached()

    def __repr__(self) -> str:
        busy = sum(channel.bearer is not Bearer.IDLE for channel in self.calls.channels)
        state = f"{self.condition.layer1.value}/{self.condition.layer2.value}"
        size = len(self.calls.channels)
        return f"{self.number} {self.spec.kind.value} {state} {busy}/{size} busy"
