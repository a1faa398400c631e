"""YAML text to plain data that remembers its lines.

PyYAML reads YAML 1.1, whose guesses are traps for telephone numbers (`0301234` is octal, `12:30`
is 750, `no` is false) and which keeps the last of two equal keys without a word. Here every scalar
that is not plainly what it looks like becomes `Odd`, which no field accepts, equal keys are
errors, and aliases, anchors and tags are not read at all: nothing in this file needs them, and
with aliases a few hundred bytes can stand for gigabytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from umpack.core.errors import ConfigError

Path = tuple[str | int, ...]
"""Where in the document: keys and list indices from the top."""

_DEEPEST = 16
_TAG = "tag:yaml.org,2002:"
_DECIMAL = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})")
_FRACTION = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})\.[0-9]{0,18}")
_AS_WRITTEN = frozenset({"str", "timestamp", "merge", "value"})


class YamlError(ConfigError):
    """Text that is not YAML as we read it."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


@dataclass(frozen=True, slots=True)
class Odd:
    """A scalar YAML 1.1 would read as another value than the one written."""

    text: str


@dataclass(frozen=True, slots=True)
class Document:
    """A configuration text as data (mappings with text keys, lists, scalars, `Odd`)."""

    name: str
    data: object = None
    lines: Mapping[Path, int] = field(default_factory=dict)
    """Line of every key or list item."""
    written: Mapping[Path, str] = field(default_factory=dict)
    """Scalars without quotes that did not become text, as they stand in the file."""
    flaws: tuple[tuple[Path, int, str], ...] = ()
    """What can be read but must not stand: path, line, message."""

    def line(self, path: Path) -> int:
        """The line of the innermost part of a path that exists."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


class _Composer(yaml.SafeLoader):
    """Composes nodes without aliases, anchors or bottomless nesting."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise YamlError(_line(event.start_mark), _ALIAS)
        if event.anchor is not None:
            raise YamlError(_line(event.start_mark), _ANCHOR)
        if self._depth >= _DEEPEST:
            raise YamlError(_line(event.start_mark), f"nested more than {_DEEPEST} levels deep")
        self._depth += 1
        try:
            node: yaml.Node | None = super().compose_node(parent, index)
            return node
        finally:
            self._depth -= 1


_ANCHOR = (
    "a `&` begins an anchor in YAML, which is not read here: write the part out wherever it is"
    " needed, or quote a text that begins so"
)
_MERGE = "merge keys are not read here: write the keys out"
_ALIAS = 'a `*` begins an alias in YAML, which is not read here: quote the pattern, as in "*"'


def read_yaml(text: str, name: str) -> Document:
    """Read one YAML document; `YamlError` says where it is none."""
    loader: _Composer | None = None
    try:
        loader = _Composer(text)
        node = loader.get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        # PyYAML gives the code point here, whatever its annotations say.
        code = f"{int(error.character):04X}"
        raise YamlError(line, f"character U+{code} does not belong in YAML") from None
    except yaml.MarkedYAMLError as error:
        raise YamlError(*_explained(error)) from None
    except (ValueError, OverflowError):
        # PyYAML hands escapes such as "\UFFFFFFFF" to chr() unchecked.
        line = loader.line + 1 if loader else 1
        raise YamlError(line, "an escape sequence names no character") from None
    finally:
        if loader is not None:
            loader.dispose()
    reader = _Reader()
    data = None if node is None else reader.value(node, ())
    return Document(name, data, reader.lines, reader.written, tuple(reader.flaws))


def _line(mark: Any) -> int:
    """The line of a mark, of which PyYAML has two unrelated classes."""
    return int(mark.line) + 1 if mark is not None else 1


def _explained(error: yaml.MarkedYAMLError) -> tuple[int, str]:
    mark = error.problem_mark or error.context_mark
    line = _line(mark)
    problem = error.problem or "cannot be read"
    if "'\\t'" in problem:
        return line, "a tab character: YAML is indented with blanks only"
    if error.context == "while scanning an alias":
        return line, _ALIAS
    if error.context == "while scanning an anchor":
        return line, _ANCHOR
    if "single document" in (error.context or ""):
        return line, "a second document begins here (---); the file must hold one"
    if error.context == "while scanning a simple key" and error.context_mark:
        return _line(error.context_mark), "not YAML: a colon and a blank must follow the key"
    if "mapping values are not allowed" in problem:
        return line, "not YAML: a second colon here: quote the text, or begin a new line"
    if problem.startswith("expected <block end>"):
        problem = _STRAY if problem.endswith("start>'") else _LEFT_OVER
    elif match := re.fullmatch(r"expected ',' or '([]}])', but got .*", problem):
        problem = f"`,` or `{match[1]}` is missing before this"
    opened = ""
    if error.context and error.context_mark and error.context_mark.line + 1 != line:
        opened = f" ({error.context} that begins on line {error.context_mark.line + 1})"
    return line, f"not YAML: {problem}{opened}"


_STRAY = "this line is indented otherwise than those it belongs to"
_LEFT_OVER = "something is left over here: quote the whole text, or begin a new line"


class _Reader:
    """Turns nodes into data and notes where everything stood."""

    def __init__(self) -> None:
        self.lines: dict[Path, int] = {}
        self.written: dict[Path, str] = {}
        self.flaws: list[tuple[Path, int, str]] = []

    def value(self, node: yaml.Node, path: Path) -> object:
        self.lines.setdefault(path, node.start_mark.line + 1)
        kind = node.tag.removeprefix(_TAG)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, kind, path)
        if kind not in ("map", "seq"):
            self._flaw(path, node, f"tags are not read here: remove {_shown_tag(kind)}")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, object]:
        found: dict[str, object] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._flaw(path, key_node, "a key must be a word, not a list or mapping")
                continue
            # As written, so that `on:` or `34:` is that key and not True or a number.
            key = str(key_node.value)
            at = (*path, key)
            if key_node.tag == f"{_TAG}merge":
                self._flaw(at, key_node, _MERGE)
                continue
            if key in found:
                line = self.lines[at]
                self._flaw(at, key_node, f"stands here a second time; the first is on line {line}")
                continue
            self.lines[at] = key_node.start_mark.line + 1
            found[key] = self.value(value_node, at)
        return found

    def _scalar(self, node: yaml.ScalarNode, kind: str, path: Path) -> object:
        text = str(node.value)
        if kind in _AS_WRITTEN:
            return text
        self.written[path] = text
        if kind == "null":
            return None
        if kind == "bool":
            truth = yaml.constructor.SafeConstructor.bool_values.get(text.lower())
            return Odd(text) if truth is None else truth
        if kind == "int":
            return int(text) if _DECIMAL.fullmatch(text) else Odd(text)
        if kind == "float":
            number = float(text) if _FRACTION.fullmatch(text) else math.inf
            return number if math.isfinite(number) else Odd(text)
        self._flaw(path, node, f"tags are not read here: remove {_shown_tag(kind)}")
        return text

    def _flaw(self, path: Path, node: yaml.Node, message: str) -> None:
        self.flaws.append((path, node.start_mark.line + 1, message))


def _shown_tag(kind: str) -> str:
    return kind if kind.startswith("!") else f"!!{kind}"
