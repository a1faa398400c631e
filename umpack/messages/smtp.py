"""One conversation with one server: what became of every recipient, whatever happened in it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Sequence
from typing import cast

import aiosmtplib
from loguru import logger

from umpack.core.errors import PeerFault, PeerGone, ProtocolFault
from umpack.messages.letter import Address, Deferred, Letter
from umpack.messages.relays import Server, Tls
from umpack.messages.replies import Said, TlsFault, border
from umpack.messages.transaction import Limits, Talk, Transaction


def tls_context(*, verify: bool, authorities: str | None = None) -> ssl.SSLContext:
    """For many connections. `authorities`: a PEM file instead of the system's. Blocks."""
    if verify:
        return ssl.create_default_context(cafile=authorities)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def converse(
    server: Server,
    letter: Letter,
    recipients: Sequence[Address],
    *,
    hello: str,
    limits: Limits,
    context: ssl.SSLContext | None,
) -> Talk:
    """Connect, send, leave. `hello` is our name in EHLO; `context` is needed unless TLS is never.

    Never raises for what a server does. If opportunistic TLS fails, once more without.
    """
    try:
        return await _converse(
            server, letter, recipients, server.manner.tls, hello, limits, context
        )
    except TlsFault as fault:
        if server.manner.tls is not Tls.OPPORTUNISTIC:
            return _nobody(server, recipients, fault)
        logger.warning("mail server {}: goes on without TLS: {}", server.label, fault)
    return await _converse(server, letter, recipients, Tls.NEVER, hello, limits, None)


async def _converse(
    server: Server,
    letter: Letter,
    recipients: Sequence[Address],
    tls: Tls,
    hello: str,
    limits: Limits,
    context: ssl.SSLContext | None,
) -> Talk:
    with contextlib.ExitStack() as stack:
        try:
            sock = await _connect(server, limits)
            with contextlib.ExitStack() as unused:
                unused.callback(sock.close)
                session = Session(server, limits, sock, tls, hello, context)
                unused.pop_all()
            stack.callback(session.abort)
            await session.open()
        except TlsFault:
            raise
        except PeerFault as fault:
            return _nobody(server, recipients, fault)
        talk = await session.send(letter, recipients)
        if not talk.fault:
            await session.quit()
        return talk


def _nobody(server: Server, recipients: Sequence[Address], fault: PeerFault) -> Talk:
    why = f"{server.label}: {fault}"
    return Talk({one: Deferred(why) for one in recipients}, why, spoke=False)


async def _connect(server: Server, limits: Limits) -> socket.socket:
    # Our own socket, for the library has one limit for connection and greeting.
    family = socket.AF_INET6 if ":" in server.address else socket.AF_INET
    with border("connecting"):
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            async with asyncio.timeout(limits.connect):
                await asyncio.get_running_loop().sock_connect(sock, (server.address, server.port))
        except BaseException:
            sock.close()
            raise
        return sock


class Session:
    """An SMTP session; `abort` ends it, whatever state it is in."""

    def __init__(
        self,
        server: Server,
        limits: Limits,
        sock: socket.socket,
        tls: Tls,
        hello: str,
        context: ssl.SSLContext | None,
    ) -> None:
        self._server = server
        self._limits = limits
        self._sock = sock
        self._tls = tls
        self._encrypted = tls is Tls.IMPLICIT
        self._transaction: Transaction | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._client = aiosmtplib.SMTP(
            hostname=server.host, sock=sock, local_hostname=hello, timeout=limits.banner,
            use_tls=self._encrypted, start_tls=False, tls_context=context,
        )  # fmt: skip

    def abort(self) -> None:
        """Close at once: a polite close would wait for a dead server to take what is buffered."""
        if self._transport is not None:
            self._transport.abort()
        self._client.close()
        # Never open: then it is nobody's but ours, or else TLS is about to shut it down itself.
        if self._transport is None and not self._encrypted:
            self._sock.close()

    async def open(self) -> None:
        """Greeting, EHLO, TLS, AUTH. Raises `PeerFault`."""
        try:
            with border("greeting"):
                await self._client.connect()
        except PeerGone as fault:
            # ssl.SSLError is an OSError and comes out as a connection that could not be made.
            raise (TlsFault(str(fault)) if self._encrypted else fault) from fault
        self._transport = cast("asyncio.WriteTransport", self._client.transport)
        await self._hello()
        if self._tls in (Tls.OPPORTUNISTIC, Tls.REQUIRED):
            await self._start_tls()
        await self._login()

    async def _hello(self) -> None:
        try:
            with border("EHLO"):
                await self._client.ehlo(timeout=self._limits.hello)
        except Said as said:
            if said.code < 500:
                raise
            with border("HELO"):
                await self._client.helo(timeout=self._limits.hello)

    async def _start_tls(self) -> None:
        if not self._client.supports_extension("starttls"):
            if self._tls is Tls.REQUIRED:
                raise TlsFault("TLS is required, but not offered")
            return
        try:
            with border("STARTTLS"):
                await self._client.starttls(timeout=self._limits.tls)
        except PeerFault as fault:
            raise TlsFault(str(fault)) from fault
        self._transport = cast("asyncio.WriteTransport", self._client.transport)
        self._encrypted = True
        await self._hello()

    async def _login(self) -> None:
        login = self._server.manner.login
        if login is None:
            return
        if not (self._encrypted or self._server.manner.clear_login):
            raise ProtocolFault("no TLS, and the password must not go in clear")
        with border("AUTH"):
            await self._client.login(login.user, login.secret, timeout=self._limits.login)

    async def send(self, letter: Letter, recipients: Sequence[Address]) -> Talk:
        """One transaction over the open session."""
        if self._transport is None:
            raise PeerGone("not connected")
        self._transaction = Transaction(
            self._client, self._transport, self._server.label, self._limits
        )
        return await self._transaction.send(letter, recipients)

    async def quit(self) -> None:
        """Politely, but nothing depends on it."""
        with contextlib.suppress(PeerFault), border("QUIT"):
            await self._client.quit(timeout=self._limits.quit)
