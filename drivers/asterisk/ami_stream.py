"""What an AMI link tells its owner: a bounded stream from the reader's thread to the loop.

Asterisk disconnects a client that reads slowly (`writetimeout` in manager.conf), so the reader must
never wait for the owner. When the owner is too slow the newest events are dropped and counted, and
`EventsMissed` stands in the stream where the gap is: the owner asks the PBX for its state again.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from drivers.asterisk.ami_wire import AmiEvent

# The owner lets the loop breathe after this many events that were there without waiting.
_BREATH: Final = 100


@dataclass(frozen=True, slots=True)
class LinkUp:
    """Logged in; `version` is AMI's own. `filtered`: Asterisk itself drops unwanted events."""

    version: str
    filtered: bool


@dataclass(frozen=True, slots=True)
class LinkDown:
    """Not connected, for this reason; the link goes on trying."""

    reason: str


@dataclass(frozen=True, slots=True)
class EventsMissed:
    """`count` events were dropped here: what is known of the PBX may be wrong."""

    count: int


StreamItem: TypeAlias = AmiEvent | LinkUp | LinkDown | EventsMissed


class EventStream:
    """Async iterator for one owner; `put` and `notice` may be called from any thread.

    At most `capacity` items wait. It ends after `end()`, when all that waited has been taken.
    """

    def __init__(self, capacity: int = 10_000) -> None:
        self.missed = 0
        self._capacity = max(2, capacity)
        self._items: deque[StreamItem] = deque()
        self._early: list[AmiEvent] = []
        self._gap = 0
        self._up = False
        self._ended = False
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = asyncio.Event()
        self._woken = False
        self._taken = 0

    def __len__(self) -> int:
        return len(self._items)

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Name the loop of the owner, before the first `put`."""
        self._loop = loop

    def put(self, events: Sequence[AmiEvent]) -> None:
        """Add events in order, as many as there is room for."""
        with self._lock:
            if self._ended:
                return
            if not self._up:
                # What comes between login and LinkUp (FullyBooted) belongs behind LinkUp.
                room = self._capacity - len(self._early) - 1
                self._early.extend(events[:room])
                self._drop(len(events) - room)
                return
            # After a gap wait until half is free, or every single event would bring a new gap.
            if self._gap and len(self._items) > self._capacity // 2:
                self._drop(len(events))
                return
            self._mark_gap()
            room = self._capacity - len(self._items)
            self._items.extend(events[:room] if room < len(events) else events)
            self._drop(len(events) - room)
            self._wake()

    def notice(self, notice: LinkUp | LinkDown) -> None:
        """Add a change of the link itself; events that are in its way give room and are counted."""
        with self._lock:
            if self._ended:
                return
            if len(self._items) + len(self._early) + 2 > self._capacity:
                self._drop(sum(isinstance(item, AmiEvent) for item in self._items))
                self._items.clear()
            self._mark_gap()
            self._items.append(notice)
            self._up = isinstance(notice, LinkUp)
            if self._up:
                self._items.extend(self._early[: self._capacity - len(self._items)])
            self._early.clear()
            self._wake()

    def end(self) -> None:
        """Let the owner's iteration end; later calls of `put` and `notice` do nothing."""
        with self._lock:
            self._ended = True
            self._wake()

    def _drop(self, count: int) -> None:
        if count > 0:
            self._gap += count
            self.missed += count

    def _mark_gap(self) -> None:
        if self._gap:
            self._items.append(EventsMissed(self._gap))
            self._gap = 0

    def _wake(self) -> None:
        # One wake-up for all that comes until the owner has emptied the stream again.
        if not self._woken and self._loop is not None:
            self._woken = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to wake
                self._loop.call_soon_threadsafe(self._ready.set)

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> StreamItem:
        self._taken += 1
        if self._taken % _BREATH == 0:
            await asyncio.sleep(0)
        while True:
            try:
                return self._items.popleft()
            except IndexError:
                pass
            with self._lock:
                if self._items:
                    continue
                if self._gap:
                    self._mark_gap()
                    continue
                if self._ended:
                    raise StopAsyncIteration
                self._woken = False
                self._ready.clear()
            await self._ready.wait()
