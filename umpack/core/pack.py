"""A pack: channels in an order, and which of them is next.

*Linear* takes the first idle position. *Cyclic* takes the first idle position after the last one
assigned. The cyclic pointer names a channel, not an index, so it means the same after other
members have come or gone (see `carried_pointer`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from itertools import chain, zip_longest
from typing import NamedTuple, NewType, TypeVar

from umpack.core.channel import Channel, ChannelId
from umpack.core.idle import IdleSet, Mask, has, joined, mask_of, positions_of, shared, without
from umpack.core.trunk import TrunkId

PackId = NewType("PackId", str)
T = TypeVar("T")


class Strategy(Enum):
    """How a pack hunts."""

    LINEAR = "linear"
    CYCLIC = "cyclic"


class Direction(Enum):
    """Which end of the pack is hunted first.

    Descending is for trunks whose exchange ascends: both ends then meet as late as possible,
    which keeps glare rare (Q.931 5.7).
    """

    ASCENDING = "ascending"
    DESCENDING = "descending"


@dataclass(frozen=True, slots=True)
class PackPlan:
    """What the configuration says of a pack.

    Times are seconds. `answer_within` limits one attempt, `setup_budget` all attempts of a call.
    """

    id: PackId
    channels: tuple[ChannelId, ...]
    strategy: Strategy = Strategy.LINEAR
    overflow: tuple[PackId, ...] = ()
    answer_within: float = 20.0
    setup_budget: float = 30.0
    refusal_cause: int = 34


class Grade(IntEnum):
    """How a pack uses a trunk now, best first."""

    TRIAL = 0
    """Waits for one call that decides; taken before all others, or it would never come."""
    FIRST = 1
    RESERVE = 2
    """While nothing better is idle."""
    LAST = 3
    """Has all the calls it may have for now; one more is better than refusing it."""
    CLOSED = 4


GOOD = (Grade.TRIAL, Grade.FIRST)
"""Where a new call goes without a doubt."""

OPEN = (*GOOD, Grade.RESERVE, Grade.LAST)
"""Where a new call may go."""

GOOD_AGAIN = (Grade.FIRST,)
"""Where a call that has failed goes next: it has waited once, and decides no trial."""

OPEN_AGAIN = (Grade.FIRST, Grade.RESERVE, Grade.TRIAL, Grade.LAST)


class Seat(NamedTuple):
    """A channel's place in one pack."""

    pack: Pack
    position: int


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Channels of a pack that could not be given to a call, and why."""

    trunk: TrunkId
    channels: int
    why: str


def order_channels(
    members: Sequence[Sequence[T]], direction: Direction, *, interleave: bool
) -> tuple[T, ...]:
    """Positions of a pack from its members, each a row of channels, without repetition.

    Interleaved, the first channels of all members come first, then the second ones, so that calls
    spread over boards even when they hunt linearly.
    """
    rows: Iterable[Iterable[T | None]] = zip_longest(*members) if interleave else members
    order = tuple(dict.fromkeys(c for c in chain.from_iterable(rows) if c is not None))
    return order if direction is Direction.ASCENDING else order[::-1]


def carried_pointer(
    last: ChannelId | None, old: Sequence[ChannelId], new: Sequence[ChannelId]
) -> ChannelId | None:
    """The pointer after a change of members, so that the channel next in turn stays next.

    Where the pointer's own channel has gone, it moves to just before the nearest of its successors
    that is left.
    """
    if last is None or last in new:
        return last
    if last not in old:
        return None
    index = old.index(last)
    left = set(new)
    after = next((c for c in (*old[index + 1 :], *old[:index]) if c in left), None)
    return None if after is None else new[new.index(after) - 1]


class Pack:
    """The living pack: which positions are idle and where the pointer stands."""

    __slots__ = (
        "_exclusions",
        "_masks",
        "_notes",
        "channels",
        "cyclic",
        "id",
        "idle",
        "last",
        "plan",
        "tiers",
    )

    def __init__(self, plan: PackPlan, channels: Sequence[Channel]) -> None:
        self.id = plan.id
        self.plan = plan
        self.cyclic = plan.strategy is Strategy.CYCLIC
        self.channels = tuple(channels)
        self.idle = IdleSet(len(channels))
        self.last = -1
        """Position last assigned; -1 before the first."""
        self._exclusions: tuple[Exclusion, ...] | None = None
        self._notes: tuple[Exclusion, ...] = ()
        self.tiers: Mapping[Grade, Mask] | None = None
        """Positions of each grade; None while all trunks are first choice."""
        places: dict[TrunkId, list[int]] = {}
        for position, id_ in enumerate(plan.channels):
            places.setdefault(TrunkId(id_.rpartition(":")[0]), []).append(position)
        self._masks = {trunk: mask_of(len(channels), at) for trunk, at in places.items()}

    @property
    def pointer(self) -> ChannelId | None:
        """The channel assigned last."""
        return self.channels[self.last].id if self.last >= 0 else None

    def point_at(self, channel: ChannelId | None) -> None:
        """Set the pointer; a channel that is not a member leaves it before the first position."""
        # By the plan: at a reload the channels still have the names they had before.
        order = self.plan.channels
        self.last = order.index(channel) if channel in order else -1

    def next_position(
        self,
        grades: Sequence[Grade] = OPEN,
        accepts: Callable[[TrunkId], bool] | None = None,
    ) -> int:
        """The position the strategy names next, or -1 when none is idle. Changes nothing.

        Trunks of the first of the `grades` go before those of the next, and of others none; where
        not all are wanted, `accepts` says which.
        """
        if accepts is not None:
            return self.next_position_on(accepts, (), grades)
        if (tiers := self.tiers) is not None:
            return self._next_of(tiers[grade] for grade in grades if grade in tiers)
        if not self.cyclic:
            return self.idle.first()
        position = self.idle.first_from(self.last + 1)
        return position if position >= 0 else self.idle.first()

    def next_position_on(
        self,
        accepts: Callable[[TrunkId], bool],
        tried: Iterable[int] = (),
        grades: Sequence[Grade] = OPEN,
    ) -> int:
        """Like `next_position`, on trunks that `accepts` and without the `tried` positions."""
        allowed = joined(mask for trunk, mask in self._masks.items() if accepts(trunk))
        if not allowed:
            return -1
        allowed = without(allowed, tried)
        if (tiers := self.tiers) is None:
            return self._next_of((allowed,))
        return self._next_of(shared(tiers[grade], allowed) for grade in grades if grade in tiers)

    def _next_of(self, tiers: Iterable[Mask]) -> int:
        for tier in tiers:
            position = self.idle.first_of(tier, self.last + 1) if self.cyclic else -1
            if position < 0:
                position = self.idle.first_of(tier)
            if position >= 0:
                return position
        return -1

    def grade(self, grades: Mapping[TrunkId, Grade], *, panic: bool = False) -> None:
        """Hunt by grades from now on; trunks not named are first choice.

        In a `panic` the reserve is as good as any; but the last remain the last, as the first call
        they had has not come back yet. Closed trunks are not hunted.
        """
        if panic:
            grades = {t: Grade.FIRST if g is Grade.RESERVE else g for t, g in grades.items()}
        mine = {trunk: grades.get(trunk, Grade.FIRST) for trunk in self._masks}
        if all(grade is Grade.FIRST for grade in mine.values()):
            self.tiers = None
            return
        self.tiers = {
            wanted: joined(self._masks[trunk] for trunk, grade in mine.items() if grade is wanted)
            for wanted in OPEN
            if wanted in mine.values()
        }

    def in_turn(self, position: int) -> bool:
        """Whether a position is first choice. Trials and stopgaps come out of turn: the pointer
        stays, or whoever is next would lose the turn to them."""
        if self.tiers is None:
            return True
        first = self.tiers.get(Grade.FIRST)
        return first is not None and has(first, position)

    def members(self, trunk: TrunkId) -> Iterator[Channel]:
        """The channels of a trunk that are in this pack."""
        return (self.channels[position] for position in positions_of(self._masks[trunk]))

    def has_idle(self, trunk: TrunkId) -> bool:
        """Whether a channel of the trunk is idle here."""
        return self.idle.first_of(self._masks[trunk]) >= 0

    def carries(self, trunk: TrunkId) -> bool:
        """Whether any channel of the trunk may carry calls here, idle or not."""
        return self.has_idle(trunk) or any(not c.blocks for c in self.members(trunk))

    @property
    def trunks(self) -> Mapping[TrunkId, Mask]:
        """The trunks that have channels here, in order, with their positions."""
        return self._masks

    def after(self, last: int) -> ChannelId | None:
        """Which channel a hunt began behind, the pointer being at `last`; None: from the first."""
        return self.channels[last].id if self.cyclic and last >= 0 else None

    def passed_over(self, position: int, after: int) -> int:
        """How many positions the hunt passed before `position`, the pointer being at `after`."""
        return (position - after - 1) % len(self.channels) if self.cyclic else position

    def forget_exclusions(self) -> None:
        """Called by the ledger when a member was blocked or unblocked."""
        self._exclusions = None

    def note(self, notes: Iterable[Exclusion]) -> None:
        """Say what else keeps calls off trunks, beside their channels' blocks."""
        self._notes = tuple(notes)
        self._exclusions = None

    @property
    def exclusions(self) -> tuple[Exclusion, ...]:
        """Blocked members, grouped by trunk and reason, and trunks that are not first choice."""
        if self._exclusions is None:
            groups: dict[tuple[TrunkId, str], int] = {}
            for channel in self.channels:
                for why in channel.blocks.values():
                    key = channel.trunk.id, why
                    groups[key] = groups.get(key, 0) + 1
            blocked = (Exclusion(trunk, count, why) for (trunk, why), count in groups.items())
            self._exclusions = (*blocked, *self._notes)
        return self._exclusions

    @property
    def usable(self) -> bool:
        """Whether any member may carry calls, idle or not."""
        return any(not channel.blocks for channel in self.channels)

    def __repr__(self) -> str:
        return (
            f"<{self.id} {self.plan.strategy.value}: {len(self.idle)} of {len(self.channels)} idle"
            f", last {self.pointer or '-'}>"
        )
