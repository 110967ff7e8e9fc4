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

MicroBatch = dict[str, Any]

_KEPT = 0.9  # of what was counted before, with each batch that is counted: the policy changes
_ALONG_PROMPT = ("prompt_ids", "prompt_mask")  # padded left; everything else is padded right


class PuzzleSource:
    """Draws puzzles to train on, the same on every rank.

    Args:
        rows: the training data set, one row per puzzle.
        kinds: the stratum of each row.
        by_success: whether kinds are drawn by p (1 - p); else every puzzle is as likely as any other.
        seed: the run's.

    Attributes:
        counts: stratum -> its successes and completions; older ones count less. All that a checkpoint has to keep.
    """

    def __init__(self, rows: Any, kinds: Sequence[str], *, by_success: bool, seed: int):
        self.rows, self.by_success, self.seed = rows, by_success, seed
        self._members: dict[str, list[int]] = {}
        for index, kind in enumerate(kinds):
            self._members.setdefault(kind, []).append(index)
        self.kinds = sorted(self._members)
        self.counts: dict[str, list[float]] = {kind: [0.0, 0.0] for kind in self.kinds}

    def draw(self, puzzles: int, *place: int) -> list[dict[str, Any]]:
        """As many rows, with replacement.

        Args:
            puzzles: how many.
            place: where in the training; other numbers draw other rows.
        """
        generator = torch.Generator().manual_seed(hash((self.seed, *place)) % 2**63)  # ints hash alike everywhere
        if self.by_success:
            weights = torch.tensor([self._weight(kind) for kind in self.kinds])
        else:
            weights = torch.tensor([float(len(self._members[kind])) for kind in self.kinds])
        chosen = []
        for kind in torch.multinomial(weights, puzzles, replacement=True, generator=generator).tolist():
            members = self._members[self.kinds[kind]]
            chosen.append(self.rows[members[int(torch.randint(len(members), (), generator=generator))]])
        return chosen

    def _weight(self, kind: str) -> float:
        """p (1 - p), with one success and one failure added, so that a kind not seen lately is tried again."""
        successes, completions = self.counts[kind]
        rate = (successes + 1) / (completions + 2)
        return rate * (1 - rate)

    def tally(self, kinds: Sequence[str], solved: torch.Tensor) -> torch.Tensor:
        """Successes and completions of each kind, (kinds, 2), in a batch; `count` takes them summed over ranks."""
        sums = torch.zeros(len(self.kinds), 2)
        places = torch.tensor([self.kinds.index(kind) for kind in kinds], dtype=torch.long)
        return sums.index_add(0, places, torch.stack([solved, torch.ones_like(solved)], dim=1))

    def count(self, sums: torch.Tensor) -> None:
        """Takes a batch into account."""
        for kind, (successes, completions) in zip(self.kinds, sums.tolist(), strict=True):
            before = self.counts[kind]
            self.counts[kind] = [_KEPT * before[0] + successes, _KEPT * before[1] + completions]


def dead_groups(batch: MicroBatch, generations: int) -> torch.Tensor:
    """Which groups have no advantage, (B / G,) bool."""
    return (batch["advantages"].abs() < 1e-6).view(-1, generations).all(dim=1)


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
            filled[key] = _padded(value, width, key in _ALONG_PROMPT).clone()
            filled[key][here] = _padded(fresh[key], width, key in _ALONG_PROMPT)[there]
    return filled


def _padded(value: torch.Tensor, width: int | None, on_the_left: bool) -> torch.Tensor:
    """(B, width), filled with 0, which the masks leave out."""
    if width is None:
        return value
    more = width - value.size(1)
    return torch.nn.functional.pad(value, (more, 0) if on_the_left else (0, more))
