"""The one thread that writes the spool's database.

Whatever asked while it was syncing goes into its next transaction, so that many commits share one
sync. A job that fails takes back its own changes only; when the disk fails, all jobs of the batch
are told so, and the next batch begins with a new connection.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from loguru import logger

from umpack import clock
from umpack.core.errors import UmpackError
from umpack.journal.schema import in_words, transaction
from umpack.messages.fault_points import FaultPoint, FaultPoints
from umpack.messages.spool_schema import MIGRATIONS, SpoolFault, connect_to_spool

BATCH = 256
"""Jobs per transaction."""

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], T]


def prove_writable(connection: sqlite3.Connection) -> None:
    """Write something that changes nothing: a transaction that only reads works on any disk."""
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


@dataclass(frozen=True, slots=True)
class _Order:
    job: Job[Any]
    reached: FaultPoint | None
    then: Callable[[], object] | None
    lost: Callable[[], object] | None
    answer: Future[Any]


class SpoolWriter(threading.Thread):
    """Owns the connection. `ask` and `do` are for every other thread."""

    def __init__(self, path: Path, faults: FaultPoints) -> None:
        super().__init__(name="umpack-spool", daemon=True)
        self._path = path
        self._faults = faults
        self._orders: SimpleQueue[_Order | None] = SimpleQueue()
        self._connection: sqlite3.Connection | None = None
        self._closed = False
        self._gate = threading.Lock()
        self.fault = ""
        """Why the last batch was not written; empty when it was."""
        self.last_sync = 0.0
        """Seconds the last batch took."""
        self.busy_since: float | None = None
        """When the batch now being written began (monotonic)."""

    def do(self, job: Job[T], reached: FaultPoint | None = None) -> T:
        """As `ask`, and block until it is on disk."""
        return self.ask(job, reached).result()

    def ask(
        self,
        job: Job[T],
        reached: FaultPoint | None = None,
        then: Callable[[], object] | None = None,
        lost: Callable[[], object] | None = None,
    ) -> Future[T]:
        """Run `job` in a transaction; what it answered is known when that is on disk. Does not
        block, and cannot be taken back.

        `reached` names the moment before the commit. The future has what the job raised, and
        `SpoolFault` if the transaction could not be written. `then` is called when it is on disk
        and `lost` when it could not be written, both before anybody hears of it and on the
        writer's thread; neither may raise. Raises `SpoolFault` if the writer has ended.
        """
        answer: Future[T] = Future()
        answer.set_running_or_notify_cancel()  # nobody may cancel it from now on
        with self._gate:  # nothing may be queued behind the end
            if self._closed:
                raise SpoolFault(f"spool {self._path}: closed")
            self._orders.put(_Order(job, reached, then, lost, answer))
        return answer

    def stop(self) -> None:
        """Do what was asked before, then end."""
        with self._gate:
            self._closed = True
            self._orders.put(None)
        self.join()

    def run(self) -> None:
        """Take all that waits, write it, tell everybody; until stopped."""
        try:
            while True:
                batch, last = self._take()
                if batch:
                    self._write(batch)
                if last:
                    return
        finally:
            self._disconnect()

    def _take(self) -> tuple[list[_Order], bool]:
        batch: list[_Order] = []
        order = self._orders.get()
        while order is not None:
            batch.append(order)
            if len(batch) == BATCH:
                return batch, False
            try:
                order = self._orders.get_nowait()
            except Empty:
                return batch, False
        return batch, True

    def _write(self, batch: list[_Order]) -> None:
        began = self.busy_since = clock.monotonic()
        done: list[tuple[_Order, Any]] = []
        try:
            connection = self._connected()
            with transaction(connection):
                if self.fault:
                    prove_writable(connection)
                for order in batch:
                    self._run_one(connection, order, done)
        except (sqlite3.Error, OSError, SpoolFault) as error:
            self._failed(batch, error)
        else:
            if self.fault:
                logger.info("spool {}: writes again", self._path)
                self.fault = ""
            for order, answer in done:
                if order.then is not None:
                    order.then()
                order.answer.set_result(answer)
        finally:
            self.last_sync = clock.monotonic() - began
            self.busy_since = None

    def _connected(self) -> sqlite3.Connection:
        """The connection; after a failure another one.

        The old one is closed only when the new one works: the last to close removes the shared
        memory of the WAL, and on a full disk nobody, readers included, could make it again.
        """
        if self._connection is None or self.fault or not self._path.exists():
            fresh = connect_to_spool(self._path)
            self._disconnect()
            self._connection = fresh
        return self._connection

    def _run_one(
        self, connection: sqlite3.Connection, order: _Order, done: list[tuple[_Order, Any]]
    ) -> None:
        connection.execute("SAVEPOINT job")
        try:
            answer = order.job(connection)
        except SpoolFault:
            raise
        except (UmpackError, sqlite3.IntegrityError, ValueError, TypeError, OverflowError) as error:
            # The fault is in the job, not in the disk: the others of the batch go on.
            connection.execute("ROLLBACK TO job")
            connection.execute("RELEASE job")
            order.answer.set_exception(error)
        else:
            connection.execute("RELEASE job")
            done.append((order, answer))
            if order.reached is not None:
                self._faults.reach(order.reached)

    def _failed(self, batch: list[_Order], error: Exception) -> None:
        words = in_words(error)
        if not self.fault:
            logger.error("spool {}: {}", self._path, words)
        self.fault = words
        for order in batch:
            if not order.answer.done():
                fault = SpoolFault(f"spool {self._path}: {words}")
                fault.__cause__ = error
                if order.lost is not None:
                    order.lost()
                order.answer.set_exception(fault)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
