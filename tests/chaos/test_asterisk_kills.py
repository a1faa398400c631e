"""Asterisk is killed 10 times under a running umpack, in a storm of calls that never stops.

Callers do not notice that it is dead but by its silence: they go on calling, and what they sent
while it was away comes again (RFC 3261 17.1.1.2). It is timed, so it is of the group in which one
storm runs at a time (see conftest.py).
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from loguru import logger

from tests.chaos.test_kills import KILLS, enough, site
from tests.pbx.beside import until
from tests.pbx.lab import Lab
from tests.pbx.sipp import Caller, Callers
from tests.pbx.storm import UmServer, daemon_beside, linked, lost, placed
from umpack import clock
from umpack.core.calls import Ending
from umpack.core.ledger import Ledger
from umpack.core.offer import Offer

PBX_KILLS = max(2, KILLS // 10)

pytestmark = [
    pytest.mark.pbx,
    pytest.mark.timeout(900 + 60 * PBX_KILLS),  # the first run builds the root
    pytest.mark.xdist_group("pbx-storms"),
]

RATE, HOLD_MS = 20, 2000
CHANNELS = 100
"""Room for all who called while it was away: they come at once when it is back."""
SOON = 10.0
"""Seconds; generous, as what is asked for takes none on an idle machine."""


@dataclass(frozen=True, slots=True)
class Life:
    """One life of Asterisk: from when umpack had its link to when it was killed (epoch)."""

    began: float
    killed: float
    holders: frozenset[str]
    """Calls that umpack had given a channel when it was killed."""


def all_since(ledger: Ledger[Offer], moment: float) -> bool:
    return all(lease.since > moment for lease in ledger)


async def answered_since(callers: Callers, moment: float, count: int) -> None:
    """Wait until so many calls of those sent after a moment (epoch) were answered. What comes to
    the PBX first was sent while it was away."""
    async with asyncio.timeout(60.0):
        while True:
            calls = await asyncio.to_thread(placed, callers)
            if sum(call.sent >= moment and call.result.final == 200 for call in calls) >= count:
                return
            await asyncio.sleep(0.5)


class TestAsteriskKilled:
    async def test_all_leases_end_and_umpack_goes_on(
        self, lab: Lab, servers: list[UmServer], stack: ExitStack, tmp_path: Path
    ) -> None:
        seed = random.SystemRandom().randrange(2**32)
        print(f"\nseed {seed}")
        rng = random.Random(seed)
        lines: list[str] = []
        sink = logger.add(lines.append, level="WARNING", format="{level} {message}")
        stack.callback(logger.remove, sink)
        lives: list[Life] = []
        ended_in, linked_in = [], []
        async with daemon_beside(lab, site(CHANNELS), tmp_path) as daemon:
            ledger = daemon.distributor.ledger
            caller = Caller("100", count=100_000, rate=RATE, hold_ms=HOLD_MS, parallel=10_000)
            callers = stack.enter_context(await asyncio.to_thread(caller.start, lab.sip_port, 3600))
            for _ in range(PBX_KILLS):
                began = clock.wall()
                # Calls get channels again, from the first moment or at a storm's height.
                await until(lambda: len(ledger) >= 5, 40.0)
                await asyncio.sleep(rng.uniform(0.0, 4.0))
                holders = {lease.holder.call.id for lease in ledger if lease.pack}
                killed = clock.wall()
                await asyncio.to_thread(lab.kill)
                # Adopted ones have no connection that tells: they end with the first list.
                await until(lambda: all(lease.pack is None for lease in ledger), SOON)
                ended_in.append(clock.wall() - killed)
                await until(lambda: not linked(daemon), SOON)
                lives.append(Life(began, killed, frozenset(holders)))
                await asyncio.sleep(rng.uniform(0.0, 1.0))
                await asyncio.to_thread(lab.start)
                booted = clock.wall()
                # A link that does not last is retried ever later, up to 30 s.
                await until(lambda: linked(daemon), 40.0)
                linked_in.append(clock.wall() - booted)
                await until(partial(all_since, ledger, killed), SOON)
            last = clock.wall()
            await answered_since(callers, last, RATE)
            enough(callers)
            await until(lambda: len(ledger) == 0, 40.0)
            await asyncio.to_thread(lab.wait_channels, 0, 40.0)
            # Their program would wait for answers of the dead: it is asked before it is ended.
            calls = placed(callers)
            records = {call["id"]: call for call in await daemon.ended_calls(100_000)}
        endings = Counter(record["ending"] for record in records.values())
        print(
            f"{PBX_KILLS} kills of Asterisk, {len(calls)} calls, {endings}; "
            f"{sum(len(life.holders) for life in lives)} leases ended within {max(ended_in):.2f} s,"
            f" link up {max(linked_in):.1f} s after the boot at most"
        )
        # It is told of: each time the link was reported down, and what the calls came to.
        assert sum("pbx main: link down" in line for line in lines) >= PBX_KILLS
        # All that held a channel has ended with its Asterisk, and was written down.
        for life in lives:
            assert life.holders
            missing = life.holders - records.keys()
            assert missing == set()
            assert all(records[id_]["ended"] < life.killed + SOON for id_ in life.holders)
        # Calls that came after it was back got channels from umpack, and lived on.
        for began, until_ in [
            *((life.began, life.killed) for life in lives[1:]),
            (last, clock.wall()),
        ]:
            assert any(
                began <= record["offered"] < until_ and record["channel"]
                for record in records.values()
            )
        after = [call for call in calls if call.sent >= last]
        assert len(after) >= RATE
        assert lost(after) == []
        # Nothing has leaked.
        assert not any("has leaked" in line for line in lines)
        assert Ending.LEAKED.value not in endings
