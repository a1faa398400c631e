"""Which calls are told of in the mail of another: two notes in the audit log, one at each end.

They are written before that mail is addressed, so that whoever finds it addressed finds them.
"""

from __future__ import annotations

from collections.abc import Iterable
from sqlite3 import Connection as Db
from typing import Final

from umpack.messages.message import MessageId

RULE: Final = "umpack"
"""Who decides by rule, in the audit log."""
BUNDLE: Final = "bundle"
TOLD_IN: Final = "told in "
TELLS_OF: Final = "tells of "


def tells_of(details: Iterable[str]) -> tuple[MessageId, ...]:
    """The other calls a mail tells of, by the notes of its message, newest first."""
    for detail in details:
        if detail.startswith(TELLS_OF):
            return tuple(map(MessageId, detail.removeprefix(TELLS_OF).split()))
    return ()


def others(db: Db, id_: MessageId) -> tuple[MessageId, ...]:
    """The other calls the mail of a message tells of; the same whenever it is asked for."""
    rows = db.execute(
        "SELECT detail FROM audit WHERE message = ? AND who = ? AND what = ? ORDER BY seq DESC",
        (id_, RULE, BUNDLE),
    )
    return tells_of(row[0] for row in rows)
