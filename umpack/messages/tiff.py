"""The page directories of a TIFF as fax engines write them (RFC 3949), salvaged from damaged files.

Own code, as no library finds what a killed engine leaves: spandsp rewrites every directory at the
end of a call, and libtiff does that by taking it out of the chain and writing it anew at the end.
Killed in between, the first offset is 0 or a link is lost while all pages are still there. So
where the chain is broken the file is searched for directories that hang on nothing. It has a second
use: no library that decodes ever sees the file itself, only the tags that were checked here.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from umpack.core.errors import ProtocolFault

G3: Final = 3
G4: Final = 4

_MOST_ENTRIES: Final = 200
_MOST_STRIPS: Final = 50_000
_MOST_CANDIDATES: Final = 20_000
_MOST_TEXT: Final = 256
"""Bytes of a text: a station id has 20, a DCS in hex 3 for each of its few octets."""
_SIZES: Final[Mapping[int, tuple[str, int]]] = {
    1: ("B", 1), 2: ("B", 1), 3: ("H", 2), 4: ("I", 4), 5: ("II", 8)
}  # fmt: skip
_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIPS, _SAMPLES, _ROWS_PER_STRIP, _BYTE_COUNTS = 273, 277, 278, 279
_BEFORE_WIDTH: Final = (254, 255)
_X, _Y, _T4, _UNIT, _PAGE = 282, 283, 292, 296, 297
_BAD_ROWS, _WORST_RUN = 326, 328
_STATION, _SECONDS, _DCS = 270, 34910, 34911
_READ: Final = frozenset({
    _WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _STRIPS, _SAMPLES,
    _ROWS_PER_STRIP, _BYTE_COUNTS, _X, _Y, _T4, _UNIT, _PAGE, _BAD_ROWS, _WORST_RUN,
    _STATION, _SECONDS, _DCS,
})  # fmt: skip

Order = Literal["<", ">"]


@dataclass(frozen=True, slots=True)
class Directory:
    """One page's, its numbers as they stand in the file, read but not judged."""

    at: int
    """Offset in the file."""
    width: int
    rows: int
    compression: int
    bits: int
    samples: int
    photometric: int
    lsb_first: bool
    two_dimensional: bool
    rows_per_strip: int
    strips: tuple[tuple[int, int], ...]
    """Offset and number of bytes of each."""
    x: float | None
    y: float | None
    """Dots per inch; None if the file does not say."""
    page: int | None
    bad_rows: int
    worst_run: int
    station: bytes = b""
    """ImageDescription: spandsp puts the sender's station id there, as it came."""
    dcs: bytes = b""
    """FaxDCS: what the machines agreed on (T.30 5.3.6.2.5), as `agreed` reads it."""
    seconds: int = 0
    """FaxRecvTime: how long the page took."""


@dataclass(frozen=True, slots=True)
class Chain:
    """The directories in order of the pages; `broken` if they are not one whole list."""

    directories: tuple[Directory, ...]
    broken: bool


class NotTiff(ProtocolFault):
    """The file does not begin as a TIFF does."""


def read_chain(data: bytes, most: int, numbers: int = _MOST_STRIPS) -> Chain:
    """All directories that can be found, `most + 1` at the utmost, with so many `numbers` of each
    tag. Raises `NotTiff`."""
    order: Order
    if data[:4] == b"II*\0":
        order = "<"
    elif data[:4] == b"MM\0*":
        order = ">"
    else:
        raise NotTiff("it does not begin as a TIFF does")
    found: dict[int, Directory] = {}
    visited: set[int] = set()
    at = _number(data, order, 4)
    broken = not at
    while at and not broken and len(found) <= most:
        directory = None if at in visited else _directory(data, order, at, numbers)
        visited.add(at)
        if directory is None:
            broken = True
            break
        found[at] = directory
        link = at + 2 + 12 * _short(data, order, at)
        if link + 4 > len(data):
            broken = True
            break
        at = _number(data, order, link)
    if broken:
        _search(data, order, found, most, numbers)
    return Chain(tuple(found.values())[: most + 1], broken)


def _search(
    data: bytes, order: Order, found: dict[int, Directory], most: int, numbers: int
) -> None:
    """Add directories that no chain leads to, put into the order of their pages."""
    strips = {directory.strips: at for at, directory in found.items()}
    for at in _candidates(data, order):
        if at in found or len(found) > most:
            continue
        directory = _directory(data, order, at, numbers)
        if directory is None or not _plausible(directory, len(data)):
            continue
        # A directory written anew stands farther back; the older copy has the same strips.
        if (older := strips.get(directory.strips)) is not None:
            found.pop(older, None)
        found[at] = directory
        strips[directory.strips] = at
    numbered = [d.page for d in found.values()]
    known = None not in numbered and len(set(numbered)) == len(numbered)

    def place(directory: Directory) -> int:
        if known and directory.page is not None:
            return directory.page
        return directory.strips[0][0] if directory.strips else directory.at

    ordered = sorted(found.items(), key=lambda item: place(item[1]))
    found.clear()
    found.update(ordered)


def _candidates(data: bytes, order: Order) -> Iterator[int]:
    """Where a directory could begin: ImageWidth is its first entry, or follows 254 and 255."""
    tag, count = struct.pack(f"{order}H", _WIDTH), struct.pack(f"{order}I", 1)
    kinds = b"|".join(re.escape(struct.pack(f"{order}H", kind)) for kind in (3, 4))
    entry = re.compile(re.escape(tag) + b"(?:" + kinds + b")" + re.escape(count), re.DOTALL)
    for number, match in enumerate(entry.finditer(data)):
        if number >= _MOST_CANDIDATES:
            return
        for before in range(3):
            at = match.start() - 2 - 12 * before
            if at >= 8 and (not before or _short(data, order, at + 2) in _BEFORE_WIDTH):
                yield at


def _plausible(directory: Directory, size: int) -> bool:
    return (
        directory.compression in (G3, G4)
        and bool(directory.strips)
        and all(8 <= offset < size for offset, _ in directory.strips)
    )


def _directory(data: bytes, order: Order, at: int, numbers: int) -> Directory | None:
    if at < 8 or at + 2 > len(data):
        return None
    entries = _short(data, order, at)
    if not 0 < entries <= _MOST_ENTRIES:
        return None
    tags: dict[int, tuple[int, ...]] = {}
    last = -1
    for start in range(at + 2, at + 2 + 12 * entries, 12):
        if start + 12 > len(data):
            break  # the file ends in here: what was read before counts
        tag = _short(data, order, start)
        if tag < last:
            return None  # they are sorted in every directory: this is something else
        last = tag
        if tag in _READ:
            tags[tag] = _values(data, order, start, numbers)
    if not tags.get(_WIDTH) or not tags.get(_STRIPS):
        return None

    def one(tag: int, default: int) -> int:
        return (tags.get(tag) or (default,))[0]

    rows = one(_LENGTH, 0)
    return Directory(
        at=at,
        width=tags[_WIDTH][0],
        rows=rows,
        compression=one(_COMPRESSION, 1),
        bits=one(_BITS, 1),
        samples=one(_SAMPLES, 1),
        photometric=one(_PHOTOMETRIC, 0),
        lsb_first=one(_FILL_ORDER, 1) == 2,
        two_dimensional=bool(one(_T4, 0) & 1),
        rows_per_strip=min(one(_ROWS_PER_STRIP, rows), rows) or rows,
        strips=_strips(data, tags),
        x=_dpi(tags, _X),
        y=_dpi(tags, _Y),
        page=tags[_PAGE][0] if tags.get(_PAGE) else None,
        bad_rows=one(_BAD_ROWS, 0),
        worst_run=one(_WORST_RUN, 0),
        station=_text(tags, _STATION),
        dcs=_text(tags, _DCS),
        seconds=one(_SECONDS, 0),
    )


def _text(tags: Mapping[int, tuple[int, ...]], tag: int) -> bytes:
    """Bytes up to the NUL that ends them (TIFF 6.0, type ASCII)."""
    values = tags.get(tag, ())[:_MOST_TEXT]
    # A number in a text's place is no text.
    text = bytes(values) if all(value < 256 for value in values) else b""
    return text.partition(b"\0")[0]


def _strips(data: bytes, tags: Mapping[int, tuple[int, ...]]) -> tuple[tuple[int, int], ...]:
    offsets, counts = tags[_STRIPS], tags.get(_BYTE_COUNTS, ())
    # The file may end within the counts: a strip without one goes as far as the file does.
    counts += tuple(max(0, len(data) - offset) for offset in offsets[len(counts) :])
    return tuple(zip(offsets, counts, strict=False))


def _dpi(tags: Mapping[int, tuple[int, ...]], tag: int) -> float | None:
    value = tags.get(tag, ())
    unit = (tags.get(_UNIT) or (2,))[0]
    if len(value) < 2 or not value[1] or unit not in (2, 3):
        return None
    dpi = value[0] / value[1] * (2.54 if unit == 3 else 1.0)
    return dpi if 40 <= dpi <= 1300 else None


def _values(data: bytes, order: Order, start: int, most: int) -> tuple[int, ...]:
    kind = _short(data, order, start + 2)
    count = _number(data, order, start + 4)
    if kind not in _SIZES or not 0 < count <= _MOST_STRIPS:
        return ()
    code, size = _SIZES[kind]
    at = start + 8 if size * count <= 4 else _number(data, order, start + 8)
    count = min(count, most, max(0, len(data) - at) // size)
    return struct.unpack_from(f"{order}{code * count}", data, at) if count else ()


def _short(data: bytes, order: Order, at: int) -> int:
    return int(struct.unpack_from(f"{order}H", data, at)[0])


def _number(data: bytes, order: Order, at: int) -> int:
    return int(struct.unpack_from(f"{order}I", data, at)[0]) if at + 4 <= len(data) else 0
