"""The machine as the launcher and the driver describe it: this one, or the one of `plan_for`."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mini_r1.common import RecipeError, world_size
from mini_r1.recipe import Recipe
from mini_r1.recipe.files import read_yaml


def plural(number: int, noun: str) -> str:
    """`1 GPU`, `2 GPUs`, `3 processes`."""
    return f"{number} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")


@dataclass(frozen=True)
class Machine:
    """What the launcher and the machine offer.

    Attributes:
        gpus: the visible GPUs by the names that CUDA_VISIBLE_DEVICES uses; `cuda:i` is the i-th of them.
        gpu_memory: bytes of each of them.
        processes: training processes on all machines together.
        local_processes: training processes on this machine; local rank i trains on `cuda:i`.
        machines: how many machines take part.
        is_first: whether rank 0 runs here, which starts the server.
        is_rank_zero: whether this process is rank 0.
        zero_stage: DeepSpeed's ZeRO stage, 0 to 3; None without DeepSpeed.
        offloads: whether DeepSpeed keeps the optimizer or the weights in main memory.
        fsdp_version: 1 or 2; None without FSDP.
        is_here: False for a machine that is only planned for (`plan_for`): nothing can be asked of it.
    """

    gpus: tuple[str, ...] = ()
    gpu_memory: tuple[float, ...] = ()
    processes: int = 1
    local_processes: int = 1
    machines: int = 1
    is_first: bool = True
    is_rank_zero: bool = True
    zero_stage: int | None = None
    offloads: bool = False
    fsdp_version: int | None = None
    is_here: bool = True

    @property
    def smallest_gpu(self) -> float:
        """Bytes of the smallest GPU that a rank of this machine trains on; 0 on the CPU."""
        return min(self.gpu_memory[: self.local_processes], default=0.0)

    @property
    def strategy(self) -> str:
        """The parallelism strategy, for display."""
        if self.zero_stage is not None:
            return f"DeepSpeed ZeRO-{self.zero_stage}"
        if self.fsdp_version is not None:
            return f"FSDP{self.fsdp_version}"
        return "data parallel" if self.processes > 1 else "one process"


def this_machine(gpu_memory: Sequence[float], environment: Mapping[str, str] = os.environ) -> Machine:
    """Reads the launcher's environment variables (torchrun's names, which accelerate uses as well).

    Args:
        gpu_memory: bytes of each visible GPU.
        environment: the variables.
    """

    def number(name: str, default: int) -> int:
        return int(environment.get(name, default))

    count = len(gpu_memory)
    visible = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    names = visible if len(visible) == count else [str(i) for i in range(count)]
    processes = number("WORLD_SIZE", 1)
    zero_stage, offloads = _zero(environment)
    return Machine(
        gpus=tuple(names),
        gpu_memory=tuple(gpu_memory),
        processes=processes,
        local_processes=number("LOCAL_WORLD_SIZE", processes),
        machines=number("GROUP_WORLD_SIZE", 1),
        is_first=number("GROUP_RANK", 0) == 0,
        is_rank_zero=number("RANK", 0) == 0,
        zero_stage=zero_stage,
        offloads=offloads,
        fsdp_version=number("FSDP_VERSION", 1) if environment.get("ACCELERATE_USE_FSDP") == "true" else None,
    )


def _zero(environment: Mapping[str, str]) -> tuple[int | None, bool]:
    """DeepSpeed's ZeRO stage, None without DeepSpeed, and whether it offloads to main memory."""
    if environment.get("ACCELERATE_USE_DEEPSPEED") != "true":
        return None, False
    if file := environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE"):  # takes the place of the other variables
        zero = json.loads(Path(file).read_text()).get("zero_optimization", {})
        return zero.get("stage", 0), not {"offload_optimizer", "offload_param"}.isdisjoint(zero)
    devices = (environment.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{part}_DEVICE") for part in ("OPTIMIZER", "PARAM"))
    return int(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 2)), "cpu" in devices  # 2 is accelerate's default


def planned_machine(recipe: Recipe) -> Machine:
    """The machine of `plan_for`, the first one where it names several, as a launch there would show it to rank 0.

    Args:
        recipe: what was asked; read are `plan_for` (GPUs x GB, or machines x GPUs x GB), `plan_with` (an accelerate
            file or None), `plan_processes` (or None), `use_cpu` and the keys about vLLM.

    Raises:
        RecipeError: when these do not describe a launch on that machine; names the change to make.
    """
    script, training, plan_for = recipe.script, recipe.training, recipe.script.plan_for or ""
    found = re.fullmatch(r"(?:([1-9]\d*)x)?([1-9]\d*)x([1-9]\d*)", plan_for)
    if found is None:
        raise RecipeError(f"plan_for must be GPUs x GB (4x80) or machines x GPUs x GB (2x8x80), got {plan_for!r}")
    machines, gpus, gigabytes = int(found[1] or 1), int(found[2]), int(found[3])
    config = read_yaml(script.plan_with) if script.plan_with else {"num_machines": machines}
    if training.use_cpu or config.get("use_cpu"):
        raise RecipeError("plan_for plans for GPUs: write use_cpu: false in the recipe and in the file of plan_with")
    if config.get("num_machines") != machines:
        there = f"{script.plan_with} says num_machines: {config.get('num_machines')}"
        raise RecipeError(f"plan_for: {plan_for}, and {there}: make them equal")
    server = training.vllm_tensor_parallel_size if training.use_vllm and starts_server(recipe) else 0
    # A launcher starts equally many on each machine.
    processes = script.plan_processes or config.get("num_processes") or machines * max(1, gpus - server)
    if processes < 1 or processes % machines:
        raise RecipeError(f"plan_processes must be a positive multiple of the machines, {machines}, got {processes}")
    machine = this_machine([gigabytes * 1e9] * gpus, _launch_variables(config, processes, machines))
    return replace(machine, is_here=False)


def _launch_variables(config: dict[str, Any], processes: int, machines: int) -> dict[str, str]:
    """The environment variables that `accelerate launch` sets from its file."""
    kind, deepspeed = config.get("distributed_type"), config.get("deepspeed_config") or {}
    variables = {f"ACCELERATE_DEEPSPEED_{key.removeprefix('deepspeed_').upper()}": deepspeed[key] for key in deepspeed}
    variables |= {
        "WORLD_SIZE": processes,
        "LOCAL_WORLD_SIZE": processes // machines,
        "GROUP_WORLD_SIZE": machines,
        "ACCELERATE_USE_DEEPSPEED": "true" if kind == "DEEPSPEED" else "false",
        "ACCELERATE_USE_FSDP": "true" if kind == "FSDP" else "false",
        "FSDP_VERSION": (config.get("fsdp_config") or {}).get("fsdp_version", 1),
    }
    return {name: str(value) for name, value in variables.items()}


def starts_server(recipe: Recipe) -> bool:
    """Whether a run with `use_vllm: true` starts a server of its own."""
    elsewhere = recipe.vllm.vllm_device == "none" or recipe.training.vllm_server_base_url
    return recipe.training.vllm_mode == "server" and not elsewhere


def training_processes(recipe: Recipe) -> int:
    """How many processes train: in the launch that is planned for, else as this process's launcher says."""
    return world_size() if recipe.script.plan_for is None else planned_machine(recipe).processes


def gpu_memory() -> list[float]:
    """Bytes of each visible GPU, of whatever maker, as torch has them."""
    import torch

    # With a driver that is too old, device_count still counts what the driver shows.
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [float(torch.cuda.get_device_properties(i).total_memory) for i in range(count)]


def gpus_of_driver() -> int:
    """How many NVIDIA GPUs the driver shows, whether torch can use them or not."""
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
