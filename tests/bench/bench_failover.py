"""A UM server dies in a storm: app_queue, a hunting dialplan and umpack, side by side.

    python -m tests.bench.bench_failover [--json] [--quick] [--only WAY ...]

Each way gets a real Asterisk of its own, four UM servers (SIPp), a little traffic to learn from,
and the same storm: 400 calls, 20 a second, 3 s each. After a third of them one server is killed and
stays dead. What counts is what the callers saw: calls not answered within 20 s or cut (lost), and
the time from INVITE to 200 of those offered after the death.

The queues are set as favourably as was found: a member rings 1 s, the next is tried 1 s later
(`timeout=1`, `retry=1`; with `retry=0`, and with their defaults of 15 s and 5 s, they lose several
times as many), and a call leaves after 20 s. The dialplan tries the next server after 3 s. umpack
is the real daemon with `answer_within: 1s`, its AMI link up.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tests.pbx.beside import MAIN, patient
from tests.pbx.lab import Lab, LabConfig, SipPeer
from tests.pbx.root import PbxUnavailable, ensure
from tests.pbx.sipp import Caller
from tests.pbx.storm import SERVERS, Placed, UmServer, lost, placed, site_file, slower
from tests.ports import free_port
from umpack.config import load
from umpack.dialplan import dialplan

RATE: Final = 20
HOLD_MS: Final = 3000
PATIENCE_MS: Final = 20_000
VICTIM: Final = 0
"""The first: linear queues would not notice the loss of any other."""
MEMBERS: Final = "".join(f"member => PJSIP/{name}\n" for name in SERVERS)
QUEUES: Final = "[general]\n" + "".join(
    f"[{way}]\nstrategy={way}\ntimeout=1\nretry=1\nautofill=yes\nringinuse=yes\nautopause=no\n"
    f"{MEMBERS}"
    for way in ("linear", "rrmemory")
)
QUEUE: Final = "[from-line]\nexten => _X.,1,Queue({way},r,,,20)\n same => n,Hangup(34)\n"
HUNT: Final = (
    "[from-line]\nexten => _X.,1,Set(at=$[${RAND(0,3)}])\n same => n,Set(tries=0)\n"
    " same => n(try),Dial(PJSIP/um$[${at} + 1],3)\n"
    ' same => n,GotoIf($["${DIALSTATUS}" = "ANSWER" | "${DIALSTATUS}" = "BUSY"]?end)\n'
    " same => n,Set(at=$[(${at} + 1) % 4])\n same => n,Set(tries=$[${tries} + 1])\n"
    " same => n,GotoIf($[${tries} < 4]?try)\n same => n,Hangup(34)\n same => n(end),Hangup()\n"
)
SITE: Final = (
    "trunks:\n"
    + "".join(f"  {name}: {{kind: sip, endpoint: {name}, channels: 40}}\n" for name in SERVERS)
    + "packs:\n  um: {strategy: cyclic, interleave: true, members: [um1, um2, um3, um4],"
    ' answer_within: 1s}\nroutes: [{called: "*", pack: um}]\n'
)
UMPACK: Final = (sys.executable, "-c", "from umpack.cli import main; main()")
WAYS: Final[Mapping[str, str]] = {
    "queue linear": QUEUE.format(way="linear"),
    "queue rrmemory": QUEUE.format(way="rrmemory"),
    "dialplan, Dial(…,3)": HUNT,
    "umpack": "",
}


@dataclass(frozen=True, slots=True)
class Found:
    """What the callers of one way saw. Times in ms; waits count from the server's death on, the
    median before it, too."""

    calls: int
    lost: int
    over_1_s: int
    over_3_s: int
    longest_ms: float
    p50_ms: float
    p99_ms: float
    p50_before_ms: float


def storm(way: str, calls: int) -> Found:
    """One way, from an empty Asterisk to the last call's end."""
    with ExitStack() as stack:
        here = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="umpack-bench-")))
        lab = stack.enter_context(_lab(way, here))
        servers = [stack.enter_context(UmServer(peer.port)) for peer in lab.config.peers]
        if way == "umpack":
            _start_umpack(stack, here)
        Caller("1000", count=120, rate=40, hold_ms=200).run(lab.sip_port, 40)
        seconds = calls // RATE + 40
        storming = Caller(
            "1000", count=calls, rate=RATE, hold_ms=HOLD_MS, patience_ms=PATIENCE_MS, parallel=400
        )
        callers = stack.enter_context(storming.start(lab.sip_port, seconds))
        time.sleep(calls / 3 / RATE)
        dies = time.time()  # noqa: TID251  # SIPp's own time stamps are of this clock
        servers[VICTIM].die()
        callers.wait(seconds + 10.0)
        return _found(placed(callers), dies)


def _lab(way: str, here: Path) -> Lab:
    config = LabConfig(WAYS[way], peers=[SipPeer(name, free_port()) for name in SERVERS])
    lab = patient(Lab(ensure(), config))
    lab.write("queues.conf", QUEUES)
    modules = lab.directory / "etc/modules.conf"
    text = modules.read_text(encoding="utf-8")
    lab.write("modules.conf", text.replace("noload => app_queue.so\n", ""))
    if way == "umpack":
        wanted = load(site_file(lab, SITE, here))
        ours = f"[from-line]\ninclude => umpack-in\n{dialplan(wanted, MAIN)}"
        lab.write("extensions.conf", ours)
    return lab


def _start_umpack(stack: ExitStack, here: Path) -> None:
    daemon = stack.enter_context(
        subprocess.Popen(
            [*UMPACK, "run", "--config", str(here / "umpack.yaml")], stdin=subprocess.DEVNULL
        )
    )
    stack.callback(daemon.terminate)
    log = here / "log"
    for _ in range(300):
        if log.exists() and "link up" in log.read_text(encoding="utf-8"):
            return
        time.sleep(0.1)
    raise SystemExit("umpack did not reach the lab's AMI")


def _found(calls: Sequence[Placed], dies: float) -> Found:
    gone = lost(calls)
    answered = [call for call in calls if call.result.final == 200]
    # Those under way when it died met the dead server, too.
    after = sorted(call.wait for call in answered if call.sent + call.wait >= dies)
    before = sorted(call.wait for call in answered if call.sent + call.wait < dies)
    return Found(
        len(calls),
        len(gone),
        len(slower(answered, 1.0)),
        len(slower(answered, 3.0)),
        _ms(after, 1.0),
        _ms(after, 0.5),
        _ms(after, 0.99),
        _ms(before, 0.5),
    )


def _ms(waits: Sequence[float], share: float) -> float:
    if not waits:
        return float("nan")
    return round(waits[min(len(waits) - 1, int(len(waits) * share))] * 1000, 1)


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--json", action="store_true")
    options.add_argument("--quick", action="store_true", help="120 calls each, 80 s in all")
    options.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY")
    chosen = options.parse_args()
    began = time.perf_counter()
    found: dict[str, Any] = {}
    try:
        for way in chosen.only:
            found[way] = asdict(storm(way, 120 if chosen.quick else 400))
    except PbxUnavailable as error:
        raise SystemExit(f"no real PBX: {error}") from None
    seconds, load_ = round(time.perf_counter() - began), round(os.getloadavg()[0], 1)
    if chosen.json:
        print(json.dumps(found | {"seconds": seconds, "load_average": load_}, ensure_ascii=False))
        return
    names = [name for name in Found.__dataclass_fields__]
    print(f"{'':20}" + "".join(f"{name:>15}" for name in names))
    for way, row in found.items():
        print(f"{way:20}" + "".join(f"{row[name]:>15}" for name in names))
    print(f"{seconds} s, load average {load_}")


if __name__ == "__main__":
    main()
