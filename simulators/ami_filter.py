"""Event filters of an AMI session, as the `Filter` action of Asterisk 22 adds them.

Old form: `Filter: [!]REGEX` on the whole event. New form, with MatchCriteria: `action(include)`,
`name(EVENT)`, `header(HEADER)`, `method(regex|exact|starts_with|ends_with|contains|none)`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from umpack.core.errors import ProtocolFault

_CRITERION: Final = re.compile(r"(action|name|header|method)\(([^()]*)\)")
_METHODS: Final = ("regex", "exact", "starts_with", "ends_with", "contains", "none")
# POSIX classes, which Python's `re` does not know.
_POSIX: Final = {
    "[:space:]": r"\s",
    "[:digit:]": "0-9",
    "[:alpha:]": "A-Za-z",
    "[:alnum:]": "A-Za-z0-9",
}

NO_SYNTAX: Final = "Filter was formatted incorrectly.  Check the syntax of the filter given."
NO_REGEX: Final = "Filter did not compile.  Check the syntax of the filter given."


@dataclass(frozen=True, slots=True)
class EventFilter:
    """One filter; every part that is set must match."""

    include: bool
    name: str = ""
    header: str = ""
    method: str = "none"
    text: str = ""
    pattern: re.Pattern[str] | None = None

    def may_match(self, name: str) -> bool:
        """Whether an event of this name could match: by its name, or because text decides."""
        return not self.name or self.name.lower() == name.lower()

    def matches(self, name: str, event: str) -> bool:
        """Whether this event, given whole, matches."""
        if not self.may_match(name):
            return False
        if self.method == "none":
            return True
        values = [event]
        if self.header:
            start = f"{self.header.lower()}: "
            values = [
                line[len(start) :] for line in event.split("\r\n") if line.lower().startswith(start)
            ]
        return any(self._fits(value) for value in values)

    def _fits(self, value: str) -> bool:
        match self.method:
            case "regex":
                return self.pattern is not None and self.pattern.search(value) is not None
            case "exact":
                return value == self.text
            case "starts_with":
                return value.startswith(self.text)
            case "ends_with":
                return value.endswith(self.text)
            case _:
                return self.text in value


def parse_filter(criteria: str | None, text: str | None) -> EventFilter:
    """A filter from the action's two headers; ProtocolFault carries Asterisk's own message."""
    if criteria is None:
        if not text:
            raise ProtocolFault(NO_SYNTAX)
        include = not text.startswith("!")
        return EventFilter(include, method="regex", pattern=_compile(text.removeprefix("!")))
    parts = dict(_CRITERION.findall(criteria))
    if ",".join(f"{key}({value})" for key, value in parts.items()) != criteria.replace(" ", ""):
        raise ProtocolFault(NO_SYNTAX)
    action = parts.get("action", "include")
    method = parts.get("method", "regex" if text else "none")
    if action not in ("include", "exclude") or method not in _METHODS:
        raise ProtocolFault(NO_SYNTAX)
    if (method == "none") is bool(text):
        raise ProtocolFault(NO_SYNTAX)
    return EventFilter(
        action == "include",
        parts.get("name", ""),
        parts.get("header", ""),
        method,
        text or "",
        _compile(text or "") if method == "regex" else None,
    )


def _compile(text: str) -> re.Pattern[str]:
    for posix, python in _POSIX.items():
        text = text.replace(posix, python)
    text = text.replace(r"[\s]", r"\s")
    try:
        return re.compile(text, re.MULTILINE)
    except re.error:
        raise ProtocolFault(NO_REGEX) from None


@dataclass(slots=True)
class Filters:
    """All filters of a session. With only excluding ones, everything else passes."""

    including: list[EventFilter] = field(default_factory=list)
    excluding: list[EventFilter] = field(default_factory=list)

    def add(self, one: EventFilter) -> None:
        """Filters are never taken back in a session."""
        (self.including if one.include else self.excluding).append(one)

    def may_pass(self, name: str) -> bool:
        """False if no event of this name can pass, whatever it holds."""
        if any(f.may_match(name) and f.method == "none" for f in self.excluding):
            return False
        return not self.including or any(
            f.may_match(name) and (f.method != "regex" or self._worth(f, name))
            for f in self.including
        )

    def passes(self, name: str, event: str) -> bool:
        """Whether this event, given whole, is sent."""
        if any(f.matches(name, event) for f in self.excluding):
            return False
        return not self.including or any(f.matches(name, event) for f in self.including)

    @staticmethod
    def _worth(one: EventFilter, name: str) -> bool:
        # `^Event: (A|B)[[:space:]]`, the usual way of naming events in the old form, can be
        # decided without the rest of the event.
        pattern = one.pattern.pattern if one.pattern is not None else ""
        if one.header or not re.fullmatch(r"\^?Event: \(?[\w|]+\)?(\\s)?", pattern):
            return True
        return re.search(pattern, f"Event: {name}\r\n", re.MULTILINE) is not None
