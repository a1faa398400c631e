"""umpack in a process of its own, with all it keeps of a lab and in it, to be killed or frozen.

    python -m tests.pbx.kept SITE AMI_PORT

prints its AGI port, and then answers each line it is sent with a line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from drivers.asterisk.ami import AmiAddress, AmiLink, LinkUp
from drivers.asterisk.driver import AsteriskDriver, AsteriskPlan
from drivers.asterisk.last_order import LastOrderKeeper
from drivers.asterisk.reconcile import Reconciler
from tests.pbx.beside import MAIN, configuration, load_dialplan
from tests.pbx.lab import SECRET, Lab
from umpack import clock
from umpack.core.administration import Drain
from umpack.core.distributor import Distributor
from umpack.core.trunk import TrunkId


class Kept:
    """The process, from this side. `ask` blocks until it has answered."""

    def __init__(self, lab: Lab, site: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.pbx.kept", site, str(lab.ami_port)],
            cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        load_dialplan(lab, site, self.port)

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def ask(self, what: str) -> Any:
        """`leases`, `since`, `drain TRUNK`, `eject TRUNK`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def kill(self) -> None:
        """As the kernel's out-of-memory killer would; may be called twice."""
        self._process.kill()
        self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def freeze(self) -> None:
        """Let it neither read nor write; the kernel still accepts connections for it."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)


async def _serve(site: str, ami_port: int) -> None:
    distributor = Distributor(configuration(site, 1).site)
    driver = AsteriskDriver(AsteriskPlan(MAIN, "127.0.0.1", 0, None), distributor, clock.now)
    await driver.start()
    link = AmiLink(AmiAddress("127.0.0.1", ami_port, "umpack", SECRET), events=frozenset())
    reconciler = Reconciler(distributor, link, MAIN, clock.now)
    keeper = LastOrderKeeper(distributor, link, MAIN)
    up: list[float] = []
    adopted: list[float] = []

    async def listen() -> None:
        async for item in link.events:
            if isinstance(item, LinkUp):
                up.append(clock.now())

    async def tick() -> None:
        while True:
            distributor.tick(clock.now())
            if not adopted and any(lease.pack is None for lease in distributor.ledger):
                adopted.append(clock.now())
            await asyncio.sleep(0.01)

    def answer(what: str) -> Any:
        match what.split():
            case ["leases"]:
                return [[lease.channel.id, lease.pack is None] for lease in distributor.ledger]
            case ["since"]:
                return adopted[0] - up[0] if adopted and up else None
            case ["drain", target]:
                distributor.drain(Drain(target, "test", "", clock.wall()))
                return True
            case ["eject", trunk]:
                distributor.eject(TrunkId(trunk), clock.now(), "test")
                return True
        raise AssertionError(what)

    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print(driver.agi_port, flush=True)
    async with asyncio.TaskGroup() as group:
        for work in (link.run(), reconciler.run(), keeper.run(), listen(), tick()):
            group.create_task(work)
        while line := await reader.readline():
            print(json.dumps(answer(line.decode().strip())), flush=True)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2])))
