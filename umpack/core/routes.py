"""Which pack a called number belongs to.

Patterns are read digit by digit, the more exact one wins at the first place where two differ; so
an exact number beats `4930200012*`, which beats `49302000XXX`, which beats `*`.

| in a pattern | means |
|---|---|
| `X` `Z` `N` | 0–9, 1–9, 2–9 (as in Asterisk) |
| `[2-57]` | one of these digits |
| `*` at the end | any rest, also none; alone: everything |
| `100-199` | a block of numbers of equal length (DDI block) |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from umpack.core.errors import OurFault
from umpack.core.pack import PackId
from umpack.core.trunk import PbxId


class PatternError(OurFault):
    """A called-number or caller pattern that cannot be read."""


_CLASSES = {"X": "0123456789", "Z": "123456789", "N": "23456789"}
_ANY_REST = 1000
_TOKEN = re.compile(r"\[([0-9-]+)\]|([XZN])|([0-9A-Za-z+#._])")
_BLOCK = re.compile(r"(\+?[0-9]+)-(\+?[0-9]+)")


def _class_digits(text: str) -> str:
    digits = re.sub(
        r"(\d)-(\d)",
        lambda m: "".join(str(d) for d in range(int(m[1]), int(m[2]) + 1)),
        text,
    )
    if not digits.isdigit():
        raise PatternError(f"[{text}] is no set of digits")
    return "".join(sorted(set(digits)))


@dataclass(frozen=True, slots=True)
class Pattern:
    """A number pattern, ready to match. `rank` sorts the more exact pattern first."""

    text: str
    regex: re.Pattern[str]
    rank: tuple[int, ...]
    prefix: str
    """The literal digits it begins with."""
    block: tuple[str, str] | None = None

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read a pattern; `PatternError` says where it fails."""
        if block := _BLOCK.fullmatch(text):
            return cls._block(text, block[1], block[2])
        body, open_end = (text[:-1], True) if text.endswith("*") else (text, False)
        regex, prefix, at = "", "", 0
        rank: list[int] = []
        while at < len(body):
            token = _TOKEN.match(body, at)
            if token is None:
                raise PatternError(f"{text!r}: cannot read {body[at:]!r} (position {at + 1})")
            digits = _class_digits(token[1]) if token[1] else _CLASSES.get(token[2] or "")
            regex += f"[{digits}]" if digits else re.escape(token[0])
            if len(digits or "1") == 1 and len(prefix) == len(rank):
                prefix += digits or token[0]
            rank.append(len(digits or "1"))
            at = token.end()
        if not body and not open_end:
            raise PatternError("an empty pattern matches nothing; `*` matches everything")
        if open_end:
            regex += ".*"
            rank.append(_ANY_REST)
        return cls(text, re.compile(regex, re.DOTALL), tuple(rank), prefix)

    @classmethod
    def _block(cls, text: str, first: str, last: str) -> Pattern:
        # "+" counts as a character, so +10-110 would be a block of nothing anybody meant.
        plus = first[0] == "+", last[0] == "+"
        if len(first) != len(last) or first > last or plus[0] is not plus[1]:
            raise PatternError(f"{text!r}: a block needs two numbers of equal length, in order")
        same = next((i for i, (a, b) in enumerate(zip(first, last, strict=True)) if a != b), None)
        prefix = first if same is None else first[:same]
        free = len(first) - len(prefix)
        # 9 and not 10: a block is more exact than as many X.
        # Then it ends (0: before any rest); the last number puts the smaller of two blocks first.
        size = int(last) - int(first) + 1
        rank = (1,) * len(prefix) + (9,) * free + ((0, size) if free else ())
        regex = re.compile(re.escape(prefix) + f"[0-9]{{{free}}}")
        return cls(text, regex, rank, prefix, (first, last))

    def matches(self, number: str) -> bool:
        """Whether the whole number fits."""
        if self.regex.fullmatch(number) is None:
            return False
        return self.block is None or self.block[0] <= number <= self.block[1]


@dataclass(frozen=True, slots=True)
class Route:
    """Calls to `called` (from one of `callers`, if any are named) go to `pack`, or are refused.

    Exactly one of `pack` and `refuse` (a Q.850 cause) is set. `pbx` is where the call comes in;
    `None` means any, which only a refusing route can have.
    """

    called: Pattern
    pack: PackId | None = None
    refuse: int | None = None
    callers: tuple[Pattern, ...] = ()
    pbx: PbxId | None = None

    def takes(self, caller: str) -> bool:
        """Whether the caller filter lets the caller through."""
        return not self.callers or any(pattern.matches(caller) for pattern in self.callers)


_MEMORY, _LONGEST = 4096, 64
"""Numbers remembered, and characters of one; bounded as called numbers come off the line."""


class Routes:
    """All routes, most exact first; of equally exact ones those with a caller filter first."""

    def __init__(self, routes: Iterable[Route]) -> None:
        indexed = sorted(
            enumerate(routes), key=lambda r: (r[1].called.rank, not r[1].callers, r[0])
        )
        self.routes: tuple[Route, ...] = tuple(route for _, route in indexed)
        self._by_prefix: dict[str, list[Route]] = {}
        for route in self.routes:
            self._by_prefix.setdefault(route.called.prefix, []).append(route)
        self._lengths = sorted({len(prefix) for prefix in self._by_prefix}, reverse=True)
        self._remembered: dict[tuple[PbxId, str], tuple[Route, ...]] = {}

    def match(self, pbx: PbxId, called: str, caller: str) -> Route | None:
        """The route of a call, or `None`."""
        routes = self._remembered.get((pbx, called))
        if routes is None:
            routes = tuple(self._matching(pbx, called))
            if len(self._remembered) >= _MEMORY:
                self._remembered.clear()
            if len(called) <= _LONGEST:
                self._remembered[pbx, called] = routes
        for route in routes:
            if not route.callers or route.takes(caller):
                return route
        return None

    def _matching(self, pbx: PbxId, called: str) -> Sequence[Route]:
        # By prefix, so that thousands of DDI routes cost a few dictionary look-ups.
        # The longer literal prefix is the more exact one, and each list is in order already.
        return [
            route
            for length in self._lengths
            if length <= len(called)
            for route in self._by_prefix.get(called[:length], ())
            if route.pbx in (None, pbx) and route.called.matches(called)
        ]
