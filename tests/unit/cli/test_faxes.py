"""`umpack faxes`, `fax` and `queue` as people type them, against a daemon of its own."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from simulators.mail import MailServer, Script
from tests.unit.daemons import Ran, program, text, umpack, until
from tests.unit.messages.offices import TEXTS, WAV, facts, tiff
from umpack import clock
from umpack.cli.faxes import _past
from umpack.core.errors import OurFault
from umpack.messages.disk_spool import DiskSpool
from umpack.messages.message import EngineFacts, Kind, Message, MessageId
from umpack.messages.spool_health import SpoolLimits

pytestmark = pytest.mark.timeout(180)  # every command is a process of its own


def section(port: int, **more: object) -> str:
    keys = {
        "spool": "spool", "reserve_mb": 0, "sender": "fax@umpack.test",
        "default_mailbox": "office@site.test", "texts": os.fspath(TEXTS),
        "relays": [f"127.0.0.1:{port}"], "tls": "never", "hello": "node.umpack.test", **more,
    }  # fmt: skip
    return f"messages: {json.dumps(keys)}\n"


def spooled(directory: Path, *contents: bytes) -> list[Message]:
    """What an umpack before has received and not sent any more."""
    limits = SpoolLimits(reserve_bytes=0, slow_after=60.0)
    with DiskSpool(directory / "spool", "here", domain="umpack.test", limits=limits) as spool:
        found = []
        for number, content in enumerate(contents, start=1):
            kind = Kind.VOICE if content == WAV else Kind.FAX
            call = facts(number, kind, caller_name="\x1b[2J[bold]", caller_name_raw=b"\x1b\xff")
            intent = spool.intend(call, "original.wav" if content == WAV else "original.tif")
            Path(intent.path).write_bytes(content)
            found.append(spool.commit(intent.id, EngineFacts("SUCCESS", pages=1, seconds=1.2)))
        return found


def words(ran: Ran) -> str:
    return "".join(ran.out.split())


async def test_a_message_from_the_spool_to_the_mailbox_and_decisions(tmp_path: Path) -> None:
    fax, voice = await asyncio.to_thread(spooled, tmp_path, tiff(), WAV)
    replies = {"RCPT": ["250 Ok", "550 5.1.1 nobody here", "250 Ok"]}
    async with (
        MailServer(Script(replies)) as server,
        program(tmp_path, text(rest=section(server.port, connections=1))) as daemon,
    ):
        await until(lambda: server.used["RCPT"] >= 2)
        await asyncio.sleep(0.3)
        rows = {row["id"]: row for row in (await daemon.umpack("faxes", "--json")).json}
        states = [rows[fax.id]["state"], rows[voice.id]["state"]]
        assert sorted(states) == ["dead letter", "delivered"]
        dead = fax if states[0] == "dead letter" else voice
        good = voice if dead is fax else fax
        listed = await daemon.umpack("faxes", "--state", "dead letter", "--since", "1h")
        assert dead.id in listed.out
        assert good.id not in listed.out
        assert "5505.1.1nobodyhere" in words(listed)
        asked = await daemon.umpack("faxes", "--number", "49302000123", "--json")
        assert {row["id"] for row in asked.json} == {fax.id, voice.id}
        assert (await daemon.umpack("faxes", "--number", "4")).out == "no messages\n"

        shown = await daemon.umpack("fax", "show", dead.id[-6:])
        assert dead.message_id in shown.out
        assert "\\x1b[2J[bold]" in shown.out
        assert "\x1b" not in shown.out
        whole = (await daemon.umpack("fax", "show", dead.id, "--json")).json
        assert whole["raw"]["caller_name"] == "1bff"

        queue = await daemon.umpack("queue")
        assert "dead letters: 1: umpack faxes --state 'dead letter'" in queue.out
        assert dead.id in queue.out
        assert (await daemon.umpack("queue", "--json")).json["spool"]["dead_letters"] == 1
        status = (await daemon.umpack("status", "--json")).json
        assert status["messages"] is not None

        opened = await daemon.umpack("faxes", "--open")
        assert "Messages without an end" in opened.out
        tried = await daemon.umpack("fax", "retry", dead.id, "--by", "eva")
        assert tried.out == f"{dead.id} tried now: queued\n"
        await until(lambda: len(server.accepted) == 2)
        assert server.copies(dead.message_id) == 1

        resent = await daemon.umpack("fax", "resend", good.id, "--why", "lost", "--by", "eva")
        assert resent.code == 0
        to = "anna@site.test"
        forwarded = await daemon.umpack("fax", "forward", good.id, "--to", to, "--by", "eva")
        assert forwarded.code == 0
        await until(lambda: len(server.accepted) == 4)
        ids = [one.message_id for one in server.accepted]
        assert len(set(ids)) == 4
        assert server.accepted[3].recipients == (to,)
        await asyncio.sleep(0.3)
        assert (await daemon.umpack("faxes", "--open")).out == (
            "every call has its message, every message its end\n"
        )
        audit = (await daemon.umpack("fax", "show", good.id, "--json")).json["audit"]
        assert [(entry["who"], entry["what"]) for entry in audit] == [
            ("eva", "forward"), ("eva", "resend")
        ]  # fmt: skip
        assert await daemon.end() == 0
    assert [one for one in daemon.lines if "failed in umpack" in one] == []


async def test_what_cannot_be(tmp_path: Path) -> None:
    (fax,) = await asyncio.to_thread(spooled, tmp_path, tiff())
    async with (
        MailServer() as server,
        program(tmp_path, text(rest=section(server.port))) as daemon,
    ):
        await until(lambda: server.accepted)
        await asyncio.sleep(0.3)
        said = f"umpack: message {fax.id}"
        for wrong, why in (
            (("fax", "show", "nobody"), "umpack: no message 'nobody' in this spool\n"),
            (("fax", "show", "queue"), "umpack: no message 'queue' in this spool\n"),
            (("fax", "show", ""), "umpack: no message '' in this spool\n"),
            (("fax", "show", "../status"), "umpack: no message '../status' in this spool\n"),
            (("fax", "retry", fax.id), f"{said}: nothing to try again (delivered)\n"),
            (
                ("fax", "discard", fax.id),
                "umpack: nothing left to decide: delivered or decided already\n",
            ),
            (("fax", "resend", fax.id, "--number", "7"), f"{said}: no recipient no. 7\n"),
            (
                ("fax", "forward", fax.id, "--to", "x\r\nRCPT"),
                "umpack: not a mailbox: 'x\\r\\nRCPT'\n",
            ),
            (("faxes", "--state", "lost"), "umpack: unknown state 'lost'; there are: receiving"),
            (("faxes", "--since", "soon"), "umpack: 'soon' is no time: write 2h, 3d, 18:30 or"),
            (("faxes", "--open", "--number", "1"), "umpack: --open shows all;"),
        ):  # fmt: skip
            ran = await daemon.umpack(*wrong)
            assert (ran.code, ran.out) == (1, "")
            assert ran.err.startswith(why)
        assert await daemon.end() == 0


async def test_without_the_section_nothing_of_it_runs(tmp_path: Path) -> None:
    async with program(tmp_path, text()) as daemon:
        for command in (("faxes",), ("queue",), ("fax", "show", "x")):
            ran = await daemon.umpack(*command)
            assert (ran.code, ran.out) == (1, "")
            assert "takes no messages" in ran.err
        assert (await daemon.umpack("status", "--json")).json["messages"] is None
        assert await daemon.end() == 0
    assert not (tmp_path / "spool").exists()


SECTION = (
    ("  sender: nobody\n", "messages.sender: not a mailbox: 'nobody'"),
    ("  relay: [x]\n", "messages.relay: unknown key (did you mean relays?)"),
    ("  retry: {cap: 1s}\n", "messages.retry: retry: 0 < first <= cap and factor > 1 do not hold"),
    ("  retry: {lifetme: 1d}\n", "messages.retry.lifetme: unknown key (did you mean lifetime?)"),
    ("  mx: true\n", "messages.mx: `relays` and `mx` exclude each other"),
    ("  verify: true\n", "messages.verify: is of no use with `tls: opportunistic`"),
    ("  auth: {user: u}\n", "messages.auth: the secret is missing: give one of secret,"),
    ("  texts: nowhere\n", "messages.texts: there is no en.txt in nowhere;"),
    ("  timezone: Mars\n", "messages.timezone: 'Mars' is no time zone known here"),
    ("  default_mailbox: []\n", "messages.default_mailbox: is empty; faxes might be for nobody"),
    ("  relays: []\n", "messages: no mail server: give `relays`, or `mx: true`"),
)


@pytest.mark.parametrize(("line", "why"), SECTION, ids=lambda value: str(value)[:24].strip())
async def test_every_mistake_is_told_with_its_line(tmp_path: Path, line: str, why: str) -> None:
    keys = {
        "  sender": "fax@umpack.test", "  default_mailbox": "office@site.test",
        "  relays": '["mx1.test", "mx2.test:2525", "[::1]:25"]', "  texts": os.fspath(TEXTS),
    }  # fmt: skip
    keys.pop(line.partition(":")[0], None)
    before = text(rest="messages:\n" + "".join(f"{k}: {v}\n" for k, v in keys.items()))
    file = tmp_path / "umpack.yaml"
    file.write_text(before + line)
    ran = await umpack("check", os.fspath(file))
    assert ran.code == 1
    shown = [one for one in ran.out.splitlines() + ran.err.splitlines() if why in one]
    assert len(shown) == 1
    # A key that is there is named by its own line, the section's faults by the section's.
    number = before.count("\n") + 1
    if why.startswith("messages: "):
        number = before.splitlines().index("messages:") + 1
    assert shown[0].startswith(f"{file}:{number}: ")


async def test_secrets_are_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "umpack.yaml"
    auth = {"user": "u", "secret": "geheim", "clear": True}
    file.write_text(text(rest=section(25, auth=auth, directory="none.csv")))
    ran = await umpack("check", "--show", os.fspath(file))
    shown = json.loads(ran.out[ran.out.index("{") :])["messages"]
    assert shown["auth"] == {"user": "u", "secret": "***"}
    assert "geheim" not in ran.out
    warned = await umpack("check", os.fspath(file))
    assert "none.csv is not there; all goes to the default mailbox until it is" in warned.err
    assert warned.code == 0


def test_moments_that_have_been() -> None:
    now = clock.wall()
    assert _past("2h", now) == now - 7200
    assert _past("2026-01-01T00:00:00+00:00", now) == 1767225600.0
    for daily in ("00:00", "12:00", "23:59"):
        assert now - 90000 <= _past(daily, now) <= now
    for wrong in ("", "soon", "25:00", "2026-13-01", "\x1b"):
        with pytest.raises(OurFault):
            _past(wrong, now)


def test_an_id_is_one_path_segment() -> None:
    from umpack.cli.faxes import _path

    assert _path("a/../b", "retry") == "/v1/messages/a%2F..%2Fb/retry"
    assert _path(MessageId("x")) == "/v1/messages/x"
