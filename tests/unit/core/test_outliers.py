"""A trunk against its own past: black holes are found, and chance is not."""

from __future__ import annotations

from random import Random

import pytest

from umpack.core.health_policy import HealthPolicy
from umpack.core.outliers import WINDOW, Ratio

POLICY = HealthPolicy()


def with_past(share: float, calls: int = 20 * WINDOW, seed: int = 1) -> Ratio:
    """A trunk of whose calls `share` came out badly."""
    ratio, dice = Ratio("unanswered", POLICY), Random(seed)
    for _ in range(calls):
        if dice.random() < share:
            ratio.bad()
        else:
            ratio.good()
    return ratio


def until_outlying(ratio: Ratio, most: int = 200) -> int:
    """Bad calls it takes."""
    for n in range(1, most + 1):
        if ratio.bad():
            return n
    return most + 1


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.3, 0.5])
def test_a_black_hole_is_found_within_a_window(share: float) -> None:
    assert until_outlying(with_past(share)) <= WINDOW


def test_a_perfect_trunk_is_suspected_after_a_third_of_a_window() -> None:
    assert 10 <= until_outlying(with_past(0.0)) <= 12


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2, 0.5, 0.8])
def test_chance_is_not_taken_for_a_fault(share: float) -> None:
    """At most once in 64,000 calls; the policy promises five times better."""
    onsets = 0
    for seed in range(4):
        ratio, dice, before = Ratio("unanswered", POLICY), Random(seed), False
        for _ in range(500 * WINDOW):
            if dice.random() < share:
                ratio.bad()
            else:
                ratio.good()
            onsets += ratio.outlying and not before
            before = ratio.outlying
    assert onsets <= 1


def test_nothing_is_judged_without_a_past_or_a_sample() -> None:
    new = Ratio("unanswered", POLICY)
    assert until_outlying(new) == 201, "bad from the first day is its normal"
    ratio = with_past(0.0)
    ratio.forget_recent()
    assert until_outlying(ratio) == POLICY.outlier_sample


def test_good_calls_end_it() -> None:
    ratio = with_past(0.0)
    until_outlying(ratio)
    for _ in range(WINDOW):
        ratio.good()
    assert not ratio.outlying
    assert ratio.recent == (0, WINDOW)


def test_a_lasting_change_becomes_normal_after_about_ten_windows() -> None:
    ratio = with_past(0.0)
    windows = 0
    while not ratio.outlying or windows < 1:
        for _ in range(WINDOW):
            ratio.bad()
        windows += 1
    while ratio.outlying:
        for _ in range(WINDOW):
            ratio.bad()
        windows += 1
    assert 8 <= windows <= 12


def test_a_bad_past_tells_nothing() -> None:
    """From seven in ten on no window can be told from chance, so none is."""
    assert until_outlying(with_past(0.8), WINDOW) > WINDOW


def test_it_says_what_is_wrong() -> None:
    ratio = with_past(0.0)
    until_outlying(ratio)
    bad, _ = ratio.recent
    assert ratio.words == f"unlike its past, {bad} of 32 calls unanswered, normally 0%"
    assert repr(ratio).endswith(", outlying>")


def test_other_numbers_are_taken_on() -> None:
    ratio = with_past(0.0)
    ratio.adjust(HealthPolicy(outlier_distance=0.9))
    assert until_outlying(ratio) >= 0.9 * WINDOW


@pytest.mark.parametrize("fresh", [False, True])
def test_a_black_hole_is_seen_after_10_to_32_calls_or_it_has_always_been_one(
    *, fresh: bool
) -> None:
    """README's figures, for every past there is: bad calls spread evenly over it."""
    counts: dict[float, int] = {}
    for bad in range(WINDOW + 1):
        ratio = Ratio("unanswered", HealthPolicy())
        for n in range(60 * WINDOW):
            if n * bad // WINDOW != (n + 1) * bad // WINDOW:
                ratio.bad()
            else:
                ratio.good()
        if fresh:
            ratio.forget_recent()
        counts[bad / WINDOW] = until_outlying(ratio, 2 * WINDOW)
    found = [n for past, n in counts.items() if past <= 0.6]
    assert all(10 <= n <= WINDOW for n in found), counts
    assert min(found) == (HealthPolicy().outlier_sample if fresh else 10)
    assert all(n > WINDOW for past, n in counts.items() if past > 0.62)
