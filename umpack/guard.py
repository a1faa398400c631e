"""Ends this process when it stands still, so that no caller waits for it.

Asterisk sets no limit to an AGI step (tried on Asterisk 22): a call whose attempt has just failed
waits for umpack's next word until the connection ends, whatever the dialplan says. A limit of the
call's own (TIMEOUT(absolute)) would have to outlast the longest attempt, and would end the AGI step
only under AGIEXITONHANGUP, which takes from umpack what became of every call. systemd's watchdog
takes seconds and may not be there. What ends all connections at once is the end of the process: the
calls go on to the dialplan's own hunting, those that talk talk on.

So a small process of its own watches the loop. It is a child: systemd sees only the daemon, and
starts that again.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from loguru import logger

from umpack import guard_process
from umpack.guard_process import ALIVE, GOING

BEAT = 0.1
"""Seconds between two signs of life."""

STOPPED = 0.5
STUCK = 2.0
"""Seconds without a sign of life after which a stopped process, and any other one, is ended. A
stopped one will not go on by itself; another one may only have got no processor for a while."""

_AGAIN = 10.0
"""Seconds before a guard that has ended by itself may be missed again."""

_LAST = 2.0


class Guard:
    """`with Guard() as guard:` around the program, `guard.beat()` as a task while it serves calls.

    Until the first beat, and after the last, only a stopped process is ended.
    """

    def __init__(self, stopped: float = STOPPED, stuck: float = STUCK) -> None:
        self._argv = [
            sys.executable, "-I", "-S", str(Path(guard_process.__file__)),
            str(os.getpid()), str(stopped), str(stuck),
        ]  # fmt: skip

    def __enter__(self) -> Guard:
        self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        """Of the process that watches."""
        return self._process.pid

    async def beat(self) -> None:
        """Give signs of life, and a new guard if it has died; for ever."""
        try:
            while True:
                if self._say(ALIVE):
                    await asyncio.sleep(BEAT)
                    continue
                status = self._stop()
                logger.error("the guard has ended ({}): another one is started", status)
                self._start()
                await asyncio.sleep(_AGAIN)
        finally:
            self._say(GOING)

    def _say(self, sign: bytes) -> bool:
        try:
            os.write(self._pipe, sign)
        except BlockingIOError:
            return True  # it is stopped, and has enough to read
        except BrokenPipeError:
            return False
        return True

    def _start(self) -> None:
        reading, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        try:
            # A session of its own: what a terminal sends to stop umpack shall not stop it as well.
            self._process = subprocess.Popen(  # noqa: S603  # our own file, our own numbers
                self._argv, stdin=reading, stdout=subprocess.DEVNULL, start_new_session=True
            )
        except BaseException:
            os.close(self._pipe)
            raise
        finally:
            os.close(reading)

    def _stop(self) -> int:
        os.close(self._pipe)
        try:
            return self._process.wait(_LAST)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
