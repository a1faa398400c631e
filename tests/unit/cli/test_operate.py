from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umpack.cli.operate import moment
from umpack.core.errors import OurFault


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A place with summer time; the clock of the process, no code of ours."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(
    ("text", "now", "end"),
    [
        ("90s", "2026-12-24T18:00", "2026-12-24T18:01:30"),
        ("30m", "2026-12-24T18:00", "2026-12-24T18:30"),
        ("2h", "2026-12-24T23:00", "2026-12-25T01:00"),
        ("1d", "2026-12-24T18:00", "2026-12-25T18:00"),
        ("18:30", "2026-12-24T18:00", "2026-12-24T18:30"),
        ("18:00", "2026-12-24T18:00", "2026-12-25T18:00"),
        ("8:05", "2026-12-31T18:00", "2027-01-01T08:05"),
        # The night summer time ends has 25 hours, the one it begins 23.
        ("18:00", "2026-10-24T19:00", "2026-10-25T18:00"),
        ("18:00", "2026-03-28T19:00", "2026-03-29T18:00"),
        ("2026-12-24T18:00", "2026-12-01T00:00", "2026-12-24T18:00"),
        ("2026-12-24", "2026-12-01T00:00", "2026-12-24T00:00"),
        ("2026-12-24T18:00+00:00", "2026-12-01T00:00", "2026-12-24T19:00"),
        ("2026-07-01T12:00", "2026-01-01T00:00", "2026-07-01T12:00+02:00"),
    ],
)
def test_moments(text: str, now: str, end: str) -> None:
    assert moment(text, at(now)) == at(end)


@pytest.mark.parametrize(
    "text",
    ["", "soon", "30", "m", "-5m", "1.5h", "25:00", "12:60", "²m", "1:2", "2026-13-01", "\x1b"],
)
def test_no_moments(text: str) -> None:
    with pytest.raises(OurFault, match="is no time: write 30m, 2h, 18:30 or 2026-12-24T18:00"):
        moment(text, at("2026-12-24T18:00"))


def test_what_has_passed() -> None:
    with pytest.raises(OurFault, match="'2026-12-24T17:59' has passed"):
        moment("2026-12-24T17:59", at("2026-12-24T18:00"))


@given(st.text(max_size=30) | st.from_regex(r"[0-9:smhdTZ+.-]{1,20}"))
def test_any_text_is_a_moment_to_come_or_an_error(text: str) -> None:
    now = 1_800_000_000.0
    with contextlib.suppress(OurFault):
        assert moment(text, now) >= now
