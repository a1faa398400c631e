from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from blockbuster import blockbuster_ctx

from drivers.asterisk.ami import (
    AmiAddress,
    AmiEvent,
    AmiLimits,
    AmiLink,
    AmiRefused,
    AmiUnsendable,
    Backoff,
    EventsMissed,
    LinkDown,
    LinkUp,
    StreamItem,
)
from umpack.core.errors import PeerGone, PeerTimeout

Action = dict[str, str]
Deed = Callable[["Peer", Action], Awaitable[None]]
LIMITS = AmiLimits(connect=1, login=1, action=1, collect=1, write=1, ping_every=30, ping=0.3)
FAST = Backoff(initial=0.01, maximum=0.02, refused=0.05)


class Peer:
    """One accepted connection of `Pbx`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, text: str) -> None:
        self.writer.write(text.replace("\n", "\r\n").encode("latin-1"))
        await self.writer.drain()

    async def answer(self, action: Action, kind: str = "Success", more: str = "") -> None:
        await self.send(f"Response: {kind}\nActionID: {action['ActionID']}\n{more}\n")

    async def read_action(self) -> Action:
        action: Action = {}
        while line := (await self.reader.readline()).decode().strip():
            name, _, value = line.partition(": ")
            action[name] = value
        if not action:
            raise ConnectionError
        return action

    def hang_up(self) -> None:
        self.writer.transport.abort()


class Pbx:
    """A TCP peer that speaks AMI and misbehaves on demand; `deeds` replaces answers by action."""

    def __init__(self) -> None:
        self.greeting = "Asterisk Call Manager/11.0.0\n"
        self.on_connect: Callable[[Peer], Awaitable[bool]] | None = None
        self.deeds: dict[str, Deed] = {}
        self.actions: list[Action] = []
        self.peers: list[Peer] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        self.peers.append(peer)
        try:
            if self.on_connect is not None and not await self.on_connect(peer):
                return
            await peer.send(self.greeting)
            while True:
                action = await peer.read_action()
                self.actions.append(action)
                deed = self.deeds.get(action["Action"])
                if deed is not None:
                    await deed(peer, action)
                elif action["Action"] == "Logoff":
                    await peer.answer(action, "Goodbye")
                    return
                else:
                    await peer.answer(action)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()


class Owner:
    """A link with everything its stream told, in order."""

    def __init__(self, link: AmiLink, pbx: Pbx) -> None:
        self.link, self.pbx = link, pbx
        self.seen: list[StreamItem] = []

    async def until(self, kind: type | str, limit: float = 5) -> StreamItem:
        """Read on to the first item of a kind, or event of a name."""
        async with asyncio.timeout(limit):
            async for item in self.link.events:
                self.seen.append(item)
                named = isinstance(item, AmiEvent) and item.name == kind
                if named if isinstance(kind, str) else isinstance(item, kind):
                    return item
        raise AssertionError(f"stream ended before {kind}")


@asynccontextmanager
async def linked(
    pbx: Pbx | None = None,
    *,
    limits: AmiLimits = LIMITS,
    events: frozenset[str] = frozenset({"Hangup"}),
    capacity: int = 10_000,
) -> AsyncIterator[Owner]:
    pbx = pbx or Pbx()
    before = set(threading.enumerate())
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(pbx.serve(reader, writer))
        tasks.add(task)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    pbx.port = server.sockets[0].getsockname()[1]
    link = AmiLink(
        AmiAddress("127.0.0.1", pbx.port, "umpack", "secret"),
        events=events,
        limits=limits,
        backoff=FAST,
        rng=random.Random(1),
        capacity=capacity,
    )
    with blockbuster_ctx():
        running = asyncio.create_task(link.run())
        try:
            yield Owner(link, pbx)
        finally:
            running.cancel()
            await asyncio.wait((running,), timeout=8)
            assert running.cancelled()
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    # Nothing of the link may outlive it.
    assert set(threading.enumerate()) <= before


async def test_log_in_filter_act_and_log_off() -> None:
    async with linked(events=frozenset({"Hangup", "FullyBooted"})) as owner:
        assert await owner.until(LinkUp) == LinkUp("11.0.0", True)
        answer = await owner.link.action("Hangup", {"Channel": "PJSIP/a-1"})
        assert answer["Response"] == "Success"
        assert owner.link.version == "11.0.0"
        assert owner.link.counters.sessions == 1
    actions = owner.pbx.actions
    assert [a["Action"] for a in actions] == [
        "Login", "Filter", "Filter", "Hangup", "Logoff",
    ]  # fmt: skip
    assert actions[0]["Secret"] == owner.link.address.secret
    assert actions[1]["MatchCriteria"] == "action(include),name(FullyBooted)"
    assert len({a["ActionID"] for a in actions}) == len(actions)
    assert "secret" not in repr(owner.link.address).replace("secret=", "")


async def test_old_asterisk_gets_one_regular_expression() -> None:
    pbx = Pbx()
    pbx.greeting = "Asterisk Call Manager/5.0.1\n"
    async with linked(pbx, events=frozenset({"Hangup", "Alarm"})) as owner:
        await owner.until(LinkUp)
    assert pbx.actions[1]["Filter"] == "^Event: (Alarm|Hangup)[[:space:]]"


async def test_filter_without_permission_is_done_here() -> None:
    pbx = Pbx()

    async def refuse(peer: Peer, action: Action) -> None:
        await peer.answer(action, "Error", "Message: Permission denied\n")

    async def chatter(peer: Peer, action: Action) -> None:
        await peer.send("Event: VarSet\nValue: x\n\nEvent: Hangup\nCause: 16\n\n")
        await peer.answer(action)

    pbx.deeds = {"Filter": refuse, "Chatter": chatter}
    async with linked(pbx) as owner:
        assert await owner.until(LinkUp) == LinkUp("11.0.0", False)
        await owner.link.action("Chatter")
        assert (await owner.until(AmiEvent))["Cause"] == "16"  # type: ignore[index]
        assert owner.link.counters.skipped == 1


async def test_error_answer_is_refused() -> None:
    pbx = Pbx()

    async def refuse(peer: Peer, action: Action) -> None:
        await peer.answer(action, "Error", "Message: No such channel\n")

    pbx.deeds = {"Hangup": refuse, "PJSIPShowContacts": refuse}
    async with linked(pbx) as owner:
        await owner.until(LinkUp)
        with pytest.raises(AmiRefused, match="Hangup: No such channel"):
            await owner.link.action("Hangup", {"Channel": "x"})
        with pytest.raises(AmiRefused, match="No such channel"):
            await owner.link.collect("PJSIPShowContacts")
        with pytest.raises(AmiUnsendable):
            await owner.link.action("Hangup", {"Channel": "x\r\nAction: Originate"})
        await owner.link.action("Ping")
    assert [a["Action"] for a in pbx.actions][-3:] == ["PJSIPShowContacts", "Ping", "Logoff"]


async def test_lists_are_collected_between_other_events() -> None:
    pbx = Pbx()

    async def channels(peer: Peer, action: Action) -> None:
        mark = f"ActionID: {action['ActionID']}\n"
        await peer.answer(action, "Success", "EventList: start\n")
        await peer.send(f"Event: CoreShowChannel\n{mark}Channel: a\n\n")
        await peer.send("Event: Hangup\nCause: 16\n\n")
        await peer.send(f"Event: CoreShowChannel\n{mark}Channel: b\n\n")
        await peer.send(f"Event: CoreShowChannelsComplete\n{mark}EventList: Complete\n\n")

    async def spans(peer: Peer, action: Action) -> None:
        mark = f"ActionID: {action['ActionID']}\n"
        await peer.answer(action)
        await peer.send(f"Event: PRIShowSpans\n{mark}Span: 1\n\n")
        await peer.send(f"Event: PRIShowSpansComplete\n{mark}Items: 1\n\n")

    async def cut(peer: Peer, action: Action) -> None:
        await peer.answer(action)
        await peer.send(f"Event: X\nActionID: {action['ActionID']}\nEventList: cancelled\n\n")

    pbx.deeds = {"CoreShowChannels": channels, "PRIShowSpans": spans, "Cut": cut}
    async with linked(pbx) as owner:
        await owner.until(LinkUp)
        both = await asyncio.gather(
            owner.link.collect("CoreShowChannels"), owner.link.collect("PRIShowSpans")
        )
        assert [item["Channel"] for item in both[0]] == ["a", "b"]
        assert [item["Span"] for item in both[1]] == ["1"]
        await owner.until("Hangup")
        with pytest.raises(AmiRefused, match="cancelled"):
            await owner.link.collect("Cut")


async def test_answers_out_of_order_duplicate_and_unknown() -> None:
    pbx = Pbx()
    first: list[Action] = []

    async def hold(peer: Peer, action: Action) -> None:
        first.append(action)
        if len(first) == 3:
            await peer.send("Response: Success\nActionID: stranger\n\nResponse: Success\n\n")
            for held in reversed(first):
                for _ in range(2):
                    await peer.answer(held, more=f"Value: {held['Variable']}\n")

    pbx.deeds = {"Getvar": hold}
    async with linked(pbx) as owner:
        await owner.until(LinkUp)
        answers = await asyncio.gather(
            *(owner.link.action("Getvar", {"Variable": str(n)}) for n in range(3))
        )
        assert [answer["Value"] for answer in answers] == ["0", "1", "2"]
        await owner.link.action("Ping")
        assert owner.link.counters.strays == 5


async def test_no_answer_in_time_and_a_late_one() -> None:
    pbx = Pbx()
    held: list[Action] = []

    async def silent(peer: Peer, action: Action) -> None:
        held.append(action)

    pbx.deeds = {"Slow": silent}
    async with linked(pbx) as owner:
        await owner.until(LinkUp)
        with pytest.raises(PeerTimeout, match=r"Slow: no answer within 0\.05 s"):
            await owner.link.action("Slow", timeout=0.05)
        with pytest.raises(PeerTimeout):
            await owner.link.collect("Slow", timeout=0.05)
        await pbx.peers[0].answer(held[0])
        await owner.link.action("Ping")
        assert owner.link.counters.strays == 1


async def test_drop_in_mid_action_then_reconnect() -> None:
    pbx = Pbx()

    async def drop(peer: Peer, action: Action) -> None:
        await peer.send(f"Response: Success\nActionID: {action['ActionID'][:3]}")
        peer.hang_up()

    pbx.deeds = {"Drop": drop}
    async with linked(pbx) as owner:
        await owner.until(LinkUp)
        with pytest.raises(PeerGone, match="Drop"):
            await owner.link.action("Drop")
        await owner.until(LinkDown)
        with pytest.raises(PeerGone, match="no AMI link"):
            await owner.link.action("Ping")
        await owner.until(LinkUp)
        await owner.link.action("Ping")
        assert owner.link.counters.sessions == 2


async def test_cancelled_action_leaves_the_link_up() -> None:
    pbx = Pbx()
    held: list[Action] = []
    asked = asyncio.Event()

    async def silent(peer: Peer, action: Action) -> None:
        held.append(action)
        asked.set()

    pbx.deeds = {"Slow": silent}
    async with linked(pbx) as owner:
        await owner.until(LinkUp)
        task = asyncio.create_task(owner.link.action("Slow"))
        await asked.wait()
        task.cancel()
        await asyncio.wait((task,))
        await pbx.peers[0].answer(held[0])
        await owner.link.action("Ping")


async def _after(peer: Peer, text: str, *, stall: bool) -> bool:
    await peer.send(text)
    if stall:
        await peer.reader.read()
    return False


@pytest.mark.parametrize(
    ("text", "stall", "reason"),
    [
        ("", False, "closed"),
        ("Asterisk Call Manager/11.0.0\n", False, "Login"),
        ("SSH-2.0-OpenSSH_9.2\n", True, "wrong greeting"),
        ("\x00\xff\x13garbage", True, "NUL"),
        ("Asterisk Call Ma", True, "no greeting within 0.2 s"),
        ("Asterisk Call Manager/11.0.0\nResponse: Succ", True, "Login: no answer within 0.2 s"),
    ],
)
async def test_bad_start_is_told_and_tried_again(text: str, stall: bool, reason: str) -> None:
    pbx = Pbx()

    async def start_badly(peer: Peer) -> bool:
        return len(pbx.peers) > 2 or await _after(peer, text, stall=stall)

    pbx.on_connect = start_badly
    async with linked(pbx, limits=AmiLimits(connect=0.2, login=0.2, write=0.5)) as owner:
        down = await owner.until(LinkDown)
        assert isinstance(down, LinkDown)
        if reason not in {"closed", "Login"}:  # a reset may come before or after the write
            assert reason in down.reason
        await owner.until(LinkUp)


async def test_connection_refused_is_told_once() -> None:
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    before = set(threading.enumerate())
    link = AmiLink(
        AmiAddress("127.0.0.1", port, "u", "s"), events=frozenset(), limits=LIMITS, backoff=FAST
    )
    running = asyncio.create_task(link.run())
    await asyncio.sleep(0.2)
    running.cancel()
    await asyncio.wait((running,))
    told = [item async for item in link.events]
    assert [type(item) for item in told] == [LinkDown, LinkDown]
    assert "cannot connect" in told[0].reason  # type: ignore[union-attr]
    assert told[1] == LinkDown("stopped")
    assert set(threading.enumerate()) <= before


async def test_wrong_secret_is_told_and_tried_again() -> None:
    pbx = Pbx()
    attempts = 0

    async def login(peer: Peer, action: Action) -> None:
        nonlocal attempts
        attempts += 1
        if attempts > 2:
            await peer.answer(action)
        else:
            await peer.answer(action, "Error", "Message: Authentication failed\n")
            peer.hang_up()

    pbx.deeds = {"Login": login}
    async with linked(pbx) as owner:
        down = await owner.until(LinkDown)
        assert down == LinkDown("login of 'umpack' refused: Authentication failed")
        await owner.until(LinkUp)
        assert attempts == 3
        assert [type(item) for item in owner.seen] == [LinkDown, LinkUp]


async def test_half_dead_peer_is_found_by_ping() -> None:
    pbx = Pbx()
    answered = 0

    async def twice(peer: Peer, action: Action) -> None:
        nonlocal answered
        answered += 1
        if answered <= 2:
            await peer.answer(action)

    pbx.deeds = {"Ping": twice}
    limits = AmiLimits(connect=1, login=1, ping_every=0.05, ping=0.2)
    async with linked(pbx, limits=limits) as owner:
        await owner.until(LinkUp)
        assert await owner.until(LinkDown) == LinkDown("Ping: no answer within 0.2 s")
        await owner.until(LinkUp)
    assert answered >= 3


async def test_garbage_after_login_ends_the_session() -> None:
    async with linked() as owner:
        await owner.until(LinkUp)
        await owner.pbx.peers[0].send("noise\n\n" * 5 + "Event: Hangup\n\n")
        await owner.until("Hangup")
        await owner.pbx.peers[0].send("noise\n\n" * 30)
        assert await owner.until(LinkDown) == LinkDown("AMI: 21 garbled messages in a row")
        await owner.until(LinkUp)
        assert owner.link.counters.garbled == 26


async def test_flood_while_the_owner_sleeps_is_bounded() -> None:
    total = 50_000
    pbx = Pbx()

    async def flood(peer: Peer, action: Action) -> None:
        for start in range(0, total, 500):
            await peer.send(
                "".join(f"Event: Hangup\nN: {n}\n\n" for n in range(start, start + 500))
            )
        await peer.answer(action)

    pbx.deeds = {"Flood": flood}
    async with linked(pbx, capacity=1_000) as owner:
        await owner.until(LinkUp)
        await owner.link.action("Flood", timeout=30)
        assert len(owner.link.events) == 1_000
        gap = await owner.until(EventsMissed)
        assert gap == EventsMissed(total - 1_000)
        numbers = [int(item["N"]) for item in owner.seen if isinstance(item, AmiEvent)]
        assert numbers == list(range(1_000))
        assert owner.link.counters.missed == total - 1_000
        assert owner.link.counters.events == total


async def test_early_event_follows_link_up_and_stream_ends() -> None:
    pbx = Pbx()

    async def login(peer: Peer, action: Action) -> None:
        await peer.answer(action)
        await peer.send("Event: FullyBooted\nStatus: Fully Booted\n\n")

    pbx.deeds = {"Login": login}
    async with linked(pbx, events=frozenset({"FullyBooted"})) as owner:
        await owner.until("FullyBooted")
        assert [type(item) for item in owner.seen] == [LinkUp, AmiEvent]
    assert [item async for item in owner.link.events] == [LinkDown("stopped")]


async def test_peer_that_takes_no_bytes_is_given_up() -> None:
    pbx = Pbx()

    async def deaf(peer: Peer, action: Action) -> None:
        await peer.answer(action)
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(30)

    pbx.deeds = {"Deaf": deaf}
    limits = AmiLimits(write=0.2, action=20, ping_every=30)
    async with linked(pbx, limits=limits) as owner:
        await owner.until(LinkUp)
        await owner.link.action("Deaf")
        block = {"Variable": ["x" * 1000] * 100}
        waiting = [owner.link.action("Setvar", block) for _ in range(150)]
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(result, PeerGone) for result in results)
        down = await owner.until(LinkDown)
        assert down == LinkDown("the peer took no bytes for 0.2 s")


def test_names_of_events_cannot_change_the_filter() -> None:
    for name in ("a),action(exclude", "a b", "", "a\r\nX: y", "a|.*"):
        with pytest.raises(AmiUnsendable):
            AmiLink(AmiAddress("127.0.0.1", 1, "u", "s"), events=frozenset({name}))


def test_backoff_doubles_to_its_bound_and_is_slow_after_a_refusal() -> None:
    rng = random.Random(3)
    backoff = Backoff()
    for failures in range(1, 200):
        whole = min(30.0, 0.2 * 2 ** (failures - 1))
        assert whole / 2 <= backoff.delay(failures, rng) <= whole
    assert backoff.delay(1, rng, refused=True) >= 2.5
