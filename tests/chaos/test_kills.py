"""umpack is killed 100 times in a storm of calls on a real Asterisk.

A life ends at any moment, half of them before the program is up. Where it lasts, umpack must know
all living calls one second after it came up. UMPACK_CHAOS changes the number for a try by hand.
It is timed, so it is of the group in which one storm runs at a time (see conftest.py).
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.living import SILENT, Channels, channels, faults, shared_slots, strays, to_be_known
from tests.chaos.process import Umpack
from tests.pbx.lab import Lab
from tests.pbx.sipp import Caller, Callers, finals
from tests.pbx.storm import SERVERS, UmServer, lost, placed
from umpack import clock
from umpack.core.calls import Ending

KILLS = int(os.environ.get("UMPACK_CHAOS", "100"))

pytestmark = [
    pytest.mark.pbx,
    pytest.mark.timeout(900 + 15 * KILLS),  # the first run builds the root
    pytest.mark.xdist_group("pbx-storms"),
]

RATE, HOLDS_MS = 10, (400, 5000)
"""Two storms at once: calls that end in the life they began in, and calls that outlive one."""
CHANNELS = 60
"""More in all than the 200 calls callers have at once: nobody is refused for want of them,
however long calls wait on a busy machine."""
KNOWN_WITHIN = 1.0
"""Seconds after it came up in which umpack must know all living calls."""


def site(slots: int) -> str:
    trunks = "".join(
        f"  {name}: {{kind: sip, endpoint: {name}, channels: {slots}}}\n" for name in SERVERS
    )
    members = ", ".join(SERVERS)
    return (
        f"trunks:\n{trunks}packs:\n  um: {{strategy: cyclic, interleave: true,"
        f" members: [{members}], answer_within: 1s}}\n"
        'routes: [{called: "*", pack: um}]\n'
    )


def enough(callers: Callers) -> None:
    """Let them begin no more calls, and end those they have."""
    callers._process.send_signal(signal.SIGUSR1)


def messages(lab: Lab) -> str:
    """What Asterisk logged; `lab.log` has it twice."""
    return (lab.directory / "log/messages").read_text(encoding="utf-8", errors="replace")


def at_once(servers: list[UmServer]) -> dict[int, int]:
    return {server.port: server.most_at_once() for server in servers}


class Lives:
    """Life after life of one umpack, each ended at a random moment."""

    def __init__(self, lab: Lab, umpack: Umpack, rng: random.Random) -> None:
        self.compared = self.legs = self.strays = self.young = 0
        self.faults: list[str] = []
        self._lab, self._umpack, self._rng = lab, umpack, rng
        self._start = 1.0
        """Seconds a start takes here, as last seen."""

    def live(self) -> None:
        """One life, from its start to the moment of its end, which is the caller's to bring."""
        if self._rng.random() < 0.5:
            self.young += 1
            self._umpack.start()
            time.sleep(self._rng.uniform(0.0, self._start))
            return
        rest = self._rng.uniform(0.0, 2.0)
        old = channels(self._lab) if rest >= KNOWN_WITHIN else None
        began = clock.monotonic()
        self._umpack.start()
        self._umpack.wait_up(60.0)
        up = clock.monotonic()
        self._start = up - began
        if old is not None:
            self._compare(old, up)
        time.sleep(max(0.0, up + rest - clock.monotonic()))

    def _compare(self, old: Channels, up: float) -> None:
        time.sleep(max(0.0, up + KNOWN_WITHIN - clock.monotonic()))
        before = channels(self._lab)
        status, calls = self._umpack.status(), self._umpack.living()
        after = channels(self._lab)
        legs = to_be_known(old, before, after)
        self.strays += strays(old, before, after, calls)
        self.compared += 1
        self.legs += len(legs)
        late = clock.monotonic() - up
        found = faults(legs, status, calls)
        self.faults += [f"{late:.1f} s after it came up: {fault}" for fault in found]


class TestUmpackKilled:
    def test_in_a_storm_again_and_again(
        self, lab: Lab, servers: list[UmServer], stack: ExitStack, tmp_path: Path
    ) -> None:
        seed = random.SystemRandom().randrange(2**32)
        print(f"\nseed {seed}")
        rng = random.Random(seed)
        umpack = stack.enter_context(Umpack(lab, site(CHANNELS), tmp_path))
        lives = Lives(lab, umpack, rng)
        seconds = 60 + 20 * KILLS
        storms = [
            stack.enter_context(
                Caller("100", RATE * seconds, RATE, hold, parallel=100).start(lab.sip_port, seconds)
            )
            for hold in HOLDS_MS
        ]
        time.sleep(1.0)
        began = clock.monotonic()
        for _ in range(KILLS):
            umpack.kill()
            time.sleep(rng.uniform(0.0, 0.3))
            lives.live()
        took = clock.monotonic() - began
        for callers in storms:
            enough(callers)
        assert all(callers.ended(60.0) for callers in storms)
        calls = [call for callers in storms for call in placed(callers)]
        umpack.wait_up(60.0)
        lab.wait_channels(0)
        alone = messages(lab).count("umpack is away")
        print(
            f"{KILLS} kills in {took:.0f} s, {lives.young} of them at the start, {len(calls)} "
            f"calls, {alone} hunted without umpack (silent {messages(lab).count(SILENT)} times), "
            f"{lives.legs} living calls looked for in {lives.compared} lives, "
            f"{lives.strays} strays, most at once {at_once(servers)}, "
            f"longest wait {max(call.wait for call in calls):.3f} s"
        )
        # No call is lost, and none that was established is cut.
        assert lost(calls) == []
        # No channel is given twice: umpack knew all that lived, and whom it had put where.
        assert lives.faults == []
        assert lives.compared >= KILLS / 10
        assert lives.strays <= lives.compared
        assert lives.legs >= 10 * lives.compared
        ended = umpack.ended(len(calls) + 1000)
        assert shared_slots(ended) == []
        # Nothing leaks, in none of its lives.
        assert [call for call in ended if call["ending"] == Ending.LEAKED.value] == []
        assert "has leaked" not in umpack.log
        status = umpack.wait_calls(0, 5.0)
        assert {trunk["leased"] for trunk in status["trunks"]} == {0}
        # Both have had their share, or this proves nothing.
        assert len(calls) / 50 < alone < len(calls) * 49 / 50
        endings = Counter(call["ending"] for call in ended)
        assert min(endings[Ending.CONNECTED.value], endings[Ending.ADOPTED.value]) > KILLS / 4

    def test_living_calls_are_known_again_and_no_channel_is_given_twice(
        self, lab: Lab, servers: list[UmServer], stack: ExitStack, tmp_path: Path
    ) -> None:
        umpack = stack.enter_context(Umpack(lab, site(3), tmp_path))
        first = Caller("100", count=10, rate=40, hold_ms=30_000)
        held = stack.enter_context(first.start(lab.sip_port, 60))
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
