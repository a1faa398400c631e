"""A small LDAP server on loopback (RFC 4511): bind, search by one attribute, unbind."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

_SEARCH, _ENTRY, _DONE, _BIND, _BOUND, _UNBIND = 0x63, 0x64, 0x65, 0x60, 0x61, 0x42


@dataclass
class Peer:
    """What it knows, and how it behaves. `people`: number to attributes."""

    port: int = 0
    people: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    asked: list[bytes] = field(default_factory=list)
    silent: bool = False
    noise: bytes = b""
    """Sent instead of the answer to a search."""
    code: int = 0
    """The result code of a search (RFC 4511 4.1.9); 51 is busy."""


def ber(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    long = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(long)]) + long + content


def result(tag: int, code: int) -> bytes:
    return ber(tag, ber(0x0A, bytes([code])) + ber(4, b"") + ber(4, b""))


def entry(attributes: dict[str, list[str]]) -> bytes:
    parts = b"".join(
        ber(0x30, ber(4, name.encode()) + ber(0x31, b"".join(ber(4, v.encode()) for v in values)))
        for name, values in attributes.items()
    )
    return ber(_ENTRY, ber(4, b"cn=x,dc=example") + ber(0x30, parts))


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, int, bytes]:
    _, size = await reader.readexactly(2)
    if size & 0x80:
        size = int.from_bytes(await reader.readexactly(size & 0x7F), "big")
    body = await reader.readexactly(size)
    end = 2 + body[1]
    return body[:end], body[end], body[end:]


@asynccontextmanager
async def serve(peer: Peer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Peer]:
    """Let it answer until the end of the block; then its port is closed."""
    tasks: set[asyncio.Task[Any]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        tasks.add(task)
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                number, operation, body = await _message(reader)
                answers: list[bytes] = []
                if operation == _UNBIND:
                    break
                if operation == _BIND:
                    answers = [result(_BOUND, 0)]
                elif operation == _SEARCH:
                    peer.asked.append(body)
                    found = [
                        people
                        for key, people in peer.people.items()
                        if re.search(rb"Number\x04" + bytes([len(key)]) + key.encode(), body)
                    ]
                    answers = [*map(entry, found), result(_DONE, peer.code)]
                if peer.noise and operation == _SEARCH:
                    writer.write(peer.noise)
                    await writer.drain()
                    break
                if not peer.silent:
                    writer.write(b"".join(ber(0x30, number + answer) for answer in answers))
                    await writer.drain()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        tasks.discard(task)

    server = await asyncio.start_server(talk, "127.0.0.1", peer.port, ssl=tls)
    peer.port = server.sockets[0].getsockname()[1]
    try:
        yield peer
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
