"""The tables of the configuration file: which keys there are and what values they take.

What needs more than one table (references, overlaps, loops) is checked in `site.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PlainValidator,
    StringConstraints,
    WithJsonSchema,
)

from umpack.config.fields import (
    CAUSE_KEY_PATTERN,
    Cause,
    Duration,
    DurationOrNone,
    Host,
    Id,
    Listed,
    Listen,
    NodeName,
    OneOrMore,
    Secret,
    Table,
    Text,
    enum_words,
    read_channels,
    word_of,
)
from umpack.config.health import Health, PackHealth, TrunkHealth
from umpack.config.mail_tables import Messages
from umpack.config.values import Address
from umpack.core.causes import Blame, Elsewhere
from umpack.core.pack import Direction, Strategy
from umpack.core.trunk import TrunkKind

STATION_PATTERN = r"^[0-9A-Za-z +*#.-]{1,20}$"
"""T.30 5.3.6.2.4 has digits, blank and + only; machines take letters, too."""
HEADER_PATTERN = r"^[ -~\u00a0-\u00ff]{1,50}$"
SOUND_PATTERN = r"^/?[0-9A-Za-z_-]+(/[0-9A-Za-z_-]+)*$"
KEYS_PATTERN = r"^[0-9*#]{0,12}$"
LANGUAGE_PATTERN = r"^[A-Za-z][A-Za-z0-9_]{0,39}$"


class VerdictRow(Table):
    """What a failure means; what is left out stays as it is."""

    elsewhere: (
        Annotated[Elsewhere, BeforeValidator(word_of(Elsewhere)), enum_words(Elsewhere)] | None
    ) = Field(
        None,
        description="Try the call again: no, once, on another channel, on another trunk.",
    )
    blame: Annotated[Blame, BeforeValidator(word_of(Blame)), enum_words(Blame)] | None = Field(
        None, description="Whom the failure speaks against: nobody, call, channel, trunk."
    )


Causes = dict[Annotated[str, StringConstraints(pattern=CAUSE_KEY_PATTERN)], VerdictRow]


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

    kind: Annotated[TrunkKind, BeforeValidator(word_of(TrunkKind)), enum_words(TrunkKind)] = Field(
        description="s2m: 30 B channels (1-15, 17-31); s0: 2 B channels; sip: a SIP peer. "
        "Services, whose calls umpack takes itself: fax, voice, auto (fax if a fax machine calls)."
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
        PlainValidator(read_channels),
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
        description="sip, services: how many calls at a time. s2m, s0: a number takes that many "
        "from the first on, a text such as 1-15,17-31 names time slots; default all.",
    )
    dial: Text | None = Field(
        None,
        description="Dial string. Fields: {called} {caller} {channel} (DAHDI number) {slot} "
        "{span} {endpoint} {trunk}. Default DAHDI/{channel}/{called} or "
        "PJSIP/{called}@<endpoint>. A service has none.",
    )
    ecm: bool | None = Field(
        None, description="fax, auto: error correction, so that damaged lines are repeated (true)."
    )
    t38: bool | None = Field(
        None,
        description="fax, auto: T.38 where the caller's channel can; without it audio only (true).",
    )
    station: Annotated[str, StringConstraints(pattern=STATION_PATTERN)] | None = Field(
        None, description="fax, auto: our number for the sender's display, 20 characters at most."
    )
    header: Annotated[str, StringConstraints(pattern=HEADER_PATTERN)] | None = Field(
        None, description="fax, auto: our name, 50 characters at most."
    )
    max_rate: Literal[4800, 9600, 14400] | None = Field(
        None, description="fax, auto: most bit/s, for lines that bear no more (14400)."
    )
    greeting: Annotated[str, StringConstraints(pattern=SOUND_PATTERN)] | None = Field(
        None,
        description="voice, auto: sound file the caller hears first, without suffix, as the PBX "
        "finds it. On auto calls of 4 to 20 seconds: fax machines wait no longer than 35.",
    )
    beep: bool | None = Field(None, description="voice, auto: a beep before the recording (true).")
    longest: Duration | None = Field(
        None, description="voice, auto: longest message. Default 5m, at most 1h."
    )
    silence: DurationOrNone | None = Field(
        None,
        description="voice, auto: silence that ends a message, in whole seconds; 0: never. "
        "Default 5s.",
    )
    stop_keys: Annotated[str, StringConstraints(pattern=KEYS_PATTERN)] | None = Field(
        None, description='voice, auto: keys that end greeting and message. Default "#".'
    )
    language: Annotated[str, StringConstraints(pattern=LANGUAGE_PATTERN)] | None = Field(
        None, description="voice, auto: language of greeting and beep. Default: the channel's own."
    )
    health: TrunkHealth = Field(
        TrunkHealth(), description="This trunk's own numbers of health, over those of the site."
    )
    causes: Causes | None = Field(
        None, description="This trunk's own rows of the cause table, over those of pack and site."
    )


class Pack(Table):
    """An ordered group of channels."""

    strategy: Annotated[Strategy, BeforeValidator(word_of(Strategy)), enum_words(Strategy)] = Field(
        Strategy.LINEAR,
        description="linear: the first idle channel; cyclic: the next idle one after the last "
        "assigned.",
    )
    direction: Annotated[Direction, BeforeValidator(word_of(Direction)), enum_words(Direction)] = (
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
    health: PackHealth = Field(
        PackHealth(), description="This pack's own number of health, over that of the site."
    )
    causes: Causes | None = Field(
        None,
        description="This pack's own rows of the cause table for calls on its channels, over those "
        "of the site.",
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
    receptions: Duration = Field(
        1800.0, description="How long faxes and recordings may: cut off, they are incomplete."
    )


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
    causes: Causes = Field(
        {}, description="This site's own rows of the cause table, by Q.850 number or `sip 503`."
    )
    control: Control = Field(Control(), description="Local control interface.")
    journal: Journal = Field(Journal(), description="Record of all calls.")
    log: Log = Field(Log(), description="Log.")
    drain: Drain = Field(Drain(), description="What happens at SIGTERM.")
    health: Health = Field(Health(), description="Numbers of health for all trunks and packs.")
    messages: Messages | None = Field(
        None, description="Faxes and voice messages to mailboxes; without it there are none."
    )
