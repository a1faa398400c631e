"""The desk after a restart: what it knows of calls that are told together, and of who was told."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.messages.offices import (
    WHOLE,
    facts,
    in_memory,
    made,
    office,
    plan,
    received,
    tiff,
)
from tests.unit.messages.receptions import START, Time
from umpack.core.calls import CallId
from umpack.messages.message import EngineFacts, Message
from umpack.messages.office import Messages
from umpack.messages.states import MessageState

NOBODY = 1
"""A port at which there is no mail server."""
BROKEN = replace(WHOLE, status="FAILED", error="no carrier", pages=2)
FAILED = replace(WHOLE, status="FAILED", error="no carrier", pages=0)


async def tried(
    messages: Messages, number: int, engine: EngineFacts, content: bytes = b""
) -> Message:
    """One and the same caller, once more."""
    call = replace(facts(), call=CallId(f"c{number}"))
    message = await received(messages, number, content, engine, call)
    await messages.desk.turn()
    return await messages.spool.message(message.id)


@pytest.mark.parametrize(("calls", "at_once"), [((BROKEN, WHOLE), True), ((WHOLE, BROKEN), False)])
@pytest.mark.parametrize("restarted", [False, True])
async def test_who_was_told_of_late_is_known_after_a_restart(
    calls: tuple[EngineFacts, ...], at_once: bool, restarted: bool
) -> None:
    time = Time(START)
    with in_memory() as folder:
        async with office(folder, NOBODY, now=time) as messages:
            for number, engine in enumerate(calls):
                await tried(messages, number, engine, tiff())
                time.now += 30.0
            if not restarted:
                found = await tried(messages, 9, BROKEN, tiff())
        if restarted:
            async with office(folder, NOBODY, now=time) as messages:
                found = await tried(messages, 9, BROKEN, tiff())
    # The first that is broken goes out at once; further ones are told together.
    assert found.state is (MessageState.QUEUED if at_once else MessageState.COMMITTED)


async def test_a_mail_that_cannot_be_read_does_not_keep_messages_from_starting() -> None:
    time = Time(START)
    with in_memory() as folder:
        async with office(folder, NOBODY, now=time) as messages:
            for number in range(2):
                await tried(messages, number, FAILED)
            time.now += 3600.0
            await messages.desk.turn()
            (main,) = await messages.spool.messages(state=MessageState.QUEUED)
        spoil(folder / "spool", "UPDATE messages SET kind = 'fbx' WHERE id = ?", main.id)
        messages = made(plan(folder, NOBODY), time)
        await messages.open()
        try:
            await messages.start()  # or else there would be no umpack at all, for packs neither
        finally:
            await messages.close(0.0)


def spoil(spool: Path, statement: str, *given: str) -> None:
    with closing(sqlite3.connect(spool / "spool.db")) as db, db:
        assert db.execute(statement, given).rowcount == 1
