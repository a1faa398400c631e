"""Whatever happens in whatever order: the ledger balances and the hunt is exact."""

from __future__ import annotations

from collections import Counter
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

from tests.sites import call
from tests.unit.core.naive import PROBE, Held, Naive
from tests.unit.core.worlds import (
    ODD_NUMBERS,
    REFUSED_NUMBER,
    UNSAFE_NUMBER,
    failures,
    lines_of,
    new_names,
    outcomes,
    renamed,
    sites,
    targets,
    trunk_of,
    unshrunk,
)
from umpack.core.administration import Drain
from umpack.core.calls import Assignment, Decision, Done, Ending, Reason, Refusal
from umpack.core.causes import CauseTable, Elsewhere, Outcome, Result
from umpack.core.channel import ChannelId, ChannelState
from umpack.core.distributor import Distributor
from umpack.core.errors import LeaseError
from umpack.core.ledger import Lease
from umpack.core.roster import REMOVED, UnknownTarget
from umpack.core.site import Site
from umpack.core.trunk import TrunkKind

SHORTEST_ATTEMPT = 0.1


class Storm(RuleBasedStateMachine):
    """Calls, reloads, boards and people, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.model = Naive(Site())
        self.distributor = Distributor(Site())
        self.over: list[Lease[Any]] = []
        self.offered: list[str] = []
        self.recorded: list[str] = []
        self.accepting = True

    @initialize(new=sites)
    def start(self, new: Site) -> None:
        self.model = Naive(new)
        self.distributor = Distributor(new)

    def gave(self, answer: Decision, expected: tuple[str, str]) -> Assignment:
        assert isinstance(answer, Assignment), (answer, expected)
        assert answer.lease.pack is not None
        assert (answer.lease.pack.id, answer.channel) == expected
        assert self.distributor.ledger.holds(answer.lease)
        line = self.model.line(answer.channel)
        if isinstance(line, tuple):
            assert answer.dial.startswith(f"DAHDI/{line[1]}/"), "dialled by its number"
        self.model.pointer[expected[0]] = answer.channel
        return answer

    def ended(self, id_: str, ending: Ending, cause: int, reason: Reason | None = None) -> None:
        (record,) = self.distributor.take_records()
        assert record.call.id == id_
        assert (record.ending, record.cause, record.reason) == (ending, cause, reason)
        assert record.offered <= record.ended == self.now
        self.recorded.append(id_)

    def refusal_cause(self, pack: str) -> int:
        return self.model.plan_of(pack).refusal_cause if pack in self.model.site.packs else 34

    def snapshot(self) -> Any:
        ledger = self.distributor.ledger
        return (
            {c.id: (c.state, c.lease, dict(c.blocks)) for c in ledger.channels.values()},
            {p.id: (list(p.idle), p.last) for p in self.distributor.packs.values()},
            [lease.token for lease in ledger],
            self.distributor.drains,
        )

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
        goal = self.model.goal(called) if self.model.site.routes else None
        if not self.accepting:
            expected = Reason.SHUTTING_DOWN, 41
        elif called == REFUSED_NUMBER and self.model.site.routes:
            expected = Reason.REFUSED_BY_ROUTE, 21
        elif goal is None:
            expected = Reason.NO_ROUTE, 1
        elif goal not in self.model.site.packs:
            expected = Reason.MISCONFIGURED, 38
        elif called == UNSAFE_NUMBER:
            expected = Reason.INVALID_NUMBER, 28
        else:
            self._placed(asking.id, goal, answer)
            return
        assert isinstance(answer, Refusal)
        assert (answer.reason, answer.cause) == expected
        self.ended(asking.id, Ending.REFUSED, expected[1], expected[0])

    def _placed(self, id_: str, pack: str, answer: Decision) -> None:
        chain = self.model.chain(pack)
        if expected := self.model.choice(chain):
            given = self.gave(answer, expected)
            deadline = self.now + self.model.plan_of(pack).setup_budget
            line = self.model.line(given.channel)
            self.model.held.append(Held(id_, given.lease, line, chain, deadline))
            return
        channels = [c for p in chain for c in self.model.plan_of(p).channels]
        usable = any(not self.model.blocks(c) for c in channels)
        reason = Reason.FULL if usable else Reason.NO_USABLE_TRUNK
        assert isinstance(answer, Refusal)
        assert (answer.reason, answer.cause) == (reason, self.refusal_cause(pack))
        self.ended(id_, Ending.REFUSED, answer.cause, reason)

    @precondition(lambda self: self.model.held)
    @rule(which=st.integers(0, 99), ends=st.lists(outcomes, min_size=1, max_size=6))
    def calls_end(self, which: int, ends: list[Outcome]) -> None:
        for outcome in ends[: len(self.model.held)]:
            self.outcome(self.model.held[which % len(self.model.held)], outcome)

    @precondition(lambda self: self.model.held)
    @rule(which=st.integers(0, 99), ends=failures)
    def one_call_fails_on_and_on(self, which: int, ends: list[Outcome]) -> None:
        it = self.model.held[which % len(self.model.held)]
        for outcome in ends:
            if it in self.model.held:
                self.outcome(it, outcome)

    def outcome(self, it: Held, outcome: Outcome) -> None:
        self.now += 0.25
        elsewhere = CauseTable().verdict(outcome).elsewhere
        it.failures.append((self.model.names[it.line], elsewhere))
        answer = self.distributor.outcome(it.lease, outcome, self.now)
        self.model.ends(it)
        self.over.append(it.lease)
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
        if expected := self.model.next_choice(it):
            self._goes_on(it, self.gave(answer, expected))
        elif why is Elsewhere.ONCE:
            self._declined(it, answer, outcome)
        else:
            self._refused(it, answer, Reason.ATTEMPTS_FAILED)

    def _goes_on(self, it: Held, answer: Assignment) -> None:
        assert answer.attempt == len(it.failures) + 1
        assert SHORTEST_ATTEMPT <= answer.timeout <= it.deadline - self.now
        it.lease, it.line = answer.lease, self.model.line(answer.channel)
        self.model.held.append(it)
        assert self.distributor.take_records() == []

    @precondition(lambda self: self.model.held)
    @rule(which=st.integers(0, 99), answered=st.booleans())
    def connection_lost(self, which: int, *, answered: bool) -> None:
        it = self.model.held[which % len(self.model.held)]
        if answered:
            self.distributor.answered(it.lease, self.now)
        self.distributor.release(it.lease.token, self.now)
        self.model.ends(it)
        self.over.append(it.lease)
        self.ended(it.id, Ending.CONNECTED if answered else Ending.ABANDONED, 16)

    @precondition(lambda self: self.over)
    @rule(which=st.integers(0, 99), outcome=outcomes)
    def ended_again(self, which: int, outcome: Outcome) -> None:
        """Also a lease of before a restart, whose token another call may hold by now."""
        lease = self.over[which % len(self.over)]
        before = self.snapshot()
        with pytest.raises(LeaseError):
            self.distributor.outcome(lease, outcome, self.now)
        if not self.model.holds(lease.token):
            with pytest.raises(LeaseError):
                self.distributor.release(lease.token, self.now)
        assert self.snapshot() == before
        assert self.distributor.take_records() == []

    @rule(accepting=st.booleans() | st.just(value=True))
    def open_or_shut(self, *, accepting: bool) -> None:
        self.accepting = self.distributor.accepting = accepting

    # -- the site -----------------------------------------------------------------------------

    @rule(new=sites)
    def reload(self, new: Site) -> None:
        self._reload(new)

    @rule(names=new_names, packs_follow=st.booleans())
    def trunks_are_renamed(self, names: dict[str, str], *, packs_follow: bool) -> None:
        """One, or two that swap their spans, or a round of them."""
        self._reload(renamed(self.model.site, names, packs_follow=packs_follow))

    def _reload(self, new: Site) -> None:
        self.distributor.reload(new)
        self.model.reload(new)

    @precondition(lambda self: not self.model.held)
    @rule()
    def restart(self) -> None:
        saved = self.distributor.drains, list(self.distributor.pointers.items())
        self.distributor = Distributor(self.model.site)
        self.distributor.accepting = self.accepting
        self.distributor.restore(*saved)
        self.model.alarms.clear()
        assert self.distributor.drains == saved[0]

    # -- people and boards --------------------------------------------------------------------

    @rule(what=targets, lasts=st.none() | st.sampled_from([1.0, 5.0]), why=st.sampled_from("xy"))
    def drain(self, what: str, lasts: float | None, why: str) -> None:
        until = None if lasts is None else self.now + lasts
        drain = Drain(what, "anna", why, self.now, until)
        if self.model.known(what):
            self.distributor.drain(drain)
            self.model.drains[what] = drain
        else:
            before = self.snapshot()
            with pytest.raises(UnknownTarget):
                self.distributor.drain(drain)
            assert self.snapshot() == before

    @rule(what=targets)
    def enable(self, what: str) -> None:
        if what in self.model.drains:
            del self.model.drains[what]
            assert self.distributor.enable(what)
        elif self.model.known(what):
            assert not self.distributor.enable(what)
        else:
            with pytest.raises(UnknownTarget):
                self.distributor.enable(what)

    @rule(seconds=st.sampled_from([0.0, 1.0, 5.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.now += seconds
        drains = self.model.drains
        over = [d for d in drains.values() if d.until is not None and d.until <= self.now]
        assert sorted(d.target for d in self.distributor.expire_drains(self.now)) == sorted(
            d.target for d in over
        )
        for drain in over:
            del drains[drain.target]

    @precondition(lambda self: self.model.names)
    @rule(which=st.integers(0, 99))
    def alarm_comes_or_goes(self, which: int) -> None:
        line, name = list(self.model.names.items())[which % len(self.model.names)]
        channel = self.distributor.ledger.channels[ChannelId(name)]
        if line in self.model.alarms:
            self.distributor.ledger.unblock(channel, PROBE)
        else:
            self.distributor.ledger.block(channel, PROBE, "red alarm")
        self.model.alarms ^= {line}

    # -- what always holds --------------------------------------------------------------------

    @invariant()
    def the_ledger_balances(self) -> None:
        ledger, held = self.distributor.ledger, self.model.held
        leased = [c for c in ledger.channels.values() if c.lease is not None]
        assert len(ledger) == len(leased) == len(held) == len(list(self.distributor.calls))
        assert sorted(c.id for c in leased) == sorted(self.model.names[it.line] for it in held)
        for it in held:
            assert it.lease.channel.lease is it.lease
            assert it.lease.channel is ledger.channels[it.lease.channel.id]
            assert it.lease.channel.id == self.model.names[it.line]
            assert it.lease.holder.call.id == it.id

    @invariant()
    def no_line_carries_two_calls(self) -> None:
        assert max(Counter(it.line for it in self.model.held).values(), default=0) <= 1
        numbers = Counter(
            (lease.channel.trunk.pbx, lease.channel.number)
            for lease in self.distributor.ledger
            if lease.channel.trunk.kind is not TrunkKind.SIP
        )
        assert max(numbers.values(), default=0) <= 1

    @invariant()
    def no_channel_is_lost_and_none_outlives_its_last_call(self) -> None:
        channels = self.distributor.ledger.channels
        assert sorted(channels) == sorted(self.model.names.values())
        assert all(channel.id == id_ for id_, channel in channels.items())

    @invariant()
    def states_are_what_calls_boards_and_people_make_them(self) -> None:
        configured = self.model.configured()
        busy = [self.model.names[it.line] for it in self.model.held]
        for channel in self.distributor.ledger.channels.values():
            if channel.id in configured:
                assert set(channel.blocks) == self.model.blocks(channel.id)
            else:
                assert REMOVED in channel.blocks
            if channel.id in busy:
                expected = ChannelState.DRAINING if channel.blocks else ChannelState.LEASED
            else:
                expected = ChannelState.BLOCKED if channel.blocks else ChannelState.IDLE
            assert channel.state is expected
        assert set(self.distributor.drains) == set(self.model.drains.values())

    @invariant()
    def every_channel_is_what_the_site_says(self) -> None:
        there = lines_of(self.model.site)
        for channel in self.distributor.ledger.channels.values():
            if channel.id in there.values():
                line = channel.trunk
                assert line is self.model.site.trunks[line.id]
                assert trunk_of(channel.id) == line.id
                assert (channel.number, channel.id) == (
                    line.number(channel.slot),
                    line.channel_id(channel.slot),
                )

    @invariant()
    def idle_sets_hunts_and_reasons_are_exact(self) -> None:
        assert sorted(self.distributor.packs) == sorted(self.model.site.packs)
        for pack in self.distributor.packs.values():
            assert tuple(c.id for c in pack.channels) == pack.plan.channels
            idle = [p for p, c in enumerate(pack.channels) if c.state is ChannelState.IDLE]
            assert list(pack.idle) == idle
            assert len(pack.idle) == len(idle)
            free, position = self.model.free(pack.id), pack.next_position()
            assert (free[0] if free else None) == (
                pack.channels[position].id if position >= 0 else None
            )
            assert pack.pointer == self.model.pointer.get(pack.id)
            assert pack.usable is any(not self.model.blocks(c.id) for c in pack.channels)
            why = Counter((c.trunk.id, w) for c in pack.channels for w in c.blocks.values())
            assert {(e.trunk, e.why): e.channels for e in pack.exclusions} == dict(why)

    @invariant()
    def no_turn_is_forgotten(self) -> None:
        assert self.distributor.pointers == self.model.parked | self.model.pointer

    @invariant()
    def every_offer_has_one_record_or_is_in_flight(self) -> None:
        flying = [it.id for it in self.model.held]
        assert sorted([*self.recorded, *flying]) == sorted(self.offered)

    def teardown(self) -> None:
        for it in list(self.model.held):
            self.distributor.release(it.lease.token, self.now)
            self.model.ends(it)
            self.ended(it.id, Ending.ABANDONED, 16)
        assert len(self.distributor.ledger) == 0
        assert sorted(self.recorded) == sorted(self.offered)
        assert sorted(self.distributor.ledger.channels) == sorted(self.model.configured())


def test_no_sequence_of_events_unbalances_the_ledger() -> None:
    run_state_machine_as_test(
        Storm,
        settings=settings(
            unshrunk,
            max_examples=150,
            stateful_step_count=40,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
