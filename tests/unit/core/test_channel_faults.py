"""Single channels at fault: rested, longer each time, and never so many that it is the trunk."""

from __future__ import annotations

from math import inf

import pytest

from tests.sites import one_pack, refused, take, trunk
from umpack.core.channel import ChannelId
from umpack.core.channel_faults import ChannelFaults
from umpack.core.distributor import Distributor
from umpack.core.health_policy import HealthPolicy

POLICY = HealthPolicy()
ONE = ChannelId("line1:1")


@pytest.fixture
def faults() -> ChannelFaults:
    return ChannelFaults(POLICY, 30)


def wear_out(faults: ChannelFaults, channel: ChannelId, now: float = 0.0) -> None:
    for _ in range(POLICY.channel_failures):
        faults.failed(channel, now, "cause 44")


def test_three_in_a_row_rest_a_channel(faults: ChannelFaults) -> None:
    assert faults.failed(ONE, 0.0, "cause 44") is None
    assert faults.failed(ONE, 1.0, "cause 44") is None
    rest = faults.failed(ONE, 2.0, "cause 44")
    assert rest is not None
    assert (rest.channel, rest.until) == (ONE, 62.0)
    assert rest.why == "rests 60 s, 1st time, 3× cause 44"
    assert faults.failed(ONE, 3.0, "cause 44") is None, "it rests already"
    assert faults.due == 62.0
    assert repr(faults) == "<1 of 30 channels rest>"


def test_a_call_that_worked_wipes_the_slate(faults: ChannelFaults) -> None:
    for _ in range(5):
        faults.failed(ONE, 0.0, "cause 44")
        faults.failed(ONE, 0.0, "cause 44")
        faults.worked(ONE)
    assert faults.due == inf
    faults.worked(ChannelId("line1:9"))


def test_the_end_of_a_rest_is_told_once(faults: ChannelFaults) -> None:
    wear_out(faults, ONE)
    assert faults.rested(59.9) == ()
    assert faults.rested(60.0) == (ONE,)
    assert faults.rested(60.0) == ()


def test_rests_grow_up_to_the_cap(faults: ChannelFaults) -> None:
    wear_out(faults, ONE)
    now, rests = 60.0, []
    for _ in range(15):
        assert faults.rested(now) == (ONE,)
        rest = faults.failed(ONE, now, "cause 44")
        assert rest is not None, "one failure is enough after a rest"
        rests.append(rest.until - now)
        now = rest.until
    assert rests[:3] == [120.0, 180.0, 240.0]
    assert rests[-1] == POLICY.channel_rest_cap
    faults.rested(now)
    faults.worked(ONE)
    wear_out(faults, ONE, now)
    assert faults.due == now + 60.0


@pytest.mark.parametrize(("channels", "most"), [(30, 15), (2, 1), (3, 1), (1, 1)])
def test_more_than_half_are_the_trunk_s_own_fault(channels: int, most: int) -> None:
    faults = ChannelFaults(POLICY, channels)
    for slot in range(1, channels + 1):
        wear_out(faults, ChannelId(f"line1:{slot}"))
        assert faults.blames_trunk is (slot > most)
    assert len(faults.rested(inf)) == most


def test_people_can_restore_all(faults: ChannelFaults) -> None:
    wear_out(faults, ONE)
    assert faults.restore() == (ONE,)
    assert faults.due == inf
    assert faults.failed(ONE, 0.0, "cause 44") is None


def test_channels_that_have_gone_do_not_speak_against_the_trunk(faults: ChannelFaults) -> None:
    for slot in (1, 2, 3):
        wear_out(faults, ChannelId(f"line1:{slot}"))
    faults.adjust(POLICY, [ChannelId("line1:3"), ChannelId("line1:4"), ChannelId("line1:5")])
    assert not faults.blames_trunk
    assert faults.rests(ChannelId("line1:3"))
    assert faults.rested(inf) == (ChannelId("line1:3"),)


def test_a_call_that_was_answered_counts_whoever_ends_it() -> None:
    distributor = Distributor(one_pack(trunk("line1", 1)))
    for now in range(10):
        worked = take(distributor, now=now + 0.0)
        distributor.answered(worked.lease, now + 0.1)
        distributor.release(worked.lease.token, now + 0.2)
        failed = take(distributor, now=now + 0.3)
        distributor.outcome(failed.lease, refused(44), now + 0.4)
    assert not distributor.ledger.channels[ChannelId("line1:1")].blocks
