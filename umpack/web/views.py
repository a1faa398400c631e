"""What the daemon shows, as plain data: the same for `umpack status`, the API and the tests.

Everything is derived from the distributor at the moment of asking; nothing is counted beside it.
Lists are made row by row, so that whoever asks can let calls pass between rows: a site of 30,000
channels takes 0.1 s to be shown whole. A reload meanwhile shows as rows of before and after.
Times are epoch seconds. Text that came off the line stays as it is: whoever prints it escapes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from math import inf
from operator import attrgetter
from typing import Any

from umpack.core.administration import Drain
from umpack.core.calls import Attempt, CallRecord, PackTried
from umpack.core.causes import name_of
from umpack.core.channel import Channel, ChannelState
from umpack.core.distributor import Distributor, Offer
from umpack.core.fitness import ALARM, REST
from umpack.core.health import TrunkHealth
from umpack.core.health_states import Admission, HealthChange, HealthState
from umpack.core.pack import Exclusion, Pack
from umpack.core.roster import REMOVED
from umpack.core.trunk import TrunkId
from umpack.history import reason_of

View = dict[str, Any]

_HEALTH = frozenset({ALARM, REST})
"""Block sources that are not administration."""

_FIRST_CHOICE = frozenset({Admission.OPEN, Admission.LIMITED})
_CLOSED = frozenset({Admission.CLOSED, Admission.CLOSED_HARD})


def packs(distributor: Distributor) -> Iterator[View]:
    """Every pack: size, what is idle, and which channel is next.

    `first_choice`, `reserve` and `closed` say for how many channels each is how calls are given to
    them now, idle or not; together they are the pack.
    """
    health = distributor.health
    return (_pack(pack, health) for pack in tuple(distributor.packs.values()))


def _pack(pack: Pack, healths: Mapping[TrunkId, TrunkHealth]) -> View:
    position = pack.next_position()
    return {
        "id": pack.id,
        "strategy": pack.plan.strategy.value,
        "overflow": list(pack.plan.overflow),
        "last": pack.pointer,
        "next": pack.channels[position].id if position >= 0 else None,
        "exclusions": [_exclusion(exclusion) for exclusion in pack.exclusions],
        **_choice(pack, healths),
        **_counts(pack.channels),
    }


def _choice(pack: Pack, healths: Mapping[TrunkId, TrunkHealth]) -> View:
    first = reserve = 0
    free = Counter([channel.trunk.id for channel in pack.channels if not channel.blocks])
    for trunk, left in free.items():
        health = healths.get(trunk)
        if health is None or health.admission in _FIRST_CHOICE:
            first += left
        elif health.admission is Admission.RESERVE:
            reserve += left
    return {
        "first_choice": first,
        "reserve": reserve,
        "closed": len(pack.channels) - first - reserve,
    }


def trunks(distributor: Distributor, now: float) -> Iterator[View]:
    """Every trunk: what people have set, and apart from that what its health is.

    `glare` is how many attempts have lost their channel to a call coming in on it, since the start.
    """
    healths, known = distributor.health, distributor.ledger.channels
    glare = distributor.collisions
    drains = {drain.target: drain for drain in distributor.drains}
    there = tuple(known.values())  # a reload or the end of a call may change the dict
    removed: dict[str, list[Channel]] = {}
    for channel in there:
        if REMOVED in channel.blocks:
            removed.setdefault(channel.trunk.id, []).append(channel)
    if removed:
        there = tuple(channel for channel in there if REMOVED not in channel.blocks)
    # Those of a trunk stand side by side, so each row costs its own channels only.
    for id_, living in groupby(there, attrgetter("trunk.id")):
        channels = [*living, *removed.pop(id_, ())]
        yield _trunk(id_, channels, drains, healths.get(id_), now, glare[TrunkId(id_)])
    for id_, channels in removed.items():
        yield _trunk(id_, channels, drains, None, now)


def _trunk(
    id_: str,
    channels: list[Channel],
    drains: Mapping[str, Drain],
    health: TrunkHealth | None,
    now: float,
    glare: int = 0,
) -> View:
    trunk = channels[0].trunk
    return {
        "id": id_,
        "kind": trunk.kind.value,
        "pbx": trunk.pbx,
        "administration": _administration(id_, channels, drains),
        "health": None if health is None else _health(health, channels, now),
        "glare": glare,
        **_counts(channels),
    }


def _administration(id_: str, channels: list[Channel], drains: Mapping[str, Drain]) -> View:
    """What people have set, and what a reload has taken away."""
    set_out = [c for c in channels if c.blocks and c.blocks.keys() - _HEALTH]
    targets = (id_, *(channel.id for channel in set_out)) if set_out else ()
    return {
        "state": _service(set_out, len(channels)),
        "why": _reasons(set_out, len(channels), _HEALTH),
        "drains": [_drain(drains[target]) for target in targets if target in drains],
    }


def _service(set_out: list[Channel], size: int) -> str:
    if not set_out:
        return "in service"
    if any(channel.lease is not None for channel in set_out):
        return "draining"
    return "out of service" if len(set_out) == size else "partly out of service"


def _reasons(channels: list[Channel], size: int, but: Iterable[str]) -> list[str]:
    reasons = Counter(
        why for channel in channels for source, why in channel.blocks.items() if source not in but
    )
    return [
        why if count == size else f"{count} of {size} channels {why}"
        for why, count in reasons.items()
    ]


def _drain(drain: Drain) -> View:
    return {
        "target": drain.target,
        "by": drain.by,
        "why": drain.why,
        "reason": drain.reason,
        "since": drain.since,
        "until": drain.until,
    }


def _health(health: TrunkHealth, channels: list[Channel], now: float) -> View:
    p99 = health.answer_p99
    return {
        "state": health.state.value,
        "since": health.since,
        "why": health.why,
        "next": health.next_step(now),
        "admission": health.admission.value,
        "limit": health.limit,
        "answer_p99": None if p99 == inf else p99,
        "resting": [
            {"channel": channel.id, "why": channel.blocks[REST]}
            for channel in channels
            if REST in channel.blocks
        ],
    }


def trunk(distributor: Distributor, id_: str, now: float) -> View | None:
    """One of them, if it is configured."""
    health = distributor.health.get(TrunkId(id_))
    if health is None:
        return None
    channels = [c for c in distributor.ledger.channels.values() if c.trunk.id == id_]
    drains = {drain.target: drain for drain in distributor.drains}
    glare = distributor.collisions[TrunkId(id_)]
    return _trunk(id_, channels, drains, health, now, glare)


def change(change: HealthChange) -> View:
    """A trunk's health went from one state to another."""
    return {
        "trunk": change.trunk,
        "at": change.at,
        "from": change.before.value,
        "to": change.after.value,
        "event": change.event.value,
        "why": reason_of(change),
    }


def headline(distributor: Distributor) -> str:
    """Everything in a few words: "28/30 channels, 3 calls, 1 trunk ejected"."""
    healths, channels = distributor.health, distributor.ledger.channels
    closed = {id_ for id_, health in healths.items() if health.admission in _CLOSED}
    out = len([c for c in channels.values() if c.blocks or c.trunk.id in closed])
    states = Counter(health.state for health in healths.values())
    calls = len(distributor.ledger)
    parts = [
        f"{len(channels) - out}/{len(channels)} channels",
        f"{calls} call{'' if calls == 1 else 's'}",
    ]
    parts += [
        f"{states[state]} trunk{'' if states[state] == 1 else 's'} {state.value}"
        for state in reversed(HealthState)
        if states[state] and state is not HealthState.UP
    ]
    return ", ".join(parts)


def _counts(channels: Iterable[Channel]) -> View:
    # A list and no Counter, for which each state would have to be hashed, in Python.
    states = [channel.state for channel in channels]
    draining = states.count(ChannelState.DRAINING)
    return {
        "channels": len(states),
        "idle": states.count(ChannelState.IDLE),
        "leased": states.count(ChannelState.LEASED) + draining,
        "blocked": states.count(ChannelState.BLOCKED),
        "draining": draining,
    }


def channels(distributor: Distributor) -> Iterator[View]:
    """Every channel with its places in the packs and the call on it."""
    return (_channel(channel) for channel in tuple(distributor.ledger.channels.values()))


def _channel(channel: Channel) -> View:
    lease = channel.lease
    return {
        "id": channel.id,
        "trunk": channel.trunk.id,
        "number": channel.number,
        "state": channel.state.name.lower(),
        "why": list(channel.blocks.values()),
        "call": lease.holder.call.id if lease else None,
        "since": lease.since if lease else None,
        "packs": [{"id": seat.pack.id, "position": seat.position + 1} for seat in channel.seats],
    }


def living_calls(distributor: Distributor) -> Iterator[View]:
    """The calls that hold a channel now, oldest first."""
    return map(_living, sorted(distributor.calls, key=lambda offer: offer.offered))


def living_call(distributor: Distributor, id_: str) -> View | None:
    """One of them."""
    return next((_living(offer) for offer in distributor.calls if offer.call.id == id_), None)


def _living(offer: Offer) -> View:
    lease = offer.lease
    pack = lease.pack if lease else None
    return {
        "id": offer.call.id,
        "pbx": offer.call.pbx,
        "called": offer.call.called,
        "caller": offer.call.caller,
        "caller_name": offer.call.caller_name,
        "offered": offer.offered,
        "answered": offer.answered,
        "channel": lease.channel.id if lease else None,
        "pack": pack.id if pack else None,
        "position": lease.position + 1 if lease else None,
        "after": pack.after(lease.after) if lease and pack else None,
        "passed_over": pack.passed_over(lease.position, lease.after) if lease and pack else 0,
        "route": offer.route,
        "candidates": list(offer.chain),
        "attempts": [_attempt(attempt) for attempt in offer.attempts],
        "passed_packs": [_passed(passed) for passed in offer.passed_packs],
        "exclusions": [_exclusion(exclusion) for exclusion in offer.exclusions],
        "state": "dialling" if offer.answered is None else "connected",
    }


def record(ended: CallRecord) -> View:
    """One call that has ended, whole."""
    return {
        "id": ended.call.id,
        "pbx": ended.call.pbx,
        "called": ended.call.called,
        "caller": ended.call.caller,
        "caller_name": ended.call.caller_name,
        "inbound": ended.call.inbound,
        "offered": ended.offered,
        "answered": ended.answered,
        "ended": ended.ended,
        "ending": ended.ending.value,
        "reason": ended.reason.value if ended.reason else None,
        "cause": ended.cause,
        "cause_name": name_of(ended.cause),
        "why": ended.why,
        "route": ended.route,
        "candidates": list(ended.candidates),
        "channel": ended.channel,
        "attempts": [_attempt(attempt) for attempt in ended.attempts],
        "passed_packs": [_passed(passed) for passed in ended.passed_packs],
        "exclusions": [_exclusion(exclusion) for exclusion in ended.exclusions],
    }


def _attempt(attempt: Attempt) -> View:
    return {
        "channel": attempt.channel,
        "trunk": attempt.trunk,
        "pack": attempt.pack,
        "position": attempt.position,
        "after": attempt.after,
        "passed_over": attempt.passed_over,
        "started": attempt.started,
        "ended": attempt.ended,
        "result": attempt.outcome.result.value,
        "cause": attempt.outcome.cause,
        "sip": attempt.outcome.sip,
        "detail": attempt.outcome.detail,
        "elsewhere": attempt.verdict.elsewhere.value,
        "blame": attempt.verdict.blame.value,
        "source": attempt.verdict.source,
    }


def _passed(passed: PackTried) -> View:
    return {
        "pack": passed.pack,
        "why": passed.why,
        "exclusions": [_exclusion(exclusion) for exclusion in passed.exclusions],
    }


def _exclusion(exclusion: Exclusion) -> View:
    return {"trunk": exclusion.trunk, "channels": exclusion.channels, "why": exclusion.why}
