"""Trackers that show tables (trackio, wandb): TRL's table of completions, with the verdicts that the scoring adds.

The curves are transformers' own callbacks; TRL logs the table beside them where `log_completions` is set.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

from mini_r1.common import is_main_process

SHOW_TABLES = {"trackio", "wandb"}
PROJECT = "mini-r1"


def settle_trackers(training: Any, run_name: str) -> None:
    """Gives the run its name in the trackers, and turns the table of completions on where they show one.

    A recipe that says `log_completions: true` gets every completion in it, and TRL's print of them all. Otherwise the
    table has one completion per puzzle, and the console stays as it is.

    Args:
        training: the recipe's GRPOConfig; changed.
        run_name: what the run folder calls the run. A resumed run keeps it, so that its curves continue.
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
        import wandb

        wandb.init(  # transformers takes the run that there is; of its own it knows neither id nor folder
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=training.run_name,
            id=os.environ.get("WANDB_RUN_ID", hashlib.sha256(run_name.encode()).hexdigest()[:16]),
            dir=os.environ.get("WANDB_DIR", training.output_dir),
            resume="allow",
        )
