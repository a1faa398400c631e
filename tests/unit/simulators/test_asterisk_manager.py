"""The AMI of the simulated PBX. Expected words are a running Asterisk 22.10's."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from drivers.asterisk.agi_call import AgiCall
from drivers.asterisk.agi_commands import command, exec_
from drivers.asterisk.ami import AmiAddress, AmiLimits, AmiLink, Backoff, LinkDown, LinkUp
from drivers.asterisk.ami_wire import AmiEvent
from simulators.ami_events import EVENT_CLASSES
from simulators.ami_filter import parse_filter
from simulators.asterisk import SimulatedAsterisk
from simulators.board import Board
from simulators.endpoints import Answer, Reject, Ring, Unreachable
from simulators.line import Defect, Kind, SpanSpec, Timers
from tests.unit.simulators.pbx_peers import Manager, served
from umpack.core.errors import ProtocolFault

QUICK = Timers(alarm=0.01, settle=0.01, round_trip=0.001)


@pytest.fixture
async def pbx() -> AsyncIterator[SimulatedAsterisk]:
    async with SimulatedAsterisk() as running:
        yield running


async def dial(call: AgiCall) -> None:
    """What umpack does, at its shortest."""
    await call.command(exec_("Dial", "PJSIP/1@um1,0.05"))
    await call.command(command("SET VARIABLE", "UMPACK_CAUSE", "34"))


# --- sessions -----------------------------------------------------------------------------------


async def test_greeting_login_and_logoff(pbx: SimulatedAsterisk) -> None:
    async with Manager.of(pbx) as manager:
        assert manager.raw.startswith(b"Asterisk Call Manager/11.0.0\r\nResponse: Success\r\n")
        assert (await manager.event("FullyBooted"))["Status"] == "Fully Booted"
        answer = await manager.act("Logoff")
        assert (answer["Response"], answer["Message"]) == ("Goodbye", "Thanks for all the fish.")
        assert await manager.closed()
    assert pbx.ami.logins == 1


async def test_a_wrong_secret_costs_a_second_and_the_connection(pbx: SimulatedAsterisk) -> None:
    async with Manager.of(pbx, log_in=False) as manager:
        early = await manager.act("CoreShowChannels")
        assert (early.ok, early["Message"]) == (False, "Permission denied")
        began = asyncio.get_running_loop().time()
        answer = await manager.act("Login", Username="umpack", Secret="wrong")  # noqa: S106
        assert (answer.ok, answer["Message"]) == (False, "Authentication failed")
        assert asyncio.get_running_loop().time() - began >= 0.99
        assert await manager.closed()


REFUSALS = [
    ("Nope", {}, "Invalid/unknown command: Nope. Use Action: ListCommands to show available "
     "commands."),
    ("DAHDIShowChannels", {}, "Invalid/unknown command: DAHDIShowChannels. Use Action: "
     "ListCommands to show available commands."),
    ("Filter", {"Operation": "Del"}, "Unknown operation"),
    ("Filter", {"Operation": "Add"},
     "Filter was formatted incorrectly.  Check the syntax of the filter given."),
    ("Filter", {"Operation": "Add", "MatchCriteria": "action(x)"},
     "Filter was formatted incorrectly.  Check the syntax of the filter given."),
    ("Filter", {"Operation": "Add", "Filter": "("},
     "Filter did not compile.  Check the syntax of the filter given."),
    ("Events", {}, "Invalid event mask"),
    ("PJSIPShowContacts", {}, "No Contacts found"),
    ("Command", {}, "No command provided"),
    ("DBPut", {"Family": "f"}, "No key specified"),
    ("DBGet", {"Family": "f", "Key": "k"}, "Database entry not found"),
    ("DBDel", {"Family": "f", "Key": "k"}, "Database entry could not be deleted"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "headers", "text"), REFUSALS)
async def test_refusals(
    pbx: SimulatedAsterisk, name: str, headers: dict[str, str], text: str
) -> None:
    async with Manager.of(pbx) as manager:
        answer = await manager.act(name, **headers)
        assert (answer.ok, answer["Message"]) == (False, text)
        await manager.settle()  # the session is in step afterwards


async def test_actions_without_a_name_and_in_pieces(pbx: SimulatedAsterisk) -> None:
    async with Manager.of(pbx) as manager:
        manager.send_raw(b"Foo: bar\r\n\r\n")
        found = await manager.wait(
            lambda m: m if m.get("Message") == "Missing action in request" else None
        )
        assert found["Response"] == "Error"
        for byte in b"Action: Ping\r\nActionID: bytes\r\n\r\n":
            manager.send_raw(bytes([byte]))
        assert (await manager.answer("bytes"))["Ping"] == "Pong"


async def test_the_database(pbx: SimulatedAsterisk) -> None:
    async with Manager.of(pbx) as manager:
        assert (await manager.act("DBPut", Family="f", Key="k", Val="v")).ok
        (found,) = await manager.list_of("DBGet", Family="f", Key="k")
        assert (found.name, found["Val"]) == ("DBGetResponse", "v")
        assert (await manager.act("DBDel", Family="f", Key="k")).ok
        assert pbx.database == {}


async def test_commands_and_lists(pbx: SimulatedAsterisk) -> None:
    pbx.add_endpoint("um1", Ring())
    pbx.add_endpoint("um2", Unreachable())
    async with Manager.of(pbx) as manager, served(pbx, dial):
        call = asyncio.create_task(pbx.call("49302000100", "0301"))
        await manager.event("DialState")
        channels = await manager.list_of("CoreShowChannels")
        assert [c["ChannelStateDesc"] for c in channels] == ["Ring", "Ringing"]
        assert [c["Application"] for c in channels] == ["AGI", "AppDial"]
        endpoints = await manager.list_of("PJSIPShowEndpoints")
        assert [(e["ObjectName"], e["DeviceState"]) for e in endpoints] == [
            ("um1", "In use"),
            ("um2", "Unavailable"),
        ]
        contacts = await manager.list_of("PJSIPShowContacts")
        assert [c["Status"] for c in contacts] == ["Reachable", "Unreachable"]
        answer = await manager.act("Command", Command="core show channels count")
        assert answer.output == ["2 active channels", "1 active calls"]
        unknown = await manager.act("Command", Command="nope")
        assert not unknown.ok
        assert unknown.output == [
            "No such command 'nope' (type 'core show help nope' for other possible commands)"
        ]
        await call


# --- events -------------------------------------------------------------------------------------


async def test_the_events_of_a_call_come_in_asterisks_order(pbx: SimulatedAsterisk) -> None:
    pbx.add_endpoint("um1", Answer())
    async with Manager.of(pbx) as manager, served(pbx, dial):
        await pbx.call("1", "0301", 'A "B"', hold=0.01)
        await manager.settle()
    wanted = {"Newchannel", "DialBegin", "DialState", "DialEnd", "BridgeEnter", "BridgeLeave",
              "HangupRequest", "Hangup"}  # fmt: skip
    assert [name for name in manager.events() if name in wanted] == [
        "Newchannel", "Newchannel", "DialBegin", "DialState", "DialEnd", "BridgeEnter",
        "BridgeEnter", "HangupRequest", "BridgeLeave", "BridgeLeave", "Hangup", "Hangup",
    ]  # fmt: skip
    end = await manager.event("DialEnd")
    assert (end["DialStatus"], end["DestChannel"]) == ("ANSWER", "PJSIP/um1-00000001")
    assert end["Uniqueid"] == end["DestLinkedid"]
    assert end["CallerIDName"] == r"A \"B\""


async def test_a_refused_leg_names_its_sip_status(pbx: SimulatedAsterisk) -> None:
    pbx.add_endpoint("um1", Reject(486))
    async with Manager.of(pbx) as manager, served(pbx, dial):
        await pbx.call("1")
        await manager.settle()
        assert (await manager.event("DialEnd"))["DialStatus"] == "BUSY"
        hangup = await manager.event("Hangup")
        assert (hangup["Cause"], hangup["Cause-txt"], hangup["TechCause"]) == (
            "17", "User busy", "486",
        )  # fmt: skip


FILTERS = [
    ({"MatchCriteria": "action(include),name(DialEnd)"}, {"DialEnd"}),
    ({"Filter": "^Event: (DialEnd|Hangup)[[:space:]]"}, {"DialEnd", "Hangup"}),
    ({"Filter": "DialStatus: BUSY"}, {"DialEnd"}),
    ({"MatchCriteria": "action(include),header(Cause),method(exact)", "Filter": "17"},
     {"Hangup"}),
    ({"MatchCriteria": "name(Hangup),header(Channel),method(starts_with)", "Filter": "PJSIP/um1"},
     {"Hangup"}),
]  # fmt: skip


@pytest.mark.parametrize(("headers", "names"), FILTERS)
async def test_filters_let_only_these_through(
    pbx: SimulatedAsterisk, headers: dict[str, str], names: set[str]
) -> None:
    pbx.add_endpoint("um1", Reject(486))
    async with Manager.of(pbx) as manager, served(pbx, dial):
        before = set(manager.events())
        assert (await manager.act("Filter", Operation="Add", **headers)).ok
        await pbx.call("1")
        await manager.settle()
    assert set(manager.events()) - before == names


async def test_excluding_filters_and_masks(pbx: SimulatedAsterisk) -> None:
    pbx.add_endpoint("um1", Reject(486))
    async with Manager.of(pbx) as manager, served(pbx, dial):
        await manager.act("Filter", Operation="Add", MatchCriteria="action(exclude),name(Hangup)")
        await manager.act("Filter", Operation="Add", Filter="!Event: DialEnd")
        await pbx.call("1")
        await manager.settle()
        seen = set(manager.events())
        assert "DialBegin" in seen
        assert not seen & {"Hangup", "DialEnd"}
        assert (await manager.act("Events", EventMask="system"))["Events"] == "On"
        assert (await manager.act("Events", EventMask="off"))["Events"] == "Off"
        count = len(manager.events())
        await pbx.call("1")
        await manager.settle()
        assert len(manager.events()) == count


async def test_nothing_is_made_that_nobody_wants(pbx: SimulatedAsterisk) -> None:
    assert not any(pbx.ami.wants(name) for name in EVENT_CLASSES)
    async with Manager.of(pbx) as manager:
        assert all(pbx.ami.wants(name) for name in EVENT_CLASSES)
        await manager.act("Filter", Operation="Add", MatchCriteria="action(include),name(DialEnd)")
        assert {name for name in EVENT_CLASSES if pbx.ami.wants(name)} == {"DialEnd"}
    async with Manager.of(pbx) as manager:
        await manager.act("Filter", Operation="Add", Filter="^Event: (DialEnd|Shutdown)[[:space:]]")
        assert {name for name in EVENT_CLASSES if pbx.ami.wants(name)} == {"DialEnd", "Shutdown"}


def test_filters_that_make_no_sense() -> None:
    for criteria, text in (
        ("action(include),method(regex)", None),
        ("method(none)", "x"),
        ("method(nope)", "x"),
        ("rubbish", "x"),
    ):
        with pytest.raises(ProtocolFault):
            parse_filter(criteria, text)


async def test_contacts_alarms_reload_and_shutdown(pbx: SimulatedAsterisk) -> None:
    lines = pbx.attach(Board([SpanSpec(Kind.S0, timers=QUICK)]))
    pbx.add_endpoint("um1")
    async with Manager.of(pbx) as manager:
        pbx.set_behaviour("um1", Unreachable())
        assert (await manager.event("ContactStatus"))["ContactStatus"] == "Unreachable"
        pbx.accident(lambda board, now: board.defect(now, 1, Defect.LOS))
        alarm = await manager.event("SpanAlarm")
        assert (alarm["Span"], alarm["Alarm"]) == ("1", "Red Alarm")
        await manager.wait(lambda m: m if m.get("Event") == "Alarm" else None)
        (shown, _) = await manager.list_of("DAHDIShowChannels")
        assert (shown["DAHDIChannel"], shown["Alarm"]) == ("1", "Red Alarm")
        (span,) = await manager.list_of("PRIShowSpans")
        assert (span["DChannel"], span["Alarm"]) == ("3", "Yes")
        assert lines.in_alarm(1)
        pbx.accident(lambda board, now: board.defect(now, 1, None))
        assert (await manager.event("SpanAlarmClear"))["Span"] == "1"
        assert (await manager.event("AlarmClear"))["DAHDIChannel"] == "1"
        await manager.act("Reload", Module="chan_dahdi")
        assert (await manager.event("Reload"))["Status"] == "0"
        await pbx.stop()
        assert (await manager.event("Shutdown"))["Restart"] == "False"


# --- against umpack's own link ------------------------------------------------------------------


async def test_umpacks_link_survives_every_fault(pbx: SimulatedAsterisk) -> None:
    address = AmiAddress("127.0.0.1", pbx.ami.port, "umpack", "umpack")
    limits = AmiLimits(action=0.2, ping_every=0.05, ping=0.2, login=1.0)
    backoff = Backoff(initial=0.02, maximum=0.05)
    link = AmiLink(
        address,
        events=frozenset({"DialEnd", "FullyBooted"}),
        limits=limits,
        backoff=backoff,
        rng=random.Random(1),
    )
    running = asyncio.create_task(link.run())
    seen: list[object] = []

    async def next_of(kind: type[object]) -> object:
        async with asyncio.timeout(20):
            async for item in link.events:
                seen.append(item)
                if isinstance(item, kind):
                    return item
        raise AssertionError("the link has ended")

    up = await next_of(LinkUp)
    assert isinstance(up, LinkUp)
    assert up.filtered
    pbx.ami.cut()
    await next_of(LinkDown)
    await next_of(LinkUp)
    pbx.ami.inject(b"\0garbage\r\n\r\n")
    await next_of(LinkDown)
    await next_of(LinkUp)
    pbx.ami.stall(on=True)
    await next_of(LinkDown)
    pbx.ami.stall(on=False)
    await next_of(LinkUp)
    await pbx.refuse_ami(on=True)
    await next_of(LinkDown)
    await pbx.refuse_ami(on=False)
    await next_of(LinkUp)
    await pbx.crash()
    await next_of(LinkDown)
    await pbx.start()
    await next_of(LinkUp)
    booted = await next_of(AmiEvent)
    assert isinstance(booted, AmiEvent)
    assert booted.name == "FullyBooted"
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    while await anext(link.events, None):
        pass
