"""What the distributor should do, done naively: dictionaries, and lists that are scanned."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from tests.unit.core.worlds import ROUTES, lines_of, trunk_of
from umpack.core.administration import Drain
from umpack.core.causes import Elsewhere
from umpack.core.ledger import Lease
from umpack.core.pack import PackPlan, Strategy
from umpack.core.site import Site

_PER_TRUNK = 3
"""Channels of one trunk a call may lose to glare."""

PROBE = "probe"
"""Block source of the model's alarms, on single channels: health knows nothing of it, and takes
back its own blocks only."""


@dataclass(eq=False)
class Held:
    """A call in flight."""

    id: str
    lease: Lease[Any]
    line: Hashable
    chain: list[str]
    deadline: float
    once: bool = False
    failures: list[tuple[str, Elsewhere]] = field(default_factory=list)
    """Channels met before, and what their answers said of trying elsewhere."""


class Naive:
    """A site, the calls on its lines, and what people and boards have said of them."""

    def __init__(self, world: Site) -> None:
        self.site = world
        self.held: list[Held] = []
        self.names = lines_of(world)
        """Every line there is, also those that only live on for a call."""
        self.pointer: dict[str, str] = {}
        self.parked: dict[str, str] = {}
        self.drains: dict[str, Drain] = {}
        self.alarms: set[Hashable] = set()

    # -- what there is ------------------------------------------------------------------------

    def line(self, name: str) -> Hashable:
        return next(line for line, called in self.names.items() if called == name)

    def configured(self) -> list[str]:
        return list(lines_of(self.site).values())

    def known(self, target: str) -> bool:
        there = self.names.values()
        return target in there or target in map(trunk_of, there)

    def plan_of(self, pack: str) -> PackPlan:
        return next(p for p in self.site.packs.values() if p.id == pack)

    def blocks(self, name: str) -> set[str]:
        """Who keeps new calls off a configured channel."""
        drained = {f"drain {t}" for t in (name, trunk_of(name)) if t in self.drains}
        return drained | ({PROBE} if self.line(name) in self.alarms else set())

    def holds(self, token: int) -> bool:
        return any(it.lease.token == token for it in self.held)

    # -- the hunt -----------------------------------------------------------------------------

    def goal(self, called: str) -> str | None:
        """The pack the routes name."""
        pack = ROUTES.get(called)
        if pack == "ghost" or pack in self.site.packs:
            return pack
        return next(iter(self.site.packs), "ghost") if called.startswith("1") else None

    def chain(self, pack: str) -> list[str]:
        """Depth first, each once."""
        found: list[str] = []
        waiting = [pack]
        while waiting:
            at = waiting.pop(0)
            if at not in found:
                found.append(at)
                waiting = [*self.plan_of(at).overflow, *waiting]
        return found

    def in_order(self, pack: str) -> list[str]:
        order: list[str] = list(self.plan_of(pack).channels)
        last = self.pointer.get(pack)
        if self.plan_of(pack).strategy is Strategy.CYCLIC and last is not None:
            start = order.index(last) + 1
            order = order[start:] + order[:start]
        return order

    def free(self, pack: str) -> list[str]:
        busy = [self.names[it.line] for it in self.held]
        return [c for c in self.in_order(pack) if c not in busy and not self.blocks(c)]

    def choice(self, chain: list[str]) -> tuple[str, str] | None:
        """Pack and channel for a new call."""
        return self._choice(chain, lambda channel: True)

    def next_choice(self, it: Held) -> tuple[str, str] | None:
        """In each pack another trunk if any is left, then another channel of a trunk that only lost
        channels; each trunk a bounded number of times, each channel once."""
        tried = [channel for channel, _ in it.failures]

        def ways(channel: str) -> list[Elsewhere]:
            return [how for met, how in it.failures if trunk_of(met) == trunk_of(channel)]

        def only_lost_channels(channel: str) -> bool:
            lost = set(ways(channel)) == {Elsewhere.CHANNEL}
            return lost and len(ways(channel)) < _PER_TRUNK and channel not in tried

        for pack in it.chain:
            for may in (lambda channel: not ways(channel), only_lost_channels):
                if found := self._choice([pack], may):
                    return found
        return None

    def _choice(self, chain: list[str], may: Callable[[str], bool]) -> tuple[str, str] | None:
        for pack in chain:
            if pack in self.site.packs:
                for channel in self.free(pack):
                    if may(channel):
                        return pack, channel
        return None

    def ends(self, it: Held) -> None:
        """A lease is over; a line that only lived on for it has gone."""
        self.held.remove(it)
        if it.line not in lines_of(self.site):
            del self.names[it.line]
            self.alarms.discard(it.line)

    # -- a new site ---------------------------------------------------------------------------

    def reload(self, new: Site) -> None:
        old, was, now = self.site, self.names, lines_of(new)
        self.names = now | {it.line: self._left(it, was[it.line], now) for it in self.held}
        self.alarms = {
            line
            for line in self.alarms
            if now.get(line) == was[line] or (line not in now and line in self.names)
        }
        self.parked |= {p: last for p, last in self.pointer.items() if p not in new.packs}
        pointer = {}
        for pack in new.packs.values():
            after: list[str] = list(pack.channels)
            if pack.id in old.packs:
                before: list[str] = list(old.packs[pack.id].channels)
                last = self._carried(self.pointer.get(pack.id), before, after, was, now)
            else:
                last = self.parked.get(pack.id)
            self.parked.pop(pack.id, None)
            if last in after:
                pointer[str(pack.id)] = str(last)
        self.site, self.pointer = new, pointer

    @staticmethod
    def _left(it: Held, name: str, now: dict[Hashable, str]) -> str:
        """The name of a line with a call; if removed, its old one unless that is needed."""
        if it.line in now:
            return now[it.line]
        if name not in now.values():
            return name
        actual = it.lease.channel.id
        assert actual.startswith(f"{name} (removed"), actual
        return actual

    @staticmethod
    def _carried(
        last: str | None,
        before: list[str],
        after: list[str],
        was: dict[Hashable, str],
        now: dict[Hashable, str],
    ) -> str | None:
        """Where the pointer should stand, so that the line next in turn stays next."""
        line_before = {name: line for line, name in was.items()}
        line_after = {name: line for line, name in now.items()}

        def place(name: str) -> str | None:
            line = line_before[name]
            if line in now:
                return now[line]
            new_line = name in line_after and line_after[name] not in was
            return name if new_line else None

        if last is None:
            return None
        at = before.index(last)
        here = place(last)
        if here in after:
            return here
        for successor in before[at + 1 :] + before[:at]:
            there = place(successor)
            if there is not None and there in after:
                return after[after.index(there) - 1]
        return None
