"""From addressed to delivered: what is due is claimed, composed, handed to the transport, ended.

Each delivery is one mail to one recipient and one task, oldest message first, as many at once as
there are connections, so that none stands in front of the others.

While the relays are all away, the queue is not tried message by message: one probe goes out, the
oldest, and when it comes through all the rest follows by age. Which of the others was only not
reached is known; who was put off by a server's own words waits for his time.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, Final

from loguru import logger

from umpack.core.errors import LeaseError, StateError
from umpack.messages.enclosures import EnclosureFault
from umpack.messages.ends import Ends, since
from umpack.messages.letter import (
    Address,
    Deferred,
    Delivered,
    LetterError,
    Refused,
)
from umpack.messages.letter import Delivery as End
from umpack.messages.mail_system import MailSystem, Memory, silence
from umpack.messages.message import Delivery, DeliveryKey, Message, Recipient
from umpack.messages.retry import RetryPolicy
from umpack.messages.scribe import Scribe
from umpack.messages.spool_schema import SpoolFault
from umpack.messages.states import RecipientState
from umpack.messages.store import MessageStore
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
"""Deliveries looked at, whatever their due time, when a server has come back."""
HASTEN_AGAIN: Final = 60.0
"""Seconds at least between two such looks: a server that flaps must not drive the queue."""
INSIST: Final = 86_400.0
"""Seconds for which only the server that may have a message is asked, as long as it answers: from
then on a second copy, which the same Message-ID gives away, is better than none."""
_AWAY: Final = 3
"""Messages in a row for which no relay could be reached: by one alone, it could be its fault."""


@dataclass(slots=True)
class _Sending:
    """How far one delivery has come."""

    wanted: Recipient
    held: Delivery | None = None
    server: str = ""
    """Which is being asked, or was the last; empty: nothing has left us."""
    over: bool = False
    """Its end is known, and is being written."""


@dataclass(frozen=True, slots=True)
class MailerPlan:
    """`relays`: all mail goes the same way, so that one failure can speak for all."""

    retry: RetryPolicy = RetryPolicy()  # noqa: RUF009 - frozen
    at_once: int = 20
    relays: bool = True


class Mailer:
    """`now` gives epoch seconds; `rng` the jitter of retries; `memory` outlives a restart."""

    def __init__(
        self,
        spool: MessageStore,
        scribe: Scribe,
        transport: Transport,
        plan: MailerPlan,
        now: Callable[[], float],
        rng: random.Random,
        memory: Memory | None = None,
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
        """When the first of those in the spool is, if none was; None if that is not known."""
        self._read_at = 0.0
        self._tasks: dict[asyncio.Task[None], _Sending] = {}
        self._busy: set[DeliveryKey] = set()
        self._recoveries = transport.recoveries
        self._wake = asyncio.Event()
        self.away_since: float | None = None
        """Since when no relay could be reached."""
        self.system = MailSystem(silence(plan.retry.cap), plan.relays)
        if memory is not None:
            memory.recall(self.system)
        self._ends = Ends(spool, plan.retry, self.system, now, rng, memory)
        self._in_a_row: set[DeliveryKey] = set()
        """Not reached, and none was since."""
        self._unreached: set[DeliveryKey] = set()
        """Whose last try reached nobody: to be hastened when a server is back."""
        self._hastened: set[DeliveryKey] = set()
        """Of these, who has been since he was last due."""
        self._hasten_at = 0.0
        self._probes = 0
        self._probe_at = 0.0

    def look(self) -> None:
        """There is something new in the spool: a person has decided, say."""
        self._more = True
        self._wake.set()

    def take(self, message: Message) -> None:
        """A message has been addressed. It is the youngest: when all before it has been read from
        the spool, it need not be."""
        new = all(one.state is RecipientState.QUEUED for one in message.recipients)
        if self._more or not new or self.away_since is not None or len(self._ready) >= PAGE:
            self._more = True
        else:
            self._ready += message.recipients
        self._wake.set()

    def change(self, scribe: Scribe, transport: Transport, plan: MailerPlan) -> None:
        """From the next delivery on. Other servers are a reason to try who reached none before."""
        if transport is not self._transport:
            self._recoveries, self._hasten_at = -1, self._now()
            self._hastened.clear()
            self._probe_at = self._now()
        self._scribe, self._transport, self._plan = scribe, transport, plan
        self.system.silence, self.system.relays = silence(plan.retry.cap), plan.relays
        self._ends.policy = plan.retry
        if not plan.relays:
            self.away_since = self.system.silent_since = None
        self.look()

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
        if self._ready or self._more:
            return self._now()
        times = [self._next_due, self._hasten_at if self._recovered and self._unreached else None]
        return min((at for at in times if at is not None), default=None)

    @property
    def _recovered(self) -> bool:
        return self._transport.recoveries != self._recoveries

    @property
    def oldest(self) -> float | None:
        """Commit of the oldest message that is just being sent."""
        held = (sending.held for sending in self._tasks.values())
        times = (one.message.committed for one in held if one is not None)
        return min((at for at in times if at is not None), default=None)

    @property
    def ends(self) -> Counter[str]:
        """How many tries ended how since the start."""
        return self._ends.counts

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
        if self._recovered and now >= self._hasten_at:
            self._recoveries = self._transport.recoveries
            self._hasten_at = now + HASTEN_AGAIN
            await self._hasten(now)
        # As long as there is always something to do, `_pause` is never over by itself.
        self._more |= now >= min(self._next_due or inf, self._read_at + MOST_WAIT)
        while len(self._tasks) < self._plan.at_once:
            if not self._ready and not (self._more and await self._read(now, PAGE)):
                return
            if self._ready:
                self._begin(self._ready.popleft())

    async def _read(self, until: float, most: int) -> bool:
        """Read what is due; whether there was something new."""
        # Before, for whoever says meanwhile that there is more is right.
        self._more, self._next_due, self._read_at = False, None, until
        found = await self._spool.due(until, most + len(self._busy))
        # Some of what was taken meanwhile may have been read as well.
        ready = {one.key: one for one in (*(due.recipient for due in found), *self._ready)}
        self._ready = deque(one for key, one in ready.items() if key not in self._busy)
        if self._ready:
            self._more = True  # until none is found, and when the next is due is asked
        elif (due := await self._spool.next_due()) is not None:
            # What is due by now is just being claimed, and says itself when it is not sent; or it
            # cannot be read, and will not be the next second either.
            unreadable = due <= until and not self._busy
            self._next_due = max(due, until + (MOST_WAIT if unreadable else 1.0))
        return bool(self._ready)

    async def _hasten(self, now: float) -> None:
        """A server has come back: whoever was only not reached is tried now, by age among those
        that are due. Once until he is due himself, or one that no server bears would never rest.
        """
        self._more = False
        found = await self._spool.due(now + FAR, HASTENED + len(self._busy))
        self._ready.clear()  # what is due comes again, among the others by its age
        keys = {one.recipient.key for one in found}
        if len(found) < HASTENED:
            self._unreached &= keys
            self._hastened &= keys
        for one in found:
            key = one.recipient.key
            if key in self._busy:
                continue
            ripe = one.recipient.next_at <= now
            if not ripe and key in self._unreached and key not in self._hastened:
                self._hastened.add(key)
                ripe = True
            if ripe:
                self._ready.append(one.recipient)
        self._more = True

    def _begin(self, wanted: Recipient) -> None:
        key = wanted.key
        if key in self._busy:
            return
        if wanted.next_at <= self._now():
            self._hastened.discard(key)

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

    def _heard(self, key: DeliveryKey, end: End) -> None:
        """What an end says about the relays as a whole."""
        now = self._now()
        if not isinstance(end, Deferred) or end.reached:
            self._unreached.discard(key)
            self._in_a_row.clear()
            self.system.answered(now)
            if self.away_since is not None:
                logger.info("the mail system is back")
                self.away_since, self._probes = None, 0
                self.system.returned(now)
                self._hastened.clear()
                self._recoveries, self._hasten_at = -1, now  # all that was not reached goes now
            return
        if end.answered:
            self.system.answered(now)
        else:
            self.system.silent(now)
        self._unreached.add(key)
        self._in_a_row.add(key)
        if self._plan.relays and self.away_since is None and len(self._in_a_row) >= _AWAY:
            self.away_since, self._probes = now, 0
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
                await self._ends.give_back(sending.held, sending.server)
            raise
        except (SpoolFault, LeaseError) as fault:
            # What was known is owed by the spool now, and written when the disk works again.
            logger.error("{}", fault)
        except Exception as error:
            # A fault of ours with one message: it is tried later, and the others go on.
            logger.opt(exception=error).error("{}: failed in umpack", wanted.message)
            if sending.held is not None and not sending.over:
                await self._end(sending.held, Deferred(f"fault in umpack: {error!r}", reached=True))

    async def _end(self, held: Delivery, end: End) -> None:
        await self._ends.write(held, end, away=self.away_since is not None)
        self._more |= not isinstance(end, Delivered)

    async def _claim(self, sending: _Sending) -> None:
        wanted = sending.wanted
        # A delivery that is hastened, or probed with, is not due yet.
        at = max(self._now(), wanted.next_at)
        sending.held = await self._spool.claim(wanted.message, wanted.number, at)

    async def _try(self, held: Delivery, sending: _Sending) -> End:
        key = held.recipient.key
        try:
            letter = await self._scribe.letter(held)
        except EnclosureFault as fault:
            logger.error("{}: {}", held.message.id, fault)
            return Deferred(str(fault), reached=True)
        except LetterError as fault:
            return Refused(f"5.1.3 {fault}", _NOT_A_MAILBOX)
        if letter is None:
            return Deferred("no mail could be composed", reached=True)
        to, before = letter.recipients[0], held.recipient
        # Whatever came after it, the server of the last doubt may have the letter until it says.
        doubtful = before.doubts and before.server
        uncertain: Mapping[Address, str] = {to: before.server} if doubtful else {}

        def asking(server: str) -> None:
            sending.server = server
            self._spool.note_asked(held, server)

        found = await self._transport.deliver(
            letter, (to,), uncertain=uncertain, asking=asking,
            insist=self._now() - since(held) < INSIST,
        )  # fmt: skip
        end = found[to]
        self._heard(key, end)
        return end


async def _carried(work: Coroutine[Any, Any, None]) -> None:
    """Carried to its end even if we are cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        raise
