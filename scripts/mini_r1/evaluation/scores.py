"""Scores of completions: the rewards' own verdicts, summed up by kind of puzzle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mini_r1.generation.sampling import Completion
from mini_r1.intervals import ALL, difference_interval, pass_at_k, rate_interval
from mini_r1.responses import response, thinking
from mini_r1.run_folder.samples import Sample, judged
from mini_r1.signs import SIGNS
from mini_r1.task import Task


@dataclass(frozen=True)
class Score:
    """One completion as it is kept, its rewards those of training, and whether it was cut off at the length limit."""

    sample: Sample
    truncated: bool


def score(task: Task, puzzle: Any, prompt: str, completion: Completion, index: int) -> Score:
    """Judges a completion, the `index`-th one of its puzzle."""
    text = response(completion.text, prompt)
    places = {"step": 0, "split": "evaluation", "rank": 0, "index": index}
    return Score(judged(task, text, puzzle, completion_tokens=completion.tokens, **places), completion.truncated)


def strata(task: Task, puzzles: Sequence[Any]) -> dict[str, list[int]]:
    """The indices of the puzzles of each kind, by name; all puzzles come first."""
    groups: dict[str, list[int]] = {}
    for index, puzzle in enumerate(puzzles):
        groups.setdefault(task.stratum(puzzle), []).append(index)
    return {ALL: list(range(len(puzzles))), **dict(sorted(groups.items()))}


def _rates(scored: Sequence[Sequence[Score]], k: int) -> list[float]:
    """The estimate of pass@k for each puzzle."""
    return [pass_at_k(len(scores), sum(one.sample.equation_reward == 1.0 for one in scores), k) for scores in scored]


def summarise(task: Task, scored: Sequence[Sequence[Score]], ks: Sequence[int]) -> dict[str, Any]:
    """Rates with 95 % intervals, means, and the share of each verdict, over P lists of G scores.

    Returns:
        `puzzles` and `completions` (counts); `pass@k`, `pass@k_low` and `pass@k_high` for each of `ks`, `format` and
        `truncated` (shares, 0 to 1); `mean_score` (what answers are paid, partial credit included), `mean_tokens` and
        each sign of search (means); `reasons` (reason code -> share).
    """
    scores = [one for of_puzzle in scored for one in of_puzzle]
    rates: dict[str, float] = {}
    for k in ks:
        names = (f"pass@{k}", f"pass@{k}_low", f"pass@{k}_high")
        rates |= zip(names, rate_interval(_rates(scored, k), len(scores)), strict=True)

    def mean(values: Iterable[float]) -> float:
        return sum(values) / len(scores)

    return {
        "puzzles": len(scored),
        "completions": len(scores),
        **rates,
        "format": mean(one.sample.format_reward for one in scores),
        "truncated": mean(one.truncated for one in scores),
        "mean_score": mean(one.sample.equation_reward for one in scores),
        "mean_tokens": mean(one.sample.completion_tokens for one in scores),
        **{sign: mean(count(thinking(one.sample.response)) for one in scores) for sign, count in SIGNS.items()},
        "reasons": {reason.value: mean(one.sample.reason == reason.value for one in scores) for reason in task.reasons},
    }


def compare(
    scored: Mapping[str, Sequence[Sequence[Score]]], groups: Mapping[str, Sequence[int]]
) -> list[dict[str, Any]]:
    """The change in pass@1 from the first checkpoint to each other one, on the same puzzles.

    Args:
        scored: P lists of G scores by the checkpoint's name.
        groups: what `strata` returned.

    Returns:
        A record per other checkpoint and stratum: `from`, `to`, `stratum`, and `change`, `low`, `high` (-1 to 1).
    """
    first, *others = scored
    rates = {name: _rates(of_checkpoint, 1) for name, of_checkpoint in scored.items()}
    changes = []
    for name in others:
        for group, members in groups.items():
            change, low, high = difference_interval(*([rates[which][i] for i in members] for which in (first, name)))
            changes.append({"from": first, "to": name, "stratum": group, "change": change, "low": low, "high": high})
    return changes
