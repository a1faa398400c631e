"""The driver beside a simulated PBX: what its signals do to trunks, and what they leave alone.

Everything runs twenty times as fast as on a wall, or as a test says; seconds are the PBX's.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from drivers.asterisk.signal_polls import PollTimes
from drivers.base import LinkState
from simulators.endpoints import Answer, Unreachable
from simulators.line import Bearer, Defect, Fault
from tests import sites
from tests.unit.drivers.rig import (
    ALARMED,
    LINES,
    RARELY,
    S0,
    TIMES,
    UP,
    channel_states,
    umpack,
)
from umpack.core.channel import ChannelState
from umpack.core.health_policy import HealthPolicy
from umpack.core.health_states import AlarmKind, HealthEvent, HealthState


def freeze(seconds: float) -> None:
    """The loop does nothing else."""
    time.sleep(seconds)


# --- lines --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("defect", "kind", "debounce"),
    [
        (Defect.LOS, AlarmKind.RED, 2.5),
        (Defect.AIS, AlarmKind.AIS, 2.5),
        (Defect.RAI, AlarmKind.RAI, 0.5),
    ],
)
async def test_an_alarm_takes_the_line_out_at_once_and_back_when_it_has_settled(
    defect: Defect, kind: AlarmKind, debounce: float
) -> None:
    # The board has its own debounce, and ours is none by default.
    async with umpack(LINES, [S0, S0], times=RARELY) as rig:
        assert await rig.served() == "DAHDI/1"
        rig.defect(1, defect)
        took = await rig.becomes("left", ALARMED)
        assert debounce - 0.5 <= took < 60  # exactly: test_bounds, in virtual time
        assert kind.value in rig.why("left")
        assert rig.state("right") is UP
        # The second call may find the first one's B channel still clearing (Q.931 5.3.3).
        assert [await rig.served() for _ in range(2)] in (["DAHDI/4"] * 2, ["DAHDI/4", "DAHDI/5"])
        rig.defect(1, None)
        took = await rig.usable("left")
        assert 5.0 + 2.0 - 0.5 <= took < 60  # DAHDI's settling, and ours
        assert await rig.served() == "DAHDI/1"


@pytest.mark.parametrize("times", [TIMES, RARELY], ids=["polled", "told"])
async def test_a_board_that_waits_for_nothing_is_waited_for(times: PollTimes) -> None:
    policy = HealthPolicy(debounce_loss=60.0)
    async with umpack(LINES, [S0, S0], times=times, policy=policy) as rig:
        rig.defect(1, Defect.LOS)
        await rig.until(lambda: "not yet certain" in rig.why("left"))
        # While nobody knows for certain, calls go elsewhere, and nothing is out.
        assert await rig.served() == "DAHDI/4"
        assert rig.state("left") is UP
        took = await rig.becomes("left", ALARMED, 300)
        assert took >= 30.0
        assert rig.changes().count(HealthEvent.ALARM) == 1


async def test_an_alarm_shorter_than_the_debounce_leaves_nothing_behind() -> None:
    policy = HealthPolicy(debounce_loss=9000.0)
    async with umpack(LINES, [S0, S0], times=RARELY, policy=policy) as rig:
        rig.defect(1, Defect.LOS)
        await rig.until(lambda: "not yet certain" in rig.why("left"))
        rig.defect(1, None)
        await rig.until(lambda: not rig.why("left"))
        assert await rig.served() == "DAHDI/1"
        assert rig.changes() == []


async def test_a_flapping_span_is_left_alone() -> None:
    async with umpack(LINES, [S0, S0]) as rig:
        for _ in range(6):
            rig.defect(1, Defect.LOS)
            await rig.wait(4)
            rig.defect(1, None)
            await rig.wait(9)  # clear for 4 of them
        entered = rig.changes().count(HealthEvent.ALARM)
        assert 2 <= entered <= 4, entered  # 2 s, 4 s, and then the pauses are too short
        assert rig.state("left") is ALARMED
        await rig.usable("left", 60)
        assert rig.state("right") is UP


@pytest.mark.parametrize("times", [TIMES, RARELY], ids=["polled", "told"])
async def test_a_d_channel_away_for_less_than_t309_leaves_calls_alone(times: PollTimes) -> None:
    # Slower, so that a busy machine does not make 6 s of the 3 s.
    async with umpack(LINES, [S0, S0], times=times, speed=1) as rig:
        call = await rig.held()
        (lease,) = rig.distributor.ledger
        assert lease.channel.id == "left:1"
        board = rig.pbx.lines and rig.pbx.lines.board
        assert board
        # A call still being set up would be cleared, and go elsewhere.
        await rig.until(lambda: board.channel(1).bearer is Bearer.CONNECTED)
        gone = rig.now
        rig.pbx.accident(lambda board, now: board.lose_dchannel(now, 1))
        # No event names the D channel; the span's congestion hints, and the list tells.
        await rig.becomes("left", ALARMED, 5)
        assert rig.why("left") == "D channel down (span 1)"
        assert channel_states(rig) == [ChannelState.DRAINING]
        assert await rig.served() == "DAHDI/4"
        await rig.wait(3 - (rig.now - gone))
        rig.pbx.accident(lambda board, now: board.restore_dchannel(now, 1))
        await rig.usable("left", 15)
        assert tuple(rig.distributor.ledger) == (lease,)
        assert channel_states(rig) == [ChannelState.LEASED]
        assert not call.done()
        call.cancel()
        await asyncio.wait([call])


async def test_without_any_hint_the_next_poll_finds_the_d_channel_down_and_up() -> None:
    async with umpack(LINES, [S0, S0]) as rig:
        rig.pbx.congested = {1: True, 2: True}  # said already
        rig.pbx.accident(lambda board, now: board.lose_dchannel(now, 2))
        await rig.becomes("right", ALARMED, 30)
        rig.pbx.congested = {1: False, 2: False}
        rig.pbx.accident(lambda board, now: board.restore_dchannel(now, 2))
        await rig.usable("right", 30)


async def test_an_alarm_that_never_settles_stays_one_until_the_span_is_reset() -> None:
    async with umpack(LINES, [S0, S0]) as rig:
        assert rig.pbx.lines is not None
        rig.pbx.lines.board.set_fault(1, Fault.STUCK_ALARM)
        rig.defect(1, Defect.LOS)
        await rig.becomes("left", ALARMED)
        rig.defect(1, None)
        await rig.wait(30)
        assert rig.state("left") is ALARMED  # Recovering, for ever
        rig.pbx.accident(lambda board, now: board.reset(now, 1))
        await rig.usable("left", 30)


async def test_a_d_channel_that_stays_down_after_an_alarm_is_seen() -> None:
    async with umpack(LINES, [S0, S0]) as rig:
        assert rig.pbx.lines is not None
        rig.pbx.lines.board.set_fault(1, Fault.STUCK_DCHANNEL)
        rig.defect(1, Defect.LOS)
        await rig.becomes("left", ALARMED)
        rig.defect(1, None)
        await rig.wait(30)
        # All alarms are clear, and yet no call could be set up.
        assert rig.state("left") is ALARMED
        rig.pbx.accident(lambda board, now: board.reset(now, 1))
        await rig.usable("left", 30)


async def test_an_alarm_whose_end_was_lost_ends_with_the_next_poll() -> None:
    async with umpack(LINES, [S0, S0], times=replace(TIMES, lines_out=8)) as rig:
        await rig.wait(1)
        rig.pbx.events.channel_alarm(2, "Red Alarm")
        rig.pbx.events.span_alarm(2, "Yellow Alarm")
        await rig.becomes("left", ALARMED)
        await rig.becomes("right", ALARMED)
        await rig.usable("left", 8 + 2 + 20)
        await rig.usable("right", 8 + 2 + 20)


async def test_a_board_is_pulled_out_and_plugged_in_again() -> None:
    async with umpack(LINES, [S0, S0]) as rig:
        call = await rig.held()
        rig.pbx.accident(lambda board, now: board.unplug(now))
        for name in ("left", "right"):
            await rig.becomes(name, ALARMED, 40)
        assert (await call).cause != 0
        await rig.until(lambda: len(rig.distributor.ledger) == 0)
        assert await rig.served() is None
        rig.pbx.accident(lambda board, now: board.replug(now))
        for name in ("left", "right"):
            await rig.usable(name, 60)
        assert await rig.served() in ("DAHDI/1", "DAHDI/4")


async def test_without_chan_dahdi_it_is_said_once_and_no_alarm() -> None:
    times = replace(TIMES, refused=1)
    async with umpack([LINES[0], sites.trunk("um1")], [], times=times) as rig:
        await rig.wait(20)
        told = [line for line in rig.log if "DAHDIShowChannels" in line]
        assert len(told) == 1, rig.log
        assert rig.state("left") is UP


async def test_without_lines_nothing_is_asked_about_them() -> None:
    async with umpack([sites.trunk("um1")], []) as rig:
        await rig.wait(25)
        assert rig.log == []


# --- endpoints ----------------------------------------------------------------------------------

SERVERS = [sites.trunk("um1"), sites.trunk("um2")]


async def test_a_server_goes_and_comes_back() -> None:
    async with umpack(SERVERS, [], times=RARELY) as rig:
        assert await rig.served() == "PJSIP/um1"
        rig.pbx.set_behaviour("um1", Unreachable())
        await rig.becomes("um1", ALARMED)
        assert rig.why("um1") == "unreachable (endpoint um1)"
        assert await rig.served() == "PJSIP/um2"
        rig.pbx.set_behaviour("um1", Answer())
        await rig.usable("um1")
        assert await rig.served() == "PJSIP/um1"


async def test_a_server_with_calls_is_asked_itself() -> None:
    async with umpack(SERVERS, [], times=RARELY) as rig:
        call = await rig.held()
        rig.pbx.endpoints["um1"].behaviour = Unreachable()  # and nobody tells
        await rig.pbx.refuse_ami(on=True)
        await rig.until(lambda: rig.driver.link.state is LinkState.DOWN)
        rig.pbx.asked.clear()
        await rig.pbx.refuse_ami(on=False)
        await rig.becomes("um1", ALARMED)
        assert rig.pbx.asked[:2] == ["PJSIPShowEndpoints", "PJSIPShowEndpoint um1"]
        assert len(rig.distributor.ledger) == 1
        call.cancel()
        await asyncio.wait([call])


async def test_an_event_is_newer_than_a_list_that_was_on_its_way() -> None:
    async with umpack(SERVERS, [], times=RARELY) as rig:
        await rig.wait(1)
        rig.pbx.meanwhile = lambda: rig.pbx.events.contact_status("um1", "sip:a", reachable=False)
        rig.pbx.asked.clear()
        rig.pbx.events.reload("All")
        await rig.becomes("um1", ALARMED)
        # The list said that it answers, and is asked for once more.
        await rig.until(lambda: len(rig.pbx.asked) >= 2)
        await rig.wait(6)
        assert rig.state("um1") is ALARMED
        assert rig.changes() == [HealthEvent.ALARM]


async def test_one_of_several_contacts_is_not_the_server() -> None:
    async with umpack(SERVERS, [], times=RARELY) as rig:
        await rig.wait(1)
        rig.pbx.asked.clear()
        rig.pbx.ami.inject(
            b"Event: ContactStatus\r\nPrivilege: system,all\r\nURI: sip:b\r\n"
            b"ContactStatus: Unreachable\r\nAOR: um1\r\nEndpointName: um1\r\n\r\n"
        )
        await rig.until(lambda: rig.pbx.asked == ["PJSIPShowEndpoints"])
        await rig.wait(2)
        assert rig.state("um1") is UP


async def test_an_endpoint_the_pbx_has_not_is_named_once_and_no_alarm() -> None:
    async with umpack(SERVERS, []) as rig:
        del rig.pbx.endpoints["um2"]
        for _ in range(3):
            rig.pbx.events.reload("All")
            await rig.wait(3)
        assert [line for line in rig.log if "PJSIP has no endpoint um2" in line] == rig.log
        assert len(rig.log) == 1
        assert rig.state("um2") is UP


# --- the link -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stays", [True, False])
async def test_what_happens_while_the_link_is_away_is_known_when_it_is_back(*, stays: bool) -> None:
    """An alarm before, its end or another one meanwhile: neither is ever told by an event."""
    policy = HealthPolicy(alarm_unseen=9000)
    async with umpack([*LINES, *SERVERS], [S0, S0], times=RARELY, policy=policy) as rig:
        rig.defect(1, Defect.LOS)
        rig.pbx.set_behaviour("um1", Unreachable())
        await rig.becomes("left", ALARMED)
        await rig.becomes("um1", ALARMED)
        await rig.pbx.refuse_ami(on=True)
        await rig.until(lambda: rig.driver.link.state is LinkState.DOWN)
        rig.defect(2, Defect.LOS)
        rig.pbx.set_behaviour("um2", Unreachable())
        if not stays:
            rig.defect(1, None)
            rig.pbx.set_behaviour("um1", Answer())
        await rig.wait(12)
        # The loss of the link itself says nothing of any trunk, and takes nothing back.
        states = [rig.state(name) for name in ("left", "right", "um1", "um2")]
        assert states == [ALARMED, UP, ALARMED, UP]
        await rig.pbx.refuse_ami(on=False)
        await rig.becomes("right", ALARMED)
        await rig.becomes("um2", ALARMED)
        if stays:
            await rig.wait(5)
            assert (rig.state("left"), rig.state("um1")) == (ALARMED, ALARMED)
        else:
            await rig.usable("left", 30)
            await rig.usable("um1", 30)


async def test_an_alarm_whose_end_nobody_can_tell_takes_no_trunk_away_for_ever() -> None:
    async with umpack(SERVERS, [], times=RARELY) as rig:
        for name in ("um1", "um2"):
            rig.pbx.set_behaviour(name, Unreachable())
            await rig.becomes(name, ALARMED)
        assert await rig.served() is None
        await rig.pbx.refuse_ami(on=True)
        await rig.until(lambda: rig.driver.link.state is LinkState.DOWN)
        for name in ("um1", "um2"):
            rig.pbx.set_behaviour(name, Answer())
        await rig.becomes("um1", HealthState.SUSPECT)
        assert await rig.served() == "PJSIP/um1"
        rig.pbx.endpoints["um2"].behaviour = Unreachable()
        await rig.pbx.refuse_ami(on=False)
        await rig.becomes("um2", ALARMED)


async def test_calls_go_on_without_the_link() -> None:
    async with umpack(SERVERS, []) as rig:
        rig.pbx.ami.cut()
        await rig.until(lambda: rig.driver.link.state is LinkState.DOWN)
        assert await rig.served() == "PJSIP/um1"
        await rig.up()


@pytest.mark.parametrize("how", ["reload", "booted", "missed"])
async def test_everything_is_asked_again_when_nothing_is_sure(how: str) -> None:
    async with umpack(SERVERS, [], times=RARELY) as rig:
        await rig.wait(2)
        rig.pbx.endpoints["um1"].behaviour = Unreachable()  # and nobody tells
        await rig.wait(2)
        assert rig.state("um1") is UP
        match how:
            case "reload":
                rig.pbx.events.reload("res_pjsip.so")
            case "booted":
                rig.pbx.ami.inject(b"Event: FullyBooted\r\nStatus: Fully Booted\r\n\r\n")
            case _:
                rig.pbx.ami.inject(b"Event: DialEnd\r\nDialStatus: BUSY\r\n\r\n" * 15_000)
                freeze(0.5)  # nobody takes them out of the stream meanwhile
        await rig.becomes("um1", ALARMED)
        assert any("events missed" in line for line in rig.log) is (how == "missed")


async def test_a_reload_of_the_site_is_heeded_at_once() -> None:
    async with umpack(LINES[:1], [S0, S0], times=RARELY) as rig:
        rig.distributor.reload(sites.one_pack(*LINES), rig.now)
        rig.defect(2, Defect.LOS)
        await rig.becomes("right", ALARMED)
        # The same trunk, now a server: what the line had is over.
        server = replace(sites.trunk("right"), endpoint="um1")
        rig.pbx.add_endpoint("um1")
        rig.distributor.reload(sites.one_pack(LINES[0], server), rig.now)
        rig.pbx.events.reload("All")
        await rig.usable("right")


async def test_hints_are_counted_on_only_when_some_have_come() -> None:
    async with umpack(SERVERS, []) as rig:
        heard = rig.distributor._hints.get
        assert not heard(sites.MAIN, False)
        await rig.served()
        await rig.until(lambda: heard(sites.MAIN, False))
        rig.pbx.ami.cut()
        await rig.until(lambda: not heard(sites.MAIN, False))
        await rig.up()
        await rig.served()
        await rig.until(lambda: heard(sites.MAIN, False))


async def test_garbled_and_hostile_events_are_harmless() -> None:
    async with umpack([*LINES, *SERVERS], [S0, S0]) as rig:
        for body in (
            b"DialEnd\r\nDialStatus: ANSWER",
            b"DialEnd\r\nDialStatus: ANSWER\r\nUniqueid: ",
            b"DialEnd",
            b"Alarm\r\nDAHDIChannel: 9999999999999999999999\r\nAlarm: Red Alarm",
            b"SpanAlarm\r\nSpan: \xff\xfe\r\nAlarm: \x1b[2J",
            b"PeerStatus\r\nPeer: PJSIP/\r\nPeerStatus: Unreachable",
            b"ContactStatus\r\nEndpointName: um1\r\nEndpointName: um2",
            b"DeviceStateChange\r\nDevice: DAHDI/I1/congestion\r\nState: \x1b",
            b"Reload",
            b"Shutdown",
        ):
            rig.pbx.ami.inject(b"Event: " + body + b"\r\n\r\n")
        await rig.wait(5)
        assert {rig.state(trunk.id) for trunk in (*LINES, *SERVERS)} == {UP}
        assert await rig.served() == "DAHDI/1"
        assert rig.driver.link.state is LinkState.UP
