"""The demonstration: the real daemon, a simulated PBX with its boards, and callers to watch."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

from loguru import logger
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from simulators.site import SimulatedSite
from umpack.cli.tables import span_of
from umpack.config import load
from umpack.core.channel import Channel, ChannelState
from umpack.core.distributor import Distributor
from umpack.core.printable import printable
from umpack.daemon import Daemon

_HOLD = 6.0
"""Seconds of a demonstrated call: short enough to see channels come and go."""

_MARKS = {
    ChannelState.IDLE: ("·", "dim"),
    ChannelState.LEASED: ("█", "green"),
    ChannelState.BLOCKED: ("x", "red"),
    ChannelState.DRAINING: ("▒", "yellow"),
}


async def show(file: Path, seconds: float, erlangs: float, seed: int) -> None:
    """Run for `seconds` with `erlangs` of traffic; a live picture on a terminal, then a summary."""
    logger.remove()
    configuration = load(file)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="umpack-demo-") as name:
        private = replace(
            configuration,
            control=replace(configuration.control, socket=Path(name) / "control.sock"),
            journal=replace(configuration.journal, path=Path(name) / "journal.db"),
            drain_deadline=1.0,
        )
        async with SimulatedSite(private, ephemeral=True) as site:
            daemon = Daemon(site.configuration, None)
            async with daemon:
                site.agi_at(daemon.agi_ports)
                console.print(
                    f"umpack with {len(daemon.distributor.ledger.channels)} channels on simulated "
                    f"boards, {erlangs:g} erlangs of calls for {seconds:g} s\n"
                )
                site.start_traffic(erlangs, _HOLD, seed)
                await _watch(console, daemon, seconds)
                await site.stop_traffic()
                await asyncio.sleep(0.3)  # the pump's time to take the last calls
                ended = await daemon.ended_calls(100_000)
            _summary(console, ended, seconds, file)


async def _watch(console: Console, daemon: Daemon, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    if not console.is_terminal:
        while loop.time() < end:
            await asyncio.sleep(min(5.0, max(0.0, end - loop.time())))
            console.print(_line(daemon.distributor))
        return
    with Live(console=console, refresh_per_second=5, transient=False) as live:
        while loop.time() < end:
            live.update(_picture(daemon, end - loop.time()))
            await asyncio.sleep(0.2)


def _line(distributor: Distributor) -> str:
    packs = (f"{p.id} {_busy(p.channels)}/{len(p.channels)}" for p in distributor.packs.values())
    return f"{len(distributor.ledger):3} calls   busy: {', '.join(packs)}"


def _busy(channels: tuple[Channel, ...]) -> int:
    return sum(channel.lease is not None for channel in channels)


def _picture(daemon: Daemon, left: float) -> Group:
    distributor = daemon.distributor
    table = Table(title=f"{len(distributor.ledger)} calls, {span_of(left)} to go", expand=False)
    for column in ("pack", "hunts", "positions (· idle, █ busy)", "busy", "last"):
        table.add_column(column, justify="right" if column == "busy" else "left")
    for pack in distributor.packs.values():
        row = Text()
        for channel in pack.channels:
            row.append(*_MARKS[channel.state])
        busy = f"{_busy(pack.channels)}/{len(pack.channels)}"
        table.add_row(pack.id, pack.plan.strategy.value, row, busy, pack.pointer or "-")
    latest = sorted(distributor.calls, key=lambda offer: offer.offered)[-6:]
    lines = [
        f"  {printable(offer.call.caller)} → {printable(offer.call.called)}"
        f"   {offer.lease.channel.id}"
        for offer in latest
        if offer.lease
    ]
    return Group(table, Text("latest calls\n" + "\n".join(lines)))


def _summary(console: Console, ended: list[dict[str, object]], seconds: float, file: Path) -> None:
    program = sys.argv[0]  # `make demo` runs it from an environment that is not in the path
    endings = Counter(str(row["ending"]) for row in ended)
    channels = Counter(str(row["channel"]).rpartition(":")[0] for row in ended if row["channel"])
    console.print(
        f"\n{len(ended)} calls ended in {seconds:g} s: "
        + ", ".join(f"{count} {ending}" for ending, count in endings.most_common())
    )
    console.print("by trunk: " + ", ".join(f"{t} {n}" for t, n in sorted(channels.items())))
    console.print(
        f"\nNext: {program} run --simulate, and beside it {program} status --config {file}; "
        f"{program} storm --pack voice --erlangs 40; README.md",
        soft_wrap=True,
        highlight=False,
    )
