"""A call while it is with us: what it asked for, what has been tried, and the record of it."""

from __future__ import annotations

from umpack.core.calls import Attempt, Call, CallRecord, Ending, PackTried, Reason
from umpack.core.causes import Outcome, Verdict, words_of
from umpack.core.ledger import Lease
from umpack.core.pack import Exclusion, PackId
from umpack.core.trunk import TrunkId

_NO_TRUNKS: frozenset[TrunkId] = frozenset()


class Offer:
    """Made by the distributor for every call; others read."""

    __slots__ = (
        "answered",
        "attempts",
        "call",
        "chain",
        "closed_trunks",
        "cut_short",
        "deadline",
        "exclusions",
        "lease",
        "lettered",
        "offered",
        "once",
        "passed_packs",
        "route",
    )

    def __init__(self, call: Call, now: float) -> None:
        self.call = call
        self.offered = now
        self.chain: tuple[PackId, ...] = ()
        self.deadline = now
        self.route = ""
        self.lease: Lease[Offer] | None = None
        self.attempts: tuple[Attempt, ...] = ()
        self.passed_packs: tuple[PackTried, ...] = ()
        self.exclusions: tuple[Exclusion, ...] = ()
        self.closed_trunks = _NO_TRUNKS
        """Trunks that have failed this call as a whole."""
        self.cut_short = False
        """The present attempt has less time than its pack gives."""
        self.lettered = False
        """The called number holds letters, which a board would take for commands."""
        self.once = False
        self.answered: float | None = None

    def attempted(
        self, lease: Lease[Offer], outcome: Outcome, verdict: Verdict, now: float
    ) -> None:
        """The attempt on `lease` is over; an adopted call was no attempt."""
        pack, channel = lease.pack, lease.channel
        self.lease = None
        if pack is None:
            return
        attempt = Attempt(
            channel.id,
            channel.trunk.id,
            pack.id,
            lease.position + 1,
            pack.after(lease.after),
            pack.passed_over(lease.position, lease.after),
            lease.since,
            now,
            outcome,
            verdict,
        )
        self.attempts += (attempt,)

    def record(
        self, ending: Ending, cause: int, why: str, now: float, reason: Reason | None = None
    ) -> CallRecord:
        """The one record of the call, which ends now."""
        return CallRecord(
            self.call,
            self.offered,
            now,
            ending,
            cause,
            why,
            self.route,
            self.attempts,
            self.passed_packs,
            self.exclusions,
            reason,
            self.answered,
            self.chain,
        )

    @property
    def tries(self) -> str:
        """The attempts that failed, for people."""
        tries = ", ".join(
            f"{attempt.channel} {words_of(attempt.outcome)}" for attempt in self.attempts
        )
        return f"{len(self.attempts)} attempts failed ({tries})"

    def __repr__(self) -> str:
        where = self.lease.channel.id if self.lease else "-"
        return f"<call {self.call.id} to {self.call.called!r} on {where}>"
