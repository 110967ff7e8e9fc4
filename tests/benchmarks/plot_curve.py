"""Draws the held-out curve of several runs of one recipe that differ in their seed, and writes its numbers as JSON.

    python tests/benchmarks/plot_curve.py OUT.png RUN_FOLDER [RUN_FOLDER ...]

Left: held-out pass@1, the mean over the runs and their range. Right: tokens per completion on the same puzzles. The
numbers land beside the picture as OUT.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(out: Path, runs: list[Path]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    curves = [json.loads((run / "held_out.json").read_text()) for run in runs]
    steps = [point["step"] for point in curves[0]]
    if any([point["step"] for point in curve] != steps for curve in curves):
        sys.exit("error: the runs were not evaluated at the same steps")
    summary = {
        "seeds": [json.loads((run / "run.json").read_text())["seed"] for run in runs],
        "train_minutes": [
            round(json.loads((run / "train_results.json").read_text())["train_runtime"] / 60, 1) for run in runs
        ],
        "puzzles": curves[0][0]["puzzles"],
        "steps": steps,
        "pass@1": [[point["pass@1"] for point in curve] for curve in curves],
        "mean_tokens": [[point["mean_tokens"] for point in curve] for curve in curves],
    }
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axis, key, scale, label in (
        (axes[0], "pass@1", 100, "held-out pass@1 (%)"),
        (axes[1], "mean_tokens", 1, "tokens per completion"),
    ):
        values = [[scale * value for value in run] for run in summary[key]]
        columns = list(zip(*values, strict=True))
        axis.fill_between(steps, [min(c) for c in columns], [max(c) for c in columns], alpha=0.25, linewidth=0)
        axis.plot(steps, [sum(c) / len(c) for c in columns], marker="o", markersize=4)
        axis.set(xlabel="optimizer step", ylabel=label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.suptitle(f"mean and range of {len(runs)} seeds, {summary['puzzles']} held-out puzzles", fontsize=10)
    figure.savefig(out, dpi=150)
    out.with_suffix(".json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]])
