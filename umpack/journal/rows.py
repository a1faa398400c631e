"""A call's record as a row, and back, without losing a character.

Caller names and numbers are bytes from the line. Two kinds of text cannot go into SQLite as they
are: lone surrogates, which UTF-8 does not have, and NUL, at which SQLite's own functions and its
shell stop reading. Both are escaped with a backslash; text without them is stored as it is, so
that the file can be searched with any SQLite tool.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from umpack.core.calls import Attempt, Call, CallId, CallRecord, Ending, PackTried, Reason
from umpack.core.causes import Blame, Elsewhere, Outcome, Result, Verdict
from umpack.core.channel import ChannelId
from umpack.core.errors import OurFault
from umpack.core.pack import Exclusion, PackId
from umpack.core.trunk import PbxId, TrunkId

Json = dict[str, Any]
Cell = str | int | float | None

COLUMNS: tuple[str, ...] = (
    "node",
    "id",
    "pbx",
    "called",
    "caller",
    "caller_name",
    "inbound",
    "offered",
    "ended",
    "answered",
    "ending",
    "reason",
    "cause",
    "why",
    "route",
    "pack",
    "channel",
    "attempts",
    "passed_packs",
    "exclusions",
    "candidates",
)
"""In the order of `row_of`."""

_UNSAFE = re.compile("[\\\\\0\ud800-\udfff]")
_ESCAPE = re.compile(r"\\(?:u([0-9a-f]{4})|(.))", re.DOTALL)
_JSON_ESCAPE = re.compile(r"\\(?:u(d[89a-f][0-9a-f]{2})|.)", re.DOTALL)
_write_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def stored(text: str) -> str:
    """`text` as SQLite can keep it; also for the value a column is compared with."""
    if _UNSAFE.search(text) is None:
        return text
    text = text.replace("\\", "\\\\").replace("\0", "\\0")
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def loaded(cell: str) -> str:
    """The text `stored` was given."""
    if "\\" not in cell:
        return cell
    return _ESCAPE.sub(
        lambda m: chr(int(m[1], 16)) if m[1] else "\0" if m[2] == "0" else m[2], cell
    )


def stored_json(value: object) -> str:
    """JSON in which the only escapes `\\udXXX` are lone surrogates.

    JSON would join two of them into one character (RFC 8259 7); `loaded_json` puts them back one
    by one. Characters beyond the BMP are therefore written as themselves.
    """
    return _write_json(value).encode("utf-8", "backslashreplace").decode("utf-8")


def loaded_json(cell: str) -> Any:
    """The value `stored_json` was given."""
    if "\\ud" in cell:
        cell = _JSON_ESCAPE.sub(lambda m: chr(int(m[1], 16)) if m[1] else m[0], cell)
    return json.loads(cell)


def row_of(record: CallRecord, node: str) -> tuple[Cell, ...]:
    """The row of one call, in the order of `COLUMNS`.

    `pack` is the pack that served or was tried last, else the one the route named.
    """
    call = record.call
    pack: PackId | None = None
    if record.attempts:
        pack = record.attempts[-1].pack
    elif record.passed_packs:
        pack = record.passed_packs[0].pack
    channel = record.channel
    return (
        stored(node),
        stored(call.id),
        stored(call.pbx),
        stored(call.called),
        stored(call.caller),
        stored(call.caller_name),
        stored(call.inbound),
        record.offered,
        record.ended,
        record.answered,
        record.ending.value,
        record.reason.value if record.reason else None,
        record.cause,
        stored(record.why),
        stored(record.route),
        None if pack is None else stored(pack),
        None if channel is None else stored(channel),
        stored_json([_attempt_out(attempt) for attempt in record.attempts]),
        stored_json(
            [
                {"pack": p.pack, "why": p.why, "exclusions": _exclusions_out(p.exclusions)}
                for p in record.passed_packs
            ]
        ),
        stored_json(_exclusions_out(record.exclusions)),
        stored_json(record.candidates),
    )


def record_of(row: Mapping[str, Any]) -> CallRecord:
    """The record a row was made of; `OurFault` where the row is none of ours."""
    try:
        return CallRecord(
            call=Call(
                id=CallId(loaded(row["id"])),
                pbx=PbxId(loaded(row["pbx"])),
                called=loaded(row["called"]),
                caller=loaded(row["caller"]),
                caller_name=loaded(row["caller_name"]),
                inbound=loaded(row["inbound"]),
            ),
            offered=row["offered"],
            ended=row["ended"],
            ending=Ending(row["ending"]),
            cause=row["cause"],
            why=loaded(row["why"]),
            route=loaded(row["route"]),
            attempts=tuple(_attempt_in(item) for item in loaded_json(row["attempts"])),
            passed_packs=tuple(
                PackTried(PackId(p["pack"]), p["why"], _exclusions_in(p["exclusions"]))
                for p in loaded_json(row["passed_packs"])
            ),
            exclusions=_exclusions_in(loaded_json(row["exclusions"])),
            reason=None if row["reason"] is None else Reason(row["reason"]),
            answered=row["answered"],
            candidates=tuple(map(PackId, loaded_json(row["candidates"]))),
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise OurFault(
            f"a call in the journal cannot be read: {type(error).__name__}: {error}"
        ) from error


def _attempt_out(attempt: Attempt) -> Json:
    outcome, verdict = attempt.outcome, attempt.verdict
    return {
        "channel": attempt.channel,
        "trunk": attempt.trunk,
        "pack": attempt.pack,
        "position": attempt.position,
        "after": attempt.after,
        "passed_over": attempt.passed_over,
        "started": attempt.started,
        "ended": attempt.ended,
        "outcome": {
            "result": outcome.result.value,
            "cause": outcome.cause,
            "sip": outcome.sip,
            "detail": outcome.detail,
        },
        "verdict": {
            "elsewhere": verdict.elsewhere.value,
            "blame": verdict.blame.value,
            "source": verdict.source,
        },
    }


def _attempt_in(item: Json) -> Attempt:
    outcome, verdict = item["outcome"], item["verdict"]
    return Attempt(
        channel=ChannelId(item["channel"]),
        trunk=TrunkId(item["trunk"]),
        pack=PackId(item["pack"]),
        position=item["position"],
        after=None if item["after"] is None else ChannelId(item["after"]),
        passed_over=item["passed_over"],
        started=item["started"],
        ended=item["ended"],
        outcome=Outcome(
            Result(outcome["result"]), outcome["cause"], outcome["sip"], outcome["detail"]
        ),
        verdict=Verdict(
            Elsewhere(verdict["elsewhere"]), Blame(verdict["blame"]), verdict["source"]
        ),
    )


def _exclusions_out(exclusions: Sequence[Exclusion]) -> list[Json]:
    return [{"trunk": e.trunk, "channels": e.channels, "why": e.why} for e in exclusions]


def _exclusions_in(items: Sequence[Json]) -> tuple[Exclusion, ...]:
    return tuple(Exclusion(TrunkId(e["trunk"]), e["channels"], e["why"]) for e in items)
