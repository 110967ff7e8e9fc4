"""What a run will do and need, said before it starts: batch, memory, disk, time, destination, and departures.

Arithmetic on the recipe and on what is there; no torch, no model. Memory figures are estimates from the model's shape
(`tests/test_plan.py` holds one of them against the peak of a real run); they leave out what a library may add.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_r1.placement import Machine, Placement
from mini_r1.recipe import RecipeError

logger = logging.getLogger(__name__)

GB = 1e9
# CUDA context, cuBLAS and NCCL workspaces, fragmentation: a rule of thumb.
_GPU_OVERHEAD = 2 * GB
# Python with torch, transformers, TRL and data sets loaded: the peak of a run of the 4 MB model is 0.83 GB.
_PROCESS = 0.8 * GB
# Gradients of activations and intermediate results, in layers' worth of saved activations. Fitted to the peaks of six
# CPU runs of a 27 M model with and without checkpointing, which the estimate then meets within 10 %.
_WORKING_LAYERS = 3
# TRL computes log-probabilities in tiles of so many tokens by so many words of the vocabulary.
_TILE_TOKENS, _TILE_WORDS = 4096, 32_768


# --------------------------------------------------------------------------------------------------------------------
# The model
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelShape:
    """A decoder's dimensions, as its config.json names them, and its number of parameters."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary: int
    context: int | None

    @property
    def cache_elements(self) -> int:
        """Elements of the KV cache per token."""
        return 2 * self.layers * self.key_value_heads * self.head_size

    @property
    def saved_elements(self) -> int:
        """Elements that one layer keeps per token for its backward pass (norms, projections, attention, gated MLP)."""
        attention = 2 * self.heads * self.head_size + 2 * self.key_value_heads * self.head_size
        return 6 * self.hidden + attention + 4 * self.intermediate


def _counted(folder: Path) -> int | None:
    """Parameters in a folder's safetensors files, from their headers; None when there are none."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as stream:
            header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
        for name, tensor in header.items():
            if name != "__metadata__":
                size = 1
                for length in tensor["shape"]:
                    size *= length
                total += size
    return total or None


def read_shape(config: Mapping[str, Any], parameters: int | None = None) -> ModelShape | None:
    """The shape in a config.json's contents, None for architectures that do not name these dimensions.

    Args:
        config: the file's contents.
        parameters: when known; otherwise counted for a Llama-like decoder (Llama, Mistral, Qwen2, Qwen3).
    """
    try:
        layers, hidden, heads = config["num_hidden_layers"], config["hidden_size"], config["num_attention_heads"]
        intermediate, vocabulary = config["intermediate_size"], config["vocab_size"]
    except KeyError:
        return None
    key_value = config.get("num_key_value_heads") or heads
    size = config.get("head_dim") or hidden // heads
    if parameters is None:
        attention = 2 * hidden * heads * size + 2 * hidden * key_value * size
        biases = (heads + 2 * key_value) * size if config.get("model_type") == "qwen2" else 0
        layer = attention + biases + 3 * hidden * intermediate + 2 * hidden
        embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings") else 2)
        parameters = layers * layer + embeddings + hidden
    return ModelShape(parameters, layers, hidden, intermediate, heads, key_value, size, vocabulary,
                      config.get("max_position_embeddings"))  # fmt: skip


def find_shape(name: str, revision: str | None, ask_hub: bool) -> ModelShape | None:
    """The shape of a local or Hub model; None when it cannot be known without asking a Hub that is not to be asked.

    Raises:
        RecipeError: when a local folder is no model, or the Hub has none of that name.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        try:
            return read_shape(json.loads((folder / "config.json").read_text()), _counted(folder))
        except (OSError, ValueError) as error:
            raise RecipeError(f"model_name_or_path: {name} holds no model that can be read: {error}") from error
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise RecipeError(f"model_name_or_path: there is no folder {name}")
    import httpx
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    path = try_to_load_from_cache(name, "config.json", revision=revision)
    try:
        if not isinstance(path, str) and ask_hub:
            path = hf_hub_download(name, "config.json", revision=revision)
    except RepositoryNotFoundError as error:
        raise RecipeError(
            f"model_name_or_path: the Hub shows no model {name}; check the name, or `hf auth login`"
        ) from error
    except (OSError, HfHubHTTPError, httpx.HTTPError):
        return None
    return read_shape(json.loads(Path(path).read_text())) if isinstance(path, str) else None


# --------------------------------------------------------------------------------------------------------------------
# Batch, memory, disk
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Completions per optimizer step and per generation, and the puzzles and tokens in them."""

    per_step: int
    per_generation: int
    generations: int
    tokens_per_completion: int
    origin: str


def batch_of(values: Any, processes: int) -> Batch:
    """B completions = P puzzles x G generations, as TRL computes them. Raises RecipeError when groups do not fit."""
    per_round = values.per_device_train_batch_size * processes
    if values.generation_batch_size:
        per_generation = values.generation_batch_size
        if per_generation % per_round:
            raise RecipeError(
                f"generation_batch_size ({per_generation}) must be a multiple of per_device_train_batch_size x "
                f"processes ({per_round})"
            )
    else:
        per_generation = per_round * (values.steps_per_generation or values.gradient_accumulation_steps)
    if per_generation % values.num_generations:
        raise RecipeError(
            f"{per_generation} completions per generation are no multiple of num_generations ({values.num_generations})"
        )
    origin = (
        f"{values.per_device_train_batch_size} per device x {processes} process{'es' if processes > 1 else ''} x "
        f"{values.gradient_accumulation_steps} accumulation steps"
    )
    return Batch(per_round * values.gradient_accumulation_steps, per_generation, values.num_generations,
                 values.max_prompt_tokens + values.max_completion_length, origin)  # fmt: skip


def check_evaluation(values: Any, processes: int, held_out: int | None = None) -> None:
    """Refuses evaluations whose batches cannot be whole groups, or for which there are too few puzzles.

    The first is GRPOConfig's rule, the second that of the run, which makes a batch smaller where puzzles are few.

    Args:
        values: the recipe's keys as attributes.
        processes: training processes on all machines together.
        held_out: how many puzzles are held out; None before they are there, when only what the recipe says counts.

    Raises:
        RecipeError: with the change to make.
    """
    if getattr(values.eval_strategy, "value", values.eval_strategy) == "no":
        return
    key = "num_generations_eval" if values.num_generations_eval else "num_generations"
    generations = getattr(values, key)
    per_device = values.per_device_eval_batch_size
    es = "es" if processes > 1 else ""
    if per_device * processes % generations:
        raise RecipeError(
            f"per_device_eval_batch_size ({per_device}) x {processes} process{es} makes {per_device * processes} "
            f"completions per evaluation batch, which is no multiple of {key} ({generations}): set "
            f"per_device_eval_batch_size to a multiple of {generations // math.gcd(generations, processes)}, or "
            f'eval_strategy: "no"'
        )
    if held_out is None:
        held_out = values.eval_puzzles if values.held_out_puzzles else 0
    available = min(held_out, values.eval_puzzles)
    needed = processes // math.gcd(generations, processes)  # the smallest batch that all processes share alike
    if available < needed:
        raise RecipeError(
            f"{available} held-out puzzles to evaluate on are fewer than in the smallest batch of {processes} "
            f'process{es}, {needed}: raise held_out_puzzles, eval_puzzles or dataset_rows, or set eval_strategy: "no"'
        )


def _bytes_of(dtype: str | None) -> int:
    return 4 if dtype in ("float32", "torch.float32") else 2


def uses_bf16(values: Any) -> bool:
    """Whether training computes in bfloat16: TRL takes a `bf16` that is left out for true, unless `fp16` is set."""
    return not values.fp16 if values.bf16 is None else bool(values.bf16)


def memory_of(
    values: Any, shape: ModelShape, batch: Batch, machine: Machine, where: Placement, environment: Mapping[str, str]
) -> dict[str, float]:
    """Bytes that each training process needs at its peak, by purpose.

    Args:
        values: the recipe's keys as attributes.
        shape: the model.
        batch: what `batch_of` returned.
        machine, where: the topology.
        environment: the launcher's variables.

    Returns:
        Purpose -> bytes. On the CPU the processes share the machine's memory; on GPUs each has one.
    """
    deepspeed = environment.get("ACCELERATE_USE_DEEPSPEED") == "true"
    stage = int(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "0")) if deepspeed else 0
    fsdp = environment.get("ACCELERATE_USE_FSDP") == "true"
    world = machine.processes
    weight = _bytes_of(values.dtype)
    compute = 2 if uses_bf16(values) or values.fp16 else weight
    shards = world if stage == 3 or fsdp else 1
    trained = adapter_parameters(values, shape) if values.use_peft else shape.parameters
    trained_bytes = 4 if values.use_peft else weight
    masters = 4 if deepspeed and trained_bytes == 2 else 0
    memory = {
        "weights": shape.parameters * weight / shards + (trained * 4 if values.use_peft else 0),
        "gradients": trained * trained_bytes / (world if stage >= 2 or fsdp else 1),
        "optimizer": trained * (8 + masters) / (world if stage >= 1 or fsdp else 1),
    }
    if values.beta and not values.use_peft:
        memory["reference model"] = shape.parameters * weight / shards
    # A micro-batch, at its longest.
    tokens = values.per_device_train_batch_size * batch.tokens_per_completion
    if values.gradient_checkpointing:  # the layers' inputs, and one layer at a time computed anew
        kept = shape.layers * shape.hidden + (1 + _WORKING_LAYERS) * shape.saved_elements
    else:
        kept = (shape.layers + _WORKING_LAYERS) * shape.saved_elements
    if where.on_cpu:  # attention scores are written out there
        kept += 2 * shape.heads * batch.tokens_per_completion
    memory["activations"] = tokens * kept * compute
    words = min(shape.vocabulary, _TILE_WORDS)
    memory["log-probabilities"] = 3 * min(tokens, _TILE_TOKENS) * words * 4
    sequences = batch.per_generation // world
    if where.generation == "transformers":
        # The cache is copied when it grows by a token, so that two of them exist for a moment; generating and training
        # take turns, so only what goes beyond the activations counts.
        cache = 2 * sequences * batch.tokens_per_completion * shape.cache_elements * compute
        memory["activations"] = max(memory["activations"], float(cache))
    elif where.generation == "colocate":
        if where.on_cpu:
            memory["vLLM"] = shape.parameters * 4 + int(environment.get("VLLM_CPU_KVCACHE_SPACE", "1")) * 2**30
        elif not values.vllm_enable_sleep_mode:
            memory["vLLM"] = 0.0  # its share depends on the GPU; `check_memory` adds it
    memory["process"] = _PROCESS if where.on_cpu else _GPU_OVERHEAD
    return memory


def adapter_parameters(values: Any, shape: ModelShape) -> int:
    """Parameters of a LoRA adapter on all linear layers of the decoder (an upper bound for fewer targets)."""
    attention = shape.heads * shape.head_size
    key_value = shape.key_value_heads * shape.head_size
    sizes = (
        (shape.hidden, attention), (shape.hidden, key_value), (shape.hidden, key_value), (attention, shape.hidden),
        (shape.hidden, shape.intermediate), (shape.hidden, shape.intermediate), (shape.intermediate, shape.hidden),
    )  # fmt: skip
    return int(values.lora_r) * shape.layers * sum(a + b for a, b in sizes)


@dataclass(frozen=True)
class Device:
    """A GPU: its name and its memory in bytes."""

    name: str
    total: float


def find_gpus(environment: Mapping[str, str] = os.environ) -> list[Device]:
    """The visible NVIDIA GPUs, asked from the driver without loading torch; none where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []
    found = {}
    for line in lines:
        index, uuid, name, total = (part.strip() for part in line.split(","))
        # Machines whose GPU shares the main memory name no size.
        found[index] = found[uuid] = Device(name, float(total) * 2**20 if total.isdigit() else 0.0)
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [device for key, device in found.items() if key.isdigit()]
    names = [name.strip() for name in visible.split(",") if name.strip()]
    # CUDA accepts the beginning of a UUID; what is not known, as a part of a GPU (MIG), is there all the same.
    return [
        next((device for key, device in found.items() if key == name or (name[:4] == "GPU-" and key.startswith(name))),
             Device(name, 0.0))
        for name in names
    ]  # fmt: skip


def gpus_of_torch() -> list[Device]:
    """The visible GPUs as torch has them, of whatever maker: what a real run goes by."""
    import torch

    return [
        Device(torch.cuda.get_device_name(i), float(torch.cuda.get_device_properties(i).total_memory))
        for i in range(torch.cuda.device_count())
    ]


def _cpu_memory() -> float:
    """Bytes that this machine could give to new processes."""
    import psutil

    return float(psutil.virtual_memory().available)


def check_memory(
    values: Any, memory: dict[str, float], machine: Machine, where: Placement, gpus: Sequence[Device], shape: ModelShape
) -> list[str]:
    """The memory lines of the plan.

    Raises:
        RecipeError: when what is needed for certain, without activations, is more than there is.
    """
    if where.on_cpu:
        available, there = _cpu_memory(), "free on this machine"
        total = sum(memory.values()) * machine.local_processes
        if where.generation == "own_server":
            server = shape.parameters * 4 + int(os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1")) * 2**30 + 3 * _PROCESS
            memory = {**memory, "vLLM server": server}
            total += server
    else:
        available, there = (min(gpu.total for gpu in gpus[: machine.local_processes]), "a GPU") if gpus else (0.0, "")
        if "vLLM" in memory:
            memory = {**memory, "vLLM": values.vllm_gpu_memory_utilization * available}
        total = sum(memory.values())
        if where.generation == "colocate" and values.vllm_enable_sleep_mode and available:
            resting = sum(memory[key] for key in ("weights", "gradients", "optimizer", "process"))
            resting += memory.get("reference model", 0.0)
            total = max(total, resting + values.vllm_gpu_memory_utilization * available)
    parts = ", ".join(f"{name} {_size(size)}" for name, size in memory.items() if size >= 0.5e6)
    lines = [f"  memory:     about {_size(total)} of {_size(available)} {there}" if available else
             f"  memory:     about {_size(total)} a GPU", f"              {parts}"]  # fmt: skip
    certain = sum(memory[key] for key in ("weights", "gradients", "optimizer"))
    certain = certain * (machine.local_processes if where.on_cpu else 1) + memory.get("vLLM", 0.0)
    # Quantized weights, other optimizers and offloading need less than this arithmetic knows of.
    plain = not (values.load_in_4bit or values.load_in_8bit) and str(getattr(values.optim, "value", values.optim)) in (
        "adamw_torch_fused", "adamw_torch"
    )  # fmt: skip
    offloads = "cpu" in (os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"),
                         os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE"))  # fmt: skip
    if available and certain > available and plain and not offloads:
        raise RecipeError(
            f"this run needs {_size(certain)} before a single activation, and there are {_size(available)} ({parts}): "
            f"use a smaller model, use_peft: true, more GPUs with ZeRO-3, or a lower vllm_gpu_memory_utilization"
        )
    if available and total > 0.97 * available:
        lines.append(
            "              note: that is more than fits; halve per_device_train_batch_size and double "
            "gradient_accumulation_steps, or set gradient_checkpointing: true"
        )
    sizes = [gpu.total for gpu, name in zip(gpus, machine.gpus, strict=False) if name in where.server_gpus]
    if where.generation == "own_server" and min(sizes, default=0) > 0:
        weight = _bytes_of(values.vllm_dtype or values.dtype)
        share = values.vllm_gpu_memory_utilization * min(sizes)
        room = share - shape.parameters * weight / values.vllm_tensor_parallel_size
        per_token = shape.cache_elements * weight / values.vllm_tensor_parallel_size
        lines.append(
            f"  vLLM:       room for {room / per_token / 1e3:.0f} thousand tokens of KV cache a GPU" if room > 0 else
            f"  vLLM:       note: its weights are more than its {_size(share)} of a GPU; raise "
            f"vllm_gpu_memory_utilization or vllm_tensor_parallel_size"
        )  # fmt: skip
    return lines


def check_output_dir(output_dir: str) -> None:
    """Writes to the nearest folder above `output_dir` that exists, and leaves nothing there.

    Raises:
        RecipeError: when that fails, as it will for the run.
    """
    # Leaves the `~` of a user who is not there as it is, like transformers.
    folder = Path(os.path.expanduser(output_dir)).absolute()  # noqa: PTH111
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0" * 4096)
    except OSError as error:
        raise RecipeError(f"output_dir: cannot write to {output_dir}: {folder}: {error.strerror}") from error


def checkpoint_bytes(values: Any, shape: ModelShape, environment: Mapping[str, str]) -> float:
    """Bytes of one checkpoint: weights, and the optimizer's moments (with float32 masters under DeepSpeed)."""
    weight = _bytes_of(values.dtype)
    if values.use_peft:
        return adapter_parameters(values, shape) * (4 + 8)
    masters = 4 if environment.get("ACCELERATE_USE_DEEPSPEED") == "true" else 0
    return shape.parameters * (weight + (0 if values.save_only_model else 8 + masters))


def _save_count(values: Any) -> int:
    strategy = getattr(values.save_strategy, "value", values.save_strategy)
    if strategy != "steps" or values.max_steps <= 0:  # how often others save is not known beforehand
        return 0
    every = values.save_steps if values.save_steps >= 1 else max(1, round(values.save_steps * values.max_steps))
    saves = max(1, int(values.max_steps // every) + (values.max_steps % every > 0))
    # Transformers writes the new one before it removes the oldest.
    return min(saves, values.save_total_limit + 1) if values.save_total_limit else saves


def check_disk(values: Any, shape: ModelShape, environment: Mapping[str, str]) -> list[str]:
    """The disk lines of the plan.

    Raises:
        RecipeError: when not even one checkpoint and the final model fit.
    """
    folder = Path(values.output_dir).expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    # A resumed run has written some of them already.
    free += sum(file.stat().st_size for file in folder.glob("checkpoint-*/**/*") if file.is_file())
    one, count = checkpoint_bytes(values, shape, environment), _save_count(values)
    final = shape.parameters * _bytes_of(values.dtype)
    if one * min(count, 1) + final > free:
        raise RecipeError(
            f"a checkpoint of {_size(one)} and the final model of {_size(final)} do not fit into the {_size(free)} "
            f"free at {values.output_dir}: make room, choose another output_dir, or set save_only_model: true"
        )
    lines = [f"  disk:       {count} x {_size(one)} for checkpoints at a time, and {_size(final)} for the final model; "
             f"{_size(free)} free"]  # fmt: skip
    if one * count + final > free:
        lines.append(
            f"              WARNING: {_size(one * count + final)} are needed in all. After "
            f"{int((free - final) // one)} checkpoints the disk is full and no more are written: set "
            f"save_total_limit: 2, raise save_steps, or set save_only_model: true"
        )
    return lines


# --------------------------------------------------------------------------------------------------------------------
# Time, departures
# --------------------------------------------------------------------------------------------------------------------


def _time_line(values: Any, recipe_path: str | None) -> str:
    """The time of the recipe's measured run, where one is kept beside it as JSON."""
    if recipe_path and values.max_steps > 0:
        try:
            measured = json.loads(Path(recipe_path).with_suffix(".json").read_text())
            minutes, steps = measured["train_minutes"], measured["steps"][-1]
            share = values.max_steps / steps
            return (
                f"  time:       about {sum(minutes) / len(minutes) * share:.0f} minutes for {values.max_steps} steps, "
                f"going by the recipe's measured runs ({measured.get('hardware', 'see receipes/README.md')})"
            )
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            pass
    amount = f"{values.max_steps} steps" if values.max_steps > 0 else f"{values.num_train_epochs:g} epochs"
    return f"  time:       not measured for this recipe; {amount}"


def _size(size: float) -> str:
    return f"{size / GB:.1f} GB" if size >= 0.1 * GB else f"{size / 1e6:.0f} MB"


def check_software(values: Any, where: Placement) -> None:
    """Refuses what the installed packages or the machine cannot do. Raises RecipeError."""
    from importlib.util import find_spec

    if where.on_cpu and (uses_bf16(values) or values.fp16):
        left_out = " (TRL takes a bf16 that is left out for true)" if values.bf16 is None else ""
        raise RecipeError(f"bf16 and fp16 need a GPU{left_out}: write bf16: false, or run this recipe on one")
    if values.bf16 and values.fp16:
        raise RecipeError("bf16 and fp16 exclude each other: remove one of them")
    if values.attn_implementation == "flash_attention_2":
        if where.on_cpu:
            raise RecipeError("attn_implementation: flash_attention_2 needs a GPU: write sdpa")
        if find_spec("flash_attn") is None and find_spec("kernels") is None:
            raise RecipeError(
                "attn_implementation: flash_attention_2 is not installed: `make install-gpu`, or write sdpa"
            )
    if values.push_to_hub is False and values.hub_model_id:
        logger.warning("hub_model_id is set and push_to_hub is not: nothing will be uploaded")


def describe(
    values: Any,
    machine: Machine,
    where: Placement,
    gpus: Sequence[Device],
    *,
    recipe_path: str | None = None,
    changed: Mapping[str, Any] | None = None,
    hub_line: str = "  Hub:        nothing is uploaded (push_to_hub: false)",
    ask_hub: bool = False,
    environment: Mapping[str, str] = os.environ,
) -> list[str]:
    """The plan, line by line.

    Args:
        values: the recipe's keys as attributes.
        machine, where: what `placement` found and planned.
        gpus: the visible GPUs.
        recipe_path: the recipe's file, beside which measured runs are kept.
        changed: keys that differ from TRL's defaults.
        hub_line: what `hub.describe` says.
        ask_hub: whether the Hub may be asked about the model.
        environment: the launcher's variables.

    Raises:
        RecipeError: for what would fail later; one line with the change to make.
    """
    check_software(values, where)
    check_output_dir(values.output_dir)
    batch = batch_of(values, machine.processes)
    check_evaluation(values, machine.processes)
    rounds = batch.per_step / batch.per_generation
    generated = (
        "generated at once" if rounds == 1 else
        f"generated {batch.per_generation} at a time, once per {1 / rounds:g} steps" if rounds < 1 else
        f"generated in {rounds:g} rounds"
    )  # fmt: skip
    lines = [
        *where.lines,
        f"  batch:      {batch.origin} = {batch.per_step} completions = {batch.per_step // batch.generations} puzzles "
        f"x {batch.generations} generations a step, {generated}",
        f"  tokens:     at most {batch.per_step * batch.tokens_per_completion} a step ({values.max_prompt_tokens} of "
        f"prompt and {values.max_completion_length} of completion each)",
    ]
    shape = find_shape(values.model_name_or_path, values.model_revision, ask_hub)
    if shape is None:
        lines.append(f"  memory:     unknown, {values.model_name_or_path} is not downloaded yet")
    else:
        if shape.context and batch.tokens_per_completion > shape.context:
            raise RecipeError(
                f"max_prompt_tokens + max_completion_length is {batch.tokens_per_completion}, and the model's context "
                f"is {shape.context}: lower one of them"
            )
        lines.append(f"  model:      {values.model_name_or_path}, {shape.parameters / 1e6:,.1f} M parameters")
        memory = memory_of(values, shape, batch, machine, where, environment)
        lines += check_memory(values, memory, machine, where, gpus, shape)
        lines += check_disk(values, shape, environment)
    lines += [_time_line(values, recipe_path), hub_line]
    if changed:
        hidden = {"output_dir", "model_name_or_path", "hub_token", "dry_run", "hub_checks", "resume_from_checkpoint"}
        shown = ", ".join(f"{key} {value}" for key, value in sorted(changed.items()) if key not in hidden)
        lines.append(f"  not the default: {shown}")
    return lines
