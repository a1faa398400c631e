"""Targets, ranks and servers; DNS answers from a name server that can fail."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping

import dns.asyncresolver
import dns.name
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.names import Fails, NameServer, Records
from umpack.core.errors import ConfigError, PeerFault
from umpack.messages import relays
from umpack.messages.letter import Deferred, Refused
from umpack.messages.relays import (
    Login,
    Manner,
    Order,
    Rank,
    Server,
    Target,
    Tls,
    exchangers,
    mx_ranks,
    relay_ranks,
    servers,
)

A, B, C = (Target(name) for name in "abc")


def ask(port: int, lifetime: float = 2.0) -> dns.asyncresolver.Resolver:
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers = ["127.0.0.1"]
    resolver.port = port
    resolver.timeout = resolver.lifetime = lifetime
    return resolver


async def asked(
    zone: Mapping[str, Records | Fails], domain: str
) -> tuple[Rank, ...] | Refused | Deferred:
    async with NameServer(zone) as names:
        return await exchangers(domain, ask(names.port), random.Random(1))


def hosts(ranks: object) -> list[list[str]]:
    assert isinstance(ranks, tuple), ranks
    return [[target.host for target in rank] for rank in ranks]


def test_round_robin_begins_one_further_each_time() -> None:
    relays_ = (A, B, C)
    turns = [relay_ranks(relays_, Order.ROUND_ROBIN, turn) for turn in range(4)]
    assert turns == [((A, B, C),), ((B, C, A),), ((C, A, B),), ((A, B, C),)]
    assert relay_ranks(relays_, Order.ORDERED, 5) == ((A,), (B,), (C,))


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from("abcdef"))), st.integers())
@settings(deadline=None)
def test_ranks_hold_every_exchanger_once_better_ones_first(
    records: list[tuple[int, str]], seed: int
) -> None:
    ranks = mx_ranks(records, 25, Manner(), random.Random(seed))
    assert sorted(t.host for rank in ranks for t in rank) == sorted(h for _, h in set(records))
    preferences = sorted({preference for preference, _ in records})
    for preference, rank in zip(preferences, ranks, strict=True):
        assert {t.host for t in rank} == {h for p, h in records if p == preference}


def test_equal_exchangers_share_alike() -> None:
    rng = random.Random(4)
    records = [(10, "a"), (10, "b"), (20, "c")]
    first = Counter(mx_ranks(records, 25, Manner(), rng)[0][0].host for _ in range(2000))
    assert set(first) == {"a", "b"}
    assert abs(first["a"] - 1000) <= 100


async def test_exchangers_by_preference() -> None:
    zone = {"x.test": {"MX": ["20 back.test.", "10 main.test."]}}
    assert hosts(await asked(zone, "x.test")) == [["main.test"], ["back.test"]]


async def test_no_mx_means_the_domain_itself() -> None:
    assert hosts(await asked({"x.test": {"A": ["127.0.0.1"]}}, "x.test")) == [["x.test"]]


async def test_a_domain_in_letters_of_its_own_is_asked_for_in_ascii() -> None:
    zone = {"xn--mller-kva.test": {"MX": ["5 mx.test."]}}
    assert hosts(await asked(zone, "müller.test")) == [["mx.test"]]


async def test_final_are_only_a_missing_domain_and_a_null_mx() -> None:
    missing = await asked({}, "x.test")
    assert missing == Refused("5.1.2 the domain x.test does not exist", 550)
    null = await asked({"x.test": {"MX": ["0 ."]}}, "x.test")
    assert null == Refused("5.1.10 the domain x.test accepts no mail (null MX)", 556)


@pytest.mark.parametrize("fails", [Fails.SERVFAIL, Fails.REFUSED])
async def test_a_name_server_that_fails_is_temporary(fails: Fails) -> None:
    found = await asked({"x.test": fails}, "x.test")
    assert found == Deferred("4.4.3 MX of x.test: DNS failed (SERVFAIL or refused)")


async def test_silence_is_temporary() -> None:
    async with NameServer({"x.test": Fails.SILENCE}) as names:
        resolver = ask(names.port, 0.2)
        found = await exchangers("x.test", resolver, random.Random(1))
    assert found == Deferred("4.4.3 MX of x.test: no answer from DNS")


async def test_an_mx_that_is_none_beside_one_that_is() -> None:
    zone: dict[str, Records | Fails] = {
        "x.test": {"MX": ["0 .", "10 mx.test."]},
        "y.test": {"MX": ["0 .", "10 ."]},
    }
    assert hosts(await asked(zone, "x.test")) == [["mx.test"]]
    assert await asked(zone, "y.test") == Deferred("4.4.4 MX of y.test names no server")


async def test_no_search_list_and_no_thousand_exchangers() -> None:
    many = {"x.test": {"MX": [f"{n} mx{n}.test." for n in range(50)]}}
    async with NameServer(many) as names:
        resolver = ask(names.port)
        resolver.search = [dns.name.from_text("office.test")]
        found = await exchangers("x.test", resolver, random.Random(1))
        assert names.asked == ["x.test MX"]
    assert len(hosts(found)) == relays.MAX_EXCHANGERS


async def test_address_literals() -> None:
    resolver = ask(9)
    for literal, address in ("[127.0.0.1]", "127.0.0.1"), ("[IPv6:::1]", "::1"):
        ranks = await exchangers(literal, resolver, random.Random(1))
        assert hosts(ranks) == [[address]]
    wrong = await exchangers("[127.0.0.999]", resolver, random.Random(1))
    assert wrong == Refused("5.1.2 not an address literal: [127.0.0.999]", 550)


async def test_addresses_both_families_in_turn() -> None:
    zone: dict[str, Records | Fails] = {
        "mx.test": {"A": ["127.0.0.1", "127.0.0.2"], "AAAA": ["::1"]},
        "half.test": {"A": ["127.0.0.3"]},
        "none.test": {"TXT": ["x"]},
        "sick.test": Fails.SERVFAIL,
    }
    async with NameServer(zone) as names:
        resolver = ask(names.port)

        async def addresses(host: str) -> list[str]:
            return [one.address for one in await servers(Target(host, mx=True), resolver)]

        found = await addresses("mx.test")
        assert found[:2] in (["::1", "127.0.0.1"], ["::1", "127.0.0.2"])
        assert sorted(found) == ["127.0.0.1", "127.0.0.2", "::1"]
        assert await addresses("half.test") == ["127.0.0.3"]
        for host, why in (
            ("none.test", "no address"), ("gone.test", "no address"), ("sick.test", "SERVFAIL"),
        ):  # fmt: skip
            with pytest.raises(PeerFault, match=why):
                await addresses(host)


async def test_names_the_administrator_wrote_come_from_the_system() -> None:
    resolver = ask(9)
    found = await servers(Target("localhost", 2525), resolver)
    assert "127.0.0.1" in {one.address for one in found}
    assert len(found) == len(set(found))
    with pytest.raises(PeerFault, match=r"nowhere\.invalid"):
        await servers(Target("nowhere.invalid"), resolver)
    assert await servers(Target("::1", 26), resolver) == (Server("::1", "::1", 26),)


def test_labels_and_secrets() -> None:
    assert Server("mx.test", "127.0.0.1", 25).label == "mx.test[127.0.0.1]:25"
    assert "hush" not in repr(Target("a", manner=Manner(login=Login("me", "hush"))))


@pytest.mark.parametrize(
    "wrong",
    ["Target('')", "Target('a b')", "Target('a\\n')", "Target('a', 0)", "Target('a', 65536)",
     "Manner(Tls.OPPORTUNISTIC, verify=True)", "Manner(Tls.NEVER, login=Login('a', 'b'))"],
)  # fmt: skip
def test_what_cannot_be_configured(wrong: str) -> None:
    with pytest.raises(ConfigError):
        eval(wrong, {"Target": Target, "Manner": Manner, "Tls": Tls, "Login": Login})  # noqa: S307
