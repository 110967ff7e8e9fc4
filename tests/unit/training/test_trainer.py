"""Trimming micro-batches changes neither the loss nor a gradient."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import TINY_MODEL

pytestmark = pytest.mark.slow


def make_trainer(folder: Path, **settings: object):
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig

    from mini_r1.countdown.generator import generate_puzzles
    from mini_r1.training.trainer import CountdownGRPOTrainer
    from run_r1_grpo import build_prompt, equation_reward_func, format_reward_func

    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    puzzles = generate_puzzles(16, seed=0, number_counts=(2, 3, 4))  # prompts of different lengths
    rows = [{"prompt": build_prompt(tokenizer, *p), "nums": list(p.nums), "target": p.target} for p in puzzles]
    return CountdownGRPOTrainer(
        model=str(TINY_MODEL),
        reward_funcs=[format_reward_func, equation_reward_func],
        args=GRPOConfig(
            output_dir=str(folder), use_cpu=True, bf16=False, per_device_train_batch_size=8, num_generations=4,
            gradient_accumulation_steps=4, max_completion_length=96, report_to="none", **settings,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )  # fmt: skip


@pytest.mark.parametrize("settings", [
    pytest.param({"loss_type": "dapo", "beta": 0.0}, id="dapo without reference"),
    pytest.param({"loss_type": "grpo", "beta": 0.05}, id="grpo with reference"),
    pytest.param({"loss_type": "bnpo", "beta": 0.0, "num_iterations": 2}, id="bnpo with old log-probabilities"),
])  # fmt: skip
def test_trimmed_loss_and_gradients_equal_the_padded_ones(settings: dict, tmp_path: Path):
    import torch
    from trl import GRPOTrainer

    from mini_r1.training.trainer import trim_padding

    torch.manual_seed(0)
    trainer = make_trainer(tmp_path, **settings)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 4
    trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trimmed_some = False
    for inputs in trainer._buffered_inputs:
        results = []
        for batch in (inputs, trim_padding(inputs)):
            trainer.model.zero_grad()
            loss = GRPOTrainer._compute_loss(trainer, trainer.model, batch)
            loss.backward()
            results.append((loss.detach(), [p.grad.clone() for p in trainer.model.parameters()]))
        (padded, padded_gradients), (trimmed, trimmed_gradients) = results
        torch.testing.assert_close(trimmed, padded, rtol=1e-4, atol=1e-6)
        for a, b in zip(trimmed_gradients, padded_gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
        shorter = trim_padding(inputs)
        trimmed_some |= shorter["completion_ids"].size(1) < inputs["completion_ids"].size(1)
        assert int(shorter["completion_mask"].sum()) == int(inputs["completion_mask"].sum())
        assert int(shorter["prompt_mask"].sum()) == int(inputs["prompt_mask"].sum())
    assert trimmed_some  # or the comparison would compare a thing with itself


def test_the_observer_sees_every_completion_once_and_in_both_modes(tmp_path: Path):
    import torch

    trainer = make_trainer(tmp_path)
    seen = []
    trainer.observer = lambda **batch: seen.append(batch)
    trainer.model.train()
    trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.model.eval()
    with torch.no_grad():
        trainer.prediction_step(trainer.model, [trainer.train_dataset[0]] * 8, True)
    assert [batch["split"] for batch in seen] == ["train", "held_out"]
    assert [len(batch["completions"]) for batch in seen] == [32, 8]
    assert all(len(batch[key]) == 32 for key in ("rows", "prompts", "completion_ids") for batch in seen[:1])


def test_a_step_is_told_in_one_line():
    from mini_r1.training.trainer import progress_line

    logs = {
        "reward": 1.5, "rewards/equation_reward_func/mean": 0.625, "rewards/format_reward_func/mean": 1.0,
        "completions/mean_length": 98.25, "thinking/attempts": 3.5, "completions/clipped_ratio": None,
        "step_time": 8.04,
    }  # fmt: skip
    line = progress_line(logs, 12, 40)
    assert line == "step       12/40 | solved  62% | format 100% |  98.2 tokens | 3.50 attempts | 8.0 s"
    held_out = progress_line({f"eval_{key}": value for key, value in logs.items()}, 15, 40)
    assert held_out is not None
    assert held_out.startswith("held-out   15/40 | solved  62% | ")
    assert progress_line({"train_runtime": 3.0}, 40, 40) is None


def test_training_goes_on_while_a_checkpoint_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Syncing tens of GB to a slow disk takes minutes; only then the checkpoint counts."""
    import threading

    from transformers import TrainerCallback

    from mini_r1.run_folder import resume as resumption

    released, seen = threading.Event(), []
    monkeypatch.setattr(resumption, "_sync", lambda path: released.wait(60))
    trainer = make_trainer(tmp_path, save_steps=1, max_steps=2)

    class AtTheSecondStep(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                seen.append(resumption.fault_in(tmp_path / "checkpoint-1"))
                released.set()

    trainer.add_callback(AtTheSecondStep())
    trainer.train()
    assert seen == ["it has no manifest.json, so it was cut off while it was written"]
    assert [resumption.fault_in(tmp_path / f"checkpoint-{step}") for step in (1, 2)] == [None, None]
