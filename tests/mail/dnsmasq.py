"""A real name server on loopback, and mail servers on addresses of their own beside it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import dns.asyncresolver
import dns.exception
import dns.resolver
import pytest

from simulators.mail import MailServer, Script
from tests.ports import free_port

DNSMASQ = shutil.which("dnsmasq", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def require_dnsmasq() -> str:
    """The program; skips loudly without it, and fails where everything must be proved."""
    if DNSMASQ is not None:
        return DNSMASQ
    if os.environ.get("UMPACK_REQUIRE_PBX") == "1":
        raise RuntimeError("dnsmasq is missing (Debian: dnsmasq-base)")
    pytest.skip("NO REAL NAME SERVER, the DNS matrix proves nothing here: install dnsmasq-base")


@contextlib.asynccontextmanager
async def name_server(
    folder: Path, lines: Sequence[str]
) -> AsyncIterator[dns.asyncresolver.Resolver]:
    """dnsmasq with these lines of configuration, and a resolver that asks only it."""
    program = require_dnsmasq()
    for _ in range(5):
        port = free_port()
        config = folder / "dnsmasq.conf"
        config.write_text("\n".join(lines) + "\n")
        process = await asyncio.create_subprocess_exec(
            program, "--keep-in-foreground", f"--conf-file={config}", f"--port={port}",
            "--listen-address=127.0.0.1", "--bind-interfaces", "--no-resolv", "--no-hosts",
            "--pid-file=", "--local=/test/", "--cache-size=0", "--log-facility=-",
            *(["--user=root", "--group=root"] if os.getuid() == 0 else []),
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = ["127.0.0.1"], port
        resolver.timeout, resolver.lifetime = 1.0, 3.0
        try:
            if await _answers(resolver, process):
                yield resolver
                return
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.communicate()
    raise RuntimeError("dnsmasq does not start")


async def _answers(
    resolver: dns.asyncresolver.Resolver, process: asyncio.subprocess.Process
) -> bool:
    for _ in range(100):
        if process.returncode is not None:
            return False
        try:
            await resolver.resolve("nothing.test.", "A", lifetime=0.1)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return True
        except (dns.exception.DNSException, OSError):
            await asyncio.sleep(0.05)
    return False


@contextlib.asynccontextmanager
async def mail_servers(*scripts: Script | None) -> AsyncIterator[list[MailServer]]:
    """One per script, on addresses of their own and one port, as MX are; None is switched off."""
    net = f"127.{random.randrange(1, 255)}.{random.randrange(255)}"
    async with contextlib.AsyncExitStack() as stack:
        made: list[MailServer] = []
        port = 0
        for number, script in enumerate(scripts, 1):
            server = MailServer(script, f"{net}.{number}", port)
            if script is not None:
                await stack.enter_async_context(server)
                port = server.port
            made.append(server)
        for server in made:
            server.port = port
        yield made


@contextlib.contextmanager
def deaf(host: str, port: int) -> Iterator[None]:
    """An address that takes no SYN any more: its backlog is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(2):
            stuffing = stack.enter_context(socket.socket())
            stuffing.setblocking(False)
            stuffing.connect_ex((host, port))
        yield
