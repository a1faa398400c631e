"""What a configuration file amounts to: the site for the core, the rest for the daemon."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import SecretStr

from umpack.config.mail import MessagesPlan, described
from umpack.config.problems import Problem
from umpack.config.values import Address, compressed, duration
from umpack.core.causes import Overrides
from umpack.core.channel import ChannelId
from umpack.core.health_policy import HealthPolicy
from umpack.core.routes import Route, Routes
from umpack.core.service import Service
from umpack.core.site import Site
from umpack.core.trunk import PbxId, Trunk, TrunkKind


@dataclass(frozen=True, slots=True)
class Pbx:
    """One Asterisk: its manager interface, and where its calls come in."""

    id: PbxId
    host: str
    port: int
    user: str
    secret: SecretStr
    listen: Address
    """Where umpack listens (FastAGI)."""
    reach: Address
    """Where this PBX's dialplan finds umpack."""


@dataclass(frozen=True, slots=True)
class Control:
    """The local control interface."""

    socket: Path


@dataclass(frozen=True, slots=True)
class Journal:
    """The record of calls; `keep` in seconds."""

    path: Path
    keep: float


@dataclass(frozen=True, slots=True)
class Log:
    """Least severity written, and where to (`None`: standard error)."""

    level: str
    file: Path | None


@dataclass(frozen=True, slots=True)
class Configuration:
    """A checked configuration. Secrets are in `pbxs` and `messages` and show as `***`."""

    name: str
    node: str | None
    """Name of this machine; `None`: its host name."""
    pbxs: Mapping[PbxId, Pbx]
    site: Site
    control: Control
    journal: Journal
    log: Log
    drain_deadline: float
    """Seconds running calls may take at the end."""
    drain_receptions: float = 1800.0
    """Seconds running faxes and recordings may."""
    messages: MessagesPlan | None = None
    """`None`: this umpack takes no faxes and voice messages."""
    warnings: tuple[Problem, ...] = field(default=(), compare=False)


def describe(configuration: Configuration) -> str:
    """The configuration as understood, defaults filled in and secrets left out, as JSON."""
    site = configuration.site
    shown = {
        "node": configuration.node,
        "pbx": {pbx.id: _pbx(pbx) for pbx in configuration.pbxs.values()},
        "trunks": {
            trunk.id: _trunk(trunk)
            | _causes(site.causes.trunks.get(trunk.id))
            | _health(site.policy(trunk.id))
            for trunk in site.trunks.values()
        },
        "packs": {
            pack.id: {
                "strategy": pack.strategy.value,
                "channels": _members(pack.channels),
                "overflow": list(pack.overflow),
                "answer_within": duration(pack.answer_within),
                "setup_budget": duration(pack.setup_budget),
                "refusal_cause": pack.refusal_cause,
                "pbx": site.pbx_of(pack.id),
                "health": asdict(site.pack_policy(pack.id)),
            }
            | _causes(site.causes.packs.get(pack.id))
            for pack in site.packs.values()
        },
        "routes": [_route(route) for route in Routes(site.routes).routes],
        "control": {"socket": str(configuration.control.socket)},
        "journal": {
            "path": str(configuration.journal.path),
            "keep": duration(configuration.journal.keep),
        },
        "log": {
            "level": configuration.log.level,
            "file": str(configuration.log.file) if configuration.log.file else None,
        },
        "drain": {
            "deadline": duration(configuration.drain_deadline),
            "receptions": duration(configuration.drain_receptions),
        },
        "messages": described(configuration.messages) if configuration.messages else None,
    }
    return json.dumps(shown, indent=2, ensure_ascii=False)


def _health(policy: HealthPolicy) -> dict[str, object]:
    """What differs from what is built in."""
    usual = asdict(HealthPolicy())
    own = {name: value for name, value in asdict(policy).items() if value != usual[name]}
    return {"health": own} if own else {}


def _causes(own: Overrides | None) -> dict[str, object]:
    """The own rows of a trunk or pack."""
    if own is None:
        return {}
    rows = {str(number): row for number, row in own.causes.items()}
    rows |= {f"sip {number}": row for number, row in own.sip.items()}
    return {
        "causes": {
            key: {
                word: said.value
                for word, said in (("elsewhere", row.elsewhere), ("blame", row.blame))
                if said is not None
            }
            for key, row in rows.items()
        }
    }


def _pbx(pbx: Pbx) -> dict[str, object]:
    return {
        "ami": {"host": pbx.host, "port": pbx.port, "user": pbx.user, "secret": str(pbx.secret)},
        "agi": {"listen": str(pbx.listen), "reach": str(pbx.reach)},
    }


def _trunk(trunk: Trunk) -> dict[str, object]:
    shown: dict[str, object] = {
        "kind": trunk.kind.value,
        "pbx": trunk.pbx,
        "dial": trunk.dial.text,
        "channels": compressed(trunk.slots),
    }
    if trunk.service is not None:
        del shown["dial"]
        return shown | _service(trunk.kind, trunk.service)
    if trunk.kind is TrunkKind.SIP:
        return shown | {"endpoint": trunk.endpoint}
    return shown | {"span": trunk.span, "first_channel": trunk.first_number}


def _service(kind: TrunkKind, service: Service) -> dict[str, object]:
    fax, voice = service.fax, service.voice
    shown: dict[str, object] = {}
    if kind is not TrunkKind.VOICE:
        shown |= {
            "ecm": fax.ecm,
            "t38": fax.t38,
            "station": fax.station,
            "header": fax.header,
            "max_rate": fax.max_rate,
        }
    if kind is not TrunkKind.FAX:
        shown |= {
            "greeting": voice.greeting,
            "beep": voice.beep,
            "longest": duration(voice.longest),
            "silence": duration(voice.silence),
            "stop_keys": voice.stop_keys,
            "language": service.language,
        }
    return shown


def _members(channels: Iterable[ChannelId]) -> list[str]:
    """Neighbours of one trunk drawn together: `line1:1-15`; a falling run as `line1:15-1`."""
    runs: list[tuple[str, list[int]]] = []
    for channel in channels:
        trunk, _, number = channel.rpartition(":")
        slot = int(number)
        if runs and runs[-1][0] == trunk:
            run = runs[-1][1]
            step = run[-1] - run[0] and (1 if run[-1] > run[0] else -1)
            if slot - run[-1] in ({step} if step else {1, -1}):
                run.append(slot)
                continue
        runs.append((trunk, [slot]))
    return [
        f"{trunk}:{run[0]}" if len(run) == 1 else f"{trunk}:{run[0]}-{run[-1]}"
        for trunk, run in runs
    ]


def _route(route: Route) -> dict[str, object]:
    shown: dict[str, object] = {"called": route.called.text}
    if route.callers:
        shown["caller"] = [pattern.text for pattern in route.callers]
    shown |= {"pack": route.pack} if route.pack is not None else {"refuse": route.refuse}
    return shown | ({"pbx": route.pbx} if route.pbx is not None else {})
