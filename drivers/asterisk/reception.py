"""A call that umpack takes itself: a fax or a voice message into the spool, over one connection.

    room? → what the PBX can → intent durable → Answer → ReceiveFAX or RECORD FILE → facts → commit
                                                (CNG → a fax after all) ┘

Up to the answer every obstacle is a refusal: the call goes to another port, to the overflow packs,
or back to the exchange, and nobody believes that anything was sent. From the answer on everything
is one record, an empty one too. If umpack is killed in between, Asterisk goes on to the end of the
fax (tried on Asterisk 22) and writes down how it ended (umpack/dialplan/reception.py), and file,
intent and note are adopted at the next start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from drivers.asterisk.reception_commands import (
    NO_BEEP,
    NO_NOTE,
    NO_TONE,
    PATH,
    STATION,
    TONE,
    TONES,
    fax_settings,
    note_end,
    record_file,
)
from drivers.asterisk.taking_points import TakingPoint
from drivers.base import Clock
from umpack.core.calls import Assignment, Call
from umpack.core.causes import Outcome, Result
from umpack.core.channel import ChannelId
from umpack.core.errors import OurFault, PeerFault
from umpack.core.service import Service
from umpack.core.trunk import PbxId, TrunkKind
from umpack.messages.message import (
    CallFacts,
    EngineFacts,
    Intent,
    Kind,
    Message,
    MessageId,
)
from umpack.messages.spool_fault import SpoolFault

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
_FAX_FILE: Final = "original.tif"
_VOICE_FILE: Final = "original.wav"


class ReceptionStore(Protocol):
    """What is needed of the spool; see `umpack.messages.store.MessageStore`."""

    async def room_for(self, pages: int = 0, seconds: float = 0.0) -> str:
        """Why a call should not be answered."""

    async def intend(
        self, call: CallFacts, name: str = ..., *, pages: int = 0, seconds: float = 0.0
    ) -> Intent:
        """A call is about to be answered."""

    async def recast(self, id_: MessageId, kind: Kind, name: str) -> Intent:
        """It is a message of another kind than was intended."""

    def note_answered(self, id_: MessageId) -> None:
        """Its caller has been answered; does not wait."""

    async def commit(self, id_: MessageId, engine: EngineFacts) -> Message:
        """Its call is over."""

    async def receiving(self) -> Sequence[Message]:
        """All intents that have no end yet, those of dead processes too."""


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
    `reach` is told of every `TakingPoint`; a test may end the process there.
    """

    pages_kept = 20
    """Pages for which room is kept while a fax comes in; most have three."""

    def __init__(
        self,
        store: ReceptionStore,
        clock: Clock,
        lost: Callable[[MessageId], None],
        times: ReceptionTimes | None = None,
        reach: Callable[[TakingPoint], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._now = clock
        self._lost = lost
        self._times = times or ReceptionTimes()
        self._reach = reach

    async def left(self, pbx: PbxId) -> dict[str, ChannelId]:
        """Calls of a PBX whose receptions have no end, by the uniqueid of the caller's channel,
        and their ports. None of them if the spool cannot be asked."""
        try:
            receiving = await self._store.receiving()
        except OurFault as fault:
            logger.error("pbx {}: receptions are not known: {}", pbx, fault)
            return {}
        calls = [message.call for message in receiving if message.call.pbx == pbx]
        return {
            call.call.removeprefix(f"{pbx}-").rpartition("-")[0]: ChannelId(call.channel)
            for call in calls
        }

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
                # Whose message it will be is heard after the answer only: most are people.
                return await taking.run(Kind.VOICE, either=True)
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
        self._now, self._lost, self._reach = reception._now, reception._lost, reception._reach
        self._pages = reception.pages_kept
        self._agi = agi
        self._channel = assignment.channel
        self._call = call
        self._service = service
        self._tell_answered = answered
        self._noting = False
        """Asterisk has the order to write down how the fax ends."""

    async def run(self, kind: Kind, *, either: bool = False) -> Outcome:
        """A service for one kind of message, or for `either`, of which `kind` is the first guess:
        whatever becomes of umpack then, an answered call has its record."""
        fax, voice = either or kind is Kind.FAX, either or kind is Kind.VOICE
        if (refusal := await self._obstacle(fax=fax, voice=voice)) is not None:
            return refusal
        if either:
            await self._ask(set_variable(TONE, ""))
        try:
            intent = await self._intend(kind, fax=fax, voice=voice)
        except OurFault as fault:
            return _refused(str(fault))
        with _given_up(self._lost, intent):
            if PATH.fullmatch(intent.path) is None:
                await self._commit(intent, unanswered("no path for Asterisk"))
                return _refused(f"{intent.path!r} is no path for Asterisk")
            self._reach(TakingPoint.INTENDED)
            if not await self._answer():
                await self._commit(intent, unanswered("hung up before the answer"))
                return Outcome(Result.HUNG_UP, detail="before the answer")
            self._store.note_answered(intent.id)
            self._reach(TakingPoint.ANSWERED)
            if either:
                engine = await self._either(intent)
            else:
                engine = await (self._fax(intent) if fax else self._voice(intent))
            self._reach(TakingPoint.FACTS_READ)
            return await self._commit(intent, engine)

    # -- before the answer ------------------------------------------------------------------

    async def _obstacle(self, *, fax: bool, voice: bool) -> Outcome | None:
        """Why the call cannot be taken here, if so. Sets the engine up on the way."""
        pages = self._pages if fax else 0
        seconds = self._service.voice.longest if voice else 0.0
        if (why := await self._store.room_for(pages, seconds)) != "":
            return _refused(why)
        if fax:
            for line in fax_settings(self._service.fax):
                await self._ask(line)
            ecm = (await self._ask(get_full_variable("FAXOPT(ecm)"))).data
            if ecm not in ("yes", "no"):
                return Outcome(Result.NO_CHANNEL, NO_ENGINE, detail="the PBX has no fax engine")
        if voice and self._service.language:
            await self._ask(set_variable("CHANNEL(language)", self._service.language))
        return None

    async def _intend(self, kind: Kind, *, fax: bool, voice: bool) -> Intent:
        facts = call_facts(self._call, self._agi.environment, kind, self._channel)
        return await self._store.intend(
            facts,
            _FAX_FILE if kind is Kind.FAX else _VOICE_FILE,
            pages=self._pages if fax else 0,
            seconds=self._service.voice.longest if voice else 0.0,
        )

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
        await self._ask(note_end(intent.path))
        self._noting = True
        self._reach(TakingPoint.BEFORE_ENGINE)
        # No limit: the engine has its own for every step (T.30 T1 to T5), and pages may be many.
        result = await self._agi.command(exec_("ReceiveFAX", f"{intent.path},{options}"))
        seconds = self._now() - began
        self._reach(TakingPoint.ENGINE_DONE)
        values = (await self._ask(get_full_variable(*FAX_VARIABLES))).values(len(FAX_VARIABLES))
        if result.result == -2:
            values = ("", "the PBX has no ReceiveFAX", *values[2:])
        allowed = self._service.fax.ecm
        try:
            station = (await self._ask(STATION)).data
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
        limit, began = voice.longest + _SLACK, self._now()
        self._reach(TakingPoint.BEFORE_ENGINE)
        answer = await self._agi.command(record_file(path, voice), limit=limit)
        if voice.beep and answer.data == NO_BEEP and answer.result == -1:
            # Nor does it record one who hung up in the beep; there it permits nothing more.
            silent = record_file(path, replace(voice, beep=False))
            answer = await self._agi.command(silent, limit=limit)
            if answer.ok:
                logger.warning("{}: the beep cannot be played", self._channel)
        lasted = self._now() - began
        self._reach(TakingPoint.ENGINE_DONE)
        cause = (await self._ask(get_full_variable("HANGUPCAUSE"))).data
        return voice_facts(answer, longest=voice.longest, cause=cause, lasted=lasted)

    async def _either(self, intent: Intent) -> EngineFacts:
        kind = await self._listen()
        await self._ask(set_variable(NO_TONE, ""))
        if kind is Kind.VOICE:
            return await self._record(intent)
        try:
            intent = await self._store.recast(intent.id, Kind.FAX, _FAX_FILE)
        except OurFault as fault:
            # No engine, no confirmation: the sender sees that it has failed, and will call again.
            logger.error("{}: {}: a fax that cannot be kept: {}", self._channel, intent.id, fault)
            return unanswered(f"a fax that could not be kept: {fault}")
        return await self._receive_fax(intent, self._now())

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
        return (await self._ask(get_full_variable(TONES))).data not in ("", "0")

    # -- both -------------------------------------------------------------------------------

    async def _pause(self, seconds: float) -> None:
        """Wait on the channel, which ends with it, and whose frames are read meanwhile."""
        if not self._agi.hung_up:
            wait = exec_("Wait", f"{seconds:.3f}")
            await self._agi.command(wait, limit=seconds + _LIMIT)

    async def _commit(self, intent: Intent, engine: EngineFacts) -> Outcome:
        cause = engine.cause or 16
        try:
            message = await self._store.commit(intent.id, engine)
        except SpoolFault as fault:
            # Owed: the spool tries again until the disk is back, and keeps the file till then.
            logger.error("{}: {} not committed yet: {}", self._channel, intent.id, fault)
            return Outcome(Result.ANSWERED, cause, detail=f"{intent.id}: owed")
        except OurFault as fault:
            self._lost(intent.id)
            logger.error("{}: {} not committed: {}", self._channel, intent.id, fault)
            return Outcome(Result.ANSWERED, cause, detail=f"{intent.id}: left to adoption")
        logger.info("{}: {!r} {}", self._channel, message, engine.status)
        await self._take_order_back()
        return Outcome(Result.ANSWERED, cause, detail=f"{intent.id}: {engine.status}")

    async def _take_order_back(self) -> None:
        """The note is for whoever comes after us; one too many is removed by adoption."""
        if not self._noting:
            return
        self._noting = False
        try:
            await self._ask(NO_NOTE)
        except PeerFault as fault:
            logger.debug("{}: the order to note its end stands: {}", self._channel, fault)

    async def _ask(self, line: AgiCommand) -> AgiAnswer:
        return await self._agi.command(line, limit=_LIMIT)


def _refused(why: str) -> Outcome:
    return Outcome(Result.REFUSED, NO_ROOM, detail=why)


@contextmanager
def _given_up(lost: Callable[[MessageId], None], intent: Intent) -> Iterator[None]:
    """Asterisk may still be writing, and nobody here will hear of the end."""
    try:
        yield
    except BaseException:
        lost(intent.id)
        raise
