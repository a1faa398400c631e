"""Receptions as the tests of the spool make them: an engine that writes bytes where it is told."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from umpack.core.calls import CallId
from umpack.messages.disk_spool import DiskSpool
from umpack.messages.message import CallFacts, EngineFacts, Kind, Message
from umpack.messages.spool_health import SpoolLimits

START = 1_700_000_000.0
NODE = "node1"
CALL = CallFacts(
    call=CallId("1700000000.1"),
    kind=Kind.FAX,
    called="49302000123",
    caller="4930777\udcff\0",
    caller_raw=b"4930777\xff\x00",
    caller_name='"Müller" \u202e$(id)\r\nBcc: x',
    caller_name_raw=b"\xff\xc3\r\n",
    pbx="main",
    channel="fax:3",
)
ENGINE = EngineFacts(
    status="FAILED",
    error="HANGUP",
    pages=2,
    bitrate=14400,
    ecm=True,
    resolution="204x196",
    t38=False,
    station=b"\xff\xc3\r\nBcc:\x00",
    seconds=61.5,
    cause=16,
)
NO_RESERVE = SpoolLimits(reserve_bytes=0, slow_after=60.0)


class Time:
    """A clock that stands until it is moved."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def opened(directory: Path, time: Callable[[], float] | None = None, **more: Any) -> DiskSpool:
    """A spool that adopts at once and keeps no reserve."""
    settings = {"quiet": 0.0, "limits": NO_RESERVE, "domain": "fax.example.org", **more}
    return DiskSpool(directory, NODE, now=time or Time(), **settings)


def pages(number: int, size: int = 9000) -> bytes:
    """The bytes of a fax; another for every number."""
    block = hashlib.sha256(str(number).encode()).digest()
    return (b"II*\0" + block * (size // len(block) + 1))[:size]


def call(number: int) -> CallFacts:
    """The `number`th call."""
    return CallFacts(CallId(f"c{number}"), Kind.FAX, "49302000123", f"4930{number}")


def received(spool: DiskSpool, number: int = 1) -> Message:
    """One fax, whole."""
    intent = spool.intend(call(number))
    Path(intent.path).write_bytes(pages(number))
    return spool.commit(intent.id, EngineFacts("SUCCESS", pages=1))


def content(spool: DiskSpool, message: Message) -> bytes:
    """The original's bytes."""
    assert message.original is not None
    return (spool.directory / message.original.file).read_bytes()
