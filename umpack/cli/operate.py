"""status, calls, explain, reload, drain, enable (and trunk): speaking to a running daemon."""

from __future__ import annotations

import getpass
import os
import re
from datetime import datetime, timedelta
from typing import Annotated, Any

import typer

from umpack import clock
from umpack.cli import tables
from umpack.cli.options import ConfigOption, JsonOption, SocketOption, client
from umpack.core.errors import OurFault
from umpack.core.printable import printable

TargetArgument = Annotated[str, typer.Argument(help="A trunk (um1) or a channel (line1:17).")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (status, calls, explain, reload, drain, enable):
        app.command()(command)
    # Here, for its `drain` and `enable` are the commands above.
    from umpack.cli import trunks

    trunks.register(app)


def status(
    channels: Annotated[bool, typer.Option("--channels", help="Every channel, too.")] = False,
    as_json: JsonOption = False,
    socket: SocketOption = None,
    config: ConfigOption = None,
) -> None:
    """Show PBX links, packs, trunks and calls.

    \b
    umpack status
    umpack status --channels
    umpack status --json | jq '.packs[] | {id, idle}'
    """
    daemon = client(socket, config)
    answer: dict[str, Any] = daemon.get("/v1/status")
    if channels or as_json:
        answer["channel_list"] = daemon.get("/v1/channels")
    if as_json:
        answer["call_list"] = daemon.get("/v1/calls", state="living")
        tables.print_json(answer)
        return
    tables.status(answer)


def calls(
    ended: Annotated[bool, typer.Option("--ended", help="Calls that have ended.")] = False,
    limit: Annotated[
        int, typer.Option(min=1, max=1000, help="How many ended calls, newest first.")
    ] = 20,
    called: Annotated[str | None, typer.Option(help="Ended calls to this number.")] = None,
    caller: Annotated[str | None, typer.Option(help="Ended calls from this number.")] = None,
    ending: Annotated[
        str | None, typer.Option(help="connected, declined, refused or abandoned.")
    ] = None,
    channel: Annotated[str | None, typer.Option(help="Ended calls on this channel.")] = None,
    as_json: JsonOption = False,
    socket: SocketOption = None,
    config: ConfigOption = None,
) -> None:
    """Show the calls that hold a channel now, or (--ended) those of the journal.

    \b
    umpack calls
    umpack calls --ended --ending refused
    umpack calls --ended --called 49302000100 --json
    """
    daemon = client(socket, config)
    filters = {"called": called, "caller": caller, "ending": ending, "channel": channel}
    given = {name: value for name, value in filters.items() if value is not None}
    if ended or given:
        answer = daemon.get("/v1/calls", limit=str(limit), **given)
    else:
        answer = daemon.get("/v1/calls", state="living")
    if as_json:
        tables.print_json(answer)
    elif ended or given:
        tables.ended_calls(answer)
    else:
        tables.living_calls(answer)


def explain(
    call: Annotated[str, typer.Argument(help="The call's id, as `umpack calls` shows it.")],
    as_json: JsonOption = False,
    socket: SocketOption = None,
    config: ConfigOption = None,
) -> None:
    """Say why a call got the channel it got, or none.

    \b
    umpack explain main-1732270000.42-7
    """
    if not call:
        raise OurFault("which call? `umpack calls` and `umpack calls --ended` show their ids")
    answer = client(socket, config).call(call)
    if as_json:
        tables.print_json(answer)
    else:
        tables.explanation(answer)


def reload(
    as_json: JsonOption = False, socket: SocketOption = None, config: ConfigOption = None
) -> None:
    """Have the daemon read its configuration again; a bad one changes nothing and says why.

    \b
    umpack check /etc/umpack/umpack.yaml && umpack reload
    """
    answer = client(socket, config).post("/v1/reload")
    if as_json:
        tables.print_json(answer)
    else:
        typer.echo("reloaded: " + ("; ".join(answer["changes"]) or "no changes"))


def drain(
    target: TargetArgument,
    until: Annotated[
        str | None,
        typer.Option(help="30m, 2h, 1d, 18:30 or 2026-12-24T18:00; without it, until `enable`."),
    ] = None,
    why: Annotated[str, typer.Option(help="The reason, for those who see it in status.")] = "",
    by: Annotated[str | None, typer.Option(help="Who; your login name if left out.")] = None,
    as_json: JsonOption = False,
    socket: SocketOption = None,
    config: ConfigOption = None,
) -> None:
    """Take a trunk or channel out of service. Running calls finish; restarts do not undo it.

    \b
    umpack drain line1 --until 2h --why "board swap"
    umpack drain line1:17
    """
    body: dict[str, object] = {"target": target, "why": why, "by": by or login()}
    if until is not None:
        body["until"] = moment(until, clock.wall())
    answer = client(socket, config).post("/v1/drain", body)
    if as_json:
        tables.print_json(answer)
    else:
        end = f" until {tables.time_of(answer['until'])}" if answer["until"] else ""
        typer.echo(f"{printable(target)} takes no more calls{end}")


def enable(
    target: TargetArgument,
    by: Annotated[str | None, typer.Option(help="Who; your login name if left out.")] = None,
    as_json: JsonOption = False,
    socket: SocketOption = None,
    config: ConfigOption = None,
) -> None:
    """Put back what `drain` took out of service.

    \b
    umpack enable line1
    """
    answer = client(socket, config).post("/v1/enable", {"target": target, "by": by or login()})
    if as_json:
        tables.print_json(answer)
    else:
        typer.echo(
            f"{printable(target)} " + ("is back" if answer["was_out"] else "was not drained")
        )


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def length(text: str) -> float | None:
    """Seconds, from `90s`, `5m`, `2h` or `1d`; None for anything else."""
    span = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    return float(int(span[1]) * _UNITS[span[2]]) if span else None


def moment(text: str, now: float) -> float:
    """A moment to come, as epoch seconds, from `90m`, `18:30` (local) or an ISO date and time."""
    if (span := length(text)) is not None:
        return now + span
    try:
        today = datetime.fromtimestamp(now).astimezone()
        if re.fullmatch(r"[0-9]{1,2}:[0-9]{2}", text):
            hour, minute = (int(part) for part in text.split(":"))
            # Naive, so that the offset is that of the day found and not of today.
            found = today.replace(
                hour=hour, minute=minute, second=0, microsecond=0, tzinfo=None, fold=0
            )
            if found.timestamp() <= now:
                found += timedelta(days=1)
            return found.timestamp()
        end = datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError, OSError):
        raise OurFault(f"{text!r} is no time: write 30m, 2h, 18:30 or 2026-12-24T18:00") from None
    if end <= now:
        raise OurFault(f"{text!r} has passed")
    return end


def login() -> str:
    """Who is asking, for the log and for those who see it in status."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as in containers
        return f"uid {os.getuid()}"
