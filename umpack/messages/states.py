"""What can become of a message, and of its delivery to one recipient: two tables and a ranking.

A recipient's delivery moves by events, and so does a message until it has recipients; from then on
the message's state is derived from those of its recipients, in the transaction that moves one.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum
from typing import TypeVar

from umpack.core.errors import StateError


class RecipientState(Enum):
    """How far the delivery to one recipient is."""

    QUEUED = "queued"
    SENDING = "sending"
    """Claimed by one sender, which must say how it ended."""
    RETRY = "retry"
    """Put off by a server, or none was reached; due again at a time."""
    AMBIGUOUS = "ambiguous"
    """The server may have it (RFC 1047); due again at a time, with the same Message-ID."""
    DELIVERED = "delivered"
    """A server has answered 250."""
    DEAD_LETTER = "dead letter"
    """No server will take it; only a person can say what next."""
    DECIDED = "decided"
    """A person, or a rule a person has set, has closed it."""


class RecipientEvent(Enum):
    """What moves a delivery."""

    CLAIM = "a sender takes it"
    ACCEPTED = "250 after the final dot"
    DEFERRED = "4xx, or no server reached"
    REFUSED = "5xx"
    UNCERTAIN = "connection lost or silent after the final dot"
    RELEASED = "given back, nothing was sent"
    ABANDONED = "found in sending at start: its sender died"
    EXPIRED = "too old"
    BOUNCED = "a delivery report came back"
    RETRIED = "person: try again now"
    CLOSED = "person: discard, forward or resend"


class MessageState(Enum):
    """Where a message is on its way."""

    RECEIVING = "receiving"
    """Intended: its call is being answered, or was when umpack or the PBX died."""
    COMMITTED = "committed"
    """Safe on disk, not addressed yet."""
    QUEUED = "queued"
    SENDING = "sending"
    AMBIGUOUS = "ambiguous"
    PARTIAL = "partial"
    """Delivered to some; the others wait or are dead letters."""
    DEAD_LETTER = "dead letter"
    DELIVERED = "delivered"
    DECIDED = "decided"


class MessageEvent(Enum):
    """What moves a message that has no recipients yet."""

    COMMIT = "call over, original on disk"
    ADOPT = "found without an end"
    ADDRESS = "recipients named"
    CLOSE = "person or rule: nobody is to have it"


_R, _M = RecipientState, MessageState
_QUEUED, _SENDING, _RETRY, _AMBIGUOUS = _R.QUEUED, _R.SENDING, _R.RETRY, _R.AMBIGUOUS
_DELIVERED, _DEAD, _DECIDED = _R.DELIVERED, _R.DEAD_LETTER, _R.DECIDED

RECIPIENT: dict[RecipientEvent, dict[RecipientState, RecipientState]] = {
    RecipientEvent.CLAIM: {state: _SENDING for state in (_QUEUED, _RETRY, _AMBIGUOUS)},
    RecipientEvent.ACCEPTED: {_SENDING: _DELIVERED},
    RecipientEvent.DEFERRED: {_SENDING: _RETRY},
    RecipientEvent.REFUSED: {_SENDING: _DEAD},
    RecipientEvent.UNCERTAIN: {_SENDING: _AMBIGUOUS},
    RecipientEvent.RELEASED: {_SENDING: _QUEUED},
    # Whether the server had it by then, nobody knows: the same Message-ID lets the receiver tell.
    RecipientEvent.ABANDONED: {_SENDING: _AMBIGUOUS},
    RecipientEvent.EXPIRED: {state: _DEAD for state in (_QUEUED, _RETRY, _AMBIGUOUS)},
    # "Accepted" is not "in the mailbox": a report (RFC 3464) may follow the 250.
    RecipientEvent.BOUNCED: {_DELIVERED: _DEAD, _AMBIGUOUS: _DEAD},
    RecipientEvent.RETRIED: {state: _QUEUED for state in (_QUEUED, _RETRY, _AMBIGUOUS, _DEAD)},
    # Not while it is being sent: what was decided and what happened would differ.
    RecipientEvent.CLOSED: {state: _DECIDED for state in (_QUEUED, _RETRY, _AMBIGUOUS, _DEAD)},
}
"""A missing key is the error: nothing else may happen to a delivery."""

MESSAGE: dict[MessageEvent, dict[MessageState, MessageState]] = {
    MessageEvent.COMMIT: {_M.RECEIVING: _M.COMMITTED},
    MessageEvent.ADOPT: {_M.RECEIVING: _M.COMMITTED},
    MessageEvent.ADDRESS: {_M.COMMITTED: _M.QUEUED},
    MessageEvent.CLOSE: {_M.COMMITTED: _M.DECIDED},
}

OPEN = frozenset({_QUEUED, _RETRY, _AMBIGUOUS})
"""Deliveries a sender may claim when they are due."""
ENDED = frozenset({_M.DELIVERED, _M.DECIDED})
"""Retention counts from the moment a message comes here, and from no other."""

DERIVATION: tuple[
    tuple[MessageState, frozenset[RecipientState], frozenset[RecipientState]], ...
] = (
    (_M.SENDING, frozenset({_SENDING}), frozenset(_R)),
    (_M.AMBIGUOUS, frozenset({_AMBIGUOUS}), frozenset(_R)),
    (_M.PARTIAL, frozenset({_DELIVERED}), frozenset({_QUEUED, _RETRY, _DEAD})),
    (_M.QUEUED, frozenset({_QUEUED, _RETRY}), frozenset(_R)),
    (_M.DEAD_LETTER, frozenset({_DEAD}), frozenset(_R)),
    (_M.DELIVERED, frozenset({_DELIVERED}), frozenset(_R)),
    (_M.DECIDED, frozenset({_DECIDED}), frozenset(_R)),
)
"""The first row with a recipient in one of each set names the message's state."""

State = TypeVar("State", bound=Enum)
Event = TypeVar("Event", bound=Enum)


def next_recipient(state: RecipientState, event: RecipientEvent) -> RecipientState:
    """The state after `event`; `StateError` if the table has none."""
    return _next(RECIPIENT, state, event, "delivery")


def next_message(state: MessageState, event: MessageEvent) -> MessageState:
    """The state after `event`; `StateError` if the table has none."""
    return _next(MESSAGE, state, event, "message")


def derived(recipients: Collection[RecipientState]) -> MessageState:
    """A message's state from those of its recipients, of which there must be one at least."""
    found = frozenset(recipients)
    for state, one, another in DERIVATION:
        if found & one and found & another:
            return state
    raise StateError("a message without recipients has no derived state")


def _next(table: dict[Event, dict[State, State]], state: State, event: Event, what: str) -> State:
    try:
        return table[event][state]
    except KeyError:
        raise StateError(f"{what}: {event.value!r} cannot happen in {state.value!r}") from None


def state_tables() -> str:
    """All of this file in markdown; `-` is what cannot happen."""
    rank = [
        "| message | if any recipient is | and any is |",
        "| --- | --- | --- |",
        *(
            f"| {state.value} | {_names(one)} | {_names(another)} |"
            for state, one, another in DERIVATION
        ),
    ]
    return "\n".join((_table(RECIPIENT, _R), _table(MESSAGE, _M), "\n".join(rank) + "\n"))


def _names(states: frozenset[RecipientState]) -> str:
    return "anything" if len(states) == len(_R) else ", ".join(s.value for s in _R if s in states)


def _table(table: dict[Event, dict[State, State]], states: type[State]) -> str:
    rows = [
        ["event", *(state.value for state in states)],
        ["---"] * (len(states) + 1),
        *([event.value, *(_cell(moves, s) for s in states)] for event, moves in table.items()),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _cell(moves: dict[State, State], state: State) -> str:
    goal = moves.get(state)
    return "-" if goal is None else "stays" if goal is state else str(goal.value)
