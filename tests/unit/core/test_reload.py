from __future__ import annotations

from dataclasses import replace

import pytest

from tests.sites import (
    ANSWERED,
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
from umpack.core.calls import Done, Reason, Refusal
from umpack.core.channel import Channel, ChannelId, ChannelState
from umpack.core.dial import DialError
from umpack.core.distributor import Distributor
from umpack.core.errors import OurFault
from umpack.core.pack import PackId, Strategy
from umpack.core.site import Site
from umpack.core.trunk import TrunkKind

A, B, C = (trunk(name, 2) for name in "abc")
UM = PackId("um")


def channels(distributor: Distributor) -> set[str]:
    return set(distributor.ledger.channels)


def channel(distributor: Distributor, name: str) -> Channel:
    return distributor.ledger.channels[ChannelId(name)]


def test_the_same_site_again_changes_nothing() -> None:
    distributor = Distributor(one_pack(A, B, strategy=Strategy.CYCLIC))
    held = take(distributor)
    distributor.drain(Drain("b", "anna", "", 0.0))
    before = [(c, c.state, c.lease, dict(c.blocks)) for c in distributor.ledger.channels.values()]
    distributor.reload(one_pack(A, B, strategy=Strategy.CYCLIC))
    after = [(c, c.state, c.lease, dict(c.blocks)) for c in distributor.ledger.channels.values()]
    assert after == before
    assert distributor.pointers == {UM: "a:1"}
    assert take(distributor).channel == "a:2"
    assert distributor.outcome(held.lease, ANSWERED, 1.0) == Done(16)


def test_a_new_trunk_takes_calls_at_once() -> None:
    distributor = Distributor(one_pack(trunk("a", 1)))
    held = take(distributor)
    assert isinstance(distributor.offer(call(), 0.0), Refusal)
    distributor.reload(one_pack(trunk("a", 1), B))
    assert [take(distributor).channel for _ in range(2)] == ["b:1", "b:2"]
    assert distributor.ledger.holds(held.lease)


def test_an_idle_channel_that_is_removed_is_gone() -> None:
    distributor = Distributor(one_pack(A, B))
    distributor.reload(one_pack(B))
    assert channels(distributor) == {"b:1", "b:2"}
    assert [take(distributor).channel for _ in range(2)] == ["b:1", "b:2"]


def test_a_removed_channel_drains_and_leaves_with_its_call() -> None:
    distributor = Distributor(one_pack(A, B))
    held = take(distributor)
    distributor.reload(one_pack(B))
    assert channels(distributor) == {"a:1", "b:1", "b:2"}
    assert channel(distributor, "a:1").state is ChannelState.DRAINING
    assert "removed" in repr(channel(distributor, "a:1"))
    assert take(distributor).channel == "b:1"
    assert distributor.outcome(held.lease, ANSWERED, 9.0) == Done(16)
    assert channels(distributor) == {"b:1", "b:2"}


def test_a_removed_channel_leaves_with_a_lost_connection_as_well() -> None:
    distributor = Distributor(one_pack(A, B))
    held = take(distributor)
    distributor.reload(one_pack(B))
    distributor.reload(one_pack(B))
    distributor.release(held.lease.token, 1.0)
    assert channels(distributor) == {"b:1", "b:2"}


def test_a_removed_trunk_that_returns_under_its_call_is_as_before() -> None:
    distributor = Distributor(one_pack(A, B))
    held = take(distributor)
    distributor.reload(one_pack(B))
    distributor.reload(one_pack(A, B))
    assert channel(distributor, "a:1").state is ChannelState.LEASED
    assert channel(distributor, "a:1").lease is held.lease
    assert channel(distributor, "a:1").blocks == {}
    assert [take(distributor).channel for _ in range(3)] == ["a:2", "b:1", "b:2"]
    distributor.release(held.lease.token, 1.0)
    assert take(distributor).channel == "a:1"


def test_a_drained_trunk_is_still_drained_after_it_was_away() -> None:
    distributor = Distributor(one_pack(A, B))
    held = take(distributor)
    distributor.drain(Drain("a", "anna", "", 0.0))
    distributor.reload(one_pack(B))
    distributor.release(held.lease.token, 1.0)
    assert channels(distributor) == {"b:1", "b:2"}
    distributor.reload(one_pack(A, B))
    assert channel(distributor, "a:1").state is ChannelState.BLOCKED
    assert take(distributor).channel == "b:1"
    assert distributor.enable("a")
    assert take(distributor).channel == "a:1"


def test_health_blocks_survive_a_reload() -> None:
    distributor = Distributor(one_pack(A, B))
    # Of a source that a reload does not know: it is for whoever has set it to take it back.
    distributor.ledger.block(channel(distributor, "a:1"), "probe", "no dial tone")
    distributor.reload(one_pack(A, B, strategy=Strategy.CYCLIC))
    assert [take(distributor).channel for _ in range(3)] == ["a:2", "b:1", "b:2"]


@pytest.mark.parametrize(
    ("members", "turn"),
    [
        ("abcd", "cd"),
        ("bcd", "cd"),
        ("acd", "cd"),
        ("cd", "cd"),
        ("abd", "da"),
        ("abcde", "cde"),
        ("xabcd", "cdx"),
        ("a", "a"),
        ("xyz", "xyz"),
    ],
)
def test_the_one_next_in_turn_stays_next(members: str, turn: str) -> None:
    lines = {name: trunk(name, 1) for name in "abcdexyz"}

    def world(names: str) -> Site:
        return one_pack(*(lines[name] for name in names), strategy=Strategy.CYCLIC)

    distributor = Distributor(world("abcd"))
    for _ in "ab":
        distributor.outcome(take(distributor).lease, ANSWERED, 1.0)
    distributor.reload(world(members))
    taken = []
    for _ in turn:
        answer = take(distributor)
        taken.append(answer.channel[0])
        distributor.outcome(answer.lease, ANSWERED, 1.0)
    assert "".join(taken) == turn


def test_the_pointer_survives_a_detour_through_linear() -> None:
    distributor = Distributor(one_pack(A, B, strategy=Strategy.CYCLIC))
    for _ in range(2):
        distributor.outcome(take(distributor).lease, ANSWERED, 1.0)
    distributor.reload(one_pack(A, B))
    assert distributor.pointers == {UM: "a:2"}
    distributor.reload(one_pack(A, B, strategy=Strategy.CYCLIC))
    assert take(distributor).channel == "b:1"


def test_a_new_order_is_hunted_at_once() -> None:
    distributor = Distributor(one_pack(A, B))
    take(distributor)
    distributor.reload(one_pack(B, A))
    assert [take(distributor).channel for _ in range(3)] == ["b:1", "b:2", "a:2"]


def test_a_new_dial_template_is_used_for_the_next_call() -> None:
    distributor = Distributor(one_pack(A))
    held = take(distributor)
    distributor.reload(one_pack(trunk("a", 2, dial="Local/{called}@fax")))
    assert take(distributor, "200").dial == "Local/200@fax"
    distributor.release(held.lease.token, 1.0)
    assert take(distributor, "300").dial == "Local/300@fax"


def test_a_span_that_moves_in_dahdis_counting_is_dialled_by_its_new_number() -> None:
    distributor = Distributor(one_pack(trunk("s0", 2, kind=TrunkKind.S0)))
    distributor.reload(one_pack(trunk("s0", 2, kind=TrunkKind.S0, first=32)))
    answer = take(distributor)
    assert answer.dial == "DAHDI/32/100"
    assert channel(distributor, "s0:1").number == 32


def test_new_routes_hold_for_the_next_call() -> None:
    packs = [plan("um", all_of(A)), plan("fax", all_of(B))]
    distributor = Distributor(site([A, B], packs, [route("*", "um")]))
    assert take(distributor).channel == "a:1"
    distributor.reload(site([A, B], packs, [route("*", "fax")]))
    assert take(distributor).channel == "b:1"


def test_a_call_on_its_way_uses_what_there_is_now() -> None:
    distributor = Distributor(one_pack(A, B))
    first = take(distributor)
    distributor.reload(one_pack(A, C))
    second = assigned(distributor.outcome(first.lease, refused(38), 1.0))
    assert second.channel == "c:1"


def test_a_call_whose_pack_has_gone_is_refused_not_lost() -> None:
    distributor = Distributor(one_pack(A, B))
    first = take(distributor)
    distributor.reload(Site())
    assert channels(distributor) == {"a:1"}
    answer = distributor.outcome(first.lease, refused(38), 1.0)
    assert isinstance(answer, Refusal)
    assert (answer.reason, answer.cause) == (Reason.ATTEMPTS_FAILED, 34)
    assert channels(distributor) == set()
    (record,) = distributor.take_records()
    assert record.attempts[0].pack == "um"


def test_a_call_whose_first_pack_has_gone_may_still_overflow() -> None:
    packs = [plan("um", all_of(A), overflow=["spare"]), plan("spare", all_of(B))]
    distributor = Distributor(site([A, B], packs))
    first = take(distributor)
    distributor.reload(site([B], packs[1:]))
    assert assigned(distributor.outcome(first.lease, refused(38), 1.0)).channel == "b:1"


BROKEN = [
    (site([A], [plan("um", ["a:1", "ghost:1"])]), (KeyError, OurFault)),
    (site([A], [plan("um", all_of(A), overflow=["ghost"])]), (KeyError, OurFault)),
    (one_pack(replace(B, span=None, dial=replace(A.dial, text="DAHDI/i{span}"))), DialError),
]


@pytest.mark.parametrize(("broken", "error"), BROKEN)
def test_a_site_that_cannot_be_changes_nothing(
    broken: Site, error: type[Exception] | tuple[type[Exception], ...]
) -> None:
    distributor = Distributor(one_pack(A, strategy=Strategy.CYCLIC))
    held = take(distributor)
    old = distributor.site
    with pytest.raises(error):
        distributor.reload(broken)
    assert distributor.site is old
    assert channels(distributor) == {"a:1", "a:2"}
    assert take(distributor).channel == "a:2"
    distributor.release(held.lease.token, 1.0)
    assert take(distributor).channel == "a:1"
