"""The judge behind the child process, in this one, where hundreds of files can be tried: whatever
is in them there is a verdict that fits its PDF, and nothing is raised.

`UMPACK_FUZZ=20000 pytest tests/unit/messages/test_converter_fuzz.py` tries more of them.
"""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import pikepdf
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.unit.messages.fax_files import MH, MMR, MR, Sheet, fax, picture
from umpack.messages.conversion import Ended, document_of
from umpack.messages.converter import judged
from umpack.messages.document import ConversionLimits, FlawKind, Verdict
from umpack.messages.tiff import NotTiff, read_chain

EXAMPLES = int(os.environ.get("UMPACK_FUZZ", "300"))
LIMITS = ConversionLimits(pages=8, rows=4000, pixels=4_000_000)
"""Small, so that many fit into a minute; the real ones are only larger."""

ORDERS = ("<", ">")
SEEDS = [
    fax(
        [
            Sheet(picture(1, 120, 800), MR, y=196, strip_rows=50),
            Sheet(picture(2, 90, 800), MMR, x=None, y=None),
            Sheet(picture(3, 60, 800), MH, lsb=False),
        ],
        order,
    )
    for order in ORDERS
]
ENTRIES = {
    order: [
        directory.at + 2 + 12 * entry
        for directory in read_chain(seed, 9).directories
        for entry in range(struct.unpack_from(f"{order}H", seed, directory.at)[0])
    ]
    for order, seed in zip(ORDERS, SEEDS, strict=True)
}
LINKS = {
    order: [4] + [
        d.at + 2 + 12 * struct.unpack_from(f"{order}H", seed, d.at)[0]
        for d in read_chain(seed, 9).directories
    ]
    for order, seed in zip(ORDERS, SEEDS, strict=True)
}  # fmt: skip
EDGES = [0, 1, 2, 3, 8, 255, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
NUMBERS = st.sampled_from(EDGES) | st.integers(0, 0xFFFFFFFF)

Change = Callable[[bytearray, str], None]


def flipped(places: Sequence[tuple[int, int]]) -> Change:
    """Bits, as a line or a disk turns them."""

    def change(data: bytearray, order: str) -> None:
        for at, bit in places:
            if data:
                data[at % len(data)] ^= 1 << bit

    return change


def cut(share: float) -> Change:
    """The file ends early, as on a full disk."""

    def change(data: bytearray, order: str) -> None:
        del data[round(share * len(data)) :]

    return change


def linked(which: int, to: int) -> Change:
    """A directory leads to another: in a loop, past the end, or nowhere."""

    def change(data: bytearray, order: str) -> None:
        links = LINKS[order]
        targets = [d.at for d in read_chain(SEEDS[ORDERS.index(order)], 9).directories]
        goal = targets[to % len(targets)] if to < 16 else to
        _put(data, links[which % len(links)], f"{order}I", goal)

    return change


def tagged(which: int, part: str, value: int) -> Change:
    """One field of one directory entry: a huge width, a count of four thousand million, a strip
    that begins in the header, another type or tag."""

    def change(data: bytearray, order: str) -> None:
        at = ENTRIES[order][which % len(ENTRIES[order])]
        offset, code = {"tag": (0, "H"), "type": (2, "H"), "count": (4, "I"), "value": (8, "I")}[
            part
        ]
        _put(data, at + offset, f"{order}{code}", value & (0xFFFF if code == "H" else 0xFFFFFFFF))

    return change


def noise(at: int, junk: bytes) -> Change:
    """Something else stands there."""

    def change(data: bytearray, order: str) -> None:
        place = at % (len(data) + 1)
        data[place : place + len(junk)] = junk

    return change


def _put(data: bytearray, at: int, form: str, value: int) -> None:
    if at + struct.calcsize(form) <= len(data):
        struct.pack_into(form, data, at, value)


ANYWHERE = st.integers(0, max(map(len, SEEDS)))
CHANGES = st.one_of(
    st.lists(st.tuples(ANYWHERE, st.integers(0, 7)), min_size=1, max_size=40).map(flipped),
    st.floats(0, 1).map(cut),
    st.builds(linked, st.integers(0, 3), st.integers(0, 15) | NUMBERS),
    st.builds(
        tagged, st.integers(0, 60), st.sampled_from(["tag", "type", "count", "value", "value"]),
        NUMBERS | st.sampled_from([256, 257, 259, 273, 278, 279, 292]),
    ),
    st.builds(noise, ANYWHERE, st.binary(max_size=40)),
)  # fmt: skip
HINTS = st.none() | st.tuples(st.sampled_from([98, 204, 1300]), st.sampled_from([40, 196, 391]))


def check(data: bytes, hint: tuple[int, int] | None) -> set[FlawKind]:
    verdict, pdf = judged(data, LIMITS, hint)
    kinds = {flaw.kind for flaw in verdict.flaws}
    assert 0 <= verdict.pdf_pages <= len(verdict.pages) <= min(verdict.tiff_pages, LIMITS.pages)
    assert bool(pdf) is (verdict.pdf_pages > 0)
    assert verdict.whole or kinds
    for page in verdict.pages:
        assert 0 < page.width <= LIMITS.width
        assert 0 < page.rows <= LIMITS.rows
        assert page.width * page.rows <= LIMITS.pixels
        assert 0 <= page.bad_rows <= page.rows
    if pdf:
        with pikepdf.open(io.BytesIO(pdf)) as opened:
            assert len(opened.pages) == verdict.pdf_pages
            # A file has nothing to say in ours but its pixels.
            assert set(opened.docinfo.keys()) <= {"/Producer"}
    # What the parent makes of it is the same: nothing is lost on the way through the pipe.
    assert document_of(Ended(_answer(verdict, pdf), None), LIMITS).verdict == verdict
    return kinds


def _answer(verdict: Verdict, pdf: bytes) -> bytes:
    said = json.dumps(asdict(verdict), default=lambda kind: kind.value)
    return said.encode() + b"\n" + pdf


@pytest.mark.timeout(900 + EXAMPLES)
@settings(
    deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)  # fmt: skip
@given(st.sampled_from(ORDERS), st.lists(CHANGES, min_size=1, max_size=4), HINTS)
def test_whatever_is_in_a_file_there_is_a_verdict(
    order: str, changes: list[Change], hint: tuple[int, int] | None
) -> None:
    data = bytearray(SEEDS[ORDERS.index(order)])
    for change in changes:
        change(data, order)
    check(bytes(data), hint)


@pytest.mark.parametrize("order", ORDERS)
def test_the_files_that_are_changed_are_whole(order: str) -> None:
    assert check(SEEDS[ORDERS.index(order)], (204, 98)) == {FlawKind.RESOLUTION}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("value", EDGES)
def test_every_entry_at_its_edges(order: str, value: int) -> None:
    """Not by chance: each field of each directory, one by one."""
    seed = SEEDS[ORDERS.index(order)]
    for which in range(0, len(ENTRIES[order]), 1 if EXAMPLES > 300 else 3):
        data = bytearray(seed)
        tagged(which, "value", value)(data, order)
        check(bytes(data), None)


@given(st.binary(max_size=400), st.sampled_from([b"", b"II*\0", b"MM\0*"]))
def test_what_is_no_fax_is_said_to_be_none(junk: bytes, magic: bytes) -> None:
    verdict, pdf = judged(magic + junk, LIMITS, None)
    assert (verdict.pdf_pages, pdf) == (0, b"")
    assert verdict.flaws


def test_a_chain_never_takes_more_directories_than_it_may() -> None:
    pages = fax([Sheet(picture(1, 10, 64))] * 30)
    assert len(read_chain(pages, 8).directories) == 9
    verdict, _ = judged(pages, replace(LIMITS, pages=8), None)
    assert len(verdict.pages) == 8
    with pytest.raises(NotTiff):
        read_chain(b"", 8)
