"""What a dead process or PBX left behind is taken in: recorded as it is, never deleted.

    row receiving, file anywhere or none    committed with what there is
    file in receiving, no row               a message of its own with unknown facts
    file in receiving, row committed        attached if it has none yet, else a message of its own
    original in its place, no row           a message under that id (the database was lost)
    original in its place, not in its row   attached, or a message of its own, as above

Taken in only when it is certain to be over: the PBX does not know the call any more, and nobody
writes to the file (`is_settled`); all else is left for the next time. What the channel would have
told is gone; the file tells some of it (`FaxTags`), and the PBX the rest if it could (`LastWords`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from sqlite3 import Connection as Db

from loguru import logger

from umpack.core.calls import CallId
from umpack.core.errors import OurFault, StateError
from umpack.core.printable import printable
from umpack.messages import records
from umpack.messages.fault_points import FaultPoint, FaultPoints
from umpack.messages.fax_tags import read_tags
from umpack.messages.last_words import SUFFIX, read_last_words
from umpack.messages.message import (
    ID,
    CallFacts,
    EngineFacts,
    Kind,
    Message,
    MessageId,
    MessageIds,
    Original,
)
from umpack.messages.originals import Originals, is_regular, is_settled
from umpack.messages.spool_writer import SpoolWriter
from umpack.messages.states import MessageState
from umpack.messages.stillness import Stillness

_SOUND = frozenset({".wav", ".gsm", ".ulaw", ".alaw", ".sln", ".ogg", ".opus"})


@dataclass(frozen=True, slots=True)
class Adoption:
    """What was found. `adopted` are committed now and wait for recipients."""

    adopted: tuple[MessageId, ...] = ()
    left: tuple[str, ...] = ()
    """Calls and files that may not be over yet."""
    strangers: tuple[str, ...] = ()
    """Links, directories and the like in `receiving`: none of ours, left alone."""


@dataclass(slots=True)
class _Found:
    adopted: list[MessageId] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)


class Adopter:
    """Looks through one spool. `mail_id` makes the Message-ID of an id."""

    def __init__(
        self,
        originals: Originals,
        writer: SpoolWriter,
        ids: MessageIds,
        node: str,
        mail_id: Callable[[MessageId], str],
        faults: FaultPoints,
        stillness: Stillness,
    ) -> None:
        self._originals = originals
        self._writer = writer
        self._ids = ids
        self._node = node
        self._mail_id = mail_id
        self._faults = faults
        self._stillness = stillness

    def run(
        self,
        now: float,
        live: Collection[MessageId],
        alive: Collection[CallId],
        *,
        thorough: bool,
    ) -> Adoption:
        """One pass. `live` are receptions of this process, `alive` calls the PBX still has;
        `thorough` compares every original with the records, as is done at start.

        Raises `SpoolFault`; what was taken in before stays so.
        """
        self._faults.reach(FaultPoint.ADOPT_BEGUN)
        found = _Found()
        watched = self._intents(found, now, live, alive)
        watched |= self._files(found, now, live, alive)
        self._stillness.forget_but(watched)
        if thorough:
            self._places(found, now)
        self._faults.reach(FaultPoint.ADOPT_DONE)
        return Adoption(tuple(found.adopted), tuple(found.left), tuple(found.strangers))

    def _intents(
        self,
        found: _Found,
        now: float,
        live: Collection[MessageId],
        alive: Collection[CallId],
    ) -> set[Hashable]:
        state = MessageState.RECEIVING.value
        watched: set[Hashable] = set()
        for message in self._writer.do(
            lambda db: records.fetch_all(
                db, "SELECT id FROM messages WHERE state = ? ORDER BY started", (state,)
            )
        ):
            if message.id in live:
                continue
            watched.add(message.id)
            with self._alone(found, message.id):
                self._intent(found, message, now, alive)
        return watched

    def _intent(
        self, found: _Found, message: Message, now: float, alive: Collection[CallId]
    ) -> None:
        path = self._originals.path_of(message.id, message.name)
        busy = is_regular(path) and not is_settled(path, self._stillness)
        early = not self._stillness.reached(message.id, None, message.started)
        if message.call.call in alive or busy or early:
            found.left.append(message.id)
            return
        original = self._originals.place(message.id, message.name)
        note = self._originals.note_of(message.id)
        said = read_last_words(note) if message.call.kind is Kind.FAX else None
        why = "umpack was away at its call's end" if said else "its call's end was not seen"
        why += "" if original else "; nothing was received"
        engine = said.facts(message.answered) if said else EngineFacts()
        if self._commit(message.id, original, why, now, engine):
            found.adopted.append(message.id)
        self._originals.release(path)
        self._originals.forget(note)

    def _files(
        self,
        found: _Found,
        now: float,
        live: Collection[MessageId],
        alive: Collection[CallId],
    ) -> set[Hashable]:
        waiting = self._originals.waiting()
        for path in waiting:
            with self._alone(found, path.name):
                self._stray(found, path, now, live, alive)
        return set(waiting)

    def _stray(
        self,
        found: _Found,
        path: Path,
        now: float,
        live: Collection[MessageId],
        alive: Collection[CallId],
    ) -> None:
        known = self._known(path)
        if not path.is_symlink() and not path.exists():
            return  # committed since the list was made
        if not is_regular(path):
            found.strangers.append(path.name)
        elif known is not None and (known.id in live or known.state is MessageState.RECEIVING):
            return  # a reception going on, or left above
        elif (known and known.call.call in alive) or not is_settled(path, self._stillness):
            found.left.append(path.name)
        elif path.suffix == SUFFIX and ID.fullmatch(path.stem):
            self._originals.forget(path)  # its record is complete, or the database was lost
        elif path.stat().st_size == 0 and (known or ID.fullmatch(path.stem)):
            # A reservation whose record is complete, or whose intent was taken back.
            self._originals.release(path)
        else:
            self._file(found, path, known, now)

    @contextmanager
    def _alone(self, found: _Found, name: str) -> Iterator[None]:
        """One that cannot be taken in does not stop the others, unless it is the disk."""
        try:
            yield
        except OurFault as fault:
            if self._writer.fault:
                raise
            logger.error("spool: {} is not adopted: {}", printable(name), fault)
            found.left.append(name)

    def _known(self, path: Path) -> Message | None:
        id_ = MessageId(path.stem)
        if not ID.fullmatch(id_):
            return None
        try:
            return self._writer.do(lambda db: records.fetch(db, id_))
        except records.UnknownMessage:
            return None

    def _file(self, found: _Found, path: Path, known: Message | None, now: float) -> None:
        if known is not None and known.state is MessageState.COMMITTED and not known.original:
            self._attach(found, path, known, now)
            return
        # One step per stray file: a row first, under which the file is found if we die here.
        suffix = path.suffix.lower() if path.suffix.lower().isascii() else ""
        suffix = suffix if suffix[1:].isalnum() and len(suffix) <= 8 else ".bin"
        name = f"original{suffix}"
        if known is not None:
            call, why = known.call, f"a further file of {known.id}"
        else:
            kind = Kind.VOICE if suffix in _SOUND else Kind.FAX
            call = CallFacts(CallId(""), kind, "")
            why = f"a file without a record: {printable(path.name)}"
        id_ = self._ids.new(now)

        def begin(db: Db) -> None:
            records.insert_intent(db, id_, self._node, call, name, now)
            if known is not None:
                records.relate(db, id_, known.id)

        # Moved first within the directory, so that after a crash the row and the file have the
        # same name: a row alone would be a call that never was.
        renamed = self._originals.rename(path, id_, name)
        self._faults.reach(FaultPoint.ADOPT_ROW)
        self._writer.do(begin)
        original = self._originals.place(id_, name, renamed)
        self._commit(id_, original, why, now)
        self._originals.release(renamed)
        found.adopted.append(id_)

    def _attach(self, found: _Found, path: Path, known: Message, now: float) -> None:
        original = self._originals.place(known.id, known.name, path)
        if original is not None:
            why = "its file came after its record"
            self._faults.reach(FaultPoint.ADOPT_PLACED)
            engine = self._completed(known.engine or EngineFacts(), original)
            self._writer.do(lambda db: records.attach(db, known.id, original, engine, why, now))
            found.adopted.append(known.id)

    def _places(self, found: _Found, now: float) -> None:
        """There is only something after the database was lost, or put back to an older state, or
        after a death between a file's place and its record."""
        recorded = self._writer.do(
            lambda db: {
                row["id"]: (row["purged"], row["file"])
                for row in db.execute("SELECT id, purged, file FROM messages")
            }
        )
        for id_, path in self._originals.kept():
            if id_ in recorded:
                purged, file = recorded[id_]
                if purged is not None:
                    self._originals.remove(id_)  # its purge was interrupted
                elif file is None:
                    with self._alone(found, path.name):
                        self._unrecorded(found, id_, path, now)
                continue
            kind = Kind.VOICE if path.suffix in _SOUND else Kind.FAX
            call = CallFacts(CallId(""), kind, "")
            with self._alone(found, path.name):
                original = self._originals.place(id_, path.name)
                self._begin_and_commit(id_, call, original, path.name, now)
                found.adopted.append(id_)

    def _unrecorded(self, found: _Found, id_: MessageId, path: Path, now: float) -> None:
        known = self._writer.do(lambda db: records.fetch(db, id_))
        # Else it was left above, or has been committed since the list was made.
        if known.state is not MessageState.RECEIVING and known.original is None:
            self._file(found, path, known, now)

    def _begin_and_commit(
        self, id_: MessageId, call: CallFacts, original: Original | None, name: str, now: float
    ) -> None:
        engine = self._completed(EngineFacts(), original)

        def both(db: Db) -> None:
            records.insert_intent(db, id_, self._node, call, name, now)
            why = "an original without a record"
            records.commit(db, id_, original, engine, self._mail_id(id_), now, why)
            if db.execute("SELECT 1 FROM recipients WHERE message = ?", (id_,)).fetchone():
                records.follow_recipients(db, id_, now)  # their rows could be saved

        self._writer.do(both)

    def _completed(self, engine: EngineFacts, original: Original | None) -> EngineFacts:
        if original is None:
            return engine
        tags = read_tags(self._originals.directory / original.file)
        return engine if tags is None else tags.complete(engine)

    def _commit(
        self,
        id_: MessageId,
        original: Original | None,
        why: str,
        now: float,
        engine: EngineFacts | None = None,
    ) -> bool:
        """False if its own call has committed it in the meantime."""
        facts = self._completed(engine or EngineFacts(), original)

        def job(db: Db) -> Message:
            return records.commit(db, id_, original, facts, self._mail_id(id_), now, why)

        try:
            self._writer.do(job)
        except StateError:
            return False
        return True
