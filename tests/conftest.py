"""What the tests share: starting the real programs as a user does, in a clean environment."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from mini_r1.countdown import TASK
from mini_r1.launching import (  # noqa: F401  tests import them from here
    ACCELERATE_CONFIGS,
    QUICK,
    ROOT,
    TINY_MODEL,
    TINY_RECIPE,
    flags,
    launch_command,
)
from mini_r1.recipe import Recipe
from mini_r1.recipe.arguments import GuardArguments, HubArguments, ScriptArguments, VLLMArguments

# These are the tests that need no GPU: they see none where there is one.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

# Started in the background by a shell, we would ignore Ctrl-C, and so would every program that the tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def program_environment(**extra: str) -> dict[str, str]:
    """The environment for a started program: no launcher variables of ours, no network, no colours."""
    ours = ("ACCELERATE_", "PYTEST_", "RANK", "LOCAL_", "GROUP_", "ROLE_", "WORLD_SIZE", "MASTER_", "TORCHELASTIC_")
    env = {k: v for k, v in os.environ.items() if not k.startswith((*ours, "TENSORBOARD_LOGGING_DIR"))}
    return env | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", **extra}


def draft(**keys: object) -> Recipe:
    """A recipe of these keys, and of the defaults of this project's own; TRL's are those that are given."""
    own = (ScriptArguments, TASK.arguments, VLLMArguments, HubArguments, GuardArguments)
    defaults = {key: value for arguments in own for key, value in vars(arguments()).items()}
    return Recipe.draft(TASK, SimpleNamespace(**{**defaults, **keys}))


class Launcher:
    """Runs `run_r1_grpo.py`, or another, through `accelerate launch`, from the repository's root, as README says."""

    def start(
        self,
        config: str = "cpu.yaml",
        launch_flags: tuple[str, ...] = (),
        recipe: Path = TINY_RECIPE,
        script: str = "scripts/run_r1_grpo.py",
        small: bool = True,
        threads: int = 1,
        stdout: Any = subprocess.PIPE,
        **overrides: object,
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            launch_command(config, overrides, launch_flags=launch_flags, script=(script,), recipe=recipe, small=small),
            cwd=ROOT,
            env=program_environment(OMP_NUM_THREADS=str(threads)),
            text=True,
            start_new_session=True,
            stdout=stdout,
            stderr=subprocess.STDOUT,
        )

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


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and chromedriver):
        pytest.fail("no chromium or chromedriver on PATH (Debian: chromium, chromium-driver)")
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("chromium")
    for flag in (
        *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"),
        *("disable-background-networking", "disable-component-update", f"user-data-dir={profile}"),
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield driver
    driver.quit()


def set_width(browser: Any, width: int) -> None:
    """A window this wide; below 600 pixels, a phone's."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Puts the variables back that a run in the test's own process sets."""
    with mock.patch.dict(os.environ):
        yield
