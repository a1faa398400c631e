"""The messages of one node, from a file on disk to a mail server of the test's own."""

from __future__ import annotations

import asyncio
import email
import email.policy
import os
import random
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from email.message import EmailMessage
from functools import partial
from pathlib import Path
from typing import Any

from simulators.mail import Accepted, MailServer
from tests.unit.messages.fax_files import Sheet, fax, picture
from tests.unit.messages.receptions import START, Time
from umpack.config.mail import MessagesPlan
from umpack.config.values import Address
from umpack.core.calls import CallId
from umpack.messages.message import CallFacts, EngineFacts, Kind, Message
from umpack.messages.office import Messages
from umpack.messages.outcomes import BundlePolicy
from umpack.messages.retry import RetryPolicy
from umpack.messages.spool import Spool

TEXTS = Path(__file__).parents[3] / "etc" / "mail"
MEMORY = Path("/dev/shm")
"""Syncs cost time here and prove nothing."""
WAV = (
    b"RIFF" + (36 + 19_200).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    + bytes.fromhex("01000100401f0000803e000002001000") + b"data" + (19_200).to_bytes(4, "little")
    + bytes(19_200)
)  # fmt: skip
"""As long as a message must be, and a little: 1.2 s, 8 kHz, 16 bit, not a word."""


@contextmanager
def in_memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as folder:
        yield Path(folder)


def plan(directory: Path, *ports: int, **more: Any) -> MessagesPlan:
    """Relays at these ports; all paths in `directory`."""
    given: dict[str, Any] = {
        "spool": directory / "spool",
        "reserve": 0,
        "sender": "fax@umpack.test",
        "sender_name": "umpack",
        "bounce_keys": True,
        "domain": "umpack.test",
        "directories": (),
        "ldap": None,
        "default_mailboxes": ("office@site.test",),
        "texts": TEXTS,
        "language": "en",
        "attach": "pdf",
        "voice": "wav",
        "timezone": "Europe/Berlin",
        "relays": tuple(Address("127.0.0.1", port) for port in ports),
        "order": "ordered",
        "port": 25,
        "hello": "node.umpack.test",
        "tls": "never",
        "verify": False,
        "authorities": None,
        "auth": None,
        "connections": 4,
        "per_server": 4,
        "conversions": 2,
        "retry": RetryPolicy(),
        "bundles": BundlePolicy(),
    }
    return MessagesPlan(**(given | more))


def made(the_plan: MessagesPlan, now: Callable[[], float], **more: Any) -> Messages:
    settings: dict[str, Any] = {
        "now": now,
        "rng": random.Random(1),
        "spool": partial(Spool, quiet=0.0),
        **more,
    }
    return Messages(the_plan, "node1", **settings)


@asynccontextmanager
async def office(
    directory: Path, *ports: int, now: Callable[[], float] | None = None, **more: Any
) -> AsyncIterator[Messages]:
    """Open and not started: a test says `settle`."""
    messages = made(plan(directory, *ports, **more), now or Time(START))
    await messages.open()
    try:
        await messages.spool.adopt()
        await messages.desk.recall()
        yield messages
    finally:
        await messages.close(0.0)


async def settle(messages: Messages) -> None:
    """All that can be done by now, until nothing changes any more."""
    for _ in range(2):
        await messages.desk.turn()
        await messages.mailer.turn()
    await messages.desk.turn()


def tiff(pages: int = 1) -> bytes:
    return fax([Sheet(picture(number + 1, rows=300)) for number in range(pages)])


def facts(number: int = 1, kind: Kind = Kind.FAX, **more: Any) -> CallFacts:
    given: dict[str, Any] = {
        "call": CallId(f"c{number}"), "kind": kind, "called": "49302000123",
        "caller": f"4930777{number:04}", "pbx": "main", "channel": "fax:1",
    }  # fmt: skip
    return CallFacts(**(given | more))


WHOLE = EngineFacts("SUCCESS", pages=1, bitrate=14400, ecm=True, resolution="204x98", seconds=30.0)


async def received(
    messages: Messages,
    number: int = 1,
    content: bytes = b"",
    engine: EngineFacts = WHOLE,
    call: CallFacts | None = None,
    name: str = "original.tif",
) -> Message:
    """One fax, as a call brings it; without content an empty call."""
    intent = await messages.intend(call or facts(number), name)
    if content:
        await asyncio.to_thread(Path(intent.path).write_bytes, content)
    return await messages.commit(intent.id, engine)


async def spoken(messages: Messages, number: int = 1) -> Message:
    """One voice message: no child process is needed for it."""
    intent = await messages.intend(facts(number, Kind.VOICE), "original.wav")
    await asyncio.to_thread(Path(intent.path).write_bytes, WAV)
    return await messages.commit(intent.id, EngineFacts("SUCCESS", seconds=1.2))


def mail_of(accepted: Accepted) -> EmailMessage:
    found = email.message_from_bytes(accepted.body, policy=email.policy.default)
    assert isinstance(found, EmailMessage)
    return found


def attached(mail: EmailMessage) -> list[tuple[str, bytes]]:
    """Type and content."""
    return [
        (part.get_content_type(), part.get_payload(decode=True))  # type: ignore[misc]
        for part in mail.iter_attachments()
    ]


def text_of(mail: EmailMessage) -> str:
    body = mail.get_body(("plain",))
    assert body is not None
    return str(body.get_content())


__all__ = ["MailServer"]
