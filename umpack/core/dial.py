"""Dial strings that no caller can bend.

A dial string is split by Asterisk at `&` (fork), `,` (arguments), `/`, `@` and in DAHDI also by
letters with a meaning (`w` waits, `c` asks for confirmation). Called and caller numbers come off
the line, so only characters without meaning ever reach one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from string import Formatter

from umpack.core.errors import OurFault

FIELDS = ("called", "caller", "channel", "slot", "span", "endpoint", "trunk")
"""What a template may name. `called` and `caller` are filled in per call, the rest per channel."""

_PER_CALL = {"called": "\0called\0", "caller": "\0caller\0"}

_LONGEST = 64
_SAFE = re.compile(rf"[0-9A-Za-z*#+._-]{{1,{_LONGEST}}}")
_DIGITS = re.compile(rf"[0-9*#+ABCD]{{1,{_LONGEST}}}")
_UNSAFE = re.compile(r"[^0-9A-Za-z*#+._-]")
_UNSAFE_DIGITS = re.compile(r"[^0-9*#+ABCD]")


class DialError(OurFault):
    """A dial template that cannot be used."""


@dataclass(frozen=True, slots=True)
class DialTemplate:
    """For example `DAHDI/{channel}/{called}` or `PJSIP/{called}@um1`.

    Raises `DialError` for an unknown field or a missing technology.
    """

    text: str

    def __post_init__(self) -> None:
        try:
            fields = [(name, spec, conv) for _, name, spec, conv in Formatter().parse(self.text)]
        except ValueError as error:
            raise DialError(f"dial template {self.text!r}: {error}") from None
        for name, spec, conversion in fields:
            if name is None:
                continue
            if name not in FIELDS or spec or conversion:
                raise DialError(f"dial template {self.text!r}: no field {{{name}}}")
        technology, slash, rest = self.text.partition("/")
        if not slash or not rest or not technology.isalnum():
            raise DialError(f"dial template {self.text!r}: expected TECHNOLOGY/...")
        if bad := sorted(set(self.text) & set('&,|\r\n\0"\\ ()')):
            raise DialError(f"dial template {self.text!r}: {bad[0]!r} has a meaning of its own")

    @property
    def technology(self) -> str:
        """`DAHDI`, `PJSIP`, `Local`, ..."""
        return self.text.partition("/")[0]

    @property
    def digits_only(self) -> bool:
        """Whether letters in a number would be commands to the channel driver."""
        return _dials_digits(self.technology)

    def parts(self, **fields: int | str | None) -> tuple[str, ...]:
        """Fill in what is fixed per channel; see `render` for the shape of the answer.

        `DialError` where the template names something the channel has not (a span for SIP).
        """
        values = {name: value for name, value in fields.items() if value not in (None, "")}
        try:
            text = self.text.format(**values | _PER_CALL)
        except KeyError as missing:
            raise DialError(f"dial template {self.text!r}: no {missing.args[0]} here") from None
        return tuple(text.split("\0"))


def render(parts: tuple[str, ...], called: str, caller: str) -> str:
    """Join the parts of a template (text, `called`, text, `caller`, ...).

    `called` must have been checked with `is_safe_number`; `caller` is cleaned here.
    """
    if len(parts) == 3 and parts[1] == "called":
        return f"{parts[0]}{called}{parts[2]}"
    filling = {"called": called, "caller": ""}
    if "caller" in parts[1::2]:
        technology = parts[0].partition("/")[0]
        filling["caller"] = cleaned_caller(caller, digits_only=_dials_digits(technology))
    return "".join(filling[part] if index % 2 else part for index, part in enumerate(parts))


def _dials_digits(technology: str) -> bool:
    return technology.upper() == "DAHDI"


def is_safe_number(number: str, *, digits_only: bool = False) -> bool:
    """Whether a called number may stand in a dial string unchanged.

    Unsafe called numbers are refused, not repaired: a repaired one would ring somebody else.
    """
    if number.isdigit() and number.isascii():  # nearly all of them, at a third of the cost
        return len(number) <= _LONGEST
    return (_DIGITS if digits_only else _SAFE).fullmatch(number) is not None


def cleaned_caller(caller: str, *, digits_only: bool = False) -> str:
    """A caller number for a dial string: what could have a meaning is left out."""
    return (_UNSAFE_DIGITS if digits_only else _UNSAFE).sub("", caller)[:_LONGEST]
