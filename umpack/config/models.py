"""The tables of the configuration file: which keys there are and what values they take.

What needs more than one table (references, overlaps, loops) is checked in `site.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Annotated, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    SecretStr,
    StringConstraints,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from umpack.config.problems import nearest
from umpack.config.values import Address, host_name, seconds
from umpack.core.causes import Blame, Elsewhere
from umpack.core.pack import Direction, Strategy
from umpack.core.trunk import TrunkKind

E = TypeVar("E", bound=Enum)

NOT_TEXT = "string_type"
"""Pydantic's name for "expected text"; explained together with its own such errors."""

ID_PATTERN = r"^[A-Za-z][A-Za-z0-9_-]{0,39}$"
CAUSE_KEY_PATTERN = r"^([1-9][0-9]{0,2}|sip [3-6][0-9]{2})$"


class Secret(SecretStr):
    """A secret that shows as `***`."""

    def _display(self) -> str:
        return "***"


def _word_of(words: type[E]) -> Callable[[object], E]:
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


def _words(words: type[Enum]) -> WithJsonSchema:
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


def _read_channels(value: object) -> object:
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, bool) or not isinstance(item, (int, str)) for item in items):
        raise ValueError("expected a number of channels, or time slots such as 1-15,17-31")
    return _listed(value)


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
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0},
                {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)? ?(ms|s|m|h|d)$"},
            ],
            "examples": ["500ms", "1s", "2m", "90d"],
        }
    ),
]
Listen = Annotated[
    Address,
    BeforeValidator(_read_address),
    WithJsonSchema({"type": "string", "pattern": r":[0-9]{1,5}$"}),
]
NodeName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Id = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
Cause = Annotated[int, Field(ge=1, le=127)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Host = Annotated[str, BeforeValidator(_read_host)]


class Table(BaseModel):
    """A mapping of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Ami(Table):
    """How umpack reaches the PBX's manager interface (manager.conf)."""

    host: Host = Field("127.0.0.1", description="Host name or address of the PBX.")
    port: int = Field(5038, ge=1, le=65535, description="TCP port of the manager interface.")
    user: Text = Field(description="Section name in manager.conf.")
    secret: Secret | None = Field(None, description="The secret itself; or one of the next two.")
    secret_file: Text | None = Field(
        None, description="File that holds the secret; relative to this file."
    )
    secret_env: Text | None = Field(None, description="Environment variable holding the secret.")


class Agi(Table):
    """Where the PBX's dialplan hands calls to umpack (FastAGI)."""

    listen: Listen = Field(
        Address("127.0.0.1", 4573), description="host:port umpack listens on for this PBX."
    )
    reach: Listen | None = Field(
        None,
        description="host:port the dialplan connects to, where it differs from `listen`.",
    )


class Pbx(Table):
    """One Asterisk."""

    ami: Ami = Field(description="Manager interface of the PBX.")
    agi: Agi = Field(Agi(), description="Listener for calls of this PBX.")


class Trunk(Table):
    """A line or group of channels with one fate."""

    kind: Annotated[TrunkKind, BeforeValidator(_word_of(TrunkKind)), _words(TrunkKind)] = Field(
        description="s2m: 30 B channels (1-15, 17-31); s0: 2 B channels; sip: a SIP peer."
    )
    pbx: Text | None = Field(None, description="Its PBX; may be left out where there is one only.")
    span: int | None = Field(None, ge=1, le=256, description="DAHDI span number (s2m and s0).")
    first_channel: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="DAHDI number of the span's first channel. Default: counted from the lower "
        "spans of the PBX (an s2m takes 31 numbers, an s0 3; unknown spans count as of this kind).",
    )
    endpoint: Text | None = Field(None, description="PJSIP endpoint (sip).")
    channels: Annotated[
        int | str | tuple[int | str, ...] | None,
        PlainValidator(_read_channels),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "integer", "minimum": 1},
                    {"type": "string", "pattern": "^[0-9]+( *[-,] *[0-9]+)*$"},
                    {"type": "array", "items": {"type": ["integer", "string"]}},
                ],
                "examples": [30, "1-15,17-31"],
            }
        ),
    ] = Field(
        None,
        description="sip: how many calls at a time. s2m, s0: a number takes that many from the "
        "first on, a text such as 1-15,17-31 names time slots; default all.",
    )
    dial: Text | None = Field(
        None,
        description="Dial string. Fields: {called} {caller} {channel} (DAHDI number) {slot} "
        "{span} {endpoint} {trunk}. Default DAHDI/{channel}/{called} or "
        "PJSIP/{called}@<endpoint>.",
    )


class Pack(Table):
    """An ordered group of channels."""

    strategy: Annotated[Strategy, BeforeValidator(_word_of(Strategy)), _words(Strategy)] = Field(
        Strategy.LINEAR,
        description="linear: the first idle channel; cyclic: the next idle one after the last "
        "assigned.",
    )
    direction: Annotated[Direction, BeforeValidator(_word_of(Direction)), _words(Direction)] = (
        Field(
            Direction.ASCENDING,
            description="descending hunts from the last member to the first: opposite to an "
            "exchange that ascends, so that both meet late.",
        )
    )
    interleave: bool = Field(
        False, description="true: the members' first channels, then their second ones, and so on."
    )
    members: Listed[str] = Field(
        description="In order: a trunk (um1), a range (line1:1-15), one channel (line1:17). "
        "Channels are time slots; a range passes over the D channel.",
        json_schema_extra={"minItems": 1},  # checked in site.py, where wrong members still count
    )
    overflow: Listed[str] = Field((), description="Packs to try when this one is full, in order.")
    answer_within: Duration | None = Field(
        None, description="Limit of one attempt. Default: that of `defaults`."
    )
    setup_budget: Duration | None = Field(
        None, description="Limit of all attempts of a call. Default: that of `defaults`."
    )
    refusal_cause: Cause = Field(
        34, description="Q.850 cause for a call that finds no channel. 34 is SIP 503."
    )


class Route(Table):
    """Calls to a number, from a caller if any is named, go to a pack or are refused."""

    called: Text = Field(
        description="Called-number pattern, in quotes: X 0-9, Z 1-9, N 2-9, [2-57] one of these, "
        "* at the end any rest, 100-199 a block. The most exact pattern wins."
    )
    caller: OneOrMore | None = Field(
        None, description="Caller pattern or list of them; without it every caller."
    )
    pack: Text | None = Field(None, description="The pack; or `refuse`.")
    refuse: Cause | None = Field(None, description="Q.850 cause to refuse such calls with.")
    pbx: Text | None = Field(None, description="Only calls that come in on this PBX.")


class Defaults(Table):
    """For packs that do not say otherwise."""

    answer_within: Duration = Field(20.0, description="Limit of one attempt.")
    setup_budget: Duration = Field(30.0, description="Limit of all attempts of a call.")


class VerdictRow(Table):
    """What a failure means; what is left out stays as built in."""

    elsewhere: (
        Annotated[Elsewhere, BeforeValidator(_word_of(Elsewhere)), _words(Elsewhere)] | None
    ) = Field(
        None,
        description="Try the call again: no, once, on another channel, on another trunk.",
    )
    blame: Annotated[Blame, BeforeValidator(_word_of(Blame)), _words(Blame)] | None = Field(
        None, description="Whom the failure speaks against: nobody, call, channel, trunk."
    )


class Control(Table):
    """The local control interface (`umpack status` and its kin)."""

    socket: Text = Field("/run/umpack/control.sock", description="Path of the unix socket.")


class Journal(Table):
    """The record of all calls (SQLite)."""

    path: Text = Field("/var/lib/umpack/journal.db", description="Path of the database.")
    keep: Duration = Field(90 * 86400.0, description="How long calls are kept.")


class Log(Table):
    """The log."""

    level: Literal["trace", "debug", "info", "warning", "error"] = Field(
        "info", description="Least severity that is written."
    )
    file: Text | None = Field(None, description="Path; default: standard error.")


class Drain(Table):
    """Ending in order."""

    deadline: Duration = Field(30.0, description="How long running calls may take at SIGTERM.")


class File(Table):
    """The whole file. Tables without a default must be there."""

    node: NodeName | None = Field(
        None, description="Name of this machine in records; default: its host name."
    )
    pbx: dict[Id, Pbx] = Field(description="The PBXs umpack runs beside, by id.", min_length=1)
    trunks: dict[Id, Trunk] = Field(description="Lines and SIP peers, by id.", min_length=1)
    packs: dict[Id, Pack] = Field(description="Packs of channels, by id.", min_length=1)
    routes: Listed[Route] = Field((), description="Which pack a called number belongs to.")
    defaults: Defaults = Field(Defaults(), description="Times of packs that name none.")
    causes: dict[Annotated[str, StringConstraints(pattern=CAUSE_KEY_PATTERN)], VerdictRow] = Field(
        {}, description="This site's own rows of the cause table, by Q.850 number or `sip 503`."
    )
    control: Control = Field(Control(), description="Local control interface.")
    journal: Journal = Field(Journal(), description="Record of all calls.")
    log: Log = Field(Log(), description="Log.")
    drain: Drain = Field(Drain(), description="What happens at SIGTERM.")
