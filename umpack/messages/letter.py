"""What goes out by SMTP, and what may become of it for each recipient.

Everything that could end a line is refused here, once, so that nothing behind it has to ask.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NewType, TypeAlias

from umpack.core.errors import OurFault

Address = NewType("Address", str)
"""A mailbox `local@domain` that `address()` has let through."""

MAX_LOCAL_PART: Final = 64
MAX_DOMAIN: Final = 255
"""Octets, RFC 5321 4.5.3.1.1 and 4.5.3.1.2."""

_ATOM: Final = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\u0080-\U0010ffff-]+"
_QUOTED: Final = r'"(?:[ !#-\[\]-~]|\\[ -~])*"'
_LABEL: Final = r"[A-Za-z0-9\u0080-\U0010ffff](?:[A-Za-z0-9\u0080-\U0010ffff_-]*[^\W_])?"
_MAILBOX: Final = re.compile(
    rf"(?:{_ATOM}(?:\.{_ATOM})*|{_QUOTED})@(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:.IPv]+\])"
)
_MESSAGE_ID: Final = re.compile(r"<[!-;=?-~]+@[!-;=?-~]+>")
_TOO_LARGE: Final = re.compile(r"(?<![\d.])5\.(?:3\.4|2\.3)(?![\d.])")
_FULL: Final = re.compile(r"(?<![\d.])5\.2\.2(?![\d.])")
_STORAGE: Final = 552
_BARE: Final = re.compile(rb"\r\n|\r|\n")


class LetterError(OurFault):
    """A letter that must not go out: an address, id or body could forge a command or header."""


def address(text: str) -> Address:
    """`text` as a mailbox (RFC 5321 4.1.2, RFC 6531); raises `LetterError` for anything else."""
    local, _, domain = text.rpartition("@")
    if not text.isprintable() or not _MAILBOX.fullmatch(text):
        raise LetterError(f"not a mailbox: {text[:320]!a}")
    if len(local.encode()) > MAX_LOCAL_PART or len(domain.encode()) > MAX_DOMAIN:
        raise LetterError(f"longer than a mailbox may be: {text[:320]!a}")
    if not domain.startswith("["):
        a_label(domain)
    return Address(text)


def domain_of(mailbox: Address) -> str:
    """What stands behind the last @, in small letters."""
    return mailbox.rpartition("@")[2].lower()


def a_label(domain: str) -> str:
    """The domain as DNS and servers without SMTPUTF8 know it (RFC 5890); or `LetterError`."""
    try:
        return domain.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise LetterError(f"not a domain: {domain[:255]!a}") from error


@dataclass(frozen=True, slots=True)
class Letter:
    """A finished message and its envelope, the same on every try.

    `message_id` with its angle brackets; `body` is the whole message, header first, and its line
    ends are made CRLF here, bare ones too, so that no server sees another end of the message than
    we do (SMTP smuggling). The sender is never empty: a bounce to `<>` would reach nobody.
    """

    message_id: str
    envelope_from: Address
    recipients: tuple[Address, ...]
    body: bytes

    def __post_init__(self) -> None:
        address(self.envelope_from)
        if not self.recipients:
            raise LetterError(f"{self.message_id!a} has no recipient")
        for recipient in self.recipients:
            address(recipient)
        if not _MESSAGE_ID.fullmatch(self.message_id):
            raise LetterError(f"not a Message-ID: {self.message_id[:320]!a}")
        if b"\0" in self.body:
            raise LetterError(f"{self.message_id} has a NUL in its body (RFC 5321 4.5.2)")
        object.__setattr__(self, "body", _with_crlf(self.body))

    @property
    def size(self) -> int:
        """Octets as RFC 1870 counts them: with CRLF, before dots are doubled."""
        return len(self.body)

    @property
    def eight_bit(self) -> bool:
        """Whether BODY=8BITMIME is to be said."""
        return not self.body.isascii()

    @property
    def needs_utf8(self) -> bool:
        """Whether sender or header can only go to a server with SMTPUTF8 (RFC 6532)."""
        header = self.body[: self.body.find(b"\r\n\r\n") + 1 or None]
        return not (header.isascii() and self.envelope_from.rpartition("@")[0].isascii())


def _with_crlf(body: bytes) -> bytes:
    pairs = body.count(b"\r\n")
    if body.count(b"\r") != pairs or body.count(b"\n") != pairs:
        body = _BARE.sub(b"\r\n", body)
    return body if body.endswith(b"\r\n") else body + b"\r\n"


@dataclass(frozen=True, slots=True)
class Delivered:
    """A server has answered 2xx after the final dot and is responsible now (RFC 5321 4.2.5)."""

    server: str
    reply: str
    queue_id: str | None


@dataclass(frozen=True, slots=True)
class Deferred:
    """Not accepted, worth another try.

    `retry_after` in seconds if something is known about when; `reached` if a server has spoken
    about this very recipient: a mail system that is away altogether says nothing against anyone.
    `answered` if one came as far as the message and failed then: it is not away.
    """

    why: str
    retry_after: float | None = None
    reached: bool = False
    answered: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """Never to be tried again by itself; `code` is the SMTP reply code, our refusals' too."""

    why: str
    code: int

    @property
    def too_large(self) -> bool:
        """Whether a smaller mail might be taken (RFC 5321 4.2.3, RFC 3463 3.3 and 3.4); a mailbox
        that is full has no room for that one either."""
        if _FULL.search(self.why):
            return False
        return self.code == _STORAGE or bool(_TOO_LARGE.search(self.why))


@dataclass(frozen=True, slots=True)
class Uncertain:
    """The connection ended after the final dot and before its answer (RFC 1047).

    It may have been accepted: to be tried again with the same Message-ID, at `server` first.
    """

    server: str
    why: str


Delivery: TypeAlias = Delivered | Deferred | Refused | Uncertain
Deliveries: TypeAlias = Mapping[Address, Delivery]
