"""What comes from outside is data: files that would run code when loaded, text that would drive a terminal."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import chaos
import forked_run
from conftest import ROOT, TINY_MODEL, TINY_RECIPE, program_environment
from mini_r1.common import RecipeError, masked
from mini_r1.recipe.parsing import read_yaml
from mini_r1.report import card as model_card
from mini_r1.run_folder.manifest import read_manifest, write_manifest

QUICK: dict[str, Any] = {"max_steps": 2, "dataset_rows": 60}


class Bomb:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "scheduler.pt"])
def test_a_pickle_in_a_checkpoint_is_not_run(name: str, tmp_path: Path):
    run, trace = tmp_path / "run", tmp_path / "trace"
    chaos.undisturbed(run, **QUICK)
    (run / "checkpoint-2" / name).write_bytes(pickle.dumps(Bomb(trace)))
    write_manifest(run / "checkpoint-2", read_manifest(run / "checkpoint-2") or {})
    assert forked_run.finish(chaos.start(run, **{**QUICK, "max_steps": 4})) == 1
    (line,) = [line for line in Path(f"{run}.log").read_text().splitlines() if line.startswith("error: ")]
    assert "cannot be read" in line
    assert "move it away" in line
    assert not trace.exists()


@pytest.mark.slow
def test_pickled_weights_are_not_loaded_for_training(tmp_path: Path):
    model, trace = tmp_path / "model", tmp_path / "trace"
    shutil.copytree(TINY_MODEL, model)
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(trace)))
    assert forked_run.finish(chaos.start(tmp_path / "run", model_name_or_path=model, **QUICK)) == 1
    (line,) = [line for line in Path(f"{tmp_path / 'run'}.log").read_text().splitlines() if line.startswith("error: ")]
    assert "safetensors" in line
    assert not trace.exists()


def test_a_recipe_cannot_make_objects(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"output_dir: !!python/object/apply:os.system ['touch {tmp_path / 'trace'}']\n")
    with pytest.raises(RecipeError, match="cannot read"):
        read_yaml(path)
    assert not (tmp_path / "trace").exists()


@pytest.mark.slow
def test_error_lines_carry_no_escape_sequences(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text(TINY_RECIPE.read_text() + '"\\e]0;owned\\a\\e[2J": 1\n')
    done = subprocess.run(
        [sys.executable, "scripts/run_r1_grpo.py", "--config", path, "--dry_run", "true"],
        cwd=ROOT, env=program_environment(), capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 1
    assert "unknown key" in done.stderr
    assert "\x1b" not in done.stderr
    assert "\x07" not in done.stderr


@pytest.mark.parametrize(
    "text",
    [
        "```\n# heading\n```",
        "````` <script>alert(1)</script>",
        "\x1b[2J",
        "plain",
        "```` ```\n[x](javascript:alert(1))",
    ],
)
def test_nothing_that_a_model_writes_leaves_its_block_in_the_card(text: str):
    block = model_card.fenced(text)
    fence = block.splitlines()[0].removesuffix("text")
    assert set(fence) == {"`"}
    inside = block.splitlines()[1:-1]
    assert block.splitlines()[-1] == fence
    assert not any(line.strip().startswith(fence) for line in inside)
    assert "\x1b" not in block


def test_the_public_recipe_has_no_secrets():
    given = {"hub_token": "hf_x", "env": {"HF_TOKEN": "hf_x"}, "output_dir": "/home/me", "max_steps": 3}
    assert model_card.public_recipe(given) == {"max_steps": 3}


def test_secrets_are_masked_however_deep():
    record = {
        "model_init_kwargs": {"token": "abc", "n": [1, "x hf_AbCdEf123456 y"]},
        "url": "https://me:pw@host/x",
        "a": None,
    }
    assert masked(record) == {
        "model_init_kwargs": {"token": "***", "n": [1, "x *** y"]}, "url": "https://***@host/x", "a": None,
    }  # fmt: skip


def test_this_code_evaluates_and_unpickles_nothing():
    import ast

    for path in sorted((ROOT / "scripts").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names]
                module = getattr(node, "module", "") or ""
                # Of pickle, only the name of its error.
                allowed = path.name == "exact_resume.py"
                assert allowed or not {"pickle", "dill", "joblib", "marshal", "shelve"} & {*names, module}, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile", "__import__"), path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = getattr(node.func.value, "id", "")
                assert (owner, node.func.attr) not in (("pickle", "load"), ("pickle", "loads")), path
                if (owner, node.func.attr) == ("torch", "load"):
                    safe = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
                    assert safe.get("weights_only") is True, path
