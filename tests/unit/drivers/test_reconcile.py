from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from math import inf
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from drivers.asterisk.ami import AmiAddress, AmiEvent, AmiLink, AmiRefused, Backoff
from drivers.asterisk.calls import uniqueid_of
from drivers.asterisk.driver import AsteriskDriver, AsteriskPlan
from drivers.asterisk.occupancy import Occupant, Place
from drivers.asterisk.outage import BELIEVED_FOR, GIVEN_UP, Outage
from drivers.asterisk.reconcile import (
    ADOPTED_EVERY,
    EVERY,
    GRACE,
    LEAKED,
    Findings,
    Memory,
    Reconciler,
    compare,
)
from simulators.asterisk import SimulatedAsterisk
from simulators.board import Board
from simulators.endpoints import Answer
from simulators.line import Kind, SpanSpec
from tests.sites import MAIN, UNMOVED, all_of, one_pack, plan, refused, site, trunk
from tests.unit.daemons import logged, until
from umpack import clock
from umpack.core.administration import Drain
from umpack.core.calls import Assignment, Call, CallId, Ending
from umpack.core.causes import Outcome, Result
from umpack.core.channel import Channel, ChannelId
from umpack.core.distributor import Distributor
from umpack.core.errors import PeerGone
from umpack.core.ledger import Lease
from umpack.core.trunk import PbxId, TrunkKind

A, B = trunk("a", 3), trunk("b", 2)
LINE = trunk("line", range(1, 4), kind=TrunkKind.S2M)
NOW = 1000.0
UNKNOWN = Memory(frozenset())
"""After a pass that has found nobody."""


def offered(distributor: Distributor, uniqueid: str, now: float = NOW) -> Lease:  # type: ignore[type-arg]
    decision = distributor.offer(Call(CallId(f"main-{uniqueid}-7"), MAIN, "100"), now)
    assert isinstance(decision, Assignment)
    return decision.lease


def caller(uniqueid: str, place: Place | None = None, linked: str = "") -> Occupant:
    return Occupant(uniqueid, linked or uniqueid, f"PJSIP/x-{uniqueid}", place, False)


def leg(uniqueid: str, of: str, place: Place | None) -> Occupant:
    return Occupant(uniqueid, of, f"PJSIP/{place}-{uniqueid}", place, True)


def stranger(uniqueid: str, place: Place | None) -> Occupant:
    return Occupant(uniqueid, uniqueid, f"PJSIP/{place}-{uniqueid}", place, False)


def look(
    distributor: Distributor,
    present: Sequence[Occupant],
    *,
    asked: float = NOW,
    callers: Iterable[str] = (),
    earlier: Memory = UNKNOWN,
) -> Findings:
    return compare(MAIN, distributor, present, set(callers), earlier, asked)


def adoptions(findings: Findings) -> list[tuple[str, str]]:
    return [(id_, occupant.uniqueid) for id_, occupant in findings.adopt]


def adopt(distributor: Distributor, findings: Findings) -> None:
    for id_, occupant in findings.adopt:
        id_of_call = CallId(f"main-{occupant.uniqueid}-adopted")
        distributor.adopt(id_, Call(id_of_call, MAIN, ""), NOW)


class TestAdoption:
    def test_an_uniqueid_is_found_again(self) -> None:
        for uniqueid in ("1795343955.1", "node-7-1795343955.1"):
            assert uniqueid_of(Call(CallId(f"main-{uniqueid}-12"), MAIN, "")) == uniqueid
        two = PbxId("a-b")
        assert uniqueid_of(Call(CallId("a-b-1.2-adopted"), two, "")) == "1.2"

    def test_at_the_start_all_are_believed_at_once(self) -> None:
        distributor = Distributor(one_pack(A, B, LINE))
        present = [caller("1"), leg("2", "1", "a"), leg("3", "1", 2), stranger("4", "elsewhere")]
        findings = look(distributor, present, earlier=Memory())
        assert adoptions(findings) == [("a:3", "2"), ("line:2", "3")]
        assert not findings.doubtful

    def test_later_a_stranger_must_be_seen_twice(self) -> None:
        distributor = Distributor(one_pack(A))
        first = look(distributor, [stranger("4", "a")])
        assert adoptions(first) == []
        assert first.doubtful
        second = look(distributor, [stranger("4", "a"), stranger("5", "a")], earlier=first.memory)
        assert adoptions(second) == [("a:3", "4")]
        assert second.memory.strangers == frozenset("5")

    def test_our_own_legs_are_no_strangers(self) -> None:
        distributor = Distributor(one_pack(A, LINE))
        offered(distributor, "1")
        present = [caller("1"), leg("2", "1", "a"), leg("3", "1", 2)]
        # The second one is left over from an attempt before this one.
        assert look(distributor, present, earlier=Memory()).memory == Memory(frozenset())

    def test_a_leg_goes_by_the_oldest_channel_of_its_call(self) -> None:
        distributor = Distributor(one_pack(A))
        offered(distributor, "5")
        present = [stranger("1", None), caller("5", linked="1"), leg("6", "1", "a")]
        findings = look(distributor, present, earlier=Memory(), asked=NOW + 60)
        assert (findings.adopt, findings.memory.missing) == ((), {})

    def test_a_call_that_has_ended_while_the_list_was_under_way_is_none(self) -> None:
        distributor = Distributor(one_pack(A))
        lease = offered(distributor, "1")
        distributor.release(lease.token, NOW)
        present = [caller("1"), leg("2", "1", "a")]
        assert not look(distributor, present, callers=["1"]).doubtful
        # And one that had just ended is in no other list.
        assert look(distributor, present).doubtful
        assert not look(distributor, [], earlier=look(distributor, present).memory).adopt

    def test_who_calls_us_over_a_trunk_of_ours_takes_a_place_there(self) -> None:
        distributor = Distributor(one_pack(A, LINE))
        lease = offered(distributor, "1")
        present = [caller("1", 3), leg("2", "1", "a"), caller("8", "a")]
        findings = look(distributor, present, earlier=Memory())
        assert adoptions(findings) == [("line:3", "1"), ("a:3", "8")]
        assert lease.channel.id == "a:1"

    def test_slots_are_taken_from_the_end_and_the_next_in_turn_last(self) -> None:
        distributor = Distributor(one_pack(A, B))
        present = [stranger(str(n), "a") for n in range(5)]
        findings = look(distributor, present, earlier=Memory())
        assert adoptions(findings) == [("a:3", "0"), ("a:2", "1"), ("a:1", "2")]
        assert findings.memory.strangers == frozenset("34")
        backward = Distributor(site([A], [plan("um", ["a:3", "a:2", "a:1"])]))
        assert adoptions(look(backward, present[:2], earlier=Memory())) == [
            ("a:2", "0"),
            ("a:1", "1"),
        ]

    def test_drained_slots_are_taken_when_no_other_is_free(self) -> None:
        distributor = Distributor(one_pack(A))
        distributor.drain(Drain("a:3", "anna", "", 0.0))
        present = [stranger(str(n), "a") for n in range(3)]
        findings = look(distributor, present, earlier=Memory())
        assert adoptions(findings) == [("a:2", "0"), ("a:1", "1"), ("a:3", "2")]

    def test_a_channel_in_use_twice_is_held_once(self) -> None:
        distributor = Distributor(one_pack(LINE))
        offered(distributor, "1")
        findings = look(distributor, [caller("1"), stranger("9", 1)], earlier=Memory())
        assert findings.adopt == ()

    def test_what_is_adopted_is_over_when_it_is_gone_or_elsewhere(self) -> None:
        distributor = Distributor(one_pack(A, LINE))
        present = [stranger("4", "a"), stranger("5", 1), stranger("6", 2)]
        adopt(distributor, look(distributor, present, earlier=Memory()))
        by_channel = {lease.channel.id: lease.token for lease in distributor.ledger}
        assert by_channel.keys() == {"a:3", "line:1", "line:2"}
        assert look(distributor, present) == Findings((), (), (), (), UNKNOWN)
        # Moved to another B channel; where the list of B channels fails, it has not moved.
        moved = [stranger("4", "a"), stranger("5", 3), stranger("6", None)]
        findings = look(distributor, moved, earlier=Memory())
        assert findings.over == (by_channel[ChannelId("line:1")],)
        assert adoptions(findings) == [("line:3", "5")]
        assert set(look(distributor, []).over) == set(by_channel.values())

    def test_a_channel_freed_in_this_pass_may_be_taken_in_it(self) -> None:
        distributor = Distributor(one_pack(LINE))
        adopt(distributor, look(distributor, [stranger("4", 2)], earlier=Memory()))
        findings = look(distributor, [stranger("5", 2)], earlier=Memory())
        assert len(findings.over) == 1
        assert adoptions(findings) == [("line:2", "5")]

    def test_a_channel_that_leaves_with_its_call_is_not_taken_again(self) -> None:
        distributor = Distributor(one_pack(LINE))
        adopt(distributor, look(distributor, [stranger("4", 2)], earlier=Memory()))
        distributor.reload(one_pack(A))
        findings = look(distributor, [stranger("5", 2)], earlier=Memory())
        assert (len(findings.over), findings.adopt) == (1, ())

    def test_a_reception_of_another_umpack_keeps_its_port(self) -> None:
        fax = trunk("fax", 3, kind=TrunkKind.FAX, dial="Service/{trunk}")
        distributor = Distributor(one_pack(fax, A))
        lease = offered(distributor, "1")
        assert lease.channel.id == "fax:1"
        left = {name: ChannelId(port) for name, port in {
            "1": "fax:1",  # of this umpack: its connection lives
            "2": "fax:2",
            "3": "fax:3",  # its channel is gone: over
            "4": "a:1",  # was a port once
            "5": "gone:1",
        }.items()}  # fmt: skip
        present = [caller(name) for name in ("1", "2", "4", "5")]
        findings = compare(MAIN, distributor, present, {"1"}, Memory(), NOW, left)
        assert adoptions(findings) == [("fax:2", "2")]
        adopt(distributor, findings)
        # It lives as long as its caller's channel, wherever that is.
        assert look(distributor, [caller("2", "a"), caller("1")]).over == ()
        assert len(look(distributor, [caller("1")]).over) == 1

    def test_another_pbx_is_left_alone(self) -> None:
        elsewhere = trunk("a", 2, pbx=PbxId("other"))
        distributor = Distributor(one_pack(elsewhere))
        distributor.adopt(ChannelId("a:1"), Call(CallId("other-4-adopted"), PbxId("other"), ""), 0)
        findings = look(distributor, [stranger("4", "a")], earlier=Memory())
        assert findings == Findings((), (), (), (), UNKNOWN)

    def test_a_list_that_is_older_than_an_adoption_does_not_end_it(self) -> None:
        distributor = Distributor(one_pack(LINE))
        call_id = CallId("main-4-adopted")
        distributor.adopt(ChannelId("line:2"), Call(call_id, MAIN, ""), NOW + 0.1)
        assert look(distributor, [], asked=NOW).over == ()
        assert len(look(distributor, [], asked=NOW + 0.2).over) == 1


class TestMoves:
    """B channels change during setup (Q.931 5.2.3), and the event that tells may be lost."""

    def found(
        self, distributor: Distributor, present: Sequence[Occupant], times: int = 2
    ) -> list[tuple[str, str]]:
        memory = UNKNOWN
        for _ in range(times):
            findings = look(distributor, present, earlier=memory)
            memory = findings.memory
        return [(lease.channel.id, id_) for lease, id_ in findings.moved]

    def test_a_leg_seen_elsewhere_twice_takes_its_lease_along(self) -> None:
        distributor = Distributor(one_pack(LINE))
        offered(distributor, "1")
        present = [caller("1"), leg("2", "1", 3)]
        assert self.found(distributor, present, 1) == []
        assert look(distributor, present).doubtful  # so there will be a second look
        assert self.found(distributor, present) == [("line:1", "line:3")]
        assert self.found(distributor, [caller("1"), leg("2", "1", 1)]) == []

    def test_where_nobody_can_tell_it_stays(self) -> None:
        distributor = Distributor(one_pack(LINE, A))
        offered(distributor, "1")
        for place in (None, "a"):
            assert self.found(distributor, [caller("1"), leg("2", "1", place)]) == []
        two = [caller("1"), leg("2", "1", 3), leg("3", "1", 2)]
        assert self.found(distributor, two) == []
        joined = [caller("1"), replace(leg("2", "1", 3), dialled=False)]
        assert self.found(distributor, joined) == []

    def test_who_is_on_the_channel_it_left_is_adopted_there(self) -> None:
        distributor = Distributor(one_pack(LINE))
        offered(distributor, "1")
        present = [caller("1"), leg("2", "1", 3), stranger("9", 1)]
        first = look(distributor, present)
        second = look(distributor, present, earlier=first.memory)
        assert adoptions(second) == [("line:1", "9")]


class TestLeaks:
    def test_a_lease_without_a_leg_in_two_passes_has_leaked(self) -> None:
        distributor = Distributor(one_pack(A))
        lease = offered(distributor, "1")
        first = look(distributor, [caller("1")], asked=NOW + 30)
        assert (first.leaked, first.memory.missing) == ((), {lease.token: NOW + 30})
        second = look(distributor, [], asked=NOW + 60, earlier=first.memory)
        assert second.leaked == (lease.token,)

    def test_a_leg_may_come_late(self) -> None:
        distributor = Distributor(one_pack(A))
        lease = offered(distributor, "1")
        young = look(distributor, [caller("1")], asked=NOW + GRACE - 0.1)
        assert young.memory.missing == {}
        first = look(distributor, [], asked=NOW + GRACE)
        # Passes may follow each other closely; that alone proves nothing.
        again = look(distributor, [], asked=NOW + GRACE + 2, earlier=first.memory)
        assert (again.leaked, again.memory) == ((), first.memory)
        there = look(distributor, [leg("2", "1", "a")], asked=NOW + GRACE + 4, earlier=again.memory)
        assert there.memory.missing == {}
        assert look(distributor, [], asked=NOW + 60, earlier=first.memory).leaked == (lease.token,)

    def test_the_next_attempt_of_a_call_begins_anew(self) -> None:
        distributor = Distributor(one_pack(A, B))
        first = look(distributor, [], asked=NOW + 20) if offered(distributor, "1") else None
        assert first is not None
        (lease,) = distributor.ledger
        distributor.outcome(lease, refused(41), NOW + 25)
        assert look(distributor, [], asked=NOW + 50, earlier=first.memory).leaked == ()

    def test_a_b_channel_in_use_by_whomever_is_no_leak(self) -> None:
        distributor = Distributor(one_pack(LINE))
        offered(distributor, "1")
        assert look(distributor, [stranger("9", 1)], asked=NOW + 60).memory.missing == {}
        assert look(distributor, [stranger("9", 2)], asked=NOW + 60).memory.missing != {}

    def test_a_service_has_no_leg_but_its_caller(self) -> None:
        fax = trunk("fax", 2, kind=TrunkKind.FAX, dial="Service/{trunk}")
        distributor = Distributor(one_pack(fax))
        lease = offered(distributor, "1")
        present = [caller("1"), stranger("9", 1), stranger("8", None)]
        findings = look(distributor, present, asked=NOW + 60, earlier=Memory())
        assert findings == Findings((), (), (), (), UNKNOWN)
        gone = look(distributor, [stranger("9", 1)], asked=NOW + 60)
        assert gone.memory.missing == {lease.token: NOW + 60}


@dataclass
class Running:
    """A call as umpack's own coroutine for it knows it."""

    uniqueid: str
    lease: Lease  # type: ignore[type-arg]
    serial: int
    leg: Occupant | None = None
    dialled: bool = False
    lost: bool = False
    """Gone from the PBX, and its connection says nothing."""


@dataclass
class World:
    """A PBX, the umpack beside it, and time in steps of a tenth of a second."""

    dice: Random
    now: float = NOW
    rows: dict[str, Occupant] = field(default_factory=dict)
    calls: dict[str, Running] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)
    serial: int = 0
    answered: float = 0.0
    dying: dict[str, float] = field(default_factory=dict)
    """Legs Asterisk lists for a moment after their Dial, and until when."""
    made: dict[str, float] = field(default_factory=dict)
    """Legs this umpack has had, and when their calls were over."""

    def __post_init__(self) -> None:
        packs = [plan("um", all_of(A, B, LINE)), plan("line", all_of(LINE))]
        self.site = site([A, B, LINE], packs, policy=UNMOVED)
        self.distributor = Distributor(self.site)
        self.asked: tuple[float, list[Occupant], set[str]] | None = None

    def next_id(self) -> str:
        self.serial += 1
        return str(self.serial)

    def free_place(self) -> Place:
        numbers = {row.place for row in self.rows.values()}
        return self.dice.choice(["a", "b", *(n for n in (1, 2, 3) if n not in numbers)])

    # -- what happens

    def call_comes(self) -> None:
        uniqueid = self.next_id()
        place = self.free_place() if self.dice.random() < 0.3 else None
        self.rows[uniqueid] = caller(uniqueid, place)
        self.go_on(uniqueid, self.distributor.offer(self.call_of(uniqueid), self.now))

    def call_of(self, uniqueid: str) -> Call:
        return Call(CallId(f"main-{uniqueid}-1"), MAIN, "100")

    def go_on(self, uniqueid: str, decision: object) -> None:
        if isinstance(decision, Assignment):
            self.calls[uniqueid] = Running(uniqueid, decision.lease, self.serial)
        else:
            self.calls.pop(uniqueid, None)
            self.rows.pop(uniqueid, None)

    def leg_appears(self, call: Running) -> None:
        channel = call.lease.channel
        place = place_of(channel)
        assert place is not None
        call.dialled = True
        if isinstance(place, int) and any(row.place == place for row in self.rows.values()):
            return  # chan_dahdi refuses, without a leg
        call.leg = leg(self.next_id(), call.uniqueid, place)
        self.rows[call.leg.uniqueid] = call.leg
        self.made[call.leg.uniqueid] = inf

    def leg_moves(self, call: Running) -> None:
        """The far end puts it on another channel, and no event tells."""
        place = self.free_place()
        if call.leg is not None and isinstance(call.leg.place, int) and isinstance(place, int):
            call.leg = replace(call.leg, place=place)
            self.rows[call.leg.uniqueid] = call.leg

    def leg_ends(self, call: Running) -> None:
        if call.leg is not None:
            self.dying[call.leg.uniqueid] = self.now + self.dice.choice([0.0, 0.25])
            self.made[call.leg.uniqueid] = self.now
            call.leg = None

    def outcome_comes(self, call: Running) -> None:
        if not self.distributor.ledger.holds(call.lease):
            self.go_on(call.uniqueid, None)
            return
        outcome = self.dice.choice([refused(41), Outcome(Result.ANSWERED), Outcome(Result.HUNG_UP)])
        self.go_on(call.uniqueid, self.distributor.outcome(call.lease, outcome, self.now))

    def connection_is_lost(self, call: Running) -> None:
        """Everything of the call is gone but the lease."""
        self.leg_ends(call)
        self.rows.pop(call.uniqueid, None)
        call.lost = True

    def umpack_is_killed(self) -> None:
        self.distributor = Distributor(self.site)
        self.calls.clear()
        self.made.clear()
        self.memory, self.asked = Memory(), None

    def stranger_comes(self) -> None:
        uniqueid = self.next_id()
        self.rows[uniqueid] = stranger(uniqueid, self.free_place())

    def somebody_leaves(self) -> None:
        ours = set(self.calls) | {call.leg.uniqueid for call in self.calls.values() if call.leg}
        if others := [uid for uid in self.rows if uid not in ours and uid not in self.dying]:
            del self.rows[self.dice.choice(others)]

    # -- passes

    def ask(self) -> None:
        callers = {
            uid for uid, call in self.calls.items() if self.distributor.ledger.holds(call.lease)
        }
        self.asked = self.now, list(self.rows.values()), callers

    def answer(self) -> None:
        if self.asked is None:
            return
        asked, present, callers = self.asked
        self.asked, first = None, self.memory.strangers is None
        findings = compare(MAIN, self.distributor, present, callers, self.memory, asked)
        self.memory, self.answered = findings.memory, self.now
        for token in findings.over:
            self.distributor.abandon(token, self.now, "gone")
        lost = {call.lease.token for call in self.calls.values() if call.lost}
        assert set(findings.leaked) <= lost, "a living lease was freed"
        for token in findings.leaked:
            self.distributor.abandon(token, self.now, LEAKED)
        for lease, id_ in findings.moved:
            call = self.calls[uniqueid_of(lease.holder.call)]
            assert call.lease is lease, "a lease was moved by another's leg"
            self.distributor.moved(lease, id_)
        for id_, occupant in findings.adopt:
            over = self.made.get(occupant.uniqueid)
            # Only the first pass may take a dying leg for a call from before.
            assert over is None or (first and over < asked), "our own leg was adopted"
            stranger = Call(CallId(f"main-{occupant.uniqueid}-adopted"), MAIN, "")
            adopted = self.distributor.adopt(id_, stranger, self.now)
            assert adopted is not None or findings.moved

    def bury(self) -> None:
        for uniqueid in [uid for uid, end in self.dying.items() if end <= self.now]:
            self.rows.pop(uniqueid, None)
            del self.dying[uniqueid]

    def go_on_dialling(self) -> None:
        for call in [c for c in self.calls.values() if not c.lost]:
            waits = self.now - call.lease.since
            if not call.dialled and (waits > 2 or self.dice.random() < 0.3):
                self.leg_appears(call)
            elif call.dialled and call.leg is None:
                # Not at once: a pass may come in between.
                if self.dice.random() < 0.5:
                    self.outcome_comes(call)
            elif call.leg is not None and self.dice.random() < 0.05:
                self.leg_ends(call)

    def step(self) -> None:
        """One thing by chance; what cannot wait longer comes first."""
        self.now += 0.1
        self.bury()
        self.go_on_dialling()
        chance = self.dice.random()
        living = [call for call in self.calls.values() if not call.lost and call.dialled]
        if chance < 0.15:
            self.call_comes()
        elif chance < 0.25:
            self.stranger_comes()
        elif chance < 0.4:
            self.somebody_leaves()
        elif chance < 0.42 and living:
            self.leg_moves(self.dice.choice(living))
        elif chance < 0.43 and living:
            self.connection_is_lost(self.dice.choice(living))
        elif chance < 0.44:
            self.umpack_is_killed()
        elif chance < 0.6 and self.asked is None and self.now - self.answered >= 0.3:
            self.ask()
        elif chance < 0.8:
            self.answer()

    def settle(self, passes: int) -> None:
        for uniqueid in self.dying:
            self.rows.pop(uniqueid, None)
        self.dying.clear()
        for _ in range(passes):
            self.asked = None
            self.now += GRACE + 1
            self.ask()
            self.answer()


@settings(deadline=None, max_examples=100)
@example(774052019)  # a call had moved onto the channel of a leaked lease
@given(st.integers(0, 2**32))
def test_no_living_lease_is_freed_and_no_leg_of_ours_is_adopted(seed: int) -> None:
    world = World(Random(seed))
    for _ in range(250):
        world.step()
    # Whatever has happened: with time to look twice, the ledger is what the PBX is.
    for call in [c for c in world.calls.values() if not c.lost]:
        if not call.dialled:
            world.leg_appears(call)
        if call.leg is None:
            call.lost = True  # its Dial is over, and umpack never hears
    world.settle(4)
    own = [c for c in world.calls.values() if world.distributor.ledger.holds(c.lease)]
    numbers = {row.place for row in world.rows.values()}
    for call in own:
        assert call.leg is not None or call.lease.channel.number in numbers
        if call.leg is not None and isinstance(call.leg.place, int):
            kind = call.lease.channel.trunk.kind
            assert kind is TrunkKind.SIP or call.lease.channel.number == call.leg.place
    adopted = {
        uniqueid_of(lease.holder.call): lease.channel
        for lease in world.distributor.ledger
        if lease.pack is None
    }
    assert adopted.keys() <= world.rows.keys()
    assert len(adopted) == sum(lease.pack is None for lease in world.distributor.ledger)
    legs = {call.leg.uniqueid for call in own if call.leg}
    others = [row for uid, row in world.rows.items() if uid not in legs and row.place is not None]
    for row in others:
        if row.uniqueid in adopted:
            continue
        place = row.place
        places = [c for c in world.distributor.ledger.channels.values() if place_of(c) == place]
        assert all(channel.lease is not None for channel in places), row
    # And when all is quiet, nothing is held.
    world.rows.clear()
    for call in world.calls.values():
        call.lost = True
    world.settle(3)
    assert len(world.distributor.ledger) == 0


def place_of(channel: Channel) -> Place | None:
    return channel.number if channel.trunk.kind is TrunkKind.S2M else channel.trunk.endpoint


class Lists:
    """A PBX's lists without a PBX."""

    version = "11.0.0"

    def __init__(self, *rows: dict[str, str]) -> None:
        self.rows = list(rows)
        self.asked: list[str] = []
        self.dahdi: list[dict[str, str]] | None = None

    async def collect(self, name: str) -> list[AmiEvent]:
        self.asked.append(name)
        if name == "DAHDIShowChannels":
            if self.dahdi is None:
                raise AmiRefused(f"{name}: Invalid/unknown command")
            return [AmiEvent({"Event": name, **row}) for row in self.dahdi]
        return [AmiEvent({"Event": "CoreShowChannel", **row}) for row in self.rows]


def row(uniqueid: str, name: str) -> dict[str, str]:
    return {"Uniqueid": uniqueid, "Linkedid": uniqueid, "Channel": name}


class TestPasses:
    async def test_one_pass_adopts_what_a_second_look_confirms(self) -> None:
        distributor = Distributor(one_pack(A))
        lists = Lists()
        reconciler = Reconciler(distributor, lists, MAIN, clock.now)
        await reconciler.once()
        assert reconciler.pause == EVERY
        lists.rows = [row("1.1", "PJSIP/a-00000001")]
        await reconciler.once()
        assert lists.asked == ["CoreShowChannels"] * 3
        (lease,) = distributor.ledger
        assert (lease.channel.id, lease.holder.call.inbound) == ("a:3", "PJSIP/a-00000001")
        assert reconciler.pause == ADOPTED_EVERY
        lists.rows = []
        await reconciler.once()
        (record,) = distributor.take_records()
        assert (record.ending, len(distributor.ledger)) == (Ending.ADOPTED, 0)

    async def test_without_dahdis_own_list_the_rest_is_known(self) -> None:
        distributor = Distributor(one_pack(A, LINE))
        lists = Lists(row("1.1", "DAHDI/i1/4930-1"), row("1.2", "PJSIP/a-00000001"))
        reconciler = Reconciler(distributor, lists, MAIN, clock.now)
        with logged("WARNING") as lines:
            await reconciler.once()
            await reconciler.once()
        assert [lease.channel.id for lease in distributor.ledger] == ["a:3"]
        assert len(lines) == 1
        lists.dahdi = [{"DAHDIChannel": "3", "Uniqueid": "1.1"}]
        await reconciler.once()
        assert {lease.channel.id for lease in distributor.ledger} == {"a:3", "line:3"}

    async def test_a_lost_link_is_the_callers_to_know(self) -> None:
        class Gone(Lists):
            async def collect(self, name: str) -> list[AmiEvent]:
                raise PeerGone("no link")

        with pytest.raises(PeerGone):
            await Reconciler(Distributor(one_pack(A)), Gone(), MAIN, clock.now).once()

    async def test_who_may_not_list_channels_holds_none_for_calls_of_others(self) -> None:
        class Strict(Lists):
            allowed = True

            async def collect(self, name: str) -> list[AmiEvent]:
                if not self.allowed:
                    raise AmiRefused("Permission denied")
                return await super().collect(name)

        distributor, lists = Distributor(one_pack(A)), Strict(row("1.1", "PJSIP/a-00000001"))
        own = offered(distributor, "7")
        reconciler = Reconciler(distributor, lists, MAIN, lambda: NOW)
        task = asyncio.create_task(reconciler.run())
        await until(lambda: len(distributor.ledger) == 2)
        assert reconciler.works
        lists.allowed = False
        await until(lambda: len(distributor.ledger) == 1)
        assert distributor.ledger.holds(own)
        assert not reconciler.works
        lists.allowed = True
        lists.version = ""  # the link is made anew with other rights
        await asyncio.sleep(0.25)
        lists.version = "11.0.0"
        await until(lambda: reconciler.works)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def test_it_runs_on_whatever_fails(self) -> None:
        class Failing(Lists):
            async def collect(self, name: str) -> list[AmiEvent]:
                self.asked.append(name)
                if len(self.asked) == 1:
                    raise AmiRefused("Permission denied")
                if len(self.asked) == 2:
                    raise PeerGone("no link")
                return []

        lists = Failing()
        task = asyncio.create_task(
            Reconciler(Distributor(one_pack(A)), lists, MAIN, clock.now).run()
        )
        for count in (1, 2, 3):
            await until(lambda count=count: len(lists.asked) == count)  # type: ignore[misc]
            lists.version = ""
            await asyncio.sleep(0.25)
            assert len(lists.asked) == count
            lists.version = "11.0.0"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class TestOutage:
    def test_it_is_over_after_a_time_in_which_calls_come(self) -> None:
        outage = Outage()
        assert not outage.look(NOW, 10)
        assert not outage.look(NOW + BELIEVED_FOR - 1, 12)
        assert not outage.look(NOW + BELIEVED_FOR, 12), "no call has come since"
        assert outage.look(NOW + BELIEVED_FOR + 60, 13)
        outage.over()
        assert not outage.look(NOW + BELIEVED_FOR + 61, 14)
        assert not outage.look(NOW + 2 * BELIEVED_FOR, 15)

    async def test_adopted_calls_are_given_up_and_others_are_not(self) -> None:
        other = trunk("o", 1, pbx=PbxId("other"))
        distributor = Distributor(one_pack(A, other))
        lists = Lists(row("1.1", "PJSIP/a-00000001"))
        time, calls = NOW, 5
        reconciler = Reconciler(distributor, lists, MAIN, lambda: time, lambda: calls)
        distributor.adopt(
            ChannelId("o:1"), Call(CallId("other-4-adopted"), PbxId("other"), ""), NOW
        )
        own = offered(distributor, "7")
        task = asyncio.create_task(reconciler.run())
        await until(lambda: len(distributor.ledger) == 3)
        lists.version = ""
        await asyncio.sleep(0.25)
        time += BELIEVED_FOR
        await asyncio.sleep(0.25)
        assert len(distributor.ledger) == 3, "the PBX may be restarting"
        with logged("WARNING") as lines:
            calls += 1
            await until(lambda: len(distributor.ledger) == 2)
        assert {lease.channel.id for lease in distributor.ledger} == {own.channel.id, "o:1"}
        assert len(lines) == 1
        (record,) = distributor.take_records()
        assert (record.ending, record.why) == (Ending.ADOPTED, f"{GIVEN_UP} (a:3)")
        # It lives: when the link is back it is found again.
        lists.version = "11.0.0"
        await until(lambda: len(distributor.ledger) == 3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def beside(
    pbx: SimulatedAsterisk, distributor: Distributor, *, reconciling: bool = True
) -> AsyncIterator[tuple[Reconciler, AmiLink]]:
    """An umpack: calls by AGI, passes over AMI if wanted."""
    driver = AsteriskDriver(AsteriskPlan(MAIN, "127.0.0.1", 0, None), distributor, clock.now)
    await driver.start()
    pbx.agi_to("127.0.0.1", driver.agi_port)
    link = AmiLink(
        AmiAddress("127.0.0.1", pbx.ami.port, "umpack", "umpack"), events=frozenset(),
        backoff=Backoff(initial=0.01),
    )  # fmt: skip
    reconciler = Reconciler(distributor, link, MAIN, clock.now)
    tasks = [asyncio.create_task(link.run())]
    if reconciling:
        tasks.append(asyncio.create_task(reconciler.run()))
    try:
        yield reconciler, link
    finally:
        for task in reversed(tasks):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await driver.close(0.0)


class TestSimulated:
    async def test_an_umpack_that_comes_back_gives_no_channel_twice(self) -> None:
        s2m = trunk("line", range(1, 5), kind=TrunkKind.S2M)
        sip = trunk("um", 4)
        async with SimulatedAsterisk() as pbx:
            pbx.attach(Board([SpanSpec(Kind.S2M)]), {1: Answer()})
            pbx.add_endpoint("um", Answer())
            calls = []
            async with beside(pbx, first := Distributor(one_pack(s2m, sip)), reconciling=False):
                for number in range(6):
                    calls.append(asyncio.create_task(pbx.call(f"10{number}", hold=3.0)))
                await until(lambda: len(first.ledger) == 6)
                await until(lambda: len(tuple(pbx.channels)) == 12)
            # Its calls go on in the PBX. The next one hears of a call before it has listed any.
            second = Distributor(one_pack(s2m, sip))
            async with beside(pbx, second, reconciling=False) as (reconciler, link):
                early = asyncio.create_task(pbx.call("200", hold=1.0))
                await until(lambda: [x.channel.id for x in second.ledger] == ["um:1"])
                # It was given busy B channels, and chan_dahdi has refused each without a leg.
                (lease,) = second.ledger
                attempts = lease.holder.attempts
                assert [a.outcome.result for a in attempts] == [Result.NO_CHANNEL] * len(attempts)
                assert attempts
                await until(lambda: link.version)
                await reconciler.once()
                held = {lease.channel.id: lease.pack is None for lease in second.ledger}
                # The endpoint has two calls of the first umpack and one of this.
                assert held == {
                    "um:1": False, "um:4": True, "um:3": True,
                    "line:1": True, "line:2": True, "line:3": True, "line:4": True,
                }  # fmt: skip
                assert (await early).answered
                assert all(result.answered for result in await asyncio.gather(*calls))
                await reconciler.once()
                assert len(second.ledger) == 0
                endings = [record.ending for record in second.take_records()]
                assert sorted(e.value for e in endings) == ["adopted"] * 6 + ["connected"]

    async def test_a_lease_freed_under_its_call_ends_quietly(self) -> None:
        async with SimulatedAsterisk() as pbx:
            pbx.add_endpoint("a", Answer())
            distributor = Distributor(one_pack(A))
            with logged("ERROR") as lines:
                async with beside(pbx, distributor, reconciling=False):
                    for ends in (True, False):
                        call = asyncio.create_task(pbx.call("100", hold=0.1 if ends else 30.0))
                        await until(lambda: len(distributor.ledger) == 1)
                        (lease,) = distributor.ledger
                        distributor.abandon(lease.token, clock.now(), LEAKED)
                        if ends:
                            await call
                        else:
                            await asyncio.sleep(0.05)
                            call.cancel()
                await asyncio.gather(call, return_exceptions=True)
            assert lines == []
            assert [r.ending for r in distributor.take_records()] == [Ending.LEAKED] * 2
