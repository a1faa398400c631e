"""How soon what a PBX says, or fails to say, is known and acted upon: README's bounds, in virtual
time, on the simulated board with its own timers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

import pytest

from drivers.asterisk.ami import AmiAnswer, AmiEvent
from drivers.asterisk.last_order import EVERY as ORDER_EVERY
from drivers.asterisk.last_order import LastOrderKeeper
from drivers.asterisk.reconcile import EVERY as LOOK_EVERY
from drivers.asterisk.reconcile import GRACE, Reconciler
from drivers.asterisk.signal_polls import PollTimes, SignalPolls
from simulators import line_events as ev
from simulators.ami_events import PbxEvents
from simulators.board import Board
from simulators.dahdi_lines import ALARM_NAMES
from simulators.line import Defect, Kind, Layer1, Layer2, SpanSpec, Timers
from tests import sites
from tests.virtual import in_no_time, now
from umpack.core.distributor import Distributor
from umpack.core.errors import PeerGone
from umpack.core.health_policy import HealthPolicy
from umpack.core.health_states import AlarmKind, HealthState
from umpack.core.pack import Strategy
from umpack.core.trunk import TrunkId, TrunkKind

ALARMED, SLOW_START = HealthState.ALARMED, HealthState.SLOW_START
TIMES, BOARD, POLICY = PollTimes(), Timers(), HealthPolicy()
PUMP = 0.1
"""Seconds between the daemon's looks."""
STEP = 0.02
"""Seconds between the board's."""
SLACK = PUMP + 3 * STEP
LINE = replace(sites.trunk("line", 2, kind=TrunkKind.S0, first=1), span=1)
OTHER = replace(sites.trunk("other", 2, kind=TrunkKind.S0, first=4), span=2)
SERVER = sites.trunk("um1")


class Pbx:
    """A board and one SIP server behind a manager; `mute` loses every event."""

    def __init__(self) -> None:
        self.board = Board([SpanSpec(Kind.S0), SpanSpec(Kind.S0)])
        self.distributor = Distributor(sites.one_pack(LINE, OTHER, SERVER))
        self.polls = SignalPolls(sites.MAIN, self.distributor, now, self._ask)
        self.mute = False
        self.reachable = True
        self.linked = True
        self._events = PbxEvents(lambda name: True, self._publish)
        self._congested: dict[int, bool] = {}

    def _publish(self, name: str, body: str) -> None:
        if not self.mute:
            headers = dict(line.split(": ", 1) for line in body.splitlines())
            self.polls.hear(AmiEvent({"Event": name, **headers}))

    async def _ask(
        self, action: str, headers: Mapping[str, str] | None
    ) -> Sequence[Mapping[str, str]]:
        if not self.linked:
            raise PeerGone("no link")
        spans = self.board.spans()
        match action:
            case "DAHDIShowChannels":
                return [
                    {"DAHDIChannel": str(number), "Alarm": ALARM_NAMES[span.layer1]}
                    for span in spans
                    for number in range(span.first, span.last + 1)
                ]
            case "PRIShowSpans":
                return [
                    {"Span": str(s.number), "Up": "No" if s.layer2 is Layer2.DOWN else "Yes"}
                    for s in spans
                ]
            case _:
                state = "Not in use" if self.reachable else "Unavailable"
                return [{"ObjectName": "um1", "Aor": "um1", "DeviceState": state}]

    def tell(self, events: Sequence[ev.Event]) -> None:
        for event in events:
            match event:
                case ev.AlarmRaised(span=span, kind=kind) if kind is not Layer1.RECOVERING:
                    self._alarm(span, ALARM_NAMES[kind])
                case ev.AlarmCleared(span=span):
                    self._alarm(span, None)
        for view in self.board.spans():
            dead = view.layer2 is Layer2.DOWN or view.layer1 is not Layer1.OK
            if self._congested.setdefault(view.number, False) is not dead:
                self._congested[view.number] = dead
                state = "UNAVAILABLE" if dead else "NOT_INUSE"
                self._events.device_state(f"DAHDI/I{view.number}/congestion", state)

    def _alarm(self, span: int, text: str | None) -> None:
        for number in range(3 * span - 2, 3 * span):
            self._events.channel_alarm(number, text)

    def server(self, *, reachable: bool) -> None:
        self.reachable = reachable
        self._events.contact_status("um1", "sip:um1", reachable=reachable)

    def link(self, *, up: bool) -> None:
        self.linked, self.mute = up, not up
        self.distributor.see(sites.MAIN, now(), linked=up)
        if up:
            self.polls.ask()

    async def live(self) -> None:
        while True:
            self.tell(self.board.advance(now()))
            await asyncio.sleep(STEP)

    async def tick(self) -> None:
        while True:
            self.distributor.tick(now())
            await asyncio.sleep(PUMP)

    def works(self) -> bool:
        """Whether calls could be made on the first span."""
        span = self.board.spans()[0]
        return span.layer1 is Layer1.OK and span.layer2 is not Layer2.DOWN

    def state(self, trunk: str) -> HealthState:
        return self.distributor.health[TrunkId(trunk)].state

    async def until(self, holds: Callable[[], bool], limit: float = 300.0) -> float:
        """Wait for something; gives the seconds it took."""
        began = now()
        while not holds():
            assert now() - began < limit, self.distributor.health
            await asyncio.sleep(STEP)
        return now() - began

    async def alarmed(self, trunk: str) -> float:
        return await self.until(lambda: self.state(trunk) is ALARMED)

    async def back(self, trunk: str) -> float:
        return await self.until(lambda: self.state(trunk) is not ALARMED)


@contextlib.asynccontextmanager
async def beside(*tasks: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    running = [asyncio.ensure_future(task()) for task in tasks]
    try:
        yield
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def with_pbx(play: Callable[[Pbx], Awaitable[None]]) -> None:
    async def main() -> None:
        pbx = Pbx()
        async with beside(pbx.live, pbx.tick, pbx.polls.run):
            await asyncio.sleep(1.234)
            await play(pbx)

    in_no_time(main())


def between(least: float, took: float, most: float) -> None:
    assert least - SLACK <= took <= most + SLACK, (least, took, most)


# -- alarms -----------------------------------------------------------------------------------

defects = pytest.mark.parametrize(
    ("defect", "debounce"),
    [(Defect.LOS, BOARD.alarm), (Defect.AIS, BOARD.alarm), (Defect.RAI, BOARD.rai)],
)


@defects
def test_an_alarm_is_believed_with_its_event(defect: Defect, debounce: float) -> None:
    async def play(pbx: Pbx) -> None:
        pbx.tell(pbx.board.defect(now(), 1, defect))
        between(debounce, await pbx.alarmed("line"), debounce)
        await asyncio.sleep(30.0)
        assert pbx.state("line") is ALARMED
        assert pbx.state("other") is HealthState.UP

    with_pbx(play)


@defects
def test_a_lost_event_costs_no_more_than_a_poll(defect: Defect, debounce: float) -> None:
    async def play(pbx: Pbx) -> None:
        for pause in (0.0, 3.3, 6.6):
            await asyncio.sleep(pause)
            pbx.mute = True
            pbx.tell(pbx.board.defect(now(), 1, defect))
            between(debounce, await pbx.alarmed("line"), debounce + TIMES.lines)
            pbx.mute = False
            pbx.tell(pbx.board.defect(now(), 1, None))
            await pbx.back("line")
            await asyncio.sleep(POLICY.alarm_settle_cap)

    with_pbx(play)


@pytest.mark.parametrize("told", [True, False])
def test_a_line_is_back_when_its_alarm_has_settled(*, told: bool) -> None:
    async def play(pbx: Pbx) -> None:
        for n in range(1, 5):
            pbx.mute = False
            pbx.tell(pbx.board.defect(now(), 1, Defect.LOS))
            await pbx.alarmed("line")
            pbx.mute = not told
            pbx.tell(pbx.board.defect(now(), 1, None))
            assert await pbx.until(pbx.works) >= BOARD.settle - SLACK, "DAHDI's own"
            settle = POLICY.alarm_settle * n
            # The D channel comes back a moment after layer 1, and only a poll tells of it.
            between(settle, await pbx.back("line"), TIMES.lines_out + settle)
            assert pbx.state("line") is SLOW_START

    with_pbx(play)


# -- D channels -------------------------------------------------------------------------------


@pytest.mark.parametrize("hinted", [True, False])
def test_a_d_channel_is_missed_with_the_hint_or_the_next_poll(*, hinted: bool) -> None:
    async def play(pbx: Pbx) -> None:
        pbx.mute = not hinted
        pbx.tell(pbx.board.lose_dchannel(now(), 1))
        between(0.0, await pbx.alarmed("line"), TIMES.least if hinted else TIMES.lines)
        await asyncio.sleep(7.0)
        pbx.tell(pbx.board.restore_dchannel(now(), 1))
        await pbx.until(pbx.works)
        settle = POLICY.alarm_settle
        between(settle, await pbx.back("line"), TIMES.lines_out + settle)

    with_pbx(play)


# -- SIP contacts -----------------------------------------------------------------------------


@pytest.mark.parametrize("told", [True, False])
def test_a_contact_is_missed_with_its_event_or_the_next_poll(*, told: bool) -> None:
    async def play(pbx: Pbx) -> None:
        pbx.mute = not told
        pbx.server(reachable=False)
        between(0.0, await pbx.alarmed("um1"), 0.0 if told else TIMES.endpoints)
        pbx.server(reachable=True)
        settle = POLICY.alarm_settle
        between(settle, await pbx.back("um1"), settle + (0.0 if told else TIMES.endpoints_out))

    with_pbx(play)


# -- alarms nobody can see --------------------------------------------------------------------


def test_an_alarm_is_doubted_after_the_link_is_lost() -> None:
    async def play(pbx: Pbx) -> None:
        pbx.server(reachable=False)
        await pbx.alarmed("um1")
        pbx.link(up=False)
        between(POLICY.alarm_unseen, await pbx.back("um1"), POLICY.alarm_unseen)
        assert pbx.state("um1") is HealthState.SUSPECT
        # The link is back, and what it says first is true again.
        pbx.link(up=True)
        between(0.0, await pbx.alarmed("um1"), TIMES.least)
        assert pbx.distributor.health[TrunkId("um1")].why == AlarmKind.UNREACHABLE.value + (
            " (endpoint um1)"
        )

    with_pbx(play)


# -- leaks, adoption, the dialplan's order ----------------------------------------------------


class Manager:
    """An AMI link that lists channels and takes entries of the database."""

    def __init__(self) -> None:
        self.version = ""
        self.rows: list[dict[str, str]] = []
        self.puts: list[tuple[float, str, str]] = []

    async def collect(self, name: str) -> list[AmiEvent]:
        await asyncio.sleep(0.05)
        return [AmiEvent({"Event": name, **row}) for row in self.rows]

    async def action(self, name: str, headers: dict[str, str]) -> AmiAnswer:
        await asyncio.sleep(0.01)
        self.puts.append((now(), headers["Key"], headers["Val"]))
        return AmiAnswer({"Response": "Success"})


@pytest.mark.parametrize("phase", [0.5, 7.0, 24.0, 26.0, 29.0])
def test_a_leak_is_freed_after_two_passes(phase: float) -> None:
    async def main() -> None:
        distributor, manager = Distributor(sites.one_pack(SERVER)), Manager()
        manager.version = "11.0.0"
        reconciler = Reconciler(distributor, manager, sites.MAIN, now)
        async with beside(reconciler.run):
            await asyncio.sleep(phase)
            sites.take(distributor, now=now())
            began = now()
            while len(distributor.ledger):
                await asyncio.sleep(PUMP)
                assert now() - began < 1000.0
            # One that has just begun is not missed in the first pass.
            between(LOOK_EVERY, now() - began, GRACE + 2 * LOOK_EVERY + 0.3)

    in_no_time(main())


def test_living_calls_are_adopted_within_a_second_of_the_link() -> None:
    async def main() -> None:
        distributor, manager = Distributor(sites.one_pack(SERVER)), Manager()
        manager.rows = [{"Uniqueid": "1.1", "Linkedid": "1.1", "Channel": "PJSIP/um1-00000001"}]
        reconciler = Reconciler(distributor, manager, sites.MAIN, now)
        async with beside(reconciler.run):
            await asyncio.sleep(7.77)
            assert len(distributor.ledger) == 0
            manager.version = "11.0.0"
            began = now()
            while not len(distributor.ledger):
                await asyncio.sleep(STEP)
                assert now() - began <= 1.0

    in_no_time(main())


def test_the_dialplans_order_is_a_second_old_at_most() -> None:
    async def main() -> None:
        distributor = Distributor(sites.one_pack(SERVER, LINE, strategy=Strategy.CYCLIC))
        manager = Manager()
        manager.version = "11.0.0"
        keeper = LastOrderKeeper(distributor, manager, sites.MAIN)
        async with beside(keeper.run):
            await asyncio.sleep(3.21)
            manager.puts.clear()
            distributor.alarm_raised(TrunkId("um1"), AlarmKind.UNREACHABLE, now())
            sites.take(distributor, now=now())
            changed = now()
            await asyncio.sleep(2.0)
            assert [key for _, key, _ in manager.puts] == ["order/um", "start/um"]
            assert all(at - changed <= ORDER_EVERY + 0.05 for at, _, _ in manager.puts)

    in_no_time(main())
