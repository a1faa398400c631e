"""What a reload changes, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from umpack.config import Configuration
from umpack.config.mail import MessagesPlan
from umpack.messages.parts import AT_START, differing


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
    if before.drain_receptions != after.drain_receptions:
        found.append(f"drain of receptions {after.drain_receptions:g} s")
    if before.messages and after.messages:
        new = [key for key in _NAMES if key not in AT_START]
        if keys := differing(before.messages, after.messages, new):
            found.append(f"messages: {', '.join(map(_name, keys))} changed")
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
    if (running.messages is None) != (wanted.messages is None):
        found.append("messages: the section, new or gone, needs a restart")
    elif (
        running.messages
        and wanted.messages
        and (keys := differing(running.messages, wanted.messages, AT_START))
    ):
        found.append(f"messages: a new {', '.join(map(_name, keys))} needs a restart")
    return found


_NAMES = tuple(each.name for each in fields(MessagesPlan))
_IN_THE_FILE = {
    "reserve": "reserve_mb", "directories": "directory", "default_mailboxes": "default_mailbox",
    "keep": "retention", "keep_records": "retention of records",
}  # fmt: skip


def _name(key: str) -> str:
    return _IN_THE_FILE.get(key, key)


def _changed(kind: str, old: Mapping[Any, object], new: Mapping[Any, object]) -> Iterator[str]:
    yield from (f"{kind} {id_} added" for id_ in new if id_ not in old)
    yield from (f"{kind} {id_} removed" for id_ in old if id_ not in new)
    yield from (f"{kind} {id_} changed" for id_ in new if id_ in old and old[id_] != new[id_])
