"""A fax file is read in a child process that may break, hang or swell without harm to us.

Whatever happens there, the parent has a verdict within the limit of time; the file itself is not
touched, so that at worst it goes out as it is.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import pydantic
from loguru import logger

from umpack.core.errors import OurFault
from umpack.core.printable import printable
from umpack.messages.document import ConversionLimits, Document, Flaw, FlawKind, Verdict

_RESOLUTION: Final = re.compile(r"(\d{2,4})x(\d{2,4})")
_ANSWER_MORE: Final = 16 << 20
_BLOCK: Final = 1 << 16
_ENVIRONMENT: Final = {
    "PATH": os.defpath,
    "LANG": "C.UTF-8",
    # glibc, mallopt(3): fresh memory is zeroed. A row that libtiff should leave undone is then
    # white in every reading, and shows nothing of what was in memory before.
    "MALLOC_PERTURB_": "255",
}

_VERDICT: Final = pydantic.TypeAdapter(Verdict)


class ConversionFault(OurFault):
    """The file cannot be given to a child: it is gone, no file, or no process can be started."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended: its output, and why it has none that counts, or empty."""

    output: bytes
    why: FlawKind | None


async def convert(
    path: Path,
    engine_pages: int | None,
    limits: ConversionLimits,
    resolution: str = "",
) -> Document:
    """Verdict and PDF of the fax in `path`; `resolution` is the engine's word (`204x196`).

    It takes `limits.wall` seconds and a little at most. Raises `ConversionFault` if the file cannot
    even be read; everything else is in the verdict.
    """
    match = _RESOLUTION.fullmatch(resolution)
    hint = [int(match[1]), int(match[2])] if match and 40 <= int(match[1]) <= 1300 else None
    if hint and not 40 <= hint[1] <= 1300:
        hint = None
    arguments = [
        sys.executable, "-I", "-m", "umpack.messages.converter",
        json.dumps(asdict(limits)), json.dumps(hint),
    ]  # fmt: skip
    ended = await run(arguments, path, limits.wall, limits.file + _ANSWER_MORE)
    document = document_of(ended, limits)
    verdict = replace(document.verdict, engine_pages=engine_pages)
    if ended.why or verdict.pdf_pages == 0:
        logger.warning("{}: {}", printable(path.name), "; ".join(map(str, verdict.flaws)))
    return Document(verdict, document.pdf)


def document_of(ended: Ended, limits: ConversionLimits) -> Document:
    """What a child has said, believed only as far as it fits together."""
    if ended.why is not None:
        return Document(Verdict(None, flaws=(Flaw(ended.why),)))
    head, _, pdf = ended.output.partition(b"\n")
    try:
        verdict = _VERDICT.validate_json(head)
    except pydantic.ValidationError:
        return Document(Verdict(None, flaws=(Flaw(FlawKind.BROKEN),)))
    sound = pdf.startswith(b"%PDF-") and 0 < verdict.pdf_pages <= limits.pages
    if sound is not bool(pdf or verdict.pdf_pages):
        return Document(Verdict(None, flaws=(Flaw(FlawKind.BROKEN),)))
    return Document(verdict, pdf or None)


async def run(arguments: Sequence[str], path: Path, wall: float, most: int) -> Ended:
    """Run a program with `path` as its standard input; `most` bytes of its output are borne.

    Cancelled, or after `wall` seconds, it is killed with all its children. Raises
    `ConversionFault`.
    """
    handle = await asyncio.to_thread(_opened, path)
    try:
        child = await asyncio.create_subprocess_exec(
            *arguments, stdin=handle, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL, env=_ENVIRONMENT, start_new_session=True, cwd="/",
        )  # fmt: skip
    except OSError as error:
        raise ConversionFault(f"{arguments[0]}: {error.strerror}") from error
    finally:
        os.close(handle)
    output = bytearray()
    try:
        async with asyncio.timeout(wall):
            assert child.stdout is not None  # noqa: S101  # it was asked for above
            while len(output) <= most and (block := await child.stdout.read(_BLOCK)):
                output += block
            if len(output) > most:
                return Ended(b"", FlawKind.FILE_SIZE)
            code = await child.wait()
    except TimeoutError:
        return Ended(b"", FlawKind.TIME)
    finally:
        await _end(child)
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return Ended(b"", FlawKind.TIME if code == -signal.SIGXCPU else FlawKind.MEMORY)
    return Ended(bytes(output), None if code == 0 else FlawKind.BROKEN)


def _opened(path: Path) -> int:
    where = printable(str(path), 400)
    try:
        # Engines write as another user: no link is followed, no device or pipe waited for.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ConversionFault(f"{where}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ConversionFault(f"{where}: not a file")
    return handle


async def _end(child: asyncio.subprocess.Process) -> None:
    """Nothing of it is left, neither a process nor an open pipe."""
    if child.returncode is None:  # else its number may be another's by now
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    await asyncio.shield(child.wait())
    child._transport.close()  # type: ignore[attr-defined]  # the pipe, if it was not read out
