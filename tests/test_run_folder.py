"""Where a run goes on, and what its folder tells and keeps to itself."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from mini_r1 import run_folder
from mini_r1.recipe import RecipeError
from mini_r1.run_folder import LENGTH_METRIC, SUCCESS_METRIC, find_checkpoint, held_out_curve


def checkpoint(run: Path, step: int, *, weights: str | None = "model.safetensors", state: str | None = None) -> Path:
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    if weights:
        (folder / weights).touch()
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}) if state is None else state)
    return folder


def settings(run: Path, **changes: object) -> SimpleNamespace:
    return SimpleNamespace(**{"output_dir": str(run), "resume_from_checkpoint": None, "max_steps": 100, **changes})


def test_an_empty_folder_starts_from_scratch(tmp_path: Path):
    assert find_checkpoint(settings(tmp_path / "nothing")) is None


def test_the_newest_checkpoint_is_by_number_not_by_name(tmp_path: Path):
    checkpoint(tmp_path, 9)
    newest = checkpoint(tmp_path, 10)
    (tmp_path / "checkpoint-old").mkdir()
    assert find_checkpoint(settings(tmp_path)) == str(newest)


@pytest.mark.parametrize(
    ("weights", "state"),
    [
        pytest.param(None, None, id="no weights"),
        pytest.param("model.safetensors", "", id="empty trainer state"),
        pytest.param("model.safetensors", '{"global_st', id="trainer state cut off"),
        pytest.param("model.safetensors", "{}", id="trainer state without a step"),
    ],
)
def test_incomplete_checkpoints_are_passed_over_and_named(
    weights: str | None, state: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    good = checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 20, weights=weights, state=state)
    assert find_checkpoint(settings(tmp_path)) == str(good)
    assert "checkpoint-20 is incomplete" in caplog.text


def test_an_explicit_checkpoint_wins_over_a_newer_one(tmp_path: Path):
    older = checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 20)
    assert find_checkpoint(settings(tmp_path, resume_from_checkpoint=str(older))) == str(older)


def test_resuming_can_be_turned_off_and_on(tmp_path: Path):
    newest = checkpoint(tmp_path, 20)
    assert find_checkpoint(settings(tmp_path, resume_from_checkpoint="false")) is None
    assert find_checkpoint(settings(tmp_path, resume_from_checkpoint=True)) == str(newest)


def test_an_explicit_checkpoint_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(RecipeError, match="resume_from_checkpoint"):
        find_checkpoint(settings(tmp_path, resume_from_checkpoint=str(tmp_path)))


def test_a_finished_run_says_so_but_one_killed_while_closing_goes_on(tmp_path: Path):
    last = checkpoint(tmp_path, 100)
    assert find_checkpoint(settings(tmp_path)) == str(last)
    (tmp_path / "trainer_state.json").touch()  # written when a run closes
    with pytest.raises(RecipeError, match=r"finished .*--output_dir"):
        find_checkpoint(settings(tmp_path))
    assert find_checkpoint(settings(tmp_path, max_steps=200)) == str(last)


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
    assert run_folder._mask_tokens(argv) == masked


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


def test_an_earlier_runs_files_are_set_aside_not_mixed_with(tmp_path: Path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "completion_samples.jsonl").write_text("old")
    run_folder._set_aside(tmp_path, "first-run")
    assert not (tmp_path / "samples").exists()
    assert (tmp_path / "samples-first-run" / "completion_samples.jsonl").read_text() == "old"


def test_the_fixed_names_point_to_the_newest_run_and_a_users_own_file_stays(tmp_path: Path):
    (tmp_path / "success_completion_samples.txt").write_text("mine")
    for name in ("a", "b"):
        run_folder._link_samples(run_folder.Run(name, tmp_path / "out", tmp_path / name))
        (tmp_path / name / "completion_samples.txt").write_text(name)
    assert (tmp_path / "completion_samples.txt").read_text() == "b"
    assert (tmp_path / "a" / "completion_samples.txt").read_text() == "a"
    assert (tmp_path / "success_completion_samples.txt").read_text() == "mine"
