"""TRL's GRPOTrainer with what this project adds to it: trimmed micro-batches, an observer, one line a step, and a
comparison of vLLM's log-probabilities with the trainer's.

Importing this module loads torch and TRL (about ten seconds); scripts import it inside `main()`.

Shapes: B completions (P prompts x G generations), T_p prompt tokens, T_c completion tokens.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import ProgressCallback, TrainerCallback
from trl import GRPOTrainer

logger = logging.getLogger(__name__)

AGREEMENT_NAME = "vllm_agreement.json"
# Mean difference of log-probabilities beyond which vLLM samples from another model than the one that is trained;
# bfloat16 kernels alone make about a hundredth.
_DISAGREEMENT = 0.1

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
        ("loss", "loss {:.4f}"),
        ("kl", "KL {:.4f}"),
        ("step_time", "{:.1f} s"),
    ]
    told = [text.format(logs[key]) for key, text in parts if isinstance(logs.get(key), (int, float))]
    return " | ".join([f"{'held-out' if prefix else 'step':<8} {step:>4}/{max_steps}", *told])


class OneLineProgress(ProgressCallback):
    """The usual progress bar with one line per log entry instead of a dictionary of fifty scalars."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        line = progress_line(logs or {}, state.global_step, state.max_steps)
        if line is None:
            return
        if state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(line)
        elif state.is_local_process_zero and not state.is_world_process_zero:
            logger.info(line)  # the other machines' logs show that they are alive, too


class VLLMAgreement(TrainerCallback):
    """Compares vLLM's log-probabilities of a fixed text with the trainer's before the first step and after the last.

    They agree only if vLLM computes with the weights that are trained, so this shows whether updates arrive. Writes
    `vllm_agreement.json` into the run folder: per comparison the step, the tokens, both lists, and their differences.

    Args:
        trainer: a trainer that generates with vLLM.
        token_ids: the text.
        resumed: whether the comparisons of an earlier part of the run are kept.
    """

    def __init__(self, trainer: CountdownGRPOTrainer, token_ids: list[int], resumed: bool = False):
        self.trainer, self.token_ids = trainer, token_ids
        self.path = Path(trainer.args.output_dir, AGREEMENT_NAME)
        self.records: list[dict[str, Any]] = []
        if resumed and self.path.is_file():
            self.records = json.loads(self.path.read_text())

    def _compare(self, step: int) -> None:
        by_vllm, by_trainer = self.trainer.logprobs_of(self.token_ids)
        if not self.trainer.accelerator.is_main_process:
            return
        differences = [abs(a - b) for a, b in zip(by_vllm, by_trainer, strict=True)]
        mean, largest = sum(differences) / len(differences), max(differences)
        self.records.append({"step": step, "token_ids": self.token_ids, "vllm": by_vllm, "trainer": by_trainer,
                             "mean_difference": mean, "largest_difference": largest})  # fmt: skip
        self.path.write_text(json.dumps(self.records, indent=1) + "\n")
        logger.log(
            logging.WARNING if mean > _DISAGREEMENT else logging.INFO,
            "step %d: vLLM's and the trainer's log-probabilities of a fixed text differ by %.2g in the mean, %.2g at "
            "most%s", step, mean, largest,
            "; vLLM samples from another model than the one trained: check revision and dtype"
            if mean > _DISAGREEMENT else "",
        )  # fmt: skip

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._compare(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._compare(state.global_step)


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

    def logprobs_of(self, token_ids: list[int]) -> tuple[list[float], list[float]]:
        """Log-probabilities (temperature 1) of a text by vLLM, with the newest weights, and by the model itself.

        A collective operation: every rank calls it with the same text.

        Args:
            token_ids: T tokens, two or more.

        Returns:
            Two lists of T - 1 values, for the tokens from the second on: vLLM's, and the model's.

        Raises:
            VLLMServerError: on every rank, when the server is lost.
        """
        vllm = self.vllm_generation
        vllm.sync_weights()
        self._last_loaded_step = self.state.global_step
        if vllm.mode == "server":
            answer: list[Any] = [None]
            if self.accelerator.is_main_process:
                answer = [vllm.vllm_client.prompt_logprobs(token_ids)]
            broadcast_object_list(answer)
            by_vllm = list(answer[0])  # raises where the server is lost
        else:
            from vllm import SamplingParams

            if vllm.enable_sleep_mode:
                vllm.llm.wake_up(tags=["kv_cache"])
            sampling = SamplingParams(max_tokens=1, prompt_logprobs=0)
            (output,) = vllm.llm.generate([{"prompt_token_ids": token_ids}], sampling, use_tqdm=False)
            by_vllm = [at[token].logprob for at, token in zip(output.prompt_logprobs[1:], token_ids[1:], strict=True)]
            if vllm.enable_sleep_mode:
                vllm.llm.sleep(level=2)
                vllm._llm_weights_sleeping = True
        ids = torch.tensor([token_ids], device=self.accelerator.device)  # (1, T)
        training = self.model.training
        self.model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits  # (1, T, vocabulary)
        self.model.train(training)
        logprobs = logits[0, :-1].float().log_softmax(-1).gather(1, ids[0, 1:, None])  # (T - 1, 1)
        return by_vllm, logprobs[:, 0].tolist()

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
