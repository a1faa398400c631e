"""What the spool costs: call end to committed, messages a second, and memory over many.

    python -m tests.bench.bench_spool [DIRECTORY]

Takes about a minute on the disk of DIRECTORY (default: the temporary one). The bare figures are of
the least a safe commit can do there: sync a file, rename it, sync its directory, sync a log.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import tempfile
from pathlib import Path

from umpack import clock
from umpack.core.calls import CallId
from umpack.messages.message import CallFacts, EngineFacts, Kind, MessageId
from umpack.messages.spool import Spool

FAX = os.urandom(90_000)
"""Three pages."""
PACED, PACED_SECONDS = 10, 15.0
BUSY, SIDE_BY_SIDE = 1000, 30
MANY = 10_000
ENGINE = EngineFacts("SUCCESS", pages=3, bitrate=14400, ecm=True, station=b"+49 30 1234567")


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


async def paced(directory: Path) -> tuple[list[float], list[float]]:
    """Seconds from call end to commit at a busy site's pace, and bare ones in turn with them, as
    disks have moods; both in ascending order."""
    least = Bare(directory.with_name("bare"))
    async with Spool(directory, "node") as spool:
        tasks, bare = [], []
        for number in range(int(PACED * PACED_SECONDS)):
            tasks.append(asyncio.create_task(receive(spool, number)))
            await asyncio.sleep(0.5 / PACED)
            bare.append(asyncio.create_task(asyncio.to_thread(least.commit, number)))
            await asyncio.sleep(0.5 / PACED)
        costs = sorted([(await task)[1] for task in tasks])
        return costs, sorted([await task for task in bare])


async def sustained(directory: Path, *, deliver: bool) -> float:
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
        await asyncio.gather(*(worker(range(n, BUSY, SIDE_BY_SIDE)) for n in range(SIDE_BY_SIDE)))
        return BUSY / (clock.monotonic() - began)


async def memory(directory: Path) -> list[int]:
    """Kilobytes of resident memory at every tenth of many messages, delivered and purged."""
    figures = []
    async with Spool(directory, "node") as spool:

        async def worker(numbers: range) -> None:
            for number in numbers:
                id_, _ = await receive(spool, number, FAX[:2000])
                await spool.address(id_, ["a@example.org"])
                held = await spool.claim(id_, 1, spool.disk.now())
                await spool.sent(held, spool.disk.now(), "mx1", "250")

        tenth = MANY // 10
        for start in range(0, MANY, tenth):
            await asyncio.gather(*(worker(range(start + n, start + tenth, 50)) for n in range(50)))
            figures.append(resident())
    return figures


def resident() -> int:
    """Kilobytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 1024


class Bare:
    """The least a commit can do."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._directory = directory
        self._log = (directory / "log").open("wb", buffering=0)

    def commit(self, number: int) -> float:
        """Seconds it took."""
        path = self._directory / f"{number}"
        path.write_bytes(FAX)
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


def line(name: str, costs: list[float]) -> str:
    """One line of percentiles."""
    shares = ("p50", 0.5), ("p95", 0.95), ("max", 1.0)
    found = (
        f"{label} {costs[min(int(len(costs) * share), len(costs) - 1)] * 1000:.1f}"
        for label, share in shares
    )
    return f"{name}: {', '.join(found)} ms\n"


def main() -> None:
    """Print the figures."""
    where = sys.argv[1] if len(sys.argv) > 1 else None
    out = sys.stdout.write
    with tempfile.TemporaryDirectory(dir=where) as folder:
        base = Path(folder)
        costs, least = asyncio.run(paced(base / "paced"))
        out(line(f"call end to committed at {PACED}/s", costs))
        out(line("bare commit in turn", least))
        at = len(costs) * 95 // 100
        out(f"ratio of p95 to bare: {costs[at] / least[at]:.2f}\n")
        committed = asyncio.run(sustained(base / "committed", deliver=False))
        out(f"committed, {SIDE_BY_SIDE} at once: {committed:,.0f} messages/s\n")
        delivered = asyncio.run(sustained(base / "delivered", deliver=True))
        out(f"committed and delivered: {delivered:,.0f} messages/s\n")
        figures = asyncio.run(memory(base / "memory"))
        out(f"memory at every {MANY // 10:,} messages: {figures} kB\n")


if __name__ == "__main__":
    main()
