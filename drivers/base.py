"""What a driver is: the part that speaks to one switch and asks the distributor what to do.

A driver brings calls to `Distributor.offer`, carries out the answer, tells the outcome, and frees
the lease when the call's own connection ends, whatever ended it. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from umpack.core.trunk import PbxId

Clock = Callable[[], float]
"""Epoch seconds that never step back (`umpack.clock.now`); handed in, so that tests own time."""


class LinkState(Enum):
    """The signalling link to a switch."""

    CONNECTING = "connecting"
    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Link:
    """The link as status shows it. Calls need no link: they come by their own connections."""

    state: LinkState
    since: float
    detail: str = ""


class Driver(Protocol):
    """One switch."""

    @property
    def pbx(self) -> PbxId:
        """Which switch."""

    @property
    def link(self) -> Link:
        """Its signalling link."""

    async def start(self) -> None:
        """Take calls. Raises an `UmpackError` if it cannot listen."""

    async def watch(self) -> None:
        """Wait as long as the driver works beside its calls; returns when it is being closed.

        Raises what a part of it failed with: its link is then no longer kept.
        """

    async def close(self, grace: float) -> int:
        """Take no more calls and wait `grace` seconds for the running ones.

        Answers how many were left running; those go on in the switch without umpack.
        """
