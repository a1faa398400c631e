"""Scenarios of ISDN lines that broke other switches, by their old letters, as far as the core has
them; the simulated board plays them with real timers elsewhere.
"""

from __future__ import annotations

import pytest

from tests.sites import (
    ANSWERED,
    all_of,
    assigned,
    call,
    one_pack,
    plan,
    refused,
    site,
    take,
    trunk,
)
from umpack.core.administration import Drain
from umpack.core.calls import Refusal
from umpack.core.channel import ChannelId, ChannelState
from umpack.core.distributor import Distributor
from umpack.core.errors import LeaseError
from umpack.core.health_policy import HealthPolicy
from umpack.core.health_states import AlarmKind, HealthState
from umpack.core.pack import PackId, Strategy
from umpack.core.trunk import TrunkId, TrunkKind

SPAN = trunk("a", 3, kind=TrunkKind.S2M)
OTHER = trunk("b", 3, kind=TrunkKind.S2M, first=32)
A = TrunkId("a")


def channel_state(distributor: Distributor, name: str) -> ChannelState:
    return distributor.ledger.channels[ChannelId(name)].state


def test_isdn_a_the_d_channel_is_away_for_3_s_and_active_calls_live() -> None:
    distributor = Distributor(one_pack(SPAN, OTHER))
    active, ringing = take(distributor, now=10.0), take(distributor, now=11.0)
    distributor.answered(active.lease, 10.5)
    distributor.alarm_raised(A, AlarmKind.D_CHANNEL, 12.0)
    assert take(distributor, now=12.0).channel.startswith("b"), "no new calls"
    moved = assigned(distributor.outcome(ringing.lease, refused(27), 12.1))
    assert moved.channel.startswith("b"), "ringing ones are cleared, and go elsewhere"
    assert distributor.ledger.holds(active.lease)
    distributor.alarm_cleared(A, AlarmKind.D_CHANNEL, 15.0)
    assert distributor.ledger.holds(active.lease), "T309 was longer"
    distributor.tick(17.1)
    assert distributor.health[A].state is HealthState.SLOW_START
    assert take(distributor, now=17.1).channel == "a:2"
    assert distributor.outcome(active.lease, ANSWERED, 60.0).cause == 16  # type: ignore[union-attr]
    assert channel_state(distributor, "a:1") is ChannelState.IDLE


def test_isdn_a_a_short_alarm_whose_end_nobody_told_is_ended_by_the_next_look() -> None:
    distributor = Distributor(one_pack(SPAN, OTHER))
    distributor.alarm_raised(A, AlarmKind.RED, 10.0)
    distributor.alarms_seen(A, {}, AlarmKind, 30.0)
    distributor.tick(33.0)
    assert take(distributor, now=33.0).channel == "a:1"


def test_isdn_b_a_channel_whose_restart_nobody_acknowledges_returns() -> None:
    distributor = Distributor(one_pack(SPAN, OTHER))
    policy = HealthPolicy()
    for now in range(policy.channel_failures):
        first = take(distributor, now=float(now))
        assert first.channel == "a:1"
        again = assigned(distributor.outcome(first.lease, refused(44), float(now)))
        assert again.channel == "b:1", "the call is not lost"
        distributor.outcome(again.lease, ANSWERED, float(now))
    rests_until = policy.channel_failures - 1 + policy.channel_rest
    assert take(distributor, now=rests_until - 0.1).channel == "a:2"
    assert take(distributor, now=rests_until).channel == "a:1"


@pytest.mark.parametrize("strategy", Strategy)
def test_isdn_c_the_peer_moves_the_call_to_another_channel(strategy: Strategy) -> None:
    distributor = Distributor(one_pack(SPAN, strategy=strategy))
    lease = take(distributor).lease
    assert distributor.moved(lease, ChannelId("a:3"))
    assert channel_state(distributor, "a:1") is ChannelState.IDLE
    assert len(distributor.ledger) == 1
    assert sorted(take(distributor).channel for _ in range(2)) == ["a:1", "a:2"]
    assert isinstance(distributor.offer(call(), 0.0), Refusal), "a:3 is not given twice"
    distributor.outcome(lease, ANSWERED, 1.0)
    record = distributor.take_records()[-1]
    assert record.channel == "a:3"
    assert take(distributor).channel == "a:3"


def test_isdn_c_it_is_not_moved_onto_a_call_nor_to_another_span_nor_when_over() -> None:
    distributor = Distributor(one_pack(SPAN, OTHER))
    first, second = take(distributor), take(distributor)
    for goal in (second.channel, "b:1", "ghost:1"):
        assert not distributor.moved(first.lease, ChannelId(goal))
    assert first.lease.channel.id == "a:1"
    distributor.outcome(first.lease, ANSWERED, 1.0)
    with pytest.raises(LeaseError):
        distributor.moved(first.lease, ChannelId("a:3"))


def test_isdn_c_a_drain_stays_where_it_was_set() -> None:
    distributor = Distributor(one_pack(SPAN, OTHER))
    lease = take(distributor).lease
    distributor.drain(Drain("a:1", "anna", "", 0.0))
    assert distributor.moved(lease, ChannelId("a:2"))
    assert channel_state(distributor, "a:1") is ChannelState.BLOCKED
    distributor.outcome(lease, ANSWERED, 1.0)
    assert channel_state(distributor, "a:2") is ChannelState.IDLE


def test_isdn_c_the_line_of_a_span_that_has_gone_leaves_with_its_call() -> None:
    distributor = Distributor(one_pack(SPAN))
    lease = take(distributor).lease
    other = take(distributor).lease
    distributor.reload(one_pack(OTHER))
    assert not distributor.moved(lease, ChannelId("a:2"))
    distributor.release(other.token, 1.0)
    distributor.release(lease.token, 1.0)
    assert sorted(distributor.ledger.channels) == ["b:1", "b:2", "b:3"]


def test_isdn_d_a_channel_just_freed_is_offered_once() -> None:
    """Nothing is read before it is written: the lease ends and the channel is idle in one step."""
    distributor = Distributor(one_pack(trunk("a", 1, kind=TrunkKind.S0)))
    for _ in range(5):
        lease = take(distributor).lease
        distributor.outcome(lease, ANSWERED, 1.0)
        answers = [distributor.offer(call(), 1.0) for _ in range(3)]
        assert [isinstance(answer, Refusal) for answer in answers] == [False, True, True]
        distributor.release(assigned(answers[0]).lease.token, 1.0)


def test_isdn_e_nobody_starves_in_a_slow_start_from_nothing() -> None:
    """There are no weights; the nearest to a weight of 0 is a capacity that grows from 0."""
    policy = HealthPolicy(slow_start_share=0.0)
    lines = [trunk(name, 1) for name in "ab"]
    distributor = Distributor(
        site(lines, [plan("um", all_of(*lines), Strategy.CYCLIC)], policy=policy)
    )
    distributor.alarm_raised(A, AlarmKind.RED, 10.0)
    distributor.alarm_cleared(A, AlarmKind.RED, 11.0)
    met = ""
    for now in range(14, 24):
        answer = take(distributor, now=float(now))
        met += answer.channel[0]
        distributor.outcome(answer.lease, ANSWERED, now + 0.5)
    assert met in ("abababababab"[:10], "babababababa"[:10])


def test_isdn_f_put_out_and_in_again_and_again_while_calls_run() -> None:
    distributor = Distributor(one_pack(SPAN))
    pack = distributor.packs[PackId("um")]
    held = [take(distributor), take(distributor)]
    for now in range(20):
        distributor.drain(Drain("a", "anna", "", float(now)))
        if now % 3 == 0:
            distributor.alarm_raised(A, AlarmKind.RED, float(now))
        if now == 10:
            distributor.outcome(held[0].lease, ANSWERED, 10.0)
        assert distributor.enable("a")
        if now % 3 == 1:
            distributor.alarms_seen(A, {}, AlarmKind, float(now))
    distributor.tick(500.0)
    assert list(pack.idle) == [0, 2]
    assert [take(distributor, now=600.0).channel for _ in range(2)] == ["a:1", "a:3"]
    assert isinstance(distributor.offer(call(), 600.0), Refusal)
    leases = tuple(distributor.ledger)
    assert [lease.channel.id for lease in leases] == ["a:2", "a:1", "a:3"]
    assert leases[0] is held[1].lease
    for lease in leases:
        distributor.release(lease.token, 700.0)
    assert list(pack.idle) == [0, 1, 2], "each once"
