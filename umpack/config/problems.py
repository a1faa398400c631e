"""What is wrong with a configuration: every problem with its file, line and key."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum

from umpack.config.yaml_source import Document, Path
from umpack.core.errors import ConfigError

_LONGEST = 400


class Severity(Enum):
    """Whether the configuration can be used all the same."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong. `key` is the dotted path (`packs.um.strategy`), empty for the whole file.

    `str()` is the line people see: `file:line: key: what is wrong (did you mean …?)`.
    """

    file: str
    line: int
    key: str
    message: str
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        key = f"{self.key}: " if self.key else ""
        warning = "warning: " if self.severity is Severity.WARNING else ""
        return printable(f"{self.file}:{self.line}: {key}{warning}{self.message}")


class ConfigProblems(ConfigError):
    """The configuration cannot be used. `problems` holds all of them, warnings too, by line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


class Findings:
    """Collects the problems of one document."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self._found: dict[Problem, None] = {}

    def add(self, problem: Problem) -> None:
        """A problem whose place is known better than by its key."""
        self._found[problem] = None

    def error(self, path: Path, message: str) -> None:
        """The configuration cannot be used because of this."""
        self._add(path, message, Severity.ERROR)

    def warn(self, path: Path, message: str) -> None:
        """It can be used, but probably does not mean what was meant."""
        self._add(path, message, Severity.WARNING)

    def _add(self, path: Path, message: str, severity: Severity) -> None:
        line = self.document.line(path)
        self.add(Problem(self.document.name, line, dotted(path), message, severity))

    def has(self, path: Path) -> bool:
        """Whether something was found at this very key."""
        key = dotted(path)
        return any(problem.key == key for problem in self._found)

    def raise_errors(self) -> None:
        """Raise `ConfigProblems` if any problem is an error."""
        if any(problem.severity is Severity.ERROR for problem in self._found):
            raise ConfigProblems(self.by_line())

    def by_line(self) -> tuple[Problem, ...]:
        """All problems in the order of the file."""
        return tuple(sorted(self._found, key=lambda problem: problem.line))


def dotted(path: Path) -> str:
    """`packs.um.members[2]`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")


def nearest(word: str, words: Iterable[str]) -> str:
    """` (did you mean …?)` with the valid word most like a wrong one, or nothing."""
    known = {valid.lower(): valid for valid in words}
    cutoff = 0.5 if len(word) <= 3 else 0.6  # one wrong letter of two is a slip, three of six not
    close = get_close_matches(word.lower()[:100], known, n=1, cutoff=cutoff)
    return f" (did you mean {known[close[0]]}?)" if close else ""


def printable(text: str) -> str:
    """One line, whatever a quoted key or a file name contains."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
