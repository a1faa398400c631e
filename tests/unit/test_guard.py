"""The guard ends a process that stands still, and nothing else."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from tests.unit.daemons import ROOT, program, text, until
from umpack.guard import BEAT, STOPPED, STUCK
from umpack.guard_process import STEP, is_stopped

PROGRAM = """
import asyncio, time
from umpack.guard import Guard

async def main(guard):
    {before}
    beating = asyncio.create_task(guard.beat())
    await asyncio.sleep(0.2)
    print(guard.pid, flush=True)
    {then}
    beating.cancel()
    await asyncio.wait([beating])
    {after}
    print("over", flush=True)

with Guard(0.3, 2.0) as guard:
    asyncio.run(main(guard))
"""


class Guarded:
    """A program with a guard."""

    def __init__(self, process: asyncio.subprocess.Process, guard: int) -> None:
        self.process = process
        self.guard = guard

    async def ended(self) -> tuple[int, str, str]:
        """Its status, and what it and its guard have said."""
        out, error = await asyncio.wait_for(self.process.communicate(), 40)
        assert self.process.returncode is not None
        return self.process.returncode, out.decode(), error.decode()


@asynccontextmanager
async def guarded(then: str, before: str = "", after: str = "") -> AsyncIterator[Guarded]:
    code = PROGRAM.format(before=before or "pass", then=then, after=after or "pass")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, cwd=ROOT, env=os.environ | {"PYTHONFAULTHANDLER": "1"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), 40)
        assert line, (await process.communicate())[1].decode()
        yield Guarded(process, int(line))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def lives(pid: int) -> bool:
    """Whether a process is there and not a mere entry waiting for its parent."""
    with suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in ("Z", "X")
    return False


async def test_one_that_was_stopped_is_killed() -> None:
    async with guarded("await asyncio.sleep(30)") as it:
        it.process.send_signal(signal.SIGSTOP)
        status, _, error = await it.ended()
        assert status == -signal.SIGKILL
        assert "guard: umpack was stopped" in error
        await until(lambda: not lives(it.guard))


async def test_one_that_hangs_says_where_before_it_ends() -> None:
    async with guarded("time.sleep(30)") as it:
        status, _, error = await it.ended()
        assert status == -signal.SIGABRT
        assert "guard: umpack has stood still for 2.0 s" in error
        assert "in main" in error  # faulthandler's words


async def test_one_that_hears_no_signal_is_killed() -> None:
    deaf = "import signal; signal.signal(signal.SIGABRT, signal.SIG_IGN)"
    async with guarded("time.sleep(30)", before=deaf) as it:
        assert (await it.ended())[0] == -signal.SIGKILL


async def test_a_slow_start_and_a_slow_end_are_nobodys_business() -> None:
    async with guarded("pass", before="time.sleep(3.0)", after="time.sleep(3.0)") as it:
        assert await it.ended() == (0, "over\n", "")
        await until(lambda: not lives(it.guard))


async def test_a_stop_during_the_start_is_seen() -> None:
    # It stops itself while nothing has been said yet.
    code = PROGRAM.format(
        before="import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", then="pass", after="pass"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, cwd=ROOT, stderr=asyncio.subprocess.DEVNULL
    )
    assert await asyncio.wait_for(process.wait(), 40) == -signal.SIGKILL


async def test_what_stops_the_program_does_not_stop_its_guard() -> None:
    async with guarded("await asyncio.sleep(0.8)") as it:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(it.guard, number)
        assert (await it.ended())[:2] == (0, "over\n")
        assert os.getsid(0) != it.guard


async def test_a_guard_that_dies_is_replaced() -> None:
    then = "await asyncio.sleep(0.8); print(guard.pid, flush=True); await asyncio.sleep(30)"
    async with guarded(then) as it:
        os.kill(it.guard, signal.SIGKILL)
        assert it.process.stdout is not None
        second = int(await asyncio.wait_for(it.process.stdout.readline(), 40))
        assert second != it.guard
        it.process.send_signal(signal.SIGSTOP)
        assert (await it.ended())[0] == -signal.SIGKILL


async def test_a_guard_that_is_stopped_holds_nobody_up() -> None:
    async with guarded("await asyncio.sleep(0.8)") as it:
        os.kill(it.guard, signal.SIGSTOP)
        assert (await it.ended())[:2] == (0, "over\n")
        assert not lives(it.guard)


async def test_umpack_has_one(tmp_path: Path) -> None:
    async with program(tmp_path, text()) as running:
        running.process.send_signal(signal.SIGSTOP)
        assert await asyncio.wait_for(running.process.wait(), 40) == -signal.SIGKILL
        await running.reading
        assert "guard: umpack was stopped" in running.log


async def test_umpack_ends_in_order_with_it(tmp_path: Path) -> None:
    async with program(tmp_path, text()) as running:
        running.process.terminate()
        assert await asyncio.wait_for(running.process.wait(), 40) == 0
        await running.reading
        assert "guard" not in running.log


def test_a_program_that_does_not_exist_is_not_stopped() -> None:
    assert not is_stopped(os.getpid())
    assert not is_stopped(2**22 + 1)


@pytest.mark.parametrize("limit", [STOPPED, STUCK])
def test_limits_leave_room_for_signs_of_life(limit: float) -> None:
    assert limit >= 2 * (BEAT + STEP)
