"""The messages of a node whose spool cannot be had at once."""

from __future__ import annotations

import asyncio
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from simulators.mail import MailServer
from tests.unit.daemons import until
from tests.unit.messages.offices import (
    TEXTS,
    WAV,
    facts,
    made,
    mail_of,
    office,
    plan,
    received,
    settle,
    spoken,
)
from tests.unit.messages.receptions import START, Time
from umpack.messages.message import EngineFacts, Kind
from umpack.messages.spool import Spool


async def test_a_mistake_made_while_the_spool_is_shut_does_not_end_umpack(tmp_path: Path) -> None:
    shutil.copytree(TEXTS, tmp_path / "texts")
    (tmp_path / "spool").write_text("")
    looked = asyncio.Event()

    async def sleep(_: float) -> None:
        looked.set()
        await asyncio.sleep(0.01)

    the_plan = plan(tmp_path, 1, texts=tmp_path / "texts")
    messages = made(the_plan, Time(START), sleep=sleep)
    await messages.open_if_it_will()
    await messages.start()
    watch = asyncio.create_task(messages.watch())
    try:
        await looked.wait()
        assert messages.closed_by
        (tmp_path / "texts" / "en.txt").write_text("to be continued")
        (tmp_path / "spool").unlink()
        await until(lambda: watch.done() or not messages.closed_by)
        assert not watch.done()
    finally:
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
        await messages.close(0.0)


async def test_a_reload_counts_that_comes_while_the_spool_is_being_opened(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("")
    asked, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def large(*args: Any, **more: Any) -> Spool:
        if (tmp_path / "spool").exists():
            return Spool(*args, **more)  # raises: it is no directory
        loop.call_soon_threadsafe(asked.set)
        assert go_on.wait(20.0)
        return Spool(*args, **more)

    messages = made(plan(tmp_path, 1), Time(START), spool=large)
    await messages.open_if_it_will()
    (tmp_path / "spool").unlink()
    opening = asyncio.create_task(messages.start())
    async with MailServer() as server:
        try:
            await asked.wait()
            wanted = plan(tmp_path, server.port, default_mailboxes=("new@site.test",))
            messages.take_on(await messages.prepared(wanted))
            go_on.set()
            await opening
            await spoken(messages)
            await until(lambda: server.accepted)
            assert [one.recipients for one in server.accepted] == [("new@site.test",)]
        finally:
            go_on.set()
            await messages.close(0.0)


async def test_a_recording_that_a_full_disk_cut_is_called_incomplete(tmp_path: Path) -> None:
    """Asterisk closes such a file with a header that fits what is there (tried on Asterisk 22)."""
    async with (
        MailServer() as server,
        office(tmp_path, server.port, now=Time(START)) as messages,
    ):
        engine = EngineFacts("SUCCESS", seconds=2.8)
        await received(messages, 1, WAV, engine, facts(1, Kind.VOICE), "original.wav")
        await settle(messages)
        assert mail_of(server.accepted[0])["Subject"].startswith("[Voice incomplete]")
        (alarm,) = (await messages.look()).alarms
        assert alarm.kind == "pages"
