"""The printed dialplan on a real Asterisk: with no umpack at all, and with one that is killed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.pbx.beside import (
    PEERS,
    Dialled,
    UmpackProcess,
    individuals,
    lab_config,
    load_dialplan,
    patient,
    port_of,
)
from tests.pbx.lab import Lab
from tests.pbx.root import Root
from tests.pbx.sipp import Caller, Server, finals
from tests.ports import free_port
from umpack.core.causes import WIRE_SAFE_CAUSES

pytestmark = [pytest.mark.pbx, pytest.mark.timeout(900)]  # the first run builds the root

TRUNKS = """
trunks:
  um1: {kind: sip, endpoint: um1, channels: 30}
  um2: {kind: sip, endpoint: um2, channels: 30}
  um3: {kind: sip, endpoint: um3, channels: 30}
  dead: {kind: sip, endpoint: dead, channels: 30}
  um4: {kind: sip, endpoint: um4, channels: 30, dial: "PJSIP/{called}*{caller}@um4"}
"""
LINEAR = (
    TRUNKS
    + """
packs:
  um: {members: [um1, um2, um3], answer_within: 1s}
routes:
  - {called: "*", pack: um}
"""
)


@pytest.fixture(scope="module")
def lab(pbx_root: Root) -> Iterator[Lab]:
    with patient(Lab(pbx_root, lab_config())) as lab:
        yield lab


@pytest.fixture(autouse=True)
def _nothing_is_left(lab: Lab) -> Iterator[None]:
    yield
    lab.wait_channels(0)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def alone(lab: Lab, site: str) -> None:
    """The dialplan, and nobody where it looks for umpack."""
    load_dialplan(lab, site, free_port())


class TestAlone:
    def test_hunts_in_order_past_servers_that_fail(self, lab: Lab, stack: ExitStack) -> None:
        um1, um2 = (stack.enter_context(Server.rejecting(503, port_of(lab, n))) for n in PEERS[:2])
        um3 = stack.enter_context(Server.answering(port_of(lab, "um3")))
        alone(lab, LINEAR)
        (result,) = Caller("100").run(lab.sip_port)
        assert (result.final, result.end) == (200, "hangup-local")
        calls = [call for server in (um1, um2, um3) for call in server.calls()]
        assert [call.port for call in calls] == [port_of(lab, name) for name in PEERS[:3]]
        assert [call.at for call in calls] == sorted(call.at for call in calls)
        assert [call.steps[-1] for call in calls] == ["rejected", "rejected", "hangup-remote"]
        assert {call.called for call in calls} == {"100"}

    @pytest.mark.parametrize(
        ("code", "told"), [(486, 486), (404, 404), (480, 480), (603, 403), (488, 488)]
    )
    def test_the_far_ends_own_answer_ends_the_hunt(
        self, lab: Lab, stack: ExitStack, code: int, told: int
    ) -> None:
        um1 = stack.enter_context(Server.rejecting(code, port_of(lab, "um1")))
        um2 = stack.enter_context(Server.answering(port_of(lab, "um2")))
        alone(lab, LINEAR)
        (result,) = Caller("100").run(lab.sip_port)
        assert result.final == told
        assert (len(um1.calls()), len(um2.calls())) == (1, 0)

    @pytest.mark.parametrize("code", [408, 501])
    def test_the_status_counts_before_the_cause_it_is_folded_into(
        self, lab: Lab, stack: ExitStack, code: int
    ) -> None:
        # Causes 18 and 29, which end calls.
        um1 = stack.enter_context(Server.rejecting(code, port_of(lab, "um1")))
        um2 = stack.enter_context(Server.answering(port_of(lab, "um2")))
        alone(lab, LINEAR)
        assert Caller("100").run(lab.sip_port)[0].final == 200
        assert (len(um1.calls()), len(um2.calls())) == (1, 1)

    def test_own_rows_of_packs_and_trunks_hold_without_umpack(
        self, lab: Lab, stack: ExitStack
    ) -> None:
        site = """
trunks:
  um1: {kind: sip, endpoint: um1, channels: 30}
  um2: {kind: sip, endpoint: um2, channels: 30, causes: {sip 603: {elsewhere: trunk}}}
  um3: {kind: sip, endpoint: um3, channels: 30}
packs:
  plain: {members: [um1, um3]}
  own: {members: [um1, um3], causes: {sip 486: {elsewhere: trunk}}}
  full: {members: [um2], causes: {sip 603: {elsewhere: no}}, overflow: [spare]}
  spare: {members: [um3]}
routes:
  - {called: "1XX", pack: plain}
  - {called: "2XX", pack: own}
  - {called: "3XX", pack: full}
"""
        um1 = stack.enter_context(Server.rejecting(486, port_of(lab, "um1")))
        um2 = stack.enter_context(Server.rejecting(603, port_of(lab, "um2")))
        um3 = stack.enter_context(Server.answering(port_of(lab, "um3")))
        alone(lab, site)
        told = [Caller(called).run(lab.sip_port)[0].final for called in ("100", "200", "300")]
        assert told == [486, 200, 200]
        assert [call.called for call in um1.calls()] == ["100", "200"]
        assert [call.called for call in um2.calls()] == ["300"]
        assert [call.called for call in um3.calls()] == ["200", "300"]

    def test_all_attempts_together_keep_to_the_setup_budget(
        self, lab: Lab, stack: ExitStack
    ) -> None:
        um1, um2 = (stack.enter_context(Server.ringing(port_of(lab, n))) for n in PEERS[:2])
        um3 = stack.enter_context(Server.answering(port_of(lab, "um3")))
        alone(lab, LINEAR.replace("answer_within: 1s", "answer_within: 4s, setup_budget: 5s"))
        (result,) = Caller("100").run(lab.sip_port)
        assert result.final == 503
        assert result.seconds_to_final is not None
        # The second attempt has the one second the first has left.
        assert 4.5 < result.seconds_to_final < 7.0
        lab.wait_channels(0)
        assert [call.steps for call in (*um1.calls(), *um2.calls())] == [
            ("invite", "cancelled")
        ] * 2
        assert um3.calls() == []

    def test_nobody_answers_in_time_so_the_next_is_tried(self, lab: Lab, stack: ExitStack) -> None:
        um1 = stack.enter_context(Server.ringing(port_of(lab, "um1")))
        um3 = stack.enter_context(Server.answering(port_of(lab, "um3")))
        alone(lab, LINEAR.replace("um2,", "dead,"))
        (result,) = Caller("100").run(lab.sip_port)
        assert result.final == 200
        assert result.seconds_to_final is not None
        assert result.seconds_to_final >= 2.0
        assert um1.calls()[0].steps == ("invite", "cancelled")
        assert um3.calls()[0].answered

    def test_overflow(self, lab: Lab, stack: ExitStack) -> None:
        site = (
            TRUNKS
            + """
packs:
  um: {members: [um1], answer_within: 1s, overflow: [spare]}
  spare: {members: [um2], answer_within: 1s}
routes: [{called: "1*", pack: um}]
"""
        )
        um1 = stack.enter_context(Server.rejecting(503, port_of(lab, "um1")))
        um2 = stack.enter_context(Server.answering(port_of(lab, "um2")))
        alone(lab, site)
        assert Caller("100").run(lab.sip_port)[0].final == 200
        assert (len(um1.calls()), len(um2.calls())) == (1, 1)

    def test_cyclic_packs_begin_anywhere_and_go_round(self, lab: Lab, stack: ExitStack) -> None:
        site = (
            TRUNKS
            + """
packs: {um: {strategy: cyclic, members: [um1, um2, um3], answer_within: 1s}}
routes: [{called: "*", pack: um}]
"""
        )
        um1, um2 = (stack.enter_context(Server.answering(port_of(lab, n))) for n in PEERS[:2])
        um3 = stack.enter_context(Server.rejecting(503, port_of(lab, "um3")))
        alone(lab, site)
        results = Caller("100", count=40, rate=40).run(lab.sip_port)
        assert finals(results) == {200: 40}
        begun = [len(server.calls()) for server in (um1, um2, um3)]
        # Each start has a third: that one never comes in 40 calls is one run in ten million.
        assert all(begun)
        assert begun[0] + begun[1] == 40
        # um3 fails over to um1, round the end of the pack, and is a start, not a station for all.
        assert begun[2] < 40

    def test_the_caller_gives_up_while_it_rings(self, lab: Lab, stack: ExitStack) -> None:
        um1 = stack.enter_context(Server.ringing(port_of(lab, "um1")))
        um2 = stack.enter_context(Server.answering(port_of(lab, "um2")))
        alone(lab, LINEAR)
        (result,) = Caller("100", patience_ms=300).run(lab.sip_port)
        assert result.end == "cancelled"
        lab.wait_channels(0)
        assert um1.calls()[0].steps == ("invite", "cancelled")
        assert um2.calls() == []

    @pytest.mark.parametrize(("cause", "status"), [(34, 503), (38, 500), (41, 503), (17, 486)])
    def test_nothing_left_gives_the_packs_refusal_cause(
        self, lab: Lab, stack: ExitStack, cause: int, status: int
    ) -> None:
        for name in PEERS[:3]:
            stack.enter_context(Server.rejecting(503, port_of(lab, name)))
        alone(lab, LINEAR.replace("1s}", f"1s, refusal_cause: {cause}}}"))
        (result,) = Caller("100").run(lab.sip_port)
        assert result.final == status

    def test_routes_refuse_with_their_cause_but_never_with_603(self, lab: Lab) -> None:
        causes = range(1, 128)
        routes = "".join(f'  - {{called: "7{cause:03}", refuse: {cause}}}\n' for cause in causes)
        alone(lab, LINEAR + routes)
        lines = [(f"7{cause:03}", "<sip:1000@here>", "1") for cause in causes]
        results = individuals(lines, lab)
        for cause, result in zip(causes, results, strict=True):
            told = cause if cause in WIRE_SAFE_CAUSES else 34
            assert result.reason == f"Q.850;cause={told}"
            assert result.final is not None
            assert 400 <= result.final < 600, cause

    def test_caller_filters(self, lab: Lab, stack: ExitStack) -> None:
        site = (
            TRUNKS
            + """
packs: {um: {members: [um1], answer_within: 1s}}
routes:
  - {called: "1XX", caller: ["+49*", "30X"], pack: um}
  - {called: "1XX", refuse: 21}
"""
        )
        um1 = stack.enter_context(Server.answering(port_of(lab, "um1")))
        alone(lab, site)
        callers = ("+49301", "305", "3055", "anonymous")
        lines = [("150", f"<sip:{caller}@here>", "1") for caller in callers]
        lines.append(("250", "<sip:1000@here>", "1"))
        results = individuals(lines, lab)
        assert [result.final for result in results] == [200, 200, 403, 403, 404]
        assert sorted(call.caller for call in um1.calls()) == ["+49301", "305"]

    def test_what_a_caller_chooses_changes_nothing(self, lab: Lab, stack: ExitStack) -> None:
        site = TRUNKS + 'packs: {um: {members: [um4]}}\nroutes: [{called: "*", pack: um}]\n'
        um4 = stack.enter_context(Server.answering(port_of(lab, "um4")))
        alone(lab, site)
        lines = [
            ("100", r'"\"&Local/x@y," <sip:%26Local%2fx%40y%2c@here>', "%26Local%2fx%40y%2c"),
            ("100", '"$(reboot) ${SHELL(id)}" <sip:%24%7bSHELL(id)%7d12@here>', "1"),
            ("1%26Local%2fx%40y%2c", "<sip:1000@here>", "1"),
            ("12%29%3a0%3a9%26Local%2fx", "<sip:1000@here>", "1"),
            ("100%0d%0a", "<sip:1000@here>", "1"),
        ]
        with Dialled(lab) as dialled:
            results = individuals(lines, lab)
            assert [result.final for result in results] == [200, 200, 484, 484, 484]
            assert dialled.strings == ["100*Localxy@um4", "100*SHELLid12@um4"]
        assert [call.called for call in um4.calls()] == ["100*Localxy", "100*SHELLid12"]


class TestKilled:
    def test_an_answered_call_goes_on_until_the_callee_ends_it(
        self, lab: Lab, stack: ExitStack
    ) -> None:
        um1 = stack.enter_context(Server.hanging_up(port_of(lab, "um1"), hold_ms=2500))
        um2 = stack.enter_context(Server.answering(port_of(lab, "um2")))
        umpack = stack.enter_context(UmpackProcess(lab, LINEAR))
        with Caller("100", hold_ms=20_000).start(lab.sip_port) as callers:
            self.wait_for(um1, "answered")
            umpack.kill()
            assert lab.channels() == 2
            (result,) = callers.wait()
        assert result.end == "hangup-remote"
        assert um1.calls()[0].steps == ("invite", "answered", "hangup-local")
        lab.wait_channels(0)
        assert um2.calls() == []

    def test_an_answered_call_goes_on_until_the_caller_ends_it(
        self, lab: Lab, stack: ExitStack
    ) -> None:
        um1, um2 = (stack.enter_context(Server.answering(port_of(lab, n))) for n in PEERS[:2])
        umpack = stack.enter_context(UmpackProcess(lab, LINEAR))
        with Caller("100", hold_ms=2500).start(lab.sip_port) as callers:
            self.wait_for(um1, "answered")
            umpack.kill()
            assert lab.channels() == 2
            (result,) = callers.wait()
        assert result.end == "hangup-local"
        lab.wait_channels(0)
        assert um1.calls()[0].steps == ("invite", "answered", "hangup-remote")
        assert um2.calls() == []

    def test_a_server_that_rings_may_still_answer(self, lab: Lab, stack: ExitStack) -> None:
        um1 = stack.enter_context(Server.answering(port_of(lab, "um1"), ring_ms=2000))
        um2 = stack.enter_context(Server.answering(port_of(lab, "um2")))
        umpack = stack.enter_context(UmpackProcess(lab, LINEAR.replace("1s", "10s")))
        with Caller("100").start(lab.sip_port) as callers:
            self.wait_for(um1, "invite")
            umpack.kill()
            (result,) = callers.wait()
        assert (result.final, result.end) == (200, "hangup-local")
        assert um1.calls()[0].answered
        assert um2.calls() == []

    def test_a_server_that_never_answers_is_left_for_the_next(
        self, lab: Lab, stack: ExitStack
    ) -> None:
        um1 = stack.enter_context(Server.ringing(port_of(lab, "um1")))
        um2 = stack.enter_context(Server.answering(port_of(lab, "um2")))
        umpack = stack.enter_context(UmpackProcess(lab, LINEAR))
        with Caller("100").start(lab.sip_port) as callers:
            self.wait_for(um1, "invite")
            umpack.kill()
            (result,) = callers.wait()
        assert result.final == 200
        assert um2.calls()[0].answered
        assert {call.steps for call in um1.calls()} == {("invite", "cancelled")}

    def test_a_busy_answer_after_the_kill_is_the_callers(self, lab: Lab, stack: ExitStack) -> None:
        um1 = stack.enter_context(Server.rejecting(486, port_of(lab, "um1"), after_ms=1500))
        um2 = stack.enter_context(Server.answering(port_of(lab, "um2")))
        umpack = stack.enter_context(UmpackProcess(lab, LINEAR.replace("1s", "10s")))
        with Caller("100").start(lab.sip_port) as callers:
            self.wait_for(um1, "invite")
            umpack.kill()
            (result,) = callers.wait()
        assert result.final == 486
        assert (len(um1.calls()), len(um2.calls())) == (1, 0)

    def test_killed_before_it_dials_the_dialplan_hunts(self, lab: Lab, stack: ExitStack) -> None:
        um1 = stack.enter_context(Server.answering(port_of(lab, "um1")))
        umpack = stack.enter_context(UmpackProcess(lab, LINEAR))
        umpack.freeze()
        with Caller("100").start(lab.sip_port) as callers:
            lab.wait_channels(1)
            umpack.kill()
            (result,) = callers.wait()
        assert (result.final, result.end) == (200, "hangup-local")
        assert len(um1.calls()) == 1

    @staticmethod
    def wait_for(server: Server, step: str) -> None:
        for _ in range(200):
            if any(event.step == step for event in server.events()):
                return
            time.sleep(0.05)
        raise AssertionError(f"no {step} within 10 s")
