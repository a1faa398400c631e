"""umpack beside a real Asterisk: the real core and driver, SIPp callers, SIPp UM servers."""

from __future__ import annotations

import asyncio
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.pbx.beside import (
    PEERS,
    Beside,
    Dialled,
    in_turn,
    individuals,
    lab_config,
    patient,
    port_of,
    steps_of,
    umpack,
    until,
)
from tests.pbx.lab import Lab
from tests.pbx.root import Root
from tests.pbx.sipp import Caller, Callers, Server, finals
from umpack.core.calls import Ending, Reason
from umpack.core.causes import NAMES, WIRE_SAFE_CAUSES, Result
from umpack.core.channel import ChannelId

pytestmark = [pytest.mark.pbx, pytest.mark.timeout(900)]  # the first run builds the root

TRUNKS = """
trunks:
  um1: {kind: sip, endpoint: um1, channels: 3}
  um2: {kind: sip, endpoint: um2, channels: 2}
  um3: {kind: sip, endpoint: um3, channels: 60}
  um4: {kind: sip, endpoint: um4, channels: 9, dial: "PJSIP/{called}*{caller}@um4"}
  dead: {kind: sip, endpoint: dead, channels: 2}
"""
ROUTE = 'routes:\n  - {called: "*", pack: um}\n'
TWO = f"{TRUNKS}packs: {{um: {{members: [um1, um2], answer_within: 5s}}}}\n{ROUTE}"
ORDER = ["um1:1", "um1:2", "um1:3", "um2:1", "um2:2"]


@pytest.fixture(scope="module")
def lab(pbx_root: Root) -> Iterator[Lab]:
    with patient(Lab(pbx_root, lab_config())) as lab:
        yield lab


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def pack(members: str, more: str = "answer_within: 1s") -> str:
    return f"{TRUNKS}packs: {{um: {{members: [{members}], {more}}}}}\n{ROUTE}"


async def started(stack: ExitStack, lab: Lab, caller: Caller) -> Callers:
    return stack.enter_context(await asyncio.to_thread(caller.start, lab.sip_port))


def channels(beside: Beside) -> list[ChannelId | None]:
    return [record.channel for record in beside.records]


class TestOrder:
    async def test_linear_fills_in_exact_order(self, lab: Lab, stack: ExitStack) -> None:
        for name in ("um1", "um2"):
            stack.enter_context(Server.answering(port_of(lab, name)))
        async with umpack(lab, TWO) as beside:
            # One after the other: each finds the first channel idle again.
            alone = Caller("100", count=3, parallel=1, hold_ms=10)
            await asyncio.to_thread(alone.run, lab.sip_port)
            await beside.idle()
            assert channels(beside) == ["um1:1"] * 3
            callers = await started(stack, lab, Caller("100", count=5, rate=20, hold_ms=2500))
            await beside.leased(5)
            held = sorted(beside.distributor.ledger, key=lambda lease: lease.token)
            assert [lease.channel.id for lease in held] == ORDER
            results = await asyncio.to_thread(callers.wait)
            await beside.idle()
            assert finals(results) == {200: 5}
            assert channels(beside)[3:] == ORDER

    async def test_cyclic_deals_exactly_in_turn(self, lab: Lab, stack: ExitStack) -> None:
        servers = [stack.enter_context(Server.answering(port_of(lab, n))) for n in PEERS[:2]]
        site = TWO.replace("members", "strategy: cyclic, members")
        async with umpack(lab, site) as beside:
            caller = Caller("100", count=12, parallel=1, hold_ms=10)
            await asyncio.to_thread(caller.run, lab.sip_port)
            # Side by side it is in turn as well: the pointer does not wait for a call to end.
            caller = Caller("100", count=5, rate=20, hold_ms=1500)
            await asyncio.to_thread(caller.run, lab.sip_port)
            await beside.idle()
            assert channels(beside) == (ORDER * 4)[:17]
            dialled = [len(server.calls()) for server in servers]
            assert dialled == [sum(c in ORDER[:3] for c in (ORDER * 4)[:17]), 17 - dialled[0]]

    @pytest.mark.parametrize(("cause", "status"), [(34, 503), (41, 503), (17, 486)])
    async def test_a_full_pack_says_so_on_the_wire(
        self, lab: Lab, stack: ExitStack, cause: int, status: int
    ) -> None:
        stack.enter_context(Server.answering(port_of(lab, "um2")))
        site = pack("um2", f"answer_within: 5s, refusal_cause: {cause}")
        async with umpack(lab, site) as beside:
            callers = await started(stack, lab, Caller("100", count=2, rate=50, hold_ms=1500))
            await beside.leased(2)
            (result,) = await asyncio.to_thread(Caller("100").run, lab.sip_port)
            assert result.final == status
            assert result.reason == f"Q.850;cause={cause if cause != 41 else 34}"
            await asyncio.to_thread(callers.wait)
            await beside.idle()
            full = beside.records[-1]
            assert (full.ending, full.reason, full.cause) == (Ending.REFUSED, Reason.FULL, cause)

    async def test_no_cause_becomes_603(self, lab: Lab) -> None:
        routes = "".join(f'  - {{called: "7{cause:03}", refuse: {cause}}}\n' for cause in NAMES)
        async with umpack(lab, TWO + routes) as beside:
            lines = [(f"7{cause:03}", "<sip:1000@here>", "1") for cause in NAMES]
            results = await asyncio.to_thread(individuals, lines, lab)
            for cause, result in zip(NAMES, results, strict=True):
                told = cause if cause in WIRE_SAFE_CAUSES else 34
                assert result.reason == f"Q.850;cause={told}"
                assert result.final is not None
                assert 400 <= result.final < 600, cause
            assert [record.cause for record in beside.records] == list(NAMES)
            assert {record.reason for record in beside.records} == {Reason.REFUSED_BY_ROUTE}


class TestNextStep:
    @pytest.mark.parametrize(
        ("code", "told"), [(486, 486), (404, 404), (480, 480), (403, 403), (603, 403), (488, 488)]
    )
    async def test_the_far_ends_own_answer_is_the_callers(
        self, lab: Lab, stack: ExitStack, code: int, told: int
    ) -> None:
        stack.enter_context(Server.rejecting(code, port_of(lab, "um1")))
        um2 = stack.enter_context(Server.answering(port_of(lab, "um2")))
        async with umpack(lab, TWO) as beside:
            (result,) = await asyncio.to_thread(Caller("100").run, lab.sip_port)
            assert result.final == told
            (record,) = beside.records
            (attempt,) = record.attempts
            assert (record.ending, attempt.outcome.sip) == (Ending.DECLINED, code)
            assert um2.calls() == []

    @pytest.mark.parametrize("code", [500, 502, 503, 504])
    async def test_a_server_in_trouble_sends_the_call_to_the_next(
        self, lab: Lab, stack: ExitStack, code: int
    ) -> None:
        um1 = stack.enter_context(Server.rejecting(code, port_of(lab, "um1")))
        stack.enter_context(Server.answering(port_of(lab, "um2")))
        async with umpack(lab, TWO) as beside:
            (result,) = await asyncio.to_thread(Caller("100").run, lab.sip_port)
            await beside.idle()
            assert result.final == 200
            (record,) = beside.records
            assert [attempt.channel for attempt in record.attempts] == ["um1:1", "um2:1"]
            assert record.attempts[0].outcome.sip == code
            assert len(um1.calls()) == 1

    async def test_ringing_for_ever_then_dead_then_alive(self, lab: Lab, stack: ExitStack) -> None:
        um1 = stack.enter_context(Server.ringing(port_of(lab, "um1")))
        stack.enter_context(Server.answering(port_of(lab, "um2")))
        async with umpack(lab, pack("um1, dead, um2")) as beside:
            (result,) = await asyncio.to_thread(Caller("100").run, lab.sip_port)
            await beside.idle()
            assert result.final == 200
            (record,) = beside.records
            results = [attempt.outcome.result for attempt in record.attempts]
            assert results == [Result.TIMED_OUT, Result.TIMED_OUT, Result.ANSWERED]
            assert [attempt.trunk for attempt in record.attempts] == ["um1", "dead", "um2"]
            assert um1.calls()[0].steps == ("invite", "cancelled")

    async def test_all_fail_so_the_pack_says_no(self, lab: Lab, stack: ExitStack) -> None:
        for name in ("um1", "um2"):
            stack.enter_context(Server.rejecting(503, port_of(lab, name)))
        async with umpack(lab, TWO) as beside:
            (result,) = await asyncio.to_thread(Caller("100").run, lab.sip_port)
            assert (result.final, result.reason) == (503, "Q.850;cause=34")
            (record,) = beside.records
            assert (record.ending, record.reason) == (Ending.REFUSED, Reason.ATTEMPTS_FAILED)
            assert len(record.attempts) == 2

    async def test_a_cause_left_over_from_a_refusal_is_not_the_next_attempts(
        self, lab: Lab, stack: ExitStack
    ) -> None:
        stack.enter_context(Server.rejecting(503, port_of(lab, "um1")))
        stack.enter_context(Server.ringing(port_of(lab, "um2")))
        async with umpack(lab, pack("um1, um2")) as beside:
            (result,) = await asyncio.to_thread(Caller("100").run, lab.sip_port)
            assert result.final == 503
            (record,) = beside.records
            outcomes = [attempt.outcome for attempt in record.attempts]
            assert [outcome.result for outcome in outcomes] == [Result.REFUSED, Result.TIMED_OUT]
            assert (outcomes[0].sip, outcomes[1].sip, outcomes[1].cause) == (503, None, None)


class TestHangUp:
    async def test_while_it_rings(self, lab: Lab, stack: ExitStack) -> None:
        um1 = stack.enter_context(Server.ringing(port_of(lab, "um1")))
        async with umpack(lab, TWO.replace("5s", "20s")) as beside:
            callers = await started(stack, lab, Caller("100", patience_ms=500))
            await beside.leased(1)
            (result,) = await asyncio.to_thread(callers.wait)
            assert result.end == "cancelled"
            # Long before answer_within: the CANCEL ends the Dial.
            await beside.idle(5.0)
            (record,) = beside.records
            assert (record.ending, record.answered) == (Ending.ABANDONED, None)
            assert record.attempts[0].outcome.result is Result.HUNG_UP
            await until(lambda: um1.calls()[0].steps == ("invite", "cancelled"))

    @pytest.mark.parametrize("who", ["caller", "callee"])
    async def test_after_the_answer(self, lab: Lab, stack: ExitStack, who: str) -> None:
        port = port_of(lab, "um1")
        callee = Server.hanging_up(port, hold_ms=300) if who == "callee" else Server.answering(port)
        stack.enter_context(callee)
        hold = 300 if who == "caller" else 20_000
        async with umpack(lab, TWO) as beside:
            (result,) = await asyncio.to_thread(Caller("100", hold_ms=hold).run, lab.sip_port)
            assert result.end == ("hangup-local" if who == "caller" else "hangup-remote")
            await beside.idle()
            (record,) = beside.records
            assert (record.ending, record.cause) == (Ending.CONNECTED, 16)
            assert record.answered is not None
            assert record.offered <= record.answered <= record.ended

    async def test_at_every_moment_before_the_answer(self, lab: Lab, stack: ExitStack) -> None:
        # Patience runs from the INVITE and from each word of the PBX: CANCEL meets the check, the
        # AGI step, the Dial and the ringing, in whatever order they come.
        stack.enter_context(Server.ringing(port_of(lab, "um3")))
        async with umpack(lab, pack("um3", "answer_within: 30s")) as beside:
            told: Counter[str] = Counter()
            for patience in (6, 9, 14, 20, 40):
                caller = Caller("100", count=30, rate=100, patience_ms=patience)
                told.update(r.end for r in await asyncio.to_thread(caller.run, lab.sip_port))
            await asyncio.to_thread(lab.wait_channels, 0)
            await beside.idle()
            assert told == {"cancelled": 150}
            records = beside.records
            assert 0 < len(records) <= 150
            assert len({record.call.inbound for record in records}) == len(records)
            assert {record.ending for record in records} == {Ending.ABANDONED}
            assert beside.complaints == []

    async def test_by_both_sides_as_soon_as_it_is_answered(
        self, lab: Lab, stack: ExitStack
    ) -> None:
        stack.enter_context(Server.hanging_up(port_of(lab, "um3"), hold_ms=2))
        async with umpack(lab, pack("um3", "answer_within: 30s")) as beside:
            caller = Caller("100", count=100, rate=100, hold_ms=4)
            results = await asyncio.to_thread(caller.run, lab.sip_port)
            await asyncio.to_thread(lab.wait_channels, 0)
            await beside.idle()
            assert finals(results) == {200: 100}
            assert [record.ending for record in beside.records] == [Ending.CONNECTED] * 100
            assert beside.complaints == []


QUIET = "<sip:1000@here>"
HOSTILE_CALLERS = [
    (r'"\"&Local/x@y," <sip:%26Local%2fx%40y%2c@here>', "%26Local%2fx%40y%2c", "&Local/x@y,"),
    ('"&Local/x@y," <sip:%26Local%2fx@here>', "1", "&Local/x"),
    ("<sip:66%0aagi_dnid%3a%20999@here>", "66%0aagi_extension%3a%20999", "66agi_dnid: 999"),
    ("<sip:66%0a200%20result%3d1@here>", "1%0a200%20result%3d1", "66200 result=1"),
    ("<sip:66%0a%0a200%20result%3d0@here>", "1%0d%0a%0d%0aHANGUP", "66200 result=0"),
    ("<sip:66%29%3a0%3a9%0aHANGUP@here>", "12%29%3a0%3a9%0aHANGUP", "66):0:9HANGUP"),
    ("<sip:%24%7bSHELL%28touch%20MARK%29%7d@here>", "%24%7bEXTEN%7d", "${SHELL(touch MARK)}"),
    ('"a\x07b\x1bc\x7fd" <sip:66%07%1b@here>', "1", "66"),
    ('"Jürgen \\"Büro\\" Öz ★" <sip:+49*30#@here>', "1", "+49*30#"),
]  # fmt: skip
HOSTILE_NUMBERS = [
    "100%26Local%2fx%40y%2c",
    "100%0aagi_callerid%3a%20666",
    "100%0a200%20result%3d1",
    "100%29%3a0%3a9%0aagi_extension%3a%20999",
    "100%0d",
    "1%7f",
    "100%24%7bSHELL%28id%29%7d",
    "100%22%20%3d%20%22",
]


class TestHostile:
    async def test_callers_change_nothing_but_their_own_name(
        self, lab: Lab, stack: ExitStack, tmp_path: Path
    ) -> None:
        mark = tmp_path / "mark"
        um4 = stack.enter_context(Server.answering(port_of(lab, "um4")))
        async with umpack(lab, pack("um4")) as beside:
            with await asyncio.to_thread(Dialled, lab) as dialled:
                lines = [
                    ("100", sender.replace("MARK", str(mark).replace("/", "%2f")), diverted)
                    for sender, diverted, _ in HOSTILE_CALLERS
                ]
                results = await asyncio.to_thread(individuals, lines, lab)
                await beside.idle()
                callers = [c.replace("MARK", str(mark)) for _, _, c in HOSTILE_CALLERS]
                assert finals(results) == {200: len(lines)}
                records = sorted(beside.records, key=lambda record: record.call.inbound)
                assert [record.call.caller for record in records] == [c[:79] for c in callers]
                assert {record.call.called for record in records} == {"100"}
                assert {record.ending for record in records} == {Ending.CONNECTED}
                assert {len(record.attempts) for record in records} == {1}
                names = [record.call.caller_name for record in records]
                assert not any(controls(name) for name in names)
                assert names[7:] == ["abcd", r"Jürgen \"Büro\" Öz ★"]
                expected = [f"100*{kept(caller)}" for caller in callers]
                assert sorted(dialled.strings) == sorted(f"{number}@um4" for number in expected)
                assert sorted(call.called for call in um4.calls()) == sorted(
                    number.replace("#", "%23") for number in expected
                )
            assert beside.complaints == []
        assert not mark.exists()

    async def test_unsafe_numbers_are_refused_before_umpack_hears_of_them(
        self, lab: Lab, stack: ExitStack
    ) -> None:
        um4 = stack.enter_context(Server.answering(port_of(lab, "um4")))
        async with umpack(lab, pack("um4")) as beside:
            lines = [(number, QUIET, "1") for number in HOSTILE_NUMBERS]
            results = await asyncio.to_thread(individuals, [*lines, ("100", QUIET, "1")], lab)
            assert [result.final for result in results] == [484] * len(lines) + [200]
            assert {result.reason for result in results[:-1]} == {"Q.850;cause=28"}
            await beside.idle()
            assert [record.call.called for record in beside.records] == ["100"]
            assert len(um4.calls()) == 1
            assert beside.complaints == []


def controls(text: str) -> list[str]:
    return [sign for sign in text if unicodedata.category(sign) == "Cc"]


def kept(caller: str) -> str:
    return "".join(c for c in caller if c.isascii() and (c.isalnum() or c in "*#+._-"))[:64]


class TestManyCalls:
    @pytest.mark.timeout(300)
    async def test_five_thousand_calls_leave_nothing_behind(
        self, lab: Lab, stack: ExitStack
    ) -> None:
        calls, rate = 5000, 110
        kinds = {
            "um1": ("uas_hangup", {"ring_ms": "1", "hold_ms": "20"}),
            "um2": ("uas_reject", {"ring_ms": "1", "code": "503", "phrase": "No"}),
            "um3": ("uas_answer", {"ring_ms": "1"}),
        }
        servers = [
            stack.enter_context(Server(scenario, fill, port_of(lab, name), 280))
            for name, (scenario, fill) in kinds.items()
        ]
        # Room for all 200 calls SIPp makes at once and those Asterisk still clears away.
        site = pack("um1, um2, um3", "strategy: cyclic, answer_within: 30s")
        site = site.replace("channels: 60", "channels: 400").replace(
            "channels: 3}", "channels: 30}"
        )
        # The turn is asked about, not health: um2 keeps its place though it refuses every call.
        site += (
            "health: {suspect_after: 100000, failures_to_eject: 100000, channel_failures: 100000, "
            "outlier_sample: 100000, hesitation_floor: 60s}\n"
        )
        async with umpack(lab, site) as beside:
            caller = Caller("100", count=calls, rate=rate, hold_ms=50, user="7{call}")
            callers = stack.enter_context(await asyncio.to_thread(caller.start, lab.sip_port, 240))
            assert await asyncio.to_thread(callers.ended, 250)
            await asyncio.to_thread(lab.wait_channels, 0, 40.0)
            await beside.idle(5.0)
            assert [c for c in beside.distributor.ledger.channels.values() if c.lease] == []
            told = Counter((event.step, event.code) for event in callers.events())
            assert told["answered", 200] == calls
            records = beside.offered
            assert len(records) == calls
            # Each caller has a number of his own, so no call is there twice, and none is missing.
            assert {record.call.caller for record in records} == {
                f"7{call}" for call in range(1, calls + 1)
            }
            assert {record.ending for record in records} == {Ending.CONNECTED}
            answered = sum(
                event.step == "answered" for server in servers for event in server.events()
            )
            assert answered == calls
            assert len(servers[1].events()) > 0
            assert in_turn(steps_of(beside), 30 + 2 + 400)
            assert beside.complaints == []
