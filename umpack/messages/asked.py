"""Which server each delivery was last being asked of, known after umpack was killed.

When a claim becomes durable nobody knows yet who will be asked, and to have that durable as well
would cost every mail a sync. It need not be: what a process has written outlives it. Only a loss of
power forgets it, and then the letter goes to any server, with the same Message-ID as always.

The file is a ring and never grows: a full disk is no reason for it to fail.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Final

from loguru import logger

from umpack.messages.message import DeliveryKey, MessageId

SLOTS: Final = 1024
"""Entries; many times as many as deliveries may be under way at once."""
SLOT: Final = 512
"""Bytes of an entry: a message's id, a number, a server's name and address."""


class Asked:
    """The file of one spool; `left` is what the process before this one has left in it.

    Never raises `OSError`: without it mail goes as well, and a kill may cost a second copy.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._serials = count()
        self._file: int | None = None
        self.left: Mapping[DeliveryKey, str] = MappingProxyType({})
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.posix_fallocate(self._file, 0, SLOTS * SLOT)
            self.left = MappingProxyType(_newest(os.pread(self._file, SLOTS * SLOT, 0)))
        except OSError as error:
            self._fails(error)

    def begin_anew(self) -> None:
        """What was left has been dealt with."""
        self._write(b"\0" * (SLOTS * SLOT), 0)

    def note(self, key: DeliveryKey, server: str) -> None:
        """The server is about to be asked. Waits for no disk but one that hangs. Any thread."""
        serial = next(self._serials)
        entry = json.dumps([serial, *key, server]).encode()
        if len(entry) <= SLOT:  # no server has a longer name
            self._write(entry.ljust(SLOT, b"\0"), serial % SLOTS)

    def close(self) -> None:
        """May be called again; nothing may be noted any more."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, data: bytes, slot: int) -> None:
        if self._file is None:
            return
        try:
            os.pwrite(self._file, data, slot * SLOT)
        except OSError as error:
            self._fails(error)

    def _fails(self, error: OSError) -> None:
        logger.warning("{}: {}", self._path, error.strerror or error)


def _newest(data: bytes) -> dict[DeliveryKey, str]:
    """The last entry of each; one that cannot be read was being written, or edited by somebody."""
    found: dict[DeliveryKey, tuple[int, str]] = {}
    for start in range(0, len(data), SLOT):
        text = data[start : start + SLOT].rstrip(b"\0")
        try:
            entry = json.loads(text) if text else None
        except (ValueError, RecursionError):
            continue
        match entry:
            case [int(serial), str(message), int(number), str(server)]:
                key = MessageId(message), number
                found[key] = max(found.get(key, (-1, "")), (serial, server))
    return {key: server for key, (_, server) in found.items()}
