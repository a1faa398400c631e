from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from umpack.core.errors import PeerGone, PeerTimeout, ProtocolFault, UmpackError
from umpack.web.client import ControlClient, ControlRefused


async def answered(path: Path, said: bytes | None, *, timeout: float = 5.0) -> object:
    """What a client makes of a server that says this, or nothing at all."""
    heard: list[bytes] = []
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n"))
        if said is None:
            await done.wait()
        else:
            writer.write(said)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_unix_server(serve, path):
        try:
            return await asyncio.to_thread(ControlClient(path, timeout).call, "a/b %ä?#..")
        finally:
            done.set()
            # A GET may be asked again after a connection that just ended.
            assert set(heard) == {b"GET /v1/calls/a%2Fb%20%25%C3%A4%3F%23.. HTTP/1.1\r\n"}
            await asyncio.sleep(0.01)


def http(status: str, body: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


async def test_an_answer(tmp_path: Path) -> None:
    assert await answered(tmp_path / "s", http("200 OK", b'{"a": [1]}')) == {"a": [1]}


@pytest.mark.parametrize(
    ("said", "kind", "why"),
    [
        (http("404 Not Found", b'{"error": "no call"}'), ControlRefused, "^no call$"),
        (http("404 Not Found", b"<html>"), ProtocolFault, r"is no umpack \(HTTP 404\)"),
        (http("404 Not Found", b"[]"), ProtocolFault, "is no umpack"),
        (http("200 OK", b""), ProtocolFault, "is no umpack"),
        (http("200 OK", b"\xff"), ProtocolFault, "is no umpack"),
        (b"220 mail ESMTP\r\n", PeerGone, "broke off"),
        (b"", PeerGone, "broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[", PeerGone, "broke off"),
        (None, PeerTimeout, "does not answer within 0.2 s"),
    ],
)
async def test_other_answers(
    tmp_path: Path, said: bytes | None, kind: type[UmpackError], why: str
) -> None:
    with pytest.raises(kind, match=why):
        await answered(tmp_path / "s", said, timeout=0.2 if said is None else 5.0)


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(PeerGone, match=r"no umpack answers on .*none: is it running\?"):
        ControlClient(tmp_path / "none").get("/v1/status")
