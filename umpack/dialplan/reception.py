r"""What Asterisk writes down of a fax whose umpack has died.

umpack puts this on a channel just before ReceiveFAX, as a hangup handler, and takes it off when the
message is committed. Not an `h` extension: the call may have come through a context that has its
own. Not a step behind the AGI: a sender hangs up when he is done, and then there is none. The line
is `umpack.messages.last_words`'; ARG1 is the file it goes to, which umpack names.
"""

from __future__ import annotations

from typing import Final

from umpack.dialplan.extension import Extension

CONTEXT: Final = "umpack-fax"
HANDLER: Final = f"{CONTEXT},s,1"
"""Takes the file's path as its argument. An older dialplan without it costs a warning in
Asterisk's log and this knowledge, nothing else."""

_WORDS: Final = {
    "status": "FAXSTATUS", "error": "FAXERROR", "pages": "FAXPAGES", "bitrate": "FAXBITRATE",
    "mode": "FAXMODE", "cause": "HANGUPCAUSE", "ended": "EPOCH", "words": "FAXOPT(statusstr)",
}  # fmt: skip
"""None of them is the sender's text."""


def fax_end() -> Extension:
    """The handler."""
    text = "|".join(f"{word}=${{{variable}}}" for word, variable in _WORDS.items())
    steps = Extension("s").goto_if('"${ARG1}" = "" | "${FAXSTATUS}" = ""', "done")
    return steps.do(f"Set(FILE(${{ARG1}},,,a)={text})").do("Return()", "done")
