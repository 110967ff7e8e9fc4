"""Exact resume: a run that was killed and started again ends as one left in peace, weights and logs bit by bit.

transformers restores weights, optimizer, scheduler and random states. What is missing for GRPO is kept here, in a
checkpoint's manifest and in `generation_buffer_RANK.pt`. That takes these private names, of transformers 5.17:

| name | why |
|---|---|
| `Trainer._run_epoch`, `_finalize_training` | where the kept state is put back: everything else is restored by then |
| `Trainer._total_loss_scalar` | the sum of losses, from which the closing log's mean is taken |
| `Trainer._load_optimizer_and_scheduler`, `_load_rng_state` | damaged files are reported in one line |
| `lr_scheduler.base_lrs`, `_last_lr` (torch) | a learning rate that was changed on the way |

and of TRL 1.16:

| name | why |
|---|---|
| `GRPOTrainer._step` | where in a generation the training is |
| `GRPOTrainer._buffered_inputs` | completions that still wait for their step |
| `GRPOTrainer._get_train_sampler`, `RepeatSampler` | an epoch's order does not depend on earlier ones being run |
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from transformers import TrainerCallback
from trl.trainer.utils import RepeatSampler

from mini_r1.common import GuardError, RunError, ServerError
from mini_r1.run_folder.manifest import fault_in
from mini_r1.run_folder.resume import Resume
from mini_r1.training.saving import SavingTrainer

logger = logging.getLogger(__name__)


class EpochSampler(RepeatSampler):
    """TRL's sampler, whose order in epoch n is the same whether the epochs before it were run or skipped.

    Args:
        epoch: how many epochs have passed when a pass begins.
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


class StepBoundary(TrainerCallback):
    """Remembers how things stood when a step began, so that a step that fails can be undone before a checkpoint.

    Logs are written with every checkpoint besides, so that no entry's average straddles one.
    """

    def __init__(self, trainer: ExactResumeTrainer):
        self.trainer = trainer
        self.random_state: dict[str, Any] = {}
        self.state: dict[str, Any] = {}
        self.buffer: Any = None

    def _remember(self) -> None:
        self.random_state = random_state()
        self.state = self.trainer.state_to_keep()
        self.buffer = self.trainer._buffered_inputs  # a generation makes a new list

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._remember()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._remember()  # an evaluation may follow
        if control.should_save:
            control.should_log = True


def random_state() -> dict[str, Any]:
    """The state of all generators of this process; of its own GPU only, others would take memory on each."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state(), "cuda": cuda}


def restore_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])


class ExactResumeTrainer(SavingTrainer):
    """A trainer that resumes exactly, and that saves the last finished step when it cannot continue.

    Args:
        resume: where `train` resumes, None at step 0.
        sample_sizes: the sizes of the sample files, which go into checkpoints.

    Attributes:
        start_step: the step that `train` begins at.
    """

    def __init__(self, *args: Any, resume: Resume | None, sample_sizes: Callable[[], dict[str, int]], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._resume, self._sample_sizes = resume, sample_sizes
        self.start_step = resume.step if resume is not None else 0
        self._boundary = StepBoundary(self)
        self.add_callback(self._boundary)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As ever, from `resume`. A lost server or a guard leaves a checkpoint of the last step.

        Raises:
            ServerError, GuardError: on every rank; the message says what was saved.
            RunError: for a checkpoint that cannot be read.
        """
        start = str(self._resume.path) if self._resume else None
        try:
            return super().train(*args, resume_from_checkpoint=start, **kwargs)
        except ServerError as error:
            raise ServerError(f"{error}; {self._save_interrupted()}") from error
        except GuardError as error:
            saved = self._save_interrupted() if error.is_sound else "no checkpoint was saved: the weights contain NaN"
            raise GuardError(f"step {self.state.global_step}: {error}; {saved}") from error

    # ---- keeping ---------------------------------------------------------------------------------------------------

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
            "samples": self._sample_sizes(),
        }

    def save_more(self, folder: Path) -> None:
        if self._is_mid_generation():
            folder.mkdir(exist_ok=True)
            torch.save(self._buffered_inputs, self._buffer_path(folder))

    def _is_mid_generation(self) -> bool:
        """Whether completions that were sampled before are still to be trained on."""
        return self._step % (self.args.steps_per_generation * self.num_iterations) != 0

    def _layout(self) -> list[int]:
        """How a step's completions are cut into micro-batches, in which `_step` counts."""
        args, processes = self.args, self.accelerator.num_processes
        cut = (args.per_device_train_batch_size, args.gradient_accumulation_steps, args.steps_per_generation)
        return [*cut, self.num_iterations, processes]

    def _buffer_path(self, folder: str | Path) -> Path:
        return Path(folder, f"generation_buffer_{self.accelerator.process_index}.pt")

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        plain = super()._get_train_sampler(dataset)
        kept = (plain.data_source, plain.mini_repeat_count, plain.batch_size, plain.repeat_count, plain.shuffle)
        # state.epoch is a whole number between two epochs and grows by less than one within them.
        return EpochSampler(lambda: int((self.state.epoch or 0.0) + 1e-9), *kept, plain.seed)

    # ---- resuming --------------------------------------------------------------------------------------------------

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._restore()
        if self.state.global_step >= self.state.max_steps:  # killed between the last step and the end
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self._restore()  # where there was no step to make
        self.wait_for_checkpoint()
        self.args.save_total_limit = None  # with a limit of 1 transformers would leave the best checkpoint only
        return super()._finalize_training(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _readable(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _readable(checkpoint):
            super()._load_rng_state(checkpoint)

    def _restore(self) -> None:
        """Puts back what `state_to_keep` kept, and the recipe's learning rate where it was changed."""
        resume, self._resume = self._resume, None
        if resume is None:  # done before, or a run from the start
            return
        self._total_loss_scalar = float(resume.manifest.get("loss_sum", 0.0))
        self.state.compute_steps(self.args, self.state.max_steps)  # how often to log, save and evaluate: the recipe's
        # Only `_step` modulo the generation's length matters to TRL, so it restarts at 0 when the layout changed.
        same_layout = resume.manifest.get("layout") == self._layout()
        self._step = int(resume.manifest.get("micro_steps", 0)) if same_layout else 0
        if self._is_mid_generation():
            path = self._buffer_path(resume.path)
            if all(gather_object([path.is_file()])):  # either all have it, or all sample again
                with _readable(resume.path):
                    self._buffered_inputs = torch.load(path, map_location=self.accelerator.device, weights_only=True)
            else:
                logger.warning("%s is missing: completions of unfinished generations are sampled again", path)
        self._rescale_learning_rate()

    def _rescale_learning_rate(self) -> None:
        base_rates = getattr(self.lr_scheduler, "base_lrs", None)
        if not base_rates or self.is_deepspeed_enabled or base_rates[0] == self.args.learning_rate:
            return
        factor = self.args.learning_rate / base_rates[0]
        self.lr_scheduler.base_lrs = [rate * factor for rate in base_rates]
        for group in self.optimizer.param_groups:
            group["lr"] *= factor
            group["initial_lr"] = group.get("initial_lr", group["lr"]) * factor
        self.lr_scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]  # what is logged

    # ---- saving when the run cannot continue -----------------------------------------------------------------------

    def _save_interrupted(self) -> str:
        """Saves a checkpoint of the last finished step; all ranks must call it.

        What the unfinished step drew from the random states and logged as samples does not count, so that the run
        resumes as if that step had never begun.

        Returns:
            What was done, as a clause for the closing message.
        """
        step = self.state.global_step
        if step == 0 or not self._boundary.state:
            return "nothing new was trained yet"
        folder = Path(self.args.output_dir, f"checkpoint-{step}")
        if not self._is_saved(folder):
            state = {**self._boundary.state, "step": step}
            self._step, self.state.num_input_tokens_seen = state["micro_steps"], state["tokens"]
            self._buffered_inputs = self._boundary.buffer
            self.control.should_save = False
            now = random_state()
            restore_random_state(self._boundary.random_state)
            self._save_checkpoint(self.model, None, state)
            restore_random_state(now)
            if not self._is_saved(folder):
                return f"step {step} could not be saved; the same command resumes from the newest checkpoint"
        return f"step {step} is saved in {folder}, and the same command resumes from there"

    def _is_saved(self, folder: Path) -> bool:
        self.wait_for_checkpoint()
        there = [fault_in(folder) is None]
        broadcast_object_list(there)
        return there[0]


@contextlib.contextmanager
def _readable(checkpoint: str | Path | None) -> Iterator[None]:
    """Turns a checkpoint that torch refuses to read, or cannot, into one line. Raises RunError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(
            f"{checkpoint} cannot be read, so it was changed or damaged after it was written ({reason}): move it away, "
            f"and the same command resumes from the one before"
        ) from error
