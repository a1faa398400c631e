"""From committed to addressed: a message is examined, judged with others of its caller, and routed.

A call that brought something goes out at once. Calls that failed wait until their caller has given
up or come through, and are told together (`outcomes.notices`). They stay committed, unaddressed,
until the mail that tells of them has been delivered; which mail that is stands in the audit log
before that mail is addressed, so that a restart knows it and no call is told twice, or never.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from loguru import logger

from umpack.core.errors import OurFault, StateError, UmpackError
from umpack.messages.directory import Mailboxes
from umpack.messages.enclosures import BROKEN, Enclosures
from umpack.messages.message import Decision, DocumentFacts, Form, Kind, Message, MessageId
from umpack.messages.outcomes import (
    Bundle,
    BundlePolicy,
    Caller,
    Outcome,
    caller_of,
    miscounted,
    notices,
    outcome,
    relation,
)
from umpack.messages.spool import Spool
from umpack.messages.spool_schema import SpoolFault
from umpack.messages.states import ENDED
from umpack.messages.told import BUNDLE, RULE, TELLS_OF, TOLD_IN, tells_of

TICK: Final = 10.0
"""Seconds between looks for what was adopted, and for bundles whose mail has arrived."""
DOUBT: Final = 600.0
"""Seconds a message waits for a directory that cannot be asked, before the next best has it."""
_AT_ONCE: Final = 32
_FAILURES: Final = 3
_MANY: Final = 100_000
_EARLIER: Final = 50
_DAY: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class _Parked:
    """A decision that could not be carried out yet."""

    due: float
    bundle: Bundle


class Desk:
    """`addressed` is told of every message that has recipients now; it must not block."""

    def __init__(
        self,
        spool: Spool,
        enclosures: Enclosures,
        mailboxes: Mailboxes,
        policy: BundlePolicy,
        now: Callable[[], float],
        addressed: Callable[[Message], None],
    ) -> None:
        self._spool = spool
        self._enclosures = enclosures
        self._mailboxes = mailboxes
        self._policy = policy
        self._now = now
        self._addressed = addressed
        self._new: deque[Message] = deque()
        self._known: set[MessageId] = set()
        """All that are on this desk, wherever they lie."""
        self._working: dict[asyncio.Task[None], Message] = {}
        self._waiting: dict[Caller, dict[MessageId, Message]] = defaultdict(dict)
        self._due: dict[Caller, float] = {}
        self._told: dict[Caller, list[Message]] = {}
        self._parked: list[_Parked] = []
        self._bound: dict[MessageId, MessageId] = {}
        self._failures: Counter[MessageId] = Counter()
        self._later: list[tuple[float, Message]] = []
        self._mismatches: dict[MessageId, float] = {}
        self._scan_at = 0.0
        self._wake = asyncio.Event()

    def take(self, message: Message) -> None:
        """A message has been committed."""
        if message.id not in self._known:
            self._known.add(message.id)
            self._new.append(message)
            self._wake.set()

    async def recall(self) -> None:
        """At start: which calls are told in a mail that is on its way, and who was told of late.

        Raises `SpoolFault`.
        """
        now = self._now()
        for message in await self._spool.unaddressed(_MANY):
            main = await self._main_of(message.id)
            if main is not None:
                self._known.add(message.id)
                self._bound[message.id] = main.id
            else:
                self.take(message)
        late = await self._spool.messages(_MANY, since=now - 2 * self._policy.longest)
        for message in reversed(late):  # as they came: a whole one ends what was before it
            if message.recipients:
                self._remember(message)

    async def run(self) -> None:
        """Until cancelled."""
        await self._work(until_idle=False)

    async def turn(self) -> None:
        """All that can be done by now."""
        await self._work(until_idle=True)

    async def close(self) -> None:
        """End what is being examined; nothing is lost by it."""
        for task in self._working:
            task.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)

    @property
    def next_at(self) -> float | None:
        """When something is due next, as far as is known; new messages apart."""
        times = [*self._due.values(), *(parked.due for parked in self._parked)]
        times += [due for due, _ in self._later]
        return min(times, default=None)

    @property
    def oldest(self) -> float | None:
        """Commit of the oldest message that should have been addressed by now."""
        stuck = [*self._new, *self._working.values(), *(message for _, message in self._later)]
        stuck += [parked.bundle.main for parked in self._parked]
        return min((m.committed for m in stuck if m.committed is not None), default=None)

    @property
    def mismatches(self) -> Mapping[MessageId, float]:
        """Messages of the last day of which the engine had received something else than is in the
        file, and when that was found: worth an alarm, as a full disk looks so."""
        return dict(self._mismatches)

    def __repr__(self) -> str:
        waiting = sum(map(len, self._waiting.values()))
        examined = len(self._new) + len(self._working)
        return f"<desk: {examined} to be examined, {waiting} wait, {len(self._bound)} are told>"

    # -- the work -----------------------------------------------------------------------------

    async def _work(self, *, until_idle: bool) -> None:
        while True:
            self._wake.clear()
            now = self._now()
            if now >= self._scan_at or self._scan_at > now + TICK or until_idle:
                await self._scan(now)
            self._start(now)
            if until_idle and not self._working:
                return
            await self._pause(until_idle)

    async def _pause(self, until_idle: bool) -> None:
        times = [self._scan_at]
        if self.next_at is not None:
            times.append(self.next_at)
        wait = None if until_idle else min(max(min(times) - self._now(), 0.05), TICK)
        try:
            async with asyncio.timeout(wait):
                await self._wake.wait()
        except TimeoutError:
            return

    def _start(self, now: float) -> None:
        """Begin all that is due; one task each, so that a slow one holds up nobody."""
        ripe = [message for due, message in self._later if due <= now]
        self._later = [(due, message) for due, message in self._later if due > now]
        self._new.extendleft(reversed(ripe))
        while self._new and len(self._working) < _AT_ONCE:
            message = self._new.popleft()
            self._spawn(self._examine(message), message)
        for caller in [caller for caller, due in self._due.items() if due <= now]:
            del self._due[caller]
            first = next(iter(self._waiting[caller].values()))
            self._spawn(self._judge(caller), first)
        parked, self._parked = self._parked, []
        for one in parked:
            if one.due <= now:
                self._spawn(self._mail(one.bundle), one.bundle.main)
            else:
                self._parked.append(one)

    def _spawn(self, work: Coroutine[Any, Any, None], message: Message) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            self._working.pop(task, None)
            self._wake.set()
            if not task.cancelled() and (error := task.exception()) is not None:
                # One message must not stop the others; it is found again by the next scan.
                logger.opt(exception=error).error("{}: failed in umpack", message.id)
                self._known = self._lying()

        task = asyncio.create_task(work, name=f"desk {message.id}")
        self._working[task] = message
        task.add_done_callback(ended)

    def _lying(self) -> set[MessageId]:
        """All that lie somewhere: what a fault of ours dropped on its way is not among them."""
        found = {message.id for message in (*self._new, *self._working.values())}
        found.update(message.id for _, message in self._later)
        found.update(id_ for group in self._waiting.values() for id_ in group)
        for parked in self._parked:
            found.update(m.id for m in (parked.bundle.main, *parked.bundle.others))
        return found | self._bound.keys()

    def _again(self, message: Message) -> None:
        self._failures[message.id] += 1
        self._later.append((self._now() + TICK, message))

    async def _scan(self, now: float) -> None:
        """Find what nobody has told us of (adopted), and close what has been told."""
        self._scan_at = now + TICK
        try:
            for message in await self._spool.unaddressed(len(self._known) + 1000):
                self.take(message)
            await self._close_told()
        except OurFault as fault:
            logger.error("{}", fault)
        self._forget(now)

    async def _examine(self, message: Message) -> None:
        try:
            if message.original is not None and message.document is None:
                found = await self._facts(message)
                earlier = await self._earlier(message)
                link = relation(replace(message, document=found), earlier)
                message = await self._spool.describe(
                    message.id, found, link.earlier if link is not None else None
                )
            if miscounted(message) and message.id not in self._mismatches:
                await self._accuse(message)
        except UmpackError as fault:
            logger.warning("{}: cannot be examined now: {}", message.id, fault)
            self._again(message)
            return
        self._failures.pop(message.id, None)
        caller = caller_of(message)
        self._waiting[caller][message.id] = message
        await self._judge(caller)

    async def _accuse(self, message: Message) -> None:
        engine, document = message.engine, message.document
        fax = message.call.kind is Kind.FAX
        heard = engine.pages if engine and fax else "sound"
        there = (document.pages_tiff if fax else "less of it") if document else 0
        words = f"received {heard}, in the file {there}: was the disk full?"
        logger.error("{}: {}", message.id, words)
        await asyncio.to_thread(self._spool.disk.log, RULE, "mismatch", message.id, words)
        self._mismatches[message.id] = self._now()

    async def _facts(self, message: Message) -> DocumentFacts:
        try:
            return await self._enclosures.examine(message)
        except OurFault as fault:
            if self._failures[message.id] + 1 < _FAILURES:
                raise
            # It goes out as it is: who is to have it can do more with it than we can.
            logger.error("{}: not converted: {}", message.id, fault)
            return BROKEN if message.call.kind is Kind.FAX else DocumentFacts(fault="unreadable")

    async def _earlier(self, message: Message) -> list[Message]:
        """What it may repeat or continue."""
        if message.call.kind is not Kind.FAX:
            return []
        return await self._spool.messages(
            _EARLIER, since=message.started - _DAY, until=message.started + 1.0,
            called=message.call.called, caller=message.call.caller,
        )  # fmt: skip

    async def _judge(self, caller: Caller) -> None:
        now = self._now()
        group = self._waiting[caller]
        found = notices(list(group.values()), self._told.get(caller, ()), now, self._policy)
        # Decided and taken off the heap in one step: what comes now is judged by itself.
        for bundle in found.mails:
            for message in (bundle.main, *bundle.others):
                group.pop(message.id, None)
            self._remember(bundle.main)
        for message in found.silent:
            group.pop(message.id, None)
        if not group:
            del self._waiting[caller]
        if found.next_at is not None and group:
            self._due[caller] = found.next_at
        else:
            self._due.pop(caller, None)
        for bundle in found.mails:
            await self._mail(bundle)
        for message in found.silent:
            await self._close(message.id, "nothing was sent")

    def _remember(self, message: Message) -> None:
        """Who has had a mail about a broken message of late need not have the next at once."""
        caller = caller_of(message)
        if outcome(message) is Outcome.WHOLE:
            self._told.pop(caller, None)
        else:
            self._told.setdefault(caller, []).append(message)

    def _forget(self, now: float) -> None:
        past = [id_ for id_, at in self._mismatches.items() if not now - _DAY < at <= now + _DAY]
        for id_ in past:
            del self._mismatches[id_]
        old = now - 2 * self._policy.longest
        for caller, told in list(self._told.items()):
            fresh = [one for one in told if (one.committed or one.started) >= old]
            if fresh:
                self._told[caller] = fresh
            else:
                del self._told[caller]

    async def _mail(self, bundle: Bundle) -> None:
        main, others, now = bundle.main, bundle.others, self._now()
        found = await self._mailboxes.find(main.call.called, now)
        begun = main.committed if main.committed is not None else now
        if found.doubt and begun <= now < begun + DOUBT:
            logger.warning("{}: waits for its directory: {}", main.id, found.doubt)
            self._parked.append(_Parked(now + TICK, bundle))
            return
        if found.doubt:
            logger.error("{}: goes by {}, as {}", main.id, found.by, found.doubt)
        try:
            for other in others:
                await self._note(other.id, f"{TOLD_IN}{main.id}")
            if others:
                await self._note(main.id, TELLS_OF + " ".join(other.id for other in others))
            # As the directory has it now: at the next try it may say something else.
            forms: dict[str, Form] = {
                m.address: Form(m.language, m.attach.value) for m in found.mailboxes
            }
            message = await self._spool.address(main.id, list(forms), forms)
        except StateError:
            message = await self._spool.message(main.id)
            if not message.recipients:  # closed by a person in the meantime
                self._known.discard(main.id)
                self._new.extend(others)
                return
        except OurFault as fault:
            logger.error("{}: cannot be addressed now: {}", main.id, fault)
            self._parked.append(_Parked(now + TICK, bundle))
            return
        self._known.discard(main.id)
        self._bound.update((other.id, main.id) for other in others)
        self._addressed(message)

    # -- calls that are told in the mail of another ---------------------------------------------

    async def _note(self, id_: MessageId, detail: str) -> None:
        await asyncio.to_thread(self._spool.disk.log, RULE, BUNDLE, id_, detail)

    async def _main_of(self, id_: MessageId) -> Message | None:
        """The mail that tells of a call, if it has been addressed."""
        for entry in await self._spool.audit(id_):
            if (entry.who, entry.what) == (RULE, BUNDLE) and entry.detail.startswith(TOLD_IN):
                try:
                    main = await self._spool.message(MessageId(entry.detail[len(TOLD_IN) :]))
                except SpoolFault:
                    raise
                except OurFault:
                    continue  # lost, or it cannot be read: rather told twice than never
                notes = await self._spool.audit(main.id, 1000)
                told = tells_of(e.detail for e in notes if (e.who, e.what) == (RULE, BUNDLE))
                if main.recipients and id_ in told:
                    return main
        return None

    async def _close_told(self) -> None:
        ended: dict[MessageId, bool] = {}
        for id_, main in list(self._bound.items()):
            if main not in ended:
                ended[main] = await self._has_ended(main)
            if ended[main] and await self._close(id_, f"{TOLD_IN}{main}"):
                del self._bound[id_]

    async def _has_ended(self, id_: MessageId) -> bool:
        try:
            return (await self._spool.message(id_)).state in ENDED
        except SpoolFault:
            raise
        except OurFault as fault:  # one that cannot be read must not stop the others
            logger.error("{}", fault)
            return False

    async def _close(self, id_: MessageId, why: str) -> bool:
        try:
            await self._spool.decide(id_, RULE, Decision.DISCARD, why=why)
        except StateError:
            pass  # a person was first
        except OurFault as fault:
            logger.error("{}: cannot be closed now: {}", id_, fault)
            if id_ not in self._bound:
                self._known.discard(id_)  # the next scan finds it again
            return False
        self._known.discard(id_)
        return True
