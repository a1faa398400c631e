"""How Asterisk 22 turns SIP answers, Q.850 causes and dial results into each other.

Both directions lose information, which is why umpack asks for a leg's own words. Taken from what a
running Asterisk 22.10 put on the wire for each value, and `ast_sip_hangup_sip2cause` for answers no
test peer gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

BUSY: Final = 17
CONGESTION: Final = 34
DECLINE: Final = 603

SIP_TO_CAUSE: Final[Mapping[int, int]] = {
    302: 23, 401: 21, 403: 21, 404: 1, 405: 127, 407: 21, 408: 18, 409: 41, 410: 22, 411: 127,
    413: 127, 414: 127, 415: 127, 420: 3, 480: 19, 481: 127, 482: 127, 483: 19, 484: 28, 485: 1,
    486: 17, 487: 127, 488: 58, 491: 127, 493: 127, 500: 38, 501: 29, 502: 27, 503: 34, 504: 102,
    505: 127, 600: 17, 603: 21, 604: 1, 606: 58,
}  # fmt: skip

CAUSE_TO_SIP: Final[Mapping[int, int]] = {
    1: 404, 2: 404, 3: 404, 17: 486, 18: 408, 19: 480, 20: 480, 21: 403, 22: 410, 23: 302,
    27: 502, 28: 484, 29: 501, 31: 480, 34: 503, 38: 500, 42: 503, 58: 488, 66: 503, 127: 500,
}  # fmt: skip

SIP_PHRASES: Final[Mapping[int, str]] = {
    180: "Ringing", 200: "OK", 302: "Moved Temporarily", 401: "Unauthorized", 403: "Forbidden",
    404: "Not Found", 405: "Method Not Allowed", 407: "Proxy Authentication Required",
    408: "Request Timeout", 410: "Gone", 415: "Unsupported Media Type",
    480: "Temporarily Unavailable", 481: "Call/Transaction Does Not Exist",
    484: "Address Incomplete",
    486: "Busy Here", 487: "Request Terminated", 488: "Not Acceptable Here",
    491: "Request Pending", 500: "Internal Server Error", 501: "Not Implemented",
    502: "Bad Gateway", 503: "Service Unavailable", 504: "Server Time-out", 600: "Busy Everywhere",
    603: "Decline", 604: "Does Not Exist Anywhere", 606: "Not Acceptable",
}  # fmt: skip

CAUSE_TEXTS: Final[Mapping[int, str]] = {
    1: "Unallocated (unassigned) number", 2: "No route to specified transmit network",
    3: "No route to destination", 6: "Channel unacceptable", 16: "Normal Clearing",
    17: "User busy", 18: "No user responding", 19: "User alerting, no answer",
    20: "Subscriber absent", 21: "Call Rejected", 22: "Number changed",
    23: "Redirected to new destination", 26: "Answered elsewhere", 27: "Destination out of order",
    28: "Invalid number format", 29: "Facility rejected", 31: "Normal, unspecified",
    34: "Circuit/channel congestion", 38: "Network out of order", 41: "Temporary failure",
    42: "Switching equipment congestion", 43: "Access information discarded",
    44: "Requested channel not available", 58: "Bearer capability not available",
    66: "Channel not implemented", 88: "Incompatible destination",
    102: "Recover on timer expiry", 127: "Interworking, unspecified",
}  # fmt: skip


def cause_of_sip(status: int) -> int:
    """The cause chan_pjsip gives a final SIP answer. Unlisted answers go by their class."""
    if status in SIP_TO_CAUSE:
        return SIP_TO_CAUSE[status]
    if 500 <= status < 600:
        return CONGESTION if status == 580 else 38
    return 127


def sip_of_cause(cause: int) -> int:
    """The final answer chan_pjsip sends a caller who is hung up with this cause unanswered."""
    return CAUSE_TO_SIP.get(cause, DECLINE)


def cause_text(cause: int) -> str:
    """Asterisk's own words for a cause, as in `Cause-txt`; 0 shows as a normal clearing."""
    return CAUSE_TEXTS.get(cause, "Normal Clearing" if cause == 0 else "Unknown")


def sip_words(status: int) -> str:
    """A SIP answer as HANGUPCAUSE(...,tech) shows it, `SIP 486 Busy Here`."""
    return f"SIP {status} {SIP_PHRASES.get(status, '')}".rstrip()


def dial_status(causes: Iterable[int]) -> str:
    """DIALSTATUS when every leg has failed with these causes (`handle_cause` of app_dial).

    One busy leg hides a congested one, and that a dead one.
    """
    statuses = {leg_status(cause) for cause in causes}
    for status in ("BUSY", "CONGESTION", "CHANUNAVAIL"):
        if status in statuses:
            return status
    return "NOANSWER"


def leg_status(cause: int) -> str:
    """What one failed leg counts as."""
    if cause == BUSY:
        return "BUSY"
    if cause == CONGESTION:
        return "CONGESTION"
    return "NOANSWER" if cause in (16, 19) else "CHANUNAVAIL"
