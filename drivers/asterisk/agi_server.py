"""FastAGI listener on asyncio: one connection is one call, one coroutine serves it top to bottom.

Nothing is decided here. A task is made only when an environment has come whole, so that thousands
of silent or slow peers cost a socket and some kilobytes each, and no task, timer or thread.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from drivers.asterisk.agi import AgiLimits
from drivers.asterisk.agi_call import AgiCall
from umpack.core.errors import PeerFault, PeerGone, PeerTimeout

Handler: TypeAlias = Callable[[AgiCall], Awaitable[None]]
Report: TypeAlias = Callable[[AgiCall, Exception], None]

# A PBX that loses its power says no goodbye: without probes its calls' leases would never end.
# Gone after 20 s of silence and three probes 5 s apart. Accepted sockets inherit it (tcp(7)).
_KEEPALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


_SWEEP: Final = 0.1
"""Seconds between looks at commands whose answer is due."""


@dataclass(frozen=True, slots=True)
class AgiServerLimits:
    """environment: seconds from connect to a whole one; backlog: connections not yet accepted.

    More than `connections` are closed as they come (the dialplan then hunts by itself).
    """

    protocol: AgiLimits = field(default_factory=AgiLimits)
    environment: float = 5.0
    connections: int = 20_000
    backlog: int = 1024


@dataclass(slots=True)
class AgiServerStats:
    """Counts since the start, except `open`: the connections there are now."""

    open: int = 0
    accepted: int = 0
    refused: int = 0  # over the limit of connections
    calls: int = 0  # environments that came whole
    faults: int = 0  # garbage, silence, resets, peers that do not read
    errors: int = 0  # handlers that raised


def raise_file_limit() -> int:
    """Raise this process's soft limit of open files to the hard one, and give it (files)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class AgiServer:
    """Listens, and runs `handler(call)` for every environment that comes.

    When the handler returns, the connection is closed. When it raises, `report(call, error)` is
    told, and a call for which no command was sent yet ends as `fail`. `report` is also told of
    garbage or silence instead of an environment; connections that just end then are only counted.
    """

    def __init__(self, handler: Handler, report: Report, limits: AgiServerLimits) -> None:
        self.limits = limits
        self.stats = AgiServerStats()
        self.loop = asyncio.get_running_loop()
        self.buffer = bytearray(16_384)
        self._handler = handler
        self._report = report
        self._listener: asyncio.Server
        self._connections: set[AgiCall] = set()
        self._running: set[asyncio.Task[None]] = set()
        # In order of arrival and with the same limit, so the first one is due first: one timer.
        self._waiting: dict[AgiCall, float] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        # Commands with a limit; swept, for two timers a call cost more than the decision itself.
        self._watched: set[AgiCall] = set()
        self._watcher: asyncio.TimerHandle | None = None
        self._closing = False
        self._empty = asyncio.Event()

    def __repr__(self) -> str:
        return f"<AgiServer {len(self._running)} calls {self.stats}>"

    @classmethod
    async def start(
        cls,
        host: str,
        port: int,
        *,
        handler: Handler,
        report: Report,
        limits: AgiServerLimits | None = None,
    ) -> AgiServer:
        """Listen on `host`:`port` (0: any free one, see `port`); raises OSError if it cannot.

        Raises the process's limit of open files, too.
        """
        raise_file_limit()
        server = cls(handler, report, limits or AgiServerLimits())
        server._listener = await server.loop.create_server(
            lambda: AgiCall(server), host, port, backlog=server.limits.backlog
        )
        for listener in server._listener.sockets:
            for option in _KEEPALIVE:
                listener.setsockopt(*option)
        return server

    @property
    def port(self) -> int:
        """The TCP port of the (first) listening socket."""
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    async def close(self, grace: float = 0.0) -> int:
        """Drain: take no more calls, wait `grace` seconds for those running, then cut the rest off.

        Gives the number of handlers cut off (cancelled, their `finally` run). A call that is cut
        off during EXEC Dial goes on in Asterisk.
        """
        self._closing = True
        self._listener.close()
        for call in list(self._waiting):
            call.fail()
        if self._running and grace > 0:
            await asyncio.wait(self._running, timeout=grace)
        cut = list(self._running)
        for task in cut:
            task.cancel()
        for call in list(self._connections):
            call.lose(PeerGone, "the server is closing", fault=False)
        if cut:
            await asyncio.wait(cut)
        if self._connections:
            await self._empty.wait()
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        await self._listener.wait_closed()
        return len(cut)

    # --- what its calls tell it ------------------------------------------------------------------

    def joined(self, call: AgiCall) -> None:
        """A connection was made."""
        self.stats.accepted += 1
        self.stats.open += 1
        self._connections.add(call)
        if self._closing or self.stats.open > self.limits.connections:
            self.stats.refused += 1
            call.fail()
            return
        self._waiting[call] = self.loop.time() + self.limits.environment
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(self.limits.environment, self._sweep)

    def begin(self, call: AgiCall) -> None:
        """Its environment has come."""
        del self._waiting[call]
        self.stats.calls += 1
        call.task = self.loop.create_task(self._run(call))
        self._running.add(call.task)

    def watch(self, call: AgiCall, limit: float) -> None:
        """Its present command must be answered within `limit` seconds (and a sweep)."""
        call.due, call.limit = self.loop.time() + limit, limit
        self._watched.add(call)
        if self._watcher is None:
            self._watcher = self.loop.call_later(_SWEEP, self._watch)

    def _watch(self) -> None:
        self._watcher = None
        now = self.loop.time()
        for call in list(self._watched):
            if call.due is None:
                self._watched.discard(call)
            elif call.due <= now:
                self._watched.discard(call)
                call.lose(PeerTimeout, f"no answer within {call.limit:g} s")
        if self._watched:
            self._watcher = self.loop.call_later(_SWEEP, self._watch)

    def faulted(self, call: AgiCall, fault: PeerFault) -> None:
        """Its peer is at fault. A handler meets that at its command, else it is reported here."""
        self.stats.faults += 1
        if call in self._waiting and not isinstance(fault, PeerGone):
            self._report(call, fault)

    def left(self, call: AgiCall) -> None:
        """Its connection is gone."""
        self.stats.open -= 1
        self._waiting.pop(call, None)
        self._watched.discard(call)
        self._connections.discard(call)
        if self._closing and not self._connections:
            self._empty.set()

    async def _run(self, call: AgiCall) -> None:
        try:
            await self._handler(call)
        except Exception as error:
            self.stats.errors += 1
            if not call.commanded:
                call.fail()
            self._report(call, error)
        finally:
            call.close()
            self._running.discard(call.task)

    def _sweep(self) -> None:
        self._sweeper = None
        now, limit = self.loop.time(), self.limits.environment
        while self._waiting:
            call, due = next(iter(self._waiting.items()))
            if due > now:
                self._sweeper = self.loop.call_at(due, self._sweep)
                return
            call.lose(PeerTimeout, f"no whole environment within {limit:g} s")
            self._waiting.pop(call, None)
