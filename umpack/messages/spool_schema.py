"""The spool's database: its tables, how older files are brought up, and what is done with damage.

Of a damaged file every row that can still be read is copied into a fresh one; then the damaged one
is moved aside whole, with its write-ahead log. Originals left without a row are adopted afterwards.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from loguru import logger

from umpack.journal.schema import connect, in_words, is_damage, text_of, transaction
from umpack.messages.spool_fault import SpoolFault as SpoolFault  # noqa: PLC0414 - its place for most
from umpack.messages.states import ENDED, MessageState

APPLICATION_ID = 0x756D7073
"""`umps`, in the file's header: tells a spool from a journal and from anybody else's database."""

TABLES = ("messages", "recipients", "audit")

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        f"PRAGMA application_id = {APPLICATION_ID}",
        # From intent to end a call is one row, whose file's place follows from its id: there is
        # no step at which it could be in two tables, or in none.
        """CREATE TABLE messages (
            seq INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            node TEXT NOT NULL,
            state TEXT NOT NULL,
            call TEXT NOT NULL,
            kind TEXT NOT NULL,
            called TEXT NOT NULL,
            caller TEXT NOT NULL,
            caller_raw TEXT NOT NULL,
            caller_name TEXT NOT NULL,
            caller_name_raw TEXT NOT NULL,
            pbx TEXT NOT NULL,
            channel TEXT NOT NULL,
            name TEXT NOT NULL,
            started REAL NOT NULL,
            committed REAL,
            ended REAL,
            message_id TEXT NOT NULL DEFAULT '',
            date REAL,
            adopted TEXT NOT NULL DEFAULT '',
            file TEXT,
            size INTEGER,
            sha256 TEXT,
            engine TEXT,
            document TEXT,
            related TEXT,
            purged REAL
        )""",
        "CREATE INDEX messages_state ON messages (state, ended)",
        "CREATE INDEX messages_started ON messages (started)",
        "CREATE INDEX messages_caller ON messages (caller, started)",
        "CREATE INDEX messages_called ON messages (called, started)",
        "CREATE INDEX messages_call ON messages (call)",
        """CREATE TABLE recipients (
            message TEXT NOT NULL,
            number INTEGER NOT NULL,
            address TEXT NOT NULL,
            edition INTEGER NOT NULL,
            message_id TEXT NOT NULL,
            date REAL NOT NULL,
            state TEXT NOT NULL,
            age REAL NOT NULL,
            next_at REAL NOT NULL,
            tries INTEGER NOT NULL DEFAULT 0,
            doubts INTEGER NOT NULL DEFAULT 0,
            server TEXT NOT NULL DEFAULT '',
            reply TEXT NOT NULL DEFAULT '',
            queue_id TEXT NOT NULL DEFAULT '',
            why TEXT NOT NULL DEFAULT '',
            changed REAL NOT NULL,
            token TEXT,
            decided_by TEXT,
            decided_what TEXT,
            decided_at REAL,
            PRIMARY KEY (message, number)
        ) WITHOUT ROWID""",
        # What may be sent is asked for by age and is few among all that was ever sent.
        """CREATE INDEX recipients_open ON recipients (age, message, number, next_at)
            WHERE state IN ('queued', 'retry', 'ambiguous')""",
        "CREATE INDEX recipients_state ON recipients (state)",
        """CREATE TABLE audit (
            seq INTEGER PRIMARY KEY,
            at REAL NOT NULL,
            who TEXT NOT NULL,
            what TEXT NOT NULL,
            message TEXT,
            detail TEXT NOT NULL
        )""",
        "CREATE INDEX audit_message ON audit (message)",
    ),
    ("ALTER TABLE messages ADD COLUMN answered REAL",),
    ("ALTER TABLE recipients ADD COLUMN form TEXT",),
)
"""One entry per schema version, from 1; entries are only ever added."""


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """The border: what sqlite3 and the file system raise inside leaves as `SpoolFault`."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise SpoolFault(f"spool {path}: {in_words(error)}") from error


def sync_directory(path: Path) -> None:
    """Make durable which names stand in it. Raises `OSError`."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def prepare(path: Path, now: float) -> Path | None:
    """Make `path` a spool's database of the present schema: created, migrated, or moved aside.

    Answers where a damaged file went. `SpoolFault` if it can be neither used nor moved, and if it
    is another program's or of a newer version.

    The disk may fill up and umpack be killed while rows are copied: the damaged file stays where it
    is until all have been, and is only then exchanged. Half of them in its place would be taken for
    all at the next start, and every original of the others for a new message.
    """
    saved = path.with_name(f"{path.name}.saved")
    with translated(path):
        if saved.exists():
            return _exchange(path, saved, now)  # as was begun
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o640))
        try:
            damaged = _bring_up(path, check=True)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            damaged = True
        if not damaged:
            return None
        fresh = path.with_name(f"{path.name}.saving")
        for suffix in ("-wal", "-shm", ""):
            Path(f"{fresh}{suffix}").unlink(missing_ok=True)
        os.close(os.open(fresh, os.O_CREAT | os.O_WRONLY, 0o640))
        _bring_up(fresh, check=False)
        _salvage(path, fresh)
        os.rename(fresh, saved)
        return _exchange(path, saved, now)


def connect_to_spool(path: Path) -> sqlite3.Connection:
    """For the one writer; rows answer to column names."""
    if not path.exists():
        # SQLite would begin an empty one, in which every message is missing.
        raise SpoolFault(f"spool {path}: gone")
    connection = connect(path)
    try:
        connection.row_factory = sqlite3.Row
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # now it is open
    except BaseException:
        connection.close()
        raise
    return connection


def _bring_up(path: Path, *, check: bool) -> bool:
    """Migrate as far as needed; answers whether damage was found."""
    with closing(connect(path, busy=10.0)) as connection:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        mark: int = connection.execute("PRAGMA application_id").fetchone()[0]
        tables: int = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if mark != APPLICATION_ID and (tables or version):
            raise SpoolFault(f"spool {path}: this is another program's database")
        if version > len(MIGRATIONS):
            raise SpoolFault(
                f"spool {path}: written by a newer umpack (schema {version}, this one knows up to "
                f"{len(MIGRATIONS)})"
            )
        if check and version:
            answer: str = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if answer != "ok":
                return True
        mode: str = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise SpoolFault(f"spool {path}: its file system has no shared memory for SQLite's WAL")
        if version < len(MIGRATIONS):
            with transaction(connection):
                for number, statements in enumerate(MIGRATIONS[version:], version + 1):
                    for statement in statements:
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {number}")
    return False


def _exchange(path: Path, saved: Path, now: float) -> Path | None:
    """Put what was saved in the place of the damaged file. May be repeated after any step."""
    aside = _move_aside(path, now)
    os.rename(saved, path)
    sync_directory(path.parent)  # or what is written from now on were found under its old name
    _bring_up(path, check=False)
    return aside if aside.exists() else None  # moved by whom this was left by


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


def _salvage(path: Path, into: Path) -> None:
    """Copy every row that can be read, in steps of one, so that a bad page costs its rows only."""
    with closing(connect(into)) as fresh, closing(sqlite3.connect(path)) as old:
        old.row_factory = sqlite3.Row
        old.text_factory = text_of
        for table in TABLES:
            saved = 0
            known = {row[1] for row in fresh.execute(f"PRAGMA table_info({table})")}
            with transaction(fresh):
                for row in _readable_rows(old, table):
                    # A damaged name of a column must not keep the spool shut at every start.
                    names = [name for name in row.keys() if name in known]  # noqa: SIM118 - a Row
                    fresh.execute(
                        f"INSERT OR IGNORE INTO {table} ({', '.join(names)}) "  # noqa: S608
                        f"VALUES ({', '.join('?' * len(names))})",
                        [row[name] for name in names],
                    )
                    saved += 1
            logger.warning("spool {}: {} rows of {!r} saved", path, saved, table)
        _address_anew(fresh, path)
        # Without a log of its own it can be renamed.
        mode: str = fresh.execute("PRAGMA journal_mode = DELETE").fetchone()[0]
        if mode != "delete":
            raise SpoolFault(f"spool {into}: its log cannot be closed")


def _address_anew(fresh: sqlite3.Connection, path: Path) -> None:
    """Who was to have a message is lost with all its recipients: the directory is asked again. A
    second copy, with the same Message-ID, is better than none, of which nobody would be told."""
    settled = MessageState.RECEIVING, MessageState.COMMITTED, *ENDED
    with transaction(fresh):
        found = fresh.execute(
            "UPDATE messages SET state = ? WHERE state NOT IN (?, ?, ?, ?)"
            " AND id NOT IN (SELECT message FROM recipients)",
            (MessageState.COMMITTED.value, *(state.value for state in settled)),
        ).rowcount
    if found:
        logger.warning("spool {}: {} messages have lost their recipients", path, found)


def _readable_rows(old: sqlite3.Connection, table: str) -> Iterator[sqlite3.Row]:
    """Forwards up to the damage, then backwards from the other end down to it."""
    keys = {"recipients": "message {0}, number {0}"}.get(table, "seq {0}")
    for direction in "ASC", "DESC":
        try:
            yield from old.execute(
                f"SELECT * FROM {table} ORDER BY {keys.format(direction)}"  # noqa: S608 - own names
            )
        except (sqlite3.Error, UnicodeDecodeError) as error:  # in the name of a column
            logger.warning("spool: {!r} cannot be read to its end: {}", table, in_words(error))
        else:
            return
