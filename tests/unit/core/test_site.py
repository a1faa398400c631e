from __future__ import annotations

import pytest

from tests.sites import MAIN, all_of, plan, site, trunk
from umpack.core.pack import PackId
from umpack.core.site import Site
from umpack.core.trunk import B_CHANNEL_SLOTS, SPAN_SIZE, PbxId, TrunkKind


def test_an_empty_site_is_a_site() -> None:
    empty = Site()
    assert (dict(empty.trunks), dict(empty.packs), empty.routes) == ({}, {}, ())
    assert empty.no_route_cause == 1


def test_the_chain_of_a_pack_is_walked_in_depth_and_each_once() -> None:
    line = trunk("a", 1)
    packs = [
        plan("um", all_of(line), overflow=["near", "far"]),
        plan("near", all_of(line), overflow=["deep"]),
        plan("far", all_of(line), overflow=["deep", "last"]),
        plan("deep", all_of(line)),
        plan("last", all_of(line)),
    ]
    world = site([line], packs)
    assert world.chain(PackId("um")) == ("um", "near", "deep", "far", "last")
    assert world.chain(PackId("deep")) == ("deep",)


def test_a_chain_ends_even_where_somebody_built_a_loop() -> None:
    line = trunk("a", 1)
    packs = [plan("x", all_of(line), overflow=["y"]), plan("y", all_of(line), overflow=["x"])]
    assert site([line], packs).chain(PackId("x")) == ("x", "y")


def test_the_pbx_of_a_pack_is_that_of_its_channels() -> None:
    here, there = trunk("a", 1), trunk("b", 1, pbx=PbxId("branch"))
    world = site([here, there], [plan("p", all_of(here)), plan("q", all_of(there))])
    assert world.pbx_of(PackId("p")) == MAIN
    assert world.pbx_of(PackId("q")) == "branch"


@pytest.mark.parametrize(
    ("first", "slot", "number"), [(1, 1, 1), (1, 17, 17), (32, 1, 32), (32, 31, 62)]
)
def test_dahdi_counts_channels_over_all_spans(first: int, slot: int, number: int) -> None:
    line = trunk("line2", B_CHANNEL_SLOTS[TrunkKind.S2M], kind=TrunkKind.S2M, first=first)
    assert line.number(slot) == number
    assert line.channel_id(slot) == f"line2:{slot}"


def test_isdn_boards_have_the_b_channels_of_their_kind() -> None:
    assert len(B_CHANNEL_SLOTS[TrunkKind.S2M]) == 30
    assert not {0, 16} & set(B_CHANNEL_SLOTS[TrunkKind.S2M])
    assert B_CHANNEL_SLOTS[TrunkKind.S0] == (1, 2)
    for kind, slots in B_CHANNEL_SLOTS.items():
        assert max(slots) <= SPAN_SIZE[kind]
