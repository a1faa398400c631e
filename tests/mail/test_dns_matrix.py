"""Exchangers from a real name server, letters to real sockets: who gets what, and what is final."""

from __future__ import annotations

import asyncio
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import dns.asyncresolver
import pytest

from simulators.mail import DOT, GREETING, Act, MailServer, Script, Then
from simulators.names import Fails, NameServer
from tests.mail.dnsmasq import deaf, mail_servers, name_server
from umpack.clock import now
from umpack.messages.letter import (
    Address,
    Deferred,
    Delivered,
    Delivery,
    Letter,
    Refused,
    Uncertain,
)
from umpack.messages.relays import Manner, Tls, exchangers
from umpack.messages.transaction import Limits
from umpack.messages.transport import Transport, TransportPlan

WHO = Address("fax@umpack.example")
YOU = Address("you@site.test")
NULL_MX = "00:00:00"
"""Preference 0 and the root."""
OK = Script()
End = TypeVar("End", Delivered, Deferred, Refused, Uncertain)


def a(kind: type[End], end: Delivery) -> End:
    assert isinstance(end, kind), end
    return end


def letter(number: int = 1, to: Address = YOU) -> Letter:
    message_id = f"<{number}@umpack.example>"
    body = f"Message-ID: {message_id}\r\nDate: Sat, 21 Nov 2026 10:00:00 +0100\r\n\r\nfax"
    return Letter(message_id, WHO, (to,), body.encode())


@dataclass
class World:
    servers: list[MailServer]
    resolver: dns.asyncresolver.Resolver
    transport: Transport

    async def send(self, number: int = 1, to: Address = YOU, first: str = "") -> Delivery:
        uncertain = {to: first} if first else {}
        found = await self.transport.deliver(letter(number, to), (to,), uncertain=uncertain)
        return found[to]

    def counts(self) -> list[int]:
        return [len(server.accepted) for server in self.servers]


@asynccontextmanager
async def world(
    folder: Path, scripts: Sequence[Script | None], *zone: str, seed: int = 7
) -> AsyncIterator[World]:
    """`{1}` in a line of the zone is the address of the first server."""
    async with mail_servers(*scripts) as servers:
        hosts = ["", *(server.host for server in servers)]
        async with name_server(folder, [line.format(*hosts) for line in zone]) as resolver:
            plan = TransportPlan(
                "umpack.example", port=servers[0].port,
                manner=Manner(Tls.NEVER), limits=replace(Limits(), connect=0.4),
            )  # fmt: skip
            yield World(servers, resolver, Transport(plan, resolver, now, random.Random(seed)))


EQUAL = (
    "mx-host=site.test,mx1.test,10", "mx-host=site.test,mx2.test,10",
    "host-record=mx1.test,{1}", "host-record=mx2.test,{2}",
)  # fmt: skip


async def test_two_equal_exchangers_are_chosen_alike(tmp_path: Path) -> None:
    async with world(tmp_path, [OK, OK], *EQUAL) as here:
        rng = random.Random(11)
        chosen: Counter[str] = Counter()
        for _ in range(2000):
            ranks = await exchangers("site.test", here.resolver, rng)
            assert isinstance(ranks, tuple)
            assert len(ranks) == 1
            chosen[ranks[0][0].host] += 1
    assert set(chosen) == {"mx1.test", "mx2.test"}
    assert abs(chosen["mx1.test"] - 1000) <= 50, chosen


@pytest.mark.timeout(300)
async def test_two_equal_exchangers_get_alike(tmp_path: Path) -> None:
    """2,000 letters, counted at the servers; never so many at once that one has to wait and goes
    to the other for that."""
    async with world(tmp_path, [OK, OK], *EQUAL) as here:
        for start in range(0, 2000, 4):
            ends = await asyncio.gather(*(here.send(start + n) for n in range(4)))
            assert all(isinstance(end, Delivered) for end in ends)
        assert sum(here.counts()) == 2000
        assert abs(here.counts()[0] - 1000) <= 50, here.counts()


async def test_one_of_two_is_dead(tmp_path: Path) -> None:
    async with world(tmp_path, [OK, None], *EQUAL) as here:
        for number in range(40):
            a(Delivered, await here.send(number))
        assert here.counts() == [40, 0]
        (resting,) = here.transport.circuits.resting()
        assert resting.startswith("mx2.test[")


async def test_one_of_two_drops_every_syn(tmp_path: Path) -> None:
    async with world(tmp_path, [OK, None], *EQUAL) as here:
        dead = here.servers[1]
        with deaf(dead.host, dead.port):
            began = now()
            ends = await asyncio.gather(*(here.send(number) for number in range(40)))
            assert all(isinstance(end, Delivered) for end in ends)
            assert now() - began < 40 * 0.4
        assert here.counts() == [40, 0]


@pytest.mark.parametrize("greeting", ["554 5.3.2 no service", "421 4.3.2 too busy"])
async def test_one_of_two_refuses_in_its_greeting(tmp_path: Path, greeting: str) -> None:
    async with world(tmp_path, [OK, Script({GREETING: greeting})], *EQUAL) as here:
        for number in range(20):
            a(Delivered, await here.send(number))
        assert here.counts() == [20, 0]
        assert 1 <= here.servers[1].connections <= 3


async def test_one_of_two_drops_after_the_final_dot(tmp_path: Path) -> None:
    drops = Script({DOT: [Act(then=Then.RESET, stored=True), "250 2.0.0 Ok: queued as A2"]})
    async with world(tmp_path, [OK, drops], *EQUAL) as here:
        number, end = 0, await here.send(0)
        while isinstance(end, Delivered):
            number += 1
            assert number < 20
            end = await here.send(number)
        lost = a(Uncertain, end)
        assert lost.server.startswith("mx2.test[")
        again = a(Delivered, await here.send(number, first=lost.server))
        assert (again.server, again.queue_id) == (lost.server, "A2")
        assert here.servers[1].copies(f"<{number}@umpack.example>") == 2
        assert here.servers[0].copies(f"<{number}@umpack.example>") == 0
        first, second = here.servers[1].accepted[:2]
        assert first.body == second.body


async def test_one_drops_the_syn_and_one_says_421(tmp_path: Path) -> None:
    async with world(tmp_path, [Script({GREETING: "421 no"}), None], *EQUAL) as here:
        dead = here.servers[1]
        with deaf(dead.host, dead.port):
            end = a(Deferred, await here.send())
        assert "421 no" in end.why
        assert "connecting: too slow" in end.why
        assert not end.reached


async def test_three_addresses_of_which_one_lives(tmp_path: Path) -> None:
    zone = ("mx-host=site.test,mx.test,10", *(f"host-record=mx.test,{{{n}}}" for n in (1, 2, 3)))
    async with world(tmp_path, [None, OK, None], *zone) as here:
        for number in range(6):
            end = a(Delivered, await here.send(number))
            assert f"[{here.servers[1].host}]" in end.server
        assert here.counts() == [0, 6, 0]


async def test_three_addresses_of_which_one_drops_every_syn_and_one_refuses(tmp_path: Path) -> None:
    zone = ("mx-host=site.test,mx.test,10", *(f"host-record=mx.test,{{{n}}}" for n in (1, 2, 3)))
    async with world(tmp_path, [None, None, OK], *zone) as here:
        silent = here.servers[0]
        with deaf(silent.host, silent.port):
            for number in range(6):
                end = a(Delivered, await here.send(number))
                assert f"[{here.servers[2].host}]" in end.server
        assert here.counts() == [0, 0, 6]
        # Whoever came in front of the living one rests by then.
        assert all("mx.test[" in label for label in here.transport.circuits.resting())


async def test_scenario_09_every_row_of_the_matrix_at_once(tmp_path: Path) -> None:
    """fax.md 9.9: one name server, six domains, each with what is wrong with it."""
    scripts = [OK, Script({GREETING: "421 4.3.2 too busy"}), Script({GREETING: "554 no"}), None]
    zone = (
        "mx-host=busy.test,syn.test,10", "mx-host=busy.test,m421.test,10",
        "mx-host=five.test,m5xx.test,10", "mx-host=five.test,ok.test,10",
        "mx-host=three.test,three-a.test,10",
        f"dns-rr=null.test,15,{NULL_MX}", "host-record=null.test,{1}",
        "host-record=ok.test,{1}", "host-record=m421.test,{2}", "host-record=m5xx.test,{3}",
        "host-record=syn.test,{4}",
        "host-record=three-a.test,{4}", "host-record=three-a.test,{3}",
        "host-record=three-a.test,{1}",
    )  # fmt: skip
    async with (
        NameServer({"broken.test": Fails.SERVFAIL}) as failing,
        world(tmp_path, scripts, *zone, f"server=/broken.test/127.0.0.1#{failing.port}") as here,
    ):
        silent = here.servers[3]
        with deaf(silent.host, silent.port):
            ends = {
                domain: await here.send(number, Address(f"you@{domain}.test"))
                for number, domain in enumerate(("busy", "five", "three", "null", "broken", "none"))
            }
    assert "421" in (busy := a(Deferred, ends["busy"])).why
    assert not busy.reached
    for domain in ("five", "three"):
        assert f"[{here.servers[0].host}]" in a(Delivered, ends[domain]).server
    assert a(Refused, ends["null"]).code == 556
    assert a(Refused, ends["none"]).code == 550
    assert "SERVFAIL" in a(Deferred, ends["broken"]).why
    assert here.counts() == [2, 0, 0, 0]


async def test_the_better_exchanger_first_then_the_next(tmp_path: Path) -> None:
    zone = (
        "mx-host=site.test,mx2.test,20", "mx-host=site.test,mx1.test,10",
        "host-record=mx1.test,{1}", "host-record=mx2.test,{2}",
    )  # fmt: skip
    script = Script({GREETING: [*["220 hi"] * 5, "554 no"]})
    async with world(tmp_path, [script, OK], *zone) as here:
        for number in range(8):
            a(Delivered, await here.send(number))
        assert here.counts() == [5, 3]


async def test_no_exchanger_means_the_domain_itself(tmp_path: Path) -> None:
    async with world(tmp_path, [OK], "host-record=site.test,{1}") as here:
        assert a(Delivered, await here.send()).server.startswith("site.test[")


async def test_null_mx_is_final_though_there_is_an_address(tmp_path: Path) -> None:
    zone = (f"dns-rr=site.test,15,{NULL_MX}", "host-record=site.test,{1}")
    async with world(tmp_path, [OK], *zone) as here:
        end = a(Refused, await here.send())
        assert (end.code, "5.1.10" in end.why) == (556, True)
        assert here.servers[0].connections == 0


async def test_a_domain_that_does_not_exist_is_final(tmp_path: Path) -> None:
    async with world(tmp_path, [OK], "host-record=other.test,{1}") as here:
        assert a(Refused, await here.send()).code == 550


async def test_exchangers_that_do_not_exist_are_no_reason_to_ask_the_domain(tmp_path: Path) -> None:
    zone = ("mx-host=site.test,gone.test,10", "host-record=site.test,{1}")
    async with world(tmp_path, [OK], *zone) as here:
        assert "gone.test: no address" in a(Deferred, await here.send()).why
        assert here.servers[0].connections == 0


async def test_one_exchanger_does_not_exist_and_the_next_does(tmp_path: Path) -> None:
    zone = (
        "mx-host=site.test,gone.test,5", "mx-host=site.test,mx1.test,10",
        "host-record=mx1.test,{1}",
    )  # fmt: skip
    async with world(tmp_path, [OK], *zone) as here:
        a(Delivered, await here.send())


async def test_a_name_server_that_fails_is_temporary(tmp_path: Path) -> None:
    async with NameServer({"site.test": Fails.SERVFAIL}) as failing:
        zone = f"server=/site.test/127.0.0.1#{failing.port}"
        async with world(tmp_path, [OK], zone) as here:
            assert "SERVFAIL" in a(Deferred, await here.send()).why
        assert failing.asked


async def test_a_name_server_that_is_silent_is_temporary(tmp_path: Path) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        zone = f"server=/site.test/127.0.0.1#{silent.getsockname()[1]}"
        async with world(tmp_path, [OK], zone) as here:
            here.resolver.lifetime = 0.5
            assert "no answer from DNS" in a(Deferred, await here.send()).why


async def test_no_name_server_at_all_is_temporary(tmp_path: Path) -> None:
    async with world(tmp_path, [OK], *EQUAL[:1]) as here:
        here.resolver.port, here.resolver.lifetime = 9, 0.5
        a(Deferred, await here.send())


async def test_the_exchangers_name_fails_and_the_next_is_found(tmp_path: Path) -> None:
    async with NameServer({"sick.test": Fails.SERVFAIL}) as failing:
        zone = (
            "mx-host=site.test,sick.test,5", "mx-host=site.test,mx1.test,10",
            "host-record=mx1.test,{1}", f"server=/sick.test/127.0.0.1#{failing.port}",
        )  # fmt: skip
        async with world(tmp_path, [OK], *zone) as here:
            a(Delivered, await here.send())
