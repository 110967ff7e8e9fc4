"""Where a run goes on: which checkpoint is complete, what must not have changed since, and what is cut back to match.

A checkpoint counts from the moment its `manifest.json` is there, which is written last: every file's size, and what
neither transformers nor TRL keeps (how long the sample files were, how far the generation buffer was used up). One
without a manifest, or with a file that is missing or short, was cut off while it was written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mini_r1.common import RecipeError, printable, world_size
from mini_r1.recipe.plan import batch_of, uses_bf16
from mini_r1.run_folder.samples import SAMPLE_FILES

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
RUN_DESCRIPTION = "run.json"
SET_ASIDE = "set-aside"
TRAINER_STATE = "trainer_state.json"
THREAD = "checkpoint"  # the name of the one that brings a checkpoint to the disk
# Checkpoints that are asked for on the Hub: `hub`, or `hub:step-50`.
HUB = "hub"
# Files that a manifest does not answer for: itself, and what no resumed run reads.
_NOT_NEEDED = (MANIFEST, f"{MANIFEST}.new", "training_args.bin", "zero_to_fp32.py", "README.md")
# How long a second start waits for the processes of the first to be gone, in seconds.
_LOCK_WAIT = 20.0

# Without these, the optimizer's moments or the order of the puzzles belong to another run.
_FIXED = (
    "model_name_or_path", "model_revision", "tokenizer_name_or_path", "dtype", "use_peft", "lora_r", "lora_alpha",
    "lora_target_modules", "lora_modules_to_save", "use_rslora", "use_dora", "load_in_4bit", "load_in_8bit",
    "dataset_id_or_path", "dataset_split", "dataset_rows", "dataset_seed", "number_counts", "number_range",
    "target_range", "held_out_puzzles", "max_prompt_tokens", "shuffle_dataset", "seed", "data_seed",
    "num_generations", "num_iterations", "optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2",
    "adam_epsilon",
)  # fmt: skip
# These may change on the way: the steps from there on are other ones, and the message says so.
_FREE = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "max_steps", "num_train_epochs", "max_grad_norm", "beta",
    "epsilon", "epsilon_high", "loss_type", "scale_rewards", "reward_weights", "temperature", "top_p", "top_k", "min_p",
    "repetition_penalty", "max_completion_length", "use_vllm", "vllm_mode", "per_device_train_batch_size", "bf16",
    "fp16", "delta", "importance_sampling_level", "mask_truncated_completions", "top_entropy_quantile", "lora_dropout",
    "vllm_importance_sampling_correction", "vllm_importance_sampling_mode", "use_liger_kernel",
)  # fmt: skip
# How a step's completions are cut into micro-batches; not what is trained on.
_LAYOUT = ("per_device_train_batch_size", "gradient_accumulation_steps", "processes")


# --------------------------------------------------------------------------------------------------------------------
# Complete or not
# --------------------------------------------------------------------------------------------------------------------


def write_manifest(folder: Path, state: Mapping[str, Any]) -> None:
    """Declares a checkpoint complete: everything in it is on the disk, then `manifest.json` is, in one piece.

    Args:
        folder: the checkpoint; nothing may be written to it afterwards.
        state: kept in the manifest beside the list of files, JSON values.

    Raises:
        OSError: when the disk does not take it; the checkpoint is incomplete then.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in _NOT_NEEDED:
            files[path.relative_to(folder).as_posix()] = path.stat().st_size
            _sync(path)
    write_whole(folder / MANIFEST, json.dumps({**state, "written": time.time(), "files": files}, indent=1) + "\n")
    _sync(folder)


def wait_for_checkpoints() -> None:
    """Waits for checkpoints on their way to the disk; for exits that end threads."""
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join()


def write_whole(path: Path, text: str) -> None:
    """Writes a file that a later start depends on: after a crash there is the old one or the new one, never a part.

    Raises:
        OSError: when the disk does not take it.
    """
    draft = path.with_name(f"{path.name}.new")
    draft.write_text(text)
    _sync(draft)
    draft.replace(path)


def _sync(path: Path) -> None:
    """Waits until a file or folder is on the disk, so that a power cut does not undo what the manifest says."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot, such as some network ones
            raise
    finally:
        os.close(descriptor)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """A checkpoint's manifest; None when there is none that can be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError, RecursionError):
        return None
    sound = isinstance(manifest, dict) and isinstance(manifest.get("files"), dict)
    return manifest if sound and isinstance(manifest.get("step"), int) else None


def fault_in(folder: Path) -> str | None:
    """Why a checkpoint is incomplete, in a few words; None when it is complete."""
    manifest = read_manifest(folder)
    if manifest is None:
        return f"it has no {MANIFEST}, so it was cut off while it was written"
    for name, size in manifest["files"].items():
        shown = printable(str(name))
        if Path(name).is_absolute() or ".." in Path(name).parts:
            return f"its {MANIFEST} names {shown}, which is outside of it"
        try:
            there = (folder / name).stat().st_size
        except (OSError, ValueError):
            return f"{shown} is missing"
        if there != size:
            return f"{shown} has {there} of {printable(str(size))} bytes"
    return None


def checkpoints_in(folder: Path) -> dict[int, Path]:
    """The checkpoint folders of a run, complete or not, by step, in order."""
    found = {}
    for path in folder.glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if number.isascii() and number.isdigit() and path.is_dir():
            found[int(number)] = path
    return dict(sorted(found.items()))


# --------------------------------------------------------------------------------------------------------------------
# Where to go on
# --------------------------------------------------------------------------------------------------------------------


class FinishedError(RecipeError):
    """The run came to its end before; only uploads may still be owed."""


@dataclass(frozen=True)
class Resume:
    """Where a run goes on.

    Attributes:
        path: the checkpoint.
        step: optimizer steps done in it.
        manifest: its contents; empty for a checkpoint of another program.
        same_folder: whether it is one of the run folder's own, so that samples and logs go on where they were.
        aside: checkpoints of the run folder that are incomplete, or newer than this one; `set_aside` moves them.
        notes: what has changed since, as lines for people.
    """

    path: Path
    step: int
    manifest: dict[str, Any] = field(default_factory=dict)
    same_folder: bool = True
    aside: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find(values: Any, environment: Mapping[str, str] = os.environ) -> Resume | None:
    """Where to go on: the explicit `resume_from_checkpoint`, else the newest complete checkpoint of the run folder.

    Looks only; nothing is changed.

    Args:
        values: the recipe's keys as attributes.
        environment: the launcher's variables.

    Returns:
        None for a run that begins at step 0.

    Raises:
        RecipeError: when the explicit checkpoint cannot be used, the run is finished already, or the recipe asks for
            another run than the one that was begun.
    """
    explicit = values.resume_from_checkpoint
    word = str(explicit).lower()
    folder = Path(values.output_dir)
    own = checkpoints_in(folder)
    if word == "false":
        return None
    if explicit and word != "true" and word.partition(":")[0] != HUB:
        chosen = Path(explicit).expanduser()
        if not (chosen / TRAINER_STATE).is_file():
            raise RecipeError(f"resume_from_checkpoint: {explicit} is no checkpoint folder (no {TRAINER_STATE} in it)")
        manifest = read_manifest(chosen)
        if manifest is None:
            logger.warning("%s has no %s: whether it is complete cannot be known", chosen, MANIFEST)
        elif fault := fault_in(chosen):
            raise RecipeError(f"resume_from_checkpoint: {explicit} is incomplete: {fault}")
        step = _step_of(chosen)
        same = chosen.resolve().parent == folder.resolve()
        others = {number: path for number, path in own.items() if path.resolve() != chosen.resolve()}
        aside = [path for number, path in others.items() if fault_in(path) or number > step]
        return _checked(Resume(chosen, step, manifest or {}, same, aside), values, environment)
    aside = []
    for path in own.values():
        if fault := fault_in(path):
            logger.warning("%s is incomplete: %s; it is passed over and will be moved to %s", path, fault,
                           folder / SET_ASIDE)  # fmt: skip
            aside.append(path)
    complete = {step: path for step, path in own.items() if path not in aside}
    if complete:
        step, path = max(complete.items())
        resume = _checked(Resume(path, step, read_manifest(path) or {}, True, aside), values, environment)
        # The last thing that a run writes: without it, going on from the last checkpoint only does the closing.
        if _is_finished(folder, step, values):
            raise FinishedError(
                f"the run in {folder} is finished (step {step}): choose another --output_dir, remove the folder, or "
                f"raise max_steps to go on"
            )
        return resume
    return None


def _step_of(checkpoint: Path) -> int:
    try:
        return int(json.loads((checkpoint / TRAINER_STATE).read_text())["global_step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"resume_from_checkpoint: {checkpoint / TRAINER_STATE} cannot be read: {error}") from error


def _is_finished(folder: Path, step: int, values: Any) -> bool:
    try:
        state = json.loads((folder / TRAINER_STATE).read_text())
        planned, epochs = state.get("max_steps"), state.get("num_train_epochs")
    except (OSError, ValueError, AttributeError):
        return False
    if values.max_steps <= 0 and epochs is not None and values.num_train_epochs > epochs:
        return False
    wanted = values.max_steps if values.max_steps > 0 else planned
    return isinstance(wanted, int) and step >= wanted


def read_description(folder: Path) -> dict[str, Any]:
    """The contents of a run folder's `run.json`; empty when there is none that can be read."""
    try:
        description = json.loads((folder / RUN_DESCRIPTION).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return description if isinstance(description, dict) else {}


def _part(description: Mapping[str, Any], key: str) -> dict[str, Any]:
    part = description.get(key)
    return part if isinstance(part, dict) else {}


def run_name(description: Mapping[str, Any]) -> str | None:
    """The name in a `run.json`, which becomes a folder's; None when there is none that can be one."""
    name = description.get("name")
    return name if isinstance(name, str) and re.fullmatch(r"\w[\w.-]{0,200}", name) else None


# --------------------------------------------------------------------------------------------------------------------
# The same run or another
# --------------------------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """A recipe value as JSON gives it back."""
    return json.loads(json.dumps(getattr(value, "value", value), default=str))


def identity(values: Any, environment: Mapping[str, str] = os.environ) -> dict[str, dict[str, Any]]:
    """What makes a run this run: `fixed` values, with which its checkpoints stand or fall, and `free` ones.

    Args:
        values: the recipe's keys as attributes.
        environment: the launcher's variables.
    """
    batch = batch_of(values, world_size())
    sharded = (
        "DeepSpeed" if environment.get("ACCELERATE_USE_DEEPSPEED") == "true" else
        "FSDP" if environment.get("ACCELERATE_USE_FSDP") == "true" else None
    )  # fmt: skip
    fixed = {key: getattr(values, key, None) for key in _FIXED}
    fixed |= {"completions a step": batch.per_step, "completions per generation": batch.per_generation}
    fixed["sharding"] = sharded
    free = {key: getattr(values, key, None) for key in _FREE}
    free["bf16"] = uses_bf16(values)  # None stands for a choice
    free["processes"] = world_size()
    free["gradient_accumulation_steps"] = values.gradient_accumulation_steps
    if sharded:  # each process holds a part of the optimizer, and DeepSpeed its learning rate
        fixed["processes"], fixed["learning_rate"] = free.pop("processes"), free.pop("learning_rate")
    return {part: {key: _plain(v) for key, v in entries.items()} for part, entries in
            (("fixed", fixed), ("free", free))}  # fmt: skip


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    changed = [key for key in now if key in before and before[key] != now[key]]
    return [f"{key}: {printable(str(before[key]))} -> {printable(str(now[key]))}" for key in changed]


def _checked(resume: Resume, values: Any, environment: Mapping[str, str]) -> Resume:
    """The same with notes on what changed; raises RecipeError when the recipe asks for another run."""
    files = resume.manifest.get("files", {})
    if files and not any(re.match(r"optimizer|global_step", name) for name in files):
        raise RecipeError(
            f"{resume.path} was saved with save_only_model: true, without the optimizer, so no run can go on from it: "
            f"--resume_from_checkpoint false begins anew; or give it as model_name_or_path with another --output_dir"
        )
    if getattr(values, "sync_ref_model", False):
        resume.notes.append("sync_ref_model: the reference model begins anew, no checkpoint holds it")
    before = _part(read_description(resume.path.parent), "identity")
    if not before:
        return resume
    now = identity(values, environment)
    fixed = _differences(_part(before, "fixed"), now["fixed"])
    if fixed:
        raise RecipeError(
            f"{resume.path} cannot be gone on from, the recipe has changed: {', '.join(fixed)}; write the old values "
            f"again, or choose another --output_dir"
        )
    free = _differences(_part(before, "free"), now["free"])
    layout = [change for change in free if change.partition(":")[0] in _LAYOUT]
    if layout and resume.manifest.get("buffered"):
        raise RecipeError(
            f"{resume.path} holds completions that still wait for their step, cut for another layout "
            f"({', '.join(layout)}): write the old values again, or go on from a checkpoint between two generations"
        )
    if free:
        resume.notes.append(f"changed from step {resume.step} on: {', '.join(free)}")
    if any(change.startswith("processes:") for change in free):
        resume.notes.append("another number of processes: random states start anew, so steps will not repeat exactly")
    return resume


def check_agreement(places: list[Any]) -> None:
    """Refuses to go on when the processes do not see the same checkpoint.

    Args:
        places: one entry a process, alike where they agree.

    Raises:
        RecipeError: naming what is likely wrong.
    """
    if any(place != places[0] for place in places):
        raise RecipeError(
            f"output_dir: the processes see different checkpoints ({', '.join(str(place) for place in places)}): it "
            f"must be one folder that all machines share"
        )


def lacks_evaluation(resume: Resume, every: float | None) -> bool:
    """Whether an evaluation was due at a checkpoint and did not come to its end.

    Args:
        resume: where the run goes on.
        every: steps between evaluations; None or a share of all steps where that is not known.
    """
    if not every or every < 1 or resume.step % int(every):
        return False
    try:
        history = json.loads((resume.path / TRAINER_STATE).read_text())["log_history"]
        return not any(entry.get("step") == resume.step and "eval_reward" in entry for entry in history)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def check_puzzles(resume: Resume | None, fingerprint: str) -> None:
    """Refuses to go on with other puzzles than the run began with, such as a file that was edited.

    Raises:
        RecipeError: naming what to do.
    """
    if resume is None:
        return
    before = _part(read_description(resume.path.parent), "split").get("fingerprint")
    if before not in (None, fingerprint):
        raise RecipeError(
            f"dataset_id_or_path: these are not the puzzles that {resume.path} was trained on, so some would be used "
            f"twice and others never: bring the old file back, or choose another --output_dir"
        )


# --------------------------------------------------------------------------------------------------------------------
# Preparing the folder
# --------------------------------------------------------------------------------------------------------------------


def hold(folder: Path) -> int:
    """Takes the run folder for this process until it ends, so that no two runs write into it.

    Returns:
        The file descriptor that holds the lock.

    Raises:
        RecipeError: when another run has it and does not end within some seconds, as a killed one does.
    """
    path = folder / ".lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RecipeError(f"output_dir: cannot write to {folder}: {error}") from error
    deadline = time.monotonic() + _LOCK_WAIT
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                holder = path.read_text(errors="replace").strip() or "unknown"
                os.close(descriptor)
                raise RecipeError(
                    f"output_dir: a run is going on in {folder} (process {holder}): wait for it, end it, or choose "
                    f"another --output_dir"
                ) from error
            time.sleep(0.2)
        except OSError:  # file systems without locks
            break
    with contextlib.suppress(OSError):
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def set_aside(checkpoints: Iterable[Path], folder: Path) -> None:
    """Moves checkpoints that are incomplete or of another run out of the way; no start takes them for its own then."""
    for path in checkpoints:
        goal = folder / SET_ASIDE / f"{path.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        try:
            goal.parent.mkdir(exist_ok=True)
            path.rename(goal)
            logger.warning("%s is now %s; nothing needs it, it can be deleted", path, goal)
        except OSError as error:
            logger.warning("%s cannot be moved to %s (%s)", path, goal, error)


def cut_back(sizes: Mapping[str, int], folders: Mapping[str, Path]) -> None:
    """Cuts sample files back to what they held at the checkpoint, for the steps after it are done again.

    Args:
        sizes: what `SampleLog.sizes` returned when the checkpoint was written.
        folders: the folders its keys begin with.
    """
    for key in SAMPLE_FILES:  # no others: a manifest may come from the Hub
        kind, _, name = key.partition("/")
        path, size = folders[kind] / name, sizes.get(key)
        try:
            if isinstance(size, int) and 0 <= size < path.stat().st_size:
                os.truncate(path, size)
        except FileNotFoundError:
            continue
        except OSError as error:
            logger.warning("%s keeps samples of steps that are done again (%s)", path, error)
