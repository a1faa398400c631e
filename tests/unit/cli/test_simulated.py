"""What a newcomer tries first: the demonstration, a simulated site, a storm in real time."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.ports import free_ports
from tests.unit.cli.test_planning import KEYS, ONE_PACK
from tests.unit.daemons import program, umpack
from umpack.cli.running import DEMO_CONFIG

pytestmark = pytest.mark.timeout(180)  # every command is a process of its own


async def test_the_demonstration_distributes_calls_over_boards() -> None:
    ran = await umpack("demo", "--seconds", "4", "--erlangs", "60")
    assert (ran.code, ran.err) == (0, "")
    found = re.search(r"^(\d+) calls ended in 4 s: (.*)$", ran.out, re.MULTILINE)
    assert found
    assert int(found[1]) > 5
    assert "connected" in found[2]
    trunks = re.search(r"^by trunk: (.*)$", ran.out, re.MULTILINE)
    assert trunks
    assert {"line1", "line2"} <= set(re.findall(r"(\w+) \d+", trunks[1]))
    assert f"status --config {DEMO_CONFIG}" in ran.out


async def test_a_simulated_site_brings_its_own_callers(tmp_path: Path) -> None:
    ami, agi = free_ports(2)
    text = DEMO_CONFIG.read_text().replace("5038", str(ami)).replace("4573", str(agi))
    text = text.replace("/tmp/umpack-demo/", f"{tmp_path}/") + "drain: {deadline: 1s}\n"
    async with program(tmp_path, text, arguments=("--simulate",)) as daemon:

        async def connected() -> int:
            calls = (await daemon.umpack("calls", "--json")).json
            return sum(call["state"] == "connected" for call in calls)

        status = (await daemon.umpack("status", "--json")).json
        assert [link["link"] for link in status["pbxs"]] == ["up"]
        while not await connected():
            assert daemon.process.returncode is None, daemon.log
        assert await daemon.end() == 0


async def test_a_storm_in_real_time_goes_through_agi(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(ONE_PACK.replace("CHANNELS", "4"))
    ran = await umpack(
        "storm", "--config", str(file), "--erlangs", "3", "--hold", "0.2", "--calls", "60",
        "--seed", "7", "--realtime", "--json",
    )  # fmt: skip
    assert (ran.code, ran.err) == (0, "")
    report = json.loads(ran.out)
    assert list(report) == KEYS
    assert report["offered"] == 60
    assert report["carried"] + report["blocked"] == 60
    assert report["seed"] == 7
    assert [channel["position"] for channel in report["channels"]] == [1, 2, 3, 4]
    assert sum(channel["calls"] for channel in report["channels"]) == report["carried"] > 30
    carried = sum(channel["erlangs"] for channel in report["channels"])
    assert carried == pytest.approx(report["erlangs_carried"])
    # A linear pack fills from its first channel.
    loads = [channel["erlangs"] for channel in report["channels"]]
    assert loads[0] > loads[3]
