"""Trunks that know no way for anybody (Q.850 causes 2 and 3).

One number without a route is the dial plan's fault, or the caller's. When different numbers one
after the other have none on the same trunk, and nothing else comes of it, the trunk is at fault.
"""

from __future__ import annotations

from collections.abc import Iterator

from umpack.core.causes import Blame, Elsewhere, Outcome, Result, Verdict
from umpack.core.trunk import TrunkId

NO_ROUTE = frozenset({2, 3})

LOST = Verdict(Elsewhere.ONCE, Blame.TRUNK, "Q.850 2, 3: the trunk has no route for any number")


class NoRoutes:
    """The numbers each trunk had no route for, since it last had one for somebody."""

    __slots__ = ("_numbers",)

    def __init__(self) -> None:
        self._numbers: dict[TrunkId, set[str]] = {}

    def ended(self, trunk: TrunkId, outcome: Outcome, verdict: Verdict) -> None:
        """An attempt ended otherwise; where it came through to somebody there is a route."""
        if self._numbers and (outcome.result is Result.ANSWERED or verdict.blame is Blame.CALL):
            self._numbers.pop(trunk, None)

    def failed(self, trunk: TrunkId, called: str, many: int) -> bool:
        """There was no route; answers whether `many` different numbers had none."""
        numbers = self._numbers.setdefault(trunk, set())
        if len(numbers) < many:
            numbers.add(called)
        return len(numbers) >= many

    def forget(self, trunk: TrunkId) -> None:
        """Nothing is held against the trunk any more, or it is another one by now."""
        self._numbers.pop(trunk, None)

    def __iter__(self) -> Iterator[TrunkId]:
        return iter(tuple(self._numbers))
