"""Channels held for calls that are in the PBX already, and leases whose calls are not."""

from __future__ import annotations

import pytest

from tests.sites import ANSWERED, HUNG_UP, call, one_pack, one_record, take, trunk
from umpack.core.administration import Drain
from umpack.core.calls import Ending, Refusal
from umpack.core.channel import ChannelId, ChannelState
from umpack.core.distributor import Distributor
from umpack.core.errors import LeaseError
from umpack.core.pack import PackId, Strategy
from umpack.core.roster import UnknownTarget

A = trunk("a", 3)
A2 = ChannelId("a:2")


def test_an_adopted_channel_is_given_to_nobody() -> None:
    distributor = Distributor(one_pack(A))
    lease = distributor.adopt(A2, call(), 1.0)
    assert lease is not None
    assert (lease.pack, lease.position, lease.after) == (None, -1, -1)
    assert [take(distributor).channel for _ in range(2)] == ["a:1", "a:3"]
    assert isinstance(distributor.offer(call(), 1.0), Refusal)
    distributor.take_records()
    distributor.abandon(lease.token, 9.0, "gone")
    assert take(distributor).channel == "a:2"
    record = one_record(distributor)
    assert (record.ending, record.offered, record.ended) == (Ending.ADOPTED, 1.0, 9.0)
    assert (record.attempts, record.why) == ((), "gone (a:2)")


def test_what_is_held_cannot_be_adopted() -> None:
    distributor = Distributor(one_pack(A))
    assert distributor.adopt(A2, call(), 1.0)
    assert distributor.adopt(A2, call(), 1.0) is None
    assert distributor.adopt(take(distributor).channel, call(), 1.0) is None
    assert len(distributor.ledger) == 2
    with pytest.raises(UnknownTarget):
        distributor.adopt(ChannelId("a:4"), call(), 1.0)


def test_adoption_moves_no_pointer() -> None:
    distributor = Distributor(one_pack(A, strategy=Strategy.CYCLIC))
    take(distributor)
    distributor.adopt(ChannelId("a:3"), call(), 1.0)
    assert distributor.packs[PackId("um")].pointer == "a:1"
    assert take(distributor).channel == "a:2"


def test_a_drained_channel_may_be_adopted_and_stays_drained() -> None:
    distributor = Distributor(one_pack(A))
    distributor.drain(Drain("a:2", "anna", "", 0.0))
    lease = distributor.adopt(A2, call(), 1.0)
    assert lease is not None
    states = [lease.channel.state]
    distributor.abandon(lease.token, 2.0, "gone")
    assert [*states, lease.channel.state] == [ChannelState.DRAINING, ChannelState.BLOCKED]


def test_a_removed_channel_leaves_with_the_call_that_was_adopted_on_it() -> None:
    distributor = Distributor(one_pack(A))
    lease = distributor.adopt(A2, call(), 1.0)
    assert lease is not None
    distributor.reload(one_pack(trunk("b", 1)))
    assert "a:2" in distributor.ledger.channels
    distributor.abandon(lease.token, 2.0, "gone")
    assert set(distributor.ledger.channels) == {"b:1"}


def test_a_leaked_lease_ends_once_and_is_counted_as_such() -> None:
    distributor = Distributor(one_pack(A))
    lease = take(distributor).lease
    distributor.abandon(lease.token, 50.0, "its channel is gone from the PBX")
    record = one_record(distributor)
    assert (record.ending, record.why) == (Ending.LEAKED, "its channel is gone from the PBX")
    assert [attempt.channel for attempt in record.attempts] == ["a:1"]
    assert take(distributor).channel == "a:1"
    for again in (
        lambda: distributor.outcome(lease, ANSWERED, 51.0),
        lambda: distributor.outcome(lease, HUNG_UP, 51.0),
        lambda: distributor.release(lease.token, 51.0),
        lambda: distributor.abandon(lease.token, 51.0, "again"),
    ):
        with pytest.raises(LeaseError):
            again()
    distributor.answered(lease, 51.0)
    assert len(distributor.ledger) == 1
    assert distributor.take_records() == []
