from __future__ import annotations

import pytest

from tests.sites import all_of, plan, trunk
from umpack.core.channel import Channel, ChannelId, ChannelState
from umpack.core.errors import LeaseError, StateError
from umpack.core.ledger import REMOVED, Lease, LeaseToken, Ledger
from umpack.core.pack import Pack, Strategy


def two_packs() -> tuple[Ledger[str], Pack, Pack]:
    """Channels a:1, a:2, a:3; pack `um` has them in order, pack `spare` the last two backwards."""
    line = trunk("a", 3)
    ledger: Ledger[str] = Ledger()
    for slot in line.slots:
        id_ = line.channel_id(slot)
        ledger.channels[id_] = Channel(id_, line, slot, slot, ("x",))
    order = all_of(line)
    um = Pack(plan("um", order), [ledger.channels[id_] for id_ in order])
    back = (order[2], order[1])
    spare = Pack(plan("spare", back, Strategy.CYCLIC), [ledger.channels[id_] for id_ in back])
    ledger.seat([um, spare])
    return ledger, um, spare


def idle(pack: Pack) -> list[str]:
    return [channel.id for position, channel in enumerate(pack.channels) if position in pack.idle]


def next_lease(ledger: Ledger[str], pack: Pack, holder: str = "call") -> Lease[str]:
    lease = ledger.lease_next(pack, 7.5, holder)
    assert lease is not None
    return lease


def state(ledger: Ledger[str], name: str) -> ChannelState:
    return ledger.channels[ChannelId(name)].state


def test_a_lease_takes_the_channel_from_every_pack_at_once() -> None:
    ledger, um, spare = two_packs()
    lease = next_lease(ledger, spare)
    assert (lease.channel.id, lease.pack, lease.position) == ("a:3", spare, 0)
    assert (lease.after, lease.since, lease.holder) == (-1, 7.5, "call")
    assert lease.channel.lease is lease
    assert state(ledger, lease.channel.id) is ChannelState.LEASED
    assert idle(um) == ["a:1", "a:2"]
    assert idle(spare) == ["a:2"]
    assert (um.last, spare.last) == (-1, 0)
    assert (len(ledger), list(ledger), ledger.holds(lease)) == (1, [lease], True)


def test_a_release_gives_it_back_to_every_pack() -> None:
    ledger, um, spare = two_packs()
    lease = ledger.lease(um, 2, 0.0, "call")
    assert ledger.lease_of(lease.token) is lease
    ledger.release(lease)
    assert lease.channel.lease is None
    assert idle(um) == ["a:1", "a:2", "a:3"]
    assert idle(spare) == ["a:3", "a:2"]
    assert (len(ledger), list(ledger), ledger.holds(lease)) == (0, [], False)
    assert um.last == 2


def test_the_pointer_before_the_assignment_is_kept_in_the_lease() -> None:
    ledger, _, spare = two_packs()
    first, second = next_lease(ledger, spare), next_lease(ledger, spare)
    assert (first.after, second.after) == (-1, 0)


def test_nothing_idle_is_no_lease() -> None:
    ledger, um, spare = two_packs()
    assert ledger.lease_next(spare, 0.0, "a") is not None
    assert ledger.lease_next(spare, 0.0, "b") is not None
    assert ledger.lease_next(spare, 0.0, "c") is None
    assert ledger.lease_next(um, 0.0, "d") is not None
    assert ledger.lease_next(um, 0.0, "e") is None
    assert len(ledger) == 3


def test_a_channel_that_is_not_idle_cannot_be_taken_and_nothing_changes() -> None:
    ledger, um, _ = two_packs()
    lease = ledger.lease(um, 0, 0.0, "call")
    with pytest.raises(StateError):
        ledger.lease(um, 0, 1.0, "thief")
    assert lease.channel.lease is lease
    assert lease.holder == "call"
    assert len(ledger) == 1


def test_a_second_release_is_an_error_and_changes_nothing() -> None:
    ledger, um, _ = two_packs()
    first = ledger.lease(um, 0, 0.0, "first")
    ledger.release(first)
    second = ledger.lease(um, 0, 0.0, "second")
    with pytest.raises(LeaseError, match=str(first.token)):
        ledger.release(first)
    assert second.channel.lease is second
    assert state(ledger, "a:1") is ChannelState.LEASED
    assert len(ledger) == 1


def test_another_ledgers_lease_is_not_held_whatever_its_token() -> None:
    ledger, um, _ = two_packs()
    other, elsewhere, _ = two_packs()
    lease, stranger = ledger.lease(um, 0, 0.0, "call"), other.lease(elsewhere, 0, 0.0, "call")
    assert lease.token == stranger.token
    assert ledger.holds(lease)
    assert not ledger.holds(stranger)
    with pytest.raises(LeaseError, match="not held"):
        ledger.release(stranger)
    assert ledger.holds(lease)


@pytest.mark.parametrize("token", [0, -1, 999])
def test_a_token_never_given_is_an_error(token: int) -> None:
    ledger, _, _ = two_packs()
    with pytest.raises(LeaseError):
        ledger.lease_of(LeaseToken(token))


def test_tokens_are_never_used_twice() -> None:
    ledger, um, _ = two_packs()
    tokens = []
    for _ in range(5):
        lease = ledger.lease(um, 0, 0.0, "call")
        tokens.append(lease.token)
        ledger.release(lease)
    assert len(set(tokens)) == 5


def test_a_block_takes_an_idle_channel_out_of_every_pack() -> None:
    ledger, um, spare = two_packs()
    channel = ledger.channels[ChannelId("a:2")]
    ledger.block(channel, "anna", "painting")
    assert state(ledger, channel.id) is ChannelState.BLOCKED
    assert (idle(um), idle(spare)) == (["a:1", "a:3"], ["a:3"])
    ledger.unblock(channel, "anna")
    assert state(ledger, channel.id) is ChannelState.IDLE
    assert (idle(um), idle(spare)) == (["a:1", "a:2", "a:3"], ["a:3", "a:2"])


def test_one_source_never_undoes_anothers_block() -> None:
    ledger, um, _ = two_packs()
    channel = ledger.channels[ChannelId("a:1")]
    ledger.block(channel, "anna", "painting")
    ledger.block(channel, "health", "ejected")
    ledger.block(channel, "anna", "painting again")
    ledger.unblock(channel, "anna")
    assert channel.blocks == {"health": "ejected"}
    assert state(ledger, channel.id) is ChannelState.BLOCKED
    ledger.unblock(channel, "nobody")
    assert 0 not in um.idle
    ledger.unblock(channel, "health")
    assert 0 in um.idle
    ledger.unblock(channel, "health")
    assert state(ledger, channel.id) is ChannelState.IDLE


def test_a_blocked_call_runs_on_and_its_channel_stays_out_afterwards() -> None:
    ledger, um, spare = two_packs()
    lease = ledger.lease(um, 1, 0.0, "call")
    ledger.block(lease.channel, "anna", "painting")
    assert state(ledger, lease.channel.id) is ChannelState.DRAINING
    assert ledger.holds(lease)
    ledger.release(lease)
    assert state(ledger, lease.channel.id) is ChannelState.BLOCKED
    assert (idle(um), idle(spare)) == (["a:1", "a:3"], ["a:3"])
    ledger.unblock(lease.channel, "anna")
    assert (idle(um), idle(spare)) == (["a:1", "a:2", "a:3"], ["a:3", "a:2"])


def test_a_removed_channel_lives_on_for_its_call_only() -> None:
    ledger, um, _ = two_packs()
    ended, moved = ledger.lease(um, 0, 0.0, "ended"), ledger.lease(um, 1, 0.0, "moved")
    for lease in (ended, moved):
        ledger.block(lease.channel, REMOVED, "removed from the configuration")
    assert len(ledger.channels) == 3
    ledger.release(ended)
    assert list(ledger.channels) == ["a:2", "a:3"]
    assert ledger.move(moved, um.channels[2])
    assert list(ledger.channels) == ["a:3"]
    assert (ledger.holds(moved), moved.channel.id) == (True, "a:3")


def test_a_block_taken_back_during_the_call_leaves_no_trace() -> None:
    ledger, um, _ = two_packs()
    lease = ledger.lease(um, 1, 0.0, "call")
    ledger.block(lease.channel, "anna", "painting")
    ledger.unblock(lease.channel, "anna")
    assert state(ledger, lease.channel.id) is ChannelState.LEASED
    assert 1 not in um.idle
    ledger.release(lease)
    assert 1 in um.idle


def test_new_packs_take_over_under_running_calls() -> None:
    ledger, um, spare = two_packs()
    lease = ledger.lease(um, 0, 0.0, "call")
    ledger.block(ledger.channels[ChannelId("a:2")], "anna", "painting")
    fresh = Pack(plan("fresh", ["a:1", "a:2"]), um.channels[:2])
    other = Pack(plan("other", ["a:3", "a:1"]), (um.channels[2], um.channels[0]))
    ledger.seat([fresh, other])
    assert (idle(fresh), idle(other)) == ([], ["a:3"])
    ledger.release(lease)
    assert (idle(fresh), idle(other)) == (["a:1"], ["a:3", "a:1"])
    assert "a:1" not in idle(um)
    assert [seat.pack for seat in lease.channel.seats] == [fresh, other]
    assert all(seat.pack is not spare for c in ledger.channels.values() for seat in c.seats)


def test_a_channel_no_pack_has_any_more_has_no_seat() -> None:
    ledger, um, _ = two_packs()
    lease = ledger.lease(um, 0, 0.0, "call")
    only = Pack(plan("only", ["a:3"]), um.channels[2:])
    ledger.seat([only])
    assert [len(channel.seats) for channel in ledger.channels.values()] == [0, 0, 1]
    ledger.release(lease)
    assert lease.channel.state is ChannelState.IDLE
    assert idle(only) == ["a:3"]


def test_the_leases_may_be_ended_while_they_are_walked() -> None:
    ledger, um, _ = two_packs()
    for position in range(3):
        ledger.lease(um, position, 0.0, "call")
    for lease in ledger:
        ledger.release(lease)
    assert len(ledger) == 0


def test_reprs_are_status_lines() -> None:
    ledger, um, _ = two_packs()
    lease = ledger.lease(um, 0, 0.0, "call")
    assert repr(lease) == f"<lease {lease.token} of a:1 in um>"
    assert repr(ledger) == "<1 of 3 channels leased>"
