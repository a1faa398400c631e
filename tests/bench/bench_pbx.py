"""A real Asterisk: calls through umpack against calls through a bare `Dial`, in one run.

    python -m tests.bench.bench_pbx [--json] [--quick]

One Asterisk, one UM server that answers at once (SIPp), and the real daemon in a process of its
own: AMI link up, journal and log on disk, the dialplan as `umpack dialplan` prints it. The number
called decides whether a call goes to `Dial` (bare), to umpack, or to a FastAGI server that sends
one fixed `Dial` (agi: what FastAGI costs by itself); the AMI link is there for all.

All slices of all ways alternate, forth and back, and each is compared with that of the same turn,
for the machine is shared with SIPp and whatever else runs:

- throughput: as many calls as `PARALLEL` callers (SIPp) can make who dial again at once; calls
  answered per second. That finds the knee by itself; more callers would pass it, Asterisk would
  pass over INVITEs (its task processors being full), and 500 ms of retransmission be measured.
- post-dial delay: INVITE to 200 at 100 calls/s, measured by tests.bench.sip_caller.

What a call costs in CPU time is disturbed least by other work: it is given for Asterisk (both ways)
and for umpack. A delay of 20 ms and more for `bare` says that the machine was too busy for the
delays to mean much; where several things run on it, so does the load average.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.bench.sip_caller import delays
from tests.pbx.lab import SECRET, Lab, LabConfig, SipPeer
from tests.pbx.root import PbxUnavailable, ensure
from tests.pbx.sipp import Server, Sipp
from tests.ports import free_port

PARALLEL: Final = 8
RATE: Final = 100
HOLD_MS: Final = 10
UMPACK: Final = (sys.executable, "-c", "from umpack.cli import main; main()")
NUMBERS: Final = {"bare": "1000", "agi": "3000", "umpack": "2000"}
BARE_DIAL: Final = "PJSIP/3000@um1,20"
HUNTED_ALONE: Final = "umpack is away"
"""What our dialplan logs before it hunts by itself: then it was not umpack that was measured."""
DIALPLAN: Final = """
[from-line]
exten => _1.,1,Dial(PJSIP/${{EXTEN}}@um1,20)
 same => n,Hangup()
exten => _2.,1,Goto(umpack-in,${{EXTEN}},1)
exten => _3.,1,AGI(agi://127.0.0.1:{agi}/bare)
 same => n,Hangup()

"""
CONFIG: Final = """
pbx:
  main:
    ami: {{host: 127.0.0.1, port: {ami}, user: umpack, secret: {secret}}}
    agi: {{listen: "127.0.0.1:{agi}"}}
trunks:
  um1: {{kind: sip, endpoint: um1, channels: 1000, dial: "PJSIP/{{called}}@um1"}}
packs:
  um: {{strategy: cyclic, members: [um1]}}
routes:
  - {{called: "*", pack: um}}
control: {{socket: "{here}/control.sock"}}
journal: {{path: "{here}/journal.db"}}
log: {{level: info, file: "{here}/log"}}
drain: {{deadline: 1s}}
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured: slices of each way, calls in a slice."""

    throughput_slices: int
    throughput_calls: int
    delay_slices: int
    delay_calls: int


FULL: Final = Plan(8, 500, 10, 300)
QUICK: Final = Plan(3, 300, 4, 200)


@dataclass(frozen=True, slots=True)
class Slice:
    """What one run of callers saw: milliseconds from INVITE to 200 of each call, ascending, calls
    answered per second, failed calls, and CPU milliseconds per call by process."""

    delays: Sequence[float]
    per_second: float
    failed: int
    cpu: dict[str, float]

    def delay(self, share: float) -> float:
        """A quantile of the delays, in ms."""
        return self.delays[min(len(self.delays) - 1, int(len(self.delays) * share))]


class Load(Sipp):
    """Callers who measure."""

    def __init__(self, number: str, sip_port: int, *, calls: int, rate: int, parallel: int) -> None:
        argv = (
            "-m", str(calls), "-r", str(rate), "-l", str(parallel),
            "-trace_rtt", "-rtt_freq", "1", f"127.0.0.1:{sip_port}",
        )  # fmt: skip
        fill = {"number": number, "hold_ms": str(HOLD_MS)}
        super().__init__("uac_load", fill, argv, free_port(), 60)

    def __enter__(self) -> Load:
        return self

    def samples(self) -> list[tuple[float, float]]:
        """When a call was answered and after what delay, both in seconds."""
        lines = [
            line
            for file in self._directory.glob("*_rtt.csv")
            for line in file.read_text(encoding="ascii").splitlines()[1:]
        ]
        rows = (line.split(";") for line in lines)
        return [(float(row[0]) / 1000, float(row[1]) / 1000) for row in rows]


class Bench:
    """The lab, the server and the daemon, up."""

    def __init__(self, stack: ExitStack) -> None:
        here = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="umpack-bench-")))
        self.server = stack.enter_context(Server("uas_load", {}, None, 400))
        # The lab chooses its ports as it is made, and the dialplan needs the configuration, which
        # needs the AMI port: so the dialplan is written between making and starting.
        config = LabConfig("", peers=(SipPeer("um1", self.server.port),))
        self.lab = Lab(ensure(), config)
        stack.callback(self.lab.stop)
        file = here / "umpack.yaml"
        text = CONFIG.format(ami=self.lab.ami_port, agi=free_port(), secret=SECRET, here=here)
        file.write_text(text, encoding="utf-8")
        ours = subprocess.run(
            [*UMPACK, "dialplan", str(file)], capture_output=True, text=True, check=True
        )
        agi = free_port()
        self.lab.write("extensions.conf", DIALPLAN.format(agi=agi) + ours.stdout)
        self.lab.start()
        argv = (sys.executable, "-m", "tests.bench.bare_agi", str(agi), BARE_DIAL)
        bare = stack.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE))
        stack.callback(bare.terminate)
        assert bare.stdout is not None
        bare.stdout.readline()
        self.daemon = stack.enter_context(
            subprocess.Popen([*UMPACK, "run", "--config", str(file)], stdin=subprocess.DEVNULL)
        )
        stack.callback(self.daemon.terminate)
        self._wait_for_link(here / "log")

    def _wait_for_link(self, log: Path) -> None:
        for _ in range(300):
            if log.exists() and "link up" in log.read_text(encoding="utf-8"):
                return
            time.sleep(0.1)
        raise SystemExit("umpack did not reach the lab's AMI")

    def flood(self, way: str, calls: int) -> Slice:
        """As many calls a second as there can be."""
        port = self.lab.sip_port

        def place() -> list[tuple[float, float]]:
            with Load(NUMBERS[way], port, calls=calls, rate=2000, parallel=PARALLEL) as load:
                if not load.ended(90):
                    raise SystemExit(f"SIPp did not end: {load.errors}")
                return load.samples()

        return self._run(way, calls, place)

    def calm(self, way: str, calls: int) -> Slice:
        """RATE calls a second."""

        def place() -> list[tuple[float, float]]:
            port, number = self.lab.sip_port, NUMBERS[way]
            return delays(port, number, calls=calls, rate=RATE, hold=HOLD_MS / 1000)

        return self._run(way, calls, place)

    def _run(self, way: str, calls: int, place: Callable[[], list[tuple[float, float]]]) -> Slice:
        assert self.lab.pid is not None
        watched = {"asterisk": self.lab.pid, "umpack": self.daemon.pid}
        before = {name: cpu_ms(pid) for name, pid in watched.items()}
        samples = sorted(place())
        used = {name: (cpu_ms(pid) - before[name]) / calls for name, pid in watched.items()}
        if len(samples) < calls * 0.9 or HUNTED_ALONE in self.lab.log:
            log = self.lab.log[-2000:]
            raise SystemExit(f"{way}: {len(samples)} of {calls} calls answered\n{log}")
        seconds = samples[-1][0] - samples[0][0]
        return Slice(
            sorted(delay * 1000 for _, delay in samples), (len(samples) - 1) / seconds,
            calls - len(samples), used,
        )  # fmt: skip


def alternate(slices: int, run: Callable[[str, int], Slice], calls: int) -> dict[str, list[Slice]]:
    """Slices of all ways in turn, the order changing, so that a drift favours none."""
    seen: dict[str, list[Slice]] = {way: [] for way in NUMBERS}
    for turn in range(slices):
        for way in list(NUMBERS) if turn % 2 == 0 else reversed(NUMBERS):
            seen[way].append(run(way, calls))
    return seen


def cpu_ms(pid: int) -> float:
    """CPU time of a process so far (proc(5): utime and stime are fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def pairs(seen: dict[str, list[Slice]], way: str) -> Iterator[tuple[Slice, Slice]]:
    """What was measured in one turn: bare, and a way."""
    return zip(seen["bare"], seen[way], strict=True)


def measure(plan: Plan) -> dict[str, Any]:
    """All figures; needs about 15 s beside the slices themselves."""
    began = time.perf_counter()
    with ExitStack() as stack:
        bench = Bench(stack)
        alternate(1, bench.calm, 100)
        flood = alternate(plan.throughput_slices, bench.flood, plan.throughput_calls)
        load_flood = os.getloadavg()[0]
        calm = alternate(plan.delay_slices, bench.calm, plan.delay_calls)
        left = bench.lab.channels()
        version = bench.lab.root.version
    median = statistics.median
    result: dict[str, Any] = {"asterisk": version, "cores": os.cpu_count()}
    for way in NUMBERS:
        fast, slow = flood[way], calm[way]
        result[way] = {
            "calls_per_s": round(median(one.per_second for one in fast), 1),
            "asterisk_cpu_ms_per_call": round(median(one.cpu["asterisk"] for one in fast), 2),
            "umpack_cpu_ms_per_call": round(median(one.cpu["umpack"] for one in fast), 2),
            "answered_of_100_per_s": round(median(one.per_second for one in slow), 1),
            "delay_ms_p50": round(median(one.delay(0.5) for one in slow), 2),
            "delay_ms_p99": round(median(one.delay(0.99) for one in slow), 2),
            "failed": sum(one.failed for one in (*fast, *slow)),
        }
    for way in ("agi", "umpack"):
        for share, name in ((0.5, "p50"), (0.99, "p99")):
            more = [ours.delay(share) - bare.delay(share) for bare, ours in pairs(calm, way)]
            result[way][f"more_delay_ms_{name}"] = round(median(more), 2)
        ratios = sorted(ours.per_second / bare.per_second for bare, ours in pairs(flood, way))
        result[way]["ratio"] = round(median(ratios), 3)
        result[way]["ratios"] = [round(ratio, 2) for ratio in ratios]
    return result | {
        "channels_left": left,
        "load_average": [round(load_flood, 1), round(os.getloadavg()[0], 1)],
        "seconds": round(time.perf_counter() - began),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--json", action="store_true")
    options.add_argument("--quick", action="store_true", help="50 s instead of 4 minutes")
    chosen = options.parse_args()
    try:
        result = measure(QUICK if chosen.quick else FULL)
    except PbxUnavailable as error:
        raise SystemExit(f"no real PBX: {error}") from None
    if chosen.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
