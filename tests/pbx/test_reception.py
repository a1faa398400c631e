"""Faxes and voice messages through a real Asterisk into a real spool.

Fax machines are spandsp's own, in the same Asterisk; people play tones.
"""

from __future__ import annotations

import array
import asyncio
import os
import signal
import wave
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from drivers.asterisk.taking_points import TakingPoint
from tests.pbx.beside import lab_config, port_of, until
from tests.pbx.lab import Lab
from tests.pbx.receiving import (
    AT_ONCE,
    NO_RESERVE,
    Machine,
    Receiving,
    ReceivingProcess,
    load,
    loudness,
    page,
    raster_of,
    rasters,
    receiving,
    sent,
    speak,
    with_loop,
    write_tiff,
)
from tests.pbx.root import Root
from tests.pbx.sipp import Caller, Server, finals
from tests.ports import free_port
from tests.sites import MESSAGES
from umpack.core.calls import Ending, Reason
from umpack.core.causes import Result
from umpack.messages.conversion import convert
from umpack.messages.disk_spool import DiskSpool
from umpack.messages.document import ConversionLimits
from umpack.messages.message import Kind, Message
from umpack.messages.outcomes import Outcome, outcome
from umpack.messages.spool_health import SpoolLimits
from umpack.messages.states import MessageState
from umpack.messages.voice import NOTHING_SAID

pytestmark = [pytest.mark.pbx, pytest.mark.timeout(900)]  # the first run builds the root

SITE = (
    MESSAGES
    + """
trunks:
  fax: {kind: fax, channels: 12, station: "+49 30 99"}
  audio: {kind: fax, channels: 2, t38: false, max_rate: 9600}
  voice: {kind: voice, channels: 8, longest: 6s, silence: 2s, greeting: hello-world}
  auto: {kind: auto, channels: 8, longest: 6s, silence: 2s, greeting: hello-world}
  um1: {kind: sip, endpoint: um1, channels: 2}
packs:
  fax: {members: [fax]}
  audio: {members: [audio]}
  voice: {members: [voice], strategy: cyclic}
  auto: {members: [auto]}
  spare: {members: [um1]}
  both: {members: [fax], overflow: [spare]}
routes:
  - {called: "1XX", pack: fax}
  - {called: "2XX", pack: audio}
  - {called: "3XX", pack: voice}
  - {called: "4XX", pack: auto}
  - {called: "5XX", pack: both}
"""
)
Pages = Sequence[Image.Image]


@pytest.fixture(scope="module")
def lab(pbx_root: Root) -> Iterator[Lab]:
    config = replace(lab_config(), caller_options=("t38_udptl=yes",))
    with with_loop(Lab(pbx_root, config)) as lab:
        yield lab


@pytest.fixture
def place(lab: Lab, request: pytest.FixtureRequest) -> Path:
    """A directory that Asterisk has under the same path."""
    return lab.shared(request.node.name.replace("[", "-").replace("]", ""))


def fax_file(place: Path, name: str, pages: Pages) -> Path:
    return write_tiff(place / f"{name}.tif", pages)


async def by_called(um: Receiving) -> dict[str, Message]:
    messages = await um.spool.messages()
    found = {message.call.called: message for message in messages}
    assert len(found) == len(messages)
    return found


def original(place: Path, message: Message) -> Path:
    assert message.original is not None, message
    return place / "spool" / message.original.file


async def test_faxes_arrive_whole_several_at_once(lab: Lab, place: Path) -> None:
    by_sip = {"via": "PJSIP/{called}@self", "options": "z"}
    jobs: dict[str, tuple[Pages, Machine]] = {}
    everyone: list[tuple[str, Pages, dict[str, Any]]] = [
        ("101", [page(1)], {}),
        ("102", [page(n) for n in (2, 3, 4)], {}),
        ("103", [page(5, fine=True)], {"ecm": False}),
        ("104", [page(n, fine=True) for n in (6, 7, 8)], {"station": "hostile"}),
        ("105", [page(n) for n in (9, 10, 11)], {"ecm": False}),
        ("106", [page(12), page(13)], by_sip),
        ("107", [page(14)], {"via": "PJSIP/{called}@plain"}),
        ("109", [page(16)], {"station": "bytes"}),
        ("208", [page(15)], {**by_sip, "options": "f"}),
    ]
    for called, pages, more in everyone:
        file = fax_file(place, called, pages)
        jobs[called] = pages, Machine(file, called, caller=f"030{called}", **more)
    async with receiving(lab, SITE, place / "spool", times=AT_ONCE) as um:
        for called, (_, machine) in jobs.items():
            await asyncio.to_thread(machine.start, lab, called)
        for called, (pages, _) in jobs.items():
            told = await asyncio.to_thread(sent, lab, called)
            assert told[:2] == ("SUCCESS", str(len(pages))), (called, told)
        await um.idle()
        received = await by_called(um)
        assert received.keys() == jobs.keys()
        for called, (pages, _) in jobs.items():
            message = received[called]
            assert message.state is MessageState.COMMITTED
            assert rasters(original(place, message)) == [raster_of(image) for image in pages]
            engine = message.engine
            assert engine is not None
            assert (engine.status, engine.pages, engine.error) == ("SUCCESS", len(pages), "")
            assert engine.resolution == ("204x196" if called in ("103", "104") else "204x98")
            assert engine.bitrate == (9600 if called == "208" else 14400)
            assert engine.ecm is (called not in ("103", "105"))
            assert engine.t38 is (called == "106")
            assert engine.seconds is not None
            assert 5 < engine.seconds < 90
            assert message.call.kind is Kind.FAX
            assert message.call.channel.startswith("audio:" if called == "208" else "fax:")
            assert message.call.caller == f"030{called}"
            assert message.call.caller_name == "Müller"
        assert received["101"].engine is not None
        assert received["101"].engine.station == b"+49 30 1234"
        assert received["104"].engine is not None
        # Every byte that came; the channel's text of it has lost its control characters.
        assert received["104"].engine.station == b'1\n2\x1f3"$(id)'
        assert received["109"].engine is not None
        assert received["109"].engine.station == b"\xff\xc3\"%n`$(id)`'|&<"
        ports = {message.call.channel for message in received.values()}
        assert len(ports) == len(jobs)
        records = um.records
        assert [r.ending for r in records] == [Ending.CONNECTED] * len(jobs)
        ids = {m.call.call: m.id for m in received.values()}
        assert all(r.attempts[0].outcome.detail == f"{ids[r.call.id]}: SUCCESS" for r in records)
        assert um.complaints == []


async def test_a_sender_who_hangs_up_in_mid_page_leaves_what_had_come(
    lab: Lab, place: Path
) -> None:
    pages = [page(1), page(2, rows=600, dense=True)]
    file = fax_file(place, "a", pages)
    async with receiving(lab, SITE, place / "spool", times=AT_ONCE) as um:
        for called, ecm in (("101", True), ("102", False)):
            machine = Machine(file, called, ecm=ecm, leaves=22.0)
            await asyncio.to_thread(machine.start, lab, f"left{called}")
        speak(lab, "440", wait=60, leaves=4, called="103")  # a person, on a fax number
        await until(lambda: len(um.records) == 3, 60)
        await um.idle()
        received = await by_called(um)
        for called in ("101", "102"):
            message, engine = received[called], received[called].engine
            assert engine is not None
            assert (engine.status, engine.pages) == ("FAILED", 1), engine
            assert engine.error
            assert rasters(original(place, message))[0] == raster_of(pages[0])
        person = received["103"]
        assert person.original is None
        assert person.engine is not None
        assert (person.engine.status, person.engine.pages) == ("FAILED", 0)
        assert [r.ending for r in um.records] == [Ending.CONNECTED] * 3


async def test_umpack_killed_in_mid_page_and_all_is_adopted_whole(lab: Lab, place: Path) -> None:
    pages = [page(1), page(2, rows=60, dense=True)]
    file = fax_file(place, "a", pages)
    spool = place / "spool"
    with ReceivingProcess(lab, SITE, spool) as process:
        await asyncio.to_thread(Machine(file, "101").start, lab, "killed")
        await until(lambda: _first_page_is_there(spool), 60)
        speak(lab, "1000/8000,0/60000", wait=60, called="301")
        await until(lambda: any(f.stat().st_size > 5000 for f in spool.glob("receiving/*.wav")))
        process.kill()
    with DiskSpool(spool, "lab", limits=NO_RESERVE, quiet=0.0) as store:
        assert store.adopt().adopted == ()  # the engines have their files open
    told = await asyncio.to_thread(sent, lab, "killed")
    assert told[:2] == ("SUCCESS", "2")
    await asyncio.to_thread(lab.wait_channels, 0)
    with DiskSpool(spool, "lab", limits=NO_RESERVE, quiet=0.0) as store:
        assert len(store.adopt().adopted) == 2
        received = {message.call.called: message for message in store.messages()}
        message = received["101"]
        assert message.call.caller == "0301234"
        assert message.call.channel == "fax:1"
        assert message.adopted == "umpack was away at its call's end"
        assert message.answered is not None
        engine = message.engine
        assert engine is not None
        assert (engine.status, engine.pages, engine.error) == ("SUCCESS", 2, "")
        assert (engine.bitrate, engine.ecm, engine.resolution) == (14400, True, "204x98")
        assert (engine.t38, engine.station) == (False, b"+49 30 1234")
        assert engine.seconds is not None
        assert 5 < engine.seconds < 120
        assert await _judged(original(place, message), message) is Outcome.WHOLE
        assert os.listdir(spool / "receiving") == []
        assert rasters(original(place, message)) == [raster_of(image) for image in pages]
        samples = _samples(original(place, received["301"]))
        assert len(samples) > 8000
        assert loudness(samples, 1000) > 0.9
        assert store.adopt().adopted == ()


@pytest.mark.parametrize(
    ("called", "point"),
    [
        ("101", TakingPoint.BEFORE_ENGINE),
        ("101", TakingPoint.ENGINE_DONE),
        ("401", TakingPoint.FACTS_READ),
    ],
)
async def test_umpack_dies_at_a_step_of_a_fax(
    lab: Lab, place: Path, called: str, point: TakingPoint
) -> None:
    pages = [page(1)]
    spool = place / "spool"
    with ReceivingProcess(lab, SITE, spool, point) as process:
        machine = Machine(fax_file(place, "a", pages), called)
        await asyncio.to_thread(machine.start, lab, point.name)
        assert await asyncio.to_thread(process.wait, 90) == -signal.SIGKILL
    told = await asyncio.to_thread(sent, lab, point.name)
    await asyncio.to_thread(lab.wait_channels, 0)
    with DiskSpool(spool, "lab", limits=NO_RESERVE, quiet=0.0) as store:
        (id_,) = store.adopt().adopted
        message = store.message(id_)
        (only,) = store.messages()
        assert (only.id, message.call.kind, message.call.called) == (id_, Kind.FAX, called)
        engine = message.engine
        assert engine is not None
        if point is TakingPoint.BEFORE_ENGINE:  # the engine was never told to begin
            assert told[0] != "SUCCESS"
            assert message.original is None
            assert outcome(message) is Outcome.FAILED
        else:
            assert told[:2] == ("SUCCESS", "1")
            assert (engine.status, engine.pages, engine.ecm) == ("SUCCESS", 1, True)
            assert await _judged(original(place, message), message) is Outcome.WHOLE
            assert rasters(original(place, message)) == [raster_of(image) for image in pages]
        assert os.listdir(spool / "receiving") == []


async def test_umpack_dies_while_it_listens_and_the_call_has_its_record(
    lab: Lab, place: Path
) -> None:
    spool = place / "spool"
    with ReceivingProcess(lab, SITE, spool, TakingPoint.ANSWERED) as process:
        speak(lab, "440", wait=20, leaves=15, called="401")
        assert await asyncio.to_thread(process.wait, 90) == -signal.SIGKILL
    await asyncio.to_thread(lab.wait_channels, 0)
    with DiskSpool(spool, "lab", limits=NO_RESERVE, quiet=0.0) as store:
        (id_,) = store.adopt().adopted
        message = store.message(id_)
        assert (message.call.called, message.call.caller) == ("401", "0301234")


async def test_asterisk_killed_in_mid_page_and_umpack_adopts_what_it_left(
    lab: Lab, place: Path
) -> None:
    pages = [page(1), page(2, rows=600, dense=True)]
    file = fax_file(place, "a", pages)
    spool = place / "spool"
    async with receiving(lab, SITE, spool, times=AT_ONCE) as um:
        await asyncio.to_thread(Machine(file, "101").start, lab, "crash")
        await until(lambda: _first_page_is_there(spool), 60)
        speak(lab, "1000", wait=60, called="301")
        await until(lambda: any(f.stat().st_size > 9000 for f in spool.glob("receiving/*.wav")))
        await asyncio.to_thread(lab.kill)
        try:
            await um.idle()
            assert [record.ending for record in um.records] == [Ending.CONNECTED] * 2
            assert len((await um.spool.adopt()).adopted) == 2
            received = await by_called(um)
            assert {m.call.call for m in received.values()} == {r.call.id for r in um.records}
            assert rasters(original(place, received["101"]))[:1] == [raster_of(pages[0])]
            assert original(place, received["301"]).stat().st_size > 9000
        finally:
            await asyncio.to_thread(lab.start)


async def test_without_room_a_call_is_refused_before_it_is_answered(lab: Lab, place: Path) -> None:
    full = SpoolLimits(reserve_bytes=10**18)
    with Server.answering(port=port_of(lab, "um1")) as um1:
        async with receiving(lab, SITE, place / "spool", limits=full) as um:
            for called in ("101", "301", "401"):
                results = await asyncio.to_thread(Caller(called).run, lab.sip_port)
                assert finals(results) == {503: 1}
            results = await asyncio.to_thread(Caller("501").run, lab.sip_port)
            assert finals(results) == {200: 1}
            assert await um.spool.messages() == []
            *refused, served = um.records
            for record in refused:
                assert (record.ending, record.reason) == (Ending.REFUSED, Reason.ATTEMPTS_FAILED)
                assert record.answered is None
                assert "disk is full" in record.attempts[0].outcome.detail
            assert [a.trunk for a in served.attempts] == ["fax", "um1"]
            assert [a.outcome.result for a in served.attempts] == [Result.REFUSED, Result.ANSWERED]
            assert len(um1.calls()) == 1
            # Nobody is to blame for a full disk: the ports are as good as before.
            assert {h.admission.name for h in um.distributor.health.values()} == {"OPEN"}


async def test_people_are_recorded_until_they_stop(lab: Lab, place: Path) -> None:
    async with receiving(lab, SITE, place / "spool", times=AT_ONCE) as um:
        speak(lab, "1000", wait=60, leaves=4, called="301")
        speak(lab, "1000/4000,0/60000", wait=60, called="302")
        speak(lab, "1000", wait=4, key="#", called="303")
        speak(lab, "1000", wait=60, called="304")
        speak(lab, "1000", wait=60, leaves=0.7, called="305")  # before the greeting is over
        speak(lab, "0", wait=60, called="306")  # says nothing, and stays
        await until(lambda: len(um.records) == 6, 60)
        await um.idle()
        received = await by_called(um)
        for called in ("301", "302", "303", "304"):
            message = received[called]
            assert message.call.kind is Kind.VOICE
            engine = message.engine
            assert engine is not None
            assert engine.status == "SUCCESS", engine
            samples = _samples(original(place, message))
            assert engine.seconds == pytest.approx(len(samples) / 8000, abs=0.1)
            assert loudness(samples, 1000) > 0.9
            assert loudness(samples, 1400) < 0.02
            assert engine.error == ("cut off after 6 s" if called == "304" else "")
        assert received["304"].engine is not None
        assert received["304"].engine.seconds == pytest.approx(6.0, abs=0.1)
        empty = received["305"]
        assert empty.original is None
        assert empty.engine is not None
        assert empty.engine.status == "FAILED"
        silent = received["306"]
        assert silent.engine is not None
        assert silent.engine.error == NOTHING_SAID
        assert outcome(silent) is Outcome.EMPTY
        assert {m.call.channel for m in received.values()} == {f"voice:{n}" for n in range(1, 7)}
        assert um.complaints == []


async def test_one_number_for_both(lab: Lab, place: Path) -> None:
    pages = [page(1), page(2)]
    file = fax_file(place, "a", pages)
    async with receiving(lab, SITE, place / "spool", times=AT_ONCE) as um:
        await asyncio.to_thread(Machine(file, "401").start, lab, "auto")
        speak(lab, "440", wait=60, leaves=9, called="402")
        told = await asyncio.to_thread(sent, lab, "auto")
        assert told[:2] == ("SUCCESS", "2")
        await um.idle()
        received = await by_called(um)
        assert received["401"].call.kind is Kind.FAX
        assert rasters(original(place, received["401"])) == [raster_of(image) for image in pages]
        assert received["402"].call.kind is Kind.VOICE
        assert loudness(_samples(original(place, received["402"])), 440) > 0.9
        assert um.complaints == []


async def test_without_umpack_services_are_passed_over(lab: Lab) -> None:
    load(lab, SITE, free_port())
    with Server.answering(port=port_of(lab, "um1")) as um1:
        for called, status in (("101", 503), ("301", 503), ("501", 200)):
            results = await asyncio.to_thread(Caller(called).run, lab.sip_port)
            assert finals(results) == {status: 1}, called
        assert len(um1.calls()) == 1


async def _judged(file: Path, message: Message) -> Outcome:
    """What its mail will call it."""
    engine_pages = message.engine.pages if message.engine else None
    document = await convert(file, engine_pages, ConversionLimits())
    return outcome(replace(message, document=document.verdict.facts()))


def _first_page_is_there(spool: Path) -> bool:
    return any(file.stat().st_size > 600 for file in spool.glob("receiving/*.tif"))


def _samples(file: Path) -> array.array[int]:
    with wave.open(str(file)) as sound:
        assert (sound.getframerate(), sound.getsampwidth(), sound.getnchannels()) == (8000, 2, 1)
        return array.array("h", sound.readframes(sound.getnframes()))
