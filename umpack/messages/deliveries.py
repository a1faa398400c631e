"""The rows of deliveries: claimed, ended, decided; each within the transaction of its caller.

A claim is a lease with a token: only who holds it can say how the sending ended, once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from sqlite3 import Connection as Db

from loguru import logger

from umpack.core.errors import LeaseError, OurFault, StateError
from umpack.journal.rows import Cell, stored
from umpack.messages import records, told
from umpack.messages.message import (
    Decision,
    Delivery,
    DeliveryKey,
    Form,
    Message,
    MessageId,
    Recipient,
)
from umpack.messages.spool_rows import form_cell, recipient_of
from umpack.messages.states import (
    OPEN,
    RECIPIENT,
    MessageState,
    RecipientEvent,
    RecipientState,
    next_recipient,
)

FAR = 86_400.0
"""No sender waits as long before a retry: a time further ahead was set by a wrong clock."""
_OPEN = tuple(sorted(state.value for state in OPEN))


def due(db: Db, now: float, limit: int, amiss: set[DeliveryKey]) -> list[Delivery]:
    """What may be sent now, oldest message first. `amiss` are those that cannot be read, as far as
    the log has been told of them."""
    rows = db.execute(
        "SELECT message, number FROM recipients INDEXED BY recipients_open"
        " WHERE state IN ('queued', 'retry', 'ambiguous') AND (next_at <= ? OR next_at > ?)"
        " ORDER BY age, message, number",
        (now, now + FAR),
    )
    messages: dict[str, Message] = {}
    found: list[Delivery] = []
    # Counted here: those that cannot be read must not take the places of those that can.
    while len(found) < limit and (row := rows.fetchone()) is not None:
        id_, number = row["message"], row["number"]
        try:
            if id_ not in messages:
                messages[id_] = records.fetch(db, id_)
            found.append(Delivery(messages[id_], _recipient(messages[id_], number)))
        except OurFault as fault:
            # One that cannot be read must not stop the queue.
            if (id_, number) not in amiss:
                amiss.add((id_, number))
                logger.error("spool: {} to no. {} cannot be sent: {}", id_, number, fault)
    return found


def next_due(db: Db) -> float | None:
    """When the next delivery is due; None if none is open."""
    found: float | None = db.execute(
        f"SELECT min(next_at) FROM recipients WHERE state IN {_OPEN}"  # noqa: S608 - our own
    ).fetchone()[0]
    return found


def claim(db: Db, id_: MessageId, number: int, token: str, now: float) -> Delivery:
    """Take a delivery that is due. `StateError` if another has it, or it is not due any more."""
    message = records.fetch(db, id_)
    recipient = _recipient(message, number)
    if now < recipient.next_at <= now + FAR:
        raise StateError(f"{id_} to no. {number}: not due")
    _move(db, recipient, RecipientEvent.CLAIM, now, {"token": token})
    message = records.followed(db, message)
    return Delivery(message, _recipient(message, number), token, told.others(db, id_))


def end(
    db: Db,
    delivery: Delivery,
    event: RecipientEvent,
    now: float,
    **columns: Cell,
) -> None:
    """How a claimed delivery ended. `LeaseError` if it is not held by this token."""
    held = delivery.recipient
    row = db.execute(
        "SELECT * FROM recipients WHERE message = ? AND number = ?", (held.message, held.number)
    ).fetchone()
    if row is None or not delivery.token or row["token"] != delivery.token:
        raise LeaseError(f"{held.message} to no. {held.number}: not claimed by this sender")
    recipient = recipient_of(row)
    tried = event is not RecipientEvent.RELEASED
    changes: dict[str, Cell] = {"token": None, "tries": recipient.tries + tried, **columns}
    if event is RecipientEvent.UNCERTAIN:
        changes["doubts"] = recipient.doubts + 1
    _move(db, recipient, event, now, changes)


def shape(db: Db, id_: MessageId, number: int, form: Form) -> None:
    """Fix in which form the mail of a delivery is written, from its first try on."""
    db.execute(
        "UPDATE recipients SET form = ? WHERE message = ? AND number = ?",
        (form_cell(form), id_, number),
    )


def add_note(db: Db, held: Recipient, now: float, domain: str) -> None:
    """Tell the recipient of a message that was too large for its server: an edition of its own,
    without the files, one for each address. The dead letter stays what it is."""
    message = records.fetch(db, held.message)
    told = {one.address for one in message.recipients if one.form and one.form.note}
    if held.address in told:
        return
    # By the row: the sender may have fixed the form after the claim.
    base = _recipient(message, held.number).form or Form("", "")
    form = replace(base, bare=(), without=(), note=True)
    _add_edition(db, message, [held.address], now, domain, {held.address: form})
    detail = f"no. {held.number}; too large, told without files"
    records.note(db, now, "umpack", "note", held.message, detail)


def _add_edition(
    db: Db,
    message: Message,
    addresses: Sequence[str],
    now: float,
    domain: str,
    forms: Mapping[str, Form],
) -> None:
    edition = 1 + max((r.edition for r in message.recipients), default=1)
    new_id = f"<{message.id}.{edition}@{domain}>"
    records.add_recipients(db, message, addresses, edition, new_id, float(int(now)), now, forms)


def close_one(
    db: Db, id_: MessageId, number: int, event: RecipientEvent, why: str, now: float
) -> None:
    """A delivery that is not being sent has come to its end: expired, or bounced."""
    _move(db, _recipient(records.fetch(db, id_), number), event, now, {"why": stored(why)})


def abandon(db: Db, now: float, asked: Mapping[DeliveryKey, str]) -> int:
    """At start: whatever is in sending has lost its sender, and with it the knowledge whether the
    server took it. Due at once, at the same server (`asked`, where known).
    Answers how many there were."""
    rows = db.execute(
        "SELECT message, number FROM recipients WHERE state = ?", (RecipientState.SENDING.value,)
    ).fetchall()
    state = next_recipient(RecipientState.SENDING, RecipientEvent.ABANDONED).value
    for row in rows:
        # Nothing else is read of it: the message's own row may be lost with a damaged file until
        # its original is adopted, and what cannot be read must not keep the spool shut.
        id_, number = MessageId(row["message"]), row["number"]
        server = asked.get((id_, number))
        db.execute(
            "UPDATE recipients SET state = ?, changed = ?, token = NULL, next_at = ?, why = ?,"
            " tries = tries + 1, doubts = doubts + 1, server = coalesce(?, server)"
            " WHERE message = ? AND number = ?",
            (state, now, now, "umpack ended while it was being sent",
             stored(server) if server else None, id_, number),
        )  # fmt: skip
        try:
            records.follow_recipients(db, id_, now)
        except ValueError as error:
            logger.error("spool: {}: {}", id_, error)
    return len(rows)


def decide(
    db: Db,
    id_: MessageId,
    by: str,
    what: Decision,
    now: float,
    domain: str,
    number: int | None = None,
    addresses: Sequence[str] = (),
    why: str = "",
) -> Message:
    """What a person has said, for one delivery or for all that are not delivered; audited.

    Forward and resend make a new edition with its own Message-ID and Date; what was open before
    is closed by it. `StateError`, and nothing changed, where the table has no such step.
    """
    message = records.fetch(db, id_)
    if message.state is MessageState.RECEIVING:
        raise StateError(f"message {id_}: still being received")
    if what is Decision.FORWARD and not addresses:
        raise StateError(f"message {id_}: forwarded to nobody")
    if what in (Decision.FORWARD, Decision.RESEND) and message.purged is not None:
        raise StateError(f"message {id_}: its original has been deleted, retention being over")
    chosen = message.recipients if number is None else (_recipient(message, number),)
    if what is Decision.RETRY:
        _retry(db, message, chosen, now)
    elif what is Decision.DISCARD:
        if message.recipients:
            _close(db, chosen, by, what, now, needed=True)
        else:
            records.close(db, id_, now)
    else:
        forms: dict[str, Form] = {}
        if what is Decision.RESEND:
            # A note is no edition of the message: who has had one is to have the message.
            proper = [r for r in chosen if number is not None or not (r.form and r.form.note)]
            latest = max((r.edition for r in proper), default=0)
            again = [r for r in proper if number is not None or r.edition == latest]
            addresses = [r.address for r in again]
            forms = {r.address: Form(r.form.language, r.form.attach) for r in again if r.form}
            if not addresses:
                raise StateError(f"message {id_}: sent to nobody yet, nothing to send again")
        _close(db, chosen, by, what, now, needed=False)
        _add_edition(db, message, addresses, now, domain, forms)
    target = "all" if number is None else f"no. {number}"
    detail = "; ".join(part for part in (target, ", ".join(addresses), why) if part)
    records.note(db, now, by, what.value, id_, detail)
    return records.fetch(db, id_)


def _retry(db: Db, message: Message, chosen: Sequence[Recipient], now: float) -> None:
    able = RECIPIENT[RecipientEvent.RETRIED]
    targets = [r for r in chosen if r.state in able]
    if not targets:
        states = ", ".join(sorted({r.state.value for r in chosen})) or "no recipients"
        raise StateError(f"message {message.id}: nothing to try again ({states})")
    for recipient in targets:
        _move(db, recipient, RecipientEvent.RETRIED, now, {"next_at": now})


def _close(
    db: Db,
    chosen: Sequence[Recipient],
    by: str,
    what: Decision,
    now: float,
    *,
    needed: bool,
) -> None:
    final = (RecipientState.DELIVERED, RecipientState.DECIDED)
    targets = [r for r in chosen if r.state not in final]
    if needed and not targets:
        raise StateError("nothing left to decide: delivered or decided already")
    for recipient in targets:
        changes: dict[str, Cell] = {
            "decided_by": stored(by), "decided_what": what.value, "decided_at": now
        }  # fmt: skip
        _move(db, recipient, RecipientEvent.CLOSED, now, changes)


def _recipient(message: Message, number: int) -> Recipient:
    # Looked for, not counted: rows before it may be lost with a damaged file.
    found = next((one for one in message.recipients if one.number == number), None)
    if found is None:
        raise StateError(f"message {message.id}: no recipient no. {number}")
    return found


def _move(
    db: Db,
    recipient: Recipient,
    event: RecipientEvent,
    now: float,
    changes: dict[str, Cell],
) -> None:
    state = next_recipient(recipient.state, event)
    columns: dict[str, Cell] = {"state": state.value, "changed": now, **changes}
    db.execute(
        f"UPDATE recipients SET {', '.join(f'{c} = ?' for c in columns)} "  # noqa: S608 - our own
        "WHERE message = ? AND number = ?",
        (*columns.values(), recipient.message, recipient.number),
    )
    records.follow_recipients(db, recipient.message, now)
