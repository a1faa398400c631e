"""The AMI of the simulated PBX: sessions, logins, filters and faults. Actions: `ami_actions.py`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Final, cast

from simulators.ami_events import EVENT_CLASSES
from simulators.ami_filter import Filters
from umpack.core.errors import OurFault

GREETING: Final = b"Asterisk Call Manager/11.0.0\r\n"
MAX_HEADERS: Final = 128
"""AST_MAX_MANHEADERS."""
MAX_BACKLOG: Final = 8 * 1024 * 1024
"""Bytes a session may leave unread; Asterisk, too, disconnects who does not read."""
LOGIN_PENALTY: Final = 1.0
"""Seconds until a wrong secret is answered."""

Headers = Mapping[str, str]
Act = Callable[["AmiSession", str, Headers], None]


def message(first: str, action_id: str, *lines: str) -> str:
    """One message; the ActionID is echoed if there was one."""
    echo = f"ActionID: {action_id}\r\n" if action_id else ""
    rest = "".join([f"{line}\r\n" for line in lines])
    return f"{first}\r\n{echo}{rest}\r\n"


class AmiSession(asyncio.Protocol):
    """One manager connection."""

    def __init__(self, server: AmiServer) -> None:
        self.server = server
        self.user: str | None = None
        self.mask: frozenset[str] | None = None
        """Event classes let through; None for all."""
        self.filters = Filters()
        self.sent_events = 0
        self.transport: asyncio.Transport
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        self.transport = cast("asyncio.Transport", transport)
        # Only MAX_BACKLOG bounds what waits: the loop's own flow control has nothing to pause here.
        self.transport.set_write_buffer_limits(high=MAX_BACKLOG)
        self.server.joined(self)

    def data_received(self, data: bytes) -> None:
        """Take whole actions."""
        self._buffer += data.replace(b"\r\n", b"\n")
        if self.server.stalled:
            return
        self.resume()

    def resume(self) -> None:
        """Answer what has come, after a stall too."""
        while (end := self._buffer.find(b"\n\n")) >= 0 and not self.transport.is_closing():
            block, self._buffer = self._buffer[:end], self._buffer[end + 2 :]
            headers: dict[str, str] = {}
            for line in block.decode("utf-8", "replace").split("\n")[:MAX_HEADERS]:
                name, colon, value = line.partition(":")
                if colon:
                    headers.setdefault(name.strip().lower(), value.strip())
            if headers:
                self.server.act(self, headers)

    def connection_lost(self, exc: Exception | None) -> None:
        """The session is over."""
        self.server.left(self)

    def send(self, text: str) -> None:
        """Send whole messages; a peer that does not read is dropped."""
        if self.transport.is_closing():
            return
        if self.transport.get_write_buffer_size() > MAX_BACKLOG:
            self.transport.abort()
            return
        self.transport.write(text.encode("utf-8", "backslashreplace"))

    def respond(self, action_id: str, result: str, text: str, *lines: str) -> None:
        """`Response: Success` and the like."""
        words = (f"Message: {text}",) if text else ()
        self.send(message(f"Response: {result}", action_id, *words, *lines))

    def refuse_unknown(self, action_id: str, name: str) -> None:
        """No module has registered this action."""
        hint = "Use Action: ListCommands to show available commands."
        self.respond(action_id, "Error", f"Invalid/unknown command: {name}. {hint}")

    def may_want(self, name: str) -> bool:
        """Whether an event of this name could go to this session."""
        if self.user is None or (self.mask is not None and EVENT_CLASSES[name] not in self.mask):
            return False
        return self.filters.may_pass(name)

    def offer(self, name: str, event: str) -> None:
        """Send an event if it is wanted here."""
        if self.may_want(name) and self.filters.passes(name, event):
            self.sent_events += 1
            self.send(event)


class AmiServer:
    """Listens for managers. `actions` are the PBX's, by lower-case name; the rest is here."""

    def __init__(self, users: Mapping[str, str], actions: Mapping[str, Act]) -> None:
        self.users = dict(users)
        self.stalled = False
        self.logins = 0
        self._actions = dict(actions)
        self._sessions: set[AmiSession] = set()
        self._wanted: dict[str, bool] = {}
        self._listener: asyncio.Server | None = None
        self._place: tuple[str, int] = ("127.0.0.1", 0)
        self._late: set[asyncio.TimerHandle] = set()
        self._booted: Callable[[AmiSession], None] = lambda session: None

    def __repr__(self) -> str:
        state = "stalled" if self.stalled else "up" if self._listener else "down"
        return f"<AmiServer {state}, {len(self._sessions)} sessions>"

    @property
    def port(self) -> int:
        """The TCP port; it stays the same over restarts."""
        return self._place[1]

    @property
    def sessions(self) -> tuple[AmiSession, ...]:
        """All connections, logged in or not."""
        return tuple(self._sessions)

    async def start(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        booted: Callable[[AmiSession], None] = lambda session: None,
    ) -> None:
        """Listen; `booted` is called for each login, to say FullyBooted. OurFault if it cannot."""
        self._booted = booted
        loop = asyncio.get_running_loop()
        place = (host, port or self._place[1])
        try:
            self._listener = await loop.create_server(lambda: AmiSession(self), *place)
        except OSError as error:
            raise OurFault(f"AMI: cannot listen on {host}:{port}: {error.strerror}") from error
        self._place = (host, self._listener.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """End all sessions and stop listening: connections are refused."""
        self.cut()
        for late in self._late:
            late.cancel()
        self._late.clear()
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
            await listener.wait_closed()
        while self._sessions:  # noqa: ASYNC110 - their connection_lost comes with the next turns
            await asyncio.sleep(0)

    def cut(self) -> None:
        """Reset every session at once."""
        for session in self._sessions:
            session.transport.abort()

    def stall(self, *, on: bool) -> None:
        """Take no actions and send nothing, with the connections open; or go on."""
        self.stalled = on
        self._wanted.clear()
        if not on:
            for session in self.sessions:
                session.resume()

    def inject(self, data: bytes) -> None:
        """Send these very bytes to every session."""
        for session in self._sessions:
            session.transport.write(data)

    # --- events --------------------------------------------------------------------------------

    def wants(self, name: str) -> bool:
        """Whether any session could get an event of this name; asked before one is made."""
        known = self._wanted.get(name)
        if known is None:
            known = not self.stalled and any(s.may_want(name) for s in self._sessions)
            self._wanted[name] = known
        return known

    def publish(self, name: str, body: str) -> None:
        """Send an event to those who want it."""
        event = f"Event: {name}\r\nPrivilege: {EVENT_CLASSES[name]},all\r\n{body}\r\n"
        for session in self.sessions:
            session.offer(name, event)

    # --- what its sessions tell it -------------------------------------------------------------

    def joined(self, session: AmiSession) -> None:
        """A connection was made."""
        self._sessions.add(session)
        session.transport.write(GREETING)

    def left(self, session: AmiSession) -> None:
        """It is gone."""
        self._sessions.discard(session)
        self._wanted.clear()

    def changed(self) -> None:
        """A session wants other events than before."""
        self._wanted.clear()

    def act(self, session: AmiSession, headers: Headers) -> None:
        """Do one action."""
        name, action_id = headers.get("action", ""), headers.get("actionid", "")
        known = name.lower()
        if not name:
            session.respond(action_id, "Error", "Missing action in request")
        elif known == "login":
            self._log_in(session, action_id, headers)
        elif known == "logoff":
            session.respond(action_id, "Goodbye", "Thanks for all the fish.")
            session.transport.close()
        elif session.user is None:
            session.respond(action_id, "Error", "Permission denied")
        elif known in self._actions:
            self._actions[known](session, action_id, headers)
        else:
            session.refuse_unknown(action_id, name)

    def _log_in(self, session: AmiSession, action_id: str, headers: Headers) -> None:
        user = headers.get("username", "")
        if self.users.get(user) != headers.get("secret") or user not in self.users:
            self._refuse_login(session, action_id)
            return
        session.user = user
        if headers.get("events", "on").lower() == "off":
            session.mask = frozenset()
        self.logins += 1
        self.changed()
        session.respond(action_id, "Success", "Authentication accepted")
        self._booted(session)

    def _refuse_login(self, session: AmiSession, action_id: str) -> None:
        def refuse() -> None:
            self._late.discard(late)
            session.respond(action_id, "Error", "Authentication failed")
            with contextlib.suppress(OSError):
                session.transport.close()

        late = asyncio.get_running_loop().call_later(LOGIN_PENALTY, refuse)
        self._late.add(late)
