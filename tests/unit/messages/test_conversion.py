from __future__ import annotations

import asyncio
import hashlib
import io
import os
import random
import struct
import sys
from dataclasses import replace
from pathlib import Path

import pikepdf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.unit.messages.fax_files import MH, MMR, MR, Sheet, fax, picture, shown
from umpack.messages.conversion import ConversionFault, Ended, convert, document_of, run
from umpack.messages.document import ConversionLimits, Document, Flaw, FlawKind

LIMITS = ConversionLimits()


async def converted(
    folder: Path,
    data: bytes,
    engine: int | None = None,
    limits: ConversionLimits = LIMITS,
    resolution: str = "",
) -> Document:
    path = folder / "original.tif"
    path.write_bytes(data)
    document = await convert(path, engine, limits, resolution)
    assert path.read_bytes() == data
    return document


def sizes(pdf: bytes | None) -> list[tuple[int, int]]:
    assert pdf is not None
    with pikepdf.open(io.BytesIO(pdf)) as opened:
        return [tuple(round(float(x)) for x in list(p.mediabox)[2:]) for p in opened.pages]  # type: ignore[misc]


def kinds(document: Document) -> set[FlawKind]:
    return {flaw.kind for flaw in document.verdict.flaws}


@pytest.mark.parametrize("coding", [MH, MR, MMR])
@pytest.mark.parametrize("lsb", [True, False])
async def test_pdf_shows_every_pixel(tmp_path: Path, coding: str, lsb: bool) -> None:
    pictures = [picture(n) for n in (1, 2)]
    data = fax([Sheet(p, coding, lsb=lsb, strip_rows=n * 400) for n, p in enumerate(pictures, 1)])
    document = await converted(tmp_path, data, 2)
    assert document.verdict.flaws == ()
    assert document.verdict.whole
    assert [i.tobytes() for i in shown(document.pdf)] == [p.tobytes() for p in pictures]


async def test_pages_have_the_size_of_their_paper(tmp_path: Path) -> None:
    sheets = [
        Sheet(picture(1, 1143), MH, y=98),
        Sheet(picture(2, 2286), MMR, y=196),
        Sheet(picture(3, 4572), MR, y=391),
        Sheet(picture(4, 600), MMR, y=98),
        Sheet(picture(5, 2286), MMR, x=80.31, y=77.16, unit=3),
    ]
    document = await converted(tmp_path, fax(sheets), 5)
    assert document.verdict.whole
    assert sizes(document.pdf) == [(610, 840), (610, 840), (610, 842), (610, 441), (610, 840)]


@pytest.mark.parametrize(
    ("rows", "hint", "y"),
    [(1143, "", 98), (2286, "", 196), (4572, "", 391), (1143, "204x196", 196), (900, "bad", 98)],
)
async def test_missing_resolution_is_assumed_and_said(
    tmp_path: Path, rows: int, hint: str, y: int
) -> None:
    data = fax([Sheet(picture(1, rows), x=None, y=None)])
    document = await converted(tmp_path, data, 1, resolution=hint)
    (page,) = document.verdict.pages
    assert (page.x_dpi, page.y_dpi) == (204, y)
    assert document.verdict.flaws == (Flaw(FlawKind.RESOLUTION, 1),)
    assert document.verdict.whole


async def test_same_file_gives_the_same_pdf(tmp_path: Path) -> None:
    data = fax([Sheet(picture(n)) for n in (1, 2)])
    one, two = await converted(tmp_path, data), await converted(tmp_path, data)
    assert one == two
    assert one.pdf == two.pdf


async def test_engine_counted_more_than_there_is(tmp_path: Path) -> None:
    document = await converted(tmp_path, fax([Sheet(picture())]), 4)
    assert document.verdict.missing == 3
    assert not document.verdict.whole
    assert len(shown(document.pdf)) == 1


@pytest.mark.parametrize("damage", ["first offset 0", "loop", "cut in the last directory"])
async def test_damaged_lists_give_all_readable_pages(tmp_path: Path, damage: str) -> None:
    sheets = [Sheet(picture(n)) for n in (1, 2, 3)]
    match damage:
        case "loop":
            data, left = fax(sheets, loop=True), 3
        case "first offset 0":
            data, left = fax(sheets, first=0), 3
        case _:
            data, left = fax(sheets)[: -len(fax(sheets)) % 1 - 190], 2
    document = await converted(tmp_path, data, 3)
    assert Flaw(FlawKind.CHAIN) in document.verdict.flaws
    pages = shown(document.pdf)
    assert [p.tobytes() for p in pages] == [s.image.tobytes() for s in sheets[:left]]
    assert document.verdict.whole is (left == 3)


async def test_page_without_rows_is_named_and_the_others_stay(tmp_path: Path) -> None:
    sheets = [Sheet(picture(1)), Sheet(picture(2), tags={257: 0}), Sheet(picture(3))]
    document = await converted(tmp_path, fax(sheets), 3)
    assert document.verdict.flaws == (Flaw(FlawKind.NO_ROWS, 2),)
    assert (document.verdict.tiff_pages, document.verdict.pdf_pages) == (3, 2)
    assert [page.number for page in document.verdict.pages] == [1, 3]


@pytest.mark.parametrize("coding", [MH, MR, MMR])
async def test_bit_errors_keep_the_page_and_are_told(tmp_path: Path, coding: str) -> None:
    good = fax([Sheet(picture(1), coding), Sheet(picture(2), coding)])
    data, dice = bytearray(good), random.Random(7)
    for _ in range(30):
        data[8 + dice.randrange(4000)] ^= 1 << dice.randrange(8)
    document = await converted(tmp_path, bytes(data), 2)
    assert document.verdict.pdf_pages == 2
    assert document.verdict.pages[0].bad_rows > 0
    assert FlawKind.BAD_ROWS in kinds(document)
    assert shown(document.pdf)[1].tobytes() == picture(2).tobytes()
    again = await converted(tmp_path, bytes(data), 2)
    assert again.pdf == document.pdf


async def test_engine_tags_tell_of_bad_rows_the_code_no_longer_has(tmp_path: Path) -> None:
    data = fax([Sheet(picture(1, 1000), tags={326: 60, 328: 9}), Sheet(picture(2))])
    document = await converted(tmp_path, data, 2)
    page = document.verdict.pages[0]
    assert (page.bad_rows, page.worst_run, page.quality.value) == (60, 9, "poor")
    assert document.verdict.flaws == (Flaw(FlawKind.BAD_ROWS, 1, 60),)
    assert document.verdict.whole


@pytest.mark.parametrize("coding", [MH, MR, MMR])
async def test_strip_cut_off_keeps_the_rows_before_it(tmp_path: Path, coding: str) -> None:
    image = picture(1, 1000)
    whole = fax([Sheet(image, coding)])
    (size,) = struct.unpack_from("<I", whole, whole.index(struct.pack("<HHI", 279, 4, 1)) + 8)
    data = fax([Sheet(image, coding, tags={279: size // 2})])
    document = await converted(tmp_path, data, 1)
    (seen,) = shown(document.pdf)
    rows = [
        seen.crop((0, y, 1728, y + 1)).tobytes() == image.crop((0, y, 1728, y + 1)).tobytes()
        for y in range(1000)
    ]
    assert rows.index(False) > 300
    assert not document.verdict.whole
    assert kinds(document) & {FlawKind.CUT, FlawKind.ILLEGIBLE}


async def test_black_page_is_said_to_be_black(tmp_path: Path) -> None:
    document = await converted(tmp_path, fax([Sheet(Image.new("1", (1728, 1100), 0))]), 1)
    assert document.verdict.flaws == (Flaw(FlawKind.BLACK, 1),)


async def test_endless_page_is_shown_in_full_length(tmp_path: Path) -> None:
    document = await converted(tmp_path, fax([Sheet(picture(1, 20000))]), 1)
    assert document.verdict.flaws == ()
    assert shown(document.pdf)[0].size == (1728, 20000)


async def test_bomb_is_refused_unread(tmp_path: Path) -> None:
    # A page of 1.3 Gpixel; its code says: all white.
    image = Image.new("1", (1728, 20000), 255)
    data = fax([Sheet(image, tags={256: 65000}), Sheet(picture(2))])
    document = await converted(tmp_path, data, 2)
    assert document.verdict.flaws == (Flaw(FlawKind.AREA, 1),)
    assert [page.number for page in document.verdict.pages] == [2]


async def test_more_pages_than_allowed(tmp_path: Path) -> None:
    data = fax([Sheet(picture(n, 100)) for n in range(5)])
    document = await converted(tmp_path, data, 5, replace(LIMITS, pages=3))
    assert Flaw(FlawKind.PAGES, None, 3) in document.verdict.flaws
    assert document.verdict.pdf_pages == 3
    assert not document.verdict.whole


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"file": 1000}, FlawKind.FILE_SIZE),
        ({"cpu": 1, "wall": 0.01}, FlawKind.TIME),
    ],
)
async def test_limits_hold(tmp_path: Path, change: dict[str, int], kind: FlawKind) -> None:
    document = await converted(
        tmp_path, fax([Sheet(picture())]), 1, replace(LIMITS, **change)
    )  # fmt: skip
    assert document.verdict.flaws == (Flaw(kind),)
    assert document.pdf is None
    assert not document.verdict.whole


async def test_too_little_memory_is_a_verdict(tmp_path: Path) -> None:
    sheets = [Sheet(Image.new("1", (4000, 20000), 255), tags={262: 0})]
    document = await converted(tmp_path, fax(sheets), 1, replace(LIMITS, memory=150 << 20))
    assert document.pdf is None
    assert kinds(document) & {FlawKind.MEMORY, FlawKind.BROKEN, FlawKind.NO_PAGES}


@pytest.mark.parametrize(
    ("tags", "kind"),
    [
        ({259: 7}, FlawKind.CODING),
        ({259: 1}, FlawKind.CODING),
        ({262: 2}, FlawKind.CODING),
        ({258: 8}, FlawKind.AREA),
        ({277: 3}, FlawKind.AREA),
        ({278: 10}, FlawKind.UNREADABLE),
    ],
)
async def test_what_is_no_fax_page_is_not_decoded(
    tmp_path: Path, tags: dict[int, int | None], kind: FlawKind
) -> None:
    document = await converted(tmp_path, fax([Sheet(picture(rows=100), tags=tags)]), 1)
    assert kind in kinds(document)
    assert FlawKind.NO_PAGES in kinds(document)


@pytest.mark.parametrize("data", [b"", b"%PDF-1.7", b"II*\0\0\0\0\0"])
async def test_no_fax_at_all(tmp_path: Path, data: bytes) -> None:
    document = await converted(tmp_path, data, 1)
    assert kinds(document) & {FlawKind.NOT_TIFF, FlawKind.NO_PAGES}
    assert document.pdf is None


async def test_hash_is_of_the_picture_and_not_of_the_code_or_the_header_line(
    tmp_path: Path,
) -> None:
    one, two, three = picture(1), picture(1), picture(2)
    two.paste(0, (300, 3, 420, 12))  # the clock in the sender's header line goes on
    data = fax([Sheet(one, MH), Sheet(two, MMR, lsb=False), Sheet(three, MH)])
    first, second, other = (page.hash for page in (await converted(tmp_path, data)).verdict.pages)
    assert first == second
    assert other != first


async def test_file_that_is_none_is_our_fault(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe")
    for name in ("missing", "link", "pipe", "."):
        with pytest.raises(ConversionFault):
            await convert(tmp_path / name, None, LIMITS)


GOOD_HEAD = b'{"engine_pages":null,"tiff_pages":1,"pdf_pages":1,"pages":[],"flaws":[]}\n'


@pytest.mark.parametrize(
    "output",
    [
        b"", b"{}", b"[]\n%PDF-", b"\xff\n", GOOD_HEAD, GOOD_HEAD + b"MZ",
        GOOD_HEAD.replace(b'"pdf_pages":1', b'"pdf_pages":0') + b"%PDF-1.7",
        GOOD_HEAD.replace(b'"pdf_pages":1', b'"pdf_pages":5000') + b"%PDF-1.7",
        GOOD_HEAD.replace(b'"flaws":[]', b'"flaws":[{"kind":"fine"}]') + b"%PDF-1.7",
    ],
)  # fmt: skip
def test_child_is_not_believed_what_does_not_fit_together(output: bytes) -> None:
    document = document_of(Ended(output, None), LIMITS)
    assert document.verdict.flaws == (Flaw(FlawKind.BROKEN),)
    assert document.pdf is None
    good = document_of(Ended(GOOD_HEAD + b"%PDF-1.7", None), LIMITS)
    assert (good.pdf, good.verdict.pdf_pages) == (b"%PDF-1.7", 1)


CHILDREN = {
    "exit": ("raise SystemExit(3)", FlawKind.BROKEN),
    "crash": ("import os; os.abort()", FlawKind.BROKEN),
    "hang": ("import time; time.sleep(60)", FlawKind.TIME),
    "flood": ("while True: print('x' * 10000)", FlawKind.FILE_SIZE),
    "orphan": (
        "import os, time\nif os.fork() == 0: time.sleep(60)\nelse: time.sleep(60)",
        FlawKind.TIME,
    ),
}


@pytest.mark.parametrize("name", CHILDREN)
async def test_child_may_do_what_it_likes(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").write_bytes(b"x")
    text, why = CHILDREN[name]
    wall = 1.0 if why is FlawKind.TIME else 20.0
    ended = await run((sys.executable, "-c", text), tmp_path / "x", wall, 1 << 20)
    assert ended.why is why
    assert ended.output == b""


async def test_cancelled_conversion_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    note = tmp_path / "pid"
    text = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    task = asyncio.ensure_future(run((sys.executable, "-c", text), tmp_path / "x", 30, 100))
    async with asyncio.timeout(20):
        while not note.exists() or not note.read_text():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


SEED = fax([Sheet(picture(1, 200), MR, y=196), Sheet(picture(2, 150), MMR), Sheet(picture(3, 90))])


@settings(
    deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.integers(0, 255)), max_size=20),
    st.integers(0, 2 * len(SEED)),
    st.binary(max_size=40),
)
def test_whatever_comes_there_is_a_verdict(
    tmp_path: Path, changes: list[tuple[int, int]], end: int, noise: bytes
) -> None:
    data = bytearray(SEED)
    for at, byte in changes:
        data[at] = byte
    damaged = bytes(data[:end]) + noise
    document = asyncio.run(converted(tmp_path, damaged, 3))
    verdict = document.verdict
    assert verdict.whole or verdict.flaws or verdict.missing
    assert (document.pdf is None) is (verdict.pdf_pages == 0)
    assert hashlib.sha256((tmp_path / "original.tif").read_bytes()).digest() == (
        hashlib.sha256(damaged).digest()
    )
