"""Calls through umpack's core and driver, the same for the simulated and the real PBX."""

from __future__ import annotations

import asyncio

import pytest

from simulators.endpoints import Answer, Reject, Ring
from tests import sites
from tests.contract.pbx import (
    NO_UMPACK_STATUS,
    ContractPbx,
    Servers,
    server,
    site_of,
    trunks_of,
    umpack_with,
)
from umpack.core.calls import Ending, Reason
from umpack.core.causes import Result
from umpack.core.pack import Strategy

NUMBER = "49302000100"
LONG = 30.0
"""Seconds of a call that must outlast what is tested; the test's end cuts it."""
QUICK = 0.5
"""`answer_within` of packs whose servers may stay silent."""

A, B, C = server("a"), server("b"), server("c")
ALL = sites.all_of(A, B, C)
ANSWERING: Servers = {"a": Answer(), "b": Answer(), "c": Answer()}


# --- order --------------------------------------------------------------------------------------


async def test_a_linear_pack_fills_in_exact_order(pbx: ContractPbx) -> None:
    site = site_of([A, B, C], [sites.plan("um", ALL)])
    async with umpack_with(pbx, ANSWERING, site) as umpack:
        held = [await umpack.holding(NUMBER, 1) for _ in range(3)]
        assert await umpack.rung() == ["a", "b", "c"]
        assert (await pbx.call(NUMBER)).status == 503
        assert [call.answered for call in await asyncio.gather(*held)] == [True] * 3
        await umpack.until(lambda: umpack.busy == 0)
        for _ in range(2):
            await pbx.call(NUMBER)
        # An idle linear pack begins at its first channel again, and again.
        assert await umpack.rung() == ["a", "b", "c", "a", "a"]
        await umpack.check_clean(6)


async def test_a_linear_pack_takes_the_lowest_idle_channel(pbx: ContractPbx) -> None:
    endpoints: Servers = {"a": Answer(), "b": Answer(hang_up_after=0.2), "c": Answer()}
    site = site_of([A, B, C], [sites.plan("um", ALL)])
    async with umpack_with(pbx, endpoints, site) as umpack:
        first = await umpack.holding(NUMBER, 1)
        assert (await pbx.call(NUMBER, hold=LONG)).answered  # b, which hangs up by itself
        await umpack.until(lambda: umpack.busy == 1)
        assert (await pbx.call(NUMBER, hold=LONG)).answered
        assert await umpack.rung() == ["a", "b", "b"]
        await first
        await umpack.check_clean(3)


async def test_a_cyclic_pack_deals_exactly_in_turn(pbx: ContractPbx) -> None:
    site = site_of([A, B, C], [sites.plan("um", ALL, Strategy.CYCLIC)])
    async with umpack_with(pbx, ANSWERING, site) as umpack:
        for _ in range(7):
            assert (await pbx.call(NUMBER)).answered
        assert await umpack.rung() == [*"abcabca"]
        await umpack.check_clean(7)


async def test_a_cyclic_pack_passes_over_the_busy_and_stays_in_turn(pbx: ContractPbx) -> None:
    site = site_of([A, B, C], [sites.plan("um", ALL, Strategy.CYCLIC)])
    async with umpack_with(pbx, ANSWERING, site) as umpack:
        held = await umpack.holding(NUMBER, 1)
        for _ in range(4):
            assert (await pbx.call(NUMBER)).answered
        assert await umpack.rung() == [*"abcbc"]
        await held
        await umpack.check_clean(5)


# --- full ---------------------------------------------------------------------------------------

ON_THE_WIRE = {
    17: 486, 21: 403, 27: 502, 31: 480, 34: 503, 38: 500, 41: 503, 42: 503, 44: 503, 47: 503,
    58: 488, 63: 503, 88: 503, 102: 503, 111: 503,
}  # fmt: skip
"""The refusal causes a site might choose, and what a SIP caller must get: never 603, by which his
provider would take it that nobody else can be tried either (RFC 3261 21.6)."""


async def test_a_full_pack_refuses_with_the_configured_cause(pbx: ContractPbx) -> None:
    packs = [sites.plan(f"p{cause}", ["a:1"], refusal_cause=cause) for cause in ON_THE_WIRE]
    routes = [sites.route(f"1{cause:03}", f"p{cause}") for cause in ON_THE_WIRE]
    async with umpack_with(pbx, ANSWERING, site_of([A], packs, routes)) as umpack:
        held = await umpack.holding("1034", 10)
        got = {cause: (await pbx.call(f"1{cause:03}")).status for cause in ON_THE_WIRE}
        assert got == ON_THE_WIRE
        reasons = {record.reason for record in umpack.records()}
        assert reasons == {Reason.FULL}
        assert await umpack.rung() == ["a"]
        held.cancel()
        await asyncio.wait([held])


async def test_the_overflow_pack_takes_what_a_full_pack_cannot(pbx: ContractPbx) -> None:
    packs = [
        sites.plan("um", sites.all_of(A, B), Strategy.CYCLIC, overflow=["spare"]),
        sites.plan("spare", sites.all_of(C)),
    ]
    async with umpack_with(pbx, ANSWERING, site_of([A, B, C], packs)) as umpack:
        held = [await umpack.holding(NUMBER, 1) for _ in range(3)]
        assert await umpack.rung() == ["a", "b", "c"]
        assert (await pbx.call(NUMBER)).status == 503
        await asyncio.gather(*held)
        await umpack.check_clean(4)
        by_pack = sorted(r.attempts[0].pack for r in umpack.records() if r.attempts)
        assert by_pack == ["spare", "um", "um"]


# --- hanging up ---------------------------------------------------------------------------------


async def test_hanging_up_while_it_rings_frees_the_channel(pbx: ContractPbx) -> None:
    endpoints: Servers = {"a": Ring()}
    async with umpack_with(pbx, endpoints, site_of([A], [sites.plan("um", ["a:1"])])) as umpack:
        assert (await pbx.call(NUMBER, patience=0.3)).status == 487
        await umpack.check_clean(1)
        (record,) = umpack.records()
        assert (record.ending, record.attempts[0].outcome.result) == (
            Ending.ABANDONED,
            Result.HUNG_UP,
        )


async def test_hanging_up_at_once_frees_the_channel(pbx: ContractPbx) -> None:
    endpoints: Servers = {"a": Ring()}
    async with umpack_with(pbx, endpoints, site_of([A], [sites.plan("um", ["a:1"])])) as umpack:
        for _ in range(5):
            assert (await pbx.call(NUMBER, patience=0.01)).status == 487
            await umpack.until(lambda: umpack.busy == 0)
        await umpack.check_clean(5)
        assert {record.ending for record in umpack.records()} == {Ending.ABANDONED}


@pytest.mark.parametrize("leaves", ["caller", "server"])
async def test_hanging_up_after_the_answer_frees_the_channel(pbx: ContractPbx, leaves: str) -> None:
    endpoints: Servers = {"a": Answer(hang_up_after=0.1 if leaves == "server" else None)}
    hold = 0.1 if leaves == "caller" else LONG
    async with umpack_with(pbx, endpoints, site_of([A], [sites.plan("um", ["a:1"])])) as umpack:
        for _ in range(2):  # the second one finds it free
            assert (await pbx.call(NUMBER, hold=hold)).status == 200
            await umpack.until(lambda: umpack.busy == 0)
        await umpack.check_clean(2)
        assert {record.ending for record in umpack.records()} == {Ending.CONNECTED}


# --- servers that fail --------------------------------------------------------------------------


async def test_a_busy_server_is_the_calls_own_answer(pbx: ContractPbx) -> None:
    endpoints: Servers = {"a": Reject(486), "b": Answer()}
    site = site_of([A, B], [sites.plan("um", sites.all_of(A, B))])
    async with umpack_with(pbx, endpoints, site) as umpack:
        assert (await pbx.call(NUMBER)).status == 486
        assert await umpack.rung() == ["a"]
        await umpack.check_clean(1)


@pytest.mark.parametrize("status", [500, 503])
async def test_a_failing_server_is_replaced_within_the_call(pbx: ContractPbx, status: int) -> None:
    endpoints: Servers = {"a": Reject(status), "b": Answer()}
    site = site_of([A, B], [sites.plan("um", sites.all_of(A, B))])
    async with umpack_with(pbx, endpoints, site) as umpack:
        assert (await pbx.call(NUMBER)).status == 200
        assert await umpack.rung() == ["a", "b"]
        await umpack.check_clean(1)
        (record,) = umpack.records()
        assert [attempt.outcome.sip for attempt in record.attempts] == [status, None]


async def test_what_the_first_server_said_is_not_taken_for_the_seconds_words(
    pbx: ContractPbx,
) -> None:
    # HANGUPCAUSE and its keys outlive the Dial they are from: the 503 must not colour the 404.
    endpoints: Servers = {"a": Reject(503), "b": Reject(404), "c": Answer()}
    async with umpack_with(pbx, endpoints, site_of([A, B, C], [sites.plan("um", ALL)])) as umpack:
        assert (await pbx.call(NUMBER)).status == 404
        assert await umpack.rung() == ["a", "b"]
        await umpack.check_clean(1)
        (record,) = umpack.records()
        assert [attempt.outcome.sip for attempt in record.attempts] == [503, 404]


async def test_servers_that_only_ring_are_left_after_answer_within(pbx: ContractPbx) -> None:
    endpoints: Servers = {"a": Ring(), "b": Ring(), "c": Answer()}
    plan = sites.plan("um", ALL, answer_within=QUICK)
    async with umpack_with(pbx, endpoints, site_of([A, B, C], [plan])) as umpack:
        assert (await pbx.call(NUMBER)).status == 200
        assert await umpack.rung() == ["a", "b", "c"]
        await umpack.check_clean(1)
        (record,) = umpack.records()
        first, second, last = (attempt.outcome.result for attempt in record.attempts)
        assert (first, second, last) == (Result.TIMED_OUT, Result.TIMED_OUT, Result.ANSWERED)
        assert QUICK <= record.attempts[0].ended - record.attempts[0].started < QUICK + 5.0


async def test_whether_it_rang_is_known(pbx: ContractPbx) -> None:
    """By the far end's own last word: no event of the manager's is needed."""
    endpoints: Servers = {"a": Ring(), "b": Reject(480)}
    plan = sites.plan("um", sites.all_of(A, B), answer_within=QUICK)
    async with umpack_with(pbx, endpoints, site_of([A, B], [plan])) as umpack:
        assert (await pbx.call(NUMBER)).status == 480
        await umpack.check_clean(1)
        (record,) = umpack.records()
        rung, refused = (attempt.outcome for attempt in record.attempts)
        assert (rung.result, rung.rang) == (Result.TIMED_OUT, True)
        assert (refused.sip, refused.rang) == (480, None)


async def test_when_a_later_server_answered_is_known(pbx: ContractPbx) -> None:
    endpoints: Servers = {"a": Ring(), "b": Answer()}
    plan = sites.plan("um", sites.all_of(A, B), answer_within=QUICK)
    async with umpack_with(pbx, endpoints, site_of([A, B], [plan])) as umpack:
        assert (await pbx.call(NUMBER, hold=0.3)).status == 200
        await umpack.check_clean(1)
        (record,) = umpack.records()
        assert record.answered is not None
        # DIALEDTIME counts from the caller's beginning, not from that of the last Dial.
        assert 0.25 <= record.ended - record.answered < 5.0


async def test_all_servers_failing_ends_in_the_packs_refusal(pbx: ContractPbx) -> None:
    endpoints: Servers = {"a": Reject(503), "b": Reject(500), "c": Reject(503)}
    async with umpack_with(pbx, endpoints, site_of([A, B, C], [sites.plan("um", ALL)])) as umpack:
        assert (await pbx.call(NUMBER)).status == 503
        assert await umpack.rung() == ["a", "b", "c"]
        await umpack.check_clean(1)
        assert umpack.records()[0].reason is Reason.ATTEMPTS_FAILED


# --- hostile callers ----------------------------------------------------------------------------

HOSTILE_NAMES = [
    '"&Local/x@y,',
    "&PJSIP/b",
    "${SHELL(id)}",
    "a,b,c(d)^e|f",
    "200 result=1 (ANSWER)",
    "agi_extension: 666",
    "HANGUP",
    '\\"; DROP TABLE calls; --',
    "ü" * 40,
    "x" * 200,
]
HOSTILE_USERS = ["100&Local", "1,2", "100'", "a%22b"]
FORGERS = ["%0a%0a200%20result=1", "1%0aagi_extension:%20666", "%0aHANGUP", "1%0a%0aHANGUP%0a"]
"""Users of From with line breaks, which would be lines of the AGI environment."""


async def test_a_callers_name_and_number_do_nothing(pbx: ContractPbx) -> None:
    names: list[tuple[str, str | None]] = [("1000", name) for name in HOSTILE_NAMES]
    users: list[tuple[str, str | None]] = [(user, None) for user in HOSTILE_USERS]
    site = site_of([A, B], [sites.plan("um", sites.all_of(A, B))])
    async with umpack_with(pbx, {"a": Answer(), "b": Answer()}, site) as umpack:
        for caller, name in [*names, *users]:
            seen = await pbx.call(NUMBER, caller=caller, name=name)
            assert seen.status == 200, (caller, name)
            await umpack.until(lambda: umpack.busy == 0)
        invites = await pbx.invites()
        assert {(invite.endpoint, invite.called) for invite in invites} == {("a", NUMBER)}
        assert len(invites) == len(names) + len(users)
        await umpack.check_clean(len(names) + len(users))


async def test_a_caller_who_forges_the_environment_is_refused(pbx: ContractPbx) -> None:
    site = site_of([A], [sites.plan("um", ["a:1"])])
    async with umpack_with(pbx, {"a": Answer()}, site) as umpack:
        for user in FORGERS:
            seen = await pbx.call(NUMBER, caller=user)
            # A forged HANGUP makes umpack let go of the call, which is then declined (603).
            assert seen.status in (200, NO_UMPACK_STATUS, 603), user
        assert (await pbx.call(NUMBER)).status == 200
        assert {invite.called for invite in await pbx.invites()} == {NUMBER}
        await umpack.until(lambda: umpack.busy == 0)
        assert umpack.errors == []
        assert {record.call.called for record in umpack.records()} == {NUMBER}


# --- many, and none -----------------------------------------------------------------------------


async def test_many_calls_leave_no_lease_behind(pbx: ContractPbx) -> None:
    trunks = [server(name, 8) for name in ANSWERING]
    endpoints: Servers = {"a": Answer(), "b": Answer(hang_up_after=0.02), "c": Reject(503)}
    plan = sites.plan("um", sites.all_of(*trunks), Strategy.CYCLIC)
    async with umpack_with(pbx, endpoints, site_of(trunks, [plan])) as umpack:
        seen = await pbx.calls(NUMBER, pbx.bulk, rate=pbx.rate, hold=0.04)
        assert len(seen) == pbx.bulk
        assert {call.status for call in seen} <= {200, 503}
        await umpack.check_clean(pbx.bulk)
        answered = sum(call.answered for call in seen)
        served = [r for r in umpack.records() if r.ending is Ending.CONNECTED]
        assert answered == len(served) > 0
        assert set(trunks_of(served)) == {"a", "b"}


async def test_without_umpack_the_dialplan_knows(pbx: ContractPbx) -> None:
    site = site_of([A], [sites.plan("um", ["a:1"])])
    async with umpack_with(pbx, {"a": Answer()}, site) as umpack:
        assert (await pbx.call(NUMBER)).status == 200
        await umpack.driver.close(1.0)
        assert (await pbx.call(NUMBER)).status == NO_UMPACK_STATUS
        await umpack.check_clean(1)


async def test_a_call_outlives_umpack(pbx: ContractPbx) -> None:
    site = site_of([A], [sites.plan("um", ["a:1"])])
    async with umpack_with(pbx, {"a": Answer()}, site) as umpack:
        loop = asyncio.get_running_loop()
        began = loop.time()
        held = await umpack.holding(NUMBER, 1)
        assert await umpack.driver.close(0.0) == 1
        assert umpack.busy == 0
        assert (await held).status == 200
        assert loop.time() - began >= pbx.beat
        await umpack.check_clean(1)
