"""`make check-gpu` on the CPU: sound code is all green, and one fault in each check turns its row red.

These rows are also what shows that weights arrive in vLLM, for each topology.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import check_gpu
import planted
from conftest import ROOT, program_environment

pytestmark = pytest.mark.slow


def rows(script: str, folder: Path, *names: str) -> dict[str, dict]:
    command = [sys.executable, script, "--cpu", "--folder", folder, "--only", *names]
    done = subprocess.run(command, cwd=ROOT, env=program_environment(), capture_output=True, text=True, timeout=3000)
    results = {row["check"]: row for row in json.loads((folder / "check-gpu.json").read_text())}
    assert list(results) == list(names), done.stderr
    failed = [name for name, row in results.items() if row["result"] == "FAILED"]
    assert done.returncode == bool(failed), done.stderr
    assert (f"failed: {', '.join(failed)}" if failed else "nothing failed") in done.stdout + done.stderr
    assert all(f"{name:<17}{row['result']}" in done.stdout for name, row in results.items())
    return results


def check_sound(results: dict[str, dict]) -> None:
    assert {name: row["seen"] for name, row in results.items() if row["result"] != "ok"} == {}
    for name in results.keys() & {"colocate", "lora", "server", "zero3", "zero1", "fsdp2"}:
        before, after, stale = map(float, re.findall(r"\d\S*", results[name]["seen"]))
        assert 10 * max(before, after) < stale


def test_sound_code_passes(tmp_path: Path):
    """Of the rows that train with vLLM the cheapest; `test_vllm.py` has a server with ZeRO-3."""
    results = rows("scripts/check_gpu.py", tmp_path / "checks", "software", "attention", "colocate", "colocate-asleep")
    assert results.pop("colocate-asleep")["result"] == "not here"
    check_sound(results)


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_sound_code_passes_every_check(tmp_path: Path):
    names = [name for name, check in check_gpu.CHECKS.items() if not check.gpu_only]
    check_sound(rows("scripts/check_gpu.py", tmp_path / "checks", *names))


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_a_fault_in_each_check_turns_its_row_red(tmp_path: Path):
    assert set(planted.FAULTS) == set(check_gpu.CHECKS)
    names = [name for name, check in check_gpu.CHECKS.items() if not check.gpu_only]
    for name, row in rows("tests/tools/planted.py", tmp_path / "checks", *names).items():
        assert row["result"] == "FAILED", row
        assert planted.FAULTS[name][1] in row["seen"], row
