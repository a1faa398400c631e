"""Trunk health as an operator meets it: calls fail on a real connection, and people are told."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockBuster, blockbuster_ctx

from tests.sites import MAIN, call, take, trunk
from tests.unit.agi_peer import placed, takes_calls
from tests.unit.daemons import (
    TRUNKS,
    RunningDaemon,
    daemon_at,
    daemon_of,
    logged,
    port_of,
    program,
    text,
    until,
)
from tests.unit.drivers.rig import pbx_of
from umpack import clock
from umpack.core.channel import ChannelId
from umpack.core.health_states import AlarmKind
from umpack.core.trunk import TrunkId
from umpack.web.client import ControlRefused

UM1, UM2 = TrunkId("um1"), TrunkId("um2")


def two_trunks(rest: str = "health: {suspect_after: 3}\n") -> str:
    """Linear, so that um1 comes first as long as nothing is held against it."""
    trunks = "".join(
        f"  {name}: {{kind: sip, pbx: main, endpoint: {name}, channels: 3}}\n"
        for name in ("um1", "um2")
    )
    packs = "  um: {strategy: linear, members: [um1, um2], answer_within: 5s}\n"
    return text(trunks=trunks, packs=packs, rest=rest)


@pytest.fixture(autouse=True)
def nothing_blocks() -> Iterator[BlockBuster]:
    """A blocking call of ours on the event loop is an error."""
    with blockbuster_ctx(["umpack", "drivers"]) as buster:
        yield buster


async def fails_on_um1(port: int) -> None:
    """A call that meets cause 41 on um1 and is served by um2."""
    async with await placed(port) as caller:
        assert await caller.dialled() == "PJSIP/100@um1"
        caller.end_dial("CHANUNAVAIL", 41)
        assert await caller.dialled() == "PJSIP/100@um2"
        await caller.finish("ANSWER", 16)


async def trunk_rows(running: RunningDaemon) -> dict[str, Any]:
    return {row["id"]: row for row in await running.ask("get", "/v1/trunks")}


def remembered(directory: Path) -> dict[str, str]:
    """States on disk by trunk."""
    path = f"file:{directory / 'j.db'}?mode=ro"
    with contextlib.closing(sqlite3.connect(path, uri=True)) as connection:
        return dict(connection.execute("SELECT trunk, state FROM trunks").fetchall())


async def test_three_failures_eject_a_trunk_and_restore_brings_it_back(tmp_path: Path) -> None:
    with logged() as lines:
        async with daemon_of(tmp_path, two_trunks()) as running:
            for _ in range(3):
                assert (await trunk_rows(running))["um1"]["health"]["state"] == "up"
                await fails_on_um1(running.port)
            health = (await trunk_rows(running))["um1"]["health"]
            assert (health["state"], health["admission"]) == ("ejected", "closed")
            assert health["why"].startswith("ejected 3")
            assert health["why"].endswith(" s, 1st time, 3× cause 41 temporary failure")
            assert health["next"].startswith("trial in ")
            (um,) = (await running.ask("get", "/v1/status"))["packs"]
            assert (um["first_choice"], um["reserve"], um["closed"]) == (3, 0, 3)
            (change,) = await running.ask("get", "/v1/changes", trunk="um1")
            assert (change["from"], change["to"], change["why"]) == (
                "up", "ejected", health["why"],
            )  # fmt: skip
            assert await running.ask("get", "/v1/changes", trunk="um2") == []
            # The fourth call does not meet it, and says why.
            async with await placed(running.port) as caller:
                assert await caller.dialled() == "PJSIP/100@um2"
                (living,) = await running.ask("get", "/v1/calls", state="living")
                assert living["exclusions"] == [
                    {"trunk": "um1", "channels": 3, "why": f"ejected: {health['why']}"}
                ]
            answer = await running.ask(
                "post", "/v1/trunks/um1/restore", {"by": "eva\n", "why": "cable in again"}
            )
            assert (answer["health"]["state"], answer["health"]["next"]) == ("up", "")
            async with await placed(running.port) as caller:
                assert await caller.dialled() == "PJSIP/100@um1"
            metrics = await running.daemon.metrics()
    said = "".join(lines)
    assert f"WARNING trunk um1: up → ejected: {health['why']}\n" in said
    assert "INFO trunk um1 restored by eva\\n: cable in again\n" in said
    assert "INFO trunk um1: ejected → up: restored by eva\\n: cable in again\n" in said
    assert 'umpack_trunk_state_changes_total{to="ejected",trunk="um1"} 1.0\n' in metrics
    assert 'umpack_trunk_state{state="up",trunk="um1"} 1.0\n' in metrics
    assert 'umpack_trunk_state{state="ejected",trunk="um1"} 0.0\n' in metrics


async def test_an_ejection_ends_by_itself_without_any_call(tmp_path: Path) -> None:
    async with daemon_of(tmp_path, two_trunks()) as running:
        await running.ask("post", "/v1/trunks/um1/eject", {"by": "eva", "seconds": 0.3})
        await until(lambda: running.daemon.distributor.health[UM1].state.value == "half-open")
        changes = await running.ask("get", "/v1/changes")
        assert [change["to"] for change in changes] == ["half-open", "ejected"]
        # The trial: one call, which is answered, and the trunk takes load again.
        async with await placed(running.port) as caller:
            assert await caller.dialled() == "PJSIP/100@um1"
            assert (await trunk_rows(running))["um1"]["health"]["next"] == "trial call under way"
            async with await placed(running.port) as other:
                assert await other.dialled() == "PJSIP/100@um2"
            await caller.finish("ANSWER", 16)
        health = (await trunk_rows(running))["um1"]["health"]
        assert (health["state"], health["limit"]) == ("slow start", 1)
        assert health["next"].startswith("1 of 3 calls at once, all in ")


async def test_the_last_usable_trunk_is_not_ejected_by_an_operator(tmp_path: Path) -> None:
    async with daemon_of(tmp_path, two_trunks()) as running:
        await running.ask("post", "/v1/drain", {"target": "um2", "by": "eva"})
        answer = await running.ask("post", "/v1/trunks/um1/eject", {"by": "tom"})
        assert (answer["health"]["state"], answer["health"]["admission"]) == ("suspect", "reserve")
        assert answer["health"]["why"] == "um has nothing else left"
        async with await placed(running.port) as caller:
            assert await caller.dialled() == "PJSIP/100@um1"


async def test_wrong_trunks_are_told(tmp_path: Path) -> None:
    async with daemon_of(tmp_path, two_trunks()) as running:
        for verb in ("eject", "restore"):
            with pytest.raises(ControlRefused, match="no trunk 'um1:1'"):
                await running.ask("post", f"/v1/trunks/um1:1/{verb}", {})
        with pytest.raises(ControlRefused, match="seconds is a number above 0"):
            await running.ask("post", "/v1/trunks/um1/eject", {"seconds": -5})


async def test_a_drain_is_not_undone_by_health_nor_health_by_a_drain(tmp_path: Path) -> None:
    async with daemon_of(tmp_path, two_trunks()) as running:
        await running.ask("post", "/v1/drain", {"target": "um1", "by": "eva", "why": "swap"})
        await running.ask("post", "/v1/trunks/um1/eject", {"by": "tom", "seconds": 0.2})
        await until(lambda: running.daemon.distributor.health[UM1].state.value == "half-open")
        await running.ask("post", "/v1/trunks/um1/restore", {"by": "tom"})
        row = (await trunk_rows(running))["um1"]
        assert row["health"]["state"] == "up"
        assert row["administration"]["state"] == "out of service"
        assert row["administration"]["why"] == ["drained by eva: swap"]
        async with await placed(running.port) as caller:
            assert await caller.dialled() == "PJSIP/100@um2"
        # And the other way round.
        await running.ask("post", "/v1/trunks/um1/eject", {"by": "tom", "seconds": 200})
        await running.ask("post", "/v1/enable", {"target": "um1", "by": "eva"})
        row = (await trunk_rows(running))["um1"]
        assert (row["administration"]["state"], row["health"]["state"]) == ("in service", "ejected")
        async with await placed(running.port) as caller:
            assert await caller.dialled() == "PJSIP/100@um2"
        # A drain with an end does not end the ejection, either.
        soon = running.daemon.wall() + 0.3
        await running.ask("post", "/v1/drain", {"target": "um1", "until": soon})
        await until(lambda: not running.daemon.distributor.drains)
        assert (await trunk_rows(running))["um1"]["health"]["state"] == "ejected"


async def test_health_is_taken_up_again_at_a_restart(tmp_path: Path) -> None:
    async with daemon_of(tmp_path, two_trunks()) as running:
        await running.ask("post", "/v1/trunks/um1/eject", {"by": "eva", "seconds": 200})
        running.daemon.distributor.alarm_raised(UM2, AlarmKind.UNREACHABLE, clock.now())
        before = (await trunk_rows(running))["um1"]["health"]
        await until(lambda: remembered(tmp_path) == {"um1": "suspect", "um2": "alarmed"})
        await running.ask("post", "/v1/drain", {"target": "um1", "by": "eva"})
    with logged() as lines:
        async with daemon_of(tmp_path) as running:
            rows = await trunk_rows(running)
    assert before["why"] == "um has nothing else left"
    assert rows["um1"]["health"]["why"] == before["why"]
    assert rows["um1"]["health"]["since"] == before["since"]
    assert rows["um1"]["administration"]["state"] == "out of service"
    # An alarm is for the PBX to repeat.
    assert rows["um2"]["health"]["state"] == "suspect"
    assert rows["um2"]["health"]["why"] == "before the restart: unreachable"
    assert not any("→" in line for line in lines if line.startswith("WARNING trunk"))


async def test_what_a_state_does_not_show_is_saved_at_the_stop(tmp_path: Path) -> None:
    """Two of three failures are nothing to see yet; a restart does not forgive them."""
    async with daemon_of(tmp_path, two_trunks()) as running:
        for _ in range(2):
            await fails_on_um1(running.port)
    async with daemon_of(tmp_path) as running:
        assert (await trunk_rows(running))["um1"]["health"]["state"] == "up"
        await fails_on_um1(running.port)
        assert (await trunk_rows(running))["um1"]["health"]["state"] == "ejected"


async def test_a_trunk_that_is_away_is_remembered(tmp_path: Path) -> None:
    async with daemon_of(tmp_path, two_trunks()) as running:
        await running.ask("post", "/v1/trunks/um2/eject", {"by": "eva", "seconds": 250})
    only_um1 = two_trunks().replace("[um1, um2]", "[um1]")
    only_um1 = "".join(line for line in only_um1.splitlines(True) if not line.startswith("  um2"))
    async with daemon_of(tmp_path, only_um1) as running:
        assert list(await trunk_rows(running)) == ["um1"]
        running.write(two_trunks())
        await running.daemon.reload()
        await asyncio.sleep(0.3)  # the pump has come round
        health = (await trunk_rows(running))["um2"]["health"]
        assert (health["state"], health["why"]) == ("ejected", "ejected 250 s, 1st time, by eva")


async def test_a_pump_interval_after_it_an_ejection_survives_kill_9(tmp_path: Path) -> None:
    async with program(tmp_path, two_trunks()) as daemon:
        port = await daemon.port()
        for _ in range(3):
            await fails_on_um1(port)
        await until(lambda: "trunk um1: up → ejected" in daemon.log)
        await until(lambda: remembered(tmp_path).get("um1") == "ejected", 2.0)
        before = (await daemon.umpack("trunk", "list", "--json")).json
        await daemon.end(signal.SIGKILL)
    async with program(tmp_path) as daemon:
        after = (await daemon.umpack("trunk", "list", "--json")).json
        assert [row["health"]["state"] for row in after] == ["ejected", "up"]
        for key in ("since", "why"):
            assert after[0]["health"][key] == before[0]["health"][key]
        async with await placed(await daemon.port()) as caller:
            assert await caller.dialled() == "PJSIP/100@um2"
        assert await daemon.end() == 0


async def test_many_things_at_once_leave_one_truth(tmp_path: Path) -> None:
    """Operators on both trunks at once, calls in between: the disk holds what the daemon thinks."""
    async with daemon_of(tmp_path, two_trunks()) as running:

        async def play(trunk: str) -> None:
            for n in range(5):
                await running.ask("post", f"/v1/trunks/{trunk}/eject", {"seconds": 100 + n})
                await running.ask("post", f"/v1/trunks/{trunk}/restore", {"why": str(n)})
            await running.ask("post", f"/v1/trunks/{trunk}/eject", {"seconds": 200})

        await asyncio.gather(play("um1"), play("um2"))
        states = {row["id"]: row["health"]["state"] for row in (await trunk_rows(running)).values()}
        assert "suspect" in states.values()
        await until(lambda: remembered(tmp_path) == states)
        shown = await running.ask("get", "/v1/changes")
        assert shown == sorted(shown, key=lambda change: -change["at"])


async def test_leaks_are_loud_and_adopted_calls_are_counted(tmp_path: Path) -> None:
    with logged() as lines:
        async with daemon_of(tmp_path, two_trunks()) as running:
            distributor = running.daemon.distributor
            leaked = take(distributor, now=clock.now())
            distributor.abandon(leaked.lease.token, clock.now(), "no channel in the PBX")
            found = distributor.adopt(ChannelId("um2:1"), call(), clock.now())
            assert found is not None
            distributor.abandon(found.token, clock.now(), "over")
            ended = await running.ask("get", "/v1/calls")
            assert sorted(row["ending"] for row in ended) == ["adopted", "leaked"]
            metrics = await running.daemon.metrics()
    assert "umpack_leaks_total 1.0\n" in metrics
    assert "umpack_adopted_calls_total 1.0\n" in metrics
    calls = [line.split()[0] for line in lines if " call " in line]
    assert sorted(calls) == ["INFO", "WARNING"]


async def test_after_a_restart_calls_are_the_dialplans_until_the_living_are_known(
    tmp_path: Path,
) -> None:
    """There is no manager here to tell of them, so for a second; a first start waits for nobody."""
    async with daemon_of(tmp_path, two_trunks()) as running, await placed(running.port) as caller:
        assert await caller.dialled() == "PJSIP/100@um1"
    daemon = await daemon_at(tmp_path / "umpack.yaml")
    async with daemon:
        async with await placed(port_of(daemon)) as caller:
            assert await caller.reader.readline() == b"failure\n"
        await takes_calls(port_of(daemon))
        async with await placed(port_of(daemon)) as caller:
            assert await caller.dialled() == "PJSIP/100@um1"


async def test_the_end_of_a_link_that_has_left_is_none_of_its_successors(tmp_path: Path) -> None:
    def has(name: str, port: int) -> str:
        ami = f"{{host: 127.0.0.1, port: {port}, user: umpack, secret: umpack}}"
        pbxs = f'  {name}: {{ami: {ami}, agi: {{listen: "127.0.0.1:0"}}}}\n'
        return text(pbxs=pbxs, trunks=TRUNKS.replace("main", name))

    async with (
        pbx_of([trunk("um1", 3)], []) as asterisk,
        daemon_of(tmp_path, has("main", asterisk.ami.port)) as running,
    ):
        daemon, distributor = running.daemon, running.daemon.distributor

        def links() -> list[Any]:
            return [pbx["link"] for pbx in daemon.status()["pbxs"]]

        await until(lambda: links() == ["up"])
        caller = await placed(running.port)
        await caller.dialled()
        for at in (has("other", 1), has("main", asterisk.ami.port)):
            running.write(at)
            await daemon.reload()
        await until(lambda: links() == ["up", "up"])
        asterisk.agi_to("127.0.0.1", daemon.agi_ports[MAIN])
        await asterisk.call("100", hold=0.0)
        await until(lambda: distributor._hints.get(MAIN))
        await caller.finish("ANSWER", 16)
        await caller.__aexit__(None, None, None)
        await until(lambda: links() == ["up"])
        assert distributor._hints[MAIN]
        assert MAIN not in distributor._blind
