"""What the daemon keeps: calls that have ended, and what must survive a restart.

Takes both off the distributor whenever the daemon's pump comes round, and hands them to journal,
metrics and log; nothing here waits for a disk on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from math import inf

from loguru import logger

from umpack import clock
from umpack.config.configuration import Journal as JournalPlan
from umpack.core.calls import CallId, CallRecord, Ending
from umpack.core.channel import ChannelId
from umpack.core.distributor import Distributor
from umpack.core.errors import OurFault
from umpack.core.health_states import HealthMemory
from umpack.core.pack import PackId
from umpack.history import History
from umpack.journal import Journal, SavedState
from umpack.log import line_of
from umpack.web.metrics import Metrics
from umpack.web.views import View

_ON_DISK_WITHIN = 5.0
"""Seconds a person waits for the disk before being told that it does not answer."""

_RECALL = 1.0
"""Seconds between questions for what an earlier run had saved, while the disk does not answer."""

_REMEMBER = 30.0
"""Seconds between looks at what trunks' states do not show: failures so far, ejections forgiven.
A change of state is saved at once."""


class Records:
    """The journal of one distributor, the counts of what has ended, the history of its trunks."""

    def __init__(self, distributor: Distributor, node: str, plan: JournalPlan) -> None:
        self.metrics = Metrics()
        self.history = History()
        self.journal: Journal
        self.resumed = False
        """There was a run before this one, whose calls may live on in the PBXs."""
        self._distributor = distributor
        self._node = node
        self._plan = plan
        self._pointers: dict[PackId, ChannelId] = {}
        self._trunks: tuple[HealthMemory, ...] = ()
        self._due = False
        """The trunks have changed since they were saved."""
        self._remember_at = -inf
        self._recalled = False
        """What the last run had saved is known, and may be written over."""
        self._put_back: set[str] = set()
        """What people have put back into service before it is."""

    async def open(self) -> None:
        """Open the journal, and have the distributor take up where the last run ended."""
        plan = self._plan
        self.journal = await asyncio.to_thread(Journal, plan.path, self._node, keep=plan.keep)
        for aside in self.journal.moved_aside:
            logger.error("the journal was damaged: kept as {}, a new one begun", aside)
        try:
            state = await asyncio.to_thread(self.journal.load_state)
        except OurFault as fault:
            logger.error("begun without what the last run had saved: {}", fault)
            self.resumed = True
            return
        self.resumed = bool(state.pointers or state.drains or state.trunks)
        self._distributor.restore(state.drains, state.pointers.items())
        self._distributor.remembered(state.trunks, clock.now())
        self._recalled = True

    async def recall(self) -> None:
        """Where the disk did not let `open` know what the last run had saved, wait for that. What
        has been set or seen since is newer; until then nothing is saved over it."""
        while not self._recalled:
            await asyncio.sleep(_RECALL)
            with contextlib.suppress(OurFault):
                state = await asyncio.to_thread(self.journal.load_state)
                self._recall(state)

    def put_back(self, target: str) -> None:
        """A person has put it back into service, whatever the last run had saved of it."""
        if not self._recalled:
            self._put_back.add(target)

    def _recall(self, state: SavedState) -> None:
        distributor = self._distributor
        newer = self._put_back.union(drain.target for drain in distributor.drains)
        distributor.restore(
            [drain for drain in state.drains if drain.target not in newer],
            [(id_, at) for id_, at in state.pointers.items() if id_ not in distributor.pointers],
        )
        known = distributor.site.trunks
        distributor.remembered([m for m in state.trunks if m.trunk not in known], clock.now())
        self._recalled = self._due = True
        logger.info("what the last run had saved is known again")

    async def close(self) -> None:
        """Write what is left, and say what could not be written."""
        if lost := await asyncio.to_thread(self.journal.close):
            logger.error("{} calls could not be written to the journal", lost)

    def take(self, now: float) -> None:
        """Take over what has happened since the last time: ended calls, changes of health, and
        drains that end by the wall clock, which is what people mean by `until`."""
        over = self._distributor.expire_drains(clock.wall())
        for drain in over:
            logger.info("{} is back in service: its time is over", drain.target)
        if records := self._distributor.take_records():
            self.journal.append(records)
            self.metrics.count(records)
            for record in records:
                # A leak is a fault of somebody's, though it cost this call nothing.
                level = "WARNING" if record.ending is Ending.LEAKED else "INFO"
                logger.log(level, "{}", line_of(record))
        if changes := self._distributor.take_changes():
            self.history.take(changes)
            self.metrics.count_changes(changes)
        if changes or now >= self._remember_at:
            self._remember(now)
        if over or self._due or self._distributor.pointers != self._pointers:
            self._save()

    def take_last(self, now: float) -> None:
        """The same, for the last time: trunks are saved as they are now."""
        self._remember_at = now
        self.take(now)

    def _remember(self, now: float) -> None:
        """Look how the trunks are; what is as before stays the same tuple, and is not written."""
        self._remember_at = now + _REMEMBER
        trunks = self._distributor.memories(now)
        if trunks != self._trunks:
            self._trunks, self._due = trunks, True

    def _save(self) -> None:
        if not self._recalled:
            return
        pointers = self._distributor.pointers
        self.journal.save_state(pointers, self._distributor.drains, self._trunks)
        self._pointers, self._due = pointers, False

    async def save_now(self, what: str) -> None:
        """Have pointers, drains and trunks on disk; `OurFault` says that `what` is so, but may be
        forgotten."""
        self._remember(clock.now())
        self._save()
        try:
            await asyncio.to_thread(self.journal.flush, _ON_DISK_WITHIN)
            if not self._recalled:
                raise OurFault("what the last run had saved is not known yet")
        except OurFault as error:
            raise OurFault(f"{what}, but a restart may forget that: {error}") from error

    async def ended_calls(self, limit: int, **filters: str) -> list[CallRecord]:
        """Newest first; those that ended just now are among them. Filters as `Archive.calls`."""
        await self._write_out()
        ending, channel = filters.get("ending"), filters.get("channel")
        return await asyncio.to_thread(
            self.journal.calls,
            limit,
            called=filters.get("called"),
            caller=filters.get("caller"),
            ending=Ending(ending) if ending else None,
            channel=ChannelId(channel) if channel else None,
        )

    async def ended_call(self, id_: str) -> CallRecord | None:
        """One of them."""
        await self._write_out()
        return await asyncio.to_thread(self.journal.call, CallId(id_))

    async def _write_out(self) -> None:
        self.take(clock.now())
        with contextlib.suppress(OurFault):  # the disk does not answer: show what is there
            await asyncio.to_thread(self.journal.flush, 1.0)

    def status(self) -> View:
        """How writing goes."""
        fault = self.journal.fault
        return {
            "fault": fault.what if fault else None,
            "since": fault.since if fault else None,
            "waiting": self.journal.waiting,
            "dropped": self.journal.dropped,
        }
