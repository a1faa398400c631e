"""A name server for the answers a proper one cannot be brought to give: failure and silence.

UDP on loopback, a zone as a mapping; names it does not know do not exist.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias, cast

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rrset


class Fails(Enum):
    """What it does instead of answering."""

    SERVFAIL = "SERVFAIL"
    REFUSED = "REFUSED"
    SILENCE = "silence"


Records: TypeAlias = Mapping[str, Sequence[str]]
"""Records by type, as in a zone file; a type that is not there is answered with no data."""


@dataclass
class NameServer(asyncio.DatagramProtocol):
    """Answers while it is entered. `zone`: names in small letters, without the last dot."""

    zone: Mapping[str, Records | Fails]
    host: str = "127.0.0.1"
    port: int = 0
    asked: list[str] = field(default_factory=list)
    """"name type" of every query."""
    _transport: asyncio.DatagramTransport | None = None

    async def __aenter__(self) -> NameServer:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: self, (self.host, self.port))
        self.port = transport.get_extra_info("sockname")[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it to answer by."""
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """One query, one answer, or none."""
        try:
            query = dns.message.from_wire(data)
        except dns.exception.DNSException:
            return
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = question.rdtype.name
        self.asked.append(f"{name} {kind}")
        answer = dns.message.make_response(query, recursion_available=True)
        answer.flags |= dns.flags.AA
        known = self.zone.get(name)
        match known:
            case Fails.SILENCE:
                return
            case Fails():
                answer.set_rcode(dns.rcode.from_text(known.value))
            case None:
                answer.set_rcode(dns.rcode.NXDOMAIN)
            case _ if kind in known:
                answer.answer.append(
                    dns.rrset.from_text(question.name, 60, "IN", kind, *known[kind])
                )
        if self._transport is not None:
            self._transport.sendto(answer.to_wire(), addr)
