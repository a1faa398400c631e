"""Faxes from the spool through a real Postfix into a real Maildir."""

from __future__ import annotations

import asyncio
import email
import email.policy
import tempfile
from collections.abc import AsyncIterator
from email.message import EmailMessage
from pathlib import Path

import pytest

from tests.mail.postfix import DOMAIN, FULL, GONE, Postfix, postfix, require
from tests.unit.daemons import until
from tests.unit.messages.fax_files import MH, MMR, MR, Sheet, fax, picture, shown
from tests.unit.messages.offices import attached, facts, made, plan, received, spoken, text_of
from umpack import clock
from umpack.messages.message import EngineFacts
from umpack.messages.states import MessageState


@pytest.fixture
async def server() -> AsyncIterator[Postfix]:
    require()
    with tempfile.TemporaryDirectory(prefix="umpack-postfix-") as folder:
        async with postfix(Path(folder)) as running:
            yield running


def parsed(mail: bytes) -> EmailMessage:
    found = email.message_from_bytes(mail, policy=email.policy.default)
    assert isinstance(found, EmailMessage)
    return found


@pytest.mark.timeout(240)
async def test_twenty_faxes_each_once_with_every_pixel(server: Postfix, tmp_path: Path) -> None:
    to = (f"office@{DOMAIN}",)
    messages = made(plan(tmp_path, server.port, default_mailboxes=to), clock.now)
    await messages.open()
    try:
        await messages.start()
        sent: dict[str, list[bytes]] = {}
        codings = (MH, MR, MMR)

        async def one(number: int) -> None:
            pages = number % 4 + 1
            pictures = [picture(100 * number + page, rows=250) for page in range(pages)]
            content = fax([Sheet(page, coding=codings[number % 3]) for page in pictures])
            call = facts(number, caller_name=f'"Ü{number}"\r\n.\r\nx: y')
            message = await received(
                messages, number, content,
                EngineFacts("SUCCESS", pages=pages, resolution="204x98"), call,
            )  # fmt: skip
            sent[message.message_id] = [image.tobytes() for image in pictures]

        await asyncio.gather(*(one(number) for number in range(20)))
        await until(lambda: len(server.mails()) >= 20, 180)
        await asyncio.sleep(0.5)
        mails = [parsed(mail) for mail in server.mails()]
        assert sorted(mail["Message-ID"] for mail in mails) == sorted(sent)
        for mail in mails:
            wanted = sent[mail["Message-ID"]]
            ((kind, data),) = attached(mail)
            assert kind == "application/pdf"
            assert [page.tobytes() for page in shown(data)] == wanted
            assert mail["X-FaxNumberOfPages"] == str(len(wanted))
            assert mail["x"] is None
            assert "49302000123" in text_of(mail)
        for message in await messages.spool.messages():
            assert message.state is MessageState.DELIVERED
            (recipient,) = message.recipients
            # By this name the administrator finds it in Postfix's log.
            assert recipient.queue_id
            assert f"{recipient.queue_id}: message-id={message.message_id}" in server.log
    finally:
        await messages.close()


@pytest.mark.timeout(120)
async def test_three_recipients_have_three_ends(server: Postfix, tmp_path: Path) -> None:
    to = tuple(f"{name}@{DOMAIN}" for name in ("office", FULL, GONE))
    messages = made(plan(tmp_path, server.port, default_mailboxes=to), clock.now)
    await messages.open()
    try:
        await messages.start()
        message = await spoken(messages)
        await until(lambda: len(server.mails()) == 1)
        ends: list[tuple[str, str]] = []
        async with asyncio.timeout(20):
            while [state for state, _ in ends] != ["delivered", "retry", "dead letter"]:
                await asyncio.sleep(0.1)
                record = await messages.spool.message(message.id)
                ends = [(one.state.value, one.why) for one in record.recipients]
        assert "452 4.2.2" in ends[1][1]
        assert "550 5.1.1" in ends[2][1]
    finally:
        await messages.close()
