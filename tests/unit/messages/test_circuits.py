"""Circuits: the table, and that a dead server is asked seldom, by one at a time."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umpack.core.errors import ConfigError, StateError
from umpack.messages.circuits import (
    TRANSITIONS,
    Circuit,
    CircuitEvent,
    CircuitPolicy,
    Circuits,
    CircuitState,
)

POLICY = CircuitPolicy(failures=3, rest=30, longest=600)


def opened(now: float = 0.0) -> Circuit:
    circuit = Circuit(POLICY)
    for _ in range(3):
        circuit.failed(now, "refused")
    return circuit


def test_every_state_is_reached_and_left() -> None:
    assert set(TRANSITIONS.values()) == set(CircuitState)
    for state in CircuitState:
        assert any(was is state is not then for (was, _), then in TRANSITIONS.items())


def test_what_the_table_lacks() -> None:
    missing = set(product(CircuitState, CircuitEvent)) - set(TRANSITIONS)
    assert missing == {
        (CircuitState.CLOSED, CircuitEvent.TRIED),
        (CircuitState.CLOSED, CircuitEvent.GIVEN_UP),
        (CircuitState.OPEN, CircuitEvent.GIVEN_UP),
        (CircuitState.HALF_OPEN, CircuitEvent.TRIED),
    }
    with pytest.raises(StateError, match="tried while closed"):
        Circuit(POLICY)._move(CircuitEvent.TRIED)


def test_three_failures_in_a_row_and_not_two() -> None:
    circuit = Circuit(POLICY)
    assert not circuit.failed(0, "refused")
    assert not circuit.failed(0, "refused")
    assert circuit.wait(0) == 0
    assert not circuit.worked()
    assert [circuit.failed(5, "refused") for _ in range(3)] == [False, False, True]
    assert circuit.state is CircuitState.OPEN
    assert (circuit.wait(5), circuit.wait(20), circuit.wait(35)) == (30, 15, 0)
    assert repr(circuit) == "open, 3 failed: refused"


def test_one_trial_at_a_time_and_its_success_lets_all_back() -> None:
    circuit = opened()
    assert circuit.begin()
    assert circuit.state is CircuitState.HALF_OPEN
    assert circuit.wait(1000) == 30
    assert not circuit.begin()
    assert circuit.worked()
    assert circuit.wait(1000) == 0
    assert repr(circuit) == "closed"


def test_rests_double_up_to_the_longest_and_begin_anew_after_success() -> None:
    circuit, now, rests = opened(), 0.0, []
    for _ in range(7):
        now = circuit.until
        assert circuit.begin()
        assert not circuit.failed(now, "refused")
        rests.append(circuit.wait(now))
    assert rests == [60, 120, 240, 480, 600, 600, 600]
    circuit.begin()
    circuit.worked()
    assert [circuit.failed(now, "refused") for _ in range(3)][-1]
    assert circuit.wait(now) == 30


def test_late_failures_of_sessions_begun_before_do_not_lengthen_the_rest() -> None:
    circuit = opened(0)
    assert not circuit.failed(29, "timed out")
    assert circuit.wait(30) == 0
    assert circuit.why == "timed out"


def test_a_late_success_is_a_success() -> None:
    circuit = opened(0)
    assert circuit.worked()
    assert circuit.wait(0) == 0


def test_a_trial_that_said_nothing_makes_room_for_the_next() -> None:
    circuit = opened(0)
    circuit.begin()
    circuit.given_up(40)
    assert circuit.wait(40) == 0
    assert circuit.begin()
    circuit.worked()
    circuit.given_up(50)
    assert circuit.state is CircuitState.CLOSED


def test_by_server() -> None:
    circuits = Circuits(POLICY)
    for _ in range(3):
        circuits.of("dead").failed(0, "refused")
    circuits.of("alive").worked()
    circuits.of("shaky").failed(0, "421")
    assert circuits.of("alive").wait(0) == 0 < circuits.of("dead").wait(0)
    assert set(circuits.resting()) == {"dead"}
    circuits.forget_closed()
    assert len(circuits) == 2
    assert circuits.of("shaky").why == "421"


@pytest.mark.parametrize("wrong", [{"failures": 0}, {"rest": 0}, {"rest": 700}])
def test_a_policy_that_cannot_be(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        CircuitPolicy(**wrong)


@given(st.lists(st.tuples(st.sampled_from(["ask", "works", "fails"]), st.floats(0, 700))))
@settings(deadline=None)
def test_state_and_wait_always_agree(steps: list[tuple[str, float]]) -> None:
    circuit, now = Circuit(POLICY), 0.0
    for step, seconds in steps:
        now += seconds
        if step == "ask" and circuit.wait(now) == 0:
            circuit.begin()
            assert (circuit.state is CircuitState.HALF_OPEN) == (circuit.wait(now) > 0)
        elif step == "works":
            circuit.worked()
            assert circuit.wait(now) == 0
        elif step == "fails":
            circuit.failed(now, "no")
            assert circuit.state is CircuitState.CLOSED or 0 <= circuit.wait(now) <= 600


@given(st.lists(st.floats(0, 100), min_size=1, max_size=300))
@settings(deadline=None)
def test_a_dead_server_is_asked_ever_more_seldom(gaps: list[float]) -> None:
    circuit, now, asked = Circuit(POLICY), 0.0, 0
    for gap in gaps:
        now += gap
        if circuit.wait(now) == 0:
            circuit.begin()
            circuit.failed(now, "dead")
            asked += 1
    rests = [30, 60, 120, 240, 480, *[600] * 100]
    assert asked <= 3 + sum(sum(rests[: n + 1]) <= now for n in range(len(rests)))
    assert asked >= min(3, len(gaps))
