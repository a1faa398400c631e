"""What in the `messages` table does not fit together, or not to this machine."""

from __future__ import annotations

import importlib.util
import re
import ssl
import zoneinfo
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Final, TypeVar

from umpack.config.fields import Table
from umpack.config.mail_tables import PORT, Messages
from umpack.config.problems import Findings
from umpack.config.values import Address, host_name
from umpack.config.yaml_source import Path as KeyPath
from umpack.core.errors import ConfigError
from umpack.messages.ldap_directory import LdapPlan
from umpack.messages.letter import LetterError, address
from umpack.messages.outcomes import BundlePolicy
from umpack.messages.retry import RetryPolicy

IMPLICIT_PORT = 465

P = TypeVar("P", RetryPolicy, BundlePolicy)

_FOR_ASTERISK: Final = re.compile(r"/[0-9A-Za-z._/+-]+")
"""As the driver wants it: ReceiveFAX parts its argument at commas, others know `&` and `|`."""


class Reader:
    """Of one table."""

    def __init__(self, table: Messages, directory: Path, path: KeyPath, findings: Findings) -> None:
        self._table = table
        self._directory = directory
        self._path = path
        self._findings = findings
        self.failed = False

    def relays(self) -> tuple[Address, ...]:
        """Host and port of each."""
        table = self._table
        port = IMPLICIT_PORT if table.tls == "implicit" else PORT
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
        if table.relays and table.mta_sts and "mta_sts" in table.model_fields_set:
            why = "`tls: required` and `verify: true` are for relays"
            self._warn(("mta_sts",), f"is of no use without `mx`; {why}")
        if table.timezone is not None:
            try:
                zoneinfo.ZoneInfo(table.timezone)
            except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
                self._error(("timezone",), f"{table.timezone!r} is no time zone known here")
        if table.auth and table.tls != "never" and not table.verify:
            why = "goes to whoever answers, as no certificate is looked at: say `verify: true`"
            self._warn(("auth",), f"the secret {why}")
        self._check_ldap()
        self._check_paths()

    def _check_ldap(self) -> None:
        """What would else keep umpack from starting."""
        ldap = self._table.ldap
        if ldap is None:
            return
        plan = LdapPlan("ldap://", "")
        try:
            replace(plan, url=ldap.url, filter=ldap.filter or plan.filter)
        except ConfigError as error:
            self._error(("ldap",), str(error).removeprefix("ldap: "))
        if importlib.util.find_spec("ldap3") is None:
            self._error(("ldap",), "needs the library ldap3; install umpack[ldap]")
        if ldap.url.startswith("ldap:") and ldap.user and not ldap.start_tls:
            self._warn(("ldap",), "the password goes in clear: ldaps://, or `start_tls: true`")

    def _addresses(self) -> Iterator[tuple[KeyPath, str]]:
        yield ("sender",), self._table.sender
        for number, text in enumerate(self._table.default_mailbox):
            yield ("default_mailbox", number), text

    def _check_paths(self) -> None:
        table = self._table
        # Not at the top: it reads YAML, and so needs this package whole.
        from umpack.messages.directory_file import read_directory  # noqa: PLC0415

        given = {"spool": table.spool, "texts": table.texts, "authorities": table.authorities}
        paths: list[tuple[KeyPath, str]] = [((key,), text) for key, text in given.items() if text]
        paths += [(("directory", n), text) for n, text in enumerate(table.directory)]
        for at, text in paths:
            if not text.isprintable():
                self._error(at, "has a character that does not belong in a path")
        if self.failed:
            return
        spool = str((self._directory / table.spool).absolute())
        if _FOR_ASTERISK.fullmatch(spool) is None:
            why = "letters, digits, `.`, `_`, `+`, `-` are what Asterisk's applications can take"
            self._error(("spool",), f"{spool!r}: {why}")
        for at, text in self._authorities():
            try:
                ssl.create_default_context(cafile=self._directory / text)
            except (OSError, ValueError) as error:
                self._error(at, f"{text}: {getattr(error, 'strerror', None) or error}")
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
                continue
            try:
                read_directory(self._directory / text)
            except ConfigError as error:
                # No error: a half-edited file must not keep calls from being taken after a restart.
                for line in str(error).splitlines():
                    self._warn(("directory", number), f"will not be used: {line}")

    def _authorities(self) -> Iterator[tuple[KeyPath, str]]:
        if (text := self._table.authorities) is not None:
            yield ("authorities",), text
        if (ldap := self._table.ldap) is not None and ldap.authorities is not None:
            yield ("ldap", "authorities"), ldap.authorities

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
