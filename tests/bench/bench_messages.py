"""From the commit to a mail server: messages a second with all syncs, and memory over many.

    python -m tests.bench.bench_messages [--json] [--quick] [--directory DIRECTORY]

The sink is a process of its own; loop and heap are the daemon's. Voice messages cost no conversion;
a fax costs one child process, whose time is shown by itself. The bare figure is the spool alone:
commit, claim and end. Memory is looked at with every message delivered, and must not grow after the
warm-up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from loguru import logger

from tests.bench.bench_mail import sink
from tests.unit.messages.fax_files import Sheet, fax, picture
from tests.unit.messages.offices import facts, plan
from umpack import clock
from umpack.cli.running import run_loop
from umpack.config.mail import MessagesPlan
from umpack.messages.message import EngineFacts, Kind
from umpack.messages.office import Messages
from umpack.messages.spool import Spool

AT_ONCE = 30
MEMORY: Final = (1000, 2000, 5000, 10_000)
QUICK_MEMORY: Final = (500, 1000, 2000)
"""Messages after which memory is looked at; the second figure is after the warm-up, when SQLite's
caches are full and every thread has had its largest mail."""
SECONDS = 6
"""Of speech: 96 kB, as three pages of fax."""


def wav(seconds: float) -> bytes:
    """A whole one, of noise: 8 kHz, 16 bit."""
    size = round(seconds * 16000)
    return (
        b"RIFF" + (36 + size).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
        + bytes.fromhex("01000100401f0000803e000002001000") + b"data" + size.to_bytes(4, "little")
        + os.urandom(size)
    )  # fmt: skip


WAV = wav(SECONDS)
SHORT = wav(1.25)
"""For many. Whole, too: a caller who was told of a broken message is remembered for two hours."""


def resident() -> int:
    """Kilobytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 1024


@dataclass(frozen=True, slots=True)
class Flow:
    """What came of many messages: a second, processor time and waits of threads for each, and
    resident memory in kB by how many there had been."""

    rate: float
    cpu_ms: float
    switches: float
    memory: Mapping[int, int]


async def receive(messages: Messages, number: int, content: bytes, kind: Kind) -> None:
    """One message, as a call brings it."""
    name = "original.wav" if kind is Kind.VOICE else "original.tif"
    intent = await messages.intend(facts(number, kind), name)
    await asyncio.to_thread(Path(intent.path).write_bytes, content)
    pages = 3 if kind is Kind.FAX else None
    await messages.commit(intent.id, EngineFacts("SUCCESS", pages=pages, seconds=float(SECONDS)))


async def delivered(messages: Messages, count: int) -> None:
    """Wait until so many have been."""
    while True:
        still = await messages.spool.health(clock.now())
        if not still.queue and not still.unaddressed and not still.receiving:
            assert not still.dead_letters
            return
        await asyncio.sleep(0.05)


async def flow(the_plan: MessagesPlan, counts: Sequence[int], content: bytes, kind: Kind) -> Flow:
    """Messages from the first intent to the last 250; all are delivered at each of the `counts`."""
    messages = Messages(the_plan, "bench", now=clock.now)
    await messages.open()
    try:
        await messages.start()
        await receive(messages, 10**6, content, kind)
        await delivered(messages, 1)
        began, used = clock.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
        memory: dict[int, int] = {}
        for first, last in pairwise((0, *counts)):

            async def worker(numbers: range) -> None:
                for number in numbers:
                    await receive(messages, number, content, kind)

            await asyncio.gather(*(worker(range(first + n, last, AT_ONCE)) for n in range(AT_ONCE)))
            await delivered(messages, last)
            memory[last] = resident()
        count, seconds = counts[-1], clock.monotonic() - began
        now = resource.getrusage(resource.RUSAGE_SELF)
        cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
        switches = now.ru_nvcsw - used.ru_nvcsw
        return Flow(count / seconds, cpu / count * 1000, switches / count, memory)
    finally:
        await messages.close()


async def spool_alone(directory: Path, count: int) -> float:
    """The same syncs without desk, mail and server."""

    async def worker(numbers: range) -> None:
        for number in numbers:
            intent = await spool.intend(facts(number, Kind.VOICE), "original.wav")
            await asyncio.to_thread(Path(intent.path).write_bytes, WAV)
            await spool.commit(intent.id, EngineFacts("SUCCESS"))
            await spool.address(intent.id, ["a@site.test"])
            held = await spool.claim(intent.id, 1, clock.now())
            await spool.sent(held, clock.now(), "mx1", "250")

    async with Spool(directory, "bench") as spool:
        began = clock.monotonic()
        await asyncio.gather(*(worker(range(n, count, AT_ONCE)) for n in range(AT_ONCE)))
        return count / (clock.monotonic() - began)


async def measure(directory: Path, port: int, *, quick: bool) -> dict[str, Any]:
    """All figures."""
    count = 300 if quick else 2000
    wide = {"connections": 20, "per_server": 20}
    found: dict[str, Any] = {"bare": await spool_alone(directory / "bare", count)}
    voice = plan(directory / "voice", port, **wide)
    spoken = await flow(voice, [count], WAV, Kind.VOICE)
    found |= {"voice": spoken.rate, "ratio": spoken.rate / found["bare"]}
    found |= {"cpu_ms": spoken.cpu_ms, "switches": spoken.switches}
    pages = fax([Sheet(picture(number)) for number in range(1, 4)])
    faxes = plan(directory / "fax", port, conversions=os.cpu_count() or 2, **wide)
    found["fax"] = (await flow(faxes, [20 if quick else 60], pages, Kind.FAX)).rate
    many = plan(directory / "many", port, **wide)
    counts = QUICK_MEMORY if quick else MEMORY
    memory = (await flow(many, counts, SHORT, Kind.VOICE)).memory
    found["memory_kb"] = {str(number): size for number, size in memory.items()}
    found["memory_growth"] = memory[counts[-1]] / memory[counts[1]]
    found["load_average"] = os.getloadavg()[0]
    return found


def main() -> None:
    """Print the figures."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--json", action="store_true")
    options.add_argument("--quick", action="store_true")
    options.add_argument("--directory", help="whose disk is measured; default: the temporary one")
    chosen = options.parse_args()
    logger.remove()
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=sink, args=(theirs,), daemon=True)
    server.start()
    try:
        with tempfile.TemporaryDirectory(dir=chosen.directory) as folder:
            port, found = ours.recv(), dict[str, Any]()

            async def run() -> None:
                found.update(await measure(Path(folder), port, quick=chosen.quick))

            run_loop(run)
    finally:
        server.terminate()
        server.join()
    if chosen.json:
        print(json.dumps(found))
        return
    print(f"spool alone:            {found['bare']:7.0f} messages/s")
    print(f"voice, to the sink:     {found['voice']:7.0f} messages/s, ratio {found['ratio']:.2f}")
    print(f"  each {found['cpu_ms']:.1f} ms of processor time, {found['switches']:.0f} waits")
    print(f"faxes of 3 pages:       {found['fax']:7.1f} messages/s, each converted by a child")
    sizes = ", ".join(f"{size:,} after {count}" for count, size in found["memory_kb"].items())
    print(f"memory:                 {sizes}, growth {found['memory_growth']:.3f}")


if __name__ == "__main__":
    main()
