"""`umpack run` as people and systemd start it, and the commands that speak to it."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.agi_peer import placed
from tests.unit.daemons import (
    PACKS,
    SECRET,
    Ran,
    journal_rows,
    pointers,
    program,
    text,
    umpack,
    until,
)

pytestmark = pytest.mark.timeout(180)  # every command is a process of its own


HEAPS = """
import asyncio, ctypes, sys, threading
from pathlib import Path
from umpack.cli.running import run_loop

async def main():
    barrier = threading.Barrier(8)
    def work():
        barrier.wait(20)
        blocks = [bytes(5000) for _ in range(100)]
        barrier.wait(20)
    await asyncio.gather(*(asyncio.to_thread(work) for _ in range(8)))

async def ample():
    from concurrent.futures import ThreadPoolExecutor
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(8))
    await main()

run_loop(ample)
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = libc.fopen(sys.argv[1].encode(), b"w")
libc.malloc_info(0, ctypes.c_void_p(file))
libc.fclose(ctypes.c_void_p(file))
print(Path(sys.argv[1]).read_text().count("<heap nr="))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="not glibc's malloc")
def test_threads_share_one_heap(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", HEAPS, str(tmp_path / "heaps")],
        stdout=subprocess.PIPE, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert ran.stdout.split() == ["1"]


async def test_a_day_at_the_command_line(tmp_path: Path) -> None:
    said: list[Ran] = []
    async with program(tmp_path) as daemon:

        async def ask(*arguments: str, code: int = 0) -> Ran:
            ran = await daemon.umpack(*arguments)
            assert ran.code == code, ran
            said.append(ran)
            return ran

        port = await daemon.port()
        evil = "\x1b]0;[red]forged\x07\u202e"
        async with await placed(port, caller=evil, name=evil) as caller:
            await caller.dialled()
            status, calls = await asyncio.gather(ask("status", "--channels"), ask("calls"))
            assert "here" in status.out
            assert "um1:2" in status.out
            assert "\\x1b]0;[red]forged\\x07\\u202e" in "".join(calls.out.split())
            (living,) = (await ask("calls", "--json")).json
            assert living["caller"] == evil
            explained = (await ask("explain", living["id"])).out
            assert "now dialling on um1:1, position 1 of pack um (hunt from the first)" in explained
            assert "route 1*: um\n" in explained
            assert (await ask("drain", "um1:2", "--until", "2h", "--why", "noise")).out.startswith(
                "um1:2 takes no more calls until 2"
            )
            await caller.finish("ANSWER", 16)
        # A terminal without arrows or boxes is no reason to fail.
        for command in (("explain", living["id"]), ("status",)):
            plain = await umpack(
                *command, "--config", str(daemon.file), PYTHONIOENCODING="ascii:strict"
            )
            assert (plain.code, plain.err) == (0, "")
            assert plain.out.isascii()
        explained = (await ask("explain", living["id"])).out
        assert "attempt 1: um1:1, position 1 of pack um (hunt from the first" in explained
        assert "connected after " in explained
        ended = (await ask("calls", "--ended", "--json")).json
        assert [call["id"] for call in ended] == [living["id"]]
        assert (await ask("calls", "--called", "nobody")).out == "no calls\n"
        whole = (await ask("status", "--json")).json
        assert [c["state"] for c in whole["channel_list"]] == ["idle", "blocked", "idle"]
        assert whole["call_list"] == []
        assert (await ask("enable", "um1:2")).out == "um1:2 is back\n"
        assert (await ask("enable", "um1:2")).out == "um1:2 was not drained\n"
        wrong = await ask("drain", "um9", code=1)
        assert (wrong.out, wrong.err) == ("", "umpack: no trunk or channel 'um9'\n")
        daemon.file.write_text(text(packs=PACKS.replace("5s", "6s")))
        assert (await ask("reload")).out == "reloaded: pack um changed\n"
        daemon.file.write_text(f"{text()}colour: {SECRET[:3]}\n")
        wrong = await ask("reload", code=1)
        assert "unknown key" in wrong.err or "colour" in wrong.err
        assert "the last reload was refused" in (await ask("status")).out
        assert await daemon.end() == 0
    assert "stopped; 0 calls go on" in daemon.log
    shown = daemon.log + "".join(ran.out + ran.err for ran in said)
    assert SECRET not in shown
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)
    assert [row[1] for row in journal_rows(tmp_path)] == ["connected"]


async def test_kill_9_forgets_neither_pointer_nor_drain(tmp_path: Path) -> None:
    async with program(tmp_path) as daemon:
        port = await daemon.port()
        async with await placed(port) as first, await placed(port) as second:
            await first.dialled()
            await second.dialled()
            assert (await daemon.umpack("drain", "um1:3")).code == 0
            await until(lambda: pointers(tmp_path) == {"um": "um1:2"})
            await daemon.end(signal.SIGKILL)
            # Asterisk would finish the Dial by itself; the connection is gone.
            assert (await first.left()).status == "SUCCESS"
    async with program(tmp_path) as daemon:
        status = (await daemon.umpack("status", "--json")).json
        assert status["calls"] == 0
        assert [(p["last"], p["next"]) for p in status["packs"]] == [("um1:2", "um1:1")]
        assert [c["state"] for c in status["channel_list"]] == ["idle", "idle", "blocked"]
        assert await daemon.end() == 0


async def test_a_second_run_and_a_hang_up_signal(tmp_path: Path) -> None:
    async with program(tmp_path) as daemon:
        second = await umpack("run", "--config", str(daemon.file))
        assert second.code == 1
        assert "umpack: another umpack is listening on" in second.err
        assert "Traceback" not in second.err
        daemon.process.send_signal(signal.SIGHUP)
        await until(lambda: "reloaded: no changes" in daemon.log)
        assert await daemon.end(signal.SIGINT) == 0


def holder_of(lock: Path) -> int:
    """The process that holds it; the kernel knows (proc(5))."""
    inode = lock.stat().st_ino
    rows = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    (pid,) = {int(row[4]) for row in rows if row[5].endswith(f":{inode}")}
    return pid


async def test_a_log_file(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "umpack.log"
    configuration = text(rest="log: {file: logs/umpack.log, level: debug}\n")
    (tmp_path / "umpack.yaml").write_text(configuration)
    file = str(tmp_path / "umpack.yaml")
    life = asyncio.create_task(umpack("run", "--config", file))
    await until(lambda: log.exists() and "is up" in log.read_text(), 40)
    (tmp_path / "umpack.yaml").write_text(configuration.replace("debug", "error"))
    assert (await umpack("reload", "--config", file)).out == "reloaded: log changed\n"
    os.kill(holder_of(tmp_path / "c.sock.lock"), signal.SIGTERM)
    done = await life
    assert (done.code, done.out, done.err) == (0, "", "")
    lines = log.read_text().splitlines()
    assert "is up" in lines[-1] or "WARNING" in lines[-1] or "reloaded" in lines[-1]
    assert not any("stopped" in line for line in lines)


async def test_a_configuration_with_mistakes(tmp_path: Path) -> None:
    file = tmp_path / "umpack.yaml"
    file.write_text(text(packs="  um: {members: [um2]}\n"))
    wrong = await umpack("run", "--config", str(file))
    assert (wrong.code, wrong.out) == (1, "")
    assert f"\n{file}:7: packs.um.members[0]: " in wrong.err
    missing = await umpack("run", "--config", str(tmp_path / "none.yaml"))
    assert (missing.code, missing.out) == (1, "")
    assert "none.yaml:1: cannot be read" in missing.err


async def test_foreign_drivers_are_not_run(tmp_path: Path) -> None:
    file = tmp_path / "umpack.yaml"
    file.write_text(text())
    claimed = tmp_path / "claimed"
    (claimed / "boards-1.0.dist-info").mkdir(parents=True)
    (claimed / "boards-1.0.dist-info" / "METADATA").write_text("Name: boards\nVersion: 1.0\n")
    (claimed / "boards-1.0.dist-info" / "top_level.txt").write_text("drivers\n")
    ran = await umpack("run", "--config", str(file), PYTHONPATH=f"{claimed}:{Path.cwd()}")
    assert ran.code == 1
    assert "'drivers' of umpack is claimed by boards as well" in ran.err
    hidden = tmp_path / "hidden"
    (hidden / "drivers").mkdir(parents=True)
    (hidden / "drivers" / "__init__.py").write_text("print('mine')\n")
    ran = await umpack(
        "run", "--config", str(file), cwd=tmp_path, PYTHONPATH=f"{hidden}:{Path.cwd()}"
    )
    assert ran.code == 1
    assert "hidden/drivers/__init__.py is not umpack's" in ran.err
    assert not (tmp_path / "c.sock").exists()


async def test_where_the_daemon_is_sought(tmp_path: Path) -> None:
    elsewhere, broken = tmp_path / "a.yaml", tmp_path / "b.yaml"
    elsewhere.write_text("control: {socket: x.sock}\nnonsense: 1\n")
    broken.write_text("control: [\n")
    half = tmp_path / "c.yaml"
    half.write_text(
        "routes:\n- {called: *, pack: um}\ncontrol:\n  # here\n\n  socket: x.sock\nlog: {\n"
    )
    dos, example = tmp_path / "d.yaml", tmp_path / "e.yaml"
    dos.write_bytes(b"control:\r\n\r\n  socket: x.sock\r\nroutes:\r\n- {called: *}\r\n")
    example.write_text("routes:\n- {called: *}\n# control: {socket: /run/umpack/control.sock}\n")
    told, by_file, by_variable, unreadable, by_half, by_dos, by_none = await asyncio.gather(
        umpack("status", "--socket", "/nowhere/s"),
        umpack("status", "--config", str(elsewhere)),
        umpack("status", UMPACK_CONFIG=str(elsewhere)),
        umpack("status", "--config", str(broken)),
        umpack("status", "--config", str(half)),
        umpack("status", "--config", str(dos)),
        umpack("status", "--config", str(example)),
    )
    assert told.err == "umpack: no umpack answers on /nowhere/s: is it running?\n"
    wanted = f"umpack: no umpack answers on {tmp_path}/x.sock: is it running?\n"
    assert {one.err for one in (by_file, by_variable, by_half, by_dos)} == {wanted}
    assert "is not YAML" not in by_none.err  # it names the section in a comment only
    assert "b.yaml: is not YAML; so where its daemon listens is not known" in unreadable.err
    assert {told.code, by_file.code, by_variable.code, unreadable.code, by_half.code} == {1}


async def test_every_command_has_help_with_an_example() -> None:
    commands = (
        "run demo check schema dialplan status calls explain reload drain enable storm plan"
    ).split()
    trunk = [f"trunk {verb}" for verb in "eject restore drain enable list history".split()]
    version, overview, of_trunk, *helps = await asyncio.gather(
        umpack("--version"),
        umpack(),
        umpack("trunk"),
        *(umpack(*command.split(), "--help") for command in (*commands, *trunk)),
    )
    for command, ran in zip(trunk, helps[len(commands) :], strict=True):
        assert f" {command.partition(' ')[2]} " in of_trunk.out
        _, _, rest = ran.out.partition(f"Usage: umpack {command}")
        # `drain` and `enable` are the commands of the same name.
        assert "umpack " in rest, ran.out
    helps = helps[: len(commands)]
    assert " trunk " in overview.out
    assert (version.code, version.out[:7]) == (0, "umpack ")
    for command, ran in zip(commands, helps, strict=True):
        assert f" {command} " in overview.out
        assert ran.code == 0
        _, _, rest = ran.out.partition(f"Usage: umpack {command}")
        assert f"umpack {command}" in rest, ran.out


async def test_wrong_usage_is_2() -> None:
    for ran in await asyncio.gather(
        umpack("status", "--colour"), umpack("dance"), umpack("calls", "--limit", "0"),
        umpack("explain"),
    ):  # fmt: skip
        assert (ran.code, ran.out) == (2, "")
        assert "Traceback" not in ran.err
        assert ran.err
