"""The messages of a node whose spool cannot be had at once."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import suppress
from pathlib import Path

from tests.unit.daemons import until
from tests.unit.messages.offices import TEXTS, made, plan
from tests.unit.messages.receptions import START, Time


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
