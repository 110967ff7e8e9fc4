"""The reader of run folders: what a run left behind as plain data, whether it is finished, running or was cut off.

The trainer and this room write them. Standard library only, apart from TensorBoard's reader.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mini_r1.common import RunError, is_number, printable
from mini_r1.intervals import ALL, wilson_interval
from mini_r1.run_folder import HELD_OUT, RUN_DESCRIPTION, SAMPLES, TRAINER_STATE
from mini_r1.run_folder.manifest import checkpoints_in, read_description, read_json
from mini_r1.run_folder.samples import Sample
from mini_r1.task import Task, load_task

SUCCESS_METRIC = "eval_rewards/equation_reward_func/mean"
LENGTH_METRIC = "eval_completions/mean_length"
_POINT = ("pass@1", "low", "high")


def pass_metric(kind: str = ALL, k: int = 1, end: str = "") -> str:
    """The name in the log of an evaluation's pass@k of a kind of puzzle; `end`: `_low` or `_high` of its interval.

    Example:
        >>> pass_metric("3 numbers, + -", 8, "_low")
        'eval_pass@8_low/3 numbers, + -'
    """
    return f"eval_pass@{k}{end}/{kind}"


def logged_kinds(entry: Mapping[str, Any]) -> list[str]:
    """The kinds of puzzles that an entry of the log has a pass@1 of, all puzzles among them."""
    return [key.removeprefix(pass_metric("")) for key in entry if key.startswith(pass_metric(""))]


@dataclass(frozen=True)
class RunRecord:
    """What one run left behind.

    Attributes:
        folder: where it lies.
        description: `run.json`: name, task, recipe, versions, hardware, split, command.
        task: the task it trained on.
        history: the trainer's log, one dict per step in order: `step` and the scalars by name, those of evaluations
            with the prefix `eval_`. Values are finite floats.
        held_out: one dict per evaluation, as `held_out_curve` makes them; empty when nothing was evaluated.
        samples: the kept completions in the order of their steps, each once.
        skipped: lines of the sample files that were cut off.
        evaluations: file name without suffix -> what `evaluation/*.json` holds.
        finished: whether the run came to its end.
        last_written: when its logs, samples or checkpoints changed last, in seconds since 1970.
    """

    folder: Path
    description: dict[str, Any]
    task: Task
    history: list[dict[str, float]]
    held_out: list[dict[str, Any]]
    samples: list[Sample]
    skipped: int
    evaluations: dict[str, dict[str, Any]]
    finished: bool
    last_written: float

    @property
    def name(self) -> str:
        return printable(str(self.description.get("name") or self.folder.resolve().name))

    @property
    def recipe(self) -> dict[str, Any]:
        return part_of(self.description, "recipe")

    @property
    def step(self) -> int:
        """The last step that left a trace, 0 when there is none."""
        return int(max((entry["step"] for entry in self.history), default=0))

    @property
    def final_step(self) -> int:
        """The step of the final model: the one that a finished run marked, else the last."""
        return next((int(point["step"]) for point in self.held_out if point.get("final")), self.step)

    def points(self, metric: str) -> list[tuple[float, float]]:
        """(step, value) wherever a scalar was logged, in the order of the steps."""
        return [(entry["step"], entry[metric]) for entry in self.history if metric in entry]


def part_of(description: dict[str, Any], key: str) -> dict[str, Any]:
    """A part of a `run.json`; empty when it is missing."""
    return description.get(key) or {}


def read_run(folder: Path) -> RunRecord:
    """Reads a run folder. What is missing or half-written besides `run.json` is left out.

    Raises:
        RunError: when the folder is no run folder, or its task cannot be imported.
    """
    description = read_description(folder)
    if not description:
        raise RunError(f"{folder} is no run folder: no {RUN_DESCRIPTION} in it can be read; name a run's output_dir")
    task = load_task(description.get("task"))
    # TensorBoard's files are written at every log, the trainer's own state only with a checkpoint.
    history = read_tensorboard(folder / "tensorboard") or read_trainer_state(folder)
    samples, skipped = read_samples(folder / SAMPLES, task)
    evaluations = {path.stem: read_json(path) for path in sorted(folder.glob("evaluation/*.json"))}
    checkpoints = list(checkpoints_in(folder).values())  # a running run removes all but the newest
    written = [folder / RUN_DESCRIPTION, *folder.glob("tensorboard/*"), *folder.glob("samples/*"), *checkpoints[-1:]]
    return RunRecord(
        folder=folder,
        description=description,
        task=task,
        history=history,
        held_out=_held_out(folder, description, history),
        samples=samples,
        skipped=skipped,
        evaluations={name: content for name, content in evaluations.items() if content},
        finished=(folder / TRAINER_STATE).is_file(),
        last_written=max(path.stat().st_mtime for path in written),
    )


# --------------------------------------------------------------------------------------------------------------------
# Logs
# --------------------------------------------------------------------------------------------------------------------


def read_tensorboard(folder: Path) -> list[dict[str, float]]:
    """The trainer's scalars from its event files, as in `RunRecord.history`; empty when there are none.

    A resumed run opens another file and repeats the steps after its checkpoint; the newer file counts.
    """
    if not folder.is_dir():
        return []
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of every resume
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()  # 0: all of them
    history: dict[int, dict[str, float]] = {}
    for tag in events.Tags()["scalars"]:
        kind, _, name = tag.partition("/")
        for event in events.Scalars(tag):
            if kind in ("train", "eval") and math.isfinite(event.value):
                entry = history.setdefault(event.step, {"step": event.step})
                entry[name if kind == "train" else f"eval_{name}"] = event.value
    return [history[step] for step in sorted(history)]


def read_trainer_state(folder: Path) -> list[dict[str, float]]:
    """The trainer's scalars from its state: the finished run's, else that of the newest checkpoint that has one."""
    places = (folder, *reversed(checkpoints_in(folder).values()))
    states = (read_json(place / TRAINER_STATE) for place in places)
    history: dict[float, dict[str, float]] = {}
    for entry in next((state["log_history"] for state in states if state), []):
        numbers = {key: float(value) for key, value in entry.items() if is_number(value)}
        history.setdefault(entry["step"], {}).update({**numbers, "step": entry["step"]})
    return [history[step] for step in sorted(history)]


def held_out_curve(log_history: Iterable[dict[str, Any]], puzzles: int) -> list[dict[str, Any]]:
    """Held-out success over the run, one entry per evaluation; of two at the same step, the later one.

    Args:
        log_history: the trainer's log.
        puzzles: how many were evaluated each time.

    Returns:
        Dicts with `step`, `pass@1` (0 to 1), its 95 % interval `low` and `high`, `puzzles`, `mean_tokens` (None when
        no length was logged), and `strata`: kind of puzzle -> its `pass@1`, `low` and `high` (none in early runs).
    """
    curve = {}
    for entry in log_history:
        strata = _strata(entry)
        everything = strata.pop(ALL, None)
        if everything is None and SUCCESS_METRIC in entry:  # an early run
            rate = entry[SUCCESS_METRIC]
            everything = dict(zip(_POINT, (rate, *wilson_interval(rate * puzzles, puzzles)), strict=True))
        if everything is not None:
            more = {"puzzles": puzzles, "mean_tokens": entry.get(LENGTH_METRIC), "strata": strata}
            curve[entry["step"]] = {"step": entry["step"], **everything, **more}
    return list(curve.values())


def _strata(entry: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Success by kind of puzzle in an entry of the log, all puzzles among them; empty in early runs."""
    names = {kind: [pass_metric(kind, end=end) for end in ("", "_low", "_high")] for kind in logged_kinds(entry)}
    return {
        kind: dict(zip(_POINT, (entry[name] for name in three), strict=True))
        for kind, three in names.items()
        if all(name in entry for name in three)
    }


def final_point(curve: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of one evaluation or more, that of the final model: the marked one, else the last."""
    return next((point for point in curve if point.get("final")), curve[-1])


def _held_out(folder: Path, description: dict[str, Any], history: list[dict[str, float]]) -> list[dict[str, Any]]:
    """The evaluations so far: those in the log, and those that a finished run wrote down."""
    written = read_json(folder / HELD_OUT) or []
    # Before the run is finished, the recipe says how many puzzles there are, unless the split has fewer.
    sizes = (part_of(description, "recipe").get("eval_puzzles"), part_of(description, "split").get("held_out_puzzles"))
    puzzles = written[0]["puzzles"] if written else min((size for size in sizes if size), default=0)
    curve = held_out_curve(history, puzzles) if puzzles else []
    by_step = {point["step"]: point for point in (*curve, *written)}
    return [by_step[step] for step in sorted(by_step)]


# --------------------------------------------------------------------------------------------------------------------
# Samples
# --------------------------------------------------------------------------------------------------------------------


def read_samples(folder: Path, task: Task) -> tuple[list[Sample], int]:
    """The samples of all `*.jsonl` in a folder in the order of their steps, and how many lines were cut off.

    A correct completion may stand in both files and a resumed run may repeat some; each is returned once.
    """
    names = [field.name for field in fields(Sample) if field.name != "puzzle"]
    lines = dict.fromkeys(line for path in sorted(folder.glob("*.jsonl")) for line in path.read_bytes().splitlines())
    samples, skipped = [], 0
    for line in filter(bytes.strip, lines):
        try:
            record = json.loads(line)
        except ValueError:
            skipped += 1
        else:
            samples.append(Sample(puzzle=task.puzzle_of(record), **{name: record[name] for name in names}))
    return sorted(samples, key=lambda s: (s.step, s.split, s.rank, s.index)), skipped
