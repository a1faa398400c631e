from __future__ import annotations

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
from umpack.core.calls import Assignment, Decision, Done, Ending, Reason, Refusal
from umpack.core.causes import CAUSE_VERDICTS, Blame, CauseTable, Elsewhere, Verdict
from umpack.core.channel import ChannelId
from umpack.core.distributor import Distributor
from umpack.core.errors import LeaseError
from umpack.core.health_states import HealthState
from umpack.core.pack import Exclusion, Strategy
from umpack.core.trunk import PbxId, TrunkId, TrunkKind


def refusal(decision: object) -> Refusal:
    assert isinstance(decision, Refusal), decision
    return decision


def in_chain(setup_budget: float = 30.0) -> Distributor:
    """Pack `um` of trunk a, then `near` of b, then `far` of c; one channel each."""
    a, b, c = trunk("a", 1), trunk("b", 1), trunk("c", 1)
    return Distributor(
        site(
            [a, b, c],
            [
                plan(
                    "um",
                    all_of(a),
                    overflow=["near", "far"],
                    answer_within=4.0,
                    setup_budget=setup_budget,
                    refusal_cause=42,
                ),
                plan("near", all_of(b), answer_within=9.0),
                plan("far", all_of(c), refusal_cause=17),
            ],
        )
    )


# -- the offer --------------------------------------------------------------------------------


def test_a_call_gets_a_channel_a_dial_string_and_a_limit() -> None:
    board = trunk("board", 2, kind=TrunkKind.S0, first=4)
    distributor = Distributor(one_pack(board))
    answer = take(distributor, "100", 50.0)
    assert (answer.channel, answer.dial, answer.attempt) == ("board:1", "DAHDI/4/100", 1)
    assert answer.timeout == 20.0
    assert distributor.ledger.holds(answer.lease)
    assert [offer.call for offer in distributor.calls] == [answer.lease.holder.call]
    assert distributor.take_records() == []


def test_nobody_asks_a_distributor_without_a_site() -> None:
    answer = refusal(Distributor().offer(call(), 0.0))
    assert (answer.reason, answer.cause) == (Reason.NO_ROUTE, 1)


def test_a_call_without_a_route_says_so() -> None:
    distributor = Distributor(site([], [], []))
    answer = refusal(distributor.offer(call("4711"), 3.0))
    assert (answer.reason, answer.cause) == (Reason.NO_ROUTE, 1)
    record = one_record(distributor)
    assert (record.ending, record.reason, record.cause) == (Ending.REFUSED, Reason.NO_ROUTE, 1)
    assert (record.offered, record.ended, record.route, record.channel) == (3.0, 3.0, "", None)
    assert "4711" in record.why


def test_a_call_from_another_exchange_has_no_route_here() -> None:
    distributor = Distributor(one_pack(trunk("a", 1)))
    answer = refusal(distributor.offer(call(pbx=PbxId("branch")), 0.0))
    assert answer.reason is Reason.NO_ROUTE


@pytest.mark.parametrize(("refuse", "cause"), [(17, 17), (None, 21)])
def test_a_route_may_refuse(refuse: int | None, cause: int) -> None:
    distributor = Distributor(site([], [], [route("0900*", refuse=refuse)]))
    answer = refusal(distributor.offer(call("09001"), 0.0))
    assert (answer.reason, answer.cause) == (Reason.REFUSED_BY_ROUTE, cause)
    assert one_record(distributor).route == "0900*"


def test_a_route_to_a_pack_that_is_not_there_is_a_mistake_not_a_full_pack() -> None:
    distributor = Distributor(site([], [], [route("*", "ghost")]))
    answer = refusal(distributor.offer(call(), 0.0))
    assert answer.reason is Reason.MISCONFIGURED
    assert "ghost" in answer.why


def test_nothing_new_while_shutting_down_but_running_calls_are_served() -> None:
    distributor = Distributor(one_pack(trunk("a", 1), trunk("b", 1)))
    running = take(distributor)
    distributor.accepting = False
    answer = refusal(distributor.offer(call(), 0.0))
    assert (answer.reason, answer.cause) == (Reason.SHUTTING_DOWN, 41)
    again = assigned(distributor.outcome(running.lease, refused(41), 1.0))
    assert again.channel == "b:1"
    assert distributor.outcome(again.lease, ANSWERED, 2.0) == Done(16)


# -- full, unusable ---------------------------------------------------------------------------


def test_a_full_pack_says_full_with_its_own_cause_and_names_every_pack_tried() -> None:
    distributor = in_chain()
    assert [take(distributor).channel for _ in range(3)] == ["a:1", "b:1", "c:1"]
    answer = refusal(distributor.offer(call(), 1.0))
    assert (answer.reason, answer.cause) == (Reason.FULL, 42)
    record = one_record(distributor)
    assert [tried.pack for tried in record.passed_packs] == ["um", "near", "far"]
    assert all("full (1 channels)" in tried.why for tried in record.passed_packs)
    assert answer.why == "; ".join(f"{t.pack} {t.why}" for t in record.passed_packs)
    assert len(distributor.ledger) == 3


def test_overflow_says_what_it_passed() -> None:
    distributor = in_chain()
    take(distributor)
    second = take(distributor)
    assert (second.channel, second.timeout) == ("b:1", 9.0)
    distributor.outcome(second.lease, ANSWERED, 5.0)
    record = one_record(distributor)
    assert [tried.pack for tried in record.passed_packs] == ["um"]
    assert [(a.pack, a.position) for a in record.attempts] == [("near", 1)]


def test_no_usable_trunk_is_not_the_same_as_full() -> None:
    distributor = in_chain()
    for name in "abc":
        channel = distributor.ledger.channels[ChannelId(f"{name}:1")]
        distributor.ledger.block(channel, "alarm", "red alarm")
    answer = refusal(distributor.offer(call(), 0.0))
    assert (answer.reason, answer.cause) == (Reason.NO_USABLE_TRUNK, 42)
    record = one_record(distributor)
    assert "no usable channel" in record.passed_packs[0].why
    assert record.passed_packs[0].exclusions == (Exclusion(TrunkId("a"), 1, "red alarm"),)
    distributor.ledger.unblock(distributor.ledger.channels[ChannelId("c:1")], "alarm")
    assert take(distributor).channel == "c:1"
    assert refusal(distributor.offer(call(), 0.0)).reason is Reason.FULL


def test_the_record_says_who_was_left_out() -> None:
    distributor = Distributor(one_pack(trunk("a", 1), trunk("b", 1)))
    distributor.ledger.block(distributor.ledger.channels[ChannelId("a:1")], "alarm", "red alarm")
    served = take(distributor)
    distributor.outcome(served.lease, ANSWERED, 1.0)
    assert one_record(distributor).exclusions == (Exclusion(TrunkId("a"), 1, "red alarm"),)


# -- how an attempt ends ----------------------------------------------------------------------


def test_a_connected_call_is_one_record_with_its_attempt() -> None:
    distributor = Distributor(one_pack(trunk("a", 3), strategy=Strategy.CYCLIC))
    first, second = take(distributor), take(distributor)
    distributor.outcome(first.lease, ANSWERED, 1.0)
    third = take(distributor, now=2.0)
    distributor.take_records()
    distributor.answered(third.lease, 4.0)
    distributor.answered(third.lease, 5.0)
    assert distributor.outcome(third.lease, ANSWERED, 62.0) == Done(16)
    record = one_record(distributor)
    assert (record.ending, record.cause, record.reason) == (Ending.CONNECTED, 16, None)
    assert (record.offered, record.answered, record.ended) == (2.0, 4.0, 62.0)
    (attempt,) = record.attempts
    assert (attempt.channel, attempt.trunk, attempt.pack) == ("a:3", "a", "um")
    assert (attempt.position, attempt.after, attempt.passed_over) == (3, "a:2", 0)
    assert (attempt.started, attempt.ended, attempt.outcome) == (2.0, 62.0, ANSWERED)
    assert record.channel == "a:3"
    assert distributor.ledger.holds(second.lease)
    fourth = take(distributor, now=70.0)
    distributor.outcome(fourth.lease, ANSWERED, 71.0)
    (attempt,) = one_record(distributor).attempts
    assert (attempt.position, attempt.after, attempt.passed_over) == (1, "a:3", 0)


def test_passed_over_counts_busy_ones() -> None:
    distributor = Distributor(one_pack(trunk("a", 3)))
    take(distributor)
    take(distributor)
    third = take(distributor)
    distributor.outcome(third.lease, ANSWERED, 1.0)
    assert one_record(distributor).attempts[0].passed_over == 2


def test_a_caller_who_leaves_ends_the_call() -> None:
    distributor = Distributor(one_pack(trunk("a", 1), trunk("b", 1)))
    answer = take(distributor)
    assert distributor.outcome(answer.lease, HUNG_UP, 1.0) == Done(16)
    assert one_record(distributor).ending is Ending.ABANDONED
    assert len(distributor.ledger) == 0


@pytest.mark.parametrize(("cause", "told"), [(17, 17), (21, 21), (1, 1), (16, 16)])
def test_the_calls_own_answer_goes_to_the_caller(cause: int, told: int) -> None:
    distributor = Distributor(one_pack(trunk("a", 1), trunk("b", 1)))
    answer = take(distributor)
    assert distributor.outcome(answer.lease, refused(cause), 1.0) == Done(told)
    record = one_record(distributor)
    assert (record.ending, record.cause, len(record.attempts)) == (Ending.DECLINED, told, 1)
    assert record.attempts[0].verdict.blame is Blame.CALL


def test_a_failed_trunk_sends_the_call_to_the_next_one() -> None:
    distributor = Distributor(one_pack(trunk("a", 2), trunk("b", 2)))
    first = take(distributor)
    second = assigned(distributor.outcome(first.lease, refused(38), 1.0))
    assert (second.channel, second.attempt) == ("b:1", 2)
    with pytest.raises(LeaseError):
        distributor.release(first.lease.token, 1.5)
    assert distributor.outcome(second.lease, ANSWERED, 9.0) == Done(16)
    record = one_record(distributor)
    assert [attempt.channel for attempt in record.attempts] == ["a:1", "b:1"]
    assert [attempt.verdict.blame for attempt in record.attempts] == [Blame.TRUNK, Blame.NOBODY]
    assert len(distributor.ledger) == 0


def test_a_silent_trunk_is_left_for_another() -> None:
    distributor = in_chain()
    first = take(distributor)
    assert first.timeout == 4.0
    second = assigned(distributor.outcome(first.lease, SILENT, 4.0))
    assert second.channel == "b:1"


def test_when_every_trunk_has_failed_the_pack_gives_its_cause() -> None:
    distributor = in_chain()
    decision: Decision = distributor.offer(call(), 0.0)
    for outcome in (refused(41), refused(None, 503)):
        decision = distributor.outcome(assigned(decision).lease, outcome, 1.0)
    answer = refusal(distributor.outcome(assigned(decision).lease, SILENT, 2.0))
    assert (answer.reason, answer.cause) == (Reason.ATTEMPTS_FAILED, 42)
    record = one_record(distributor)
    assert (record.ending, record.cause) == (Ending.REFUSED, 42)
    words = "3 attempts", "a:1 cause 41 temporary failure", "b:1 SIP 503", "c:1 no answer in time"
    for word in words:
        assert word in record.why
    assert len(distributor.ledger) == 0


def test_an_unclear_answer_is_tried_once_more_and_then_believed() -> None:
    distributor = Distributor(one_pack(trunk("a", 2), trunk("b", 1), trunk("c", 1)))
    first = take(distributor)
    second = assigned(distributor.outcome(first.lease, refused(3), 1.0))
    assert second.channel == "b:1"
    assert distributor.outcome(second.lease, refused(27), 2.0) == Done(27)
    record = one_record(distributor)
    assert (record.ending, record.cause) == (Ending.DECLINED, 27)


def test_an_unclear_answer_with_nowhere_else_to_go_is_believed_at_once() -> None:
    distributor = Distributor(one_pack(trunk("a", 2)))
    first = take(distributor)
    assert distributor.outcome(first.lease, refused(None), 1.0) == Done(31)
    assert one_record(distributor).cause == 31


# -- channels lost ----------------------------------------------------------------------------


def test_glare_takes_another_trunk_first() -> None:
    distributor = Distributor(one_pack(trunk("a", 3), trunk("b", 1)))
    first = take(distributor)
    second = assigned(distributor.outcome(first.lease, refused(44), 0.1))
    assert second.channel == "b:1"


def test_glare_on_the_only_trunk_takes_its_next_channel_a_bounded_number_of_times() -> None:
    distributor = Distributor(one_pack(trunk("a", 9)))
    decision: Decision = distributor.offer(call(), 0.0)
    for expected in ("a:1", "a:2", "a:3"):
        answer = assigned(decision)
        assert answer.channel == expected
        decision = distributor.outcome(answer.lease, refused(44), 0.1)
    assert refusal(decision).reason is Reason.ATTEMPTS_FAILED
    assert len(distributor.ledger) == 0


def test_a_trunk_that_failed_is_not_met_again_after_glare() -> None:
    distributor = Distributor(one_pack(trunk("a", 2), trunk("b", 2)))
    first = take(distributor)
    second = assigned(distributor.outcome(first.lease, refused(38), 0.1))
    third = assigned(distributor.outcome(second.lease, refused(44), 0.2))
    assert third.channel == "b:2"
    assert refusal(distributor.outcome(third.lease, refused(38), 0.3)).cause == 34


def pack_of(answer: Assignment) -> str:
    assert answer.lease.pack is not None
    return answer.lease.pack.id


def test_glare_takes_the_trunks_own_next_channel_before_the_next_pack() -> None:
    a, b, c = trunk("a", 3), trunk("b", 1), trunk("c", 1)
    packs = [plan("um", all_of(a, b), overflow=["spare"]), plan("spare", all_of(c))]
    distributor = Distributor(site([a, b, c], packs))
    decision: Decision = distributor.offer(call(), 0.0)
    met = []
    for _ in range(5):
        answer = assigned(decision)
        met.append((pack_of(answer), answer.channel))
        decision = distributor.outcome(answer.lease, refused(44), 0.1)
    assert met == [
        ("um", "a:1"),
        ("um", "b:1"),
        ("um", "a:2"),
        ("um", "a:3"),
        ("spare", "c:1"),
    ]
    assert refusal(decision).reason is Reason.ATTEMPTS_FAILED


def test_a_trunk_that_failed_as_a_whole_sends_the_call_to_the_next_pack() -> None:
    a, b = trunk("a", 3), trunk("b", 1)
    packs = [plan("um", all_of(a), overflow=["spare"]), plan("spare", all_of(b))]
    distributor = Distributor(site([a, b], packs))
    second = assigned(distributor.outcome(take(distributor).lease, refused(44), 0.1))
    assert second.channel == "a:2"
    third = assigned(distributor.outcome(second.lease, refused(38), 0.2))
    assert (pack_of(third), third.channel) == ("spare", "b:1")


# -- time -------------------------------------------------------------------------------------


def test_the_last_attempt_gets_what_is_left_of_the_setup_budget() -> None:
    distributor = in_chain(setup_budget=6.0)
    first = take(distributor, now=100.0)
    second = assigned(distributor.outcome(first.lease, SILENT, 104.0))
    assert second.timeout == pytest.approx(2.0)
    answer = refusal(distributor.outcome(second.lease, SILENT, 105.95))
    assert (answer.reason, answer.cause) == (Reason.OUT_OF_TIME, 42)
    assert "setup budget" in one_record(distributor).why


def test_an_attempt_shorter_than_the_shortest_is_not_made() -> None:
    distributor = in_chain(setup_budget=1.0)
    first = take(distributor)
    second = assigned(distributor.outcome(first.lease, refused(41), 0.875))
    assert second.timeout == 0.125
    again = refusal(distributor.outcome(second.lease, refused(41), 0.9375))
    assert again.reason is Reason.OUT_OF_TIME


def test_the_calls_own_answer_needs_no_time() -> None:
    distributor = in_chain(setup_budget=1.0)
    first = take(distributor)
    assert distributor.outcome(first.lease, refused(17), 99.0) == Done(17)


# -- release ----------------------------------------------------------------------------------


def test_a_lost_connection_frees_the_channel() -> None:
    distributor = Distributor(one_pack(trunk("a", 1)))
    answer = take(distributor, now=1.0)
    distributor.release(answer.lease.token, 2.0)
    record = one_record(distributor)
    assert (record.ending, record.cause, record.ended) == (Ending.ABANDONED, 16, 2.0)
    assert record.why == "connection ended"
    assert record.attempts[0].outcome.detail == "connection ended"
    assert take(distributor).channel == "a:1"


def test_a_lost_connection_after_the_answer_was_a_call() -> None:
    distributor = Distributor(one_pack(trunk("a", 1)))
    answer = take(distributor)
    distributor.answered(answer.lease, 1.0)
    distributor.release(answer.lease.token, 60.0, "caller hung up")
    record = one_record(distributor)
    assert (record.ending, record.answered, record.why) == (
        Ending.CONNECTED,
        1.0,
        "caller hung up",
    )


@pytest.mark.parametrize("first", ["outcome", "release"])
@pytest.mark.parametrize("second", ["outcome", "release"])
def test_a_call_ends_once(first: str, second: str) -> None:
    distributor = Distributor(one_pack(trunk("a", 1)))
    lease = take(distributor).lease

    def end(how: str) -> None:
        if how == "outcome":
            distributor.outcome(lease, ANSWERED, 1.0)
        else:
            distributor.release(lease.token, 1.0)

    end(first)
    other = take(distributor)
    with pytest.raises(LeaseError):
        end(second)
    assert distributor.ledger.holds(other.lease)
    assert len(distributor.take_records()) == 1


def test_a_lease_of_before_a_restart_ends_no_call_of_now() -> None:
    before, now = (Distributor(one_pack(trunk("a", 1))) for _ in range(2))
    old, running = take(before).lease, take(now).lease
    assert old.token == running.token
    with pytest.raises(LeaseError, match="a:1"):
        now.outcome(old, ANSWERED, 1.0)
    assert now.ledger.holds(running)
    assert now.take_records() == []
    assert now.outcome(running, ANSWERED, 2.0) == Done(16)


def test_records_are_given_out_once_oldest_first() -> None:
    distributor = Distributor(one_pack(trunk("a", 2)))
    first, second = take(distributor), take(distributor)
    distributor.outcome(second.lease, ANSWERED, 1.0)
    distributor.outcome(first.lease, ANSWERED, 2.0)
    assert [record.channel for record in distributor.take_records()] == ["a:2", "a:1"]
    assert distributor.take_records() == []


# -- what comes off the line ---------------------------------------------------------------------


def test_an_unsafe_called_number_is_refused_and_an_unsafe_caller_cleaned() -> None:
    distributor = Distributor(one_pack(trunk("a", 1, dial="Local/{caller}@fax")))
    answer = refusal(distributor.offer(call("100&Local/x@y"), 0.0))
    assert (answer.reason, answer.cause) == (Reason.INVALID_NUMBER, 28)
    asking = call("100", caller='"&Local/x@y,')
    assert assigned(distributor.offer(asking, 0.0)).dial == "Local/Localxy@fax"
    distributor.outcome(next(iter(distributor.ledger)), ANSWERED, 1.0)
    assert [record.call.caller for record in distributor.take_records()][1] == asking.caller


# -- numbers with letters ---------------------------------------------------------------------


def test_a_number_with_letters_has_no_channel_where_letters_are_commands() -> None:
    distributor = Distributor(one_pack(trunk("board", 2, kind=TrunkKind.S0)))
    answer = refusal(distributor.offer(call("100w"), 0.0))
    assert answer.reason is Reason.INVALID_NUMBER
    assert take(distributor, "100").channel == "board:1"


def test_a_full_sip_pack_is_full_for_numbers_with_letters_as_well() -> None:
    sip, board = trunk("sip", 1), trunk("board", 2, kind=TrunkKind.S0)
    distributor = Distributor(
        site([sip, board], [plan("um", all_of(sip)), plan("isdn", all_of(board))])
    )
    take(distributor)
    assert refusal(distributor.offer(call("alice"), 0.0)).reason is Reason.FULL


def test_letters_never_reach_a_board_that_came_with_a_reload() -> None:
    sip = trunk("sip", 1)
    distributor = Distributor(one_pack(sip))
    first = take(distributor, "100w")
    distributor.reload(one_pack(sip, trunk("board", 2, kind=TrunkKind.S0)))
    answer = distributor.outcome(first.lease, refused(41), 1.0)
    assert isinstance(answer, Refusal), answer


def test_letters_take_no_ejected_board_back_that_could_not_dial_them() -> None:
    board, other = (trunk(f"s{n}", 2, kind=TrunkKind.S0, first=n) for n in (1, 4))
    distributor = Distributor(one_pack(trunk("sip", 1), board, other))
    distributor.eject(board.id, 0.0, "by anna", 300.0)
    take(distributor, "alice", now=60.0)
    assert refusal(distributor.offer(call("bob"), 61.0)).reason is Reason.FULL
    assert distributor.health[board.id].state is HealthState.EJECTED


# -- other doubts -----------------------------------------------------------------------------


def test_no_call_is_refused_for_glare_while_other_channels_of_the_pack_are_idle() -> None:
    distributor = Distributor(one_pack(trunk("a", 9), trunk("b", 1)))
    first = take(distributor)
    second = assigned(distributor.outcome(first.lease, refused(44), 0.1))
    assert second.channel == "b:1"
    assert assigned(distributor.outcome(second.lease, refused(44), 0.2)).channel == "a:2"


def test_a_late_hint_about_an_earlier_attempt_is_no_answer() -> None:
    distributor = Distributor(one_pack(trunk("a", 1), trunk("b", 1)))
    first = take(distributor)
    second = assigned(distributor.outcome(first.lease, refused(41), 1.0))
    distributor.answered(first.lease, 1.1)
    distributor.release(second.lease.token, 2.0)
    assert one_record(distributor).ending is Ending.ABANDONED


def test_a_sites_own_verdicts_are_used() -> None:
    hunt = Verdict(Elsewhere.TRUNK, Blame.NOBODY, "our exchange says 17 for full")
    lines = trunk("a", 1), trunk("b", 1)
    causes = CauseTable({**CAUSE_VERDICTS, 17: hunt})
    distributor = Distributor(site(lines, [plan("um", all_of(*lines))], causes=causes))
    first = take(distributor)
    assert assigned(distributor.outcome(first.lease, refused(17), 1.0)).channel == "b:1"


def test_a_call_in_repr_is_a_status_line() -> None:
    distributor = Distributor(one_pack(trunk("a", 1)))
    offer = take(distributor, "100").lease.holder
    assert repr(offer) == f"<call {offer.call.id} to '100' on a:1>"
    distributor.outcome(next(iter(distributor.ledger)), ANSWERED, 1.0)
    assert repr(offer).endswith("on ->")


def test_a_channel_in_two_packs_is_given_once() -> None:
    a, b = trunk("a", 1), trunk("b", 1)
    distributor = Distributor(
        site(
            [a, b],
            [plan("um", all_of(a, b)), plan("fax", all_of(b, a))],
            [route("1*", "um"), route("2*", "fax")],
        )
    )
    assert take(distributor, "1").channel == "a:1"
    assert take(distributor, "2").channel == "b:1"
    assert refusal(distributor.offer(call("1"), 0.0)).reason is Reason.FULL
    assert refusal(distributor.offer(call("2", pbx=MAIN), 0.0)).reason is Reason.FULL
