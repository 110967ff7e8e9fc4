"""Resuming a run: from which checkpoint, what must not have changed since, and what is cut back to match it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mini_r1.common import RunError, printable, world_size
from mini_r1.recipe import Recipe
from mini_r1.recipe.checks import batch_of, uses_bf16
from mini_r1.recipe.files import how_to_merge, same_value
from mini_r1.run_folder import MANIFEST, SET_ASIDE, TRAINER_STATE
from mini_r1.run_folder.manifest import checkpoints_in, fault_in, read_description, read_json, read_manifest
from mini_r1.run_folder.samples import SAMPLE_FILES

logger = logging.getLogger(__name__)

# Checkpoints that are asked for on the Hub: `hub`, or `hub:step-50`.
HUB = "hub"
# The longest name of a run in bytes; the names of its folders begin with it, or end with it after `tensorboard-`.
MAX_NAME = 200
# How long a second start waits for the processes of the first to be gone, in seconds.
_LOCK_WAIT = 20.0

# Without these, the optimizer's moments or the order of the puzzles belong to another run; so do the task's own keys.
_FIXED = (
    "model_name_or_path model_revision tokenizer_name_or_path chat_template_kwargs dtype use_peft lora_r lora_alpha "
    "lora_target_modules lora_modules_to_save use_rslora use_dora load_in_4bit load_in_8bit max_prompt_tokens "
    "shuffle_dataset seed data_seed num_generations num_iterations optim optim_args weight_decay adam_beta1 adam_beta2 "
    "adam_epsilon"
).split()
# These may change on the way: the steps from there on are other ones, and a note says so.
_FREE = (
    "learning_rate lr_scheduler_type warmup_steps max_steps num_train_epochs max_grad_norm beta epsilon epsilon_high "
    "loss_type scale_rewards reward_weights temperature top_p top_k min_p repetition_penalty max_completion_length "
    "use_vllm vllm_mode per_device_train_batch_size bf16 fp16 delta importance_sampling_level "
    "mask_truncated_completions top_entropy_quantile lora_dropout vllm_importance_sampling_correction "
    "vllm_importance_sampling_mode use_liger_kernel gradient_accumulation_steps on_bad_row "
    "puzzle_choice refill_rounds"
).split()
# How a step's completions are cut into micro-batches; not what is trained on.
_LAYOUT = ("per_device_train_batch_size", "gradient_accumulation_steps", "processes")


# --------------------------------------------------------------------------------------------------------------------
# Where to resume
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Resume:
    """Where a run resumes.

    Attributes:
        path: the checkpoint.
        step: optimizer steps done in it.
        manifest: its contents; empty for a checkpoint of another program.
        same_folder: whether it is one of the run folder's own, so that samples and logs continue where they were.
        aside: checkpoints of the run folder that are incomplete, or newer than this one; `set_aside` moves them.
        notes: what has changed since, as lines for people.
        is_finished: whether the run came to its end before; at most uploads are still owed.
    """

    path: Path
    step: int
    manifest: dict[str, Any] = field(default_factory=dict)
    same_folder: bool = True
    aside: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    is_finished: bool = False


def find(recipe: Recipe, environment: Mapping[str, str] = os.environ) -> Resume | None:
    """Where to resume: the explicit `resume_from_checkpoint`, else the newest complete checkpoint of the run folder.

    Looks only; nothing is changed.

    Args:
        recipe: what was asked.
        environment: the launcher's variables.

    Returns:
        None for a run that starts at step 0.

    Raises:
        RunError: when the explicit checkpoint cannot be used, or the recipe asks for another run than the one in the
            folder.
    """
    explicit = recipe.training.resume_from_checkpoint
    word = str(explicit).lower()
    folder = Path(recipe.training.output_dir)
    if word == "false":
        return None
    if explicit and word != "true" and word.partition(":")[0] != HUB:
        return _checked(_explicit(Path(explicit).expanduser(), folder), recipe, environment)
    faults = {path: fault_in(path) for path in checkpoints_in(folder).values()}
    aside = [path for path, fault in faults.items() if fault]
    for path in aside:
        logger.warning("%s is incomplete: %s; it will be moved to %s", path, faults[path], folder / SET_ASIDE)
    complete = {step: path for step, path in checkpoints_in(folder).items() if path not in aside}
    if not complete:
        return None
    step, path = max(complete.items())
    resume = Resume(path, step, read_manifest(path) or {}, True, aside, [], _is_finished(folder, step, recipe))
    return _checked(resume, recipe, environment)


def _explicit(chosen: Path, folder: Path) -> Resume:
    key = f"resume_from_checkpoint: {chosen}"
    if not (chosen / TRAINER_STATE).is_file():
        raise RunError(f"{key} is no checkpoint folder (no {TRAINER_STATE} in it)")
    manifest = read_manifest(chosen)
    if manifest is None:
        logger.warning("%s has no %s: whether it is complete cannot be known", chosen, MANIFEST)
    elif fault := fault_in(chosen):
        raise RunError(f"{key} is incomplete: {fault}")
    state = read_json(chosen / TRAINER_STATE)
    step = state.get("global_step") if isinstance(state, dict) else None
    if not isinstance(step, int):
        raise RunError(f"{key}: its {TRAINER_STATE} cannot be read")
    others = {n: path for n, path in checkpoints_in(folder).items() if path.resolve() != chosen.resolve()}
    aside = [path for n, path in others.items() if n > step or fault_in(path)]
    return Resume(chosen, step, manifest or {}, chosen.resolve().parent == folder.resolve(), aside)


def _is_finished(folder: Path, step: int, recipe: Recipe) -> bool:
    """Whether the run's last file is there, and the recipe asks for no further step."""
    state = read_json(folder / TRAINER_STATE)
    if not isinstance(state, dict):
        return False
    done = state.get("global_step")  # more than `step` where only the best checkpoint was kept
    step = max(step, done) if isinstance(done, int) else step
    steps, epochs = recipe.training.max_steps, state.get("num_train_epochs")
    if steps <= 0 and epochs is not None and recipe.training.num_train_epochs > epochs:
        return False
    wanted = steps if steps > 0 else state.get("max_steps")
    return isinstance(wanted, int) and step >= wanted


def _part(description: Mapping[str, Any], key: str) -> dict[str, Any]:
    part = description.get(key)
    return part if isinstance(part, dict) else {}


def run_name(description: Mapping[str, Any]) -> str | None:
    """The name in a `run.json`, which becomes a folder's; None when there is none that can be one."""
    name = description.get("name")
    if not isinstance(name, str) or not name.isprintable() or name in ("", ".", "..") or "/" in name:
        return None
    return name if len(name.encode()) <= MAX_NAME else None


def new_name(folder: Path) -> str:
    """A name for a new run in this folder: what the folder is called, as far as `run_name` takes it, and the time."""
    shown = "".join(c if c.isprintable() else "_" for c in folder.resolve().name)
    end = f"-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    return shown.encode()[: MAX_NAME - len(end)].decode(errors="ignore") + end


# --------------------------------------------------------------------------------------------------------------------
# The same run or another
# --------------------------------------------------------------------------------------------------------------------


def identity(recipe: Recipe, environment: Mapping[str, str] = os.environ) -> dict[str, dict[str, Any]]:
    """What makes a run this run: `fixed` values, with which its checkpoints stand or fall, and `free` ones.

    Args:
        recipe: what was asked.
        environment: the launcher's variables.
    """
    batch = batch_of(recipe, world_size())
    variables = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_FSDP": "FSDP"}
    sharded = next((name for key, name in variables.items() if environment.get(key) == "true"), None)
    task_keys = [key for key in recipe.task.arguments.__dataclass_fields__ if key not in _FREE]
    fixed = {key: recipe.resolved.get(key) for key in (*_FIXED, *task_keys)}
    fixed |= {"completions a step": batch.per_step, "completions per generation": batch.per_generation}
    fixed["sharding"] = sharded
    free = {key: recipe.resolved.get(key) for key in _FREE}
    free |= {"bf16": uses_bf16(recipe), "processes": world_size()}  # a bf16 of None stands for a choice
    if sharded:  # each process holds a part of the optimizer, and DeepSpeed its learning rate
        fixed["processes"], fixed["learning_rate"] = free.pop("processes"), free.pop("learning_rate")
    return {"fixed": _plain(fixed), "free": _plain(free)}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe values as JSON gives them back."""
    return {k: json.loads(json.dumps(getattr(v, "value", v), default=str)) for k, v in values.items()}


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    changed = [key for key in now if key in before and not same_value(key, before[key], now[key])]
    return [f"{key}: {printable(str(before[key]))} -> {printable(str(now[key]))}" for key in changed]


def _checked(resume: Resume, recipe: Recipe, environment: Mapping[str, str]) -> Resume:
    """The same with notes on what changed; raises RunError when the recipe asks for another run."""
    files = resume.manifest.get("files", {})
    if files and not any(re.match(r"optimizer|global_step", name) for name in files):
        is_adapter = "adapter_config.json" in files
        use = how_to_merge(resume.path) if is_adapter else f"give it as model_name_or_path: {resume.path}"
        raise RunError(
            f"{resume.path} was saved with save_only_model: true, without the optimizer, so no run can resume from it: "
            f"--resume_from_checkpoint false starts over; or choose another --output_dir and {use}"
        )
    if recipe.training.sync_ref_model:
        resume.notes.append("sync_ref_model: the reference model starts over, no checkpoint holds it")
    before = _part(read_description(resume.path.parent), "identity")
    if not before:
        return resume
    now = identity(recipe, environment)
    if fixed := _differences(_part(before, "fixed"), now["fixed"]):
        raise RunError(
            f"cannot resume from {resume.path}, the recipe has changed: {', '.join(fixed)}; write the old values "
            f"again, or choose another --output_dir"
        )
    free = _differences(_part(before, "free"), now["free"])
    layout = [change for change in free if change.partition(":")[0] in _LAYOUT]
    if layout and resume.manifest.get("buffered"):
        raise RunError(
            f"{resume.path} holds completions that still wait for their step, cut for another layout "
            f"({', '.join(layout)}): write the old values again, or resume from a checkpoint between two generations"
        )
    if free:
        resume.notes.append(f"changed from step {resume.step} on: {', '.join(free)}")
    if any(change.startswith("processes:") for change in free):
        resume.notes.append("another number of processes: random states start over, so steps will not repeat exactly")
    return resume


def check_agreement(places: list[Any]) -> None:
    """Refuses to resume when the processes do not see the same checkpoint. Raises RunError.

    Args:
        places: one entry a process, alike where they agree.
    """
    if any(place != places[0] for place in places):
        raise RunError(
            f"output_dir: the processes see different checkpoints ({', '.join(str(place) for place in places)}): it "
            f"must be one folder that all machines share"
        )


def lacks_evaluation(resume: Resume, every: float | None) -> bool:
    """Whether an evaluation was due at a checkpoint and did not come to its end.

    Args:
        resume: where the run resumes.
        every: steps between evaluations; None or a share of all steps where that is not known.
    """
    if not every or every < 1 or resume.step % int(every):
        return False
    state = read_json(resume.path / TRAINER_STATE)
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list):
        return False
    return not any(entry.get("step") == resume.step and "eval_reward" in entry for entry in history)


def check_same_puzzles(resume: Resume | None, fingerprint: str) -> None:
    """Refuses to resume with other puzzles than the run began with, such as a file that was edited. Raises RunError."""
    if resume is None:
        return
    before = _part(read_description(resume.path.parent), "split").get("fingerprint")
    if before not in (None, fingerprint):
        raise RunError(
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
        RunError: when another run has it and does not end within some seconds, as a killed one does.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RunError(f"output_dir: cannot write to {folder}: {error}") from error
    deadline = time.monotonic() + _LOCK_WAIT
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                holder = path.read_text(errors="replace").strip() or "unknown"
                os.close(descriptor)
                raise RunError(
                    f"output_dir: another run uses {folder} (process {holder}): wait for it, end it, or choose "
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
    """Moves checkpoints that are incomplete or of another run out of the way, so that no start resumes from them."""
    for path in checkpoints:
        goal = folder / SET_ASIDE / f"{path.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        try:
            goal.parent.mkdir(exist_ok=True)
            path.rename(goal)
            logger.warning("%s is now %s; nothing needs it, it can be deleted", path, goal)
        except OSError as error:
            logger.warning("%s cannot be moved to %s (%s)", path, goal, error)


def cut_back(sizes: Mapping[str, int], folders: Mapping[str, Path]) -> None:
    """Cuts sample files back to what they held at the checkpoint, because the steps after it are done again.

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
