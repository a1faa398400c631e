"""The document as validated tables.

Every table is validated by itself, so that one wrong trunk hides neither the errors of the packs
nor those of the references between the sound ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from umpack.config import fields, mail_tables, models
from umpack.config.health import Health, PackHealth, TrunkHealth, misplaced
from umpack.config.problems import Findings, nearest
from umpack.config.values import plain
from umpack.config.yaml_source import Document, Odd, Path

T = TypeVar("T", bound=fields.Table)
_SECRET = "secret"  # noqa: S105 -- the key whose value no message may show


@dataclass(slots=True)
class Tables:
    """What could be read; `None` stands for a table with errors, whose id is known all the same."""

    node: str | None = None
    pbx: dict[str, models.Pbx | None] = field(default_factory=dict)
    trunks: dict[str, models.Trunk | None] = field(default_factory=dict)
    packs: dict[str, models.Pack | None] = field(default_factory=dict)
    routes: list[models.Route | None] = field(default_factory=list)
    causes: dict[str, models.VerdictRow | None] = field(default_factory=dict)
    defaults: models.Defaults = field(default_factory=models.Defaults)
    control: models.Control = field(default_factory=models.Control)
    journal: models.Journal = field(default_factory=models.Journal)
    log: models.Log = field(default_factory=models.Log)
    drain: models.Drain = field(default_factory=models.Drain)
    health: Health = field(default_factory=Health)
    messages: mail_tables.Messages | None = None


def read_tables(document: Document, findings: Findings) -> Tables:
    """All tables of a document; what is wrong with them goes to `findings`."""
    return _TableReader(document, findings).read()


class _TableReader:
    def __init__(self, document: Document, findings: Findings) -> None:
        self._document = document
        self._findings = findings

    def read(self) -> Tables:
        tables = Tables()
        data = self._document.data
        if data is None:
            self._findings.error((), "the file is empty; at least pbx, trunks and packs are needed")
            return tables
        if not isinstance(data, dict):
            self._findings.error((), f"expected sections such as `trunks:`, not {_kind(data)}")
            return tables
        for key in data:
            if key not in models.File.model_fields:
                hint = nearest(key, models.File.model_fields)
                self._findings.error((key,), f"unknown section{hint}")
        tables.pbx = self._section(data, "pbx", models.Pbx, needed=True)
        tables.trunks = self._section(data, "trunks", models.Trunk, needed=True)
        tables.packs = self._section(data, "packs", models.Pack, needed=True)
        tables.causes = self._section(data, "causes", models.VerdictRow, fields.CAUSE_KEY_PATTERN)
        tables.routes = self._routes(data.get("routes"))
        for name, model in _SINGLE.items():
            if data.get(name) is not None:
                setattr(tables, name, self._table(model, data[name], (name,)) or model())
        if "messages" in data:
            tables.messages = self._table(mail_tables.Messages, data["messages"], ("messages",))
        tables.node = self._node(data)
        return tables

    def _node(self, data: Mapping[str, object]) -> str | None:
        if "node" not in data:
            return None
        try:
            return _NODE_NAME.validate_python(data["node"], strict=True)
        except ValidationError as error:
            self._explain(error, ("node",))
            return None

    def _section(
        self,
        data: Mapping[str, object],
        name: str,
        model: type[T],
        id_pattern: str = fields.ID_PATTERN,
        *,
        needed: bool = False,
    ) -> dict[str, T | None]:
        entries = data.get(name)
        if entries is None or entries == {}:
            if needed:
                at: Path = (name,) if name in data else ()
                self._findings.error(at, f"`{name}:` is {'empty' if at else 'missing'}")
            return {}
        if not isinstance(entries, dict):
            self._findings.error((name,), f"expected a mapping of ids, not {_kind(entries)}")
            return {}
        found: dict[str, T | None] = {}
        for id_, entry in entries.items():
            path = (name, id_)
            found[id_] = self._table(model, entry, path)
            if re.fullmatch(id_pattern, id_) is None:
                self._findings.error(path, _BAD_ID[name == "causes"])
                found[id_] = None
        return found

    def _routes(self, entries: object) -> list[models.Route | None]:
        if entries is None:
            return []
        if not isinstance(entries, list):
            self._findings.error(("routes",), f"expected a list (- ...), not {_kind(entries)}")
            return []
        return [self._table(models.Route, e, ("routes", i)) for i, e in enumerate(entries)]

    def _table(self, model: type[T], data: object, path: Path) -> T | None:
        if data is None:
            data = {}
        try:
            return model.model_validate(data)
        except ValidationError as error:
            self._explain(error, path)
            return _without_faults(model, data, error)

    def _explain(self, error: ValidationError, path: Path) -> None:
        for detail in error.errors(include_url=False):
            at = (*path, *detail["loc"])
            if detail["type"] not in {"missing", "extra_forbidden"}:
                # Steps pydantic adds for the members of a union are no keys of the file.
                at = self._existing(at)
            self._findings.error(at, self._message(detail, at))

    def _existing(self, path: Path) -> Path:
        while path and path not in self._document.lines:
            path = path[:-1]
        return path

    def _message(self, detail: ErrorDetails, path: Path) -> str:
        context: dict[str, Any] = detail.get("ctx", {})
        kind, value = detail["type"], detail["input"]
        match kind:
            case "missing":
                return "is missing"
            case "extra_forbidden":
                table = _table_at(path[:-1])
                if why := misplaced(str(path[-1]), table):
                    return why
                return f"unknown key{nearest(str(path[-1]), table.model_fields if table else ())}"
            case "value_error":
                return str(context["error"])
        if value is None:
            return "has no value; give one or remove the key"
        if limit := _LIMITS.get(kind):
            bound, least = limit
            return f"must be {least} {plain(context[bound])}"
        match kind:
            case fields.NOT_TEXT:
                return self._unquoted(path, value)
            case "literal_error":
                words = re.findall(r"[^', ]+", context["expected"].replace(" or ", ", "))
                shown = self._document.written.get(path, value)
                return f"{shown!r} is not one of {', '.join(words)}{nearest(str(shown), words)}"
            case "string_too_short":
                return "is empty"
            case "string_too_long":
                return f"is longer than {context['max_length']} characters"
            case "string_pattern_mismatch":
                return _PATTERNS.get(context["pattern"], f"does not fit {context['pattern']}")
        if isinstance(value, Odd) and re.fullmatch(r"[-+]?[1-9][0-9]{17,}", value.text):
            return f"{value.text} is too large a number"
        return f"expected {_EXPECTED.get(kind, 'something else')}, not {_kind(value)}"

    def _unquoted(self, path: Path, value: object) -> str:
        text = self._document.written.get(path)
        if text is None:
            hint = ""
            if isinstance(value, list) and path[0] == "routes":
                hint = '; quote it, as in "[2-5]X"'
            if isinstance(value, dict) and path[0] == "packs":
                hint = '; quote it and leave no blank after the colon, as in "line1:17"'
            return f"expected text, not {_kind(value)}{hint}"
        if path[-1] == _SECRET:
            return "must be quoted, because YAML reads it as something else than text"
        return f'must be quoted: "{text}", because YAML reads {text} as {_read_as(text, value)}'


def _without_faults(model: type[T], data: object, error: ValidationError) -> T | None:
    """What is left of a table, so that one run tells of its other mistakes as well.

    Left out are keys it does not know, and of a pack what it can do without. Other keys would be
    missed by what is checked next, and that would be told instead.
    """
    faults = error.errors(include_url=False)
    spare = {name for name, field in model.model_fields.items() if not field.is_required()}
    wrong = set()
    for fault in faults:
        key = fault["loc"][0] if fault["loc"] else None
        unknown = fault["type"] == "extra_forbidden" and len(fault["loc"]) == 1
        if not (unknown or (model is models.Pack and key in spare)):
            return None
        wrong.add(key)
    try:
        kept = {key: value for key, value in data.items() if key not in wrong}  # type: ignore[attr-defined]  # a mapping, as its keys were at fault
        return model.model_validate(kept)
    except ValidationError:
        return None


_NODE_NAME: TypeAdapter[str] = TypeAdapter(fields.NodeName)
_SINGLE: dict[str, type[fields.Table]] = {
    "defaults": models.Defaults,
    "control": models.Control,
    "journal": models.Journal,
    "log": models.Log,
    "drain": models.Drain,
    "health": Health,
}
_IN_MESSAGES: dict[str, type[fields.Table]] = {
    "auth": mail_tables.Auth,
    "ldap": mail_tables.Ldap,
    "retry": mail_tables.Retry,
    "bundles": mail_tables.Bundles,
    "retention": mail_tables.Retention,
}
_BAD_ID = {
    False: "an id begins with a letter and has at most 40 letters, digits, _ and -",
    True: "expected a Q.850 cause such as 34, or a SIP status such as `sip 503`",
}
_PATTERNS = {
    fields.NODE_PATTERN: "begins with a letter or digit and has at most 63 of them, and . _ -",
    fields.CAUSE_KEY_PATTERN: _BAD_ID[True],
    models.STATION_PATTERN: "has at most 20 digits, letters, blanks and + * # . -",
    models.HEADER_PATTERN: "has at most 50 characters, all of them Latin-1",
    models.SOUND_PATTERN: "expected a sound file without its suffix, such as own/hello: letters,"
    " digits, _ and - between slashes",
    models.KEYS_PATTERN: "has at most 12 of the keys 0-9 * #",
    models.LANGUAGE_PATTERN: "expected a language such as de or en_GB",
}
"""What must be said where a text does not fit."""
_LIMITS = {
    "greater_than_equal": ("ge", "at least"),
    "less_than_equal": ("le", "at most"),
    "greater_than": ("gt", "more than"),
}
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list ([a, b])",
    "model_type": "a mapping (key: value)",
    "dict_type": "a mapping (key: value)",
}


_AT: dict[Path, type[fields.Table]] = {
    **{(name,): model for name, model in _SINGLE.items()},
    ("pbx", "*"): models.Pbx,
    ("pbx", "*", "ami"): models.Ami,
    ("pbx", "*", "agi"): models.Agi,
    ("trunks", "*"): models.Trunk,
    ("trunks", "*", "health"): TrunkHealth,
    ("packs", "*"): models.Pack,
    ("packs", "*", "health"): PackHealth,
    ("routes", "*"): models.Route,
    ("causes", "*"): models.VerdictRow,
    ("trunks", "*", "causes", "*"): models.VerdictRow,
    ("packs", "*", "causes", "*"): models.VerdictRow,
    ("messages",): mail_tables.Messages,
    **{("messages", name): model for name, model in _IN_MESSAGES.items()},
}
"""Which table stands where; `*` is any id or index."""


def _table_at(path: Path) -> type[fields.Table] | None:
    for place, table in _AT.items():
        if len(place) == len(path) and all(
            step in ("*", here) for step, here in zip(place, path, strict=True)
        ):
            return table
    return None


def _read_as(text: str, value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, Odd):
        return "a number"
    if re.fullmatch(r"[-+]?0[0-7_]+", text):
        return "an octal number"
    if re.fullmatch(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?", text):
        return "a number to the base of 60"
    return "a number"


def _kind(value: object) -> str:
    match value:
        case bool():
            return "true or false"
        case int():
            return "a number"
        case float():
            return "a fraction"
        case Odd():
            return f"{value.text}"
        case str():
            return "text"
        case list() | tuple():
            return "a list"
        case _:
            return "a mapping"
