"""Small runs of the real script, as `check_gpu.py` and the tests launch them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TINY_RECIPE = ROOT / "receipes" / "grpo-tiny-countdown-cpu.yaml"
TINY_MODEL = ROOT / "configs" / "tiny-countdown"
ACCELERATE_CONFIGS = ROOT / "configs" / "accelerate_configs"

# The tiny recipe cut down to a few seconds of work.
QUICK = {
    "max_steps": 2,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_generations": 4,
    "max_completion_length": 32,
    "dataset_rows": 300,
    "eval_puzzles": 16,
    "per_device_eval_batch_size": 16,
    "eval_steps": 2,
    "save_steps": 1,
    "sample_share": 1.0,
}


def flags(**values: object) -> list[str]:
    """`max_steps=2` -> `["--max_steps", "2"]`."""
    return [part for key, value in values.items() for part in (f"--{key}", str(value))]


def launch_command(
    config: str,
    keys: Mapping[str, object],
    *,
    launch_flags: Sequence[str] = (),
    script: Sequence[str] = ("scripts/run_r1_grpo.py",),
    recipe: Path = TINY_RECIPE,
    small: bool = False,
) -> list[str]:
    """The command line of a run, to be started from the repository's root.

    Args:
        config: name of one of accelerate's files in `configs/accelerate_configs`.
        keys: values that override the recipe's.
        launch_flags: for accelerate.
        script: what accelerate starts.
        recipe: the recipe.
        small: whether to take the variant of `config` in `small/`, if there is one: ZeRO-3 partitions small models
            too, which by DeepSpeed's defaults stay whole in a forward pass, so that faults would go unseen.
    """
    path = ACCELERATE_CONFIGS / "small" / config
    path = path if small and path.exists() else ACCELERATE_CONFIGS / config
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(path)]
    return [*launch, *launch_flags, *script, "--config", str(recipe), *flags(**keys)]
