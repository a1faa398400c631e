"""run: being the daemon. demo: a daemon, a simulated PBX and callers, to look at."""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from loguru import logger

from umpack.cli.options import DEFAULT_CONFIG, ConfigOption
from umpack.config import Configuration, load
from umpack.log import LogOutput
from umpack.ownership import refuse_foreign_drivers
from umpack.systemd import Notifier

DEMO_CONFIG = Path(__file__).parent.parent / "demo.yaml"
_M_ARENA_MAX = -8
"""mallopt(3); the number is in glibc's malloc.h."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(run)
    app.command()(demo)


def run(
    config: ConfigOption = None,
    simulate: Annotated[
        bool,
        typer.Option("--simulate", help="Bring simulated PBXs, boards and callers along."),
    ] = False,
) -> None:
    """Run the daemon in the foreground (systemd does the rest); SIGHUP reloads, SIGTERM drains.

    \b
    umpack run --config /etc/umpack/umpack.yaml
    umpack run --simulate        # built-in example, no PBX needed
    """
    file = config or (DEMO_CONFIG if simulate else DEFAULT_CONFIG)
    configuration = load(file)
    refuse_foreign_drivers()  # before anything of that package is run
    log = LogOutput(configuration.log)
    try:
        for warning in configuration.warnings:
            logger.warning("{}", warning)
        run_loop(lambda: _run(configuration, file, log, simulate=simulate))
    finally:
        log.close()


async def _run(configuration: Configuration, file: Path, log: LogOutput, *, simulate: bool) -> None:
    # Here and not above: no other command has to load drivers and simulators.
    from umpack.daemon import Daemon
    from umpack.guard import Guard

    notifier = Notifier(os.environ)
    if not simulate:
        with Guard() as guard:
            await Daemon(configuration, file, notifier=notifier, log=log, guard=guard).run()
        return
    daemon = Daemon(configuration, file, notifier=notifier, log=log)
    from simulators.site import SimulatedSite

    async with SimulatedSite(configuration) as site:
        site.start_traffic()
        await daemon.run()


def demo(
    seconds: Annotated[float, typer.Option(min=1, help="How long it runs.")] = 20.0,
    erlangs: Annotated[float, typer.Option(min=0.1, help="Traffic offered.")] = 45.0,
    seed: Annotated[int, typer.Option(help="The same seed brings the same calls.")] = 1,
) -> None:
    """Watch calls being distributed over packs of simulated S2M and S0 boards.

    \b
    umpack demo
    umpack demo --seconds 60 --erlangs 80
    """
    from umpack.cli.demo import show

    run_loop(lambda: show(DEMO_CONFIG, seconds, erlangs, seed))


def run_loop(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a program on uvloop where it is installed (extra `fast`), else on asyncio's own loop."""
    _keep_one_heap()
    factory: Callable[[], asyncio.AbstractEventLoop] | None
    try:
        from uvloop import new_event_loop as factory
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


def _keep_one_heap() -> None:
    """Before there are threads. glibc gives each an arena of its own, and each keeps what the
    largest mails took for a moment: a fifth more memory after 10,000 messages, none of it in use.
    Threads that wait for one interpreter's lock hardly wait for one heap's."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
