"""Which mail servers are left alone for a while, so that a dead one does not slow the others.

A server that failed several times in a row rests; when the rest is over one trial goes to it, and
only its success lets the others back. Pure: `now` in seconds is an argument.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from umpack.core.errors import ConfigError, StateError


class CircuitState(Enum):
    """How a server is used."""

    CLOSED = "closed"
    """As usual."""
    OPEN = "open"
    """Not at all."""
    HALF_OPEN = "half open"
    """One trial is on its way."""


class CircuitEvent(Enum):
    """What moves a circuit."""

    WORKED = "worked"
    FAILED = "failed"
    """Not yet often enough."""
    STRUCK_OUT = "struck out"
    """Failed as often in a row as is borne."""
    TRIED = "tried"
    """A trial has begun."""
    GIVEN_UP = "given up"
    """The trial ended without saying anything about the server (cancelled)."""


_C, _E = CircuitState, CircuitEvent
TRANSITIONS: Final[Mapping[tuple[CircuitState, CircuitEvent], CircuitState]] = {
    (_C.CLOSED, _E.WORKED): _C.CLOSED,
    (_C.CLOSED, _E.FAILED): _C.CLOSED,
    (_C.CLOSED, _E.STRUCK_OUT): _C.OPEN,
    # Sessions that began before it opened end after it: a success is a success, whoever had it.
    (_C.OPEN, _E.WORKED): _C.CLOSED,
    (_C.OPEN, _E.FAILED): _C.OPEN,
    (_C.OPEN, _E.STRUCK_OUT): _C.OPEN,
    (_C.OPEN, _E.TRIED): _C.HALF_OPEN,
    (_C.HALF_OPEN, _E.WORKED): _C.CLOSED,
    (_C.HALF_OPEN, _E.FAILED): _C.OPEN,
    (_C.HALF_OPEN, _E.STRUCK_OUT): _C.OPEN,
    (_C.HALF_OPEN, _E.GIVEN_UP): _C.OPEN,
}


@dataclass(frozen=True, slots=True)
class CircuitPolicy:
    """`failures` in a row until a server rests, `rest` seconds, doubling up to `longest`."""

    failures: int = 3
    rest: float = 30.0
    longest: float = 600.0

    def __post_init__(self) -> None:
        if self.failures < 1 or not 0 < self.rest <= self.longest:
            raise ConfigError(f"circuit: failures >= 1 and 0 < rest <= longest do not hold: {self}")


class Circuit:
    """One server's."""

    __slots__ = ("_policy", "_rests", "_strikes", "state", "until", "why")

    def __init__(self, policy: CircuitPolicy) -> None:
        self._policy = policy
        self._strikes = 0
        self._rests = 0
        self.state = CircuitState.CLOSED
        self.until = 0.0
        """When the rest is over; says nothing while closed."""
        self.why = ""
        """The last failure."""

    def wait(self, now: float) -> float:
        """Seconds until it may be used; 0 if now."""
        match self.state:
            case CircuitState.CLOSED:
                return 0.0
            case CircuitState.OPEN:
                return max(0.0, self.until - now)
            case CircuitState.HALF_OPEN:
                return self._policy.rest

    def begin(self) -> bool:
        """A session begins, even if it is not its time; true if it is the trial."""
        if self.state is not CircuitState.OPEN:
            return False
        self._move(CircuitEvent.TRIED)
        return True

    def worked(self) -> bool:
        """The server did what a server does, if only to refuse; true if it had been away."""
        was_away = self.state is not CircuitState.CLOSED
        self._move(CircuitEvent.WORKED)
        self._strikes = self._rests = 0
        self.why = ""
        return was_away

    def failed(self, now: float, why: str) -> bool:
        """It did not; true if it rests from now on and did not before."""
        self.why = why
        self._strikes += 1
        before = self.state
        out = self._strikes >= self._policy.failures
        self._move(CircuitEvent.STRUCK_OUT if out else CircuitEvent.FAILED)
        # What was under way when it opened must not lengthen the rest by its own late failures.
        if self.state is CircuitState.OPEN and before is not CircuitState.OPEN:
            rest = min(self._policy.rest * 2 ** min(self._rests, 30), self._policy.longest)
            self._rests += 1
            self.until = now + rest
        return before is CircuitState.CLOSED and self.state is CircuitState.OPEN

    def given_up(self, now: float) -> None:
        """The trial said nothing; the next may begin at once."""
        if self.state is CircuitState.HALF_OPEN:
            self._move(CircuitEvent.GIVEN_UP)
            self.until = now

    def _move(self, event: CircuitEvent) -> None:
        try:
            self.state = TRANSITIONS[self.state, event]
        except KeyError:
            raise StateError(f"circuit: {event.value} while {self.state.value}") from None

    def __repr__(self) -> str:
        return f"{self.state.value}, {self._strikes} failed: {self.why}" if self.why else "closed"


class Circuits:
    """Those of all servers, by the server's name; one that was never heard of is closed."""

    __slots__ = ("_circuits", "_policy")

    def __init__(self, policy: CircuitPolicy) -> None:
        self._policy = policy
        self._circuits: dict[str, Circuit] = {}

    def of(self, server: str) -> Circuit:
        """That of one server, to be told what happens."""
        return self._circuits.setdefault(server, Circuit(self._policy))

    def __len__(self) -> int:
        return len(self._circuits)

    def forget_closed(self) -> None:
        """Drop those nothing is held against: MX of the whole world must not pile up."""
        self._circuits = {
            server: circuit
            for server, circuit in self._circuits.items()
            if circuit.state is not CircuitState.CLOSED or circuit.why
        }

    def resting(self) -> Mapping[str, Circuit]:
        """Those not closed, for status pages and alarms."""
        return {
            server: circuit
            for server, circuit in self._circuits.items()
            if circuit.state is not CircuitState.CLOSED
        }
