"""Writes the mail of a delivery from its record and its files: the same one every time it is asked.

What cannot be composed goes out with its original alone after a few tries.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final

from loguru import logger

from umpack.messages.desk import told_in
from umpack.messages.directory import Mailbox, Mailboxes
from umpack.messages.enclosures import EnclosureFault, Enclosures
from umpack.messages.last_resort import plain_letter
from umpack.messages.letter import Address, Letter, address
from umpack.messages.mail import Composer, Enclosed
from umpack.messages.message import Delivery, Message, MessageId, Recipient
from umpack.messages.outcomes import relation
from umpack.messages.spool import Spool
from umpack.messages.spool_schema import SpoolFault

POISONED: Final = 3
"""Failures after which no proper mail is tried any more."""


class Scribe:
    """`plain` is the form in which those get mail whom no directory knows; its address is not
    used. `sender` is for mails the composer cannot make."""

    def __init__(
        self,
        spool: Spool,
        enclosures: Enclosures,
        mailboxes: Mailboxes,
        composer: Composer,
        sender: Address,
        plain: Mailbox,
        now: Callable[[], float],
    ) -> None:
        self._spool = spool
        self._enclosures = enclosures
        self._mailboxes = mailboxes
        self._composer = composer
        self._sender = sender
        self._plain = plain
        self._now = now
        self._failures: Counter[tuple[MessageId, int]] = Counter()

    async def letter(self, held: Delivery) -> Letter | None:
        """The mail; None if it is to be tried again.

        Raises `EnclosureFault` if the original cannot be read, `LetterError` if the recipient's
        address is none, `SpoolFault`.
        """
        message, recipient = held.message, held.recipient
        key = message.id, recipient.number
        address(recipient.address)
        own = await self._enclosed(message)
        try:
            letter = await self._composed(own, recipient)
        except (SpoolFault, EnclosureFault):
            raise
        except Exception as error:
            # A message must not stay here for ever because of what somebody wrote into it.
            self._failures[key] += 1
            logger.opt(exception=error).error("{}: no mail can be composed", message.id)
            if self._failures[key] < POISONED:
                return None
            letter = plain_letter(message, recipient, own.files.original, self._sender)
        self._failures.pop(key, None)
        return letter

    async def _composed(self, own: Enclosed, recipient: Recipient) -> Letter:
        message = own.message
        told = [await self._spool.message(id_) for id_ in await told_in(self._spool, message.id)]
        others = [await self._enclosed(one) for one in told]
        link = None
        if message.related is not None:
            link = relation(message, [await self._spool.message(message.related)])
        mailbox = await self._mailbox(message, recipient)
        return await asyncio.to_thread(
            self._composer.compose, own, recipient, mailbox, relation=link, others=others
        )

    async def _enclosed(self, message: Message) -> Enclosed:
        return Enclosed(message, await self._enclosures.files(message))

    async def _mailbox(self, message: Message, recipient: Recipient) -> Mailbox:
        found = await self._mailboxes.find(message.call.called, self._now())
        own = (mailbox for mailbox in found.mailboxes if mailbox.address == recipient.address)
        to = Address(recipient.address)
        return next(own, Mailbox(to, self._plain.language, self._plain.attach))
