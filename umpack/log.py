"""Where the log goes (loguru): standard error for journald, or a file that rotates by itself.

A log line never waits for its reader. Lines go into a bounded queue and one thread writes them, so
a full disk, a stopped journald or a terminal held by Ctrl-S costs log lines, and no call.
"""

from __future__ import annotations

import gzip
import logging
import os
import shutil
import sys
import threading
from contextlib import suppress
from logging import Handler
from logging.handlers import RotatingFileHandler
from queue import Empty, SimpleQueue
from types import FrameType

from loguru import logger

from umpack.config import Log
from umpack.core.calls import CallRecord
from umpack.core.errors import OurFault
from umpack.core.printable import printable

_TERMINAL = "<green>{time:HH:mm:ss.SSS}</green> <level>{level: <7}</level> {message}"
_FILE = "{time:YYYY-MM-DD HH:mm:ss.SSSZZ} {level: <7} {message}"
_JOURNALD = "{level: <7} {message}"

_WAITING = 10_000
"""Lines that may wait for the writer; of more, the newest are dropped and counted."""
_AT_ONCE = 100
"""Lines in one write."""
_FILE_BYTES = 50_000_000
_OLD_FILES = 10
_LONGEST_WAIT = 2.0
"""Seconds the end of the program waits for a log nobody reads."""


def line_of(record: CallRecord) -> str:
    """One call in one log line; whatever came off the line is escaped."""
    call = record.call
    served = f" on {record.channel}" if record.channel else ""
    tries = f" after {len(record.attempts)} attempts" if len(record.attempts) > 1 else ""
    return (
        f"call {printable(call.id)} {printable(call.caller) or 'anonymous'} → "
        f"{printable(call.called)}: {record.ending.value}{served}{tries}, "
        f"cause {record.cause}, {record.ended - record.offered:.1f} s: {printable(record.why, 200)}"
    )


class LogOutput:
    """The program's log from now until `close`. `OurFault` if it cannot be written where it should.

    Tracebacks are printed without the values of variables: a secret may be among them. What
    libraries say through `logging` (asyncio of lost exceptions, aiohttp) comes here, too.
    """

    def __init__(self, log: Log) -> None:
        self._open(log)
        logger.remove()
        self._sink = self._add(log)
        self._library = _Forward()
        root = logging.getLogger()
        root.addHandler(self._library)

    def change(self, log: Log) -> None:
        """Go on elsewhere, or with another level; `OurFault` leaves everything as it was."""
        before = self._writer
        self._open(log)
        old, self._sink = self._sink, self._add(log)
        logger.remove(old)
        before.stop()

    def close(self) -> None:
        """Write what is left, as far as its reader takes it."""
        logging.getLogger().removeHandler(self._library)
        logger.remove(self._sink)
        self._writer.stop()

    @property
    def dropped(self) -> int:
        """Lines that found no room."""
        return self._queue.dropped

    def _open(self, log: Log) -> None:
        target: Handler = _StandardError()
        if log.file is not None:
            try:
                log.file.parent.mkdir(parents=True, exist_ok=True)
                target = _File(log.file, maxBytes=_FILE_BYTES, backupCount=_OLD_FILES)
            except OSError as error:
                raise OurFault(f"log file {log.file}: {error.strerror or error}") from error
        self._queue = _Queue()
        self._writer = _Writer(self._queue.lines, target)
        self._writer.start()

    def _add(self, log: Log) -> int:
        to_terminal = log.file is None and sys.stderr.isatty()
        style = _TERMINAL if to_terminal else _JOURNALD if log.file is None else _FILE
        return logger.add(
            self._queue,
            level=log.level.upper(),
            format=style,
            colorize=to_terminal,
            diagnose=False,
            backtrace=False,
        )


class _Queue:
    """The event loop's end of the queue: a sink of loguru's, which has made the whole text of a
    line, a traceback included."""

    def __init__(self) -> None:
        # Not a queue.Queue: its put takes a lock and wakes the writer in Python, for every line.
        self.lines: SimpleQueue[str | None] = SimpleQueue()
        self.dropped = 0

    def __call__(self, line: str) -> None:
        """Never waits."""
        if self.lines.qsize() < _WAITING:
            self.lines.put(line)
        else:
            self.dropped += 1


class _Writer(threading.Thread):
    """The other end. It dies with the program and holds nobody up."""

    def __init__(self, lines: SimpleQueue[str | None], target: Handler) -> None:
        super().__init__(name="umpack-log", daemon=True)
        self._lines = lines
        self._target = target

    def run(self) -> None:
        goes_on = True
        while goes_on:
            lines, goes_on = self._gather()
            if lines:
                text = "".join(lines).removesuffix("\n")
                # Not `handle`, which holds the lock that logging.shutdown wants at the end.
                self._target.emit(logging.makeLogRecord({"msg": text}))
        self._target.close()

    def _gather(self) -> tuple[list[str], bool]:
        """The lines there are, for one write, as each write lets go of the interpreter and flushes;
        and whether more may come."""
        lines: list[str] = []
        with suppress(Empty):
            while len(lines) < _AT_ONCE:
                if (line := self._lines.get(block=not lines)) is None:
                    return lines, False
                lines.append(line)
        return lines, True

    def stop(self) -> None:
        """Write what is left, unless nobody reads it."""
        self._lines.put(None)
        self.join(_LONGEST_WAIT)


class _StandardError(Handler):
    """Past Python's own buffer: a thread stuck in that would keep the program from ending."""

    def emit(self, record: logging.LogRecord) -> None:
        data = f"{record.getMessage()}\n".encode("utf-8", "backslashreplace")
        with suppress(OSError):  # nobody reads any more, and there is nowhere else to say so
            while data:
                data = data[os.write(2, data) :]


class _File(RotatingFileHandler):
    """Rotates and packs by itself, in the writer's thread."""

    def rotation_filename(self, default_name: str) -> str:
        return f"{default_name}.gz"

    def rotate(self, source: str, dest: str) -> None:
        # An old file has been packed, and only moves up.
        if source.endswith(".gz"):
            os.replace(source, dest)
            return
        with open(source, "rb") as plain, gzip.open(dest, "wb") as packed:
            shutil.copyfileobj(plain, packed)
        os.remove(source)


class _Forward(Handler):
    """From `logging`, where libraries write, to loguru."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        frame: FrameType | None = logging.currentframe()
        depth = 2
        while frame and frame.f_code.co_filename == logging.__file__:
            frame, depth = frame.f_back, depth + 1
        level = min(record.levelno, logging.ERROR)
        name = logging.getLevelName(level)
        text = printable(record.getMessage(), 2000)
        logger.opt(depth=depth, exception=record.exc_info).log(name, "{}: {}", record.name, text)
