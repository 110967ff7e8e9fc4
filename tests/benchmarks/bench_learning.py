"""Training time to 75 % held-out success on three numbers: this checkout, the code before it was made faster, TRL.

    python tests/benchmarks/bench_learning.py                     # three seeds, about 35 minutes on two idle cores
    python tests/benchmarks/bench_learning.py --seeds 42 --steps 20

Every contender takes the same recipe, puzzles, prompts, rewards and batch; the seeds are interleaved. TRL is its plain
`GRPOTrainer`. Time is the sum of the optimizer steps, completions included, without start-up and evaluations; the
moment is interpolated between two evaluations. A run that is there already is not made again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from comparison import ROOT, make_row, record
from mini_r1.common import ArgumentParser, run_cli

RECIPE = "receipes/grpo-tiny-countdown-3-numbers-cpu.yaml"
BEFORE = "d1a1bee"  # the last commit that trained at the old speed
RECIPE_BEFORE = "receipes/grpo-tiny-countdown-cpu.yaml"  # its name there
GOAL = 0.75
SOLVED = "eval_rewards/equation_reward_func/mean"


def main(argv: list[str]) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 43, 44])
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of each run")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench_learning", help="folder of the runs")
    parser.add_argument("--stock", type=int, help="train with TRL's own trainer and this seed, and nothing else")
    args = parser.parse_args(argv)
    if args.stock is not None:
        return train_stock(args.out, args.stock, args.steps)
    before = args.out / "before"
    if not before.exists():
        args.out.mkdir(parents=True, exist_ok=True)
        subprocess.run(["git", "worktree", "add", "-f", "--quiet", "--detach", before, BEFORE], cwd=ROOT, check=True)
    times: dict[str, list[float]] = {"TRL": [], "before": [], "here": []}
    for seed in args.seeds:
        for name, seconds in times.items():
            folder = args.out / f"{name}-{seed}"
            if not (folder / "trainer_state.json").is_file():
                if name == "TRL":
                    stock = [__file__, "--stock", str(seed), "--steps", str(args.steps), "--out", str(folder)]
                    start(stock, ROOT, folder)
                else:
                    settings = {"seed": seed, "max_steps": args.steps, "save_strategy": "no", "eval_on_start": False}
                    checkout, config = (before, RECIPE_BEFORE) if name == "before" else (ROOT, RECIPE)
                    run(checkout, folder, config, settings)
            seconds.append(seconds_to_goal(folder))
            print(f"seed {seed}, {name:<6} {seconds[-1]:6.1f} s to {GOAL:.0%}", flush=True)
    others = {"before": f"at {BEFORE}"}
    row = make_row(f"training to {GOAL:.0%} held-out", "s", {others.get(name, name): v for name, v in times.items()})
    record("learning", [row])


def run(checkout: Path, folder: Path, config: str, settings: dict[str, Any]) -> None:
    """Trains in a process of its own, as a user would; leaves `trainer_state.json` in the folder."""
    own = {"output_dir": folder, "completion_samples_dir": folder.with_name(f"{folder.name}-samples")}
    words = [f"--{key}={value}" for key, value in (settings | own).items()]
    start([str(checkout / "scripts" / "run_r1_grpo.py"), "--config", config, *words], checkout, folder)


def start(command: list[str], checkout: Path, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(checkout / "scripts")}
    with folder.with_suffix(".log").open("w") as log:
        subprocess.run([sys.executable, *command], cwd=checkout, env=environment, stdout=log, stderr=log, check=True)


def train_stock(folder: Path, seed: int, steps: int) -> None:
    """The recipe's run with TRL's own trainer."""
    from transformers import AutoTokenizer, set_seed
    from trl import GRPOTrainer

    from mini_r1.countdown import TASK
    from mini_r1.launching import flags
    from mini_r1.recipe.parsing import read_recipe
    from run_r1_grpo import equation_reward_func, format_reward_func, prompt_dataset

    own = flags(output_dir=folder, seed=seed, max_steps=steps, save_strategy="no", eval_on_start="false")
    recipe = read_recipe(["--config", str(ROOT / RECIPE), *own], TASK)
    tokenizer = AutoTokenizer.from_pretrained(recipe.model.model_name_or_path)
    puzzles = TASK.load(recipe.puzzles, True)
    set_seed(seed)
    recipe.training.model_init_kwargs = {"dtype": recipe.model.dtype}
    trainer = GRPOTrainer(
        model=recipe.model.model_name_or_path,
        reward_funcs=[format_reward_func, equation_reward_func],
        args=recipe.training,
        train_dataset=prompt_dataset(puzzles.train, tokenizer, recipe),
        eval_dataset=prompt_dataset(puzzles.held_out[: recipe.script.eval_puzzles], tokenizer, recipe),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_state()


def seconds_to_goal(folder: Path) -> float:
    """Seconds of training until held-out success first reaches the goal; infinite when it does not."""
    history: list[dict[str, Any]] = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    seconds, last = 0.0, (0.0, 0.0)  # the last evaluation: seconds, success
    for entry in history:
        seconds += entry.get("step_time", 0.0)
        if (success := entry.get(SOLVED)) is not None:
            if success >= GOAL:
                return last[0] + (seconds - last[0]) * (GOAL - last[1]) / (success - last[1])
            last = (seconds, success)
    return float("inf")


if __name__ == "__main__":
    run_cli(main)
