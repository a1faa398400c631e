"""What came in the body of a request."""

from __future__ import annotations

from typing import Any

from aiohttp import web


async def json_object(request: web.Request) -> dict[str, Any]:
    """The body as a JSON object; 400 for anything else."""
    try:
        body = await request.json()
    except (ValueError, RecursionError, LookupError, web.RequestPayloadError):
        raise web.HTTPBadRequest(text="the body is not JSON") from None
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text="the body is not a JSON object")
    return body
