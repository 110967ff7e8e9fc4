"""A run on a task of reasoning-gym from the embedded model, what follows a run, and the cold start of its recipe."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import evaluate
import probe
import report
import run_leg_counting_cold_start
from conftest import QUICK, ROOT, TINY_MODEL, Launcher, flags
from mini_r1.reasoning_gym import TASK, entry
from mini_r1.responses import judge

pytestmark = pytest.mark.slow

RECIPE = ROOT / "receipes" / "grpo-tiny-leg-counting-cpu.yaml"
COLD_START = ROOT / "receipes" / "sft-tiny-leg-counting.yaml"
# The embedded model's tokenizer was made for another prompt.
HERE = {**QUICK, "model_name_or_path": TINY_MODEL, "held_out_puzzles": 30, "max_prompt_tokens": 400}


def test_a_run_is_trained_evaluated_and_reported_as_on_countdown(launcher: Launcher, tmp_path: Path):
    run, samples = tmp_path / "run", tmp_path / "samples"
    keys = {**HERE, "output_dir": run, "completion_samples_dir": samples, "success_sample_share": 1.0}
    code, output = launcher.run(script="scripts/run_reasoning_gym.py", recipe=RECIPE, **keys)
    assert code == 0, output
    assert "step        2/2 | solved" in output

    description = json.loads((run / "run.json").read_text())
    assert description["task"] == "mini_r1.reasoning_gym"
    assert description["recipe"]["task_config"] == {"min_animals": 2, "max_animals": 4, "max_instances": 6}
    assert [point["step"] for point in json.loads((run / "held_out.json").read_text())] == [0, 2]
    records = [json.loads(line) for line in (run / "samples" / "completion_samples.jsonl").read_text().splitlines()]
    assert len(records) == 2 * 8 + 2 * 16
    for record in records:  # kept with the very reward that the scorer gives
        puzzle = TASK.puzzle_of(record)
        assert entry(puzzle)["question"] == puzzle.question
        assert judge(TASK, record["response"], puzzle).reward == record["equation_reward"]
    logged = json.loads((run / "trainer_state.json").read_text())["log_history"]
    assert {"rewards/accuracy_reward_func/mean", "rewards/format_reward_func/mean"} <= set().union(*logged)
    assert "# run" in (run / "README.md").read_text()

    evaluate.main([str(run), "--backend", "transformers", "--num_puzzles", "8"])
    (path,) = (run / "evaluation").glob("*.json")
    result = json.loads(path.read_text())
    assert result["puzzles"] == "held-out puzzles of leg_counting"
    assert [e["name"] for e in result["checkpoints"]] == ["base", "checkpoint-1", "checkpoint-2"]
    assert set(result["checkpoints"][0]["strata"]) == {"all puzzles", "leg_counting"}

    report.main([str(run)])
    page = (run / "report.html").read_text()
    assert "Score while training" in page
    assert "how many legs are there in total" in page


def test_the_probe_takes_the_task_of_the_recipe(capsys: pytest.CaptureFixture[str]):
    keys = {**HERE, "max_completion_length": 8}
    own = ["--task_module", TASK.path, "--groups", "2", "--backend", "transformers"]
    probe.main([*own, "--config", str(RECIPE), *flags(**keys)])
    out = capsys.readouterr().out
    assert re.search(r"^leg_counting +2 +0%", out, re.MULTILINE)
    assert "It will not learn." in out


def test_a_short_cold_start_leaves_a_model_of_the_task(tmp_path: Path):
    keys = {
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "dataset_rows": 200,
        "held_out_puzzles": 20,
        "eval_puzzles": 4,
        "save_strategy": "no",
        "report_to": "none",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "output_dir": tmp_path,
    }
    run_leg_counting_cold_start.main(["--config", str(COLD_START), *flags(**keys)])
    result = json.loads((tmp_path / "cold_start.json").read_text())
    assert sum(result["reasons"].values()) == 4

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from run_r1_grpo import build_prompt

    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.vocab_size == len(tokenizer)
    puzzle = TASK.load(run_leg_counting_cold_start.GymArguments(task="leg_counting", dataset_rows=20), False).train[0]
    prompt = build_prompt(tokenizer, puzzle, TASK)
    animals = puzzle.question.count(",") + 1
    assert len(tokenizer(prompt)["input_ids"]) < 20 + 8 * animals  # what all questions share is a token each
