"""Where the log goes (loguru): standard error for journald, or a file that rotates by itself."""

from __future__ import annotations

import sys

from loguru import logger

from umpack.config import Log
from umpack.core.errors import OurFault

_TERMINAL = "<green>{time:HH:mm:ss.SSS}</green> <level>{level: <7}</level> {message}"
_FILE = "{time:YYYY-MM-DD HH:mm:ss.SSSZZ} {level: <7} {message}"
_JOURNALD = "{level: <7} {message}"


def start_logging(log: Log) -> None:
    """Send the program's log where the configuration says. `OurFault` if that cannot be written.

    Tracebacks are printed without the values of variables: a secret may be among them.
    """
    logger.remove()
    level = log.level.upper()
    if log.file is None:
        style = _TERMINAL if sys.stderr.isatty() else _JOURNALD
        logger.add(sys.stderr, level=level, format=style, diagnose=False, backtrace=False)
        return
    try:
        logger.add(
            log.file,
            level=level,
            format=_FILE,
            diagnose=False,
            backtrace=False,
            rotation="50 MB",
            retention=10,
            compression="gz",
        )
    except OSError as error:
        raise OurFault(f"log file {log.file}: {error.strerror or error}") from error
