"""A mail server that does what it is told to, wrong things above all, and keeps what it accepted.

Real sockets, real TLS. What it says is a `Script`: an answer per command, per recipient, and one
after the other if an answer is a list. By itself it is a well-behaved ESMTP server (RFC 5321) with
SIZE, 8BITMIME, DSN, SMTPUTF8, STARTTLS, AUTH, greylisting and quotas where the script has them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, TypeAlias

from umpack.core.errors import OurFault

DOT: Final = "."
"""The key of what is answered after the final dot."""
GREETING: Final = "greeting"
_MAX_MESSAGE: Final = 64 * 1024 * 1024
_MESSAGE_ID: Final = re.compile(rb"^message-id:\s*(<[^>]*>)", re.IGNORECASE | re.MULTILINE)
_PATH: Final = re.compile(r"(?:FROM|TO):\s*<([^>]*)>\s*(.*)", re.IGNORECASE)


class Then(Enum):
    """What the server does after an answer."""

    GO_ON = "goes on"
    CLOSE = "closes"
    RESET = "resets the connection"
    HANG = "says nothing any more"


@dataclass(frozen=True, slots=True)
class Act:
    """An answer: `reply` (empty for none) `after` seconds. `stored`: whether the message counts as
    accepted, whatever is said after the final dot; None goes by the reply.
    """

    reply: str = ""
    after: float = 0.0
    then: Then = Then.GO_ON
    stored: bool | None = None


Answer: TypeAlias = str | Act
Answers: TypeAlias = Answer | Sequence[Answer]


@dataclass(frozen=True, slots=True)
class Script:
    """How the server behaves.

    `replies` by what is answered: `GREETING`, a verb ("EHLO", "MAIL", "RCPT", "DATA", ...), "RCPT
    who@where" for one recipient, `DOT`. A list is used up one by one, its last answer stays.
    """

    replies: Mapping[str, Answers] = field(default_factory=dict)
    extensions: tuple[str, ...] = ("8BITMIME", "DSN", "SMTPUTF8", "ENHANCEDSTATUSCODES")
    size: int | None = None
    tls: ssl.SSLContext | None = None
    broken_tls: bool = False
    """Offers STARTTLS, agrees, and sends nonsense."""
    accounts: Mapping[str, str] = field(default_factory=dict)
    """User: password. With any, AUTH is offered and needed."""
    greylist: float | None = None
    """Seconds from the first try of a sender and recipient until they are let through."""
    quota: Mapping[str, int] = field(default_factory=dict)
    """Octets a recipient's mailbox may hold; 452 when the next message would not fit."""
    slow: float = 0.0
    """Seconds before every answer."""
    stops_reading_after: int | None = None
    """Octets of a message, after which it reads no more."""
    refuses_after: int | None = None
    """Octets of a message, after which it says 552 and closes."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A message the server has taken on."""

    queue_id: str
    message_id: str
    sender: str
    recipients: tuple[str, ...]
    body: bytes
    options: Mapping[str, str]
    """ESMTP parameters of MAIL (key "") and of each recipient."""
    encrypted: bool
    user: str | None


class MailServer:
    """Listens while it is entered (`async with`); `script` may be changed at any time."""

    def __init__(
        self, script: Script | None = None, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.script = script or Script()
        self.host = host
        self.port = port
        self.accepted: list[Accepted] = []
        self.heard: list[str] = []
        """All commands, of all sessions."""
        self.connections = 0
        self.at_once = 0
        self.most_at_once = 0
        self.used: Counter[str] = Counter()
        self.first_seen: dict[tuple[str, str], float] = {}
        self.mailboxes: Counter[str] = Counter()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> MailServer:
        self._server = await asyncio.start_server(self._serve, self.host, self.port, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._server = None

    def copies(self, message_id: str) -> int:
        """How often a message was accepted."""
        return sum(one.message_id == message_id for one in self.accepted)

    def answer(self, *keys: str) -> Act | None:
        """What the script has for the first of the keys it knows."""
        for key in keys:
            if key in self.script.replies:
                answers = self.script.replies[key]
                if isinstance(answers, (str, Act)):
                    answers = (answers,)
                chosen = answers[min(self.used[key], len(answers) - 1)]
                self.used[key] += 1
                return Act(chosen) if isinstance(chosen, str) else chosen
        return None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise OurFault("a session outside of a task")
        self._tasks.add(task)
        self.connections += 1
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            with contextlib.suppress(OSError, EOFError, _Left, asyncio.CancelledError):
                await _Session(self, reader, writer).run()
        finally:
            self.at_once -= 1
            self._tasks.discard(task)
            writer.transport.abort()


class _Left(Exception):
    """The session is over."""


class _Session:
    def __init__(
        self, server: MailServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self._encrypted = False
        self._user: str | None = None
        self._sender: str | None = None
        self._recipients: list[str] = []
        self._options: dict[str, str] = {}

    async def run(self) -> None:
        greeting = self._server.answer(GREETING) or Act("220 sim.invalid ESMTP")
        await self._act(greeting)
        while line := await self._reader.readline():
            text = line.decode("utf-8", "backslashreplace").rstrip("\r\n")
            self._server.heard.append(text)
            verb, _, rest = text.partition(" ")
            await self._command(verb.upper(), rest)

    async def _act(self, act: Act) -> None:
        await asyncio.sleep(act.after + self._server.script.slow)
        if act.reply:
            self._writer.write(act.reply.encode() + b"\r\n")
            await self._writer.drain()
        match act.then:
            case Then.GO_ON:
                return
            case Then.CLOSE:
                self._writer.close()
                with contextlib.suppress(OSError):
                    await self._writer.wait_closed()
            case Then.RESET:
                self._reset()
            case Then.HANG:
                # Reads on, as a process that has lost its way does, until the other side goes.
                while await self._reader.read(65536):
                    pass
        raise _Left

    def _reset(self) -> None:
        sock = self._writer.get_extra_info("socket")
        # Linger 0 makes close() an RST (socket(7)).
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def _say(self, own: str, *keys: str) -> bool:
        """The script's answer or our own; true if it was positive."""
        act = self._server.answer(*keys) or Act(own)
        await self._act(act)
        return act.reply[:1] in ("2", "3")

    async def _command(self, verb: str, rest: str) -> None:
        match verb:
            case "EHLO":
                await self._say("\r\n".join(self._ehlo()), "EHLO")
            case "MAIL":
                await self._mail(rest)
            case "RCPT":
                await self._rcpt(rest)
            case "DATA":
                await self._data()
            case "STARTTLS":
                await self._start_tls()
            case "AUTH":
                await self._auth(rest)
            case "QUIT":
                await self._say("221 2.0.0 Bye", verb)
                raise _Left
            case "HELO" | "RSET" | "NOOP":
                self._sender, self._recipients, self._options = None, [], {}
                await self._say("250 2.0.0 Ok", verb)
            case _:
                await self._say("500 5.5.2 what?", verb)

    def _ehlo(self) -> list[str]:
        script = self._server.script
        offers = ["sim.invalid", *script.extensions]
        if script.size is not None:
            offers.append(f"SIZE {script.size}")
        if (script.tls or script.broken_tls) and not self._encrypted:
            offers.append("STARTTLS")
        if script.accounts:
            offers.append("AUTH PLAIN LOGIN")
        return [f"250{' ' if offer is offers[-1] else '-'}{offer}" for offer in offers]

    async def _mail(self, rest: str) -> None:
        path = _PATH.match(rest)
        script = self._server.script
        declared = re.search(r"\bSIZE=(\d+)", rest, re.IGNORECASE)
        if path is None:
            await self._say("501 5.5.4 syntax")
        elif script.accounts and self._user is None:
            await self._say("530 5.7.0 authentication required")
        elif script.size and declared and int(declared[1]) > script.size:
            await self._say("552 5.3.4 too large")
        elif await self._say("250 2.1.0 Ok", "MAIL"):
            self._sender, self._recipients, self._options = path[1], [], {"": path[2]}

    async def _rcpt(self, rest: str) -> None:
        path = _PATH.match(rest)
        if path is None or self._sender is None:
            await self._say("503 5.5.1 MAIL first")
            return
        who = path[1]
        own = self._held_back(who) or "250 2.1.5 Ok"
        if await self._say(own, f"RCPT {who}", "RCPT"):
            self._recipients.append(who)
            self._options[who] = path[2]

    def _held_back(self, who: str) -> str:
        server, script = self._server, self._server.script
        if script.greylist is not None:
            now = asyncio.get_running_loop().time()
            if now - server.first_seen.setdefault((self._sender or "", who), now) < script.greylist:
                return "451 4.7.1 greylisted, come again"
        declared = re.search(r"\bSIZE=(\d+)", self._options.get("", ""), re.IGNORECASE)
        size = int(declared[1]) if declared else 0
        if who in script.quota and server.mailboxes[who] + size > script.quota[who]:
            return "452 4.2.2 mailbox full"
        return ""

    async def _data(self) -> None:
        if not self._recipients:
            await self._say("554 5.5.1 no valid recipients")
        elif await self._say("354 go ahead", "DATA"):
            body = await self._body()
            server = self._server
            queue_id = f"{len(server.accepted) + 1:08X}"
            too_large = server.script.size is not None and len(body) > server.script.size
            own = "552 5.3.4 too large" if too_large else f"250 2.0.0 Ok: queued as {queue_id}"
            act = server.answer(DOT) or Act(own)
            if act.stored if act.stored is not None else act.reply.startswith("2"):
                self._store(queue_id, body)
            self._sender = None
            await self._act(act)

    async def _body(self) -> bytes:
        script = self._server.script
        body, end = bytearray(), -1
        while end < 0:
            if script.stops_reading_after is not None and len(body) > script.stops_reading_after:
                await asyncio.Event().wait()
            if script.refuses_after is not None and len(body) > script.refuses_after:
                await self._act(Act("552 5.3.4 enough", then=Then.CLOSE))
            seen = len(body)
            chunk = await self._reader.read(65536)
            if not chunk or len(body) > _MAX_MESSAGE:
                raise _Left
            body += chunk
            end = body.find(b"\r\n.\r\n", max(0, seen - 4))
        if len(body) != end + 5:
            self._server.heard.append(f"smuggled: {bytes(body[end + 5 :])!r}")
            raise _Left
        # Any leading dot goes (RFC 5321 4.5.2): a client that forgets to double one is found out.
        return (b"\r\n" + bytes(body[: end + 2])).replace(b"\r\n.", b"\r\n")[2:]

    def _store(self, queue_id: str, body: bytes) -> None:
        found = _MESSAGE_ID.search(body)
        self._server.accepted.append(
            Accepted(
                queue_id, found[1].decode() if found else "", self._sender or "",
                tuple(self._recipients), body, dict(self._options), self._encrypted, self._user,
            )
        )  # fmt: skip
        for who in self._recipients:
            self._server.mailboxes[who] += len(body)

    async def _start_tls(self) -> None:
        script = self._server.script
        if script.broken_tls:
            await self._say("220 2.0.0 ready")
            self._writer.write(b"500 I did not mean it\r\n")
            await self._writer.drain()
            raise _Left
        if script.tls is None or self._encrypted:
            await self._say("502 5.5.1 no TLS")
        elif await self._say("220 2.0.0 ready", "STARTTLS"):
            try:
                await self._writer.start_tls(script.tls)
            except ssl.SSLError:
                raise _Left from None
            self._encrypted = True

    async def _auth(self, rest: str) -> None:
        method, _, initial = rest.partition(" ")
        words = [initial] if initial else []
        if method.upper() == "PLAIN":
            _, user, secret = _decoded(words[0] if words else await self._ask("")).split("\0")
        else:
            user = _decoded(words[0] if words else await self._ask("VXNlcm5hbWU6"))
            secret = _decoded(await self._ask("UGFzc3dvcmQ6"))
        if self._server.script.accounts.get(user) != secret:
            await self._say("535 5.7.8 wrong", "AUTH")
        elif await self._say("235 2.7.0 welcome", "AUTH"):
            self._user = user

    async def _ask(self, challenge: str) -> str:
        await self._act(Act(f"334 {challenge}"))
        return (await self._reader.readline()).decode("ascii", "replace").strip()


def _decoded(word: str) -> str:
    return base64.b64decode(word).decode()
