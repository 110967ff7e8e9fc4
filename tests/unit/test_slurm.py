"""The Slurm script: what it would start where, and that it really starts that; no Slurm is needed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, program_environment

SCRIPT = ROOT / "configs" / "slurm" / "train.slurm"
RECEIPE = "receipes/grpo-qwen-2.5-3b-deepseek-r1-countdown.yaml"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = program_environment(VENV=str(Path(sys.executable).parent.parent), **environment)
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120
    )


def commands(output: str) -> list[tuple[str, list[str]]]:
    """`[host] command` lines; the line without a host is vLLM's own command line."""
    found = []
    for line in output.splitlines():
        host, _, command = line.partition("] ") if line.startswith("[") else ("", "", line)
        words = shlex.split(command)
        found.append((host.lstrip("["), [Path(words[0]).name, *words[1:]]))
    return found


def after(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


@pytest.mark.slow  # prints vLLM's own command line, for which the recipe is parsed
def test_two_machines_train_and_a_third_generates():
    done = run(DRY_RUN="1", HOSTS="a b c")
    assert done.returncode == 0, done.stderr
    (host, serve), (_, vllm), *trains = commands(done.stdout)
    assert host == "c"
    assert serve[1:4] == ["scripts/serve_vllm.py", "--config", RECEIPE]
    assert shlex.join(vllm) == (
        "python -m vllm.entrypoints.cli.main serve Qwen/Qwen2.5-3B-Instruct --host c --port 8000 "
        "--max-model-len 1280 --tensor-parallel-size 1 "
        "--gpu-memory-utilization 0.9 --model-impl vllm --seed 42 --logprobs-mode processed_logprobs "
        "--max-logprobs -1 --generation-config vllm --disable-uvicorn-access-log "
        """--weight-transfer-config '{"backend": "nccl"}' --enable-scale-out --revision main --dtype bfloat16 """
        "--enable-prefix-caching --data-parallel-size 8 "
        "--worker-extension-cls mini_r1.generation.worker.WorkerExtension"
    )
    assert [host for host, _ in trains] == ["a", "b"]
    for rank, (_, words) in enumerate(trains):
        assert words[:2] == ["accelerate", "launch"]
        assert after(words, "--num_machines") == "2"
        assert after(words, "--num_processes") == "16"
        assert after(words, "--machine_rank") == str(rank)
        assert after(words, "--main_process_ip") == "a"
        assert after(words, "--vllm_server_base_url") == "http://c:8000"
        assert after(words, "--vllm_device") == "none"
        assert (ROOT / after(words, "--config_file")).is_file()


@pytest.mark.slow
def test_one_engine_over_two_machines_with_ray():
    done = run("--max_steps", "10", DRY_RUN="1", HOSTS="a b c d", VLLM_NODES="2")
    assert done.returncode == 0, done.stderr
    (head, ray), (other, worker), (host, _), (_, vllm), *trains = commands(done.stdout)
    assert (head, other, host) == ("c", "d", "c")
    assert ray[:3] == ["ray", "start", "--head"]
    assert after(worker, "--address") == "c:6379"
    assert after(vllm, "--tensor-parallel-size") == "16"
    assert after(vllm, "--distributed-executor-backend") == "ray"
    assert len(trains) == 2
    assert all(words[-2:] == ["--max_steps", "10"] for _, words in trains)


def test_without_machines_for_vllm():
    done = run("--vllm_mode", "colocate", DRY_RUN="1", HOSTS="a b", VLLM_NODES="0")
    assert done.returncode == 0, done.stderr
    trains = commands(done.stdout)
    assert len(trains) == 2
    assert all("--vllm_server_base_url" not in words for _, words in trains)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        pytest.param({"DRY_RUN": "1", "HOSTS": "a b", "VLLM_NODES": "2"}, "none is left for training", id="no trainer"),
        pytest.param({"DRY_RUN": "1", "RECEIPE": "receipes/none.yaml"}, "none.yaml does not exist", id="no recipe"),
        pytest.param({}, "sbatch", id="not under Slurm"),
    ],
)
def test_what_cannot_work_is_one_line(environment: dict, message: str):
    done = run(**environment)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


def test_the_steps_get_the_words_that_the_dry_run_prints(tmp_path: Path):
    """`srun`, `scontrol` and the programs are replaced by ones that write down what they are called with."""
    programs = {
        "getent": "echo 10.0.0.7 STREAM",
        "scontrol": "printf 'a\\nb\\nc\\n'",
        # One task a machine, each with its number, as srun does.
        "srun": """
            n=1; while [[ $1 == --* ]]; do [[ $1 == --ntasks=* ]] && n=${1#*=}; shift; done
            [[ $n == 1 ]] && exec "$@"
            for ((i = 0; i < n; i++)); do SLURM_PROCID=$i "$@" || exit 1; done""",
        "accelerate": f"""sleep 1; printf '%s\\n' "$(printf ' %q' "$@")" >> {tmp_path}/trained""",
        "python": f"""printf '%s\\n' "$(printf ' %q' "$@")" >> {tmp_path}/served; exec sleep 600""",
    }
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name, text in programs.items():
        (binaries / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (binaries / name).chmod(0o755)
    environment = program_environment(
        VENV=str(tmp_path),
        PATH=f"{binaries}:{os.environ['PATH']}",
        SLURM_JOB_NODELIST="x[1-3]",
        SLURM_SUBMIT_DIR=str(ROOT),
    )
    done = subprocess.run(
        ["bash", str(SCRIPT), "--output_dir", "runs/two words"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    trained = [shlex.split(line) for line in (tmp_path / "trained").read_text().splitlines()]
    assert [after(words, "--machine_rank") for words in trained] == ["0", "1"]
    for words in trained:
        assert words.index("--machine_rank") < words.index("scripts/run_r1_grpo.py")
        assert after(words, "--output_dir") == "runs/two words"
        assert after(words, "--vllm_server_base_url") == "http://10.0.0.7:8000"
    (served,) = (tmp_path / "served").read_text().splitlines()
    assert "serve_vllm.py" in served
    assert after(shlex.split(served), "--vllm_server_host") == "10.0.0.7"
    # The script ended with the training, and took the server along.
    assert not [p for p in Path("/proc").glob("[0-9]*/environ") if str(tmp_path).encode() in read(p)]


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
