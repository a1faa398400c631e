"""What the journal costs: rows a second, and microseconds on the thread that hands them over.

    python -m tests.bench.bench_journal

Prints one line per figure and takes about ten seconds. The ratio compares with a bare
`executemany` of ready-made rows into the same tables, in transactions of the same size.
"""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from umpack import clock
from umpack.core.calls import Attempt, Call, CallId, CallRecord, Ending
from umpack.core.causes import Blame, Elsewhere, Outcome, Result, Verdict
from umpack.core.channel import ChannelId
from umpack.core.pack import PackId
from umpack.core.trunk import PbxId, TrunkId
from umpack.journal import Journal
from umpack.journal.rows import row_of
from umpack.journal.schema import connect, prepare, transaction
from umpack.journal.writer import BATCH, INSERT

START = 1_700_000_000.0
ANSWERED = Verdict(Elsewhere.NO, Blame.NOBODY, "answered")
BUSY_SECONDS = 3.0
PACED_CALLS, PACED_SECONDS = 500, 2.0


def record(number: int) -> CallRecord:
    """A call that was answered on its first channel, as most are."""
    began = START + number / 100
    slot = number % 30 + 1
    return CallRecord(
        Call(
            CallId(f"1700000000.{number}"), PbxId("main"), f"49302000{number % 1000:03}",
            f"4930{number * 7919 % 10**7:07}", "Müller", f"PJSIP/line-{number:08x}",
        ),
        began, began + 30, Ending.CONNECTED, 16, "answered", "49302000XXX",
        (
            Attempt(
                ChannelId(f"um1:{slot}"), TrunkId("um1"), PackId("um"), slot,
                ChannelId(f"um1:{slot - 1 or 30}"), 0, began, began + 30,
                Outcome(Result.ANSWERED, 16), ANSWERED,
            ),
        ),
        (), (), None, began + 1,
    )  # fmt: skip


def bare(path: Path) -> float:
    """Rows a second of SQLite alone."""
    prepare(path, START)
    rows = [row_of(record(n), "node") for n in range(BATCH * 10)]
    with closing(connect(path)) as connection:
        began = clock.monotonic()
        for start in range(0, len(rows), BATCH):
            with transaction(connection):
                connection.executemany(INSERT, rows[start : start + BATCH])
        return len(rows) / (clock.monotonic() - began)


def sustained(path: Path) -> float:
    """Rows a second over a few seconds, the queue never empty, all on disk at the end."""
    pool = [record(n) for n in range(BATCH * 40)]
    written = 0
    with Journal(path, "node", now=lambda: START) as journal:
        began = clock.monotonic()
        while written < len(pool) and clock.monotonic() - began < BUSY_SECONDS:
            if journal.waiting < BATCH * 10:
                journal.append(pool[written : written + BATCH])
                written += BATCH
            else:
                time.sleep(0.001)
        journal.flush()
        rate = written / (clock.monotonic() - began)
        assert (journal.waiting, journal.dropped) == (0, 0)
    return rate


def append_cost(path: Path) -> list[float]:
    """Seconds each `append` of one call takes at a steady pace, in ascending order."""
    records = [record(n) for n in range(int(PACED_CALLS * PACED_SECONDS))]
    costs = []
    with Journal(path, "node", now=lambda: START) as journal:
        due = clock.monotonic()
        for one in records:
            due += 1 / PACED_CALLS
            while clock.monotonic() < due:
                pass
            began = clock.monotonic()
            journal.append((one,))
            costs.append(clock.monotonic() - began)
    return sorted(costs)


def main() -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        alone = bare(Path(folder) / "bare.db")
        rate = sustained(Path(folder) / "sustained.db")
        costs = append_cost(Path(folder) / "paced.db")
    out = sys.stdout.write
    out(f"journal rows/s, sustained: {rate:,.0f}\n")
    out(f"bare executemany rows/s:   {alone:,.0f}\n")
    out(f"ratio:                     {rate / alone:.2f}\n")
    for name, share in ("p50", 0.5), ("p99", 0.99), ("max", 1.0):
        cost = costs[min(int(len(costs) * share), len(costs) - 1)]
        out(f"append at {PACED_CALLS} calls/s, {name}: {cost * 1e6:.1f} µs\n")


if __name__ == "__main__":
    main()
