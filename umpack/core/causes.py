"""Why an attempt failed, and the two verdicts on it: try elsewhere? and whom to blame?

The two questions are separate. A busy subscriber ends the call and says nothing about the trunk; a
lost channel (glare) sends the call elsewhere and blames nobody; a switching fault does both.
Cause numbers and names are those of ITU-T Q.850. Which cause leads to which verdict is umpack's
own table; every row says what it rests on. Gateways differ in practice (one vendor hunts on 27,
another retries neither 42 nor 44), so a site, a pack and a trunk may say otherwise row by row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from umpack.core.values import value


class Elsewhere(Enum):
    """Shall the same call be tried on another channel?"""

    NO = "no"
    ONCE = "once"
    """Yes, but a second answer of the same kind is the call's own."""
    CHANNEL = "channel"
    """Yes, and another channel of the same trunk will do."""
    TRUNK = "trunk"
    """Yes, on another trunk."""


class Blame(Enum):
    """Whom a failure speaks against."""

    NOBODY = "nobody"
    CALL = "call"
    CHANNEL = "channel"
    TRUNK = "trunk"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The two answers, and what they rest on."""

    elsewhere: Elsewhere
    blame: Blame
    source: str


class Result(Enum):
    """What became of one attempt, as the driver saw it."""

    ANSWERED = "answered"
    """The far end answered; the call has run and is over."""
    REFUSED = "refused"
    """The far end or the network ended the attempt, with a cause where known."""
    TIMED_OUT = "timed out"
    """No answer within our own limit; the driver took the attempt back."""
    NO_CHANNEL = "no channel"
    """The PBX could not even begin: endpoint unreachable, span dead, or the channel in use."""
    HUNG_UP = "hung up"
    """The caller left before an answer."""


class Location(Enum):
    """Who gave the cause (Q.850 2.2.3): the location field of the cause element."""

    USER = 0
    PRIVATE_LOCAL = 1
    PUBLIC_LOCAL = 2
    TRANSIT = 3
    PUBLIC_REMOTE = 4
    PRIVATE_REMOTE = 5
    INTERNATIONAL = 7
    BEYOND = 10
    """A network beyond the interworking point."""


CONNECTED = Result.ANSWERED
"""At hand for every call, see `channel.LEASE`."""

_FAR = frozenset(
    {Location.PUBLIC_REMOTE, Location.PRIVATE_REMOTE, Location.INTERNATIONAL, Location.BEYOND}
)


@value
class Outcome:
    """The end of one attempt. `cause` is Q.850; `sip` the final SIP status where there was one.

    `rang` tells the phase: whether it had rung before; None where nobody knows.
    """

    result: Result
    cause: int | None = None
    sip: int | None = None
    detail: str = ""
    """The peer's own words, for the record. Comes off the line: escape before showing."""
    rang: bool | None = None
    location: Location | None = None
    glare: bool = False
    """The other end took the same channel for a call to us at the same moment (Q.931 5.7)."""


NAMES: dict[int, str] = {
    1: "unallocated number",
    2: "no route to transit network",
    3: "no route to destination",
    6: "channel unacceptable",
    16: "normal call clearing",
    17: "user busy",
    18: "no user responding",
    19: "no answer from user",
    20: "subscriber absent",
    21: "call rejected",
    22: "number changed",
    23: "redirection to new destination",
    25: "exchange routing error",
    26: "non-selected user clearing",
    27: "destination out of order",
    28: "invalid number format",
    29: "facility rejected",
    31: "normal, unspecified",
    34: "no circuit/channel available",
    38: "network out of order",
    41: "temporary failure",
    42: "switching equipment congestion",
    43: "access information discarded",
    44: "requested circuit/channel not available",
    47: "resource unavailable, unspecified",
    50: "requested facility not subscribed",
    57: "bearer capability not authorized",
    58: "bearer capability not presently available",
    63: "service or option not available",
    65: "bearer capability not implemented",
    66: "channel type not implemented",
    69: "requested facility not implemented",
    79: "service or option not implemented",
    81: "invalid call reference value",
    82: "identified channel does not exist",
    88: "incompatible destination",
    95: "invalid message",
    96: "mandatory information element missing",
    97: "message type non-existent",
    98: "message not compatible with call state",
    99: "information element non-existent",
    100: "invalid information element contents",
    101: "message not compatible with call state",
    102: "recovery on timer expiry",
    111: "protocol error, unspecified",
    127: "interworking, unspecified",
}
"""Q.850 table 1."""


def name_of(cause: int) -> str:
    """A cause in words."""
    return NAMES.get(cause, f"cause {cause}")


def _row(causes: str, elsewhere: Elsewhere, blame: Blame, source: str) -> dict[int, Verdict]:
    verdict = Verdict(elsewhere, blame, source)
    return {int(cause): verdict for cause in causes.split()}


_NO, _ONCE, _CHANNEL, _TRUNK = Elsewhere.NO, Elsewhere.ONCE, Elsewhere.CHANNEL, Elsewhere.TRUNK

CAUSE_VERDICTS: dict[int, Verdict] = {
    **_row("1 22 23 26 28 29", _NO, Blame.CALL, "Q.850 class 000: the number is what is wrong"),
    **_row("2 3 25", _ONCE, Blame.NOBODY, "Q.850: no route; dial plan or trunk, see no_route"),
    **_row("16 31", _NO, Blame.CALL, "Q.850 class 001: a normal end"),
    **_row("17", _NO, Blame.CALL, "Q.850: the user is busy, whichever line rings him"),
    **_row("18 19 20", _NO, Blame.CALL, "Q.850 class 001: the user does not answer"),
    **_row("21", _NO, Blame.CALL, "Q.850: rejected by the user; also RFC 3398 (403/603)"),
    **_row("27", _ONCE, Blame.TRUNK, "Q.850: interface of the destination not working"),
    **_row("34", _TRUNK, Blame.TRUNK, "Q.850 class 010: no circuit although we count idle ones"),
    **_row("38", _TRUNK, Blame.TRUNK, "Q.850: network out of order, likely to last"),
    **_row("41 47", _TRUNK, Blame.TRUNK, "Q.850: temporary failure, retry at once elsewhere"),
    **_row("42", _TRUNK, Blame.NOBODY, "Q.850: congestion; the switch is loaded, not broken"),
    **_row("43", _TRUNK, Blame.NOBODY, "Q.850: information could not be delivered on this way"),
    **_row("6 44 82", _CHANNEL, Blame.CHANNEL, "Q.931 5.2.3: that channel, not its trunk"),
    **_row("58 63", _TRUNK, Blame.NOBODY, "Q.850: capability not present on this way"),
    **_row("50 57 65 66 69 79 88", _NO, Blame.CALL, "Q.850 classes 011/100: the call asks for it"),
    **_row("81 95 96 97 98 99 100 101 111", _ONCE, Blame.TRUNK, "Q.850 class 101/110: protocol"),
    **_row("102", _TRUNK, Blame.TRUNK, "Q.931 T303/T310: the peer does not speak"),
    **_row("127", _ONCE, Blame.NOBODY, "Q.850: interworking, the real cause is unknown"),
}

SIP_VERDICTS: dict[int, Verdict] = {
    **_row("404 410 484 604", _NO, Blame.CALL, "RFC 3398 8.2.6.1: the number is wrong"),
    **_row("403 405 488 603 606", _NO, Blame.CALL, "RFC 3261 21.4/21.6: refused as such"),
    **_row("486 600", _NO, Blame.CALL, "RFC 3261 21.4.24: busy here is the user's answer"),
    **_row("480 487", _NO, Blame.CALL, "RFC 3261 21.4.18: the user does not answer"),
    **_row("401 407", _TRUNK, Blame.TRUNK, "RFC 3261 22: our password on that trunk is wrong"),
    **_row("408", _TRUNK, Blame.TRUNK, "RFC 3261 8.1.3.1: made by us when the server is silent"),
    **_row("500 502 503 504", _TRUNK, Blame.TRUNK, "RFC 3261 21.5: the server, not the call"),
    **_row("501 505 513", _TRUNK, Blame.NOBODY, "RFC 3261 21.5.2, .6, .7: not with this server"),
}
"""Read before the cause: Asterisk folds several SIP answers into one cause (404 and "no such
endpoint" are both 3 to its Dial application)."""

_CHANNEL_CAUSES = frozenset({None, 6, 17, 44, 82})
"""What chan_dahdi says of a B channel that is in use or still releasing: 17 while any of its
channels has a call, else nothing (dahdi_request in chan_dahdi.c)."""

_UNKNOWN = Verdict(Elsewhere.ONCE, Blame.NOBODY, "not in Q.850 table 1: one more try, no blame")
_SILENT = Verdict(
    Elsewhere.TRUNK, Blame.TRUNK, "Q.931 T303, RFC 3261 8.1.3.1: silence for all of answer_within"
)
_CUT_SHORT = Verdict(
    Elsewhere.CHANNEL,
    Blame.NOBODY,
    "Dean and Barroso, The Tail at Scale (2013), hedged requests: no answer in the usual time, and"
    " another trunk was at hand",
)
_DEAD_END = Verdict(
    Elsewhere.TRUNK, Blame.TRUNK, "Asterisk app_dial.c, CHANUNAVAIL: the trunk made no channel"
)
_IN_USE = Verdict(
    Elsewhere.CHANNEL, Blame.NOBODY, "Asterisk chan_dahdi.c, dahdi_request: the channel has a call"
)
_GLARE = Verdict(Elsewhere.CHANNEL, Blame.NOBODY, "Q.931 5.7: glare, the channel is theirs")
_FULL = Verdict(Elsewhere.TRUNK, Blame.NOBODY, "Q.850 class 010: full, as we count ourselves")
_FAR_FAULT = Verdict(Elsewhere.ONCE, Blame.NOBODY, "Q.850 2.2.3: a fault far from our trunk")
_BARRED = Verdict(Elsewhere.ONCE, Blame.NOBODY, "Q.850 2.2.3: 21 of a network, not of the user")
_NO_ANSWER = Verdict(Elsewhere.NO, Blame.CALL, "Q.931 5.2.5: it rang, the user does not answer")
_RANG_ON = Verdict(
    Elsewhere.TRUNK, Blame.CALL, "Q.931 T301, RFC 3261 21.1.2: it rang for all of answer_within"
)
ANSWERED = Verdict(Elsewhere.NO, Blame.NOBODY, "Q.931 5.1.8, RFC 3261 13.2.2.4: answered")
_CALLER_LEFT = Verdict(Elsewhere.NO, Blame.NOBODY, "Q.931 5.3.3, RFC 3261 9.1: the caller hung up")

SITUATIONS = (
    *(_UNKNOWN, _SILENT, _CUT_SHORT, _DEAD_END, _IN_USE, _GLARE, _FULL, _FAR_FAULT, _BARRED),
    *(_NO_ANSWER, _RANG_ON, ANSWERED, _CALLER_LEFT),
)
"""Verdicts that rest on more than the cause."""


@dataclass(frozen=True, slots=True)
class Override:
    """What a pack or trunk says of one cause; `None`: as it is without that."""

    elsewhere: Elsewhere | None
    blame: Blame | None
    source: str

    def over(self, row: Verdict) -> Verdict:
        """The row with this on top."""
        return Verdict(self.elsewhere or row.elsewhere, self.blame or row.blame, self.source)


@dataclass(frozen=True, slots=True)
class Overrides:
    """The own rows of a pack or trunk, by cause and by SIP status."""

    causes: Mapping[int, Override] = field(default_factory=dict)
    sip: Mapping[int, Override] = field(default_factory=dict)

    def over(self, table: CauseTable) -> CauseTable:
        """A table with these on top."""
        causes, sip = dict(table.causes), dict(table.sip)
        for rows, own in ((causes, self.causes), (sip, self.sip)):
            for number, override in own.items():
                rows[number] = override.over(rows.get(number, _UNKNOWN))
        return CauseTable(causes, sip)


_NOTHING = Overrides()


@dataclass(frozen=True, slots=True)
class CauseTable:
    """The verdicts of a site: the tables above with the site's own rows on top."""

    causes: Mapping[int, Verdict] = field(default_factory=lambda: CAUSE_VERDICTS)
    sip: Mapping[int, Verdict] = field(default_factory=lambda: SIP_VERDICTS)
    trunks: Mapping[str, Overrides] = field(default_factory=dict)
    packs: Mapping[str, Overrides] = field(default_factory=dict)

    def of(self, trunk: str, pack: str = "") -> CauseTable:
        """The table for an attempt on a trunk as a member of a pack: the pack's rows lie over the
        site's, and the trunk's over both, row by row."""
        table = self
        for own in (self.packs.get(pack, _NOTHING), self.trunks.get(trunk, _NOTHING)):
            if own is not _NOTHING:
                table = own.over(table)
        return table

    def verdict(self, outcome: Outcome, *, full: bool = False, cut_short: bool = False) -> Verdict:
        """Both answers for one failed attempt. `full`: the trunk was, as we count ourselves;
        `cut_short`: it had less time than `answer_within`."""
        if outcome.result is Result.ANSWERED:
            return ANSWERED
        if outcome.result is Result.HUNG_UP:
            return _CALLER_LEFT
        if outcome.result is Result.TIMED_OUT:
            if cut_short:
                return _CUT_SHORT
            return _RANG_ON if outcome.rang else _SILENT
        if outcome.glare:
            return _GLARE
        if outcome.result is Result.NO_CHANNEL:
            return _IN_USE if outcome.cause in _CHANNEL_CAUSES else _DEAD_END
        if outcome.sip is not None and outcome.sip in self.sip:
            row, built_in = self.sip[outcome.sip], SIP_VERDICTS.get(outcome.sip)
        else:
            row = self.causes.get(outcome.cause or 0, _UNKNOWN)
            built_in = CAUSE_VERDICTS.get(outcome.cause or 0, _UNKNOWN)
        # What has been said in the configuration has been said for every phase and place.
        return _refined(row, outcome, full=full) if row is built_in else row


def _refined(row: Verdict, outcome: Outcome, *, full: bool) -> Verdict:
    """A row in the light of phase, place and our own count."""
    if outcome.rang and outcome.sip in (408, 480):
        return _NO_ANSWER
    if outcome.sip is not None:
        return row
    if outcome.cause == 34 and full:
        return _FULL
    if outcome.cause == 21 and outcome.location not in (None, Location.USER):
        return _BARRED
    if row.blame is Blame.TRUNK and outcome.location in _FAR:
        return _FAR_FAULT
    return row


def words_of(outcome: Outcome) -> str:
    """An outcome in a few words, for people."""
    if outcome.result is Result.TIMED_OUT:
        return "no answer in time"
    if outcome.result is Result.NO_CHANNEL:
        return "no channel"
    if outcome.glare:
        return "glare"
    sip = f"SIP {outcome.sip}" if outcome.sip else ""
    cause = f"cause {outcome.cause} {name_of(outcome.cause)}" if outcome.cause else ""
    return ", ".join(part for part in (sip, cause) if part) or outcome.detail or "failed"


WIRE_SAFE_CAUSES: frozenset[int] = frozenset(
    {1, 2, 3, 17, 18, 19, 20, 21, 22, 27, 28, 29, 31, 34, 38, 42, 58, 66, 127}
)
"""Causes Asterisk's SIP channel maps to a status of their own (`hangup_cause2sip`)."""


def refusal_on_sip(cause: int) -> int:
    """The cause to hang up a SIP caller with, so that upstream may still try elsewhere.

    Asterisk turns a cause it has no status for into 603 Decline, and RFC 3261 21.6 makes any 6xx
    "nobody else either"; such causes become 34, which is 503.
    """
    return cause if cause in WIRE_SAFE_CAUSES else 34
