r"""What came off the line, made harmless before anything reads it.

PJSIP decodes `%0a` in From user, Request-URI user and Diversion, and `_X.` lets it in. AGI's
environment is lines: a caller with a line break in his number could add lines of his own, or
answer umpack's commands in Asterisk's name. So the called number must be wholly safe (else cause
28, as umpack says itself), and callers lose their control characters, and nothing else: names keep
umlauts and quotes, numbers `+*#`.

Two ways that look right are not (tried on Asterisk 22):

- `${LEN(${FILTER(0-9,${EXTEN})})}` = `${LEN(${EXTEN})}` holds for `12):0:9<line break>...`: values
  are put in before a function's text is parted at `):` into call and substring. Text off the line
  must never stand inside another `${...}`; REPLACE() and FIELDQTY() take the variable's *name*.
- REPLACE() loses one backslash before it decodes `\x0a`.
"""

from __future__ import annotations

import string

from umpack.core.causes import WIRE_SAFE_CAUSES
from umpack.dialplan.extension import CAUSE, NOW, Extension, one_of

CALLED = "UMPACK_CALLED"
SAFE = string.digits + string.ascii_letters + "*#+._-"
"""What `core.dial` lets into a dial string."""

_CONTROLS = "".join(f"\\\\x{code:02x}" for code in [*range(1, 0x20), 0x7F])
_MARK = r"\\x01"
_FIELDS = ("num", "name", "dnid", "rdnis")
"""The texts of the AGI environment a caller may choose, besides the extension."""
_HEARD = "GLOBAL(UMPACK_HEARD)"
"""When the last one who asked and was answered began to."""
_AWAY = "GLOBAL(UMPACK_AWAY)"
"""Until when umpack is passed by, for it did not answer; empty when it did."""


ALIVE_WITHIN = 0.9
"""Seconds umpack has to answer before the dialplan takes the call: no caller shall notice more than
one. It answers in milliseconds."""

AWAY_FOR = 5
"""Seconds calls pass by a umpack that did not answer, before one of them asks again."""

FRESH = 0.5
"""Seconds one answer speaks for the calls that come after it. To ask for every call cost more than
all else umpack costs Asterisk; who comes in the half second after the last answer of one that then
hangs is let go when its guard ends it (umpack/guard.py)."""


def entrance(name: str, reach: str) -> Extension:
    """One AGI step for one extension pattern.

    The check is a routine, where EXTEN is `s`; the AGI step is not, as umpack reads EXTEN there.
    """
    steps = Extension(name).set(CALLED, "${EXTEN}").do("Gosub(umpack-check,s,1())")
    steps.goto_if('"${GOSUB_RETVAL}" != "alive"', "after")
    return steps.do(f"AGI(agi://{reach}/umpack)").do("Goto(umpack-after,s,1)", "after")


def check(reach: str) -> Extension:
    """Ends calls with an unsafe called number; cleans the caller; notes what hunting must know.

    Answers `alive` if umpack does. It is asked on a connection of its own, for only here it can be
    left when it hangs: the kernel accepts connections for a stopped process, and an AGI step that
    is not told AGIEXITONHANGUP waits for the far end even when the caller is long gone (tried on
    Asterisk 22). On the real connection that must not be set, as it ends with every hang-up and
    umpack could not read what became of the call. A time limit of the call's own is put back.

    Times noted in globals count from both sides: the clock may be set back, and then neither an
    answer nor a silence shall hold for hours.
    """
    steps = Extension("s")
    steps.set("UMPACK_REST", f"${{REPLACE({CALLED},{SAFE})}}")
    steps.goto_if("${FIELDQTY(UMPACK_REST,x)} > 0", "invalid")
    # Marked, joined and counted: four writes to CALLERID() would be four events for every call.
    marked = (f"${{REPLACE(CALLERID({field}),{_CONTROLS},{_MARK})}}" for field in _FIELDS)
    steps.set("UMPACK_REST", "".join(marked))
    steps.goto_if(f"${{FIELDQTY(UMPACK_REST,{_MARK})}} < 2", "clean")
    for field in _FIELDS:
        steps.set(f"CALLERID({field})", f"${{REPLACE(CALLERID({field}),{_CONTROLS})}}")
    # One step, and nothing of the caller's in it: MSet parts at commas after values are put in.
    known = f"UMPACK_SINCE={NOW},UMPACK_UP=${{CHANNEL(state)}},{CAUSE}=,DIALSTATUS="
    steps.do(f"MSet({known})", "clean")
    old = f"${{UMPACK_SINCE}} - 0${{{_HEARD}}}"
    steps.goto_if(f'{old} >= 0 & {old} < {FRESH:g} & "${{{_AWAY}}}" = ""', "alive")
    steps.set("AGISTATUS", "SILENT")
    # The first to ask again speaks for all who come before he has an answer.
    steps.goto_if(f'"${{{_AWAY}}}" = ""', "ask")
    steps.set("LOCAL(left)", f"$[${{{_AWAY}}} - ${{EPOCH}}]")
    steps.goto_if(f"${{left}} > 0 & ${{left}} <= {AWAY_FOR}", "away")
    steps.set(_AWAY, f"$[${{EPOCH}} + {AWAY_FOR}]")
    steps.set("UMPACK_LIMIT", "${TIMEOUT(absolute)}", "ask")
    steps.set("TIMEOUT(absolute)", f"{ALIVE_WITHIN:g}").set("AGIEXITONHANGUP", "yes")
    steps.do(f"AGI(agi://{reach}/alive)")
    steps.set("TIMEOUT(absolute)", "${UMPACK_LIMIT}").set("AGIEXITONHANGUP", "")
    steps.goto_if('"${AGISTATUS}" != "SUCCESS"', "away")
    steps.set(_HEARD, "${UMPACK_SINCE}")
    steps.do(f'ExecIf($["${{{_AWAY}}}" != ""]?Set({_AWAY}=))')
    steps.do("Return(alive)", "alive").do("Return(away)", "away")
    # Not the number: the log is lines, too.
    steps.do("Log(NOTICE,a called number with unsafe characters is refused)", "invalid")
    return steps.end(28)


def silent() -> Extension:
    """Where Asterisk sends a channel whose time is over: the question was not answered."""
    steps = Extension("T").set("AGIEXITONHANGUP", "").set("AGISTATUS", "SILENT")
    steps.set(_AWAY, f"$[${{EPOCH}} + {AWAY_FOR}]")
    # An absolute limit that has passed is gone, and that of the call had as long to run, or longer.
    steps.do("ExecIf($[${UMPACK_LIMIT} > 0]?Set(TIMEOUT(absolute)=${UMPACK_LIMIT}))")
    steps.do(f"Log(WARNING,umpack has not answered within {ALIVE_WITHIN:g} s)")
    return steps.do("Return(away)")


def end() -> Extension:
    """Hangs up with the cause in UMPACK_CAUSE.

    Asterisk turns a cause it has no SIP status for into 603 Decline, which tells everyone upstream
    to try nowhere else (RFC 3261 21.6); 34 is 503. ISDN and answered callers get the real one.
    """
    steps = Extension("s")
    type_ = "${CHANNEL(channeltype)}"
    steps.goto_if(f'"{type_}" != "PJSIP" & "{type_}" != "SIP"', "said")
    steps.goto_if('"${CHANNEL(state)}" = "Up"', "said")
    steps.goto_if(one_of(map(str, sorted(WIRE_SAFE_CAUSES)), CAUSE), "said")
    return steps.set(CAUSE, "34").do(f"Hangup(${{FILTER(0-9,${{{CAUSE}}})}})", "said")
