"""Called number to mailboxes: several directories are asked in order, and there is a default.

    directory.py       the values, and the order      directory_file.py   CSV or YAML, read anew
    ldap_directory.py  LDAP, remembered

Nothing is unrouted: what no directory knows goes to the default mailbox. But a directory that
cannot answer is not one that does not know: then the answer is in doubt and says so, so that a fax
can wait a while before somebody gets it whom it is not for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from umpack.core.errors import ConfigError, PeerFault
from umpack.core.printable import printable
from umpack.core.routes import Pattern
from umpack.messages import texts
from umpack.messages.letter import Address, address

__all__ = ["Attach", "Directory", "Entry", "Found", "Mailbox", "Mailboxes", "Source"]


class Attach(Enum):
    """What a mailbox gets of a fax. One that is incomplete comes with its original in any case."""

    PDF = "pdf"
    ORIGINAL = "original"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Mailbox:
    """Where messages go, and in what form."""

    address: Address
    language: str = "en"
    attach: Attach = Attach.PDF

    def __post_init__(self) -> None:
        address(self.address)


@dataclass(frozen=True, slots=True)
class Entry:
    """Messages for the numbers of a pattern go to all of these mailboxes."""

    called: Pattern
    mailboxes: tuple[Mailbox, ...]

    def __post_init__(self) -> None:
        if not self.mailboxes:
            raise ConfigError(f"{self.called.text}: no mailbox")


class Directory:
    """Entries, of which the most exact one that fits answers (core/routes.py says which that is).

    Entries of one and the same pattern are taken together. Never changed once made.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        merged: dict[str, Entry] = {}
        for entry in entries:
            text = entry.called.text
            before = merged[text].mailboxes if text in merged else ()
            merged[text] = Entry(entry.called, (*before, *entry.mailboxes))
        self.entries = tuple(sorted(merged.values(), key=lambda entry: entry.called.rank))
        # By prefix, so that thousands of numbers cost a few look-ups.
        self._by_prefix: dict[str, list[Entry]] = {}
        for entry in self.entries:
            self._by_prefix.setdefault(entry.called.prefix, []).append(entry)
        self._lengths = sorted({len(prefix) for prefix in self._by_prefix}, reverse=True)

    def mailboxes(self, called: str) -> tuple[Mailbox, ...]:
        """Whose number it is, each address once; empty if nobody's."""
        for length in self._lengths:
            if length > len(called):
                continue
            for entry in self._by_prefix.get(called[:length], ()):
                if entry.called.matches(called):
                    return _each_once(entry.mailboxes)
        return ()


class Source(Protocol):
    """A directory that may have to be asked elsewhere."""

    name: str

    async def mailboxes(self, called: str, now: float) -> tuple[Mailbox, ...]:
        """Empty if it does not know the number. Raises `PeerFault` if it cannot answer."""


@dataclass(frozen=True, slots=True)
class Found:
    """Where a message goes, never nowhere."""

    mailboxes: tuple[Mailbox, ...]
    by: str
    """Which directory said so; `default` if none did."""
    doubt: str = ""
    """Which directory could not be asked, and might have said something else."""


class Mailboxes:
    """The directories in the order in which they are asked, and the default mailboxes."""

    def __init__(self, sources: Sequence[Source], default: Sequence[Mailbox]) -> None:
        self.change(sources, default)

    def change(self, sources: Sequence[Source], default: Sequence[Mailbox]) -> None:
        """Ask these from now on."""
        if not default:
            raise ConfigError("there must be a default mailbox, or faxes might be for nobody")
        self._sources = tuple(sources)
        self._default = _each_once(default)

    async def find(self, called: str, now: float) -> Found:
        """Ask for a number as signalled, then for its digits alone. Never raises."""
        numbers = list(dict.fromkeys((called[:64], texts.number(called))))
        doubts: list[str] = []
        for source in self._sources:
            doubt = ""
            for number in numbers:
                try:
                    if found := await source.mailboxes(number, now):
                        # By memory, if it cannot be asked: that has only what it knew.
                        return Found(found, source.name, "; ".join(doubts))
                except PeerFault as fault:
                    doubt = f"{source.name}: {printable(str(fault), 200)}"
            if doubt:
                doubts.append(doubt)
        return Found(self._default, "default", "; ".join(doubts))


def _each_once(mailboxes: Iterable[Mailbox]) -> tuple[Mailbox, ...]:
    found: dict[str, Mailbox] = {}
    for mailbox in mailboxes:
        local, _, domain = mailbox.address.rpartition("@")
        found.setdefault(f"{local}@{domain.lower()}", mailbox)
    return tuple(found.values())
