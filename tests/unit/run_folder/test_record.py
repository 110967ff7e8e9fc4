"""The reader of run folders: logs, evaluations and samples of runs that are finished, running or broken."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mini_r1.common import RunError
from mini_r1.countdown import TASK
from mini_r1.run_folder.record import read_run, read_tensorboard
from small_run import make_run, sample

# ---- logs ----------------------------------------------------------------------------------------------------------


def test_curves_and_held_out_points_are_read(tmp_path: Path):
    run = read_run(make_run(tmp_path / "run", [sample(1)]))
    assert (run.finished, run.step) == (True, 10)
    assert run.points("rewards/equation_reward_func/mean")[-1] == (10, 1.0)
    (point,) = run.held_out
    assert (point["step"], point["pass@1"], point["puzzles"], point["mean_tokens"]) == (10, 0.8, 100, 50.0)
    assert point["low"] < 0.8 < point["high"]
    assert not run.points("kl")  # not a number is nothing to draw


def test_the_finished_run_s_own_evaluations_count_before_the_log(tmp_path: Path):
    folder = make_run(tmp_path / "run", [])
    point = {"step": 10, "pass@1": 0.75, "low": 0.7, "high": 0.8, "puzzles": 300, "mean_tokens": 9.0}
    (folder / "held_out.json").write_text(json.dumps([{**point, "step": 5}, point]))
    assert read_run(folder).held_out == [{**point, "step": 5}, point]


def test_a_running_run_is_read_from_its_newest_checkpoint_and_its_age_is_that_of_what_it_writes(tmp_path: Path):
    folder = make_run(tmp_path / "run", [sample(1)], finished=False)
    for path in folder.rglob("*.json*"):
        os.utime(path, (1000, 1000))
    os.utime(folder / "checkpoint-10", (6000, 6000))
    (folder / "evaluation").mkdir()
    for later in ("report.html", "report.png", "evaluation/results.json"):  # made of the run, not by it
        (folder / later).write_text("{}")
    run = read_run(folder)
    assert (run.finished, run.step, run.last_written) == (False, 10, 6000)


def write_events(folder: Path, number: int, values: dict[int, float], resumed_at: int | None = None) -> None:
    """One event file as the trainer's TensorBoard callback leaves it; `number` puts the files in order."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    folder.mkdir(exist_ok=True)
    with (folder / f"events.out.tfevents.{number}.host").open("wb") as stream:
        writer = RecordWriter(stream)
        writer.write(Event(file_version="brain.Event:2").SerializeToString())
        if resumed_at is not None:
            start = SessionLog(status=SessionLog.START)
            writer.write(Event(step=resumed_at + 1, session_log=start).SerializeToString())
        for step, value in values.items():
            for tag in ("train/reward", "eval/reward", "other/reward"):
                summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
                writer.write(Event(step=step, wall_time=float(step), summary=summary).SerializeToString())


def test_a_resumed_run_is_read_from_tensorboard_without_the_steps_that_it_repeated(tmp_path: Path):
    write_events(tmp_path, 1, {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0})
    write_events(tmp_path, 2, {3: 30.0, 5: float("nan")}, resumed_at=2)
    history = read_tensorboard(tmp_path)
    assert history == [{"step": step, "reward": v, "eval_reward": v} for step, v in ((1, 1.0), (2, 2.0), (3, 30.0))]


def test_an_event_file_that_a_kill_cut_off_loses_only_its_last_record(tmp_path: Path):
    write_events(tmp_path, 1, {1: 1.0, 2: 2.0})
    cut = tmp_path / "events.out.tfevents.1.host"
    cut.write_bytes(cut.read_bytes()[:-5])  # into the last scalar, other/reward, which is not shown
    (tmp_path / "events.out.tfevents.2.host").touch()  # killed before it wrote anything
    write_events(tmp_path, 3, {3: 3.0}, resumed_at=2)
    assert [entry["reward"] for entry in read_tensorboard(tmp_path)] == [1.0, 2.0, 3.0]


def test_a_running_run_is_as_fresh_as_its_tensorboard(tmp_path: Path):
    folder = make_run(tmp_path / "run", [], finished=False, steps=10)
    write_events(folder / "tensorboard", 1, {12: 1.0})
    assert read_run(folder).step == 12


# ---- samples -------------------------------------------------------------------------------------------------------


def test_a_sample_that_stands_in_both_files_is_read_once(tmp_path: Path):
    folder = make_run(tmp_path / "run", [sample(2, 1), sample(1, 1), sample(1, 0)])
    (folder / "samples" / "success_completion_samples.jsonl").write_text(json.dumps(sample(2, 1)) + "\n\n")
    run = read_run(folder)
    assert [(kept.step, kept.index) for kept in run.samples] == [(1, 0), (1, 1), (2, 1)]
    assert run.samples[0].puzzle == TASK.puzzle([44, 19, 35], 98)
    assert [kept.as_record() for kept in run.samples] == [sample(1, 0), sample(1, 1), sample(2, 1)]
    assert run.skipped == 0


def test_a_line_that_was_cut_off_is_counted_and_left_out(tmp_path: Path):
    folder = make_run(tmp_path / "run", [sample(1), sample(3)])
    with (folder / "samples" / "completion_samples.jsonl").open("a") as stream:
        stream.write('{"step": 4, "respon')
    run = read_run(folder)
    assert ([kept.step for kept in run.samples], run.skipped) == ([1, 3], 1)


# ---- what is no run, and runs of before ----------------------------------------------------------------------------


@pytest.mark.parametrize(("description", "said"), [
    pytest.param(None, "no run folder", id="no run.json"),
    pytest.param("{", "no run folder", id="a run.json that was cut off"),
    pytest.param("[1]", "no run folder", id="a run.json that describes nothing"),
    pytest.param('{"task": "mini_r1.nothing"}', "mini_r1.nothing", id="a task that is not there"),
])  # fmt: skip
def test_what_is_no_run_is_refused(description: str | None, said: str, tmp_path: Path):
    if description is not None:
        (tmp_path / "run.json").write_text(description)
    with pytest.raises(RunError, match=said):
        read_run(tmp_path)


def test_a_run_without_a_task_in_its_description_is_countdown(tmp_path: Path):
    folder = make_run(tmp_path / "run", [sample(1)])
    description: dict[str, Any] = json.loads((folder / "run.json").read_text())
    del description["task"]
    (folder / "run.json").write_text(json.dumps(description))
    run = read_run(folder)
    assert run.task is TASK
    assert len(run.samples) == 1
