"""Scenarios 3 to 8 of those that break a naive fax gateway, each from the call, or from what the
engine left of it, to the mailbox; by number and name, as they stand in the list (fax.md 9)."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pikepdf
import pytest
from PIL import Image

from simulators.asterisk import PbxPlan, SimulatedAsterisk
from simulators.mail import Accepted, MailServer
from simulators.pbx_reception import FaxMachine
from tests.unit.daemons import RunningDaemon, daemon_of, logged, text, until
from tests.unit.messages.fax_files import MH, MMR, MR, Sheet, fax, picture, shown
from tests.unit.messages.offices import (
    TEXTS,
    attached,
    facts,
    in_memory,
    mail_of,
    office,
    received,
    settle,
    text_of,
)
from tests.unit.messages.receptions import START, Time, opened
from tests.unit.messages.test_outage import afterwards, killed
from tests.unit.messages.test_texts import HOSTILE, SAFE_NAME, is_clean_line
from umpack.cli import fax_tables
from umpack.messages import texts
from umpack.messages.fault_points import FaultPoint
from umpack.messages.message import EngineFacts, Message
from umpack.messages.office import Messages
from umpack.messages.spool_schema import SpoolFault
from umpack.messages.states import MessageState
from umpack.web.messages_api import whole

pytestmark = pytest.mark.timeout(180)  # a converter is a process of its own, and nice

PAGES = [picture(number, rows=300) for number in range(1, 6)]
MACHINE = "+49 30 777"


def pages(*numbers: int, coding: str = MMR) -> bytes:
    return fax([Sheet(PAGES[number - 1], coding) for number in numbers])


def site(port: int, spool: str = "spool") -> str:
    """A port for faxes, and a mail server."""
    keys = {
        "spool": spool, "reserve_mb": 0, "sender": "fax@umpack.test",
        "default_mailbox": "office@site.test", "texts": os.fspath(TEXTS),
        "relays": [f"127.0.0.1:{port}"], "tls": "never", "hello": "node.umpack.test",
    }  # fmt: skip
    return text(
        trunks="  in: {kind: fax, channels: 4}\n",
        packs="  in: {members: [in]}\n",
        routes='  - {called: "*", pack: in}\n',
        rest=f"messages: {json.dumps(keys)}\n",
    )


def messages_of(running: RunningDaemon) -> Messages:
    assert running.daemon.messages is not None
    return running.daemon.messages


def pdf_of(accepted: Accepted) -> list[bytes]:
    """The pages a reader sees."""
    (found,) = [data for kind, data in attached(mail_of(accepted)) if kind == "application/pdf"]
    return [page.tobytes() for page in shown(found)]


def pixels(*numbers: int) -> list[bytes]:
    return [PAGES[number - 1].tobytes() for number in numbers]


# -- 3 ----------------------------------------------------------------------------------------

BOOK = [
    b"\xff\xc3\r\nBcc: evil@x.test\x00$(id)%n" + b'"' * 20,
    "\u202eEva\U0001f600\u2066\u05d0".encode(),
    *HOSTILE,
]


async def test_scenario_03_hostile_texts_reach_every_sink_clean_and_the_record_raw(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with in_memory() as directory, logged() as lines:
        async with MailServer() as server, office(directory, server.port) as messages:
            for number, raw in enumerate(BOOK):
                said = texts.decoded(raw)
                call = facts(
                    number, caller=said, called=said or "1", caller_name=said, caller_raw=raw,
                    caller_name_raw=raw,
                )  # fmt: skip
                engine = EngineFacts(
                    said or "FAILED", error=said, pages=1, resolution=said, station=raw
                )
                await received(messages, content=pages(1), engine=engine, call=call)
            await settle(messages)
            records = await messages.spool.messages(100)
            # Messages of one caller, as the empty number is to two, are told together.
            told = " ".join(text_of(mail_of(one)) for one in server.accepted)
            assert all(one.id in told for one in records)
            assert {one.state for one in records} == {MessageState.DELIVERED}
            for accepted in server.accepted:
                check_mail(accepted)
            by_call = {one.call.call: one for one in records}
            for number, raw in enumerate(BOOK):
                check_record(by_call[facts(number).call], raw)
            check_tables(records, capsys)
            assert len(server.heard) == 5 * len(server.accepted), "a command was forged"
    for line in lines:
        assert line.count("\n") == 1
        assert line.isascii() or line.removesuffix("\n").isprintable()


def check_mail(accepted: Accepted) -> None:
    head, _, body = accepted.body.partition(b"\r\n\r\n")
    assert head.isascii()
    assert b"\0" not in accepted.body
    assert accepted.recipients == ("office@site.test",)
    mail = mail_of(accepted)
    assert not mail.defects
    assert mail["Bcc"] is None
    assert b"\nBcc" not in body
    for part in mail.iter_attachments():
        name = part.get_filename() or ""
        assert SAFE_NAME.fullmatch(name), name
        assert ".." not in name
    for line in text_of(mail).splitlines():
        assert is_clean_line(line.replace("\u2068", "").replace("\u2069", "")), line
    (pdf,) = [data for kind, data in attached(mail) if kind == "application/pdf"]
    with pikepdf.open(io.BytesIO(pdf)) as opened_:
        assert {key: str(value) for key, value in opened_.docinfo.items()} == {
            "/Producer": "umpack"
        }
        assert "/Metadata" not in opened_.Root


def check_record(record: Message, raw: bytes) -> None:
    assert (record.call.caller_raw, record.call.caller_name_raw) == (raw, raw)
    assert record.call.caller == texts.decoded(raw)
    assert record.engine is not None
    assert record.engine.station == raw
    shown_ = whole(record)
    assert {shown_["raw"][key] for key in ("caller", "caller_name", "station")} == {raw.hex()}
    json.dumps(shown_).encode("ascii")


def check_tables(records: list[Message], capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    views = [whole(record) | {"audit": []} for record in records]
    fax_tables.messages(views, START)
    fax_tables.queue({"at": START, "alarms": [], "resting": {}, "spool": None, "messages": views})
    for view in views:
        fax_tables.message(view)
    out = capsys.readouterr().out
    bad = {c for c in out if not c.isprintable()} - {"\n"}
    assert bad == set()
    assert not re.search("[\u200e\u200f\u202a-\u202e\u2066-\u2069]", out)
    assert out.count(records[0].id) >= 3


async def test_scenario_03_hostile_texts_by_a_call(tmp_path: Path) -> None:
    """As the line, the PBX and AGI bring them."""
    machine = FaxMachine(pages(1), seconds=5.0, station='$(id)%n"""\x07\x1b[2J')
    async with MailServer() as server, daemon_of(tmp_path, site(server.port)) as running:
        async with SimulatedAsterisk(PbxPlan(speed=50.0)) as pbx:
            pbx.agi_to("127.0.0.1", running.port)
            name = '\u202eEva"\U0001f600 $(id) %n'
            await pbx.call("49302000123", "030%22%3cBcc", name, hold=30.0, brings=machine)
        await until(lambda: server.accepted)
        check_mail(server.accepted[0])
        (record,) = await messages_of(running).spool.messages()
        assert record.engine is not None
        assert record.engine.station == b'$(id)%n"""[2J'
        assert record.call.caller_name_raw.decode("utf-8") == record.call.caller_name
        assert "$(id)" in text_of(mail_of(server.accepted[0]))


# -- 4 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", [MH, MMR], ids=["non-ECM", "ECM"])
async def test_scenario_04_a_caller_hangs_up_in_page_3_of_5(tmp_path: Path, coding: str) -> None:
    machine = FaxMachine(
        pages(1, 2, 3, 4, 5), pages=5, seconds=120.0, station=MACHINE,
        confirmed=pages(1, 2, coding=coding), confirmed_pages=2,
    )  # fmt: skip
    async with MailServer() as server, daemon_of(tmp_path, site(server.port)) as running:
        async with SimulatedAsterisk(PbxPlan(speed=20.0)) as pbx:
            pbx.agi_to("127.0.0.1", running.port)
            result = await pbx.call("49302000123", "0301234", hold=40.0, brings=machine)
            assert result.answered
        await until(lambda: server.accepted)
        (accepted,) = server.accepted
        mail = mail_of(accepted)
        assert mail["Subject"] == "[Fax incomplete] from 0301234 to 49302000123, pages: 2"
        assert mail["X-Umpack-Result"] == "incomplete"
        assert "pages received: 2; then: HANGUP" in text_of(mail)
        assert [kind for kind, _ in attached(mail)] == ["application/pdf", "image/tiff"]
        assert pdf_of(accepted) == pixels(1, 2)
        assert attached(mail)[1][1] == machine.confirmed
        messages = messages_of(running)
        (record,) = await messages.spool.messages()
        assert record.engine is not None
        assert (record.engine.status, record.engine.pages) == ("FAILED", 2)
        # What was confirmed is there: nothing is wrong with the disk.
        assert messages.desk.mismatches == {}


# -- 5 ----------------------------------------------------------------------------------------


def engine(count: int, error: str = "") -> EngineFacts:
    status = "FAILED" if error else "SUCCESS"
    return EngineFacts(
        status, error=error, pages=count, bitrate=14400, resolution="204x98", seconds=30.0,
        station=MACHINE.encode(),
    )  # fmt: skip


async def test_scenario_05_repeat_and_continuation_are_linked_and_never_suppressed() -> None:
    time = Time(START)
    with in_memory() as directory:
        async with MailServer() as server, office(directory, server.port, now=time) as messages:

            async def call(number: int, content: bytes, end: EngineFacts) -> Message:
                found = await received(
                    messages, content=content, engine=end, call=facts(number, caller="49301")
                )
                await settle(messages)
                time.now += 60.0
                return found

            first = await call(1, pages(1, 2), engine(2))
            # The last confirmation was not heard: the whole fax once more; header lines differ.
            later = [PAGES[0].copy(), PAGES[1].copy()]
            for page in later:
                page.paste(0, (300, 3, 420, 12))
            repeat = await call(2, fax([Sheet(page) for page in later]), engine(2))
            # Another one breaks off in page 3, and its sender goes on where it broke off.
            broken = await call(3, pages(4, 5), engine(2, "HANGUP"))
            rest = await call(4, pages(1, 2, 3), engine(3))
            resumed = await call(5, fax([Sheet(picture(9, rows=300))]), engine(1))

            assert [one.message_id for one in server.accepted] == [
                one.message_id for one in (first, repeat, broken, rest, resumed)
            ]
            links = {one.id: one.related for one in await messages.spool.messages()}
            assert links[first.id] is None
            assert links[repeat.id] == first.id
            assert links[broken.id] is None
            assert links[resumed.id] == broken.id
            said = [text_of(mail_of(one)) for one in server.accepted]
            assert f"all pages have come before, in {first.id}" in said[1]
            assert f"2 of these pages have come before, in {links[rest.id]}" in said[3]
            assert f"this seems to continue {broken.id}, which had broken off" in said[4]
            assert [len(pdf_of(one)) for one in server.accepted] == [2, 2, 2, 3, 1]


# -- 6 ----------------------------------------------------------------------------------------


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """A file system of its own, of 6 MB; only root can have one."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "none", os.fspath(place)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def fill(disk: Path) -> Path:
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return ballast


async def test_scenario_06_a_disk_full_during_page_2_of_a_call(tmp_path: Path) -> None:
    """The engine has confirmed four pages; one is in the file. (Debian's spandsp logs a warning
    when it cannot write a page, and goes on.)"""
    lost = FaxMachine(pages(1), pages=4, seconds=5.0, station=MACHINE)
    sound = FaxMachine(pages(2, 3), pages=2, seconds=5.0, station=MACHINE)
    with small_disk(tmp_path / "disk") as disk, logged("ERROR") as lines:
        spool = os.fspath(disk / "spool")
        async with MailServer() as server, daemon_of(tmp_path, site(server.port, spool)) as running:
            messages = messages_of(running)
            async with SimulatedAsterisk(PbxPlan(speed=50.0)) as pbx:
                pbx.agi_to("127.0.0.1", running.port)
                await pbx.call("49302000123", "0301", hold=30.0, brings=lost)
                await until(lambda: server.accepted)
                mail = mail_of(server.accepted[0])
                assert mail["Subject"].startswith("[Fax incomplete] from 0301")
                assert "fax engine 4, original 1, PDF 1" in text_of(mail)
                assert [kind for kind, _ in attached(mail)] == ["application/pdf", "image/tiff"]
                (first,) = await messages.spool.messages()
                (alarm,) = [a for a in (await messages.look()).alarms if a.kind == "pages"]
                assert first.id in alarm.what
                assert [line for line in lines if "received 4, in the file 1" in line]
                (entry,) = [e for e in await messages.spool.audit(first.id) if e.what == "mismatch"]
                assert "received 4, in the file 1" in entry.detail

                ballast = await asyncio.to_thread(fill, disk)
                refused = await pbx.call("49302000123", "0302", hold=30.0, brings=sound)
                assert not refused.answered
                assert refused.cause in (34, 38, 41, 42)  # the exchange tries elsewhere
                assert len(await messages.spool.messages()) == 1

                ballast.unlink()
                await messages.spool.health(0.0)  # the disk is asked again, as every 30 s
                await pbx.call("49302000123", "0303", hold=30.0, brings=sound)
                await until(lambda: len(server.accepted) == 2)
            assert pdf_of(server.accepted[1]) == pixels(2, 3)
            records = await messages.spool.messages()
            assert len({one.id for one in records}) == 2
            kept = {}
            for one in records:
                assert one.original is not None
                kept[one.id] = (disk / "spool" / one.original.file).read_bytes()
            assert kept.pop(first.id) == lost.tiff  # nothing was overwritten
            assert list(kept.values()) == [sound.tiff]


# -- 7 ----------------------------------------------------------------------------------------


class Animal(NamedTuple):
    """A file, how many pages its engine had counted, and what must become of it."""

    data: bytes
    counted: int
    tag: str
    shown: int
    """Pages in the PDF; 0: there is none."""
    says: str
    original: bool = True


def with_bit_errors(coding: str) -> bytes:
    data, dice = bytearray(fax([Sheet(picture(n), coding) for n in (1, 2)])), random.Random(7)
    for _ in range(35):
        data[8 + dice.randrange(4000)] ^= 1 << dice.randrange(8)
    return bytes(data)


def bomb() -> bytes:
    """1.3 Gpixel by its tags; its code is an endless page of white."""
    white = Image.new("1", (1728, 20_000), 255)
    return fax([Sheet(white, tags={256: 65_000}), Sheet(PAGES[1])])


def zoo() -> dict[str, Animal]:
    three = [Sheet(page) for page in PAGES[:3]]
    return {
        "truncated in a directory": Animal(
            fax(three)[:-190], 3, "[Fax incomplete]", 2, "list of pages was damaged"
        ),
        "first offset 0": Animal(fax(three, first=0), 3, "[Fax]", 3, "list of pages was damaged"),
        "loop": Animal(fax(three, loop=True), 3, "[Fax]", 3, "list of pages was damaged"),
        **{
            f"bit errors in {coding}": Animal(
                with_bit_errors(coding), 2, "[Fax", 2, "rows with transmission errors"
            )
            for coding in (MH, MR, MMR)
        },
        "bomb": Animal(bomb(), 2, "[Fax incomplete]", 1, "impossible size"),
        "no rows": Animal(
            fax([three[0], Sheet(PAGES[1], tags={257: 0}), three[2]]), 3,
            "[Fax incomplete]", 2, "page 2: the page is empty",
        ),
        "two resolutions": Animal(
            fax([Sheet(picture(1, 1143), y=98), Sheet(picture(2, 2286), y=196)]), 2,
            "[Fax]", 2, "complete", original=False,
        ),
        "no resolution": Animal(
            fax([Sheet(picture(1, 1143), x=None, y=None)]), 1, "[Fax]", 1, "resolution was not"
        ),
        "LSB first": Animal(
            fax([Sheet(PAGES[0], MH, lsb=True), Sheet(PAGES[1], MH, lsb=False)]), 2,
            "[Fax]", 2, "complete", original=False,
        ),
        "all black": Animal(
            fax([Sheet(Image.new("1", (1728, 1100), 0))]), 1, "[Fax]", 1, "wholly black"
        ),
        "no TIFF": Animal(b"MZ" * 500, 1, "[Fax incomplete]", 0, "the file is no TIFF"),
        "nothing but a header": Animal(
            b"II*\0\x08\0\0\0", 1, "[Fax incomplete]", 0, "no page can be read"
        ),
    }  # fmt: skip


async def test_scenario_07_the_zoo_of_files() -> None:
    animals = zoo()
    with in_memory() as directory:
        async with MailServer() as server, office(directory, server.port) as messages:
            names = {}
            for number, (name, animal) in enumerate(animals.items()):
                message = await received(
                    messages, content=animal.data, engine=engine(animal.counted),
                    call=facts(number),
                )  # fmt: skip
                names[message.id] = name
            await settle(messages)
            assert len(server.accepted) == len(animals)
            for accepted in server.accepted:
                name = names[mail_of(accepted)["X-Umpack-Id"]]
                check_animal(accepted, animals[name], name)


def check_animal(accepted: Accepted, animal: Animal, name: str) -> None:
    mail = mail_of(accepted)
    kinds = [kind for kind, _ in attached(mail)]
    assert mail["Subject"].startswith(animal.tag), name
    assert animal.says in text_of(mail), name
    originals = [data for kind, data in attached(mail) if kind != "application/pdf"]
    assert originals == ([animal.data] if animal.original else []), name
    assert ("application/pdf" in kinds) is bool(animal.shown), name
    assert (mail["X-Umpack-Quality"] == "doubtful") is animal.original, name
    if animal.shown:
        assert len(pdf_of(accepted)) == animal.shown, name
        with pikepdf.open(io.BytesIO(dict(attached(mail))["application/pdf"])) as pdf:
            for page in pdf.pages:
                box = [round(float(side)) for side in page.mediabox]
                assert box[2] == 610, name  # as wide as the paper, whatever its resolution
                assert box[3] <= 842, name


# -- 8 ----------------------------------------------------------------------------------------

DEATHS = (
    FaultPoint.INTEND_RESERVED,  # during the call
    FaultPoint.COMMIT_BEGUN,  # the engine has closed the file, nothing is in the spool
    FaultPoint.COMMIT_RENAMED,
    FaultPoint.COMMIT_PLACED,
    FaultPoint.ADDRESS_ROW,
    FaultPoint.CLAIM_DONE,
    FaultPoint.OUTCOME_BEFORE_ROW,  # the 250 is heard, and not written
    FaultPoint.OUTCOME_ROW,
)


@pytest.mark.timeout(300)
async def test_scenario_08_killed_at_every_step_one_after_the_other() -> None:
    """One spool, killed at each step in turn: one record a call, one mail a Message-ID to be seen.

    How running faxes end at a SIGTERM is tested where the daemon drains."""
    with in_memory() as directory:
        async with MailServer() as server:
            promised: list[str] = []
            for number, point in enumerate(DEATHS):
                lines = await killed(directory, server.port, 100 * number, point.name, 2)
                assert "survived" not in lines, f"{point.name} was never reached"
                promised += lines
            await afterwards(directory, server, promised)
            copies = {one.message_id: server.copies(one.message_id) for one in server.accepted}
            # After a 250 that was not written it comes again, and can be known by its id.
            assert max(copies.values()) >= 2
            senders = {mail_of(one)["X-Umpack-Id"] for one in server.accepted}
            assert len(copies) == len(senders)


def test_scenario_08_a_spool_that_is_held_has_no_second_holder(tmp_path: Path) -> None:
    """Between the death of one and the start of another there is the lock, and no time in which
    two of them send."""
    with opened(tmp_path), pytest.raises(SpoolFault, match="in use by another umpack"):
        opened(tmp_path)
    opened(tmp_path).close()
