"""What reads text and files from outside, on inputs that nobody would write.

`make fuzz` runs this file on many more, random inputs (FUZZ_EXAMPLES); hypothesis shrinks and keeps one that fails.
"""

from __future__ import annotations

import ast
import io
import json
import math
import os
import re
import tempfile
import time
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_r1.common import DataError, RecipeError, printable
from mini_r1.countdown import TASK
from mini_r1.countdown.dataset import PuzzleArguments, load_puzzles, parse_row
from mini_r1.countdown.puzzle import MAX_NUMBERS, Puzzle, is_held_out
from mini_r1.countdown.verifier import MAX_EQUATION_CHARS, MAX_NESTING, check_equation, explain
from mini_r1.recipe.arguments import GuardArguments, HubArguments, ScriptArguments, VLLMArguments
from mini_r1.recipe.files import read_yaml
from mini_r1.recipe.parsing import check_keys_and_types
from mini_r1.report.page import build_page
from mini_r1.responses import END_OF_TEXT, answers_in, has_format, judge, response, thinking
from mini_r1.run_folder.record import read_run
from mini_r1.run_folder.samples import Sample
from mini_r1.signs import SIGNS

EXAMPLES = os.environ.get("FUZZ_EXAMPLES")


def examples(share: float) -> settings:
    """How many inputs a property is tried on: a share of FUZZ_EXAMPLES, smaller for slow ones.

    Without that variable there are a few, the same each time: a test that passed fails only after a change.
    """
    return settings(max_examples=max(1, int(share * int(EXAMPLES or 50))), deadline=None, derandomize=not EXAMPLES)


@contextmanager
def promptly(seconds: float = 2) -> Iterator[None]:
    started = time.process_time()
    yield
    assert time.process_time() - started < seconds


# --------------------------------------------------------------------------------------------------------------------
# Inputs
# --------------------------------------------------------------------------------------------------------------------

any_text = st.text(st.characters(exclude_categories=()), max_size=300)  # lone surrogates included


def scraps(words: Sequence[str], most: int = 20, times: int = 20_000) -> st.SearchStrategy[str]:
    """Words in any order, now and then one of them up to `times` times."""
    word = st.sampled_from(words)
    often = st.builds(lambda one, count: one * count, word, st.integers(2, times))
    return st.lists(word, max_size=most).map("".join) | st.tuples(word, often, word).map("".join)


DEEP = st.just(b"[" * 9999)  # JSON nested beyond Python's stack
HOSTILE = [
    "\ud800",
    "\x1b[2J",
    "</script><script>alert(1)</script>",
    "<!--",
    "{{ 7 * 7 }}",
    "$\\frac$",
    "\u2028",
    "'\"&",
]
NUMBERS = [None, True, False, 0, -1, 0.5, 1e308, math.inf, math.nan, 2**70, 10**400]
json_values = st.recursive(
    st.sampled_from([*NUMBERS, *HOSTILE]) | st.integers(-3, 120) | any_text,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def changed(draw: st.DrawFn, record: dict[str, Any]) -> dict[str, Any]:
    """A sound record, in which up to three values are missing or replaced."""
    keys = draw(st.lists(st.sampled_from(sorted(record)), max_size=3))
    replaced = {key: draw(json_values) for key in keys if draw(st.booleans())}
    return {key: value for key, value in record.items() if key not in keys} | replaced


@st.composite
def damaged(draw: st.DrawFn, content: bytes | str) -> bytes:
    """A file as it was meant, or as a full disk, another encoding or a bad block leaves it."""
    content = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    place = draw(st.integers(0, len(content)))
    match draw(st.sampled_from(["sound", "sound", "sound", "cut", "block", "encoding"])):
        case "cut":
            return content[:place]
        case "block":
            return content[:place] + draw(st.binary(max_size=9)) + content[place + draw(st.integers(0, 9)) :]
        case "encoding":
            return content.decode(errors="replace").encode(draw(st.sampled_from(["utf-16", "utf-8-sig", "utf-32-be"])))
    return content


# --------------------------------------------------------------------------------------------------------------------
# Verifier
# --------------------------------------------------------------------------------------------------------------------

WORDS = [*"+-*/() \t\n\u00a0\x1c", *"0 1 7 12 00 07 ** // -- -( )( 99999999999999999999".split()]
ODD_WORDS = [*WORDS, *"×−²４٣.e_=,x\u200b\0\ud800"]
expressions = st.recursive(
    st.integers(0, 30).map(str),
    lambda inner: st.builds(
        lambda form, left, sign, right: form.format(left, sign, right),
        st.sampled_from(["{}{}{}", "{} {} {}", "({} {} {})", "-({}\t{}-{})", "({}){}-{}"]),
        inner,
        st.sampled_from("+-*/"),
        inner,
    ),
    max_leaves=6,
)
mistaken = st.builds(
    lambda text, place, word: text[:place] + word + text[place:],
    expressions,
    st.integers(0, 20),
    st.sampled_from(ODD_WORDS),
)
equations = st.one_of(expressions, mistaken, scraps(WORDS), scraps(ODD_WORDS), any_text)


def python_value(node: ast.expr) -> Fraction:
    """The value of a syntax tree of the game's operations; ValueError when it holds any other node."""
    match node:
        case ast.Constant(value=int(number)):
            return Fraction(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -python_value(operand)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return python_value(left) + python_value(right)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return python_value(left) - python_value(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return python_value(left) * python_value(right)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return python_value(left) / python_value(right)
    raise ValueError(f"not in the game: {ast.dump(node)}")


def numbers_in(text: str) -> list[int]:
    return [int(n) for n in re.findall("[0-9]+", text[:MAX_EQUATION_CHARS])]


def expected(text: str, nums: Sequence[int], target: int) -> tuple[set[str], Fraction | None]:
    """The reasons that are right (a text may have several faults), and the value, by Python's own parser."""
    if len(text) > MAX_EQUATION_CHARS:
        return {"too_long"}, None
    if not text.strip():
        return {"no_answer"}, None
    fault = re.search(r"[^-0-9+*/()\s]|(?<![0-9])0[0-9]", text)  # Python lets `00` pass
    if fault:
        return {"malformed" if fault[0][0] == "0" else "illegal_character", "notation"}, None
    if max(text[:i].count("(") - text[:i].count(")") for i in range(len(text) + 1)) > MAX_NESTING:
        return {"too_long", "malformed"}, None
    fits = sorted(numbers_in(text)) == sorted(nums)
    try:
        value = python_value(ast.parse(" ".join(text.split()), mode="eval").body)
    except (SyntaxError, ValueError):
        return {"malformed", "notation"}, None
    except ZeroDivisionError:  # what follows may be malformed
        return {"division_by_zero" if fits else "wrong_numbers", "malformed"}, None
    if not fits:
        return {"wrong_numbers"}, None
    return {"correct" if value == target else "wrong_value"}, value


def fitting(text: str, target: int) -> Puzzle:
    """A puzzle that an equation solves, if its value is an integer; else one with its numbers and this target."""
    nums = numbers_in(text)
    _, value = expected(text, nums, 0)
    return Puzzle(nums, target if value is None else int(value))


@examples(3)
@given(equations, st.just([]) | st.lists(st.integers(0, 30), max_size=1), st.just(0) | st.integers(-9, 9))
def test_the_verifier_agrees_with_an_exact_evaluator(text: str, besides: list[int], beside: int):
    nums, target = fitting(text, 98)
    puzzle = Puzzle([*nums, *besides], target + beside)
    with promptly():
        verdict = check_equation(text, *puzzle)
    reasons, value = expected(text, *puzzle)
    assert verdict.reason.value in reasons
    assert verdict.value == value
    assert verdict.correct == (verdict.reason == "correct")
    assert explain(verdict, text, puzzle).isprintable()


# --------------------------------------------------------------------------------------------------------------------
# Responses and signs
# --------------------------------------------------------------------------------------------------------------------

TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
RESPONSE_WORDS = [
    *TAGS,
    "<Answer>",
    "44 + 19 = 63",
    "6*7",
    "\x1b[31m",
    *" \nA7<\u3164\u200b\0\u202e\ud83d",
    *END_OF_TEXT,
]
prose = scraps(RESPONSE_WORDS, most=4)
turns = st.builds(
    "{}</think>{}<answer>{}</answer>{}".format, prose, st.sampled_from(["", "\n", "So"]), equations, prose
)
messages = st.lists(st.fixed_dictionaries({"role": st.just("assistant"), "content": turns | json_values}), max_size=2)
prompts = st.sampled_from([None, "", "<think>", "Add.\n<think>\n", [{"role": "user", "content": "?"}], [], [7], 3])


@examples(2)
@given(st.one_of(turns, scraps(RESPONSE_WORDS), any_text, messages, json_values), prompts, st.integers(-10, 100))
def test_any_completion_is_read_and_judged(completion: Any, prompt: Any, target: int):
    with promptly():
        text = response(completion, prompt)
        answers, reasoning, formed = answers_in(text), thinking(text), has_format(text)
    assert not text.removeprefix("<think>").endswith(END_OF_TEXT)
    assert prompt is not None or response(text) == text  # a whole turn stays what it is
    assert all(answer in text for answer in answers)
    assert reasoning in text
    assert "</think>" not in reasoning

    whole = re.fullmatch(r"\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*", text, re.DOTALL)
    spoken = [re.sub("[\u115f\u1160\u3164\uffa0]", "", part) for part in whole.groups()] if whole else [""]
    says = all(any(c.isalnum() for c in part) for part in spoken)
    assert formed == (says and all(text.count(tag) == 1 for tag in TAGS))

    equation = answers[0] if len(answers) == 1 else ""
    puzzle = fitting(equation, target)
    verdict = judge(TASK, text, puzzle)
    reasons, _ = expected(equation, *puzzle)
    assert verdict.reason.value in ({"several_answers"} if len(answers) == 2 else reasons)
    sample = Sample(3, "train", puzzle, text, verdict.reason.value, None, 1.0, 0.0, 7, 0, 1)
    assert sample.as_text().replace("\n", "").replace("\t", "").isprintable()  # nothing drives a terminal


REASONING_WORDS = [
    *" \n.=-7!;İſ\ud800",
    *"wait no yes! correct left need equals ✓ isn’t".split(),
    *("44 + 19 = 63", "gives us ", "I get ", "too high", "doesn't work", "let me try", "let's ", ", no.", "this works"),
    *("let me double-check", "we need", "54 more", "the remaining", "first, I'll ", "if we get", "working backwards"),
]


@examples(1)
@given(scraps(REASONING_WORDS, most=40) | any_text)
def test_signs_are_counted_in_any_text(text: str):
    with promptly(5):
        counts = {name: count(text) for name, count in SIGNS.items()}
    assert all(type(count) is int and 0 <= count <= len(text) for count in counts.values())
    assert SIGNS["attempts"](f"{text}\n44 + 19 = 63") == counts["attempts"] + 1


# --------------------------------------------------------------------------------------------------------------------
# Puzzles
# --------------------------------------------------------------------------------------------------------------------

CELLS = [*"[], \u2003٣²-\"'\0", *"44 19 1.5 007 [44,19,35]".split(), "9" * 500]
numbers = st.lists(st.integers(0, 10**15), min_size=2, max_size=6)
sound_rows = st.fixed_dictionaries({"nums": numbers, "target": st.integers(-(10**17), 10**17)})
cell_rows = st.fixed_dictionaries({"nums": scraps(CELLS, most=6), "target": st.sampled_from(CELLS)})
rows = st.one_of(sound_rows, changed({"nums": [44, 19, 35], "target": 98}), cell_rows, json_values)


def is_sound(puzzle: Puzzle) -> bool:
    whole = all(type(n) is int and n >= 0 for n in puzzle.nums) and type(puzzle.target) is int
    return whole and 2 <= len(puzzle.nums) <= MAX_NUMBERS


@examples(2)
@given(rows)
def test_a_row_is_a_sound_puzzle_or_refused_in_few_words(row: Any):
    try:
        with promptly():
            assert is_sound(parse_row(row))
        return
    except ValueError as error:
        refused = str(error)
    assert 0 < len(refused) < 200


@examples(1)
@given(sound_rows, st.sampled_from((", ", " ", ",", " , ")), st.sampled_from(["{}", "[{}]"]))
def test_a_cell_is_read_as_the_list_that_it_spells(row: dict[str, Any], between: str, form: str):
    spelled = {"nums": form.format(between.join(map(str, row["nums"]))), "target": f" {row['target']} "}
    assert parse_row(spelled) == parse_row(row) == (tuple(row["nums"]), row["target"])


def parquet(nums: tuple[str, Any], target: tuple[str, Any]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    columns = {"nums": nums, "target": target}
    pq.write_table(pa.table({name: pa.array([one] * 2, kind) for name, (kind, one) in columns.items()}), stream)
    return stream.getvalue()


columns = st.sampled_from(
    [
        ("int64", 63),
        ("string", "1 2"),
        ("binary", b"\xff"),
        ("bool", True),
        ("null", None),
        ("double", math.nan),
        ("date64", 2**60),
        ("timestamp[ns]", 2**62),
    ]
)
lines = st.lists(rows, max_size=4).map(lambda found: "\n".join(map(json.dumps, found)))
FILES = {
    "a.jsonl": lines,
    "b.json": st.lists(rows, max_size=4).map(json.dumps) | lines,
    "c.csv": scraps(['"[1, 2]",3\n', "4 5,6\n", '"', ",", "\n", "\r", *CELLS]).map("nums,target\n{}".format),
    "d.parquet": st.builds(parquet, columns, columns),
}


@examples(1)
@given(st.sampled_from(sorted(FILES)), st.data(), st.sampled_from(["drop", "fail"]), st.sampled_from([0, 3]))
def test_a_file_becomes_sound_puzzles_or_one_line(name: str, data: st.DataObject, on_bad_row: str, rows: int):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, name).write_bytes(data.draw(FILES[name].flatmap(damaged) | DEEP))
        try:
            split = load_puzzles(PuzzleArguments(folder, dataset_rows=rows, on_bad_row=on_bad_row))
        except DataError:
            return
    assert split.train
    assert all(is_sound(puzzle) for puzzle in (*split.train, *split.held_out))
    assert not (split.dropped and on_bad_row == "fail")
    assert not any(is_held_out(*puzzle, share=split.share) for puzzle in split.train)


# --------------------------------------------------------------------------------------------------------------------
# Recipes
# --------------------------------------------------------------------------------------------------------------------

SUBJECTS = (ScriptArguments, PuzzleArguments, VLLMArguments, HubArguments, GuardArguments)
HINTS = {key: hint for subject in SUBJECTS for key, hint in typing.get_type_hints(subject).items()}
YAML_WORDS = [
    *"dataset_rows number_range dry_run sample_share on_bad_row env 1 true no null 5e-7 .inf .nan 0x1f 017".split(),
    *"1:30 2001-99-99 text [3,4] [ ] { } {a:1} ' ~ : ? # --- ... | >- @ ` % &a *a <<: \0 \ufeff".split(" "),
    *(": ", "\n", "\n- ", "\n  ", " ", "\t", '"', '"\\ud800"', "\x85", "\u2028", "1" * 99),
]
# PyYAML writes a text such as 1e7 without quotes; here it is read as a number.
text = st.text().filter(lambda value: not re.fullmatch(r"[-+.0-9]+[eE][-+]?[0-9]+", value))
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text | st.dates(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=9,
)
scalars = st.sampled_from([True, None, 1, 0.5, math.inf, math.nan, "1", "no", [1], [True], [0.5], ["a"], {}, {"a": 1}])
recipes = st.dictionaries(st.sampled_from(sorted(HINTS)), scalars, max_size=2).map(yaml.safe_dump)


def read(content: bytes) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "recipe.yaml").write_bytes(content)
        return read_yaml(Path(folder, "recipe.yaml"))


@examples(0.5)
@given(st.dictionaries(text, plain, max_size=4))
def test_a_recipe_is_read_as_it_was_written(values: dict[str, Any]):
    assert read(yaml.safe_dump(values).encode()) == values


@examples(1)
@given(scraps(YAML_WORDS, times=9).flatmap(damaged) | recipes.map(str.encode))
def test_a_recipe_is_refused_or_has_the_types_of_its_keys(content: bytes):
    with suppress(RecipeError):
        values = read(content)
        check_keys_and_types(values, HINTS, "recipe")
        for key, value in values.items():
            hint = HINTS.get(key)
            assert hint not in (bool, int) or type(value) is hint
            assert hint != list[int] or all(type(one) is int for one in value)
            assert hint is not float or math.isfinite(float(value))


# --------------------------------------------------------------------------------------------------------------------
# Run folders and the page
# --------------------------------------------------------------------------------------------------------------------

SAMPLE = {"step": 3, "split": "train", "nums": [44, 19, 35], "target": 98, "response": "44+19=63", "reason": "correct"}
SAMPLE |= {"value": "98", "format_reward": 1.0, "equation_reward": 0.0, "completion_tokens": 9, "rank": 0, "index": 1}
RECIPE = {"max_steps": 10, "eval_puzzles": 64, "sample_share": 0.1, "success_sample_share": 0.1, "number_counts": [3]}
RUN = {"name": "run", "command": ["run_r1_grpo.py"], "versions": {"trl": "1"}, "hardware": {"processes": 1}}
RUN |= {"split": {"share": 0.1, "held_out_puzzles": 100}, "recipe": RECIPE, "git_commit": None, "started": "2025-01-01"}
RATE, LENGTH = "rewards/equation_reward_func/mean", "completions/mean_length"
ENTRY = {"step": 1, "loss": 0.1, RATE: 0.5, LENGTH: 40.0, f"eval_{RATE}": 0.25, f"eval_{LENGTH}": 40, "step_time": 2}
POINT = {"step": 1, "pass@1": 0.5, "low": 0.4, "high": 0.6, "puzzles": 64, "mean_tokens": 40.0}

words = st.sampled_from(HOSTILE) | any_text
numbers = st.sampled_from([0.0, -1.5, 1e308, math.inf, math.nan, 7])
samples = st.fixed_dictionaries({"response": words, "reason": words, "value": st.none() | words}).map(SAMPLE.__or__)
entries = st.builds(
    lambda step, rate, logged: ENTRY | logged | {"step": step, f"eval_{RATE}": rate},
    *(st.integers(0, 20), st.floats(0, 1), st.dictionaries(words, numbers, max_size=3)),
)
points = st.builds(
    lambda step, mean: POINT | {"step": step, "mean_tokens": mean}, st.integers(0, 20), st.none() | numbers
)
evaluations = st.builds(
    lambda checkpoint, rate, said: {"table": [{"checkpoint": checkpoint, "pass@1": rate}], "puzzles": 64, **said},
    *(words, numbers, st.dictionaries(words, words | numbers, max_size=3)),
)
runs = st.builds(
    lambda names, versions, recipe: RUN | names | {"versions": versions, "recipe": recipe | {"eval_puzzles": 64}},
    st.fixed_dictionaries({"name": words, "git_commit": words, "started": words}),
    *(st.dictionaries(words, words, max_size=3), changed(RECIPE)),
)
states = st.lists(entries, max_size=3).map(lambda log: {"log_history": log})
RUN_FILES = {
    "trainer_state.json": states,
    "checkpoint-2/trainer_state.json": states,
    "held_out.json": st.lists(points, max_size=3),
    "evaluation/held_out.json": evaluations,
}
sample_lines = st.lists(samples, max_size=3).map(lambda found: "\n".join(map(json.dumps, found)))


@st.composite
def cut_off(draw: st.DrawFn, content: str) -> str:
    """A file as it was meant, or as a kill leaves it."""
    return content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content


@pytest.mark.slow
@examples(0.4)
@given(st.data())
def test_a_run_folder_makes_a_page_in_which_data_stays_data(data: st.DataObject):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in ("evaluation", "samples", "checkpoint-2"):
            (folder / name).mkdir()
        (folder / "run.json").write_text(json.dumps(data.draw(runs)))
        (folder / "samples" / "a.jsonl").write_text(data.draw(sample_lines.flatmap(cut_off)))
        for name in data.draw(st.sets(st.sampled_from(sorted(RUN_FILES)))):
            (folder / name).write_text(data.draw(RUN_FILES[name].map(json.dumps).flatmap(cut_off)))
        run = read_run(folder)
        steps, points = [entry["step"] for entry in run.history], [point["step"] for point in run.held_out]
        assert (steps, points) == (sorted(set(steps)), sorted(set(points)))
        assert all(math.isfinite(value) for entry in run.history for value in entry.values())
        order = [(sample.step, sample.split, sample.rank, sample.index) for sample in run.samples]
        assert order == sorted(order)

        page = build_page([run])
        page.encode("utf-8")  # as it is written
        assert "alert(1)</script>" not in page  # no text became markup
        assert "\x1b" not in page
        blocks = re.findall(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
        embedded = json.dumps([json.loads(block) for block in blocks])
        assert all(json.dumps(printable(sample.response)) in embedded for sample in run.samples)
