"""Models that are on the Hub, evaluated and planned for: the real programs and a Hub on 127.0.0.1."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOT, TINY_MODEL, TINY_RECIPE, program_environment
from hub_server import HubServer, User

pytestmark = pytest.mark.slow

TOKEN = "hf_secret-of-alice"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """The tiny model as alice/tiny, mute on its branch `mute`; an adapter of it as alice/adapter at `v1`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    work = tmp_path_factory.mktemp("models")
    weights = load_file(TINY_MODEL / "model.safetensors")
    save_file({name: torch.zeros_like(w) for name, w in weights.items()}, work / "mute.safetensors", {"format": "pt"})
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(TINY_MODEL), LoraConfig(r=2, task_type="CAUSAL_LM"))
    model.peft_config["default"].base_model_name_or_path = "alice/tiny"
    model.save_pretrained(work / "adapter")
    with HubServer({TOKEN: User("alice"), "reader": User("alice", role="read")}) as running:
        running.put("alice/tiny", contents(TINY_MODEL), private=True)
        running.put("alice/tiny", {"model.safetensors": (work / "mute.safetensors").read_bytes()}, revision="mute")
        running.put("alice/adapter", contents(work / "adapter"), revision="v1", private=True)
        running.put("alice/empty", {"notes.txt": b""})
        yield running


def run(server: HubServer, home: Path, *words: object, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    environment = program_environment() | server.environment(home, token)
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def test_revisions_and_adapters_of_the_hub_are_evaluated_side_by_side(server: HubServer, tmp_path: Path):
    done = run(
        server, tmp_path, "scripts/evaluate.py", "alice/tiny", "alice/tiny@mute", "alice/adapter@v1",
        "--backend", "transformers", "--num_puzzles", "32", "--number_counts", "3", "--max_completion_length", "64",
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "out").glob("*.json")
    whole, mute, adapter = json.loads(written.read_text())["checkpoints"]
    assert [entry["name"] for entry in (whole, mute, adapter)] == ["alice/tiny", "alice/tiny@mute", "alice/adapter@v1"]
    assert [entry["revision"] for entry in (whole, mute, adapter)] == ["main", "mute", "v1"]
    assert [entry["adapter"] for entry in (whole, mute, adapter)] == [False, False, True]
    formats = [entry["strata"]["all puzzles"]["format"] for entry in (whole, mute, adapter)]
    # A fresh adapter changes nothing; weights of nothing write nonsense.
    assert formats[1] == 0.0
    assert min(formats[0], formats[2]) > 0.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["alice/tiny@nowhere"], "alice/tiny"),
        (["alice/nothing"], "alice/nothing"),
    ],
)
def test_what_the_hub_does_not_have_is_told_in_one_line(
    words: list[str], message: str, server: HubServer, tmp_path: Path
):
    done = run(server, tmp_path, "scripts/evaluate.py", *words, "--backend", "transformers", "--num_puzzles", "4")
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("token", "changes", "code", "shown"),
    [
        (TOKEN, [], 0, "makes alice/new (private) and uploads as alice"),
        (TOKEN, ["--hub_private_repo", "false"], 0, "makes alice/new (public)"),
        (TOKEN, ["--hub_model_id", "alice/empty"], 0, "uploads to alice/empty (public, there already) as alice"),
        (TOKEN, ["--hub_model_id", "alice/tiny"], 2, "holds a model that is not this run's"),
        ("reader", [], 2, "this token may only read"),
        ("nobody's", [], 2, "the Hub refuses this token for alice/new"),
        ("", [], 2, "there is no token"),
        (TOKEN, ["--hub_model_id", "bob/model"], 2, "alice may not write to bob: set hub_model_id to alice/model"),
        ("nobody's", ["--hub_checks", "false"], 0, "the token is not checked"),
    ],
)  # fmt: skip
def test_the_plan_asks_the_hub_about_token_target_and_model(
    token: str, changes: list[str], code: int, shown: str, server: HubServer, tmp_path: Path
):
    done = run(
        server, tmp_path, "scripts/run_r1_grpo.py", "--config", TINY_RECIPE, "--dry_run", "true", "--push_to_hub",
        "true", "--hub_model_id", "alice/new", "--output_dir", tmp_path / "run", *changes, token=token,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert shown in done.stdout + done.stderr
    assert not (tmp_path / "run").exists()
    assert "alice/new" not in server.repos()


def test_the_plan_knows_the_shape_of_a_model_on_the_hub(server: HubServer, tmp_path: Path):
    done = run(
        server, tmp_path, "scripts/run_r1_grpo.py", "--config", TINY_RECIPE, "--dry_run", "true",
        "--model_name_or_path", "alice/tiny", "--output_dir", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "alice/tiny, 1.1 M parameters" in done.stdout
