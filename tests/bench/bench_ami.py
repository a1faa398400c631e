"""AMI events per second: stock pyst2, our link, and the codec alone, in one run.

    python -m tests.bench.bench_ami [--json] [--events N]

The peer is a process of its own that has the bytes ready, so only the reading side is measured. The
consumer of the link looks at three headers of every event, in an asyncio task.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable

from drivers.asterisk.ami import AmiAddress, AmiEvent, AmiLink, EventsMissed, LinkUp
from drivers.asterisk.ami_wire import AmiCodec

HEADERS = 30
STOCK_EVENTS = 1_500
GREETING = b"Asterisk Call Manager/11.0.0\r\n"


def event(number: int) -> bytes:
    lines = ["Event: Newstate", "Privilege: call,all"]
    lines += [f"Header{index:02d}: value {number} of {index}" for index in range(HEADERS - 2)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def serve() -> None:
    """Answer every action; `Flood` is followed by `Count` events."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            peer, _ = server.accept()
            threading.Thread(target=talk, args=(peer,), daemon=True).start()


def talk(peer: socket.socket) -> None:
    with peer, peer.makefile("rb") as lines:
        peer.sendall(GREETING)
        action: dict[str, str] = {}
        for line in lines:
            name, _, value = line.decode().strip().partition(": ")
            if name:
                action[name] = value
                continue
            if not action:
                continue
            answer = "Goodbye" if action["Action"] == "Logoff" else "Success"
            peer.sendall(f"Response: {answer}\r\nActionID: {action['ActionID']}\r\n\r\n".encode())
            if action["Action"] == "Logoff":
                return  # as Asterisk does; stock pyst2 hangs in close() if the peer does not
            if action["Action"] == "Flood":
                block = b"".join(event(number) for number in range(100))
                for _ in range(int(action["Count"]) // 100):
                    peer.sendall(block)
            action = {}


def stock(port: int, count: int) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from asterisk.manager import Manager

        seen = 0
        done = threading.Event()

        def look(got: object, manager: object) -> None:
            nonlocal seen
            seen += 1
            if seen == count:
                done.set()

        manager = Manager()
        manager.connect("127.0.0.1", port)
        manager.login("bench", "bench")
        manager.register_event("*", look)
        began = time.perf_counter()
        manager.send_action({"Action": "Flood", "Count": str(count)})
        done.wait(30)
        rate = seen / (time.perf_counter() - began)
        manager.close()
        return rate


async def link_rate(port: int, count: int) -> tuple[float, int, float]:
    """Events per second, events missed, and the loop's longest pause in seconds."""
    link = AmiLink(
        AmiAddress("127.0.0.1", port, "bench", "bench"),
        events=frozenset({"Newstate"}),
        capacity=count + 10,
    )
    running = asyncio.create_task(link.run())
    pauses: list[float] = []
    ticking = asyncio.create_task(tick(pauses))
    seen = missed = 0
    began = time.perf_counter()
    flood: asyncio.Task[object] | None = None
    async for item in link.events:
        if isinstance(item, AmiEvent):
            assert item["Header00"] != item["header05"] != item["Privilege"]
            seen += 1
            if seen == count:
                break
        elif isinstance(item, EventsMissed):
            missed += item.count
        elif isinstance(item, LinkUp):
            began = time.perf_counter()
            flood = asyncio.create_task(link.action("Flood", {"Count": str(count)}, timeout=30))
    rate = seen / (time.perf_counter() - began)
    for task in (ticking, running):
        task.cancel()
    await asyncio.gather(running, ticking, *([flood] if flood else []), return_exceptions=True)
    return rate, missed, max(pauses, default=0.0)


async def tick(pauses: list[float]) -> None:
    while True:
        before = time.perf_counter()
        await asyncio.sleep(0.002)
        pauses.append(time.perf_counter() - before - 0.002)


def codec_rate(count: int, wanted: frozenset[str] | None) -> float:
    stream = b"".join(event(number) for number in range(count))
    codec = AmiCodec(wanted)
    codec.feed(GREETING)
    began = time.perf_counter()
    seen = 0
    for start in range(0, len(stream), 65_536):
        seen += len(codec.feed(stream[start : start + 65_536]))
    spent = time.perf_counter() - began
    assert seen + codec.skipped == count
    return count / spent


def best(measure: Callable[[], float], times: int = 3) -> float:
    return max(measure() for _ in range(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--events", type=int, default=40_000)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    count = max(1_000, options.events // 100 * 100)
    command = [sys.executable, "-m", "tests.bench.bench_ami", "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as peer:
        try:
            assert peer.stdout is not None
            port = int(peer.stdout.readline())
            rate_stock = stock(port, STOCK_EVENTS)
            rate_link, missed, pause = max(asyncio.run(link_rate(port, count)) for _ in range(2))
        finally:
            peer.terminate()
    rate_codec = best(lambda: codec_rate(count // 4, None))
    rate_skip = best(lambda: codec_rate(count // 4, frozenset({"Hangup"})))
    result = {
        "headers_per_event": HEADERS,
        "stock_per_second": round(rate_stock),
        "link_per_second": round(rate_link),
        "codec_per_second": round(rate_codec),
        "codec_unwanted_per_second": round(rate_skip),
        "link_to_stock": round(rate_link / rate_stock, 1),
        "link_to_codec": round(rate_link / rate_codec, 2),
        "missed": missed,
        "longest_pause_ms": round(pause * 1000, 1),
    }
    if options.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:28} {value:>12,}")


if __name__ == "__main__":
    main()
