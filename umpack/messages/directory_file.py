"""A directory in a file, CSV or YAML, read anew when it has changed.

    number,addresses,language,attach            mailboxes:
    4930200012,anna@example.org,de,pdf            - number: 4930200012
    4930200100-199,it@example.org;fax@…,en,both     addresses: [anna@example.org]
                                                    language: de

`number` is a pattern (core/routes.py) or a block, whose last number may be shortened to the digits
that differ. Language and attach may be left out. A new file with a mistake changes nothing: the old
directory stays in force and the mistake is told.
"""

from __future__ import annotations

import asyncio
import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from loguru import logger

from umpack.config.yaml_source import Odd, YamlError, read_yaml
from umpack.core.errors import ConfigError, PeerFault
from umpack.core.printable import printable
from umpack.core.routes import Pattern, PatternError
from umpack.messages.directory import Attach, Directory, Entry, Mailbox
from umpack.messages.letter import LetterError, address

_MOST: Final = 32 << 20
_MOST_PROBLEMS: Final = 20
_FIELDS: Final = ("number", "addresses", "language", "attach")
_SHORT_BLOCK: Final = re.compile(r"(\+?[0-9]+)-([0-9]+)")
_LANGUAGE: Final = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")
_BETWEEN: Final = re.compile(r"[;\s]+")


class DirectoryFault(ConfigError):
    """A directory file that cannot be used; every problem with its line."""


def read_directory(path: Path, language: str = "en", attach: Attach = Attach.PDF) -> Directory:
    """Read a file (`.csv`, else YAML); language and attach are for entries that do not say.

    Raises `DirectoryFault`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise DirectoryFault(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DirectoryFault(f"{path}:{line}: not UTF-8") from error
    if len(data) > _MOST:
        raise DirectoryFault(f"{path}: larger than {_MOST >> 20} MB")
    rows = _csv_rows if path.suffix.lower() == ".csv" else _yaml_rows
    entries, problems = [], []
    try:
        for line, row in rows(text):
            try:
                entries.append(_entry(row, language, attach))
            except ConfigError as error:
                problems.append(f"{path}:{line}: {error}")
            except PatternError as error:
                problems.append(f"{path}:{line}: {error}")
            except LetterError as error:
                problems.append(f"{path}:{line}: {error}")
    except _RowError as error:
        problems.append(f"{path}:{error.line}: {error}")
    if not entries and not problems:
        # An empty file is what is left of one that could not be written.
        problems.append(f"{path}: nobody stands in it")
    if problems:
        more = len(problems) - _MOST_PROBLEMS
        rest = [f"and {more} more"] if more > 0 else []
        raise DirectoryFault("\n".join([*problems[:_MOST_PROBLEMS], *rest]))
    return Directory(entries)


class _RowError(Exception):
    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


_Row = Mapping[str, Sequence[str]]


def _csv_rows(text: str) -> Iterator[tuple[int, _Row]]:
    first = text.splitlines()[0] if text else ""
    # Spreadsheets separate by semicolon where the comma is for decimals.
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        names = [name.strip().lower() for name in next(reader, [])]
        if strange := set(names) - set(_FIELDS) or set(_FIELDS[:2]) - set(names):
            raise _RowError(1, f"columns are {', '.join(_FIELDS)}; look at {sorted(strange)!a}")
        if len(set(names)) < len(names):
            raise _RowError(1, "a column stands here twice")
        for row in reader:
            if not any(cell.strip() for cell in row) or row[0].startswith("#"):
                continue
            if len(row) != len(names):
                raise _RowError(reader.line_num, f"{len(row)} fields instead of {len(names)}")
            cells = dict(zip(names, (cell.strip() for cell in row), strict=True))
            addresses = [one for one in _BETWEEN.split(cells.pop("addresses")) if one]
            yield reader.line_num, {**{k: [v] for k, v in cells.items() if v},
                                    "addresses": addresses}  # fmt: skip
    except csv.Error as error:
        raise _RowError(reader.line_num, f"not CSV: {error}") from error


def _yaml_rows(text: str) -> Iterator[tuple[int, _Row]]:
    try:
        document = read_yaml(text, "")
    except YamlError as error:
        raise _RowError(error.line, error.message) from error
    for _, line, message in document.flaws:
        raise _RowError(line, message)
    data = document.data
    if not isinstance(data, dict) or set(data) != {"mailboxes"}:
        raise _RowError(1, "one key is expected at the top: mailboxes")
    if not isinstance(data["mailboxes"], list):
        raise _RowError(document.line(("mailboxes",)), "mailboxes: a list is expected")
    for at, item in enumerate(data["mailboxes"]):
        line = document.line(("mailboxes", at))
        if not isinstance(item, dict) or not set(_FIELDS[:2]) <= set(item) <= set(_FIELDS):
            raise _RowError(line, f"an entry has number and addresses, of {', '.join(_FIELDS)}")
        row: dict[str, Sequence[str]] = {}
        for key, value in item.items():
            values = value if isinstance(value, list) else [value]
            # Numbers as they are written: YAML would make 0301234 octal.
            row[key] = [
                document.written.get(("mailboxes", at, key), one.text if isinstance(one, Odd)
                                     else str(one)) if not isinstance(one, str) else one
                for one in values
            ]  # fmt: skip
        yield line, row


def _entry(row: _Row, language: str, attach: Attach) -> Entry:
    number = _one(row, "number", "")
    if match := _SHORT_BLOCK.fullmatch(number):
        first, last = match[1], match[2]
        if len(last) < len(first):
            number = f"{first}-{first[: len(first) - len(last)]}{last}"
    language = _one(row, "language", language)
    if not _LANGUAGE.fullmatch(language):
        raise ConfigError(f"not a language: {printable(language)}")
    wish = _one(row, "attach", attach.value)
    if wish not in Attach._value2member_map_:
        names = ", ".join(one.value for one in Attach)
        raise ConfigError(f"attach is one of {names}, not {printable(wish)}")
    mailboxes = tuple(Mailbox(address(one), language, Attach(wish)) for one in row["addresses"])
    return Entry(Pattern.parse(number), mailboxes)


def _one(row: _Row, key: str, default: str) -> str:
    values = row.get(key, [default])
    if len(values) != 1:
        raise ConfigError(f"{key}: one value is expected")
    return values[0]


class DirectoryFile:
    """A file that is asked, and looked at for changes before each answer. A `Source`."""

    def __init__(self, path: Path, language: str = "en", attach: Attach = Attach.PDF) -> None:
        self.name = path.name
        self.directory = Directory()
        self.fault = ""
        """Why the file as it is now is not in force; empty if it is."""
        self._path = path
        self._defaults = language, attach
        self._seen: tuple[int, ...] | None = None
        self._reading = asyncio.Lock()

    async def mailboxes(self, called: str, now: float) -> tuple[Mailbox, ...]:
        """Of the newest file without mistakes. If there has never been one, nobody can tell whose
        the number is: `PeerFault`, as from a directory that does not answer."""
        del now
        async with self._reading:
            await asyncio.to_thread(self.refresh)
        if self.fault and not self.directory.entries:
            raise PeerFault(self.fault)
        return self.directory.mailboxes(called)

    def refresh(self) -> bool:
        """Look whether the file has changed, and read it if so; true if a new one is in force.

        It blocks. What is wrong with a new file is in `fault`, and logged once.
        """
        try:
            found = os.stat(self._path)
            seen = found.st_mtime_ns, found.st_size, found.st_ino, found.st_ctime_ns
        except OSError as error:
            self._refuse((), f"{self._path}: {error.strerror}")
            return False
        if seen == self._seen:
            return False
        try:
            directory = read_directory(self._path, *self._defaults)
        except DirectoryFault as fault:
            self._refuse(seen, str(fault))
            return False
        self.directory, self.fault, self._seen = directory, "", seen
        logger.info("directory {}: {} entries", self._path, len(directory.entries))
        return True

    def _refuse(self, seen: Iterable[int], fault: str) -> None:
        self._seen = tuple(seen)
        if fault != self.fault:
            kept = len(self.directory.entries)
            logger.error("directory not taken over, {} entries stay: {}", kept, fault)
        self.fault = fault
