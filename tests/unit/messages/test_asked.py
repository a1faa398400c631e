"""Which server was being asked when umpack was killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulators.mail import DOT, GREETING, Act, MailServer, Script, Then
from tests.unit.messages.offices import in_memory, made, office, plan, received, settle, tiff
from tests.unit.messages.receptions import Time
from umpack import clock
from umpack.messages.asked import SLOT, SLOTS, Asked
from umpack.messages.disk_spool import DiskSpool
from umpack.messages.message import DeliveryKey, MessageId
from umpack.messages.spool_schema import SpoolFault
from umpack.messages.states import RecipientState

ROOT = Path(__file__).parents[3]


def key(number: int) -> DeliveryKey:
    return MessageId(f"m{number}"), 1


def left_in(path: Path) -> dict[DeliveryKey, str]:
    """What the next process finds."""
    asked = Asked(path)
    asked.close()
    return dict(asked.left)


def test_the_last_server_of_each_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "asked"
    asked = Asked(path)
    assert asked.left == {}
    asked.note(key(1), "one")
    asked.note(key(2), "mx.ü.test [::1]:25\n")
    asked.note(key(1), "two")
    assert left_in(path) == {key(1): "two", key(2): "mx.ü.test [::1]:25\n"}
    asked.begin_anew()
    assert left_in(path) == {}
    asked.close()
    asked.close()
    asked.note(key(3), "late")
    assert left_in(path) == {}


def test_it_never_grows_and_keeps_the_newest(tmp_path: Path) -> None:
    path = tmp_path / "asked"
    asked = Asked(path)
    for number in range(SLOTS + 10):
        asked.note(key(number), "server")
    asked.note(key(0), "x" * SLOT)
    assert path.stat().st_size == SLOTS * SLOT
    assert left_in(path).keys() == {key(number) for number in range(10, SLOTS + 10)}
    asked.close()


@given(st.binary(max_size=3 * SLOT), st.integers(0, 2 * SLOT))
def test_damage_is_no_news(data: bytes, at: int) -> None:
    with in_memory() as directory:
        path = directory / "asked"
        asked = Asked(path)
        asked.note(key(1), "one")
        with path.open("r+b") as file:
            file.seek(at)
            file.write(data)
        asked.close()
        for server in left_in(path).values():
            assert isinstance(server, str)


def test_without_the_file_it_goes_on(tmp_path: Path) -> None:
    asked = Asked(tmp_path / "nowhere" / "asked")
    asked.begin_anew()
    asked.note(key(1), "one")
    asked.close()
    assert asked.left == {}


def test_a_spool_that_cannot_be_opened_leaves_nothing_open(tmp_path: Path) -> None:
    (tmp_path / "spool.db").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):  # the daemon tries again every few seconds, for as long as it takes
        with pytest.raises(SpoolFault):
            DiskSpool(tmp_path, "node1")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.timeout(60)
async def test_killed_after_the_final_dot_the_same_server_is_asked_again() -> None:
    away = Script({GREETING: Act("421 4.3.2 not now", then=Then.CLOSE)})
    silent = Script({DOT: Act(then=Then.HANG, stored=True)})
    with in_memory() as directory:
        async with MailServer(away) as first, MailServer(silent) as second:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.unit.messages.test_asked",
                str(directory), str(first.port), str(second.port),
                cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            while not second.accepted:
                assert child.returncode is None
                await asyncio.sleep(0.02)
            child.send_signal(signal.SIGKILL)
            await child.wait()
            first.script = second.script = Script()
            now = Time(clock.now())
            async with office(directory, first.port, second.port, now=now) as messages:
                (before,) = await messages.spool.messages()
                assert before.recipients[0].state is RecipientState.AMBIGUOUS
                await settle(messages)
                (after,) = await messages.spool.messages()
            assert after.recipients[0].state is RecipientState.DELIVERED
            assert before.recipients[0].server == after.recipients[0].server != ""
            # The first of the two would have been given a copy of its own.
            assert first.accepted == []
            assert second.copies(after.message_id) == len(second.accepted) == 2


async def live(directory: Path, *ports: int) -> None:
    messages = made(plan(directory, *ports), clock.now)
    await messages.open()
    await messages.start()
    await received(messages, 1, tiff())
    await asyncio.sleep(60)


if __name__ == "__main__":
    asyncio.run(live(Path(sys.argv[1]), *map(int, sys.argv[2:])))
