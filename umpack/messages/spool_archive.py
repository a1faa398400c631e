"""Questions to the spool. Each has a read-only connection to itself and blocks for its time."""

from __future__ import annotations

import os
import sqlite3
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from umpack.core.calls import CallId
from umpack.journal.rows import loaded, stored
from umpack.journal.schema import connect_to_read
from umpack.messages import deliveries, records
from umpack.messages.message import Delivery, DeliveryKey, Message, MessageId
from umpack.messages.spool_schema import translated
from umpack.messages.states import ENDED, MessageState

_AT_ONCE = 500
"""Ids in one question; SQLite takes 999 and more."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who did what, when (epoch seconds)."""

    at: float
    who: str
    what: str
    message: MessageId | None
    detail: str


@dataclass(frozen=True, slots=True)
class OpenCalls:
    """What a reconciliation has to explain; both empty means that every call has its end."""

    without_message: tuple[Message, ...]
    """Intents: their call is going on, or will be adopted."""
    without_end: tuple[Message, ...]
    """Committed, and not yet delivered to all nor decided."""


class SpoolArchive:
    """A spool to read, also beside the process that writes it. Raises `SpoolFault`.

    `kept` connections at most stay open between questions, as opening one costs more than most
    questions do: then it is to be closed with `close_readers`, before the last writer.
    """

    def __init__(self, path: Path, kept: int = 0) -> None:
        self.path = path
        self._kept = kept
        self._idle: deque[tuple[sqlite3.Connection, tuple[int, int]]] = deque()
        """With the file that each has open."""
        self._amiss: set[DeliveryKey] = set()

    def message(self, id_: MessageId) -> Message:
        """`UnknownMessage` if there is none."""
        with self.reading() as db:
            return records.fetch(db, id_)

    def messages(
        self,
        limit: int = 100,
        since: float | None = None,
        until: float | None = None,
        number: str | None = None,
        state: MessageState | None = None,
        called: str | None = None,
        caller: str | None = None,
    ) -> list[Message]:
        """Messages that fit all that is given, newest first, by the start of their call.

        `since` inclusive, `until` exclusive; `number` is the called or the calling one. Numbers
        are compared whole: what comes off the line may contain any wildcard.
        """
        wanted: dict[str, float | str | None] = {
            "started >= ?": since,
            "started < ?": until,
            "? IN (called, caller)": None if number is None else stored(number),
            "state = ?": None if state is None else state.value,
            "called = ?": None if called is None else stored(called),
            "caller = ?": None if caller is None else stored(caller),
        }
        given = {clause: value for clause, value in wanted.items() if value is not None}
        where = f"WHERE {' AND '.join(given)} " if given else ""
        with self.reading() as db:
            return records.fetch_all(
                db,
                f"SELECT id FROM messages {where}ORDER BY started DESC, seq DESC LIMIT ?",  # noqa: S608
                (*given.values(), max(limit, 0)),
            )

    def of_calls(self, calls: Iterable[CallId]) -> dict[CallId, tuple[MessageId, ...]]:
        """The messages of each of these calls, which should be one; calls without any are left
        out."""
        wanted = {stored(call): call for call in calls}
        found: dict[CallId, tuple[MessageId, ...]] = {}
        with self.reading() as db:
            for start in range(0, len(wanted), _AT_ONCE):
                some = list(wanted)[start : start + _AT_ONCE]
                marks = ", ".join("?" * len(some))
                for row in db.execute(
                    f"SELECT call, id FROM messages WHERE call IN ({marks}) ORDER BY seq",  # noqa: S608
                    some,
                ):
                    call = wanted[row["call"]]
                    found[call] = (*found.get(call, ()), MessageId(row["id"]))
        return found

    def unaddressed(self, limit: int = 100) -> list[Message]:
        """Committed messages that nobody has been named for, oldest first."""
        return self._in_state(f"= '{MessageState.COMMITTED.value}'", limit)

    def open_calls(self, limit: int = 1000) -> OpenCalls:
        """Every call that has not come to its end; each answered call has exactly one record."""
        over = ", ".join(f"'{s.value}'" for s in (*ENDED, MessageState.RECEIVING))
        return OpenCalls(
            tuple(self._in_state(f"= '{MessageState.RECEIVING.value}'", limit)),
            tuple(self._in_state(f"NOT IN ({over})", limit)),
        )

    def due(self, now: float, limit: int = 100) -> list[Delivery]:
        """What may be sent now, oldest message first."""
        with self.reading() as db:
            return deliveries.due(db, now, limit, self._amiss)

    def next_due(self) -> float | None:
        """When the next open delivery is due; None if none is open."""
        with self.reading() as db:
            return deliveries.next_due(db)

    def audit(self, id_: MessageId | None = None, limit: int = 100) -> list[AuditEntry]:
        """Newest first; of one message, or of all."""
        where, given = ("WHERE message = ? ", (id_,)) if id_ is not None else ("", ())
        with self.reading() as db:
            rows = db.execute(
                f"SELECT * FROM audit {where}ORDER BY seq DESC LIMIT ?",  # noqa: S608
                (*given, max(limit, 0)),
            )
            return [
                AuditEntry(
                    row["at"], loaded(row["who"]), loaded(row["what"]), row["message"],
                    loaded(row["detail"]),
                )
                for row in rows
            ]  # fmt: skip

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for one question, seeing one state of everything."""
        with translated(self.path):
            found = os.stat(self.path)
            file = found.st_dev, found.st_ino
            db = self._of_before(file) or connect_to_read(self.path, one_thread=not self._kept)
            try:
                db.execute("BEGIN")
                yield db
                db.execute("COMMIT")
            except BaseException:
                db.close()
                raise
            if len(self._idle) < self._kept:
                self._idle.append((db, file))
            else:
                db.close()

    def close_readers(self) -> None:
        """Close all that no question has at the moment, and keep none any more."""
        self._kept = 0
        while self._idle:
            self._idle.pop()[0].close()

    def _of_before(self, file: tuple[int, int]) -> sqlite3.Connection | None:
        """One that was left open, unless it is of a file that has been moved away since."""
        while self._idle:
            try:
                db, its = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            if its == file:
                return db
            db.close()
        return None

    def _in_state(self, condition: str, limit: int) -> list[Message]:
        with self.reading() as db:
            return records.fetch_all(
                db,
                f"SELECT id FROM messages WHERE state {condition} ORDER BY started, seq LIMIT ?",  # noqa: S608
                (max(limit, 0),),
            )
