"""The log in processes of their own: its sinks belong to the whole process."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.daemons import ROOT
from umpack.config import Log
from umpack.core.calls import Call, CallId, CallRecord, Ending
from umpack.core.errors import OurFault
from umpack.core.trunk import PbxId
from umpack.log import LogOutput, line_of

PROLOGUE = """
import asyncio, logging, sys
from pathlib import Path
from loguru import logger
from umpack.config import Log
from umpack import log
"""


def ran(script: str, *arguments: str, pipe: int | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROLOGUE + script, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if pipe is None else pipe,
        text=True,
        timeout=40,
        check=False,
    )


def test_standard_error_with_levels_and_libraries() -> None:
    done = ran("""
out = log.LogOutput(Log("info", None))
logger.debug("unseen")
logger.info("seen {}", "ä→\\ud800")
logging.getLogger("asyncio").error("lost\\nERROR forged")
logging.getLogger("aiohttp").info("unseen")
secret = "hunter2"
try:
    assert secret == ""
except AssertionError:
    logger.exception("broken")
out.change(Log("error", None))
logger.info("unseen")
logger.error("still there")
out.close()
""")
    lines = done.stderr.splitlines()
    assert lines[0] == "INFO    seen ä→\\ud800"
    assert lines[1] == "ERROR   asyncio: lost\\nERROR forged"
    assert lines[2] == "ERROR   broken"
    assert lines[-1] == "ERROR   still there"
    assert "Traceback (most recent call last):" in done.stderr
    assert done.stderr.count("AssertionError") == 1
    assert "unseen" not in done.stderr
    assert "hunter2" not in done.stderr
    assert done.returncode == 0


def test_a_file_that_rotates(tmp_path: Path) -> None:
    done = ran(
        """
log._FILE_BYTES, log._OLD_FILES, log._AT_ONCE = 2000, 2, 10
out = log.LogOutput(Log("info", Path(sys.argv[1])))
for number in range(100):
    logger.info("line {:03} {}", number, "x" * 40)
out.close()
""",
        str(tmp_path / "logs" / "umpack.log"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    names = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert names == ["umpack.log", "umpack.log.1.gz", "umpack.log.2.gz"]
    text = ""
    for name in ("umpack.log.2.gz", "umpack.log.1.gz"):
        text += gzip.decompress((tmp_path / "logs" / name).read_bytes()).decode()
    text += (tmp_path / "logs" / "umpack.log").read_text()
    numbers = [int(line.split("line ")[1][:3]) for line in text.splitlines()]
    assert numbers == list(range(numbers[0], 100))


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OurFault, match=r"log file .*umpack.log: "):
        LogOutput(Log("info", tmp_path / "file" / "umpack.log"))


def test_a_reader_that_does_not_read_stops_nobody() -> None:
    readable, writable = os.pipe()
    try:
        done = ran(
            """
log._WAITING, log._LONGEST_WAIT = 100, 0.2
out = log.LogOutput(Log("info", None))
for number in range(5000):
    logger.info("{}", "x" * 200)
dropped = out.dropped
out.close()
print(dropped)
""",
            pipe=writable,
        )
    finally:
        os.close(readable)
        os.close(writable)
    assert done.returncode == 0
    # Some 300 lines fit into the pipe and 100 into the queue.
    assert 4300 < int(done.stdout) < 4900


def test_a_call_in_one_line() -> None:
    call = Call(CallId("main-1-1"), PbxId("main"), "1\n00", "\x1b[2J\u202eevil", "n")
    record = CallRecord(call, 10.0, 12.25, Ending.REFUSED, 34, "um\nis full", "1*", (), (), ())
    assert line_of(record) == (
        "call main-1-1 \\x1b[2J\\u202eevil → 1\\n00: refused, cause 34, 2.2 s: um\\nis full"
    )
