"""Bytes that a run needs, estimated from the model's shape: in memory by purpose, and on disk.

Tests hold the estimate against the peaks of real runs; it leaves out what a library may add.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_r1.common import RecipeError
from mini_r1.recipe import Recipe
from mini_r1.recipe.checks import batch_of, uses_bf16
from mini_r1.recipe.files import how_to_merge
from mini_r1.recipe.machine import Machine
from mini_r1.recipe.placement import Placement

GB = 1e9
# CUDA context, cuBLAS and NCCL workspaces, fragmentation: a rule of thumb.
GPU_OVERHEAD = 2 * GB
# Python with torch, transformers, TRL and data sets loaded: the peak of a run of the 4 MB model is 0.83 GB.
CPU_PROCESS = 0.8 * GB
# Gradients of activations and intermediate results, in layers' worth of saved activations. Fitted to the peaks of six
# CPU runs of a 27 M model with and without checkpointing, which the estimate then meets within 10 %.
WORKING_LAYERS = 3
# TRL computes log-probabilities in tiles of 4,096 tokens by 32,768 vocabulary entries.
TILE_TOKENS, TILE_WORDS = 4096, 32_768


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
        return 6 * self.hidden + 2 * (self.heads + self.key_value_heads) * self.head_size + 4 * self.intermediate

    def adapter_parameters(self, rank: int) -> int:
        """Parameters of a LoRA adapter on all linear layers of the decoder (an upper bound for fewer targets)."""
        projections = 2 * (self.heads + self.key_value_heads) * self.head_size
        return rank * self.layers * (projections + 3 * self.intermediate + 7 * self.hidden)


def read_shape(config: Mapping[str, Any]) -> ModelShape | None:
    """The shape in a config.json's contents, None for architectures that do not name these dimensions.

    Parameters are counted for a Llama-like decoder (Llama, Mistral, Qwen2, Qwen3).
    """
    needed = "num_hidden_layers hidden_size intermediate_size num_attention_heads vocab_size".split()
    if any(key not in config for key in needed):
        return None
    layers, hidden, intermediate, heads, vocabulary = (config[key] for key in needed)
    key_value = config.get("num_key_value_heads") or heads
    size = config.get("head_dim") or hidden // heads
    attention = 2 * hidden * (heads + key_value) * size
    biases = (heads + 2 * key_value) * size if config.get("model_type") == "qwen2" else 0
    embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings") else 2)
    parameters = layers * (attention + biases + 3 * hidden * intermediate + 2 * hidden) + embeddings + hidden
    context = config.get("max_position_embeddings")
    return ModelShape(parameters, layers, hidden, intermediate, heads, key_value, size, vocabulary, context)


def find_shape(name: str, revision: str | None, ask_hub: bool) -> ModelShape | None:
    """The shape of a local or Hub model; None when neither the cache nor the Hub (asked once, 5 s) shows it.

    Raises:
        RecipeError: when a local folder is no model, or the Hub has none of that name.
    """
    folder = Path(name).expanduser()
    if folder.exists() or name.startswith((".", "/", "~")):
        if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            raise RecipeError(f"model_name_or_path: {name} is a LoRA adapter: {how_to_merge(name)}")
        try:
            return read_shape(json.loads((folder / "config.json").read_text()))
        except (OSError, ValueError) as error:
            raise RecipeError(f"model_name_or_path: {name} holds no model that can be read: {error}") from error
    import httpx
    from huggingface_hub import errors, hf_hub_url, try_to_load_from_cache, utils

    try:
        path = try_to_load_from_cache(name, "config.json", revision=revision)
        if isinstance(path, str):
            return read_shape(json.loads(Path(path).read_text()))
        if not ask_hub:
            return None
        url = hf_hub_url(name, "config.json", revision=revision)
        answer = utils.get_session().get(url, headers=utils.build_hf_headers(), follow_redirects=True, timeout=5)
        utils.hf_raise_for_status(answer)
        return read_shape(answer.json())
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise RecipeError(f"model_name_or_path: the Hub shows no model {name}: check it, or `hf auth login`") from error
    except (OSError, httpx.HTTPError):
        return None


# --------------------------------------------------------------------------------------------------------------------
# Bytes
# --------------------------------------------------------------------------------------------------------------------


def bytes_of(dtype: str | None) -> int:
    """Bytes of one number."""
    return 4 if dtype in ("float32", "torch.float32") else 2


def _bytes_of_trained(recipe: Recipe, machine: Machine) -> int:
    """Bytes of one trained weight: adapters are float32, and under bf16 accelerate makes FSDP2's so, too."""
    upcast = recipe.model.use_peft or (machine.fsdp_version is not None and uses_bf16(recipe))
    return 4 if upcast else bytes_of(recipe.model.dtype)


def memory_of(recipe: Recipe, shape: ModelShape, machine: Machine, placement: Placement) -> dict[str, float]:
    """Bytes that each training process needs at its peak, by purpose, vLLM inside it included.

    Args:
        recipe: what was asked.
        shape: the model.
        machine, placement: the topology.

    Returns:
        Purpose -> bytes. On the CPU the processes share the machine's memory; on GPUs each has one.
    """
    training, adapts, batch = recipe.training, recipe.model.use_peft, batch_of(recipe, machine.processes)
    stage, fsdp, world = machine.zero_stage or 0, machine.fsdp_version is not None, machine.processes
    weight, trained_weight = bytes_of(recipe.model.dtype), _bytes_of_trained(recipe, machine)
    masters = 4 if machine.zero_stage is not None and trained_weight == 2 else 0
    adapter = shape.adapter_parameters(recipe.model.lora_r) if adapts else 0
    trained, shards = adapter or shape.parameters, world if stage == 3 or fsdp else 1
    memory = {
        "weights": shape.parameters * (weight if adapts else trained_weight) / shards + 4 * adapter,
        "gradients": trained * trained_weight / (world if stage >= 2 or fsdp else 1),
        "optimizer": trained * (8 + masters) / (world if stage >= 1 or fsdp else 1),
    }
    if training.beta and not adapts:
        memory["reference model"] = shape.parameters * weight / shards
    # A micro-batch, at its longest.
    compute = 2 if uses_bf16(recipe) or training.fp16 else weight
    tokens = training.per_device_train_batch_size * batch.tokens_per_completion
    if training.gradient_checkpointing:  # the layers' inputs, and one layer at a time computed again
        kept = shape.layers * shape.hidden + (1 + WORKING_LAYERS) * shape.saved_elements
    else:
        kept = (shape.layers + WORKING_LAYERS) * shape.saved_elements
    if placement.on_cpu:  # attention scores are written out there
        kept += 2 * shape.heads * batch.tokens_per_completion
    memory["activations"] = tokens * kept * compute
    if placement.generation == "transformers":
        # The cache is copied when it grows by a token, so that two of them exist for a moment; generating and training
        # take turns, so only what goes beyond the activations counts.
        cached = batch.per_generation // world * batch.tokens_per_completion
        memory["activations"] = max(memory["activations"], 2 * cached * shape.cache_elements * compute)
    memory["log-probabilities"] = 3 * min(tokens, TILE_TOKENS) * min(shape.vocabulary, TILE_WORDS) * 4
    memory["process"] = CPU_PROCESS if placement.on_cpu else GPU_OVERHEAD
    # vLLM's weights and KV cache in main memory.
    on_cpu = shape.parameters * 4 + int(os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1")) * 2**30
    if placement.generation == "own_server" and placement.on_cpu:
        memory["vLLM server"] = (on_cpu + 3 * CPU_PROCESS) / machine.local_processes
    if placement.generation == "colocate":
        memory["vLLM"] = on_cpu if placement.on_cpu else training.vllm_gpu_memory_utilization * machine.smallest_gpu
        if training.vllm_enable_sleep_mode:  # it takes turns with them
            turns = memory["activations"] + memory["log-probabilities"]
            memory["vLLM beyond activations"] = max(0.0, memory.pop("vLLM") - turns)
    return memory


def checkpoint_bytes(recipe: Recipe, shape: ModelShape, machine: Machine) -> float:
    """Bytes of one checkpoint: weights, and the optimizer's moments (with float32 masters under DeepSpeed)."""
    if recipe.model.use_peft:
        return shape.adapter_parameters(recipe.model.lora_r) * (4 + 8)
    masters = 0 if machine.zero_stage is None else 4
    optimizer = 0 if recipe.training.save_only_model else 8 + masters
    return shape.parameters * (_bytes_of_trained(recipe, machine) + optimizer)


def final_bytes(recipe: Recipe, shape: ModelShape) -> float:
    """Bytes of the final model."""
    if recipe.model.use_peft:
        return shape.adapter_parameters(recipe.model.lora_r) * 4
    return shape.parameters * bytes_of(recipe.model.dtype)


def in_words(size: float) -> str:
    """`6.2 GB`, `35 MB`."""
    return f"{size / GB:.1f} GB" if size >= 0.1 * GB else f"{size / 1e6:.0f} MB"
