"""The command line: `umpack COMMAND --help` shows examples for each.

files.py    check, schema, dialplan: what a configuration says, without a daemon
running.py  run, demo: being the daemon
operate.py  status, calls, explain, reload, drain, enable: speaking to one
faxes.py    faxes, fax, queue: messages on their way to mailboxes
planning.py storm, plan: traffic and how many channels it needs
tables.py   how all of them print
"""

from __future__ import annotations

import io
import os
import sys

import typer

from umpack.cli import faxes, files, operate, planning, running
from umpack.core.errors import ConfigError, UmpackError
from umpack.core.printable import printable
from umpack.version import VERSION

_LONGEST_LINE = 1000

app = typer.Typer(
    name="umpack",
    help="Channel packs beside an Asterisk PBX: every call a living channel.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for group in (running, files, operate, faxes, planning):
    group.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"umpack {VERSION}")
        raise typer.Exit


@app.callback()
def _root(
    _version_: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    pass


def main() -> None:
    """Entry point; errors of ours are one clear text on stderr and exit status 1.

    Wrong usage is exit status 2, as everywhere; Ctrl-C is 130.
    """
    if sys.stdout is None:  # closed by whoever started us: the work is to be done all the same
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A locale without arrows is no reason to fail after the work was done.
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="umpack")
    except UmpackError as error:
        lines = str(error).splitlines() or [type(error).__name__]
        text = "\n".join(printable(line, _LONGEST_LINE) for line in lines)
        print(text if isinstance(error, ConfigError) else f"umpack: {text}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        # A full disk under `umpack check > FILE`; what Python would still flush is given up.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        print(f"umpack: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
