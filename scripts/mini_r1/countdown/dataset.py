"""Where puzzles come from: the generator, a local file or folder, or a data set on the Hub.

A row is `{"nums": [44, 19, 35], "target": 98}`, in a CSV file `"[44, 19, 35]",98`. Whatever the source, every row is
validated and the canonical split is applied.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mini_r1.common import DataError, RecipeError, first_line
from mini_r1.countdown.generator import MAX_GENERATED_NUMBER, generate_puzzles
from mini_r1.countdown.puzzle import MAX_HELD_OUT_SHARE, MAX_NUMBERS, Puzzle, held_out_share, is_held_out, puzzle_key

logger = logging.getLogger(__name__)

GENERATE = "generate"
SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
MAX_BAD_ROWS_SHOWN = 5


def _key(default: Any, text: str) -> Any:
    """A recipe key with its default and its `--help`."""
    return field(default=default, metadata={"help": text})


@dataclass
class PuzzleArguments:
    """Where puzzles come from. Every field is a recipe key."""

    dataset_id_or_path: str = _key(
        "Jiayi-Pan/Countdown-Tasks-3to4",
        "A data set on the Hub, a local parquet/JSONL/JSON/CSV file or folder, or `generate`.",
    )
    dataset_split: str = _key("train", "Split of the Hub data set to draw from.")
    dataset_rows: int = _key(50_000, "Puzzles to generate, or to draw at random from the data set (0: all).")
    dataset_seed: int = _key(42, "Seed of the generator or of the draw.")
    on_bad_row: str = _key("drop", "Rows that are no puzzle: `drop` (and report) or `fail`.")
    number_counts: list[int] = field(
        default_factory=[3, 4].copy, metadata={"help": "generate: how many numbers a puzzle has (2..6)."}
    )
    number_range: list[int] = field(
        default_factory=[1, 99].copy, metadata={"help": "generate: inclusive range of the numbers."}
    )
    target_range: list[int] = field(
        default_factory=[10, 100].copy, metadata={"help": "generate: inclusive range of the targets."}
    )
    held_out_puzzles: int = _key(1024, "Puzzles' worth to keep out of training, at most a tenth of all.")

    def is_local(self) -> bool:
        """Whether the puzzles come from this machine: `generate`, or what looks like a file or a folder."""
        name = self.dataset_id_or_path
        return name == GENERATE or name.endswith(SUFFIXES) or name.startswith((".", "/", "~")) or _exists(name)

    def check(self) -> None:
        """Refuses values that cannot work. Raises RecipeError, which names the key."""
        counts, numbers, targets = self.number_counts, self.number_range, self.target_range
        numbers_fit = len(numbers) == 2 and 1 <= numbers[0] <= numbers[1] <= MAX_GENERATED_NUMBER
        for key, rule, holds in (
            ("held_out_puzzles", "0 or more", self.held_out_puzzles >= 0),
            ("dataset_rows", "0 or more", self.dataset_rows >= 0),
            ("dataset_rows", "1 or more to generate", self.dataset_rows or self.dataset_id_or_path != GENERATE),
            ("on_bad_row", "drop or fail", self.on_bad_row in ("drop", "fail")),
            ("number_counts", f"counts in 2..{MAX_NUMBERS}", counts and set(counts) <= {*range(2, MAX_NUMBERS + 1)}),
            ("number_range", f"[low, high] within 1..{MAX_GENERATED_NUMBER}", numbers_fit),
            ("target_range", "[low, high]", len(targets) == 2 and targets[0] <= targets[1]),
        ):
            if not holds:
                raise RecipeError(f"{key} must be {rule}, got {getattr(self, key)!r}")

    def could_train_on(self, split: dict[str, Any], puzzle: Puzzle) -> bool:
        """Whether a run with these arguments, and this `split` part of its `run.json`, may have trained on a puzzle."""
        if is_held_out(*puzzle, share=split.get("share", MAX_HELD_OUT_SHARE)):
            return False
        low, high = self.number_range
        drawn = len(puzzle.nums) in self.number_counts and all(low <= n <= high for n in puzzle.nums)
        return drawn or self.dataset_id_or_path != GENERATE


@dataclass(frozen=True)
class PuzzleSplit:
    """Puzzles on the two sides of the canonical split.

    Attributes:
        train, held_out: the two sides; no puzzle or permutation of it is on both.
        share: the held-out share, 0 to MAX_HELD_OUT_SHARE (see `puzzle.is_held_out`).
        dropped: how many bad rows were left out.
    """

    train: list[Puzzle]
    held_out: list[Puzzle]
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
        for nums, target in self.train:
            digest.update(f"{list(nums)}={target};".encode())
        return digest.hexdigest()


def parse_row(row: Any) -> Puzzle:
    """Turns one row into a puzzle.

    Raises:
        ValueError: with the reason, when the row is not a puzzle.
    """
    if not isinstance(row, dict):
        raise ValueError(f"is {row!r:.60}, not an object with nums and target")
    nums: Any = row.get("nums")
    target: Any = row.get("target")
    if isinstance(nums, str):  # a CSV cell: "[44, 19, 35]", "44 19 35"
        nums = [_integer(word) for word in nums.strip("[] ").replace(",", " ").split()]
    if isinstance(target, str):
        target = _integer(target.strip())
    are_numbers = isinstance(nums, (list, tuple)) and all(type(one) is int and one >= 0 for one in nums)
    if not are_numbers or not 2 <= len(nums) <= MAX_NUMBERS:
        raise ValueError(f"has nums {nums!r:.60}, not 2 to {MAX_NUMBERS} non-negative integers")
    if type(target) is not int:
        raise ValueError(f"has target {target!r:.60}, not an integer")
    return Puzzle(tuple(nums), target)


def _integer(word: str) -> int | str:
    """A word of a CSV cell as an integer; any other word is returned as it is, for `parse_row` to refuse."""
    return int(word) if re.fullmatch("-?[0-9]{1,18}", word) else word


# --------------------------------------------------------------------------------------------------------------------
# Sources
# --------------------------------------------------------------------------------------------------------------------


# `datasets` reads these files too, but gives all rows of a file one type: one broken line fails the file without an
# index, and one fractional target turns every target into a float. Here each row stands or falls by itself.
def _read_file(path: Path) -> Iterator[Any]:
    """The rows of one file; a line that is not JSON comes as text, which `parse_row` refuses with its index."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        yield from pq.read_table(path, columns=["nums", "target"]).to_pylist()
        return
    with path.open(encoding="utf-8-sig", newline="") as lines:  # -sig: spreadsheets begin with a byte order mark
        is_list = path.suffix == ".json" and lines.read(99).lstrip().startswith("[")  # else an object a line
        lines.seek(0)
        if path.suffix == ".csv":
            yield from csv.DictReader(lines)
        elif is_list:
            yield from json.load(lines)
        else:
            for line in filter(str.strip, lines):
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError):
                    yield line


def _read_local(name: str) -> Iterator[Any]:
    """The rows of a file, or of all files in a folder in the order of their names."""
    if not _exists(name):
        raise DataError(f"dataset_id_or_path: {name} does not exist")
    path = Path(name).expanduser()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES):
        try:
            yield from _read_file(file)
        # pyarrow's own errors are among these; OverflowError is a date that Python cannot hold.
        except (OSError, ValueError, RuntimeError, OverflowError, csv.Error) as error:
            raise DataError(f"cannot read {file}: {first_line(error)}") from error


def _exists(name: str) -> bool:
    # os.path answers "no" where Path raises: an unknown user behind `~`, a name longer than any file's.
    return os.path.exists(os.path.expanduser(name))  # noqa: PTH110, PTH111


def _read_hub(dataset_id: str, split: str) -> Iterator[Any]:
    import httpx
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    logger.info("loading %s from the Hub; without a network, HF_HUB_OFFLINE=1 saves minutes of retries", dataset_id)
    try:
        yield from load_dataset(dataset_id, split=split)
    except (OSError, ValueError, RuntimeError, DatasetsError, httpx.HTTPError) as error:
        instead = f"without a network, set dataset_id_or_path: {GENERATE}, or name a local file"
        raise DataError(f"cannot load {dataset_id!r} from the Hub ({first_line(error)}); {instead}") from error


def _validated(rows: Iterator[Any], arguments: PuzzleArguments) -> tuple[list[Puzzle], int]:
    """Every good row as a puzzle, and how many bad ones were dropped.

    Raises:
        DataError: on a bad row with `on_bad_row: fail`, or when no good row is left.
    """
    source = arguments.dataset_id_or_path
    puzzles: list[Puzzle] = []
    faults: list[str] = []
    for index, row in enumerate(rows):
        try:
            puzzles.append(parse_row(row))
        except ValueError as error:
            faults.append(f"row {index} {error}")
            if arguments.on_bad_row == "fail":
                raise DataError(f"{source}: {faults[0]} (on_bad_row: drop would leave it out)") from None
    shown = "; ".join(faults[:MAX_BAD_ROWS_SHOWN])
    if not puzzles:
        formats = ", ".join(SUFFIXES)
        raise DataError(f"{source}: no usable row in any {formats} file" + (f" ({shown})" if shown else ""))
    if faults:
        logger.warning("%s: %d bad rows dropped: %s", source, len(faults), shown)
    return puzzles, len(faults)


# --------------------------------------------------------------------------------------------------------------------
# The whole way
# --------------------------------------------------------------------------------------------------------------------


def load_puzzles(arguments: PuzzleArguments, progress: bool = True) -> PuzzleSplit:
    """Loads or generates puzzles and splits them.

    Args:
        arguments: the recipe's keys about puzzles.
        progress: whether a long generation draws a progress bar.

    Raises:
        RecipeError: when the arguments cannot work.
        DataError: when there is nothing usable.
    """
    arguments.check()
    source, rows, dropped = arguments.dataset_id_or_path, arguments.dataset_rows, 0
    if source == GENERATE:
        puzzles = generate_puzzles(
            rows,
            seed=arguments.dataset_seed,
            number_counts=arguments.number_counts,
            number_range=arguments.number_range,
            target_range=arguments.target_range,
            progress=progress,
        )
    else:
        found = _read_local(source) if arguments.is_local() else _read_hub(source, arguments.dataset_split)
        puzzles, dropped = _validated(found, arguments)
        if 0 < rows < len(puzzles):
            puzzles = random.Random(arguments.dataset_seed).sample(puzzles, rows)
    share = held_out_share(len({puzzle_key(*puzzle) for puzzle in puzzles}), arguments.held_out_puzzles)
    train: list[Puzzle] = []
    held_out: dict[str, Puzzle] = {}  # one of each: a puzzle asked twice would count twice
    for puzzle in puzzles:
        if is_held_out(*puzzle, share=share):
            held_out.setdefault(puzzle_key(*puzzle), puzzle)
        else:
            train.append(puzzle)
    if not train:
        raise DataError(f"{source}: no puzzle is left to train on after the held-out split")
    return PuzzleSplit(train, list(held_out.values()), share, dropped)
