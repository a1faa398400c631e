"""Lines keep their calls under any name; names keep what was said of them on no other line."""

from __future__ import annotations

import pytest

from tests.sites import (
    ANSWERED,
    MAIN,
    all_of,
    assigned,
    call,
    one_pack,
    plan,
    refused,
    route,
    site,
    take,
    trunk,
)
from umpack.core.administration import Drain
from umpack.core.calls import Done, Refusal
from umpack.core.channel import Channel, ChannelId, ChannelState
from umpack.core.distributor import Distributor
from umpack.core.pack import PackId, Strategy
from umpack.core.site import Site
from umpack.core.trunk import PbxId, Trunk, TrunkKind

BRANCH = PbxId("branch")
UM = PackId("um")


def span(name: str, first: int, slots: int = 2, pbx: PbxId = MAIN) -> Trunk:
    return trunk(name, slots, kind=TrunkKind.S0, first=first, pbx=pbx)


def cyclic(*trunks: Trunk) -> Site:
    return one_pack(*trunks, strategy=Strategy.CYCLIC)


def channel(distributor: Distributor, name: str) -> Channel:
    return distributor.ledger.channels[ChannelId(name)]


def busy(distributor: Distributor) -> list[tuple[str, int]]:
    return [(lease.channel.id, lease.channel.number) for lease in distributor.ledger]


def take_all(distributor: Distributor) -> list[str]:
    """The dial strings of what is idle."""
    dials = []
    for _ in range(len(distributor.ledger.channels)):
        answer = distributor.offer(call(), 0.0)
        if isinstance(answer, Refusal):
            break
        dials.append(answer.dial)
    return dials


# -- a trunk under a new name ------------------------------------------------------------------


def test_a_trunk_renamed_under_a_call_keeps_it_and_gives_no_b_channel_twice() -> None:
    distributor = Distributor(one_pack(span("old", 4)))
    held = take(distributor)
    distributor.reload(one_pack(span("new", 4)))
    assert sorted(distributor.ledger.channels) == ["new:1", "new:2"]
    assert channel(distributor, "new:1").lease is held.lease
    assert channel(distributor, "new:1").state is ChannelState.LEASED
    assert take_all(distributor) == ["DAHDI/5/100"]
    assert distributor.outcome(held.lease, ANSWERED, 1.0) == Done(16)
    (record,) = distributor.take_records()[-1:]
    assert (record.attempts[0].channel, record.attempts[0].trunk) == ("new:1", "new")
    assert take(distributor).dial == "DAHDI/4/100"


def test_two_trunks_that_swap_spans_under_calls_swap_the_calls() -> None:
    distributor = Distributor(one_pack(span("a", 4), span("b", 7)))
    first = take(distributor)
    distributor.reload(one_pack(span("a", 7), span("b", 4)))
    assert busy(distributor) == [("b:1", 4)]
    assert take_all(distributor) == [f"DAHDI/{number}/100" for number in (7, 8, 5)]
    distributor.release(first.lease.token, 1.0)
    assert take(distributor).dial == "DAHDI/4/100"


def test_a_span_that_moves_by_one_number_keeps_the_calls_where_they_are() -> None:
    distributor = Distributor(one_pack(span("a", 4)))
    first, second = take(distributor), take(distributor)
    distributor.reload(one_pack(span("a", 5)))
    assert busy(distributor) == [("a:1 (removed)", 4), ("a:1", 5)]
    assert channel(distributor, "a:1").slot == 1
    assert take_all(distributor) == ["DAHDI/6/100"]
    distributor.release(first.lease.token, 1.0)
    assert sorted(distributor.ledger.channels) == ["a:1", "a:2"]
    distributor.release(second.lease.token, 1.0)
    assert take(distributor).dial == "DAHDI/5/100"


def test_the_same_number_at_another_exchange_is_another_channel() -> None:
    here, there = span("here", 4), span("there", 4, pbx=BRANCH)
    packs = [plan("um", all_of(here)), plan("far", all_of(there))]
    routes = [route("*", "um"), route("*", "far", pbx=BRANCH)]
    distributor = Distributor(site([here, there], packs, routes))
    first = take(distributor)
    second = assigned(distributor.offer(call(pbx=BRANCH), 0.0))
    assert (first.dial, second.dial) == ("DAHDI/4/100", "DAHDI/4/100")
    distributor.reload(site([span("here", 4, pbx=BRANCH)], [plan("um", ["here:1", "here:2"])]))
    assert channel(distributor, "here:1").lease is second.lease
    assert channel(distributor, "here:1 (removed)").lease is first.lease


def test_a_renamed_trunk_that_fails_under_a_call_is_not_tried_again() -> None:
    distributor = Distributor(one_pack(span("a", 4), span("b", 7)))
    first = take(distributor)
    distributor.reload(one_pack(span("a", 7), span("b", 4)))
    again = assigned(distributor.outcome(first.lease, refused(38), 1.0))
    assert (again.channel, again.dial) == ("a:1", "DAHDI/7/100")
    assert isinstance(distributor.outcome(again.lease, refused(38), 2.0), Refusal)


# -- removed, and its name in use --------------------------------------------------------------


def test_a_name_reused_by_another_kind_is_another_channel() -> None:
    distributor = Distributor(one_pack(trunk("a", 2)))
    held = take(distributor)
    distributor.reload(one_pack(span("a", 4)))
    assert sorted(distributor.ledger.channels) == ["a:1", "a:1 (removed)", "a:2"]
    assert channel(distributor, "a:1 (removed)").lease is held.lease
    assert channel(distributor, "a:1 (removed)").state is ChannelState.DRAINING
    assert channel(distributor, "a:1").state is ChannelState.IDLE
    assert take(distributor).dial == "DAHDI/4/100"
    assert distributor.outcome(held.lease, ANSWERED, 1.0) == Done(16)
    assert sorted(distributor.ledger.channels) == ["a:1", "a:2"]
    (record,) = distributor.take_records()
    assert record.channel == "a:1 (removed)"


def test_both_kinds_under_calls_change_places_and_back() -> None:
    distributor = Distributor(one_pack(trunk("a", 1)))
    sip = take(distributor)
    distributor.reload(one_pack(span("a", 4, 1)))
    isdn = take(distributor)
    distributor.reload(one_pack(trunk("a", 1)))
    assert channel(distributor, "a:1").lease is sip.lease
    assert channel(distributor, "a:1 (removed)").lease is isdn.lease
    assert channel(distributor, "a:1").state is ChannelState.LEASED
    assert take_all(distributor) == []
    distributor.release(isdn.lease.token, 1.0)
    distributor.release(sip.lease.token, 1.0)
    assert take(distributor).dial == "PJSIP/100@a"


def test_a_name_reused_twice_under_calls_loses_nobody() -> None:
    distributor = Distributor(one_pack(span("a", 1, 1)))
    held = [take(distributor)]
    for first in (32, 63):
        distributor.reload(one_pack(span("a", first, 1)))
        held.append(take(distributor))
    assert sorted(distributor.ledger.channels) == ["a:1", "a:1 (removed 2)", "a:1 (removed)"]
    distributor.reload(one_pack(span("a", 1, 1)))
    assert take_all(distributor) == [], "1 has had a call on it all the time"
    assert channel(distributor, "a:1").lease is held[0].lease
    for answer in held:
        distributor.release(answer.lease.token, 1.0)
    assert sorted(distributor.ledger.channels) == ["a:1"]
    assert channel(distributor, "a:1").state is ChannelState.IDLE


def test_a_removed_line_comes_back_under_another_name() -> None:
    distributor = Distributor(one_pack(span("a", 4), trunk("x", 1)))
    held = take(distributor)
    distributor.reload(one_pack(trunk("x", 1)))
    distributor.reload(one_pack(span("b", 4), trunk("x", 1)))
    assert channel(distributor, "b:1").lease is held.lease
    assert channel(distributor, "b:1").blocks == {}
    assert channel(distributor, "b:1").state is ChannelState.LEASED


# -- what was said of a name -------------------------------------------------------------------


def test_blocks_stay_with_the_name_they_were_said_of() -> None:
    distributor = Distributor(one_pack(span("a", 4), span("b", 7)))
    held = take(distributor)
    distributor.ledger.block(channel(distributor, "a:1"), "alarm", "red alarm")
    distributor.ledger.block(channel(distributor, "a:2"), "alarm", "red alarm")
    distributor.reload(one_pack(span("b", 7), span("new", 4)))
    assert channel(distributor, "new:1").state is ChannelState.LEASED
    assert channel(distributor, "new:2").state is ChannelState.IDLE
    distributor.release(held.lease.token, 1.0)
    assert take_all(distributor) == [f"DAHDI/{number}/100" for number in (7, 8, 4, 5)]


def test_drains_are_applied_again_by_name() -> None:
    distributor = Distributor(one_pack(span("a", 4), span("b", 7)))
    held = take(distributor)
    distributor.drain(Drain("a", "anna", "", 0.0))
    distributor.drain(Drain("b:2", "anna", "", 0.0))
    distributor.reload(one_pack(span("a", 7), span("b", 4)))
    assert {id_: set(c.blocks) for id_, c in distributor.ledger.channels.items()} == {
        "a:1": {"drain a"},
        "a:2": {"drain a"},
        "b:1": set(),
        "b:2": {"drain b:2"},
    }
    assert channel(distributor, "b:1").lease is held.lease
    assert channel(distributor, "b:1").state is ChannelState.LEASED
    assert distributor.enable("a")
    assert take_all(distributor) == ["DAHDI/7/100", "DAHDI/8/100"]


# -- whose turn it is --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trunks", "following"),
    [
        ([span("new", 4), span("b", 7)], [5, 7, 8, 4]),
        ([span("a", 7), span("b", 4)], [5, 7, 8, 4]),
        ([span("b", 4), span("a", 7)], [5, 7, 8, 4]),
        ([span("a", 10), span("b", 7)], [11, 7, 8, 10]),
        ([span("b", 7)], [7, 8]),
        ([span("a", 7)], [7, 8]),
        ([span("x", 10), span("b", 7)], [7, 8, 10, 11]),
    ],
    ids=["renamed", "swapped", "swapped file", "moved", "removed", "replaced", "new before"],
)
def test_the_line_next_in_turn_stays_next(trunks: list[Trunk], following: list[int]) -> None:
    distributor = Distributor(cyclic(span("a", 4), span("b", 7)))
    distributor.release(take(distributor).lease.token, 1.0)
    distributor.reload(cyclic(*trunks))
    assert take_all(distributor) == [f"DAHDI/{number}/100" for number in following]


def test_a_member_that_leaves_while_others_are_reordered_skips_nobody() -> None:
    lines = {name: trunk(name, 1) for name in "abcd"}
    distributor = Distributor(cyclic(*lines.values()))
    for _ in "ab":
        distributor.release(take(distributor).lease.token, 1.0)
    distributor.reload(cyclic(*(lines[name] for name in "dac")))
    assert distributor.pointers == {UM: "a:1"}
    assert [take(distributor).channel for _ in "cda"] == ["c:1", "d:1", "a:1"]


def test_a_pack_that_was_away_goes_on_where_it_stood() -> None:
    a, b = trunk("a", 3), trunk("b", 1)
    both = site([a, b], [plan("um", all_of(a), Strategy.CYCLIC), plan("fax", all_of(b))])
    without = site([a, b], [plan("fax", all_of(b))])
    distributor = Distributor(both)
    distributor.release(take(distributor).lease.token, 1.0)
    distributor.reload(without)
    distributor.reload(without)
    assert distributor.pointers == {UM: "a:1"}
    restarted = Distributor(without)
    restarted.restore((), distributor.pointers.items())
    assert restarted.pointers == {UM: "a:1"}
    for each in (distributor, restarted):
        each.reload(both)
        assert each.pointers == {UM: "a:1"}
        assert take(each).channel == "a:2"
        assert each.pointers == {UM: "a:2"}, "what was parked is not what counts"


def test_a_parked_pointer_at_a_member_that_left_meanwhile_begins_anew() -> None:
    distributor = Distributor(one_pack(trunk("b", 1)))
    distributor.restore((), [(PackId("fax"), ChannelId("a:1"))])
    b = trunk("b", 2)
    distributor.reload(site([b], [plan("fax", all_of(b), Strategy.CYCLIC)]))
    assert distributor.pointers == {}
    assert take(distributor).channel == "b:1"


def test_the_first_turn_after_a_first_start_is_the_one_saved() -> None:
    """The daemon restores before it has a site as well as after."""
    distributor = Distributor()
    distributor.restore([Drain("a:3", "anna", "", 0.0)], [(UM, ChannelId("a:1"))])
    distributor.reload(cyclic(trunk("a", 3)))
    assert [take(distributor).channel for _ in range(2)] == ["a:2", "a:1"]
