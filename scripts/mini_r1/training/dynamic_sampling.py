"""Groups that teach, both ways opt-in: puzzles drawn by measured success, and dead groups replaced by fresh ones.

A group whose rewards are all equal has no advantage and no gradient: it is dead. `puzzle_choice: success` draws kinds
of puzzles (the task's strata) in proportion to p (1 - p), p their measured success, so that the policy practises what
it solves half of the time, and rare kinds as much as frequent ones. `refill_rounds: R` samples fresh groups in place of
dead ones, R times at most (dynamic sampling of DAPO, Yu et al. 2025, arXiv:2503.14476, section 3.2).

What is drawn is a function of the seed, the place in the training and the measured success. The success is all that a
checkpoint has to keep.

Shapes: B completions of this rank, in groups of G.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mini_r1.task import Task
from mini_r1.training.micro_batches import ALONG_PROMPT, MicroBatch

_TRIES = 200  # puzzles looked at to find one of a kind; a kind rarer than one in this many may be missed
_KEPT = 0.9  # of what was counted before, with each batch that is counted: the policy changes


class PuzzleSource:
    """Draws puzzles to train on, the same on every rank.

    Args:
        task: names a puzzle's kind, its stratum.
        rows: the training data set, one row per puzzle.
        by_success: whether kinds are drawn by p (1 - p); else every puzzle is as likely as any other.
        seed: the run's.

    Attributes:
        counts: kind -> its successes and completions; older ones count less. All that a checkpoint has to keep.
    """

    def __init__(self, task: Task, rows: Any, *, by_success: bool, seed: int):
        self.rows, self.by_success, self.seed = rows, by_success, seed
        self.counts: dict[str, list[float]] = {}
        self._stratum = lambda row: task.stratum(task.puzzle_of(row))
        if by_success:
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
            kinds = {self._stratum(rows[index]) for index in order[:_TRIES].tolist()}
            self.counts = {kind: [0.0, 0.0] for kind in sorted(kinds)}

    def draw(self, puzzles: int, *place: int) -> list[dict[str, Any]]:
        """As many rows, with replacement.

        Args:
            puzzles: how many.
            place: where in the training; other numbers draw other rows.
        """
        generator = torch.Generator().manual_seed(hash((self.seed, *place)) % 2**63)  # ints hash alike everywhere
        return [self._one(generator) for _ in range(puzzles)]

    def _one(self, generator: torch.Generator) -> dict[str, Any]:
        wanted = None
        if self.by_success:
            weights = torch.tensor([self._weight(kind) for kind in self.counts])
            wanted = list(self.counts)[int(torch.multinomial(weights, 1, generator=generator))]
        for _ in range(_TRIES):  # classifying all puzzles beforehand would take minutes where there are many
            row = self.rows[int(torch.randint(len(self.rows), (), generator=generator))]
            if wanted is None or self._stratum(row) == wanted:
                break
        return row

    def _weight(self, kind: str) -> float:
        """p (1 - p), with one success and one failure added, so that a kind not seen lately is tried again."""
        successes, completions = self.counts[kind]
        rate = (successes + 1) / (completions + 2)
        return rate * (1 - rate)

    def tally(self, rows: Sequence[dict[str, Any]], solved: Sequence[bool]) -> torch.Tensor:
        """Successes and completions of each kind, (kinds, 2), in a batch; `count` takes them summed over ranks."""
        sums = {kind: [0.0, 0.0] for kind in self.counts}
        for row, is_solved in zip(rows, solved, strict=True):
            of_kind = sums.get(self._stratum(row), [0.0, 0.0])  # one too rare to be known is not counted
            of_kind[0] += is_solved
            of_kind[1] += 1
        return torch.tensor(list(sums.values()))

    def count(self, sums: torch.Tensor, fades: bool) -> None:
        """Takes a batch into account; `fades`: what was counted before counts less from now on."""
        kept = _KEPT if fades else 1.0
        for (kind, before), (successes, completions) in zip(list(self.counts.items()), sums.tolist(), strict=True):
            self.counts[kind] = [kept * before[0] + successes, kept * before[1] + completions]


def dead_groups(batch: MicroBatch, generations: int) -> torch.Tensor:
    """Which groups have no advantage, (B / G,) bool: equal rewards give equal ones, by rounding not always 0."""
    advantages = batch["advantages"].view(-1, generations)
    return (advantages == advantages[:, :1]).all(dim=1)


def replace_groups(batch: MicroBatch, fresh: MicroBatch, generations: int) -> MicroBatch:
    """Puts fresh groups that are not dead in the place of dead ones.

    Args:
        batch, fresh: what `GRPOTrainer._generate_and_score_completions` returned, with at most B rows in `fresh`.
        generations: G.

    Returns:
        A batch of B rows, padded to the longest of both; `num_items_in_batch` stays that of `batch`.
    """
    dead = dead_groups(batch, generations).nonzero()[:, 0]
    alive = (~dead_groups(fresh, generations)).nonzero()[:, 0]
    count = min(len(dead), len(alive))
    inside = torch.arange(generations, device=dead.device)
    here, there = ((groups[:count, None] * generations + inside).flatten() for groups in (dead, alive))
    filled = dict(batch)
    for key, value in batch.items():
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            width = max(value.size(1), fresh[key].size(1)) if value.dim() > 1 else None
            filled[key] = _padded(key, value, width).clone()
            filled[key][here] = _padded(key, fresh[key], width)[there]
    return filled


def _padded(key: str, value: torch.Tensor, width: int | None) -> torch.Tensor:
    """(B, width), filled with what the masks leave out: 0, and for a ratio 1, whose logarithm the vespo loss sums."""
    if width is None:
        return value
    more = width - value.size(1)
    sides = (more, 0) if key in ALONG_PROMPT else (0, more)
    return torch.nn.functional.pad(value, sides, value=float(key == "importance_sampling_ratio"))
