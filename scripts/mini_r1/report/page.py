"""The page of one run or several: one HTML file with curves, tables and a sample browser that needs no network.

Python fills the template (`page.html.jinja`) with all but the samples; these stand in the page as JSON, and its one
script (`page.js`) shows them as text nodes only. Whatever a model wrote is data all the way.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from markupsafe import Markup

from mini_r1 import signs
from mini_r1.common import printable
from mini_r1.report.charts import RUN_COLOURS, as_svg, make_charts
from mini_r1.report.templates import render
from mini_r1.run_folder.record import LENGTH_METRIC, RunRecord, final_point, part_of
from mini_r1.run_folder.samples import Sample
from mini_r1.task import Task

_SCRIPT = Path(__file__).with_name("page.js")

# What a page holds at most, all runs together; browsers get slow beyond. An even share of the samples is kept.
MAX_SAMPLES = 100_000
MAX_CHARACTERS = 60_000_000
# A stratum may take the task milliseconds per puzzle; 10 s are enough for 5,000 Countdown puzzles of four numbers.
MAX_STRATA_SECONDS = 10.0

# The recipe's keys that one looks at first.
_MAIN_KEYS = """
model_name_or_path dataset_id_or_path number_counts max_steps learning_rate lr_scheduler_type beta loss_type
num_generations per_device_train_batch_size gradient_accumulation_steps max_completion_length temperature use_peft
dtype use_vllm vllm_mode seed
""".split()


def build_page(runs: Sequence[RunRecord]) -> str:
    """The whole page of at least one run as HTML."""
    script = _SCRIPT.read_text(encoding="utf-8")
    recipe = _compared([run.recipe for run in runs])
    return render(
        "page.html.jinja",
        # Only this very script may run: even text that became markup could neither run nor load anything.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        script=Markup(script),
        colours=RUN_COLOURS,
        runs=[{"name": run.name, "state": describe_state(run, time.time()), "tiles": tiles(run)} for run in runs],
        charts=[(chart, Markup(as_svg(chart))) for chart in make_charts(runs)],
        evaluations=[
            (i, name, *_table(content)) for i, run in enumerate(runs) for name, content in run.evaluations.items()
        ],
        recipe=[(key, values) for key, values in recipe if key in _MAIN_KEYS or len(set(values)) > 1],
        whole_recipe=recipe,
        facts=_compared([_facts(run.description) for run in runs]),
        # The script marks what `thinking/attempts` and `thinking/self_corrections` count, with the same expressions.
        signs=signs,
        packs=[_pack(run, MAX_SAMPLES // len(runs), MAX_CHARACTERS // len(runs)) for run in runs],
    )


# --------------------------------------------------------------------------------------------------------------------
# Samples
# --------------------------------------------------------------------------------------------------------------------


def _pack(run: RunRecord, max_samples: int, max_characters: int) -> dict[str, Any]:
    shown = thin_out(run.samples, max_samples, max_characters)
    notes = []
    if run.skipped:
        notes.append(f"{run.skipped} lines of the sample files hold no whole sample and were skipped.")
    if len(shown) < len(run.samples):
        notes.append(f"An even choice of {len(shown)} of the {len(run.samples)} samples is on this page.")
    return {**pack_samples(shown, run.task), "notes": notes}


def thin_out(samples: list[Sample], max_samples: int, max_characters: int) -> list[Sample]:
    """An even subsample that stays within both limits, in the same order; all of them when they do already."""
    characters = sum(len(sample.response) for sample in samples)
    share = min(1.0, max_samples / max(len(samples), 1), max_characters / max(characters, 1))
    # Whole numbers of the running total: of every 1/share neighbours exactly one is taken.
    return [sample for i, sample in enumerate(samples) if int((i + 1) * share) > int(i * share)]


def pack_samples(samples: Iterable[Sample], task: Task) -> dict[str, Any]:
    """Samples for the page's script.

    Returns:
        `samples`: one dict per sample, whose `puzzle` is an index into `puzzles`, texts, and into `strata`, names.
    """
    puzzles: dict[str, Any] = {}  # those that ask the same are one
    places: dict[str, int] = {}
    rows = []
    for sample in samples:
        key, text = task.key(sample.puzzle), sample.response
        puzzles.setdefault(key, sample.puzzle)
        rows.append(
            {
                "step": sample.step,
                "split": sample.split,
                "puzzle": places.setdefault(key, len(places)),
                "reason": sample.reason,
                "value": sample.value,
                "format": sample.format_reward,
                "tokens": sample.completion_tokens,
                # `printable` looks at every character; most texts have nothing to escape.
                "text": text if text.replace("\n", "").isprintable() else printable(text),
            }
        )
    deadline = time.monotonic() + MAX_STRATA_SECONDS
    return {
        "samples": rows,
        "puzzles": [printable(str(puzzle)) for puzzle in puzzles.values()],
        "strata": [
            task.stratum(puzzle) if time.monotonic() < deadline else "not classified" for puzzle in puzzles.values()
        ],
    }


# --------------------------------------------------------------------------------------------------------------------
# Figures and tables
# --------------------------------------------------------------------------------------------------------------------


def describe_state(run: RunRecord, now: float) -> str:
    """Whether the run is finished; if not, how far it came and how long it has been silent.

    A running run writes every few steps, so that its silence tells it from one that has died.

    Args:
        run: the run.
        now: the time in seconds since 1970.
    """
    if run.finished:
        return f"finished, {run.step} steps"
    silence = _duration(max(0.0, now - run.last_written))
    return f"not finished, step {run.step} of {run.recipe.get('max_steps')}, last written {silence} before this report"


def tiles(run: RunRecord) -> list[tuple[str, str, str]]:
    """The run in a few figures as (label, value, remark): the first and the last value of what was evaluated."""
    found = []
    if run.held_out:
        first, last = run.held_out[0], final_point(run.held_out)
        remark = f"95 % interval {100 * last['low']:.1f} to {100 * last['high']:.1f}, {last['puzzles']} puzzles"
        found.append(("held-out success", f"{100 * first['pass@1']:.1f} → {100 * last['pass@1']:.1f} %", remark))
    for label, metric in (("tokens", LENGTH_METRIC), ("attempts", "eval_thinking/attempts")):
        if points := run.points(metric):
            value = f"{points[0][1]:.3g} → {points[-1][1]:.3g}"
            found.append((f"{label} per completion", value, "on held-out puzzles"))
    if times := [seconds for _, seconds in run.points("step_time")]:
        # With `logging_steps` above 1 each value is the mean over that many steps.
        total = _duration(mean(times) * run.step)
        found.append(("training time", total, f"median {median(times):.3g} s a step, without evaluation"))
    return found


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _facts(description: dict[str, Any]) -> dict[str, Any]:
    """What `run.json` says besides the recipe."""
    parts = [(part, part_of(description, part)) for part in ("hardware", "split", "versions")]
    return {key: description.get(key) for key in ("started", "command", "git_commit")} | {
        f"{name}: {key}": value for name, part in parts for key, value in part.items()
    }


def _compared(parts: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """One row per key: (key, its value in each run)."""
    keys = dict.fromkeys(key for part in parts for key in part)
    return [(key, [_text(part.get(key, "")) for part in parts]) for key in keys]


def _table(content: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """What an evaluation's file says, as (remark, columns, rows)."""
    rows = content.get("table", [])
    columns = list(dict.fromkeys(key for row in rows for key in row))
    plain = [f"{key}: {_cell(value)}" for key, value in content.items() if not isinstance(value, (list, dict))]
    return ", ".join(plain), columns, [[_cell(row.get(column, "")) for column in columns] for row in rows]


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _text(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
