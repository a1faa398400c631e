"""Where the tests' Asterisk lives: the machine's own, or a root built once into a cache.

Debian 12 ships no Asterisk, so `mmdebstrap` builds a small Debian sid root that has one. The mirror
is the machine's own (its apt sources), the root stays outside the repository, and a file lock keeps
parallel test processes from building it twice. Run it alone with `python -m tests.pbx.root`.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

PACKAGES = ("asterisk", "asterisk-modules", "asterisk-core-sounds-en-gsm")
SUITE = "sid"
BUILD_SECONDS = 1200
APT_DIRECTORY = Path("/etc/apt")

Progress = Callable[[str], None]


class PbxUnavailable(RuntimeError):
    """No Asterisk here and none can be built; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Root:
    """An Asterisk ready to run: in `directory` (a chroot), or the machine's own if that is None."""

    directory: Path | None
    version: str

    @property
    def labs(self) -> Path:
        """Where lab directories go, as seen from outside."""
        if self.directory is None:
            return Path(os.environ.get("TMPDIR", "/tmp")) / f"umpack-labs-{os.getuid()}"
        return self.directory / "lab"

    def inside(self, path: Path) -> Path:
        """Translate an outside path to the one Asterisk sees."""
        return path if self.directory is None else Path("/") / path.relative_to(self.directory)

    def share(self) -> None:
        """Let Asterisk find everything below the root under its outside path as well.

        A link that leads to the root's own top, seen from inside and from outside; no mount.
        """
        if self.directory is None:
            return
        link = self.directory / self.directory.resolve().relative_to("/")
        if not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            ups = len(link.parent.relative_to(self.directory).parts)
            with suppress(FileExistsError):
                link.symlink_to("/".join([".."] * ups) or ".")

    def command(self, *argv: str) -> list[str]:
        """A short-lived command (`asterisk -rx ...`)."""
        return [*argv] if self.directory is None else ["chroot", str(self.directory), *argv]

    def daemon(self, *argv: str) -> list[str]:
        """A long-lived command; it replaces the starting process, so that one's pid is its own.

        /proc and /dev are bound in a mount namespace of its own: the mounts die with the process,
        never pile up, and no clean-up of the cache can reach the machine's /dev through them.
        """
        if self.directory is None:
            return [*argv]
        script = (
            'mount --bind /proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"'
        )
        return ["unshare", "--mount", "sh", "-ec", script, str(self.directory), *argv]


def ensure(progress: Progress | None = None) -> Root:
    """Return the Asterisk to test with, building it if needed.

    Raises PbxUnavailable. UMPACK_PBX_ROOT names the root's directory, then the machine's own
    Asterisk is not looked at.
    """
    chosen = os.environ.get("UMPACK_PBX_ROOT")
    if not chosen and shutil.which("asterisk"):
        return Root(None, _version(["asterisk"]))
    if os.geteuid() != 0:
        raise PbxUnavailable("no asterisk in PATH, and building or entering a root needs uid 0")
    directory = Path(chosen).absolute() if chosen else _cache() / "pbx-root"
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _lock(directory.with_name(directory.name + ".lock"), progress):
        if not (directory / "usr/sbin/asterisk").exists():
            _build(directory, progress or (lambda _line: None))
        _settle_names(directory)
    return Root(directory, _version(["chroot", str(directory), "asterisk"]))


def mirrors(apt: Path = APT_DIRECTORY) -> list[str]:
    """The Debian archives this machine itself installs from, best first, without duplicates."""
    found: list[str] = []
    files = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]
    for file in files:
        if file.suffix in (".list", ".sources") and file.is_file():
            text = file.read_text(encoding="utf-8", errors="replace")
            read = _stanzas(text) if file.suffix == ".sources" else _lines(text)
            found += [uri for uri in read if _is_debian(uri)]
    return list(dict.fromkeys(found))


def _is_debian(uri: str) -> bool:
    """Only the main archive carries sid: not debian-security, not a vendor's repository."""
    parts = urlsplit(uri)
    return parts.scheme in ("http", "https", "file") and parts.path.rstrip("/").endswith("/debian")


def _stanzas(text: str) -> Iterator[str]:
    """URIs of a deb822 file (sources.list(5)): stanzas of `Field: value` with folded lines."""
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace():
                fields[name] = f"{fields.get(name, '')} {line.strip()}"
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes") != "no":
            yield from fields.get("uris", "").split()


def _lines(text: str) -> Iterator[str]:
    """URIs of a one-line-format file: `deb [options] URI suite component...`."""
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+\S+", line)
        if match:
            yield match[1]


def _build(directory: Path, progress: Progress) -> None:
    if not shutil.which("mmdebstrap"):
        raise PbxUnavailable("no asterisk in PATH and no mmdebstrap to build one (apt package)")
    archives = mirrors()
    if not archives:
        raise PbxUnavailable("no Debian archive in this machine's apt sources to build a root from")
    reasons: list[str] = []
    for mirror in archives:
        # A fixed temporary name: the lock is ours, so what is there is a build that was killed.
        unfinished = directory.with_name(directory.name + ".unfinished")
        _remove(unfinished)
        progress(f"building {directory} with {', '.join(PACKAGES)} from {SUITE} (minutes)")
        reason = _bootstrap(unfinished, mirror, progress)
        if reason is None:
            (unfinished / "lab").mkdir(exist_ok=True)
            _remove(directory)
            unfinished.rename(directory)
            progress(f"built {directory}")
            return
        _remove(unfinished)
        reasons.append(f"{mirror}: {reason}")
    raise PbxUnavailable("mmdebstrap failed: " + "; ".join(reasons))


def _bootstrap(target: Path, mirror: str, progress: Progress) -> str | None:
    """Run mmdebstrap; None if all is well, else the reason."""
    command = [
        "mmdebstrap", "--mode=root", "--variant=apt", "--format=directory",
        '--aptopt=Acquire::Check-Valid-Until "false"', "--aptopt=Acquire::Retries 3",
        f"--include={','.join(PACKAGES)}", SUITE, str(target), mirror,
    ]  # fmt: skip
    last: list[str] = []
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with subprocess.Popen(
        ["timeout", "--kill-after=30", str(BUILD_SECONDS), *command],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", env=environment,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            progress(line.rstrip())
            last = [*last[-4:], line.strip()]
    if process.returncode != 0:
        return f"status {process.returncode}: {' / '.join(last)}"
    try:
        _version(["chroot", str(target), "asterisk"])
    except PbxUnavailable as error:
        return str(error)
    return None


def _settle_names(directory: Path) -> None:
    """Answer every name Asterisk asks for at a call from a file: no call may wait on DNS.

    Asterisk finds its own address by resolving the host name and A.ROOT-SERVERS.NET.
    """
    names = dict.fromkeys(("localhost", socket.gethostname(), "A.ROOT-SERVERS.NET"))
    for file, text in (
        (directory / "etc/hosts", f"127.0.0.1 {' '.join(names)}\n"),
        (directory / "etc/resolv.conf", ""),
    ):
        if file.is_symlink() or not file.exists() or file.read_text(encoding="utf-8") != text:
            fresh = file.with_name(file.name + ".new")
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(file)
    (directory / "lab").mkdir(exist_ok=True)


def _remove(directory: Path) -> None:
    """Delete a root, unless something is mounted below it (then deleting would leave the root)."""
    if not directory.exists():
        return
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        if line.split(" ")[1].startswith(f"{directory.resolve()}/"):
            raise PbxUnavailable(f"{directory} has something mounted below it: {line}")
    shutil.rmtree(directory)


def _version(asterisk: list[str]) -> str:
    """E.g. "22.10.1"; proves that the program runs at all."""
    try:
        done = subprocess.run(
            [*asterisk, "-V"], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise PbxUnavailable(f"{' '.join(asterisk)} -V: {error}") from error
    match = re.match(r"Asterisk (\d[\d.]*)", done.stdout)
    if not match:
        raise PbxUnavailable(f"{' '.join(asterisk)} -V says {done.stdout!r}")
    return match[1]


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "umpack"


@contextmanager
def _lock(file: Path, progress: Progress | None) -> Iterator[None]:
    with file.open("w", encoding="ascii") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress:
                progress("another process is building the root: waiting for it")
            # Bounded by the other one's BUILD_SECONDS; the kernel drops the lock if it dies.
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    try:
        root = ensure(lambda line: print(line, flush=True))
    except PbxUnavailable as error:
        sys.exit(f"no PBX for the tests: {error}")
    print(f"Asterisk {root.version} in {root.directory or 'this machine'}")
