"""Mails as the `email` package writes them, byte for byte, without its way round.

`email` parses every header into a tree and the tree into lines again, which costs five times what
is left of a delivery. Here a header that is plain and fits on its line is that line; all others,
and the texts, are still written by `email`.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from email.headerregistry import Address, HeaderRegistry
from email.policy import SMTP, SMTPUTF8
from email.quoprimime import body_encode
from functools import lru_cache
from itertools import chain
from struct import Struct
from typing import Final, NamedTuple

LINE: Final = 78
"""RFC 5322 2.1.1, without the CRLF."""
_BASE64_LINE: Final = 76
"""RFC 2045 6.8."""
_LINES: Final = Struct("76s" * 64)
_PLAIN: Final = re.compile(r"[!-~]+(?: [!-~]+)*")
"""One line of words with a space between; an encoded word (RFC 2047) in it is told apart below."""


class _Headers(HeaderRegistry):
    """Makes the class of every header once: the registry's own makes it anew for each header of
    each mail, and the garbage collector has as many classes to find."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[str, type] = {}

    def __getitem__(self, name: str) -> type:
        known = name.lower()
        if known not in self._made:
            self._made[known] = super().__getitem__(name)
        return self._made[known]


_HEADERS: Final = _Headers()
_ASCII: Final = SMTP.clone(header_factory=_HEADERS)
_UTF8: Final = SMTPUTF8.clone(header_factory=_HEADERS)


class Header(NamedTuple):
    """Not for headers with a grammar of their own, like addresses: those are `Mailbox`."""

    name: str
    value: str

    def lines(self, *, utf8: bool) -> bytes:
        """As in the mail. `ValueError` if the value has a line end in it."""
        name, value = self
        plain = len(name) + 2 + len(value) <= LINE and _PLAIN.fullmatch(value)
        if plain and "=?" not in value:
            return f"{name}: {value}\r\n".encode()
        return _folded(name, value, utf8=utf8)


class Mailbox(NamedTuple):
    """From or To: one address, `local` without its quotes."""

    name: str
    display: str
    local: str
    domain: str

    def lines(self, *, utf8: bool) -> bytes:
        """As in the mail. `ValueError` if there is a line end in it."""
        return _mailbox(self, utf8)


@dataclass(frozen=True, slots=True)
class File:
    """Something attached. `name` is plain, without quotes and spaces; `parameter` belongs to the
    type, `more` are headers of the part."""

    data: bytes = field(repr=False)
    type: str
    name: str
    parameter: tuple[str, str] | None = None
    more: tuple[Header, ...] = ()


def written(
    head: Iterable[Header | Mailbox],
    tail: Iterable[Header],
    text: str,
    files: Sequence[File],
    boundary: str,
    *,
    utf8: bool,
) -> bytes:
    """A mail of a text and files. `tail` are headers that follow those of MIME; with `utf8` they
    need not be ASCII (RFC 6532). `boundary` must stand in no text, whoever wrote it, and is 36
    characters long or more."""
    first = [header.lines(utf8=utf8) for header in head]
    last = [header.lines(utf8=utf8) for header in tail]
    form, body = _text(text)
    if not files:
        return b"".join((*first, form, b"MIME-Version: 1.0\r\n", *last, b"\r\n", body))
    edge = f"\r\n--{boundary}".encode()
    several = f'Content-Type: multipart/mixed;\r\n boundary="{boundary}"\r\n'.encode()
    return b"".join(
        (
            *first, b"MIME-Version: 1.0\r\n", several, *last,
            edge, b"\r\n", form, b"\r\n", body,
            *(piece for file in files for piece in (edge, b"\r\n", *_part(file, utf8=utf8))),
            edge, b"--\r\n",
        )
    )  # fmt: skip


def _text(text: str) -> tuple[bytes, bytes]:
    """Its headers, and what stands below them."""
    lines = text.encode("utf-8", "replace").splitlines()
    data = b"\n".join(lines) + b"\n"
    if data.isascii() and all(len(line) <= LINE for line in lines):
        coding = b"7bit"
    else:
        coding = b"quoted-printable"
        data = body_encode(data.decode("latin-1"), LINE).encode("ascii")
    head = b'Content-Type: text/plain; charset="utf-8"\r\nContent-Transfer-Encoding: %s\r\n'
    return head % coding, data.replace(b"\n", b"\r\n")


def _part(file: File, *, utf8: bool) -> Iterator[bytes]:
    kind = f"Content-Type: {file.type}"
    if file.parameter is None:
        yield f"{kind}\r\n".encode()
    yield b"Content-Transfer-Encoding: base64\r\n"
    yield _disposition(file.name)
    yield b"MIME-Version: 1.0\r\n"
    if file.parameter is not None:
        yield '{}; {}="{}"\r\n'.format(kind, *file.parameter).encode()
    for header in file.more:
        yield header.lines(utf8=utf8)
    yield b"\r\n"
    yield _base64(file.data)


def _disposition(name: str) -> bytes:
    label, value = "Content-Disposition", f'filename="{name}"'
    line = f"{label}: attachment; {value}"
    if len(line) <= LINE:
        return f"{line}\r\n".encode()
    if len(value) + 2 <= LINE:
        return f"{label}: attachment;\r\n {value}\r\n".encode()
    return _folded(label, f"attachment; {value}", utf8=False)  # in pieces (RFC 2231)


def _base64(data: bytes) -> bytes:
    """In lines, the last one too with its end."""
    text = b2a_base64(data, newline=False)
    whole = len(text) // _LINES.size * _LINES.size
    lines = list(chain.from_iterable(_LINES.iter_unpack(memoryview(text)[:whole])))
    lines += (text[at : at + _BASE64_LINE] for at in range(whole, len(text), _BASE64_LINE))
    return b"\r\n".join((*lines, b"")) if lines else b""


def _folded(name: str, value: str | Address, *, utf8: bool) -> bytes:
    policy = _UTF8 if utf8 else _ASCII
    return policy.fold_binary(*policy.header_store_parse(name, value))


@lru_cache(1024)
def _mailbox(mailbox: Mailbox, utf8: bool) -> bytes:
    name, display, local, domain = mailbox
    return _folded(name, Address(display, local, domain), utf8=utf8)
