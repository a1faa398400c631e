"""What a dead process or PBX left behind is taken in: recorded as it is, never deleted.

    row receiving, file anywhere or none    committed with what there is
    file in receiving, no row               a message of its own with unknown facts
    file in receiving, row committed        attached if it has none yet, else a message of its own
    original in its place, no row           a message under that id (the database was lost)

Taken in only when it is certain to be over: the PBX does not know the call any more, and nobody
writes to the file (`is_settled`); all else is left for the next time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
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
    ) -> None:
        self._originals = originals
        self._writer = writer
        self._ids = ids
        self._node = node
        self._mail_id = mail_id
        self._faults = faults

    def run(
        self,
        now: float,
        live: Collection[MessageId],
        alive: Collection[CallId],
        quiet: float,
        *,
        thorough: bool,
    ) -> Adoption:
        """One pass. `live` are receptions of this process, `alive` calls the PBX still has;
        `thorough` compares every original with the records, as is done at start.

        Raises `SpoolFault`; what was taken in before stays so.
        """
        self._faults.reach(FaultPoint.ADOPT_BEGUN)
        found = _Found()
        self._intents(found, now, live, alive, quiet)
        self._files(found, now, live, alive, quiet)
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
        quiet: float,
    ) -> None:
        state = MessageState.RECEIVING.value
        for message in self._writer.do(
            lambda db: records.fetch_all(
                db, "SELECT id FROM messages WHERE state = ? ORDER BY started", (state,)
            )
        ):
            if message.id in live:
                continue
            with self._alone(found, message.id):
                self._intent(found, message, now, alive, quiet)

    def _intent(
        self, found: _Found, message: Message, now: float, alive: Collection[CallId], quiet: float
    ) -> None:
        path = self._originals.path_of(message.id, message.name)
        busy = is_regular(path) and not is_settled(path, now, quiet)
        early = message.started <= now < message.started + quiet
        if message.call.call in alive or busy or early:
            found.left.append(message.id)
            return
        original = self._originals.place(message.id, message.name)
        why = "its call's end was not seen" + ("" if original else "; nothing was received")
        if self._commit(message.id, original, why, now):
            found.adopted.append(message.id)
        self._originals.release(path)

    def _files(
        self,
        found: _Found,
        now: float,
        live: Collection[MessageId],
        alive: Collection[CallId],
        quiet: float,
    ) -> None:
        for path in self._originals.waiting():
            known = self._known(path)
            if not path.is_symlink() and not path.exists():
                continue  # committed since the list was made
            if not is_regular(path):
                found.strangers.append(path.name)
            elif known is not None and (known.id in live or known.state is MessageState.RECEIVING):
                continue  # a reception going on, or left above
            elif (known and known.call.call in alive) or not is_settled(path, now, quiet):
                found.left.append(path.name)
            elif path.stat().st_size == 0 and (known or ID.fullmatch(path.stem)):
                # A reservation whose record is complete, or whose intent was taken back.
                self._originals.release(path)
            else:
                with self._alone(found, path.name):
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
            self._writer.do(lambda db: records.attach(db, known.id, original, why, now))
            found.adopted.append(known.id)

    def _places(self, found: _Found, now: float) -> None:
        """There is only something after the database was lost, or put back to an older state."""
        recorded = self._writer.do(
            lambda db: {
                row["id"]: row["purged"] for row in db.execute("SELECT id, purged FROM messages")
            }
        )
        for id_, path in self._originals.kept():
            if id_ in recorded:
                if recorded[id_] is not None:
                    self._originals.remove(id_)  # its purge was interrupted
                continue
            kind = Kind.VOICE if path.suffix in _SOUND else Kind.FAX
            call = CallFacts(CallId(""), kind, "")
            with self._alone(found, path.name):
                original = self._originals.place(id_, path.name)
                self._begin_and_commit(id_, call, original, path.name, now)
                found.adopted.append(id_)

    def _begin_and_commit(
        self, id_: MessageId, call: CallFacts, original: Original | None, name: str, now: float
    ) -> None:
        def both(db: Db) -> None:
            records.insert_intent(db, id_, self._node, call, name, now)
            why = "an original without a record"
            records.commit(db, id_, original, EngineFacts(), self._mail_id(id_), now, why)
            if db.execute("SELECT 1 FROM recipients WHERE message = ?", (id_,)).fetchone():
                records.follow_recipients(db, id_, now)  # their rows could be saved

        self._writer.do(both)

    def _commit(self, id_: MessageId, original: Original | None, why: str, now: float) -> bool:
        """False if its own call has committed it in the meantime."""

        def job(db: Db) -> Message:
            return records.commit(db, id_, original, EngineFacts(), self._mail_id(id_), now, why)

        try:
            self._writer.do(job)
        except StateError:
            return False
        return True
