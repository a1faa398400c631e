"""What is made of a plan: transport, texts, directories; and which of a new plan needs a restart.

Made whole before anything of it is used, so that a plan that cannot be leaves all as it was.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Final, TypeAlias
from zoneinfo import ZoneInfo

import dns.asyncresolver
import dns.exception

from umpack.config.mail import MessagesPlan
from umpack.core.errors import ConfigError
from umpack.messages.directory import Attach, Mailbox
from umpack.messages.directory_file import DirectoryFile
from umpack.messages.ldap_directory import LdapDirectory, LdapPlan
from umpack.messages.letter import Address
from umpack.messages.mail import Composer, MailPlan
from umpack.messages.relays import Login, Manner, Order, Target, Tls
from umpack.messages.sts_policies import Policies
from umpack.messages.templates import read_languages
from umpack.messages.transport import Transport, TransportPlan

AT_START: Final = (
    "spool", "reserve", "domain", "voice", "conversions", "bundles", "keep", "keep_records"
)  # fmt: skip
"""What is read once: another spool is another umpack, and the rest is bound up with it."""
_TRANSPORT: Final = (
    "hello", "relays", "order", "port", "tls", "verify", "authorities", "auth", "connections",
    "per_server", "mta_sts",
)  # fmt: skip
_DIRECTORIES: Final = ("directories", "ldap", "language", "attach")

AnyDirectory: TypeAlias = DirectoryFile | LdapDirectory


@dataclass(frozen=True, slots=True)
class Parts:
    """All that a reload may exchange."""

    plan: MessagesPlan
    composer: Composer
    transport: Transport
    sources: tuple[AnyDirectory, ...]
    default: tuple[Mailbox, ...]

    @property
    def plain(self) -> Mailbox:
        """How those get mail whom no directory knows."""
        return self.default[0]


def in_force(running: MessagesPlan, wanted: MessagesPlan) -> MessagesPlan:
    """`wanted`, as far as it needs no restart."""
    return replace(wanted, **{key: getattr(running, key) for key in AT_START})


def differing(one: MessagesPlan, other: MessagesPlan, keys: Sequence[str]) -> list[str]:
    """Which of these keys are not the same."""
    return [key for key in keys if getattr(one, key) != getattr(other, key)]


def parts_of(
    plan: MessagesPlan,
    now: Callable[[], float],
    rng: random.Random,
    resolver: dns.asyncresolver.Resolver | None,
    before: Parts | None = None,
) -> Parts:
    """Reads files: it blocks. What `before` had in the same way is kept, with all it has learned
    of servers and numbers. Raises `ConfigError`."""
    plain = Mailbox(Address(plan.default_mailboxes[0]), plan.language, Attach(plan.attach))
    default = tuple(replace(plain, address=Address(one)) for one in plan.default_mailboxes)
    if before is not None and not differing(before.plan, plan, _TRANSPORT):
        transport = before.transport
    else:
        try:
            transport = _transport(plan, now, rng, resolver)
        except OSError as error:  # ssl's own errors are
            raise ConfigError(f"authorities {plan.authorities}: {error}") from error
    if before is not None and not differing(before.plan, plan, _DIRECTORIES):
        sources = before.sources
    else:
        sources = _sources(plan)
    return Parts(plan, _composer(plan), transport, sources, default)


def _sources(plan: MessagesPlan) -> tuple[AnyDirectory, ...]:
    found: list[AnyDirectory] = []
    for path in plan.directories:
        file = DirectoryFile(path, plan.language, Attach(plan.attach))
        # Now, so that a mistake is told before the first fax has gone to somebody else.
        file.refresh()
        found.append(file)
    if plan.ldap is not None:
        found.append(LdapDirectory(_ldap(plan)))
    return tuple(found)


def _composer(plan: MessagesPlan) -> Composer:
    zone: tzinfo = ZoneInfo(plan.timezone) if plan.timezone else _local()
    mail = MailPlan(
        Address(plan.sender), plan.sender_name, zone, plan.language, plan.bounce_keys, plan.keep
    )
    return Composer(mail, read_languages(plan.texts))


def _transport(
    plan: MessagesPlan,
    now: Callable[[], float],
    rng: random.Random,
    resolver: dns.asyncresolver.Resolver | None,
) -> Transport:
    account = plan.auth
    login = Login(account.user, account.secret.get_secret_value()) if account else None
    clear = bool(account and account.clear)
    manner = Manner(Tls(plan.tls), plan.verify, login, clear)
    outgoing = TransportPlan(
        hello=plan.hello or socket.getfqdn(),
        relays=tuple(Target(relay.host, relay.port, manner) for relay in plan.relays),
        order=Order(plan.order),
        port=plan.port,
        manner=manner,
        authorities=str(plan.authorities) if plan.authorities else None,
        connections=plan.connections,
        per_server=plan.per_server,
    )
    names = resolver or _resolver()
    policies = None
    if plan.mta_sts and not plan.relays:
        policies = Policies(
            names, now, authorities=outgoing.authorities, store=plan.spool / "mta-sts.db"
        )
    return Transport(outgoing, names, now, rng, policies)


def _ldap(plan: MessagesPlan) -> LdapPlan:
    place = plan.ldap
    if place is None:
        raise ConfigError("messages: no ldap")
    found = LdapPlan(
        place.url, place.base, mail=place.mail, language=plan.language,
        attach=Attach(plan.attach), start_tls=place.start_tls, verify=place.verify,
        authorities=str(place.authorities) if place.authorities else None, limit=place.limit,
        keep=place.keep,
    )  # fmt: skip
    if place.account is not None:
        secret = place.account.secret.get_secret_value()
        found = replace(found, user=place.account.user, password=secret)
    return replace(found, filter=place.filter) if place.filter else found


def _local() -> tzinfo:
    """The machine's zone, by name if it has one: an offset would be wrong in half of the year."""
    try:
        name = str(Path("/etc/localtime").resolve()).partition("/zoneinfo/")[2]
        return ZoneInfo(name) if name else UTC
    except (ValueError, OSError):
        return UTC


def _resolver() -> dns.asyncresolver.Resolver:
    try:
        return dns.asyncresolver.Resolver()
    except dns.exception.DNSException:
        # No resolv.conf: relays may be addresses, or names of the hosts file.
        return dns.asyncresolver.Resolver(configure=False)
