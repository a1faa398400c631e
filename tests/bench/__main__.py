"""Every benchmark, one after the other, and one table of what they found.

    python -m tests.bench [--json] [--quick] [--strict] [--only NAME ...]

Each runs in a process of its own and is killed at its limit. Ratios are taken within one run
against a plain peer, so they hold on other machines; absolute figures say little without the load
average that stands beside them. Ends with status 1 if a benchmark could not run; a missed target
is a line in the table, for a busy machine misses some by itself, and with `--strict` status 1, too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Job:
    """A benchmark: its arguments, those of a quick run, and its limit in seconds."""

    module: str
    arguments: tuple[str, ...]
    quick: tuple[str, ...]
    limit: float


@dataclass(frozen=True, slots=True)
class Figure:
    """One line: where a benchmark's JSON has the figure and its ratio, and what is aimed at.

    The target is the ratio's where there is one, else the figure's own.
    """

    job: str
    what: str
    value: tuple[str, ...]
    ratio: tuple[str, ...] = ()
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A line with its figures; `met` is None where nothing is aimed at."""

    bench: str
    what: str
    value: float | None
    ratio: float | None
    target: str
    met: bool | None
    load_average: float


JOBS: Final[Mapping[str, Job]] = {
    "core": Job("bench_core", ("--json",), ("--rounds", "3"), 60),
    "storm": Job("bench_storm", ("--json",), ("--rounds", "2"), 90),
    "agi": Job(
        "bench_agi", ("--json", "--loop", "asyncio"), ("--rounds", "3", "--seconds", "0.6"), 90
    ),
    "uvloop": Job(
        "bench_agi", ("--json", "--loop", "uvloop"), ("--rounds", "3", "--seconds", "0.6"), 90
    ),
    "idle": Job("bench_agi", ("--json", "--idle", "10000"), ("--rounds", "2"), 60),
    "ami": Job("bench_ami", ("--json",), (), 60),
    "journal": Job("bench_journal", (), (), 60),
    "pbx": Job("bench_pbx", ("--json",), ("--quick",), 360),
    "failover": Job("bench_failover", ("--json",), ("--quick",), 300),
    "reception": Job("bench_reception", ("--json",), ("--quick",), 180),
    "messages": Job("bench_messages", ("--json",), ("--quick",), 600),
    "mail": Job("bench_mail", ("--json",), ("--quick",), 120),
    "spool": Job("bench_spool", ("--json",), ("--quick",), 180),
}
FIGURES: Final[Sequence[Figure]] = (
    *(
        figure
        for way in ("linear", "cyclic")
        for figure in (
            Figure(
                "core", f"assign+release/s, {way}, 30 channels",
                (f"lease+release {way} 30",), at_least=300_000,
            ),
            Figure(
                "core", f"assign+release/s, {way}, 30,000: times slower",
                (f"lease+release {way} 30000",), (f"lease+release {way} 30/30000",), at_most=2.0,
            ),
            Figure(
                "storm", f"virtual calls/s, {way}, 30 channels",
                (f"{way} 30 calls/s",), at_least=50_000,
            ),
            Figure("storm", "the same by processor time", (f"{way} 30 calls/processor s",)),
        )
    ),
    Figure(
        "agi", "FastAGI decisions/s to bare asyncio",
        ("umpack", "calls_per_s"), ("umpack", "ratio"), at_least=0.75,
    ),
    Figure(
        "agi", "the same by processor time, µs a call",
        ("umpack", "cpu_us_per_call"), ("umpack", "cpu_ratio"),
    ),
    Figure("agi", "the same to a server that does not read", ("umpack", "calls_per_s"),
           ("umpack", "ratio_to_floor")),
    Figure(
        "uvloop", "the same, both on uvloop", ("umpack", "calls_per_s"), ("umpack", "ratio")
    ),
    Figure(
        "uvloop", "by processor time, µs a call", ("umpack", "cpu_us_per_call"),
        ("umpack", "cpu_ratio"),
    ),
    Figure(
        "uvloop", "our server, fixed answers", ("agi_server", "calls_per_s"),
        ("agi_server", "ratio"),
    ),
    Figure("idle", "idle connections", ("idle",), at_least=10_000),
    Figure("idle", "decisions/s beside them, to none", ("calls_per_s",), ("ratio",)),
    Figure("ami", "AMI events/s of 30 headers", ("link_per_second",), at_least=20_000),
    Figure("ami", "the same to stock pyst2", ("link_per_second",), ("link_to_stock",)),
    Figure("journal", "journal rows/s to SQLite alone", ("journal rows/s, sustained",), ("ratio",)),
    Figure("journal", "append at 500 calls/s, p99 µs", ("append at 500 calls/s, p99",)),
    Figure(
        "pbx", "real Asterisk: calls/s to a bare Dial",
        ("umpack", "calls_per_s"), ("umpack", "ratio"), at_least=0.95,
    ),
    Figure(
        "pbx", "the same by FastAGI that decides nothing", ("agi", "calls_per_s"), ("agi", "ratio")
    ),
    Figure("pbx", "calls lost", ("umpack", "failed"), at_most=0),
    Figure(
        "pbx", "more post-dial delay, p50 ms", ("umpack", "more_delay_ms_p50"), at_most=1.0
    ),
    Figure("pbx", "the same by FastAGI that decides nothing", ("agi", "more_delay_ms_p50")),
    Figure(
        "pbx", "more post-dial delay, p99 ms", ("umpack", "more_delay_ms_p99"), at_most=5.0
    ),
    Figure("pbx", "Asterisk's ms a call, bare", ("bare", "asterisk_cpu_ms_per_call")),
    Figure("pbx", "Asterisk's ms a call, FastAGI", ("agi", "asterisk_cpu_ms_per_call")),
    Figure("pbx", "Asterisk's ms a call, with umpack", ("umpack", "asterisk_cpu_ms_per_call")),
    Figure("pbx", "umpack's ms a call", ("umpack", "umpack_cpu_ms_per_call")),
    *(
        figure
        for way, most in (
            ("queue linear", None), ("queue rrmemory", None), ("dialplan, Dial(…,3)", None),
            ("umpack", (0, 3, 1500)),
        )
        for figure in (
            Figure("failover", f"one server dies, {way}: calls lost", (way, "lost"),
                   at_most=most[0] if most else None),
            Figure("failover", f"{way}: waited more than 1 s", (way, "over_1_s"),
                   at_most=most[1] if most else None),
            Figure("failover", f"{way}: longest wait, ms", (way, "longest_ms"),
                   at_most=most[2] if most else None),
        )
    ),
    Figure("reception", "fax of 3 pages: end to committed, p50 ms", ("p50_ms",)),
    Figure("reception", "the same, p95 ms", ("p95_ms",), at_most=20.0),
    Figure("reception", "the same to a bare commit's", ("p95_ms",), ("ratio",)),
    Figure("messages", "voice: committed and delivered/s", ("voice",), at_least=100.0),
    Figure("messages", "voice to the spool alone", ("voice",), ("ratio",)),
    Figure("messages", "voice: processor time, ms a message", ("cpu_ms",)),
    Figure("messages", "voice: waits of threads a message", ("switches",)),
    Figure("messages", "faxes of 3 pages: converted and delivered/s", ("fax",)),
    *(
        Figure("messages", f"memory after {count:,} messages, kB", ("memory_kb", str(count)))
        for count in (1000, 2000, 5000, 10_000)
    ),
    Figure("messages", "memory at the last to that after the warm-up",
           ("memory_growth",), at_most=1.1),
    *(
        Figure("mail", f"mails/s to a bare client, {n} at once",
               (f"connections {n}", "messages_per_s"), (f"connections {n}", "ratio"))
        for n in (1, 4, 16)
    ),
    Figure("spool", "spool alone, 10/s: commit p95 ms", ("commit_ms_p95",), at_most=20.0),
    Figure("spool", "the same to a bare commit", ("commit_ms_p95",), ("ratio",)),
    Figure("spool", "committed/s, 30 at once", ("committed_per_s",)),
    Figure("spool", "committed, claimed and ended/s", ("delivered_per_s",), at_least=100.0),
    Figure("spool", "memory at the last to a tenth of them", ("memory_growth",), at_most=1.1),
)  # fmt: skip


def run(name: str, *, quick: bool) -> dict[str, Any]:
    """What one benchmark found; {} and a word on stderr if it could not run."""
    job = JOBS[name]
    command = [sys.executable, "-m", f"tests.bench.{job.module}", *job.arguments]
    try:
        done = subprocess.run(
            [*command, *(job.quick if quick else ())],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=job.limit,
            check=True,
        )  # fmt: skip
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return {}
    if done.stdout.lstrip().startswith("{"):
        found: dict[str, Any] = json.loads(done.stdout)
        return found
    lines = (line.rpartition(":") for line in done.stdout.splitlines())
    return {key: _number(value) for key, _, value in lines if key}


def rows(name: str, found: Mapping[str, Any]) -> list[Row]:
    """The lines of one benchmark; all of them, also of one that failed."""
    load = os.getloadavg()[0]
    return [_row(figure, found, load) for figure in FIGURES if figure.job == name]


def _row(figure: Figure, found: Mapping[str, Any], load: float) -> Row:
    value, ratio = _at(found, figure.value), _at(found, figure.ratio)
    judged = ratio if figure.ratio else value
    target, met = "", None
    if figure.at_least is not None:
        target = f"≥ {figure.at_least:,g}"
        met = judged is not None and judged >= figure.at_least
    elif figure.at_most is not None:
        target = f"≤ {figure.at_most:,g}"
        met = judged is not None and judged <= figure.at_most
    return Row(figure.job, figure.what, value, ratio, target, met, round(load, 1))


def _at(found: Any, path: Sequence[str]) -> float | None:
    if not path:
        return None
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, (int, float)) else None


def _number(text: str) -> float | str:
    word = text.split(maxsplit=1)[0].replace(",", "") if text.strip() else ""
    try:
        return float(word)
    except ValueError:
        return text


def _shown(number: float | None) -> str:
    if number is None:
        return "-"
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:,.2f}"


def _line(row: Row) -> str:
    verdict = {None: "", True: "met", False: "MISSED"}[row.met]
    ratio = "" if row.ratio is None else _shown(row.ratio)
    return (
        f"{row.bench:8} {row.what:47} {_shown(row.value):>12} {ratio:>6} {row.target:>10} "
        f"{verdict:6} {row.load_average:5.1f}"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--json", action="store_true")
    options.add_argument("--quick", action="store_true", help="about three minutes in all")
    options.add_argument("--strict", action="store_true", help="a missed target is a failure")
    options.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS), metavar="NAME")
    chosen = options.parse_args()
    began, failed, all_rows = time.perf_counter(), [], []
    head = f"{'':8} {'figure':47} {'value':>12} {'ratio':>6} {'target':>10} {'':6} {'load':>5}"
    if not chosen.json:
        print(head, flush=True)
    for name in chosen.only:
        found = run(name, quick=chosen.quick)
        failed += [] if found else [name]
        for row in rows(name, found):
            all_rows.append(row)
            if not chosen.json:
                print(_line(row), flush=True)
    seconds = round(time.perf_counter() - began)
    if chosen.json:
        result = {
            "rows": [asdict(row) for row in all_rows], "failed": failed, "seconds": seconds,
            "cores": os.cpu_count(), "load_average": os.getloadavg()[0],
        }  # fmt: skip
        print(json.dumps(result, ensure_ascii=False))
    else:
        print(f"{seconds} s, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
    missed = [row for row in all_rows if row.met is False]
    if failed or (chosen.strict and missed):
        sys.exit(1)


if __name__ == "__main__":
    main()
