"""evaluate.py: the right numbers for known answers, the right puzzles, and the same from both backends."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import QUICK, ROOT, TINY_MODEL, Launcher, program_environment
from evaluate import ALL, columns, compare, score, summarise
from mini_r1.checkpoints import Checkpoint, refuse_trained_puzzles, resolve
from mini_r1.countdown import Puzzle, is_held_out, stratum
from mini_r1.generation import Completion
from mini_r1.recipe import RecipeError

PROMPT = "... <think>"


def completion(text: str, truncated: bool = False) -> Completion:
    return Completion(text, len(text), truncated)


RIGHT = completion("44+19=63, 63+35=98 yes!</think>\n<answer>44+19+35</answer>")
WRONG = completion("44-19=25 too low</think>\n<answer>44-19+35</answer>")
CUT = completion("44-19=25 too low", truncated=True)


@pytest.mark.parametrize(("nums", "target", "expected"), [
    pytest.param((44, 19, 35), 98, "3 numbers, + -", id="a sum"),
    pytest.param((3, 5, 2), 17, "3 numbers, needs * /", id="3 * 5 + 2"),
    pytest.param((1, 1, 1), 100, "3 numbers, unsolvable", id="nothing reaches it"),
    pytest.param((1, 2, 3, 4), 10, "4 numbers, + -", id="four"),
    pytest.param((10, 20, 30, 40, 50, 60), 10, "6 numbers, + -", id="six"),
    pytest.param((2, 3, 7, 11, 13, 17), 1000, "6 numbers, needs * /", id="six with products"),
])  # fmt: skip
def test_strata(nums: tuple, target: int, expected: str):
    assert stratum(nums, target) == expected


def test_scores_of_known_completions():
    puzzles = [Puzzle((44, 19, 35), 98), Puzzle((44, 19, 35), 98)]
    scored = score(puzzles, [PROMPT] * 2, [[RIGHT, WRONG], [CUT, WRONG]])
    assert [[row["reason"] for row in rows] for rows in scored] == [
        ["correct", "wrong_value"],
        ["no_answer", "wrong_value"],
    ]
    summary = summarise(scored, [1, 2])
    assert summary["pass@1"] == pytest.approx(0.25)
    assert summary["pass@2"] == pytest.approx(0.5)
    assert summary["pass@1_low"] <= 0.25 <= summary["pass@1_high"]
    assert (summary["puzzles"], summary["completions"]) == (2, 4)
    assert summary["truncated"] == 0.25
    assert summary["format"] == 0.75
    assert summary["reasons"]["wrong_value"] == 0.5
    assert sum(summary["reasons"].values()) == 1
    assert summary["verifications"] == 0.25


def test_changes_are_of_the_same_puzzles():
    puzzles = [Puzzle((44, 19, 35), 98)] * 4
    before = score(puzzles, [PROMPT] * 4, [[RIGHT], [WRONG], [WRONG], [WRONG]])
    after = score(puzzles, [PROMPT] * 4, [[RIGHT], [RIGHT], [RIGHT], [WRONG]])
    (change,) = compare(["a", "b"], {"a": before, "b": after}, {ALL: [0, 1, 2, 3]})
    assert change["change"] == 0.5
    assert change["low"] < 0.5 < change["high"]


def test_tables_are_aligned():
    assert columns([["name", "x"], ["long name", "10.5"]]) == "name          x\n---------------\nlong name  10.5"


# ---- which checkpoints, which puzzles ------------------------------------------------------------------------------


def model_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((TINY_MODEL / name).read_bytes())
    return folder


def run_folder(folder: Path, **recipe: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {"dataset_id_or_path": "generate", "number_counts": [3], "number_range": [1, 99],
              "model_name_or_path": str(TINY_MODEL), **recipe}  # fmt: skip
    (folder / "run.json").write_text(json.dumps({"name": "x", "recipe": recipe, "split": {"share": 0.1}}))
    return folder


def test_a_run_folder_is_its_base_and_all_its_checkpoints_in_order(tmp_path: Path):
    run = run_folder(tmp_path / "run")
    for step in (10, 9, 100):
        model_folder(run / f"checkpoint-{step}")
    (run / "checkpoint-200").mkdir()  # not finished
    names = [checkpoint.name for checkpoint in resolve(str(run))]
    assert names == ["base", "checkpoint-9", "checkpoint-10", "checkpoint-100"]
    model_folder(run)
    (run / "trainer_state.json").write_text('{"global_step": 100}')
    assert [checkpoint.name for checkpoint in resolve(str(run))] == names  # the last checkpoint is the final model
    (run / "trainer_state.json").write_text('{"global_step": 120}')
    assert [checkpoint.name for checkpoint in resolve(str(run))] == [*names, "final model"]
    assert resolve(str(run / "checkpoint-9"))[0].run_folder == run


def test_hub_ids_with_revisions():
    (checkpoint,) = resolve("someone/model@abc")
    assert (checkpoint.path, checkpoint.revision) == ("someone/model", "abc")
    assert resolve("someone/model")[0].revision == "main"


@pytest.mark.parametrize("word", ["./nowhere", "/nowhere/at/all", "a/b/c", "tests"])
def test_what_is_no_checkpoint_is_refused(word: str):
    with pytest.raises(RecipeError, match=r"is no checkpoint folder|holds no model"):
        resolve(word)


def test_puzzles_of_the_training_side_are_refused(tmp_path: Path):
    run = run_folder(tmp_path / "run")
    checkpoint = resolve(str(model_folder(run / "checkpoint-5")))[0]
    puzzles = [Puzzle((a, b, 7), 50) for a in range(1, 40) for b in range(1, 40)]
    held_out = [puzzle for puzzle in puzzles if is_held_out(*puzzle, share=0.1)]
    assert 50 < len(held_out) < len(puzzles) / 5
    refuse_trained_puzzles([checkpoint], held_out)
    with pytest.raises(RecipeError, match="--allow_trained_puzzles"):
        refuse_trained_puzzles([checkpoint], puzzles)
    refuse_trained_puzzles([checkpoint], [Puzzle((1, 2, 3, 4), 10)])  # it has only seen three numbers
    refuse_trained_puzzles([Checkpoint("unknown", "someone/model")], puzzles)


# ---- the real thing ------------------------------------------------------------------------------------------------


def evaluate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "scripts/evaluate.py", *arguments],
        cwd=ROOT, env=program_environment(), capture_output=True, text=True, timeout=600,
    )  # fmt: skip


@pytest.mark.slow
def test_both_backends_measure_the_same(tmp_path: Path):
    results = {}
    for backend in ("transformers", "vllm"):
        done = evaluate(
            str(TINY_MODEL), "--backend", backend, "--num_puzzles", "256", "--samples", "4", "--k", "1", "4",
            "--number_counts", "3", "--max_completion_length", "288", "--output", str(tmp_path / backend),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "3 numbers, needs * /" in done.stdout
        (path,) = (tmp_path / backend).glob("*.json")
        results[backend] = json.loads(path.read_text())["checkpoints"][0]["strata"][ALL]
        samples = path.with_suffix(".jsonl").read_text().splitlines()
        assert len(samples) == 256 * 4
    one, other = results["transformers"], results["vllm"]
    for key in ("pass@1", "pass@4"):
        assert one[f"{key}_low"] <= other[key] <= one[f"{key}_high"]
        assert other[f"{key}_low"] <= one[key] <= other[f"{key}_high"]
    assert one["mean_tokens"] == pytest.approx(other["mean_tokens"], rel=0.1)
    assert one["pass@4"] > one["pass@1"]


@pytest.mark.slow
def test_a_run_with_an_adapter(launcher: Launcher, tmp_path: Path):
    run = tmp_path / "run"
    code, output = launcher.run(
        **{**QUICK, "number_counts": 3, "max_steps": 1}, use_peft=True, lora_r=4, eval_strategy="no",
        eval_on_start=False, output_dir=run, completion_samples_dir=tmp_path / "samples",
    )  # fmt: skip
    assert code == 0, output
    done = evaluate(str(run), "--backend", "transformers", "--num_puzzles", "16", "--max_completion_length", "64")
    assert done.returncode == 0, done.stderr
    assert "base" in done.stdout
    assert "checkpoint-1" in done.stdout
    (path,) = (run / "evaluation").glob("*.json")
    result = json.loads(path.read_text())
    assert [entry["adapter"] for entry in result["checkpoints"]] == [False, True]
    assert {row["checkpoint"] for row in result["table"]} == {"base", "checkpoint-1"}
    assert result["changes"][0]["from"] == "base"
    shutil.rmtree(run)


@pytest.mark.parametrize(("arguments", "message"), [
    pytest.param(["./nowhere"], "no checkpoint folder", id="no such folder"),
    pytest.param([str(TINY_MODEL), "--k", "4"], "--k must be between 1 and --samples (1)", id="k above the samples"),
    pytest.param([str(TINY_MODEL), "--samples", "0"], "--samples must be 1 or more", id="no samples"),
    pytest.param([str(TINY_MODEL), "--temperature", "-1"], "--temperature must be", id="negative temperature"),
    pytest.param([str(TINY_MODEL), "--puzzles", "./none.jsonl"], "does not exist", id="no such puzzles"),
])  # fmt: skip
def test_bad_input_is_one_line(arguments: list[str], message: str):
    done = evaluate(*arguments)
    assert done.returncode == 2
    (error,) = done.stderr.splitlines()
    assert message in error
