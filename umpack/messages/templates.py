"""The texts of mails, one file a language, checked when they are read.

How such a file is written stands at the top of etc/mail/en.txt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from types import MappingProxyType
from typing import Final

from umpack.core.errors import ConfigError
from umpack.core.printable import printable
from umpack.messages.document import FlawKind

_SECTION: Final = re.compile(r"== *([a-z ]+?) *==")
_WORD: Final = re.compile(r"([A-Za-z][A-Za-z ]*?) *= *(.*)")
_MOST: Final = 100_000

TRY: Final = frozenset({"id", "started", "outcome", "pages", "why"})
FACTS: Final = frozenset({
    "id", "mailbox", "called", "caller", "name", "station", "started", "seconds", "outcome", "why",
    "pages", "counts", "bad", "bitrate", "ecm", "resolution", "transport", "status", "error",
    "cause", "node", "channel", "pbx", "checksum", "size", "attached", "kept", "adopted", "related",
    "tries",
})  # fmt: skip
"""What may be said of a message; empty where it is not known."""
_RELATED: Final = frozenset({"earlier", "pages"})
_COUNTS: Final = frozenset({"engine", "tiff", "pdf"})

SECTIONS: Final[Mapping[str, frozenset[str]]] = {
    f"{part} {about}": FACTS
    for part in ("subject", "body")
    for about in ("fax", "fax incomplete", "fax failed", "voice", "voice incomplete")
}
_NO_WORDS: Final[frozenset[str]] = frozenset()
WORDS: Final[Mapping[str, frozenset[str]]] = {
    **dict.fromkeys(
        ("whole", "incomplete", "failed", "empty", "yes", "no", "withheld", "pdf", "original",
         "sound", "nothing attached", "hung up", "engine unknown"),
        _NO_WORDS,
    ),
    "broke off": frozenset({"pages", "reason"}),
    "counted": _COUNTS,
    "on page": frozenset({"page", "flaw"}),
    "rows": frozenset({"flaw", "value"}),
    "of try": TRY,
    "kept for": frozenset({"days", "id"}),
    "too large": frozenset({"id"}),
    "not converted": frozenset({"id"}),
    "not readable": frozenset({"id"}),
    "repeat": _RELATED,
    "overlap": _RELATED,
    "continuation": _RELATED,
    **dict.fromkeys((kind.value for kind in FlawKind), _NO_WORDS),
}  # fmt: skip


class TemplateFault(ConfigError):
    """A text that cannot be used; says file, and line or section."""


@dataclass(frozen=True, slots=True)
class Templates:
    """One language's."""

    language: str
    sections: Mapping[str, tuple[Template, ...]]
    """Line by line."""
    words: Mapping[str, Template]

    def word(self, key: str, **values: object) -> str:
        """One of `WORDS`, filled in."""
        return self.words[key].substitute({name: str(value) for name, value in values.items()})

    def subject(self, section: str, facts: Mapping[str, str]) -> str:
        """On one line."""
        lines = (line.substitute(facts) for line in self.sections[section])
        return " ".join(" ".join(lines).split())

    def body(self, section: str, facts: Mapping[str, str]) -> str:
        """Without the lines of which a fact is not known."""
        lines = [
            line.substitute(facts)
            for line in self.sections[section]
            if all(facts[name] for name in line.get_identifiers())
        ]
        return "\n".join(line.rstrip() for line in lines).strip("\n") + "\n"


def read_templates(path: Path) -> Templates:
    """The language is the file's name. Raises `TemplateFault`."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MOST + 1)
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8"
        raise TemplateFault(f"{path}: {why}") from error
    if len(text) > _MOST:
        raise TemplateFault(f"{path}: longer than {_MOST} characters")
    sections: dict[str, list[Template]] = {}
    words: dict[str, Template] = {}
    current = ""
    for number, line in enumerate(text.splitlines(), start=1):
        where = f"{path}:{number}"
        if line.startswith("#"):
            continue
        if match := _SECTION.fullmatch(line.strip()):
            current = match[1]
            if current in sections or current not in (*SECTIONS, "words"):
                raise TemplateFault(f"{where}: section {printable(current)} is unknown or doubled")
            sections[current] = []
        elif current == "words":
            _add_word(words, line, where)
        elif current:
            sections[current].append(_template(line, SECTIONS[current], where))
        elif line.strip():
            raise TemplateFault(f"{where}: text before the first section")
    sections.pop("words", None)
    missing = [*(SECTIONS.keys() - sections.keys()), *(WORDS.keys() - words.keys())]
    missing += [name for name, lines in sections.items() if not any(x.template for x in lines)]
    if missing:
        raise TemplateFault(f"{path}: missing: {', '.join(sorted(missing))}")
    return Templates(
        path.stem,
        MappingProxyType({name: tuple(lines) for name, lines in sections.items()}),
        MappingProxyType(words),
    )


def _add_word(words: dict[str, Template], line: str, where: str) -> None:
    if not line.strip():
        return
    match = _WORD.fullmatch(line.strip())
    if match is None or match[1] not in WORDS or match[1] in words:
        raise TemplateFault(f"{where}: no word, unknown or doubled: {printable(line)}")
    words[match[1]] = _template(match[2], WORDS[match[1]], where)


def _template(line: str, known: frozenset[str], where: str) -> Template:
    template = Template(line)
    if not template.is_valid():
        raise TemplateFault(f"{where}: a `$` that begins no name; write `$$` for the sign")
    if strangers := set(template.get_identifiers()) - known:
        names = ", ".join(sorted(strangers))
        raise TemplateFault(f"{where}: nothing is called {names} here; {sorted(known)} are")
    return template


def read_languages(directory: Path) -> Mapping[str, Templates]:
    """All `*.txt` in a directory, by language. Raises `TemplateFault`, also if there are none."""
    found = {path.stem: read_templates(path) for path in sorted(directory.glob("*.txt"))}
    if not found:
        raise TemplateFault(f"{directory}: no texts for mails (*.txt) in here")
    return MappingProxyType(found)
