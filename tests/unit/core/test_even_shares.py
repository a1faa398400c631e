"""Scenario 7 for any pack: what the dead had is spread over all survivors, and nobody's neighbour
gets it alone.

In a cyclic pack survivors' shares are even within 10 %. In a linear one the order is the strategy:
the survivors have what they would have in a pack that never had the dead.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import ceil

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.core.storms import DEAD, DEATH, HOLD, SAYS_503, Far, Storm, um_site
from umpack.core.health_policy import HealthPolicy
from umpack.core.pack import Strategy

POLICY = HealthPolicy()
SETTLED = DEATH + 45.0
"""By then the dead have been ejected, also those that had hardly any calls."""


@dataclass(frozen=True)
class Blow:
    """A pack, how it is called, and who of it dies."""

    names: str
    dead: str
    channels: int
    rate: float
    strategy: Strategy
    interleave: bool
    hints: bool
    far: Far

    @property
    def alive(self) -> str:
        return "".join(name for name in self.names if name not in self.dead)

    def storm(self, names: str, until: float) -> Storm:
        world = um_site(
            self.strategy, names=names, channels=self.channels, interleave=self.interleave
        )
        script = {name: [(DEATH, 1e9, self.far)] for name in self.dead}
        return Storm(world, script, hints=self.hints, rate=self.rate).run(until)


@st.composite
def blows(draw: st.DrawFn) -> Blow:
    size = draw(st.integers(3, 8))
    names = "abcdefgh"[:size]
    # A run of neighbours, round the end too, and any others.
    first, length = draw(st.integers(0, size - 1)), draw(st.integers(1, size - 2))
    dead = {names[(first + n) % size] for n in range(length)}
    dead |= draw(st.sets(st.sampled_from(names), max_size=size - 1 - length))
    alive = size - len(dead)
    channels = draw(st.sampled_from([4, 7, 15, 30]))
    # So much that the survivors can carry it, and so that all have calls enough.
    most = alive * channels / HOLD
    rate = most * draw(st.floats(0.3, 0.6))
    return Blow(
        names,
        "".join(sorted(dead)),
        channels,
        min(rate, 20.0),
        draw(st.sampled_from(Strategy)),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.sampled_from([DEAD, SAYS_503])),
    )


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(blow=blows())
def test_survivors_shares_are_even(blow: Blow) -> None:
    alive = blow.alive
    cycle = len(alive) * blow.channels / blow.rate
    # Whole cycles, and calls enough that one more or less is not a tenth.
    cycles = max(ceil(40.0 / cycle), ceil(30 / blow.channels))
    end = SETTLED + cycles * cycle
    storm = blow.storm(blow.names, end + 1.0)
    # Before, survivors may be full for a moment: of those the dead kept waiting, all at once.
    assert storm.lost(since=SETTLED) == []
    for name in blow.dead:
        tries = storm.tries(name, SETTLED, end)
        assert all(b - a >= POLICY.suspect_rest for a, b in pairwise(tries)), "trials only"
    shares = storm.shares(SETTLED, end)
    assert set(shares) <= set(alive)
    if blow.strategy is Strategy.CYCLIC:
        mean = sum(shares.values()) / len(alive)
        for name in alive:
            assert abs(shares[name] - mean) <= 0.1 * mean, shares
    else:
        without = blow.storm(alive, end + 1.0).shares(SETTLED, end)
        for name in alive:
            # A trial's call comes back to the pack a moment later than it was offered.
            assert abs(shares[name] - without[name]) <= 0.1 * without[name] + 4, (shares, without)
