"""Held-out success while a run trains, by kind of puzzle and with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accelerate.utils import gather_object

from mini_r1.intervals import ALL, pass_at_k, rate_interval
from mini_r1.run_folder.record import pass_metric
from mini_r1.task import Task


class HeldOut:
    """Collects the verdicts of an evaluation, of all its batches.

    Args:
        task: names a puzzle's kind, its stratum.
    """

    def __init__(self, task: Task):
        self._task = task
        self._verdicts: list[tuple[str, str, bool]] = []

    def add(self, puzzles: Sequence[Any], solved: Sequence[bool]) -> None:
        """Takes the completions of a batch, one puzzle each; a puzzle may come several times."""
        for puzzle, is_solved in zip(puzzles, solved, strict=True):
            self._verdicts.append((self._task.stratum(puzzle), self._task.key(puzzle), is_solved))

    def metrics(self) -> dict[str, float]:
        """What an evaluation logs: `eval_pass@1/KIND`, `eval_pass@1_low/KIND` and `..._high/KIND`, for every kind and
        all puzzles, 0 to 1; with k completions a puzzle, the same of pass@k.

        All ranks must call it; it begins anew afterwards.
        """
        verdicts, self._verdicts = gather_object(self._verdicts), []
        kinds: dict[str, dict[str, list[bool]]] = {}
        for kind, key, is_solved in verdicts:
            for name in (ALL, kind):
                kinds.setdefault(name, {}).setdefault(key, []).append(is_solved)
        logged: dict[str, float] = {}
        for kind, puzzles in kinds.items():
            for k in sorted({1, min(map(len, puzzles.values()))}):
                rates = [pass_at_k(len(drawn), sum(drawn), k) for drawn in puzzles.values()]
                mean, low, high = rate_interval(rates, sum(map(len, puzzles.values())))
                for end, value in (("", mean), ("_low", low), ("_high", high)):
                    logged[pass_metric(kind, k, end)] = value
        return logged
