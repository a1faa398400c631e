"""A Postfix of its own: own configuration, queue and port; the machine's is not touched.

It needs Debian's package `postfix` and root, as its parts run as user `postfix`.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ports import free_port

PROGRAM = "/usr/sbin/postfix"
DOMAIN = "site.test"
FULL, GONE = "full", "gone"
"""Whom it puts off, and whom it refuses."""

_MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""

_MAIN = """\
compatibility_level = 3.6
queue_directory = {base}/queue
data_directory = {base}/data
maillog_file = {base}/mail.log
maillog_file_prefixes = {base}
mail_owner = postfix
setgid_group = postdrop
myhostname = mx.site.test
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
alias_maps =
alias_database =
local_recipient_maps =
smtpd_peername_lookup = no
virtual_mailbox_domains = {domain}
virtual_mailbox_base = {base}/mail
virtual_mailbox_maps = static:inbox/
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_minimum_uid = 1
message_size_limit = 50000000
smtpd_recipient_restrictions = check_recipient_access inline:{{
    {{ {full}@{domain} = 452 4.2.2 mailbox full }}, {{ {gone}@{domain} = 550 5.1.1 gone }} }},
    permit_mynetworks, reject
"""


@dataclass(frozen=True)
class Postfix:
    """One that is running."""

    base: Path
    port: int

    def mails(self) -> list[bytes]:
        """What lies in the Maildir, new."""
        folder = self.base / "mail" / "inbox" / "new"
        return [path.read_bytes() for path in sorted(folder.glob("*"))] if folder.is_dir() else []

    @property
    def log(self) -> str:
        """All it has logged."""
        return (self.base / "mail.log").read_text()


def why_not() -> str:
    """Why there can be none here; empty if there can."""
    if not os.access(PROGRAM, os.X_OK):
        return "no Postfix (Debian: postfix)"
    if os.geteuid() != 0:
        return "Postfix must be started by root"
    return ""


def require() -> None:
    """Skips loudly; fails where nothing may be skipped."""
    if why := why_not():
        if os.environ.get("UMPACK_REQUIRE_PBX") == "1":
            pytest.fail(why)
        pytest.skip(why)


def _prepare(base: Path, port: int) -> None:
    owner = pwd.getpwnam("postfix")
    base.chmod(0o755)
    for name in ("etc", "queue", "data", "mail"):
        (base / name).mkdir()
    os.chown(base / "data", owner.pw_uid, -1)
    os.chown(base / "mail", owner.pw_uid, owner.pw_gid)
    given = {
        "base": base, "port": port, "domain": DOMAIN, "uid": owner.pw_uid, "gid": owner.pw_gid,
        "full": FULL, "gone": GONE,
    }  # fmt: skip
    (base / "etc" / "main.cf").write_text(_MAIN.format_map(given))
    (base / "etc" / "master.cf").write_text(_MASTER.format_map(given))
    for name in ("postfix-files", "dynamicmaps.cf"):
        if (found := Path("/etc/postfix") / name).exists():
            shutil.copy(found, base / "etc")


async def _run(base: Path, verb: str) -> str:
    child = await asyncio.create_subprocess_exec(
        PROGRAM, "-c", str(base / "etc"), verb,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await child.communicate()
    return "" if child.returncode == 0 else out.decode() or f"status {child.returncode}"


@asynccontextmanager
async def postfix(base: Path) -> AsyncIterator[Postfix]:
    """Started and answering; stopped at the end. `base` must be readable for everybody."""
    port = free_port()
    _prepare(base, port)
    if said := await _run(base, "start"):
        log = base / "mail.log"
        pytest.fail(f"Postfix does not start: {said}{log.read_text() if log.exists() else ''}")
    try:
        async with asyncio.timeout(20):
            await _answering(port)
        yield Postfix(base, port)
    finally:
        await _run(base, "stop")


async def _answering(port: int) -> None:
    while not await _answers(port):  # noqa: ASYNC110 - another process, no event to wait for
        await asyncio.sleep(0.1)


async def _answers(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    greeting = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return greeting.startswith(b"220")
