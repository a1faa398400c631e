"""What a board reports: frozen events, past tense, each with its time `at` (seconds).

`span` counts from 1; `channel` is a DAHDI channel number.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulators.line import CallRef, Direction, End, Layer1


@dataclass(frozen=True, slots=True)
class AlarmRaised:
    """The span's layer 1 shows `kind` now, Recovering included. DAHDI reports every change."""

    at: float
    span: int
    kind: Layer1


@dataclass(frozen=True, slots=True)
class AlarmCleared:
    """The span is OK again; `kind` is the last alarm it showed before recovering."""

    at: float
    span: int
    kind: Layer1


@dataclass(frozen=True, slots=True)
class DChannelDown:
    """No signalling on this span (never told of a multipoint S0)."""

    at: float
    span: int


@dataclass(frozen=True, slots=True)
class DChannelUp:
    """Signalling works."""

    at: float
    span: int


@dataclass(frozen=True, slots=True)
class ChannelSeized:
    """A call took an idle channel."""

    at: float
    span: int
    channel: int
    call: CallRef
    direction: Direction
    caller: str
    called: str


@dataclass(frozen=True, slots=True)
class ChannelMoved:
    """A call changed its B channel during setup; `old` is idle at once."""

    at: float
    span: int
    call: CallRef
    old: int
    new: int


@dataclass(frozen=True, slots=True)
class GlareMet:
    """Both ends seized `channel`; `kept` keeps it."""

    at: float
    span: int
    channel: int
    kept: CallRef
    lost: CallRef


@dataclass(frozen=True, slots=True)
class CallProceeded:
    """The exchange took our call: its B channel is settled."""

    at: float
    call: CallRef
    channel: int


@dataclass(frozen=True, slots=True)
class CallConnected:
    """Either end answered."""

    at: float
    call: CallRef
    channel: int


@dataclass(frozen=True, slots=True)
class CallRefused:
    """A call that never got a channel. `channel` is the one asked for, if any."""

    at: float
    span: int
    channel: int | None
    call: CallRef
    direction: Direction
    cause: int


@dataclass(frozen=True, slots=True)
class CallCleared:
    """A call is over; its channel is idle only when ChannelReleased says so."""

    at: float
    span: int
    channel: int
    call: CallRef
    cause: int
    by: End


@dataclass(frozen=True, slots=True)
class ChannelReleased:
    """The channel is idle again. `cause` is that of the call it carried."""

    at: float
    span: int
    channel: int
    call: CallRef
    cause: int


@dataclass(frozen=True, slots=True)
class ChannelRestarted:
    """The channel is idle after a RESTART, or after all RESTARTs went unanswered."""

    at: float
    span: int
    channel: int
    acknowledged: bool


@dataclass(frozen=True, slots=True)
class BoardUnplugged:
    """The spans are gone."""

    at: float


@dataclass(frozen=True, slots=True)
class BoardReplugged:
    """The spans are back under their old numbers, and recovering."""

    at: float


Event = (
    AlarmRaised
    | AlarmCleared
    | DChannelDown
    | DChannelUp
    | ChannelSeized
    | ChannelMoved
    | GlareMet
    | CallProceeded
    | CallConnected
    | CallRefused
    | CallCleared
    | ChannelReleased
    | ChannelRestarted
    | BoardUnplugged
    | BoardReplugged
)
