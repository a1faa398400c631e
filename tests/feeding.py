"""Feed a sans-I/O parser the same bytes three ways, which must make no difference.

A parser that is right for whole messages may still be wrong at the seams: TCP keeps none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from umpack.core.errors import ProtocolFault

Event = TypeVar("Event")
Feed = Callable[[bytes], Iterable[Event]]


def feed_three_ways(
    start: Callable[[], Feed[Event]], data: bytes, trailing: bytes = b""
) -> list[Event]:
    """The events of `data`: whole, byte by byte, and with the beginning of something behind it.

    `start` makes a fresh parser and gives its feed function; `trailing` must complete nothing. If
    it is a fault whole, it must be one byte by byte, too, and is raised here.
    """
    try:
        whole = list(start()(data))
    except ProtocolFault as fault:
        _must_fault(start(), data)
        raise fault
    feed = start()
    bytewise = [event for byte in data for event in feed(bytes([byte]))]
    assert bytewise == whole, "byte by byte is not as whole"
    if trailing:
        assert list(start()(data + trailing)) == whole, "trailing bytes change what was before"
    return whole


def _must_fault(feed: Feed[Event], data: bytes) -> None:
    try:
        for byte in data:
            feed(bytes([byte]))
    except ProtocolFault:
        return
    raise AssertionError("a fault when fed whole, but none byte by byte")
