"""Supervised cold start on reasoning-gym's `leg_counting`, so that a tiny model can be trained on it with GRPO.

    python scripts/run_leg_counting_cold_start.py --config receipes/sft-tiny-leg-counting.yaml

The embedded tiny model knows one prompt only, so a task of reasoning-gym needs a model that has seen its questions.
Tokenizer, model, optimizer and training are those of `run_cold_start.py`; what is ours is the chain of reasoning that
each question gets, a line for every animal and the sum so far:

    2 spiders: 2*8=16
    3 cows: 3*6=18, 16+18=34
    wait, 3 cows: 3*4=12, 16+12=28
    1 snake: 1*0=0, 28+0=28
    done.

Some chains give up half-way and answer with the sum so far. Some *slip*, with another animal's legs, and of these some
notice it at once, as here. All of this ends up in the policy; which of it pays is left for reinforcement learning.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mini_r1.common import key, run_cli
from mini_r1.reasoning_gym import SYSTEM_PROMPT, TASK, USER_PROMPT, GymArguments, entry
from mini_r1.recipe.checks import check_writable, require
from mini_r1.recipe.parsing import parse
from mini_r1.run_folder.folder import set_up_logging
from run_cold_start import TinyModelArguments, check_training_values, train


@dataclass
class ChainArguments(TinyModelArguments):
    """What the recipe says beyond TRL's SFTConfig and the task's own keys; `dataset_seed` also seeds the chains."""

    give_up_share: float = key(0.6, "Share of chains that lose heart.")
    give_up_rate: float = key(0.5, "Chance that those give up before each further animal.")
    slip_rate: float = key(0.3, "Chance of a wrong number of legs, for each animal.")
    notice_rate: float = key(0.4, "Chance that a slip is noticed at once.")


def check_values(values: Namespace) -> None:
    """Refuses values that cannot work. Raises RecipeError, which names the key."""
    for share in ("give_up_share", "give_up_rate", "slip_rate", "notice_rate"):
        require(0 <= getattr(values, share) <= 1, share, "between 0 and 1", getattr(values, share))
    require(values.task == "leg_counting", "task", "leg_counting, whose chains are written here", values.task)
    GymArguments.check(values)  # type: ignore[arg-type]  # the same keys
    check_training_values(values)


def write_chain(
    animals: Mapping[str, int], legs: Mapping[str, int], rng: np.random.Generator, how: ChainArguments
) -> str:
    """A completion for one question, starting right after the prompt's `<think>`.

    Args:
        animals: how many there are of each, in the question's order.
        legs: how many each kind has.
        rng: makes the draws.
        how: with which chances it gives up and slips.
    """
    total, hesitant = 0, rng.random() < how.give_up_share
    lines: list[str] = []

    def line(animal: str, each: int) -> str:
        count = animals[animal]
        added = f", {total}+{count * each}={total + count * each}" if lines else ""
        return f"{count} {animal}{'s' * (count > 1)}: {count}*{each}={count * each}{added}"

    for animal, count in animals.items():
        if lines and hesitant and rng.random() < how.give_up_rate:
            lines.append("I give up.")
            break
        each = legs[animal]
        if rng.random() < how.slip_rate:
            slip = int(rng.choice(sorted({*legs.values()} - {each})))
            lines.append(line(animal, slip))
            if rng.random() < how.notice_rate:
                lines.append(f"wait, {line(animal, each)}")
            else:
                each = slip
        else:
            lines.append(line(animal, each))
        total += count * each
    else:
        lines.append("done.")
    body = "\n".join(lines)
    return f"\n{body}\n</think>\n<answer>{total}</answer>"


def fixed_parts(questions: Sequence[str]) -> list[str]:
    """What all prompts have in common, before and after the part that changes; each becomes one token."""
    users = [USER_PROMPT.format(question=question) for question in questions]
    backwards = [user[::-1] for user in users]
    return [os.path.commonprefix(users), os.path.commonprefix(backwards)[::-1]]  # noqa: RUF071  characters are meant


def main(argv: list[str]) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    own = (ChainArguments, GymArguments)
    args, gym_args, training_args = parse(argv, __doc__, own, ("SFTConfig",), check_values)
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    set_up_logging(training_args.output_dir)
    check_writable(training_args.output_dir)
    split, seed = TASK.load(gym_args, True), gym_args.dataset_seed
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(split.train), size=training_args.max_steps * training_args.per_device_train_batch_size)
    puzzles = [split.train[i] for i in drawn]
    examples = [(puzzle, write_chain(entry(puzzle)["metadata"]["animals"], ANIMALS, rng, args)) for puzzle in puzzles]
    texts = [text for puzzle, chain in examples[-2000:] for text in (puzzle.question, chain)]
    phrases = [SYSTEM_PROMPT, *fixed_parts([puzzle.question for puzzle in puzzles])]
    train(args, training_args, examples, split.held_out, seed, texts, TASK, phrases)


if __name__ == "__main__":
    run_cli(main)
