"""Will a run learn? A verdict on a few sampled groups, in words, with the change to make.

The thresholds were fixed before any run was predicted with them, and its predictions have not been compared with runs
yet. GRPO learns from groups that hold right and wrong answers; everything else is about getting some.
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
        solved: the verdicts of each group: P lists of G.
        format: share of completions in the format, 0 to 1.
        cut_off: share that ended at the length limit, 0 to 1.
        entropy: of the policy, nats a token.
        groups_per_step: puzzles of an optimizer step.
    """

    solved: Sequence[Sequence[bool]]
    format: float
    cut_off: float
    entropy: float
    groups_per_step: int

    @property
    def success(self) -> float:
        """pass@1."""
        return sum(map(sum, self.solved)) / sum(map(len, self.solved))

    @property
    def teaching(self) -> float:
        """The share of groups that hold right and wrong answers, 0 to 1."""
        return sum(0 < sum(group) < len(group) for group in self.solved) / len(self.solved)

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
    generations = len(facts.solved[0])
    if facts.cut_off >= MOST_CUT_OFF:
        why = f"{facts.cut_off:.0%} of the completions are cut off before they answer"
        return Forecast("not", why, ("raise max_completion_length", "choose a model that reasons more briefly"))
    if facts.format < LEAST_FORMAT:
        why = f"{facts.format:.1%} of the completions have the format, too few to be found by chance"
        return Forecast("not", why, ("begin with an instruct model or a cold start", "look at the prompt and samples"))
    if facts.success >= TOO_EASY:
        why = f"{facts.success:.0%} are solved already"
        return Forecast("not", why, ("harder puzzles: raise number_counts or widen number_range",))
    per_step = facts.teaching_per_step
    why = f"{per_step:.1f} of {facts.groups_per_step} groups a step hold right and wrong answers"
    if per_step >= ENOUGH_GROUPS:
        return Forecast("learns", why)
    changes = [f"raise num_generations ({2 * generations})", "more puzzles a step: gradient_accumulation_steps"]
    if facts.entropy < NO_ENTROPY:
        changes.insert(0, "raise temperature: siblings are copies of each other")
    elif facts.success < 1 / (2 * generations):
        changes = ["a cold start or a stronger model first", "easier puzzles: lower number_counts", *changes]
    return Forecast("slowly" if per_step >= LEAST_GROUPS else "not", why, tuple(changes))
