"""Words of the configuration language smaller than a mapping: durations, ranges, addresses.

Each reader raises `ValueError` with the text a person should see.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from umpack.config.yaml_source import Odd

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?(ms|s|m|h|d)")
DURATION_HINT = "a duration such as 500ms, 1s, 2m, 12h, 90d, or a number of seconds"
_HUGE = re.compile(r"[1-9][0-9]{17,}")
_LONGEST = 36525 * 86400.0

_RANGE = re.compile(r"([0-9]{1,6})(?: *- *([0-9]{1,6}))?")
_HOST = re.compile(r"[0-9A-Za-z](?:[0-9A-Za-z.-]{0,251}[0-9A-Za-z])?|\[[0-9A-Fa-f:.]{2,45}\]")

Ranges = tuple[tuple[int, int], ...]
"""First and last of each, both included."""


def seconds(value: object) -> float:
    """Seconds of a duration, more than 0 and at most a hundred years."""
    number = _seconds(value)
    if not number > 0:
        raise ValueError("a duration must be more than 0")
    return number


def seconds_or_none(value: object) -> float:
    """The same, or 0 for what is not to be at all."""
    number = _seconds(value)
    if not number >= 0:
        raise ValueError("a duration must be at least 0")
    return number


def _seconds(value: object) -> float:
    if isinstance(value, str) and (match := _DURATION.fullmatch(value)):
        number = float(match[1]) * _UNITS[match[2]]
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value)
    elif isinstance(value, Odd) and _HUGE.fullmatch(value.text):
        number = math.inf
    else:
        shown = f"{value.text!r} " if isinstance(value, Odd) else ""
        shown = f"{value!r} " if isinstance(value, str) else shown
        raise ValueError(f"{shown}is not {DURATION_HINT}")
    if number > _LONGEST:
        raise ValueError("a duration must be at most 100 years")
    return number


def duration(value: float) -> str:
    """Seconds as a person would write them."""
    for unit in ("d", "h", "m"):
        if value >= _UNITS[unit] and value % _UNITS[unit] == 0:
            return f"{plain(value / _UNITS[unit])}{unit}"
    return f"{plain(value)}s" if value >= 1 else f"{plain(value * 1000)}ms"


def plain(number: float) -> str:
    """A number without an exponent and without zeros at the end."""
    return f"{number:.6f}".rstrip("0").rstrip(".")


def ranges(text: str) -> Ranges:
    """`1-15,17` as pairs."""
    found: list[tuple[int, int]] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"{part.strip()!r} is neither a channel nor a range such as 1-15")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last:
            raise ValueError(
                f"{first}-{last} runs backwards; the order is set by `direction: descending`"
            )
        found.append((first, last))
    return tuple(found)


def slots_in(wanted: Ranges, available: Sequence[int], d_channel: int | None) -> tuple[int, ...]:
    """The slots of `available` that are named. A range may run over the D channel, which carries
    no calls; to name it alone is an error, as is a slot that is not there."""
    known, highest = frozenset(available), max(available, default=0)
    found: list[int] = []
    for first, last in wanted:
        if first == last == d_channel:
            raise ValueError(f"{first} is the D channel, which carries signalling and no calls")
        # Looked at before the range is counted out, so that 1-999999 costs nothing.
        outside = [s for s in (first, last) if s > highest and s != d_channel]
        outside = outside or [
            s for s in range(first, last + 1) if s not in known and s != d_channel
        ]
        if outside:
            raise ValueError(f"there is no channel {outside[0]}, only {compressed(available)}")
        found += [s for s in range(first, last + 1) if s in known]
    return tuple(found)


def compressed(slots: Iterable[int]) -> str:
    """`1-15,17-31`."""
    pieces: list[list[int]] = []
    for slot in slots:
        if pieces and slot == pieces[-1][-1] + 1:
            pieces[-1] = [pieces[-1][0], slot]
        else:
            pieces.append([slot])
    return ",".join("-".join(map(str, piece)) for piece in pieces)


@dataclass(frozen=True, slots=True)
class Address:
    """Host and TCP port; an IPv6 host stands without its brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `127.0.0.1:4573`, `pbx.example:4573` or `[::1]:4573`."""
        host, colon, port = text.rpartition(":")
        if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
            raise ValueError(f"{text!r} is not host:port, such as 127.0.0.1:4573")
        return cls(host_name(host), int(port))


def host_name(text: str) -> str:
    """A host name or address that can stand in an URL unchanged."""
    if _HOST.fullmatch(text) is None:
        hint = "; write an IPv6 address in brackets" if text.count(":") > 1 else ""
        raise ValueError(f"{text!r} is no host name or address{hint}")
    return text.strip("[]")
