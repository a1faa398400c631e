"""A trunk whose calls come out unlike its own past: found by a ratio, compared with itself.

Two kinds of black hole fail no call: one rings and never answers, one answers and hangs up at
once. What is normal differs from trunk to trunk (a fax server answers all, a line to people half),
so each is held against its own past, never against a fixed number or its neighbours.
"""

from __future__ import annotations

from math import sqrt

from umpack.core.health_policy import HealthPolicy

WINDOW = 32
"""Calls in the recent window: one machine word, and half of it is already a sample."""

_MASK = (1 << WINDOW) - 1

_FORGET = 1 / 8
"""Weight of a new window in the past. The trunk's past then spans some 15 windows; a lasting change
becomes the new normal after about ten."""

_PAST_WINDOWS = 15
"""Windows such an average is worth: (2 - w) / w."""

_ENOUGH_PAST = 2
"""Windows of past before anything is compared."""

_RAREST = 0.02
"""No past is so good that one bad call in fifty surprises."""


class Ratio:
    """How many of a trunk's calls come out badly: lately, and in its past."""

    __slots__ = ("_bits", "_full", "_left", "_name", "_policy", "_windows", "outlying", "past")

    def __init__(self, name: str, policy: HealthPolicy) -> None:
        self._name = name
        self._policy = policy
        self._bits = 0
        self._full = False
        self._left = WINDOW
        self._windows = 0
        self.past = 0.0
        """Share of bad calls in the past, the recent window included once it is full."""
        self.outlying = False
        """Whether the recent window is worse than the past explains."""

    def good(self) -> None:
        """A call came out well."""
        self._bits = (self._bits << 1) & _MASK
        self._left -= 1
        if not self._left:
            self._learn()
        if self.outlying:
            self._judge()

    def bad(self) -> bool:
        """A call came out badly; answers `outlying`."""
        self._bits = (self._bits << 1 | 1) & _MASK
        self._left -= 1
        self._judge()
        if not self._left:
            self._learn()
        return self.outlying

    def forget_recent(self) -> None:
        """Begin a new window; the past stays. For a trunk that has come back."""
        self._bits = 0
        self._full = False
        self._left = WINDOW
        self.outlying = False

    @property
    def remembered(self) -> float | None:
        """The past for a restart: rounded, as it changes with every window and need not be written
        that often; None while too little is known."""
        return round(self.past, 1) if self._windows >= _ENOUGH_PAST else None

    def recall(self, past: float | None) -> None:
        """The past from before a restart. Without it a trunk broken by then would have no other."""
        if past is not None:
            self.past = min(max(past, 0.0), 1.0)
            self._windows = _ENOUGH_PAST

    def adjust(self, policy: HealthPolicy) -> None:
        """Take on other numbers; what was learned stays."""
        self._policy = policy

    @property
    def recent(self) -> tuple[int, int]:
        """Bad calls and calls in the recent window."""
        return self._bits.bit_count(), WINDOW if self._full else WINDOW - self._left

    @property
    def words(self) -> str:
        """What is wrong, for people."""
        bad, size = self.recent
        return f"unlike its past, {bad} of {size} calls {self._name}, normally {self.past:.0%}"

    def _learn(self) -> None:
        share = self._bits.bit_count() / WINDOW
        self.past += (share - self.past) * (_FORGET if self._windows else 1.0)
        self._windows += 1
        self._full = True
        self._left = WINDOW

    def _judge(self) -> None:
        policy = self._policy
        bad, size = self.recent
        self.outlying = False
        if size < policy.outlier_sample or self._windows < _ENOUGH_PAST:
            return
        past = max(self.past, _RAREST)
        known = WINDOW * min(self._windows, _PAST_WINDOWS)
        sigma = sqrt(past * (1.0 - past) * (1.0 / size + 1.0 / known)) if past < 1.0 else 0.0
        least = past + max(policy.outlier_distance, policy.outlier_sigmas * sigma)
        self.outlying = bad >= least * size

    def __repr__(self) -> str:
        return f"<{self.words}{', outlying' if self.outlying else ''}>"
