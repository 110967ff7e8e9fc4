"""Real programs and a Hub on 127.0.0.1: runs that upload and resume there, models that are trained and evaluated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

import chaos
import forked_run
from conftest import ROOT, TINY_MODEL, program_environment
from hub_server import Fault, HubServer, User
from mini_r1.hub.repository import NEWEST

pytestmark = pytest.mark.slow

TOKEN = "hf_secret-of-alice"
MODEL = "alice/run"
DONE = f"  on the Hub:       {MODEL}: "


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    """The tiny model as alice/tiny."""
    with HubServer({TOKEN: User("alice"), "reader": User("alice", role="read")}) as running:
        running.put("alice/tiny", contents(TINY_MODEL), private=True)
        yield running


def train(server: HubServer, run: Path, token: str = TOKEN, **changes: object) -> tuple[int, str]:
    """Trains alice/tiny into alice/new; returns the exit code and the output."""
    environment = server.environment(run.parent / "home", token)
    names = {"model_name_or_path": "alice/tiny", "push_to_hub": True, "hub_model_id": "alice/new"}
    code = forked_run.finish(chaos.start(run, None, environment, max_steps=2, **names, **changes))
    return code, Path(f"{run}.log").read_text()


def test_the_plan_asks_the_hub_and_changes_nothing_there(server: HubServer, tmp_path: Path):
    code, output = train(server, tmp_path / "run", dry_run=True)
    assert code == 0, output
    assert "alice/tiny, 1.1 M parameters" in output
    assert "makes alice/new (private)" in output
    code, output = train(server, tmp_path / "run", "reader", dry_run=True)
    assert code == 1, output
    assert "this token may only read" in output
    assert not (tmp_path / "run").exists()
    assert "alice/new" not in server.repos()


def test_a_model_of_the_hub_is_trained_and_comes_back_with_a_card(server: HubServer, tmp_path: Path):
    code, output = train(server, tmp_path / "run", hub_license="mit")
    assert code == 0, output
    assert "on the Hub:       alice/new: step-2, the final model" in output
    files = server.repo("alice/new").files()
    assert files["model.safetensors"] != contents(TINY_MODEL)["model.safetensors"]
    card = ModelCard(files["README.md"].decode()).data
    assert (card.base_model, card.license) == ("alice/tiny", "mit")


QUICK = {"max_steps": 8, "dataset_rows": 60, "push_to_hub": True, "hub_model_id": MODEL}


def start(folder: Path, environment: dict[str, str], **changes: Any) -> forked_run.ForkServerProcess:
    return chaos.start(folder, ("quick_retries",), environment, **{**QUICK, **changes})


def test_a_run_killed_during_an_upload_loses_nothing_and_resumes_elsewhere(server: HubServer, tmp_path: Path):
    environment = server.environment(tmp_path / "home", TOKEN)
    reference = chaos.undisturbed(tmp_path / "reference", max_steps=8, dataset_rows=60)

    # SIGKILL while a file of step 4 is on its way.
    run, pid = tmp_path / "run", 0

    def strike(request: Any) -> None:
        if MODEL in server.repos() and NEWEST in server.repo(MODEL).files():
            os.kill(pid, signal.SIGKILL)

    server.inject(Fault("^/lfs/", "PUT", times=None, read=1000, callback=strike))
    process = start(run, environment)
    pid = process.pid or 0
    assert forked_run.finish(process) == -signal.SIGKILL, Path(f"{run}.log").read_text()
    server.clear_faults()
    assert set(server.repo(MODEL).revisions()) - {"step-4"} == {"main", "step-2"}

    # Elsewhere, from the Hub alone, with samples.
    elsewhere, extras = tmp_path / "elsewhere", {"hub_extras": "completion_samples"}
    code = forked_run.finish(start(elsewhere, environment, **extras, resume_from_checkpoint="hub"))
    output = Path(f"{elsewhere}.log").read_text()
    assert code == 0, output
    assert f"{DONE}step-2, step-4, step-6, step-8, the final model" in output
    assert (elsewhere / "model.safetensors").read_bytes() == (reference / "model.safetensors").read_bytes()
    logs = [[entry for entry in chaos.history(folder) if entry["step"] > 2] for folder in (elsewhere, reference)]
    assert logs[0] == logs[1]
    repo = server.repo(MODEL)
    assert set(repo.revisions()) == {"main", "step-2", "step-4", "step-6", "step-8"}
    assert repo.files()["model.safetensors"] == (reference / "model.safetensors").read_bytes()

    # A finished run that owes something uploads it when the same command is given again.
    before = repo.files()
    del repo.branches["step-6"]
    assert forked_run.finish(start(elsewhere, environment, **extras)) == 0
    output = Path(f"{elsewhere}.log").read_text()
    assert f"{DONE}step-4, step-6, step-8, the final model" in output
    assert "is finished" in output
    assert repo.files() == before
    assert "step-6" in repo.revisions()

    check_card(repo.files())
    # No file holds the token.
    for revision in repo.revisions():
        assert not any(TOKEN.encode() in content for content in repo.files(revision).values())
    for path in tmp_path.rglob("*"):
        if path.is_file() and tmp_path / "home" not in path.parents:
            assert TOKEN.encode() not in path.read_bytes(), path


def check_card(files: dict[str, bytes]) -> None:
    """The card describes the run and shows its curves."""
    card = files["README.md"].decode()
    parts = "## Held-out puzzles;| 8 | ;max_steps: 8;transformers;AutoTokenizer;![Curves;## Licence"
    for part in parts.split(";"):
        assert part in card, card
    assert files["curve.png"].startswith(b"\x89PNG")


def evaluate(server: HubServer, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = program_environment() | server.environment(folder / "home", TOKEN)
    options = "--backend transformers --num_puzzles 16 --number_counts 3 --max_completion_length 64".split()
    command = [sys.executable, "scripts/evaluate.py", *words, *options, "--output", str(folder / "out")]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_what_the_hub_does_not_have_is_one_line(server: HubServer, tmp_path: Path):
    done = evaluate(server, tmp_path, "alice/tiny@nowhere")
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "alice/tiny" in line
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_revisions_and_adapters_of_the_hub_are_evaluated_side_by_side(server: HubServer, tmp_path: Path):
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    weights = load_file(TINY_MODEL / "model.safetensors")
    mute = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    save_file(mute, tmp_path / "mute.safetensors", {"format": "pt"})
    server.put("alice/tiny", {"model.safetensors": (tmp_path / "mute.safetensors").read_bytes()}, revision="mute")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(TINY_MODEL), LoraConfig(r=2, task_type="CAUSAL_LM"))
    model.peft_config["default"].base_model_name_or_path = "alice/tiny"
    model.save_pretrained(tmp_path / "adapter")
    server.put("alice/adapter", contents(tmp_path / "adapter"), revision="v1", private=True)

    done = evaluate(server, tmp_path, "alice/tiny", "alice/tiny@mute", "alice/adapter@v1")
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "out").glob("*.json")
    entries = json.loads(written.read_text())["checkpoints"]
    assert [entry["name"] for entry in entries] == ["alice/tiny", "alice/tiny@mute", "alice/adapter@v1"]
    assert [(entry["revision"], entry["adapter"]) for entry in entries] == [
        ("main", False),
        ("mute", False),
        ("v1", True),
    ]
    formats = [entry["strata"]["all puzzles"]["format"] for entry in entries]
    # A fresh adapter changes nothing; weights of nothing write nonsense.
    assert formats[1] == 0.0
    assert min(formats[0], formats[2]) > 0.5
