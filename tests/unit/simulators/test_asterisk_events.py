"""Every event header of the simulated PBX is one that Asterisk's own manual knows.

The XML manual is that of the Asterisk which the tests use (tests/pbx); it names the events of
modules that cannot be loaded without hardware as well.
"""

from __future__ import annotations

import asyncio
import os
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from drivers.asterisk.agi_call import AgiCall
from drivers.asterisk.agi_commands import exec_
from drivers.asterisk.ami_wire import AmiCodec, AmiEvent
from simulators.ami_events import EVENT_CLASSES
from simulators.ami_server import GREETING
from simulators.asterisk import SimulatedAsterisk
from simulators.board import Board
from simulators.endpoints import Answer, Unreachable
from simulators.line import Defect, Kind, SpanSpec, Timers
from tests.unit.simulators.pbx_peers import Manager, served

QUICK = Timers(alarm=0.01, settle=0.01, round_trip=0.001)
CAPTURES = Path(__file__).parents[2] / "data" / "ami"
MANUALS = (
    Path(os.environ.get("UMPACK_PBX_ROOT") or Path.home() / ".cache/umpack/pbx-root"),
    Path("/"),
)
MANUAL = "usr/share/asterisk/documentation/core-en_US.xml"


SNAPSHOT = {
    "Channel", "ChannelState", "ChannelStateDesc", "CallerIDNum", "CallerIDName",
    "ConnectedLineNum", "ConnectedLineName", "Language", "AccountCode", "Context", "Exten",
    "Priority", "Uniqueid", "Linkedid",
}  # fmt: skip
BRIDGE = {
    "BridgeUniqueid", "BridgeType", "BridgeTechnology", "BridgeCreator", "BridgeName",
    "BridgeNumChannels", "BridgeVideoSourceMode",
}  # fmt: skip
ALSO_SENT = {"HangupRequest": {"Cause"}}
"""What Asterisk 22.10 sends beyond its manual."""
LISTED = {"CoreShowChannel", "ContactList", "EndpointList"}


def manual() -> dict[str, set[str]]:
    """Headers by lower-case event name, as Asterisk's own manual lists them."""
    for root in MANUALS:
        if (file := root / MANUAL).exists():
            break
    else:
        why = f"no {MANUAL} in {' or '.join(map(str, MANUALS))}: event headers are NOT checked"
        if os.environ.get("UMPACK_REQUIRE_PBX") == "1":
            pytest.fail(why)
        pytest.skip(why)
    found: dict[str, set[str]] = {}
    for event in ET.parse(file).getroot().iter("managerEvent"):  # noqa: S314 - Asterisk's own
        headers = found.setdefault((event.get("name") or "").lower(), set())
        for syntax in event.iter("syntax"):
            for part in syntax:
                prefix = part.get("prefix") or ""
                if part.tag == "channel_snapshot":
                    headers |= {prefix + name for name in SNAPSHOT}
                elif part.tag == "bridge_snapshot":
                    headers |= {prefix + name for name in BRIDGE}
                elif part.tag == "parameter":
                    headers.add(part.get("name") or "")
    return found


async def everything_sent() -> list[AmiEvent]:
    """Calls, accidents and lists: at least one event of every kind."""
    pbx = SimulatedAsterisk()
    await pbx.start()
    board = Board([SpanSpec(Kind.S0, timers=QUICK)])
    pbx.attach(board, {1: Answer()})
    pbx.add_endpoint("um1", Answer())

    async def both(call: AgiCall) -> None:
        await call.command(exec_("Dial", "PJSIP/1@um1,1"))
        await call.command(exec_("Dial", "DAHDI/1/1,1"))

    async with Manager.of(pbx) as manager, served(pbx, both):
        await pbx.call("1", "0301", "A", hold=0.02)
        pbx.set_behaviour("um1", Answer(hang_up_after=0.0))
        await pbx.call("1", "0301", "A", hold=None, hang_up_after=0.2)
        call = asyncio.create_task(pbx.call("1", hold=0.2))
        await asyncio.sleep(0.05)
        for name in ("CoreShowChannels", "PJSIPShowContacts", "PJSIPShowEndpoints"):
            await manager.list_of(name)
        await call
        pbx.set_behaviour("um1", Unreachable())
        pbx.accident(lambda board, now: board.defect(now, 1, Defect.LOS))
        await manager.event("SpanAlarm")
        pbx.accident(lambda board, now: board.defect(now, 1, None))
        await manager.event("AlarmClear")
        await manager.act("Reload")
        await pbx.stop()
        await manager.closed()

    events = [message for message in manager.messages if isinstance(message, AmiEvent)]
    assert pbx.lines is not None
    pbx.lines.close()
    return events


async def test_every_header_is_in_asterisks_manual() -> None:
    expected = manual()
    events = await everything_sent()
    assert {event.name for event in events} >= set(EVENT_CLASSES) | LISTED
    for event in events:
        if event.name.lower() not in expected:
            continue  # lists of chan_dahdi and the database are in no manual
        sent = set(event) - {"Event", "Privilege", "ActionID"}
        assert sent <= expected[event.name.lower()] | ALSO_SENT.get(event.name, set()), event
        optional = {"Forward", "SwapUniqueid", "TechCause", "Cause", "Address", "Port", "Time"}
        missing = expected[event.name.lower()] - sent - optional
        assert not missing or event.name in ("DAHDIChannel",), (event, missing)
    assert {name.lower() for name in EVENT_CLASSES} <= set(expected)


async def test_every_header_was_seen_on_a_real_asterisk() -> None:
    files = sorted(CAPTURES.glob("*.txt")) if CAPTURES.is_dir() else []
    if not files:
        pytest.skip(f"no captures of a real AMI in {CAPTURES}")
    optional = {"TechCause"}
    real: dict[str, list[str]] = {}
    for file in files:
        for message in AmiCodec().feed(GREETING + file.read_bytes().removeprefix(GREETING)):
            if isinstance(message, AmiEvent):
                # The fullest of a kind: some have headers only when there is something to say.
                real[message.name] = max(real.get(message.name, []), list(message), key=len)
    for event in await everything_sent():
        if event.name in real:
            sent = [name for name in event if name not in optional]
            assert sent == [name for name in real[event.name] if name not in optional], event
