"""Health through reloads and restarts: it stays with the line, and nothing hangs on old names."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.sites import ANSWERED, MAIN, assigned, call, one_pack, refused, take, trunk
from umpack.core.channel import ChannelId, ChannelState
from umpack.core.distributor import Distributor
from umpack.core.health_states import AlarmKind, HealthState
from umpack.core.site import Site
from umpack.core.trunk import TrunkId, TrunkKind

EJECTED, HALF_OPEN = HealthState.EJECTED, HealthState.HALF_OPEN
A, B, C = trunk("a", 4), trunk("b", 4), trunk("c", 4)


def state(distributor: Distributor, name: str) -> HealthState:
    return distributor.health[TrunkId(name)].state


def eject(distributor: Distributor, *names: str, now: float = 0.0) -> None:
    for name in names:
        distributor.eject(TrunkId(name), now, "by anna")


def spans(**firsts: int) -> Site:
    """S2M trunks by the number of their first channel, all in one pack."""
    kind = TrunkKind.S2M
    return one_pack(*(trunk(name, 4, kind=kind, first=n) for name, n in firsts.items()))


@pytest.mark.parametrize(
    ("after", "ejected"),
    [
        ({"a": 1, "b": 32}, "a"),  # unchanged
        ({"line": 1, "b": 32}, "line"),  # renamed
        ({"b": 1, "a": 32}, "b"),  # names swapped
        ({"a": 63, "b": 32}, "a"),  # moved to another span
        ({"a": 1, "b": 32, "c": 63}, "a"),  # another one added
    ],
)
def test_reload_while_ejected_keeps_health_with_the_line(
    after: dict[str, int], ejected: str
) -> None:
    distributor = Distributor(spans(a=1, b=32))
    eject(distributor, "a", now=10.0)
    distributor.reload(spans(**after), 20.0)
    out = {id_ for id_, health in distributor.health.items() if health.state is EJECTED}
    assert out == {ejected}
    assert all(health.trunk == id_ for id_, health in distributor.health.items())
    for _ in range(4 * (len(after) - 1)):
        assert not take(distributor, now=21.0).channel.startswith(f"{ejected}:")
    due = distributor.health[TrunkId(ejected)].timer
    assert take(distributor, now=due).channel.startswith(f"{ejected}:")


def test_a_sip_trunk_is_known_by_its_endpoint() -> None:
    distributor = Distributor(one_pack(A, B))
    eject(distributor, "a", now=10.0)
    renamed = replace(A, id=TrunkId("um1"))
    distributor.reload(one_pack(renamed, B), 20.0)
    assert state(distributor, "um1") is EJECTED


def test_sip_trunks_that_swap_their_names_take_their_health_with_them() -> None:
    distributor = Distributor(one_pack(A, B))
    eject(distributor, "a", now=10.0)
    swapped = replace(A, id=TrunkId("b")), replace(B, id=TrunkId("a"))
    distributor.reload(one_pack(*swapped), 20.0)
    assert state(distributor, "b") is EJECTED
    assert state(distributor, "a") is HealthState.UP


def test_a_trunk_that_was_away_is_as_it_was() -> None:
    distributor = Distributor(one_pack(A, B, C))
    eject(distributor, "a", now=10.0)
    distributor.reload(one_pack(B, C), 11.0)
    distributor.reload(one_pack(A, B, C), 12.0)
    assert state(distributor, "a") is EJECTED


def test_a_name_is_told_nothing_of_a_line_that_has_gone_when_another_has_had_it_since() -> None:
    distributor = Distributor(spans(a=1, b=32, c=63))
    eject(distributor, "a", now=10.0)
    distributor.reload(spans(a=32, c=63), 11.0)  # its span has gone, and b has its name
    assert [memory.trunk for memory in distributor.memories(11.0)] == ["a", "c"]
    distributor.reload(spans(c=63), 12.0)
    distributor.reload(spans(a=94, c=63), 13.0)
    assert state(distributor, "a") is HealthState.UP


def test_a_trunk_is_remembered_as_it_left_last() -> None:
    distributor = Distributor(spans(a=1, b=32, c=63))
    eject(distributor, "a", now=10.0)
    distributor.reload(spans(b=32, c=63), 11.0)
    distributor.reload(spans(a=32, c=63), 12.0)  # b under the name that is remembered
    distributor.reload(spans(c=63), 13.0)
    distributor.reload(spans(a=94, c=63), 14.0)
    assert state(distributor, "a") is HealthState.UP


def test_what_failed_on_the_channels_of_another_span_is_not_held_against_the_new_one() -> None:
    distributor = Distributor(spans(a=1))
    for _ in range(3):
        distributor.outcome(take(distributor, now=1.0).lease, refused(44), 1.0)
    assert distributor.ledger.channels[ChannelId("a:1")].state is ChannelState.BLOCKED
    distributor.reload(spans(a=32), 2.0)
    distributor.outcome(take(distributor, now=3.0).lease, refused(44), 3.0)
    assert distributor.ledger.channels[ChannelId("a:1")].state is ChannelState.IDLE
    for _ in range(2):
        distributor.outcome(take(distributor, now=4.0).lease, refused(44), 4.0)
    assert distributor.ledger.channels[ChannelId("a:1")].state is ChannelState.BLOCKED


def test_a_trial_under_way_ends_although_the_names_have_been_swapped() -> None:
    distributor = Distributor(spans(a=1, b=32))
    eject(distributor, "a", now=10.0)
    due = distributor.health[TrunkId("a")].timer
    trial = take(distributor, now=due)
    distributor.reload(spans(b=1, a=32), due)
    distributor.outcome(trial.lease, refused(41), due + 1)
    assert state(distributor, "b") is EJECTED
    again = distributor.health[TrunkId("b")].timer
    assert take(distributor, now=again).channel.startswith("b:")


def test_a_trial_on_a_line_that_has_gone_does_not_block_the_next_one() -> None:
    distributor = Distributor(spans(a=1, b=32))
    eject(distributor, "a", now=10.0)
    due = distributor.health[TrunkId("a")].timer
    trial = take(distributor, now=due)
    distributor.reload(spans(a=63, b=32), due)
    assert state(distributor, "a") is HALF_OPEN
    distributor.outcome(trial.lease, refused(41), due + 1)
    assert state(distributor, "a") is HALF_OPEN, "that line says nothing of this one"
    assert take(distributor, now=due + 2).channel.startswith("a:")


def test_a_reload_without_a_time_turns_no_clock_back() -> None:
    distributor = Distributor(one_pack(A, B))
    eject(distributor, "a", now=1000.0)
    distributor.tick(1040.0)
    trial = take(distributor, now=1041.0)
    distributor.answered(trial.lease, 1041.1)
    distributor.tick(1050.0)
    limit = distributor.health[TrunkId("a")].limit
    distributor.reload(one_pack(A, B))
    assert distributor.health[TrunkId("a")].limit >= limit
    assert all(change.at >= 1000.0 for change in distributor.take_changes())


def restarted(distributor: Distributor, world: Site, now: float) -> Distributor:
    fresh = Distributor(world)
    fresh.remembered(distributor.memories(now), now)
    return fresh


def test_a_restart_keeps_ejections_and_how_often() -> None:
    world = one_pack(A, B)
    distributor = Distributor(world)
    for n in range(3):
        eject(distributor, "a", now=10.0 + n)
    before = distributor.health[TrunkId("a")]
    fresh = restarted(distributor, world, 20.0)
    after = fresh.health[TrunkId("a")]
    assert (after.state, after.timer) == (EJECTED, before.timer)
    assert after.times(20.0) == before.times(20.0) == 3
    assert [take(fresh, now=21.0).channel[0] for _ in range(4)] == ["b"] * 4
    assert take(fresh, now=after.timer).channel == "a:1"


def test_a_restart_remembers_trunks_that_are_not_there_yet() -> None:
    distributor = Distributor(one_pack(A, B))
    eject(distributor, "a", now=10.0)
    fresh = restarted(distributor, one_pack(B), 20.0)
    assert {memory.trunk for memory in fresh.memories(20.0)} == {"a", "b"}
    fresh.reload(one_pack(A, B), 21.0)
    assert state(fresh, "a") is EJECTED


@pytest.mark.parametrize("kind", ["alarm", "rest"])
def test_nothing_stays_on_a_channel_whose_call_outlived_its_trunk(kind: str) -> None:
    """The trunk leaves the configuration and returns while a call holds the channel: what was
    known of the trunk is gone by then, and nobody else would ever take the block back."""
    distributor = Distributor(spans(a=1, b=32))
    if kind == "alarm":
        held = take(distributor, now=10.0).lease
        distributor.alarm_raised(TrunkId("a"), AlarmKind.D_CHANNEL, 11.0)
    else:
        for now in range(3):
            lease = take(distributor, now=float(now)).lease
            again = assigned(distributor.outcome(lease, refused(44), float(now)))
            distributor.outcome(again.lease, ANSWERED, float(now))
        adopted = distributor.adopt(ChannelId("a:1"), call(), 11.0)
        assert adopted
        held = adopted
    assert kind in held.channel.blocks
    distributor.reload(spans(b=32), 12.0)
    distributor.reload(spans(a=1, b=32), 13.0)
    distributor.abandon(held.token, 14.0, "over")
    assert not held.channel.blocks
    assert held.channel.state is ChannelState.IDLE


@pytest.mark.parametrize("kind", ["alarm", "rest"])
def test_a_block_stays_for_as_long_as_its_reason(kind: str) -> None:
    distributor = Distributor(spans(a=1, b=32))
    if kind == "alarm":
        distributor.alarm_raised(TrunkId("a"), AlarmKind.D_CHANNEL, 11.0)
    else:
        for now in range(3):
            lease = take(distributor, now=float(now)).lease
            again = assigned(distributor.outcome(lease, refused(44), float(now)))
            distributor.outcome(again.lease, ANSWERED, float(now))
    distributor.reload(spans(a=1, b=32, c=63), 12.0)
    assert kind in distributor.ledger.channels[ChannelId("a:1")].blocks
    distributor.alarm_cleared(TrunkId("a"), AlarmKind.D_CHANNEL, 13.0)
    distributor.tick(100.0)
    assert distributor.ledger.channels[ChannelId("a:1")].blocks == {}


def test_alarms_are_doubted_through_a_reload_while_the_link_is_down() -> None:
    distributor = Distributor(spans(a=1))
    distributor.alarm_raised(TrunkId("a"), AlarmKind.RED, 10.0)
    distributor.see(MAIN, 20.0, linked=False)
    distributor.reload(spans(line=1), 40.0)
    assert state(distributor, "line") is HealthState.ALARMED
    assert take(distributor, now=50.0).channel == "line:1"
    distributor.alarms_seen(TrunkId("line"), {AlarmKind.RED: "LOS"}, AlarmKind, 60.0)
    assert state(distributor, "line") is HealthState.ALARMED
    distributor.tick(90.0)
    assert state(distributor, "line") is HealthState.SUSPECT, "the link has been down all along"
