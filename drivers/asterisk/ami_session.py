"""One AMI connection: pyst2's `Manager`, repaired.

Stock pyst2 0.5.1 waits for ever for an answer, gives answers to whoever asks first, shares one
default dict between all actions, raises on `ChanVariable`, reads byte by byte, and connects without
a limit. Here its login, logoff, command and sequence numbers are used as they are, on a connection
and a reader of our own.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

from asterisk.manager import Manager, ManagerException

from drivers.asterisk.ami_wire import AmiAnswer, AmiCodec, AmiEvent, AmiMessage, AmiRefused
from drivers.asterisk.ami_wire import encode_action as encode
from umpack.core.errors import PeerFault, PeerGone, PeerTimeout, ProtocolFault

RECEIVE_BYTES: Final = 256 * 1024
BUSY_BYTES: Final = 16 * 1024
"""Of a stream that brings as much as this at once, no more is left to gather."""
MAX_LIST: Final = 100_000
MAX_GARBLED_RUN: Final = 20
LOGOFF_LIMIT: Final = 1.0

Headers = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True, slots=True)
class AmiAddress:
    """Where an AMI listens, and who we are there; the secret is never printed."""

    host: str
    port: int
    user: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class AmiLimits:
    """Seconds each step may take; `write` is for a socket that takes no more bytes."""

    connect: float = 5.0
    # A wrong secret is answered after one second (`sleep(1)` in main/manager.c).
    login: float = 5.0
    action: float = 5.0
    collect: float = 15.0
    write: float = 3.0
    ping_every: float = 10.0
    ping: float = 3.0
    gather: float = 0.01
    """How long after events more are left to gather, while nobody waits for an answer: each reading
    wakes a thread and the loop, and both want the interpreter from the calls."""


@dataclass(slots=True)
class AmiCounters:
    """Over all sessions of a link: logins, events by fate, answers nobody waited for."""

    sessions: int = 0
    events: int = 0
    skipped: int = 0
    missed: int = 0
    strays: int = 0
    garbled: int = 0


@dataclass(slots=True)
class _Pending:
    """An action that waits for its answer, or for its whole list when `items` is one."""

    name: str
    reply: Future[Reply]
    items: list[AmiEvent] | None = None
    answer: AmiAnswer | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to an action; `items` are the list's events without its end mark."""

    answer: AmiMessage
    items: Sequence[AmiEvent] = ()


class AmiSession(Manager):  # type: ignore[misc]
    """One connection, from `connect` to `close`; not used again after.

    `on_events` gets each read's events in one list, `on_lost` the fault that ended the connection
    (once, also after `close`); both are called on the reader's thread and must not block.
    pyst2's `register_event` is without effect: a callback per event costs more than the parsing.
    """

    def __init__(
        self,
        wanted: frozenset[str] | None,
        limits: AmiLimits,
        counters: AmiCounters,
        on_events: Callable[[list[AmiEvent]], None],
        on_lost: Callable[[PeerFault], None],
    ) -> None:
        # Not super().__init__(): it makes threads and queues that are never used here, with calls
        # that Python is about to remove. What its other methods read is set below.
        self._sock: socket.socket | None = None
        self.title: str | None = None
        self.version: str | None = None
        self.hostname = f"umpack-{secrets.token_hex(4)}"  # next_seq's prefix of each ActionID
        self._connected = threading.Event()
        self._running = threading.Event()
        self._event_callbacks: dict[str, list[Any]] = {}
        self._seqlock = threading.Lock()
        self._seq = 0

        self.action_limit = limits.action
        self._limits = limits
        self._counters = counters
        self._wanted = wanted
        self._codec = AmiCodec(wanted)
        self._on_events = on_events
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._pending: dict[str, _Pending] = {}
        self._greeted: Future[str] = Future()
        self._fault: PeerFault | None = None
        self._garbled_run = 0
        # Daemon, so that a program that dies without close() still ends; close() joins it.
        self.message_thread = threading.Thread(
            target=self.message_loop, name="ami-reader", daemon=True
        )

    def __del__(self) -> None:
        """Nothing: a connection is closed by its owner, not by the garbage collector."""

    def connected(self) -> bool:
        """True from the greeting until the connection is lost or closed."""
        return self._connected.is_set()

    def connect(self, host: str, port: int = 5038) -> str:
        """Connect and read the greeting; returns AMI's version. Blocks up to two limits."""
        limit = self._limits.connect
        try:
            places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise PeerGone(f"cannot resolve {host!r}: {error.strerror}") from error
        fault: PeerFault = PeerGone(f"{host!r} has no address")
        for family, kind, protocol, _, place in places:
            sock = socket.socket(family, kind, protocol)
            sock.settimeout(limit)
            with self._lock:
                if self._fault is not None:
                    sock.close()
                    raise self._fault
                self._sock = sock  # before connecting, so that abort() can end the attempt
            try:
                sock.connect(place)
            except TimeoutError:
                fault = PeerTimeout(f"no connection to {host}:{port} within {limit:g} s")
            except OSError as error:
                fault = PeerGone(f"cannot connect to {host}:{port}: {error.strerror}")
            else:
                break
            sock.close()
        else:
            raise fault
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(self._limits.write)
        self._running.set()
        self.message_thread.start()
        try:
            self.version = self._greeted.result(limit)
        except TimeoutError:
            fault = PeerTimeout(f"no greeting within {limit:g} s")
            self.abort(fault)
            raise fault from None
        with self._lock:
            if self._fault is not None:
                raise self._fault
            self._connected.set()
        return self.version

    def open(self, address: AmiAddress) -> str:
        """Connect and log in; returns AMI's version. Raises PeerFault, AmiRefused by name."""
        version = self.connect(address.host, address.port)
        self.action_limit = self._limits.login
        try:
            self.login(address.user, address.secret)
        except ManagerException as error:
            raise AmiRefused(f"login of {address.user!r} refused: {error}") from error
        finally:
            self.action_limit = self._limits.action
        return version

    def send_action(self, cdict: Headers | None = None, **kwargs: str) -> AmiMessage:
        """Send and wait for the answer, as pyst2's callers know it: an error answer is returned.

        Blocks up to `action_limit` seconds. Raises PeerGone, PeerTimeout, AmiUnsendable.
        """
        headers = {**(cdict or {}), **kwargs}
        name = str(headers.pop("Action", ""))
        action_id, packet, reply = self.submit(name, headers)
        self.write(packet)
        try:
            return reply.result(self.action_limit).answer
        except TimeoutError:
            raise PeerTimeout(f"{name}: no answer within {self.action_limit:g} s") from None
        finally:
            self.forget(action_id)

    def submit(
        self, name: str, headers: Headers, *, listed: bool = False
    ) -> tuple[str, bytes, Future[Reply]]:
        """Expect an answer: returns its ActionID, the bytes to `write`, and the future reply.

        Does not block. `listed`: the reply is a list, ended as AMI 2 ends lists (`EventList`).
        """
        action_id = f"{self.hostname}-{self.next_seq():08x}"
        packet = encode(name, action_id, headers)
        pending = _Pending(name, Future(), [] if listed else None)
        with self._lock:
            if self._fault is not None:
                raise PeerGone(f"{name}: {self._fault}")
            self._pending[action_id] = pending
        return action_id, packet, pending.reply

    def write(self, packet: bytes) -> None:
        """Write whole packets, one thread at a time; a failure ends the connection."""
        with self._write_lock:
            sock = self._sock
            try:
                if sock is not None:
                    sock.sendall(packet)
            except TimeoutError:
                limit = self._limits.write
                self.abort(PeerTimeout(f"the peer took no bytes for {limit:g} s"))
            except OSError as error:
                self.abort(PeerGone(f"write failed: {error.strerror}"))

    def forget(self, action_id: str) -> None:
        """Nobody waits for this answer any more; it counts as stray should it come."""
        with self._lock:
            self._pending.pop(action_id, None)

    def abort(self, fault: PeerFault) -> None:
        """End the connection at once, without blocking; waiting actions fail with `fault`."""
        self._lose(fault)
        self._running.clear()
        sock = self._sock
        if sock is not None:
            with contextlib.suppress(OSError):  # not connected, or gone already
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Log off if there is still a connection, end it and join the reader.

        Blocks up to LOGOFF_LIMIT, and is never called on the reader's own thread.
        """
        if self.connected():
            self.action_limit = LOGOFF_LIMIT
            with contextlib.suppress(PeerFault):
                self.logoff()
        self.abort(PeerGone("closed by us"))
        if self.message_thread.ident is not None:
            self.message_thread.join()
        if self._sock is not None:
            self._sock.close()

    def message_loop(self) -> None:
        """The reader's thread: bytes to answers and events, until the connection ends."""
        fault: PeerFault = PeerGone("the reader failed")
        sock = self._sock
        try:
            while sock is not None and self._running.is_set():
                try:
                    data = sock.recv(RECEIVE_BYTES)
                except TimeoutError:
                    continue  # the limit is for writing; a silent peer is Ping's to find
                if not data:
                    fault = PeerGone("the peer closed the connection")
                    break
                self._take(self._codec.feed(data))
                if not self._pending and len(data) < BUSY_BYTES:
                    time.sleep(self._limits.gather)
        except OSError as error:
            fault = PeerGone(f"read failed: {error.strerror}")
        except ProtocolFault as error:
            fault = error
        finally:
            self._lose(fault)

    def _take(self, messages: list[AmiMessage]) -> None:
        if self.title is None and self._codec.version is not None:
            self.title = "Asterisk Call Manager"
            with self._lock:
                if not self._greeted.done():
                    self._greeted.set_result(self._codec.version)
        counters = self._counters
        counters.skipped += self._codec.skipped
        self._codec.skipped = 0
        events: list[AmiEvent] = []
        for message in messages:
            if message.action_id and message.action_id in self._pending:
                # What came before an answer is in the stream before the answer is known.
                self._hand_on(events)
                events = []
            if message.action_id and self._settle(message):
                self._garbled_run = 0
            elif isinstance(message, AmiEvent):
                self._garbled_run = 0
                if self._wanted is None or message.name in self._wanted:
                    events.append(message)
            elif isinstance(message, AmiAnswer):
                counters.strays += 1
            else:
                self._count_garbled()
        self._hand_on(events)

    def _hand_on(self, events: list[AmiEvent]) -> None:
        if events:
            self._counters.events += len(events)
            self._on_events(events)

    def _count_garbled(self) -> None:
        # A variable with empty lines in it garbles one message; a run of them is not AMI.
        self._counters.garbled += 1
        self._garbled_run += 1
        if self._garbled_run > MAX_GARBLED_RUN:
            raise ProtocolFault(f"AMI: {self._garbled_run} garbled messages in a row")

    def _settle(self, message: AmiMessage) -> bool:
        """True if a waiting action has taken the message."""
        with self._lock:
            pending = self._pending.get(message.action_id)
            if pending is None:
                return False
            fault: PeerFault | None = None
            if isinstance(message, AmiAnswer):
                if pending.answer is not None:
                    return False  # a second answer to a list
                pending.answer = message
                done = pending.items is None or not message.ok
            elif pending.items is not None and isinstance(message, AmiEvent):
                mark = message.get("EventList", "").lower()
                # chan_dahdi before Asterisk 12 ends its lists by name only.
                done = bool(mark) or message.name.lower() == f"{pending.name}Complete".lower()
                if not done:
                    pending.items.append(message)
                if mark.startswith("cancel"):
                    fault = AmiRefused(f"{pending.name}: the list was cancelled")
                elif len(pending.items) > MAX_LIST:
                    done, fault = True, ProtocolFault(f"{pending.name}: over {MAX_LIST} items")
            else:
                return False  # an event that merely names our action, such as OriginateResponse
            if not done:
                return True
            del self._pending[message.action_id]
        # A caller that gave up meanwhile has cancelled its future; then there is nobody to tell.
        if pending.reply.set_running_or_notify_cancel():
            if fault is not None:
                pending.reply.set_exception(fault)
            else:
                answer = pending.answer or message
                pending.reply.set_result(Reply(answer, tuple(pending.items or ())))
        return True

    def _lose(self, fault: PeerFault) -> None:
        with self._lock:
            if self._fault is not None:
                return
            self._fault = fault
            self._connected.clear()
            abandoned = list(self._pending.values())
            self._pending.clear()
            if not self._greeted.done():
                self._greeted.set_exception(fault)
        for pending in abandoned:
            if pending.reply.set_running_or_notify_cancel():
                pending.reply.set_exception(PeerGone(f"{pending.name}: {fault}"))
        self._on_lost(fault)
