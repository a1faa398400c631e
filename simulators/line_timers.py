"""The timers of a board and the events they and its methods produce, in one order of time."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from enum import Enum

from simulators.line_events import Event
from umpack.core.errors import StateError


class Timer(Enum):
    """What a timer is for; its key is a span number, a call reference or a channel number."""

    LAYER1 = "debounce or settle"
    LAYER2 = "T203, T200 or establishment"
    T309 = "T309"
    T303 = "T303"
    CHANNEL = "release or restart"


class Agenda:
    """Timers in virtual time; while one fires, `now` is the time it was due."""

    def __init__(self) -> None:
        self.now = float("-inf")
        self.out: list[Event] = []
        self._due: dict[tuple[Timer, int], tuple[float, int]] = {}
        self._heap: list[tuple[float, int, tuple[Timer, int]]] = []
        self._armed = 0

    def arm(self, timer: Timer, key: int, wait: float) -> None:
        """Start or restart a timer, due `wait` seconds from now."""
        self._armed += 1
        at = self.now + wait
        self._due[timer, key] = (at, self._armed)
        heapq.heappush(self._heap, (at, self._armed, (timer, key)))

    def disarm(self, timer: Timer, key: int) -> None:
        """Stop a timer, running or not."""
        self._due.pop((timer, key), None)

    def clear(self) -> None:
        """Stop all."""
        self._due.clear()
        self._heap.clear()

    def next(self) -> float | None:
        """When the first timer is due, or None."""
        # Disarmed and restarted timers stay in the heap until they surface.
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][:2]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def run(self, now: float, fire: Callable[[Timer, int], None]) -> None:
        """Fire what is due by `now`, each at its time. StateError if time goes back."""
        if not now >= self.now:
            raise StateError(f"time went back from {self.now} to {now}")
        while (at := self.next()) is not None and at <= now:
            timer, key = heapq.heappop(self._heap)[2]
            del self._due[timer, key]
            self.now = at
            fire(timer, key)
        self.now = now

    def taken(self) -> list[Event]:
        """The events since the last time, oldest first."""
        events, self.out = self.out, []
        return events
