"""No route to one number, and to nobody at all (Q.850 causes 2 and 3)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.sites import ANSWERED, all_of, assigned, call, plan, refused, site, trunk
from umpack.core.causes import Blame, CauseTable, Elsewhere, Outcome, Override, Overrides
from umpack.core.distributor import Distributor
from umpack.core.health_policy import HealthPolicy
from umpack.core.health_states import HealthState
from umpack.core.no_route import LOST
from umpack.core.trunk import TrunkId

A, B = trunk("a", 4), trunk("b", 4)
WORLD = site([A, B], [plan("um", [*all_of(A), *all_of(B)])])
MANY = HealthPolicy().no_route_numbers


def state(distributor: Distributor) -> HealthState:
    return distributor.health[TrunkId("a")].state


def dial(distributor: Distributor, called: str, outcome: Outcome, now: float = 0.0) -> None:
    """A call that ends so on `a`, and well on `b` if it goes there."""
    first = assigned(distributor.offer(call(called), now))
    assert first.channel == "a:1"
    second = distributor.outcome(first.lease, outcome, now)
    if outcome is not ANSWERED and not hasattr(second, "cause"):
        distributor.outcome(assigned(second).lease, ANSWERED, now + 60.0)


@pytest.mark.parametrize("cause", [2, 3])
def test_one_wrong_number_again_and_again_blames_nobody(cause: int) -> None:
    distributor = Distributor(WORLD)
    for now in range(30):
        dial(distributor, "4711", refused(cause), now)
    assert state(distributor) is HealthState.UP


@pytest.mark.parametrize("cause", [2, 3])
def test_no_route_to_many_numbers_in_a_row_is_the_trunks_fault(cause: int) -> None:
    distributor = Distributor(WORLD)
    for number in range(MANY - 1):
        dial(distributor, f"10{number}", refused(cause))
        dial(distributor, f"10{number}", refused(cause))
    assert state(distributor) is HealthState.UP
    dial(distributor, "200", refused(cause))
    assert state(distributor) is HealthState.SUSPECT


@pytest.mark.parametrize("good", [ANSWERED, refused(17), refused(19)])
def test_a_call_that_comes_through_in_between_shows_that_there_is_a_route(good: Outcome) -> None:
    distributor = Distributor(WORLD)
    for number in range(3 * MANY):
        if number % (MANY - 1) == 0:
            dial(distributor, "1", good)
        dial(distributor, f"10{number}", refused(3))
    assert state(distributor) is HealthState.UP


def test_a_failure_in_between_shows_nothing() -> None:
    distributor = Distributor(WORLD)
    for number in range(MANY - 1):
        dial(distributor, f"10{number}", refused(3))
        dial(distributor, f"10{number}", refused(42))
    dial(distributor, "200", refused(3))
    assert state(distributor) is HealthState.SUSPECT


def test_the_number_of_numbers_is_the_trunks_own() -> None:
    distributor = Distributor(replace(WORLD, policies={A.id: HealthPolicy(no_route_numbers=2)}))
    dial(distributor, "1", refused(3))
    assert state(distributor) is HealthState.UP
    dial(distributor, "2", refused(3))
    assert state(distributor) is HealthState.SUSPECT


def test_what_the_configuration_says_of_3_stands() -> None:
    own = Overrides({3: Override(Elsewhere.TRUNK, Blame.NOBODY, "so we want it")})
    distributor = Distributor(replace(WORLD, causes=CauseTable(trunks={"a": own})))
    for number in range(3 * MANY):
        dial(distributor, f"10{number}", refused(3))
    assert state(distributor) is HealthState.UP


def test_such_a_call_is_still_tried_once_more_only() -> None:
    assert LOST.elsewhere is Elsewhere.ONCE
    assert LOST.source.startswith("Q.850")


def lost(distributor: Distributor) -> None:
    for number in range(MANY):
        dial(distributor, f"10{number}", refused(3))
    assert state(distributor) is HealthState.SUSPECT


def test_people_who_take_a_trunk_back_take_this_back_as_well() -> None:
    distributor = Distributor(WORLD)
    lost(distributor)
    distributor.restore_trunk(TrunkId("a"), 1.0, "by anna")
    dial(distributor, "4711", refused(3), 2.0)
    assert state(distributor) is HealthState.UP


@pytest.mark.parametrize("endpoint", ["a", "new"])
def test_another_far_end_is_not_blamed_for_the_first_wrong_number(endpoint: str) -> None:
    distributor = Distributor(WORLD)
    lost(distributor)
    packs = WORLD.packs.values()
    distributor.reload(site([replace(A, endpoint=endpoint), B], packs), 1.0)
    distributor.health[TrunkId("a")].restore(1.0, "")  # as an answered call would
    distributor.enable("a")
    dial(distributor, "4711", refused(3), 2.0)
    assert state(distributor) is (HealthState.UP if endpoint == "new" else HealthState.SUSPECT)
