"""The place of the control socket in the file system: one umpack at a time. All of it blocks."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

from umpack.core.errors import OurFault


def claim(path: Path) -> int:
    """Take the place for this process alone; answers the lock. `OurFault` if another has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A lock, for whoever only looked whether somebody answers could look at the same moment as
    # another. The kernel takes it back whatever way its holder ends; the file may stay.
    lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise OurFault(f"another umpack is listening on {path}") from None
    except BaseException:
        os.close(lock)
        raise
    return lock


def bound(path: Path) -> socket.socket:
    """A socket at the path, which does not listen yet. One left behind by a crash is replaced."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OurFault(f"cannot listen on {path}: there is something that is no socket")
        path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        # Nobody can connect before it listens, so there is no moment for a stranger.
        path.chmod(0o660)
    except BaseException:
        listener.close()
        raise
    return listener


def give_free(bound: Path | None, lock: int) -> None:
    """Remove the socket, if there is one, and let others have the place."""
    if bound is not None:
        bound.unlink(missing_ok=True)
    os.close(lock)
