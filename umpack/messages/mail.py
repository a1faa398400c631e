"""A message as mail: the same bytes whenever and wherever it is composed.

Message-ID and Date are those of the recipient's edition, fixed at the commit, and the boundary is
made from them: a second node that sends it after the first died sends the same mail, which
receivers can recognise (RFC 7352, Exchange). Headers are those of RFC 3458, RFC 3834, MS-OXCMAIL.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from email.utils import format_datetime
from pathlib import PurePath
from typing import Final, NamedTuple

from umpack.core.errors import ConfigError
from umpack.messages import mime, texts
from umpack.messages.directory import Attach, Mailbox
from umpack.messages.document import FlawKind, flaws_of
from umpack.messages.facts import Circumstances, facts_of, pages_of
from umpack.messages.letter import Address, Letter, LetterError, a_label, address
from umpack.messages.message import Kind, Message, Recipient
from umpack.messages.mime import Header
from umpack.messages.outcomes import Outcome, Relation, outcome
from umpack.messages.templates import Templates
from umpack.messages.voice import Coded

_BOUNCE: Final = re.compile(r"[^@]+\+([0-9a-f]{16})\.(\d{1,6})\.(\d{1,6})@[^@]+")
_SOUND: Final[Mapping[str, str]] = {".wav": "audio/wav", ".ogg": "audio/ogg", ".opus": "audio/ogg"}


@dataclass(frozen=True, slots=True)
class MailPlan:
    """What is the same in all mails. `sender` stands in From; bounces come to it as well, with a
    `+` and the recipient's key before the @ (RFC 5233) if `bounce_keys`."""

    sender: Address
    name: str
    zone: tzinfo = UTC
    fallback: str = "en"
    """The language for those whose language there are no texts for."""
    bounce_keys: bool = True
    keep: float | None = None
    """Seconds for which originals are kept after their delivery to all."""

    def __post_init__(self) -> None:
        address(self.sender)
        if texts.header(self.name) != self.name:
            raise ConfigError(f"not fit for a sender's name: {self.name!a}")


@dataclass(frozen=True, slots=True)
class Files:
    """What can be attached for one message."""

    original: bytes | None = field(default=None, repr=False)
    pdf: bytes | None = field(default=None, repr=False)
    """Of a fax; None if there is none, then the original goes out."""
    coded: Coded | None = None
    """A recording in a smaller coding, instead of the original."""
    mended: bytes | None = field(default=None, repr=False)
    """A recording whose header had to be mended, besides the original."""


class Enclosed(NamedTuple):
    """A message and its files."""

    message: Message
    files: Files


class _Attachment(NamedTuple):
    data: bytes
    type: str
    name: str
    word: str
    seconds: float | None = None


class Composer:
    """Writes mails. `languages` are the texts by language; the plan's fallback must be there."""

    def __init__(self, plan: MailPlan, languages: Mapping[str, Templates]) -> None:
        if plan.fallback not in languages:
            raise ConfigError(f"no texts for mails in {plan.fallback!a}: {sorted(languages)}")
        self._plan = plan
        self._languages = languages

    def compose(
        self,
        enclosed: Enclosed,
        recipient: Recipient,
        mailbox: Mailbox,
        *,
        relation: Relation | None = None,
        others: Sequence[Enclosed] = (),
    ) -> Letter:
        """The mail of a message to one recipient; `others` are further tries of the bundle. What
        is not attached by the recipient's form is said.

        Raises `LetterError` for an address that is none.
        """
        message = enclosed.message
        templates = self._languages.get(mailbox.language) or self._languages[self._plan.fallback]
        attachments = _numbered(
            attachment
            for one in (enclosed, *others)
            for attachment in _attachments(one, mailbox.attach, self._plan.zone)
        )
        around = Circumstances(
            mailbox.address,
            _said_of_files(message, recipient, attachments, templates),
            relation,
            [other.message for other in others],
            self._plan.keep,
        )
        facts = facts_of(message, around, templates, self._plan.zone)
        section = _section(message)
        subject = facts | {"caller": _caller(message) or texts.header(facts["caller"]),
                           "called": texts.header(message.call.called, 40) or "?",
                           "name": texts.header(facts["name"]),
                           "station": texts.header(facts["station"])}  # fmt: skip
        # Of what a template makes once more only what belongs on one line.
        about = texts.line(templates.subject(f"subject {section}", subject), 200)
        tail = [Header("Content-Class", "fax" if message.call.kind is Kind.FAX else "voice-ca")]
        if attachments:
            order = ";".join(attachment.name for attachment in attachments)
            tail.insert(0, Header("X-AttachmentOrder", order))
        body = mime.written(
            (Header("Subject", about), *self._head(message, recipient)), tail,
            templates.body(f"body {section}", facts), [_file(one) for one in attachments],
            _boundary(recipient), utf8=not recipient.address.isascii(),
        )  # fmt: skip
        sender = self.bounce_address(message, recipient)
        return Letter(recipient.message_id, sender, (Address(recipient.address),), body)

    def bounce_address(self, message: Message, recipient: Recipient) -> Address:
        """Where a delivery report for this recipient goes; `bounced` reads it. Without the key if
        there is no room for it: behind more than 43 characters, or in quotes."""
        if not self._plan.bounce_keys:
            return self._plan.sender
        local, _, domain = self._plan.sender.rpartition("@")
        key = f"{message.id[-16:]}.{recipient.number}.{recipient.edition}"
        try:
            return address(f"{local}+{key}@{domain}")
        except LetterError:
            return self._plan.sender

    def _head(self, message: Message, recipient: Recipient) -> Iterator[Header | mime.Mailbox]:
        local, _, domain = self._plan.sender.rpartition("@")
        yield mime.Mailbox("From", self._plan.name, _unquoted(local), a_label(domain))
        local, _, domain = address(recipient.address).rpartition("@")
        domain = domain if domain.startswith("[") else a_label(domain)
        yield mime.Mailbox("To", "", _unquoted(local), domain)
        date = datetime.fromtimestamp(int(recipient.date), UTC).astimezone(self._plan.zone)
        yield Header("Date", format_datetime(date))
        yield Header("Message-ID", recipient.message_id)
        fax = message.call.kind is Kind.FAX
        yield Header("Message-Context", "fax-message" if fax else "voice-message")
        if caller := _caller(message):
            yield Header("X-CallingTelephoneNumber", caller)
        seconds = message.engine.seconds if message.engine else None
        if fax:
            yield Header("X-FaxNumberOfPages", str(pages_of(message)))
        elif seconds is not None:
            yield Header("X-VoiceMessageDuration", str(round(seconds)))
        if not fax and (name := texts.header(message.call.caller_name)):
            yield Header("X-VoiceMessageSenderName", name)
        if call := texts.header(message.call.call):
            yield Header("X-CallID", call)
        yield Header("X-Umpack-Id", message.id)
        yield Header("X-Umpack-Result", outcome(message).value)
        if _doubtful(message):
            yield Header("X-Umpack-Quality", "doubtful")
        yield Header("Auto-Submitted", "auto-generated")
        yield Header("X-Auto-Response-Suppress", "All")


def bounced(recipient: str) -> tuple[str, int, int] | None:
    """Whom a report is about, from the address it came to: the last 16 digits of the message's id,
    number and edition of the recipient; None if it is about nobody."""
    match = _BOUNCE.fullmatch(recipient)
    return (match[1], int(match[2]), int(match[3])) if match else None


def _section(message: Message) -> str:
    how = outcome(message)
    if message.call.kind is Kind.VOICE:
        return "voice" if how is Outcome.WHOLE else "voice incomplete"
    match how:
        case Outcome.WHOLE:
            return "fax"
        case Outcome.INCOMPLETE:
            return "fax incomplete"
        case Outcome.FAILED | Outcome.EMPTY:
            return "fax failed"


def _doubtful(message: Message) -> bool:
    """A fax that looks bad, or of which something had to be guessed: its PDF is not all there is
    to be said, even if every page is in it."""
    if message.call.kind is Kind.VOICE or message.document is None:
        return False
    return bool(flaws_of(message.document.fault))


def _said_of_files(
    message: Message,
    recipient: Recipient,
    attachments: Sequence[_Attachment],
    templates: Templates,
) -> str:
    form = recipient.form
    if form is not None and form.note:
        return templates.word("too large", id=message.id)
    names = ", ".join(f"{a.name} ({templates.word(a.word)})" for a in attachments)
    said = [names or templates.word("nothing attached")]
    if form is not None:
        said += [templates.word("not converted", id=id_) for id_ in form.bare]
        said += [templates.word("not readable", id=id_) for id_ in form.without]
    return "; ".join(said)


def _caller(message: Message) -> str:
    return texts.number(message.call.caller) or texts.header(message.call.caller, 40)


def _attachments(enclosed: Enclosed, wish: Attach, zone: tzinfo) -> list[_Attachment]:
    message, files = enclosed
    if outcome(message) is Outcome.EMPTY:
        return []  # the noise of a caller who hung up at the beep; its record has it
    begun = datetime.fromtimestamp(message.started, UTC).astimezone(zone)
    caller = texts.number(message.call.caller) or "unknown"
    stem = f"{message.call.kind.value}-{begun:%Y%m%d-%H%M%S}-{caller}"
    found = []
    if message.call.kind is Kind.VOICE:
        if files.coded is not None:
            name = texts.file_name(stem, files.coded.suffix)
            found.append(_Attachment(files.coded.data, files.coded.type, name, "sound"))
        elif files.original is not None:
            found.append(_original(message, files.original, stem, "sound"))
        if files.mended is not None:
            name = texts.file_name(f"{stem}-mended", ".wav")
            found.append(_Attachment(files.mended, "audio/wav", name, "sound"))
        seconds = message.engine.seconds if message.engine else None
        return [attachment._replace(seconds=seconds) for attachment in found]
    if files.pdf is not None and wish is not Attach.ORIGINAL:
        name = texts.file_name(stem, ".pdf")
        found.append(_Attachment(files.pdf, "application/pdf", name, "pdf"))
    doubtful = files.pdf is None or outcome(message) is not Outcome.WHOLE or _doubtful(message)
    if files.original is not None and (doubtful or wish is not Attach.PDF):
        found.append(_original(message, files.original, stem, "original"))
    return found


def _original(message: Message, data: bytes, stem: str, word: str) -> _Attachment:
    suffix = PurePath(message.name).suffix.lower()
    suffix = suffix if re.fullmatch(r"\.[a-z0-9]{1,8}", suffix) else ".bin"
    kind = _SOUND.get(suffix, "application/octet-stream")
    if message.call.kind is Kind.FAX:
        fault = message.document.fault if message.document else ""
        strange = any(flaw.kind is FlawKind.NOT_TIFF for flaw in flaws_of(fault))
        # A file that is no TIFF shall not be opened as one.
        kind = "image/tiff" if suffix in (".tif", ".tiff") and not strange else kind
    return _Attachment(data, kind, texts.file_name(stem, suffix), word)


def _numbered(attachments: Iterable[_Attachment]) -> list[_Attachment]:
    """No two of the same name."""
    found: dict[str, _Attachment] = {}
    for attachment in attachments:
        name, number = attachment.name, 2
        while name in found:
            path = PurePath(attachment.name)
            name, number = f"{path.stem}-{number}{path.suffix}", number + 1
        found[name] = attachment._replace(name=name)
    return list(found.values())


def _file(attachment: _Attachment) -> mime.File:
    return mime.File(
        attachment.data,
        attachment.type,
        attachment.name,
        ("application", "faxbw") if attachment.type == "image/tiff" else None,  # RFC 3302
        () if (seconds := attachment.seconds) is None
        else (Header("Content-Duration", str(round(seconds))),),  # RFC 3803
    )  # fmt: skip


def _boundary(recipient: Recipient) -> str:
    # "=_" stands neither in base64 nor in quoted-printable (RFC 2045 6.7), whoever wrote the text.
    seed = f"{recipient.message_id} {recipient.date:.0f}"
    return "=_umpack_" + hashlib.sha256(seed.encode()).hexdigest()[:32]


def _unquoted(local: str) -> str:
    if not local.startswith('"'):
        return local
    return re.sub(r"\\(.)", r"\1", local[1:-1])
