"""Life without umpack on a real Asterisk: killed, frozen, and back again."""

from __future__ import annotations

import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.pbx.beside import PEERS, lab_config, load_dialplan, patient, port_of
from tests.pbx.kept import Kept
from tests.pbx.lab import Lab
from tests.pbx.root import Root
from tests.pbx.sipp import Caller, Server, finals
from tests.ports import free_port
from umpack import clock
from umpack.dialplan.caller import ALIVE_WITHIN, AWAY_FOR, FRESH

pytestmark = [pytest.mark.pbx, pytest.mark.timeout(900)]  # the first run builds the root

TRUNKS = """
trunks:
  um1: {kind: sip, endpoint: um1, channels: 3}
  um-2: {kind: sip, endpoint: um2, channels: 3}
  um3: {kind: sip, endpoint: um3, channels: 3}
"""
ROUTE = 'routes:\n  - {called: "*", pack: um}\n'
LINEAR = f"{TRUNKS}packs: {{um: {{members: [um1, um-2, um3], answer_within: 1s}}}}\n{ROUTE}"
CYCLIC = LINEAR.replace("members", "strategy: cyclic, members")


@pytest.fixture(scope="module")
def lab(pbx_root: Root) -> Iterator[Lab]:
    with patient(Lab(pbx_root, lab_config())) as lab:
        yield lab


@pytest.fixture(autouse=True)
def _fresh(lab: Lab) -> Iterator[None]:
    lab.rx("database deltree umpack")
    for name in ("UMPACK_AWAY", "UMPACK_HEARD"):
        lab.rx(f'dialplan set global {name} ""')
    yield
    lab.wait_channels(0)
    # Any other complaint is one about the dialplan's own words.
    known = ("umpack is away", "umpack has not answered", "FastAGI", "agi://", "res_agi")
    lines = [line for line in lab.log.splitlines() if "WARNING" in line or "ERROR" in line]
    assert [line for line in lines if not any(word in line for word in known)] == []


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def wait(holds: Callable[[], object], seconds: float = 10.0) -> None:
    until = clock.now() + seconds
    while not holds():
        assert clock.now() < until, "has not come to hold"
        time.sleep(0.02)


def stored(lab: Lab) -> dict[str, str]:
    """What the database holds of umpack's."""
    found = {}
    for line in lab.rx("database show umpack").splitlines():
        name, colon, value = line.partition(":")
        if colon and name.startswith("/umpack/"):
            found[name.strip().removeprefix("/umpack/")] = value.strip()
    return found


def put(lab: Lab, key: str, value: str) -> None:
    lab.rx(f'database put umpack {key} "{value}"')


def servers(stack: ExitStack, lab: Lab) -> list[Server]:
    return [stack.enter_context(Server.answering(port_of(lab, name))) for name in PEERS[:3]]


def served(group: list[Server]) -> list[int]:
    return [len(server.calls()) for server in group]


class TestOrder:
    def test_a_drained_and_an_ejected_server_are_not_rung(self, lab: Lab, stack: ExitStack) -> None:
        um = servers(stack, lab)
        with Kept(lab, LINEAR) as umpack:
            wait(lambda: stored(lab).get("order/um") == "1//")
            umpack.ask("drain um1")
            umpack.ask("eject um-2")
            wait(lambda: stored(lab).get("order/um") == "1/um1/um-2")
        results = Caller("100", count=6, rate=20).run(lab.sip_port)
        assert finals(results) == {200: 6}
        assert served(um) == [0, 0, 6]

    def test_the_ejected_one_is_rung_when_nothing_else_is_left(
        self, lab: Lab, stack: ExitStack
    ) -> None:
        stack.enter_context(Server.rejecting(503, port_of(lab, "um3")))
        um2 = stack.enter_context(Server.answering(port_of(lab, "um2")))
        um1 = stack.enter_context(Server.answering(port_of(lab, "um1")))
        load_dialplan(lab, LINEAR, free_port())
        put(lab, "order/um", "1/um1/um-2")
        assert finals(Caller("100", count=2).run(lab.sip_port)) == {200: 2}
        assert (len(um1.calls()), len(um2.calls())) == (0, 2)

    def test_where_all_are_drained_nobody_is_rung(self, lab: Lab, stack: ExitStack) -> None:
        um = servers(stack, lab)
        load_dialplan(lab, LINEAR, free_port())
        put(lab, "order/um", "1/um1:um-2:um3/")
        assert finals(Caller("100", count=2).run(lab.sip_port)) == {503: 2}
        assert served(um) == [0, 0, 0]

    @pytest.mark.parametrize(
        "value",
        ["2/um1/", "1/um1", "1/um1//", "um1", "1/um1 /", "1/${SHELL(id)}/", '1/um1"/', "1/):0:9/",
         "1/um1)}/", "1/$[1/0]/", "1/um1,um-2/", "x" * 900],
    )  # fmt: skip
    def test_what_is_malformed_counts_for_nothing(
        self, lab: Lab, stack: ExitStack, value: str
    ) -> None:
        um = servers(stack, lab)
        load_dialplan(lab, LINEAR, free_port())
        put(lab, "order/um", value.replace('"', '\\"'))
        assert finals(Caller("100").run(lab.sip_port)) == {200: 1}
        assert served(um) == [1, 0, 0]

    def test_a_cyclic_pack_goes_on_where_it_was(self, lab: Lab, stack: ExitStack) -> None:
        um = servers(stack, lab)
        with Kept(lab, CYCLIC) as umpack:
            wait(lambda: stored(lab).get("start/um") == "0")
            Caller("100", count=2, parallel=1, hold_ms=10).run(lab.sip_port)
            wait(lambda: umpack.ask("leases") == [])
            wait(lambda: stored(lab).get("start/um") == "2")
        assert served(um) == [2, 0, 0]
        Caller("100", count=4, parallel=1, hold_ms=10).run(lab.sip_port)
        assert served(um) == [3, 3, 0]
        assert stored(lab)["start/um"] == "6"
        Caller("100", count=5, parallel=1, hold_ms=10).run(lab.sip_port)
        assert served(um) == [5, 3, 3]

    @pytest.mark.parametrize("value", ["", "9", "x", "-1", "1e1", "999999", "${EPOCH}"])
    def test_a_malformed_start_is_any_start(self, lab: Lab, stack: ExitStack, value: str) -> None:
        um = servers(stack, lab)
        load_dialplan(lab, CYCLIC, free_port())
        put(lab, "start/um", value)
        assert finals(Caller("100", count=3).run(lab.sip_port)) == {200: 3}
        assert sum(served(um)) == 3
        assert stored(lab)["start/um"] == value

    def test_a_dead_trunks_calls_go_to_all_others(self, lab: Lab, stack: ExitStack) -> None:
        um = servers(stack, lab)
        load_dialplan(lab, CYCLIC, free_port())
        put(lab, "order/um", "1//um-2")
        put(lab, "start/um", "0")
        results = Caller("100", count=180, rate=60, hold_ms=10).run(lab.sip_port)
        assert finals(results) == {200: 180}
        first, dead, third = served(um)
        assert dead == 0
        # 60 each by their own starts and a fair half of 60 more: 90 of 180, or 60 to 120 dumped.
        assert 75 <= first <= 105
        assert first + third == 180


class TestRestart:
    def test_living_calls_are_adopted_and_no_slot_is_given_twice(
        self, lab: Lab, stack: ExitStack
    ) -> None:
        um = servers(stack, lab)
        umpack = stack.enter_context(Kept(lab, LINEAR))
        callers = stack.enter_context(
            Caller("100", count=5, rate=50, hold_ms=12_000).start(lab.sip_port)
        )
        wait(lambda: served(um) == [3, 2, 0])
        wait(lambda: len(umpack.ask("leases")) == 5)
        umpack.kill()
        # Without it: the dialplan cannot count, and rings the first server once more.
        third = stack.enter_context(Caller("100", hold_ms=9_000).start(lab.sip_port))
        wait(lambda: served(um) == [4, 2, 0])
        umpack = stack.enter_context(Kept(lab, LINEAR))
        wait(lambda: len(umpack.ask("leases")) == 5)
        wait(lambda: umpack.ask("since") is not None)
        since = umpack.ask("since")
        print(f"adopted {since * 1000:.0f} ms after the link had come up")
        assert since < 1.0
        assert {tuple(lease) for lease in umpack.ask("leases")} == {
            ("um1:1", True), ("um1:2", True), ("um1:3", True), ("um-2:3", True), ("um-2:2", True),
        }  # fmt: skip
        fourth = stack.enter_context(
            Caller("100", count=4, rate=50, hold_ms=1_000).start(lab.sip_port)
        )
        assert finals(fourth.wait()) == {200: 4}
        assert served(um) == [4, 3, 3]
        wait(lambda: len(umpack.ask("leases")) == 5)
        assert {result.end for result in callers.wait()} == {"hangup-local"}
        assert {result.end for result in third.wait()} == {"hangup-local"}
        wait(lambda: umpack.ask("leases") == [], 10.0)


class Counting(socketserver.TCPServer):
    """Notes what AGI asks it for, and leaves every call to the dialplan."""

    allow_reuse_address = True

    def __init__(self, stack: ExitStack) -> None:
        self.asked: Counter[str] = Counter()
        asked = self.asked

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                environment = iter(self.rfile.readline, b"\n")
                lines = dict(line.decode().rstrip("\n").split(": ", 1) for line in environment)
                asked[lines["agi_network_script"]] += 1

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        stack.callback(self.server_close)
        stack.callback(self.shutdown)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])


class TestAlive:
    def test_one_answer_speaks_for_the_calls_of_half_a_second(
        self, lab: Lab, stack: ExitStack
    ) -> None:
        um = servers(stack, lab)
        counting = Counting(stack)
        load_dialplan(lab, LINEAR, counting.port)
        began = clock.now()
        assert finals(Caller("100", count=60, rate=20, hold_ms=10).run(lab.sip_port)) == {200: 60}
        lasted = clock.now() - began
        assert counting.asked["umpack"] == 60
        # Two that come at once may both ask; 60 would be one for each.
        assert 3.0 / FRESH * 0.5 <= counting.asked["alive"] <= 1 + 2 * lasted / FRESH
        assert counting.asked["alive"] < 60
        assert sum(served(um)) == 60

    @pytest.mark.parametrize("ahead", [-3600, 3600])
    def test_a_clock_that_was_set_back_or_forth_makes_it_ask(
        self, lab: Lab, stack: ExitStack, ahead: int
    ) -> None:
        servers(stack, lab)
        counting = Counting(stack)
        load_dialplan(lab, LINEAR, counting.port)
        for name in ("HEARD", "AWAY"):
            lab.rx(f"dialplan set global UMPACK_{name} {int(clock.wall()) + ahead}.250")
        assert finals(Caller("100").run(lab.sip_port)) == {200: 1}
        assert counting.asked == {"alive": 1, "umpack": 1}


class TestFrozen:
    def test_callers_are_served_within_the_limit(self, lab: Lab, stack: ExitStack) -> None:
        um = servers(stack, lab)
        with Kept(lab, LINEAR) as umpack:
            assert finals(Caller("100").run(lab.sip_port)) == {200: 1}
            umpack.freeze()
            time.sleep(FRESH)  # who comes sooner waits for its guard: tests/chaos/test_frozen.py
            first = Caller("100", count=5, rate=50).run(lab.sip_port)
            waited = [result.seconds_to_final or 99.0 for result in first]
            print(f"frozen: {min(waited):.2f} to {max(waited):.2f} s")
            assert finals(first) == {200: 5}
            assert min(waited) > ALIVE_WITHIN * 0.9
            assert max(waited) < ALIVE_WITHIN + 1.0
            # One has found out for all who come now.
            next_ = Caller("100", count=5, rate=50).run(lab.sip_port)
            assert finals(next_) == {200: 5}
            assert max(result.seconds_to_final or 99.0 for result in next_) < 1.0
            assert served(um) == [11, 0, 0]
            umpack.thaw()
            time.sleep(AWAY_FOR + 1)
            with Caller("100", hold_ms=1500).start(lab.sip_port) as callers:
                wait(lambda: umpack.ask("leases") == [["um1:1", False]])
                callers.wait()

    def test_a_caller_who_gives_up_leaves_nothing_behind(self, lab: Lab, stack: ExitStack) -> None:
        servers(stack, lab)
        with Kept(lab, LINEAR) as umpack:
            umpack.freeze()
            (result,) = Caller("100", patience_ms=400).run(lab.sip_port)
            assert result.end == "cancelled"
            lab.wait_channels(0, 2.0)

    def test_a_call_of_its_own_limit_keeps_it(self, lab: Lab, stack: ExitStack) -> None:
        servers(stack, lab)
        with Kept(lab, LINEAR) as umpack:
            file = lab.directory / "etc/extensions.conf"
            limited = "[from-line]\nexten => 100,1,Set(TIMEOUT(absolute)=4)\n same => n,Goto(in)\n"
            text = file.read_text(encoding="utf-8")
            limited = limited.replace("Goto(in)", "Goto(umpack-in,100,1)")
            lab.write("extensions.conf", text.replace("[from-line]\n", limited, 1))
            lab.rx("dialplan reload")
            for frozen in (False, True):
                if frozen:
                    umpack.freeze()
                before = clock.now()
                (result,) = Caller("100", hold_ms=20_000).run(lab.sip_port)
                assert result.end == "hangup-remote"
                assert 3.0 < clock.now() - before < 9.0

    def test_one_dead_and_hanging_does_not_count_as_many(self, lab: Lab, stack: ExitStack) -> None:
        servers(stack, lab)
        with Kept(lab, LINEAR) as umpack:
            umpack.freeze()
            results = Caller("100", count=60, rate=5, hold_ms=20).run(lab.sip_port, 60)
            slow = Counter((result.seconds_to_final or 99.0) > 0.5 for result in results)
            print(f"12 s frozen, 5 calls a second: {slow[True]} of 60 callers waited")
            assert finals(results) == {200: 60}
            # All of the first 0.9 s, then one each time AWAY_FOR is over.
            assert 1 <= slow[True] <= 8 + 4
