"""From a model's text to a verdict, and from verdicts to the sample files that people read.

A *completion* is what the model wrote. The prompt already ends in `<think>`, so the *response*, the text that is
judged, is that prefill plus the completion. Nothing here knows about trainers or tensors; standard library only.

    >>> text = response(" 44+19+35 is 98.</think>\\n<answer> 44 + 19 + 35 </answer>")
    >>> has_format(text), judge(text, nums=[44, 19, 35], target=98).reason.value
    (True, 'correct')
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mini_r1.countdown import Reason, Verdict, check_equation

logger = logging.getLogger(__name__)

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"

# What the usual model families write at the end of a turn, when special tokens were not skipped in decoding.
END_OF_TEXT = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>", "<eos>", "</s>")


# --------------------------------------------------------------------------------------------------------------------
# Reading a completion
# --------------------------------------------------------------------------------------------------------------------


def message_text(completion: Any) -> str:
    """The text of a completion, whether it is a string or a list of chat messages.

    Args:
        completion: a string, or a list of `{"role": ..., "content": ...}` whose contents are strings or lists of
            `{"type": "text", "text": ...}` parts. Anything else counts as no text.
    """
    if isinstance(completion, str):
        return completion
    if not isinstance(completion, list):
        return ""
    contents = [message.get("content") for message in completion if isinstance(message, dict)]
    parts: list[str] = []
    for content in contents:
        if isinstance(content, str):
            parts.append(content)
        elif isinstance(content, list):
            texts = [part.get("text") for part in content if isinstance(part, dict)]
            parts.extend(text for text in texts if isinstance(text, str))
    return "".join(parts)


def response(completion: Any, prompt: Any = None) -> str:
    """The whole assistant turn: the prefilled `<think>` and the completion, without end-of-text tokens.

    Args:
        completion: a string or a message list.
        prompt: the prompt that was completed, when known; the prefill is added exactly if it ends with `<think>`.
            When unknown, the prefill is added unless the completion opens with `<think>` itself.
    """
    text = message_text(completion)
    prompt_text = message_text(prompt[-1:] if isinstance(prompt, list) else prompt)
    prefilled = prompt_text.rstrip().endswith(THINK_OPEN) if prompt_text else not text.lstrip().startswith(THINK_OPEN)
    text = text.rstrip()
    while text.endswith(END_OF_TEXT):
        text = next(text.removesuffix(token) for token in END_OF_TEXT if text.endswith(token)).rstrip()
    return THINK_OPEN + text if prefilled else text


# Letters by Unicode's classification that show nothing: the Hangul fillers.
_INVISIBLE_LETTERS = "\u115f\u1160\u3164\uffa0"


def _says_something(text: str) -> bool:
    """Whether there is a letter or digit: invisible characters and lone punctuation are not reasoning."""
    return any(char.isalnum() and char not in _INVISIBLE_LETTERS for char in text)


def has_format(text: str) -> bool:
    """Whether a response is one non-empty `<think>…</think>`, then one non-empty `<answer>…</answer>`, no more.

    Only white space may stand before, between and after.
    """
    if any(text.count(tag) != 1 for tag in (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)):
        return False
    before, _, rest = text.partition(THINK_OPEN)
    thinking, closed, rest = rest.partition(THINK_CLOSE)
    between, opened, rest = rest.partition(ANSWER_OPEN)
    answer, answered, after = rest.partition(ANSWER_CLOSE)
    return (
        bool(closed and opened and answered)
        and not (before.strip() or between.strip() or after.strip())
        and _says_something(thinking)
        and _says_something(answer)
    )


def thinking(text: str) -> str:
    """The reasoning: what stands before the first `</think>` (or `<answer>`, when the reasoning is never closed)."""
    body = text.partition(THINK_OPEN)[2] if THINK_OPEN in text else text
    end = THINK_CLOSE if THINK_CLOSE in body else ANSWER_OPEN
    return body.partition(end)[0].strip()


def extract_answer(text: str) -> str | Reason:
    """The one answer that follows the reasoning.

    Only text after the first `</think>` counts, so an answer quoted while thinking is never graded. A response that
    never closes its reasoning may still offer a single answer.

    Returns:
        The text between the tags, or `Reason.NO_ANSWER` / `Reason.SEVERAL_ANSWERS`.
    """
    after = text.partition(THINK_CLOSE)[2] if THINK_CLOSE in text else text
    if after.count(ANSWER_OPEN) > 1 or after.count(ANSWER_CLOSE) > 1:
        return Reason.SEVERAL_ANSWERS
    _, opened, rest = after.partition(ANSWER_OPEN)
    answer, closed, _ = rest.partition(ANSWER_CLOSE)
    return answer if opened and closed else Reason.NO_ANSWER


def judge(text: str, nums: Sequence[int], target: int) -> Verdict:
    """The verdict on a response: the same function for rewards, sample logs, evaluation and reports."""
    answer = extract_answer(text)
    if isinstance(answer, Reason):
        return Verdict(answer)
    return check_equation(answer, nums, target)


# --------------------------------------------------------------------------------------------------------------------
# Sample files
# --------------------------------------------------------------------------------------------------------------------


# The files' names, as .txt for people and as .jsonl for programs.
ALL_SAMPLES, SUCCESS_SAMPLES = "completion_samples", "success_completion_samples"
SAMPLE_NAMES = (ALL_SAMPLES, SUCCESS_SAMPLES)
# The same by kind of folder, as `SampleLog.sizes` names them.
SAMPLE_FILES = tuple(
    f"{kind}/{name}.{suffix}" for kind, suffix in (("text", "txt"), ("json", "jsonl")) for name in SAMPLE_NAMES
)


@dataclass(frozen=True)
class Sample:
    """One completion as it is kept for people and programs.

    Attributes:
        step: optimizer steps done when it was sampled.
        split: `train` or `held_out`.
        nums, target: the puzzle.
        response: the whole assistant turn, prefill included.
        reason: the verdict's reason code.
        value: the exact value of the equation as a string (`"85"`, `"7/2"`), or None.
        format_reward, equation_reward: 0.0 or 1.0.
        completion_tokens: length of the completion in tokens.
        rank, index: which process sampled it, and its place in that process's batch.
    """

    step: int
    split: str
    nums: list[int]
    target: int
    response: str
    reason: str
    value: str | None
    format_reward: float
    equation_reward: float
    completion_tokens: int
    rank: int
    index: int

    def as_text(self) -> str:
        """The sample as a person reads it in the .txt files."""
        value = "" if self.value is None else f" (the equation comes to {self.value})"
        return (
            f"{'=' * 100}\n"
            f"step {self.step} · {self.split} · numbers {self.nums} · target {self.target}\n"
            f"verdict: {self.reason}{value} · format {self.format_reward:.0f} · {self.completion_tokens} tokens\n"
            f"{'-' * 100}\n{printable(self.response)}\n\n"
        )


def printable(text: str) -> str:
    """Model text with control characters escaped, so that showing a file can never drive a terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def append_record(path: Path, record: bytes) -> None:
    """Appends one record to a file that many processes write, whole or not at all.

    An exclusive lock keeps writers apart, and a write that fails half-way is cut off again.

    Raises:
        OSError: when the folder or the disk does not take the record.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        with contextlib.suppress(OSError):  # some network file systems know no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        try:
            view = memoryview(record)
            while view:
                view = view[os.write(descriptor, view) :]
        except OSError:
            with contextlib.suppress(OSError):  # the first error is the one to report
                os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


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
        """Bytes in each of the four files, 0 where there is none yet; `resumption.cut_back` takes them."""
        folders, found = {"text": self.text_folder, "json": self.json_folder}, {}
        for key in SAMPLE_FILES:
            kind, _, name = key.partition("/")
            try:
                found[key] = (folders[kind] / name).stat().st_size
            except OSError:
                found[key] = 0
        return found

    def record(self, samples: Iterable[Sample]) -> None:
        """Writes those samples whose turn it is."""
        for sample in samples:
            for name, share in self.shares.items():
                if name == SUCCESS_SAMPLES and sample.equation_reward != 1.0:
                    continue
                if self._draw(name, sample) < share:
                    self._write(self.text_folder / f"{name}.txt", sample.as_text())
                    self._write(self.json_folder / f"{name}.jsonl", json.dumps(asdict(sample)) + "\n")

    @staticmethod
    def _draw(name: str, sample: Sample) -> float:
        place = f"{sample.step}/{sample.rank}/{sample.index}"
        if sample.split == "held_out":  # the same puzzles at every evaluation, so that one can be followed
            place = ""
        key = f"{name}/{sample.split}/{place}/{sample.nums}={sample.target}"
        return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64

    def _write(self, path: Path, text: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            append_record(path, text.encode("utf-8", "backslashreplace"))
        except OSError as error:
            if not self._warned:
                self._warned = True
                logger.warning(
                    "cannot write samples to %s (%s); training goes on, further samples may be missing", path, error
                )
