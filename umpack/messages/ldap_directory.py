"""Mailboxes from LDAP (RFC 4511): asked by number, remembered, and the memory outlives the server.

Needs the library ldap3, which is installed with `umpack[ldap]` and loaded here when first asked.
"""

from __future__ import annotations

import asyncio
import math
import ssl
import struct
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from string import Template
from typing import Any, Final

from loguru import logger

from umpack.core.errors import ConfigError, PeerFault, PeerGone
from umpack.core.printable import printable
from umpack.messages.directory import Attach, Mailbox
from umpack.messages.letter import LetterError, address

_MOST: Final = 20_000
_MOST_MAILBOXES: Final = 100


@dataclass(frozen=True, slots=True)
class LdapPlan:
    """Which server is asked what. Times in seconds."""

    url: str
    """`ldap://host:port` or `ldaps://…`."""
    base: str
    user: str = ""
    """Without one it is asked anonymously."""
    password: str = field(default="", repr=False)
    filter: str = "(|(facsimileTelephoneNumber=$number)(telephoneNumber=$number))"
    """RFC 4515. The matching rule of telephone numbers ignores blanks and hyphens (RFC 4517)."""
    mail: str = "mail"
    language_from: str = "preferredLanguage"
    language: str = "en"
    attach: Attach = Attach.PDF
    start_tls: bool = False
    verify: bool = True
    """With TLS: its certificate and name must be right. It tells us to whom faxes go."""
    authorities: str | None = None
    """PEM file of those who may sign it; None: the machine's."""
    limit: float = 5.0
    """For the connection, and for each answer."""
    keep: float = 600.0
    """How long an answer is taken as true."""
    keep_unknown: float = 60.0
    stale: float = 7 * 86400.0
    """How long an answer serves while the server cannot be asked."""

    def __post_init__(self) -> None:
        template = Template(self.filter)
        if not template.is_valid() or template.get_identifiers() != ["number"]:
            raise ConfigError(f"ldap: filter must have $number and no other name: {self.filter}")
        if not self.url.startswith(("ldap://", "ldaps://")):
            raise ConfigError(f"ldap: not an URL of a server: {printable(self.url)}")
        if min(self.limit, self.keep, self.keep_unknown, self.stale) <= 0:
            raise ConfigError("ldap: limit, keep, keep_unknown and stale must be positive")


class LdapDirectory:
    """A `Source`. One question at a time goes to the server, from a thread."""

    def __init__(self, plan: LdapPlan) -> None:
        self.name = "ldap"
        self.fault = ""
        """Why the server could not be asked the last time; empty if it could."""
        self._plan = plan
        self._known: OrderedDict[str, tuple[float, tuple[Mailbox, ...]]] = OrderedDict()
        self._asking = asyncio.Lock()
        self._rest_until = 0.0
        try:
            import ldap3  # noqa: F401, PLC0415  # optional, and needed by nobody else
        except ImportError as error:
            raise ConfigError("ldap: the library ldap3 is missing; install umpack[ldap]") from error

    async def mailboxes(self, called: str, now: float) -> tuple[Mailbox, ...]:
        """By LDAP or by memory; `now` in seconds, never going back. Raises `PeerFault`."""
        if (fresh := self._fresh(called, now)) is not None:
            return fresh
        async with self._asking:
            if (fresh := self._fresh(called, now)) is not None:
                return fresh
            try:
                if now < self._rest_until:
                    raise PeerGone(self.fault)
                found = await asyncio.to_thread(self._ask, called)
            except PeerFault as fault:
                # The next few need not wait for a dead server as well.
                if now >= self._rest_until:
                    self._rest_until = now + self._plan.limit
                if not self.fault:
                    logger.warning("{}", fault)
                self.fault = str(fault)
                return self._stale(called, now, fault)
        self.fault = ""
        self._known[called] = now, found
        self._known.move_to_end(called)
        while len(self._known) > _MOST:
            self._known.popitem(last=False)
        return found

    def _fresh(self, called: str, now: float) -> tuple[Mailbox, ...] | None:
        at, found = self._known.get(called, (0.0, ()))
        keep = self._plan.keep if found else self._plan.keep_unknown
        return found if called in self._known and 0 <= now - at < keep else None

    def _stale(self, called: str, now: float, fault: PeerFault) -> tuple[Mailbox, ...]:
        if called in self._known:
            at, found = self._known[called]
            # That a number was unknown once says too little to send its fax to somebody else.
            if found and now - at < self._plan.stale:
                return found
        raise fault

    def _ask(self, called: str) -> tuple[Mailbox, ...]:
        import ldap3  # noqa: PLC0415
        from ldap3.core.exceptions import LDAPException  # noqa: PLC0415
        from ldap3.utils.conv import escape_filter_chars  # noqa: PLC0415

        plan = self._plan
        wanted = Template(plan.filter).substitute(number=escape_filter_chars(called))
        seconds = math.ceil(plan.limit)  # ldap3 wants whole ones
        connection = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # pyasn1's, about ldap3
                # The library's own default verifies nothing (tried with 2.9.1).
                tls = ldap3.Tls(
                    validate=ssl.CERT_REQUIRED if plan.verify else ssl.CERT_NONE,
                    ca_certs_file=plan.authorities,
                )
                server = ldap3.Server(
                    plan.url, tls=tls, connect_timeout=plan.limit, get_info=ldap3.NONE
                )
                connection = ldap3.Connection(
                    server, plan.user or None, plan.password or None,
                    receive_timeout=seconds, read_only=True, raise_exceptions=True,
                    auto_referrals=False, check_names=False,
                )  # fmt: skip
                if plan.start_tls:
                    connection.start_tls()
                connection.bind()
                connection.search(
                    plan.base, wanted, attributes=[plan.mail, plan.language_from],
                    size_limit=_MOST_MAILBOXES, time_limit=seconds,
                )  # fmt: skip
                response = list(connection.response or ())
        # What ldap3 does with bytes that are no LDAP is not documented: those are what it did.
        except (LDAPException, OSError, ValueError, TypeError, LookupError, struct.error) as error:
            why = printable(f"{type(error).__name__}: {error}", 200)
            raise PeerGone(f"ldap {plan.url}: {why}") from error
        finally:
            _close(connection)
        found = (
            self._mailbox(entry.get("attributes", {}))
            for entry in response
            if entry.get("type") == "searchResEntry"
        )
        return tuple(mailbox for mailbox in found if mailbox is not None)

    def _mailbox(self, attributes: Mapping[str, Any]) -> Mailbox | None:
        plan = self._plan
        text = _first(attributes.get(plan.mail))
        language = _first(attributes.get(plan.language_from)).partition("-")[0].lower()
        try:
            mailbox = address(text)
        except LetterError as error:
            if text:
                logger.warning("ldap {}: {}", plan.url, error)
            return None
        return Mailbox(mailbox, language if language.isalpha() else plan.language, plan.attach)


def _close(connection: Any) -> None:
    """ldap3 itself leaves the socket open where a bind has failed."""
    if connection is None:
        return
    with suppress(Exception):  # nothing that goes wrong here matters to anybody any more
        connection.unbind()
    if connection.socket is not None:
        connection.socket.close()


def _first(values: object) -> str:
    if isinstance(values, list | tuple):
        values = values[0] if values else ""
    return values.decode("utf-8", "replace") if isinstance(values, bytes) else str(values or "")
