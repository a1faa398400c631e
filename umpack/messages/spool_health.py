"""How the spool is, and whether there is room for one more call.

Asked before every answer: a caller who is refused while the exchange can still try elsewhere has
lost nothing; one who has been answered by a full disk has.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection as Db

from umpack import clock
from umpack.core.errors import OurFault
from umpack.messages.spool_schema import SpoolFault, translated
from umpack.messages.spool_writer import SpoolWriter

PAGE_BYTES = 250_000
"""A dense fine page, MH-coded; letters take 30 to 60 kB."""
SECOND_BYTES = 16_000
"""8 kHz, 16 bit."""


@dataclass(frozen=True, slots=True)
class SpoolLimits:
    """When calls are refused before they are answered."""

    reserve_bytes: int = 500_000_000
    """Kept free beyond what running receptions may still need."""
    slow_after: float = 3.0
    """Seconds a sync may take before new calls are refused."""

    def __post_init__(self) -> None:
        if self.reserve_bytes < 0 or self.slow_after <= 0:
            raise OurFault("spool limits: not positive")


@dataclass(frozen=True, slots=True)
class SpoolHealth:
    """The state of one spool at one time. Ages are seconds."""

    free_bytes: int
    writable: bool
    fault: str
    """Why it is not writable."""
    sync_ms: float
    """How long the last sync took, or the one going on has taken so far."""
    slow: bool
    receiving: int
    unaddressed: int
    """Committed and waiting for recipients."""
    queue: int
    """Deliveries that wait or are being sent."""
    oldest_age: float
    """Of the oldest message in the queue or unaddressed; 0 if there is none."""
    ambiguous: int
    dead_letters: int
    owed: int
    """Commits and outcomes the disk has refused, kept in memory and tried again."""

    def __repr__(self) -> str:
        state = self.fault or ("slow" if self.slow else "well")
        return (
            f"<spool {state}: {self.queue} queued, oldest {self.oldest_age:.0f} s, "
            f"{self.dead_letters} dead letters, {self.free_bytes // 1_000_000} MB free>"
        )


def bytes_for(pages: int = 0, seconds: float = 0.0) -> int:
    """What a reception of so many pages or seconds may take at worst."""
    return pages * PAGE_BYTES + round(seconds * SECOND_BYTES)


def free_bytes(directory: Path) -> int:
    """What a user without privileges may still write; `SpoolFault` if nobody can tell."""
    with translated(directory):
        found = os.statvfs(directory)
        return found.f_bavail * found.f_frsize


def probe(directory: Path) -> float:
    """Write and sync one small file; answers the seconds it took, or raises `SpoolFault`."""
    path = directory / ".probe"
    began = clock.monotonic()
    with translated(directory):
        handle = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(handle, bytes(4096))
            os.fsync(handle)
        finally:
            os.close(handle)
    return clock.monotonic() - began


def refusal(
    directory: Path, writer: SpoolWriter, limits: SpoolLimits, promised: int, need: int
) -> str:
    """Why a call that needs so many bytes should not be answered; empty if it may be.

    `promised` is what receptions that are going on may still need.
    """
    began = writer.busy_since
    if began is not None and clock.monotonic() - began > limits.slow_after:
        return f"disk has not answered for {clock.monotonic() - began:.0f} s"
    if writer.fault:
        return f"not writable: {writer.fault}"
    if writer.last_sync > limits.slow_after:
        return f"disk is slow: {writer.last_sync:.1f} s for a sync"
    try:
        free = free_bytes(directory)
    except SpoolFault as fault:
        return str(fault)
    lacking = need + promised + limits.reserve_bytes - free
    if lacking > 0:
        return f"disk is full: {free // 1_000_000} MB free, {lacking // 1_000_000 + 1} MB too few"
    return ""


def look(
    db: Db, directory: Path, writer: SpoolWriter, limits: SpoolLimits, owed: int, now: float
) -> SpoolHealth:
    """Count, and try the disk. Raises what the database raises."""
    fault, took, free = writer.fault, writer.last_sync, 0
    try:
        free = free_bytes(directory)
        took = probe(directory)
    except SpoolFault as found:
        fault = str(found)
    if (began := writer.busy_since) is not None:
        took = max(took, clock.monotonic() - began)
    deliveries = dict(db.execute("SELECT state, count(*) FROM recipients GROUP BY state"))
    messages = dict(db.execute("SELECT state, count(*) FROM messages GROUP BY state"))
    oldest: float | None = db.execute(
        "SELECT min(age) FROM (SELECT min(age) AS age FROM recipients WHERE state IN"
        " ('queued', 'retry', 'ambiguous', 'sending') UNION ALL"
        " SELECT min(committed) FROM messages WHERE state = 'committed')"
    ).fetchone()[0]
    return SpoolHealth(
        free_bytes=free,
        writable=not fault,
        fault=fault,
        sync_ms=took * 1000,
        slow=took > limits.slow_after,
        receiving=messages.get("receiving", 0),
        unaddressed=messages.get("committed", 0),
        queue=sum(deliveries.get(s, 0) for s in ("queued", "retry", "ambiguous", "sending")),
        oldest_age=0.0 if oldest is None else max(now - oldest, 0.0),
        ambiguous=deliveries.get("ambiguous", 0),
        dead_letters=deliveries.get("dead letter", 0),
        owed=owed,
    )
