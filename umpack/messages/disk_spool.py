"""The spool on this node's disk: blocking, callable from any thread.

The order of a reception, every arrow a point at which the process may be killed:

    row "receiving" durable -> file reserved -> (engine writes) -> file renamed into its place ->
    file synced -> directories synced -> row "committed" durable -> answered to the caller
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from loguru import logger

from umpack import clock
from umpack.core.calls import CallId
from umpack.messages import deliveries, records, spool_health
from umpack.messages.adoption import Adopter, Adoption
from umpack.messages.asked import Asked
from umpack.messages.disk_deliveries import DiskDeliveries
from umpack.messages.fault_points import FaultPoint, FaultPoints
from umpack.messages.fax_tags import read_tags
from umpack.messages.message import (
    CallFacts,
    Delivery,
    DocumentFacts,
    EngineFacts,
    Form,
    Intent,
    Kind,
    Message,
    MessageId,
    Original,
)
from umpack.messages.originals import Originals, checked_name
from umpack.messages.spool_health import SpoolHealth, SpoolLimits, bytes_for
from umpack.messages.spool_schema import SpoolFault, prepare, translated
from umpack.messages.stillness import Stillness

DATABASE = "spool.db"
ASKED = "asked"
QUIET = 120.0
"""Seconds without a change after which a file without a call is taken to be whole. Longer than
any silence within a fax (T.30 T1 is 35 s) or between answer and first page."""
_PURGE_BATCH = 50


@dataclass(frozen=True, slots=True)
class _Reception:
    """One that is going on: its original's name, and the bytes kept free for it."""

    name: str
    need: int
    prepared: bool = False
    """The original's directory is there, for good."""


class DiskSpool(DiskDeliveries):
    """Opening blocks: it checks the database, and what was being sent becomes ambiguous.

    `SpoolFault` is raised by everything when the disk will not; see there. One process at a time:
    a second one is refused. Close it. `domain` is the right side of every Message-ID. `wall` is the
    clock of the file system; with a `now` of the caller's own it is that one, unless it is given.
    """

    def __init__(
        self,
        directory: Path,
        node: str,
        *,
        domain: str = "",
        limits: SpoolLimits | None = None,
        quiet: float = QUIET,
        now: Callable[[], float] = clock.now,
        wall: Callable[[], float] | None = None,
        faults: FaultPoints | None = None,
    ) -> None:
        faults = faults or FaultPoints()
        super().__init__(directory.absolute() / DATABASE, node, domain, now, faults)
        self.directory = directory.absolute()
        self.limits = limits or SpoolLimits()
        self._originals = Originals(self.directory, faults)
        self._originals.begin()
        self._lock = _locked(self.directory)
        self._live: dict[MessageId, _Reception] = {}
        self._closed = False
        self._asked = Asked(self.directory / ASKED)
        try:
            self.moved_aside = prepare(self.path, now())
            self._writer.start()
            left = self._asked.left
            if lost := self._writer.do(lambda db: deliveries.abandon(db, now(), left)):
                logger.warning("spool {}: {} deliveries end in doubt", self.path, lost)
            self._asked.begin_anew()
        except BaseException:
            if self._writer.is_alive():
                self._writer.stop()
            self._asked.close()
            os.close(self._lock)
            raise
        if wall is None:
            wall = clock.wall if now is clock.now else now
        self._adopter = Adopter(
            self._originals, self._writer, self._ids, node, self._mail_id, faults,
            Stillness(quiet, now, wall),
        )  # fmt: skip
        self._thorough = True

    # -- reception --------------------------------------------------------------------------

    def room_for(self, pages: int = 0, seconds: float = 0.0) -> str:
        """Why a call that may bring so much should not be answered; empty if it may be."""
        with self._books:
            promised = sum(reception.need for reception in self._live.values())
        need = bytes_for(pages, seconds)
        return spool_health.refusal(self.directory, self._writer, self.limits, promised, need)

    def intend(
        self,
        call: CallFacts,
        name: str = "original.tif",
        *,
        pages: int = 0,
        seconds: float = 0.0,
    ) -> Intent:
        """A call may be answered once this has returned; its record is durable by then.

        `name` is what the original will be called; the engine writes to the intent's path, whose
        suffix is that of `name`. Room for `pages` or `seconds` is kept until the commit.
        `SpoolFault` if there is none: refuse the call, nothing is left behind.
        """
        checked_name(name)
        if why := self.room_for(pages, seconds):
            raise SpoolFault(f"spool {self.directory}: {why}")
        now = self.now()
        while True:
            id_ = self._ids.new(now)
            # Known as live before it is on disk, or an adoption just running might take it.
            with self._books:
                self._live[id_] = _Reception(name, bytes_for(pages, seconds))
            try:
                self._reach(FaultPoint.INTEND_BEFORE_ROW)
                self._do(
                    lambda db, id_=id_: records.insert_intent(  # type: ignore[misc]
                        db, id_, self.node, call, name, now
                    ),
                    FaultPoint.INTEND_ROW,
                )
                self._reach(FaultPoint.INTEND_DURABLE)
                path = self._originals.reserve(id_, name)
            except FileExistsError:
                self._take_back(id_)
            except BaseException:
                self._take_back(id_)
                raise
            else:
                self._reach(FaultPoint.INTEND_RESERVED)
                return Intent(id_, str(path))

    def recast(self, id_: MessageId, kind: Kind, name: str) -> Intent:
        """It is a message of another kind than was intended: another file for the engine.

        `SpoolFault` if the disk will not: the intent is then as it was. `StateError` if it is
        committed.
        """
        checked_name(name)
        before = self.message(id_).name
        path = self._originals.reserve(id_, name)
        try:
            self._reach(FaultPoint.RECAST_RESERVED)
            self._do(lambda db: records.recast(db, id_, kind, name), FaultPoint.RECAST_ROW)
        except BaseException:
            self._originals.release(path)
            raise
        self._reach(FaultPoint.RECAST_DURABLE)
        with self._books:
            if (reception := self._live.get(id_)) is not None:
                self._live[id_] = replace(reception, name=name)
        self._originals.release(self._originals.path_of(id_, before))
        return Intent(id_, str(path))

    def note_answered(self, id_: MessageId) -> None:
        """Its caller has been answered: for whoever may have to tell what became of it. While the
        engine works, its original's place is prepared."""
        now = self.now()
        self._do(lambda db: records.note_answered(db, id_, now))
        self._originals.prepare(id_)
        with self._books:
            if (reception := self._live.get(id_)) is not None:
                self._live[id_] = replace(reception, prepared=True)

    def withdraw(self, id_: MessageId) -> None:
        """Its caller has not been answered, and will not be: there is nothing to keep of it."""
        self._originals.release(self._originals.path_of(id_, self.message(id_).name))
        self._take_back(id_)

    def commit(self, id_: MessageId, engine: EngineFacts) -> Message:
        """The engine is done. When this returns, the message survives whatever happens.

        If it raises `SpoolFault`, the file is where it was and the commit is owed: `settle` tries
        again. An empty reception is recorded like any other, without an original.
        """
        return self.committing(id_, engine).result()

    def committing(self, id_: MessageId, engine: EngineFacts) -> Future[Message]:
        """See `commit`. Blocks until the file is in its place, and not for the row."""
        now = self.now()

        def attempt() -> Message:
            return self._begin_commit(id_, engine, now).result()

        return self._owing(
            f"commit of {id_}", attempt, lambda lost: self._begin_commit(id_, engine, now, lost)
        )

    def _begin_commit(
        self,
        id_: MessageId,
        engine: EngineFacts,
        now: float,
        lost: Callable[[], None] | None = None,
    ) -> Future[Message]:
        self._reach(FaultPoint.COMMIT_BEGUN)
        reception = self._live.get(id_)
        name = reception.name if reception else self.message(id_).name
        prepared = reception is not None and reception.prepared
        original = self._originals.place(id_, name, prepared=prepared)
        mail_id = self._mail_id(id_)
        facts = self._completed(engine, original)

        def done() -> None:
            self._reach(FaultPoint.COMMIT_DURABLE)
            self._originals.release(self._originals.path_of(id_, name))
            with self._books:
                self._live.pop(id_, None)
            if original is None:
                self._originals.tidy(id_)
            self._reach(FaultPoint.COMMIT_DONE)

        return self._writer.ask(
            lambda db: records.commit(db, id_, original, facts, mail_id, now),
            FaultPoint.COMMIT_ROW, done, lost,
        )  # fmt: skip

    def adopt(self, alive: Collection[CallId] = ()) -> Adoption:
        """Take in what dead processes left. `alive`: calls the PBX still has, if it can be asked.

        Call it at start and every minute: what may still be written to is left for later.
        """
        found = self._adopter.run(self.now(), self._live, alive, thorough=self._thorough)
        self._thorough = False
        if found.adopted:
            logger.warning("spool {}: {} adopted", self.path, len(found.adopted))
        return found

    def describe(
        self, id_: MessageId, document: DocumentFacts, related: MessageId | None = None
    ) -> Message:
        """Keep what was found in the original, and which earlier message it repeats."""
        return self.describing(id_, document, related).result()

    def describing(
        self, id_: MessageId, document: DocumentFacts, related: MessageId | None = None
    ) -> Future[Message]:
        """See `describe`."""
        return self._writer.ask(lambda db: records.describe(db, id_, document, related))

    def address(
        self, id_: MessageId, addresses: Sequence[str], forms: Mapping[str, Form] | None = None
    ) -> Message:
        """Name the recipients, and by address in which form they get it; each is due at once.
        Once only: `StateError`."""
        return self.addressing(id_, addresses, forms).result()

    def addressing(
        self, id_: MessageId, addresses: Sequence[str], forms: Mapping[str, Form] | None = None
    ) -> Future[Message]:
        """See `address`."""
        now = self.now()
        return self._writer.ask(
            lambda db: records.address(db, id_, addresses, now, forms),
            FaultPoint.ADDRESS_ROW,
            partial(self._reach, FaultPoint.ADDRESS_DONE),
        )

    # -- upkeep -----------------------------------------------------------------------------

    def health(self, now: float) -> SpoolHealth:
        """Counts, and a trial write. Raises `SpoolFault` only if the database cannot be read."""
        with self.reading() as db:
            return spool_health.look(db, self.directory, self._writer, self.limits, self.owed, now)

    def purge(self, keep: float, keep_records: float) -> int:
        """Delete originals of messages that ended `keep` seconds ago, then records of those that
        did `keep_records` ago; one small batch. Answers how many originals: 0 when all is done.

        Ended is: every recipient's server has accepted it, or a person has decided. What waits,
        is ambiguous or a dead letter is never touched, however old.
        """
        now = self.now()
        # Marked before anything is deleted: from then on no resend can be decided, and what a
        # crash leaves undeleted is known for what it is (`Adopter`), not sent again.
        marked = self._do(lambda db: records.mark_purged(db, now - keep, _PURGE_BATCH, now))
        self._reach(FaultPoint.PURGE_MARKED)
        for id_ in marked:
            self._originals.remove(id_)
            self._reach(FaultPoint.PURGE_REMOVED)
        past = self._do(lambda db: records.past(db, now - max(keep, keep_records), _PURGE_BATCH))
        # A record that is forgotten before its files are gone would make a new message of them.
        gone = [id_ for id_ in past if self._originals.remove(id_)]
        if gone:
            self._do(lambda db: records.forget(db, gone))
        self._reach(FaultPoint.PURGE_DONE)
        return len(marked)

    def log(self, who: str, what: str, id_: MessageId | None, detail: str) -> None:
        """An entry of the audit log for what is not a decision."""
        now = self.now()
        self._do(lambda db: records.note(db, now, who, what, id_, detail))

    @property
    def live(self) -> frozenset[MessageId]:
        """Receptions of this process that are not committed yet."""
        with self._books:
            return frozenset(self._live)

    def abort(self, id_: MessageId) -> None:
        """The reception will have no commit (its task was lost): adoption may have it."""
        with self._books:
            self._live.pop(id_, None)

    def note_asked(self, delivery: Delivery, server: str) -> None:
        """Which server may have it, should this process be killed. Never raises."""
        self._asked.note(delivery.recipient.key, server)

    def close(self) -> None:
        """Write what was asked for before, then end. May be called again."""
        if not self._closed:
            self._closed = True
            self.settle()
            self.close_readers()  # the last to close clears the log away, which a reader could not
            self._writer.stop()
            self._asked.close()
            os.close(self._lock)

    def __enter__(self) -> DiskSpool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        fault = f", fault: {self._writer.fault}" if self._writer.fault else ""
        return f"<spool {self.directory}: {len(self._live)} receiving, {self.owed} owed{fault}>"

    def _completed(self, engine: EngineFacts, original: Original | None) -> EngineFacts:
        """With what only the file knows."""
        tags = read_tags(self.directory / original.file) if original is not None else None
        return engine if tags is None else tags.complete(engine)

    def _take_back(self, id_: MessageId) -> None:
        def attempt() -> None:
            self._do(lambda db: records.drop_intent(db, id_))

        with suppress(SpoolFault):
            self._owing(f"take back {id_}", attempt, lambda _: attempt())
        with self._books:
            self._live.pop(id_, None)


def _locked(directory: Path) -> int:
    """Two writers with one memory each of what is live would adopt from each other."""
    with translated(directory):
        handle = os.open(directory / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise SpoolFault(f"spool {directory}: in use by another umpack") from None
        except OSError:
            os.close(handle)
            raise
    return handle
