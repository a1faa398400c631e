"""The spool: receptions, adoption, deliveries, decisions, retention, and disks that fail."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sqlite3
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.daemons import logged
from tests.unit.messages.receptions import (
    CALL,
    ENGINE,
    START,
    Time,
    call,
    content,
    opened,
    pages,
    received,
)
from umpack.core.calls import CallId
from umpack.core.errors import LeaseError, OurFault, StateError
from umpack.messages.disk_spool import DiskSpool
from umpack.messages.fault_points import FaultPoint, FaultPoints
from umpack.messages.message import (
    Decision,
    DocumentFacts,
    EngineFacts,
    Form,
    Intent,
    Kind,
    Message,
    MessageId,
    MessageIds,
    home,
)
from umpack.messages.records import UnknownMessage
from umpack.messages.spool import Spool
from umpack.messages.spool_archive import SpoolArchive
from umpack.messages.spool_health import SpoolLimits
from umpack.messages.spool_schema import SpoolFault
from umpack.messages.states import MessageState, RecipientState
from umpack.messages.store import MessageStore

A, B, C = "a@example.org", "b@example.org", "c@example.org"


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def spool(tmp_path: Path, time: Time) -> Iterator[DiskSpool]:
    with opened(tmp_path, time) as spool:
        yield spool


# -- reception ----------------------------------------------------------------------------------


def test_an_intent_is_durable_and_its_file_reserved(spool: DiskSpool) -> None:
    intent = spool.intend(CALL)
    path = Path(intent.path)
    assert (path.parent, path.suffix, path.stat().st_size) == (
        spool.directory / "receiving", ".tif", 0
    )  # fmt: skip
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o2770
    message = spool.message(intent.id)
    assert (message.state, message.call) == (MessageState.RECEIVING, CALL)
    assert spool.open_calls().without_message == (message,)


def test_a_commit_keeps_every_byte_and_every_fact(spool: DiskSpool, time: Time) -> None:
    intent = spool.intend(CALL)
    Path(intent.path).write_bytes(pages(1))
    time.now += 61.5
    message = spool.commit(intent.id, ENGINE)
    assert content(spool, message) == pages(1)
    assert message == spool.message(intent.id)
    assert (message.state, message.call, message.engine) == (MessageState.COMMITTED, CALL, ENGINE)
    assert message.message_id == f"<{intent.id}@fax.example.org>"
    assert (message.started, message.committed, message.date) == (START, time.now, START + 61)
    assert message.original is not None
    assert message.original.file == f"messages/2023/11/{intent.id}/original.tif"
    assert not Path(intent.path).exists()
    assert repr(message) == f"<fax {intent.id}: committed>"


def test_every_step_answers_what_is_in_the_spool_then(spool: DiskSpool, time: Time) -> None:
    first = received(spool)
    intent = spool.intend(CALL)
    Path(intent.path).write_bytes(pages(1))
    time.now += 1.5
    steps = [spool.commit(intent.id, ENGINE)]
    there = [spool.message(intent.id)]
    document = DocumentFacts(2, 2, 7, ("aa", "bb"), "page 1: bad rows (7)")
    for related in (first.id, None):
        steps.append(spool.describe(intent.id, document, related))
        there.append(spool.message(intent.id))
    time.now += 1.5
    steps.append(spool.address(intent.id, [A, B, A], {B: Form("de", "both")}))
    there.append(spool.message(intent.id))
    held = spool.claim(intent.id, 2, time.now)
    steps.append(held.message)
    there.append(spool.message(intent.id))
    assert steps == there
    assert held.recipient == there[-1].recipients[1]
    assert there[-1].related == first.id


def test_committing_again_changes_nothing(spool: DiskSpool, time: Time) -> None:
    first = received(spool)
    time.now += 5
    assert spool.commit(first.id, EngineFacts("FAILED")) == first


@pytest.mark.parametrize("touched", ["empty", "removed"])
def test_an_empty_reception_is_a_record_without_a_file(spool: DiskSpool, touched: str) -> None:
    intent = spool.intend(CALL)
    if touched == "removed":
        os.unlink(intent.path)
    message = spool.commit(intent.id, EngineFacts("FAILED", "no fax", 0))
    assert (message.state, message.original) == (MessageState.COMMITTED, None)
    assert os.listdir(spool.directory / "receiving") == []
    assert spool.unaddressed() == [message]
    closed = spool.decide(message.id, "rule: empty calls", Decision.DISCARD)
    assert closed.state is MessageState.DECIDED
    assert spool.open_calls().without_end == ()


def test_voice_keeps_its_name(spool: DiskSpool) -> None:
    intent = spool.intend(replace(CALL, kind=Kind.VOICE), "original.wav")
    assert intent.path.endswith(".wav")
    Path(intent.path).write_bytes(b"RIFF")
    message = spool.commit(intent.id, ENGINE)
    assert message.original is not None
    assert message.original.file.endswith("/original.wav")


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".tif", "x\0", "x.tif\n", "a" * 40])
def test_a_name_that_could_leave_the_directory_is_refused(spool: DiskSpool, name: str) -> None:
    with pytest.raises(OurFault, match="not a name"):
        spool.intend(CALL, name)


def test_ids_differ_across_nodes_clock_steps_and_restarts() -> None:
    made = [MessageIds(node).new(now) for node in ("a", "a", "b") for now in (START,) * 500]
    assert len(set(made)) == len(made)
    odd = MessageIds("../Köln 1\n").new(START)
    assert home(odd) == f"2023/11/{odd}"
    assert "/" not in odd
    with pytest.raises(ValueError, match="no message id"):
        home(MessageId("../../etc"))


def test_an_engine_that_leaves_a_link_is_not_followed(spool: DiskSpool, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    intent = spool.intend(CALL)
    os.unlink(intent.path)
    os.symlink(secret, intent.path)
    message = spool.commit(intent.id, ENGINE)
    assert message.original is None
    assert secret.read_text() == "secret"
    assert spool.adopt().strangers == (Path(intent.path).name,)


def test_an_unknown_message_is_said_to_be_one(spool: DiskSpool) -> None:
    with pytest.raises(UnknownMessage):
        spool.message(MessageId("x"))
    with pytest.raises(UnknownMessage):
        spool.commit(MessageId("x"), ENGINE)
    with pytest.raises(UnknownMessage):
        spool.address(MessageId("x"), [A])


# -- adoption -----------------------------------------------------------------------------------


def test_what_a_dead_process_left_is_adopted(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        half, empty = spool.intend(call(1)), spool.intend(call(2))
        Path(half.path).write_bytes(pages(1)[:777])
    (tmp_path / "receiving" / "stray.TIF").write_bytes(pages(3))
    (tmp_path / "receiving" / "stray.wav").write_bytes(pages(4))
    (tmp_path / "receiving" / "nothing.tif").touch()
    (tmp_path / "receiving" / "folder").mkdir()
    with opened(tmp_path) as spool:
        found = spool.adopt()
        assert found.strangers == ("folder",)
        assert len(found.adopted) == 5
        message = spool.message(half.id)
        assert content(spool, message) == pages(1)[:777]
        assert (message.call, message.engine) == (call(1), EngineFacts())
        assert message.adopted == "its call's end was not seen"
        assert spool.message(empty.id).original is None
        others = [m for m in spool.unaddressed() if m.id not in (half.id, empty.id)]
        assert {(m.call.kind, m.original and content(spool, m)) for m in others} == {
            (Kind.FAX, pages(3)), (Kind.VOICE, pages(4)), (Kind.FAX, None)
        }  # fmt: skip
        assert {m.adopted for m in others} == {
            f"a file without a record: {name}" for name in ("stray.TIF", "stray.wav", "nothing.tif")
        }
        assert os.listdir(tmp_path / "receiving") == ["folder"]
        assert spool.adopt().adopted == ()
        assert [entry.what for entry in spool.audit(half.id)] == ["adopt"]


def test_receptions_of_this_process_are_not_adopted(spool: DiskSpool) -> None:
    intent = spool.intend(CALL)
    Path(intent.path).write_bytes(pages(1))
    assert spool.adopt().adopted == ()
    assert spool.commit(intent.id, ENGINE).adopted == ""


def test_a_call_that_outlives_umpack_is_left_until_it_is_over(tmp_path: Path) -> None:
    """Tried on Asterisk 22: ReceiveFAX goes on to its end when the AGI server is gone."""
    with opened(tmp_path) as spool:
        intent = spool.intend(CALL)
    engine = open(intent.path, "wb")  # noqa: SIM115 - as another process has it
    engine.write(pages(1)[:4000])
    engine.flush()
    with opened(tmp_path) as spool:
        left = spool.adopt()
        assert (left.adopted, left.left) == ((), (intent.id,))
        engine.write(pages(1)[4000:])
        engine.close()
        assert spool.adopt(alive={CALL.call}).adopted == ()
        assert spool.adopt().adopted == (intent.id,)
        assert content(spool, spool.message(intent.id)) == pages(1)


def test_a_file_that_changed_lately_is_left(tmp_path: Path) -> None:
    stray = tmp_path / "receiving" / "stray.tif"
    with opened(tmp_path) as spool:
        intent = spool.intend(CALL)
    stray.write_bytes(pages(1))
    os.utime(stray, (START, START))
    time = Time(START + 59)
    with opened(tmp_path, time, quiet=60.0) as spool:
        assert set(spool.adopt().left) == {intent.id, "stray.tif"}
        os.utime(intent.path, (START, START))
        time.now += 2
        assert len(spool.adopt().adopted) == 2


def test_a_file_that_comes_after_its_record_is_attached_or_a_message(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        first, second = (spool.commit(spool.intend(call(n)).id, ENGINE) for n in (1, 2))
        spool.address(second.id, [A])
        for number, message in enumerate((first, second)):
            (tmp_path / "receiving" / f"{message.id}.tif").write_bytes(pages(number))
        attached, further = spool.adopt().adopted
        assert attached == first.id
        assert content(spool, spool.message(first.id)) == pages(0)
        late = spool.message(further)
        assert (late.related, late.call, content(spool, late)) == (second.id, call(2), pages(1))
        assert spool.adopt().adopted == ()


def test_a_lost_database_costs_facts_but_no_fax(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        message = received(spool)
    for file in tmp_path.glob("spool.db*"):
        file.unlink()
    with opened(tmp_path) as spool:
        assert spool.adopt().adopted == (message.id,)
        again = spool.message(message.id)
        assert content(spool, again) == pages(1)
        assert again.message_id == message.message_id


def test_a_damaged_database_is_moved_aside_and_its_rows_saved(tmp_path: Path) -> None:
    messages = damaged(tmp_path)
    with opened(tmp_path) as spool:
        assert spool.moved_aside is not None
        assert spool.moved_aside.exists()
        all_are_there(spool, messages)


def test_what_is_saved_is_all_or_nothing(tmp_path: Path) -> None:
    messages = damaged(tmp_path)
    before = (tmp_path / "spool.db").read_bytes()
    room = len(before) * 2 // 3
    with no_file_may_grow(tmp_path, room), pytest.raises(SpoolFault):
        opened(tmp_path)
    # What was saved of it would else be taken for all, and the other originals for new messages.
    assert (tmp_path / "spool.db").read_bytes() == before
    with opened(tmp_path) as spool:
        all_are_there(spool, messages)


def test_a_damaged_name_of_a_column_costs_the_column_only(tmp_path: Path) -> None:
    messages = damaged(tmp_path)
    rename_column(tmp_path, b"pueue_id")
    with opened(tmp_path) as spool:  # and not: it is tried, and refused, for ever
        all_are_there(spool, messages)


def test_a_name_of_a_column_that_is_no_text_costs_its_table_only(tmp_path: Path) -> None:
    messages = damaged(tmp_path)
    rename_column(tmp_path, b"\xf5ueue_id")
    with opened(tmp_path) as spool:
        assert sorted(m.id for m in spool.unaddressed()) == sorted(m.id for m in messages)


def rename_column(directory: Path, name: bytes) -> None:
    path = directory / "spool.db"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"queue_id TEXT", name + b" TEXT", 1))


def test_who_has_lost_all_recipients_is_addressed_anew(tmp_path: Path, time: Time) -> None:
    messages = damaged(tmp_path)
    with opened(tmp_path) as spool:
        spool.sent(spool.claim(messages[1].id, 1, time()), time(), "mx", "250 ok")
        spool.decide(messages[2].id, "root", Decision.DISCARD)
    for message in messages[:3]:
        lose(tmp_path, "recipients WHERE message = ?", message.id)
    damage(tmp_path)
    with opened(tmp_path) as spool:
        assert [message.id for message in spool.unaddressed()] == [messages[0].id]
        spool.address(messages[0].id, [B])
        assert spool.claim(messages[0].id, 1, time()).recipient.address == B


@pytest.mark.parametrize("moved", [False, True])
def test_death_when_all_was_saved(tmp_path: Path, moved: bool) -> None:
    messages = damaged(tmp_path)
    with opened(tmp_path) as spool:
        aside = spool.moved_aside
    assert aside is not None
    (tmp_path / "spool.db").rename(tmp_path / "spool.db.saved")
    if not moved:
        aside.rename(tmp_path / "spool.db")
    with opened(tmp_path) as spool:
        all_are_there(spool, messages)
        with closing(sqlite3.connect(spool.path)) as db:
            assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert not (tmp_path / "spool.db.saved").exists()


def damaged(directory: Path) -> list[Message]:
    """A spool of 40 messages, an index of which is lost."""
    with opened(directory) as spool:
        messages = [received(spool, n) for n in range(40)]
        for message in messages:
            spool.address(message.id, [A])
    damage(directory)
    return messages


def damage(directory: Path) -> None:
    path = directory / "spool.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        root, size = (
            db.execute(sql).fetchone()[0]
            for sql in (
                "SELECT rootpage FROM sqlite_schema WHERE name = 'messages_caller'",
                "PRAGMA page_size",
            )
        )
    with open(path, "r+b") as file:
        file.seek((root - 1) * size)
        file.write(os.urandom(size))


def all_are_there(spool: DiskSpool, messages: list[Message]) -> None:
    assert spool.adopt().adopted == ()
    assert sorted(m.id for m in spool.messages()) == sorted(m.id for m in messages)
    for message in messages:
        assert content(spool, spool.message(message.id)) == content(spool, message)
        assert spool.message(message.id).state is MessageState.QUEUED


def test_a_delivery_under_way_outlives_the_row_of_its_message(tmp_path: Path, time: Time) -> None:
    with opened(tmp_path, time) as spool:
        message = received(spool)
        spool.address(message.id, [A])
        spool.claim(message.id, 1, time())
    lose(tmp_path, "messages WHERE id = ?", message.id)
    with opened(tmp_path, time) as spool:  # and not: no calls are taken until somebody mends it
        assert spool.adopt().adopted == (message.id,)
        (delivery,) = spool.due(time(), 10)
        assert delivery.recipient.state is RecipientState.AMBIGUOUS
        assert (delivery.recipient.address, delivery.recipient.message_id) == (
            A, message.message_id
        )  # fmt: skip
        assert content(spool, delivery.message) == pages(1)


def test_recipients_are_known_by_their_numbers_where_rows_are_lost(
    tmp_path: Path, time: Time
) -> None:
    with opened(tmp_path, time) as spool:
        message = received(spool)
        spool.address(message.id, [A, B, C])
    lose(tmp_path, "recipients WHERE message = ? AND number = 1", message.id)
    with opened(tmp_path, time) as spool:
        due = [(one.recipient.number, one.recipient.address) for one in spool.due(time(), 10)]
        assert due == [(2, B), (3, C)]
        delivery = spool.claim(message.id, 2, time())
        assert delivery.recipient.address == B
        with pytest.raises(StateError, match=r"no recipient no\. 1"):
            spool.claim(message.id, 1, time())
        spool.sent(delivery, time(), "mx", "250 ok")
        spool.decide(message.id, "root", Decision.FORWARD, addresses=[A])
        numbers = {one.number: one.address for one in spool.message(message.id).recipients}
        assert numbers == {2: B, 3: C, 4: A}


def test_a_spool_that_cannot_be_written_leaves_nothing_open_or_running(tmp_path: Path) -> None:
    opened(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "spool.db")) as db:
        db.execute("DROP TABLE recipients")
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):  # the daemon tries again every few seconds, for as long as it takes
        with pytest.raises(SpoolFault, match="no such table"):
            opened(tmp_path)
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


def lose(directory: Path, rows: str, id_: MessageId) -> None:
    """As when a damaged file was saved but for some rows."""
    with closing(sqlite3.connect(directory / "spool.db")) as db, db:
        assert db.execute(f"DELETE FROM {rows}", (id_,)).rowcount == 1  # noqa: S608 - our own


def test_another_programs_database_is_not_touched(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "spool.db")) as db:
        db.execute("CREATE TABLE theirs (x)")
    with pytest.raises(SpoolFault, match="another program's"):
        opened(tmp_path)


def test_a_newer_schema_is_not_touched(tmp_path: Path) -> None:
    opened(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "spool.db")) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(SpoolFault, match="newer umpack"):
        opened(tmp_path)


def test_one_process_has_the_spool(spool: DiskSpool) -> None:
    with pytest.raises(SpoolFault, match="in use by another"):
        opened(spool.directory)


# -- deliveries ---------------------------------------------------------------------------------


def test_three_recipients_come_to_three_ends(spool: DiskSpool, time: Time) -> None:
    message = received(spool)
    spool.address(message.id, [A, B, C, A])
    one, two, three = (
        spool.claim(d.message.id, d.recipient.number, time.now) for d in spool.due(time.now)
    )
    assert spool.message(message.id).state is MessageState.SENDING
    spool.sent(one, time.now, "mx1", "250 2.0.0 queued as 4XY", "4XY")
    spool.failed(two, time.now, time.now + 30, "451 later", "mx1")
    spool.refused(three, time.now, "550 no such user", "mx1")
    message = spool.message(message.id)
    assert [r.state for r in message.recipients] == [
        RecipientState.DELIVERED, RecipientState.RETRY, RecipientState.DEAD_LETTER
    ]  # fmt: skip
    assert message.state is MessageState.PARTIAL
    first = message.recipients[0]
    assert (first.server, first.reply, first.queue_id) == ("mx1", "250 2.0.0 queued as 4XY", "4XY")
    assert {r.message_id for r in message.recipients} == {message.message_id}
    assert spool.due(time.now) == []
    assert spool.next_due() == time.now + 30
    time.now += 30
    (again,) = spool.due(time.now)
    spool.sent(spool.claim(message.id, again.recipient.number, time.now), time.now, "mx2", "250")
    assert spool.message(message.id).state is MessageState.PARTIAL
    spool.decide(message.id, "eva", Decision.DISCARD, why="left the firm")
    message = spool.message(message.id)
    assert (message.state, message.ended) == (MessageState.DELIVERED, time.now)
    assert message.recipients[2].decided is not None
    assert message.recipients[2].decided.by == "eva"
    (entry,) = spool.audit(message.id)
    assert (entry.who, entry.what, entry.detail) == ("eva", "discard", "all; left the firm")


def test_a_delivery_is_claimed_once_and_ended_once(spool: DiskSpool, time: Time) -> None:
    message = received(spool)
    spool.address(message.id, [A])
    held = spool.claim(message.id, 1, time.now)
    with pytest.raises(StateError):
        spool.claim(message.id, 1, time.now)
    with pytest.raises(LeaseError):
        spool.sent(replace(held, token=held.token[::-1]), time.now, "mx", "250")
    with pytest.raises(LeaseError):
        spool.sent(replace(held, token=""), time.now, "mx", "250")
    spool.failed(held, time.now, time.now + 60, "451")
    with pytest.raises(LeaseError):
        spool.sent(held, time.now, "mx", "250")
    with pytest.raises(StateError, match="not due"):
        spool.claim(message.id, 1, time.now + 59)
    assert spool.message(message.id).recipients[0].tries == 1
    with pytest.raises(StateError, match="no recipient"):
        spool.claim(message.id, 2, time.now)


def test_a_sender_that_gives_it_back_has_not_tried(spool: DiskSpool, time: Time) -> None:
    message = received(spool)
    spool.address(message.id, [A])
    spool.released(spool.claim(message.id, 1, time.now), time.now)
    (again,) = spool.due(time.now)
    assert (again.recipient.state, again.recipient.tries) == (RecipientState.QUEUED, 0)


def test_death_while_sending_is_an_end_in_doubt_with_the_same_id(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        message = received(spool)
        spool.address(message.id, [A])
        held = spool.claim(message.id, 1, START)
        spool.uncertain(held, START, START, "no answer after the final dot", "mx1")
        spool.claim(message.id, 1, START)
    with opened(tmp_path) as spool:
        (due,) = spool.due(START)
        found = due.recipient
        assert found.state is RecipientState.AMBIGUOUS
        assert (found.doubts, found.tries, found.server) == (2, 2, "mx1")
        assert (found.message_id, found.date) == (message.message_id, message.date)
        assert spool.message(message.id).state is MessageState.AMBIGUOUS


def test_due_is_in_order_of_age_whatever_was_tried_before(spool: DiskSpool, time: Time) -> None:
    messages = []
    for number in range(5):
        time.now += 1
        messages.append(received(spool, number))
    for message in reversed(messages):
        spool.address(message.id, [A, B])
    spool.failed(spool.claim(messages[1].id, 1, time.now), time.now, time.now + 10, "451")
    time.now += 10
    order = [(d.message.id, d.recipient.number) for d in spool.due(time.now)]
    assert order == [(m.id, n) for m in messages for n in (1, 2)]
    assert len(spool.due(time.now, limit=3)) == 3


def test_a_retry_set_by_a_wrong_clock_is_not_waited_for(spool: DiskSpool, time: Time) -> None:
    message = received(spool)
    spool.address(message.id, [A])
    spool.failed(spool.claim(message.id, 1, time.now), time.now, time.now + 10 * 86400, "451")
    assert [d.message.id for d in spool.due(time.now)] == [message.id]
    assert spool.claim(message.id, 1, time.now).token


def test_expired_and_bounced_are_dead_letters(spool: DiskSpool, time: Time) -> None:
    message = received(spool)
    spool.address(message.id, [A, B])
    spool.sent(spool.claim(message.id, 1, time.now), time.now, "mx", "250")
    spool.bounced(message.id, 1, time.now, "mailbox gone")
    spool.expired(message.id, 2, time.now, "5 days")
    message = spool.message(message.id)
    assert (message.state, message.ended) == (MessageState.DEAD_LETTER, None)
    assert [r.why for r in message.recipients] == ["mailbox gone", "5 days"]
    assert spool.health(time.now).dead_letters == 2


# -- decisions ----------------------------------------------------------------------------------


def dead_letter(spool: DiskSpool, time: Time) -> MessageId:
    message = received(spool)
    spool.address(message.id, [A])
    spool.refused(spool.claim(message.id, 1, time.now), time.now, "550", "mx")
    return message.id


def test_retry_queues_it_again_under_its_own_id(spool: DiskSpool, time: Time) -> None:
    id_ = dead_letter(spool, time)
    message = spool.decide(id_, "eva", Decision.RETRY)
    assert message.state is MessageState.QUEUED
    assert spool.due(time.now)[0].recipient.message_id == message.message_id
    spool.sent(spool.claim(id_, 1, time.now), time.now, "mx", "250")
    with pytest.raises(StateError, match="nothing to try again"):
        spool.decide(id_, "eva", Decision.RETRY)


def test_forward_is_another_mail_with_another_id(spool: DiskSpool, time: Time) -> None:
    id_ = dead_letter(spool, time)
    time.now += 100
    message = spool.decide(id_, "eva", Decision.FORWARD, addresses=[B, C])
    old, *new = message.recipients
    assert old.state is RecipientState.DECIDED
    assert [(r.address, r.edition, r.state) for r in new] == [
        (B, 2, RecipientState.QUEUED), (C, 2, RecipientState.QUEUED)
    ]  # fmt: skip
    assert {r.message_id for r in new} == {f"<{id_}.2@fax.example.org>"}
    assert {r.date for r in new} == {time.now}
    with pytest.raises(StateError, match="nobody"):
        spool.decide(id_, "eva", Decision.FORWARD)


def test_resend_goes_to_the_same_people_with_another_id(spool: DiskSpool, time: Time) -> None:
    message = received(spool)
    with pytest.raises(StateError, match="nobody yet"):
        spool.decide(message.id, "eva", Decision.RESEND)
    spool.address(message.id, [A, B])
    spool.sent(spool.claim(message.id, 1, time.now), time.now, "mx", "250")
    message = spool.decide(message.id, "eva", Decision.RESEND)
    assert [(r.address, r.state.value) for r in message.recipients] == [
        (A, "delivered"), (B, "decided"), (A, "queued"), (B, "queued")
    ]  # fmt: skip
    message = spool.decide(message.id, "eva", Decision.RESEND, number=1)
    assert [(r.address, r.edition) for r in message.recipients[4:]] == [(A, 3)]
    assert len({r.message_id for r in message.recipients}) == 3


def test_nothing_is_decided_while_it_is_sent_or_received(spool: DiskSpool, time: Time) -> None:
    intent = spool.intend(CALL)
    with pytest.raises(StateError, match="still being received"):
        spool.decide(intent.id, "eva", Decision.DISCARD)
    message = received(spool)
    spool.address(message.id, [A, B])
    spool.claim(message.id, 2, time.now)
    before = spool.message(message.id)
    with pytest.raises(StateError):
        spool.decide(message.id, "eva", Decision.DISCARD)
    assert spool.message(message.id) == before
    assert spool.audit(message.id) == []
    spool.decide(message.id, "eva", Decision.DISCARD, number=1)
    with pytest.raises(StateError, match="decided already"):
        spool.decide(message.id, "eva", Decision.DISCARD, number=1)


def test_facts_of_the_document_and_relations_are_kept(spool: DiskSpool) -> None:
    first, second = received(spool, 1), received(spool, 2)
    document = DocumentFacts(2, 1, 17, ("ab", "cd"), "page 2 cannot be read")
    spool.describe(second.id, document, first.id)
    spool.describe(second.id, document)
    message = spool.message(second.id)
    assert (message.document, message.related) == (document, first.id)
    spool.log("eva", "looked", second.id, "why\0\ud800")
    assert spool.audit()[0].detail == "why\0\ud800"


def test_messages_are_found_by_number_time_and_state(spool: DiskSpool, time: Time) -> None:
    first = received(spool, 1)
    time.now += 10
    second = received(spool, 2)
    assert [m.id for m in spool.messages()] == [second.id, first.id]
    assert [m.id for m in spool.messages(number="49301")] == [first.id]
    assert len(spool.messages(number="49302000123")) == 2
    assert [m.id for m in spool.messages(caller="49302", called="49302000123")] == [second.id]
    assert [m.id for m in spool.messages(until=START + 1)] == [first.id]
    assert [m.id for m in spool.messages(since=START + 1)] == [second.id]
    assert spool.messages(state=MessageState.QUEUED) == []
    assert spool.messages(number="%") == []


# -- retention ----------------------------------------------------------------------------------


def test_retention_counts_from_the_end_and_spares_what_has_none(
    spool: DiskSpool, time: Time
) -> None:
    delivered, waiting, dead = received(spool, 1), received(spool, 2), dead_letter(spool, time)
    spool.address(delivered.id, [A, B])
    spool.address(waiting.id, [A])
    doubtful = received(spool, 4)
    spool.address(doubtful.id, [A])
    spool.uncertain(spool.claim(doubtful.id, 1, START), START, START + 60, "?", "mx")
    spool.sent(spool.claim(delivered.id, 1, START), START, "mx", "250")
    time.now += 1000
    assert spool.purge(500, 2000) == 0
    spool.sent(spool.claim(delivered.id, 2, time.now), time.now, "mx", "250")
    time.now += 499
    assert spool.purge(500, 2000) == 0
    time.now += 2
    assert spool.purge(500, 2000) == 1
    message = spool.message(delivered.id)
    assert message.purged == time.now
    assert message.original is not None
    assert not (spool.directory / message.original.file).parent.exists()
    with pytest.raises(StateError, match="deleted"):
        spool.decide(delivered.id, "eva", Decision.RESEND)
    time.now += 10**6
    assert spool.purge(500, 2000) == 0
    with pytest.raises(UnknownMessage):
        spool.message(delivered.id)
    for id_ in waiting.id, dead, doubtful.id:
        assert content(spool, spool.message(id_))


def test_many_go_in_small_batches(spool: DiskSpool, time: Time) -> None:
    for number in range(60):
        spool.decide(received(spool, number).id, "eva", Decision.DISCARD)
    time.now += 10
    assert (spool.purge(1, 100), spool.purge(1, 100), spool.purge(1, 100)) == (50, 10, 0)


# -- room and health ----------------------------------------------------------------------------


@pytest.mark.parametrize("spoiled", ["directory", "id", "text"])
def test_one_that_cannot_be_deleted_does_not_keep_the_others(
    tmp_path: Path, time: Time, spoiled: str
) -> None:
    with opened(tmp_path, time) as spool:
        messages = [received(spool, n) for n in range(5)]
        for message in messages:
            spool.address(message.id, [A])
            spool.sent(spool.claim(message.id, 1, time()), time(), "mx", "250 ok")
    stuck = messages[1]
    folder = spool.directory / "messages" / home(stuck.id)
    if spoiled == "directory":
        folder.rename(tmp_path / "elsewhere")
        folder.symlink_to(tmp_path / "elsewhere")  # nobody may remove what it leads to
    else:
        other = f"'N{stuck.id[1:]}'" if spoiled == "id" else "CAST(x'6eff' AS TEXT)"
        lose(tmp_path, "recipients WHERE message = ?", stuck.id)
        with closing(sqlite3.connect(spool.path)) as db, db:
            db.execute(f"UPDATE messages SET id = {other} WHERE id = ?", (stuck.id,))  # noqa: S608
    time.now += 10 * 86_400.0
    with opened(tmp_path, time) as spool:
        assert spool.purge(86_400.0, 365 * 86_400.0) == 5
        assert spool.purge(86_400.0, 365 * 86_400.0) == 0
        assert [path.name for path in folder.parent.iterdir()] == [stuck.id]
    time.now += 400 * 86_400.0
    with opened(tmp_path, time) as spool:
        spool.adopt()  # nor does it keep umpack from sending mail
        assert spool.purge(86_400.0, 365 * 86_400.0) == 0
        gone = {message.id for message in messages if message is not stuck}
        assert gone.isdisjoint(message.id for message in spool.messages())


def test_room_is_kept_for_receptions_that_are_going_on(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    limits = SpoolLimits(reserve_bytes=free - 1_500_000_000, slow_after=60.0)
    with opened(tmp_path, limits=limits) as spool:
        assert spool.room_for(pages=2000) == ""
        intent = spool.intend(CALL, pages=4000)  # 1 GB
        assert spool.room_for(pages=4000).startswith("disk is full")
        with pytest.raises(SpoolFault, match="disk is full"):
            spool.intend(CALL, seconds=100_000)
        assert len(spool.messages()) == 1
        spool.commit(intent.id, ENGINE)
        assert spool.room_for(pages=4000) == ""


def test_health_counts(spool: DiskSpool, time: Time) -> None:
    message = received(spool, 1)
    spool.address(message.id, [A, B])
    time.now += 5
    received(spool, 2)
    spool.intend(CALL)
    spool.uncertain(spool.claim(message.id, 1, time.now), time.now, time.now, "?", "mx")
    health = spool.health(time.now + 5)
    assert (health.receiving, health.unaddressed, health.queue, health.ambiguous) == (1, 1, 2, 1)
    assert (health.oldest_age, health.writable, health.owed) == (10, True, 0)
    assert health.sync_ms > 0
    assert repr(health).startswith("<spool well: 2 queued, oldest 10 s, 0 dead letters")


@contextmanager
def no_file_may_grow(_: Path, beyond: int = 0) -> Iterator[None]:
    """What a full disk does to SQLite and to us, and only to this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (beyond, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@contextmanager
def filled_up(directory: Path) -> Iterator[None]:
    """A file system without a free block."""
    ballast = directory / "ballast"
    with open(ballast, "wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    try:
        yield
    finally:
        ballast.unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 4 MB; only root can have one."""
    place = tmp_path / "disk"
    place.mkdir()
    command: list[str | Path] = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", place]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_limit_that_is_a_full_disk(spool: DiskSpool) -> None:
    hold_out(spool, no_file_may_grow)


def test_a_full_disk(small_disk: Path) -> None:
    with opened(small_disk) as spool:
        hold_out(spool, filled_up)


def test_a_read_only_disk(small_disk: Path) -> None:
    with opened(small_disk) as spool:
        message = received(spool)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(SpoolFault, match=r"[Rr]ead-only"):
        opened(small_disk)
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    with opened(small_disk) as spool:
        assert spool.unaddressed() == [message]


def hold_out(spool: DiskSpool, full_disk: Callable[[Path], AbstractContextManager[None]]) -> None:
    """Calls are refused, nothing is lost, and when there is room again, all goes on."""
    intent = spool.intend(CALL)
    Path(intent.path).write_bytes(pages(1))
    ready = received(spool, 2)
    spool.address(ready.id, [A])
    held = spool.claim(ready.id, 1, START)
    with full_disk(spool.directory):
        with pytest.raises(SpoolFault):
            spool.commit(intent.id, ENGINE)
        with pytest.raises(SpoolFault):
            spool.sent(held, START, "mx", "250")
        with pytest.raises(SpoolFault):
            spool.intend(CALL)
        with pytest.raises(SpoolFault):
            spool.adopt()  # which has nothing to write, and must not take that for health
        assert spool.room_for().startswith("not writable")
        assert spool.settle() == 2
        health = spool.health(START)
        assert (health.writable, health.owed) == (False, 2)
    assert spool.adopt().adopted == ()
    assert spool.settle() == 0
    message = spool.message(intent.id)
    assert (message.state, message.engine, message.adopted) == (
        MessageState.COMMITTED, ENGINE, ""
    )  # fmt: skip
    assert content(spool, message) == pages(1)
    assert spool.message(ready.id).state is MessageState.DELIVERED
    assert spool.room_for() == ""
    assert spool.health(START).writable
    assert len(spool.messages()) == 2


class Hang(FaultPoints):
    """A disk that does not answer, until it is let."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()

    def reach(self, point: FaultPoint) -> None:
        if point is FaultPoint.ADDRESS_ROW:
            self.reached.set()
            assert self.go_on.wait(20)


def test_a_disk_that_hangs_or_is_slow_refuses_calls_until_it_is_quick(tmp_path: Path) -> None:
    disk, limits = Hang(), SpoolLimits(reserve_bytes=0, slow_after=0.2)
    with opened(tmp_path, faults=disk, limits=limits) as spool:
        message = received(spool)
        sender = threading.Thread(target=spool.address, args=(message.id, [A]))
        sender.start()
        assert disk.reached.wait(20)
        threading.Event().wait(0.25)
        assert spool.room_for().startswith("disk has not answered for")
        assert spool.health(START).slow
        disk.go_on.set()
        sender.join()
        assert spool.room_for().startswith("disk is slow")
        for _ in range(100):
            spool.settle()
            if not spool.room_for():
                return
        pytest.fail(spool.room_for())


def test_a_row_that_cannot_be_read_does_not_stop_the_queue(spool: DiskSpool) -> None:
    first, second, third = (received(spool, n) for n in range(3))
    spool.address(first.id, [A])
    spool.address(second.id, [A])
    with closing(sqlite3.connect(spool.path)) as db, db:
        db.execute("UPDATE messages SET engine = '{' WHERE id IN (?, ?)", (first.id, third.id))
    with logged() as lines:
        for _ in range(3):  # the mailer asks again and again
            assert [d.message.id for d in spool.due(START, 1)] == [second.id]
    assert len(lines) == 1
    assert spool.due(START, 0) == []
    assert [m.id for m in spool.messages()] == [second.id]
    assert spool.unaddressed() == []


def test_a_row_that_cannot_be_read_does_not_keep_the_spool_shut(tmp_path: Path, time: Time) -> None:
    with opened(tmp_path, time) as spool:
        sent = received(spool, 1)
        spool.address(sent.id, [A, B])
        spool.claim(sent.id, 1, time())
    with closing(sqlite3.connect(spool.path)) as db, db:
        db.execute("UPDATE recipients SET state = 'qweued' WHERE number = 2")
    with opened(tmp_path, time) as spool:
        assert spool.adopt().left == ()
        assert spool.health(time()).ambiguous == 1


def test_a_row_that_cannot_be_read_does_not_stop_the_adoption(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        first, second = spool.intend(call(1)), spool.intend(call(2))
        write(first, 1)
        write(second, 2)
        (tmp_path / "receiving" / "stray.tif").write_bytes(pages(3))
    with closing(sqlite3.connect(spool.path)) as db, db:
        db.execute("UPDATE messages SET kind = 'fbx' WHERE id = ?", (first.id,))
    with opened(tmp_path) as spool:
        found = spool.adopt()
        assert found.left == (f"{first.id}.tif",)
        assert second.id in found.adopted
        assert len(found.adopted) == 2


def test_a_spoiled_text_costs_a_character_and_no_message(tmp_path: Path, time: Time) -> None:
    with opened(tmp_path, time) as spool:
        first, second = received(spool, 1), received(spool, 2)
        spool.address(first.id, [A])
    with closing(sqlite3.connect(spool.path)) as db, db:  # no check of SQLite's minds it
        db.execute("UPDATE messages SET pbx = CAST(x'6dff' AS TEXT)")
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    with opened(tmp_path, time) as spool:
        assert [m.id for m in spool.unaddressed()] == [second.id]
        assert [d.message.id for d in spool.due(time())] == [first.id]
        assert spool.claim(first.id, 1, time()).message.call.pbx == "m\ufffd"
        assert spool.room_for() == ""  # it is not the disk that has failed
        assert spool.commit(spool.intend(CALL).id, ENGINE).committed == time()


def test_recipients_survive_their_messages_row(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        message = received(spool)
        spool.address(message.id, [A, B])
    with closing(sqlite3.connect(tmp_path / "spool.db")) as db, db:
        db.execute("DELETE FROM messages")
    with opened(tmp_path) as spool:
        assert spool.due(START) == []
        spool.adopt()
        assert [d.recipient.address for d in spool.due(START)] == [A, B]
        assert spool.message(message.id).state is MessageState.QUEUED


def test_questions_share_connections_and_never_ask_a_file_that_was_moved_away(
    spool: DiskSpool,
) -> None:
    def connection() -> sqlite3.Connection:
        with spool.reading() as db:
            return db

    first = connection()
    assert connection() is first
    with spool.reading() as one, spool.reading() as other:
        assert one is not other
    with pytest.raises(UnknownMessage):
        spool.message(MessageId("x"))
    assert spool.messages() == []  # by a connection that is not in the midst of that
    copy = spool.directory / "copy.db"
    with closing(sqlite3.connect(copy)) as db, closing(sqlite3.connect(spool.path)) as own:
        own.backup(db)
    os.rename(spool.path, spool.directory / "away.db")
    with pytest.raises(SpoolFault):
        connection()
    os.rename(copy, spool.path)
    with spool.reading() as db:
        assert db.execute("PRAGMA database_list").fetchone()[2] == str(spool.path)
        assert db not in (first, one, other)
    os.rename(spool.directory / "away.db", spool.path)


def test_a_closed_spool_leaves_no_log_behind(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        received(spool)
        assert len(spool.messages()) == 1
        assert (tmp_path / "spool.db-wal").exists()
    assert not (tmp_path / "spool.db-wal").exists()


def test_a_database_that_vanishes_is_not_begun_anew(spool: DiskSpool) -> None:
    message = received(spool)
    away = spool.directory / "away.db"
    os.rename(spool.path, away)
    with pytest.raises(SpoolFault, match="gone"):
        spool.address(message.id, [A])
    assert spool.room_for().startswith("not writable")
    os.rename(away, spool.path)
    assert spool.address(message.id, [A]).state is MessageState.QUEUED


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes where it likes")
def test_a_directory_nobody_may_write_to_is_a_fault(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(SpoolFault):
        opened(tmp_path / "spool")


def test_a_closed_spool_says_so(spool: DiskSpool) -> None:
    spool.close()
    spool.close()
    with pytest.raises(SpoolFault, match="closed"):
        spool.intend(CALL)


# -- the event loop's side ----------------------------------------------------------------------


def write(intent: Intent, number: int) -> None:
    Path(intent.path).write_bytes(pages(number))


async def test_the_spool_is_a_store(tmp_path: Path) -> None:
    async with Spool(tmp_path, "node1", now=Time(), quiet=0.0) as spool:
        store: MessageStore = spool
        assert await store.room_for(1) == ""
        intent = await store.intend(CALL, pages=1)
        write(intent, 1)
        message = await store.commit(intent.id, ENGINE)
        assert await store.unaddressed() == [message]
        await store.describe(message.id, DocumentFacts(1, 1))
        await store.address(message.id, [A, B, C])
        assert await store.next_due() == START
        due = [
            await store.claim(d.message.id, d.recipient.number, START)
            for d in await store.due(START)
        ]
        await store.sent(due[0], START, "mx", "250")
        await store.failed(due[1], START, START + 1, "451")
        await store.released(due[2], START)
        await store.uncertain(await store.claim(message.id, 3, START), START, START, "?", "mx")
        await store.expired(message.id, 2, START, "old")
        await store.bounced(message.id, 1, START, "bounce")
        await store.refused(await store.claim(message.id, 3, START), START, "550")
        assert (await store.decide(message.id, "eva", Decision.DISCARD)).ended == START
        assert len(await store.audit(message.id)) == 2
        assert (await store.messages())[0].id == message.id
        assert (await store.message(message.id)).state is MessageState.DECIDED
        assert (await store.open_calls()).without_end == ()
        assert (await store.health(START)).queue == 0
        assert (await store.adopt()).adopted == ()
        assert await spool.purge(-1, 10) == 1
        assert repr(spool).endswith("0 receiving, 0 owed>")


async def test_a_caller_that_hangs_up_does_not_stop_a_commit(tmp_path: Path) -> None:
    async with Spool(tmp_path, "node1", quiet=0.0) as spool:
        intent = await spool.intend(CALL)
        write(intent, 1)
        task = asyncio.create_task(spool.commit(intent.id, ENGINE))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    message = SpoolArchive(tmp_path / "spool.db").message(intent.id)
    assert (message.state, message.engine) == (MessageState.COMMITTED, ENGINE)


async def test_an_intent_nobody_waits_for_is_adopted_by_the_tending(tmp_path: Path) -> None:
    async with Spool(tmp_path, "node1", now=Time(), quiet=0.0) as spool:
        task = asyncio.create_task(spool.intend(CALL))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        tending = asyncio.create_task(spool.tend(lambda: (), 1.0, 1.0, every=0.01))
        async with asyncio.timeout(20):
            while not await spool.unaddressed():  # noqa: ASYNC110 - the disk tells nobody
                await asyncio.sleep(0.01)
        tending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await tending
        (message,) = await spool.unaddressed()
        assert message.adopted == "its call's end was not seen; nothing was received"


class Stuck(FaultPoints):
    """A disk that does not answer while a call is intended, until it is let."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def reach(self, point: FaultPoint) -> None:
        if point is FaultPoint.INTEND_ROW:
            assert self.go_on.wait(30)


async def test_a_disk_that_hangs_refuses_the_call_and_leaves_nothing_of_it(tmp_path: Path) -> None:
    disk = Stuck()
    async with Spool(tmp_path, "node1", quiet=0.0, faults=disk) as spool:
        with pytest.raises(SpoolFault, match="not answered for 2 s"):
            await spool.intend(CALL)
        disk.go_on.set()
        async with asyncio.timeout(20):
            while spool.disk.live or os.listdir(tmp_path / "receiving"):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
        assert await spool.messages() == []


async def test_commits_side_by_side_all_arrive(tmp_path: Path) -> None:
    async def one(spool: Spool, number: int) -> MessageId:
        intent = await spool.intend(call(number))
        write(intent, number)
        message = await spool.commit(intent.id, EngineFacts("SUCCESS"))
        assert content(spool.disk, message) == pages(number)
        return message.id

    async with Spool(tmp_path, "node1", now=Time()) as spool:
        made = await asyncio.gather(*(one(spool, n) for n in range(60)))
        assert len(set(made)) == 60
        found = await spool.messages(limit=1000)
        assert sorted(m.call.call for m in found) == sorted(CallId(f"c{n}") for n in range(60))
