"""The files of a message: examined once after the commit, read again for every mail.

What is made of an original (the PDF of a fax) is kept beside it, and made anew where it is missing
or torn: it is a copy, the original is the message.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from pathlib import Path
from typing import Final

from umpack.core.errors import OurFault
from umpack.messages.conversion import ConversionFault, convert
from umpack.messages.document import ConversionLimits, Flaw, FlawKind, Verdict
from umpack.messages.mail import Files
from umpack.messages.message import DocumentFacts, Kind, Message
from umpack.messages.voice import (
    SHORTEST,
    Coded,
    Coding,
    Sound,
    SoundFlaw,
    code,
    read_wav,
    tool_for,
)

PDF: Final = "document.pdf"
BROKEN: Final = Verdict(None, flaws=(Flaw(FlawKind.BROKEN),)).facts()
"""What is kept of a fax whose conversion could not even be begun, again and again."""
_MOST: Final = 512 << 20
_BUFFERED: Final = 0.5
"""Seconds a sound recording may be shorter than its recorder counted."""


class EnclosureFault(OurFault):
    """An original cannot be read, or is not what was committed. Nothing goes out without it."""


class Enclosures:
    """Of one spool. `conversions` faxes are converted at a time: each takes a processor."""

    def __init__(
        self,
        directory: Path,
        *,
        limits: ConversionLimits | None = None,
        coding: Coding = Coding.AS_RECORDED,
        conversions: int = 2,
        shortest: float = SHORTEST,
    ) -> None:
        """`shortest`: seconds, below which a recording is none. Raises `ConfigError` if there is no
        program for the coding."""
        self._directory = directory.absolute()
        self._limits = limits or ConversionLimits()
        self._coding = coding
        self._tool = tool_for(coding) if coding is not Coding.AS_RECORDED else ()
        self._shortest = shortest
        self._slots = asyncio.Semaphore(conversions)

    async def examine(self, message: Message) -> DocumentFacts:
        """What is in the original. Raises `OurFault` if it cannot be given to the converter."""
        if message.call.kind is Kind.VOICE:
            data = await asyncio.to_thread(self._original, message)
            sound = read_wav(data) if _is_wav(message) else Sound()
            flaws = list(sound.flaws)
            if sound.seconds is not None and sound.seconds < self._shortest:
                flaws += [] if SoundFlaw.EMPTY in flaws else [SoundFlaw.SHORT]
            heard = message.engine.seconds if message.engine else None
            if heard and sound.seconds is not None and sound.seconds + _BUFFERED < heard:
                flaws += [] if SoundFlaw.CUT in flaws else [SoundFlaw.CUT]
            return DocumentFacts(fault="; ".join(flaw.value for flaw in flaws))
        return (await self._convert(message))[0]

    async def files(self, message: Message, *, bare: bool = False) -> Files:
        """All that can be attached; with `bare` only what needs no conversion.

        Raises `EnclosureFault` if the original cannot be had, `ConversionFault` if what is made of
        it is not there and cannot be made now.
        """
        if message.original is None:
            return Files()
        original = await asyncio.to_thread(self._original, message)
        if message.call.kind is Kind.VOICE:
            mended = read_wav(original).mended if _is_wav(message) else None
            coded = None if bare or not self._tool else await self._coded(message)
            return Files(original, coded=coded, mended=mended)
        if bare or not (message.document and message.document.pages_pdf):
            return Files(original)
        pdf = await asyncio.to_thread(self._kept_pdf, message)
        if pdf is None:
            pdf = (await self._convert(message))[1]
        if pdf is None:
            raise ConversionFault(f"message {message.id}: no PDF, though there has been one")
        return Files(original, pdf)

    async def _convert(self, message: Message) -> tuple[DocumentFacts, bytes | None]:
        engine = message.engine
        async with self._slots:
            document = await convert(
                self._path(message), engine.pages if engine else None, self._limits,
                engine.resolution if engine else "",
            )  # fmt: skip
        if document.pdf is not None:
            await asyncio.to_thread(self._keep_pdf, message, document.pdf)
        return document.verdict.facts(), document.pdf

    async def _coded(self, message: Message) -> Coded:
        async with self._slots:
            coded = await code(self._path(message), self._coding, self._tool)
        if coded is None:
            raise ConversionFault(f"message {message.id}: {self._tool[0]} made nothing of it")
        return coded

    def _path(self, message: Message) -> Path:
        if message.original is None:
            raise EnclosureFault(f"message {message.id}: nothing was received")
        return self._directory / message.original.file

    def _original(self, message: Message) -> bytes:
        path = self._path(message)
        data = _content(path)
        if message.original and hashlib.sha256(data).hexdigest() != message.original.sha256:
            raise EnclosureFault(f"{path}: not what was committed: another checksum")
        return data

    def _kept_pdf(self, message: Message) -> bytes | None:
        try:
            data = _content(self._path(message).with_name(PDF))
        except EnclosureFault:
            return None
        # It is not synced when it is made: after a power cut there may be less of it.
        return data if data.startswith(b"%PDF-") and data.rstrip().endswith(b"%%EOF") else None

    def _keep_pdf(self, message: Message, pdf: bytes) -> None:
        path = self._path(message).with_name(PDF)
        fresh = path.with_name(f".{PDF}.new")
        try:
            fresh.write_bytes(pdf)
            fresh.replace(path)
        except OSError:
            return  # it is made anew when it is needed


def _is_wav(message: Message) -> bool:
    return message.name.lower().endswith(".wav")


def _content(path: Path) -> bytes:
    try:
        # Engines write as another user: no link is followed, no device or pipe waited for.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise EnclosureFault(f"{path}: not a file")
            data = file.read(_MOST + 1)
    except OSError as error:
        raise EnclosureFault(f"{path}: {error.strerror or error}") from error
    if len(data) > _MOST:
        raise EnclosureFault(f"{path}: larger than {_MOST >> 20} MB")
    return data
