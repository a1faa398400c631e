"""Small sites for tests: trunks of a few channels, packs of their ids, routes by called number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path

from umpack.core.calls import Assignment, Call, CallId, CallRecord, Decision
from umpack.core.causes import CauseTable, Outcome, Result
from umpack.core.channel import ChannelId
from umpack.core.dial import DialTemplate
from umpack.core.distributor import Distributor
from umpack.core.health_policy import HealthPolicy, PackPolicy
from umpack.core.pack import PackId, PackPlan, Strategy
from umpack.core.routes import Pattern, Route
from umpack.core.site import Site
from umpack.core.trunk import PbxId, Trunk, TrunkId, TrunkKind

MAIN = PbxId("main")
_TEXTS = Path(__file__).parents[1] / "etc" / "mail"
MESSAGES = f"""messages:
  sender: um@example.org
  default_mailbox: um@example.org
  relays: [127.0.0.1]
  texts: {_TEXTS}
"""
"""The section a configuration file needs if it has services."""
_DIALS = {
    TrunkKind.S2M: "DAHDI/{channel}/{called}",
    TrunkKind.S0: "DAHDI/{channel}/{called}",
    TrunkKind.SIP: "PJSIP/{called}@{endpoint}",
}
_numbers = count(1)

ANSWERED = Outcome(Result.ANSWERED, cause=16)
HUNG_UP = Outcome(Result.HUNG_UP)
SILENT = Outcome(Result.TIMED_OUT)


def refused(cause: int | None, sip: int | None = None) -> Outcome:
    """The far end or the network said no."""
    return Outcome(Result.REFUSED, cause=cause, sip=sip)


def trunk(
    name: str,
    slots: int | Iterable[int] = 2,
    *,
    kind: TrunkKind = TrunkKind.SIP,
    dial: str = "",
    first: int = 1,
    pbx: PbxId = MAIN,
) -> Trunk:
    """A trunk with slots 1..n, or with the slots named."""
    isdn = kind is not TrunkKind.SIP
    return Trunk(
        id=TrunkId(name),
        kind=kind,
        pbx=pbx,
        dial=DialTemplate(dial or _DIALS[kind]),
        slots=tuple(range(1, slots + 1) if isinstance(slots, int) else slots),
        first_number=first,
        span=1 if isdn else None,
        endpoint=None if isdn else name,
    )


def plan(
    name: str,
    channels: Iterable[str],
    strategy: Strategy = Strategy.LINEAR,
    *,
    overflow: Sequence[str] = (),
    answer_within: float = 20.0,
    setup_budget: float = 30.0,
    refusal_cause: int = 34,
) -> PackPlan:
    """A pack of channel ids such as `"a:1"`."""
    return PackPlan(
        id=PackId(name),
        channels=tuple(ChannelId(channel) for channel in channels),
        strategy=strategy,
        overflow=tuple(PackId(pack) for pack in overflow),
        answer_within=answer_within,
        setup_budget=setup_budget,
        refusal_cause=refusal_cause,
    )


def all_of(*trunks: Trunk) -> tuple[ChannelId, ...]:
    """The channels of whole trunks, in order."""
    return tuple(t.channel_id(slot) for t in trunks for slot in t.slots)


def route(
    called: str,
    pack: str | None = None,
    *,
    refuse: int | None = None,
    callers: Iterable[str] = (),
    pbx: PbxId | None = MAIN,
) -> Route:
    """A route from patterns in words."""
    return Route(
        called=Pattern.parse(called),
        pack=None if pack is None else PackId(pack),
        refuse=refuse,
        callers=tuple(Pattern.parse(caller) for caller in callers),
        pbx=pbx,
    )


def site(
    trunks: Iterable[Trunk],
    packs: Iterable[PackPlan],
    routes: Iterable[Route] | None = None,
    *,
    causes: CauseTable | None = None,
    policy: HealthPolicy | None = None,
    pack_policy: PackPolicy | None = None,
) -> Site:
    """A site; without `routes` everything goes to the first pack. `policy` is every trunk's,
    `pack_policy` every pack's."""
    trunks = tuple(trunks)
    plans = {pack.id: pack for pack in packs}
    if routes is None:
        routes = (route("*", next(iter(plans))),)
    return Site(
        trunks={t.id: t for t in trunks},
        packs=plans,
        routes=tuple(routes),
        causes=causes or CauseTable(),
        policies={t.id: policy for t in trunks} if policy else {},
        pack_policies=dict.fromkeys(plans, pack_policy) if pack_policy else {},
    )


NEVER = 10**9
UNMOVED = HealthPolicy(
    suspect_after=NEVER, failures_to_eject=NEVER, channel_failures=NEVER, outlier_sample=NEVER
)
"""No failure changes how a trunk is used: for tests of what is left then."""


def one_pack(
    *trunks: Trunk, strategy: Strategy = Strategy.LINEAR, setup_budget: float = 30.0
) -> Site:
    """Whole trunks in one pack named `um`, everything routed to it."""
    return site(trunks, [plan("um", all_of(*trunks), strategy, setup_budget=setup_budget)])


def call(called: str = "100", *, caller: str = "0301234", pbx: PbxId = MAIN) -> Call:
    """A fresh call."""
    return Call(id=CallId(f"call-{next(_numbers)}"), pbx=pbx, called=called, caller=caller)


def assigned(decision: Decision) -> Assignment:
    """The decision, which must be a channel."""
    assert isinstance(decision, Assignment), decision
    return decision


def take(distributor: Distributor, called: str = "100", now: float = 0.0) -> Assignment:
    """Offer a fresh call, which must get a channel."""
    return assigned(distributor.offer(call(called), now))


def one_record(distributor: Distributor) -> CallRecord:
    """The only record since the last look."""
    (record,) = distributor.take_records()
    return record
