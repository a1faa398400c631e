"""A message as mail: the same bytes whenever and wherever it is composed.

Message-ID and Date are those of the recipient's edition, fixed at the commit, and the boundary is
made from them: a second node that sends it after the first died sends the same mail, which
receivers can recognise (RFC 7352, Exchange). Headers are those of RFC 3458, RFC 3834, MS-OXCMAIL.
"""

from __future__ import annotations

import hashlib
import re
from binascii import b2a_base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from email.headerregistry import Address as MailAddress
from email.headerregistry import HeaderRegistry
from email.message import EmailMessage, MIMEPart
from email.policy import SMTP, SMTPUTF8
from email.utils import format_datetime
from pathlib import PurePath
from typing import Final, NamedTuple

from umpack.core.errors import ConfigError, OurFault
from umpack.messages import texts
from umpack.messages.directory import Attach, Mailbox
from umpack.messages.document import FlawKind, flaws_of
from umpack.messages.facts import Circumstances, facts_of, pages_of
from umpack.messages.letter import Address, Letter, a_label, address
from umpack.messages.message import Kind, Message, Recipient
from umpack.messages.outcomes import Outcome, Relation, outcome
from umpack.messages.templates import Templates
from umpack.messages.voice import Coded


class _Headers(HeaderRegistry):
    """Makes the class of every header once: the registry's own makes it anew for each header of
    each mail, and the garbage collector has as many classes to find."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[str, type] = {}

    def __getitem__(self, name: str) -> type:
        known = name.lower()
        if known not in self._made:
            self._made[known] = super().__getitem__(name)
        return self._made[known]


_HEADERS: Final = _Headers()
_ASCII: Final = SMTP.clone(header_factory=_HEADERS)
_UTF8: Final = SMTPUTF8.clone(header_factory=_HEADERS)
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
        mail = EmailMessage(policy=_ASCII if recipient.address.isascii() else _UTF8)
        subject = facts | {"caller": _caller(message) or texts.header(facts["caller"]),
                           "called": texts.header(message.call.called, 40) or "?",
                           "name": texts.header(facts["name"]),
                           "station": texts.header(facts["station"])}  # fmt: skip
        # Of what a template makes once more only what belongs on one line.
        mail["Subject"] = texts.line(templates.subject(f"subject {section}", subject), 200)
        self._head(mail, message, recipient)
        _set_text(mail, templates.body(f"body {section}", facts))
        boundary = _boundary(recipient)
        for number, attachment in enumerate(attachments):
            _attach(mail, attachment, _place(boundary, number))
        if attachments:
            mail["X-AttachmentOrder"] = ";".join(attachment.name for attachment in attachments)
            mail.set_boundary(boundary)
        # Last, as headers that begin with Content- go with the text when files are attached.
        mail["Content-Class"] = "fax" if message.call.kind is Kind.FAX else "voice-ca"
        sender = self.bounce_address(message, recipient)
        body = _filled(mail.as_bytes(), boundary, attachments)
        return Letter(recipient.message_id, sender, (Address(recipient.address),), body)

    def bounce_address(self, message: Message, recipient: Recipient) -> Address:
        """Where a delivery report for this recipient goes; `bounced` reads it."""
        if not self._plan.bounce_keys:
            return self._plan.sender
        local, _, domain = self._plan.sender.rpartition("@")
        key = f"{message.id[-16:]}.{recipient.number}.{recipient.edition}"
        return address(f"{local}+{key}@{domain}")

    def _head(self, mail: EmailMessage, message: Message, recipient: Recipient) -> None:
        local, _, domain = self._plan.sender.rpartition("@")
        mail["From"] = MailAddress(self._plan.name, _unquoted(local), a_label(domain))
        local, _, domain = address(recipient.address).rpartition("@")
        domain = domain if domain.startswith("[") else a_label(domain)
        mail["To"] = MailAddress("", _unquoted(local), domain)
        mail["Date"] = format_datetime(
            datetime.fromtimestamp(int(recipient.date), UTC).astimezone(self._plan.zone)
        )
        mail["Message-ID"] = recipient.message_id
        fax = message.call.kind is Kind.FAX
        mail["Message-Context"] = "fax-message" if fax else "voice-message"
        if caller := _caller(message):
            mail["X-CallingTelephoneNumber"] = caller
        seconds = message.engine.seconds if message.engine else None
        if fax:
            mail["X-FaxNumberOfPages"] = str(pages_of(message))
        elif seconds is not None:
            mail["X-VoiceMessageDuration"] = str(round(seconds))
        if not fax and (name := texts.header(message.call.caller_name)):
            mail["X-VoiceMessageSenderName"] = name
        if call := texts.header(message.call.call):
            mail["X-CallID"] = call
        mail["X-Umpack-Id"] = message.id
        mail["X-Umpack-Result"] = outcome(message).value
        if _doubtful(message):
            mail["X-Umpack-Quality"] = "doubtful"
        mail["Auto-Submitted"] = "auto-generated"
        mail["X-Auto-Response-Suppress"] = "All"


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


def _attach(mail: EmailMessage, attachment: _Attachment, place: str) -> None:
    """Attach it with `place` for its data, which `_filled` puts there: the generator of `email`
    would take the base64 text apart line by line, which takes longer than all the rest."""
    main, _, sub = attachment.type.partition("/")
    mail.add_attachment(b"", maintype=main, subtype=sub, filename=attachment.name)
    part: MIMEPart = list(mail.iter_attachments())[-1]
    part.set_payload(f"{place}\n")
    if sub == "tiff":
        part.set_param("application", "faxbw")  # RFC 3302
    if attachment.seconds is not None:
        part["Content-Duration"] = str(round(attachment.seconds))  # RFC 3803


def _place(boundary: str, number: int) -> str:
    # As little to be found in a text as the boundary itself, and no boundary (RFC 2046 5.1.1).
    return f"{boundary}.{number}"


def _filled(mail: bytes, boundary: str, attachments: Sequence[_Attachment]) -> bytes:
    """The mail with its attachments, in lines of 76 (RFC 2045 6.8)."""
    parts = []
    for number, attachment in enumerate(attachments):
        before, found, mail = mail.partition(f"{_place(boundary, number)}\r\n".encode())
        if not found:
            raise OurFault(f"no place for attachment {number + 1} of a mail")
        text = b2a_base64(attachment.data, newline=False)
        parts += [before, *(text[at : at + 76] + b"\r\n" for at in range(0, len(text), 76))]
    return b"".join((*parts, mail))


def _set_text(mail: EmailMessage, body: str) -> None:
    body = body.encode("utf-8", "replace").decode("utf-8")
    short = all(len(line) <= 78 for line in body.splitlines())
    plain = body.isascii() and short
    mail.set_content(body, charset="utf-8", cte="7bit" if plain else "quoted-printable")


def _boundary(recipient: Recipient) -> str:
    # "=_" stands neither in base64 nor in quoted-printable (RFC 2045 6.7), whoever wrote the text.
    seed = f"{recipient.message_id} {recipient.date:.0f}"
    return "=_umpack_" + hashlib.sha256(seed.encode()).hexdigest()[:32]


def _unquoted(local: str) -> str:
    if not local.startswith('"'):
        return local
    return re.sub(r"\\(.)", r"\1", local[1:-1])
