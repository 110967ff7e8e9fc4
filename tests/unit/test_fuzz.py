"""What reads foreign text and files, on inputs that nobody would write: properties, found faults, short fuzzing."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fuzz
from conftest import ROOT, program_environment
from mini_r1.common import DataError, RecipeError
from mini_r1.countdown import dataset as puzzle_data
from mini_r1.countdown.puzzle import Puzzle
from mini_r1.recipe import parsing as recipe
from mini_r1.report import page as report_page
from mini_r1.run_folder import checkpoints
from mini_r1.run_folder import record as run_record
from mini_r1.run_folder.samples import Sample

any_text = st.text(st.characters(exclude_categories=()))


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> Iterator[None]:
    yield
    shutil.rmtree(fuzz.workplace())
    fuzz.workplace.cache_clear()


# --------------------------------------------------------------------------------------------------------------------
# Properties
# --------------------------------------------------------------------------------------------------------------------


class HypothesisSource:
    """The choices of an input, drawn and shrunk by hypothesis instead of libFuzzer."""

    def __init__(self, data: st.DataObject):
        self._draw = data.draw

    def number(self, low: int, high: int) -> int:
        return self._draw(st.integers(low, high))

    def text(self, most: int) -> str:
        return self._draw(any_text.map(lambda text: text[:most]))

    def raw(self, most: int) -> bytes:
        return self._draw(st.binary(max_size=most))


@pytest.mark.parametrize("name", [*(fuzz.TARGETS.keys() - {"recipe"}), pytest.param("recipe", marks=pytest.mark.slow)])
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_promises_hold_on_any_input(name: str, data: st.DataObject):
    fuzz.TARGETS[name](HypothesisSource(data))


numbers = st.lists(st.integers(0, 10**15), min_size=2, max_size=6)


@given(numbers, st.integers(-(10**17), 10**17), st.sampled_from((", ", " ", ",", " , ")), st.booleans())
def test_a_cell_is_read_as_the_list_that_it_spells(nums: list[int], target: int, between: str, brackets: bool):
    cell = between.join(map(str, nums))
    row = {"nums": f"[{cell}]" if brackets else cell, "target": f" {target} "}
    assert (
        puzzle_data.parse_row(row) == puzzle_data.parse_row({"nums": nums, "target": target}) == (tuple(nums), target)
    )


@given(st.lists(st.one_of(st.builds(lambda n, t: {"nums": n, "target": t}, numbers, st.integers()), st.integers())))
def test_every_row_is_a_puzzle_or_dropped(rows: list[Any]):
    good = [Puzzle(tuple(row["nums"]), row["target"]) for row in rows if isinstance(row, dict)]
    try:
        found = puzzle_data.validate_rows(iter(rows), on_bad_row="drop", source="here")
    except DataError:
        assert not good
    else:
        assert found == (good, len(rows) - len(good))


plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.dates()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)),
    max_leaves=20,
)


@settings(deadline=None)
@given(values=st.dictionaries(st.text(), plain))
def test_a_recipe_is_read_as_it_was_written(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_bytes(yaml.safe_dump(values).encode())
    assert recipe.read_yaml(path) == values


samples = st.builds(
    Sample, step=st.integers(), split=st.sampled_from(("train", "held_out")),
    nums=st.lists(st.integers(), min_size=1, max_size=6), target=st.integers(), response=st.text(),
    reason=st.text(), value=st.none() | st.text(), format_reward=st.sampled_from((0.0, 1.0)),
    equation_reward=st.sampled_from((0.0, 1.0)), completion_tokens=st.integers(0), rank=st.integers(0, 3),
    index=st.integers(0, 99),
)  # fmt: skip


@settings(deadline=None)
@given(entries=st.lists(samples | st.sampled_from(("no sample", "{}", "[" * 5000, '{"step": 1', "\x00"))))
def test_samples_are_read_back_from_among_broken_lines(
    entries: list[Any], tmp_path_factory: pytest.TempPathFactory
):  # fmt: skip
    folder = tmp_path_factory.mktemp("samples")
    written = [entry for entry in entries if isinstance(entry, Sample)]
    lines = (json.dumps(asdict(entry)) if entry in written else entry for entry in entries)
    (folder / "completion_samples.jsonl").write_text("".join(f"{line}\n" for line in lines))
    found, skipped = run_record.read_samples(folder)
    assert skipped == len(entries) - len(written)
    assert all(sample in written for sample in found)
    assert {(s.split, s.step, s.response) for s in found} == {(s.split, s.step, s.response) for s in written}


# --------------------------------------------------------------------------------------------------------------------
# Faults that fuzzing found
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("max_steps: !!bool 3", id="a tag on something else"),
        pytest.param("max_steps: !!int ''", id="a number without digits"),
        pytest.param("output_dir: !!timestamp x", id="a time that is none"),
        pytest.param("learning_rate: " + "1" * 400, id="a number beyond every float"),
        pytest.param("max_steps: &a [*a]", id="a list that contains itself"),
        pytest.param("env: {'': 1}", id="a variable without a name"),
        pytest.param("env: {'A=B': 1}", id="a variable's name with an equals sign"),
        pytest.param('env: {A: "\\0"}', id="a variable with a null character"),
        pytest.param('env: {A: "\\ud800"}', id="a variable with half a surrogate pair"),
    ],
)
def test_recipes_that_are_refused(text: str, tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError), fuzz.same_environment():
        recipe.read_values(fuzz.recipe_types(), ["--config", str(path)])


@pytest.mark.slow
@pytest.mark.parametrize("value", ["!!bool 3", "1" * 5000, "[" * 600, "2001-99-99", "&a [*a]"])
def test_command_line_values_that_are_refused(value: str):
    with pytest.raises(RecipeError, match="--max_steps"):
        recipe.read_values(fuzz.recipe_types(), ["--max_steps", value])


@pytest.mark.parametrize("cell", ["1" + " " * 50_000 + "x", " " * 50_000, "1 " * 50_000 + "x", "[" + "1," * 50_000])
def test_long_cells_take_no_longer_than_reading_them(cell: str):
    started = time.process_time()
    with pytest.raises(ValueError):
        puzzle_data.parse_row({"nums": cell, "target": 3})
    assert time.process_time() - started < fuzz.CPU_SECONDS


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x.csv", "~\0", "a" * 300 + ".csv", "./\0"])
def test_places_that_cannot_be(name: str):
    assert puzzle_data.is_local(name)
    with pytest.raises(DataError, match="does not exist"):
        puzzle_data.load_puzzles(name, rows=0, seed=0, held_out_puzzles=0)
    with contextlib.suppress(RecipeError):  # or taken for a name on the Hub
        checkpoints.resolve(name)


@pytest.mark.parametrize(("kind", "value"), [
    pytest.param("duration", 2**60, id="a span of ages"),
    pytest.param("date64", 2**60, id="a date after all calendars"),
    pytest.param("timestamp", 0, id="a time zone that is nowhere"),
])  # fmt: skip
def test_parquet_columns_that_python_cannot_hold(kind: str, value: int, tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = {"duration": pa.duration("s"), "date64": pa.date64(), "timestamp": pa.timestamp("us", tz="Nowhere/City")}
    table = pa.table({"nums": [[1, 2]], "target": [3], "x": pa.array([value], type=column[kind])})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="as parquet"):
        puzzle_data.load_puzzles(str(tmp_path), rows=0, seed=0, held_out_puzzles=0)


def run_folder(folder: Path, files: dict[str, Any], **description: Any) -> Path:
    """A run folder; of the files, text is written as it is, None makes a folder, anything else is written as JSON."""
    for name, content in {"run.json": {**fuzz.RUN, **description}, **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


RATE = "eval_rewards/equation_reward_func/mean"


@pytest.mark.parametrize(("files", "description"), [
    pytest.param({}, {"command": 3.0}, id="a command that is no list"),
    pytest.param({}, {"hardware": 3, "versions": [1], "split": "x"}, id="parts that are no mappings"),
    pytest.param({}, {"recipe": [1]}, id="a recipe that is a list"),
    pytest.param({}, {"recipe": {"eval_puzzles": 10**400}, "split": {"share": None}}, id="sizes beyond every float"),
    pytest.param({}, {"name": "\ud800"}, id="half a surrogate pair in the name"),
    pytest.param({"trainer_state.json": {"log_history": [{"step": 1, RATE: 1.5}]}}, {}, id="a rate above 1"),
    pytest.param({"trainer_state.json": {"log_history": [{"step": 10**400, RATE: 0.5}]}}, {}, id="an endless step"),
    pytest.param({"trainer_state.json": {"log_history": [{"step": 1, "thinking/attempts": 10**308}]}}, {},
                 id="a whole number at the end of the floats"),
    pytest.param({"trainer_state.json": "[1]", "config.json": {}, "model.safetensors": ""}, {},
                 id="a state that is a list"),
    pytest.param({"held_out.json": [{**fuzz.POINT, "puzzles": "x"}],
                  "trainer_state.json": {"log_history": [{"step": 1, RATE: 0.5}]}}, {}, id="puzzles counted in text"),
    pytest.param({"held_out.json": [{**fuzz.POINT, "pass@1": 10**308}]}, {}, id="a success beyond measure"),
    pytest.param({"samples/a.jsonl": json.dumps({**fuzz.SAMPLE, "format_reward": 10**400})}, {},
                 id="an endless reward"),
    pytest.param({"samples/a.jsonl": json.dumps(fuzz.SAMPLE)},
                 {"recipe": {"sample_share": 10**400, "success_sample_share": 0.1}}, id="an endless share"),
    pytest.param({"samples/a.jsonl": None}, {}, id="a folder for a sample file"),
    pytest.param({"tensorboard/events.out.tfevents.1": None}, {}, id="a folder for an event file"),
    pytest.param({"checkpoint-²/trainer_state.json": "{}"}, {}, id="a checkpoint with a number that is none"),
])  # fmt: skip
def test_run_folders_that_are_broken_make_a_page_all_the_same(
    files: dict[str, Any], description: dict[str, Any], tmp_path: Path
):
    folder = run_folder(tmp_path, files, **description)
    run = run_record.read_run(folder)
    fuzz.check_run(run)
    assert report_page.build_page([run], report_page.make_charts([run])).encode("utf-8")
    try:
        found = checkpoints.resolve(str(folder))
    except RecipeError:
        return
    for checkpoint in found:
        assert checkpoint.may_have_trained_on(Puzzle((44, 19, 35), 98)) in (True, False)


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param({"thinking/attempts": -1e308}, id="a value at the end of the floats"),
        pytest.param({"thinking/attempts": -1e100, "reward": 1e100}, id="values that are just let through"),
        pytest.param({"step": -1e100, "reward": 1.0}, id="a step that is just let through"),
        pytest.param({"thinking/\ud800": 1.0}, id="half a surrogate pair in a metric"),
        pytest.param({"rewards/$\\frac$/mean": 1.0}, id="broken mathematics in a metric"),
    ],
)
def test_odd_values_and_names_are_drawn(entry: dict[str, Any], tmp_path: Path):
    state = {"log_history": [{"step": 1, **entry}, {"step": 5, "reward": 0.5}]}
    run = run_record.read_run(run_folder(tmp_path, {"trainer_state.json": state}))
    report_page.draw_curves(report_page.make_charts([run]), [run.name], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size


def test_a_run_description_nested_beyond_reading_is_refused(tmp_path: Path):
    folder = run_folder(tmp_path, {"run.json": "[" * 100_000, "config.json": {}, "model.safetensors": ""})
    with pytest.raises(RecipeError, match=r"run\.json"):
        run_record.read_run(folder)
    assert [checkpoint.run for checkpoint in checkpoints.resolve(str(folder))] == [None]


def test_a_broken_split_rules_no_puzzle_out():
    for run in ({"split": {"share": 7.0}}, {"split": {"share": None}}, {"split": [1]}, {"recipe": [1]}):
        assert checkpoints.Checkpoint("x", "x", run=run).may_have_trained_on(Puzzle((44, 19, 35), 98))


# --------------------------------------------------------------------------------------------------------------------
# The fuzzing program
# --------------------------------------------------------------------------------------------------------------------


def raise_something() -> None:
    raise KeyError("found")


def take_long() -> None:
    started = time.process_time()
    while time.process_time() - started < 1.2 * fuzz.CPU_SECONDS:
        pass


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (raise_something, "KeyError: 'found'"),
        (lambda: fuzz.promise(False, "holds"), "Violation: holds"),
        (take_long, "s of CPU time"),
    ],
    ids=["an exception", "a broken promise", "too slow"],
)
def test_findings_are_kept_once_each(
    behaviour: Callable[[], None], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("atheris")
    monkeypatch.setitem(fuzz.TARGETS, "verifier", lambda source: behaviour())
    examiner = fuzz.Examiner("verifier", tmp_path)
    examiner(b"input")
    examiner(b"another")
    assert (tmp_path / "verifier-1.bin").read_bytes() == b"input"
    assert said in (tmp_path / "verifier-1.txt").read_text()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_a_short_fuzzing_run_finds_nothing(name: str):
    pytest.importorskip("atheris")
    command = [sys.executable, "tests/tools/fuzz.py", name, "--seconds", "4", "--seed", "7"]
    ended = subprocess.run(command, cwd=ROOT, env=program_environment(), capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    said = re.fullmatch(rf"{name}: (\d+) executions in \d+ s, (\d+) edges, \d+ features, 0 findings\n", ended.stdout)
    assert said, ended.stdout
    assert int(said[1]) > 100
    assert int(said[2]) > 0
