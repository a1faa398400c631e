"""Whole tries over several servers: who is asked, in which order, and that no end is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import dns.asyncresolver
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.mail import DOT, GREETING, Act, MailServer, Script, Then
from simulators.names import Fails, NameServer, Records
from umpack.core.errors import ConfigError
from umpack.messages.circuits import CircuitPolicy, CircuitState
from umpack.messages.letter import (
    Address,
    Deferred,
    Delivered,
    Delivery,
    Letter,
    LetterError,
    Refused,
    Uncertain,
)
from umpack.messages.relays import Manner, Order, Target, Tls
from umpack.messages.retry import GiveUp, RetryPolicy, TryAt, decide
from umpack.messages.transaction import Limits
from umpack.messages.transport import MAX_CIRCUITS, Slots, Transport, TransportPlan

ANN, BOB, CID = (Address(f"{name}@users.test") for name in ("ann", "bob", "cid"))
PLAIN = Manner(Tls.NEVER)
SLOW = Limits().scaled(1 / 50)
SENDER = Address("umpack@umpack.test")
End = TypeVar("End", Delivered, Deferred, Refused, Uncertain)


@dataclass
class Clock:
    """Seconds that pass when told."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Site:
    """Some mail servers and a transport that has them as relays."""

    servers: Sequence[MailServer]
    transport: Transport
    clock: Clock

    async def send(self, *recipients: Address, number: int = 1, **more: Any) -> list[Delivery]:
        wanted = recipients or (ANN,)
        ends = await self.transport.deliver(letter(number, wanted), wanted, **more)
        assert list(ends) != [] and set(ends) == set(wanted)  # noqa: PT018
        return [ends[one] for one in wanted]

    def label(self, number: int) -> str:
        return label(self.servers[number])

    def copies(self) -> list[int]:
        return [len(server.accepted) for server in self.servers]


def label(server: MailServer) -> str:
    return f"127.0.0.1[127.0.0.1]:{server.port}"


def letter(number: int = 1, recipients: Sequence[Address] = (ANN,), size: int = 10) -> Letter:
    message_id = f"<{number}@umpack.test>"
    body = f"Message-ID: {message_id}\r\nDate: today\r\n\r\n".encode() + b"x" * size
    return Letter(message_id, SENDER, tuple(recipients), body)


def unconfigured() -> dns.asyncresolver.Resolver:
    return dns.asyncresolver.Resolver(configure=False)


@asynccontextmanager
async def site(
    *scripts: Script | None, order: Order = Order.ORDERED, **plan: Any
) -> AsyncIterator[Site]:
    """None is a server that is switched off."""
    async with AsyncExitStack() as stack:
        servers = []
        for script in scripts:
            server = MailServer(script)
            if script is None:
                async with server:
                    pass
            else:
                await stack.enter_async_context(server)
            servers.append(server)
        relays = tuple(Target("127.0.0.1", server.port, PLAIN) for server in servers)
        clock = Clock()
        chosen = TransportPlan("me.test", relays, order, **{"limits": SLOW, **plan})
        yield Site(servers, Transport(chosen, unconfigured(), clock, random.Random(1)), clock)


def the(kind: type[End], end: Delivery) -> End:
    assert isinstance(end, kind), end
    return end


# Which server


async def test_ordered_relays_always_begin_with_the_first() -> None:
    async with site(Script(), Script()) as here:
        for number in range(4):
            (end,) = await here.send(number=number)
            assert the(Delivered, end).server == here.label(0)
        assert here.copies() == [4, 0]


async def test_round_robin_takes_turns() -> None:
    async with site(Script(), Script(), Script(), order=Order.ROUND_ROBIN) as here:
        for number in range(9):
            await here.send(number=number)
        assert here.copies() == [3, 3, 3]


@pytest.mark.parametrize(
    "script",
    [
        None,
        Script({GREETING: "554 5.3.2 not today"}),
        Script({GREETING: "421 4.3.2 full"}),
        Script({GREETING: Act(then=Then.CLOSE)}),
        Script({"EHLO": "451 later"}),
        Script({"MAIL": "451 later"}),
        Script({"RCPT": "451 later"}),
        Script({"DATA": Act(then=Then.RESET)}),
        Script({DOT: "451 later"}),
    ],
)
async def test_what_is_not_final_goes_to_the_next_server(script: Script | None) -> None:
    async with site(script, Script()) as here:
        (end,) = await here.send()
        assert the(Delivered, end).server == here.label(1)
        assert here.copies() == [0, 1]


async def test_a_refusal_is_final_and_the_next_is_not_asked() -> None:
    async with site(Script({"RCPT": "550 5.1.1 who?"}), Script()) as here:
        (end,) = await here.send()
        assert the(Refused, end).code == 550
        assert here.copies() == [0, 0]


async def test_when_no_server_is_left_the_reasons_of_all_are_told() -> None:
    async with site(None, Script({GREETING: "554 no"}), Script({"RCPT": "450 later"})) as here:
        end = the(Deferred, (await here.send())[0])
        assert end.reached
        for number, why in enumerate(("connecting", "greeting: 554 no", "RCPT: 450 later")):
            assert f"{here.label(number)}: {why}" in end.why
        assert end.retry_after is None


async def test_not_more_sessions_and_servers_than_told() -> None:
    later = Script({"RCPT": "450 later"})
    async with site(later, later, later) as here:
        await here.send()
        assert [server.connections for server in here.servers] == [1, 1, 0]
    async with site(None, None, Script(), most_servers=2) as here:
        end = the(Deferred, (await here.send())[0])
        assert not end.reached
        assert here.servers[2].connections == 0


# Scenario 1: the connection is lost after the final dot


async def test_after_an_uncertain_end_the_same_server_gets_the_same_message() -> None:
    lost = Act(then=Then.RESET, stored=True)
    async with site(Script({DOT: [lost, "250 ok"]}), Script(), order=Order.ROUND_ROBIN) as here:
        end = the(Uncertain, (await here.send())[0])
        assert end.server == here.label(0)
        assert here.copies() == [1, 0]
        (end2,) = await here.send(uncertain={ANN: end.server})
        assert the(Delivered, end2).server == here.label(0)
        assert here.copies() == [2, 0]
        first, second = here.servers[0].accepted
        assert first.message_id == second.message_id
        assert first.body == second.body


async def test_the_same_server_first_even_while_it_rests_then_the_others() -> None:
    async with site(None, Script(), circuits=CircuitPolicy(failures=1)) as here:
        await here.send()
        assert here.transport.circuits.of(here.label(0)).state is CircuitState.OPEN
        (end,) = await here.send(uncertain={ANN: here.label(0)})
        assert the(Delivered, end).server == here.label(1)
        # It was tried: its second rest is longer.
        assert here.transport.circuits.of(here.label(0)).wait(here.clock.now) == 60


async def test_a_server_that_is_none_of_ours_any_more() -> None:
    async with site(Script()) as here:
        (end,) = await here.send(uncertain={ANN: "gone[127.0.0.1]:25"})
        assert the(Delivered, end).server == here.label(0)


async def test_each_recipient_by_what_is_known_of_it() -> None:
    async with site(Script(), Script()) as here:
        ends = await here.send(ANN, BOB, uncertain={BOB: here.label(1)})
        assert [the(Delivered, end).server for end in ends] == [here.label(0), here.label(1)]


async def test_250_after_90_seconds_makes_one_copy() -> None:
    slow = Act("250 2.0.0 Ok: queued as S", 90 / 50)
    async with site(Script({DOT: slow}), Script()) as here:
        (end,) = await here.send()
        assert the(Delivered, end).queue_id == "S"
        assert here.copies() == [1, 0]


# Scenario 2: one mail, three recipients


async def test_three_recipients_three_ends_and_only_the_second_is_asked_again() -> None:
    script = Script({f"RCPT {BOB}": ["451 later", "250 ok"], f"RCPT {CID}": "550 who?"})
    async with site(script) as here:
        ends = await here.send(ANN, BOB, CID)
        assert [type(end) for end in ends] == [Delivered, Deferred, Refused]
        message = letter(1, (ANN, BOB, CID))
        again = await here.transport.deliver(message, [BOB])
        assert [type(end) for end in again.values()] == [Delivered]
        assert [one.recipients for one in here.servers[0].accepted] == [(ANN,), (BOB,)]


async def test_partial_ends_survive_the_loss_of_the_next_server() -> None:
    async with site(
        Script({f"RCPT {BOB}": "451 later"}), Script({DOT: Act(then=Then.RESET)})
    ) as here:
        ends = await here.send(ANN, BOB)
        assert the(Delivered, ends[0]).server == here.label(0)
        assert the(Uncertain, ends[1]).server == here.label(1)


async def test_not_more_recipients_in_one_transaction_than_every_server_takes() -> None:
    many = [Address(f"u{n}@users.test") for n in range(25)]
    async with site(Script(), most_recipients=10) as here:
        await here.send(*many)
        assert sorted(len(one.recipients) for one in here.servers[0].accepted) == [5, 10, 10]


async def test_who_is_not_in_the_letter_gets_nothing() -> None:
    async with site(Script()) as here:
        with pytest.raises(LetterError):
            await here.transport.deliver(letter(), [BOB])
        assert await here.transport.deliver(letter(), []) == {}


# Scenario 10: half an hour without a mail system, greylisting, 552, a full mailbox for six days


async def trying(here: Site, queued: float, number: int = 1, size: int = 10) -> list[Delivery]:
    """As the queue does it, in virtual time: all ends until the last or the dead letter."""
    ends: list[Delivery] = []
    while True:
        message = letter(number, (ANN,), size)
        found = await here.transport.deliver(message, [ANN])
        ends.append(found[ANN])
        if not isinstance(end := found[ANN], Deferred):
            return ends
        match decide(
            RetryPolicy(), queued, len(ends), here.clock.now, 0.5,
            retry_after=end.retry_after, reached=end.reached,
        ):  # fmt: skip
            case TryAt(due):
                here.clock.now = due
            case GiveUp():
                return ends


async def test_half_an_hour_without_mail_then_greylisting() -> None:
    async with site(None) as here:
        queued = here.clock.now
        task_ends: list[Delivery] = []
        while here.clock.now < queued + 1800:
            end = the(Deferred, (await here.send())[0])
            assert not end.reached
            task_ends.append(end)
            decision = decide(
                RetryPolicy(), queued, len(task_ends), here.clock.now, 0.5,
                retry_after=end.retry_after, reached=end.reached,
            )  # fmt: skip
            assert isinstance(decision, TryAt)
            here.clock.now = decision.due
        assert 5 <= len(task_ends) <= 9
        (dead,) = here.servers
        back = MailServer(Script({"RCPT": ["451 4.7.1 greylisted", "250 ok"]}), port=dead.port)
        async with back:
            ends = await trying(here, queued)
            assert [type(end) for end in ends] == [Deferred, Delivered]
            assert here.clock.now - queued < 2 * 3600
            assert len(back.accepted) == 1
        assert here.transport.recoveries == 1


async def test_a_fax_too_large_is_refused_with_the_reason() -> None:
    async with site(Script(size=1_000_000)) as here:
        ends = await trying(here, here.clock.now, size=9_000_000)
        assert [type(end) for end in ends] == [Refused]
        assert the(Refused, ends[0]).code == 552
        assert "are more than the 1,000,000 it takes" in the(Refused, ends[0]).why


async def test_a_mailbox_full_for_six_days_is_a_dead_letter_after_five() -> None:
    async with site(Script({"RCPT": "452 4.2.2 mailbox full"})) as here:
        queued = here.clock.now
        ends = await trying(here, queued)
        assert here.clock.now == queued + 5 * 86_400
        assert all(the(Deferred, end).reached for end in ends)
        assert 120 < len(ends) < 180
        assert not here.transport.circuits.resting()


async def test_greylisting_by_the_clock() -> None:
    async with site(Script(greylist=0.2)) as here:
        assert isinstance((await here.send())[0], Deferred)
        await asyncio.sleep(0.25)
        assert isinstance((await here.send())[0], Delivered)


# Circuits and connections


async def test_a_dead_server_is_soon_left_alone_and_tried_when_it_is_time() -> None:
    async with site(Script({GREETING: [*["421 no"] * 4, "220 back"]}), Script()) as here:
        for number in range(10):
            assert isinstance((await here.send(number=number))[0], Delivered)
        assert here.servers[0].connections == 3
        here.clock.now += 31
        await asyncio.gather(*(here.send(number=number) for number in range(10, 15)))
        assert here.servers[0].connections == 4
        here.clock.now += 61
        await here.send(number=16)
        await here.send(number=17)
        assert here.servers[0].connections == 6
        assert here.copies() == [2, 15]
        assert here.transport.recoveries == 1


async def test_when_all_rest_the_answer_says_for_how_long() -> None:
    async with site(None, None, circuits=CircuitPolicy(failures=1, rest=40)) as here:
        await here.send()
        here.clock.now += 10
        end = the(Deferred, (await here.send())[0])
        assert end.retry_after == 30
        assert "is left alone for 30 s" in end.why
        assert not end.reached


async def test_a_cancelled_trial_gives_its_place_back() -> None:
    async with site(Script({GREETING: [*["421 no"] * 3, Act(then=Then.HANG), "220 hi"]})) as here:
        for number in range(3):
            await here.send(number=number)
        here.clock.now += 31
        task = asyncio.create_task(here.send())
        await asyncio.sleep(0.1)
        assert here.transport.circuits.of(here.label(0)).state is CircuitState.HALF_OPEN
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert isinstance((await here.send())[0], Delivered)


async def test_connections_keep_within_both_limits() -> None:
    slow = Script({DOT: Act("250 ok", 0.05)})
    async with site(slow, slow, order=Order.ROUND_ROBIN, connections=5, per_server=3) as here:
        ends = await asyncio.gather(*(here.send(number=number) for number in range(30)))
        assert all(isinstance(end, Delivered) for (end,) in ends)
        assert all(server.most_at_once <= 3 for server in here.servers)
        assert sum(server.most_at_once for server in here.servers) <= 6
        assert here.copies() == [15, 15] or min(here.copies()) >= 8


async def test_a_server_that_hangs_does_not_slow_the_other() -> None:
    hangs = Script({GREETING: Act(then=Then.HANG)})
    limits = replace(Limits(), banner=1.5)
    async with site(
        hangs, Script(), order=Order.ROUND_ROBIN, limits=limits, connections=6, per_server=2
    ) as here:
        loop, began, took = asyncio.get_running_loop(), asyncio.get_running_loop().time(), []

        async def one(number: int) -> None:
            assert isinstance((await here.send(number=number))[0], Delivered)
            took.append(loop.time() - began)

        await asyncio.gather(*(one(number) for number in range(40)))
        assert here.copies() == [0, 40]
        waited = sum(seconds > 1.4 for seconds in took)
        assert waited <= 4, "more than the first connections waited for the server that hangs"
        assert here.servers[0].connections <= 4


async def test_who_waited_for_a_server_that_turned_out_dead_goes_on() -> None:
    hangs = Script({GREETING: Act(then=Then.HANG)})
    async with site(
        hangs, Script(), limits=replace(Limits(), banner=0.3), per_server=1,
        circuits=CircuitPolicy(failures=1), most_servers=1,
    ) as here:  # fmt: skip
        ends = await asyncio.gather(
            *(
                here.send(number=n, uncertain={ANN: here.label(0)} if n < 0 else {})
                for n in range(3)
            )
        )
        assert here.servers[0].connections == 1
        assert [type(end) for (end,) in ends].count(Delivered) == 2


async def test_slots_are_given_back_and_given_on() -> None:
    slots = Slots(3, 1)
    async with slots.hold("a") as first, slots.hold("ab") as second:
        assert (first, second) == ("a", "b")
        waiting = [asyncio.create_task(slots.hold(wanted).__aenter__()) for wanted in "abc"]
        await asyncio.sleep(0)
        assert waiting[2].done()
        assert await waiting[2] == "c"
        waiting[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        assert not waiting[1].done()
    assert await waiting[1] == "b"
    async with slots.hold("ba") as last:
        assert last == "a"


async def test_a_turn_that_is_cancelled_when_it_has_come_is_not_lost() -> None:
    slots = Slots(1, 1)
    async with slots.hold("a"):
        late = asyncio.create_task(slots.hold("a").__aenter__())
        await asyncio.sleep(0)
    late.cancel()
    with pytest.raises(asyncio.CancelledError):
        await late
    async with asyncio.timeout(1), slots.hold("a") as label:
        assert label == "a"


async def test_circuits_of_the_whole_world_do_not_pile_up() -> None:
    async with site(Script()) as here:
        for number in range(MAX_CIRCUITS + 1):
            here.transport.circuits.of(str(number))
        await here.send()
        assert len(here.transport.circuits) == 0


# Exchangers


@asynccontextmanager
async def world(
    zone: Mapping[str, Records | Fails], port: int, **plan: Any
) -> AsyncIterator[Transport]:
    async with NameServer(zone) as names:
        resolver = unconfigured()
        resolver.nameservers, resolver.port = ["127.0.0.1"], names.port
        resolver.lifetime = 1.0
        chosen = TransportPlan("me.test", port=port, manner=PLAIN, limits=SLOW, **plan)
        yield Transport(chosen, resolver, Clock(), random.Random(3))


async def test_each_domain_by_its_own_exchangers() -> None:
    here, there = Address("a@here.test"), Address("b@gone.test")
    both = (here, there, Address("c@HERE.test"), Address("d@null.test"), Address("e@sick.test"))
    async with MailServer() as server:
        zone: dict[str, Records | Fails] = {
            "here.test": {"MX": ["10 mx.test."]},
            "mx.test": {"A": ["127.0.0.1"]},
            "null.test": {"MX": ["0 ."]},
            "sick.test": Fails.SERVFAIL,
        }
        async with world(zone, server.port) as transport:
            ends = await transport.deliver(letter(1, both), both)
        assert [type(ends[one]) for one in both] == [
            Delivered, Refused, Delivered, Refused, Deferred,
        ]  # fmt: skip
        assert [one.recipients for one in server.accepted] == [(here, Address("c@HERE.test"))]


async def test_exchangers_without_address_are_no_reason_to_ask_the_domain() -> None:
    who = Address("a@x.test")
    async with MailServer() as server:
        zone = {"x.test": {"MX": ["10 mx.test."], "A": ["127.0.0.1"]}}
        async with world(zone, server.port) as transport:
            ends = await transport.deliver(letter(1, (who,)), (who,))
        assert "mx.test: no address" in the(Deferred, ends[who]).why
        assert server.connections == 0


async def test_who_may_have_it_is_waited_for_though_another_address_is_free() -> None:
    who = Address("a@x.test")
    slow = Script({DOT: Act("250 ok", 0.3)})
    async with MailServer(slow) as one, MailServer(slow, "127.0.0.2", one.port) as two:
        zone = {"x.test": {"MX": ["10 mx.test."]}, "mx.test": {"A": ["127.0.0.1", "127.0.0.2"]}}
        async with world(zone, one.port, per_server=1) as transport:
            first = f"mx.test[{two.host}]:{two.port}"
            ends = await asyncio.gather(
                *(transport.deliver(letter(n, (who,)), (who,), uncertain={who: first})
                  for n in range(2)),
                transport.deliver(letter(9, (who,)), (who,)),
            )  # fmt: skip
        servers = [the(Delivered, end[who]).server for end in ends]
        assert servers == [first, first, f"mx.test[{one.host}]:{one.port}"]


# Whatever the servers do

ANSWERS = st.sampled_from(
    ["250 ok", "451 later", "550 never", "421 bye", "gibberish", Act(then=Then.CLOSE),
     Act("421 bye", then=Then.CLOSE), Act(then=Then.RESET)]
)  # fmt: skip
STEPS = ("EHLO", "MAIL", f"RCPT {ANN}", f"RCPT {BOB}", f"RCPT {CID}", "QUIT")
LOST = st.builds(Act, then=st.sampled_from([Then.CLOSE, Then.RESET]), stored=st.booleans())
SCRIPTS = st.builds(
    lambda steps, dot: Script({**steps, DOT: dot}),
    st.dictionaries(st.sampled_from(STEPS), ANSWERS, max_size=3),
    st.sampled_from(["250 ok", "451 later", "550 never", "gibberish"]) | LOST,
)


@given(st.lists(SCRIPTS, min_size=1, max_size=3))
@settings(deadline=None, max_examples=80)
def test_every_end_is_what_really_happened(scripts: list[Script]) -> None:
    """Delivered: one server has it. Deferred, refused: none. Uncertain: at most that one."""
    everyone = (ANN, BOB, CID)

    async def send() -> None:
        async with site(*scripts) as here:
            ends = dict(zip(everyone, await here.send(*everyone), strict=True))
            for who, end in ends.items():
                has_it = [
                    label(server)
                    for server in here.servers
                    for one in server.accepted
                    if who in one.recipients
                ]
                match end:
                    case Delivered():
                        assert has_it == [end.server]
                    case Uncertain():
                        assert has_it in ([], [end.server])
                    case Deferred() | Refused():
                        assert has_it == []

    asyncio.run(send())


# Faults of ours


@dataclass
class BrokenRandom(random.Random):
    shuffled: list[int] = field(default_factory=list)

    def shuffle(self, x: Any) -> None:
        raise ZeroDivisionError("a fault")


async def test_a_fault_of_ours_leaves_the_ends_of_the_others() -> None:
    here, there = Address("a@[127.0.0.1]"), Address("b@x.test")
    async with MailServer() as server:
        zone = {"x.test": {"MX": ["10 mx.test."]}}
        async with world(zone, server.port) as transport:
            transport._rng = BrokenRandom()
            ends = await transport.deliver(letter(1, (here, there)), (here, there))
        assert isinstance(ends[here], Delivered)
        assert "ZeroDivisionError" in the(Uncertain, ends[there]).why


async def test_an_address_forged_past_the_letter_is_refused_and_nothing_is_sent() -> None:
    evil = Address("a@b>\r\nRCPT TO:<c@d")
    async with site(Script()) as here:
        message = letter(1, (ANN,))
        object.__setattr__(message, "recipients", (ANN, evil))
        ends = await here.transport.deliver(message, (ANN, evil))
        assert {the(Refused, end).code for end in ends.values()} == {554}
        assert here.copies() == [0]


@pytest.mark.parametrize(
    "wrong",
    [{"hello": "a b"}, {"hello": ""}, {"hello": "a\r\nQUIT"}, {"per_server": 30},
     {"per_server": 0}, {"most_servers": 0}],
)  # fmt: skip
def test_plans_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        TransportPlan(**{"hello": "me.test", **wrong})
