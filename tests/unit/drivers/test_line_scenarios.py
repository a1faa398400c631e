"""Scenarios that broke other switches, through the driver, on a simulated board with real timers.

Numbers and letters are those of the catalogue the core's own tests follow.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from drivers.base import LinkState
from simulators.agi_client import AgiStatus
from simulators.endpoints import Answer, Behaviour, Clear, Ring, Silent
from simulators.line import End, Fault, Kind, SpanSpec, Timers
from simulators.pbx_call import CallResult
from tests import sites
from tests.unit.drivers.rig import ALARMED, LINES, RARELY, S0, UP, Rig, beside, pbx_of, umpack
from umpack.core.calls import Ending
from umpack.core.causes import Result
from umpack.core.channel import ChannelId
from umpack.core.distributor import Distributor
from umpack.core.health_policy import HealthPolicy
from umpack.core.health_states import HealthEvent
from umpack.core.site import Site
from umpack.core.trunk import TrunkId, TrunkKind

S2M = SpanSpec(Kind.S2M)
SPAN = replace(
    sites.trunk("line", (*range(1, 16), *range(17, 32)), kind=TrunkKind.S2M),
    span=1,
)
UM = sites.trunk("um", 40)
BLAME = {HealthEvent.BLAMED, HealthEvent.EJECT, HealthEvent.SPARE}


def lines_and_servers() -> Site:
    """100 goes out on the span, 200 (which comes in there) to a server."""
    packs = [
        sites.plan("out", sites.all_of(SPAN), answer_within=10.0),
        sites.plan("in", sites.all_of(UM), answer_within=10.0),
    ]
    routes = [sites.route("100", "out"), sites.route("200", "in")]
    return sites.site([SPAN, UM], packs, routes)


def held_on(rig: Rig) -> dict[str, bool]:
    """Channels that are held, and whether by a call that was adopted."""
    return {lease.channel.id: lease.pack is None for lease in rig.distributor.ledger}


async def ended(*calls: asyncio.Task[CallResult]) -> list[CallResult]:
    return list(await asyncio.gather(*calls))


# --- ringing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sip", "line"])
async def test_people_who_do_not_answer_take_no_trunk_out(kind: str) -> None:
    """Answers take some 8 s there; three who are not at home ring for 20 s each."""
    sip = kind == "sip"
    trunk = sites.trunk("people", 30) if sip else replace(SPAN, id=TrunkId("people"))
    specs, far_ends = ([], None) if sip else ([S2M], {1: Answer(8.0)})
    policy = HealthPolicy(suspect_after=1)
    async with umpack([trunk], specs, policy=policy, far_ends=far_ends) as rig:
        if sip:
            rig.pbx.endpoints["people"].behaviour = Answer(8.0)
        await rig.served()  # hints are counted on from the first one
        await asyncio.gather(*(rig.served() for _ in range(25)))
        health = rig.distributor.health[trunk.id]
        assert 8.0 <= health.answer_p99 < 20.0
        if sip:
            rig.pbx.endpoints["people"].behaviour = Ring()
        else:
            assert rig.pbx.lines is not None
            rig.pbx.lines.far_ends[1] = Ring()
        rig.changes()
        rig.distributor.take_records()
        await asyncio.gather(*(rig.served() for _ in range(3)))
        outcomes = [r.attempts[0].outcome for r in rig.distributor.take_records()]
        assert [(o.result, o.rang) for o in outcomes] == [(Result.TIMED_OUT, True)] * 3
        assert rig.state("people") is UP
        assert not BLAME & set(rig.changes())


async def test_a_line_that_says_nothing_at_all_is_still_to_blame() -> None:
    async with umpack(LINES, [S0, S0], far_ends={1: Silent()}, answer_within=2.0) as rig:
        assert {await rig.served() for _ in range(3)} <= {"DAHDI/4", "DAHDI/5"}
        assert HealthEvent.BLAMED in rig.changes()


async def test_who_waits_for_a_second_server_hears_ringing() -> None:
    async with umpack([sites.trunk("a"), sites.trunk("b")], [], answer_within=2.0) as rig:
        at_once = await rig.pbx.call("100")
        assert (at_once.served_by, at_once.dialled) == ("PJSIP/a", ("PJSIP/100@a,2.000",))
        rig.pbx.endpoints["a"].behaviour = Silent()
        rig.pbx.endpoints["b"].behaviour = Silent()
        waiting = asyncio.create_task(rig.pbx.call("100"))
        call = await waiting
        assert call.rang
        assert call.dialled[0] == "PJSIP/100@a,2.000"
        assert call.dialled[1].endswith(",R")


# --- glare --------------------------------------------------------------------------------------


@pytest.mark.parametrize("exclusive", [True, False])
async def test_a_storm_of_glare_loses_no_call_and_blames_nobody(*, exclusive: bool) -> None:
    """The exchange takes the channel of every SETUP of ours, before its first reply to it.

    Where ours insists on its channel, it is cleared with 34; where not, it is moved.
    """
    async with pbx_of([UM], [S2M], 1.0) as pbx:
        distributor = Distributor(lines_and_servers())
        async with beside(pbx, distributor) as rig:
            lines = pbx.lines
            assert lines is not None
            lines.exclusive = exclusive
            incoming: list[asyncio.Task[CallResult]] = []
            met: set[str] = set()

            def collide(number: int) -> None:
                ref = lines.board.channel(number).call
                ours = lines.board.call(ref) if ref is not None else None
                if ours is None or ours.caller in met:
                    return  # once each: nobody is to run out of channels
                met.add(ours.caller)
                theirs = pbx.call("200", span=1, line_channel=number, hold=3.0)
                incoming.append(asyncio.create_task(theirs))

            lines.on_setup = collide
            outgoing = []
            for number in range(10):
                outgoing.append(asyncio.create_task(pbx.call("100", f"50{number}", hold=4.0)))
                await asyncio.sleep(0.02)
            await rig.until(lambda: len([*pbx.channels]) == 40)  # two of each call
            await rig.until(lambda: sum(not adopted for adopted in held_on(rig).values()) == 20)
            # Where each of ours really is, the ledger has it.
            places = {leg.number for leg in lines._legs.values()}
            own = {
                lease.channel.number
                for lease in distributor.ledger
                if lease.pack is not None and lease.channel.trunk.id == "line"
            }
            assert own == places
            results = await ended(*outgoing, *incoming)
            assert len(results) == 20
            assert all(result.answered for result in results)
            assert len(met) == 10
            assert distributor.collisions == ({"line": 10} if exclusive else {})
            assert not BLAME & set(rig.changes())
            assert rig.state("line") is UP
            await rig.until(lambda: len(distributor.ledger) == 0)


async def test_a_channel_lost_to_glare_is_adopted_soon() -> None:
    """And not only with the next pass, half a minute later."""
    async with pbx_of([UM], [S2M], 1.0) as pbx:
        distributor = Distributor(lines_and_servers())
        async with beside(pbx, distributor) as rig:
            lines = pbx.lines
            assert lines is not None
            lines.exclusive = True
            await rig.until(lambda: rig.driver._reconciler.passes > 0)
            theirs: list[asyncio.Task[CallResult]] = []

            def collide(number: int) -> None:
                lines.on_setup = lambda channel: None
                call = pbx.call("200", span=1, line_channel=number, hold=30.0)
                theirs.append(asyncio.create_task(call))

            lines.on_setup = collide
            ours = asyncio.create_task(pbx.call("100", hold=30.0))
            await rig.until(lambda: held_on(rig).get("line:1") is True, 15)
            assert held_on(rig)["line:2"] is False
            hang_up_all(rig)
            await ended(ours, *theirs)


async def test_a_34_without_anybody_there_is_the_trunks() -> None:
    async with umpack(LINES, [S0, S0], far_ends={1: Clear(34)}) as rig:
        assert {await rig.served() for _ in range(3)} <= {"DAHDI/4", "DAHDI/5"}
        assert rig.distributor.collisions == {}
        assert HealthEvent.BLAMED in rig.changes()


# --- scenarios ----------------------------------------------------------------------------------


def hang_up_all(rig: Rig) -> None:
    """The far ends of all lines."""
    assert rig.pbx.lines is not None
    for call in rig.pbx.lines.board.calls():
        rig.pbx.accident(
            lambda board, now, ref=call.ref: board.hang_up(now, ref, 16, End.REMOTE)  # type: ignore[misc]
        )


async def test_scenario_5_hung_up_while_the_link_is_lost_and_idle_when_it_is_back() -> None:
    policy = HealthPolicy(slow_start=0.1)
    async with umpack(LINES, [S0, S0], policy=policy) as rig:
        call = asyncio.create_task(rig.pbx.call("100", hold=None, hang_up_after=6.0))
        await rig.until(lambda: any(x.holder.answered for x in rig.distributor.ledger))
        rig.pbx.accident(lambda board, now: board.mute_dchannel(now, 1))
        assert (await call).served_by == "DAHDI/1"
        assert rig.state("left") is UP  # nobody has noticed: T203 is 10 s
        await rig.until(lambda: held_on(rig) == {})
        await rig.becomes("left", ALARMED)
        rig.pbx.accident(lambda board, now: board.restore_dchannel(now, 1))
        await rig.usable("left")
        for _ in range(2):
            # The line clears a call a moment after the PBX has told of its end.
            await rig.until(lambda: len(rig.pbx.lines.board.usable(1)) == 2)  # type: ignore[union-attr]
            assert await rig.served() == "DAHDI/1"


async def test_scenario_5_reject_by_one_and_cancel_twice_on_bri() -> None:
    async with umpack(LINES[:1], [S0], far_ends={1: Clear(21)}) as rig:
        assert (await rig.pbx.call("100")).cause == 21
        assert rig.pbx.lines is not None
        rig.pbx.lines.far_ends[1] = Ring()
        for _ in range(2):
            assert not (await rig.pbx.call("100", hang_up_after=5.0)).answered
        endings = [record.ending for record in rig.distributor.take_records()]
        assert endings == [Ending.DECLINED, Ending.ABANDONED, Ending.ABANDONED]
        await rig.until(lambda: held_on(rig) == {})
        rig.pbx.lines.far_ends[1] = Answer()
        await rig.until(lambda: len(rig.pbx.lines.board.usable(1)) == 2)  # type: ignore[union-attr]
        calls = [await rig.held() for _ in range(2)]
        assert sorted(held_on(rig)) == ["left:1", "left:2"]
        await rig.until(lambda: all(x.holder.answered for x in rig.distributor.ledger))
        assert BLAME & set(rig.changes()) == set()
        hang_up_all(rig)
        assert all(result.answered for result in await ended(*calls))


async def test_scenario_6_twenty_calls_outlive_umpack_and_are_twenty_again() -> None:
    site = sites.site([SPAN], [sites.plan("um", sites.all_of(SPAN))])
    async with pbx_of([], [S2M], 1.0) as pbx:
        calls = []
        async with beside(pbx, Distributor(site)) as rig:
            calls = [await rig.held() for _ in range(20)]
            await rig.until(lambda: len([*pbx.channels]) == 40)
            before = {lease.channel.id for lease in rig.distributor.ledger}
        second = Distributor(site)
        async with beside(pbx, second, resumed=True, linked=False) as rig:
            await rig.until(lambda: len(second.ledger) == 20)
            assert held_on(rig) == dict.fromkeys(before, True)
            second.reload(site, rig.now)
            await rig.driver._reconciler.once()
            assert held_on(rig) == dict.fromkeys(before, True)
            # What comes now gets none of them, and does not wait.
            new = await rig.held()
            (own,) = [lease for lease in second.ledger if lease.pack is not None]
            assert own.channel.id not in before
            await rig.until(lambda: own.holder.answered is not None)
            hang_up_all(rig)
            await ended(*calls, new)
            await rig.until(lambda: len(second.ledger) == 0, 60)
            endings = [record.ending for record in second.take_records()]
            assert endings.count(Ending.ADOPTED) == 20
            assert endings.count(Ending.CONNECTED) == 1
            assert len(endings) == 21


async def test_scenario_isdn_a_ringing_calls_are_cleared_while_active_ones_live() -> None:
    """The D channel is away for 3 s, T309 is 6 s."""
    policy = HealthPolicy(slow_start=0.1, alarm_settle=0.5)
    async with umpack(LINES, [S0, S0], times=RARELY, policy=policy, speed=1) as rig:
        active = await rig.held()
        (lease,) = rig.distributor.ledger
        await rig.until(lambda: lease.holder.answered is not None)
        assert rig.pbx.lines is not None
        rig.pbx.lines.far_ends[1] = Ring()
        ringing = await rig.held()
        await rig.until(lambda: len([*rig.pbx.channels]) == 4)
        assert sorted(held_on(rig)) == ["left:1", "left:2"]
        gone = rig.now
        rig.pbx.accident(lambda board, now: board.lose_dchannel(now, 1))
        await rig.until(lambda: sorted(held_on(rig)) == ["left:1", "right:1"])
        await rig.until(lambda: all(x.holder.answered for x in rig.distributor.ledger))
        await rig.wait(3 - (rig.now - gone))
        rig.pbx.accident(lambda board, now: board.restore_dchannel(now, 1))
        await rig.usable("left", 15)
        assert rig.distributor.ledger.holds(lease)
        rig.pbx.lines.far_ends[1] = Answer()
        assert await rig.served() == "DAHDI/2"
        hang_up_all(rig)
        assert all(result.answered for result in await ended(active, ringing))


async def test_scenario_isdn_b_a_channel_whose_restart_nobody_acknowledges_returns() -> None:
    timers = Timers(t316=10.0)
    async with umpack(LINES, [replace(S0, timers=timers), S0]) as rig:
        lines = rig.pbx.lines
        assert lines is not None
        lines.board.set_fault(1, Fault.NO_RESTART)
        began = rig.now
        rig.pbx.accident(lambda board, now: board.restart(now, 1))
        result = await rig.pbx.call("100")
        assert result.answered
        assert result.dialled[0].startswith("DAHDI/1/")
        assert result.served_by == "DAHDI/4"  # the next SETUP is not lost
        assert rig.distributor.health[LINES[0].id].state is UP
        await rig.until(lambda: lines.board.channel(1).usable, 60)
        assert rig.now - began >= 3 * 10.0
        # Nothing is held against it any more, by the board or by us.
        await rig.until(lambda: not rig.distributor.ledger.channels[ChannelId("left:1")].blocks)
        assert await rig.served() == "DAHDI/1"


@pytest.mark.parametrize("told", [True, False])
async def test_scenario_isdn_c_the_peer_moves_the_call_to_another_channel(*, told: bool) -> None:
    far_ends: dict[int, Behaviour] = {1: Silent(), 2: Answer()}
    async with umpack(LINES, [S0, S0], far_ends=far_ends, speed=1) as rig:
        first = await rig.held()
        (lease,) = rig.distributor.ledger
        lines = rig.pbx.lines
        assert lines is not None
        await rig.until(lambda: len(lines.board.calls()) == 1)
        (call,) = lines.board.calls()
        assert (lease.channel.id, call.channel) == ("left:1", 1)
        if not told:
            await rig.pbx.refuse_ami(on=True)
            await rig.until(lambda: rig.driver.link.state is LinkState.DOWN)
        rig.pbx.accident(lambda board, now: board.proceed(now, call.ref, 2))
        rig.pbx.accident(lambda board, now: board.answer(now, call.ref))
        if not told:
            assert lease.channel.id == "left:1"
            await rig.pbx.refuse_ami(on=False)
        await rig.until(lambda: lease.channel.id == "left:2")
        assert held_on(rig) == {"left:2": False}
        # The old one is free at once, and the new one is not given to anybody.
        lines.far_ends[1] = Answer()
        others = [await rig.held() for _ in range(2)]
        assert sorted(held_on(rig)) == ["left:1", "left:2", "right:1"]
        await rig.until(lambda: len(lines.board.calls()) == 3)
        refused = [x.holder.attempts for x in rig.distributor.ledger if x.holder.attempts]
        assert refused == []
        hang_up_all(rig)
        assert all(result.answered for result in await ended(first, *others))


# --- a restart ----------------------------------------------------------------------------------


async def test_after_a_restart_the_living_are_known_before_anybody_gets_a_channel() -> None:
    site = sites.one_pack(sites.trunk("um", 6))
    async with pbx_of([sites.trunk("um", 6)], [], 1.0) as pbx:
        pbx.fallback = ("PJSIP/{called}@um",)
        async with beside(pbx, Distributor(site)) as rig:
            living = [await rig.held(20.0) for _ in range(4)]
            await rig.until(lambda: len([*pbx.channels]) == 8)
        second = Distributor(site)
        async with beside(pbx, second, resumed=True, linked=False) as rig:
            early = asyncio.create_task(pbx.call("100", hold=20.0))
            await rig.until(lambda: len([*pbx.channels]) == 10)
            assert len(second.ledger) == 0  # the dialplan has served it
            await rig.until(lambda: len(second.ledger) >= 4)
            assert set(held_on(rig).values()) == {True}
            await rig.until(rig.driver._is_ready)
            last = await rig.held(20.0)
            await rig.driver._reconciler.once()
            assert sorted(held_on(rig).values()) == [False, *[True] * 5]
            assert (await pbx.call("100")).agi_status is AgiStatus.SUCCESS  # full: umpack says so
            (record,) = second.take_records()
            assert record.ending is Ending.REFUSED
            assert pbx.endpoints["um"].most_active == 6
            assert pbx.endpoints["um"].refused == 0
            for task in (*living, early, last):
                task.cancel()
            await asyncio.gather(*living, early, last, return_exceptions=True)


@pytest.mark.parametrize("resumed", [True, False])
async def test_nobody_waits_for_a_manager_that_is_not_there(*, resumed: bool) -> None:
    site = sites.one_pack(sites.trunk("um", 6))
    async with pbx_of([sites.trunk("um", 6)], [], 1.0) as pbx:
        pbx.fallback = ("PJSIP/{called}@um",)
        await pbx.refuse_ami(on=True)
        distributor = Distributor(site)
        async with beside(pbx, distributor, resumed=resumed, linked=False) as rig:
            began = rig.now
            failed = (await pbx.call("100")).agi_status is AgiStatus.FAILURE
            assert failed is resumed
            await rig.until(rig.driver._is_ready)
            assert not resumed or rig.now - began >= 0.9
            assert (await pbx.call("100")).agi_status is not AgiStatus.FAILURE
            assert len(distributor.take_records()) == (1 if resumed else 2)
