"""Where a letter goes: configured relays, or the mail exchangers DNS names for a domain.

Servers are found in two steps: targets (names) in ranks, the better ones first, all of a rank as
good as each other; then the addresses of a target, when it is its turn.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain, groupby, zip_longest
from typing import Final, TypeAlias

import dns.asyncresolver
import dns.exception
import dns.rdatatype
import dns.resolver

from umpack.core.errors import ConfigError, PeerFault
from umpack.messages.letter import Deferred, Refused, a_label

NO_SUCH_DOMAIN: Final = 550
NULL_MX: Final = 556
"""RFC 7505 4.2 by way of RFC 7504: the domain does not accept mail."""
SYSTEM_LIMIT: Final = 30.0
"""Seconds for a name asked of the system, which has limits of its own; DNS has the resolver's."""
MAX_EXCHANGERS: Final = 20
"""A domain's MX that are looked at; more is a mistake or an attack."""


class Tls(Enum):
    """Whether a connection is encrypted."""

    NEVER = "never"
    OPPORTUNISTIC = "opportunistic"
    """If offered and possible (RFC 7435): whose it is, is not checked."""
    REQUIRED = "required"
    """STARTTLS or nothing."""
    IMPLICIT = "implicit"
    """From the first byte on (RFC 8314), usually on port 465."""


@dataclass(frozen=True, slots=True)
class Login:
    """For AUTH; the secret is never printed."""

    user: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Manner:
    """How to speak with a server. `verify`: certificate and name must be right (not with
    opportunistic TLS, which would go on without). `clear_login`: the password may go in clear.
    """

    tls: Tls = Tls.OPPORTUNISTIC
    verify: bool = False
    login: Login | None = None
    clear_login: bool = False

    def __post_init__(self) -> None:
        if self.verify and self.tls not in (Tls.REQUIRED, Tls.IMPLICIT):
            raise ConfigError(f"verify is of no use with tls {self.tls.value}")
        if self.login and self.tls is Tls.NEVER and not self.clear_login:
            raise ConfigError("tls never, but the password must not go in clear: no login is left")


@dataclass(frozen=True, slots=True)
class Target:
    """A server by name. `mx` if DNS named it: then its addresses come from DNS alone; a name the
    administrator wrote may also stand in the hosts file.
    """

    host: str
    port: int = 25
    manner: Manner = field(default=Manner(), compare=False)
    mx: bool = False

    def __post_init__(self) -> None:
        if not self.host or not self.host.isprintable() or " " in self.host:
            raise ConfigError(f"not a host name: {self.host!a}")
        if not 0 < self.port < 65536:
            raise ConfigError(f"not a port: {self.port}")


@dataclass(frozen=True, slots=True)
class Server:
    """One address of a target. `label` names it in records, and finds it again on the next try."""

    host: str
    address: str
    port: int
    manner: Manner = field(default=Manner(), compare=False)

    @property
    def label(self) -> str:
        """As Postfix logs it: name[address]:port."""
        return f"{self.host}[{self.address}]:{self.port}"


Rank: TypeAlias = tuple[Target, ...]


class Order(Enum):
    """How relays share the work."""

    ROUND_ROBIN = "round_robin"
    """The next letter begins at the next relay."""
    ORDERED = "ordered"
    """Always the first that works."""


def relay_ranks(relays: Sequence[Target], order: Order, turn: int) -> tuple[Rank, ...]:
    """The relays as letter number `turn` is to try them."""
    if order is Order.ORDERED:
        return tuple((relay,) for relay in relays)
    start = turn % len(relays)
    return ((*relays[start:], *relays[:start]),)


def mx_ranks(
    records: Iterable[tuple[int, str]], port: int, manner: Manner, rng: random.Random
) -> tuple[Rank, ...]:
    """(preference, host) pairs in the order to try; those of equal preference shuffled, which the
    sender MUST do (RFC 5321 5.1): nobody else spreads the load.
    """
    ranks = []
    for _, group in groupby(sorted(set(records)), key=lambda record: record[0]):
        hosts = [Target(host, port, manner, mx=True) for _, host in group]
        rng.shuffle(hosts)
        ranks.append(tuple(hosts))
    return tuple(ranks)


async def exchangers(
    domain: str,
    resolver: dns.asyncresolver.Resolver,
    rng: random.Random,
    *,
    port: int = 25,
    manner: Manner = Manner(),
) -> tuple[Rank, ...] | Refused | Deferred:
    """Where mail for a domain goes (RFC 5321 5.1, RFC 7505).

    Final are only a domain that does not exist and a null MX; everything else may be better later.
    """
    if domain.startswith("["):
        literal = domain[1:-1].removeprefix("IPv6:").removeprefix("ipv6:")
        try:
            return ((Target(str(ipaddress.ip_address(literal)), port, manner, mx=True),),)
        except ValueError:
            return Refused(f"5.1.2 not an address literal: {domain}", NO_SUCH_DOMAIN)
    name = a_label(domain)
    try:
        answer = await _ask(resolver, name, "MX")
    except dns.resolver.NXDOMAIN:
        return Refused(f"5.1.2 the domain {name} does not exist", NO_SUCH_DOMAIN)
    except dns.resolver.NoAnswer:
        # No MX at all: the domain itself is its exchanger ("implicit MX").
        return ((Target(name, port, manner, mx=True),),)
    except (dns.exception.DNSException, OSError) as error:
        return Deferred(f"4.4.3 MX of {name}: {_reason(error)}")
    records = [
        (int(rdata.preference), rdata.exchange.to_text(omit_final_dot=True)) for rdata in answer
    ]
    named = [(preference, host) for preference, host in records if host not in ("", ".", "@")]
    if not named and len(records) == 1:
        return Refused(f"5.1.10 the domain {name} accepts no mail (null MX)", NULL_MX)
    if not named:
        return Deferred(f"4.4.4 MX of {name} names no server")
    return mx_ranks(sorted(named)[:MAX_EXCHANGERS], port, manner, rng)


async def servers(target: Target, resolver: dns.asyncresolver.Resolver) -> tuple[Server, ...]:
    """The addresses of a target, IPv6 and IPv4 in turn, each family as the resolver orders it.

    In turn, so that a family that does not get through costs one try and not all. Raises
    `PeerFault` if there is none or it cannot be found out.
    """
    try:
        found: Sequence[str] = [str(ipaddress.ip_address(target.host))]
    except ValueError:
        found = await (_dns_addresses if target.mx else _system_addresses)(target, resolver)
    return tuple(Server(target.host, one, target.port, target.manner) for one in found)


async def _dns_addresses(target: Target, resolver: dns.asyncresolver.Resolver) -> Sequence[str]:
    answers = await asyncio.gather(
        *(_ask(resolver, target.host, kind) for kind in ("AAAA", "A")), return_exceptions=True
    )
    families: list[list[str]] = []
    reasons: list[str] = []
    for answer in answers:
        match answer:
            case dns.resolver.NXDOMAIN() | dns.resolver.NoAnswer():
                reasons.append("no address")
            case dns.exception.DNSException() | OSError():
                reasons.append(_reason(answer))
            case BaseException():
                raise answer
            case _:
                families.append([rdata.address for rdata in answer])
    if not families:
        raise PeerFault(f"{target.host}: {reasons[-1]}")
    return [one for one in chain(*zip_longest(*families)) if one]


async def _system_addresses(target: Target, _: dns.asyncresolver.Resolver) -> Sequence[str]:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(SYSTEM_LIMIT):
            found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except TimeoutError as error:
        raise PeerFault(f"{target.host}: no answer about its address") from error
    except (OSError, UnicodeError) as error:
        raise PeerFault(f"{target.host}: {error}") from error
    return list(dict.fromkeys(str(where[0]) for *_, where in found))


async def _ask(resolver: dns.asyncresolver.Resolver, name: str, kind: str) -> dns.resolver.Answer:
    # With the dot: a search list must not turn example.com into example.com.office.lan.
    return await resolver.resolve(f"{name.rstrip('.')}.", dns.rdatatype.from_text(kind))


def _reason(error: BaseException) -> str:
    match error:
        case dns.exception.Timeout():
            return "no answer from DNS"
        case dns.resolver.NoNameservers():
            return "DNS failed (SERVFAIL or refused)"
        case _:
            return f"DNS: {type(error).__name__}"
