"""What an ISDN line is: its kinds, timers, faults and state tables.

Nothing here acts; `simulators/board.py` runs these tables. A missing table key is an error
(`step`). Sources: Q.931 (call control, restart, Annex D.3), Q.921 (data link), Q.850 (causes);
debounce and settling times as in DAHDI's wct4xxp, timer values as in libpri.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final, NewType, TypeVar

from umpack.core.errors import StateError

CallRef = NewType("CallRef", int)


class Kind(Enum):
    """The access."""

    S2M = "s2m"
    S0 = "s0"


@dataclass(frozen=True, slots=True)
class Shape:
    """Timeslots of an access. DAHDI numbers all of them in turn, the D channel too."""

    bearers: tuple[int, ...]
    dchannel: int

    @property
    def numbers(self) -> int:
        """How many DAHDI channel numbers a span of this shape takes."""
        return len(self.bearers) + 1


SHAPES: Final[Mapping[Kind, Shape]] = {
    Kind.S2M: Shape((*range(1, 16), *range(17, 32)), 16),
    Kind.S0: Shape((1, 2), 3),
}


class Side(Enum):
    """Which end of the line our board plays; the network side wins when both ends are equal."""

    USER = "user"
    NETWORK = "network"


class Direction(Enum):
    """As the PBX sees a call."""

    INCOMING = "incoming"
    OUTGOING = "outgoing"


class End(Enum):
    """Who did it: our board or the exchange."""

    LOCAL = "local"
    REMOTE = "remote"


class Defect(Enum):
    """What the receiver of the board sees on the wire."""

    LOS = "loss of signal"
    LFA = "loss of frame alignment"
    AIS = "alarm indication signal"
    RAI = "remote alarm indication"


class Layer1(Enum):
    """State of a span as DAHDI names it."""

    OK = "ok"
    RED = "red"
    BLUE = "blue"
    YELLOW = "yellow"
    RECOVERING = "recovering"


class Layer2(Enum):
    """State of the D channel's data link."""

    UP = "up"
    POLLING = "polling"  # Q.921 timer recovery: silent, not yet given up
    ASLEEP = "asleep"  # a multipoint S0 at rest: released by the exchange, woken by the next call
    DOWN = "down"


class Bearer(Enum):
    """State of a B channel."""

    IDLE = "idle"
    INCOMING = "incoming"
    OUTGOING = "outgoing"
    CONNECTED = "connected"
    RELEASING = "releasing"
    RESTARTING = "restarting"


class Signal(Enum):
    """Inputs of layer 1."""

    RED_SEEN = "red seen"
    BLUE_SEEN = "blue seen"
    YELLOW_SEEN = "yellow seen"
    GOOD = "signal good"
    SETTLED = "settled"


class Link(Enum):
    """Inputs of layer 2."""

    SILENCE = "T203 expired"
    ANSWER = "poll answered"
    GIVEN_UP = "N200 polls unanswered"
    LOST = "link lost"
    DROPPED = "link released at rest"
    ESTABLISHED = "link established"


class Step(Enum):
    """Inputs of a B channel."""

    SETUP_IN = "SETUP received"
    SETUP_OUT = "SETUP sent"
    CONNECT = "CONNECT"
    DISCONNECT = "DISCONNECT"
    FREE = "free"
    RESTART = "RESTART"


class Cause(IntEnum):
    """The Q.850 causes a line gives by itself."""

    CHANNEL_UNACCEPTABLE = 6
    NORMAL = 16
    OUT_OF_ORDER = 27
    NO_CIRCUIT = 34
    TEMPORARY_FAILURE = 41
    CHANNEL_UNAVAILABLE = 44
    NO_SUCH_CHANNEL = 82
    TIMER_EXPIRED = 102


class Fault(Enum):
    """Misbehaviour a span can be told to show, each seen in the field."""

    STUCK_ALARM = "alarm never settles"  # until the span is reset
    STUCK_DCHANNEL = "D channel stays down after an alarm"  # until the span is reset
    STUCK_CHANNEL = "released channel never becomes idle"  # until RESTART or reset
    NO_RELEASE = "RELEASE is not answered"
    NO_RESTART = "RESTART is not answered"


ALARM_OF: Final[Mapping[Defect, tuple[Layer1, Signal]]] = {
    Defect.LOS: (Layer1.RED, Signal.RED_SEEN),
    Defect.LFA: (Layer1.RED, Signal.RED_SEEN),
    Defect.AIS: (Layer1.BLUE, Signal.BLUE_SEEN),
    Defect.RAI: (Layer1.YELLOW, Signal.YELLOW_SEEN),
}

LAYER1: Final[Mapping[tuple[Layer1, Signal], Layer1]] = {
    # A defect that outlasted its debounce time shows at once, whatever was shown before.
    **{(state, Signal.RED_SEEN): Layer1.RED for state in Layer1},
    **{(state, Signal.BLUE_SEEN): Layer1.BLUE for state in Layer1},
    **{(state, Signal.YELLOW_SEEN): Layer1.YELLOW for state in Layer1},
    (Layer1.OK, Signal.GOOD): Layer1.OK,  # a glitch shorter than the debounce time
    (Layer1.RED, Signal.GOOD): Layer1.RECOVERING,
    (Layer1.BLUE, Signal.GOOD): Layer1.RECOVERING,
    (Layer1.YELLOW, Signal.GOOD): Layer1.RECOVERING,
    (Layer1.RECOVERING, Signal.GOOD): Layer1.RECOVERING,
    (Layer1.RECOVERING, Signal.SETTLED): Layer1.OK,
}

LAYER2: Final[Mapping[tuple[Layer2, Link], Layer2]] = {
    (Layer2.UP, Link.SILENCE): Layer2.POLLING,
    (Layer2.UP, Link.DROPPED): Layer2.ASLEEP,
    (Layer2.POLLING, Link.ANSWER): Layer2.UP,
    (Layer2.POLLING, Link.GIVEN_UP): Layer2.DOWN,
    (Layer2.ASLEEP, Link.ESTABLISHED): Layer2.UP,
    (Layer2.DOWN, Link.ESTABLISHED): Layer2.UP,
    **{(state, Link.LOST): Layer2.DOWN for state in Layer2},
}

BEARER: Final[Mapping[tuple[Bearer, Step], Bearer]] = {
    (Bearer.IDLE, Step.SETUP_IN): Bearer.INCOMING,
    (Bearer.IDLE, Step.SETUP_OUT): Bearer.OUTGOING,
    (Bearer.INCOMING, Step.CONNECT): Bearer.CONNECTED,
    (Bearer.OUTGOING, Step.CONNECT): Bearer.CONNECTED,
    (Bearer.INCOMING, Step.DISCONNECT): Bearer.RELEASING,
    (Bearer.OUTGOING, Step.DISCONNECT): Bearer.RELEASING,
    (Bearer.CONNECTED, Step.DISCONNECT): Bearer.RELEASING,
    **{(state, Step.FREE): Bearer.IDLE for state in Bearer},
    **{(state, Step.RESTART): Bearer.RESTARTING for state in Bearer},  # Q.931 5.5: whatever it does
}

# Call collision on one B channel, Q.931 Annex D.3: (our side, our SETUP exclusive, theirs
# exclusive) -> who keeps the channel. The loser is moved to another channel if its SETUP was not
# exclusive, else cleared (34).
GLARE: Final[Mapping[tuple[Side, bool, bool], End]] = {
    (Side.USER, False, False): End.REMOTE,
    (Side.USER, True, True): End.REMOTE,
    (Side.USER, True, False): End.LOCAL,
    (Side.USER, False, True): End.REMOTE,
    (Side.NETWORK, False, False): End.LOCAL,
    (Side.NETWORK, True, True): End.LOCAL,
    (Side.NETWORK, True, False): End.LOCAL,
    (Side.NETWORK, False, True): End.REMOTE,
}

State = TypeVar("State", bound=Enum)
Input = TypeVar("Input", bound=Enum)


def step(table: Mapping[tuple[State, Input], State], state: State, happened: Input) -> State:
    """The next state, or StateError where the table has none."""
    try:
        return table[state, happened]
    except KeyError:
        raise StateError(f"{happened.name} in state {type(state).__name__}.{state.name}") from None


@dataclass(frozen=True, slots=True)
class Timers:
    """Seconds, but for the counts `n200`, `restarts`. With T309 = 0 calls die with the link."""

    alarm: float = 2.5  # wct4xxp debounce of LOS, LFA and AIS
    rai: float = 0.5  # and of RAI
    settle: float = 5.0  # DAHDI's time in Recovering
    t200: float = 1.0
    n200: int = 3
    t203: float = 10.0
    t303: float = 4.0  # SETUP to first reply, sent twice
    t308: float = 4.0  # RELEASE to its answer, sent twice
    t309: float = 6.0  # connected calls outlive the D channel for so long
    t316: float = 120.0  # RESTART to its answer
    restarts: int = 2  # further RESTARTs before the channel is taken back anyway
    round_trip: float = 0.02

    def debounce(self, defect: Defect) -> float:
        """How long `defect` must last to become an alarm."""
        return self.rai if defect is Defect.RAI else self.alarm


@dataclass(frozen=True, slots=True)
class SpanSpec:
    """One port of a board. A `multipoint` S0 may let its data link rest without being down."""

    kind: Kind
    side: Side = Side.USER
    multipoint: bool = False
    timers: Timers = Timers()
