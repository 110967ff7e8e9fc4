"""A path in a recipe means the same wherever a run starts, and the Makefile finds the folder that a run writes."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, TINY_MODEL, TINY_RECIPE
from mini_r1.countdown import TASK
from mini_r1.recipe.files import place, same_value
from mini_r1.recipe.parsing import read_draft, read_recipe


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a model in it, which is also the current folder."""
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "generate").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        pytest.param("models/mine", "{home}/models/mine", id="here"),
        pytest.param("./models/mine/", "{home}/models/mine", id="with a slash at its end"),
        pytest.param("~/models/mine", "{home}/models/mine", id="at home"),
        pytest.param("configs/tiny-countdown/", "{root}/configs/tiny-countdown", id="in the repository"),
        pytest.param("~/models/none", "{home}/models/none", id="at home, not there"),
        pytest.param("./nowhere", "./nowhere", id="a path by its looks, not there"),
        pytest.param("Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-3B-Instruct", id="on the Hub"),
        pytest.param("generate", "generate", id="a word, though there is such a folder"),
        pytest.param("hub:step-50", "hub:step-50", id="on the Hub, a step"),
        pytest.param("x" * 999, "x" * 999, id="longer than any file's name"),
    ],
)
def test_what_a_path_means(name: str, meant: str, home: Path):
    assert place(name) == meant.format(home=home, root=ROOT)


def test_in_the_repository_a_path_stays_as_people_write_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    assert place("configs/tiny-countdown/") == "configs/tiny-countdown"
    monkeypatch.chdir(ROOT / "scripts")
    assert place("../configs/tiny-countdown") == str(ROOT / "scripts" / "../configs/tiny-countdown")


@pytest.mark.parametrize(
    ("key", "one", "other", "same"),
    [
        ("model_name_or_path", "configs/tiny-countdown", f"{TINY_MODEL}/", True),
        ("model_name_or_path", "configs/tiny-countdown", "configs", False),
        ("model_name_or_path", "Qwen/a", "Qwen/b", False),
        ("tokenizer_name_or_path", None, "configs/tiny-countdown", False),
        ("seed", 1, 1, True),
        ("optim_args", "configs", "configs/", False),
    ],
)
def test_paths_are_compared_by_what_they_mean(key: str, one: object, other: object, same: bool, home: Path):
    assert same_value(key, one, other) is same


@pytest.mark.slow
@pytest.mark.parametrize("read", [read_recipe, read_draft])
def test_a_recipe_is_read_the_same_from_anywhere(read, home: Path):
    where = [
        "--output_dir",
        "~/runs/x",
        "--completion_samples_dir",
        "~/samples",
        "--tokenizer_name_or_path",
        "~/models/mine",
    ]
    recipe = read(["--config", str(TINY_RECIPE), *where, "--resume_from_checkpoint", "models/mine"], TASK)
    assert recipe.model.model_name_or_path == str(TINY_MODEL)
    assert recipe.puzzles.dataset_id_or_path == "generate"
    assert recipe.training.output_dir == str(home / "runs" / "x")
    assert recipe.script.completion_samples_dir == str(home / "samples")
    assert recipe.script.tokenizer_name_or_path == str(home / "models" / "mine")
    assert recipe.training.resume_from_checkpoint == str(home / "models" / "mine")
    assert recipe.resolved["model_name_or_path"] == str(TINY_MODEL)
    if read is read_recipe:  # what a model card publishes stays as it was written
        assert recipe.given["model_name_or_path"] == "configs/tiny-countdown"
        assert recipe.given["tokenizer_name_or_path"] == "~/models/mine"


def test_an_output_dir_is_relative_to_the_current_folder(home: Path):
    recipe = read_draft(["--config", str(TINY_RECIPE), "--output_dir", "configs"], TASK)
    assert recipe.training.output_dir == "configs"


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        pytest.param("", "runs/grpo-tiny-countdown-cpu", id="the recipe's"),
        pytest.param("--max_steps 3 --output_dir runs/a", "runs/a", id="plain"),
        pytest.param("--output_dir=runs/lr=2e-4", "runs/lr=2e-4", id="equals signs"),
        pytest.param("--output_dir 'runs/try 1' --max_steps 3", "runs/try 1", id="a blank"),
        pytest.param('--output_dir "runs/run(1)"', "runs/run(1)", id="parentheses"),
        pytest.param("--output_dir runs/q+r", "runs/q+r", id="a plus sign"),
        pytest.param("--output_dir ~/runs/x", "{home}/runs/x", id="at home"),
        pytest.param("--output_dir runs/a --output_dir runs/b", "runs/b", id="twice"),
    ],
)
def test_make_evaluates_and_reports_the_folder_that_it_trained(arguments: str, folder: str):
    command = ["make", "-n", "train", f"BIN={Path(sys.executable).parent}", f"ARGS={arguments}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    _, *after = [shlex.split(line) for line in done.stdout.splitlines() if "scripts/" in line]
    assert [words[2:] for words in after] == [[folder.format(home=os.path.expanduser("~"))]] * 2  # noqa: PTH111
