"""How long adopted calls are believed in while nobody can tell of their end.

A call that umpack has not placed ends unheard: only the PBX's lists tell. While the AMI link is
down, such calls would hold their channels for all of the outage, however long; so after a while
they are given up. Most are over by then. One that lives keeps its channel in the PBX: chan_dahdi
refuses a B channel that has an owner, without a leg, and a SIP server's own limit stands; both only
cost the next call another attempt. When the link is back, the first list is believed, and who lives
is adopted anew.

Only while calls come: they prove that the PBX lives and the manager alone is gone, and they are
what the channels are wanted for. If none come, the PBX may be restarting, and nothing is in a
hurry.
"""

from __future__ import annotations

BELIEVED_FOR = 300.0
"""Seconds of an outage after which adopted calls are given up: longer than most messages and short
faxes last, and no longer than it takes a person to come to a manager that is down."""

GIVEN_UP = "its end could not have been told: the AMI link has been down for too long"


class Outage:
    """One link's being down, look by look. Times are seconds on one time line."""

    __slots__ = ("_calls", "_since")

    def __init__(self) -> None:
        self._since: float | None = None
        self._calls = 0

    def over(self) -> None:
        """The link is up."""
        self._since = None

    def look(self, now: float, calls: int) -> bool:
        """It is down, and the PBX has sent `calls` calls in all: whether adopted ones are to be
        given up."""
        if self._since is None:
            self._since, self._calls = now, calls
        if now - self._since < BELIEVED_FOR:
            self._calls = calls  # those that come from now on count
            return False
        return calls > self._calls

    def __repr__(self) -> str:
        return "<up>" if self._since is None else f"<down since {self._since:.0f}>"
