"""What is made of leftovers: by the file, by what the PBX wrote down, and after a second death."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.messages.receptions import CALL, START, Time, call, content, opened, pages
from tests.unit.messages.test_fax_tags import WITH_ECM, told
from umpack.messages.disk_spool import DiskSpool
from umpack.messages.fault_points import FaultPoint, FaultPoints
from umpack.messages.last_words import LastWords, read_last_words
from umpack.messages.message import EngineFacts, Intent, Kind, Message, MessageId

WORDS = "status=SUCCESS|error=HANGUP|pages=2|bitrate=14400|mode=audio|cause=16"
FAX = told([(b"+49 30 1", WITH_ECM, 7), (b"+49 30 1", WITH_ECM, 4)])


class Death(BaseException):
    """Nobody catches it, as nobody catches a kill."""


class DiesAt(FaultPoints):
    def __init__(self, point: FaultPoint) -> None:
        self._point = point

    def reach(self, point: FaultPoint) -> None:
        if point is self._point:
            raise Death


@contextmanager
def death(directory: Path, point: FaultPoint) -> Iterator[DiskSpool]:
    with pytest.raises(Death), opened(directory, faults=DiesAt(point)) as spool:
        yield spool


def left(directory: Path, *, answered: bool = True, file: bytes = FAX) -> Intent:
    """A fax whose umpack has died."""
    time = Time()
    with opened(directory, time) as spool:
        intent = spool.intend(CALL)
        time.now += 3
        if answered:
            spool.note_answered(intent.id)
    Path(intent.path).write_bytes(file)
    return intent


def note(directory: Path, id_: MessageId, text: str) -> Path:
    path = directory / "receiving" / f"{id_}.end"
    path.write_text(text)
    return path


def adopted(directory: Path, id_: MessageId) -> Message:
    with opened(directory) as spool:
        assert spool.adopt().adopted == (id_,)
        assert spool.adopt().adopted == ()
        return spool.message(id_)


def test_the_pbx_has_written_down_how_it_ended(tmp_path: Path) -> None:
    intent = left(tmp_path)
    note(tmp_path, intent.id, f"{WORDS}|ended={START + 45:.0f}|words=OK\n")
    message = adopted(tmp_path, intent.id)
    assert message.adopted == "umpack was away at its call's end"
    assert message.answered == START + 3
    assert message.engine == EngineFacts(
        "SUCCESS", "", 2, 14400, True, "204x98", False, b"+49 30 1", 42.0, 16
    )
    assert os.listdir(tmp_path / "receiving") == []


def test_a_fax_that_broke_off_without_us_says_so(tmp_path: Path) -> None:
    intent = left(tmp_path, answered=False)
    note(tmp_path, intent.id, "status=FAILED|error=HANGUP|pages=1|words=The call dropped")
    engine = adopted(tmp_path, intent.id).engine
    assert engine is not None
    assert (engine.status, engine.error, engine.pages) == ("FAILED", "HANGUP: The call dropped", 1)
    assert engine.seconds == 11  # by the pages: when it was answered is not known


def test_without_a_note_the_file_tells_what_it_knows(tmp_path: Path) -> None:
    message = adopted(tmp_path, left(tmp_path).id)
    assert message.adopted == "its call's end was not seen"
    assert message.engine == EngineFacts(
        "UNKNOWN", "", None, 14400, True, "204x98", None, b"+49 30 1", 11
    )


def test_a_note_is_not_followed_elsewhere_and_one_too_many_is_removed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(WORDS)
    intent = left(tmp_path)
    link = tmp_path / "receiving" / f"{intent.id}.end"
    link.symlink_to(secret)
    with opened(tmp_path) as spool:
        done = spool.commit(spool.intend(call(2)).id, EngineFacts("SUCCESS", pages=0))
    note(tmp_path, done.id, WORDS)
    message = adopted(tmp_path, intent.id)
    assert message.engine is not None
    assert message.engine.status == "UNKNOWN"
    assert secret.exists()
    assert [file.name for file in (tmp_path / "receiving").iterdir()] == [link.name]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "status=SUCCESS",
        "pages=2",
        "status=SUC CESS|pages=2",
        "status=A|pages=-1",
        "\udcff|=",
    ],
)
def test_what_cannot_be_read_is_no_note(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.end"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert read_last_words(file) is None
    assert read_last_words(tmp_path / "none.end") is None


def test_a_clock_that_ran_back_gives_no_duration() -> None:
    words = LastWords(EngineFacts("SUCCESS", pages=1), 100)
    assert words.facts(200.0).seconds is None
    assert words.facts(40.0).seconds == 60


def test_a_file_in_its_place_that_no_record_knows_of_is_found(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        message = spool.commit(spool.intend(call(1)).id, EngineFacts())
    (tmp_path / "receiving" / f"{message.id}.tif").write_bytes(pages(1))
    with death(tmp_path, FaultPoint.ADOPT_PLACED) as spool:
        spool.adopt()
    with opened(tmp_path) as spool:
        assert spool.message(message.id).original is None
        assert spool.adopt().adopted == (message.id,)
        assert content(spool, spool.message(message.id)) == pages(1)
        assert spool.message(message.id).adopted == "its file came after its record"


def test_a_file_that_comes_late_tells_what_it_knows(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        message = spool.commit(spool.intend(call(1)).id, EngineFacts("FAILED", "HANGUP", 0))
        (tmp_path / "receiving" / f"{message.id}.tif").write_bytes(FAX)
        assert spool.adopt().adopted == (message.id,)
        engine = spool.message(message.id).engine
        assert engine is not None
        assert (engine.status, engine.error, engine.pages) == ("FAILED", "HANGUP", 0)
        assert (engine.station, engine.ecm) == (b"+49 30 1", True)


def test_it_is_a_message_of_its_own_if_the_record_has_gone_on(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        message = spool.commit(spool.intend(call(1)).id, EngineFacts())
    (tmp_path / "receiving" / f"{message.id}.tif").write_bytes(pages(1))
    with death(tmp_path, FaultPoint.ADOPT_PLACED) as spool:
        spool.adopt()
    with opened(tmp_path) as spool:
        spool.address(message.id, ["a@example.org"])
        (further,) = spool.adopt().adopted
        late = spool.message(further)
        assert (late.related, late.call) == (message.id, call(1))
        assert content(spool, late) == pages(1)
    with opened(tmp_path) as spool:
        assert spool.adopt().adopted == ()


def test_what_is_received_after_the_clock_was_put_back_is_left(tmp_path: Path) -> None:
    intent = left(tmp_path)
    time, wall = Time(START + 1000), Time(START + 1000 - 3600)
    os.utime(intent.path, (wall.now, wall.now))
    with opened(tmp_path, time, wall=wall, quiet=60.0) as spool:
        assert spool.adopt().left == (intent.id,)
        time.now += 61
        wall.now += 61
        assert spool.adopt().adopted == (intent.id,)


def test_a_port_for_both_hears_a_fax(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        intent = spool.intend(CALL, "original.wav")
        again = spool.recast(intent.id, Kind.FAX, "original.tif")
        assert again.id == intent.id
        assert os.listdir(tmp_path / "receiving") == [Path(again.path).name]
        assert spool.message(intent.id).call.kind is Kind.FAX
        Path(again.path).write_bytes(FAX)
        message = spool.commit(intent.id, EngineFacts("SUCCESS", pages=2))
        assert content(spool, message) == FAX
        assert message.name == "original.tif"


@pytest.mark.parametrize("point", [FaultPoint.RECAST_RESERVED, FaultPoint.RECAST_DURABLE])
def test_death_at_a_recast_leaves_one_record_and_no_file(tmp_path: Path, point: FaultPoint) -> None:
    with opened(tmp_path) as spool:
        intent = spool.intend(CALL, "original.wav")
    with opened(tmp_path, faults=DiesAt(point)) as spool, pytest.raises(Death):
        spool.recast(intent.id, Kind.FAX, "original.tif")
    with opened(tmp_path) as spool:
        assert spool.adopt().adopted == (intent.id,)
        spool.adopt()
        assert [m.id for m in spool.messages()] == [intent.id]
        assert os.listdir(tmp_path / "receiving") == []
