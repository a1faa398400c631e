"""One call through the simulated PBX: from its caller through the AGI step to its end.

The dialplan is the one umpack prints: one AGI step, then `Hangup(${UMPACK_CAUSE})`; where the AGI
has failed, the fallback destinations in order, then the failure cause.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from simulators.agi_client import AgiDialogue, AgiSocket, AgiStatus
from simulators.dahdi_lines import DahdiCaller
from simulators.line import End
from simulators.pbx_causes import sip_of_cause
from simulators.pbx_channel import ChannelState, PbxChannel, PbxTime
from simulators.pbx_dial import CallerLeft, Dialling, Inbox, parse_dial
from simulators.pbx_reception import Brought, CallReception

if TYPE_CHECKING:
    from simulators.asterisk import SimulatedAsterisk

CAUSE_VARIABLE: Final = "UMPACK_CAUSE"
CANCELLED: Final = 127
"""HANGUPCAUSE after a SIP caller's CANCEL (seen on Asterisk 22.10)."""
UNSET: Final = ("DIALSTATUS", "DIALEDPEERNAME", "DIALEDPEERNUMBER", "ANSWEREDTIME",
                "ANSWEREDTIME_MS", "DIALEDTIME", "DIALEDTIME_MS")  # fmt: skip
"""What Dial empties when it begins."""


@dataclass(frozen=True, slots=True)
class CallResult:
    """One call as caller and PBX saw it.

    `sip` is the final status a SIP caller got (200, 486, 487 for his own CANCEL, ...), None for a
    caller on a line; `cause` the Q.850 cause he was released with. `served_by` is the device that
    answered (`PJSIP/um1`, `DAHDI/17`). `setup` is in real seconds, up to the answer or the refusal.
    `rang` tells whether he heard ringing before: a 180, or an ALERTING.
    `written` is what an engine of the PBX wrote into a file for umpack, if it did.
    """

    agi_status: AgiStatus
    cause: int
    sip: int | None
    answered: bool
    dialled: tuple[str, ...]
    served_by: str | None
    setup: float
    rang: bool = False
    written: bytes = b""


class PbxCall:
    """A call that is not over; `run` is its life."""

    def __init__(
        self,
        pbx: SimulatedAsterisk,
        channel: PbxChannel,
        *,
        hold: float | None,
        line: DahdiCaller | None = None,
        brings: Brought = None,
    ) -> None:
        self.channel = channel
        self.reception = CallReception(self, brings, pbx.plan)
        self.inbox = Inbox()
        self.gone = False
        self._pbx = pbx
        self._hold = hold
        self._line = line
        self._dialled: list[str] = []
        self._served_by: str | None = None
        self._answered_at: float | None = None
        self._rang = False
        self._timers: list[Callable[[], None]] = []
        if line is not None:
            line.left = lambda cause: self.inbox.put(CallerLeft(cause))

    @property
    def time(self) -> PbxTime:
        """The PBX's time."""
        return self._pbx.time

    def leave(self) -> None:
        """The caller hangs up, now."""
        cause = 16 if self._line is not None or self._answered_at is not None else CANCELLED
        self.inbox.put(CallerLeft(cause))

    def leave_after(self, seconds: float) -> None:
        """The caller will hang up."""
        self._timers.append(self._pbx.time.after(seconds, self.leave).cancel)

    async def run(self) -> CallResult:
        """From the dialplan's first step to the hang-up."""
        events, channel = self._pbx.events, self.channel
        channel.state = ChannelState.RING
        events.channel("Newchannel", channel)
        if self._line is not None:
            events.dahdi_channel(channel, self._line.span, self._line.channel_number)
        try:
            status = await self._agi()
            cause = await self._after_agi(status)
            await self.reception.hang_up()
        finally:
            for cancel in self._timers:
                cancel()
            self._pbx.forget(channel)
        ended = self._pbx.time.loop.time()
        if self._line is not None and self._pbx.lines is not None:
            self._pbx.lines.end(self._line, cause, End.REMOTE if self.gone else End.LOCAL)
        events.hangup(channel, cause)
        answered = self._answered_at is not None
        return CallResult(
            agi_status=status,
            cause=cause,
            sip=self._final_status(cause) if self._line is None else None,
            answered=answered,
            dialled=tuple(self._dialled),
            served_by=self._served_by,
            setup=(self._answered_at if self._answered_at is not None else ended) - channel.born,
            rang=self._rang,
            written=self.reception.written,
        )

    def cut_short(self) -> CallResult:
        """What was known of a call when the PBX died under it."""
        answered = self._answered_at is not None
        dialled = tuple(self._dialled)
        written = self.reception.written
        return CallResult(
            AgiStatus.HANGUP, 0, None, answered, dialled, self._served_by, 0.0, written=written
        )

    # --- the dialplan --------------------------------------------------------------------------

    async def _agi(self) -> AgiStatus:
        pbx, channel = self._pbx, self.channel
        pbx.events.new_exten(channel, "AGI", pbx.agi_url)
        socket = await pbx.connect(self.inbox)
        if socket is None:
            status = AgiStatus.FAILURE
        else:
            try:
                await self._introduce(socket)
                status = await AgiDialogue(self, socket).run()
            finally:
                socket.close()
        pbx.events.variable(channel, "AGISTATUS", status.value)
        return status

    async def _introduce(self, socket: AgiSocket) -> None:
        environment = self._environment()
        if not self._pbx.plan.line_by_line:
            socket.write(environment)
            return
        for line in environment.splitlines(keepends=True):
            socket.write(line)
            await asyncio.sleep(0)

    async def _after_agi(self, status: AgiStatus) -> int:
        channel = self.channel
        if status is AgiStatus.FAILURE and not self.gone:
            for destination in self._pbx.fallback:
                await self.execute("Dial", destination.replace("{called}", channel.exten))
                if self.gone or self.variable("DIALSTATUS") in ("ANSWER", "BUSY"):
                    break
            else:
                channel.hangup_cause = self._pbx.failure_cause
        elif not self.gone:
            text = self.variable(CAUSE_VARIABLE)
            self._pbx.events.new_exten(channel, "Hangup", text)
            # Hangup() leaves an earlier cause alone, and makes none a normal clearing.
            if text.isascii() and text.isdigit() and 0 < int(text) < 128:
                channel.hangup_cause = int(text)
        return channel.hangup_cause or 16

    def _environment(self) -> str:
        channel, pbx = self.channel, self._pbx
        # What the caller sent stands here as it came, line breaks and all.
        caller, name = channel.caller or "unknown", channel.caller_name or "unknown"
        return (
            f"agi_network: yes\nagi_network_script: umpack\nagi_request: {pbx.agi_url}\n"
            f"agi_channel: {channel.name}\nagi_language: en\n"
            f"agi_type: {channel.name.partition('/')[0]}\nagi_uniqueid: {channel.uniqueid}\n"
            f"agi_version: {pbx.version}\nagi_callerid: {caller}\nagi_calleridname: {name}\n"
            "agi_callingpres: 0\nagi_callingani2: 0\nagi_callington: 0\nagi_callingtns: 0\n"
            f"agi_dnid: {channel.exten}\nagi_rdnis: unknown\nagi_context: {channel.context}\n"
            f"agi_extension: {channel.exten}\nagi_priority: 1\nagi_enhanced: 0.0\n"
            "agi_accountcode: \nagi_threadid: 140224187565760\n\n"
        )

    # --- what the AGI asks for -----------------------------------------------------------------

    def answer(self) -> None:
        """The caller's call is up, and his patience turns into holding time."""
        if self._answered_at is not None:
            return
        self._answered_at = self._pbx.time.loop.time()
        self.channel.state = ChannelState.UP
        if self._line is not None and self._pbx.lines is not None:
            self._pbx.lines.answer(self._line)
        if self._hold is not None:
            self.leave_after(self._hold)

    def ring(self) -> None:
        """The caller hears that it rings."""
        self._rang = True

    def caller_gone(self, cause: int) -> None:
        """The channel is hung up."""
        if not self.gone:
            self.gone = True
            self.channel.hangup_cause = cause
            self._pbx.events.hangup_request(self.channel, cause)

    async def execute(self, application: str, argument: str) -> int:
        """Run a dialplan application: its return code, -2 if there is none of that name."""
        match application.lower():
            case "dial":
                self._dialled.append(argument)
                return await self._dial(argument)
            case "hangup":
                if argument.isdigit():
                    self.channel.hangup_cause = int(argument)
                self.gone = True
                return -1
            case "answer":
                self.answer()
                return 0
            case "hangupcauseclear":
                self.channel.leg_words.clear()
                return 0
            case "receivefax":
                return await self.reception.receive_fax(argument)
            case "wait":
                await self.reception.pause(float(argument or 0))
                return -1 if self.gone else 0
            case "noop" | "verbose":
                return 0
            case _:
                return -2

    async def _dial(self, argument: str) -> int:
        channel, loop = self.channel, self._pbx.time.loop
        for name in UNSET:
            channel.variables.pop(name, None)
        parsed = parse_dial(argument)
        if parsed is None:
            self.set_variable("DIALSTATUS", "INVALIDARGS")
            return -1
        if self.gone:
            self.set_variable("DIALSTATUS", "CANCEL")
            return -1
        dialling = Dialling(self._pbx, channel, self.inbox, self.answer, self.ring)
        end = await dialling.run(parsed)
        if end.cause is not None:
            channel.hangup_cause = end.cause
        if end.caller_left:
            self.gone = True
        if end.served is not None and end.answered_at is not None:
            self._served_by = end.served.device
            # DIALEDTIME counts from the caller's own beginning, not from that of this Dial.
            dialled = loop.time() - channel.born
            answered = loop.time() - end.answered_at
            self.set_variable("DIALEDPEERNAME", end.served.channel.name)
            self.set_variable("ANSWEREDTIME", str(int(answered)))
            self.set_variable("ANSWEREDTIME_MS", str(int(answered * 1000)))
            self.set_variable("DIALEDTIME", str(int(dialled)))
            self.set_variable("DIALEDTIME_MS", str(int(dialled * 1000)))
        self.set_variable("DIALSTATUS", end.status)
        return -1 if end.caller_left or end.status == "ANSWER" else 0

    def variable(self, expression: str) -> str:
        """A channel variable, or one of the functions umpack reads; empty if unknown."""
        channel = self.channel
        name, bracket, rest = expression.partition("(")
        if not bracket:
            if name == "HANGUPCAUSE":
                return str(channel.hangup_cause)
            return channel.variables.get(name, "")
        arguments: Sequence[str] = rest.removesuffix(")").split(",")
        if name == "HANGUPCAUSE_KEYS":
            # Asterisk gives them in the order of a hash table: in none.
            return ",".join(sorted(channel.leg_words, key=lambda key: key[::-1]))
        if name == "HANGUPCAUSE" and len(arguments) == 2:
            words = channel.leg_words.get(arguments[0], ("", ""))
            return words[0] if arguments[1] == "tech" else words[1]
        if name == "CHANNEL":
            return channel.name if arguments == ["name"] else ""
        return self.reception.variable(name, rest.removesuffix(")"), channel.variables) or ""

    def set_variable(self, name: str, value: str) -> None:
        """Set a channel variable; `_` and `__` before its name mean inheritance only."""
        self.reception.handle(name, value)
        self._pbx.events.variable(self.channel, name.lstrip("_"), value)

    def _final_status(self, cause: int) -> int:
        if self._answered_at is not None:
            return 200
        return 487 if self.gone and cause == CANCELLED else sip_of_cause(cause)
