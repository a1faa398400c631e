"""Services in configuration, core and dialplan: ports that umpack answers itself."""

from __future__ import annotations

import json
import re

import pytest

from drivers.asterisk.occupancy import Occupant
from drivers.asterisk.reconcile import Memory, compare
from drivers.asterisk.signals import is_line, with_number
from tests import sites
from tests.sites import MESSAGES
from umpack.config import ConfigProblems, describe, parse
from umpack.core.calls import Call, CallId
from umpack.core.distributor import Distributor
from umpack.core.errors import ConfigError
from umpack.core.order import last_order
from umpack.core.pack import PackId
from umpack.core.service import FaxOptions, Service, VoiceOptions
from umpack.core.trunk import PbxId, TrunkId, TrunkKind
from umpack.dialplan import dialplan

MAIN = PbxId("main")
PBX = "pbx: {main: {ami: {user: u, secret: s}}}\n"
SITE = f"""{PBX}
trunks:
  line1: {{kind: s0, span: 1}}
  fax: {{kind: fax, channels: 2, ecm: false, t38: false, station: "+49 30 99", max_rate: 9600}}
  voice: {{kind: voice, channels: 3, greeting: own/hello, longest: 2m, silence: 8s, language: de}}
  auto: {{kind: auto, channels: 1}}
packs:
  um: {{members: [line1, "fax:2", voice], strategy: cyclic}}
  own: {{members: [fax]}}
routes:
  - {{called: "1XX", pack: um}}
  - {{called: "2XX", pack: own}}
{MESSAGES}"""


def test_a_service_has_ports_and_options() -> None:
    trunks = parse(SITE, "site.yaml").site.trunks
    fax = trunks[TrunkId("fax")]
    assert (fax.kind, fax.slots, fax.endpoint, fax.span) == (TrunkKind.FAX, (1, 2), None, None)
    assert fax.service == Service(FaxOptions(False, False, "+49 30 99", max_rate=9600))
    voice = trunks[TrunkId("voice")].service
    assert voice == Service(
        voice=VoiceOptions("own/hello", longest=120.0, silence=8.0), language="de"
    )
    assert trunks[TrunkId("auto")].service == Service()
    assert trunks[TrunkId("line1")].service is None


@pytest.mark.parametrize("never", ["0", "0s"])
def test_silence_need_not_end_a_message(never: str) -> None:
    site = parse(SITE.replace("silence: 8s", f"silence: {never}"), "site.yaml")
    voice = site.site.trunks[TrunkId("voice")].service
    assert voice is not None
    assert voice.voice.silence == 0.0
    assert json.loads(describe(site))["trunks"]["voice"]["silence"] == "0ms"


def test_what_is_understood_is_shown() -> None:
    shown = json.loads(describe(parse(SITE, "site.yaml")))["trunks"]
    assert shown["fax"] == {
        "kind": "fax", "pbx": "main", "channels": "1-2", "ecm": False, "t38": False,
        "station": "+49 30 99", "header": "", "max_rate": 9600,
    }  # fmt: skip
    assert "ecm" not in shown["voice"]
    assert shown["voice"]["longest"] == "2m"
    assert shown["auto"].keys() >= {"ecm", "greeting"}


@pytest.mark.parametrize(
    ("trunk", "says"),
    [
        ("{kind: fax}", "trunks.x.channels: is missing; a fax trunk needs it"),
        ("{kind: auto}", "trunks.x.channels: is missing; an auto trunk needs it"),
        (
            "{kind: fax, channels: 1, dial: PJSIP/x}",
            "trunks.x.dial: belongs to s2m, s0 and sip trunks, and this is a fax trunk",
        ),
        (
            "{kind: fax, channels: 1, beep: false}",
            "trunks.x.beep: belongs to voice and auto trunks, and this is a fax trunk",
        ),
        (
            "{kind: sip, endpoint: e, channels: 1, ecm: true}",
            "trunks.x.ecm: belongs to fax and auto trunks, and this is a sip trunk",
        ),
        ("{kind: fax, channels: 1, span: 1}", "trunks.x.span: belongs to s2m and s0 trunks"),
        ("{kind: fax, channels: 1-2}", "trunks.x.channels: expected how many calls at a time"),
        (
            "{kind: fax, channels: 1, max_rate: 7200}",
            "trunks.x.max_rate: '7200' is not one of 4800, 9600, 14400",
        ),
        ('{kind: fax, channels: 1, station: "123456789012345678901"}', "trunks.x.station:"),
        ('{kind: fax, channels: 1, station: "a\\nb"}', "trunks.x.station:"),
        ("{kind: voice, channels: 1, greeting: ../etc/x}", "trunks.x.greeting:"),
        ('{kind: voice, channels: 1, greeting: "a&b"}', "trunks.x.greeting:"),
        ("{kind: voice, channels: 1, stop_keys: x}", "trunks.x.stop_keys:"),
        ("{kind: voice, channels: 1, longest: 2h}", "trunks.x.longest: must be at most 1h"),
        (
            "{kind: voice, channels: 1, silence: -1}",
            "trunks.x.silence: a duration must be at least",
        ),
        ("{kind: voice, channels: 1, silence: 1.5}", "trunks.x.silence: must be whole seconds"),
        (
            "{kind: voice, channels: 1, longest: 5s, silence: 6s}",
            "trunks.x.silence: is not shorter than longest (5s)",
        ),
    ],
)
def test_what_does_not_fit_is_said(trunk: str, says: str) -> None:
    rest = 'packs: {um: {members: [x]}}\nroutes: [{called: "*", pack: um}]\n'
    with pytest.raises(ConfigError) as error:
        parse(f"{PBX}trunks:\n  x: {trunk}\n{rest}{MESSAGES}", "site.yaml")
    assert says in str(error.value)


@pytest.mark.parametrize("kind", ["fax", "voice", "auto"])
def test_a_service_without_messages_would_refuse_every_call(kind: str) -> None:
    rest = f"{PBX}packs: {{um: {{members: [x]}}}}\ntrunks:\n  x: {{kind: {kind}, channels: 1}}\n"
    with pytest.raises(ConfigProblems) as error:
        parse(rest, "site.yaml")
    assert str(error.value) == (
        "site.yaml:4: trunks.x: takes messages, but there is no section `messages:` that says"
        " where they go"
    )
    # One that is there and wrong is told of by itself.
    with pytest.raises(ConfigProblems) as error:
        parse(f"{rest}messages: {{}}\n", "site.yaml")
    assert "trunks.x" not in str(error.value)


def test_the_dialplan_never_dials_a_service() -> None:
    text = dialplan(parse(SITE, "site.yaml"), MAIN)
    assert "Service/" not in text
    # Out from the beginning, so that a cyclic pack draws no start there; a line is not.
    assert text.count("Set(UMPACK_OUT_fax=1)") == 2
    assert text.count("Set(UMPACK_OUT_line1=)") == 1
    assert re.search(r"^; service fax \(fax\)\nexten => t\d+,1,Return\(\)\n", text, re.MULTILINE)


def test_a_port_is_not_a_line() -> None:
    site = parse(SITE, "site.yaml").site
    assert [t.id for t in site.trunks.values() if is_line(t)] == ["line1"]
    assert [t.id for t in with_number(site.trunks.values(), "2")] == ["line1"]
    distributor = Distributor(site)
    assert distributor.ledger.channels[site.trunks[TrunkId("fax")].channel_id(1)].dial_parts == (
        "Service/fax",
    )
    distributor.reload(
        parse(
            SITE.replace("fax: {kind: fax, channels: 2", "fax: {kind: fax, channels: 1").replace(
                "fax:2", "fax"
            ),
            "s",
        ).site
    )
    assert len([c for c in distributor.ledger.channels if c.startswith("fax:")]) == 1


def test_reloaded_options_hold_for_the_next_call() -> None:
    distributor = Distributor(parse(SITE, "site.yaml").site)
    distributor.reload(parse(SITE.replace("ecm: false", "ecm: true"), "site.yaml").site)
    assignment = sites.assigned(distributor.offer(Call(CallId("c"), MAIN, "200"), 0.0))
    service = assignment.lease.channel.trunk.service
    assert service is not None
    assert service.fax.ecm


def test_a_drained_port_is_nothing_a_dialplan_could_keep() -> None:
    distributor = Distributor(parse(SITE, "site.yaml").site)
    order = last_order(distributor.packs[PackId("um")], distributor)
    assert order.text == "1//"


@pytest.mark.parametrize(("there", "leaked"), [(True, False), (False, True)])
def test_a_port_is_held_as_long_as_its_caller_is_there(there: bool, leaked: bool) -> None:
    distributor = Distributor(parse(SITE, "site.yaml").site)
    call = Call(CallId("main-17.1-1"), MAIN, "200")
    lease = sites.assigned(distributor.offer(call, 0.0)).lease
    caller = Occupant("17.1", "17.1", "PJSIP/x-1", None, False, "200", "")
    present = [caller] if there else []
    first = compare(MAIN, distributor, present, [], Memory(), 1000.0)
    second = compare(MAIN, distributor, present, [], first.memory, 2000.0)
    assert (lease.token in second.leaked) is leaked
    assert second.adopt == ()
