from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from umpack.cli import planning
from umpack.core import traffic
from umpack.core.errors import OurFault, UmpackError

KEYS = [
    "offered",
    "carried",
    "blocked",
    "blocking",
    "erlangs_offered",
    "erlangs_carried",
    "calls_per_second",
    "channels",
    "seed",
]
PROGRAM = [sys.executable, "-c", "from umpack.cli import main; main()"]

ONE_PACK = """
pbx:
  main:
    ami: {host: 127.0.0.1, user: umpack, secret: umpack}
    agi: {listen: "127.0.0.1:4573"}
trunks:
  um: {kind: sip, endpoint: um, channels: CHANNELS, dial: "PJSIP/{called}@um"}
packs:
  um: {strategy: linear, members: [um]}
routes:
  - {called: "49302000XXX", pack: um}
"""
TWO_PACKS = ONE_PACK.replace("packs:", 'packs:\n  night: {members: ["um:1"]}')


def site_file(folder: Path, text: str = ONE_PACK, channels: int = 6) -> str:
    file = folder / "site.yaml"
    file.write_text(text.replace("CHANNELS", str(channels)))
    return str(file)


def answer(*words: str) -> str:
    app = typer.Typer()
    planning.register(app)
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refusal(*words: str) -> str:
    with pytest.raises(UmpackError) as caught:
        answer(*words)
    return str(caught.value)


def storm_json(*words: str) -> dict[str, Any]:
    found = json.loads(answer("storm", "--json", *words))
    assert isinstance(found, dict)
    return found


# -- storm ----------------------------------------------------------------------------------


def test_storm_json_is_one_object_with_these_keys(tmp_path: Path) -> None:
    given = ("--config", site_file(tmp_path), "--pack", "um", "--erlangs", "4", "--hold", "30")
    found = storm_json(*given, "--calls", "3000", "--seed", "7", "--virtual")
    assert list(found) == KEYS
    assert (found["offered"], found["seed"]) == (3000, 7)
    assert found["carried"] + found["blocked"] == 3000
    assert found["blocking"] == found["blocked"] / 3000
    assert [list(channel) for channel in found["channels"]] == [
        ["id", "position", "calls", "erlangs"]
    ] * 6
    assert [channel["id"] for channel in found["channels"]] == [f"um:{n}" for n in range(1, 7)]
    assert [channel["position"] for channel in found["channels"]] == [1, 2, 3, 4, 5, 6]
    assert sum(channel["calls"] for channel in found["channels"]) == found["carried"]
    loads = [channel["erlangs"] for channel in found["channels"]]
    assert sum(loads) == pytest.approx(found["erlangs_carried"])
    assert loads == pytest.approx(traffic.linear_loads(6, 4.0), abs=0.08)
    assert found["erlangs_offered"] == pytest.approx(4.0, rel=0.1)


def test_storm_json_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    given = ("--config", site_file(tmp_path), "--erlangs", "4", "--calls", "500")
    first, again, other = (storm_json(*given, "--seed", seed) for seed in ("1", "1", "2"))
    for found in first, again, other:
        assert found.pop("calls_per_second") > 0
    assert first == again
    assert first != other


@pytest.mark.parametrize("holding", ["exponential", "fixed", "lognormal"])
def test_storm_holding_times(tmp_path: Path, holding: str) -> None:
    given = ("--config", site_file(tmp_path), "--erlangs", "4", "--calls", "2000")
    found = storm_json(*given, "--holding", holding)
    assert found["blocking"] == pytest.approx(traffic.blocking(6, 4.0), abs=0.06)
    exponential = storm_json(*given)
    assert (found["channels"] == exponential["channels"]) is (holding == "exponential")


def test_storm_warm_up_is_not_counted(tmp_path: Path) -> None:
    given = ("--config", site_file(tmp_path), "--erlangs", "4", "--hold", "10", "--calls", "1000")
    found = storm_json(*given, "--warm-up", "500")
    assert 700 < found["offered"] < 900  # 0.4 calls a second, for 500 s


def test_storm_runs_the_demo_without_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UMPACK_CONFIG", raising=False)
    found = storm_json("--pack", "fax", "--erlangs", "10", "--calls", "300")
    assert found["channels"][0]["id"] == "line1:1"


def test_storm_shows_people_theory_beside_measured(tmp_path: Path) -> None:
    given = ("--config", site_file(tmp_path), "--pack", "um", "--erlangs", "4")
    text = answer("storm", *given, "--calls", "4000", "--warm-up", "900")
    assert "um (linear, 6)" in text
    assert f"{traffic.blocking(6, 4.0):.5g}" in text
    for n, load in enumerate(traffic.linear_loads(6, 4.0), 1):
        (row,) = [line for line in text.splitlines() if f"um:{n} " in line]
        assert f"{load:.4f}" in row
        assert "█" in row
        assert "yes" in row
    assert "6 of 6 channels" in text
    assert "short storm" not in text


def test_storm_says_that_it_was_short(tmp_path: Path) -> None:
    text = answer("storm", "--config", site_file(tmp_path), "--erlangs", "4", "--calls", "100")
    assert "short storm" in text


def test_storm_of_a_large_pack_prints_a_short_table(tmp_path: Path) -> None:
    file = site_file(tmp_path, channels=1000)
    text = answer("storm", "--config", file, "--erlangs", "700", "--calls", "3000")
    assert "1–34" in text
    assert "987–1000" in text
    assert len(text.splitlines()) < 60


def test_storm_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "storm.png"
    given = ("--config", site_file(tmp_path), "--erlangs", "4", "--calls", "100")
    found = storm_json(*given, "--plot", str(picture))
    assert found["offered"] == 100
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_storm_errors_are_clear(tmp_path: Path) -> None:
    file = site_file(tmp_path, TWO_PACKS)
    given = ["storm", "--config", file, "--erlangs", "4"]
    assert refusal(*given) == "name one pack with --pack; there are: night, um"
    assert (
        refusal(*given, "--pack", "umm") == "no pack 'umm' (did you mean um?); there are: night, um"
    )
    given += ["--pack", "um"]
    assert refusal(*given, "--calls", "0") == "--calls must be at least 1, not 0"
    assert "hold must be above zero" in refusal(*given, "--hold", "-3")
    assert "erlangs must be above zero" in refusal(*given, "--erlangs", "0")
    assert "erlangs must be above zero" in refusal(*given, "--erlangs", "nan")
    assert "erlangs must be 0 to 1000000" in refusal(*given, "--erlangs", "1e12")
    assert "warm-up must be zero or more" in refusal(*given, "--warm-up", "-1")
    assert "within the warm-up" in refusal(*given, "--calls", "5", "--warm-up", "1e9")
    assert "--warm-up needs --virtual" in refusal(*given, "--warm-up", "5", "--realtime")
    assert "must end in .png" in refusal(*given, "--plot", str(tmp_path / "storm.doc"))
    assert "cannot be read" in refusal(*given, "--config", str(tmp_path / "absent.yaml"))


def test_storm_help_shows_examples() -> None:
    text = answer("storm", "--help")
    assert "umpack storm --pack voice --erlangs 40" in text


def test_errors_leave_stdout_empty(tmp_path: Path) -> None:
    given = ["storm", "--config", site_file(tmp_path), "--json"]
    for words, status, told in (
        (
            ["--erlangs", "4", "--pack", "umm"],
            1,
            "umpack: no pack 'umm' (did you mean um?); there are: um",
        ),
        (["--erlangs", "four"], 2, "--erlangs"),
        ([], 2, "--erlangs"),
    ):
        done = subprocess.run(
            [*PROGRAM, *given, *words], capture_output=True, text=True, check=False, timeout=50
        )
        assert (done.returncode, done.stdout) == (status, "")
        assert told in done.stderr
        assert "Traceback" not in done.stderr


def test_interrupt_ends_a_storm_cleanly(tmp_path: Path) -> None:
    words = ["storm", "--config", site_file(tmp_path), "--erlangs", "4", "--calls", "900000000"]
    ours, theirs = pty.openpty()  # the progress bar is for terminals; seen on it, the storm runs
    with subprocess.Popen([*PROGRAM, *words], stdout=subprocess.PIPE, stderr=theirs) as storm:
        os.close(theirs)
        told = b""
        while b"calls" not in told:
            assert select.select([ours], [], [], 50)[0], told
            told += os.read(ours, 4096)
        storm.send_signal(signal.SIGINT)
        try:
            while chunk := os.read(ours, 4096):
                told += chunk
        except OSError:  # EIO: how Linux says that the other end of a pty is closed
            pass
        assert storm.stdout is not None
        printed = storm.stdout.read()
        status = storm.wait(50)
    os.close(ours)
    assert status == 130
    assert printed == b""
    assert b"Traceback" not in told


# -- plan -----------------------------------------------------------------------------------


def test_plan_answers_how_many_channels() -> None:
    found = json.loads(answer("plan", "--erlangs", "30", "--blocking", "0.01", "--json"))
    # Any Erlang B table: 42 channels carry 30.8 erlangs at 1 %, 41 only 29.9.
    assert found["channels"] == 42
    assert (found["erlangs"], found["blocking"]) == (30.0, 0.01)
    rows = found["neighbours"]
    assert [row["channels"] for row in rows] == list(range(39, 46))
    for row in rows:
        assert row["blocking"] == traffic.blocking(row["channels"], 30.0)
        assert row["carried"] == pytest.approx(30.0 * (1 - row["blocking"]))
        assert row["last_channel"] == pytest.approx(traffic.linear_loads(row["channels"], 30.0)[-1])


def test_plan_answers_how_much_traffic() -> None:
    found = json.loads(answer("plan", "--channels", "30", "--json"))
    assert (found["channels"], found["blocking"]) == (30, 0.01)
    assert found["erlangs"] == pytest.approx(20.34, abs=0.005)  # any Erlang B table
    assert [row["channels"] for row in found["neighbours"]] == list(range(27, 34))
    small = json.loads(answer("plan", "--channels", "1", "--json"))
    assert [row["channels"] for row in small["neighbours"]] == [1, 2, 3, 4]


def test_plan_for_people() -> None:
    text = answer("plan", "--erlangs", "30")
    assert "30 erlangs with at most 1.000% lost need 42 channels (2 S2M)" in text
    assert "0.740%" in text
    text = answer("plan", "--channels", "30", "--blocking", "0.001")
    assert "30 channels take 16.684 erlangs with at most 0.100% lost" in text
    assert "need 1 channel (1 S2M)" in answer("plan", "--erlangs", "0.005")


def test_plan_errors_are_clear() -> None:
    assert refusal("plan") == "give either --erlangs or --channels"
    assert refusal("plan", "--erlangs", "3", "--channels", "3") == refusal("plan")
    assert "blocking must be above 0" in refusal("plan", "--erlangs", "3", "--blocking", "0")
    assert "blocking must be above 0" in refusal("plan", "--erlangs", "3", "--blocking", "nan")
    assert "erlangs must be 0 to" in refusal("plan", "--erlangs", "-3")
    assert "no channels" in refusal("plan", "--channels", "0")
    assert "channels must be 0 to" in refusal("plan", "--channels", "-2")
    with pytest.raises(OurFault):
        answer("plan", "--channels", "3", "--blocking", "1")


@pytest.mark.parametrize(
    ("load", "cells"),
    [(0.0, ""), (1.0, "█" * 24), (0.5, "█" * 12), (2.0, "█" * 24), (-1.0, ""), (1 / 192, "▏")],
)
def test_bar_is_as_long_as_the_load(load: float, cells: str) -> None:
    assert planning.bar(load) == cells
