"""Will a run learn? A verdict on a few sampled groups, in words, with the change to make.

The thresholds were fixed before any run was predicted with them; README.md compares the predictions with runs. GRPO
learns from groups that hold better and worse answers; everything else is about getting some.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEAST_FORMAT = 0.02  # below it the format is too rare to be found
MOST_CUT_OFF = 0.5  # from here on, most completions never get to an answer
ENOUGH_GROUPS = 3.0  # a step with this many groups that teach moves the policy
LEAST_GROUPS = 1.0  # with less than this, most steps move nothing
TOO_EASY = 0.9  # from this success on there is little left to learn
NO_ENTROPY = 0.005  # nats a token: siblings are copies


@dataclass(frozen=True)
class Facts:
    """What was sampled.

    Attributes:
        rewards: of each group's answers, 0 to 1: P lists of G. 1 is solved.
        format: share of completions in the format, 0 to 1.
        cut_off: share that ended at the length limit, 0 to 1.
        entropy: of the policy, nats a token.
        groups_per_step: puzzles of an optimizer step.
    """

    rewards: Sequence[Sequence[float]]
    format: float
    cut_off: float
    entropy: float
    groups_per_step: int

    @property
    def success(self) -> float:
        """pass@1."""
        every = [reward for group in self.rewards for reward in group]
        return every.count(1.0) / len(every)

    @property
    def teaching(self) -> float:
        """The share of groups whose rewards differ, 0 to 1."""
        return sum(min(group) < max(group) for group in self.rewards) / len(self.rewards)

    @property
    def teaching_per_step(self) -> float:
        """Groups that teach in an optimizer step."""
        return self.teaching * self.groups_per_step


@dataclass(frozen=True)
class Forecast:
    """`learns`, `slowly` or `not`, why, and the changes to make, the best first."""

    word: str
    why: str
    changes: tuple[str, ...] = ()


def forecast(facts: Facts) -> Forecast:
    """What a run on such groups will do. The first rule that applies decides."""
    generations = len(facts.rewards[0])
    if facts.cut_off >= MOST_CUT_OFF:
        why = f"{facts.cut_off:.0%} of the completions are cut off before they answer"
        return Forecast("not", why, ("raise max_completion_length", "choose a model that reasons more briefly"))
    if facts.format < LEAST_FORMAT:
        why = f"{facts.format:.1%} of the completions have the format, too few to be found by chance"
        return Forecast("not", why, ("begin with an instruct model or a cold start", "look at the prompt and samples"))
    if facts.success >= TOO_EASY:
        why = f"{facts.success:.0%} are solved already"
        return Forecast("not", why, ("harder puzzles: of Countdown, more number_counts or a wider number_range",))
    per_step = facts.teaching_per_step
    why = f"{per_step:.1f} of {facts.groups_per_step} groups a step hold better and worse answers"
    if per_step >= ENOUGH_GROUPS:
        return Forecast("learns", why)
    changes = [f"raise num_generations ({2 * generations})", "more puzzles a step: gradient_accumulation_steps"]
    if facts.entropy < NO_ENTROPY:
        changes.insert(0, "raise temperature: siblings are copies of each other")
    elif facts.success < 1 / (2 * generations):
        changes = [
            "a cold start or a stronger model first",
            "easier puzzles: of Countdown, lower number_counts",
            *changes,
        ]
    return Forecast("slowly" if per_step >= LEAST_GROUPS else "not", why, tuple(changes))
