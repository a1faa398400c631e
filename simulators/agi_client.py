"""The PBX's end of one FastAGI connection: res_agi as far as a server can tell.

`AgiDialogue` runs the commands of a call that has connected; `AgiSocket` is its socket. Answers and
their text are those of Asterisk 22.10, word for word.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Final, cast

from simulators.pbx_dial import CallerLeft, CommandCame, Inbox, ServerGone

if TYPE_CHECKING:
    from simulators.pbx_call import PbxCall

LINE_BYTES: Final = 8191
"""AGI_BUF_LEN less the NUL: what is longer is cut there, and its rest is the next command."""

UNKNOWN_COMMAND: Final = "510 Invalid or unknown command"
DEAD_CHANNEL: Final = "511 Command Not Permitted on a dead channel or intercept routine"

_EXPRESSION: Final = re.compile(r"\$\{([^{}]*)\}")


class AgiStatus(Enum):
    """AGISTATUS."""

    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    HANGUP = "HANGUP"


class AgiSocket(asyncio.Protocol):
    """Lines into the inbox of a call, bytes out."""

    __slots__ = ("_buffer", "_inbox", "_lost", "_transport")

    def __init__(self, inbox: Inbox, lost: Callable[[AgiSocket], None]) -> None:
        self._inbox = inbox
        self._lost = lost
        self._buffer = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Cut into lines as fgets() would."""
        buffer = self._buffer + data
        while True:
            end = buffer.find(b"\n", 0, LINE_BYTES)
            if end < 0 and len(buffer) < LINE_BYTES:
                break
            cut = LINE_BYTES if end < 0 else end + 1
            self._inbox.put(CommandCame(buffer[:cut].rstrip(b"\r\n")))
            buffer = buffer[cut:]
        self._buffer = buffer

    def eof_received(self) -> bool:
        """The server is done with the call."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The same, in whatever way."""
        self._lost(self)
        self._inbox.put(ServerGone())

    def write(self, text: str) -> None:
        """Send whole lines; after the connection is lost they go nowhere."""
        if not self._transport.is_closing():
            self._transport.write(text.encode("utf-8", "surrogateescape"))

    def write_raw(self, data: bytes) -> None:
        """Send bytes that need not be AGI."""
        if not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Asterisk closes when the call has left the AGI."""
        self._transport.close()

    def cut(self) -> None:
        """Reset the connection, as a crash does."""
        self._transport.abort()


@lru_cache(maxsize=256)  # the same few lines for every call
def split_words(line: str) -> tuple[str, ...]:
    """The words of a command as res_agi's parse_args() reads them.

    Blanks part words outside double quotes; a backslash takes any meaning from what follows it.
    """
    words: list[str] = []
    word: list[str] | None = None
    quoted = escaped = False
    for char in line:
        if escaped:
            word = [] if word is None else word
            word.append(char)
            escaped = False
        elif char == "\\":
            escaped = True
        elif char == '"':
            quoted = not quoted
            word = [] if word is None else word
        elif char in " \t" and not quoted:
            if word is not None:
                words.append("".join(word))
                word = None
        else:
            word = [] if word is None else word
            word.append(char)
    if word is not None:
        words.append("".join(word))
    return tuple(words)


class AgiDialogue:
    """Runs what the AGI server asks for, for one call, until either side leaves."""

    def __init__(self, call: PbxCall, socket: AgiSocket) -> None:
        self._call = call
        self._socket = socket
        self._told_hangup = False
        # name: (handler, may run on a dead channel)
        self._commands: dict[str, tuple[Callable[[tuple[str, ...]], Awaitable[str]], bool]] = {
            "ANSWER": (self._answer, False),
            "CHANNEL STATUS": (self._channel_status, False),
            "EXEC": (self._exec, True),
            "GET FULL VARIABLE": (self._get_full_variable, True),
            "GET VARIABLE": (self._get_variable, True),
            "HANGUP": (self._hang_up, False),
            "NOOP": (self._noop, True),
            "RECORD FILE": (call.reception.record_file, False),
            "SET VARIABLE": (self._set_variable, True),
            "STREAM FILE": (call.reception.stream_file, False),
            "VERBOSE": (self._noop, True),
        }

    async def run(self) -> AgiStatus:
        """Serve commands to the end; gives AGISTATUS."""
        call = self._call
        self._tell_hangup()
        while True:
            item = await call.inbox.get()
            match item:
                case CommandCame(line):
                    if line.lower().startswith(b"failure"):
                        return AgiStatus.FAILURE
                    self._socket.write(await self._run_line(line) + "\n")
                    self._tell_hangup()
                case ServerGone():
                    return AgiStatus.HANGUP if call.gone else AgiStatus.SUCCESS
                case CallerLeft(cause):
                    call.caller_gone(cause)
                    self._tell_hangup()
                case _:
                    pass  # of a Dial that is over

    def _tell_hangup(self) -> None:
        if self._call.gone and not self._told_hangup:
            self._told_hangup = True
            self._socket.write("HANGUP\n")

    async def _run_line(self, line: bytes) -> str:
        words = split_words(line.decode("utf-8", "surrogateescape"))
        for length in range(min(3, len(words)), 0, -1):
            found = self._commands.get(" ".join(words[:length]).upper())
            if found is not None:
                handler, dead_too = found
                if self._call.gone and not dead_too:
                    return DEAD_CHANNEL
                return await handler(words[length:])
        return UNKNOWN_COMMAND

    async def _noop(self, words: tuple[str, ...]) -> str:
        return "200 result=0"

    async def _answer(self, words: tuple[str, ...]) -> str:
        self._call.answer()
        return "200 result=0"

    async def _channel_status(self, words: tuple[str, ...]) -> str:
        return f"200 result={self._call.channel.state.value}"

    async def _hang_up(self, words: tuple[str, ...]) -> str:
        self._call.caller_gone(16)
        return "200 result=1"

    async def _exec(self, words: tuple[str, ...]) -> str:
        if not words:
            return "520-Invalid command syntax.  Proper usage follows:\n520 End of proper usage."
        result = await self._call.execute(words[0], words[1] if len(words) > 1 else "")
        return f"200 result={result}"

    async def _get_variable(self, words: tuple[str, ...]) -> str:
        value = self._call.variable(words[0]) if words else ""
        return f"200 result=1 ({value})" if value else "200 result=0"

    async def _get_full_variable(self, words: tuple[str, ...]) -> str:
        if not words:
            return "200 result=0"
        text = _EXPRESSION.sub(lambda match: self._call.variable(match[1]), words[0])
        return f"200 result=1 ({text})"

    async def _set_variable(self, words: tuple[str, ...]) -> str:
        if len(words) >= 2:
            self._call.set_variable(words[0], words[1])
        return "200 result=1"
