"""The sample files: a share of all completions, kept as text for people and as JSONL for programs."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_r1.common import printable
from mini_r1.responses import has_format, judge
from mini_r1.task import Task

logger = logging.getLogger(__name__)

# The files' names, as .txt for people and as .jsonl for programs.
ALL_SAMPLES, SUCCESS_SAMPLES = "completion_samples", "success_completion_samples"
SAMPLE_NAMES = (ALL_SAMPLES, SUCCESS_SAMPLES)
# The same by kind of folder, as `SampleLog.sizes` names them.
SAMPLE_FILES = [f"text/{name}.txt" for name in SAMPLE_NAMES] + [f"json/{name}.jsonl" for name in SAMPLE_NAMES]


@dataclass(frozen=True)
class Sample:
    """One completion as it is kept for people and programs.

    Attributes:
        step: optimizer steps done when it was sampled.
        split: `train` or `held_out`.
        puzzle: the puzzle, a NamedTuple of the task.
        response: the whole assistant turn, prefill included.
        reason: the verdict's reason code.
        value: the exact value of the equation as a string (`"85"`, `"7/2"`), or None.
        format_reward: 0.0 or 1.0.
        equation_reward: what the answer is paid, 0.0 or 1.0; between them where the task gives partial credit.
        completion_tokens: length of the completion in tokens.
        rank, index: which process sampled it, and its place in that process's batch.
    """

    step: int
    split: str
    puzzle: Any
    response: str
    reason: str
    value: str | None
    format_reward: float
    equation_reward: float
    completion_tokens: int
    rank: int
    index: int

    def as_record(self) -> dict[str, Any]:
        """The sample as a line of the .jsonl files holds it, the puzzle's fields beside the others."""
        record = dict(vars(self))
        puzzle = record.pop("puzzle")
        return {**record, **puzzle._asdict()}

    def as_text(self) -> str:
        """The sample as a person reads it in the .txt files."""
        value = "" if self.value is None else f" (the equation comes to {self.value})"
        value += f" · score {self.equation_reward:.2f}" if 0 < self.equation_reward < 1 else ""
        return (
            f"{'=' * 100}\n"
            f"step {self.step} · {self.split} · {self.puzzle}\n"
            f"verdict: {self.reason}{value} · format {self.format_reward:.0f} · {self.completion_tokens} tokens\n"
            f"{'-' * 100}\n{printable(self.response)}\n\n"
        )


def judged(task: Task, text: str, puzzle: Any, **kept: Any) -> Sample:
    """A response with its verdict and rewards, by the functions behind the rewards. `kept`: the other attributes."""
    verdict = judge(task, text, puzzle)
    return Sample(
        puzzle=puzzle,
        response=text,
        reason=verdict.reason.value,
        value=None if verdict.value is None else str(verdict.value),
        format_reward=float(has_format(text)),
        equation_reward=verdict.reward,
        **kept,
    )


def append_record(path: Path, record: bytes) -> None:
    """Appends one record to a file that many processes write, whole or not at all.

    An exclusive lock keeps writers apart, and a write that fails half-way is cut off again.

    Raises:
        OSError: when the folder or the disk does not take the record.
    """
    with path.open("ab", buffering=0) as stream:
        with contextlib.suppress(OSError):  # some network file systems know no locks
            fcntl.flock(stream, fcntl.LOCK_EX)
        size = os.fstat(stream.fileno()).st_size
        try:
            while record:  # a write may take less than it is given
                record = record[os.write(stream.fileno(), record) :]
        except OSError:
            stream.truncate(size)
            raise


class SampleLog:
    """Keeps a share of all completions, and a share of the correct ones, in text and JSONL files.

    Which ones are kept is a function of step, rank, index and puzzle, so it does not touch any random state and is the
    same after a resume; for held-out puzzles it is one of the puzzle alone, so that every evaluation keeps the answers
    to the same puzzles. A disk that is full or read-only is reported once and never disturbs training.

    Args:
        text_folder: where `completion_samples.txt` and `success_completion_samples.txt` go; one folder per run.
        json_folder: where the same records go as `.jsonl`.
        share: the part of all completions to keep, 0 to 1.
        success_share: the part of the correct ones to keep besides, 0 to 1.
    """

    def __init__(self, text_folder: Path, json_folder: Path, *, share: float = 0.1, success_share: float = 0.1):
        self.text_folder, self.json_folder = Path(text_folder), Path(json_folder)
        self.shares = dict(zip(SAMPLE_NAMES, (share, success_share), strict=True))
        self._warned = False

    def sizes(self) -> dict[str, int]:
        """Bytes in each of the four files, 0 where there is none yet; `resume.cut_back` takes them."""
        folders, found = {"text": self.text_folder, "json": self.json_folder}, {}
        for key in SAMPLE_FILES:
            kind, name = key.split("/")
            path = folders[kind] / name
            found[key] = path.stat().st_size if path.exists() else 0
        return found

    def record(self, samples: Iterable[Sample]) -> None:
        """Writes those samples whose turn it is."""
        for sample in samples:
            for name, share in self.shares.items():
                is_wanted = name == ALL_SAMPLES or sample.equation_reward == 1.0
                if is_wanted and self._draw(name, sample) < share:
                    self._write(self.text_folder / f"{name}.txt", sample.as_text())
                    self._write(self.json_folder / f"{name}.jsonl", json.dumps(sample.as_record()) + "\n")

    @staticmethod
    def _draw(name: str, sample: Sample) -> float:
        # In an evaluation the same puzzles every time, so that one can be followed.
        place = "" if sample.split == "held_out" else f"{sample.step}/{sample.rank}/{sample.index}"
        key = f"{name}/{sample.split}/{place}/{'='.join(map(str, sample.puzzle))}"
        return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64

    def _write(self, path: Path, text: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            append_record(path, text.encode("utf-8", "backslashreplace"))
        except OSError as error:
            if not self._warned:
                logger.warning("cannot write samples to %s (%s); training continues, some may be missing", path, error)
            self._warned = True
