"""The set of idle positions of a pack: first one, and first one after another, in constant time.

Two levels of bit words: a pack of 30,000 channels is hunted as fast as one of 30, which is what a
burst after a D channel's return needs. Words of 256 bits keep both levels within a few machine
words up to 65,536 positions, and still correct beyond.
"""

from __future__ import annotations

from collections.abc import Iterator

WORD_SHIFT = 8
WORD_MASK = (1 << WORD_SHIFT) - 1


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

    def hunt_from(self, start: int) -> Iterator[int]:
        """All positions, upwards from `start` and then from 0 up to it."""
        position = self.first_from(start)
        while position >= 0:
            yield position
            position = self.first_from(position + 1)
        position = self.first()
        while 0 <= position < start:
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
