"""What the simulated PBX does with a call that umpack takes itself: ReceiveFAX, RECORD FILE, tones.

The words are those of Asterisk 22.10. What the engine writes is what the caller brings along.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from simulators.pbx_dial import CallerLeft, Happening
from umpack import clock

if TYPE_CHECKING:
    from simulators.asterisk import PbxPlan
    from simulators.pbx_call import PbxCall

T1: Final = 35.0
"""Seconds a fax machine waits for another to speak (T.30 5.4.3.1)."""
_RATE: Final = 8000
_WAV_HEAD: Final = 44
_SILENCE: Final = "s="
_PUSH, _POP = "CHANNEL(hangup_handler_push)", "CHANNEL(hangup_handler_pop)"
_HANDLER: Final = re.compile(r"umpack-fax,s,1\((/[^)]*)\)")
_CONTROLS: Final = re.compile(r"[\x01-\x1f\x7f]")
_FAX_DEFAULTS: Final = {"ecm": "yes", "minrate": "4800", "maxrate": "14400"}


@dataclass(frozen=True, slots=True)
class FaxMachine:
    """A caller who sends a fax: `tiff` is what the engine will have written after `seconds`."""

    tiff: bytes
    pages: int = 1
    seconds: float = 0.0
    station: str = ""
    confirmed: bytes = b""
    """What the engine has written of it when the caller leaves in the midst."""
    confirmed_pages: int = 0


@dataclass(frozen=True, slots=True)
class Speaker:
    """A caller who speaks for so long, and is silent then. `wav` is the whole file of it."""

    wav: bytes
    seconds: float


Brought = FaxMachine | Speaker | None


class CallReception:
    """The engine of one call."""

    def __init__(self, call: PbxCall, brought: Brought, plan: PbxPlan) -> None:
        self._call = call
        self._engine = plan.fax_engine
        self._beep = plan.beep
        self._brought = brought
        self.written = b""
        """What is in the call's file by now."""
        self._handlers: list[str] = []

    def handle(self, name: str, value: str) -> None:
        """Put a hangup handler on the channel, or take one off."""
        if name == _PUSH:
            self._handlers.append(value)
        elif name == _POP and self._handlers:
            self._handlers.pop()

    async def hang_up(self) -> None:
        """Run the handlers, as the dialplan that umpack prints has them."""
        while self._handlers:
            order = _HANDLER.fullmatch(self._handlers.pop())
            values = self._call.channel.variables
            if order is None or not values.get("FAXSTATUS"):
                continue
            line = (
                f"status={values['FAXSTATUS']}|error={values['FAXERROR']}"
                f"|pages={values['FAXPAGES']}|bitrate={values['FAXBITRATE']}"
                f"|mode={values['FAXMODE']}|cause={self._call.channel.hangup_cause}"
                f"|ended={round(clock.wall())}|words={values['FAXOPT(statusstr)']}\n"
            )
            await asyncio.to_thread(Path(order[1]).write_text, line)

    async def pause(self, seconds: float) -> float:
        """Let PBX seconds pass unless the caller leaves; how many did."""
        time, inbox = self._call.time, self._call.inbox
        began = time.now()
        early: list[Happening] = []
        try:
            async with asyncio.timeout(seconds / time.speed):
                while not self._call.gone:
                    item = await inbox.get()
                    if isinstance(item, CallerLeft):
                        self._call.caller_gone(item.cause)
                    else:
                        early.append(item)  # umpack may be gone: the application is not told
        except TimeoutError:
            pass
        inbox.put_back(early)
        return min(time.now() - began, seconds)

    async def receive_fax(self, argument: str) -> int:
        """The application."""
        if not self._engine:
            return -2
        path, _, _ = argument.partition(",")
        call, brought = self._call, self._brought
        call.answer()
        call.channel.application, call.channel.data = "ReceiveFAX", argument
        machine = brought if isinstance(brought, FaxMachine) else None
        took = await self.pause(machine.seconds if machine else T1)
        whole = machine is not None and took >= machine.seconds
        if machine is not None and whole:
            await self._write(path, machine.tiff)
        elif machine is not None and machine.confirmed:
            await self._write(path, machine.confirmed)
        pages = 0 if machine is None else machine.pages if whole else machine.confirmed_pages
        error = "" if whole else "HANGUP" if call.gone else "TIMEOUT"
        words = "OK" if whole else "The call dropped prematurely" if call.gone else "Timed out"
        for name, value in {
            "FAXSTATUS": "SUCCESS" if whole else "FAILED",
            "FAXERROR": error,
            "FAXPAGES": str(pages),
            "FAXBITRATE": "14400",
            "FAXRESOLUTION": "8031x3850" if machine else "0x0",
            "FAXMODE": "audio",
            "REMOTESTATIONID": machine.station if machine else "",
            "FAXOPT(statusstr)": words,
        }.items():
            call.set_variable(name, value)
        return 0 if whole else -1

    async def stream_file(self, words: tuple[str, ...]) -> str:
        """The AGI command; every sound lasts a second."""
        if not words:
            return "520 End of proper usage."
        heard = round(await self.pause(1.0) * _RATE)
        return f"200 result={-1 if self._call.gone else 0} endpos={heard}"

    async def record_file(self, words: tuple[str, ...]) -> str:
        """The AGI command: file, format, keys, milliseconds, BEEP, s=SILENCE."""
        if len(words) < 4:
            return "520 End of proper usage."
        path, suffix, _, limit, *more = words
        if "BEEP" in more and not self._beep:
            return "200 result=-1 (randomerror) endpos=0"
        silence = next((float(w[2:]) for w in more if w.startswith(_SILENCE)), None)
        brought = self._brought
        speech = brought.seconds if isinstance(brought, Speaker) else 0.0
        until = int(limit) / 1000
        if silence is not None:
            until = min(until, speech + silence)
        took = await self.pause(until)
        seconds = min(speech, took)
        sound = brought.wav if isinstance(brought, Speaker) else b"RIFF".ljust(_WAV_HEAD, b"\0")
        sound = sound[: _WAV_HEAD + 2 * round(seconds * _RATE)]
        await self._write(f"{path}.{suffix}", sound)
        samples = round(seconds * _RATE)
        if self._call.gone:
            return f"200 result=-1 (hangup) endpos={samples}"
        return f"200 result=0 (timeout) endpos={samples}"

    async def _write(self, path: str, content: bytes) -> None:
        await asyncio.to_thread(Path(path).write_bytes, content)
        self.written = content

    def variable(self, name: str, arguments: str, variables: dict[str, str]) -> str | None:
        """A function of fax or tone detection; None if it is none of these."""
        if name == "FAXOPT" and self._engine:
            return variables.get(f"FAXOPT({arguments})", _FAX_DEFAULTS.get(arguments, ""))
        if name == "TONE_DETECT":
            return "1" if isinstance(self._brought, FaxMachine) else "0"
        if name == "REPLACE" and arguments.startswith("REMOTESTATIONID,"):
            return _CONTROLS.sub("", variables.get("REMOTESTATIONID", ""))
        return None
