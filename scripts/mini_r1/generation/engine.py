"""A vLLM engine in a process of its own, so that the memory of one checkpoint's engine is free for the next one's."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from mini_r1.generation.guard import descendants_of, send_signal

if TYPE_CHECKING:
    from mini_r1.generation.sampling import Sampling


def outputs_in_a_process(*arguments: Any) -> Any:
    """Calls `vllm_outputs` in a new process and ends that with all of vLLM's, which do not always end alone."""
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
        send_signal([*descendants_of(process.pid or 0), process.pid or 0], signal.SIGKILL)
        process.join()


def _send_vllm_outputs(sender: Connection, *arguments: Any) -> None:
    sender.send(vllm_outputs(*arguments))


def vllm_outputs(
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
