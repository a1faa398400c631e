"""Peers of the simulated PBX for its own tests: an AGI server that says what it is told to, and a
manager that reads everything."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from drivers.asterisk.agi_call import AgiCall
from drivers.asterisk.agi_server import AgiServer
from drivers.asterisk.ami_wire import AmiAnswer, AmiCodec, AmiEvent, AmiMessage, encode_action
from simulators.asterisk import SimulatedAsterisk

LIMIT = 20.0
Serve = Callable[[AgiCall], Awaitable[None]]


@contextlib.asynccontextmanager
async def served(pbx: SimulatedAsterisk, serve: Serve) -> AsyncIterator[AgiServer]:
    """An AGI server for the PBX's calls; what `serve` raises fails the test."""
    faults: list[Exception] = []
    server = await AgiServer.start(
        "127.0.0.1", 0, handler=serve, report=lambda call, error: faults.append(error)
    )
    pbx.agi_to("127.0.0.1", server.port)
    try:
        yield server
    finally:
        await server.close(LIMIT)
    if faults:
        raise faults[0]


class Manager:
    """An AMI client of a few lines; `messages` is everything it got."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.messages: list[AmiMessage] = []
        self.raw = b""
        self._reader = reader
        self._writer = writer
        self._codec = AmiCodec()
        self._serial = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def of(
        cls, pbx: SimulatedAsterisk, *, log_in: bool = True, events: str = "on"
    ) -> AsyncIterator[Manager]:
        """Connected, and logged in unless told otherwise."""
        reader, writer = await asyncio.open_connection("127.0.0.1", pbx.ami.port)
        manager = cls(reader, writer)
        try:
            if log_in:
                answer = await manager.act(
                    "Login", **{"Username": "umpack", "Secret": "umpack", "Events": events}
                )
                assert answer.ok
            yield manager
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def send(self, name: str, **headers: str) -> str:
        """Send an action; gives its ActionID."""
        self._serial += 1
        action_id = f"t{self._serial}"
        self._writer.write(encode_action(name, action_id, headers))
        return action_id

    def send_raw(self, data: bytes) -> None:
        """Send these bytes."""
        self._writer.write(data)

    async def act(self, name: str, **headers: str) -> AmiAnswer:
        """Do an action and wait for its answer."""
        action_id = self.send(name, **headers)
        return await self.answer(action_id)

    async def answer(self, action_id: str) -> AmiAnswer:
        """Wait for the answer to an action."""
        found = await self.wait(
            lambda m: m if isinstance(m, AmiAnswer) and m.action_id == action_id else None
        )
        assert isinstance(found, AmiAnswer)
        return found

    async def list_of(self, name: str, **headers: str) -> list[AmiEvent]:
        """Do a listing action; gives its events without the last."""
        action_id = self.send(name, **headers)
        answer = await self.answer(action_id)
        assert answer["EventList"] == "start"
        await self.wait(
            lambda m: m if m.get("EventList") == "Complete" and m.action_id == action_id else None
        )
        mine = [m for m in self.messages if isinstance(m, AmiEvent) and m.action_id == action_id]
        assert int(mine[-1]["ListItems"]) == len(mine) - 1
        return mine[:-1]

    async def event(self, name: str) -> AmiEvent:
        """Wait for the first event of a name."""
        found = await self.wait(lambda m: m if isinstance(m, AmiEvent) and m.name == name else None)
        assert isinstance(found, AmiEvent)
        return found

    def events(self) -> list[str]:
        """The names of all events so far."""
        return [m.name for m in self.messages if isinstance(m, AmiEvent)]

    async def wait(self, fits: Callable[[AmiMessage], AmiMessage | None]) -> AmiMessage:
        """The first message that fits, read before or still to come."""
        async with asyncio.timeout(LIMIT):
            while True:
                for message in self.messages:
                    if (found := fits(message)) is not None:
                        return found
                await self.read()

    async def read(self) -> bool:
        """Read once; False at the end of the connection."""
        data = await self._reader.read(65536)
        self.raw += data
        self.messages += self._codec.feed(data)
        return bool(data)

    async def settle(self) -> None:
        """All events up to now are in: a Ping's answer comes after them."""
        assert (await self.act("Ping"))["Ping"] == "Pong"

    async def closed(self) -> bool:
        """Whether the PBX ends the connection, soon."""
        async with asyncio.timeout(LIMIT):
            try:
                while await self.read():
                    pass
            except OSError:
                pass
            return True
