"""TRL's GRPOTrainer with what this project adds to it: trimmed micro-batches, an observer, one line a step, a
comparison of vLLM's log-probabilities with the trainer's, and checkpoints from which a run goes on exactly.

Importing this module loads torch and TRL (about ten seconds); scripts import it inside `main()`.

Shapes: B completions (P prompts x G generations), T_p prompt tokens, T_c completion tokens.
"""

from __future__ import annotations

import contextlib
import json
import logging
import pickle
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from transformers import ProgressCallback, TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import rotate_checkpoints
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from mini_r1 import guards, resumption
from mini_r1.guards import GuardError, Guards
from mini_r1.recipe import RecipeError
from mini_r1.resumption import Resume

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
    """Compares vLLM's log-probabilities of a fixed text with the trainer's: before the first step, with every
    checkpoint, and after the last step.

    They agree only if vLLM computes with the weights that are trained, so this shows whether updates arrive. Writes
    `vllm_agreement.json` into the run folder: per comparison the step, the tokens, both lists, and their differences.

    Args:
        trainer: a trainer that generates with vLLM.
        token_ids: the text.
        resumed: whether the comparisons of an earlier part of the run are kept.
        largest_gap: the mean difference beyond which the run stops; 0 for none.
    """

    def __init__(
        self, trainer: CountdownGRPOTrainer, token_ids: list[int], resumed: bool = False, largest_gap: float = 0.0
    ):
        self.trainer, self.token_ids, self.largest_gap = trainer, token_ids, largest_gap
        self.path = Path(trainer.args.output_dir, AGREEMENT_NAME)
        self.records: list[dict[str, Any]] = []
        if resumed:
            with contextlib.suppress(OSError, ValueError):
                self.records = list(json.loads(self.path.read_text()))

    def _compare(self, step: int, may_stop: bool) -> None:
        by_vllm, by_trainer = self.trainer.logprobs_of(self.token_ids)
        mean = [self._record(step, by_vllm, by_trainer) if self.trainer.accelerator.is_main_process else 0.0]
        broadcast_object_list(mean)
        if may_stop and 0 < self.largest_gap < mean[0]:
            raise GuardError(
                f"vLLM's and the trainer's log-probabilities of a fixed text differ by {mean[0]:.3g} nats a token: "
                f"vLLM samples from another model than the one that is trained; check model_revision, dtype and "
                f"vllm_dtype (guard_logprob_gap)"
            )

    def _record(self, step: int, by_vllm: list[float], by_trainer: list[float]) -> float:
        differences = [abs(a - b) for a, b in zip(by_vllm, by_trainer, strict=True)]
        mean, largest = sum(differences) / len(differences), max(differences)
        self.records.append({"step": step, "token_ids": self.token_ids, "vllm": by_vllm, "trainer": by_trainer,
                             "mean_difference": mean, "largest_difference": largest})  # fmt: skip
        try:
            resumption.write_whole(self.path, json.dumps(self.records, indent=1) + "\n")
        except OSError as error:
            logger.warning("cannot write %s (%s)", self.path, error)
        logger.log(
            logging.WARNING if mean > _DISAGREEMENT else logging.INFO,
            "step %d: vLLM's and the trainer's log-probabilities of a fixed text differ by %.2g in the mean, %.2g at "
            "most%s", step, mean, largest,
            "; vLLM samples from another model than the one trained: check revision and dtype"
            if mean > _DISAGREEMENT else "",
        )  # fmt: skip
        return mean

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._compare(state.global_step, may_stop=True)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step < state.max_steps:
            self._compare(state.global_step, may_stop=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._compare(state.global_step, may_stop=False)


class GuardCallback(TrainerCallback):
    """Shows the guards what is logged, and gradients before they are applied. Raises GuardError on every rank."""

    def __init__(self, trainer: CountdownGRPOTrainer, watch: Guards, stop_on_non_finite: bool):
        self.trainer, self.watch, self.stop_on_non_finite = trainer, watch, stop_on_non_finite

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        # Times differ between ranks, and all must come to the same decision.
        found = [self.watch.observe(state.global_step, logs or {})]
        broadcast_object_list(found)
        for alarm in found[0]:
            if alarm.stops:
                raise GuardError(alarm.message, is_sound=alarm.is_sound)
            logger.warning("step %d: %s", state.global_step, alarm.message)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.stop_on_non_finite or args.fp16:  # fp16's loss scaling looks for overflows itself
            return
        if self.trainer.is_deepspeed_enabled:  # it keeps gradients to itself
            return
        device = self.trainer.accelerator.device
        good = torch.ones((), dtype=torch.bool, device=device)
        for parameter in self.trainer.model.parameters():
            if parameter.grad is not None:  # with FSDP2 a part of it
                good &= getattr(parameter.grad, "_local_tensor", parameter.grad).isfinite().all().to(device)
        self.trainer.stop_unless(good, "the gradient")


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
        super().__init__(*args, **kwargs)
        self.observer: Observer | None = None
        self.sample_sizes: Callable[[], dict[str, int]] = dict
        self.after_save: Callable[[Path], None] | None = None
        self.write_card: Callable[[], None] | None = None
        self.stop_on_non_finite = False
        self._resume = resume
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
        if not self.accelerator.is_main_process:
            return
        if failure is None:
            try:
                resumption.write_manifest(folder, state)
            except OSError as error:
                failure = str(error)
        if failure is not None:
            shutil.rmtree(folder, ignore_errors=True)
            kept = None
            with contextlib.suppress(OSError):
                kept = max((n for n, path in resumption.checkpoints_in(folder.parent).items()
                            if not resumption.fault_in(path)), default=None)  # fmt: skip
            logger.error(
                "step %d: no checkpoint could be written (%s); training goes on, and %s; make room or change the "
                "permissions at %s, the next save tries again",
                self.state.global_step, " ".join(failure.split()),
                f"checkpoint-{kept} stays the one to go on from" if kept else "there is none to go on from yet",
                folder.parent,
            )  # fmt: skip
            return
        try:
            limit = self.args.save_total_limit
            rotate_checkpoints(self.args.output_dir, limit, self.state.best_model_checkpoint, True)
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
        self.add_callback(GuardCallback(self, Guards(values), values.guard_non_finite))

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
        loss = super()._compute_loss(model, trim_padding(inputs) if self._trim else inputs)
        if self.stop_on_non_finite and self.model.training:
            self.stop_unless(loss.detach().isfinite(), "the loss")
        return loss

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
