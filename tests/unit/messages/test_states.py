"""The tables of messages and deliveries: complete, no dead end but the meant one, printable."""

from __future__ import annotations

from enum import Enum
from itertools import chain, combinations

import pytest

from umpack.core.errors import StateError
from umpack.messages.states import (
    DERIVATION,
    ENDED,
    MESSAGE,
    OPEN,
    RECIPIENT,
    MessageEvent,
    RecipientEvent,
    derived,
    next_message,
    next_recipient,
    state_tables,
)
from umpack.messages.states import MessageState as M
from umpack.messages.states import RecipientState as R


def reachable(start: R) -> set[R]:
    found, new = {start}, {start}
    while new:
        new = {moves[state] for moves in RECIPIENT.values() for state in new if state in moves}
        new -= found
        found |= new
    return found


def test_a_queued_delivery_can_come_to_every_state() -> None:
    assert reachable(R.QUEUED) == set(R)


@pytest.mark.parametrize("state", [state for state in R if state is not R.DECIDED])
def test_every_other_state_leads_to_delivered_and_decided(state: R) -> None:
    assert {R.DELIVERED, R.DECIDED} - {state} <= reachable(state)


def test_what_a_person_decided_stays() -> None:
    assert reachable(R.DECIDED) == {R.DECIDED}


def test_every_event_has_a_row() -> None:
    assert set(RECIPIENT) == set(RecipientEvent)
    assert set(MESSAGE) == set(MessageEvent)


def test_only_open_deliveries_can_be_claimed() -> None:
    assert set(RECIPIENT[RecipientEvent.CLAIM]) == OPEN


def test_nothing_is_decided_while_it_is_being_sent() -> None:
    with pytest.raises(StateError, match=r"'person: discard.*' cannot happen in 'sending'"):
        next_recipient(R.SENDING, RecipientEvent.CLOSED)


def test_only_a_server_or_a_person_ends_a_delivery() -> None:
    """No failure, however often, leads to an end that retention counts from."""
    ends = {
        event
        for event, moves in RECIPIENT.items()
        for goal in moves.values()
        if goal in (R.DELIVERED, R.DECIDED)
    }
    assert ends == {RecipientEvent.ACCEPTED, RecipientEvent.CLOSED}


def test_a_message_with_recipients_cannot_be_addressed_again() -> None:
    assert next_message(M.COMMITTED, MessageEvent.ADDRESS) is M.QUEUED
    with pytest.raises(StateError):
        next_message(M.QUEUED, MessageEvent.ADDRESS)


def subsets() -> list[frozenset[R]]:
    sizes = range(1, len(R) + 1)
    return [frozenset(c) for c in chain.from_iterable(combinations(R, n) for n in sizes)]


@pytest.mark.parametrize("states", subsets(), ids=lambda s: "+".join(sorted(x.value for x in s)))
def test_derivation_covers_everything_and_ends_only_when_all_have(states: frozenset[R]) -> None:
    state = derived(states)
    assert (state in ENDED) == (states <= {R.DELIVERED, R.DECIDED})
    assert (state is M.SENDING) == (R.SENDING in states)
    if state is M.PARTIAL:
        assert R.DELIVERED in states


def test_every_state_of_a_message_is_derived_or_moved_to() -> None:
    moved: set[Enum] = {goal for moves in MESSAGE.values() for goal in moves.values()}
    assert moved | {state for state, _, _ in DERIVATION} | {M.RECEIVING} == set(M)


def test_nobody_is_no_state() -> None:
    with pytest.raises(StateError):
        derived(())


def test_the_tables_print() -> None:
    lines = state_tables().splitlines()
    assert "| 250 after the final dot | - | delivered | - | - | - | - | - |" in lines
    assert "| call over, original on disk | committed | - | - | - | - | - | - | - | - |" in lines
    assert "| partial | delivered | queued, retry, dead letter |" in lines
    assert "| sending | sending | anything |" in lines
