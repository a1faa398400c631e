"""The daemon: the only place that joins core, drivers, journal and web.

What happens in a call is decided and done between driver and distributor. Everything here runs
beside it: a pump lets time pass in the distributor every `_PUMP` seconds, takes ended calls and
changes of health off it and hands them to log, journal and metrics, and saves what must survive a
restart. A pulse tells systemd that all of that works.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Coroutine, Iterator
from itertools import product
from math import ceil
from pathlib import Path
from types import TracebackType
from typing import Any

from loguru import logger

from drivers.asterisk.ami import AmiAddress
from drivers.asterisk.driver import AsteriskDriver, AsteriskPlan
from drivers.asterisk.reception import Reception
from drivers.base import LinkState
from umpack import clock
from umpack.changes import changes, left_for_restart
from umpack.config import Configuration, load
from umpack.core.distributor import Distributor
from umpack.core.errors import OurFault
from umpack.core.health_states import HealthChange
from umpack.core.trunk import PbxId
from umpack.guard import Guard
from umpack.log import LogOutput
from umpack.mailroom import messages_of
from umpack.operator import Operator
from umpack.ownership import refuse_foreign_drivers
from umpack.pulse import Address, Pulse
from umpack.records import Records
from umpack.systemd import Notifier
from umpack.version import VERSION
from umpack.web import views
from umpack.web.api import FEW, ControlServer, gently

_PUMP = 0.1
"""Seconds between looks at what has happened; also how much of a pointer's way, or how new an
ejection, a crash may lose."""

_STILL = 2.0
"""Seconds in which a connection is served and the pump comes round, or they do not work."""

_FOREVER = 365 * 86400.0
"""Seconds; for calls of a PBX that has left the configuration."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Daemon:
    """One running umpack. `path` is read again at every reload; None forbids reloading.

    `log` is the program's log, if it is the daemon's to change at a reload.
    """

    def __init__(
        self,
        configuration: Configuration,
        path: Path | None,
        *,
        notifier: Notifier | None = None,
        log: LogOutput | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.configuration = configuration
        self.distributor = Distributor()
        self.distributor.reload(configuration.site, clock.now())
        self.node = configuration.node or socket.gethostname()
        self._first = configuration
        self._path = path
        self._notifier = notifier or Notifier({})
        self._log = log
        self._guard = guard
        self._records = Records(self.distributor, self.node, configuration.journal)
        self.operator = Operator(self.distributor, self._records)
        self.messages = messages_of(
            lambda: self.configuration, self.node, self.distributor, self._records
        )
        """None where none are configured."""
        self._reception: Reception | None = None
        if self.messages:
            self._reception = Reception(self.messages, clock.now, self.messages.lost)
        self._control = ControlServer(self, configuration.control.socket, lambda: self.messages)
        self._drivers: dict[PbxId, AsteriskDriver] = {}
        self._leaving: list[AsteriskDriver] = []
        self._ports: dict[AsteriskDriver, int] = {}
        """Where they listen or have listened; one that is closing no longer knows."""
        self._started = self._loaded = clock.now()
        self._reload_error = ""
        self._restart_needed: list[str] = []
        self._background: set[asyncio.Task[None]] = set()
        self._fault: OurFault | None = None
        self._stopping = asyncio.Event()
        self._hurrying = asyncio.Event()
        self._reloading = asyncio.Lock()

    def wall(self) -> float:
        """Epoch seconds of the wall clock: drains end when a person's clock says so."""
        return clock.wall()

    def now(self) -> float:
        """The program's time line, which never steps back."""
        return clock.now()

    @property
    def agi_ports(self) -> dict[PbxId, int]:
        """Where FastAGI listens, by PBX; differs from the configuration if that says port 0."""
        return {pbx: self._ports[driver] for pbx, driver in self._drivers.items()}

    # -- life -------------------------------------------------------------------------------

    async def run(self) -> None:
        """From start to a stop that was asked for.

        Raises `OurFault` if it cannot start, or if a part without which it would be half dead has
        ended by itself: a fresh start is then better than going on.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload_by_signal)
        try:
            async with self:
                await self._stopping.wait()
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
        if self._fault:
            raise self._fault

    async def __aenter__(self) -> Daemon:
        await asyncio.to_thread(refuse_foreign_drivers)
        async with self._reloading, contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(self._end_background)
            undo.push_async_callback(self._control.close)
            await self._control.claim()
            await self._records.open()
            undo.push_async_callback(self._records.close)
            if self.messages:
                undo.push_async_callback(self.messages.close, 0.0)
                await self.messages.open_if_it_will()
            undo.push_async_callback(self._close_drivers)
            for plan in plans(self.configuration):
                await self._start_driver(plan, resumed=self._records.resumed)
            if self.messages:
                await self.messages.start()
            await self._control.start()
            undo.pop_all()
        if self.messages:
            self._watch(self.messages.watch(), "messages", vital=True)
        pulse = Pulse(_STILL)
        self._watch(self._pump(pulse), "pump", vital=True)
        self._watch(self._records.recall(), "recall", vital=True)
        if self._notifier.listening:
            beat = pulse.beat(self._notifier, self._listeners, self._status_line)
            self._watch(beat, "pulse", vital=True)
        if self._guard:
            self._watch(self._guard.beat(), "guard", vital=True)
        self._notifier.ready()
        logger.info("umpack {} on {} is up: {!r}", VERSION, self.node, self)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Drain with a deadline: running calls may end, new ones are left to the dialplan."""
        self._stopping.set()
        deadline, longest = self.configuration.drain_deadline, self._longest_drain()
        self._notifier.stopping(longest)
        async with contextlib.AsyncExitStack() as last:
            last.push_async_callback(self._records.close)
            last.push_async_callback(self._control.close)
            if self.messages:
                last.push_async_callback(self.messages.close)
            last.callback(self._pump_last)
            last.push_async_callback(self._end_background)
            async with self._reloading:
                pass  # one that has begun comes to its end; no other will begin
            logger.info("stopping: {} calls have {:g} s to end", self._calls(), deadline)
            if many := self._receptions():
                logger.info("{} of them are receptions and have {:g} s", many, longest)
            left = await self._drain_drivers(deadline, longest)
            logger.info("stopped; {} calls go on in the PBX without umpack", left)

    def stop(self) -> None:
        """Ask `run` to end; asked again, it ends without waiting for calls."""
        if self._stopping.is_set():
            self._hurrying.set()
        self._stopping.set()

    async def _start_driver(self, plan: AsteriskPlan, *, resumed: bool = False) -> AsteriskDriver:
        driver = AsteriskDriver(
            plan, self.distributor, clock.now, reception=self._reception, resumed=resumed
        )
        try:
            await driver.start()
        except OurFault:
            await driver.close(0.0)
            raise
        self._ports[driver] = driver.agi_port
        self._drivers[plan.pbx] = driver
        self._watch(driver.watch(), f"pbx {plan.pbx}", vital=True)
        return driver

    async def _close_drivers(self) -> int:
        """At once. Answers how many calls were left."""
        closing = [driver.close(0.0) for driver in (*self._drivers.values(), *self._leaving)]
        left = sum(await asyncio.gather(*closing))
        self._drivers.clear()
        self._leaving.clear()
        return left

    async def _drain_drivers(self, grace: float, longest: float) -> int:
        drivers = (*self._drivers.values(), *self._leaving)
        draining = asyncio.gather(*(driver.close(longest) for driver in drivers))
        # Where all have the same time, the drivers' own limit is the one that counts what it cuts.
        enough = asyncio.create_task(self._patience(grace if grace < longest else _FOREVER))
        hurrying = asyncio.create_task(self._hurrying.wait())
        await asyncio.wait((draining, enough, hurrying), return_when=asyncio.FIRST_COMPLETED)
        enough.cancel()
        hurrying.cancel()
        if draining.done():
            return sum(draining.result())
        draining.cancel()
        await asyncio.gather(draining, return_exceptions=True)
        return await self._close_drivers()

    async def _patience(self, grace: float) -> None:
        """Until calls have had their time and no fax or recording is left: a call that is cut off
        goes on in the PBX, but of a reception an incomplete message is what remains."""
        await asyncio.sleep(grace)
        while self._receptions():  # noqa: ASYNC110 - the ledger tells nobody
            await asyncio.sleep(_PUMP)

    def _longest_drain(self) -> float:
        plan = self.configuration
        return max(plan.drain_deadline, plan.drain_receptions if self.messages else 0.0)

    def _receptions(self) -> int:
        leases = (offer.lease for offer in self.distributor.calls)
        return sum(lease is not None and lease.channel.trunk.kind.is_service for lease in leases)

    async def _leave(self, driver: AsteriskDriver) -> None:
        """Its PBX has left the configuration: its running calls finish, however long they take."""
        await driver.close(_FOREVER)
        self._leaving.remove(driver)
        del self._ports[driver]
        logger.info("pbx {}: the last call has ended", driver.pbx)

    # -- beside the calls -------------------------------------------------------------------

    def _watch(self, work: Coroutine[Any, Any, None], name: str, *, vital: bool) -> None:
        """Run beside the calls. Nothing that fails there fails silently; what is vital ends us."""

        def ended(task: asyncio.Task[None]) -> None:
            self._background.discard(task)
            if task.cancelled() or (error := task.exception()) is None:
                return
            logger.opt(exception=error).critical("{} failed in umpack", name)
            if vital and self._fault is None:
                self._fault = OurFault(f"{name} failed in umpack: {type(error).__name__}: {error}")
                self._fault.__cause__ = error
                self._stopping.set()

        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(ended)

    async def _end_background(self) -> None:
        tasks = tuple(self._background)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(self, pulse: Pulse) -> None:
        while True:
            now = clock.now()
            self.distributor.tick(now)
            self._records.take(now)
            pulse.pumped()
            await asyncio.sleep(_PUMP)

    def _listeners(self) -> list[Address]:
        """None while stopping: they are closed on purpose then."""
        if self._stopping.is_set():
            return []
        return [(driver.plan.agi_host, self._ports[driver]) for driver in self._drivers.values()]

    def _status_line(self) -> str:
        journal = self._records.journal.fault
        if journal is None:
            return repr(self)
        lasts = ceil(clock.now() - journal.since)
        return f"{self!r}; journal: {journal.what} for {lasts} s"

    def _pump_last(self) -> None:
        try:
            self._records.take_last(clock.now())
        except OurFault as error:
            logger.error("at the end: {}", error)

    def _calls(self) -> int:
        return len(self.distributor.ledger)

    # -- reload -----------------------------------------------------------------------------

    def _reload_by_signal(self) -> None:
        async def reload() -> None:
            with contextlib.suppress(OurFault):  # logged, and kept for status
                await self.reload()

        self._watch(reload(), "reload", vital=False)

    async def reload(self) -> list[str]:
        """Read the configuration again. A bad one changes nothing and is raised as it is."""
        async with self._reloading:
            if self._stopping.is_set():
                raise OurFault("umpack is stopping: nothing was reloaded")
            self._notifier.reloading()
            try:
                if self._path is None:
                    raise OurFault("umpack runs on its built-in configuration: nothing to reload")
                fresh = await asyncio.to_thread(load, self._path)
                done = await self._take_on(fresh)
            except OurFault as error:
                self._reload_error = str(error)
                logger.error("reload refused, nothing was changed:\n{}", error)
                raise
            finally:
                self._notifier.ready()
            self._reload_error = ""
            self._loaded = clock.now()
            for warning in fresh.warnings:
                logger.warning("{}", warning)
            logger.info("reloaded: {}", "; ".join(done) or "no changes")
            return done

    async def _take_on(self, fresh: Configuration) -> list[str]:
        wanted = {plan.pbx: plan for plan in plans(fresh)}
        added = [plan for pbx, plan in wanted.items() if pbx not in self._drivers]
        gone = [pbx for pbx in self._drivers if pbx not in wanted]
        self._refuse_shared_listener(added, gone)
        done = changes(self.configuration, fresh)
        office, parts = self.messages, None
        if office and fresh.messages:
            parts = await office.prepared(fresh.messages)
        async with contextlib.AsyncExitStack() as undo:
            for plan in added:
                driver = await self._start_driver(plan)
                undo.push_async_callback(driver.close, 0.0)
                undo.callback(self._drivers.pop, plan.pbx)
            if self._log and fresh.log != self.configuration.log:
                self._log.change(fresh.log)
                done.append("log changed")
            self.distributor.reload(fresh.site, clock.now())
            undo.pop_all()
        self.configuration = fresh
        if office and parts:
            office.take_on(parts)
        for pbx in gone:
            driver = self._drivers.pop(pbx)
            self._leaving.append(driver)
            self._watch(self._leave(driver), f"pbx {pbx}, which has left,", vital=False)
        self._restart_needed = left_for_restart(self._first, fresh) + [
            f"pbx {pbx}: its new addresses or secret need a restart"
            for pbx, plan in wanted.items()
            if self._drivers[pbx].plan != plan
        ]
        if self._log is None and fresh.log != self._first.log:
            self._restart_needed.append("log: its change needs a restart")
        return [
            *done,
            *(f"pbx {plan.pbx} added" for plan in added),
            *(f"pbx {pbx} removed" for pbx in gone),
            *self._restart_needed,
        ]

    def _refuse_shared_listener(self, added: list[AsteriskPlan], gone: list[PbxId]) -> None:
        # Where the one that goes listens, calls come in until the new site is live.
        for plan, pbx in product(added, gone):
            at, leaving = (plan.agi_host, plan.agi_port), self._drivers[pbx].plan
            if at[1] and at == (leaving.agi_host, leaving.agi_port):
                raise OurFault(
                    f"pbx {plan.pbx}: pbx {pbx} listens on {at[0]}:{at[1]} until it has left: "
                    "a new name for a PBX needs a restart, or a listener of its own"
                )

    # -- what the API asks ------------------------------------------------------------------

    def status(self) -> views.View:
        """Node, configuration and links."""
        return {
            "node": self.node,
            "version": VERSION,
            "since": self._started,
            "now": clock.now(),
            "accepting": not self._stopping.is_set(),
            "configuration": {
                "file": str(self._path) if self._path else None,
                "loaded": self._loaded,
                "error": self._reload_error or None,
                "restart_needed": self._restart_needed,
            },
            "pbxs": [
                {
                    "id": driver.pbx,
                    "agi": f"{driver.plan.agi_host}:{self._ports[driver]}",
                    "link": driver.link.state.value,
                    "since": driver.link.since,
                    "detail": driver.link.detail,
                    "leaving": driver in self._leaving,
                }
                for driver in (*self._drivers.values(), *self._leaving)
            ],
            "journal": self._records.status(),
            "messages": self.messages.summary() if self.messages else None,
            "log": {"dropped": self._log.dropped if self._log else 0},
        }

    def changes(self, limit: int, trunk: str | None) -> Iterator[HealthChange]:
        """What has lately happened to the trunks, newest first."""
        self._records.take(clock.now())
        return self._records.history.newest(limit, trunk)

    async def ended_calls(self, limit: int, **filters: str) -> list[views.View]:
        """From the journal, newest first; those that ended just now are among them."""
        found = await self._records.ended_calls(limit, **filters)
        return await gently(map(views.record, found))

    async def ended_call(self, id_: str) -> views.View | None:
        """From the journal."""
        found = await self._records.ended_call(id_)
        return views.record(found) if found else None

    async def metrics(self) -> str:
        """Prometheus text."""
        packs = await gently(views.packs(self.distributor))
        trunks = await gently(views.trunks(self.distributor, clock.now()), FEW)
        return await asyncio.to_thread(self._records.metrics.text, packs, trunks, self.status())

    def __repr__(self) -> str:
        up = sum(driver.link.state is LinkState.UP for driver in self._drivers.values())
        return f"{views.headline(self.distributor)}, {up}/{len(self._drivers)} PBX links"


def plans(configuration: Configuration) -> Iterator[AsteriskPlan]:
    """What the drivers need of a configuration."""
    for pbx in configuration.pbxs.values():
        ami = AmiAddress(pbx.host, pbx.port, pbx.user, pbx.secret.get_secret_value())
        yield AsteriskPlan(pbx.id, pbx.listen.host, pbx.listen.port, ami)
