"""Below half of a pack beyond doubt suspects are as good as any, unless its overflow is well."""

from __future__ import annotations

import pytest

from tests.sites import all_of, plan, refused, site, take, trunk
from umpack.core.causes import Blame
from umpack.core.distributor import Distributor
from umpack.core.health_policy import HealthPolicy
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


def test_a_pack_calms_down_when_the_channel_it_lacked_has_rested() -> None:
    a, b = trunk("a", 2), trunk("b", 1)
    distributor = Distributor(
        site([a, b], [plan("um", ["b:1", "a:1"])], policy=HealthPolicy(channel_rest=5.0))
    )
    busy = take(distributor).lease
    for _ in range(3):
        distributor.outcome(take(distributor, now=1.0).lease, refused(44), 1.0)  # a:1 rests
    distributor.release(busy.token, 1.0)
    distributor.outcome(take(distributor, now=2.0).lease, refused(41), 2.0)  # b is a suspect
    distributor.tick(6.5)
    assert take(distributor, now=6.5).channel == "a:1"
