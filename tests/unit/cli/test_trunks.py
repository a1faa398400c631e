"""`umpack trunk ...` as people type it, against a daemon of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.agi_peer import placed
from tests.unit.daemons import Ran, program, umpack
from tests.unit.test_daemon_health import fails_on_um1, two_trunks
from umpack.cli.operate import length

pytestmark = pytest.mark.timeout(180)  # every command is a process of its own


def words(ran: Ran) -> str:
    """What was printed, without the folds of a table."""
    return "".join(ran.out.split())


async def test_a_trunk_from_failure_to_restoration(tmp_path: Path) -> None:
    async with program(tmp_path, two_trunks()) as daemon:
        port = await daemon.port()
        assert (await daemon.umpack("trunk", "history")).out == "no changes\n"
        for _ in range(3):
            await fails_on_um1(port)
        listed = await daemon.umpack("trunk", "list")
        status = await daemon.umpack("status")
        for ran in (listed, status):
            assert "ejected" in ran.out
            assert "s,1sttime,3×cause41temporaryfailure;trialin" in words(ran)
            assert "1970" not in ran.out
        async with await placed(port) as caller:
            assert await caller.dialled() == "PJSIP/100@um2"
            (living,) = (await daemon.umpack("calls", "--json")).json
            explained = (await daemon.umpack("explain", living["id"])).out
            assert "  3 channels of um1: ejected: ejected 3" in explained
        history = await daemon.umpack("trunk", "history", "um1")
        assert "3×cause41temporaryfailure" in words(history)
        assert (await daemon.umpack("trunk", "history", "um2")).out == "no changes\n"
        restored = await daemon.umpack("trunk", "restore", "um1", "--why", "new cable")
        assert (restored.code, restored.out) == (0, "um1 is up\n")
        ejected = await daemon.umpack(
            "trunk", "eject", "um1", "--for", "5m", "--why", "\x1b[2Jnoise", "--by", "eva"
        )
        assert ejected.out == (
            "um1 is ejected: ejected 300 s, 1st time, by eva: \\x1b[2Jnoise; trial in 300 s\n"
        )
        rows = (await daemon.umpack("trunk", "history", "--limit", "2", "--json")).json
        assert [(row["from"], row["to"]) for row in rows] == [("up", "ejected"), ("ejected", "up")]
        assert rows[1]["why"].startswith("restored by ")
        assert rows[1]["why"].endswith(": new cable")
        # The same two words people know already.
        assert (await daemon.umpack("trunk", "drain", "um1")).out == "um1 takes no more calls\n"
        both = await daemon.umpack("trunk", "restore", "um1", "--by", "eva")
        assert both.out.startswith("um1 is up\nout of service: drained by ")
        assert (await daemon.umpack("trunk", "enable", "um1")).out == "um1 is back\n"
        listed = await daemon.umpack("trunk", "list", "--json")
        assert [row["health"]["state"] for row in listed.json] == ["up", "up"]
        # Who did what can be read in the log.
        assert "trunk um1 ejected for 300 s by eva: \\x1b[2Jnoise\n" in daemon.log
        assert "trunk um1 restored by eva\n" in daemon.log
        assert "um1 enabled by " in daemon.log
        assert "\x1b" not in daemon.log
        assert await daemon.end() == 0


async def test_what_cannot_be(tmp_path: Path) -> None:
    async with program(tmp_path, two_trunks()) as daemon:
        for wrong, why in (
            (("eject", "um9"), "umpack: no trunk 'um9'\n"),
            (("restore", "um1:1"), "umpack: no trunk 'um1:1'\n"),
            (("restore", "../calls"), "umpack: no trunk '../calls'\n"),
            (("eject", "um1", "--for", "soon"),
             "umpack: 'soon' is no length of time: write 90s, 5m or 2h\n"),
            (("eject", "um1", "--for", "0s"),
             "umpack: '0s' is no length of time: write 90s, 5m or 2h\n"),
            (("eject", "um1", "--for", "25h"),
             "umpack: seconds is a number above 0, of a day at most\n"),
        ):  # fmt: skip
            ran = await daemon.umpack("trunk", *wrong)
            assert (ran.code, ran.out, ran.err) == (1, "", why)
        assert (await daemon.umpack("trunk", "history")).out == "no changes\n"
        assert await daemon.end() == 0


async def test_without_a_daemon(tmp_path: Path) -> None:
    ran = await umpack("trunk", "list", "--socket", os.fspath(tmp_path / "none"))
    assert (ran.code, ran.out) == (1, "")
    assert "is it running?" in ran.err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90.0), ("5m", 300.0), ("2h", 7200.0), ("1d", 86400.0), ("0s", 0.0)]
    + [(wrong, None) for wrong in ("", "5", "m", "-5m", "1.5h", "18:30", "\x1b", "²m", "5M")],
)
def test_lengths_of_time(text: str, seconds: float | None) -> None:
    assert length(text) == seconds
