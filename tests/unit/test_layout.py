"""The house keeps its direction: every import of ours points downwards, and no room but the task's knows the task."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

SCRIPTS = ROOT / "scripts"
# Floors from the bottom; rooms of one floor do not import each other, `evaluation` from `generation` apart.
FLOORS = (
    {"common", "intervals", "signs", "launching"},
    {"task"},
    {"responses", "countdown", "reasoning_gym"},
    {"recipe"},
    {"run_folder"},
    {"generation", "report", "evaluation", "hub"},
    {"training"},
    {"script"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
ALLOWED_SIBLINGS = {("evaluation", "generation")}
# The one place a room is free to name the task: the path that run folders of before there was one mean.
SCRIPTS_THAT_KNOW_THE_TASK = set("run_r1_grpo run_cold_start play app serve_vllm check_gpu evaluate probe".split())


def room_of(path: Path) -> str:
    parts = path.relative_to(SCRIPTS).with_suffix("").parts
    return parts[1] if parts[0] == "mini_r1" and len(parts) > 1 else "script"


def imports(path: Path) -> set[str]:
    """The rooms that a file imports from, wherever in the file it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "mini_r1":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mini_r1."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mini_r1.")}
    return found


FILES = [path for path in sorted(SCRIPTS.rglob("*.py")) if path != SCRIPTS / "mini_r1" / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SCRIPTS)))
def test_imports_point_downwards(path: Path):
    room = room_of(path)
    for other in imports(path) - {room}:
        below = FLOOR[other] < FLOOR[room] or (room, other) in ALLOWED_SIBLINGS
        assert below, f"{room} imports {other}, which is not below it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SCRIPTS)))
def test_only_the_task_and_scripts_know_the_task(path: Path):
    if room_of(path) == "script":
        assert "countdown" not in imports(path) or path.stem in SCRIPTS_THAT_KNOW_THE_TASK
    elif room_of(path) not in ("countdown", "reasoning_gym"):
        assert not {"countdown", "reasoning_gym"} & imports(path)


def test_every_room_says_what_it_offers():
    for init in (SCRIPTS / "mini_r1").glob("*/__init__.py"):
        assert ast.get_docstring(ast.parse(init.read_text())), init


def test_files_and_functions_are_of_a_size_that_can_be_read():
    """A sense of proportion, not a rule of style: what grows beyond is to be cut where it has two subjects."""
    for path in FILES:
        text = path.read_text()
        assert len(text.splitlines()) <= 400, path
        assert "fmt: skip" not in text, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"


def test_the_rewards_can_be_imported_without_a_machine_learning_library():
    heavy = ("torch", "transformers", "trl", "accelerate", "datasets", "huggingface_hub", "yaml", "pandas", "pyarrow")
    program = "import sys, run_r1_grpo; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=SCRIPTS, env={"PYTHONPATH": str(SCRIPTS)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not set(heavy) & set(done.stdout.split())
