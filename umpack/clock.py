"""The one place that reads the machine's clocks.

`now()` is the time line of the whole program, in seconds: it starts at the wall clock's value and
advances with the monotonic clock. So intervals are safe from clock steps, and the same number
can be shown to people and written to the journal. Below the edge time is always an argument.
"""

from __future__ import annotations

import time

monotonic = time.monotonic  # noqa: TID251
wall = time.time  # noqa: TID251

_OFFSET = wall() - monotonic()


def now() -> float:
    """Seconds since the epoch as of program start, advancing monotonically."""
    return _OFFSET + monotonic()
