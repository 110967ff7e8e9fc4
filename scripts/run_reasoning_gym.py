"""GRPO on any task of reasoning-gym, in the manner of `run_r1_grpo.py`, which holds the method.

    accelerate launch --config_file configs/accelerate_configs/cpu.yaml \
        scripts/run_reasoning_gym.py --config receipes/grpo-tiny-leg-counting-cpu.yaml

    python -c "from reasoning_gym.factory import DATASETS; print(*DATASETS)"    # the names

A recipe names the task (`task: leg_counting`) and may configure it (`task_config: {max_animals: 4}`, the fields of its
configuration in reasoning-gym). With these in the place of `dataset_id_or_path` and `number_counts`, any of the recipes
is one for this script. Two rewards, as there: the format, 1 or 0, and the score that reasoning-gym's own scorer gives
the answer, from 0 to 1. Where a task gives partial credit, that is what is trained on, and evaluations show it as `mean
score`; solved, as in pass@1, is only what scores 1. A scorer is as strict as its author made it (that of
game_of_life_halting pays any answer), so look at what it pays for before you train.

Held out is a share of the questions, by a hash of their text. Samples, checkpoints, resuming, evaluation (`evaluate.py
RUN`) and report (`report.py RUN`) are those of every run. `probe.py --task_module mini_r1.reasoning_gym --config ...`
says beforehand whether it will learn.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from mini_r1.reasoning_gym import TASK, Puzzle
from mini_r1.responses import judge, response
from run_r1_grpo import format_reward_func, start_rank, train


def accuracy_reward_func(
    completions: list,
    question: list[str],
    task: list[str],
    config: list[str],
    number: list[int],
    prompts: list | None = None,
    **kwargs: Any,
) -> list[float]:
    """The score of the answer after the reasoning, by reasoning-gym's scorer of the task.

    Args:
        completions: one string or message list per completion of this rank's batch.
        question, task, config, number: the fields of each completion's puzzle.
        prompts: as for `format_reward_func`.

    Returns:
        One float per completion, 0.0 to 1.0.
    """
    prompts = prompts if prompts is not None else [None] * len(completions)
    puzzles = map(Puzzle, question, task, config, number)
    return [judge(TASK, response(c, p), q).reward for c, p, q in zip(completions, prompts, puzzles, strict=True)]


def main(argv: list[str]) -> None:
    train(argv, TASK, [format_reward_func, accuracy_reward_func], __doc__)


def settle_hashes() -> None:
    """Starts the program over with fixed hashes of strings unless they are fixed already.

    The questions of some tasks depend on them (word_ladder, ransom_note, isomorphic_strings, knight_swap and
    polynomial_multiplication of version 0.1.25), and all ranks, and a resumed run, must ask the same. Evaluations may
    ask others: which questions are held out depends on their text alone.
    """
    if os.environ.get("PYTHONHASHSEED", "random") == "random":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, sys.orig_argv)


if __name__ == "__main__":
    settle_hashes()
    start_rank(main)
