"""Supervised cold start: teach a tiny model to search, so that reinforcement learning has something to improve.

    python scripts/run_cold_start.py --config receipes/sft-tiny-countdown.yaml

A model of about a million parameters, built from scratch here, cannot discover by itself what a 3 B instruct model
already half knows: two-digit arithmetic, the format, and the habit of trying again. This script trains it with TRL's
`SFTTrainer` on search traces (`mini_r1.countdown.traces`) over generated puzzles, behind exactly the prompt of
`run_r1_grpo.py`. Three things are ours: the traces, the order in which they come, and what makes arithmetic cheap.

1. `persistent_first_share` of the training shows traces that search until they find a solution. They are long, hence
   cheap practice in arithmetic.
2. The rest shows the mixture that the policy is to start from: most traces give up too early with a wrong answer.
3. Numbers of two and three digits are single tokens, whose embeddings start on circles (`place_numbers`), and matrices
   are trained with Muon (`mini_r1.training.muon`).

Held-out puzzles of the canonical split are never shown. At the end the model samples an answer to each of
`eval_puzzles` of them at temperature 1; the result is printed and written next to the weights (`cold_start.json`). The
same command resumes a stopped training from its newest checkpoint.
"""

from __future__ import annotations

import json
import os
import re
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mini_r1.common import DataError, key, run_cli
from mini_r1.countdown import SYSTEM_PROMPT, TASK, USER_PROMPT
from mini_r1.countdown.dataset import PuzzleArguments
from mini_r1.countdown.puzzle import Puzzle
from mini_r1.countdown.traces import MAX_VALUE, find_ways, needs_products, write_trace
from mini_r1.generation.sampling import Sampling, generate
from mini_r1.intervals import wilson_interval
from mini_r1.recipe.checks import check_writable, require, require_at_least
from mini_r1.recipe.parsing import parse
from mini_r1.responses import judge, response, thinking
from mini_r1.run_folder import TRAINER_STATE
from mini_r1.run_folder.folder import set_up_logging
from mini_r1.run_folder.manifest import checkpoints_in
from mini_r1.signs import count_attempts
from mini_r1.task import Task
from run_r1_grpo import build_prompt

# ChatML, as Qwen writes it: the tiny model sees the same turns as the article's 3 B model.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# One token each, but ordinary text: they survive decoding with special tokens skipped.
TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
# So are the sentences of the prompt that never change: 34 tokens a prompt instead of 114, which nearly doubles the
# speed of everything that is done with this model.
PHRASES = [SYSTEM_PROMPT, *re.split(r"\{\w+\}", USER_PROMPT)]
# And so is every number of more than one digit that a trace may write.
NUMBERS = [str(n) for n in range(10, MAX_VALUE + 1)]
# Circles on which numbers lie (see `place_numbers`): n turns once in PERIODS, and its logarithm once in LOG2_PERIODS.
PERIODS = (2, 4, 5, 10, 20, 40, 100, 200, 400)
LOG2_PERIODS = (1, 2, 4, 8, 16)
CIRCLE_RADIUS = 0.3  # among weights of standard deviation 0.02; 0.1 learnt slower, and 0.02 slower still


@dataclass
class TinyModelArguments:
    """The model that a cold start makes, and on how many puzzles it is measured."""

    eval_puzzles: int = key(1024, "Held-out puzzles to sample an answer for at the end.")
    model_name_or_path: str | None = key(None, "Train this model, not one from scratch.")
    vocab_size: int = key(576, "Largest size of the byte-level BPE vocabulary.")
    hidden_size: int = key(128, "Width of the model.")
    intermediate_size: int = key(384, "Width of its feed-forward layers.")
    num_hidden_layers: int = key(5, "Depth of the model.")
    num_attention_heads: int = key(4, "Attention heads per layer.")


@dataclass
class ColdStartArguments(TinyModelArguments):
    """What the recipe says beyond TRL's SFTConfig and the task's own keys; `dataset_seed` also seeds the traces."""

    persistent_first_share: float = key(0.75, "Share of training that never gives up.")
    products_share: float = key(0.4, "Share of puzzles that need * or /.")
    hit_rate: float = key(0.25, "Chance that an attempt is a solution.")
    give_up_share: float = key(0.8, "Share of later traces that lose heart.")
    give_up_rate: float = key(0.8, "Chance that those give up after a failed attempt.")
    max_attempts: int = key(16, "Attempts after which any trace gives up.")


def check_values(values: Namespace) -> None:
    """Refuses values that cannot work. Raises RecipeError, which names the key."""
    for share in ("persistent_first_share", "products_share", "hit_rate", "give_up_share", "give_up_rate"):
        require(0 <= getattr(values, share) <= 1, share, "between 0 and 1", getattr(values, share))
    require_at_least(values, 1, "max_attempts")
    counts = values.number_counts or []
    require(max(counts, default=4) <= 4, "number_counts", "at most 4, more have too many attempts to list", counts)
    check_training_values(values)


def check_training_values(values: Namespace) -> None:
    """The same for what all cold starts have. Raises RecipeError, which names the key."""
    require_at_least(values, 1, *"max_steps dataset_rows held_out_puzzles eval_puzzles".split())
    require_at_least(values, 500, "vocab_size")  # 256 bytes, the numbers, the tags and the phrases
    accumulation = values.gradient_accumulation_steps
    require(accumulation == 1, "gradient_accumulation_steps", "1, the data are ordered for it", accumulation)


# --------------------------------------------------------------------------------------------------------------------
# Traces
# --------------------------------------------------------------------------------------------------------------------


def write_traces(
    puzzles: Sequence[Puzzle], count: int, seed: int, args: ColdStartArguments
) -> list[tuple[Puzzle, str]]:
    """`count` traces over the puzzles, in the order of the curriculum; a puzzle may come again with another."""
    rng = np.random.default_rng(seed)
    kinds: tuple[list[Puzzle], list[Puzzle]] = ([], [])  # that + and - solve, that need products or quotients
    for puzzle in puzzles:
        kinds[needs_products(find_ways(puzzle.nums), puzzle.target)].append(puzzle)
    persistent = int(args.persistent_first_share * count)
    examples: list[tuple[Puzzle, str]] = []
    while len(examples) < count:
        kind = kinds[rng.random() < args.products_share]
        if not kind:
            raise DataError("of these puzzles none needs * or /, or all do: raise dataset_rows, or set products_share")
        puzzle = kind[int(rng.integers(len(kind)))]
        share = 0.0 if len(examples) < persistent else args.give_up_share
        trace = write_trace(
            find_ways(puzzle.nums),
            puzzle.target,
            rng,
            give_up_share=share,
            give_up_rate=args.give_up_rate,
            max_attempts=args.max_attempts,
            hit_rate=args.hit_rate,
        )
        if trace is not None:
            examples.append((puzzle, trace))
    return examples


def order_examples(lengths: Sequence[int], batch_size: int, seed: int, window: int = 50) -> list[int]:
    """Indices that keep the curriculum's order but put examples of like length into one batch.

    Within windows of `window` batches examples are sorted by length and cut into batches, whose order is shuffled.
    """
    rng = np.random.default_rng(seed)
    order: list[int] = []
    for start in range(0, len(lengths), window * batch_size):
        indices = sorted(range(start, min(start + window * batch_size, len(lengths))), key=lengths.__getitem__)
        batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
        order.extend(index for b in rng.permutation(len(batches)) for index in batches[b])
    return order


# --------------------------------------------------------------------------------------------------------------------
# Tokenizer and model
# --------------------------------------------------------------------------------------------------------------------


def make_tokenizer(texts: Iterable[str], vocab_size: int, phrases: Sequence[str] = PHRASES) -> Any:
    """A byte-level BPE with the phrases and numbers up to MAX_VALUE as tokens, trained on `texts` with Qwen2's own
    pre-tokenizer.

    transformers rebuilds the pre-tokenizer of a `qwen2` checkpoint from its class, so a tokenizer trained with any
    other one would silently split text differently after `AutoTokenizer.from_pretrained`.
    """
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    texts_as_tokens = [*TAGS, *phrases, *NUMBERS]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = Qwen2Tokenizer()._tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(texts_as_tokens) - 3,  # 3: the special tokens
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    model = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=1024,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in texts_as_tokens])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(args: TinyModelArguments, tokenizer: Any) -> Any:
    """A freshly initialised Qwen2-architecture model."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden_size,
        intermediate_size=args.intermediate_size,
        num_hidden_layers=args.num_hidden_layers,
        num_attention_heads=args.num_attention_heads,
        num_key_value_heads=args.num_attention_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    place_numbers(model, tokenizer)
    return model


def place_numbers(model: Any, tokenizer: Any) -> None:
    """Starts the embeddings of the numbers on circles, so that sums and products are turns to be found, not learnt.

    On a circle of period P the number n is the angle n / P of a turn: its last digit for P = 10, its size for P = 400.
    Adding numbers adds angles. On the circles of logarithms multiplying does. Trained transformers find such circles by
    themselves, late (Nanda et al., 2023; Kantamneni and Tegmark, 2025). Nothing keeps the numbers there.
    """
    import torch

    table = model.get_input_embeddings().weight
    numbers = torch.arange(1, MAX_VALUE + 1)
    ids = [tokenizer.convert_tokens_to_ids(str(n)) for n in numbers.tolist()]
    turns = torch.stack([numbers / p for p in PERIODS] + [numbers.log2() / p for p in LOG2_PERIODS], dim=1)
    circles = torch.cat([(2 * torch.pi * turns).cos(), (2 * torch.pi * turns).sin()], dim=1)
    circles = circles[:, : table.shape[1]] * CIRCLE_RADIUS
    with torch.no_grad():
        table[ids, : circles.shape[1]] = circles


# --------------------------------------------------------------------------------------------------------------------
# Held-out success
# --------------------------------------------------------------------------------------------------------------------

_STEP = re.compile(r"\b(\d{1,9})([-+*/])(\d{1,9})=(\d{1,9})\b")


def check_arithmetic(texts: Iterable[str]) -> dict[str, str]:
    """How many of the steps written in the traces' notation are right, for each operation: symbol -> `right of all`."""
    counts: Counter[tuple[str, bool]] = Counter()
    for left, symbol, right, result in _STEP.findall("\n".join(texts)):
        a, b, c = int(left), int(right), int(result)
        is_right = {"+": a + b == c, "-": a - b == c, "*": a * b == c, "/": b != 0 and a == b * c}[symbol]
        counts[symbol, is_right] += 1
    return {sign: f"{counts[sign, True]} of {counts[sign, True] + counts[sign, False]}" for sign in "+-*/"}


def sample_held_out(
    model: Any, tokenizer: Any, puzzles: Sequence[Any], max_tokens: int, task: Task = TASK
) -> dict[str, Any]:
    """One sampled answer per puzzle at temperature 1: pass@1, reasons, lengths, and how sound the arithmetic is."""
    prompts = [build_prompt(tokenizer, puzzle, task) for puzzle in puzzles]
    sampling = Sampling(max_tokens=max_tokens, batch_size=128)
    drawn = [one for (one,) in generate(model, tokenizer, prompts, sampling, [tokenizer.eos_token_id])]
    texts = [response(one.text) for one in drawn]
    reasons = Counter(judge(task, text, puzzle).reason.value for text, puzzle in zip(texts, puzzles, strict=True))
    low, high = wilson_interval(reasons["correct"], len(puzzles))
    for puzzle, text in list(zip(puzzles, texts, strict=True))[:5]:
        print(f"\n{puzzle}\n{text}")
    return {
        "puzzles": len(puzzles),
        "pass@1": round(reasons["correct"] / len(puzzles), 4),
        "pass@1_95%_interval": [round(low, 4), round(high, 4)],
        "reasons": dict(reasons.most_common()),
        "mean_tokens": round(float(np.mean([one.tokens for one in drawn])), 1),
        "mean_attempts": round(float(np.mean([count_attempts(thinking(text)) for text in texts])), 2),
        "arithmetic_right": check_arithmetic(texts),
    }


# --------------------------------------------------------------------------------------------------------------------
# Main
# --------------------------------------------------------------------------------------------------------------------


def make_dataset(
    examples: Sequence[tuple[Any, str]], tokenizer: Any, batch_size: int, seed: int, task: Task = TASK
) -> tuple[Any, int]:
    """Prompts and completions in the order of training, and the tokens of the longest completion."""
    from datasets import Dataset

    prompts = [build_prompt(tokenizer, puzzle, task) for puzzle, _ in examples]
    completions = [trace + tokenizer.eos_token for _, trace in examples]
    lengths = [len(ids) for ids in tokenizer(completions)["input_ids"]]
    order = order_examples(lengths, batch_size, seed)
    print(f"{len(order)} traces, of {np.mean(lengths):.0f} tokens on average and {max(lengths)} at most")
    columns = {"prompt": [prompts[i] for i in order], "completion": [completions[i] for i in order]}
    return Dataset.from_dict(columns), max(lengths)


def main(argv: list[str]) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    own = (ColdStartArguments, PuzzleArguments)
    args, puzzle_args, training_args = parse(argv, __doc__, own, ("SFTConfig",), check_values)
    set_up_logging(training_args.output_dir)
    check_writable(training_args.output_dir)
    split = TASK.load(puzzle_args, True)
    count = training_args.max_steps * training_args.per_device_train_batch_size
    examples = write_traces(split.train, count, puzzle_args.dataset_seed, args)
    texts = [trace for _, trace in examples[-2000:]]
    train(args, training_args, examples, split.held_out, puzzle_args.dataset_seed, texts)


def train(
    args: TinyModelArguments,
    training_args: Any,
    examples: Sequence[tuple[Any, str]],
    held_out: Sequence[Any],
    seed: int,
    texts: Iterable[str],
    task: Task = TASK,
    phrases: Sequence[str] = PHRASES,
) -> None:
    """Trains on puzzles and their traces, saves the model and samples held-out puzzles with it.

    Args:
        args: the model.
        training_args: TRL's SFTConfig.
        examples: in the order of the curriculum, one for each place in the batches.
        held_out: puzzles to measure on.
        seed: of the order of batches.
        texts: what the tokenizer learns from.
        task: what the puzzles are of.
        phrases: texts that become one token each.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
    from trl import SFTTrainer

    from mini_r1.training.muon import MuonWithAdamW

    set_seed(training_args.seed)
    if args.model_name_or_path is None:
        roles = ["system user assistant\n"] * 100  # so that each becomes one token
        tokenizer = make_tokenizer([*texts, *roles], args.vocab_size, phrases)
        model = make_model(args, tokenizer)
    else:
        tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
        model = AutoModelForCausalLM.from_pretrained(args.model_name_or_path, dtype="float32")
    batch_size = training_args.per_device_train_batch_size
    dataset, longest = make_dataset(examples, tokenizer, batch_size, seed, task)
    print(f"{model.num_parameters() / 1e6:.2f} M parameters, {len(tokenizer)} tokens in the vocabulary")

    betas = (training_args.adam_beta1, training_args.adam_beta2)
    optimizer = MuonWithAdamW(model, training_args.learning_rate, training_args.weight_decay, betas)
    trainer = SFTTrainer(
        model=model,
        args=training_args,
        train_dataset=dataset,
        processing_class=tokenizer,
        optimizers=(optimizer, None),
    )
    saved = checkpoints_in(Path(training_args.output_dir)).values()
    whole = [str(path) for path in saved if (path / TRAINER_STATE).is_file()]  # which is written last
    trainer.train(resume_from_checkpoint=whole[-1] if whole else None)
    trainer.model.config.use_cache = True  # off while training; generating with the checkpoint wants it
    trainer.save_model(training_args.output_dir)
    tokenizer.save_pretrained(training_args.output_dir)

    result = sample_held_out(trainer.model, tokenizer, held_out[: args.eval_puzzles], 2 * longest, task)
    result["parameters"] = model.num_parameters()
    text = json.dumps(result, indent=2)
    Path(training_args.output_dir, "cold_start.json").write_text(text + "\n")
    print(f"\nheld-out puzzles, one sample each at temperature 1:\n{text}")


if __name__ == "__main__":
    run_cli(main)
