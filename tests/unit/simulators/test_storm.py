from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.plot import check_plot, plot
from simulators.storm import (
    BATCHES,
    Batch,
    ChannelLoad,
    Comparison,
    StormReport,
    Tally,
    compare,
    expected,
    hunted,
    only,
    virtual_storm,
)
from simulators.traffic import Exponential, Fixed, Poisson, Regular, Traffic
from tests.sites import all_of, one_pack, plan, site, trunk
from umpack.core import traffic
from umpack.core.channel import ChannelId
from umpack.core.errors import OurFault
from umpack.core.pack import PackId, Strategy
from umpack.core.site import Site

UM, SPARE = PackId("um"), PackId("spare")
A1, A2 = ChannelId("a:1"), ChannelId("a:2")
LINEAR, CYCLIC = Strategy.LINEAR, Strategy.CYCLIC


def two_packs(first: Strategy = LINEAR, second: Strategy = LINEAR) -> Site:
    a, b = trunk("a", 3), trunk("b", 2)
    return site(
        [a, b],
        [plan("um", all_of(a), first, overflow=["spare"]), plan("spare", all_of(b), second)],
    )


def random_calls(erlangs: float, count: int, seed: int = 1) -> Traffic:
    return Traffic(Poisson.of(erlangs, 1.0), Exponential(1.0), seed=seed, count=count)


def timeless(report: StormReport) -> StormReport:
    return dataclasses.replace(report, calls_per_second=0.0)


# -- storms ---------------------------------------------------------------------------------


def test_a_storm_by_hand() -> None:
    # A call a second for 2.5 s each, on two channels: of every three calls the third is lost.
    report = virtual_storm(
        one_pack(trunk("a", 2)), UM, Traffic(Regular(1.0), Fixed(2.5), seed=9, count=9)
    )
    assert (report.offered, report.carried, report.blocked) == (9, 6, 3)
    assert report.blocking == pytest.approx(1 / 3)
    # Channel 1 is busy from 1, 4 and 7 on, channel 2 from 2, 5 and 8; the storm ends at 9.
    assert report.seconds == 9.0
    assert report.channels == (
        ChannelLoad(A1, 1, 3, (2.5 + 2.5 + 2.0) / 9),
        ChannelLoad(A2, 2, 3, (2.5 + 2.5 + 1.0) / 9),
    )
    assert report.erlangs_carried == pytest.approx(13 / 9)
    # Lost calls want theirs, too: at 3, 6 and 9.
    assert report.erlangs_offered == pytest.approx((13 + 2.5 + 2.5) / 9)
    assert report.seed == 9
    assert report.calls_per_second > 0


def test_warm_up_loads_channels_but_is_not_counted() -> None:
    report = virtual_storm(
        one_pack(trunk("a", 2)),
        UM,
        Traffic(Regular(1.0), Fixed(2.5), count=9),
        warm_up=4.5,
    )
    # Counted: calls at 5, 6 (lost), 7, 8, 9 (lost), over 4.5 s. The call of 4 holds a:1 to 6.5.
    assert (report.offered, report.carried, report.blocked) == (5, 3, 2)
    assert report.seconds == 4.5
    assert [load.calls for load in report.channels] == [1, 2]
    assert [load.erlangs for load in report.channels] == pytest.approx([4.0 / 4.5, 3.5 / 4.5])


@pytest.mark.parametrize("strategy", Strategy)
def test_same_seed_same_storm(strategy: Strategy) -> None:
    one = one_pack(trunk("a", 4), strategy=strategy)
    first, again, other = (
        timeless(virtual_storm(one, UM, random_calls(3.0, 2000, seed))) for seed in (5, 5, 6)
    )
    assert first == again
    assert first.channels != other.channels


@settings(deadline=None, max_examples=40)
@given(
    erlangs=st.floats(0.1, 30),
    count=st.integers(1, 400),
    seed=st.integers(0, 5),
    warm_up=st.floats(0, 2),
    first=st.sampled_from(Strategy),
    second=st.sampled_from(Strategy),
)
def test_nothing_gets_lost_in_the_sums(
    erlangs: float, count: int, seed: int, warm_up: float, first: Strategy, second: Strategy
) -> None:
    try:
        report = virtual_storm(
            two_packs(first, second), UM, random_calls(erlangs, count, seed), warm_up=warm_up
        )
    except OurFault:
        assert warm_up > 0  # all calls came before its end
        return
    assert report.offered == report.carried + report.blocked <= count
    assert report.carried == sum(load.calls for load in report.channels)
    assert report.erlangs_carried == pytest.approx(sum(load.erlangs for load in report.channels))
    assert report.erlangs_carried <= report.erlangs_offered + 1e-9
    assert all(-1e-9 <= load.erlangs <= 1 + 1e-9 for load in report.channels)
    assert [load.position for load in report.channels] == [1, 2, 3, 4, 5]
    for batch in report.batches:
        assert all(-1e-9 <= load <= 1 + 1e-9 for load in batch.loads)


def test_overflow_packs_come_behind_their_pack() -> None:
    report = virtual_storm(two_packs(), UM, random_calls(4.0, 500))
    assert [load.id for load in report.channels] == ["a:1", "a:2", "a:3", "b:1", "b:2"]
    assert all(load.calls for load in report.channels)


def test_only_the_pack_asked_for_gets_calls() -> None:
    report = virtual_storm(two_packs(), SPARE, random_calls(4.0, 500))
    assert [load.id for load in report.channels] == ["b:1", "b:2"]
    assert report.carried == sum(load.calls for load in report.channels)


def test_unknown_pack_names_those_there_are() -> None:
    for ask in only, expected:
        with pytest.raises(OurFault, match=r"no pack 'umm'; there are: um, spare"):
            ask(two_packs(), PackId("umm"), *([1.0] if ask is expected else []))


def test_progress_is_told_now_and_then_and_at_the_end() -> None:
    told: list[int] = []
    virtual_storm(one_pack(trunk("a", 2)), UM, random_calls(1.0, 10_000), told.append)
    assert told == [4096, 8192, 10_000]


def test_storm_without_calls() -> None:
    report = virtual_storm(one_pack(trunk("a", 2)), UM, random_calls(1.0, 0))
    assert (report.offered, report.blocking, report.erlangs_offered) == (0, 0.0, 0.0)
    assert report.batches == ()


@pytest.mark.parametrize("warm_up", [-1.0, math.inf, math.nan])
def test_senseless_warm_up(warm_up: float) -> None:
    with pytest.raises(OurFault, match="warm-up must be"):
        virtual_storm(one_pack(trunk("a", 2)), UM, random_calls(1.0, 5), warm_up=warm_up)


def test_warm_up_that_takes_all_calls() -> None:
    with pytest.raises(OurFault, match="all 50 calls came within the warm-up"):
        virtual_storm(one_pack(trunk("a", 2)), UM, random_calls(1.0, 50), warm_up=1e6)


def test_traffic_that_never_comes() -> None:
    stream = Traffic(Poisson(5e-324), Fixed(1.0), count=10)
    with pytest.raises(OurFault, match="would never come"):
        virtual_storm(one_pack(trunk("a", 2)), UM, stream)


# -- the tally ------------------------------------------------------------------------------


def test_batches_are_stretches_of_equal_length() -> None:
    tally = Tally([A1, A2], batch=10.0)
    tally.add(1.0, 4.0, A1)
    tally.add(8.0, 5.0, A2)  # two seconds of it in the first batch, three in the second
    tally.add(9.0, 100.0, None)
    tally.add(12.0, 4.0, A1)
    tally.add(31.0, 1.0, A1)
    report = tally.report(7, 35.0, 2.0)
    assert report.batches == (
        Batch(3, 1 / 3, 0.7, (0.4, 0.2)),
        Batch(1, 0.0, 1.7, (0.4, 0.3)),
        Batch(0, 0.0, 1.0, (0.0, 0.0)),
    )
    assert report.calls_per_second == 2.5
    assert report.seed == 7


def test_batches_are_joined_when_there_are_many() -> None:
    tally, seen = Tally([A1], batch=1.0), set()
    for second in range(1, 1000):
        tally.add(float(second), 0.5, A1)
        report = tally.report(0, float(second), 1.0)
        seen.add(len(report.batches))
        if second >= BATCHES:
            assert BATCHES <= len(report.batches) < 2 * BATCHES
        # Every batch but the first, which nothing comes at 0 in, is half full.
        assert all(batch.loads == (0.5,) for batch in report.batches[1:])
    assert seen == set(range(1, 2 * BATCHES))


def test_tally_agrees_with_adding_up_by_hand() -> None:
    chance = Random(3)
    rows, now = [], 0.0
    tally = Tally([A1, A2], since=50.0, batch=3.0)
    for _ in range(6000):
        now += chance.expovariate(1.0)
        rows.append((now, chance.expovariate(0.1), chance.choice([A1, A2, None])))
        tally.add(*rows[-1])
    report = tally.report(0, now, 1.0)
    counted = [row for row in rows if row[0] >= 50.0]
    assert report.offered == len(counted)
    assert report.blocked == sum(channel is None for _, _, channel in counted)

    def inside(begin: float, end: float, channel: ChannelId) -> float:
        return math.fsum(
            max(0.0, min(at + hold, end) - max(at, begin))
            for at, hold, where in rows
            if where == channel
        ) / (end - begin)

    for channel in report.channels:
        assert channel.erlangs == pytest.approx(inside(50.0, now, channel.id))
    width = 3.0 * 2 ** round(math.log2((now - 50) / len(report.batches) / 3.0))
    for number, batch in enumerate(report.batches):
        begin = 50.0 + number * width
        for load, id_ in zip(batch.loads, (A1, A2), strict=True):
            assert load == pytest.approx(inside(begin, begin + width, id_))


def test_tally_does_not_grow_with_the_calls() -> None:
    tally = Tally([A1], batch=1.0)
    most = 0
    for number in range(60_000):
        tally.add(number * 0.1, 0.05, A1)
        most = max(most, len(tally._open))
    assert most < 10_000


# -- theory ---------------------------------------------------------------------------------


def test_expected_of_one_pack_is_the_textbook() -> None:
    linear = expected(one_pack(trunk("a", 6)), UM, 4.0)
    assert linear.loads == pytest.approx(traffic.linear_loads(6, 4.0))
    assert linear.blocking == traffic.blocking(6, 4.0)
    assert linear.carried == pytest.approx(sum(linear.loads))
    cyclic = expected(one_pack(trunk("a", 6), strategy=CYCLIC), UM, 4.0)
    assert cyclic.loads == pytest.approx([traffic.cyclic_load(6, 4.0)] * 6)


@pytest.mark.parametrize("first", Strategy)
@pytest.mark.parametrize("second", Strategy)
def test_expected_of_overflow_is_what_a_storm_shows(first: Strategy, second: Strategy) -> None:
    packs = two_packs(first, second)
    expectation = expected(packs, UM, 3.5)
    assert sum(expectation.loads) == pytest.approx(expectation.carried)
    report = virtual_storm(packs, UM, random_calls(3.5, 20_000, 2), warm_up=10.0)
    both = compare(report, expectation, exponential=True, confidence=0.999)
    assert both.blocking.holds
    assert all(load.holds for load in both.loads)


def test_channels_of_several_packs_are_expected_in_the_first() -> None:
    a = trunk("a", 4)
    shared = site(
        [a],
        [
            plan("um", ["a:1", "a:2"], CYCLIC, overflow=["spare"]),
            plan("spare", ["a:4", "a:2", "a:1", "a:3"], CYCLIC, overflow=["last"]),
            plan("last", ["a:1"], CYCLIC),
        ],
    )
    assert hunted(shared, UM) == ("a:1", "a:2", "a:4", "a:3")
    expectation = expected(shared, UM, 3.0)
    assert expectation.blocking == traffic.blocking(4, 3.0)
    report = virtual_storm(shared, UM, random_calls(3.0, 20_000), warm_up=10.0)
    both = compare(report, expectation, exponential=True, confidence=0.999)
    assert all(load.holds for load in both.loads)


def test_short_storms_have_no_intervals_and_long_ones_do() -> None:
    one = one_pack(trunk("a", 3))
    expectation = expected(one, UM, 2.0)
    short = compare(virtual_storm(one, UM, random_calls(2.0, 20)), expectation, exponential=False)
    for each in (short.blocking, short.offered, short.carried, *short.loads):
        assert each.interval is None
        assert each.holds is None
    report = virtual_storm(one, UM, random_calls(2.0, 4000))
    long = compare(report, expectation, exponential=False, confidence=0.999)
    for each in (long.blocking, long.offered, long.carried, *long.loads):
        assert each.holds


def test_comparison_says_when_theory_does_not_hold() -> None:
    assert Comparison(0.5, 0.4, traffic.Interval(0.45, 0.5, 0.55)).holds is False
    one = one_pack(trunk("a", 3))
    report = virtual_storm(one, UM, random_calls(2.0, 4000))
    wrong = compare(report, expected(one, UM, 4.0), exponential=True)
    assert not wrong.blocking.holds
    assert not wrong.offered.holds
    assert not all(load.holds for load in wrong.loads)


# -- pictures -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, 200])
@pytest.mark.parametrize(
    ("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")]
)
def test_plot_draws(tmp_path: Path, size: int, suffix: str, magic: bytes) -> None:
    pytest.importorskip("matplotlib")
    one = one_pack(trunk("a", size))
    report = virtual_storm(one, UM, random_calls(size * 0.8, 400))
    target = tmp_path / f"storm{suffix}"
    plot(target, UM, report, compare(report, expected(one, UM, size * 0.8), exponential=False))
    content = target.read_bytes()
    assert content.startswith(magic)
    assert len(content) > 5000


def test_plot_says_beforehand_what_will_not_do(tmp_path: Path) -> None:
    with pytest.raises(OurFault, match=r"must end in \.png, \.svg, \.pdf"):
        check_plot(tmp_path / "storm.txt")
    with pytest.raises(OurFault, match="no directory"):
        check_plot(tmp_path / "absent" / "storm.png")


def test_plot_that_cannot_be_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    one = one_pack(trunk("a", 2))
    report = virtual_storm(one, UM, random_calls(1.0, 100))
    taken = tmp_path / "storm.png"
    taken.mkdir()
    with pytest.raises(OurFault, match="cannot write"):
        plot(taken, UM, report, compare(report, expected(one, UM, 1.0), exponential=True))


def test_plot_without_matplotlib_names_the_extra(tmp_path: Path) -> None:
    # In a process of its own, where importing it fails as if it were not installed.
    program = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from pathlib import Path\n"
        "from simulators.plot import check_plot\n"
        "check_plot(Path(sys.argv[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "storm.png")],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == 1
    assert "pip install 'umpack[plot]'" in done.stderr
