"""`make check-gpu` on the CPU: sound code is all green, and one fault in each check turns its row red."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import check_gpu
import planted
from conftest import ROOT, program_environment

pytestmark = pytest.mark.slow


def rows(folder: Path, *arguments: str) -> dict[str, dict]:
    command = [sys.executable, "scripts/check_gpu.py", "--cpu", "--limit", "400", "--folder", folder, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=program_environment(), capture_output=True, text=True, timeout=3000)
    results = {row["check"]: row for row in json.loads((folder / "check-gpu.json").read_text())}
    failed = [name for name, row in results.items() if row["result"] == "FAILED"]
    assert done.returncode == bool(failed), done.stderr
    assert all(f"{name:<17}{row['result']}" in done.stdout for name, row in results.items())
    return results


@pytest.mark.timeout(3000)
def test_sound_code_passes(tmp_path: Path):
    results = rows(tmp_path / "checks")
    assert list(results) == list(check_gpu.CHECKS)
    assert results.pop("colocate-asleep")["result"] == "not here"
    assert {name: row["seen"] for name, row in results.items() if row["result"] != "ok"} == {}
    for name in ("colocate", "lora", "server", "zero3", "zero1", "fsdp2"):
        measures = results[name]["measures"]
        assert len(measures["gaps"]) == len(measures["stale_gaps"]) == 5
        assert measures["rollout"] > 0
        assert measures["training"] > 0


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_a_fault_in_each_check_turns_its_row_red(tmp_path: Path):
    words = {
        "software": "nvidia-smi shows GPUs and torch sees none",
        "attention": "they disagree",
        "memory": "the plan's memory figures are too low",
        "resume": "did not go on from the checkpoint",
        "colocate": "new weights do not reach vLLM",
        "lora": "new weights do not reach vLLM",
        "server": "new weights do not reach vLLM",
        "zero3": "AssertionError",
        "zero1": "new weights do not reach vLLM",
        "fsdp2": "full_tensor",
    }
    assert set(planted.FAULTS) == set(check_gpu.CHECKS)
    results = rows(tmp_path / "checks", "--entry", str(ROOT / "tests" / "planted.py"), "--only", *words)
    for name, text in words.items():
        assert results[name]["result"] == "FAILED", results[name]
        assert text in results[name]["seen"], results[name]
