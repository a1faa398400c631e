"""The whole way on real programs: Asterisk's SendFAX → umpack → Postfix → a Maildir.

Every page of every PDF is compared with what was sent, pixel by pixel; a tone that was spoken is
looked for in the mail's attachment.
"""

from __future__ import annotations

import array
import asyncio
import email
import email.policy
import io
import itertools
import json
import tempfile
import wave
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from email.message import EmailMessage
from pathlib import Path

import pytest
from PIL import Image

from tests.mail.postfix import DOMAIN, Postfix, postfix, require
from tests.pbx.beside import MAIN, lab_config, until
from tests.pbx.lab import Lab
from tests.pbx.receiving import CALLERS, Machine, loudness, page, sent, speak, with_loop, write_tiff
from tests.pbx.root import Root
from tests.pbx.storm import linked, site_file
from tests.unit.messages.fax_files import shown
from tests.unit.messages.offices import TEXTS, attached, text_of
from umpack.config import load
from umpack.core.calls import Ending
from umpack.daemon import Daemon
from umpack.dialplan import dialplan
from umpack.messages.message import Message
from umpack.messages.states import MessageState

pytestmark = [pytest.mark.pbx, pytest.mark.timeout(1500)]  # the first run builds the root

SITE = """
trunks:
  fax: {kind: fax, channels: 24, station: "+49 30 99"}
  voice: {kind: voice, channels: 4, longest: 10s, silence: 2s}
packs:
  fax: {members: [fax]}
  voice: {members: [voice]}
routes:
  - {called: "1XX", pack: fax}
  - {called: "3XX", pack: voice}
"""
PAGES = (30, 10, 5, 5, 3, 3, 3, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1)
"""Of each fax; the long one sets how long all of this takes, so it begins first."""
AT_ONCE = 10
FINE, ECM, T38 = True, True, True
WAYS = tuple(itertools.product((not FINE, FINE), (ECM, not ECM), (not T38, T38)))
BY_SIP, BY_AUDIO = "PJSIP/{called}@self", "Local/{called}@from-line/n"


@dataclass(frozen=True)
class Sending:
    """One fax to be sent."""

    called: str
    pages: tuple[Image.Image, ...]
    fine: bool
    ecm: bool
    t38: bool

    @property
    def caller(self) -> str:
        return f"030{self.called}"


def sendings() -> list[Sending]:
    """Each way at least twice."""
    found, seed = [], itertools.count(1)
    for number, count in enumerate(PAGES):
        fine, ecm, t38 = WAYS[number % len(WAYS)]
        pages = tuple(page(next(seed), fine=fine) for _ in range(count))
        found.append(Sending(f"{100 + number}", pages, fine, ecm, t38))
    return found


@pytest.fixture(scope="module")
def lab(pbx_root: Root) -> Iterator[Lab]:
    config = replace(lab_config(), caller_options=("t38_udptl=yes",))
    with with_loop(Lab(pbx_root, config)) as lab:
        yield lab


@pytest.fixture
async def server() -> AsyncIterator[Postfix]:
    require()
    with tempfile.TemporaryDirectory(prefix="umpack-postfix-") as folder:
        async with postfix(Path(folder)) as running:
            yield running


@asynccontextmanager
async def site(lab: Lab, place: Path, mail_port: int) -> AsyncIterator[Daemon]:
    """The whole daemon beside the lab; the PBX has its dialplan."""
    keys = {
        "spool": str(place / "spool"), "reserve_mb": 0, "sender": f"fax@{DOMAIN}",
        "default_mailbox": f"office@{DOMAIN}", "texts": str(TEXTS), "tls": "never",
        "relays": [f"127.0.0.1:{mail_port}"], "hello": "node.umpack.test",
    }  # fmt: skip
    wanted = load(site_file(lab, f"{SITE}messages: {json.dumps(keys)}\n", place))
    text = f"[from-line]\ninclude => umpack-in\n{CALLERS}{dialplan(wanted, MAIN)}"
    async with Daemon(wanted, None) as daemon:
        lab.write("extensions.conf", text)
        await asyncio.to_thread(lab.rx, "dialplan reload")
        await until(lambda: linked(daemon))
        yield daemon


async def send(lab: Lab, place: Path, one: Sending, gate: asyncio.Semaphore) -> None:
    """To its end, as the sending machine sees it."""
    file = await asyncio.to_thread(write_tiff, place / f"{one.called}.tif", one.pages)
    machine = Machine(
        file, one.called, one.caller, ecm=one.ecm,
        via=BY_SIP if one.t38 else BY_AUDIO, options="z" if one.t38 else "",
    )  # fmt: skip
    async with gate:
        await asyncio.to_thread(machine.start, lab, one.called)
        told = await asyncio.to_thread(sent, lab, one.called, 600.0)
    assert told[:2] == ("SUCCESS", str(len(one.pages))), (one.called, told)


async def delivered(daemon: Daemon, count: int, seconds: float = 120.0) -> list[Message]:
    """Wait until so many messages have come to their mailboxes."""
    assert daemon.messages is not None
    messages: list[Message] = []
    async with asyncio.timeout(seconds):
        while [one.state for one in messages] != [MessageState.DELIVERED] * count:
            await asyncio.sleep(0.2)
            messages = await daemon.messages.spool.messages()
    return messages


def by_caller(server: Postfix) -> dict[str, EmailMessage]:
    mails: dict[str, EmailMessage] = {}
    for content in server.mails():
        mail = email.message_from_bytes(content, policy=email.policy.default)
        assert isinstance(mail, EmailMessage)
        caller = mail["X-CallingTelephoneNumber"]
        assert caller not in mails
        mails[caller] = mail
    return mails


def check(mail: EmailMessage, one: Sending, message: Message) -> None:
    """The mail's facts and its pages are what was sent."""
    count = len(one.pages)
    assert mail["Message-ID"] == message.message_id
    assert mail["Subject"] == f"[Fax] from {one.caller} to {one.called}, pages: {count}"
    assert mail["X-FaxNumberOfPages"] == str(count)
    assert mail["X-Umpack-Result"] == "whole"
    lines = text_of(mail).splitlines()
    assert f"Pages: {count}" in lines
    assert f"Resolution: {'204x196' if one.fine else '204x98'}" in lines
    assert f"Carried by: {'T.38' if one.t38 else 'G.711'}" in lines
    assert f"Caller: {one.caller} (not verified)" in lines
    ((kind, content),) = attached(mail)
    assert kind == "application/pdf"
    assert [image.size for image in shown(content)] == [image.size for image in one.pages]
    for number, (got, had) in enumerate(zip(shown(content), one.pages, strict=True), 1):
        assert got.tobytes() == had.tobytes(), f"{one.called}: page {number}"
    engine, document = message.engine, message.document
    assert engine is not None
    assert document is not None
    assert (engine.pages, engine.t38) == (count, one.t38)


async def test_twenty_faxes_from_sendfax_to_the_mailbox(lab: Lab, server: Postfix) -> None:
    place = lab.shared("twenty")
    jobs = await asyncio.to_thread(sendings)
    assert sum(len(one.pages) for one in jobs) == sum(PAGES)
    async with site(lab, place, server.port) as daemon:
        gate = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for one in jobs:
                group.create_task(send(lab, place, one, gate))
        messages = {one.call.called: one for one in await delivered(daemon, len(jobs))}
        mails = by_caller(server)
        assert mails.keys() == {one.caller for one in jobs}
        for one in jobs:
            await asyncio.to_thread(check, mails[one.caller], one, messages[one.called])
        calls = await daemon.ended_calls(100)
        assert [call["ending"] for call in calls] == [Ending.CONNECTED.value] * len(jobs)
        assert {one.call.call for one in messages.values()} == {call["id"] for call in calls}
        assert daemon.messages is not None
        found = await daemon.messages.reconcile()
        assert (found.without_record, found.without_message, found.without_end) == ((), (), ())


async def test_a_tone_that_was_spoken_is_in_the_mail(lab: Lab, server: Postfix) -> None:
    place = lab.shared("tone")
    async with site(lab, place, server.port) as daemon:
        speak(lab, "1000", wait=60, leaves=5, called="301")
        (message,) = await delivered(daemon, 1)
        (mail,) = by_caller(server).values()
        ((kind, content),) = attached(mail)
        assert kind == "audio/wav"
        with wave.open(io.BytesIO(content)) as sound:
            assert sound.getframerate() == 8000
            samples = array.array("h", sound.readframes(sound.getnframes()))
        assert len(samples) > 2 * 8000
        assert loudness(samples, 1000) > 0.9
        assert loudness(samples, 1400) < 0.02
        length = round(len(samples) / 8000)
        assert abs(int(mail["X-VoiceMessageDuration"]) - length) <= 1
        assert mail["Subject"].startswith("[Voice] from 0301234 to 301, ")
        assert message.engine is not None
        assert message.engine.status == "SUCCESS"
