"""A whole simulated site: for each PBX of a configuration an Asterisk with its boards and servers.

What the configuration dials exists here: S2M and S0 spans on one board per PBX, and a SIP server
behind every endpoint. All far ends answer after a moment; callers come as a Poisson stream.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Final

from simulators.asterisk import PbxPlan, SimulatedAsterisk
from simulators.board import Board
from simulators.endpoints import Answer, Behaviour
from simulators.line import Kind, SpanSpec
from simulators.traffic import Exponential, Poisson, Traffic, calls
from umpack.config import Address, Configuration
from umpack.core.errors import OurFault
from umpack.core.routes import Route
from umpack.core.trunk import SPAN_SIZE, PbxId, Trunk, TrunkKind

ANSWERING: Final = Answer(after=0.03)
"""A UM server picks up at once; a board's setup over ISDN takes some ten milliseconds."""

_KINDS: Final = {TrunkKind.S2M: Kind.S2M, TrunkKind.S0: Kind.S0}
_CALLERS: Final = 90_000


class SimulatedSite:
    """Starts the PBXs where the configuration expects them; with `ephemeral`, on any free ports,
    and `configuration` then says where."""

    def __init__(
        self, configuration: Configuration, *, ephemeral: bool = False, speed: float = 1.0
    ) -> None:
        self.configuration = configuration
        self.pbxs: dict[PbxId, SimulatedAsterisk] = {}
        self._ephemeral = ephemeral
        self._speed = speed
        self._callers: set[asyncio.Task[object]] = set()

    async def __aenter__(self) -> SimulatedSite:
        site = self.configuration.site
        fresh = dict(self.configuration.pbxs)
        for id_, pbx in self.configuration.pbxs.items():
            plan = PbxPlan(
                agi=None if self._ephemeral else (pbx.reach.host, pbx.reach.port),
                ami_port=0 if self._ephemeral else pbx.port,
                ami_users={pbx.user: pbx.secret.get_secret_value()},
                speed=self._speed,
            )
            simulated = SimulatedAsterisk(plan)
            await simulated.start()
            self.pbxs[id_] = simulated
            equip(simulated, [trunk for trunk in site.trunks.values() if trunk.pbx == id_])
            if self._ephemeral:
                anywhere = Address("127.0.0.1", 0)
                fresh[id_] = replace(
                    pbx, host="127.0.0.1", port=simulated.ami.port, listen=anywhere, reach=anywhere
                )
        self.configuration = replace(self.configuration, pbxs=fresh)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop_traffic()
        for pbx in self.pbxs.values():
            await pbx.__aexit__(kind, error, trace)

    def agi_at(self, ports: Mapping[PbxId, int]) -> None:
        """Where umpack has come to listen, if the ports were ephemeral."""
        for id_, port in ports.items():
            self.pbxs[id_].agi_to("127.0.0.1", port)

    def start_traffic(
        self, erlangs: float | None = None, hold: float = 20.0, seed: int = 1
    ) -> None:
        """Callers ring until the site ends; without `erlangs`, enough for two thirds of it."""
        channels = sum(len(trunk.slots) for trunk in self.configuration.site.trunks.values())
        load = erlangs or channels * 2 / 3
        for id_, pbx in self.pbxs.items():
            share = load / len(self.pbxs)
            self._keep(asyncio.create_task(self._ring(id_, pbx, share, hold, seed)))

    async def stop_traffic(self) -> None:
        """All callers hang up."""
        for task in self._callers:
            task.cancel()
        await asyncio.gather(*self._callers, return_exceptions=True)

    def _keep(self, task: asyncio.Task[object]) -> None:
        self._callers.add(task)
        task.add_done_callback(self._callers.discard)

    async def _ring(
        self, id_: PbxId, pbx: SimulatedAsterisk, erlangs: float, hold: float, seed: int
    ) -> None:
        chance = random.Random(seed)
        site = self.configuration.site
        # In turn over the routes, so that every pack has something to do.
        routes: list[Route | None] = [
            route for route in site.routes if route.pack and site.pbx_of(route.pack) == id_
        ]
        routes = routes or [None]
        traffic = Traffic(Poisson.of(erlangs, hold), Exponential(hold), seed=seed)
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number, arriving in enumerate(calls(traffic)):
            await asyncio.sleep(max(0.0, began + arriving.at / self._speed - loop.time()))
            called = example_number(routes[number % len(routes)], chance)
            caller = f"4930{chance.randrange(_CALLERS) + 10_000}"
            self._keep(asyncio.create_task(pbx.call(called, caller, hold=arriving.hold)))


def equip(pbx: SimulatedAsterisk, trunks: list[Trunk], behaviour: Behaviour = ANSWERING) -> None:
    """Give a PBX the boards and servers its trunks need. `OurFault` where they do not fit."""
    spans: dict[int, Trunk] = {}
    for trunk in trunks:
        if trunk.kind is TrunkKind.SIP:
            pbx.add_endpoint(str(trunk.endpoint), behaviour, capacity=len(trunk.slots))
        elif trunk.span is not None:
            spans[trunk.span] = trunk
    if not spans:
        return
    kinds: list[TrunkKind] = []
    for number in range(1, max(spans) + 1):
        # A span nobody configured is there all the same: the numbers behind it count it.
        nearest = spans.get(number) or spans[min(n for n in spans if n > number)]
        kinds.append(nearest.kind)
    first = 1
    for number, kind in enumerate(kinds, 1):
        if number in spans and spans[number].first_number != first:
            trunk = spans[number]
            raise OurFault(
                f"trunk {trunk.id}: span {number} cannot begin at channel {trunk.first_number} "
                f"on a simulated board, which counts {first} there"
            )
        first += SPAN_SIZE[kind]
    board = Board([SpanSpec(_KINDS[kind]) for kind in kinds])
    pbx.attach(board, dict.fromkeys(range(1, len(kinds) + 1), behaviour))


def example_number(route: Route | None, chance: random.Random) -> str:
    """A number that the route takes (any, without one)."""
    if route is None or route.called.text == "*":
        return "".join(chance.choice("0123456789") for _ in range(8))
    if route.called.block is not None:
        first, last = route.called.block
        width = len(route.called.prefix)
        tail = chance.randint(int(first[width:] or 0), int(last[width:] or 0))
        free = len(first) - width
        return first[:width] + (f"{tail:0{free}d}" if free else "")
    number, text = "", route.called.text
    while text:
        sign, _, rest = text.partition("]") if text[0] == "[" else (text[0], "", text[1:])
        number += _digit(sign, chance)
        text = rest
    return number


def _digit(sign: str, chance: random.Random) -> str:
    if sign.startswith("["):
        return sign[1]
    if sign == "*":
        return f"{chance.randrange(1000):03d}"
    return chance.choice({"X": "0123456789", "Z": "123456789", "N": "23456789"}.get(sign, sign))
