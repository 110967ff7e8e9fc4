"""The Countdown numbers game, the task of this project; copy this room for another one.

A *puzzle* is a list of positive integers `nums` and an integer `target`. An *equation* solves it when it uses every
given number exactly once (as a multiset), nothing but `+ - * /`, unary minus and parentheses, and its exact value is
the target. Division is exact rational division, so `7 / 2 * 4` is 14.

    >>> puzzle = TASK.puzzle(nums=[44, 19, 35], target=98)
    >>> TASK.check("44 + 19 + 35", puzzle).reason.value, TASK.check("98", puzzle).reason.value
    ('correct', 'wrong_numbers')

Standard library, numpy and tqdm only: this room knows nothing of models.
"""

from __future__ import annotations

from mini_r1.countdown.dataset import PuzzleArguments, load_puzzles
from mini_r1.countdown.puzzle import Puzzle, puzzle_key
from mini_r1.countdown.solver import stratum
from mini_r1.countdown.verifier import Reason, check_equation
from mini_r1.task import Task

SYSTEM_PROMPT = "You are a careful puzzle solver. You think first and answer afterwards."
USER_PROMPT = (
    "Combine the numbers {nums} into an equation that equals {target}. You may add (+), subtract (-), multiply (*) and "
    "divide (/), with parentheses where needed, and must use each number exactly once. Think inside <think> </think>, "
    "then give only the equation inside <answer> </answer>, for example <answer> (1 + 2) / 3 </answer>."
)


TASK = Task(
    path=__name__,
    arguments=PuzzleArguments,
    puzzle=Puzzle,
    reasons=Reason,
    system_prompt=SYSTEM_PROMPT,
    user_prompt=USER_PROMPT,
    check=lambda answer, puzzle: check_equation(answer, *puzzle),
    load=load_puzzles,
    stratum=lambda puzzle: stratum(*puzzle),
    key=lambda puzzle: puzzle_key(*puzzle),
)
