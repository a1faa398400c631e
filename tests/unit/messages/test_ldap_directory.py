from __future__ import annotations

import os
import ssl
import subprocess
from pathlib import Path

import pytest

from tests.mail.tls import certificate
from tests.unit.messages.ldap_peer import Peer, serve
from umpack.core.errors import ConfigError, PeerGone
from umpack.messages.directory import Mailbox, Mailboxes
from umpack.messages.ldap_directory import LdapDirectory, LdapPlan
from umpack.messages.letter import Address

if not os.environ.get("UMPACK_REQUIRE_PBX"):  # where all must be there, its lack is a failure
    pytest.importorskip("ldap3", reason="umpack[ldap] is not installed")

PEOPLE = {
    "12": {"mail": ["anna@example.org"], "preferredLanguage": ["de-DE"]},
    "13": {"mail": ["not an address"]},
    "14": {"mail": ["bert@example.org", "second@example.org"]},
}


def directory(peer: Peer, **more: float) -> LdapDirectory:
    plan = LdapPlan(f"ldap://127.0.0.1:{peer.port}", "dc=example", **more)  # type: ignore[arg-type]
    return LdapDirectory(plan)


async def test_number_is_asked_once_and_remembered() -> None:
    async with serve(Peer(people=PEOPLE)) as peer:
        ldap = directory(peer, keep=600)
        for now in (0.0, 10.0, 599.0):
            (found,) = await ldap.mailboxes("12", now)
            assert (found.address, found.language) == ("anna@example.org", "de")
        assert len(peer.asked) == 1
        await ldap.mailboxes("12", 600.0)
        assert len(peer.asked) == 2
        assert [one.address for one in await ldap.mailboxes("14", 0)] == ["bert@example.org"]


async def test_unknown_numbers_are_remembered_for_less() -> None:
    async with serve(Peer(people=PEOPLE)) as peer:
        ldap = directory(peer, keep_unknown=60)
        assert await ldap.mailboxes("99", 0.0) == ()
        assert await ldap.mailboxes("99", 59.0) == ()
        assert len(peer.asked) == 1
        peer.people = {"99": {"mail": ["new@example.org"]}}
        assert len(await ldap.mailboxes("99", 60.0)) == 1
        assert await ldap.mailboxes("13", 0.0) == ()


async def test_memory_serves_while_the_server_is_away() -> None:
    async with serve(Peer(people=PEOPLE)) as peer:
        ldap = directory(peer, keep=600, stale=86400, limit=1)
        await ldap.mailboxes("12", 0.0)
        assert await ldap.mailboxes("99", 0.0) == ()
    assert len(await ldap.mailboxes("12", 700.0)) == 1
    assert ldap.fault
    with pytest.raises(PeerGone):
        await ldap.mailboxes("12", 90000.0)
    with pytest.raises(PeerGone):
        await ldap.mailboxes("99", 90100.0)
    async with serve(peer):
        assert len(await ldap.mailboxes("12", 90200.0)) == 1
        assert ldap.fault == ""


async def test_memory_serves_however_the_number_was_signalled() -> None:
    async with serve(Peer(people=PEOPLE)) as peer:
        mailboxes = Mailboxes([directory(peer)], [Mailbox(Address("office@example.org"))])
        assert (await mailboxes.find("1-2", 0.0)).by == "ldap"
    found = await mailboxes.find("1-2", 700.0)
    assert [one.address for one in found.mailboxes] == ["anna@example.org"]
    assert found.doubt == ""


async def test_dead_server_is_not_waited_for_each_time() -> None:
    async with serve(Peer(silent=True)) as peer:
        ldap = directory(peer, limit=1)
        with pytest.raises(PeerGone):
            await ldap.mailboxes("12", 100.0)
        peer.silent = False
        with pytest.raises(PeerGone):
            await ldap.mailboxes("12", 100.5)
        assert await ldap.mailboxes("12", 101.0) == ()


async def test_server_that_refuses_does_not_say_that_it_does_not_know() -> None:
    async with serve(Peer(code=51)) as peer:
        boxes = Mailboxes([directory(peer)], [Mailbox(Address("fax@example.org"))])
        found = await boxes.find("12", 0.0)
    assert found.by == "default"
    assert "ldap" in found.doubt


async def test_number_cannot_change_the_question() -> None:
    async with serve(Peer(people=PEOPLE)) as peer:
        assert await directory(peer).mailboxes("*)(mail=*", 0.0) == ()
        assert b"*)(mail=*" in peer.asked[0]  # one value, not a filter


@pytest.mark.parametrize(
    "noise",
    [b"HTTP/1.1 400 Bad\r\n\r\n", b"0", b"\x30\x03\x02\x01\x02", b"\x30\x84\xff\xff\xff\xff",
     b"\x30\x0a\x02\x01\x02" + b"\xff" * 7, b"\x30\x80" * 30, bytes(range(256))],
)  # fmt: skip
async def test_what_is_no_ldap_is_a_fault_of_the_peer(noise: bytes) -> None:
    async with serve(Peer(noise=noise)) as peer:
        with pytest.raises(PeerGone):
            await directory(peer, limit=1).mailboxes("12", 0.0)


@pytest.mark.parametrize(
    "change",
    [{"filter": "(a=1)"}, {"filter": "(a=$b)"}, {"url": "http://x"}, {"limit": 0.0}],
)
def test_plan_must_be_sound(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        LdapPlan(**{"url": "ldap://x", "base": "", **change})  # type: ignore[arg-type]


# -- TLS: who answers decides to whom faxes go ----------------------------------------------------


def encrypted(peer: Peer, host: str = "127.0.0.1", **more: object) -> LdapDirectory:
    plan = LdapPlan(f"ldaps://{host}:{peer.port}", "dc=example", limit=20.0, **more)  # type: ignore[arg-type]
    return LdapDirectory(plan)


async def test_a_certificate_that_nobody_knows_is_no_answer(tmp_path: Path) -> None:
    context, authority = certificate(tmp_path, "localhost")
    _, other = certificate(tmp_path, "other")
    async with serve(Peer(people=PEOPLE), context) as peer:
        for wrong in (encrypted(peer), encrypted(peer, authorities=other)):
            with pytest.raises(PeerGone, match=r"(?i)certificate"):
                await wrong.mailboxes("12", 0.0)
            boxes = Mailboxes([wrong], [Mailbox(Address("default@example.org"))])
            assert (await boxes.find("12", 0.0)).doubt
        assert peer.asked == []
        right = encrypted(peer, authorities=authority)
        assert [one.address for one in await right.mailboxes("12", 0.0)] == ["anna@example.org"]
        trusting = encrypted(peer, verify=False)
        assert len(await trusting.mailboxes("12", 0.0)) == 1


# ldap3 leaves the socket it does not trust to the garbage collector, which closes it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_certificate_for_another_name_is_no_answer(tmp_path: Path) -> None:
    key, pem = tmp_path / "k", tmp_path / "c"
    subprocess.run(  # noqa: ASYNC221 - a tenth of a second
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=ldap.example.org", "-addext",
         "subjectAltName=DNS:ldap.example.org", "-keyout", key, "-out", pem],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    async with serve(Peer(people=PEOPLE), context) as peer:
        with pytest.raises(PeerGone):
            await encrypted(peer, "localhost", authorities=str(pem)).mailboxes("12", 0.0)
        assert peer.asked == []
