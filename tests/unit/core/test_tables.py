"""What holds for the tables and values of the core as such."""

from __future__ import annotations

import dataclasses
import pickle
from enum import Enum
from inspect import getmembers, isclass

import pytest

from tests.sites import (
    ANSWERED,
    all_of,
    assigned,
    call,
    plan,
    refused,
    route,
    site,
    trunk,
)
from umpack.core import (
    administration,
    calls,
    causes,
    channel,
    dial,
    errors,
    pack,
    routes,
    traffic,
)
from umpack.core import site as site_module
from umpack.core import trunk as trunk_module
from umpack.core.administration import Drain
from umpack.core.calls import Assignment, Attempt, Call, CallRecord, Decision
from umpack.core.causes import CAUSE_VERDICTS, NAMES, SIP_VERDICTS, Outcome
from umpack.core.channel import TRANSITIONS, ChannelEvent, ChannelState
from umpack.core.distributor import Distributor

OF_EVERY_CALL = (Call, Assignment, Outcome, Attempt, CallRecord)
"""Too many are made for them to be frozen at run time as well."""

MODULES = [
    administration,
    calls,
    causes,
    channel,
    dial,
    pack,
    routes,
    site_module,
    traffic,
    trunk_module,
]


def values() -> list[type]:
    """Every dataclass and named tuple the core defines."""
    return [
        class_
        for module in MODULES
        for _, class_ in getmembers(module, isclass)
        if dataclasses.is_dataclass(class_) or hasattr(class_, "_fields")
        if class_.__module__ == module.__name__
    ]


# -- the channel's states ---------------------------------------------------------------------


def reachable(start: ChannelState) -> set[ChannelState]:
    found, new = {start}, {start}
    while new:
        new = {
            goal
            for moves in TRANSITIONS.values()
            for source, goal in moves.items()
            if source in new
        } - found
        found |= new
    return found


@pytest.mark.parametrize("state", ChannelState)
def test_every_state_leads_to_every_other(state: ChannelState) -> None:
    """A channel lives as long as its board: no state is final, none is out of reach."""
    assert reachable(state) == set(ChannelState)


def test_every_event_has_a_row() -> None:
    assert set(TRANSITIONS) == set(ChannelEvent)
    assert all(TRANSITIONS.values())


def test_a_lease_is_held_in_exactly_the_states_that_a_release_leaves() -> None:
    assert set(TRANSITIONS[ChannelEvent.RELEASE]) == {ChannelState.LEASED, ChannelState.DRAINING}
    for moves in (TRANSITIONS[ChannelEvent.BLOCK], TRANSITIONS[ChannelEvent.UNBLOCK]):
        for source, goal in moves.items():
            held = TRANSITIONS[ChannelEvent.RELEASE]
            assert (source in held) == (goal in held), "a block neither gives nor ends a lease"


def test_blocking_and_unblocking_are_each_others_inverse() -> None:
    block, unblock = TRANSITIONS[ChannelEvent.BLOCK], TRANSITIONS[ChannelEvent.UNBLOCK]
    assert {goal: source for source, goal in block.items()} == unblock
    assert set(block) | set(unblock) == set(ChannelState)


# -- the cause tables -------------------------------------------------------------------------


@pytest.mark.parametrize("cause", NAMES)
def test_every_cause_with_a_name_has_a_verdict(cause: int) -> None:
    assert cause in CAUSE_VERDICTS


def test_no_verdict_is_about_a_cause_nobody_knows() -> None:
    assert set(CAUSE_VERDICTS) == set(NAMES)
    assert all(1 <= cause <= 127 for cause in NAMES)
    assert all(400 <= status <= 699 for status in SIP_VERDICTS)


# -- values -----------------------------------------------------------------------------------


@pytest.mark.parametrize("class_", values(), ids=lambda class_: class_.__name__)
def test_values_are_frozen_and_slotted(class_: type) -> None:
    if issubclass(class_, tuple):
        assert "_fields" in vars(class_), "a named tuple itself: a class upon it could be written"
        return
    assert class_.__dataclass_params__.frozen or class_ in OF_EVERY_CALL  # type: ignore[attr-defined]
    assert "__slots__" in vars(class_)


def test_the_values_of_every_call_are_frozen_for_mypy() -> None:
    asked = call("100")
    # Were it not read-only, the comment would be unused, which is an error of its own.
    asked.called = "200"  # type: ignore[misc]
    assert asked.called == "200"


def test_the_values_are_found() -> None:
    names = {class_.__name__ for class_ in values()}
    assert names >= {"Call", "Assignment", "Refusal", "Done", "Attempt", "CallRecord", "Drain"}


def test_what_leaves_the_core_can_be_pickled() -> None:
    """Records and sites go to the journal, to other processes and, one day, to other nodes."""
    a, b = trunk("a", 1), trunk("b", 1)
    world = site(
        [a, b],
        [plan("um", all_of(a, b))],
        [route("1XX", "um", callers=["*"]), route("200-299", refuse=21)],
    )
    distributor = Distributor(world)
    decision: Decision = distributor.offer(call(), 0.0)
    decision = distributor.outcome(assigned(decision).lease, refused(41), 1.0)
    distributor.outcome(assigned(decision).lease, ANSWERED, 2.0)
    refusal = distributor.offer(call("299"), 3.0)
    records = distributor.take_records()
    assert len(records[0].attempts) == 2
    for each in (*records, refusal, world, Drain("a", "anna", "", 0.0, 5.0)):
        assert pickle.loads(pickle.dumps(each)) == each  # noqa: S301


@pytest.mark.parametrize(
    "closed", [calls.Reason, calls.Ending, causes.Result, causes.Elsewhere, causes.Blame]
)
def test_closed_sets_have_a_word_for_each(closed: type[Enum]) -> None:
    words = [member.value for member in closed]
    assert all(isinstance(word, str) and word for word in words)
    assert len(set(words)) == len(words)


# -- errors -----------------------------------------------------------------------------------


def test_every_error_of_the_core_is_in_the_tree() -> None:
    modules = [*MODULES, errors]
    found = [
        class_
        for module in modules
        for _, class_ in getmembers(module, isclass)
        if issubclass(class_, Exception) and class_.__module__.startswith("umpack.core")
    ]
    assert len(found) > 5
    assert all(issubclass(class_, errors.UmpackError) for class_ in found)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = errors.__doc__ or ""
    for name, class_ in getmembers(errors, isclass):
        assert f" {name}" in drawn
        assert class_.__doc__
