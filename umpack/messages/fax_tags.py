"""What a fax file says of its own reception: who sent it, how, and for how long.

    tag      name               spandsp writes
    270      ImageDescription   the sender's station id (TSI), byte for byte
    34910    FaxRecvTime        seconds, one number a page
    34911    FaxDCS             the sender's DCS in hex, octet by octet: `00 44 1F 22`

Asterisk's channel has neither the DCS nor all bytes of a station id, and after a death of umpack
nobody is there to ask a channel; the file has them all (seen in files of Asterisk 22, ECM on and
off). It is the line's file: every value is judged before it is believed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from umpack.messages.message import EngineFacts
from umpack.messages.spool_schema import translated
from umpack.messages.tiff import Directory, NotTiff, read_chain

PAGES: Final = 1000
"""Directories read of one file."""
NUMBERS: Final = 256
"""Numbers, or bytes of a text, read of one tag. No child with a limit of memory reads them here,
and in a small file a thousand directories can all point at the same fifty thousand numbers."""
_MOST: Final = 64 << 20
"""Bytes read of one file, into memory: a mapped file that another cuts short ends the process."""
_OCTETS: Final = re.compile(rb"[0-9A-Fa-f]{2}(?: [0-9A-Fa-f]{2}){2,31}")
_LONGEST_PAGE: Final = 86_400

# T.30 table 2, bits 11 to 14 of the DCS, as they stand in its second octet.
_RATE_BITS: Final = 0b0011_1100
_RATES: Final[Mapping[int, int]] = {
    0b000000: 2400, 0b010000: 4800, 0b100000: 9600, 0b110000: 7200,
    0b000100: 14400, 0b010100: 12000, 0b100100: 9600, 0b110100: 7200,
}  # fmt: skip
_ECM: Final = 0b0010_0000
"""Bit 27, in the fourth octet."""


@dataclass(frozen=True, slots=True)
class FaxTags:
    """None and empty is what the file does not say."""

    pages: int
    station: bytes = b""
    ecm: bool | None = None
    bitrate: int | None = None
    resolution: str = ""
    seconds: int | None = None

    def complete(self, engine: EngineFacts) -> EngineFacts:
        """`engine` with what only the file knows. The station id is the file's whenever it has
        one: a channel's texts lose control characters on their way."""
        return replace(
            engine,
            station=self.station or engine.station,
            ecm=engine.ecm if self.ecm is None else self.ecm,
            bitrate=engine.bitrate or self.bitrate,
            resolution=engine.resolution or self.resolution,
            seconds=self.seconds if engine.seconds is None else engine.seconds,
        )


def agreed(dcs: bytes) -> tuple[bool | None, int | None]:
    """Error correction and bit/s of a FaxDCS tag; None if it is none."""
    if _OCTETS.fullmatch(dcs) is None:
        return None, None
    octets = bytes.fromhex(dcs.decode("ascii"))
    # The bit before ends the DCS where it is 0 (T.30 5.3.6.2.2): what is not sent is 0.
    more = len(octets) > 3 and bool(octets[2] & 1)
    return more and bool(octets[3] & _ECM), _RATES.get(octets[1] & _RATE_BITS)


def tags_of(directories: Sequence[Directory]) -> FaxTags:
    """What the pages say; the first one speaks for all, as one negotiation does."""
    if not directories:
        return FaxTags(0)
    first = directories[0]
    ecm, bitrate = agreed(first.dcs)
    seconds = sum(d.seconds for d in directories if 0 < d.seconds <= _LONGEST_PAGE)
    known = first.x is not None and first.y is not None
    return FaxTags(
        len(directories),
        first.station,
        ecm,
        bitrate,
        f"{round(first.x or 0)}x{round(first.y or 0)}" if known else "",
        seconds or None,
    )


def read_tags(path: Path) -> FaxTags | None:
    """The tags of a file; None if it is no TIFF. Decodes nothing. Raises `SpoolFault`."""
    with translated(path):
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb", buffering=0) as file:
            data = file.read(_MOST) or b""
    try:
        return tags_of(read_chain(data, PAGES, NUMBERS).directories)
    except NotTiff:
        return None
