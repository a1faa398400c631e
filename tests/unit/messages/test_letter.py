"""Letters and addresses: nothing gets in that could end a line or a message."""

from __future__ import annotations

import pytest
from aiosmtplib.email import parse_address
from hypothesis import example, given, settings
from hypothesis import strategies as st

from umpack.messages.letter import Address, Letter, LetterError, address, domain_of

ME = Address("umpack@example.test")
YOU = Address("you@example.test")


def letter(body: bytes, sender: Address = ME) -> Letter:
    return Letter("<1@example.test>", sender, (YOU,), body)


@pytest.mark.parametrize(
    "good",
    ["a@b", "first.last+tag@mail.example.test", '"a b"@example.test',
     "FAX=+49301234/T33S=7@gw.test",
     "jürgen@exämple.test", "x@[127.0.0.1]", "x@[IPv6:::1]", "o'neil@example.test"],
)  # fmt: skip
def test_addresses(good: str) -> None:
    assert address(good) == good
    assert domain_of(Address("A@B.Test")) == "b.test"


@pytest.mark.parametrize(
    "bad",
    ["", "a", "@b", "a@", "<>", "<a@b>", "a@b>\r\nRCPT TO:<c@d", "a@b\n", "a@b\0", "a b@c", "a@b c",
     "a@b@c", ".a@b", "a..b@c", "a@-b", "a@b..c", "a@b.", '"a"b@c', '"a\r\n"@b', "a@b SIZE=1",
     "a\u202eb@c", "a\x85b@c", "a\u2028@c", "a\udcff@b", "l" * 65 + "@b", "a@" + "b" * 64,
     "a@" + "b.c" * 90, "a@[127.0.0.1\r\n]", "a(b)@c", "a,b@c"],
)  # fmt: skip
def test_no_addresses(bad: str) -> None:
    with pytest.raises(LetterError):
        address(bad)


@given(st.text() | st.from_regex(r"[^@]+@[^@]+", fullmatch=True))
@example('"\\""@b')
@settings(deadline=None)
def test_what_is_let_through_is_what_the_library_sends(text: str) -> None:
    try:
        found = address(text)
    except LetterError:
        return
    assert parse_address(found) == found
    assert not set(found) & set("\r\n\0\t")
    domain_of(found).encode("idna")


@given(st.binary().filter(lambda raw: b"\0" not in raw))
@settings(deadline=None)
def test_lines_end_in_crlf_and_nothing_else(body: bytes) -> None:
    out = letter(body).body
    assert out.endswith(b"\r\n")
    assert out.count(b"\r\n") == out.count(b"\r") == out.count(b"\n")
    bare = out.replace(b"\r\n", b"\n").rstrip(b"\n")
    assert bare == body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").rstrip(b"\n")
    assert letter(out).body == out
    assert letter(body).size == len(out)


@pytest.mark.parametrize(
    ("message_id", "sender", "recipients", "body"),
    [
        ("1@x", ME, (YOU,), b""),
        ("<1@x>\r\nBcc: a@b", ME, (YOU,), b""),
        ("<1 @x>", ME, (YOU,), b""),
        ("<1@x>", Address(""), (YOU,), b""),
        ("<1@x>", ME, (), b""),
        ("<1@x>", ME, (YOU, Address("a@b\r\nDATA")), b""),
        ("<1@x>", ME, (YOU,), b"a\0b"),
    ],
)
def test_letters_that_must_not_go_out(
    message_id: str, sender: Address, recipients: tuple[Address, ...], body: bytes
) -> None:
    with pytest.raises(LetterError):
        Letter(message_id, sender, recipients, body)


def test_what_a_server_must_be_able_to_do() -> None:
    assert not letter(b"Subject: a\n\nb").eight_bit
    assert letter("Subject: a\n\nü".encode()).eight_bit
    assert not letter("Subject: a\n\nü".encode()).needs_utf8
    assert letter("Subject: ü\n\na".encode()).needs_utf8
    assert letter("Subject: ü".encode()).needs_utf8
    assert letter(b"Subject: a\n\nb", address("jürgen@x.test")).needs_utf8
    assert not letter(b"Subject: a\n\nb", address("me@exämple.test")).needs_utf8
