"""Whether the daemon works: the proof systemd is sent, not only a sign of life.

Three things must be so: the loop turns (it runs this), the pump has done its round (the distributor
ticked, what ended was taken over), and a connection to every FastAGI port is served to its end.
A daemon that is deaf, out of files or stuck is restarted then, which costs no call.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Iterable
from contextlib import suppress

from loguru import logger

from umpack.systemd import Notifier

Address = tuple[str, int]

_LOOPBACK = {4: "127.0.0.1", 6: "::1"}


class Pulse:
    """`pumped` by the pump; `fault` says what does not work. Times are of the loop's clock."""

    def __init__(self, limit: float) -> None:
        """`limit` is seconds: what has not worked for so long does not work."""
        self._limit = limit
        self._pumped = asyncio.get_running_loop().time()

    def pumped(self) -> None:
        """The pump has done a whole round."""
        self._pumped = asyncio.get_running_loop().time()

    async def fault(self, listeners: Iterable[Address]) -> str:
        """What does not work, in words; empty if all does. Connects to every one of `listeners`,
        for `limit` seconds at most."""
        still = asyncio.get_running_loop().time() - self._pumped
        if still > self._limit:
            return f"the pump has stood still for {still:.1f} s"
        served = (self._serve(address) for address in listeners)
        return "; ".join(filter(None, await asyncio.gather(*served)))

    async def beat(
        self,
        notifier: Notifier,
        listeners: Callable[[], Iterable[Address]],
        status: Callable[[], str],
    ) -> None:
        """Tell systemd that all works, each time anew after it was seen to; for ever."""
        loop = asyncio.get_running_loop()
        due, failing = loop.time(), ""
        while True:
            fault = await self.fault(listeners())
            if fault:
                notifier.failing(fault)
            else:
                notifier.alive(status())
            if fault != failing:
                failing = fault
                logger.log("ERROR" if fault else "INFO", "pulse: {}", fault or "all works again")
            due = max(due + notifier.interval, loop.time())
            await asyncio.sleep(due - loop.time())

    async def _serve(self, address: Address) -> str:
        """The kernel accepts connections for a process that is stuck, too: only when the other end
        of ours is closed has somebody looked at it."""
        host, port = address
        try:
            async with asyncio.timeout(self._limit):
                reader, writer = await asyncio.open_connection(within_reach(host), port)
                try:
                    with suppress(ConnectionError):
                        writer.write_eof()
                        await reader.read()
                finally:
                    writer.transport.abort()
        except TimeoutError:
            return f"FastAGI on {host}:{port} serves nobody within {self._limit:g} s"
        except OSError as error:
            return f"FastAGI on {host}:{port}: {error.strerror or error}"
        return ""


def within_reach(host: str) -> str:
    """Where to connect to a listener on `host`: for "all addresses" the loopback of its family."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return _LOOPBACK[address.version] if address.is_unspecified else host
