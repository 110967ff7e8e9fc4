"""Guards: what goes wrong in GRPO runs, noticed while it happens, with the likely cause and the change to make.

A guard whose run cannot come to anything any more stops it: a checkpoint is saved and the exit code is 4. The others
warn, and warn again when the trouble comes back. Plain arithmetic on the logged scalars; nothing here needs torch.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mini_r1.recipe.parsing import require

EXIT_CODE = 4
# Steps whose times make the median, and steps whose entropy counts as what the run began with.
_TIMES, _FIRST = 50, 10
# Below this many nats a token, nothing is explored any more.
_NO_ENTROPY = 1e-3
GAP_METRIC = "sampling/sampling_logp_difference/mean"
FORMAT_METRIC = "rewards/format_reward_func/mean"


@dataclass
class GuardArguments:
    """When guards speak. 0 (for `guard_non_finite`: false) turns one off."""

    guard_non_finite: bool = field(
        default=True, metadata={"help": "Stop before a loss or gradient that is NaN or infinite reaches the weights."}
    )
    guard_zero_spread_steps: int = field(
        default=20, metadata={"help": "Stop after so many steps in which no group's rewards differed."}
    )
    guard_format_steps: int = field(
        default=100, metadata={"help": "Stop when no completion had the format in the first so many steps."}
    )
    guard_truncated_share: float = field(
        default=0.9, metadata={"help": "Warn when at least this share of completions is cut off (0..1)."}
    )
    guard_kl: float = field(
        default=1.0, metadata={"help": "Warn when the KL term exceeds so many nats a token (needs beta above 0)."}
    )
    guard_entropy_factor: float = field(
        default=3.0, metadata={"help": "Warn when entropy exceeds its first steps' mean so many times, or is gone."}
    )
    guard_step_time_factor: float = field(
        default=10.0, metadata={"help": "Warn when a step takes so many times the median of the last fifty."}
    )
    guard_logprob_gap: float = field(
        default=0.5,
        metadata={"help": "Stop when vLLM's and the trainer's log-probabilities differ by so many nats a token."},
    )
    guard_patience: int = field(
        default=5, metadata={"help": "Steps for which length, KL, entropy or gap must be off before a guard speaks."}
    )


def check_values(values: Any) -> None:
    """Refuses thresholds that mean nothing. Raises RecipeError, which names the key."""
    for key in (name for name in GuardArguments.__dataclass_fields__ if name != "guard_non_finite"):
        value = getattr(values, key)
        require(isinstance(value, (int, float)) and value >= 0, key, "0 (off) or more", value)
    require(values.guard_truncated_share <= 1, "guard_truncated_share", "a share of 1 at most",
            values.guard_truncated_share)  # fmt: skip
    require(values.guard_patience >= 1, "guard_patience", "1 or more", values.guard_patience)


class GuardError(RuntimeError):
    """A guard stops the run; the message says why and what to change.

    Args:
        message: one sentence.
        is_sound: whether the weights are still worth saving.
    """

    def __init__(self, message: str, *, is_sound: bool = True):
        super().__init__(message)
        self.is_sound = is_sound


@dataclass(frozen=True)
class Alarm:
    """What a guard has to say: a sentence, and whether the run stops."""

    message: str
    stops: bool = False
    is_sound: bool = True


NON_FINITE = (
    "{what} is not a finite number, and the weights were kept from it: lower learning_rate, set max_grad_norm, check "
    "the model's precision (dtype: float32 with bf16: true), or turn guard_non_finite off"
)


class Guards:
    """Watches the scalars that a run logs.

    Args:
        values: the recipe's keys as attributes.
    """

    def __init__(self, values: Any):
        self._values = values
        self._last_step = 0
        self._flat = self._unformatted = 0
        self._has_format = False
        self._off: dict[str, int] = {}  # guard -> steps since which it is off
        self._entropies: list[float] = []
        self._times: deque[float] = deque(maxlen=_TIMES)

    def observe(self, step: int, logs: Mapping[str, Any]) -> list[Alarm]:
        """Takes one log entry of training; those of evaluations and the closing one are passed over.

        Args:
            step: optimizer steps done; a resumed run begins in the middle.
            logs: the trainer's scalars, averaged over the steps since the last entry.

        Returns:
            What there is to say now.
        """
        if "reward" not in logs and "loss" not in logs:
            return []
        steps = max(1, step - self._last_step) if self._last_step else 1
        self._last_step = step
        numbers = {key: float(value) for key, value in logs.items() if isinstance(value, (int, float))}
        alarms = [*self._non_finite(numbers), *self._rewards(numbers, steps)]
        return [*alarms, *self._policy(numbers, steps), *self._time(numbers)]

    def _non_finite(self, numbers: Mapping[str, float]) -> list[Alarm]:
        for key, what in (("loss", "the loss"), ("grad_norm", "the gradient")):
            if key == "grad_norm" and getattr(self._values, "fp16", False):
                continue  # fp16's loss scaling overflows on purpose, and leaves such steps out
            if self._values.guard_non_finite and not math.isfinite(numbers.get(key, 0.0)):
                # Seen in the log only: with sharded optimizers the step is made before anybody can look.
                message = NON_FINITE.format(what=what).replace(", and the weights were kept from it", "")
                return [Alarm(message, stops=True, is_sound=False)]
        return []

    def _rewards(self, numbers: Mapping[str, float], steps: int) -> list[Alarm]:
        values, alarms = self._values, []
        if "reward" not in numbers:  # a step on completions of an earlier one
            return []
        self._flat = self._flat + steps if numbers.get("frac_reward_zero_std", 0.0) >= 1.0 else 0
        if values.guard_zero_spread_steps and self._flat >= values.guard_zero_spread_steps:
            solved = numbers["reward"] > 0.5 * self._best_reward()
            alarms.append(Alarm(
                f"in {self._flat} steps no group's rewards differed, so there was nothing to learn: the puzzles are "
                + ("too easy (raise number_counts or widen number_range)" if solved else
                   "too hard (lower number_counts, begin with a stronger model or a cold start)")
                + ", or num_generations and temperature are too low (guard_zero_spread_steps)",
                stops=True))  # fmt: skip
        self._has_format |= numbers.get(FORMAT_METRIC, 1.0) > 0
        self._unformatted = 0 if self._has_format else self._unformatted + steps
        if values.guard_format_steps and self._unformatted >= values.guard_format_steps:
            alarms.append(Alarm(
                f"in {self._unformatted} steps no completion had the format: look at the samples; completions may be "
                f"cut off (raise max_completion_length), or the model does not follow the prompt (begin with an "
                f"instruct model, check that its prompt ends in <think>) (guard_format_steps)",
                stops=True))  # fmt: skip
        return alarms

    def _best_reward(self) -> float:
        weights = getattr(self._values, "reward_weights", None)
        return sum(weights) if weights else 2.0

    def _policy(self, numbers: Mapping[str, float], steps: int) -> list[Alarm]:
        values = self._values
        entropy = numbers.get("entropy")
        if entropy is not None and len(self._entropies) < _FIRST:
            self._entropies.append(entropy)
        usual = statistics.fmean(self._entropies) if self._entropies else math.inf
        cut_off, kl = numbers.get("completions/clipped_ratio", 0.0), numbers.get("kl", 0.0)
        gap, factor = numbers.get(GAP_METRIC, 0.0), values.guard_entropy_factor
        length = values.max_completion_length
        found = (
            ("truncated", values.guard_truncated_share and cut_off >= values.guard_truncated_share, False,
             f"{cut_off:.0%} of the completions are cut off at max_completion_length ({length}): raise it, or look in "
             f"the samples for repetitions that never end (guard_truncated_share)"),
            ("kl", values.guard_kl and kl > values.guard_kl, False,
             f"the KL term is {kl:.3g} nats a token, the policy has left the model it began with: lower learning_rate "
             f"or raise beta (guard_kl)"),
            ("entropy", factor and entropy is not None and entropy > max(factor * usual, _NO_ENTROPY), False,
             f"entropy is {entropy or 0:.3g} nats a token, {(entropy or 0) / max(usual, 1e-9):.1f} times that of the "
             f"first steps: the policy is turning into noise; lower learning_rate or temperature "
             f"(guard_entropy_factor)"),
            ("no entropy", factor and entropy is not None and entropy < _NO_ENTROPY, False,
             "entropy is gone, all completions of a puzzle are the same: raise temperature or epsilon_high, or lower "
             "learning_rate (guard_entropy_factor)"),
            ("gap", values.guard_logprob_gap and gap > values.guard_logprob_gap, True,
             f"vLLM's and the trainer's log-probabilities differ by {gap:.3g} nats a token: vLLM samples from another "
             f"model than the one that is trained; check model_revision, dtype and vllm_dtype, and that the server is "
             f"this run's own (guard_logprob_gap)"),
        )  # fmt: skip
        alarms = []
        for name, is_off, stops, message in found:
            before = self._off.get(name, 0)
            self._off[name] = before + steps if is_off else 0
            if before < values.guard_patience <= self._off[name]:
                alarms.append(Alarm(message, stops))
        return alarms

    def _time(self, numbers: Mapping[str, float]) -> list[Alarm]:
        seconds, factor = numbers.get("step_time"), self._values.guard_step_time_factor
        if seconds is None:
            return []
        usual = statistics.median(self._times) if len(self._times) >= _FIRST else math.inf
        self._times.append(seconds)
        if factor and seconds > factor * usual:
            return [Alarm(
                f"a step took {seconds:.1f} s, usually it is {usual:.1f} s: another program on this machine, a slow "
                f"network or file system, or a server that starves (guard_step_time_factor)")]  # fmt: skip
        return []
