"""What a run will do and need, said before it starts: batch, memory, disk, time, destination, and departures.

Arithmetic on the recipe, on what is there, or on the machine that `plan_for` names; no model is loaded. Memory figures
are estimates from the model's shape (a test holds one of them against the peak of a real run); they leave
out what a library may add.
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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from mini_r1.common import RecipeError, masked
from mini_r1.recipe.placement import Machine, Placement, training_processes

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
# Keys that the plan's last line leaves out: shown elsewhere, or about the plan itself.
_NOT_SHOWN = ("output_dir", "model_name_or_path", "dry_run", "plan_", "hub_checks", "resume_from_checkpoint")


@contextmanager
def as_if_there(values: Any) -> Iterator[None]:
    """Within it, GRPOConfig is made as on the machine of `plan_for`; without that key, as ever.

    Patches exactly the names by which transformers' TrainingArguments (5.17) asks the machine; TRL's GRPOConfig (1.16)
    asks through them.

    Args:
        values: the recipe's keys as attributes.
    """
    if values.plan_for is None:
        yield
        return
    import torch
    from accelerate import DistributedType

    state = SimpleNamespace(
        num_processes=training_processes(values),
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

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # without a network it retries, and says so each time
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
    es = "es" if processes > 1 else ""
    if values.generation_batch_size:
        per_generation, origin = values.generation_batch_size, "generation_batch_size"
        if per_generation % per_round:
            raise RecipeError(
                f"generation_batch_size ({per_generation}) must be a multiple of per_device_train_batch_size x "
                f"processes ({per_round})"
            )
    else:
        rounds = "steps_per_generation" if values.steps_per_generation else "gradient_accumulation_steps"
        per_generation = per_round * getattr(values, rounds)
        origin = (
            f"per_device_train_batch_size ({values.per_device_train_batch_size}) x {processes} process{es} x "
            f"{rounds} ({getattr(values, rounds)})"
        )
    if per_generation % values.num_generations:
        raise RecipeError(
            f"{origin} makes {per_generation} completions per generation, which is no multiple of num_generations "
            f"({values.num_generations}): change one of them"
        )
    return Batch(
        per_step=per_round * values.gradient_accumulation_steps,
        per_generation=per_generation,
        generations=values.num_generations,
        tokens_per_completion=values.max_prompt_tokens + values.max_completion_length,
        origin=f"{values.per_device_train_batch_size} per device x {processes} process{es} x "
        f"{values.gradient_accumulation_steps} accumulation steps",
    )


def evaluation_batch(values: Any, processes: int, puzzles: int) -> int:
    """Completions per device in an evaluation batch: what the recipe says, or less where there are few puzzles.

    Args:
        values: the recipe's keys as attributes.
        processes: training processes on all machines together.
        puzzles: how many there are to evaluate on.

    Raises:
        RecipeError: when batches cannot be whole groups (GRPOConfig's rule), or there are too few puzzles for a batch
            that all processes share alike; with the change to make.
    """
    key = "num_generations_eval" if values.num_generations_eval else "num_generations"
    generations, per_device = getattr(values, key), values.per_device_eval_batch_size
    es = "es" if processes > 1 else ""
    if per_device * processes % generations:
        raise RecipeError(
            f"per_device_eval_batch_size ({per_device}) x {processes} process{es} makes {per_device * processes} "
            f"completions per evaluation batch, which is no multiple of {key} ({generations}): set "
            f"per_device_eval_batch_size to a multiple of {generations // math.gcd(generations, processes)}, or "
            f'eval_strategy: "no"'
        )
    for smaller in range(per_device, 0, -1):
        puzzles_per_batch, rest = divmod(smaller * processes, generations)
        if rest == 0 and 0 < puzzles_per_batch <= puzzles:
            return smaller
    raise RecipeError(
        f"{puzzles} held-out puzzles to evaluate on are fewer than in the smallest batch of {processes} process{es}, "
        f"{processes // math.gcd(generations, processes)}: raise held_out_puzzles, eval_puzzles or dataset_rows, or "
        f'set eval_strategy: "no"'
    )


def check_puzzles(values: Any, processes: int, train: int, held_out: int) -> None:
    """Refuses too few puzzles for a step, or for an evaluation.

    Args:
        values: the recipe's keys as attributes.
        processes: training processes on all machines together.
        train, held_out: how many puzzles there are.

    Raises:
        RecipeError: with the change to make.
    """
    needed = batch_of(values, processes).per_generation // values.num_generations
    if train < needed:
        raise RecipeError(
            f"{train} puzzles to train on are fewer than one step's {needed}: raise dataset_rows or max_prompt_tokens, "
            f"or lower per_device_train_batch_size or gradient_accumulation_steps"
        )
    if values.eval_strategy != "no":
        evaluation_batch(values, processes, min(held_out, values.eval_puzzles))


def _bytes_of(dtype: str | None) -> int:
    return 4 if dtype in ("float32", "torch.float32") else 2


def _bytes_of_trained(values: Any, machine: Machine) -> int:
    """Bytes of one trained weight: adapters are float32, and under bf16 accelerate makes FSDP2's so, too."""
    upcast = values.use_peft or (machine.fsdp_version is not None and uses_bf16(values))
    return 4 if upcast else _bytes_of(values.dtype)


def uses_bf16(values: Any) -> bool:
    """Whether training computes in bfloat16: TRL takes a `bf16` that is left out for true, unless `fp16` is set."""
    return not values.fp16 if values.bf16 is None else bool(values.bf16)


def memory_of(values: Any, shape: ModelShape, batch: Batch, machine: Machine, where: Placement) -> dict[str, float]:
    """Bytes that each training process needs at its peak, by purpose.

    Args:
        values: the recipe's keys as attributes.
        shape: the model.
        batch: what `batch_of` returned.
        machine, where: the topology.

    Returns:
        Purpose -> bytes. On the CPU the processes share the machine's memory; on GPUs each has one.
    """
    stage, fsdp, world = machine.zero_stage or 0, machine.fsdp_version is not None, machine.processes
    weight = _bytes_of(values.dtype)
    compute = 2 if uses_bf16(values) or values.fp16 else weight
    shards = world if stage == 3 or fsdp else 1
    trained = adapter_parameters(values, shape) if values.use_peft else shape.parameters
    trained_bytes = _bytes_of_trained(values, machine)
    masters = 4 if machine.zero_stage is not None and trained_bytes == 2 else 0
    memory = {
        "weights": shape.parameters * (weight if values.use_peft else trained_bytes) / shards
        + (trained * 4 if values.use_peft else 0),
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
            memory["vLLM"] = _vllm_on_cpu(shape)
        elif not values.vllm_enable_sleep_mode:
            memory["vLLM"] = 0.0  # its share depends on the GPU; `check_memory` adds it
    memory["process"] = _PROCESS if where.on_cpu else _GPU_OVERHEAD
    return memory


def _vllm_on_cpu(shape: ModelShape) -> float:
    """Bytes of vLLM's weights and KV cache in main memory."""
    return shape.parameters * 4 + int(os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1")) * 2**30


def adapter_parameters(values: Any, shape: ModelShape) -> int:
    """Parameters of a LoRA adapter on all linear layers of the decoder (an upper bound for fewer targets)."""
    attention = shape.heads * shape.head_size
    key_value = shape.key_value_heads * shape.head_size
    sizes = (
        (shape.hidden, attention), (shape.hidden, key_value), (shape.hidden, key_value), (attention, shape.hidden),
        (shape.hidden, shape.intermediate), (shape.hidden, shape.intermediate), (shape.intermediate, shape.hidden),
    )  # fmt: skip
    return int(values.lora_r) * shape.layers * sum(a + b for a, b in sizes)


def gpu_memory() -> list[float]:
    """Bytes of each visible GPU, of whatever maker, as torch has them."""
    import torch

    # With a driver that is too old, device_count still counts what the driver shows.
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [float(torch.cuda.get_device_properties(i).total_memory) for i in range(count)]


def gpus_of_driver() -> int:
    """How many NVIDIA GPUs the driver shows, whether torch can use them or not."""
    if shutil.which("nvidia-smi") is None:
        return 0
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def _cpu_memory() -> float:
    """Bytes that this machine could give to new processes."""
    import psutil

    return float(psutil.virtual_memory().available)


def check_memory(
    values: Any, memory: dict[str, float], machine: Machine, where: Placement, shape: ModelShape
) -> list[str]:
    """The memory lines of the plan.

    Raises:
        RecipeError: when what is needed for certain, without activations, is more than there is.
    """
    taking_turns = 0.0  # bytes that vLLM has while the model does not train
    if where.on_cpu:
        available, there = _cpu_memory(), "free on this machine"
        total = sum(memory.values()) * machine.local_processes
        if where.generation == "own_server":
            server = _vllm_on_cpu(shape) + 3 * _PROCESS
            memory = {**memory, "vLLM server": server}
            total += server
    else:
        available, there = min(machine.gpu_memory[: machine.local_processes], default=0.0), "a GPU"
        if "vLLM" in memory:
            memory = {**memory, "vLLM": values.vllm_gpu_memory_utilization * available}
        total = sum(memory.values())
        if where.generation == "colocate" and values.vllm_enable_sleep_mode:
            taking_turns = values.vllm_gpu_memory_utilization * available
            total = max(total, total - memory["activations"] - memory["log-probabilities"] + taking_turns)
    parts = ", ".join(f"{name} {_size(size)}" for name, size in memory.items() if size >= 0.5e6)
    if taking_turns:
        parts += f"; {_size(taking_turns)} for vLLM while activations and log-probabilities are gone"
    of_all = f"of {_size(available)} " if available else ""
    lines = [f"  memory:     about {_size(total)} {of_all}{there}", f"              {parts}"]
    certain = sum(memory[key] for key in ("weights", "gradients", "optimizer"))
    certain = certain * (machine.local_processes if where.on_cpu else 1) + memory.get("vLLM", 0.0)
    # Quantized weights, other optimizers and offloading need less than this arithmetic knows of.
    plain = values.optim in ("adamw_torch_fused", "adamw_torch") and not (values.load_in_4bit or values.load_in_8bit)
    if available and certain > available and plain and not machine.offloads:
        raise RecipeError(
            f"this run needs {_size(certain)} before a single activation, and there are {_size(available)} ({parts}): "
            f"use a smaller model, use_peft: true, more GPUs with ZeRO-3, or a lower vllm_gpu_memory_utilization"
        )
    if available and total > 0.97 * available:
        lines.append(
            "              WARNING: that is more than fits; halve per_device_train_batch_size and double "
            "gradient_accumulation_steps, or set gradient_checkpointing: true"
            + ("; or lower vllm_gpu_memory_utilization" if "vLLM" in memory else "")
        )
    sizes = [size for size, name in zip(machine.gpu_memory, machine.gpus, strict=False) if name in where.server_gpus]
    if where.generation == "own_server" and min(sizes, default=0) > 0:
        weight = _bytes_of(values.vllm_dtype or values.dtype)
        share = values.vllm_gpu_memory_utilization * min(sizes)
        room = share - shape.parameters * weight / values.vllm_tensor_parallel_size
        per_token = shape.cache_elements * weight / values.vllm_tensor_parallel_size
        lines.append(
            f"  vLLM:       room for {room / per_token / 1e3:.0f} thousand tokens of KV cache a GPU"
            if room > 0
            else f"  vLLM:       note: its weights are more than its {_size(share)} of a GPU; raise "
            f"vllm_gpu_memory_utilization or vllm_tensor_parallel_size"
        )
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


def checkpoint_bytes(values: Any, shape: ModelShape, machine: Machine) -> float:
    """Bytes of one checkpoint: weights, and the optimizer's moments (with float32 masters under DeepSpeed)."""
    weight = _bytes_of_trained(values, machine)
    if values.use_peft:
        return adapter_parameters(values, shape) * (4 + 8)
    masters = 0 if machine.zero_stage is None else 4
    return shape.parameters * (weight + (0 if values.save_only_model else 8 + masters))


def _save_count(values: Any) -> int:
    strategy = getattr(values.save_strategy, "value", values.save_strategy)
    if strategy != "steps" or values.max_steps <= 0:  # how often others save is not known beforehand
        return 0
    every = values.save_steps if values.save_steps >= 1 else max(1, round(values.save_steps * values.max_steps))
    saves = max(1, int(values.max_steps // every) + (values.max_steps % every > 0))
    # Transformers writes the new one before it removes the oldest.
    return min(saves, values.save_total_limit + 1) if values.save_total_limit else saves


def check_disk(values: Any, shape: ModelShape, machine: Machine) -> list[str]:
    """The disk lines of the plan.

    Raises:
        RecipeError: when not even one checkpoint and the final model fit on this machine.
    """
    one, count = checkpoint_bytes(values, shape, machine), _save_count(values)
    final = adapter_parameters(values, shape) * 4 if values.use_peft else shape.parameters * _bytes_of(values.dtype)
    needs = f"  disk:       {count} x {_size(one)} for checkpoints at a time, and {_size(final)} for the final model"
    if not machine.is_here:
        return [f"{needs}: {_size(one * count + final)} in all, besides what is downloaded"]
    folder = Path(values.output_dir).expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    # A resumed run has written some of them already.
    free += sum(file.stat().st_size for file in folder.glob("checkpoint-*/**/*") if file.is_file())
    if one * min(count, 1) + final > free:
        raise RecipeError(
            f"a checkpoint of {_size(one)} and the final model of {_size(final)} do not fit into the {_size(free)} "
            f"free at {values.output_dir}: make room, choose another output_dir, or set save_only_model: true"
        )
    lines = [f"{needs}; {_size(free)} free"]
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


def check_precision(values: Any) -> None:
    """Refuses half precision where there is no GPU, before GRPOConfig does. Raises RecipeError."""
    import torch

    if values.plan_for is not None or not (uses_bf16(values) or values.fp16):
        return
    if not values.use_cpu and torch.cuda.is_available():
        return
    if not values.use_cpu and (unseen := gpus_of_driver()):
        reason = (
            "this torch is a CPU build (`make install-gpu`)"
            if torch.version.cuda is None
            else f"the driver is too old for this torch's CUDA {torch.version.cuda}, or CUDA_VISIBLE_DEVICES hides them"
        )
        raise RecipeError(f"nvidia-smi shows {unseen} GPU{'s' if unseen > 1 else ''} and torch sees none: {reason}")
    left_out = " (TRL takes a bf16 that is left out for true)" if values.bf16 is None else ""
    plan_for = "" if values.use_cpu else " (--plan_for 4x80 plans for such a machine)"
    raise RecipeError(f"bf16 and fp16 need a GPU{left_out}: write bf16: false, or run this recipe on one{plan_for}")


def check_software(values: Any, machine: Machine, where: Placement) -> None:
    """Refuses what the installed packages or the machine cannot do. Raises RecipeError."""
    from importlib.util import find_spec

    if values.attn_implementation == "flash_attention_2":
        if where.on_cpu:
            raise RecipeError("attn_implementation: flash_attention_2 needs a GPU: write sdpa")
        if machine.is_here and find_spec("flash_attn") is None and find_spec("kernels") is None:
            raise RecipeError(
                "attn_implementation: flash_attention_2 is not installed: `make install-gpu`, or write sdpa"
            )
    if values.push_to_hub is False and values.hub_model_id:
        logger.warning("hub_model_id is set and push_to_hub is not: nothing will be uploaded")


def _without_effect(values: Any, machine: Machine) -> list[str]:
    """Settings that run without an error and learn nothing."""
    sharded = machine.zero_stage is not None or machine.fsdp_version is not None
    # Half a unit in the last place of bfloat16 is 4e-5 at |w| = 0.02, and AdamW's step is about the learning rate.
    if values.dtype != "bfloat16" or values.learning_rate >= 4e-5 or sharded or values.use_peft or machine.is_assumed:
        return []
    return [
        f"  WARNING:    dtype: bfloat16 without DeepSpeed keeps no float32 master weights, so most updates of "
        f"learning_rate {values.learning_rate:g} round to nothing; set dtype: float32 and bf16: true"
    ]


def _idle(machine: Machine, where: Placement) -> list[str]:
    """GPUs that would be rented for nothing."""
    idle = machine.machines * len(machine.gpus) - machine.processes - len(where.server_gpus)
    if machine.is_here or not idle:
        return []
    return [f"  note: {idle} GPU{'s' if idle > 1 else ''} would stay idle; plan_processes sets how many train"]


def describe(
    values: Any,
    machine: Machine,
    where: Placement,
    given: Mapping[str, Any],
    recipe_path: str | None,
    hub_line: str,
    ask_hub: bool,
) -> list[str]:
    """The plan, line by line.

    Args:
        values: the recipe's keys as attributes.
        machine, where: what `placement` found and planned.
        given: keys that differ from the defaults.
        recipe_path: the recipe's file, beside which measured runs are kept.
        hub_line: what `hub.describe` says.
        ask_hub: whether the Hub may be asked about the model.

    Raises:
        RecipeError: for what would fail later; one line with the change to make.
    """
    check_software(values, machine, where)
    if machine.is_here:
        check_output_dir(values.output_dir)
    batch = batch_of(values, machine.processes)
    rounds = batch.per_step / batch.per_generation
    if rounds == 1:
        generated = "generated at once"
    elif rounds < 1:
        generated = f"generated {batch.per_generation} at a time, once per {1 / rounds:g} steps"
    else:
        generated = f"generated in {rounds:g} rounds"
    lines = [
        *where.lines,
        *_idle(machine, where),
        f"  batch:      {batch.origin} = {batch.per_step} completions = {batch.per_step // batch.generations} puzzles "
        f"x {batch.generations} generations a step, {generated}",
        f"  tokens:     at most {batch.per_step * batch.tokens_per_completion} a step ({values.max_prompt_tokens} of "
        f"prompt and {values.max_completion_length} of completion each)",
    ]
    shape = find_shape(values.model_name_or_path, values.model_revision, ask_hub)
    if shape is None:
        lines.append(f"  memory:     unknown: neither cache nor Hub shows the shape of {values.model_name_or_path}")
    else:
        if shape.context and batch.tokens_per_completion > shape.context:
            raise RecipeError(
                f"max_prompt_tokens + max_completion_length is {batch.tokens_per_completion}, and the model's context "
                f"is {shape.context}: lower one of them"
            )
        lines.append(f"  model:      {values.model_name_or_path}, {shape.parameters / 1e6:,.1f} M parameters")
        memory = memory_of(values, shape, batch, machine, where)
        lines += check_memory(values, memory, machine, where, shape)
        lines += check_disk(values, shape, machine)
    differs = sorted((key, value) for key, value in masked(dict(given)).items() if not key.startswith(_NOT_SHOWN))
    shown = ", ".join(f"{key} {value}" for key, value in differs)
    return [
        *lines,
        _time_line(values, recipe_path),
        hub_line,
        *_without_effect(values, machine),
        *([f"  not the default: {shown}"] if shown else []),
    ]
