"""Held-out success by kind of puzzle: counted per puzzle, over all batches, and watched by a guard."""

from __future__ import annotations

import pytest

from mini_r1.countdown import TASK
from mini_r1.intervals import rate_interval

pytestmark = pytest.mark.slow
SUMS = [TASK.puzzle([1, 2, n], n + 3) for n in range(3, 13)]
PRODUCTS = [TASK.puzzle([7, 8, n], 56 + n) for n in range(20, 24)]


def evaluated(*batches: tuple[list, list[bool]]) -> dict[str, float]:
    from mini_r1.training.held_out import HeldOut

    held_out = HeldOut(TASK)
    for batch in batches:
        held_out.add(*batch)
    logged = held_out.metrics()
    assert held_out.metrics() == {}  # the next evaluation begins anew
    return logged


def test_kinds_have_their_own_rates_and_intervals():
    logged = evaluated((SUMS, [True] * 8 + [False] * 2), (PRODUCTS, [True] + [False] * 3))
    for kind, verdicts in (
        ("3 numbers, + -", [1.0] * 8 + [0.0] * 2),
        ("3 numbers, needs * /", [1.0] + [0.0] * 3),
        ("all puzzles", [1.0] * 9 + [0.0] * 5),
    ):
        found = tuple(logged[f"eval_pass@1{end}/{kind}"] for end in ("", "_low", "_high"))
        assert found == pytest.approx(rate_interval(verdicts, len(verdicts)))


def test_several_completions_of_a_puzzle_give_pass_at_k():
    logged = evaluated(([puzzle for puzzle in SUMS[:2] for _ in range(4)], [True, False, False, False] + [False] * 4))
    assert logged["eval_pass@1/3 numbers, + -"] == pytest.approx(1 / 8)
    assert logged["eval_pass@4/3 numbers, + -"] == pytest.approx(1 / 2)
