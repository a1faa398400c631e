"""When trying ends and when it does not, who is hastened, and which server has a doubt.

All in virtual time, through spool, mailer and transport, against servers on real sockets.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from simulators.mail import Act, MailServer, Script, Then
from tests.ports import free_port
from tests.unit.daemons import logged
from tests.unit.messages.offices import in_memory, made, office, plan, settle, spoken
from tests.unit.messages.receptions import START, Time
from tests.unit.messages.test_outage import until
from umpack import clock
from umpack.messages.message import Decision, MessageId, Recipient
from umpack.messages.office import Messages
from umpack.messages.states import RecipientState

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
RESET = Act("", then=Then.RESET)


def greylisted(times: int) -> Script:
    return Script({"RCPT": [*["451 4.7.1 greylisted"] * times, "250 2.1.5 Ok"]})


async def recipient(messages: Messages, id_: MessageId, number: int = 1) -> Recipient:
    return (await messages.spool.message(id_)).recipients[number - 1]


async def states(messages: Messages) -> list[str]:
    return [one.recipients[0].state.value for one in await messages.spool.messages()]


# -- after an outage ------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 4])
async def test_after_six_days_away_one_451_is_no_dead_letter(count: int) -> None:
    time = Time(START)
    with in_memory() as directory:
        port = free_port()
        async with office(directory, port, now=time) as messages:
            for number in range(count):
                await spoken(messages, number)
            await until(messages, time, START + 6 * DAY)
            async with MailServer(greylisted(count), port=port) as server:
                await until(messages, time, time.now + 3 * HOUR)
                assert await states(messages) == ["delivered"] * count
                assert len(server.accepted) == count


@pytest.mark.parametrize("restart", [5.9 * DAY, 3 * DAY])
async def test_a_restart_in_the_outage_forgets_nothing_of_it(restart: float) -> None:
    """At 5.9 days, and back with the mail system: one that is tried first would be its last."""
    time = Time(START)
    with in_memory() as directory:
        port = free_port()
        async with office(directory, port, now=time) as messages:
            for number in range(4):
                await spoken(messages, number)
            await until(messages, time, START + restart)
        if restart > 5 * DAY:
            async with MailServer(greylisted(4), port=port):
                async with office(directory, port, now=time) as messages:
                    await until(messages, time, time.now + MINUTE)
                # And a restart in the greylisting.
                async with office(directory, port, now=time) as messages:
                    await until(messages, time, time.now + 3 * HOUR)
                    assert await states(messages) == ["delivered"] * 4
        else:
            # Umpack itself, the whole site, was away for the other three.
            time.now = START + 6 * DAY
            async with (
                MailServer(greylisted(4), port=port),
                office(directory, port, now=time) as messages,
            ):
                await until(messages, time, time.now + 3 * HOUR)
                assert await states(messages) == ["delivered"] * 4


async def test_after_the_outage_the_lifetime_begins_and_ends() -> None:
    time = Time(START)
    with in_memory() as directory:
        port = free_port()
        async with office(directory, port, now=time) as messages:
            message = await spoken(messages)
            await until(messages, time, START + 6 * DAY)
            back = time.now
            async with MailServer(Script({"RCPT": "451 4.7.1 never"}), port=port):
                seen = await until(messages, time, back + 5 * DAY - 1.0)
                assert (await recipient(messages, message.id)).state is RecipientState.RETRY
                assert seen == []
                seen = await until(messages, time, back + 5 * DAY + 2 * HOUR)
                ((at, kind),) = seen
                assert kind == "dead letters"
                assert back + 5 * DAY <= at <= back + 5 * DAY + HOUR


# -- who is never reached -------------------------------------------------------------------------


async def test_a_return_noted_by_a_wrong_clock_lets_nothing_live_for_ever() -> None:
    time = Time(START)
    with in_memory() as directory:
        (directory / "spool").mkdir()
        noted = {"back": START + 5000 * DAY, "seen": START + 5000 * DAY, "silent_since": None}
        (directory / "spool" / "mail-system.json").write_text(json.dumps(noted), "utf-8")
        async with (
            MailServer(Script({"RCPT": "451 4.7.1 greylisted"})) as server,
            office(directory, server.port, now=time) as messages,
        ):
            await spoken(messages)
            await until(messages, time, START + 6 * DAY)
            assert await states(messages) == ["dead letter"]


@pytest.mark.parametrize("others", [True, False])
async def test_one_whom_no_server_bears_ends_after_five_days(others: bool) -> None:
    """A server that resets at RCPT never "reaches" him; with or without other mail meanwhile."""
    time = Time(START)
    with in_memory() as directory:
        async with (
            MailServer(Script({"RCPT bad@site.test": RESET})) as server,
            office(directory, server.port, now=time) as messages,
        ):
            bad = await spoken(messages, 0)
            await messages.spool.address(bad.id, ["bad@site.test"])
            for number in range(1, 15):
                if others:
                    await spoken(messages, number)
                await until(messages, time, START + number * DAY / 2)
            found = await recipient(messages, bad.id)
            assert found.state is RecipientState.DEAD_LETTER
            assert found.why.startswith("not accepted in 5 days")
            assert found.changed == pytest.approx(START + 5 * DAY, abs=HOUR)
            assert found.tries < 300


# -- who is hastened ------------------------------------------------------------------------------


@asynccontextmanager
async def flapping(script: Script) -> AsyncIterator[tuple[Messages, Time, Callable[[], None]]]:
    """Two relays, of which the first can be made to come back from a rest."""
    time = Time(START)
    with in_memory() as directory:
        async with (
            MailServer(script) as server,
            office(directory, server.port, now=time) as messages,
        ):

            def flap() -> None:
                messages.transport.recoveries += 1

            yield messages, time, flap


async def test_a_flapping_server_does_not_undo_what_a_server_said() -> None:
    async with flapping(Script({"RCPT": "451 4.7.1 later"})) as (messages, time, flap):
        message = await spoken(messages)
        for _ in range(200):
            flap()
            await until(messages, time, time.now + MINUTE)
        found = await recipient(messages, message.id)
        assert found.tries <= 12  # 30 s, 1 min, 2, 4, ... 64, hourly


async def test_who_was_not_reached_is_hastened_once_and_not_more_than_once_a_minute() -> None:
    async with flapping(Script({"EHLO": RESET})) as (messages, time, flap):
        message = await spoken(messages)
        await until(messages, time, time.now + HOUR)
        before = await recipient(messages, message.id)
        for _ in range(10):
            flap()
            await settle(messages)
            time.now += 1.0
        assert (await recipient(messages, message.id)).tries == before.tries + 1
        for _ in range(10):
            flap()
            await until(messages, time, time.now + MINUTE)
        assert (await recipient(messages, message.id)).tries <= before.tries + 3


async def test_who_was_not_reached_goes_as_soon_as_the_server_is_back() -> None:
    time = Time(START)
    with in_memory() as directory:
        port = free_port()
        async with office(directory, port, now=time) as messages:
            message = await spoken(messages)
            await until(messages, time, START + 5 * HOUR)
            async with MailServer(port=port):
                messages.transport.recoveries += 1
                await settle(messages)
                assert (await recipient(messages, message.id)).state is RecipientState.DELIVERED


# -- who may have it ------------------------------------------------------------------------------


@asynccontextmanager
async def two() -> AsyncIterator[tuple[Messages, Time, MailServer, MailServer]]:
    """Of equal rank; the first has taken a message and gone before it said so."""
    time = Time(START)
    with in_memory() as directory:
        async with (
            MailServer() as b,
            MailServer() as a,
            office(directory, b.port, a.port, now=time, order="ordered") as messages,
        ):
            yield messages, time, b, a


LOST = Act("", then=Then.RESET, stored=True)


async def test_a_doubt_outlives_a_451_and_the_other_gets_no_copy() -> None:
    async with two() as (messages, time, b, a):
        b.script = Script({".": [LOST, "250 ok"], "RCPT": ["250 ok", "451 4.7.1 later", "250 ok"]})
        message = await spoken(messages)
        await settle(messages)
        assert (await recipient(messages, message.id)).state is RecipientState.AMBIGUOUS
        for _ in range(2):
            time.now += 2 * MINUTE
            await settle(messages)
        assert (await recipient(messages, message.id)).state is RecipientState.DELIVERED
        assert (b.copies(message.message_id), a.connections) == (2, 0)


async def test_a_doubt_outlives_a_claim_given_back_and_a_word_to_retry() -> None:
    async with two() as (messages, time, b, a):
        b.script = Script({".": [LOST, "250 ok"]})
        message = await spoken(messages)
        await settle(messages)
        time.now += 2 * MINUTE
        held = await messages.spool.claim(message.id, 1, time.now)
        await messages.spool.released(held, time.now)
        await messages.decide(message.id, "eva", Decision.RETRY)
        # Round robin would have begun with the other one.
        b.script, found = Script({"RCPT": "451 4.7.1 later"}), b.connections
        await settle(messages)
        assert (b.connections, a.connections) == (found + 1, 0)


async def test_after_a_day_a_second_copy_is_better_than_none() -> None:
    async with two() as (messages, time, b, a):
        b.script = Script({".": LOST, "RCPT": ["250 ok", "452 4.3.1 disk full"]})
        message = await spoken(messages)
        await until(messages, time, START + 23 * HOUR)
        assert a.connections == 0
        await until(messages, time, START + 26 * HOUR)
        assert (await recipient(messages, message.id)).state is RecipientState.DELIVERED
        assert (b.copies(message.message_id), a.copies(message.message_id)) == (1, 1)


async def test_ended_while_it_is_sent_the_server_is_known_at_the_next_start() -> None:
    with in_memory() as directory:
        hangs = Script({".": Act("", then=Then.HANG, stored=True)})
        async with MailServer(hangs) as b, MailServer() as a:
            the_plan = plan(directory, b.port, a.port, order="ordered")
            messages = made(the_plan, clock.now)
            await messages.open()
            try:
                await messages.start()
                message = await spoken(messages)
                async with asyncio.timeout(20):
                    while not b.accepted:  # noqa: ASYNC110 - a server's list
                        await asyncio.sleep(0.01)
            finally:
                await messages.close(0.0)
            b.script = Script()
            # As the other one is asked first from now on.
            the_plan = plan(directory, a.port, b.port, order="ordered")
            time = Time(clock.now())
            async with office(directory, now=time, relays=the_plan.relays) as messages:
                found = await recipient(messages, message.id)
                assert found.state is RecipientState.AMBIGUOUS
                assert found.server == f"127.0.0.1[127.0.0.1]:{b.port}"
                await settle(messages)
                assert (b.copies(message.message_id), a.connections) == (2, 0)


async def test_ended_before_any_server_was_asked_it_is_as_before() -> None:
    with in_memory() as directory:
        slow = Script({"EHLO": Act("250 sim.invalid", after=3600.0)})
        async with MailServer(slow) as server:
            messages = made(plan(directory, server.port, connections=1, per_server=1), clock.now)
            await messages.open()
            try:
                await messages.start()
                first, second = await spoken(messages, 1), await spoken(messages, 2)
                async with asyncio.timeout(20):
                    while server.connections < 1:  # noqa: ASYNC110 - a server's count
                        await asyncio.sleep(0.01)
            finally:
                await messages.close(0.0)
            async with office(directory, server.port, now=Time(clock.now())) as messages:
                assert (await recipient(messages, first.id)).state is RecipientState.AMBIGUOUS
                found = [one.state for one in (await messages.spool.message(second.id)).recipients]
                assert found in ([], [RecipientState.QUEUED])


# -- a person's word, and the log -----------------------------------------------------------------


async def test_what_a_person_says_to_try_again_has_its_time_anew() -> None:
    time = Time(START)
    with in_memory() as directory:
        async with (
            MailServer(Script({"RCPT": "452 4.2.2 mailbox full"})) as server,
            office(directory, server.port, now=time) as messages,
        ):
            message = await spoken(messages)
            await until(messages, time, START + 6 * DAY)
            assert (await recipient(messages, message.id)).state is RecipientState.DEAD_LETTER
            said = time.now
            await messages.decide(message.id, "eva", Decision.RETRY, why="she has tidied up")
            await until(messages, time, said + 5 * DAY - 1.0)
            assert (await recipient(messages, message.id)).state is RecipientState.RETRY
            await until(messages, time, said + 5 * DAY + HOUR)
            assert (await recipient(messages, message.id)).state is RecipientState.DEAD_LETTER


async def test_every_end_is_one_line_in_the_log(tmp_path: Path) -> None:
    to = ("a@site.test", "b@site.test", "c@site.test", "d@site.test")
    script = Script({
        "RCPT b@site.test": "451 4.3.0 later",
        "RCPT c@site.test": "550 5.1.1 nobody",
        ".": ["250 2.0.0 Ok: queued as 4F2A", LOST],
    })  # fmt: skip
    with logged() as lines:
        async with (
            MailServer(script) as server,
            office(tmp_path, server.port, default_mailboxes=to, connections=1, per_server=1)
            as messages,
        ):  # fmt: skip
            message = await spoken(messages)
            await settle(messages)
            label = f"127.0.0.1[127.0.0.1]:{server.port}"
    ends = [line.strip() for line in lines if f" {message.id} to no. " in line]
    said = {line.partition(" to ")[2][:5]: line.partition(": ")[2] for line in ends}
    levels = {line.partition(" to ")[2][:5]: line.split()[0] for line in ends}
    assert levels == {"no. 1": "INFO", "no. 2": "INFO", "no. 3": "ERROR", "no. 4": "WARNING"}
    assert len(ends) == 4
    assert said["no. 1"].startswith(f"delivered to {label}, queue id 4F2A: 250 2.0.0 Ok")
    assert said["no. 2"].startswith("put off for ")
    assert f"{label}: RCPT: 451 4.3.0 later" in said["no. 2"]
    assert said["no. 3"] == f"refused, a dead letter: {label}: RCPT: 550 5.1.1 nobody"
    assert said["no. 4"].startswith(f"ambiguous, {label} may have it; again in ")
