"""Playing with a checkpoint: what is read, what is said, and whole sessions in a terminal."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import json
import os
import pty
import random
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest

import play
from conftest import ROOT, TINY_MODEL, kill_group, program_environment
from mini_r1.countdown.puzzle import Puzzle
from mini_r1.countdown.solver import is_solvable
from mini_r1.countdown.verifier import MAX_EQUATION_CHARS, Reason
from mini_r1.responses import judge
from mini_r1.run_folder.checkpoints import resolve

PUZZLE = Puzzle((44, 19, 35), 98)

# --------------------------------------------------------------------------------------------------------------------
# Reading puzzles
# --------------------------------------------------------------------------------------------------------------------

NOTATIONS = {
    "plain": "44 19 35 = 98",
    "commas, the target last": "44,19,35 98",
    "a list and an arrow": "[44, 19, 35] -> 98",
    "fat arrow": "44 19 35=>98",
    "typographic arrow": "(44; 19; 35) → 98",
    "nothing but spaces": "  44  19 35   98 ",
    "no spaces": "44,19,35=98",
    "in words": "Numbers: 44, 19, 35; target: 98",
    "a row of the data set": '{"nums": [44, 19, 35], "target": 98}',
    "plus signs": "+44 19 35 = +98",
}


@pytest.mark.parametrize("text", NOTATIONS.values(), ids=NOTATIONS)
def test_a_puzzle_is_read_in_every_usual_notation(text):
    assert play.parse_puzzle(text) == PUZZLE


def test_a_target_may_be_negative():
    assert play.parse_puzzle("3 8 = -5") == Puzzle((3, 8), -5)


NONSENSE = {
    "words": ("hello there", "no puzzle"),
    "nothing": ("", "no puzzle"),
    "an equation": ("(44 + 19) + 35 = 98", "no puzzle"),
    "decimals": ("4.5 2 = 9", "no puzzle"),
    "a minus between numbers": ("44-19-35 = 98", "no puzzle"),
    "digits of another script": ("٤٤ ١٩ = 63", "no puzzle"),
    "terminal escapes": ("\x1b[2J 44 19 = 63", "no puzzle"),
    "the target first": ("98 = 44 19 35", "one target"),
    "two targets": ("44 19 = 63 98", "one target"),
    "no target": ("44 19 35 =", "one target"),
    "two equal signs": ("44 = 19 = 35", "one target"),
    "no numbers": ("98", "not 0 numbers"),
    "no numbers, but a list": ("[] -> 98", "not 0 numbers"),
    "too many numbers": ("1 2 3 4 5 6 7 = 28", "not 7 numbers"),
    "a negative number": ("44 -19 = 25", "positive"),
    "zero": ("44 0 = 44", "positive"),
    "a number without end": ("9" * 5000 + " 1 = 2", "digits"),
    "a target without end": ("1 2 = " + "9" * 5000, "digits"),
}


@pytest.mark.parametrize(("text", "hint"), NONSENSE.values(), ids=NONSENSE)
def test_nonsense_gets_a_hint(text, hint):
    with pytest.raises(ValueError, match=hint):
        play.parse_puzzle(text)


@pytest.mark.parametrize("counts", [[3], [4, 5], [2, 6]])
def test_random_puzzles_have_a_known_number_count_and_a_solution(counts):
    puzzles = [play.random_puzzle(random.Random(seed), counts) for seed in range(20)]
    assert {len(puzzle.nums) for puzzle in puzzles} == set(counts)
    assert all(is_solvable(*puzzle) for puzzle in puzzles)


# --------------------------------------------------------------------------------------------------------------------
# Verdicts in words
# --------------------------------------------------------------------------------------------------------------------


def answered(equation: str) -> str:
    return f"<think>hm</think>\n<answer>{equation}</answer>"


SENTENCES = {
    Reason.CORRECT: (answered(" (44 + 19) + 35 "), "correct: (44 + 19) + 35 = 98"),
    Reason.WRONG_VALUE: (answered("44-19-35"), "wrong value: 44-19-35 = -10, not 98"),
    Reason.WRONG_NUMBERS: (
        answered("44+44+10"),
        "uses the wrong numbers: 44+44+10 (19 is left out, 35 is left out, 44 is used too often, 10 is not given)",
    ),
    Reason.DIVISION_BY_ZERO: (answered("7/(5-5)"), "divides by zero: 7/(5-5)"),
    Reason.NO_ANSWER: ("<think>I", "no answer: nothing stands between <answer> and </answer>"),
    Reason.SEVERAL_ANSWERS: (answered("44") + answered("19"), "several answers: only one may be offered"),
    Reason.TOO_LONG: (
        answered("1" * (MAX_EQUATION_CHARS + 1)),
        f"too long: over 256 characters or 32 nested parentheses: {'1' * 80}…",
    ),
    Reason.ILLEGAL_CHARACTER: (
        answered("44+x\x1b[31m"),
        "illegal character: only numbers, + - * / and parentheses make an equation, not 44+x\\x1b[31m",
    ),
    Reason.MALFORMED: (answered("44 // 2"), "malformed: 44 // 2 is not an equation"),
}
ZERO_PUZZLE = Puzzle((5, 5, 7), 7)


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_its_sentence(reason):
    text, sentence = SENTENCES[reason]
    puzzle = ZERO_PUZZLE if reason is Reason.DIVISION_BY_ZERO else PUZZLE
    verdict = judge(text, *puzzle)
    assert verdict.reason is reason
    assert play.verdict_sentence(verdict, text, puzzle) == sentence


def test_a_fraction_is_told_as_one():
    verdict = judge(answered("7/2"), (7, 2), 3)
    assert verdict.value == Fraction(7, 2)
    assert play.verdict_sentence(verdict, answered("7/2"), Puzzle((7, 2), 3)) == "wrong value: 7/2 = 7/2, not 3"


# --------------------------------------------------------------------------------------------------------------------
# What the run folder says
# --------------------------------------------------------------------------------------------------------------------


def model_folder(folder):
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((TINY_MODEL / name).read_bytes())
    return folder


def test_number_counts_come_from_the_run_of_a_checkpoint(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"recipe": {"number_counts": [4, 5]}}))
    model_folder(tmp_path)
    model_folder(tmp_path / "checkpoint-3")
    for folder in (tmp_path, tmp_path / "checkpoint-3"):
        assert play.known_number_counts(resolve(str(folder))[-1]) == [4, 5]


@pytest.mark.parametrize(
    "recipe", ["3", '{"number_counts": [3, "x"]}', '{"number_counts": []}', '{"number_counts": [9]}']
)
@pytest.mark.parametrize("frame", ["%s", '{"recipe": %s}', '{"recipe": %s'])
def test_a_run_json_that_is_none_is_passed_over(tmp_path, frame, recipe):
    content = frame % recipe
    (tmp_path / "run.json").write_text(content)
    assert play.known_number_counts(resolve(str(model_folder(tmp_path)))[-1]) == [3]


# --------------------------------------------------------------------------------------------------------------------
# Streaming
# --------------------------------------------------------------------------------------------------------------------


class ByteTokenizer:
    """One token per byte, so that one character may take several tokens."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return bytes(ids).decode("utf-8", "replace")


def stream(text: bytes, capsys: pytest.CaptureFixture[str]) -> str:
    import numpy as np

    streamer = play.Streamer(ByteTokenizer(), show=True)
    streamer.put(np.array([[1, 2, 3]]))  # the prompt
    for byte in text:
        streamer.put(np.array([byte]))
    streamer.end()
    return capsys.readouterr().out


def test_the_stream_is_the_whole_text_and_waits_for_whole_characters(capsys):
    text = "44 × 2 = 88 → zu groß 🙂\nnext\tline"
    assert stream(text.encode(), capsys) == text


def test_an_incomplete_character_at_the_end_is_shown_as_such(capsys):
    assert stream("ab🙂".encode()[:-1], capsys) == "ab\ufffd"


def test_escape_sequences_of_a_model_reach_the_terminal_as_text(capsys):
    hostile = "a\x1b[2J\x1b]0;title\x07b\rc\x08\x7f\u009b31m\u202e\n\t"
    shown = stream(hostile.encode(), capsys)
    assert shown == r"a\x1b[2J\x1b]0;title\x07b\rc\x08\x7f\x9b31m\u202e" + "\n\t"


@pytest.mark.parametrize(("is_terminal", "no_colour", "coloured"), [(1, "", 1), (1, "1", 0), (0, "", 0)])
def test_colours_are_for_terminals_that_want_them(monkeypatch, is_terminal, no_colour, coloured):
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: is_terminal))
    monkeypatch.setenv("NO_COLOR", no_colour)
    assert play.coloured("text", "1") == ("\033[1mtext\033[0m" if coloured else "text")


# --------------------------------------------------------------------------------------------------------------------
# The command line
# --------------------------------------------------------------------------------------------------------------------


def run_play(*arguments: object, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "scripts/play.py", *map(str, arguments)],
        cwd=ROOT, env=program_environment(**environment), input=stdin, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


MISTAKES = {
    "numbers without a target": (["--nums", "1,2"], "--nums and --target go together"),
    "a target without numbers": (["--target", "3"], "--nums and --target go together"),
    "two ways to play": (["--nums", "1,2", "--target", "3", "--random", "2"], "either --nums"),
    "no puzzle": (["--nums", "one", "two", "--target", "3"], "no puzzle; for example: --nums 44,19,35 --target 98"),
    "no puzzles": (["--random", "0"], "--random must be 1 or more"),
    "no number": (["--random", "x"], "invalid int value"),
    "a temperature below zero": (["--temperature", "-1"], "--temperature must be 0 or more"),
    "no temperature": (["--temperature", "nan"], "--temperature must be 0 or more"),
    "no length": (["--max_completion_length", "0"], "--max_completion_length must be 1 or more"),
    "an unknown flag": (["--colour"], "unrecognized arguments: --colour"),
    "no such folder": (["/no/such/folder"], "/no/such/folder is no checkpoint folder"),
    "a file": (["README.md"], "README.md is no checkpoint folder"),
    "no checkpoint": (["tests"], "tests holds no model"),
    "a second one that is none": (["--compare", "tests"], "tests holds no model"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_gets_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        play.main(arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_help_loads_nothing_heavy():
    code = (
        "import sys, play\ntry: play.main(['--help'])\n"
        "except SystemExit: print(sorted({'torch', 'transformers', 'rich'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, cwd=ROOT / "scripts", capture_output=True, text=True, timeout=60)
    assert "CHECKPOINT" in shown.stdout
    assert shown.stdout.endswith("\n[]\n")


# --------------------------------------------------------------------------------------------------------------------
# The real program
# --------------------------------------------------------------------------------------------------------------------

STATISTICS = re.compile(r"\nformat (?:kept|broken) · \d+ tokens · \d+\.\d s")


def without_times(output: str) -> str:
    return re.sub(r"\d+\.\d s", "", output)


@pytest.mark.slow
def test_one_puzzle_by_flags():
    flags = ["--target", "98", "--seed", "1", "--solve"]
    first = run_play("--nums", "44,19,35", *flags)
    assert first.returncode == 0, first.stderr
    assert "numbers [44, 19, 35], target 98\n<think>" in first.stdout
    assert "</answer>" in first.stdout
    assert len(STATISTICS.findall(first.stdout)) == 1
    assert first.stdout.endswith("solver: 19 + 35 + 44 = 98\n")
    assert "\x1b" not in first.stdout
    again = run_play("configs/tiny-countdown", "--nums", "44", "19", "35", *flags)
    assert without_times(again.stdout) == without_times(first.stdout)


@pytest.mark.slow
def test_a_completion_that_is_cut_off_says_so():
    shown = run_play("--nums", "44,19,35", "--target", "98", "--max_completion_length", "3")
    assert shown.returncode == 0, shown.stderr
    assert "no answer: " in shown.stdout
    assert re.search(r"format broken · 3 tokens · \d+\.\d s · cut off before its end\n$", shown.stdout)


@pytest.mark.slow
def test_greedy_has_no_chance_in_it():
    shown = [run_play("--nums", "44,19,35", "--target", "98", "--temperature", "0", "--seed", seed) for seed in (1, 2)]
    assert STATISTICS.search(shown[0].stdout), shown[0].stderr
    assert without_times(shown[0].stdout) == without_times(shown[1].stdout)


@pytest.mark.slow
def test_random_puzzles_end_with_a_tally():
    shown = run_play("--random", "3", "--seed", "0")
    assert shown.returncode == 0, shown.stderr
    assert len(re.findall(r"numbers \[\d+, \d+, \d+\], target \d+\n", shown.stdout)) == 3
    assert len(STATISTICS.findall(shown.stdout)) == 3
    solved = shown.stdout.count("\ncorrect: ")
    assert f"\nconfigs/tiny-countdown: {solved} of 3 solved, " in shown.stdout


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY_MODEL, tmp_path / "checkpoint"))


@pytest.mark.slow
def test_the_sampling_values_of_a_checkpoint_are_ignored(checkpoint):
    """A generation_config.json like those of instruct models, but extreme: it would make every sample the same."""
    flags = ["--nums", "44,19,35", "--target", "98", "--seed", "5"]
    plain = run_play(checkpoint, *flags)
    path = checkpoint / "generation_config.json"
    extreme = {"do_sample": True, "temperature": 0.01, "top_k": 1, "top_p": 0.01, "min_p": 0.9, "typical_p": 0.1}
    extreme |= {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "max_length": 130}
    path.write_text(json.dumps(json.loads(path.read_text()) | extreme))
    assert STATISTICS.search(plain.stdout), plain.stderr
    assert without_times(run_play(checkpoint, *flags).stdout) == without_times(plain.stdout)


@pytest.mark.slow
def test_an_adapter_plays_on_its_base_and_with_its_weights(tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(TINY_MODEL), config)
    model.peft_config["default"].base_model_name_or_path = "configs/tiny-countdown"
    for scale, name in ((0.0, "nothing"), (20.0, "much")):
        with torch.no_grad():
            for weight_name, weight in model.named_parameters():
                if "lora_B" in weight_name:
                    weight.copy_(torch.randn_like(weight) * scale)
        model.save_pretrained(tmp_path / name)
    flags = ["--nums", "44,19,35", "--target", "98", "--temperature", "0", "--max_completion_length", "40"]
    base, nothing, much = (run_play(path, *flags) for path in (TINY_MODEL, tmp_path / "nothing", tmp_path / "much"))
    thoughts = [shown.stdout.partition("<think>")[2] for shown in (base, nothing, much)]
    assert "</answer>" in thoughts[0], base.stderr
    assert without_times(thoughts[1]) == without_times(thoughts[0])
    assert STATISTICS.search(thoughts[2]), much.stderr
    assert without_times(thoughts[2]) != without_times(thoughts[0])


BROKEN = {
    "cut weights": ("model.safetensors", lambda data: data[:100_000], "cannot load"),
    "a config that is no JSON": ("config.json", lambda data: data[:50], "not a valid JSON file"),
    "no weights": ("model.safetensors", None, "holds no model"),
    "no tokenizer": ("tokenizer*", None, "it has no tokenizer"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("pattern", "damage", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_checkpoint_gets_one_line(checkpoint, pattern, damage, message):
    for path in checkpoint.glob(pattern):
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage(path.read_bytes()))
    shown = run_play(checkpoint, "--nums", "44,19,35", "--target", "98")
    errors = [line for line in shown.stderr.splitlines() if line.startswith("error: ")]
    assert shown.returncode == 2
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in shown.stderr


@pytest.mark.slow
def test_a_device_that_is_not_there_gets_one_line():
    shown = run_play("--device", "nonsense", "--nums", "44,19,35", "--target", "98")
    assert shown.returncode == 2
    assert shown.stderr.startswith("error: device nonsense: ")
    assert shown.stderr.count("\n") == 1


@pytest.mark.slow
def test_input_from_a_pipe_with_broken_characters():
    shown = subprocess.run(
        [sys.executable, "scripts/play.py"], cwd=ROOT, env=program_environment(), capture_output=True, timeout=300,
        input=b"\xff\xfe\x00\nsolve\n3 8 = 11\nsolve\n",
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert b"that is no puzzle" in shown.stdout
    assert b"there is no puzzle yet" in shown.stdout
    assert shown.stdout.endswith(b"solver: 3 + 8 = 11\n> \n")


# --------------------------------------------------------------------------------------------------------------------
# Sessions in a terminal
# --------------------------------------------------------------------------------------------------------------------


class Terminal:
    """A program in a pseudo-terminal, as a person sits in front of it."""

    def __init__(self, *arguments: object, columns: int = 80, no_colour: str = "1"):
        self.screen, program_side = pty.openpty()
        fcntl.ioctl(program_side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        # TERM=dumb keeps readline's own escape sequences away; COLUMNS would override the size.
        env = program_environment(TERM="dumb", NO_COLOR=no_colour)
        env.pop("COLUMNS", None)
        self.process = subprocess.Popen(
            [sys.executable, "scripts/play.py", *map(str, arguments)], cwd=ROOT, env=env,
            stdin=program_side, stdout=program_side, stderr=program_side, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C becomes a signal
            text=True,
        )  # fmt: skip
        os.close(program_side)
        self.seen = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def _take(self, data: bytes) -> None:
        """Characters and line ends may come in two pieces."""
        self.seen = (self.seen + self._decoder.decode(data)).replace("\r\n", "\n")

    def read_until(self, pattern: str, seconds: float = 240) -> str:
        """What the program has written since the last call, up to and including the pattern."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < deadline, f"waited for {pattern!r}, saw {self.seen!r}"
            if select.select([self.screen], [], [], 0.2)[0]:
                try:
                    data = os.read(self.screen, 65536)
                except OSError:  # the program has ended
                    data = b""
                assert data, f"waited for {pattern!r}, ended after {self.seen!r}"
                self._take(data)
        text, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return text

    def rest(self) -> str:
        """What is written until the program ends."""
        with contextlib.suppress(OSError):
            while data := os.read(self.screen, 65536):
                self._take(data)
        return self.seen

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())


@pytest.fixture
def terminal() -> Iterator[type[Terminal]]:
    opened: list[Terminal] = []

    class Opened(Terminal):
        def __init__(self, *arguments: object, **options: object):
            super().__init__(*arguments, **options)  # type: ignore[arg-type]
            opened.append(self)

    yield Opened
    for one in opened:
        kill_group(one.process)
        os.close(one.screen)


PROMPT = r"\n> $"


@pytest.mark.slow
def test_a_session(terminal):
    session = terminal("--seed", "3")
    assert "44 19 35 = 98" in session.read_until(PROMPT)
    for nonsense, hint in (
        ("hello", "that is no puzzle"), ("98", "not 0 numbers"), ("4 -4 = 8", "positive"),
        ("1 2 3 4 5 6 7 = 8", "not 7 numbers"), ("again", "no puzzle yet"), ("solve", "no puzzle yet"),
    ):  # fmt: skip
        session.type(nonsense + "\n")
        said = session.read_until(PROMPT)
        assert hint in said
        assert "44 19 35 = 98" in said
        assert "Traceback" not in said
    session.type("help\n")
    assert "another attempt" in session.read_until(PROMPT)

    session.type("44, 19, 35 -> 98\n")
    said = session.read_until(PROMPT)
    assert "numbers [44, 19, 35], target 98\n<think>" in said
    assert STATISTICS.search(said)

    session.type("random\n")
    played = session.read_until(PROMPT)
    header = re.search(r"numbers \[(\d+), (\d+), (\d+)\], target (\d+)\n", played)
    assert header
    session.type("AGAIN\n")
    assert header.group() in session.read_until(PROMPT)
    *numbers, target = map(int, header.groups())
    session.type("solve\n")
    solution = re.search(r"solver: (.*) = (\d+)\n", session.read_until(PROMPT))
    assert solution
    assert int(solution[2]) == target
    assert judge(answered(solution[1]), numbers, target).correct

    session.type("2 2 = 99\n")
    assert "(it has no solution)" in session.read_until(PROMPT)
    session.type("solve\n")
    assert "solver: there is no solution" in session.read_until(PROMPT)

    session.type("\x04")
    assert session.rest() == "\n"
    assert session.process.wait(60) == 0


@pytest.fixture
def endless(checkpoint: Path) -> Path:
    """The tiny model with another end-of-turn token, which it never writes: it goes on to the length limit."""
    for name in ("generation_config.json", "config.json", "tokenizer_config.json"):
        text = (checkpoint / name).read_text().replace("<|im_end|>", "<|endoftext|>").replace("312", "313")
        (checkpoint / name).write_text(text)
    return checkpoint


@pytest.mark.slow
def test_ctrl_c_stops_an_attempt_and_then_the_session(terminal, endless):
    session = terminal(endless, "--max_completion_length", "900")
    session.read_until(PROMPT)
    session.type("44 19 35 = 98\n")
    session.read_until(r"<think>\s*\S")
    session.type("\x03")
    said = session.read_until(PROMPT)
    assert "stopped by Ctrl-C, not judged" in said
    tokens = re.search(r"(\d+) tokens", said)
    assert tokens
    assert 0 < int(tokens[1]) < 900
    assert "Traceback" not in said

    session.type("solve\n")  # the session goes on, with its puzzle
    assert "solver: 19 + 35 + 44 = 98" in session.read_until(PROMPT)
    # Python's input() misses a Ctrl-C in the instant between the prompt and its wait for keys, so it is pressed again.
    farewell = ""
    for _ in range(6):
        session.type("\x03")
        with contextlib.suppress(AssertionError):
            farewell = session.read_until(r"\n", seconds=10)
        if farewell:
            break
    assert (farewell + session.rest()).replace("^C", "") == "\n"
    assert session.process.wait(60) == 0


@pytest.mark.slow
def test_ctrl_c_ends_a_series_with_the_tally_so_far(endless):
    process = subprocess.Popen(
        [sys.executable, "scripts/play.py", str(endless), "--random", "50", "--max_completion_length", "900"],
        cwd=ROOT, env=program_environment(PYTHONUNBUFFERED="1"), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("<think>"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        kill_group(process)
    assert process.returncode == 130
    assert "stopped by Ctrl-C" in output
    assert f"{endless}: 0 of 0 solved" in output
    assert "Traceback" not in errors


@pytest.mark.slow
def test_two_checkpoints_one_after_the_other(checkpoint):
    shown = run_play("--compare", checkpoint, "--nums", "44,19,35", "--target", "98", "--temperature", "0")
    assert shown.returncode == 0, shown.stderr
    _, first, second = re.split(r"\n--- .*", shown.stdout)
    assert STATISTICS.search(first)
    assert without_times(first).strip() == without_times(second).strip()


@pytest.mark.slow
def test_two_checkpoints_side_by_side_in_a_wide_terminal(terminal):
    session = terminal(
        "--compare", TINY_MODEL, "--nums", "44,19,35", "--target", "98", "--temperature", "0", columns=120, no_colour=""
    )
    said = session.rest()
    assert session.process.wait(60) == 0
    rows = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in said.splitlines()]
    thinking = next(row for row in rows if "<think>" in row)
    assert thinking.count("<think>") == 2
    assert next(row for row in rows if "</answer>" in row).count("</answer>") == 2
    assert sum("format kept" in row and row.count("format kept") == 2 for row in rows) == 1
    assert max(map(len, rows)) <= 120
    assert "\x1b[" in said  # the verdict is coloured here
