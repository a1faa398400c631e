"""Calls of the journal against messages of the spool: every one has exactly one, or is named."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.unit.daemons import daemon_of, logged, text
from tests.unit.messages.offices import facts, in_memory, made, office, plan, received, spoken, tiff
from tests.unit.messages.receptions import START, Time
from umpack import clock
from umpack.cli import fax_tables
from umpack.core.calls import Attempt, Call, CallId, CallRecord, Ending
from umpack.core.causes import Blame, Elsewhere, Outcome, Result, Verdict
from umpack.core.channel import ChannelId
from umpack.core.pack import PackId
from umpack.core.trunk import PbxId, TrunkId
from umpack.journal import Journal
from umpack.mailroom import messages_of
from umpack.messages.office import Messages, until_night
from umpack.messages.reconciliation import AnsweredCall, answered
from umpack.records import Records

SERVICES = frozenset(("fax",))
HOUR, DAY = 3600.0, 86_400.0


def record(
    number: int,
    ending: Ending = Ending.CONNECTED,
    *,
    trunk: str = "fax",
    picked_up: bool = True,
    began: float = START,
    lasted: float = 60.0,
) -> CallRecord:
    """The journal's, of a call that a service has had."""
    attempt = Attempt(
        ChannelId(f"{trunk}:1"), TrunkId(trunk), PackId("in"), 1, None, 0, began, began + lasted,
        Outcome(Result.ANSWERED), Verdict(Elsewhere.NO, Blame.NOBODY, "answered"),
    )  # fmt: skip
    call = Call(CallId(f"c{number}"), PbxId("main"), "49302000123", f"493077{number}")
    return CallRecord(
        call, began, began + lasted, ending, 16, "", "*", (attempt,), (), (),
        answered=began + 2.0 if picked_up else None,
    )  # fmt: skip


@asynccontextmanager
async def spool_of(records: Sequence[CallRecord], **more: Any) -> AsyncIterator[Messages]:
    """Messages whose journal has these calls."""

    async def calls(since: float) -> Sequence[AnsweredCall]:
        return answered([one for one in records if one.ended >= since], SERVICES)

    time = Time(START + HOUR)
    with in_memory() as directory:
        messages = made(plan(directory, 9, **more), time, calls=calls)
        await messages.open()
        try:
            yield messages
        finally:
            await messages.close(0.0)


def names(found: Sequence[AnsweredCall]) -> list[str]:
    return [call.call for call in found]


async def test_a_call_with_its_message_and_one_without() -> None:
    async with spool_of([record(1), record(2)]) as messages:
        await received(messages, 1, tiff())
        with logged() as lines:
            found = await messages.reconcile()
            status = await messages.look()
        assert names(found.without_record) == ["c2"]
        assert (found.doubled, found.without_message) == ((), ())
        assert [one.call.call for one in found.without_end] == ["c1"]
        assert [a.kind for a in status.alarms] == ["no record"]
        assert any("no record: 1 answered calls" in line for line in lines)
        assert (await messages.spool.of_calls([CallId("c2")])) == {}


@pytest.mark.parametrize(
    ("call", "counts"),
    [
        (record(1, Ending.LEAKED), True),
        (record(1, Ending.ABANDONED), True),
        (record(1, Ending.LEAKED, picked_up=False), False),
        (record(1, Ending.ABANDONED, picked_up=False), False),
        (record(1, Ending.REFUSED, picked_up=False), False),
        (record(1, picked_up=False), True),  # connected, and the hint of it was lost
        (record(1, trunk="um1"), False),
        (replace(record(1), attempts=()), False),
    ],
)
async def test_what_counts_is_that_it_was_answered(call: CallRecord, *, counts: bool) -> None:
    async with spool_of([call]) as messages:
        assert names((await messages.reconcile()).without_record) == ["c1"] * counts
        await received(messages, 1, tiff())
        assert (await messages.reconcile()).without_record == ()


async def test_a_call_with_two_messages_is_named() -> None:
    async with spool_of([record(1), record(2)]) as messages:
        ids = [(await received(messages, 1, tiff())).id, (await spoken(messages, 1)).id]
        await spoken(messages, 2)
        with logged() as lines:
            ((call, found),) = (await messages.reconcile()).doubled
            kinds = [alarm.kind for alarm in (await messages.look()).alarms]
        assert (call.call, list(found)) == ("c1", ids)
        assert kinds == ["several records"]
        assert [line for line in lines if "ERROR" in line and "several records: 1" in line]


async def test_however_long_ago_a_call_began_its_message_is_found() -> None:
    """A call of six hours that ended in the window; its message was begun before."""
    began = START - 2 * DAY - 5 * HOUR
    async with spool_of([record(1, began=began, lasted=6.5 * HOUR)]) as messages:
        at_the_time = cast("Time", messages._now)
        at_the_time.now, now = began, at_the_time.now
        intent = await messages.intend(facts(1))
        at_the_time.now = now
        assert (await messages.reconcile()).without_record == ()
        assert intent.id


async def test_records_that_are_over_are_not_missed() -> None:
    async with spool_of([record(1, began=START - DAY)], keep_records=HOUR) as messages:
        assert (await messages.reconcile()).without_record == ()


async def test_thousands_of_calls(capsys: pytest.CaptureFixture[str]) -> None:
    async with spool_of([record(number) for number in range(2500)]) as messages:
        for number in range(0, 2500, 250):
            await spoken(messages, number)
        assert len((await messages.reconcile()).without_record) == 2490


# -- as people see it -----------------------------------------------------------------------------


async def test_open_shows_all_four(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from umpack.web import messages_api

    monkeypatch.setenv("COLUMNS", "200")
    async with spool_of([record(1), record(2), record(3)]) as messages:
        for _ in range(2):
            await spoken(messages, 1)
        still = await messages.intend(facts(2))
        answer = messages_api.opened(await messages.reconcile())
    fax_tables.open_calls(answer)
    out = capsys.readouterr().out
    for title in (
        "Answered calls without a message", "Calls with several messages",
        "Receptions without an end", "Messages without an end",
    ):  # fmt: skip
        assert title in out
    missing, doubled = out.split("Calls with several messages")
    assert "c3" in missing
    assert "c1" not in missing
    assert "c1" in doubled.split("Receptions")[0]
    assert still.id in out
    fax_tables.open_calls(answer | {key: [] for key in answer if key not in ("at", "since")})
    assert capsys.readouterr().out == "every call has its message, every message its end\n"


# -- when -----------------------------------------------------------------------------------------


async def test_it_runs_after_the_start_and_in_every_night() -> None:
    """Three nights of virtual time."""
    time = Time(datetime(2026, 1, 27, 15, 30).astimezone().timestamp())
    asked: list[datetime] = []
    over = asyncio.Event()

    async def calls(since: float) -> Sequence[AnsweredCall]:
        asked.append(datetime.fromtimestamp(time.now).astimezone())
        if len(asked) == 4:
            over.set()
            await asyncio.Event().wait()
        return answered([record(1, began=time.now - HOUR)], SERVICES)

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(0)
        time.now += seconds

    with in_memory() as directory, logged() as lines:
        messages = made(plan(directory, 9), time, calls=calls, wall=time, sleep=sleep)
        await messages.open()
        try:
            await messages.start()
            async with asyncio.timeout(30):
                await over.wait()
        finally:
            await messages.close(0.0)
    assert [at.strftime("%d %H:%M") for at in asked] == [
        "27 15:31", "28 03:00", "29 03:00", "30 03:00"
    ]  # fmt: skip
    named = [line for line in lines if "c1" in line and "has no message" in line]
    assert len(named) == 3


def test_the_next_night_is_ahead() -> None:
    for hour in (0, 2, 3, 4, 23):
        at = datetime(2026, 6, 1, hour, 0, 1).astimezone().timestamp()
        assert 0 < until_night(at) <= DAY


# -- of the daemon --------------------------------------------------------------------------------

FAX_SITE = text(
    trunks="  fax: {kind: fax, channels: 2}\n",
    packs="  in: {members: [fax]}\n",
    routes='  - {called: "*", pack: in}\n',
)


async def test_a_service_that_a_reload_brings_is_reconciled_and_one_that_left_still_is(
    tmp_path: Path,
) -> None:
    from tests.unit.cli.test_faxes import section

    both = FAX_SITE.replace("  fax: {", "  fax2: {kind: fax, channels: 1}\n  fax: {")
    async with daemon_of(tmp_path, FAX_SITE + section(9)) as running:
        messages = running.daemon.messages
        assert messages is not None
        running.write(both + section(9))
        await running.daemon.reload()
        running.daemon._records.journal.append(
            [record(1, began=clock.now() - 90.0), record(2, trunk="fax2", began=clock.now() - 90.0)]
        )
        await asyncio.to_thread(running.daemon._records.journal.flush, 10.0)
        found = await running.ask("get", "/v1/messages/open")
        assert sorted(one["call"] for one in found["without_record"]) == ["c1", "c2"]
        running.write(FAX_SITE + section(9))
        await running.daemon.reload()
        assert len(names((await messages.reconcile()).without_record)) == 2


async def test_without_services_the_journal_is_not_read(tmp_path: Path) -> None:
    async with daemon_of(tmp_path, text()) as running:
        journal = Journal(tmp_path / "other.db", "here")
        try:
            configuration = running.daemon.configuration
            assert messages_of(
                lambda: configuration, "here", running.daemon.distributor,
                cast("Records", SimpleNamespace(journal=journal)),
            ) is None  # fmt: skip
        finally:
            journal.close()
    async with office(tmp_path, 9) as messages:
        assert (await messages.reconcile()).without_record == ()
