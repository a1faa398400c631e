from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umpack.core.idle import IdleSet, joined, mask_of, shared, without

relaxed = settings(deadline=None)
EDGES = [0, 1, 2, 255, 256, 257, 511, 512, 513, 65_535, 65_536, 65_537, 70_000]


def filled(size: int, positions: set[int]) -> IdleSet:
    idle = IdleSet(size)
    for position in positions:
        idle.add(position)
    return idle


@st.composite
def sets(draw: st.DrawFn) -> tuple[int, set[int]]:
    size = draw(st.sampled_from([1, 2, 30, 255, 256, 257, 600, 70_001]))
    near_edges = st.sampled_from([edge for edge in EDGES if edge < size])
    return size, draw(st.sets(near_edges | st.integers(0, size - 1), max_size=40))


@relaxed
@given(sets(), st.data())
def test_behaves_as_a_sorted_set(sized: tuple[int, set[int]], data: st.DataObject) -> None:
    size, model = sized
    idle = filled(size, model)
    for position in data.draw(st.lists(st.integers(0, size - 1), max_size=20)):
        if data.draw(st.booleans()):
            idle.add(position)
            model.add(position)
        else:
            idle.discard(position)
            model.discard(position)
    assert len(idle) == len(model)
    assert bool(idle) is bool(model)
    assert idle.first() == min(model, default=-1)
    start = data.draw(st.integers(0, size) | st.sampled_from([e for e in EDGES if e <= size]))
    assert idle.first_from(start) == min((p for p in model if p >= start), default=-1)
    assert list(idle) == sorted(model)
    masked = data.draw(st.sets(st.sampled_from(sorted(model)))) if model else set()
    other = data.draw(st.sets(st.integers(0, size - 1), max_size=10))
    mask = without(joined([mask_of(size, masked), mask_of(size, other)]), other - masked)
    assert shared(mask, mask_of(size, model)) == mask_of(size, masked)
    assert idle.first_of(mask, start) == min((p for p in masked if p >= start), default=-1)
    assert [p for p in range(min(size, 600)) if p in idle] == sorted(p for p in model if p < 600)


@pytest.mark.parametrize("position", EDGES)
def test_one_position_is_found_from_both_sides(position: int) -> None:
    idle = filled(70_001, {position})
    assert idle.first() == position
    assert idle.first_from(position) == position
    assert idle.first_from(0) == position
    assert idle.first_from(position + 1) == -1
    idle.discard(position)
    assert not idle
    assert idle.first() == idle.first_from(0) == -1


def test_a_start_beyond_the_end_finds_nothing() -> None:
    idle = filled(256, {0, 255})
    assert idle.first_from(256) == -1
    assert idle.first_from(10_000) == -1
    assert idle.first_of(mask_of(256, [0, 255]), 256) == -1
    assert idle.first_of(mask_of(256, [0, 255]), 10_000) == -1
    assert list(idle) == [0, 255]


def test_adding_and_discarding_twice_is_harmless() -> None:
    idle = IdleSet(3)
    idle.add(1)
    idle.add(1)
    assert len(idle) == 1
    idle.discard(1)
    idle.discard(1)
    idle.discard(2)
    assert len(idle) == 0
    assert not idle


def test_the_set_of_an_empty_pack_is_empty() -> None:
    idle = IdleSet(0)
    assert idle.first() == idle.first_from(0) == -1
    assert list(idle) == []


def test_repr_is_a_status_line() -> None:
    assert repr(filled(30, {0, 29})) == "<2 of 30 idle>"
