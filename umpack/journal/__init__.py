"""What happened: calls with every attempt, and the state that must survive a restart (SQLite).

rows.py     a `CallRecord` as a row, and back
schema.py   the file: its tables, migrations, damage, and the border to sqlite3's exceptions
archive.py  questions to the file; each opens a short read-only connection of its own
writer.py   the one thread that writes
journal.py  what the daemon holds: takes records from the event loop, never blocks it
"""

from __future__ import annotations

from umpack.journal.archive import Archive, SavedState
from umpack.journal.journal import Journal
from umpack.journal.writer import Fault

__all__ = ["Archive", "Fault", "Journal", "SavedState"]
