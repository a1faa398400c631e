"""The port of the contract suite: a PBX that can be rung, whatever it is made of.

Both implementations have SIP servers called `PJSIP/{called}@{endpoint}` and callers who come in by
SIP, and the dialplan of umpack: one AGI step, then `Hangup(${UMPACK_CAUSE})`; where AGISTATUS is
FAILURE, `Hangup(NO_UMPACK_CAUSE)`. Only what a caller or a server can see is told.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass

from loguru import logger

from drivers.asterisk.ami import AmiAddress
from drivers.asterisk.driver import AsteriskDriver, AsteriskPlan
from simulators.endpoints import Answer, Reject, Ring
from tests import sites
from umpack import clock
from umpack.core.calls import CallRecord
from umpack.core.distributor import Distributor
from umpack.core.pack import PackPlan
from umpack.core.routes import Route
from umpack.core.site import Site
from umpack.core.trunk import Trunk, TrunkId, TrunkKind

Behaviour = Answer | Reject | Ring
"""What a server can be told to do; times are seconds."""

Servers = dict[str, Behaviour]

NO_UMPACK_CAUSE = 27
NO_UMPACK_STATUS = 502
"""What a caller gets who found no umpack: Q.850 27, which Asterisk makes SIP 502."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A call as its caller saw it: the final status of his INVITE (487 after his own CANCEL)."""

    status: int

    @property
    def answered(self) -> bool:
        """Whether anybody took it."""
        return self.status == 200


@dataclass(frozen=True, slots=True)
class Invite:
    """A call as a server saw it come: the user parts of Request-URI and From."""

    endpoint: str
    called: str
    caller: str


class ContractPbx(ABC):
    """What the suite asks of a PBX. Everything is on 127.0.0.1."""

    bulk: int
    """Calls in the suite's one crowd."""
    rate: float
    """Calls a second it places them at."""
    beat: float
    """Seconds within which half a dozen short calls can be made one after the other."""

    @abstractmethod
    async def start(self, agi_port: int, endpoints: Mapping[str, Behaviour]) -> None:
        """Boot with these servers. Called once."""

    @abstractmethod
    async def stop(self) -> None:
        """End, and leave no process, socket or task behind; also after a failed `start`."""

    @abstractmethod
    async def call(
        self,
        called: str,
        *,
        caller: str = "1000",
        name: str | None = None,
        hold: float = 0.05,
        patience: float | None = None,
    ) -> Seen:
        """One call. The caller hangs up `hold` seconds after the answer, or cancels `patience`
        seconds after he began to wait. `name` is his display name, any text at all."""

    @abstractmethod
    async def calls(self, called: str, count: int, *, rate: float, hold: float) -> list[Seen]:
        """Many calls, `rate` a second, each held `hold` seconds."""

    @property
    @abstractmethod
    def ami(self) -> AmiAddress:
        """Its manager interface, once started."""

    @abstractmethod
    async def invites(self) -> list[Invite]:
        """What all servers saw since `start`, in order of time."""


class Rig:
    """umpack's own core and driver, in this process, joined to one PBX."""

    def __init__(self, pbx: ContractPbx, distributor: Distributor, driver: AsteriskDriver) -> None:
        self.pbx = pbx
        self.distributor = distributor
        self.driver = driver
        self.errors: list[str] = []
        self.seen: list[CallRecord] = []

    @property
    def busy(self) -> int:
        """Leases held now."""
        return len(self.distributor.ledger)

    def records(self) -> list[CallRecord]:
        """Every record so far, oldest first."""
        self.seen += self.distributor.take_records()
        return self.seen

    async def until(self, holds: Callable[[], bool], limit: float = 30.0) -> None:
        """Wait for something to become true."""
        async with asyncio.timeout(limit):
            while not holds():  # noqa: ASYNC110 - the core tells nobody
                await asyncio.sleep(0.005)

    async def holding(self, called: str, hold: float) -> asyncio.Task[Seen]:
        """A call that keeps its channel for `hold` beats; returns once it has one."""
        before, hold = self.busy, hold * self.pbx.beat
        task = asyncio.create_task(self.pbx.call(called, hold=hold))
        await self.until(lambda: self.busy > before or task.done())
        return task

    async def rung(self) -> list[str]:
        """The servers that were rung, in order."""
        return [invite.endpoint for invite in await self.pbx.invites()]

    async def check_clean(self, calls: int) -> None:
        """Nothing is held any more, and every call left exactly one record."""
        await self.until(lambda: self.busy == 0 and len(self.records()) >= calls)
        ids = Counter(record.call.id for record in self.records())
        assert len(ids) == calls, ids
        assert set(ids.values()) <= {1}, ids
        assert self.errors == []


@contextlib.asynccontextmanager
async def umpack_with(
    pbx: ContractPbx, endpoints: Mapping[str, Behaviour], site: Site
) -> AsyncIterator[Rig]:
    """Start umpack and the PBX; at the end nothing may be left of either."""
    distributor = Distributor(site)
    plan = AsteriskPlan(sites.MAIN, "127.0.0.1", 0, None)
    driver = AsteriskDriver(plan, distributor, clock.now)
    rig = Rig(pbx, distributor, driver)
    sink = logger.add(lambda message: rig.errors.append(str(message)), level="ERROR")
    await driver.start()
    try:
        await pbx.start(driver.agi_port, endpoints)
        yield rig
    finally:
        await pbx.stop()
        await driver.close(0.0)
        logger.remove(sink)
    assert len(distributor.ledger) == 0


def server(name: str, slots: int = 1) -> Trunk:
    """A SIP trunk to the server of that name."""
    return sites.trunk(name, slots, kind=TrunkKind.SIP)


def site_of(
    trunks: Iterable[Trunk], packs: Iterable[PackPlan], routes: Iterable[Route] | None = None
) -> Site:
    """A site; without routes everything goes to the first pack."""
    return sites.site(trunks, packs, routes)


def trunks_of(records: Iterable[CallRecord]) -> list[TrunkId | None]:
    """The trunk each call was served by or tried last."""
    return [record.attempts[-1].trunk if record.attempts else None for record in records]
