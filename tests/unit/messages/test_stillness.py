from __future__ import annotations

from umpack.messages.stillness import Stillness

NOW = 1_700_000_000.0


class Clocks:
    """The program's time, and the wall clock that somebody sets."""

    def __init__(self) -> None:
        self.passed, self.set_by = 0.0, 0.0
        self.stillness = Stillness(60.0, lambda: NOW + self.passed, self.wall)

    def wall(self) -> float:
        return NOW + self.passed + self.set_by

    def holds(self, changed: float, state: object = 1) -> bool:
        return self.stillness.reached("file", state, changed)


def test_what_was_left_long_ago_is_still_at_once() -> None:
    clocks = Clocks()
    assert clocks.holds(NOW - 61)
    assert not clocks.holds(NOW - 59)
    clocks.passed = 2.0
    assert clocks.holds(NOW - 59)


def test_a_clock_that_was_put_back_makes_nothing_old() -> None:
    clocks = Clocks()
    clocks.set_by = -3600.0
    # Written just now, by a clock that is an hour behind the program's.
    assert not clocks.holds(clocks.wall())
    clocks.passed = 59.0
    assert not clocks.holds(clocks.wall() - 59)
    clocks.passed = 61.0
    assert clocks.holds(clocks.wall() - 61)


def test_a_change_ahead_of_the_clock_is_watched() -> None:
    clocks = Clocks()  # put back before this process began
    assert not clocks.holds(NOW + 3600)
    clocks.passed = 30.0
    assert not clocks.holds(NOW + 3630, state=2)
    clocks.passed = 89.0
    assert not clocks.holds(NOW + 3630, state=2)
    clocks.passed = 91.0
    assert clocks.holds(NOW + 3630, state=2)


def test_what_is_gone_is_forgotten() -> None:
    clocks = Clocks()
    assert not clocks.holds(NOW + 3600)
    clocks.passed = 61.0
    clocks.stillness.forget_but(set())
    assert not clocks.holds(NOW + 3600)
