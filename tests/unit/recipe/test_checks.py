"""The rules on values: batches, puzzles, precision, folders."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from mini_r1.common import RecipeError
from mini_r1.countdown import TASK
from mini_r1.recipe import Recipe, checks, machine
from mini_r1.recipe.checks import batch_of, check_precision, check_puzzles, check_writable, evaluation_batch

# The tiny recipe's batch: 32 x 4 = 128 completions, 16 puzzles of 8.
DEFAULTS = {
    "per_device_train_batch_size": 32,
    "gradient_accumulation_steps": 4,
    "generation_batch_size": None,
    "steps_per_generation": None,
    "num_generations": 8,
    "per_device_eval_batch_size": 16,
    "num_generations_eval": 1,
    "max_prompt_tokens": 256,
    "max_completion_length": 1024,
    "eval_strategy": "steps",
    "eval_puzzles": 512,
    "plan_for": None,
    "use_cpu": False,
    "bf16": None,
    "fp16": False,
}


def recipe(**changed: object) -> Recipe:
    return Recipe.draft(TASK, SimpleNamespace(**{**DEFAULTS, **changed}))


@pytest.mark.parametrize(
    ("changed", "processes", "expected"),
    [
        pytest.param({}, 1, (128, 128), id="the tiny recipe"),
        pytest.param({"per_device_train_batch_size": 8, "gradient_accumulation_steps": 8}, 3, (192, 192), id="article"),
        pytest.param({"steps_per_generation": 8}, 1, (128, 256), id="two steps a generation"),
        pytest.param({"generation_batch_size": 64}, 1, (128, 64), id="two generations a step"),
    ],
)
def test_batches(changed: dict, processes: int, expected: tuple):
    batch = batch_of(recipe(**changed), processes)
    assert (batch.per_step, batch.per_generation) == expected
    assert (batch.generations, batch.tokens_per_completion) == (8, 1280)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param({"num_generations": 7}, "128 completions per generation, which is no multiple of num_gen", id="7"),
        pytest.param({"generation_batch_size": 60}, "makes 60 completions per generation, which is no", id="60"),
    ],
)
def test_batches_that_are_no_whole_groups(changed: dict, message: str):
    with pytest.raises(RecipeError, match=message):
        batch_of(recipe(**changed), processes=1)


@pytest.mark.parametrize(
    ("puzzles", "per_device", "processes", "generations", "expected"),
    [
        pytest.param(512, 256, 1, 1, 256, id="fits as it is"),
        pytest.param(300, 256, 1, 1, 256, id="one whole batch"),
        pytest.param(512, 16, 3, 1, 16, id="three processes: 48 puzzles a batch"),
        pytest.param(21, 256, 1, 1, 21, id="one batch of what there is"),
        pytest.param(7, 256, 2, 1, 3, id="fewer puzzles than a batch, two processes"),
        pytest.param(30, 16, 1, 4, 16, id="four answers each: four puzzles a batch"),
        pytest.param(1, 16, 1, 8, 8, id="a batch of one puzzle's answers"),
        pytest.param(5, 12, 4, 16, 12, id="four processes share a group"),
    ],
)
def test_evaluation_batches(puzzles: int, per_device: int, processes: int, generations: int, expected: int):
    asked = recipe(per_device_eval_batch_size=per_device, num_generations_eval=generations)
    found = evaluation_batch(asked, processes, puzzles)
    assert found == expected
    assert found * processes % generations == 0
    assert 0 < found * processes // generations <= puzzles


def test_puzzles_must_suffice_for_a_step_and_an_evaluation():
    asked = recipe()
    check_puzzles(asked, 1, train=16, held_out=1)
    with pytest.raises(RecipeError, match="15 puzzles to train on are fewer than one step's 16: raise dataset_rows"):
        check_puzzles(asked, 1, train=15, held_out=1)
    for processes, held_out in ((1, 0), (2, 1)):
        with pytest.raises(RecipeError, match=f"{held_out} held-out puzzles to evaluate on .* raise held_out_puzzles"):
            check_puzzles(asked, processes, train=32, held_out=held_out)
    check_puzzles(recipe(eval_strategy="no"), 1, train=16, held_out=0)


@pytest.mark.slow  # asks torch
@pytest.mark.parametrize(("fp16", "refused"), [(False, "left out for true"), (True, "need a GPU")])
def test_half_precision_needs_a_gpu(fp16: bool, refused: str, monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.setattr(checks, "gpus_of_driver", lambda: 0)
    with pytest.raises(RecipeError, match=refused):
        check_precision(recipe(fp16=fp16))  # TRL's default of bf16 is true where fp16 is not
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_precision(recipe(fp16=fp16))
    with pytest.raises(RecipeError, match=refused):
        check_precision(recipe(fp16=fp16, use_cpu=True))


@pytest.mark.slow
def test_gpus_that_the_driver_shows_and_torch_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import torch

    smi = tmp_path / "nvidia-smi"
    smi.write_text('#!/bin/sh\nfor i in 0 1 2 3; do echo "GPU $i: NVIDIA H100 (UUID: GPU-$i)"; done\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)  # asks the driver
    with pytest.raises(RecipeError) as caught:
        check_precision(recipe())
    assert str(caught.value).startswith("nvidia-smi shows 4 GPUs and torch sees none; ")
    assert "built for CUDA 13.0: `make install-gpu`" in str(caught.value)
    assert machine.gpu_memory() == []


def test_an_output_folder_that_cannot_be_made_is_refused(tmp_path: Path):
    check_writable(str(tmp_path / "new" / "run"))
    assert not list(tmp_path.iterdir())
    check_writable("~nobody-of-this-name/run")  # a folder of that name, as transformers takes it
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(RecipeError, match=f"output_dir: cannot write to {folder}: "):
            check_writable(str(folder))
