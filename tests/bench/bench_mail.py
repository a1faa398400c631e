"""How many letters a second the transport delivers to a sink of its own process.

    python -m tests.bench.bench_mail [--json] [--quick]

The ratio compares with a bare client that writes the same dialogue over asyncio streams and looks
at nothing it reads, to the same sink over as many connections at once. Faxes of three pages.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any

import dns.asyncresolver

from umpack import clock
from umpack.messages.letter import Address, Delivered, Letter
from umpack.messages.relays import Manner, Target, Tls
from umpack.messages.transport import Transport, TransportPlan

BODY = (
    b"Message-ID: <1@umpack.test>\r\nSubject: [Fax] +4930123456, 3 pages\r\n\r\n"
    + (b"QUJD" * 19 + b"\r\n") * 1200
)
"""About 92 kB: three pages, base64."""
WHO, YOU = Address("fax@umpack.test"), Address("you@umpack.test")
LETTER = Letter("<1@umpack.test>", WHO, (YOU,), BODY)


class Sink(asyncio.Protocol):
    """Takes everything, as cheaply as can be."""

    def connection_made(self, transport: Any) -> None:
        self.transport, self.data = transport, False
        self.tail = b""
        transport.write(b"220 sink\r\n")

    def data_received(self, data: bytes) -> None:
        if self.data:
            self.tail = (self.tail + data)[-5:]
            if self.tail == b"\r\n.\r\n":
                self.data = False
                self.transport.write(b"250 2.0.0 Ok: queued as 1\r\n")
        elif data[:4] == b"DATA":
            self.data, self.tail = True, b""
            self.transport.write(b"354 go\r\n")
        elif data[:4] == b"EHLO":
            self.transport.write(b"250-sink\r\n250-SIZE 99999999\r\n250 DSN\r\n")
        elif data[:4] == b"QUIT":
            self.transport.write(b"221 bye\r\n")
            self.transport.close()
        else:
            self.transport.write(b"250 ok\r\n")


def sink(tell: Connection) -> None:
    async def serve() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Sink, "127.0.0.1", 0, backlog=512)
        tell.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


async def bare(port: int) -> None:
    """The same words, none of the care."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await reader.readline()
    for line in (
        b"EHLO bench\r\n", b"MAIL FROM:<a@b>\r\n", b"RCPT TO:<a@b>\r\n", b"DATA\r\n",
        BODY + b".\r\n", b"QUIT\r\n",
    ):  # fmt: skip
        writer.write(line)
        await reader.readuntil(b"bye\r\n" if line[:4] == b"QUIT" else b"\n")
        if line[:4] == b"EHLO":
            await reader.readuntil(b"DSN\r\n")
    writer.close()
    await writer.wait_closed()


async def rate(one: Callable[[], Awaitable[None]], connections: int, letters: int) -> float:
    left = iter(range(letters))

    async def worker() -> None:
        for _ in left:
            await one()

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(connections)))
    return letters / (time.perf_counter() - began)


async def measure(port: int, connections: int, letters: int, rounds: int) -> dict[str, float]:
    plan = TransportPlan(
        "bench.test", (Target("127.0.0.1", port, Manner(Tls.NEVER)),),
        connections=connections, per_server=connections,
    )  # fmt: skip
    resolver = dns.asyncresolver.Resolver(configure=False)
    transport = Transport(plan, resolver, clock.now, random.Random(1))

    async def deliver() -> None:
        ends = await transport.deliver(LETTER, (YOU,))
        assert isinstance(ends[YOU], Delivered), ends

    rates, ratios = [], []
    for _ in range(rounds):
        plain = await rate(lambda: bare(port), connections, letters)
        ours = await rate(deliver, connections, letters)
        rates.append(ours)
        ratios.append(ours / plain)
    cpu = time.process_time()
    await rate(deliver, connections, letters)
    return {
        "messages_per_s": round(statistics.median(rates), 1),
        "ratio": round(statistics.median(ratios), 3),
        "cpu_ms_per_message": round((time.process_time() - cpu) / letters * 1000, 2),
    }


def main() -> None:
    """Print the figures."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--json", action="store_true")
    options.add_argument("--quick", action="store_true")
    chosen = options.parse_args()
    letters, rounds = (100, 1) if chosen.quick else (300, 3)
    mine, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=sink, args=(theirs,), daemon=True)
    process.start()
    try:
        port = mine.recv()
        found = {
            f"connections {n}": asyncio.run(measure(port, n, letters, rounds)) for n in (1, 4, 16)
        }
    finally:
        process.terminate()
        process.join()
    if chosen.json:
        print(json.dumps({**found, "load_average": os.getloadavg()[0]}))
        return
    for name, figures in found.items():
        words = ", ".join(f"{key} {value}" for key, value in figures.items())
        print(f"{name}: {words}")


if __name__ == "__main__":
    main()
