"""When a message is tried again, and when trying ends. Pure: `now` and dice are arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from umpack.core.errors import ConfigError

DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Times in seconds.

    RFC 5321 4.5.4.1 asks for 30 minutes and more between tries, thinking of strange servers; ours
    go into the site's own, and most outages are a restart. So the first come soon, the later ones
    hourly, and it ends after the RFC's four to five days.
    """

    first: float = 30.0
    factor: float = 2.0
    cap: float = 3600.0
    jitter: float = 0.25
    """The share of a delay that chance may take away; with more than `1 - 1 / factor` a later
    delay could be shorter than an earlier one."""
    lifetime: float = 5 * DAY
    late_after: float = 600.0
    """Age at which an undelivered message is worth an alarm."""

    def __post_init__(self) -> None:
        if not (0 < self.first <= self.cap and self.factor > 1):
            raise ConfigError(f"retry: 0 < first <= cap and factor > 1 do not hold in {self}")
        if not 0 <= self.jitter <= 1 - 1 / self.factor:
            raise ConfigError(f"retry: jitter {self.jitter} is not in 0..1 - 1/{self.factor}")
        if self.lifetime <= 0 or self.late_after <= 0:
            raise ConfigError(f"retry: times must be positive in {self}")

    def delay(self, tries: int, dice: float) -> float:
        """Seconds after the try number `tries` (from 1), `dice` in 0..1; never above the cap."""
        nominal = self.first
        for _ in range(tries - 1):
            if nominal >= self.cap:
                break
            nominal *= self.factor
        return min(nominal, self.cap) * (1 - self.jitter * dice)


@dataclass(frozen=True, slots=True)
class TryAt:
    """Again at `due`, on the time line of `now`, not before."""

    due: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """A dead letter: a person decides."""

    why: str


Decision: TypeAlias = TryAt | GiveUp


def decide(
    policy: RetryPolicy,
    since: float,
    tries: int,
    now: float,
    dice: float,
    *,
    retry_after: float | None = None,
    reached: bool = True,
) -> Decision:
    """What follows a try that ended at `now` without a final answer.

    The lifetime counts from `since`: the commit, a person's word, or the mail system's return,
    whichever is the latest. The last try is at its end. `retry_after` lengthens a delay, to the cap
    at most. Who was not even `reached` outlives the lifetime: while the whole mail system is away
    a dead letter would tell nobody anything and make work afterwards.
    """
    ends = since + policy.lifetime
    if reached and now >= ends:
        return GiveUp(f"not accepted in {policy.lifetime / DAY:g} days and {tries} tries")
    wait = max(policy.delay(tries, dice), min(retry_after or 0.0, policy.cap))
    due = now + wait
    return TryAt(min(due, ends) if now < ends else due)


def is_late(policy: RetryPolicy, queued_at: float, now: float) -> bool:
    """Whether an undelivered message is worth an alarm."""
    return now - queued_at >= policy.late_after
