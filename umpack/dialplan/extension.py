"""Lines of one extension of Asterisk's dialplan."""

from __future__ import annotations

from collections.abc import Iterable

END = "umpack-end,s,1"
"""Where every call ends that is to be told a cause; the cause is in `CAUSE`."""

CAUSE = "UMPACK_CAUSE"
"""Also set by umpack itself, before it closes the AGI connection of a call that is over."""


NOW = "${STRFTIME(,,%s.%3q)}"
"""Seconds since 1970 with three places; EPOCH has whole ones only."""


class Extension:
    """Lines of one extension, the first of them numbered."""

    def __init__(self, name: str, comment: str = "") -> None:
        self.lines = [f"; {comment}"] if comment else []
        self._name = name
        self._begun = False

    def do(self, application: str, label: str = "") -> Extension:
        """Add a step."""
        place = f"({label})" if label else ""
        number = "n" if self._begun else "1"
        head = " same" if self._begun else f"exten => {self._name}"
        between = " => " if self._begun else ","
        self.lines.append(f"{head}{between}{number}{place},{application}")
        self._begun = True
        return self

    def set(self, variable: str, value: str, label: str = "") -> Extension:
        """Add a step that sets a variable."""
        return self.do(f"Set({variable}={value})", label)

    def goto_if(self, condition: str, goal: str, label: str = "") -> Extension:
        """Add a jump; it goes on with the next step where the condition does not hold."""
        return self.do(f"GotoIf($[{condition}]?{goal})", label)

    def end(self, cause: int | str, label: str = "") -> Extension:
        """End the call with a Q.850 cause, a number or an expression for one."""
        return self.set(CAUSE, str(cause), label).do(f"Goto({END})")


def one_of(words: Iterable[str], variable: str) -> str:
    """An expression that holds where a variable is one of some words."""
    wanted = "|".join(words)
    # An empty alternative would match everything; nothing is called x.
    return f'${{REGEX("^({wanted or "x"})$" ${{{variable}}})}} = 1'
