"""Whose health a trunk takes on when the configuration has changed.

What has failed is a line and what is at its other end, not a name. So health goes with the lines:
B channels are known by their numbers, SIP peers by their endpoints. Only where a trunk has got
lines nobody knew, its name is all there is to go by.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

from umpack.core.trunk import Trunk, TrunkId, TrunkKind


def heirs(
    before: Mapping[TrunkId, Trunk],
    after: Mapping[TrunkId, Trunk],
    lines: Mapping[TrunkId, Sequence[TrunkId]],
) -> dict[TrunkId, TrunkId]:
    """Trunks of now, and the one of before that each comes from; every one has one heir at most.

    `lines` says of each trunk of now to whom its channels belonged, where they are known.
    """
    found: dict[TrunkId, TrunkId] = {}
    left = dict(before)

    def inherit(heir: TrunkId, of: TrunkId | None) -> None:
        if of in left and heir not in found:
            found[heir] = of
            del left[of]

    # Peers come first: the slots of a SIP trunk go by its name, and say nothing of its far end.
    peers: dict[Hashable, list[TrunkId]] = {}
    for of, trunk in before.items():
        if trunk.kind is TrunkKind.SIP:
            peers.setdefault(_peer(trunk), []).append(of)
    sip = {id_: peers.get(_peer(t), []) for id_, t in after.items() if t.kind is TrunkKind.SIP}
    for id_, same in sip.items():
        if id_ in same:
            inherit(id_, id_)
    for id_, same in sip.items():
        for of in same:
            inherit(id_, of)
    for id_ in after:
        for of, _ in Counter(lines.get(id_, ())).most_common(1):
            inherit(id_, of)
    for id_ in after:
        inherit(id_, id_)
    return found


def _peer(trunk: Trunk) -> Hashable:
    return trunk.pbx, trunk.endpoint
