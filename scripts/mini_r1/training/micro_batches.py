"""Micro-batches that waste nothing: of like length, without padding, and without a backward pass where it gives zero.

TRL shuffles what it has sampled and cuts it into micro-batches, each padded to the longest completion of them all. An
optimizer step's gradient is a sum over its rows, so which micro-batch a row is in does not matter. Loss and gradients
here are TRL's up to rounding; `make bench` shows what that saves.

Shapes: B completions of a micro-batch, T_p prompt tokens (padded left), T_c completion tokens (padded right).
"""

from __future__ import annotations

from typing import Any

import torch

# Tensors that run along the completion, (B, T_c); those along the prompt are (B, T_p).
_ALONG_COMPLETION = (
    "completion_ids",
    "completion_mask",
    "old_per_token_logps",
    "ref_per_token_logps",
    "sampling_per_token_logps",
    "importance_sampling_ratio",
)
ALONG_PROMPT = ("prompt_ids", "prompt_mask")

MicroBatch = dict[str, Any]


def trim_padding(inputs: MicroBatch) -> MicroBatch:
    """Cuts a micro-batch to its own longest prompt and completion.

    Args:
        inputs: what `GRPOTrainer._compute_loss` takes.

    Returns:
        The same dict with shorter tensors.
    """
    completion_length = inputs["completion_ids"].size(1)
    # Two columns at least: TRL takes tensors of one column for per-sequence values.
    longest_completion = max(int(inputs["completion_mask"].sum(dim=1).max()), min(2, completion_length))
    longest_prompt = max(int(inputs["prompt_mask"].sum(dim=1).max()), 1)
    trimmed = dict(inputs)
    for key in _ALONG_COMPLETION:
        # The importance-sampling ratio is (B, 1) when it is taken per sequence.
        if inputs.get(key) is not None and inputs[key].size(1) == completion_length:
            trimmed[key] = inputs[key][:, :longest_completion]
    for key in ALONG_PROMPT:
        trimmed[key] = inputs[key][:, -longest_prompt:]
    return trimmed


def sort_rows(batches: list[MicroBatch], per_step: int, zeros_apart: bool) -> list[MicroBatch]:
    """Cuts the rows of each optimizer step anew, so that a micro-batch holds rows of like length.

    Args:
        batches: micro-batches of B rows each, in the order of training; each step takes the next `per_step`.
        per_step: micro-batches of an optimizer step.
        zeros_apart: rows without advantage go into micro-batches of their own, behind the others.

    Returns:
        As many micro-batches of the same size; longest rows first, so that memory runs out at once or not at all.
    """
    sorted_batches = []
    for start in range(0, len(batches), per_step):
        step = batches[start : start + per_step]
        whole = {key: _join([batch[key] for batch in step]) for key in step[0]}
        lengths = whole["prompt_mask"].sum(dim=1) + whole["completion_mask"].sum(dim=1)
        if zeros_apart:
            lengths = torch.where(whole["advantages"] == 0, lengths - lengths.max() - 1, lengths)
        order = lengths.argsort(descending=True, stable=True)
        for rows in order.chunk(len(step)):
            sorted_batches.append({key: value[rows] if _has_rows(value) else value for key, value in whole.items()})
    return sorted_batches


def _has_rows(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0


def _join(parts: list[Any]) -> Any:
    """One tensor of the rows of all; what a micro-batch has no row of (None, a scalar) is the same in each."""
    return torch.cat(parts) if _has_rows(parts[0]) else parts[0]


def rows_with_gradient(inputs: MicroBatch) -> torch.Tensor:
    """Which rows need a backward pass, (B,) bool: those with an advantage, one at least, so that there is a loss."""
    needed = inputs["advantages"] != 0
    needed[-1] |= ~needed.any()  # the last is the shortest
    return needed


def merge_rows(needed: torch.Tensor, ours: torch.Tensor | None, others: torch.Tensor | None) -> torch.Tensor | None:
    """One (B, ...) tensor: `ours` in the rows that are needed, `others` in the rest. None when there is nothing."""
    if ours is None or others is None:
        return None
    merged = ours.new_empty(len(needed), *ours.shape[1:])
    merged[needed] = ours
    merged[~needed] = others
    return merged
