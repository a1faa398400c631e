"""check, schema, dialplan: what a configuration says, without a daemon."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Annotated

import typer

from umpack.config import ConfigProblems, describe, load, schema
from umpack.core.errors import OurFault
from umpack.core.printable import printable
from umpack.core.trunk import PbxId
from umpack.dialplan import dialplan


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(check)
    app.command("schema")(print_schema)
    app.command("dialplan")(print_dialplan)


def check(
    file: Annotated[Path, typer.Argument(help="The configuration to check.")],
    show: Annotated[bool, typer.Option("--show", help="Print it as understood (JSON).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the problems as JSON.")] = False,
) -> None:
    """Check a configuration: every problem with file, line and key; exit status 1 if it has any.

    \b
    umpack check etc/umpack.yaml
    umpack check etc/umpack.yaml --show | jq .packs
    """
    try:
        configuration = load(file)
    except ConfigProblems as error:
        problems, found = error.problems, True
    else:
        problems, found = configuration.warnings, False
    if as_json:
        rows = [
            {
                "file": problem.file,
                "line": problem.line,
                "key": problem.key,
                "message": problem.message,
                "severity": problem.severity.value,
            }
            for problem in problems
        ]
        answer: dict[str, object] = {"ok": not found, "problems": rows}
        if show and not found:
            answer["configuration"] = json.loads(describe(configuration))
        typer.echo(json.dumps(answer, indent=2))
    else:
        for problem in problems:
            typer.echo(str(problem), err=not found)
    if found:
        raise typer.Exit(1)
    if as_json:
        return
    if show:
        typer.echo(describe(configuration))
    else:
        site = configuration.site
        channels = sum(len(trunk.slots) for trunk in site.trunks.values())
        typer.echo(
            f"{printable(str(file), 400)}: ok ({len(site.trunks)} trunks with {channels} channels, "
            f"{len(site.packs)} packs, {len(site.routes)} routes)"
        )


def print_schema() -> None:
    """Print the JSON Schema of the configuration, for editors.

    \b
    umpack schema > umpack.schema.json
    """
    typer.echo(json.dumps(schema(), indent=2, ensure_ascii=False))


def print_dialplan(
    file: Annotated[Path, typer.Argument(help="The configuration.")],
    pbx: Annotated[str | None, typer.Option(help="Which PBX, if there are several.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            dir_okay=False,
            help="Put it into this file, once all of it is known and written.",
        ),
    ] = None,
) -> None:
    """Print the dialplan for a PBX, to be included in its extensions.conf.

    \b
    umpack dialplan /etc/umpack/umpack.yaml -o /etc/asterisk/umpack.conf
    # extensions.conf:  #include umpack.conf
    """
    configuration = load(file)
    known = list(configuration.pbxs)
    if pbx is None and len(known) > 1:
        raise OurFault(f"there are several PBXs, name one with --pbx: {', '.join(known)}")
    chosen = PbxId(pbx) if pbx is not None else known[0]
    if chosen not in configuration.pbxs:
        raise OurFault(f"no pbx {pbx!r}; there are: {', '.join(known)}")
    text = dialplan(configuration, chosen)
    if output is None:
        typer.echo(text, nl=False)
    else:
        _put(text, output)


def _put(text: str, into: Path) -> None:
    # A shell's `>` empties the file first: with a mistake in the configuration, or on a full disk,
    # the next reload of the PBX would find no umpack-in, and callers nobody.
    place = Path(os.path.realpath(into))  # a link stays one
    try:
        if place.exists() and not place.is_file():
            place.write_text(text, encoding="utf-8")  # a device or pipe, which nothing may replace
        else:
            _exchange(text, place)
    except OSError as error:
        raise OurFault(f"{into} is as it was: {error.strerror or error}") from error


def _exchange(text: str, place: Path) -> None:
    fresh = place.with_name(f".{place.name}.new")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if place.exists():
            # Whose it is counts as well: often only Asterisk's own user or group may read it.
            had, has = place.stat(), fresh.stat()
            if (had.st_uid, had.st_gid) != (has.st_uid, has.st_gid):
                os.chown(fresh, had.st_uid, had.st_gid)
            shutil.copymode(place, fresh)
        fresh.replace(place)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
