"""A TCP proxy that spoils the connections through it: what networks and broken peers do.

Faults are switched while it runs and hold for all connections, also those that are open. Bytes
from the client pass untouched, except where nothing passes at all: it is the client that is tried.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Coroutine
from enum import Enum
from types import TracebackType


class Fault(Enum):
    """What is wrong with the way."""

    NONE = "none"
    REFUSE = "refuse"
    """Nobody listens: connections are refused, and those there were are reset."""
    RESET = "reset"
    """Each connection is reset as soon as the server says something."""
    HALF_LINE = "half line"
    """What the server says breaks off in the middle of a line, and the connection ends."""
    SLOW = "slow"
    """One byte at a time, `SLOW_BYTES` a second."""
    DUPLICATE = "duplicate"
    """Everything the server says comes twice."""
    GREETING = "wrong greeting"
    """Another protocol's greeting in front; the server's own words follow."""
    GARBLE = "garble"
    """Bytes in the middle of what the server says are replaced by others, some of them newlines."""
    STALL = "stall"
    """Connections are open, and nothing passes in either direction."""


SLOW_BYTES = 400
_PIECE = 65536


class FaultProxy:
    """Listens on 127.0.0.1:`port` and passes on to a server on 127.0.0.1."""

    def __init__(self, server_port: int) -> None:
        self.fault = Fault.NONE
        self.port = 0
        self.connections = 0
        """Made so far."""
        self._server_port = server_port
        self._listener: asyncio.Server | None = None
        self._open: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()

    async def __aenter__(self) -> FaultProxy:
        await self._listen()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._close()

    async def become(self, fault: Fault) -> None:
        """From now on this is wrong."""
        self.fault = fault
        self._changed.set()
        self._changed = asyncio.Event()
        if fault is Fault.REFUSE:
            await self._close()
        elif self._listener is None:
            await self._listen()

    async def cut(self) -> None:
        """Reset all connections there are; new ones may come."""
        tasks = tuple(self._open.values())
        for writer, task in self._open.items():
            _reset_at_close(writer)
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        await self.cut()
        if listener is not None:
            await listener.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[writer] = task
        self.connections += 1
        server: asyncio.StreamWriter | None = None
        try:
            # Another task's cancellation is how connections are cut: it ends here.
            with contextlib.suppress(OSError, asyncio.CancelledError):
                answers, server = await asyncio.open_connection("127.0.0.1", self._server_port)
                if self.fault is Fault.GREETING:
                    writer.write(b"220 mail.example.com ESMTP ready\r\n")
                await _either(self._forward(reader, server), self._spoil(answers, writer))
        finally:
            del self._open[writer]
            for side in (writer, server):
                if side is not None:
                    side.close()
                    with contextlib.suppress(OSError):
                        await side.wait_closed()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(_PIECE):
            await self._unless_stalled()
            writer.write(piece)
            await writer.drain()

    async def _spoil(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(_PIECE):
            await self._unless_stalled()
            match self.fault:
                case Fault.RESET:
                    _reset_at_close(writer)
                    return
                case Fault.HALF_LINE:
                    writer.write(piece[: _inside_a_line(piece)])
                    return
                case Fault.SLOW:
                    await self._drip(piece, writer)
                case Fault.DUPLICATE:
                    writer.write(piece + piece)
                case Fault.GARBLE:
                    writer.write(_garbled(piece))
                case Fault.NONE | Fault.REFUSE | Fault.GREETING | Fault.STALL:
                    writer.write(piece)
            await writer.drain()

    async def _drip(self, piece: bytes, writer: asyncio.StreamWriter) -> None:
        for at in range(len(piece)):
            if self.fault is not Fault.SLOW:
                writer.write(piece[at:])
                return
            writer.write(piece[at : at + 1])
            await asyncio.sleep(1 / SLOW_BYTES)

    async def _unless_stalled(self) -> None:
        while self.fault is Fault.STALL:
            await self._changed.wait()


async def _either(*ways: Coroutine[object, object, None]) -> None:
    """Both directions, until one of them ends."""
    tasks = [asyncio.create_task(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _reset_at_close(writer: asyncio.StreamWriter) -> None:
    """Let its end be an RST (SO_LINGER of 0 s, socket(7))."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _inside_a_line(piece: bytes) -> int:
    """Where to break a text off, so that it ends with neither a line nor an end of line."""
    at = max(1, len(piece) // 2)
    while at > 1 and piece[at - 1 : at] in (b"\r", b"\n"):
        at -= 1
    return at


def _garbled(piece: bytes) -> bytes:
    """Every 50th byte is another one."""
    spoiled = bytearray(piece)
    for at in range(25, len(spoiled), 50):
        spoiled[at] = b"\n\x00\xff:"[at // 50 % 4]
    return bytes(spoiled)
