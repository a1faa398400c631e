"""What a reception asks of Asterisk, as commands; `reception.py` has the order."""

from __future__ import annotations

import re
from typing import Final

from drivers.asterisk.agi_commands import AgiCommand, command, set_variable
from umpack.core.service import FaxOptions, VoiceOptions
from umpack.dialplan.reception import HANDLER
from umpack.messages.last_words import SUFFIX

PATH: Final = re.compile(r"/[0-9A-Za-z._/+-]+")
"""ReceiveFAX parts its argument at commas, and Asterisk's file functions know `&` and `|`."""

# Asterisk's REPLACE() takes the variable's name, so that no text of the caller's is ever evaluated;
# a line break would end the answer, and a NUL never comes, as Asterisk's texts are C strings.
STATION: Final = command(
    "GET FULL VARIABLE",
    "${REPLACE(REMOTESTATIONID," + "".join(rf"\\x{c:02x}" for c in (*range(1, 32), 127)) + ")}",
)
# The rates by themselves are only checked against the modems and limit nothing (tried, and read in
# res_fax_spandsp.c); but they must fit them, or ReceiveFAX ends at once.
_MODEMS: Final = {
    4800: {"modem": "v27", "minrate": "2400", "maxrate": "4800"},
    9600: {"modem": "v27,v29", "minrate": "4800", "maxrate": "9600"},
}
TONE: Final = "TONE_DETECT(1100,400,r)"
"""CNG (T.30 4.3.3): 1100 Hz for half a second, then three seconds of silence."""
TONES: Final = "TONE_DETECT(rx)"
NO_TONE: Final = "TONE_DETECT(0,,x)"
NO_NOTE: Final = set_variable("CHANNEL(hangup_handler_pop)", "")
NO_BEEP: Final = "randomerror"
"""What RECORD FILE calls it that the beep has not come to its end. Where the PBX has no such sound
it records nothing (tried on Asterisk 22)."""


def note_end(path: str) -> AgiCommand:
    """Have Asterisk write down how the fax in `path` ends; `NO_NOTE` takes the order back."""
    note = path.rpartition(".")[0] + SUFFIX
    return set_variable("CHANNEL(hangup_handler_push)", f"{HANDLER}({note})")


def fax_settings(options: FaxOptions) -> list[AgiCommand]:
    """Before ReceiveFAX; what is not said stays as the PBX has it."""
    settings = {
        "ecm": "yes" if options.ecm else "no",
        "localstationid": options.station,
        "headerinfo": options.header,
        **_MODEMS.get(options.max_rate, {}),
    }
    return [set_variable(f"FAXOPT({name})", value) for name, value in settings.items() if value]


def record_file(path: str, voice: VoiceOptions) -> AgiCommand:
    """`path` without its suffix, which Asterisk appends itself."""
    arguments = [path, "wav", voice.stop_keys, str(round(voice.longest * 1000))]
    if voice.beep:
        arguments.append("BEEP")
    if voice.silence:
        # Asterisk takes the sixth word for an offset in samples, if it is a number.
        arguments.append(f"s={round(voice.silence)}")
    return command("RECORD FILE", *arguments)
