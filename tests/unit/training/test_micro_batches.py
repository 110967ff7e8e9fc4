"""Sorting rows, trimming and leaving backward passes out change neither a step's loss nor a gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unit.training.test_trainer import make_trainer

pytestmark = pytest.mark.slow


def rollouts(trainer: Any) -> list[dict]:
    """What TRL samples and cuts, unsorted, with a third of the rows without advantage."""
    import torch

    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    sorts, trainer._sort = trainer._sort, False
    trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer._sort = sorts
    torch.manual_seed(1)
    for batch in trainer._buffered_inputs:
        batch["advantages"] = torch.randn(8) * torch.tensor([1, 1, 0, 1, 0, 1, 1, 0])
    return trainer._buffered_inputs


def step(trainer: Any, batches: list[dict], plain: bool) -> tuple[float, list[Any], list[int]]:
    """Loss and gradients of the sum over micro-batches, and how many rows each forward pass had with a graph."""
    import torch
    from trl import GRPOTrainer

    trainer.model.zero_grad()
    rows: list[int] = []
    hook = trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"]) if torch.is_grad_enabled() else 0),
        with_kwargs=True,
    )
    total = 0.0
    for batch in batches:
        compute = GRPOTrainer._compute_loss.__get__(trainer) if plain else trainer._compute_loss
        loss = compute(trainer.model, batch)
        loss.backward()
        total += loss.item()
    hook.remove()
    return total, [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None], rows


@pytest.mark.parametrize(("settings", "sorts", "skips"), [
    pytest.param({"loss_type": "dapo"}, True, True, id="dapo"),
    pytest.param({"loss_type": "dr_grpo"}, True, True, id="dr_grpo"),
    pytest.param({"loss_type": "cispo"}, True, True, id="cispo"),
    pytest.param({"loss_type": "sapo"}, True, True, id="sapo"),
    pytest.param({"loss_type": "vespo"}, True, True, id="vespo"),
    pytest.param({"loss_type": "luspo", "importance_sampling_level": "sequence"}, True, True, id="luspo"),
    pytest.param({"loss_type": "grpo"}, True, True, id="grpo without reference"),
    pytest.param({"loss_type": "grpo", "beta": 0.05}, True, False, id="grpo with reference: KL has a gradient"),
    pytest.param({"lora": True}, True, True, id="adapter"),
    pytest.param({"lora": True, "beta": 0.05}, True, False, id="adapter with its base as reference"),
    pytest.param({"loss_type": "bnpo"}, False, False, id="bnpo: each micro-batch has a normaliser of its own"),
    pytest.param({"top_entropy_quantile": 0.5}, False, False, id="entropy quantile of each micro-batch"),
    pytest.param({"entropy_coef": 0.1}, False, False, id="entropy bonus of each micro-batch"),
    pytest.param({"steps_per_generation": 8}, True, True, id="two steps on a generation"),
    pytest.param({"num_iterations": 2}, True, True, id="two iterations, with old log-probabilities"),
    pytest.param({"steps_per_generation": 6}, False, False, id="steps that are no whole number of a generation"),
])  # fmt: skip
def test_loss_and_gradients_are_those_of_trl(settings: dict, sorts: bool, skips: bool, tmp_path: Path):
    import torch
    from peft import LoraConfig

    from mini_r1.training.micro_batches import sort_rows

    torch.manual_seed(0)
    settings = {"beta": 0.0, "loss_type": "dapo"} | settings
    adapter = LoraConfig(r=4, init_lora_weights=False) if settings.pop("lora", False) else None
    trainer = make_trainer(tmp_path, adapter=adapter, **settings)
    assert (trainer._sort, trainer._skip_zeros) == (sorts, skips)
    batches = rollouts(trainer)
    arranged = sort_rows(batches, 4, zeros_apart=skips) if sorts else batches
    for start in range(0, len(batches) // 4 * 4, 4):
        loss, gradients, rows = step(trainer, batches[start : start + 4], plain=True)
        ours, our_gradients, our_rows = step(trainer, arranged[start : start + 4], plain=False)
        assert ours == pytest.approx(loss, rel=1e-5, abs=1e-6)
        for mine, theirs in zip(our_gradients, gradients, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
        assert any(gradient.abs().max() > 0 for gradient in gradients)
        assert sum(rows) == 32
        # 5 of 8 rows have an advantage, which fills two micro-batches and half of one; the fourth keeps a row.
        assert [count for count in our_rows if count] == ([8, 8, 4, 1] if skips else [8, 8, 8, 8])


def test_rows_stay_in_their_step_and_like_lengths_come_together(tmp_path: Path):
    import torch

    from mini_r1.training.micro_batches import sort_rows

    torch.manual_seed(0)
    batches = rollouts(make_trainer(tmp_path, steps_per_generation=8, beta=0.0))
    arranged = sort_rows(batches, 4, zeros_apart=True)
    assert [len(batch["advantages"]) for batch in arranged] == [8] * 8
    for start in (0, 4):

        def rows(some: list[dict], start: int = start) -> list[tuple]:
            return [
                (a, *ids) for one in some[start : start + 4]
                for a, ids in zip(one["advantages"].tolist(), one["completion_ids"].tolist(), strict=True)
            ]  # fmt: skip

        assert sorted(rows(batches)) == sorted(rows(arranged))
        assert [row[0] == 0 for row in rows(arranged)] == [False] * 20 + [True] * 12
        lengths = torch.cat(
            [b["completion_mask"].sum(1) + b["prompt_mask"].sum(1) for b in arranged[start : start + 4]]
        )
        assert lengths[:20].tolist() == sorted(lengths[:20].tolist(), reverse=True)


def test_a_step_without_any_advantage_has_a_zero_gradient(tmp_path: Path):
    trainer = make_trainer(tmp_path, beta=0.0)
    batches = rollouts(trainer)
    for batch in batches:
        batch["advantages"] = batch["advantages"] * 0
    loss, gradients, rows = step(trainer, batches, plain=False)
    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients)
    assert sum(rows) == len(batches)  # one row each, so that there is a loss
