"""How long the training script takes until it is of use, on the tiny recipe: seconds from its start.

    python tests/benchmarks/bench_startup.py               # about three minutes

The first step includes its completions; no evaluations, no checkpoints. There is nothing to compare with.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from comparison import ROOT, compare, record

SCRIPT = [sys.executable, "scripts/run_r1_grpo.py"]
RECIPE = ["--config", "receipes/grpo-tiny-countdown-cpu.yaml"]
ONE_STEP = ["--max_steps", "1", "--eval_strategy", "no", "--eval_on_start", "false", "--save_strategy", "no"]


def ends(*arguments: str) -> float:
    subprocess.run([*SCRIPT, *arguments], cwd=ROOT, check=True, capture_output=True)
    return 1.0


def makes_a_step(folder: Path) -> float:
    """Returns when the line of the first step is there; what the script does to end is not measured."""
    command = [*SCRIPT, *RECIPE, *ONE_STEP, "--output_dir", str(folder)]
    at_once = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=at_once, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        reached = any(re.search(r"step +1/1 ", line) for line in process.stdout or ())
        process.kill()
    if not reached:
        raise RuntimeError(f"it made no step: {shlex.join(command)}")
    return 1.0


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = {
            "--help": lambda round_: ends("--help"),
            "dry run": lambda round_: ends(*RECIPE, "--dry_run", "true", "--output_dir", f"{folder}/dry"),
            "to the end of the first step": lambda round_: makes_a_step(Path(folder, str(round_))),
        }
        record("startup", [compare(f"start-up: {what}", "s", {"here": run}, rounds=3) for what, run in work.items()])


if __name__ == "__main__":
    main()
