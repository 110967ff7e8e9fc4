"""TRL's GRPOTrainer with what this project adds to it: trimmed micro-batches, an observer, one line a step.

Importing this module loads torch and TRL (about ten seconds); scripts import it inside `main()`.

Shapes: B completions (P prompts x G generations), T_p prompt tokens, T_c completion tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import ProgressCallback
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


def progress_line(logs: dict[str, Any], step: int, max_steps: int) -> str | None:
    """One readable line for what the trainer just logged; TensorBoard has the rest. None when there is nothing to tell.

    Args:
        logs: the trainer's scalars; those of an evaluation begin with `eval_`.
        step, max_steps: optimizer steps done and to do.
    """
    prefix = "eval_" if "eval_reward" in logs else ""
    if f"{prefix}reward" not in logs:
        return None
    parts = [
        (f"{prefix}rewards/equation_reward_func/mean", "solved {:4.0%}"),
        (f"{prefix}rewards/format_reward_func/mean", "format {:4.0%}"),
        (f"{prefix}completions/mean_length", "{:5.1f} tokens"),
        (f"{prefix}thinking/attempts", "{:4.2f} attempts"),
        (f"{prefix}completions/clipped_ratio", "cut off {:3.0%}"),
        ("kl", "KL {:.4f}"),
        ("step_time", "{:.1f} s"),
    ]
    told = [text.format(logs[key]) for key, text in parts if isinstance(logs.get(key), (int, float))]
    return " | ".join([f"{'held-out' if prefix else 'step':<8} {step:>4}/{max_steps}", *told])


class OneLineProgress(ProgressCallback):
    """The usual progress bar with one line per log entry instead of a dictionary of fifty scalars."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        line = progress_line(logs or {}, state.global_step, state.max_steps)
        if line is not None and state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(line)


Observer = Callable[..., None]


class CountdownGRPOTrainer(GRPOTrainer):
    """GRPOTrainer that trims micro-batches, shows every scored completion to an observer, and logs a line a step.

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
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(OneLineProgress)
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
