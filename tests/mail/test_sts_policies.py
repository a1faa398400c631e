"""MTA-STS policies from a real HTTPS server: what is taken, and how long it binds."""

from __future__ import annotations

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import dns.asyncresolver
import pytest

from simulators.mail import MailServer
from simulators.names import Fails, NameServer, Records
from tests.mail.policy_host import PATH, Authority, PolicyHost, authority, policy
from tests.mail.tls import certificate
from tests.unit.daemons import logged
from tests.unit.messages.offices import made, plan, settle, spoken
from tests.unit.messages.receptions import Time
from umpack.core.errors import PeerFault
from umpack.messages.states import RecipientState
from umpack.messages.sts import MAX_AGE, MAX_POLICY, Mode, Policy
from umpack.messages.sts_policies import (
    AGAIN,
    CHECK,
    REFRESH,
    Policies,
    fetch_policy,
    strict_context,
)
from umpack.messages.sts_store import Kept, PolicyStore

HOST = "mta-sts.site.test"
HERE: Records = {"A": ["127.0.0.1"]}
GOOD = Policy(Mode.ENFORCE, ("mx1.test",), 86400)
WEEK = 604800


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    names = (HOST, "mta-sts.other.test", "mta-sts.xn--mller-kva.test")
    return authority(tmp_path_factory.mktemp("tls"), *names)


@dataclass
class World:
    host: PolicyHost
    zone: dict[str, Records | Fails]
    names: NameServer
    resolver: dns.asyncresolver.Resolver
    trusted: Authority
    time: Time

    def announce(self, id_: str, domain: str = "site.test") -> None:
        self.zone[f"_mta-sts.{domain}"] = {"TXT": [f'"v=STSv1; id={id_};"']}

    def policies(self, store: Path | None = None, most: int = 10) -> Policies:
        return Policies(
            self.resolver, self.time, authorities=self.trusted.pem, store=store,
            port=self.host.port, most=most, limit=5.0,
        )  # fmt: skip

    async def fetch(self, limit: float = 5.0) -> Policy:
        context = strict_context(self.trusted.pem)
        return await fetch_policy(
            "site.test", self.resolver, context, port=self.host.port, limit=limit
        )


@asynccontextmanager
async def world(trusted: Authority, tls: ssl.SSLContext | None = None) -> AsyncIterator[World]:
    """`site.test` with policy 1, that is there."""
    zone: dict[str, Records | Fails] = {HOST: HERE}
    text = policy("mx1.test")
    async with PolicyHost(tls or trusted.contexts[HOST], text) as host, NameServer(zone) as names:
        here = World(host, zone, names, _asking(names), trusted, Time())
        here.announce("1")
        yield here


# One fetch


async def test_a_policy_is_fetched(trusted: Authority) -> None:
    async with world(trusted) as here:
        here.host.headers = {"Content-Type": "text/plain; charset=utf-8"}
        assert await here.fetch() == GOOD
        assert here.host.asked == [f"{HOST}{PATH}"]


def test_certificates_are_looked_at_closely(trusted: Authority) -> None:
    context = strict_context(trusted.pem)
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)
    assert not context.hostname_checks_common_name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": 404}, "answers 404"),
        ({"status": 204}, "answers 204"),
        ({"status": 301, "headers": {"Location": "/elsewhere", "Content-Type": "text/plain"}},
         "answers 301"),
        ({"headers": {"Content-Type": "text/html"}}, "answers text/html, not text/plain"),
        ({"headers": {"Content-Type": "text/plainer"}}, "not text/plain"),
        ({"headers": {"Content-Type": "\u00e4"}}, "not text/plain"),
        ({"text": policy("a.test") + "x" * MAX_POLICY}, "longer than 65536"),
        ({"text": gzip.compress(policy("a.test").encode()),
          "headers": {"Content-Type": "text/plain", "Content-Encoding": "gzip"}}, "no version"),
        ({"text": policy("a.test", max_age=MAX_AGE + 1)}, "no max_age"),
        ({"text": b""}, "no version"),
    ],
)  # fmt: skip
async def test_answers_that_are_no_policy(
    trusted: Authority, change: dict[str, object], said: str
) -> None:
    async with world(trusted) as here:
        for name, value in change.items():
            setattr(here.host, name, value)
        with pytest.raises(PeerFault, match=f"{HOST}: .*{said}"):
            await here.fetch()
        assert here.host.asked == [f"{HOST}{PATH}"]


async def test_a_host_with_the_certificate_of_another_is_not_asked(trusted: Authority) -> None:
    async with world(trusted, trusted.contexts["mta-sts.other.test"]) as here:
        with pytest.raises(PeerFault, match=r"(?i)certificate"):
            await here.fetch()
        assert here.host.asked == []


async def test_a_host_nobody_vouches_for_is_not_asked(trusted: Authority, tmp_path: Path) -> None:
    context, _ = certificate(tmp_path, HOST)
    async with world(trusted, context) as here:
        with pytest.raises(PeerFault, match=r"(?i)certificate"):
            await here.fetch()
        assert here.host.asked == []


async def test_a_host_that_says_nothing_has_its_time(trusted: Authority) -> None:
    async with world(trusted) as here:
        here.host.hangs = True
        with pytest.raises(PeerFault, match="too slow"):
            await here.fetch(limit=0.5)


async def test_a_host_that_never_ends_is_left(trusted: Authority) -> None:
    async with world(trusted) as here:
        here.host.endless = True
        with pytest.raises(PeerFault, match="longer than 65536"):
            await here.fetch(limit=30.0)


async def test_a_host_that_is_not_there_or_not_known(trusted: Authority) -> None:
    async with world(trusted) as here:
        here.zone[HOST] = Fails.SERVFAIL
        with pytest.raises(PeerFault, match="SERVFAIL"):
            await here.fetch()
        here.zone[HOST] = {"A": ["127.0.0.99"]}
        with pytest.raises(PeerFault, match=HOST):
            await here.fetch()


async def test_the_second_address_is_tried(trusted: Authority) -> None:
    async with world(trusted) as here:
        here.zone[HOST] = {"A": ["127.0.0.99", "127.0.0.1"]}
        assert await here.fetch() == GOOD


async def test_no_proxy_and_no_account_of_the_environment(
    trusted: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine {HOST} login a password b\n")
    monkeypatch.setenv("NETRC", str(netrc))
    async with world(trusted) as here:
        assert await here.fetch() == GOOD
        assert "Authorization" not in here.host.heard


# How long it binds


async def test_one_look_serves_many_letters_and_a_day_one_fetch(trusted: Authority) -> None:
    async with world(trusted) as here:
        here.host.text = policy("mx1.test", max_age=WEEK)
        policies = here.policies()
        found = await asyncio.gather(*(policies.of("Site.test") for _ in range(20)))
        assert [one and one.mode for one in found] == [Mode.ENFORCE] * 20
        asked = here.names.asked.count("_mta-sts.site.test TXT")
        assert (asked, len(here.host.asked)) == (1, 1)
        here.time.now += CHECK
        assert await policies.of("site.test")
        asked = here.names.asked.count("_mta-sts.site.test TXT")
        assert (asked, len(here.host.asked)) == (2, 1)
        here.time.now += REFRESH
        assert await policies.of("site.test")
        assert len(here.host.asked) == 2


async def test_another_id_brings_another_policy(trusted: Authority) -> None:
    async with world(trusted) as here:
        policies = here.policies()
        assert await policies.of("site.test") == GOOD
        here.host.text = policy("mx2.test", mode="testing")
        here.time.now += CHECK
        assert await policies.of("site.test") == GOOD
        here.announce("2")
        here.time.now += CHECK
        assert await policies.of("site.test") == Policy(Mode.TESTING, ("mx2.test",), 86400)
        here.host.text = policy(mode="none")
        here.announce("3")
        here.time.now += CHECK
        assert await policies.of("site.test") == Policy(Mode.NONE, (), 86400)


@pytest.mark.parametrize("record", [Fails.SERVFAIL, None, {"TXT": ['"v=STSv1; x"']}])
async def test_without_a_record_a_policy_binds_until_its_age_is_over(
    trusted: Authority, record: Records | Fails | None
) -> None:
    async with world(trusted) as here:
        here.host.text = policy("mx1.test", max_age=7200)
        policies = here.policies()
        assert await policies.of("site.test")
        if record is None:
            del here.zone["_mta-sts.site.test"]
        else:
            here.zone["_mta-sts.site.test"] = record
        with logged("WARNING") as lines:
            for _ in range(3):
                here.time.now += 2000
                assert await policies.of("site.test")
            assert len(lines) == 1
            assert "MTA-STS policy of site.test: no record announces it" in lines[0]
        here.time.now += 1200
        assert await policies.of("site.test") is None
        assert len(here.host.asked) == 1


async def test_a_dead_host_changes_nothing_until_the_age_is_over(trusted: Authority) -> None:
    async with world(trusted) as here:
        here.host.text = policy("mx1.test", max_age=7200)
        policies = here.policies()
        assert await policies.of("site.test")
        here.host.status = 503
        here.announce("2")
        with logged("WARNING") as lines:
            here.time.now += 7200 - 1
            assert await policies.of("site.test")
            here.time.now += 1
            assert await policies.of("site.test") is None
            here.time.now += CHECK
            assert await policies.of("site.test") is None
        # One try in five minutes (RFC 8461 3.3), told once each.
        assert len(here.host.asked) == 2
        assert len(lines) == 1
        assert (
            "MTA-STS policy of site.test 2 cannot be had: mta-sts.site.test: answers 503"
            in (lines[0])
        )
        here.time.now += AGAIN
        assert await policies.of("site.test") is None
        assert len(here.host.asked) == 3
        here.host.status = 200
        here.announce("3")
        here.time.now += CHECK
        assert await policies.of("site.test")


async def test_a_host_that_was_never_there_is_no_policy(trusted: Authority) -> None:
    async with world(trusted) as here:
        here.host.status = 500
        assert await here.policies().of("site.test") is None


async def test_the_shortest_age_does_not_make_a_fetch_of_every_letter(trusted: Authority) -> None:
    async with world(trusted) as here:
        here.host.text = policy("mx1.test", max_age=0)
        policies = here.policies()
        for _ in range(5):
            assert await policies.of("site.test")
        assert len(here.host.asked) == 1
        here.time.now += CHECK
        assert await policies.of("site.test")
        assert len(here.host.asked) == 2


async def test_a_restart_does_not_shake_it_off(trusted: Authority, tmp_path: Path) -> None:
    async with world(trusted) as here:
        store = tmp_path / "mta-sts.db"
        assert await here.policies(store).of("site.test") == GOOD
        here.host.status = 500
        del here.zone["_mta-sts.site.test"]
        assert await here.policies(store).of("site.test") == GOOD
        assert await here.policies().of("site.test") is None
        here.time.now += 86400
        assert await here.policies(store).of("site.test") is None


async def test_a_clock_that_was_ahead_makes_no_eternal_policy(
    trusted: Authority, tmp_path: Path
) -> None:
    async with world(trusted) as here:
        store = tmp_path / "mta-sts.db"
        here.time.now += 10 * MAX_AGE
        await here.policies(store).of("site.test")
        here.time.now -= 10 * MAX_AGE
        policies = here.policies(store)
        assert await policies.of("site.test")
        assert len(here.host.asked) == 2
        del here.zone["_mta-sts.site.test"]
        here.time.now += 86400
        assert await policies.of("site.test") is None


async def test_of_many_domains_the_last_used_are_kept(trusted: Authority, tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*_files(trusted, HOST))
    async with world(trusted, context) as here:
        here.zone["mta-sts.other.test"] = HERE
        here.announce("1", "other.test")
        store = tmp_path / "mta-sts.db"
        policies = here.policies(store, most=1)
        assert await policies.of("site.test")
        assert await policies.of("other.test") is None
        context.load_cert_chain(*_files(trusted, "mta-sts.other.test"))
        here.time.now += AGAIN
        assert await policies.of("other.test")
        del here.zone["_mta-sts.site.test"]
        assert await policies.of("site.test") is None
        assert await here.policies(store).of("site.test") is None
        assert len(policies._kept) == len(policies._looks) == 1


def _files(trusted: Authority, name: str) -> tuple[Path, Path]:
    folder = Path(trusted.pem).parent
    return folder / f"{name}.pem", folder / f"{name}.key"


@pytest.mark.parametrize(
    "domain",
    ["[127.0.0.1]", "[IPv6:::1]", "", "a_b.test", "a..test", "a b.test", "a.test/x", "a.test:1",
     "\x00.test", f"{'a' * 60}.{'b' * 60}.{'c' * 60}.{'d' * 60}.test"],
)  # fmt: skip
async def test_what_is_no_name_of_a_host_is_never_asked_for(
    trusted: Authority, domain: str
) -> None:
    async with world(trusted) as here:
        policies = here.policies()
        assert await policies.of(domain) is None
        assert (await policies.applied(domain, ())).ranks == ()
        assert here.names.asked == []


async def test_a_domain_with_letters_of_its_own_is_asked_for_in_ascii(trusted: Authority) -> None:
    name = "xn--mller-kva.test"
    async with world(trusted, trusted.contexts[f"mta-sts.{name}"]) as here:
        here.zone[f"mta-sts.{name}"] = HERE
        here.announce("1", name)
        assert await here.policies().of("m\u00fcller.test") == GOOD
        assert here.host.asked == [f"mta-sts.{name}{PATH}"]


async def test_a_letter_that_is_given_up_leaves_the_look_to_the_next(trusted: Authority) -> None:
    async with world(trusted) as here:
        here.host.hangs = True
        policies = here.policies()
        first = asyncio.create_task(policies.of("site.test"))
        await here.host.arrived.wait()
        second = asyncio.create_task(policies.of("site.test"))
        first.cancel()
        here.host.hangs = False
        assert await second == GOOD
        with pytest.raises(asyncio.CancelledError):
            await first


# In the daemon


@pytest.mark.parametrize("mta_sts", [True, False])
async def test_messages_keep_policies_beside_the_spool(tmp_path: Path, mta_sts: bool) -> None:
    time = Time()
    zone: dict[str, Records | Fails] = {
        "site.test": {"MX": ["10 mx2.test."]}, "mx2.test": {"A": ["127.0.0.1"]}
    }  # fmt: skip
    async with MailServer() as server, NameServer(zone) as names:
        the_plan = plan(tmp_path, port=server.port, mta_sts=mta_sts)
        messages = made(the_plan, time, resolver=_asking(names))
        await messages.open()
        try:
            kept = Kept("1", time.now, GOOD)
            PolicyStore(tmp_path / "spool" / "mta-sts.db").note("site.test", kept, ())
            message = await spoken(messages)
            await settle(messages)
            (recipient,) = (await messages.spool.message(message.id)).recipients
        finally:
            await messages.close(0.0)
        assert ("_mta-sts.site.test TXT" in names.asked) is mta_sts
        if mta_sts:
            assert recipient.state is RecipientState.RETRY
            assert recipient.why == "MTA-STS policy of site.test: mx2.test is not in it"
            assert server.connections == 0
        else:
            assert recipient.state is RecipientState.DELIVERED


def _asking(names: NameServer) -> dns.asyncresolver.Resolver:
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers, resolver.port, resolver.lifetime = ["127.0.0.1"], names.port, 1.0
    return resolver
