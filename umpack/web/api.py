"""The control API: JSON over HTTP on a unix socket, for `umpack status` and its like.

| request | answer |
|---|---|
| `GET /v1/status` | node, PBX links, packs, trunks, calls in numbers |
| `GET /v1/channels` | every channel |
| `GET /v1/trunks` | every trunk: what people have set, and its health |
| `GET /v1/changes?limit=&trunk=` | changes of health, newest first; the last 100 are kept |
| `GET /v1/calls?state=living` | calls holding a channel now |
| `GET /v1/calls?limit=&called=&caller=&ending=&channel=` | calls that have ended, newest first |
| `GET /v1/calls/{id}` | one call, living or ended, with all its reasons |
| `POST /v1/reload` | `{"loaded": true, "changes": [...]}` or 422 with the problems |
| `POST /v1/drain` | `{"target", "by", "why", "until"}` |
| `POST /v1/enable` | `{"target", "by"}` |
| `POST /v1/trunks/{id}/eject` | `{"by", "why", "seconds"}`; answers the trunk as it is then |
| `POST /v1/trunks/{id}/restore` | `{"by", "why"}`; likewise |
| `/v1/messages...` | faxes and voice messages: see messages_api.py |
| `GET /metrics` | Prometheus text |

Errors are `{"error": "..."}` with 4xx, and 500 for a fault of umpack's own. Whoever may open the
socket may do everything; its mode (0660) and group are the authorisation.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web
from loguru import logger
from prometheus_client import CONTENT_TYPE_LATEST

from umpack.core.administration import Drain
from umpack.core.calls import Ending
from umpack.core.distributor import Distributor
from umpack.core.errors import ConfigError, OurFault
from umpack.core.health_states import HealthChange
from umpack.core.roster import UnknownTarget
from umpack.core.trunk import TrunkId
from umpack.messages.office import Messages
from umpack.web import messages_api, views
from umpack.web.bodies import json_object
from umpack.web.place import bound, claim, give_free

MOST_CALLS = 1000
_SLICE = 100
"""Rows made at a time before calls get their turn: under 1 ms."""
FEW = 10
"""The same, of rows that are made of many channels: S2M trunks."""
_LONGEST_WORDS = 200
_LONGEST_DRAIN = 36525 * 86400.0
_LONGEST_EJECTION = 86400.0
"""An ejection ends in a trial by itself; what is to stay out is drained."""


class Operator(Protocol):
    """What people do; all of it durable when it is answered."""

    async def drain(self, drain: Drain) -> None:
        """Take something out of service."""

    async def enable(self, target: str, by: str) -> bool:
        """Put it back; answers whether it was out."""

    async def eject(self, trunk: TrunkId, by: str, why: str, seconds: float | None) -> None:
        """Keep calls off a trunk for a time, as if it had failed. `UnknownTarget`."""

    async def restore(self, trunk: TrunkId, by: str, why: str) -> None:
        """Forget what a trunk has failed. `UnknownTarget`."""


class Service(Protocol):
    """What the API asks of the daemon."""

    @property
    def distributor(self) -> Distributor:
        """The living distributor."""

    @property
    def operator(self) -> Operator:
        """Acts on it for people."""

    def status(self) -> views.View:
        """Node and links; packs and trunks are added here."""

    async def reload(self) -> list[str]:
        """Load the configuration again; answers what changed, or raises `ConfigError`."""

    def changes(self, limit: int, trunk: str | None) -> Iterator[HealthChange]:
        """What has lately happened to the trunks, newest first."""

    async def ended_calls(self, limit: int, **filters: str) -> list[views.View]:
        """Calls from the journal, newest first."""

    async def ended_call(self, id_: str) -> views.View | None:
        """One call from the journal."""

    async def metrics(self) -> str:
        """Prometheus text format."""

    def wall(self) -> float:
        """Epoch seconds, as people read them off a clock."""

    def now(self) -> float:
        """Epoch seconds that never step: the time line of health."""


SERVICE: web.AppKey[Service] = web.AppKey("service", Service)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Office = Callable[[], Messages | None]
"""The messages of the daemon, if it takes any."""


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        text = error.text or error.reason
        return web.json_response({"error": text}, status=error.status, headers=_allow(error))
    except UnknownTarget as error:
        return web.json_response({"error": str(error)}, status=404)
    except ConfigError as error:
        return web.json_response({"error": str(error)}, status=422)
    except OurFault as error:
        return web.json_response({"error": str(error)}, status=409)
    except ConnectionError:
        raise  # the asker has gone away
    except Exception as error:
        logger.exception("{} {} failed in umpack", request.method, request.path)
        why = f"failed in umpack, see its log: {type(error).__name__}"
        return web.json_response({"error": why}, status=500)


def _allow(error: web.HTTPException) -> dict[str, str]:
    # RFC 9110 15.5.6: a 405 names what is allowed.
    return {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}


async def gently(rows: Iterator[views.View], slice_: int = _SLICE) -> list[views.View]:
    """All rows, with a turn for the calls after every few of them."""
    found: list[views.View] = []
    while some := list(islice(rows, slice_)):
        found += some
        await asyncio.sleep(0)
    return found


async def _listed(
    request: web.Request, rows: Iterator[views.View], slice_: int = _SLICE
) -> web.StreamResponse:
    """A JSON list, made and sent piece by piece."""
    response = web.StreamResponse()
    response.content_type = "application/json"
    await response.prepare(request)
    before = b"["
    while some := list(islice(rows, slice_)):
        await response.write(before + json.dumps(some)[1:-1].encode("ascii"))
        before = b", "
        await asyncio.sleep(0)
    await response.write(b"[]" if before == b"[" else b"]")
    await response.write_eof()
    return response


async def _status(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    distributor = service.distributor
    packs = []
    for pack in views.packs(distributor):
        packs.append(pack)
        await asyncio.sleep(0)
    trunks = await gently(views.trunks(distributor, service.now()), FEW)
    answer = {"packs": packs, "trunks": trunks, "calls": len(distributor.ledger)}
    return web.json_response(service.status() | answer)


async def _channels(request: web.Request) -> web.StreamResponse:
    return await _listed(request, views.channels(request.app[SERVICE].distributor))


async def _trunks(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    return await _listed(request, views.trunks(service.distributor, service.now()), FEW)


async def _changes(request: web.Request) -> web.StreamResponse:
    query = dict(request.query)
    limit, trunk = _limit(query.pop("limit", "100")), query.pop("trunk", None)
    if query:
        raise web.HTTPBadRequest(text=f"unknown filter {min(query)!r}")
    found = request.app[SERVICE].changes(limit, trunk)
    return await _listed(request, map(views.change, found))


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 10 and int(text) > 0):
        raise web.HTTPBadRequest(text="limit is a number from 1 on")
    return int(text)


async def _calls(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    query = dict(request.query)
    if (state := query.pop("state", "ended")) not in ("living", "ended"):
        raise web.HTTPBadRequest(text=f"unknown state {state!r}; there are: living, ended")
    if unknown := set(query) - {"limit", "called", "caller", "ending", "channel"}:
        raise web.HTTPBadRequest(text=f"unknown filter {min(unknown)!r}")
    if state == "living":
        if query:
            raise web.HTTPBadRequest(text=f"{min(query)!r} is for calls that have ended")
        return await _listed(request, views.living_calls(service.distributor))
    limit = _limit(query.pop("limit", "50"))
    if (ending := query.get("ending")) not in (None, *(known.value for known in Ending)):
        known = ", ".join(known.value for known in Ending)
        raise web.HTTPBadRequest(text=f"unknown ending {ending!r}; there are: {known}")
    found = await service.ended_calls(min(MOST_CALLS, limit), **query)
    return await _listed(request, iter(found))


async def _call(request: web.Request) -> web.Response:
    service, id_ = request.app[SERVICE], request.match_info["id"]
    if living := views.living_call(service.distributor, id_):
        return web.json_response(living)
    ended = await service.ended_call(id_)
    if ended is None:
        raise web.HTTPNotFound(text=f"no call {id_!r}")
    return web.json_response(ended)


async def _reload(request: web.Request) -> web.Response:
    return web.json_response({"loaded": True, "changes": await request.app[SERVICE].reload()})


async def _drain(request: web.Request) -> web.Response:
    service, body = request.app[SERVICE], await json_object(request)
    now, until = service.wall(), body.get("until")
    if until is not None:
        number = isinstance(until, int | float) and not isinstance(until, bool)
        # Compared only: a whole number may be too large for a float.
        if not number or not abs(until) < math.inf:
            raise web.HTTPBadRequest(text="until is a number of epoch seconds")
        if not now < until < now + _LONGEST_DRAIN:
            raise web.HTTPBadRequest(text="until has passed, or is more than 100 years away")
    by, why = _words(body, "by") or "unknown", _words(body, "why")
    drain = Drain(_target(body), by, why, now, until)
    await service.operator.drain(drain)
    return web.json_response({"target": drain.target, "until": until})


async def _enable(request: web.Request) -> web.Response:
    body = await json_object(request)
    target = _target(body)
    was_out = await request.app[SERVICE].operator.enable(target, _words(body, "by") or "unknown")
    return web.json_response({"target": target, "was_out": was_out})


async def _eject(request: web.Request) -> web.Response:
    service, body, id_ = request.app[SERVICE], await json_object(request), request.match_info["id"]
    seconds = body.get("seconds")
    if seconds is not None:
        number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not number or not 0 < seconds <= _LONGEST_EJECTION:
            raise web.HTTPBadRequest(text="seconds is a number above 0, of a day at most")
    by, why = _words(body, "by") or "unknown", _words(body, "why")
    await service.operator.eject(TrunkId(id_), by, why, seconds)
    return _one_trunk(service, id_)


async def _restore(request: web.Request) -> web.Response:
    service, body, id_ = request.app[SERVICE], await json_object(request), request.match_info["id"]
    by, why = _words(body, "by") or "unknown", _words(body, "why")
    await service.operator.restore(TrunkId(id_), by, why)
    return _one_trunk(service, id_)


def _one_trunk(service: Service, id_: str) -> web.Response:
    row = views.trunk(service.distributor, id_, service.now())
    if row is None:  # a reload has just taken it away
        raise web.HTTPNotFound(text=f"no trunk {id_!r}")
    return web.json_response(row)


async def _metrics(request: web.Request) -> web.Response:
    text = await request.app[SERVICE].metrics()
    return web.Response(body=text.encode(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _target(body: dict[str, Any]) -> str:
    target = body.get("target")
    if not isinstance(target, str) or not target:
        raise web.HTTPBadRequest(text="target names a trunk or a channel")
    return target


def _words(body: dict[str, Any], key: str) -> str:
    words = body.get(key) or ""
    if not isinstance(words, str) or len(words) > _LONGEST_WORDS:
        raise web.HTTPBadRequest(text=f"{key} is a text of at most {_LONGEST_WORDS} characters")
    # Half a surrogate, as Python makes of a byte that is no UTF-8, is JSON to nobody else.
    return words.encode("utf-8", "backslashreplace").decode()


def application(service: Service, office: Office = lambda: None) -> web.Application:
    """The API as an aiohttp application."""
    app = web.Application(middlewares=[_errors_as_json], client_max_size=64 * 1024)
    app[SERVICE] = service
    app.router.add_get("/v1/status", _status)
    app.router.add_get("/v1/channels", _channels)
    app.router.add_get("/v1/trunks", _trunks)
    app.router.add_post("/v1/trunks/{id}/eject", _eject)
    app.router.add_post("/v1/trunks/{id}/restore", _restore)
    app.router.add_get("/v1/changes", _changes)
    app.router.add_get("/v1/calls", _calls)
    app.router.add_get(r"/v1/calls/{id:[\s\S]+}", _call)
    app.router.add_post("/v1/reload", _reload)
    app.router.add_post("/v1/drain", _drain)
    app.router.add_post("/v1/enable", _enable)
    app.router.add_get("/metrics", _metrics)
    messages_api.add_routes(app, office)
    return app


class ControlServer:
    """The API on its unix socket: `claim` the path, `start` to answer, `close` for both."""

    def __init__(self, service: Service, path: Path, office: Office = lambda: None) -> None:
        self._path = path
        self._lock: int | None = None
        self._bound = False
        self._runner = web.AppRunner(
            application(service, office), access_log=None, shutdown_timeout=2.0
        )

    async def claim(self) -> None:
        """Make sure no other umpack is at this path. `OurFault` if one is, or it cannot be used."""
        try:
            self._lock = await asyncio.to_thread(claim, self._path)
        except OSError as error:
            raise OurFault(f"cannot listen on {self._path}: {error.strerror or error}") from error

    async def start(self) -> None:
        """Listen. A socket left behind by a crash is replaced; anything else there is an error."""
        try:
            listener = await asyncio.to_thread(bound, self._path)
        except OSError as error:
            raise OurFault(f"cannot listen on {self._path}: {error.strerror or error}") from error
        self._bound = True
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()

    async def close(self) -> None:
        """Stop listening, remove the socket, and give the path free."""
        await self._runner.cleanup()
        if self._lock is not None:
            lock, self._lock = self._lock, None
            await asyncio.to_thread(give_free, self._path if self._bound else None, lock)
