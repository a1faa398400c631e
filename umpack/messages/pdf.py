"""A PDF of fax pages, without loss, and the proof that it shows what the pages show.

img2pdf takes the T.6 code of a page into the PDF as it is and knows pixels that are not square.
Afterwards pikepdf opens it anew, counts its pages and decodes each: a page that is missing, turned
to its negative or another one would be seen. Used in the child process only.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import img2pdf
import pikepdf

from umpack.core.errors import OurFault
from umpack.messages.fax_pages import Sheet, digest_of


class PdfError(OurFault):
    """No PDF, or none that can be trusted."""


def make_pdf(sheets: Sequence[Sheet]) -> bytes:
    """One page a sheet; the same sheets give the same bytes. Raises `PdfError`."""
    try:
        made = img2pdf.convert(
            [sheet.coded for sheet in sheets],
            engine=img2pdf.Engine.pikepdf,
            nodate=True,
            rotation=img2pdf.Rotation.none,
            producer="umpack",
        )
        out = io.BytesIO()
        with pikepdf.open(io.BytesIO(bytes(made))) as opened:
            # img2pdf makes the file's id from the clock; a mail must be the same every time.
            del opened.trailer["/ID"]
            opened.save(out, deterministic_id=True)
    except (img2pdf.AlphaChannelError, img2pdf.ImageOpenError, img2pdf.PdfTooLargeError) as error:
        raise PdfError(type(error).__name__) from error
    except (OSError, ValueError, TypeError, KeyError, pikepdf.PdfError) as error:
        raise PdfError(type(error).__name__) from error
    return out.getvalue()


def differing(pdf: bytes, sheets: Sequence[Sheet]) -> tuple[int, list[int]]:
    """How many pages the PDF has, and the numbers of the sheets it does not show pixel by pixel.

    Raises `PdfError` if it cannot be opened.
    """
    wrong = []
    try:
        with pikepdf.open(io.BytesIO(pdf)) as opened:
            pages = list(opened.pages)
            for at, sheet in enumerate(sheets):
                if at >= len(pages) or not _shows(pages[at], sheet):
                    wrong.append(sheet.page.number)
    except (pikepdf.PdfError, OSError, ValueError) as error:
        raise PdfError(type(error).__name__) from error
    return len(pages), wrong


def _shows(made: pikepdf.Page, sheet: Sheet) -> bool:
    images = list(made.get_images().values())
    if len(images) != 1 or not isinstance(images[0], pikepdf.Stream):
        return False
    try:
        shown = pikepdf.PdfImage(images[0]).as_pil_image()
    except (pikepdf.PdfError, OSError, ValueError, NotImplementedError, KeyError, TypeError):
        return False
    if digest_of(shown.convert("1")) != sheet.digest:
        return False
    box = [float(side) for side in made.mediabox]
    page = sheet.page
    wanted = page.width / page.x_dpi * 72, page.rows / page.y_dpi * 72
    # A page longer than 14,400 units has larger units (ISO 32000-1, 7.7.3.3).
    unit = float(made.obj.get("/UserUnit", 1))
    across, along = (box[2] - box[0]) * unit, (box[3] - box[1]) * unit
    return abs(across - wanted[0]) < 1 and abs(along - wanted[1]) < 1
