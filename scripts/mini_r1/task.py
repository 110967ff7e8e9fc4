"""What a task is: the one value that `run_r1_grpo.py` hands to all rooms, none of which knows the puzzle's columns.

To train on another verifiable task, copy the room `countdown`, let its `TASK` name your own functions, and import that
one in `run_r1_grpo.py`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from mini_r1.common import RunError

DEFAULT_PATH = "mini_r1.countdown"  # of runs whose run.json names none
SCRIPTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Verdict:
    """The result of checking one answer.

    Attributes:
        reason: why the answer was accepted or not, one of the task's reason codes.
        value: what the answer comes to (its `str` is shown), None when there was nothing to evaluate.
    """

    reason: StrEnum
    value: Any = None

    @property
    def correct(self) -> bool:
        return self.reason == "correct"


class Split(Protocol):
    """Puzzles parted into training and held-out ones: what `Task.load` returns."""

    train: list[Any]
    held_out: list[Any]
    dropped: int  # rows left out

    def fingerprint(self) -> str: ...  # the same for the same training puzzles in the same order
    def describe(self) -> dict[str, Any]: ...  # for run.json


@dataclass(frozen=True)
class Task:
    """A verifiable task.

    Attributes:
        path: the module whose `TASK` this is; stands in `run.json`.
        arguments: a dataclass of the recipe's keys about puzzles. Its method `could_train_on(split, puzzle)` says
            whether a run with these arguments, and this `split` part of its `run.json`, may have trained on a puzzle.
        puzzle: a NamedTuple type. Its fields are the data set's columns and the keywords that rewards get; its `str`
            is what people read.
        reasons: the reason codes, with `no_answer`, `several_answers` and `correct` among them.
        system_prompt, user_prompt: texts; the fields of a puzzle fill `user_prompt.format(...)`.
        check: the verdict on an answer (the text between the answer tags) to a puzzle. Never raises.
        load: the puzzles (a `Split`) that the arguments ask for; raises DataError, RecipeError. The second value says
            whether to draw progress.
        stratum: the name under which results on a puzzle are split.
        key: a puzzle's identity, alike for puzzles that ask the same.
    """

    path: str
    arguments: type[Any]
    puzzle: type[Any]
    reasons: type[StrEnum]
    system_prompt: str
    user_prompt: str
    check: Callable[[str, Any], Verdict]
    load: Callable[[Any, bool], Any]
    stratum: Callable[[Any], str]
    key: Callable[[Any], str]

    def puzzle_of(self, row: dict[str, Any]) -> Any:
        """The puzzle in a data set's row or a sample's record. Raises KeyError when a column is missing."""
        return self.puzzle(*(row[field] for field in self.puzzle._fields))


def load_task(path: str | None) -> Task:
    """The task of a run, by the path in its `run.json`: a module of this repository, or one that is imported already.

    Raises:
        RunError: when there is no such module, or no task in it.
    """
    name = str(path or DEFAULT_PATH)
    # A run folder may come from others, and importing a module runs it.
    ours = {".".join(p.relative_to(SCRIPTS).with_suffix("").parts) for p in SCRIPTS.rglob("*.py")}
    known = name in sys.modules or not ours.isdisjoint((name, f"{name}.__init__"))
    found = getattr(importlib.import_module(name), "TASK", None) if known else None
    if not isinstance(found, Task):
        raise RunError(f"run.json names the task {path!r}, and no module in {SCRIPTS} of this name has a TASK")
    return found
