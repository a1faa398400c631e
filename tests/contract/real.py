"""The contract's PBX, real: the lab's Asterisk, SIPp servers and SIPp callers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import ExitStack
from typing import assert_never

import pytest

from drivers.asterisk.ami import AmiAddress
from simulators.endpoints import Answer, Reject, Ring
from tests.contract.pbx import NO_UMPACK_CAUSE, Behaviour, ContractPbx, Invite, Seen
from tests.pbx.lab import SECRET, Lab, LabConfig, SipPeer
from tests.pbx.root import PbxUnavailable, ensure
from tests.pbx.sipp import Caller, CallerResult, Server, SippError

_DIALPLAN = f"""[from-line]
exten => _X.,1,AGI(agi://127.0.0.1:PORT/umpack)
 same => n,GotoIf($["${{AGISTATUS}}" = "FAILURE"]?away)
 same => n,Hangup(${{FILTER(0-9,${{UMPACK_CAUSE}})}})
 same => n(away),Hangup({NO_UMPACK_CAUSE})
"""
_SLACK = 40
"""Seconds a caller's process may live longer than its call should take."""

_REST = 0.3
"""Seconds without news after which a server's log is taken for complete."""


class RealPbx(ContractPbx):
    """`tests.pbx.lab` behind the port. A process for every caller, hence the slow beat."""

    bulk = 150
    rate = 50.0
    beat = 3.0

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._lab: Lab | None = None
        self._servers: dict[str, Server] = {}

    async def start(self, agi_port: int, endpoints: Mapping[str, Behaviour]) -> None:
        await asyncio.to_thread(self._start, agi_port, endpoints)

    def _start(self, agi_port: int, endpoints: Mapping[str, Behaviour]) -> None:
        try:
            root = ensure()
        except PbxUnavailable as error:
            if os.environ.get("UMPACK_REQUIRE_PBX") == "1":
                raise
            pytest.skip(f"NO REAL PBX, its contract is not tested: {error}")
        for name, behaviour in endpoints.items():
            self._servers[name] = self._stack.enter_context(_server(behaviour))
        peers = [SipPeer(name, server.port) for name, server in self._servers.items()]
        dialplan = _DIALPLAN.replace("PORT", str(agi_port))
        self._lab = self._stack.enter_context(Lab(root, LabConfig(dialplan, peers)))

    async def stop(self) -> None:
        await asyncio.to_thread(self._stack.close)

    async def call(
        self,
        called: str,
        *,
        caller: str = "1000",
        name: str | None = None,
        hold: float = 0.05,
        patience: float | None = None,
    ) -> Seen:
        # A quoted-string of RFC 3261 25.1: what would end or escape it is escaped.
        quoted = None if name is None else name.replace("\\", r"\\").replace('"', r"\"")
        who = Caller(
            called,
            user=caller,
            display=None if quoted is None else f'"{quoted}"',
            hold_ms=_ms(hold),
            patience_ms=None if patience is None else _ms(patience),
        )
        (result,) = await self._run(who, hold)
        return _seen(result)

    async def calls(self, called: str, count: int, *, rate: float, hold: float) -> list[Seen]:
        many = Caller(called, count=count, rate=rate, hold_ms=_ms(hold))
        return [_seen(result) for result in await self._run(many, count / rate + hold)]

    @property
    def ami(self) -> AmiAddress:
        assert self._lab is not None, "not started"
        return AmiAddress("127.0.0.1", self._lab.ami_port, "umpack", SECRET)

    async def invites(self) -> list[Invite]:
        # A channel is leased before its INVITE has come to the server's log: look until it rests.
        last, now = None, self._invites()
        while now != last:
            await asyncio.sleep(_REST)
            last, now = now, self._invites()
        return now

    def _invites(self) -> list[Invite]:
        served = [
            (call.at, Invite(name, call.called, call.caller))
            for name, server in self._servers.items()
            for call in server.calls()
        ]
        return [invite for _, invite in sorted(served, key=lambda pair: pair[0])]

    async def _run(self, caller: Caller, seconds: float) -> list[CallerResult]:
        assert self._lab is not None, "not started"
        # Watched from the loop and not from a thread: a test may cancel a call it made.
        with caller.start(self._lab.sip_port, round(seconds) + _SLACK) as callers:
            while callers.running:  # noqa: ASYNC110 - a process has no event of ours
                await asyncio.sleep(0.01)
            results = callers.results()
            if not results:
                raise SippError(f"no call was made: {callers.errors}")
            return results


def _server(behaviour: Behaviour) -> Server:
    match behaviour:
        case Answer(after, hold):
            if hold is None:
                return Server.answering(ring_ms=_ms(after))
            return Server.hanging_up(ring_ms=_ms(after), hold_ms=_ms(hold))
        case Reject(status, after):
            return Server.rejecting(status, after_ms=_ms(after))
        case Ring():
            return Server.ringing()
    assert_never(behaviour)


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _seen(result: CallerResult) -> Seen:
    assert result.final is not None, f"cut short: {result}"
    return Seen(result.final)
