"""Is the probe right? Its verdicts on ten tiny recipes beside what twenty steps of each then did.

    python tests/benchmarks/bench_probe.py                      # about 40 minutes on two idle cores
    python tests/benchmarks/bench_probe.py --only untrained

A run learnt if its held-out success rose by MUCH or more and the 95 % intervals before and after do not overlap; it
learnt slowly if it rose by less and they do not overlap; else it did not learn. Prints a table and writes it as JSON.
A run that is there already is not made again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from bench_learning import ROOT, run
from mini_r1.common import ArgumentParser, run_cli
from mini_r1.run_folder.record import read_run
from probe import WORDS

MUCH = 0.1
TINY, THREE = (f"receipes/grpo-tiny-countdown-{name}cpu.yaml" for name in ("", "3-numbers-"))
# Name, recipe and changed keys; {untrained} and {trained} are models that are made on the way.
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("the tiny recipe", TINY, {}),
    ("three numbers", THREE, {}),
    ("pairs: groups of two", TINY, {"num_generations": 2}),
    ("nearly greedy", TINY, {"temperature": 0.05}),
    ("hot", TINY, {"temperature": 2.0}),
    ("two puzzles a step", TINY, {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1}),
    ("six numbers", TINY, {"number_counts": 6}),
    ("no room to answer", TINY, {"max_completion_length": 16}),
    ("untrained", TINY, {"model_name_or_path": "{untrained}", "max_completion_length": 64}),
    ("trained already", TINY, {"model_name_or_path": "{trained}", "number_counts": 3}),
]


def main(argv: list[str]) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of each run")
    parser.add_argument("--only", help="this case")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench_probe", help="folder of the runs")
    args = parser.parse_args(argv)
    models = {"untrained": args.out / "untrained-model", "trained": args.out / "the-tiny-recipe"}
    make_untrained(models["untrained"])
    print("| what | the probe | groups that teach, a step | seen | held-out pass@1 |\n|---|---|---|---|---|")
    rows = []
    for name, recipe, keys in CASES:
        if args.only not in (None, name):
            continue
        settings = {key: str(value).format(**models) for key, value in keys.items()}
        said, why = predict(recipe, settings)
        folder = args.out / name.replace(" ", "-").replace(":", "")
        if not (folder / "trainer_state.json").is_file():
            length = {"max_steps": args.steps, "eval_steps": args.steps, "save_strategy": "no"}
            no_guard = {"guard_zero_spread_steps": 0}  # what learns nothing goes on to its last evaluation, too
            run(ROOT, folder, recipe, {**settings, **length, **no_guard})
        verdict, before, after = seen(folder)
        rows.append({"what": name, "said": said, "why": why, "seen": verdict, "before": before, "after": after})
        print(f"| {name} | {said} | {why} | {verdict} | {before:.0%} → {after:.0%} |", flush=True)
    (args.out / "bench_probe.json").write_text(json.dumps(rows, indent=2) + "\n")


def make_untrained(folder: Path) -> None:
    """The tiny model with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

    set_seed(0)
    tiny = ROOT / "configs" / "tiny-countdown"
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)


def predict(recipe: str, settings: dict[str, str]) -> tuple[str, str]:
    """The probe's verdict and its reason."""
    words = [f"--{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "scripts/probe.py", "--backend", "transformers", "--config", recipe, *words]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    (line,) = (line for line in printed.splitlines() if line.startswith(tuple(WORDS.values())))
    said, _, why = line.partition(". ")
    return said, why.removesuffix(".")


def seen(folder: Path) -> tuple[str, float, float]:
    """What the run did, and its held-out success before and after."""
    first, *_, last = read_run(folder).held_out
    before, after = first["pass@1"], last["pass@1"]
    rose = "learnt" if after - before >= MUCH else "learnt slowly"
    return rose if last["low"] > first["high"] else "did not learn", before, after


if __name__ == "__main__":
    run_cli(main)
