"""Reading puzzles: every source, and every way in which a row can be wrong."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from mini_r1.common import DataError, RecipeError
from mini_r1.countdown.dataset import PuzzleArguments, PuzzleSplit, load_puzzles, parse_row
from mini_r1.countdown.generator import generate_puzzles
from mini_r1.countdown.puzzle import Puzzle, is_held_out, puzzle_key

GOOD = {"nums": [44, 19, 35], "target": 98}
GOOD_LINE = json.dumps(GOOD)


def load(path: Path | str, **arguments: Any) -> PuzzleSplit:
    defaults = {"dataset_rows": 0, "dataset_seed": 0, "held_out_puzzles": 0}
    return load_puzzles(PuzzleArguments(dataset_id_or_path=str(path), **{**defaults, **arguments}))


def written(path: Path, puzzles: list[Puzzle]) -> Path:
    path.write_text("\n".join(json.dumps(puzzle._asdict()) for puzzle in puzzles))
    return path


# --------------------------------------------------------------------------------------------------------------------
# Rows
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        pytest.param({"nums": [1, 2]}, "has target None, not an integer", id="no target"),
        pytest.param({"target": 3}, "has nums None, not 2 to 6", id="no nums"),
        pytest.param({"nums": 12, "target": 3}, "has nums 12", id="nums is a number"),
        pytest.param({"nums": [12], "target": 12}, "has nums [12]", id="one number"),
        pytest.param({"nums": [1] * 7, "target": 7}, "has nums [1, 1, 1, 1, 1, 1, 1]", id="seven numbers"),
        pytest.param({"nums": [1, -2, 3], "target": 2}, "has nums [1, -2, 3]", id="negative number"),
        pytest.param({"nums": [1, 2.5, 3], "target": 2}, "2.5", id="fraction among the numbers"),
        pytest.param({"nums": [1, True, 3], "target": 2}, "True", id="truth value among the numbers"),
        pytest.param({"nums": [1, "2", 3], "target": 2}, "'2'", id="text among the numbers"),
        pytest.param({"nums": [1, 2], "target": 2.5}, "has target 2.5", id="target is a fraction"),
        pytest.param({"nums": [1, 2], "target": "many"}, "has target 'many'", id="target is text"),
        pytest.param({"nums": "1, two", "target": 3}, "'two'", id="text cell with words"),
        pytest.param({"nums": "__import__('os')", "target": 3}, "__import__", id="text cell with code"),
        pytest.param({"nums": "", "target": 3}, "has nums []", id="empty text cell"),
        pytest.param({"nums": "٣ ٤", "target": 7}, "has nums ['٣', '٤']", id="digits of another script"),
        pytest.param([1, 2, 3], "is [1, 2, 3], not an object", id="a bare list"),
        pytest.param("1 2 3", "is '1 2 3', not an object", id="a bare string"),
    ],
)
def test_bad_row_has_a_reason(row: Any, reason: str):
    with pytest.raises(ValueError) as caught:
        parse_row(row)
    assert reason in str(caught.value)


@pytest.mark.parametrize("nums", ["[44, 19, 35]", "[44 19 35]", "44,19,35", " 44 19  35 "])
def test_cells_of_csv_files(nums: str):
    assert parse_row({"nums": nums, "target": " 98 "}) == Puzzle((44, 19, 35), 98)


@pytest.mark.parametrize("cell", ["1" + " " * 50_000 + "x", "1 " * 50_000 + "x", "[" + "1," * 50_000, "9" * 50_000])
def test_long_cells_are_refused_in_proportionate_time_and_in_few_words(cell: str):
    started = time.process_time()
    with pytest.raises(ValueError) as caught:
        parse_row({"nums": cell, "target": cell})
    assert time.process_time() - started < 1
    assert len(str(caught.value)) < 120


# --------------------------------------------------------------------------------------------------------------------
# Sources
# --------------------------------------------------------------------------------------------------------------------


def test_every_kind_of_file_and_a_folder_of_them(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "a.json").write_text(f"\ufeff\n[{GOOD_LINE},\n {GOOD_LINE}]")  # pretty, with a byte order mark
    (tmp_path / "b.csv").write_text('nums,target\n"[5, 6]",30\n"7 8 9",24\n')
    (tmp_path / "c.jsonl").write_text(f"{GOOD_LINE}\r\n\n{GOOD_LINE}\r\n")
    (tmp_path / "d.json").write_text(f"{GOOD_LINE}\n{GOOD_LINE}\n")  # JSON lines under the name .json
    pq.write_table(pa.table({"id": ["x"], "target": [6], "nums": [[1, 2, 3]]}), tmp_path / "e.parquet")
    (tmp_path / "notes.txt").write_text("not data")
    found = [[puzzle.target for puzzle in load(file).train] for file in sorted(tmp_path.glob("*.[jcp]*"))]
    assert found == [[98, 98], [30, 24], [98, 98], [98, 98], [6]]
    assert [puzzle.target for puzzle in load(tmp_path).train] == [98, 98, 30, 24, 98, 98, 98, 98, 6]
    assert load(tmp_path / "e.parquet").train == [Puzzle((1, 2, 3), 6)]


def test_bad_rows_are_reported_with_index_and_reason_and_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([GOOD_LINE, '{"nums": [1, 2]}', "no json at all", "[" * 9999, GOOD_LINE, *"12345"]))
    with caplog.at_level(logging.WARNING):
        split = load(path)
    assert len(split.train) == 2
    assert split.dropped == 8
    (message,) = caplog.messages
    assert message.startswith(f"{path}: 8 bad rows dropped: row 1 has target None, not an integer; row 2 is 'no json ")
    assert message.count("; row") == 4  # five of them are named


def test_bad_row_is_fatal_when_the_recipe_says_so(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(GOOD_LINE + '\n{"nums": [1, 2]}')
    with pytest.raises(DataError, match=r"row 1 has target None.*on_bad_row"):
        load(tmp_path / "a.jsonl", on_bad_row="fail")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("a.jsonl", b"", "no usable row", id="empty file"),
        pytest.param("a.jsonl", b'{"x": 1}\n', r"no usable row .*\(row 0 has nums None", id="only bad rows"),
        pytest.param("a.json", b"[1, 2", "cannot read", id="broken JSON"),
        pytest.param("a.json", b"[" * 99_999, "cannot read", id="JSON nested too deeply"),
        pytest.param("a.parquet", b"not parquet", "cannot read", id="broken parquet"),
        pytest.param("a.jsonl", b"\xff\xfe\x00", "cannot read", id="not UTF-8"),
        pytest.param("a.csv", b'nums,target\n"' + b"1 " * 99_999, "cannot read", id="a quote never closed"),
        pytest.param("a.csv", b"numbers,goal\n1 2,3\n", "no usable row", id="other columns"),
        pytest.param("a.bin", b"\xff", "cannot read", id="another kind of file"),
    ],
)
def test_unusable_file(name: str, content: bytes, message: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("nums", "target", "message"),
    [
        pytest.param([[1, 2]], None, "target", id="a column is missing"),
        pytest.param("date64", [3], "cannot read", id="a date after all calendars"),
    ],
)
def test_unusable_parquet(nums: Any, target: Any, message: str, tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pa.array([2**60], type=pa.date64()) if nums == "date64" else nums
    columns = {"nums": column, "target": target}
    pq.write_table(pa.table({name: values for name, values in columns.items() if values}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=message):
        load(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ["nowhere.jsonl", "./nowhere", "~nobody-of-this-name/x", "/" + "a" * 300])
def test_what_looks_like_a_place_here_is_not_looked_for_on_the_hub(name: str):
    assert PuzzleArguments(name).is_local()
    with pytest.raises(DataError, match="does not exist"):
        load(name)


def test_what_is_local(tmp_path: Path):
    assert PuzzleArguments("generate").is_local()
    assert PuzzleArguments(str(tmp_path)).is_local()
    assert not PuzzleArguments("Jiayi-Pan/Countdown-Tasks-3to4").is_local()


def test_an_empty_folder(tmp_path: Path):
    with pytest.raises(DataError, match="no usable row in any"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param({"dataset_rows": 0}, "dataset_rows must be 1 or more to generate, got 0", id="generating none"),
        pytest.param({"dataset_rows": -1}, "dataset_rows must be 0 or more", id="negative rows"),
        pytest.param({"held_out_puzzles": -1}, "held_out_puzzles must be 0 or more", id="fewer than none held out"),
        pytest.param({"on_bad_row": "ignore"}, "on_bad_row must be drop or fail", id="a word that is no choice"),
        pytest.param({"number_counts": []}, r"number_counts must be counts in 2..6, got \[\]", id="no counts"),
        pytest.param({"number_counts": [1, 3]}, "number_counts", id="one number"),
        pytest.param({"number_counts": [3, 7]}, "number_counts", id="seven numbers"),
        pytest.param({"number_range": [0, 9]}, r"number_range must be \[low, high\] within 1..999", id="zero"),
        pytest.param({"number_range": [9, 1]}, "number_range", id="numbers the wrong way round"),
        pytest.param({"number_range": [1, 1000]}, "number_range", id="numbers whose products overflow"),
        pytest.param({"target_range": [100, 10]}, r"target_range must be \[low, high\]", id="the wrong way round"),
        pytest.param({"target_range": [10]}, "target_range", id="half a range"),
    ],
)
def test_arguments_that_cannot_work(changed: dict[str, Any], message: str):
    with pytest.raises(RecipeError, match=message):
        load("generate", **{"dataset_rows": 10, **changed})


# --------------------------------------------------------------------------------------------------------------------
# Draw and split
# --------------------------------------------------------------------------------------------------------------------


def test_draw_is_seeded_and_split_is_not(tmp_path: Path):
    path = written(tmp_path / "a.jsonl", generate_puzzles(2000, seed=1))
    first, again, other = (load(path, dataset_rows=1000, dataset_seed=s, held_out_puzzles=50) for s in (1, 1, 2))
    assert first == again
    assert first.train != other.train
    for split in (first, other):
        assert split.share == 0.05
        assert all(is_held_out(*puzzle, share=0.05) for puzzle in split.held_out)
        assert not any(is_held_out(*puzzle, share=0.05) for puzzle in split.train)


def test_permutations_and_repetitions_are_never_on_both_sides(tmp_path: Path):
    puzzles = generate_puzzles(500, seed=1)
    twisted = [Puzzle(p.nums[::-1], p.target) for p in puzzles]
    split = load(written(tmp_path / "a.jsonl", [*puzzles, *twisted]), held_out_puzzles=1000)
    train, held_out = ([puzzle_key(*p) for p in side] for side in (split.train, split.held_out))
    assert held_out
    assert not set(train) & set(held_out)
    assert len(held_out) == len(set(held_out))  # asked once each
    assert len(train) + 2 * len(held_out) == 1000


def test_run_json_describes_the_split():
    split = load("generate", dataset_rows=400, held_out_puzzles=20)
    assert split.describe() == {
        "share": 0.05,
        "train_puzzles": len(split.train),
        "held_out_puzzles": len(split.held_out),
        "dropped_rows": 0,
        "fingerprint": split.fingerprint(),
    }
    reordered = PuzzleSplit(split.train[::-1], split.held_out, split.share)
    assert reordered.fingerprint() != split.fingerprint()


@pytest.mark.parametrize(
    ("puzzle", "arguments", "could"),
    [
        pytest.param(Puzzle((44, 19, 35), 98), {}, True, id="as drawn"),
        pytest.param(Puzzle((1, 2, 3), 6), {}, False, id="held out"),
        pytest.param(Puzzle((44, 19, 135), 98), {}, False, id="a number out of range"),
        pytest.param(Puzzle((44, 54), 98), {}, False, id="another number count"),
        pytest.param(Puzzle((44, 54), 98), {"dataset_id_or_path": "x/y"}, True, id="of a data set nothing is known"),
    ],
)
def test_what_a_run_could_train_on(puzzle: Puzzle, arguments: dict[str, Any], could: bool):
    made = PuzzleArguments(**{"dataset_id_or_path": "generate", **arguments})
    assert made.could_train_on({"share": 0.05}, puzzle) is could
