"""The lab itself: a real Asterisk boots, carries calls, and leaves nothing behind."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pbx import root as root_module
from tests.pbx.conftest import StartLab
from tests.pbx.lab import SECRET, LabConfig, LabError, SipPeer, sweep
from tests.pbx.root import PbxUnavailable, Root
from tests.pbx.sipp import Caller, Server, finals
from tests.ports import free_port

pytestmark = [pytest.mark.pbx, pytest.mark.timeout(900)]  # the first run builds the root


def _dial(seconds: int) -> str:
    # Without the last line a CHANUNAVAIL of any cause falls through to Congestion, a 503.
    return (
        f"[from-line]\nexten => 100,1,Dial(PJSIP/123@um1,{seconds})\n"
        " same => n,Hangup(${HANGUPCAUSE})\n"
    )


class TestLab:
    def test_boots_without_a_complaint(self, start_lab: StartLab) -> None:
        lab = start_lab(LabConfig("[from-line]\nexten => 1,1,Hangup()\n"))
        assert "Asterisk" in lab.rx("core show version")
        assert "ERROR" not in lab.log
        assert "WARNING" not in lab.log

    def test_two_labs_run_side_by_side(self, start_lab: StartLab) -> None:
        labs = [
            start_lab(LabConfig(f"[from-line]\nexten => 1,1,Hangup({cause})\n"))
            for cause in (17, 34)
        ]
        assert [Caller("1").run(lab.sip_port)[0].final for lab in labs] == [486, 503]

    def test_keeps_its_ports_over_a_crash(self, start_lab: StartLab) -> None:
        lab = start_lab(LabConfig("[from-line]\nexten => 1,1,Hangup(17)\n"))
        before = (lab.sip_port, lab.ami_port)
        lab.kill()
        assert not lab.running
        with pytest.raises(LabError):
            lab.rx("core show version")
        lab.start()
        assert (lab.sip_port, lab.ami_port) == before
        assert Caller("1").run(lab.sip_port)[0].final == 486

    def test_manager_user_can_log_in(self, start_lab: StartLab) -> None:
        lab = start_lab(LabConfig("[from-line]\n", manager_read="call", manager_write="system"))
        with socket.create_connection(("127.0.0.1", lab.ami_port), timeout=10) as ami:
            ami.sendall(
                f"Action: Login\r\nUsername: umpack\r\nSecret: {SECRET}\r\n\r\n".encode("ascii")
            )
            heard = b""
            while b"Authentication" not in heard:
                piece = ami.recv(4096)
                assert piece, heard
                heard += piece
        assert b"Authentication accepted" in heard

    def test_a_broken_configuration_is_told_with_the_log(self, start_lab: StartLab) -> None:
        config = LabConfig(
            "[from-line]\n", files={"modules.conf": "[modules]\nrequire = nosuch.so\n"}
        )
        with pytest.raises(LabError, match=r"nosuch\.so"):
            start_lab(config)

    def test_stop_leaves_no_process_directory_or_mount(
        self, start_lab: StartLab, pbx_root: Root
    ) -> None:
        lab = start_lab(LabConfig("[from-line]\n"))
        pid, directory = lab.pid, lab.directory
        lab.stop()
        lab.stop()
        assert not Path(f"/proc/{pid}").exists()
        assert not directory.exists()
        assert str(pbx_root.labs.parent) not in Path("/proc/self/mounts").read_text()

    def test_a_lab_of_a_killed_test_run_is_swept(self, pbx_root: Root) -> None:
        script = (
            "from tests.pbx.lab import Lab, LabConfig; from tests.pbx.root import ensure\n"
            "lab = Lab(ensure(), LabConfig('[from-line]')); lab.start()\n"
            "print(lab.pid, lab.directory, flush=True); import time; time.sleep(60)\n"
        )
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as run:
            assert run.stdout is not None
            pid, directory = run.stdout.readline().decode().split()
            run.send_signal(signal.SIGKILL)
        assert Path(directory).exists()
        sweep(pbx_root)
        assert not Path(directory).exists()
        # The orphan's new parent may not have collected it yet; a zombie has no command line.
        command = Path(f"/proc/{pid}/cmdline")
        assert not command.exists() or command.read_bytes() == b""


class TestCalls:
    def test_an_answered_call(self, start_lab: StartLab) -> None:
        with Server.answering(ring_ms=50) as server:
            lab = start_lab(LabConfig(_dial(5), peers=[SipPeer("um1", server.port)]))
            results = Caller("100", count=5, rate=20, user="77{call}").run(lab.sip_port)
            assert [result.final for result in results] == [200] * 5
            assert [result.codes for result in results] == [(100, 180, 200)] * 5
            assert {result.end for result in results} == {"hangup-local"}
            calls = server.calls()
            assert sorted(call.caller for call in calls) == ["771", "772", "773", "774", "775"]
            assert {call.called for call in calls} == {"123"}
            assert all(call.answered for call in calls)
            lab.wait_channels(0)

    def test_a_callee_that_hangs_up(self, start_lab: StartLab) -> None:
        with Server.hanging_up(hold_ms=100) as server:
            lab = start_lab(LabConfig(_dial(5), peers=[SipPeer("um1", server.port)]))
            (result,) = Caller("100", hold_ms=5000).run(lab.sip_port)
            assert result.end == "hangup-remote"
            assert server.calls()[0].steps == ("invite", "answered", "hangup-local")

    @pytest.mark.parametrize("code", [404, 480, 486, 503])
    def test_a_server_that_rejects(self, start_lab: StartLab, code: int) -> None:
        with Server.rejecting(code) as server:
            lab = start_lab(LabConfig(_dial(5), peers=[SipPeer("um1", server.port)]))
            results = Caller("100", count=3).run(lab.sip_port)
            assert finals(results) == {code: 3}
            assert [call.steps for call in server.calls()] == [("invite", "rejected")] * 3

    def test_a_caller_who_gives_up(self, start_lab: StartLab) -> None:
        with Server.ringing() as server:
            lab = start_lab(LabConfig(_dial(20), peers=[SipPeer("um1", server.port)]))
            (result,) = Caller("100", patience_ms=300).run(lab.sip_port)
            assert (result.end, result.codes) == ("cancelled", (100, 180, 487))
            lab.wait_channels(0)
            assert server.calls()[0].steps == ("invite", "cancelled")

    def test_a_server_that_only_rings(self, start_lab: StartLab) -> None:
        with Server.ringing() as server:
            lab = start_lab(LabConfig(_dial(1), peers=[SipPeer("um1", server.port)]))
            (result,) = Caller("100").run(lab.sip_port)
            assert result.end == "refused"
            assert result.seconds_to_final is not None
            assert result.seconds_to_final >= 1.0

    def test_hangup_34_is_503_on_the_wire_with_its_q850_cause(self, start_lab: StartLab) -> None:
        lab = start_lab(LabConfig("[from-line]\nexten => 100,1,Hangup(34)\n"))
        (result,) = Caller("100").run(lab.sip_port)
        assert (result.end, result.final, result.reason) == ("refused", 503, "Q.850;cause=34")

    def test_a_hostile_display_name_arrives_as_it_is(self, start_lab: StartLab) -> None:
        dialplan = (
            "[from-line]\n"
            'exten => 100,1,GotoIf($["${CALLERID(name)}" = "&Local/x@y,"]?ok)\n'
            " same => n,Hangup(34)\n same => n(ok),Hangup(17)\n"
        )
        lab = start_lab(LabConfig(dialplan))
        (result,) = Caller("100", display='"&Local/x@y,"').run(lab.sip_port)
        assert result.final == 486

    def test_a_call_nobody_takes_ends_by_itself_as_lost(self) -> None:
        (result,) = Caller("100").run(free_port(), seconds=1)
        assert (result.end, result.final, result.codes) == ("lost", None, ())

    def test_a_server_ends_by_itself(self) -> None:
        with Server("uas_ring", {}, None, life=1) as server:
            assert server.ended(seconds=10)


class TestRoot:
    def test_mirrors_of_both_source_formats(self, tmp_path: Path) -> None:
        (tmp_path / "sources.list.d").mkdir()
        (tmp_path / "sources.list").write_text(
            "# deb http://comment.test/debian sid main\n"
            "deb [arch=amd64 signed-by=/k.gpg] http://one.test/debian bookworm main\n"
            "deb-src http://source.test/debian bookworm main\n"
            "deb http://one.test/debian-security bookworm-security main\n"
        )
        (tmp_path / "sources.list.d/a.sources").write_text(
            "Types: deb\n# a comment\nURIs: http://two.test/debian/\n  http://one.test/debian\n"
            "Suites: bookworm\n\nTypes: deb\nEnabled: no\nURIs: http://off.test/debian\n"
        )
        (tmp_path / "sources.list.d/b.list.disabled").write_text("deb http://x.test/debian a b\n")
        assert root_module.mirrors(tmp_path) == [
            "http://one.test/debian",
            "http://two.test/debian/",
        ]

    def test_no_mirror_is_told(self, tmp_path: Path) -> None:
        assert root_module.mirrors(tmp_path) == []

    def test_a_root_that_does_not_run_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(PbxUnavailable, match="-V"):
            root_module._version([str(tmp_path / "asterisk")])
