"""Services of the file: what umpack does with the calls it takes itself."""

from __future__ import annotations

from umpack.config import models
from umpack.config.problems import Findings
from umpack.config.values import duration
from umpack.config.yaml_source import Path
from umpack.core.service import FaxOptions, Service, VoiceOptions

_LONGEST = 3600.0
_FAX, _VOICE = FaxOptions(), VoiceOptions()


def read_service(table: models.Trunk, path: Path, findings: Findings) -> Service:
    """The options of a service, defaults filled in; what does not fit is reported."""
    longest = _VOICE.longest if table.longest is None else table.longest
    if longest > _LONGEST:
        findings.error((*path, "longest"), f"must be at most {duration(_LONGEST)}")
    silence = _VOICE.silence if table.silence is None else table.silence
    if silence != round(silence):
        findings.error((*path, "silence"), "must be whole seconds, as the PBX counts them so")
    if table.silence is not None and silence >= longest:
        findings.error((*path, "silence"), f"is not shorter than longest ({duration(longest)})")
    return Service(
        FaxOptions(
            ecm=_FAX.ecm if table.ecm is None else table.ecm,
            t38=_FAX.t38 if table.t38 is None else table.t38,
            station=table.station or "",
            header=table.header or "",
            max_rate=table.max_rate or _FAX.max_rate,
        ),
        VoiceOptions(
            greeting=table.greeting or "",
            beep=_VOICE.beep if table.beep is None else table.beep,
            longest=longest,
            silence=silence,
            stop_keys=_VOICE.stop_keys if table.stop_keys is None else table.stop_keys,
        ),
        table.language or "",
    )
