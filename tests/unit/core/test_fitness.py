"""What health means for packs, reloads and restarts; each of these was a hole once, or nearly."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from tests.sites import (
    ANSWERED,
    HUNG_UP,
    MAIN,
    SILENT,
    all_of,
    assigned,
    call,
    one_pack,
    one_record,
    plan,
    refused,
    route,
    site,
    take,
    trunk,
)
from umpack.core.administration import Drain
from umpack.core.calls import Assignment, Decision, Done, Reason, Refusal
from umpack.core.causes import Blame, CauseTable, Elsewhere, Outcome, Override, Overrides, Result
from umpack.core.channel import ChannelId
from umpack.core.distributor import Distributor
from umpack.core.health_policy import HealthPolicy, PackPolicy
from umpack.core.health_states import AlarmKind, HealthState
from umpack.core.idle import has, mask_of, positions_of
from umpack.core.pack import Grade, PackId, Strategy
from umpack.core.roster import UnknownTarget
from umpack.core.trunk import TrunkId, TrunkKind

UP, SUSPECT, EJECTED = HealthState.UP, HealthState.SUSPECT, HealthState.EJECTED
HALF_OPEN, SLOW_START = HealthState.HALF_OPEN, HealthState.SLOW_START
A, B, C = trunk("a", 4), trunk("b", 4), trunk("c", 4)


def state(distributor: Distributor, name: str) -> HealthState:
    return distributor.health[TrunkId(name)].state


def eject(distributor: Distributor, *names: str, now: float = 0.0) -> None:
    for name in names:
        distributor.eject(TrunkId(name), now, "by anna")


def teach(distributor: Distributor, *, seconds: float = 0.01, calls: int = 200) -> None:
    """Calls one by one, so that all trunks of a cyclic pack know how long answers take."""
    for n in range(calls):
        answer = take(distributor, now=n)
        distributor.answered(answer.lease, n + seconds)
        distributor.outcome(answer.lease, ANSWERED, n + 0.9)
    distributor.take_records()


def learned(*lines: str, hints: bool = True, seconds: float = 0.01) -> Distributor:
    """A cyclic pack whose trunks all know their answer times; it is 200.0 now."""
    trunks = [trunk(name, 4) for name in lines or "abc"]
    distributor = Distributor(one_pack(*trunks, strategy=Strategy.CYCLIC))
    distributor.hear(MAIN, 0.0, hints=hints)
    teach(distributor, seconds=seconds)
    return distributor


def blocked(distributor: Distributor, names: Iterable[str]) -> set[str]:
    channels = distributor.ledger.channels.values()
    return {c.trunk.id for c in channels if c.trunk.id in names and c.blocks}


# -- the last usable trunk --------------------------------------------------------------------


def fail(distributor: Distributor, times: int, cause: int = 41, now: float = 0.0) -> None:
    """Calls that fail wherever they are tried."""
    for _ in range(times):
        decision: Decision = distributor.offer(call(), now)
        while isinstance(decision, Assignment):
            decision = distributor.outcome(decision.lease, refused(cause), now)


def test_the_last_usable_trunk_of_a_pack_is_kept_whatever_it_does() -> None:
    distributor = Distributor(one_pack(A, B, C))
    fail(distributor, 20)
    assert sorted(state(distributor, name).value for name in "abc") == [
        "ejected",
        "ejected",
        "suspect",
    ]
    assert "the last usable trunk of um" in distributor.health[TrunkId("c")].why
    assert take(distributor).channel.startswith("c")


def test_usable_is_what_is_usable_in_that_pack() -> None:
    """The other trunk has channels elsewhere, but its only one here is drained."""
    packs = [plan("um", ["a:1", "a:2", "b:1"]), plan("fax", ["b:2", "b:3"])]
    distributor = Distributor(site([A, B], packs))
    distributor.drain(Drain("b:1", "anna", "", 0.0))
    fail(distributor, 5)
    assert state(distributor, "a") is SUSPECT


def test_a_pack_without_channels_is_no_obstacle() -> None:
    distributor = Distributor(site([trunk("a", 0)], [plan("um", [])]))
    answer = distributor.offer(call(), 0.0)
    assert isinstance(answer, Refusal)
    assert answer.reason is Reason.NO_USABLE_TRUNK


def test_drains_from_before_a_restart_bring_ejected_trunks_back() -> None:
    distributor = Distributor(one_pack(A, B))
    eject(distributor, "a")
    distributor.restore([Drain("b", "anna", "", 0.0)], [])
    assert take(distributor, now=1.0).channel == "a:1"
    assert "um has nothing else left" in distributor.health[TrunkId("a")].why


def test_a_drained_trunk_is_not_taken_back_for_nothing() -> None:
    distributor = Distributor(one_pack(A, B))
    eject(distributor, "a")
    for name in "ab":
        distributor.drain(Drain(name, "anna", "", 0.0))
    assert isinstance(distributor.offer(call(), 1.0), Refusal)
    assert state(distributor, "a") is EJECTED


@pytest.mark.parametrize("drained", [True, False])
def test_the_last_channel_of_a_pack_does_not_rest(drained: bool) -> None:
    board = trunk("s0", 2, kind=TrunkKind.S0)
    distributor = Distributor(one_pack(board))
    if drained:
        distributor.drain(Drain("s0:1", "anna", "", 0.0))
    else:
        distributor.ledger.block(distributor.ledger.channels[ChannelId("s0:1")], "x", "broken")
    fail(distributor, 4, cause=44)
    assert take(distributor).channel == "s0:2"


def test_a_channel_that_fails_in_a_row_rests_while_others_work() -> None:
    distributor = Distributor(one_pack(trunk("a", 5, kind=TrunkKind.S2M)))
    for now in range(3):
        decision = assigned(distributor.offer(call(), float(now)))
        assert decision.channel == "a:1"
        again = assigned(distributor.outcome(decision.lease, refused(44), float(now)))
        distributor.outcome(again.lease, ANSWERED, float(now))
    assert take(distributor, now=3.0).channel == "a:2"
    assert state(distributor, "a") is UP
    why = distributor.packs[PackId("um")].exclusions[0].why
    assert why == "rests 60 s, 1st time, 3× cause 44 requested circuit/channel not available"
    assert take(distributor, now=63.0).channel == "a:1"


def test_a_trunk_whose_channels_fail_all_over_is_at_fault_itself() -> None:
    distributor = Distributor(one_pack(trunk("a", 2, kind=TrunkKind.S0), B))
    for _ in range(12):
        decision: Decision = distributor.offer(call(), 0.0)
        while isinstance(decision, Assignment) and decision.channel.startswith("a"):
            decision = distributor.outcome(decision.lease, refused(44), 0.0)
        distributor.release(assigned(decision).lease.token, 0.0)
    assert state(distributor, "a") is SUSPECT
    channels = distributor.ledger.channels
    assert sum(bool(channels[ChannelId(f"a:{n}")].blocks) for n in (1, 2)) == 1, "not both rest"


def test_below_half_of_a_pack_suspects_are_as_good_as_any() -> None:
    distributor = Distributor(one_pack(A, B, C, trunk("d", 4), strategy=Strategy.CYCLIC))
    for bad, met in (("ab", "cccc dddd"), ("abc", "aaaa bbbb")):
        for name in bad:
            distributor.health[TrunkId(name)].attempt_failed(-1, 0.0, Blame.TRUNK, "cause 41")
        distributor.enable("a")  # grades anew
        taken = [take(distributor) for _ in range(8)]
        assert "".join(answer.channel[0] for answer in taken) == met.replace(" ", "")
        for answer in taken:
            distributor.release(answer.lease.token, 0.0)


# -- a call that would be refused -------------------------------------------------------------


def test_a_full_pack_takes_an_ejected_trunk_back() -> None:
    distributor = Distributor(one_pack(A, B))
    eject(distributor, "a", now=100.0)
    for _ in range(4):
        assert take(distributor, now=101.0).channel.startswith("b")
    assert isinstance(distributor.offer(call(), 105.0), Refusal), "not every call of a bad time"
    rest = HealthPolicy().suspect_rest
    assert take(distributor, now=100.0 + rest).channel == "a:1"
    assert state(distributor, "a") is SUSPECT


def test_a_call_that_failed_everywhere_else_takes_an_ejected_trunk_back() -> None:
    distributor = Distributor(one_pack(A, B))
    eject(distributor, "a", now=100.0)
    first = take(distributor, now=120.0)
    again = assigned(distributor.outcome(first.lease, refused(41), 120.1))
    assert (first.channel, again.channel) == ("b:1", "a:1")


def test_an_alarmed_trunk_is_taken_back_for_nobody() -> None:
    distributor = Distributor(one_pack(A, B))
    distributor.alarm_raised(TrunkId("a"), AlarmKind.RED, 100.0)
    for _ in range(4):
        take(distributor, now=200.0)
    assert isinstance(distributor.offer(call(), 200.0), Refusal)


def test_overflow_beyond_doubt_goes_before_a_doubtful_pack() -> None:
    packs = [plan("um", all_of(A), overflow=["spare"]), plan("spare", all_of(B))]
    distributor = Distributor(site([A, B], packs))
    distributor.outcome(take(distributor).lease, refused(41), 0.0)
    distributor.release(next(iter(distributor.ledger)).token, 0.0)
    assert state(distributor, "a") is SUSPECT
    answers = [take(distributor, now=1.0) for _ in range(5)]
    assert [answer.channel[0] for answer in answers] == ["b"] * 4 + ["a"]
    distributor.take_records()
    distributor.outcome(answers[0].lease, ANSWERED, 2.0)
    (tried,) = one_record(distributor).passed_packs
    assert (tried.pack, tried.why) == ("um", "has only doubtful channels left")
    assert "suspect: cause 41" in tried.exclusions[0].why


# -- trials -----------------------------------------------------------------------------------


def test_a_trial_comes_out_of_turn_and_costs_nobody_his() -> None:
    distributor = learned("a", "b", "c")
    eject(distributor, "c", now=200.0)
    first = take(distributor, now=201.0).channel
    due = distributor.health[TrunkId("c")].timer
    trial = take(distributor, now=due)
    assert trial.channel.startswith("c")
    order = [c.id for c in distributor.packs[PackId("um")].channels if c.id[0] != "c"]
    at = order.index(first)
    assert take(distributor, now=due).channel == order[(at + 1) % len(order)]


def test_only_one_call_at_a_time_is_the_trial_even_when_little_else_is_left() -> None:
    distributor = learned("a", "b", "c")
    eject(distributor, "b", "c", now=200.0)
    due = max(distributor.health[TrunkId(name)].timer for name in "bc")
    met = [take(distributor, now=due).channel[0] for _ in range(6)]
    assert sorted(met[:2]) == ["b", "c"]
    assert met[2:] == ["a"] * 4


def test_a_call_that_has_failed_once_is_not_made_a_trial() -> None:
    distributor = learned("a", "b", "c")
    eject(distributor, "c", now=200.0)
    first = take(distributor, now=201.0)
    due = distributor.health[TrunkId("c")].timer
    again = assigned(distributor.outcome(first.lease, refused(42), min(due, 229.9)))
    assert again.channel[0] in "ab"
    assert take(distributor, now=due).channel[0] == "c"


@pytest.mark.parametrize("hints", [True, False])
def test_a_trial_has_the_time_the_trunk_usually_needs(hints: bool) -> None:
    distributor = learned("a", "b", hints=hints)
    eject(distributor, "b", now=200.0)
    due = distributor.health[TrunkId("b")].timer
    trial = take(distributor, now=due)
    assert trial.channel[0] == "b"
    assert trial.timeout == pytest.approx(0.2)
    again = assigned(distributor.outcome(trial.lease, SILENT, due + 0.2))
    assert again.timeout == 20.0, "nowhere else to go"
    assert state(distributor, "b") is EJECTED


def test_slowness_is_blamed_only_on_a_trunk_that_is_to_prove_itself() -> None:
    distributor = learned("a", "b")
    waiting = take(distributor, now=200.0)
    slow = waiting.channel[0]
    others = [take(distributor, now=200.1) for _ in range(4)]
    cut = [answer for answer in others if answer.channel[0] == slow]
    assert cut
    assert [answer.timeout for answer in cut] == [pytest.approx(0.2)] * len(cut)
    for answer in cut:
        distributor.outcome(answer.lease, SILENT, 200.3)
    assert state(distributor, slow) is UP
    distributor.outcome(waiting.lease, SILENT, 220.0)
    assert state(distributor, slow) is SUSPECT


def test_an_attempt_that_outlives_its_time_limit_was_answered() -> None:
    """Without hints a trial would else be decided when its call is over, in an hour."""
    world = site([A, B], [plan("um", all_of(A, B), answer_within=4.0)])
    distributor = Distributor(world)
    eject(distributor, "b")
    due = distributor.health[TrunkId("b")].timer
    assert take(distributor, now=due).channel == "b:1"
    distributor.tick(due + 8.0)
    assert state(distributor, "b") is HALF_OPEN
    distributor.tick(due + 9.1)
    assert state(distributor, "b") is SLOW_START


# -- what calls say ---------------------------------------------------------------------------


def test_calls_of_before_a_death_do_not_excuse_it() -> None:
    """Without hints the PBX tells of an answer when the call is over."""
    distributor = Distributor(one_pack(A, B))
    old = [take(distributor, now=90.0) for _ in range(3)]
    for n, call_of_before in enumerate(old):
        now = 100.0 + n
        dying = take(distributor, now=now)
        distributor.outcome(dying.lease, refused(41), now + 0.1)
        distributor.answered(call_of_before.lease, 90.1)
        distributor.outcome(call_of_before.lease, ANSWERED, now + 0.2)
        assert state(distributor, "a") is SUSPECT
        for lease in list(distributor.ledger):
            if lease.channel.trunk.id == "b":
                distributor.release(lease.token, now + 0.3)
    times = [change.at for change in distributor.take_changes()]
    assert times == sorted(times)


def test_glare_is_counted_and_blames_nobody() -> None:
    board = trunk("a", 4, kind=TrunkKind.S2M)
    distributor = Distributor(one_pack(board))
    decision = assigned(distributor.offer(call(), 0.0))
    for cause in (34, 44):
        lost = Outcome(Result.REFUSED, cause, glare=True)
        decision = assigned(distributor.outcome(decision.lease, lost, 0.0))
    assert decision.channel == "a:3"
    assert distributor.collisions == {"a": 2}
    distributor.outcome(decision.lease, HUNG_UP, 1.0)
    assert [a.verdict.blame for a in one_record(distributor).attempts[:2]] == [Blame.NOBODY] * 2
    assert state(distributor, "a") is UP


def test_34_while_we_see_idle_channels_blames_the_trunk_and_else_nobody() -> None:
    distributor = Distributor(one_pack(A, B))
    held = [take(distributor) for _ in range(3)]
    last = take(distributor)
    distributor.outcome(last.lease, refused(34), 0.0)
    assert state(distributor, "a") is UP
    distributor.release(held[0].lease.token, 0.0)
    other = take(distributor)
    assert other.channel.startswith("a")
    distributor.outcome(other.lease, refused(34), 0.0)
    assert state(distributor, "a") is SUSPECT


@pytest.mark.parametrize(("seconds", "expected"), [(0.01, SUSPECT), (9.0, UP)])
def test_who_rings_on_is_blamed_where_machines_answer(
    seconds: float, expected: HealthState
) -> None:
    distributor = learned("a", "b", seconds=seconds)
    answer = take(distributor, now=300.0)
    rang = Outcome(Result.TIMED_OUT, rang=True)
    distributor.outcome(answer.lease, rang, 320.0)
    assert state(distributor, answer.channel[0]) is expected


def test_a_trunk_may_have_its_own_causes() -> None:
    own = Overrides({17: Override(Elsewhere.TRUNK, Blame.NOBODY, "a is odd")})
    distributor = Distributor(replace(one_pack(A, B), causes=CauseTable(trunks={"a": own})))
    again = assigned(distributor.outcome(take(distributor).lease, refused(17), 0.0))
    assert again.channel == "b:1"
    assert distributor.outcome(again.lease, refused(17), 0.0).cause == 17  # type: ignore[union-attr]


def test_a_pack_may_have_its_own_causes_and_they_hold_where_the_channel_is_its() -> None:
    own = Overrides({17: Override(Elsewhere.TRUNK, Blame.NOBODY, "full is called busy here")})
    one = trunk("a", 1)
    packs = [plan("um", all_of(one), overflow=["spare"]), plan("spare", all_of(B, C))]
    distributor = Distributor(site([one, B, C], packs, causes=CauseTable(packs={"spare": own})))
    first, overflown = take(distributor), take(distributor)
    assert (first.channel, overflown.channel) == ("a:1", "b:1")
    assert isinstance(distributor.outcome(first.lease, refused(17), 0.0), Done)
    assert assigned(distributor.outcome(overflown.lease, refused(17), 0.0)).channel == "a:1"


def test_packs_have_their_own_share_below_which_suspects_are_welcome() -> None:
    # Of the two lines that both packs share, one is a suspect: half is left of either.
    packs = [plan("brave", all_of(A, B)), plan("shy", all_of(A, B))]
    routes = [route("1", "brave"), route("2", "shy")]
    brave = {PackId("brave"): PackPolicy(panic_share=0.9)}
    distributor = Distributor(replace(site([A, B], packs, routes), pack_policies=brave))
    distributor.outcome(take(distributor, "2").lease, refused(41), 0.0)
    assert state(distributor, "a") is SUSPECT
    assert take(distributor, "1").channel[0] == "a"
    assert take(distributor, "2").channel[0] == "b"


# -- people and boards ------------------------------------------------------------------------


def test_an_alarm_blocks_at_once_and_clears_when_settled() -> None:
    distributor = Distributor(one_pack(A, B))
    distributor.alarm_raised(TrunkId("a"), AlarmKind.D_CHANNEL, 10.0, "span 1")
    assert blocked(distributor, "ab") == {"a"}
    assert distributor.packs[PackId("um")].exclusions[0].why == "alarmed: D channel down (span 1)"
    distributor.alarms_seen(TrunkId("a"), {}, [AlarmKind.D_CHANNEL], 11.0)
    distributor.tick(12.9)
    assert blocked(distributor, "ab") == {"a"}
    distributor.tick(13.1)
    assert blocked(distributor, "ab") == set()


def test_an_alarm_may_take_the_last_trunk() -> None:
    distributor = Distributor(one_pack(A))
    distributor.alarm_raised(TrunkId("a"), AlarmKind.RED, 10.0)
    answer = distributor.offer(call(), 11.0)
    assert isinstance(answer, Refusal)
    assert answer.reason is Reason.NO_USABLE_TRUNK


def test_a_person_restores_what_failures_have_taken() -> None:
    distributor = Distributor(one_pack(A, B))
    eject(distributor, "a")
    distributor.restore_trunk(TrunkId("a"), 1.0, "anna")
    assert take(distributor, now=1.0).channel == "a:1"


def test_nobody_ejects_what_is_not_there() -> None:
    distributor = Distributor(one_pack(A))
    with pytest.raises(UnknownTarget):
        distributor.eject(TrunkId("ghost"), 0.0, "anna")
    with pytest.raises(UnknownTarget):
        distributor.restore_trunk(TrunkId("ghost"), 0.0, "anna")
    for tell in (distributor.alarm_raised, distributor.alarm_cleared):
        tell(TrunkId("ghost"), AlarmKind.RED, 0.0)
    distributor.alarms_seen(TrunkId("ghost"), {}, AlarmKind, 0.0)


# -- masks and turns --------------------------------------------------------------------------


def test_a_mask_has_what_it_was_made_of() -> None:
    at = [0, 3, 255, 256, 700]
    mask = mask_of(701, at)
    assert list(positions_of(mask)) == at
    assert [p for p in range(701) if has(mask, p)] == at


def test_only_first_choice_is_in_turn() -> None:
    pack = Distributor(one_pack(A, B)).packs[PackId("um")]
    assert pack.in_turn(0)
    pack.grade({TrunkId("a"): Grade.TRIAL})
    assert [pack.in_turn(position) for position in (0, 4)] == [False, True]
    pack.grade({TrunkId("a"): Grade.RESERVE, TrunkId("b"): Grade.LAST}, panic=True)
    assert [pack.in_turn(position) for position in (0, 4)] == [True, False]
