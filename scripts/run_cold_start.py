"""Supervised cold start: teach a tiny model to search, so that reinforcement learning has something to improve.

    python scripts/run_cold_start.py --config receipes/sft-tiny-countdown.yaml

A model of about a million parameters, built from scratch here, cannot discover by itself what a 3 B instruct model
already half knows: two-digit arithmetic, the format, and the habit of trying again. This script trains it with TRL's
`SFTTrainer` on search traces (`mini_r1.traces`) over generated puzzles, behind exactly the prompt of
`run_r1_grpo.py`. Two things are ours: the traces, and the order in which they come.

1. `persistent_first_share` of the training shows traces that search until they find a solution. They are long, hence
   cheap practice in arithmetic.
2. The rest shows the mixture that the policy is to start from: most traces give up too early with a wrong answer.

Held-out puzzles of the canonical split are never shown. At the end the model samples answers to some of them at
temperature 1 and the result is printed and written next to the weights.
"""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mini_r1 import traces
from mini_r1.countdown import Puzzle, check_equation, generate_puzzles, held_out_share, is_held_out
from run_r1_grpo import SYSTEM_PROMPT, USER_PROMPT, build_prompt

# ChatML, as Qwen writes it: the tiny model sees the same turns as the article's 3 B model.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# One token each, but ordinary text: they survive decoding with special tokens skipped.
TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
# So are the sentences of the prompt that never change: 32 tokens a prompt instead of about 100, which nearly doubles
# the speed of everything that is done with this model.
PHRASES = [SYSTEM_PROMPT, *re.split(r"\{\w+\}", USER_PROMPT)]


@dataclass
class ColdStartArguments:
    """What the recipe says beyond SFTConfig."""

    puzzles: int = field(default=100_000, metadata={"help": "Distinct puzzles to generate, held-out ones included."})
    puzzle_seed: int = field(default=0, metadata={"help": "Seed of the puzzles, the traces and their order."})
    number_counts: list[int] = field(default_factory=lambda: [3], metadata={"help": "How many numbers a puzzle has."})
    held_out_puzzles: int = field(default=1024, metadata={"help": "Puzzles' worth to hold out of training."})
    eval_puzzles: int = field(default=1024, metadata={"help": "Held-out puzzles to sample an answer for at the end."})
    persistent_first_share: float = field(default=0.7, metadata={"help": "Share of training that never gives up."})
    give_up_share: float = field(default=0.8, metadata={"help": "Share of later traces that lose heart."})
    give_up_rate: float = field(default=0.8, metadata={"help": "Chance that those give up after a failed attempt."})
    max_attempts: int = field(default=12, metadata={"help": "Attempts after which any trace gives up."})
    vocab_size: int = field(default=384, metadata={"help": "Size of the byte-level BPE vocabulary."})
    hidden_size: int = field(default=128, metadata={"help": "Width of the model."})
    intermediate_size: int = field(default=384, metadata={"help": "Width of its feed-forward layers."})
    num_hidden_layers: int = field(default=5, metadata={"help": "Depth of the model."})
    num_attention_heads: int = field(default=4, metadata={"help": "Attention heads per layer."})


def make_puzzles(args: ColdStartArguments) -> tuple[list[Puzzle], list[Puzzle]]:
    """The training and the held-out side of the generated puzzles."""
    puzzles = generate_puzzles(args.puzzles, seed=args.puzzle_seed, number_counts=args.number_counts, progress=True)
    share = held_out_share(len(puzzles), args.held_out_puzzles)
    train, held_out = [], []
    for puzzle in puzzles:
        (held_out if is_held_out(*puzzle, share=share) else train).append(puzzle)
    return train, held_out


def make_tokenizer(texts: list[str], vocab_size: int) -> Any:
    """A byte-level BPE with single digits, trained on `texts` with Qwen2's own pre-tokenizer.

    transformers rebuilds the pre-tokenizer of a `qwen2` checkpoint from its class, so a tokenizer trained with any
    other one would silently split text differently after `AutoTokenizer.from_pretrained`.
    """
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = Qwen2Tokenizer()._tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS) - len(TAGS) - len(PHRASES),
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
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in [*TAGS, *PHRASES]])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def order_examples(lengths: list[int], batch_size: int, rng: np.random.Generator, window: int = 50) -> list[int]:
    """Indices that keep the curriculum's order but put examples of like length into one batch.

    Within windows of `window` batches examples are sorted by length and cut into batches, whose order is shuffled.
    """
    order: list[int] = []
    for start in range(0, len(lengths), window * batch_size):
        indices = sorted(range(start, min(start + window * batch_size, len(lengths))), key=lengths.__getitem__)
        batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
        order.extend(index for b in rng.permutation(len(batches)) for index in batches[b])
    return order


def main() -> None:
    from datasets import Dataset
    from transformers import Qwen2Config, Qwen2ForCausalLM, set_seed
    from trl import SFTConfig, SFTTrainer, TrlParser

    args, training_args = TrlParser((ColdStartArguments, SFTConfig)).parse_args_and_config()
    set_seed(training_args.seed)
    rng = np.random.default_rng(args.puzzle_seed)
    train, held_out = make_puzzles(args)

    # ---- tokenizer -------------------------------------------------------------------------------------------------
    examples: list[tuple[Puzzle, str]] = []
    wanted = training_args.max_steps * training_args.per_device_train_batch_size
    mixture_from = int(args.persistent_first_share * wanted)
    while len(examples) < wanted:
        puzzle = train[int(rng.integers(len(train)))]
        share = 0.0 if len(examples) < mixture_from else args.give_up_share
        trace = traces.write_trace(
            puzzle, rng, give_up_share=share, give_up_rate=args.give_up_rate, max_attempts=args.max_attempts
        )
        if trace is not None:
            examples.append((puzzle, trace))
    tokenizer = make_tokenizer([*(trace for _, trace in examples[:2000]), *["system user assistant\n"] * 100], args.vocab_size)

    # ---- data ------------------------------------------------------------------------------------------------------
    prompts = [build_prompt(tokenizer, *puzzle) for puzzle, _ in examples]
    completions = [trace + tokenizer.eos_token for _, trace in examples]
    lengths = [len(ids) for ids in tokenizer(completions)["input_ids"]]
    order = order_examples(lengths, training_args.per_device_train_batch_size, rng)
    dataset = Dataset.from_dict({"prompt": [prompts[i] for i in order], "completion": [completions[i] for i in order]})
    prompt_tokens = len(tokenizer(prompts[0])["input_ids"])
    print(f"{len(order)} traces; prompt {prompt_tokens} tokens, completion {np.mean(lengths):.0f} on average")

    # ---- model -----------------------------------------------------------------------------------------------------
    model = Qwen2ForCausalLM(
        Qwen2Config(
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
    )
    print(f"{model.num_parameters() / 1e6:.2f} M parameters, {len(tokenizer)} tokens in the vocabulary")

    # ---- train -----------------------------------------------------------------------------------------------------
    started = time.monotonic()
    trainer = SFTTrainer(model=model, args=training_args, train_dataset=dataset, processing_class=tokenizer)
    trainer.train()
    minutes = (time.monotonic() - started) / 60
    trainer.save_model(training_args.output_dir)

    # ---- held-out --------------------------------------------------------------------------------------------------
    result = sample_held_out(trainer.model, tokenizer, held_out[: args.eval_puzzles])
    result |= {"train_minutes": round(minutes, 1), "parameters": model.num_parameters()}
    Path(training_args.output_dir, "cold_start.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def sample_held_out(model: Any, tokenizer: Any, puzzles: list[Puzzle]) -> dict[str, Any]:
    """One sampled answer per puzzle at temperature 1.0: pass@1, reasons and lengths."""
    import collections

    import torch

    model.eval()
    reasons: collections.Counter[str] = collections.Counter()
    tokens = []
    tokenizer.padding_side = "left"
    for start in range(0, len(puzzles), 128):
        batch = puzzles[start : start + 128]
        inputs = tokenizer([build_prompt(tokenizer, *p) for p in batch], return_tensors="pt", padding=True)
        with torch.no_grad():
            out = model.generate(**inputs, max_new_tokens=300, do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
        for puzzle, row in zip(batch, out[:, inputs["input_ids"].shape[1] :], strict=True):
            text = tokenizer.decode(row, skip_special_tokens=True)
            if start == 0 and len(tokens) < 8:
                print(puzzle, text)
            tokens.append(int((row != tokenizer.pad_token_id).sum()))
            m = re.search("<answer>(.*)</answer>", text)
            reasons[check_equation(m[1] if m else "", *puzzle).reason.value] += 1
            # arithmetic
            for a, op, b, c in re.findall(r"(\d+)([-+*/])(\d+)=(\d+)", text):
                a, b, c = int(a), int(b), int(c)
                good = {"+": a + b == c, "-": a - b == c, "*": a * b == c, "/": b != 0 and a == b * c}[op]
                reasons["arith" + op] += 1
                reasons["arith_ok" + op] += good
    return {"puzzles": len(puzzles), "pass@1": reasons["correct"] / len(puzzles), "reasons": dict(reasons), "tokens": float(np.mean(tokens))}


if __name__ == "__main__":
    sys.exit(main())
