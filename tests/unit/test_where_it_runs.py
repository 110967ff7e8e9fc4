"""Docker, Hugging Face Jobs, SkyPilot: what they would start. None of them is here; the lines are real."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conftest import ROOT, program_environment
from dockerfile import stages

CONFIGS = ROOT / "configs"
PAGE = (CONFIGS / "README.md").read_text()
SKY = sorted((CONFIGS / "sky").glob("*.yaml"))
DOCKERFILE = CONFIGS / "docker" / "Dockerfile"


def made(line: str, folder: Path, **variables: str) -> str:
    """What make would do for a line that calls it, as a shell reads the line."""
    environment = program_environment(MAKEFLAGS="--dry-run", VENV=str(folder), **variables)
    done = subprocess.run(["bash", "-ec", line], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.replace("\\\n", "")


def launched(output: str) -> list[str]:
    """The words of the run in what make would do; the files that it names exist."""
    (line,) = [line for line in output.splitlines() if "scripts/run_r1_grpo.py" in line]
    words = shlex.split(line)
    for flag in ("--config", "--config_file"):
        assert (ROOT / words[words.index(flag) + 1]).is_file()
    return words


def test_the_images_call_make(tmp_path: Path):
    targets = stages(DOCKERFILE)
    assert set(targets) == {"source", "cpu", "cuda"}
    for name, installed in (("cpu", "install --quiet"), ("cuda", ".[gpu]")):
        (line,), (command,) = targets[name]["RUN"], targets[name]["CMD"]
        for words in (made(line, tmp_path), made(shlex.join(json.loads(command)), tmp_path)):
            assert "-m venv" in words
        assert installed in made(line, tmp_path)
    # No GPU is visible while an image is built, and by that `make install` chooses PyTorch's wheels.
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    blind = f"{tmp_path}:{os.environ['PATH']}"
    installs = {name: made(*targets[name]["RUN"], tmp_path, PATH=blind) for name in ("cpu", "cuda")}
    assert {name: "pytorch.org/whl/cpu" in text for name, text in installs.items()} == {"cpu": True, "cuda": False}


@pytest.mark.parametrize("path", SKY, ids=lambda path: path.name)
def test_sky_calls_make_with_recipe_and_topology_of_that_machine(path: Path, tmp_path: Path):
    task = yaml.safe_load(path.read_text())
    assert set(task) == {"name", "workdir", "resources", "envs", "setup", "run"}
    (gpus,) = set(task["resources"]["accelerators"].values())
    assert f"{gpus}x80gb" in path.stem
    # On SkyPilot's machines there is its own.
    (tmp_path / "uv").write_text('#!/bin/sh\n[ "$2" != find ] || command -v python3\n')
    (tmp_path / "uv").chmod(0o755)
    assert ".[gpu]" in made(task["setup"], tmp_path, PATH=f"{tmp_path}:{os.environ['PATH']}")
    words = launched(made(task["run"], tmp_path, ARGS="--max_steps 7 --output_dir 'runs/a b'"))
    assert words[-4:] == ["--max_steps", "7", "--output_dir", "runs/a b"]
    assert task["envs"] == {"ARGS": ""}
    recipe = (ROOT / words[words.index("--config") + 1]).read_text()
    assert re.search(rf"^# Hardware: +{gpus} x 80 ?GB", recipe, re.MULTILINE)
    processes = yaml.safe_load((ROOT / words[words.index("--config_file") + 1]).read_text())["num_processes"]
    assert f"x {processes} process" in recipe


JOBS = re.findall(r"^hf jobs run (?:.*\\\n)*.*", PAGE, re.MULTILINE)


@pytest.mark.slow  # loads huggingface_hub's command line
@pytest.mark.parametrize(
    ("line", "recipe"), list(zip(JOBS, ("tiny-countdown", "0.5b-lora"), strict=True)), ids=["cpu", "t4"]
)
def test_jobs_are_read_by_the_client_and_call_make(line: str, recipe: str, tmp_path: Path):
    line = line.replace("$(git remote get-url origin)", "https://example.org/mini-r1.git")
    program = "from huggingface_hub.cli.hf import main; main()"
    words = [sys.executable, "-c", program, "jobs", "run", "--dry-run", *shlex.split(line)[3:]]
    environment = program_environment(HF_TOKEN="hf_none", HOME=str(tmp_path), PATH=os.environ["PATH"])
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not submitted" in done.stdout
    assert "hf_none" not in done.stdout
    cloned, entered, make = shlex.split(line)[-1].split(" && ")
    assert (cloned, entered) == ("git clone https://example.org/mini-r1.git mini-r1", "cd mini-r1")
    words = launched(made(make, tmp_path))
    assert recipe in words[words.index("--config") + 1]
    assert words[-2:] == ["--push_to_hub", "true"]
