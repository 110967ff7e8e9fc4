"""Where puzzles come from: the generator, a local file or folder, or a data set on the Hub.

A row is `{"nums": [44, 19, 35], "target": 98}`, in a CSV file `"[44, 19, 35]",98`, or as verl nests it:
`{"reward_model": {"ground_truth": {"numbers": [44, 19, 35], "target": 98}}}`. Whatever the source, every row is
validated and the canonical split is applied.
"""

from __future__ import annotations

import csv
import gzip
import json
import logging
import os
import random
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mini_r1.common import DataError, RecipeError, first_line, key
from mini_r1.countdown.generator import MAX_GENERATED_NUMBER, generate_puzzles
from mini_r1.countdown.puzzle import MAX_NUMBERS, Puzzle, is_held_out, parse_row, puzzle_key
from mini_r1.task import MAX_HELD_OUT_SHARE, Split, split_puzzles

logger = logging.getLogger(__name__)

GENERATE = "generate"
SUFFIXES = (".parquet", ".arrow", ".jsonl", ".json", ".csv", ".tsv", ".gz")
LFS_POINTER = b"version https://git-lfs"  # how the file begins that stands in for one of Git LFS
MAX_BAD_ROWS_SHOWN = 5


@dataclass
class PuzzleArguments:
    """Where puzzles come from. Every field is a recipe key."""

    dataset_id_or_path: str = key(
        "Jiayi-Pan/Countdown-Tasks-3to4",
        "A data set on the Hub, a local parquet/JSONL/JSON/CSV/TSV file or folder, or `generate`.",
    )
    dataset_split: str = key(
        "train", "Split of the Hub data set, or of the folder, to draw from, or several: train+test."
    )
    dataset_rows: int = key(50_000, "Puzzles to generate, or to draw at random from the data set (0: all).")
    dataset_seed: int = key(42, "Seed of the generator or of the draw.")
    on_bad_row: str = key("drop", "Rows that are no puzzle: `drop` (and report) or `fail`.")
    number_counts: list[int] = field(
        default_factory=[3, 4].copy, metadata={"help": "generate: how many numbers a puzzle has (2..6)."}
    )
    number_range: list[int] = field(
        default_factory=[1, 99].copy, metadata={"help": "generate: inclusive range of the numbers."}
    )
    target_range: list[int] = field(
        default_factory=[10, 100].copy, metadata={"help": "generate: inclusive range of the targets."}
    )
    held_out_puzzles: int = key(1024, "Puzzles' worth to keep out of training, at most a tenth of all.")

    def is_local(self) -> bool:
        """Whether the puzzles come from this machine: `generate`, or what looks like a file or a folder."""
        name = self.dataset_id_or_path
        return name == GENERATE or name.endswith(SUFFIXES) or name.startswith((".", "/", "~")) or _exists(name)

    def check(self) -> None:
        """Refuses values that cannot work. Raises RecipeError, which names the key."""
        counts, numbers, targets = self.number_counts, self.number_range, self.target_range
        numbers_fit = len(numbers) == 2 and 1 <= numbers[0] <= numbers[1] <= MAX_GENERATED_NUMBER
        for name, rule, holds in (
            ("held_out_puzzles", "0 or more", self.held_out_puzzles >= 0),
            ("dataset_rows", "0 or more", self.dataset_rows >= 0),
            ("dataset_rows", "1 or more to generate", self.dataset_rows or self.dataset_id_or_path != GENERATE),
            ("on_bad_row", "drop or fail", self.on_bad_row in ("drop", "fail")),
            ("number_counts", f"counts in 2..{MAX_NUMBERS}", counts and set(counts) <= {*range(2, MAX_NUMBERS + 1)}),
            ("number_range", f"[low, high] within 1..{MAX_GENERATED_NUMBER}", numbers_fit),
            ("target_range", "[low, high]", len(targets) == 2 and targets[0] <= targets[1]),
        ):
            if not holds:
                raise RecipeError(f"{name} must be {rule}, got {getattr(self, name)!r}")

    def could_train_on(self, split: dict[str, Any], puzzle: Puzzle) -> bool:
        """Whether a run with these arguments, and this `split` part of its `run.json`, may have trained on a puzzle."""
        if is_held_out(*puzzle, share=split.get("share", MAX_HELD_OUT_SHARE)):
            return False
        low, high = self.number_range
        drawn = len(puzzle.nums) in self.number_counts and all(low <= n <= high for n in puzzle.nums)
        return drawn or self.dataset_id_or_path != GENERATE


# --------------------------------------------------------------------------------------------------------------------
# Sources
# --------------------------------------------------------------------------------------------------------------------


# `datasets` reads these files too, but gives all rows of a file one type: one broken line fails the file without an
# index, and one fractional target turns every target into a float. Here each row stands or falls by itself.
def _read_file(path: Path) -> Iterator[Any]:
    """The rows of one file; a line that is not JSON comes as text, which `parse_row` refuses with its index."""
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind == ".parquet":
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            wanted = ["nums", "target"]
            for batch in file.iter_batches(columns=wanted if {*wanted} <= {*file.schema_arrow.names} else None):
                yield from batch.to_pylist()
        return
    if kind == ".arrow":
        from datasets import Dataset

        yield from Dataset.from_file(str(path))
        return
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig", newline="") as lines:  # -sig: spreadsheets write a byte order mark
        is_list = kind == ".json" and lines.read(99).lstrip().startswith("[")  # else an object a line
        lines.seek(0)
        if kind in (".csv", ".tsv"):
            yield from csv.DictReader(lines, delimiter="," if kind == ".csv" else "\t")
        elif is_list:
            yield from json.load(lines)
        else:
            for line in filter(str.strip, lines):
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError):
                    yield line


def _read_files(files: list[Path]) -> Iterator[Any]:
    for file in files:
        try:
            _refuse_pointer(file)
            yield from _read_file(file)
        # pyarrow's own errors are among these; OverflowError is a date that Python cannot hold.
        except (OSError, EOFError, ValueError, RuntimeError, OverflowError, csv.Error, zlib.error) as error:
            raise DataError(f"cannot read {file}: {first_line(error)}") from error


def _refuse_pointer(file: Path) -> None:
    with file.open("rb") as stream:
        if stream.read(len(LFS_POINTER)) == LFS_POINTER:
            raise DataError(f"{file} only points to its data in Git LFS: run `git lfs pull` in its folder")


def _read_local(name: str, split: str) -> tuple[str, Iterator[Any]]:
    """What is read of a file or a folder, in words, and its rows."""
    if not _exists(name):
        raise DataError(f"dataset_id_or_path: {name} does not exist")
    path = Path(name).expanduser()
    if path.is_file():
        return name, _read_files([path])
    found = _read_folder(path)
    if isinstance(found, dict):
        if missing := [part for part in split.split("+") if part not in found]:
            raise DataError(f"dataset_split: {name} has no split {missing[0]!r}, only {', '.join(map(str, found))}")
        found, name = [row for part in split.split("+") for row in found[part]], f"{name}, split {split}"
    if not (isinstance(found, list) and all(isinstance(file, str) for file in found)):
        return name, iter(found)
    files = [Path(file) for file in found]
    return f"{name} ({', '.join(file.name for file in files):.200})", _read_files(files)


def _read_folder(folder: Path) -> Any:
    """As `datasets` reads a folder: a Dataset or one for each split if it was saved to disk, else files for each."""
    import yaml
    from datasets import load_dataset_builder, load_from_disk

    try:
        names = {file.name for file in folder.iterdir()}
        if "dataset_dict.json" in names or {"dataset_info.json", "state.json"} <= names:
            for file in folder.rglob("*.arrow"):
                _refuse_pointer(file)
            return load_from_disk(str(folder)).with_format(None)
        with tempfile.TemporaryDirectory() as cache:
            return load_dataset_builder(str(folder), cache_dir=cache).config.data_files
    # The last four: metadata that is not of the shape it expects.
    except (OSError, ValueError, RuntimeError, AttributeError, TypeError, KeyError, yaml.YAMLError) as error:
        raise DataError(f"cannot read {folder} as a data set ({first_line(error)}): name one of its files") from error


def _exists(name: str) -> bool:
    # os.path answers "no" where Path raises: an unknown user behind `~`, a name longer than any file's.
    return os.path.exists(os.path.expanduser(name))  # noqa: PTH110, PTH111


def _read_hub(dataset_id: str, split: str) -> tuple[str, Iterator[Any]]:
    import httpx
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    logger.info("loading %s from the Hub; without a network, HF_HUB_OFFLINE=1 saves minutes of retries", dataset_id)
    try:
        return f"{dataset_id}, split {split}", iter(load_dataset(dataset_id, split=split))
    except (OSError, ValueError, RuntimeError, DatasetsError, httpx.HTTPError) as error:
        instead = f"without a network, set dataset_id_or_path: {GENERATE}, or name a local file"
        raise DataError(f"cannot load {dataset_id!r} from the Hub ({first_line(error)}); {instead}") from error


def _validated(source: str, rows: Iterator[Any], on_bad_row: str) -> tuple[list[Puzzle], int]:
    """Every good row as a puzzle, and how many bad ones were dropped.

    Raises:
        DataError: on a bad row with `on_bad_row: fail`, or when no good row is left.
    """
    puzzles: list[Puzzle] = []
    faults: list[str] = []
    for index, row in enumerate(rows):
        try:
            puzzles.append(parse_row(row))
        except ValueError as error:
            faults.append(f"row {index} {error}")
            if on_bad_row == "fail":
                raise DataError(f"{source}: {faults[0]} (on_bad_row: drop would leave it out)") from None
    shown = "; ".join(faults[:MAX_BAD_ROWS_SHOWN])
    if not puzzles:
        raise DataError(f"{source}: no usable row" + (f" ({shown})" if shown else ""))
    logger.info("%s: %d rows", source, len(puzzles) + len(faults))
    if faults:
        logger.warning("%s: %d bad rows dropped: %s", source, len(faults), shown)
    return puzzles, len(faults)


# --------------------------------------------------------------------------------------------------------------------
# The whole way
# --------------------------------------------------------------------------------------------------------------------


def load_puzzles(arguments: PuzzleArguments, progress: bool = True) -> Split:
    """Loads or generates puzzles and splits them; number counts take turns among the held-out ones, so that evaluating
    the first n is fair to each.

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
        read = _read_local if arguments.is_local() else _read_hub
        puzzles, dropped = _validated(*read(source, arguments.dataset_split), arguments.on_bad_row)
        if 0 < rows < len(puzzles):
            puzzles = random.Random(arguments.dataset_seed).sample(puzzles, rows)
    split = split_puzzles(puzzles, lambda puzzle: puzzle_key(*puzzle), arguments.held_out_puzzles, dropped)
    return replace(split, held_out=_by_turns(split.held_out))


def _by_turns(puzzles: list[Puzzle]) -> list[Puzzle]:
    """The puzzles with their number counts taking turns: the first n hold as many of each, as far as there are."""
    alike: dict[int, list[Puzzle]] = {}
    for puzzle in puzzles:
        alike.setdefault(len(puzzle.nums), []).append(puzzle)
    return [puzzle for turn in zip_longest(*alike.values()) for puzzle in turn if puzzle is not None]
