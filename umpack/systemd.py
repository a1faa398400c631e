"""Tells systemd how the daemon is doing (sd_notify(3)); silent where there is no systemd."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from umpack import clock
from umpack.core.printable import printable


class Notifier:
    """One datagram per message to the socket systemd names in NOTIFY_SOCKET."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        name = environment.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the NUL of Linux's abstract namespace.
        self._address = "\0" + name[1:] if name.startswith("@") else name
        watched = environment.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        limit = _seconds(environment.get("WATCHDOG_USEC", "")) if watched else 0.0
        self.listening = bool(self._address)
        """Whether anybody hears what is said here."""
        self.interval = min(1.0, limit / 2) if limit else 1.0
        """How often `alive` is due, in seconds; sd_watchdog_enabled(3) asks for half the limit."""

    def ready(self) -> None:
        """Start-up, or a reload, has succeeded."""
        self._send("READY=1")

    def reloading(self) -> None:
        """A reload has begun; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={int(clock.monotonic() * 1e6)}")

    def stopping(self, seconds: float) -> None:
        """The daemon is going, and may take so long to let calls end."""
        self._send(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int((seconds + 5) * 1e6)}")

    def alive(self, status: str) -> None:
        """The daemon has just proved that it works."""
        self._send(f"WATCHDOG=1\nSTATUS={printable(status, 200)}")

    def failing(self, status: str) -> None:
        """It has not; unless that changes, systemd's patience will end."""
        self._send(f"STATUS={printable(status, 200)}")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            try:
                sock.sendto(message.encode("utf-8", "replace"), self._address)
            except OSError:
                # systemd restarting its own end; the next message will reach it.
                return


def _seconds(microseconds: str) -> float:
    return int(microseconds) / 1e6 if microseconds.isascii() and microseconds.isdigit() else 0.0
