"""From a call to a mailbox, through the whole daemon."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from simulators.asterisk import PbxPlan, SimulatedAsterisk
from simulators.mail import MailServer
from simulators.pbx_reception import Brought, FaxMachine, Speaker
from tests.unit.daemons import daemon_of, text, until
from tests.unit.messages.fax_files import Sheet, fax, picture, shown
from tests.unit.messages.offices import TEXTS, attached, mail_of
from umpack.core.calls import Ending

PAGES = [picture(number, rows=300) for number in (1, 2, 3)]
FAX = FaxMachine(fax([Sheet(page) for page in PAGES]), pages=3, seconds=30.0, station="+49 301")
WAV = (
    b"RIFF" + (36 + 96_000).to_bytes(4, "little") + b"WAVEfmt "
    + (16).to_bytes(4, "little") + bytes.fromhex("01000100401f0000803e000002001000") + b"data"
    + (96_000).to_bytes(4, "little") + bytes(96_000)
)  # fmt: skip
SITE = text(
    trunks="  in: {kind: auto, channels: 4, silence: 2s}\n",
    packs="  in: {members: [in]}\n",
    routes='  - {called: "*", pack: in}\n',
)


def site(port: int) -> str:
    """A site that takes messages, and mails them to this port."""
    keys = {
        "spool": "spool", "reserve_mb": 0, "sender": "fax@umpack.test",
        "default_mailbox": "office@site.test", "texts": os.fspath(TEXTS),
        "relays": [f"127.0.0.1:{port}"], "tls": "never", "hello": "node.umpack.test",
    }  # fmt: skip
    return f"{SITE}messages: {json.dumps(keys)}\n"


@pytest.mark.parametrize(
    ("brings", "kind"), [(FAX, "application/pdf"), (Speaker(WAV, 6.0), "audio/wav")]
)
async def test_a_call_comes_in_and_a_mail_goes_out(
    tmp_path: Path, brings: Brought, kind: str
) -> None:
    async with MailServer() as mail, daemon_of(tmp_path, site(mail.port)) as running:
        async with SimulatedAsterisk(PbxPlan(speed=100.0)) as pbx:
            pbx.agi_to("127.0.0.1", running.port)
            await pbx.call("49302000123", "0301234", "Eva", hold=60.0, brings=brings)
        await until(lambda: mail.accepted)
        (accepted,) = mail.accepted
        ((found, content),) = attached(mail_of(accepted))
        assert found == kind
        if isinstance(brings, FaxMachine):
            assert [page.tobytes() for page in shown(content)] == [p.tobytes() for p in PAGES]
        else:
            assert content == WAV
        (call,) = await running.daemon.ended_calls(9)
        assert call["ending"] == Ending.CONNECTED.value
        messages = running.daemon.messages
        assert messages is not None
        (message,) = await messages.spool.messages()
        assert message.call.call == call["id"]
        assert accepted.message_id == message.message_id
