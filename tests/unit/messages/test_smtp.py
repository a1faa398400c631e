"""One conversation: what becomes of each recipient, whatever the server does, and when."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.mail import DOT, GREETING, Act, Answers, MailServer, Script, Then
from tests.mail.tls import certificate
from umpack.messages.letter import (
    Address,
    Deferred,
    Delivered,
    Delivery,
    Letter,
    LetterError,
    Refused,
    Uncertain,
    address,
)
from umpack.messages.relays import Login, Manner, Server, Tls
from umpack.messages.replies import queue_id, xtext
from umpack.messages.smtp import converse, tls_context
from umpack.messages.transaction import BLOCK, Limits, Talk

ANN, BOB, CID = (Address(f"{name}@users.test") for name in ("ann", "bob", "cid"))
BODY = b"Message-ID: <7@umpack.test>\r\nSubject: [Fax]\r\n\r\nHello\r\n.\r\n..dots\r\n"
SLOW = Limits().scaled(1 / 50)
"""A fax of ten minutes' waiting in twelve seconds."""
PLAIN = Manner(Tls.NEVER)
End = TypeVar("End", Delivered, Deferred, Refused, Uncertain)


def letter(body: bytes = BODY, sender: str = "umpack@umpack.test", *more: str) -> Letter:
    return Letter("<7@umpack.test>", address(sender), (ANN, BOB, CID, *map(address, more)), body)


async def talk(
    server: MailServer,
    recipients: Sequence[Address] = (ANN,),
    *,
    manner: Manner = PLAIN,
    limits: Limits = SLOW,
    what: Letter | None = None,
    authorities: str | None = None,
    name: str = "mx.test",
) -> Talk:
    context = tls_context(verify=manner.verify, authorities=authorities)
    return await converse(
        Server(name, server.host, server.port, manner), what or letter(), recipients,
        hello="umpack.test", limits=limits, context=context,
    )  # fmt: skip


async def ends(
    replies: Mapping[str, Answers], *recipients: Address, limits: Limits = SLOW
) -> tuple[Mapping[Address, Delivery], str]:
    async with MailServer(Script(replies)) as server:
        found = await talk(server, recipients or (ANN,), limits=limits)
    assert set(found.ends) == set(recipients or (ANN,))
    return found.ends, found.fault


def the(kind: type[End], end: Delivery) -> End:
    assert isinstance(end, kind), end
    return end


async def test_delivered_as_it_was_with_all_that_was_offered() -> None:
    async with MailServer(Script(size=1000)) as server:
        found = await talk(server, (ANN, BOB))
    label = f"mx.test[127.0.0.1]:{server.port}"
    end = Delivered(label, "250 2.0.0 Ok: queued as 00000001", "00000001")
    assert found == Talk({ANN: end, BOB: end})
    (message,) = server.accepted
    assert (message.body, message.sender) == (BODY, "umpack@umpack.test")
    assert message.options == {
        "": f"SIZE={len(BODY)} RET=HDRS ENVID=7@umpack.test",
        ANN: "NOTIFY=FAILURE,DELAY ORCPT=rfc822;ann@users.test",
        BOB: "NOTIFY=FAILURE,DELAY ORCPT=rfc822;bob@users.test",
    }
    assert server.heard[0] == "EHLO umpack.test"
    assert server.heard[-1] == "QUIT"


async def test_three_recipients_three_ends() -> None:
    """Scenario 2: the library answers without an exception, and alike for all."""
    found, fault = await ends(
        {f"RCPT {BOB}": "451 4.7.1 later", f"RCPT {CID}": "550 5.1.1 who?"}, ANN, BOB, CID
    )
    assert isinstance(found[ANN], Delivered)
    assert the(Deferred, found[BOB]).reached
    assert found[CID] == Refused(f"{_label(found)}: RCPT: 550 5.1.1 who?", 550)
    assert not fault


async def test_all_refused_each_in_its_own_way() -> None:
    found, fault = await ends(
        {f"RCPT {ANN}": "451 later", f"RCPT {BOB}": "550 who?", "DATA": "554 none"}, ANN, BOB
    )
    assert isinstance(found[ANN], Deferred)
    assert isinstance(found[BOB], Refused)
    assert not fault


def _label(found: Mapping[Address, Delivery]) -> str:
    return next(end.server for end in found.values() if isinstance(end, Delivered))


@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA", DOT])
async def test_4xx_is_put_off_and_5xx_refused_at_every_step(step: str) -> None:
    found, fault = await ends({step: "452 4.3.1 full"})
    put_off = the(Deferred, found[ANN])
    assert "452 4.3.1 full" in put_off.why
    assert put_off.reached
    assert not fault
    found, fault = await ends({step: "554 5.7.1 never"})
    assert the(Refused, found[ANN]).code == 554
    assert not fault


@pytest.mark.parametrize("step", [GREETING, "EHLO", "MAIL", "RCPT", "DATA", DOT])
async def test_421_is_the_servers_end_and_nobodys_fault(step: str) -> None:
    found, fault = await ends({step: Act("421 4.3.2 going down", then=Then.CLOSE)}, ANN, BOB)
    assert [type(end) for end in found.values()] == [Deferred, Deferred]
    assert "421 4.3.2 going down" in fault
    assert not any(isinstance(end, Deferred) and end.reached for end in found.values())


async def test_421_for_the_second_keeps_the_end_of_the_first() -> None:
    found, fault = await ends(
        {f"RCPT {ANN}": "550 who?", f"RCPT {BOB}": Act("421 bye", then=Then.CLOSE)}, ANN, BOB, CID
    )
    assert isinstance(found[ANN], Refused)
    assert isinstance(found[BOB], Deferred)
    assert isinstance(found[CID], Deferred)
    assert fault


@pytest.mark.parametrize("greeting", ["554 no", "450 not now", "gibberish", "220-half"])
async def test_a_greeting_that_is_none_is_the_servers_fault(greeting: str) -> None:
    found, fault = await ends({GREETING: Act(greeting, then=Then.CLOSE)})
    assert fault == the(Deferred, found[ANN]).why


@pytest.mark.parametrize("then", [Then.CLOSE, Then.RESET])
@pytest.mark.parametrize("step", [GREETING, "EHLO", "MAIL", "RCPT", "DATA"])
async def test_lost_before_the_final_dot_is_not_accepted(step: str, then: Then) -> None:
    found, fault = await ends({step: Act(then=then)})
    assert isinstance(found[ANN], Deferred)
    assert fault


@pytest.mark.parametrize("then", [Then.CLOSE, Then.RESET])
async def test_lost_after_the_final_dot_is_uncertain(then: Then) -> None:
    async with MailServer(Script({DOT: Act(then=then, stored=True)})) as server:
        found = await talk(server, (ANN, BOB))
    assert server.copies("<7@umpack.test>") == 1
    for end in found.ends.values():
        assert isinstance(end, Uncertain)
        assert end.server == f"mx.test[127.0.0.1]:{server.port}"
        assert "final dot" in end.why
    assert found.fault


async def test_lost_after_the_final_dot_keeps_the_refusals() -> None:
    found, _ = await ends({f"RCPT {BOB}": "550 who?", DOT: Act(then=Then.RESET)}, ANN, BOB)
    assert isinstance(found[ANN], Uncertain)
    assert isinstance(found[BOB], Refused)


@pytest.mark.parametrize("reply", ["gibberish", "354 go on", "120 wait"])
async def test_an_answer_to_the_dot_that_says_nothing_is_uncertain(reply: str) -> None:
    found, fault = await ends({DOT: reply})
    assert isinstance(found[ANN], Uncertain)
    assert fault


async def test_250_after_90_seconds_is_waited_for() -> None:
    """Scenario 1, fifty times as fast; the library's own limit of 60 s sent it twice."""
    async with MailServer(Script({DOT: Act("250 2.0.0 Ok: queued as S1", 90 / 50)})) as server:
        found = await talk(server)
    assert isinstance(found.ends[ANN], Delivered)
    assert server.copies("<7@umpack.test>") == 1
    assert server.connections == 1


async def test_silence_after_the_final_dot_is_uncertain_in_the_end() -> None:
    found, fault = await ends({DOT: Act(then=Then.HANG)}, limits=replace(SLOW, done=0.2))
    assert isinstance(found[ANN], Uncertain)
    assert fault.endswith("final dot: no answer for 0.2 s")


@pytest.mark.parametrize(
    ("step", "limit"),
    [(GREETING, "banner"), ("EHLO", "hello"), ("MAIL", "mail"), ("RCPT", "recipient"),
     ("DATA", "data")],
)  # fmt: skip
async def test_every_step_has_its_own_limit(step: str, limit: str) -> None:
    limits = replace(Limits(), **{limit: 0.1})
    found, fault = await ends({step: Act(then=Then.HANG)}, limits=limits)
    assert isinstance(found[ANN], Deferred)
    assert fault


def test_limits_are_those_of_the_rfc() -> None:
    limits = Limits()
    assert (limits.connect, limits.banner, limits.mail, limits.recipient) == (30, 300, 300, 300)
    assert (limits.data, limits.block, limits.done) == (120, 180, 600)
    assert limits.scaled(0.5).done == 300


async def test_a_connection_that_is_not_taken() -> None:
    """A full backlog drops the SYN, as a dead machine does."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        port = deaf.getsockname()[1]
        stuffed = []
        for _ in range(2):
            stuffed.append(socket.socket())
            stuffed[-1].setblocking(False)
            stuffed[-1].connect_ex(("127.0.0.1", port))
        await asyncio.sleep(0.05)
        found = await converse(
            Server("mx", "127.0.0.1", port, PLAIN), letter(), (ANN,), hello="me",
            limits=replace(Limits(), connect=0.2), context=None,
        )  # fmt: skip
        for one in stuffed:
            one.close()
    assert found.fault == f"mx[127.0.0.1]:{port}: connecting: too slow"
    assert not found.spoke


async def test_nobody_listens() -> None:
    server = MailServer()
    async with server:
        pass
    found = await talk(server)
    assert "connecting" in found.fault
    assert isinstance(found.ends[ANN], Deferred)


# Large messages


BIG = BODY + b"x" * 70 + b"\r\n" + (b"y" * 76 + b"\r\n") * 100_000


async def test_a_large_message_arrives_whole() -> None:
    async with MailServer() as server:
        found = await talk(server, what=letter(BIG))
    assert isinstance(found.ends[ANN], Delivered)
    assert server.accepted[0].body == BIG


async def test_a_server_that_takes_no_more_is_given_up() -> None:
    async with MailServer(Script(stops_reading_after=BLOCK)) as server:
        found = await talk(server, what=letter(BIG), limits=replace(SLOW, block=0.2))
    assert isinstance(found.ends[ANN], Deferred)
    assert found.fault.endswith("message: not taken for 0.2 s")


async def test_a_refusal_in_mid_message_is_heard() -> None:
    async with MailServer(Script(refuses_after=BLOCK)) as server:
        found = await talk(server, what=letter(BIG))
    # If the reset overtakes the answer, nothing was said: then it is tried again.
    end = found.ends[ANN]
    assert isinstance(end, Refused | Deferred)
    assert "552 5.3.4 enough" in end.why or found.fault


async def test_too_large_for_this_server_is_known_before_data() -> None:
    async with MailServer(Script(size=100)) as server:
        found = await talk(server, what=letter(BODY + b"x" * 100))
    assert found.ends[ANN] == Refused(
        f"mx.test[127.0.0.1]:{server.port}: 5.3.4 {len(BODY) + 102} bytes are more than the 100"
        " it takes", 552,
    )  # fmt: skip
    assert not found.fault
    assert server.heard == ["EHLO umpack.test", "QUIT"]


async def test_a_full_mailbox_is_temporary() -> None:
    async with MailServer(Script(size=10_000, quota={ANN: 100})) as server:
        first = await talk(server, (ANN, BOB))
        second = await talk(server, (ANN, BOB))
    assert [type(end) for end in first.ends.values()] == [Delivered, Delivered]
    assert [type(end) for end in second.ends.values()] == [Deferred, Delivered]


async def test_552_for_too_many_recipients_is_temporary() -> None:
    found, _ = await ends({f"RCPT {BOB}": "552 too many recipients"}, ANN, BOB)
    assert isinstance(found[BOB], Deferred)
    found, _ = await ends({f"RCPT {BOB}": "552 5.2.2 over quota"}, ANN, BOB)
    assert isinstance(found[BOB], Refused)


async def test_any_2xx_is_a_yes() -> None:
    found, fault = await ends({"MAIL": "251 ok", "RCPT": "252 may be", DOT: "251 have it"})
    assert found[ANN] == Delivered(_label(found), "251 have it", None)
    assert not fault
    found, fault = await ends({"DATA": "250 what"})
    assert isinstance(found[ANN], Deferred)
    assert fault


async def test_helo_for_who_knows_no_ehlo() -> None:
    async with MailServer(Script({"EHLO": "502 what?"})) as server:
        found = await talk(server)
    assert isinstance(found.ends[ANN], Delivered)
    assert server.heard[:3] == ["EHLO umpack.test", "HELO umpack.test",
                                "MAIL FROM:<umpack@umpack.test>"]  # fmt: skip
    found_ends, fault = await ends({"EHLO": "550 no", "HELO": "550 no"})
    assert isinstance(found_ends[ANN], Deferred)
    assert fault


async def test_a_slow_or_rude_goodbye_changes_nothing() -> None:
    for act in Act(then=Then.HANG), Act(then=Then.RESET), Act("500 stay"):
        found, fault = await ends({"QUIT": act}, limits=replace(SLOW, quit=0.1))
        assert isinstance(found[ANN], Delivered)
        assert not fault


# Letters of all the world


async def test_non_ascii_needs_a_server_that_can() -> None:
    jo = address("jürgen@users.test")
    plain = address("ann@exämple.test")
    what = replace(letter(), recipients=(jo, plain))
    async with MailServer() as server:
        found = await talk(server, (jo, plain), what=what)
    assert {type(end) for end in found.ends.values()} == {Delivered}
    assert server.accepted[0].recipients == (jo, "ann@xn--exmple-cua.test")
    assert "SMTPUTF8" in server.accepted[0].options[""]
    async with MailServer(Script(extensions=())) as server:
        found = await talk(server, (jo, plain), what=what)
        assert the(Refused, found.ends[jo]).code == 553
        assert isinstance(found.ends[plain], Delivered)
        assert server.accepted[0].options == {"": "", "ann@xn--exmple-cua.test": ""}
        found = await talk(server, what=letter("Subject: ü\r\n\r\n".encode()))
        assert isinstance(found.ends[ANN], Refused)


@pytest.mark.parametrize("body", [b".\r\n", b".hidden\r\n", b"..\r\n", b"\r\n", b"."])
async def test_dots_at_the_very_beginning(body: bytes) -> None:
    async with MailServer() as server:
        await talk(server, what=letter(body + b"next"))
        await talk(server, what=letter(body))
    assert [one.body for one in server.accepted] == [
        letter(body + b"next").body, letter(body).body
    ]  # fmt: skip


async def test_eight_bits_are_announced() -> None:
    async with MailServer() as server:
        await talk(server, what=letter(BODY + "ü".encode()))
    assert "BODY=8BITMIME" in server.accepted[0].options[""]


@given(st.binary(max_size=300).filter(lambda raw: b"\0" not in raw), st.booleans())
@settings(deadline=None, max_examples=25)
def test_no_body_can_end_itself(raw: bytes, dotted: bool) -> None:
    what = letter(raw + (b"\n.\nMAIL FROM:<x@y>\n\r.\r\n.\r.\n" if dotted else b""))

    async def send() -> MailServer:
        async with MailServer() as server:
            found = await talk(server, what=what)
        assert isinstance(found.ends[ANN], Delivered)
        return server

    server = asyncio.run(send())
    assert [one.body for one in server.accepted] == [what.body]
    assert len(server.heard) == 5


async def test_a_forged_command_never_leaves_even_past_the_letter() -> None:
    evil = Address("a@b>\r\nRCPT TO:<c@d")
    async with MailServer() as server:
        with pytest.raises(LetterError):
            await talk(server, (evil,))
    assert not server.accepted
    assert not any("c@d" in line for line in server.heard)


# TLS and AUTH


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Script, str]:
    context, pem = certificate(Path(tmp_path_factory.mktemp("tls")), "mx.test")
    return Script(tls=context), pem


async def test_tls_where_it_is_offered(signed: tuple[Script, str]) -> None:
    async with MailServer(signed[0]) as server:
        found = await talk(server, manner=Manner(Tls.OPPORTUNISTIC), what=letter(BIG))
        assert isinstance(found.ends[ANN], Delivered)
        assert server.accepted[0].encrypted
        server.script = Script()
        await talk(server, manner=Manner(Tls.OPPORTUNISTIC))
        server.script = signed[0]
        await talk(server, manner=PLAIN)
    assert [one.encrypted for one in server.accepted] == [True, False, False]


@pytest.mark.parametrize("broken", [{"broken_tls": True}, {"replies": {"STARTTLS": "454 no"}}])
async def test_tls_that_breaks_goes_without_or_not_at_all(
    signed: tuple[Script, str], broken: dict[str, Any]
) -> None:
    script = replace(signed[0], **broken)
    async with MailServer(script) as server:
        found = await talk(server, manner=Manner(Tls.REQUIRED))
        assert isinstance(found.ends[ANN], Deferred)
        assert "STARTTLS" in found.fault
        assert (server.connections, server.accepted) == (1, [])
        found = await talk(server, manner=Manner(Tls.OPPORTUNISTIC))
        assert isinstance(found.ends[ANN], Delivered)
        assert server.connections == 3
    assert [one.encrypted for one in server.accepted] == [False]


async def test_required_tls_that_is_not_offered() -> None:
    async with MailServer() as server:
        found = await talk(server, manner=Manner(Tls.REQUIRED))
    assert found.fault.endswith("TLS is required, but not offered")
    assert not server.accepted


async def test_a_certificate_is_checked_if_told(signed: tuple[Script, str]) -> None:
    verified = Manner(Tls.REQUIRED, verify=True)
    async with MailServer(signed[0]) as server:
        found = await talk(server, manner=verified)
        assert "CERTIFICATE_VERIFY_FAILED" in found.fault
        found = await talk(server, manner=verified, authorities=signed[1], name="other.test")
        assert "CERTIFICATE_VERIFY_FAILED" in found.fault
        found = await talk(server, manner=verified, authorities=signed[1])
    assert isinstance(found.ends[ANN], Delivered)
    assert [one.encrypted for one in server.accepted] == [True]


async def test_login_only_over_tls(signed: tuple[Script, str]) -> None:
    script = replace(signed[0], accounts={"umpack": "hush"})
    login = Login("umpack", "hush")
    async with MailServer(script) as server:
        found = await talk(server, manner=Manner(Tls.REQUIRED, login=login))
        assert isinstance(found.ends[ANN], Delivered)
        assert (server.accepted[0].user, server.accepted[0].encrypted) == ("umpack", True)
        server.script = Script(accounts={"umpack": "hush"})
        server.heard.clear()
        found = await talk(server, manner=Manner(Tls.OPPORTUNISTIC, login=login))
        assert found.fault.endswith("the password must not go in clear")
        assert not any(line.startswith("AUTH") for line in server.heard)
        found = await talk(server, manner=Manner(Tls.NEVER, login=login, clear_login=True))
        assert isinstance(found.ends[ANN], Delivered)


async def test_a_wrong_password_is_ours_to_mend_not_the_messages_end() -> None:
    clear = Manner(Tls.NEVER, login=Login("umpack", "wrong"), clear_login=True)
    async with MailServer(Script(accounts={"umpack": "hush"})) as server:
        found = await talk(server, manner=clear)
        assert isinstance(found.ends[ANN], Deferred)
        assert "AUTH: 535" in found.fault
        assert "wrong" not in found.fault.replace("5.7.8 wrong", "")
        found = await talk(server)
        assert "530" in the(Deferred, found.ends[ANN]).why
        server.script = Script()
        found = await talk(server, manner=clear)
    assert "AUTH" in found.fault


async def test_implicit_tls(signed: tuple[Script, str], tmp_path: Path) -> None:
    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n")
        while line := await reader.readline():
            replies = {b"DATA\r\n": b"354 go\r\n", b"QUIT\r\n": b"221 bye\r\n"}
            writer.write(replies.get(line, b"250 ok\r\n" if line[:1] in b"EMR." else b""))
        writer.close()

    context = signed[0].tls
    listener = await asyncio.start_server(one, "127.0.0.1", 0, ssl=context)
    port = listener.sockets[0].getsockname()[1]
    manner = Manner(Tls.IMPLICIT, verify=True)
    for authorities in signed[1], None:
        found = await converse(
            Server("mx.test", "127.0.0.1", port, manner), letter(), (ANN,), hello="me",
            limits=SLOW, context=tls_context(verify=True, authorities=authorities),
        )  # fmt: skip
        assert isinstance(found.ends[ANN], Delivered if authorities else Deferred)
    listener.close()
    await listener.wait_closed()


# Words


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("2.0.0 Ok: queued as 4XyZ0k3Q2mz9rx", "4XyZ0k3Q2mz9rx"),
        ("OK id=1rabcd-0001Ab-2C", "1rabcd-0001Ab-2C"),
        ("2.6.0 <a@b> [InternalId=123, Hostname=ex1] Queued mail for delivery", "123"),
        ("2.0.0 w3FA12ab012345 Message accepted for delivery", "w3FA12ab012345"),
        ("2.0.0 ok queued mail 77", "77"),
        ("2.0.0 Ok", None),
    ],
)
def test_queue_ids(reply: str, found: str | None) -> None:
    assert queue_id(reply) == found


@given(st.text(st.characters(codec="utf-8")))
@settings(deadline=None)
def test_xtext_is_one_printable_word(text: str) -> None:
    word = xtext(text)
    assert all(33 <= ord(c) <= 126 and c != "=" for c in word)
    back = b"".join(
        bytes([int(part[:2], 16)]) + part[2:].encode() if n else part.encode()
        for n, part in enumerate(word.split("+"))
    )
    assert back.decode() == text


async def test_a_servers_words_forge_nothing() -> None:
    found, _ = await ends({"RCPT": "550 \x1b[2Jgone\x07 \u202e" + "x" * 400})
    why = the(Refused, found[ANN]).why
    assert why.isprintable()
    assert len(why) < 420
