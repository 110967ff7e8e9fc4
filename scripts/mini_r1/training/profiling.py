"""`profile: N`: where the time of N optimizer steps goes, as a page, and what one of them runs, as a trace.

After one step of warm-up, N steps are timed. The last of them is recorded by torch's profiler as well: one only, as
each token that transformers samples is hundreds of events. The page's table leaves it out, because recording slows it.
On GPUs the device is synchronized where a phase begins or ends. Neither touches a random state or a number of the run.

While it is on, these methods are replaced on the trainer by ones that call them (TRL 1.16); otherwise nothing is:

| name | phase |
|---|---|
| `_prepare_inputs` | idle, but for what follows |
| `_generate_single_turn` | rollout, but for `vllm_generation.sync_weights` |
| `_get_per_token_logps_and_entropies` | log-probabilities, when called before the loss |
| `_calculate_rewards` | reward |
| `_compute_loss` | update, as all that a step does outside of these; counts tokens |
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, record_function
from transformers import TrainerCallback
from transformers.trainer_pt_utils import get_model_param_count

from mini_r1.common import say
from mini_r1.recipe.machine import plural
from mini_r1.run_folder import PROFILE
from mini_r1.training import phases
from mini_r1.training.micro_batches import rows_with_gradient
from mini_r1.training.phases import IDLE, LOGPS, REWARD, ROLLOUT, SYNC, UPDATE, PhaseClock, Step

logger = logging.getLogger(__name__)

# Operators on the page.
_MOST_EXPENSIVE = 5
# Events of a trace whose operators are added up; torch takes 72 seconds for a million on one core.
_MOST_EVENTS = 1_000_000


def attach(trainer: Any, steps: int) -> None:
    """Makes a trainer profile this many steps of its next `train`, into `profile/` in its output_dir."""
    trainer.add_callback(Profiling(trainer, steps))


class Profiling(TrainerCallback):
    """Times and records steps; writes the page and the trace behind the last of them.

    Args:
        trainer: a `RunTrainer`; its methods are wrapped.
        steps: how many to profile.
    """

    def __init__(self, trainer: Any, steps: int):
        self.trainer, self.steps = trainer, steps
        self.on_gpu = trainer.accelerator.device.type == "cuda"
        self.clock = PhaseClock(torch.cuda.synchronize if self.on_gpu else lambda: None, record_function)
        self.begun = 0
        self.recorded: list[Step] = []
        self.counts: Counter[str] = Counter()
        self.trace: Any = None
        # Here, because FSDP1 shards them later.
        self.parameters = get_model_param_count(trainer.model)
        self.trained = get_model_param_count(trainer.model, trainable_only=True)
        self._wrap(trainer, "_prepare_inputs", IDLE, within=UPDATE)
        self._wrap(trainer, "_generate_single_turn", ROLLOUT, within=IDLE, count=self._count_rollout)
        self._wrap(trainer, "_get_per_token_logps_and_entropies", LOGPS, within=IDLE, count=self._count_scored)
        self._wrap(trainer, "_calculate_rewards", REWARD, within=IDLE)
        self._wrap(trainer, "_compute_loss", UPDATE, within=UPDATE, count=self._count_update)
        if trainer.use_vllm:
            self._wrap(trainer.vllm_generation, "sync_weights", SYNC, within=ROLLOUT)

    def _wrap(
        self, owner: Any, name: str, phase: str, *, within: str, count: Callable[..., None] | None = None
    ) -> None:
        method = getattr(owner, name)

        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.clock.phase(phase, within) as is_open:
                result = method(*args, **kwargs)
                if is_open and count is not None:
                    count(result, *args)
                return result

        setattr(owner, name, timed)

    # ---- counting --------------------------------------------------------------------------------------------------

    def _count_rollout(self, result: tuple[list[list[int]], Any], prompt_ids: list[list[int]], *args: Any) -> None:
        self.counts["completions"] += len(result[0])
        self.counts["tokens"] += sum(map(len, result[0]))
        self.counts["prompt tokens"] += sum(map(len, prompt_ids))

    def _count_scored(self, result: Any, model: Any, ids: Any, mask: torch.Tensor, *args: Any) -> None:
        self.counts["scored tokens"] += int(mask.sum())

    def _count_update(self, result: Any, model: Any, inputs: dict[str, Any]) -> None:
        lengths = inputs["prompt_mask"].sum(dim=1) + inputs["completion_mask"].sum(dim=1)  # (B,)
        needed = rows_with_gradient(inputs) if self.trainer._skip_zeros else None
        backward = int(lengths.sum() if needed is None else lengths[needed].sum())
        self.counts["backward tokens"] += backward
        self.counts["forward tokens"] += int(lengths.sum()) - backward

    def _step(self, seconds: dict[str, float]) -> Step:
        """The step that ends, with the FLOPs that phases' page explains."""
        counts, self.counts = self.counts, Counter()
        forward, full = 2 * self.parameters, 4 * self.parameters + 2 * self.trained
        update = full * counts["backward tokens"] + forward * counts["forward tokens"]
        elsewhere = self.trainer.use_vllm and self.trainer.vllm_mode == "server"
        sampled = 0 if elsewhere else counts["prompt tokens"] + counts["tokens"]
        others = forward * (sampled + counts["scored tokens"])
        return Step(seconds, counts["completions"], counts["tokens"], float(update), float(update + others))

    # ---- events ----------------------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        there = max(0, state.max_steps - state.global_step - 1)
        if there < self.steps:
            asked = f"profile: {self.steps} steps asked for after one of warm-up"
            logger.warning("%s, and %d are to come: raise max_steps, or choose another output_dir", asked, there)
        self.steps = min(self.steps, there)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun += 1
        if not 2 <= self.begun <= self.steps + 1:
            return
        if self.begun == self.steps + 1:
            gpu = [ProfilerActivity.CUDA] if self.on_gpu else []
            self.trace = torch.profiler.profile(activities=[ProfilerActivity.CPU, *gpu])
            self.trace.start()
        self.clock.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.clock.current is None:
            return
        self.recorded.append(self._step(self.clock.stop()))
        if self.trace is not None:
            self.trace.stop()
            self._finish(Path(args.output_dir, PROFILE), state.global_step)
            self.trace = None

    def _finish(self, folder: Path, step: int) -> None:
        """Writes what was recorded; a disk that does not take it is reported, and training continues."""
        memory = float(torch.cuda.max_memory_allocated()) if self.on_gpu else None
        gathered = gather_object([(self.recorded, memory)])
        path = folder / f"trace-rank-{self.trainer.accelerator.process_index}.json.gz"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.trace.export_chrome_trace(str(path))
            if not self.trainer.accelerator.is_main_process:
                return
            threads = plural(torch.get_num_threads(), "thread")
            device = torch.cuda.get_device_name() if self.on_gpu else f"CPU, {threads} each"
            is_packed = getattr(self.trainer.model, "is_quantized", False)  # parameters cannot be counted
            profile = phases.Profile(
                ranks=[steps for steps, _ in gathered],
                last=step,
                device=device,
                peak=None if is_packed or not self.on_gpu else phases.peak_flops(device),
                memory=max(memory for _, memory in gathered) if self.on_gpu else None,
                operators=most_expensive(self.trace, self.on_gpu),
                trace=f"{path.name} ({path.stat().st_size / 1e6:.1f} MB)",
            )
            page = folder / "breakdown.md"
            page.write_text(phases.page(profile))
        except OSError as error:
            logger.warning("the profile cannot be written to %s (%s); training continues", folder, error)
            return
        say(*(f"  profile:    {line}" for line in (*phases.summary(profile), f"{page}, {profile.trace}")))


def most_expensive(trace: Any, on_gpu: bool) -> list[tuple[str, float, float, int]]:
    """The operators with the longest self time in a trace, on the GPU where there is one.

    Args:
        trace: a `torch.profiler.profile` that has stopped.
        on_gpu: whether kernels count, and not the time on the CPU that starts them.

    Returns:
        Per operator its name, self time in seconds, its share of all operators' self time, calls. Nothing for a trace
        that would take minutes.
    """
    if len(trace.profiler.kineto_results.events()) > _MOST_EVENTS:
        return []
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"  # microseconds
    # Kernels have rows of their own beside the operators that start them, and so have ranges such as our phases.
    rows = [row for row in trace.key_averages() if row.device_type == DeviceType.CPU and not row.is_user_annotation]
    total = sum(getattr(row, key) for row in rows) or 1
    longest = sorted(rows, key=lambda row: getattr(row, key), reverse=True)[:_MOST_EXPENSIVE]
    return [(row.key, getattr(row, key) / 1e6, getattr(row, key) / total, row.count) for row in longest]
