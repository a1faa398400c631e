"""Speaks to a running daemon over its control socket."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from umpack.core.errors import PeerFault, PeerGone, PeerTimeout, ProtocolFault


class ControlRefused(PeerFault):
    """The daemon answered with an error; the text is for people."""


class ControlClient:
    """Blocking calls for the command line; each opens its own connection.

    Raises `PeerGone` when no daemon listens, `PeerTimeout` when it does not answer within `timeout`
    seconds, `ProtocolFault` when something else listens there, `ControlRefused` with the daemon's
    own words when it says no.
    """

    def __init__(self, socket: Path, timeout: float = 20.0) -> None:
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
        return self.get(f"/v1/calls/{quote(id_, safe='', errors='surrogatepass')}")

    async def _request(
        self, method: str, path: str, query: dict[str, str], body: dict[str, Any] | None
    ) -> Any:
        limit = aiohttp.ClientTimeout(total=self._timeout)
        url = URL(f"http://umpack{path}", encoded=True).with_query(query or None)
        connector = aiohttp.UnixConnector(path=str(self._socket))
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=limit) as session,
                session.request(method, url, json=body) as response,
            ):
                status, content = response.status, await response.read()
        except aiohttp.ClientConnectorError as error:
            raise self._not_there(error.os_error) from error
        except aiohttp.ClientError as error:
            raise PeerGone(f"umpack on {self._socket} broke off: {error}") from error
        except TimeoutError:
            raise PeerTimeout(
                f"umpack on {self._socket} does not answer within {self._timeout:g} s"
            ) from None
        try:
            answer = json.loads(content)
            if status >= 400:
                raise ControlRefused(str(answer["error"]))
        except (ValueError, TypeError, KeyError):
            raise ProtocolFault(
                f"what answers on {self._socket} is no umpack (HTTP {status})"
            ) from None
        return answer

    def _not_there(self, error: OSError) -> PeerGone:
        if isinstance(error, PermissionError):
            return PeerGone(f"{self._socket}: permission denied; is this user in umpack's group?")
        return PeerGone(f"no umpack answers on {self._socket}: is it running?")
