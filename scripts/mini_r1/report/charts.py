"""The curves of runs: which ones there are, and the one way of drawing them, for the picture, the card and the page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mini_r1.common import printable
from mini_r1.run_folder.record import RunRecord, pass_metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# One per run, legible on white and on black.
RUN_COLOURS = ("#3b82c4", "#d9822b", "#2a9d68", "#a463c9", "#d64550", "#2b9fa8", "#8f9a2b", "#c2628f")

# (metric, title, whether it is a share of 1), in the order shown, after the held-out success.
_METRICS = (
    ("rewards/equation_reward_func/mean", "Success while training", True),
    ("rewards/accuracy_reward_func/mean", "Score while training, partial credit included", True),
    ("rewards/format_reward_func/mean", "Format", True),
    ("reward", "Summed reward", False),
    ("completions/mean_length", "Completion length (tokens)", False),
    ("thinking/mean_length", "Thinking length (tokens)", False),
    ("thinking/attempts", "Attempts per completion", False),
    ("thinking/self_corrections", "Self-corrections per completion", False),
    ("completions/clipped_ratio", "Cut off at the length limit", True),
    ("entropy", "Entropy (nats per token)", False),
    ("kl", "KL from the starting model", False),
    ("frac_reward_zero_std", "Groups that teach nothing", True),
    ("step_time", "Seconds per step", False),
)


@dataclass(frozen=True)
class Chart:
    """One quantity over the optimizer steps.

    Attributes:
        title: what it is, for people.
        metric: the scalar's name, as in TensorBoard.
        is_share: whether the values are shares of 1, shown as percentages.
        series: per run, in the order of the runs, its points: (step, value), or (step, value, low, high) with an
            interval. Empty for a run that did not log it.
    """

    title: str
    metric: str
    is_share: bool
    series: Sequence[Sequence[tuple[float, ...]]]

    def ends(self) -> list[tuple[int, str]]:
        """The first and the last value of each run that has any, as in `(0, "32.6 → 83.6 %")`."""
        scale, digits, unit = (100, ".1f", " %") if self.is_share else (1, ".3g", "")
        return [
            (run, f"{scale * points[0][1]:{digits}} → {scale * points[-1][1]:{digits}}{unit}")
            for run, points in enumerate(self.series)
            if points
        ]


def make_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """The curves that at least one of the runs has, in the order in which they are shown."""
    held_out = [[(p["step"], p["pass@1"], p["low"], p["high"]) for p in run.held_out] for run in runs]
    solved = pass_metric().replace("eval_", "eval/", 1)
    charts = [Chart("Held-out success (pass@1, 95 % interval)", solved, True, held_out)]
    for kind in sorted({kind for run in runs for point in run.held_out for kind in point.get("strata", ())}):
        title, metric = f"Held-out: {kind}", pass_metric(kind).replace("eval_", "eval/", 1)
        charts.append(Chart(title, metric, True, [_of_kind(run, kind) for run in runs]))
    metrics = {metric: (title, is_share) for metric, title, is_share in _METRICS}
    for name in sorted({name for run in runs for entry in run.history for name in entry}):
        if added := re.fullmatch(
            r"(?:rewards/(.+)/mean|thinking/(.+))", name
        ):  # a reward or a sign that somebody added
            metrics.setdefault(name, ((added[1] or added[2]).replace("_", " ").capitalize(), False))
    charts += [
        Chart(title, name, share, [run.points(name) for run in runs]) for name, (title, share) in metrics.items()
    ]
    return [chart for chart in charts if any(chart.series)]


def _of_kind(run: RunRecord, kind: str) -> list[tuple[float, ...]]:
    """Held-out success of one kind of puzzle: step, rate and the ends of its interval."""
    points = [(point["step"], point["strata"][kind]) for point in run.held_out if kind in point.get("strata", ())]
    return [(step, rate["pass@1"], rate["low"], rate["high"]) for step, rate in points]


def draw_curves(runs: Sequence[RunRecord], path: Path) -> bool:
    """Writes all curves of the runs as one PNG; returns False, and writes nothing, when there are none."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    charts = make_charts(runs)
    if not charts:
        return False
    columns = min(3, len(charts))
    rows = -(-len(charts) // columns)
    figure = Figure(figsize=(4 * columns, 2.7 * rows + 0.4), layout="constrained")
    for place, chart in enumerate(charts, 1):
        axes = figure.add_subplot(rows, columns, place)
        draw(axes, chart)
        axes.set_title(_as_drawn(chart.title), fontsize=10)
    lines = [Line2D([], [], color=RUN_COLOURS[i % len(RUN_COLOURS)]) for i in range(len(runs))]
    labels = [" " + _as_drawn(run.name) for run in runs]  # one that begins with `_` would be left out
    figure.legend(lines, labels, loc="outside upper center", frameon=False, ncols=min(3, len(runs)))
    figure.savefig(path, dpi=130)
    return True


def as_svg(chart: Chart) -> str:
    """One curve as an `<svg>` element, without title; texts stay texts, so that a page can give them its colours."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 2.1), layout="constrained")
    draw(figure.add_subplot(), chart)
    stream = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mini-r1"}):
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=no_metadata)
    return "<svg" + stream.getvalue().partition("<svg")[2]


def draw(axes: Axes, chart: Chart) -> None:
    """Draws one curve per run, with its interval where there is one."""
    from matplotlib.ticker import PercentFormatter

    for i, points in enumerate(chart.series):
        if points:
            steps, values, *bounds = zip(*points, strict=True)
            colour = RUN_COLOURS[i % len(RUN_COLOURS)]
            axes.plot(steps, values, color=colour, marker="o" if len(points) < 15 else None, markersize=3.5)
            if bounds:
                axes.fill_between(steps, bounds[0], bounds[1], color=colour, alpha=0.2, linewidth=0)
    if chart.is_share:
        axes.set_ylim(0, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    else:
        axes.set_ylim(bottom=min(0, axes.dataLim.ymin))
    axes.locator_params("x", nbins=6, integer=True)
    axes.locator_params("y", nbins=5)
    tidy(axes)


def tidy(axes: Axes) -> None:
    """The look of every curve of ours: a light grid, small figures, no box."""
    axes.tick_params(labelsize=9, color="#8889")
    axes.grid(color="#8884")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#8889")


def _as_drawn(text: str) -> str:
    """Names are data: a `$` in one must not start mathematics, and what is no character has no shape."""
    return printable(text).replace("$", r"\$")
