"""The child that reads one fax file and answers with a verdict and a PDF, under hard limits.

    python -m umpack.messages.converter LIMITS HINT     the file on standard input

On standard output: one line of JSON, then the PDF. It opens no file by name, and what it says is
checked by the parent like anything else from outside.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from umpack.messages.document import ConversionLimits, Flaw, FlawKind, Verdict, joined
from umpack.messages.tiff import NotTiff, read_chain

if TYPE_CHECKING:
    from umpack.messages.fax_pages import Sheet


def main(arguments: list[str]) -> None:
    """Answer for the file on standard input."""
    limits = ConversionLimits(**json.loads(arguments[0]))
    hint = json.loads(arguments[1])
    confine(limits)
    answer = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        data = _input(limits)
        verdict, pdf = judged(data, limits, (hint[0], hint[1]) if hint else None)
    except MemoryError:
        verdict, pdf = _only(FlawKind.MEMORY), b""
    with open(answer, "wb") as out:
        out.write(json.dumps(asdict(verdict), default=lambda kind: kind.value).encode() + b"\n")
        out.write(pdf)


def confine(limits: ConversionLimits) -> None:
    """Take from this process what it does not need; it cannot take it back."""
    os.nice(10)  # calls are more urgent
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory, limits.memory))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu, limits.cpu + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Files it writes: none but pipes. (A memfd counts as a file: libtiff's complaints.)
    resource.setrlimit(resource.RLIMIT_FSIZE, (32 << 20, 32 << 20))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def _input(limits: ConversionLimits) -> bytes:
    with open(0, "rb", closefd=False) as file:
        return file.read(limits.file + 1)


def _only(kind: FlawKind) -> Verdict:
    return Verdict(None, flaws=(Flaw(kind),))


def judged(
    data: bytes, limits: ConversionLimits, hint: tuple[int, int] | None
) -> tuple[Verdict, bytes]:
    """What a file is worth, and the PDF of what can be read; whatever is in it. Only a process
    that is confined may be asked about a stranger's."""
    if len(data) > limits.file:
        return _only(FlawKind.FILE_SIZE), b""
    try:
        chain = read_chain(data, limits.pages)
    except NotTiff:
        return _only(FlawKind.NOT_TIFF), b""
    # Only now, and under the limits: loading these takes longer than most refusals.
    from umpack.messages.fax_pages import Unreadable, read_page  # noqa: PLC0415
    from umpack.messages.pdf import PdfError, differing, make_pdf  # noqa: PLC0415

    flaws = [Flaw(FlawKind.CHAIN)] if chain.broken else []
    if len(chain.directories) > limits.pages:
        flaws.append(Flaw(FlawKind.PAGES, None, limits.pages))
    sheets: list[Sheet] = []
    for number, directory in enumerate(chain.directories[: limits.pages], start=1):
        try:
            sheet, its = read_page(data, directory, number, limits, hint)
        except Unreadable as unreadable:
            flaws.append(unreadable.flaw)
        except MemoryError:
            flaws.append(Flaw(FlawKind.MEMORY, number))
        except Exception:  # whatever one page does, it does not take the others with it
            flaws.append(Flaw(FlawKind.UNREADABLE, number))
        else:
            sheets.append(sheet)
            flaws += its
    pages = tuple(sheet.page for sheet in sheets)
    verdict = Verdict(None, len(chain.directories), 0, pages)
    if not sheets:
        return replace(verdict, flaws=joined([*flaws, Flaw(FlawKind.NO_PAGES)])), b""
    try:
        pdf = make_pdf(sheets)
        count, wrong = differing(pdf, sheets)
    except PdfError:
        return replace(verdict, flaws=joined([*flaws, Flaw(FlawKind.PDF_FAILED)])), b""
    flaws += (Flaw(FlawKind.PDF_DIFFERS, number) for number in wrong)
    return replace(verdict, pdf_pages=count, flaws=joined(flaws)), pdf


if __name__ == "__main__":
    main(sys.argv[1:])
