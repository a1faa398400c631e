"""The driver beside a simulated PBX with lines and servers, for tests of what its signals do.

Everything runs twenty times as fast as on a wall, or as a test says; seconds are the PBX's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import asdict, replace

from loguru import logger

from drivers.asterisk.ami import AmiAddress, AmiLimits
from drivers.asterisk.driver import AsteriskDriver, AsteriskPlan
from drivers.asterisk.signal_polls import PollTimes
from drivers.base import LinkState
from simulators import line_events as ev
from simulators.ami_actions import AmiActions
from simulators.ami_events import PbxEvents
from simulators.ami_server import AmiServer, AmiSession, Headers, message
from simulators.asterisk import PbxPlan, SimulatedAsterisk
from simulators.board import Board
from simulators.endpoints import Answer, Behaviour, Unreachable
from simulators.line import Defect, Kind, SpanSpec
from simulators.pbx_call import CallResult
from tests import sites
from umpack.core.channel import ChannelState
from umpack.core.distributor import Distributor
from umpack.core.health_policy import HealthPolicy
from umpack.core.health_states import HealthEvent, HealthState
from umpack.core.trunk import Trunk, TrunkId, TrunkKind

SPEED = 20.0
TIMES = PollTimes()
RARELY = PollTimes(lines=9000, lines_out=9000, endpoints=9000, endpoints_out=9000)
ALARMED, UP = HealthState.ALARMED, HealthState.UP
S0 = SpanSpec(Kind.S0)


class Asterisk(SimulatedAsterisk):
    """As the simulator, and so far as it matters here even more like Asterisk 22: the device of a
    span's congestion, `PJSIPShowEndpoint`, and "In use" where calls hide that nobody answers."""

    def __init__(self, speed: float) -> None:
        super().__init__(PbxPlan(speed=speed))
        table = AmiActions(self).table
        self._list_endpoints = table["pjsipshowendpoints"]
        mine = {"pjsipshowendpoint": self._endpoint, "pjsipshowendpoints": self._endpoints}
        self.ami = AmiServer(self.plan.ami_users, {**table, **mine})
        self.events = PbxEvents(self.ami.wants, self.ami.publish)
        self.congested: dict[int, bool] = {}
        self.asked: list[str] = []
        self.meanwhile: Callable[[], None] | None = None
        """Happens when the next list of endpoints has been made and not been sent."""

    def _line_event(self, event: ev.Event) -> None:
        super()._line_event(event)
        if self.lines is None:
            return
        for view in self.lines.board.spans():
            now = self.lines.in_alarm(view.number)
            if self.congested.get(view.number, False) is not now:
                self.congested[view.number] = now
                state = "UNAVAILABLE" if now else "NOT_INUSE"
                self.events.device_state(f"DAHDI/I{view.number}/congestion", state)

    def _endpoints(self, session: AmiSession, action_id: str, headers: Headers) -> None:
        self.asked.append("PJSIPShowEndpoints")
        if self.meanwhile is not None:
            self.meanwhile()
        hidden = {n: e for n, e in self.endpoints.items() if e.active and not e.reachable}
        kept = {name: endpoint.behaviour for name, endpoint in hidden.items()}
        for endpoint in hidden.values():
            endpoint.behaviour = Answer()
        self._list_endpoints(session, action_id, headers)
        for name, endpoint in hidden.items():
            endpoint.behaviour = kept[name]
        if self.meanwhile is not None:
            self.meanwhile = None
            self.endpoints["um1"].behaviour = Unreachable()

    def _endpoint(self, session: AmiSession, action_id: str, headers: Headers) -> None:
        name = headers.get("endpoint", "")
        self.asked.append(f"PJSIPShowEndpoint {name}")
        status = "Reachable" if self.endpoints[name].reachable else "Unreachable"
        head = message("Response: Success", action_id, "EventList: start")
        contact = message(
            "Event: ContactStatusDetail", action_id, f"URI: sip:{name}", f"Status: {status}"
        )
        end = message("Event: EndpointDetailComplete", action_id, "EventList: Complete")
        session.send(head + contact + end)


class Rig:
    """One umpack beside one PBX."""

    def __init__(self, pbx: Asterisk, distributor: Distributor, driver: AsteriskDriver) -> None:
        self.pbx, self.distributor, self.driver = pbx, distributor, driver
        self.log: list[str] = []
        self.alarms = 0

    @property
    def now(self) -> float:
        return 1e6 + self.pbx.time.now()

    def state(self, trunk: str) -> HealthState:
        return self.distributor.health[TrunkId(trunk)].state

    def why(self, trunk: str) -> str:
        return self.distributor.health[TrunkId(trunk)].why

    async def until(self, holds: Callable[[], bool], seconds: float = 100.0) -> float:
        """Wait for something; gives the PBX's seconds it took."""
        began = self.now
        async with asyncio.timeout(20):
            while not holds():
                assert self.now - began < seconds, self.distributor.health
                await asyncio.sleep(0.002)
        return self.now - began

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self.pbx.plan.speed)

    async def becomes(self, trunk: str, state: HealthState, seconds: float = 100.0) -> float:
        return await self.until(lambda: self.state(trunk) is state, seconds)

    async def usable(self, trunk: str, seconds: float = 100.0) -> float:
        return await self.until(lambda: self.state(trunk) is not ALARMED, seconds)

    async def up(self) -> None:
        await self.until(lambda: self.driver.link.state is LinkState.UP)

    def defect(self, span: int, defect: Defect | None) -> None:
        self.pbx.accident(lambda board, now: board.defect(now, span, defect))

    async def held(self, hold: float = 500.0) -> asyncio.Task[CallResult]:
        """A call that is being held."""
        before = len(self.distributor.ledger)
        task = asyncio.create_task(self.pbx.call("100", hold=hold))
        await self.until(lambda: len(self.distributor.ledger) > before or task.done())
        return task

    async def served(self) -> str | None:
        before = len(self.distributor.ledger)
        result = await self.pbx.call("100", hold=0.0)
        # The PBX may be through with a call before umpack has heard of its end.
        await self.until(lambda: len(self.distributor.ledger) <= before)
        return result.served_by

    def changes(self) -> list[HealthEvent]:
        return [change.event for change in self.distributor.take_changes()]


@contextlib.asynccontextmanager
async def umpack(
    trunks: Iterable[Trunk],
    specs: list[SpanSpec],
    *,
    times: PollTimes = TIMES,
    policy: HealthPolicy | None = None,
    speed: float = SPEED,
    answer_within: float = 20.0,
    far_ends: Mapping[int, Behaviour] | None = None,
) -> AsyncIterator[Rig]:
    trunks = list(trunks)
    pack = sites.plan("um", sites.all_of(*trunks), answer_within=answer_within, setup_budget=60.0)
    distributor = Distributor(sites.site(trunks, [pack], policy=policy))
    async with (
        pbx_of(trunks, specs, speed, far_ends) as pbx,
        beside(pbx, distributor, times=times) as rig,
    ):
        yield rig


@contextlib.asynccontextmanager
async def pbx_of(
    trunks: Iterable[Trunk],
    specs: list[SpanSpec],
    speed: float = SPEED,
    far_ends: Mapping[int, Behaviour] | None = None,
) -> AsyncIterator[Asterisk]:
    """A PBX that has what these trunks need."""
    pbx = Asterisk(speed)
    async with pbx:
        if specs:
            pbx.attach(Board(specs), far_ends)
        for trunk in trunks:
            if trunk.endpoint:
                pbx.add_endpoint(trunk.endpoint, capacity=len(trunk.slots))
        yield pbx


@contextlib.asynccontextmanager
async def beside(
    pbx: Asterisk,
    distributor: Distributor,
    *,
    times: PollTimes = TIMES,
    resumed: bool = False,
    linked: bool = True,
) -> AsyncIterator[Rig]:
    """The driver, its link up if it is to be `linked` at once. Ends as killed: calls go on."""
    speed = pbx.plan.speed
    real = PollTimes(**{name: each / speed for name, each in asdict(times).items()})
    ami = AmiAddress("127.0.0.1", pbx.ami.port, "umpack", "umpack")
    # What gathers for 10 ms would be late by 0.2 s of the PBX's, and an answer so late is news.
    plan = AsteriskPlan(sites.MAIN, "127.0.0.1", 0, ami, AmiLimits(gather=0.0))
    driver = AsteriskDriver(plan, distributor, lambda: 1e6 + pbx.time.now(), real, resumed=resumed)
    rig = Rig(pbx, distributor, driver)
    sink = logger.add(lambda line: rig.log.append(str(line)), level="WARNING")
    await driver.start()
    pbx.agi_to("127.0.0.1", driver.agi_port)
    ticking = asyncio.create_task(_tick(rig))
    watching = asyncio.create_task(driver.watch())
    try:
        if linked:
            await rig.up()
        yield rig
        assert not watching.done(), watching
    finally:
        ticking.cancel()
        await driver.close(0.0)
        watching.cancel()
        await asyncio.gather(ticking, watching, return_exceptions=True)
        logger.remove(sink)


async def _tick(rig: Rig) -> None:
    while True:
        rig.distributor.tick(rig.now)
        await asyncio.sleep(0.5 / rig.pbx.plan.speed)


def s0(name: str, span: int) -> Trunk:
    trunk = sites.trunk(name, 2, kind=TrunkKind.S0, first=3 * span - 2)
    return replace(trunk, span=span)


LINES = [s0("left", 1), s0("right", 2)]


def channel_states(rig: Rig) -> list[ChannelState]:
    return [lease.channel.state for lease in rig.distributor.ledger]
