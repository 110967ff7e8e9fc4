"""What was asked: the recipe's keys, the rules on their values, who runs where, and the plan.

`parsing.read_recipe` makes a `Recipe` of a command line and lets `checks` refuse what cannot work. `plan.make_plan`
finds the `machine`, lets `placement` decide who trains and who generates, and says what the run needs (`memory`).
Nothing here loads a model.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from mini_r1.recipe.arguments import GuardArguments, HubArguments, ScriptArguments, VLLMArguments
from mini_r1.task import Task

if TYPE_CHECKING:
    from trl import GRPOConfig, ModelConfig


@dataclass
class Recipe:
    """Every key of a recipe, by subject.

    Attributes:
        task: what is trained on.
        model: TRL's keys about the model.
        script, vllm, hub, guards: this project's keys.
        puzzles: the task's keys (`Task.arguments`).
        training: TRL's and transformers' keys about the training.
        path: the recipe's file, None without one.
        given: the keys whose values are not the defaults.
        resolved: every key as it was asked for; `training` is changed on the way to the trainer.
    """

    task: Task
    model: ModelConfig
    script: ScriptArguments
    puzzles: Any
    vllm: VLLMArguments
    hub: HubArguments
    guards: GuardArguments
    training: GRPOConfig
    path: str | None = None
    given: dict[str, Any] = field(default_factory=dict)
    resolved: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def draft(cls, task: Task, values: Namespace | SimpleNamespace) -> Recipe:
        """A recipe of plain values, all keys in every subject: what is checked before TRL's classes are made of it."""
        every: Any = values
        return cls(task, every, every, every, every, every, every, every, resolved=vars(values))
