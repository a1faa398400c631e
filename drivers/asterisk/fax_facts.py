"""What Asterisk says of a reception at its end, as facts of the message. Pure.

All of it comes from the channel: the manager's event ReceiveFAX has no word on success and is not
raised when the engine could not even begin (read in res_fax.c). What a sender can choose, his
station id, is read by itself and last: whatever stands in it must not cost the other facts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import inf

from drivers.asterisk.agi import AgiAnswer, AgiEnvironment, legible
from umpack.core.calls import Call
from umpack.core.channel import ChannelId
from umpack.messages.message import CallFacts, EngineFacts, Kind
from umpack.messages.texts import decoded
from umpack.messages.voice import NOTHING_SAID

SUCCESS = "SUCCESS"
FAILED = "FAILED"
"""res_fax says so; its manual says FAILURE."""

FAX_VARIABLES = (
    "FAXSTATUS",
    "FAXERROR",
    "FAXOPT(statusstr)",
    "FAXPAGES",
    "FAXBITRATE",
    "FAXRESOLUTION",
    "FAXMODE",
    "FAXOPT(ecm)",
    "HANGUPCAUSE",
)
_NUMBER = re.compile(r"[0-9]{1,9}")
_EARLY = 0.1
"""Seconds by which a recording that was cut off may be short of its limit."""
_ENDS = frozenset({"hangup", "dtmf", "timeout"})
"""What RECORD FILE calls the end; a timeout is its limit, or silence."""
_SILENCE_LEFT = 1.0
"""Seconds Asterisk leaves at the end of a recording of the silence that has ended it."""
_WORD = 0.25
"""Seconds of sound before it that may be a word: "yes" is a message. What the beep echoes, or the
line clicks, is shorter."""
_DEAD = 511
_METRES = re.compile(r"([0-9]{1,6})x([0-9]{1,6})")
_SAMPLES = 8000
"""A second of the WAV that Asterisk records: 8 kHz, whatever the call's codec."""


def call_facts(
    call: Call, environment: AgiEnvironment, kind: Kind, channel: ChannelId
) -> CallFacts:
    """What is known before the answer. The bytes of what the caller chose are the environment's."""
    number = _raw(environment.callerid) if call.caller else b""
    name = _raw(environment.calleridname) if call.caller_name else b""
    return CallFacts(
        call=call.id,
        kind=kind,
        called=call.called,
        caller=call.caller,
        caller_raw=number,
        caller_name=decoded(name),
        caller_name_raw=name,
        pbx=call.pbx,
        channel=channel,
    )


def fax_facts(
    values: Sequence[str], *, station: str, seconds: float, ecm_allowed: bool
) -> EngineFacts:
    """From the values of `FAX_VARIABLES`.

    FAXOPT(ecm) is what was allowed, not what the two machines agreed on; so only a no is certain.
    The spool has the rest from the file (`FaxTags`), and all bytes of the station id.
    """
    status, error, words, pages, bitrate, resolution, mode, ecm, cause = map(legible, values)
    why = ": ".join(dict.fromkeys(word for word in (error, words) if word))
    return EngineFacts(
        # Nothing is set where ReceiveFAX has ended before a session was there.
        status=status or FAILED,
        error="" if status == SUCCESS else why or "the fax engine did not begin",
        pages=_number(pages) or 0,
        bitrate=_number(bitrate) or None,
        ecm=False if ecm == "no" or not ecm_allowed else None,
        resolution=_resolution(resolution),
        t38=None if not mode else mode.upper() == "T38",
        station=_raw(station),
        seconds=seconds,
        cause=_number(cause) or None,
    )


def voice_facts(
    answer: AgiAnswer, *, longest: float, cause: str, lasted: float = inf
) -> EngineFacts:
    """From the answer to RECORD FILE: `200 result=35 (dtmf) endpos=16000`, and the like.

    However the caller ends a message, it is one; but not where Asterisk could not write it, nor
    where silence has ended it and there is nothing before that. `longest`, and what the command
    has `lasted`, are in seconds.
    """
    seconds = (_number(dict(answer.extra).get("endpos", "")) or 0) / _SAMPLES
    sound = answer.ok and answer.data in _ENDS
    if sound:
        # By silence, and not by its limit, which a line that sends no sound comes to as well.
        silence = answer.data == "timeout" and max(lasted, seconds + _EARLY) < longest
        error = f"cut off after {longest:g} s" if seconds >= longest - _EARLY else ""
        error = NOTHING_SAID if silence and seconds < _SILENCE_LEFT + _WORD else error
    elif answer.code == _DEAD:
        error = "hung up before the message"
    else:
        error = legible(answer.data) or f"RECORD FILE: {answer.code} {answer.result}"
    return EngineFacts(
        status=SUCCESS if sound else FAILED,
        error=error,
        seconds=seconds,
        cause=_number(cause) or None,
    )


def unanswered(why: str, cause: str = "") -> EngineFacts:
    """Nothing was received, as the call was over before."""
    return EngineFacts(status=FAILED, error=why, pages=None, cause=_number(cause) or None)


def _raw(text: str) -> bytes:
    """The bytes that came: AgiProtocol decodes them so that none is lost."""
    return text.encode("utf-8", "surrogateescape")


def _resolution(text: str) -> str:
    """res_fax gives spandsp's numbers, which are per metre: 8031x7700 is 204x196 an inch."""
    found = _METRES.fullmatch(text)
    if found is None:
        return ""
    across, down = (round(int(number) * 0.0254) for number in found.groups())
    return f"{across}x{down}" if across and down else ""


def _number(text: str) -> int | None:
    return int(text) if _NUMBER.fullmatch(text) else None
