from __future__ import annotations

import io
import struct
import wave
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umpack.core.errors import ConfigError
from umpack.messages.voice import Coding, SoundFlaw, code, read_wav, tool_for


def wav(seconds: float = 1.5) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(b"\x01\x02" * round(8000 * seconds))
    return out.getvalue()


def test_recording_is_what_its_header_says() -> None:
    sound = read_wav(wav(1.5))
    assert (sound.seconds, sound.rate, sound.channels, sound.coding) == (1.5, 8000, 1, "PCM")
    assert sound.flaws == ()
    assert sound.mended is None


@pytest.mark.parametrize("length", [0, 0xFFFFFFFF])
def test_recorder_killed_before_it_wrote_the_lengths(length: int) -> None:
    data = bytearray(wav(2))
    data[4:8] = data[40:44] = struct.pack("<I", length)
    sound = read_wav(bytes(data))
    assert (sound.seconds, sound.flaws) == (2.0, (SoundFlaw.LENGTHS,))
    assert sound.mended == wav(2)


def test_recording_shorter_than_it_says() -> None:
    sound = read_wav(wav(2)[: 44 + 16000])
    assert (sound.seconds, sound.flaws) == (1.0, (SoundFlaw.CUT,))


def test_other_chunks_are_passed_over_and_gsm_has_a_length() -> None:
    form = struct.pack("<HHIIHHHH", 49, 1, 8000, 1625, 65, 0, 2, 320)
    body = b"LIST" + struct.pack("<I", 3) + b"abc\0"
    body += b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", 3250)
    data = b"RIFF" + struct.pack("<I", 4 + len(body) + 3250) + b"WAVE" + body + bytes(3250)
    assert (read_wav(data).seconds, read_wav(data).coding) == (2.0, "GSM 06.10")


@pytest.mark.parametrize(
    ("data", "flaw"),
    [
        (b"", SoundFlaw.NOT_WAV),
        (b"ID3" + bytes(100), SoundFlaw.NOT_WAV),
        (wav(1)[:20], SoundFlaw.NO_FORMAT),
        (wav(1)[:36], SoundFlaw.EMPTY),
        (wav(1)[:44], SoundFlaw.EMPTY),
        (b"RIFF\0\0\0\0WAVEdata\0\0\0\0", SoundFlaw.NO_FORMAT),
    ],
)
def test_what_is_no_recording(data: bytes, flaw: SoundFlaw) -> None:
    assert read_wav(data).flaws == (flaw,)


@given(st.binary(max_size=200), st.integers(0, 60))
def test_whatever_comes_there_is_an_answer(noise: bytes, keep: int) -> None:
    sound = read_wav(wav(0.01)[:keep] + noise)
    assert sound.seconds is None or sound.seconds >= 0


def tool(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


async def test_tool_codes_or_the_recording_stays(tmp_path: Path) -> None:
    original = tmp_path / "original.wav"
    original.write_bytes(wav(0.1))
    with pytest.raises(ConfigError, match="opusenc or ffmpeg"):
        tool_for(Coding.OPUS, str(tmp_path))
    tool(tmp_path, "opusenc", "printf OggS; head -c 4")
    coded = await code(original, Coding.OPUS, tool_for(Coding.OPUS, str(tmp_path)))
    assert coded is not None
    assert (coded.data, coded.suffix, coded.type) == (b"OggSRIFF", ".opus", "audio/ogg")
    tool(tmp_path, "opusenc", "echo no such codec; exit 1")
    assert await code(original, Coding.OPUS, tool_for(Coding.OPUS, str(tmp_path))) is None
    tool(tmp_path, "opusenc", "exec sleep 60")
    assert await code(original, Coding.OPUS, tool_for(Coding.OPUS, str(tmp_path)), 0.2) is None
    tool(tmp_path, "ffmpeg", "cat")
    alaw = await code(original, Coding.A_LAW, tool_for(Coding.A_LAW, str(tmp_path)))
    assert alaw is not None
    assert (alaw.data, alaw.suffix) == (wav(0.1), ".wav")
