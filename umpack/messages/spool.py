"""The spool as the daemon holds it: a `DiskSpool` asked from an event loop, which never waits.

What touches files or only reads runs on one of a few threads; all that writes rows meets in one
transaction on the writer's, which is asked directly where there is nothing else to do. What has
begun goes on when its caller is cancelled, as callers hang up in the midst of a commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from loguru import logger

from umpack import clock
from umpack.core.calls import CallId
from umpack.core.errors import OurFault
from umpack.messages.adoption import Adoption
from umpack.messages.disk_spool import QUIET, DiskSpool
from umpack.messages.fault_points import FaultPoints
from umpack.messages.message import (
    CallFacts,
    Decision,
    Delivery,
    DocumentFacts,
    EngineFacts,
    Form,
    Intent,
    Kind,
    Message,
    MessageId,
)
from umpack.messages.spool_archive import AuditEntry, OpenCalls
from umpack.messages.spool_health import SpoolHealth, SpoolLimits
from umpack.messages.spool_schema import SpoolFault
from umpack.messages.states import MessageState

THREADS = 16
"""How many commits may share a sync."""
_ANSWER_WITHIN = 2.0
_PURGE_PAUSE = 0.2

P = ParamSpec("P")
T = TypeVar("T")


class Spool:
    """Implements `MessageStore`; what a method does and raises is said at `DiskSpool`.

    Opening blocks, as it checks the database. Close it with `close`, after the last call.
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
        self.disk = DiskSpool(
            directory, node, domain=domain, limits=limits, quiet=quiet, now=now,
            wall=wall, faults=faults,
        )  # fmt: skip
        self._threads = ThreadPoolExecutor(THREADS, "umpack-spool")

    async def room_for(self, pages: int = 0, seconds: float = 0.0) -> str:
        """Why a call should not be answered; empty if it may be. A disk that hangs is a reason,
        given within two seconds, as the caller's exchange waits."""
        try:
            async with asyncio.timeout(_ANSWER_WITHIN):
                return await self._ask(self.disk.room_for, pages, seconds)
        except TimeoutError:
            return f"disk has not answered for {_ANSWER_WITHIN:.0f} s"

    async def intend(
        self,
        call: CallFacts,
        name: str = "original.tif",
        *,
        pages: int = 0,
        seconds: float = 0.0,
    ) -> Intent:
        """Durable when it returns. A disk that hangs is a `SpoolFault` within two seconds, and what
        it may still do is undone. If it is cancelled, the reception is left to adoption."""
        asked = self._begin(self.disk.intend, call, name, pages=pages, seconds=seconds)
        try:
            async with asyncio.timeout(_ANSWER_WITHIN):
                return await asyncio.shield(asked)
        except TimeoutError:
            asked.add_done_callback(self._withdraw)
            raise SpoolFault(f"disk has not answered for {_ANSWER_WITHIN:.0f} s") from None
        except asyncio.CancelledError:
            asked.add_done_callback(self._abort)
            raise

    async def recast(self, id_: MessageId, kind: Kind, name: str) -> Intent:
        """It is a message of another kind than was intended. A disk that hangs is a `SpoolFault`
        within two seconds: what the record then says is not certain."""
        try:
            async with asyncio.timeout(_ANSWER_WITHIN):
                return await self._ask(self.disk.recast, id_, kind, name)
        except TimeoutError:
            raise SpoolFault(f"disk has not answered for {_ANSWER_WITHIN:.0f} s") from None

    def note_answered(self, id_: MessageId) -> None:
        """Its caller has been answered. Nobody waits for the disk here."""
        self._begin(self.disk.note_answered, id_).add_done_callback(_log_failure)

    def note_asked(self, delivery: Delivery, server: str) -> None:
        """A server is asked to take it from now on. Nobody waits for the disk here."""
        self._begin(self.disk.note_asked, delivery, server)

    async def commit(self, id_: MessageId, engine: EngineFacts) -> Message:
        """The message survives whatever happens when this returns."""
        return await _written(await self._ask(self.disk.committing, id_, engine))

    async def adopt(self, alive: Collection[CallId] = ()) -> Adoption:
        """Take in what dead processes left."""
        return await self._ask(self.disk.adopt, alive)

    async def describe(
        self, id_: MessageId, document: DocumentFacts, related: MessageId | None = None
    ) -> Message:
        """Keep what was found in the original."""
        return await _written(self.disk.describing(id_, document, related))

    async def address(
        self, id_: MessageId, addresses: Sequence[str], forms: Mapping[str, Form] | None = None
    ) -> Message:
        """Name the recipients."""
        return await _written(self.disk.addressing(id_, addresses, forms))

    async def shape(self, id_: MessageId, number: int, form: Form) -> None:
        """Fix in which form the mail of a delivery is written."""
        await _written(self.disk.shaping(id_, number, form))

    async def unaddressed(self, limit: int = 100) -> list[Message]:
        """What nobody has been named for yet, oldest first."""
        return await self._ask(self.disk.unaddressed, limit)

    async def due(self, now: float, limit: int = 100) -> list[Delivery]:
        """What may be sent now, oldest first."""
        return await self._ask(self.disk.due, now, limit)

    async def next_due(self) -> float | None:
        """When the next open delivery is due."""
        return await self._ask(self.disk.next_due)

    async def claim(self, id_: MessageId, number: int, now: float) -> Delivery:
        """Take one delivery for sending."""
        return await _written(self.disk.claiming(id_, number, now))

    async def sent(
        self, delivery: Delivery, now: float, server: str, reply: str, queue_id: str = ""
    ) -> None:
        """250 after the final dot."""
        await _written(self.disk.sending(delivery, now, server, reply, queue_id))

    async def failed(
        self, delivery: Delivery, now: float, next_at: float, why: str, server: str = ""
    ) -> None:
        """4xx, or no server was reached."""
        await self._ask(self.disk.failed, delivery, now, next_at, why, server)

    async def refused(
        self, delivery: Delivery, now: float, why: str, server: str = "", *, note: bool = False
    ) -> None:
        """5xx: a dead letter; with `note` its recipient is told."""
        await self._ask(self.disk.refused, delivery, now, why, server, note=note)

    async def uncertain(
        self, delivery: Delivery, now: float, next_at: float, why: str, server: str
    ) -> None:
        """The server may have it."""
        await self._ask(self.disk.uncertain, delivery, now, next_at, why, server)

    async def released(self, delivery: Delivery, now: float) -> None:
        """Nothing was sent."""
        await self._ask(self.disk.released, delivery, now)

    async def expired(self, id_: MessageId, number: int, now: float, why: str) -> None:
        """Tried for too long: a dead letter."""
        await self._ask(self.disk.expired, id_, number, now, why)

    async def bounced(self, id_: MessageId, number: int, now: float, why: str) -> None:
        """A delivery report came after the 250."""
        await self._ask(self.disk.bounced, id_, number, now, why)

    async def decide(
        self,
        id_: MessageId,
        by: str,
        what: Decision,
        *,
        number: int | None = None,
        addresses: Sequence[str] = (),
        why: str = "",
    ) -> Message:
        """What a person has said; audited."""
        return await self._ask(
            self.disk.decide, id_, by, what, number=number, addresses=addresses, why=why
        )

    async def message(self, id_: MessageId) -> Message:
        """One record."""
        return await self._ask(self.disk.message, id_)

    async def messages(
        self,
        limit: int = 100,
        since: float | None = None,
        until: float | None = None,
        number: str | None = None,
        state: MessageState | None = None,
        called: str | None = None,
        caller: str | None = None,
    ) -> list[Message]:
        """Records that fit all that is given, newest first."""
        return await self._ask(
            self.disk.messages, limit, since, until, number, state, called, caller
        )

    async def of_calls(self, calls: Sequence[CallId]) -> Mapping[CallId, tuple[MessageId, ...]]:
        """The messages of each call that has any."""
        return await self._ask(self.disk.of_calls, calls)

    async def open_calls(self, limit: int = 1000) -> OpenCalls:
        """What a reconciliation has to explain."""
        return await self._ask(self.disk.open_calls, limit)

    async def receiving(self) -> Sequence[Message]:
        """All intents that have no end yet."""
        return (await self.open_calls()).without_message

    async def audit(self, id_: MessageId | None = None, limit: int = 100) -> list[AuditEntry]:
        """Who did what, newest first."""
        return await self._ask(self.disk.audit, id_, limit)

    async def health(self, now: float) -> SpoolHealth:
        """Counts, and a trial write."""
        return await self._ask(self.disk.health, now)

    async def purge(self, keep: float, keep_records: float) -> int:
        """Delete originals past their retention, in small batches with pauses; answers how many."""
        gone = 0
        while batch := await self._ask(self.disk.purge, keep, keep_records):
            gone += batch
            await asyncio.sleep(_PURGE_PAUSE)
        return gone

    async def tend(
        self,
        alive: Callable[[], Collection[CallId]],
        keep: float,
        keep_records: float,
        *,
        every: float = 30.0,
        purge_every: float = 3600.0,
    ) -> None:
        """Until cancelled: settle what is owed, adopt, and purge. `alive` as for `adopt`.

        A disk that fails is tried again at the next turn.
        """
        turns = 0
        while True:
            try:
                await self._ask(self.disk.settle)
                await self.adopt(alive())
                if turns % max(round(purge_every / every), 1) == 0:
                    await self.purge(keep, keep_records)
            except OurFault as fault:
                logger.error("{}", fault)
            turns += 1
            await asyncio.sleep(every)

    async def close(self) -> None:
        """Finish what has begun, then end."""
        await asyncio.to_thread(self._close)

    async def __aenter__(self) -> Spool:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return repr(self.disk)

    def _close(self) -> None:
        self._threads.shutdown()
        self.disk.close()

    def _begin(self, call: Callable[P, T], *args: P.args, **more: P.kwargs) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._threads, partial(call, *args, **more))

    async def _ask(self, call: Callable[P, T], *args: P.args, **more: P.kwargs) -> T:
        return await _carried(self._begin(call, *args, **more))

    def _withdraw(self, asked: asyncio.Future[Intent]) -> None:
        """An intent that came too late: its call was refused."""
        if asked.exception() is None:
            id_ = asked.result().id
            try:
                self._begin(self.disk.withdraw, id_).add_done_callback(_log_failure)
            except RuntimeError:  # the threads have ended with the spool
                self.disk.abort(id_)

    def _abort(self, asked: asyncio.Future[Intent]) -> None:
        """An intent that nobody waits for any more."""
        if asked.exception() is None:
            self.disk.abort(asked.result().id)


def _log_failure(asked: asyncio.Future[T]) -> None:
    if (error := asked.exception()) is not None:
        logger.error("spool: {}", error)


async def _written(answer: Future[T]) -> T:
    """What the writer answers, without a thread that waits for it."""
    return await _carried(asyncio.wrap_future(answer))


async def _carried(asked: asyncio.Future[T]) -> T:
    """Its end is logged at least, if its caller has gone."""
    try:
        return await asyncio.shield(asked)
    except asyncio.CancelledError:
        asked.add_done_callback(_log_failure)
        raise
