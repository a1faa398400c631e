"""Scenarios 1, 2 and 10 of the ten that break a naive implementation, and the week, as chains
through spool, desk, mailer and transport: in virtual time where it is long.

Scenario 9 is in tests/mail/test_dns_matrix.py, 8 in tests/unit/test_daemon_spool.py.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from simulators.mail import Act, Answers, MailServer, Script, Then
from tests.ports import free_port
from tests.unit.daemons import logged
from tests.unit.messages.offices import WAV, facts, in_memory, mail_of, office, settle, spoken
from tests.unit.messages.receptions import START, Time
from umpack.messages.message import Decision, EngineFacts, Kind, Message, Recipient
from umpack.messages.office import Messages
from umpack.messages.states import RecipientState

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
Seen = list[tuple[float, str, str]]


async def pass_until(messages: Messages, time: Time, end: float, seen: Seen | None = None) -> None:
    """Let time pass from one thing to do to the next; `seen` gets when each alarm began and
    ended: (seconds from START, kind, "on" or "off")."""
    while True:
        await settle(messages)
        before = {a.kind for a in messages.status.alarms} if messages.status else set()
        now = {a.kind for a in (await messages.look()).alarms}
        if seen is not None:
            seen += [(time.now - START, kind, "on") for kind in sorted(now - before)]
            seen += [(time.now - START, kind, "off") for kind in sorted(before - now)]
        if time.now >= end:
            return
        times = [messages.desk.next_at, messages.mailer.next_at, end]
        oldest = await messages._oldest(time.now)
        if oldest is not None:
            times.append(oldest + messages.plan.retry.late_after)
        time.now = min(at for at in times if at is not None and at > time.now)


async def large(messages: Messages, number: int, size: int) -> Message:
    """A recording of so many octets."""
    intent = await messages.intend(facts(number, Kind.VOICE), "original.wav")
    lengths = (36 + size).to_bytes(4, "little"), size.to_bytes(4, "little")
    content = WAV[:4] + lengths[0] + WAV[8:40] + lengths[1] + bytes(size)
    await asyncio.to_thread(Path(intent.path).write_bytes, content)
    return await messages.commit(intent.id, EngineFacts("SUCCESS", seconds=size / 16_000))


async def one(messages: Messages, message: Message) -> Recipient:
    return (await messages.spool.message(message.id)).recipients[0]


# -- 1 --------------------------------------------------------------------------------------------


async def test_scenario_01_reset_just_before_the_250() -> None:
    """The same Message-ID and Date on the retry, and "ambiguous" in record, alarm and log. That an
    answer after 90 s is waited for is in test_transport.py, in a faster time."""
    time = Time(START)
    lost = Act("", then=Then.RESET, stored=True)
    with in_memory() as directory, logged() as lines:
        async with (
            MailServer(Script({".": [lost, "250 2.0.0 Ok: queued as B2"]})) as server,
            office(directory, server.port, now=time) as messages,
        ):
            message = await spoken(messages)
            await settle(messages)
            assert (await one(messages, message)).state is RecipientState.AMBIGUOUS
            assert [a.kind for a in (await messages.look()).alarms] == ["ambiguous"]
            time.now += MINUTE
            await settle(messages)
            first, second = map(mail_of, server.accepted)
            for name in ("Message-ID", "Date"):
                assert first[name] == second[name]
            assert first["Message-ID"] == message.message_id
            assert server.accepted[0].body == server.accepted[1].body
            ended = await one(messages, message)
            assert (ended.state, ended.queue_id) == (RecipientState.DELIVERED, "B2")
            assert ended.doubts == 1
    assert [line for line in lines if "WARNING" in line and "ambiguous" in line]


# -- 2 --------------------------------------------------------------------------------------------


async def test_scenario_02_three_recipients_250_451_550() -> None:
    time = Time(START)
    to = ("a@site.test", "b@site.test", "c@site.test")
    script = Script({
        "RCPT b@site.test": ["451 4.3.0 later", "250 2.1.5 Ok"],
        "RCPT c@site.test": "550 5.1.1 nobody",
    })  # fmt: skip
    with in_memory() as directory:
        async with (
            MailServer(script) as server,
            office(directory, server.port, now=time, default_mailboxes=to) as messages,
        ):
            message = await spoken(messages)
            seen: Seen = []
            await pass_until(messages, time, START + HOUR, seen)
            record = await messages.spool.message(message.id)
            assert [r.state.value for r in record.recipients] == [
                "delivered", "delivered", "dead letter"
            ]  # fmt: skip
            assert [r.tries for r in record.recipients] == [1, 2, 1]
            got = [one.recipients for one in server.accepted]
            assert got == [("a@site.test",), ("b@site.test",)]
            assert {one.message_id for one in server.accepted} == {message.message_id}
            assert seen == [(0.0, "dead letters", "on")]


# -- 10 -------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
async def test_scenario_10_down_then_greylisted_then_552_then_full_for_six_days() -> None:
    """One chain, with an originals' retention of an hour: what is not delivered is never purged."""
    time, seen = Time(START), Seen()
    with in_memory() as directory:
        port = free_port()
        async with office(directory, port, now=time, keep=HOUR) as messages:
            small, huge = await spoken(messages, 1), await large(messages, 2, 9_000_000)
            await pass_until(messages, time, START + 30 * MINUTE, seen)
            assert (600.0, "late", "on") in seen
            tries = (await one(messages, small)).tries
            assert 5 <= tries <= 9  # not five in 25 seconds
            full: dict[str, Answers] = {"RCPT full@site.test": "452 4.2.2 mailbox full"}
            greylisting: dict[str, Answers] = {"RCPT": ["451 4.7.1 greylisted", "250 2.1.5 Ok"]}
            async with MailServer(Script(full | greylisting, size=5_000_000), port=port) as server:
                await pass_until(messages, time, START + 2 * HOUR, seen)
                assert (await one(messages, small)).state is RecipientState.DELIVERED
                refused = await one(messages, huge)
                assert refused.state is RecipientState.DEAD_LETTER
                assert "are more than the 5,000,000 it takes" in refused.why
                # The addressee is told of what cannot come to him, under an id of its own.
                note = (await messages.spool.message(huge.id)).recipients[1]
                assert note.state is RecipientState.DELIVERED
                assert {one.message_id for one in server.accepted} == {
                    small.message_id, note.message_id
                }  # fmt: skip
                assert note.message_id != huge.message_id
                kinds = {kind for _, kind, _ in seen}
                assert kinds == {"late", "server", "dead letters"}

                begun = time.now
                quota = await spoken(messages, 3)
                await messages.spool.address(quota.id, ["full@site.test"])
                await pass_until(messages, time, begun + 5 * DAY - 1.0, seen)
                assert (await one(messages, quota)).state is RecipientState.RETRY
                await messages.spool.purge(HOUR, 365 * DAY)
                await pass_until(messages, time, begun + 6 * DAY, seen)
                ended = await one(messages, quota)
                assert ended.state is RecipientState.DEAD_LETTER
                assert ended.changed == pytest.approx(begun + 5 * DAY, abs=MINUTE)
                assert 100 < ended.tries < 200

                # Days later, all that nobody has got is still there; what was delivered is not.
                await messages.spool.purge(HOUR, 365 * DAY)
                for message, gone in ((small, True), (huge, False), (quota, False)):
                    kept = (await messages.spool.message(message.id)).original
                    assert kept is not None
                    assert (directory / "spool" / kept.file).exists() is not gone
                server.script = Script(size=20_000_000)
                for message in (huge, quota):
                    await messages.decide(message.id, "eva", Decision.RETRY)
                await pass_until(messages, time, time.now + HOUR, seen)
                assert {one.message_id for one in server.accepted} == {
                    small.message_id, note.message_id, huge.message_id, quota.message_id
                }  # fmt: skip
                assert len(server.accepted) == 4
                assert (await messages.look()).alarms == ()


# -- the week -------------------------------------------------------------------------------------


def times(seen: Seen, kind: str) -> list[tuple[float, str]]:
    return [(at, what) for at, one, what in seen if one == kind]


@pytest.mark.timeout(600)
async def test_a_week_away_then_greylisting_and_when_each_alarm_rises_and_ends() -> None:
    """A message every six hours for a week. Afterwards each is greylisted once, the old ones too:
    all arrive, and every alarm ends."""
    time, seen, sent = Time(START), Seen(), []
    greylisted = [*["451 4.7.1 greylisted"] * 28, "250 2.1.5 Ok"]
    with in_memory() as directory:
        port = free_port()
        async with office(directory, port, now=time, connections=1, per_server=1) as messages:
            for number in range(28):
                sent.append((await spoken(messages, number)).message_id)
                await pass_until(messages, time, START + (number + 1) * 7 * DAY / 28, seen)
            assert times(seen, "late") == [(600.0, "on")]
            # With the third message that reaches nobody, no sooner.
            ((away, on),) = times(seen, "mail system")
            assert on == "on"
            assert 12 * HOUR <= away < 13 * HOUR
            assert times(seen, "dead letters") == []
            # The server's own: after three failures, and on and off with its trials no more.
            first = times(seen, "server")[0]
            assert first[1] == "on"
            assert first[0] <= 300.0
            back = time.now - START
            async with MailServer(Script({"RCPT": greylisted}), port=port) as server:
                await pass_until(messages, time, time.now + 4 * HOUR, seen)
                assert sorted(one.message_id for one in server.accepted) == sorted(sent)
            after = {kind: at - back for at, kind, what in seen if at >= back and what == "off"}
            assert after.keys() == {"late", "mail system", "server"}
            assert after["mail system"] <= 10 * MINUTE
            assert after["server"] <= 10 * MINUTE
            assert after["late"] <= 3 * HOUR
            assert (await messages.look()).alarms == ()
            found = await messages.spool.messages(100)
            assert {one.state.value for one in found} == {"delivered"}
