"""From addressed to delivered: what is due is claimed, composed, handed to the transport, ended.

Each delivery is one mail to one recipient and one task, oldest message first, as many at once as
there are connections, so that none stands in front of the others.

While the relays are all away, the queue is not tried message by message: one probe goes out, the
oldest, and when it comes through all the rest follows by age.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final, assert_never

from loguru import logger

from umpack.core.errors import LeaseError, OurFault, StateError
from umpack.messages import retry
from umpack.messages.enclosures import EnclosureFault
from umpack.messages.letter import (
    Address,
    Deferred,
    Delivered,
    LetterError,
    Refused,
    Uncertain,
)
from umpack.messages.letter import Delivery as End
from umpack.messages.message import Delivery, MessageId, Recipient
from umpack.messages.retry import GiveUp, RetryPolicy, TryAt
from umpack.messages.scribe import Scribe
from umpack.messages.spool import Spool
from umpack.messages.spool_schema import SpoolFault
from umpack.messages.states import RecipientState
from umpack.messages.transport import Transport

FAR: Final = 86_399.0
"""Seconds: more than any wait for a retry, less than what the spool takes for a wrong clock."""
PAGE: Final = 200
"""Deliveries read from the spool at a time."""
MOST_WAIT: Final = 30.0
MOST_PROBE_WAIT: Final = 600.0
"""Seconds; as the circuits of the transport rest at most."""
_NOT_A_MAILBOX: Final = 553

HASTENED: Final = 5000
"""Deliveries tried at once, whatever their due time, when a server has come back."""
_AWAY: Final = 3
"""Messages in a row for which no relay could be reached: by one alone, it could be its fault."""

Key = tuple[MessageId, int]


@dataclass(slots=True)
class _Sending:
    """How far one delivery has come."""

    wanted: Recipient
    held: Delivery | None = None
    begun: bool = False
    """The transport has the letter."""
    over: bool = False
    """Its end is known, and is being written."""


@dataclass(frozen=True, slots=True)
class MailerPlan:
    """`relays`: all mail goes the same way, so that one failure can speak for all."""

    retry: RetryPolicy = RetryPolicy()  # noqa: RUF009 - frozen
    at_once: int = 20
    relays: bool = True


class Mailer:
    """`now` gives epoch seconds; `rng` the jitter of retries."""

    def __init__(
        self,
        spool: Spool,
        scribe: Scribe,
        transport: Transport,
        plan: MailerPlan,
        now: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._spool = spool
        self._scribe = scribe
        self._transport = transport
        self._plan = plan
        self._now = now
        self._rng = rng
        self._ready: deque[Recipient] = deque()
        """Read from the spool and not begun."""
        self._more = True
        """There may be due ones in the spool that are not in `_ready`."""
        self._next_due: float | None = None
        self._tasks: dict[asyncio.Task[None], _Sending] = {}
        self._busy: set[Key] = set()
        self._recoveries = transport.recoveries
        self._wake = asyncio.Event()
        self.away_since: float | None = None
        """Since when no relay could be reached."""
        self._unreached: set[Key] = set()
        self._probes = 0
        self._probe_at = 0.0

    def look(self) -> None:
        """There is something new in the spool: a message has been addressed, or a person has
        decided."""
        self._more = True
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled; then `close`."""
        await self._work(until_idle=False)

    async def turn(self) -> None:
        """Send all that is due by now, and what becomes due by it."""
        self._more = True
        await self._work(until_idle=True)

    async def close(self, grace: float = 0.0) -> None:
        """What is being sent may end within `grace` seconds; claims of the rest are given back, or
        become ambiguous where the transport had begun."""
        if self._tasks and grace > 0:
            await asyncio.wait(self._tasks, timeout=grace)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def next_at(self) -> float | None:
        """When there is something to do, as far as is known."""
        if self.away_since is not None:
            return self._probe_at
        return self._now() if self._ready or self._more else self._next_due

    @property
    def oldest(self) -> float | None:
        """Commit of the oldest message that is just being sent."""
        held = (sending.held for sending in self._tasks.values())
        times = (one.message.committed for one in held if one is not None)
        return min((at for at in times if at is not None), default=None)

    def __repr__(self) -> str:
        away = ", mail system away" if self.away_since is not None else ""
        return f"<mailer: {len(self._tasks)} being sent, {len(self._ready)} ready{away}>"

    # -- the queue ------------------------------------------------------------------------------

    async def _work(self, *, until_idle: bool) -> None:
        while True:
            self._wake.clear()
            try:
                await self._fill()
            except SpoolFault as fault:
                logger.error("{}", fault)
                if until_idle and not self._tasks:
                    return
            if until_idle and not self._tasks:
                return
            await self._pause(until_idle=until_idle)

    async def _pause(self, *, until_idle: bool) -> None:
        wait: float | None = None
        if not until_idle:
            due = self.next_at
            # A second at least: what is due and was not begun would else be asked for all the time.
            wait = MOST_WAIT if due is None else min(max(due - self._now(), 1.0), MOST_WAIT)
        try:
            async with asyncio.timeout(wait):
                await self._wake.wait()
        except TimeoutError:
            self._more = True

    async def _fill(self) -> None:
        now = self._now()
        if self.away_since is not None:
            await self._probe(now)
            return
        if self._transport.recoveries != self._recoveries:
            # A server has come back: all that waits is tried, by age and not by its due time.
            self._recoveries = self._transport.recoveries
            await self._read(now + FAR, HASTENED)
        while len(self._tasks) < self._plan.at_once:
            if not self._ready and not (self._more and await self._read(now, PAGE)):
                return
            if self._ready:
                self._begin(self._ready.popleft())

    async def _read(self, until: float, most: int) -> bool:
        """Read what is due; whether there was something new."""
        # Before, for whoever says meanwhile that there is more is right.
        self._more, self._next_due = False, None
        found = await self._spool.due(until, most + len(self._busy))
        self._ready = deque(one.recipient for one in found if _key(one.recipient) not in self._busy)
        self._more |= len(found) >= most
        if not self._ready:
            self._next_due = await self._spool.next_due()
        return bool(self._ready)

    def _begin(self, wanted: Recipient) -> None:
        key = _key(wanted)
        if key in self._busy:
            return

        def ended(task: asyncio.Task[None]) -> None:
            del self._tasks[task]
            self._busy.discard(key)
            self._wake.set()
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.opt(exception=error).error("{}: failed in umpack", wanted.message)

        sending = _Sending(wanted)
        self._busy.add(key)
        task = asyncio.create_task(self._send(sending), name=f"mail {wanted.message}")
        self._tasks[task] = sending
        task.add_done_callback(ended)

    async def _probe(self, now: float) -> None:
        """One message tells whether the relays are back; every fourth time another than the
        oldest, which might itself be what they cannot bear."""
        if self._tasks or now < self._probe_at:
            return
        self._probes += 1
        turn = self._probes // 4 if self._probes % 4 == 0 else 0
        found = await self._spool.due(now + FAR, turn + 1)
        if not found:
            self.away_since = None
            return
        wait = self._plan.retry.delay(self._probes, self._rng.random())
        self._probe_at = now + min(wait, MOST_PROBE_WAIT)
        self._begin(found[turn % len(found)].recipient)

    def _heard(self, key: Key, end: End) -> None:
        """What an end says about the relays as a whole."""
        if not isinstance(end, Deferred) or end.reached:
            self._unreached.clear()
            if self.away_since is not None:
                logger.info("the mail system is back")
                self.away_since, self._probes = None, 0
                self._recoveries = -1  # all that waits is tried now
            return
        self._unreached.add(key)
        if self._plan.relays and self.away_since is None and len(self._unreached) >= _AWAY:
            self.away_since, self._probes = self._now(), 0
            self._probe_at = self.away_since + self._plan.retry.delay(1, self._rng.random())
            self._ready.clear()
            logger.error("the mail system is away: {}", end.why)

    # -- one delivery ---------------------------------------------------------------------------

    async def _send(self, sending: _Sending) -> None:
        wanted = sending.wanted
        try:
            try:
                await _carried(self._claim(sending))
            except StateError:
                return  # another was first, or a person has decided
            held = sending.held
            if held is None:
                return
            end = await self._try(held, sending)
            sending.over = True
            await _carried(self._end(held, end))
        except asyncio.CancelledError:
            if sending.held is not None and not sending.over:
                await self._give_back(sending.held, begun=sending.begun)
            raise
        except (SpoolFault, LeaseError) as fault:
            # What was known is owed by the spool now, and written when the disk works again.
            logger.error("{}", fault)
        except Exception as error:
            # A fault of ours with one message: it is tried later, and the others go on.
            logger.opt(exception=error).error("{}: failed in umpack", wanted.message)
            if sending.held is not None and not sending.over:
                await self._end(sending.held, Deferred(f"fault in umpack: {error!r}", reached=True))

    async def _claim(self, sending: _Sending) -> None:
        wanted = sending.wanted
        # A delivery that is hastened, or probed with, is not due yet.
        at = max(self._now(), wanted.next_at)
        sending.held = await self._spool.claim(wanted.message, wanted.number, at)

    async def _try(self, held: Delivery, sending: _Sending) -> End:
        key = _key(held.recipient)
        try:
            letter = await self._scribe.letter(held)
        except EnclosureFault as fault:
            logger.error("{}: {}", held.message.id, fault)
            return Deferred(str(fault), reached=True)
        except LetterError as fault:
            return Refused(f"5.1.3 {fault}", _NOT_A_MAILBOX)
        if letter is None:
            return Deferred("no mail could be composed", reached=True)
        to, before = letter.recipients[0], sending.wanted
        doubtful = before.state is RecipientState.AMBIGUOUS and before.server
        uncertain: Mapping[Address, str] = {to: before.server} if doubtful else {}
        sending.begun = True
        end = (await self._transport.deliver(letter, (to,), uncertain=uncertain))[to]
        self._heard(key, end)
        return end

    async def _end(self, held: Delivery, end: End) -> None:
        now, spool = self._now(), self._spool
        match end:
            case Delivered():
                await spool.sent(held, now, end.server, end.reply, end.queue_id or "")
            case Refused():
                logger.error("{} to no. {}: {}", held.message.id, held.recipient.number, end.why)
                # Whoever cannot have it shall know of it, and where it is.
                await spool.refused(held, now, end.why, note=end.too_large)
            case Deferred():
                next_at, last = self._next(held, now, end.retry_after, reached=end.reached)
                await spool.failed(held, now, next_at, end.why)
                await self._expire(held, now, last)
            case Uncertain():
                next_at, last = self._next(held, now, None, reached=True)
                await spool.uncertain(held, now, next_at, end.why, end.server)
                await self._expire(held, now, last)
            case _:
                assert_never(end)
        self._more = True

    def _next(
        self, held: Delivery, now: float, after: float | None, *, reached: bool
    ) -> tuple[float, str]:
        """When it is tried again, and if it is not, why."""
        recipient, committed = held.recipient, held.message.committed
        # What a person sends again has its own time.
        since = recipient.date if recipient.edition > 1 or committed is None else committed
        policy, dice = self._plan.retry, self._rng.random()
        decided = retry.decide(
            policy, since, recipient.tries + 1, now, dice, retry_after=after, reached=reached
        )
        match decided:
            case TryAt():
                return decided.due, ""
            case GiveUp():
                return now, decided.why
            case _:
                assert_never(decided)

    async def _expire(self, held: Delivery, now: float, why: str) -> None:
        if why:
            logger.error("{} to no. {}: {}", held.message.id, held.recipient.number, why)
            await self._spool.expired(held.message.id, held.recipient.number, now, why)

    async def _give_back(self, held: Delivery, *, begun: bool) -> None:
        now = self._now()
        try:
            if begun:
                why = "umpack ended while it was being sent"
                await self._spool.uncertain(held, now, now, why, "")
            else:
                await self._spool.released(held, now)
        except OurFault as fault:
            logger.error("{}", fault)


def _key(recipient: Recipient) -> Key:
    return recipient.message, recipient.number


async def _carried(work: Coroutine[Any, Any, None]) -> None:
    """Carried to its end even if we are cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        raise
