"""Number patterns in Asterisk's words: as conditions, and as extensions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from umpack.core.routes import Pattern, Route

_NAME = 20
"""Signs of a pattern that go into an extension, whose name has 79 bytes at most."""

_SPECIAL = frozenset("aehiostT")
"""Extensions Asterisk itself sends channels to: `h` at every hang-up, `i`, `t`, ... A dead channel
must not be offered as a call."""


def route_conditions(route: Route) -> Iterator[str]:
    """One for each caller pattern: the lines of a dialplan are short (4096 bytes an expression)."""
    called = _fits(route.called, "UMPACK_CALLED")
    if not route.callers:
        yield called
    for pattern in route.callers:
        yield f"{called} & {_fits(pattern, 'UMPACK_CALLER')}"


_SHORT = {"[0123456789]": "[0-9]", "[123456789]": "[1-9]", "[23456789]": "[2-9]"}
_TOKEN = re.compile(r"\[[0-9]+\]|\\?.", re.DOTALL)


def _fits(pattern: Pattern, variable: str) -> str:
    """An expression that holds where a variable fits a pattern.

    Asterisk drops backslashes in REGEX(), so literal signs stand in brackets, and counts braces
    even in a regular expression, so repetitions are written out.
    """
    if pattern.block is None:
        regex, end = pattern.regex.pattern, "$"
        if pattern.text.endswith("*"):
            regex, end = regex.removesuffix(".*"), ""
        regex = "".join(_bracketed(token) for token in _TOKEN.findall(regex))
        return f'${{REGEX("^{regex}{end}" ${{{variable}}})}} = 1'
    first, last = pattern.block
    at = len(pattern.prefix)
    regex = "".join(_bracketed(sign) for sign in pattern.prefix) + "[0-9]" * (len(first) - at)
    fits = f'${{REGEX("^{regex}$" ${{{variable}}})}} = 1'
    if at == len(first):
        return fits
    # Of equal length, so that they compare alike as texts and as numbers.
    tail = f'"${{{variable}:{at}}}"'
    return f'{fits} & {tail} >= "{first[at:]}" & {tail} <= "{last[at:]}"'


def _bracketed(token: str) -> str:
    if token.startswith("["):
        return _SHORT.get(token, token)
    return token if token.isalnum() else f"[{token.removeprefix(chr(92))}]"


def entrance_patterns(called: Iterable[Pattern]) -> list[str]:
    """Extensions that let in every number some route is for.

    `.` and not `!`: with overlap dialling the exchange sends digit by digit, and `!` would take
    the first one for the whole number.
    """
    found: dict[str, None] = {}
    signs: set[str] = set()
    for pattern in called:
        begin = pattern.prefix[:1] or ("0" if pattern.text[:1] != "*" else "")
        if pattern.matches("s"):
            found["s"] = None  # a call without a number
        if begin.isalpha():
            name = "".join(f"[{c}]" if c.isalpha() else c for c in pattern.prefix[:_NAME])
            if pattern.prefix not in _SPECIAL:
                found[f"_{name}"] = None
            found[f"_{name}."] = None
            continue
        signs |= set(begin or "0*#+")
    if signs:
        digits = "0-9" if any(sign.isdigit() for sign in signs) else ""
        start = f"_[{digits}{''.join(sorted(sign for sign in signs if not sign.isdigit()))}]"
        found[start] = found[f"{start}."] = None
    return list(found)
