"""A real Asterisk is killed in any moment of several faxes and recordings; nothing is lost.

Each call has exactly one record afterwards, and what an engine had written into its file is kept:
the same bytes, and every page in them that can be read is the page that was sent.
UMPACK_PBX_KILLS says how often (10).
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.pbx.beside import lab_config, patient, until
from tests.pbx.lab import Lab
from tests.pbx.receiving import (
    AT_ONCE,
    Machine,
    load,
    page,
    receiving,
    speak,
    with_loop,
    write_tiff,
)
from tests.pbx.root import Root
from tests.sites import MESSAGES
from umpack.core.calls import CallRecord, Ending
from umpack.messages.message import Message

KILLS = int(os.environ.get("UMPACK_PBX_KILLS", "10"))
EARLY, LATE = (0.0, 18.0), (18.0, 36.0)
"""Seconds from the first call to the kill: up to the first page, and from its end to the third."""

pytestmark = [pytest.mark.pbx, pytest.mark.timeout(900 + 60 * KILLS)]

SITE = (
    MESSAGES
    + """
trunks:
  fax: {kind: fax, channels: 8}
  voice: {kind: voice, channels: 8, longest: 60s, silence: 5s}
  auto: {kind: auto, channels: 8, longest: 60s, silence: 5s}
packs: {fax: {members: [fax]}, voice: {members: [voice]}, auto: {members: [auto]}}
routes:
  - {called: "1XX", pack: fax}
  - {called: "3XX", pack: voice}
  - {called: "4XX", pack: auto}
"""
)
PAGES = [page(1), page(2, rows=120, dense=True), page(3)]


@pytest.fixture(scope="module")
def lab(pbx_root: Root) -> Iterator[Lab]:
    config = replace(lab_config(), caller_options=("t38_udptl=yes",))
    with patient(with_loop(Lab(pbx_root, config))) as lab:
        yield lab


def readable(file: Path) -> list[bytes]:
    """The pages of a file that may end in the midst of one."""
    found: list[bytes] = []
    try:
        with Image.open(file) as image:
            for number in range(len(PAGES)):
                image.seek(number)
                found.append(image.convert("1").tobytes())
    except (EOFError, OSError, TypeError, SyntaxError):
        pass  # the rest of it had not come
    return found


def place_calls(lab: Lab, file: Path, number: int) -> None:
    """Several at once: faxes by audio and by T.38, to fax and to both, and people who speak."""
    audio = Machine(file)
    t38 = replace(audio, via="PJSIP/{called}@self", options="z")
    for machine in (
        replace(audio, called="101"),
        replace(audio, called="102", ecm=False),
        replace(t38, called="103"),
        replace(audio, called="401"),
    ):
        machine.start(lab, f"kill{number}-{machine.called}")
    for called in ("301", "402"):
        speak(lab, "1000", wait=60, called=called)


def unkept(spool: Path, left: dict[str, bytes], messages: list[Message]) -> Iterator[str]:
    """What Asterisk had written, compared with what there is of it."""
    for message in messages:
        original = message.original
        stem = next((name for name in left if name.startswith(message.id)), "")
        had = left.get(stem, b"")
        if original is None:
            if had:
                yield f"{message!r}: {len(had)} bytes are lost"
            continue
        kept = spool / original.file
        if stem and kept.read_bytes() != had:
            yield f"{message!r}: is not what was written"
        if kept.suffix == ".tif":
            pages = readable(kept)
            if pages[:-1] != [image.tobytes() for image in PAGES][: len(pages[:-1])]:
                yield f"{message!r}: another page than was sent"


async def test_asterisk_killed_at_random_again_and_again(lab: Lab) -> None:
    seed = random.SystemRandom().randrange(10**6)
    dice = random.Random(seed)
    place = lab.shared("kills")
    file = write_tiff(place / "sent.tif", PAGES)
    spool = place / "spool"
    found: list[str] = []
    pages: Counter[int] = Counter()
    async with receiving(lab, SITE, spool, times=AT_ONCE) as um:
        for number in range(KILLS):
            before = len(um.records)
            await asyncio.to_thread(place_calls, lab, file, number)
            await asyncio.sleep(dice.uniform(*(LATE if number % 2 else EARLY)))
            await asyncio.to_thread(lab.kill)
            left = {f.name: f.read_bytes() for f in (spool / "receiving").iterdir()}
            try:
                await um.idle()
                await until(lambda: not um.spool.disk.live)
                await um.spool.adopt()
                records = um.records[before:]
                messages = await um.spool.messages(100_000)
                found += exactly_one(records, messages)
                found += unkept(spool, left, messages[: len(records)])
                pages.update(
                    len(readable(spool / m.original.file))
                    for m in messages[: len(records)]
                    if m.original and m.name.endswith(".tif")
                )
                if rest := os.listdir(spool / "receiving"):
                    found.append(f"left in receiving: {rest}")
            finally:
                await asyncio.to_thread(lab.start)
                await asyncio.to_thread(load, lab, SITE, um.driver.agi_port)
        total, records = await um.spool.messages(100_000), um.records
    calls = sum(record.answered is not None for record in records)
    print(
        f"\nseed {seed}: {KILLS} kills of Asterisk, {len(records)} calls, {calls} answered, "
        f"{len(total)} records, {sum(m.original is not None for m in total)} with a file, "
        f"pages readable {dict(sorted(pages.items()))}"
    )
    assert found == [], f"seed {seed}"
    assert calls >= KILLS
    assert sum(count for number, count in pages.items() if number) >= KILLS // 2


def exactly_one(records: list[CallRecord], messages: list[Message]) -> Iterator[str]:
    """A call that was answered has one; one that was not has one at most."""
    count = Counter(message.call.call for message in messages)
    for record in records:
        answered = record.answered is not None or record.ending is Ending.CONNECTED
        if count[record.call.id] > 1 or (answered and not count[record.call.id]):
            yield f"{record}: {count[record.call.id]} records"
