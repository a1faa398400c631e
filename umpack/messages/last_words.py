"""What the PBX itself writes down of a fax whose umpack has died: one line, beside the file.

umpack has the dialplan do that at the hang-up (umpack/dialplan/reception.py), and takes the order
back when it has read the facts itself. Tried on Asterisk 22: a fax goes on to its end without
umpack, but with the channel everything is gone that would tell a whole one from a broken one.

    status=SUCCESS|error=HANGUP|pages=2|bitrate=14400|mode=audio|cause=16|ended=1732000000|words=OK

None of it is the sender's text; it is read like anything else that lies in `receiving`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from umpack.messages.message import EngineFacts

SUFFIX: Final = ".end"
"""Instead of the file's own."""
_MOST: Final = 1000
_NUMBER: Final = re.compile(r"[0-9]{1,10}")
_SUCCESS: Final = "SUCCESS"


@dataclass(frozen=True, slots=True)
class LastWords:
    """As the engine's facts, and the epoch second of the hang-up."""

    engine: EngineFacts
    ended: int | None

    def facts(self, answered: float | None) -> EngineFacts:
        """With the duration, if it is known when the caller was `answered` (epoch seconds)."""
        if answered is None or self.ended is None or not 0 <= self.ended - answered < 86_400:
            return self.engine
        return replace(self.engine, seconds=self.ended - answered)


def read_last_words(path: Path) -> LastWords | None:
    """None if there are none, or none that can be read."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb", buffering=0) as file:
            text = (file.read(_MOST) or b"").decode("ascii", "replace")
    except OSError:
        return None
    words = dict(part.partition("=")[::2] for part in text.strip().split("|"))
    status, pages = words.get("status", ""), _number(words.get("pages", ""))
    if not status.isalpha() or pages is None:
        return None
    why = ": ".join(dict.fromkeys(w for w in (words.get("error"), words.get("words")) if w))
    mode = words.get("mode", "")
    engine = EngineFacts(
        status=status,
        error="" if status == _SUCCESS else why,
        pages=pages,
        bitrate=_number(words.get("bitrate", "")) or None,
        t38=mode.upper() == "T38" if mode else None,
        cause=_number(words.get("cause", "")) or None,
    )
    return LastWords(engine, _number(words.get("ended", "")))


def _number(text: str) -> int | None:
    return int(text) if _NUMBER.fullmatch(text) else None
