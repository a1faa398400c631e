"""The keys of the `messages` table, as they are written."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from umpack.config.fields import Duration, Host, Listed, OneOrMore, Secret, Table, Text

DAY = 86400.0
PORT = 25


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
    verify: bool = Field(
        True, description="With TLS, its certificate must be right; false trusts whoever answers."
    )
    authorities: Text | None = Field(
        None, description="PEM file of those who may sign it. Default: those of `messages`."
    )
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
    port: int = Field(PORT, ge=1, le=65535, description="TCP port of servers DNS names.")
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
    mta_sts: bool = Field(
        True, description="With `mx`: what a domain's MTA-STS policy (RFC 8461) asks for is done."
    )
    auth: Auth | None = Field(None, description="Account at the relays.")
    connections: int = Field(20, ge=1, le=1000, description="Connections at once.")
    per_server: int = Field(8, ge=1, le=1000, description="Of these, to one server.")
    conversions: int = Field(2, ge=1, le=64, description="Faxes made into PDF at once.")
    retry: Retry = Field(Retry(), description="When it is tried again.")
    bundles: Bundles = Field(Bundles(), description="Calls that failed.")
    retention: Retention = Field(Retention(), description="How long messages are kept.")
