"""The daemon: the only place that joins core, drivers, journal and web.

What happens in a call is decided and done between driver and distributor. Everything here runs
beside it: a pump takes ended calls off the distributor every `_PUMP` seconds and hands them to log,
journal and metrics, and saves what must survive a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loguru import logger

from drivers.asterisk.ami import AmiAddress
from drivers.asterisk.driver import AsteriskDriver, AsteriskPlan
from drivers.base import LinkState
from umpack import clock
from umpack.config import Configuration, load
from umpack.core.administration import Drain
from umpack.core.calls import CallId, CallRecord, Ending
from umpack.core.channel import ChannelId
from umpack.core.distributor import Distributor
from umpack.core.errors import ConfigError, OurFault
from umpack.core.pack import PackId
from umpack.core.printable import printable
from umpack.core.trunk import PbxId
from umpack.journal import Journal
from umpack.systemd import Notifier
from umpack.version import VERSION
from umpack.web import views
from umpack.web.api import ControlServer
from umpack.web.metrics import Metrics

_PUMP = 0.1
"""Seconds between looks at what has ended; also how much of a pointer's way a crash may lose."""


class Daemon:
    """One running umpack. `path` is read again at every reload; None forbids reloading."""

    def __init__(
        self, configuration: Configuration, path: Path | None, *, notifier: Notifier | None = None
    ) -> None:
        self.configuration = configuration
        self.distributor = Distributor(configuration.site)
        self._path = path
        self._notifier = notifier or Notifier({})
        self._metrics = Metrics(self.distributor)
        self.node = configuration.node or socket.gethostname()
        self._drivers: dict[PbxId, AsteriskDriver] = {}
        self._started = self.now()
        self._loaded = self._started
        self._reload_error = ""
        self._saved_pointers: dict[PackId, ChannelId] = {}
        self._stopping = asyncio.Event()
        self._reloading = asyncio.Lock()

    def now(self) -> float:
        """Epoch seconds that never step back."""
        return clock.now()

    @property
    def agi_ports(self) -> dict[PbxId, int]:
        """Where FastAGI listens, by PBX; differs from the configuration if that says port 0."""
        return {pbx: driver.agi_port for pbx, driver in self._drivers.items()}

    # -- life -------------------------------------------------------------------------------

    async def run(self) -> None:
        """From start to a stop that was asked for. Raises `OurFault` if it cannot start."""
        async with self:
            self._listen_to_signals()
            await self._stopping.wait()

    async def __aenter__(self) -> Daemon:
        journal = self.configuration.journal
        self._journal = await asyncio.to_thread(Journal, journal.path, self.node, keep=journal.keep)
        for aside in self._journal.moved_aside:
            logger.error("the journal was damaged: kept as {}, a new one begun", aside)
        state = await asyncio.to_thread(self._journal.load_state)
        self.distributor.restore(state.drains, state.pointers.items())
        self._control = ControlServer(self, self.configuration.control.socket)
        await self._control.start()
        try:
            for plan in plans(self.configuration):
                await self._start_driver(plan)
        except OurFault:
            await self._close_drivers(0.0)
            await self._control.close()
            await asyncio.to_thread(self._journal.close)
            raise
        self._pump_task = asyncio.create_task(self._pump(), name="pump")
        self._notifier.ready()
        logger.info("umpack {} on {} is up: {!r}", VERSION, self.node, self)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Drain with a deadline: running calls may end, new ones are refused at once."""
        deadline = self.configuration.drain_deadline
        self._notifier.stopping(deadline)
        self.distributor.accepting = False
        calls = len(self.distributor.ledger)
        logger.info("stopping: {} calls have {:g} s to end", calls, deadline)
        left = await self._close_drivers(deadline)
        self._pump_task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._pump_task
        self._pump_once()
        await self._control.close()
        await asyncio.to_thread(self._journal.close)
        logger.info("stopped; {} calls go on without umpack", left)

    def stop(self) -> None:
        """Ask `run` to end."""
        self._stopping.set()

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload_by_signal)

    def _reload_by_signal(self) -> None:
        async def reload() -> None:
            with contextlib.suppress(ConfigError, OurFault):  # logged where it happened
                await self.reload()

        self._reload_task = asyncio.create_task(reload(), name="reload")

    async def _start_driver(self, plan: AsteriskPlan) -> None:
        driver = AsteriskDriver(plan, self.distributor, self.now)
        await driver.start()
        self._drivers[plan.pbx] = driver

    async def _close_drivers(self, grace: float, only: Sequence[PbxId] | None = None) -> int:
        closing = [self._drivers.pop(pbx) for pbx in (only or tuple(self._drivers))]
        return sum(await asyncio.gather(*(driver.close(grace) for driver in closing)))

    # -- beside the calls -------------------------------------------------------------------

    async def _pump(self) -> None:
        while True:
            await asyncio.sleep(_PUMP)
            self._pump_once()
            self._notifier.alive(repr(self))

    def _pump_once(self) -> None:
        for drain in self.distributor.expire_drains(self.now()):
            logger.info("{} is back in service: {} has ended", drain.target, drain.reason)
            self._save_state()
        if records := self.distributor.take_records():
            for record in records:
                logger.info("{}", line_of(record))
            self._journal.append(records)
            self._metrics.count(records)
        if self.distributor.pointers != self._saved_pointers:
            self._save_state()

    def _save_state(self) -> None:
        pointers = self.distributor.pointers
        self._saved_pointers = pointers
        self._journal.save_state(pointers, self.distributor.drains)

    # -- what the API asks ------------------------------------------------------------------

    def status(self) -> views.View:
        """Node, configuration and links."""
        return {
            "node": self.node,
            "version": VERSION,
            "since": self._started,
            "now": self.now(),
            "accepting": self.distributor.accepting,
            "configuration": {
                "file": str(self._path) if self._path else None,
                "loaded": self._loaded,
                "error": self._reload_error or None,
            },
            "pbxs": [
                {
                    "id": driver.pbx,
                    "agi": f"{driver.plan.agi_host}:{driver.agi_port}",
                    "link": driver.link.state.value,
                    "since": driver.link.since,
                    "detail": driver.link.detail,
                }
                for driver in self._drivers.values()
            ],
            "journal": {
                "fault": str(self._journal.fault) if self._journal.fault else None,
                "dropped": self._journal.dropped,
            },
        }

    async def reload(self) -> list[str]:
        """Read the configuration again. A bad one changes nothing and is raised as it is."""
        async with self._reloading:
            self._notifier.reloading()
            try:
                if self._path is None:
                    raise OurFault("umpack runs on its built-in configuration: nothing to reload")
                fresh = await asyncio.to_thread(load, self._path)
                changes = await self._take_on(fresh)
            except OurFault as error:
                self._reload_error = str(error)
                logger.error("reload refused, nothing was changed:\n{}", error)
                raise
            finally:
                self._notifier.ready()
            self._reload_error = ""
            self._loaded = self.now()
            logger.info("reloaded: {}", "; ".join(changes) or "no changes")
            return changes

    async def _take_on(self, fresh: Configuration) -> list[str]:
        before = self.configuration
        old = {plan.pbx: plan for plan in plans(before)}
        new = {plan.pbx: plan for plan in plans(fresh)}
        added = [plan for pbx, plan in new.items() if pbx not in old]
        try:
            for plan in added:
                await self._start_driver(plan)
        except OurFault:
            await self._close_drivers(0.0, [p.pbx for p in added if p.pbx in self._drivers])
            raise
        changes = _changes(before, fresh)
        changes += [
            f"pbx {pbx}: new addresses need a restart"
            for pbx, plan in new.items()
            if pbx in old and old[pbx] != plan
        ]
        self.distributor.reload(fresh.site)
        self.configuration = fresh
        if gone := [pbx for pbx in self._drivers if pbx not in new]:
            changes += [f"pbx {pbx} removed" for pbx in gone]
            await self._close_drivers(0.0, gone)
        return changes

    async def drain(self, drain: Drain) -> None:
        """Take something out of service; on disk before it is confirmed."""
        self.distributor.drain(drain)
        self._save_state()
        await asyncio.to_thread(self._journal.flush)
        logger.info("{} {}", drain.target, printable(drain.reason, 200))

    async def enable(self, target: str) -> bool:
        """Put it back; on disk before it is confirmed."""
        was_out = self.distributor.enable(target)
        self._save_state()
        await asyncio.to_thread(self._journal.flush)
        logger.info("{} enabled", target)
        return was_out

    async def ended_calls(self, limit: int, **filters: str) -> list[views.View]:
        """From the journal, newest first."""
        ending, channel = filters.get("ending"), filters.get("channel")
        found = await asyncio.to_thread(
            self._journal.calls,
            limit,
            called=filters.get("called"),
            caller=filters.get("caller"),
            ending=Ending(ending) if ending else None,
            channel=ChannelId(channel) if channel else None,
        )
        return [views.record(record) for record in found]

    async def ended_call(self, id_: str) -> views.View | None:
        """From the journal; calls that ended just now are written first."""
        await asyncio.to_thread(self._journal.flush)
        found = await asyncio.to_thread(self._journal.call, CallId(id_))
        return views.record(found) if found else None

    def metrics(self) -> str:
        """Prometheus text."""
        return self._metrics.text()

    def __repr__(self) -> str:
        channels = self.distributor.ledger.channels
        up = sum(driver.link.state is LinkState.UP for driver in self._drivers.values())
        return (
            f"{len(self.distributor.ledger)}/{len(channels)} channels, "
            f"{len(self.distributor.packs)} packs, {up}/{len(self._drivers)} PBX links"
        )


def plans(configuration: Configuration) -> list[AsteriskPlan]:
    """What the drivers need of a configuration."""
    return [
        AsteriskPlan(
            pbx.id,
            pbx.listen.host,
            pbx.listen.port,
            AmiAddress(pbx.host, pbx.port, pbx.user, pbx.secret.get_secret_value()),
        )
        for pbx in configuration.pbxs.values()
    ]


def line_of(record: CallRecord) -> str:
    """One call in one log line; whatever came off the line is escaped."""
    call = record.call
    served = f" on {record.channel}" if record.channel else ""
    tries = f" after {len(record.attempts)} attempts" if len(record.attempts) > 1 else ""
    return (
        f"call {printable(call.id)} {printable(call.caller) or 'anonymous'} → "
        f"{printable(call.called)}: {record.ending.value}{served}{tries}, "
        f"cause {record.cause}, {record.ended - record.offered:.1f} s: {printable(record.why, 200)}"
    )


def _changes(before: Configuration, after: Configuration) -> list[str]:
    changes = [
        *_changed("trunk", before.site.trunks, after.site.trunks),
        *_changed("pack", before.site.packs, after.site.packs),
    ]
    if before.site.routes != after.site.routes:
        changes.append("routes changed")
    return changes


def _changed(kind: str, old: Mapping[Any, object], new: Mapping[Any, object]) -> Iterator[str]:
    yield from (f"{kind} {id_} added" for id_ in new if id_ not in old)
    yield from (f"{kind} {id_} removed" for id_ in old if id_ not in new)
    yield from (f"{kind} {id_} changed" for id_ in new if id_ in old and old[id_] != new[id_])
