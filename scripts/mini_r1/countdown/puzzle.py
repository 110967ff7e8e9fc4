"""What a puzzle is, which puzzles are the same, and the canonical split into training and held-out ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from mini_r1 import task

# The largest number of operands that the solver and the generator accept, as in the television game.
MAX_NUMBERS = 6

# The longest number that a person may type.
MAX_DIGITS = 6

# Numbers and targets of a data set are smaller: Arrow tables and tensors hold 64 bits.
LIMIT = 10**18


class Puzzle(NamedTuple):
    """One puzzle: `nums`, the given numbers in the order shown to the player, and the `target` to reach."""

    nums: Sequence[int]
    target: int

    def __str__(self) -> str:
        return f"numbers {list(self.nums)} · target {self.target}"


def puzzle_key(nums: Iterable[int], target: int) -> str:
    """The identity of a puzzle: sorted numbers and target, so that permutations are the same puzzle.

    >>> puzzle_key([44, 19, 35], 98)
    '19,35,44=98'
    """
    return f"{','.join(str(n) for n in sorted(nums))}={target}"


def parse_puzzle(text: str) -> Puzzle:
    """A puzzle that a person typed, in any notation in which the target comes last, or behind `=` or an arrow.

    Args:
        text: 1 to MAX_NUMBERS positive integers and the target, of at most MAX_DIGITS digits each.

    Raises:
        ValueError: with a sentence for the player.

    >>> parse_puzzle("[44, 19, 35] -> 98") == parse_puzzle("44,19,35 98") == parse_puzzle("44 19 35 = 98")
    True
    """
    decoration = re.compile(r"\b(?:nums|numbers|target)\b|[\[\](){},;:\"']", re.IGNORECASE)
    sides = [decoration.sub(" ", side).split() for side in re.split(r"=>|->|→|=", text)]
    words = [word for side in sides for word in side]
    if not words or not all(re.fullmatch(r"[+-]?[0-9]+", word) for word in words):
        raise ValueError("that is no puzzle")
    if len(sides) > 2 or (len(sides) == 2 and len(sides[1]) != 1):
        raise ValueError("one target, please, after the numbers")
    if not 2 <= len(words) <= MAX_NUMBERS + 1:
        raise ValueError(f"a puzzle has 1 to {MAX_NUMBERS} numbers and a target, not {len(words) - 1} numbers")
    if any(len(word.lstrip("+-")) > MAX_DIGITS for word in words):
        raise ValueError(f"{MAX_DIGITS} digits are enough for a number")
    *nums, target = map(int, words)
    if min(nums) < 1:
        raise ValueError("the numbers must be positive")
    return Puzzle(tuple(nums), target)


def parse_row(row: Any) -> Puzzle:
    """The puzzle in a row of data.

    Raises:
        ValueError: with the reason, when the row is not a puzzle.

    >>> verl = {"prompt": "...", "reward_model": {"ground_truth": {"numbers": [44, 19, 35], "target": 98}}}
    >>> parse_row(verl) == parse_row({"nums": [44, 19, 35], "target": 98.0}) == Puzzle((44, 19, 35), 98)
    True
    """
    if not isinstance(row, dict):
        raise ValueError(f"is {row!r:.60}, not an object with nums and target")
    nums, target = _fields(row)
    if isinstance(nums, str):  # a CSV cell: "[44, 19, 35]", "44 19 35"
        nums = nums.strip("[] ").replace(",", " ").split()
    nums = [_whole(one) for one in nums] if isinstance(nums, (list, tuple)) else nums
    target = _whole(target)
    are_numbers = isinstance(nums, list) and all(type(one) is int and 0 <= one < LIMIT for one in nums)
    if not are_numbers or not 2 <= len(nums) <= MAX_NUMBERS:
        raise ValueError(f"has nums {nums!r:.60}, not 2 to {MAX_NUMBERS} non-negative integers below 1e18")
    if type(target) is not int or abs(target) >= LIMIT:
        raise ValueError(f"has target {target!r:.60}, not an integer of at most 18 digits")
    return Puzzle(tuple(nums), target)


def _fields(row: dict[Any, Any]) -> tuple[Any, Any]:
    """The numbers and the target of a row: its own, or those that verl nests. Raises ValueError without any."""
    if surplus := "".join(row.get(None) or ()).strip():  # csv's key for cells that the header has no name for
        raise ValueError(f'has {surplus!r:.60} behind the header\'s last column: quote the numbers, "44, 19, 35",98')
    reward = row.get("reward_model")
    for place in (row, reward.get("ground_truth") if isinstance(reward, dict) else None, row.get("extra_info")):
        if isinstance(place, dict) and "target" in place:
            for name in ("nums", "numbers"):
                if name in place:
                    return place[name], place["target"]
    raise ValueError(f"has the columns {list(row)!r:.100}, not nums and target")


def _whole(value: Any) -> Any:
    """The integer that 98, 98.0 or text of one is; anything else comes back as it is, for `parse_row` to refuse."""
    if isinstance(value, str) and (match := re.fullmatch(r"(-?[0-9]{1,18})(\.0*)?", value.strip())):
        return int(match[1])
    return int(value) if isinstance(value, float) and value.is_integer() else value


def is_held_out(nums: Iterable[int], target: int, share: float) -> bool:
    """Whether a puzzle is on the held-out side of the canonical split; arguments and errors as `task.is_held_out`."""
    return task.is_held_out(puzzle_key(nums, target), share)
