"""Pictures of a storm: load of every channel and blocking, each beside its theory.

Needs matplotlib, which is an extra of its own: it is larger than all the rest together. Drawn
without a display (Agg) and without pyplot, which keeps figures alive in a global table.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulators.storm import Comparison, Comparisons, StormReport
from umpack.core import traffic
from umpack.core.errors import OurFault
from umpack.core.pack import PackId

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg", ".pdf")

_MEASURED, _THEORY = "#3b7dd8", "#c0392b"
_POINTS = 200
_FEW = 120
"""Up to here bars have room of their own; beyond, a line of steps is drawn."""


def check_plot(path: Path) -> None:
    """Whether a picture can be drawn there, told before a long storm instead of after it.

    `OurFault` for a suffix, a directory or a library that will not do.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise OurFault(f"cannot draw {str(path)!r}: its name must end in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise OurFault(f"cannot draw {str(path)!r}: there is no directory {str(path.parent)!r}")
    _figure()


def plot(path: Path, pack: PackId, report: StormReport, comparisons: Comparisons) -> None:
    """Draw a storm into a file. `OurFault` where `check_plot` raises it, and if writing fails."""
    check_plot(path)
    figure = _figure()
    loads, blocking = figure.subplots(1, 2, width_ratios=(2, 1))
    _draw_loads(loads, pack, comparisons.loads)
    _draw_blocking(blocking, len(report.channels), comparisons.blocking, comparisons.offered.theory)
    figure.suptitle(
        f"pack {pack}: {report.offered:,} calls, {comparisons.offered.theory:g} erlangs "
        f"on {len(report.channels)} channels"
    )
    try:
        figure.savefig(path)
    except OSError as error:
        raise OurFault(f"cannot write {str(path)!r}: {error.strerror or error}") from error


def _figure() -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise OurFault(
            "a plot needs matplotlib, which is not installed: pip install 'umpack[plot]'"
        ) from error
    figure = Figure(figsize=(12, 4.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_loads(axes: Axes, pack: PackId, loads: tuple[Comparison, ...]) -> None:
    positions = list(range(1, len(loads) + 1))
    measured = [load.measured for load in loads]
    theory = [load.theory for load in loads]
    if len(loads) <= _FEW:
        axes.bar(positions, measured, color=_MEASURED, alpha=0.8, label="measured")
        spread = [
            (position, load.measured, load.interval)
            for position, load in zip(positions, loads, strict=True)
            if load.interval is not None
        ]
        if spread:
            axes.errorbar(
                [position for position, _, _ in spread],
                [interval.estimate for _, _, interval in spread],
                yerr=[interval.high - interval.estimate for _, _, interval in spread],
                fmt="none",
                ecolor="black",
                elinewidth=0.8,
                label="95 % interval of all together",
            )
    else:
        axes.step(positions, measured, where="mid", color=_MEASURED, label="measured")
    axes.step(positions, theory, where="mid", color=_THEORY, label="theory")
    axes.set(
        xlabel="position", ylabel="erlangs", title=f"load per channel of {pack}", ylim=(0, None)
    )
    axes.legend(loc="lower left")


def _draw_blocking(axes: Axes, channels: int, blocking: Comparison, erlangs: float) -> None:
    offered = [2 * erlangs * step / _POINTS for step in range(1, _POINTS + 1)]
    curve = [traffic.blocking(channels, one) for one in offered]
    axes.plot(offered, curve, color=_THEORY, label=f"Erlang B, {channels} channels")
    interval = blocking.interval
    reach = (
        (
            [max(0.0, blocking.measured - interval.low)],
            [max(0.0, interval.high - blocking.measured)],
        )
        if interval is not None
        else None
    )
    axes.errorbar(
        [erlangs],
        [blocking.measured],
        yerr=reach,
        fmt="o",
        color=_MEASURED,
        ecolor="black",
        capsize=4,
        label="measured, 95 % interval" if interval is not None else "measured",
    )
    axes.set(xlabel="erlangs offered", ylabel="share of calls lost", title="blocking")
    axes.set_ylim(bottom=0)
    axes.legend()
