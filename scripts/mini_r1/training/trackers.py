"""Trackers that show tables (trackio, wandb): TRL's table of completions, with the verdicts that the scoring adds.

The curves are transformers' own callbacks; TRL logs the table beside them where `log_completions` is set.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

from mini_r1.common import RunError, is_main_process, one_line

SHOW_TABLES = {"trackio", "wandb"}
PROJECT = "mini-r1"


def settle_trackers(training: Any, run_name: str) -> None:
    """Gives the run its name in the trackers, and turns the table of completions on where they show one.

    A recipe that says `log_completions: true` gets every completion in it, and TRL's print of them all. Otherwise the
    table has one completion per puzzle, and the console stays as it is.

    Args:
        training: the recipe's GRPOConfig; changed.
        run_name: what the run folder calls the run. A resumed run keeps it, so that its curves continue.

    Raises:
        RunError: when wandb's server does not take the run.
    """
    if not SHOW_TABLES & set(training.report_to):
        return
    training.run_name = training.run_name or run_name
    if training.project == "huggingface":  # transformers' default
        training.project = PROJECT
    if not training.log_completions:
        training.log_completions = training.log_unique_prompts = True
        training.num_completions_to_print = 0
    if "wandb" in training.report_to and is_main_process():
        start_wandb(training, run_name)


def start_wandb(training: Any, run_name: str) -> None:
    """Starts or continues the run in wandb; transformers takes the one that there is, and knows neither id nor folder.

    Raises:
        RunError: when wandb's server does not take it.
    """
    import wandb

    try:
        wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=training.run_name,
            id=os.environ.get("WANDB_RUN_ID", hashlib.sha256(run_name.encode()).hexdigest()[:16]),
            dir=os.environ.get("WANDB_DIR", training.output_dir),
            resume="allow",
        )
    except wandb.Error as error:
        change = "check network and key, or keep the run on this machine with `env: {WANDB_MODE: offline}`"
        raise RunError(f"report_to: wandb cannot start: {one_line(error)}: {change}") from error
