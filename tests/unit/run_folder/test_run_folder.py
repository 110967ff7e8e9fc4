"""What a run folder tells and keeps to itself."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from conftest import draft
from mini_r1.common import masked_command
from mini_r1.countdown.dataset import PuzzleArguments, load_puzzles
from mini_r1.run_folder import folder as run_folder
from mini_r1.run_folder.folder import Run
from mini_r1.run_folder.record import LENGTH_METRIC, SUCCESS_METRIC, held_out_curve


@pytest.mark.parametrize(
    ("argv", "masked"),
    [
        (["--hub_token", "hf_x", "--max_steps", "3"], ["--hub_token", "***", "--max_steps", "3"]),
        (["--hub_token=hf_x"], ["--hub_token=***"]),
        (["--hub-token", "hf_x"], ["--hub-token", "***"]),
        (["--max_prompt_tokens", "256"], ["--max_prompt_tokens", "256"]),
        (["--hub_token"], ["--hub_token"]),
    ],
)
def test_tokens_are_masked_in_the_recorded_command(argv: list[str], masked: list[str]):
    assert masked_command(argv) == masked


def test_held_out_curve_has_one_point_a_step_and_an_interval_around_it():
    history = [
        {"step": 0, SUCCESS_METRIC: 0.25, LENGTH_METRIC: 40.0},
        {"step": 1, "reward": 1.0},
        {"step": 5, SUCCESS_METRIC: 0.5, LENGTH_METRIC: 60.0},
        {"step": 5, SUCCESS_METRIC: 0.75, LENGTH_METRIC: 80.0},  # evaluated again after a resume
    ]
    first, last = held_out_curve(history, puzzles=100)
    assert (first["step"], last["step"], last["pass@1"], last["mean_tokens"]) == (0, 5, 0.75, 80.0)
    assert first["low"] < 0.25 < first["high"]
    assert last["puzzles"] == 100


def test_kinds_of_puzzles_have_points_of_their_own():
    kind = "3 numbers, + -"
    names = (("", 0.25), ("_low", 0.1), ("_high", 0.4))
    entry = {"step": 5, SUCCESS_METRIC: 0.5, **{f"eval_pass@1{end}/{kind}": value for end, value in names}}
    entry |= {"eval_pass@1/all puzzles": 0.5, "eval_pass@1_low/all puzzles": 0.45, "eval_pass@1_high/all puzzles": 0.55}
    (point,) = held_out_curve([entry], puzzles=4)
    assert (point["low"], point["high"]) == (0.45, 0.55)  # of several completions a puzzle, as they were logged
    assert point["strata"] == {kind: {"pass@1": 0.25, "low": 0.1, "high": 0.4}}


def a_run(folder: Path, samples: Path) -> Run:
    recipe = draft(output_dir=str(folder), completion_samples_dir=str(samples), process_index=0, seed=1)
    return Run(recipe, None, load_puzzles(PuzzleArguments("generate", dataset_rows=20), False), [])


def test_an_earlier_runs_files_are_set_aside_not_mixed_with(tmp_path: Path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "completion_samples.jsonl").write_text("old")
    (tmp_path / "run.json").write_text(json.dumps({"name": "first-run"}))
    a_run(tmp_path, tmp_path / "text")._set_earlier_run_aside()
    assert not (tmp_path / "samples").exists()
    assert (tmp_path / "samples-first-run" / "completion_samples.jsonl").read_text() == "old"


def test_the_fixed_names_point_to_the_newest_run_and_a_users_own_file_stays(tmp_path: Path):
    (tmp_path / "success_completion_samples.txt").write_text("mine")
    names = []
    for text in ("a", "b"):
        run = a_run(tmp_path / f"run-{text}", tmp_path)
        run._link_samples()
        (run.samples_folder / "completion_samples.txt").write_text(text)
        names.append(run.name)
    assert (tmp_path / "completion_samples.txt").read_text() == "b"
    assert (tmp_path / names[0] / "completion_samples.txt").read_text() == "a"
    assert (tmp_path / "success_completion_samples.txt").read_text() == "mine"


def test_a_download_inside_another_repository_has_not_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commit = ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--allow-empty", "--message", "another"]
    for words in (["init", "--quiet"], commit):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    room = tmp_path / "mini-r1-main" / "scripts" / "mini_r1" / "run_folder"
    room.mkdir(parents=True)
    monkeypatch.setattr(run_folder, "__file__", str(room / "folder.py"))
    assert run_folder._git_commit() is None
