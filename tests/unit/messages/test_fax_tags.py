from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.messages.fax_files import Sheet, fax, picture
from umpack.messages.fax_tags import FaxTags, agreed, read_tags
from umpack.messages.message import EngineFacts
from umpack.messages.tiff import read_chain

STATION, SECONDS, DCS = 270, 34910, 34911
# Of files that Asterisk 22 has written.
WITH_ECM, WITHOUT_ECM = b"00 44 1F 22", b"00 45 1E"


def told(pages: Sequence[tuple[bytes, bytes, int]]) -> bytes:
    """A fax with such texts in its pages, put where numbers were."""
    sheets = [
        Sheet(picture(n, rows=60), tags={STATION: 1, SECONDS: seconds, DCS: 1})
        for n, (_, _, seconds) in enumerate(pages)
    ]
    data = bytearray(fax(sheets))
    for directory, (station, dcs, _) in zip(
        read_chain(bytes(data), 100).directories, pages, strict=True
    ):
        entries = struct.unpack_from("<H", data, directory.at)[0]
        for at in range(directory.at + 2, directory.at + 2 + 12 * entries, 12):
            tag = struct.unpack_from("<H", data, at)[0]
            if tag in (STATION, DCS):
                text = (station if tag == STATION else dcs) + b"\0"
                where = len(data)
                value = text.ljust(4, b"\0")[:4] if len(text) <= 4 else struct.pack("<I", where)
                struct.pack_into("<HHI4s", data, at, tag, 2, len(text), value)
                data += text if len(text) > 4 else b""
    return bytes(data)


def read(tmp_path: Path, data: bytes) -> FaxTags | None:
    file = tmp_path / "a.tif"
    file.write_bytes(data)
    return read_tags(file)


def test_a_fax_tells_who_sent_it_and_how(tmp_path: Path) -> None:
    hostile = b'\xff\xc3\r\n%n`$(id)"'
    pages = [(hostile, WITH_ECM, 7), (hostile, WITH_ECM, 4)]
    assert read(tmp_path, told(pages)) == FaxTags(2, hostile, True, 14400, "204x98", 11)


@pytest.mark.parametrize(
    ("dcs", "ecm", "bitrate"),
    [
        (WITH_ECM, True, 14400),
        (WITHOUT_ECM, False, 14400),
        (b"00 60 1F 22", True, 9600),
        (b"00 64 1F 02", False, 9600),
        (b"00 40 00", False, 2400),
        (b"00 50 00", False, 4800),
        (b"00 70 00", False, 7200),
        (b"00 54 00", False, 12000),
        (b"00 48 00", False, None),  # no modem of T.30
        (b"00 44 1E 22", False, 14400),  # what follows an end does not count
        (b"", None, None),
        (b"00 44", None, None),
        (b"00441F22", None, None),
        (b"ZZ 44 1F 22", None, None),
    ],
)
def test_the_dcs_is_read_as_t30_has_it(dcs: bytes, ecm: bool | None, bitrate: int | None) -> None:
    assert agreed(dcs) == (ecm, bitrate)


def test_what_the_channel_knows_is_not_overruled_but_for_the_station() -> None:
    channel = EngineFacts("SUCCESS", "", 2, 9600, None, "204x196", False, b"12", 30.0, 16)
    tags = FaxTags(2, b"1\n2", True, 14400, "204x98", 7)
    assert tags.complete(channel) == EngineFacts(
        "SUCCESS", "", 2, 9600, True, "204x196", False, b"1\n2", 30.0, 16
    )
    assert tags.complete(EngineFacts()) == EngineFacts(
        bitrate=14400, ecm=True, resolution="204x98", station=b"1\n2", seconds=7
    )
    assert FaxTags(0).complete(channel) == channel


@pytest.mark.parametrize("data", [b"", b"RIFF", b"II*\0", b"II*\0\x08\0\0\0\xff\xff"])
def test_a_file_that_tells_nothing(tmp_path: Path, data: bytes) -> None:
    assert read(tmp_path, data) in (None, FaxTags(0))


SEED = told([(b"+49 30 1", WITH_ECM, 7)])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=12))
def test_whatever_is_in_it_there_is_an_answer(changes: list[tuple[int, int]]) -> None:
    data = bytearray(SEED)
    for at, byte in changes:
        data[4 + at % (len(data) - 4)] = byte
    for directory in read_chain(bytes(data), 20).directories:
        assert len(directory.station) <= 256
        agreed(directory.dcs)


def test_a_small_file_with_much_to_read_costs_little(tmp_path: Path) -> None:
    many = 50_000
    data = bytearray(struct.pack("<2sHI", b"II", 42, 8 + 4 * many))
    data += struct.pack(f"<{many}I", *range(8, 8 + many))
    for page in range(40):
        tags = [(256, 3, 1, 1728), (257, 4, 1, 100), (259, 3, 1, 4), (273, 4, many, 8),
                (279, 4, many, 8)]  # fmt: skip
        data += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags)
        data += struct.pack("<I", len(data) + 4 if page < 39 else 0)
    tracemalloc.start()
    try:
        found = read(tmp_path, bytes(data))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found is not None
    assert found.pages == 40
    # The daemon reads it, and no child: 64 MB for the file, and there were 7 MB for each directory.
    assert peak < 100_000_000
