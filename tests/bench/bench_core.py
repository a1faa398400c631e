"""How fast the core decides: leases a second, offers with their outcomes, and refusals.

    python -m tests.bench.bench_core [--json] [--rounds 5] [--seconds 0.12]

Packs are half full (for refusals: full), and what is released is a random one of the busy
channels, so that the idle ones lie scattered. A round measures every case in turn; medians of the
rounds count, and ratios are taken within a round, so that other work on the machine disturbs both
sides alike. Seconds are those of the processor: a busy neighbour is not the core's fault. Takes
about ten of them.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
from collections.abc import Callable
from functools import partial
from random import Random
from time import process_time

from tests.sites import ANSWERED, MAIN, one_pack, trunk
from umpack.core.calls import Assignment, Call, CallId, Refusal
from umpack.core.distributor import Distributor
from umpack.core.ledger import Lease, Ledger
from umpack.core.pack import PackId, Strategy

SMALL, LARGE = 30, 30_000
GOAL, GOAL_RATIO = 300_000, 2.0
STEPS = 2000
UM = PackId("um")

Work = Callable[[], int]
"""Does a slice of work and answers how many calls that was."""


def leasing(channels: int, strategy: Strategy) -> Work:
    """Assign and release on the ledger alone."""
    distributor = Distributor(one_pack(trunk("a", channels), strategy=strategy))
    ledger: Ledger[None] = Ledger()
    ledger.channels = distributor.ledger.channels
    pack = distributor.packs[UM]
    busy: list[Lease[None]] = []
    while len(busy) < channels // 2:
        lease = ledger.lease_next(pack, 0.0, None)
        assert lease is not None
        busy.append(lease)
    picks = _picks(len(busy))

    def work() -> int:
        for pick in picks:
            lease = ledger.lease_next(pack, 0.0, None)
            assert lease is not None
            ledger.release(busy[pick])
            busy[pick] = lease
        return len(picks)

    return work


def calling(channels: int, strategy: Strategy) -> Work:
    """Offer and outcome on the distributor: route, dial string, attempt and record included."""
    distributor = Distributor(one_pack(trunk("a", channels), strategy=strategy))
    calls = [Call(CallId(str(n)), MAIN, "49302000100", "49891234567") for n in range(STEPS)]

    def offered(call: Call) -> Assignment:
        decision = distributor.offer(call, 0.0)
        assert isinstance(decision, Assignment)
        return decision

    busy = [offered(calls[0]) for _ in range(channels // 2)]
    picks = _picks(len(busy))

    def work() -> int:
        for call, pick in zip(calls, picks, strict=True):
            decision = offered(call)
            distributor.outcome(busy[pick].lease, ANSWERED, 1.0)
            busy[pick] = decision
        distributor.take_records()
        return len(picks)

    return work


def hearing(channels: int, strategy: Strategy, *, dead: int = 0) -> Work:
    """As `calling`, on four trunks, with hints of answers; `dead` of the trunks are ejected."""
    lines = [trunk(name, channels // 4) for name in "abcd"]
    distributor = Distributor(one_pack(*lines, strategy=strategy))
    distributor.hear(MAIN, 0.0, hints=True)
    for line in lines[:dead]:
        distributor.eject(line.id, 0.0, "by the bench", 1e9)
    calls = [Call(CallId(str(n)), MAIN, "49302000100", "49891234567") for n in range(STEPS)]
    now = 0.0

    def offered(call: Call) -> Assignment:
        decision = distributor.offer(call, now)
        assert isinstance(decision, Assignment)
        distributor.answered(decision.lease, now)
        return decision

    busy = [offered(calls[0]) for _ in range(channels // 2)]
    picks = _picks(len(busy))

    def work() -> int:
        nonlocal now
        for call, pick in zip(calls, picks, strict=True):
            now += 0.05
            decision = offered(call)
            distributor.outcome(busy[pick].lease, ANSWERED, now + 9.0)
            busy[pick] = decision
        distributor.take_records()
        return len(picks)

    return work


def refusing(channels: int, strategy: Strategy) -> Work:
    """Offers to a full pack: the storm after a fault, when no call can be placed."""
    distributor = Distributor(one_pack(trunk("a", channels), strategy=strategy))
    calls = [Call(CallId(str(n)), MAIN, "49302000100", "49891234567") for n in range(STEPS // 20)]
    for _ in range(channels):
        assert isinstance(distributor.offer(calls[0], 0.0), Assignment)

    def work() -> int:
        for call in calls:
            assert isinstance(distributor.offer(call, 0.0), Refusal)
        distributor.take_records()
        return len(calls)

    return work


def _picks(busy: int) -> list[int]:
    chance = Random(1)
    return [chance.randrange(busy) for _ in range(STEPS)]


def rate(work: Work, seconds: float) -> float:
    """Calls a second over at least `seconds`."""
    done, began = 0, process_time()
    while (took := process_time() - began) < seconds:
        done += work()
    return done / took


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one object and nothing else")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.12, help="of each case in a round")
    wanted = parser.parse_args()
    kinds: dict[str, Callable[[int, Strategy], Work]] = {
        "lease+release": leasing,
        "offer+outcome": calling,
        "offer+answer+outcome": hearing,
        "the same, 1 of 4 dead": partial(hearing, dead=1),
        "offer, full": refusing,
    }
    cases: dict[tuple[str, Strategy, int], Work] = {
        (name, strategy, size): kind(size, strategy)
        for name, kind in kinds.items()
        for strategy in Strategy
        for size in (SMALL, LARGE)
    }
    for work in cases.values():
        work()
    gc.collect()
    gc.freeze()  # or one case pays for looking through the 30,000 channels of all the others
    rounds = [
        {case: rate(work, wanted.seconds) for case, work in cases.items()}
        for _ in range(wanted.rounds)
    ]
    figures: dict[str, float] = {}
    for name, strategy, size in cases:
        rates = [one[name, strategy, size] for one in rounds]
        figures[f"{name} {strategy.value} {size}"] = statistics.median(rates)
    for name in kinds:
        for strategy in Strategy:
            ratios = [one[name, strategy, SMALL] / one[name, strategy, LARGE] for one in rounds]
            figures[f"{name} {strategy.value} {SMALL}/{LARGE}"] = statistics.median(ratios)
    if wanted.json:
        print(json.dumps({"load_average": os.getloadavg()[0], **figures}, indent=2))
        return
    out = sys.stdout.write
    out(f"load average {os.getloadavg()[0]:.2f}, {os.cpu_count()} processors\n")
    for name, figure in figures.items():
        shown = f"{figure:.2f}" if "/" in name else f"{figure:,.0f}/s"
        goal = ""
        if name.startswith("lease") and "/" in name:
            goal = f"(goal at most {GOAL_RATIO:g})"
        elif name.startswith("lease") and name.endswith(f" {SMALL}"):
            goal = f"(goal {GOAL:,}/s)"
        out(f"{name:36} {shown:>12} {goal}\n")


if __name__ == "__main__":
    main()
