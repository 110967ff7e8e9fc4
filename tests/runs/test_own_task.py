"""README's "your own task": a task in one file, `run_r1_grpo.py` with one import changed; all else follows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backwards import TASK
from conftest import QUICK, ROOT, TINY_MODEL, program_environment
from mini_r1.launching import launch_command

pytestmark = pytest.mark.slow
IMPORT = "from mini_r1.countdown import TASK "
FOLDERS = (ROOT / "tests" / "tools", ROOT / "scripts")  # the task's own, and what a copied script imports


def run(*command: object, path: str = os.pathsep.join(map(str, FOLDERS))) -> subprocess.CompletedProcess[str]:
    environment = program_environment(PYTHONPATH=path)
    words = list(map(str, command))
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=850)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two steps, started as README says."""
    folder = tmp_path_factory.mktemp("own")
    method = (ROOT / "scripts" / "run_r1_grpo.py").read_text()
    assert method.count(IMPORT) == 1
    script = folder / "run_backwards.py"
    script.write_text(method.replace(IMPORT, "from backwards import TASK "))
    recipe = folder / "backwards.yaml"
    recipe.write_text(
        f"model_name_or_path: {TINY_MODEL}\noutput_dir: {folder / 'run'}\ndtype: float32\nbf16: false\nuse_cpu: true\n"
        f"completion_samples_dir: {folder / 'samples'}\neval_strategy: steps\nreport_to: tensorboard\n"
    )
    done = run(*launch_command("cpu.yaml", QUICK, script=(str(script),), recipe=recipe))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run"


def test_it_trains(finished: Path):
    """Two optimizer steps were made on the task's own puzzles, and its verdicts are those of its own `check`."""
    described = json.loads((finished / "run.json").read_text())
    assert (described["task"], described["recipe"]["dataset_rows"]) == ("backwards", QUICK["dataset_rows"])
    assert json.loads((finished / "trainer_state.json").read_text())["global_step"] == 2
    samples = [json.loads(line) for line in (finished / "samples" / "completion_samples.jsonl").open()]
    assert len([sample for sample in samples if sample["split"] == "train"]) == 2 * 8
    assert {sample["reason"] for sample in samples} <= {reason.value for reason in TASK.reasons}
    assert all(set(sample["word"]) <= set("abcdefghij") for sample in samples)
    rendered = (finished / "README.md").read_text()
    assert "backwards" in rendered


def test_it_is_evaluated(finished: Path):
    done = run(sys.executable, "scripts/evaluate.py", finished, "--num_puzzles", 8, "--backend", "transformers")
    assert done.returncode == 0, done.stderr
    (result,) = (json.loads(path.read_text()) for path in finished.glob("evaluation/*.json"))
    assert [entry["name"] for entry in result["checkpoints"]] == ["base", "checkpoint-1", "checkpoint-2"]
    assert set(result["checkpoints"][0]["strata"]) <= {"all puzzles", "3 letters", "4 letters"}


def test_it_is_reported(finished: Path):
    done = run(sys.executable, "scripts/report.py", finished)
    assert done.returncode == 0, done.stderr
    page = (finished / "report.html").read_text()
    samples = (finished / "samples" / "completion_samples.jsonl").read_text().splitlines()
    assert samples
    assert all(json.loads(sample)["word"] in page for sample in samples)


@pytest.mark.parametrize("script", ["evaluate.py", "report.py"])
def test_a_task_that_the_user_did_not_name_is_not_run(finished: Path, script: str):
    done = run(sys.executable, f"scripts/{script}", finished, path="")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: run.json or --task_module names the task 'backwards'")
    assert "PYTHONPATH" in done.stderr
    assert done.stderr.count("\n") == 1
