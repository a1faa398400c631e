"""Whatever happens in whatever order: the ledger balances and the hunt is exact.

The machine beside the distributor is deliberately naive: dictionaries, and lists that are scanned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.sites import call, plan, refused, route, site, trunk
from umpack.core.administration import Drain
from umpack.core.calls import Assignment, Decision, Done, Ending, Reason, Refusal
from umpack.core.causes import NAMES, SIP_VERDICTS, CauseTable, Elsewhere, Outcome, Result
from umpack.core.channel import ChannelState
from umpack.core.distributor import Distributor, UnknownTarget
from umpack.core.errors import LeaseError
from umpack.core.ledger import Lease
from umpack.core.pack import Strategy
from umpack.core.site import Site

TRUNKS = "abcd"
PACKS = "pqr"
ROUTES = {"1": "p", "2": "q", "3": "r", "4": "ghost"}
REFUSED_NUMBER, UNKNOWN_NUMBER, UNSAFE_NUMBER = "5", "6", "1&2"
ODD_NUMBERS = ["4", REFUSED_NUMBER, UNKNOWN_NUMBER, UNSAFE_NUMBER]
SHORTEST_ATTEMPT = 0.1
PER_TRUNK = 3


def any_site(seed: int) -> Site:
    """Up to four trunks in up to three packs in any order; also none at all."""
    dice = Random(seed)
    trunks = [
        trunk(name, sorted(dice.sample(range(1, 5), dice.randint(1, 4))))
        for name in dice.choice([TRUNKS, TRUNKS, TRUNKS, "ab", "a", "bcd", "d", ""])
    ]
    channels = [t.channel_id(slot) for t in trunks for slot in t.slots]
    names = dice.choice([PACKS, PACKS, PACKS, "pq", "p", "qr", ""]) if channels else ""
    plans = []
    for index, name in enumerate(names):
        shuffled = dice.sample(channels, len(channels))
        some = dice.sample(channels, dice.randint(1, len(channels)))
        later = names[index + 1 :]
        plans.append(
            plan(
                name,
                dice.choice([channels, channels, shuffled, some]),
                dice.choice([Strategy.LINEAR, Strategy.CYCLIC]),
                overflow=dice.sample(later, dice.randint(0, len(later))),
                setup_budget=dice.choice([0.6, 1e6, 1e6]),
                refusal_cause=dice.choice([17, 34, 42]),
            )
        )
    routes = [route(called, pack) for called, pack in ROUTES.items() if pack in [*names, "ghost"]]
    routes.append(route(f"{UNSAFE_NUMBER[0]}*", names[0] if names else "ghost"))
    routes.append(route(REFUSED_NUMBER, refuse=21))
    return site(trunks, plans, routes)


sites = st.integers(0, 2**32).map(any_site)  # one draw: a site drawn piece by piece is slow
OUTCOMES = [
    *(Outcome(result) for result in Result),
    *(refused(cause) for cause in [*NAMES, 44, 44, 44, 34, 41, None]),
    *(refused(3, sip) for sip in SIP_VERDICTS),
    refused(17, 499),
    Outcome(Result.TIMED_OUT, 17),
]
outcomes = st.sampled_from(OUTCOMES)
failures = st.lists(outcomes, min_size=1, max_size=8) | st.lists(
    st.sampled_from([refused(44), refused(6)]), min_size=3, max_size=9
)
targets = st.sampled_from([*TRUNKS, *(f"{t}:{n}" for t in TRUNKS for n in range(1, 5)), "ghost"])


@dataclass(eq=False)
class Held:
    """A call in flight, as the model sees it."""

    id: str
    lease: Lease[Any]
    channel: str
    chain: list[str]
    deadline: float
    once: bool = False
    failures: list[tuple[str, Elsewhere]] = field(default_factory=list)


def trunk_of(channel: str) -> str:
    return channel.partition(":")[0]


class Storm(RuleBasedStateMachine):
    """Calls, reloads and people, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.site = Site()
        self.distributor = Distributor(self.site)
        self.held: list[Held] = []
        self.over: list[Lease[Any]] = []
        self.pointer: dict[str, str] = {}
        self.drains: dict[str, Drain] = {}
        self.offered: list[str] = []
        self.recorded: list[str] = []
        self.accepting = True

    # -- the naive model ----------------------------------------------------------------------

    def blocked(self, channel: str) -> bool:
        return channel in self.drains or trunk_of(channel) in self.drains

    def configured(self) -> list[str]:
        return [f"{t.id}:{slot}" for t in self.site.trunks.values() for slot in t.slots]

    def known(self, target: str) -> bool:
        there = [*self.configured(), *(h.channel for h in self.held)]
        return target in there or target in map(trunk_of, there)

    def plan_of(self, pack: str) -> Any:
        return next(p for p in self.site.packs.values() if p.id == pack)

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
        order = list(self.plan_of(pack).channels)
        last = self.pointer.get(pack)
        if self.plan_of(pack).strategy is Strategy.CYCLIC and last is not None:
            start = order.index(last) + 1
            order = order[start:] + order[:start]
        return order

    def free(self, pack: str) -> list[str]:
        busy = [h.channel for h in self.held]
        return [c for c in self.in_order(pack) if c not in busy and not self.blocked(c)]

    def choice(
        self, chain: list[str], may: Callable[[str], bool] = lambda channel: True
    ) -> tuple[str, str] | None:
        """Pack and channel the rules name, of those that `may` be given."""
        for pack in chain:
            if pack in self.site.packs:
                for channel in self.free(pack):
                    if may(channel):
                        return pack, channel
        return None

    def gave(self, answer: Decision, expected: tuple[str, str]) -> Assignment:
        assert isinstance(answer, Assignment), (answer, expected)
        assert (answer.lease.pack.id, answer.channel) == expected
        assert self.distributor.ledger.holds(answer.lease.token)
        self.pointer[expected[0]] = answer.channel
        return answer

    def ended(self, id_: str, ending: Ending, cause: int, reason: Reason | None = None) -> None:
        (record,) = self.distributor.take_records()
        assert record.call.id == id_
        assert (record.ending, record.cause, record.reason) == (ending, cause, reason)
        assert record.offered <= record.ended == self.now
        self.recorded.append(id_)

    def refusal_cause(self, pack: str) -> int:
        return self.plan_of(pack).refusal_cause if pack in self.site.packs else 34

    def snapshot(self) -> Any:
        ledger = self.distributor.ledger
        return (
            {c.id: (c.state, c.lease, dict(c.blocks)) for c in ledger.channels.values()},
            {p.id: (list(p.idle.hunt_from(0)), p.last) for p in self.distributor.packs.values()},
            [lease.token for lease in ledger],
            self.distributor.drains,
        )

    @initialize(new=sites)
    def start(self, new: Site) -> None:
        self.site = new
        self.distributor = Distributor(new)

    # -- calls --------------------------------------------------------------------------------

    @rule(
        numbers=st.lists(
            st.sampled_from("123") | st.sampled_from("123") | st.sampled_from(ODD_NUMBERS),
            min_size=1,
            max_size=6,
        )
    )
    def burst(self, numbers: list[str]) -> None:
        for called in numbers:
            self.offer(called)

    def offer(self, called: str) -> None:
        asking = call(called)
        self.offered.append(asking.id)
        answer = self.distributor.offer(asking, self.now)
        goal = self.goal(called) if self.site.routes else None
        if not self.accepting:
            expected = Reason.SHUTTING_DOWN, 41
        elif called == REFUSED_NUMBER and self.site.routes:
            expected = Reason.REFUSED_BY_ROUTE, 21
        elif goal is None:
            expected = Reason.NO_ROUTE, 1
        elif goal not in self.site.packs:
            expected = Reason.MISCONFIGURED, 38
        elif called == UNSAFE_NUMBER:
            expected = Reason.INVALID_NUMBER, 28
        else:
            self._placed(asking.id, goal, answer)
            return
        assert isinstance(answer, Refusal)
        assert (answer.reason, answer.cause) == expected
        self.ended(asking.id, Ending.REFUSED, expected[1], expected[0])

    def goal(self, called: str) -> str | None:
        """The pack the routes of `sites` name."""
        pack = ROUTES.get(called)
        if pack == "ghost" or pack in self.site.packs:
            return pack
        return next(iter(self.site.packs), "ghost") if called.startswith("1") else None

    def _placed(self, id_: str, pack: str, answer: Decision) -> None:
        chain = self.chain(pack)
        expected = self.choice(chain)
        if expected:
            given = self.gave(answer, expected)
            deadline = self.now + self.plan_of(pack).setup_budget
            self.held.append(Held(id_, given.lease, given.channel, chain, deadline))
            return
        usable = any(not self.blocked(c) for p in chain for c in self.plan_of(p).channels)
        reason = Reason.FULL if usable else Reason.NO_USABLE_TRUNK
        assert isinstance(answer, Refusal)
        assert (answer.reason, answer.cause) == (reason, self.refusal_cause(pack))
        self.ended(id_, Ending.REFUSED, answer.cause, reason)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 99), ends=st.lists(outcomes, min_size=1, max_size=6))
    def calls_end(self, which: int, ends: list[Outcome]) -> None:
        for outcome in ends[: len(self.held)]:
            self.outcome(self.held[which % len(self.held)], outcome)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 99), ends=failures)
    def one_call_fails_on_and_on(self, which: int, ends: list[Outcome]) -> None:
        it = self.held[which % len(self.held)]
        for outcome in ends:
            if it in self.held:
                self.outcome(it, outcome)

    def outcome(self, it: Held, outcome: Outcome) -> None:
        self.now += 0.25
        answer = self.distributor.outcome(it.lease, outcome, self.now)
        self.held.remove(it)
        self.over.append(it.lease)
        elsewhere = CauseTable().verdict(outcome).elsewhere
        it.failures.append((it.channel, elsewhere))
        if outcome.result is Result.ANSWERED:
            assert answer == Done(16)
            self.ended(it.id, Ending.CONNECTED, 16)
        elif outcome.result is Result.HUNG_UP:
            assert answer == Done(16)
            self.ended(it.id, Ending.ABANDONED, 16)
        elif elsewhere is Elsewhere.NO or (elsewhere is Elsewhere.ONCE and it.once):
            self._declined(it, answer, outcome)
        elif it.deadline - self.now < SHORTEST_ATTEMPT:
            self._refused(it, answer, Reason.OUT_OF_TIME)
        else:
            it.once = it.once or elsewhere is Elsewhere.ONCE
            self._moved(it, answer, outcome, elsewhere)

    def _declined(self, it: Held, answer: Decision, outcome: Outcome) -> None:
        cause = outcome.cause or 31
        assert answer == Done(cause)
        self.ended(it.id, Ending.DECLINED, cause)

    def _refused(self, it: Held, answer: Decision, reason: Reason) -> None:
        cause = self.refusal_cause(it.chain[0])
        assert isinstance(answer, Refusal)
        assert (answer.reason, answer.cause) == (reason, cause)
        self.ended(it.id, Ending.REFUSED, cause, reason)

    def _moved(self, it: Held, answer: Decision, outcome: Outcome, why: Elsewhere) -> None:
        """Another trunk if any is left; after a lost channel another one of a trunk that only lost
        channels; each trunk a bounded number of times, each channel once."""

        def ways(channel: str) -> list[Elsewhere]:
            return [how for met, how in it.failures if trunk_of(met) == trunk_of(channel)]

        def only_lost_channels(channel: str) -> bool:
            return set(ways(channel)) == {Elsewhere.CHANNEL} and len(ways(channel)) < PER_TRUNK

        tried = [channel for channel, _ in it.failures]
        expected = self.choice(it.chain, lambda channel: not ways(channel)) or self.choice(
            it.chain, lambda channel: only_lost_channels(channel) and channel not in tried
        )
        if expected:
            self._goes_on(it, self.gave(answer, expected))
        elif why is Elsewhere.ONCE:
            self._declined(it, answer, outcome)
        else:
            self._refused(it, answer, Reason.ATTEMPTS_FAILED)

    def _goes_on(self, it: Held, answer: Assignment) -> None:
        assert answer.attempt == len(it.failures) + 1
        assert SHORTEST_ATTEMPT <= answer.timeout <= it.deadline - self.now
        it.lease, it.channel = answer.lease, answer.channel
        self.held.append(it)
        assert self.distributor.take_records() == []

    @precondition(lambda self: self.held)
    @rule(data=st.data(), answered=st.booleans())
    def connection_lost(self, data: st.DataObject, *, answered: bool) -> None:
        it = data.draw(st.sampled_from(self.held), label="call")
        if answered:
            self.distributor.answered(it.lease, self.now)
        self.distributor.release(it.lease.token, self.now)
        self.held.remove(it)
        self.over.append(it.lease)
        self.ended(it.id, Ending.CONNECTED if answered else Ending.ABANDONED, 16)

    @precondition(lambda self: self.over)
    @rule(data=st.data(), outcome=outcomes)
    def ended_again(self, data: st.DataObject, outcome: Outcome) -> None:
        lease = data.draw(st.sampled_from(self.over), label="lease")
        before = self.snapshot()
        with pytest.raises(LeaseError):
            self.distributor.release(lease.token, self.now)
        with pytest.raises(LeaseError):
            self.distributor.outcome(lease, outcome, self.now)
        assert self.snapshot() == before
        assert self.distributor.take_records() == []

    @rule(accepting=st.booleans() | st.just(value=True))
    def open_or_shut(self, *, accepting: bool) -> None:
        self.accepting = self.distributor.accepting = accepting

    # -- the site -----------------------------------------------------------------------------

    @rule(new=sites)
    def reload(self, new: Site) -> None:
        old = self.site
        self.distributor.reload(new)
        self.site = new
        actual = self.distributor.pointers
        carried: dict[str, str] = {}
        for pack in new.packs.values():
            if pack.id in old.packs and pack.id in self.pointer:
                before, after = list(old.packs[pack.id].channels), list(pack.channels)
                self._turn_kept(before, after, self.pointer[pack.id], actual.get(pack.id))
                if pack.id in actual:
                    carried[pack.id] = actual[pack.id]
            else:
                assert pack.id not in actual
        self.pointer = carried

    @staticmethod
    def _turn_kept(before: list[Any], after: list[Any], last: str, carried: str | None) -> None:
        if last in after:
            assert carried == last
            return
        left = [channel for channel in before if channel in after]
        if not left:
            assert carried is None
            return
        assert carried in left
        if left == [channel for channel in after if channel in before]:
            was = before.index(last)
            turn_before = [c for c in before[was:] + before[:was] if c in after]
            at = after.index(carried) + 1
            turn_after = [c for c in after[at:] + after[:at] if c in before]
            assert turn_after == turn_before

    @precondition(lambda self: not self.held)
    @rule()
    def restart(self) -> None:
        saved = self.distributor.drains, list(self.distributor.pointers.items())
        self.distributor = Distributor(self.site)
        self.distributor.accepting = self.accepting
        self.distributor.restore(*saved)
        self.over = []
        assert self.distributor.drains == saved[0]
        assert self.distributor.pointers == self.pointer

    # -- people -------------------------------------------------------------------------------

    @rule(what=targets, lasts=st.none() | st.sampled_from([1.0, 5.0]), why=st.sampled_from("xy"))
    def drain(self, what: str, lasts: float | None, why: str) -> None:
        until = None if lasts is None else self.now + lasts
        drain = Drain(what, "anna", why, self.now, until)
        if self.known(what):
            self.distributor.drain(drain)
            self.drains[what] = drain
        else:
            before = self.snapshot()
            with pytest.raises(UnknownTarget):
                self.distributor.drain(drain)
            assert self.snapshot() == before

    @rule(what=targets)
    def enable(self, what: str) -> None:
        if what in self.drains:
            del self.drains[what]
            assert self.distributor.enable(what)
        elif self.known(what):
            assert not self.distributor.enable(what)
        else:
            with pytest.raises(UnknownTarget):
                self.distributor.enable(what)

    @rule(seconds=st.sampled_from([0.0, 1.0, 5.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.now += seconds
        over = [d for d in self.drains.values() if d.until is not None and d.until <= self.now]
        assert sorted(d.target for d in self.distributor.expire_drains(self.now)) == sorted(
            d.target for d in over
        )
        for drain in over:
            del self.drains[drain.target]

    # -- what always holds --------------------------------------------------------------------

    @invariant()
    def the_ledger_balances(self) -> None:
        ledger = self.distributor.ledger
        leased = [c for c in ledger.channels.values() if c.lease is not None]
        assert len(ledger) == len(leased) == len(self.held) == len(list(self.distributor.calls))
        assert sorted(c.id for c in leased) == sorted(h.channel for h in self.held)
        assert len({h.channel for h in self.held}) == len(self.held)
        for it in self.held:
            assert it.lease.channel.lease is it.lease
            assert it.lease.channel is ledger.channels[it.lease.channel.id]
            assert it.lease.holder.call.id == it.id

    @invariant()
    def no_channel_is_lost_and_none_outlives_its_last_call(self) -> None:
        there = sorted(self.distributor.ledger.channels)
        assert there == sorted({*self.configured(), *(h.channel for h in self.held)})

    @invariant()
    def states_are_what_calls_and_people_make_them(self) -> None:
        configured = self.configured()
        busy = [h.channel for h in self.held]
        for channel in self.distributor.ledger.channels.values():
            out = self.blocked(channel.id) or channel.id not in configured
            if channel.id in busy:
                expected = ChannelState.DRAINING if out else ChannelState.LEASED
            else:
                expected = ChannelState.BLOCKED if out else ChannelState.IDLE
            assert channel.state is expected
            assert bool(channel.blocks) is out
        assert set(self.distributor.drains) == set(self.drains.values())

    @invariant()
    def idle_sets_hunts_and_reasons_are_exact(self) -> None:
        assert sorted(self.distributor.packs) == sorted(self.site.packs)
        for pack in self.distributor.packs.values():
            idle = [p for p, c in enumerate(pack.channels) if c.state is ChannelState.IDLE]
            assert list(pack.idle.hunt_from(0)) == idle
            assert len(pack.idle) == len(idle)
            free, position = self.free(pack.id), pack.next_position()
            assert (free[0] if free else None) == (
                pack.channels[position].id if position >= 0 else None
            )
            assert pack.pointer == self.pointer.get(pack.id)
            assert pack.usable is any(not self.blocked(c.id) for c in pack.channels)
            why = Counter((c.trunk.id, w) for c in pack.channels for w in c.blocks.values())
            assert {(e.trunk, e.why): e.channels for e in pack.exclusions} == dict(why)

    @invariant()
    def every_offer_has_one_record_or_is_in_flight(self) -> None:
        assert sorted([*self.recorded, *(h.id for h in self.held)]) == sorted(self.offered)

    def teardown(self) -> None:
        for it in list(self.held):
            self.distributor.release(it.lease.token, self.now)
            self.held.remove(it)
            self.ended(it.id, Ending.ABANDONED, 16)
        assert len(self.distributor.ledger) == 0
        assert sorted(self.recorded) == sorted(self.offered)
        assert sorted(self.distributor.ledger.channels) == sorted(self.configured())


def test_no_sequence_of_events_unbalances_the_ledger() -> None:
    run_state_machine_as_test(
        Storm,
        settings=settings(
            max_examples=300,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
