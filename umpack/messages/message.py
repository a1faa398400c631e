"""What is known of a fax or voice message, and of each delivery of it. Values only.

Texts that a caller made (numbers, names, station id) are kept twice: as text, for people and to
search by, and raw, as the bytes that came; the text may hold any character whatever.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from itertools import count
from typing import NewType, TypeAlias

from umpack.core.calls import CallId
from umpack.messages.states import MessageState, RecipientState

MessageId = NewType("MessageId", str)

DeliveryKey: TypeAlias = tuple[MessageId, int]
"""Message and number of the recipient."""
"""Fit for a file name and for the left side of a Message-ID."""

ID = re.compile(r"[a-z0-9-]{1,32}-(\d{4})(\d\d)\d\dt\d{6}-[0-9a-f]{4,}-[0-9a-f]{16}")
_NOT_IN_ID = re.compile(r"[^a-z0-9-]+")


class Kind(Enum):
    """What was received."""

    FAX = "fax"
    VOICE = "voice"


@dataclass(frozen=True, slots=True)
class CallFacts:
    """What is known of a call before it is answered."""

    call: CallId
    kind: Kind
    called: str
    caller: str = ""
    caller_raw: bytes = b""
    caller_name: str = ""
    caller_name_raw: bytes = b""
    pbx: str = ""
    channel: str = ""
    """The service's channel, `pack member:port`, that takes the call."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the fax engine or the recorder said at the end; None is what nobody knows."""

    status: str = "UNKNOWN"
    """`SUCCESS`, `FAILED` (FAXSTATUS), `UNKNOWN` if the call ended without us."""
    error: str = ""
    pages: int | None = None
    bitrate: int | None = None
    """Bit/s."""
    ecm: bool | None = None
    resolution: str = ""
    t38: bool | None = None
    station: bytes = b""
    """The sender's station id (TSI, T.30 5.3.6.2.4) as it came: free text of the sender."""
    seconds: float | None = None
    cause: int | None = None
    """Q.850, of the hang-up."""


@dataclass(frozen=True, slots=True)
class DocumentFacts:
    """What was found in the original and made of it."""

    pages_tiff: int | None = None
    pages_pdf: int | None = None
    bad_rows: int | None = None
    page_hashes: tuple[str, ...] = ()
    fault: str = ""
    """Why there is no PDF, or not of all pages."""


@dataclass(frozen=True, slots=True)
class Original:
    """The file as the engine wrote it."""

    file: str
    """Relative to the spool's directory."""
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Decided:
    """Who closed a delivery, how and when."""

    by: str
    what: str
    at: float


@dataclass(frozen=True, slots=True)
class Form:
    """What two mails of one message could differ in, fixed before the first of them goes out.

    A directory may say something else at the next try, a converter may work again; but under one
    Message-ID there is one mail (fax.md 3: receivers drop a changed copy without a word).
    """

    language: str
    attach: str
    """A value of `directory.Attach`."""
    bare: tuple[MessageId, ...] = ()
    """Whose files go as they were received, as they could not be converted."""
    without: tuple[MessageId, ...] = ()
    """Tries told of besides, whose files cannot be read."""
    note: bool = False
    """It only tells of the message: with its files it was too large for a server."""


@dataclass(frozen=True, slots=True)
class Recipient:
    """One delivery of one message to one address."""

    message: MessageId
    number: int
    """Counts from 1 within the message."""
    address: str
    edition: int
    """1 as committed; every resend or forward makes another, with its own Message-ID: a changed
    copy under the old one is dropped silently by some receivers."""
    message_id: str
    date: float
    state: RecipientState
    next_at: float
    """Not due before."""
    tries: int = 0
    doubts: int = 0
    """How many of the tries ended in doubt."""
    server: str = ""
    """Which server spoke last; after an end in doubt, the one to be asked first."""
    reply: str = ""
    queue_id: str = ""
    why: str = ""
    changed: float = 0.0
    decided: Decided | None = None
    form: Form | None = None
    """None until somebody knows: the sender fixes it then (`Scribe`)."""

    @property
    def key(self) -> DeliveryKey:
        """Which delivery it is, whatever has become of it."""
        return self.message, self.number

    def __repr__(self) -> str:
        return f"<{self.message} to no. {self.number}: {self.state.value}, {self.tries} tries>"


@dataclass(frozen=True, slots=True)
class Message:
    """The one record of a fax or voice call. Times are epoch seconds."""

    id: MessageId
    node: str
    state: MessageState
    call: CallFacts
    name: str
    """Of the original within its directory."""
    started: float
    committed: float | None = None
    ended: float | None = None
    """When the last recipient's server had accepted, or a person had decided."""
    message_id: str = ""
    date: float | None = None
    adopted: str = ""
    """Why it was taken in without its call's end, if so."""
    original: Original | None = None
    """None: nothing was received."""
    engine: EngineFacts | None = None
    document: DocumentFacts | None = None
    related: MessageId | None = None
    """An earlier message this one repeats or continues."""
    purged: float | None = None
    """When the original was deleted, its time of retention being over."""
    recipients: tuple[Recipient, ...] = ()
    answered: float | None = None
    """When its caller was answered, as far as that could still be written down."""

    def __repr__(self) -> str:
        adopted = f", adopted: {self.adopted}" if self.adopted else ""
        return f"<{self.call.kind.value} {self.id}: {self.state.value}{adopted}>"


@dataclass(frozen=True, slots=True)
class Intent:
    """A reception that may begin: the engine shall write to `path`, which exists and is empty."""

    id: MessageId
    path: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message and one of its recipients; with `token`, claimed for sending."""

    message: Message
    recipient: Recipient
    token: str = ""
    others: tuple[MessageId, ...] = ()
    """Further calls its mail tells of. Known once it is claimed."""


class Decision(Enum):
    """What a person may do with a message."""

    DISCARD = "discard"
    RETRY = "retry"
    FORWARD = "forward"
    RESEND = "resend"


class MessageIds:
    """Makes ids that are unique across nodes, clock steps and restarts.

    Node and time are for people; the counter keeps order within a second; 64 random bits are what
    holds when two nodes share a name or a clock is put back.
    """

    def __init__(self, node: str) -> None:
        self.node = _NOT_IN_ID.sub("-", node.lower())[:32].strip("-") or "node"
        self._count = count(1)

    def new(self, now: float) -> MessageId:
        """`now` is epoch seconds."""
        stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dt%H%M%S")
        number = next(self._count)
        return MessageId(f"{self.node}-{stamp}-{number:04x}-{secrets.token_hex(8)}")


def home(id_: MessageId) -> str:
    """The directory of a message below `messages`: `YYYY/MM/ID`. `ValueError` if it is no id."""
    found = ID.fullmatch(id_)
    if found is None:
        raise ValueError(f"no message id: {id_!r}")
    return f"{found[1]}/{found[2]}/{id_}"
