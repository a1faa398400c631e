"""Below half of a pack beyond doubt suspects are as good as any, unless its overflow is well."""

from __future__ import annotations

import pytest

from tests.sites import all_of, plan, site, take, trunk
from umpack.core.causes import Blame
from umpack.core.distributor import Distributor
from umpack.core.pack import Strategy
from umpack.core.trunk import TrunkId

LINES = [trunk(name, 2) for name in "abcd"]
SPARE = [trunk(name, 2) for name in "xy"]


def distributor_of(doubtful: str, *, overflow: bool) -> Distributor:
    packs = [
        plan("um", all_of(*LINES), Strategy.CYCLIC, overflow=["spare"] if overflow else []),
        plan("spare", all_of(*SPARE)),
    ]
    distributor = Distributor(site([*LINES, *SPARE], packs))
    for name in doubtful:
        distributor.health[TrunkId(name)].attempt_failed(-1, 0.0, Blame.TRUNK, "cause 41")
    distributor.enable("a")  # grades anew
    return distributor


def served(distributor: Distributor, calls: int) -> str:
    return "".join(take(distributor).channel[0] for _ in range(calls))


@pytest.mark.parametrize(
    ("doubtful", "met"), [("ab", "ccddaabb"), ("abc", "aabbccdd"), ("abcd", "aabbccdd")]
)
def test_without_overflow_half_of_the_pack_decides(doubtful: str, met: str) -> None:
    assert served(distributor_of(doubtful, overflow=False), 8) == met


def test_an_overflow_pack_that_is_well_goes_before_suspects() -> None:
    assert served(distributor_of("abc", overflow=True), 12) == "dd" + "xxyy" + "aabbcc"


def test_an_overflow_pack_that_is_doubtful_itself_does_not() -> None:
    assert served(distributor_of("abcxy", overflow=True), 12) == "aabbccdd" + "xxyy"
