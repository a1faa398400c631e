"""The simulated PBX with a board: calls out on B channels, calls in, and lines that fail."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

import pytest

from drivers.asterisk.agi_call import AgiCall
from drivers.asterisk.agi_commands import command, exec_
from drivers.asterisk.driver import AsteriskDriver, AsteriskPlan
from simulators.asterisk import SimulatedAsterisk
from simulators.board import Board
from simulators.endpoints import Answer, Behaviour, Clear, Reject, Ring, Silent
from simulators.line import Bearer, Defect, Kind, SpanSpec, Timers
from simulators.pbx_call import CallResult
from tests import sites
from tests.unit.simulators.pbx_peers import Serve, served
from tests.unit.simulators.test_asterisk import facts
from umpack import clock
from umpack.core.calls import Ending
from umpack.core.distributor import Distributor
from umpack.core.errors import OurFault
from umpack.core.pack import Strategy
from umpack.core.site import Site
from umpack.core.trunk import Trunk, TrunkKind

QUICK = Timers(alarm=0.01, settle=0.01, t303=0.03, t309=0.0, round_trip=0.005)
S0 = SpanSpec(Kind.S0, timers=QUICK)


@contextlib.asynccontextmanager
async def with_board(
    specs: list[SpanSpec], far_ends: Mapping[int, Behaviour]
) -> AsyncIterator[SimulatedAsterisk]:
    async with SimulatedAsterisk() as pbx:
        pbx.attach(Board(specs), far_ends)
        yield pbx


def idle(pbx: SimulatedAsterisk) -> bool:
    """No call is on any B channel, and none is clearing."""
    assert pbx.lines is not None
    board = pbx.lines.board
    return all(board.channel(n).bearer is Bearer.IDLE for n in pbx.lines.numbers)


async def until_idle(pbx: SimulatedAsterisk) -> None:
    async with asyncio.timeout(20):
        while not idle(pbx):  # noqa: ASYNC110 - a board tells nobody
            await asyncio.sleep(0.002)


def dialling(*arguments: str) -> tuple[list[tuple[str, ...]], Serve]:
    """An AGI handler that dials these in turn, and what each Dial left."""
    seen: list[tuple[str, ...]] = []

    async def serve(call: AgiCall) -> None:
        for argument in arguments:
            await call.command(exec_("Dial", argument))
            seen.append(await facts(call))
            await call.command(exec_("HangupCauseClear"))

    return seen, serve


REQUEST = "PRI PRI_EVENT_HANGUP_REQ"
ENDS: list[tuple[Behaviour, str, tuple[str, ...]]] = [
    (Answer(hang_up_after=0.01), "5", ("ANSWER", "16", f"{REQUEST} (16)")),
    (Clear(17), "5", ("BUSY", "17", f"{REQUEST} (17)")),
    (Clear(1), "5", ("CHANUNAVAIL", "1", f"{REQUEST} (1)")),
    (Clear(21), "5", ("CONGESTION", "21", f"{REQUEST} (21)")),
    (Clear(34), "5", ("CONGESTION", "34", f"{REQUEST} (34)")),
    (Clear(41), "5", ("CONGESTION", "41", f"{REQUEST} (41)")),
    (Clear(44), "5", ("CHANUNAVAIL", "44", f"{REQUEST} (44)")),
    (Ring(), "0.05", ("NOANSWER", "0")),
    (Silent(), "5", ("CHANUNAVAIL", "102", "PRI PRI_EVENT_HANGUP (102)")),
]


@pytest.mark.parametrize(("behaviour", "limit", "expected"), ENDS, ids=repr)
async def test_how_calls_out_end(
    behaviour: Behaviour, limit: str, expected: tuple[str, ...]
) -> None:
    seen, serve = dialling(f"DAHDI/2/49302000100,{limit}")
    async with with_board([S0], {1: behaviour}) as pbx, served(pbx, serve):
        result = await pbx.call("1", hold=None)
        assert seen == [expected]
        assert result.served_by == ("DAHDI/2" if expected[0] == "ANSWER" else None)
        await until_idle(pbx)


async def test_a_channel_that_cannot_be_had_has_no_leg() -> None:
    seen, serve = dialling("DAHDI/4/1,1", "DAHDI/9/1,1", "DAHDI/i2/1,1", "DAHDI/g1/1,1")
    async with with_board([S0, S0], {}) as pbx, served(pbx, serve):
        pbx.accident(lambda board, now: board.defect(now, 2, Defect.LOS))
        await asyncio.sleep(0.05)
        await pbx.call("1")
        # No other call: no cause at all. With a span named: congestion.
        assert seen == [
            ("CHANUNAVAIL", "0"),
            ("CHANUNAVAIL", "0"),
            ("CONGESTION", "34"),
            ("CHANUNAVAIL", "0"),
        ]
        seen.clear()
        # With any DAHDI call anywhere, chan_dahdi calls the dead channel a busy user.
        pbx.accident(
            lambda board, now: board.incoming(now, 1, caller="1", called="2")  # not the PBX's
        )
        caller = asyncio.create_task(pbx.call("1", "0301", span=1))
        await caller
        assert seen[0] == ("BUSY", "17")


async def test_a_channel_is_busy_until_its_release_is_answered() -> None:
    seen, serve = dialling("DAHDI/1/1,1", "DAHDI/1/1,1", "DAHDI/2/1,1")
    slow = SpanSpec(Kind.S0, timers=Timers(round_trip=0.25))
    async with with_board([slow], {1: Clear(41)}) as pbx, served(pbx, serve):
        await pbx.call("1")
        assert [status for status, *_ in seen] == ["CONGESTION", "CHANUNAVAIL", "CONGESTION"]
        await until_idle(pbx)


async def test_glare_moves_a_call_to_another_channel_or_ends_it() -> None:
    async def serve(call: AgiCall) -> None:
        await call.command(exec_("Dial", "DAHDI/1/1,0.02"))
        seen.append(await facts(call))

    seen: list[tuple[str, ...]] = []
    async with with_board([S0], {1: Silent()}) as pbx, served(pbx, serve):
        for expected, held in (("NOANSWER", 2), ("CONGESTION", 1)):
            call = asyncio.create_task(pbx.call("1"))
            async with asyncio.timeout(20):
                while pbx.channel_on(1) is None or idle(pbx):  # noqa: ASYNC110
                    await asyncio.sleep(0)
            if held == 1:
                pbx.accident(
                    lambda board, now: board.incoming(now, 1, caller="", called="", channel=2)
                )
            pbx.accident(lambda board, now: board.incoming(now, 1, caller="", called="", channel=1))
            assert (pbx.channel_on(2) is not None) == (held == 2)
            await call
            assert seen[-1][0] == expected
            assert pbx.lines is not None
            board, now = pbx.lines.board, pbx.time.now()
            for view in board.calls():
                pbx.lines.happen(board.hang_up(now, view.ref))
            await until_idle(pbx)


async def test_glare_by_the_exchange_itself_and_who_insists_on_his_channel() -> None:
    async def serve(call: AgiCall) -> None:
        if call.environment.type == "PJSIP":
            await call.command(exec_("Dial", "DAHDI/1/1,5"))
            seen.append(await facts(call))

    seen: list[tuple[str, ...]] = []
    async with with_board([S0], {1: Answer()}) as pbx, served(pbx, serve):
        assert pbx.lines is not None
        theirs: list[asyncio.Task[CallResult]] = []

        def collide(channel: int) -> None:
            call = pbx.call("2", "0302", span=1, line_channel=channel)
            theirs.append(asyncio.create_task(call))

        pbx.lines.on_setup = collide
        for exclusive in (False, True):
            pbx.lines.exclusive = exclusive
            served_by = (await pbx.call("1")).served_by
            assert served_by == (None if exclusive else "DAHDI/2")
            await asyncio.gather(*theirs)
            await until_idle(pbx)
        assert [facts_[:2] for facts_ in seen] == [("ANSWER", "16"), ("CONGESTION", "34")]
        # A channel that is in use is not given to a caller who accepts no other.
        pbx.lines.on_setup = lambda channel: None
        held = asyncio.create_task(pbx.call("1", hold=0.2))
        async with asyncio.timeout(20):
            while pbx.lines.board.channel(1).bearer is not Bearer.CONNECTED:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        assert (await pbx.call("2", span=1, line_channel=1)).cause == 44
        await held
        await until_idle(pbx)


async def test_callers_from_a_line_hear_the_very_cause() -> None:
    async def serve(call: AgiCall) -> None:
        seen.append((call.environment.type, call.environment.callerid, call.environment.dnid))
        await call.command(command("SET VARIABLE", "UMPACK_CAUSE", "44"))

    seen: list[tuple[str, ...]] = []
    async with with_board([S0], {}) as pbx, served(pbx, serve):
        result = await pbx.call("100", "0301", span=1)
        assert (result.cause, result.sip) == (44, None)
        assert seen == [("DAHDI", "0301", "100")]
        await until_idle(pbx)
        pbx.accident(lambda board, now: board.lose_dchannel(now, 1))
        assert (await pbx.call("100", "0301", span=1)).cause == 27
    with pytest.raises(OurFault):
        Reject(100)


async def test_a_lost_d_channel_ends_calls_on_both_sides() -> None:
    async def serve(call: AgiCall) -> None:
        await call.command(exec_("Dial", "DAHDI/4/1,5"))

    async with with_board([S0, S0], {}) as pbx, served(pbx, serve):
        out = asyncio.create_task(pbx.call("1", hold=60))
        through = asyncio.create_task(pbx.call("1", "0301", span=1, hold=60))
        assert pbx.lines is not None
        async with asyncio.timeout(20):
            while not any(v.bearer is Bearer.CONNECTED for v in pbx.lines.board.channels(2)):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        pbx.accident(lambda board, now: board.lose_dchannel(now, 2))
        pbx.accident(lambda board, now: board.lose_dchannel(now, 1))
        results = await asyncio.gather(out, through)
        assert sum(result.answered for result in results) == 1
        assert all(result.cause for result in results)
        assert pbx.calls == 0


# --- with umpack's own core and driver ----------------------------------------------------------


@contextlib.asynccontextmanager
async def umpack_on(pbx: SimulatedAsterisk, site: Site) -> AsyncIterator[Distributor]:
    distributor = Distributor(site)
    driver = AsteriskDriver(AsteriskPlan(sites.MAIN, "127.0.0.1", 0, None), distributor, clock.now)
    await driver.start()
    pbx.agi_to("127.0.0.1", driver.agi_port)
    try:
        yield distributor
    finally:
        await driver.close(5.0)
    assert len(distributor.ledger) == 0


def s0(name: str, first: int) -> Trunk:
    return sites.trunk(name, 2, kind=TrunkKind.S0, first=first)


async def test_umpack_hunts_over_lines() -> None:
    trunks = [s0("left", 1), s0("right", 4)]
    site = sites.one_pack(*trunks)
    async with with_board([S0, S0], {}) as pbx, umpack_on(pbx, site) as distributor:
        held = []
        for _ in range(4):
            before = len(distributor.ledger)
            held.append(asyncio.create_task(pbx.call("100", hold=0.3)))
            async with asyncio.timeout(20):
                while len(distributor.ledger) == before:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
        full = await pbx.call("100")
        results = await asyncio.gather(*held)
    assert [r.served_by for r in results] == ["DAHDI/1", "DAHDI/2", "DAHDI/4", "DAHDI/5"]
    assert full.sip == 503


@pytest.mark.parametrize("strategy", list(Strategy))
async def test_umpack_is_faster_than_a_line_and_loses_no_call(strategy: Strategy) -> None:
    # A lease ends with the call; the B channel is idle only when its RELEASE has been answered.
    slow = SpanSpec(Kind.S0, timers=Timers(round_trip=0.25))
    trunks = [s0("left", 1), s0("right", 4)]
    site = sites.one_pack(*trunks, strategy=strategy)
    async with with_board([slow, slow], {}) as pbx, umpack_on(pbx, site) as distributor:
        for _ in range(2):
            served = [await pbx.call("100", hold=0.0) for _ in range(4)]
            assert {call.served_by for call in served} == {
                "DAHDI/1", "DAHDI/2", "DAHDI/4", "DAHDI/5",
            }  # fmt: skip
            await until_idle(pbx)
        records = distributor.take_records()
        assert [record.ending for record in records] == [Ending.CONNECTED] * 8


async def test_umpack_goes_round_a_dead_line() -> None:
    trunks = [s0("left", 1), s0("right", 4)]
    async with with_board([S0, S0], {}) as pbx, umpack_on(pbx, sites.one_pack(*trunks)):
        pbx.accident(lambda board, now: board.defect(now, 1, Defect.LOS))
        await asyncio.sleep(0.05)
        calls = [asyncio.create_task(pbx.call("100", hold=0.2)) for _ in range(2)]
        assert {(await call).served_by for call in calls} == {"DAHDI/4", "DAHDI/5"}


@pytest.mark.parametrize("called", ["49302*1", "#31#100", "+4930"])
async def test_umpack_reads_the_words_of_any_number(called: str) -> None:
    # The called number is part of the leg's channel name, by which its words are asked for.
    trunks = [s0("left", 1), s0("right", 4)]
    site = sites.one_pack(*trunks)
    far_ends: dict[int, Behaviour] = {1: Clear(38), 2: Answer()}
    async with with_board([S0, S0], far_ends) as pbx, umpack_on(pbx, site) as distributor:
        result = await pbx.call(called, hold=0.0)
        assert (result.sip, result.served_by) == (200, "DAHDI/4")
        (record,) = distributor.take_records()
        assert record.attempts[0].outcome.cause == 38
