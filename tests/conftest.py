"""What the tests share: starting the real programs as a user does, in a clean environment."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from check_gpu import partitioning

ROOT = Path(__file__).resolve().parent.parent
TINY_MODEL = ROOT / "configs" / "tiny-countdown"
TINY_RECIPE = ROOT / "receipes" / "grpo-tiny-countdown-cpu.yaml"
ACCELERATE_CONFIGS = ROOT / "configs" / "accelerate_configs"

# These are the tests that need no GPU: they see none where there is one.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

# Started in the background by a shell, we would ignore Ctrl-C, and so would every program that the tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The tiny recipe cut down to a few seconds of work.
QUICK = {
    "max_steps": 2,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_generations": 4,
    "max_completion_length": 32,
    "dataset_rows": 300,
    "eval_puzzles": 16,
    "per_device_eval_batch_size": 16,
    "eval_steps": 2,
    "save_steps": 1,
    "sample_share": 1.0,
}


def program_environment(**extra: str) -> dict[str, str]:
    """The environment for a started program: no launcher variables of ours, no network, no colours."""
    ours = ("ACCELERATE_", "PYTEST_", "RANK", "LOCAL_", "GROUP_", "ROLE_", "WORLD_SIZE", "MASTER_", "TORCHELASTIC_")
    env = {k: v for k, v in os.environ.items() if not k.startswith((*ours, "TENSORBOARD_LOGGING_DIR"))}
    return env | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", **extra}


def flags(**values: object) -> list[str]:
    return [part for key, value in values.items() for part in (f"--{key}", str(value))]


@functools.cache
def partitioned(config: str) -> Path:
    """A ZeRO-3 configuration under which the tiny model is really partitioned."""
    return partitioning(ACCELERATE_CONFIGS / config, Path(tempfile.mkdtemp(prefix="mini-r1-test-")), 360_000)


class Launcher:
    """Runs `run_r1_grpo.py` through `accelerate launch`, from the repository's root, as README says."""

    def command(
        self, config: str, recipe: Path, launch_flags: list[str], scaled: bool = True, **overrides: object
    ) -> list[str]:
        path = partitioned(config) if "zero3" in config and scaled else ACCELERATE_CONFIGS / config
        return [
            sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch",
            "--config_file", str(path), *launch_flags,
            "scripts/run_r1_grpo.py", "--config", str(recipe), *flags(**overrides),
        ]  # fmt: skip

    def start(
        self,
        config: str = "cpu.yaml",
        recipe: Path = TINY_RECIPE,
        launch_flags: tuple[str, ...] = (),
        threads: int = 1,
        stdout: Any = subprocess.PIPE,
        **overrides: object,
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(config, recipe, list(launch_flags), **overrides),
            cwd=ROOT, env=program_environment(OMP_NUM_THREADS=str(threads)), text=True, start_new_session=True,
            stdout=stdout, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, *args: object, timeout: float = 850, **kwargs: object) -> tuple[int, str]:
        """Exit code and the whole output; nothing that was started survives."""
        process = self.start(*args, **kwargs)  # type: ignore[arg-type]
        try:
            output, _ = process.communicate(timeout=timeout)
        finally:
            kill_group(process)
        return process.returncode, output


def kill_group(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def alive(pid: int) -> bool:
    """Whether a process is there and not merely waiting to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def launcher() -> Launcher:
    return Launcher()
