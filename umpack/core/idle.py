"""The set of idle positions of a pack: first one, and first one after another, in constant time.

Two levels of bit words: a pack of 30,000 channels is hunted as fast as one of 30, which is what a
burst after a D channel's return needs. Words of 256 bits keep both levels within a few machine
words up to 65,536 positions, and still correct beyond.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

WORD_SHIFT = 8
WORD_MASK = (1 << WORD_SHIFT) - 1

Mask = tuple[int, ...]
"""Positions as words, for `IdleSet.first_of`."""


def mask_of(size: int, positions: Iterable[int]) -> Mask:
    """A mask for a set of `size` positions."""
    words = [0] * ((size >> WORD_SHIFT) + 1)
    for position in positions:
        words[position >> WORD_SHIFT] |= 1 << (position & WORD_MASK)
    return tuple(words)


def has(mask: Mask, position: int) -> bool:
    """Whether a position is in the mask."""
    return bool(mask[position >> WORD_SHIFT] >> (position & WORD_MASK) & 1)


def positions_of(mask: Mask) -> Iterator[int]:
    """The positions of a mask, lowest first."""
    for index, word in enumerate(mask):
        left = word
        while left:
            lowest = left & -left
            yield (index << WORD_SHIFT) + lowest.bit_length() - 1
            left ^= lowest


def joined(masks: Iterable[Mask]) -> Mask:
    """What is in any of the masks, which are of equal size; empty for none."""
    words: Mask = ()
    for mask in masks:
        words = tuple(a | b for a, b in zip(words, mask, strict=True)) if words else mask
    return words


def shared(a: Mask, b: Mask) -> Mask:
    """What is in both masks."""
    return tuple(x & y for x, y in zip(a, b, strict=True))


def without(mask: Mask, positions: Iterable[int]) -> Mask:
    """A mask less some positions."""
    words = list(mask)
    for position in positions:
        words[position >> WORD_SHIFT] &= ~(1 << (position & WORD_MASK))
    return tuple(words)


class IdleSet:
    """A set of positions `0 <= p < size`, empty at first."""

    __slots__ = ("size", "summary", "words")

    def __init__(self, size: int) -> None:
        self.size = size
        self.words = [0] * ((size >> WORD_SHIFT) + 1)
        self.summary = 0
        """Bit i is set while word i is not zero."""

    def add(self, position: int) -> None:
        """Put a position in; harmless if it is."""
        index = position >> WORD_SHIFT
        self.words[index] |= 1 << (position & WORD_MASK)
        self.summary |= 1 << index

    def discard(self, position: int) -> None:
        """Take a position out; harmless if it is not in."""
        index = position >> WORD_SHIFT
        word = self.words[index] & ~(1 << (position & WORD_MASK))
        self.words[index] = word
        if not word:
            self.summary &= ~(1 << index)

    def first(self) -> int:
        """The lowest position, or -1."""
        summary = self.summary
        if not summary:
            return -1
        index = (summary & -summary).bit_length() - 1
        word = self.words[index]
        return (index << WORD_SHIFT) + (word & -word).bit_length() - 1

    def first_from(self, start: int) -> int:
        """The lowest position not below `start`, or -1. Does not wrap."""
        index = start >> WORD_SHIFT
        if index >= len(self.words):
            return -1
        word = self.words[index] >> (start & WORD_MASK)
        if word:
            return start + (word & -word).bit_length() - 1
        summary = self.summary >> (index + 1)
        if not summary:
            return -1
        index += (summary & -summary).bit_length()
        word = self.words[index]
        return (index << WORD_SHIFT) + (word & -word).bit_length() - 1

    def first_of(self, mask: Mask, start: int = 0) -> int:
        """The lowest position not below `start` that is in `mask` as well, or -1.

        Costs one step per word, which is what a pack with a broken trunk can afford.
        """
        index = start >> WORD_SHIFT
        if index >= len(self.words):
            return -1
        word = (self.words[index] & mask[index]) >> (start & WORD_MASK)
        if word:
            return start + (word & -word).bit_length() - 1
        for later in range(index + 1, len(self.words)):
            if word := self.words[later] & mask[later]:
                return (later << WORD_SHIFT) + (word & -word).bit_length() - 1
        return -1

    def __iter__(self) -> Iterator[int]:
        position = self.first()
        while position >= 0:
            yield position
            position = self.first_from(position + 1)

    def __contains__(self, position: int) -> bool:
        return bool(self.words[position >> WORD_SHIFT] >> (position & WORD_MASK) & 1)

    def __len__(self) -> int:
        return sum(word.bit_count() for word in self.words)

    def __bool__(self) -> bool:
        return bool(self.summary)

    def __repr__(self) -> str:
        return f"<{len(self)} of {self.size} idle>"
