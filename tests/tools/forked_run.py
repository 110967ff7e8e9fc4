"""Real runs that start in a second, so that many can be killed: forks of a process that has loaded torch and TRL.

Each run is a process of its own that executes `run_r1_grpo.main`, what `python scripts/run_r1_grpo.py` does after its
imports. Faults are put into the running process by the name of the place where they strike.
"""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [path for path in (str(ROOT / "scripts"), str(ROOT / "tests" / "tools")) if path not in sys.path]

if multiprocessing.current_process().name != "MainProcess" or os.environ.get("MINI_R1_FORKSERVER") == "preload":
    import mini_r1.training.trainer  # noqa: F401  # what takes long to load, once for all runs
    import run_r1_grpo  # noqa: F401


def die() -> None:
    """Ends this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def _at_call(number: int, strike: Callable[[], None], function: Callable[..., Any], *, after: bool = False) -> Any:
    """The function, with a fault that strikes at its n-th call, before or after it does its work."""
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and not after:
            strike()
        result = function(*args, **kwargs)
        if calls == number and after:
            strike()
        return result

    return wrapped


def kill_in_step(number: int) -> None:
    """In the optimizer step: gradients are there, the weights are about to change."""
    import torch

    torch.optim.AdamW.step = _at_call(number, die, torch.optim.AdamW.step)  # type: ignore[method-assign]


def kill_in_generation(number: int) -> None:
    """Completions are sampled, and nobody has seen them yet."""
    from mini_r1.training.trainer import RunTrainer

    generate = RunTrainer._generate_single_turn
    RunTrainer._generate_single_turn = _at_call(number, die, generate, after=True)


def kill_in_checkpoint(name: str, number: int) -> None:
    """While a file of a checkpoint is written: half of it is on the disk."""
    import torch

    save, seen = torch.save, 0

    def half(thing: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal seen
        save(thing, path, *args, **kwargs)
        if Path(path).name == name:
            seen += 1
            if seen == number:
                os.truncate(path, Path(path).stat().st_size // 2)
                die()

    torch.save = half


def kill_before_manifest(number: int) -> None:
    """Everything of a checkpoint is written but the word that it is complete."""
    from mini_r1.training import saving

    saving.write_manifest = _at_call(number, die, saving.write_manifest)


def kill_in_rotation(number: int) -> None:
    """While an old checkpoint is removed: some of its files are gone."""
    import shutil

    rmtree = shutil.rmtree

    def half(path: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal number
        if Path(path).name.startswith("checkpoint-"):
            number -= 1
            if number == 0:
                for file in sorted(Path(path).iterdir())[::2]:
                    file.unlink()
                die()
        rmtree(path, *args, **kwargs)

    shutil.rmtree = half  # type: ignore[assignment]


def kill_in_sample(number: int) -> None:
    """While a sample is appended to a file: half of its bytes are there."""
    from mini_r1.run_folder import samples

    append = samples.append_record
    calls = 0

    def half(path: Path, record: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            append(path, record[: len(record) // 2])
            die()
        append(path, record)

    samples.append_record = half


def kill_while_closing(number: int) -> None:
    """After the last step, before the final model is written."""
    from mini_r1.run_folder.folder import Run

    Run._save_final_model = _at_call(number, die, Run._save_final_model)  # type: ignore[method-assign]


def nan_loss(number: int) -> None:
    """The loss of one micro-batch is not a number."""
    from trl import GRPOTrainer

    compute, calls = GRPOTrainer._compute_loss, 0

    def poisoned(self: Any, model: Any, inputs: Any) -> Any:
        nonlocal calls
        calls += bool(self.model.training)
        loss = compute(self, model, inputs)
        return loss * float("nan") if calls == number else loss

    GRPOTrainer._compute_loss = poisoned


def infinite_gradient(number: int) -> None:
    """A gradient overflows, although the loss was finite."""
    from mini_r1.training.trainer import RunTrainer

    step, calls = RunTrainer.training_step, 0

    def poisoned(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        loss = step(self, *args, **kwargs)
        if calls == number:
            next(self.model.parameters()).grad[0, 0] = float("inf")
        return loss

    RunTrainer.training_step = poisoned


def fill_disk(folder: str, first: int, last: int) -> None:
    """While steps `first` to `last` are made, the disk below a folder is full to the last byte."""
    from mini_r1.training.trainer import RunTrainer

    step, filler = RunTrainer.training_step, Path(folder, "filler")

    def full(self: Any, *args: Any, **kwargs: Any) -> Any:
        if first <= self.state.global_step + 1 <= last:
            with filler.open("ab", buffering=0) as stream:
                for size in (2**20, 2**12, 1):
                    with contextlib.suppress(OSError):
                        while True:
                            stream.write(b"x" * size)
        elif filler.exists():
            filler.unlink()
        return step(self, *args, **kwargs)

    RunTrainer.training_step = full


def limit_files(first_save: int, last_save: int) -> None:
    """From one save to another, the system lets no file grow beyond a megabyte."""
    import resource

    from mini_r1.training.trainer import RunTrainer

    save, saves = RunTrainer._save_checkpoint, 0

    def limited(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal saves
        saves += 1
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if first_save <= saves <= last_save:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
        try:
            return save(self, *args, **kwargs)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    RunTrainer._save_checkpoint = limited


def limit_files_at_the_end() -> None:
    """The final model is larger than what the disk takes."""
    import resource

    from mini_r1.run_folder.folder import Run

    save = Run._save_final_model

    def limited(*args: Any) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))
        save(*args)

    Run._save_final_model = limited  # type: ignore[method-assign]


def stale_samples(first: int, last: int) -> None:
    """Some writes of samples fail as on a network file system that lost its server."""
    from mini_r1.run_folder import samples

    append, calls = samples.append_record, 0

    def stale(path: Path, record: bytes) -> None:
        nonlocal calls
        calls += 1
        if first <= calls <= last:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        append(path, record)

    samples.append_record = stale


def watch(path: str) -> None:
    """No fault: writes what the run is doing, and at which step, into a file that outlives it."""
    from mini_r1 import hub
    from mini_r1.run_folder.folder import Run
    from mini_r1.training import saving
    from mini_r1.training.trainer import RunTrainer

    descriptor = os.open(path, os.O_WRONLY)
    step = 0
    hub.uploads.FIRST_DELAY = 0.05
    upload = hub.Uploads._upload_checkpoint

    def tell(stage: str) -> None:
        os.pwrite(descriptor, f"{stage} {step}".ljust(40).encode(), 0)

    def uploading(self: Any, *args: Any) -> None:
        os.pwrite(descriptor, b"uploading".ljust(20), 40)  # beside whatever the training does
        try:
            upload(self, *args)
        finally:
            os.pwrite(descriptor, b" " * 20, 40)

    hub.Uploads._upload_checkpoint = uploading  # type: ignore[method-assign]

    def during(owner: Any, name: str, stage: str, afterwards: str) -> None:
        function = getattr(owner, name)

        def told(*args: Any, **kwargs: Any) -> Any:
            nonlocal step
            if isinstance(args[0] if args else None, RunTrainer):
                step = args[0].state.global_step
            tell(stage)
            try:
                return function(*args, **kwargs)
            finally:
                tell(afterwards)

        setattr(owner, name, told)

    during(RunTrainer, "_generate_single_turn", "sampling", "scoring")
    during(RunTrainer, "training_step", "training", "stepping")
    during(RunTrainer, "_save_checkpoint", "saving", "between-steps")
    during(RunTrainer, "evaluate", "evaluating", "between-steps")
    during(saving, "write_manifest", "declaring", "rotating")
    during(Run, "close", "closing", "closing")


def _point_to(environment: dict[str, str]) -> None:
    from huggingface_hub import constants

    url = environment["HF_ENDPOINT"]
    constants.ENDPOINT = url
    constants.HUGGINGFACE_CO_URL_TEMPLATE = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    constants.HF_HUB_OFFLINE = environment.get("HF_HUB_OFFLINE") == "1"
    constants.HF_HUB_DISABLE_XET = environment.get("HF_HUB_DISABLE_XET") == "1"
    constants.HF_HUB_CACHE, constants.HF_TOKEN_PATH = environment["HF_HUB_CACHE"], environment["HF_TOKEN_PATH"]


def quick_retries() -> None:
    """No fault: uploads are tried again at once."""
    from mini_r1 import hub

    hub.uploads.FIRST_DELAY = 0.05


def _run(argv: list[str], log: str, fault: tuple[Any, ...] | None, environment: dict[str, str]) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(ROOT)
    os.environ.update(environment)
    import run_r1_grpo
    from mini_r1 import hub
    from mini_r1.common import run_cli

    if "HF_ENDPOINT" in environment:  # huggingface_hub, which is loaded already, reads it only once
        _point_to(environment)
    sys.argv = ["run_r1_grpo.py", *argv]
    code: int | str | None = 0
    try:
        if fault is not None:
            globals()[fault[0]](*fault[1:])
        run_cli(run_r1_grpo.main, abandon=hub.is_uploading)
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001  # whatever it is, the test is to see it
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["forked_run"])


def start(argv: list[str], log: Path, fault: tuple[Any, ...] | None = None, **environment: str) -> ForkServerProcess:
    """Starts a run.

    Args:
        argv: its command line.
        log: where standard output and error go.
        fault: the name of a function above and its arguments.
        environment: further variables; the launcher's are those of a single process.
    """
    # The fork server takes its environment from us when it starts, and runs keep it.
    before = dict(os.environ)
    paths = f"{ROOT / 'scripts'}{os.pathsep}{ROOT / 'tests' / 'tools'}"
    os.environ.update(_QUIET | {"MINI_R1_FORKSERVER": "preload", "PYTHONPATH": paths})
    try:
        process = _CONTEXT.Process(target=_run, args=(argv, str(log), fault, {**_QUIET, **environment}))
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return process


def finish(process: ForkServerProcess, seconds: float = 300) -> int:
    """The exit code, negative for a signal; whatever still runs after so many seconds is killed and an error."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"the run did not end within {seconds} s")
    return process.exitcode


if __name__ == "__main__":  # without the fork server: for runs in a name space of their own
    _run(json.loads(sys.argv[1]), sys.argv[2], tuple(json.loads(sys.argv[3])), dict(os.environ) | _QUIET)
