"""The control API: JSON over HTTP on a unix socket, for `umpack status` and its like.

| request | answer |
|---|---|
| `GET /v1/status` | node, PBX links, packs, trunks, calls in numbers |
| `GET /v1/channels` | every channel |
| `GET /v1/calls?state=living` | calls holding a channel now |
| `GET /v1/calls?limit=&called=&caller=&ending=&channel=` | calls that have ended, newest first |
| `GET /v1/calls/{id}` | one call, living or ended, with all its reasons |
| `POST /v1/reload` | `{"loaded": true, "changes": [...]}` or 422 with the problems |
| `POST /v1/drain` | `{"target", "by", "why", "until"}` |
| `POST /v1/enable` | `{"target"}` |
| `GET /metrics` | Prometheus text |

Errors are `{"error": "..."}` with 4xx. Whoever may open the socket may do everything; the socket's
mode (0660) and group are the authorisation.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from umpack.core.administration import Drain
from umpack.core.calls import Ending
from umpack.core.distributor import Distributor, UnknownTarget
from umpack.core.errors import ConfigError, OurFault
from umpack.web import views

MOST_CALLS = 1000


class Service(Protocol):
    """What the API asks of the daemon."""

    @property
    def distributor(self) -> Distributor:
        """The living distributor."""

    def status(self) -> views.View:
        """Node and links; packs and trunks are added here."""

    async def reload(self) -> list[str]:
        """Load the configuration again; answers what changed, or raises `ConfigError`."""

    async def drain(self, drain: Drain) -> None:
        """Take something out of service, durably."""

    async def enable(self, target: str) -> bool:
        """Put it back, durably; answers whether it was out."""

    async def ended_calls(self, limit: int, **filters: str) -> list[views.View]:
        """Calls from the journal, newest first."""

    async def ended_call(self, id_: str) -> views.View | None:
        """One call from the journal."""

    def metrics(self) -> str:
        """Prometheus text format."""

    def now(self) -> float:
        """Epoch seconds."""


SERVICE: web.AppKey[Service] = web.AppKey("service", Service)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        return web.json_response({"error": error.text or error.reason}, status=error.status)
    except UnknownTarget as error:
        return web.json_response({"error": str(error)}, status=404)
    except ConfigError as error:
        return web.json_response({"error": str(error)}, status=422)
    except OurFault as error:
        return web.json_response({"error": str(error)}, status=409)


async def _status(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    distributor = service.distributor
    return web.json_response(
        service.status()
        | {
            "packs": views.packs(distributor),
            "trunks": views.trunks(distributor),
            "calls": len(distributor.ledger),
        }
    )


async def _channels(request: web.Request) -> web.Response:
    return web.json_response(views.channels(request.app[SERVICE].distributor))


async def _calls(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    query = dict(request.query)
    if query.pop("state", None) == "living":
        return web.json_response(views.living_calls(service.distributor))
    try:
        limit = min(MOST_CALLS, int(query.pop("limit", "50")))
    except ValueError:
        raise web.HTTPBadRequest(text="limit is a number") from None
    if unknown := set(query) - {"called", "caller", "ending", "channel"}:
        raise web.HTTPBadRequest(text=f"unknown filter {sorted(unknown)[0]!r}")
    if (ending := query.get("ending")) not in (None, *(known.value for known in Ending)):
        known = ", ".join(known.value for known in Ending)
        raise web.HTTPBadRequest(text=f"unknown ending {ending!r}; there are: {known}")
    return web.json_response(await service.ended_calls(limit, **query))


async def _call(request: web.Request) -> web.Response:
    service, id_ = request.app[SERVICE], request.match_info["id"]
    for living in views.living_calls(service.distributor):
        if living["id"] == id_:
            return web.json_response(living)
    ended = await service.ended_call(id_)
    if ended is None:
        raise web.HTTPNotFound(text=f"no call {id_!r}")
    return web.json_response(ended)


async def _reload(request: web.Request) -> web.Response:
    return web.json_response({"loaded": True, "changes": await request.app[SERVICE].reload()})


async def _drain(request: web.Request) -> web.Response:
    service, body = request.app[SERVICE], await _body(request)
    until = body.get("until")
    if until is not None and not isinstance(until, int | float):
        raise web.HTTPBadRequest(text="until is a number of epoch seconds")
    by, why = str(body.get("by") or "unknown"), str(body.get("why") or "")
    drain = Drain(_target(body), by, why, service.now(), until)
    await service.drain(drain)
    return web.json_response({"target": drain.target, "until": until})


async def _enable(request: web.Request) -> web.Response:
    target = _target(await _body(request))
    was_out = await request.app[SERVICE].enable(target)
    return web.json_response({"target": target, "was_out": was_out})


async def _metrics(request: web.Request) -> web.Response:
    text = request.app[SERVICE].metrics()
    return web.Response(text=text, content_type="text/plain", charset="utf-8")


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError:
        raise web.HTTPBadRequest(text="the body is not JSON") from None
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text="the body is not a JSON object")
    return body


def _target(body: dict[str, Any]) -> str:
    target = body.get("target")
    if not isinstance(target, str) or not target:
        raise web.HTTPBadRequest(text="target names a trunk or a channel")
    return target


def application(service: Service) -> web.Application:
    """The API as an aiohttp application."""
    app = web.Application(middlewares=[_errors_as_json], client_max_size=64 * 1024)
    app[SERVICE] = service
    app.router.add_get("/v1/status", _status)
    app.router.add_get("/v1/channels", _channels)
    app.router.add_get("/v1/calls", _calls)
    app.router.add_get("/v1/calls/{id:.+}", _call)
    app.router.add_post("/v1/reload", _reload)
    app.router.add_post("/v1/drain", _drain)
    app.router.add_post("/v1/enable", _enable)
    app.router.add_get("/metrics", _metrics)
    return app


class ControlServer:
    """The API on its unix socket."""

    def __init__(self, service: Service, path: Path) -> None:
        self._path = path
        self._runner = web.AppRunner(application(service), access_log=None, shutdown_timeout=2.0)

    async def start(self) -> None:
        """Listen. A socket nobody listens on any more is replaced; a living one is an error."""
        await asyncio.to_thread(self._path.parent.mkdir, parents=True, exist_ok=True)
        if await _is_alive(self._path):
            raise OurFault(f"another umpack is listening on {self._path}")
        await asyncio.to_thread(self._path.unlink, missing_ok=True)
        await self._runner.setup()
        # Created closed and opened to the group afterwards: there is no moment for a stranger.
        mask = os.umask(0o117)
        try:
            await web.UnixSite(self._runner, str(self._path)).start()
        except OSError as error:
            raise OurFault(f"cannot listen on {self._path}: {error.strerror or error}") from error
        finally:
            os.umask(mask)

    async def close(self) -> None:
        """Stop listening and remove the socket."""
        await self._runner.cleanup()
        await asyncio.to_thread(self._path.unlink, missing_ok=True)


async def _is_alive(path: Path) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(str(path))
    except (OSError, ValueError):
        return False
    writer.close()
    return True
