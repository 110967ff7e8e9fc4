"""Coverage-guided fuzzing of everything that reads what a model, a person or a broken disk wrote.

    python tests/tools/fuzz.py all --seconds 5
    python tests/tools/fuzz.py puzzles --seconds 600 --seed 1 --corpus some/folder
    python tests/tools/fuzz.py puzzles --replay some/finding.bin

Each target makes an input, gives it to the functions concerned and holds the outcome against what they promise. A
finding is an exception that is not documented, a promise that does not hold, an input that takes more than a second of
CPU time, or one that needs more than 2 GB. Its input is saved with a traceback, and the program ends with exit code 1.

How inputs are made does not depend on the engine: a `Source` answers for numbers, text and bytes. Here atheris
(libFuzzer) does, guided by what the instrumented modules execute; `test_fuzz.py` lets hypothesis do it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import io
import json
import logging
import math
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import typing
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, TypeVar

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

# The process that fuzzes is a child of the one that was started: libFuzzer ends its process when it is done.
INSIDE = "--inside"


def _instrumented() -> contextlib.AbstractContextManager[object]:
    """Under it, imported modules of the project report which branches they take; only where that is wanted."""
    if __name__ != "__main__" or INSIDE not in sys.argv:
        return contextlib.nullcontext()
    import atheris

    return atheris.instrument_imports(include=["mini_r1", "run_r1_grpo"])


with _instrumented():
    from mini_r1 import responses as completions
    from mini_r1 import signs as reasoning
    from mini_r1.common import DataError, RecipeError, printable
    from mini_r1.countdown import dataset as puzzle_data
    from mini_r1.countdown import puzzle as countdown_puzzle
    from mini_r1.countdown import verifier
    from mini_r1.recipe import parsing as recipe
    from mini_r1.report import page as report_page
    from mini_r1.run_folder import checkpoints
    from mini_r1.run_folder import record as run_record
    from mini_r1.run_folder.samples import Sample
    from run_r1_grpo import OWN_ARGUMENTS, check_values

# Bounds for one input.
CPU_SECONDS = 1.0
HANG_SECONDS = 30  # after which libFuzzer ends it
RSS_MEGABYTES = 2048
MAX_INPUT_BYTES = 4096
SEED_INPUTS = 100
MAX_CHARACTERS = 200_000  # of a text that is made by repetition; far more than any completion or cell has
# Different findings after which a target is given up.
MAX_FINDINGS = 20

T = TypeVar("T")


class Violation(AssertionError):  # noqa: N818 - it is what the program looks for
    """A promise of the code under test that does not hold."""


def promise(holds: object, what: str) -> None:
    """Raises a Violation that says what does not hold."""
    if not holds:
        raise Violation(what)


# --------------------------------------------------------------------------------------------------------------------
# Making inputs
# --------------------------------------------------------------------------------------------------------------------


class Source(Protocol):
    """Where the choices of an input come from. The lowest number is what an exhausted source answers."""

    def number(self, low: int, high: int) -> int: ...

    def text(self, most: int) -> str: ...

    def raw(self, most: int) -> bytes: ...


class BytesSource:
    """Choices read from the bytes that libFuzzer mutates."""

    def __init__(self, data: bytes):
        import atheris

        self._provider = atheris.FuzzedDataProvider(data)

    def number(self, low: int, high: int) -> int:
        return self._provider.ConsumeIntInRange(low, high)

    def text(self, most: int) -> str:
        return self._provider.ConsumeUnicode(most)  # lone surrogates included

    def raw(self, most: int) -> bytes:
        return self._provider.ConsumeBytes(most)


def pick(source: Source, options: Sequence[T]) -> T:
    return options[source.number(0, len(options) - 1)]


def chance(source: Source, one_in: int) -> bool:
    """True in about one of that many cases; never once the source is exhausted."""
    return source.number(0, one_in - 1) == one_in - 1


def joined(source: Source, scraps: Sequence[str], most: int = 24, repeated: int = 40) -> str:
    """A text of scraps and of anything at all; in one of `repeated` texts, a part of it stands there very often."""
    parts = [
        source.text(12) if chance(source, 6) else pick(source, scraps)
        for _ in range(source.number(0, most))
    ]  # fmt: skip
    if parts and chance(source, repeated):
        place = source.number(0, len(parts) - 1)
        parts[place] *= min(source.number(1, 60_000), MAX_CHARACTERS // max(len(parts[place]), 1))
    return "".join(parts)[:MAX_CHARACTERS]


# JSON's writer cannot make these; they are put in place of a marker afterwards.
_HUGE, _DEEP = "@huge@", "@deep@"
ODD_VALUES: tuple[Any, ...] = (
    None, 0, 1, -1, 2, True, False, 0.5, -0.5, 1.5, 1e308, -1e308, 5e-324, math.nan, math.inf, -math.inf, 2**63, 10**40,
    10**308, -(10**400), "", "1", "correct", "7/2", "\ud800", "\x1b[2J", "</script><script>", "<!--", "{{data}}", "$_^",
    "generate", [], {}, [1, 2], [[1]], [None], {"": 1}, {"a": {"b": []}}, [1, 99], _HUGE, _DEEP,
)  # fmt: skip


def json_value(source: Source, keys: Sequence[str], depth: int = 0) -> Any:
    """Anything that JSON can hold, and some things that it should not."""
    kind = source.number(0, 5 if depth < 3 else 3)
    if kind == 0:
        return pick(source, ODD_VALUES)
    if kind == 1:
        return source.number(-3, 120)
    if kind == 2:
        return source.text(12)
    if kind == 3:
        return source.number(-(10**6), 10**6) / 1000
    if kind == 4:
        return [json_value(source, keys, depth + 1) for _ in range(source.number(0, 7))]
    return {pick(source, keys): json_value(source, keys, depth + 1) for _ in range(source.number(0, 4))}


def changed(source: Source, record: dict[str, Any], keys: Sequence[str] = ()) -> dict[str, Any]:
    """A sound record with a few of its values replaced or left out, or some added."""
    record, keys = dict(record), (*record, *keys)
    for _ in range(source.number(0, 3)):
        key = pick(source, keys)
        if chance(source, 4):
            record.pop(key, None)
        else:
            record[key] = json_value(source, keys)
    return record


def json_text(source: Source, value: Any) -> str:
    """JSON, with numbers and nesting in it that Python's own writer refuses."""
    text = json.dumps(value, ensure_ascii=chance(source, 2))
    text = text.replace(f'"{_HUGE}"', "1" * 5000)
    if f'"{_DEEP}"' in text:
        depth = pick(source, (100_000, 960, 480, 100))
        text = text.replace(f'"{_DEEP}"', "[" * depth + "]" * depth)
    return text


def damaged(source: Source, content: bytes) -> bytes:
    """A file's content as it was meant, or as a cut, a wrong encoding or a bad disk leaves it."""
    kind = source.number(0, 9)
    if kind <= 4:
        return content
    place = source.number(0, len(content))
    if kind == 5:
        return content[:place]
    if kind == 6:
        return b"\xef\xbb\xbf" + content
    if kind == 7:
        return content.decode("utf-8", "replace").encode(pick(source, ("utf-16", "utf-32", "utf-7", "utf-16-be")))
    if kind == 8:
        return content[:place] + source.raw(16) + content[place:]
    return source.raw(400)


def encoded(text: str) -> bytes:
    """UTF-8, and what UTF-8 does not allow where the text has lone surrogates."""
    return text.encode("utf-8", "surrogatepass")


FILES_PREFIX = "mini-r1-fuzz-files-"


@functools.cache
def workplace() -> Path:
    """A folder for the files of one input after the other; whoever starts the fuzzing removes it."""
    memory = Path("/dev/shm")  # a folder in memory, on Linux; a disk takes longer than what is tested
    place = memory if os.access(memory, os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix=f"{FILES_PREFIX}{os.getpid()}-", dir=place))


@contextlib.contextmanager
def folder_for_one() -> Iterator[Path]:
    """An empty folder for the files of one input."""
    folder = workplace() / "one"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def same_environment() -> Iterator[None]:
    """Takes back what a recipe's `env` did to this process."""
    before = dict(os.environ)
    try:
        yield
    finally:
        if dict(os.environ) != before:
            os.environ.clear()
            os.environ.update(before)


# What the last input was made into, for the reports of findings.
_seen: list[object] = []


def show(*values: object) -> None:
    """Remembers what an input was made into."""
    _seen[:] = values


# --------------------------------------------------------------------------------------------------------------------
# Verifier
# --------------------------------------------------------------------------------------------------------------------

EQUATION_SCRAPS = (
    " ", "+", "-", "*", "/", "(", ")", "1", "7", "42", "0", "00", "07", "**", "//", "--", "+-", "\t", "\n", "\u00a0",
    "\u2003", "\x1c", "\x85", "×", "÷", "−", "²", "½", "４", "٣", "Ⅳ", ".", "1.5", "1e3", "0x1", "1_0", "=", ",", "x",
    "\u200b", "\x00", "\ud800", "é", "^", "%", "sqrt", "<answer>", "((", "))", "99999999999999999999",
)  # fmt: skip


class _NoEquationError(Exception):
    pass


def exact_value(text: str) -> Fraction:
    """The value of an equation by recursive descent, written apart from the verifier's operator stack.

    Raises:
        _NoEquationError: when it is none.
        ZeroDivisionError: when it divides by zero.
    """
    tokens = re.findall(r"[0-9]+|[-+*/()]", text)
    if "".join(tokens) != "".join(c for c in text if not c.isspace()) or re.search(r"(?<![0-9])0[0-9]", text):
        raise _NoEquationError
    # White space inside a number makes two of it, which stay two tokens: no operator stands between them.
    tokens.reverse()

    def take(*wanted: str) -> str | None:
        return tokens.pop() if tokens and tokens[-1] in wanted else None

    def total() -> Fraction:
        value = product()
        while operator := take("+", "-"):
            right = product()
            value = value + right if operator == "+" else value - right
        return value

    def product() -> Fraction:
        value = signed()
        while operator := take("*", "/"):
            right = signed()
            value = value * right if operator == "*" else value / right
        return value

    def signed() -> Fraction:
        sign = 1
        while take("-"):
            sign = -sign
        if take("("):
            value = total()
            if not take(")"):
                raise _NoEquationError
            return sign * value
        if not tokens or not tokens[-1].isdigit():
            raise _NoEquationError
        return sign * Fraction(int(tokens.pop()))

    value = total()
    if tokens:
        raise _NoEquationError
    return value


def expected_reasons(text: str, nums: Sequence[int], target: int) -> set[str]:
    """The verdicts that are right; several where a text has several faults at once."""
    if len(text) > verifier.MAX_EQUATION_CHARS:
        return {"too_long"}
    legal = "0123456789+-*/()"
    if any(c not in legal and not c.isspace() for c in text):
        return {"illegal_character", "malformed"}
    if not text.strip():
        return {"no_answer"}
    depth = deepest = 0
    for c in text:
        depth += (c == "(") - (c == ")")
        deepest = max(deepest, depth)
    if deepest > verifier.MAX_NESTING:
        return {"too_long", "malformed"}
    divides_by_zero, value = False, None
    try:
        value = exact_value(text)
    except _NoEquationError:
        return {"malformed"}
    except ZeroDivisionError:
        divides_by_zero = True
    if sorted(map(int, re.findall("[0-9]+", text))) != sorted(nums):
        # The descent stops at the first division by zero; what stands behind it may be malformed.
        return {"wrong_numbers", "malformed"} if divides_by_zero else {"wrong_numbers"}
    if divides_by_zero:
        return {"division_by_zero", "malformed"}
    return {"correct"} if value == target else {"wrong_value"}


def equation_over(source: Source, nums: Sequence[int]) -> str:
    """A well-formed equation that uses each number once, with parentheses here and there."""
    parts = [str(n) for n in nums]
    while len(parts) > 1:
        right = parts.pop(source.number(0, len(parts) - 1))
        left = parts.pop(source.number(0, len(parts) - 1))
        space = pick(source, (" ", "", "\t\n"))
        opening, closing = pick(source, (("", ""), ("(", ")")))
        sign = pick(source, ("", "-"))
        parts.append(f"{opening}{left}{space}{pick(source, '+-*/')}{space}{sign}{right}{closing}")
    return pick(source, ("", "-", " ")) + parts[0]


def fuzz_verifier(source: Source) -> None:
    """`check_equation` never raises, and agrees with the recursive descent on verdict and value."""
    nums = [source.number(0, pick(source, (9, 99, 10**12))) for _ in range(source.number(1, 6))]
    kind = source.number(0, 3)
    if kind == 0:
        text = joined(source, (*EQUATION_SCRAPS, *map(str, nums)))
    elif kind == 1:
        text = source.text(300)
    else:
        text = equation_over(source, nums)
        if kind == 3:
            place = source.number(0, len(text))
            text = text[:place] + pick(source, EQUATION_SCRAPS) + text[place + source.number(0, 2) :]
    target = source.number(-200, 1000)
    if chance(source, 2):  # what it comes to, so that `correct` is met
        with contextlib.suppress(_NoEquationError, ZeroDivisionError, RecursionError):
            target = int(exact_value(text[: verifier.MAX_EQUATION_CHARS]))
    show(text, nums, target)
    verdict = verifier.check_equation(text, nums, target)
    wanted = expected_reasons(text, nums, target)
    promise(verdict.reason.value in wanted, f"{verdict.reason.value} instead of {wanted}")
    promise(verdict.correct == (verdict.reason == "correct"), "correct is what the reason says")
    valued = verdict.reason in ("correct", "wrong_value")
    promise((verdict.value is not None) == valued, "a value where there was something to evaluate")
    if valued:
        promise(verdict.value == exact_value(text), "the value is exact")


# --------------------------------------------------------------------------------------------------------------------
# Answers and reasoning
# --------------------------------------------------------------------------------------------------------------------

ANSWER_SCRAPS = (
    "<think>", "</think>", "<answer>", "</answer>", "<think", "</answer", "<Answer>", "<answer >", " ", "\n", "\t",
    "reasoning", "44 + 19 = 63", "44 + 19 + 35", "(6 * 7)", "6*7", "7", "=", "1.", "\u115f", "\u3164", "\u200b",
    "\u00a0", "\x1b[31m", "\x07", "\r", "\x00", "\u202e", "\ud83d", "\ude00", "\U0001f600", "é", "<", ">", "</",
    "```", "\\boxed{42}", *completions.END_OF_TEXT,
)  # fmt: skip
REASONING_SCRAPS = (
    " ", "\n", ".", "=", "-", "7", "44 + 19 = 63", "equals ", "gives us ", "gives me", "I get ", "too high", "too low",
    "doesn't work", "isn’t", " not quite right", "let me try", "let's ", "wait", "no", ", no.", "yes!", "yes ?!",
    "this works", "that is the target", "let me double-check", "✓", "correct", "I still need to get another -",
    "we need", "54 more", "left", "the remaining", "first, I'll ", "next we can ", "if we get", "working backwards",
    "get closer to", "\t", "\r", "\u2028", ";", "!", "?", "\x00", "\ud800", "İ", "ſ", "K",
)  # fmt: skip


def fuzz_answers(source: Source) -> None:
    """A completion of any shape is read, judged, shown and kept; the format is what a regular expression says it is."""
    text = joined(source, ANSWER_SCRAPS)
    if chance(source, 2):
        text = f"{text}</think>{joined(source, ANSWER_SCRAPS, 3)}<answer>{joined(source, EQUATION_SCRAPS, 8)}</answer>"
    completion: Any = text
    if chance(source, 4):
        completion = json_value(source, ("role", "content", "type", "text"))
        if chance(source, 2):
            completion = [{"role": "assistant", "content": text}, completion]
    prompt = pick(source, (None, "", "<think>", "a prompt\n<think>\n", [{"role": "user", "content": "?"}], [], [7], 3))
    show(completion, prompt)
    given = completions.response(completion, prompt)
    body = given.removeprefix(completions.THINK_OPEN)
    promise(not body.endswith(completions.END_OF_TEXT), "end-of-text tokens are taken off")
    promise(given == completions.THINK_OPEN or given == given.rstrip(), "white space at the end is taken off")
    if prompt is None:
        promise(completions.response(given) == given, "a whole turn stays what it is")

    found = completions.extract_answer(given)
    answer = None if isinstance(found, verifier.Reason) else found  # a reason is a string too
    if answer is None:
        promise(found in ("no_answer", "several_answers"), "a completion's own reasons")
    else:
        promise(answer in given, "an answer is part of the response")
        promise("<answer>" not in answer and "</answer>" not in answer, "an answer holds no tag")
    thought = completions.thinking(given)
    promise(completions.THINK_CLOSE not in thought and thought in given, "reasoning ends where it is closed")

    formed = completions.has_format(given)
    tags = ("<think>", "</think>", "<answer>", "</answer>")
    whole = all(given.count(tag) == 1 for tag in tags) and re.fullmatch(
        r"\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*", given, re.DOTALL
    )
    spoken = [re.sub(r"[\u115f\u1160\u3164\uffa0\W_]", "", part) for part in whole.groups()] if whole else []
    if formed:
        promise(whole and answer is not None, "the format has one answer after one reasoning")
        promise(all(part.strip() for part in (thought, str(answer))), "the format holds something")
    elif whole:
        promise(not all(any(c.isalnum() for c in part) for part in spoken), "what has the format is told so")

    nums = [source.number(0, 99) for _ in range(source.number(1, 4))]
    if answer is not None and chance(source, 2):
        nums = [int(n) for n in re.findall("[0-9]{1,20}", answer)[:6]] or nums
    target = source.number(-10, 100)
    if answer is not None:
        with contextlib.suppress(_NoEquationError, ZeroDivisionError, RecursionError):
            target = int(exact_value(answer[: verifier.MAX_EQUATION_CHARS]))
    verdict = completions.judge(given, nums, target)
    if answer is not None:
        wanted = expected_reasons(answer, nums, target)
        promise(verdict.reason.value in wanted, f"{verdict.reason.value} instead of {wanted}")
    else:
        promise(verdict == verifier.Verdict(verifier.Reason(found)), "no verdict on an equation without an answer")

    shown = printable(given)
    promise(all(c in "\n\t" or c.isprintable() for c in shown), "nothing drives a terminal")
    promise(printable(shown) == shown, "what is printable stays")
    value = None if verdict.value is None else str(verdict.value)
    sample = Sample(3, "train", nums, target, given, verdict.reason.value, value, float(formed),
                                float(verdict.correct), 7, 0, 1)  # fmt: skip
    promise(all(c in "\n\t" or c.isprintable() for c in sample.as_text()), "nothing drives a terminal")
    line = json.dumps(dataclasses.asdict(sample)).encode()
    kept = dataclasses.replace(sample, response=json.loads(json.dumps(given)))  # joins two halves of a pair
    promise(run_record._parse_sample(line) == kept, "a sample is read as it was written")


def fuzz_reasoning(source: Source) -> None:
    """The lexicon counts in any text; its expressions take no more than linear time."""
    text = joined(source, REASONING_SCRAPS, 40)
    show(text)
    counts = reasoning.signs_of_search(text)
    promise(list(counts) == list(reasoning.SIGNS), "every sign is counted")
    promise(all(type(count) is int and 0 <= count <= len(text) for count in counts.values()), "counts are counts")
    more = reasoning.signs_of_search(f"{text}\n44 + 19 = 63")
    promise(more["attempts"] == counts["attempts"] + 1, "a line more is an attempt more")


# --------------------------------------------------------------------------------------------------------------------
# Recipes
# --------------------------------------------------------------------------------------------------------------------


@functools.cache
def recipe_types() -> tuple[type, ...]:
    """What the run parses; loads TRL."""
    from trl import GRPOConfig, ModelConfig

    return (ModelConfig, *OWN_ARGUMENTS, GRPOConfig)


@functools.cache
def recipe_hints() -> dict[str, Any]:
    return {key: hint for one in recipe_types() for key, hint in typing.get_type_hints(one).items()}


YAML_VALUES = (
    "1", "0", "-1", "true", "false", "yes", "no", "on", "off", "null", "~", "", "1.0", "5e-7", "5.0e-7", "1e400",
    ".inf", ".nan", "-.INF", "nan", "inf", "0x1f", "0o17", "017", "1_000", "1:30", "190:20:30.15", "2001-12-14",
    "2001-99-99", "2001-12-14t21:59:43.10-05:00", "text", "steps", '"no"', "'it''s'",
    '"\\e[2J"', '"\\ud800"', '"\\x00"', "[1, 2]",
    "[3, 4]", "[a, b]", "[]", "{}", "{a: 1}", "[[1], [2]]", "{a: {b: [c]}}", "[", "]", "{", "}", "- 1", "|", ">-",
    "&a [x, x]", "*a", "&a [*a]", "&b [*a, *a, *a, *a, *a, *a, *a, *a]", "&c [*b, *b, *b, *b, *b, *b, *b, *b]", "*b",
    "*c", "&d [*c, *c, *c, *c, *c, *c, *c, *c]", "&e [*d, *d, *d, *d, *d, *d, *d, *d]", "*e", "&m {<<: *m}",
    "{<<: *a}", "!!str 1", "!!int x", "!!float abc", "!!bool 3", "!!null x", "!!set {a, b}", "!!omap [a: 1]",
    "!!pairs [a: 1]", "!!binary aGk=", "!!binary é", "!!timestamp x", "!!merge x", "!!python/object:os.system x",
    "!!python/name:os.system", "!x y", "!!seq a", "!!map a", "? x", "? [a]", "%YAML 9.9", "---", "...", "#",
    "generate", "drop", "paged_adamw_8bit", "cosine", "vllm", "server", "colocate", "bfloat16", "11111111111111111111",
    "1" * 400, "1" * 5000, "[" * 600, "{a: " * 300, "0b2", "-0", "+1", "1e3", "!!int '1_'", "0x", "0b", "1:99:99",
)  # fmt: skip
YAML_SCRAPS = (
    *YAML_VALUES, "\n", ": ", "\n- ", "\n  ", " ", "\t", "\r\n", "\x85", "\u2028", "\ufeff", "\x00", "\x1b", "'", '"',
    "<<: ", "&a ", "*a ", "!", "@", "`", "%", ",", "env:\n  A: 1\n", "\n---\n", "a: &x {b: 1}\n", "<<: [*x, *x]\n",
)  # fmt: skip


def recipe_keys() -> tuple[str, ...]:
    odd = ("env", "<<", "learnin_rate", "~", "1", "[a]", "{a: 1}", '"\\e"', "", "*a", "&k key", "!!str max_steps", "é")
    common = ("learning_rate", "max_steps", "num_generations", "number_range", "number_counts", "sample_share", "beta",
              "optim_target_modules", "report_to", "dataset_id_or_path", "scale_rewards", "dry_run")  # fmt: skip
    return (*common, *odd, *recipe.REMOVED_KEYS, *recipe_hints())


ENVIRONMENT = (
    "", "\n  NAME: value", "\n  OTHER: 3", '\n  "A=B": 1', '\n  "": 1', '\n  "A\\0B": 1', '\n  A: "\\0"',
    '\n  A: "\\ud800"', '\n  "\\ud800": 1', "\n  A: [1, 2]", " [1]", " text", " null", "\n  1: 2", "\n  [a]: 2",
)  # fmt: skip


def value_of(source: Source, key: str) -> str:
    """What a recipe says of a key: in most cases something of the right type."""
    kind = source.number(0, 7)
    if kind == 7:
        return source.text(20)
    if kind >= 5 or key not in recipe_hints():
        return pick(source, YAML_VALUES)
    name = str(recipe_hints()[key])
    if "bool" in name:
        return pick(source, ("true", "false", "no", "yes"))
    if "list" in name:
        return pick(source, ("[3, 4]", "[1, 99]", "[10, 100]", "[]", "[a]", "[0.5]"))
    if "dict" in name:
        return pick(source, ("{}", "{a: 1}", '{"a": [1]}', "text"))
    if "int" in name or "float" in name:
        return pick(source, ("1", "4", "0", "2", "8", "-1", "64")) if "float" not in name or kind else "5e-7"
    return pick(source, ("generate", "text", "drop", "fail", "steps", "vllm", "server", "folder"))


def recipe_text(source: Source) -> bytes:
    """A recipe's file: mostly lines of known keys, some of them with values that fit; else scraps or bytes."""
    kind = source.number(0, 7)
    if kind == 6:
        return source.raw(600)
    if kind == 7:
        return encoded(joined(source, YAML_SCRAPS, 40))
    lines: dict[str, str] = {}
    for place in range(source.number(0, 8)):
        key = pick(source, recipe_keys())
        if key == "env":
            line = "env:" + "".join(pick(source, ENVIRONMENT) for _ in range(source.number(0, 3)))
        else:
            line = f"{key}: {value_of(source, key)}"
        if chance(source, 30):
            line += joined(source, YAML_SCRAPS, 3)
        lines[f"{key}{place}" if chance(source, 30) else key] = line  # seldom a key twice
    content = encoded("\n".join(lines.values()))
    return damaged(source, content) if chance(source, 6) else content


def command_line(source: Source, path: Path) -> list[str]:
    """Words behind the program's name, in half of all cases with the recipe at `path` first."""
    words: list[str] = []
    for _ in range(source.number(0, 4)):
        kind = source.number(0, 11)
        key = pick(source, recipe_keys())
        if kind <= 4:
            words += [f"--{key}", *value_of(source, key).split(pick(source, (" ", ", ")))]
        elif kind <= 6:
            words.append(f"--{key}={value_of(source, key)}")
        elif kind == 7:
            words.append(pick(source, (f"--{key}", f"--no_{key}", f"--{key.replace('_', '-')}")))
        elif kind == 8:
            words.append(pick(source, ("--config", f"--config={path}", "--config=", "--", "-", "", "--dry-run=no",
                                       "--dry_run", "--config=" + "a" * 300, "nowhere.yaml",
                                       str(path.parent))))  # fmt: skip
        elif kind == 9:
            words += ["--config", str(path)]
        elif kind == 10:
            words.append(pick(source, YAML_SCRAPS))
        else:
            words.append(source.text(20))
    if chance(source, 2):
        words = ["--config", str(path), *words]
    words = [word for word in words if not word.startswith(("-h", "--help"))]  # help ends the program
    return [re.sub("[\0\ud800-\udc7f\udd00-\udfff]", "", word) for word in words]  # no system passes those on


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value that was let through is what the plainest hints promise."""
    if hint is bool:
        return type(value) is bool
    if hint is int:
        return type(value) is int
    if hint is float:
        return type(value) in (int, float) and abs(value) < math.inf
    return True


def fuzz_recipe(source: Source) -> None:
    """A recipe file and a command line are read or refused with a RecipeError; what passes has the right types."""
    text = recipe_text(source)
    with folder_for_one() as folder, same_environment():
        path = folder / "recipe.yaml"
        path.write_bytes(text)
        words = command_line(source, path)
        show(text, words)
        found = None
        try:
            found = recipe.read_yaml(path)
        except RecipeError as error:
            promise(str(error).strip(), "an error says something")
        if found is not None:
            promise(type(found) is dict and all(type(key) is str for key in found), "keys are text")
            promise(repr(found) == repr(yaml.safe_load(path.read_text(encoding="utf-8"))), "YAML is read as YAML")
            with contextlib.suppress(RecipeError):
                recipe.check_keys_and_types(found, recipe_hints(), "recipe")
                for key in found.keys() - {"env"}:
                    value = float(found[key]) if recipe_hints()[key] is float else found[key]
                    plain = _fits(recipe_hints()[key], value) or (type(value) is bool and key in recipe.TRUTH_VALUE_TOO)
                    promise(plain, f"{key} may not be {value!r:.99}")
        named = recipe.path_in(words)
        promise(named is None or "--config" in [w.partition("=")[0] for w in words], "a path is what was named")
        with contextlib.suppress(RecipeError):
            values = recipe.read_values(recipe_types(), words)
            promise(vars(values).keys() == recipe_hints().keys(), "every key is there")
            check_values(values)


# --------------------------------------------------------------------------------------------------------------------
# Puzzles
# --------------------------------------------------------------------------------------------------------------------

NUMS_CELLS = (
    "[44, 19, 35]", "44 19 35", "44,19", "1", "[", "]", ",", " ", "\t", "\u2003", "٣", "²", "-1", "1.5", "99", "007",
    '"', "'", "1 2 3 4 5 6 7", "\n", "\x00", "1" * 5000, "None", "nan", "__import__('os')",
)  # fmt: skip
CSV_SCRAPS = ("nums,target\n", "nums", "target", ",", '"', "\n", "\r\n", "\r", ";", "\x00", "\ufeff", '"[1, 2]",3\n',
              "[5 6],30\n", "1 2,3,4\n", '""', *NUMS_CELLS)  # fmt: skip


def row(source: Source) -> Any:
    """A row of a data set, sound in some cases and anything in others."""
    sound = {"nums": [44, 19, 35][: source.number(2, 3)], "target": source.number(-5, 100)}
    kind = source.number(0, 5)
    if kind <= 1:
        return sound
    if kind == 2:
        return changed(source, sound, ("x",))
    if kind == 3:
        return {"nums": [json_value(source, ("a",), 2) for _ in range(source.number(1, 7))], "target": 9}
    if kind == 4:
        return {"nums": joined(source, NUMS_CELLS, 8, repeated=6), "target": pick(source, NUMS_CELLS)}
    return json_value(source, ("nums", "target"))


def parquet_content(source: Source) -> bytes:
    """A table of many column types, as a file; sometimes damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = source.number(1, 4)
    types: tuple[tuple[Any, Any], ...] = (
        (pa.list_(pa.int64()), [[44, 19, 35]]), (pa.int64(), [63]), (pa.list_(pa.int8()), [[1, 2]]),
        (pa.string(), ["1 2"]), (pa.list_(pa.float64()), [[1.0, math.nan]]), (pa.float64(), [math.nan]),
        (pa.binary(), [b"\xff"]), (pa.list_(pa.string()), [["1"]]), (pa.bool_(), [True]), (pa.null(), [None]),
        (pa.timestamp("ns"), [2**62]), (pa.timestamp("s"), [2**60]), (pa.date64(), [2**60]),
        (pa.duration("s"), [2**60]), (pa.time64("ns"), [2**60]), (pa.struct([("a", pa.int64())]), [{"a": 1}]),
        (pa.map_(pa.string(), pa.int64()), [[("a", 1)]]),
        (pa.timestamp("us", tz="Nowhere/City"), [0]), (pa.dictionary(pa.int8(), pa.string()), ["x"]),
        (pa.decimal128(5), [7]), (pa.large_list(pa.uint64()), [[2**64 - 1, 1]]), (pa.list_(pa.int64()), [None]),
    )  # fmt: skip
    columns, names = [], []
    for name in ("nums", "target", "x", "nums")[: source.number(1, 4)]:
        plausible = 0 if name == "nums" else 1
        kind, values = types[plausible] if not chance(source, 2) else pick(source, types)
        columns.append(pa.array(values * count, type=kind))
        names.append(name)
    stream = io.BytesIO()
    with contextlib.suppress(pa.ArrowException):  # not every type has a place in the format
        pq.write_table(pa.Table.from_arrays(columns, names=names), stream)
    content = bytearray(stream.getvalue())
    if chance(source, 2):
        for _ in range(source.number(1, 8)):
            if content:
                content[source.number(0, len(content) - 1)] = source.number(0, 255)
    return damaged(source, bytes(content))


def puzzle_file(source: Source, suffix: str) -> bytes:
    """What a file of that kind may hold."""
    if suffix == ".parquet":
        return parquet_content(source)
    if suffix == ".csv":
        kind = source.number(0, 2)
        if kind == 0:
            return damaged(source, encoded("nums,target\n" + joined(source, CSV_SCRAPS, 20)))
        return damaged(source, encoded(joined(source, CSV_SCRAPS, 30)) if kind == 1 else source.raw(600))
    rows = [row(source) for _ in range(source.number(0, 6))]
    if suffix == ".json" and not chance(source, 3):
        return damaged(source, encoded(json_text(source, pick(source, (rows, rows, {"rows": rows})))))
    line_end = pick(source, ("\n", "\n", "\r\n", "\n\n \n", ""))
    return damaged(source, encoded(line_end.join(json_text(source, one) for one in rows)))


def check_puzzle(puzzle: countdown_puzzle.Puzzle) -> None:
    """What everything behind the loader takes for granted."""
    promise(2 <= len(puzzle.nums) <= countdown_puzzle.MAX_NUMBERS, "a puzzle has two to six numbers")
    promise(all(type(n) is int and n >= 0 for n in puzzle.nums), "numbers are non-negative integers")
    promise(type(puzzle.target) is int, "a target is an integer")


LOCAL_PATHS = ("~", "~nobody-of-this-name/x", "/nowhere/", "./nowhere", "a" * 300, ".jsonl", ".csv", "x", "/",
               "generate", "\x00", "\ud800", "..", " ")  # fmt: skip


def fuzz_puzzles(source: Source) -> None:
    """Rows, files, folders and paths become sound puzzles, parted without overlap, or a DataError."""
    kind = source.number(0, 7)
    if kind == 6:
        given = row(source)
        show(given)
        with contextlib.suppress(ValueError):
            check_puzzle(puzzle_data.parse_row(given))
        return
    if kind == 7:
        path = joined(source, LOCAL_PATHS, 3)
        show(path)
        # What is there, and what is on the Hub, is not for this program to read.
        if puzzle_data.is_local(path) and path != "generate" and not puzzle_data.is_there(puzzle_data.local_path(path)):
            with contextlib.suppress(DataError):
                puzzle_data.load_puzzles(path, rows=0, seed=0, held_out_puzzles=0)
        return
    with folder_for_one() as folder:
        files = {}
        for place in range(1 if kind else source.number(1, 3)):
            suffix = pick(source, puzzle_data.SUFFIXES) if chance(source, 4) else (".jsonl", ".json", ".csv")[kind % 3]
            files[f"{place}{suffix}"] = puzzle_file(source, suffix)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        strict = chance(source, 4)
        show(files)
        try:
            split = puzzle_data.load_puzzles(
                str(folder / next(iter(files)) if len(files) == 1 else folder),
                rows=source.number(0, 4), seed=1, held_out_puzzles=pick(source, (0, 1000)),
                on_bad_row="fail" if strict else "drop",
            )  # fmt: skip
        except DataError as error:
            promise(str(error).strip(), "an error says something")
            return
    for puzzle in (*split.train, *split.held_out):
        check_puzzle(puzzle)
    promise(split.train, "there is something to train on")
    promise(split.dropped >= 0 and not (strict and split.dropped), "nothing is dropped when that is an error")
    sides = [{countdown_puzzle.puzzle_key(*puzzle) for puzzle in side} for side in (split.train, split.held_out)]
    promise(not sides[0] & sides[1], "no puzzle is on both sides")


# --------------------------------------------------------------------------------------------------------------------
# Run folders
# --------------------------------------------------------------------------------------------------------------------

SAMPLE = {
    "step": 3, "split": "train", "nums": [44, 19, 35], "target": 98, "response": "<think>44+19=63</think>",
    "reason": "correct", "value": "98", "format_reward": 1.0, "equation_reward": 0.0, "completion_tokens": 30,
    "rank": 0, "index": 1,
}  # fmt: skip
RUN = {
    "name": "run", "started": "2025-01-01", "command": ["run_r1_grpo.py"], "git_commit": None, "versions": {"trl": "1"},
    "hardware": {"processes": 1}, "split": {"share": 0.1, "held_out_puzzles": 100},
    "recipe": {"max_steps": 10, "eval_puzzles": 64, "sample_share": 0.1, "success_sample_share": 0.1,
               "model_name_or_path": "nobody/nothing", "model_revision": "main", "number_range": [1, 99],
               "number_counts": [3, 4], "dataset_id_or_path": "generate"},
}  # fmt: skip
ENTRY = {
    "step": 1, "loss": 0.1, "rewards/equation_reward_func/mean": 0.5, "completions/mean_length": 40.0, "step_time": 2.0,
    "eval_rewards/equation_reward_func/mean": 0.25, "eval_completions/mean_length": 40.0, "thinking/attempts": 1.0,
}  # fmt: skip
POINT = {"step": 1, "pass@1": 0.5, "low": 0.4, "high": 0.6, "puzzles": 64, "mean_tokens": 40.0}
EVALUATION = {"table": [{"checkpoint": "base", "pass@1": 0.5}], "temperature": 1.0, "puzzles": 64}
CHECKPOINT_NAMES = ("checkpoint-1", "checkpoint-20", "checkpoint-x", "checkpoint-²", "checkpoint-٣", "checkpoint-")


def run_description(source: Source) -> Any:
    """What `run.json` may hold."""
    described = changed(source, RUN)
    for part in ("recipe", "split"):
        if isinstance(described.get(part), dict):
            described[part] = changed(source, described[part], ("x",))
    return described


def run_files(source: Source) -> dict[str, bytes | None]:
    """The files of a run folder by path; None stands for a folder in the place of a file."""
    makers: dict[str, Callable[[], Any]] = {
        "run.json": lambda: run_description(source),
        "trainer_state.json": lambda: {"global_step": 3, "log_history": [
            changed(source, ENTRY) for _ in range(source.number(0, 3))]} if not chance(source, 6)
            else json_value(source, ("log_history", "step", "global_step")),
        "held_out.json": lambda: [changed(source, POINT) for _ in range(source.number(0, 3))] if not chance(source, 6)
            else json_value(source, tuple(POINT)),
        "evaluation/held_out.json": lambda: changed(source, EVALUATION, ("pass@1", "checkpoint")),
    }  # fmt: skip
    files: dict[str, bytes | None] = {}
    for name, make in makers.items():
        if name == "run.json" or chance(source, 2):
            files[name] = damaged(source, encoded(json_text(source, make())))
    for name in ("completion_samples.jsonl", "success.jsonl")[: source.number(0, 2)]:
        records = [json_text(source, changed(source, SAMPLE, ("x",))) for _ in range(source.number(0, 4))]
        files[f"samples/{name}"] = damaged(source, encoded("\n".join(records)))
    for _ in range(source.number(0, 2)):
        folder = pick(source, CHECKPOINT_NAMES)
        files[f"{folder}/trainer_state.json"] = damaged(source, encoded(json_text(source, {"log_history": [ENTRY]})))
        files[f"{folder}/config.json"] = files[f"{folder}/model.safetensors"] = b""
    if chance(source, 2):
        files["config.json"] = files["model.safetensors"] = b""
    if chance(source, 8):
        files["tensorboard/events.out.tfevents.1"] = event_file(source)
    if chance(source, 8):
        files[pick(source, sorted(files))] = None
    return files


def event_file(source: Source) -> bytes:
    """TensorBoard records with right checksums and whatever content, damaged or not."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    stream = io.BytesIO()
    writer = RecordWriter(stream)
    for _ in range(source.number(0, 4)):
        tag = pick(source, ("train/reward", "eval/reward", "x", "", "train/rewards/equation_reward_func/mean"))
        value = pick(source, (0.5, 1.0, 3.0, -1.0, math.nan, math.inf, 3e38))
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
        event = Event(step=pick(source, (1, 2, 0, -1, 2**62)), wall_time=1.0, summary=summary).SerializeToString()
        writer.write(source.raw(60) if chance(source, 6) else event)
    return damaged(source, stream.getvalue())


def fuzz_samples(source: Source) -> None:
    """A run folder in any state is read, shown on the page and resolved to checkpoints, or refused: a RecipeError."""
    files = run_files(source)
    show(files)
    with folder_for_one() as folder:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                (folder / name).mkdir()
            else:
                (folder / name).write_bytes(content)
        with contextlib.suppress(RecipeError):
            for checkpoint in checkpoints.resolve(str(folder)):
                checkpoint.may_have_trained_on(countdown_puzzle.Puzzle((44, 19, 35), 98))
        try:
            run = run_record.read_run(folder)
        except RecipeError as error:
            promise(str(error).strip(), "an error says something")
            return
    check_run(run)
    page = report_page.build_page([run], report_page.make_charts([run]))
    encoded_page = page.encode("utf-8")  # as it is written
    blocks = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    promise(len(blocks) == 2 and page.count("<script") == 3, "data never becomes markup")
    texts = json.loads(blocks[-1])["response"]
    promise(all(c in "\n" or c == "\t" or c.isprintable() for text in texts for c in text), "texts are printable")
    promise(b"\x1b" not in encoded_page, "nothing drives a terminal")


def check_run(run: run_record.RunRecord) -> None:
    """What `RunRecord` promises of its attributes, whatever the folder held."""
    promise(
        isinstance(run.description, dict) and isinstance(run.recipe, dict) and isinstance(run.name, str), "described"
    )
    steps = [entry["step"] for entry in run.history]
    promise(steps == sorted(steps) and len(set(steps)) == len(steps), "the history is in order")
    values = [value for entry in run.history for value in entry.values()]
    promise(all(type(v) in (int, float) and abs(v) < 1e309 for v in values), "the history's values are finite")
    points = [point["step"] for point in run.held_out]
    promise(points == sorted(points) and len(set(points)) == len(points), "evaluations are in order")
    order = [(s.step, s.split, s.rank, s.index) for s in run.samples]
    promise(order == sorted(order), "samples are in order")
    for sample in run.samples:
        promise(type(sample.nums) is list and all(type(n) is int for n in sample.nums), "numbers are integers")
        texts = (sample.split, sample.response, sample.reason)
        promise(type(sample.target) is int and all(type(t) is str for t in texts), "samples are whole")
    promise(run.skipped >= 0 and isinstance(run.step, int), "counts are counts")


# --------------------------------------------------------------------------------------------------------------------
# Running
# --------------------------------------------------------------------------------------------------------------------

TARGETS: dict[str, Callable[[Source], None]] = {
    "verifier": fuzz_verifier,
    "answers": fuzz_answers,
    "recipe": fuzz_recipe,
    "puzzles": fuzz_puzzles,
    "samples": fuzz_samples,
    "reasoning": fuzz_reasoning,
}
# Words that libFuzzer puts into the raw parts of an input.
DICTIONARY: dict[str, tuple[str, ...]] = {
    "verifier": EQUATION_SCRAPS,
    "answers": ANSWER_SCRAPS,
    "recipe": YAML_SCRAPS,
    "puzzles": (*CSV_SCRAPS, '{"nums": [1, 2], "target": 3}', "PAR1", "null", "NaN", "[[", "]]", "\\ud800"),
    "samples": (*SAMPLE, *RUN, *ENTRY, *POINT, "null", "NaN", "1e999", "\\ud800", "log_history"),
    "reasoning": REASONING_SCRAPS,
}


class _Formatting(logging.Handler):
    """Puts messages together, as a terminal would see them, and shows them to nobody."""

    def emit(self, record: logging.LogRecord) -> None:
        record.getMessage()


def prepare(name: str) -> None:
    """What this process needs besides the targets: no messages, and TRL loaded before time is measured."""
    if name == "recipe":
        recipe_hints()
    logger = logging.getLogger("mini_r1")
    logger.handlers, logger.propagate = [_Formatting()], False
    logging.getLogger("tensorboard").disabled = True


class Examiner:
    """Runs a target on one input after the other and keeps each kind of finding once."""

    def __init__(self, name: str, folder: Path):
        self.name, self.folder = name, folder
        self.known: set[str] = set()

    def __call__(self, data: bytes) -> None:
        started = time.process_time()
        try:
            TARGETS[self.name](BytesSource(data))
        except Exception as error:  # noqa: BLE001 - finding these is the purpose
            self.keep(data, _place(error), "".join(traceback.format_exception(error)))
        else:
            if time.process_time() - started > CPU_SECONDS:
                self.time_again(data)

    def time_again(self, data: bytes) -> None:
        """Something else may have taken the time: collecting garbage, a first import."""
        started = time.process_time()
        with contextlib.suppress(Exception):
            TARGETS[self.name](BytesSource(data))
        seconds = time.process_time() - started
        if seconds > CPU_SECONDS:
            self.keep(data, "slow", f"took {seconds:.2f} s of CPU time, at most {CPU_SECONDS} s are allowed\n")

    def keep(self, data: bytes, kind: str, report: str) -> None:
        if kind in self.known:
            return
        self.known.add(kind)
        path = self.folder / f"{self.name}-{len(self.known)}.bin"
        path.write_bytes(data)
        values = "".join(f"{value!r:.4000}\n" for value in _seen)
        path.with_suffix(".txt").write_text(f"{report}\n{values}", encoding="utf-8", errors="backslashreplace")
        if len(self.known) >= MAX_FINDINGS:
            os._exit(1)


def _place(error: BaseException) -> str:
    """Which finding an exception is: its type, and the innermost line of the project that it went through."""
    if isinstance(error, Violation):
        return f"Violation: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(str(ROOT))]
    return f"{type(error).__name__} {ours[-1].filename}:{ours[-1].lineno}"


def fuzz(name: str, seconds: int, seed: int, folder: Path, corpus: Path | None) -> None:
    """Fuzzes in this process, which does not come back."""
    import atheris

    prepare(name)
    words = folder / "dictionary"
    entries = {"".join(f"\\x{byte:02x}" for byte in encoded(word)[:60]) for word in DICTIONARY[name] if word}
    words.write_text("".join(f'"{entry}"\n' for entry in sorted(entries)))
    # From nothing, libFuzzer takes long to come to inputs that are long enough for a whole file.
    draw = random.Random(seed)
    seeds = folder / "seeds"
    seeds.mkdir()
    for place in range(SEED_INPUTS):
        (seeds / f"{place:03}").write_bytes(draw.randbytes(8 << draw.randrange(8)))
    options = {
        "seed": seed, "max_total_time": seconds, "timeout": HANG_SECONDS, "report_slow_units": HANG_SECONDS,
        "rss_limit_mb": RSS_MEGABYTES, "max_len": MAX_INPUT_BYTES, "len_control": 20, "keep_seed": 1,
        "reduce_inputs": 0, "dict": words, "artifact_prefix": f"{folder}/{name}-", "print_final_stats": 1,
    }  # fmt: skip
    flags = [f"-{key}={value}" for key, value in options.items()]
    examiner = Examiner(name, folder)
    atheris.Setup([sys.argv[0], *flags, *([str(corpus)] if corpus else []), str(seeds)], examiner)
    atheris.Fuzz()


def replay(name: str, path: Path) -> int:
    """Runs one saved input, shows what was made of it, and lets its exception through."""
    prepare(name)
    started = time.process_time()
    try:
        TARGETS[name](BytesSource(path.read_bytes()))
    finally:
        shutil.rmtree(workplace())
        print(*(f"{value!r:.4000}" for value in _seen), sep="\n")
    print(f"no finding, {time.process_time() - started:.3f} s of CPU time")
    return 0


def start(name: str, seconds: int, seed: int, folder: Path, corpus: Path | None) -> bool:
    """Fuzzes one target in a process of its own and prints its line. Whether nothing was found."""
    if corpus is not None:
        corpus = corpus / name
        corpus.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, name, INSIDE, str(folder), "--seconds", str(seconds), "--seed", str(seed)]
    started = time.monotonic()
    # The same dictionaries and sets in the same order: one seed, one run.
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    with (folder / f"{name}.log").open("w+", errors="backslashreplace") as log:
        child = [*command, *(["--corpus", str(corpus)] if corpus else [])]
        process = subprocess.Popen(child, stdout=log, stderr=log, env=environment)
        try:
            process.wait()
        finally:
            process.kill()
            for left in (Path("/dev/shm"), Path(tempfile.gettempdir())):
                for place in left.glob(f"{FILES_PREFIX}{process.pid}-*"):
                    shutil.rmtree(place)
        log.seek(0)
        output = log.read()
    elapsed = time.monotonic() - started
    runs = re.findall(r"^(?:stat::number_of_executed_units: |#)(\d+)", output, re.MULTILINE)
    covered = re.findall(r"cov: (\d+) ft: (\d+)", output)
    findings = sorted(path for path in folder.glob(f"{name}-*") if path.suffix != ".txt")
    executions = max(map(int, runs), default=0)
    edges = f"{covered[-1][0]} edges, {covered[-1][1]} features" if covered else "no coverage"
    print(f"{name}: {executions} executions in {elapsed:.0f} s, {edges}, {len(findings)} findings", flush=True)
    for path in findings:
        report = path.with_suffix(".txt")
        last = report.read_text(errors="replace").strip().splitlines() if report.is_file() else []
        said = next(
            (line for line in reversed(last) if re.match(r"[\w.]*(Error|Violation|Exception)\b|took ", line)), ""
        )
        print(f"  {path} {said[:200]}")
    if process.returncode and not findings:
        print(f"{name}: ended with code {process.returncode}\n{output[-3000:]}")
    return not findings and process.returncode == 0


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=[*TARGETS, "all"])
    parser.add_argument("--seconds", type=int, default=10, help="for each target")
    parser.add_argument("--seed", type=int, default=1, help="from 1 on; the same one tries the same inputs")
    parser.add_argument("--corpus", type=Path, help="a folder of inputs to start from and to keep new ones in")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one saved input and nothing else")
    parser.add_argument(INSIDE, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if importlib.util.find_spec("atheris") is None:
        print("error: atheris is not installed; it is part of the extra `dev` where there is a wheel", file=sys.stderr)
        return 2
    if args.inside:
        fuzz(args.target, args.seconds, args.seed, args.inside, args.corpus)
    if args.replay:
        return replay(args.target, args.replay)
    clean = True
    for name in TARGETS if args.target == "all" else [args.target]:
        folder = Path(tempfile.mkdtemp(prefix=f"mini-r1-fuzz-{name}-"))
        found_nothing = start(name, args.seconds, args.seed, folder, args.corpus)
        if found_nothing:
            shutil.rmtree(folder)
        clean &= found_nothing
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
