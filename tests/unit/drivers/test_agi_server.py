from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from drivers.asterisk.agi import AgiAnswer
from drivers.asterisk.agi_call import AgiCall
from drivers.asterisk.agi_commands import FAILURE, command, exec_, get_full_variable, set_variable
from drivers.asterisk.agi_server import AgiServer, AgiServerLimits, raise_file_limit
from umpack.core.errors import PeerGone, PeerTimeout, ProtocolFault, StateError

ENVIRONMENT = b"agi_channel: PJSIP/x-1\nagi_uniqueid: 1.1\nagi_extension: 100\n\n"
DIAL = exec_("Dial", "PJSIP/100@um1")


async def dial(call: AgiCall) -> None:
    await call.command(DIAL)


@dataclass
class Running:
    """A server with its reports, and peers that connect to it."""

    server: AgiServer
    reports: list[tuple[AgiCall, Exception]] = field(default_factory=list)

    async def connect(self, said: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        writer.write(said)
        return reader, writer

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not true():  # noqa: ASYNC110 (what is waited for happens in the server)
                await asyncio.sleep(0.002)


@asynccontextmanager
async def running(
    handler: Callable[[AgiCall], Awaitable[None]], limits: AgiServerLimits | None = None
) -> AsyncIterator[Running]:
    reports: list[tuple[AgiCall, Exception]] = []

    def report(call: AgiCall, error: Exception) -> None:
        reports.append((call, error))

    server = await AgiServer.start("127.0.0.1", 0, handler=handler, report=report, limits=limits)
    try:
        yield Running(server, reports)
    finally:
        await server.close()
        assert server.stats.open == 0
        mine = asyncio.current_task()
        assert [task for task in asyncio.all_tasks() if task is not mine] == []


async def hang_up(writer: asyncio.StreamWriter, *, reset: bool = False) -> None:
    if reset and not writer.transport.is_closing():
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    writer.close()
    try:
        await writer.wait_closed()
    except ConnectionError:
        assert reset


async def test_a_call_from_top_to_bottom() -> None:
    seen: list[object] = []

    async def handler(call: AgiCall) -> None:
        seen.append((call.environment.extension, call.hung_up, call.commanded))
        seen.append(await call.command(DIAL, limit=20))
        seen.append(await call.command(get_full_variable("DIALSTATUS")))
        seen.append((call.hung_up, call.commanded))

    async with running(handler) as run:
        reader, writer = await run.connect(ENVIRONMENT)
        assert await reader.readline() == b'EXEC "Dial" "PJSIP/100@um1"\n'
        writer.write(b"100 result=0 Trying...\n200 result=-1\nHANGUP\n")
        assert await reader.readline() == b'GET FULL VARIABLE "${DIALSTATUS}"\n'
        writer.write(b"200 result=1 (ANS")
        await asyncio.sleep(0.01)
        writer.write(b"WER)\n")
        assert await reader.read() == b""  # closed when the handler returned, nothing more sent
        await hang_up(writer)
        assert seen == [
            ("100", False, False),
            AgiAnswer(200, -1),
            AgiAnswer(200, 1, "ANSWER"),
            (True, True),
        ]
        await run.until(lambda: run.server.stats.open == 0)
        stats = run.server.stats
        assert (stats.accepted, stats.calls, stats.faults, stats.errors) == (1, 1, 0, 0)
        assert run.reports == []


async def test_an_unknown_command_is_an_answer() -> None:
    answers: list[AgiAnswer] = []

    async def handler(call: AgiCall) -> None:
        answers.append(await call.command(command("NONSENSE")))
        answers.append(await call.command(DIAL))

    async with running(handler) as run:
        reader, writer = await run.connect(ENVIRONMENT)
        await reader.readline()
        writer.write(b"510 Invalid or unknown command\n")
        await reader.readline()
        writer.write(b"511 Command Not Permitted on a dead channel or intercept routine\n")
        assert await reader.read() == b""
        await hang_up(writer)
    assert [answer.code for answer in answers] == [510, 511]
    assert not answers[0].ok


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    "said", [b"", b"agi_netw", ENVIRONMENT[:-1], ENVIRONMENT, ENVIRONMENT + b"200 res"]
)
async def test_hang_up_in_any_step(said: bytes, reset: bool) -> None:
    losses: list[Exception] = []

    async def handler(call: AgiCall) -> None:
        try:
            await call.command(DIAL)
        except PeerGone as gone:
            losses.append(gone)
            assert call.hung_up
            with pytest.raises(PeerGone):
                call.command(DIAL)

    async with running(handler) as run:
        reader, writer = await run.connect(said[: len(ENVIRONMENT)])
        if len(said) >= len(ENVIRONMENT):
            assert await reader.readline() == DIAL
            writer.write(said[len(ENVIRONMENT) :])
        await run.until(lambda: run.server.stats.open == 1)
        await asyncio.sleep(0.01)
        await hang_up(writer, reset=reset)
        await run.until(lambda: run.server.stats.open == 0)
        assert len(losses) == run.server.stats.calls == (len(said) >= len(ENVIRONMENT))
        assert run.server.stats.faults == reset
        assert run.reports == []


async def test_hang_up_between_two_commands_is_met_at_the_next() -> None:
    go = asyncio.Event()

    async def handler(call: AgiCall) -> None:
        await call.command(DIAL)
        await go.wait()
        assert call.hung_up
        await call.command(DIAL)

    async with running(handler) as run:
        reader, writer = await run.connect(ENVIRONMENT)
        await reader.readline()
        writer.write(b"200 result=0\n")
        await hang_up(writer)
        await run.until(lambda: run.server.stats.open == 0)
        go.set()
        await run.until(lambda: len(run.reports) == 1)
        assert isinstance(run.reports[0][1], PeerGone)


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n\n\n", b"agi_a: 1\nagi_a: 2\n\n"])
async def test_no_environment_is_reported_and_left_to_the_dialplan(said: bytes) -> None:
    async with running(dial) as run:
        reader, writer = await run.connect(said)
        assert await reader.read() == FAILURE
        await hang_up(writer)
        ((call, error),) = run.reports
        assert isinstance(error, ProtocolFault)
        assert "without environment" in repr(call)
        assert (run.server.stats.calls, run.server.stats.faults) == (0, 1)


async def test_garbage_after_the_environment_in_one_go_begins_no_call() -> None:
    async with running(dial) as run:
        reader, writer = await run.connect(ENVIRONMENT + b"agi_extension: 999\n\n")
        assert await reader.read() == FAILURE
        await hang_up(writer)
        assert run.server.stats.calls == 0


async def test_garbage_instead_of_an_answer() -> None:
    async with running(dial) as run:
        reader, writer = await run.connect(ENVIRONMENT)
        assert await reader.readline() == DIAL
        writer.write(b"HTTP/1.1 200 OK\n")
        assert await reader.read() == b""
        await hang_up(writer)
        await run.until(lambda: len(run.reports) == 1)
        ((call, error),) = run.reports
        assert isinstance(error, ProtocolFault)
        assert "HTTP/1.1" in repr(call)
        assert (run.server.stats.faults, run.server.stats.errors) == (1, 1)


async def test_a_silent_peer_is_closed_in_time() -> None:
    async with running(dial, AgiServerLimits(environment=0.05)) as run:
        peers = [await run.connect(said) for said in (b"", b"agi_netw", ENVIRONMENT[:-1])]
        await asyncio.sleep(0.03)
        peers.append(await run.connect())
        loud = await run.connect(ENVIRONMENT)
        assert await loud[0].readline() == DIAL
        for reader, writer in peers:
            assert await reader.read() == FAILURE
            await hang_up(writer)
        assert [type(error) for _, error in run.reports] == [PeerTimeout] * 4
        assert run.server.stats.faults == 4
        await asyncio.sleep(0.06)
        assert run.server.stats.open == 1  # what has begun has no such limit
        # And a later one is watched, too.
        reader, writer = await run.connect()
        assert await reader.read() == FAILURE
        await hang_up(writer)
        await hang_up(loud[1])


async def test_a_slow_writer_is_not_a_busy_one() -> None:
    async with running(dial, AgiServerLimits(environment=0.1)) as run:
        reader, writer = await run.connect()
        reading = asyncio.ensure_future(reader.read())
        for byte in ENVIRONMENT[:-1]:
            if reading.done():
                break
            writer.write(bytes([byte]))
            await asyncio.sleep(0.005)
        # One more byte may have been under way, which TCP answers with a reset.
        with contextlib.suppress(ConnectionResetError):
            assert await reading == FAILURE
        await hang_up(writer, reset=True)
        # Bytes do not renew the limit.
        assert [type(error) for _, error in run.reports] == [PeerTimeout]


async def test_no_answer_within_the_limit() -> None:
    async def handler(call: AgiCall) -> None:
        with pytest.raises(PeerTimeout, match=r"0\.02 s"):
            await call.command(DIAL, limit=0.02)
        assert call.hung_up
        await call.command(DIAL)

    async with running(handler) as run:
        reader, writer = await run.connect(ENVIRONMENT)
        assert await reader.readline() == DIAL
        await run.until(lambda: len(run.reports) == 1)
        assert isinstance(run.reports[0][1], PeerTimeout)  # again, at the second command
        await hang_up(writer, reset=True)


async def test_one_command_at_a_time_and_none_after_close() -> None:
    async def handler(call: AgiCall) -> None:
        answer = call.command(DIAL)
        with pytest.raises(StateError):
            call.command(DIAL)
        assert (await answer).result == 0
        call.close()
        with pytest.raises(StateError):
            call.command(DIAL)
        await asyncio.sleep(0.01)
        with pytest.raises(StateError):
            call.command(DIAL)

    async with running(handler) as run:
        reader, writer = await run.connect(ENVIRONMENT)
        assert await reader.readline() == DIAL
        writer.write(b"200 result=0\n")
        assert await reader.read() == b""
        await hang_up(writer)
        await run.until(lambda: run.server.stats.open == 0)
        await asyncio.sleep(0.02)
        assert run.reports == []


async def test_the_first_reason_stays() -> None:
    async def handler(call: AgiCall) -> None:
        call.lose(PeerGone, "first")
        call.lose(PeerTimeout, "second")
        await call.command(DIAL)

    async with running(handler) as run:
        reader, writer = await run.connect(ENVIRONMENT)
        assert await reader.read() == b""
        await hang_up(writer)
        assert repr(run.reports[0][1]) == "PeerGone('first')"
        assert run.server.stats.faults == 1


@pytest.mark.parametrize("after_command", [False, True])
async def test_a_handler_that_raises(after_command: bool) -> None:
    async def handler(call: AgiCall) -> None:
        if after_command:
            await call.command(DIAL)
        raise LookupError("no such pack")

    async with running(handler) as run:
        for number in (1, 2):
            reader, writer = await run.connect(ENVIRONMENT)
            if after_command:
                assert await reader.readline() == DIAL
                writer.write(b"200 result=0\n")
            # Once something was done for the call, the dialplan must not do it again.
            assert await reader.read() == (b"" if after_command else FAILURE)
            await hang_up(writer)
            assert run.server.stats.errors == number
        assert [str(error) for _, error in run.reports] == ["no such pack"] * 2
        assert run.reports[0][0].environment.extension == "100"


@pytest.mark.parametrize("unanswered", [False, True])
async def test_fail_leaves_the_call_to_the_dialplan(unanswered: bool) -> None:
    async def handler(call: AgiCall) -> None:
        answer = call.command(DIAL) if unanswered else None
        call.fail()
        if answer is not None:
            with pytest.raises(PeerGone, match="closed here"):
                await answer

    async with running(handler) as run:
        reader, writer = await run.connect(ENVIRONMENT)
        assert await reader.read() == (DIAL if unanswered else FAILURE)
        await hang_up(writer)


async def test_a_handler_cancelled_while_its_command_is_unanswered() -> None:
    async def handler(call: AgiCall) -> None:
        try:
            async with asyncio.timeout(0.02):
                await call.command(DIAL)
        except TimeoutError:
            with pytest.raises(StateError):
                call.command(DIAL)
            await asyncio.sleep(0.05)  # the late answer comes now, and is nobody's
            await call.command(get_full_variable("X"))

    async with running(handler) as run:
        reader, writer = await run.connect(ENVIRONMENT)
        assert await reader.readline() == DIAL
        await asyncio.sleep(0.03)
        writer.write(b"200 result=0\n")
        assert await reader.readline() == get_full_variable("X")
        writer.write(b"200 result=1 (x)\n")
        assert await reader.read() == b""
        await hang_up(writer)
        assert run.reports == []


async def test_a_peer_that_never_reads() -> None:
    async def handler(call: AgiCall) -> None:
        while True:
            await call.command(set_variable("X", "x" * 8000))

    async with running(handler) as run:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", run.server.port))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(raw, ENVIRONMENT)
        await run.until(lambda: run.server.stats.calls == 1)
        sent = 0
        while not run.reports:
            await asyncio.sleep(0)
            if len(run.server._running) and sent < 100_000:
                try:
                    await loop.sock_sendall(raw, b"200 result=1\n")
                except ConnectionError:
                    break
                sent += 1
                await asyncio.sleep(0.0005)
        await run.until(lambda: len(run.reports) == 1)
        assert "does not read" in str(run.reports[0][1])
        assert isinstance(run.reports[0][1], PeerGone)
        raw.close()


async def test_closing_waits_for_calls_and_takes_no_more() -> None:
    async with running(dial) as run:
        reader, writer = await run.connect(ENVIRONMENT)
        silent = await run.connect()
        assert await reader.readline() == DIAL
        await run.until(lambda: run.server.stats.open == 2)
        port = run.server.port
        closing = asyncio.ensure_future(run.server.close(10))
        assert await silent[0].read() == FAILURE
        with pytest.raises(OSError, match="Connect call failed"):
            await asyncio.open_connection("127.0.0.1", port)
        assert not closing.done()
        writer.write(b"200 result=0\n")
        assert await reader.read() == b""
        assert await closing == 0
        await hang_up(writer)
        await hang_up(silent[1])
        assert run.reports == []


async def test_closing_cuts_off_what_does_not_end() -> None:
    released: list[bool] = []

    async def handler(call: AgiCall) -> None:
        try:
            await call.command(DIAL)
        finally:
            released.append(call.hung_up)

    async with running(handler) as run:
        peers = [await run.connect(ENVIRONMENT) for _ in range(3)]
        for reader, _ in peers:
            assert await reader.readline() == DIAL
        assert repr(run.server).startswith("<AgiServer 3 calls")
        assert await run.server.close(0.02) == 3
        assert len(released) == 3
        for reader, writer in peers:
            assert await reader.read() == b""  # no FAILURE: the Dial goes on in Asterisk
            await hang_up(writer)
        assert run.reports == []


async def test_connections_over_the_limit_are_closed_as_they_come() -> None:
    async with running(dial, AgiServerLimits(connections=2)) as run:
        kept = [await run.connect() for _ in range(2)]
        await run.until(lambda: run.server.stats.open == 2)
        reader, writer = await run.connect()
        assert await reader.read() == FAILURE
        await hang_up(writer)
        assert run.server.stats.refused == 1
        await hang_up(kept[0][1])
        await run.until(lambda: run.server.stats.open == 1)
        reader, writer = await run.connect(ENVIRONMENT)
        assert await reader.readline() == DIAL
        for one in (writer, kept[1][1]):
            await hang_up(one)


async def test_two_thousand_idle_connections_and_a_call_beside_them() -> None:
    async with running(dial) as run:
        idle = []
        for number in range(2000):
            raw = socket.create_connection(("127.0.0.1", run.server.port))
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raw.send(b"agi_netw" if number % 2 else ENVIRONMENT)
            idle.append(raw)
            if number % 100 == 0:
                await asyncio.sleep(0)
        await run.until(lambda: run.server.stats.open == 2000)
        await run.until(lambda: run.server.stats.calls == 1000)
        # 1,000 calls under way, 1,000 half lines: tasks for the former only.
        assert len(asyncio.all_tasks()) == 1001
        reader, writer = await run.connect(ENVIRONMENT)
        assert await reader.readline() == DIAL
        writer.write(b"200 result=0\n")
        assert await reader.read() == b""
        await hang_up(writer)
        for raw in idle:
            raw.close()
        await run.until(lambda: run.server.stats.open == 0)
        assert run.server.stats.accepted == 2001
        await run.until(lambda: len(run.reports) == 1000)  # handlers whose peers are gone
        assert {type(error) for _, error in run.reports} == {PeerGone}


HOLDER = """
import resource, socket, struct, sys
port, count = map(int, sys.argv[1:])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held = []
for _ in range(count):
    one = socket.create_connection(("127.0.0.1", port))
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.send(b"agi_netw")
    one.setblocking(False)
    held.append(one)
print(len(held), flush=True)
sys.stdin.readline()
alive = 0
for one in held:
    try:
        one.recv(1)
    except BlockingIOError:
        alive += 1
print(alive, flush=True)
"""
"""Holds connections in a process of its own: a process may open only so many files."""


async def test_ten_thousand_idle_connections_stay_and_calls_go_on_beside_them() -> None:
    raise_file_limit()
    # Half lines are given up after a while, and to open so many takes a loaded machine longer.
    async with running(dial, AgiServerLimits(environment=60.0)) as run:
        holder = await asyncio.create_subprocess_exec(
            sys.executable, "-c", HOLDER, str(run.server.port), "10000",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert holder.stdout
        assert await holder.stdout.readline() == b"10000\n"
        await run.until(lambda: run.server.stats.open == 10_000)
        for _ in range(100):
            reader, writer = await run.connect(ENVIRONMENT)
            assert await reader.readline() == DIAL
            writer.write(b"200 result=0\n")
            assert await reader.read() == b""
            await hang_up(writer)
        alive, _ = await holder.communicate(b"\n")
        assert alive == b"10000\n"
        await run.until(lambda: run.server.stats.open == 0)
        assert (run.server.stats.accepted, run.server.stats.refused) == (10_100, 0)


async def test_a_dead_pbx_is_probed() -> None:
    probed: list[int] = []

    async def handler(call: AgiCall) -> None:
        accepted = call._transport.get_extra_info("socket")
        probed.append(accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        probed.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE))

    async with running(handler) as run:
        reader, writer = await run.connect(ENVIRONMENT)
        assert await reader.read() == b""
        await hang_up(writer)
    assert probed == [1, 20]


def test_the_limit_of_open_files_is_raised() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard - 1, hard))
    try:
        assert raise_file_limit() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 8192), hard))


async def test_nothing_of_a_call_is_left_behind() -> None:
    async with running(dial) as run:
        for _ in range(5):
            reader, writer = await run.connect(ENVIRONMENT)
            await reader.readline()
            writer.write(b"200 result=0\n")
            assert await reader.read() == b""
            await hang_up(writer)
        await run.until(lambda: run.server.stats.open == 0)
        gc.collect()
        assert [thing for thing in gc.get_objects() if type(thing) is AgiCall] == []
