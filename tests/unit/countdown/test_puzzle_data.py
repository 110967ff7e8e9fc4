"""Reading puzzles: every source, and every way in which a row can be wrong."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from mini_r1.common import DataError
from mini_r1.countdown.dataset import load_puzzles, parse_row
from mini_r1.countdown.generator import generate_puzzles, write_puzzles
from mini_r1.countdown.puzzle import Puzzle, is_held_out, puzzle_key

GOOD = {"nums": [44, 19, 35], "target": 98}


def load(path: Path | str, **arguments: Any) -> Any:
    return load_puzzles(str(path), **{"rows": 0, "seed": 0, "held_out_puzzles": 0, **arguments})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        pytest.param({"nums": [1, 2]}, "has no target", id="no target"),
        pytest.param({"target": 3}, "has no nums", id="no nums"),
        pytest.param({"nums": None, "target": 3}, "has no nums", id="empty cell"),
        pytest.param({"nums": 12, "target": 3}, "not a list", id="nums is a number"),
        pytest.param({"nums": [12], "target": 12}, "1 numbers", id="one number"),
        pytest.param({"nums": [1] * 7, "target": 7}, "7 numbers", id="seven numbers"),
        pytest.param({"nums": [1, -2, 3], "target": 2}, "-2", id="negative number"),
        pytest.param({"nums": [1, 2.5, 3], "target": 2}, "2.5", id="fraction among the numbers"),
        pytest.param({"nums": [1, True, 3], "target": 2}, "True", id="truth value among the numbers"),
        pytest.param({"nums": [1, "2", 3], "target": 2}, "'2'", id="text among the numbers"),
        pytest.param({"nums": [1, 2], "target": 2.5}, "2.5", id="target is a fraction"),
        pytest.param({"nums": [1, 2], "target": "many"}, "'many'", id="target is text"),
        pytest.param({"nums": "1, two", "target": 3}, "not a list of integers", id="text cell with words"),
        pytest.param({"nums": "__import__('os')", "target": 3}, "not a list of integers", id="text cell with code"),
        pytest.param([1, 2, 3], "not an object", id="a bare list"),
        pytest.param("1 2 3", "not an object", id="a bare string"),
    ],
)
def test_bad_row_has_a_reason(row: Any, reason: str):
    with pytest.raises(ValueError) as caught:
        parse_row(row)
    assert reason in str(caught.value)


@pytest.mark.parametrize("nums", ["[44, 19, 35]", "[44 19 35]", "44,19,35", " 44 19  35 "])
def test_cells_of_csv_files(nums: str):
    assert parse_row({"nums": nums, "target": " 98 "}) == Puzzle((44, 19, 35), 98)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_written_files_are_read_back(suffix: str, tmp_path: Path):
    puzzles = generate_puzzles(50, seed=3)
    write_puzzles(puzzles, tmp_path / f"puzzles{suffix}")
    assert load(tmp_path / f"puzzles{suffix}").train == puzzles


def test_json_csv_and_a_folder_of_both(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps([GOOD, {"nums": [1, 2, 3], "target": 6}]))
    (tmp_path / "b.csv").write_text('nums,target\n"[5, 6]",30\n"7 8 9",24\n')
    (tmp_path / "notes.txt").write_text("not data")
    assert [p.target for p in load(tmp_path / "a.json").train] == [98, 6]
    assert [p.target for p in load(tmp_path / "b.csv").train] == [30, 24]
    assert [p.target for p in load(tmp_path).train] == [98, 6, 30, 24]


def test_json_lines_under_the_name_json(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD) + "\n")
    assert len(load(tmp_path / "a.json").train) == 2


def test_bad_rows_are_reported_with_index_and_reason_and_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([json.dumps(GOOD), '{"nums": [1, 2]}', "no json at all", json.dumps(GOOD)]))
    with caplog.at_level(logging.WARNING):
        split = load(path)
    assert len(split.train) == 2
    assert split.dropped == 2
    assert "row 1 has no target" in caplog.text
    assert "row 2 is not an object" in caplog.text


def test_bad_row_is_fatal_when_the_recipe_says_so(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + '{"nums": [1, 2]}')
    with pytest.raises(DataError, match=r"row 1 has no target .*on_bad_row"):
        load(path, on_bad_row="fail")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("a.jsonl", b"", "no usable row", id="empty file"),
        pytest.param("a.jsonl", b'{"x": 1}\n', "no usable row", id="only bad rows"),
        pytest.param("a.json", b'{"nums": [1, 2], "target": 3}', "JSON list", id="one object instead of a list"),
        pytest.param("a.json", b"[1, 2", "cannot read", id="broken JSON"),
        pytest.param("a.parquet", b"not parquet", "cannot read", id="broken parquet"),
        pytest.param("a.jsonl", b"\xff\xfe\x00", "cannot read", id="not UTF-8"),
        pytest.param("a.txt", b"1 2 3", "holds no", id="unknown suffix"),
    ],
)
def test_unusable_file(name: str, content: bytes, message: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path / name)


def test_missing_file_and_empty_folder(tmp_path: Path):
    with pytest.raises(DataError, match="does not exist"):
        load(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match="holds no"):
        load(tmp_path)


def test_generate_needs_a_number_of_rows_and_sane_ranges():
    with pytest.raises(DataError, match="dataset_rows"):
        load("generate")
    with pytest.raises(DataError, match="number_counts"):
        load("generate", rows=10, number_counts=[1])


def test_draw_is_seeded_and_split_is_not(tmp_path: Path):
    puzzles = generate_puzzles(2000, seed=1)
    write_puzzles(puzzles, tmp_path / "a.jsonl")
    first, again, other = (load(tmp_path / "a.jsonl", rows=1000, seed=s, held_out_puzzles=50) for s in (1, 1, 2))
    assert first == again
    assert first.train != other.train
    for split in (first, other):
        assert split.share == 0.05
        assert all(is_held_out(*puzzle, share=0.05) for puzzle in split.held_out)
        assert not any(is_held_out(*puzzle, share=0.05) for puzzle in split.train)


def test_permutations_and_repetitions_never_stand_on_both_sides(tmp_path: Path):
    puzzles = generate_puzzles(500, seed=1)
    twisted = [Puzzle(p.nums[::-1], p.target) for p in puzzles]
    write_puzzles([*puzzles, *twisted], tmp_path / "a.jsonl")
    split = load(tmp_path / "a.jsonl", held_out_puzzles=1000)
    train, held_out = ([puzzle_key(*p) for p in side] for side in (split.train, split.held_out))
    assert held_out
    assert not set(train) & set(held_out)
    assert len(held_out) == len(set(held_out))  # asked once each
    assert len(train) + 2 * len(held_out) == 1000
