"""MTA-STS with exchangers from a real name server, a real policy host and real TLS (fax.md 9.9):
a failure of the policy is temporary, and the next exchanger is tried before."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pytest

from simulators.mail import MailServer, Script
from tests.mail.dnsmasq import mail_servers, name_server
from tests.mail.policy_host import Authority, PolicyHost, authority, policy
from tests.unit.daemons import logged
from tests.unit.messages.receptions import Time
from umpack.messages.letter import Address, Deferred, Delivered, Delivery, Letter, Refused
from umpack.messages.relays import Manner, Target, Tls
from umpack.messages.sts_policies import CHECK, REFRESH, Policies
from umpack.messages.transaction import Limits
from umpack.messages.transport import Transport, TransportPlan

WHO = Address("fax@umpack.example")
YOU = Address("you@site.test")
HOST = "mta-sts.site.test"
End = TypeVar("End", Delivered, Deferred, Refused)


def a(kind: type[End], end: Delivery) -> End:
    assert isinstance(end, kind), end
    return end


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("tls"), HOST, "mx1.test", "mx2.test")


@dataclass
class World:
    servers: list[MailServer]
    host: PolicyHost
    transport: Transport
    time: Time
    sent: int = 0

    async def send(self, to: Address = YOU) -> Delivery:
        self.sent += 1
        message_id = f"<{self.sent}@umpack.example>"
        body = f"Message-ID: {message_id}\r\nDate: Sat, 21 Nov 2026 10:00:00 +0100\r\n\r\nfax"
        letter = Letter(message_id, WHO, (to,), body.encode())
        return (await self.transport.deliver(letter, (to,)))[to]

    def encrypted(self) -> list[list[bool]]:
        """Of all that each server accepted."""
        return [[one.encrypted for one in server.accepted] for server in self.servers]


ANNOUNCED = 'txt-record=_mta-sts.site.test,"v=STSv1; id=1;"'
ZONE = (
    "mx-host=site.test,mx1.test,10", "mx-host=site.test,mx2.test,20",
    "host-record=mx1.test,{1}", "host-record=mx2.test,{2}",
    f"host-record={HOST},127.0.0.1", ANNOUNCED,
)  # fmt: skip


@asynccontextmanager
async def world(
    folder: Path,
    trusted: Authority,
    scripts: Sequence[Script | None],
    text: str,
    zone: Sequence[str] = ZONE,
    relays: Sequence[int] = (),
    tls: Tls = Tls.OPPORTUNISTIC,
) -> AsyncIterator[World]:
    """`site.test` has mx1 before mx2; `relays`: those of the servers that are configured."""
    async with mail_servers(*scripts) as servers, PolicyHost(trusted.contexts[HOST], text) as host:
        hosts = ["", *(server.host for server in servers)]
        async with name_server(folder, [line.format(*hosts) for line in zone]) as resolver:
            plan = TransportPlan(
                "umpack.example", port=servers[0].port, manner=Manner(tls),
                relays=tuple(Target(servers[n].host, servers[n].port) for n in relays),
                limits=replace(Limits(), connect=0.4),
            )  # fmt: skip
            time = Time()
            policies = Policies(
                resolver, time, authorities=trusted.pem, store=folder / "sts.db", port=host.port
            )
            transport = Transport(plan, resolver, time, random.Random(7), policies)
            yield World(servers, host, transport, time)


@pytest.mark.parametrize("tls", [Tls.OPPORTUNISTIC, Tls.NEVER])
async def test_enforced_named_and_certified_is_delivered_encrypted(
    tmp_path: Path, trusted: Authority, tls: Tls
) -> None:
    scripts = [Script(tls=trusted.contexts["mx1.test"]), None]
    text = policy("mx1.test", "mx2.test")
    async with world(tmp_path, trusted, scripts, text, tls=tls) as here:
        for _ in range(3):
            a(Delivered, await here.send())
        assert here.encrypted() == [[True] * 3, []]
        assert len(here.host.asked) == 1


async def test_enforced_and_no_exchanger_is_named_waits(tmp_path: Path, trusted: Authority) -> None:
    scripts = [Script(tls=trusted.contexts[f"mx{n}.test"]) for n in (1, 2)]
    async with world(tmp_path, trusted, scripts, policy("*.mx1.test")) as here:
        end = a(Deferred, await here.send())
        for number in (1, 2):
            assert f"MTA-STS policy of site.test: mx{number}.test is not in it" in end.why
        assert not end.reached
        assert [server.connections for server in here.servers] == [0, 0]


async def test_enforced_and_the_worse_exchanger_is_named_gets_it(
    tmp_path: Path, trusted: Authority
) -> None:
    scripts = [Script(tls=trusted.contexts[f"mx{n}.test"]) for n in (1, 2)]
    async with world(tmp_path, trusted, scripts, policy("MX2.test")) as here:
        a(Delivered, await here.send())
        assert here.encrypted() == [[], [True]]
        assert here.servers[0].connections == 0


async def test_enforced_and_another_ones_certificate_is_for_the_next(
    tmp_path: Path, trusted: Authority
) -> None:
    scripts = [Script(tls=trusted.contexts["mx2.test"])] * 2
    async with world(tmp_path, trusted, scripts, policy("*.test", "mx1.test", "mx2.test")) as here:
        a(Delivered, await here.send())
        assert here.encrypted() == [[], [True]]
        assert here.servers[0].connections == 1


async def test_enforced_and_only_wrong_certificates_waits_and_others_do_not(
    tmp_path: Path, trusted: Authority
) -> None:
    """Nor do those who use the same servers without a policy, however often it fails."""
    scripts = [Script(tls=trusted.contexts[HOST])] * 2
    zone = (*ZONE, "mx-host=free.test,mx1.test,10")
    async with world(tmp_path, trusted, scripts, policy("mx1.test", "mx2.test"), zone) as here:
        for _ in range(5):
            end = a(Deferred, await here.send())
            here.time.now += 3600
        assert "CERTIFICATE_VERIFY_FAILED" in end.why
        assert "MTA-STS policy of site.test is enforced" in end.why
        assert here.encrypted() == [[], []]
        a(Delivered, await here.send(Address("you@free.test")))
        assert here.encrypted() == [[True], []]
        assert all("(MTA-STS)" in label for label in here.transport.circuits.resting())


@pytest.mark.parametrize(
    "script", [Script(), Script(broken_tls=True), Script({"STARTTLS": "454 4.7.0 not now"})]
)
async def test_enforced_and_no_tls_waits_and_nothing_goes_in_clear(
    tmp_path: Path, trusted: Authority, script: Script
) -> None:
    if "STARTTLS" in script.replies:
        script = replace(script, tls=trusted.contexts["mx1.test"])
    text = policy("mx1.test", "mx2.test")
    async with world(tmp_path, trusted, [script, script], text) as here:
        end = a(Deferred, await here.send())
        assert "mx1.test[" in end.why
        assert "mx2.test[" in end.why
        assert here.encrypted() == [[], []]
        assert not any(line.startswith("MAIL") for one in here.servers for line in one.heard)


async def test_a_refusal_under_a_policy_is_as_final_as_ever(
    tmp_path: Path, trusted: Authority
) -> None:
    scripts = [Script({"RCPT": "550 5.1.1 who?"}, tls=trusted.contexts["mx1.test"]), None]
    async with world(tmp_path, trusted, scripts, policy("mx1.test")) as here:
        assert a(Refused, await here.send()).code == 550


async def test_testing_delivers_and_tells_once(tmp_path: Path, trusted: Authority) -> None:
    scripts = [Script(), None]
    async with world(tmp_path, trusted, scripts, policy("other.test", mode="testing")) as here:
        with logged("WARNING") as lines:
            for _ in range(3):
                a(Delivered, await here.send())
                here.time.now += CHECK
        (line,) = lines
        assert (
            "MTA-STS policy of site.test (testing): not in it, but used: mx1.test, mx2.test" in line
        )
        assert here.encrypted() == [[False] * 3, []]


async def test_none_is_as_without(tmp_path: Path, trusted: Authority) -> None:
    async with world(tmp_path, trusted, [Script(), None], policy(mode="none")) as here:
        with logged("WARNING") as lines:
            a(Delivered, await here.send())
        assert lines == []
        assert len(here.host.asked) == 1


async def test_a_policy_once_seen_is_enforced_though_its_host_is_dead(
    tmp_path: Path, trusted: Authority
) -> None:
    scripts = [Script(tls=trusted.contexts["mx1.test"]), None]
    text = policy("mx1.test", max_age=3 * int(REFRESH))
    async with world(tmp_path, trusted, scripts, text) as here:
        a(Delivered, await here.send())
        here.host.status = 503
        here.servers[0].script = Script()
        here.time.now += 2 * REFRESH
        a(Deferred, await here.send())
        assert len(here.host.asked) == 2
        # Its age is over, and nobody can say what the domain wants now.
        here.time.now += REFRESH
        a(Delivered, await here.send())
        assert len(here.host.asked) == 3
        assert here.encrypted() == [[True, False], []]


async def test_a_host_that_was_never_there_is_as_none(tmp_path: Path, trusted: Authority) -> None:
    async with world(tmp_path, trusted, [Script(), None], policy("other.test")) as here:
        here.host.status = 503
        a(Delivered, await here.send())


async def test_a_policy_nothing_announces_is_not_asked_for(
    tmp_path: Path, trusted: Authority
) -> None:
    zone = [line for line in ZONE if line != ANNOUNCED]
    async with world(tmp_path, trusted, [Script(), None], policy("other.test"), zone) as here:
        a(Delivered, await here.send())
        assert here.host.asked == []


async def test_two_records_announce_nothing(tmp_path: Path, trusted: Authority) -> None:
    zone = (*ZONE, ANNOUNCED.replace("id=1", "id=2"))
    async with world(tmp_path, trusted, [Script(), None], policy("other.test"), zone) as here:
        a(Delivered, await here.send())
        assert here.host.asked == []


async def test_a_domain_that_is_its_own_exchanger_must_be_named_too(
    tmp_path: Path, trusted: Authority
) -> None:
    zone = [line for line in ZONE if not line.startswith("mx-host")]
    zone.append("host-record=site.test,{1}")
    async with world(tmp_path, trusted, [Script(), None], policy("mx1.test"), zone) as here:
        assert "site.test is not in it" in a(Deferred, await here.send()).why


async def test_relays_and_address_literals_have_no_policy(
    tmp_path: Path, trusted: Authority
) -> None:
    text = policy("other.test")
    async with world(tmp_path, trusted, [Script(), None], text, relays=[0]) as here:
        a(Delivered, await here.send())
        assert here.host.asked == []
    async with world(tmp_path, trusted, [Script(), None], text) as here:
        a(Delivered, await here.send(Address(f"you@[{here.servers[0].host}]")))
        assert here.host.asked == []
