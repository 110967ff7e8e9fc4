"""TRL's GRPOTrainer with what this project adds to it: micro-batches that waste nothing, a look at every scored
completion, vLLM's log-probabilities held against the trainer's, and a stop before NaN reaches the weights.

Importing this module loads torch and TRL (about ten seconds); scripts import it inside `main()`.

Shapes: B completions (P prompts x G generations), T_c completion tokens.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from transformers import ProgressCallback
from transformers.integrations import TensorBoardCallback

from mini_r1.common import GuardError
from mini_r1.generation.rollouts import decoding
from mini_r1.recipe import Recipe
from mini_r1.training import profiling
from mini_r1.training.callbacks import GuardCallback, OneLineProgress, PurgingTensorBoard
from mini_r1.training.dynamic_sampling import PuzzleSource, dead_groups, replace_groups
from mini_r1.training.exact_resume import ExactResumeTrainer
from mini_r1.training.guards import GAP_METRIC, NON_FINITE, Guards
from mini_r1.training.held_out import HeldOut
from mini_r1.training.micro_batches import MicroBatch, merge_rows, rows_with_gradient, sort_rows, trim_padding


def shard_on_cpu() -> None:
    """Lets accelerate shard on the CPU what its FSDP configuration says; it does so on GPUs only, and says nothing.

    Leans on accelerate 1.15's AcceleratorState, which takes the plugin and drops it for MULTI_CPU.
    """
    plain = AcceleratorState.__init__

    def with_fsdp(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        plain(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = with_fsdp


class RunTrainer(ExactResumeTrainer):
    """The trainer of a run.

    Args:
        recipe: what was asked: guards, and whether micro-batches are trimmed and sorted (without effect when
            `pad_to_multiple_of` asks for padding).
        on_scored: gets every scored batch and says which completions are correct; see `callbacks.ScoredCompletions`.
            Must not raise.
        kwargs: as for `GRPOTrainer`, `SavingTrainer` and `ExactResumeTrainer`.
    """

    _logs: Any  # TRL's: what `log_completions` shows

    def __init__(self, *, recipe: Recipe, on_scored: Callable[..., Sequence[bool]], **kwargs: Any):
        if recipe.training.use_cpu and AcceleratorState.__init__.__name__ != "with_fsdp":
            shard_on_cpu()
        super().__init__(**kwargs)
        is_sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if not (self.use_vllm or is_sharded):
            self.model.generate = partial(self.model.generate, **decoding(self.model))
        self._task, self._on_scored, self._held_out = recipe.task, on_scored, HeldOut(recipe.task)
        by_success = recipe.script.puzzle_choice == "success"
        self._source = PuzzleSource(self._task, self.train_dataset, by_success=by_success, seed=self.args.seed)
        self._refill_rounds, self._is_refilling = recipe.script.refill_rounds, False
        self._trim = recipe.script.trim_micro_batches and self.pad_to_multiple_of is None
        # Else the loss depends on which rows share a micro-batch, or a step's rows are not whole micro-batches.
        self._sort = (
            self._trim
            and self.loss_type != "bnpo"
            and self.top_entropy_quantile >= 1
            and not (self._entropy_bonus_enabled or self.aux_loss_enabled)
            and self.args.steps_per_generation % self.args.gradient_accumulation_steps == 0
        )
        # Without a KL term no loss type has a gradient where the advantage is 0. Liger's loss makes its own logits, and
        # the ranks of a sharded model must make the same passes.
        self._skip_zeros = self._sort and self.beta == 0 and not (self.args.use_liger_kernel or is_sharded)
        self._needed: torch.Tensor | None = None  # of the micro-batch whose loss is computed: rows with a gradient
        self._stops_on_non_finite = recipe.guards.guard_non_finite
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(OneLineProgress)
        if self.pop_callback(TensorBoardCallback) is not None:
            self.add_callback(PurgingTensorBoard(self._resume.step + 1 if self._resume else None))
        self.add_callback(GuardCallback(Guards(recipe)))
        if recipe.script.profile:
            profiling.attach(self, recipe.script.profile)

    # ---- completions -----------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> MicroBatch:
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        if self._source.by_success:
            inputs = self._drawn(len(inputs), 0)
        batch = super()._generate_and_score_completions(inputs)
        for round_ in range(1, self._refill_rounds + 1):
            dead = dead_groups(batch, self.num_generations).sum()
            most = int(self.accelerator.gather(dead.reshape(1)).max())  # all ranks sample as many
            if most == 0:
                break
            batch = replace_groups(batch, self._fresh(most, round_), self.num_generations)
        if self._refill_rounds:
            batch["num_items_in_batch"] = self.accelerator.gather(batch["completion_mask"].sum()).sum()
            left = self.accelerator.gather(dead_groups(batch, self.num_generations).float())
            self._metrics["train"]["dead_groups"].append(left.mean().item())
        return batch

    def _fresh(self, groups: int, round_: int) -> MicroBatch:
        """As many groups on every rank, scored. What is logged stays what the first round gave."""
        metrics, logs = self._metrics["train"], self._logs
        self._metrics["train"], self._logs, self._is_refilling = defaultdict(list), copy.deepcopy(logs), True
        try:
            return super()._generate_and_score_completions(self._drawn(groups * self.num_generations, round_))
        finally:
            self._metrics["train"], self._logs, self._is_refilling = metrics, logs, False

    def _drawn(self, completions: int, round_: int) -> list[dict[str, Any]]:
        """This rank's rows of as many completions on every rank, siblings side by side."""
        groups = completions * self.accelerator.num_processes // self.num_generations
        # The step as well, since a changed layout of micro-batches begins to count at 0 again.
        drawn = self._source.draw(groups, self.state.global_step, self._step, round_)
        rows = [row for row in drawn for _ in range(self.num_generations)]
        begin = completions * self.accelerator.process_index
        return rows[begin : begin + completions]

    def _calculate_rewards(
        self, inputs: list[dict], prompts: list, completions: list, completion_ids_list: Sequence[list[int]]
    ) -> torch.Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)  # (B, functions)
        if self._is_refilling and not self._source.by_success:
            return rewards
        solved = self._on_scored(
            rows=inputs,
            prompts=prompts,
            completions=completions,
            completion_ids=completion_ids_list,
            tokenizer=self.processing_class,
            step=self.state.global_step,
            split="refill" if self._is_refilling else "train" if self.model.training else "held_out",
            rank=self.accelerator.process_index,
            log_metric=self._log_metric,
            log_extra=self._log_completion_extra,
        )
        if not self.model.training:
            self._held_out.add([self._task.puzzle_of(row) for row in inputs], solved)
        elif self._source.by_success:
            sums = self._source.tally(inputs, solved).to(rewards.device)
            self._source.count(self.accelerator.reduce(sums), fades=not self._is_refilling)
        return rewards

    # ---- loss ------------------------------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self._sort and self._buffered_inputs is not before:  # freshly sampled
            per_step = self.args.gradient_accumulation_steps
            self._buffered_inputs = sort_rows(self._buffered_inputs, per_step, zeros_apart=self._skip_zeros)
            inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]
        return inputs

    def _get_per_token_logps_and_entropies(self, model: Any, ids: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
        forward, needed = super()._get_per_token_logps_and_entropies, self._needed
        if needed is None or needed.all():
            logps, *more = forward(model, ids, mask, *args, **kwargs)
        else:
            with torch.no_grad():  # loss and metrics want their values, for a third of the time
                others = forward(self.model, ids[~needed], mask[~needed], *args, **kwargs)
            ours = forward(model, ids[needed], mask[needed], *args, **kwargs)
            logps, *more = (merge_rows(needed, *pair) for pair in zip(ours, others, strict=True))
        self._logps = logps.detach()
        return logps, *more

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        inputs = trim_padding(inputs) if self._trim else inputs
        self._needed = rows_with_gradient(inputs) if self._skip_zeros and self.model.training else None
        loss = super()._compute_loss(model, inputs)
        self._needed = None
        self._log_gap(inputs)
        if self._stops_on_non_finite and self.model.training:
            finite = self.accelerator.reduce(loss.detach().isfinite().float().reshape(1), reduction="sum")
            if finite < self.accelerator.num_processes:
                raise GuardError(NON_FINITE.format(what="the loss"))
        return loss

    # ---- evaluation ------------------------------------------------------------------------------------------------

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> tuple[None, None, None]:
        """Samples and scores; TRL computes a loss besides, which says nothing in an evaluation."""
        self._prepare_inputs(inputs)
        return None, None, None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        output = super().evaluation_loop(*args, **kwargs)
        output.metrics.update(self._held_out.metrics())
        return output

    def _determine_best_metric(self, *args: Any, **kwargs: Any) -> bool:
        """Among the steps that are saved, so that the best one is there."""
        is_candidate = self.control.should_save or self.args.save_strategy == "best"
        return is_candidate and super()._determine_best_metric(*args, **kwargs)

    # ---- keeping ---------------------------------------------------------------------------------------------------

    def state_to_keep(self) -> dict[str, Any]:
        more = {"puzzle_success": dict(self._source.counts)} if self._source.by_success else {}
        return super().state_to_keep() | more

    def _restore(self) -> None:
        if self._resume is not None:
            self._source.counts.update(self._resume.manifest.get("puzzle_success") or {})
        super()._restore()

    # ---- guards ----------------------------------------------------------------------------------------------------

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # the same on every rank
        # fp16's loss scaling looks for overflows itself; DeepSpeed has made the step by now.
        if self._stops_on_non_finite and not self.args.fp16 and not self.is_deepspeed_enabled:
            whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            if not math.isfinite(float(whole)):
                raise GuardError(NON_FINITE.format(what="the gradient"))
        return norm

    def _log_gap(self, inputs: dict[str, Any]) -> None:
        """Logs by how much the log-probabilities of sampling and training differ, in nats a token.

        They agree only if vLLM samples from the weights that are trained. TRL logs this where its importance-sampling
        correction is on; here the loss's own forward pass gives it for nothing, in the first step on a generation.
        """
        sampled = inputs.get("sampling_per_token_logps")  # (B, T_c), NaN where vLLM gave none
        if sampled is None or self.vllm_importance_sampling_correction or not self.model.training:
            return
        if self._step % (self.args.steps_per_generation * self.num_iterations) >= self.args.gradient_accumulation_steps:
            return  # the policy has been updated since
        gap = (self._logps - sampled).abs()[inputs["completion_mask"].bool()].nanmean()
        self._metrics["train"][GAP_METRIC].append(self.accelerator.gather(gap).nanmean().item())
