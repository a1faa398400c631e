"""The simulated mail server to a client that is not ours: the standard library's."""

from __future__ import annotations

import asyncio
import smtplib
import ssl
from pathlib import Path

import pytest

from simulators.mail import DOT, Act, MailServer, Script, Then
from tests.mail.tls import certificate

WHO, YOU = "fax@umpack.test", "you@site.test"
MESSAGE = "Message-ID: <1@umpack.test>\r\nSubject: x\r\n\r\n.dot\r\n..\r\nend\r\n"


def client(server: MailServer) -> smtplib.SMTP:
    return smtplib.SMTP(server.host, server.port, "client.test", timeout=5)


async def test_a_message_and_its_options() -> None:
    async with MailServer(Script(size=1000)) as server:

        def talk() -> dict[str, str]:
            with client(server) as smtp:
                smtp.sendmail(WHO, [YOU], MESSAGE, ["RET=HDRS"], ["NOTIFY=FAILURE"])
                return dict(smtp.esmtp_features)

        features = await asyncio.to_thread(talk)
        assert features["size"] == "1000"
        assert {"dsn", "8bitmime", "smtputf8"} <= set(features)
        (message,) = server.accepted
        assert message.body == MESSAGE.encode()
        assert message.message_id == "<1@umpack.test>"
        assert message.options[YOU] == "NOTIFY=FAILURE"
        assert server.copies("<1@umpack.test>") == 1
        assert (server.connections, server.at_once, server.most_at_once) == (1, 0, 1)


async def test_tls_and_login(tmp_path: Path) -> None:
    context, pem = certificate(tmp_path, "localhost")
    async with MailServer(Script(tls=context, accounts={"me": "hush"})) as server:

        def talk(method: str, secret: str) -> None:
            trusting = ssl.create_default_context(cafile=pem)
            with smtplib.SMTP(server.host, server.port, "client.test", timeout=5) as smtp:
                smtp.starttls(context=trusting)
                smtp.user, smtp.password = "me", secret
                smtp.ehlo()
                smtp.auth(method, getattr(smtp, f"auth_{method.lower()}"))
                smtp.sendmail(WHO, [YOU], MESSAGE)

        for method in "PLAIN", "LOGIN":
            await asyncio.to_thread(talk, method, "hush")
            with pytest.raises(smtplib.SMTPAuthenticationError):
                await asyncio.to_thread(talk, method, "wrong")
        assert [(one.encrypted, one.user) for one in server.accepted] == [(True, "me")] * 2


async def test_it_enforces_what_it_says() -> None:
    async with MailServer(Script(size=50, quota={YOU: 10}, extensions=())) as server:

        def talk() -> list[int]:
            with client(server) as smtp:
                smtp.ehlo()
                answers = [
                    smtp.docmd("RCPT", f"TO:<{YOU}>"), smtp.docmd("MAIL", "nonsense"),
                    smtp.docmd("MAIL", f"FROM:<{WHO}> SIZE=51"), smtp.docmd("DATA"),
                    smtp.docmd("MAIL", f"FROM:<{WHO}> SIZE=11"),
                    smtp.docmd("RCPT", f"TO:<{YOU}>"), smtp.docmd("RCPT", "TO:<else@site.test>"),
                    smtp.data("x" * 60), smtp.docmd("STARTTLS"), smtp.docmd("HUH"), smtp.rset(),
                ]  # fmt: skip
                return [code for code, _ in answers]

        codes = await asyncio.to_thread(talk)
        assert codes == [503, 501, 552, 554, 250, 452, 250, 552, 502, 500, 250]
        assert not server.accepted


async def test_lists_are_used_up_and_what_was_stored_stays() -> None:
    lost = Act(then=Then.RESET, stored=True)
    async with MailServer(Script({f"RCPT {YOU}": ["451 later", "250 ok"], DOT: lost})) as server:

        def talk() -> tuple[int, int]:
            smtp = client(server)
            smtp.ehlo()
            smtp.mail(WHO)
            first, second = smtp.rcpt(YOU)[0], smtp.rcpt(YOU)[0]
            with pytest.raises((smtplib.SMTPServerDisconnected, OSError)):
                smtp.data(MESSAGE)
            smtp.close()
            return first, second

        assert await asyncio.to_thread(talk) == (451, 250)
        assert server.copies("<1@umpack.test>") == 1
