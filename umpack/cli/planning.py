"""storm, plan: what traffic does to the packs, and how many channels it needs.

The storm itself lives in `simulators`, imported when it is asked for: neither the daemon's start
nor any other command has to pay for it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, assert_never

import typer
from loguru import logger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from umpack.cli.options import ConfigOption, JsonOption
from umpack.cli.tables import console, print_json, span_of
from umpack.config import Configuration, load
from umpack.config.problems import nearest
from umpack.core import traffic as theory
from umpack.core.errors import OurFault
from umpack.core.pack import PackId
from umpack.core.site import Site

if TYPE_CHECKING:
    from simulators.storm import Comparison, Comparisons, StormReport
    from simulators.traffic import Holding

MANY = 60
"""Channels shown one by one; of larger packs groups of neighbours are."""

_GROUPS = 30
_BAR = 24
_EIGHTHS = " ▏▎▍▌▋▊▉"
_SPREAD = 2.0
"""Coefficient of variation of log-normal holding times."""
_SHORT = 400.0
"""Holding times; in fewer, a batch is so short that it depends on the one before."""
_SPAN = 30
"""B channels of an S2M."""


class HoldingKind(StrEnum):
    """How long calls hold; the mean is `--hold`."""

    EXPONENTIAL = "exponential"
    FIXED = "fixed"
    LOGNORMAL = "lognormal"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (storm, plan):
        app.command()(command)


def storm(
    erlangs: Annotated[
        float, typer.Option(metavar="A", help="Traffic offered: mean number of calls at a time.")
    ],
    config: ConfigOption = None,
    pack: Annotated[
        str | None, typer.Option(metavar="NAME", help="The pack; may be left out if there is one.")
    ] = None,
    hold: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long a call holds on average.")
    ] = 90.0,
    calls: Annotated[int, typer.Option(metavar="N", help="How many calls.")] = 100_000,
    seed: Annotated[int, typer.Option(metavar="S", help="The same seed, the same calls.")] = 1,
    holding: Annotated[
        HoldingKind,
        typer.Option(help="Distribution of holding times; lognormal deviates by twice the mean."),
    ] = HoldingKind.EXPONENTIAL,
    warm_up: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="Do not count the calls of the first SECONDS."),
    ] = 0.0,
    virtual: Annotated[
        bool,
        typer.Option(
            "--virtual/--realtime",
            help="In virtual time, or call by call through AGI against the simulated PBX.",
        ),
    ] = True,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw loads and blocking beside theory."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Offer a stream of random calls (Poisson) to a pack and compare with traffic theory.

    Without --config the demo's configuration is used. A storm begins with all channels idle; with
    --warm-up of some holding times that does not show in the figures.

    \b
    umpack storm --pack voice --erlangs 40
    umpack storm --config etc/umpack.yaml --pack um --erlangs 50 --hold 120 --calls 200000 --seed 7
    umpack storm --pack fax --erlangs 20 --holding lognormal --warm-up 900 --plot storm.png
    umpack storm --pack voice --erlangs 40 --json | jq .blocking
    umpack storm --pack voice --erlangs 40 --hold 0.5 --calls 2000 --realtime
    """
    from simulators.plot import check_plot
    from simulators.plot import plot as draw
    from simulators.storm import compare, expected, virtual_storm
    from simulators.traffic import Poisson, Traffic

    configuration = _configuration(config)
    chosen = _pack(configuration.site, pack)
    if calls < 1:
        raise OurFault(f"--calls must be at least 1, not {calls}")
    if warm_up and not virtual:
        raise OurFault("--warm-up needs --virtual: in real time every call is counted")
    if plot is not None:
        check_plot(plot)
    stream = Traffic(Poisson.of(erlangs, hold), _holding(holding, hold), seed=seed, count=calls)
    expectation = expected(configuration.site, chosen, erlangs)
    with _progress(calls, shown=not as_json and sys.stderr.isatty()) as progress:
        if virtual:
            report = virtual_storm(configuration.site, chosen, stream, progress, warm_up=warm_up)
        else:
            from simulators.realtime import realtime_storm

            logger.disable("drivers")  # the link to a PBX of our own is no news
            if sys.stderr.isatty():
                # Calls come every `hold / erlangs` seconds, and the last is waited for.
                lasts = span_of(calls * hold / erlangs + hold)
                typer.echo(f"in real time: about {lasts}", err=True)
            report = realtime_storm(configuration, chosen, stream, progress)
    exponential = holding is HoldingKind.EXPONENTIAL
    comparisons = compare(report, expectation, exponential=exponential)
    if as_json:
        print_json(_as_json(report))
    else:
        _show_storm(configuration.site, chosen, report, comparisons, hold)
    if plot is not None:
        draw(plot, chosen, report, comparisons)
        if not as_json:
            typer.echo(f"drawn: {plot}", err=True)


def plan(
    erlangs: Annotated[
        float | None, typer.Option(metavar="A", help="Traffic offered; asks for the channels.")
    ] = None,
    blocking: Annotated[
        float, typer.Option(metavar="B", help="Share of calls that may be lost, 0 to 1.")
    ] = 0.01,
    channels: Annotated[
        int | None, typer.Option(metavar="N", help="Channels there are; asks for the traffic.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say how many channels a traffic needs (Erlang B), or what traffic channels can take.

    Erlangs are calls in the busy hour times their mean length in hours: 1200 calls of 90 s are 30.

    \b
    umpack plan --erlangs 30 --blocking 0.01
    umpack plan --channels 60 --blocking 0.001
    """
    if (erlangs is None) == (channels is None):
        raise OurFault("give either --erlangs or --channels")
    if erlangs is not None:
        answer = theory.plan(erlangs, blocking)
        rows = [asdict(row) for row in answer.rows]
        view = {"erlangs": erlangs, "blocking": blocking, "channels": answer.channels}
    else:
        assert channels is not None  # noqa: S101 -- one of the two was given
        around = range(max(1, channels - theory.NEIGHBOURS), channels + theory.NEIGHBOURS + 1)
        rows = [{"channels": n, "erlangs": theory.offered_for(n, blocking)} for n in around]
        carried = theory.offered_for(channels, blocking)
        view = {"channels": channels, "blocking": blocking, "erlangs": carried}
    if as_json:
        print_json(view | {"neighbours": rows})
    elif erlangs is not None:
        _show_channels(view, rows)
    else:
        _show_erlangs(view, rows)


def _configuration(file: Path | None) -> Configuration:
    if file is not None:
        return load(file)
    with resources.as_file(resources.files("umpack") / "demo.yaml") as demo:
        return load(demo)


def _pack(site: Site, name: str | None) -> PackId:
    known = ", ".join(site.packs) or "none"
    if name is None:
        if len(site.packs) != 1:
            raise OurFault(f"name one pack with --pack; there are: {known}")
        return next(iter(site.packs))
    if name not in site.packs:
        raise OurFault(f"no pack {name!r}{nearest(name, site.packs)}; there are: {known}")
    return PackId(name)


def _holding(kind: HoldingKind, mean: float) -> Holding:
    from simulators.traffic import Exponential, Fixed, LogNormal

    match kind:
        case HoldingKind.EXPONENTIAL:
            return Exponential(mean)
        case HoldingKind.FIXED:
            return Fixed(mean)
        case HoldingKind.LOGNORMAL:
            return LogNormal(mean, _SPREAD)
        case _:
            assert_never(kind)


@contextmanager
def _progress(total: int, *, shown: bool) -> Iterator[Callable[[int], None] | None]:
    if not shown:
        yield None
        return
    with Progress(
        TextColumn("storm"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("calls"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task("storm", total=total)
        yield lambda done: bar.update(task, completed=done)


def _as_json(report: StormReport) -> dict[str, Any]:
    return {
        "offered": report.offered,
        "carried": report.carried,
        "blocked": report.blocked,
        "blocking": report.blocking,
        "erlangs_offered": report.erlangs_offered,
        "erlangs_carried": report.erlangs_carried,
        "calls_per_second": report.calls_per_second,
        "channels": [
            {
                "id": channel.id,
                "position": channel.position,
                "calls": channel.calls,
                "erlangs": channel.erlangs,
            }
            for channel in report.channels
        ],
        "seed": report.seed,
    }


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        words = column in ("", "channel", "load", "theory within")
        table.add_column(column, justify="left" if words else "right", no_wrap=True)
    return table


def _show_storm(
    site: Site, pack: PackId, report: StormReport, comparisons: Comparisons, hold: float
) -> None:
    out = console()
    chain = " → ".join(
        f"{id_} ({site.packs[id_].strategy.value}, {len(site.packs[id_].channels)})"
        for id_ in site.chain(pack)
    )
    out.print(
        Text(
            f"{chain}: {report.offered:,} calls of {hold:g} s, {report.carried:,} carried, "
            f"{report.blocked:,} blocked; {report.calls_per_second:,.0f} calls/s"
        )
    )
    table = _table("", "", "measured", "theory", "95 % interval", "theory within")
    for name, one in (
        ("blocking", comparisons.blocking),
        ("erlangs offered", comparisons.offered),
        ("erlangs carried", comparisons.carried),
    ):
        interval = "-"
        if one.interval is not None:
            interval = f"{one.interval.low:.5g} … {one.interval.high:.5g}"
        table.add_row(name, f"{one.measured:.5g}", f"{one.theory:.5g}", interval, _verdict(one))
    out.print(table)
    loads = comparisons.loads
    out.print(_each(report, loads) if len(loads) <= MANY else _groups(report, loads))
    judged = [one.holds for one in loads if one.holds is not None]
    if judged:
        out.print(
            f"theory is within the interval of {sum(judged)} of {len(judged)} channels; "
            "by chance all are in 95 of 100 storms"
        )
    if report.seconds < _SHORT * hold:
        out.print(
            f"a short storm ({report.seconds / hold:.0f} holding times): its intervals are rough; "
            "more --calls make them good"
        )


def _verdict(one: Comparison) -> Text:
    match one.holds:
        case None:
            return Text("-")
        case True:
            return Text("yes", style="green")
        case False:
            return Text("no", style="bold red")


def _each(report: StormReport, loads: Sequence[Comparison]) -> Table:
    table = _table(
        "Channels", "position", "channel", "calls", "erlangs", "load", "theory", "theory within"
    )
    for channel, one in zip(report.channels, loads, strict=True):
        table.add_row(
            str(channel.position),
            Text(channel.id),
            f"{channel.calls:,}",
            f"{channel.erlangs:.4f}",
            bar(channel.erlangs),
            f"{one.theory:.4f}",
            _verdict(one),
        )
    return table


def _groups(report: StormReport, loads: Sequence[Comparison]) -> Table:
    size = math.ceil(len(loads) / _GROUPS)
    table = _table(
        f"Channels, {size} neighbours a row (means)",
        "positions", "calls", "erlangs", "load", "theory", "theory within",
    )  # fmt: skip
    for first in range(0, len(loads), size):
        some = loads[first : first + size]
        within = [one.holds for one in some if one.holds is not None]
        mean = fmean(one.measured for one in some)
        table.add_row(
            f"{first + 1}–{first + len(some)}",
            f"{fmean(one.calls for one in report.channels[first : first + size]):,.1f}",
            f"{mean:.4f}",
            bar(mean),
            f"{fmean(one.theory for one in some):.4f}",
            f"{sum(within)} of {len(within)}" if within else "-",
        )
    return table


def bar(load: float) -> str:
    """A load of 0 to 1 erlang as a bar of block characters, an eighth of a cell fine."""
    whole, eighths = divmod(round(min(max(load, 0.0), 1.0) * _BAR * 8), 8)
    return ("█" * whole + _EIGHTHS[eighths]).rstrip()


def _show_channels(view: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    needed = view["channels"]
    spans = math.ceil(needed / _SPAN)
    out = console()
    out.print(
        f"{view['erlangs']:g} erlangs with at most {view['blocking']:.3%} lost need "
        f"{needed} channel{'s' if needed != 1 else ''} ({spans} S2M)"
    )
    table = _table(
        "", "channels", "lost", "erlangs carried", "erlangs of the last, hunted linearly"
    )
    for row in rows:
        table.add_row(
            str(row["channels"]),
            f"{row['blocking']:.3%}",
            f"{row['carried']:.3f}",
            f"{row['last_channel']:.4f}",
            style="bold green" if row["channels"] == needed else "",
        )
    out.print(table)


def _show_erlangs(view: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    out = console()
    out.print(
        f"{view['channels']} channels take {view['erlangs']:.3f} erlangs "
        f"with at most {view['blocking']:.3%} lost"
    )
    table = _table("", "channels", "erlangs offered")
    for row in rows:
        table.add_row(
            str(row["channels"]),
            f"{row['erlangs']:.3f}",
            style="bold green" if row["channels"] == view["channels"] else "",
        )
    out.print(table)
