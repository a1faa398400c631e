"""What people do with trunks and channels: each is logged with who did it, and on disk before it is
confirmed."""

from __future__ import annotations

from loguru import logger

from umpack import clock
from umpack.core.administration import Drain
from umpack.core.distributor import Distributor
from umpack.core.printable import printable
from umpack.core.trunk import TrunkId
from umpack.records import Records


class Operator:
    """All raise `UnknownTarget` for what is not configured, and `OurFault` when it is done but the
    disk did not take it."""

    def __init__(self, distributor: Distributor, records: Records) -> None:
        self._distributor = distributor
        self._records = records

    async def drain(self, drain: Drain) -> None:
        """Take something out of service."""
        self._distributor.drain(drain)
        logger.info("{} {}", printable(drain.target), printable(drain.reason, 300))
        await self._records.save_now(f"{drain.target} takes no more calls")

    async def enable(self, target: str, by: str) -> bool:
        """Put it back; answers whether it was out."""
        was_out = self._distributor.enable(target)
        self._records.put_back(target)
        logger.info("{} enabled by {}", printable(target), printable(by))
        await self._records.save_now(f"{target} is in service")
        return was_out

    async def eject(self, trunk: TrunkId, by: str, why: str, seconds: float | None) -> None:
        """Keep calls off a trunk for a time, as if it had failed.

        Where it was the last usable one of a pack, it stays in reserve.
        """
        reason = _reason(by, why)
        self._distributor.eject(trunk, clock.now(), reason, seconds)
        span = "" if seconds is None else f" for {seconds:g} s"
        logger.info("trunk {} ejected{} {}", printable(trunk), span, printable(reason, 300))
        await self._records.save_now(f"{trunk} is ejected")

    async def restore(self, trunk: TrunkId, by: str, why: str) -> None:
        """Forget what a trunk has failed, but no alarm and no drain."""
        reason = _reason(by, why)
        self._distributor.restore_trunk(trunk, clock.now(), f"restored {reason}")
        logger.info("trunk {} restored {}", printable(trunk), printable(reason, 300))
        await self._records.save_now(f"{trunk} is restored")


def _reason(by: str, why: str) -> str:
    return f"by {by}: {why}" if why else f"by {by}"
