"""What the spool costs: call end to committed, messages a second, and memory over many.

    python -m tests.bench.bench_spool [--json] [--quick] [--directory DIRECTORY]

Takes about a minute on the disk of DIRECTORY (default: the temporary one). The bare figures are of
the least a safe commit can do there: sync a file, rename it, sync its directory, sync a log.
The spool by itself, whose costs bench_reception.py and bench_messages.py have within theirs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umpack import clock
from umpack.core.calls import CallId
from umpack.messages.message import CallFacts, EngineFacts, Kind, MessageId
from umpack.messages.spool import Spool

FAX = os.urandom(90_000)
"""Three pages."""
PACED = 10
"""Receptions that end in a second."""
SIDE_BY_SIDE = 30
ENGINE = EngineFacts("SUCCESS", pages=3, bitrate=14400, ecm=True, station=b"+49 30 1234567")


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    seconds: float = 15.0
    busy: int = 1000
    many: int = 10_000


QUICK = Size(4.0, 200, 1000)


def call(number: int) -> CallFacts:
    """A call among many."""
    return CallFacts(CallId(f"1700000000.{number}"), Kind.FAX, "49302000123", f"4930{number:07}")


async def receive(spool: Spool, number: int, fax: bytes = FAX) -> tuple[MessageId, float]:
    """One fax; its id, and the seconds between call end and commit."""
    intent = await spool.intend(call(number))
    await asyncio.to_thread(Path(intent.path).write_bytes, fax)
    began = clock.monotonic()
    await spool.commit(intent.id, ENGINE)
    return intent.id, clock.monotonic() - began


async def paced(directory: Path, seconds: float) -> tuple[list[float], list[float]]:
    """Seconds from call end to commit at a busy site's pace, and bare ones in turn with them, as
    disks have moods; both in ascending order."""
    least = Bare(directory.with_name("bare"), FAX)
    async with Spool(directory, "node") as spool:
        tasks, bare = [], []
        for number in range(int(PACED * seconds)):
            tasks.append(asyncio.create_task(receive(spool, number)))
            await asyncio.sleep(0.5 / PACED)
            bare.append(asyncio.create_task(asyncio.to_thread(least.commit, number)))
            await asyncio.sleep(0.5 / PACED)
        costs = sorted([(await task)[1] for task in tasks])
        return costs, sorted([await task for task in bare])


async def sustained(directory: Path, count: int, *, deliver: bool) -> float:
    """Messages a second, several at once, from intent to commit or to delivered."""

    async def worker(numbers: range) -> None:
        for number in numbers:
            id_, _ = await receive(spool, number)
            if deliver:
                await spool.address(id_, ["a@example.org"])
                held = await spool.claim(id_, 1, spool.disk.now())
                await spool.sent(held, spool.disk.now(), "mx1", "250 2.0.0 Ok: queued as 4XY")

    async with Spool(directory, "node") as spool:
        began = clock.monotonic()
        await asyncio.gather(*(worker(range(n, count, SIDE_BY_SIDE)) for n in range(SIDE_BY_SIDE)))
        return count / (clock.monotonic() - began)


async def memory(directory: Path, many: int) -> list[int]:
    """Kilobytes of resident memory at every tenth of many messages, delivered and purged."""
    figures = []
    async with Spool(directory, "node") as spool:

        async def worker(numbers: range) -> None:
            for number in numbers:
                id_, _ = await receive(spool, number, FAX[:2000])
                await spool.address(id_, ["a@example.org"])
                held = await spool.claim(id_, 1, spool.disk.now())
                await spool.sent(held, spool.disk.now(), "mx1", "250")

        tenth = many // 10
        for start in range(0, many, tenth):
            await asyncio.gather(*(worker(range(start + n, start + tenth, 50)) for n in range(50)))
            figures.append(resident())
    return figures


def resident() -> int:
    """Kilobytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 1024


class Bare:
    """The least a commit can do."""

    def __init__(self, directory: Path, fax: bytes) -> None:
        directory.mkdir()
        self._directory = directory
        self._fax = fax
        self._log = (directory / "log").open("wb", buffering=0)

    def commit(self, number: int) -> float:
        """Seconds it took."""
        path = self._directory / f"{number}"
        path.write_bytes(self._fax)
        began = clock.monotonic()
        with path.open("rb") as file:
            os.fsync(file.fileno())
        path.rename(self._directory / f"{number}.tif")
        folder = os.open(self._directory, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        self._log.write(bytes(8192))
        os.fsync(self._log.fileno())
        return clock.monotonic() - began


def percentile(ascending: Sequence[float], share: float) -> float:
    """Of figures in ascending order."""
    return ascending[min(int(len(ascending) * share), len(ascending) - 1)]


def measure(base: Path, size: Size) -> dict[str, Any]:
    """All figures; times in milliseconds."""
    costs, least = asyncio.run(paced(base / "paced", size.seconds))
    figures = asyncio.run(memory(base / "memory", size.many))
    p95, bare = percentile(costs, 0.95), percentile(least, 0.95)
    return {
        "commit_ms_p50": percentile(costs, 0.5) * 1000,
        "commit_ms_p95": p95 * 1000,
        "commit_ms_max": costs[-1] * 1000,
        "bare_ms_p95": bare * 1000,
        "ratio": p95 / bare,
        "committed_per_s": asyncio.run(sustained(base / "committed", size.busy, deliver=False)),
        "delivered_per_s": asyncio.run(sustained(base / "delivered", size.busy, deliver=True)),
        "memory": figures,
        "memory_growth": figures[-1] / figures[0],
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    """Print the figures."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--json", action="store_true")
    options.add_argument("--quick", action="store_true")
    options.add_argument("--directory", help="whose disk is measured; default: the temporary one")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.directory) as folder:
        found = measure(Path(folder), QUICK if chosen.quick else Size())
    out = sys.stdout.write
    if chosen.json:
        out(json.dumps(found) + "\n")
        return
    out(
        f"call end to committed at {PACED}/s: p50 {found['commit_ms_p50']:.1f}, "
        f"p95 {found['commit_ms_p95']:.1f}, max {found['commit_ms_max']:.1f} ms; p95 of a bare "
        f"commit in turn {found['bare_ms_p95']:.1f} ms, ratio {found['ratio']:.2f}\n"
        f"committed, {SIDE_BY_SIDE} at once: {found['committed_per_s']:,.0f} messages/s\n"
        f"committed and delivered: {found['delivered_per_s']:,.0f} messages/s\n"
        f"memory at every tenth: {found['memory']} kB, growth {found['memory_growth']:.2f}\n"
    )


if __name__ == "__main__":
    main()
