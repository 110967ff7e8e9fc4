"""A vLLM engine in a process of its own, so that the memory of one checkpoint's engine is free for the next one's."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from typing import Any

from mini_r1.generation.guard import descendants_of, send_signal
from mini_r1.generation.sampling import Sampling


def outputs_in_a_process(*arguments: Any) -> Any:
    """What `_send_outputs` sends from a new process; it is ended with all of vLLM's, which do not always end alone."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_outputs, args=(sender, *arguments))
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


def _send_outputs(
    sender: Connection,
    path: str,
    revision: str | None,
    tokenizer: str | None,
    prompt_ids: list[list[int]],
    sampling: Sampling,
) -> None:
    """Sends token ids and whether they were cut off per completion, or what went wrong; the vLLM process."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    import torch
    from vllm import LLM, SamplingParams

    try:
        llm = LLM(
            model=path,
            revision=revision,
            tokenizer=tokenizer,  # None: the model's own; it knows the token that ends a turn
            seed=sampling.seed,
            load_format="safetensors",
            max_model_len=max(map(len, prompt_ids)) + sampling.max_tokens,
            generation_config="vllm",  # nothing from the checkpoint's own
            **({} if torch.cuda.is_available() else {"dtype": "float32", "enforce_eager": True}),
        )
    except (ValueError, RuntimeError, OSError) as error:  # as text: not all of vLLM's exceptions can be sent
        return sender.send(" ".join(str(error).split())[:500])
    names = ("temperature", "top_p", "top_k", "repetition_penalty", "max_tokens")
    drawing = {name: getattr(sampling, name) for name in names}
    settings = SamplingParams(n=sampling.completions, min_p=sampling.min_p or 0.0, **drawing)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompt_ids], settings, use_tqdm=True)
    sender.send([[(list(o.token_ids), o.finish_reason == "length") for o in output.outputs] for output in outputs])
