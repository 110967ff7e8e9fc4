"""One optimizer step's forward and backward passes on real rollouts, micro-batches padded as TRL does or trimmed.

    python tests/benchmarks/bench_trim.py

Rollouts of the shipped tiny model, split into micro-batches as its recipe does. Rounds are interleaved; medians count.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

ROUNDS = 7


def main() -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from mini_r1.countdown.generator import generate_puzzles
    from mini_r1.training.trainer import CountdownGRPOTrainer, trim_padding
    from run_r1_grpo import build_prompt, equation_reward_func, format_reward_func

    model = str(ROOT / "configs" / "tiny-countdown")
    tokenizer = AutoTokenizer.from_pretrained(model)
    puzzles = generate_puzzles(64, seed=0, number_counts=(3,))
    rows = [{"prompt": build_prompt(tokenizer, *p), "nums": list(p.nums), "target": p.target} for p in puzzles]
    with tempfile.TemporaryDirectory() as folder:
        trainer = CountdownGRPOTrainer(
            model=model,
            reward_funcs=[format_reward_func, equation_reward_func],
            args=GRPOConfig(
                output_dir=folder, use_cpu=True, bf16=False, per_device_train_batch_size=32, num_generations=8,
                gradient_accumulation_steps=4, max_completion_length=256, report_to="none",
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )  # fmt: skip
        torch.manual_seed(0)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 4
        trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        micro_batches = trainer._buffered_inputs

        def step(trim: bool) -> float:
            trainer.model.zero_grad()
            started = time.perf_counter()
            for inputs in micro_batches:
                batch: dict[str, Any] = trim_padding(inputs) if trim else inputs
                GRPOTrainer._compute_loss(trainer, trainer.model, batch).backward()
            return time.perf_counter() - started

        step(False), step(True)  # warm up
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(ROUNDS):
            for trim in (False, True):
                seconds[trim].append(step(trim))

    tokens = {
        trim: sum(
            b["prompt_ids"].numel() + b["completion_ids"].numel()
            for b in (trim_padding(i) if trim else i for i in micro_batches)
        )
        for trim in (False, True)
    }
    for trim, name in ((False, "padded"), (True, "trimmed")):
        print(f"{name:<8} median {statistics.median(seconds[trim]):.2f} s a step, {tokens[trim]:,} tokens")
    ratio = statistics.median(seconds[False]) / statistics.median(seconds[True])
    print(f"ratio of the medians: {ratio:.2f}x")


if __name__ == "__main__":
    main()
