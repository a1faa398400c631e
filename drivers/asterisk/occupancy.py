"""What is on the lines of a PBX, read from its lists of channels: a reader without any I/O.

Names as Asterisk 22 makes them: `PJSIP/um1-0000002a` is a call of endpoint um1, `DAHDI/5-1` one on
channel 5. A call of an ISDN span is `DAHDI/i1/number-2a`: it is called after its span and the other
party, and only `DAHDIShowChannels` tells the B channel, which may change during setup (Q.931
5.2.3.1). Names of masquerades, pseudo channels and other drivers are nobody's place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Place = int | str
"""A B channel by DAHDI's number, or a SIP endpoint by name."""

_SIP = re.compile(r"(?:PJSIP|SIP)/(.+)-[0-9a-f]{8}", re.DOTALL)
_BY_NUMBER = re.compile(r"DAHDI/([0-9]{1,6})-[0-9]+")
_BY_SPAN = re.compile(r"DAHDI/i[0-9]+/.*-[0-9a-f]+", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Occupant:
    """One channel of the PBX. `place` is None where it is on no line, or on none we can tell.

    `caller` and `called` are texts off the line.
    """

    uniqueid: str
    linkedid: str
    """The uniqueid of the oldest channel of its call: a leg that was dialled has its caller's."""
    name: str
    place: Place | None
    dialled: bool
    """Made by a Dial, so that some other channel answers for it; else it came in by itself."""
    caller: str = ""
    called: str = ""


def needs_dahdi(channels: Iterable[Mapping[str, str]]) -> bool:
    """Whether some of these `CoreShowChannel` events need `DAHDIShowChannels` to be placed."""
    return any(_BY_SPAN.fullmatch(channel.get("Channel", "")) for channel in channels)


def occupants(
    channels: Iterable[Mapping[str, str]], dahdi: Iterable[Mapping[str, str]] = ()
) -> list[Occupant]:
    """From `CoreShowChannel` and `DAHDIShowChannels` events, which need not be of one moment."""
    numbers: dict[str, int] = {}
    for line in dahdi:
        number, uniqueid = line.get("DAHDIChannel", ""), line.get("Uniqueid", "")
        if uniqueid and number.isascii() and number.isdigit():
            numbers[uniqueid] = int(number)
    return [_occupant(channel, numbers) for channel in channels if channel.get("Uniqueid")]


def _occupant(channel: Mapping[str, str], numbers: Mapping[str, int]) -> Occupant:
    uniqueid, name = channel["Uniqueid"], channel.get("Channel", "")
    return Occupant(
        uniqueid,
        channel.get("Linkedid") or uniqueid,
        name,
        numbers[uniqueid] if uniqueid in numbers else place_of(name),
        channel.get("Application") == "AppDial",
        _number(channel.get("CallerIDNum", "")),
        channel.get("Exten", ""),
    )


def place_of(name: str) -> Place | None:
    """The place a channel's name tells, if it tells one."""
    if sip := _SIP.fullmatch(name):
        return sip[1]
    if line := _BY_NUMBER.fullmatch(name):
        return int(line[1])
    return None


def _number(text: str) -> str:
    return "" if text == "<unknown>" else text
