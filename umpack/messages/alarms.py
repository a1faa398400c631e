"""What a person should know of the messages: begun once, told again when it grows, and ended.

Pure: what there is to know is an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from loguru import logger

from umpack.messages.message import MessageId
from umpack.messages.reconciliation import Reconciliation
from umpack.messages.spool_health import SpoolHealth


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something a person should know; `since` in epoch seconds."""

    kind: str
    """late, dead letters, ambiguous, spool, pages, mail system, server, directory, no record,
    several records."""
    what: str
    since: float
    count: int = 1
    """Told again when it grows."""
    about: str = ""
    """Which of several of a kind: a server, a directory, what the spool suffers from."""


class Alarms:
    """Those that are on."""

    def __init__(self) -> None:
        self._on: dict[tuple[str, str], Alarm] = {}

    def take(self, found: Iterable[Alarm]) -> tuple[Alarm, ...]:
        """What is on from now on, each since it began; changes are logged."""
        now: dict[tuple[str, str], Alarm] = {}
        for alarm in found:
            key = alarm.kind, alarm.about
            before = self._on.get(key)
            now[key] = alarm if before is None else replace(alarm, since=before.since)
            # Again when there are more: the second dead letter is not the first one's.
            if before is None or alarm.count > before.count:
                logger.error("messages: {}: {}", alarm.kind, alarm.what)
        for key in self._on.keys() - now.keys():
            logger.info("messages: {}: over", " ".join(filter(None, key)))
        self._on = now
        return tuple(now.values())


def of_spool(health: SpoolHealth, reserve: int, now: float) -> list[Alarm]:
    """What the spool and its counts have to say; `reserve` in bytes."""
    found = []
    if many := health.dead_letters:
        words = f"{many}: umpack faxes --state 'dead letter'"
        found.append(Alarm("dead letters", words, now, many))
    if many := health.ambiguous:
        words = f"{many} may have been delivered: umpack faxes --state ambiguous"
        found.append(Alarm("ambiguous", words, now, many))
    if not health.writable:
        found.append(Alarm("spool", health.fault, now, about="not writable"))
    elif health.owed or health.slow:
        words = f"{health.owed} owed" if health.owed else "slow"
        found.append(Alarm("spool", words, now, health.owed, about="slow"))
    elif health.free_bytes < reserve:
        words = f"{health.free_bytes // 1_000_000} MB free: calls are refused"
        found.append(Alarm("spool", words, now, about="full"))
    return found


def of_pages(wrong: Mapping[MessageId, float]) -> list[Alarm]:
    """Messages whose engine has counted other pages than are on disk, and since when."""
    if not wrong:
        return []
    words = f"{len(wrong)} received otherwise than they are on disk: {', '.join(wrong)}"
    return [Alarm("pages", words[:300], min(wrong.values()), len(wrong))]


def of_calls(known: Reconciliation | None) -> list[Alarm]:
    """What the last reconciliation has found."""
    if known is None:
        return []
    found = []
    if many := len(known.without_record):
        words = f"{many} answered calls: umpack faxes --open"
        found.append(Alarm("no record", words, known.at, many))
    if many := len(known.doubled):
        words = f"{many} calls: umpack faxes --open"
        found.append(Alarm("several records", words, known.at, many))
    return found


def of_others(
    resting: Iterable[str],
    directories: Sequence[tuple[str, str]],
    away_since: float | None,
    now: float,
) -> list[Alarm]:
    """Mail servers that rest, directories (name, fault) that cannot be used, the mail system."""
    found = []
    if away_since is not None:
        found.append(Alarm("mail system", "no relay can be reached", away_since))
    found += [Alarm("server", name, now, about=name) for name in resting]
    found += [Alarm("directory", fault, now, about=name) for name, fault in directories if fault]
    return found


@dataclass(frozen=True, slots=True)
class Status:
    """How it stands."""

    at: float
    health: SpoolHealth | None
    alarms: tuple[Alarm, ...]
    away_since: float | None
    resting: Mapping[str, str]
    """Mail servers that are left alone, and why."""
