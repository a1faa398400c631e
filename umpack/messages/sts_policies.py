"""The MTA-STS policies of recipients' domains: found by DNS, fetched by HTTPS, kept while valid.

    TXT _mta-sts.DOMAIN -> id, new or due? -> https://mta-sts.DOMAIN/.well-known/mta-sts.txt

What cannot be found out changes nothing: a policy once seen binds until its `max_age` is over
(RFC 8461 5.1), and a domain of which none was ever seen is delivered to as if there was none.
"""

from __future__ import annotations

import asyncio
import errno
import math
import socket
import ssl
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp
import dns.asyncresolver
import dns.exception
import dns.rdatatype
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult
from loguru import logger

from umpack.core.errors import PeerFault, PeerGone, PeerTimeout, ProtocolFault
from umpack.messages.letter import LetterError, a_label
from umpack.messages.relays import Rank, Target, servers
from umpack.messages.replies import clean
from umpack.messages.smtp import tls_context
from umpack.messages.sts import (
    MAX_POLICY,
    Applied,
    Mode,
    Policy,
    about,
    apply,
    is_host,
    read_policy,
    record_id,
)
from umpack.messages.sts_store import Kept, PolicyStore

MOST: Final = 10_000
"""Domains that are remembered."""
CHECK: Final = 60.0
"""Seconds between looks at a domain's record, and the shortest a policy is in force."""
AGAIN: Final = 300.0
"""Seconds until a policy that could not be fetched is tried again, RFC 8461 3.3: five minutes."""
REFRESH: Final = 86400.0
"""Seconds after which a policy is fetched again though its id is the same, RFC 8461 5.1: a day."""
LIMIT: Final = 10.0
"""Seconds for all of a fetch; the RFC's minute is long for a letter that waits."""


@dataclass(slots=True)
class _Look:
    """What was last seen of a domain."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    at: float = -math.inf
    failed: float = -math.inf
    failed_id: str = ""
    missed: bool = False
    """There is a policy, but no record any more: told once."""
    warned_id: str = ""


class Policies:
    """`now` gives epoch seconds; `store` is asked at the first use; `port` is that of HTTPS."""

    def __init__(
        self,
        resolver: dns.asyncresolver.Resolver,
        now: Callable[[], float],
        *,
        authorities: str | None = None,
        store: Path | None = None,
        port: int = 443,
        most: int = MOST,
        limit: float = LIMIT,
    ) -> None:
        """Reads the certificates of authorities, from disk."""
        self.context = strict_context(authorities)
        """How HTTPS and exchangers under a policy are checked."""
        self._resolver = resolver
        self._now = now
        self._store = PolicyStore(store) if store else None
        self._port = port
        self._most = most
        self._limit = limit
        self._recalling = asyncio.Lock()
        self._recalled = store is None
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._looks: OrderedDict[str, _Look] = OrderedDict()

    async def applied(self, domain: str, ranks: Sequence[Rank]) -> Applied:
        """The exchangers of a domain as its policy lets them be used. Never raises for a peer."""
        name = _policy_domain(domain)
        kept = await self._in_force(name) if name else None
        found = apply(kept.policy if kept else None, ranks)
        if name and kept and found.strangers and not found.enforced:
            look = self._look_of(name)
            if look.warned_id != kept.id:
                look.warned_id = kept.id
                hosts = ", ".join(found.strangers)
                logger.warning("{} (testing): not in it, but used: {}", about(name), hosts)
        return found

    async def of(self, domain: str) -> Policy | None:
        """The policy in force."""
        name = _policy_domain(domain)
        kept = await self._in_force(name) if name else None
        return kept.policy if kept else None

    async def _in_force(self, name: str) -> Kept | None:
        await self._recall()
        look = self._look_of(name)
        # One look at a time: a hundred letters for one domain must not make a hundred fetches.
        async with look.lock:
            if not 0 <= self._now() - look.at < CHECK:
                await self._find_out(name, look)
                look.at = self._now()
        kept = self._kept.get(name)
        if kept is None or self._now() - kept.fetched >= max(kept.policy.max_age, CHECK):
            return None
        self._kept.move_to_end(name)
        return kept

    def _look_of(self, domain: str) -> _Look:
        look = self._looks.setdefault(domain, _Look())
        self._looks.move_to_end(domain)
        if len(self._looks) > self._most:
            self._looks.popitem(last=False)
        return look

    async def _recall(self) -> None:
        async with self._recalling:
            if self._store is not None and not self._recalled:
                self._kept.update(await asyncio.to_thread(self._store.recall, self._most))
                self._recalled = True

    async def _find_out(self, name: str, look: _Look) -> None:
        kept = self._kept.get(name)
        id_ = record_id(await self._records(name))
        if id_ is None:
            if kept and kept.policy.mode is not Mode.NONE and not look.missed:
                look.missed = True
                logger.warning("{}: no record announces it; still in force", about(name))
            return
        look.missed = False
        now = self._now()
        if kept and kept.id == id_:
            age = now - kept.fetched
            if 0 <= age < min(REFRESH, max(kept.policy.max_age, CHECK)):
                return
        if look.failed_id == id_ and 0 <= now - look.failed < AGAIN:
            return
        try:
            policy = await fetch_policy(
                name, self._resolver, self.context, port=self._port, limit=self._limit
            )
        except PeerFault as fault:
            look.failed, look.failed_id = self._now(), id_
            logger.warning("{} {} cannot be had: {}", about(name), id_, fault)
            return
        look.failed_id = ""
        await self._keep(name, Kept(id_, self._now(), policy))

    async def _records(self, name: str) -> list[str]:
        kind = dns.rdatatype.TXT
        try:
            answer = await self._resolver.resolve(f"_mta-sts.{name}.", kind)
        except (dns.exception.DNSException, OSError):
            # Most have none. If it fails, no more is known than if there was none.
            return []
        return [b"".join(rdata.strings).decode("ascii", "replace") for rdata in answer]

    async def _keep(self, name: str, kept: Kept) -> None:
        self._kept[name] = kept
        self._kept.move_to_end(name)
        dropped = []
        while len(self._kept) > self._most:
            dropped.append(self._kept.popitem(last=False)[0])
        if self._store is not None:
            await asyncio.to_thread(self._store.note, name, kept, dropped)


def strict_context(authorities: str | None = None) -> ssl.SSLContext:
    """TLS 1.2 at least, the name among the certificate's DNS names (RFC 8461 3.3, 4.2). Blocks."""
    context = tls_context(verify=True, authorities=authorities)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False
    return context


def _policy_domain(domain: str) -> str | None:
    """As it stands in URL and query; None for address literals and what is no host's name."""
    try:
        name = a_label(domain).lower()
    except LetterError:
        return None
    return name if is_host(name) and is_host(f"mta-sts.{name}") else None


async def fetch_policy(
    name: str,
    resolver: dns.asyncresolver.Resolver,
    context: ssl.SSLContext,
    *,
    port: int = 443,
    limit: float = LIMIT,
) -> Policy:
    """The policy a domain (A-labels) has now, within `limit` seconds. Raises `PeerFault`.

    No redirects (RFC 8461 3.3), no proxy of the environment, no compression.
    """
    host = f"mta-sts.{name}"
    url = yarl.URL.build(scheme="https", host=host, port=port, path="/.well-known/mta-sts.txt")
    try:
        async with (
            asyncio.timeout(limit),
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    ssl=context, resolver=_Addresses(resolver), use_dns_cache=False,
                    force_close=True,
                ),
                cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, trust_env=False,
                headers={"Accept-Encoding": "identity", "User-Agent": "umpack"},
            ) as session,
            session.get(url, allow_redirects=False) as answer,
        ):  # fmt: skip
            return read_policy(await _body(answer))
    except TimeoutError as error:
        raise PeerTimeout(f"{host}: too slow") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise PeerGone(f"{host}: {clean(str(error)) or type(error).__name__}") from error
    except ProtocolFault as fault:
        raise ProtocolFault(f"{host}: {fault}") from fault


async def _body(answer: aiohttp.ClientResponse) -> bytes:
    if answer.status != 200:
        raise ProtocolFault(f"answers {answer.status}")
    if answer.content_type != "text/plain":
        raise ProtocolFault(f"answers {clean(answer.content_type)}, not text/plain")
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > MAX_POLICY:
            break  # read_policy has the words for it
    return bytes(body)


class _Addresses(AbstractResolver):
    """Of the policy's host: from DNS alone and by the same resolver as the exchangers' are."""

    def __init__(self, resolver: dns.asyncresolver.Resolver) -> None:
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """All of them, whatever `family` says: the connector asks for any."""
        try:
            found = await servers(Target(host, port, mx=True), self._resolver)
        except PeerFault as fault:
            raise OSError(errno.EHOSTUNREACH, str(fault)) from fault
        return [
            ResolveResult(
                hostname=host, host=one.address, port=port, proto=0,
                family=socket.AF_INET6 if ":" in one.address else socket.AF_INET,
                flags=socket.AI_NUMERICHOST,
            )
            for one in found
        ]  # fmt: skip

    async def close(self) -> None:
        """Nothing is held."""
