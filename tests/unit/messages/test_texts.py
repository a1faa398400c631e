from __future__ import annotations

import json
import re
import unicodedata
from email.message import EmailMessage
from email.policy import SMTP

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umpack.core.printable import printable
from umpack.messages import texts

# fax.md 9 row 3.
HOSTILE = [
    b"\xff\xc3",
    b"1\r\nBcc: victim@example.org",
    b"12\x0034",
    b"$(id)",
    b"`id`; rm -rf /",
    b"%n%n%s",
    b'"' * 20,
    "\u202e\u2066evil\u202c".encode(),
    "\U0001f4e0 fax \U0001f468\u200d\U0001f469".encode(),
    "שלום עולם".encode(),
    b"../../etc/passwd",
    b"a\x1b[2J\x07",
    b"CON",
    b"",
    b" ",
    b"." * 40,
    ("e" + "\u0301" * 50).encode(),
    b"\xed\xa0\x80",
    b"x" * 5000,
    b"<script>alert(1)</script>",
]
ANY = st.one_of(
    st.text(max_size=300),
    st.text(st.characters(), max_size=300),
    st.binary(max_size=300).map(texts.decoded),
    st.sampled_from(HOSTILE).map(texts.decoded),
)
SAFE_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_+.-]*")


def is_clean_line(text: str) -> bool:
    """Nothing that ends a line, moves a cursor, hides or reorders; isolates are ours."""
    inner = text.removeprefix("\u2068").removesuffix("\u2069")
    kinds = {unicodedata.category(c) for c in inner}
    return not kinds & {"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"}


@given(ANY)
def test_header_is_one_line_of_ascii(text: str) -> None:
    cleaned = texts.header(text)
    assert cleaned.isascii()
    assert cleaned.isprintable() or cleaned == ""
    assert len(cleaned) <= 64
    mail = EmailMessage(policy=SMTP)
    mail["Subject"] = cleaned
    mail.set_content("x")
    head = mail.as_bytes().split(b"\r\n\r\n")[0]
    names = [line.split(b":")[0].lower() for line in head.split(b"\r\n") if line[:1] != b" "]
    assert sorted(names) == sorted(
        [b"subject", b"content-type", b"content-transfer-encoding", b"mime-version"]
    )


@given(ANY)
def test_line_is_one_visible_line(text: str) -> None:
    cleaned = texts.line(text)
    assert is_clean_line(cleaned)
    assert len(cleaned) <= 82
    assert cleaned.splitlines() in ([cleaned], [])
    cleaned.encode()


@given(ANY, st.sampled_from([".pdf", ".tif", ".wav"]))
def test_file_name_is_safe_everywhere(text: str, suffix: str) -> None:
    name = texts.file_name(text, suffix)
    assert SAFE_NAME.fullmatch(name)
    assert name.endswith(suffix)
    assert ".." not in name
    assert len(name) <= 101
    assert not re.match(r"(?i)(con|prn|aux|nul|com\d|lpt\d)\.", name)


@given(ANY)
def test_number_is_of_keys_only(text: str) -> None:
    assert re.fullmatch(r"[0-9A-D*#+]{0,32}", texts.number(text))


@given(ANY)
def test_json_can_hold_it(text: str) -> None:
    for ascii_only in (True, False):
        sent = json.dumps({"station": texts.text(text)}, ensure_ascii=ascii_only).encode()
        assert json.loads(sent)["station"] == texts.text(text)


@given(ANY)
def test_log_line_stays_one_line(text: str) -> None:
    assert printable(text).isprintable()


@given(st.binary(max_size=300))
def test_bytes_come_back_from_hex(raw: bytes) -> None:
    assert bytes.fromhex(texts.raw_hex(raw)) == raw
    assert isinstance(texts.decoded(raw), str)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("+49 (30) 12-34/5", "+493012345"),
        ("0301234", "0301234"),
        ("*21#", "*21#"),
        ("12ab", "12AB"),
        ("anonymous", ""),
        ("sip:100@x", "100"),
        ("4930777\r\nBcc: x@y1", "49307771"),
        ("1" * 100, "1" * 32),
    ],
)
def test_numbers(text: str, number: str) -> None:
    assert texts.number(text) == number


@pytest.mark.parametrize(
    ("text", "header", "line"),
    [
        ("Müller & Söhne", "Muller & Sohne", "Müller & Söhne"),
        ("a\r\nBcc: b", "a Bcc: b", "a Bcc: b"),
        ("\u202eevil", "evil", "evil"),
        ("שלום", "????", "\u2068שלום\u2069"),
        ("a\0b", "a b", "a b"),
        ("e" + "\u0301" * 9, "e", "é\u0301\u0301"),
        ("\ud800", "?", "?"),
    ],
)
def test_what_is_left(text: str, header: str, line: str) -> None:
    assert texts.header(text) == header
    assert texts.line(text) == line


def test_long_texts_are_cut_where_it_shows() -> None:
    assert texts.header("x" * 100, 10) == "xxxxxxx..."
    assert texts.line("x" * 100, 10) == "x" * 9 + "…"


@pytest.mark.parametrize(
    ("stem", "name"),
    [("../../etc/passwd", "etc_passwd.pdf"), ("CON", "_CON.pdf"), ("", "message.pdf"),
     ("fax-+4930", "fax-+4930.pdf"), ("a b\tc", "a_b_c.pdf"), (".htaccess", "htaccess.pdf")],
)  # fmt: skip
def test_file_names(stem: str, name: str) -> None:
    assert texts.file_name(stem, ".pdf") == name
