"""What `umpack check` says of the `messages` table: all that would be met at start, or never."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.mail.tls import certificate
from tests.unit.daemons import text
from tests.unit.messages.offices import TEXTS
from umpack.config import load
from umpack.core.errors import OurFault
from umpack.messages.directory_file import read_directory

ETC = TEXTS.parent


def loaded(place: Path, **more: object) -> list[str]:
    """The warnings about messages."""
    keys: dict[str, object] = {
        "spool": "spool", "sender": "fax@umpack.test", "default_mailbox": "office@site.test",
        "texts": os.fspath(TEXTS), "relays": ["mx.site.test"], **more,
    }  # fmt: skip
    file = place / "umpack.yaml"
    file.write_text(text(rest=f"messages: {json.dumps(keys)}\n"))
    return [line for one in load(file).warnings if "messages" in (line := str(one))]


def refused(place: Path, **more: object) -> str:
    with pytest.raises(OurFault) as caught:
        loaded(place, **more)
    return str(caught.value)


LDAP = {"url": "ldaps://ldap.site.test", "base": "dc=x"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"url": "http://ldap.site.test"}, "not an URL of a server"),
        ({"filter": "(telephoneNumber=*)"}, "filter must have $number"),
        ({"filter": "(a=$number)(b=$other)"}, "filter must have $number and no other"),
    ],
)
def test_ldap_that_the_daemon_would_refuse(
    tmp_path: Path, wrong: dict[str, str], said: str
) -> None:
    assert loaded(tmp_path, ldap=LDAP) == []
    assert said in refused(tmp_path, ldap=LDAP | wrong)


def test_a_password_in_clear_for_ldap_is_told(tmp_path: Path) -> None:
    clear = {"url": "ldap://ldap.site.test", "base": "dc=x", "user": "cn=u", "secret": "s"}
    (warning,) = loaded(tmp_path, ldap=clear)
    assert "in clear" in warning
    assert loaded(tmp_path, ldap=clear | {"start_tls": True}) == []


def test_authorities_that_are_none(tmp_path: Path) -> None:
    more = {"tls": "required", "verify": True}
    assert "No such file" in refused(tmp_path, authorities="ca.pem", **more)
    (tmp_path / "ca.pem").write_text("not a certificate")
    assert "authorities" in refused(tmp_path, authorities="ca.pem", **more)
    assert "ldap" in refused(tmp_path, ldap=LDAP | {"authorities": "ca.pem"})
    _, pem = certificate(tmp_path, "mx.site.test")
    assert loaded(tmp_path, authorities=pem, **more) == []


@pytest.mark.parametrize("name", ["fax spool", "fax,spool", "fax&spool", "fäx", "fax(1)"])
def test_a_spool_whose_path_asterisk_cannot_take(tmp_path: Path, name: str) -> None:
    assert "Asterisk" in refused(tmp_path, spool=name)
    assert "Asterisk" in refused(tmp_path, spool=f"/var/{name}")
    assert loaded(tmp_path, spool="/var/spool/umpack-1_a+b.c") == []


def test_a_directory_with_mistakes_is_told_with_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "m.csv"
    file.write_text("number,addresses\n1,a@b.test\n2,nobody\n3X,\n")
    warnings = loaded(tmp_path, directory="m.csv")
    assert len(warnings) == 2
    assert "m.csv:3: not a mailbox" in warnings[0]
    assert "m.csv:4: " in warnings[1]
    file.write_text("number,addresses\n1,a@b.test\n")
    assert loaded(tmp_path, directory="m.csv") == []
    (warning,) = loaded(tmp_path, directory="missing.csv")
    assert "not there" in warning


def test_a_secret_for_whoever_answers_is_told(tmp_path: Path) -> None:
    auth = {"user": "umpack", "secret": "s"}
    (warning,) = loaded(tmp_path, auth=auth)
    assert "no certificate is looked at" in warning
    assert loaded(tmp_path, auth=auth, tls="required", verify=True) == []


def test_policies_of_domains_are_for_exchangers(tmp_path: Path) -> None:
    (warning,) = loaded(tmp_path, mta_sts=True)
    assert "`tls: required` and `verify: true` are for relays" in warning
    for more in ({}, {"mta_sts": False}, {"relays": [], "mx": True, "mta_sts": True}):
        assert loaded(tmp_path, **more) == []


def test_the_delivered_directories_are_the_same() -> None:
    one, other = (read_directory(ETC / f"mailboxes.{kind}") for kind in ("csv", "yml"))
    assert one.entries == other.entries
    assert len(one.entries) == 5
    known = {
        "4930200012": "anna@example.org", "4930200150": "it@example.org",
        "4930200250": "workshop@example.org", "49302003": "branch@example.org",
    }  # fmt: skip
    for number, address in known.items():
        assert [box.address for box in one.mailboxes(number)] == [address]
    bert, sales = one.mailboxes("4930200013")
    assert (bert.attach.value, sales.address) == ("both", "sales@example.org")
    assert one.mailboxes("4930200199") == one.mailboxes("4930200100")
    assert one.mailboxes("4930200099") == ()
