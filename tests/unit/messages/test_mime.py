"""`mime.written` against the `email` package, which is what the mails are to look like."""

from __future__ import annotations

import email
from base64 import encodebytes
from collections.abc import Sequence
from email.headerregistry import Address
from email.message import EmailMessage, MIMEPart
from email.policy import SMTP, SMTPUTF8, default

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umpack.messages import mime
from umpack.messages.mime import File, Header, Mailbox

BOUNDARY = "=_umpack_" + "0123456789abcdef" * 2
FROM = Mailbox("From", "Fax", "fax", "example.org")
PLAIN = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=120)
WORDS = ["[Fax]", "from", "+4930777", "=?utf-8?q?x?=", "a" * 70, ";", '"', ""]
VALUES = st.one_of(
    PLAIN.map(str.strip),
    st.lists(st.sampled_from(WORDS)).map(" ".join),
    st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), max_size=60).map(str.strip),
)  # fmt: skip
NAMES = st.from_regex(r"[A-Za-z0-9+_-]{1,90}\.(pdf|tif|wav)", fullmatch=True)
TEXTS = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=400),
    st.lists(PLAIN, max_size=9).map("\n".join),
)
KINDS = st.sampled_from([
    ("application/pdf", None), ("image/tiff", ("application", "faxbw")), ("audio/wav", None)
])  # fmt: skip


def peer(
    head: Sequence[Header | Mailbox],
    tail: Sequence[Header],
    text: str,
    files: Sequence[File],
    *,
    utf8: bool,
) -> bytes:
    """The same by `email` alone."""
    mail = EmailMessage(policy=SMTPUTF8 if utf8 else SMTP)
    for header in head:
        if isinstance(header, Mailbox):
            mail[header.name] = Address(header.display, header.local, header.domain)
        else:
            mail[header.name] = header.value
    short = all(len(line) <= 78 for line in text.encode().splitlines())
    coding = "7bit" if text.isascii() and short else "quoted-printable"
    mail.set_content(text, charset="utf-8", cte=coding)
    for file in files:
        main, _, sub = file.type.partition("/")
        mail.add_attachment(file.data, maintype=main, subtype=sub, filename=file.name)
        part: MIMEPart = list(mail.iter_attachments())[-1]
        # In lines of 76: by itself `email` makes them as long as those of a header.
        part.set_payload(encodebytes(file.data).decode())
        if file.parameter:
            part.set_param(*file.parameter)
        for more in file.more:
            part[more.name] = more.value
    for header in tail:
        mail[header.name] = header.value
    if files:
        mail.set_boundary(BOUNDARY)
    return mail.as_bytes()


@given(VALUES, TEXTS, st.booleans())
def test_headers_and_text_are_those_of_email(value: str, text: str, utf8: bool) -> None:
    head, tail = (FROM, Header("Subject", value)), [Header("Content-Class", "fax")]
    assert mime.written(head, tail, text, [], BOUNDARY, utf8=utf8) == peer(
        head, tail, text, [], utf8=utf8
    )


@given(st.lists(st.tuples(st.binary(max_size=12_000), NAMES, KINDS), min_size=1, max_size=3), TEXTS)
def test_files_are_those_of_email(
    given_: list[tuple[bytes, str, tuple[str, tuple[str, str] | None]]], text: str
) -> None:
    files = [
        File(data, kind, name, parameter, (Header("Content-Duration", "6"),))
        for data, name, (kind, parameter) in given_
    ]
    head, tail = (FROM, Header("Subject", "x")), [Header("X-AttachmentOrder", "y" * 90)]
    ours = mime.written(head, tail, text, files, BOUNDARY, utf8=False)
    assert ours == peer(head, tail, text, files, utf8=False)
    read = email.message_from_bytes(ours, policy=default)
    assert isinstance(read, EmailMessage)
    assert not read.defects
    parts = list(read.iter_attachments())
    assert [part.get_content() for part in parts] == [file.data for file in files]
    assert [part.get_filename() for part in parts] == [file.name for file in files]


@pytest.mark.parametrize("length", range(40, 100))
def test_lines_are_folded_where_email_folds_them(length: int) -> None:
    files = [File(b"x", "application/pdf", "f" * (length - 4) + ".pdf")]
    head = (FROM, Header("Subject", "s" * length), Header("X-CallID", "w " * (length // 2) + "w"))
    assert mime.written(head, [], "text", files, BOUNDARY, utf8=False) == peer(
        head, [], "text", files, utf8=False
    )


@pytest.mark.parametrize(
    ("local", "domain"),
    [("anna", "example.org"), ("anna smith", "example.org"), ("ünna", "example.org"),
     ("a" * 60, "b" * 30 + ".example.org"), ("anna", "[192.0.2.1]")],
)  # fmt: skip
def test_mailboxes_are_those_of_email(local: str, domain: str) -> None:
    head = [FROM, Mailbox("To", "", local, domain)]
    utf8 = not local.isascii()
    assert mime.written(head, [], "", [], BOUNDARY, utf8=utf8) == peer(head, [], "", [], utf8=utf8)


@pytest.mark.parametrize("value", ["a\r\nBcc: b@example.org", "a\nb", "a\rb"])
def test_no_line_end_gets_into_a_header(value: str) -> None:
    with pytest.raises(ValueError, match="linefeed"):
        Header("Subject", value).lines(utf8=False)
