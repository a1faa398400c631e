"""What values of the configuration's tables are made of, and what every table has in common."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Annotated, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from umpack.config.problems import nearest
from umpack.config.values import Address, host_name, seconds, seconds_or_none
from umpack.config.yaml_source import Odd

E = TypeVar("E", bound=Enum)

NOT_TEXT = "string_type"
"""Pydantic's name for "expected text"; explained together with its own such errors."""

ID_PATTERN = r"^[A-Za-z][A-Za-z0-9_-]{0,39}$"
NODE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
CAUSE_KEY_PATTERN = r"^([1-9][0-9]{0,2}|sip [3-6][0-9]{2})$"


class Secret(SecretStr):
    """A secret that shows as `***`."""

    def _display(self) -> str:
        return "***"


def word_of(words: type[E]) -> Callable[[object], E]:
    """Reads one word of a closed set; says which there are, and the nearest one."""
    by_name = {str(word.value): word for word in words}

    def read(value: object) -> E:
        if value is False and "no" in by_name:
            return by_name["no"]  # YAML 1.1 reads a bare `no` so
        if not isinstance(value, str):
            raise PydanticCustomError(NOT_TEXT, "expected a word")
        if value not in by_name:
            hint = nearest(value, by_name)
            raise ValueError(f"{value!r} is not one of {', '.join(by_name)}{hint}")
        return by_name[value]

    return read


def enum_words(words: type[Enum]) -> WithJsonSchema:
    """The same set for the JSON Schema."""
    return WithJsonSchema({"type": "string", "enum": [word.value for word in words]})


def _read_address(value: object) -> Address:
    if not isinstance(value, str):
        raise ValueError('expected host:port in quotes, such as "127.0.0.1:4573"')
    return Address.parse(value)


def _read_host(value: object) -> object:
    if not isinstance(value, str):
        return value  # the field itself refuses it
    bare_ipv6 = value.count(":") > 1 and not value.startswith("[")
    return host_name(f"[{value}]" if bare_ipv6 else value)


def _listed(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def read_channels(value: object) -> object:
    """A count, or time slots as text or list."""
    items = value if isinstance(value, list) else [value]
    if odd := next((item.text for item in items if isinstance(item, Odd)), None):
        raise ValueError(f"{odd} is neither a number of channels nor time slots such as 1-15,17-31")
    if any(isinstance(item, bool) or not isinstance(item, (int, str)) for item in items):
        raise ValueError("expected a number of channels, or time slots such as 1-15,17-31")
    return _listed(value)


def _duration_schema(least: dict[str, int], *examples: object) -> WithJsonSchema:
    words = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)? ?(ms|s|m|h|d)$"}
    return WithJsonSchema(
        {"anyOf": [{"type": "number", **least}, words], "examples": list(examples)}
    )


def _one_or_more(value: object) -> object:
    return _listed(value) if isinstance(value, list) else (value,)


Word = TypeVar("Word")
Listed = Annotated[tuple[Word, ...], BeforeValidator(_listed)]
OneOrMore = Annotated[
    tuple[str, ...],
    BeforeValidator(_one_or_more),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
Duration = Annotated[
    float,
    BeforeValidator(seconds),
    _duration_schema({"exclusiveMinimum": 0}, "500ms", "1s", "2m", "90d"),
]
DurationOrNone = Annotated[
    float,
    BeforeValidator(seconds_or_none),
    _duration_schema({"minimum": 0}, 0, "500ms", "5s"),
]
Listen = Annotated[
    Address,
    BeforeValidator(_read_address),
    WithJsonSchema({"type": "string", "pattern": r":[0-9]{1,5}$"}),
]
NodeName = Annotated[str, StringConstraints(pattern=NODE_PATTERN)]
Id = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
Cause = Annotated[int, Field(ge=1, le=127)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Host = Annotated[str, BeforeValidator(_read_host)]


class Table(BaseModel):
    """A mapping of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
