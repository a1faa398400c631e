"""What a spool is to the rest of umpack: local today, replicated over several nodes later."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from umpack.core.calls import CallId
from umpack.messages.adoption import Adoption
from umpack.messages.message import (
    CallFacts,
    Decision,
    Delivery,
    DocumentFacts,
    EngineFacts,
    Form,
    Intent,
    Kind,
    Message,
    MessageId,
)
from umpack.messages.spool_archive import AuditEntry, OpenCalls
from umpack.messages.spool_health import SpoolHealth
from umpack.messages.states import MessageState


class MessageStore(Protocol):
    """Every promise is kept by the time a call returns, through a crash at any moment.

    `SpoolFault` from any of them: the storage will not, now. Nothing is lost by it. A cancelled
    call goes on by itself.
    """

    async def room_for(self, pages: int = 0, seconds: float = 0.0) -> str:
        """Why a call should not be answered; empty if it may be."""

    async def intend(
        self, call: CallFacts, name: str = ..., *, pages: int = 0, seconds: float = 0.0
    ) -> Intent:
        """A call is about to be answered; the engine may write to the intent's path."""

    async def recast(self, id_: MessageId, kind: Kind, name: str) -> Intent:
        """It is a message of another kind than was intended."""

    def note_answered(self, id_: MessageId) -> None:
        """Its caller has been answered; does not wait."""

    async def commit(self, id_: MessageId, engine: EngineFacts) -> Message:
        """Its call is over."""

    async def adopt(self, alive: Collection[CallId] = ()) -> Adoption:
        """Take in what dead processes left."""

    async def describe(
        self, id_: MessageId, document: DocumentFacts, related: MessageId | None = None
    ) -> Message:
        """Keep what was found in the original."""

    async def address(
        self, id_: MessageId, addresses: Sequence[str], forms: Mapping[str, Form] | None = None
    ) -> Message:
        """Name the recipients, and by address the form of their mails."""

    async def shape(self, id_: MessageId, number: int, form: Form) -> None:
        """Fix the form of one."""

    async def unaddressed(self, limit: int = 100) -> list[Message]:
        """What nobody has been named for yet, oldest first."""

    async def due(self, now: float, limit: int = 100) -> list[Delivery]:
        """What may be sent now, oldest first."""

    async def next_due(self) -> float | None:
        """When to ask `due` again at the latest."""

    async def claim(self, id_: MessageId, number: int, now: float) -> Delivery:
        """Take one delivery for sending; `StateError` if another has it."""

    def note_asked(self, delivery: Delivery, server: str) -> None:
        """A server is asked to take it from now on; does not wait."""

    async def sent(
        self, delivery: Delivery, now: float, server: str, reply: str, queue_id: str = ""
    ) -> None:
        """250."""

    async def failed(
        self, delivery: Delivery, now: float, next_at: float, why: str, server: str = ""
    ) -> None:
        """4xx, or nobody there."""

    async def refused(
        self, delivery: Delivery, now: float, why: str, server: str = "", *, note: bool = False
    ) -> None:
        """5xx; with `note` the recipient is told of it without the files."""

    async def uncertain(
        self, delivery: Delivery, now: float, next_at: float, why: str, server: str
    ) -> None:
        """Nobody knows."""

    async def released(self, delivery: Delivery, now: float) -> None:
        """Not tried."""

    async def expired(self, id_: MessageId, number: int, now: float, why: str) -> None:
        """Tried for too long."""

    async def bounced(self, id_: MessageId, number: int, now: float, why: str) -> None:
        """Taken back after the 250."""

    async def decide(
        self,
        id_: MessageId,
        by: str,
        what: Decision,
        *,
        number: int | None = None,
        addresses: Sequence[str] = (),
        why: str = "",
    ) -> Message:
        """A person's word."""

    async def message(self, id_: MessageId) -> Message:
        """One record."""

    async def messages(
        self,
        limit: int = 100,
        since: float | None = None,
        until: float | None = None,
        number: str | None = None,
        state: MessageState | None = None,
        called: str | None = None,
        caller: str | None = None,
    ) -> list[Message]:
        """Records, newest first."""

    async def of_calls(self, calls: Sequence[CallId]) -> Mapping[CallId, tuple[MessageId, ...]]:
        """The messages of each call that has any."""

    async def open_calls(self, limit: int = 1000) -> OpenCalls:
        """What a reconciliation has to explain."""

    async def audit(self, id_: MessageId | None = None, limit: int = 100) -> list[AuditEntry]:
        """Who did what."""

    async def health(self, now: float) -> SpoolHealth:
        """How it is."""
