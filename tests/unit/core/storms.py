"""Storms in virtual time: callers, a distributor, and far ends that die by script.

Callers come evenly, or as the dice say; every attempt meets the behaviour its trunk has at that
moment. The PBX around it is exact: attempts end at their time limit, hints come or do not, and
somebody looks at the clock once a second, as the daemon does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count, cycle
from math import inf
from random import Random

from tests.sites import ANSWERED, MAIN, SILENT, all_of, call, plan, refused, site, trunk
from umpack.core.calls import Assignment, CallRecord, Decision
from umpack.core.causes import Blame, Outcome
from umpack.core.distributor import Distributor
from umpack.core.health_policy import HealthPolicy
from umpack.core.health_states import HealthChange, HealthState
from umpack.core.pack import Direction, Strategy, order_channels
from umpack.core.site import Site
from umpack.core.trunk import Trunk, TrunkId

RATE, HOLD, WITHIN = 20.0, 3.0, 1.0
ANSWER = 0.02
"""Seconds a machine takes to answer."""
DEATH = 30.0
"""When it begins, by default: everybody has learned what is normal."""


@dataclass(frozen=True, slots=True)
class Far:
    """How a far end treats one attempt: it answers after a time, or refuses, or does nothing."""

    answers: float = ANSWER
    hold: float = HOLD
    refuses: Outcome | None = None


WELL = Far()
DEAD = Far(answers=inf)
RINGS = DEAD
AT_ONCE = Far(hold=0.05)
SAYS_503 = Far(refuses=refused(34, 503))
BUSY = Far(refuses=refused(17, 486))
NO_NUMBER = Far(refuses=refused(1, 404))
SLOW = Far(answers=0.6)

Script = dict[str, list[tuple[float, float, Far]]]
"""Trunk to (from, until, behaviour); elsewhere all is well."""


@dataclass
class Caller:
    """One call as its caller saw it."""

    id: str
    offered: float
    answered: float | None = None
    ended: float | None = None
    cause: int = 0
    trunks: list[str] = field(default_factory=list)
    record: CallRecord | None = None

    @property
    def wait(self) -> float:
        """Seconds until an answer, whatever it was."""
        end = self.answered if self.answered is not None else self.ended
        return (inf if end is None else end) - self.offered

    @property
    def is_lost(self) -> bool:
        return self.answered is None


class Storm:
    """Run it once with `run`; then read."""

    def __init__(
        self,
        world: Site,
        script: Script | None = None,
        *,
        hints: bool = True,
        rate: float = RATE,
        seed: int | None = None,
        called: tuple[str, ...] = ("100",),
    ) -> None:
        self.distributor = Distributor(world)
        self.script = script or {}
        self.hints = hints
        self.rate = rate
        self.called = cycle(called)
        self.dice = None if seed is None else Random(seed)
        self.callers: dict[str, Caller] = {}
        self.changes: list[HealthChange] = []
        self.tried: list[tuple[float, str]] = []
        """When an attempt began, and on which trunk."""
        self.served: list[tuple[float, str]] = []
        """When an attempt was answered, and by which trunk."""
        self.watch: Callable[[float], None] = lambda now: None
        """Called every second, after the tick."""
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = count()
        self.distributor.hear(MAIN, 0.0, hints=hints)

    def at(self, when: float, what: Callable[[float], None]) -> None:
        heappush(self._events, (when, next(self._order), what))

    def run(self, until: float, since: float = 0.0) -> Storm:
        now = since
        while now < until:
            self.at(now, self._offer)
            now += 1 / self.rate if self.dice is None else self.dice.expovariate(self.rate)
        for second in range(int(since), int(until) + 1):
            self.at(second, self._second)
        while self._events:
            now, _, what = heappop(self._events)
            what(now)
        self._collect()
        assert len(self.distributor.ledger) == 0
        return self

    def _second(self, now: float) -> None:
        self.distributor.expire_drains(now)
        self.distributor.tick(now)
        self._collect()
        self.watch(now)

    def _collect(self) -> None:
        self.changes += self.distributor.take_changes()
        for record in self.distributor.take_records():
            self.callers[record.call.id].record = record

    def _offer(self, now: float) -> None:
        asking = call(next(self.called))
        caller = self.callers[asking.id] = Caller(asking.id, now)
        self._goes_on(caller, self.distributor.offer(asking, now), now)

    def _goes_on(self, caller: Caller, decision: Decision, now: float) -> None:
        if not isinstance(decision, Assignment):
            caller.ended, caller.cause = now, decision.cause
            return
        lease = decision.lease
        name = lease.channel.trunk.id
        caller.trunks.append(name)
        self.tried.append((now, name))
        far = self.far(name, now)

        def over(outcome: Outcome) -> Callable[[float], None]:
            def tell(now: float) -> None:
                if outcome is ANSWERED and not self.hints:
                    assert caller.answered is not None
                    # The PBX tells with the end how long the call was connected.
                    self.distributor.answered(lease, caller.answered)
                self._goes_on(caller, self.distributor.outcome(lease, outcome, now), now)

            return tell

        def answered(now: float) -> None:
            caller.answered = now
            self.served.append((now, name))
            if self.hints:
                self.distributor.answered(lease, now)
            self.at(now + far.hold, over(ANSWERED))

        if far.refuses is not None:
            self.at(now + ANSWER, over(far.refuses))
        elif far.answers < decision.timeout:
            self.at(now + far.answers, answered)
        else:
            self.at(now + decision.timeout, over(SILENT))

    def far(self, name: str, now: float) -> Far:
        for begin, end, far in self.script.get(name, ()):
            if begin <= now < end:
                return far
        return WELL

    # -- what came of it ----------------------------------------------------------------------

    def lost(self, since: float = 0.0, until: float = inf) -> list[Caller]:
        return [c for c in self.callers.values() if c.is_lost and since <= c.offered < until]

    def waited(self, more_than: float) -> list[Caller]:
        return [c for c in self.callers.values() if c.wait > more_than]

    def shares(self, since: float, until: float) -> Counter[str]:
        """Calls served by each trunk."""
        return Counter(name for at, name in self.served if since <= at < until)

    def tries(self, name: str, since: float = 0.0, until: float = inf) -> list[float]:
        """When attempts began on a trunk."""
        return [at for at, trunk in self.tried if trunk == name and since <= at < until]

    def blamed(self, name: str) -> int:
        return sum(
            attempt.trunk == name and attempt.verdict.blame is Blame.TRUNK
            for caller in self.callers.values()
            if caller.record
            for attempt in caller.record.attempts
        )

    def moves(self, name: str) -> list[tuple[float, HealthState]]:
        return [(change.at, change.after) for change in self.changes if change.trunk == name]

    def state(self, name: str) -> HealthState:
        return self.distributor.health[TrunkId(name)].state


def servers(names: str = "abcd", channels: int = 30) -> list[Trunk]:
    return [trunk(name, channels) for name in names]


def um_site(
    strategy: Strategy = Strategy.CYCLIC,
    *,
    names: str = "abcd",
    channels: int = 30,
    interleave: bool = False,
    policy: HealthPolicy | None = None,
    within: float = WITHIN,
    budget: float = 30.0,
) -> Site:
    """UM servers in one pack."""
    lines = servers(names, channels)
    order = order_channels([all_of(t) for t in lines], Direction.ASCENDING, interleave=interleave)
    pack = plan("um", order, strategy, answer_within=within, setup_budget=budget)
    return site(lines, [pack], policy=policy)
