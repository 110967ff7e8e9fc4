"""TRL's GRPOTrainer with the two things this project adds to it: trimmed micro-batches and an observer.

Importing this module loads torch and TRL (about ten seconds); scripts import it inside `main()`.

Shapes: B completions (P prompts x G generations), T_p prompt tokens, T_c completion tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from trl import GRPOTrainer

# Tensors of a micro-batch that run along the completion, (B, T_c); those along the prompt are (B, T_p).
_ALONG_COMPLETION = (
    "completion_ids",
    "completion_mask",
    "tool_mask",
    "old_per_token_logps",
    "ref_per_token_logps",
    "sampling_per_token_logps",
    "importance_sampling_ratio",
)
_ALONG_PROMPT = ("prompt_ids", "prompt_mask")


def trim_padding(inputs: dict[str, Any]) -> dict[str, Any]:
    """Cuts a micro-batch to its own longest prompt and completion.

    TRL pads every micro-batch to the longest row of the whole generation batch (`make bench` shows what that costs).
    Loss and gradients do not change.

    Args:
        inputs: what `GRPOTrainer._compute_loss` takes; prompts are padded left, completions right.

    Returns:
        The same dict with shorter tensors; untouched where a multimodal batch carries more per-token tensors.
    """
    if "pixel_values" in inputs or "token_type_ids" in inputs or "mm_token_type_ids" in inputs:
        return inputs
    completion_length = inputs["completion_ids"].size(1)
    # Two columns at least: TRL takes tensors of one column for per-sequence values.
    longest_completion = max(int(inputs["completion_mask"].sum(dim=1).max()), min(2, completion_length))
    longest_prompt = max(int(inputs["prompt_mask"].sum(dim=1).max()), 1)
    trimmed = dict(inputs)
    for key in _ALONG_COMPLETION:
        # The importance-sampling ratio is (B, 1) when it is taken per sequence.
        if inputs.get(key) is not None and inputs[key].size(1) == completion_length:
            trimmed[key] = inputs[key][:, :longest_completion]
    for key in _ALONG_PROMPT:
        trimmed[key] = inputs[key][:, -longest_prompt:]
    return trimmed


Observer = Callable[..., None]


class CountdownGRPOTrainer(GRPOTrainer):
    """GRPOTrainer that trims micro-batches and shows every scored completion to an observer.

    Args:
        trim: whether to trim micro-batches; without effect when `pad_to_multiple_of` asks for padding.

    Attributes:
        observer: called once per generation batch with the keyword arguments `rows` (the data set rows, one per
            completion), `prompts`, `completions`, `completion_ids`, `tokenizer`, `step` (optimizer steps done),
            `split` (`train` or `held_out`), `rank`, and `log_metric(name, value)`, which logs a scalar averaged over
            all ranks. It must not raise.
    """

    def __init__(self, *args: Any, trim: bool = True, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.observer: Observer | None = None
        self._trim = trim and self.pad_to_multiple_of is None

    def _calculate_rewards(
        self, inputs: list[dict], prompts: list, completions: list, completion_ids_list: Sequence[list[int]]
    ) -> torch.Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)  # (B, functions)
        if self.observer is not None:
            self.observer(
                rows=inputs,
                prompts=prompts,
                completions=completions,
                completion_ids=completion_ids_list,
                tokenizer=self.processing_class,
                step=self.state.global_step,
                split="train" if self.model.training else "held_out",
                rank=self.accelerator.process_index,
                log_metric=self._log_metric,
            )
        return rewards

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        return super()._compute_loss(model, trim_padding(inputs) if self._trim else inputs)
