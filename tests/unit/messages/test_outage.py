"""The mail system is away for a week, and umpack is killed in the midst of things."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

import pytest
from loguru import logger

from simulators.mail import Act, MailServer, Script, Then
from tests.ports import free_port
from tests.unit.messages.offices import (
    in_memory,
    made,
    mail_of,
    office,
    plan,
    received,
    settle,
    spoken,
    tiff,
)
from tests.unit.messages.receptions import START, Time
from umpack import clock
from umpack.messages.fault_points import FaultPoint, FaultPoints
from umpack.messages.message import EngineFacts
from umpack.messages.office import Messages
from umpack.messages.spool import Spool

HOUR, WEEK = 3600.0, 7 * 86_400.0
ROOT = Path(__file__).parents[3]


async def until(messages: Messages, time: Time, end: float) -> list[tuple[float, str]]:
    """Let time pass, from one thing to do to the next; when which alarms began."""
    seen: list[tuple[float, str]] = []
    while True:
        await settle(messages)
        before = {alarm.kind for alarm in messages.status.alarms} if messages.status else set()
        status = await messages.look()
        seen += [(time.now, a.kind) for a in status.alarms if a.kind not in before]
        times = [messages.desk.next_at, messages.mailer.next_at, end]
        oldest = await messages._oldest(time.now)
        if oldest is not None:
            times.append(oldest + messages.plan.retry.late_after)
        coming = [at for at in times if at is not None and at > time.now]
        if time.now >= end:
            return seen
        time.now = min(coming)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("servers", [1, 2])
async def test_a_week_without_a_mail_system(servers: int) -> None:
    time, sent = Time(START), []
    with in_memory() as directory:
        ports = [free_port() for _ in range(servers)]
        async with office(directory, *ports, now=time, connections=1, per_server=1) as messages:
            alarms = []
            for number in range(28):
                sent.append((await spoken(messages, number)).message_id)
                alarms += await until(messages, time, START + (number + 1) * WEEK / 28)
            late = [at for at, kind in alarms if kind == "late"]
            assert late == [START + 600.0]  # once, and it stays
            assert "mail system" in {kind for _, kind in alarms}
            status = await messages.look()
            assert {a.kind for a in status.alarms} >= {"late", "mail system", "server"}
            assert status.health is not None
            assert (status.health.queue, status.health.dead_letters) == (28, 0)
            tries = [m.recipients[0].tries for m in await messages.spool.messages()]
            assert sum(tries) > WEEK / HOUR  # it was looked for all the time, by few
            assert max(tries[:14]) < 100
            async with MailServer(port=ports[-1]) as server:
                back = time.now
                seen = await until(messages, time, back + 1200.0)
                assert seen == []
                order = [one.message_id for one in server.accepted]
                assert sorted(order) == sorted(sent)
                # One probe may go before the others; from then on by age.
                assert order[1:] == [id_ for id_ in sent if id_ != order[0]]
                assert messages.mailer.away_since is None
                left = (await messages.look()).alarms
                assert [alarm.kind for alarm in left] == ["server"] * (servers - 1)


async def test_one_that_a_server_cannot_bear_does_not_hold_up_the_others() -> None:
    time = Time(START)
    crash = Act("", then=Then.RESET)
    with in_memory() as directory:
        async with (
            MailServer(Script({"RCPT bad@site.test": crash})) as server,
            office(directory, server.port, now=time) as messages,
        ):
            bad = await spoken(messages, 0)
            await messages.spool.address(bad.id, ["bad@site.test"])
            for number in range(1, 30):
                await spoken(messages, number)
                await until(messages, time, time.now + 60.0)
            assert messages.mailer.away_since is None
            assert len(server.accepted) == 29


async def test_four_xx_for_days_is_a_dead_letter_in_the_end() -> None:
    time = Time(START)
    with in_memory() as directory:
        async with (
            MailServer(Script({"RCPT": "452 4.2.2 mailbox full"})) as server,
            office(directory, server.port, now=time) as messages,
        ):
            message = await spoken(messages)
            alarms = await until(messages, time, START + 6 * 86_400.0)
            record = await messages.spool.message(message.id)
            assert record.state.value == "dead letter"
            assert [kind for _, kind in alarms] == ["late", "dead letters"]
            dead = next(at for at, kind in alarms if kind == "dead letters")
            assert dead == pytest.approx(START + 5 * 86_400.0, abs=1.0)
            assert 100 < record.recipients[0].tries < 200
            assert server.accepted == []


# -- killed ---------------------------------------------------------------------------------------


class KilledAt(FaultPoints):
    """Ends the process when `point` is reached for the `nth` time."""

    def __init__(self, point: FaultPoint, nth: int) -> None:
        self._point, self._left = point, nth

    def reach(self, point: FaultPoint) -> None:
        if point is self._point:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


async def live(directory: Path, port: int, first: int, faults: FaultPoints) -> None:
    """Receives five messages one by one, and says which were promised."""

    def spool(*arguments: object, **more: object) -> Spool:
        return Spool(*arguments, quiet=0.0, faults=faults, **more)  # type: ignore[arg-type]

    logger.remove()
    messages = made(plan(directory, port), clock.now, spool=spool)
    await messages.open()
    await messages.start()
    for number in range(first, first + 5):
        if number % 5 == 3:
            message = await received(messages, number, tiff())
        elif number % 5 == 4:
            message = await received(messages, number, engine=EngineFacts("FAILED"))
        else:
            message = await spoken(messages, number)
        print(f"committed {message.message_id}", flush=True)
    await asyncio.sleep(0.6)
    print("alive", flush=True)
    await messages.close()


async def killed(directory: Path, port: int, first: int, point: str, nth: int) -> list[str]:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.unit.messages.test_outage",
        str(directory), str(port), str(first), point, str(nth),
        stdout=asyncio.subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    out, _ = await child.communicate()
    assert child.returncode in (-signal.SIGKILL, 0)
    lines = out.decode().splitlines()
    return [*lines, "survived"] if child.returncode == 0 else lines


# The others are walked through in test_spool_crash.py: nothing here comes by them.
_ELSEWHERE = ("PURGE", "ADOPT_ROW", "ADOPT_PLACED", "RECAST")
POINTS = [point for point in FaultPoint if not point.name.startswith(_ELSEWHERE)]


async def afterwards(directory: Path, server: MailServer, promised: list[str]) -> None:
    """Nothing is lost, and what came twice came under one id with the same bytes."""
    time = Time(clock.now())
    async with office(directory, server.port, now=time) as messages:
        for _ in range(4):
            await settle(messages)
            time.now += 1000.0
        still = await messages.spool.open_calls()
        assert (still.without_message, still.without_end) == ((), ())
        records = await messages.spool.messages(1000)
        calls = [one.call.call for one in records]
        assert len(set(calls)) == len(calls)
        arrived = {one.message_id for one in server.accepted}
        for one in records:
            kept = one.original is not None
            assert (one.message_id in arrived) >= kept, one
        by_id = {one.message_id: one for one in records}
        for line in promised:
            word, _, id_ = line.partition(" ")
            assert word != "committed" or id_ in by_id
        bodies = {one.message_id: one.body for one in server.accepted}
        assert [one for one in server.accepted if bodies[one.message_id] != one.body] == []
        assert all(mail_of(one)["X-Umpack-Id"] for one in server.accepted)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.name.lower())
async def test_killed_at_a_step(point: FaultPoint) -> None:
    with in_memory() as directory:
        async with MailServer() as server:
            promised = await killed(directory, server.port, 0, point.name, 2)
            early = point in (FaultPoint.ADOPT_BEGUN, FaultPoint.ADOPT_DONE)
            assert "survived" not in promised or early, "never reached"
            await afterwards(directory, server, promised)


@pytest.mark.timeout(300)
async def test_killed_again_and_again() -> None:
    dice = random.Random(7)
    kills = int(os.environ.get("UMPACK_KILLS", "12"))
    with in_memory() as directory:
        async with MailServer() as server:
            promised = []
            for number in range(kills):
                point = dice.choice(POINTS).name
                promised += await killed(
                    directory, server.port, 100 * number, point, dice.randint(1, 6)
                )
            await afterwards(directory, server, promised)
            copies = [server.copies(id_) for id_ in {one.message_id for one in server.accepted}]
            assert sum(copies) > kills


def main(directory: str, port: str, first: str, point: str, nth: str) -> None:
    faults = KilledAt(FaultPoint[point], int(nth))
    asyncio.run(live(Path(directory), int(port), int(first), faults))


if __name__ == "__main__":
    main(*sys.argv[1:])
