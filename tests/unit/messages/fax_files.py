"""TIFF-F files as fax engines write them, and as they are found after something went wrong."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pikepdf
from PIL import Image, ImageChops, ImageDraw

MH, MR, MMR = "MH", "MR", "MMR"
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_RATIONAL, _LONG, _SHORT = 5, 4, 3


def picture(number: int = 1, rows: int = 1100, width: int = 1728) -> Image.Image:
    """A page of text, another for every number, the same every time."""
    image = Image.new("1", (width, rows), 255)
    draw = ImageDraw.Draw(image)
    for y in range(10, rows - 10, 40):
        draw.text((60, y), f"page {number} row {y} the quick brown fox jumps over " * 4, fill=0)
    draw.rectangle((width - 200, rows // 2, width - 100, rows // 2 + 30 + number), fill=0)
    return image


@dataclass(frozen=True)
class Sheet:
    """One page as an engine writes it; `tags` are put over the usual ones, None takes one away."""

    image: Image.Image
    coding: str = MMR
    x: float | None = 204
    y: float | None = 98
    unit: int = 2
    lsb: bool = True
    strip_rows: int | None = None
    tags: Mapping[int, int | None] = field(default_factory=dict)


def coded(image: Image.Image, coding: str) -> bytes:
    """One strip, by libtiff's coder."""
    out = io.BytesIO()
    extra = {278: image.height} | ({292: 1} if coding == MR else {})
    # 0 is white here, as engines have it; Pillow writes a mode-1 picture with 1 as white.
    black_is_one = ImageChops.invert(image)
    name = "group4" if coding == MMR else "group3"
    black_is_one.save(out, "TIFF", compression=name, tiffinfo=extra)
    data = out.getvalue()
    with Image.open(io.BytesIO(data)) as made:
        tags = made.tag_v2  # type: ignore[attr-defined]
        assert tags[262] == 1
        assert len(tags[273]) == 1
        return data[tags[273][0] : tags[273][0] + tags[279][0]]


def fax(
    sheets: Sequence[Sheet], order: str = "<", first: int | None = None, loop: bool = False
) -> bytes:
    """A whole file: header, then strips and directory of each page. `first` overwrites the offset
    of the first directory; with `loop` the last one leads back to the first."""
    out = bytearray(struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 0))
    link, start = 4, 0
    for number, sheet in enumerate(sheets):
        strips = _strips(sheet)
        offsets = []
        for strip in strips:
            offsets.append(len(out))
            out += strip
        out += b"\0" * (len(out) & 1)
        struct.pack_into(f"{order}I", out, link, len(out))
        start = start or len(out)
        link = _directory(out, order, sheet, strips, offsets, number)
    if loop:
        struct.pack_into(f"{order}I", out, link, start)
    if first is not None:
        struct.pack_into(f"{order}I", out, 4, first)
    return bytes(out)


def _strips(sheet: Sheet) -> list[bytes]:
    image, step = sheet.image, sheet.strip_rows or sheet.image.height
    parts = [
        image.crop((0, top, image.width, min(top + step, image.height)))
        for top in range(0, image.height, step)
    ]
    strips = [coded(part, sheet.coding) for part in parts]
    return [strip.translate(_REVERSED) for strip in strips] if sheet.lsb else strips


def _directory(
    out: bytearray, order: str, sheet: Sheet, strips: list[bytes], offsets: list[int], number: int
) -> int:
    step = sheet.strip_rows or sheet.image.height
    tags: dict[int, tuple[int, Sequence[int]] | None] = {
        256: (_LONG, [sheet.image.width]),
        257: (_LONG, [sheet.image.height]),
        258: (_SHORT, [1]),
        259: (_SHORT, [4 if sheet.coding == MMR else 3]),
        262: (_SHORT, [0]),
        266: (_SHORT, [2 if sheet.lsb else 1]),
        273: (_LONG, offsets),
        277: (_SHORT, [1]),
        278: (_LONG, [step]),
        279: (_LONG, [len(strip) for strip in strips]),
        292: (_LONG, [1 if sheet.coding == MR else 0]) if sheet.coding != MMR else None,
        282: (_RATIONAL, [round(sheet.x * 100), 100]) if sheet.x else None,
        283: (_RATIONAL, [round(sheet.y * 100), 100]) if sheet.y else None,
        296: (_SHORT, [sheet.unit]),
        297: (_SHORT, [number, 1]),
    }
    for tag, value in sheet.tags.items():
        tags[tag] = None if value is None else (_LONG, [value])
    entries = {tag: value for tag, value in sorted(tags.items()) if value is not None}
    at = len(out)
    far = at + 2 + 12 * len(entries) + 4
    out += struct.pack(f"{order}H", len(entries))
    beyond = b""
    for tag, (kind, values) in entries.items():
        code = "H" if kind == _SHORT else "I"
        packed = struct.pack(f"{order}{len(values)}{code}", *values)
        if len(packed) > 4:
            packed, beyond = struct.pack(f"{order}I", far + len(beyond)), beyond + packed
        count = len(values) // 2 if kind == _RATIONAL else len(values)
        out += struct.pack(f"{order}HHI", tag, kind, count) + packed.ljust(4, b"\0")
    link = len(out)
    out += b"\0\0\0\0" + beyond
    return link


def shown(pdf: bytes | None) -> list[Image.Image]:
    """What a reader sees: the one image of every page."""
    assert pdf is not None
    with pikepdf.open(io.BytesIO(pdf)) as opened:
        found = []
        for page in opened.pages:
            (image,) = page.get_images().values()
            assert isinstance(image, pikepdf.Stream)
            found.append(pikepdf.PdfImage(image).as_pil_image().convert("1"))
        return found
