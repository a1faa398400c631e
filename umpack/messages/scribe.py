"""Writes the mail of a delivery from its record, its form and its files.

Whatever a directory or a converter might say otherwise at the next try is fixed in the record, as
the recipient's `Form`, before a mail goes out: under one Message-ID there is one mail, as long as
configuration and texts stay. What cannot be composed goes out with its original after a few tries.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from loguru import logger

from umpack.core.errors import OurFault
from umpack.messages.conversion import ConversionFault
from umpack.messages.directory import Attach, Mailbox, Mailboxes
from umpack.messages.enclosures import EnclosureFault, Enclosures
from umpack.messages.last_resort import plain_letter
from umpack.messages.letter import Address, Letter, address
from umpack.messages.mail import Composer, Enclosed, Files
from umpack.messages.message import Delivery, Form, Message, MessageId, Recipient
from umpack.messages.outcomes import relation
from umpack.messages.spool import Spool
from umpack.messages.spool_schema import SpoolFault

POISONED: Final = 3
"""Failures after which no proper mail is tried any more."""


class _Amiss(OurFault):
    """A file cannot be enclosed as it should be; `instead` is the form that does without."""

    def __init__(self, fault: OurFault, instead: Form) -> None:
        super().__init__(str(fault))
        self.instead = instead


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
        if recipient.form is None:
            recipient = await self._shaped(recipient, await self._form(message, recipient))
        while True:
            try:
                letter = await self._composed(held, recipient)
            except (SpoolFault, EnclosureFault):
                raise
            except _Amiss as amiss:
                logger.error("{}: {}", message.id, amiss)
                if self._hopeful(key):
                    return None
                recipient = await self._shaped(recipient, amiss.instead)
                continue
            except Exception as error:
                # A message must not stay here for ever because of what somebody wrote into it.
                logger.opt(exception=error).error("{}: no mail can be composed", message.id)
                if self._hopeful(key):
                    return None
                files = await self._files(message, recipient)
                letter = plain_letter(message, recipient, files.original, self._sender)
            self._failures.pop(key, None)
            return letter

    def _hopeful(self, key: tuple[MessageId, int]) -> bool:
        """After a failure: whether the next try may be better."""
        self._failures[key] += 1
        return self._failures[key] < POISONED

    async def _form(self, message: Message, recipient: Recipient) -> Form:
        """By the directory, for whom a person has named, or umpack before there were forms."""
        found = await self._mailboxes.find(message.call.called, self._now())
        own = (mailbox for mailbox in found.mailboxes if mailbox.address == recipient.address)
        mailbox = next(own, self._plain)
        return Form(mailbox.language, mailbox.attach.value)

    async def _shaped(self, recipient: Recipient, form: Form) -> Recipient:
        await self._spool.shape(recipient.message, recipient.number, form)
        return replace(recipient, form=form)

    async def _composed(self, held: Delivery, recipient: Recipient) -> Letter:
        message, form = held.message, recipient.form or Form("", "")
        own = await self._enclosed(message, form)
        told = [one for id_ in held.others for one in await self._known(id_)]
        others = [await self._beside(one, form) for one in told]
        link = None
        if message.related is not None:
            link = relation(message, await self._known(message.related))
        return await asyncio.to_thread(
            self._composer.compose, own, recipient, self._mailbox(recipient, form),
            relation=link, others=others,
        )  # fmt: skip

    async def _known(self, id_: MessageId) -> tuple[Message, ...]:
        """A message that another only mentions: its record may be past its time, or lost."""
        try:
            return (await self._spool.message(id_),)
        except SpoolFault:
            raise
        except OurFault as fault:
            logger.warning("not mentioned in a mail: {}", fault)
            return ()

    async def _beside(self, message: Message, form: Form) -> Enclosed:
        """A try told of besides: its file must not keep back the mail of another call."""
        try:
            return await self._enclosed(message, form)
        except EnclosureFault as fault:
            instead = replace(form, without=(*form.without, message.id))
            raise _Amiss(fault, instead) from fault

    async def _enclosed(self, message: Message, form: Form) -> Enclosed:
        if form.note or message.id in form.without:
            return Enclosed(message, Files())
        try:
            files = await self._enclosures.files(message, bare=message.id in form.bare)
        except ConversionFault as fault:
            raise _Amiss(fault, replace(form, bare=(*form.bare, message.id))) from fault
        return Enclosed(message, files)

    async def _files(self, message: Message, recipient: Recipient) -> Files:
        if recipient.form is not None and recipient.form.note:
            return Files()
        return await self._enclosures.files(message, bare=True)

    def _mailbox(self, recipient: Recipient, form: Form) -> Mailbox:
        known = {attach.value for attach in Attach}
        attach = Attach(form.attach) if form.attach in known else self._plain.attach
        return Mailbox(Address(recipient.address), form.language or self._plain.language, attach)
