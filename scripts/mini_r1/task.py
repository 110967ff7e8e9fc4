"""What a task is: the one value that `run_r1_grpo.py` hands to all rooms, none of which knows the puzzle's columns.

To train on another verifiable task, write a module whose `TASK` names your own functions (tests/tools/backwards.py is
a whole one), and import that one in `run_r1_grpo.py`. The canonical split into training and held-out puzzles is here,
because all tasks share it.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from mini_r1.common import DataError, RecipeError, RunError, key

# The held-out side never takes more than this share of the puzzles.
MAX_HELD_OUT_SHARE = 0.10
DEFAULT_PATH = "mini_r1.countdown"  # of runs whose run.json names none
SCRIPTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Verdict:
    """The result of checking one answer.

    Attributes:
        reason: why the answer was accepted or not, one of the task's reason codes.
        value: what the answer comes to (its `str` is shown), None when there was nothing to evaluate.
        credit: what a task that knows degrees pays an answer that is not correct, 0 to below 1.
    """

    reason: StrEnum
    value: Any = None
    credit: float = 0.0

    @property
    def correct(self) -> bool:
        return self.reason == "correct"

    @property
    def reward(self) -> float:
        """1 for a correct answer, and for that alone."""
        return 1.0 if self.correct else self.credit


@dataclass(frozen=True)
class Split:
    """Puzzles on the two sides of the canonical split: what `Task.load` returns.

    Attributes:
        train, held_out: the two sides; no puzzle is on both, and no held-out one comes twice.
        share: the held-out share, 0 to MAX_HELD_OUT_SHARE (see `is_held_out`).
        dropped: how many rows were left out.
    """

    train: list[Any]
    held_out: list[Any]
    share: float
    dropped: int = 0

    def describe(self) -> dict[str, Any]:
        """The split as `run.json` records it."""
        return {
            "share": self.share,
            "train_puzzles": len(self.train),
            "held_out_puzzles": len(self.held_out),
            "dropped_rows": self.dropped,
            "fingerprint": self.fingerprint(),
        }

    def fingerprint(self) -> str:
        """A hash of the training puzzles in their order, as 32 hexadecimal digits."""
        digest = hashlib.blake2b(digest_size=16)
        for puzzle in self.train:
            fields = (list(field) if isinstance(field, tuple) else field for field in puzzle)
            digest.update(f"{'='.join(map(str, fields))};".encode())
        return digest.hexdigest()


def held_out_share(total_puzzles: int, held_out_puzzles: int) -> float:
    """The share of the key space that sets about `held_out_puzzles` of `total_puzzles` aside, at most 10 %.

    Args:
        total_puzzles: at least 1.
        held_out_puzzles: at least 0.
    """
    return min(held_out_puzzles / total_puzzles, MAX_HELD_OUT_SHARE)


def is_held_out(key: str, share: float) -> bool:
    """Whether the puzzle of a key is on the held-out side of the canonical split: a pure function of the key.

    No seed, order, rank or data set enters, so the answer is the same on every machine and after every resume. A
    puzzle that is held out at one share is held out at every larger one.

    Args:
        key: the puzzle's identity (`Task.key`).
        share: the part of all puzzles to hold out, 0 to MAX_HELD_OUT_SHARE.

    Raises:
        ValueError: when `share` is outside that range.
    """
    if not 0 <= share <= MAX_HELD_OUT_SHARE:
        raise ValueError(f"the held-out share must lie in 0..{MAX_HELD_OUT_SHARE}, got {share}")
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def split_puzzles(puzzles: Iterable[Any], key: Callable[[Any], str], held_out_puzzles: int, dropped: int = 0) -> Split:
    """Puzzles parted by the canonical split, in their order.

    Args:
        puzzles: at least one.
        key: a puzzle's identity.
        held_out_puzzles: how many to set aside, at most a tenth of all.
        dropped: how many rows were left out before.

    Raises:
        DataError: when none is left to train on.
    """
    keyed = [(key(puzzle), puzzle) for puzzle in puzzles]
    share = held_out_share(len({name for name, _ in keyed}), held_out_puzzles)
    train: list[Any] = []
    held_out: dict[str, Any] = {}  # one of each: a puzzle asked twice would count twice
    for name, puzzle in keyed:
        if is_held_out(name, share):
            held_out.setdefault(name, puzzle)
        else:
            train.append(puzzle)
    if not train:
        raise DataError("no puzzle is left to train on after the held-out split: raise dataset_rows")
    return Split(train, list(held_out.values()), share, dropped)


@dataclass
class GeneratedPuzzles:
    """The recipe's keys about puzzles of a task that makes them up. Others go into a child of this class."""

    dataset_rows: int = key(10_000, "Puzzles to make.")
    dataset_seed: int = key(42, "Seed of the generator.")
    held_out_puzzles: int = key(1024, "Puzzles' worth to keep out of training, at most a tenth of all.")

    def is_local(self) -> bool:
        return True  # nothing is downloaded

    def check(self) -> None:
        """Refuses values that cannot work. Raises RecipeError, which names the key."""
        for name, least in (("dataset_rows", 1), ("held_out_puzzles", 0)):
            if getattr(self, name) < least:
                raise RecipeError(f"{name} must be {least} or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class Task:
    """A verifiable task.

    Attributes:
        path: the module whose `TASK` this is; stands in `run.json`.
        arguments: a dataclass of the recipe's keys about puzzles, `GeneratedPuzzles` or one like it. If it has a method
            `could_train_on(split, puzzle)`, that answers `Task.could_train_on`.
        puzzle: a NamedTuple type. Its fields are the data set's columns and the keywords that rewards get; its `str`
            is what people read.
        reasons: the reason codes, with `no_answer`, `several_answers` and `correct` among them.
        system_prompt, user_prompt: texts; the fields of a puzzle fill `user_prompt.format(...)`.
        check: the verdict on an answer (the text between the answer tags) to a puzzle. Never raises.
        load: the puzzles (a `Split`) that the arguments ask for; raises DataError, RecipeError. The second value says
            whether to draw progress.
        stratum: the name under which results on a puzzle are split.
        key: a puzzle's identity, alike for puzzles that ask the same.
    """

    path: str
    arguments: type[Any]
    puzzle: type[Any]
    reasons: type[StrEnum]
    system_prompt: str
    user_prompt: str
    check: Callable[[str, Any], Verdict]
    load: Callable[[Any, bool], Any]
    stratum: Callable[[Any], str]
    key: Callable[[Any], str]

    def puzzle_of(self, row: dict[str, Any]) -> Any:
        """The puzzle in a data set's row or a sample's record. Raises KeyError when a column is missing."""
        return self.puzzle(*(row[field] for field in self.puzzle._fields))

    def question(self, puzzle: Any) -> str:
        """The user prompt for a puzzle."""
        fields = {key: list(value) if isinstance(value, tuple) else value for key, value in puzzle._asdict().items()}
        return self.user_prompt.format(**fields)

    def could_train_on(self, arguments: Any, split: dict[str, Any], puzzle: Any) -> bool:
        """Whether a run with these arguments, and this `split` part of its `run.json`, may have trained on a puzzle."""
        if hasattr(arguments, "could_train_on"):
            return bool(arguments.could_train_on(split, puzzle))
        return not is_held_out(self.key(puzzle), split.get("share", MAX_HELD_OUT_SHARE))


def load_task(path: str | None) -> Task:
    """The task of a run, by the path in its `run.json`.

    A run folder may come from others, and importing a module runs it. So only these are: modules of this repository's
    `scripts`, of the folders that the user names in PYTHONPATH, and what is imported already.

    Raises:
        RunError: when there is no such module, or no task in it.
    """
    name = str(path or DEFAULT_PATH)
    found = getattr(importlib.import_module(name), "TASK", None) if name in sys.modules or _is_ours(name) else None
    if not isinstance(found, Task):
        raise RunError(
            f"run.json or --task_module names the task {path!r}, and no module in {SCRIPTS} of this name has a TASK: "
            f"if you trust one elsewhere, name its folder in PYTHONPATH"
        )
    return found


def _is_ours(name: str) -> bool:
    """Whether a module's file lies where the user's own code does."""
    parts = name.split(".")
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    files = [os.path.join(folder, *parts) for folder in (str(SCRIPTS), *filter(None, named))]  # noqa: PTH118
    # os.path answers where Path raises: a name longer than any file's.
    there = (os.path.isfile(file + end) for file in files for end in (".py", "/__init__.py"))  # noqa: PTH113
    return all(map(str.isidentifier, parts)) and any(there)
