"""What a trunk's health can be, and the table of what can happen to it.

The states are those of a circuit breaker with two additions of the trade: *alarmed*, which the
line itself reports, and *slow start*, because a burst of calls onto a line that has just come up
is how it goes down again. Health says nothing of what people have set: see `administration`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from umpack.core.trunk import TrunkId


class HealthState(Enum):
    """How far a trunk is to be trusted."""

    UP = "up"
    SUSPECT = "suspect"
    """Failed lately, or its calls come out unlike its own past; used when others are busy."""
    EJECTED = "ejected"
    """Failed in a row; no calls until a time."""
    HALF_OPEN = "half-open"
    """That time is over; one trial call decides."""
    SLOW_START = "slow start"
    """Proven again; takes load gradually."""
    ALARMED = "alarmed"
    """The line, its signalling or its PBX is reported dead; no calls until that is taken back."""


class HealthEvent(Enum):
    """What moves a trunk from one state to another."""

    SUCCEEDED = "call answered"
    BLAMED = "failure blamed on it"
    EJECT = "failures at the limit, trial failed, or operator"
    SPARE = "the same, but spared, as the last usable trunk of a pack"
    READMIT = "its pack has nothing else left"
    TRIAL_DUE = "ejection over"
    RAMPED = "slow start over"
    ALARM = "alarm, debounced"
    SETTLED = "alarm gone and settled"
    UNSEEN = "alarm that nobody can see any more: AMI link down"
    SETTLED_UNPROVEN = "either of these, but ejected before the alarm"
    RESTORE = "operator restores"


_UP, _SUSPECT, _EJECTED = HealthState.UP, HealthState.SUSPECT, HealthState.EJECTED
_HALF_OPEN, _SLOW_START = HealthState.HALF_OPEN, HealthState.SLOW_START
_ALARMED = HealthState.ALARMED

TRANSITIONS: dict[HealthEvent, dict[HealthState, HealthState]] = {
    HealthEvent.SUCCEEDED: {
        _UP: _UP,
        _SUSPECT: _UP,
        _EJECTED: _EJECTED,  # an attempt from before the ejection
        _HALF_OPEN: _SLOW_START,
        _SLOW_START: _SLOW_START,
        _ALARMED: _ALARMED,  # an answer does not take back what the board says
    },
    HealthEvent.BLAMED: {
        _UP: _SUSPECT,
        _SUSPECT: _SUSPECT,
        _EJECTED: _EJECTED,
        _HALF_OPEN: _HALF_OPEN,  # an attempt older than the trial
        _SLOW_START: _SLOW_START,
        _ALARMED: _ALARMED,  # the alarm explains it
    },
    HealthEvent.EJECT: {
        _UP: _EJECTED,
        _SUSPECT: _EJECTED,
        _EJECTED: _EJECTED,
        _HALF_OPEN: _EJECTED,
        _SLOW_START: _EJECTED,
        _ALARMED: _ALARMED,  # takes effect when the alarm is over
    },
    HealthEvent.SPARE: {
        _UP: _SUSPECT,
        _SUSPECT: _SUSPECT,
        _HALF_OPEN: _SUSPECT,
        _SLOW_START: _SUSPECT,
    },
    HealthEvent.READMIT: {_EJECTED: _SUSPECT, _HALF_OPEN: _SUSPECT},
    HealthEvent.TRIAL_DUE: {_EJECTED: _HALF_OPEN},
    HealthEvent.RAMPED: {_SLOW_START: _UP},
    HealthEvent.ALARM: {
        state: _ALARMED for state in (_UP, _SUSPECT, _EJECTED, _HALF_OPEN, _SLOW_START)
    },
    # A cleared alarm is the board's own word that the line works; the end of an ejection is only
    # the end of a wait. So the one goes to slow start at once, the other must prove itself.
    HealthEvent.SETTLED: {_ALARMED: _SLOW_START},
    # It may be over or not. Kept out, a trunk would be lost until the link is back, if ever; tried,
    # it costs a call that fails at once, and three of those eject it.
    HealthEvent.UNSEEN: {_ALARMED: _SUSPECT},
    HealthEvent.SETTLED_UNPROVEN: {_ALARMED: _EJECTED},
    HealthEvent.RESTORE: {
        **{state: _UP for state in (_UP, _SUSPECT, _EJECTED, _HALF_OPEN, _SLOW_START)},
        _ALARMED: _ALARMED,  # wipes the record; the alarm is a fact
    },
}
"""A missing key is the error: nothing else may happen to a trunk."""


def health_table() -> str:
    """The table in markdown: a row per event, a column per state; `-` is what cannot happen."""
    states = tuple(HealthState)
    rows = [
        ["event", *(state.value for state in states)],
        ["---"] * (len(states) + 1),
        *(
            [event.value, *(_cell(moves, state) for state in states)]
            for event, moves in TRANSITIONS.items()
        ),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _cell(moves: dict[HealthState, HealthState], state: HealthState) -> str:
    goal = moves.get(state)
    return "-" if goal is None else "stays" if goal is state else goal.value


class Admission(Enum):
    """How a trunk is to be used for new calls, best first."""

    OPEN = "open"
    LIMITED = "limited"
    """As good as open while it has room: a trial, or slow start."""
    RESERVE = "reserve"
    """While nothing better is idle: suspect, hesitating, or an alarm not yet certain."""
    CLOSED = "closed"
    """Ejected. A pack with nothing else left may readmit it."""
    CLOSED_HARD = "closed hard"
    """Alarmed: a call there cannot succeed."""


class AlarmKind(Enum):
    """What is reported dead."""

    RED = "red"
    """LOS or LFA: we hear nothing, or no frame (G.775, G.706)."""
    AIS = "blue"
    """All ones: broken upstream of the peer (G.775)."""
    RAI = "yellow"
    """The peer does not hear us (G.732)."""
    D_CHANNEL = "D channel down"
    UNREACHABLE = "unreachable"
    """A SIP contact that does not answer OPTIONS."""


@dataclass(frozen=True, slots=True)
class HealthChange:
    """A trunk went from one state to another; for journal, metrics and alerts."""

    trunk: TrunkId
    at: float
    before: HealthState
    after: HealthState
    event: HealthEvent
    why: str


@dataclass(frozen=True, slots=True)
class HealthMemory:
    """What survives a restart. Times are seconds on the time line of `now`, which is the epoch's;
    `until` is the end of an ejection, `times` how often in a row there was one."""

    trunk: TrunkId
    state: HealthState
    since: float
    until: float
    times: int
    failures: int
    why: str
    unanswered: float | None = None
    """Share of calls not answered in its past, to one decimal; None while that is not known."""
    short: float | None = None
    """Share of calls over at once, likewise."""
