"""What a puzzle is, which puzzles are the same, and the canonical split into training and held-out ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

# The largest number of operands that the solver and the generator accept, as in the television game.
MAX_NUMBERS = 6

# The held-out side never takes more than this share of the puzzles.
MAX_HELD_OUT_SHARE = 0.10
DEFAULT_HELD_OUT_PUZZLES = 1024


class Puzzle(NamedTuple):
    """One puzzle: `nums`, the given numbers in the order shown to the player, and the `target` to reach."""

    nums: tuple[int, ...]
    target: int


def puzzle_key(nums: Iterable[int], target: int) -> str:
    """The identity of a puzzle: sorted numbers and target, so that permutations are the same puzzle.

    >>> puzzle_key([44, 19, 35], 98)
    '19,35,44=98'
    """
    return f"{','.join(str(n) for n in sorted(nums))}={target}"


def held_out_share(total_puzzles: int, held_out_puzzles: int = DEFAULT_HELD_OUT_PUZZLES) -> float:
    """The share of the key space that puts about `held_out_puzzles` of `total_puzzles` aside, at most 10 %."""
    if total_puzzles <= 0:
        raise ValueError(f"total_puzzles must be positive, got {total_puzzles}")
    if held_out_puzzles < 0:
        raise ValueError(f"held_out_puzzles must not be negative, got {held_out_puzzles}")
    return min(held_out_puzzles / total_puzzles, MAX_HELD_OUT_SHARE)


def is_held_out(nums: Iterable[int], target: int, share: float) -> bool:
    """Which side of the canonical split a puzzle is on: a pure function of its key.

    No seed, order, rank or data set enters, so the answer is the same on every machine and after every resume, and a
    puzzle held out at one share is held out at every larger one.

    Args:
        nums, target: the puzzle.
        share: the part of all puzzles to hold out, 0 to MAX_HELD_OUT_SHARE.

    Raises:
        ValueError: when `share` is outside that range.
    """
    if not 0 <= share <= MAX_HELD_OUT_SHARE:
        raise ValueError(f"the held-out share must lie in 0..{MAX_HELD_OUT_SHARE}, got {share}")
    digest = hashlib.blake2b(puzzle_key(nums, target).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64
