"""A trunk that usually answers in milliseconds and now does not: seen before anything has failed.

Every trunk learns how long its answers take. An attempt outstanding far beyond that is a
hesitation: a dead server is left alone a fifth of a second after its death, when its first victim
still has most of its time before it, instead of after three time-outs.

Answers are hints from the PBX and may be lost; so an attempt that was overtaken, or is older than
any attempt can ring, is taken for answered.
"""

from __future__ import annotations

from bisect import bisect_right
from math import inf

from umpack.core.health_policy import HealthPolicy

_BINS_PER_OCTAVE = 4
_BINS = 64
EDGES = tuple(0.001 * 2 ** (i / _BINS_PER_OCTAVE) for i in range(_BINS))
"""Upper edges of the histogram's bins in seconds: 1 ms to 55 s in steps of 19 %."""

_MEMORY = 2048
"""Answers after which all that was learned counts half."""

_RELEARN = 64
"""Answers between two looks at the histogram: no more than 3 % of the memory is ever unseen."""


class AnswerTimes:
    """The 99th percentile of a trunk's answer times, learned, older answers counting less."""

    __slots__ = ("_countdown", "_counts", "_samples", "_total", "p99")

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._counts = [0] * (_BINS + 1)
        self._total = 0
        self._countdown = samples
        self.p99 = inf
        """Seconds, rounded up to a bin's edge; infinite until enough is known, and when beyond
        the last edge."""

    def learn(self, seconds: float) -> bool:
        """Count one answer; true when `p99` has been worked out anew."""
        self._counts[bisect_right(EDGES, seconds)] += 1
        self._countdown -= 1
        if self._countdown:
            return False
        self._look()
        return True

    def _look(self) -> None:
        if self._total:
            self._total += _RELEARN
            self._countdown = _RELEARN
        else:
            self._total = self._samples
            self._countdown = _RELEARN
        if self._total >= _MEMORY:
            self._counts = [count >> 1 for count in self._counts]
            self._total = sum(self._counts)
        above, allowed = 0, self._total // 100
        for bin_ in range(_BINS, -1, -1):
            above += self._counts[bin_]
            if above > allowed:
                self.p99 = EDGES[bin_] if bin_ < _BINS else inf
                return

    def __repr__(self) -> str:
        return f"<p99 {self.p99:.3f} s of {self._total} answers>"


class Hesitation:
    """The attempts of one trunk that have had no answer yet, and whether one of them is late.

    Attempts are named by their lease's token and must be reported with `now` not running back.
    """

    __slots__ = (
        "_answered_start",
        "_deaf",
        "_policy",
        "_silent",
        "_unheard",
        "answers",
        "late_since",
        "longest",
        "outstanding",
        "patience",
        "unsure",
        "wait",
    )

    def __init__(self, policy: HealthPolicy) -> None:
        self._policy = policy
        self.answers = AnswerTimes(policy.hesitation_samples)
        self.outstanding: dict[int, float] = {}
        """Token to start, oldest first."""
        self._silent: dict[int, float] = {}
        """Attempts begun while the PBX told nothing: never late, but they may outlive the limit."""
        self._unheard: dict[int, float] = {}
        """Attempts taken for answered, until their call ends."""
        self.unsure: dict[int, float] = {}
        """Attempts whose answer was told later than any should come: it, or only the hint, was
        late. What the PBX says at the end of their calls is learned instead."""
        self._answered_start = -inf
        self._deaf = False
        self.longest = inf
        """Seconds in which every answer normally comes; infinite where nobody knows."""
        self.patience = inf
        """Seconds after which an attempt is late; infinite where lateness would say nothing."""
        self.wait = policy.answer_limit
        """Seconds after its start at which an attempt wants to be looked at."""
        self.late_since: float | None = None
        """Start of the oldest late attempt, while there is one."""

    def started(self, token: int, now: float) -> float:
        """An attempt has begun; answers when it is to be looked at."""
        self.outstanding[token] = now
        return now + self.wait

    def answered(self, token: int, now: float) -> float | None:
        """An attempt was answered: its start, `None` if it was not, or no longer, waited for."""
        started = self.outstanding.pop(token, None)
        if started is None:
            return None
        if started > self._answered_start:  # noqa: PLR1730  # max() would cost a call for every call
            self._answered_start = started
        if now - started > self.longest:
            self.unsure[token] = started
        elif self.answers.learn(now - started):
            self._set_patience()
        return started

    def ended(self, token: int, answered: float | None) -> None:
        """A connected call is over; `answered` says when it really was answered, if known."""
        started = self.unsure.pop(token, None)
        if started is None or answered is None:
            return
        if self.answers.learn(max(0.0, answered - started)):
            self._set_patience()

    def gone(self, token: int) -> float | None:
        """An attempt has ended, or its call has: its start, `None` if unknown."""
        if self.unsure:
            self.unsure.pop(token, None)
        started = self.outstanding.pop(token, None)
        if started is None and self._unheard:
            started = self._unheard.pop(token, None)
        if started is None and self._silent:
            started = self._silent.pop(token, None)
        return started

    def look(self, now: float) -> tuple[float, float | None]:
        """Judge the oldest attempt: when to look again, and the start of the newest one that has
        outlived `answer_limit`, which is an answer too."""
        limit = self._policy.answer_limit
        self.late_since, again = None, inf
        outlived: float | None = None
        overtaken = []
        for token, started in self._silent.items():
            if now < started + limit:
                again = started + limit
                break
            overtaken.append(token)
            outlived = started
        for token, started in self.outstanding.items():
            old = now >= started + limit
            if old or (started < self._answered_start and now >= started + self.wait):
                overtaken.append(token)
                outlived = started if old else outlived
            elif now < started + self.patience:
                again = min(again, started + self.wait)
                break
            else:
                self.late_since, again = started, min(again, started + limit)
                break
        for token in overtaken:
            where = self.outstanding if token in self.outstanding else self._silent
            self._unheard[token] = where.pop(token)
        return again, outlived

    def is_slow(self, now: float) -> bool:
        """Whether the oldest attempt waits longer than 99 of 100 do: late, or on the way there."""
        if self.patience == inf:
            return False
        return now - next(iter(self.outstanding.values()), now) > self.answers.p99

    def hear(self, *, hints: bool) -> None:
        """Whether the PBX tells of answers now. Attempts begun in silence are never late."""
        if hints and self._deaf:
            self._silent.update(self.outstanding)
            self.outstanding.clear()
        self._deaf = not hints
        self._set_patience()

    def adjust(self, policy: HealthPolicy) -> None:
        """Take on other numbers; what was learned stays."""
        self._policy = policy
        self._set_patience()

    def _set_patience(self) -> None:
        policy, p99 = self._policy, self.answers.p99
        self.longest = inf
        if p99 <= policy.hesitation_ceiling:
            self.longest = max(policy.hesitation_floor, policy.hesitation_factor * p99)
        self.patience = inf if self._deaf else self.longest
        self.wait = min(self.patience, policy.answer_limit)

    def __repr__(self) -> str:
        late = "late" if self.late_since is not None else "not late"
        return f"<{len(self.outstanding)} outstanding, {late}, {self.answers!r}>"
