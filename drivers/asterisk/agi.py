"""The AGI protocol without any I/O: bytes in, events out; commands (agi_commands.py) in, bytes out.

Asterisk opens the connection, sends its environment (`agi_name: value` lines up to an empty one),
and then answers one command at a time. A `HANGUP` line may come between any two lines. What is
said here about Asterisk was read in its res/res_agi.c (version 22 and the later main branch).

    protocol = AgiProtocol()
    events = protocol.feed(received)
    transmit = protocol.send(exec_("Dial", "PJSIP/100@um1,20"))
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final, Literal, NamedTuple, TypeAlias

from drivers.asterisk.agi_commands import SEPARATOR, AgiCommand
from umpack.core.errors import ProtocolFault, StateError

# --- events -----------------------------------------------------------------------------------


class _Line:
    """Reads one line of an environment: its value as sent, empty if it was not."""

    __slots__ = ("_key",)

    def __init__(self, key: str) -> None:
        self._key = key

    def __get__(self, environment: AgiEnvironment | None, owner: object = None) -> str:
        return self._key if environment is None else environment.lines.get(self._key, "")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class AgiEnvironment(Mapping[str, str]):
    """What Asterisk said about the call: a mapping of its lines (`agi_channel`, ...).

    Values are raw text (bytes that are not UTF-8 become lone surrogates, PEP 383, so that none is
    lost; see `legible`) and anyone's: what a caller may choose (caller id, dialled number, SIP user
    part) is in them. An unknown caller is `unknown`.
    """

    lines: Mapping[str, str]

    def __getitem__(self, key: str) -> str:
        return self.lines[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.lines)

    def __len__(self) -> int:
        return len(self.lines)

    def __repr__(self) -> str:
        return (
            f"<AgiEnvironment {self.channel!r} {self.uniqueid!r} "
            f"{self.callerid!r} -> {self.extension!r}>"
        )

    request = _Line("agi_request")
    network_script = _Line("agi_network_script")
    channel = _Line("agi_channel")
    uniqueid = _Line("agi_uniqueid")
    type = _Line("agi_type")
    language = _Line("agi_language")
    version = _Line("agi_version")
    callerid = _Line("agi_callerid")
    calleridname = _Line("agi_calleridname")
    callingpres = _Line("agi_callingpres")
    dnid = _Line("agi_dnid")
    rdnis = _Line("agi_rdnis")
    context = _Line("agi_context")
    extension = _Line("agi_extension")
    priority = _Line("agi_priority")
    accountcode = _Line("agi_accountcode")

    @property
    def arguments(self) -> tuple[str, ...]:
        """The dialplan's own arguments to AGI(), in order."""
        found: list[str] = []
        while (value := self.lines.get(f"agi_arg_{len(found) + 1}")) is not None:
            found.append(value)
        return tuple(found)


class AgiAnswer(NamedTuple):
    """The final answer to one command.

    `200 result=1 (timeout) endpos=80` is code 200, result 1, data `timeout`, extra (endpos, 80).
    A result that is not a plain number (`#`, `007`, nothing) stays text. With 510, 511 and 520
    (unknown, not on a dead channel, wrong usage) result is empty and data says why.
    """

    code: int
    result: int | str
    data: str = ""
    extra: tuple[tuple[str, str], ...] = ()

    @property
    def ok(self) -> bool:
        """Whether Asterisk ran the command (what came of it is in `result`)."""
        return self.code == 200

    def values(self, count: int) -> tuple[str, ...]:
        """The `count` values of a `get_full_variable`; raises ProtocolFault if it has not so many.

        A value that holds the separator itself is such a fault: it is never shifted to a neighbour.
        """
        found = tuple(self.data.split(SEPARATOR))
        if not self.ok or len(found) != count:
            raise ProtocolFault(f"{count} values asked, {self.code} with {len(found)} answered")
        return found


@dataclass(frozen=True, slots=True)
class Trying:
    """An intermediate answer (1xx): the command is at work."""

    code: int


@dataclass(frozen=True, slots=True)
class HungUp:
    """The channel is gone. Commands are still answered, but not all of them are run (511)."""


AgiEvent: TypeAlias = AgiEnvironment | AgiAnswer | Trying | HungUp


def legible(text: str) -> str:
    """The same without lone surrogates, with U+FFFD where bytes were not UTF-8: for all who want
    to print or compare, not to know the bytes."""
    if text.isascii():
        return text
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


# --- the dialogue -----------------------------------------------------------------------------


class State(StrEnum):
    """Where the dialogue stands; whether the channel has hung up is beside it, not in it."""

    ENVIRONMENT = "environment"
    IDLE = "idle"
    WAITING = "waiting"
    DEAD = "dead"


class Step(StrEnum):
    """What moves the dialogue on."""

    ENVIRONMENT_ENDED = "environment ended"
    COMMAND_SENT = "command sent"
    TRIED = "tried"
    ANSWERED = "answered"
    HUNG_UP = "hung up"
    ENDED = "ended"


_SENT, _ANSWERED = Step.COMMAND_SENT, Step.ANSWERED
_NEW, _WAITING, _DEAD = State.ENVIRONMENT, State.WAITING, State.DEAD
"""What every command meets, at hand: see core.channel.LEASE."""

# Everything that may happen; a missing pair is a fault, ours for COMMAND_SENT, else the peer's.
# COMMAND_SENT in WAITING is missing for more than tidiness: Asterisk waits on the socket but reads
# through stdio, and a second command that came along with the first stays unseen in its buffer.
TRANSITIONS: Final[Mapping[State, Mapping[Step, State]]] = {
    State.ENVIRONMENT: {
        Step.ENVIRONMENT_ENDED: State.IDLE,
        Step.HUNG_UP: State.ENVIRONMENT,
        Step.ENDED: State.DEAD,
    },
    State.IDLE: {
        Step.COMMAND_SENT: State.WAITING,
        Step.HUNG_UP: State.IDLE,
        Step.ENDED: State.DEAD,
    },
    State.WAITING: {
        Step.TRIED: State.WAITING,
        Step.ANSWERED: State.IDLE,
        Step.HUNG_UP: State.WAITING,
        Step.ENDED: State.DEAD,
    },
    State.DEAD: {Step.ENDED: State.DEAD},
}


@dataclass(frozen=True, slots=True)
class AgiLimits:
    """How much a peer may send before it must make sense (real environments: 23 lines, 700 bytes).

    line and block are bytes: of one line, and of the whole environment or one usage text; so
    10,000 connections that never finish their environment hold 320 MB at the very worst.
    """

    line: int = 8192
    environment_lines: int = 128
    block: int = 32768


# The value ends at the *last* bracket that only `name=value` follows: it may hold brackets itself.
_RESULT: Final = re.compile(r"200 result=([^ ]*)(?: \((.*)\))?(?: ([a-z]\w*=.*))?")
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,9})")
_CODE: Final = re.compile(r"([1-5][0-9][0-9])([ -])(.*)")


class AgiProtocol:
    """One connection's dialogue, seen from the server: what came, and what may be sent."""

    __slots__ = (
        "_buffer",
        "_echo",
        "_exec",
        "_limits",
        "_state",
        "_usage",
        "_usage_bytes",
        "hung_up",
    )

    def __init__(self, limits: AgiLimits = AgiLimits()) -> None:
        self._limits = limits
        self._state = State.ENVIRONMENT
        self._buffer = b""
        self._usage: list[bytes] | None = None
        self._usage_bytes = 0
        self._exec = False
        self._echo = False
        self.hung_up = False

    def __repr__(self) -> str:
        return f"<AgiProtocol {self._state.value}{', hung up' if self.hung_up else ''}>"

    @property
    def state(self) -> State:
        """Where the dialogue stands."""
        return self._state

    def send(self, line: AgiCommand) -> bytes:
        """Note that `line` goes out now; gives it back to be written.

        Raises StateError before the environment has ended, while an answer is due, and at the end.
        """
        following = TRANSITIONS[self._state].get(_SENT)
        if following is None:
            raise StateError(f"no command may be sent: the dialogue is {self._state.value}")
        self._state = following
        self._exec = line.startswith(b"EXEC ")
        return line

    def end(self) -> None:
        """The connection is over, by whichever side. What is fed afterwards is dropped."""
        self._state = TRANSITIONS[self._state][Step.ENDED]
        self._buffer = b""
        self._usage = None

    def feed(self, data: bytes) -> list[AgiEvent]:
        """Take bytes; give the events they complete.

        Raises ProtocolFault at garbage and ends the dialogue, whose sides could no longer be in
        step; what came whole before the garbage in the same bytes is not to be trusted, either.
        """
        if self._buffer:
            data = self._buffer + data
        events: list[AgiEvent] = []
        if self._state is _NEW:
            end = self._environment_end(data)
            if end < 0:
                self._buffer = data
                return events
            environment = self._environment(data[:end])
            if self.hung_up:
                events.append(HungUp())
            events.append(environment)
            data = data[end + 2 :]
        elif self._state is _DEAD:
            return events
        lines = data.split(b"\n")
        self._buffer = lines.pop()
        for line in lines:
            if len(line) > self._limits.line:
                raise self._fault(f"line longer than {self._limits.line} bytes")
            event = self._line(line)
            if event is not None:
                events.append(event)
        if len(self._buffer) > self._limits.line:
            raise self._fault(f"line longer than {self._limits.line} bytes")
        return events

    def _fault(self, what: str) -> ProtocolFault:
        self.end()
        return ProtocolFault(what)

    def _unexpected(self, line: bytes) -> ProtocolFault:
        shown = line[:80].decode("utf-8", "replace")
        return self._fault(f"unexpected while {self._state.value}: {shown!r}")

    def _step(self, step: Step, line: bytes) -> None:
        following = TRANSITIONS[self._state].get(step)
        if following is None:
            raise self._unexpected(line)
        self._state = following

    def _environment_end(self, data: bytes) -> int:
        # The first line cannot be empty, so the first empty line follows a line break.
        limits = self._limits
        end = data.find(b"\n\n")
        longest = len(data) if end < 0 else end
        if longest > limits.block:
            raise self._fault(f"environment longer than {limits.block} bytes")
        if longest > limits.line and max(map(len, data[:longest].split(b"\n"))) > limits.line:
            raise self._fault(f"line longer than {limits.line} bytes")
        if end < 0 and data.count(b"\n") > limits.environment_lines:
            raise self._fault(f"environment of more than {limits.environment_lines} lines")
        return end

    def _environment(self, block: bytes) -> AgiEnvironment:
        text = block.decode("utf-8", "surrogateescape")
        lines = text.split("\n")
        if len(lines) > self._limits.environment_lines:
            raise self._fault(f"environment of more than {self._limits.environment_lines} lines")
        try:
            values = dict([line.split(": ", 1) for line in lines])
        except ValueError:  # one that is not two parts
            values = self._with_hangup(lines)
        # A caller who gets a line break into his number or name could add lines of his own (the
        # called extension, say). Asterisk sends each line once: trust neither.
        if len(values) != len(lines):
            raise self._fault("environment names something twice")
        values.pop("HANGUP", None)
        if text.count("\nagi_") + text.startswith("agi_") != len(values):
            raise self._fault("environment with a name that is not agi_...")
        self._step(Step.ENVIRONMENT_ENDED, b"")
        return AgiEnvironment(values)

    def _with_hangup(self, lines: list[str]) -> dict[str, str]:
        values: dict[str, str] = {}
        for line in lines:
            key, colon, value = line.partition(": ")
            if colon:
                values[key] = value
            elif line == "HANGUP":
                self._hang_up(b"HANGUP")
                values[line] = ""
            else:
                raise self._fault(f"no environment line: {line[:80]!r}")
        return values

    def _hang_up(self, line: bytes) -> HungUp | None:
        # Asterisk says it when the channel goes, and once more before it closes the connection.
        self._step(Step.HUNG_UP, line)
        told, self.hung_up = self.hung_up, True
        return None if told else HungUp()

    def _line(self, line: bytes) -> AgiEvent | None:
        event = _parsed(line)
        if type(event) is HungUp:
            return self._hang_up(line)
        if self._usage is not None:
            return self._usage_line(self._usage, line)
        if type(event) is AgiAnswer:
            return self._answered(event, line)
        if type(event) is Trying:
            self._step(Step.TRIED, line)
            return event
        if event is None or not (self._state is _WAITING or self._echo):
            raise self._unexpected(line)
        self._usage, self._usage_bytes = [], 0
        return None

    def _answered(self, answer: AgiAnswer, line: bytes) -> AgiAnswer | None:
        # handle_exec() answers with the application's own return code and then returns it, where 1
        # means "show usage": after `200 result=1` to EXEC comes a 520 that answers nothing.
        if self._echo and answer.code == 520:
            self._echo = False
            return None
        self._step(_ANSWERED, line)
        self._echo = self._exec and answer.result == 1
        return answer

    def _usage_line(self, usage: list[bytes], line: bytes) -> AgiAnswer | None:
        if line.startswith(b"520 "):
            self._usage = None
            text = b"\n".join(usage).decode("utf-8", "replace")
            return self._answered(AgiAnswer(520, "", text), line)
        self._usage_bytes += len(line) + 1
        if self._usage_bytes > self._limits.block:
            raise self._fault(f"usage text longer than {self._limits.block} bytes")
        usage.append(line)
        return None


@lru_cache(maxsize=256)  # a PBX says few different things, and what it says is a value
def _parsed(line: bytes) -> AgiAnswer | Trying | HungUp | Literal["usage"] | None:
    text = line.decode("utf-8", "surrogateescape")
    if match := _RESULT.fullmatch(text):
        word, data, rest = match.groups("")
        pairs = [pair.partition("=") for pair in rest.split(" ")] if rest else ()
        extra = tuple([(name, value) for name, equals, value in pairs if equals])
        return AgiAnswer(200, int(word) if _NUMBER.fullmatch(word) else word, data, extra)
    if line == b"HANGUP":
        return HungUp()
    match = _CODE.fullmatch(text)
    if match is None:
        return None
    code = int(match[1])
    if match[2] == "-":
        return "usage" if code == 520 else None
    if code < 200:
        return Trying(code)
    return AgiAnswer(code, "", match[3]) if code >= 500 else None
