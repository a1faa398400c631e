"""The table of health: complete, without dead ends, printable."""

from __future__ import annotations

from math import inf

import pytest

from tests.lines import Line
from umpack.core.errors import StateError
from umpack.core.health_states import (
    TRANSITIONS,
    HealthEvent,
    HealthState,
    health_table,
)
from umpack.core.health_words import because, in_seconds, nth

UP = HealthState.UP
ALARMED = HealthState.ALARMED


@pytest.fixture
def line() -> Line:
    return Line()


def reachable(start: HealthState) -> set[HealthState]:
    found, new = {start}, {start}
    while new:
        new = {moves[state] for moves in TRANSITIONS.values() for state in new if state in moves}
        new -= found
        found |= new
    return found


@pytest.mark.parametrize("state", HealthState)
def test_every_state_leads_to_every_other(state: HealthState) -> None:
    assert reachable(state) == set(HealthState)


def test_every_event_has_a_row_and_every_state_can_be_alarmed() -> None:
    assert set(TRANSITIONS) == set(HealthEvent)
    assert set(TRANSITIONS[HealthEvent.ALARM]) == set(HealthState) - {ALARMED}


def test_only_the_end_of_the_alarm_or_of_its_certainty_leads_out_of_it() -> None:
    ways = {e for e, moves in TRANSITIONS.items() if moves.get(ALARMED, ALARMED) is not ALARMED}
    assert ways == {HealthEvent.SETTLED, HealthEvent.UNSEEN, HealthEvent.SETTLED_UNPROVEN}
    assert TRANSITIONS[HealthEvent.UNSEEN] == {ALARMED: HealthState.SUSPECT}, "in doubt, not well"


def test_the_table_prints_as_markdown() -> None:
    lines = health_table().splitlines()
    assert len(lines) == 2 + len(HealthEvent)
    assert {line.count("|") for line in lines} == {2 + len(HealthState)}
    assert "| ejection over | - | - | half-open | - | - | - |" in lines
    assert "| call answered | stays | up | stays | slow start | stays | stays |" in lines


def test_what_the_table_does_not_say_is_an_error(line: Line) -> None:
    with pytest.raises(StateError, match="no ramped here"):
        line.health._move(HealthEvent.RAMPED, line.now)
    assert line.health.state is UP


def test_words() -> None:
    assert [nth(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 102, 111)] == (
        "1st 2nd 3rd 4th 11th 12th 13th 21st 102nd 111th".split()
    )
    assert (in_seconds(11.2), in_seconds(0.0), in_seconds(inf)) == (
        "in 12 s",
        "now",
        "with the next call",
    )
    assert because(1, "a", same=True) == "a"
    assert because(3, "a", same=False) == "3 failures, the last: a"
