from __future__ import annotations

import pytest

from tests.unit.daemons import logged
from umpack.core.health_states import TRANSITIONS, HealthChange, HealthEvent, HealthState
from umpack.core.trunk import TrunkId
from umpack.history import History, line_of

UP, SUSPECT, EJECTED = HealthState.UP, HealthState.SUSPECT, HealthState.EJECTED


def changed(
    trunk: str = "um1",
    at: float = 1.0,
    before: HealthState = UP,
    after: HealthState = SUSPECT,
    event: HealthEvent = HealthEvent.BLAMED,
    why: str = "cause 41 temporary failure",
) -> HealthChange:
    return HealthChange(TrunkId(trunk), at, before, after, event, why)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (changed(), "WARNING trunk um1: up → suspect: cause 41 temporary failure\n"),
        (
            changed(before=EJECTED, event=HealthEvent.READMIT, why="um has nothing else left"),
            "WARNING trunk um1: ejected → suspect: um has nothing else left\n",
        ),
        (
            changed(before=SUSPECT, after=UP, event=HealthEvent.SUCCEEDED),
            "INFO trunk um1: suspect → up: call answered\n",
        ),
        (
            changed(before=EJECTED, after=UP, event=HealthEvent.RESTORE, why="restored by eva"),
            "INFO trunk um1: ejected → up: restored by eva\n",
        ),
        (
            changed(after=EJECTED, event=HealthEvent.EJECT, why="by \x1b[2J\n{level}\u202e"),
            "WARNING trunk um1: up → ejected: by \\x1b[2J\\n{level}\\u202e\n",
        ),
    ],
)
def test_one_line_each(change: HealthChange, line: str) -> None:
    with logged() as lines:
        History().take([change])
    assert lines == [line]


@pytest.mark.parametrize("event", HealthEvent)
def test_every_event_has_a_line(event: HealthEvent) -> None:
    for before, after in TRANSITIONS[event].items():
        with logged() as lines:
            History().take([changed(before=before, after=after, event=event, why="")])
        assert (
            lines[0].partition(" ")[2]
            == line_of(changed(before=before, after=after, event=event, why="")) + "\n"
        )
        assert lines[0].endswith(f": {event.value}\n")


def test_the_last_hundred_newest_first() -> None:
    history = History()
    assert list(history.newest()) == []
    all_ = [changed("ab"[n % 2], float(n)) for n in range(150)]
    with logged():
        history.take(all_[:140])
        history.take(all_[140:])
    assert list(history.newest()) == all_[:49:-1]
    assert list(history.newest(3)) == all_[:146:-1]
    assert list(history.newest(2, "a")) == [all_[148], all_[146]]
    assert list(history.newest(2, "c")) == list(history.newest(0)) == []
