"""The least a FastAGI server can do for a call: one fixed `Dial`, whoever calls whom.

    python -m tests.bench.bare_agi PORT DIAL

What a call costs more through it than without it is what FastAGI itself costs: nothing is read,
decided, noted or checked.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

from drivers.asterisk.agi_commands import AgiCommand, exec_


class _Call(asyncio.Protocol):
    def __init__(self, dial: AgiCommand) -> None:
        self._dial = dial
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._received.endswith(b"\n\n"):
            self._received = b""
            self._transport.write(self._dial)
        elif b"200 result=" in self._received:
            self._transport.close()


async def serve(port: int, dial: AgiCommand) -> None:
    """Until the process is ended."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Call(dial), "127.0.0.1", port, backlog=1024)
    print("ready", flush=True)
    await server.serve_forever()


def main() -> None:
    port, dial = int(sys.argv[1]), exec_("Dial", sys.argv[2])
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve(port, dial))
    else:
        uvloop.run(serve(port, dial))


if __name__ == "__main__":
    main()
