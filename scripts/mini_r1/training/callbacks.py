"""What is said, watched and logged while a run trains."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import ProgressCallback, TrainerCallback
from transformers.integrations import TensorBoardCallback

from mini_r1.common import GuardError
from mini_r1.intervals import ALL
from mini_r1.responses import response, thinking
from mini_r1.run_folder.record import logged_kinds, pass_metric
from mini_r1.run_folder.samples import SampleLog, judged
from mini_r1.signs import SIGNS
from mini_r1.task import Task
from mini_r1.training.guards import Guards

logger = logging.getLogger(__name__)


def progress_line(logs: dict[str, Any], step: int, max_steps: int) -> str | None:
    """One readable line for what the trainer just logged; TensorBoard has the rest. None if the entry has no reward.

    Args:
        logs: the trainer's scalars; those of an evaluation begin with `eval_`.
        step, max_steps: optimizer steps done and to do.
    """
    prefix = "eval_" if "eval_reward" in logs else ""
    if f"{prefix}reward" not in logs:
        return None
    parts = [
        (f"{prefix}reason/correct", "solved {:4.0%}"),
        (f"{prefix}rewards/accuracy_reward_func/mean", "score {:.2f}"),  # partial credit included
        (f"{prefix}rewards/format_reward_func/mean", "format {:4.0%}"),
        (f"{prefix}completions/mean_length", "{:5.1f} tokens"),
        (f"{prefix}thinking/attempts", "{:4.2f} attempts"),
        (f"{prefix}completions/clipped_ratio", "cut off {:3.0%}"),
        ("loss", "loss {:.4f}"),
        ("kl", "KL {:.4f}"),
        ("step_time", "{:.1f} s"),
    ]
    kinds = {kind: logs[pass_metric(kind)] for kind in logged_kinds(logs)}
    shown = [text.format(logs[key]) for key, text in parts if isinstance(logs.get(key), (int, float))]
    shown[1:1] = [f"{kind} {rate:.0%}" for kind, rate in sorted(kinds.items()) if kind != ALL]
    return " | ".join([f"{'held-out' if prefix else 'step':<8} {step:>4}/{max_steps}", *shown])


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

    def __init__(self, guards: Guards):
        self.guards = guards

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for entry in state.log_history:  # of a run that resumes
            self.guards.observe(entry["step"], entry)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        # Times differ between ranks, and all must come to the same decision.
        found = [self.guards.observe(state.global_step, logs or {})]
        broadcast_object_list(found)
        for alarm in found[0]:
            if alarm.stops:
                raise GuardError(alarm.message, is_sound=alarm.is_sound)
            logger.warning("step %d: %s", state.global_step, alarm.message)


class PurgingTensorBoard(TensorBoardCallback):
    """TensorBoard's files, where a resumed run takes the place of the steps after its checkpoint.

    A disk that does not take them is reported once, and training continues; a new file is begun when it takes them.
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
                logger.warning(
                    "cannot write TensorBoard's files to %s (%s); training continues, and the same numbers are in the "
                    "checkpoints' trainer_state.json",
                    self.logging_dir,
                    error,
                )
            self.tb_writer, self._is_failing = None, True

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._try(super().on_train_begin, args, state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self._try(super().on_log, args, state, control, logs, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._try(super().on_train_end, args, state, control, **kwargs)


class ScoredCompletions:
    """Logs what the rewards do not show, and keeps samples; the trainer calls it after every scoring.

    Args:
        task: what is trained on.
        samples: keeps a share of the completions.
    """

    def __init__(self, task: Task, samples: SampleLog):
        self.task, self.samples = task, samples

    def __call__(
        self,
        *,
        rows: list[dict[str, Any]],
        prompts: list,
        completions: list,
        completion_ids: list,
        tokenizer: Any,
        step: int,
        split: str,
        rank: int,
        log_metric: Callable[[str, float], None],
        log_extra: Callable[[str, list], None],
    ) -> list[bool]:
        """Takes a batch of B completions, and returns which of them are correct.

        Args:
            rows: the data set's rows, one per completion.
            prompts, completions, completion_ids: texts, texts and token ids.
            tokenizer: the run's.
            step: optimizer steps done.
            split: `train` or `held_out`; completions of `refill` are neither logged nor kept, so that logs and samples
                show the puzzles as they were drawn.
            rank: of this process.
            log_metric: logs a scalar, averaged over all ranks.
            log_extra: adds a column to the table of completions that trackers show, one value per completion.
        """
        kept = []
        for index, (row, prompt, completion) in enumerate(zip(rows, prompts, completions, strict=True)):
            text, tokens = response(completion, prompt), len(completion_ids[index])
            places = {"step": step, "split": split, "rank": rank, "index": index}
            kept.append(judged(self.task, text, self.task.puzzle_of(row), completion_tokens=tokens, **places))
        solved = [sample.equation_reward == 1.0 for sample in kept]
        if split == "refill":
            return solved
        reasons = Counter(sample.reason for sample in kept)
        thoughts = [thinking(sample.response) for sample in kept]
        thinking_ids = tokenizer(thoughts, add_special_tokens=False)["input_ids"]
        for reason in self.task.reasons:
            log_metric(f"reason/{reason.value}", reasons[reason.value] / len(rows))
        log_metric("thinking/mean_length", sum(map(len, thinking_ids)) / len(rows))
        for sign, count in SIGNS.items():
            log_metric(f"thinking/{sign}", sum(map(count, thoughts)) / len(rows))
        log_extra("verdict", [sample.reason for sample in kept])
        log_extra("split", [split] * len(kept))
        self.samples.record(kept)
        return solved
