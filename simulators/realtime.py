"""A storm in real time: every call through FastAGI, between a simulated PBX and the real driver."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from drivers.asterisk.ami import AmiAddress
from drivers.asterisk.driver import AsteriskDriver, AsteriskPlan
from simulators.endpoints import Answer
from simulators.site import SimulatedSite
from simulators.storm import Progress, StormReport, Tally, hunted, only
from simulators.traffic import Traffic, calls
from umpack import clock
from umpack.config import Configuration
from umpack.core.calls import Ending
from umpack.core.distributor import Distributor
from umpack.core.pack import PackId


def realtime_storm(
    configuration: Configuration, pack: PackId, traffic: Traffic, progress: Progress | None = None
) -> StormReport:
    """Offer all calls of `traffic` (which must end) to `pack`, each when its time comes."""
    return asyncio.run(_storm(configuration, pack, traffic, progress))


async def _storm(
    configuration: Configuration, pack: PackId, traffic: Traffic, progress: Progress | None
) -> StormReport:
    pbx_id = configuration.site.pbx_of(pack)
    alone = replace(configuration, pbxs={pbx_id: configuration.pbxs[pbx_id]})
    distributor = Distributor(only(configuration.site, pack))
    async with SimulatedSite(alone, ephemeral=True) as site:
        simulated, pbx = site.pbxs[pbx_id], site.configuration.pbxs[pbx_id]
        for endpoint in simulated.endpoints:
            simulated.set_behaviour(endpoint, Answer())
        if simulated.lines is not None:
            simulated.lines.far_ends = dict.fromkeys(simulated.lines.far_ends, Answer())
        ami = AmiAddress(pbx.host, pbx.port, pbx.user, pbx.secret.get_secret_value())
        driver = AsteriskDriver(AsteriskPlan(pbx_id, "127.0.0.1", 0, ami), distributor, clock.now)
        await driver.start()
        site.agi_at({pbx_id: driver.agi_port})
        try:
            loop = asyncio.get_running_loop()
            began, first = loop.time(), clock.now()
            running: set[asyncio.Task[object]] = set()
            last, wanted = 0.0, dict[str, float]()
            for number, arriving in enumerate(calls(traffic), 1):
                last = arriving.at
                await asyncio.sleep(max(0.0, began + arriving.at - loop.time()))
                # The caller's number is the call's, so that its record finds the hold it wanted.
                wanted[str(number)] = arriving.hold
                call = simulated.call(arriving.called, str(number), hold=arriving.hold)
                task: asyncio.Task[object] = asyncio.create_task(call)
                running.add(task)
                task.add_done_callback(running.discard)
                if progress:
                    progress(number)
            await asyncio.gather(*running)
        finally:
            await driver.close(5.0)
        tally = Tally(hunted(configuration.site, pack))
        for record in sorted(distributor.take_records(), key=lambda record: record.offered):
            # What was carried is what the channel was taken for, not what the caller had in mind.
            carried = record.ending is Ending.CONNECTED
            hold = record.ended - record.offered if carried else wanted[record.call.caller]
            served = record.channel if carried else None
            tally.add(record.offered - first, hold, served)
        return tally.report(traffic.seed, last, loop.time() - began)
