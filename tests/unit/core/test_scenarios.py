"""Scenarios that broke other distributors, by their old names.

Each was a bug of a well-known PBX or proxy (turns lost on reload, counters below zero, calls ended
at a full first trunk, endless hunting). Here they are about the core alone; the same ones run
against a real PBX elsewhere.
"""

from __future__ import annotations

from itertools import permutations

import pytest

from tests.sites import (
    ANSWERED,
    HUNG_UP,
    SILENT,
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
from tests.unit.core.storms import RINGS, SAYS_503, Storm, um_site
from umpack.core.administration import Drain
from umpack.core.calls import Assignment, Decision, Done, Ending, Reason, Refusal
from umpack.core.causes import Location, Outcome, Result
from umpack.core.channel import ChannelId, ChannelState
from umpack.core.distributor import Distributor
from umpack.core.errors import LeaseError
from umpack.core.health_states import AlarmKind, HealthState
from umpack.core.pack import PackId, Strategy
from umpack.core.site import Site
from umpack.core.trunk import TrunkId, TrunkKind

LINES = {name: trunk(name, 1) for name in "ABCDEXYZ"}


def world(names: str, strategy: Strategy = Strategy.CYCLIC) -> Site:
    return one_pack(*(LINES[name] for name in names), strategy=strategy)


def deal(distributor: Distributor, count: int) -> str:
    """Take calls one after the other, each over before the next; the trunks they met."""
    met = ""
    for _ in range(count):
        answer = take(distributor)
        met += answer.channel[0]
        distributor.outcome(answer.lease, ANSWERED, 1.0)
    return met


# -- 1: a round of turns survives reloads -----------------------------------------------------


def test_scenario_1_removing_a_member_that_had_its_turn_does_not_skip_the_next() -> None:
    distributor = Distributor(world("ABCDE"))
    assert deal(distributor, 3) == "ABC"
    distributor.reload(world("BCDE"))
    assert deal(distributor, 4) == "DEBC"


@pytest.mark.parametrize("gone", ["A", "B", "C", "AB", "BC", "ABC", "AE", "CE"])
def test_scenario_1_whoever_leaves_the_next_in_turn_stays_next(gone: str) -> None:
    distributor = Distributor(world("ABCDE"))
    deal(distributor, 3)
    left = "".join(name for name in "ABCDE" if name not in gone)
    distributor.reload(world(left))
    after = left[left.index("D") :] + left[: left.index("D")]
    assert deal(distributor, len(left)) == after


def test_scenario_1_adding_and_removing_others_reshuffles_nobody() -> None:
    distributor = Distributor(world("ABCDE"))
    deal(distributor, 3)
    for names in ("ABCDEX", "XABCDE", "ABCDE", "BCDEXY", "ABCDE"):
        distributor.reload(world(names))
    assert deal(distributor, 5) == "DEABC"


def test_scenario_1_under_running_calls() -> None:
    distributor = Distributor(world("ABCDE"))
    running = [take(distributor) for _ in "ABC"]
    distributor.reload(world("BCDE"))
    assert take(distributor).channel == "D:1"
    distributor.release(running[0].lease.token, 1.0)
    distributor.release(running[2].lease.token, 1.0)
    assert [take(distributor).channel[0] for _ in "EC"] == ["E", "C"]
    assert isinstance(distributor.offer(call(), 2.0), Refusal)


# -- 2: linear order is the order of the file -------------------------------------------------


@pytest.mark.parametrize("order", ["".join(p) for p in permutations("ABX")])
def test_scenario_2_a_member_added_later_keeps_its_place_through_reloads(order: str) -> None:
    distributor = Distributor(world("AB", Strategy.LINEAR))
    for _ in range(3):
        distributor.reload(world(order, Strategy.LINEAR))
        leases = [take(distributor) for _ in order]
        assert "".join(answer.channel[0] for answer in leases) == order
        for answer in reversed(leases):
            distributor.outcome(answer.lease, ANSWERED, 1.0)


def test_scenario_2_the_strategy_can_be_switched_under_calls() -> None:
    distributor = Distributor(world("ABCD", Strategy.CYCLIC))
    assert deal(distributor, 2) == "AB"
    running = take(distributor)
    assert running.channel == "C:1"
    distributor.reload(world("ABCD", Strategy.LINEAR))
    assert deal(distributor, 2) == "AA"
    distributor.reload(world("ABCD", Strategy.CYCLIC))
    assert deal(distributor, 3) == "BDA"


# -- 3: capacity is never overrun -------------------------------------------------------------


@pytest.mark.parametrize("strategy", Strategy)
def test_scenario_3_eight_calls_at_once_on_two_channels(strategy: Strategy) -> None:
    distributor = Distributor(world("AB", strategy))
    answers = [distributor.offer(call(), 0.0) for _ in range(8)]
    carried = [answer for answer in answers if isinstance(answer, Assignment)]
    full = [answer for answer in answers if isinstance(answer, Refusal)]
    assert sorted(answer.channel for answer in carried) == ["A:1", "B:1"]
    assert [answer.reason for answer in full] == [Reason.FULL] * 6
    assert len(distributor.take_records()) == 6
    distributor.release(carried[0].lease.token, 1.0)
    assert take(distributor).channel == carried[0].channel


def test_scenario_3_retries_do_not_overrun_either() -> None:
    distributor = Distributor(world("AB"))
    first, second = take(distributor), take(distributor)
    moved = distributor.outcome(first.lease, refused(41), 1.0)
    assert isinstance(moved, Refusal), "B is busy with the other call"
    assert take(distributor).channel == "A:1"
    assert isinstance(distributor.outcome(second.lease, refused(41), 1.0), Refusal)
    assert len(distributor.ledger) == 1


# -- 4: hang-up handled twice -----------------------------------------------------------------


def test_scenario_4_the_count_falls_once_and_the_channel_stays_eligible() -> None:
    distributor = Distributor(world("A"))
    for _ in range(3):
        lease = take(distributor).lease
        distributor.outcome(lease, HUNG_UP, 1.0)
        for _ in range(3):
            with pytest.raises(LeaseError):
                distributor.release(lease.token, 1.0)
            with pytest.raises(LeaseError):
                distributor.outcome(lease, HUNG_UP, 1.0)
        assert len(distributor.ledger) == 0
        assert len(distributor.take_records()) == 1
        assert distributor.ledger.channels[ChannelId("A:1")].state is ChannelState.IDLE


def test_scenario_4_a_late_release_does_not_end_the_next_call() -> None:
    """Failover and hang-up cross: the first attempt's end arrives after the second began."""
    distributor = Distributor(world("AB"))
    first = take(distributor)
    second = assigned(distributor.outcome(first.lease, refused(38), 1.0))
    stranger = take(distributor)
    assert stranger.channel == first.channel
    with pytest.raises(LeaseError):
        distributor.release(first.lease.token, 2.0)
    assert {lease.token for lease in distributor.ledger} == {
        second.lease.token,
        stranger.lease.token,
    }


# -- 5: the link goes, the caller goes, the link comes back --------------------------------------


@pytest.mark.parametrize("hangs_up", ["before the alarm", "in the alarm", "after it"])
def test_scenario_5_the_channel_is_idle_when_the_link_is_back(hangs_up: str) -> None:
    distributor = Distributor(one_pack(trunk("A", 2, kind=TrunkKind.S0)))
    lease = take(distributor, now=10.0).lease
    distributor.answered(lease, 10.1)
    for when, what in enumerate(("before the alarm", "in the alarm", "after it")):
        if what == "in the alarm":
            distributor.alarm_raised(TrunkId("A"), AlarmKind.D_CHANNEL, 12.0)
        if what == "after it":
            distributor.alarm_cleared(TrunkId("A"), AlarmKind.D_CHANNEL, 14.0)
            distributor.tick(20.0)
        if what == hangs_up:
            distributor.release(lease.token, 11.0 + 2 * when)
    assert [take(distributor, now=60.0).channel for _ in range(2)] == ["A:1", "A:2"]


# -- 6: reload and restart in mid-call (what the core has of it) ------------------------------


def test_scenario_6_twenty_calls_stay_twenty_through_reloads_and_end_as_none() -> None:
    lines = [trunk(name, 5) for name in "abcd"]
    distributor = Distributor(one_pack(*lines, strategy=Strategy.CYCLIC))
    answers = [take(distributor) for _ in range(20)]
    for members in (lines, lines[:2], lines[::-1], [], lines):
        distributor.reload(one_pack(*members) if members else Site())
        assert len(distributor.ledger) == 20
        leased = [c for c in distributor.ledger.channels.values() if c.lease]
        assert len(leased) == 20
    assert isinstance(distributor.offer(call(), 1.0), Refusal)
    for answer in answers:
        distributor.outcome(answer.lease, ANSWERED, 2.0)
    assert len(distributor.ledger) == 0
    assert len(distributor.packs[PackId("um")].idle) == 20
    assert len([take(distributor) for _ in range(20)]) == 20


def test_scenario_6_old_calls_do_not_count_for_new_ones() -> None:
    distributor = Distributor(world("AB"))
    old = [take(distributor), take(distributor)]
    distributor.reload(world("XY"))
    new = [take(distributor), take(distributor)]
    for answer in old:
        distributor.release(answer.lease.token, 1.0)
    assert len(distributor.ledger) == 2
    assert isinstance(distributor.offer(call(), 1.0), Refusal)
    distributor.release(new[0].lease.token, 1.0)
    assert take(distributor).channel == new[0].channel


# -- 7: see test_health_storms: the load of the dead is spread over all survivors ------------------


# -- 8: black holes ---------------------------------------------------------------------------


def test_scenario_8_neither_who_never_answers_nor_who_refuses_at_once_draws_calls() -> None:
    names = "abcd"
    script = {"b": [(30.0, 1e9, RINGS)], "c": [(30.0, 1e9, SAYS_503)]}
    storm = Storm(um_site(names=names, interleave=True), script, rate=10.0).run(120.0)
    assert storm.lost() == []
    for name in "bc":
        tries = [c for c in storm.callers.values() if name in c.trunks and c.offered > 30.0]
        assert 1 <= len(tries) <= 12, "of 900 calls"


# -- 9: when the next trunk is tried and when not ---------------------------------------------

OBSTACLES = ["full", "drained", "blocked", "ejected", "alarmed", "without channels"]
UNTRIED = [*OBSTACLES, "in another pack that is full", "in another pack that is drained"]


def behind(obstacle: str) -> Distributor:
    """B stands behind A, which cannot take a call."""
    first, second = LINES["A"], trunk("B", 3)
    if obstacle == "without channels":
        first = trunk("A", 0)
    packs = [plan("um", [*all_of(first), *all_of(second)])]
    if obstacle.startswith("in another pack"):
        packs = [plan("um", all_of(first), overflow=["spare"]), plan("spare", all_of(second))]
    distributor = Distributor(site([first, second], packs))
    if obstacle.endswith("full"):
        take(distributor)
    elif obstacle.endswith("drained"):
        distributor.drain(Drain("A", "anna", "", 0.0))
    elif obstacle == "blocked":
        distributor.ledger.block(distributor.ledger.channels[ChannelId("A:1")], "alarm", "red")
    elif obstacle == "ejected":
        distributor.eject(TrunkId("A"), 0.0, "by anna")
    elif obstacle == "alarmed":
        distributor.alarm_raised(TrunkId("A"), AlarmKind.RED, 0.0)
    return distributor


@pytest.mark.parametrize("obstacle", UNTRIED)
def test_scenario_9_a_first_trunk_that_cannot_is_passed(obstacle: str) -> None:
    distributor = behind(obstacle)
    answer = take(distributor)
    assert answer.channel == "B:1"
    distributor.outcome(answer.lease, ANSWERED, 1.0)
    (record,) = distributor.take_records()
    assert [attempt.trunk for attempt in record.attempts] == ["B"]


@pytest.mark.parametrize("obstacle", UNTRIED)
@pytest.mark.parametrize("outcome", [refused(34), refused(44), refused(17), refused(21)])
def test_scenario_9_the_trunk_behind_is_tried_once_and_the_first_is_not(
    obstacle: str, outcome: Outcome
) -> None:
    """Another channel of B may follow a lost one (44): that is no second try of what failed."""
    distributor = behind(obstacle)
    decision: Decision = distributor.offer(call(), 0.0)
    met = []
    while isinstance(decision, Assignment):
        met.append(decision.channel)
        decision = distributor.outcome(decision.lease, outcome, 1.0)
    again = outcome.cause == 44
    assert met == (["B:1", "B:2", "B:3"] if again else ["B:1"])
    own = outcome.cause in (17, 21)
    assert isinstance(decision, Done) is own
    assert decision.cause == (outcome.cause if own else 34)


@pytest.mark.parametrize("location", Location)
def test_scenario_9_a_call_the_network_rejects_is_tried_once_more_and_the_users_no_is_a_no(
    location: Location,
) -> None:
    distributor = Distributor(world("ABC", Strategy.LINEAR))
    decision: Decision = distributor.offer(call(), 0.0)
    met = ""
    while isinstance(decision, Assignment):
        met += decision.channel[0]
        rejected = Outcome(Result.REFUSED, 21, location=location)
        decision = distributor.outcome(decision.lease, rejected, 1.0)
    assert met == ("A" if location is Location.USER else "AB")
    assert decision == Done(21)


def test_scenario_9_a_trunk_without_channels_is_no_obstacle() -> None:
    empty = trunk("A", 0)
    distributor = Distributor(one_pack(empty, LINES["B"]))
    assert take(distributor).channel == "B:1"


@pytest.mark.parametrize("outcome", [refused(34), refused(44), refused(38), refused(41), SILENT])
def test_scenario_9_the_next_trunk_is_tried(outcome: Outcome) -> None:
    distributor = Distributor(world("AB", Strategy.LINEAR))
    answer = assigned(distributor.outcome(take(distributor).lease, outcome, 1.0))
    assert answer.channel == "B:1"


@pytest.mark.parametrize("outcome", [refused(17), refused(21), refused(17, 486), refused(21, 603)])
def test_scenario_9_a_busy_subscriber_is_rung_once(outcome: Outcome) -> None:
    distributor = Distributor(world("ABC", Strategy.LINEAR))
    assert distributor.outcome(take(distributor).lease, outcome, 1.0) == Done(outcome.cause or 0)
    (record,) = distributor.take_records()
    assert (record.ending, len(record.attempts)) == (Ending.DECLINED, 1)


@pytest.mark.parametrize("cause", [34, 38, 41, 42, 47, 102])
@pytest.mark.parametrize("strategy", Strategy)
def test_scenario_9_each_trunk_gets_one_attempt(strategy: Strategy, cause: int) -> None:
    lines = [trunk(name, 3) for name in "abcd"]
    distributor = Distributor(one_pack(*lines, strategy=strategy))
    decision: Decision = distributor.offer(call(), 0.0)
    met = []
    while isinstance(decision, Assignment):
        met.append(decision.channel)
        assert len(met) <= len(lines)
        decision = distributor.outcome(decision.lease, refused(cause), 1.0)
    assert met == ["a:1", "b:1", "c:1", "d:1"]
    assert isinstance(decision, Refusal)


# -- 10: nobody is left -----------------------------------------------------------------------


@pytest.mark.parametrize("cause", [34, 44, 41, 3, 27, None])
def test_scenario_10_all_fail_and_the_answer_comes_after_bounded_attempts(
    cause: int | None,
) -> None:
    lines = [trunk(name, 30) for name in "abcd"]
    spare = trunk("e", 30)
    distributor = Distributor(
        site(
            [*lines, spare],
            [plan("um", all_of(*lines), overflow=["spare"]), plan("spare", all_of(spare))],
        )
    )
    decision: Decision = distributor.offer(call(), 0.0)
    attempts = 0
    while isinstance(decision, Assignment):
        attempts += 1
        assert attempts <= 15, "three channels of each of five trunks at the very most"
        decision = distributor.outcome(decision.lease, refused(cause), 0.0)
    (record,) = distributor.take_records()
    assert len(record.attempts) == attempts
    assert len(distributor.ledger) == 0
    told = decision.cause
    assert told == (34 if isinstance(decision, Refusal) else cause or 31)


def test_scenario_10_a_slow_death_ends_within_the_setup_budget() -> None:
    lines = [trunk(name, 1) for name in "abcdefgh"]
    distributor = Distributor(one_pack(*lines, setup_budget=30.0))
    now = 0.0
    decision: Decision = distributor.offer(call(), now)
    while isinstance(decision, Assignment):
        assert decision.timeout > 0
        now += decision.timeout
        decision = distributor.outcome(decision.lease, SILENT, now)
    assert isinstance(decision, Refusal)
    assert (decision.reason, decision.cause) == (Reason.OUT_OF_TIME, 34)
    assert now == pytest.approx(30.0)


def test_scenario_10_saturated_and_in_maintenance_are_told_apart() -> None:
    distributor = Distributor(world("AB"))
    running = [take(distributor), take(distributor)]
    full = distributor.offer(call(), 0.0)
    for name in "AB":
        distributor.drain(Drain(name, "anna", "", 0.0))
    closed = distributor.offer(call(), 0.0)
    assert isinstance(full, Refusal)
    assert isinstance(closed, Refusal)
    assert (full.reason, closed.reason) == (Reason.FULL, Reason.NO_USABLE_TRUNK)
    for answer in running:
        distributor.outcome(answer.lease, ANSWERED, 1.0)
    again = distributor.offer(call(), 2.0)
    assert isinstance(again, Refusal)
    assert again.reason is Reason.NO_USABLE_TRUNK
    distributor.enable("B")
    assert take(distributor).channel == "B:1"


def test_scenario_10_ejection_never_takes_the_last() -> None:
    distributor = Distributor(one_pack(*(trunk(name, 1) for name in "ABC")))
    for now in range(50):
        decision: Decision = distributor.offer(call(), float(now))
        while isinstance(decision, Assignment):
            decision = distributor.outcome(decision.lease, refused(38), float(now))
        assert (decision.cause, isinstance(decision, Refusal)) == (34, True)
    ejected = [h for h in distributor.health.values() if h.state is HealthState.EJECTED]
    assert 1 <= len(ejected) < 3
    assert take(distributor, now=50.0)
