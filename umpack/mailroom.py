"""What the messages need of the daemon's other parts: which calls live, and which have been."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence

from umpack.config import Configuration
from umpack.core.calls import CallId
from umpack.core.distributor import Distributor
from umpack.core.trunk import TrunkId
from umpack.messages.office import Messages
from umpack.messages.reconciliation import AnsweredCall, answered
from umpack.records import Records

_MANY = 1_000_000


class LivingCalls(Collection[CallId]):
    """Calls the PBX still has, by the channel they came in on.

    A call's id is `pbx-uniqueid-serial`. The serial is ours and another after a restart; the
    channel's unique id is what tells that the call goes on.
    """

    def __init__(self, calls: Collection[CallId]) -> None:
        self._calls = tuple(calls)
        self._stems = frozenset(map(_stem, self._calls))

    def __contains__(self, call: object) -> bool:
        return isinstance(call, str) and _stem(call) in self._stems

    def __iter__(self) -> Iterator[CallId]:
        return iter(self._calls)

    def __len__(self) -> int:
        return len(self._calls)


def _stem(call: str) -> str:
    return call.rpartition("-")[0] or call


def messages_of(
    current: Callable[[], Configuration], node: str, distributor: Distributor, records: Records
) -> Messages | None:
    """The messages as they are configured; None without a section. Not opened yet.

    `current` answers the configuration in force: a reload may bring services and take them away.
    """
    plan = current().messages
    if plan is None:
        return None
    services: set[TrunkId] = set()
    """All there have been: what one of them answered is owed a message when it has left."""

    def alive() -> LivingCalls:
        return LivingCalls([offer.call.id for offer in distributor.calls])

    async def calls(since: float) -> Sequence[AnsweredCall]:
        trunks = current().site.trunks.values()
        services.update(trunk.id for trunk in trunks if trunk.kind.is_service)
        if not services:
            return ()

        def read() -> Sequence[AnsweredCall]:
            return answered(records.journal.calls(_MANY, since=since), frozenset(services))

        return await asyncio.to_thread(read)

    return Messages(plan, node, alive=alive, calls=calls)
