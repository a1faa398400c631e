"""The messages of one node as the daemon holds them: spool, desk, mailer, alarms, reconciliation.

calls -> room_for, intend, commit -> desk -> mailer -> the site's mail servers
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final

import dns.asyncresolver
from loguru import logger

from umpack import clock
from umpack.config.mail import MessagesPlan
from umpack.core.calls import CallId
from umpack.core.errors import OurFault, StateError
from umpack.messages import alarms
from umpack.messages.adoption import Adoption
from umpack.messages.alarms import Alarm, Alarms, Status
from umpack.messages.circuits import Circuit
from umpack.messages.desk import Desk
from umpack.messages.directory import Mailboxes
from umpack.messages.enclosures import Enclosures
from umpack.messages.letter import Address
from umpack.messages.mail_system import Memory
from umpack.messages.mailer import FAR, Mailer, MailerPlan
from umpack.messages.message import (
    CallFacts,
    Decision,
    EngineFacts,
    Intent,
    Kind,
    Message,
    MessageId,
)
from umpack.messages.parts import Parts, in_force, parts_of
from umpack.messages.reconciliation import (
    WINDOW,
    AnsweredCall,
    Reconciliation,
    reconcile,
    report,
)
from umpack.messages.retry import is_late
from umpack.messages.scribe import Scribe
from umpack.messages.spool import Spool
from umpack.messages.spool_health import SpoolHealth, SpoolLimits
from umpack.messages.spool_schema import SpoolFault
from umpack.messages.transport import Transport
from umpack.messages.voice import Coding

LOOK: Final = 15.0
"""Seconds between looks for alarms."""
OPEN_AGAIN: Final = 5.0
"""Seconds until a spool that could not be opened is tried again."""
RECONCILE_AT: Final = 3
"""The hour of the night, local time."""
_STARTED: Final = 60.0
"""Seconds after the start: by then the calls of before have been adopted or are known."""

Alive = Callable[[], Collection[CallId]]
Calls = Callable[[float], Awaitable[Sequence[AnsweredCall]]]
"""Calls that services have answered and that ended since then, from the journal."""


class Messages:
    """`open`, `start`, `close`. What calls need may be asked from `open` on.

    `now` gives epoch seconds; `alive` the calls the PBX still has; `calls` the journal's. `wall`
    and `sleep` are for the nights, which people's clocks make.
    """

    def __init__(
        self,
        plan: MessagesPlan,
        node: str,
        *,
        alive: Alive = frozenset,
        calls: Calls | None = None,
        now: Callable[[], float] = clock.now,
        rng: random.Random | None = None,
        spool: Callable[..., Spool] = Spool,
        resolver: dns.asyncresolver.Resolver | None = None,
        wall: Callable[[], float] = clock.wall,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.plan = plan
        self._node = node
        self._alive = alive
        self._calls = calls
        self._now = now
        self._rng = rng or random.SystemRandom()
        self._make_spool = spool
        self._resolver = resolver
        self._wall = wall
        self._sleep = sleep
        self._tasks: list[asyncio.Task[None]] = []
        self._opening: asyncio.Task[None] | None = None
        self._found: Parts | None = None
        self._enclosures: Enclosures
        self._mailboxes: Mailboxes
        self._alarms = Alarms()
        self.spool: Spool
        self.desk: Desk
        self.mailer: Mailer
        self.closed_by = ""
        """Why there is no spool, if there is none; then only calls without messages are taken."""
        self.status: Status | None = None
        """Of the last look; None before the first."""
        self.reconciled: Reconciliation | None = None

    # -- life -----------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the spool, read directories and texts. `ConfigError` or `SpoolFault` if not."""
        plan = self.plan
        # Read once: a mistake that somebody makes in a file while the spool is shut must not end
        # umpack when it can be had again.
        if self._found is None:
            self._found = await asyncio.to_thread(
                parts_of, plan, self._now, self._rng, self._resolver
            )
        parts = self._parts
        enclosures = Enclosures(
            plan.spool, coding=_CODINGS[plan.voice], conversions=plan.conversions
        )
        spool = await asyncio.to_thread(
            self._make_spool, plan.spool, self._node, domain=plan.domain, now=self._now,
            limits=SpoolLimits(reserve_bytes=plan.reserve),
        )  # fmt: skip
        if aside := spool.disk.moved_aside:
            logger.error("the spool's database was damaged: kept as {}", aside)
        self.spool, self._enclosures = spool, enclosures
        self._mailboxes = Mailboxes(parts.sources, parts.default)
        memory = Memory(plan.spool / "mail-system.json")
        self.mailer = await asyncio.to_thread(
            Mailer, spool, self._scribe(), parts.transport, _mailer_plan(plan), self._now,
            self._rng, memory,
        )  # fmt: skip
        self.desk = Desk(
            spool, enclosures, self._mailboxes, plan.bundles, self._now,
            addressed=self.mailer.take,
        )  # fmt: skip
        self.closed_by = ""
        self.take_on(self._parts)  # a reload may have come while the database was checked

    async def open_if_it_will(self) -> None:
        """As `open`; but a spool that cannot be had now (full, read-only, in the hands of another
        umpack that has not ended yet) is tried again from `start` on: it is no reason to leave the
        calls of all packs without umpack. Raises `ConfigError` only."""
        try:
            await self.open()
        except SpoolFault as fault:
            self.closed_by = str(fault)
            await self.look()

    async def start(self) -> None:
        """Adopt what was left, and let everything run; now, or as soon as the spool can be had."""
        if not await self._started():
            self._opening = asyncio.create_task(self._start_later(), name="messages: opening")

    async def _start_later(self) -> None:
        while not await self._started():
            await self.look()
            await self._sleep(OPEN_AGAIN)
        logger.info("the spool {} is open: calls are received again", self.plan.spool)

    async def _started(self) -> bool:
        plan = self.plan
        try:
            if self.closed_by:
                await self.open()
            await self.spool.adopt(self._alive())
            await self.desk.recall()
        except SpoolFault as fault:
            if self.closed_by:
                self.closed_by = str(fault)
            logger.error("{}", fault)
            return False
        for name, work in (
            ("spool", self.spool.tend(self._alive, plan.keep, plan.keep_records)),
            ("desk", self.desk.run()),
            ("mailer", self.mailer.run()),
            ("alarms", self._look_again()),
            ("reconciliation", self._nightly()),
        ):
            self._tasks.append(asyncio.create_task(work, name=f"messages: {name}"))
        return True

    async def close(self, grace: float = 5.0) -> None:
        """What is being sent has `grace` seconds; then claims are given back. May be called in
        any state."""
        tasks = [*self._tasks, *([self._opening] if self._opening else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()
        self._opening = None
        if not hasattr(self, "spool"):
            return
        if hasattr(self, "desk"):
            await self.desk.close()
            await self.mailer.close(grace)
        await self.spool.close()

    async def watch(self) -> None:
        """Until cancelled, or until a part ends by itself: that is raised, a fresh start is better
        than going on without it."""
        if (opening := self._opening) is not None:
            await opening
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    # -- reload ---------------------------------------------------------------------------------

    async def prepared(self, wanted: MessagesPlan) -> Parts:
        """Make all that a new plan needs, as far as it needs no restart; nothing is changed yet.
        Raises `ConfigError`."""
        plan = in_force(self.plan, wanted)
        return await asyncio.to_thread(
            parts_of, plan, self._now, self._rng, self._resolver, self._found
        )

    def take_on(self, parts: Parts) -> None:
        """From now on. What is being sent comes to its end in the old way."""
        self.plan, self._found = parts.plan, parts
        if not self.closed_by:
            self._mailboxes.change(parts.sources, parts.default)
            self.mailer.change(self._scribe(), parts.transport, _mailer_plan(parts.plan))

    @property
    def transport(self) -> Transport:
        """As it is now."""
        return self._parts.transport

    @property
    def _parts(self) -> Parts:
        if self._found is None:
            raise StateError("messages: not opened")
        return self._found

    def _scribe(self) -> Scribe:
        parts = self._parts
        sender = Address(parts.plan.sender)
        return Scribe(
            self.spool, self._enclosures, self._mailboxes, parts.composer, sender, parts.plain,
            self._now,
        )  # fmt: skip

    def summary(self) -> dict[str, Any]:
        """How it stood at the last look, for the status of the node."""
        found = self.status
        health = found.health if found else None
        return {
            "queue": health.queue + health.unaddressed if health else None,
            "oldest_age": health.oldest_age if health else None,
            "receiving": health.receiving if health else None,
            "dead_letters": health.dead_letters if health else None,
            "ambiguous": health.ambiguous if health else None,
            "free_bytes": health.free_bytes if health else None,
            "writable": health.writable if health else False,
            "away_since": found.away_since if found else None,
            "resting": len(found.resting) if found else 0,
            "ends": {} if self.closed_by else dict(self.mailer.ends),
            "alarms": [asdict(alarm) for alarm in found.alarms] if found else [],
        }

    # -- what calls need ------------------------------------------------------------------------

    async def room_for(self, pages: int = 0, seconds: float = 0.0) -> str:
        """Why a call should not be answered; empty if it may be."""
        return self.closed_by or await self.spool.room_for(pages, seconds)

    async def intend(
        self, call: CallFacts, name: str = "original.tif", *, pages: int = 0, seconds: float = 0.0
    ) -> Intent:
        """A call is about to be answered. Raises `SpoolFault`: refuse it."""
        self._must_be_open()
        return await self.spool.intend(call, name, pages=pages, seconds=seconds)

    async def recast(self, id_: MessageId, kind: Kind, name: str) -> Intent:
        """It is a message of another kind than was intended. Raises `SpoolFault`."""
        return await self.spool.recast(id_, kind, name)

    def note_answered(self, id_: MessageId) -> None:
        """Its caller has been answered; does not wait."""
        self.spool.note_answered(id_)

    async def commit(self, id_: MessageId, engine: EngineFacts) -> Message:
        """The call is over; the message survives whatever happens when this returns."""
        message = await self.spool.commit(id_, engine)
        self.desk.take(message)
        return message

    async def receiving(self) -> Sequence[Message]:
        """All intents that have no end yet."""
        return () if self.closed_by else await self.spool.receiving()

    def lost(self, id_: MessageId) -> None:
        """The call's end will not be heard of here: adoption may have what it left."""
        self.spool.disk.abort(id_)

    async def adopt(self) -> Adoption:
        """Take in what dead calls left, now and not at the next turn."""
        return await self.spool.adopt(self._alive())

    # -- what people need -----------------------------------------------------------------------

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
        """A person's word; audited, and carried out at once."""
        self._must_be_open()
        message = await self.spool.decide(
            id_, by, what, number=number, addresses=addresses, why=why
        )
        self.mailer.look()
        return message

    async def reconcile(self) -> Reconciliation:
        """Compare calls and messages. Raises `SpoolFault`."""
        self._must_be_open()
        now = self._now()
        # No further back than records are kept.
        since = now - min(WINDOW, self.plan.keep_records)
        calls = () if self._calls is None else await self._calls(since)
        self.reconciled = found = await reconcile(self.spool, calls, now, since)
        return found

    def _must_be_open(self) -> None:
        if self.closed_by:
            raise SpoolFault(self.closed_by)

    # -- alarms ---------------------------------------------------------------------------------

    async def look(self) -> Status:
        """How it stands now; new alarms and those that are over are logged."""
        now = self._now()
        if self.closed_by:
            words = f"{self.closed_by}: calls for a service are refused"
            found = [Alarm("spool", words, now, about="closed")]
            self.status = Status(now, None, self._alarms.take(found), None, {})
            return self.status
        health: SpoolHealth | None = None
        try:
            health = await self.spool.health(now)
            found = await self.alarms_of(health, now)
        except OurFault as fault:
            health, found = None, [Alarm("spool", str(fault), now, about="fault")]
        resting = {name: circuit.why for name, circuit in self._resting().items()}
        away = self.mailer.away_since
        self.status = Status(now, health, self._alarms.take(found), away, resting)
        return self.status

    async def alarms_of(self, health: SpoolHealth, now: float) -> list[Alarm]:
        """What there is to say, of a spool in this health."""
        found: list[Alarm] = []
        oldest = await self._oldest(now)
        if oldest is not None and is_late(self.plan.retry, oldest, now):
            words = f"not delivered for {now - oldest:.0f} s; {health.queue} in the queue"
            found.append(Alarm("late", words, oldest + self.plan.retry.late_after))
        directories = [(one.name, one.fault) for one in self._parts.sources]
        return [
            *found,
            *alarms.of_spool(health, self.plan.reserve, now),
            *alarms.of_pages(self.desk.mismatches),
            *alarms.of_others(self._resting(), directories, self.mailer.away_since, now),
            *alarms.of_calls(self.reconciled),
        ]

    async def _oldest(self, now: float) -> float | None:
        """Commit of the oldest message that should be in its mailbox by now: calls that wait to be
        told together are not late."""
        times = [self.desk.oldest, self.mailer.oldest]
        times += [one.message.committed for one in await self.spool.due(now + FAR, 1)]
        return min((at for at in times if at is not None), default=None)

    def _resting(self) -> Mapping[str, Circuit]:
        return self.transport.circuits.resting()

    async def _look_again(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(LOOK)

    async def _nightly(self) -> None:
        await self._sleep(_STARTED)
        while True:
            try:
                report(await self.reconcile(), self.plan.retry.late_after)
            except OurFault as fault:
                logger.error("reconciliation: {}", fault)
            await self._sleep(until_night(self._wall()))


_CODINGS: Final = {
    "wav": Coding.AS_RECORDED, "opus": Coding.OPUS, "alaw": Coding.A_LAW, "ulaw": Coding.MU_LAW
}  # fmt: skip


def _mailer_plan(plan: MessagesPlan) -> MailerPlan:
    return MailerPlan(plan.retry, plan.connections, bool(plan.relays))


def until_night(wall: float) -> float:
    """Seconds from then to the next reconciliation."""
    here = datetime.fromtimestamp(wall).astimezone()
    at = here.replace(hour=RECONCILE_AT, minute=0, second=0, microsecond=0)
    seconds = (at - here).total_seconds()
    return seconds if seconds > 0 else seconds + 86_400.0
