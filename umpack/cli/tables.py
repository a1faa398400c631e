"""How the commands print: rich tables for people, JSON for programs.

Everything that came off the line goes through `printable` and is never read as markup.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

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
    return datetime.fromtimestamp(epoch).astimezone().strftime("%Y-%m-%d %H:%M:%S")


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
    table = Table(title=title, title_justify="left", title_style="bold", expand=False)
    for column in columns:
        right = column in ("channels", "idle", "busy", "out", "attempts", "cause", "position")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
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
    accepting = "" if answer["accepting"] else ", taking no more calls"
    out.print(
        Text(
            f"umpack {answer['version']} on {answer['node']}, up {up}, "
            f"{answer['calls']} calls{accepting}",
            style="bold",
        )
    )
    if error := answer["configuration"]["error"]:
        out.print(Text(f"last reload was refused:\n{error}", style="red"))
    if fault := answer["journal"]["fault"]:
        out.print(Text(f"journal: {fault}", style="red"))
    links = _table("PBX", "id", "link", "since", "agi", "detail")
    for pbx in answer["pbxs"]:
        _row(
            links, pbx["id"], pbx["link"], time_of(pbx["since"]), pbx["agi"], pbx["detail"] or None
        )
    out.print(links)
    packs = _table("Packs", "id", "strategy", "channels", "idle", "busy", "out", "next", "overflow")
    for pack in answer["packs"]:
        _row(
            packs,
            pack["id"],
            pack["strategy"],
            pack["channels"],
            pack["idle"],
            pack["leased"],
            pack["blocked"],
            pack["next"],
            ", ".join(pack["overflow"]) or None,
        )
    out.print(packs)
    trunks = _table(
        "Trunks", "id", "kind", "pbx", "state", "channels", "idle", "busy", "out", "why"
    )
    for trunk in answer["trunks"]:
        until = f" until {time_of(trunk['until'])}" if trunk["until"] else ""
        _row(
            trunks,
            trunk["id"],
            trunk["kind"],
            trunk["pbx"],
            trunk["state"],
            trunk["channels"],
            trunk["idle"],
            trunk["leased"],
            trunk["blocked"],
            ("; ".join(trunk["why"]) + until) or None,
        )
    out.print(trunks)
    if rows := answer.get("channel_list"):
        _channels(out, rows)


def _channels(out: Console, rows: list[View]) -> None:
    table = _table("Channels", "id", "state", "call", "since", "packs (position)", "why")
    for row in rows:
        seats = ", ".join(f"{seat['id']} ({seat['position']})" for seat in row["packs"])
        since = time_of(row["since"]) if row["since"] else None
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
    table = _table("Calls", "id", "caller", "called", "state", "channel", "pack", "offered")
    for row in rows:
        caller = row["caller"] or "anonymous"
        _row(
            table,
            row["id"],
            caller,
            row["called"],
            row["state"],
            row["channel"],
            row["pack"],
            time_of(row["offered"]),
        )
    out = console()
    out.print(table if rows else "no calls")


def ended_calls(rows: list[View]) -> None:
    """Calls of the journal."""
    table = _table(
        "Ended calls", "ended", "id", "caller", "called", "ending", "channel", "attempts", "cause"
    )
    for row in rows:
        _row(
            table,
            time_of(row["ended"]),
            row["id"],
            row["caller"] or "anonymous",
            row["called"],
            row["ending"],
            row["channel"],
            len(row["attempts"]),
            row["cause"],
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
    if "ending" not in row:
        lines.append(f"{row['state']} on {row['channel']} (pack {row['pack']})")
        return lines
    if row["route"]:
        lines.append(f"route {row['route']}")
    for passed in row["passed_packs"]:
        lines.append(f"pack {passed['pack']} {passed['why']}")
        lines += _excluded(passed["exclusions"])
    for number, attempt in enumerate(row["attempts"], 1):
        lines += _attempt(number, attempt)
    if row["exclusions"]:
        lines += ["left out of the hunt:", *_excluded(row["exclusions"])]
    seconds = row["ended"] - row["offered"]
    reason = f" ({row['reason']})" if row["reason"] else ""
    lines.append(
        f"{row['ending']}{reason} after {seconds:.3f} s, cause {row['cause']} "
        f"{row['cause_name']}: {row['why']}"
    )
    return lines


def _attempt(number: int, attempt: View) -> list[str]:
    hunt = f"hunt from behind {attempt['after']}" if attempt["after"] else "hunt from the first"
    passed = attempt["passed_over"]
    skipped = f", {passed} positions passed over" if passed else ""
    seconds = attempt["ended"] - attempt["started"]
    sip = f", SIP {attempt['sip']}" if attempt["sip"] else ""
    cause = f", cause {attempt['cause']}" if attempt["cause"] else ""
    return [
        f"attempt {number}: {attempt['channel']}, position {attempt['position']} of pack "
        f"{attempt['pack']} ({hunt}{skipped})",
        f"  {attempt['result']} after {seconds:.3f} s{cause}{sip}; "
        f"elsewhere: {attempt['elsewhere']}, blame: {attempt['blame']} ({attempt['source']})",
    ]


def _excluded(rows: list[View]) -> list[str]:
    return [f"  {row['channels']} channels of {row['trunk']}: {row['why']}" for row in rows]
