"""Trimming micro-batches changes neither the loss nor a gradient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import TINY_MODEL, draft

pytestmark = pytest.mark.slow


def make_trainer(
    folder: Path,
    on_scored: Callable[..., Any] = lambda **batch: None,
    adapter: Any = None,
    own: Any = None,
    **settings: Any,
):
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig

    from mini_r1.countdown.generator import generate_puzzles
    from mini_r1.training.trainer import RunTrainer
    from run_r1_grpo import build_prompt, equation_reward_func, format_reward_func

    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    puzzles = generate_puzzles(16, seed=0, number_counts=(2, 3, 4))  # prompts of different lengths
    rows = [{"prompt": build_prompt(tokenizer, p), "nums": list(p.nums), "target": p.target} for p in puzzles]
    arguments = GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=8,
        num_generations=4,
        gradient_accumulation_steps=4,
        max_completion_length=96,
        report_to="none",
        **settings,
    )
    return RunTrainer(
        model=str(TINY_MODEL),
        reward_funcs=[format_reward_func, equation_reward_func],
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=adapter,
        recipe=draft(**vars(arguments), **(own or {})),
        resume=None,
        sample_sizes=dict,
        on_scored=on_scored,
    )


@pytest.mark.parametrize("settings", [
    pytest.param({"loss_type": "dapo", "beta": 0.0}, id="dapo without reference"),
    pytest.param({"loss_type": "grpo", "beta": 0.05}, id="grpo with reference"),
    pytest.param({"loss_type": "bnpo", "beta": 0.0, "num_iterations": 2}, id="bnpo with old log-probabilities"),
])  # fmt: skip
def test_trimmed_loss_and_gradients_equal_the_padded_ones(settings: dict, tmp_path: Path):
    import torch
    from trl import GRPOTrainer

    from mini_r1.training.micro_batches import trim_padding

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

    seen: list[dict] = []
    trainer = make_trainer(tmp_path, lambda **batch: seen.append(batch) or [True] * len(batch["rows"]))
    trainer.model.train()
    trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.model.eval()
    with torch.no_grad():
        trainer.prediction_step(trainer.model, [trainer.train_dataset[0]] * 8, True)
    assert [batch["split"] for batch in seen] == ["train", "held_out"]
    assert [len(batch["completions"]) for batch in seen] == [32, 8]
    assert all(len(batch[key]) == 32 for key in ("rows", "prompts", "completion_ids") for batch in seen[:1])


def test_a_step_is_told_in_one_line():
    from mini_r1.training.callbacks import progress_line

    logs = {
        "reward": 1.5, "reason/correct": 0.625, "rewards/format_reward_func/mean": 1.0,
        "completions/mean_length": 98.25, "thinking/attempts": 3.5, "completions/clipped_ratio": None,
        "step_time": 8.04,
    }  # fmt: skip
    line = progress_line(logs, 12, 40)
    assert line == "step       12/40 | solved  62% | format 100% |  98.2 tokens | 3.50 attempts | 8.0 s"
    held_out = progress_line({f"eval_{key}": value for key, value in logs.items()}, 15, 40)
    assert held_out is not None
    assert held_out.startswith("held-out   15/40 | solved  62% | format")
    kinds = {"eval_pass@1/all puzzles": 0.62, "eval_pass@1/3 numbers, + -": 0.7}
    held_out = progress_line({f"eval_{key}": value for key, value in logs.items()} | kinds, 15, 40)
    assert held_out.startswith("held-out   15/40 | solved  62% | 3 numbers, + - 70% | format")
    assert progress_line({"train_runtime": 3.0}, 40, 40) is None


def test_training_goes_on_while_a_checkpoint_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Syncing tens of GB to a slow disk takes minutes; only then the checkpoint counts."""
    import threading

    from transformers import TrainerCallback

    from mini_r1.run_folder import manifest

    released, seen = threading.Event(), []
    monkeypatch.setattr(manifest, "_sync", lambda path: released.wait(60))
    trainer = make_trainer(tmp_path, save_steps=1, max_steps=2)

    class AtTheSecondStep(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                seen.append(manifest.fault_in(tmp_path / "checkpoint-1"))
                released.set()

    trainer.add_callback(AtTheSecondStep())
    trainer.train()
    assert seen == ["it has no manifest.json, so it was cut off while it was written"]
    assert [manifest.fault_in(tmp_path / f"checkpoint-{step}") for step in (1, 2)] == [None, None]


def test_one_process_never_spreads_a_model_over_the_servers_gpu(monkeypatch: pytest.MonkeyPatch):
    """TRL's default with one CUDA process is device_map "auto", which takes every GPU that it sees."""
    import torch
    import trl.trainer.utils as trl_utils

    from mini_r1.training.start import model_init_kwargs

    monkeypatch.setattr(trl_utils, "PartialState", lambda: SimpleNamespace(device=torch.device("cuda", 0)))
    given: dict[str, Any] = {}
    loader = SimpleNamespace(from_pretrained=lambda name, **kwargs: given.update(kwargs))
    model = {"model_revision": "main", "attn_implementation": "sdpa", "dtype": "float32"}
    kwargs = model_init_kwargs(draft(**model, model_init_kwargs={"use_cache": False}))
    trl_utils.create_model_from_path(str(TINY_MODEL), architecture=loader, **kwargs)
    assert given["device_map"] is None
    assert given["use_safetensors"] is True
    assert given["use_cache"] is False


@pytest.mark.parametrize("norm", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_before_the_optimizer(norm: float, tmp_path: Path):
    import torch

    from mini_r1.common import GuardError

    trainer = make_trainer(tmp_path)
    assert trainer._get_grad_norm(trainer.model, torch.tensor(0.5)) == 0.5
    with pytest.raises(GuardError, match="the gradient is not a finite number"):
        trainer._get_grad_norm(trainer.model, torch.tensor(norm))


def test_an_unfinished_step_is_saved_as_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import torch

    trainer, saved = make_trainer(tmp_path), []
    trainer.state.global_step, trainer._step = 3, 12
    trainer._boundary.on_step_begin(trainer.args, trainer.state, trainer.control)
    random_state = torch.get_rng_state()
    torch.rand(1)
    trainer._step += 1
    monkeypatch.setattr(
        trainer, "_save_checkpoint", lambda model, trial, state: saved.append((torch.get_rng_state(), state))
    )
    trainer._save_interrupted()
    ((state_of_generator, kept),) = saved
    assert torch.equal(state_of_generator, random_state)
    assert (kept["step"], kept["micro_steps"]) == (3, 12)
