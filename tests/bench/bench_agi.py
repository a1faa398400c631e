"""FastAGI calls a second: our servers against a bare asyncio server that decides nothing.

    python -m tests.bench.bench_agi [--json] [--rounds 5] [--seconds 1.2] [--loop uvloop|asyncio]
    python -m tests.bench.bench_agi --idle 9000    # so many silent connections, calls beside

Decide nothing: `floor` does not even read, it sends fixed lines whenever something has ended;
`bare` is asyncio's own streams, which read the environment and the answers; `agi_server` is our
FastAGI server with a handler of fixed commands. `umpack` decides: a pack of 30 channels, and the
dialogue of a real call. Each server runs in a process of its own, the client in this one. A round
drives every server in turn; the ratio of a round is its calls/s (and CPU time per call, which other
work on the machine disturbs less) against `bare` and `floor` in the same round, and the median of
the rounds counts. A call is: connect, environment, answer EXEC Dial, answer GET FULL VARIABLE,
answer SET VARIABLE, read to the end; so every server pays for the same round trips.

Another server is compared by adding `name: coroutine` to SERVERS: it listens on 127.0.0.1, calls
`ready(port)`, and serves until cancelled.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import select
import socket
import statistics
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any, cast

from drivers.asterisk.agi_call import AgiCall
from drivers.asterisk.agi_commands import SEPARATOR, exec_, get_full_variable, set_variable
from drivers.asterisk.agi_server import AgiServer, AgiServerLimits, Handler, raise_file_limit
from drivers.asterisk.calls import CAUSE_VARIABLE, DIAL_FACTS, CallHandler
from tests import sites
from tests.bench.bare_agi import Bare
from umpack import clock
from umpack.core.distributor import Distributor
from umpack.core.pack import Strategy

Ready = Callable[[int], None]

# What Asterisk 22 sends for a call from a PJSIP endpoint (res_agi.c, launch_netscript, setup_env).
ENVIRONMENT = b"""agi_network: yes
agi_network_script: umpack
agi_request: agi://127.0.0.1:4573/umpack
agi_channel: PJSIP/provider-0000002a
agi_language: en
agi_type: PJSIP
agi_uniqueid: 1767225600.%d
agi_version: 22.5.2
agi_callerid: 4930123456
agi_calleridname: Example Caller
agi_callingpres: 0
agi_callingani2: 0
agi_callington: 0
agi_callingtns: 0
agi_dnid: 49302000123
agi_rdnis: unknown
agi_context: from-provider
agi_extension: 49302000123
agi_priority: 2
agi_enhanced: 0.0
agi_accountcode: \nagi_threadid: 140245093799616

"""
FACTS = {
    "DIALSTATUS": "ANSWER", "HANGUPCAUSE": "16", "ANSWEREDTIME_MS": "1270",
    "HANGUPCAUSE_KEYS()": "PJSIP/um1-0000002b",
}  # fmt: skip
FIXED = (
    exec_("Dial", "PJSIP/49302000123@um1,20.000"),
    get_full_variable(*DIAL_FACTS),
    set_variable(CAUSE_VARIABLE, "16"),
)
WORDS = tuple(line.split(b'"')[0] for line in FIXED)
VALUES = SEPARATOR.join(FACTS[name] for name in DIAL_FACTS)
ANSWERS = (b"200 result=0\n", b"200 result=1 (%s)\n" % VALUES.encode(), b"200 result=1\n")
CHANNELS = 30
PUMP_SECONDS = 0.1  # as umpack.daemon: who ends a call does not write it down


async def floor(ready: Ready) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Bare(FIXED), "127.0.0.1", 0, backlog=1024)
    ready(server.sockets[0].getsockname()[1])
    await asyncio.Event().wait()


async def bare(ready: Ready) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        block = await reader.readuntil(b"\n\n")
        lines = (line.partition(": ") for line in block.decode().splitlines())
        environment = {key: value for key, _, value in lines}
        assert environment["agi_extension"]
        for line in FIXED:
            writer.write(line)
            answer = await reader.readline()
            if not answer.startswith(b"200 result="):
                break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
    ready(server.sockets[0].getsockname()[1])
    await asyncio.Event().wait()


async def agi_server(ready: Ready) -> None:
    async def handler(call: AgiCall) -> None:
        for line in FIXED:
            await call.command(line)

    await _serve_agi(handler, ready)


async def umpack(ready: Ready) -> None:
    """The decision of one pack, cyclic, and nothing of what the daemon does beside its calls."""
    site = sites.one_pack(sites.trunk("um1", CHANNELS), strategy=Strategy.CYCLIC)
    distributor = Distributor(site)
    await _serve_agi(CallHandler(sites.MAIN, distributor, clock.now), ready, distributor)


async def _serve_agi(
    handler: Handler, ready: Ready, distributor: Distributor | None = None
) -> None:
    def report(call: AgiCall, error: Exception) -> None:
        print(f"{call}: {error!r}", file=sys.stderr)

    limits = AgiServerLimits(environment=60.0)
    server = await AgiServer.start("127.0.0.1", 0, handler=handler, report=report, limits=limits)
    ready(server.port)
    while True:
        await asyncio.sleep(PUMP_SECONDS)
        if distributor:
            distributor.take_records()


SERVERS: dict[str, Callable[[Ready], Awaitable[None]]] = {
    "floor": floor,
    "bare": bare,
    "agi_server": agi_server,
    "umpack": umpack,
}


# --- one server in its own process ------------------------------------------------------------


def _serve(name: str, loop: str, pipe: Connection) -> None:
    async def main() -> None:
        running = asyncio.get_running_loop()
        end = running.create_future()

        def asked() -> None:
            if pipe.recv() == "end":
                end.set_result(None)
            else:
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                pipe.send((time.process_time(), memory))

        running.add_reader(pipe.fileno(), asked)
        served = asyncio.ensure_future(SERVERS[name](pipe.send))
        await end
        served.cancel()

    if loop == "uvloop":
        import uvloop

        uvloop.run(main())
    else:
        asyncio.run(main())


class Server:
    """A server process: its port, and what it has used so far."""

    def __init__(self, name: str, loop: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, loop, theirs))
        self._process.start()
        self.port: int = self._pipe.recv()

    def used(self) -> tuple[float, int]:
        """CPU seconds, and the most memory ever held in KiB."""
        self._pipe.send("used")
        return cast("tuple[float, int]", self._pipe.recv())

    def end(self) -> None:
        self._pipe.send("end")
        self._process.join()


# --- the client: plain epoll, so that it costs less than what it measures ---------------------


def drive(port: int, concurrent: int, seconds: float) -> tuple[int, float]:
    """Keep `concurrent` calls going for `seconds`; gives calls completed and seconds taken.

    It never sleeps: waking it would be the server's work, and more so the slower the server is.
    """
    poll = select.epoll()
    calls: dict[int, tuple[socket.socket, int]] = {}
    done = begun = 0

    def begin() -> None:
        nonlocal begun
        begun += 1
        connection = socket.socket()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.connect(("127.0.0.1", port))
        connection.send(ENVIRONMENT % begun)
        calls[connection.fileno()] = connection, 0
        poll.register(connection.fileno(), select.EPOLLIN)

    start = time.perf_counter()
    end = start + seconds
    for _ in range(concurrent):
        begin()
    while calls:
        for number, _ in poll.poll(0):
            connection, step = calls[number]
            received = connection.recv(4096)
            if step < 3 and received.startswith(WORDS[step]):
                connection.send(ANSWERS[step])
                calls[number] = connection, step + 1
                continue
            if received or step < 3:
                raise SystemExit(f"unexpected in step {step}: {received!r}")
            del calls[number]
            connection.close()
            done += 1
            if time.perf_counter() < end:
                begin()
    poll.close()
    return done, time.perf_counter() - start


def hold(port: int, count: int) -> list[socket.socket]:
    """Open `count` connections that say half a line and no more."""
    held = []
    for _ in range(count):
        connection = socket.create_connection(("127.0.0.1", port))
        # Closed by reset in the end: so many in TIME_WAIT would leave no ports for the next run.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.send(b"agi_netw")
        held.append(connection)
    return held


def compare(loop: str, rounds: int, seconds: float, concurrent: int) -> dict[str, Any]:
    """Drive all servers in turn, `rounds` times; figures and ratios."""
    servers = {name: Server(name, loop) for name in SERVERS}
    rate: dict[str, list[float]] = {name: [] for name in servers}
    cost: dict[str, list[float]] = {name: [] for name in servers}
    try:
        for server in servers.values():
            drive(server.port, concurrent, 0.2)
        for turn in range(rounds):
            order = list(servers.items())
            for name, server in order if turn % 2 else reversed(order):
                before, _ = server.used()
                calls, took = drive(server.port, concurrent, seconds)
                after, _ = server.used()
                rate[name].append(calls / took)
                cost[name].append((after - before) / calls * 1e6)
        result: dict[str, Any] = {"loop": loop, "concurrent": concurrent, "cores": os.cpu_count()}
        for name, server in servers.items():
            result[name] = {
                "calls_per_s": round(statistics.median(rate[name])),
                "cpu_us_per_call": round(statistics.median(cost[name]), 1),
                "ratio": _ratio(rate[name], rate["bare"]),
                "cpu_ratio": _ratio(cost["bare"], cost[name]),
                "ratio_to_floor": _ratio(rate[name], rate["floor"]),
                "max_rss_mib": round(server.used()[1] / 1024, 1),
            }
        return result
    finally:
        for server in servers.values():
            server.end()


def _ratio(these: list[float], those: list[float]) -> float:
    """Median over the rounds: neighbours in time were disturbed alike."""
    return round(statistics.median(a / b for a, b in zip(these, those, strict=True)), 3)


def idle(loop: str, count: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Decisions a second beside `count` connections that never finish their environment.

    They come and go between the slices: with and without them, in turn.
    """
    count = min(count, raise_file_limit() - 200)
    server = Server("umpack", loop)
    rates: tuple[list[float], list[float]] = [], []
    kept: list[int] = []
    try:
        drive(server.port, CHANNELS, 0.2)
        _, before = server.used()
        for _ in range(rounds):
            rates[0].append(_rate(server.port, seconds))
            held = hold(server.port, count)
            rates[1].append(_rate(server.port, seconds))
            kept.append(sum(map(_is_open, held)))
            for connection in held:
                connection.close()
        _, after = server.used()
        return {
            "loop": loop,
            "idle": min(kept),
            "calls_per_s": round(statistics.median(rates[1])),
            "ratio": _ratio(rates[1], rates[0]),
            "kib_per_idle_connection": round((after - before) / count, 2),
        }
    finally:
        server.end()


def _is_open(connection: socket.socket) -> bool:
    """Whether the server has not ended it."""
    try:
        return connection.recv(1, socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def _rate(port: int, seconds: float) -> float:
    calls, took = drive(port, CHANNELS, seconds)
    return calls / took


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--json", action="store_true")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=1.2)
    options.add_argument("--concurrent", type=int, default=CHANNELS)
    options.add_argument("--loop", choices=("uvloop", "asyncio"))
    options.add_argument("--idle", type=int, default=0, metavar="CONNECTIONS")
    chosen = options.parse_args()
    if chosen.loop is None:
        try:
            import uvloop  # noqa: F401

            chosen.loop = "uvloop"
        except ImportError:
            chosen.loop = "asyncio"
    if chosen.idle:
        result = idle(chosen.loop, chosen.idle, chosen.rounds, chosen.seconds)
    else:
        result = compare(chosen.loop, chosen.rounds, chosen.seconds, chosen.concurrent)
    if chosen.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
