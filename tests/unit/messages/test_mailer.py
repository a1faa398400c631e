"""From a file on disk to a mail in a mailbox, with everything between."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from simulators.mail import Act, MailServer, Script, Then
from tests.unit.daemons import logged, until
from tests.unit.messages.fax_files import picture, shown
from tests.unit.messages.offices import (
    WAV,
    attached,
    facts,
    in_memory,
    made,
    mail_of,
    office,
    plan,
    received,
    settle,
    spoken,
    text_of,
    tiff,
)
from tests.unit.messages.receptions import START, Time
from umpack.messages.mailer import MOST_WAIT
from umpack.messages.message import Decision, Delivery, EngineFacts, Kind
from umpack.messages.office import Messages
from umpack.messages.retry import DAY
from umpack.messages.spool import Spool
from umpack.messages.states import MessageState, RecipientState


async def test_a_tiff_on_disk_becomes_a_mail_with_its_pdf(tmp_path: Path) -> None:
    async with MailServer() as server, office(tmp_path, server.port) as messages:
        message = await received(messages, content=tiff(2), engine=EngineFacts(
            "SUCCESS", pages=2, resolution="204x98"))  # fmt: skip
        await settle(messages)
        (accepted,) = server.accepted
        assert accepted.recipients == ("office@site.test",)
        assert accepted.message_id == message.message_id
        mail = mail_of(accepted)
        assert mail["Subject"] == "[Fax] from 49307770001 to 49302000123, pages: 2"
        assert mail["X-FaxNumberOfPages"] == "2"
        ((kind, data),) = attached(mail)
        assert kind == "application/pdf"
        pages = shown(data)
        assert len(pages) == 2
        assert pages[0].tobytes() == picture(1, rows=300).tobytes()
        record = await messages.spool.message(message.id)
        assert record.state is MessageState.DELIVERED
        assert record.document is not None
        assert (record.document.pages_tiff, record.document.pages_pdf) == (2, 2)
        (recipient,) = record.recipients
        assert recipient.queue_id == accepted.queue_id


async def test_three_recipients_have_three_ends(tmp_path: Path) -> None:
    script = Script({
        "RCPT b@site.test": ["451 4.3.0 later", "250 2.1.5 Ok"],
        "RCPT c@site.test": "550 5.1.1 nobody",
    })  # fmt: skip
    time = Time(START)
    to = ("a@site.test", "b@site.test", "c@site.test")
    async with (
        MailServer(script) as server,
        office(tmp_path, server.port, now=time, default_mailboxes=to) as messages,
    ):
        message = await spoken(messages)
        await settle(messages)
        record = await messages.spool.message(message.id)
        states = [recipient.state for recipient in record.recipients]
        assert states == [
            RecipientState.DELIVERED, RecipientState.RETRY, RecipientState.DEAD_LETTER
        ]  # fmt: skip
        assert record.state is MessageState.PARTIAL
        status = await messages.look()
        assert [(a.kind, a.what.partition(":")[0]) for a in status.alarms] == [
            ("dead letters", "1")
        ]
        time.now += 40.0
        await settle(messages)
        assert [one.recipients[0] for one in server.accepted] == ["a@site.test", "b@site.test"]
        assert {one.message_id for one in server.accepted} == {message.message_id}
        # A person decides about the third.
        await messages.decide(
            message.id, "eva", Decision.FORWARD, number=3, addresses=["d@site.test"]
        )
        await settle(messages)
        last = server.accepted[-1]
        assert last.recipients == ("d@site.test",)
        assert last.message_id != message.message_id
        assert (await messages.spool.message(message.id)).state is MessageState.DELIVERED
        (entry,) = [e for e in await messages.spool.audit(message.id) if e.who == "eva"]
        assert (entry.what, entry.detail) == ("forward", "no. 3; d@site.test")


async def test_one_that_cannot_be_read_is_not_asked_for_all_the_time(tmp_path: Path) -> None:
    time = Time(START)
    async with office(tmp_path, 1, now=time) as messages:
        await spoken(messages)
        await messages.desk.turn()
        with closing(sqlite3.connect(messages.spool.disk.path)) as db, db:
            db.execute("UPDATE messages SET kind = 'fbx'")
        await messages.mailer.turn()
        assert messages.mailer.next_at == START + MOST_WAIT


async def test_a_mail_does_not_depend_on_a_record_that_is_past_its_time(tmp_path: Path) -> None:
    script = Script({".": ["250 2.0.0 Ok", "550 5.7.1 no", "250 2.0.0 Ok"]})
    time = Time(START)
    async with (
        MailServer(script) as server,
        office(tmp_path, server.port, now=time) as messages,
    ):
        first = await received(messages, content=tiff())
        await settle(messages)
        time.now += 60.0
        again = await received(messages, content=tiff())
        await settle(messages)
        assert (await messages.spool.message(again.id)).related == first.id
        time.now += 5 * DAY
        await messages.spool.purge(DAY, DAY)
        assert [m.id for m in await messages.spool.messages()] == [again.id]
        await messages.decide(again.id, "eva", Decision.RETRY)
        await settle(messages)
        mail = mail_of(server.accepted[-1])
        assert mail["X-Umpack-Id"] == again.id
        assert [kind for kind, _ in attached(mail)] == ["application/pdf"]


async def test_the_same_mail_twice_is_the_same_bytes(tmp_path: Path) -> None:
    lost = Act("", then=Then.RESET, stored=True)
    time = Time(START)
    async with (
        MailServer(Script({".": [lost, "250 2.0.0 Ok: queued as 2"]})) as server,
        office(tmp_path, server.port, now=time) as messages,
    ):
        message = await received(messages, content=tiff())
        await settle(messages)
        assert (await messages.spool.message(message.id)).state is MessageState.AMBIGUOUS
        # The PDF beside the original is lost: it is made anew, the same.
        (pdf,) = (tmp_path / "spool").rglob("document.pdf")
        pdf.write_bytes(pdf.read_bytes()[:100])
        time.now += 40.0
        await settle(messages)
        first, second = server.accepted
        assert first.body == second.body
        assert (await messages.spool.message(message.id)).state is MessageState.DELIVERED


async def test_a_file_that_is_no_fax_goes_out_as_it_is(tmp_path: Path) -> None:
    async with MailServer() as server, office(tmp_path, server.port) as messages:
        await received(messages, content=b"not a TIFF" * 100)
        await settle(messages)
        mail = mail_of(server.accepted[0])
        assert mail["Subject"].startswith("[Fax incomplete]")
        assert attached(mail) == [("application/octet-stream", b"not a TIFF" * 100)]
        assert "THIS FAX IS INCOMPLETE OR DAMAGED: the file is no TIFF" in text_of(mail)


async def test_what_cannot_be_composed_goes_out_with_its_original_and_stops_nobody(
    tmp_path: Path,
) -> None:
    time = Time(START)
    async with MailServer() as server, office(tmp_path, server.port, now=time) as messages:
        poisoned = await received(messages, 1, tiff())
        # Its call has a time that no calendar has: its mail cannot be written any more.
        database = messages.spool.disk._writer
        await messages.desk.turn()
        database.do(
            lambda db: db.execute(
                "UPDATE messages SET started = 1e300 WHERE id = ?", (poisoned.id,)
            )
        )
        await spoken(messages, 2)
        await settle(messages)
        assert len(server.accepted) == 1  # the other one
        for _ in range(3):
            time.now += 300.0
            await settle(messages)
        plain = server.accepted[1]
        assert plain.message_id == poisoned.message_id
        mail = mail_of(plain)
        assert mail["Subject"] == f"[Fax incomplete] {poisoned.id}"
        assert attached(mail) == [("application/octet-stream", tiff())]
        assert (await messages.spool.message(poisoned.id)).state is MessageState.DELIVERED


async def test_nothing_goes_out_without_an_original_that_is_not_as_it_was(tmp_path: Path) -> None:
    time = Time(START)
    async with MailServer() as server, office(tmp_path, server.port, now=time) as messages:
        message = await spoken(messages)
        await messages.desk.turn()
        (original,) = (tmp_path / "spool").rglob("original.wav")
        original.write_bytes(WAV[:-1] + b"x")
        await messages.mailer.turn()
        (recipient,) = (await messages.spool.message(message.id)).recipients
        assert recipient.state is RecipientState.RETRY
        assert "another checksum" in recipient.why
        time.now += 700.0
        (alarm,) = (await messages.look()).alarms
        assert (alarm.kind, alarm.since) == ("late", START + 600.0)
        original.write_bytes(WAV)
        await settle(messages)
        assert len(server.accepted) == 1
        assert (await messages.look()).alarms == ()


async def test_an_address_that_is_none_is_a_dead_letter_at_once(tmp_path: Path) -> None:
    async with MailServer() as server, office(tmp_path, server.port) as messages:
        message = await spoken(messages)
        await messages.spool.address(message.id, ["x\r\nRCPT TO:<y@z>"])
        await messages.mailer.turn()
        (recipient,) = (await messages.spool.message(message.id)).recipients
        assert recipient.state is RecipientState.DEAD_LETTER
        assert server.connections == 0


HOSTILE = b"\xff\xc3\r\nBcc: evil@x.test\x00$(id)%n" + b'"' * 20


async def test_a_hostile_caller_through_the_whole_path(tmp_path: Path) -> None:
    call = facts(
        1, caller='"\r\nBcc: a@b.test\x00', caller_name="\u202eevil\U0001f600\udcff\r\n.\r\nMAIL",
        caller_raw=HOSTILE, caller_name_raw=HOSTILE, called="4930\r\n.\r\n",
    )  # fmt: skip
    engine = EngineFacts(
        "FAILED\r\n", error='HANGUP\r\nBcc: x@y.test"%n', pages=1, resolution="\n$(id)",
        station=HOSTILE,
    )  # fmt: skip
    with logged() as lines:
        async with MailServer() as server, office(tmp_path, server.port) as messages:
            message = await received(messages, content=tiff(), engine=engine, call=call)
            await settle(messages)
            (accepted,) = server.accepted
            assert accepted.recipients == ("office@site.test",)
            head = accepted.body.partition(b"\r\n\r\n")[0]
            assert b"\nBcc:" not in accepted.body
            assert head.isascii()
            assert b"\0" not in accepted.body
            mail = mail_of(accepted)
            assert mail["Bcc"] is None
            assert [kind for kind, _ in attached(mail)] == ["application/pdf", "image/tiff"]
            assert not [line for line in server.heard if "smuggled" in line or "evil" in line]
            record = await messages.spool.message(message.id)
            assert record.call == call
            assert record.engine is not None
            assert record.engine.station == HOSTILE
            assert record.state is MessageState.DELIVERED
    assert not [line for line in lines if line.startswith(("Bcc", ".", "MAIL"))]


@pytest.mark.parametrize("count", [1, 1000])
async def test_empty_calls_make_no_mails(count: int) -> None:
    time = Time(START)
    with in_memory() as directory:
        async with MailServer() as server, office(directory, server.port, now=time) as messages:
            for number in range(count):
                call = facts(number, caller="49301")
                await received(messages, engine=EngineFacts("FAILED", "no fax"), call=call)
            await settle(messages)
            assert (await messages.look()).alarms == ()
            time.now += 601.0
            await settle(messages)
            assert server.accepted == []
            open_ = await messages.spool.open_calls()
            assert (open_.without_message, open_.without_end) == ((), ())
            found = await messages.spool.messages(2000)
            assert {one.state for one in found} == {MessageState.DECIDED}
            assert len(found) == count


NOBODY = EngineFacts(
    "FAILED", "The call dropped prematurely", pages=0, bitrate=14400, t38=False, seconds=5.0,
    cause=16,
)  # fmt: skip


class Asked(Spool):
    """Counts how often the queue is read."""

    reads = 0

    async def due(self, now: float, limit: int = 100) -> list[Delivery]:
        self.reads += 1
        return await super().due(now, limit)


async def one_more(messages: Messages, server: MailServer, number: int) -> str:
    """A message received and delivered while all runs; its Message-ID."""
    message = await spoken(messages, number)
    await until(lambda: message.message_id in arrived(server), 30)
    return message.message_id


def arrived(server: MailServer) -> list[str]:
    return [one.message_id for one in server.accepted]


async def test_new_messages_are_not_read_and_who_was_put_off_has_his_turn_among_them(
    tmp_path: Path,
) -> None:
    time = Time(START)
    script = Script({"RCPT": ["451 4.3.0 later", "250 2.1.5 Ok"]})
    async with MailServer(script) as server:
        the_plan = plan(tmp_path, server.port)
        messages = made(the_plan, time, spool=partial(Asked, quiet=0.0))
        await messages.open()
        await messages.start()
        try:
            spool = messages.spool
            assert isinstance(spool, Asked)
            put_off = await spoken(messages, 1)
            await until(lambda: messages.mailer.ends["put off"] == 1, 30)
            await one_more(messages, server, 2)
            before = spool.reads
            for number in range(3, 13):
                await one_more(messages, server, number)
            # The clock stands: what is due by now has been read once, and the alarms look once.
            assert spool.reads - before <= 3
            time.now += 60.0
            await one_more(messages, server, 13)
            async with asyncio.timeout(30):
                while put_off.message_id not in arrived(server):
                    await one_more(messages, server, len(server.accepted) + 100)
            assert len(set(arrived(server))) == len(arrived(server))
        finally:
            await messages.close(0.0)


BEEP = WAV[:40] + (3200).to_bytes(4, "little") + WAV[44:3244]


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("kind", "content", "engine"),
    [
        (Kind.FAX, b"", NOBODY),
        (Kind.VOICE, WAV[:44], EngineFacts("FAILED", seconds=0.0)),
        (Kind.VOICE, BEEP, EngineFacts("SUCCESS", seconds=0.2)),
    ],
    ids=["person on a fax number", "no sound", "hung up at the beep"],
)
async def test_a_thousand_callers_who_say_nothing_make_no_mails(
    kind: Kind, content: bytes, engine: EngineFacts
) -> None:
    time = Time(START)
    with in_memory() as directory:
        async with MailServer() as server, office(directory, server.port, now=time) as messages:
            for number in range(1000):
                call = facts(number, kind)
                name = "original.tif" if kind is Kind.FAX else "original.wav"
                await received(messages, content=content, engine=engine, call=call, name=name)
            await settle(messages)
            time.now += 3601.0
            await settle(messages)
            assert server.connections == 0
            assert (await messages.look()).alarms == ()
            found = await messages.spool.messages(2000)
            assert [one.state for one in found] == [MessageState.DECIDED] * 1000
            assert len({one.call.caller for one in found}) == 1000
            # The record is there, and so is the file until its retention is over.
            assert len(list((directory / "spool").rglob("original.wav"))) == (
                1000 if content else 0
            )
            assert await messages.spool.purge(0.0, 1e9) == 0


async def test_a_word_makes_a_mail_and_tells_of_the_beeps_before(tmp_path: Path) -> None:
    async with MailServer() as server, office(tmp_path, server.port) as messages:
        for content, seconds in ((BEEP, 0.2), (WAV, 1.2)):
            await received(
                messages, content=content, engine=EngineFacts("SUCCESS", seconds=seconds),
                call=facts(1, Kind.VOICE), name="original.wav",
            )  # fmt: skip
            await settle(messages)
        (accepted,) = server.accepted
        mail = mail_of(accepted)
        assert attached(mail) == [("audio/wav", WAV)]
        assert "nothing was sent" in text_of(mail)


async def test_tries_of_one_caller_are_told_in_one_mail_and_closed_when_it_has_arrived() -> None:
    time = Time(START)
    script = Script({"DATA": ["451 4.3.0 later", "354 go"]})
    failed = EngineFacts("FAILED", "HANGUP", pages=0, bitrate=9600, station=b"4930 1")
    with in_memory() as directory:
        async with MailServer(script) as server:
            async with office(directory, server.port, now=time) as messages:
                tries = []
                for number in range(5):
                    call = facts(number, caller="49301")
                    tries.append(await received(messages, engine=failed, call=call))
                    time.now += 60.0
                await settle(messages)
                assert server.connections == 0
                time.now += 600.0
                await settle(messages)
                still = await messages.spool.open_calls()
                assert len(still.without_end) == 5  # the mail was put off
            # A restart in between changes nothing.
            async with office(directory, server.port, now=time) as messages:
                await settle(messages)
                assert server.accepted == []
                time.now += 60.0
                await settle(messages)
                (accepted,) = server.accepted
                mail = mail_of(accepted)
                assert mail["Subject"] == "[Fax failed] from 49301 to 49302000123"
                text = text_of(mail)
                assert all(one.id in text for one in tries)
                found = await messages.spool.messages()
                assert {one.state.value for one in found} == {"delivered", "decided"}
                time.now += 10_000.0
                await settle(messages)
                assert len(server.accepted) == 1


async def test_tries_before_a_success_are_told_with_it() -> None:
    time = Time(START)
    failed = EngineFacts("FAILED", "HANGUP", pages=0, bitrate=9600, station=b"4930 1")
    with in_memory() as directory:
        async with MailServer() as server, office(directory, server.port, now=time) as messages:
            lost = await received(messages, engine=failed, call=facts(1, caller="49301"))
            await settle(messages)
            time.now += 60.0
            await received(messages, content=tiff(), call=facts(2, caller="49301"))
            await settle(messages)
            (accepted,) = server.accepted
            mail = mail_of(accepted)
            assert mail["Subject"].startswith("[Fax] from")
            assert lost.id in text_of(mail)
            assert (await messages.spool.message(lost.id)).state is MessageState.DECIDED


async def test_a_repeated_fax_is_delivered_and_linked() -> None:
    time = Time(START)
    with in_memory() as directory:
        async with MailServer() as server, office(directory, server.port, now=time) as messages:
            first = await received(messages, content=tiff(), call=facts(1, caller="49301"))
            await settle(messages)
            time.now += 60.0
            second = await received(messages, content=tiff(), call=facts(2, caller="49301"))
            await settle(messages)
            assert len(server.accepted) == 2
            assert (await messages.spool.message(second.id)).related == first.id
            assert f"all pages have come before, in {first.id}" in text_of(
                mail_of(server.accepted[1])
            )


async def test_numbers_find_their_mailboxes(tmp_path: Path) -> None:
    file = tmp_path / "mailboxes.csv"
    file.write_text(
        "number,addresses,language,attach\n49302000123,anna@site.test;bert@site.test,de,both\n"
    )
    async with (
        MailServer() as server,
        office(tmp_path, server.port, directories=(file,)) as messages,
    ):
        await received(messages, 1, tiff())
        await received(messages, 2, tiff(), call=facts(2, called="4999"))
        await settle(messages)
        found = {one.recipients[0]: mail_of(one) for one in server.accepted}
        assert set(found) == {"anna@site.test", "bert@site.test", "office@site.test"}
        assert [kind for kind, _ in attached(found["anna@site.test"])] == [
            "application/pdf", "image/tiff"
        ]  # fmt: skip
        assert "Seiten" in found["anna@site.test"]["Subject"]
        assert "pages" in found["office@site.test"]["Subject"]


async def test_running_it_wakes_on_a_commit_and_gives_claims_back_at_the_end() -> None:
    import asyncio

    from umpack import clock

    with in_memory() as directory:
        async with MailServer() as server:
            from tests.unit.messages.offices import made, plan

            messages = made(plan(directory, server.port), clock.now)
            await messages.open()
            try:
                await messages.start()
                message = await spoken(messages, 1)
                async with asyncio.timeout(5):
                    while not server.accepted:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                server.script = Script({"EHLO": Act("250 sim.invalid", after=3600.0)})
                held = await spoken(messages, 2)
                async with asyncio.timeout(5):
                    while server.connections < 2:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
            finally:
                await messages.close(0.1)
            messages = made(plan(directory, server.port), clock.now)
            await messages.open()
            try:
                assert (await messages.spool.message(message.id)).state is MessageState.DELIVERED
                # The server may have had it, for all we know: it is asked again, under the same id.
                assert (await messages.spool.message(held.id)).state is MessageState.AMBIGUOUS
            finally:
                await messages.close()
