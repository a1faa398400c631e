"""The daemon in a process of its own beside a lab: to be killed, frozen and started again."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.pbx.beside import REPOSITORY
from tests.pbx.lab import POLL_SECONDS, Lab
from tests.pbx.storm import load_dialplan, site_file
from umpack.config import load
from umpack.core.errors import PeerFault
from umpack.web.client import ControlClient

PROGRAM = (sys.executable, "-c", "from umpack.cli import main; main()")


class Umpack:
    """`umpack run` as a process; the PBX has its dialplan as soon as this exists."""

    def __init__(self, lab: Lab, site: str, here: Path) -> None:
        self._file = site_file(lab, site, here)
        self._log = here / "log"
        self._client = ControlClient(here / "control.sock", timeout=5.0)
        self._process: subprocess.Popen[bytes] | None = None
        load_dialplan(lab, load(self._file))

    def __enter__(self) -> Umpack:
        self.start()
        self.wait_up()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    @property
    def log(self) -> str:
        """What it has logged in all its lives."""
        return self._log.read_text(encoding="utf-8") if self._log.exists() else ""

    def start(self) -> None:
        """Start it, as systemd would, and do not wait."""
        self._process = subprocess.Popen(
            [*PROGRAM, "run", "--config", str(self._file)],
            cwd=REPOSITORY, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def kill(self) -> None:
        """As the kernel's out-of-memory killer would; may be called twice."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def freeze(self) -> None:
        """Let it neither read nor write; the kernel still accepts connections for it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def wait_ended(self, seconds: float) -> None:
        """Wait until its guard has ended it; TimeoutExpired if it does not."""
        assert self._process is not None
        assert self._process.wait(seconds) == -signal.SIGKILL

    def status(self) -> Any:
        """What it says of itself; None while it does not answer."""
        try:
            return self._client.get("/v1/status")
        except PeerFault:
            return None

    def living(self) -> Any:
        """The calls that hold a channel now."""
        return self._client.get("/v1/calls", state="living")

    def ended(self, count: int) -> Any:
        """Up to so many calls from its journal, of all its lives."""
        return self._client.get("/v1/calls", limit=str(count))

    def wait_up(self, seconds: float = 20.0) -> Any:
        """Wait until its link is up, and give its status then."""
        return self._wait(lambda status: status["pbxs"][0]["link"] == "up", seconds)

    def wait_calls(self, count: int, seconds: float) -> Any:
        """Wait until it holds exactly so many channels, and give its status then."""
        return self._wait(lambda status: status["calls"] == count, seconds)

    def _wait(self, holds: Any, seconds: float) -> Any:
        status = None
        for _ in range(round(seconds / POLL_SECONDS)):
            status = self.status()
            if status is not None and holds(status):
                return status
            time.sleep(POLL_SECONDS)
        raise AssertionError(f"not within {seconds} s: {status}\n{self.log[-3000:]}")
