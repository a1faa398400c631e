from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umpack.core.errors import ConfigError
from umpack.messages.document import (
    ConversionLimits,
    Flaw,
    FlawKind,
    Page,
    Quality,
    Verdict,
    flaws_of,
)

NUMBERS = st.none() | st.integers(0, 999_999)
FLAWS = st.builds(Flaw, st.sampled_from(FlawKind), NUMBERS, NUMBERS)


def page(number: int = 1, bad: int = 0) -> Page:
    return Page(number, 1728, 1000, 204, 98, bad, 0, f"hash{number}")


@given(st.lists(FLAWS, max_size=6))
def test_flaws_come_back_from_the_record(flaws: list[Flaw]) -> None:
    assert flaws_of("; ".join(map(str, flaws))) == tuple(flaws)


@given(st.text(max_size=80))
def test_other_texts_in_the_record_are_passed_over(text: str) -> None:
    assert all(str(flaw) in text for flaw in flaws_of(text))


@pytest.mark.parametrize(
    ("bad", "quality"),
    [(0, Quality.GOOD), (49, Quality.GOOD), (50, Quality.POOR), (149, Quality.POOR),
     (150, Quality.BAD)],
)  # fmt: skip
def test_quality_has_the_bounds_of_the_engine(bad: int, quality: Quality) -> None:
    assert page(bad=bad).quality is quality


@pytest.mark.parametrize(
    ("engine", "tiff", "pdf", "whole", "missing"),
    [(2, 2, 2, True, 0), (None, 2, 2, True, 0), (4, 2, 2, False, 2), (2, 3, 2, False, 1),
     (2, 2, 1, False, 1), (0, 2, 2, False, 0)],
)  # fmt: skip
def test_all_must_have_counted_the_same(
    engine: int | None, tiff: int, pdf: int, whole: bool, missing: int
) -> None:
    verdict = Verdict(engine, tiff, pdf, tuple(page(n) for n in range(1, 3)))
    assert verdict.whole is whole
    assert verdict.missing == missing


def test_nothing_at_all_is_not_whole() -> None:
    assert not Verdict(0).whole
    assert not Verdict(None).whole


def test_what_looks_bad_is_whole_and_what_is_lost_is_not() -> None:
    looks = (Flaw(FlawKind.BAD_ROWS, 1, 4), Flaw(FlawKind.RESOLUTION, 1), Flaw(FlawKind.CHAIN))
    assert Verdict(1, 1, 1, (page(),), looks).whole
    assert not Verdict(1, 1, 1, (page(),), (Flaw(FlawKind.CUT, 1, 4),)).whole


def test_record_says_what_was_found() -> None:
    flaws = (Flaw(FlawKind.CHAIN), Flaw(FlawKind.BAD_ROWS, 2, 40))
    facts = Verdict(2, 2, 2, (page(1), page(2, 40)), flaws).facts()
    assert (facts.pages_tiff, facts.pages_pdf, facts.bad_rows) == (2, 2, 40)
    assert facts.page_hashes == ("hash1", "hash2")
    assert facts.fault == "page list damaged; page 2: bad rows (40)"


def test_limits_must_be_limits() -> None:
    with pytest.raises(ConfigError):
        ConversionLimits(pages=0)
