from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sites import all_of, one_pack, plan, site, take, trunk
from umpack.core.administration import Drain
from umpack.core.distributor import Distributor
from umpack.core.health_states import AlarmKind
from umpack.core.order import SIGNS, LastOrder, entries, last_order, next_start
from umpack.core.pack import PackId, Strategy
from umpack.core.trunk import TrunkId, TrunkKind

A, B = trunk("a", 2), trunk("b", 2)
LINE = trunk("line-1", range(1, 4), kind=TrunkKind.S2M)
UM = PackId("um")


def drained(target: str) -> Drain:
    return Drain(target, "anna", "", 0.0)


def order(distributor: Distributor) -> LastOrder:
    return last_order(distributor.packs[UM], distributor)


def test_nothing_is_left_out_of_a_sound_pack() -> None:
    distributor = Distributor(one_pack(A, B))
    assert order(distributor) == LastOrder()
    assert order(distributor).text == "1//"


def test_what_a_person_has_drained_is_out_and_what_health_has_closed_is_last() -> None:
    distributor = Distributor(one_pack(A, B, LINE))
    distributor.eject(TrunkId("b"), 0.0, "test")
    distributor.drain(drained("a"))
    assert order(distributor).text == "1/a/b"
    distributor.enable("a")
    distributor.alarm_raised(TrunkId("line-1"), AlarmKind.RED, 1.0)
    distributor.tick(30.0)
    assert order(distributor) == LastOrder((), ("b", "line-1"))
    distributor.drain(drained("b"))
    assert order(distributor).text == "1/b/line-1"
    distributor.enable("b")
    distributor.restore_trunk(TrunkId("b"), 31.0, "test")
    assert order(distributor).text == "1//line-1"


def test_a_single_b_channel_is_out_by_its_slot_and_a_sip_slot_is_not() -> None:
    distributor = Distributor(one_pack(A, LINE))
    for target in ("a:1", "line-1:2"):
        distributor.drain(drained(target))
    assert order(distributor).text == "1/line-1.2/"
    distributor.drain(drained("line-1"))
    assert order(distributor).text == "1/line-1/"
    # Drained one by one it is as much out as at once.
    distributor.enable("line-1")
    for target in ("line-1:1", "line-1:3", "a:2"):
        distributor.drain(drained(target))
    assert order(distributor) == LastOrder(("a", "line-1"))


def test_only_the_packs_own_members_are_said() -> None:
    packs = [plan("um", all_of(A)), plan("other", all_of(B), Strategy.CYCLIC)]
    distributor = Distributor(site([A, B], packs))
    distributor.drain(drained("b"))
    assert entries(distributor.packs.values(), distributor) == {
        "order/um": "1//",
        "order/other": "1/b/",
        "start/other": "0",
    }


def test_a_cyclic_pack_goes_on_behind_its_pointer() -> None:
    linear = Distributor(one_pack(A, B))
    assert next_start(linear.packs[UM]) is None
    cyclic = Distributor(one_pack(A, B, strategy=Strategy.CYCLIC))
    starts = []
    for _ in range(4):
        starts.append(next_start(cyclic.packs[UM]))
        take(cyclic)
    assert starts == [0, 1, 2, 3]
    assert next_start(cyclic.packs[UM]) == 0


def test_what_is_too_long_leaves_single_channels_out_first() -> None:
    singles = tuple(f"line-1.{slot}" for slot in range(1, 200))
    text = LastOrder(("gone", *singles), ("late",)).text
    assert 880 < len(text) <= 900
    assert text.startswith("1/gone:line-1.1:line-1.2:")
    assert text.endswith("/late")
    names = tuple(f"t{number:039}" for number in range(40))
    assert len(LastOrder(names, names).text) <= 900
    assert LastOrder(names, names).text.startswith(f"1/{names[0]}:{names[1]}:")


ids = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,39}", fullmatch=True)


@settings(deadline=None)
@given(st.lists(ids, max_size=40, unique=True), st.lists(ids, max_size=40, unique=True))
def test_an_order_is_always_of_its_form(out: list[str], last: list[str]) -> None:
    text = LastOrder(tuple(out), tuple(last)).text
    version, first, second = text.split("/")
    assert version == "1"
    assert set(first + second) <= set(SIGNS)
    assert len(text) <= 900
    assert (
        out[: len(first.split(":"))] == (first.split(":") if first else [])[: len(out)] or not out
    )


@pytest.mark.parametrize("sign", ["/", " ", "$", "{", ")", '"', ",", "=", "\\", "\n"])
def test_no_sign_of_an_order_has_a_meaning_in_a_dialplan(sign: str) -> None:
    assert sign not in SIGNS
