"""umpack is stopped (SIGSTOP) in a storm of calls on a real Asterisk: nobody waits for it.

The dialplan's own limit covers its question whether umpack lives. A call that is past it, or whose
attempt has just failed, waits in Asterisk's AGI step, which knows no limit: what lets it go is that
umpack's guard ends umpack. It is timed, so it is of the group in which one storm runs at a time
(see conftest.py).
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.process import Umpack
from tests.chaos.test_kills import site
from tests.pbx.beside import port_of
from tests.pbx.lab import Lab
from tests.pbx.sipp import Caller, Server
from tests.pbx.storm import SERVERS, Placed, UmServer, lost, placed
from umpack.guard import BEAT, STOPPED
from umpack.guard_process import STEP

pytestmark = [
    pytest.mark.pbx,
    pytest.mark.timeout(900),  # the first run builds the root
    pytest.mark.xdist_group("pbx-storms"),
]

HELD = STOPPED + BEAT + STEP
"""Seconds a stopped umpack can hold a caller, by its guard's numbers."""
SLACK = 0.8
"""Seconds for all the rest: the connections' ends, and hunting on a busy machine."""
REFUSED_AFTER = 0.4


def frozen_in_a_storm(lab: Lab, umpack: Umpack, stack: ExitStack) -> list[Placed]:
    """The calls of a storm in the midst of which it is stopped; none of them is lost."""
    early = Caller("100", count=60, rate=20, hold_ms=1000)
    callers = stack.enter_context(early.start(lab.sip_port, 40))
    time.sleep(1.5)
    umpack.freeze()
    umpack.wait_ended(10.0)
    callers.wait()
    calls = placed(callers)
    assert lost(calls) == []
    return calls


class TestUmpackFrozen:
    def test_callers_are_served_all_the_same(
        self, lab: Lab, servers: list[UmServer], stack: ExitStack, tmp_path: Path
    ) -> None:
        umpack = stack.enter_context(Umpack(lab, site(30), tmp_path))
        calls = frozen_in_a_storm(lab, umpack, stack)
        longest = max(call.wait for call in calls)
        print(f"\nfrozen: {longest:.2f} s at most")
        assert longest < HELD + SLACK
        umpack.start()
        umpack.wait_up()
        lab.wait_channels(0)
        umpack.wait_calls(0, 10.0)

    def test_while_an_attempt_is_being_refused(
        self, lab: Lab, stack: ExitStack, tmp_path: Path
    ) -> None:
        # Every call meets one that refuses after a while; two live, so all are served by them.
        for name in SERVERS[:2]:
            refusing = Server.rejecting(503, port_of(lab, name), after_ms=int(REFUSED_AFTER * 1000))
            stack.enter_context(refusing)
        for name in SERVERS[2:]:
            stack.enter_context(UmServer(port_of(lab, name)))
        linear = site(30).replace("cyclic, interleave: true", "linear")
        # Not found out before it is stopped: the question is who waits for its word.
        forgiving = "health: {suspect_after: 1000, failures_to_eject: 1000}\n"
        umpack = stack.enter_context(Umpack(lab, linear + forgiving, tmp_path))
        calls = frozen_in_a_storm(lab, umpack, stack)
        # Refused by umpack's choice, held, and refused by both in the dialplan's own order.
        longest = max(call.wait for call in calls)
        print(f"\nfrozen while refused: {longest:.2f} s at most")
        assert longest < HELD + 4 * REFUSED_AFTER + SLACK
        held = [call for call in calls if call.wait > 2 * REFUSED_AFTER + 0.2]
        assert held, "no call was held: this proves nothing"
