"""The `messages` table: where faxes and voice messages are kept, who gets them, by which servers.

Without the section nothing of all that runs. Its words are read here into a `MessagesPlan`; what
needs sockets or files is made of that by umpack/messages/office.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from umpack.config.mail_reader import Reader
from umpack.config.mail_tables import DAY, Messages
from umpack.config.problems import Findings
from umpack.config.values import Address, duration
from umpack.config.yaml_source import Path as KeyPath
from umpack.messages.outcomes import BundlePolicy
from umpack.messages.retry import RetryPolicy


@dataclass(frozen=True, slots=True)
class Account:
    """A user and a secret that shows as `***`."""

    user: str
    secret: SecretStr
    clear: bool = False


@dataclass(frozen=True, slots=True)
class LdapPlace:
    """As `Ldap`."""

    url: str
    base: str
    account: Account | None
    filter: str | None
    mail: str
    start_tls: bool
    verify: bool
    authorities: Path | None
    limit: float
    keep: float


@dataclass(frozen=True, slots=True)
class MessagesPlan:
    """What the section amounts to; paths are whole, times in seconds."""

    spool: Path
    reserve: int
    """Bytes."""
    sender: str
    sender_name: str
    bounce_keys: bool
    domain: str
    directories: tuple[Path, ...]
    ldap: LdapPlace | None
    default_mailboxes: tuple[str, ...]
    texts: Path
    language: str
    attach: str
    voice: str
    timezone: str | None
    relays: tuple[Address, ...]
    """Empty: the exchangers of each recipient's domain."""
    order: str
    port: int
    hello: str | None
    tls: str
    verify: bool
    authorities: Path | None
    auth: Account | None
    connections: int
    per_server: int
    conversions: int
    retry: RetryPolicy = field(default=RetryPolicy())
    bundles: BundlePolicy = field(default=BundlePolicy())
    keep: float = 30 * DAY
    keep_records: float = 365 * DAY
    mta_sts: bool = True
    """Without relays."""


def plan_from(
    table: Messages,
    secrets: Mapping[str, SecretStr],
    directory: Path,
    path: KeyPath,
    findings: Findings,
) -> MessagesPlan | None:
    """The plan, or None after what does not fit together was reported. `secrets` by table."""
    found = Reader(table, directory, path, findings)
    relays = found.relays()
    found.check()
    retry = found.policy("retry", table.retry, RetryPolicy)
    bundles = found.policy("bundles", table.bundles, BundlePolicy)
    if retry is None or bundles is None or found.failed:
        return None
    auth, ldap = table.auth, table.ldap
    authorities = (ldap.authorities if ldap else None) or table.authorities
    return MessagesPlan(
        spool=directory / table.spool,
        reserve=table.reserve_mb * 1_000_000,
        sender=table.sender,
        sender_name=table.sender_name,
        bounce_keys=table.bounce_keys,
        domain=table.domain or table.sender.rpartition("@")[2],
        directories=tuple(directory / file for file in table.directory),
        ldap=None if ldap is None else LdapPlace(
            ldap.url, ldap.base, Account(ldap.user, secrets["ldap"]) if ldap.user else None,
            ldap.filter, ldap.mail, ldap.start_tls, ldap.verify,
            directory / authorities if authorities else None, ldap.limit, ldap.keep,
        ),
        default_mailboxes=table.default_mailbox,
        texts=directory / table.texts,
        language=table.language,
        attach=table.attach,
        voice=table.voice,
        timezone=table.timezone,
        relays=relays,
        order=table.order,
        port=table.port,
        hello=table.hello,
        tls=table.tls,
        verify=table.verify,
        authorities=directory / table.authorities if table.authorities else None,
        auth=None if auth is None else Account(auth.user, secrets["auth"], auth.clear),
        connections=table.connections,
        per_server=min(table.per_server, table.connections),
        conversions=table.conversions,
        retry=retry,
        bundles=bundles,
        keep=table.retention.originals,
        keep_records=table.retention.records,
        mta_sts=table.mta_sts,
    )  # fmt: skip


def described(plan: MessagesPlan) -> dict[str, Any]:
    """As understood, for people; secrets are left out."""
    return {
        "spool": str(plan.spool),
        "reserve_mb": plan.reserve // 1_000_000,
        "sender": plan.sender,
        "sender_name": plan.sender_name,
        "bounce_keys": plan.bounce_keys,
        "domain": plan.domain,
        "directory": [str(file) for file in plan.directories],
        "ldap": plan.ldap.url if plan.ldap else None,
        "default_mailbox": list(plan.default_mailboxes),
        "texts": str(plan.texts),
        "language": plan.language,
        "attach": plan.attach,
        "voice": plan.voice,
        "timezone": plan.timezone,
        "relays": [str(relay) for relay in plan.relays],
        "mx": not plan.relays,
        "order": plan.order,
        "tls": plan.tls,
        "verify": plan.verify,
        "mta_sts": plan.mta_sts and not plan.relays,
        "auth": {"user": plan.auth.user, "secret": str(plan.auth.secret)} if plan.auth else None,
        "connections": plan.connections,
        "per_server": plan.per_server,
        "conversions": plan.conversions,
        "retry": {
            "first": duration(plan.retry.first),
            "factor": plan.retry.factor,
            "cap": duration(plan.retry.cap),
            "jitter": plan.retry.jitter,
            "lifetime": duration(plan.retry.lifetime),
            "late_after": duration(plan.retry.late_after),
        },
        "bundles": {key: duration(value) for key, value in asdict(plan.bundles).items()},
        "retention": {"originals": duration(plan.keep), "records": duration(plan.keep_records)},
    }
