"""Reproduce DeepSeek-R1's "aha moment" with GRPO on the Countdown numbers game.

    accelerate launch --num_processes 3 --config_file configs/accelerate_configs/deepspeed_zero3.yaml \
        scripts/run_r1_grpo.py --config receipes/grpo-qwen-2.5-3b-deepseek-r1-countdown.yaml

    accelerate launch --config_file configs/accelerate_configs/cpu.yaml \
        scripts/run_r1_grpo.py --config receipes/grpo-tiny-countdown-cpu.yaml          # no GPU, five minutes

    python scripts/run_r1_grpo.py --config receipes/grpo-qwen-2.5-3b-deepseek-r1-countdown.yaml \
        --plan_for 4x80 --plan_with configs/accelerate_configs/deepspeed_zero3.yaml    # prints what it needs

The method, as it runs here. Each optimizer step trains on B completions: P puzzles and, of each, a group of G sampled
completions, B = P x G over all ranks (G is `num_generations`; 24 x 8 in the article's run, 16 x 8 in the tiny one).
Two rules score every completion, each with 1 or 0 and independently of the other: is it
`<think>...</think><answer>...</answer>` (format), and is the answer an expression over + - * / that uses each
number exactly once and equals the target (equation)? A completion's advantage is its summed reward minus the mean of
its group, divided by the group's standard deviation: a group whose rewards are all equal teaches nothing. The policy
gradient, clipped as in PPO, raises the probability of the tokens of completions that did better than their siblings;
with `beta` above 0 a KL term holds the policy near the model it began with. No value network, no reward model, no
examples of reasoning: reasoning that leads to reward is reinforced. Nothing is paid for length, for words of
reflection, for using a part of the numbers, for coming close, or for an answer inside the reasoning.

Completions come from transformers on each rank, as in the CPU command above, or with `use_vllm: true` from vLLM: a
server that this run starts on GPUs that no rank trains on (`vllm_mode: server`, as in the first command, on the fourth
GPU), one that runs elsewhere (`vllm_server_base_url`), or an engine inside each rank (`colocate`). The run folder
(`output_dir`) keeps checkpoints, samples and logs. After a kill the same command resumes from the newest complete
checkpoint, from step 0 where there is none, and ends bit for bit as an undisturbed run on the same machine would. Once
everything is written, the same command only says that the run is finished.

Departures from the article (Mini-R1, January 2025; README lists all):
  1. Answers are checked by an exact parser with reason codes instead of a filtered `eval`.
  2. The answer that is graded is the one after the reasoning.
  3. A share of the puzzles, fixed by a hash of numbers and target, is never trained on and measures success.
  4. Micro-batches hold rows of like length, trimmed to their own; rows without advantage skip the backward pass. Loss
     and gradients stay the same. On the CPU, completions that are finished leave the batch.
The rest is TRL's GRPOTrainer, and every hyperparameter stands in the recipe.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from mini_r1.common import run_cli
from mini_r1.countdown import TASK  # for another task, change this line alone
from mini_r1.generation.prompts import prompt_text
from mini_r1.recipe import Recipe
from mini_r1.responses import has_format, judge, response
from mini_r1.task import Task

logger = logging.getLogger(__name__)

# --------------------------------------------------------------------------------------------------------------------
# Prompt
# --------------------------------------------------------------------------------------------------------------------

# The assistant's turn is begun for the model, so that it reasons before anything else.
ASSISTANT_PREFILL = "<think>"


def build_prompt(
    tokenizer: Any, puzzle: Any, task: Task = TASK, chat_template_kwargs: dict[str, Any] | None = None
) -> str:
    """The text that the model completes: system and user turns and the beginning of the assistant's.

    Prompts are strings, not messages, because TRL would close the assistant's turn and open a new one.

    Args:
        tokenizer: a transformers tokenizer; without a chat template (base models, None) the prompt is plain text.
        puzzle: what the prompt asks; its fields fill the task's user prompt.
        task: whose prompt it is.
        chat_template_kwargs: the recipe's, variables for the chat template.
    """
    return prompt_text(tokenizer, task.system_prompt, task.question(puzzle), ASSISTANT_PREFILL, chat_template_kwargs)


def prompt_dataset(puzzles: Sequence[Any], tokenizer: Any, recipe: Recipe) -> Any:
    """Puzzles as a data set: `prompt` and the puzzle's fields. Over-long prompts are dropped, and counted."""
    from datasets import Dataset

    max_prompt_tokens, kwargs = recipe.script.max_prompt_tokens, recipe.training.chat_template_kwargs
    prompts = [build_prompt(tokenizer, puzzle, recipe.task, kwargs) for puzzle in puzzles]
    fits = [len(ids) <= max_prompt_tokens for ids in tokenizer(prompts)["input_ids"]] if prompts else []
    if dropped := fits.count(False):
        logger.warning("%d of %d prompts exceed max_prompt_tokens (%d): dropped", dropped, len(fits), max_prompt_tokens)
    kept = [(prompt, puzzle) for prompt, puzzle, fit in zip(prompts, puzzles, fits, strict=True) if fit]
    columns = {field: [getattr(puzzle, field) for _, puzzle in kept] for field in recipe.task.puzzle._fields}
    return Dataset.from_dict({"prompt": [prompt for prompt, _ in kept], **columns})


# --------------------------------------------------------------------------------------------------------------------
# Rewards
# --------------------------------------------------------------------------------------------------------------------


def format_reward_func(completions: list, prompts: list | None = None, **kwargs: Any) -> list[float]:
    """1.0 where the response is `<think>…</think>` and then `<answer>…</answer>`, both non-empty, and nothing else.

    Args:
        completions: one string or message list per completion of this rank's batch.
        prompts: the prompt of each completion; tells whether `<think>` was prefilled (assumed when missing).

    Returns:
        One float per completion, 0.0 or 1.0.

    Example:
        >>> format_reward_func(["2*3 is 6.</think>\\n<answer>2*3</answer>", "6"])
        [1.0, 0.0]
    """
    prompts = prompts if prompts is not None else [None] * len(completions)
    return [float(has_format(response(c, p))) for c, p in zip(completions, prompts, strict=True)]


def equation_reward_func(completions: list, prompts: list | None = None, **columns: Any) -> list[float]:
    """1.0 where the answer after the reasoning is right: each number used exactly once, and the target met exactly.

    Args:
        completions: one string or message list per completion of this rank's batch.
        prompts: as for `format_reward_func`.
        columns: the fields of each completion's puzzle, as lists: here `nums` and `target`. Others are left alone.

    Returns:
        One float per completion, 0.0 or 1.0; between them where a task gives partial credit. The reason behind it is
        `responses.judge`'s reason code.

    Example:
        >>> equation_reward_func(["</think><answer>2*3</answer>"], target=[6], nums=[[3, 2]])
        [1.0]
    """
    prompts = prompts if prompts is not None else [None] * len(completions)
    puzzles = map(TASK.puzzle, *(columns[field] for field in TASK.puzzle._fields))
    return [
        judge(TASK, response(c, p), puzzle).reward for c, p, puzzle in zip(completions, prompts, puzzles, strict=True)
    ]


# --------------------------------------------------------------------------------------------------------------------
# Main
# --------------------------------------------------------------------------------------------------------------------


def main(argv: list[str]) -> None:
    train(argv, TASK, [format_reward_func, equation_reward_func], __doc__)


def train(argv: list[str], task: Task, rewards: list[Callable[..., list[float]]], description: str | None) -> None:
    """Recipe -> puzzles -> prompts -> trainer -> run folder; `description` is what `--help` begins with."""
    from mini_r1.recipe.checks import check_rewards
    from mini_r1.recipe.parsing import read_recipe

    # ---- recipe and plan -------------------------------------------------------------------------------------------
    recipe = read_recipe(argv, task, description)
    check_rewards(recipe, rewards)

    from transformers import set_seed
    from trl import get_peft_config, get_quantization_config

    from mini_r1.training import start
    from mini_r1.training.callbacks import ScoredCompletions

    resume = start.find_resume(recipe)  # the newest complete checkpoint in output_dir, None if there is none yet
    if resume is not None and resume.is_finished:
        return start.say_finished(recipe, resume)
    plan = start.make_plan(recipe, resume)  # who trains and generates where, batch, memory, disk: checked, and said

    # ---- tokenizer and puzzles -------------------------------------------------------------------------------------
    tokenizer = start.load_tokenizer(recipe)  # one that can pad, end and render a prompt
    puzzles = start.load_puzzles(recipe, plan)  # training and held-out ones; None: a dry run (also plan_for) ends here
    if puzzles is None:
        return
    set_seed(recipe.training.seed)

    with start.vllm_server(recipe, plan) as server:  # in server mode; it loads while we do, and ends with us
        with start.setting_up(recipe):  # a library's error is one line here, its traceback a file
            training = prompt_dataset(puzzles.train, tokenizer, recipe)
            held_out = prompt_dataset(puzzles.held_out[: recipe.script.eval_puzzles], tokenizer, recipe)
            held_out = start.whole_batches(recipe, plan, training, held_out)

            # ---- trainer -------------------------------------------------------------------------------------------
            run = start.Run(recipe, resume, puzzles, argv)
            uploads = start.uploads(recipe, plan, run)
            trainer = start.make_trainer(
                recipe,
                plan,
                run,
                server,
                uploads,
                model=recipe.model.model_name_or_path,
                reward_funcs=rewards,
                train_dataset=training,
                eval_dataset=held_out,
                processing_class=tokenizer,
                peft_config=get_peft_config(recipe.model),
                quantization_config=get_quantization_config(recipe.model),
                on_scored=ScoredCompletions(task, run.samples),  # logs verdicts and signs of search, keeps samples
            )

        # ---- train, save -------------------------------------------------------------------------------------------
        run.open()
        with uploads:  # to the Hub, beside the training, where the recipe says push_to_hub
            with start.setting_up(recipe, trainer):  # until its first step is made
                result = trainer.train()  # if the server is lost or a guard trips, it saves the last step, then raises
            run.close(trainer, result.metrics)  # final model, held-out curve, card, what to read next


def start_rank(main: Callable[[list[str]], None]) -> NoReturn:
    """Runs a training script's `main` as one of the processes that `accelerate launch` starts, and ends with it."""
    from mini_r1 import hub
    from mini_r1.generation.guard import die_with_launcher

    die_with_launcher()  # no rank outlives `accelerate launch`
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the data loader forks after the tokenizer was used
    run_cli(main, abandon=hub.is_uploading)


if __name__ == "__main__":
    start_rank(main)
