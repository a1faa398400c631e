"""A recorded WAV: its header checked, its length; on wish coded smaller by a known tool.

A recorder that was killed has not written the lengths of its RIFF header yet, and many players then
show a recording of 0 seconds. Such a file is sent as it is, with a copy whose lengths are right.
"""

from __future__ import annotations

import shutil
import struct
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

from umpack.core.errors import ConfigError
from umpack.messages.conversion import run

SHORTEST: Final = 1.0
"""Seconds of a recording that may be a message. Who hangs up at the beep leaves a few tenths of a
second of the line's noise; even "call me" with the breath before it takes longer than a second."""
NOTHING_SAID: Final = "nothing was said"
"""What is kept of a recording that silence has ended: there is nothing but silence in it."""
_SHORTEST_FILE: Final = 12
_MOST_CHUNKS: Final = 64
_FORMATS: Final = {1: "PCM", 6: "A-law", 7: "mu-law", 17: "IMA ADPCM", 49: "GSM 06.10"}


class SoundFlaw(Enum):
    """What may be wrong with a recording."""

    NOT_WAV = "not a WAV"
    NO_FORMAT = "no format in the header"
    EMPTY = "no sound"
    SHORT = "shorter than a message"
    LENGTHS = "lengths in the header wrong"
    CUT = "ends before its length"


@dataclass(frozen=True, slots=True)
class Sound:
    """What is known of a recording. `seconds` is None where the header does not allow to tell."""

    seconds: float | None = None
    rate: int = 0
    channels: int = 0
    coding: str = ""
    flaws: tuple[SoundFlaw, ...] = ()
    mended: bytes | None = field(default=None, repr=False)
    """The same sound with right lengths in its header, if they were wrong."""


def read_wav(data: bytes) -> Sound:
    """Look at a recording (RIFF/WAVE, little endian). Never raises."""
    if len(data) < _SHORTEST_FILE or data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return Sound(flaws=(SoundFlaw.NOT_WAV,))
    at, form = 12, b""
    for _ in range(_MOST_CHUNKS):
        if at + 8 > len(data):
            break
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if name == b"fmt ":
            form = data[at + 8 : at + 8 + min(size, 40)]
        elif name == b"data":
            return _sound(data, form, at, size)
        at += 8 + size + (size & 1)
    return Sound(flaws=(SoundFlaw.EMPTY if len(form) >= 16 else SoundFlaw.NO_FORMAT,))


def _sound(data: bytes, form: bytes, at: int, size: int) -> Sound:
    if len(form) < 16:
        return Sound(flaws=(SoundFlaw.NO_FORMAT,))
    code, channels, rate, per_second, block, _bits = struct.unpack_from("<HHIIHH", form)
    there = len(data) - at - 8
    coding = _FORMATS.get(code, f"format {code}")
    if there <= 0:
        return Sound(0.0, rate, channels, coding, (SoundFlaw.EMPTY,))
    flaws: tuple[SoundFlaw, ...] = ()
    mended: bytes | None = None
    # 0 and the largest number are what recorders write before they know.
    if size in (0, 0xFFFFFFFF):
        flaws, size = (SoundFlaw.LENGTHS,), there - there % (block or 1)
        head = bytearray(data[: at + 8])
        head[4:8] = struct.pack("<I", at + size + (size & 1))
        head[at + 4 : at + 8] = struct.pack("<I", size)
        mended = bytes(head) + data[at + 8 : at + 8 + size] + b"\0" * (size & 1)
    elif size > there:
        flaws, size = (SoundFlaw.CUT,), there
    seconds = round(size / per_second, 3) if per_second else None
    return Sound(seconds, rate, channels, coding, flaws, mended)


class Coding(Enum):
    """How a recording goes out."""

    AS_RECORDED = "wav"
    OPUS = "opus"
    A_LAW = "alaw"
    MU_LAW = "ulaw"


@dataclass(frozen=True, slots=True)
class Coded:
    """A recording to be attached."""

    data: bytes = field(repr=False)
    suffix: str
    type: str
    """MIME type and subtype."""


_FFMPEG: Final = ("ffmpeg", "-nostdin", "-v", "error", "-i", "pipe:0", "-map_metadata", "-1")
_BIT_EXACT: Final = ("-fflags", "+bitexact", "-flags:a", "+bitexact")
_TOOLS: Final[dict[Coding, tuple[tuple[str, ...], ...]]] = {
    Coding.OPUS: (
        ("opusenc", "--quiet", "--speech", "--bitrate", "16", "--serial", "1", "-", "-"),
        (*_FFMPEG, *_BIT_EXACT, "-c:a", "libopus", "-b:a", "16k", "-f", "ogg", "pipe:1"),
    ),
    Coding.A_LAW: ((*_FFMPEG, *_BIT_EXACT, "-c:a", "pcm_alaw", "-f", "wav", "pipe:1"),),
    Coding.MU_LAW: ((*_FFMPEG, *_BIT_EXACT, "-c:a", "pcm_mulaw", "-f", "wav", "pipe:1"),),
}
_RESULT: Final = {
    Coding.OPUS: (b"OggS", ".opus", "audio/ogg"),
    Coding.A_LAW: (b"RIFF", ".wav", "audio/wav"),
    Coding.MU_LAW: (b"RIFF", ".wav", "audio/wav"),
}


def tool_for(coding: Coding, search: str | None = None) -> tuple[str, ...]:
    """The command that codes so, by `search` (as PATH); raises `ConfigError` if there is none."""
    for name, *arguments in _TOOLS.get(coding, ()):
        if found := shutil.which(name, path=search):
            return (found, *arguments)
    names = " or ".join(command[0] for command in _TOOLS.get(coding, ()))
    raise ConfigError(f"voice messages as {coding.value} need {names}, which is not there")


async def code(
    path: Path, coding: Coding, tool: tuple[str, ...], wall: float = 60.0
) -> Coded | None:
    """The recording in another coding, or None: then it goes out as recorded.

    Raises `ConversionFault` if the file cannot be read or the tool not started.
    """
    ended = await run(tool, path, wall, 64 << 20)
    magic, suffix, kind = _RESULT[coding]
    if ended.why is not None or not ended.output.startswith(magic):
        return None
    return Coded(ended.output, suffix, kind)
