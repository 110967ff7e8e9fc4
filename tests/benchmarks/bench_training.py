"""What a training step costs on this machine: rollouts and the optimizer step, here and in the libraries as they are.

    python tests/benchmarks/bench_training.py              # both; or one of: rollouts, step

Both sides get the same weights, prompts and completion lengths. Rounds are interleaved; the ratio is that of the
medians. Lengths are RL-like: log-normal, 0.35 of the longest on average, a few at the limit. Prints a table and writes
it as JSON.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
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

from conftest import ROOT, TINY_MODEL, draft
from mini_r1.countdown.generator import generate_puzzles
from mini_r1.generation.rollouts import sample
from mini_r1.training.trainer import RunTrainer
from run_r1_grpo import build_prompt, equation_reward_func, format_reward_func

ROUNDS = 5
GENERATIONS = 8


def rl_lengths(shares: torch.Tensor, longest: int) -> torch.Tensor:
    """Lengths at these quantiles, (B,): log-normal, from 8 to `longest`."""
    return (torch.exp(0.6 * torch.special.ndtri(shares)) * 0.3 * longest).clamp(8, longest).long()


class EndAt(LogitsProcessor):
    """Ends each row at a length that its prompt decides, so that both samplers write as much."""

    def __init__(self, prompt: int, longest: int, eos: int, equal: bool):
        self.prompt, self.longest, self.eos, self.equal = prompt, longest, eos, equal
        self.weights = torch.randint(1, 10_000, (prompt,), generator=torch.Generator().manual_seed(0))

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        shares = ((input_ids[:, : self.prompt] * self.weights).sum(1) % 997 + 0.5) / 997
        lengths = rl_lengths(shares, self.longest)
        ends = input_ids.size(1) - self.prompt + 1 >= (self.longest if self.equal else lengths)
        scores[:, self.eos] = torch.where(torch.as_tensor(ends), 1e9, -torch.inf)
        return scores


def compare(name: str, unit: str, work: dict[str, Callable[[], float]]) -> dict[str, Any]:
    """Runs two contenders in turn, each once to warm up; the first is the baseline. They return units of work done."""
    rates: dict[str, list[float]] = {each: [] for each in work}
    for round_ in range(-1, ROUNDS):
        for each, run in work.items():
            set_seed(round_ + 1)
            started = time.perf_counter()
            done = run()
            if round_ >= 0:
                rates[each].append(done / (time.perf_counter() - started))
    row: dict[str, Any] = {"what": name, "unit": unit}
    for each, values in rates.items():
        row[each] = {"median": statistics.median(values), "range": [min(values), max(values)]}
    base, ours = (row[each]["median"] for each in work)
    print(f"{name:<48} {base:>9.2f} -> {ours:>9.2f} {unit:<10} {ours / base:5.2f}x", flush=True)
    return row | {"ratio": ours / base}


def rollouts() -> Iterator[dict[str, Any]]:
    """128 completions of at most 288 tokens by the tiny model."""
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL).eval()
    puzzles = generate_puzzles(128, seed=0, number_counts=(3,))
    inputs = tokenizer([build_prompt(tokenizer, p) for p in puzzles], return_tensors="pt", padding=True)
    prompt = inputs["input_ids"].size(1)

    def run(equal: bool, **loop: Any) -> float:
        end = EndAt(prompt, 288, tokenizer.eos_token_id, equal)
        config = GenerationConfig(
            max_new_tokens=288, do_sample=True, top_k=0,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        with torch.no_grad():
            output = model.generate(
                **inputs, generation_config=config, logits_processor=LogitsProcessorList([end]), **loop
            )
        return float((output[:, prompt:] != tokenizer.pad_token_id).sum())

    for equal, lengths in ((False, "RL-like lengths"), (True, "equal lengths")):
        yield compare(f"rollouts, 1.1 M parameters, {lengths}", "tokens/s", {
            "generate": lambda equal=equal: run(equal),
            "here": lambda equal=equal: run(equal, custom_generate=sample),
        })  # fmt: skip


def model_of_25m(folder: Path, tokenizer: Any) -> Path:
    config = Qwen2Config(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def steps() -> Iterator[dict[str, Any]]:
    """Forward and backward passes of one optimizer step in four micro-batches, from the moment of generation on."""
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    with tempfile.TemporaryDirectory() as folder:
        for name, model, rows, longest in (
            ("1.1 M parameters", Path(TINY_MODEL), 32, 288),
            ("29 M parameters", model_of_25m(Path(folder), tokenizer), 8, 256),
        ):
            for dead in (0.0, 0.5):
                work = {
                    "TRL": step(GRPOTrainer, model, rows, longest, dead),
                    "here": step(RunTrainer, model, rows, longest, dead),
                }
                groups = f", {dead:.0%} of the groups dead" if dead else ""
                yield compare(f"optimizer step, {name}{groups}", "steps/min", work)


def step(kind: type[GRPOTrainer], model: Path, rows: int, longest: int, dead: float) -> Callable[[], float]:
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

    def run() -> float:
        trainer.model.zero_grad()
        trainer._buffered_inputs, trainer._step = None, 0
        for micro_step in range(4):
            trainer._step = micro_step
            trainer._compute_loss(trainer.model, trainer._prepare_inputs({})).backward()
        return 60.0  # steps/min

    return run


def main() -> None:
    chosen = sys.argv[1:] or ["rollouts", "step"]
    table = [row for name, bench in (("rollouts", rollouts), ("step", steps)) if name in chosen for row in bench()]
    about = {
        "processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "transformers", "trl")}, "rounds": ROUNDS,
    }  # fmt: skip
    goal = ROOT / "runs" / "bench_training.json"
    goal.parent.mkdir(exist_ok=True)
    goal.write_text(json.dumps(about | {"table": table}, indent=2))
    print(f"written to {goal}")


if __name__ == "__main__":
    main()
