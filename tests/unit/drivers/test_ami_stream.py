from __future__ import annotations

import asyncio
import threading

from drivers.asterisk.ami_stream import EventsMissed, EventStream, LinkDown, LinkUp, StreamItem
from drivers.asterisk.ami_wire import AmiEvent


def events(first: int, count: int) -> list[AmiEvent]:
    return [AmiEvent({"Event": "E", "N": str(n)}) for n in range(first, first + count)]


def stream(capacity: int) -> EventStream:
    made = EventStream(capacity)
    made.bind(asyncio.get_running_loop())
    return made


def brief(items: list[StreamItem]) -> list[object]:
    return [int(item["N"]) if isinstance(item, AmiEvent) else item for item in items]


async def take(made: EventStream) -> list[object]:
    made.end()
    return brief([item async for item in made])


UP = LinkUp("11.0.0", True)


async def test_early_events_come_behind_link_up() -> None:
    made = stream(10)
    made.put(events(0, 2))
    made.notice(UP)
    made.put(events(2, 1))
    assert await take(made) == [UP, 0, 1, 2]


async def test_overflow_is_counted_where_the_gap_is() -> None:
    made = stream(5)
    made.notice(UP)
    made.put(events(0, 10))
    made.put(events(10, 3))
    assert len(made) == 5
    first = [await anext(made) for _ in range(3)]
    made.put(events(20, 1))
    assert brief(first) == [UP, 0, 1]
    assert await take(made) == [2, 3, EventsMissed(9), 20]
    assert made.missed == 9


async def test_gap_is_told_when_nothing_follows() -> None:
    made = stream(3)
    made.notice(UP)
    made.put(events(0, 6))
    assert await take(made) == [UP, 0, 1, EventsMissed(4)]


async def test_notice_finds_room_in_a_full_stream() -> None:
    made = stream(4)
    made.notice(UP)
    made.put(events(0, 10))
    for number in range(50):
        made.notice(LinkDown(str(number)))
        made.notice(UP)
        assert len(made) <= 5
    items = await take(made)
    assert items[-1] == UP
    assert made.missed == 10
    assert sum(item.count for item in items if isinstance(item, EventsMissed)) <= 10


async def test_waiting_owner_is_woken_from_another_thread() -> None:
    made = stream(100_000)
    made.notice(UP)

    def produce() -> None:
        for number in range(200):
            made.put(events(number * 10, 10))

    thread = threading.Thread(target=produce)
    seen: list[object] = []
    thread.start()
    async for item in made:
        seen += brief([item])
        if len(seen) == 2001:
            break
    thread.join()
    assert seen == [UP, *range(2000)]


async def test_owner_of_a_full_stream_lets_the_loop_breathe() -> None:
    made = stream(10_000)
    made.notice(UP)
    made.put(events(0, 5_000))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await take(made)
    task.cancel()
    assert turns >= 40
