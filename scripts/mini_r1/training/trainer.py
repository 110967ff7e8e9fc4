"""TRL's GRPOTrainer with what this project adds to it: trimmed micro-batches, an observer, one line a step, vLLM's
log-probabilities held against the trainer's, and checkpoints from which a run resumes exactly.

Importing this module loads torch and TRL (about ten seconds); scripts import it inside `main()`.

Shapes: B completions (P prompts x G generations), T_p prompt tokens, T_c completion tokens.
"""

from __future__ import annotations

import contextlib
import logging
import math
import pickle
import random
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from safetensors import SafetensorError
from transformers import ProgressCallback, TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import rotate_checkpoints
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from mini_r1.common import RecipeError
from mini_r1.run_folder import resume as resumption
from mini_r1.run_folder.resume import Resume
from mini_r1.training import guards
from mini_r1.training.guards import GuardError, Guards

logger = logging.getLogger(__name__)

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


class GuardCallback(TrainerCallback):
    """Shows the guards what is logged. Raises GuardError on every rank."""

    def __init__(self, watch: Guards):
        self.watch = watch

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        # Times differ between ranks, and all must come to the same decision.
        found = [self.watch.observe(state.global_step, logs or {})]
        broadcast_object_list(found)
        for alarm in found[0]:
            if alarm.stops:
                raise GuardError(alarm.message, is_sound=alarm.is_sound)
            logger.warning("step %d: %s", state.global_step, alarm.message)


class StepBoundary(TrainerCallback):
    """Remembers how things stood when a step began, so that a step that fails can be undone before a checkpoint.

    Logs are written with every checkpoint besides, so that no entry's average straddles one.
    """

    def __init__(self, trainer: CountdownGRPOTrainer):
        self.trainer = trainer
        self.random_state: dict[str, Any] = {}
        self.state: dict[str, Any] = {}
        self.buffer: Any = None

    def _remember(self) -> None:
        self.random_state = _random_state()
        self.state = self.trainer.state_to_keep()
        self.buffer = self.trainer._buffered_inputs  # a generation makes a new list

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._remember()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._remember()  # an evaluation may follow
        if control.should_save:
            control.should_log = True


def _random_state() -> dict[str, Any]:
    # This process's GPU only: asking the others would take memory on each of them.
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state(), "cuda": cuda}


def _restore_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])


class PurgingTensorBoard(TensorBoardCallback):
    """TensorBoard's files, where a resumed run takes the place of the steps after its checkpoint.

    A disk that does not take them is reported once, and training goes on; a new file is begun when it takes them again.
    """

    _SummaryWriter: Any
    logging_dir: Any

    def __init__(self, first_step: int | None):
        super().__init__()
        self._first_step = first_step
        self._is_failing = False

    def _init_summary_writer(self, args: Any) -> None:
        self.tb_writer = self._SummaryWriter(log_dir=self.logging_dir, purge_step=self._first_step)
        self._first_step = None  # a second file of the same start takes the place of nothing

    def _try(self, event: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        try:
            event(*args, **kwargs)
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:
                logger.warning("cannot write TensorBoard's files to %s (%s); training goes on, and the same numbers "
                               "are in the checkpoints' trainer_state.json", self.logging_dir, error)  # fmt: skip
            self.tb_writer, self._is_failing = None, True

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._try(super().on_train_begin, args, state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self._try(super().on_log, args, state, control, logs, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._try(super().on_train_end, args, state, control, **kwargs)


class EpochSampler(RepeatSampler):
    """TRL's sampler, whose order in epoch n is the same whether the epochs before it were run or skipped.

    Args:
        epoch: tells how many epochs have passed when a pass begins.
        others: as for `RepeatSampler`.
    """

    def __init__(self, epoch: Callable[[], int], *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed)
            for _ in range(self._epoch()):
                torch.randperm(self.num_samples, generator=self.generator)
        return super().__iter__()


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


Observer = Callable[..., None]


class CountdownGRPOTrainer(GRPOTrainer):
    """GRPOTrainer that trims micro-batches, shows every scored completion to an observer, logs a line a step, and
    writes checkpoints that a run can go on from exactly.

    Args:
        trim: whether to trim micro-batches; without effect when `pad_to_multiple_of` asks for padding.
        resume: the checkpoint that `train` will be given, None for a run from the start.

    Attributes:
        observer: called once per generation batch with the keyword arguments `rows` (the data set rows, one per
            completion), `prompts`, `completions`, `completion_ids`, `tokenizer`, `step` (optimizer steps done),
            `split` (`train` or `held_out`), `rank`, and `log_metric(name, value)`, which logs a scalar averaged over
            all ranks. It must not raise.
        sample_sizes: tells the sizes of the sample files, which go into checkpoints.
        after_save: called on the main process with every complete checkpoint's folder. It must not raise or wait.
        write_card: writes the model card.
        stop_on_non_finite: whether a loss that is NaN or infinite stops the run before it reaches the weights.
    """

    def __init__(self, *args: Any, trim: bool = True, resume: Resume | None = None, **kwargs: Any):
        if kwargs["args"].use_cpu and AcceleratorState.__init__.__name__ != "with_fsdp":
            shard_on_cpu()
        super().__init__(*args, **kwargs)
        self.observer: Observer | None = None
        self.sample_sizes: Callable[[], dict[str, int]] = dict
        self.after_save: Callable[[Path], None] | None = None
        self.write_card: Callable[[], None] | None = None
        self.stop_on_non_finite = False
        self._resume = resume
        self._closing: threading.Thread | None = None
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(OneLineProgress)
        if self.pop_callback(TensorBoardCallback) is not None:
            self.add_callback(PurgingTensorBoard(None if resume is None else resume.step + 1))
        self._boundary = StepBoundary(self)
        self.add_callback(self._boundary)
        self._trim = trim and self.pad_to_multiple_of is None

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        plain = super()._get_train_sampler(dataset)
        # state.epoch is a whole number between two epochs and goes up by less than one within them.
        return EpochSampler(
            lambda: int((self.state.epoch or 0.0) + 1e-9), plain.data_source, plain.mini_repeat_count,
            plain.batch_size, plain.repeat_count, plain.shuffle, plain.seed,
        )  # fmt: skip

    def state_to_keep(self) -> dict[str, Any]:
        """What neither transformers nor TRL saves: goes into the manifest, the buffer into files of its own."""
        return {
            "step": self.state.global_step,
            "processes": self.accelerator.num_processes,
            "micro_steps": self._step,
            "buffered": self._is_mid_generation(),
            "layout": self._layout(),
            "tokens": self.state.num_input_tokens_seen,
            "loss_sum": self._total_loss_scalar if hasattr(self, "_total_loss_scalar") else 0.0,
            "samples": self.sample_sizes(),
        }

    def _is_mid_generation(self) -> bool:
        """Whether completions that were sampled before are still to be trained on."""
        return self._step % (self.args.steps_per_generation * self.num_iterations) != 0

    def _layout(self) -> list[int]:
        """How a step's completions are cut into micro-batches, in which `_step` counts."""
        args = self.args
        return [args.per_device_train_batch_size, args.gradient_accumulation_steps, args.steps_per_generation,
                self.num_iterations, self.accelerator.num_processes]  # fmt: skip

    def _buffer_path(self, folder: str | Path) -> Path:
        return Path(folder, f"generation_buffer_{self.accelerator.process_index}.pt")

    def _save_checkpoint(self, model: Any, trial: Any, state: dict[str, Any] | None = None) -> None:
        """Writes a checkpoint, or says why it cannot, removes what was begun, and lets the training go on."""
        self._wait_for_checkpoint()
        folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        state = state or self.state_to_keep()
        problem = [self._room_for(folder) if self.accelerator.is_main_process else None]
        broadcast_object_list(problem)  # all ranks save, or none does: saving is a collective operation
        failure: str | None = problem[0]
        if failure is None:
            # An old checkpoint goes when the new one is whole, which transformers does not wait for.
            limit, self.args.save_total_limit = self.args.save_total_limit, None
            try:
                super()._save_checkpoint(model, trial)
                if self._is_mid_generation():
                    folder.mkdir(exist_ok=True)
                    torch.save(self._buffered_inputs, self._buffer_path(folder))
            except (OSError, SafetensorError, RuntimeError) as error:
                if not is_about_the_disk(error) or self.is_deepspeed_enabled or self.is_fsdp_enabled:
                    raise  # with sharded weights the other ranks wait within the saving
                failure = str(error)
            finally:
                self.args.save_total_limit = limit
            failures = gather_object([failure])  # every rank has written its part
            failure = next((text for text in failures if text), None)
        if self.accelerator.is_main_process:
            # Tens of GB take minutes to reach a slow disk; no rank waits for them.
            arguments = (folder, state, failure, self.state.best_model_checkpoint)
            self._closing = threading.Thread(target=self._close_checkpoint, args=arguments, name=resumption.THREAD)
            self._closing.start()

    def _wait_for_checkpoint(self) -> None:
        """Waits until the last checkpoint is on the disk and complete, or undone."""
        if self._closing is not None:
            self._closing.join()

    def _close_checkpoint(self, folder: Path, state: dict[str, Any], failure: str | None, best: str | None) -> None:
        """Declares a checkpoint complete and removes the oldest, or undoes it; in a thread beside the training."""
        if failure is None:
            try:
                resumption.write_manifest(folder, state)
            except OSError as error:
                failure = str(error)
        if failure is not None:
            shutil.rmtree(folder, ignore_errors=True)
            kept = None
            with contextlib.suppress(OSError):
                checkpoints = resumption.checkpoints_in(folder.parent).items()
                kept = max((n for n, path in checkpoints if not resumption.fault_in(path)), default=None)
            logger.error(
                "step %d: no checkpoint could be written (%s); training goes on, and %s; make room or change the "
                "permissions at %s, the next save tries again",
                state["step"],
                " ".join(failure.split()),
                f"checkpoint-{kept} stays the one to go on from" if kept else "there is none to go on from yet",
                folder.parent,
            )
            return
        try:
            rotate_checkpoints(self.args.output_dir, self.args.save_total_limit, best, True)
        except OSError as error:
            logger.warning("old checkpoints could not be removed (%s)", error)
        if self.after_save is not None:
            self.after_save(folder)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes the project's model card instead of TRL's, which TRL asks for with every checkpoint."""
        is_checkpoint = bool(args or kwargs)  # which needs a card only where it is uploaded
        if self.write_card is None or not self.accelerator.is_main_process or (is_checkpoint and not self.after_save):
            return
        try:
            self.write_card()
        except (OSError, RecipeError) as error:
            logger.warning("the model card could not be written (%s)", error)

    def _room_for(self, folder: Path) -> str | None:
        """Why a checkpoint would not fit, going by the size of the last one; None when nothing speaks against it."""
        try:
            previous = [path for path in resumption.checkpoints_in(folder.parent).values() if path != folder]
            if not previous:
                return None
            size = sum(file.stat().st_size for file in previous[-1].rglob("*") if file.is_file())
            free = shutil.disk_usage(folder.parent).free
        except OSError as error:
            return str(error)
        return f"it takes some {size / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free" if size > free else None

    def watch(self, values: Any) -> None:
        """Sets the guards; `values` holds the recipe's keys as attributes."""
        self.stop_on_non_finite = values.guard_non_finite
        self.add_callback(GuardCallback(Guards(values)))

    def save_interrupted(self) -> str:
        """Saves a checkpoint of the last finished step when a run cannot go on; all ranks must call it.

        What the unfinished step drew from the random states and logged as samples does not count, so that the run goes
        on as if that step had never begun.

        Returns:
            What was done, as a clause for the closing message.
        """
        step = self.state.global_step
        if step == 0 or not self._boundary.state:
            return "nothing new was trained yet"
        folder = Path(self.args.output_dir, f"checkpoint-{step}")
        self._wait_for_checkpoint()
        there = [resumption.fault_in(folder) is None]
        broadcast_object_list(there)
        if not there[0]:
            state = {**self._boundary.state, "step": step}
            self._step, self.state.num_input_tokens_seen = state["micro_steps"], state["tokens"]
            self._buffered_inputs = self._boundary.buffer
            self.control.should_save = False
            now = _random_state()
            _restore_random_state(self._boundary.random_state)
            self._save_checkpoint(self.model, None, state)
            _restore_random_state(now)
            self._wait_for_checkpoint()
            there = [resumption.fault_in(folder) is None]
            broadcast_object_list(there)
        if not there[0]:
            return f"step {step} could not be saved; the same command goes on from the newest checkpoint"
        return f"step {step} is saved in {folder}, and the same command goes on from there"

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._restore()
        if self.state.global_step >= self.state.max_steps:  # killed between the last step and the end
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self._restore()  # where there was no step to make
        self._wait_for_checkpoint()
        return super()._finalize_training(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _readable(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _readable(checkpoint):
            super()._load_rng_state(checkpoint)

    def _restore(self) -> None:
        """Takes up what `state_to_keep` kept, and the recipe's learning rate where it was changed."""
        resume, self._resume = self._resume, None
        if resume is None:  # done before, or a run from the start
            return
        self._total_loss_scalar = float(resume.manifest.get("loss_sum", 0.0))
        self.state.compute_steps(self.args, self.state.max_steps)  # how often to log, save and evaluate: the recipe's
        # Only where in a generation the count stands matters; between two it may begin anew for another layout.
        same_layout = resume.manifest.get("layout") == self._layout()
        self._step = int(resume.manifest.get("micro_steps", 0)) if same_layout else 0
        if self._is_mid_generation():
            path = self._buffer_path(resume.path)
            if all(gather_object([path.is_file()])):  # either all have it, or all sample again
                with _readable(resume.path):
                    self._buffered_inputs = torch.load(path, map_location=self.accelerator.device, weights_only=True)
            else:
                logger.warning("%s is missing: completions of unfinished generations are sampled again", path)
        base_rates = getattr(self.lr_scheduler, "base_lrs", None)
        if base_rates and not self.is_deepspeed_enabled and base_rates[0] != self.args.learning_rate:
            factor = self.args.learning_rate / base_rates[0]
            self.lr_scheduler.base_lrs = [rate * factor for rate in base_rates]
            for group in self.optimizer.param_groups:
                group["lr"] *= factor
                group["initial_lr"] = group.get("initial_lr", group["lr"]) * factor
            self.lr_scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]  # what is logged

    # ---- generation and loss ---------------------------------------------------------------------------------------

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

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        logps, *others = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._logps = logps.detach()
        return logps, *others

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        inputs = trim_padding(inputs) if self._trim else inputs
        loss = super()._compute_loss(model, inputs)
        self._log_gap(inputs)
        if self.stop_on_non_finite and self.model.training:
            self.stop_unless(loss.detach().isfinite(), "the loss")
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # the same on every rank
        # fp16's loss scaling looks for overflows itself; DeepSpeed has made the step by now.
        if self.stop_on_non_finite and not self.args.fp16 and not self.is_deepspeed_enabled:
            whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            if not math.isfinite(float(whole)):
                raise GuardError(guards.NON_FINITE.format(what="the gradient"))
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
            return  # the policy has moved on since
        gap = (self._logps - sampled).abs()[inputs["completion_mask"].bool()].nanmean()
        self._metrics["train"][guards.GAP_METRIC].append(self.accelerator.gather(gap).nanmean().item())

    def stop_unless(self, is_finite: torch.Tensor, what: str) -> None:
        """Raises GuardError on every rank when it is not true on one of them."""
        if not bool(
            self.accelerator.reduce(is_finite.float().reshape(1), reduction="sum") >= self.accelerator.num_processes
        ):
            raise GuardError(guards.NON_FINITE.format(what=what))


@contextlib.contextmanager
def _readable(checkpoint: str | Path | None) -> Iterator[None]:
    """Turns a checkpoint that torch refuses to read, or cannot, into one line. Raises RecipeError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(
            f"{checkpoint} cannot be read, so it was changed or damaged after it was written ({reason}): move it away, "
            f"and the same command goes on from the one before"
        ) from error


def is_about_the_disk(error: BaseException) -> bool:
    """Whether an error of a save comes from the file system; torch and safetensors have errors of their own for it."""
    if isinstance(error, OSError):
        return True
    text = str(error).lower()
    return isinstance(error, SafetensorError) or any(
        sign in text for sign in ("pytorchstreamwriter", "inline_container", "no space left", "iostream error")
    )
