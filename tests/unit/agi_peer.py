"""The Asterisk end of one FastAGI connection, played by hand: for tests of the whole daemon.

async with await placed(port, called="100") as caller:
    assert await caller.dialled() == "PJSIP/100@um1"
    left = await caller.finish("ANSWER", 16)
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
from dataclasses import dataclass, field
from types import TracebackType

_EXPRESSION = re.compile(r"\$\{([^{}]*)\}")
_serials = itertools.count(1)


@dataclass
class Left:
    """How the AGI step ended, as the dialplan would see it."""

    status: str
    variables: dict[str, str]


@dataclass
class Caller:
    """One call inside its AGI step."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    uniqueid: str
    facts: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    dials: list[str] = field(default_factory=list)

    async def dialled(self) -> str:
        """Serve commands up to the next EXEC Dial, which stays unanswered; gives what to dial."""
        while line := await self._command():
            if found := re.fullmatch(r'EXEC "?Dial"? "?([^,"]*),([0-9.]+)(?:,R)?"?', line):
                self.dials.append(found[1])
                return found[1]
            self._answer(line)
        raise AssertionError(f"the server left after {self.dials}")

    async def finish(
        self, status: str, cause: int = 0, *, leg: str = "leg", tech: str = ""
    ) -> Left:
        """The Dial ends like this; then serve commands to the end of the AGI step."""
        self.end_dial(status, cause, leg=leg, tech=tech)
        return await self.left()

    def end_dial(self, status: str, cause: int = 0, *, leg: str = "leg", tech: str = "") -> None:
        """The Dial ends like this."""
        self.facts = {
            "DIALSTATUS": status,
            "HANGUPCAUSE": str(cause),
            "HANGUPCAUSE_KEYS()": leg,
            f"HANGUPCAUSE({leg},tech)": tech,
        }
        self._say("200 result=0")

    async def left(self) -> Left:
        """Serve commands until the server is done with the call."""
        while line := await self._command():
            if line.lower().startswith("failure"):
                return Left("FAILURE", self.variables)
            assert not line.startswith("EXEC Dial"), line
            self._answer(line)
        return Left("SUCCESS", self.variables)

    def hang_up(self) -> None:
        """The caller goes, and Asterisk ends the Dial."""
        self._say("HANGUP")
        self.end_dial("CANCEL", 0, leg="")

    def cut(self) -> None:
        """The connection breaks."""
        self.writer.transport.abort()

    async def _command(self) -> str:
        try:
            async with asyncio.timeout(10):
                return (await self.reader.readline()).decode().rstrip("\n")
        except ConnectionError:
            return ""

    def _answer(self, line: str) -> None:
        if line.startswith("GET FULL VARIABLE "):
            text = line.removeprefix("GET FULL VARIABLE ").strip('"')
            text = _EXPRESSION.sub(lambda match: self.facts.get(match[1], ""), text)
            self._say(f"200 result=1 ({text})")
        elif found := re.fullmatch(r'SET VARIABLE "?(\w+)"? "?([^"]*)"?', line):
            self.variables[found[1]] = found[2]
            self._say("200 result=1")
        else:
            self._say("200 result=0")

    def _say(self, line: str) -> None:
        self.writer.write(f"{line}\n".encode())

    async def __aenter__(self) -> Caller:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


async def placed(
    port: int, called: str = "100", caller: str = "0301234", name: str = "Someone"
) -> Caller:
    """A call that has come to AGI() in the dialplan of a PBX. ConnectionError: nobody listens."""
    return await _arrived(port, "umpack", called, caller, name)


async def takes_calls(port: int) -> None:
    """Wait as long as umpack leaves calls to the dialplan, which is what this asks it first."""
    while True:
        async with await _arrived(port, "alive", "100", "", "") as question:
            if await question.reader.readline() != b"failure\n":
                return
        await asyncio.sleep(0.02)


async def _arrived(port: int, script: str, called: str, caller: str, name: str) -> Caller:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    uniqueid = f"1732270000.{next(_serials)}"
    environment = {
        "network": "yes",
        "network_script": script,
        "request": f"agi://127.0.0.1:{port}/{script}",
        "channel": f"PJSIP/in-{uniqueid}",
        "language": "en",
        "type": "PJSIP",
        "uniqueid": uniqueid,
        "version": "22.10.0",
        "callerid": caller,
        "calleridname": name,
        "callingpres": "0",
        "callingani2": "0",
        "callington": "0",
        "callingtns": "0",
        "dnid": called,
        "rdnis": "unknown",
        "context": "from-line",
        "extension": called,
        "priority": "1",
        "enhanced": "0.0",
        "accountcode": "",
        "threadid": "1",
    }
    writer.write("".join(f"agi_{key}: {value}\n" for key, value in environment.items()).encode())
    writer.write(b"\n")
    return Caller(reader, writer, uniqueid)
