"""The site: trunks, packs and routes as the configuration gives them, checked and frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from umpack.core.causes import CauseTable
from umpack.core.health_policy import HealthPolicy, PackPolicy
from umpack.core.pack import PackId, PackPlan
from umpack.core.routes import Route
from umpack.core.trunk import PbxId, Trunk, TrunkId

_DEFAULT_POLICY, _DEFAULT_PACK_POLICY = HealthPolicy(), PackPolicy()


@dataclass(frozen=True, slots=True)
class Site:
    """What the core is told of the world. References have been resolved by whoever built it:
    packs name existing channels, all of one PBX; overflow has no loops; routes name packs."""

    trunks: Mapping[TrunkId, Trunk] = field(default_factory=dict)
    packs: Mapping[PackId, PackPlan] = field(default_factory=dict)
    routes: tuple[Route, ...] = ()
    causes: CauseTable = field(default_factory=CauseTable)
    policies: Mapping[TrunkId, HealthPolicy] = field(default_factory=dict)
    """Numbers of health; trunks not named have the defaults."""
    pack_policies: Mapping[PackId, PackPolicy] = field(default_factory=dict)
    """What of them is a pack's own, likewise."""
    no_route_cause: int = 1
    """Q.850 cause for a call no route takes."""

    def chain(self, pack: PackId) -> tuple[PackId, ...]:
        """The pack and its overflow packs, in the order they are tried, each once."""
        # With a list and not by recursion: chains may be longer than Python's stack.
        seen: dict[PackId, None] = {}
        ahead = [pack]
        while ahead:
            id_ = ahead.pop()
            if id_ not in seen:
                seen[id_] = None
                ahead += reversed(self.packs[id_].overflow)
        return tuple(seen)

    def policy(self, trunk: TrunkId) -> HealthPolicy:
        """The numbers of a trunk's health."""
        return self.policies.get(trunk, _DEFAULT_POLICY)

    def pack_policy(self, pack: PackId) -> PackPolicy:
        """The numbers of health that are a pack's own."""
        return self.pack_policies.get(pack, _DEFAULT_PACK_POLICY)

    def pbx_of(self, pack: PackId) -> PbxId:
        """The PBX whose channels a pack hands out."""
        channel = self.packs[pack].channels[0]
        return self.trunks[TrunkId(channel.rpartition(":")[0])].pbx
