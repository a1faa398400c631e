"""What a real Asterisk tells of its trunks: endpoints that go and come back, no chan_dahdi."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from drivers.asterisk.ami import AmiAddress, AmiLink
from tests.pbx.beside import Beside, patient, port_of, umpack, until
from tests.pbx.lab import SECRET, Lab, LabConfig, SipPeer
from tests.pbx.root import Root
from tests.pbx.sipp import Caller, Server, Sipp
from tests.ports import free_port
from umpack import clock
from umpack.core.health_states import HealthState
from umpack.core.trunk import TrunkId

pytestmark = [pytest.mark.pbx, pytest.mark.timeout(900)]  # the first run builds the root

QUALIFY = 2
"""Seconds between two OPTIONS."""
PATIENCE = 3.0
"""How long Asterisk waits for the answer to one."""
NOTICED = QUALIFY + PATIENCE + 1.5
SITE = """
trunks:
  um1: {kind: sip, endpoint: um1, channels: 4}
  um2: {kind: sip, endpoint: um2, channels: 4}
packs: {um: {members: [um1, um2], answer_within: 5s}}
routes:
  - {called: "*", pack: um}
"""
ALARMED = HealthState.ALARMED


@pytest.fixture(scope="module")
def lab(pbx_root: Root) -> Iterator[Lab]:
    peers = [SipPeer(name, free_port(), QUALIFY) for name in ("um1", "um2")]
    with patient(Lab(pbx_root, LabConfig("[from-line]\n", peers=peers))) as lab:
        yield lab


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class Alive(Server):
    """A UM server that answers OPTIONS, too."""

    def __init__(self, port: int) -> None:
        Sipp.__init__(self, "uas_answer", {"ring_ms": "1"}, ("-aa",), port, 300)
        self._wait_bound()


def state(beside: Beside, name: str = "um1") -> HealthState:
    beside.distributor.tick(clock.now())
    return beside.distributor.health[TrunkId(name)].state


async def changes(beside: Beside, *, out: bool, seconds: float = 20.0) -> float:
    """How long it takes until um1 is out, or is not."""
    began = time.perf_counter()
    await until(lambda: (state(beside) is ALARMED) is out, seconds)
    return time.perf_counter() - began


async def qualify(lab: Lab) -> None:
    """Let the PBX find out which servers live.

    An OPTIONS to a port whose server of the test before was gone may still be unanswered (it is
    repeated after 0.5 and 1.5 s only): it would take out the server of this test when it ends.
    """
    for name in ("um1", "um2"):
        await asyncio.to_thread(lab.rx, f"pjsip qualify {name}")
    await asyncio.sleep(PATIENCE + 0.2)


async def test_a_server_that_dies_is_out_within_the_qualify_time_and_comes_back(
    lab: Lab, stack: ExitStack
) -> None:
    first = stack.enter_context(Alive(port_of(lab, "um1")))
    stack.enter_context(Alive(port_of(lab, "um2")))
    await qualify(lab)
    async with umpack(lab, SITE) as beside:
        await changes(beside, out=False)
        await asyncio.to_thread(first.stop)
        assert await changes(beside, out=True) < NOTICED
        assert state(beside, "um2") is not ALARMED
        (result,) = await asyncio.to_thread(Caller("100", hold_ms=10).run, lab.sip_port)
        assert result.final == 200
        await beside.idle()
        assert beside.records[-1].attempts[0].trunk == "um2"  # and no attempt at um1
        stack.enter_context(Alive(port_of(lab, "um1")))
        settle = 2.0
        assert await changes(beside, out=False) < NOTICED + settle


async def test_a_server_that_is_dead_when_umpack_comes_is_out_from_the_start(
    lab: Lab, stack: ExitStack
) -> None:
    stack.enter_context(Alive(port_of(lab, "um2")))
    await qualify(lab)
    await _is(lab, "um1", "Unavailable")
    await _is(lab, "um2", "Not in use")
    async with umpack(lab, SITE) as beside:
        assert await changes(beside, out=True) < 2.0
        assert state(beside, "um2") is not ALARMED


async def test_calls_hide_a_dead_server_from_the_list_but_not_from_us(
    lab: Lab, stack: ExitStack
) -> None:
    server = stack.enter_context(Alive(port_of(lab, "um1")))
    stack.enter_context(Alive(port_of(lab, "um2")))
    await qualify(lab)
    await _is(lab, "um1", "Not in use")
    async with umpack(lab, SITE) as beside:
        await changes(beside, out=False)
        caller = Caller("100", hold_ms=30_000)
        callers = stack.enter_context(await asyncio.to_thread(caller.start, lab.sip_port))
        ledger = beside.distributor.ledger
        await until(lambda: any(lease.holder.answered is not None for lease in ledger))
        await asyncio.to_thread(server.stop)
        await changes(beside, out=True)
        assert await _device_state(lab, "um1") == "In use"  # though no contact answers
        assert len(ledger) == 1
        # What events have told is not taken back by what the list seems to say.
        beside.driver._resync()
        await asyncio.sleep(1.0)
        assert state(beside) is ALARMED
        await asyncio.to_thread(callers.stop)
        await asyncio.to_thread(lab.rx, "channel request hangup all")
        await beside.idle()


async def test_asterisk_restarts_with_a_server_dead(lab: Lab, stack: ExitStack) -> None:
    stack.enter_context(Alive(port_of(lab, "um1")))
    two = stack.enter_context(Alive(port_of(lab, "um2")))
    await qualify(lab)
    async with umpack(lab, SITE) as beside:
        await changes(beside, out=False)
        await asyncio.to_thread(lab.kill)
        await asyncio.to_thread(two.stop)
        await asyncio.to_thread(lab.start)
        await until(lambda: state(beside, "um2") is ALARMED, 30)
        await changes(beside, out=False)


async def test_a_reload_of_pjsip_loses_no_trunk(lab: Lab, stack: ExitStack) -> None:
    stack.enter_context(Alive(port_of(lab, "um1")))
    stack.enter_context(Alive(port_of(lab, "um2")))
    await qualify(lab)
    await _is(lab, "um1", "Not in use")
    async with umpack(lab, SITE) as beside:
        await changes(beside, out=False)
        for _ in range(3):
            await asyncio.to_thread(lab.rx, "module reload res_pjsip.so")
            for _ in range(20):
                assert state(beside) is not ALARMED
                await asyncio.sleep(0.05)
        assert beside.complaints == []


async def test_no_chan_dahdi_is_quiet(lab: Lab, stack: ExitStack) -> None:
    stack.enter_context(Alive(port_of(lab, "um1")))
    async with umpack(lab, SITE) as beside:
        await asyncio.sleep(1.0)
        assert beside.complaints == []  # nothing was even asked
    lines = SITE.replace("trunks:", "trunks:\n  s2m: {kind: s2m, span: 1}")
    async with umpack(lab, lines) as beside:
        for _ in range(3):
            beside.driver._resync()
            await asyncio.sleep(0.5)
        assert len(beside.complaints) == 1, beside.complaints
        assert "Invalid/unknown command: DAHDIShowChannels" in beside.complaints[0]
        assert state(beside, "s2m") is HealthState.UP


async def test_what_device_states_cost(lab: Lab, stack: ExitStack) -> None:
    """Their number follows calls, so it must stay small beside that of DialEnd."""
    stack.enter_context(Alive(port_of(lab, "um1")))
    stack.enter_context(Alive(port_of(lab, "um2")))
    await qualify(lab)
    await _is(lab, "um1", "Not in use")
    async with umpack(lab, SITE) as beside:
        link = beside.driver._ami
        assert link is not None
        before = link.counters.events
        caller = Caller("100", count=40, rate=20, hold_ms=100)
        await asyncio.to_thread(caller.run, lab.sip_port)
        await beside.idle()
        per_call = (link.counters.events - before) / 40
        print(f"{per_call:.2f} events a call")
        assert 1 <= per_call < 8, per_call


async def _device_state(lab: Lab, endpoint: str) -> str:
    address = AmiAddress("127.0.0.1", lab.ami_port, "umpack", SECRET)
    link = AmiLink(address, events=frozenset())
    running = asyncio.create_task(link.run())
    try:
        await until(lambda: link.version != "")
        rows = await link.collect("PJSIPShowEndpoints")
        return next(row["DeviceState"] for row in rows if row["ObjectName"] == endpoint)
    finally:
        running.cancel()
        await asyncio.wait([running])


async def _is(lab: Lab, endpoint: str, wanted: str) -> None:
    async with asyncio.timeout(20):
        while await _device_state(lab, endpoint) != wanted:  # noqa: ASYNC110 - a CLI has no event
            await asyncio.sleep(0.2)


# --- what the caller hears ----------------------------------------------------------------------

HEARD = SITE.replace("answer_within: 5s", "answer_within: 1s")


def silent(port: int) -> socket.socket:
    """A server that is there and says nothing at all."""
    there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    there.bind(("127.0.0.1", port))
    return there


@pytest.fixture
def fresh(pbx_root: Root) -> Iterator[Lab]:
    # Of its own: Asterisk repeats an INVITE nobody answers for 32 s. And without qualifying, by
    # which the silent server would not be rung at all.
    peers = [SipPeer(name, free_port()) for name in ("um1", "um2")]
    with patient(Lab(pbx_root, LabConfig("[from-line]\n", peers=peers))) as lab:
        yield lab


async def heard(lab: Lab) -> list[int]:
    """What a caller is told before and with the answer, but for 100 Trying."""
    (result,) = await asyncio.to_thread(Caller("100", hold_ms=50).run, lab.sip_port)
    assert result.final == 200
    return [code for code in result.codes if code != 100]


async def test_behind_a_dead_server_the_caller_hears_ringing(fresh: Lab, stack: ExitStack) -> None:
    stack.enter_context(silent(port_of(fresh, "um1")))
    stack.enter_context(Server.quiet(port_of(fresh, "um2"), after_ms=300))
    async with umpack(fresh, HEARD) as beside:
        assert await heard(fresh) == [180, 200]
        await beside.idle()
        (record,) = beside.records
        assert [attempt.trunk for attempt in record.attempts] == ["um1", "um2"]


async def test_early_media_of_a_second_server_is_not_cut(fresh: Lab, stack: ExitStack) -> None:
    stack.enter_context(silent(port_of(fresh, "um1")))
    stack.enter_context(Server.quiet(port_of(fresh, "um2"), after_ms=300, early=True))
    async with umpack(fresh, HEARD) as beside:
        assert await heard(fresh) == [180, 183, 200]
        await beside.idle()


async def test_whose_first_server_answers_hears_nothing_of_ours(
    fresh: Lab, stack: ExitStack
) -> None:
    stack.enter_context(Server.quiet(port_of(fresh, "um1")))
    async with umpack(fresh, HEARD) as beside:
        assert await heard(fresh) == [200]
        await beside.idle()


@pytest.mark.parametrize("rings", [True, False])
async def test_whether_a_server_rang_before_it_refused_is_known(
    fresh: Lab, stack: ExitStack, *, rings: bool
) -> None:
    """Its own last word is the refusal; that it rang before is the manager's hint."""
    port = port_of(fresh, "um1")
    stack.enter_context(Server.rejecting(480, port, after_ms=1000, rings=rings))
    async with umpack(fresh, SITE) as beside:
        (result,) = await asyncio.to_thread(Caller("100").run, fresh.sip_port)
        assert result.final == 480
        await beside.idle()
        (attempt,) = beside.records[0].attempts
        assert (attempt.outcome.sip, attempt.outcome.rang) == (480, True if rings else None)
