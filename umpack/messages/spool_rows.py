"""A message and its recipients as rows, and back, without losing a character."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from umpack.core.calls import CallId
from umpack.core.errors import OurFault
from umpack.journal.rows import Cell, loaded, loaded_json, stored, stored_json
from umpack.messages.message import (
    CallFacts,
    Decided,
    DocumentFacts,
    EngineFacts,
    Form,
    Kind,
    Message,
    MessageId,
    Original,
    Recipient,
)
from umpack.messages.states import MessageState, RecipientState


def call_columns(call: CallFacts) -> dict[str, Cell]:
    """The columns of what was known before the answer."""
    return {
        "call": stored(call.call),
        "kind": call.kind.value,
        "called": stored(call.called),
        "caller": stored(call.caller),
        "caller_raw": call.caller_raw.hex(),
        "caller_name": stored(call.caller_name),
        "caller_name_raw": call.caller_name_raw.hex(),
        "pbx": stored(call.pbx),
        "channel": stored(call.channel),
    }


def engine_cell(engine: EngineFacts) -> str:
    """One cell of JSON; bytes as hex."""
    return stored_json({**asdict(engine), "station": engine.station.hex()})


def document_cell(document: DocumentFacts) -> str:
    """One cell of JSON."""
    return stored_json(asdict(document))


def form_cell(form: Form | None) -> str | None:
    """One cell of JSON."""
    return None if form is None else stored_json(asdict(form))


def message_of(row: sqlite3.Row, recipients: Iterable[sqlite3.Row]) -> Message:
    """The message of a row; `OurFault` if it cannot be read."""
    try:
        return Message(
            id=MessageId(row["id"]),
            node=loaded(row["node"]),
            state=MessageState(row["state"]),
            call=CallFacts(
                call=CallId(loaded(row["call"])),
                kind=Kind(row["kind"]),
                called=loaded(row["called"]),
                caller=loaded(row["caller"]),
                caller_raw=bytes.fromhex(row["caller_raw"]),
                caller_name=loaded(row["caller_name"]),
                caller_name_raw=bytes.fromhex(row["caller_name_raw"]),
                pbx=loaded(row["pbx"]),
                channel=loaded(row["channel"]),
            ),
            name=row["name"],
            started=row["started"],
            committed=row["committed"],
            ended=row["ended"],
            message_id=row["message_id"],
            date=row["date"],
            adopted=loaded(row["adopted"]),
            original=(
                None if row["file"] is None else Original(row["file"], row["size"], row["sha256"])
            ),
            engine=_engine_of(row["engine"]),
            document=_document_of(row["document"]),
            related=None if row["related"] is None else MessageId(row["related"]),
            purged=row["purged"],
            recipients=tuple(recipient_of(r) for r in recipients),
            answered=row["answered"],
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise OurFault(
            f"a message in the spool cannot be read: {type(error).__name__}: {error}"
        ) from error


def recipient_of(row: sqlite3.Row) -> Recipient:
    """The recipient of a row."""
    decided = None
    if row["decided_by"] is not None:
        decided = Decided(loaded(row["decided_by"]), loaded(row["decided_what"]), row["decided_at"])
    return Recipient(
        message=MessageId(row["message"]),
        number=row["number"],
        address=loaded(row["address"]),
        edition=row["edition"],
        message_id=row["message_id"],
        date=row["date"],
        state=RecipientState(row["state"]),
        next_at=row["next_at"],
        tries=row["tries"],
        doubts=row["doubts"],
        server=loaded(row["server"]),
        reply=loaded(row["reply"]),
        queue_id=loaded(row["queue_id"]),
        why=loaded(row["why"]),
        changed=row["changed"],
        decided=decided,
        form=_form_of(row["form"]),
    )


def _form_of(cell: str | None) -> Form | None:
    if cell is None:
        return None
    facts: dict[str, Any] = loaded_json(cell)
    ids = {key: tuple(map(MessageId, facts[key])) for key in ("bare", "without")}
    return Form(**{**facts, **ids})


def _engine_of(cell: str | None) -> EngineFacts | None:
    if cell is None:
        return None
    facts: dict[str, Any] = loaded_json(cell)
    return EngineFacts(**{**facts, "station": bytes.fromhex(facts["station"])})


def _document_of(cell: str | None) -> DocumentFacts | None:
    if cell is None:
        return None
    facts: dict[str, Any] = loaded_json(cell)
    return DocumentFacts(**{**facts, "page_hashes": tuple(facts["page_hashes"])})
