"""Guards: what goes wrong in GRPO runs, noticed while it happens, with the likely cause and the change to make.

A guard stops a run that can no longer learn, after saving a checkpoint. The others warn, and warn again when the
trouble comes back. Plain arithmetic on the logged scalars; nothing here needs torch.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from mini_r1.recipe import Recipe
from mini_r1.run_folder.record import pass_metric

# Steps whose times make the median, and steps whose entropy counts as what the run began with.
_TIMES, _FIRST = 50, 10
# Below this many nats a token, nothing is explored any more.
_NO_ENTROPY = 1e-3
GAP_METRIC = "sampling/sampling_logp_difference/mean"
FORMAT_METRIC = "rewards/format_reward_func/mean"

NON_FINITE = (
    "{what} is not a finite number, and the weights were kept from it: lower learning_rate, set max_grad_norm, check "
    "the model's precision (dtype: float32 with bf16: true), or turn guard_non_finite off"
)
_MESSAGES = {
    "flat": "in {steps} steps no group's rewards differed, so there was nothing to learn: the puzzles are {too}, or "
    "num_generations and temperature are too low (guard_zero_spread_steps)",
    "unformatted": "in {steps} steps no completion had the format: look at the samples; completions may be cut off "
    "(raise max_completion_length), or the model does not follow the prompt (begin with an instruct model, check that "
    "its prompt ends in <think>) (guard_format_steps)",
    "truncated": "{value:.0%} of the completions are cut off at max_completion_length ({length}): raise it, or look in "
    "the samples for repetitions that never end (guard_truncated_share)",
    "kl": "the KL term is {value:.3g} nats a token, the policy has left the model it began with: lower learning_rate "
    "or raise beta (guard_kl)",
    "noise": "entropy is {value:.3g} nats a token, {ratio:.1f} times that of the first steps: the policy is turning "
    "into noise; lower learning_rate or temperature (guard_entropy_factor)",
    "no entropy": "entropy is gone, all completions of a puzzle are the same: raise temperature or epsilon_high, or "
    "lower learning_rate (guard_entropy_factor)",
    "gap": "vLLM's and the trainer's log-probabilities differ by {value:.3g} nats a token: vLLM samples from another "
    "model than the one that is trained; check model_revision, dtype and vllm_dtype, and that the server is this run's "
    "own (guard_logprob_gap)",
    "slow": "a step took {value:.1f} s, usually it is {usual:.1f} s: another program on this machine, a slow network "
    "or file system, or a server that starves (guard_step_time_factor)",
}
_FALLEN = (
    "held-out success fell to {now:.1%} after {best:.1%} at step {step}, more than chance explains: the policy "
    "unlearns, or games what it is trained on; lower learning_rate, or keep an earlier checkpoint (guard_held_out)"
)
_TOO_EASY = "too easy (raise number_counts or widen number_range)"
_TOO_HARD = "too hard (lower number_counts, begin with a stronger model or a cold start)"
_STOPS = ("flat", "unformatted", "gap")


@dataclass(frozen=True)
class Alarm:
    """What a guard has to say: a sentence, whether the run stops, and whether the weights are worth saving."""

    message: str
    stops: bool = False
    is_sound: bool = True


class Guards:
    """Watches the scalars that a run logs.

    Args:
        recipe: what was asked.
    """

    def __init__(self, recipe: Recipe):
        self._recipe = recipe
        self._last_step = 0
        self._has_format = False
        self._off: dict[str, int] = {}  # guard -> steps since which it is off
        self._entropies: list[float] = []
        self._times: deque[float] = deque(maxlen=_TIMES)
        self._best = (0, 0.0, 0.0)  # of the evaluations: its step, success, and the lower end of its interval

    def observe(self, step: int, logs: Mapping[str, Any]) -> list[Alarm]:
        """Takes one log entry; the closing one is passed over.

        Args:
            step: optimizer steps done; a resumed run begins in the middle.
            logs: the trainer's scalars, averaged over the steps since the last entry.

        Returns:
            What there is to say now.
        """
        if pass_metric() in logs:
            return self._evaluation(step, *(logs[pass_metric(end=end)] for end in ("", "_low", "_high")))
        if "reward" not in logs and "loss" not in logs:
            return []
        steps = max(1, step - self._last_step) if self._last_step else 1
        self._last_step = step
        numbers = {key: float(value) for key, value in logs.items() if isinstance(value, (int, float))}
        alarms = self._non_finite(numbers)
        for name, is_off, patience, facts in (*self._rewards(numbers), *self._policy(numbers)):
            before = self._off.get(name, 0)
            self._off[name] = before + steps if is_off else 0
            if before < patience <= self._off[name]:
                message = _MESSAGES[name].format(steps=self._off[name], **facts)
                alarms.append(Alarm(message, stops=name in _STOPS))
        return alarms

    def _evaluation(self, step: int, success: float, low: float, high: float) -> list[Alarm]:
        """What the best evaluation and this one, with its interval, say about each other."""
        if success > self._best[1]:
            self._best = (step, success, low)
        if not self._recipe.guards.guard_held_out or high >= self._best[2]:
            return []
        return [Alarm(_FALLEN.format(now=success, best=self._best[1], step=self._best[0]))]

    def _non_finite(self, numbers: Mapping[str, float]) -> list[Alarm]:
        watched = {"loss": "the loss", "grad_norm": "the gradient"}
        if self._recipe.training.fp16:  # its loss scaling overflows on purpose, and leaves such steps out
            del watched["grad_norm"]
        bad = [what for key, what in watched.items() if not math.isfinite(numbers.get(key, 0.0))]
        if not bad or not self._recipe.guards.guard_non_finite:
            return []
        # Seen in the log only: with sharded optimizers the step is made before anybody can look.
        message = NON_FINITE.format(what=bad[0]).replace(", and the weights were kept from it", "")
        return [Alarm(message, stops=True, is_sound=False)]

    def _rewards(self, numbers: Mapping[str, float]) -> list[tuple[str, bool, int, dict[str, Any]]]:
        """Per guard on rewards: its name, whether it is off, for how many steps it may be, and what it says."""
        if "reward" not in numbers:  # a step on completions of an earlier one
            return []
        guards, weights = self._recipe.guards, self._recipe.training.reward_weights
        self._has_format |= numbers.get(FORMAT_METRIC, 1.0) > 0
        is_solved = numbers["reward"] > 0.5 * (sum(weights) if weights else 2.0)
        is_flat = numbers.get("dead_groups", numbers.get("frac_reward_zero_std", 0.0)) >= 1.0  # after refills
        too = {"too": _TOO_EASY if is_solved else _TOO_HARD}
        return [
            ("flat", is_flat, guards.guard_zero_spread_steps, too),
            ("unformatted", not self._has_format, guards.guard_format_steps, {}),
        ]

    def _policy(self, numbers: Mapping[str, float]) -> list[tuple[str, bool, int, dict[str, Any]]]:
        """The same for guards on the policy and on time; a threshold of 0 turns one off."""
        guards, patience = self._recipe.guards, self._recipe.guards.guard_patience
        entropy, seconds = numbers.get("entropy", 1.0), numbers.get("step_time", 0.0)
        if "entropy" in numbers and len(self._entropies) < _FIRST:
            self._entropies.append(entropy)
        first = fmean(self._entropies) if self._entropies else math.inf
        usual = median(self._times) if len(self._times) >= _FIRST else math.inf
        if "step_time" in numbers:
            self._times.append(seconds)
        cut_off, kl, gap = (numbers.get(key, 0.0) for key in ("completions/clipped_ratio", "kl", GAP_METRIC))
        most, factor, slow = guards.guard_truncated_share, guards.guard_entropy_factor, guards.guard_step_time_factor
        length = self._recipe.training.max_completion_length
        is_noise = bool(factor) and entropy > max(factor * first, _NO_ENTROPY)
        return [
            ("truncated", 0 < most <= cut_off, patience, {"value": cut_off, "length": length}),
            ("kl", 0 < guards.guard_kl < kl, patience, {"value": kl}),
            ("noise", is_noise, patience, {"value": entropy, "ratio": entropy / max(first, 1e-9)}),
            ("no entropy", bool(factor) and entropy < _NO_ENTROPY, patience, {}),
            ("gap", 0 < guards.guard_logprob_gap < gap, patience, {"value": gap}),
            ("slow", bool(slow) and seconds > slow * usual, 1, {"value": seconds, "usual": usual}),
        ]
