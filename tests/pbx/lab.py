"""One running Asterisk with its own directory, ports and configuration.

All calls block with a limit; from a coroutine use `asyncio.to_thread(lab.rx, ...)`.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from tests.pbx.root import Root
from tests.ports import free_ports

SECRET = "lab-secret"  # noqa: S105  # a loopback port that lives for seconds
BOOT_SECONDS = 60.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.05

RTP_PORTS = (10000, 19998)

# Modules without hardware, licence or configuration here; each would complain or open a port.
NOLOAD = (
    "app_adsiprog", "app_agent_pool", "app_alarmreceiver", "app_amd", "app_audiosocket",
    "app_festival", "app_followme", "app_getcpeid", "app_jack", "app_minivm", "app_queue",
    "app_stasis", "app_stasis_broadcast", "app_voicemail", "app_voicemail_odbc",
    "cdr_adaptive_odbc", "cdr_csv", "cdr_custom", "cdr_manager", "cdr_odbc", "cdr_pgsql",
    "cdr_radius", "cdr_sqlite3_custom", "cdr_tds", "cel_custom", "cel_manager", "cel_odbc",
    "cel_pgsql", "cel_radius", "cel_sqlite3_custom", "cel_tds", "chan_audiosocket", "chan_console",
    "chan_dahdi", "chan_iax2", "chan_mobile", "chan_motif", "chan_ooh323", "chan_unistim",
    "chan_websocket", "func_odbc", "pbx_ael", "pbx_dundi", "pbx_lua", "pbx_realtime", "res_adsi",
    "res_aeap", "res_ari", "res_ari_applications", "res_ari_asterisk", "res_ari_bridges",
    "res_ari_channels", "res_ari_device_states", "res_ari_endpoints", "res_ari_events",
    "res_ari_model", "res_ari_playbacks", "res_ari_recordings", "res_ari_sounds", "res_audiosocket",
    "res_calendar", "res_calendar_caldav", "res_calendar_ews", "res_calendar_exchange",
    "res_calendar_icalendar", "res_cdrel_custom", "res_config_ldap", "res_config_mysql",
    "res_config_odbc", "res_config_pgsql", "res_config_sqlite3", "res_corosync", "res_geolocation",
    "res_hep", "res_hep_pjsip", "res_hep_rtcp", "res_http_media_cache", "res_musiconhold",
    "res_odbc", "res_odbc_transaction", "res_parking", "res_phoneprov", "res_pjsip_geolocation",
    "res_pjsip_notify", "res_pjsip_phoneprov_provider", "res_pjsip_stir_shaken", "res_prometheus",
    "res_resolver_unbound", "res_smdi", "res_snmp", "res_speech_aeap", "res_stasis_broadcast",
    "res_statsd", "res_stir_shaken", "res_stun_monitor", "res_websocket_client", "res_xmpp",
)  # fmt: skip


EMPTY = (
    "acl.conf", "ccss.conf", "cli.conf", "cli_aliases.conf", "cli_permissions.conf", "codecs.conf",
    "confbridge.conf", "dnsmgr.conf", "dsp.conf", "enum.conf", "features.conf", "pjproject.conf",
    "pjsip_wizard.conf", "res_curl.conf", "res_fax.conf", "sorcery.conf", "stasis.conf",
    "udptl.conf",
)  # fmt: skip

# What the caller hears (ITU-T E.180, Germany): without a country every ringing tone is an error.
TONES = "dial=425\nbusy=425/480,0/480\nring=425/1000,0/4000\ncongestion=425/240,0/240\n"


class LabError(RuntimeError):
    """The lab's Asterisk did not do what was asked; the text ends with its log."""


@dataclass(frozen=True, slots=True)
class SipPeer:
    """A SIP server on 127.0.0.1 the PBX can dial as PJSIP/<number>@<name>.

    `qualify_seconds` 0 never probes it (its state stays "Unknown", dialling goes ahead).
    `options` are further lines of the endpoint, e.g. ("fax_detect=no",).
    """

    name: str
    port: int
    qualify_seconds: int = 0
    options: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class LabConfig:
    """What differs between labs. `dialplan` is a whole extensions.conf.

    Calls from anyone on 127.0.0.1 enter `caller_context`. `manager_options` are further lines of
    the manager user (`eventfilter(...)=...`), `files` further configuration files by name.
    """

    dialplan: str
    peers: Sequence[SipPeer] = ()
    caller_context: str = "from-line"
    caller_options: Sequence[str] = ()
    manager_user: str = "umpack"
    manager_read: str = "all"
    manager_write: str = "all"
    manager_options: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)


class Lab:
    """An Asterisk of its own: `with Lab(root, config) as lab: ...`.

    `sip_port` (UDP) and `ami_port` (TCP), both on 127.0.0.1, stay the same over restarts.
    """

    def __init__(self, root: Root, config: LabConfig) -> None:
        self.root = root
        self.config = config
        self.sip_port, self.ami_port = free_ports(2)
        root.labs.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep(root)
        self.directory = Path(tempfile.mkdtemp(prefix="l", dir=root.labs))
        self._process: subprocess.Popen[bytes] | None = None
        # For sweep(): whose lab this is, should we be killed before stop().
        (self.directory / "owner").write_text(str(os.getpid()), encoding="ascii")
        for name in ("etc", "lib", "lib/keys", "spool", "run", "log", "agi"):
            (self.directory / name).mkdir()
        self._write_config()

    def __enter__(self) -> Lab:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.running else "not running"
        return f"<Lab {self.directory.name} sip {self.sip_port} ami {self.ami_port} {state}>"

    @property
    def pid(self) -> int | None:
        """Process id of the running Asterisk."""
        return self._process.pid if self._process and self.running else None

    @property
    def running(self) -> bool:
        """Whether Asterisk's process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What Asterisk logged so far (warnings and errors) and printed."""
        texts = []
        for name in ("log/messages", "log/console"):
            file = self.directory / name
            if file.exists():
                texts.append(file.read_text(encoding="utf-8", errors="replace"))
        return "".join(texts)

    def start(self) -> None:
        """Start and wait until fully booted and listening; raises LabError after 60 s."""
        if self.running:
            return
        with (self.directory / "log/console").open("ab") as console:
            self._process = subprocess.Popen(
                self.root.daemon("asterisk", "-f", "-C", str(self._inside("etc/asterisk.conf"))),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at pytest must not reach it before stop() does
            )
        for _ in _polls(BOOT_SECONDS):
            if not self.running:
                raise LabError(f"asterisk ended with {self._process.returncode}:\n{self.log}")
            if self._booted():
                return
        raise LabError(f"asterisk not booted after {BOOT_SECONDS} s:\n{self.log}")

    def halt(self) -> None:
        """End Asterisk in order (its calls are hung up), keep its directory and ports."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End Asterisk at once, as a crash would: nobody is told."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Halt if it runs, and start again with the same ports and directory."""
        self.halt()
        self.start()

    def stop(self) -> None:
        """End Asterisk and delete the lab's directory; may be called twice."""
        self.halt()
        shutil.rmtree(self.directory, ignore_errors=True)

    def rx(self, command: str, seconds: float = 20.0) -> str:
        """Run a CLI command in the running Asterisk and return what it prints."""
        done = self._rx(command, seconds)
        if done.returncode != 0:
            raise LabError(f"asterisk -rx {command!r}: {done.stdout}\n{self.log}")
        return done.stdout

    def channels(self) -> int:
        """How many channels exist now."""
        match = re.search(r"(\d+) active channel", self.rx("core show channels count"))
        if match is None:
            raise LabError("`core show channels count` has changed its words")
        return int(match[1])

    def wait_channels(self, count: int, seconds: float = 10.0) -> None:
        """Wait until exactly `count` channels exist; raises LabError after `seconds`."""
        for _ in _polls(seconds):
            if self.channels() == count:
                return
        raise LabError(
            f"not {count} channels:\n{self.rx('core show channels concise')}\n{self.log}"
        )

    def shared(self, name: str) -> Path:
        """A new directory for files of both sides, of the same path inside and outside."""
        self.root.share()
        directory = (self.directory / name).resolve()
        directory.mkdir()
        return directory

    def write(self, name: str, text: str) -> None:
        """Replace a configuration file; load it with `rx("dialplan reload")` and the like."""
        (self.directory / "etc" / name).write_text(text, encoding="utf-8")

    def _inside(self, name: str) -> Path:
        return self.root.inside(self.directory) / name

    def _rx(self, command: str, seconds: float) -> subprocess.CompletedProcess[str]:
        argv = ("asterisk", "-C", str(self._inside("etc/asterisk.conf")), "-rx", command)
        try:
            return subprocess.run(
                self.root.command(*argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, errors="replace", timeout=seconds, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise LabError(
                f"asterisk -rx {command!r} silent for {seconds} s:\n{self.log}"
            ) from error

    def _booted(self) -> bool:
        if not (self.directory / "run/asterisk.ctl").exists():
            return False
        try:
            done = self._rx("core waitfullybooted", BOOT_SECONDS)
        except LabError:
            return False
        return done.returncode == 0 and "fully booted" in done.stdout and self._listening()

    def _listening(self) -> bool:
        """Modules are loaded; a port taken by someone else would only be a line in the log."""
        if f"127.0.0.1:{self.sip_port}" not in self._rx("pjsip show transports", 20.0).stdout:
            raise LabError(f"no SIP on port {self.sip_port}:\n{self.log}")
        with socket.create_connection(("127.0.0.1", self.ami_port), timeout=20.0) as ami:
            return ami.recv(64).startswith(b"Asterisk Call Manager/")

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.send_signal(how)
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)
        finally:
            # A killed Asterisk leaves its control socket, by which start() judges the boot.
            for name in ("run/asterisk.ctl", "run/asterisk.pid"):
                (self.directory / name).unlink(missing_ok=True)

    def _write_config(self) -> None:
        for name, text in {**self._texts(), **self.config.files}.items():
            self.write(name, text)

    def _texts(self) -> dict[str, str]:
        at = {name: self._inside(name) for name in ("etc", "lib", "spool", "run", "log", "agi")}
        noload = "".join(f"noload => {module}.so\n" for module in NOLOAD)
        return {
            "asterisk.conf": (
                f"[directories]\nastetcdir => {at['etc']}\nastvarlibdir => {at['lib']}\n"
                f"astdbdir => {at['lib']}\nastkeydir => {at['lib']}\nastspooldir => {at['spool']}\n"
                f"astrundir => {at['run']}\nastlogdir => {at['log']}\nastagidir => {at['agi']}\n"
                "[options]\nnocolor = yes\nhideconnect = yes\ndefaultlanguage = en\n"
            ),
            "modules.conf": f"[modules]\nautoload = yes\n{noload}",
            "logger.conf": "[general]\n[logfiles]\nmessages => warning,error\n",
            "extensions.conf": self.config.dialplan,
            "manager.conf": self._manager(),
            "pjsip.conf": self._pjsip(),
            "rtp.conf": f"[general]\nrtpstart={RTP_PORTS[0]}\nrtpend={RTP_PORTS[1]}\n",
            "http.conf": "[general]\nenabled = no\n",
            "cdr.conf": "[general]\nenable = no\n",
            "cel.conf": "[general]\nenable = no\n",
            # Their absence alone would be a warning or a failed module.
            "indications.conf": "[general]\ncountry=de\n[de]\ndescription=Germany\n" + TONES,
            **dict.fromkeys(EMPTY, ""),
        }  # fmt: skip

    def _manager(self) -> str:
        config = self.config
        more = "".join(f"{line}\n" for line in config.manager_options)
        return (
            f"[general]\nenabled = yes\nwebenabled = no\nbindaddr = 127.0.0.1\n"
            f"port = {self.ami_port}\n[{config.manager_user}]\nsecret = {SECRET}\n"
            f"read = {config.manager_read}\nwrite = {config.manager_write}\n{more}"
        )

    def _pjsip(self) -> str:
        media = (
            "disallow=all\nallow=alaw,ulaw\ndirect_media=no\nmedia_address=127.0.0.1\n"
            "bind_rtp_to_media_address=yes\n"
        )
        caller_more = "".join(f"{line}\n" for line in self.config.caller_options)
        parts = [
            # Callers choose their From user; it must not make one of them a known endpoint.
            "[global]\ntype=global\nendpoint_identifier_order=anonymous\n",
            f"[udp]\ntype=transport\nprotocol=udp\nbind=127.0.0.1:{self.sip_port}\n",
            f"[anonymous]\ntype=endpoint\ncontext={self.config.caller_context}\n{media}{caller_more}",
        ]
        for peer in self.config.peers:
            more = "".join(f"{line}\n" for line in peer.options)
            parts += [
                f"[{peer.name}]\ntype=endpoint\ncontext=from-peers\naors={peer.name}\n{media}{more}",
                f"[{peer.name}]\ntype=aor\ncontact=sip:127.0.0.1:{peer.port}\n"
                f"qualify_frequency={peer.qualify_seconds}\n",
            ]
        return "\n".join(parts)


def sweep(root: Root) -> None:
    """End and delete labs whose test process died without stopping them."""
    for directory in root.labs.iterdir():
        owner = _number(directory / "owner")
        if owner is None or Path(f"/proc/{owner}").exists():
            continue
        asterisk = _number(directory / "run/asterisk.pid")
        if asterisk is not None and asterisk > 1:
            # The number may have been given to another process since.
            command = Path(f"/proc/{asterisk}/cmdline")
            mark = str(root.inside(directory) / "etc/asterisk.conf").encode()
            if command.exists() and mark in command.read_bytes().split(b"\0"):
                os.kill(asterisk, signal.SIGKILL)
        shutil.rmtree(directory, ignore_errors=True)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii").strip())
    except (OSError, ValueError):
        return None


def _polls(seconds: float) -> Iterator[None]:
    for _ in range(max(1, round(seconds / POLL_SECONDS))):
        yield
        time.sleep(POLL_SECONDS)
