"""The files: where an engine writes, where an original is kept, and how it gets there for good.

    receiving/ID.tif            reserved before the call is answered; the engine writes here
    messages/YYYY/MM/ID/        the original and whatever is made of it

The engine runs as another user. `receiving` therefore hands its group down (setgid), reservations
are writable for it until their commit, and nothing found there is trusted: only regular files are
opened, never through a link, and none is ever written to, replaced or deleted here unless it is
empty.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from loguru import logger

from umpack.core.errors import OurFault
from umpack.messages.fault_points import FaultPoint, FaultPoints
from umpack.messages.last_words import SUFFIX
from umpack.messages.message import ID, MessageId, Original, home
from umpack.messages.spool_schema import SpoolFault, sync_directory, translated
from umpack.messages.stillness import Stillness

RECEIVING, MESSAGES = "receiving", "messages"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,30}(?:\.[a-z0-9]{1,8}){0,2}")
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Originals:
    """The two directories of one spool. All of it blocks; all of it raises `SpoolFault`."""

    def __init__(self, directory: Path, faults: FaultPoints) -> None:
        self.directory = directory.absolute()
        self.receiving = self.directory / RECEIVING
        self.messages = self.directory / MESSAGES
        self._faults = faults
        self._durable: set[Path] = set()
        """Directories of years and months whose names this process has synced."""

    def begin(self) -> None:
        """Make the directories that are missing."""
        with translated(self.directory):
            self.directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            self.messages.mkdir(mode=0o750, exist_ok=True)
            if not self.receiving.is_dir():
                self.receiving.mkdir(mode=0o770)
                self.receiving.chmod(0o2770)  # mkdir leaves to the umask what setgid needs
            sync_directory(self.directory)

    def reserve(self, id_: MessageId, name: str) -> Path:
        """An empty file that nobody else has. `FileExistsError` if the name is taken."""
        path = self.path_of(id_, name)
        with _but_taken(path):
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o660)
            try:
                os.fchmod(handle, 0o660)
            finally:
                os.close(handle)
        return path

    def prepare(self, id_: MessageId) -> None:
        """Make the message's directory for good, while its original is still coming in: one sync
        less when the caller has hung up."""
        folder = self.messages / home(id_)
        with translated(folder):
            self._make(folder)
            sync_directory(folder.parent)

    def tidy(self, id_: MessageId) -> None:
        """Remove the message's directory if nothing is in it."""
        with suppress(OSError):
            (self.messages / home(id_)).rmdir()

    def path_of(self, id_: MessageId, name: str) -> Path:
        """Where the engine writes the message's original."""
        return self.receiving / f"{id_}{Path(name).suffix}"

    def note_of(self, id_: MessageId) -> Path:
        """Where the PBX writes down the end of the message's call, should umpack not live."""
        return self.receiving / f"{id_}{SUFFIX}"

    def place(
        self, id_: MessageId, name: str, source: Path | None = None, *, prepared: bool = False
    ) -> Original | None:
        """Bring the original to its place, so that it is there after a power cut too.

        May be repeated after it was interrupted anywhere. None if nothing was received: no file,
        or an empty one. Links and the like are left alone, as if they were not there. `prepared`:
        its directory is, and nobody has tidied since.
        """
        reach = self._faults.reach
        source = self.path_of(id_, name) if source is None else source
        folder = self.messages / home(id_)
        target = folder / name
        with translated(source):
            if not is_regular(target):
                if not is_regular(source) or os.lstat(source).st_size == 0:
                    return None
                self._make(folder)
                reach(FaultPoint.COMMIT_HOME)
                # Renamed before it is synced: no row says yet that it is whole, so nobody could
                # be misled by half a file here; and a journaling file system writes down the
                # file, its new name and the directory in one go, for a third of the time.
                os.rename(source, target)
                reach(FaultPoint.COMMIT_RENAMED)
            found = _synced(target)
            if found is None:
                return None
            size, digest = found
            reach(FaultPoint.COMMIT_SYNCED)
            # The new name first: should the power go in between, the file has two names or one.
            sync_directory(folder)
            if not prepared:
                sync_directory(folder.parent)
            sync_directory(self.receiving)
        reach(FaultPoint.COMMIT_PLACED)
        return Original(str(target.relative_to(self.directory)), size, digest)

    def rename(self, path: Path, id_: MessageId, name: str) -> Path:
        """Give a stray file in `receiving` the name it would have had with an intent."""
        goal = self.path_of(id_, name)
        with translated(path):
            os.rename(path, goal)  # in one step: two names would become two messages
        return goal

    def release(self, path: Path) -> None:
        """Remove a reservation that stayed empty; a file with anything in it is left."""
        with suppress(OSError):
            if stat.S_ISREG((found := os.lstat(path)).st_mode) and found.st_size == 0:
                path.unlink()

    def forget(self, note: Path) -> None:
        """Remove what the PBX wrote down: it is in the record now, or nobody needs it."""
        with suppress(OSError):
            if note.suffix == SUFFIX and stat.S_ISREG(os.lstat(note).st_mode):
                note.unlink()

    def remove(self, id_: MessageId) -> bool:
        """Delete the original and all that was made of it; may be repeated. False, and a line in
        the log, if that cannot be: one must not keep the others."""
        try:
            folder = self.messages / home(id_)
            with suppress(FileNotFoundError):
                shutil.rmtree(folder)
        except (OSError, ValueError) as error:
            logger.error("spool {}: message {} is not deleted: {}", self.directory, id_, error)
            return False
        return True

    def waiting(self) -> list[Path]:
        """Everything in `receiving`, oldest first."""
        with translated(self.receiving), os.scandir(self.receiving) as entries:
            found = []
            for entry in entries:
                with suppress(FileNotFoundError):
                    found.append((entry.stat(follow_symlinks=False).st_mtime, entry.path))
        return [Path(path) for _, path in sorted(found)]

    def kept(self) -> Iterator[tuple[MessageId, Path]]:
        """Originals in their places: id and file. Directories without a file are passed over."""
        with translated(self.messages):
            for folder in sorted(self.messages.glob("[0-9]*/[0-9]*/*")):
                if ID.fullmatch(folder.name) and (originals := _originals_in(folder)):
                    yield MessageId(folder.name), originals[0]

    def _make(self, folder: Path) -> None:
        """The message's directory. The names above are synced once by every process: whoever made
        them may have died, or another thread be at it, before they were on disk."""
        for above in (folder.parent.parent, folder.parent):
            if above not in self._durable or not above.is_dir():
                above.mkdir(mode=0o750, exist_ok=True)
                sync_directory(above.parent)
                self._durable.add(above)
        folder.mkdir(mode=0o750, exist_ok=True)


def checked_name(name: str) -> str:
    """`name` if it may be a file's name in the spool; else `OurFault`."""
    if not _NAME.fullmatch(name):
        raise OurFault(f"not a name for an original: {name!a}")
    return name


def is_settled(path: Path, stillness: Stillness) -> bool:
    """Whether nobody writes to a file any more, as far as can be told.

    An engine that has lost umpack goes on to the end of its call, with the file open. The kernel
    grants a read lease on a file only if nobody has it open for writing; it does so to the
    file's owner and to root, so for others' files there is only that nothing has changed for
    a while. A call in negotiation has no file open yet: that time is asked of every file.
    """
    try:
        handle = os.open(path, _OPEN)
    except OSError:
        return False
    try:
        found = os.fstat(handle)
        state = found.st_ino, found.st_size, found.st_mtime_ns
        if not stillness.reached(path, state, found.st_mtime):
            return False
        # Should a writer come just now we are told by this signal, which nobody minds; the
        # default, SIGIO, would end the process.
        fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return False
    except OSError:
        return True  # not ours to ask, or a file system without leases
    finally:
        os.close(handle)
    return True


def is_regular(path: Path) -> bool:
    """Whether there is a file, and not a link, directory or device."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def _originals_in(folder: Path) -> list[Path]:
    try:
        if not folder.is_dir():
            return []
        files = [f for f in sorted(folder.iterdir()) if is_regular(f)]
    except OSError as error:  # one that is damaged must not hide the others
        logger.error("spool {}: {}", folder, error.strerror or error)
        return []
    return [f for f in files if f.stem == "original"] or files


def _synced(path: Path) -> tuple[int, str] | None:
    """Force a file to disk; its size and SHA-256, or None if there is nothing in it."""
    if not is_regular(path):
        return None
    with open(os.open(path, _OPEN), "rb", buffering=0) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_size == 0:
            return None
        # The engine's group wrote it and has no business with it any more. What the engine made
        # by itself is its own, and stays as it is.
        with suppress(PermissionError):
            os.fchmod(file.fileno(), 0o640)
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return os.fstat(file.fileno()).st_size, digest


@contextmanager
def _but_taken(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise SpoolFault(f"spool {path}: {error.strerror or error}") from error
