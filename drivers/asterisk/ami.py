"""The AMI link of one PBX, as the driver uses it: always trying to be up, never blocking the loop.

All that can block (connecting, logging in, writing, closing) runs on one worker thread, reading on
another; both end with `AmiLink.run`. Answers are matched by ActionID, every action has a limit, and
a `Ping` now and then finds a peer that is connected but dead.
"""

from __future__ import annotations

import asyncio
import random
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from drivers.asterisk.ami_session import (
    AmiAddress,
    AmiCounters,
    AmiLimits,
    AmiSession,
    Headers,
    Reply,
)
from drivers.asterisk.ami_stream import EventsMissed, EventStream, LinkDown, LinkUp, StreamItem
from drivers.asterisk.ami_wire import AmiAnswer, AmiEvent, AmiMessage, AmiRefused, AmiUnsendable
from umpack.core.errors import PeerFault, PeerGone, PeerTimeout

__all__ = [
    "AmiAddress", "AmiAnswer", "AmiCounters", "AmiEvent", "AmiLimits", "AmiLink", "AmiMessage",
    "AmiRefused", "AmiUnsendable", "Backoff", "EventStream", "EventsMissed", "LinkDown", "LinkUp",
    "StreamItem",
]  # fmt: skip

_NAME: Final = re.compile(r"[A-Za-z0-9_]+\Z")
# `eventfilter(name(...))`, compared by hash, came with 20.11, 21.6 and 22.1. AMI 11 is Asterisk 22;
# what is older gets one regular expression, which every version understands.
_NAME_FILTER_SINCE: Final = 11
_STABLE: Final = 10.0
# A PBX that lets us in and dies again is being restarted: it is wanted back within seconds.
_MOST_AFTER_LOGIN: Final = 4

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds between attempts: doubled from `initial` (`refused` after a refusal) to `maximum`.

    Each is shortened at random by up to half, so that several nodes do not return together.
    """

    initial: float = 0.2
    maximum: float = 30.0
    refused: float = 5.0

    def delay(self, failures: int, rng: random.Random, *, refused: bool = False) -> float:
        """Seconds to wait after the nth failure in a row (from 1)."""
        start = max(self.refused, self.initial) if refused else self.initial
        whole = min(self.maximum, start * 2.0 ** min(failures - 1, 30))
        return whole * (1.0 - 0.5 * rng.random())


class AmiLink:
    """The link to one PBX; `run` keeps it up, `events` tells what happens, `action` asks.

    `events` names the events to let through: Asterisk is asked to send no others (its `Filter`
    action needs write class `system`; where that is missing they are dropped here, unparsed).
    `classes` (`call`, `system`, …) narrows Asterisk's `EventMask` as well; none changes nothing.
    All methods belong to the loop that runs `run`.
    """

    def __init__(
        self,
        address: AmiAddress,
        *,
        events: frozenset[str],
        classes: Sequence[str] = (),
        limits: AmiLimits | None = None,
        backoff: Backoff | None = None,
        rng: random.Random | None = None,
        capacity: int = 10_000,
    ) -> None:
        for name in (*events, *classes):
            if not _NAME.match(name):
                raise AmiUnsendable(f"{name!r} is no name of an AMI event or class")
        self.address = address
        self.events = EventStream(capacity)
        self._wanted = events
        self._classes = tuple(classes)
        self._limits = limits or AmiLimits()
        self._backoff = backoff or Backoff()
        self._rng = rng or random.Random()  # noqa: S311 - jitter, no secret
        self._session: AmiSession | None = None
        self._worker: ThreadPoolExecutor | None = None
        self._counters = AmiCounters()
        self._version = ""
        self._last_reason = ""

    @property
    def version(self) -> str:
        """AMI's version while the link is up, else empty."""
        return self._version

    @property
    def counters(self) -> AmiCounters:
        """What this link has seen so far."""
        return replace(self._counters, missed=self.events.missed)

    async def run(self) -> None:
        """Connect, log in, stay; reconnect for ever, until cancelled. Runs once per link.

        Ends only when both threads have; `events` then ends with `LinkDown`.
        """
        loop = asyncio.get_running_loop()
        self.events.bind(loop)
        threads: list[threading.Thread] = []
        self._worker = ThreadPoolExecutor(
            1, "ami-worker", initializer=lambda: threads.append(threading.current_thread())
        )
        failures = 0
        try:
            while True:
                began, sessions = loop.time(), self._counters.sessions
                fault = await self._live()
                failures = 1 if loop.time() - began >= _STABLE else failures + 1
                if self._counters.sessions > sessions:
                    failures = min(failures, _MOST_AFTER_LOGIN)
                if str(fault) != self._last_reason:
                    self._last_reason = str(fault)
                    self.events.notice(LinkDown(self._last_reason))
                refused = isinstance(fault, AmiRefused)
                await asyncio.sleep(self._backoff.delay(failures, self._rng, refused=refused))
        finally:
            self.events.notice(LinkDown("stopped"))
            self.events.end()
            self._worker.shutdown(wait=False)
            # Joined by looking, as Thread.join would stop the loop.
            while any(thread.is_alive() for thread in threads):  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    async def action(
        self, name: str, headers: Headers | None = None, *, timeout: float | None = None
    ) -> AmiAnswer:
        """Do one action and return its answer; `timeout` in seconds.

        Raises PeerGone (link down, or lost meanwhile: whether it was done is unknown), PeerTimeout,
        AmiRefused (`Response: Error`), AmiUnsendable (nothing was sent).
        """
        limit = self._limits.action if timeout is None else timeout
        reply = await self._ask(name, headers or {}, limit, listed=False)
        return _accepted(name, reply.answer)

    async def collect(
        self, name: str, headers: Headers | None = None, *, timeout: float | None = None
    ) -> list[AmiEvent]:
        """Do an action that is answered by a list of events (`CoreShowChannels`, …).

        Returns them without the end mark; errors as `action`. Some lists are refused when empty
        (`PJSIPShowContacts`), and all of a module that is not loaded.
        """
        limit = self._limits.collect if timeout is None else timeout
        reply = await self._ask(name, headers or {}, limit, listed=True)
        if isinstance(reply.answer, AmiAnswer):
            _accepted(name, reply.answer)
        return list(reply.items)

    async def _ask(self, name: str, headers: Headers, limit: float, *, listed: bool) -> Reply:
        session, worker = self._session, self._worker
        if session is None or worker is None or not session.connected():
            raise PeerGone(f"{name}: no AMI link to {self.address.host}:{self.address.port}")
        action_id, packet, reply = session.submit(name, headers, listed=listed)
        try:
            async with asyncio.timeout(limit):
                worker.submit(session.write, packet)
                return await asyncio.wrap_future(reply)
        except TimeoutError:
            raise PeerTimeout(f"{name}: no answer within {limit:g} s") from None
        finally:
            session.forget(action_id)

    async def _live(self) -> PeerFault:
        """One connection from first to last; returns why it ended."""
        loop = asyncio.get_running_loop()
        lost: asyncio.Future[PeerFault] = loop.create_future()

        def end(fault: PeerFault) -> None:
            if not lost.done():
                lost.set_result(fault)

        def on_lost(fault: PeerFault) -> None:
            loop.call_soon_threadsafe(end, fault)

        session = AmiSession(self._wanted, self._limits, self._counters, self.events.put, on_lost)
        self._session = session
        try:
            version = await self._in_worker(lambda: session.open(self.address))
            filtered = await self._narrow(version)
            self._counters.sessions += 1
            self._version = version
            self._last_reason = ""
            self.events.notice(LinkUp(version, filtered))
            return await self._watch(lost)
        except PeerFault as fault:
            session.abort(fault)
            if isinstance(fault, AmiRefused):
                return fault  # Asterisk hangs up after a refused login: that is no news
            # The first fault is the cause; what an action met afterwards is its consequence.
            return await lost
        finally:
            if not self._version:
                session.abort(PeerGone("closed by us"))  # ends an attempt to connect or log in
            self._version = ""
            self._session = None
            await self._in_worker(session.close)

    async def _narrow(self, version: str) -> bool:
        """Have Asterisk send only what is wanted; False if it would not."""
        if self._classes:
            await self.action("Events", {"EventMask": ",".join(self._classes)})
        if not self._wanted:
            await self.action("Events", {"EventMask": "off"})
            return True
        names = sorted(self._wanted)
        major = version.partition(".")[0]
        try:
            if major.isdecimal() and int(major) >= _NAME_FILTER_SINCE:
                for name in names:
                    criteria = f"action(include),name({name})"
                    await self.action("Filter", {"Operation": "Add", "MatchCriteria": criteria})
            else:
                for start in range(0, len(names), 20):  # a line holds 1024 bytes
                    choice = "|".join(names[start : start + 20])
                    pattern = f"^Event: ({choice})[[:space:]]"
                    await self.action("Filter", {"Operation": "Add", "Filter": pattern})
        except AmiRefused:
            return False
        return True

    async def _watch(self, lost: asyncio.Future[PeerFault]) -> PeerFault:
        while True:
            await asyncio.wait((lost,), timeout=self._limits.ping_every)
            if lost.done():
                return lost.result()
            try:
                await self.action("Ping", timeout=self._limits.ping)
            except AmiRefused:
                continue  # an answer all the same: the peer lives

    async def _in_worker(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)


def _accepted(name: str, answer: AmiMessage) -> AmiAnswer:
    if isinstance(answer, AmiAnswer) and answer.ok:
        return answer
    raise AmiRefused(f"{name}: {answer.get('Message', 'refused without a reason')}")
