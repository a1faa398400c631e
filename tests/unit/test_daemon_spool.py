"""The daemon and its messages: a spool that will not, a reload, a stop in the midst of faxes."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from simulators.asterisk import PbxPlan, SimulatedAsterisk
from simulators.mail import MailServer, Script
from simulators.pbx_reception import FaxMachine
from tests.unit.cli.test_faxes import section
from tests.unit.daemons import daemon_at, daemon_of, logged, port_of, program, text, until
from tests.unit.messages.fax_files import Sheet, fax, picture
from tests.unit.messages.offices import TEXTS, facts, spoken
from umpack.config import load
from umpack.core.errors import OurFault
from umpack.messages.disk_spool import DiskSpool
from umpack.messages.message import EngineFacts, Message
from umpack.messages.spool_health import SpoolLimits
from umpack.messages.states import MessageState
from umpack.web.client import ControlRefused

TIFF = fax([Sheet(picture(1, rows=300))])
SITE = text(
    trunks="  fax: {kind: fax, channels: 12}\n  um1: {kind: sip, pbx: main, endpoint: um1,"
    " channels: 3}\n",
    packs="  in: {members: [fax]}\n  um: {members: [um1]}\n",
    routes='  - {called: "49*", pack: in}\n  - {called: "1*", pack: um}\n',
)


def spool(directory: Path) -> DiskSpool:
    return DiskSpool(
        directory / "spool", "here", domain="umpack.test",
        limits=SpoolLimits(reserve_bytes=0, slow_after=60.0),
    )  # fmt: skip


def kept(directory: Path) -> list[Message]:
    with spool(directory) as found:
        return found.messages()


# -- a spool that will not ------------------------------------------------------------------------


@pytest.mark.parametrize("why", ["locked", "no directory"])
async def test_without_its_spool_it_takes_calls_and_opens_it_when_it_can(
    tmp_path: Path, why: str
) -> None:
    other = None
    if why == "locked":
        other = await asyncio.to_thread(spool, tmp_path)
    else:
        (tmp_path / "spool").write_text("a file where the directory should be")
    async with MailServer() as mail:
        with logged() as lines:
            async with daemon_of(tmp_path, SITE + section(mail.port)) as running:
                messages = running.daemon.messages
                assert messages is not None
                # Packs work, services refuse: an exchange may try elsewhere.
                async with SimulatedAsterisk(PbxPlan(speed=100.0)) as pbx:
                    pbx.agi_to("127.0.0.1", running.port)
                    result = await pbx.call("49302000123", brings=FaxMachine(TIFF))
                    assert result.cause not in (0, 16)
                    status = await running.ask("get", "/v1/status")
                    (alarm,) = status["messages"]["alarms"]
                    assert (alarm["kind"], alarm["about"]) == ("spool", "closed")
                    assert status["messages"]["queue"] is None
                    queue = await running.ask("get", "/v1/messages/queue")
                    assert (queue["spool"], queue["messages"]) == (None, [])
                    with pytest.raises(ControlRefused, match="spool"):
                        await running.ask("get", "/v1/messages")
                    assert "umpack_spool_writable 0.0" in await running.daemon.metrics()
                    # The cause is gone: it opens by itself.
                    if other is not None:
                        await asyncio.to_thread(other.close)
                    else:
                        (tmp_path / "spool").unlink()
                    await until(lambda: not messages.closed_by and messages.status)
                    await pbx.call("49302000123", hold=60.0, brings=FaxMachine(TIFF))
                await until(lambda: mail.accepted)
                await messages.look()
                assert messages.summary()["alarms"] == []
        closed = [line for line in lines if "calls for a service are refused" in line]
        assert len(closed) == 1


async def test_it_can_be_stopped_while_the_spool_is_closed(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("")
    async with daemon_of(tmp_path, SITE + section(9)) as running:
        messages = running.daemon.messages
        assert messages is not None
        assert messages.closed_by
        with pytest.raises(OurFault):
            await messages.intend(facts())
        assert await messages.room_for() == messages.closed_by


# -- a reload -------------------------------------------------------------------------------------


async def test_a_reload_takes_on_servers_mailboxes_texts_and_retry(tmp_path: Path) -> None:
    async with (
        MailServer() as old,
        MailServer() as new,
        daemon_of(tmp_path, SITE + section(old.port)) as running,
    ):
        daemon, messages = running.daemon, running.daemon.messages
        assert messages is not None
        await spoken(messages, 1)
        await until(lambda: old.accepted)
        german = section(
            new.port, default_mailbox="anna@site.test", language="de", connections=3,
            per_server=2, retry={"first": "7s", "late_after": "2m"}, conversions=3,
        )  # fmt: skip
        running.write(SITE + german)
        done = await daemon.reload()
        (changed,) = [line for line in done if line.startswith("messages: ") and "re" in line
                      and line.endswith("changed")]  # fmt: skip
        for key in ("default_mailbox", "relays", "language", "connections", "retry"):
            assert key in changed
        assert "messages: a new conversions needs a restart" in done
        assert messages.plan.conversions == 2
        await spoken(messages, 2)
        await until(lambda: new.accepted)
        (accepted,) = new.accepted
        assert accepted.recipients == ("anna@site.test",)
        assert b"[Sprachnachricht] von" in accepted.body
        assert len(old.accepted) == 1
        assert messages.plan.retry.first == 7.0
        # The same again is no change, and the servers' circuits are kept.
        circuits = messages.transport.circuits
        await daemon.reload()
        assert messages.transport.circuits is circuits


async def test_those_who_were_not_reached_go_to_the_new_server_at_once(tmp_path: Path) -> None:
    async with MailServer() as new, daemon_of(tmp_path, SITE + section(9)) as running:
        messages = running.daemon.messages
        assert messages is not None
        sent = [await spoken(messages, number) for number in range(4)]
        await until(lambda: messages.mailer.away_since is not None)
        running.write(SITE + section(new.port))
        await running.daemon.reload()
        await until(lambda: len(new.accepted) == 4, 40.0)
        assert {one.message_id for one in new.accepted} == {one.message_id for one in sent}


async def test_a_reload_that_cannot_be_changes_nothing(tmp_path: Path) -> None:
    texts = tmp_path / "mail"
    shutil.copytree(TEXTS, texts)
    async with MailServer() as old, MailServer() as new:
        settings = SITE + section(old.port, texts=os.fspath(texts))
        async with daemon_of(tmp_path, settings) as running:
            messages = running.daemon.messages
            assert messages is not None
            (texts / "en.txt").write_text("no text at all")
            running.write(SITE + section(new.port, texts=os.fspath(texts)))
            with pytest.raises(OurFault):
                await running.daemon.reload()
            await spoken(messages, 1)
            await until(lambda: old.accepted)
            assert messages.plan.relays[0].port == old.port


# -- a stop ---------------------------------------------------------------------------------------


async def test_scenario_08_sigterm_with_ten_live_faxes(tmp_path: Path) -> None:
    """fax.md 9.8: drain finishes live faxes, though calls have a tenth of their time."""
    machine = FaxMachine(TIFF, pages=1, seconds=60.0, station="+49 301")
    async with MailServer() as mail:
        site = SITE.replace("deadline: 5s", "deadline: 200ms") + section(mail.port)
        async with (
            program(tmp_path, site) as daemon,
            SimulatedAsterisk(PbxPlan(speed=20.0)) as pbx,
        ):
            pbx.agi_to("127.0.0.1", await daemon.port())
            calls = [
                asyncio.create_task(
                    pbx.call(f"4930200012{number}", "0301", hold=600.0, brings=machine)
                )
                for number in range(10)
            ]
            await until(lambda: len(list((tmp_path / "spool/receiving").glob("*.tif"))) == 10)
            assert await daemon.end() == 0
            await asyncio.gather(*calls)
        found = await asyncio.to_thread(kept, tmp_path)
        assert len(found) == len({one.call.call for one in found}) == 10
        for one in found:
            assert one.engine is not None
            assert (one.engine.status, one.engine.pages) == ("SUCCESS", 1)
            assert one.original is not None
            assert one.original.size == len(TIFF)
            assert not one.adopted
        # What had not been mailed by then, the next start mails.
        async with daemon_of(tmp_path, SITE + section(mail.port)) as running:
            messages = running.daemon.messages
            assert messages is not None
            async with asyncio.timeout(60):
                while (await messages.spool.open_calls()).without_end:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            states = {one.state for one in await messages.spool.messages()}
            assert states == {MessageState.DELIVERED}
        assert len({one.message_id for one in mail.accepted}) == 10


async def test_receptions_have_a_deadline_too_and_calls_are_not_waited_for(
    tmp_path: Path,
) -> None:
    machine = FaxMachine(TIFF, pages=1, seconds=3600.0)
    site = SITE.replace("{deadline: 5s}", "{deadline: 100ms, receptions: 1s}") + section(9)
    file = tmp_path / "umpack.yaml"
    file.write_text(site)
    daemon = await daemon_at(file)
    async with SimulatedAsterisk(PbxPlan(speed=20.0)) as pbx:
        with logged() as lines:
            async with daemon:
                pbx.agi_to("127.0.0.1", port_of(daemon))
                call = asyncio.create_task(pbx.call("493020001", hold=600.0, brings=machine))
                await until(lambda: daemon._receptions() == 1)
        assert any("1 of them are receptions and have 1 s" in line for line in lines)
        assert any("stopped; 1 calls go on" in line for line in lines)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)


def test_the_drain_of_receptions_is_configured(tmp_path: Path) -> None:
    file = tmp_path / "u.yaml"
    file.write_text(text())
    assert load(file).drain_receptions == 1800.0
    file.write_text(text().replace("{deadline: 5s}", "{deadline: 5s, receptions: 10m}"))
    assert load(file).drain_receptions == 600.0


# -- status ---------------------------------------------------------------------------------------


async def test_status_and_metrics_tell_of_messages(tmp_path: Path) -> None:
    def before() -> None:
        with spool(tmp_path) as found:
            for number in (1, 2):
                intent = found.intend(facts(number))
                Path(intent.path).write_bytes(TIFF)
                found.commit(intent.id, EngineFacts("SUCCESS", pages=1))

    await asyncio.to_thread(before)
    script = Script({"RCPT": ["550 5.1.1 nobody", "250 Ok"]})
    async with (
        MailServer(script) as mail,
        program(tmp_path, SITE + section(mail.port)) as daemon,
    ):
        await until(lambda: mail.accepted)
        await asyncio.sleep(0.3)
        await daemon.umpack("queue")  # has it look
        shown = (await daemon.umpack("status")).out
        assert "messages: dead letters: 1: umpack faxes --state 'dead letter' (for " in shown
        assert "messages: 0 wait, 1 dead letters, 1 delivered, 1 refused; " in shown
        assert await daemon.end() == 0
    async with daemon_of(tmp_path, text()) as running:
        assert (await running.ask("get", "/v1/status"))["messages"] is None
