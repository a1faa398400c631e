"""Whatever far ends, boards and people do in whatever order: no pack is left without a trunk it
could have, nobody is forgotten, and the hunt is what health says.
"""

from __future__ import annotations

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

from tests.sites import (
    ANSWERED,
    HUNG_UP,
    MAIN,
    SILENT,
    all_of,
    call,
    plan,
    refused,
    route,
    site,
    trunk,
)
from tests.unit.core.worlds import unshrunk
from umpack.core.administration import Drain
from umpack.core.calls import Assignment, Refusal
from umpack.core.causes import Outcome, Result
from umpack.core.channel import ChannelState
from umpack.core.distributor import Distributor
from umpack.core.health_policy import HealthPolicy
from umpack.core.health_states import TRANSITIONS, Admission, AlarmKind, HealthState
from umpack.core.ledger import Lease
from umpack.core.offer import Offer
from umpack.core.pack import PackId, Strategy
from umpack.core.site import Site
from umpack.core.trunk import TrunkId, TrunkKind

NAMES = "abc"
POLICY = HealthPolicy()
LONGEST = POLICY.eject_cap * (1 + POLICY.jitter)
CLOSED = (Admission.CLOSED, Admission.CLOSED_HARD)
names = st.sampled_from(NAMES)
times = st.sampled_from([0.0, 0.05, 0.3, 1.0, 3.0, 11.0, 35.0, 70.0, 400.0])
bad = st.sampled_from(
    [
        *(refused(cause) for cause in (41, 38, 34, 44, 44, 44, 17, 3)),
        refused(34, 503),
        refused(17, 486),
        SILENT,
        HUNG_UP,
        Outcome(Result.NO_CHANNEL, 20),
        Outcome(Result.TIMED_OUT, rang=True),
        Outcome(Result.REFUSED, 44, glare=True),
    ]
)


def world(strategy: Strategy, firsts: dict[str, int]) -> Site:
    """Three boards of four channels; two packs that share one, one flowing over into the other."""
    lines = [trunk(n, 4, kind=TrunkKind.S2M, first=first) for n, first in firsts.items()]
    return site(
        lines,
        [
            plan("um", all_of(*lines[:2]), strategy, overflow=["fax"], answer_within=4.0),
            plan("fax", all_of(*lines[1:]), Strategy.CYCLIC, answer_within=4.0),
        ],
        [route("1*", "um"), route("2*", "fax")],
        policy=POLICY,
    )


class AnyStorm(RuleBasedStateMachine):
    """A distributor with health under everything that can happen to it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.firsts = {"a": 1, "b": 32, "c": 63}
        self.held: list[Lease[Offer]] = []
        self.called = ""
        self.distributor = Distributor()

    @initialize(strategy=st.sampled_from(Strategy), hints=st.booleans())
    def start(self, strategy: Strategy, *, hints: bool) -> None:
        self.strategy, self.hints = strategy, hints
        self.distributor.reload(world(strategy, self.firsts), self.now)
        self.distributor.hear(MAIN, self.now, hints=hints)
        for _ in range(80):
            self.offer()
            self.now += 0.02
            lease = self.held.pop()
            self.distributor.answered(lease, self.now)
            self.distributor.outcome(lease, ANSWERED, self.now)

    # -- calls --------------------------------------------------------------------------------

    @rule(count=st.integers(1, 6))
    def offers(self, count: int) -> None:
        for _ in range(count):
            self.offer()

    def offer(self) -> None:
        self.called = "200" if self.called == "100" else "100"
        before = self.could_have_had("um" if self.called == "100" else "fax")
        answer = self.distributor.offer(call(self.called), self.now)
        if isinstance(answer, Assignment):
            self.held.append(answer.lease)
            assert 0.0 < answer.timeout <= 4.0
        else:
            assert isinstance(answer, Refusal)
            assert not before, "refused beside an idle channel"

    def could_have_had(self, pack: str) -> bool:
        """Whether a channel is idle whose trunk is not closed, or has been closed for long."""
        self.distributor.tick(self.now)
        site_ = self.distributor.site
        members = {c for id_ in site_.chain(PackId(pack)) for c in site_.packs[id_].channels}
        return any(
            channel.state is ChannelState.IDLE
            and channel.id in members
            and (
                (health := self.distributor.health[channel.trunk.id]).admission not in CLOSED
                or (
                    health.admission is Admission.CLOSED
                    and self.now >= health.since + POLICY.suspect_rest
                )
            )
            for channel in self.distributor.ledger.channels.values()
        )

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 99), outcomes=st.lists(bad, min_size=1, max_size=8))
    def fails_on_and_on(self, which: int, outcomes: list[Outcome]) -> None:
        lease = self.held.pop(which % len(self.held))
        met = [lease.channel.id]
        for outcome in outcomes:
            self.now += 0.01
            decision = self.distributor.outcome(lease, outcome, self.now)
            if not isinstance(decision, Assignment):
                return
            lease = decision.lease
            assert lease.channel.id not in met, "no channel twice"
            met.append(lease.channel.id)
            assert len(met) <= 3 * len(NAMES)
        self.held.append(lease)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 99), late=st.booleans())
    def is_answered_and_over(self, which: int, *, late: bool) -> None:
        lease = self.held.pop(which % len(self.held))
        answered = max(self.now - 60.0, lease.since) if late else self.now
        self.distributor.answered(lease, answered)
        self.distributor.outcome(lease, ANSWERED, self.now)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 99))
    def is_answered(self, which: int) -> None:
        self.distributor.answered(self.held[which % len(self.held)], self.now)

    # -- boards and people --------------------------------------------------------------------

    @rule(name=names, kind=st.sampled_from(AlarmKind), clear=st.booleans())
    def board_speaks(self, name: str, kind: AlarmKind, *, clear: bool) -> None:
        tell = self.distributor.alarm_cleared if clear else self.distributor.alarm_raised
        tell(TrunkId(name), kind, self.now)

    @rule(linked=st.booleans())
    def link_comes_and_goes(self, *, linked: bool) -> None:
        self.distributor.see(MAIN, self.now, linked=linked)

    @rule(name=names)
    def all_alarms_are_over(self, name: str) -> None:
        self.distributor.alarms_seen(TrunkId(name), {}, AlarmKind, self.now)

    @rule(what=st.sampled_from([*NAMES, "a:1", "b:2", "b:3"]), lasts=st.sampled_from([1.0, 50.0]))
    def person_drains(self, what: str, lasts: float) -> None:
        self.distributor.drain(Drain(what, "anna", "", self.now, self.now + lasts))

    @rule(name=names, what=st.sampled_from(["eject", "restore"]))
    def person_judges(self, name: str, what: str) -> None:
        if what == "eject":
            self.distributor.eject(TrunkId(name), self.now, "by anna")
        else:
            self.distributor.restore_trunk(TrunkId(name), self.now, "by anna")

    @rule(order=st.permutations(NAMES))
    def names_move(self, order: list[str]) -> None:
        """Health goes with the span, whatever it is called now."""
        old = dict(self.firsts)
        before = {old[id_]: h.state for id_, h in self.distributor.health.items()}
        self.firsts = dict(zip(order, old.values(), strict=True))
        self.distributor.reload(world(self.strategy, self.firsts), self.now)
        after = {self.firsts[id_]: h.state for id_, h in self.distributor.health.items()}
        readmitted = {HealthState.EJECTED: HealthState.SUSPECT}
        for first, state in before.items():
            assert after[first] in (state, readmitted.get(state))

    @precondition(lambda self: not self.held)
    @rule()
    def restart(self) -> None:
        memories = self.distributor.memories(self.now)
        before = {h.trunk: h.state for h in self.distributor.health.values()}
        drains = self.distributor.drains
        self.distributor = Distributor(world(self.strategy, self.firsts))
        self.distributor.remembered(memories, self.now)
        self.distributor.restore(drains, [])
        self.distributor.hear(MAIN, self.now, hints=self.hints)
        for id_, state in before.items():
            if state is HealthState.EJECTED:
                assert self.distributor.health[id_].state is not HealthState.UP

    @rule(seconds=times)
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.distributor.expire_drains(self.now)
        self.distributor.tick(self.now)

    # -- what always holds --------------------------------------------------------------------

    @invariant()
    def no_pack_is_left_without_a_trunk_it_could_have(self) -> None:
        self.distributor.tick(self.now)
        for pack in self.distributor.packs.values():
            able = [
                self.distributor.health[id_].admission
                for id_ in pack.trunks
                if any(not set(c.blocks) - {"rest"} for c in pack.members(id_))
            ]
            if able and set(able) != {Admission.CLOSED_HARD}:
                assert set(able) - set(CLOSED), able
                assert pack.usable

    @invariant()
    def the_hunt_is_what_health_says(self) -> None:
        for pack in self.distributor.packs.values():
            open_ = [
                p
                for p, c in enumerate(pack.channels)
                if c.state is ChannelState.IDLE
                and self.distributor.health[c.trunk.id].admission not in CLOSED
            ]
            position = pack.next_position()
            assert (position in open_) if open_ else (position == -1)

    @invariant()
    def everyone_stays_in_his_table(self) -> None:
        for change in self.distributor.take_changes():
            assert TRANSITIONS[change.event][change.before] is change.after

    @invariant()
    def the_ejected_are_tried_again(self) -> None:
        for health in self.distributor.health.values():
            if health.state is HealthState.EJECTED:
                assert health.timer - self.now <= LONGEST

    @invariant()
    def the_ledger_balances(self) -> None:
        ledger = self.distributor.ledger
        assert sorted(lease.token for lease in ledger) == sorted(x.token for x in self.held)

    def teardown(self) -> None:
        """All is well from now on: within known time all are first choice again."""
        if not self.distributor.health:
            return
        for name in NAMES:
            self.distributor.alarms_seen(TrunkId(name), {}, AlarmKind, self.now)
        for lease in self.held:
            self.distributor.release(lease.token, self.now)
        self.held.clear()
        self.now += POLICY.alarm_settle_cap
        self.distributor.expire_drains(self.now + 100.0)
        end = self.now + LONGEST + 2 * POLICY.slow_start + 200 * POLICY.short_call
        while self.now < end and not all(self.is_up(name) for name in NAMES):
            self.distributor.tick(self.now)
            for _ in range(3):
                self.offer()
            for lease in self.held:
                self.distributor.answered(lease, self.now + 0.02)
            self.now += POLICY.short_call + 0.1
            for lease in self.held:
                self.distributor.outcome(lease, ANSWERED, self.now)
            self.held.clear()
        assert all(self.is_up(name) for name in NAMES), self.distributor.health

    def is_up(self, name: str) -> bool:
        return self.distributor.health[TrunkId(name)].state is HealthState.UP


def test_no_sequence_of_events_leaves_a_pack_or_a_trunk_behind() -> None:
    run_state_machine_as_test(
        AnyStorm,
        settings=settings(
            unshrunk,
            max_examples=40,
            stateful_step_count=40,
            suppress_health_check=list(HealthCheck),
        ),
    )
