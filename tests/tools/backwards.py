"""A task of its own in one file: write a word backwards.

>>> TASK.check("olleh", Puzzle("hello")).reason.value, TASK.check("hello", Puzzle("hello")).reason.value
('correct', 'wrong')
"""

from __future__ import annotations

import random
from enum import StrEnum
from typing import Any, NamedTuple

from mini_r1.task import GeneratedPuzzles, Split, Task, Verdict, split_puzzles


class Puzzle(NamedTuple):
    """Its fields are the data set's columns, and what `{...}` in the prompt stands for."""

    word: str


class Reason(StrEnum):
    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    SEVERAL_ANSWERS = "several_answers"


def check(answer: str, puzzle: Puzzle) -> Verdict:
    """The verdict on what stands between the answer tags."""
    answer = answer.strip()
    return Verdict(Reason.CORRECT if answer == puzzle.word[::-1] else Reason.WRONG, answer)


def load(arguments: GeneratedPuzzles, progress: bool) -> Split:
    """The puzzles that a recipe asks for, parted into training and held-out ones."""
    draw = random.Random(arguments.dataset_seed)
    words = ["".join(draw.choices("abcdefghij", k=draw.choice([3, 4]))) for _ in range(arguments.dataset_rows)]
    return split_puzzles(map(Puzzle, words), key, arguments.held_out_puzzles)


def key(puzzle: Any) -> str:
    """Puzzles of one key are the same puzzle: all are trained on, or none."""
    return puzzle.word


TASK = Task(
    path=__name__,
    arguments=GeneratedPuzzles,
    puzzle=Puzzle,
    reasons=Reason,
    system_prompt="You are a careful reader. You think first and answer afterwards.",
    user_prompt="Write {word} backwards. Think inside <think> </think>, then answer inside <answer> </answer>.",
    check=check,
    load=load,
    stratum=lambda puzzle: f"{len(puzzle.word)} letters",
    key=key,
)
