"""From the end of a fax to its commit, as the PBX meets it: the whole daemon, by FastAGI.

    python -m tests.bench.bench_reception [--json] [--quick] [--directory DIRECTORY]

The daemon is a process of its own and does all it does: converts, mails to a sink. Time runs in the
simulated PBX, from the moment ReceiveFAX ends to the command that follows the commit; so two more
questions of umpack's and all syncs are in it. In turn with them, as disks have moods, the least a
safe commit can do there (`bench_spool.Bare`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from simulators.ami_events import PbxEvents
from simulators.asterisk import PbxPlan, SimulatedAsterisk
from simulators.pbx_channel import PbxChannel
from simulators.pbx_reception import FaxMachine
from tests.bench.bench_mail import sink
from tests.bench.bench_spool import Bare, percentile
from tests.unit.daemons import program, text
from tests.unit.messages.fax_files import Sheet, fax, picture
from tests.unit.messages.offices import TEXTS
from umpack import clock

FAXES, QUICK = 60, 15
EVERY = 0.75
"""Seconds: 60 ports busy with faxes of three pages end one about so often."""
SPEED = 1000.0


class TimedEvents(PbxEvents):
    """When channels got the variables of interest."""

    def __init__(self, pbx: SimulatedAsterisk) -> None:
        super().__init__(pbx.ami.wants, pbx.ami.publish)
        self.over: dict[str, float] = {}
        self.committed: dict[str, float] = {}

    def variable(self, channel: PbxChannel, name: str, value: str) -> None:
        """See the simulator."""
        super().variable(channel, name, value)
        if name == "FAXOPT(statusstr)":  # the last that ReceiveFAX sets
            self.over[channel.uniqueid] = clock.monotonic()
        elif name == "CHANNEL(hangup_handler_pop)":  # the first word after the commit
            self.committed[channel.uniqueid] = clock.monotonic()


def site(directory: Path, mail: int, ami: int) -> str:
    """One fax service, its mails to the sink."""
    keys = {
        "spool": str(directory / "spool"), "reserve_mb": 0, "sender": "fax@umpack.test",
        "default_mailbox": "office@site.test", "texts": str(TEXTS), "tls": "never",
        "relays": [f"127.0.0.1:{mail}"], "hello": "node.umpack.test",
    }  # fmt: skip
    link = f"{{host: 127.0.0.1, port: {ami}, user: umpack, secret: umpack}}"
    return text(
        pbxs=f'  main: {{ami: {link}, agi: {{listen: "127.0.0.1:0"}}}}\n',
        trunks="  fax: {kind: fax, channels: 60}\n", packs="  fax: {members: [fax]}\n",
        routes='  - {called: "*", pack: fax}\n', rest=f"messages: {json.dumps(keys)}\n",
    )  # fmt: skip


async def measure(directory: Path, mail: int, count: int) -> dict[str, Any]:
    """Milliseconds from call end to commit."""
    pages = fax([Sheet(picture(number)) for number in range(1, 4)])
    machine = FaxMachine(pages, pages=3, seconds=30.0)
    bare, least = Bare(directory / "bare", pages), []
    async with SimulatedAsterisk(PbxPlan(speed=SPEED)) as pbx:
        events = pbx.events = TimedEvents(pbx)
        async with program(directory, site(directory, mail, pbx.ami.port)) as daemon:
            pbx.agi_to("127.0.0.1", await daemon.port())
            calls = []
            for number in range(count + 1):
                call = pbx.call("100", f"030{number}", hold=None, brings=machine)
                calls.append(asyncio.create_task(call))
                await asyncio.sleep(EVERY / 2)
                least.append(await asyncio.to_thread(bare.commit, number))
                await asyncio.sleep(EVERY / 2)
            for call_ in calls:
                assert (await call_).answered, daemon.log
            with contextlib.suppress(TimeoutError):
                await daemon.end()
    ended = sorted(events.over)[1:]  # the first loads what the others find loaded
    costs = sorted((events.committed[one] - events.over[one]) * 1000 for one in ended)
    plain = sorted(seconds * 1000 for seconds in least)
    return {
        "p50_ms": percentile(costs, 0.5), "p95_ms": percentile(costs, 0.95), "max_ms": costs[-1],
        "bare_p95_ms": percentile(plain, 0.95),
        "ratio": percentile(costs, 0.95) / percentile(plain, 0.95),
        "bytes": len(pages), "faxes": len(costs), "load_average": os.getloadavg()[0],
    }  # fmt: skip


def main() -> None:
    """Print the figures."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--json", action="store_true")
    options.add_argument("--quick", action="store_true")
    options.add_argument("--directory", help="whose disk is measured; default: the temporary one")
    chosen = options.parse_args()
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=sink, args=(theirs,), daemon=True)
    server.start()
    try:
        with tempfile.TemporaryDirectory(dir=chosen.directory) as folder:
            count = QUICK if chosen.quick else FAXES
            found = asyncio.run(measure(Path(folder), ours.recv(), count))
    finally:
        server.terminate()
        server.join()
    if chosen.json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    for name, figure in found.items():
        sys.stdout.write(f"{name}: {figure:,.2f}\n")


if __name__ == "__main__":
    main()
