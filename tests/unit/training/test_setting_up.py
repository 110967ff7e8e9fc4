"""Between the plan and the first step: what a library raises is one line, and its traceback a file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from conftest import QUICK, TINY_MODEL, TINY_RECIPE, flags
from mini_r1.common import RunError, UserError

pytestmark = pytest.mark.slow  # loads a model


def start(folder: Path, **keys: object) -> None:
    from run_r1_grpo import main

    main(["--config", str(TINY_RECIPE), *flags(**{**QUICK, "output_dir": folder / "run", **keys})])


def damaged_model(folder: Path) -> Path:
    model = Path(shutil.copytree(TINY_MODEL, folder / "model"))
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return model


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        pytest.param({"model_name_or_path": damaged_model}, "header", id="weights that are cut off"),
        pytest.param({"use_peft": True, "lora_dropout": 3}, "dropout", id="a value that torch refuses"),
        pytest.param(
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": '{"use_reentrent": false}'},
            "use_reentrent",
            id="an argument that the first step uses",
        ),
        pytest.param({"model_init_kwargs": '{"hf_abcdefghi": 1}'}, "unexpected keyword", id="an argument of no model"),
    ],
)
def test_a_librarys_error_is_one_line_and_a_file(keys: dict, part: str, tmp_path: Path):
    made = {key: value(tmp_path) if callable(value) else value for key, value in keys.items()}
    made["completion_samples_dir"] = tmp_path / "samples"
    with pytest.raises(RunError) as caught:
        start(tmp_path, **made)
    line, file = str(caught.value), tmp_path / "run" / "setup-error-0.txt"
    assert line.startswith("cannot set up the run: ")
    assert part in line
    assert "\n" not in line
    assert str(file) in line
    assert "Traceback (most recent call last)" in file.read_text()
    assert "hf_abcdefghi" not in file.read_text()


def test_an_error_later_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from mini_r1.training.trainer import RunTrainer

    def train(self: RunTrainer) -> None:
        self.state.global_step = 1
        raise ValueError("a bug")

    monkeypatch.setattr(RunTrainer, "train", train)
    with pytest.raises(ValueError, match="a bug"):
        start(tmp_path, completion_samples_dir=tmp_path)
    assert not list(tmp_path.rglob("setup-error*"))


def test_our_own_lines_stay_as_they_are(tmp_path: Path):
    with pytest.raises(UserError, match="reward_weights must be 2 numbers") as caught:
        start(tmp_path, reward_weights=1.0)
    assert "set up" not in str(caught.value)
