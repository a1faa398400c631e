"""A call that umpack takes itself: a fax or a voice message into the spool, over one connection.

    room? → what the PBX can → intent durable → Answer → ReceiveFAX or RECORD FILE → facts → commit

Up to the answer every obstacle is a refusal: the call goes to another port, to the overflow packs,
or back to the exchange, and nobody believes that anything was sent. From the answer on everything
is one record, an empty one too. If umpack is killed in between, Asterisk goes on to the end of the
fax (tried on Asterisk 22), and file and intent are adopted at the next start.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from loguru import logger

from drivers.asterisk.agi import AgiAnswer
from drivers.asterisk.agi_call import AgiCall
from drivers.asterisk.agi_commands import (
    AgiCommand,
    command,
    exec_,
    get_full_variable,
    set_variable,
)
from drivers.asterisk.fax_facts import (
    FAX_VARIABLES,
    call_facts,
    fax_facts,
    unanswered,
    voice_facts,
)
from drivers.base import Clock
from umpack.core.calls import Assignment, Call
from umpack.core.causes import Outcome, Result
from umpack.core.errors import OurFault, PeerFault
from umpack.core.service import FaxOptions, Service, VoiceOptions
from umpack.core.trunk import TrunkKind
from umpack.messages.message import (
    CallFacts,
    EngineFacts,
    Intent,
    Kind,
    Message,
    MessageId,
)

NO_ROOM = 42
"""Q.850, switching equipment congestion: try elsewhere, and blame nobody. The port is as good as
before when there is room again, and the spool has an alarm of its own."""
NO_ENGINE = 66
"""Q.850: not implemented, by this PBX. Try elsewhere, and the service is to blame."""

_LIMIT = 5.0
"""Seconds Asterisk may take over a command that does not wait for the line."""
_SLACK = 30.0
"""Seconds beyond its own length that a greeting or recording may take."""
_LONGEST_GREETING = 300.0
_PATH: Final = re.compile(r"/[0-9A-Za-z._/+-]+")
"""ReceiveFAX parts its argument at commas, and Asterisk's file functions know `&` and `|`."""

# Asterisk's REPLACE() takes the variable's name, so that no text of the caller's is ever evaluated;
# a line break would end the answer, and a NUL never comes, as Asterisk's texts are C strings.
_STATION: Final = command(
    "GET FULL VARIABLE",
    "${REPLACE(REMOTESTATIONID," + "".join(rf"\\x{c:02x}" for c in (*range(1, 32), 127)) + ")}",
)
# The rates by themselves are only checked against the modems and limit nothing (tried, and read in
# res_fax_spandsp.c); but they must fit them, or ReceiveFAX ends at once.
_MODEMS: Final = {
    4800: {"modem": "v27", "minrate": "2400", "maxrate": "4800"},
    9600: {"modem": "v27,v29", "minrate": "4800", "maxrate": "9600"},
}
_TONE: Final = "TONE_DETECT(1100,400,r)"
"""CNG (T.30 4.3.3): 1100 Hz for half a second, then three seconds of silence."""
_TONES: Final = "TONE_DETECT(rx)"
_NO_TONE: Final = "TONE_DETECT(0,,x)"


class ReceptionStore(Protocol):
    """What is needed of the spool; see `umpack.messages.store.MessageStore`."""

    async def room_for(self, pages: int = 0, seconds: float = 0.0) -> str:
        """Why a call should not be answered."""

    async def intend(
        self, call: CallFacts, name: str = ..., *, pages: int = 0, seconds: float = 0.0
    ) -> Intent:
        """A call is about to be answered."""

    async def commit(self, id_: MessageId, engine: EngineFacts) -> Message:
        """Its call is over."""


@dataclass(frozen=True, slots=True)
class ReceptionTimes:
    """Seconds."""

    before_ced: float = 1.8
    """From the answer to CED: the line needs time to be there (T.30 4.3.3: 1.8 to 2.5 s)."""
    before_speech: float = 0.5
    listening: float = 4.2
    """For CNG, from the answer on: one whole tone and pause, and a little."""


class Reception:
    """Takes the calls of services; one instance for all PBXs and ports.

    `lost` is told of an intent whose call's end nobody here will see: adoption may have it.
    """

    pages_kept = 20
    """Pages for which room is kept while a fax comes in; most have three."""

    def __init__(
        self,
        store: ReceptionStore,
        clock: Clock,
        lost: Callable[[MessageId], None],
        times: ReceptionTimes | None = None,
    ) -> None:
        self._store = store
        self._now = clock
        self._lost = lost
        self._times = times or ReceptionTimes()

    async def take(
        self, agi: AgiCall, assignment: Assignment, call: Call, answered: Callable[[], None]
    ) -> Outcome:
        """Take the call that was assigned to a service's port, to its end.

        `answered` is called when the caller has been answered. Raises `PeerFault` when the
        connection to Asterisk ends before the reception does.
        """
        trunk = assignment.lease.channel.trunk
        if agi.hung_up:
            return Outcome(Result.HUNG_UP, detail="before the answer")
        taking = _Taking(self, agi, assignment, call, trunk.service or Service(), answered)
        match trunk.kind:
            case TrunkKind.FAX:
                return await taking.run(Kind.FAX)
            case TrunkKind.VOICE:
                return await taking.run(Kind.VOICE)
            case TrunkKind.AUTO:
                return await taking.run_either()
            case _:
                raise OurFault(f"{trunk.id} is no service")


class _Taking:
    """One call of it."""

    def __init__(
        self,
        reception: Reception,
        agi: AgiCall,
        assignment: Assignment,
        call: Call,
        service: Service,
        answered: Callable[[], None],
    ) -> None:
        self._store, self._times = reception._store, reception._times
        self._now, self._lost = reception._now, reception._lost
        self._pages = reception.pages_kept
        self._agi = agi
        self._channel = assignment.channel
        self._call = call
        self._service = service
        self._tell_answered = answered

    async def run(self, kind: Kind) -> Outcome:
        """A service for one kind of message."""
        fax = kind is Kind.FAX
        if (refusal := await self._obstacle(fax=fax, voice=not fax)) is not None:
            return refusal
        try:
            intent = await self._intend(kind)
        except OurFault as fault:
            return _refused(str(fault))
        if _PATH.fullmatch(intent.path) is None:
            await self._commit(intent, unanswered("no path for Asterisk"))
            return _refused(f"{intent.path!r} is no path for Asterisk")
        with _given_up(self._lost, intent):
            if not await self._answer():
                await self._commit(intent, unanswered("hung up before the answer"))
                return Outcome(Result.HUNG_UP, detail="before the answer")
            engine = await (self._fax(intent) if fax else self._voice(intent))
        return await self._commit(intent, engine)

    async def run_either(self) -> Outcome:
        """A service for both: whose message it will be is heard after the answer only."""
        if (refusal := await self._obstacle(fax=True, voice=True)) is not None:
            return refusal
        await self._ask(set_variable(_TONE, ""))
        if not await self._answer():
            return Outcome(Result.HUNG_UP, detail="before the answer")
        kind = await self._listen()
        try:
            intent = await self._intend(kind)
        except OurFault as fault:
            logger.error("{}: answered, but nothing can be kept: {}", self._channel, fault)
            return Outcome(Result.ANSWERED, 16, detail=f"not kept: {fault}")
        with _given_up(self._lost, intent):
            await self._ask(set_variable(_NO_TONE, ""))
            if kind is Kind.FAX:
                engine = await self._receive_fax(intent, self._now())
            else:
                engine = await self._record(intent)
        return await self._commit(intent, engine)

    # -- before the answer ------------------------------------------------------------------

    async def _obstacle(self, *, fax: bool, voice: bool) -> Outcome | None:
        """Why the call cannot be taken here, if so. Sets the engine up on the way."""
        pages = self._pages if fax else 0
        seconds = self._service.voice.longest if voice else 0.0
        if (why := await self._store.room_for(pages, seconds)) != "":
            return _refused(why)
        if fax:
            for line in _fax_settings(self._service.fax):
                await self._ask(line)
            ecm = (await self._ask(get_full_variable("FAXOPT(ecm)"))).data
            if ecm not in ("yes", "no"):
                return Outcome(Result.NO_CHANNEL, NO_ENGINE, detail="the PBX has no fax engine")
        if voice and self._service.language:
            await self._ask(set_variable("CHANNEL(language)", self._service.language))
        return None

    async def _intend(self, kind: Kind) -> Intent:
        facts = call_facts(self._call, kind, self._channel)
        if kind is Kind.FAX:
            return await self._store.intend(facts, "original.tif", pages=self._pages)
        seconds = self._service.voice.longest
        return await self._store.intend(facts, "original.wav", seconds=seconds)

    async def _answer(self) -> bool:
        """Whether the caller has been answered."""
        if self._agi.hung_up:
            return False
        result = await self._ask(exec_("Answer"))
        if result.result != 0 or self._agi.hung_up:
            return False
        self._tell_answered()
        return True

    # -- fax --------------------------------------------------------------------------------

    async def _fax(self, intent: Intent) -> EngineFacts:
        began = self._now()
        await self._pause(self._times.before_ced)
        return await self._receive_fax(intent, began)

    async def _receive_fax(self, intent: Intent, began: float) -> EngineFacts:
        options = "f" if self._service.fax.t38 else "F"
        # No limit: the engine has its own for every step (T.30 T1 to T5), and pages may be many.
        result = await self._agi.command(exec_("ReceiveFAX", f"{intent.path},{options}"))
        seconds = self._now() - began
        values = (await self._ask(get_full_variable(*FAX_VARIABLES))).values(len(FAX_VARIABLES))
        if result.result == -2:
            values = ("", "the PBX has no ReceiveFAX", *values[2:])
        allowed = self._service.fax.ecm
        try:
            station = (await self._ask(_STATION)).data
        except PeerFault as fault:
            logger.warning("{}: station id of {} not read: {}", self._channel, intent.id, fault)
            station = ""
        return fax_facts(values, station=station, seconds=seconds, ecm_allowed=allowed)

    # -- voice ------------------------------------------------------------------------------

    async def _voice(self, intent: Intent) -> EngineFacts:
        await self._pause(self._times.before_speech)
        await self._greet()
        return await self._record(intent)

    async def _greet(self) -> None:
        voice = self._service.voice
        if not voice.greeting or self._agi.hung_up:
            return
        stream = command("STREAM FILE", voice.greeting, voice.stop_keys)
        answer = await self._agi.command(stream, limit=_LONGEST_GREETING)
        if answer.result == -1 and dict(answer.extra).get("endpos") == "0":
            logger.warning("{}: greeting {} cannot be played", self._channel, voice.greeting)

    async def _record(self, intent: Intent) -> EngineFacts:
        """RECORD FILE appends the suffix itself."""
        path = intent.path.removesuffix(".wav")
        voice = self._service.voice
        limit = voice.longest + _SLACK
        answer = await self._agi.command(_record_file(path, voice), limit=limit)
        cause = (await self._ask(get_full_variable("HANGUPCAUSE"))).data
        return voice_facts(answer, longest=voice.longest, cause=cause)

    async def _listen(self) -> Kind:
        """Greet the caller, and hear who it is; a fax machine goes on with CNG meanwhile."""
        began = self._now()
        await self._pause(self._times.before_speech)
        await self._greet()
        if await self._tones():
            return Kind.FAX
        left = self._times.listening - (self._now() - began)
        if left > 0 and not self._agi.hung_up:
            await self._pause(left)
        return Kind.FAX if await self._tones() else Kind.VOICE

    async def _tones(self) -> bool:
        return (await self._ask(get_full_variable(_TONES))).data not in ("", "0")

    # -- both -------------------------------------------------------------------------------

    async def _pause(self, seconds: float) -> None:
        """Wait on the channel, which ends with it, and whose frames are read meanwhile."""
        if not self._agi.hung_up:
            wait = exec_("Wait", f"{seconds:.3f}")
            await self._agi.command(wait, limit=seconds + _LIMIT)

    async def _commit(self, intent: Intent, engine: EngineFacts) -> Outcome:
        try:
            message = await self._store.commit(intent.id, engine)
        except OurFault as fault:
            # Owed: the spool tries again until the disk is back, and keeps the file till then.
            logger.error("{}: {} not committed yet: {}", self._channel, intent.id, fault)
            return Outcome(Result.ANSWERED, engine.cause or 16, detail=f"{intent.id}: owed")
        logger.info("{}: {!r} {}", self._channel, message, engine.status)
        return Outcome(Result.ANSWERED, engine.cause or 16, detail=f"{intent.id}: {engine.status}")

    async def _ask(self, line: AgiCommand) -> AgiAnswer:
        return await self._agi.command(line, limit=_LIMIT)


def _refused(why: str) -> Outcome:
    return Outcome(Result.REFUSED, NO_ROOM, detail=why)


def _fax_settings(options: FaxOptions) -> list[AgiCommand]:
    settings = {
        "ecm": "yes" if options.ecm else "no",
        "localstationid": options.station,
        "headerinfo": options.header,
        **_MODEMS.get(options.max_rate, {}),
    }
    return [set_variable(f"FAXOPT({name})", value) for name, value in settings.items() if value]


def _record_file(path: str, voice: VoiceOptions) -> AgiCommand:
    arguments = [path, "wav", voice.stop_keys, str(round(voice.longest * 1000))]
    if voice.beep:
        arguments.append("BEEP")
    if voice.silence:
        # Asterisk takes the sixth word for an offset in samples, if it is a number.
        arguments.append(f"s={round(voice.silence)}")
    return command("RECORD FILE", *arguments)


@contextmanager
def _given_up(lost: Callable[[MessageId], None], intent: Intent) -> Iterator[None]:
    """Asterisk may still be writing, and nobody here will hear of the end."""
    try:
        yield
    except BaseException:
        lost(intent.id)
        raise
