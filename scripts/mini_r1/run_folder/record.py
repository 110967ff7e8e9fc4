"""A run folder read back as plain data, whether the run is finished, still going or was cut off.

Written by `run_folder` and the trainer; read here for reports. Standard library only, apart from TensorBoard's reader.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mini_r1.common import RecipeError, printable
from mini_r1.run_folder import resume as resumption
from mini_r1.run_folder.folder import SUCCESS_METRIC, held_out_curve
from mini_r1.run_folder.samples import Sample

# Far more numbers than any puzzle has; telling what sums reach takes 2**count steps.
_MAX_NUMBERS = 12
# Beyond it no evaluation can have gone, and the arithmetic of its interval leaves the range of floats.
_MAX_PUZZLES = 10**9
# Nothing that was computed in single precision comes near it, and curves cannot be drawn far beyond.
_MAX_VALUE = 1e100

_REPORT_FILES = ("report.html", "report.png")

_SAMPLE_FIELDS = {field.name for field in fields(Sample)}


@dataclass(frozen=True)
class RunRecord:
    """What one run left behind.

    Attributes:
        folder: where it lies.
        description: `run.json`: name, recipe, versions, hardware, split, command.
        history: the trainer's log, one dict per step in order: `step` and the scalars by name, those of evaluations
            with the prefix `eval_`. Values are finite floats.
        held_out: one dict per evaluation with `step`, `pass@1` (0 to 1), its 95 % interval `low` and `high`,
            `puzzles` and `mean_tokens`; empty when nothing was evaluated.
        samples: the kept completions in the order of their steps, each once.
        skipped: lines of the sample files that hold no whole sample.
        evaluations: file name without suffix -> what `evaluation/*.json` holds, where that is a dict.
        finished: whether the run came to its end.
        last_written: when it wrote last, in seconds since 1970: the time of its newest file.
    """

    folder: Path
    description: dict[str, Any]
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
        recipe = self.description.get("recipe")
        return recipe if isinstance(recipe, dict) else {}

    @property
    def step(self) -> int:
        """The last step that left a trace, 0 when there is none."""
        return int(max((entry["step"] for entry in self.history), default=0))

    def points(self, metric: str) -> list[tuple[float, float]]:
        """(step, value) wherever a scalar was logged, in the order of the steps."""
        return [(entry["step"], entry[metric]) for entry in self.history if metric in entry]


def read_run(folder: Path) -> RunRecord:
    """Reads a run folder. What is missing, half-written or broken besides `run.json` is left out.

    Raises:
        RecipeError: when the folder is no run folder.
    """
    try:
        description = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"{folder} is no run folder: there is no run.json in it") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"cannot read {folder / 'run.json'}: {error}") from error
    if not isinstance(description, dict):
        raise RecipeError(f"{folder / 'run.json'} does not describe a run")
    # TensorBoard's files are written at every log, the trainer's own state only with a checkpoint.
    history = read_tensorboard(folder / "tensorboard") or read_trainer_state(folder)
    samples, skipped = read_samples(folder / "samples")
    evaluations = {path.stem: _read_json(path) for path in sorted(folder.glob("evaluation/*.json"))}
    return RunRecord(
        folder=folder,
        description=description,
        history=history,
        held_out=_held_out(folder, description, history),
        samples=samples,
        skipped=skipped,
        evaluations={name: content for name, content in evaluations.items() if isinstance(content, dict)},
        finished=(folder / "trainer_state.json").is_file(),
        last_written=_last_written(folder),
    )


def _last_written(folder: Path) -> float:
    """The time of the run's newest file; reports and evaluations are made by others, later."""
    newest = 0.0
    for place, folders, files in os.walk(folder):  # a running run may remove what was just listed: walk passes over it
        if place == str(folder):
            folders[:] = [name for name in folders if name != "evaluation"]
            files = [name for name in files if name not in _REPORT_FILES]
        for name in files:
            with contextlib.suppress(OSError):
                newest = max(newest, Path(place, name).stat().st_mtime)
    return newest


def _read_json(path: Path) -> Any:
    """What a JSON file holds, None when it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _MAX_VALUE


# --------------------------------------------------------------------------------------------------------------------
# Logs
# --------------------------------------------------------------------------------------------------------------------


def read_tensorboard(folder: Path) -> list[dict[str, float]]:
    """The trainer's scalars from its event files, as in `RunRecord.history`; empty when there are none.

    A resumed run opens another file and repeats the steps after its checkpoint; what the new file says is kept.
    """
    files = sorted(folder.glob("events.out.tfevents.*"))  # the names go on with the time of writing
    if not files:
        return []
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history: dict[float, dict[str, float]] = {}
    for file in files:
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})  # 0: all of them
        with contextlib.suppress(OSError, DecodeError):  # what was read before a broken record is kept
            events.Reload()
        steps: dict[float, dict[str, float]] = {}
        for tag in events.Tags()["scalars"]:
            kind, _, name = tag.partition("/")
            for event in events.Scalars(tag):
                if kind in ("train", "eval") and math.isfinite(event.value):
                    entry = steps.setdefault(event.step, {"step": event.step})
                    entry[name if kind == "train" else f"eval_{name}"] = event.value
        if steps:
            history = {step: entry for step, entry in history.items() if step <= min(steps)}
        for step, entry in steps.items():
            history.setdefault(step, {}).update(entry)
    return [history[step] for step in sorted(history)]


def read_trainer_state(folder: Path) -> list[dict[str, float]]:
    """The trainer's scalars from its state: the finished run's, else that of the newest readable checkpoint."""
    for place in (folder, *reversed(resumption.checkpoints_in(folder).values())):
        state = _read_json(place / "trainer_state.json")
        entries = state.get("log_history") if isinstance(state, dict) else None
        if isinstance(entries, list):
            history: dict[float, dict[str, float]] = {}
            for entry in entries:
                if isinstance(entry, dict) and _is_number(entry.get("step")):
                    numbers = {key: float(value) for key, value in entry.items() if _is_number(value)}
                    history.setdefault(entry["step"], {}).update({**numbers, "step": entry["step"]})
            return [history[step] for step in sorted(history)]
    return []


def _held_out(folder: Path, description: dict[str, Any], history: list[dict[str, float]]) -> list[dict[str, Any]]:
    """The evaluations so far: those that a closed run wrote down, and those in the log."""
    written = _read_json(folder / "held_out.json")
    points = [
        point
        for point in (written if isinstance(written, list) else [])
        if isinstance(point, dict)
        and _is_number(point.get("step"))
        and all(_is_number(point.get(key)) and 0 <= point[key] <= 1 for key in ("pass@1", "low", "high"))
    ]
    sizes = [
        described.get(key)
        for part, key in (("recipe", "eval_puzzles"), ("split", "held_out_puzzles"))
        if isinstance(described := description.get(part), dict)
    ]
    # Before the run is closed, the recipe tells how many puzzles there are; the last part of a batch may be less.
    known = [float(size) for size in sizes if size is not None and _is_number(size)]
    puzzles: Any = points[0].get("puzzles") if points else min(known, default=0)
    rates = [entry for entry in history if 0 <= entry.get(SUCCESS_METRIC, 0) <= 1]
    curve = held_out_curve(rates, int(puzzles)) if _is_number(puzzles) and 1 <= puzzles <= _MAX_PUZZLES else []
    by_step = {point["step"]: point for point in (*curve, *points)}
    return [by_step[step] for step in sorted(by_step)]


# --------------------------------------------------------------------------------------------------------------------
# Samples
# --------------------------------------------------------------------------------------------------------------------


def read_samples(folder: Path) -> tuple[list[Sample], int]:
    """The samples of all `*.jsonl` in a folder in the order of their steps, and how many lines hold no whole sample.

    A correct completion may stand in both files and a resumed run may repeat some; each is returned once.
    """
    samples: dict[tuple[object, ...], Sample] = {}
    skipped = 0
    for path in sorted(folder.glob("*.jsonl")):
        for line in _lines(path):
            sample = _parse_sample(line)
            if sample is None:
                skipped += 1
            else:
                key = (sample.split, sample.step, sample.rank, sample.index, *sample.nums, sample.target,
                       sample.response)  # fmt: skip
                samples[key] = sample
    return sorted(samples.values(), key=lambda s: (s.step, s.split, s.rank, s.index)), skipped


def _lines(path: Path) -> Iterator[bytes]:
    with contextlib.suppress(OSError), path.open("rb") as file:
        yield from filter(bytes.strip, file)


def _parse_sample(line: bytes) -> Sample | None:
    """The sample on a line; None when the line is cut off, is no JSON, or lacks a field."""
    try:
        record = json.loads(line)
        sample = Sample(**{key: value for key, value in record.items() if key in _SAMPLE_FIELDS})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    whole = (sample.step, sample.target, sample.completion_tokens, sample.rank, sample.index)
    sound = (
        all(type(number) is int for number in whole)
        and all(isinstance(text, str) for text in (sample.split, sample.response, sample.reason))
        and isinstance(sample.value, (str, type(None)))
        and isinstance(sample.nums, list)
        and 1 <= len(sample.nums) <= _MAX_NUMBERS
        and all(type(number) is int for number in sample.nums)
        and _is_number(sample.format_reward)
    )
    return sample if sound else None
