from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.messages.fax_files import MH, MMR, MR, Sheet, fax, picture
from umpack.messages.tiff import NotTiff, read_chain

PAGES = [Sheet(picture(n, rows=120)) for n in (1, 2, 3)]
GOOD = fax(PAGES)


def starts(data: bytes) -> list[int]:
    return [directory.at for directory in read_chain(data, 100).directories]


@pytest.mark.parametrize("order", ["<", ">"])
def test_chain_is_read_in_both_byte_orders(order: str) -> None:
    data = fax([Sheet(picture(1, rows=120), coding=MR, y=196, tags={326: 7, 328: 4})], order)
    chain = read_chain(data, 10)
    (page,) = chain.directories
    assert not chain.broken
    assert (page.width, page.rows, page.compression, page.two_dimensional) == (1728, 120, 3, True)
    assert (page.x, page.y, page.lsb_first) == (204.0, 196.0, True)
    assert (page.bad_rows, page.worst_run, page.page) == (7, 4, 0)
    assert [offset for offset, _ in page.strips] == [8]


def test_centimetres_become_inches_and_no_unit_is_no_resolution() -> None:
    (metric,) = read_chain(fax([Sheet(picture(rows=50), x=80.31, y=38.5, unit=3)]), 9).directories
    assert metric.x == pytest.approx(204, abs=0.1)
    assert metric.y == pytest.approx(97.8, abs=0.1)
    (none,) = read_chain(fax([Sheet(picture(rows=50), unit=1)]), 9).directories
    assert (none.x, none.y) == (None, None)


def test_first_offset_lost_finds_all_pages_in_order() -> None:
    chain = read_chain(fax(PAGES, first=0), 100)
    assert chain.broken
    assert [directory.page for directory in chain.directories] == [0, 1, 2]
    assert [d.at for d in chain.directories] == starts(GOOD)


def test_loop_ends_and_gives_each_page_once() -> None:
    chain = read_chain(fax(PAGES, loop=True), 100)
    assert chain.broken
    assert [directory.page for directory in chain.directories] == [0, 1, 2]


def test_link_into_nowhere_keeps_the_pages_behind_it() -> None:
    data = bytearray(GOOD)
    first = starts(GOOD)[0]
    entries = struct.unpack_from("<H", data, first)[0]
    struct.pack_into("<I", data, first + 2 + 12 * entries, 0x7FFFFFFF)
    chain = read_chain(bytes(data), 100)
    assert chain.broken
    assert [directory.page for directory in chain.directories] == [0, 1, 2]


def test_directory_rewritten_at_the_end_replaces_the_old_one() -> None:
    # As libtiff does it in the midst of TIFFRewriteDirectory: a copy at the end, no link yet.
    start = starts(GOOD)[1]
    entries = struct.unpack_from("<H", GOOD, start)[0]
    copy = bytearray(GOOD[start : start + 2 + 12 * entries + 4])
    copy[-4:] = b"\0\0\0\0"
    data = bytearray(GOOD) + b"\0" * (len(GOOD) & 1)
    data[4:8] = b"\0\0\0\0"
    chain = read_chain(bytes(data + copy), 100)
    assert [directory.page for directory in chain.directories] == [0, 1, 2]
    assert chain.directories[1].at == len(data)


@pytest.mark.parametrize("cut", [4, 40, 150])
def test_file_cut_off_in_its_last_directory_keeps_the_others(cut: int) -> None:
    last = starts(GOOD)[-1]
    chain = read_chain(GOOD[: last + cut], 100)
    assert chain.broken
    assert [directory.page for directory in chain.directories][:2] == [0, 1]


def test_no_more_pages_are_read_than_asked_for() -> None:
    assert len(read_chain(GOOD, 1).directories) == 2  # one more, so that it is seen that there are
    assert len(read_chain(fax(PAGES, first=0), 1).directories) <= 2


@pytest.mark.parametrize("data", [b"", b"II", b"%PDF-1.7", b"MM*\0aaaa", b"II+\0\x08\0\0\0"])
def test_what_is_no_tiff_is_refused(data: bytes) -> None:
    with pytest.raises(NotTiff):
        read_chain(data, 10)


def test_header_alone_is_a_broken_list_of_nothing() -> None:
    chain = read_chain(b"II*\0\0\0\0\0", 10)
    assert chain.broken
    assert chain.directories == ()


SEEDS = [GOOD, fax(PAGES, ">"), fax([Sheet(picture(rows=90), coding=MH, strip_rows=30)]),
         fax([Sheet(picture(rows=90), coding=MMR)], loop=True)]  # fmt: skip


@settings(deadline=None, max_examples=400)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=12),
    st.integers(0, 10**6),
)
def test_whatever_is_changed_there_is_a_list(
    seed: bytes, changes: list[tuple[int, int]], end: int
) -> None:
    data = bytearray(seed)
    for at, byte in changes:
        data[8 + at % (len(data) - 8)] = byte
    data = data[: max(8, end % (2 * len(data)))]
    chain = read_chain(bytes(data), 20)
    assert len(chain.directories) <= 21
    assert all(0 < directory.at < len(data) for directory in chain.directories)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([b"II*\0", b"MM\0*"]), st.binary(max_size=400))
def test_noise_behind_a_header_never_raises(head: bytes, noise: bytes) -> None:
    assert len(read_chain(head + noise, 20).directories) <= 21
