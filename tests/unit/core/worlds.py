"""Small worlds by chance: trunks of every kind on few spans, packs over them, names that move."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from random import Random
from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st

from tests.sites import UNMOVED, plan, refused, route, site, trunk
from umpack.core.causes import NAMES, SIP_VERDICTS, Outcome, Result
from umpack.core.channel import ChannelId
from umpack.core.pack import PackPlan, Strategy
from umpack.core.site import Site
from umpack.core.trunk import Trunk, TrunkId, TrunkKind

TRUNKS, PACKS = "abcd", "pqr"
ROUTES = {"1": "p", "2": "q", "3": "r", "4": "ghost"}
REFUSED_NUMBER, UNKNOWN_NUMBER, UNSAFE_NUMBER = "5", "6", "1&2"
ODD_NUMBERS = ["4", REFUSED_NUMBER, UNKNOWN_NUMBER, UNSAFE_NUMBER]
_SPANS = (1, 11, 21, 31)
"""No more than trunks, so that after a reload most of them have somebody else's."""

unshrunk = settings(
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    report_multiple_bugs=False,
)
"""For long searches: a failure is shown as it was met, as shrinking it would take minutes.

It is kept in `.hypothesis`; run the test again with `Phase.shrink` added to see a smaller one.
"""


def trunk_of(channel: str) -> str:
    return channel.partition(":")[0]


def line_of(line: Trunk, slot: int) -> Hashable:
    """What stays the same when names change: the DAHDI number, or for SIP the name itself."""
    if line.kind is TrunkKind.SIP:
        return f"{line.id}:{slot}"
    return line.pbx, line.first_number + slot - 1


def lines_of(world: Site) -> dict[Hashable, str]:
    """The name of every line."""
    return {line_of(t, slot): f"{t.id}:{slot}" for t in world.trunks.values() for slot in t.slots}


def _any_trunk(name: str, span: int, dice: Random) -> Trunk:
    slots = sorted(dice.sample(range(1, 5), dice.randint(1, 4)))
    if dice.random() < 0.4:
        return trunk(name, slots)
    return trunk(name, slots, kind=TrunkKind.S2M, first=span + dice.choice([0, 0, 0, 1]))


def any_site(seed: int) -> Site:
    """Up to four trunks in up to three packs in any order; also none at all."""
    dice = Random(seed)
    called = dice.choice([TRUNKS, TRUNKS, TRUNKS, "ab", "a", "bcd", "d", ""])
    spans = dice.sample(_SPANS, len(called))
    trunks = [_any_trunk(name, span, dice) for name, span in zip(called, spans, strict=True)]
    channels = [t.channel_id(slot) for t in trunks for slot in t.slots]
    names = dice.choice([PACKS, PACKS, PACKS, "pq", "p", "qr", ""]) if channels else ""
    plans = []
    for index, name in enumerate(names):
        shuffled = dice.sample(channels, len(channels))
        some = dice.sample(channels, dice.randint(1, len(channels)))
        later = names[index + 1 :]
        plans.append(
            plan(
                name,
                dice.choice([channels, shuffled, some, some]),
                dice.choice([Strategy.LINEAR, Strategy.CYCLIC]),
                overflow=dice.sample(later, dice.randint(0, len(later))),
                setup_budget=dice.choice([0.6, 1e6, 1e6]),
                refusal_cause=dice.choice([17, 34, 42]),
            )
        )
    routes = [route(called, pack) for called, pack in ROUTES.items() if pack in [*names, "ghost"]]
    routes.append(route(f"{UNSAFE_NUMBER[0]}*", names[0] if names else "ghost"))
    routes.append(route(REFUSED_NUMBER, refuse=21))
    return site(trunks, plans, routes, policy=UNMOVED)


def renamed(world: Site, names: Mapping[str, str], *, packs_follow: bool) -> Site:
    """The same lines under other names; packs name the lines they had, or the names they had."""
    trunks = {}
    for old in world.trunks.values():
        name = TrunkId(names[old.id])
        trunks[name] = replace(old, id=name)
    there = {t.channel_id(slot) for t in trunks.values() for slot in t.slots}

    def members(pack: PackPlan) -> tuple[ChannelId, ...]:
        moved = tuple(ChannelId(f"{names[trunk_of(c)]}{c[1:]}") for c in pack.channels)
        kept = tuple(c for c in pack.channels if c in there)
        return moved if packs_follow or not kept else kept

    packs = {pack.id: replace(pack, channels=members(pack)) for pack in world.packs.values()}
    policies = dict.fromkeys(trunks, UNMOVED)
    return replace(world, trunks=trunks, packs=packs, policies=policies)


sites = st.integers(0, 2**32).map(any_site)  # one draw: a site drawn piece by piece is slow
new_names = st.permutations(TRUNKS).map(lambda names: dict(zip(TRUNKS, names, strict=True)))
targets = st.sampled_from([*TRUNKS, *(f"{t}:{n}" for t in TRUNKS for n in range(1, 5)), "ghost"])
outcomes = st.sampled_from(
    [
        *(Outcome(result) for result in Result),
        *(refused(cause) for cause in [*NAMES, 44, 44, 44, 34, 41, None]),
        *(refused(3, sip) for sip in SIP_VERDICTS),
        refused(17, 499),
        Outcome(Result.TIMED_OUT, 17),
    ]
)
failures: st.SearchStrategy[Any] = st.lists(outcomes, min_size=1, max_size=8) | st.lists(
    st.sampled_from([refused(44), refused(6)]), min_size=3, max_size=9
)
