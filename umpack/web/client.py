"""Speaks to a running daemon over its control socket."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from umpack.core.errors import PeerFault, PeerGone, PeerTimeout


class ControlRefused(PeerFault):
    """The daemon answered with an error; the text is for people."""


class ControlClient:
    """Blocking calls for the command line; each opens its own connection.

    Raises `PeerGone` when no daemon listens, `PeerTimeout` when it does not answer in time,
    `ControlRefused` with the daemon's own words when it says no.
    """

    def __init__(self, socket: Path, timeout: float = 10.0) -> None:
        self._socket = socket
        self._timeout = timeout

    def get(self, path: str, **query: str) -> Any:
        """The decoded answer."""
        return asyncio.run(self._request("GET", path, query, None))

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The decoded answer."""
        return asyncio.run(self._request("POST", path, {}, body or {}))

    def call(self, id_: str) -> Any:
        """One call."""
        return self.get(f"/v1/calls/{quote(id_, safe='')}")

    async def _request(
        self, method: str, path: str, query: dict[str, str], body: dict[str, Any] | None
    ) -> Any:
        limit = aiohttp.ClientTimeout(total=self._timeout)
        connector = aiohttp.UnixConnector(path=str(self._socket))
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=limit) as session,
                session.request(
                    method, f"http://umpack{path}", params=query, json=body
                ) as response,
            ):
                answer = await response.json()
                if response.status >= 400:
                    raise ControlRefused(str(answer.get("error", response.reason)))
                return answer
        except aiohttp.ClientError as error:
            raise PeerGone(f"no umpack answers on {self._socket}: is it running?") from error
        except TimeoutError:
            raise PeerTimeout(f"umpack on {self._socket} does not answer") from None
