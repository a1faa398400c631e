"""The AMI link is cut, stalled and garbled while calls storm: they must not notice.

A proxy between umpack and the real Asterisk's manager spoils the link. Calls come by FastAGI, which
does not pass it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from loguru import logger

from tests.chaos.proxy import Fault, FaultProxy
from tests.pbx.beside import patient, port_of, until
from tests.pbx.lab import Lab
from tests.pbx.root import Root
from tests.pbx.sipp import Caller
from tests.pbx.storm import (
    SERVERS,
    Placed,
    UmServer,
    daemon_beside,
    linked,
    lost,
    place,
    slower,
    um_config,
)
from umpack.core.health_states import HealthState
from umpack.daemon import Daemon

pytestmark = [
    pytest.mark.pbx,
    pytest.mark.timeout(900),  # the first run builds the root
    pytest.mark.xdist_group("pbx-storms"),  # it looks at waits: no storm beside it
]

RATE = 10
TRUNKS = "".join(f"  {n}: {{kind: sip, endpoint: {n}, channels: 10}}\n" for n in SERVERS)
SITE = (
    f"trunks:\n{TRUNKS}packs:\n  um: {{strategy: cyclic, interleave: true,"
    " members: [um1, um2, um3, um4], answer_within: 1s}\n"
    'routes: [{called: "*", pack: um}]\n'
)
NOTICED_WITHIN = 14.0
"""Seconds: a silent link is found by a Ping every 10 s that may take 3 s."""


@pytest.fixture(scope="module")
def lab(pbx_root: Root) -> Iterator[Lab]:
    with patient(Lab(pbx_root, um_config())) as lab:
        yield lab


@asynccontextmanager
async def beside(lab: Lab, here: Path) -> AsyncIterator[tuple[Daemon, FaultProxy, list[str]]]:
    """Servers, proxy, daemon; the list grows by what the daemon says from ERROR up."""
    errors: list[str] = []
    sink = logger.add(lambda line: errors.append(str(line)), level="ERROR")
    try:
        with ExitStack() as stack:
            for name in SERVERS:
                stack.enter_context(UmServer(port_of(lab, name)))
            async with (
                FaultProxy(lab.ami_port) as proxy,
                daemon_beside(lab, SITE, here, proxy.port) as daemon,
            ):
                yield daemon, proxy, errors
                await proxy.become(Fault.NONE)
    finally:
        logger.remove(sink)


@asynccontextmanager
async def storm(lab: Lab, seconds: float, hold_ms: int = 700) -> AsyncIterator[list[Placed]]:
    """Calls all the time; the list has them at the end."""
    caller = Caller("100", count=round(RATE * seconds), rate=RATE, hold_ms=hold_ms)
    placing = asyncio.create_task(place(lab, caller, round(seconds) + 30))
    calls: list[Placed] = []
    try:
        await asyncio.sleep(1.0)
        yield calls
    finally:
        calls += await placing


async def unhurt(calls: list[Placed], daemon: Daemon) -> bool:
    """Whether no call was lost or waited, nothing stays held, and no trunk is blamed."""
    # The last caller may have gone a moment before umpack hears of it.
    await until(lambda: len(daemon.distributor.ledger) == 0, 10.0)
    return (
        lost(calls) == []
        and slower(calls, 1.0) == []
        and {health.state for health in daemon.distributor.health.values()} == {HealthState.UP}
    )


class TestFaults:
    @pytest.mark.parametrize(
        "fault",
        [
            Fault.REFUSE, Fault.RESET, Fault.HALF_LINE, Fault.SLOW, Fault.DUPLICATE,
            Fault.GREETING, Fault.GARBLE,
        ],
        ids=lambda fault: fault.value,
    )  # fmt: skip
    async def test_calls_do_not_notice_and_the_link_comes_back(
        self, lab: Lab, tmp_path: Path, fault: Fault
    ) -> None:
        async with beside(lab, tmp_path) as (daemon, proxy, errors):
            async with storm(lab, 4.0) as calls:
                await proxy.become(fault)
                # A link that is up shows no fault of its greeting: it has to come anew.
                if fault is Fault.GREETING:
                    await proxy.cut()
                await asyncio.sleep(1.5)
                if fault in (Fault.REFUSE, Fault.RESET, Fault.HALF_LINE, Fault.GREETING):
                    assert not linked(daemon)
                await proxy.become(Fault.NONE)
                await until(lambda: linked(daemon), 12.0)
            assert await unhurt(calls, daemon)
            assert errors == []

    async def test_a_silent_link_is_found_and_made_anew(self, lab: Lab, tmp_path: Path) -> None:
        async with beside(lab, tmp_path) as (daemon, proxy, errors):
            async with storm(lab, NOTICED_WITHIN + 1.0) as calls:
                await proxy.become(Fault.STALL)
                await until(lambda: not linked(daemon), NOTICED_WITHIN)
                await proxy.become(Fault.NONE)
                await until(lambda: linked(daemon), 12.0)
            assert await unhurt(calls, daemon)
            assert errors == []

    async def test_cut_again_and_again(self, lab: Lab, tmp_path: Path) -> None:
        async with beside(lab, tmp_path) as (daemon, proxy, errors):
            async with storm(lab, 8.0) as calls:
                # Each time it waits twice as long, for a link that does not last.
                for _ in range(5):
                    await until(lambda: linked(daemon), 5.0)
                    await proxy.cut()
                    await until(lambda: not linked(daemon), 5.0)
                await until(lambda: linked(daemon), 12.0)
            assert await unhurt(calls, daemon)
            assert errors == []

    async def test_a_short_stall_does_not_unlearn_how_fast_servers_answer(
        self, lab: Lab, tmp_path: Path
    ) -> None:
        async with beside(lab, tmp_path) as (daemon, proxy, _):
            healths = daemon.distributor.health.values()
            learn = Caller("100", count=120, rate=40, hold_ms=200)
            assert lost(await place(lab, learn)) == []
            assert max(health.answer_p99 for health in healths) < 0.5
            async with storm(lab, 7.0, 3000) as calls:
                await proxy.become(Fault.STALL)
                await asyncio.sleep(4.0)
                await proxy.become(Fault.NONE)
            assert await unhurt(calls, daemon)
            # The percentile is worked out anew every 64 answers of a trunk.
            assert lost(await place(lab, replace(learn, count=280))) == []
            assert max(health.answer_p99 for health in healths) < 0.5
