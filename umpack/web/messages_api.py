"""The control API's part for faxes and voice messages.

| request | answer |
|---|---|
| `GET /v1/messages?since=&until=&number=&state=&limit=` | messages, newest first |
| `GET /v1/messages/open` | what a reconciliation finds: calls and messages without an end |
| `GET /v1/messages/queue` | what waits, alarms, the spool's health |
| `GET /v1/messages/{id}` | one message with all its facts, deliveries and its audit log |
| `POST /v1/messages/{id}/{discard,retry,forward,resend}` | `{"by", "why", "number", "addresses"}` |

`{id}` may be the last four or more characters of an id, if only one of the last messages has them.
404 if this umpack takes no messages.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

from aiohttp import web

from umpack.core.errors import OurFault
from umpack.messages import texts
from umpack.messages.alarms import Status
from umpack.messages.facts import pages_of
from umpack.messages.letter import LetterError, address
from umpack.messages.message import ID, Decision, Kind, Message, MessageId, Recipient
from umpack.messages.office import Messages
from umpack.messages.outcomes import outcome
from umpack.messages.reconciliation import AnsweredCall, Reconciliation
from umpack.messages.records import UnknownMessage
from umpack.messages.states import MessageState
from umpack.web.bodies import json_object

MOST: Final = 1000
_LONGEST_WORDS: Final = 200
_MOST_ADDRESSES: Final = 50
_SHORTEST_END: Final = 4
_RECENT: Final = 2000

View = dict[str, Any]
OFFICE: web.AppKey[Callable[[], Messages | None]] = web.AppKey("office", Callable)  # type: ignore[arg-type]


def add_routes(app: web.Application, office: Callable[[], Messages | None]) -> None:
    """`office` answers the messages of the daemon, or None if it takes none."""
    app[OFFICE] = office
    app.router.add_get("/v1/messages", _messages)
    app.router.add_get("/v1/messages/open", _open)
    app.router.add_get("/v1/messages/queue", _queue)
    app.router.add_get("/v1/messages/{id}", _message)
    app.router.add_post("/v1/messages/{id}/{what}", _decide)


# -- views -----------------------------------------------------------------------------------


def row(message: Message) -> View:
    """One message in a list."""
    call, engine = message.call, message.engine
    return {
        "id": message.id,
        "kind": call.kind.value,
        "state": message.state.value,
        "outcome": outcome(message).value if message.committed is not None else None,
        "started": message.started,
        "committed": message.committed,
        "ended": message.ended,
        "called": texts.text(call.called),
        "caller": texts.text(call.caller),
        "pages": pages_of(message) if call.kind is Kind.FAX else None,
        "seconds": engine.seconds if engine else None,
        "recipients": [_recipient(one) for one in message.recipients],
    }


def _recipient(recipient: Recipient) -> View:
    decided = recipient.decided
    return {
        "number": recipient.number,
        "address": texts.text(recipient.address),
        "state": recipient.state.value,
        "edition": recipient.edition,
        "message_id": recipient.message_id,
        "next_at": recipient.next_at,
        "tries": recipient.tries,
        "doubts": recipient.doubts,
        "server": texts.text(recipient.server),
        "reply": texts.text(recipient.reply),
        "queue_id": texts.text(recipient.queue_id),
        "why": texts.text(recipient.why),
        "changed": recipient.changed,
        "decided": asdict(decided) | {"by": texts.text(decided.by)} if decided else None,
    }


def whole(message: Message) -> View:
    """All that is known of one. What a caller made is there as text and, in hex, as it came."""
    call, engine, document = message.call, message.engine, message.document
    return row(message) | {
        "node": message.node,
        "call": texts.text(call.call),
        "pbx": call.pbx,
        "channel": call.channel,
        "caller_name": texts.text(call.caller_name),
        "raw": {
            "caller": texts.raw_hex(call.caller_raw),
            "caller_name": texts.raw_hex(call.caller_name_raw),
            "station": texts.raw_hex(engine.station) if engine else "",
        },
        "message_id": message.message_id,
        "date": message.date,
        "adopted": texts.text(message.adopted),
        "related": message.related,
        "purged": message.purged,
        "original": asdict(message.original) if message.original else None,
        "engine": engine and {
            "status": texts.text(engine.status),
            "error": texts.text(engine.error),
            "pages": engine.pages,
            "bitrate": engine.bitrate,
            "ecm": engine.ecm,
            "resolution": texts.text(engine.resolution),
            "t38": engine.t38,
            "station": texts.text(texts.decoded(engine.station)),
            "seconds": engine.seconds,
            "cause": engine.cause,
        },
        "document": asdict(document) if document else None,
    }  # fmt: skip


def status(found: Status) -> View:
    """Queue, alarms and spool."""
    return {
        "at": found.at,
        "away_since": found.away_since,
        "resting": {name: texts.text(why) for name, why in found.resting.items()},
        "alarms": [asdict(alarm) for alarm in found.alarms],
        "spool": asdict(found.health) if found.health else None,
    }


def _call(call: AnsweredCall) -> View:
    return {
        "call": texts.text(call.call),
        "called": texts.text(call.called),
        "caller": texts.text(call.caller),
        "channel": call.channel,
        "ended": call.ended,
    }


# -- questions -------------------------------------------------------------------------------


def _office(request: web.Request, *, closed: bool = False) -> Messages:
    office = request.app[OFFICE]()
    if office is None:
        raise web.HTTPNotFound(text="this umpack takes no messages: no `messages:` is configured")
    if office.closed_by and not closed:
        raise web.HTTPServiceUnavailable(text=office.closed_by)
    return office


async def _messages(request: web.Request) -> web.Response:
    office, query = _office(request), dict(request.query)
    limit = query.pop("limit", "100")
    if not (limit.isascii() and limit.isdigit() and 0 < len(limit) < 10 and int(limit) > 0):
        raise web.HTTPBadRequest(text="limit is a number from 1 on")
    times = {key: _time(key, query.pop(key)) for key in ("since", "until") if key in query}
    state = _state(query.pop("state")) if "state" in query else None
    number = query.pop("number", None)
    if query:
        raise web.HTTPBadRequest(text=f"unknown filter {min(query)!r}")
    found = await office.spool.messages(
        min(int(limit), MOST), times.get("since"), times.get("until"), number, state
    )
    return await _listed(found)


async def _listed(found: Sequence[Message]) -> web.Response:
    rows = []
    for number, message in enumerate(found):
        rows.append(row(message))
        if number % 100 == 99:
            await asyncio.sleep(0)  # calls get their turn
    return web.json_response(rows)


def _time(key: str, text: str) -> float:
    try:
        at = float(text)
    except ValueError:
        at = math.nan
    if not math.isfinite(at):
        raise web.HTTPBadRequest(text=f"{key} is a number of epoch seconds")
    return at


def _state(text: str) -> MessageState:
    try:
        return MessageState(text)
    except ValueError:
        known = ", ".join(state.value for state in MessageState)
        raise web.HTTPBadRequest(text=f"unknown state {text!r}; there are: {known}") from None


async def _open(request: web.Request) -> web.Response:
    return web.json_response(opened(await _office(request).reconcile()))


def opened(found: Reconciliation) -> View:
    """What a reconciliation has found."""
    return {
        "at": found.at,
        "since": found.since,
        "without_record": [_call(call) for call in found.without_record[:MOST]],
        "doubled": [_call(call) | {"messages": list(ids)} for call, ids in found.doubled[:MOST]],
        "without_message": [row(message) for message in found.without_message[:MOST]],
        "without_end": [row(message) for message in found.without_end[:MOST]],
    }


async def _queue(request: web.Request) -> web.Response:
    office = _office(request, closed=True)
    found = await office.look()
    if office.closed_by:
        return web.json_response(status(found) | {"messages": []})
    still = await office.spool.open_calls(MOST)
    waiting = [row(message) for message in (*still.without_message, *still.without_end)]
    return web.json_response(status(found) | {"messages": waiting})


async def _message(request: web.Request) -> web.Response:
    office = _office(request)
    message = await _named(office, request.match_info["id"])
    audit = await office.spool.audit(message.id)
    entries = [
        {"at": e.at, "who": texts.text(e.who), "what": e.what, "detail": texts.text(e.detail)}
        for e in audit
    ]
    return web.json_response(whole(message) | {"audit": entries})


async def _named(office: Messages, id_: str) -> Message:
    if not ID.fullmatch(id_) and len(id_) >= _SHORTEST_END:
        recent = await office.spool.messages(_RECENT)
        fitting = [message for message in recent if message.id.endswith(id_)]
        if len(fitting) > 1:
            raise web.HTTPConflict(text=f"{len(fitting)} messages end in {id_!r}: name more of it")
        if fitting:
            return fitting[0]
    try:
        return await office.spool.message(MessageId(id_))
    except UnknownMessage as error:
        raise web.HTTPNotFound(text=str(error)) from None


async def _decide(request: web.Request) -> web.Response:
    office, what = _office(request), request.match_info["what"]
    try:
        decision = Decision(what)
    except ValueError:
        known = ", ".join(one.value for one in Decision)
        raise web.HTTPNotFound(text=f"no {what!r}; there are: {known}") from None
    body = await json_object(request)
    by, why = _words(body, "by"), _words(body, "why")
    if not by:
        raise web.HTTPBadRequest(text="by names who decides")
    number = body.get("number")
    if number is not None and (not isinstance(number, int) or isinstance(number, bool)):
        raise web.HTTPBadRequest(text="number is that of a recipient")
    message = await _named(office, request.match_info["id"])
    decided = await office.decide(
        message.id, by, decision, number=number, addresses=_addresses(body), why=why
    )
    return web.json_response(whole(decided))


def _words(body: View, key: str) -> str:
    words = body.get(key) or ""
    if not isinstance(words, str) or len(words) > _LONGEST_WORDS:
        raise web.HTTPBadRequest(text=f"{key} is a text of at most {_LONGEST_WORDS} characters")
    return words


def _addresses(body: View) -> tuple[str, ...]:
    given = body.get("addresses") or []
    if not isinstance(given, list) or len(given) > _MOST_ADDRESSES:
        raise web.HTTPBadRequest(text=f"addresses is a list of at most {_MOST_ADDRESSES}")
    try:
        return tuple(address(str(one)) for one in given)
    except LetterError as error:
        raise OurFault(str(error)) from error
