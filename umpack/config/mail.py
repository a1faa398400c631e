"""The `messages` table: where faxes and voice messages are kept, who gets them, by which servers.

Without the section nothing of all that runs. Its words are read here into a `MessagesPlan`; what
needs sockets or files is made of that by umpack/messages/office.py.
"""

from __future__ import annotations

import zoneinfo
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, SecretStr

from umpack.config.fields import Duration, Host, Listed, OneOrMore, Secret, Table, Text
from umpack.config.problems import Findings
from umpack.config.values import Address, duration, host_name
from umpack.config.yaml_source import Path as KeyPath
from umpack.core.errors import ConfigError
from umpack.messages.letter import LetterError, address
from umpack.messages.outcomes import BundlePolicy
from umpack.messages.retry import RetryPolicy

DAY = 86400.0
_PORT, _IMPLICIT_PORT = 25, 465

P = TypeVar("P", RetryPolicy, BundlePolicy)


class Auth(Table):
    """The account at the relays (AUTH)."""

    user: Text = Field(description="User name.")
    secret: Secret | None = Field(None, description="The secret itself; or one of the next two.")
    secret_file: Text | None = Field(
        None, description="File that holds the secret; relative to this file."
    )
    secret_env: Text | None = Field(None, description="Environment variable holding the secret.")
    clear: bool = Field(False, description="true: the secret may go over an unencrypted line.")


class Ldap(Table):
    """A directory that is asked by LDAP, after the files."""

    url: Text = Field(description="ldap://host:port or ldaps://host.")
    base: Text = Field(description="Where in the tree the search begins.")
    user: Text | None = Field(None, description="Bind DN; default: anonymous.")
    secret: Secret | None = Field(None, description="Its password; or one of the next two.")
    secret_file: Text | None = Field(None, description="File that holds it.")
    secret_env: Text | None = Field(None, description="Environment variable holding it.")
    filter: Text | None = Field(None, description="RFC 4515, with $number for the called number.")
    mail: Text = Field("mail", description="Attribute with the address.")
    start_tls: bool = Field(False, description="Encrypt before the bind.")
    limit: Duration = Field(5.0, description="How long an answer may take.")
    keep: Duration = Field(600.0, description="How long an answer is taken as true.")


class Retry(Table):
    """When a message that was not accepted is tried again."""

    first: Duration | None = Field(None, description="After the first try (30s).")
    factor: float | None = Field(None, gt=1, description="Each wait is longer by this (2).")
    cap: Duration | None = Field(None, description="But no longer than this (1h).")
    jitter: float | None = Field(
        None, ge=0, le=1, description="The share of a wait chance may take away (0.25)."
    )
    lifetime: Duration | None = Field(
        None, description="Put off by servers for so long, it is a dead letter (5d)."
    )
    late_after: Duration | None = Field(
        None, description="Not delivered for so long, it is worth an alarm (10m)."
    )


class Bundles(Table):
    """Calls that failed are told in one mail, once the caller has given up or come through."""

    quiet: Duration | None = Field(None, description="A caller silent for so long gave up (10m).")
    longest: Duration | None = Field(None, description="Nobody waits longer for a notice (1h).")


class Retention(Table):
    """Counted from the delivery to all, never from age."""

    originals: Duration = Field(30 * DAY, description="How long files are kept.")
    records: Duration = Field(365 * DAY, description="How long records are kept.")


class Messages(Table):
    """Faxes and voice messages to mailboxes."""

    spool: Text = Field(
        "/var/spool/umpack", description="Directory of the spool, on a disk of this machine."
    )
    reserve_mb: int = Field(
        500, ge=0, description="MB kept free; with less, calls are refused before the answer."
    )
    sender: Text = Field(description="Address in From; bounces come to it as well.")
    sender_name: Text = Field("umpack", description="Name in From (ASCII).")
    bounce_keys: bool = Field(
        True, description="Bounces come to sender+KEY@...; false if its server knows no `+`."
    )
    domain: Host | None = Field(
        None, description="Right side of every Message-ID. Default: the sender's domain."
    )
    directory: OneOrMore = Field(
        (), description="Files (CSV or YAML) that say whose number it is, in order."
    )
    ldap: Ldap | None = Field(None, description="Asked after the files.")
    default_mailbox: OneOrMore = Field(
        description="Who gets what no directory knows; one address or several."
    )
    texts: Text = Field("mail", description="Directory of the mails' texts, a file a language.")
    language: Text = Field("en", description="For mailboxes that name none.")
    attach: Literal["pdf", "original", "both"] = Field(
        "pdf", description="What a mailbox gets of a fax, if it does not say."
    )
    voice: Literal["wav", "opus", "alaw", "ulaw"] = Field(
        "wav", description="Coding of recordings; all but wav need opusenc or ffmpeg."
    )
    timezone: Text | None = Field(
        None, description="Of the times in mails (Europe/Berlin). Default: the machine's."
    )
    relays: Listed[Text] = Field(
        (), description="Mail servers that take everything, host or host:port; or `mx`."
    )
    mx: bool = Field(
        False, description="true: to the servers DNS names for each recipient's domain."
    )
    order: Literal["round_robin", "ordered"] = Field(
        "round_robin", description="Relays take turns, or the first that works is used."
    )
    port: int = Field(_PORT, ge=1, le=65535, description="TCP port of servers DNS names.")
    hello: Host | None = Field(None, description="Our name in EHLO. Default: the host's full name.")
    tls: Literal["never", "opportunistic", "required", "implicit"] = Field(
        "opportunistic", description="STARTTLS if offered, or nothing without; implicit: port 465."
    )
    verify: bool = Field(
        False, description="The servers' certificates must be right (tls required or implicit)."
    )
    authorities: Text | None = Field(
        None, description="PEM file of those who may sign them. Default: the machine's."
    )
    auth: Auth | None = Field(None, description="Account at the relays.")
    connections: int = Field(20, ge=1, le=1000, description="Connections at once.")
    per_server: int = Field(8, ge=1, le=1000, description="Of these, to one server.")
    conversions: int = Field(2, ge=1, le=64, description="Faxes made into PDF at once.")
    retry: Retry = Field(Retry(), description="When it is tried again.")
    bundles: Bundles = Field(Bundles(), description="Calls that failed.")
    retention: Retention = Field(Retention(), description="How long messages are kept.")


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


def plan_from(
    table: Messages,
    secrets: Mapping[str, SecretStr],
    directory: Path,
    path: KeyPath,
    findings: Findings,
) -> MessagesPlan | None:
    """The plan, or None after what does not fit together was reported. `secrets` by table."""
    found = _Reader(table, directory, path, findings)
    relays = found.relays()
    found.check()
    retry = found.policy("retry", table.retry, RetryPolicy)
    bundles = found.policy("bundles", table.bundles, BundlePolicy)
    if retry is None or bundles is None or found.failed:
        return None
    auth, ldap = table.auth, table.ldap
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
            ldap.filter, ldap.mail, ldap.start_tls, ldap.limit, ldap.keep,
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
    )  # fmt: skip


class _Reader:
    def __init__(self, table: Messages, directory: Path, path: KeyPath, findings: Findings) -> None:
        self._table = table
        self._directory = directory
        self._path = path
        self._findings = findings
        self.failed = False

    def relays(self) -> tuple[Address, ...]:
        """Host and port of each."""
        table = self._table
        port = _IMPLICIT_PORT if table.tls == "implicit" else _PORT
        found: list[Address] = []
        for number, text in enumerate(table.relays):
            try:
                bare = (text.startswith("[") and text.endswith("]")) or ":" not in text
                relay = Address(host_name(text), port) if bare else Address.parse(text)
                if not relay.port:
                    raise ValueError(f"{text!r}: there is no port 0")
                if relay in found:
                    raise ValueError(f"{text} stands here twice")
                found.append(relay)
            except ValueError as error:
                self._error(("relays", number), str(error))
        if table.relays and table.mx:
            self._error(("mx",), "`relays` and `mx` exclude each other")
        if not table.relays and not table.mx:
            self._error((), "no mail server: give `relays`, or `mx: true`")
        return tuple(found)

    def check(self) -> None:
        """What one key alone does not show."""
        table = self._table
        for key, text in self._addresses():
            try:
                address(text)
            except LetterError as error:
                self._error(key, str(error))
        if not table.default_mailbox:
            self._error(("default_mailbox",), "is empty; faxes might be for nobody")
        if not (table.sender_name.isascii() and table.sender_name.isprintable()):
            self._error(("sender_name",), "must be one line of ASCII")
        if table.verify and table.tls not in ("required", "implicit"):
            self._error(("verify",), f"is of no use with `tls: {table.tls}`")
        if table.auth and table.tls == "never" and not table.auth.clear:
            self._error(("auth",), "with `tls: never` the secret goes in clear: say `clear: true`")
        if table.auth and table.mx:
            self._error(("auth",), "is for relays; servers DNS names ask for none")
        if table.timezone is not None:
            try:
                zoneinfo.ZoneInfo(table.timezone)
            except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
                self._error(("timezone",), f"{table.timezone!r} is no time zone known here")
        self._check_paths()

    def _addresses(self) -> Iterator[tuple[KeyPath, str]]:
        yield ("sender",), self._table.sender
        for number, text in enumerate(self._table.default_mailbox):
            yield ("default_mailbox", number), text

    def _check_paths(self) -> None:
        table = self._table
        given = {"spool": table.spool, "texts": table.texts, "authorities": table.authorities}
        paths: list[tuple[KeyPath, str]] = [((key,), text) for key, text in given.items() if text]
        paths += [(("directory", n), text) for n, text in enumerate(table.directory)]
        for at, text in paths:
            if not text.isprintable():
                self._error(at, "has a character that does not belong in a path")
        if self.failed:
            return
        if not (self._directory / table.texts / f"{table.language}.txt").is_file():
            self._error(
                ("texts",),
                f"there is no {table.language}.txt in {table.texts}; umpack brings its own in "
                "etc/mail",
            )
        for number, text in enumerate(table.directory):
            if not (self._directory / text).is_file():
                why = f"{text} is not there; all goes to the default mailbox until it is"
                self._warn(("directory", number), why)

    def policy(self, key: str, table: Table, kind: type[P]) -> P | None:
        """The policy with what the table says; None after its fault was reported."""
        names = (each.name for each in fields(kind))
        given = {name: value for name in names if (value := getattr(table, name)) is not None}
        try:
            return kind(**given)
        except ConfigError as error:
            self._error((key,), str(error))
            return None

    def _error(self, at: KeyPath, message: str) -> None:
        self.failed = True
        self._findings.error(self._place(at), message)

    def _warn(self, at: KeyPath, message: str) -> None:
        self._findings.warn(self._place(at), message)

    def _place(self, at: KeyPath) -> KeyPath:
        """The nearest key that stands in the file: one address may stand without a list."""
        whole = (*self._path, *at)
        while len(whole) > 1 and whole not in self._findings.document.lines:
            whole = whole[:-1]
        return whole


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
