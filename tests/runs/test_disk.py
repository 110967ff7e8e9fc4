"""Disks that are full, refuse, or lose their server: training continues, and the last good checkpoint stays."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import chaos
import forked_run
from conftest import ROOT, program_environment, wait_until
from mini_r1.run_folder.manifest import checkpoints_in, fault_in, read_description

pytestmark = pytest.mark.slow

QUICK: dict[str, Any] = {"max_steps": 8, "dataset_rows": 60}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chaos.undisturbed(tmp_path_factory.mktemp("reference") / "run", **QUICK)


@pytest.mark.long
def test_a_disk_that_is_full_for_a_while(reference: Path, tmp_path: Path):
    """A real file system of 64 MB, filled to the last byte during steps 4 to 6."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    argv = chaos.command(disk / "run", **QUICK)
    script = (
        'mount -t tmpfs -o size=64m none "$0" && "$1" tests/tools/forked_run.py "$2" "$3" "$4"; code=$?; '
        'rm -f "$0/filler"; cp -r "$0" "$5"; exit $code'
    )
    fault = ["fill_disk", str(disk), 4, 6]
    log = tmp_path / "log"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", script, disk, sys.executable,
         json.dumps(argv), log, json.dumps(fault), kept],
        cwd=ROOT, env=program_environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    output = done.stderr + log.read_text()
    assert done.returncode == 0, output
    assert "step 4: no checkpoint could be written" in output
    assert "step 6: no checkpoint could be written" in output
    assert "checkpoint-2 stays the one to resume from" in output
    assert "cannot write samples" in output
    assert output.count("cannot write TensorBoard's files") == 1
    run = kept / "run"
    assert [step for step, path in checkpoints_in(run).items() if not fault_in(path)] == [2, 8]
    # What was trained is what would have been trained.
    assert (run / "model.safetensors").read_bytes() == (reference / "model.safetensors").read_bytes()
    assert chaos.history(run) == chaos.history(reference)
    # Samples of the full steps are missing; all others are there, whole.
    lines = (run / "samples" / "completion_samples.jsonl").read_text().splitlines()
    expected = (reference / "samples" / "completion_samples.jsonl").read_text().splitlines()
    missing = [json.loads(line) for line in expected if line not in lines]
    assert [line for line in lines if line not in expected] == []
    assert {record["step"] for record in missing} <= {3, 4, 5, 6}
    assert len(missing) > 0


def test_a_save_that_fails_half_way_leaves_the_last_one_and_the_run_alone(reference: Path, tmp_path: Path):
    """The system refuses to let optimizer.pt grow: the second and third save fail after some files were written."""
    run = tmp_path / "run"
    assert forked_run.finish(chaos.start(run, ("limit_files", 2, 3), **QUICK)) == 0, Path(f"{run}.log").read_text()
    output = Path(f"{run}.log").read_text()
    for step in (4, 6):
        assert f"step {step}: no checkpoint could be written" in output
        assert not (run / f"checkpoint-{step}").exists()
    assert "checkpoint-2 stays the one to resume from" in output
    assert chaos.differences(run, reference) == []


@pytest.mark.long
def test_a_run_that_is_killed_while_nothing_can_be_saved_resumes_from_the_last_good_one(
    reference: Path, tmp_path: Path
):
    run = tmp_path / "run"
    process = chaos.start(run, ("limit_files", 2, 99), **QUICK)
    log = Path(f"{run}.log")
    wait_until(lambda: log.is_file() and "step 6: no checkpoint" in log.read_text(errors="replace"), 200, "failing")
    process.kill()
    process.join()
    assert forked_run.finish(chaos.start(run, **QUICK)) == 0, log.read_text()
    assert read_description(run)["resumed_from"] == f"{run}/checkpoint-2"
    assert chaos.differences(run, reference) == []


@pytest.mark.long
def test_an_end_that_cannot_be_written_is_written_by_the_next_start(reference: Path, tmp_path: Path):
    run = tmp_path / "run"
    assert forked_run.finish(chaos.start(run, ("limit_files_at_the_end",), **QUICK)) == 1
    (line,) = [line for line in Path(f"{run}.log").read_text().splitlines() if line.startswith("error: ")]
    assert "training is done, but its end cannot be written" in line
    assert "same command again" in line
    assert fault_in(run / "checkpoint-8") is None
    assert forked_run.finish(chaos.start(run, **QUICK)) == 0, Path(f"{run}.log").read_text()
    assert chaos.differences(run, reference) == []


@pytest.mark.long
def test_samples_on_a_file_system_that_lost_its_server_for_a_moment(reference: Path, tmp_path: Path):
    run = tmp_path / "run"
    assert forked_run.finish(chaos.start(run, ("stale_samples", 50, 53), **QUICK)) == 0
    output = Path(f"{run}.log").read_text()
    assert output.count("cannot write samples") == 1
    assert "Stale file handle" in output
    lines = (run / "samples" / "completion_samples.jsonl").read_text().splitlines()
    expected = (reference / "samples" / "completion_samples.jsonl").read_text().splitlines()
    assert len(expected) - 4 <= len(lines) < len(expected)
    assert set(lines) < set(expected)
    assert (run / "model.safetensors").read_bytes() == (reference / "model.safetensors").read_bytes()


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_loaded(tmp_path: Path):
    (tmp_path / "run").write_text("a file, not a folder")
    assert forked_run.finish(chaos.start(tmp_path / "run", **QUICK)) == 1
    assert "error: output_dir: cannot write to" in Path(f"{tmp_path / 'run'}.log").read_text()
