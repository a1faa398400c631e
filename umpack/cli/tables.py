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
from umpack.cli.fitting import show
from umpack.core.health_states import HealthState
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
    "suspect": "yellow",
    "up (in reserve)": "yellow",
    "slow start (in reserve)": "yellow",
    "half-open": "yellow",
    "slow start": "yellow",
    "ejected": "red",
    "alarmed": "bold red",
    "refused": "red",
    "abandoned": "yellow",
    "declined": "yellow",
}


_LAST_MOMENT = 253402214400.0
"""The last day of the year 9999, after which datetime has no name for a moment."""

_NUMBERS = frozenset(
    "channels idle busy out attempts cause seconds position first reserve closed".split()
)


_HEALTH = frozenset(state.value for state in HealthState)
"""What a trunk's note begins with; other exclusions are people's."""

_MOMENTS = frozenset({"since", "offered", "ended", "at"})


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


def _show_if_any(rows: list[View], table: Table, otherwise: str) -> None:
    if rows:
        show(console(), table)
    else:
        console().print(otherwise)


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
    for line in (*_warnings(answer), *_alarms(answer)):
        out.print(Text(printable(line, 500), style="red"), soft_wrap=True)
    if known := answer.get("messages"):
        out.print(Text(printable(_messages(known), 500)), soft_wrap=True)
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
    show(out, links)
    packs = _table(
        "Packs", "id", "strategy", "channels", "idle", "busy", "out", "first", "reserve", "closed",
        "next", "overflow",
    )  # fmt: skip
    for pack in answer["packs"]:
        overflow = ", ".join(pack["overflow"]) or None
        next_ = pack["next"] or "none idle"
        choice = pack["first_choice"], pack["reserve"], pack["closed"]
        _row(packs, pack["id"], pack["strategy"], *_counts(pack), *choice, next_, overflow)
    show(out, packs)
    show(out, _trunks(answer["trunks"], answer["now"]))
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


def _alarms(answer: View) -> Iterator[str]:
    for alarm in (answer.get("messages") or {}).get("alarms", ()):
        lasts = span_of(max(answer["now"] - alarm["since"], 0.0))
        yield f"messages: {alarm['kind']}: {alarm['what']} (for {lasts})"


def _messages(known: View) -> str:
    """One line; `umpack queue` has the rest."""
    if known["queue"] is None:
        return "messages: how the spool is, is not known"
    words = [f"{known['queue']} wait"]
    if known["queue"]:
        words[0] += f", the oldest for {span_of(known['oldest_age'])}"
    words += [
        f"{known[key]} {name}"
        for key, name in (
            ("receiving", "being received"), ("dead_letters", "dead letters"),
            ("ambiguous", "ambiguous"),
        )
        if known[key]
    ]  # fmt: skip
    ends = known["ends"]
    words += [f"{ends[name]} {name}" for name in ("delivered", "refused") if ends.get(name)]
    return f"messages: {', '.join(words)}; {known['free_bytes'] // 1_000_000} MB free"


def trunks(rows: list[View]) -> None:
    """Trunks alone."""
    _show_if_any(rows, _trunks(rows, clock.now()), "no trunks")


def _trunks(rows: list[View], now: float) -> Table:
    table = _table(
        "Trunks", "id", "kind", "pbx", "channels", "idle", "busy", "out", "service", "health",
        "since", "why, and what next",
    )  # fmt: skip
    for row in rows:
        health = row["health"]
        _row(
            table,
            row["id"],
            row["kind"],
            row["pbx"],
            *_counts(row),
            row["administration"]["state"],
            _health_of(row),
            moment_of(health["since"], now) if health else None,
            "; ".join(_reasons(row, now)) or None,
        )
    return table


def _health_of(row: View) -> str:
    health = row["health"]
    if health is None:
        return "removed"
    in_reserve = health["admission"] == "reserve" and health["state"] != "suspect"
    return f"{health['state']} (in reserve)" if in_reserve else str(health["state"])


def _reasons(row: View, now: float) -> Iterator[str]:
    ends = {d["reason"]: d["until"] for d in row["administration"]["drains"]}
    for why in row["administration"]["why"]:
        end = ends.get(why)
        yield f"{why} until {moment_of(end, now)}" if end else why
    if health := row["health"]:
        yield from (words for words in (health["why"], health["next"]) if words)
        yield from (f"{rest['channel']} {rest['why']}" for rest in health["resting"])
    if row["glare"]:
        yield f"glare {row['glare']}×, which blames nobody"


def trunk_lines(row: View) -> list[str]:
    """One trunk after something was done with it; the text is raw."""
    health, administration = row["health"], row["administration"]
    if health is None:
        return [f"{row['id']} has been removed from the configuration"]
    words = "; ".join(filter(None, (health["why"], health["next"])))
    lines = [f"{row['id']} is {_health_of(row)}" + (f": {words}" if words else "")]
    if administration["state"] != "in service":
        lines.append(f"{administration['state']}: {'; '.join(administration['why'])}")
    return lines


def changes(rows: list[View]) -> None:
    """How the health of trunks has changed."""
    table = _table("Changes of health", "at", "trunk", "from", "to", "why")
    for row in rows:
        at = moment_of(row["at"], clock.now())
        _row(table, at, row["trunk"], row["from"], row["to"], row["why"])
    _show_if_any(rows, table, "no changes")


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
    show(out, table)


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
    _show_if_any(rows, table, "no calls")


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
    _show_if_any(rows, table, "no calls")


def explanation(row: View) -> None:
    """Why a call got the channel it got."""
    for line in explanation_lines(row):
        print(printable(line, 500))


def explanation_lines(row: View) -> list[str]:
    """The explanation as lines; text off the line is still raw in them."""
    caller = row["caller"] or "anonymous"
    lines = [f"call {row['id']}: {caller} → {row['called']}, offered {time_of(row['offered'])}"]
    if row["route"]:
        packs = ", then ".join(row["candidates"])
        lines.append(f"route {row['route']}" + (f": {packs}" if packs else ""))
    for passed in row["passed_packs"]:
        lines.append(f"pack {passed['pack']} {passed['why']}")
        lines += _excluded(passed["exclusions"])
    before: View | None = None
    for number, attempt in enumerate(row["attempts"], 1):
        lines += _attempt(number, attempt, before)
        before = attempt
    if "ending" not in row:
        lines.append(_now(row, before))
    if row["exclusions"]:
        lines += _hunted(row)
    if "ending" in row:
        seconds = row["ended"] - row["offered"]
        reason = f" ({row['reason']})" if row["reason"] else ""
        lines.append(
            f"{row['ending']}{reason} after {seconds:.3f} s, cause {row['cause']} "
            f"{row['cause_name']}: {row['why']}"
        )
    return lines


def _now(row: View, before: View | None) -> str:
    """Where a living call is, and why there."""
    if row["pack"] is None:
        return f"now {row['state']} on {row['channel']}, where the PBX had put it"
    return f"now {row['state']} on {row['channel']}, {_place(row)}{_moved_on(before)}"


def _place(row: View) -> str:
    """Which position, and how the hunt came there."""
    hunt = f"hunt from behind {row['after']}" if row["after"] else "hunt from the first"
    passed = row["passed_over"]
    skipped = f", {passed} positions passed over" if passed else ""
    return f"position {row['position']} of pack {row['pack']} ({hunt}{skipped})"


def _moved_on(before: View | None) -> str:
    """Why there was another attempt behind that one."""
    if before is None:
        return ""
    if before["elsewhere"] == "channel":
        return f"; another channel, for {before['channel']} was lost"
    return f"; another trunk, for {before['trunk']} had failed this call"


def _hunted(row: View) -> list[str]:
    """What the last hunt left out, and what health said of the trunk it took all the same."""
    trunk = (row["channel"] or "").rpartition(":")[0]
    taken = [e for e in row["exclusions"] if e["trunk"] == trunk and _is_of_health(e["why"])]
    others = [e for e in row["exclusions"] if e not in taken]
    lines = [f"taken all the same: {trunk}, {e['why']}" for e in taken]
    return (
        [*lines, "not first choice, or left out of the hunt:", *_excluded(others)]
        if others
        else lines
    )


def _is_of_health(why: str) -> bool:
    return why.partition(":")[0] in _HEALTH


def _attempt(number: int, attempt: View, before: View | None) -> list[str]:
    seconds = attempt["ended"] - attempt["started"]
    sip = f", SIP {attempt['sip']}" if attempt["sip"] else ""
    cause = f", cause {attempt['cause']}" if attempt["cause"] else ""
    return [
        f"attempt {number}: {attempt['channel']}, {_place(attempt)}{_moved_on(before)}",
        f"  {attempt['result']} after {seconds:.3f} s{cause}{sip}; "
        f"elsewhere: {attempt['elsewhere']}, blame: {attempt['blame']} ({attempt['source']})",
    ]


def _excluded(rows: list[View]) -> list[str]:
    return [f"  {row['channels']} channels of {row['trunk']}: {row['why']}" for row in rows]
