"""From a letter to the end of each of its recipients: which servers, in turn, how many at once.

One call of `deliver` is one try: it goes through the servers until each recipient has an end or no
server is left. When there is another try, `retry` says; that it comes, the queue sees to.
"""

from __future__ import annotations

import asyncio
import random
import re
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from types import MappingProxyType
from typing import Final

import dns.asyncresolver
from loguru import logger

from umpack.core.errors import ConfigError, PeerFault
from umpack.messages.circuits import Circuit, CircuitPolicy, Circuits
from umpack.messages.letter import (
    Address,
    Deferred,
    Delivery,
    Letter,
    LetterError,
    Refused,
    Uncertain,
    domain_of,
)
from umpack.messages.relays import (
    Manner,
    Order,
    Rank,
    Server,
    Target,
    Tls,
    exchangers,
    relay_ranks,
    servers,
)
from umpack.messages.smtp import converse, tls_context
from umpack.messages.sts_policies import Policies
from umpack.messages.transaction import Limits, Talk

MAX_CIRCUITS: Final = 1000
NOT_FIT: Final = 554
_NO_DOUBT: Final[Mapping[Address, str]] = MappingProxyType({})
_HELLO: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.IPv]+\]")


@dataclass(frozen=True, slots=True)
class TransportPlan:
    """How letters go out. Without relays, to the exchangers of each recipient's domain."""

    hello: str
    """Our name in EHLO: the fully qualified one, many servers look it up."""
    relays: tuple[Target, ...] = ()
    order: Order = Order.ROUND_ROBIN
    port: int = 25
    manner: Manner = field(default=Manner())
    """Port and manner are those for exchangers; relays have their own."""
    authorities: str | None = None
    """PEM file of those who may sign certificates, instead of the system's."""
    limits: Limits = field(default=Limits())
    circuits: CircuitPolicy = field(default=CircuitPolicy())
    connections: int = 20
    per_server: int = 4
    """Connections at once. Fewer per server than in all, or a slow one could hold them all."""
    most_servers: int = 10
    """Tried for one recipient before it is put off; those that rest do not count."""
    most_sessions: int = 2
    """As Postfix's smtp_mx_session_limit: servers that came as far as MAIL and put it off."""
    most_recipients: int = 100
    """In one transaction: what every server must take (RFC 5321 4.5.3.1.8)."""

    def __post_init__(self) -> None:
        if not _HELLO.fullmatch(self.hello):
            raise ConfigError(f"not a name for EHLO: {self.hello!a}")
        if not 0 < self.per_server <= self.connections:
            raise ConfigError("0 < per_server <= connections does not hold")
        if min(self.most_servers, self.most_sessions, self.most_recipients) < 1:
            raise ConfigError("most_servers, most_sessions, most_recipients must be positive")


@dataclass(slots=True)
class _Try:
    """Recipients of one letter that go the same way, and how far they have come."""

    letter: Letter
    pending: list[Address]
    domain: str
    """Empty if relays are used."""
    first: str
    """Label of the server to ask first, or empty."""
    insist: bool = False
    """What `first` says is waited for, and no other asked."""
    asking: Callable[[str], None] | None = None
    ends: dict[Address, Delivery] = field(default_factory=dict)
    whys: list[str] = field(default_factory=list)
    said: dict[Address, str] = field(default_factory=dict)
    """What a server said against one recipient."""
    rests: list[float] = field(default_factory=list)
    tried: set[str] = field(default_factory=set)
    asked: str = ""
    """The server asked last."""
    sessions: int = 0
    enforced: bool = False
    """The domain's MTA-STS policy says how its exchangers are spoken with."""

    def end_all(self, end: Delivery) -> None:
        """The same for all who have none."""
        self.ends.update(dict.fromkeys(self.pending, end))
        self.pending = []

    def learn(self, talk: Talk) -> None:
        """What a conversation brought."""
        self.sessions += talk.spoke
        if talk.fault:
            self.whys.append(talk.fault)
        for recipient, end in talk.ends.items():
            if not isinstance(end, Deferred):
                self.ends[recipient] = end
            elif end.reached:
                self.said[recipient] = end.why
        self.pending = [recipient for recipient in self.pending if recipient not in self.ends]

    def ask(self, label: str) -> None:
        """A server is being asked from now on."""
        self.tried.add(label)
        self.asked = label
        if self.asking is not None:
            self.asking(label)

    def waits(self) -> bool:
        """Who may have it has put it off: another would get a second copy."""
        return self.insist and self.asked == self.first and bool(self.said)

    def put_off(self) -> None:
        """No server is left: say all that is known."""
        retry_after = min(self.rests) if self.rests and not self.tried else None
        for recipient in self.pending:
            said = self.said.get(recipient)
            why = "; ".join([*self.whys, said] if said else self.whys) or "no server"
            self.ends[recipient] = Deferred(
                why, retry_after, reached=said is not None, answered=self.sessions > 0
            )
        self.pending = []


class Transport:
    """Delivers letters. Many at once; it keeps connections and circuits in bounds.

    `now` gives seconds; `rng` shuffles exchangers of equal preference.
    """

    def __init__(
        self,
        plan: TransportPlan,
        resolver: dns.asyncresolver.Resolver,
        now: Callable[[], float],
        rng: random.Random,
        policies: Policies | None = None,
    ) -> None:
        """Reads the certificates of authorities once, from disk."""
        self._plan = plan
        self._resolver = resolver
        self._now = now
        self._rng = rng
        self._policies = policies
        self._turns = count()
        self._slots = Slots(plan.connections, plan.per_server)
        self.circuits = Circuits(plan.circuits)
        self.recoveries = 0
        """How often a server came back after a rest: a reason to try all that waits, by age."""
        self._contexts: dict[bool, ssl.SSLContext] = {}
        for manner in (plan.manner, *(relay.manner for relay in plan.relays)):
            if manner.tls is not Tls.NEVER and manner.verify not in self._contexts:
                self._contexts[manner.verify] = tls_context(
                    verify=manner.verify, authorities=plan.authorities
                )
        if policies is not None:
            self._contexts.setdefault(True, policies.context)

    async def deliver(
        self,
        letter: Letter,
        recipients: Sequence[Address],
        *,
        uncertain: Mapping[Address, str] = _NO_DOUBT,
        insist: bool = True,
        asking: Callable[[str], None] | None = None,
    ) -> dict[Address, Delivery]:
        """One try for `recipients` (of the letter's); every one of them is in the answer.

        `uncertain`: the `server` of the last `Uncertain` of each, which is asked first, rest or
        not: only it may know that it has the letter already. `insist`: what it puts off is not
        taken to another in this try. `asking` hears which server is asked now: cancelled, nothing
        is known about anyone, and the last one heard of may have the letter.
        """
        wanted = list(dict.fromkeys(recipients))
        if strangers := set(wanted) - set(letter.recipients):
            raise LetterError(f"{letter.message_id} is not for {sorted(strangers)!a}")
        groups: dict[tuple[str, str], list[Address]] = {}
        for recipient in wanted:
            domain = "" if self._plan.relays else domain_of(recipient)
            groups.setdefault((domain, uncertain.get(recipient, "")), []).append(recipient)
        most = self._plan.most_recipients
        tries = [
            _Try(letter, group[start : start + most], domain, first, insist and bool(first), asking)
            for (domain, first), group in groups.items()
            for start in range(0, len(group), most)
        ]
        ends: dict[Address, Delivery] = {}
        found = await asyncio.gather(*(self._run(one) for one in tries), return_exceptions=True)
        for one, fault in zip(tries, found, strict=True):
            if isinstance(fault, LetterError):
                # Seen before anything was sent, and no better the next time.
                ends.update(dict.fromkeys(one.pending, Refused(f"5.6.0 {fault}", NOT_FIT)))
            elif isinstance(fault, Exception):
                # A fault of ours must not take the ends of the others with it.
                logger.opt(exception=fault).error(
                    "{}: delivery failed in umpack", letter.message_id
                )
                doubt = Uncertain(one.asked, f"fault in umpack: {fault!r}")
                ends.update(dict.fromkeys(one.pending, doubt))
            elif fault is not None:
                raise fault
            ends.update(one.ends)
        if len(self.circuits) > MAX_CIRCUITS:
            self.circuits.forget_closed()
        return ends

    async def _run(self, one: _Try) -> None:
        for rank in await self._ranks(one):
            if not one.pending or self._enough(one):
                break
            by_label = {server.label: server for server in await self._servers(rank, one)}
            while one.pending and by_label and not self._enough(one):
                for label in [label for label in by_label if self._rests(label, one)]:
                    del by_label[label]
                if by_label:
                    label = await self._ask(by_label, one)
                    del by_label[label]
        one.put_off()

    def _enough(self, one: _Try) -> bool:
        plan = self._plan
        most = len(one.tried) >= plan.most_servers or one.sessions >= plan.most_sessions
        return most or one.waits()

    async def _ranks(self, one: _Try) -> Sequence[Rank]:
        if self._plan.relays:
            ranks = relay_ranks(self._plan.relays, self._plan.order, next(self._turns))
        else:
            found = await exchangers(
                one.domain, self._resolver, self._rng,
                port=self._plan.port, manner=self._plan.manner,
            )  # fmt: skip
            if not isinstance(found, tuple):
                one.end_all(found)
                return ()
            ranks = found
            if self._policies is not None:
                applied = await self._policies.applied(one.domain, found)
                ranks, one.enforced = applied.ranks, applied.enforced
                one.whys += applied.whys(one.domain)
        first = [target for rank in ranks for target in rank if _is_of(one.first, target)]
        return ((first[0],), *ranks) if first else ranks

    async def _servers(self, rank: Rank, one: _Try) -> list[Server]:
        """Of one rank, in order, without those tried already."""
        answers = await asyncio.gather(
            *(servers(target, self._resolver) for target in rank), return_exceptions=True
        )
        found: list[Server] = []
        for answer in answers:
            if isinstance(answer, PeerFault):
                one.whys.append(str(answer))
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found += (server for server in answer if server.label not in one.tried)
        return sorted(found, key=lambda server: server.label != one.first)

    async def _ask(self, by_label: Mapping[str, Server], one: _Try) -> str:
        """The first of these servers, or if it is busy the first that is not; answers which."""
        wanted = [one.first] if one.first in by_label else list(by_label)
        async with self._slots.hold(wanted) as label:
            # While we waited, those before us may have found out that it is dead.
            if self._rests(label, one):
                return label
            one.ask(label)
            circuit = self._circuit(label, one)
            trial = circuit.begin()
            server = by_label[label]
            try:
                talk = await converse(
                    server, one.letter, tuple(one.pending), hello=self._plan.hello,
                    limits=self._plan.limits, context=self._contexts.get(server.manner.verify),
                )  # fmt: skip
            except BaseException:
                if trial:
                    circuit.given_up(self._now())
                raise
        self._report(circuit, label, talk.fault)
        one.learn(talk)
        return label

    def _circuit(self, label: str, one: _Try) -> Circuit:
        # What one domain's policy asks of a server must not keep others from using it.
        return self.circuits.of(f"{label} (MTA-STS)" if one.enforced else label)

    def _rests(self, label: str, one: _Try) -> bool:
        circuit = self._circuit(label, one)
        wait = circuit.wait(self._now())
        if wait <= 0 or label == one.first:
            return False
        one.rests.append(wait)
        one.whys.append(f"{label} is left alone for {wait:.0f} s: {circuit.why}")
        return True

    def _report(self, circuit: Circuit, label: str, fault: str) -> None:
        if fault:
            if circuit.failed(self._now(), fault):
                logger.warning("mail server rests: {}", fault)
            else:
                logger.info("mail server failed: {}", fault)
        elif circuit.worked():
            self.recoveries += 1
            logger.info("mail server is back: {}", label)


def _is_of(label: str, target: Target) -> bool:
    return label.startswith(f"{target.host}[") and label.endswith(f"]:{target.port}")


class Slots:
    """Connections in all and per server, first come, first served.

    Who waits for a busy server does not stand in the way of those who want another.
    """

    def __init__(self, connections: int, per_server: int) -> None:
        self._connections = connections
        self._per_server = per_server
        self._busy: Counter[str] = Counter()
        self._waiting: dict[asyncio.Future[str], Sequence[str]] = {}

    @asynccontextmanager
    async def hold(self, wanted: Sequence[str]) -> AsyncIterator[str]:
        """A connection to the first of the `wanted` servers that has one to spare; says which."""
        turn: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = wanted
        self._hand_out()
        try:
            yield await turn
        finally:
            self._waiting.pop(turn, None)
            if turn.done() and not turn.cancelled():
                self._busy[turn.result()] -= 1
                self._busy += Counter()  # drops what is zero
            self._hand_out()

    def _hand_out(self) -> None:
        free = self._connections - self._busy.total()
        for turn, wanted in list(self._waiting.items()):
            if free <= 0:
                return
            room = (label for label in wanted if self._busy[label] < self._per_server)
            if (label := next(room, None)) is not None and not turn.done():
                del self._waiting[turn]
                self._busy[label] += 1
                free -= 1
                turn.set_result(label)
