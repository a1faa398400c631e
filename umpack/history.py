"""What has lately happened to the trunks: state changes of their health, told in words.

Each is one log line and stays in view for a while. The states themselves are the distributor's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from loguru import logger

from umpack.core.health_states import HealthChange, HealthEvent
from umpack.core.printable import printable

_LONGEST = 100
"""Changes kept in view; the log has them all."""

_LEVELS = {
    HealthEvent.BLAMED: "WARNING",
    HealthEvent.EJECT: "WARNING",
    HealthEvent.SPARE: "WARNING",
    HealthEvent.READMIT: "WARNING",  # the trunk is no better; the pack is worse
    HealthEvent.ALARM: "WARNING",
    HealthEvent.SUCCEEDED: "INFO",
    HealthEvent.TRIAL_DUE: "INFO",
    HealthEvent.RAMPED: "INFO",
    HealthEvent.UNSEEN: "WARNING",  # likewise, and the link is down
    HealthEvent.SETTLED: "INFO",
    HealthEvent.SETTLED_UNPROVEN: "INFO",
    HealthEvent.RESTORE: "INFO",
}
"""A missing key is the error."""

_SPEAKS_FOR_ITSELF = frozenset({HealthEvent.SUCCEEDED, HealthEvent.TRIAL_DUE, HealthEvent.RAMPED})
"""With these, a change's `why` is the trouble the trunk was in before."""


def reason_of(change: HealthChange) -> str:
    """Why it happened, for people."""
    if change.event in _SPEAKS_FOR_ITSELF:
        return change.event.value
    return change.why or change.event.value


def line_of(change: HealthChange) -> str:
    """One change in one log line; what others have said in it is escaped."""
    why = printable(reason_of(change), 300)
    states = f"{change.before.value} → {change.after.value}"
    return f"trunk {printable(change.trunk)}: {states}: {why}"


class History:
    """The last changes, oldest first."""

    def __init__(self) -> None:
        self._changes: deque[HealthChange] = deque(maxlen=_LONGEST)

    def take(self, changes: Iterable[HealthChange]) -> None:
        """Log and keep them."""
        for change in changes:
            self._changes.append(change)
            logger.log(_LEVELS[change.event], "{}", line_of(change))

    def newest(self, limit: int = _LONGEST, trunk: str | None = None) -> Iterator[HealthChange]:
        """Newest first; of one trunk, if it is named."""
        found = [c for c in reversed(self._changes) if trunk in (None, c.trunk)]
        return iter(found[: max(limit, 0)])
