"""What the manager interface tells of a call, the same for the simulated and the real PBX."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from drivers.asterisk.ami import AmiEvent, AmiLink, LinkUp
from drivers.asterisk.ami_wire import AmiCodec
from simulators.ami_server import GREETING
from simulators.endpoints import Answer, Reject
from tests import sites
from tests.contract.pbx import ContractPbx, Servers, server, site_of, umpack_with

NUMBER = "49302000100"
DIALLING = frozenset({"DialBegin", "DialState", "DialEnd"})
A, B = server("a"), server("b")


def captured() -> dict[str, list[str]]:
    """Headers in wire order, as a real Asterisk 22 has sent them."""
    file = Path(__file__).parents[1] / "data/ami/call-answered.txt"
    said = AmiCodec().feed(GREETING + file.read_bytes().removeprefix(GREETING))
    return {one.name: list(one) for one in said if isinstance(one, AmiEvent)}


@contextlib.asynccontextmanager
async def listening(pbx: ContractPbx, names: frozenset[str]) -> AsyncIterator[list[AmiEvent]]:
    """A link of its own beside umpack's driver; the list fills while it is open."""
    link = AmiLink(pbx.ami, events=names)
    heard: list[AmiEvent] = []
    up = asyncio.Event()

    async def listen() -> None:
        async for item in link.events:
            match item:
                case LinkUp():
                    up.set()
                case AmiEvent():
                    heard.append(item)
                case _:
                    pass

    tasks = [asyncio.create_task(link.run()), asyncio.create_task(listen())]
    try:
        async with asyncio.timeout(20):
            await up.wait()
        yield heard
    finally:
        tasks[0].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def settled(heard: list[AmiEvent], last: str, count: int) -> None:
    """Wait until the last event has come so often."""
    async with asyncio.timeout(20):
        while sum(event.name == last for event in heard) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_call_that_fails_over_is_told_in_the_same_words(pbx: ContractPbx) -> None:
    site = site_of([A, B], [sites.plan("um", sites.all_of(A, B))])
    servers: Servers = {"a": Reject(503), "b": Answer(0.05)}
    async with umpack_with(pbx, servers, site) as umpack, listening(pbx, DIALLING) as heard:
        assert (await pbx.call(NUMBER)).answered
        await settled(heard, "DialEnd", 2)
        told = [(event.name, event.get("DialStatus") or "") for event in heard]
        assert [one for one in told if one[0] != "DialState"] == [
            ("DialBegin", ""), ("DialEnd", "CONGESTION"), ("DialBegin", ""), ("DialEnd", "ANSWER"),
        ]  # fmt: skip
        assert ("DialState", "RINGING") in told
        # By this name the driver finds the caller's lease.
        await umpack.check_clean(1)
        (record,) = umpack.records()
        assert {event.get("Uniqueid") for event in heard} == {
            record.call.id.removeprefix("main-").rpartition("-")[0]
        }
        assert {event.get("DialString") for event in heard if event.name == "DialBegin"} == {
            f"{NUMBER}@a", f"{NUMBER}@b",
        }  # fmt: skip
        before = captured()
        assert {event.name: list(event) for event in heard} == {
            name: before[name] for name in DIALLING
        }
