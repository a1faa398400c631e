"""A real HTTPS server for MTA-STS policies, and certificates for it and for exchangers."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from tests.mail.tls import certificate
from tests.ports import free_port

PATH = "/.well-known/mta-sts.txt"


def policy(*mx: str, mode: str = "enforce", max_age: int = 86400) -> str:
    """The text of one."""
    lines = ("version: STSv1", f"mode: {mode}", *(f"mx: {one}" for one in mx))
    return "".join(f"{line}\r\n" for line in (*lines, f"max_age: {max_age}"))


@dataclass(frozen=True)
class Authority:
    """Who is trusted: `pem` holds the certificates of all `contexts`, by name."""

    pem: str
    contexts: Mapping[str, ssl.SSLContext]


def authority(folder: Path, *names: str) -> Authority:
    """Certificates for these names that a client with `pem` takes."""
    made = {name: certificate(folder, name) for name in names}
    pem = folder / "authority.pem"
    pem.write_text("".join(Path(one).read_text() for _, one in made.values()))
    return Authority(str(pem), {name: context for name, (context, _) in made.items()})


@dataclass
class PolicyHost:
    """Answers while it is entered; what, may be changed at any time."""

    tls: ssl.SSLContext
    text: str | bytes = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "text/plain"})
    hangs: bool = False
    endless: bool = False
    host: str = "127.0.0.1"
    port: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    """A first request."""
    asked: list[str] = field(default_factory=list)
    """Host and path of every request."""
    heard: Mapping[str, str] = field(default_factory=dict)
    """The header of the last."""
    _runner: web.AppRunner | None = None

    async def __aenter__(self) -> PolicyHost:
        app = web.Application()
        app.router.add_get("/{tail:.*}", self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True)
        await self._runner.setup()
        self.port = self.port or free_port()
        await web.TCPSite(self._runner, self.host, self.port, ssl_context=self.tls).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(f"{request.host.partition(':')[0]}{request.path}")
        self.heard = dict(request.headers)
        self.arrived.set()
        if self.hangs:
            await asyncio.Event().wait()
        if self.endless:
            stream = web.StreamResponse(headers=self.headers)
            await stream.prepare(request)
            while True:
                await stream.write(b"x: y\n" * 1000)
        body = self.text if isinstance(self.text, bytes) else self.text.encode()
        return web.Response(body=body, status=self.status, headers=self.headers)
