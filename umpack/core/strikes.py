"""What is held against one trunk: failures in a row, and ejections in a row."""

from __future__ import annotations

from zlib import crc32

from umpack.core.health_policy import HealthPolicy
from umpack.core.health_words import because

_GOLDEN = 0.6180339887498949
"""Multiples of the golden ratio, modulo 1, spread evenly however many there are (Weyl)."""


class Strikes:
    """The record of one trunk. `name` decides only how its ejections are jittered."""

    __slots__ = (
        "_calm_since",
        "_dice",
        "_last_reason",
        "_same_reason",
        "_times",
        "failures",
        "until",
    )

    def __init__(self, name: str, now: float) -> None:
        self.failures = 0
        """Blamed on the trunk, in a row."""
        self.until = now
        """End of the last ejection."""
        self._last_reason = ""
        self._same_reason = True
        self._times = 0
        self._calm_since: float | None = now
        self._dice = crc32(name.encode()) / 2**32

    def strike(self, reason: str) -> str:
        """One more failure; answers the row of them in words."""
        self.failures += 1
        again = self.failures > 1
        self._same_reason = not again or (self._same_reason and reason == self._last_reason)
        self._last_reason = reason
        return because(self.failures, reason, same=self._same_reason)

    def eject(self, now: float, policy: HealthPolicy, seconds: float | None) -> float:
        """One more ejection, of `seconds` or what the policy says; answers how long it is."""
        self._times = min(self.times(now, policy) + 1, policy.most_times)
        self._calm_since = None
        self._dice = (self._dice + _GOLDEN) % 1.0
        if seconds is None:
            seconds = policy.ejection(self._times, self._dice)
        self.until = now + max(seconds, 0.0)
        self.failures = 0
        return seconds

    def times(self, now: float, policy: HealthPolicy) -> int:
        """Ejections in a row, one less for every calm period."""
        calm = 0.0 if self._calm_since is None else now - self._calm_since
        return max(0, self._times - int(calm / policy.calm_period))

    def calm(self, now: float, policy: HealthPolicy, *, calm: bool) -> None:
        """Whether a time without fault begins or goes on now, or ends."""
        if not calm:
            self._times = self.times(now, policy)
            self._calm_since = None
        elif self._calm_since is None:
            self._calm_since = now

    def forget(self, now: float) -> None:
        """Nothing is held against it any more."""
        self.failures = self._times = 0
        if self._calm_since is not None:
            self._calm_since = now

    def recall(self, times: int, failures: int, until: float) -> None:
        """Take over a record from before a restart."""
        self._times, self.failures, self.until = times, failures, until

    def __repr__(self) -> str:
        return f"<{self.failures} failures, {self._times} ejections in a row>"
