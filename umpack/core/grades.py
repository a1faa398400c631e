"""What the health of its trunks means for a pack: which it hunts first, which last, which never.

Health is of a trunk, a grade is of a trunk in a pack: the last one that carries calls there
stays, and where less than half is beyond doubt, the doubtful are as good as any.
"""

from __future__ import annotations

from collections.abc import Mapping

from umpack.core.health import TrunkHealth
from umpack.core.health_policy import PackPolicy
from umpack.core.health_states import Admission
from umpack.core.pack import Exclusion, Grade, Pack
from umpack.core.trunk import TrunkId

_GRADES = {
    Admission.OPEN: Grade.FIRST,
    Admission.LIMITED: Grade.FIRST,
    Admission.RESERVE: Grade.RESERVE,
    Admission.CLOSED: Grade.CLOSED,
    Admission.CLOSED_HARD: Grade.CLOSED,
}

Healths = Mapping[TrunkId, TrunkHealth]


def grade_of(health: TrunkHealth) -> Grade:
    """How packs hunt a trunk now."""
    if health.wants_trial:
        return Grade.TRIAL
    if health.admission is Admission.LIMITED and not health.has_room:
        return Grade.LAST
    return _GRADES[health.admission]


def is_usable(pack: Pack, health: TrunkHealth) -> bool:
    """Whether a trunk may carry calls of this pack at all."""
    return _GRADES[health.admission] is not Grade.CLOSED and pack.carries(health.trunk)


def reason_to_spare(pack: Pack, trunk: TrunkId, healths: Healths) -> str:
    """Why this pack cannot do without a trunk, whatever it did; empty if it can."""
    others = [healths[id_] for id_ in pack.trunks if id_ != trunk]
    if not any(is_usable(pack, health) for health in others):
        return f"the last usable trunk of {pack.id}"
    outlying = sum(health.outlying for health in others)
    if healths[trunk].outlying and outlying >= max(1, len(others) // 2):
        # What many trunks have in common is their callers' doing. They all stay suspects, so one
        # that is really broken has no calls either while others are idle.
        return f"not the only one of {pack.id} out of the ordinary"
    return ""


def lacks(pack: Pack, healths: Healths, policy: PackPolicy) -> bool:
    """Whether so little of a pack is beyond doubt that the doubtful are welcome."""
    good = sum(
        size_of(pack, id_)
        for id_ in pack.trunks
        if healths[id_].is_proven
        and healths[id_].admission is not Admission.RESERVE
        and pack.carries(id_)
    )
    return policy.panics(good, len(pack.channels))


def size_of(pack: Pack, trunk: TrunkId) -> int:
    """How many channels a trunk has in a pack."""
    return sum(word.bit_count() for word in pack.trunks[trunk])


def grade(pack: Pack, healths: Healths, *, panic: bool) -> None:
    """Tell a pack how to hunt from now on, and what to say of it."""
    here = [healths[id_] for id_ in pack.trunks]
    pack.grade({health.trunk: grade_of(health) for health in here}, panic=panic)
    pack.note(
        Exclusion(health.trunk, size_of(pack, health.trunk), _note_of(health))
        for health in here
        if health.admission not in (Admission.OPEN, Admission.CLOSED_HARD)
    )


def _note_of(health: TrunkHealth) -> str:
    why = f": {health.why}" if health.why else ""
    return f"{health.state.value}{why}"
