"""Questions to the journal's file. Each blocks for its time: ask from a thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from loguru import logger

from umpack.core.administration import Drain
from umpack.core.calls import CallId, CallRecord, Ending
from umpack.core.channel import ChannelId
from umpack.core.errors import OurFault
from umpack.core.health_states import HealthMemory, HealthState
from umpack.core.pack import PackId
from umpack.core.trunk import TrunkId
from umpack.journal.rows import COLUMNS, loaded, record_of, stored
from umpack.journal.schema import (
    MIGRATIONS,
    check_version,
    connect_to_read,
    in_words,
    is_damage,
)

T = TypeVar("T")

_CALLS = f"SELECT {', '.join(COLUMNS)} FROM calls"  # noqa: S608 - names of our own


@dataclass(frozen=True, slots=True)
class SavedState:
    """What a restart takes up again: where the packs' pointers stood, what people had set, and how
    the trunks were."""

    pointers: dict[PackId, ChannelId] = field(default_factory=dict)
    drains: tuple[Drain, ...] = ()
    trunks: tuple[HealthMemory, ...] = ()


class Archive:
    """A journal to read. All questions raise `OurFault` when the file cannot answer.

    Times are epoch seconds; a call belongs to the time it *ended*, which is when its record came
    to be, so whoever asks on from the last answer misses none.
    """

    def __init__(self, path: Path, node: str) -> None:
        self.path = path
        self.node = node

    def call(self, id_: CallId) -> CallRecord | None:
        """The record of a call; the latest, if its channel asked more than once."""
        with self._reading() as connection:
            row = connection.execute(
                f"{_CALLS} WHERE id = ? ORDER BY offered DESC LIMIT 1", (stored(id_),)
            ).fetchone()
            return record_of(row) if row else None

    def calls(
        self,
        limit: int = 100,
        since: float | None = None,
        until: float | None = None,
        called: str | None = None,
        caller: str | None = None,
        ending: Ending | None = None,
        channel: ChannelId | None = None,
    ) -> list[CallRecord]:
        """Calls that fit all that is given, newest first; `since` inclusive, `until` exclusive.

        Numbers are compared whole: what comes off the line may contain any wildcard.
        """
        wanted: dict[str, float | str | None] = {
            "ended >= ?": since,
            "ended < ?": until,
            "called = ?": None if called is None else stored(called),
            "caller = ?": None if caller is None else stored(caller),
            "ending = ?": None if ending is None else ending.value,
            "channel = ?": None if channel is None else stored(channel),
        }
        given = {clause: value for clause, value in wanted.items() if value is not None}
        where = f" WHERE {' AND '.join(given)}" if given else ""
        with self._reading() as connection:
            rows = connection.execute(
                f"{_CALLS}{where} ORDER BY ended DESC, seq DESC LIMIT ?",
                (*given.values(), max(limit, 0)),
            )
            return [record_of(row) for row in rows]

    def counts(self, since: float = 0.0) -> dict[Ending, int]:
        """How many calls ended which way since then; every ending is there."""
        with self._reading() as connection:
            found = dict(
                connection.execute(
                    "SELECT ending, count(*) FROM calls WHERE ended >= ? GROUP BY ending", (since,)
                ).fetchall()
            )
        return {ending: found.get(ending.value, 0) for ending in Ending}

    def load_state(self) -> SavedState:
        """The state this node saved last; empty on a fresh file."""
        node = stored(self.node)
        with self._reading() as connection:
            connection.text_factory = bytes  # one text that is none must not hide all others
            # One transaction, so that all is of the same save.
            connection.execute("BEGIN")
            pointers = connection.execute(
                "SELECT pack, channel FROM pointers WHERE node = ?", (node,)
            ).fetchall()
            drains = connection.execute(
                "SELECT target, who, why, since, until FROM drains WHERE node = ? ORDER BY target",
                (node,),
            ).fetchall()
            trunks = connection.execute(
                "SELECT trunk, state, since, until, times, failures, why, unanswered, short "
                "FROM trunks "
                "WHERE node = ? ORDER BY trunk",
                (node,),
            ).fetchall()
        return SavedState(
            dict(self._readable("pointer", _pointer, pointers)),
            tuple(self._readable("drain", _drain, drains)),
            tuple(self._readable("trunk", _memory, trunks)),
        )

    def _readable(
        self, what: str, read: Callable[..., T], rows: Iterable[sqlite3.Row]
    ) -> Iterator[T]:
        """SQLite tells damaged pages, not a bit that is wrong in a value. Such a row is left out:
        without it one trunk, drain or pointer is as new, and with it umpack would not start."""
        for row in rows:
            try:
                yield read(*row)
            except (ValueError, TypeError, AttributeError) as error:
                logger.error(
                    "journal {}: a saved {} cannot be read and is forgotten: {}: {}",
                    self.path, what, type(error).__name__, error,
                )  # fmt: skip

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(connect_to_read(self.path)) as connection:
                if check_version(connection, self.path) < len(MIGRATIONS):
                    raise OurFault(
                        f"journal {self.path}: not brought up to this version of umpack yet; the "
                        "daemon does so when it starts"
                    )
                yield connection
        except sqlite3.Error as error:
            if is_damage(error):
                self._met_damage()
            raise OurFault(f"journal {self.path}: {in_words(error)}") from error

    def _met_damage(self) -> None:
        """Only a journal, which has a writer, can do something about it."""


def _pointer(pack: bytes, channel: bytes) -> tuple[PackId, ChannelId]:
    return PackId(_text(pack)), ChannelId(_text(channel))


def _drain(target: bytes, who: bytes, why: bytes, since: float, until: float | None) -> Drain:
    return Drain(_text(target), _text(who), _text(why), float(since), _number(until))


def _memory(
    trunk: bytes,
    state: bytes,
    since: float,
    until: float,
    times: int,
    failures: int,
    why: bytes,
    unanswered: float | None,
    short: float | None,
) -> HealthMemory:
    return HealthMemory(
        TrunkId(_text(trunk)),
        HealthState(_text(state)),
        float(since),
        float(until),
        int(times),
        int(failures),
        _text(why),
        _number(unanswered),
        _number(short),
    )


def _text(cell: bytes) -> str:
    return loaded(cell.decode())


def _number(cell: float | None) -> float | None:
    return None if cell is None else float(cell)
