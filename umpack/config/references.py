"""References between the tables that lead nowhere.

Checked on the document itself, so that a pack with a wrong strategy still tells of its wrong
members.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from umpack.config.problems import Findings, nearest
from umpack.config.tables import Tables
from umpack.config.yaml_source import Path


def report_references(data: object, findings: Findings) -> None:
    """Every trunk, pack and pbx that is named and not there."""
    sections = data if isinstance(data, dict) else {}
    pbxs, trunks, packs = (_mapping(sections, name) for name in ("pbx", "trunks", "packs"))
    for path, name in _named(trunks, ("trunks",), "pbx"):
        _report("pbx", name, pbxs, path, findings)
    for path, member in _named(packs, ("packs",), "members"):
        name = member.partition(":")[0]
        other = "; that is a pack, which belongs under `overflow`" if name in packs else ""
        _report("trunk", name, trunks, path, findings, other)
    for path, name in _named(packs, ("packs",), "overflow"):
        other = "; that is a trunk, which belongs under `members`" if name in trunks else ""
        _report("pack", name, packs, path, findings, other)
    listed = sections.get("routes")
    routes = dict(enumerate(listed)) if isinstance(listed, list) else {}
    for path, name in _named(routes, ("routes",), "pack"):
        other = "; that is a trunk: make a pack of it" if name in trunks else ""
        _report("pack", name, packs, path, findings, other)
    for path, name in _named(routes, ("routes",), "pbx"):
        _report("pbx", name, pbxs, path, findings)


def report_unreached(tables: Tables, findings: Findings) -> None:
    """Warn of what is in order and yet of no use."""
    if not tables.routes:
        findings.warn(("routes",), "there are none: every call will be refused")
        return
    reached: set[str] = set()
    ahead = [route.pack for route in tables.routes if route and route.pack]
    while ahead:
        id_ = ahead.pop()
        pack = tables.packs.get(id_)
        if id_ not in reached and pack:
            reached.add(id_)
            ahead += pack.overflow
    for id_ in tables.packs.keys() - reached:
        findings.warn(("packs", id_), "no route and no overflow leads here")


def _mapping(sections: Mapping[str, object], name: str) -> Mapping[str, object]:
    section = sections.get(name)
    return section if isinstance(section, dict) else {}


def _named(
    entries: Mapping[str, object] | Mapping[int, object], at: Path, key: str
) -> Iterator[tuple[Path, str]]:
    """The texts under a key of every entry, which may be one text or a list."""
    for id_, entry in entries.items():
        value = entry.get(key) if isinstance(entry, dict) else None
        if isinstance(value, str):
            yield (*at, id_, key), value
        for index, item in enumerate(value if isinstance(value, list) else ()):
            if isinstance(item, str):
                yield (*at, id_, key, index), item


def _report(
    kind: str, name: str, known: Iterable[str], path: Path, findings: Findings, other: str = ""
) -> None:
    if name not in known:
        findings.error(path, f"there is no {kind} {name!r}{other or nearest(name, known)}")
