"""What the daemon shows, as plain data: the same for `umpack status`, the API and the tests.

Everything is derived from the distributor at the moment of asking; nothing is counted beside it.
Lists are made row by row, so that whoever asks can let calls pass between rows: a site of 30,000
channels takes 0.1 s to be shown whole. A reload meanwhile shows as rows of before and after.
Times are epoch seconds. Text that came off the line stays as it is: whoever prints it escapes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from umpack.core.administration import Drain
from umpack.core.calls import Attempt, CallRecord, PackTried
from umpack.core.causes import name_of
from umpack.core.channel import Channel, ChannelState
from umpack.core.distributor import Distributor, Offer
from umpack.core.pack import Exclusion, Pack

View = dict[str, Any]


def packs(distributor: Distributor) -> Iterator[View]:
    """Every pack: size, what is idle, and which channel is next."""
    return (_pack(pack) for pack in tuple(distributor.packs.values()))


def _pack(pack: Pack) -> View:
    position = pack.next_position()
    return {
        "id": pack.id,
        "strategy": pack.plan.strategy.value,
        "overflow": list(pack.plan.overflow),
        "last": pack.pointer,
        "next": pack.channels[position].id if position >= 0 else None,
        "exclusions": [_exclusion(exclusion) for exclusion in pack.exclusions],
        **_counts(pack.channels),
    }


def trunks(distributor: Distributor) -> Iterator[View]:
    """Every trunk, with what keeps it or parts of it out of service."""
    members: dict[str, list[Channel]] = {id_: [] for id_ in distributor.site.trunks}
    for channel in distributor.ledger.channels.values():
        members.setdefault(channel.trunk.id, []).append(channel)
    drained = {drain.target: drain for drain in distributor.drains}
    return (_trunk(id_, channels, drained.get(id_)) for id_, channels in members.items())


def _trunk(id_: str, channels: list[Channel], drain: Drain | None) -> View:
    trunk = channels[0].trunk
    counts = _counts(channels)
    reasons = Counter(
        why for channel in channels if channel.blocks for why in channel.blocks.values()
    )
    return {
        "id": id_,
        "kind": trunk.kind.value,
        "pbx": trunk.pbx,
        "state": _service(counts),
        "why": [
            why if count == len(channels) else f"{count} of {len(channels)} channels {why}"
            for why, count in reasons.items()
        ],
        "until": drain.until if drain else None,
        **counts,
    }


def _service(counts: View) -> str:
    if not counts["blocked"] and not counts["draining"]:
        return "in service"
    if counts["draining"]:
        return "draining"
    return "out of service" if counts["blocked"] == counts["channels"] else "partly out of service"


def _counts(channels: Iterable[Channel]) -> View:
    states = Counter(channel.state for channel in channels)
    return {
        "channels": states.total(),
        "idle": states[ChannelState.IDLE],
        "leased": states[ChannelState.LEASED] + states[ChannelState.DRAINING],
        "blocked": states[ChannelState.BLOCKED],
        "draining": states[ChannelState.DRAINING],
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
    return {
        "id": offer.call.id,
        "pbx": offer.call.pbx,
        "called": offer.call.called,
        "caller": offer.call.caller,
        "caller_name": offer.call.caller_name,
        "offered": offer.offered,
        "answered": offer.answered,
        "channel": lease.channel.id if lease else None,
        "pack": lease.pack.id if lease and lease.pack else None,
        "position": lease.position + 1 if lease else None,
        "route": offer.route,
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
