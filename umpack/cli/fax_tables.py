"""How `faxes`, `fax` and `queue` print. What came off the line is escaped, never read as markup."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from umpack.cli.fitting import show
from umpack.cli.tables import console, moment_of, span_of, time_of
from umpack.core.printable import printable

View = dict[str, Any]

_STYLES = {
    "delivered": "green",
    "dead letter": "bold red",
    "ambiguous": "yellow",
    "partial": "yellow",
    "retry": "yellow",
    "incomplete": "yellow",
    "failed": "red",
}
_RIGHT = frozenset(("pages", "s", "tries", "no."))


def messages(rows: Sequence[View], now: float, title: str = "Messages") -> None:
    """One line each."""
    if not rows:
        console().print("no messages", markup=False)
        return
    table = _table(title, "id", "begun", "kind", "from", "to", "pages", "s", "came", "state", "why")
    for row in rows:
        _row(
            table, row["id"], moment_of(row["started"], now), row["kind"], row["caller"] or None,
            row["called"], row["pages"], _whole(row["seconds"]), row["outcome"], row["state"],
            _why(row),
        )  # fmt: skip
    show(console(), table)


def message(row: View) -> None:
    """All that is known of one."""
    out = console()
    for name, value in _facts(row):
        if value not in (None, "", "None"):
            out.print(Text(f"{name:20} {printable(str(value), 1000)}"), soft_wrap=True)
    if row["recipients"]:
        table = _table(
            "Deliveries", "no.", "to", "state", "tries", "changed", "next", "server", "said"
        )
        for one in row["recipients"]:
            waits = one["state"] in ("queued", "retry", "ambiguous")
            decided = one["decided"]
            said = f"{decided['what']} by {decided['by']}" if decided else one["reply"]
            _row(
                table, one["number"], one["address"], one["state"], one["tries"],
                time_of(one["changed"]), time_of(one["next_at"]) if waits else None,
                one["server"] or None, one["why"] or said or None,
            )  # fmt: skip
        show(out, table)
    if row.get("audit"):
        table = _table("Decisions", "when", "who", "what", "detail")
        for entry in row["audit"]:
            _row(table, time_of(entry["at"]), entry["who"], entry["what"], entry["detail"] or None)
        show(out, table)


def _facts(row: View) -> Iterator[tuple[str, object]]:
    engine, document = row["engine"] or {}, row["document"] or {}
    yield "id", row["id"]
    yield "state", row["state"]
    yield "came", row["outcome"]
    yield "kind", row["kind"]
    yield "from", row["caller"]
    yield "name", row["caller_name"]
    yield "station id", engine.get("station")
    yield "to", row["called"]
    yield "call", row["call"]
    yield "pbx", row["pbx"]
    yield "channel", row["channel"]
    yield "node", row["node"]
    for key in ("started", "committed", "ended", "purged"):
        yield key, None if row[key] is None else time_of(row[key])
    for key in ("status", "error", "seconds", "bitrate", "ecm", "resolution", "t38", "cause"):
        yield key, engine.get(key)
    yield "pages, engine", engine.get("pages")
    yield "pages, original", document.get("pages_tiff")
    yield "pages, PDF", document.get("pages_pdf")
    yield "flaws", document.get("fault")
    yield "adopted", row["adopted"]
    yield "related", row["related"]
    yield "Message-ID", row["message_id"]
    if row["original"]:
        yield "original", row["original"]["file"]
        yield "size", row["original"]["size"]
        yield "SHA-256", row["original"]["sha256"]
    for key, value in row["raw"].items():
        yield f"{key}, raw", value


def queue(answer: View) -> None:
    """Alarms, spool, and what waits."""
    out, now = console(), answer["at"]
    for alarm in answer["alarms"]:
        lasts = span_of(max(now - alarm["since"], 0.0))
        line = f"{alarm['kind']}: {alarm['what']} (for {lasts})"
        out.print(Text(printable(line, 500), style="red"), soft_wrap=True)
    for server, why in answer["resting"].items():
        line = f"{server} is left alone: {why}"
        out.print(Text(printable(line, 500), style="yellow"), soft_wrap=True)
    if spool := answer["spool"]:
        out.print(
            f"{spool['queue']} deliveries wait, {spool['unaddressed']} messages to be addressed, "
            f"{spool['receiving']} being received, {spool['dead_letters']} dead letters, "
            f"{spool['ambiguous']} ambiguous; {spool['free_bytes'] // 1_000_000} MB free",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    if answer["messages"]:
        messages(answer["messages"], now, "Queue")


def open_calls(answer: View) -> None:
    """What a reconciliation has found."""
    now = answer["at"]
    if calls := answer["without_record"]:
        table = _table("Answered calls without a message", "call", "ended", "from", "to", "channel")
        for call in calls:
            ended = moment_of(call["ended"], now)
            _row(table, call["call"], ended, call["caller"], call["called"], call["channel"])
        show(console(), table)
    if calls := answer["doubled"]:
        table = _table("Calls with several messages", "call", "ended", "from", "to", "messages")
        for call in calls:
            ended, ids = moment_of(call["ended"], now), ", ".join(call["messages"])
            _row(table, call["call"], ended, call["caller"], call["called"], ids)
        show(console(), table)
    for key, title in (
        ("without_message", "Receptions without an end"),
        ("without_end", "Messages without an end"),
    ):
        if answer[key]:
            messages(answer[key], now, title)
    if not any(
        answer[key] for key in ("without_record", "doubled", "without_message", "without_end")
    ):
        console().print("every call has its message, every message its end", markup=False)


def _why(row: View) -> str | None:
    """What stands in the way of the first recipient who has not got it."""
    waiting = (r["why"] for r in row["recipients"] if r["state"] not in ("delivered", "decided"))
    return next((why for why in waiting if why), None)


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds)


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=f"\n{title}", title_justify="left", title_style="bold", box=SIMPLE_HEAD,
        show_edge=False,
    )  # fmt: skip
    for column in columns:
        right = column in _RIGHT
        table.add_column(
            column, justify="right" if right else "left", overflow="fold",
            no_wrap=right or column in ("id", "begun", "state"),
        )  # fmt: skip
    return table


def _row(table: Table, *cells: object) -> None:
    # Text, not str: rich would read [brackets] of a caller's name as markup.
    texts = ("-" if cell is None else printable(str(cell), 200) for cell in cells)
    table.add_row(*(Text(text, style=_STYLES.get(text, "")) for text in texts))
