"""faxes, fax, queue: where a fax or voice message is, and what becomes of it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any
from urllib.parse import quote

import typer

from umpack import clock
from umpack.cli import fax_tables, operate, tables
from umpack.cli.options import ConfigOption, JsonOption, SocketOption, client
from umpack.core.errors import OurFault
from umpack.core.printable import printable

IdArgument = Annotated[
    str, typer.Argument(help="The message's id, or its last four or more characters.")
]
NumberOption = Annotated[
    int | None, typer.Option("--number", min=1, help="Only the delivery of this number.")
]
_OTHER_QUESTIONS = frozenset(("", "open", "queue"))
"""What has a meaning of its own where the API has ids; no id ends so."""
WhyOption = Annotated[str, typer.Option(help="The reason, for the audit log.")]
ByOption = Annotated[str | None, typer.Option(help="Who; your login name if left out.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(faxes)
    app.command()(queue)
    group = typer.Typer(
        help="One fax or voice message: show it, and decide about it.", no_args_is_help=True
    )
    for command in (show, resend, forward, retry, discard):
        group.command()(command)
    app.add_typer(group, name="fax")


def faxes(
    since: Annotated[str | None, typer.Option(help="2h, 3d, 18:30 or 2026-12-24T18:00.")] = None,
    number: Annotated[str | None, typer.Option(help="Called or calling number, whole.")] = None,
    state: Annotated[
        str | None, typer.Option(help="queued, delivered, partial, 'dead letter', ...")
    ] = None,
    open_: Annotated[
        bool, typer.Option("--open", help="Calls without a message, messages without an end.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, newest first.")] = 50,
    as_json: JsonOption = False,
    socket: SocketOption = None,
    config: ConfigOption = None,
) -> None:
    """Show faxes and voice messages, newest first; --open compares them with the calls.

    \b
    umpack faxes --since 2h --number 49302000123
    umpack faxes --state "dead letter"
    umpack faxes --open
    """
    now = clock.wall()
    daemon = client(socket, config)
    if open_:
        if since or number or state:
            raise OurFault("--open shows all; --since, --number and --state are not for it")
        answer = daemon.get("/v1/messages/open")
        if as_json:
            tables.print_json(answer)
        else:
            fax_tables.open_calls(answer)
        return
    query = {"limit": str(limit)}
    if since is not None:
        query["since"] = repr(_past(since, now))
    query |= {
        key: value for key, value in (("number", number), ("state", state)) if value is not None
    }
    rows = daemon.get("/v1/messages", **query)
    if as_json:
        tables.print_json(rows)
    else:
        fax_tables.messages(rows, now)


def queue(
    as_json: JsonOption = False, socket: SocketOption = None, config: ConfigOption = None
) -> None:
    """Show what waits to be delivered, what stands in the way, and how the spool is.

    \b
    umpack queue
    umpack queue --json | jq .alarms
    """
    answer = client(socket, config).get("/v1/messages/queue")
    if as_json:
        tables.print_json(answer)
    else:
        fax_tables.queue(answer)


def show(
    id_: IdArgument,
    as_json: JsonOption = False,
    socket: SocketOption = None,
    config: ConfigOption = None,
) -> None:
    """Show all that is known of a message: its call, its pages, every delivery, every decision.

    \b
    umpack fax show 3f9ac2
    """
    answer = client(socket, config).get(_path(id_))
    if as_json:
        tables.print_json(answer)
    else:
        fax_tables.message(answer)


def resend(
    id_: IdArgument,
    number: NumberOption = None,
    why: WhyOption = "",
    by: ByOption = None,
    as_json: JsonOption = False,
    socket: SocketOption = None,
    config: ConfigOption = None,
) -> None:
    """Send it again to those it was for, as a new mail with a Message-ID of its own.

    \b
    umpack fax resend 3f9ac2 --why "mailbox was restored from a backup"
    """
    body = _body(by, why, number)
    _tell(client(socket, config).post(_path(id_, "resend"), body), "sent again", as_json=as_json)


def forward(
    id_: IdArgument,
    to: Annotated[list[str], typer.Option("--to", help="An address; several are possible.")],
    number: NumberOption = None,
    why: WhyOption = "",
    by: ByOption = None,
    as_json: JsonOption = False,
    socket: SocketOption = None,
    config: ConfigOption = None,
) -> None:
    """Send it to somebody else; what was not delivered yet is closed by that.

    \b
    umpack fax forward 3f9ac2 --to anna@example.org
    """
    body = _body(by, why, number) | {"addresses": to}
    _tell(client(socket, config).post(_path(id_, "forward"), body), "forwarded", as_json=as_json)


def retry(
    id_: IdArgument,
    number: NumberOption = None,
    why: WhyOption = "",
    by: ByOption = None,
    as_json: JsonOption = False,
    socket: SocketOption = None,
    config: ConfigOption = None,
) -> None:
    """Try it now, a dead letter too, under its old Message-ID.

    \b
    umpack fax retry 3f9ac2
    """
    body = _body(by, why, number)
    _tell(client(socket, config).post(_path(id_, "retry"), body), "tried now", as_json=as_json)


def discard(
    id_: IdArgument,
    number: NumberOption = None,
    why: WhyOption = "",
    by: ByOption = None,
    as_json: JsonOption = False,
    socket: SocketOption = None,
    config: ConfigOption = None,
) -> None:
    """Close it: nobody is to have it any more. The file stays for its time of retention.

    \b
    umpack fax discard 3f9ac2 --why advertisement
    """
    body = _body(by, why, number)
    _tell(client(socket, config).post(_path(id_, "discard"), body), "closed", as_json=as_json)


def _body(by: str | None, why: str, number: int | None) -> dict[str, Any]:
    return {"by": by or operate.login(), "why": why, "number": number}


def _path(id_: str, verb: str = "") -> str:
    if id_ in _OTHER_QUESTIONS:
        raise OurFault(f"no message {id_!r} in this spool")
    path = f"/v1/messages/{quote(id_, safe='', errors='surrogatepass')}"
    return f"{path}/{verb}" if verb else path


def _tell(row: dict[str, Any], done: str, *, as_json: bool) -> None:
    if as_json:
        tables.print_json(row)
        return
    typer.echo(f"{printable(row['id'])} {done}: {row['state']}")


def _past(text: str, now: float) -> float:
    """A moment that has been, as epoch seconds."""
    if (span := operate.length(text)) is not None:
        return now - span
    try:
        if ":" in text and len(text) <= 5:
            hour, minute = (int(part) for part in text.split(":"))
            today = datetime.fromtimestamp(now).astimezone().replace(tzinfo=None, fold=0)
            at = today.replace(hour=hour, minute=minute, second=0, microsecond=0)
            return (at if at <= today else at - timedelta(days=1)).timestamp()
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise OurFault(f"{text!r} is no time: write 2h, 3d, 18:30 or 2026-12-24T18:00") from None
