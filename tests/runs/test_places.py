"""Real runs in folders of odd names, of the best model, of adapters, and from another folder than the repository's."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from safetensors.torch import load_file

import forked_run
from conftest import QUICK, ROOT, TINY_RECIPE, flags, program_environment
from mini_r1.run_folder.checkpoints import resolve

pytestmark = pytest.mark.slow


def run(folder: Path, fault: tuple | None = None, **overrides: object) -> tuple[int, str]:
    settings = {**QUICK, "output_dir": folder / "run", "completion_samples_dir": folder / "samples", **overrides}
    code = forked_run.finish(
        forked_run.start(["--config", str(TINY_RECIPE), *flags(**settings)], folder / "log", fault)
    )
    return code, (folder / "log").read_text()


def error_in(output: str) -> str:
    (error,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in output
    return error


def test_the_best_model_of_a_killed_run_in_a_folder_with_an_odd_name(tmp_path: Path):
    folder = tmp_path / "lr=5e-2, try 1 (q+r)[*]"
    # At this learning rate the model is at its best before the third step, and equal scores are no better ones.
    best: dict[str, object] = {"load_best_model_at_end": True}  # by held-out success
    best |= {"max_steps": 4, "save_steps": 2, "eval_steps": 2, "learning_rate": 0.05, "warmup_steps": 3}
    code, output = run(tmp_path, ("kill_in_step", 4), output_dir=folder, **best)
    assert code == -signal.SIGKILL, output
    code, output = run(tmp_path, output_dir=folder, **best)
    assert code == 0, output

    # One run, one folder of samples, every completion once.
    (samples,) = (path for path in (tmp_path / "samples").iterdir() if path.is_dir())
    assert samples.name == json.loads((folder / "run.json").read_text())["name"]
    assert samples.name.startswith(folder.name)
    lines = (samples / "completion_samples.txt").read_text().splitlines()
    steps = Counter(line.split(" · ")[0] for line in lines if line.startswith("step ") and " · train · " in line)
    assert steps == {f"step {step}": 8 for step in range(4)}

    # Weights of step 2, and everything says so.
    saved, kept, last = (
        load_file(folder / name / "model.safetensors") for name in ("", "checkpoint-2", "checkpoint-4")
    )
    assert all(saved[name].equal(kept[name]) for name in kept)
    assert not all(saved[name].equal(last[name]) for name in last)
    assert "The model is that of step 2" in output
    assert "held-out success after,  step    2:" in output
    assert "State: step 2, the best of 4." in (folder / "README.md").read_text()
    assert [p["step"] for p in json.loads((folder / "held_out.json").read_text()) if p.get("final")] == [2]
    names = ["base", "checkpoint-2", "checkpoint-4", "final model (step 2)"]
    assert [checkpoint.name for checkpoint in resolve(str(folder))] == names


def test_an_adapter_on_one_target_whose_weights_alone_were_saved(tmp_path: Path):
    lora = {"use_peft": True, "max_steps": 1, "eval_strategy": "no", "save_only_model": True}
    code, output = run(tmp_path, **lora, lora_target_modules="q_proj")
    assert code == 0, output
    assert json.loads((tmp_path / "run" / "adapter_config.json").read_text())["target_modules"] == ["q_proj"]
    code, output = run(tmp_path, **lora | {"max_steps": 2}, lora_target_modules="q_proj")
    assert code == 1
    assert "and merge it into its base model, python scripts/export.py " in error_in(output)

    recipe = TINY_RECIPE.read_text() + "use_peft: true\nlora_target_modules: [q_proj, v_pro]\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    errors = set()
    for dry_run in (True, False):
        argv = flags(config=tmp_path / "recipe.yaml", output_dir=tmp_path / "other", dry_run=dry_run)
        assert forked_run.finish(forked_run.start(argv, tmp_path / "log")) == 1
        errors.add(error_in((tmp_path / "log").read_text()))
    assert [error.partition(": it has")[0] for error in errors] == [
        "error: lora_target_modules: no module of the model is called v_pro"
    ]


def test_a_recipe_of_ours_starts_from_another_folder(tmp_path: Path):
    command = [
        sys.executable,
        "run_r1_grpo.py",
        "--config",
        "../receipes/grpo-tiny-countdown-cpu.yaml",
        "--dry_run",
        "true",
    ]
    done = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "run")], cwd=ROOT / "scripts", env=program_environment(),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1.1 M parameters" in done.stdout
