"""The journal as the daemon holds it: an archive with a writer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from umpack import clock
from umpack.core.administration import Drain
from umpack.core.calls import CallRecord
from umpack.core.channel import ChannelId
from umpack.core.errors import OurFault
from umpack.core.health_states import HealthMemory
from umpack.core.pack import PackId
from umpack.journal.archive import Archive
from umpack.journal.schema import may_pass, prepare
from umpack.journal.writer import Fault, State, Writer

KEEP = 90 * 86400.0
"""Seconds a call is remembered."""


class Journal(Archive):
    """Takes records on the event loop and writes them off it.

    Opening blocks: it reads the whole file for damage and brings it to the present schema. It
    raises `OurFault` if the file cannot be used; a damaged file is moved aside (`moved_aside`). A
    disk that is full or read-only is no reason not to begin: all waits until it is mended.
    `append`, and `save_state` without `wait`, never block; they belong to one thread. Close it.

    `keep` is seconds; `limit` is how many rows may wait for the disk, `linger` for how many
    seconds rows are gathered before they are written.
    """

    def __init__(
        self,
        path: Path,
        node: str,
        *,
        now: Callable[[], float] = clock.now,
        keep: float = KEEP,
        limit: int = 50_000,
        linger: float = 0.1,
    ) -> None:
        super().__init__(path, node)
        self._limit = limit
        self._entered = 0
        self._turned_away = 0
        self._closed = False
        self._writer = Writer(path, node, now, keep, linger)
        try:
            if (aside := prepare(path, now(), "quick")) is not None:
                self._writer.moved_aside = (aside,)
        except OurFault as fault:
            if not may_pass(fault):
                raise
            self._writer.suspect()
        self._writer.start()

    def append(self, records: Sequence[CallRecord]) -> None:
        """Hand over records of ended calls. Those that find no room are counted in `dropped`."""
        room = 0 if self._closed else max(self._limit - self.waiting, 0)
        rows = tuple(records[:room])
        self._turned_away += len(records) - len(rows)
        if rows:
            self._entered += len(rows)
            self._writer.put(rows)

    def save_state(
        self,
        pointers: Mapping[PackId, ChannelId],
        drains: Sequence[Drain],
        trunks: tuple[HealthMemory, ...] = (),
        *,
        wait: bool = False,
        within: float = 10.0,
    ) -> None:
        """Replace this node's saved state by this one. `trunks` costs nothing while it is the same
        tuple as the last time.

        With `wait` it is on disk when the call returns, for which it blocks up to `within`
        seconds and then raises `OurFault`; the state is kept and will still be written.
        """
        self._refuse_if_closed()
        self._writer.put_state(State(dict(pointers), tuple(drains), trunks))
        if wait:
            self.flush(within)

    def flush(self, within: float = 10.0) -> None:
        """Block until all that was handed over before is on disk; `OurFault` after `within` s."""
        self._refuse_if_closed()
        ticket = threading.Event()
        self._writer.put(ticket)
        self._writer.hurry()
        if not ticket.wait(within):
            why = f": {self.fault.what}" if self.fault else ""
            raise OurFault(f"journal {self.path}: not written within {within:g} s{why}")

    def close(self, deadline: float = 5.0) -> int:
        """Write what is left, for up to `deadline` seconds, and answer how many rows were not.

        Blocks. May be called again.
        """
        if not self._closed:
            self._closed = True
            self._writer.stop(deadline)
        self._writer.join(deadline)
        return self.waiting

    @property
    def waiting(self) -> int:
        """Rows handed over and not on disk yet."""
        return self._entered - self._writer.settled

    @property
    def dropped(self) -> int:
        """Rows that are not recorded and will not be: no room, or not storable."""
        return self._turned_away + self._writer.rejected

    @property
    def fault(self) -> Fault | None:
        """Why nothing is being written at present; goes by itself when writing works again."""
        if not self._closed and not self._writer.is_alive():
            return Fault("the writer has stopped", clock.now())
        return self._writer.fault

    @property
    def moved_aside(self) -> tuple[Path, ...]:
        """Where damaged files went, since the journal was opened."""
        return self._writer.moved_aside

    def _met_damage(self) -> None:
        if not self._closed:
            self._writer.suspect()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise OurFault(f"journal {self.path}: closed")

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        fault = f", fault: {self.fault.what}" if self.fault else ""
        return f"<journal {self.path}: {self.waiting} waiting, {self.dropped} dropped{fault}>"
