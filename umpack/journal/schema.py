"""The journal's file: its tables, how older files are brought up, and what is done with damage.

`PRAGMA user_version` counts the migrations a file has had. A damaged file is never repaired nor
overwritten: it is moved aside whole, with its write-ahead log, and a fresh one begun.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from umpack.core.errors import OurFault

APPLICATION_ID = 0x756D706B
"""`umpk`, in the file's header: tells a journal from anybody else's database."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        f"PRAGMA application_id = {APPLICATION_ID}",
        """CREATE TABLE calls (
            seq INTEGER PRIMARY KEY,
            node TEXT NOT NULL,
            id TEXT NOT NULL,
            pbx TEXT NOT NULL,
            called TEXT NOT NULL,
            caller TEXT NOT NULL,
            caller_name TEXT NOT NULL,
            inbound TEXT NOT NULL,
            offered REAL NOT NULL,
            ended REAL NOT NULL,
            answered REAL,
            ending TEXT NOT NULL,
            reason TEXT,
            cause INTEGER NOT NULL,
            why TEXT NOT NULL,
            route TEXT NOT NULL,
            pack TEXT,
            channel TEXT,
            attempts TEXT NOT NULL,
            passed_packs TEXT NOT NULL,
            exclusions TEXT NOT NULL
        )""",
        # A channel may ask twice (the dialplan comes back to us), so an id alone is not unique;
        # with the time it is, and a batch whose commit was in doubt can be written again.
        "CREATE UNIQUE INDEX calls_id ON calls (id, offered, pbx, node)",
        "CREATE INDEX calls_ended ON calls (ended, ending)",
        "CREATE INDEX calls_called ON calls (called, ended)",
        "CREATE INDEX calls_caller ON calls (caller, ended)",
        "CREATE INDEX calls_channel ON calls (channel, ended)",
        """CREATE TABLE pointers (
            node TEXT NOT NULL, pack TEXT NOT NULL, channel TEXT NOT NULL,
            PRIMARY KEY (node, pack)
        ) WITHOUT ROWID""",
        """CREATE TABLE drains (
            node TEXT NOT NULL, target TEXT NOT NULL, who TEXT NOT NULL, why TEXT NOT NULL,
            since REAL NOT NULL, until REAL,
            PRIMARY KEY (node, target)
        ) WITHOUT ROWID""",
    ),
    (
        """CREATE TABLE trunks (
            node TEXT NOT NULL, trunk TEXT NOT NULL, state TEXT NOT NULL, since REAL NOT NULL,
            until REAL NOT NULL, times INTEGER NOT NULL, failures INTEGER NOT NULL,
            why TEXT NOT NULL,
            PRIMARY KEY (node, trunk)
        ) WITHOUT ROWID""",
    ),
    ("ALTER TABLE calls ADD COLUMN candidates TEXT NOT NULL DEFAULT '[]'",),
    (
        "ALTER TABLE trunks ADD COLUMN unanswered REAL",
        "ALTER TABLE trunks ADD COLUMN short REAL",
    ),
)
"""One entry per schema version, from 1; entries are only ever added."""

Check = Literal["quick", "full"] | None
"""How a file is looked over: quick leaves out that indexes match their tables (measured: about
1 s and 4 s for a million calls)."""

_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_NO_DISK = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY})
_NO_DISK_ERRNO = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """The border: what sqlite3 and the file system raise inside leaves as `OurFault`."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise OurFault(f"journal {path}: {in_words(error)}") from error


def in_words(error: Exception) -> str:
    """The cause of a failure for people; the file is named by whoever reports it."""
    if isinstance(error, OurFault) and isinstance(error.__cause__, Exception):
        return in_words(error.__cause__)
    if isinstance(error, OSError):
        return error.strerror or str(error)
    name = getattr(error, "sqlite_errorname", None)
    return f"{error} ({name})" if name else str(error)


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file itself is broken, not only out of reach."""
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)
    return code & 0xFF in _DAMAGE


def text_of(cell: bytes) -> str:
    """A text out of the file: `quick_check` does not look into texts, and one spoiled byte must not
    hide its row, nor all that is asked for together with it."""
    return cell.decode("utf-8", "replace")


def may_pass(fault: OurFault) -> bool:
    """Whether a file is out of reach for want of a disk only: one that is full, read-only or
    failing, which somebody may be busy mending."""
    match fault.__cause__:
        case sqlite3.Error() as error:
            code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)
            return code & 0xFF in _NO_DISK
        case OSError() as error:
            return error.errno in _NO_DISK_ERRNO
    return False


def connect(path: Path, *, busy: float = 1.0) -> sqlite3.Connection:
    """A connection for writing; transactions are the caller's to begin. `busy` is seconds.

    Synchronous is FULL, for in WAL mode NORMAL may lose commits when the power goes. One sync
    per batch is paid, not one per call.
    """
    connection = sqlite3.connect(path, timeout=busy, isolation_level=None)
    connection.text_factory = text_of
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {16 << 20}")
    except BaseException:
        connection.close()
        raise
    return connection


def connect_to_read(path: Path, *, one_thread: bool = True) -> sqlite3.Connection:
    """A connection that cannot write, with rows that answer to column names. Unless it is for
    `one_thread`, it may be handed on to another between two questions."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    connection = sqlite3.connect(
        uri, uri=True, timeout=5.0, isolation_level=None, check_same_thread=one_thread
    )
    connection.row_factory = sqlite3.Row
    connection.text_factory = text_of
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing; takes the write lock at once, so that it cannot fail half-way."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # SQLite has rolled back by itself after some failures, a full disk among them.
        if connection.in_transaction:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise


def prepare(path: Path, now: float, check: Check = None) -> Path | None:
    """Make `path` a journal of the present schema: created, migrated, or moved aside.

    Answers where a damaged file has gone, if there was one. `check` also reads the whole file for
    damage. `OurFault` if the file is a newer umpack's, somebody else's, or out of reach.
    """
    with translated(path):
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        path.touch(mode=0o640)
        try:
            damage = _bring_up(path, check)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            damage = True
        if not damage:
            return None
        aside = _move_aside(path, now)
        path.touch(mode=0o640)
        _bring_up(path, None)
        return aside


def _bring_up(path: Path, check: Check) -> bool:
    """Migrate as far as needed; answers whether damage was found."""
    with closing(connect(path, busy=10.0)) as connection:
        version = check_version(connection, path)
        if check and version and not _is_sound(connection, check):
            return True
        if version == 0:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        mode: str = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise OurFault(f"journal {path}: its file system has no shared memory for SQLite's WAL")
        if version < len(MIGRATIONS):
            with transaction(connection):
                # Read again under the lock: another process may have been first.
                done: int = connection.execute("PRAGMA user_version").fetchone()[0]
                for number, statements in enumerate(MIGRATIONS[done:], done + 1):
                    for statement in statements:
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {number}")
    return False


def check_version(connection: sqlite3.Connection, path: Path) -> int:
    """The file's schema version, 0 for an empty file; `OurFault` if it is not ours to touch."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    mark: int = connection.execute("PRAGMA application_id").fetchone()[0]
    tables: int = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if mark != APPLICATION_ID and (tables or version):
        raise OurFault(f"journal {path}: this is another program's database")
    if version > len(MIGRATIONS):
        raise OurFault(
            f"journal {path}: written by a newer umpack (schema {version}, this one knows up to "
            f"{len(MIGRATIONS)}); run that version, or name another file"
        )
    return version


def _is_sound(connection: sqlite3.Connection, check: Literal["quick", "full"]) -> bool:
    pragma = "PRAGMA quick_check(1)" if check == "quick" else "PRAGMA integrity_check(1)"
    answer: str = connection.execute(pragma).fetchone()[0]
    return answer == "ok"


def _move_aside(path: Path, now: float) -> Path:
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    aside = path.with_name(f"{path.name}.corrupt-{stamp}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.corrupt-{stamp}-{number}")
    # The log goes first: a log left behind would be read into the fresh file.
    for suffix in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{aside}{suffix}")
    return aside
