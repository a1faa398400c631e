"""umpack and Asterisk are two users who share umpack's group, and nobody else comes in.

Run as a program, this file forks processes that become those users; that takes root.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.messages.receptions import NO_RESERVE, NODE, call, pages
from umpack import clock
from umpack.messages.disk_spool import DiskSpool
from umpack.messages.message import EngineFacts

ROOT = Path(__file__).parents[3]
UMPACK, ASTERISK, STRANGER = 64_101, 64_102, 64_103
"""Users, each with a group of the same number. Asterisk's is in umpack's as well."""
STRAY = 99


# -- as one of these users ------------------------------------------------------------------------


@contextmanager
def child(user: int, groups: list[int], job: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
    """`job` in a process of that user, as a daemon has it; what is yielded waits for its answer."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups(groups)
            os.setgid(user)
            os.setuid(user)
            os.umask(0o022)
            answer = job()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        yield lambda: json.loads(pipe.read())
    os.waitpid(pid, 0)


def run_as(user: int, groups: list[int], job: Callable[[], Any]) -> Any:
    with child(user, groups, job) as answer:
        return answer()


def opened(directory: Path) -> DiskSpool:
    return DiskSpool(directory, NODE, limits=NO_RESERVE, quiet=0.0, now=clock.now)


def engine_writes(path: str, number: int) -> str:
    """As libtiff's TIFFOpen(path, "w") and Asterisk's ast_writefile() open a file."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
    os.write(handle, pages(number))
    os.close(handle)
    return "written"


def attempt(job: Callable[[], Any]) -> str:
    try:
        job()
    except OSError as error:
        return type(error).__name__
    return "done"


def listen(pipe: int) -> str:
    """A line of the other process."""
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(pipe, 1)
    return line.decode().strip()


def tell(pipe: int, text: str) -> None:
    os.write(pipe, f"{text}\n".encode())


def main(directory: Path) -> dict[str, Any]:
    """One fax received, one adopted while it is and after it was written, and a stray file."""
    found: dict[str, Any] = {}
    spool = directory / "spool"
    spool.mkdir()  # as `install -d -o umpack -g umpack -m 0750` makes it
    spool.chmod(0o750)
    os.chown(spool, UMPACK, UMPACK)
    to_umpack, from_umpack, to_engine, from_engine = os.pipe(), os.pipe(), os.pipe(), os.pipe()

    def receive() -> Any:
        with opened(spool) as store:
            intent, left_open = store.intend(call(1)), store.intend(call(2))
            tell(from_umpack[1], intent.path)
            tell(from_umpack[1], left_open.path)
            listen(to_umpack[0])
            message = store.commit(intent.id, EngineFacts("SUCCESS", pages=1))
            assert message.original is not None
            content = (spool / message.original.file).read_bytes()
            return [message.state.value, content == pages(1), message.original.file]

    def hold_open() -> str:
        with open(left_open, "wb", buffering=0) as file:
            file.write(pages(2))
            tell(from_engine[1], "open")
            listen(to_engine[0])
        return "written"

    def adopt() -> Any:
        with opened(spool) as store:
            result = store.adopt()
            calls = {m.id: m.call.call for m in store.messages()}
            return [sorted(calls[id_] for id_ in result.adopted), len(result.left)]

    with child(UMPACK, [], receive) as received:
        path, left_open = listen(from_umpack[0]), listen(from_umpack[0])
        found["without the group"] = run_as(
            ASTERISK, [ASTERISK], lambda: attempt(lambda: engine_writes(path, 1))
        )
        found["engine"] = run_as(ASTERISK, [UMPACK], lambda: engine_writes(path, 1))
        tell(to_umpack[1], "commit")
        *found["received"], file = received()
    stray = spool / "receiving" / "stray.tif"
    with child(ASTERISK, [UMPACK], hold_open) as held:
        listen(from_engine[0])
        found["adopted while it is written"] = run_as(UMPACK, [], adopt)
        tell(to_engine[1], "close")
        found["engine of the second"] = held()
    run_as(ASTERISK, [UMPACK], lambda: engine_writes(str(stray), STRAY))
    found["group of a new file"] = stray.stat().st_gid
    found["adopted afterwards"] = run_as(UMPACK, [], adopt)
    original = spool / file
    for who, groups in (ASTERISK, [UMPACK]), (STRANGER, [STRANGER]):
        found[f"{who} changes"] = run_as(
            who, groups, lambda: attempt(lambda: original.write_bytes(b""))
        )
    found["stranger looks"] = run_as(
        STRANGER, [STRANGER], lambda: attempt(lambda: os.listdir(spool / "receiving"))
    )
    found["mode"] = stat.S_IMODE((spool / "receiving").stat().st_mode)
    return found


# -- the test -------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become two other users")
def test_asterisk_writes_by_the_shared_group_and_umpack_keeps_it() -> None:
    with tempfile.TemporaryDirectory(prefix="umpack-users-") as folder:
        Path(folder).chmod(0o755)
        done = subprocess.run(
            [sys.executable, "-m", "tests.unit.messages.test_spool_users", folder],
            cwd=ROOT, capture_output=True, text=True, check=False, timeout=50,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "without the group": "PermissionError",
        "engine": "written",
        "received": ["committed", True],
        "adopted while it is written": [[], 1],
        "engine of the second": "written",
        "group of a new file": UMPACK,
        "adopted afterwards": [["", "c2"], 0],
        f"{ASTERISK} changes": "PermissionError",
        f"{STRANGER} changes": "PermissionError",
        "stranger looks": "PermissionError",
        "mode": 0o2770,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))))
