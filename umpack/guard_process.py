"""The process that ends a umpack which stands still; run by `guard.Guard`, with nothing loaded.

    python -I -S guard_process.py PID STOPPED STUCK

reads signs of life from its standard input and ends with it. It counts its own steps, never a
clock: after a suspended machine has come back only one step has passed.
"""

from __future__ import annotations

import os
import select
import signal
import sys

STEP = 0.1
"""Seconds between two looks while no sign of life comes."""

LAST_WORDS = 0.3
"""Seconds a process may take to write where it hangs, before it is killed."""

ALIVE, GOING = b".", b"!"
"""Signs of life: the loop turns; it will turn no more, and may take its time to end."""


def is_stopped(pid: int) -> bool:
    """Whether it was stopped (SIGSTOP), as proc(5) shows it."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name before it is in brackets, and may have brackets.
            return file.read().rpartition(b")")[2].split()[0] == b"T"
    except (OSError, IndexError):
        return False


def watch(pid: int, stopped: float, stuck: float) -> str:
    """Why it is to be ended; empty when it has ended by itself. Limits are in seconds."""
    poller = select.poll()
    poller.register(0, select.POLLIN)
    silent, turning = 0, False
    while True:
        if poller.poll(STEP * 1000):
            signs = os.read(0, 4096)
            if not signs:
                return ""
            silent, turning = 0, GOING not in signs
            continue
        silent += 1
        if silent * STEP >= stopped and is_stopped(pid):
            return f"was stopped {silent * STEP:.1f} s ago"
        if turning and silent * STEP >= stuck:
            return f"has stood still for {silent * STEP:.1f} s"


def main(pid: int, stopped: float, stuck: float) -> None:
    """Watch, and end it if need be."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a stop of both lets the calls end first
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return  # it has ended while this one started
    if os.getppid() != pid:
        return  # it has ended, and its number may be somebody else's by now
    why = watch(pid, stopped, stuck)
    if not why:
        return
    print(f"guard: umpack {why}: it is ended, as callers may wait for it", file=sys.stderr)
    try:
        if not is_stopped(pid):
            signal.pidfd_send_signal(process, signal.SIGABRT)
            poller = select.poll()
            poller.register(process, select.POLLIN)
            poller.poll(LAST_WORDS * 1000)
        signal.pidfd_send_signal(process, signal.SIGKILL)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
