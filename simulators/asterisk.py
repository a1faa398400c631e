"""An Asterisk 22 as umpack meets it: calls that come by FastAGI, SIP servers, lines, and an AMI.

    async with SimulatedAsterisk(PbxPlan(agi=("127.0.0.1", 4573))) as pbx:
        pbx.add_endpoint("um1", Answer())
        result = await pbx.call("49302000100", hold=60)

It is a real peer (sockets, loopback by default) and can be told to misbehave: `refuse_ami`,
`ami.cut`, `ami.stall`, `ami.inject`, `crash`. What it answers was compared with Asterisk 22.10;
chan_dahdi, which needs hardware, was read. All of it lives in the running asyncio loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from urllib.parse import unquote

from simulators import line_events as ev
from simulators.agi_client import AgiSocket, AgiStatus
from simulators.ami_actions import AmiActions
from simulators.ami_events import PbxEvents
from simulators.ami_server import AmiServer, AmiSession
from simulators.board import Board
from simulators.dahdi_lines import ALARM_NAMES, DahdiCaller, DahdiLeg, DahdiLines
from simulators.endpoints import (
    Answer,
    Behaviour,
    Leg,
    NoChannel,
    SipEndpoint,
    SipLeg,
    Unreachable,
)
from simulators.line import Layer1
from simulators.pbx_call import CallResult, PbxCall
from simulators.pbx_channel import PbxChannel, PbxTime
from simulators.pbx_dial import Inbox
from simulators.pbx_reception import Brought
from umpack import clock
from umpack.core.errors import OurFault, StateError

NO_TECHNOLOGY = 66
"""Cause of a Dial to a technology whose module is not loaded."""
NO_ENDPOINT = 3
SIP_USER_BYTES = 79
"""chan_pjsip cuts a caller's number there."""


@dataclass(frozen=True, slots=True)
class PbxPlan:
    """What does not change while a PBX runs.

    `agi` is umpack's listener, and can be None until `agi_to` is called. `ami_port` 0 takes any
    free port. `speed` of the PBX's seconds pass in a real one, in everything it times. Where the
    AGI has failed a call, `fallback` destinations are dialled in order (`{called}` is filled in),
    and a caller none of them took is released with `failure_cause`. `line_by_line` sends each line
    of the AGI environment by itself, as res_agi writes them; all at once is faster. Without a
    `fax_engine` there is no ReceiveFAX and no FAXOPT(); without `beep` there is no such sound.
    """

    agi: tuple[str, int] | None = None
    ami_port: int = 0
    ami_users: Mapping[str, str] = field(default_factory=lambda: {"umpack": "umpack"})
    speed: float = 1.0
    fallback: tuple[str, ...] = ()
    failure_cause: int = 34
    connect_limit: float = 10.0
    line_by_line: bool = False
    version: str = "22.10.1"
    caller_endpoint: str = "provider"
    fax_engine: bool = True
    beep: bool = True


class SimulatedAsterisk:
    """One PBX. `start`, then `call` as often and as much at once as wanted."""

    def __init__(self, plan: PbxPlan | None = None) -> None:
        self.plan = plan or PbxPlan()
        self.version = self.plan.version
        self.fallback = self.plan.fallback
        self.failure_cause = self.plan.failure_cause
        self.endpoints: dict[str, SipEndpoint] = {}
        self.lines: DahdiLines | None = None
        self.database: dict[tuple[str, str], str] = {}
        self.ami = AmiServer(self.plan.ami_users, AmiActions(self).table)
        self.events = PbxEvents(self.ami.wants, self.ami.publish)
        self.time: PbxTime
        self.sip_invites: deque[tuple[str, str, str]] = deque(maxlen=10_000)
        """The latest INVITEs sent: endpoint, called and calling user."""
        self._agi = self.plan.agi
        self._running = False
        self._serial = 0
        self._uniqueids = 0
        self._booted_at = 0.0
        self._channels: dict[str, PbxChannel] = {}
        self._sockets: set[AgiSocket] = set()
        self._calls: set[asyncio.Task[CallResult]] = set()

    def __repr__(self) -> str:
        state = "up" if self._running else "down"
        return f"<SimulatedAsterisk {state}, {len(self._calls)} calls, {self.ami!r}>"

    # --- life ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Boot: listen for managers. OurFault if it cannot."""
        if self._running:
            raise StateError("the simulated PBX is running already")
        if not hasattr(self, "time"):
            self.time = PbxTime(self.plan.speed)
        self._running = True
        self._booted_at = self.time.loop.time()
        await self.ami.start(port=self.plan.ami_port, booted=self._say_booted)

    async def stop(self) -> None:
        """`core stop now`: managers are told, all calls end."""
        if self._running:
            self.events.shutdown(restart=False)
        await self._end(crash=False)

    async def crash(self) -> None:
        """All connections are reset at once, and nobody is told. `start` boots it again."""
        await self._end(crash=True)

    async def __aenter__(self) -> SimulatedAsterisk:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()
        if self.lines is not None:
            self.lines.close()

    async def _end(self, *, crash: bool) -> None:
        self._running = False
        for socket in list(self._sockets):
            if crash:
                socket.cut()
        calls = list(self._calls)
        for task in calls:
            task.cancel()
        if calls:
            await asyncio.wait(calls)
        if self.lines is not None:
            self.lines.drop_calls()
        self._channels.clear()
        await self.ami.stop()
        while self._sockets:  # noqa: ASYNC110 - each says connection_lost in one of the next turns
            await asyncio.sleep(0)

    async def refuse_ami(self, *, on: bool) -> None:
        """End all manager sessions and refuse new ones; or listen again, on the same port."""
        if on:
            await self.ami.stop()
        else:
            await self.ami.start(port=self.ami.port, booted=self._say_booted)

    def _say_booted(self, session: AmiSession) -> None:
        up = int(self.uptime)
        session.offer(
            "FullyBooted",
            "Event: FullyBooted\r\nPrivilege: system,all\r\n"
            f"Uptime: {up}\r\nLastReload: {up}\r\nStatus: Fully Booted\r\n\r\n",
        )

    # --- what it has ---------------------------------------------------------------------------

    def agi_to(self, host: str, port: int) -> None:
        """From now on calls go to this AGI server."""
        self._agi = (host, port)

    @property
    def agi_url(self) -> str:
        """As the dialplan has it."""
        host, port = self._agi or ("", 0)
        return f"agi://{host}:{port}/umpack"

    def add_endpoint(
        self,
        name: str,
        behaviour: Behaviour | None = None,
        *,
        capacity: int | None = None,
        full_status: int = 486,
    ) -> SipEndpoint:
        """A SIP server dialled as `PJSIP/number@name`; it answers at once unless told otherwise."""
        endpoint = SipEndpoint(
            name, behaviour or Answer(), self.time, capacity=capacity, full_status=full_status
        )
        self.endpoints[name] = endpoint
        return endpoint

    def set_behaviour(self, name: str, behaviour: Behaviour) -> None:
        """A SIP server behaves otherwise from now on; managers hear what qualifying finds."""
        endpoint = self.endpoints.get(name)
        if endpoint is None:
            raise OurFault(f"no SIP endpoint {name!r}")
        before = endpoint.reachable
        endpoint.behaviour = behaviour
        if endpoint.reachable is not before:
            reachable = not isinstance(behaviour, Unreachable)
            self.events.contact_status(name, self.uri(name), reachable=reachable)
            state = "NOT_INUSE" if reachable else "UNAVAILABLE"
            self.events.device_state(f"PJSIP/{name}", state)

    def attach(self, board: Board, far_ends: Mapping[int, Behaviour] | None = None) -> DahdiLines:
        """Plug in a board; `far_ends` says per span how the line's other end takes calls."""
        if self.lines is not None:
            raise StateError("one board is attached already")
        self.lines = DahdiLines(board, self.time, far_ends=far_ends, tell=self._line_event)
        return self.lines

    @property
    def channels(self) -> Iterable[PbxChannel]:
        """All channels there are, oldest first."""
        return tuple(self._channels.values())

    def channel_on(self, number: int) -> PbxChannel | None:
        """The channel that sits on this B channel."""
        device = f"DAHDI/{number}"
        return next((c for c in self._channels.values() if c.device == device), None)

    @property
    def calls(self) -> int:
        """Calls in progress."""
        return len(self._calls)

    def uri(self, endpoint: str) -> str:
        """Where a SIP server would be."""
        return f"sip:{endpoint}.invalid:5060"

    def wall(self) -> float:
        """Epoch seconds, as people and `Timestamp` want them."""
        return clock.wall()

    @property
    def uptime(self) -> float:
        """Real seconds since the boot."""
        return self.time.loop.time() - self._booted_at

    # --- calls ---------------------------------------------------------------------------------

    async def call(
        self,
        called: str,
        caller: str = "",
        caller_name: str = "",
        *,
        hold: float | None = 0.0,
        hang_up_after: float | None = None,
        span: int | None = None,
        line_channel: int | None = None,
        brings: Brought = None,
    ) -> CallResult:
        """One call, from its arrival until its caller is released.

        The caller hangs up `hold` seconds after the answer (None: leaves that to the far end), or
        `hang_up_after` seconds after the beginning, answered or not. Without `span` he comes from
        a SIP provider (`caller` is then the user of his From, `%0a` and the like are decoded), with
        it from that span of the board, or from its `line_channel` alone. `brings` is what he has
        for a service of umpack. Cut short by `stop` or `crash`, it has status HANGUP and cause 0.
        """
        if not self._running:
            raise StateError("the simulated PBX is down")
        line: DahdiCaller | None = None
        if span is not None:
            found = self._lines().arrive(span, caller, called, line_channel)
            if isinstance(found, int):
                return CallResult(AgiStatus.HANGUP, found, None, False, (), None, 0.0)
            line = found
        channel = self._caller_channel(called, caller, caller_name, line)
        one = PbxCall(self, channel, hold=hold, line=line, brings=brings)
        if hang_up_after is not None:
            one.leave_after(hang_up_after)
        task = asyncio.create_task(one.run())
        self._calls.add(task)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if self._running or not task.cancelled():
                task.cancel()
                raise
            return one.cut_short()
        finally:
            self._calls.discard(task)

    async def connect(self, inbox: Inbox) -> AgiSocket | None:
        """A connection to the AGI server, or None where res_agi would report a failure."""
        if self._agi is None:
            return None
        host, port = self._agi
        try:
            async with asyncio.timeout(self.plan.connect_limit):
                _, socket = await self.time.loop.create_connection(
                    lambda: AgiSocket(inbox, self._sockets.discard), host, port
                )
        except (OSError, TimeoutError):
            return None
        self._sockets.add(socket)
        return socket

    def request(self, tech: str, resource: str, caller: PbxChannel) -> Leg | NoChannel:
        """What Dial asks a channel driver for."""
        if tech == "PJSIP":
            number, at, name = resource.rpartition("@")
            endpoint = self.endpoints.get(name if at else resource)
            if endpoint is None or not endpoint.reachable:
                return NoChannel(NO_ENDPOINT)
            device = f"PJSIP/{endpoint.name}"
            channel = self._leg_channel(f"{device}-{self._next():08x}", device, resource, caller)
            self.sip_invites.append((endpoint.name, number if at else "", caller.caller))
            return SipLeg(endpoint, channel)
        if tech == "DAHDI" and self.lines is not None:
            reserved = self.lines.reserve(resource)
            if isinstance(reserved, NoChannel):
                return reserved
            span, number = self.lines.numbers[reserved], resource.partition("/")[2]
            name = f"DAHDI/i{span}/{number}-{self._next():x}"
            channel = self._leg_channel(name, f"DAHDI/{reserved}", resource, caller)
            self.events.dahdi_channel(channel, span, reserved)
            return DahdiLeg(self.lines, reserved, channel)
        # A Local channel to a context this PBX has not is no channel, either.
        return NoChannel(0 if tech == "Local" else NO_TECHNOLOGY)

    def forget(self, channel: PbxChannel) -> None:
        """See `Exchange`."""
        self._channels.pop(channel.uniqueid, None)

    def _caller_channel(
        self, called: str, caller: str, caller_name: str, line: DahdiCaller | None
    ) -> PbxChannel:
        if line is None:
            caller = unquote(caller)[:SIP_USER_BYTES]
            device = f"PJSIP/{self.plan.caller_endpoint}"
            name = f"{device}-{self._next():08x}"
        else:
            device = f"DAHDI/{line.channel_number}"
            name = f"DAHDI/i{line.span}/{caller}-{self._next():x}"
        unique = self._unique()
        channel = PbxChannel(
            name, device, unique, unique, caller, caller_name, "from-line", called,
            self.time.loop.time(),
        )  # fmt: skip
        self._channels[unique] = channel
        return channel

    def _leg_channel(self, name: str, device: str, resource: str, caller: PbxChannel) -> PbxChannel:
        channel = PbxChannel(
            name, device, self._unique(), caller.linkedid, caller.exten, "", "from-peers",
            caller.exten, self.time.loop.time(),
            connected=caller.caller, connected_name=caller.caller_name,
            application="AppDial", data="(Outgoing Line)",
        )  # fmt: skip
        channel.variables["DIALEDPEERNUMBER"] = resource
        self._channels[channel.uniqueid] = channel
        self.events.channel("Newchannel", channel)
        return channel

    def _lines(self) -> DahdiLines:
        if self.lines is None:
            raise OurFault("no board is attached")
        return self.lines

    def _next(self) -> int:
        self._serial += 1
        return self._serial - 1

    def _unique(self) -> str:
        self._uniqueids += 1
        return f"{int(self.wall())}.{self._uniqueids - 1}"

    # --- lines ---------------------------------------------------------------------------------

    def accident(self, happen: Callable[[Board, float], list[ev.Event]]) -> None:
        """Do something to the board, such as `lambda board, now: board.defect(now, 1, LOS)`."""
        lines = self._lines()
        lines.happen(happen(lines.board, self.time.now()))

    def _line_event(self, event: ev.Event) -> None:
        match event:
            case ev.AlarmRaised(span=span, kind=kind) if kind is not Layer1.RECOVERING:
                self.events.span_alarm(span, ALARM_NAMES[kind])
                self._channel_alarms(span, ALARM_NAMES[kind])
            case ev.AlarmCleared(span=span):
                self.events.span_alarm(span, None)
                self._channel_alarms(span, None)
            case ev.ChannelMoved(span=span, old=old, new=new):
                if channel := self.channel_on(old):
                    channel.device = f"DAHDI/{new}"
                    self.events.dahdi_channel(channel, span, new)
            case _:
                pass

    def _channel_alarms(self, span: int, alarm: str | None) -> None:
        # During attach() the board cannot speak yet, so `lines` is there whenever it does.
        for number, on in self._lines().numbers.items():
            if on == span:
                self.events.channel_alarm(number, alarm)
