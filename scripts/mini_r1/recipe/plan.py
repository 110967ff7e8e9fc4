"""What a run will do and need, said before it starts: batch, memory, disk, time, and departures from the defaults.

Arithmetic on the recipe, on what is there, or on the machine that `plan_for` names; no model is loaded.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from mini_r1.common import RecipeError, masked
from mini_r1.recipe import Recipe, checks, memory
from mini_r1.recipe.machine import Machine, gpu_memory, planned_machine, this_machine
from mini_r1.recipe.memory import in_words
from mini_r1.recipe.placement import Placement, place

# The last line of a dry run, for this machine and for another.
COULD_START = "This run could start (a dry run: it does not)."
COULD_START_THERE = "This run could start there; a dry run there also checks packages, ports, memory and disk."
# Keys that the plan's last line leaves out: shown elsewhere, or about the plan itself.
_NOT_SHOWN = ("output_dir", "model_name_or_path", "dry_run", "plan_", "hub_checks", "resume_from_checkpoint")
_INDENT = " " * 14


@dataclass(frozen=True)
class Plan:
    """Where a run would take place, and how.

    Attributes:
        machine: this one, or the one of `plan_for`.
        placement: who trains and who generates.
        batch: completions and puzzles of a step.
        lines: all of it in words, apart from where uploads go.
    """

    machine: Machine
    placement: Placement
    batch: checks.Batch
    lines: tuple[str, ...]


def make_plan(recipe: Recipe) -> Plan:
    """Decides who runs where, and checks that it could.

    Args:
        recipe: what was asked.

    Raises:
        RecipeError: for what would fail later; one line with the change to make.
    """
    machine = this_machine(gpu_memory()) if recipe.script.plan_for is None else planned_machine(recipe)
    placement = place(recipe, machine)
    if machine.is_here:
        checks.check_writable(recipe.training.output_dir)
    batch = checks.batch_of(recipe, machine.processes)
    puzzles, tokens = batch.per_step // batch.generations, batch.tokens_per_completion
    steps = f"{batch.per_step} completions = {puzzles} puzzles x {batch.generations} generations a step"
    lines = [*placement.lines, f"  batch:      {batch.origin} = {steps}"]
    lines.append(f"  tokens:     at most {batch.per_step * tokens} a step, {tokens} of prompt and completion each")
    name = recipe.model.model_name_or_path
    shape = memory.find_shape(name, recipe.model.model_revision, recipe.hub.hub_checks)
    if shape is None:
        lines.append(f"  memory:     unknown: neither cache nor Hub shows the shape of {name}")
    else:
        if shape.context and tokens > shape.context:
            asked = f"max_prompt_tokens + max_completion_length is {tokens}"
            raise RecipeError(f"{asked}, and the model's context is {shape.context}: lower one of them")
        lines.append(f"  model:      {name}, {shape.parameters / 1e6:,.1f} M parameters")
        lines += memory_lines(recipe, shape, machine, placement)
        lines += disk_lines(recipe, shape, machine)
    lines += [_time_line(recipe), *_departures(recipe, machine)]
    return Plan(machine, placement, batch, tuple(lines))


def memory_lines(recipe: Recipe, shape: memory.ModelShape, machine: Machine, placement: Placement) -> list[str]:
    """The memory by purpose, against what is there.

    Raises:
        RecipeError: when what is needed for certain, without activations, is more than there is.
    """
    training, sizes = recipe.training, memory.memory_of(recipe, shape, machine, placement)
    available, there, sharing = machine.smallest_gpu, "a GPU", 1
    if placement.on_cpu:
        available, there = float(psutil.virtual_memory().available), "free on this machine"
        sharing = machine.local_processes
    needed = sharing * sum(sizes.values())
    certain = sharing * sum(sizes.get(name, 0.0) for name in ("weights", "gradients", "optimizer", "vLLM"))
    parts = ", ".join(f"{name} {in_words(size)}" for name, size in sizes.items() if size >= 0.5e6)
    lines = [f"  memory:     about {in_words(needed)} of {in_words(available)} {there}", f"{_INDENT}{parts}"]
    # Quantized weights, other optimizers and offloading need less than this arithmetic knows of.
    smaller = recipe.model.load_in_4bit or recipe.model.load_in_8bit or machine.offloads
    if available < certain and training.optim in ("adamw_torch_fused", "adamw_torch") and not smaller:
        change = "use a smaller model, use_peft: true, more GPUs with ZeRO-3, or a lower vllm_gpu_memory_utilization"
        needs = f"this run needs {in_words(certain)} before a single activation"
        raise RecipeError(f"{needs}, and there are {in_words(available)} ({parts}): {change}")
    if needed > 0.97 * available:
        change = "halve per_device_train_batch_size and double gradient_accumulation_steps, or checkpoint gradients"
        lines.append(f"{_INDENT}WARNING: that is more than fits; {change}")
    return lines


def _saves_at_a_time(recipe: Recipe) -> int:
    """How many checkpoints the run folder holds at most; 0 where that is not known beforehand."""
    training = recipe.training
    if training.save_strategy != "steps" or training.max_steps <= 0:
        return 0
    every = training.save_steps if training.save_steps >= 1 else math.ceil(training.save_steps * training.max_steps)
    saves = math.ceil(training.max_steps / every)
    # The new one is written before the oldest is removed; two are kept at least, the best and the newest.
    return min(saves, max(training.save_total_limit or saves, 2) + 1)


def disk_lines(recipe: Recipe, shape: memory.ModelShape, machine: Machine) -> list[str]:
    """What checkpoints and the final model take, against what is free.

    Raises:
        RecipeError: when not even one checkpoint and the final model fit on this machine.
    """
    one, final = memory.checkpoint_bytes(recipe, shape, machine), memory.final_bytes(recipe, shape)
    count, folder = _saves_at_a_time(recipe), checks.nearest_folder(recipe.training.output_dir)
    needed = one * count + final
    line = f"  disk:       {count} x {in_words(one)} for checkpoints at a time, {in_words(final)} for the final model"
    if not machine.is_here:
        return [f"{line}: {in_words(needed)} in all, besides what is downloaded"]
    # A resumed run has written some of them already.
    written = sum(file.stat().st_size for file in folder.glob("checkpoint-*/**/*") if file.is_file())
    free = shutil.disk_usage(folder).free + written
    lines = [f"{line}; {in_words(free)} free"]
    if one * min(count, 1) + final > free:
        needs = f"a checkpoint of {in_words(one)} and the final model of {in_words(final)}"
        change = "make room, choose another output_dir, or set save_only_model: true"
        raise RecipeError(f"{needs} do not fit into the {in_words(free)} free at {folder}: {change}")
    if needed > free:
        full = f"{in_words(needed)} are needed in all: the disk is full after {int((free - final) // one)} checkpoints"
        lines.append(f"{_INDENT}WARNING: {full}; set save_total_limit: 2 or save_only_model: true")
    return lines


def _time_line(recipe: Recipe) -> str:
    """The time of the recipe's measured runs, where they are kept beside it as JSON."""
    steps = recipe.training.max_steps
    if steps > 0 and recipe.path and (measured := Path(recipe.path).with_suffix(".json")).is_file():
        runs = json.loads(measured.read_text())
        minutes = sum(runs["train_minutes"]) / len(runs["train_minutes"]) * steps / runs["steps"][-1]
        return f"  time:       about {minutes:.0f} minutes for {steps} steps, by the recipe's measured runs"
    return "  time:       not measured for this recipe"


def _departures(recipe: Recipe, machine: Machine) -> list[str]:
    """A setting that runs without an error and learns nothing, and the keys whose values are not the defaults."""
    lines, rate = [], recipe.training.learning_rate
    has_masters = machine.zero_stage is not None or machine.fsdp_version is not None or recipe.model.use_peft
    # Half a unit in the last place of bfloat16 is 4e-5 at |w| = 0.02, and AdamW's step is about the learning rate.
    if recipe.model.dtype == "bfloat16" and rate < 4e-5 and not has_masters:
        lost = f"without DeepSpeed or FSDP, most updates of learning_rate {rate:g} round to nothing"
        lines.append(f"  WARNING:    dtype: bfloat16: {lost}; set dtype: float32 and bf16: true")
    given = masked({key: value for key, value in sorted(recipe.given.items()) if not key.startswith(_NOT_SHOWN)})
    shown = ", ".join(f"{key} {value}" for key, value in given.items())
    return [*lines, f"  not the default: {shown}"] if shown else lines
