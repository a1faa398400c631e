"""What a mail server says, taken in: every foreign exception of a conversation ends here.

A server's text is a stranger's: it is cleaned and cut before it goes into a record or a log.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Final

import aiosmtplib

from umpack.core.errors import PeerFault, PeerGone, PeerTimeout, ProtocolFault
from umpack.core.printable import printable
from umpack.messages.letter import LetterError

MAX_REPLY: Final = 300

_QUEUE_IDS: Final = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"queued as ([\w.-]+)",  # Postfix
        r"\bid=([\w.-]+)",  # Exim
        r"InternalId=([\w.-]+)",  # Exchange
        r"([\w.-]{6,}) Message accepted",  # Sendmail
        r"queued (?:mail )?([\w.-]*\d[\w.-]*)",
    )
)


class Said(PeerFault):
    """A reply that is not the one hoped for."""

    def __init__(self, step: str, code: int, text: str) -> None:
        self.code = code
        self.text = clean(text)
        super().__init__(f"{step}: {code} {self.text}")


class TlsFault(PeerFault):
    """The connection could not be encrypted."""


def clean(text: str) -> str:
    """One line, nothing in it that could forge another."""
    return printable(" ".join(text.split()), MAX_REPLY)


def queue_id(reply: str) -> str | None:
    """The server's own name for the message, by which its administrator finds it."""
    found = (pattern.search(reply) for pattern in _QUEUE_IDS)
    return next((match[1].rstrip(".") for match in found if match), None)


def xtext(text: str) -> str:
    """RFC 3461 4: what an ESMTP parameter can hold."""
    return "".join(
        chr(byte) if 33 <= byte <= 126 and byte not in b"+=" else f"+{byte:02X}"
        for byte in text.encode()
    )


@contextlib.contextmanager
def border(step: str) -> Iterator[None]:
    """Translate what comes out of the library and the socket, naming the step.

    `Said` for a reply of 2xx to 5xx that the library did not expect, `PeerTimeout`, `PeerGone`,
    `ProtocolFault`; `LetterError` for what the library would not send.
    """
    try:
        yield
    except aiosmtplib.SMTPResponseException as error:
        if error.code < 200:
            raise ProtocolFault(f"{step}: {clean(error.message)}") from error
        raise Said(step, error.code, error.message) from error
    except TimeoutError as error:
        raise PeerTimeout(f"{step}: {clean(str(error)) or 'too slow'}") from error
    except OSError as error:
        raise PeerGone(f"{step}: {clean(str(error))}") from error
    except aiosmtplib.SMTPException as error:
        raise ProtocolFault(f"{step}: {clean(error.message)}") from error
    except ValueError as error:
        # The library refuses what could forge a command; `Letter` should have done so before.
        raise LetterError(f"{step}: {error}") from error
