"""One Message-ID, one mail: what may change between two tries, and what cannot be enclosed."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from simulators.mail import Accepted, Act, MailServer, Script, Then
from tests.unit.messages.offices import (
    WAV,
    attached,
    facts,
    in_memory,
    mail_of,
    office,
    received,
    settle,
    spoken,
    text_of,
    tiff,
)
from tests.unit.messages.receptions import START, Time, opened
from tests.unit.messages.test_mail import COMPOSER
from umpack.messages.directory import Mailbox, Mailboxes
from umpack.messages.document import ConversionLimits
from umpack.messages.enclosures import Enclosures
from umpack.messages.letter import Address, Refused
from umpack.messages.message import Decision, Delivery, EngineFacts, Form, Message
from umpack.messages.office import Messages
from umpack.messages.scribe import POISONED, Scribe
from umpack.messages.spool_schema import APPLICATION_ID, MIGRATIONS
from umpack.messages.states import RecipientState

pytestmark = pytest.mark.timeout(180)  # a converter is a process of its own, and nice

LOST = Act("", then=Then.RESET, stored=True)
OK = "250 2.0.0 Ok: queued as 2"


async def later(messages: Messages, time: Time, tries: int) -> None:
    for _ in range(tries):
        time.now += 300.0
        await settle(messages)


# -- what a directory says --------------------------------------------------------------------


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_directory_that_changes_does_not_change_a_mail(
    tmp_path: Path, restarted: bool
) -> None:
    time = Time(START)
    file = tmp_path / "mailboxes.csv"
    head = "number,addresses,language,attach\n"
    file.write_text(f"{head}49302000123,anna@site.test,de,pdf\n")
    async with MailServer(Script({".": [LOST, OK]})) as server:
        async with office(tmp_path, server.port, now=time, directories=(file,)) as messages:
            await received(messages, content=tiff())
            await settle(messages)
            file.write_text(f"{head}49302000123,anna@site.test;bert@site.test,en,both\n")
            time.now += 60.0
            if not restarted:
                await settle(messages)
        if restarted:
            async with office(tmp_path, server.port, now=time, directories=(file,)) as messages:
                await settle(messages)
        first, second = server.accepted
        assert first.body == second.body
        assert mail_of(first)["Subject"].endswith("Seiten: 1")
        assert second.recipients == ("anna@site.test",)
        # The next message goes by what the directory says now.
        async with office(tmp_path, server.port, now=time, directories=(file,)) as messages:
            await received(messages, 2, tiff())
            await settle(messages)
        assert {mail_of(one)["Subject"][-8:] for one in server.accepted[2:]} == {"pages: 1"}
        assert len(server.accepted) == 4


async def test_whom_a_person_names_gets_one_form_at_every_try(tmp_path: Path) -> None:
    time = Time(START)
    file = tmp_path / "mailboxes.csv"
    file.write_text("number,addresses,language\n49302000123,anna@site.test,de\n")
    async with (
        MailServer(Script({".": [OK, LOST, OK]})) as server,
        office(tmp_path, server.port, now=time, directories=(file,)) as messages,
    ):
        message = await received(messages, content=tiff())
        await settle(messages)
        to = ["anna@site.test", "carl@site.test"]
        await messages.decide(message.id, "eva", Decision.FORWARD, addresses=to)
        await settle(messages)
        file.write_text("number,addresses,language,attach\n49302000123,carl@site.test,de,both\n")
        await later(messages, time, 2)
        bodies: dict[str, set[bytes]] = {}
        for one in server.accepted[1:]:
            bodies.setdefault(one.recipients[0], set()).add(one.body)
        assert len(server.accepted) == 4
        assert [len(found) for found in bodies.values()] == [1, 1]
        forms = {r.address: r.form for r in (await messages.spool.message(message.id)).recipients}
        assert forms == {"anna@site.test": Form("de", "pdf"), "carl@site.test": Form("en", "pdf")}
        await messages.decide(message.id, "eva", Decision.RESEND, number=1)
        await settle(messages)
        last = server.accepted[-1]
        assert mail_of(last)["Subject"].endswith("Seiten: 1")
        assert last.message_id not in {one.message_id for one in server.accepted[:-1]}


def test_a_spool_of_before_has_no_forms_and_goes_on(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        path = spool.path
    path.unlink()
    with closing(sqlite3.connect(path)) as old:
        for statement in MIGRATIONS[0]:
            old.execute(statement)
        old.execute("PRAGMA user_version = 1")
        old.execute(
            "INSERT INTO recipients (message, number, address, edition, message_id, date, state,"
            " age, next_at, changed) VALUES ('x', 1, 'a@b', 1, '<x@b>', 0, 'queued', 0, 0, 0)"
        )
        old.commit()
    with opened(tmp_path) as spool, spool.reading() as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS)
        assert db.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
        assert db.execute("SELECT address, form FROM recipients").fetchone()[:] == ("a@b", None)


# -- what cannot be converted -----------------------------------------------------------------


class Coder:
    """An encoder that may be taken away."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def works(self) -> None:
        self.file.write_text("#!/bin/sh\nprintf OggS\nexec cat\n")
        self.file.chmod(0o755)

    def fails(self) -> None:
        self.file.write_text("#!/bin/sh\nexit 1\n")

    def is_gone(self) -> None:
        self.file.unlink()


@pytest.fixture
def coder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Coder:
    found = Coder(tmp_path / "bin" / "opusenc")
    found.file.parent.mkdir()
    found.works()
    monkeypatch.setenv("PATH", str(found.file.parent))
    return found


@pytest.mark.parametrize("how", [Coder.is_gone, Coder.fails])
async def test_without_its_tool_a_recording_goes_out_as_it_is(
    tmp_path: Path, coder: Coder, how: Callable[[Coder], None]
) -> None:
    time = Time(START)
    async with (
        MailServer() as server,
        office(tmp_path, server.port, now=time, voice="opus") as messages,
    ):
        await spoken(messages, 1)
        await settle(messages)
        assert attached(mail_of(server.accepted[0])) == [("audio/ogg", b"OggS" + WAV)]
        how(coder)
        message = await spoken(messages, 2)
        await settle(messages)
        assert len(server.accepted) == 1  # the tool may be back in a moment
        await later(messages, time, POISONED)
        mail = mail_of(server.accepted[1])
        assert attached(mail) == [("audio/wav", WAV)]
        assert f"{message.id} could not be converted and is attached as it was" in text_of(mail)
        (recipient,) = (await messages.spool.message(message.id)).recipients
        assert recipient.state is RecipientState.DELIVERED
        assert recipient.form == Form("en", "pdf", bare=(message.id,))


async def test_a_tool_that_is_back_does_not_change_a_mail(tmp_path: Path, coder: Coder) -> None:
    time = Time(START)
    async with (
        MailServer(Script({".": [LOST, OK]})) as server,
        office(tmp_path, server.port, now=time, voice="opus") as messages,
    ):
        coder.fails()
        await spoken(messages)
        await settle(messages)
        await later(messages, time, POISONED)
        assert len(server.accepted) >= 1
        coder.works()
        await later(messages, time, 2)
        first, second = server.accepted
        assert first.body == second.body


def scribe_of(messages: Messages, enclosures: Enclosures, time: Time) -> Scribe:
    plain = Mailbox(Address("office@site.test"))
    mailboxes = Mailboxes([], [plain])
    sender = Address("fax@umpack.test")
    return Scribe(messages.spool, enclosures, mailboxes, COMPOSER, sender, plain, time)


async def test_a_pdf_that_cannot_be_made_again_lets_the_original_go(tmp_path: Path) -> None:
    time = Time(START)
    async with MailServer() as server, office(tmp_path, server.port, now=time) as messages:
        message = await received(messages, content=tiff())
        await messages.desk.turn()
        (pdf,) = (tmp_path / "spool").rglob("document.pdf")
        pdf.unlink()
        slow = Enclosures(tmp_path / "spool", limits=ConversionLimits(wall=0.001))
        scribe = scribe_of(messages, slow, time)
        held = await messages.spool.claim(message.id, 1, time.now)
        for _ in range(POISONED - 1):
            assert await scribe.letter(held) is None
        letter = await scribe.letter(held)
        assert letter is not None
        mail = mail_of(accepted(letter.body))
        assert attached(mail) == [("image/tiff", tiff())]
        assert mail["Subject"].startswith("[Fax] from")
        # Whoever is asked next, a converter at hand or not, writes the same mail.
        able = scribe_of(messages, Enclosures(tmp_path / "spool"), time)
        record = await messages.spool.message(message.id)
        again = await able.letter(Delivery(record, record.recipients[0], held.token))
        assert again == letter


def accepted(body: bytes) -> Accepted:
    return Accepted("", "", "", (), body, {}, False, None)


async def test_a_try_whose_file_is_gone_does_not_hold_back_the_mail() -> None:
    time = Time(START)
    broken = EngineFacts("FAILED", "HANGUP", pages=1, bitrate=9600)
    with in_memory() as directory:
        async with MailServer() as server, office(directory, server.port, now=time) as messages:
            calls = []
            for number in range(3):
                call = facts(number, caller="49301")
                content = tiff(number + 1)
                calls.append(await received(messages, content=content, engine=broken, call=call))
                await settle(messages)
                time.now += 60.0
            assert len(server.accepted) == 1  # the first at once, the others together
            gone = await messages.spool.message(calls[1].id)
            assert gone.original is not None
            path = directory / "spool" / gone.original.file
            path.rename(path.with_suffix(".away"))
            time.now += 600.0
            await settle(messages)
            await later(messages, time, POISONED)
            mail = mail_of(server.accepted[1])
            assert mail["X-Umpack-Id"] == calls[2].id
            assert [kind for kind, _ in attached(mail)] == ["application/pdf", "image/tiff"]
            assert f"the file of {gone.id} cannot be read at present" in text_of(mail)
            assert gone.id in text_of(mail)
            found = {one.id: one.state.value for one in await messages.spool.messages()}
            assert found == {
                calls[0].id: "delivered", calls[1].id: "decided", calls[2].id: "delivered"
            }  # fmt: skip


# -- what is too large ------------------------------------------------------------------------


def states(message: Message) -> Sequence[tuple[str, bool]]:
    return [(r.state.value, bool(r.form and r.form.note)) for r in message.recipients]


@pytest.mark.parametrize(
    "script",
    [
        Script(size=6000),
        Script({".": ["552 5.3.4 too large", OK]}),
        Script({"MAIL": ["552 5.2.3 too long for this domain", "250 2.1.0 Ok"]}),
    ],
)
async def test_who_cannot_have_it_is_told_of_it(tmp_path: Path, script: Script) -> None:
    time = Time(START)
    async with (
        MailServer(script) as server,
        office(tmp_path, server.port, now=time, attach="both") as messages,
    ):
        message = await received(messages, content=tiff(2))
        await settle(messages)
        (note,) = server.accepted
        assert note.message_id == f"<{message.id}.2@umpack.test>" != message.message_id
        assert note.recipients == ("office@site.test",)
        mail = mail_of(note)
        assert attached(mail) == []
        assert mail["Subject"] == "[Fax incomplete] from 49307770001 to 49302000123, pages: 2"
        assert f"ask whoever runs umpack for {message.id}" in text_of(mail)
        record = await messages.spool.message(message.id)
        assert states(record) == [("dead letter", False), ("delivered", True)]
        assert {r.form.attach for r in record.recipients if r.form} == {"both"}
        assert [alarm.kind for alarm in (await messages.look()).alarms][:1] == ["dead letters"]
        (entry,) = [e for e in await messages.spool.audit(message.id) if e.what == "note"]
        assert "no. 1; too large" in entry.detail
        # The server's limit is raised, and a person sends it again: to whom it is for, once.
        server.script = Script()
        await messages.decide(message.id, "eva", Decision.RESEND)
        await settle(messages)
        assert len(server.accepted) == 2
        assert len(attached(mail_of(server.accepted[1]))) == 2
        assert (await messages.spool.message(message.id)).state.value == "delivered"


async def test_a_note_is_in_the_language_fixed_by_the_first_try(tmp_path: Path) -> None:
    file = tmp_path / "mailboxes.csv"
    file.write_text("number,addresses,language\n49302000123,anna@site.test,de\n")
    async with (
        MailServer(Script(size=6000)) as server,
        office(tmp_path, server.port, directories=(file,)) as messages,
    ):
        message = await received(messages, content=tiff(2))
        # Named by a hand, so that the sender fixes the form after its claim.
        await messages.spool.address(message.id, ["anna@site.test"])
        await messages.mailer.turn()
        (note,) = server.accepted
        assert "nicht annimmt" in text_of(mail_of(note))


async def test_a_note_is_sent_once_and_never_about_a_note(tmp_path: Path) -> None:
    script = Script({"MAIL": "552 5.3.4 too large"})
    async with MailServer(script) as server, office(tmp_path, server.port) as messages:
        message = await spoken(messages)
        await settle(messages)
        both = [("dead letter", False), ("dead letter", True)]
        assert states(await messages.spool.message(message.id)) == both
        await messages.decide(message.id, "eva", Decision.RETRY)
        await settle(messages)
        assert states(await messages.spool.message(message.id)) == both
        assert server.accepted == []
        server.script = Script()
        await messages.decide(message.id, "eva", Decision.RETRY)
        await settle(messages)
        assert server.copies(message.message_id) == 1


@pytest.mark.parametrize(
    ("why", "code", "large"),
    [
        ("mx:25: 552 5.3.4 too large", 552, True),
        ("mx:25: MAIL: 552 quota", 552, True),
        ("mx:25: 550 5.2.3 too long", 550, True),
        ("mx:25: 552 5.2.2 mailbox full", 552, False),
        ("mx:25: 550 5.1.1 nobody", 550, False),
        ("192.5.3.4:25: 550 5.1.1 nobody", 550, False),
    ],
)
def test_which_refusals_a_smaller_mail_could_escape(why: str, code: int, large: bool) -> None:
    assert Refused(why, code).too_large is large
