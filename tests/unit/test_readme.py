"""README says what the program does: its tables and commands are the program's own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from drivers.asterisk import last_order, reconcile
from drivers.asterisk.ami import AmiLimits
from drivers.asterisk.signal_polls import PollTimes
from simulators.line import Timers
from umpack import daemon
from umpack.core import outliers
from umpack.core.channel import TRANSITIONS, ChannelEvent, ChannelState
from umpack.core.health_policy import HealthPolicy
from umpack.core.health_states import AlarmKind, health_table
from umpack.dialplan import caller
from umpack.messages.states import state_tables

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"[`$] ?umpack ((?:trunk |fax )?[a-z]+)\b", README)))


def test_the_health_table_is_up_to_date() -> None:
    assert health_table() in README


def test_the_delivery_table_is_up_to_date() -> None:
    assert state_tables().partition("\n\n")[0] in README


def test_nothing_is_left_to_be_filled_in() -> None:
    assert re.findall(r"@[A-Z]+@", README) == []


def test_the_channel_table_is_up_to_date() -> None:
    for state in ChannelState:
        moves = [TRANSITIONS[event].get(state) for event in ChannelEvent]
        cells = ["" if goal is None else goal.name.lower() for goal in moves]
        row = f"| **{state.name.lower()}** | {' | '.join(cells)} |"
        assert row.replace("|  |", "| |").replace("|  |", "| |") in README, row


def bounds() -> dict[str, tuple[str, ...]]:
    """By row of README's table "How soon": what it must say, with the figures of the code."""
    policy, polls, ami, board = HealthPolicy(), PollTimes(), AmiLimits(), Timers()
    late, times = policy.hesitation_floor, policy.most_times
    unit = dict(line.split("=", 1) for line in _unit() if "=" in line)
    red, blue = (board.alarm + policy.debounce(k) for k in (AlarmKind.RED, AlarmKind.AIS))
    yellow = board.rai + policy.debounce(AlarmKind.RAI)
    seldom = (policy.failures_to_eject - 1) * (policy.suspect_rest + late + 1 / 20)
    first, longest = policy.ejection(1, 0.0), policy.ejection(times, 1.0)
    silent = board.t203 + board.n200 * board.t200
    return {
        "an attempt is late": (
            f"once {policy.hesitation_samples} answers",
            f"p99 ≤ {policy.hesitation_ceiling:g} s",
            f"L = {late * 1000:.0f} ms for p99 ≤ {int(late / policy.hesitation_factor * 1e3)} ms",
        ),
        "callers who wait L": (f"| {late * 5:.0f} at λ = 5 |",),
        "a trunk that refuses": ("the first failure",) if policy.suspect_after == 1 else ("?",),
        "ejected": (
            f"W + {policy.failures_to_eject} / λ",
            f"W + {policy.failures_to_eject - 1} × (`suspect_rest` + L + 1 / Λ)",
            f"| {1 + seldom:.1f} s for W = 1 s, Λ = 20 |",
        ),
        "trial": (
            f"n up to {times},",
            f"| {first:g} to {policy.ejection(1, 1.0):g} s, at most {longest:g} s |",
        ),
        "whole capacity": (
            f"{policy.slow_start_share:.0%} at once".replace("%", " %"),
            f"| {policy.slow_start:g} s |",
        ),
        "black hole": (
            f"last {policy.outlier_sample} to {outliers.WINDOW} calls",
            f"| 10 to {outliers.WINDOW} calls |",
        ),
        "red, blue, yellow alarm": (
            f"| {red:g} s, {blue:g} s, {yellow:g} s; + {polls.lines:g} s |",
        ),
        "D channel down": (f"| {polls.least:g} s or {polls.lines:g} s; + {silent:g} s |",),
        "SIP contact gone": (f"| + {polls.endpoints:g} s |",),
        "alarm over": (
            f"every {polls.lines_out:g} s (contacts {polls.endpoints_out:g} s)",
            f"| {policy.alarm_settle:g} s × n, at most {policy.alarm_settle_cap:g} s |",
        ),
        "AMI silent": (
            f"every {ami.ping_every:g} s and {ami.ping:g} s",
            f"| {ami.ping_every + ami.ping:g} s |",
        ),
        "alarm that stands then": (f"| + {policy.alarm_unseen:g} s |",),
        "lease without a channel": (
            f"given {reconcile.GRACE:g} s",
            f"| {2 * reconcile.EVERY + reconcile.GRACE:g} s |",
        ),
        "umpack frozen": (
            f"after {caller.FRESH:g} s one caller in {caller.AWAY_FOR:g} s waits",
            f"| {caller.ALIVE_WITHIN:g} s; {unit['WatchdogSec']} + {unit['TimeoutAbortSec']} s |",
        ),
        "the dialplan's order": (f"| {last_order.EVERY:g} s; {daemon._PUMP:g} s |",),
    }


def _unit() -> list[str]:
    return (ROOT / "etc" / "systemd" / "umpack.service").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(("row", "figures"), bounds().items())
def test_the_bounds_are_the_codes(row: str, figures: tuple[str, ...]) -> None:
    section = README.partition("### How soon\n")[2].partition("\n## ")[0]
    (line,) = [line for line in section.splitlines() if line.startswith(f"| {row}")]
    for figure in figures:
        assert figure in line


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_exists(command: str) -> None:
    program = [sys.executable, "-m", "umpack.cli", *command.split(), "--help"]
    assert subprocess.run(program, capture_output=True, check=False).returncode == 0
