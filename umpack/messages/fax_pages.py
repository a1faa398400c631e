"""One page of a fax file: decoded, judged and coded anew, in the child process only.

Pillow's libtiff gets a file of one page that is made here from checked tags, so that of all of
libtiff only its T.4/T.6 decoder meets bytes from the line. It says nothing of bad rows but on file
descriptor 2, which is therefore read.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from PIL import Image

from umpack.core.errors import ProtocolFault
from umpack.messages.document import ConversionLimits, Flaw, FlawKind, Page, Quality
from umpack.messages.tiff import G3, G4, Directory

_REVERSED: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_BAD_ROW: Final = re.compile(rb"at line (\d+) of strip (\d+)")
_EOL: Final = "000000000001"
_BLACK: Final = 0.9
_FEW: Final = 0.05
_HEADER_LINE: Final = 0.4
"""Inches at the top that do not count when pages are compared: the sender's clock is printed
there (T.30 leaves it to the terminal; about 5 mm in use)."""
_ACROSS: Final[Mapping[int, int]] = {
    1728: 204, 2048: 204, 2432: 204, 2592: 300, 3072: 300, 3648: 300, 3456: 408, 4096: 408,
    4864: 408,
}  # fmt: skip
"""Pixels of a scan line to dots per inch, T.4 table 2."""
_STANDARD_MOST, _FINE_MOST = 1450, 2900
"""Rows of the longest usual page (legal, 356 mm) at 98 and 196 lines an inch, and a little."""

Image.MAX_IMAGE_PIXELS = None  # limits of our own have been applied before


@dataclass(frozen=True, slots=True)
class Sheet:
    """A page that could be read; without its raster, as a hundred of those fill the memory."""

    page: Page
    coded: bytes
    """A TIFF of this page in T.6, one strip."""
    digest: bytes
    """Of the raster."""


class Unreadable(ProtocolFault):
    """The page cannot be shown."""

    def __init__(self, flaw: Flaw) -> None:
        super().__init__(str(flaw))
        self.flaw = flaw


def read_page(
    data: bytes,
    directory: Directory,
    number: int,
    limits: ConversionLimits,
    hint: tuple[int, int] | None,
) -> tuple[Sheet, list[Flaw]]:
    """Decode a page; raises `Unreadable`. `hint` is the engine's resolution in dots per inch."""
    _check(directory, number, limits)
    strips, cut = _strips(data, directory)
    if not any(strips):
        raise Unreadable(Flaw(FlawKind.CUT, number))
    raster, seen = _decoded(directory, strips, number)
    gone = 0
    if directory.compression == G3:
        gone = max(0, directory.rows - sum(map(_lines, strips)))
        if gone < _FEW * directory.rows:  # faults that hit line ends, and no missing end
            seen, gone = max(seen, gone), 0
    elif not _ends(strips[-1]):
        cut = True
    flaws = [Flaw(FlawKind.CUT, number, gone or None)] if cut or gone else []
    bad = min(max(seen, directory.bad_rows), directory.rows)
    if bad:
        flaws.append(Flaw(FlawKind.BAD_ROWS, number, bad))
    if raster.histogram()[0] > _BLACK * raster.width * raster.height:
        flaws.append(Flaw(FlawKind.BLACK, number))
    x, y, assumed = _resolution(directory, hint)
    if assumed:
        flaws.append(Flaw(FlawKind.RESOLUTION, number))
    worst = min(directory.worst_run, directory.rows)
    page = Page(number, raster.width, raster.height, x, y, bad, worst, _hash(raster, y))
    if page.quality is Quality.BAD:
        flaws.append(Flaw(FlawKind.ILLEGIBLE, number))
    out = io.BytesIO()
    raster.save(out, "TIFF", compression="group4", dpi=(x, y), tiffinfo={278: raster.height})
    return Sheet(page, out.getvalue(), digest_of(raster)), flaws


def digest_of(raster: Image.Image) -> bytes:
    """The same for the same pixels, whatever file they came from."""
    return hashlib.sha256(f"{raster.width}x{raster.height} ".encode() + raster.tobytes()).digest()


def _check(directory: Directory, number: int, limits: ConversionLimits) -> None:
    width, rows = directory.width, directory.rows
    if rows == 0:
        raise Unreadable(Flaw(FlawKind.NO_ROWS, number))
    if (
        not 0 < width <= limits.width
        or rows > limits.rows
        or width * rows > limits.pixels
        or directory.bits != 1
        or directory.samples != 1
    ):
        raise Unreadable(Flaw(FlawKind.AREA, number))
    if directory.compression not in (G3, G4) or directory.photometric not in (0, 1):
        raise Unreadable(Flaw(FlawKind.CODING, number, directory.compression))
    if len(directory.strips) < -(-rows // directory.rows_per_strip):
        raise Unreadable(Flaw(FlawKind.UNREADABLE, number))


def _strips(data: bytes, directory: Directory) -> tuple[list[bytes], bool]:
    """The coded bytes, most significant bit first; and whether the file ends before they do."""
    found, cut = [], False
    for offset, count in directory.strips[: -(-directory.rows // directory.rows_per_strip)]:
        strip = data[offset : offset + count]
        cut |= len(strip) < count or not strip
        found.append(strip.translate(_REVERSED) if directory.lsb_first else strip)
    return found, cut


def _lines(strip: bytes) -> int:
    """End-of-line codes: before each row there is one, and 6 more at the end (T.4 4.1.4)."""
    bits = f"{int.from_bytes(strip, 'big'):0{8 * len(strip)}b}" if strip else ""
    return bits.count(_EOL)


def _ends(strip: bytes) -> bool:
    """Whether T.6 code ends as it must: libtiff goes on in white without a word if it does not."""
    tail = strip.rstrip(b"\0")[-8:]
    return _EOL + _EOL in f"{int.from_bytes(tail, 'big'):0{8 * len(tail) or 1}b}"


def _decoded(directory: Directory, strips: Sequence[bytes], number: int) -> tuple[Image.Image, int]:
    """The raster, white where nothing was decoded, and the rows the decoder found bad."""
    # Without bytes to read on from, libtiff gives up a page that ends early; so blank rows follow.
    for attempt in (strips, [strip + _blank(directory) for strip in strips]):
        raster, bad = _decode(directory, attempt)
        if raster is None:
            continue
        if directory.compression == G4:
            # T.6 has no line ends to begin anew at: behind a fault nothing is certain.
            first: dict[int, int] = {}
            for strip, row in bad:
                first[strip] = min(row, first.get(strip, row))
            height = directory.rows_per_strip
            return raster, sum(
                min(height, directory.rows - strip * height) - row for strip, row in first.items()
            )
        return raster, len(bad)
    raise Unreadable(Flaw(FlawKind.UNREADABLE, number))


def _decode(
    directory: Directory, strips: Sequence[bytes]
) -> tuple[Image.Image | None, set[tuple[int, int]]]:
    with _complaints() as said, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            raster = Image.open(io.BytesIO(_file(directory, strips)), formats=["TIFF"])
            raster.load()
            fits = raster.mode == "1" and raster.size == (directory.width, directory.rows)
        # The library's own kinds are not all documented; whatever it is, the page is unreadable.
        except (OSError, ValueError, TypeError, SyntaxError, EOFError, KeyError, IndexError):
            fits = False
    bad = {(int(strip), int(row)) for row, strip in _BAD_ROW.findall(b"".join(said))}
    return (raster if fits else None), bad


@contextmanager
def _complaints() -> Iterator[list[bytes]]:
    said: list[bytes] = []
    catch, kept = os.memfd_create("complaints"), os.dup(2)
    os.dup2(catch, 2)
    try:
        yield said
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        said.append(os.pread(catch, 8 << 20, 0))
        os.close(catch)


def _file(directory: Directory, strips: Sequence[bytes]) -> bytes:
    """A TIFF of this page alone, of the tags that matter to the decoder."""
    tags: dict[int, Sequence[int]] = {
        256: [directory.width], 257: [directory.rows], 258: [1], 259: [directory.compression],
        262: [directory.photometric], 277: [1], 278: [directory.rows_per_strip],
    }  # fmt: skip
    if directory.compression == G3:
        tags[292] = [int(directory.two_dimensional)]
    offsets, at = [], 8
    for strip in strips:
        offsets.append(at)
        at += len(strip)
    tags[273], tags[279] = offsets, [len(strip) for strip in strips]
    at += at & 1
    out = bytearray(struct.pack("<2sHI", b"II", 42, at) + b"".join(strips)).ljust(at, b"\0")
    out += struct.pack("<H", len(tags))
    far = at + 2 + 12 * len(tags) + 4
    beyond = b""
    for tag in sorted(tags):
        values = tags[tag]
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            packed, beyond = struct.pack("<I", far + len(beyond)), beyond + packed
        out += struct.pack("<HHI", tag, 4, len(values)) + packed
    return bytes(out + b"\0\0\0\0" + beyond)


def _blank(directory: Directory) -> bytes:
    rows = min(directory.rows_per_strip, directory.rows)
    image = Image.new("1", (directory.width, rows), 1)
    extra = {278: rows} | ({292: 1} if directory.two_dimensional else {})
    name = "group3" if directory.compression == G3 else "group4"
    return b"".join(_saved(image, name, extra))


def _saved(image: Image.Image, compression: str, tags: Mapping[int, int]) -> list[bytes]:
    out = io.BytesIO()
    image.save(out, "TIFF", compression=compression, tiffinfo=dict(tags))
    with Image.open(out, formats=["TIFF"]) as made:
        found = made.tag_v2  # type: ignore[attr-defined]
        data = out.getvalue()
        return [data[at : at + size] for at, size in zip(found[273], found[279], strict=True)]


def _resolution(directory: Directory, hint: tuple[int, int] | None) -> tuple[int, int, bool]:
    if directory.x is not None and directory.y is not None:
        return round(directory.x), round(directory.y), False
    if hint is not None:
        return (*hint, True)
    x = round(directory.x) if directory.x is not None else _ACROSS.get(directory.width, 204)
    if directory.y is not None:
        return x, round(directory.y), True
    if x in (300, 408):
        return x, (300 if x == 300 else 391), True
    if directory.rows <= _STANDARD_MOST:
        return x, 98, True
    return x, (196 if directory.rows <= _FINE_MOST else 391), True


def _hash(raster: Image.Image, y_dpi: int) -> str:
    top = round(_HEADER_LINE * y_dpi)
    seen = raster.crop((0, top, *raster.size)) if raster.height > 2 * top else raster
    return digest_of(seen).hex()[:32]
