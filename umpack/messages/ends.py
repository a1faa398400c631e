"""How a try ended, into log and spool: delivered, dead, or when it is tried again."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import assert_never

from loguru import logger

from umpack.core.errors import OurFault
from umpack.messages import retry
from umpack.messages.letter import Deferred, Delivered, Refused, Uncertain
from umpack.messages.letter import Delivery as End
from umpack.messages.mail_system import MailSystem, Memory
from umpack.messages.message import Decision, Delivery
from umpack.messages.retry import GiveUp, RetryPolicy, TryAt
from umpack.messages.store import MessageStore


class Ends:
    """Writes them. `policy` may be changed at any time."""

    def __init__(
        self,
        spool: MessageStore,
        policy: RetryPolicy,
        system: MailSystem,
        now: Callable[[], float],
        rng: random.Random,
        memory: Memory | None = None,
    ) -> None:
        self.policy = policy
        self.system = system
        self.counts: Counter[str] = Counter()
        """Since the start: delivered, put off, refused, expired, ambiguous."""
        self._spool = spool
        self._now = now
        self._rng = rng
        self._memory = memory

    async def write(self, held: Delivery, end: End, *, away: bool) -> None:
        """One line in the log, and into the spool. `away`: no relay can be reached at all. Raises
        `SpoolFault`, `LeaseError`."""
        now, spool = self._now(), self._spool
        whose = f"{held.message.id} to no. {held.recipient.number}"
        # One line for every end, before the spool has it: the disk may not take it.
        match end:
            case Delivered():
                self.counts["delivered"] += 1
                logger.info(
                    "{}: delivered to {}, queue id {}: {}",
                    whose, end.server, end.queue_id or "-", end.reply,
                )  # fmt: skip
                await spool.sent(held, now, end.server, end.reply, end.queue_id or "")
            case Refused():
                self.counts["refused"] += 1
                logger.error("{}: refused, a dead letter: {}", whose, end.why)
                # Whoever cannot have it shall know of it, and where it is.
                await spool.refused(held, now, end.why, note=end.too_large)
            case Deferred():
                # Not against the message as long as nobody is reached; where each domain has
                # servers of its own, that is never known.
                spoken = end.reached or not (away or self.system.away(now))
                next_at, last = await self._next(held, now, end.retry_after, reached=spoken)
                self.counts["put off"] += 1
                logger.info("{}: put off for {:.0f} s: {}", whose, next_at - now, end.why)
                await spool.failed(held, now, next_at, end.why)
                await self._expire(held, now, last)
            case Uncertain():
                next_at, last = await self._next(held, now, None, reached=True)
                self.counts["ambiguous"] += 1
                logger.warning(
                    "{}: ambiguous, {} may have it; again in {:.0f} s: {}",
                    whose, end.server or "a server", next_at - now, end.why,
                )  # fmt: skip
                await spool.uncertain(held, now, next_at, end.why, end.server)
                await self._expire(held, now, last)
            case _:
                assert_never(end)
        if self._memory is not None and self._memory.due(self.system, now):
            await asyncio.to_thread(self._memory.note, self.system, now)

    async def _next(
        self, held: Delivery, now: float, after: float | None, *, reached: bool
    ) -> tuple[float, str]:
        """When it is tried again, and if it is not, why."""
        dice, policy = self._rng.random(), self.policy
        begun = max(since(held), self.system.back)

        def decided_from(begun: float) -> retry.Decision:
            return retry.decide(
                policy, begun, held.recipient.tries + 1, now, dice,
                retry_after=after, reached=reached,
            )  # fmt: skip

        decided = decided_from(begun)
        if isinstance(decided, GiveUp):
            # Asked for only now: what a person said to try again has its time anew.
            decided = decided_from(max(begun, await self._retried(held)))
        match decided:
            case TryAt():
                return decided.due, ""
            case GiveUp():
                return now, decided.why
            case _:
                assert_never(decided)

    async def _expire(self, held: Delivery, now: float, why: str) -> None:
        if why:
            self.counts["expired"] += 1
            logger.error("{} to no. {}: {}", held.message.id, held.recipient.number, why)
            await self._spool.expired(held.message.id, held.recipient.number, now, why)

    async def _retried(self, held: Delivery) -> float:
        """When a person last said that it be tried again; 0 if nobody has."""
        number = held.recipient.number
        said = [
            entry.at
            for entry in await self._spool.audit(held.message.id)
            if entry.what == Decision.RETRY.value
            and entry.detail.partition(";")[0] in ("all", f"no. {number}")
        ]
        return max(said, default=0.0)

    async def give_back(self, held: Delivery, server: str) -> None:
        """umpack ends: ambiguous at the `server` that was being asked, else as before the claim."""
        now = self._now()
        try:
            if server:
                why = "umpack ended while it was being sent"
                logger.warning(
                    "{} to no. {}: ambiguous, {} may have it: {}",
                    held.message.id, held.recipient.number, server, why,
                )  # fmt: skip
                await self._spool.uncertain(held, now, now, why, server)
            else:
                await self._spool.released(held, now)
        except OurFault as fault:
            logger.error("{}", fault)


def since(held: Delivery) -> float:
    """From when its lifetime counts, as far as the message itself is concerned."""
    recipient, committed = held.recipient, held.message.committed
    # What a person sends again has its own time.
    return recipient.date if recipient.edition > 1 or committed is None else committed
