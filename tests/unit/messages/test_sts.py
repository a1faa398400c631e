"""MTA-STS records and policies as RFC 8461 has them, and as strangers may write them."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.daemons import logged
from umpack.core.errors import ProtocolFault
from umpack.messages.relays import Manner, Target, Tls
from umpack.messages.sts import MAX_AGE, MAX_POLICY, Mode, Policy, apply, read_policy, record_id
from umpack.messages.sts_store import Kept, PolicyStore

LINES = ("version: STSv1", "mode: enforce", "mx: mx1.site.test", "mx: *.net.test", "max_age: 86400")
SITE = Policy(Mode.ENFORCE, ("mx1.site.test", "*.net.test"), 86400)


def text(*lines: str, end: str = "\r\n") -> bytes:
    return "".join(line + end for line in lines or LINES).encode()


# The record


@pytest.mark.parametrize(
    ("records", "id_"),
    [
        (["v=STSv1; id=20160831085700Z;"], "20160831085700Z"),
        (["v=STSv1;id=1"], "1"),
        (["v=STSv1; \tid=1 ; x_y.z=!a-b ;"], "1"),
        (["v=STSv1; a=b; id=7;"], "7"),
        (["v=STSv1; id=1; id=2;"], "1"),
        (["v=spf1 -all", "v=STSv1; id=1;", "V=STSv1; id=2;"], "1"),
        ([], None),
        (["v=spf1 -all"], None),
        (["v=STSv1; id=1;", "v=STSv1; id=1;"], None),
        (["v=STSv1; id=1;", "v=STSv1; nonsense"], None),
        (["v=STSv1;"], None),
        (["v=STSv1; a=b;"], None),
        (["v=STSv1 ; id=1;"], None),
        (["v=STSv12; id=1;"], None),
        ([" v=STSv1; id=1;"], None),
        (["id=1; v=STSv1;"], None),
        (["v=STSv1; id=;"], None),
        (["v=STSv1; id=1-2;"], None),
        (["v=STSv1; id=ä;"], None),
        (["v=STSv1; ID=1;"], None),
        (["v=STSv1; id=1;; a=b"], None),
        (["v=STSv1; id=1; a=b c;"], None),
        (["v=STSv1; id=1; a;"], None),
        (["v=STSv1; id=1;\n"], None),
        ([f"v=STSv1; id={'9' * 32};"], "9" * 32),
        ([f"v=STSv1; id={'9' * 33};"], None),
    ],
)
def test_records(records: list[str], id_: str | None) -> None:
    assert record_id(records) == id_


PIECES = st.lists(
    st.sampled_from(["v=STSv1;", "id=", ";", " ", "\t", "=", "1", "a", "\x00", "ä", "\n"])
    | st.text(max_size=5)
).map("".join)


@given(st.lists(PIECES | PIECES.map("v=STSv1;".__add__), max_size=3))
@settings(deadline=None, max_examples=500)
def test_whatever_stands_in_a_record_an_id_is_one(records: list[str]) -> None:
    id_ = record_id(records)
    if id_ is not None:
        assert 1 <= len(id_) <= 32
        assert id_.isascii()
        assert id_.isalnum()
        assert sum(f"id={id_}" in record for record in records) == 1


# The policy


@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_a_policy_with_either_end_of_line(end: str) -> None:
    assert read_policy(text(end=end)) == SITE
    assert read_policy(text(end=end).removesuffix(end.encode())) == SITE


@pytest.mark.parametrize(
    "lines",
    [
        [*LINES, "max_age: 1", "mode: none", "version: STSv2"],
        ["new: thing", "mx.x: a.test", *LINES, "", "no colon here", "\u00e4: \u00f6"],
        [line.replace(": ", ":\t ") + " \t" for line in LINES],
        [*LINES, "mx: *", "mx: *.*.test", "mx: a.*.test", "mx: *a.test", "mx: -a.test", "mx:",
         "mx: a b.test", "mx: m\u00fc.test", "mx: .test", "mx: a..test", f"mx: {'a' * 64}.test"],
        [*LINES, "mx: MX1.Site.test.", "mx: *.NET.test"],
    ],
)  # fmt: skip
def test_what_changes_nothing(lines: list[str]) -> None:
    assert read_policy(text(*lines)) == SITE


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("version: STSv1", "version: STSv2", "version"),
        ("version: STSv1", "Version: STSv1", "version"),
        ("mode: enforce", "mode: report", "mode"),
        ("mode: enforce", "mode: Enforce", "mode"),
        ("mode: enforce", "", "mode"),
        ("max_age: 86400", "", "max_age"),
        ("max_age: 86400", "max_age: -1", "max_age"),
        ("max_age: 86400", "max_age: 1e3", "max_age"),
        ("max_age: 86400", "max_age: \u0661", "max_age"),
        ("max_age: 86400", f"max_age: {MAX_AGE + 1}", "max_age"),
        ("max_age: 86400", f"max_age: {'1' * 5000}", "max_age"),
        ("mx: ", "mx: *.*.", "mx"),
    ],
)
def test_what_is_no_policy(old: str, new: str, said: str) -> None:
    with pytest.raises(ProtocolFault, match=f"no {said}"):
        read_policy(text().replace(old.encode(), new.encode()))


def test_ages_and_sizes_at_the_edge() -> None:
    age = b"max_age: %d" % MAX_AGE
    assert read_policy(text().replace(b"max_age: 86400", age)).max_age == MAX_AGE
    assert read_policy(text().replace(b"86400", b"0")).max_age == 0
    full = text() + b"x" * (MAX_POLICY - len(text()))
    assert read_policy(full) == SITE
    with pytest.raises(ProtocolFault, match="longer"):
        read_policy(full + b"x")


def test_a_promise_taken_back_needs_no_exchangers() -> None:
    found = read_policy(b"version: STSv1\nmode: none\nmax_age: 60\n")
    assert found == Policy(Mode.NONE, (), 60)


WORDS = st.sampled_from(
    ["version", "STSv1", "mode", "enforce", "testing", "none", "mx", "*.", "a.test", "max_age",
     "86400", ":", ": ", "\r\n", "\n", "\r", " ", "\t", "\x00"]
)  # fmt: skip
BODIES = (
    st.binary(max_size=300)
    | st.lists(WORDS, max_size=40).map(lambda words: "".join(words).encode())
    | st.lists(st.sampled_from(LINES) | st.text(max_size=20), max_size=12).map(
        lambda lines: "\n".join(lines).encode()
    )
)


@given(BODIES)
@settings(deadline=None, max_examples=500)
def test_whatever_stands_in_a_policy(body: bytes) -> None:
    """A policy within its bounds, or one kind of error."""
    try:
        found = read_policy(body)
    except ProtocolFault:
        return
    assert 0 <= found.max_age <= MAX_AGE
    assert found.mx or found.mode is Mode.NONE
    assert sum(map(len, found.mx)) <= len(body)
    assert all(name.isascii() and name.isprintable() for name in found.mx)


# Exchangers


@pytest.mark.parametrize(
    ("host", "covered"),
    [
        ("mx1.site.test", True), ("MX1.Site.Test", True), ("mx1.site.test.", True),
        ("a.net.test", True), ("A.NET.TEST.", True), ("xn--mx-yka.net.test", True),
        ("a.b.net.test", False), ("net.test", False), (".a.net.test", False),
        ("mx2.site.test", False), ("a.mx1.site.test", False), ("xnet.test", False),
        ("*.net.test", False), ("test", False), ("", False),
    ],
)  # fmt: skip
def test_a_star_is_one_label(host: str, covered: bool) -> None:
    assert SITE.covers(host) is covered


GOOD, OTHER = (Target(host, 25, Manner(Tls.NEVER), mx=True) for host in ("a.net.test", "b.test"))


def test_enforce_leaves_named_exchangers_and_asks_for_their_certificates() -> None:
    found = apply(SITE, ((OTHER,), (GOOD, OTHER)))
    ((target,),) = found.ranks
    assert target == GOOD
    assert (target.manner.tls, target.manner.verify) == (Tls.REQUIRED, True)
    assert (found.strangers, found.enforced) == (("b.test",), True)
    assert found.whys("x.test") == [
        "MTA-STS policy of x.test: b.test is not in it", "MTA-STS policy of x.test is enforced",
    ]  # fmt: skip
    implicit = Target("a.net.test", 465, Manner(Tls.IMPLICIT), mx=True)
    assert apply(SITE, ((implicit,),)).ranks[0][0].manner == Manner(Tls.IMPLICIT, verify=True)


def test_enforce_may_leave_nobody() -> None:
    found = apply(SITE, ((OTHER,),))
    assert (found.ranks, found.enforced) == ((), True)
    assert found.whys("x.test") == ["MTA-STS policy of x.test: b.test is not in it"]


def test_the_other_modes_change_nothing() -> None:
    ranks = ((GOOD, OTHER),)
    for mode, strangers in ((Mode.TESTING, ("b.test",)), (Mode.NONE, ())):
        found = apply(Policy(mode, SITE.mx, 60), ranks)
        assert (found.strangers, found.enforced, found.whys("x.test")) == (strangers, False, [])
        assert [[target.manner for target in rank] for rank in found.ranks] == [
            [Manner(Tls.NEVER)] * 2
        ]
    assert apply(None, ranks).ranks == ranks


# On disk


def test_policies_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "sts.db"
    kept = {f"{n}.test": Kept(str(n), float(n), SITE) for n in range(5)}
    assert PolicyStore(path).recall(9) == {}
    for domain, one in kept.items():
        PolicyStore(path).note(domain, one, ())
    PolicyStore(path).note("1.test", changed := Kept("9", 9.0, SITE), ["0.test"])
    kept.pop("0.test")
    assert list(PolicyStore(path).recall(9)) == ["2.test", "3.test", "4.test", "1.test"]
    assert PolicyStore(path).recall(9) == kept | {"1.test": changed}
    assert list(PolicyStore(path).recall(2)) == ["4.test", "1.test"]
    assert list(PolicyStore(path).recall(9)) == ["4.test", "1.test"]


def test_rows_somebody_else_wrote_are_left_out(tmp_path: Path) -> None:
    import sqlite3
    from contextlib import closing

    path = tmp_path / "sts.db"
    PolicyStore(path).note("good.test", Kept("1", 1.0, SITE), ())
    ids, ages = ("1", b"1"), (1.0, "x")
    modes, names, lives = ("enforce", "x"), ("a.test", "a.test *.*"), (60, -1, MAX_AGE + 1, "x")
    rows = [row for row in product(ids, ages, modes, names, lives)][1:]
    with closing(sqlite3.connect(path)) as database, database:
        for number, row in enumerate(rows):
            database.execute(
                "INSERT INTO policies VALUES (?, ?, ?, ?, ?, ?)", (f"{number}.test", *row)
            )
    assert list(PolicyStore(path).recall(999)) == ["good.test"]


def test_a_file_that_cannot_be_used_costs_a_line_in_the_log(tmp_path: Path) -> None:
    nowhere = PolicyStore(tmp_path / "nowhere" / "sts.db")
    broken = tmp_path / "sts.db"
    broken.write_bytes(b"no database" * 1000)
    with logged("WARNING") as lines:
        nowhere.note("a.test", Kept("1", 1.0, SITE), ())
        assert nowhere.recall(9) == {}
        assert PolicyStore(broken).recall(9) == {}
    assert len(lines) == 3
    PolicyStore(broken).note("a.test", kept := Kept("1", 1.0, SITE), ())
    assert PolicyStore(broken).recall(9) == {"a.test": kept}
