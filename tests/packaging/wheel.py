"""Proves the wheel: `python -m tests.packaging.wheel DIRECTORY` (or a wheel file).

What is in it, and that it works where nothing of the repository is: installed into a fresh virtual
environment, run from `/`. Its dependencies are those of the environment this runs in.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

PACKAGES = {"umpack", "drivers", "simulators"}
NEEDED = {
    "umpack/py.typed",
    "umpack/demo.yaml",
    "umpack/core/__init__.py",
    "umpack/cli/__main__.py",
    "drivers/py.typed",
    "drivers/asterisk/driver.py",
    "simulators/py.typed",
}
_ROOT = Path(__file__).parents[2]


class WheelError(Exception):
    """What is wrong with it."""


def newest(place: Path) -> Path:
    """The wheel, or the newest of a directory."""
    if place.is_file():
        return place
    found = sorted(place.glob("umpack-*.whl"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise WheelError(f"no umpack-*.whl in {place}")
    return found[-1]


def look_into(wheel: Path) -> str:
    """Check what is in it; gives its version."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        tops = {name.partition("/")[0] for name in names}
        information = {top for top in tops if top.endswith(".dist-info")}
        if tops - information != PACKAGES:
            raise WheelError(f"top-level names are {sorted(tops - information)}")
        if missing := NEEDED - names:
            raise WheelError(f"missing: {', '.join(sorted(missing))}")
        (folder,) = information
        metadata = message_from_bytes(archive.read(f"{folder}/METADATA"))
        if not any(name.startswith(f"{folder}/") and "LICENSE" in name for name in names):
            raise WheelError("no license")
    sources = {
        path.relative_to(_ROOT).as_posix()
        for package in PACKAGES
        for path in (_ROOT / package).rglob("*.py")
    }
    if left_out := sources - names:
        raise WheelError(f"left out: {', '.join(sorted(left_out))}")
    return str(metadata["Version"])


def try_out(wheel: Path, version: str) -> None:
    """Install it into a fresh environment and run it from `/`."""
    with tempfile.TemporaryDirectory(prefix="umpack-wheel-") as name:
        home = Path(name) / "venv"
        venv.create(home, with_pip=False)
        purelib = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
        # A link to each package, and no .pth to where they are: that would bring umpack along.
        _borrow(Path(sysconfig.get_path("purelib")), purelib)
        _run(
            [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install",
             "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", str(wheel)],
        )  # fmt: skip
        umpack = str(home / "bin" / "umpack")
        if (said := _run([umpack, "--version"])) != f"umpack {version}\n":
            raise WheelError(f"--version says {said!r}")
        for example in sorted((_ROOT / "etc").glob("*.yaml")):
            if "ok" not in (said := _run([umpack, "check", str(example)])):
                raise WheelError(f"check {example.name} says {said!r}")
        where = _run(
            [str(home / "bin" / "python"), "-c", "import umpack, drivers, simulators, json;"
             "print(json.dumps([m.__file__ for m in (umpack, drivers, simulators)]))"]
        )  # fmt: skip
        if strange := [path for path in json.loads(where) if not path.startswith(str(home))]:
            raise WheelError(f"not run from the wheel: {strange}")
        _run([umpack, "check", str(purelib / "umpack" / "demo.yaml")])


def _borrow(here: Path, there: Path) -> None:
    for entry in here.iterdir():
        plain = entry.name.lower()
        if plain.endswith(".pth") or plain.startswith(("umpack", "__editable__", "pip-", "pip")):
            continue
        (there / entry.name).symlink_to(entry)


def _run(command: list[str]) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "UMPACK"))}
    done = subprocess.run(
        command, cwd="/", env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise WheelError(
            f"{' '.join(command)} exits {done.returncode}:\n{done.stdout}{done.stderr}"
        )
    return done.stdout


def main() -> None:
    """Say ok, or what is wrong and exit 1."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.packaging.wheel DIRECTORY")
    try:
        wheel = newest(Path(sys.argv[1]).resolve())
        version = look_into(wheel)
        try_out(wheel, version)
    except WheelError as error:
        sys.exit(f"wheel: {error}")
    print(f"{wheel.name}: ok")


if __name__ == "__main__":
    main()
