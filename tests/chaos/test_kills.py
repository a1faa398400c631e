"""umpack and Asterisk are killed in storms of calls, again and again, on a real Asterisk.

A normal run kills umpack 10 times and Asterisk twice; UMPACK_CHAOS=100 kills them 100 and 10 times.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.process import Umpack
from tests.pbx.beside import patient, port_of, until
from tests.pbx.lab import Lab
from tests.pbx.root import Root
from tests.pbx.sipp import Caller, Callers, finals
from tests.pbx.storm import (
    SERVERS,
    UmServer,
    daemon_beside,
    linked,
    lost,
    place,
    placed,
    slower,
    um_config,
)
from umpack.core.calls import Ending

KILLS = int(os.environ.get("UMPACK_CHAOS", "10"))
PBX_KILLS = max(2, KILLS // 10)

pytestmark = [
    pytest.mark.pbx,
    pytest.mark.timeout(900 + 10 * KILLS),  # the first run builds the root
    pytest.mark.xdist_group("pbx-chaos"),
]

RATE, HOLD_MS = 20, 3000


def site(channels: int) -> str:
    trunks = "".join(
        f"  {name}: {{kind: sip, endpoint: {name}, channels: {channels}}}\n" for name in SERVERS
    )
    members = ", ".join(SERVERS)
    return (
        f"trunks:\n{trunks}packs:\n  um: {{strategy: cyclic, interleave: true,"
        f" members: [{members}], answer_within: 1s}}\n"
        'routes: [{called: "*", pack: um}]\n'
    )


@pytest.fixture
def lab(pbx_root: Root) -> Iterator[Lab]:
    with patient(Lab(pbx_root, um_config())) as lab:
        yield lab


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def servers(lab: Lab, stack: ExitStack) -> list[UmServer]:
    return [stack.enter_context(UmServer(port_of(lab, name))) for name in SERVERS]


def enough(callers: Callers) -> None:
    """Let them begin no more calls, and end those they have."""
    callers._process.send_signal(signal.SIGUSR1)


def messages(lab: Lab) -> str:
    """What Asterisk logged; `lab.log` has it twice."""
    return (lab.directory / "log/messages").read_text(encoding="utf-8", errors="replace")


def at_once(servers: list[UmServer]) -> dict[int, int]:
    return {server.port: server.most_at_once() for server in servers}


class TestUmpackKilled:
    def test_in_a_storm_again_and_again(
        self, lab: Lab, servers: list[UmServer], stack: ExitStack, tmp_path: Path
    ) -> None:
        channels = 30
        seed = random.SystemRandom().randrange(2**32)
        rng = random.Random(seed)
        umpack = stack.enter_context(Umpack(lab, site(channels), tmp_path))
        seconds = 60 + 20 * KILLS
        caller = Caller("100", count=RATE * seconds, rate=RATE, hold_ms=HOLD_MS)
        callers = stack.enter_context(caller.start(lab.sip_port, seconds))
        time.sleep(1.0)
        for _ in range(KILLS):
            umpack.kill()
            time.sleep(rng.uniform(0.0, 0.3))
            umpack.start()
            if rng.random() < 0.3:
                time.sleep(rng.uniform(0.0, 1.0))  # not up yet, or hardly
            else:
                umpack.wait_up()
                time.sleep(rng.uniform(0.0, 2.5))
        enough(callers)
        assert callers.ended(60.0)
        calls = placed(callers)
        umpack.wait_up()
        lab.wait_channels(0)
        assert lost(calls) == [], f"seed {seed}"
        status = umpack.wait_calls(0, 5.0)
        assert {trunk["leased"] for trunk in status["trunks"]} == {0}, f"seed {seed}"
        assert max(at_once(servers).values()) <= channels, f"seed {seed}"
        # Both have had their share, or this proves nothing.
        alone = messages(lab).count("umpack is away")
        assert len(calls) / 50 < alone < len(calls) * 49 / 50, f"seed {seed}"
        print(
            f"\n{KILLS} kills, {len(calls)} calls, {alone} hunted without umpack "
            f"(silent {messages(lab).count('has not answered within')} times), most at once "
            f"{at_once(servers)}, longest wait {max(call.wait for call in calls):.3f} s"
        )

    def test_living_calls_are_known_again_and_no_channel_is_given_twice(
        self, lab: Lab, servers: list[UmServer], stack: ExitStack, tmp_path: Path
    ) -> None:
        umpack = stack.enter_context(Umpack(lab, site(3), tmp_path))
        first = Caller("100", count=10, rate=40, hold_ms=9000)
        held = stack.enter_context(first.start(lab.sip_port, 40))
        umpack.wait_calls(10, 5.0)
        umpack.kill()
        umpack.start()
        umpack.wait_up()
        status = umpack.wait_calls(10, 1.0)
        leased = {trunk["id"]: trunk["leased"] for trunk in status["trunks"]}
        assert sorted(leased.values()) == [2, 2, 3, 3]
        # Two places are left.
        second = Caller("100", count=5, rate=40, hold_ms=500).run(lab.sip_port)
        assert finals(second) == {200: 2, 503: 3}
        assert set(at_once(servers).values()) == {3}
        assert [result.end for result in held.wait()] == ["hangup-local"] * 10
        lab.wait_channels(0)
        umpack.wait_calls(0, 5.0)


class TestUmpackFrozen:
    def test_callers_are_served_all_the_same(
        self, lab: Lab, servers: list[UmServer], stack: ExitStack, tmp_path: Path
    ) -> None:
        umpack = stack.enter_context(Umpack(lab, site(30), tmp_path))
        early = Caller("100", count=60, rate=20, hold_ms=1000)
        callers = stack.enter_context(early.start(lab.sip_port, 40))
        time.sleep(1.5)
        umpack.freeze()
        callers.wait()
        calls = placed(callers)
        assert lost(calls) == []
        # One question to umpack may take 0.9 s; who comes later passes it by.
        assert slower(calls, 1.4) == []
        print(
            f"\nfrozen: {len(slower(calls, 1.0))} waited, "
            f"{max(call.wait for call in calls):.2f} s at most"
        )
        umpack.thaw()
        lab.wait_channels(0)
        umpack.wait_calls(0, 10.0)


class TestAsteriskKilled:
    async def test_all_leases_end_and_umpack_goes_on(
        self, lab: Lab, servers: list[UmServer], stack: ExitStack, tmp_path: Path
    ) -> None:
        async with daemon_beside(lab, site(30), tmp_path) as daemon:
            ledger = daemon.distributor.ledger
            took = []
            for _ in range(PBX_KILLS):
                caller = Caller("100", count=40, rate=40, hold_ms=20_000)
                with await asyncio.to_thread(caller.start, lab.sip_port, 30):
                    await until(lambda: len(ledger) >= 30)
                    began = time.perf_counter()
                    await asyncio.to_thread(lab.kill)
                    await until(lambda: len(ledger) == 0, 5.0)
                    took.append(time.perf_counter() - began)
                    await until(lambda: not linked(daemon), 5.0)
                await asyncio.to_thread(lab.start)
                # A link that does not last 10 s is retried ever later, up to 30 s.
                await until(lambda: linked(daemon), 40.0)
                calls = await place(lab, Caller("100", count=10, rate=40, hold_ms=100))
                assert lost(calls) == []
                await until(lambda: len(ledger) == 0, 5.0)
            ended = Counter(call["ending"] for call in await daemon.ended_calls(1000))
            assert ended[Ending.CONNECTED.value] >= 10 * PBX_KILLS
            print(
                f"\n{PBX_KILLS} kills of Asterisk, leases ended within {max(took):.2f} s, {ended}"
            )
