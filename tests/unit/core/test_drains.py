from __future__ import annotations

import pytest

from tests.sites import ANSWERED, all_of, call, one_pack, plan, refused, site, take, trunk
from umpack.core.administration import Drain
from umpack.core.calls import Reason, Refusal
from umpack.core.channel import ChannelId, ChannelState
from umpack.core.distributor import Distributor
from umpack.core.pack import Exclusion, PackId, Strategy
from umpack.core.roster import UnknownTarget
from umpack.core.trunk import TrunkId

A, B = trunk("a", 2), trunk("b", 2)


def drain(target: str, *, why: str = "", until: float | None = None, by: str = "anna") -> Drain:
    return Drain(target, by, why, 100.0, until)


def states(distributor: Distributor) -> dict[str, ChannelState]:
    return {id_: channel.state for id_, channel in distributor.ledger.channels.items()}


def test_a_drain_says_who_and_why() -> None:
    assert drain("a").reason == "drained by anna"
    assert drain("a", why="new board").reason == "drained by anna: new board"
    assert drain("a").source == "drain a"


def test_a_drained_trunk_takes_no_new_calls_and_finishes_its_own() -> None:
    distributor = Distributor(one_pack(A, B))
    held = take(distributor)
    distributor.drain(drain("a", why="new board"))
    assert states(distributor)["a:1"] is ChannelState.DRAINING
    assert states(distributor)["a:2"] is ChannelState.BLOCKED
    assert [take(distributor).channel for _ in range(2)] == ["b:1", "b:2"]
    assert isinstance(distributor.offer(call(), 0.0), Refusal)
    distributor.outcome(held.lease, ANSWERED, 1.0)
    assert states(distributor)["a:1"] is ChannelState.BLOCKED
    assert distributor.packs[PackId("um")].exclusions == (
        Exclusion(TrunkId("a"), 2, "drained by anna: new board"),
    )
    assert distributor.enable("a")
    assert take(distributor).channel == "a:1"


def test_one_channel_may_be_drained() -> None:
    distributor = Distributor(one_pack(A))
    distributor.drain(drain("a:1"))
    assert take(distributor).channel == "a:2"
    assert list(distributor.drains) == [drain("a:1")]
    assert distributor.enable("a:1")
    assert len(distributor.drains) == 0
    assert take(distributor).channel == "a:1"


def test_a_trunk_drained_whole_is_no_usable_trunk() -> None:
    distributor = Distributor(one_pack(A))
    distributor.drain(drain("a"))
    answer = distributor.offer(call(), 0.0)
    assert isinstance(answer, Refusal)
    assert answer.reason is Reason.NO_USABLE_TRUNK


def test_a_trunk_and_its_channel_are_drained_apart() -> None:
    distributor = Distributor(one_pack(A))
    distributor.drain(drain("a"))
    distributor.drain(drain("a:2"))
    assert distributor.enable("a")
    assert states(distributor) == {"a:1": ChannelState.IDLE, "a:2": ChannelState.BLOCKED}
    distributor.drain(drain("a"))
    assert distributor.enable("a:2")
    assert set(states(distributor).values()) == {ChannelState.BLOCKED}


def test_enabling_a_channel_does_not_undo_the_drain_of_its_trunk() -> None:
    distributor = Distributor(one_pack(A))
    distributor.drain(drain("a"))
    assert not distributor.enable("a:1")
    assert states(distributor)["a:1"] is ChannelState.BLOCKED


@pytest.mark.parametrize("target", ["ghost", "a:3", "", "um"])
def test_what_nobody_has_configured_cannot_be_drained_or_enabled(target: str) -> None:
    distributor = Distributor(one_pack(A))
    with pytest.raises(UnknownTarget, match=repr(target)):
        distributor.drain(drain(target))
    with pytest.raises(UnknownTarget, match=repr(target)):
        distributor.enable(target)
    assert distributor.drains == ()


def test_enabling_what_is_in_service_says_so() -> None:
    distributor = Distributor(one_pack(A))
    assert not distributor.enable("a")
    assert not distributor.enable("a:1")


def test_a_later_drain_replaces_the_earlier_one() -> None:
    distributor = Distributor(one_pack(A))
    distributor.drain(drain("a", until=200.0))
    later = drain("a", why="longer", until=300.0, by="ben")
    distributor.drain(later)
    assert distributor.drains == (later,)
    assert distributor.packs[PackId("um")].exclusions[0].why == "drained by ben: longer"
    assert distributor.expire_drains(250.0) == ()
    assert distributor.enable("a")
    assert set(states(distributor).values()) == {ChannelState.IDLE}


def test_drains_end_at_their_time_and_not_before() -> None:
    distributor = Distributor(one_pack(A, B))
    for_ever, short, long = drain("a:1"), drain("a:2", until=200.0), drain("b", until=300.0)
    for each in (for_ever, short, long):
        distributor.drain(each)
    assert distributor.expire_drains(199.9) == ()
    assert distributor.expire_drains(200.0) == (short,)
    assert distributor.expire_drains(200.0) == ()
    assert take(distributor).channel == "a:2"
    assert distributor.expire_drains(1e9) == (long,)
    assert distributor.drains == (for_ever,)
    assert states(distributor)["a:1"] is ChannelState.BLOCKED


def test_a_call_is_not_moved_to_a_drained_trunk() -> None:
    distributor = Distributor(one_pack(A, B))
    first = take(distributor)
    distributor.drain(drain("b"))
    answer = distributor.outcome(first.lease, refused(38), 1.0)
    assert isinstance(answer, Refusal)


def test_a_restart_keeps_drains_and_turns() -> None:
    world = site(
        [A, B],
        [plan("um", all_of(A), Strategy.CYCLIC), plan("fax", all_of(B), Strategy.CYCLIC)],
    )
    before = Distributor(world)
    before.outcome(take(before).lease, ANSWERED, 1.0)
    before.drain(drain("b"))
    after = Distributor(world)
    after.restore(before.drains, before.pointers.items())
    assert after.drains == before.drains
    assert after.pointers == before.pointers == {PackId("um"): "a:1"}
    assert take(after).channel == "a:2"
    assert states(after)["b:1"] is ChannelState.BLOCKED


def test_what_a_restart_does_not_find_waits_for_its_return() -> None:
    distributor = Distributor(one_pack(A))
    saved = [(PackId("gone"), ChannelId("a:1")), (PackId("um"), ChannelId("b:1"))]
    distributor.restore([drain("b"), drain("a:2", until=5.0)], saved)
    assert distributor.pointers == {PackId("gone"): "a:1"}
    assert states(distributor) == {"a:1": ChannelState.IDLE, "a:2": ChannelState.BLOCKED}
    distributor.reload(one_pack(A, B))
    assert states(distributor)["b:1"] is ChannelState.BLOCKED
    assert [d.target for d in distributor.drains] == ["b", "a:2"]


def test_a_drain_of_something_that_has_gone_can_still_be_taken_back() -> None:
    distributor = Distributor(one_pack(A, B))
    distributor.drain(drain("b", until=200.0))
    distributor.reload(one_pack(A))
    assert distributor.enable("b")
    distributor.reload(one_pack(A, B))
    assert states(distributor)["b:1"] is ChannelState.IDLE
