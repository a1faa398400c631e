"""MTA-STS policies on disk, so that they bind after a restart as well.

Who can keep a policy from being fetched must not get rid of it by waiting for the next start
(RFC 8461 3.3, 10.2). It is no record of anything: a file that cannot be used is begun afresh.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from loguru import logger

from umpack.journal.schema import connect, in_words, is_damage
from umpack.messages.sts import MAX_AGE, Mode, Policy, is_pattern

_TABLE = """CREATE TABLE IF NOT EXISTS policies (
    domain TEXT PRIMARY KEY,
    id TEXT NOT NULL,
    fetched REAL NOT NULL,
    mode TEXT NOT NULL,
    mx TEXT NOT NULL,
    max_age INTEGER NOT NULL
) WITHOUT ROWID"""


@dataclass(frozen=True, slots=True)
class Kept:
    """A policy, the id its record had, and when it was fetched (epoch seconds)."""

    id: str
    fetched: float
    policy: Policy


class PolicyStore:
    """A file of its own beside the spool; all of it blocks. What goes wrong is logged, for mail
    must not wait for it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def recall(self, most: int) -> Mapping[str, Kept]:
        """The newest `most` by domain, the oldest of them first; others are deleted."""
        found: dict[str, Kept] = {}

        def work(database: sqlite3.Connection) -> None:
            database.execute(
                "DELETE FROM policies WHERE domain NOT IN "
                "(SELECT domain FROM policies ORDER BY fetched DESC LIMIT ?)",
                (most,),
            )
            for domain, *row in database.execute(
                "SELECT domain, id, fetched, mode, mx, max_age FROM policies ORDER BY fetched"
            ):
                if (kept := _kept(row)) is not None:
                    found[domain] = kept

        self._do(work)
        return found

    def note(self, domain: str, kept: Kept, dropped: Sequence[str]) -> None:
        """Keep one, drop others."""
        policy = kept.policy
        row = (domain, kept.id, kept.fetched, policy.mode.value, " ".join(policy.mx),
               policy.max_age)  # fmt: skip

        def work(database: sqlite3.Connection) -> None:
            database.execute("INSERT OR REPLACE INTO policies VALUES (?, ?, ?, ?, ?, ?)", row)
            database.executemany(
                "DELETE FROM policies WHERE domain = ?", [(one,) for one in dropped]
            )

        self._do(work)

    def _do(self, work: Callable[[sqlite3.Connection], None]) -> None:
        try:
            with closing(connect(self._path)) as database:
                database.execute(_TABLE)
                work(database)
        except (sqlite3.Error, OSError) as error:
            logger.warning("{}: MTA-STS policies are not kept: {}", self._path, in_words(error))
            if isinstance(error, sqlite3.Error) and is_damage(error):
                with suppress(OSError):
                    self._path.unlink(missing_ok=True)


def _kept(row: Sequence[object]) -> Kept | None:
    match row:
        case [str(id_), float(fetched), str(mode), str(mx), int(max_age)]:
            names = tuple(mx.split())
            if not 0 <= max_age <= MAX_AGE or not all(map(is_pattern, names)):
                return None
            try:
                return Kept(id_, fetched, Policy(Mode(mode), names, max_age))
            except ValueError:
                return None
    return None
