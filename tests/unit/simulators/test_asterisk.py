"""The simulated PBX as an AGI server meets it. Expected words are a running Asterisk 22.10's."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.asterisk.agi_call import AgiCall
from drivers.asterisk.agi_commands import AgiCommand, command, exec_, get_full_variable
from simulators.agi_client import AgiStatus, split_words
from simulators.asterisk import PbxPlan, SimulatedAsterisk
from simulators.endpoints import Answer, Behaviour, Clear, Reject, Ring, Silent, Unreachable
from simulators.pbx_causes import CAUSE_TO_SIP, cause_of_sip, dial_status, sip_of_cause
from simulators.pbx_dial import parse_dial
from tests.unit.simulators.pbx_peers import served
from umpack.core.errors import OurFault, PeerGone, StateError

FACTS = ("DIALSTATUS", "HANGUPCAUSE", "HANGUPCAUSE_KEYS()")


@pytest.fixture
async def pbx() -> AsyncIterator[SimulatedAsterisk]:
    async with SimulatedAsterisk() as running:
        yield running


async def facts(call: AgiCall) -> tuple[str, ...]:
    """DIALSTATUS, HANGUPCAUSE and the legs' own words."""
    answer = await call.command(get_full_variable(*FACTS))
    status, cause, keys = answer.values(3)
    words = []
    for key in filter(None, keys.split(",")):
        words.append((await call.command(get_full_variable(f"HANGUPCAUSE({key},tech)"))).data)
    return (status, cause, *sorted(words))


SILENT = Silent()
ENDS: list[tuple[Behaviour, str, int, tuple[str, ...]]] = [
    (Answer(hang_up_after=0.01), "5.000", -1, ("ANSWER", "16", "SIP 200 OK")),
    (Reject(403), "5.000", 0, ("CHANUNAVAIL", "21", "SIP 403 Forbidden")),
    (Reject(404), "5.000", 0, ("CHANUNAVAIL", "1", "SIP 404 Not Found")),
    (Reject(408), "5.000", 0, ("CHANUNAVAIL", "18", "SIP 408 Request Timeout")),
    (Reject(480), "5.000", 0, ("NOANSWER", "19", "SIP 480 Temporarily Unavailable")),
    (Reject(486), "5.000", 0, ("BUSY", "17", "SIP 486 Busy Here")),
    (Reject(488), "5.000", 0, ("CHANUNAVAIL", "58", "SIP 488 Not Acceptable Here")),
    (Reject(500), "5.000", 0, ("CHANUNAVAIL", "38", "SIP 500 Internal Server Error")),
    (Reject(503), "5.000", 0, ("CONGESTION", "34", "SIP 503 Service Unavailable")),
    (Reject(600), "5.000", 0, ("BUSY", "17", "SIP 600 Busy Everywhere")),
    (Reject(603), "5.000", 0, ("CHANUNAVAIL", "21", "SIP 603 Decline")),
    (Ring(), "0.050", 0, ("NOANSWER", "0", "SIP 180 Ringing")),
    (SILENT, "0.050", 0, ("NOANSWER", "0")),
    (Unreachable(), "5.000", 0, ("CHANUNAVAIL", "3")),
]


@pytest.mark.parametrize(("behaviour", "limit", "result", "expected"), ENDS, ids=repr)
async def test_dial_ends_as_on_a_real_asterisk(
    pbx: SimulatedAsterisk,
    behaviour: Behaviour,
    limit: str,
    result: int,
    expected: tuple[str, ...],
) -> None:
    async def serve(call: AgiCall) -> None:
        answer = await call.command(exec_("Dial", f"PJSIP/100@um1,{limit}"))
        seen.append((answer.result, *await facts(call)))

    seen: list[tuple[object, ...]] = []
    async with served(pbx, serve):
        pbx.add_endpoint("um1", behaviour)
        await pbx.call("100", "1000", hold=None)
    assert seen == [(result, *expected)]
    assert pbx.endpoints["um1"].active == 0
    assert list(pbx.channels) == []


async def test_causes_and_words_outlive_their_dial(pbx: SimulatedAsterisk) -> None:
    async def serve(call: AgiCall) -> None:
        for destination in ("a", "b", "c", "nobody"):
            await call.command(exec_("Dial", f"PJSIP/1@{destination},0.02"))
            seen.append(await facts(call))
        await call.command(exec_("HangupCauseClear"))
        seen.append(await facts(call))

    seen: list[tuple[str, ...]] = []
    pbx.add_endpoint("a", Reject(503))
    pbx.add_endpoint("b", Ring())
    pbx.add_endpoint("c", Reject(486))
    async with served(pbx, serve):
        await pbx.call("100")
    full, ringing, busy = "SIP 503 Service Unavailable", "SIP 180 Ringing", "SIP 486 Busy Here"
    assert seen == [
        ("CONGESTION", "34", full),
        ("NOANSWER", "34", ringing, full),
        ("BUSY", "17", ringing, busy, full),
        ("CHANUNAVAIL", "3", ringing, busy, full),
        ("CHANUNAVAIL", "3"),
    ]


FORKS = [
    (("PJSIP/1@r486&PJSIP/1@r503,5"), "BUSY"),
    (("PJSIP/1@r503&PJSIP/1@nobody,5"), "CONGESTION"),
    (("PJSIP/1@r486&PJSIP/1@ring,0.03"), "NOANSWER"),
    (("PJSIP/1@r486&PJSIP/1@ans,5"), "ANSWER"),
    (("Local/1@nowhere,5"), "CHANUNAVAIL"),
    (("DAHDI/1/1,5"), "CHANUNAVAIL"),
    ((",5"), "CHANUNAVAIL"),
    (("garbage,5"), "INVALIDARGS"),
]


@pytest.mark.parametrize(("argument", "status"), FORKS)
async def test_forks_and_odd_arguments(pbx: SimulatedAsterisk, argument: str, status: str) -> None:
    async def serve(call: AgiCall) -> None:
        answer = await call.command(exec_("Dial", argument))
        seen.append((answer.result, (await facts(call))[0]))

    seen: list[tuple[object, ...]] = []
    behaviours: dict[str, Behaviour] = {
        "r486": Reject(486), "r503": Reject(503), "ring": Ring(), "ans": Answer()
    }  # fmt: skip
    for name, behaviour in behaviours.items():
        pbx.add_endpoint(name, behaviour)
    async with served(pbx, serve):
        result = await pbx.call("1", hold=0.01)
    assert seen == [(-1 if status in ("ANSWER", "INVALIDARGS") else 0, status)]
    assert result.dialled == (argument,)
    assert result.served_by == ("PJSIP/ans" if status == "ANSWER" else None)
    assert sum(endpoint.active for endpoint in pbx.endpoints.values()) == 0


def test_dial_arguments() -> None:
    parsed = parse_dial("PJSIP/1@a&DAHDI/3/1,0.500,g")
    assert parsed is not None
    assert parsed.destinations == (("PJSIP", "1@a"), ("DAHDI", "3/1"))
    assert parsed.timeout == 0.5
    assert parsed.options == "g"
    for endless in ("PJSIP/1@a", "PJSIP/1@a,", "PJSIP/1@a,0", "PJSIP/1@a,x"):
        parsed = parse_dial(endless)
        assert parsed is not None
        assert parsed.timeout == math.inf


@pytest.mark.parametrize(
    ("far_end", "options", "rang"),
    [
        (Silent(), "", False),
        (Silent(), ",R", True),
        (Ring(), "", True),
        (Unreachable(), ",R", False),
    ],
)
async def test_what_a_caller_hears_of_a_dial(
    pbx: SimulatedAsterisk, far_end: Behaviour, options: str, *, rang: bool
) -> None:
    async def serve(call: AgiCall) -> None:
        await call.command(exec_("Dial", f"PJSIP/1@um1,0.02{options}"))

    pbx.add_endpoint("um1", far_end)
    async with served(pbx, serve):
        assert (await pbx.call("1")).rang is rang


async def test_a_caller_who_cancels(pbx: SimulatedAsterisk) -> None:
    async def serve(call: AgiCall) -> None:
        answer = await call.command(exec_("Dial", "PJSIP/1@um1,5"))
        seen.append((answer.result, *await facts(call), call.hung_up))
        status = await call.command(command("CHANNEL STATUS"))
        seen.append((status.code, status.data))

    seen: list[tuple[object, ...]] = []
    endpoint = pbx.add_endpoint("um1", Ring())
    async with served(pbx, serve):
        result = await pbx.call("1", hang_up_after=0.05)
    assert seen == [
        (-1, "CANCEL", "127", "SIP 180 Ringing", True),
        (511, "Command Not Permitted on a dead channel or intercept routine"),
    ]
    assert (result.agi_status, result.sip, result.answered) == (AgiStatus.HANGUP, 487, False)
    assert (endpoint.offered, endpoint.active) == (1, 0)


async def test_a_caller_who_has_left_before_umpack_speaks(pbx: SimulatedAsterisk) -> None:
    async def serve(call: AgiCall) -> None:
        while not call.hung_up:  # noqa: ASYNC110 - HANGUP comes unasked
            await asyncio.sleep(0.001)
        answer = await call.command(exec_("Dial", "PJSIP/1@um1,5"))
        seen.append((answer.result, (await facts(call))[0]))

    seen: list[tuple[object, ...]] = []
    pbx.add_endpoint("um1")
    async with served(pbx, serve):
        result = await pbx.call("1", hang_up_after=0)
    assert seen == [(-1, "CANCEL")]
    assert (result.sip, pbx.endpoints["um1"].offered) == (487, 0)


ANSWERS: list[tuple[AgiCommand, int, int | str, str]] = [
    (command("NOOP"), 200, 0, ""),
    (command("GET VARIABLE", "NOPE"), 200, 0, ""),
    (command("GET VARIABLE", "X"), 200, 1, "a b"),
    (get_full_variable("NOPE"), 200, 1, ""),
    (get_full_variable("X"), 200, 1, "a b"),
    (command("SET VARIABLE", "__Y", "z"), 200, 1, ""),
    (command("CHANNEL STATUS"), 200, 4, ""),
    (command("BLAH"), 510, "", "Invalid or unknown command"),
    (exec_("Nosuch"), 200, -2, ""),
    (exec_("NoOp", "x"), 200, 0, ""),
    (AgiCommand(b"get full variable ${X}-${X}\n"), 200, 1, "a b-a b"),
    (command("EXEC"), 520, "", "520-Invalid command syntax.  Proper usage follows:"),
]


async def test_commands_are_answered_in_asterisks_words(pbx: SimulatedAsterisk) -> None:
    async def serve(call: AgiCall) -> None:
        await call.command(command("SET VARIABLE", "X", "a b"))
        for line, *_ in ANSWERS[:-1]:
            answer = await call.command(line)
            seen.append((line, answer.code, answer.result, answer.data))

    seen: list[tuple[object, ...]] = []
    async with served(pbx, serve):
        await pbx.call("1")
    assert seen == ANSWERS[:-1]


async def test_hanging_up_from_inside(pbx: SimulatedAsterisk) -> None:
    async def serve(call: AgiCall) -> None:
        answer = await call.command(exec_("Hangup", "34"))
        seen.append(answer.result)
        seen.append((await call.command(get_full_variable("HANGUPCAUSE"))).data)

    seen: list[object] = []
    async with served(pbx, serve):
        result = await pbx.call("1")
    assert seen == [-1, "34"]
    assert (result.sip, result.cause) == (503, 34)


async def test_failure_and_no_server_at_all_fall_back(pbx: SimulatedAsterisk) -> None:
    async def serve(call: AgiCall) -> None:
        call.fail()

    async with served(pbx, serve):
        assert (await pbx.call("1")).agi_status is AgiStatus.FAILURE
    refused = await pbx.call("1")
    assert (refused.agi_status, refused.sip) == (AgiStatus.FAILURE, 503)
    pbx.fallback = ("PJSIP/{called}@dead", "PJSIP/{called}@um1")
    pbx.add_endpoint("um1")
    hunted = await pbx.call("4711")
    assert hunted.dialled == ("PJSIP/4711@dead", "PJSIP/4711@um1")
    assert (hunted.sip, hunted.served_by) == (200, "PJSIP/um1")


@pytest.mark.parametrize(
    ("cause", "status"), [("34", 503), ("17", 486), ("", 603), ("44", 603), ("x", 603)]
)
async def test_the_dialplan_hangs_up_with_umpacks_cause(
    pbx: SimulatedAsterisk, cause: str, status: int
) -> None:
    async def serve(call: AgiCall) -> None:
        await call.command(command("SET VARIABLE", "UMPACK_CAUSE", cause))

    async with served(pbx, serve):
        assert (await pbx.call("1")).sip == status


async def test_a_call_goes_on_when_its_agi_server_dies(pbx: SimulatedAsterisk) -> None:
    async def serve(call: AgiCall) -> None:
        await call.command(exec_("Dial", "PJSIP/1@um1"))

    endpoint = pbx.add_endpoint("um1", Answer())
    async with served(pbx, serve) as server:
        running = asyncio.create_task(pbx.call("1", hold=0.2))
        async with asyncio.timeout(20):
            while not endpoint.answered:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert await server.close(0) == 1
        assert endpoint.active == 1
        result = await running
    assert (result.sip, endpoint.active) == (200, 0)


async def test_a_full_server_refuses(pbx: SimulatedAsterisk) -> None:
    async def serve(call: AgiCall) -> None:
        await call.command(exec_("Dial", "PJSIP/1@um1,5"))
        await call.command(command("SET VARIABLE", "UMPACK_CAUSE", (await facts(call))[1]))

    endpoint = pbx.add_endpoint("um1", Answer(), capacity=2, full_status=503)
    async with served(pbx, serve):
        results = await asyncio.gather(*(pbx.call("1", hold=0.1) for _ in range(3)))
    assert sorted(result.sip or 0 for result in results) == [200, 200, 503]
    assert (endpoint.most_active, endpoint.active, endpoint.refused) == (2, 0, 1)


async def test_its_time_can_run_fast() -> None:
    async def serve(call: AgiCall) -> None:
        await call.command(exec_("Dial", "PJSIP/1@um1,20"))

    async with SimulatedAsterisk(PbxPlan(speed=1000.0)) as pbx, served(pbx, serve):
        pbx.add_endpoint("um1", Answer(after=10))
        began = asyncio.get_running_loop().time()
        assert (await pbx.call("1", hold=180)).answered
        took = asyncio.get_running_loop().time() - began
        assert 0.19 <= took < 20.0
        pbx.set_behaviour("um1", Answer(after=30))  # longer than Dial waits
        assert not (await pbx.call("1", hold=180)).answered


async def test_a_crash_cuts_everything_and_it_boots_again() -> None:
    async def serve(call: AgiCall) -> None:
        try:
            await call.command(exec_("Dial", "PJSIP/1@um1,20"))
        except PeerGone as error:
            lost.append(type(error).__name__)

    lost: list[str] = []
    pbx = SimulatedAsterisk()
    await pbx.start()
    port = pbx.ami.port
    endpoint = pbx.add_endpoint("um1", Answer())
    async with served(pbx, serve):
        calls = [asyncio.create_task(pbx.call("1", hold=60)) for _ in range(3)]
        async with asyncio.timeout(20):
            while endpoint.answered < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        await pbx.crash()
        results = await asyncio.gather(*calls)
        assert [(r.sip, r.answered, r.cause) for r in results] == [(None, True, 0)] * 3
        with pytest.raises(StateError):
            await pbx.call("1")
        await pbx.start()
        assert pbx.ami.port == port
        assert (await pbx.call("1")).sip == 200
        await pbx.stop()
    assert lost == ["PeerGone"] * 3
    assert (endpoint.active, pbx.calls, list(pbx.channels)) == (0, 0, [])


async def test_a_cancelled_caller_leaves_nothing(pbx: SimulatedAsterisk) -> None:
    async def serve(call: AgiCall) -> None:
        with pytest.raises(PeerGone):
            await call.command(exec_("Dial", "PJSIP/1@um1,20"))

    endpoint = pbx.add_endpoint("um1", Answer())
    async with served(pbx, serve):
        call = asyncio.create_task(pbx.call("1", hold=60))
        async with asyncio.timeout(20):
            while not endpoint.active:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(20):
            while endpoint.active or pbx.calls:  # noqa: ASYNC110
                await asyncio.sleep(0.001)


async def test_what_makes_no_sense_is_our_fault(pbx: SimulatedAsterisk) -> None:
    with pytest.raises(OurFault):
        pbx.add_endpoint("um1", Clear(17))
    with pytest.raises(OurFault):
        Reject(200)
    with pytest.raises(OurFault):
        pbx.set_behaviour("nobody", Ring())
    with pytest.raises(OurFault):
        await pbx.call("1", span=1)
    with pytest.raises(StateError):
        await pbx.start()


def test_causes_on_the_wire() -> None:
    declined = {cause for cause in range(1, 128) if sip_of_cause(cause) == 603}
    assert declined == set(range(1, 128)) - set(CAUSE_TO_SIP)
    assert {6, 16, 41, 44, 47} <= declined
    assert [cause_of_sip(status) for status in (486, 503, 580, 599, 699)] == [17, 34, 34, 38, 127]
    assert [dial_status(causes) for causes in ([], [16], [3], [3, 34], [34, 17])] == [
        "NOANSWER", "NOANSWER", "CHANUNAVAIL", "CONGESTION", "BUSY",
    ]  # fmt: skip


@given(st.lists(st.text().filter(lambda t: not set(t) & set("\r\n\0"))))
def test_quoted_words_are_read_back_as_they_were(arguments: list[str]) -> None:
    try:
        line = command("EXEC", *arguments)
    except OurFault:
        return
    assert split_words(line.decode()[:-1]) == ("EXEC", *arguments)
