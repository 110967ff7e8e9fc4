"""The tasks of reasoning-gym, by name: a hundred generators of questions, each with its own scorer.

A *puzzle* is one question, and where it comes from: the generator's name, its configuration and the question's number,
of which reasoning-gym makes the same question again, with all that its scorer looks at. The score is the reward, from 0
to 1; only a score of 1 counts as solved.

    >>> arguments = GymArguments(task="leg_counting", task_config={"max_animals": 3}, dataset_rows=50, dataset_seed=0)
    >>> puzzle = TASK.load(arguments, False).train[0]
    >>> print(str(puzzle).splitlines()[-1])
    Now, how many legs are there in total if you have 9 grasshoppers, 8 jellyfishs, 7 tigers?
    >>> TASK.check("82", puzzle).reason.value, TASK.check("82 or 98", puzzle).reward
    ('correct', 0.25)

Needs the package reasoning-gym, an extra of this project; nothing else here does.
"""

from __future__ import annotations

import copy
import difflib
import json
import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from mini_r1.common import LIBRARY_ERRORS, RecipeError, key, one_line, pairs
from mini_r1.task import GeneratedPuzzles, Split, Task, Verdict, split_puzzles

SYSTEM_PROMPT = "You are a careful problem solver. You think first and answer afterwards."
USER_PROMPT = "{question}\n\nThink inside <think> </think>, then give only the answer inside <answer> </answer>."

# Their scorers hand the answer to `eval`, or to sympy's parser, which does: what the model wrote runs as Python code.
RUNS_ANSWERS = frozenset(
    "binary_matrix countdown intermediate_integration n_queens polynomial_multiplication puzzle24 simple_integration "
    "spiral_matrix string_insertion".split()
)
TRUST = "MINI_R1_TRUST_SCORERS"  # of the environment, so that no run folder from elsewhere can give it
# What a scorer may compute; most take microseconds, and `1e999999999` keeps some busy for hours.
MOST_SECONDS = 5.0


class Reason(StrEnum):
    """What came of an answer; `partial` is a score between 0 and 1."""

    CORRECT = "correct"
    PARTIAL = "partial"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    SEVERAL_ANSWERS = "several_answers"


class Puzzle(NamedTuple):
    """One question, as reasoning-gym words it: the `number`-th of the generator `task` with `config`, which is JSON."""

    question: str
    task: str
    config: str
    number: int

    def __str__(self) -> str:
        return self.question


@dataclass
class GymArguments(GeneratedPuzzles):
    """Which questions. Every field is a recipe key."""

    task: str = key("", "Name of reasoning-gym's task, as leg_counting.")
    task_config: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Its configuration, as {max_animals: 4}; what is left out has its default."}
    )

    def __post_init__(self) -> None:
        self.task_config = pairs("task_config", self.task_config) or {}

    def check(self) -> None:
        """Refuses values that cannot work. Raises RecipeError, which names the key."""
        GeneratedPuzzles.check(self)  # not super(): a cold start checks a namespace of the same keys
        _generator(self.task, _config(self))


def _config(arguments: GymArguments) -> str:
    """The generator's configuration as JSON, in which equal ones are written alike. Raises RecipeError."""
    given = pairs("task_config", arguments.task_config) or {}
    for theirs, ours in (("seed", "dataset_seed"), ("size", "dataset_rows")):
        if theirs in given:
            raise RecipeError(f"task_config has no {theirs} here: write the key {ours} instead")
    # Most generators seed question n with seed + n: neighbouring seeds would give the same questions, shifted.
    own = {"seed": arguments.dataset_seed * 1_000_000 % 2**32, "size": arguments.dataset_rows}
    return json.dumps(given | own, sort_keys=True)


# --------------------------------------------------------------------------------------------------------------------
# Questions
# --------------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _generator(task: str, config: str) -> Any:
    """reasoning-gym's data set of this name. Raises RecipeError when there is none, or not with this configuration."""
    try:
        from reasoning_gym.composite import DatasetSpec
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError as error:
        change = "make install-reasoning-gym, or pip install -c configs/constraints.txt -e '.[reasoning-gym]'"
        raise RecipeError(f"task: the package reasoning-gym is missing ({one_line(error)}): {change}") from error
    if task not in DATASETS:
        near = difflib.get_close_matches(task, DATASETS, n=5, cutoff=0.5)
        names = ", ".join(near or sorted(DATASETS))
        raise RecipeError(f"task: reasoning-gym has no {task!r}; {'near it are' if near else 'it has'} {names}")
    values = json.loads(config)
    try:
        if task == "composite":
            values["datasets"] = [DatasetSpec(**one) for one in values.get("datasets", ())]
        _refuse_to_run_answers({task} | {one.name for one in values.get("datasets", ()) if task == "composite"})
        return create_dataset(task, **values)
    except LIBRARY_ERRORS as error:
        keys = ", ".join(key for key in DATASETS[task][1].__dataclass_fields__ if key not in ("seed", "size"))
        raise RecipeError(f"task_config: {task} refuses it ({one_line(error)}); its keys are {keys}") from error


def _refuse_to_run_answers(tasks: set[str]) -> None:
    if (names := sorted(tasks & RUNS_ANSWERS)) and os.environ.get(TRUST) != "1":
        raise RecipeError(
            f"task: reasoning-gym's scorer of {', '.join(names)} runs what the model wrote as Python code: choose "
            f"another task, or set the environment variable {TRUST}=1 if you trust the model"
        )


@lru_cache(maxsize=200_000)
def _entry(task: str, config: str, number: int) -> dict[str, Any]:
    """A question with its answer and what else the scorer looks at."""
    with _seeded(number):
        return _generator(task, config)[number]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Some generators draw from the global random state (list_functions) or set it (pool_matrix)."""
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def entry(puzzle: Puzzle) -> dict[str, Any]:
    """What reasoning-gym knows of a question: `question`, `answer` and `metadata`, whose keys are the task's."""
    return _entry(puzzle.task, puzzle.config, puzzle.number)


def load_puzzles(arguments: GymArguments, progress: bool = True) -> Split:
    """Makes the questions and splits them by a hash of their text.

    Args:
        arguments: the recipe's keys about questions.
        progress: whether to draw a progress bar.

    Raises:
        RecipeError: when the arguments cannot work.
        DataError: when none is left to train on.
    """
    from tqdm import tqdm

    arguments.check()
    task, config = arguments.task, _config(arguments)
    numbers = tqdm(range(arguments.dataset_rows), desc=task, unit="question", disable=None if progress else True)
    puzzles = [Puzzle(_entry(task, config, number)["question"], task, config, number) for number in numbers]
    return split_puzzles(puzzles, lambda puzzle: puzzle.question, arguments.held_out_puzzles)


def stratum(puzzle: Puzzle) -> str:
    """The task's name; of a composite, that of the part a question comes from."""
    if puzzle.task != "composite":
        return puzzle.task
    return entry(puzzle)["metadata"]["source_dataset"]


# --------------------------------------------------------------------------------------------------------------------
# Scores
# --------------------------------------------------------------------------------------------------------------------


class _TooLong(BaseException):
    """Not an Exception: some scorers catch all of these."""


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raises _TooLong after this many seconds of computing; without effect in other threads, which get no signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise _TooLong

    handler = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, handler)


def check_answer(answer: str, puzzle: Puzzle) -> Verdict:
    """The verdict of reasoning-gym's own scorer, `score_answer`, on an answer without white space around it.

    A scorer that fails on an answer, or takes too long, pays nothing for it.
    """
    generator, known = _generator(puzzle.task, puzzle.config), copy.deepcopy(entry(puzzle))
    try:
        with _limited(MOST_SECONDS):
            score = float(generator.score_answer(answer.strip(), known))
    except (Exception, _TooLong):  # noqa: BLE001  a hundred scorers, and any text
        score = 0.0
    if score >= 1:
        return Verdict(Reason.CORRECT)
    return Verdict(Reason.PARTIAL, credit=score) if score > 0 else Verdict(Reason.WRONG)


TASK = Task(
    path=__name__,
    arguments=GymArguments,
    puzzle=Puzzle,
    reasons=Reason,
    system_prompt=SYSTEM_PROMPT,
    user_prompt=USER_PROMPT,
    check=check_answer,
    load=load_puzzles,
    stratum=stratum,
    key=lambda puzzle: puzzle.question,
)
