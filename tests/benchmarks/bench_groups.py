"""What dynamic sampling is worth: held-out success at equal training time, against drawing puzzles uniformly.

    python tests/benchmarks/bench_groups.py                 # four ways, three seeds: 40 minutes on two idle cores
    python tests/benchmarks/bench_groups.py --config receipes/other.yaml --seconds 60 120

Time is the sum of the optimizer steps, completions and refills included, without start-up and evaluations. Success at a
moment is interpolated between the evaluations around it. Prints a table and writes it as JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import itertools

from bench_learning import ROOT, run
from mini_r1.common import ArgumentParser, run_cli

WAYS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "refill": {"refill_rounds": 2},
    "choice": {"puzzle_choice": "success"},
    "both": {"puzzle_choice": "success", "refill_rounds": 2},
}


def main(argv: list[str]) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--config", default="receipes/grpo-tiny-countdown-3-numbers-cpu.yaml")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 43, 44])
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of each run")
    parser.add_argument("--seconds", nargs="+", type=int, default=[30, 60, 90], help="moments to compare")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench_groups", help="folder of the runs")
    args = parser.parse_args(argv)
    curves: dict[str, list[dict[str, list[tuple[float, float]]]]] = {way: [] for way in WAYS}
    for seed in args.seeds:
        for way, keys in WAYS.items():
            folder = args.out / f"{way}-{seed}"
            if not (folder / "trainer_state.json").is_file():
                settings = {**keys, "seed": seed, "max_steps": args.steps, "save_strategy": "no"}
                run(ROOT, folder, args.config, settings)
            curves[way].append(curves_of(folder))
    summary: dict[str, Any] = {"config": args.config, "seeds": args.seeds, "table": []}
    for kind in curves["uniform"][0]:
        for way, seeds in curves.items():
            row = {"kind": kind, "way": way}
            for moment in args.seconds:
                values = [at(curve[kind], moment) for curve in seeds]
                row[f"{moment} s"] = {"mean": statistics.mean(values), "seeds": values}
            summary["table"].append(row)
            shown = "   ".join(
                f"{moment} s: {row[f'{moment} s']['mean']:6.1%} "
                f"({', '.join(f'{value:.1%}' for value in row[f'{moment} s']['seeds'])})" for moment in args.seconds
            )  # fmt: skip
            print(f"{kind:<22} {way:<8} {shown}")
    (args.out / "bench_groups.json").write_text(json.dumps(summary, indent=2))


def curves_of(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Held-out success by kind of puzzle: (seconds of training, success) for each evaluation."""
    seconds, curves = 0.0, dict[str, list[tuple[float, float]]]()
    for entry in json.loads((folder / "trainer_state.json").read_text())["log_history"]:
        seconds += entry.get("step_time", 0.0)
        for key, value in entry.items():
            if key.startswith("eval_pass@1/"):
                curves.setdefault(key.removeprefix("eval_pass@1/"), []).append((seconds, value))
    return curves


def at(curve: list[tuple[float, float]], moment: float) -> float:
    """Success at this many seconds; NaN when the run was shorter."""
    for (begin, before), (end, after) in itertools.pairwise(curve):
        if begin <= moment <= end:
            return before + (after - before) * (moment - begin) / (end - begin)
    return float("nan")


if __name__ == "__main__":
    run_cli(main)
