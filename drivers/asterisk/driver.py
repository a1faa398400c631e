"""One Asterisk PBX: its FastAGI listener, which brings the calls, and its AMI link.

Calls come and go by their own connections. The AMI link adds what the connections cannot tell:
the alarms of lines and endpoints, when a far end rings or has answered, whose channel a B channel
is. Nothing in the ledger waits for it.

The loss of the link takes no trunk out, and neither does Asterisk's word that it is shutting down.
Every call comes from the PBX that would dial it, so there is none to keep away from a dead one, and
one that still arrives proves that only the manager is gone. It keeps none out either: an alarm
whose end cannot be told is doubted after a while (`HealthPolicy.alarm_unseen`), and what else a
link that is down cannot tell is given up in `outage`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from math import inf

from loguru import logger

from drivers.asterisk.agi_call import AgiCall
from drivers.asterisk.agi_server import AgiServer, AgiServerLimits
from drivers.asterisk.ami import (
    AmiAddress,
    AmiEvent,
    AmiLimits,
    AmiLink,
    EventsMissed,
    LinkDown,
    LinkUp,
)
from drivers.asterisk.calls import CallHandler
from drivers.asterisk.hints import HINT_EVENTS, Hints
from drivers.asterisk.last_order import LastOrderKeeper
from drivers.asterisk.reception import Reception
from drivers.asterisk.reconcile import Reconciler
from drivers.asterisk.signal_polls import PollTimes, SignalPolls
from drivers.asterisk.signals import SIGNAL_EVENTS
from drivers.base import Clock, Link, LinkState
from umpack.core.distributor import Distributor
from umpack.core.errors import OurFault, PeerFault
from umpack.core.printable import printable
from umpack.core.trunk import PbxId

RESYNC_EVENTS = frozenset({"FullyBooted", "Reload"})
"""After these nothing that was known of the PBX is sure."""

WANTED_EVENTS = SIGNAL_EVENTS | RESYNC_EVENTS | HINT_EVENTS | {"Shutdown"}
"""All others stay in Asterisk: at a hundred calls a second it would send thousands of them."""

ADOPT_WITHIN = 1.0
"""Seconds after a restart in which calls are left to the dialplan until those that live in the PBX
are known. Without AMI nobody will ever tell, so that is also all there is to wait for it."""


@dataclass(frozen=True, slots=True)
class AsteriskPlan:
    """Where a PBX is and where it finds us. `ami` may be None: calls do not need it."""

    pbx: PbxId
    agi_host: str
    agi_port: int
    ami: AmiAddress | None
    limits: AmiLimits = AmiLimits()  # noqa: RUF009 - frozen


class AsteriskDriver:
    """Implements `drivers.base.Driver`. `resumed`: calls of an earlier run may live in the PBX."""

    def __init__(
        self,
        plan: AsteriskPlan,
        distributor: Distributor,
        clock: Clock,
        times: PollTimes | None = None,
        reception: Reception | None = None,
        *,
        resumed: bool = False,
    ) -> None:
        self.plan = plan
        self._distributor = distributor
        self._clock = clock
        self._server: AgiServer | None = None
        self._ami: AmiLink | None = None
        if plan.ami:
            self._ami = AmiLink(plan.ami, events=WANTED_EVENTS, limits=plan.limits)
        self._hints = Hints(plan.pbx, distributor, clock, self._ami.collect if self._ami else None)
        self._waits = resumed and self._ami is not None
        self._ready_by = inf
        self._calls = CallHandler(
            plan.pbx, distributor, clock, reception, self._hints, self._is_ready
        )
        if self._ami:
            self._polls = SignalPolls(
                plan.pbx, distributor, clock, self._ami.collect, times or PollTimes()
            )
            self._reconciler = Reconciler(
                distributor,
                self._ami,
                plan.pbx,
                clock,
                lambda: self._calls.served,
                left=reception.left if reception else None,
            )
            self._hints.on_adopted = self._reconciler.hurry
            self._hints.may_adopt = lambda: self._reconciler.works
            self._order_keeper = LastOrderKeeper(distributor, self._ami, plan.pbx)
        self._hinted = False
        """The link has told of an answer since it came up."""
        self._tasks: list[asyncio.Task[None]] = []
        self._link = Link(LinkState.CONNECTING, clock())
        self._closing = False

    @property
    def pbx(self) -> PbxId:
        """Which PBX."""
        return self.plan.pbx

    @property
    def link(self) -> Link:
        """The AMI link."""
        return self._link

    @property
    def agi_port(self) -> int:
        """Where FastAGI listens, once started."""
        return self._server.port if self._server else self.plan.agi_port

    async def start(self) -> None:
        """Listen for calls and begin to keep the AMI link up. `OurFault` if it cannot listen."""
        host, port = self.plan.agi_host, self.plan.agi_port
        self._ready_by = asyncio.get_running_loop().time() + ADOPT_WITHIN
        try:
            self._server = await AgiServer.start(
                host, port, handler=self._calls, report=self._report, limits=AgiServerLimits()
            )
        except OSError as error:
            why = error.strerror or str(error)
            raise OurFault(f"pbx {self.pbx}: cannot listen on {host}:{port}: {why}") from error
        if self._ami:
            self._tasks = [
                asyncio.create_task(self._ami.run(), name=f"ami {self.pbx}"),
                asyncio.create_task(self._polls.run(), name=f"ami polls {self.pbx}"),
                asyncio.create_task(self._reconciler.run(), name=f"ami reconcile {self.pbx}"),
                asyncio.create_task(self._order_keeper.run(), name=f"ami last order {self.pbx}"),
                asyncio.create_task(self._listen(self._ami), name=f"ami events {self.pbx}"),
            ]

    async def watch(self) -> None:
        """See `Driver.watch`."""
        if not self._tasks:
            return
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not self._closing:
                await task
                raise OurFault(f"{task.get_name()} has ended by itself")

    async def close(self, grace: float) -> int:
        """See `Driver.close`."""
        # What the link tells from here on is of the last calls only: should the PBX leave the
        # configuration and come back, the link of its new driver speaks for it.
        self._hint(heard=False)
        self._see(linked=False)
        self._closing = True
        left = await self._server.close(grace) if self._server else 0
        for task in self._tasks[:-1]:
            task.cancel()
        for task in self._tasks:
            # The events end by themselves when the link has: all are awaited, these are not cut.
            # What they failed with, `watch` has told.
            await asyncio.wait([task])
        return left

    async def _listen(self, ami: AmiLink) -> None:
        async for item in ami.events:
            match item:
                case LinkUp():
                    self._set_link(LinkState.UP, f"AMI {item.version}")
                    self._see(linked=True)
                    self._resync()
                case LinkDown():
                    self._set_link(LinkState.DOWN, item.reason)
                    self._hint(heard=False)
                    self._see(linked=False)
                case EventsMissed():
                    logger.warning("pbx {}: {} AMI events missed", self.pbx, item.count)
                    self._resync()
                case AmiEvent():
                    self._event(item)

    def _event(self, event: AmiEvent) -> None:
        if event.name in HINT_EVENTS:
            self._hints.hear(event.name, event)
            if event.name == "DialEnd":
                self._hint(heard=True)
        elif event.name in SIGNAL_EVENTS:
            self._polls.hear(event)
        else:
            logger.info("pbx {}: {}", self.pbx, event.name)
            if event.name in RESYNC_EVENTS:
                self._resync()

    def _is_ready(self) -> bool:
        """Whether calls may be given channels: after a restart not before it is known which of
        them are taken by calls that umpack does not remember."""
        if self._waits:
            late = asyncio.get_running_loop().time() >= self._ready_by
            self._waits = not (self._reconciler.passes or late)
        return not self._waits

    def _resync(self) -> None:
        """The link is new, or has missed something: whatever is known by events is asked for."""
        self._polls.ask()

    def _hint(self, *, heard: bool) -> None:
        # With the first DialEnd and not with the link: a manager's user who may not read calls
        # never gets one, and every attempt of every trunk would seem to be late.
        if heard is not self._hinted:
            self._hinted = heard
            if not self._closing:
                self._distributor.hear(self.pbx, self._clock(), hints=heard)

    def _see(self, *, linked: bool) -> None:
        if not self._closing:
            self._distributor.see(self.pbx, self._clock(), linked=linked)

    def _set_link(self, state: LinkState, detail: str) -> None:
        self._link = Link(state, self._clock(), detail)
        if self._closing:
            return  # no news
        level = "INFO" if state is LinkState.UP else "WARNING"
        logger.log(level, "pbx {}: link {} ({})", self.pbx, state.value, printable(detail, 200))

    def _report(self, call: AgiCall, error: Exception) -> None:
        if isinstance(error, PeerFault):
            logger.warning("pbx {}: {}", self.pbx, printable(str(error), 200))
        else:
            logger.opt(exception=error).error("pbx {}: call failed in umpack: {!r}", self.pbx, call)
