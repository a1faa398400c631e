"""The daemon in one piece: real connections, sockets and files, and a PBX link that is down."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from blockbuster import BlockBuster, blockbuster_ctx

from tests.ports import free_ports
from tests.unit.agi_peer import placed
from tests.unit.daemons import (
    PACKS,
    SECRET,
    TRUNKS,
    daemon_at,
    daemon_of,
    journal_rows,
    logged,
    pbx,
    pointers,
    port_of,
    program,
    text,
    until,
)
from umpack.core.errors import ConfigError, OurFault
from umpack.web.client import ControlRefused


@pytest.fixture(autouse=True)
def nothing_blocks() -> Iterator[BlockBuster]:
    """A blocking call of ours on the event loop is an error."""
    with blockbuster_ctx(["umpack", "drivers"]) as buster:
        # Asks for the current directory only, and only to print a traceback.
        abspath = buster.functions["os.path.abspath"]
        abspath.can_block_in("loguru/_better_exceptions.py", "_is_file_mine")
        yield buster


async def test_calls_get_channels_in_turn_and_end_in_one_row_each(tmp_path: Path) -> None:
    async with daemon_of(tmp_path) as running:
        callers = [await placed(running.port) for _ in range(4)]
        for caller in callers[:3]:
            assert await caller.dialled() == "PJSIP/100@um1"
        full = await callers[3].left()
        assert (full.status, full.variables) == ("SUCCESS", {"UMPACK_CAUSE": "34"})
        status = await running.ask("get", "/v1/status")
        assert status["calls"] == 3
        assert status["pbxs"][0]["link"] != "up"
        assert (await callers[0].finish("ANSWER", 16)).variables == {"UMPACK_CAUSE": "16"}
        assert (await callers[1].finish("BUSY", 17)).variables == {"UMPACK_CAUSE": "17"}
        callers[2].hang_up()
        await callers[2].left()
        async with await placed(running.port, "555") as stranger:
            assert (await stranger.left()).variables == {"UMPACK_CAUSE": "1"}
        async with await placed(running.port) as broken:
            await broken.dialled()
            broken.cut()
        await until(lambda: len(running.daemon.distributor.ledger) == 0)
        for caller in callers:
            await caller.__aexit__(None, None, None)
    rows = journal_rows(tmp_path)
    assert sorted((ending, cause, channel) for _, ending, cause, channel in rows) == [
        ("abandoned", 16, "um1:1"),
        ("abandoned", 16, "um1:3"),
        ("connected", 16, "um1:1"),
        ("declined", 17, "um1:2"),
        ("refused", 1, None),
        ("refused", 34, None),
    ]
    assert len({id_ for id_, *_ in rows}) == len(rows)


async def test_a_call_is_explained_while_it_lives_and_afterwards(tmp_path: Path) -> None:
    async with daemon_of(tmp_path) as running, await placed(running.port) as caller:
        await caller.dialled()
        (living,) = await running.ask("get", "/v1/calls", state="living")
        assert (living["state"], living["channel"]) == ("dialling", "um1:1")
        assert await running.ask("call", living["id"]) == living
        await caller.finish("ANSWER", 16)
        ended = await running.ask("call", living["id"])
        assert (ended["ending"], ended["attempts"][0]["position"]) == ("connected", 1)
        assert await running.ask("get", "/v1/calls", called="100") == [ended]
        assert await running.ask("get", "/v1/calls", called="10") == []


async def test_status_and_control_socket(tmp_path: Path) -> None:
    async with daemon_of(tmp_path) as running:
        mode = (await asyncio.to_thread(running.socket.stat)).st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o660
        status = await running.ask("get", "/v1/status")
        assert status["node"] == "here"
        assert status["configuration"]["error"] is None
        assert [(p["id"], p["idle"], p["next"]) for p in status["packs"]] == [("um", 3, "um1:1")]
    assert not await asyncio.to_thread(running.socket.exists)


async def test_a_second_daemon_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    async with daemon_of(tmp_path) as running:
        second = await daemon_at(running.file)
        with pytest.raises(OurFault, match=r"another umpack is listening on .*c\.sock"):
            await second.__aenter__()
        assert (await running.ask("get", "/v1/status"))["calls"] == 0
    async with daemon_of(tmp_path) as running:
        assert (await running.ask("get", "/v1/status"))["calls"] == 0


async def test_a_socket_left_by_a_crash_is_replaced_but_no_file(tmp_path: Path) -> None:
    import socket

    def leave() -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / "c.sock"))

    await asyncio.to_thread(leave)
    async with daemon_of(tmp_path) as running:
        assert (await running.ask("get", "/v1/status"))["calls"] == 0
    precious = tmp_path / "c.sock"
    precious.write_text("a letter")
    with pytest.raises(OurFault, match="something that is no socket"):
        async with daemon_of(tmp_path):
            pass
    assert precious.read_text() == "a letter"


async def test_what_cannot_start_says_why_and_leaves_nothing_open(tmp_path: Path) -> None:
    async with daemon_of(tmp_path) as first:
        other = tmp_path / "other"
        other.mkdir()
        with pytest.raises(OurFault, match=rf"pbx b: cannot listen on 127.0.0.1:{first.port}"):
            async with daemon_of(
                other, text(pbxs=pbx("main") + pbx("b", first.port)).replace("pbx: b", "pbx: main")
            ):
                pass
        async with daemon_of(other, text()):
            pass
    (tmp_path / "file").write_text("")
    with pytest.raises(OurFault, match=r"cannot listen on .*file/c\.sock: File exists"):
        async with daemon_of(tmp_path, text().replace("c.sock", "file/c.sock")):
            pass
    with pytest.raises(OurFault, match=r"journal .*j\.db"):
        async with daemon_of(tmp_path, text().replace("j.db", "file/j.db")):
            pass


# --- reload --------------------------------------------------------------------------------------


async def test_reload_under_a_running_call(tmp_path: Path) -> None:
    trunks = TRUNKS + "  old: {kind: sip, pbx: main, endpoint: old, channels: 1}\n"
    packs = PACKS.replace("[um1]", "[um1, old]")
    async with daemon_of(tmp_path, text(trunks=trunks, packs=packs)) as running:
        callers = [await placed(running.port) for _ in range(4)]
        for caller in callers:
            await caller.dialled()
        assert callers[3].dials == ["PJSIP/100@old"]
        running.write(text(packs=PACKS.replace("5s", "7s")))
        changes = await running.daemon.reload()
        assert changes == ["trunk old removed", "pack um changed"]
        status = await running.ask("get", "/v1/status")
        old = next(t for t in status["trunks"] if t["id"] == "old")
        assert (old["administration"]["state"], old["health"]) == ("draining", None)
        assert status["calls"] == 4
        await callers[3].finish("ANSWER", 16)
        status = await running.ask("get", "/v1/status")
        assert [t["id"] for t in status["trunks"]] == ["um1"]
        # The pointer stood on a channel that has gone: its predecessor's successor is next.
        await callers[0].finish("ANSWER", 16)
        await callers[1].finish("ANSWER", 16)
        assert (await running.ask("get", "/v1/status"))["packs"][0]["next"] == "um1:1"
        for caller in callers:
            caller.cut()
            await caller.__aexit__(None, None, None)


async def test_a_pack_changed_keeps_its_pointer(tmp_path: Path) -> None:
    async with daemon_of(tmp_path) as running:
        for _ in range(2):
            async with await placed(running.port) as caller:
                await caller.dialled()
                await caller.finish("ANSWER", 16)
        running.write(text(trunks=TRUNKS.replace("channels: 3", "channels: 5")))
        await running.daemon.reload()
        status = await running.ask("get", "/v1/status")
        assert [(p["last"], p["next"]) for p in status["packs"]] == [("um1:2", "um1:3")]


async def test_a_bad_file_changes_nothing_and_status_says_why(tmp_path: Path) -> None:
    async with daemon_of(tmp_path) as running:
        running.write(text(packs="  um: {strategy: cyclic, members: [nowhere]}\n"))
        with pytest.raises(ConfigError, match="nowhere"):
            await running.daemon.reload()
        with pytest.raises(ControlRefused, match=r"umpack.yaml:\d+: packs.um.members"):
            await running.ask("post", "/v1/reload")
        error = (await running.ask("get", "/v1/status"))["configuration"]["error"]
        assert "nowhere" in error
        async with await placed(running.port) as caller:
            await caller.dialled()
        running.write(text())
        assert (await running.ask("post", "/v1/reload")) == {"loaded": True, "changes": []}
        assert (await running.ask("get", "/v1/status"))["configuration"]["error"] is None


async def test_a_pbx_that_cannot_listen_changes_nothing(tmp_path: Path) -> None:
    taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    async with taken, daemon_of(tmp_path) as running:
        running.write(text(pbxs=pbx() + pbx("b", port), packs=PACKS.replace("5s", "9s")))
        with pytest.raises(OurFault, match="pbx b: cannot listen"):
            await running.daemon.reload()
        assert list(running.daemon.agi_ports) == ["main"]
        assert running.daemon.distributor.packs["um"].plan.answer_within == 5.0  # type: ignore[index]
        status = await running.ask("get", "/v1/status")
        assert "pbx b: cannot listen" in status["configuration"]["error"]


async def test_a_pbx_that_is_only_named_anew_is_told_what_that_needs(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with daemon_of(tmp_path, text(pbxs=pbx("main", port))) as running:
        running.write(text(pbxs=pbx("hq", port), trunks=TRUNKS.replace("main", "hq")))
        with pytest.raises(OurFault, match=r"pbx main listens on .* a new name .* needs a restart"):
            await running.daemon.reload()
        assert list(running.daemon.agi_ports) == ["main"]


async def test_pbxs_come_and_go(tmp_path: Path) -> None:
    async with daemon_of(tmp_path) as running:
        running.write(
            text(
                pbxs=pbx("second"),
                trunks=TRUNKS.replace("main", "second"),
            )
        )
        caller = await placed(running.port)
        await caller.dialled()
        changes = await running.daemon.reload()
        assert changes == [
            "trunk um1 changed",
            "routes changed",
            "pbx second added",
            "pbx main removed",
        ]
        status = await running.ask("get", "/v1/status")
        assert [(p["id"], p["leaving"]) for p in status["pbxs"]] == [
            ("second", False),
            ("main", True),
        ]
        assert status["calls"] == 1
        await caller.finish("ANSWER", 16)
        await caller.__aexit__(None, None, None)
        await until(lambda: len(running.daemon.status()["pbxs"]) == 1)
        async with await placed(running.daemon.agi_ports["second"]) as again:  # type: ignore[index]
            await again.dialled()
    assert [row[1] for row in journal_rows(tmp_path)][:1] == ["connected"]


async def test_what_a_reload_cannot_do_is_said_each_time(tmp_path: Path) -> None:
    async with daemon_of(tmp_path) as running:
        new = text(pbxs=pbx().replace("port: 1", "port: 2")).replace("node: here", "node: there")
        running.write(new.replace("j.db", "k.db").replace("c.sock", "d.sock"))
        wanted = [
            "node: the new name needs a restart",
            "control: the new socket needs a restart",
            "journal: its new path or time needs a restart",
            "pbx main: its new addresses or secret need a restart",
        ]
        assert await running.daemon.reload() == wanted
        running.write(running.file.read_text() + "log: {level: debug}\n")
        wanted.append("log: its change needs a restart")
        assert await running.daemon.reload() == wanted
        status = running.daemon.status()
        assert status["configuration"]["restart_needed"] == wanted
        running.write(text())
        await running.daemon.reload()
        assert running.daemon.status()["configuration"]["restart_needed"] == []


# --- drains --------------------------------------------------------------------------------------


async def test_drains_survive_a_restart_and_end_by_themselves(tmp_path: Path) -> None:
    async with daemon_of(tmp_path) as running:
        soon = running.daemon.wall() + 1.0
        await running.ask("post", "/v1/drain", {"target": "um1:1", "by": "eva", "why": "noise"})
        await running.ask("post", "/v1/drain", {"target": "um1:2", "until": soon})
    async with daemon_of(tmp_path) as running:
        status = await running.ask("get", "/v1/status")
        set_ = status["trunks"][0]["administration"]
        assert set_["why"][0] == "1 of 3 channels drained by eva: noise"
        await until(lambda: len(running.daemon.distributor.drains) == 1)
        assert running.daemon.wall() >= soon
        async with await placed(running.port) as caller:
            await caller.dialled()
            (living,) = await running.ask("get", "/v1/calls", state="living")
            assert living["channel"] == "um1:2"
        assert await running.ask("post", "/v1/enable", {"target": "um1:1"}) == {
            "target": "um1:1",
            "was_out": True,
        }
        assert not (await running.ask("post", "/v1/enable", {"target": "um1:1"}))["was_out"]
    async with daemon_of(tmp_path) as running:
        assert running.daemon.distributor.drains == ()


async def test_pointers_survive_a_restart(tmp_path: Path) -> None:
    async with daemon_of(tmp_path) as running, await placed(running.port) as caller:
        await caller.dialled()
        await until(lambda: pointers(tmp_path) == {"um": "um1:1"})
        await caller.finish("ANSWER", 16)
    async with daemon_of(tmp_path) as running:
        status = await running.ask("get", "/v1/status")
        assert (status["packs"][0]["last"], status["packs"][0]["next"]) == ("um1:1", "um1:2")


async def test_a_full_disk_keeps_nobody_from_starting_and_nothing_is_forgotten(
    tmp_path: Path,
) -> None:
    async with daemon_of(tmp_path) as first:
        for target in ("um1:1", "um1:3"):
            await first.ask("post", "/v1/drain", {"target": target, "by": "eva", "why": "noise"})
    no_room = ("sh", "-c", 'ulimit -S -f 0; exec "$@"', "sh")
    async with program(tmp_path, under=no_room) as running:
        async with await placed(await running.port()) as caller:
            await caller.dialled()
            await caller.finish("ANSWER", 16)
        for told in await asyncio.gather(
            running.umpack("drain", "um1:2"), running.umpack("enable", "um1:3")
        ):
            assert (told.code, "may forget" in told.err) == (1, True)
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (most, most))
        await until(lambda: "is known again" in running.log)
        assert await running.end() == 0
    assert [row[1] for row in journal_rows(tmp_path)] == ["connected"]
    async with daemon_of(tmp_path) as again:
        drains = again.daemon.distributor.drains
        assert [(drain.target, drain.why) for drain in drains] == [
            ("um1:1", "noise"),
            ("um1:2", ""),
        ]


async def test_a_drain_the_disk_does_not_take_is_told_as_such(tmp_path: Path) -> None:
    async with daemon_of(tmp_path) as running:
        with closing(sqlite3.connect(tmp_path / "j.db", check_same_thread=False)) as rival:
            await asyncio.to_thread(rival.execute, "BEGIN EXCLUSIVE")
            with pytest.raises(
                ControlRefused, match="um1 takes no more calls, but a restart may forget that"
            ):
                await running.ask("post", "/v1/drain", {"target": "um1"})
            # Calls go on without the disk: this one is refused at once, and by the drain.
            async with await placed(running.port) as caller:
                assert (await caller.left()).variables == {"UMPACK_CAUSE": "34"}
            fault = (await running.ask("get", "/v1/status"))["journal"]["fault"]
            assert "locked" in fault
    assert [row[1] for row in journal_rows(tmp_path)] == ["refused"]
    async with daemon_of(tmp_path) as running:
        assert [drain.target for drain in running.daemon.distributor.drains] == ["um1"]


# --- the end -------------------------------------------------------------------------------------


async def test_at_sigterm_running_calls_end_and_new_ones_hunt_in_the_dialplan(
    tmp_path: Path,
) -> None:
    file = tmp_path / "umpack.yaml"
    file.write_text(text())
    daemon = await daemon_at(file)
    with logged() as lines:
        life = asyncio.create_task(daemon.run())
        await until(lambda: any(" is up: " in line for line in lines))
        port = port_of(daemon)
        caller, silent = await placed(port), await asyncio.open_connection("127.0.0.1", port)
        await caller.dialled()
        os.kill(os.getpid(), signal.SIGTERM)
        # Connected before, but without an environment yet: told to hunt by itself.
        assert await silent[0].read() == b"failure\n"
        with pytest.raises(ConnectionError):
            await placed(port)
        assert not daemon.status()["accepting"]
        with pytest.raises(OurFault, match="stopping"):
            await daemon.reload()
        assert (await caller.finish("ANSWER", 16)).variables == {"UMPACK_CAUSE": "16"}
        await life
        for writer in (caller.writer, silent[1]):
            writer.close()
            await writer.wait_closed()
    assert "INFO stopping: 1 calls have 5 s to end\n" in lines
    assert "INFO stopped; 0 calls go on in the PBX without umpack\n" in lines
    assert [row[1] for row in journal_rows(tmp_path)] == ["connected"]


async def test_calls_left_at_the_deadline_are_reported(tmp_path: Path) -> None:
    brief = text().replace("deadline: 5s", "deadline: 200ms")
    with logged() as lines:
        async with daemon_of(tmp_path, brief) as running:
            caller = await placed(running.port)
            await caller.dialled()
        await caller.__aexit__(None, None, None)
    assert "INFO stopped; 1 calls go on in the PBX without umpack\n" in lines
    assert len(journal_rows(tmp_path)) == 1


async def test_a_second_signal_hurries(tmp_path: Path) -> None:
    file = tmp_path / "umpack.yaml"
    file.write_text(text().replace("deadline: 5s", "deadline: 1h"))
    daemon = await daemon_at(file)
    with logged() as lines:
        life = asyncio.create_task(daemon.run())
        await until(lambda: any(" is up: " in line for line in lines))
        async with await placed(port_of(daemon)) as caller:
            await caller.dialled()
            os.kill(os.getpid(), signal.SIGINT)
            await until(lambda: any("stopping: 1 calls" in line for line in lines))
            assert not life.done()
            os.kill(os.getpid(), signal.SIGINT)
            await life
    assert "INFO stopped; 1 calls go on in the PBX without umpack\n" in lines


async def test_sighup_reloads_and_a_bad_file_is_logged(tmp_path: Path) -> None:
    file = tmp_path / "umpack.yaml"
    file.write_text(text())
    daemon = await daemon_at(file)
    with logged() as lines:
        life = asyncio.create_task(daemon.run())
        await until(lambda: any(" is up: " in line for line in lines))
        file.write_text("nonsense: 1\n")
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: any("reload refused, nothing was changed" in line for line in lines))
        file.write_text(text(packs=PACKS.replace("5s", "6s")))
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: "INFO reloaded: pack um changed\n" in lines)
        daemon.stop()
        await life


async def test_it_does_not_go_on_without_its_pump(tmp_path: Path) -> None:
    file = tmp_path / "umpack.yaml"
    file.write_text(text())
    daemon = await daemon_at(file)
    with logged() as lines:
        life = asyncio.create_task(daemon.run())
        await until(lambda: any(" is up: " in line for line in lines))
        # The journal is shut under the pump: the next pointer cannot be saved.
        await asyncio.to_thread(daemon._records.journal.close)
        async with await placed(port_of(daemon)) as caller:
            await caller.dialled()
            caller.cut()
        with pytest.raises(OurFault, match=r"pump failed in umpack: OurFault: journal .* closed"):
            await life
    assert any(line.startswith("CRITICAL pump failed in umpack") for line in lines)


async def test_it_does_not_go_on_without_a_task_of_its_driver(tmp_path: Path) -> None:
    file = tmp_path / "umpack.yaml"
    file.write_text(text())
    daemon = await daemon_at(file)
    with logged() as lines:
        life = asyncio.create_task(daemon.run())
        await until(lambda: any(" is up: " in line for line in lines))
        (driver,) = daemon._drivers.values()
        assert driver._ami is not None
        driver._ami.events.end()  # the task that reads them has nothing to do any more
        with pytest.raises(OurFault, match=r"pbx main failed in umpack: .* ended by itself"):
            await life
    assert any(line.startswith("CRITICAL pbx main failed in umpack") for line in lines)


async def test_hostile_callers_forge_no_line_and_secrets_stay_secret(tmp_path: Path) -> None:
    evil = "\x1b[2J\u202e[bold]ERROR forged {level} %s \\x00"
    with logged() as lines:
        async with daemon_of(tmp_path) as running:
            async with await placed(running.port, "1\x1b\u2028ERROR", evil[:60], evil) as caller:
                await caller.left()
            rows = await running.ask("get", "/v1/calls")
            assert rows[0]["caller"] == evil[:60]
            assert rows[0]["caller_name"] == evil
            shown = repr(running.daemon) + repr(running.daemon.configuration)
            shown += str(running.daemon.status())
    said = "".join(lines)
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert "\u2028" not in said
    assert sum("ERROR" in line for line in said.splitlines()) == 1
    assert SECRET not in said + shown
