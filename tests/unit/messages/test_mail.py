from __future__ import annotations

import email
import hashlib
from dataclasses import replace
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.messages.mails import BROKEN, DOCUMENT, ENGINE, START, message, recipient
from tests.unit.messages.test_texts import ANY, HOSTILE
from umpack.core.errors import ConfigError
from umpack.messages import texts
from umpack.messages.directory import Attach, Mailbox
from umpack.messages.document import FlawKind
from umpack.messages.letter import Address, Letter, LetterError
from umpack.messages.mail import Composer, Enclosed, Files, MailPlan, bounced
from umpack.messages.message import DocumentFacts, EngineFacts, Form, Kind, Message
from umpack.messages.outcomes import Relation, RelationKind
from umpack.messages.templates import TemplateFault, read_languages, read_templates
from umpack.messages.voice import Coded

TEXTS = Path(__file__).parents[3] / "etc" / "mail"
LANGUAGES = read_languages(TEXTS)
PLAN = MailPlan(Address("fax@example.org"), "Fax", ZoneInfo("Europe/Berlin"))
COMPOSER = Composer(PLAN, LANGUAGES)
FILES = Files(b"II*\0original", b"%PDF-1.4 pdf")
HEADERS = {
    "Subject", "From", "To", "Date", "Message-ID", "Message-Context", "Content-Class",
    "X-CallingTelephoneNumber", "X-FaxNumberOfPages", "X-CallID", "X-Umpack-Id",
    "X-Umpack-Result", "Auto-Submitted", "X-Auto-Response-Suppress", "Content-Type",
    "MIME-Version", "X-AttachmentOrder", "Content-Transfer-Encoding", "X-VoiceMessageDuration",
    "X-VoiceMessageSenderName", "X-Umpack-Quality",
}  # fmt: skip


def box(language: str = "en", attach: Attach = Attach.PDF) -> Mailbox:
    return Mailbox(Address("anna@example.org"), language, attach)


def compose(
    one: Message, files: Files = FILES, language: str = "en", attach: Attach = Attach.PDF
) -> Letter:
    return COMPOSER.compose(Enclosed(one, files), recipient(one), box(language, attach))


def read(letter: Letter) -> EmailMessage:
    read = email.message_from_bytes(letter.body, policy=default)
    assert isinstance(read, EmailMessage)
    assert not read.defects
    return read


def text_of(mail: EmailMessage) -> str:
    body = mail.get_body(("plain",))
    assert body is not None
    return str(body.get_content()).replace("\r\n", "\n")


def attached(mail: EmailMessage) -> dict[str, str]:
    return {str(p.get_filename()): p.get_content_type() for p in mail.iter_attachments()}


def test_whole_fax() -> None:
    letter = compose(message())
    mail = read(letter)
    assert mail["Subject"] == "[Fax] from +4930777 to 4930200012, pages: 2"
    assert mail["From"] == "Fax <fax@example.org>"
    assert mail["To"] == "anna@example.org"
    assert mail["Date"] == "Tue, 14 Nov 2023 23:13:20 +0100"
    assert mail["Message-ID"] == letter.message_id == "<1@fax.example.org>"
    assert mail["Message-Context"] == "fax-message"
    assert mail["Content-Class"] == "fax"
    assert mail["X-CallingTelephoneNumber"] == "+4930777"
    assert mail["X-FaxNumberOfPages"] == "2"
    assert mail["X-Umpack-Result"] == "whole"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["X-Auto-Response-Suppress"] == "All"
    assert attached(mail) == {"fax-20231114-231220-+4930777.pdf": "application/pdf"}
    assert letter.recipients == ("anna@example.org",)
    assert letter.body.isascii()


def test_body_says_all_that_is_known() -> None:
    text = text_of(read(compose(message())))
    for fact in (
        "4930200012", "+4930777 (not verified)", "+49 30 777 (set by the sender, not verified)",
        "Begun: 2023-11-14 23:12:20+01:00", "Duration: 62 s", "14400 bit/s",
        "Error correction: yes", "204x196", "G.711", "node1", "fax service:3", "ab" * 32, "12345",
        "fax engine 2, original 2, PDF 2", "node1-20231114t221320-0001-0000000000000001",
        "anna@example.org", "Anna",
    ):  # fmt: skip
        assert fact in text, fact
    assert "Kept" not in text  # nobody said how long
    assert "$" not in text


def test_fifth_line_at_the_latest_has_numbers_and_pages() -> None:
    first = "\n".join(text_of(read(compose(message()))).splitlines()[:5])
    assert all(fact in first for fact in ("4930200012", "+4930777", "Pages: 2"))


def test_partial_fax_says_so_and_why() -> None:
    one = message(engine=replace(BROKEN, pages=2, error="The call dropped prematurely"))
    mail = read(compose(one))
    assert mail["Subject"] == "[Fax incomplete] from +4930777 to 4930200012, pages: 2"
    assert "pages received: 2; then: The call dropped prematurely" in text_of(mail)
    assert mail["X-Umpack-Result"] == "incomplete"
    assert set(attached(mail).values()) == {"application/pdf", "image/tiff"}


def test_pages_missing_against_the_engine_are_told() -> None:
    mail = read(compose(message(engine=replace(ENGINE, pages=4))))
    assert mail["Subject"].startswith("[Fax incomplete]")
    assert "fax engine 4, original 2, PDF 2" in text_of(mail)


def test_german() -> None:
    fault = "page 2: cut off (30)"
    one = message(engine=BROKEN, document=replace(DOCUMENT, fault=fault))
    mail = read(compose(one, language="de"))
    assert mail["Subject"] == "[Fax unvollständig] von +4930777 an 4930200012, Seiten: 2"
    assert "Seite 2: die Seite ist abgeschnitten, fehlende Zeilen: 30" in text_of(mail)
    assert b"unvollst\xc3\xa4ndig" not in compose(one, language="de").body
    assert read(compose(message(), language="tlh"))["Subject"].startswith("[Fax] from")


def test_failed_conversion_sends_the_original() -> None:
    one = message(document=DocumentFacts(None, 0, None, (), "conversion broke down"))
    mail = read(compose(one, Files(b"II*\0original", None)))
    (part,) = mail.iter_attachments()
    assert part.get_content() == b"II*\0original"
    assert part["Content-Type"].params["application"] == "faxbw"
    assert "the conversion broke down" in text_of(mail)
    strange = message(document=DocumentFacts(0, 0, 0, (), "not a TIFF"))
    assert "application/octet-stream" in attached(read(compose(strange, Files(b"MZ")))).values()


@pytest.mark.parametrize(
    "fault", ["page 1: bad rows (30)", "page 2: almost wholly black", "page list damaged",
              "page 1: resolution assumed"],
)  # fmt: skip
def test_what_looks_bad_comes_with_its_original_and_says_so(fault: str) -> None:
    one = message(document=replace(DOCUMENT, fault=fault))
    mail = read(compose(one))
    assert mail["Subject"].startswith("[Fax] from")
    assert mail["X-Umpack-Quality"] == "doubtful"
    assert list(attached(mail).values()) == ["application/pdf", "image/tiff"]
    assert text_of(mail).splitlines()[1].startswith("QUALITY IN DOUBT: ")
    first = "\n".join(text_of(mail).splitlines()[:5])
    assert all(fact in first for fact in ("4930200012", "+4930777", "Pages: 2"))
    assert "QUALITÄT ZWEIFELHAFT" in text_of(read(compose(one, language="de")))
    assert read(compose(message()))["X-Umpack-Quality"] is None


def test_what_is_not_attached_is_said() -> None:
    one, other = message(2), message(1)
    form = Form("en", "pdf", bare=(one.id,), without=(other.id,))
    letter = COMPOSER.compose(
        Enclosed(one, Files(b"II*\0")), recipient(one, form=form), box(),
        others=[Enclosed(other, Files())],
    )  # fmt: skip
    text = text_of(read(letter))
    assert f"{one.id} could not be converted and is attached as it was received" in text
    assert f"the file of {other.id} cannot be read at present and is not attached" in text
    note = replace(form, bare=(), without=(), note=True)
    letter = COMPOSER.compose(Enclosed(one, Files()), recipient(one, form=note), box())
    mail = read(letter)
    assert attached(mail) == {}
    assert "the mail server does not take mails as large" in text_of(mail)
    assert f"ask whoever runs umpack for {one.id}" in text_of(mail)
    assert mail["Subject"] == "[Fax] from +4930777 to 4930200012, pages: 2"


@pytest.mark.parametrize(
    ("wish", "types"),
    [
        (Attach.PDF, ["application/pdf"]),
        (Attach.ORIGINAL, ["image/tiff"]),
        (Attach.BOTH, ["application/pdf", "image/tiff"]),
    ],
)
def test_mailbox_gets_what_it_wants(wish: Attach, types: list[str]) -> None:
    assert list(attached(read(compose(message(), attach=wish))).values()) == types


def test_failed_try_has_no_attachment() -> None:
    one = message(engine=replace(BROKEN, pages=0), document=None, original=None)
    mail = read(compose(one, Files()))
    assert mail["Subject"] == "[Fax failed] from +4930777 to 4930200012"
    assert not mail.is_multipart()
    assert mail["X-FaxNumberOfPages"] == "0"


def test_voice() -> None:
    one = message(kind=Kind.VOICE, document=None)
    mail = read(compose(one, Files(b"RIFF", mended=b"RIFFmended")))
    assert mail["Subject"] == "[Voice] from +4930777 to 4930200012, 62 s"
    assert (mail["Message-Context"], mail["Content-Class"]) == ("voice-message", "voice-ca")
    assert (mail["X-VoiceMessageDuration"], mail["X-VoiceMessageSenderName"]) == ("62", "Anna")
    assert list(attached(mail).values()) == ["audio/wav", "audio/wav"]
    assert next(iter(mail.iter_attachments()))["Content-Duration"] == "62"
    other = message(2, kind=Kind.VOICE, document=None, engine=replace(ENGINE, seconds=5.0))
    both = [Enclosed(other, Files(b"RIFF"))]
    letter = COMPOSER.compose(Enclosed(one, Files(b"RIFF")), recipient(one), box(), others=both)
    lengths = [part["Content-Duration"] for part in read(letter).iter_attachments()]
    assert lengths == ["62", "5"]
    small = read(compose(one, Files(b"RIFF", coded=Coded(b"OggS", ".opus", "audio/ogg"))))
    assert list(attached(small).values()) == ["audio/ogg"]


def test_adopted_messages_say_that_their_end_was_not_seen() -> None:
    for kind in Kind:
        one = message(kind=kind, engine=None, document=None, adopted="its call's end was not seen")
        mail = read(compose(one, Files(b"original")))
        assert mail["Subject"].startswith(f"[{kind.value.capitalize()} incomplete] from +4930777")
        assert "the end of the call was not seen" in text_of(mail)
        assert "Taken in later: its call's end was not seen" in text_of(mail)


def test_voice_that_broke_off_says_why() -> None:
    engine = replace(ENGINE, status="FAILED", error="")
    document = DocumentFacts(fault="ends before its length")
    one = message(kind=Kind.VOICE, engine=engine, document=document)
    mail = read(compose(one, Files(b"RIFF")))
    assert "the call was hung up; ends before its length" in text_of(mail)


def test_withheld_number() -> None:
    mail = read(compose(message(caller="")))
    assert mail["Subject"] == "[Fax] from withheld to 4930200012, pages: 2"
    assert mail["X-CallingTelephoneNumber"] is None


@pytest.mark.parametrize("kind", RelationKind)
def test_repeat_is_linked(kind: RelationKind) -> None:
    one, earlier = message(2), message(1)
    letter = COMPOSER.compose(
        Enclosed(one, FILES), recipient(one), box(), relation=Relation(kind, earlier.id, 2)
    )
    assert earlier.id in text_of(read(letter))


def test_bundle_lists_the_tries_and_brings_their_files() -> None:
    one, other = message(2), message(1, at=START, engine=BROKEN)
    composer = Composer(replace(PLAN, keep=86400.0 * 30), LANGUAGES)
    letter = composer.compose(
        Enclosed(one, FILES), recipient(one), box(), others=[Enclosed(other, FILES)]
    )
    mail = read(letter)
    assert other.id in text_of(mail)
    assert "Earlier tries of this caller:\n- 2023-11-14 23:12:20+01:00: incomplete" in text_of(mail)
    assert "Earlier tries" not in text_of(read(compose(one)))
    assert "Disconnected after permitted retries" in text_of(mail)
    assert f"Kept: 30 days after all have it; to see it: umpack fax show {one.id}" in text_of(mail)
    assert len(attached(mail)) == 3
    assert "fax-20231114-231220-+4930777-2.pdf" in attached(mail)


def test_composed_twice_it_is_the_same_mail() -> None:
    other = Composer(PLAN, read_languages(TEXTS))
    for one in (message(), message(engine=BROKEN), message(kind=Kind.VOICE)):
        again = other.compose(Enclosed(one, FILES), recipient(one), box())
        assert again == compose(one)


def test_every_edition_is_a_mail_of_its_own() -> None:
    one = message()
    new = recipient(one, edition=2, message_id="<2@x.example>", date=START + 60)
    letter = COMPOSER.compose(Enclosed(one, FILES), new, box())
    assert letter.message_id == "<2@x.example>"
    assert read(letter)["Date"] == "Tue, 14 Nov 2023 23:14:20 +0100"
    boundaries = {read(found).get_boundary() for found in (letter, compose(one))}
    assert len(boundaries) == 2


def test_bounce_finds_its_recipient() -> None:
    letter = compose(message(7))
    assert letter.envelope_from == "fax+0000000000000007.1.1@example.org"
    assert bounced(letter.envelope_from) == ("0000000000000007", 1, 1)
    assert bounced("fax@example.org") is None


@pytest.mark.parametrize("local", ["f" * 44, '"fax box"'])
def test_a_sender_without_room_for_a_key_is_left_as_it_is(local: str) -> None:
    sender = Address(f"{local}@example.org")
    composer = Composer(replace(PLAN, sender=sender), LANGUAGES)
    letter = composer.compose(Enclosed(message(7), FILES), recipient(message(7)), box())
    assert letter.envelope_from == sender


@pytest.mark.parametrize("address", ["müller@example.org", '"a b"@example.org', "x@müller.example"])
def test_unusual_addresses(address: str) -> None:
    one = message()
    letter = COMPOSER.compose(Enclosed(one, FILES), recipient(one, address), box())
    assert letter.recipients == (address,)
    (to,) = read(letter)["To"].addresses
    name = to.username.encode("utf-8", "surrogateescape").decode()
    assert name == address.rpartition("@")[0].strip('"')


def test_address_that_is_none_is_refused() -> None:
    one = message()
    with pytest.raises(LetterError):
        COMPOSER.compose(Enclosed(one, FILES), recipient(one, "a@b\r\nBcc: c"), box())


def hostile(text: str, raw: bytes, kind: Kind = Kind.FAX) -> Message:
    engine = EngineFacts(status=text, error=text, pages=1, station=raw, resolution=text)
    return message(
        kind=kind, caller=text, called=text, engine=engine, name_of_caller=text, adopted=text,
        document=DocumentFacts(1, 1, 0, ("a",), text),
    )  # fmt: skip


def check_hostile(one: Message) -> None:
    for language in ("en", "de"):
        letter = compose(one, language=language)
        assert b"\0" not in letter.body
        head = letter.body.split(b"\r\n\r\n", 1)[0]
        assert head.isascii()
        assert all(len(line) <= 998 for line in letter.body.split(b"\r\n"))
        mail = read(letter)
        assert set(mail.keys()) <= HEADERS
        assert len(mail.keys()) == len(set(mail.keys()))
        assert [a.addr_spec for a in mail["To"].addresses] == ["anna@example.org"]
        for name in attached(mail):
            assert texts.file_name(name.rpartition(".")[0], "." + name.rpartition(".")[2]) == name
        lines = text_of(mail).split("\n")
        odd = [c for line in lines for c in line if not c.isprintable()]
        assert set(odd) <= {"\u2068", "\u2069"}


@pytest.mark.parametrize("raw", HOSTILE)
@pytest.mark.parametrize("kind", Kind)
def test_hostile_callers_of_the_book(raw: bytes, kind: Kind) -> None:
    check_hostile(hostile(texts.decoded(raw), raw, kind))


@settings(deadline=None, max_examples=60)
@given(ANY, st.binary(max_size=100))
def test_whatever_a_caller_says_the_mail_is_sound(text: str, raw: bytes) -> None:
    check_hostile(hostile(text, raw))


def test_body_cannot_end_a_part() -> None:
    one = message()
    seed = hashlib.sha256(f"{one.message_id} {START:.0f}".encode()).hexdigest()[:32]
    letter = compose(hostile(f"--=_umpack_{seed}--", b""))
    assert len(list(read(letter).iter_attachments())) == 2


def test_plan_must_be_sound() -> None:
    with pytest.raises(ConfigError):
        Composer(replace(PLAN, fallback="fr"), LANGUAGES)
    with pytest.raises(ConfigError):
        replace(PLAN, name="Fax\r\nBcc: x")


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_flaw_has_words(language: str) -> None:
    for kind in FlawKind:
        assert LANGUAGES[language].word(kind.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("$caller", "$callr"), "callr"),
        (("$caller", "$ 5"), "write `\\$\\$`"),
        (("== body fax ==", "== body fix =="), "unknown"),
        (("== words ==", "== subject fax =="), "doubled"),
        (("whole = ", "hole = "), "hole"),
        (("no rows = the page is empty\n", ""), "missing: no rows"),
        (("# Texts", "Texts"), "before the first section"),
    ],
)
def test_texts_that_cannot_be_used(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    text = (TEXTS / "en.txt").read_text(encoding="utf-8")
    path = tmp_path / "en.txt"
    path.write_text(text.replace(change[0], change[1], 1), encoding="utf-8")
    assert change[0] in text
    with pytest.raises(TemplateFault, match=message):
        read_templates(path)


def test_texts_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(TemplateFault):
        read_languages(tmp_path)
    with pytest.raises(TemplateFault):
        read_templates(tmp_path / "en.txt")
    (tmp_path / "en.txt").write_bytes(b"\xff")
    with pytest.raises(TemplateFault, match="UTF-8"):
        read_templates(tmp_path / "en.txt")
