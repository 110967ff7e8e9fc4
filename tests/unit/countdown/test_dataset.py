"""Reading puzzles: every source, and every way in which a row can be wrong."""

from __future__ import annotations

import gzip
import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from mini_r1.common import DataError, RecipeError
from mini_r1.countdown.dataset import PuzzleArguments, load_puzzles
from mini_r1.countdown.generator import generate_puzzles
from mini_r1.countdown.puzzle import Puzzle, is_held_out, parse_row, puzzle_key
from mini_r1.task import Split

GOOD = {"nums": [44, 19, 35], "target": 98}
GOOD_LINE = json.dumps(GOOD)


def load(path: Path | str, **arguments: Any) -> Split:
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
        pytest.param({"nums": [1, 2]}, "has the columns ['nums'], not nums and target", id="no target"),
        pytest.param({"target": 3}, "has the columns ['target'], not nums and target", id="no nums"),
        pytest.param({"nums": [1, 2], "target": None}, "has target None, not an integer", id="target is null"),
        pytest.param({"nums": None, "target": 3}, "has nums None, not 2 to 6", id="nums is null"),
        pytest.param({"nums": [1, 10**18], "target": 2}, "below 1e18", id="a number beyond 64 bits, nearly"),
        pytest.param({"nums": [1, 2], "target": -(10**30)}, "at most 18 digits", id="target beyond 64 bits"),
        pytest.param({"nums": [1, 2], "target": 1e300}, "at most 18 digits", id="whole float beyond 64 bits"),
        pytest.param({"nums": [1, 2], "target": float("inf")}, "has target inf", id="target is infinite"),
        pytest.param({"reward_model": "1 2 3", "prompt": "x"}, "['reward_model', 'prompt']", id="verl without truth"),
        pytest.param({"reward_model": {"ground_truth": "4+5"}}, "['reward_model']", id="verl with a text for truth"),
        pytest.param({"nums": 12, "target": 3}, "has nums 12", id="nums is a number"),
        pytest.param({"nums": [12], "target": 12}, "has nums [12]", id="one number"),
        pytest.param({"nums": [1] * 7, "target": 7}, "has nums [1, 1, 1, 1, 1, 1, 1]", id="seven numbers"),
        pytest.param({"nums": [1, -2, 3], "target": 2}, "has nums [1, -2, 3]", id="negative number"),
        pytest.param({"nums": [1, 2.5, 3], "target": 2}, "2.5", id="fraction among the numbers"),
        pytest.param({"nums": [1, True, 3], "target": 2}, "True", id="truth value among the numbers"),
        pytest.param({"nums": [1, "two", 3], "target": 2}, "'two'", id="text among the numbers"),
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


TRUTH = {"numbers": [44, 19, 35], "target": 98}


@pytest.mark.parametrize(
    "row",
    [
        pytest.param({"nums": [44.0, 19.0, 35.0], "target": 98.0}, id="whole floats"),
        pytest.param({"nums": "44.0 19.0 35.0", "target": "98.0"}, id="whole floats in cells"),
        pytest.param({"nums": ["44", "19", "35"], "target": "98"}, id="integers as text"),
        pytest.param({**TRUTH, "id": 7}, id="numbers for nums"),
        pytest.param({"reward_model": {"style": "rule", "ground_truth": TRUTH}, "extra_info": {"index": 0}}, id="verl"),
        pytest.param({"reward_model": {"ground_truth": None}, "extra_info": TRUTH}, id="verl, in extra_info"),
        pytest.param({"target": 98, "reward_model": {"ground_truth": TRUTH}}, id="verl, one column of its own"),
        pytest.param({"nums": "44 19 35", "target": "98", None: ["", " "]}, id="commas at the end of a line"),
    ],
)
def test_what_plainly_is_the_same_row(row: dict[Any, Any]):
    assert parse_row(row) == Puzzle((44, 19, 35), 98)


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


def parquet(path: Path, *rows: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)


def targets(path: Path, **arguments: Any) -> list[int]:
    return [puzzle.target for puzzle in load(path, **arguments).train]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        pytest.param("a.json", f"\ufeff\n[{GOOD_LINE},\n {GOOD_LINE}]", [98, 98], id="pretty, a byte order mark"),
        pytest.param("a.json", f"{GOOD_LINE}\n{GOOD_LINE}\n", [98, 98], id="JSON lines under the name .json"),
        pytest.param("a.jsonl", f"{GOOD_LINE}\r\n\n{GOOD_LINE}\r\n", [98, 98], id="JSON lines from Windows"),
        pytest.param("a.csv", 'nums,target\n"[5, 6]",30\n"7 8 9",24\n', [30, 24], id="CSV"),
        pytest.param("a.tsv", "nums\ttarget\n[5, 6]\t30\n7 8 9\t24\n", [30, 24], id="TSV"),
        pytest.param("a.csv", "target,nums\n39,13 30,90\n30,5 6\n", [30], id="CSV with a surplus cell"),
        pytest.param("a.csv", "nums,target\n1 2,3.0\n1 2,\n", [3], id="CSV as pandas writes it"),
        pytest.param("a.jsonl", f'{GOOD_LINE}\n{{"nums": [1, 2], "target": 1{"0" * 30}}}', [98], id="beyond 64 bits"),
    ],
)
def test_every_kind_of_text_file_plain_and_compressed(name: str, content: str, expected: list[int], tmp_path: Path):
    (tmp_path / name).write_text(content, newline="")
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
    assert targets(tmp_path / name) == targets(tmp_path / f"{name}.gz") == expected


def test_parquet_and_arrow_files_with_other_columns_and_nested_ones(tmp_path: Path):
    from datasets import Dataset

    verl = {"prompt": [{"role": "user", "content": "?"}], "reward_model": {"style": "rule", "ground_truth": TRUTH}}
    parquet(tmp_path / "own.parquet", {"id": "x", "target": 6, "nums": [1, 2, 3]})
    parquet(tmp_path / "verl.parquet", {**verl, "extra_info": {"index": 0}})
    Dataset.from_list([GOOD]).save_to_disk(tmp_path / "saved")
    assert load(tmp_path / "own.parquet").train == [Puzzle((1, 2, 3), 6)]
    assert load(tmp_path / "verl.parquet").train == [Puzzle((44, 19, 35), 98)]
    assert targets(tmp_path / "saved" / "data-00000-of-00001.arrow") == [98]


CARD = """---
configs:
- config_name: default
  data_files: [{split: train, path: b.jsonl}, {split: hard, path: a.jsonl}]
---
Puzzles"""


SHARDS = ["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet", "state.json"]


@pytest.mark.parametrize(
    ("files", "split", "read"),
    [
        pytest.param(["train.parquet", "test.parquet"], "train", [0], id="by name"),
        pytest.param(["train.parquet", "test.parquet"], "test", [1], id="the other"),
        pytest.param(["train/x.jsonl", "test/x.jsonl"], "test", [1], id="by folder"),
        pytest.param(["a.csv.gz", "b.csv.gz"], "train", [0, 1], id="no names: all are train"),
        pytest.param(["a.jsonl", "b.jsonl", "README.md"], "train", [1], id="by the card"),
        pytest.param(["a.jsonl", "b.jsonl", "README.md"], "hard", [0], id="the card's own name"),
        pytest.param(["a.parquet", "stats.json", "dataset_infos.json"], "train", [0], id="metadata beside parquet"),
        pytest.param(SHARDS, "train", [0], id="as the Hub holds them"),
    ],
)
def test_a_folder_is_read_as_datasets_reads_it(
    files: list[str], split: str, read: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Each file of puzzles holds one, whose target is the file's place in the list."""
    folder = tmp_path / "test"  # a split's name above the data means nothing
    for target, name in enumerate(files):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".parquet":
            parquet(file, {"nums": [1, 2], "target": target})
        elif file.suffix == ".gz":
            file.write_bytes(gzip.compress(f"nums,target\n1 2,{target}\n".encode()))
        else:
            row = json.dumps({"nums": [1, 2], "target": target})
            file.write_text({".md": CARD, ".json": "{}"}.get(file.suffix, row))
    with caplog.at_level(logging.INFO):
        assert targets(folder, dataset_split=split) == read
    names = ", ".join(Path(files[one]).name for one in read)
    assert f"{folder}, split {split} ({names}): {len(read)} rows" in caplog.messages


def test_what_datasets_saved_to_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    from datasets import Dataset, DatasetDict

    puzzles = {split: Dataset.from_list([{"nums": [1, 2], "target": at}]) for at, split in enumerate(("train", "test"))}
    DatasetDict(puzzles).save_to_disk(tmp_path / "both")
    puzzles["test"].with_format("numpy").save_to_disk(tmp_path / "one")
    with caplog.at_level(logging.INFO):
        assert targets(tmp_path / "both") == [0]
        assert targets(tmp_path / "both", dataset_split="test") == targets(tmp_path / "one") == [1]
    assert [message for message in caplog.messages if message.startswith(str(tmp_path))] == [
        f"{tmp_path / 'both'}, split train: 1 rows",
        f"{tmp_path / 'both'}, split test: 1 rows",
        f"{tmp_path / 'one'}: 1 rows",
    ]
    with pytest.raises(DataError, match=r"dataset_split: .*both has no split 'hard', only train, test"):
        load(tmp_path / "both", dataset_split="hard")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        pytest.param({}, "cannot read .* as a data set", id="nothing"),
        pytest.param({"notes.bin": "x"}, "cannot read .* as a data set", id="no data"),
        pytest.param({"test.jsonl": GOOD_LINE}, "dataset_split: .* has no split 'train', only test", id="no train"),
        pytest.param({"train.csv": "", "test.jsonl": ""}, "the same data file format", id="two kinds"),
        pytest.param({"a.jsonl": GOOD_LINE, "README.md": "---\nconfigs: {{\n---\n"}, "cannot read", id="broken card"),
        pytest.param({"a.jsonl": GOOD_LINE, "dataset_infos.json": '{"x": 3}'}, "cannot read", id="odd metadata"),
        pytest.param({"train.parquet": POINTER}, r"train.parquet .*run `git lfs pull`", id="LFS pointer"),
        pytest.param(
            {"state.json": "{}", "dataset_info.json": "{}", "a.arrow": POINTER}, "git lfs", id="saved pointer"
        ),
        pytest.param({"state.json": "{}", "dataset_info.json": "{}"}, "cannot read", id="saved, nothing in it"),
        pytest.param({"dataset_dict.json": "no json"}, "cannot read", id="broken, saved to disk"),
    ],
)
def test_unusable_folder(files: dict[str, str], message: str, tmp_path: Path):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_bad_rows_are_reported_with_index_and_reason_and_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([GOOD_LINE, '{"nums": [1, 2]}', "no json at all", "[" * 9999, GOOD_LINE, *"12345"]))
    with caplog.at_level(logging.WARNING):
        split = load(path)
    assert len(split.train) == 2
    assert split.dropped == 8
    (message,) = caplog.messages
    assert message.startswith(
        f"{path}: 8 bad rows dropped: row 1 has the columns ['nums'], not nums and target; row 2 "
    )
    assert message.count("; row") == 4  # five of them are named


def test_bad_row_is_fatal_when_the_recipe_says_so(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(GOOD_LINE + '\n{"nums": [1, 2]}')
    with pytest.raises(DataError, match=r"row 1 has the columns.*on_bad_row"):
        load(tmp_path / "a.jsonl", on_bad_row="fail")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("a.jsonl", b"", "no usable row", id="empty file"),
        pytest.param("a.jsonl", b'{"x": 1}\n', r"no usable row .*the columns \['x'\], not", id="only bad rows"),
        pytest.param("a.json", b"[1, 2", "cannot read", id="broken JSON"),
        pytest.param("a.json", b"[" * 99_999, "cannot read", id="JSON nested too deeply"),
        pytest.param("a.parquet", b"not parquet", "cannot read", id="broken parquet"),
        pytest.param("a.jsonl", b"\xff\xfe\x00", "cannot read", id="not UTF-8"),
        pytest.param("a.csv", b'nums,target\n"' + b"1 " * 99_999, "cannot read", id="a quote never closed"),
        pytest.param("a.csv", b"numbers,goal\n1 2,3\n", r"columns \['numbers', 'goal'\]", id="other columns"),
        pytest.param("a.csv", b"nums,target\n1,2,3\n", "has '3' behind the header's last", id="CSV without quotes"),
        pytest.param("a.csv", POINTER.encode(), "run `git lfs pull`", id="Git LFS pointer"),
        pytest.param("a.csv.gz", b"nums,target\n1 2,3\n", "cannot read", id="not compressed"),
        pytest.param("a.csv.gz", gzip.compress(b"nums,target\n1 2,3\n")[:-9], "cannot read", id="compressed, cut off"),
        pytest.param("a.csv.gz", gzip.compress(b"")[:10] + b"\xff" * 9, "cannot read", id="compressed, damaged"),
        pytest.param("a.arrow", b"not arrow", "cannot read", id="broken Arrow"),
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


def test_number_counts_take_turns_among_the_held_out_puzzles():
    split = load("generate", dataset_rows=4000, held_out_puzzles=300, number_counts=[3, 4])
    counts = [len(puzzle.nums) for puzzle in split.held_out]
    both = 2 * min(counts.count(3), counts.count(4))
    assert both > 200
    assert set(zip(counts[:both:2], counts[1:both:2], strict=True)) in ({(3, 4)}, {(4, 3)})


def test_run_json_describes_the_split():
    split = load("generate", dataset_rows=400, held_out_puzzles=20)
    assert split.describe() == {
        "share": 0.05,
        "train_puzzles": len(split.train),
        "held_out_puzzles": len(split.held_out),
        "dropped_rows": 0,
        "fingerprint": split.fingerprint(),
    }
    reordered = Split(split.train[::-1], split.held_out, split.share)
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
