"""Texts a caller made, cleaned for the place they go to. What came is kept raw, in hex.

| sink      | function    | what is left                                                          |
|-----------|-------------|-----------------------------------------------------------------------|
| number    | `number`    | `+ 0-9 * # A-D`, as dialled                                           |
| header    | `header`    | printable ASCII on one line, other characters as `?`                  |
| body      | `line`      | one line of visible characters; what runs right to left is isolated   |
| file name | `file_name` | `A-Za-z0-9+_-` with dots between, none of Windows' device names       |
| log       | `printable` | as umpack/core/printable.py                                           |
| JSON      | `text`      | any character that UTF-8 has                                          |
| record    | `raw_hex`   | the bytes                                                             |

None of them ever raises; each has a limit of length. There is no sink for a shell: none is used.
A station id (TSI) is free text of the sender, whatever T.30 says; so are names, so are numbers.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Final

_SEPARATORS: Final = re.compile(r"[ ()./-]")
_DIALLED: Final = re.compile(r"[0-9A-Da-d*#+]*[0-9][0-9A-Da-d*#+]*")
_NOT_DIALLED: Final = re.compile(r"[^0-9+*#]")
_NOT_IN_NAME: Final = re.compile(r"[^A-Za-z0-9+_.-]+")
_DOTS: Final = re.compile(r"\.{2,}")
_DEVICES: Final = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_ISOLATE, _END_ISOLATE = "\u2068", "\u2069"
_MOST_MARKS: Final = 2


def decoded(raw: bytes) -> str:
    """Bytes off the line as text: UTF-8 if they are, else one character a byte."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def raw_hex(raw: bytes) -> str:
    """The bytes as they came, two digits each."""
    return raw.hex()


def number(text: str, limit: int = 32) -> str:
    """A telephone number; empty if there is none in it."""
    plain = _SEPARATORS.sub("", text[:1000])
    # A-D are keys as well, but `bad` and `Abdecker` are words.
    return (plain.upper() if _DIALLED.fullmatch(plain) else _NOT_DIALLED.sub("", plain))[:limit]


def header(text: str, limit: int = 64) -> str:
    """For a mail's header: ASCII, so that nothing is encoded and filters see what is there."""
    plain = unicodedata.normalize("NFKD", _visible(text[: 4 * limit]))
    plain = "".join(c for c in plain if not unicodedata.category(c).startswith("M"))
    return _cut(" ".join(plain.encode("ascii", "replace").decode("ascii").split()), limit, "...")


def line(text: str, limit: int = 80) -> str:
    """For one line of a plain text."""
    shown = _cut(" ".join(_visible(text[: 4 * limit]).split()), limit, "…")
    if any(unicodedata.bidirectional(c) in ("R", "AL", "AN") for c in shown):
        return f"{_ISOLATE}{shown}{_END_ISOLATE}"  # UAX 9: it shall not reorder what is around it
    return shown


def text(what: str, limit: int = 1000) -> str:
    """For JSON: only what UTF-8 cannot hold is replaced; the encoder escapes the rest."""
    return what[:limit].encode("utf-8", "replace").decode("utf-8")


def file_name(stem: str, suffix: str, limit: int = 100) -> str:
    """A name for a file on anybody's machine. `suffix` is ours, with its dot."""
    plain = unicodedata.normalize("NFKD", stem[: 4 * limit])
    plain = "".join(c for c in plain if not unicodedata.category(c).startswith("M"))
    name = _DOTS.sub(".", _NOT_IN_NAME.sub("_", plain)).strip("._-")[: limit - len(suffix)]
    name = name.rstrip("._-") or "message"
    return f"_{name}{suffix}" if _DEVICES.fullmatch(name) else f"{name}{suffix}"


def _visible(what: str) -> str:
    return "".join(_characters(unicodedata.normalize("NFC", what)))


def _characters(what: str) -> Iterator[str]:
    marks = 0
    for c in what:
        kind = unicodedata.category(c)
        marks = marks + 1 if kind.startswith("M") else 0
        if kind in ("Cc", "Zl", "Zp", "Zs"):
            yield " "
        elif kind in ("Cs", "Cn", "Co"):
            yield "?"
        elif kind != "Cf" and marks <= _MOST_MARKS:  # Cf: bidirectional controls, joiners, tags
            yield c


def _cut(what: str, limit: int, end: str) -> str:
    return what if len(what) <= limit else what[: limit - len(end)].rstrip() + end
