"""The command line: `umpack COMMAND --help` shows examples for each.

files.py    check, schema, dialplan: what a configuration says, without a daemon
running.py  run, demo: being the daemon
operate.py  status, calls, explain, reload, drain, enable: speaking to one
planning.py storm, plan: traffic and how many channels it needs
tables.py   how all of them print
"""

from __future__ import annotations

import sys

import click
import typer

from umpack.cli import files, operate, planning, running
from umpack.core.errors import UmpackError
from umpack.version import VERSION

app = typer.Typer(
    name="umpack",
    help="Channel packs beside an Asterisk PBX: every call a living channel.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for group in (running, files, operate, planning):
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
    """Entry point; errors of ours are one clear text on stderr and exit status 1."""
    try:
        app(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.exceptions.Abort):
        sys.exit(130)
    except UmpackError as error:
        print(f"umpack: {error}", file=sys.stderr)
        sys.exit(1)
