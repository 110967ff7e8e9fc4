"""make_dataset.py: puzzles leave as a data set, come back as the same split, and are evaluated to the same numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import evaluate
import make_dataset
from conftest import TINY_MODEL, TINY_RECIPE, flags
from mini_r1.common import DiskError, RunError
from mini_r1.countdown import TASK
from mini_r1.countdown.dataset import PuzzleArguments
from mini_r1.task import Split

pytestmark = pytest.mark.slow
KEYS = {"dataset_rows": 400, "number_counts": [3, 4], "held_out_puzzles": 30}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "puzzles"
    keys = ["--dataset_rows", "400", "--number_counts", "3", "4", "--held_out_puzzles", "30"]
    make_dataset.main(["--config", str(TINY_RECIPE), "--output", str(folder), *keys])
    return folder


@pytest.fixture(scope="module")
def split() -> Split:
    return TASK.load(PuzzleArguments("generate", **KEYS), False)


def test_datasets_loads_it(folder: Path, split: Split, tmp_path: Path):
    from datasets import load_dataset

    found = load_dataset(str(folder), cache_dir=str(tmp_path))
    assert {part: len(rows) for part, rows in found.items()} == {"train": len(split.train), "test": len(split.held_out)}
    for part, puzzles in (("train", split.train), ("test", split.held_out)):
        assert [(tuple(row["nums"]), row["target"]) for row in found[part]] == [(tuple(n), t) for n, t in puzzles]
        assert [row["stratum"] for row in found[part]] == [TASK.stratum(puzzle) for puzzle in puzzles]


def test_nothing_is_written_over(folder: Path):
    before = (folder / "train.parquet").read_bytes()
    with pytest.raises(DiskError, match="is not empty: remove it, or name another folder with --output"):
        make_dataset.main(["--config", str(TINY_RECIPE), "--output", str(folder)])
    assert (folder / "train.parquet").read_bytes() == before


def test_its_card_counts_what_is_there(folder: Path, split: Split):
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["license"] == "apache-2.0"
    assert {part["split"]: part["path"] for part in front["configs"][0]["data_files"]} == {
        "train": "train.parquet",
        "test": "test.parquet",
    }
    for kind in {TASK.stratum(puzzle) for puzzle in split.train + split.held_out}:
        counts = (sum(TASK.stratum(puzzle) == kind for puzzle in part) for part in (split.train, split.held_out))
        assert "| {} | {} | {} |".format(kind, *counts) in text
    assert "    dataset_seed: 42\n" in text
    assert "    number_counts: [3, 4]\n" in text


def test_a_run_on_both_splits_has_the_split_of_the_recipe(folder: Path, split: Split):
    arguments = PuzzleArguments(str(folder), dataset_split="train+test", dataset_rows=0, held_out_puzzles=30)
    again = TASK.load(arguments, False)
    assert again.describe() == split.describe()
    assert [(list(n), t) for n, t in again.held_out] == [(list(n), t) for n, t in split.held_out]


@pytest.fixture(scope="module")
def run(split: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on these puzzles, with the tiny model as its only checkpoint."""
    run = tmp_path_factory.mktemp("run")
    recipe = {"dataset_id_or_path": "generate", "max_completion_length": 64, **KEYS}
    (run / "run.json").write_text(json.dumps({"name": "x", "recipe": recipe, "split": split.describe()}))
    shutil.copytree(TINY_MODEL, run / "checkpoint-1")
    return run


def evaluated(run: Path, output: Path, *words: str) -> tuple[Any, Any]:
    evaluate.main([str(run), *words, *flags(backend="transformers", samples=2, num_puzzles=16, output=output)])
    (path,) = output.glob("*.json")
    completions = [json.loads(line) for line in path.with_suffix(".jsonl").open()]
    return json.loads(path.read_text())["checkpoints"][0]["strata"], completions


def test_evaluating_on_it_gives_the_numbers_of_our_own(folder: Path, run: Path, tmp_path: Path):
    own = evaluated(run, tmp_path / "own")
    assert len(own[1]) == 32
    assert evaluated(run, tmp_path / "file", "--puzzles", str(folder / "test.parquet")) == own
    words = ("--puzzles", str(folder), "--puzzles_split", "test")
    assert evaluated(run, tmp_path / "folder", *words) == own


def test_its_training_puzzles_are_still_refused(folder: Path, run: Path, tmp_path: Path):
    with pytest.raises(RunError, match="training side of the split"):
        evaluated(run, tmp_path, "--puzzles", str(folder / "train.parquet"))
