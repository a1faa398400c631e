"""How the commands print: rich tables for people, JSON for programs.

Everything that came off the line goes through `printable` and is never read as markup.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from umpack import clock
from umpack.core.printable import printable

View = dict[str, Any]

_STYLES = {
    "up": "green",
    "in service": "green",
    "connected": "green",
    "down": "bold red",
    "out of service": "red",
    "partly out of service": "yellow",
    "draining": "yellow",
    "refused": "red",
    "abandoned": "yellow",
    "declined": "yellow",
}


_LAST_MOMENT = 253402214400.0
"""The last day of the year 9999, after which datetime has no name for a moment."""

_NUMBERS = frozenset(
    {"channels", "idle", "busy", "out", "attempts", "cause", "seconds", "position"}
)


_MOMENTS = frozenset({"since", "offered", "ended"})


def console() -> Console:
    """Writes to stdout; tables keep their columns when it is no terminal."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160)


def print_json(value: object) -> None:
    """One JSON document and nothing else."""
    print(json.dumps(value, indent=2))


def time_of(epoch: float | None) -> str:
    """Local date and time."""
    if epoch is None:
        return "-"
    if not 0 <= epoch < _LAST_MOMENT:
        return f"{epoch:g} s"
    return datetime.fromtimestamp(epoch).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def moment_of(epoch: float, now: float) -> str:
    """The same, without the date if it is today's; for tables."""
    whole, today = time_of(epoch), time_of(now)
    return whole.rpartition(" ")[2] if whole[:10] == today[:10] else whole


def span_of(seconds: float) -> str:
    """A length of time in its two largest units."""
    whole = int(seconds)
    for size, unit, smaller, small in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {small}"
    return f"{seconds:.1f} s"


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=f"\n{title}",
        title_justify="left",
        title_style="bold",
        expand=False,
        box=SIMPLE_HEAD,
        show_edge=False,
    )
    for column in columns:
        right = column in _NUMBERS
        table.add_column(
            column,
            justify="right" if right else "left",
            overflow="fold",
            no_wrap=right or column in _MOMENTS,
        )
    return table


def _row(table: Table, *cells: object) -> None:
    # Text, not str: rich would read [brackets] of a caller's name as markup.
    table.add_row(*(_cell(cell) for cell in cells))


def _cell(cell: object) -> Text:
    text = "-" if cell is None else printable(str(cell), 200)
    return Text(text, style=_STYLES.get(text.partition(",")[0], ""))


def status(answer: View) -> None:
    """The whole picture of a node."""
    out = console()
    up = span_of(answer["now"] - answer["since"])
    calls = "1 call" if answer["calls"] == 1 else f"{answer['calls']} calls"
    accepting = "" if answer["accepting"] else ", stopping: no more calls"
    head = f"umpack {answer['version']} on {answer['node']}, up {up}, {calls}{accepting}"
    out.print(Text(printable(head, 200), style="bold"), soft_wrap=True)
    for line in _warnings(answer):
        out.print(Text(printable(line, 500), style="red"), soft_wrap=True)
    links = _table("PBX", "id", "link", "since", "agi", "detail")
    for pbx in answer["pbxs"]:
        link = f"{pbx['link']}, leaving" if pbx["leaving"] else pbx["link"]
        _row(
            links,
            pbx["id"],
            link,
            moment_of(pbx["since"], answer["now"]),
            pbx["agi"],
            pbx["detail"] or None,
        )
    out.print(links)
    packs = _table("Packs", "id", "strategy", "channels", "idle", "busy", "out", "next", "overflow")
    for pack in answer["packs"]:
        overflow = ", ".join(pack["overflow"]) or None
        next_ = pack["next"] or "none idle"
        _row(packs, pack["id"], pack["strategy"], *_counts(pack), next_, overflow)
    out.print(packs)
    trunks = _table(
        "Trunks", "id", "kind", "pbx", "state", "channels", "idle", "busy", "out", "why"
    )
    for trunk in answer["trunks"]:
        until = f" until {moment_of(trunk['until'], answer['now'])}" if trunk["until"] else ""
        why = ("; ".join(trunk["why"]) + until) or None
        _row(trunks, trunk["id"], trunk["kind"], trunk["pbx"], trunk["state"], *_counts(trunk), why)
    out.print(trunks)
    if rows := answer.get("channel_list"):
        _channels(out, rows)


def _warnings(answer: View) -> Iterator[str]:
    configuration, journal = answer["configuration"], answer["journal"]
    if error := configuration["error"]:
        yield "the last reload was refused, the configuration before it is in force:"
        yield from error.splitlines()
    yield from configuration["restart_needed"]
    if journal["fault"]:
        yield f"journal: {journal['fault']} since {time_of(journal['since'])}"
    if journal["dropped"]:
        yield f"journal: {journal['dropped']} calls found no room and are lost"
    if answer["log"]["dropped"]:
        yield f"log: {answer['log']['dropped']} lines found no reader and are lost"


def _counts(row: View) -> tuple[int, int, int, int]:
    return row["channels"], row["idle"], row["leased"], row["blocked"]


def _channels(out: Console, rows: list[View]) -> None:
    table = _table("Channels", "id", "state", "call", "since", "packs (position)", "why")
    for row in rows:
        seats = ", ".join(f"{seat['id']} ({seat['position']})" for seat in row["packs"])
        since = moment_of(row["since"], clock.wall()) if row["since"] else None
        _row(
            table,
            row["id"],
            row["state"],
            row["call"],
            since,
            seats or None,
            "; ".join(row["why"]) or None,
        )
    out.print(table)


def living_calls(rows: list[View]) -> None:
    """Calls that hold a channel."""
    table = _table("Calls", "offered", "caller", "called", "state", "channel", "pack", "id")
    for row in rows:
        _row(
            table,
            moment_of(row["offered"], clock.wall()),
            row["caller"] or "anonymous",
            row["called"],
            row["state"],
            row["channel"],
            row["pack"],
            row["id"],
        )
    console().print(table if rows else "no calls")


def ended_calls(rows: list[View]) -> None:
    """Calls of the journal."""
    table = _table(
        "Ended calls", "ended", "seconds", "caller", "called", "ending", "channel", "attempts",
        "cause", "id",
    )  # fmt: skip
    for row in rows:
        _row(
            table,
            moment_of(row["ended"], clock.wall()),
            f"{row['ended'] - row['offered']:.1f}",
            row["caller"] or "anonymous",
            row["called"],
            row["ending"],
            row["channel"],
            len(row["attempts"]),
            row["cause"],
            row["id"],
        )
    console().print(table if rows else "no calls")


def explanation(row: View) -> None:
    """Why a call got the channel it got."""
    for line in explanation_lines(row):
        print(printable(line, 500))


def explanation_lines(row: View) -> list[str]:
    """The explanation as lines; text off the line is still raw in them."""
    caller = row["caller"] or "anonymous"
    lines = [f"call {row['id']}: {caller} → {row['called']}, offered {time_of(row['offered'])}"]
    if row["route"]:
        lines.append(f"route {row['route']}")
    for passed in row["passed_packs"]:
        lines.append(f"pack {passed['pack']} {passed['why']}")
        lines += _excluded(passed["exclusions"])
    for number, attempt in enumerate(row["attempts"], 1):
        lines += _attempt(number, attempt)
    if "ending" not in row:
        lines.append(f"now {row['state']} on {row['channel']}, {_place(row)}")
    if row["exclusions"]:
        lines += ["left out of the hunt:", *_excluded(row["exclusions"])]
    if "ending" in row:
        seconds = row["ended"] - row["offered"]
        reason = f" ({row['reason']})" if row["reason"] else ""
        lines.append(
            f"{row['ending']}{reason} after {seconds:.3f} s, cause {row['cause']} "
            f"{row['cause_name']}: {row['why']}"
        )
    return lines


def _place(row: View) -> str:
    return f"position {row['position']} of pack {row['pack']}"


def _attempt(number: int, attempt: View) -> list[str]:
    hunt = f"hunt from behind {attempt['after']}" if attempt["after"] else "hunt from the first"
    passed = attempt["passed_over"]
    skipped = f", {passed} positions passed over" if passed else ""
    seconds = attempt["ended"] - attempt["started"]
    sip = f", SIP {attempt['sip']}" if attempt["sip"] else ""
    cause = f", cause {attempt['cause']}" if attempt["cause"] else ""
    return [
        f"attempt {number}: {attempt['channel']}, {_place(attempt)} ({hunt}{skipped})",
        f"  {attempt['result']} after {seconds:.3f} s{cause}{sip}; "
        f"elsewhere: {attempt['elsewhere']}, blame: {attempt['blame']} ({attempt['source']})",
    ]


def _excluded(rows: list[View]) -> list[str]:
    return [f"  {row['channels']} channels of {row['trunk']}: {row['why']}" for row in rows]
