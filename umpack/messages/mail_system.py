"""Whether the mail system as a whole is there, and since when: what a message's lifetime needs.

While nobody can be reached a dead letter would tell nobody anything, and after an outage of a week
the first `451 greylisted` must not end what has never had a chance. So the lifetime of a message
counts from the last time the mail system came back, if that is later than the message.

Remembered on disk, beside the spool, as umpack is restarted in outages more often than otherwise.
Pure but for `Memory`: `now` in epoch seconds is an argument.
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loguru import logger

OFTEN: Final = 600.0
"""Seconds between notes on disk that nothing has changed."""


def silence(cap: float) -> float:
    """Seconds without an answer that are an outage, if the longest wait for a retry is `cap`."""
    return max(7200.0, 2 * cap)


@dataclass(slots=True)
class MailSystem:
    """`silence`: seconds without any answer that are an outage, longer than any wait for a retry.

    `relays`: all mail goes the same way. If not, one silent domain says nothing about the others,
    and only times in which umpack itself did not run count.
    """

    silence: float
    relays: bool = True
    back: float = 0.0
    """When it last came back: lifetimes count from here at the earliest."""
    silent_since: float | None = None
    """Since when nothing answers, or all of several messages fail."""
    seen: float | None = None
    """The last time umpack had anything to do with it."""

    def answered(self, now: float) -> None:
        """A server has spoken, if only to refuse."""
        self._attend(now)
        if self.silent_since is not None and now - self.silent_since > self.silence:
            self.back = now
        self.silent_since = None

    def silent(self, now: float) -> None:
        """A try reached nobody at all."""
        self._attend(now)
        if self.silent_since is None and self.relays:
            self.silent_since = now

    def returned(self, now: float) -> None:
        """It was declared away, and is back."""
        self.back, self.silent_since = now, None

    def away(self, now: float) -> bool:
        """Whether an end says nothing about the one message it was for."""
        return self.silent_since is not None and now - self.silent_since > self.silence

    def _attend(self, now: float) -> None:
        if self.seen is not None and now - self.seen > self.silence:
            # Nothing was even tried: umpack, or all of the site, was down; or there was no mail.
            self.back = now
        # What lies ahead was noted by a wrong clock: from then on nothing would ever end.
        self.back = min(self.back, now)
        if self.silent_since is not None:
            self.silent_since = min(self.silent_since, now)
        self.seen = now


class Memory:
    """A file with what is to survive a restart. It blocks; a disk that will not costs a line in the
    log, for the spool itself alarms."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written: tuple[float, float | None] | None = None
        self._at = -math.inf

    def recall(self, system: MailSystem) -> None:
        """Take on what was noted, if anything readable was."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            noted = json.loads(self._path.read_text("utf-8"))
            back, seen, silent = (noted[key] for key in ("back", "seen", "silent_since"))
            system.back = float(back)
            system.seen = None if seen is None else float(seen)
            system.silent_since = float(silent) if silent is not None and system.relays else None

    def due(self, system: MailSystem, now: float) -> bool:
        """Whether there is something to note."""
        known = (system.back, system.silent_since)
        return known != self._written or not 0 <= now - self._at < OFTEN

    def note(self, system: MailSystem, now: float) -> None:
        """Write it, whole or not at all. Not synced: losing the last note costs a few minutes."""
        self._written, self._at = (system.back, system.silent_since), now
        noted = {"back": system.back, "seen": system.seen, "silent_since": system.silent_since}
        beside = self._path.with_suffix(".new")
        try:
            beside.write_text(json.dumps(noted), "utf-8")
            beside.replace(self._path)
        except OSError as error:
            logger.warning("{}: {}", self._path, error.strerror or error)
