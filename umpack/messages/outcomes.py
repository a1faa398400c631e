"""What a finished reception is to its addressee: a message, a broken one, a failed try, nothing.

Bundles and relations are decided from this. Pure: `now` is epoch seconds.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from umpack.core.errors import ConfigError
from umpack.messages import texts
from umpack.messages.document import LOSING, FlawKind, flaws_of
from umpack.messages.message import Kind, Message, MessageId
from umpack.messages.voice import NOTHING_SAID, SHORTEST, SoundFlaw

_NO_SOUND = frozenset({SoundFlaw.EMPTY.value, SoundFlaw.SHORT.value})
_UNCOUNTED = frozenset({
    FlawKind.FILE_SIZE, FlawKind.TIME, FlawKind.MEMORY, FlawKind.BROKEN, FlawKind.PAGES
})  # fmt: skip
"""Flaws of a file whose pages nobody has counted to the end."""


class Outcome(Enum):
    """How a reception ended."""

    WHOLE = "whole"
    INCOMPLETE = "incomplete"
    """Something is there, and something is known or feared to be missing."""
    FAILED = "failed"
    """A fax machine had called, and not one page came."""
    EMPTY = "empty"
    """Nobody said anything, or somebody spoke on a fax number."""


def outcome(message: Message) -> Outcome:
    """How it ended, by the engine's word, the file, and what was found in it."""
    engine, document = message.engine, message.document
    if message.call.kind is Kind.VOICE and _silent(message):
        return Outcome.EMPTY
    if message.original is None and message.call.kind is Kind.FAX:
        # Not by its bit rate: spandsp says 14400 of people who only spoke (tried on Asterisk 22).
        fax = engine is not None and bool(engine.station or engine.pages or engine.resolution)
        # Answered as a fax, and nobody saw the end: its sender may believe that it was sent.
        unknown = engine is None or engine.status == "UNKNOWN"
        fax |= unknown and message.answered is not None
        return Outcome.FAILED if fax else Outcome.EMPTY
    if message.original is None:
        return Outcome.INCOMPLETE
    sound = engine is not None and engine.status == "SUCCESS"
    if message.adopted:
        # Only a count tells all there is from all there was, and only faxes are counted.
        fax = message.call.kind is Kind.FAX and document is not None
        sound = sound and fax and engine is not None and engine.pages is not None
    if document is not None and message.call.kind is Kind.FAX:
        counts = {document.pages_tiff or 0, document.pages_pdf or 0, len(document.page_hashes)}
        if engine is not None and engine.pages is not None:
            counts.add(engine.pages)
        lost = any(flaw.kind in LOSING for flaw in flaws_of(document.fault))
        sound = sound and len(counts) == 1 and not lost and counts != {0}
    elif document is not None:
        sound = sound and not document.fault
    return Outcome.WHOLE if sound else Outcome.INCOMPLETE


def _silent(message: Message) -> bool:
    """Whether nobody has said anything: by the recorder's count and by the file."""
    engine, document = message.engine, message.document
    if engine is not None and engine.error == NOTHING_SAID:
        return True
    if engine is not None and (engine.seconds or 0.0) >= SHORTEST:
        return False  # what it has heard and is not there was lost, by a full disk say
    faults = document.fault.split("; ") if document is not None else ()
    return message.original is None or not _NO_SOUND.isdisjoint(faults)


def miscounted(message: Message) -> bool:
    """Whether the engine had received something else than is in the file.

    Both count the same pages, even of a call that broke off; an engine that could not write goes
    on and confirms them to the sender all the same, so that this is how a full disk shows.
    """
    engine, document = message.engine, message.document
    if engine is None:
        return False
    if message.call.kind is Kind.VOICE:
        cut = document is not None and SoundFlaw.CUT.value in document.fault.split("; ")
        return (message.original is None or cut) and (engine.seconds or 0.0) >= SHORTEST
    if message.original is None:
        return bool(engine.pages)
    if engine.pages is None or document is None or document.pages_tiff is None:
        return False
    flaws = flaws_of(document.fault)
    if any(flaw.kind in _UNCOUNTED and flaw.page is None for flaw in flaws):
        return False
    return engine.pages != document.pages_tiff


Caller: TypeAlias = tuple[Kind, str, str]


def caller_of(message: Message) -> Caller:
    """Who tried to reach whom: by number, or by station id if the number is withheld."""
    who = message.call.caller
    if not who and message.engine is not None:
        who = texts.decoded(message.engine.station).strip()
    return message.call.kind, message.call.called, who


@dataclass(frozen=True, slots=True)
class BundlePolicy:
    """Seconds: a caller who has not tried for `quiet` has given up; nobody waits `longest`."""

    quiet: float = 600.0
    longest: float = 3600.0

    def __post_init__(self) -> None:
        if not 0 < self.quiet <= self.longest:
            raise ConfigError(f"bundles: 0 < quiet <= longest does not hold: {self}")


@dataclass(frozen=True, slots=True)
class Bundle:
    """One mail: about `main`, with the other tries of its caller, oldest first, in its text."""

    main: Message
    others: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class Notices:
    """What is to be mailed now, what never, and when to ask again."""

    mails: tuple[Bundle, ...] = ()
    silent: tuple[Message, ...] = ()
    """Empty calls, to be closed by rule: their record is all they get."""
    next_at: float | None = None


def notices(
    waiting: Sequence[Message], mailed: Iterable[Message], now: float, policy: BundlePolicy
) -> Notices:
    """Decide about all that is `waiting`; `mailed` are those of late that had their mail.

    - Whole: now, with the tries that failed before it.
    - Incomplete: now if it is the caller's first of late, so that nobody waits for what there is;
      further ones together when the caller has given up.
    - Failed: together when the caller has given up: most come through on the next try.
    - Empty: in the text of another mail, never one of their own.
    """
    late = {
        caller_of(message)
        for message in mailed
        if now - _end(message) < policy.longest and outcome(message) is not Outcome.WHOLE
    }
    groups: dict[Caller, list[Message]] = defaultdict(list)
    for message in sorted(waiting, key=lambda one: (_end(one), one.id)):
        groups[caller_of(message)].append(message)
    mails: list[Bundle] = []
    silent: list[Message] = []
    next_at: list[float] = []
    for caller, group in groups.items():
        rest: list[Message] = []
        for message in group:
            found = outcome(message)
            first = found is Outcome.INCOMPLETE and caller not in late and not _any_file(rest)
            if found is Outcome.WHOLE or first:
                mails.append(Bundle(message, tuple(rest)))
                rest = []
                late.add(caller) if first else late.discard(caller)
            else:
                rest.append(message)
        if not rest:
            continue
        due = min(_end(rest[-1]) + policy.quiet, _end(rest[0]) + policy.longest)
        # A clock that was put back must not make anybody wait for it to come round again.
        if due > now and _end(rest[-1]) <= now:
            next_at.append(due)
        elif all(outcome(message) is Outcome.EMPTY for message in rest):
            silent += rest
        else:
            mails.append(_best(rest))
    return Notices(tuple(mails), tuple(silent), min(next_at, default=None))


def _best(group: Sequence[Message]) -> Bundle:
    """About the try that brought most; of equal ones the last."""

    def worth(message: Message) -> tuple[bool, int, int]:
        pages = message.document.pages_pdf if message.document else 0
        return message.original is not None, pages or 0, group.index(message)

    ranks = [outcome(message) is not Outcome.EMPTY for message in group]
    main = max((m for m, fit in zip(group, ranks, strict=True) if fit), key=worth)
    return Bundle(main, tuple(message for message in group if message is not main))


def _any_file(group: Iterable[Message]) -> bool:
    return any(one.original is not None and outcome(one) is not Outcome.EMPTY for one in group)


def _end(message: Message) -> float:
    return message.committed if message.committed is not None else message.started


class RelationKind(Enum):
    """What a message has to do with an earlier one."""

    REPEAT = "repeat"
    """All its pages have come before: the sender did not see our last confirmation."""
    OVERLAP = "overlap"
    """Some have."""
    CONTINUATION = "continuation"
    """None has, but the earlier one broke off: senders resume at the page that failed."""


@dataclass(frozen=True, slots=True)
class Relation:
    """`pages` of the message have come in `earlier` before."""

    kind: RelationKind
    earlier: MessageId
    pages: int = 0


def relation(
    message: Message, earlier: Iterable[Message], *, within: float = 86400.0, resume: float = 3600.0
) -> Relation | None:
    """What the message repeats or continues, if anything. A link, never a reason to hold it back.

    Same caller, same called number; pages are compared by hash, over `within` seconds; a broken
    fax is continued within `resume` seconds.
    """
    caller = caller_of(message)
    if message.document is None or not message.document.page_hashes or not caller[2]:
        return None
    own = Counter(message.document.page_hashes)
    best: Relation | None = None
    for other in sorted(earlier, key=_end, reverse=True):
        age = message.started - other.started
        if other.id == message.id or not 0 <= age <= within or caller_of(other) != caller:
            continue
        hashes = other.document.page_hashes if other.document is not None else ()
        shared = (own & Counter(hashes)).total()
        if shared == own.total():
            return Relation(RelationKind.REPEAT, other.id, shared)
        if shared and (best is None or shared > best.pages):
            best = Relation(RelationKind.OVERLAP, other.id, shared)
        elif best is None and age <= resume and outcome(other) is Outcome.INCOMPLETE:
            best = Relation(RelationKind.CONTINUATION, other.id)
    return best
