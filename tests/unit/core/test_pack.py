from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sites import all_of, plan, trunk
from umpack.core.channel import Channel, ChannelId
from umpack.core.ledger import Ledger
from umpack.core.pack import (
    Direction,
    Pack,
    Strategy,
    carried_pointer,
    order_channels,
)
from umpack.core.trunk import Trunk

relaxed = settings(deadline=None)
UP, DOWN = Direction.ASCENDING, Direction.DESCENDING


def ids(names: str) -> list[ChannelId]:
    return [ChannelId(name) for name in names]


def living(strategy: Strategy, *trunks: Trunk) -> tuple[Pack, Ledger[str]]:
    """A pack of whole trunks, seated, all idle."""
    ledger: Ledger[str] = Ledger()
    for line in trunks:
        for slot in line.slots:
            id_ = line.channel_id(slot)
            ledger.channels[id_] = Channel(id_, line, slot, line.number(slot), ("x",))
    order = all_of(*trunks)
    pack = Pack(plan("um", order, strategy), [ledger.channels[id_] for id_ in order])
    ledger.seat([pack])
    return pack, ledger


def hunt(pack: Pack, trunks: str = "", channels: tuple[str, ...] = ()) -> int:
    """The next position off `trunks` and `channels`."""
    tried = [p for p, channel in enumerate(pack.channels) if channel.id in channels]
    return pack.next_position_on(lambda trunk: trunk not in trunks, tried)


def left_out(pack: Pack) -> list[tuple[str, int, str]]:
    return [(each.trunk, each.channels, each.why) for each in pack.exclusions]


# -- the order of a pack ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "direction", "interleave", "order"),
    [
        (["ab", "cd"], UP, False, "abcd"),
        (["ab", "cd"], DOWN, False, "dcba"),
        (["ab", "cd"], UP, True, "acbd"),
        (["abc", "d", "ef"], UP, True, "adebfc"),
        (["abc", "d", "ef"], DOWN, True, "cfbeda"),
        (["abc", "b", "cd"], UP, False, "abcd"),
        (["ab", "ab"], UP, True, "ab"),
        (["", "a"], UP, True, "a"),
        ([], UP, False, ""),
    ],
)
def test_members_are_put_in_order(
    members: list[str], direction: Direction, *, interleave: bool, order: str
) -> None:
    assert "".join(order_channels(members, direction, interleave=interleave)) == order


@relaxed
@given(
    members=st.lists(st.lists(st.integers(0, 30))),
    direction=st.sampled_from(Direction),
    interleave=st.booleans(),
)
def test_every_channel_has_one_place(
    members: list[list[int]], direction: Direction, *, interleave: bool
) -> None:
    order = order_channels(members, direction, interleave=interleave)
    assert sorted(order) == sorted(set(chain.from_iterable(members)))


# -- the pointer ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "old", "new", "carried"),
    [
        (None, "abc", "abc", None),
        ("c", "abcde", "bcde", "c"),
        ("c", "abcde", "abde", "b"),
        ("c", "abcde", "de", "e"),
        ("a", "abc", "bc", "c"),
        ("c", "abc", "xyz", None),
        ("c", "abc", "", None),
        ("c", "ab", "ab", None),
        ("c", "abc", "cxab", "c"),
        ("b", "abcd", "dac", "a"),
        ("b", "abcd", "cad", "d"),
        ("b", "abcd", "axcd", "x"),
        ("b", "abcd", "da", "a"),
        ("d", "abcd", "cba", "b"),
        ("a", "ab", "b", "b"),
    ],
)
def test_the_pointer_survives_a_change_of_members(
    last: str | None, old: str, new: str, carried: str | None
) -> None:
    pointer = None if last is None else ChannelId(last)
    assert carried_pointer(pointer, ids(old), ids(new)) == carried


@relaxed
@given(
    st.integers(1, 8).flatmap(
        lambda n: st.tuples(
            st.integers(0, n - 1),
            st.just("abcdefgh"[:n]),
            st.lists(st.sampled_from("abcdefghxyz"), unique=True),
        )
    )
)
def test_who_was_next_stays_next_in_any_new_order(case: tuple[int, str, list[str]]) -> None:
    last, old, new = case
    carried = carried_pointer(ChannelId(old[last]), ids(old), ids("".join(new)))
    turns = [*old[last + 1 :], *old[:last]]
    following = next((name for name in turns if name in new), None)
    if old[last] in new:
        assert carried == old[last]
    elif following is None:
        assert carried is None
    else:
        assert carried is not None
        assert new[(new.index(carried) + 1) % len(new)] == following


@relaxed
@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(st.just(n), st.integers(0, n - 1), st.sets(st.integers(0, n - 1)))
    )
)
def test_who_was_next_stays_next_whoever_leaves(case: tuple[int, int, set[int]]) -> None:
    size, last, leaving = case
    old = ids("abcdefghijkl"[:size])
    new = [channel for position, channel in enumerate(old) if position not in leaving]
    in_turn = [*old[last + 1 :], *old[: last + 1]]
    expected = next((channel for channel in in_turn if channel in new), None)
    carried = carried_pointer(old[last], old, new)
    if not new:
        assert carried is None
    else:
        assert carried is not None
        assert new[(new.index(carried) + 1) % len(new)] == expected


def test_a_pointer_at_a_stranger_begins_anew() -> None:
    pack, _ = living(Strategy.CYCLIC, trunk("a", 3))
    pack.point_at(ChannelId("a:2"))
    assert (pack.last, pack.pointer) == (1, "a:2")
    pack.point_at(ChannelId("b:1"))
    assert (pack.last, pack.pointer) == (-1, None)
    pack.point_at(None)
    assert (pack.last, pack.pointer) == (-1, None)


def test_a_pointer_is_a_place_in_the_plan_whatever_its_members_are_called_just_now() -> None:
    pack, ledger = living(Strategy.CYCLIC, trunk("a", 3))
    ledger.channels[ChannelId("a:2")].id = ChannelId("before:2")
    pack.point_at(ChannelId("a:2"))
    assert pack.last == 1


# -- the hunt ---------------------------------------------------------------------------------


def test_linear_takes_the_first_idle_one() -> None:
    pack, ledger = living(Strategy.LINEAR, trunk("a", 3))
    first = ledger.lease_next(pack, 0.0, "call")
    second = ledger.lease_next(pack, 0.0, "call")
    assert first is not None
    assert second is not None
    assert (first.position, second.position) == (0, 1)
    ledger.release(first)
    assert pack.next_position() == 0


def test_cyclic_goes_on_after_the_last_assigned_one() -> None:
    pack, ledger = living(Strategy.CYCLIC, trunk("a", 3))
    taken = []
    for _ in range(4):
        lease = ledger.lease_next(pack, 0.0, "call")
        assert lease is not None
        taken.append(lease.position)
        ledger.release(lease)
    assert taken == [0, 1, 2, 0]


def test_cyclic_passes_over_busy_ones_and_wraps() -> None:
    pack, ledger = living(Strategy.CYCLIC, trunk("a", 3))
    leases = [ledger.lease(pack, position, 0.0, "call") for position in (1, 2)]
    assert pack.next_position() == 0
    ledger.lease(pack, 0, 0.0, "call")
    assert pack.next_position() == -1
    ledger.release(leases[1])
    assert pack.next_position() == 2


def test_a_hunt_without_what_was_met_keeps_the_order() -> None:
    lines = trunk("a", 2), trunk("b", 2)
    linear, _ = living(Strategy.LINEAR, *lines)
    assert hunt(linear) == 0
    assert hunt(linear, "a") == 2
    assert hunt(linear, "a", ("b:1",)) == 3
    assert hunt(linear, "", ("a:1",)) == 1
    assert hunt(linear, "ab") == -1
    cyclic, _ = living(Strategy.CYCLIC, *lines)
    cyclic.point_at(ChannelId("b:1"))
    assert hunt(cyclic) == 3
    assert hunt(cyclic, "b") == 0
    assert hunt(cyclic, "", ("b:2", "a:1")) == 1
    assert hunt(cyclic, "a", ("b:2",)) == 2


@pytest.mark.parametrize(
    ("strategy", "position", "after", "passed"),
    [
        (Strategy.LINEAR, 0, -1, 0),
        (Strategy.LINEAR, 3, 1, 3),
        (Strategy.CYCLIC, 0, -1, 0),
        (Strategy.CYCLIC, 3, 1, 1),
        (Strategy.CYCLIC, 0, 3, 0),
        (Strategy.CYCLIC, 1, 1, 3),
    ],
)
def test_how_many_were_passed_over(
    strategy: Strategy, position: int, after: int, passed: int
) -> None:
    pack, _ = living(strategy, trunk("a", 4))
    assert pack.passed_over(position, after) == passed


# -- who is left out --------------------------------------------------------------------------


def test_exclusions_are_grouped_by_trunk_and_reason_and_follow_changes() -> None:
    pack, ledger = living(Strategy.LINEAR, trunk("a", 2), trunk("b", 2))
    assert left_out(pack) == []
    for name in ("a:1", "a:2"):
        ledger.block(ledger.channels[ChannelId(name)], "drain a", "drained by anna")
    ledger.block(ledger.channels[ChannelId("b:1")], "alarm", "red alarm")
    assert left_out(pack) == [("a", 2, "drained by anna"), ("b", 1, "red alarm")]
    ledger.block(ledger.channels[ChannelId("b:1")], "alarm", "blue alarm")
    assert left_out(pack) == [("a", 2, "drained by anna"), ("b", 1, "blue alarm")]
    ledger.unblock(ledger.channels[ChannelId("a:1")], "drain a")
    assert left_out(pack) == [("a", 1, "drained by anna"), ("b", 1, "blue alarm")]
    assert pack.exclusions is pack.exclusions, "not gathered anew for every call"


def test_a_pack_is_usable_while_one_member_is_not_blocked_busy_or_not() -> None:
    pack, ledger = living(Strategy.LINEAR, trunk("a", 2))
    ledger.lease(pack, 0, 0.0, "call")
    ledger.block(ledger.channels[ChannelId("a:2")], "alarm", "red alarm")
    assert pack.usable
    ledger.block(ledger.channels[ChannelId("a:1")], "alarm", "red alarm")
    assert not pack.usable


def test_repr_is_a_status_line() -> None:
    pack, ledger = living(Strategy.CYCLIC, trunk("a", 3))
    assert repr(pack) == "<um cyclic: 3 of 3 idle, last ->"
    ledger.lease_next(pack, 0.0, "call")
    assert repr(pack) == "<um cyclic: 2 of 3 idle, last a:1>"
