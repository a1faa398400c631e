"""One FastAGI connection on asyncio: what a handler holds while it serves a call."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from drivers.asterisk.agi import AgiAnswer, AgiEnvironment, AgiProtocol, HungUp, State
from drivers.asterisk.agi_commands import FAILURE, AgiCommand
from umpack.core.errors import PeerFault, PeerGone, ProtocolFault

if TYPE_CHECKING:
    from drivers.asterisk.agi_server import AgiServer


class AgiCall(asyncio.BufferedProtocol):
    """One call as its handler sees it: `environment`, `hung_up`, `command`, `close`, `fail`.

    A protocol rather than a pair of streams: an answer wakes the handler once, with nothing
    between, and a connection that says nothing has neither task nor timer.
    """

    __slots__ = (
        "_answer",
        "_loss",
        "_protocol",
        "_server",
        "_transport",
        "_write",
        "due",
        "environment",
        "limit",
        "task",
    )

    environment: AgiEnvironment
    task: asyncio.Task[None]

    def __init__(self, server: AgiServer) -> None:
        self._server = server
        self._protocol = AgiProtocol(server.limits.protocol)
        self._transport: asyncio.Transport
        self._answer: asyncio.Future[AgiAnswer] | None = None
        self._loss: tuple[type[PeerFault], str] | None = None
        self.limit = 0.0
        self.due: float | None = None
        """Loop time by which the present command's answer must have come; see AgiServer.watch."""

    def __repr__(self) -> str:
        state = self._loss[1] if self._loss else self._protocol
        return f"<AgiCall {getattr(self, 'environment', 'without environment')} {state}>"

    @property
    def hung_up(self) -> bool:
        """Whether the caller is gone: Asterisk said HANGUP, or the connection has ended."""
        return self._protocol.hung_up or self._loss is not None

    @property
    def commanded(self) -> bool:
        """Whether any command was sent, that is: whether something may have been done."""
        return self._answer is not None

    def command(self, line: AgiCommand, *, limit: float | None = None) -> Awaitable[AgiAnswer]:
        """Send one command now; await its answer, at most `limit` seconds.

        A HANGUP only sets `hung_up`: the answer still comes. Raises PeerGone when the connection
        has ended, ProtocolFault after garbage, PeerTimeout after `limit`; each of them is the end
        of the dialogue (a late answer could be taken for the next one's). StateError if another
        command is unanswered or the call was closed here.
        """
        if self._loss is not None:
            raise self._loss[0](self._loss[1])
        outgoing = self._protocol.send(line)
        loop = self._server.loop
        # The future itself, no coroutine around it: one frame less on the way of every answer.
        answer: asyncio.Future[AgiAnswer] = loop.create_future()
        self._answer = answer
        self._write(outgoing)
        if limit is not None:
            self._server.watch(self, limit)
        else:
            self.due = None
        return answer

    def close(self) -> None:
        """End the AGI: the dialplan goes on, with AGISTATUS=SUCCESS unless the caller hung up."""
        self._protocol.end()
        self._transport.close()

    def fail(self) -> None:
        """End the AGI with AGISTATUS=FAILURE, so that the dialplan serves the call by itself.

        While a command is unanswered this is a mere close: Asterisk would read it after that
        command, and take a call that was served for one that was not.
        """
        if self._protocol.state in (State.ENVIRONMENT, State.IDLE):
            self._transport.write(FAILURE)
        self.close()

    def lose(self, kind: type[PeerFault], why: str, *, fault: bool = True) -> None:
        """End the dialogue for a reason, which the handler meets at its present or next command."""
        if self._loss is not None:
            return
        self._loss = (kind, why)
        self._protocol.end()
        if self._answer is None and kind is not PeerGone:
            # Nothing was done for this call yet, and its dialplan may still be there to hear it.
            self._transport.write(FAILURE)
            self._transport.close()
        else:
            self._transport.abort()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(kind(why))
        if fault:
            self._server.faulted(self, kind(why))

    # --- what the loop calls ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the environment."""
        self._transport = transport  # type: ignore[assignment]  # create_server makes no other
        self._write = self._transport.write
        self._server.joined(self)

    def get_buffer(self, sizehint: int) -> bytearray:
        """Where to read to: one buffer for all, as the loop hands it back before it reads again.

        A plain Protocol gets a new quarter of a megabyte for every few bytes from asyncio.
        """
        return self._server.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Begin the call when its environment is whole; pass answers on."""
        try:
            events = self._protocol.feed(bytes(self._server.buffer[:nbytes]))
        except ProtocolFault as fault:
            self.lose(ProtocolFault, str(fault))
            return
        for event in events:
            if type(event) is AgiAnswer:
                # None or done: its handler was cancelled, and is on its way to close().
                self.due = None
                if self._answer is not None and not self._answer.done():
                    self._answer.set_result(event)
            elif type(event) is AgiEnvironment:
                self.environment = event
                self._server.begin(self)
            elif type(event) is HungUp:
                self._acknowledge()

    def _acknowledge(self) -> None:
        """Acknowledge what was received at once, for there is nothing to send it along with.

        Asterisk writes HANGUP between two answers, and its end of the connection has Nagle's
        algorithm on: the answer behind HANGUP is not sent before this, and a delayed
        acknowledgement (RFC 1122, 4.2.3.2) held the channel of every answered call 40 ms longer.
        """
        transport = self._transport.get_extra_info("socket")
        if transport.family not in (socket.AF_INET, socket.AF_INET6):
            return
        try:
            # uvloop hands out a mere description of its socket, which cannot be set.
            there = socket.socket(
                transport.family, socket.SOCK_STREAM, 0, fileno=transport.fileno()
            )
            try:
                there.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            finally:
                there.detach()
        except (OSError, ValueError):
            pass  # the connection is gone, which will be said elsewhere

    def eof_received(self) -> None:
        """Asterisk closes when it is done with the channel; there is no half-open AGI."""
        self.lose(PeerGone, "the peer closed the connection", fault=False)

    def pause_writing(self) -> None:
        """Give up a peer that does not read: with its 64 KiB of buffer full (the loop's own limit).

        Commands and answers take turns, so an honest peer never has more than one command waiting.
        """
        self.lose(PeerGone, "the peer does not read")

    def connection_lost(self, exc: Exception | None) -> None:
        """The end, whatever was before."""
        if exc is not None:
            self.lose(PeerGone, f"the connection broke: {exc}")
        elif self._answer is not None and not self._answer.done():
            self.lose(PeerGone, "the call was closed here", fault=False)
        self._server.left(self)
