"""What a received fax file is worth: pages found, readable and in the PDF, and all that is wrong.

    document.py    the values                     tiff.py         directories of a TIFF, salvaged
    conversion.py  the parent: child with limits  fax_pages.py    one page decoded and judged
    converter.py   the child                      pdf.py          the PDF and its proof

The proof is a comparison: pages the engine counted = pages in the TIFF = pages in the PDF. Where it
fails the flaws say why, as words of a closed set: they are kept in the record as they are printed,
and the mail says them in the language of its reader.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from umpack.core.errors import ConfigError
from umpack.messages.message import DocumentFacts


class FlawKind(Enum):
    """What may be wrong with a file or a page of it."""

    NOT_TIFF = "not a TIFF"
    CHAIN = "page list damaged"
    NO_PAGES = "no page readable"
    FILE_SIZE = "file larger than is converted"
    PAGES = "more pages than are converted"
    NO_ROWS = "no rows"
    AREA = "not the size of a fax page"
    CODING = "coding not read"
    UNREADABLE = "unreadable"
    CUT = "cut off"
    BAD_ROWS = "bad rows"
    ILLEGIBLE = "hardly legible"
    BLACK = "almost wholly black"
    RESOLUTION = "resolution assumed"
    PDF_FAILED = "no PDF made"
    PDF_DIFFERS = "differs in the PDF"
    TIME = "conversion took too long"
    MEMORY = "conversion needed too much memory"
    BROKEN = "conversion broke down"


LOSING: Final = frozenset(FlawKind) - {
    FlawKind.BAD_ROWS, FlawKind.BLACK, FlawKind.RESOLUTION, FlawKind.CHAIN
}  # fmt: skip
"""Those that mean that something is missing, not only that it looks bad."""

_FLAW: Final = re.compile(r"(?:page (\d{1,6}): )?([A-Za-z ]+?)(?: \((\d{1,12})\))?")


@dataclass(frozen=True, slots=True)
class Flaw:
    """One thing that is wrong; `page` counts from 1, `value` is a number of rows, or a tag's."""

    kind: FlawKind
    page: int | None = None
    value: int | None = None

    def __str__(self) -> str:
        where = "" if self.page is None else f"page {self.page}: "
        much = "" if self.value is None else f" ({self.value})"
        return f"{where}{self.kind.value}{much}"


def flaws_of(text: str) -> tuple[Flaw, ...]:
    """Flaws as they were printed into a record; what is none (another's text) is passed over."""
    found = []
    for part in text.split("; "):
        if (match := _FLAW.fullmatch(part)) and match[2] in FlawKind._value2member_map_:
            page, value = (None if n is None else int(n) for n in (match[1], match[3]))
            found.append(Flaw(FlawKind(match[2]), page, value))
    return tuple(found)


class Quality(Enum):
    """Of a page, by its share of bad rows, with spandsp's bounds of 5 and 15 per cent."""

    GOOD = "good"
    POOR = "poor"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Page:
    """A page that could be read. Sizes in pixels, resolutions in dots per inch."""

    number: int
    """Among the directories of the TIFF, from 1."""
    width: int
    rows: int
    x_dpi: int
    y_dpi: int
    bad_rows: int
    """By the engine's tags or by the decoder, whichever saw more."""
    worst_run: int
    """Bad rows in succession, by the engine's tags."""
    hash: str
    """Of what is to be seen below the sender's header line."""

    @property
    def quality(self) -> Quality:
        """How well it can be read."""
        share = 100 * self.bad_rows / self.rows
        return Quality.GOOD if share < 5 else Quality.POOR if share < 15 else Quality.BAD


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a file is worth. `None` is what nobody counted."""

    engine_pages: int | None
    tiff_pages: int = 0
    """Page directories found, readable or not."""
    pdf_pages: int = 0
    pages: tuple[Page, ...] = ()
    flaws: tuple[Flaw, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether everything the engine had received is in the PDF, and can be read."""
        counts = {self.tiff_pages, self.pdf_pages, len(self.pages)}
        if self.engine_pages is not None:
            counts.add(self.engine_pages)
        lost = any(flaw.kind in LOSING for flaw in self.flaws)
        return len(counts) == 1 and self.pdf_pages > 0 and not lost

    @property
    def missing(self) -> int:
        """Pages somebody counted that are not in the PDF."""
        return max(self.engine_pages or 0, self.tiff_pages) - self.pdf_pages

    def facts(self) -> DocumentFacts:
        """As they are kept in the record."""
        return DocumentFacts(
            pages_tiff=self.tiff_pages,
            pages_pdf=self.pdf_pages,
            bad_rows=sum(page.bad_rows for page in self.pages),
            page_hashes=tuple(page.hash for page in self.pages),
            fault="; ".join(map(str, self.flaws)),
        )


@dataclass(frozen=True, slots=True)
class Document:
    """A verdict and, if at least one page could be read, the PDF of those."""

    verdict: Verdict
    pdf: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ConversionLimits:
    """How far one file may go. Bytes, pixels, seconds.

    The widest fax page is A3 at 408 dpi, 4864 pixels (T.4); an endless page of 2 m at 391 lines an
    inch has 31,000 rows. A hundred million pixels are 100 MB in the decoder.
    """

    memory: int = 768 << 20
    cpu: int = 150
    wall: float = 300.0
    file: int = 256 << 20
    pages: int = 1000
    width: int = 5000
    rows: int = 40_000
    pixels: int = 100_000_000

    def __post_init__(self) -> None:
        numbers = (
            self.memory, self.cpu, self.wall, self.file,
            self.pages, self.width, self.rows, self.pixels,
        )  # fmt: skip
        if min(numbers) <= 0:
            raise ConfigError(f"limits of the conversion must be positive: {self}")


def joined(flaws: Iterable[Flaw]) -> tuple[Flaw, ...]:
    """Without repetitions, those of the whole file first, then by page."""
    return tuple(sorted(dict.fromkeys(flaws), key=lambda flaw: flaw.page or 0))
