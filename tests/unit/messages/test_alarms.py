"""Each alarm begins once, is told again when it grows, does not hide another, and ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from simulators.mail import Act, MailServer, Script, Then
from tests.unit.daemons import logged
from tests.unit.messages.offices import in_memory, office, settle, spoken
from tests.unit.messages.receptions import START, Time
from umpack.messages.message import Decision
from umpack.messages.office import Messages


@asynccontextmanager
async def served(script: Script) -> AsyncIterator[tuple[Messages, Time, MailServer]]:
    time = Time(START)
    with in_memory() as directory:
        async with (
            MailServer(script) as server,
            office(directory, server.port, now=time) as messages,
        ):
            yield messages, time, server


async def looked(messages: Messages) -> list[str]:
    """What is logged by a look."""
    with logged() as lines:
        await messages.look()
    return [line.strip() for line in lines if " messages: " in line]


async def test_each_further_dead_letter_is_told_and_the_alarm_keeps_its_time() -> None:
    dead = Script({"RCPT": "550 5.1.1 nobody"})
    async with served(dead) as (messages, time, _):
        first = await spoken(messages, 1)
        await settle(messages)
        assert await looked(messages) == [
            "ERROR messages: dead letters: 1: umpack faxes --state 'dead letter'"
        ]
        time.now += 60.0
        assert await looked(messages) == []
        await spoken(messages, 2)
        await settle(messages)
        assert await looked(messages) == [
            "ERROR messages: dead letters: 2: umpack faxes --state 'dead letter'"
        ]
        assert messages.status is not None
        (alarm,) = messages.status.alarms
        assert (alarm.since, alarm.count) == (START, 2)
        await messages.decide(first.id, "eva", Decision.DISCARD)
        assert await looked(messages) == []
        await spoken(messages, 3)
        await settle(messages)
        assert len(await looked(messages)) == 1


async def test_an_ambiguous_end_is_an_alarm_until_it_is_none() -> None:
    lost = Act("", then=Then.RESET, stored=True)
    async with served(Script({".": [lost, "250 Ok"]})) as (messages, time, _):
        await spoken(messages)
        await settle(messages)
        assert await looked(messages) == [
            "ERROR messages: ambiguous: 1 may have been delivered: umpack faxes --state ambiguous"
        ]
        time.now += 60.0
        await settle(messages)
        assert await looked(messages) == ["INFO messages: ambiguous: over"]


async def test_one_directory_does_not_hide_another(tmp_path: Path) -> None:
    good = "number,addresses\n1,a@b.test\n"
    files = [tmp_path / "one.csv", tmp_path / "two.csv"]
    for file in files:
        file.write_text(good)
    async with office(tmp_path, 9, directories=tuple(files)) as messages:
        assert await looked(messages) == []
        for number, file in enumerate(files):
            file.write_text("number,addresses\n1,nobody\n" + "#" * number)
            await spoken(messages, number)
            await messages.desk.turn()
            (line,) = await looked(messages)
            assert file.name in line
        files[0].write_text(good + "2,c@d.test\n")
        await spoken(messages, 9)
        await messages.desk.turn()
        assert await looked(messages) == ["INFO messages: directory one.csv: over"]


async def test_what_a_spool_suffers_from_is_told_apart() -> None:
    async with served(Script()) as (messages, _, _):
        health = await messages.spool.health(START)
        messages.plan = replace(messages.plan, reserve=10**9)
        kinds = [
            replace(health, free_bytes=10**8),
            replace(health, slow=True),
            replace(health, owed=1),
            replace(health, writable=False, fault="EROFS"),
        ]
        found = [[(a.kind, a.about) for a in await messages.alarms_of(one, START)] for one in kinds]
        assert found == [
            [("spool", "full")], [("spool", "slow")], [("spool", "slow")],
            [("spool", "not writable")],
        ]  # fmt: skip


@pytest.mark.parametrize("count", [1, 3])
async def test_two_servers_have_an_alarm_each(count: int) -> None:
    async with served(Script()) as (messages, time, _):
        for number in range(count):
            circuit = messages.transport.circuits.of(f"s{number}")
            for _ in range(3):
                circuit.failed(time.now, "reset")
        assert len(await looked(messages)) == count
