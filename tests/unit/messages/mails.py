"""Records as the spool gives them, for tests of what is made of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from umpack.core.calls import CallId
from umpack.messages.message import (
    CallFacts,
    DocumentFacts,
    EngineFacts,
    Kind,
    Message,
    MessageId,
    Original,
    Recipient,
)
from umpack.messages.states import MessageState, RecipientState

START = 1_700_000_000.0
ORIGINAL = Original("messages/2023/11/x/original.tif", 12345, "ab" * 32)
ENGINE = EngineFacts(
    status="SUCCESS", error="", pages=2, bitrate=14400, ecm=True, resolution="204x196",
    t38=False, station=b"+49 30 777", seconds=61.5, cause=16,
)  # fmt: skip
DOCUMENT = DocumentFacts(2, 2, 0, ("aa", "bb"), "")
BROKEN = replace(ENGINE, status="FAILED", error="Disconnected after permitted retries")


def message(
    number: int = 1,
    *,
    at: float = START,
    kind: Kind = Kind.FAX,
    caller: str = "+4930777",
    called: str = "4930200012",
    engine: EngineFacts | None = ENGINE,
    document: DocumentFacts | None = DOCUMENT,
    original: Original | None = ORIGINAL,
    **more: Any,
) -> Message:
    """A received message; `call` values that tests set: caller, called, kind."""
    call = CallFacts(
        CallId(f"{at:.0f}.{number}"), kind, called, caller, caller.encode("utf-8", "replace"),
        more.pop("name_of_caller", "Anna"), pbx="main", channel="fax service:3",
    )  # fmt: skip
    name = "original.tif" if kind is Kind.FAX else "original.wav"
    settings = {"name": name, "state": MessageState.QUEUED, **more}
    return Message(
        id=MessageId(f"node1-20231114t221320-{number:04x}-{number:016x}"),
        node="node1",
        call=call,
        started=at - 60,
        committed=at,
        message_id=f"<{number}@fax.example.org>",
        date=at,
        engine=engine,
        document=document,
        original=original,
        **settings,
    )


def recipient(of: Message, address: str = "anna@example.org", **more: Any) -> Recipient:
    """The first delivery of a message."""
    settings = {"number": 1, "edition": 1, "message_id": of.message_id, "date": START, **more}
    return Recipient(
        message=of.id, address=address, state=RecipientState.QUEUED, next_at=START, **settings
    )
