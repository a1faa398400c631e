"""The least a FastAGI server can do for a call: fixed commands, whoever calls whom.

    python -m tests.bench.bare_agi PORT DIAL       # one fixed `Dial`, then the end

What a call costs more through it than without it is what FastAGI itself costs: nothing is read,
decided, noted or checked.
"""

from __future__ import annotations

import sys
from asyncio import BaseTransport, Protocol, Transport, get_running_loop
from collections.abc import Sequence
from typing import cast

from drivers.asterisk.agi_commands import AgiCommand, exec_
from umpack.cli.running import run_loop


class Bare(Protocol):
    """One connection: a command after the environment and after each answer, then the end."""

    def __init__(self, commands: Sequence[AgiCommand]) -> None:
        self._commands = iter(commands)
        self._received = b""
        self._awaited = b"\n\n"

    def connection_made(self, transport: BaseTransport) -> None:
        """Wait for the environment."""
        self._transport = cast("Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Look for nothing but the end of what is awaited."""
        self._received += data
        if self._awaited not in self._received:
            return
        self._received, self._awaited = b"", b"200 result="
        if command := next(self._commands, None):
            self._transport.write(command)
        else:
            self._transport.close()


async def serve(port: int, dial: AgiCommand) -> None:
    """Until the process is ended."""
    loop = get_running_loop()
    server = await loop.create_server(lambda: Bare([dial]), "127.0.0.1", port, backlog=1024)
    print("ready", flush=True)
    await server.serve_forever()


def main() -> None:
    port, dial = int(sys.argv[1]), exec_("Dial", sys.argv[2])
    run_loop(lambda: serve(port, dial))


if __name__ == "__main__":
    main()
