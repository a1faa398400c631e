"""Places at which the spool may be killed: each leaves another trace that a restart must read.

A spool is given `FaultPoints`, whose `reach` does nothing; a test gives one that kills the process.
"""

from __future__ import annotations

from enum import Enum


class FaultPoint(Enum):
    """In the order a message passes them."""

    INTEND_BEFORE_ROW = "intend: id made, nothing on disk"
    INTEND_ROW = "intend: row written, not durable"
    INTEND_DURABLE = "intend: row durable, no file"
    INTEND_RESERVED = "intend: file reserved, engine not told"
    RECAST_RESERVED = "recast: second file reserved, row as before"
    RECAST_ROW = "recast: row written, not durable"
    RECAST_DURABLE = "recast: row durable, first file not removed"
    COMMIT_BEGUN = "commit: call over, nothing done"
    COMMIT_HOME = "commit: directory made"
    COMMIT_RENAMED = "commit: file renamed, not synced"
    COMMIT_SYNCED = "commit: file synced, its name not"
    COMMIT_PLACED = "commit: directories synced, no row"
    COMMIT_ROW = "commit: row written, not durable"
    COMMIT_DURABLE = "commit: row durable, reservation not removed"
    COMMIT_DONE = "commit: done, caller not told"
    ADDRESS_ROW = "address: rows written, not durable"
    ADDRESS_DONE = "address: rows durable"
    CLAIM_ROW = "claim: row written, not durable"
    CLAIM_DONE = "claim: row durable"
    OUTCOME_BEFORE_ROW = "outcome: known, no row"
    OUTCOME_ROW = "outcome: row written, not durable"
    OUTCOME_DONE = "outcome: row durable"
    PURGE_MARKED = "purge: chosen, file there"
    PURGE_REMOVED = "purge: file removed, row as before"
    PURGE_DONE = "purge: row durable"
    ADOPT_BEGUN = "adoption: begun"
    ADOPT_PLACED = "adoption: late file in its place, not in its record"
    ADOPT_ROW = "adoption: row made for a stray file, file not placed"
    ADOPT_DONE = "adoption: done"


class FaultPoints:
    """Does nothing wherever it is reached. `reach` is called on any thread of the spool."""

    def reach(self, point: FaultPoint) -> None:
        """The spool has come to `point`."""
