"""Where puzzles come from: the generator, a local file or folder, or a data set on the Hub.

Whatever the source, rows have the columns `nums` (list of integers) and `target` (integer), every row is validated,
and the result is already parted by the canonical split.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_r1.common import DataError
from mini_r1.countdown.generator import generate_puzzles
from mini_r1.countdown.puzzle import MAX_NUMBERS, Puzzle, held_out_share, is_held_out, puzzle_key

logger = logging.getLogger(__name__)

GENERATE = "generate"
SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
# How many bad rows are named one by one before only their number is given.
MAX_BAD_ROWS_SHOWN = 5

# Every quantifier keeps what it has: no two of them could share it in another way, so a long cell takes linear time.
_LIST_OF_INTS = re.compile(r"\s*+\[?+\s*+\d++(?:[\s,]++\d++)*+\s*+,?+\s*+\]?+\s*+")


@dataclass(frozen=True)
class PuzzleSplit:
    """Puzzles parted by the canonical split.

    Attributes:
        train, held_out: the two sides; no puzzle or permutation of it is on both.
        share: the held-out share that parts them (see `countdown.is_held_out`).
        dropped: how many bad rows were left out.
    """

    train: list[Puzzle]
    held_out: list[Puzzle]
    share: float
    dropped: int = 0

    def fingerprint(self) -> str:
        """A short hash of the puzzles to train on, in order: the same for the same run."""
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
        raise ValueError(f"is not an object with nums and target but {type(row).__name__}")
    for column in ("nums", "target"):
        if row.get(column) is None:
            raise ValueError(f"has no {column}")
    nums, target = row["nums"], row["target"]
    if isinstance(nums, str):  # a CSV cell: "[44, 19, 35]", "44 19 35"
        if not _LIST_OF_INTS.fullmatch(nums):
            raise ValueError(f"nums is not a list of integers: {nums[:60]!r}")
        nums = [int(n) for n in re.findall(r"\d+", nums)]
    if isinstance(target, str):
        if not re.fullmatch(r"\s*-?\d{1,18}\s*", target):
            raise ValueError(f"target is not an integer: {target[:60]!r}")
        target = int(target)
    if not isinstance(nums, (list, tuple)):
        raise ValueError(f"nums is not a list but {type(nums).__name__}")
    if not 2 <= len(nums) <= MAX_NUMBERS:
        raise ValueError(f"nums has {len(nums)} numbers, expected 2 to {MAX_NUMBERS}")
    for number in nums:
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise ValueError(f"nums holds {number!r}, which is not a non-negative integer")
    if isinstance(target, bool) or not isinstance(target, int):
        raise ValueError(f"target is {target!r}, which is not an integer")
    return Puzzle(tuple(nums), target)


def _read_jsonl(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig") as lines:
        for line in lines:
            if line.strip():
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError):  # broken, an absurd number, absurd nesting
                    yield line  # not an object: parse_row will say so with its index


def _read_file(path: Path) -> Iterator[Any]:
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            rows = pq.read_table(path).to_pylist()
        # Values that Python has no room for, such as a date in the year 100 000, are told in many ways.
        except (pa.ArrowException, OSError, ValueError, OverflowError, LookupError) as error:
            raise DataError(f"cannot read {path} as parquet: {error}") from error
        yield from rows
    elif path.suffix == ".jsonl":
        yield from _read_jsonl(path)
    elif path.suffix == ".json":
        try:
            rows = json.loads(path.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError:
            raise
        except (ValueError, RecursionError) as error:
            if getattr(error, "msg", "") != "Extra data":
                raise DataError(f"cannot read {path} as JSON: {error}") from error
            yield from _read_jsonl(path)  # many tools write one object a line under the name .json
            return
        if not isinstance(rows, list):
            raise DataError(f"{path} must hold a JSON list of objects with nums and target")
        yield from rows
    else:
        with path.open(encoding="utf-8-sig", newline="") as lines:  # -sig: spreadsheets put a byte order mark first
            yield from csv.DictReader(lines)


def _read_local(path: Path) -> Iterator[Any]:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES)
    if not files or any(file.suffix not in SUFFIXES for file in files):
        raise DataError(f"dataset_id_or_path: {path} holds no {', '.join(SUFFIXES)} file")
    for file in files:
        try:
            yield from _read_file(file)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"cannot read {file}: {error}") from error


def _read_hub(dataset_id: str, split: str) -> Iterator[Any]:
    import httpx
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    logger.info(
        "loading %s from the Hub; without a network this takes minutes to give up (HF_HUB_OFFLINE=1: at once)",
        dataset_id,
    )
    try:
        dataset = load_dataset(dataset_id, split=split)
    except (OSError, ValueError, RuntimeError, DatasetsError, HfHubHTTPError, httpx.HTTPError) as error:
        summary = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"cannot load {dataset_id!r} from the Hub ({summary}); for an offline run set dataset_id_or_path: "
            f"{GENERATE}, or name a local {', '.join(SUFFIXES)} file"
        ) from error
    missing = {"nums", "target"} - set(dataset.column_names)
    if missing:
        raise DataError(f"{dataset_id!r} has no column {' and '.join(sorted(missing))}; it has {dataset.column_names}")
    yield from dataset


def validate_rows(rows: Iterator[Any], *, on_bad_row: str, source: str) -> tuple[list[Puzzle], int]:
    """Every row as a puzzle.

    Args:
        rows: anything; see `parse_row`.
        on_bad_row: `drop` reports bad rows with index and reason and goes on; `fail` stops at the first.
        source: named in the messages.

    Returns:
        (puzzles, how many rows were dropped).

    Raises:
        DataError: on a bad row when told to fail, or when no good row is left.
    """
    puzzles: list[Puzzle] = []
    bad = 0
    for index, row in enumerate(rows):
        try:
            puzzles.append(parse_row(row))
        except ValueError as error:
            if on_bad_row == "fail":
                raise DataError(f"{source}: row {index} {error} (on_bad_row: drop would leave it out)") from None
            bad += 1
            if bad <= MAX_BAD_ROWS_SHOWN:
                logger.warning("%s: row %d %s; dropped", source, index, error)
    if bad > MAX_BAD_ROWS_SHOWN:
        logger.warning("%s: %d bad rows dropped in all", source, bad)
    if not puzzles:
        raise DataError(f"{source}: no usable row" + (f" ({bad} bad ones)" if bad else ""))
    return puzzles, bad


def local_path(name: str) -> Path:
    """The path that a word names, with `~` written out where there is such a home."""
    try:
        return Path(name).expanduser()
    except (RuntimeError, ValueError):  # no such user, or no such character in a name
        return Path(name)


def is_there(path: Path) -> bool:
    """Whether a path exists; a name that no file system takes does not."""
    try:
        return path.exists()
    except OSError:
        return False


def is_local(dataset_id_or_path: str) -> bool:
    """Whether puzzles come from this machine: `generate`, or what looks like a file or a folder."""
    path = local_path(dataset_id_or_path)
    return (
        dataset_id_or_path == GENERATE
        or is_there(path)
        or path.suffix in SUFFIXES
        or dataset_id_or_path.startswith((".", "/", "~"))
    )


def load_puzzles(
    dataset_id_or_path: str,
    *,
    rows: int,
    seed: int,
    held_out_puzzles: int,
    dataset_split: str = "train",
    on_bad_row: str = "drop",
    number_counts: Sequence[int] = (3, 4),
    number_range: Sequence[int] = (1, 99),
    target_range: Sequence[int] = (10, 100),
    progress: bool = True,
) -> PuzzleSplit:
    """Loads or generates puzzles and parts them.

    Args:
        dataset_id_or_path: `generate`, a local file or folder, or a Hub id.
        rows: how many puzzles to generate, or how many to draw at random from the source (0: all).
        seed: seed of the generator or of the draw; not of the split, which has none.
        held_out_puzzles: how many puzzles' worth to hold out, at most 10 %.
        dataset_split: the Hub data set's split.
        on_bad_row: `drop` or `fail`.
        number_counts, number_range, target_range: the generator's arguments.
        progress: whether a long generation draws a progress bar.

    Raises:
        DataError: when there is nothing usable; one sentence, names the change to make.
    """
    dropped = 0
    if dataset_id_or_path == GENERATE:
        if rows <= 0:
            raise DataError("dataset_rows must say how many puzzles to generate")
        try:
            puzzles = generate_puzzles(
                rows,
                seed=seed,
                number_counts=number_counts,
                number_range=(number_range[0], number_range[1]),
                target_range=(target_range[0], target_range[1]),
                progress=progress,
            )
        except ValueError as error:
            raise DataError(str(error)) from error
    else:
        path = local_path(dataset_id_or_path)
        looks_local = is_local(dataset_id_or_path)
        if looks_local and not is_there(path):
            raise DataError(f"dataset_id_or_path: {dataset_id_or_path} does not exist")
        source = _read_local(path) if looks_local else _read_hub(dataset_id_or_path, dataset_split)
        puzzles, dropped = validate_rows(source, on_bad_row=on_bad_row, source=dataset_id_or_path)
        if 0 < rows < len(puzzles):
            puzzles = random.Random(seed).sample(puzzles, rows)
    share = held_out_share(len({puzzle_key(*puzzle) for puzzle in puzzles}), held_out_puzzles)
    train: list[Puzzle] = []
    held_out: dict[str, Puzzle] = {}  # one of each: a puzzle asked twice would count twice
    for puzzle in puzzles:
        if is_held_out(*puzzle, share=share):
            held_out.setdefault(puzzle_key(*puzzle), puzzle)
        else:
            train.append(puzzle)
    if not train:
        raise DataError(f"{dataset_id_or_path}: no puzzle is left to train on after the held-out split")
    return PuzzleSplit(train, list(held_out.values()), share, dropped)
