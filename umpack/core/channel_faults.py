"""Single channels of a trunk that fail while the trunk works (Q.850 causes 6, 44, 82).

A channel that fails several times in a row is rested: it may hang between RESTART and its
acknowledgement (Q.931 5.5), or be blocked at the other end only. When the rest is over one more
failure rests it again, longer. When half the channels of a trunk are at fault, the trunk is.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import inf

from umpack.core.channel import ChannelId
from umpack.core.health_policy import HealthPolicy
from umpack.core.health_words import because, nth


@dataclass(frozen=True, slots=True)
class ChannelRest:
    """Block this channel until `until` (as `now`, in seconds); `why` is for people."""

    channel: ChannelId
    until: float
    why: str


class ChannelFaults:
    """The channels of one trunk that have failed lately. Costs nothing while there are none."""

    __slots__ = ("_channels", "_in_row", "_policy", "_resting", "_times")

    def __init__(self, policy: HealthPolicy, channels: int) -> None:
        self._policy = policy
        self._channels = channels
        self._in_row: dict[ChannelId, int] = {}
        self._times: dict[ChannelId, int] = {}
        self._resting: dict[ChannelId, float] = {}

    def adjust(self, policy: HealthPolicy, channels: Collection[ChannelId]) -> None:
        """Take on other numbers, and the channels there are now. What rests goes on resting; of
        those that have gone nothing is kept, or they would speak against the trunk for ever."""
        self._policy, self._channels = policy, len(channels)
        there = set(channels)
        self._in_row = {id_: n for id_, n in self._in_row.items() if id_ in there}
        self._times = {id_: n for id_, n in self._times.items() if id_ in there}
        self._resting = {id_: until for id_, until in self._resting.items() if id_ in there}

    def worked(self, channel: ChannelId) -> None:
        """A call was answered on the channel: nothing is held against it any more."""
        if self._in_row:
            self._in_row.pop(channel, None)
            self._times.pop(channel, None)

    def failed(self, channel: ChannelId, now: float, reason: str) -> ChannelRest | None:
        """A failure was blamed on the channel; answers the rest it needs, if any.

        Ask `blames_trunk` afterwards: no channel is rested when it is the trunk.
        """
        policy = self._policy
        failures = self._in_row[channel] = self._in_row.get(channel, 0) + 1
        if failures < policy.channel_failures or channel in self._resting or self.blames_trunk:
            return None
        times = self._times[channel] = self._times.get(channel, 0) + 1
        seconds = min(policy.channel_rest * times, policy.channel_rest_cap)
        self._resting[channel] = now + seconds
        words = because(failures, reason, same=True)
        why = f"rests {seconds:.0f} s, {nth(times)} time, {words}"
        return ChannelRest(channel, now + seconds, why)

    @property
    def blames_trunk(self) -> bool:
        """Whether so many channels are at fault that it is the trunk (two at least)."""
        faulty = sum(n >= self._policy.channel_failures for n in self._in_row.values())
        return faulty > 1 and 2 * faulty > self._channels

    def rests(self, channel: ChannelId) -> bool:
        """Whether it is resting."""
        return channel in self._resting

    @property
    def due(self) -> float:
        """When the next rest ends; infinite if none runs."""
        return min(self._resting.values(), default=inf)

    def rested(self, now: float) -> tuple[ChannelId, ...]:
        """Channels whose rest is over: unblock them. Each is answered once."""
        over = tuple(channel for channel, until in self._resting.items() if until <= now)
        for channel in over:
            del self._resting[channel]
        return over

    def restore(self) -> tuple[ChannelId, ...]:
        """Forget everything; answers the channels that were resting, to be unblocked."""
        resting = tuple(self._resting)
        self._in_row.clear()
        self._times.clear()
        self._resting.clear()
        return resting

    def __repr__(self) -> str:
        return f"<{len(self._resting)} of {self._channels} channels rest>"
