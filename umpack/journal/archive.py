"""Questions to the journal's file. Each blocks for its time: ask from a thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

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
            {PackId(loaded(pack)): ChannelId(loaded(channel)) for pack, channel in pointers},
            tuple(
                Drain(loaded(target), loaded(who), loaded(why), since, until)
                for target, who, why, since, until in drains
            ),
            tuple(self._memory_of(row) for row in trunks),
        )

    def _memory_of(self, row: sqlite3.Row) -> HealthMemory:
        trunk, state, since, until, times, failures, why, unanswered, short = row
        try:
            known = HealthState(state)
        except ValueError as error:
            raise OurFault(f"journal {self.path}: trunk {trunk}: {error}") from error
        return HealthMemory(
            TrunkId(loaded(trunk)),
            known,
            since,
            until,
            times,
            failures,
            loaded(why),
            unanswered,
            short,
        )

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
