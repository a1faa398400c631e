"""The one thread that writes the journal.

It gathers for a moment, then writes all it has in few transactions. What cannot be written is
kept and tried again, with growing pauses, until it can; the bound on what may wait is the
journal's (`Journal.append`). Rows are made while SQLite steps through the batch, which lets go of
the interpreter lock at every row: a batch of thousands never holds up the event loop.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue

from loguru import logger

from umpack import clock
from umpack.core.administration import Drain
from umpack.core.calls import CallRecord
from umpack.core.channel import ChannelId
from umpack.core.errors import OurFault
from umpack.core.health_states import HealthMemory
from umpack.core.pack import PackId
from umpack.journal.rows import COLUMNS, row_of, stored
from umpack.journal.schema import connect, in_words, is_damage, prepare, transaction

BATCH = 2000
"""Rows per transaction."""
SWEEP_BATCH = 500
"""Rows deleted at a time, so that new rows never wait long behind old ones."""
SWEEP_EVERY = 3600.0
_SWEEP_PAUSE = 0.02
_FIRST_RETRY, _LAST_RETRY = 0.5, 30.0

INSERT = (
    f"INSERT OR REPLACE INTO calls ({', '.join(COLUMNS)}) "  # noqa: S608 - names of our own
    f"VALUES ({', '.join('?' * len(COLUMNS))})"
)
_ROW_ERRORS = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    OverflowError,
    ValueError,
    TypeError,
    AttributeError,
)
"""The fault is in the row (a time that is no number, an integer over 64 bits), and trying again
would stop all others behind it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why nothing is being written, and since when (epoch seconds)."""

    what: str
    since: float


@dataclass(frozen=True, slots=True)
class State:
    """One whole state to be saved; a later one replaces it."""

    pointers: Mapping[PackId, ChannelId]
    drains: Sequence[Drain]
    trunks: tuple[HealthMemory, ...] = ()
    """The very object saved last is not written again: pointers move with every call, and a site
    may have a thousand trunks."""


Item = tuple[CallRecord, ...] | threading.Event | None
"""Rows; a ticket to be set once all before it is on disk; or only a reason to wake up."""


class Writer(threading.Thread):
    """Owns the connection. `put`, `hurry`, `suspect` and `stop` are for other threads."""

    def __init__(
        self, path: Path, node: str, now: Callable[[], float], keep: float, linger: float
    ) -> None:
        super().__init__(name="umpack-journal", daemon=True)
        self._path = path
        self._node = node
        self._now = now
        self._keep = keep
        self._linger = linger
        self._queue: SimpleQueue[Item] = SimpleQueue()
        self._hurry = threading.Event()
        self._states: deque[State] = deque(maxlen=1)
        self._state: State | None = None
        self._trunks_on_disk: tuple[HealthMemory, ...] | None = None
        self._rows: deque[CallRecord] = deque()
        self._tickets: list[threading.Event] = []
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._suspected = False
        self._sweep_at = float("-inf")
        self._retry = _FIRST_RETRY
        self._stop_at: float | None = None
        self.fault: Fault | None = None
        self.settled = 0
        """Rows that are done with: on disk, or rejected."""
        self.rejected = 0
        """Rows no table could take."""
        self.moved_aside: tuple[Path, ...] = ()

    def put(self, item: Item) -> None:
        """Never blocks: SimpleQueue takes a put in one step."""
        self._queue.put(item)

    def put_state(self, state: State) -> None:
        """Replaces a state still waiting. Never blocks."""
        self._states.append(state)
        if self._queue.qsize() < 1000:  # else there is reason enough to wake up
            self._queue.put(None)

    def hurry(self) -> None:
        """Write now: do not gather, do not sit out a pause after a failure."""
        self._hurry.set()

    def suspect(self) -> None:
        """A reader met damage: look at the file before the next write."""
        self._suspected = True
        self._queue.put(None)

    def stop(self, deadline: float) -> None:
        """End when all is written, or after `deadline` seconds."""
        self._stop_at = clock.monotonic() + deadline
        self._queue.put(None)
        self._hurry.set()

    def run(self) -> None:
        """Gather and write until told to stop."""
        try:
            while True:
                self._gather()
                try:
                    connection = self._connected()
                    self._write(connection)
                    self._sweep(connection)
                    self._note_success()
                except (sqlite3.Error, OSError, OurFault) as error:
                    self._note_failure(error)
                if self._stop_at is not None and (self._is_done() or self._too_late()):
                    break
        finally:
            self._disconnect()

    def _gather(self) -> None:
        """Wait for work, or for the time of the next retry or sweep; then take all there is."""
        if self.fault is not None:
            left = _LAST_RETRY if self._stop_at is None else self._stop_at - clock.monotonic()
            self._hurry.wait(max(min(self._retry, left), 0.0))
        elif (until_sweep := self._sweep_at - self._now()) <= 0:
            self._hurry.wait(_SWEEP_PAUSE)
        else:
            try:
                self._take(self._queue.get(timeout=min(until_sweep, SWEEP_EVERY)))
            except Empty:
                pass
            else:
                self._hurry.wait(self._linger)
        self._hurry.clear()
        while True:
            try:
                self._take(self._queue.get_nowait())
            except Empty:
                break
        if self._states:
            self._state = self._states.popleft()

    def _take(self, item: Item) -> None:
        if isinstance(item, tuple):
            self._rows.extend(item)
        elif item is not None:
            self._tickets.append(item)

    def _connected(self) -> sqlite3.Connection:
        """The connection, to the file that is at the path now.

        SQLite would go on for ever writing into a file that was deleted or renamed under it.
        """
        try:
            stat = os.stat(self._path)
            there = (stat.st_dev, stat.st_ino)
        except FileNotFoundError:
            there = None
        if self._connection is not None:
            if there == self._file and not self._suspected:
                return self._connection
            if there != self._file:
                logger.warning("journal {}: the file is not the one it was; opening", self._path)
            self._disconnect()
        aside = prepare(self._path, self._now(), "full" if self._suspected else None)
        self._suspected = False
        if aside is not None:
            self.moved_aside = (*self.moved_aside, aside)
            logger.error("journal {}: damaged; moved aside to {}", self._path, aside.name)
        self._connection = connect(self._path)
        stat = os.stat(self._path)
        self._file = (stat.st_dev, stat.st_ino)
        return self._connection

    def _disconnect(self) -> None:
        self._trunks_on_disk = None  # the next file may be another one
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _write(self, connection: sqlite3.Connection) -> None:
        """Everything gathered, in order; a state goes with the first transaction."""
        while self._rows or self._state is not None:
            batch = tuple(islice(self._rows, BATCH))
            with transaction(connection):
                rejected = self._insert(connection, batch)
                if self._state is not None:
                    self._save(connection, self._state)
            if self._state is not None:
                self._trunks_on_disk = self._state.trunks
            self._state = None
            for _ in batch:
                self._rows.popleft()
            self.rejected += rejected
            self.settled += len(batch)
            if self._too_late():
                return
        for ticket in self._tickets:
            ticket.set()
        self._tickets.clear()

    def _insert(self, connection: sqlite3.Connection, batch: Sequence[CallRecord]) -> int:
        """Answers how many rows were rejected."""
        try:
            connection.executemany(INSERT, (row_of(record, self._node) for record in batch))
            return 0
        except _ROW_ERRORS:
            pass
        # Again, one by one, to find the bad ones; rows already in are replaced by themselves.
        rejected = 0
        for record in batch:
            try:
                connection.execute(INSERT, row_of(record, self._node))
            except _ROW_ERRORS as error:
                rejected += 1
                logger.error(
                    "journal {}: a call was not recorded: {}", self._path, type(error).__name__
                )
        return rejected

    def _save(self, connection: sqlite3.Connection, state: State) -> None:
        node = stored(self._node)
        connection.execute("DELETE FROM pointers WHERE node = ?", (node,))
        connection.execute("DELETE FROM drains WHERE node = ?", (node,))
        connection.executemany(
            "INSERT INTO pointers VALUES (?, ?, ?)",
            [(node, stored(pack), stored(at)) for pack, at in state.pointers.items()],
        )
        connection.executemany(
            "INSERT OR REPLACE INTO drains VALUES (?, ?, ?, ?, ?, ?)",
            [
                (node, stored(d.target), stored(d.by), stored(d.why), d.since, d.until)
                for d in state.drains
            ],
        )
        if state.trunks is self._trunks_on_disk:
            return
        connection.execute("DELETE FROM trunks WHERE node = ?", (node,))
        connection.executemany(
            "INSERT OR REPLACE INTO trunks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    node,
                    stored(m.trunk),
                    m.state.value,
                    m.since,
                    m.until,
                    m.times,
                    m.failures,
                    stored(m.why),
                    m.unanswered,
                    m.short,
                )
                for m in state.trunks
            ],
        )

    def _sweep(self, connection: sqlite3.Connection) -> None:
        """One batch of rows past their time; the file gives back the room."""
        now = self._now()
        if now < self._sweep_at or self._stop_at is not None:
            return
        with transaction(connection):
            gone = connection.execute(
                "DELETE FROM calls WHERE seq IN "
                "(SELECT seq FROM calls WHERE ended < ? ORDER BY ended LIMIT ?)",
                (now - self._keep, SWEEP_BATCH),
            ).rowcount
        # One step gives back one page, as a row without columns, at which `execute` stops;
        # `executescript` goes on to the end.
        connection.executescript("PRAGMA incremental_vacuum")
        if gone < SWEEP_BATCH:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            self._sweep_at = now + SWEEP_EVERY

    def _note_success(self) -> None:
        """Only after a sweep, too: a read-only disk fails there when there is nothing to write."""
        if self.fault is not None:
            lasted = self._now() - self.fault.since
            self.fault, self._retry = None, _FIRST_RETRY
            logger.info("journal {}: writes again after {:.0f} s", self._path, lasted)

    def _note_failure(self, error: sqlite3.Error | OSError | OurFault) -> None:
        """Keep everything, and begin anew with another connection after a pause."""
        what = in_words(error)
        if isinstance(error, sqlite3.Error) and is_damage(error):
            self._suspected = True
        if self.fault is None:
            logger.error("journal {}: {}; calls are kept and tried again", self._path, what)
            self.fault = Fault(what, self._now())
        else:
            self.fault = Fault(what, self.fault.since)
            self._retry = min(self._retry * 2, _LAST_RETRY)
        self._disconnect()

    def _is_done(self) -> bool:
        return not (self._rows or self._tickets or self._states or self._state) and (
            self._queue.empty()
        )

    def _too_late(self) -> bool:
        return self._stop_at is not None and clock.monotonic() >= self._stop_at
