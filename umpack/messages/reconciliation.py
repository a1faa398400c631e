"""Does every call have its message, and every message its end?

Four lists answer "the sender has an OK report, where is my fax?": calls that were answered and have
no record, calls that have more than one, receptions whose call has not ended, messages that have
not come to their end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from loguru import logger

from umpack.core.calls import CallId, CallRecord, Ending
from umpack.core.printable import printable
from umpack.messages.message import Message, MessageId
from umpack.messages.store import MessageStore

WINDOW: Final = 2 * 86_400.0
"""Seconds looked back: every night sees the night before once more."""
_MANY: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class AnsweredCall:
    """A call of the journal that a fax or voice service has answered."""

    call: CallId
    called: str
    caller: str
    channel: str
    ended: float


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What was found. All empty: every call and every message has come to its end."""

    at: float
    since: float
    without_record: tuple[AnsweredCall, ...] = ()
    """Answered by a service, and nothing in the spool: lost, or never begun."""
    doubled: tuple[tuple[AnsweredCall, tuple[MessageId, ...]], ...] = ()
    """One call, and several messages that say they are its."""
    without_message: tuple[Message, ...] = ()
    """Receptions without an end: their calls are going on, or will be adopted."""
    without_end: tuple[Message, ...] = ()
    """Committed, and not yet delivered to all, nor decided."""

    def __repr__(self) -> str:
        return (
            f"<{len(self.without_record)} calls without a record, {len(self.doubled)} with "
            f"several, {len(self.without_message)} receptions and {len(self.without_end)} messages "
            "without an end>"
        )


def answered(records: Iterable[CallRecord], services: frozenset[str]) -> tuple[AnsweredCall, ...]:
    """Those of the journal's records that one of the `services` (trunk ids) has answered, however
    they ended: a caller who was lost after the answer believes that his fax has arrived."""
    return tuple(
        AnsweredCall(
            record.call.id, record.call.called, record.call.caller, str(record.channel),
            record.ended,
        )
        for record in records
        if (record.answered is not None or record.ending is Ending.CONNECTED)
        and record.attempts
        and record.attempts[-1].trunk in services
    )  # fmt: skip


async def reconcile(
    spool: MessageStore, calls: Sequence[AnsweredCall], now: float, since: float | None = None
) -> Reconciliation:
    """Compare; `calls` are those that ended from `since` on. Raises `SpoolFault`."""
    begin = now - WINDOW if since is None else since
    # By their ids: how long ago a call began, or what a clock has done since, does not matter.
    known = await spool.of_calls([call.call for call in calls])
    still = await spool.open_calls(_MANY)
    return Reconciliation(
        now,
        begin,
        tuple(call for call in calls if call.call not in known),
        tuple((call, known[call.call]) for call in calls if len(known.get(call.call, ())) > 1),
        still.without_message,
        still.without_end,
    )


def report(found: Reconciliation, late: float) -> None:
    """Into the log, each by its name; what is younger than `late` seconds is on its way."""
    for call in found.without_record:
        logger.error(
            "call {} from {} to {} was answered by {} and has no message", printable(call.call),
            printable(call.caller), printable(call.called), printable(call.channel),
        )  # fmt: skip
    for call, messages in found.doubled:
        logger.error("call {} has several messages: {}", printable(call.call), ", ".join(messages))
    for message in (*found.without_message, *found.without_end):
        if found.at - message.started >= late:
            logger.warning("{!r} since {:.0f} s", message, found.at - message.started)
    logger.info("reconciliation: {!r}", found)
