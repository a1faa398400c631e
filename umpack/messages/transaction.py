"""One letter over an open session: MAIL, RCPT, DATA, and the end of every recipient.

aiosmtplib speaks the commands. The end of DATA is ours: its single time limit covers the waits
for 354, for the blocks and for the final answer, so that it cannot be told whether a lost
connection lost the message (before the final dot) or maybe its receipt only (after).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final, NoReturn

import aiosmtplib
from aiosmtplib.protocol import SMTPProtocol

from umpack.core.errors import PeerFault, PeerGone, ProtocolFault
from umpack.messages.letter import (
    Address,
    Deferred,
    Delivered,
    Delivery,
    Letter,
    Refused,
    Uncertain,
    a_label,
    address,
)
from umpack.messages.replies import Said, border, clean, queue_id, xtext

BLOCK: Final = 64 * 1024
OUR_CODES: Final = frozenset({530, 534, 535, 538})
"""Replies that blame our login or its lack, not the message: a person sets that right."""
TOO_LARGE: Final = 552
NO_UTF8: Final = 553

Reply = asyncio.Future[aiosmtplib.SMTPResponse]


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds to wait for each step: RFC 5321 4.5.3.2, the rest as Postfix has it.

    `done` is the one that must be long: a server may scan and store before it answers, and who
    gives up earlier sends it all a second time (RFC 1047).
    """

    connect: float = 30.0
    banner: float = 300.0
    hello: float = 300.0
    tls: float = 300.0
    login: float = 300.0
    mail: float = 300.0
    recipient: float = 300.0
    data: float = 120.0
    block: float = 180.0
    done: float = 600.0
    quit: float = 5.0

    def scaled(self, factor: float) -> Limits:
        """All of them `factor` times as long: for tests in a faster time."""
        return Limits(**{one.name: getattr(self, one.name) * factor for one in fields(self)})


@dataclass(frozen=True, slots=True)
class Talk:
    """How a conversation ended: `ends` for every recipient; `fault` of the server if it failed as
    a server ("" if it did its work, if only by refusing); `spoke` if it came to the message.
    """

    ends: Mapping[Address, Delivery]
    fault: str = ""
    spoke: bool = True


class Transaction:
    """For one letter. `label` names the server in every end."""

    def __init__(
        self,
        client: aiosmtplib.SMTP,
        transport: asyncio.WriteTransport,
        label: str,
        limits: Limits,
    ) -> None:
        self._client = client
        self._transport = transport
        self._label = label
        self._limits = limits
        self._writer: asyncio.StreamWriter | None = None
        """Kept as long as the session: in some versions of Python it closes what it writes to
        when it goes."""

    async def send(self, letter: Letter, recipients: Sequence[Address]) -> Talk:
        """One transaction. The ends of all recipients, those settled before a fault included."""
        ends: dict[Address, Delivery] = {}
        spoke = False
        try:
            size = self._client.esmtp_extensions.get("size", "")
            if size.isdecimal() and 0 < int(size) < letter.size:
                why = f"5.3.4 {letter.size:,} bytes are more than the {int(size):,} it takes"
                return Talk(dict.fromkeys(recipients, self._refused(why, TOO_LARGE)))
            takers = self._takers(letter, recipients, ends)
            spoke = bool(takers)
            if takers and await self._mail(letter, takers, ends):
                accepted = await self._recipients(takers, ends)
                if accepted:
                    await self._data(letter, accepted, ends)
        except PeerFault as fault:
            why = f"{self._label}: {fault}"
            for recipient in recipients:
                ends.setdefault(recipient, Deferred(why))
            return Talk(ends, why, spoke)
        uncertain = [end.why for end in ends.values() if isinstance(end, Uncertain)]
        return Talk(ends, uncertain[0] if uncertain else "")

    def _takers(
        self, letter: Letter, recipients: Sequence[Address], ends: dict[Address, Delivery]
    ) -> list[Address]:
        """Those the server can be told of at all (RFC 6531 3.2)."""
        if self._client.supports_extension("smtputf8"):
            return list(recipients)
        takers = []
        for recipient in recipients:
            if letter.needs_utf8 or not recipient.rpartition("@")[0].isascii():
                ends[recipient] = self._refused("5.6.7 it knows no SMTPUTF8", NO_UTF8)
            else:
                takers.append(recipient)
        return takers

    async def _mail(
        self, letter: Letter, takers: Sequence[Address], ends: dict[Address, Delivery]
    ) -> bool:
        offers = self._client.supports_extension
        options = []
        if offers("size"):
            options.append(f"SIZE={letter.size}")
        # Without 8BITMIME the bytes go as they are: a server that old passes them on or harms
        # them, and a letter kept back for that reaches nobody for certain.
        if offers("8bitmime") and letter.eight_bit:
            options.append("BODY=8BITMIME")
        if offers("smtputf8") and (
            letter.needs_utf8 or not all(one.rpartition("@")[0].isascii() for one in takers)
        ):
            options.append("SMTPUTF8")
        if offers("dsn"):
            options += ["RET=HDRS", f"ENVID={xtext(letter.message_id[1:-1])[:100]}"]
        try:
            with border("MAIL"):
                await self._client.mail(
                    _envelope(letter.envelope_from), options=options, encoding="utf-8",
                    timeout=self._limits.mail,
                )  # fmt: skip
        except Said as said:
            if said.code // 100 != 2:
                ends.update(dict.fromkeys(takers, self._judged(said)))
                return False
        return True

    async def _recipients(
        self, takers: Sequence[Address], ends: dict[Address, Delivery]
    ) -> list[Address]:
        accepted: list[Address] = []
        for recipient in takers:
            options = []
            if self._client.supports_extension("dsn"):
                options.append("NOTIFY=FAILURE,DELAY")
                if recipient.isascii():
                    options.append(f"ORCPT=rfc822;{xtext(recipient)}")
            try:
                with border("RCPT"):
                    await self._client.rcpt(
                        _envelope(recipient), options=options, encoding="utf-8",
                        timeout=self._limits.recipient,
                    )  # fmt: skip
            except Said as said:
                if said.code == TOO_LARGE and accepted and "5.2." not in said.text:
                    # How old servers say "too many recipients" (RFC 5321 4.5.3.1.10).
                    ends[recipient] = Deferred(f"{self._label}: {said}", reached=True)
                    continue
                if said.code // 100 != 2:
                    ends[recipient] = self._judged(said)
                    continue
            accepted.append(recipient)
        return accepted

    async def _data(
        self, letter: Letter, accepted: Sequence[Address], ends: dict[Address, Delivery]
    ) -> None:
        try:
            with border("DATA"):
                go = await self._client.execute_command(b"DATA", timeout=self._limits.data)
            if go.code != 354:
                raise Said("DATA", go.code, go.message)
            end = await self._body(letter)
        except Said as said:
            end = self._judged(said)
        ends.update(dict.fromkeys(accepted, end))

    async def _body(self, letter: Letter) -> Delivery:
        """The message and the final dot; raises only what means that it was not accepted."""
        protocol = self._client.protocol
        if protocol is None:
            raise PeerGone("connection lost after DATA")
        body = letter.body.replace(b"\r\n.", b"\r\n..")
        wire = memoryview((b"." + body if body.startswith(b".") else body) + b".\r\n")
        last = (len(wire) - 1) // BLOCK * BLOCK
        # Listen from the beginning: a server may refuse in mid-message, and the library drops
        # what comes while nobody waits.
        reply: Reply = asyncio.ensure_future(protocol.read_response(timeout=None))
        try:
            await asyncio.sleep(0)
            for start in range(0, last, BLOCK):
                await self._block(protocol, wire[start : start + BLOCK], reply)
            return await self._dot(protocol, wire[last:], reply)
        finally:
            reply.cancel()
            await asyncio.wait({reply})
            if not reply.cancelled():
                reply.exception()

    async def _block(self, protocol: SMTPProtocol, block: memoryview, reply: Reply) -> None:
        writer = self._writer = self._writer or asyncio.StreamWriter(
            self._transport, protocol, None, asyncio.get_running_loop()
        )
        with border("message"):
            if reply.done():
                _too_early(reply)
            protocol.write(bytes(block))
            # Most often the system has taken it all by now; to find out with a task and a time
            # limit costs more than to write it.
            await asyncio.sleep(0)
            if not self._transport.get_write_buffer_size() and not self._transport.is_closing():
                return
            drained = asyncio.ensure_future(writer.drain())
            try:
                await asyncio.wait(
                    (drained, reply), timeout=self._limits.block,
                    return_when=asyncio.FIRST_COMPLETED,
                )  # fmt: skip
                if reply.done():
                    _too_early(reply)
                if not drained.done():
                    raise TimeoutError(f"not taken for {self._limits.block:g} s")
                drained.result()
            finally:
                drained.cancel()
                await asyncio.wait({drained})
                if not drained.cancelled():
                    drained.exception()

    async def _dot(self, protocol: SMTPProtocol, block: memoryview, reply: Reply) -> Delivery:
        with border("message"):
            if reply.done():
                _too_early(reply)
            protocol.write(bytes(block))
        # From here on the server may have it all.
        try:
            with border("final dot"):
                await asyncio.wait({reply}, timeout=self._limits.done)
                if not reply.done():
                    raise TimeoutError(f"no answer for {self._limits.done:g} s")
                answer = reply.result()
        except PeerFault as fault:
            return Uncertain(self._label, f"{self._label}: {fault}")
        text = clean(answer.message)
        match answer.code // 100:
            case 2:
                return Delivered(self._label, f"{answer.code} {text}", queue_id(text))
            case 4 | 5:
                raise Said("final dot", answer.code, answer.message)
            case _:
                return Uncertain(self._label, f"{self._label}: final dot: {answer.code} {text}")

    def _judged(self, said: Said) -> Delivery:
        """What a refusal means for those it is about; 421 is the server's end and raised."""
        if said.code == 421 or said.code < 400:
            raise said if said.code == 421 else ProtocolFault(str(said))
        if said.code < 500 or said.code in OUR_CODES:
            return Deferred(f"{self._label}: {said}", reached=True)
        return self._refused(str(said), said.code)

    def _refused(self, why: str, code: int) -> Refused:
        return Refused(f"{self._label}: {why}", code)


def _envelope(mailbox: Address) -> str:
    # Once more at the very edge: the library would cut a forged address to the part it likes, and
    # the letter would go to somebody else.
    local, _, domain = address(mailbox).rpartition("@")
    return mailbox if domain.startswith("[") else f"{local}@{a_label(domain)}"


def _too_early(reply: Reply) -> NoReturn:
    """The server spoke, or went, before it had the message."""
    early = reply.result()
    if early.code < 400:
        raise ProtocolFault(f"message: {early.code} before its end")
    raise Said("message", early.code, early.message)
