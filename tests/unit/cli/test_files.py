from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.unit.daemons import SECRET, TRUNKS, pbx, text
from umpack.cli import app
from umpack.core.errors import OurFault

GOOD = text(pbxs=pbx(port=4573))


def ran(*arguments: str) -> Result:
    result = CliRunner().invoke(app, arguments)
    if isinstance(result.exception, OurFault):
        raise result.exception
    return result


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "umpack.yaml"
    path.write_text(GOOD)
    return path


def test_check_good(file: Path) -> None:
    result = ran("check", str(file))
    assert result.exit_code == 0
    assert result.output == f"{file}: ok (1 trunks with 3 channels, 1 packs, 1 routes)\n"


def test_check_bad(file: Path) -> None:
    file.write_text(GOOD + "colour: 1\nlog: {levle: info}\n")
    result = ran("check", str(file))
    assert result.exit_code == 1
    first, second = result.stdout.splitlines()
    assert first.startswith(f"{file}:13: colour: ")
    assert second.startswith(f"{file}:14: log.levle: ")
    assert "did you mean level?" in second
    answer = json.loads(ran("check", str(file), "--json").stdout)
    assert not answer["ok"]
    assert [(row["line"], row["key"]) for row in answer["problems"]] == [
        (13, "colour"),
        (14, "log.levle"),
    ]


def test_warnings_do_not_fail_and_stay_off_stdout(file: Path) -> None:
    file.write_text(text())  # port 0
    result = ran("check", str(file))
    assert result.exit_code == 0
    assert "ok (" in result.stdout
    assert "port 0" in result.stderr
    assert json.loads(ran("check", str(file), "--json").stdout)["ok"]


def test_show_is_one_document_without_secrets(file: Path) -> None:
    shown = json.loads(ran("check", str(file), "--show").stdout)
    both = json.loads(ran("check", str(file), "--show", "--json").stdout)
    assert both["configuration"] == shown
    assert shown["packs"]["um"]["channels"] == ["um1:1-3"]
    assert shown["pbx"]["main"]["ami"]["secret"] == "***"  # noqa: S105
    assert SECRET not in json.dumps(both)


def test_schema() -> None:
    assert json.loads(ran("schema").stdout)["properties"].keys() >= {"pbx", "trunks", "packs"}


def test_dialplan_needs_a_name_only_if_there_are_several(file: Path) -> None:
    alone = ran("dialplan", str(file))
    assert alone.exit_code == 0
    assert "AGI(agi://127.0.0.1:4573" in alone.stdout
    assert SECRET not in alone.stdout
    file.write_text(
        text(
            pbxs=pbx(port=4573) + pbx("b", 4574),
            trunks=TRUNKS + "  um2: {kind: sip, pbx: b, endpoint: um2, channels: 3}\n",
        )
    )
    with pytest.raises(OurFault, match="several PBXs, name one with --pbx: main, b"):
        ran("dialplan", str(file))
    assert "for pbx b:" in ran("dialplan", str(file), "--pbx", "b").stdout
    with pytest.raises(OurFault, match="no pbx 'c'; there are: main, b"):
        ran("dialplan", str(file), "--pbx", "c")


def test_a_dialplan_is_put_in_its_place_whole_or_not_at_all(file: Path) -> None:
    place = file.with_name("umpack.conf")
    assert ran("dialplan", str(file), "--output", str(place)).stdout == ""
    whole = place.read_text()
    assert whole == ran("dialplan", str(file)).stdout
    place.chmod(0o600)
    file.write_text(GOOD + "colour: 1\n")
    with pytest.raises(OurFault, match="colour"):
        ran("dialplan", str(file), "-o", str(place))
    assert place.read_text() == whole
    file.write_text(GOOD.replace("channels: 3", "channels: 2"))
    ran("dialplan", str(file), "-o", str(place))
    assert place.read_text() != whole
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    with pytest.raises(OurFault, match=r"nowhere/umpack\.conf is as it was: No such file"):
        ran("dialplan", str(file), "-o", str(file.parent / "nowhere" / "umpack.conf"))
    assert sorted(path.name for path in file.parent.iterdir()) == ["umpack.conf", "umpack.yaml"]


def test_a_dialplan_leaves_its_place_what_it_was(file: Path) -> None:
    real, link = file.with_name("real.conf"), file.with_name("umpack.conf")
    real.write_text("")
    real.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(real, 1, 2)  # as Debian gives /etc/asterisk to Asterisk's user
    link.symlink_to(real.name)
    had = real.stat()
    ran("dialplan", str(file), "-o", str(link))
    whole = real.read_text()
    assert "umpack-in" in whole
    assert link.is_symlink()
    has = real.stat()
    assert (has.st_uid, has.st_gid, has.st_mode) == (had.st_uid, had.st_gid, had.st_mode)
    pipe = file.with_name("pipe")
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        ran("dialplan", str(file), "-o", str(pipe))
        assert os.read(reader, 1 << 20).decode() == whole
    finally:
        os.close(reader)
    assert {path.name for path in file.parent.iterdir()} == {
        file.name, real.name, link.name, pipe.name
    }  # fmt: skip


def test_who_has_closed_its_output_is_served_all_the_same(file: Path) -> None:
    argv = (sys.executable, "-m", "umpack.cli", "check", str(file))
    done = subprocess.run(
        ("sh", "-c", 'exec "$@" >&-', "sh", *argv), stderr=subprocess.PIPE, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
