"""The Dial application of the simulated PBX: its argument, and one run of it."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from simulators.endpoints import Leg, LegAnswered, LegEnded, LegRang, NoChannel
from simulators.pbx_causes import dial_status
from simulators.pbx_channel import PbxTime

Item = TypeVar("Item")


class Inbox(Generic[Item]):
    """What happens to one call, in order; one reader."""

    __slots__ = ("_items", "_loop", "_waiter")

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: Item) -> None:
        """Add, and wake the reader."""
        self._items.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def put_back(self, item: Item) -> None:
        """What was read too early is read again first."""
        self._items.appendleft(item)

    async def get(self) -> Item:
        """The next item, waiting for it."""
        while not self._items:
            self._waiter = self._loop.create_future()
            await self._waiter
            self._waiter = None
        return self._items.popleft()


@dataclass(frozen=True, slots=True)
class DialArgument:
    """`tech/resource` destinations, and seconds to try them for (infinite if it names none)."""

    destinations: tuple[tuple[str, str], ...]
    timeout: float


def parse_dial(text: str) -> DialArgument | None:
    """Read Dial's argument as app_dial does, or None where it says INVALIDARGS.

    An argument without any destination is accepted, a destination without a slash is not. A limit
    that is not above zero is taken for none, as app_dial warns.
    """
    dialled, _, rest = text.partition(",")
    limit = rest.partition(",")[0]
    destinations = []
    for part in dialled.split("&"):
        if not part:
            continue
        tech, slash, resource = part.partition("/")
        if not slash:
            return None
        destinations.append((tech, resource))
    try:
        seconds = float(limit)
    except ValueError:
        seconds = 0.0
    return DialArgument(tuple(destinations), seconds if seconds > 0 else math.inf)


@dataclass(frozen=True, slots=True)
class TimedOut:
    """Dial's own limit has passed."""


@dataclass(frozen=True, slots=True)
class CallerLeft:
    """The caller hung up; `cause` is what the channel then shows."""

    cause: int


DialItem = LegRang | LegAnswered | LegEnded | TimedOut | CallerLeft


@dataclass(slots=True)
class DialRun:
    """One Dial from its first leg to the end of the call it made. `status` is DIALSTATUS.

    `cause` is what the caller's channel shows afterwards: None leaves what was there before, which
    is why HANGUPCAUSE after a time-out is that of an earlier Dial.
    """

    status: str = ""
    cause: int | None = None
    legs: list[Leg] = field(default_factory=list)
    served: Leg | None = None
    caller_left: bool = False
    answered_at: float | None = None
    _failed: list[int] = field(default_factory=list)
    _alive: set[int] = field(default_factory=set)

    def add(self, found: Leg | NoChannel) -> None:
        """A destination's leg, or that it has none."""
        if isinstance(found, NoChannel):
            self._failed.append(found.cause)
            self.cause = found.cause
        else:
            self.legs.append(found)
            self._alive.add(id(found))

    @property
    def hopeless(self) -> bool:
        """No leg is left that could answer."""
        return not self._alive and self.served is None

    async def wait(
        self,
        next_item: Callable[[], asyncio.Future[DialItem]],
        time: PbxTime,
        timeout: float,
        tell: Callable[[str, Leg, str], None],
    ) -> None:
        """Placeholder."""
