"""trunk eject, restore, drain, enable, list, history: what an operator does with one trunk."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from umpack.cli import operate, tables
from umpack.cli.options import ConfigOption, JsonOption, SocketOption, client
from umpack.core.errors import OurFault
from umpack.core.printable import printable

TrunkArgument = Annotated[str, typer.Argument(help="A trunk (um1).")]
WhyOption = Annotated[str, typer.Option(help="The reason, for those who see it in status.")]
ByOption = Annotated[str | None, typer.Option(help="Who; your login name if left out.")]


def register(app: typer.Typer) -> None:
    """Add the command with its sub-commands."""
    group = typer.Typer(
        help="Trunks one by one: health, and what people set.", no_args_is_help=True
    )
    for command in (eject, restore, operate.drain, operate.enable, history):
        group.command()(command)
    group.command("list")(list_)
    app.add_typer(group, name="trunk")


def eject(
    trunk: TrunkArgument,
    for_: Annotated[
        str | None,
        typer.Option("--for", help="90s, 5m, 2h; without it, as long as after failures."),
    ] = None,
    why: WhyOption = "",
    by: ByOption = None,
    as_json: JsonOption = False,
    socket: SocketOption = None,
    config: ConfigOption = None,
) -> None:
    """Keep calls off a trunk for a time, as if it had failed; then a trial call decides.

    The last usable trunk of a pack stays in reserve. What shall stay out is drained instead.

    \b
    umpack trunk eject um1
    umpack trunk eject um1 --for 5m --why "answers and says nothing"
    """
    body: dict[str, object] = {"why": why, "by": by or operate.login()}
    if for_ is not None:
        body["seconds"] = _seconds(for_)
    _tell(client(socket, config).post(_path(trunk, "eject"), body), as_json=as_json)


def restore(
    trunk: TrunkArgument,
    why: WhyOption = "",
    by: ByOption = None,
    as_json: JsonOption = False,
    socket: SocketOption = None,
    config: ConfigOption = None,
) -> None:
    """Forget what a trunk has failed. An alarm that stands, and a drain, are left as they are.

    \b
    umpack trunk restore um1 --why "server replaced"
    """
    body: dict[str, object] = {"why": why, "by": by or operate.login()}
    _tell(client(socket, config).post(_path(trunk, "restore"), body), as_json=as_json)


def list_(
    as_json: JsonOption = False, socket: SocketOption = None, config: ConfigOption = None
) -> None:
    """Show every trunk: what people have set, its health, since when, why, and what is next.

    \b
    umpack trunk list
    umpack trunk list --json | jq '.[] | select(.health.state != "up") | .id'
    """
    rows = client(socket, config).get("/v1/trunks")
    if as_json:
        tables.print_json(rows)
    else:
        tables.trunks(rows)


def history(
    trunk: Annotated[str | None, typer.Argument(help="Only of this trunk.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many, newest first.")] = 100,
    as_json: JsonOption = False,
    socket: SocketOption = None,
    config: ConfigOption = None,
) -> None:
    """Show how the health of trunks has changed since the daemon's start, newest first.

    \b
    umpack trunk history
    umpack trunk history um1 --limit 10
    """
    query = {"limit": str(limit)} | ({} if trunk is None else {"trunk": trunk})
    rows = client(socket, config).get("/v1/changes", **query)
    if as_json:
        tables.print_json(rows)
    else:
        tables.changes(rows)


def _path(trunk: str, verb: str) -> str:
    return f"/v1/trunks/{quote(trunk, safe='', errors='surrogatepass')}/{verb}"


def _seconds(text: str) -> float:
    seconds = operate.length(text)
    if not seconds:
        raise OurFault(f"{text!r} is no length of time: write 90s, 5m or 2h")
    return seconds


def _tell(row: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        tables.print_json(row)
        return
    for line in tables.trunk_lines(row):
        typer.echo(printable(line, 500))
