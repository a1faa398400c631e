"""Rows of the cause table in the file: those of the site, of single packs and of single trunks."""

from __future__ import annotations

from collections.abc import Mapping

from umpack.config.models import VerdictRow
from umpack.config.problems import Findings
from umpack.config.tables import Tables
from umpack.config.yaml_source import Path
from umpack.core.causes import (
    CAUSE_VERDICTS,
    SIP_VERDICTS,
    CauseTable,
    Override,
    Overrides,
)

_SIP = "sip "


def read_causes(tables: Tables, findings: Findings) -> CauseTable:
    """The built-in table with what the site says on top, and what packs and trunks say."""
    said = {key: row for key, row in tables.causes.items() if row is not None}
    built_in = CauseTable(dict(CAUSE_VERDICTS), dict(SIP_VERDICTS))
    own = _own(said, ("causes",), "this site", built_in, findings)
    site = own.over(built_in)
    trunks = {
        id_: _own(table.causes, ("trunks", id_, "causes"), f"trunk {id_}", site, findings)
        for id_, table in tables.trunks.items()
        if table is not None and table.causes
    }
    packs = {
        id_: _own(table.causes, ("packs", id_, "causes"), f"pack {id_}", site, findings)
        for id_, table in tables.packs.items()
        if table is not None and table.causes
    }
    return CauseTable(site.causes, site.sip, trunks, packs)


def _own(
    said: Mapping[str, VerdictRow], at: Path, who: str, below: CauseTable, findings: Findings
) -> Overrides:
    """The sound rows of one place; `below` is the table they lie over."""
    causes: dict[int, Override] = {}
    sip: dict[int, Override] = {}
    for key, row in said.items():
        path = (*at, key)
        is_sip, number = key.startswith(_SIP), int(key.removeprefix(_SIP))
        known = number in (below.sip if is_sip else below.causes)
        if not is_sip and number > 127:
            findings.error(path, "a Q.850 cause is at most 127")
        elif row.elsewhere is None and row.blame is None:
            findings.error(path, "says nothing: give elsewhere, blame, or both")
        elif not known and (row.elsewhere is None or row.blame is None):
            what = "no such row is built in, so both elsewhere and blame are needed"
            findings.error(path, what)
        else:
            source = f"{who} ({findings.document.name}:{findings.document.line(path)})"
            (sip if is_sip else causes)[number] = Override(row.elsewhere, row.blame, source)
    return Overrides(causes, sip)
