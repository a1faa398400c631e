"""SIP peers for a lab: UM servers that answer or fail (UAS), and callers (UAC), played by SIPp.

The scenarios in tests/pbx/scenarios write one EVENT line per step; results are read from those, so
a refused call is a result and not a SIPp failure. Everything ends by itself (`-timeout`) and is
killed by `stop()`. All calls block with a limit; use `asyncio.to_thread` from a coroutine.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Literal

from tests.pbx.lab import POLL_SECONDS
from tests.ports import free_port

SCENARIOS = Path(__file__).with_name("scenarios")
LIFE_SECONDS = 120

# Final answers a caller may meet (RFC 3261 section 21); SIPp needs each of them named.
PROVISIONAL = (100, 180, 181, 182, 183)
REFUSALS = (
    300, 301, 302, 400, 401, 403, 404, 405, 406, 407, 408, 410, 415, 420, 422, 423, 433, 480, 481,
    482, 483, 484, 485, 486, 487, 488, 491, 500, 501, 502, 503, 504, 505, 600, 603, 604, 606, 607,
)  # fmt: skip

Step = Literal[
    "invite", "provisional", "answered", "refused", "rejected", "cancelled",
    "hangup-local", "hangup-remote",
]  # fmt: skip


class SippError(RuntimeError):
    """SIPp is missing, did not start, or did not end in time; the text ends with its errors."""


@dataclass(frozen=True, slots=True)
class Event:
    """One step of one call as a SIPp process saw it; `at` in seconds since the epoch."""

    at: float
    call: int
    step: Step
    code: int
    text: str


@dataclass(frozen=True, slots=True)
class CallerResult:
    """One call as its caller saw it.

    `codes` are all responses to INVITE in order, `final` the last of them if it ended the INVITE,
    `end` how the call ended ("lost": no end seen), `reason` the Reason header (RFC 3326) if any.
    """

    call: int
    codes: tuple[int, ...]
    final: int | None
    end: Literal["refused", "cancelled", "hangup-local", "hangup-remote", "lost"]
    reason: str
    seconds_to_final: float | None


@dataclass(frozen=True, slots=True)
class ServedCall:
    """One call as a UM server saw it: who was called from whom, and the steps in order."""

    at: float
    port: int
    called: str
    caller: str
    steps: tuple[Step, ...]

    @property
    def answered(self) -> bool:
        """Whether this server answered the call."""
        return "answered" in self.steps


class Sipp:
    """A SIPp process on 127.0.0.1 with a directory for its scenario and logs."""

    def __init__(
        self, scenario: str, fill: Mapping[str, str], argv: Sequence[str], port: int, life: int
    ) -> None:
        program = shutil.which("sipp")
        if program is None:
            raise SippError("no sipp in PATH (Debian package sip-tester)")
        self.port = port
        self._directory = Path(tempfile.mkdtemp(prefix="umpack-sipp-"))
        (self._directory / "scenario.xml").write_text(_scenario(scenario, fill), encoding="utf-8")
        with (self._directory / "screen").open("wb") as screen:
            self._process = subprocess.Popen(
                [
                    program, "-sf", "scenario.xml", "-i", "127.0.0.1", "-mi", "127.0.0.1",
                    "-p", str(port), "-bind_local", "-nostdin", "-nd", "-skip_rlimit",
                    # Its control port it looks for itself (-cp would end it if that were taken).
                    "-ci", "127.0.0.1", "-deadcall_wait", "0",
                    # The limit alone would wait for calls under way, for ever if need be.
                    "-timeout", str(life), "-timeout_error",
                    "-trace_logs", "-log_file", "events", "-trace_err", "-error_file", "errors",
                    *argv,
                ],
                cwd=self._directory, stdin=subprocess.DEVNULL, stdout=screen,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def __enter__(self) -> Sipp:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process.poll() is None

    @property
    def errors(self) -> str:
        """What SIPp found wrong: unexpected messages, timeouts."""
        return self._text("errors") or self._text("screen")[-2000:]

    def events(self) -> list[Event]:
        """All steps so far, in order."""
        found = (_event(line) for line in self._text("events").splitlines())
        return [event for event in found if event is not None]

    def ended(self, seconds: float) -> bool:
        """Whether the process ends by itself within `seconds`."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self) -> None:
        """Kill the process if it runs and delete its directory; may be called twice."""
        if self.running:
            self._process.kill()
        self._process.wait(10.0)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _text(self, name: str) -> str:
        file = self._directory / name
        return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""


class Server(Sipp):
    """A UM server. Make it with `answering`, `hanging_up`, `rejecting` or `ringing`."""

    def __init__(
        self,
        scenario: str,
        fill: Mapping[str, str],
        port: int | None,
        life: int = LIFE_SECONDS,
    ) -> None:
        super().__init__(scenario, fill, (), port or free_port(), life)
        try:
            self._wait_bound()
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Server:
        return self

    @classmethod
    def answering(cls, port: int | None = None, *, ring_ms: int = 1) -> Server:
        """Ring `ring_ms`, answer, wait for the caller to hang up."""
        return cls("uas_answer", {"ring_ms": str(max(1, ring_ms))}, port)

    @classmethod
    def hanging_up(cls, port: int | None = None, *, ring_ms: int = 1, hold_ms: int = 100) -> Server:
        """Ring `ring_ms`, answer, hang up `hold_ms` later unless the caller was faster."""
        fill = {"ring_ms": str(max(1, ring_ms)), "hold_ms": str(max(1, hold_ms))}
        return cls("uas_hangup", fill, port)

    @classmethod
    def rejecting(
        cls, code: int, port: int | None = None, *, after_ms: int = 1, rings: bool = False
    ) -> Server:
        """Refuse every call with the SIP status `code`, `after_ms` after its INVITE; silent until
        then, or ringing."""
        known = {status.value: status.phrase for status in HTTPStatus}
        phrase = SIP_PHRASES.get(code) or known.get(code, "Refused")
        fill = {"ring_ms": str(max(1, after_ms)), "code": str(code), "phrase": phrase}
        return cls("uas_decline" if rings else "uas_reject", fill, port)

    @classmethod
    def ringing(cls, port: int | None = None) -> Server:
        """Ring until the PBX cancels."""
        return cls("uas_ring", {}, port)

    @classmethod
    def quiet(cls, port: int | None = None, *, after_ms: int = 1, early: bool = False) -> Server:
        """Answer `after_ms` after the INVITE without ever ringing, with early media if wanted."""
        scenario = "uas_early" if early else "uas_quiet"
        return cls(scenario, {"ring_ms": str(max(1, after_ms))}, port)

    def calls(self) -> list[ServedCall]:
        """Calls offered to this server so far, in order of their INVITEs."""
        events = self.events()
        return [
            ServedCall(
                event.at, self.port, *_users(event.text),
                tuple(other.step for other in events if other.call == event.call),
            )
            for event in events if event.step == "invite"
        ]  # fmt: skip

    def _wait_bound(self) -> None:
        # Looked up, not probed: a probe that binds the port would take it from SIPp.
        mark = f" 0100007F:{self.port:04X} "
        for _ in range(round(10.0 / POLL_SECONDS)):
            if not self.running:
                raise SippError(f"sipp ended at once: {self.errors}")
            if mark in Path("/proc/net/udp").read_text(encoding="ascii"):
                return
            time.sleep(POLL_SECONDS)
        raise SippError(f"sipp does not listen on {self.port}: {self.errors}")


@dataclass(frozen=True, slots=True)
class Caller:
    """What callers do.

    `number` is called `count` times, `rate` calls a second, at most `parallel` at once. An answered
    call is hung up after `hold_ms`; one not answered for `patience_ms` after its last provisional
    response is cancelled (None: never). `user` and `display` go raw into the From header;
    "{call}" in `user` becomes the number of the call, from 1.
    """

    number: str
    count: int = 1
    rate: float = 10.0
    hold_ms: int = 100
    patience_ms: int | None = None
    user: str = "1000"
    display: str | None = None
    parallel: int = 200

    def start(self, sip_port: int, seconds: int = 30) -> Callers:
        """Start calling the PBX at 127.0.0.1:`sip_port`; SIPp gives up after `seconds`."""
        return Callers(self, sip_port, seconds)

    def run(self, sip_port: int, seconds: int = 30) -> list[CallerResult]:
        """Start, wait until all calls have ended, return them in order of their numbers."""
        with self.start(sip_port, seconds) as callers:
            return callers.wait(seconds + 10.0)


class Callers(Sipp):
    """Running callers; see Caller."""

    def __init__(self, caller: Caller, sip_port: int, seconds: int) -> None:
        user = caller.user.replace("{call}", "[call_number]")
        address = f"<sip:{user}@[local_ip]:[local_port]>"
        # "[" starts a SIPp keyword and "]]>" ends the scenario's text: neither can be escaped.
        if any(mark in f"{caller.user}{caller.display or ''}{caller.number}" for mark in "[]"):
            raise ValueError("SIPp cannot send square brackets")
        fill = {
            "number": caller.number,
            "from": address if caller.display is None else f"{caller.display} {address}",
            "hold_ms": str(max(1, caller.hold_ms)),
            "patience_ms": str(caller.patience_ms or (seconds + 5) * 1000),
            "responses": _responses(str(caller.patience_ms or (seconds + 5) * 1000)),
        }
        per_second = caller.rate >= 1
        argv = (
            "-m", str(caller.count), "-l", str(caller.parallel),
            "-r", str(round(caller.rate) if per_second else 1),
            "-rp", "1000" if per_second else str(round(1000 / caller.rate)),
            f"127.0.0.1:{sip_port}",
        )  # fmt: skip
        self.caller = caller
        super().__init__("uac_call", fill, argv, free_port(), seconds)

    def __enter__(self) -> Callers:
        return self

    def wait(self, seconds: float = 40.0) -> list[CallerResult]:
        """Wait until all calls have ended or SIPp gave up; raises SippError after `seconds`."""
        if not self.ended(seconds):
            raise SippError(f"callers still busy after {seconds} s: {self.errors}")
        results = self.results()
        if not results:
            raise SippError(f"no call was made: {self.errors}")
        return results

    def results(self) -> list[CallerResult]:
        """The calls so far; those of which nothing was heard are not among them."""
        of_call: dict[int, list[Event]] = {}
        for event in self.events():
            of_call.setdefault(event.call, []).append(event)
        return [_result(call, events) for call, events in sorted(of_call.items())]


def finals(results: Sequence[CallerResult]) -> Counter[int | None]:
    """How many calls got which final SIP status."""
    return Counter(result.final for result in results)


# Those of RFC 3261 that HTTP has not or calls differently.
SIP_PHRASES = {
    480: "Temporarily Unavailable", 481: "Call/Transaction Does Not Exist", 482: "Loop Detected",
    483: "Too Many Hops", 484: "Address Incomplete", 485: "Ambiguous", 486: "Busy Here",
    487: "Request Terminated", 488: "Not Acceptable Here", 600: "Busy Everywhere",
    603: "Decline", 604: "Does Not Exist Anywhere", 606: "Not Acceptable",
}  # fmt: skip

_EVENT = re.compile(r"EVENT \S+\s+\S+\s+(\d+\.\d+) (\d+) ([a-z-]+) (\d+)(.*)")
_USER = re.compile(r"<?sips?:(?:([^@>;]*)@)?")
_ENDS = ("refused", "cancelled", "hangup-local", "hangup-remote")


def _event(line: str) -> Event | None:
    match = _EVENT.match(line)
    if match is None:
        return None
    step: Step = match[3]  # type: ignore[assignment]  # our own scenarios write no other
    return Event(float(match[1]), int(match[2]), step, int(match[4]), match[5].strip())


def _result(call: int, events: Sequence[Event]) -> CallerResult:
    end = next((event for event in events if event.step in _ENDS), None)
    final = next((e for e in events if e.step in ("answered", "refused", "cancelled")), None)
    sent = next((event for event in events if event.step == "invite"), None)
    return CallerResult(
        call=call,
        codes=tuple(event.code for event in events if event.code),
        final=final.code if final else None,
        end=end.step if end else "lost",  # type: ignore[arg-type]  # one of _ENDS
        reason=final.text if final else "",
        seconds_to_final=final.at - sent.at if final and sent else None,
    )


def _users(text: str) -> tuple[str, str]:
    """User parts of the "To|From" an invite event carries."""
    to, _, sender = text.partition("|")
    found = (_USER.search(part) for part in (to, sender))
    called, caller = (match[1] or "" if match else "" for match in found)
    return called, caller


def _responses(patience_ms: str) -> str:
    """Receive steps for every response but 200; SIPp takes its time limit from the first one."""
    waits = f'timeout="{patience_ms}" ontimeout="give-up"'
    lines = [
        f'<recv response="{code}" optional="true" next="waiting" {waits}><action>'
        f'<log message="EVENT [timestamp] [call_number] provisional {code}"/>'
        '<assignstr assign_to="heard" value="yes"/></action></recv>'
        for code in PROVISIONAL
    ]
    lines += [
        f'<recv response="{code}" optional="true" next="refused" {waits}><action>'
        '<ereg regexp=".*" search_in="hdr" header="To:" assign_to="to"/>'
        '<ereg regexp=".*" search_in="hdr" header="Reason:" assign_to="reason"/>'
        f'<log message="EVENT [timestamp] [call_number] refused {code}[$reason]"/></action></recv>'
        for code in REFUSALS
    ]
    return "\n".join(f"  {line}" for line in lines)


def _scenario(name: str, fill: Mapping[str, str]) -> str:
    """Put parts (files part_NAME.xml) and values into a scenario's {{NAME}} marks."""
    parts = {
        file.stem.removeprefix("part_"): file.read_text(encoding="utf-8").rstrip("\n")
        for file in SCENARIOS.glob("part_*.xml")
    }
    text = (SCENARIOS / f"{name}.xml").read_text(encoding="utf-8")
    for _ in range(2):  # parts may have marks of their own
        text = re.sub(r"\{\{(\w+)\}\}", lambda mark: {**parts, **fill}.get(mark[1], mark[0]), text)
    return text
