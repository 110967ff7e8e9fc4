"""Draws the held-out curve of several runs of one recipe that differ in their seed, and writes its numbers as JSON.

    python tests/benchmarks/plot_curve.py OUT.png RUN_FOLDER [RUN_FOLDER ...]

Left: held-out pass@1, the mean over the runs and their range. Right: tokens per completion on the same puzzles. The
numbers land beside the picture as OUT.json.
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
    seconds = [json.loads((folder / "train_results.json").read_text())["train_runtime"] for folder in folders]
    return {
        "seeds": [run.description["seed"] for run in runs],
        "train_minutes": [round(runtime / 60, 1) for runtime in seconds],
        "puzzles": runs[0].held_out[0]["puzzles"],
        "steps": steps,
        "pass@1": [[point["pass@1"] for point in run.held_out] for run in runs],
        "mean_tokens": [[point["mean_tokens"] for point in run.held_out] for run in runs],
    }


def draw(summary: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, key, scale, label in zip(
        figure.subplots(1, 2),
        ("pass@1", "mean_tokens"),
        (100, 1),
        ("held-out pass@1 (%)", "tokens per completion"),
        strict=True,
    ):
        columns = [[scale * value for value in column] for column in zip(*summary[key], strict=True)]
        axes.fill_between(
            summary["steps"], [min(c) for c in columns], [max(c) for c in columns], alpha=0.25, linewidth=0
        )
        axes.plot(summary["steps"], [sum(c) / len(c) for c in columns], marker="o", markersize=4)
        axes.set(xlabel="optimizer step", ylabel=label)
        axes.set_ylim(bottom=0)
        tidy(axes)
    title = f"mean and range of {len(summary['seeds'])} seeds, {summary['puzzles']} held-out puzzles"
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    run_cli(main)
