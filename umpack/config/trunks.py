"""Trunks of the file as core trunks: channels, DAHDI numbers, dial templates, overlaps."""

from __future__ import annotations

import re
from collections.abc import Iterator

from umpack.config import models
from umpack.config.problems import Findings, nearest
from umpack.config.services import read_service
from umpack.config.tables import Tables
from umpack.config.values import compressed, ranges, slots_in
from umpack.config.yaml_source import Path
from umpack.core.dial import FIELDS, DialError, DialTemplate
from umpack.core.trunk import (
    B_CHANNEL_SLOTS,
    SERVICE_DIAL,
    SPAN_SIZE,
    PbxId,
    Trunk,
    TrunkId,
    TrunkKind,
)

D_CHANNEL = {TrunkKind.S2M: 16, TrunkKind.S0: 3}
_MOST_CALLS = 100_000

_LINES = (TrunkKind.S2M, TrunkKind.S0)
_FAXES = (TrunkKind.FAX, TrunkKind.AUTO)
_VOICES = (TrunkKind.VOICE, TrunkKind.AUTO)
_OWNERS: dict[str, tuple[TrunkKind, ...]] = {
    "span": _LINES,
    "first_channel": _LINES,
    "endpoint": (TrunkKind.SIP,),
    **dict.fromkeys(("dial", "causes"), (*_LINES, TrunkKind.SIP)),
    **dict.fromkeys(("ecm", "t38", "station", "header", "max_rate"), _FAXES),
    **dict.fromkeys(("greeting", "beep", "longest", "silence", "stop_keys", "language"), _VOICES),
}
"""Keys that only trunks of these kinds have."""
_NEEDED: dict[TrunkKind, tuple[str, ...]] = {
    TrunkKind.S2M: ("span",),
    TrunkKind.S0: ("span",),
    TrunkKind.SIP: ("endpoint", "channels"),
    TrunkKind.FAX: ("channels",),
    TrunkKind.VOICE: ("channels",),
    TrunkKind.AUTO: ("channels",),
}

_ENDPOINT = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.-]{0,79}")
_DIAL_LITERAL = re.compile(r"[0-9A-Za-z_./@:+*#=%;\[\]-]")
"""What may stand in a dial string beside the fields: nothing a dialplan or a Dial argument gives
a meaning to (`$`, braces, blanks, quotes, commas, ampersands)."""


def read_trunks(tables: Tables, findings: Findings) -> dict[TrunkId, Trunk]:
    """All sound trunks."""
    reader = _TrunkReader(tables, findings)
    found = {}
    for id_, table in tables.trunks.items():
        if table is not None and (trunk := reader.read(id_, table)) is not None:
            found[trunk.id] = trunk
    reader.report_overlaps(found)
    return found


def known_pbx(named: str | None, tables: Tables, findings: Findings, path: Path) -> PbxId | None:
    """The PBX an entry names, or the only one there is."""
    if named is None:
        if len(tables.pbx) > 1:
            choice = ", ".join(tables.pbx)
            findings.error(path, f"is missing, and there are several: {choice}")
            return None
        return PbxId(next(iter(tables.pbx))) if tables.pbx else None
    if named not in tables.pbx:
        return None  # reported already
    return PbxId(named)


class _TrunkReader:
    def __init__(self, tables: Tables, findings: Findings) -> None:
        self._tables = tables
        self._findings = findings

    def read(self, id_: str, table: models.Trunk) -> Trunk | None:
        path: Path = ("trunks", id_)
        pbx = known_pbx(table.pbx, self._tables, self._findings, (*path, "pbx"))
        fits = self._fits_kind(table, path)
        dial = self._dial(table, path)
        slots = self._slots(table, path)
        if pbx is None or not fits or dial is None or not slots:
            return None
        kind = table.kind
        first = self._first_channel(table, pbx) if kind.is_line else 1
        self._check_board(table, path, first)
        service = None
        if kind.is_service:
            service = read_service(table, path, self._findings)
            self._report_nowhere(path)
        return Trunk(
            TrunkId(id_), kind, pbx, dial, slots, first, table.span, table.endpoint, service
        )

    def _fits_kind(self, table: models.Trunk, path: Path) -> bool:
        """Whether the keys are those of the kind."""
        kind = table.kind
        fits = True
        for key, owners in _OWNERS.items():
            if kind not in owners and getattr(table, key) is not None:
                what = f"belongs to {_listed(owners)} trunks, and this is {_named(kind)} trunk"
                self._findings.error((*path, key), what)
                fits = False
        for key in _NEEDED[kind]:
            if getattr(table, key) is None:
                self._findings.error((*path, key), f"is missing; {_named(kind)} trunk needs it")
                fits = False
        for key in table.causes or ():
            if kind.is_line and key.startswith("sip "):
                what = f"{_named(kind)} trunk has no SIP answers, only Q.850 causes"
                self._findings.error((*path, "causes", key), what)
        if table.endpoint is not None and _ENDPOINT.fullmatch(table.endpoint) is None:
            what = "an endpoint has letters, digits, _ . - only, and begins with one of the first"
            self._findings.error((*path, "endpoint"), what)
            fits = False
        return fits

    def _report_nowhere(self, path: Path) -> None:
        data = self._findings.document.data
        if isinstance(data, dict) and "messages" not in data:
            what = "takes messages, but there is no section `messages:` that says where they go"
            self._findings.error(path, what)

    def _dial(self, table: models.Trunk, path: Path) -> DialTemplate | None:
        if table.kind.is_service:
            return SERVICE_DIAL
        at = (*path, "dial")
        sip = table.kind is TrunkKind.SIP
        text = table.dial or ("PJSIP/{called}@{endpoint}" if sip else "DAHDI/{channel}/{called}")
        try:
            template = DialTemplate(text)
        except DialError as error:
            # The key says what it is; only the reason is left to say.
            reason = str(error).removeprefix(f"dial template {text!r}: ")
            if field := re.fullmatch(r"no field \{(.*)\}", reason):
                known = field[1] in FIELDS
                reason = f"{{{field[1]}}} takes neither ! nor :" if known else reason
                reason += "" if known else nearest(field[1], FIELDS)
            self._findings.error(at, reason)
            return None
        bare = re.sub(r"\{[a-z]+\}", "", text)
        if strange := sorted({c for c in bare if _DIAL_LITERAL.fullmatch(c) is None}):
            self._findings.error(at, f"{strange[0]!r} cannot stand in a dial string")
            return None
        if not sip and "{channel}" not in text and "{slot}" not in text:
            what = "names no {channel}, so the PBX chooses another one than umpack has assigned"
            self._findings.warn(at, what)
        return template

    def _check_board(self, table: models.Trunk, path: Path, first: int) -> None:
        """Whether a dial string of DAHDI means the channels that umpack counts on this trunk."""
        text = table.dial or ""
        if not text.upper().startswith("DAHDI/"):
            return
        at = (*path, "dial")
        if not table.kind.is_line:
            what = "a board's channels belong to s2m and s0 trunks, which know each by its number"
            self._findings.error(at, what)
        elif "{slot}" in text and "{channel}" not in text and "{span}" not in text and first != 1:
            what = f"{{slot}} begins at 1 on every span, and this span's channels at {first}"
            self._findings.error(at, f"{what}: write {{channel}}")

    def _slots(self, table: models.Trunk, path: Path) -> tuple[int, ...]:
        wanted = table.channels
        every = B_CHANNEL_SLOTS.get(table.kind, ())
        try:
            if wanted is None:
                return every or (1,)  # a missing count was reported before
            if isinstance(wanted, int):
                return _counted(wanted, len(every) or _MOST_CALLS, every)
            if not every:
                raise ValueError("expected how many calls at a time, as a number")
            text = wanted if isinstance(wanted, str) else ",".join(map(str, wanted))
            return tuple(sorted(set(slots_in(ranges(text), every, D_CHANNEL[table.kind]))))
        except ValueError as error:
            self._findings.error((*path, "channels"), str(error))
            return ()

    def _first_channel(self, table: models.Trunk, pbx: PbxId) -> int:
        """DAHDI numbers channels through all spans, in the order of the spans (dahdi_cfg)."""
        if table.first_channel is not None or table.span is None:
            return table.first_channel or 1
        spans: dict[int, models.Trunk] = {}
        for other in self._on(pbx):
            if other.span is not None:
                spans.setdefault(other.span, other)
        number = 1
        for span in range(1, table.span):
            below = spans.get(span)
            if below is not None and below.first_channel is not None:
                number = below.first_channel
            number += SPAN_SIZE[below.kind if below is not None else table.kind]
        return number

    def _on(self, pbx: PbxId) -> Iterator[models.Trunk]:
        only = len(self._tables.pbx) == 1
        for table in self._tables.trunks.values():
            if table is None or not table.kind.is_line:
                continue
            if table.pbx == pbx or (table.pbx is None and only):
                yield table

    def report_overlaps(self, trunks: dict[TrunkId, Trunk]) -> None:
        """Two trunks on one span or on the same DAHDI numbers; two on one SIP endpoint."""
        seen: list[Trunk] = []
        endpoints: dict[tuple[PbxId, str], TrunkId] = {}
        for trunk in trunks.values():
            path: Path = ("trunks", trunk.id)
            if trunk.endpoint is not None:
                first = endpoints.setdefault((trunk.pbx, trunk.endpoint), trunk.id)
                if first != trunk.id:
                    what = f"{trunk.endpoint} is the endpoint of trunk {first} too"
                    self._findings.warn((*path, "endpoint"), what)
                continue
            if not trunk.kind.is_line:
                continue
            clash = next((t for t in seen if t.pbx == trunk.pbx and _overlap(t, trunk)), None)
            seen.append(trunk)
            if clash is None:
                continue
            if clash.span == trunk.span:
                self._findings.error(
                    (*path, "span"),
                    f"span {trunk.span} is trunk {clash.id} already; a part of it is named in a"
                    f' pack, as in "{clash.id}:{compressed(clash.slots[:2])}"',
                )
            else:
                given = (*path, "first_channel") in self._findings.document.lines
                key = "first_channel" if given else "span"
                what = f"DAHDI channels {_numbers(trunk)} overlap {_numbers(clash)} of {clash.id}"
                what += "" if given else "; set first_channel to what `dahdi_cfg -vv` shows"
                self._findings.error((*path, key), what)


def _overlap(one: Trunk, other: Trunk) -> bool:
    if one.span == other.span:
        return True
    low, high = sorted((one, other), key=lambda trunk: trunk.first_number)
    return high.first_number < low.first_number + SPAN_SIZE[low.kind]


def _numbers(trunk: Trunk) -> str:
    return f"{trunk.first_number}-{trunk.first_number + SPAN_SIZE[trunk.kind] - 1}"


def _named(kind: TrunkKind) -> str:
    return f"{'an' if kind.value[0] in 'as' and kind is not TrunkKind.SIP else 'a'} {kind.value}"


def _listed(kinds: tuple[TrunkKind, ...]) -> str:
    *most, last = (kind.value for kind in kinds)
    return f"{', '.join(most)} and {last}" if most else last


def _counted(count: int, most: int, slots: tuple[int, ...]) -> tuple[int, ...]:
    if not 1 <= count <= most:
        raise ValueError(f"must be between 1 and {most}")
    return slots[:count] or tuple(range(1, count + 1))
