"""Draws the held-out curve of several runs of one recipe that differ in their seed, and writes its numbers as JSON.

    python tests/benchmarks/plot_curve.py OUT.png RUN_FOLDER [RUN_FOLDER ...]

Left: held-out pass@1 of all puzzles, in black, and of each kind, the mean over the runs and their range. Right: tokens
per completion on the same puzzles. The numbers land beside the picture as OUT.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from mini_r1.common import ArgumentParser, RunError, run_cli
from mini_r1.report.charts import tidy
from mini_r1.run_folder.record import read_run


def main(argv: list[str]) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("out", type=Path, metavar="OUT.png", help="the picture")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER", help="finished runs")
    args = parser.parse_args(argv)
    summary = summarise(args.runs)
    draw(summary, args.out)
    text = json.dumps(summary, indent=2)
    args.out.with_suffix(".json").write_text(text + "\n")
    print(text)


def summarise(folders: list[Path]) -> dict[str, Any]:
    """The numbers behind the picture; one list per run, one entry per evaluation.

    Raises:
        RunError: when the runs were not evaluated at the same steps.
    """
    runs = [read_run(folder) for folder in folders]
    steps = [point["step"] for point in runs[0].held_out]
    if not steps or any([point["step"] for point in run.held_out] != steps for run in runs):
        raise RunError("the runs were not evaluated at the same steps; name runs of one recipe")
    kinds = sorted(runs[0].held_out[0]["strata"])
    seconds = [json.loads((folder / "train_results.json").read_text())["train_runtime"] for folder in folders]
    return {
        "seeds": [run.description["seed"] for run in runs],
        "train_minutes": [round(runtime / 60, 1) for runtime in seconds],
        "puzzles": runs[0].held_out[0]["puzzles"],
        "steps": steps,
        "pass@1": [[point["pass@1"] for point in run.held_out] for run in runs],
        "pass@1_by_kind": {
            kind: [[round(point["strata"][kind]["pass@1"], 4) for point in run.held_out] for run in runs]
            for kind in kinds
        },
        "mean_tokens": [[point["mean_tokens"] for point in run.held_out] for run in runs],
    }


def draw(summary: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    rates, lengths = figure.subplots(1, 2)
    kinds = summary["pass@1_by_kind"]
    for kind, values in kinds.items() if len(kinds) > 1 else ():
        _band(rates, summary["steps"], [[100 * value for value in run] for run in values], label=kind)
    everything = [[100 * value for value in run] for run in summary["pass@1"]]
    _band(rates, summary["steps"], everything, label="all", color="black", linewidth=2.5)
    rates.legend(fontsize=8, loc="lower right")
    _band(lengths, summary["steps"], summary["mean_tokens"], color="black")
    for axes, label in ((rates, "held-out pass@1 (%)"), (lengths, "tokens per completion")):
        axes.set(xlabel="optimizer step", ylabel=label)
        axes.set_ylim(bottom=0)
        tidy(axes)
    rates.set_ylim(0, 100)
    title = f"mean and range of {len(summary['seeds'])} seeds, {summary['puzzles']} held-out puzzles"
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=150)


def _band(axes: Any, steps: list[int], runs: list[list[float]], **line: Any) -> None:
    """The mean of the runs as a line, their range as a band."""
    columns = list(zip(*runs, strict=True))
    (drawn,) = axes.plot(steps, [sum(c) / len(c) for c in columns], marker="o", markersize=4, **line)
    low, high = [min(c) for c in columns], [max(c) for c in columns]
    axes.fill_between(steps, low, high, alpha=0.2, linewidth=0, color=drawn.get_color())


if __name__ == "__main__":
    run_cli(main)
