from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from drivers.asterisk.ami import AmiAddress, AmiAnswer, AmiLink, AmiRefused, Backoff
from drivers.asterisk.last_order import FAMILY, LastOrderKeeper
from simulators.asterisk import SimulatedAsterisk
from tests.sites import MAIN, all_of, one_pack, plan, site, take, trunk
from tests.unit.daemons import logged, until
from umpack.core.administration import Drain
from umpack.core.distributor import Distributor
from umpack.core.errors import PeerGone
from umpack.core.pack import Strategy
from umpack.core.trunk import PbxId, TrunkId
from umpack.dialplan import order

A, B = trunk("a", 2), trunk("b", 2)
FAR = trunk("far", 2, pbx=PbxId("south"))
CYCLIC = one_pack(A, B, strategy=Strategy.CYCLIC)


class Database:
    """Takes what is put into it; `fault` is raised instead."""

    version = "11.0.0"

    def __init__(self) -> None:
        self.puts: list[tuple[str, str]] = []
        self.fault: Exception | None = None

    async def action(self, name: str, headers: dict[str, str]) -> AmiAnswer:
        assert (name, headers["Family"]) == ("DBPut", FAMILY)
        self.puts.append((headers["Key"], headers["Val"]))
        if self.fault is not None:
            raise self.fault
        return AmiAnswer({"Response": "Success"})


def test_writer_and_reader_mean_the_same_place() -> None:
    assert order.FAMILY == FAMILY


async def test_only_what_has_changed_is_written() -> None:
    distributor, database = Distributor(CYCLIC), Database()
    keeper = LastOrderKeeper(distributor, database, MAIN)
    assert await keeper.once() == 2
    assert database.puts == [("order/um", "1//"), ("start/um", "0")]
    assert await keeper.once() == 0
    take(distributor)
    take(distributor)
    assert await keeper.once() == 1
    assert database.puts[2:] == [("start/um", "2")]
    distributor.eject(TrunkId("a"), 0.0, "test")
    distributor.drain(Drain("b", "anna", "", 0.0))
    assert await keeper.once() == 1
    distributor.restore_trunk(TrunkId("a"), 0.0, "test")
    distributor.enable("b")
    assert await keeper.once() == 1
    assert [value for key, value in database.puts[3:]] == ["1/b/a", "1//"]


async def test_a_reload_is_written_and_other_pbxs_are_not() -> None:
    distributor, database = Distributor(one_pack(A)), Database()
    keeper = LastOrderKeeper(distributor, database, MAIN)
    await keeper.once()
    packs = [plan("um", all_of(A)), plan("new", all_of(B), Strategy.CYCLIC), plan("f", all_of(FAR))]
    distributor.reload(site([A, B, FAR], packs))
    assert await keeper.once() == 2
    assert database.puts == [("order/um", "1//"), ("order/new", "1//"), ("start/new", "0")]


async def test_what_was_not_written_is_written_later() -> None:
    distributor, database = Distributor(one_pack(A)), Database()
    keeper = LastOrderKeeper(distributor, database, MAIN)
    database.fault = PeerGone("no link")
    with pytest.raises(PeerGone):
        await keeper.once()
    database.fault = None
    assert await keeper.once() == 1


async def test_refused_once_it_waits_for_the_next_link() -> None:
    database = Database()
    database.fault = AmiRefused("DBPut: Permission denied")
    keeper = LastOrderKeeper(Distributor(one_pack(A)), database, MAIN, every=0.005)
    task = asyncio.create_task(keeper.run())
    try:
        with logged("WARNING") as lines:
            await until(lambda: lines)
            await asyncio.sleep(0.05)
            assert len(database.puts) == 1
            assert "write = system" in lines[0]
            database.version = ""
            await asyncio.sleep(0.05)
            database.version, database.fault = "11.0.0", None
            await until(lambda: len(database.puts) == 2)
            await asyncio.sleep(0.05)
            assert (len(database.puts), len(lines)) == (2, 1)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def kept(pbx: SimulatedAsterisk, distributor: Distributor) -> AsyncIterator[AmiLink]:
    link = AmiLink(
        AmiAddress("127.0.0.1", pbx.ami.port, "umpack", "umpack"),
        events=frozenset(),
        backoff=Backoff(initial=0.01, maximum=0.02),
    )
    keeper = LastOrderKeeper(distributor, link, MAIN, every=0.01)
    tasks = [asyncio.create_task(link.run()), asyncio.create_task(keeper.run())]
    try:
        yield link
    finally:
        for task in reversed(tasks):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_a_pbx_that_has_lost_its_database_gets_it_again() -> None:
    distributor = Distributor(CYCLIC)
    async with SimulatedAsterisk() as pbx, kept(pbx, distributor) as link:
        whole = {("umpack", "order/um"): "1//", ("umpack", "start/um"): "0"}
        await until(lambda: pbx.database == whole)
        take(distributor)
        await until(lambda: pbx.database["umpack", "start/um"] == "1")
        await pbx.refuse_ami(on=True)
        await until(lambda: not link.version)
        pbx.database.clear()
        await asyncio.sleep(0.05)
        await pbx.refuse_ami(on=False)
        await until(lambda: pbx.database == whole | {("umpack", "start/um"): "1"})
