"""Storms against a pack of which some trunks die, in virtual time: who waits, who is lost, who
carries the rest, and how soon all is well again.

The bounds are those of the README ("How soon"), with λ calls a second on the trunk, Λ on the pack,
p99 its usual answer time, and L = max(hesitation_floor, hesitation_factor × p99):

- from its first victim on, a dead trunk has no more calls but trials after L with hints, after
  answer_within without, after its first refusal at once; and no trial within suspect_rest of
  another call;
- one caller waits all of answer_within with hints, λ × answer_within without;
- it is ejected answer_within + 3/λ after its first victim where three have met it by then, else
  at most (failures_to_eject - 1) × (suspect_rest + L + 1/Λ) later;
- it is tried again after eject_base × n × (1 + jitter) at most, n up to eject_cap / eject_base,
  and one call of Λ later;
- its limit follows the formula of slow start, and all its channels are in use again slow_start
  after the first trial that was answered.
"""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.sites import MAIN, all_of, plan, route, site
from tests.unit.core.storms import (
    ANSWER,
    AT_ONCE,
    BUSY,
    DEAD,
    DEATH,
    HOLD,
    NO_NUMBER,
    RATE,
    RINGS,
    SAYS_503,
    SLOW,
    WITHIN,
    Far,
    Storm,
    servers,
    um_site,
)
from umpack.core.administration import Drain
from umpack.core.causes import Blame
from umpack.core.health_policy import HealthPolicy
from umpack.core.health_states import AlarmKind, HealthState
from umpack.core.pack import Strategy
from umpack.core.site import Site
from umpack.core.trunk import TrunkId

UP, SUSPECT, EJECTED = HealthState.UP, HealthState.SUSPECT, HealthState.EJECTED
HALF_OPEN, SLOW_START = HealthState.HALF_OPEN, HealthState.SLOW_START
POLICY = HealthPolicy()
LATE = POLICY.hesitation_floor
WELL_AGAIN = 100.0
END = 210.0
CYCLE = 30 / RATE * 3
"""Seconds in which a cyclic pack of three living trunks of 30 has gone round once."""

both = pytest.mark.parametrize("hints", [True, False], ids=["hints", "deaf"])
orders = pytest.mark.parametrize(
    ("strategy", "interleave"),
    [(s, i) for s in Strategy for i in (False, True)],
    ids=lambda value: value.value if isinstance(value, Strategy) else ("blocks", "mixed")[value],
)


def victim(strategy: Strategy) -> str:
    """A trunk that has calls: a linear pack hardly uses its last ones."""
    return "a" if strategy is Strategy.LINEAR else "b"


def even(storm: Storm, names: str, since: float, until: float) -> None:
    shares = storm.shares(since, until)
    mean = sum(shares[name] for name in names) / len(names)
    assert mean > 0
    for name in names:
        assert abs(shares[name] - mean) <= 0.1 * mean, shares


# -- one of four dies -------------------------------------------------------------------------


@both
@orders
@pytest.mark.parametrize("far", [DEAD, SAYS_503, RINGS], ids=["dead", "503", "rings"])
def test_one_of_four_fails_and_comes_back(
    far: Far, strategy: Strategy, interleave: bool, hints: bool
) -> None:
    name = victim(strategy)
    script = {name: [(DEATH, WELL_AGAIN, far)]}
    storm = Storm(um_site(strategy, interleave=interleave), script, hints=hints).run(END)
    assert storm.lost() == []
    tries = storm.tries(name, DEATH, WELL_AGAIN)
    first = tries[0]
    # In turn it has a quarter of the calls, or all for a while; a linear pack's first has all.
    most = RATE / 4 if interleave and strategy is Strategy.CYCLIC else RATE
    after = ANSWER if far is SAYS_503 else LATE if hints else WITHIN
    doubted = first + after
    met = [at for at in tries if at <= doubted + 1e-6]
    assert len(met) <= 1 + most * after + 1e-6
    trials = tries[len(met) - 1 :]
    assert all(b - a >= POLICY.suspect_rest - WITHIN for a, b in pairwise(trials)), trials
    assert len(trials) >= 2
    if far is SAYS_503:
        assert storm.waited(WITHIN) == []
    else:
        assert len(storm.waited(WITHIN)) <= (1 if hints else most * WITHIN + 1)
    assert all(caller.wait <= WITHIN + 2 * ANSWER for caller in storm.callers.values())
    assert all(len(caller.trunks) <= 2 for caller in storm.callers.values())
    moves = storm.moves(name)
    states = [state for _, state in moves]
    assert states[0] is SUSPECT
    assert states[-4:] == [EJECTED, HALF_OPEN, SLOW_START, UP]
    ejected = next(at for at, state in moves if state is EJECTED)
    if far is SAYS_503 or hints:
        seldom = (POLICY.failures_to_eject - 1) * (POLICY.suspect_rest + LATE + 1 / RATE)
        assert ejected - first <= WITHIN + seldom
    else:
        assert len(met) >= POLICY.failures_to_eject
        at_least = RATE / 4 if interleave else RATE
        assert ejected - first <= WITHIN + POLICY.failures_to_eject / at_least
    back = next(at for at, state in moves if state is SLOW_START)
    longest = POLICY.ejection(states.count(EJECTED), 1.0)
    assert back <= WELL_AGAIN + longest + 1 / RATE + ANSWER + HOLD, "without hints when it is over"
    if strategy is Strategy.CYCLIC:
        even(storm, "acd", 50.0, 50.0 + 11 * CYCLE)
        even(storm, "abcd", END - 24.0, END)


@both
def test_every_ejection_is_longer_than_the_last_up_to_the_cap(hints: bool) -> None:
    most = POLICY.most_times
    script = {name: [(DEATH, 1e9, DEAD)] for name in "bc"}
    storm = Storm(um_site(), script, hints=hints, rate=5.0).run(2700.0)
    assert storm.lost() == []
    spreads = set()
    for name in "bc":
        moves = [move for move in storm.moves(name) if move[1] in (EJECTED, HALF_OPEN)]
        pauses = [tried - ejected for (ejected, _), (tried, _) in pairwise(moves)][::2]
        assert len(pauses) >= most + 2
        for n, pause in enumerate(pauses, start=1):
            shortest = POLICY.eject_base * min(n, most)
            assert shortest <= pause <= shortest * (1 + POLICY.jitter) + 1 / 5.0, (n, pause)
            spreads.add(round(pause / shortest, 2))
        assert max(pauses) <= POLICY.eject_cap * (1 + POLICY.jitter) + 1 / 5.0
        assert min(pauses[most - 1 :]) >= POLICY.eject_cap
    assert len(spreads) >= 6, "those that died together are not tried together"


@both
def test_a_frozen_server_is_back_soon_after_it_thaws(hints: bool) -> None:
    script = {"b": [(DEATH, DEATH + 10.0, DEAD)]}
    storm = Storm(um_site(), script, hints=hints).run(120.0)
    assert storm.lost() == []
    assert len(storm.waited(WITHIN)) <= (1 if hints else 21)
    assert storm.state("b") is UP
    back = next(at for at, state in storm.moves("b") if state in (SLOW_START, UP))
    assert back <= DEATH + 10.0 + POLICY.eject_base * (1 + POLICY.jitter) + WITHIN


def test_it_takes_load_gradually() -> None:
    script = {"a": [(DEATH, DEATH + 25.0, SAYS_503)]}
    storm = Storm(um_site(Strategy.LINEAR), script)
    health = storm.distributor.health[TrunkId("a")]
    running: dict[int, int] = {}
    limits: dict[int, int] = {}

    def watch(now: float) -> None:
        channels = storm.distributor.ledger.channels.values()
        running[int(now)] = sum(c.lease is not None for c in channels if c.trunk.id == "a")
        limits[int(now)] = health.limit

    storm.watch = watch
    storm.run(140.0)
    begun = next(at for at, state in storm.moves("a") if state is SLOW_START)
    whole = next(at for at, state in storm.moves("a") if state is UP and at > begun)
    assert storm.lost() == []
    assert begun + POLICY.slow_start <= whole <= begun + POLICY.slow_start + 1 / RATE
    step = POLICY.slow_start / 50
    for second in range(int(begun) + 1, int(whole) + 1):
        age = second - begun
        now, before = (
            max(1, int(30 * (0.1 + 0.9 * max(0.0, a) / 30.0))) for a in (age, age - step)
        )
        assert before <= limits[second] <= now, age
        assert running[second] <= now
        # There are calls enough for all: what it may have, it has, but for those just ending.
        assert running[second] >= before - 1, age
    assert running[int(whole) + 1] >= 29


@both
@orders
@pytest.mark.parametrize("far", [BUSY, NO_NUMBER], ids=["486", "404"])
def test_the_calls_own_answer_goes_to_the_caller(
    far: Far, strategy: Strategy, interleave: bool, hints: bool
) -> None:
    name = victim(strategy)
    storm = Storm(
        um_site(strategy, interleave=interleave), {name: [(DEATH, WELL_AGAIN, far)]}, hints=hints
    ).run(END)
    assert far.refuses is not None
    assert storm.blamed(name) == 0, "each is the call's own doing"
    assert storm.lost() != []
    for caller in storm.lost():
        assert caller.trunks == [name], "nobody else is rung"
        assert caller.cause == far.refuses.cause
        assert caller.record is not None
        assert caller.record.attempts[0].verdict.blame is Blame.CALL
    assert len(storm.lost()) <= 25, "but so many in a row are unlike its past"
    assert storm.waited(WITHIN) == []
    assert storm.state(name) is UP


@both
@orders
def test_a_black_hole_is_found_by_its_short_calls(
    strategy: Strategy, interleave: bool, hints: bool
) -> None:
    name = victim(strategy)
    script = {name: [(DEATH, WELL_AGAIN, AT_ONCE)]}
    storm = Storm(um_site(strategy, interleave=interleave), script, hints=hints).run(END)
    swallowed = storm.shares(DEATH, WELL_AGAIN)[name]
    assert POLICY.outlier_sample / 2 <= swallowed <= 40
    assert storm.shares(60.0, WELL_AGAIN)[name] <= 4, "trials"
    assert storm.lost() == []
    assert storm.waited(WITHIN) == []
    assert storm.state(name) is UP
    assert EJECTED in [state for _, state in storm.moves(name)]


# -- more of them -----------------------------------------------------------------------------


@both
@pytest.mark.parametrize("interleave", [False, True], ids=["blocks", "mixed"])
@pytest.mark.parametrize("dead", ["c", "cd", "af", "bcd"])
def test_scenario_7_the_load_of_the_dead_is_spread_over_all_survivors(
    dead: str, interleave: bool, hints: bool
) -> None:
    script = {name: [(DEATH, 1e9, DEAD)] for name in dead}
    world = um_site(names="abcdef", interleave=interleave)
    storm = Storm(world, script, hints=hints).run(150.0)
    assert storm.lost() == []
    alive = "".join(name for name in "abcdef" if name not in dead)
    cycle = len(alive) * 30 / RATE
    even(storm, alive, 60.0, 60.0 + cycle * int(80 / cycle))
    assert max(caller.wait for caller in storm.callers.values()) <= 1.5
    late = [c for c in storm.waited(WITHIN + 0.5) if c.offered >= DEATH + 2 * WITHIN]
    assert late == []


@pytest.mark.parametrize("interleave", [False, True], ids=["blocks", "mixed"])
def test_two_that_die_together_cost_nobody_two_time_limits(interleave: bool) -> None:
    script = {name: [(DEATH, 1e9, DEAD)] for name in "bc"}
    storm = Storm(um_site(interleave=interleave), script, rate=12.0).run(100.0)
    assert storm.lost() == []
    assert max(caller.wait for caller in storm.callers.values()) <= 1.5


def test_in_a_linear_pack_the_order_is_the_strategy() -> None:
    """The next in order takes what the dead one had, as it would have if that had been full."""
    storm = Storm(um_site(Strategy.LINEAR), {"a": [(DEATH, 1e9, DEAD)]}).run(100.0)
    shares = storm.shares(60.0, 90.0)
    assert shares["a"] == 0
    assert shares["b"] > 250
    assert shares["c"] > 250
    assert shares["d"] < 30


@both
@pytest.mark.parametrize("strategy", Strategy)
@pytest.mark.parametrize("seed", range(2))
def test_by_chance(seed: int, strategy: Strategy, hints: bool) -> None:
    name = victim(strategy)
    script = {name: [(DEATH, WELL_AGAIN, DEAD)]}
    storm = Storm(um_site(strategy), script, hints=hints, seed=seed, rate=15.0).run(END)
    assert storm.lost() == []
    assert len(storm.waited(WITHIN)) <= (3 if hints else 40)
    assert storm.waited(1.5) == []
    assert storm.state(name) is UP


# -- all of them ------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("strategy", Strategy)
@pytest.mark.parametrize("far", [DEAD, SAYS_503], ids=["dead", "503"])
@pytest.mark.parametrize("lasts", [10.0, 300.0])
def test_all_die_and_come_back(lasts: float, far: Far, strategy: Strategy, hints: bool) -> None:
    back = DEATH + lasts
    script = {name: [(DEATH, back, far)] for name in "abcd"}
    storm = Storm(um_site(strategy), script, hints=hints).run(back + 120.0)
    lost = storm.lost()
    assert all(caller.cause == 34 for caller in lost)
    assert all(caller.wait <= 4 * (WITHIN + LATE + ANSWER) for caller in lost), "bounded"
    assert len(lost) >= 0.9 * RATE * (lasts - 5)
    assert storm.lost(since=back + POLICY.suspect_rest + 5.0) == []
    for name in "abcd":
        if storm.state(name) not in (UP, SLOW_START):
            timer = storm.distributor.health[TrunkId(name)].timer
            assert timer <= back + POLICY.eject_cap * (1 + POLICY.jitter), "not needed till then"


@both
@pytest.mark.parametrize("alive", "abcd")
def test_the_one_that_returns_is_found_soon(alive: str, hints: bool) -> None:
    """Whichever was kept as the last one: the others are not left alone for minutes."""
    back = DEATH + 200.0
    script = {name: [(DEATH, back if name == alive else 1e9, DEAD)] for name in "abcd"}
    world = um_site()
    storm = Storm(world, script, hints=hints, rate=4.0).run(back + 100.0)
    assert storm.lost(since=back + POLICY.suspect_rest + 2.0) == []
    assert storm.shares(back + 20.0, back + 80.0) == {alive: 240}


def test_never_all_are_ejected() -> None:
    script = {name: [(DEATH, 1e9, SAYS_503)] for name in "abcd"}
    storm = Storm(um_site(), script)
    usable: list[int] = []
    storm.watch = lambda now: usable.append(
        sum(storm.state(name) is not EJECTED for name in "abcd")
    )
    storm.run(100.0)
    assert min(usable) >= 1
    assert any(count < 4 for count in usable)


@both
def test_a_shift_common_to_all_loses_nobody_and_ejects_nobody(hints: bool) -> None:
    """The servers share one host, and that is slow for a while."""
    script = {name: [(DEATH, WELL_AGAIN, SLOW)] for name in "abcd"}
    storm = Storm(um_site(), script, hints=hints).run(END)
    assert storm.lost() == []
    assert [change for change in storm.changes if change.after is EJECTED] == []
    assert storm.waited(1.5) == []


def test_callers_who_are_all_turned_away_do_not_take_the_pack_down() -> None:
    script = {name: [(DEATH, WELL_AGAIN, BUSY)] for name in "abcd"}
    storm = Storm(um_site(interleave=True), script)
    usable: list[int] = []
    storm.watch = lambda now: usable.append(
        sum(storm.state(name) is not EJECTED for name in "abcd")
    )
    storm.run(END)
    assert min(usable) >= 3
    assert storm.lost(since=WELL_AGAIN) == []
    assert all(caller.cause == 17 for caller in storm.lost())


# -- with people and boards -------------------------------------------------------------------


def test_with_drains_the_last_usable_trunk_stays() -> None:
    storm = Storm(um_site(), {"c": [(DEATH, DEATH + 20.0, SAYS_503)]}, rate=5.0)
    drains = [Drain(name, "anna", "", 0.0, 60.0) for name in "abd"]
    for drain in drains:
        storm.at(DEATH - 1.0, lambda now, drain=drain: storm.distributor.drain(drain))  # type: ignore[misc]
    storm.run(100.0)
    assert EJECTED not in [state for _, state in storm.moves("c")]
    assert storm.lost(since=DEATH + 20.0) == []
    assert {caller.cause for caller in storm.lost()} == {34}


def test_an_ejected_trunk_is_taken_back_when_the_others_are_drained() -> None:
    storm = Storm(um_site(interleave=True), {"c": [(DEATH, DEATH + 40.0, SAYS_503)]}, rate=5.0)

    def drain(now: float) -> None:
        assert storm.state("c") is EJECTED
        for name in "abd":
            storm.distributor.drain(Drain(name, "anna", "", now))

    storm.at(DEATH + 50.0, drain)
    storm.run(100.0)
    assert storm.lost() == []


def test_an_ejected_trunk_is_taken_back_when_the_others_go_into_alarm() -> None:
    storm = Storm(um_site(interleave=True), {"c": [(DEATH, DEATH + 40.0, SAYS_503)]}, rate=5.0)

    def alarm(now: float) -> None:
        assert storm.state("c") is EJECTED
        for name in "abd":
            storm.distributor.alarm_raised(TrunkId(name), AlarmKind.RED, now)

    storm.at(DEATH + 50.0, alarm)
    storm.run(100.0)
    assert storm.lost() == []
    assert {storm.state(name) for name in "abd"} == {HealthState.ALARMED}


# -- packs that share -------------------------------------------------------------------------


def shared_site() -> Site:
    a, b, c, d = servers()
    return site(
        [a, b, c, d],
        [
            plan("um", all_of(a, b), Strategy.CYCLIC, answer_within=WITHIN),
            plan("fax", all_of(b, c), Strategy.CYCLIC, answer_within=WITHIN),
        ],
        [route("1*", "um"), route("2*", "fax")],
    )


@both
def test_two_packs_share_a_trunk_that_dies(hints: bool) -> None:
    script = {"b": [(DEATH, WELL_AGAIN, DEAD)]}
    storm = Storm(shared_site(), script, hints=hints, rate=8.0, called=("100", "200")).run(END)
    assert storm.lost() == []
    assert len(storm.waited(WITHIN)) <= (3 if hints else 9)
    assert storm.state("b") is UP
    shares = storm.shares(60.0, 90.0)
    assert shares == {"a": 120, "c": 120}


def test_a_trunk_that_is_the_last_of_one_pack_is_kept_for_both() -> None:
    script = {name: [(DEATH, WELL_AGAIN, SAYS_503)] for name in "ab"}
    storm = Storm(shared_site(), script, rate=8.0, called=("100", "200")).run(END)
    both_out = [
        (first, second)
        for first, second in pairwise(storm.changes)
        if first.after is EJECTED is second.after
    ]
    assert both_out == []
    assert all(caller.cause == 34 for caller in storm.lost())
    assert storm.lost(since=WELL_AGAIN + POLICY.suspect_rest + 2.0) == []


@both
def test_a_pack_that_is_dead_as_a_whole_gives_its_calls_to_the_overflow_at_once(
    hints: bool,
) -> None:
    a, b, c, d = servers()
    world = site(
        [a, b, c, d],
        [
            plan("um", all_of(a, b), overflow=["spare"], answer_within=WITHIN),
            plan("spare", all_of(c, d), Strategy.CYCLIC, answer_within=WITHIN),
        ],
    )
    script = {name: [(DEATH, WELL_AGAIN, DEAD)] for name in "ab"}
    storm = Storm(world, script, hints=hints, rate=8.0).run(END)
    assert storm.lost() == []
    slow = [c for c in storm.waited(0.1) if c.offered > DEATH + 3.0]
    assert len(slow) <= 20, "trials only"
    assert storm.waited(2 * WITHIN + 0.2) == []
    shares = storm.shares(60.0, 90.0)
    assert shares["c"] + shares["d"] == 240
    assert storm.shares(END - 30.0, END - 1.0)["a"] > 200


# -- alarms nobody can see --------------------------------------------------------------------


def test_alarms_that_stand_when_the_link_is_lost_do_not_close_the_pack_for_ever() -> None:
    """Both servers are back, but neither an event nor a poll will ever say so."""
    storm = Storm(um_site(names="ab"), {}, rate=5.0)

    def gone(now: float) -> None:
        for name in "ab":
            storm.distributor.alarm_raised(TrunkId(name), AlarmKind.UNREACHABLE, now)

    def link_lost(now: float) -> None:
        storm.distributor.hear(MAIN, now, hints=False)
        storm.distributor.see(MAIN, now, linked=False)

    storm.at(DEATH, gone)
    storm.at(DEATH + 10.0, link_lost)
    storm.run(200.0)
    doubted = DEATH + 10.0 + POLICY.alarm_unseen
    assert storm.lost(until=DEATH) == []
    assert len(storm.lost(DEATH, doubted)) == pytest.approx(5.0 * (doubted - DEATH), abs=1)
    assert storm.lost(since=doubted) == [], "looked at with the call, not a tick later"
    assert {storm.state(name) for name in "ab"} == {UP}


def test_an_alarm_that_was_right_costs_a_few_calls_a_second_try() -> None:
    script = {"b": [(DEATH, 1e9, SAYS_503)]}
    storm = Storm(um_site(), script, hints=False)
    b = TrunkId("b")
    storm.at(DEATH, lambda now: storm.distributor.alarm_raised(b, AlarmKind.UNREACHABLE, now))
    storm.at(DEATH, lambda now: storm.distributor.see(MAIN, now, linked=False))
    storm.run(200.0)
    assert storm.lost() == []
    assert EJECTED in [state for _, state in storm.moves("b")]
    met = [caller for caller in storm.callers.values() if "b" in caller.trunks]
    assert sum(caller.offered >= DEATH for caller in met) <= 8, "of 3400"
