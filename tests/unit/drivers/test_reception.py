"""Services over AGI: simulated PBX, real driver, real spool."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from loguru import logger

from drivers.asterisk.agi import AgiAnswer
from drivers.asterisk.ami import AmiAddress
from drivers.asterisk.driver import AsteriskDriver, AsteriskPlan
from drivers.asterisk.fax_facts import FAX_VARIABLES, fax_facts, unanswered, voice_facts
from drivers.asterisk.reception import Reception, ReceptionTimes
from drivers.asterisk.taking_points import TakingPoint
from simulators.asterisk import PbxPlan, SimulatedAsterisk
from simulators.pbx_reception import FaxMachine, Speaker
from tests.sites import MESSAGES
from umpack import clock
from umpack.config import parse
from umpack.core.calls import CallRecord, Ending, Reason
from umpack.core.causes import Result
from umpack.core.distributor import Distributor
from umpack.core.errors import StateError
from umpack.core.trunk import PbxId
from umpack.mailroom import LivingCalls
from umpack.messages.message import CallFacts, EngineFacts, Intent, Kind, Message, MessageId
from umpack.messages.spool import Spool
from umpack.messages.spool_health import SpoolLimits
from umpack.messages.spool_schema import SpoolFault
from umpack.messages.states import MessageState
from umpack.messages.voice import NOTHING_SAID

MAIN = PbxId("main")
SITE = (
    MESSAGES
    + """
pbx: {main: {ami: {user: u, secret: s}}}
trunks:
  fax: {kind: fax, channels: 2, station: "+49 30 99", max_rate: 9600}
  voice: {kind: voice, channels: 2, longest: 60s, silence: 3s, greeting: hello, language: de}
  auto: {kind: auto, channels: 2, greeting: hello}
packs:
  fax: {members: [fax], strategy: cyclic, overflow: [auto]}
  voice: {members: [voice]}
  auto: {members: [auto]}
routes:
  - {called: "1XX", pack: fax}
  - {called: "2XX", pack: voice}
  - {called: "3XX", pack: auto}
"""
)
NO_RESERVE = SpoolLimits(reserve_bytes=0, slow_after=60.0)
TIFF = b"II*\0" + bytes(range(200))
FAX = FaxMachine(TIFF, pages=2, seconds=5.0, station="+49 30\x1f\n1")
SPEECH = Speaker(b"RIFF".ljust(44, b"\0") + bytes(16000 * 10), 10.0)


@dataclass
class Rig:
    """A PBX and umpack; a hundred of its seconds pass in one."""

    pbx: SimulatedAsterisk
    distributor: Distributor
    driver: AsteriskDriver
    spool: Spool
    complaints: list[str]

    async def call(self, called: str, **more: object) -> None:
        await self.pbx.call(called, "0301234", "Müller", **{"hold": 60.0, **more})  # type: ignore[arg-type]

    async def message(self) -> Message:
        (message,) = await self.spool.messages()
        return message

    def record(self) -> CallRecord:
        (record,) = self.distributor.take_records()
        return record

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.005)


@asynccontextmanager
async def rig(
    directory: Path,
    *,
    limits: SpoolLimits = NO_RESERVE,
    plan: PbxPlan | None = None,
    reach: Callable[[TakingPoint], None] = lambda _: None,
) -> AsyncIterator[Rig]:
    async with Spool(directory, "n", limits=limits, quiet=0.0) as spool:
        reception = Reception(spool, clock.now, spool.disk.abort, ReceptionTimes(), reach)
        async with beside(reception, plan) as (pbx, distributor, driver, complaints):
            yield Rig(pbx, distributor, driver, spool, complaints)


@asynccontextmanager
async def beside(
    reception: Reception | None, plan: PbxPlan | None = None
) -> AsyncIterator[tuple[SimulatedAsterisk, Distributor, AsteriskDriver, list[str]]]:
    distributor = Distributor(parse(SITE, "site.yaml").site)
    driver = AsteriskDriver(
        AsteriskPlan(MAIN, "127.0.0.1", 0, None), distributor, clock.now, reception=reception
    )
    complaints: list[str] = []
    sink = logger.add(lambda line: complaints.append(str(line)), level="WARNING")
    await driver.start()
    try:
        async with SimulatedAsterisk(plan or PbxPlan(speed=100.0)) as pbx:
            pbx.agi_to("127.0.0.1", driver.agi_port)
            yield pbx, distributor, driver, complaints
    finally:
        await driver.close(0.0)
        logger.remove(sink)


async def test_a_fax_is_in_the_spool_with_all_its_facts(tmp_path: Path) -> None:
    async with rig(tmp_path) as umpack:
        await umpack.call("100", brings=FAX)
        message, record = await umpack.message(), umpack.record()
        assert message.state is MessageState.COMMITTED
        assert message.original is not None
        assert (tmp_path / message.original.file).read_bytes() == TIFF
        assert message.original.file.endswith("original.tif")
        seconds = message.engine.seconds if message.engine else None
        assert message.engine == EngineFacts(
            status="SUCCESS", pages=2, bitrate=14400, resolution="204x98", t38=False,
            station=b"+49 301", seconds=seconds,
        )  # fmt: skip
        assert message.call == CallFacts(
            record.call.id, Kind.FAX, "100", "0301234", b"0301234", "Müller",
            "Müller".encode(), "main", "fax:1",
        )  # fmt: skip
        assert record.ending is Ending.CONNECTED
        assert record.answered is not None
        assert record.attempts[0].outcome.detail == f"{message.id}: SUCCESS"
        assert len(umpack.distributor.ledger) == 0
        assert umpack.complaints == []


async def test_the_intent_is_durable_before_the_engine_begins(tmp_path: Path) -> None:
    async with rig(tmp_path, plan=PbxPlan(speed=1.0)) as umpack:
        call = asyncio.create_task(umpack.call("100", brings=FAX))
        await umpack.until(lambda: bool(list(tmp_path.glob("receiving/*.tif"))))
        message = await umpack.message()
        assert (message.state, message.original) == (MessageState.RECEIVING, None)
        assert len(umpack.distributor.ledger) == 1
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)


async def test_a_port_for_both_has_its_record_before_the_answer(tmp_path: Path) -> None:
    reached: list[TakingPoint] = []
    async with rig(tmp_path, plan=PbxPlan(speed=10.0), reach=reached.append) as umpack:
        call = asyncio.create_task(umpack.call("300", brings=FAX))
        await umpack.until(lambda: TakingPoint.ANSWERED in reached)
        listening = await umpack.message()
        assert (listening.state, listening.call.kind) == (MessageState.RECEIVING, Kind.VOICE)
        await umpack.until(lambda: TakingPoint.BEFORE_ENGINE in reached)
        heard = await umpack.message()
        assert (heard.id, heard.call.kind) == (listening.id, Kind.FAX)
        assert [file.suffix for file in (tmp_path / "receiving").iterdir()] == [".tif"]
        await call
        assert (await umpack.message()).state is MessageState.COMMITTED
        assert reached == list(TakingPoint)


async def test_umpack_dies_while_it_listens_and_the_call_has_its_record(tmp_path: Path) -> None:
    reached: list[TakingPoint] = []
    async with rig(tmp_path, plan=PbxPlan(speed=1.0), reach=reached.append) as umpack:
        call = asyncio.create_task(umpack.call("300", brings=FAX))
        await umpack.until(lambda: TakingPoint.ANSWERED in reached)
        assert await umpack.driver.close(0.0) == 1
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        (id_,) = (await umpack.spool.adopt()).adopted
        message = await umpack.spool.message(id_)
        assert message.call.caller == "0301234"
        assert message.answered is not None
        assert message.original is None


async def test_a_fault_of_ours_leaves_nothing_live(tmp_path: Path) -> None:
    """What is not the disk's is nobody's to try again: adoption has it at once."""

    def fall(point: TakingPoint) -> None:
        if point is TakingPoint.FACTS_READ:
            raise RuntimeError("a fault of ours")

    async with rig(tmp_path, reach=fall) as umpack:
        await umpack.call("100", brings=FAX)
        await umpack.until(lambda: umpack.spool.disk.live == frozenset())
        (id_,) = (await umpack.spool.adopt()).adopted
        message = await umpack.spool.message(id_)
        assert message.original is not None
        assert message.engine is not None
        assert message.engine.status == "SUCCESS"  # the PBX has written it down


async def test_bytes_that_are_no_text_are_kept_as_they_came(tmp_path: Path) -> None:
    async with rig(tmp_path) as umpack:
        name = b"M\xfcller \xff\xc3".decode("utf-8", "surrogateescape")
        await umpack.pbx.call("100", "0301234", name, hold=60.0, brings=FAX)
        message, record = await umpack.message(), umpack.record()
        assert message.call.caller_name_raw == b"M\xfcller \xff\xc3"
        assert message.call.caller_name == "Müller ÿÃ"
        assert record.call.caller_name == "M\ufffdller \ufffd\ufffd"
        assert umpack.complaints == []


async def test_a_caller_who_leaves_in_mid_fax_leaves_a_record(tmp_path: Path) -> None:
    async with rig(tmp_path) as umpack:
        await umpack.call("100", brings=FaxMachine(TIFF, 3, 50.0), hold=10.0)
        message = await umpack.message()
        assert message.engine is not None
        assert (message.engine.status, message.engine.pages) == ("FAILED", 0)
        assert message.engine.error == "HANGUP: The call dropped prematurely"
        assert message.original is None
        assert umpack.record().ending is Ending.CONNECTED


async def test_a_person_on_a_fax_number_leaves_a_record(tmp_path: Path) -> None:
    async with rig(tmp_path) as umpack:
        await umpack.call("100", hold=None)
        message = await umpack.message()
        assert message.engine is not None
        assert message.engine.error == "TIMEOUT: Timed out"
        assert umpack.record().ending is Ending.CONNECTED


@pytest.mark.parametrize("called", ["100", "200", "300"])
async def test_without_room_nobody_is_answered(tmp_path: Path, called: str) -> None:
    async with rig(tmp_path, limits=SpoolLimits(reserve_bytes=10**18)) as umpack:
        result = await umpack.pbx.call(called, hold=60.0, brings=FAX)
        assert (result.sip, result.answered) == (503, False)
        record = umpack.record()
        assert (record.ending, record.reason) == (Ending.REFUSED, Reason.ATTEMPTS_FAILED)
        # Its overflow pack was tried, too.
        assert [a.trunk for a in record.attempts] == {
            "100": ["fax", "auto"], "200": ["voice"], "300": ["auto"]
        }[called]  # fmt: skip
        assert {a.outcome.result for a in record.attempts} == {Result.REFUSED}
        assert await umpack.spool.messages() == []
        assert {h.admission.name for h in umpack.distributor.health.values()} == {"OPEN"}


async def test_ports_are_leased_like_channels(tmp_path: Path) -> None:
    async with rig(tmp_path, plan=PbxPlan(speed=10.0)) as umpack:
        slow = FaxMachine(TIFF, 1, 20.0)
        calls = [asyncio.create_task(umpack.call(f"10{n}", brings=slow)) for n in range(4)]
        await umpack.until(lambda: len(umpack.distributor.ledger) == 4)
        result = await umpack.pbx.call("105", brings=slow)
        assert result.sip == 503
        assert umpack.record().reason is Reason.FULL
        await asyncio.gather(*calls)
        messages = await umpack.spool.messages()
        assert sorted(m.call.channel for m in messages) == ["auto:1", "auto:2", "fax:1", "fax:2"]
        assert {m.call.kind for m in messages} == {Kind.FAX}
        await umpack.call("100", brings=FAX)
        await umpack.call("100", brings=FAX)
        again = (await umpack.spool.messages(limit=2))[::-1]
        assert [m.call.channel for m in again] == ["fax:1", "fax:2"]  # cyclic


async def test_a_voice_message_is_recorded(tmp_path: Path) -> None:
    async with rig(tmp_path) as umpack:
        await umpack.call("200", brings=SPEECH)
        message = await umpack.message()
        assert message.call.kind is Kind.VOICE
        assert message.engine is not None
        assert message.engine.status == "SUCCESS"
        assert message.engine.seconds == pytest.approx(10.0)
        assert message.original is not None
        assert message.original.file.endswith("original.wav")
        assert (tmp_path / message.original.file).read_bytes() == SPEECH.wav


async def test_a_pbx_without_the_beep_records_without_it(tmp_path: Path) -> None:
    """RECORD FILE ends at once where the sound is not there; the caller must not."""
    async with rig(tmp_path, plan=PbxPlan(speed=100.0, beep=False)) as umpack:
        await umpack.call("200", brings=SPEECH)
        message = await umpack.message()
        assert message.engine is not None
        assert (message.engine.status, message.engine.error) == ("SUCCESS", "")
        assert message.original is not None
        (complaint,) = umpack.complaints
        assert "voice:1: the beep cannot be played" in complaint


async def test_a_caller_who_leaves_during_the_greeting_leaves_a_record(tmp_path: Path) -> None:
    async with rig(tmp_path, plan=PbxPlan(speed=10.0)) as umpack:
        await umpack.call("200", brings=SPEECH, hold=1.0)
        message = await umpack.message()
        assert message.original is None
        assert message.engine == EngineFacts(
            "FAILED", "hung up before the message", seconds=0.0, cause=16
        )
        assert umpack.complaints == []


@pytest.mark.parametrize(("brings", "kind"), [(FAX, Kind.FAX), (SPEECH, Kind.VOICE)])
async def test_one_number_for_both(
    tmp_path: Path, brings: FaxMachine | Speaker, kind: Kind
) -> None:
    async with rig(tmp_path) as umpack:
        await umpack.call("300", brings=brings)
        message = await umpack.message()
        assert message.call.kind is kind
        assert message.engine is not None
        assert message.engine.status == "SUCCESS"
        assert message.original is not None


async def test_a_pbx_without_fax_engine_is_to_blame(tmp_path: Path) -> None:
    async with rig(tmp_path, plan=PbxPlan(speed=100.0, fax_engine=False)) as umpack:
        result = await umpack.pbx.call("100", brings=FAX)
        assert not result.answered
        (attempt, _) = umpack.record().attempts
        assert attempt.outcome.detail == "the PBX has no fax engine"
        assert attempt.verdict.blame.name == "TRUNK"
        assert await umpack.spool.messages() == []


async def test_without_a_spool_nobody_is_answered() -> None:
    async with beside(None) as (pbx, distributor, _, _):
        result = await pbx.call("200", brings=SPEECH)
        assert not result.answered
        (record,) = distributor.take_records()
        assert record.attempts[0].outcome.detail == "no spool is configured"


async def test_what_umpack_leaves_running_is_adopted(tmp_path: Path) -> None:
    async with rig(tmp_path, plan=PbxPlan(speed=10.0)) as umpack:
        call = asyncio.create_task(umpack.call("100", brings=FaxMachine(TIFF, 1, 10.0)))
        await umpack.until(lambda: bool(list(tmp_path.glob("receiving/*.tif"))))
        await umpack.until(lambda: any(c.application == "ReceiveFAX" for c in umpack.pbx.channels))
        assert await umpack.driver.close(0.0) == 1
        assert umpack.record().ending is Ending.CONNECTED
        await call  # the engine has gone on
        (id_,) = (await umpack.spool.adopt()).adopted
        message = await umpack.spool.message(id_)
        assert message.original is not None
        assert (tmp_path / message.original.file).read_bytes() == TIFF
        assert message.engine is not None
        assert (message.engine.status, message.engine.pages) == ("SUCCESS", 1)
        assert list((tmp_path / "receiving").iterdir()) == []


async def test_a_fax_that_outlives_umpack_keeps_its_port_and_is_left_alone(tmp_path: Path) -> None:
    async with rig(tmp_path, plan=PbxPlan(speed=1.0)) as umpack:
        slow = asyncio.create_task(umpack.call("100", brings=FaxMachine(TIFF, 1, 30.0)))
        await umpack.until(lambda: any(c.application == "ReceiveFAX" for c in umpack.pbx.channels))
        await umpack.driver.close(0.0)
        message = await umpack.message()
        # The next umpack: the same spool, and nothing else that knows of the call.
        distributor = Distributor(parse(SITE, "site.yaml").site)
        ami = AmiAddress("127.0.0.1", umpack.pbx.ami.port, "umpack", "umpack")
        reception = Reception(umpack.spool, clock.now, umpack.spool.disk.abort)
        driver = AsteriskDriver(
            AsteriskPlan(MAIN, "127.0.0.1", 0, ami), distributor, clock.now, reception=reception
        )
        await driver.start()
        try:
            umpack.pbx.agi_to("127.0.0.1", driver.agi_port)
            await umpack.until(lambda: len(distributor.ledger) == 1)
            (lease,) = distributor.ledger
            assert (lease.channel.id, lease.pack) == ("fax:1", None)
            alive = LivingCalls([offer.call.id for offer in distributor.calls])
            assert message.call.call in alive
            # `quiet` is nothing here: this alone keeps it from being taken for over.
            assert (await umpack.spool.adopt(alive)).left == (message.id,)
            second = asyncio.create_task(umpack.call("101", brings=FaxMachine(TIFF, 1, 30.0)))
            await umpack.until(lambda: len(distributor.ledger) == 2)
            assert {held.channel.id for held in distributor.ledger} == {"fax:1", "fax:2"}
            slow.cancel()
            second.cancel()
            await asyncio.gather(slow, second, return_exceptions=True)
        finally:
            await driver.close(0.0)


async def test_what_a_dead_pbx_leaves_is_adopted(tmp_path: Path) -> None:
    async with rig(tmp_path, plan=PbxPlan(speed=1.0)) as umpack:
        call = asyncio.create_task(umpack.call("200", brings=SPEECH))
        await umpack.until(lambda: bool(list(tmp_path.glob("receiving/*.wav"))))
        assert (await umpack.spool.adopt()).adopted == ()
        await umpack.pbx.crash()
        await call
        await umpack.until(lambda: len(umpack.distributor.ledger) == 0)
        (id_,) = (await umpack.spool.adopt()).adopted
        assert (await umpack.spool.message(id_)).call.kind is Kind.VOICE


class FailingStore:
    """A spool whose disk fails at one step."""

    def __init__(self, step: str, directory: Path) -> None:
        self.step = step
        self.path = directory / "x.tif"
        self.calls: list[CallFacts] = []
        self.answered: list[MessageId] = []
        self.engines: list[EngineFacts] = []

    async def room_for(self, pages: int = 0, seconds: float = 0.0) -> str:
        return ""

    async def intend(
        self, call: CallFacts, name: str = "", *, pages: int = 0, seconds: float = 0.0
    ) -> Intent:
        if self.step == "intend":
            raise SpoolFault("spool: no space left")
        self.calls.append(call)
        path = f"{self.path},F" if self.step == "path" else str(self.path)
        return Intent(MessageId("m1"), path)

    async def recast(self, id_: MessageId, kind: Kind, name: str) -> Intent:
        if self.step == "recast":
            raise SpoolFault("spool: no space left")
        return Intent(id_, str(self.path))

    def note_answered(self, id_: MessageId) -> None:
        self.answered.append(id_)

    async def receiving(self) -> list[Message]:
        raise SpoolFault("spool: input/output error")

    async def commit(self, id_: MessageId, engine: EngineFacts) -> Message:
        self.engines.append(engine)
        if self.step == "commit":
            raise SpoolFault("spool: input/output error")
        if self.step == "unknown":
            raise StateError("no message")
        return Message(id_, "n", MessageState.COMMITTED, self.calls[-1], "original.tif", 0.0)


@pytest.mark.parametrize(
    ("step", "called", "answered"),
    [
        ("intend", "100", False),
        ("intend", "300", False),
        ("path", "100", False),
        ("path", "300", False),
        ("recast", "300", True),
        ("commit", "100", True),
        ("unknown", "100", True),
    ],
)
async def test_a_disk_that_fails_at_a_step(
    tmp_path: Path, step: str, called: str, answered: bool
) -> None:
    lost: list[MessageId] = []
    store = FailingStore(step, tmp_path)
    reception = Reception(store, clock.now, lost.append)
    async with beside(reception, PbxPlan(speed=100.0)) as (pbx, distributor, _, complaints):
        result = await pbx.call(called, brings=FAX, hold=60.0)
        (record,) = distributor.take_records()
        first = record.attempts[0]
        assert (first.outcome.result is Result.ANSWERED) is answered
        if answered:
            assert result.answered
            assert len(complaints) == 1
        assert store.answered == (["m1"] if answered else [])
        # Owed is what the spool will try again; for all else there is adoption.
        assert lost == (["m1"] if step == "unknown" else [])
        if step == "recast":
            (engine,) = store.engines
            assert (engine.status, engine.pages) == ("FAILED", None)


def facts(**values: str) -> EngineFacts:
    given = {"FAXSTATUS": "SUCCESS", "FAXPAGES": "1", "FAXOPT(ecm)": "yes", **values}
    row = [given.get(name, "") for name in FAX_VARIABLES]
    return fax_facts(row, station="", seconds=1.0, ecm_allowed=True)


def test_an_engine_that_said_nothing_has_failed() -> None:
    told = facts(FAXSTATUS="", FAXPAGES="")
    assert (told.status, told.pages) == ("FAILED", 0)
    assert told.error == "the fax engine did not begin"


def test_words_of_asterisk() -> None:
    assert facts(FAXRESOLUTION="8031x7700").resolution == "204x196"
    assert facts(FAXRESOLUTION="16063x15400").resolution == "408x391"
    assert facts(FAXRESOLUTION="0x0").resolution == ""
    assert facts(FAXRESOLUTION="<x>").resolution == ""
    assert facts(FAXMODE="T38").t38 is True
    assert facts(FAXMODE="audio").t38 is False
    assert facts().t38 is None
    assert facts().ecm is None
    assert facts(**{"FAXOPT(ecm)": "no"}).ecm is False
    assert facts(HANGUPCAUSE="16").cause == 16
    assert facts(FAXBITRATE="x").bitrate is None
    assert facts(FAXERROR="HANGUP").error == ""  # who sent it all may hang up
    failed = facts(FAXSTATUS="FAILED", FAXERROR="HANGUP", **{"FAXOPT(statusstr)": "HANGUP"})
    assert failed.error == "HANGUP"


@pytest.mark.parametrize(
    ("answer", "status", "error", "seconds"),
    [
        (AgiAnswer(200, 35, "dtmf", (("endpos", "16000"),)), "SUCCESS", "", 2.0),
        (AgiAnswer(200, -1, "hangup", (("endpos", "8000"),)), "SUCCESS", "", 1.0),
        (AgiAnswer(200, 0, "timeout", (("endpos", "48000"),)), "SUCCESS", "cut off after 6 s", 6.0),
        (AgiAnswer(200, -1, "writefile", (("endpos", "800"),)), "FAILED", "writefile", 0.1),
        (AgiAnswer(200, -1, "", ()), "FAILED", "RECORD FILE: 200 -1", 0.0),
        (AgiAnswer(511, "", "Command Not Permitted"), "FAILED", "hung up before the message", 0.0),
    ],
)
def test_how_a_recording_ends(answer: AgiAnswer, status: str, error: str, seconds: float) -> None:
    told = voice_facts(answer, longest=6.0, cause="16")
    assert told == EngineFacts(status, error, seconds=seconds, cause=16)


@pytest.mark.parametrize(
    ("answer", "lasted", "error"),
    [
        # Two seconds of silence end it, and one of them is left: as Asterisk 22 tells it.
        (AgiAnswer(200, 0, "timeout", (("endpos", "8160"),)), 2.1, NOTHING_SAID),
        (AgiAnswer(200, 0, "timeout", (("endpos", "10400"),)), 2.4, ""),  # "yes"
        # A line that sends sound only while somebody speaks has no silence to be heard.
        (AgiAnswer(200, 0, "timeout", (("endpos", "8160"),)), 6.0, ""),
        (AgiAnswer(200, 35, "dtmf", (("endpos", "8160"),)), 1.1, ""),
        (AgiAnswer(200, -1, "hangup", (("endpos", "8160"),)), 1.1, ""),
    ],
)
def test_silence_is_no_message(answer: AgiAnswer, lasted: float, error: str) -> None:
    told = voice_facts(answer, longest=6.0, cause="", lasted=lasted)
    assert (told.status, told.error) == ("SUCCESS", error)


def test_no_answer_no_pages() -> None:
    assert unanswered("x") == EngineFacts("FAILED", "x")
