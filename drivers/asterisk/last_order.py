"""Keeps the last known good order of every pack in the PBX's own database (AstDB).

The dialplan reads it when umpack does not answer, see umpack/dialplan/order.py. Entries are of the
family `umpack`: `order/PACK` and, of a cyclic pack, `start/PACK`. The dialplan moves a start on
itself while umpack is away; back again, umpack writes its own.

Written is what has changed, at most once in `EVERY` seconds: so a start is that much behind, which
at worst makes the first calls without umpack follow the last ones with it instead of going on
behind them. The database survives restarts of Asterisk, which writes it to disk by itself.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from loguru import logger

from drivers.asterisk.ami_wire import AmiAnswer, AmiRefused
from umpack.core.distributor import Distributor
from umpack.core.errors import PeerFault
from umpack.core.order import entries
from umpack.core.printable import printable
from umpack.core.trunk import PbxId

FAMILY = "umpack"
EVERY = 1.0
"""Seconds between looks at what has changed."""


class Actions(Protocol):
    """What `AmiLink` is used for here."""

    @property
    def version(self) -> str:
        """AMI's version while the link is up, else empty."""

    async def action(self, name: str, headers: dict[str, str]) -> AmiAnswer:
        """See `AmiLink.action`."""


class LastOrderKeeper:
    """The entries of one PBX; `run` keeps them for as long as it is let."""

    def __init__(
        self, distributor: Distributor, ami: Actions, pbx: PbxId, *, every: float = EVERY
    ) -> None:
        self._distributor = distributor
        self._ami = ami
        self._pbx = pbx
        self._every = every
        self._written: dict[str, str] = {}
        self._refused = False

    async def run(self) -> None:
        """Write what changes while the link is up, and all of it whenever it has come up."""
        while True:
            if not self._ami.version:
                # The PBX may have lost its database, or be another one.
                self._written.clear()
                self._refused = False
            elif not self._refused:
                try:
                    await self.once()
                except AmiRefused as fault:
                    self._refused = True
                    logger.warning(
                        "pbx {}: the dialplan will hunt without umpack's order: {} (its manager "
                        "user needs write = system)", self._pbx, printable(str(fault), 200),
                    )  # fmt: skip
                except PeerFault as fault:
                    logger.debug("pbx {}: order not kept: {}", self._pbx, printable(str(fault)))
            await asyncio.sleep(self._every)

    async def once(self) -> int:
        """Write what has changed; answers how many entries. Raises `PeerFault`."""
        site = self._distributor.site
        packs = [p for p in self._distributor.packs.values() if site.pbx_of(p.id) == self._pbx]
        count = 0
        for key, value in entries(packs, self._distributor).items():
            if self._written.get(key) != value:
                await self._ami.action("DBPut", {"Family": FAMILY, "Key": key, "Val": value})
                self._written[key] = value
                count += 1
        return count
