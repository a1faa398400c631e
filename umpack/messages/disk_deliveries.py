"""Deliveries from the spool on this node's disk: blocking, callable from any thread.

What the disk refuses to take is owed: it is kept in memory and tried again, as a server that has
said 250 will not say it twice. If umpack ends before, the delivery is found in sending at the next
start and becomes ambiguous: it goes out once more, under the same Message-ID.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from loguru import logger

from umpack.core.errors import OurFault
from umpack.journal.rows import stored
from umpack.messages import deliveries, records
from umpack.messages.fault_points import FaultPoint, FaultPoints
from umpack.messages.message import Decision, Delivery, Form, Message, MessageId, MessageIds
from umpack.messages.spool_archive import SpoolArchive
from umpack.messages.spool_schema import SpoolFault
from umpack.messages.spool_writer import Job, SpoolWriter, prove_writable
from umpack.messages.states import RecipientEvent

T = TypeVar("T")

_READERS = 2
"""Each keeps up to 2 MB of the database in memory."""


class DiskDeliveries(SpoolArchive):
    """The part of `DiskSpool` that senders and people use. What ends in -ing does not block: it
    answers a future of the writer's."""

    def __init__(
        self,
        path: Path,
        node: str,
        domain: str,
        now: Callable[[], float],
        faults: FaultPoints,
    ) -> None:
        super().__init__(path, _READERS)
        self.node = node
        self.now = now
        self._ids = MessageIds(node)
        self._domain = domain or f"{self._ids.node}.invalid"
        self._reach = faults.reach
        self._writer = SpoolWriter(path, faults)
        self._owed: dict[str, Callable[[], object]] = {}
        self._books = threading.Lock()

    def claim(self, id_: MessageId, number: int, now: float) -> Delivery:
        """Take a delivery for sending. `StateError` if it is not to be had: not an error of the
        sender's, another was first. It must then end by exactly one of the following."""
        return self.claiming(id_, number, now).result()

    def claiming(self, id_: MessageId, number: int, now: float) -> Future[Delivery]:
        """See `claim`."""
        token = secrets.token_hex(8)
        return self._writer.ask(
            lambda db: deliveries.claim(db, id_, number, token, now),
            FaultPoint.CLAIM_ROW,
            partial(self._reach, FaultPoint.CLAIM_DONE),
        )

    def sent(
        self, delivery: Delivery, now: float, server: str, reply: str, queue_id: str = ""
    ) -> None:
        """250 after the final dot. This and the next three raise `LeaseError` if the delivery is
        not held; on `SpoolFault` the outcome is owed, and tried again by `settle`."""
        self.sending(delivery, now, server, reply, queue_id).result()

    def sending(
        self, delivery: Delivery, now: float, server: str, reply: str, queue_id: str = ""
    ) -> Future[None]:
        """See `sent`."""
        return self._ending(
            delivery, RecipientEvent.ACCEPTED, now,
            server=server, reply=reply, queue_id=queue_id, why="",
        )  # fmt: skip

    def failed(
        self, delivery: Delivery, now: float, next_at: float, why: str, server: str = ""
    ) -> None:
        """4xx, or no server was reached: due again at `next_at`."""
        self._ending(
            delivery, RecipientEvent.DEFERRED, now, next_at, server=server, why=why
        ).result()

    def refused(
        self, delivery: Delivery, now: float, why: str, server: str = "", *, note: bool = False
    ) -> None:
        """5xx: a dead letter, for a person to decide on. With `note` the recipient is told of it
        in a mail without the files, addressed in the same transaction."""

        def told(db: sqlite3.Connection) -> None:
            deliveries.add_note(db, delivery.recipient, now, self._domain)

        self._ending(
            delivery, RecipientEvent.REFUSED, now, then=told if note else None,
            server=server, reply=why, why=why,
        ).result()  # fmt: skip

    def shape(self, id_: MessageId, number: int, form: Form) -> None:
        """Fix in which form the mail of a delivery is written."""
        self.shaping(id_, number, form).result()

    def shaping(self, id_: MessageId, number: int, form: Form) -> Future[None]:
        """See `shape`."""
        return self._writer.ask(lambda db: deliveries.shape(db, id_, number, form))

    def uncertain(
        self, delivery: Delivery, now: float, next_at: float, why: str, server: str
    ) -> None:
        """The server may have it: due again at `next_at`, at the same server first."""
        self._ending(
            delivery, RecipientEvent.UNCERTAIN, now, next_at, server=server, why=why
        ).result()

    def released(self, delivery: Delivery, now: float) -> None:
        """Nothing was sent (umpack stops, no connection was free): as before the claim."""
        self._ending(delivery, RecipientEvent.RELEASED, now).result()

    def expired(self, id_: MessageId, number: int, now: float, why: str) -> None:
        """Tried for too long: a dead letter."""
        self._do(lambda db: deliveries.close_one(db, id_, number, RecipientEvent.EXPIRED, why, now))

    def bounced(self, id_: MessageId, number: int, now: float, why: str) -> None:
        """A delivery report came after the 250: a dead letter after all."""

        def job(db: sqlite3.Connection) -> None:
            deliveries.close_one(db, id_, number, RecipientEvent.BOUNCED, why, now)
            records.note(db, now, "umpack", "bounce", id_, f"no. {number}; {why}")

        self._do(job)

    def decide(
        self,
        id_: MessageId,
        by: str,
        what: Decision,
        *,
        number: int | None = None,
        addresses: Sequence[str] = (),
        why: str = "",
    ) -> Message:
        """What a person has said, for one delivery or all; audited. See `deliveries.decide`."""
        now = self.now()
        return self._do(
            lambda db: deliveries.decide(
                db, id_, by, what, now, self._domain, number, addresses, why
            )
        )

    @property
    def owed(self) -> int:
        """Commits and outcomes that the disk refused to take."""
        return len(self._owed)

    def settle(self) -> int:
        """Try the disk, then what is owed, in its order; answers how much is left. Never raises."""
        with suppress(SpoolFault):
            # Calls are refused while it is broken or slow: nobody else would find out.
            self._do(prove_writable)
        for name, attempt in list(self._owed.items()):
            try:
                attempt()
            except SpoolFault:
                break
            except OurFault as error:
                logger.error("spool {}: {} will not be: {}", self.path, name, error)
            with self._books:
                self._owed.pop(name, None)
        return self.owed

    def _do(self, job: Job[T], reached: FaultPoint | None = None) -> T:
        return self._writer.do(job, reached)

    def _ending(
        self,
        delivery: Delivery,
        event: RecipientEvent,
        now: float,
        next_at: float | None = None,
        then: Job[None] | None = None,
        **words: str,
    ) -> Future[None]:
        columns: dict[str, str | float] = {key: stored(text) for key, text in words.items() if text}
        if next_at is not None:
            columns["next_at"] = next_at
        self._reach(FaultPoint.OUTCOME_BEFORE_ROW)

        def ended(db: sqlite3.Connection) -> None:
            deliveries.end(db, delivery, event, now, **columns)
            if then is not None:
                then(db)

        held = delivery.recipient
        name = f"outcome of {held.message} to no. {held.number}"

        def attempt() -> None:
            self._do(ended, FaultPoint.OUTCOME_ROW)

        done = partial(self._reach, FaultPoint.OUTCOME_DONE)
        return self._owing(
            name, attempt,
            lambda lost: self._writer.ask(ended, FaultPoint.OUTCOME_ROW, done, lost),
        )  # fmt: skip

    def _owing(
        self,
        name: str,
        attempt: Callable[[], object],
        ask: Callable[[Callable[[], None]], T],
    ) -> T:
        """What the disk refuses now must be done when it works again, by `attempt`. `ask` begins it
        now; what it is given is to be called when that fails later."""

        def lost() -> None:
            with self._books:
                self._owed[name] = attempt

        try:
            return ask(lost)
        except SpoolFault:
            lost()
            raise

    def _mail_id(self, id_: MessageId) -> str:
        return f"<{id_}@{self._domain}>"
