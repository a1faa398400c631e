"""The journal: exact round trips, and nothing lost or silent when the disk or a process fails.

Run as a program, this file is the process that gets killed, filled up or shut out.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loguru import logger

from umpack import clock
from umpack.core.administration import Drain
from umpack.core.calls import Attempt, Call, CallId, CallRecord, Ending, PackTried, Reason
from umpack.core.causes import Blame, Elsewhere, Outcome, Result, Verdict
from umpack.core.channel import ChannelId
from umpack.core.errors import OurFault
from umpack.core.health_states import HealthMemory, HealthState
from umpack.core.pack import Exclusion, PackId
from umpack.core.trunk import PbxId, TrunkId
from umpack.journal import Archive, Fault, Journal, SavedState
from umpack.journal.rows import COLUMNS, loaded, loaded_json, row_of, stored, stored_json
from umpack.journal.schema import APPLICATION_ID, MIGRATIONS

ROOT = Path(__file__).parents[2]
NODE = "node1"
START = 1_700_000_000.0
DRAIN = Drain("line1:3", "eva", "echo\ud800", START, START + 60)
EJECTED = HealthMemory(
    TrunkId("um1"), HealthState.EJECTED, START, START + 30, 2, 3, "3× cause 41\ud800", 0.3, 0.0
)


def record(number: int, **changes: object) -> CallRecord:
    """The `number`th of a row of answered calls, one ending each second."""
    began = START + number
    attempt = Attempt(
        channel=ChannelId(f"um1:{number % 30 + 1}"),
        trunk=TrunkId("um1"),
        pack=PackId("um"),
        position=number % 30 + 1,
        after=ChannelId("um1:30") if number else None,
        passed_over=0,
        started=began + 0.1,
        ended=began + 30,
        outcome=Outcome(Result.ANSWERED, 16, 200, "OK"),
        verdict=Verdict(Elsewhere.NO, Blame.NOBODY, "answered"),
    )
    base = CallRecord(
        call=Call(CallId(f"c{number}"), PbxId("main"), "49302000123", "4930777", "Müller", "in"),
        offered=began,
        ended=began + 30,
        ending=Ending.CONNECTED,
        cause=16,
        why="answered",
        route="49302000XXX",
        attempts=(attempt,),
        passed_packs=(),
        exclusions=(),
        answered=began + 2,
        candidates=(PackId("um"), PackId("spare")),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def opened(path: Path, node: str = NODE, **more: Any) -> Journal:
    """A journal at whose time the calls above are not old yet."""
    return Journal(path, node, **{"now": lambda: START, **more})


def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    end = clock.monotonic() + seconds
    while not true():
        assert clock.monotonic() < end, "it never came true"
        time.sleep(0.01)


@contextmanager
def write_lock(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def pragma(path: Path, name: str) -> object:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with opened(path, linger=0.0) as fresh:
        yield fresh
    assert not [t for t in threading.enumerate() if t.name == "umpack-journal"]


# --- round trips ----------------------------------------------------------------------------

NASTY = ["", "\0", "a\0b", "\\", "\\0", "\\ud800", "\ud83d\ude00", "\ud800", "😀", "'\";--", "\n\r"]
texts = st.one_of(
    st.sampled_from(NASTY),
    st.text(st.characters(exclude_categories=()), max_size=12),
    st.text(alphabet="\\u0d8\0\ud800\udc00", max_size=12),
)
times = st.floats(allow_nan=False)
numbers = st.integers(-(2**63), 2**63 - 1)
exclusions = st.lists(st.builds(Exclusion, texts.map(TrunkId), numbers, texts), max_size=2).map(
    tuple
)
attempts = st.builds(
    Attempt,
    channel=texts.map(ChannelId),
    trunk=texts.map(TrunkId),
    pack=texts.map(PackId),
    position=numbers,
    after=st.none() | texts.map(ChannelId),
    passed_over=numbers,
    started=times,
    ended=times,
    outcome=st.builds(
        Outcome, st.sampled_from(Result), st.none() | numbers, st.none() | numbers, texts
    ),
    verdict=st.builds(Verdict, st.sampled_from(Elsewhere), st.sampled_from(Blame), texts),
)
records = st.builds(
    CallRecord,
    call=st.builds(Call, texts.map(CallId), texts.map(PbxId), texts, texts, texts, texts),
    offered=times,
    ended=times,
    ending=st.sampled_from(Ending),
    cause=numbers,
    why=texts,
    route=texts,
    attempts=st.lists(attempts, max_size=3).map(tuple),
    passed_packs=st.lists(
        st.builds(PackTried, texts.map(PackId), texts, exclusions), max_size=2
    ).map(tuple),
    exclusions=exclusions,
    reason=st.none() | st.sampled_from(Reason),
    answered=st.none() | times,
)


@given(texts)
@settings(deadline=None)
def test_any_text_is_stored_and_comes_back(text: str) -> None:
    cell = stored(text)
    assert "\0" not in cell
    cell.encode()
    assert loaded(cell) == text
    assert loaded_json(stored_json([text, {text: text}])) == [text, {text: text}]


@given(texts, texts)
@settings(deadline=None)
def test_different_texts_are_stored_differently(one: str, other: str) -> None:
    assert (stored(one) == stored(other)) == (one == other)


def test_ordinary_text_is_stored_as_it_is() -> None:
    assert stored('"Müller" 😀 <+4930>') == '"Müller" 😀 <+4930>'


def test_every_column_has_a_cell() -> None:
    assert len(row_of(record(0), NODE)) == len(COLUMNS)


@given(st.lists(records, min_size=1, max_size=5, unique_by=lambda r: r.call.id))
@settings(deadline=None, max_examples=60)
def test_a_record_comes_back_exactly(batch: list[CallRecord]) -> None:
    # Kept for ever, for the strategy's calls are of any age.
    with (
        tempfile.TemporaryDirectory() as folder,
        opened(Path(folder) / "j", linger=0.0, keep=float("inf")) as journal,
    ):
        journal.append(batch)
        journal.flush()
        for one in batch:
            assert journal.call(one.call.id) == one
            assert one in journal.calls(called=one.call.called, channel=one.channel)
        assert sum(journal.counts(float("-inf")).values()) == len(batch)
        assert journal.dropped == 0


def test_an_unknown_call_is_none(journal: Journal) -> None:
    assert journal.call(CallId("never")) is None


def test_a_channel_that_asked_twice_answers_with_the_latest(journal: Journal) -> None:
    first, again = record(1), record(1, offered=START + 99, why="second time")
    journal.append([again, first])
    journal.flush()
    assert journal.call(CallId("c1")) == again
    assert len(journal.calls()) == 2


# --- questions ------------------------------------------------------------------------------


def test_calls_are_found_by_what_they_were(journal: Journal) -> None:
    rows = [record(n) for n in range(40)]
    rows[7] = replace(rows[7], call=replace(rows[7].call, caller="*%_'"), ending=Ending.DECLINED)
    rows[8] = replace(rows[8], call=replace(rows[8].call, called="*"))
    journal.append(rows)
    journal.flush()
    newest_first = rows[::-1]
    assert journal.calls() == newest_first
    assert journal.calls(3) == newest_first[:3]
    assert journal.calls(0) == []
    assert journal.calls(-1) == []
    assert journal.calls(since=rows[10].ended, until=rows[13].ended) == rows[12:9:-1]
    assert journal.calls(caller="*%_'") == [rows[7]]
    assert journal.calls(called="*") == [rows[8]]
    assert journal.calls(ending=Ending.DECLINED) == [rows[7]]
    assert journal.calls(channel=ChannelId("um1:3")) == [rows[32], rows[2]]
    assert journal.calls(channel=ChannelId("um1:3"), until=rows[9].ended) == [rows[2]]
    assert journal.calls(caller="' OR 1=1 --") == []


def test_counts_name_every_ending(journal: Journal) -> None:
    journal.append([record(0), record(1), record(2, ending=Ending.REFUSED)])
    journal.flush()
    assert journal.counts() == {
        Ending.CONNECTED: 2, Ending.DECLINED: 0, Ending.REFUSED: 1, Ending.ABANDONED: 0,
        Ending.ADOPTED: 0, Ending.LEAKED: 0,
    }  # fmt: skip
    assert journal.counts(since=record(1).ended)[Ending.CONNECTED] == 1


def test_columns_can_be_searched_with_any_tool(journal: Journal) -> None:
    refused = record(
        1, attempts=(), passed_packs=(PackTried(PackId("um"), "full"),), reason=Reason.FULL
    )
    journal.append([record(0), refused])
    journal.flush()
    with closing(sqlite3.connect(journal.path)) as connection:
        rows = connection.execute(
            "SELECT node, pack, channel, reason, json_extract(attempts, '$[0].outcome.result') "
            "FROM calls ORDER BY offered"
        ).fetchall()
    assert rows == [
        (NODE, "um", "um1:1", None, "answered"), (NODE, "um", None, "full", None),
    ]  # fmt: skip


def test_a_reader_beside_the_writer_sees_whole_calls_and_ever_more(journal: Journal) -> None:
    rows = [record(n) for n in range(3000)]
    seen: list[int] = []
    wrong: list[object] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                seen.append(sum(journal.counts().values()))
                wrong.extend(r for r in journal.calls(20) if r != rows[int(r.offered - START)])
        except Exception as error:
            wrong.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for start in range(0, len(rows), 10):
        journal.append(rows[start : start + 10])
        time.sleep(0.001)
    journal.flush(30)
    until(lambda: wrong or (seen and seen[-1] == len(rows)))
    done.set()
    reader.join()
    assert wrong == []
    assert seen == sorted(seen)


def test_an_archive_reads_without_a_writer(path: Path) -> None:
    with opened(path) as journal:
        journal.append([record(0)])
    assert Archive(path, "other").call(CallId("c0")) == record(0)


def test_an_archive_of_nothing_says_so(path: Path) -> None:
    with pytest.raises(OurFault, match="unable to open"):
        Archive(path, NODE).calls()
    path.parent.mkdir()
    path.touch()
    with pytest.raises(OurFault, match="not brought up to this version"):
        Archive(path, NODE).counts()
    assert path.stat().st_size == 0


def test_a_row_of_another_making_is_an_error(journal: Journal) -> None:
    journal.append([record(0)])
    journal.flush()
    with closing(sqlite3.connect(journal.path)) as connection, connection:
        connection.execute("UPDATE calls SET ending = 'eaten'")
    with pytest.raises(OurFault, match="eaten"):
        journal.calls()


# --- state ----------------------------------------------------------------------------------


def test_a_fresh_journal_has_no_state(journal: Journal) -> None:
    assert journal.load_state() == SavedState({}, ())


@given(
    st.dictionaries(texts.map(PackId), texts.map(ChannelId), max_size=4),
    st.lists(
        st.builds(Drain, texts, texts, texts, times, st.none() | times),
        max_size=4,
        unique_by=lambda d: d.target,
    ),
    st.lists(
        st.builds(
            HealthMemory,
            texts.map(TrunkId),
            st.sampled_from(HealthState),
            times,
            times,
            numbers,
            numbers,
            texts,
            st.none() | st.floats(0, 1),
            st.none() | st.floats(0, 1),
        ),
        max_size=4,
        unique_by=lambda m: m.trunk,
    ),
)
@settings(deadline=None, max_examples=30)
def test_state_comes_back_exactly(
    pointers: dict[PackId, ChannelId], drains: list[Drain], trunks: list[HealthMemory]
) -> None:
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder) / "j") as journal:
        gone = replace(EJECTED, trunk=TrunkId("gone"))
        journal.save_state(
            {PackId("gone"): ChannelId("x:1")}, [replace(DRAIN, target="gone")], (gone,)
        )
        journal.save_state(pointers, drains, tuple(trunks), wait=True)
        state = journal.load_state()
    assert state.pointers == pointers
    assert sorted(state.drains, key=repr) == sorted(drains, key=repr)
    assert sorted(state.trunks, key=repr) == sorted(trunks, key=repr)


def trunk_rows_written(journal: Journal) -> int:
    """Counted by a trigger in the file itself."""
    with closing(sqlite3.connect(journal.path)) as connection:
        count: int = connection.execute("SELECT count(*) FROM written").fetchone()[0]
    return count


def test_trunks_that_did_not_change_are_not_written_again(journal: Journal) -> None:
    with closing(sqlite3.connect(journal.path)) as connection, connection:
        connection.execute("CREATE TABLE written (trunk)")
        connection.execute(
            "CREATE TRIGGER seen AFTER INSERT ON trunks "
            "BEGIN INSERT INTO written VALUES (new.trunk); END"
        )
    trunks = (EJECTED,)
    for n in range(3):
        journal.save_state({PackId("um"): ChannelId(f"um1:{n}")}, [], trunks, wait=True)
    assert trunk_rows_written(journal) == 1
    other = (replace(EJECTED, failures=4),)
    journal.save_state({}, [], other, wait=True)
    assert (trunk_rows_written(journal), journal.load_state().trunks) == (2, other)
    # Another file at the same place gets them, though they did not change.
    journal.path.rename(journal.path.with_name("kept"))
    journal.save_state({}, [], other, wait=True)
    assert journal.load_state().trunks == other


def test_trunks_written_in_vain_are_written_again(journal: Journal) -> None:
    with write_lock(journal.path):
        journal.save_state({}, [], (EJECTED,))
        until(lambda: journal.fault)
    journal.flush()
    assert journal.load_state().trunks == (EJECTED,)


@pytest.mark.parametrize(
    ("table", "column", "bad"),
    [
        ("trunks", "state", b"eaten"),
        ("trunks", "why", b"3 times \xff"),
        ("trunks", "times", b"two"),
        ("trunks", "since", b"x"),
        ("drains", "why", b"\xff"),
        ("drains", "until", b"soon"),
        ("pointers", "channel", b"\xff"),
    ],
)
def test_a_saved_value_gone_bad_is_forgotten_and_the_others_are_not(
    journal: Journal, table: str, column: str, bad: bytes
) -> None:
    pointers = {PackId("um"): ChannelId("um1:1"), PackId("z"): ChannelId("um1:2")}
    drains = [DRAIN, replace(DRAIN, target="z")]
    trunks = (EJECTED, replace(EJECTED, trunk=TrunkId("z")))
    journal.save_state(pointers, drains, trunks, wait=True)
    key = {"trunks": "trunk", "drains": "target", "pointers": "pack"}[table]
    with closing(sqlite3.connect(journal.path)) as connection, connection:
        connection.execute(
            f"UPDATE {table} SET {column} = CAST(? AS TEXT) WHERE {key} = 'z'",  # noqa: S608
            (bad,),
        )
    whole = SavedState(pointers, tuple(drains), trunks)
    left = {
        "trunks": replace(whole, trunks=(EJECTED,)),
        "drains": replace(whole, drains=(DRAIN,)),
        "pointers": replace(whole, pointers={PackId("um"): ChannelId("um1:1")}),
    }
    lines: list[str] = []
    sink = logger.add(lines.append, level="ERROR", format="{message}")
    assert journal.load_state() == left[table]
    logger.remove(sink)
    assert [f"a saved {table[:-1]} cannot be read" in line for line in lines] == [True]


def test_a_file_of_version_1_is_brought_up_and_loses_nothing(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in MIGRATIONS[0]:
            connection.execute(statement)
        connection.execute("PRAGMA user_version = 1")
        assert COLUMNS[-1] == "candidates"  # which version 3 has brought
        columns = ", ".join("?" * len(COLUMNS[:-1]))
        connection.execute(
            f"INSERT INTO calls ({', '.join(COLUMNS[:-1])}) VALUES ({columns})",  # noqa: S608
            row_of(record(7), NODE)[:-1],
        )
        connection.execute("INSERT INTO pointers VALUES (?, 'um', 'um1:8')", (NODE,))
        connection.execute(
            "INSERT INTO drains VALUES (?, 'um1', 'eva', 'noise', 1.0, NULL)", (NODE,)
        )
    with pytest.raises(OurFault, match="not brought up to this version"):
        Archive(path, NODE).load_state()
    pointers, drains = {PackId("um"): ChannelId("um1:8")}, (Drain("um1", "eva", "noise", 1.0),)
    with opened(path) as journal:
        assert pragma(path, "user_version") == len(MIGRATIONS)
        assert journal.moved_aside == ()
        assert journal.calls() == [record(7, candidates=())]
        assert journal.load_state() == SavedState(pointers, drains, ())
        journal.save_state(pointers, drains, (EJECTED,), wait=True)
    with opened(path) as journal:
        assert journal.load_state() == SavedState(pointers, drains, (EJECTED,))


def test_the_latest_state_wins_and_nodes_are_apart(path: Path) -> None:
    with opened(path, "a") as one, opened(path, "b") as other:
        for n in range(1, 2000):
            one.save_state({PackId("um"): ChannelId(f"um1:{n}")}, [])
        other.save_state({}, [DRAIN], wait=True)
        one.flush()
        assert one.load_state() == SavedState({PackId("um"): ChannelId("um1:1999")}, ())
        assert other.load_state() == SavedState({}, (DRAIN,))


def test_the_caller_may_change_its_state_afterwards(journal: Journal) -> None:
    pointers, drains = {PackId("um"): ChannelId("um1:1")}, [DRAIN]
    with write_lock(journal.path):
        journal.save_state(pointers, drains)
        pointers.clear()
        drains.clear()
    journal.flush()
    assert journal.load_state() == SavedState({PackId("um"): ChannelId("um1:1")}, (DRAIN,))


# --- trouble --------------------------------------------------------------------------------


def test_a_locked_file_is_a_fault_that_passes(journal: Journal) -> None:
    with write_lock(journal.path):
        journal.append([record(0)])
        with pytest.raises(OurFault, match="locked"):
            journal.save_state({}, [DRAIN], wait=True, within=2.5)
        assert isinstance(journal.fault, Fault)
        since = journal.fault.since
        assert "locked" in repr(journal)
        with pytest.raises(OurFault):
            journal.flush(1.5)
        assert journal.fault.since == since
        assert journal.waiting == 1
    journal.flush()
    until(lambda: journal.fault is None)
    assert journal.call(CallId("c0")) == record(0)
    assert journal.load_state().drains == (DRAIN,)


def test_what_finds_no_room_is_counted_and_the_rest_is_kept(path: Path) -> None:
    with opened(path, limit=10) as journal:
        with write_lock(path):
            journal.append([record(n) for n in range(4)])
            for n in range(4, 9):
                journal.append([record(n)])
            journal.append([record(n) for n in range(9, 20)])
            journal.append([])
            assert (journal.waiting, journal.dropped) == (10, 10)
        journal.flush()
        assert journal.calls() == [record(n) for n in range(9, -1, -1)]
        journal.append([record(20)])
        journal.flush()
        assert journal.counts()[Ending.CONNECTED] == 11
        assert journal.dropped == 10


def test_a_row_no_table_takes_does_not_stop_the_others(journal: Journal) -> None:
    journal.append([record(0), record(1, cause=2**70), record(2), record(3, offered=float("nan"))])
    journal.append([record(4, ending=None)])
    journal.flush()
    assert journal.calls() == [record(2), record(0)]
    assert (journal.waiting, journal.dropped, journal.fault) == (0, 3, None)


def test_closing_writes_what_is_left(path: Path) -> None:
    journal = opened(path, linger=60.0)
    journal.append([record(n) for n in range(5000)])
    assert journal.close(30.0) == 0
    assert journal.close() == 0
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    journal.append([record(0)])
    assert journal.dropped == 1
    assert Archive(path, NODE).counts()[Ending.CONNECTED] == 5000
    with pytest.raises(OurFault, match="closed"):
        journal.flush()
    with pytest.raises(OurFault, match="closed"):
        journal.save_state({}, [])


def test_closing_in_vain_says_how_much_is_lost(path: Path) -> None:
    journal = opened(path, linger=0.0)
    until(lambda: not journal.waiting)
    with write_lock(path):
        journal.append([record(0), record(1)])
        assert journal.close(0.3) == 2
        until(lambda: not [t for t in threading.enumerate() if t.name == "umpack-journal"])


def test_a_file_taken_away_is_begun_again(journal: Journal) -> None:
    journal.append([record(0)])
    journal.flush()
    journal.path.rename(journal.path.with_name("kept"))
    journal.append([record(1)])
    journal.flush()
    assert journal.calls() == [record(1)]


def test_a_damaged_file_is_moved_aside(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this was never a database " * 200)
    for n in (1, 2):
        with opened(path) as journal:
            assert [p.name for p in journal.moved_aside] == [
                "journal.db.corrupt-20231114T221320Z" + ("" if n == 1 else "-2")
            ]
            assert journal.moved_aside[0].read_bytes().startswith(b"this was never")
            journal.append([record(0)])
            journal.flush()
            assert journal.calls() == [record(0)]
        path.write_bytes(b"this was never a database " * 200)


def test_damage_inside_is_found_at_the_start(path: Path) -> None:
    with opened(path) as journal:
        journal.append([record(n) for n in range(500)])
    with path.open("r+b") as file:
        file.seek(4096 * 20)
        file.write(os.urandom(4096 * 5))
    with opened(path) as journal:
        assert len(journal.moved_aside) == 1
        assert sum(journal.counts().values()) == 0


def test_damage_a_reader_meets_is_moved_aside_under_way(path: Path) -> None:
    with opened(path) as journal:
        journal.append([record(n) for n in range(500)])
    with opened(path, linger=0.0) as journal:
        journal.flush()
        assert journal.moved_aside == ()
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(os.urandom(path.stat().st_size - 4096))
        with pytest.raises(OurFault, match="malformed"):
            journal.calls()
        until(lambda: journal.moved_aside)
        journal.append([record(0)])
        journal.flush()
        assert journal.calls() == [record(0)]


def test_a_newer_file_is_left_alone(path: Path) -> None:
    with opened(path) as journal:
        journal.append([record(0)])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(OurFault, match="newer umpack"):
        opened(path)
    with pytest.raises(OurFault, match="newer umpack"):
        Archive(path, NODE).calls()


def test_another_programs_database_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE cdr (id)")
    before = path.read_bytes()
    with pytest.raises(OurFault, match="another program's"):
        opened(path)
    assert path.read_bytes() == before


def test_a_fresh_file_is_what_it_should_be(journal: Journal) -> None:
    assert pragma(journal.path, "user_version") == len(MIGRATIONS)
    assert pragma(journal.path, "application_id") == APPLICATION_ID
    assert pragma(journal.path, "journal_mode") == "wal"
    assert pragma(journal.path, "auto_vacuum") == 2
    assert journal.path.stat().st_mode & 0o007 == 0


@pytest.mark.parametrize("below", ["a file/journal.db", "a file/deeper/journal.db"])
def test_a_path_that_cannot_be_is_an_error(tmp_path: Path, below: str) -> None:
    (tmp_path / "a file").touch()
    with pytest.raises(OurFault, match=r"Not a directory|File exists"):
        opened(tmp_path / below)


# --- retention ------------------------------------------------------------------------------


def test_old_calls_go_and_the_file_shrinks(path: Path) -> None:
    with opened(path) as journal:
        journal.append([record(n) for n in range(3000)])
    full = path.stat().st_size
    with opened(path, now=lambda: START + 10_000, keep=10_000 - 2995) as journal:
        until(lambda: sum(journal.counts().values()) == 35)
        assert journal.calls(1) == [record(2999)]
    assert path.stat().st_size < full / 10
    assert pragma(path, "freelist_count") == 0


def nudged_until(journal: Journal, left: int) -> None:
    """The writer's wait is in real time; a flush makes it look at its clock."""

    def swept() -> bool:
        journal.flush()
        return len(journal.calls()) == left

    until(swept)


def test_it_is_swept_hourly(path: Path) -> None:
    now = START
    with opened(path, now=lambda: now, keep=86_400, linger=0.0) as journal:
        journal.append([record(0)])
        journal.flush()
        now += 86_400 + 31
        nudged_until(journal, 0)
        journal.append([record(1), record(7200)])
        journal.flush()
        now += 60
        for _ in range(20):
            journal.flush()
        assert len(journal.calls()) == 2
        now += 3600
        nudged_until(journal, 1)


# --- other processes ------------------------------------------------------------------------


def child(role: str, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, role, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def write_for_ever(path: Path) -> None:
    journal = opened(path, linger=0.0)
    done = 0
    while True:
        journal.append([record(n) for n in range(done, done + 50)])
        done += 50
        drain = replace(DRAIN, since=float(done))
        journal.save_state({PackId("um"): ChannelId(f"um1:{done}")}, [drain], wait=True)
        print(done, flush=True)


def fill_the_disk(path: Path) -> None:
    """The process may not make files longer than 256 KiB; later it may."""
    journal = opened(path, linger=0.0)
    journal.append([record(0)])
    journal.flush()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 10, hard))
    journal.append([record(n) for n in range(1, 3000)])
    with pytest.raises(OurFault, match="SQLITE_"):
        journal.flush(2.0)
    assert journal.fault is not None
    assert journal.waiting == 2999
    assert journal.calls() == [record(0)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    journal.flush()
    until(lambda: journal.fault is None)
    assert journal.counts()[Ending.CONNECTED] == 3000
    assert journal.close() == 0
    print("recovered", flush=True)


def write_where_forbidden(path: Path) -> None:
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        opened(path)
    except OurFault as error:
        print(error, flush=True)


@pytest.mark.parametrize("lines", [1, 7, 15])
def test_a_killed_process_leaves_all_it_had_flushed(path: Path, lines: int) -> None:
    with child("write", path) as process:
        assert process.stdout is not None
        done = 0
        for _ in range(lines):
            done = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        done = max([done, *(int(line) for line in process.stdout if line.endswith("\n"))])
    assert process.returncode == -signal.SIGKILL
    with opened(path) as journal:
        assert journal.moved_aside == ()
        assert pragma(path, "integrity_check") == "ok"
        found = journal.calls(1_000_000)
        assert len(found) >= done
        assert found == [record(n) for n in range(len(found) - 1, -1, -1)]
        assert journal.load_state().drains[0].since >= done


def test_a_full_disk_is_a_fault_that_passes(path: Path) -> None:
    with child("fill", path) as process:
        assert process.communicate(timeout=50)[0] == "recovered\n"


def test_a_directory_that_is_not_ours_is_an_error() -> None:
    # Not below tmp_path, whose parents keep other users out altogether.
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o555)
        for below in ("journal.db", "new/journal.db"):
            with child("forbidden", folder / below) as process:
                answer = process.communicate(timeout=50)[0]
            assert answer == f"journal {folder / below}: Permission denied\n"
    finally:
        folder.chmod(0o700)
        shutil.rmtree(folder)


if __name__ == "__main__":
    {"write": write_for_ever, "fill": fill_the_disk, "forbidden": write_where_forbidden}[
        sys.argv[1]
    ](Path(sys.argv[2]))
