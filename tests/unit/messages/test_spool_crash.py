"""The spool, killed: at every named place, and at random; nothing lost, one record per call.

Run as a program, this file forks the processes that die. Each goes through receptions, deliveries
and purges and notes what it was promised (`Diary`); whoever opens the spool after it holds the
spool to that. UMPACK_KILLS sets how often it is killed at random (420): the most of the 500, as a
fork costs little. The whole daemon is killed 70 times in tests/chaos/test_message_kills.py, a real
Asterisk 10 times in tests/pbx/test_fax_kills.py.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from tests.unit.messages.receptions import START, Time, call, content, opened, pages
from umpack.messages.disk_spool import DiskSpool
from umpack.messages.fault_points import FaultPoint, FaultPoints
from umpack.messages.message import EngineFacts, Kind, Message
from umpack.messages.states import RecipientState

ROOT = Path(__file__).parents[3]
# A killed process takes nothing from the page cache: syncs cost time here and prove nothing.
MEMORY = Path("/dev/shm")
KILLS = int(os.environ.get("UMPACK_KILLS", "420"))
OCCURRENCES = 3
WHO = ("a@example.org", "b@example.org")
STRAY = 999_999
ENGINE = EngineFacts("SUCCESS", pages=1)


class Diary:
    """What the dying process was promised, one line each; a kill does not undo a write."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def note(self, *words: object) -> None:
        os.write(self._handle, (" ".join(map(str, words)) + "\n").encode())

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self._path.read_text().splitlines()]


class KilledAt(FaultPoints):
    """Ends the process without further ado when `point` is reached for the `nth` time."""

    def __init__(self, point: FaultPoint, nth: int) -> None:
        self._point, self._left = point, nth

    def reach(self, point: FaultPoint) -> None:
        if point is self._point:
            self._left -= 1
            if self._left == 0:
                os._exit(99)


# -- what the dying process does ----------------------------------------------------------------


def receive(spool: DiskSpool, diary: Diary, number: int) -> Message:
    # Every second one is a fax that began as a voice message: a port for both heard CNG.
    either = number % 2 == 1
    intent = spool.intend(call(number), "original.wav" if either else "original.tif")
    diary.note("intended", number)
    spool.note_answered(intent.id)
    if either:
        intent = spool.recast(intent.id, Kind.FAX, "original.tif")
    whole = pages(number)
    with open(intent.path, "wb", buffering=0) as engine:
        engine.write(whole[:4000])
        engine.write(whole[4000:])
    diary.note("written", number)
    message = spool.commit(intent.id, ENGINE)
    diary.note("committed", number, message.message_id)
    return message


def deliver(spool: DiskSpool, diary: Diary, message: Message) -> None:
    for recipient in spool.message(message.id).recipients:
        held = spool.claim(message.id, recipient.number, START)
        diary.note("accepted", message.call.call, recipient.number, recipient.message_id)
        spool.sent(held, START, "mx1", "250")


def work(spool: DiskSpool, diary: Diary, numbers: range) -> None:
    for number in numbers:
        message = receive(spool, diary, number)
        spool.address(message.id, WHO)
        deliver(spool, diary, message)
        if number % 3 == 0:
            spool.purge(-1.0, 10**9)


def live_and_die(directory: Path, faults: FaultPoints, first: int, threads: int) -> None:
    diary = Diary(directory / "diary")
    with opened(directory / "spool", Time(), faults=faults) as spool:
        spool.adopt()
        crew = [
            threading.Thread(target=work, args=(spool, diary, range(n, n + 9)))
            for n in range(first, first + 100 * threads, 100)
        ]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()


def leave_leftovers(directory: Path) -> None:
    """What an earlier death left, so that adoption has something to die at."""
    diary = Diary(directory / "diary")
    with opened(directory / "spool", Time()) as spool:
        for number in 1, 2, 3:
            intent = spool.intend(call(number))
            diary.note("intended", number)
            if number < 3:
                Path(intent.path).write_bytes(pages(number))
                diary.note("written", number)
        # Recorded as empty, and its file came late: an engine that had been given up.
        for number in 4, 5, 6:
            message = spool.commit(spool.intend(call(number)).id, EngineFacts())
            diary.note("intended", number)
            (spool.directory / "receiving" / f"{message.id}.tif").write_bytes(pages(number))
            diary.note("written", number)
    for number in range(STRAY, STRAY + 3):
        (directory / "spool" / "receiving" / f"stray{number}.tif").write_bytes(pages(number))


# -- what must be true afterwards ---------------------------------------------------------------


def problems(directory: Path, strays: int) -> list[str]:
    """Everything that is not as it was promised; then all is delivered, and looked at again."""
    diary = Diary(directory / "diary")
    found: list[str] = []
    with opened(directory / "spool", Time()) as spool:
        spool.adopt()
        spool.adopt()
        while purged := spool.purge(-1.0, 10**9):
            assert purged
        found += _records(spool, diary, strays)
        for message in spool.unaddressed(limit=100_000):
            spool.address(message.id, WHO)
        for due in spool.due(START, limit=100_000):
            held = spool.claim(due.message.id, due.recipient.number, START)
            diary.note(
                "accepted", due.message.call.call or "?", held.recipient.number,
                held.recipient.message_id,
            )  # fmt: skip
            spool.sent(held, START, "mx1", "250")
        found += _ends(spool, diary)
    return found


def _records(spool: DiskSpool, diary: Diary, strays: int) -> Iterator[str]:
    noted: dict[str, set[str]] = defaultdict(set)
    for kind, number, *_ in diary.lines():
        noted[kind].add(number)
    messages = spool.messages(limit=100_000)
    records = Counter(m.call.call for m in messages if m.call.call)
    yield from (f"{c}: {n} records" for c, n in records.items() if n != 1)
    yield from (f"c{n}: lost" for n in noted["intended"] if records[f"c{n}"] != 1)  # type: ignore[index]
    by_call = {m.call.call.removeprefix("c"): m for m in messages if m.call.call}
    for number in noted["written"] & by_call.keys():
        message = by_call[number]
        if message.purged is None and content(spool, message) != pages(int(number)):
            yield f"c{number}: another file"
        if message.purged and {r.state for r in message.recipients} != {RecipientState.DELIVERED}:
            yield f"c{number}: purged too early"
    for number in noted["committed"] & by_call.keys():
        if by_call[number].engine != ENGINE or by_call[number].adopted:
            yield f"c{number}: its facts are gone"
    unknown = sorted(content(spool, m) for m in messages if not m.call.call)
    if unknown != sorted(pages(n) for n in range(STRAY, STRAY + strays)):
        yield f"{len(unknown)} files without a call, {strays} expected"
    if left := os.listdir(spool.directory / "receiving"):
        yield f"left in receiving: {left}"
    files = {str(p.relative_to(spool.directory)) for p in spool.directory.rglob("original*")}
    kept = [m.original.file for m in messages if m.original and not m.purged]
    if sorted(files) != sorted(kept):
        yield f"files {sorted(files - set(kept))} or records {sorted(set(kept) - files)} too many"


def _ends(spool: DiskSpool, diary: Diary) -> Iterator[str]:
    ids: dict[str, set[str]] = defaultdict(set)
    for kind, number, *rest in diary.lines():
        if kind == "accepted" and number != "?":
            ids[number].add(rest[1])
    yield from (f"{c}: Message-IDs {found}" for c, found in ids.items() if len(found) != 1)
    still = spool.open_calls()
    yield from (f"{m!r}: no end" for m in (*still.without_message, *still.without_end))


# -- the process that forks them ----------------------------------------------------------------


def forked(job: Callable[[], Any]) -> int:
    """Runs `job` in a child; its id."""
    pid = os.fork()
    if pid == 0:
        try:
            job()
            os._exit(0)
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(1)
    return pid


def checked(directory: Path, strays: int) -> list[str]:
    """`problems`, found by a child, as SQLite must not be carried through a fork."""
    answer = directory / "answer"
    pid = forked(lambda: answer.write_text(json.dumps(problems(directory, strays))))
    if os.waitpid(pid, 0)[1]:
        return ["the spool could not be opened or checked"]
    found: list[str] = json.loads(answer.read_text())
    return found


def walk(directory: Path) -> dict[str, Any]:
    """Every fault point, at its first occurrences."""
    results: dict[str, Any] = defaultdict(list)
    for point in FaultPoint:
        for nth in range(1, OCCURRENCES + 1):
            place = directory / f"{point.name}-{nth}"
            place.mkdir()
            os.waitpid(forked(lambda p=place: leave_leftovers(p)), 0)  # type: ignore[misc]
            faults = KilledAt(point, nth)
            pid = forked(lambda p=place, f=faults: live_and_die(p, f, 100, 1))  # type: ignore[misc]
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            results[point.name].append([code, checked(place, 3)])
    return results


def kill_at_random(directory: Path, kills: int, seed: int) -> dict[str, Any]:
    """One spool, killed again and again within its first moments."""
    dice = random.Random(seed)
    found: list[str] = []
    died = 0
    for number in range(kills):
        first = 1000 + 1000 * number
        pid = forked(lambda n=first: live_and_die(directory, FaultPoints(), n, 3))  # type: ignore[misc]
        time.sleep(dice.uniform(0.005, 0.15))
        os.kill(pid, signal.SIGKILL)
        died += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        if number % 10 == 9 or number == kills - 1:
            found += checked(directory, 0)
    calls = len([1 for kind, *_ in Diary(directory / "diary").lines() if kind == "intended"])
    return {"problems": found, "died": died, "calls": calls}


def main(task: str, directory: Path, *more: str) -> None:
    logger.remove()
    result = walk(directory) if task == "walk" else kill_at_random(directory, *map(int, more))
    sys.stdout.write(json.dumps(result))


def run(*arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.messages.test_spool_crash", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# -- the tests ----------------------------------------------------------------------------------


def in_memory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None)


@pytest.fixture(scope="module")
def walked() -> Iterator[dict[str, Any]]:
    with in_memory() as directory:
        yield run("walk", directory)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("point", FaultPoint, ids=lambda p: p.name.lower())
def test_killed_at_a_named_place(walked: dict[str, Any], point: FaultPoint) -> None:
    runs = walked[point.name]
    assert runs[0][0] == 99, f"{point.value}: never reached"
    assert [found for _, found in runs] == [[]] * OCCURRENCES


@pytest.mark.timeout(900)
@pytest.mark.parametrize("half", [1, 2])  # side by side, where there are processors
def test_killed_at_random(half: int) -> None:
    seed, kills = random.SystemRandom().randrange(10**6), KILLS // 2
    with in_memory() as directory:
        result = run("random", directory, str(kills), str(seed))
    assert result["problems"] == [], f"seed {seed}"
    assert result["died"] >= kills // 2
    assert result["calls"] > kills // 2


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
