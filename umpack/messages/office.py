"""The messages of one node as the daemon holds them: spool, desk, mailer, alarms, reconciliation.

calls -> room_for, intend, commit -> desk -> mailer -> the site's mail servers
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import dns.asyncresolver
import dns.exception
from loguru import logger

from umpack import clock
from umpack.config.mail import MessagesPlan
from umpack.core.calls import CallId
from umpack.core.errors import ConfigError, OurFault
from umpack.messages.adoption import Adoption
from umpack.messages.circuits import Circuit
from umpack.messages.desk import Desk
from umpack.messages.directory import Attach, Mailbox, Mailboxes, Source
from umpack.messages.directory_file import DirectoryFile
from umpack.messages.enclosures import Enclosures
from umpack.messages.ldap_directory import LdapDirectory, LdapPlan
from umpack.messages.letter import Address
from umpack.messages.mail import Composer, MailPlan
from umpack.messages.mail_system import Memory
from umpack.messages.mailer import FAR, Mailer, MailerPlan
from umpack.messages.message import CallFacts, Decision, EngineFacts, Intent, Message, MessageId
from umpack.messages.reconciliation import (
    WINDOW,
    AnsweredCall,
    Reconciliation,
    reconcile,
    report,
)
from umpack.messages.relays import Login, Manner, Order, Target, Tls
from umpack.messages.retry import is_late
from umpack.messages.scribe import Scribe
from umpack.messages.spool import Spool
from umpack.messages.spool_health import SpoolHealth, SpoolLimits
from umpack.messages.templates import read_languages
from umpack.messages.transport import Transport, TransportPlan
from umpack.messages.voice import Coding

LOOK: Final = 15.0
"""Seconds between looks for alarms."""
RECONCILE_AT: Final = 3
"""The hour of the night, local time."""
_STARTED: Final = 60.0
"""Seconds after the start: by then the calls of before have been adopted or are known."""

Alive = Callable[[], Collection[CallId]]
Calls = Callable[[float], Awaitable[Sequence[AnsweredCall]]]
"""Calls that services have answered and that ended since then, from the journal."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something a person should know; `since` in epoch seconds."""

    kind: str
    """late, dead letters, ambiguous, spool, mail system, server, directory, no record, several
    records."""
    what: str
    since: float
    count: int = 1
    """Told again when it grows."""
    about: str = ""
    """Which of several of a kind: a server, a directory, what the spool suffers from."""


@dataclass(frozen=True, slots=True)
class Status:
    """How it stands."""

    at: float
    health: SpoolHealth | None
    alarms: tuple[Alarm, ...]
    away_since: float | None
    resting: Mapping[str, str]
    """Mail servers that are left alone, and why."""


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
        self._sources: list[DirectoryFile | LdapDirectory] = []
        self._alarmed: dict[tuple[str, str], Alarm] = {}
        self.spool: Spool
        self.desk: Desk
        self.mailer: Mailer
        self.transport: Transport
        self.status: Status | None = None
        """Of the last look; None before the first."""
        self.reconciled: Reconciliation | None = None

    # -- life -----------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the spool, read directories and texts. `ConfigError` or `SpoolFault` if not."""
        plan = self.plan
        composer = await asyncio.to_thread(self._composer)
        enclosures = Enclosures(
            plan.spool, coding=_CODINGS[plan.voice], conversions=plan.conversions
        )
        self.transport = await asyncio.to_thread(self._transport)
        plain = Mailbox(Address(plan.default_mailboxes[0]), plan.language, Attach(plan.attach))
        self._sources = [
            DirectoryFile(file, plan.language, Attach(plan.attach)) for file in plan.directories
        ]
        if plan.ldap is not None:
            self._sources.append(LdapDirectory(_ldap(plan)))
        sources: list[Source] = list(self._sources)
        mailboxes = Mailboxes(
            sources, [replace(plain, address=Address(one)) for one in plan.default_mailboxes]
        )
        self.spool = await asyncio.to_thread(
            self._make_spool, plan.spool, self._node, domain=plan.domain, now=self._now,
            limits=SpoolLimits(reserve_bytes=plan.reserve),
        )  # fmt: skip
        if aside := self.spool.disk.moved_aside:
            logger.error("the spool's database was damaged: kept as {}", aside)
        sender = Address(plan.sender)
        scribe = Scribe(self.spool, enclosures, mailboxes, composer, sender, plain, self._now)
        self.mailer = Mailer(
            self.spool, scribe, self.transport,
            MailerPlan(plan.retry, plan.connections, bool(plan.relays)), self._now, self._rng,
            Memory(plan.spool / "mail-system.json"),
        )  # fmt: skip
        self.desk = Desk(
            self.spool, enclosures, mailboxes, plan.bundles, self._now,
            addressed=lambda message: self.mailer.look(),
        )  # fmt: skip

    async def start(self) -> None:
        """Adopt what was left, and let everything run. Raises `SpoolFault`."""
        await self.spool.adopt(self._alive())
        await self.desk.recall()
        plan = self.plan
        for name, work in (
            ("spool", self.spool.tend(self._alive, plan.keep, plan.keep_records)),
            ("desk", self.desk.run()),
            ("mailer", self.mailer.run()),
            ("alarms", self._look_again()),
            ("reconciliation", self._nightly()),
        ):
            self._tasks.append(asyncio.create_task(work, name=f"messages: {name}"))

    async def close(self, grace: float = 5.0) -> None:
        """What is being sent has `grace` seconds; then claims are given back. May be called in
        any state."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if not hasattr(self, "spool"):
            return
        if hasattr(self, "desk"):
            await self.desk.close()
            await self.mailer.close(grace)
        await self.spool.close()

    async def watch(self) -> None:
        """Until cancelled, or until a part ends by itself: that is raised, a fresh start is better
        than going on without it."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    def summary(self) -> dict[str, Any]:
        """How it stood at the last look, for the status of the node."""
        if self.status is None:
            return {"queue": None, "alarms": []}
        health = self.status.health
        return {
            "queue": health.queue + health.unaddressed if health else None,
            "alarms": [asdict(alarm) for alarm in self.status.alarms],
        }

    # -- what calls need ------------------------------------------------------------------------

    async def room_for(self, pages: int = 0, seconds: float = 0.0) -> str:
        """Why a call should not be answered; empty if it may be."""
        return await self.spool.room_for(pages, seconds)

    async def intend(
        self, call: CallFacts, name: str = "original.tif", *, pages: int = 0, seconds: float = 0.0
    ) -> Intent:
        """A call is about to be answered. Raises `SpoolFault`: refuse it."""
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
        return await self.spool.receiving()

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
        message = await self.spool.decide(
            id_, by, what, number=number, addresses=addresses, why=why
        )
        self.mailer.look()
        return message

    async def reconcile(self) -> Reconciliation:
        """Compare calls and messages. Raises `SpoolFault`."""
        now = self._now()
        # No further back than records are kept.
        since = now - min(WINDOW, self.plan.keep_records)
        calls = () if self._calls is None else await self._calls(since)
        self.reconciled = found = await reconcile(self.spool, calls, now, since)
        return found

    # -- alarms ---------------------------------------------------------------------------------

    async def look(self) -> Status:
        """How it stands now; new alarms and those that are over are logged."""
        now = self._now()
        try:
            health = await self.spool.health(now)
            found = await self._alarms(health, now)
        except OurFault as fault:
            health, found = None, [Alarm("spool", str(fault), now, about="fault")]
        alarms = {}
        for alarm in found:
            key = alarm.kind, alarm.about
            before = self._alarmed.get(key)
            alarms[key] = alarm if before is None else replace(alarm, since=before.since)
            # Again when there are more: the second dead letter is not the first one's.
            if before is None or alarm.count > before.count:
                logger.error("messages: {}: {}", alarm.kind, alarm.what)
        for key in self._alarmed.keys() - alarms.keys():
            logger.info("messages: {}: over", " ".join(filter(None, key)))
        self._alarmed = alarms
        resting = {name: circuit.why for name, circuit in self._resting().items()}
        away = self.mailer.away_since
        self.status = Status(now, health, tuple(alarms.values()), away, resting)
        return self.status

    async def _alarms(self, health: SpoolHealth, now: float) -> list[Alarm]:
        found: list[Alarm] = []
        oldest = await self._oldest(now)
        if oldest is not None and is_late(self.plan.retry, oldest, now):
            words = f"not delivered for {now - oldest:.0f} s; {health.queue} in the queue"
            found.append(Alarm("late", words, oldest + self.plan.retry.late_after))
        if many := health.dead_letters:
            words = f"{many}: umpack faxes --state 'dead letter'"
            found.append(Alarm("dead letters", words, now, many))
        if many := health.ambiguous:
            words = f"{many} may have been delivered: umpack faxes --state ambiguous"
            found.append(Alarm("ambiguous", words, now, many))
        if not health.writable:
            found.append(Alarm("spool", health.fault, now, about="not writable"))
        elif health.owed or health.slow:
            words = f"{health.owed} owed" if health.owed else "slow"
            found.append(Alarm("spool", words, now, health.owed, about="slow"))
        elif health.free_bytes < self.plan.reserve:
            words = f"{health.free_bytes // 1_000_000} MB free: calls are refused"
            found.append(Alarm("spool", words, now, about="full"))
        if (since := self.mailer.away_since) is not None:
            found.append(Alarm("mail system", "no relay can be reached", since))
        found += [Alarm("server", name, now, about=name) for name in self._resting()]
        found += [
            Alarm("directory", one.fault, now, about=one.name) for one in self._sources if one.fault
        ]
        if (known := self.reconciled) is not None:
            if many := len(known.without_record):
                words = f"{many} answered calls: umpack faxes --open"
                found.append(Alarm("no record", words, known.at, many))
            if many := len(known.doubled):
                words = f"{many} calls: umpack faxes --open"
                found.append(Alarm("several records", words, known.at, many))
        return found

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

    # -- parts ----------------------------------------------------------------------------------

    def _composer(self) -> Composer:
        plan = self.plan
        zone: tzinfo = ZoneInfo(plan.timezone) if plan.timezone else _local()
        mail = MailPlan(
            Address(plan.sender), plan.sender_name, zone, plan.language, plan.bounce_keys, plan.keep
        )
        return Composer(mail, read_languages(plan.texts))

    def _transport(self) -> Transport:
        plan, account = self.plan, self.plan.auth
        login = Login(account.user, account.secret.get_secret_value()) if account else None
        clear = bool(account and account.clear)
        manner = Manner(Tls(plan.tls), plan.verify, login, clear)
        outgoing = TransportPlan(
            hello=plan.hello or socket.getfqdn(),
            relays=tuple(Target(relay.host, relay.port, manner) for relay in plan.relays),
            order=Order(plan.order),
            port=plan.port,
            manner=manner,
            authorities=str(plan.authorities) if plan.authorities else None,
            connections=plan.connections,
            per_server=plan.per_server,
        )
        return Transport(outgoing, self._resolver or _resolver(), self._now, self._rng)


_CODINGS: Final = {
    "wav": Coding.AS_RECORDED, "opus": Coding.OPUS, "alaw": Coding.A_LAW, "ulaw": Coding.MU_LAW
}  # fmt: skip


def _ldap(plan: MessagesPlan) -> LdapPlan:
    place = plan.ldap
    if place is None:
        raise ConfigError("messages: no ldap")
    found = LdapPlan(
        place.url, place.base, mail=place.mail, language=plan.language,
        attach=Attach(plan.attach), start_tls=place.start_tls, limit=place.limit, keep=place.keep,
    )  # fmt: skip
    if place.account is not None:
        secret = place.account.secret.get_secret_value()
        found = replace(found, user=place.account.user, password=secret)
    return replace(found, filter=place.filter) if place.filter else found


def _local() -> tzinfo:
    """The machine's zone, by name if it has one: an offset would be wrong in half of the year."""
    try:
        name = str(Path("/etc/localtime").resolve()).partition("/zoneinfo/")[2]
        return ZoneInfo(name) if name else UTC
    except (ValueError, OSError):
        return UTC


def _resolver() -> dns.asyncresolver.Resolver:
    try:
        return dns.asyncresolver.Resolver()
    except dns.exception.DNSException:
        # No resolv.conf: relays may be addresses, or names of the hosts file.
        return dns.asyncresolver.Resolver(configure=False)


def until_night(wall: float) -> float:
    """Seconds from then to the next reconciliation."""
    here = datetime.fromtimestamp(wall).astimezone()
    at = here.replace(hour=RECONCILE_AT, minute=0, second=0, microsecond=0)
    seconds = (at - here).total_seconds()
    return seconds if seconds > 0 else seconds + 86_400.0
