"""What a reload changes, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from umpack.config import Configuration


def changes(before: Configuration, after: Configuration) -> list[str]:
    """What is done at once."""
    found = [
        *_changed("trunk", before.site.trunks, after.site.trunks),
        *_changed("pack", before.site.packs, after.site.packs),
    ]
    if before.site.routes != after.site.routes:
        found.append("routes changed")
    if before.site.causes != after.site.causes:
        found.append("causes changed")
    if before.site.no_route_cause != after.site.no_route_cause:
        found.append("cause without a route changed")
    if before.drain_deadline != after.drain_deadline:
        found.append(f"drain deadline {after.drain_deadline:g} s")
    return found


def left_for_restart(running: Configuration, wanted: Configuration) -> list[str]:
    """What only a restart does, compared with the configuration umpack was started with."""
    found = []
    if running.node != wanted.node:
        found.append("node: the new name needs a restart")
    if running.control != wanted.control:
        found.append("control: the new socket needs a restart")
    if running.journal != wanted.journal:
        found.append("journal: its new path or time needs a restart")
    if running.messages != wanted.messages:
        found.append("messages: their new settings need a restart")
    return found


def _changed(kind: str, old: Mapping[Any, object], new: Mapping[Any, object]) -> Iterator[str]:
    yield from (f"{kind} {id_} added" for id_ in new if id_ not in old)
    yield from (f"{kind} {id_} removed" for id_ in old if id_ not in new)
    yield from (f"{kind} {id_} changed" for id_ in new if id_ in old and old[id_] != new[id_])
