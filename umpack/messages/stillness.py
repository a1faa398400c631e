"""How long nothing has changed, whatever becomes of the wall clock."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final

STEP: Final = 5.0
"""Seconds between the clocks from which the wall clock counts as having been set."""


class Stillness:
    """Things that shall have been the same for `quiet` seconds.

    File systems write down the wall clock's time, which may be set; `now` is the program's own
    time line, which only advances. As long as both agree and a change is not ahead of them, it is
    believed, so that what a dead process left need not be watched anew. Else only what was seen
    here counts.
    """

    def __init__(self, quiet: float, now: Callable[[], float], wall: Callable[[], float]) -> None:
        self._quiet = quiet
        self._now = now
        self._wall = wall
        self._seen: dict[Hashable, tuple[Hashable, float]] = {}

    def reached(self, what: Hashable, state: Hashable, changed: float) -> bool:
        """Whether `what` has been in this `state`, since `changed` (epoch seconds), for so long."""
        now = self._now()
        known, since = self._seen.get(what, (None, now))
        if what not in self._seen or known != state:
            since = now
            self._seen[what] = state, since
        if changed <= now and abs(self._wall() - now) <= STEP:
            return now >= changed + self._quiet
        return now >= since + self._quiet

    def forget_but(self, present: set[Hashable]) -> None:
        """Drop what is no more."""
        for what in self._seen.keys() - present:
            del self._seen[what]
