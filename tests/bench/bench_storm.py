"""Calls a second of virtual storms, and what part of the time is the distributor's.

    python -m tests.bench.bench_storm [--json] [--rounds 5] [--calls 20000]

The ratio is taken against the same stream of calls on a bare list of idle channels, which routes,
explains and records nothing: what the simulation itself costs. Medians of the rounds count. Calls
a second are given by the clock, as `umpack storm` prints them, and by the time the processor really
spent here; on an idle machine they are equal. Takes about ten seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from heapq import heappop, heappush
from time import process_time

from simulators.storm import Tally, hunted, virtual_storm
from simulators.traffic import Exponential, Poisson, Traffic, calls
from tests.sites import one_pack, trunk
from umpack.core.channel import ChannelId
from umpack.core.pack import PackId, Strategy
from umpack.core.site import Site

GOAL = 50_000
HOLD = 90.0
CASES = [(30, 25.0), (3000, 2900.0)]
UM = PackId("um")


def bare(site: Site, traffic: Traffic) -> float:
    """Processor seconds where nothing is decided but which channel became idle last."""
    idle = list(hunted(site, UM))
    tally = Tally(idle, batch=HOLD)
    running: list[tuple[float, ChannelId]] = []
    began = process_time()
    for now, hold, _, _ in calls(traffic):
        while running and running[0][0] <= now:
            idle.append(heappop(running)[1])
        channel = idle.pop() if idle else None
        if channel is not None:
            heappush(running, (now + hold, channel))
        tally.add(now, hold, channel)
    return process_time() - began


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one object and nothing else")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=20_000, help="of each storm")
    wanted = parser.parse_args()
    figures: dict[str, float] = {}
    for strategy in Strategy:
        for channels, erlangs in CASES:
            site = one_pack(trunk("a", channels), strategy=strategy)
            by_clock, by_processor, ratios = [], [], []
            for seed in range(wanted.rounds):
                traffic = Traffic(
                    Poisson.of(erlangs, HOLD), Exponential(HOLD), seed=seed, count=wanted.calls
                )
                began = process_time()
                by_clock.append(virtual_storm(site, UM, traffic).calls_per_second)
                spent = process_time() - began
                by_processor.append(wanted.calls / spent)
                ratios.append(bare(site, traffic) / spent)
            case = f"{strategy.value} {channels}"
            figures[f"{case} calls/s"] = statistics.median(by_clock)
            figures[f"{case} calls/processor s"] = statistics.median(by_processor)
            figures[f"{case} of bare"] = statistics.median(ratios)
    if wanted.json:
        print(json.dumps({"load_average": os.getloadavg()[0], **figures}, indent=2))
        return
    out = sys.stdout.write
    out(f"load average {os.getloadavg()[0]:.2f}, {os.cpu_count()} processors\n")
    for name, figure in figures.items():
        rate = not name.endswith("of bare")
        shown = f"{figure:,.0f}" if rate else f"{figure:.2f}"
        out(f"{name:32} {shown:>10}{f'  (goal {GOAL:,})' if rate else ''}\n")


if __name__ == "__main__":
    main()
