"""The report of one run or of several: which curves there are, as a picture and as one self-contained HTML page.

Python decides what is shown and embeds it as JSON; the page's own script (`page.html`) draws it. Whatever a model
wrote is data all the way: it is embedded with every `<` escaped, and reaches the page as text nodes only.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from mini_r1 import signs as reasoning
from mini_r1.common import printable
from mini_r1.countdown.puzzle import puzzle_key
from mini_r1.countdown.solver import Difficulty, reachable_by_sums
from mini_r1.run_folder.folder import LENGTH_METRIC
from mini_r1.run_folder.record import RunRecord
from mini_r1.run_folder.samples import Sample

TEMPLATE = Path(__file__).with_name("page.html")

# What a page holds at most, all runs together; browsers get slow beyond. An even share of the samples is kept.
MAX_SAMPLES = 100_000
MAX_CHARACTERS = 60_000_000

# One per run, legible on white and on black.
RUN_COLOURS = ("#3b82c4", "#d9822b", "#2a9d68", "#a463c9", "#d64550", "#2b9fa8", "#8f9a2b", "#c2628f")

# The recipe's keys that one looks at first.
MAIN_KEYS = (
    "model_name_or_path", "dataset_id_or_path", "number_counts", "max_steps", "learning_rate", "lr_scheduler_type",
    "beta", "loss_type", "num_generations", "per_device_train_batch_size", "gradient_accumulation_steps",
    "max_completion_length", "temperature", "use_peft", "dtype", "use_vllm", "vllm_mode", "seed",
)  # fmt: skip
# Keys that differ from run to run and say nothing about it.
PRIVATE_KEYS = ("output_dir", "completion_samples_dir", "logging_dir", "run_name", "resume_from_checkpoint")


# --------------------------------------------------------------------------------------------------------------------
# Curves
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chart:
    """One quantity over the optimizer steps.

    Attributes:
        title: what it is, for people.
        metric: the scalar's name, as in TensorBoard.
        is_share: whether the values are shares of 1, shown as percentages.
        series: per run, in the order of the runs, its points: [step, value], or [step, value, low, high] with an
            interval. Empty for a run that did not log it.
    """

    title: str
    metric: str
    is_share: bool
    series: list[list[list[float]]]


# (metric, title, whether it is a share of 1), in the order shown. The first is drawn with its interval.
_HELD_OUT = "eval/rewards/equation_reward_func/mean"
_METRICS = (
    ("rewards/equation_reward_func/mean", "Success while training", True),
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


def make_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """The curves that at least one of the runs has, in the order in which they are shown."""
    logged = {name for run in runs for entry in run.history for name in entry}
    metrics = list(_METRICS)
    known = {metric for metric, _, _ in metrics}
    # A reward that somebody added stands beside the built-in ones, and so does another sign of search.
    for pattern, after in ((r"rewards/(.+)/mean", "reward"), (r"thinking/(.+)", "completions/clipped_ratio")):
        place = next(i for i, (metric, _, _) in enumerate(metrics) if metric == after)
        found = [(name, m[1]) for name in sorted(logged - known) if (m := re.fullmatch(pattern, name))]
        metrics[place:place] = [(name, label.replace("_", " ").capitalize(), False) for name, label in found]
    held_out = [[[p["step"], p["pass@1"], p["low"], p["high"]] for p in run.held_out] for run in runs]
    charts = [Chart("Held-out success (pass@1, 95 % interval)", _HELD_OUT, True, held_out)]
    for metric, title, is_share in metrics:
        charts.append(Chart(title, metric, is_share, [[list(p) for p in run.points(metric)] for run in runs]))
    return [chart for chart in charts if any(chart.series)]


def draw_curves(charts: Sequence[Chart], names: Sequence[str], path: Path) -> None:
    """Writes all curves as one PNG; nothing when there are none."""
    if not charts:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = min(3, len(charts))
    rows = -(-len(charts) // columns)
    figure = Figure(figsize=(4 * columns, 2.7 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    colours = [RUN_COLOURS[i % len(RUN_COLOURS)] for i in range(len(names))]
    for place, chart in enumerate(charts, 1):
        axes = figure.add_subplot(rows, columns, place)
        scale = 100 if chart.is_share else 1
        for points, colour in zip(chart.series, colours, strict=True):
            steps = [point[0] for point in points]
            dots = "o" if len(points) < 15 else None
            axes.plot(steps, [scale * point[1] for point in points], color=colour, marker=dots, markersize=3.5)
            if points and len(points[0]) == 4:
                low, high = ([scale * point[i] for point in points] for i in (2, 3))
                axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set_title(_as_drawn(chart.title) + (", %" if chart.is_share else ""), fontsize=10)
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]) if axes.get_ylim()[0] < 0 else 0)
        if chart.is_share:
            axes.set_ylim(0, 103)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    lines = [Line2D([], [], color=colour) for colour in colours]
    labels = [" " + _as_drawn(name) for name in names]  # one that begins with `_` would be left out
    figure.legend(lines, labels, loc="outside upper center", frameon=False, ncols=min(3, len(names)))
    figure.savefig(path, dpi=130)


def _as_drawn(text: str) -> str:
    """Names are data: a `$` in one must not start mathematics, and what is no character has no shape."""
    return printable(text).replace("$", r"\$")


# --------------------------------------------------------------------------------------------------------------------
# Page
# --------------------------------------------------------------------------------------------------------------------


def build_page(runs: Sequence[RunRecord], charts: Sequence[Chart]) -> str:
    """The whole page as HTML."""
    shown = [thin_out(run.samples, MAX_SAMPLES // len(runs), MAX_CHARACTERS // len(runs)) for run in runs]
    data = {
        "runs": [describe_run(run, len(kept)) for run, kept in zip(runs, shown, strict=True)],
        "charts": [asdict(chart) for chart in charts],
        "colours": RUN_COLOURS,
        "mainKeys": MAIN_KEYS,
        "privateKeys": PRIVATE_KEYS,
        # The page marks what `count_attempts` and `count_self_corrections` count, with the same expressions.
        "patterns": {
            "clauseEnd": reasoning.CLAUSE_END.pattern,
            "result": reasoning.RESULT.pattern,
            "correction": reasoning.CORRECTION.pattern,
        },
    }
    template = TEMPLATE.read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", template, re.DOTALL)
    assert script is not None, "page.html has one script"
    # Only this very script may run: even text that became markup could neither run anything nor load anything.
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    blocks = (
        f'<script type="application/json" id="samples-{i}">{embed(pack_samples(kept))}</script>\n'
        for i, kept in enumerate(shown)
    )
    fillings = {
        "script-hash": digest,
        "title": html.escape(", ".join(run.name for run in runs)),
        "data": embed(data),
        "samples": "".join(blocks),
    }
    # In one pass: a name or a text that holds such a mark itself stays what it is.
    return re.sub(r"\{\{([a-z-]+)\}\}", lambda mark: fillings[mark[1]], template)


def embed(data: Any) -> str:
    r"""JSON that can stand between `<script type="application/json">` and `</script>` whatever the strings hold.

    Without `<` neither `</script>` nor `<!--` can occur; all that is not ASCII, U+2028 and lone surrogates included,
    is written as `\u....`.

    Raises:
        ValueError: on NaN and infinities, which JSON does not know.

    >>> embed("</script>")
    '"\\u003c/script>"'
    """
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def thin_out(samples: list[Sample], max_samples: int, max_characters: int) -> list[Sample]:
    """An even subsample that stays within both limits, in the same order; all of them when they do already."""
    characters = sum(len(sample.response) for sample in samples)
    share = min(1.0, max_samples / max(len(samples), 1), max_characters / max(characters, 1))
    # Whole numbers of the running total: of every 1/share neighbours exactly one is taken.
    return [sample for i, sample in enumerate(samples) if int((i + 1) * share) > int(i * share)]


def pack_samples(samples: Sequence[Sample]) -> dict[str, Any]:
    """Samples as columns, with puzzles, splits and verdicts as indices into lists: small, and quick to filter.

    Returns:
        `splits`, `reasons`, `strata`: names; `puzzles`: lists of [numbers, target, index of the stratum]; and the
        columns `step`, `split`, `puzzle`, `reason`, `value`, `format`, `tokens`, `response`, one entry per sample.
    """
    indices: dict[str, dict[str, int]] = {"splits": {}, "reasons": {}, "strata": {}}

    def index(table: str, name: str) -> int:
        return indices[table].setdefault(name, len(indices[table]))

    puzzles: list[list[Any]] = []
    known: dict[str, int] = {}
    columns: dict[str, list[Any]] = {
        name: [] for name in ("step", "split", "puzzle", "reason", "value", "format", "tokens", "response")
    }
    for sample in samples:
        key = puzzle_key(sample.nums, sample.target)
        if key not in known:
            known[key] = len(puzzles)
            # Whether the rest can be solved at all is not asked: the solver takes milliseconds for each of them.
            kind = Difficulty(len(sample.nums), not reachable_by_sums(sample.nums, sample.target), solutions=0)
            puzzles.append([sample.nums, sample.target, index("strata", kind.stratum)])
        text = sample.response
        columns["step"].append(sample.step)
        columns["split"].append(index("splits", sample.split))
        columns["puzzle"].append(known[key])
        columns["reason"].append(index("reasons", sample.reason))
        columns["value"].append(sample.value)
        columns["format"].append(sample.format_reward)
        columns["tokens"].append(sample.completion_tokens)
        # `printable` looks at every character; most texts have nothing to escape.
        columns["response"].append(text if text.replace("\n", "").isprintable() else printable(text))
    return {**{name: list(table) for name, table in indices.items()}, "puzzles": puzzles, **columns}


def describe_run(run: RunRecord, samples_shown: int) -> dict[str, Any]:
    """What the page says about a run besides its curves and samples: plain strings, lists and numbers."""
    description = run.description
    command = description.get("command")
    notes = []
    if run.skipped:
        notes.append(f"{run.skipped} lines of the sample files hold no whole sample and were skipped.")
    if samples_shown < len(run.samples):
        notes.append(f"An even choice of {samples_shown} of the {len(run.samples)} samples is on this page.")
    shares: list[Any] = [run.recipe.get(key) for key in ("sample_share", "success_sample_share")]
    if run.samples and all(isinstance(share, (int, float)) and 0 <= share <= 1 for share in shares) and shares[1]:
        notes.append(
            f"Kept were {_percent(shares[0])} of all completions and, besides, {_percent(shares[1])} of the correct "
            f"ones: their share here is not the success rate."
        )
    return {
        "name": run.name,
        "state": describe_state(run, time.time()),
        "tiles": _tiles(run),
        "notes": notes,
        "facts": {
            "started": _as_text(description.get("started")),
            "command": " ".join(map(str, command if isinstance(command, list) else [])),
            "git commit": _as_text(description.get("git_commit") or "unknown"),
            **{
                f"{part}: {key}": _as_text(value)
                for part in ("hardware", "split", "versions")
                if isinstance(described := description.get(part), dict)
                for key, value in described.items()
            },
        },
        "recipe": {key: _as_text(value) for key, value in run.recipe.items()},
        "tables": [table for name, content in run.evaluations.items() for table in _tables(name, content)],
    }


def describe_state(run: RunRecord, now: float) -> str:
    """Whether the run is finished; if not, how far it came and how long it has been silent.

    A run that is still going writes every few steps, so that its silence tells it from one that has died.

    Args:
        run: the run.
        now: the time in seconds since 1970.
    """
    if run.finished:
        return f"finished, {run.step} steps"
    steps = run.recipe.get("max_steps")
    of = f" of {steps}" if isinstance(steps, int) and steps > 0 else ""
    silence = _duration(max(0.0, now - run.last_written))
    return f"not finished, step {run.step}{of}, last written {silence} before this report"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _tiles(run: RunRecord) -> list[list[str]]:
    """The run in a few figures, each as [label, value, remark]; the first and the last value of what was measured."""
    tiles = []
    if run.held_out:
        first, last = run.held_out[0], run.held_out[-1]
        remark = f"95 % interval {100 * last['low']:.1f} to {100 * last['high']:.1f}"
        if last.get("puzzles"):
            remark += f", {last['puzzles']} puzzles"
        tiles.append(["held-out success", f"{100 * first['pass@1']:.1f} → {100 * last['pass@1']:.1f} %", remark])
    elif success := run.points("rewards/equation_reward_func/mean"):
        value = f"{100 * success[0][1]:.1f} → {100 * success[-1][1]:.1f} %"
        tiles.append(["success while training", value, "single steps, not held-out puzzles"])
    for label, metric, digits in (
        ("tokens per completion", LENGTH_METRIC, 0),
        ("attempts per completion", "eval_thinking/attempts", 1),
    ):
        for name, remark in ((metric, "on held-out puzzles"), (metric.removeprefix("eval_"), "while training")):
            if points := run.points(name):
                tiles.append([label, f"{points[0][1]:.{digits}f} → {points[-1][1]:.{digits}f}", remark])
                break
    if times := [seconds for _, seconds in run.points("step_time")]:
        # With `logging_steps` above 1 each value is the mean over that many steps.
        total = sum(times) / len(times) * run.step
        remark = f"{median(times):.3g} s a step in the middle, evaluation not counted"
        tiles.append(["training time", _duration(total), remark])
    return tiles


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _tables(name: str, content: dict[str, Any]) -> list[dict[str, Any]]:
    """The results of an evaluation for the page: its `table`, a list of flat dicts, with the other plain values."""
    rows = content.get("table")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        return []
    columns = list(dict.fromkeys(key for row in rows for key in row))
    plain = [f"{key}: {_cell(value)}" for key, value in content.items() if not isinstance(value, (list, dict))]
    return [
        {
            "title": name,
            "remark": ", ".join(plain),
            "columns": columns,
            "rows": [[_cell(row.get(column)) for column in columns] for row in rows],
        }
    ]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else _as_text(value)
