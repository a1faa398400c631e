"""The contract's PBX, simulated."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from drivers.asterisk.ami import AmiAddress
from simulators.asterisk import PbxPlan, SimulatedAsterisk
from simulators.pbx_call import CallResult
from tests.contract.pbx import NO_UMPACK_CAUSE, Behaviour, ContractPbx, Invite, Seen


class SimulatedPbx(ContractPbx):
    """`simulators.asterisk` behind the port."""

    bulk = 100
    rate = 200.0
    beat = 0.5

    def __init__(self) -> None:
        self._pbx: SimulatedAsterisk | None = None

    async def start(self, agi_port: int, endpoints: Mapping[str, Behaviour]) -> None:
        plan = PbxPlan(
            agi=("127.0.0.1", agi_port), failure_cause=NO_UMPACK_CAUSE, line_by_line=True
        )
        self._pbx = SimulatedAsterisk(plan)
        await self._pbx.start()
        for name, behaviour in endpoints.items():
            self._pbx.add_endpoint(name, behaviour)

    async def stop(self) -> None:
        if self._pbx is not None:
            await self._pbx.stop()

    async def call(
        self,
        called: str,
        *,
        caller: str = "1000",
        name: str | None = None,
        hold: float = 0.05,
        patience: float | None = None,
    ) -> Seen:
        pbx = self.pbx
        result = await pbx.call(called, caller, name or "", hold=hold, hang_up_after=patience)
        return _seen(result)

    async def calls(self, called: str, count: int, *, rate: float, hold: float) -> list[Seen]:
        async def one(number: int) -> Seen:
            await asyncio.sleep(number / rate)
            return await self.call(called, hold=hold)

        return list(await asyncio.gather(*(one(number) for number in range(count))))

    @property
    def ami(self) -> AmiAddress:
        return AmiAddress("127.0.0.1", self.pbx.ami.port, "umpack", "umpack")

    async def invites(self) -> list[Invite]:
        return [
            Invite(endpoint, called, caller) for endpoint, called, caller in self.pbx.sip_invites
        ]

    @property
    def pbx(self) -> SimulatedAsterisk:
        """The simulator, for tests of what only it can do."""
        assert self._pbx is not None, "not started"
        return self._pbx


def _seen(result: CallResult) -> Seen:
    assert result.sip is not None, f"cut short: {result}"
    return Seen(result.sip)
