"""What is synced, and in which order: a kill keeps the page cache, so no kill can tell.

Two witnesses. The interpreter's own profiler sees every call of `os.rename` and `os.fsync`, here as
anywhere; strace, where it is installed, sees what the kernel was asked for, SQLite included.

Run as a program, this file is one process that receives a fax.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.unit.messages.receptions import call, opened, pages
from umpack.messages.disk_spool import DATABASE
from umpack.messages.fault_points import FaultPoint, FaultPoints
from umpack.messages.message import EngineFacts, MessageId, home
from umpack.messages.spool_schema import SpoolFault, prepare
from umpack.messages.spool_writer import SpoolWriter

ROOT = Path(__file__).parents[3]
FULL = 2


class Steps(FaultPoints):
    """Notes calls and fault points as they come, from whichever thread."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def reach(self, point: FaultPoint) -> None:
        self.seen.append(point.name)

    def watch(self, frame: FrameType, event: str, called: Any) -> None:
        """See sys.setprofile."""
        if event == "c_call" and called is os.rename:
            self.seen.append("rename")
        elif event == "c_call" and called is os.fsync:
            self.seen.append(f"fsync {Path(frame.f_locals['path']).name}")

    @contextmanager
    def watching(self) -> Iterator[None]:
        sys.setprofile(self.watch)
        try:
            yield
        finally:
            sys.setprofile(None)


def receive(directory: Path, number: int, steps: Steps) -> MessageId:
    with opened(directory, faults=steps) as spool:
        intent = spool.intend(call(number))
        Path(intent.path).write_bytes(pages(number))
        steps.seen.clear()
        with steps.watching():
            spool.commit(intent.id, EngineFacts("SUCCESS", pages=1))
    return intent.id


def test_a_file_and_its_names_are_synced_before_the_record_says_so(tmp_path: Path) -> None:
    steps = Steps()
    id_ = receive(tmp_path, 1, steps)
    year, month, _ = home(id_).split("/")
    assert steps.seen == [
        "COMMIT_BEGUN", "fsync messages", f"fsync {year}", "COMMIT_HOME",
        "rename", "COMMIT_RENAMED", "fsync original.tif", "COMMIT_SYNCED",
        f"fsync {id_}", f"fsync {month}", "fsync receiving", "COMMIT_PLACED",
        "COMMIT_ROW", "COMMIT_DURABLE", "COMMIT_DONE",
    ]  # fmt: skip


def test_a_call_that_was_answered_has_its_place_synced_before_its_end(tmp_path: Path) -> None:
    steps = Steps()
    with opened(tmp_path, faults=steps) as spool:
        intent = spool.intend(call(1))
        steps.seen.clear()
        with steps.watching():
            spool.note_answered(intent.id)
        year, month, _ = home(intent.id).split("/")
        assert steps.seen == ["fsync messages", f"fsync {year}", f"fsync {month}"]
        Path(intent.path).write_bytes(pages(1))
        steps.seen.clear()
        with steps.watching():
            spool.commit(intent.id, EngineFacts("SUCCESS", pages=1))
        assert steps.seen[1:8] == [
            "COMMIT_HOME", "rename", "COMMIT_RENAMED", "fsync original.tif", "COMMIT_SYNCED",
            f"fsync {intent.id}", "fsync receiving",
        ]  # fmt: skip
        # Who takes in what others left knows of no such step.
        left = spool.intend(call(2))
        spool.note_answered(left.id)
        Path(left.path).write_bytes(pages(2))
        spool.abort(left.id)
        steps.seen.clear()
        with steps.watching():
            assert spool.adopt().adopted == (left.id,)
        assert f"fsync {month}" in steps.seen


def test_a_call_that_brought_nothing_leaves_no_directory(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        intent = spool.intend(call(1))
        spool.note_answered(intent.id)
        folder = tmp_path / "messages" / home(intent.id)
        assert folder.is_dir()
        spool.commit(intent.id, EngineFacts("FAILED"))
        assert not folder.exists()
        assert folder.parent.is_dir()


def test_every_process_syncs_the_directories_above_once(tmp_path: Path) -> None:
    """Whoever made them may have died before they were on disk."""
    receive(tmp_path, 1, Steps())
    steps = Steps()
    id_ = receive(tmp_path, 2, steps)
    year = home(id_).partition("/")[0]
    assert steps.seen[1:3] == ["fsync messages", f"fsync {year}"]
    with opened(tmp_path, faults=steps) as spool:
        for number in 3, 4:
            intent = spool.intend(call(number))
            Path(intent.path).write_bytes(pages(number))
            steps.seen.clear()
            with steps.watching():
                spool.commit(intent.id, EngineFacts())
        assert "fsync messages" not in steps.seen


def test_the_writer_waits_for_the_disk_at_every_commit(tmp_path: Path) -> None:
    path = tmp_path / DATABASE
    prepare(path, 0.0)
    writer = SpoolWriter(path, FaultPoints())
    writer.start()
    try:
        assert writer.do(lambda db: db.execute("PRAGMA synchronous").fetchone()[0]) == FULL
        assert writer.do(lambda db: db.execute("PRAGMA journal_mode").fetchone()[0]) == "wal"
    finally:
        writer.stop()


def test_nobody_hears_of_a_row_before_what_follows_from_it(tmp_path: Path) -> None:
    path = tmp_path / DATABASE
    prepare(path, 0.0)
    writer = SpoolWriter(path, FaultPoints())
    heard: list[str] = []
    begun, gate = threading.Event(), threading.Event()

    def wait(_: object) -> None:
        begun.set()
        assert gate.wait(20)

    writer.start()
    try:
        writer.ask(wait)
        written = writer.ask(lambda _: 1, then=lambda: heard.append(f"then {written.done()}"))
        assert not written.cancel()  # what has been asked for is done
        gate.set()
        assert written.result(20) == 1
        begun.clear()
        gate.clear()
        writer.ask(wait)
        assert begun.wait(20)
        lost = writer.ask(
            lambda _: 2,
            then=lambda: heard.append("no"),
            lost=lambda: heard.append(f"lost {lost.done()}"),
        )
        path.rename(tmp_path / "away")  # the next transaction sees it
        gate.set()
        with pytest.raises(SpoolFault, match="gone"):
            lost.result(20)
        (tmp_path / "away").rename(path)
        assert writer.do(lambda _: 3) == 3
    finally:
        writer.stop()
    assert heard == ["then False", "lost False"]
    with pytest.raises(SpoolFault, match="closed"):
        writer.ask(lambda _: 4)


# -- what the kernel was asked for --------------------------------------------------------------

CALL = re.compile(r"^(\d+) +(\w+)\((.*)$")
RESUMED = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>")
PATH = re.compile(r"<([^<>]*)>")


def traced(directory: Path, trace: Path) -> list[str]:
    """Syncs, renames and marks of one receiving process, in the order in which they were done."""
    subprocess.run(
        ["strace", "-f", "-y", "-s", "200", "-o", str(trace),
         "-e", "trace=fsync,fdatasync,rename,renameat,renameat2,write",
         sys.executable, "-m", "tests.unit.messages.test_durability", str(directory)],
        cwd=ROOT, check=True, timeout=120, stdout=subprocess.PIPE,
    )  # fmt: skip
    found: list[str] = []
    begun: dict[str, str] = {}
    for line in trace.read_text(errors="replace").splitlines():
        if (resumed := RESUMED.match(line)) and resumed[1] in begun:
            found.append(begun.pop(resumed[1]))
        elif match := CALL.match(line):
            step = _step(match[2], match[3])
            if "<unfinished" in line:
                begun[match[1]] = step
            else:
                found.append(step)
    return [step for step in found if step]


def _step(name: str, rest: str) -> str:
    if name.startswith("rename"):
        return "rename"
    path = PATH.search(rest)
    if name == "write":
        mark = re.search(r'"MARK (\w+)\\n"', rest)
        return mark[1] if mark else ""
    return f"sync {Path(path[1]).name}" if path else ""


def can_trace() -> bool:
    if shutil.which("strace") is None:
        return False
    tried = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False)
    return tried.returncode == 0


@pytest.mark.skipif(not can_trace(), reason="strace is not installed, or may not trace")
@pytest.mark.timeout(180)
def test_the_kernel_is_asked_in_that_order(tmp_path: Path) -> None:
    for turn in "first", "second":
        steps = traced(tmp_path / "spool", tmp_path / f"{turn}.trace")
        intended, written, committed = map(steps.index, ("intended", "written", "committed"))
        assert f"sync {DATABASE}-wal" in steps[:intended]
        commit = steps[written:committed]
        (id_,) = {s.removeprefix("sync ") for s in commit if re.search(r"sync .*-[0-9a-f]{16}$", s)}
        year, month, _ = home(MessageId(id_)).split("/")
        wanted = [
            "sync messages", f"sync {year}", "rename", "sync original.tif", f"sync {id_}",
            f"sync {month}", "sync receiving", f"sync {DATABASE}-wal",
        ]  # fmt: skip
        assert [step for step in commit if step in wanted] == wanted, turn


def main(directory: Path) -> None:
    with opened(directory) as spool:
        intent = spool.intend(call(1))
        os.write(1, b"MARK intended\n")
        Path(intent.path).write_bytes(pages(1))
        os.write(1, b"MARK written\n")
        spool.commit(intent.id, EngineFacts())
        os.write(1, b"MARK committed\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
