"""What AMI messages say of trunks: events as they come, and the lists that polls bring.

Pure: messages in, sightings of alarms out, and what should be asked where a message only hints.
Read in chan_dahdi.c, sig_pri.c and res_pjsip of Asterisk 22, and tried where no hardware is needed:

- By default chan_dahdi tells of alarms channel by channel (`Alarm`), of spans (`SpanAlarm`) only
  with `reportalarms=spans` or `all`. The text is one alarm's, the worst one's.
- No event names the D channel. But when all B channels of a span have gone, be it for an alarm or
  for the D channel, the device `DAHDI/I<span>/congestion` becomes UNAVAILABLE.
- `PeerStatus` is an endpoint's verdict over all its contacts, `ContactStatus` that of one contact.
- An endpoint that has calls is "In use" in all lists even while no contact answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from umpack.core.health_states import AlarmKind
from umpack.core.printable import printable
from umpack.core.trunk import SPAN_SIZE, Trunk, TrunkId

Message = Mapping[str, str]
"""One event, or one item of a list, by header."""

LAYER1: Final = frozenset({AlarmKind.RED, AlarmKind.AIS, AlarmKind.RAI})
LINE: Final = LAYER1 | {AlarmKind.D_CHANNEL}
_NOT_LINE: Final = frozenset({AlarmKind.UNREACHABLE})
"""Said to be over of every line, in case the trunk was a SIP trunk before a reload; and so the
other way round."""

_CALM: Final = frozenset({"", "no alarm", "none", "ok"})
_WORDS: Final = {
    "red": AlarmKind.RED, "blu": AlarmKind.AIS, "blue": AlarmKind.AIS, "yel": AlarmKind.RAI,
    "yellow": AlarmKind.RAI,
}  # fmt: skip
_MULTIPOINT: Final = "multipoint"
_CONGESTION: Final = re.compile(r"DAHDI/I([0-9]{1,6})/congestion\Z")
_PJSIP: Final = "PJSIP/"


class Source(Enum):
    """What can be asked of a PBX about its trunks."""

    LINES = "lines"
    ENDPOINTS = "endpoints"


EVERYTHING: Final = frozenset(Source)


@dataclass(frozen=True, slots=True)
class Sighting:
    """The whole truth about the kinds `among` on one trunk: `kinds` stand, with their details."""

    trunk: TrunkId
    kinds: Mapping[AlarmKind, str]
    among: frozenset[AlarmKind]


@dataclass(frozen=True, slots=True)
class Signal:
    """What one event says, and what is to be asked because of it."""

    sightings: tuple[Sighting, ...] = ()
    ask: frozenset[Source] = frozenset()


NOTHING: Final = Signal()
_ASK_LINES: Final = Signal(ask=frozenset({Source.LINES}))
_ASK_ENDPOINTS: Final = Signal(ask=frozenset({Source.ENDPOINTS}))

Trunks = Collection[Trunk]


# --- events -------------------------------------------------------------------------------------


def read_event(name: str, event: Message, trunks: Trunks, alarmed: Collection[TrunkId]) -> Signal:
    """What an event says of `trunks`, those of its PBX; `alarmed` are the ones known to be dead.

    Events of other names say nothing.
    """
    if name == "DeviceStateChange":
        return _device(event, trunks, alarmed)
    reader = _READERS.get(name)
    return reader(event, trunks) if reader else NOTHING


def _span_alarm(event: Message, trunks: Trunks) -> Signal:
    return _layer1(event.get("Alarm", "Unknown Alarm"), on_span(trunks, event.get("Span", "")))


def _span_clear(event: Message, trunks: Trunks) -> Signal:
    return _layer1("", on_span(trunks, event.get("Span", "")))


def _channel_alarm(event: Message, trunks: Trunks) -> Signal:
    on = with_number(trunks, event.get("DAHDIChannel", ""))
    return _layer1(event.get("Alarm", "Unknown Alarm"), on)


def _channel_clear(event: Message, trunks: Trunks) -> Signal:
    return _layer1("", with_number(trunks, event.get("DAHDIChannel", "")))


def _layer1(text: str, trunks: Iterable[Trunk]) -> Signal:
    sightings = tuple(_layer1_sighting(trunk.id, text) for trunk in trunks)
    # The D channel goes and comes with layer 1, but nothing tells when.
    return Signal(sightings, _ASK_LINES.ask) if sightings else NOTHING


def _layer1_sighting(trunk: TrunkId, text: str) -> Sighting:
    kinds = kinds_of(text)
    if kinds and not _names_alarm(text):
        # Recovering: whatever stands goes on standing, and is over with the whole alarm.
        return Sighting(trunk, kinds, frozenset(kinds))
    return Sighting(trunk, kinds, LAYER1)


def kinds_of(text: str) -> dict[AlarmKind, str]:
    """The alarms that a text of chan_dahdi names ("Red Alarm", "BLU/RED"); empty for none.

    "Recovering", "Loopback", "Not Open" and words yet unknown are red: the line carries nothing.
    """
    if text.strip().lower() in _CALM:
        return {}
    detail = printable(text.strip(), 40)
    found = {_WORDS[word]: detail for word in _words(text) if word in _WORDS}
    return found or {AlarmKind.RED: detail}


def _names_alarm(text: str) -> bool:
    return any(word in _WORDS for word in _words(text))


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def _peer(event: Message, trunks: Trunks) -> Signal:
    peer = event.get("Peer", "")
    if not peer.startswith(_PJSIP):
        return NOTHING
    there = list(behind(trunks, peer.removeprefix(_PJSIP)))
    match event.get("PeerStatus", ""):
        case "Unreachable":
            return Signal(tuple(_unreachable(trunk) for trunk in there))
        case "Reachable":
            return Signal(tuple(_reachable(trunk) for trunk in there))
        case _:
            return _ASK_ENDPOINTS if there else NOTHING


def _contact(event: Message, trunks: Trunks) -> Signal:
    name = event.get("EndpointName") or event.get("AOR", "")
    there = list(behind(trunks, name))
    if event.get("ContactStatus") == "Reachable":
        return Signal(tuple(_reachable(trunk) for trunk in there))
    # It may have others that answer.
    return _ASK_ENDPOINTS if there else NOTHING


def _device(event: Message, trunks: Trunks, alarmed: Collection[TrunkId]) -> Signal:
    device, state = event.get("Device", ""), event.get("State", "")
    dead = state in ("UNAVAILABLE", "INVALID")
    if device.startswith(_PJSIP):
        there = dead and any(behind(trunks, device.removeprefix(_PJSIP)))
        return _ASK_ENDPOINTS if there else NOTHING
    span = _CONGESTION.match(device)
    if span is None:
        return NOTHING
    there = any(dead or trunk.id in alarmed for trunk in on_span(trunks, span[1]))
    return _ASK_LINES if there else NOTHING


_READERS: Final[Mapping[str, Callable[[Message, Trunks], Signal]]] = {
    "Alarm": _channel_alarm,
    "AlarmClear": _channel_clear,
    "ContactStatus": _contact,
    "PeerStatus": _peer,
    "SpanAlarm": _span_alarm,
    "SpanAlarmClear": _span_clear,
}

SIGNAL_EVENTS: Final = frozenset({*_READERS, "DeviceStateChange"})
"""All events that `read_event` understands."""


# --- lists --------------------------------------------------------------------------------------


def read_lines(
    channels: Iterable[Message], spans: Iterable[Message] | None, trunks: Trunks
) -> list[Sighting]:
    """What `DAHDIShowChannels` and `PRIShowSpans` say of the trunks that are lines.

    `spans` is None where the PBX could not tell: then nothing is said of D channels.
    """
    alarms = {item.get("DAHDIChannel", ""): item for item in channels}
    links = None if spans is None else _links(spans)
    sightings = []
    for trunk in trunks:
        if not is_line(trunk):
            continue
        first, past = _numbers(trunk)
        mine = [alarms[text] for n in range(first, past) if (text := str(n)) in alarms]
        link = links.get(str(trunk.span)) if links is not None else None
        resting = any(_is_multipoint(item) for item in mine)
        sightings.append(Sighting(trunk.id, {}, _NOT_LINE))
        if not mine and links is not None and link is None and _dials_dahdi(trunk):
            gone = {AlarmKind.RED: "not in the PBX"}  # a board pulled out: its channels are removed
            sightings.append(Sighting(trunk.id, gone, LINE))
            continue
        if mine:
            text = _worst(item.get("Alarm", "") for item in mine)
            # Where the exchange lets an idle bus rest, layer 1 rests too (layer1_presence=ignore),
            # and is not an alarm unless an event says so.
            if not (kinds_of(text) and resting):
                sightings.append(_layer1_sighting(trunk.id, text))
        if links is not None:
            down = link is False and not resting
            kinds = {AlarmKind.D_CHANNEL: f"span {trunk.span}"} if down else {}
            sightings.append(Sighting(trunk.id, kinds, frozenset({AlarmKind.D_CHANNEL})))
    return sightings


def _links(spans: Iterable[Message]) -> dict[str, bool]:
    """Per span whether it has a D channel that is up: with NFAS one of several is enough."""
    links: dict[str, bool] = {}
    for item in spans:
        span = item.get("Span", "")
        links[span] = links.get(span, False) or item.get("Up") == "Yes"
    return links


def _worst(texts: Iterable[str]) -> str:
    """Of the channels' alarms the first that names one, else any that is not calm."""
    doubtful = [text for text in texts if kinds_of(text)]
    return next((text for text in doubtful if _names_alarm(text)), doubtful[0] if doubtful else "")


def _is_multipoint(channel: Message) -> bool:
    # sig_pri itself takes no channel out when a point-to-multipoint D channel goes down: between
    # calls that is its normal state.
    return _MULTIPOINT in channel.get("Signalling", "").lower()


@dataclass(frozen=True, slots=True)
class EndpointList:
    """What `PJSIPShowEndpoints` says: `unclear` ones are in use, `unknown` ones not in the list."""

    sightings: list[Sighting]
    unclear: list[str]
    unknown: list[str]


def read_endpoints(items: Iterable[Message], trunks: Trunks) -> EndpointList:
    """Read the list for all trunks that are endpoints."""
    rows = {item.get("ObjectName", ""): item for item in items}
    sightings: list[Sighting] = []
    unclear: dict[str, None] = {}
    unknown: dict[str, None] = {}
    for trunk in trunks:
        name = trunk.endpoint
        if name is None:
            continue
        row = rows.get(name)
        if row is None:
            unknown[name] = None
        elif not row.get("Aor"):
            # Dialled with an address of its own (`PJSIP/endpoint/sip:...`); always "Unavailable".
            sightings.append(_reachable(trunk))
        elif row.get("DeviceState") == "Unavailable":
            sightings.append(_unreachable(trunk))
        elif row.get("DeviceState") == "Not in use":
            sightings.append(_reachable(trunk))
        else:
            unclear[name] = None
    return EndpointList(sightings, list(unclear), list(unknown))


def read_endpoint(name: str, items: Iterable[Message], trunks: Trunks) -> list[Sighting]:
    """What `PJSIPShowEndpoint` says of the trunks behind one endpoint, by its contacts."""
    contacts = [item["Status"] for item in items if "Status" in item and "URI" in item]
    if not contacts:
        return []
    dead = all(status in ("Unreachable", "Removed") for status in contacts)
    return [(_unreachable if dead else _reachable)(trunk) for trunk in behind(trunks, name)]


def _unreachable(trunk: Trunk) -> Sighting:
    kinds = {AlarmKind.UNREACHABLE: f"endpoint {trunk.endpoint}"}
    return Sighting(trunk.id, kinds, _NOT_LINE | LINE)


def _reachable(trunk: Trunk) -> Sighting:
    return Sighting(trunk.id, {}, _NOT_LINE | LINE)


# --- which trunks -------------------------------------------------------------------------------


def is_line(trunk: Trunk) -> bool:
    """Whether it is an ISDN line."""
    return trunk.kind.is_line


def on_span(trunks: Trunks, span: str) -> Iterable[Trunk]:
    """The trunks on a span, which may share it."""
    return (t for t in trunks if is_line(t) and t.span is not None and str(t.span) == span)


def with_number(trunks: Trunks, number: str) -> Iterable[Trunk]:
    """The trunks on the span that has this DAHDI channel: an alarm on one channel is the span's."""
    if not (number.isascii() and number.isdigit() and len(number) <= 6):
        return ()
    wanted = int(number)
    return (t for t in trunks if is_line(t) and _numbers(t)[0] <= wanted < _numbers(t)[1])


def behind(trunks: Trunks, endpoint: str) -> Iterable[Trunk]:
    """The trunks that are this PJSIP endpoint."""
    return (t for t in trunks if t.endpoint is not None and t.endpoint == endpoint)


def _numbers(trunk: Trunk) -> tuple[int, int]:
    """The DAHDI numbers of its whole span: the first, and the first past it."""
    return trunk.first_number, trunk.first_number + SPAN_SIZE[trunk.kind]


def _dials_dahdi(trunk: Trunk) -> bool:
    return trunk.dial.technology == "DAHDI"
