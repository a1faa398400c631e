"""What umpack knows of the calls that live in the PBX, and what it must know.

Two lists of the PBX's channels with umpack's own between them: what is in both has lived all the
time, so umpack must hold it, on the right trunk and on a slot of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tests.pbx.lab import Lab
from tests.pbx.storm import SERVERS

SILENT = "has not answered within"
"""What the dialplan logs when it passes a umpack by that is there."""


@dataclass(frozen=True, slots=True)
class Leg:
    """One channel that talks to a UM server, and the caller it is bridged with."""

    uniqueid: str
    trunk: str
    caller: str
    context: str = field(compare=False)
    """Of the dialplan, where its caller is."""

    @property
    def is_hunting(self) -> bool:
        """Whether its caller has dialled it without umpack."""
        return self.context == "umpack-trunk"


@dataclass(frozen=True, slots=True)
class Channels:
    """The established legs at one look at the PBX."""

    legs: frozenset[Leg]


def channels(lab: Lab) -> Channels:
    """Ask the PBX now."""
    rows = [line.split("!") for line in lab.rx("core show channels concise").splitlines()]
    # Callers choose what stands in the middle: only what is left and right of it is counted.
    found = [(row[0], row[4], row[-2], row[-1]) for row in rows if len(row) >= 14]
    callers = {row[-2]: row for row in rows if len(row) >= 14 and row[-2] and not trunk_of(row[0])}
    legs = frozenset(
        Leg(id_, trunk_of(name), callers[bridge][-1], callers[bridge][1])
        for name, state, bridge, id_ in found
        if trunk_of(name) and state == "Up" and bridge in callers
    )
    return Channels(legs)


def trunk_of(name: str) -> str:
    """Of a channel's name; empty where it is a caller's."""
    peer = name.removeprefix("PJSIP/").rpartition("-")[0]
    return peer if peer in SERVERS else ""


def to_be_known(old: Channels, before: Channels, after: Channels) -> set[Leg]:
    """Legs that umpack must hold between `before` and `after`: those that lived before it was
    started (`old`), and all that it has placed itself."""
    return {leg for leg in before.legs & after.legs if leg in old.legs or not leg.is_hunting}


def strays(old: Channels, before: Channels, after: Channels, calls: Collection[Any]) -> int:
    """Legs that passed umpack by while it came up, and are not known yet: it finds them a pass
    later."""
    rest = (before.legs & after.legs) - to_be_known(old, before, after)
    return len(faults(rest, {"trunks": ()}, calls))


def faults(legs: Collection[Leg], status: Mapping[str, Any], calls: Collection[Any]) -> list[str]:
    """What is wrong with what umpack says of the living calls; empty if nothing is."""
    slot_of: dict[str, str] = {}
    found = []
    taken: dict[str, str] = {}
    for call in calls:
        uniqueid = call["id"].removeprefix("main-").rpartition("-")[0]
        if call["channel"] is None:
            continue
        slot_of[uniqueid] = call["channel"]
        if taken.setdefault(call["channel"], call["id"]) != call["id"]:
            found.append(f"{call['channel']} has two calls: {taken[call['channel']]}, {call['id']}")
    for leg in legs:
        slot = slot_of.get(leg.uniqueid) or slot_of.get(leg.caller)
        if slot is None:
            found.append(f"unknown: {leg}")
        elif slot.rpartition(":")[0] != leg.trunk:
            found.append(f"on {slot}, says umpack: {leg}")
    for trunk in status["trunks"]:
        living = sum(leg.trunk == trunk["id"] for leg in legs)
        if trunk["leased"] < living:
            found.append(f"{trunk['id']}: {trunk['leased']} leased, {living} live")
    return found


def shared_slots(calls: Collection[Any]) -> list[str]:
    """Ended calls that had one slot at one time, as the journal has them."""
    spans: dict[str, list[tuple[float, float, str]]] = {}
    for call in calls:
        for attempt in call["attempts"]:
            span = (attempt["started"], attempt["ended"], call["id"])
            spans.setdefault(attempt["channel"], []).append(span)
    found = []
    for channel, held in spans.items():
        held.sort()
        found += [f"{channel}: {a}, {b}" for a, b in pairwise(held) if b[0] < a[1] - 0.001]
    return found
