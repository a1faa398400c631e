"""README says what the program does: its tables and commands are the program's own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from umpack.core.channel import TRANSITIONS, ChannelEvent, ChannelState
from umpack.core.health_states import health_table
from umpack.messages.states import state_tables

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
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


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_exists(command: str) -> None:
    program = [sys.executable, "-m", "umpack.cli", *command.split(), "--help"]
    assert subprocess.run(program, capture_output=True, check=False).returncode == 0
