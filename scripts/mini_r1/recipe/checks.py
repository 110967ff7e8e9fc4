"""Every rule on a recipe's values, once: types apart, what makes a value impossible before anything is loaded."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from mini_r1.common import RecipeError
from mini_r1.recipe import Recipe
from mini_r1.recipe.arguments import HUB_EXTRAS, GuardArguments
from mini_r1.recipe.machine import gpus_of_driver, plural, training_processes
from mini_r1.recipe.placement import named_devices


def require(condition: bool, key: str, expected: str, value: object) -> None:
    """Raises RecipeError unless the condition holds."""
    if not condition:
        raise RecipeError(f"{key} must be {expected}, got {value!r}")


def require_at_least(values: object, minimum: float, *keys: str, exclusive: bool = False) -> None:
    """Raises RecipeError unless each of the attributes is a number from `minimum` on, or above it when `exclusive`."""
    for key in keys:
        value = getattr(values, key)
        good = isinstance(value, (int, float)) and (value > minimum if exclusive else value >= minimum)
        expected = "positive" if exclusive and minimum == 0 else f"{minimum:g} or more"
        require(good, key, expected, value)


def check_values(recipe: Recipe) -> None:
    """Refuses values that cannot work, in a draft of the recipe. Raises RecipeError, which names the key."""
    keys: Any = recipe.training  # a draft has all keys in every subject
    positive = "learning_rate temperature max_completion_length max_prompt_tokens".split()
    batches = "per_device_train_batch_size gradient_accumulation_steps per_device_eval_batch_size".split()
    require_at_least(keys, 0, *positive, exclusive=True)
    require_at_least(keys, 0, "beta", "weight_decay", "eval_puzzles", "refill_rounds", "profile")
    require_at_least(keys, 0, *GuardArguments.__dataclass_fields__)
    require_at_least(keys, 1, *batches, "guard_patience")
    require_at_least(keys, 2, "num_generations")  # advantages compare siblings
    for key in ("sample_share", "success_sample_share", "guard_truncated_share"):
        require(0 <= getattr(keys, key) <= 1, key, "between 0 and 1", getattr(keys, key))
    require(bool(keys.model_name_or_path), "model_name_or_path", "a Hub id or a folder", None)
    for name in keys.hub_extras:
        require(name in HUB_EXTRAS, "hub_extras", f"a list of {', '.join(HUB_EXTRAS)}", name)
    if keys.plan_for is None and (keys.plan_with or keys.plan_processes is not None):
        raise RecipeError("plan_with and plan_processes are about the machine of plan_for: add --plan_for 4x80")
    if keys.remove_unused_columns:
        raise RecipeError("remove_unused_columns must be false: the rewards read the puzzles' columns")
    if hasattr(recipe.task.arguments, "check"):  # the task's own rules
        recipe.task.arguments.check(recipe.puzzles)
    processes = training_processes(recipe)
    batch = batch_of(recipe, processes)
    if keys.refill_rounds and (of_rank := batch.per_generation // processes) % batch.generations:
        uneven = f"{of_rank} completions of a process are no multiple of num_generations ({batch.generations})"
        raise RecipeError(f"refill_rounds replaces whole groups, and {uneven}: change one of them")
    if keys.refill_rounds and (
        keys.scale_rewards == "batch" or keys.multi_objective_aggregation != "sum_then_normalize"
    ):
        raise RecipeError(
            "refill_rounds mixes groups of several rounds, each with a scale of its own: remove it, or set "
            "scale_rewards: group and multi_objective_aggregation: sum_then_normalize"
        )
    if str(keys.metric_for_best_model).removeprefix("eval_") == "loss":
        raise RecipeError("metric_for_best_model: evaluations compute no loss; remove it for held-out success")
    if keys.eval_strategy != "no":
        require_at_least(keys, 1, "eval_puzzles")
    if keys.use_vllm:
        check_generation(recipe, processes)
    check_precision(recipe)


def check_generation(recipe: Recipe, processes: int) -> None:
    """Refuses what vLLM can do on no machine. Raises RecipeError, which names the key."""
    training, device = recipe.training, recipe.vllm.vllm_device
    require_at_least(training, 1, "vllm_tensor_parallel_size")
    share, url = training.vllm_gpu_memory_utilization, training.vllm_server_base_url
    require(0 < share <= 1, "vllm_gpu_memory_utilization", "a share of a GPU's memory, at most 1", share)
    require(not url or url.startswith(("http://", "https://")), "vllm_server_base_url", "an http:// address", url)
    for key in ("use_dora", "lora_target_parameters"):
        if recipe.model.use_peft and getattr(recipe.model, key):
            raise RecipeError(f"{key} with use_vllm: true: vLLM cannot get such an adapter merged; remove one of them")
    devices, timeout, patience = named_devices(recipe), training.vllm_server_timeout, training.ddp_timeout
    if training.vllm_mode == "colocate":
        if device != "auto" or url:
            raise RecipeError(
                "vllm_device and vllm_server_base_url are for vllm_mode: server: remove them or change it"
            )
    elif devices and url:
        raise RecipeError(f"vllm_device: {device} starts a server, vllm_server_base_url names one that runs: keep one")
    elif processes > 1 and timeout >= patience:
        raise RecipeError(f"ddp_timeout ({patience}) must exceed vllm_server_timeout ({timeout:g}): raise ddp_timeout")


def check_rewards(recipe: Recipe, rewards: Sequence[object]) -> None:
    """Refuses weights that are not one for each reward function. Raises RecipeError."""
    weights = recipe.training.reward_weights
    fits = weights is None or len(weights) == len(rewards)
    require(fits, "reward_weights", f"{len(rewards)} numbers, one for each reward function", weights)


# --------------------------------------------------------------------------------------------------------------------
# Batches
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Completions per optimizer step and per generation, and the puzzles and tokens in them."""

    per_step: int
    per_generation: int
    generations: int
    tokens_per_completion: int
    origin: str


def batch_of(recipe: Recipe, processes: int) -> Batch:
    """B completions = P puzzles x G generations, as TRL computes them. Raises RecipeError when groups do not fit."""
    training = recipe.training
    per_device, accumulated = training.per_device_train_batch_size, training.gradient_accumulation_steps
    per_round, generations = per_device * processes, training.num_generations
    per_generation = training.generation_batch_size or per_round * (training.steps_per_generation or accumulated)
    there = f"{per_device} per device x {plural(processes, 'process')}"
    if per_generation % generations:
        counted = f"{there}, accumulated, makes {per_generation} completions per generation"
        raise RecipeError(f"{counted}, which is no multiple of num_generations ({generations}): change one of them")
    return Batch(
        per_step=per_round * accumulated,
        per_generation=per_generation,
        generations=generations,
        tokens_per_completion=recipe.script.max_prompt_tokens + training.max_completion_length,
        origin=f"{there} x {accumulated} accumulation steps",
    )


def evaluation_batch(recipe: Recipe, processes: int, puzzles: int) -> int:
    """Completions per device in an evaluation batch: what the recipe says, or less where there are few puzzles.

    Args:
        recipe: what was asked; its batches are whole groups (GRPOConfig's rule).
        processes: training processes on all machines together.
        puzzles: how many there are to evaluate on.

    Raises:
        RecipeError: when there are too few puzzles for a batch that all processes share equally.
    """
    generations = recipe.training.num_generations_eval or recipe.training.num_generations
    shared = math.gcd(generations, processes)
    # Whole groups need a multiple of generations // shared on each device, which hold processes // shared puzzles.
    group, least = generations // shared, processes // shared
    batches = min(puzzles // least, recipe.training.per_device_eval_batch_size // group)
    if not batches:
        change = 'raise held_out_puzzles, eval_puzzles or dataset_rows, or set eval_strategy: "no"'
        raise RecipeError(f"{puzzles} held-out puzzles to evaluate on are fewer than a batch's {least}: {change}")
    return batches * group


def check_puzzles(recipe: Recipe, processes: int, train: int, held_out: int) -> None:
    """Refuses too few puzzles for a step, or for an evaluation. Raises RecipeError with the change to make.

    Args:
        recipe: what was asked.
        processes: training processes on all machines together.
        train, held_out: how many puzzles there are.
    """
    needed = batch_of(recipe, processes).per_generation // recipe.training.num_generations
    if train < needed:
        change = "raise dataset_rows or max_prompt_tokens, or lower gradient_accumulation_steps"
        raise RecipeError(f"{train} puzzles to train on are fewer than one step's {needed}: {change}")
    if recipe.training.eval_strategy != "no":
        evaluation_batch(recipe, processes, min(held_out, recipe.script.eval_puzzles))


# --------------------------------------------------------------------------------------------------------------------
# The machine
# --------------------------------------------------------------------------------------------------------------------


def nearest_folder(path: str) -> Path:
    """The path, or the nearest one above it that exists; `~` of a user who is not there stays, as in transformers."""
    folder = Path(os.path.expanduser(path)).absolute()  # noqa: PTH111
    while not folder.exists():
        folder = folder.parent
    return folder


def check_writable(folder: str) -> None:
    """Writes to the nearest folder that exists, and leaves nothing there. Raises RecipeError when that fails."""
    try:
        with tempfile.TemporaryFile(dir=nearest_folder(folder)) as probe:
            probe.write(b"\0" * 4096)
    except OSError as error:
        raise RecipeError(f"output_dir: cannot write to {folder}: {error.strerror}") from error


def uses_bf16(recipe: Recipe) -> bool:
    """Whether training computes in bfloat16: TRL takes a `bf16` that is left out for true, unless `fp16` is set."""
    return not recipe.training.fp16 if recipe.training.bf16 is None else bool(recipe.training.bf16)


def check_precision(recipe: Recipe) -> None:
    """Refuses half precision where there is no GPU, before GRPOConfig does. Raises RecipeError."""
    import torch

    training = recipe.training
    there = recipe.script.plan_for is not None or (not training.use_cpu and torch.cuda.is_available())
    if there or not (uses_bf16(recipe) or training.fp16):
        return
    if not training.use_cpu and (unseen := gpus_of_driver()):
        built = f"this torch is built for CUDA {torch.version.cuda}"
        change = "`make install-gpu`, update the driver, or look at CUDA_VISIBLE_DEVICES"
        raise RecipeError(f"nvidia-smi shows {plural(unseen, 'GPU')} and torch sees none; {built}: {change}")
    left_out = " (TRL takes a bf16 that is left out for true)" if training.bf16 is None else ""
    raise RecipeError(f"bf16 and fp16 need a GPU{left_out}: write bf16: false, or plan for one (--plan_for 4x80)")


@contextmanager
def as_if_there(recipe: Recipe) -> Iterator[None]:
    """Within it, GRPOConfig is made as on the machine of `plan_for`; without that key, as ever.

    Patches exactly the names by which transformers' TrainingArguments (5.17) asks the machine; TRL's GRPOConfig (1.16)
    asks through them.
    """
    if recipe.script.plan_for is None:
        yield
        return
    import torch
    from accelerate import DistributedType

    state = SimpleNamespace(
        num_processes=training_processes(recipe),
        process_index=0,
        local_process_index=0,
        device=torch.device("cuda"),  # only a name; nothing is put there
        distributed_type=DistributedType.MULTI_GPU,  # any but NO, for which a CUDA device is chosen
    )
    answers: dict[str, Any] = {
        "PartialState": lambda **_: state,  # joins the process group, chooses the device, counts the processes
        "is_torch_bf16_gpu_available": lambda: True,
        "is_torch_tf32_available": lambda: True,
        "enable_tf32": lambda enable: None,  # a switch of this machine's torch
    }
    # This process's launcher speaks of this machine. What the other's would say of ZeRO is in `planned_machine`;
    # GRPOConfig would make DeepSpeed's plugin of it, which needs DeepSpeed and holds nothing that a plan reads.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    with mock.patch.multiple("transformers.training_args", **answers), mock.patch.dict(os.environ, kept, clear=True):
        yield
