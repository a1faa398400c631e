"""The rows of messages: each function is one step, within the transaction of whoever calls it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from sqlite3 import Connection as Db
from sqlite3 import Cursor

from loguru import logger

from umpack.core.errors import OurFault, StateError
from umpack.journal.rows import Cell, stored
from umpack.messages.message import (
    CallFacts,
    DocumentFacts,
    EngineFacts,
    Form,
    Kind,
    Message,
    MessageId,
    Original,
)
from umpack.messages.spool_rows import (
    call_columns,
    document_cell,
    engine_cell,
    form_cell,
    message_of,
    recipient_of,
)
from umpack.messages.states import ENDED, MessageEvent, MessageState, RecipientState, derived
from umpack.messages.states import next_message as _next


class UnknownMessage(StateError):
    """There is no such message in this spool."""


def fetch(db: Db, id_: MessageId) -> Message:
    """The message with its recipients; `UnknownMessage` if there is none."""
    row = db.execute("SELECT * FROM messages WHERE id = ?", (id_,)).fetchone()
    if row is None:
        raise UnknownMessage(f"no message {id_!r} in this spool")
    return message_of(row, _recipients(db, id_))


def _recipients(db: Db, id_: MessageId) -> Cursor:
    return db.execute("SELECT * FROM recipients WHERE message = ? ORDER BY number", (id_,))


def fetch_all(db: Db, query: str, given: Sequence[Cell] = ()) -> list[Message]:
    """The messages whose ids `query` finds, in its order. One that cannot be read does not hide
    the others: it is logged and passed over."""
    found = []
    for row in db.execute(query, given).fetchall():
        try:
            found.append(fetch(db, row["id"]))
        except OurFault as fault:
            logger.error("spool: {}", fault)
    return found


def insert_intent(
    db: Db, id_: MessageId, node: str, call: CallFacts, name: str, now: float
) -> None:
    """A call is about to be answered; from here on it has its one record."""
    columns: dict[str, Cell] = {
        "id": id_,
        "node": stored(node),
        "state": MessageState.RECEIVING.value,
        "name": name,
        "started": now,
        **call_columns(call),
    }
    db.execute(
        f"INSERT INTO messages ({', '.join(columns)}) "  # noqa: S608 - names of our own
        f"VALUES ({', '.join('?' * len(columns))})",
        tuple(columns.values()),
    )


def drop_intent(db: Db, id_: MessageId) -> None:
    """Take back an intent whose file could not be reserved: its call was never answered."""
    db.execute(
        "DELETE FROM messages WHERE id = ? AND state = ?", (id_, MessageState.RECEIVING.value)
    )


def recast(db: Db, id_: MessageId, kind: Kind, name: str) -> None:
    """It has turned out in mid-call what it will be. `StateError` once it is committed."""
    changed = db.execute(
        "UPDATE messages SET kind = ?, name = ? WHERE id = ? AND state = ?",
        (kind.value, name, id_, MessageState.RECEIVING.value),
    )
    if changed.rowcount != 1:
        raise StateError(f"message {id_}: is not being received")


def note_answered(db: Db, id_: MessageId, now: float) -> None:
    """Its caller has been answered; whoever finds the call without an end can tell it by this."""
    db.execute("UPDATE messages SET answered = coalesce(answered, ?) WHERE id = ?", (now, id_))


def commit(
    db: Db,
    id_: MessageId,
    original: Original | None,
    engine: EngineFacts,
    message_id: str,
    now: float,
    adopted: str = "",
) -> Message:
    """The reception is over, `original` in place and synced. Message-ID and Date are fixed here.

    Committing what is committed changes nothing: its caller was not told, or asked in doubt.
    """
    message = fetch(db, id_)
    if message.state is not MessageState.RECEIVING and not adopted:
        return message
    state = _next(message.state, MessageEvent.ADOPT if adopted else MessageEvent.COMMIT)
    db.execute(
        "UPDATE messages SET state = ?, committed = ?, message_id = ?, date = ?, adopted = ?,"
        " file = ?, size = ?, sha256 = ?, engine = ? WHERE id = ?",
        (
            state.value,
            now,
            message_id,
            # RFC 5322 3.3 has whole seconds: what is stored is what every copy will say.
            float(int(now)),
            stored(adopted),
            original.file if original else None,
            original.size if original else None,
            original.sha256 if original else None,
            engine_cell(engine),
            id_,
        ),
    )
    if adopted:
        note(db, now, "umpack", "adopt", id_, adopted)
    return replace(
        message, state=state, committed=now, message_id=message_id, date=float(int(now)),
        adopted=adopted, original=original, engine=engine,
    )  # fmt: skip


def attach(
    db: Db, id_: MessageId, original: Original, engine: EngineFacts, why: str, now: float
) -> None:
    """A file that came late to a message recorded without one, and not sent on yet."""
    message = fetch(db, id_)
    if message.state is not MessageState.COMMITTED or message.original is not None:
        raise StateError(f"message {id_}: has its file, or is past {message.state.value}")
    db.execute(
        "UPDATE messages SET file = ?, size = ?, sha256 = ?, engine = ?, adopted = ? WHERE id = ?",
        (original.file, original.size, original.sha256, engine_cell(engine), stored(why), id_),
    )
    note(db, now, "umpack", "attach", id_, why)


def address(
    db: Db,
    id_: MessageId,
    addresses: Sequence[str],
    now: float,
    forms: Mapping[str, Form] | None = None,
) -> Message:
    """Name who is to have it, and in which form by address; due at once. `StateError` if that has
    been done."""
    if not addresses:
        raise StateError(f"message {id_}: addressed to nobody")
    message = fetch(db, id_)
    _next(message.state, MessageEvent.ADDRESS)
    add_recipients(db, message, addresses, 1, message.message_id, message.date or now, now, forms)
    return followed(db, message)


def add_recipients(
    db: Db,
    message: Message,
    addresses: Sequence[str],
    edition: int,
    message_id: str,
    date: float,
    now: float,
    forms: Mapping[str, Form] | None = None,
) -> None:
    """One row each, however often an address is named; then the message's state follows."""
    after = 1 + max((one.number for one in message.recipients), default=0)
    age = now if message.committed is None else message.committed
    db.executemany(
        "INSERT INTO recipients (message, number, address, edition, message_id, date, state,"
        " age, next_at, changed, form) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (message.id, number, stored(to), edition, message_id, date,
             RecipientState.QUEUED.value, age, now, now, form_cell((forms or {}).get(to)))
            for number, to in enumerate(dict.fromkeys(addresses), after)
        ],
    )  # fmt: skip
    follow_recipients(db, message.id, now)


def follow_recipients(db: Db, id_: MessageId, now: float) -> None:
    """Derive the message's state anew, and when it ended: then, or not yet."""
    states = db.execute("SELECT DISTINCT state FROM recipients WHERE message = ?", (id_,))
    state = derived([RecipientState(row[0]) for row in states])
    ended = now if state in ENDED else None
    db.execute(
        "UPDATE messages SET state = ?, ended = CASE WHEN ? IS NULL THEN NULL"
        " ELSE coalesce(ended, ?) END WHERE id = ?",
        (state.value, ended, ended, id_),
    )


def followed(db: Db, message: Message) -> Message:
    """The message after a step that was its recipients' alone: only they are read again."""
    recipients = tuple(map(recipient_of, _recipients(db, message.id)))
    row = db.execute("SELECT state, ended FROM messages WHERE id = ?", (message.id,)).fetchone()
    return replace(message, state=MessageState(row[0]), ended=row[1], recipients=recipients)


def close(db: Db, id_: MessageId, now: float) -> None:
    """Nobody is to have it: `StateError` unless it is committed and has no recipients."""
    state = _next(fetch(db, id_).state, MessageEvent.CLOSE)
    db.execute("UPDATE messages SET state = ?, ended = ? WHERE id = ?", (state.value, now, id_))


def describe(db: Db, id_: MessageId, document: DocumentFacts, related: MessageId | None) -> Message:
    """Keep what was found in the original, and which earlier message it repeats."""
    message = fetch(db, id_)
    db.execute(
        "UPDATE messages SET document = ?, related = coalesce(?, related) WHERE id = ?",
        (document_cell(document), related, id_),
    )
    return replace(message, document=document, related=related or message.related)


def relate(db: Db, id_: MessageId, to: MessageId) -> None:
    """`id_` came out of `to`."""
    db.execute("UPDATE messages SET related = ? WHERE id = ?", (to, id_))


def mark_purged(db: Db, before: float, limit: int, now: float) -> list[MessageId]:
    """Choose ended messages whose originals may go, oldest end first; their records stay."""
    rows = db.execute(
        "SELECT seq, id FROM messages WHERE state IN (?, ?) AND ended < ? AND purged IS NULL"
        " ORDER BY ended LIMIT ?",
        (*(state.value for state in ENDED), before, limit),
    ).fetchall()
    ids = [MessageId(row["id"]) for row in rows]
    # By their places: a spoiled id is none that a row could be found by.
    places = [(now, row["seq"]) for row in rows]
    db.executemany("UPDATE messages SET purged = ? WHERE seq = ?", places)
    for id_ in ids:
        note(db, now, "umpack", "purge", id_, "retention is over")
    return ids


def past(db: Db, before: float, limit: int) -> list[MessageId]:
    """Messages purged that ended before then: their records may go too."""
    rows = db.execute(
        "SELECT id FROM messages WHERE state IN (?, ?) AND ended < ? AND purged IS NOT NULL"
        " ORDER BY ended LIMIT ?",
        (*(state.value for state in ENDED), before, limit),
    ).fetchall()
    return [MessageId(row["id"]) for row in rows]


def forget(db: Db, ids: Sequence[MessageId]) -> None:
    """Delete records, and what is noted of them."""
    for table, column in ("recipients", "message"), ("audit", "message"), ("messages", "id"):
        db.executemany(
            f"DELETE FROM {table} WHERE {column} = ?",  # noqa: S608 - names of our own
            [(id_,) for id_ in ids],
        )


def note(db: Db, at: float, who: str, what: str, id_: MessageId | None, detail: str) -> None:
    """One entry of the audit log."""
    db.execute(
        "INSERT INTO audit (at, who, what, message, detail) VALUES (?, ?, ?, ?, ?)",
        (at, stored(who), stored(what), id_, stored(detail)),
    )
