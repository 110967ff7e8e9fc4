"""Playing with a checkpoint: what is shown, what is refused, and whole sessions, most of them in this process."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import play
from conftest import ROOT, TINY_MODEL, kill_group, program_environment
from mini_r1.common import UserError
from mini_r1.countdown import TASK
from mini_r1.countdown.solver import is_solvable

PUZZLE_FLAGS = ["--nums", "44,19,35", "--target", "98"]
STATISTICS = re.compile(r"\nformat (?:kept|broken) · \d+ tokens · \d+\.\d s")
Play = Callable[..., str]


def without_times(output: str) -> str:
    return re.sub(r"\d+\.\d s", "", output).partition("\n")[2]  # nor what is loaded


@pytest.fixture
def played(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Play:
    """Plays in this process with some flags and typed lines; returns what was printed."""
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*flags: object, typed: bytes = b"") -> str:
        capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), encoding="utf-8"))
        play.main([str(flag) for flag in flags])
        return capsys.readouterr().out

    return run


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY_MODEL, tmp_path / "checkpoint"))


@pytest.fixture
def endless(checkpoint: Path) -> Path:
    """The tiny model with another end-of-turn token, which it never writes: it runs into the length limit."""
    for name in ("generation_config.json", "config.json", "tokenizer_config.json"):
        text = (checkpoint / name).read_text().replace("<|im_end|>", "<|endoftext|>").replace("312", "313")
        (checkpoint / name).write_text(text)
    return checkpoint


# --------------------------------------------------------------------------------------------------------------------
# Without a model
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [[3], [4, 5], [2, 6]])
def test_random_puzzles_have_a_known_number_count_and_a_solution(counts: list[int]):
    puzzles = [play.random_puzzle(random.Random(seed), counts) for seed in range(20)]
    assert {len(puzzle.nums) for puzzle in puzzles} == set(counts)
    assert all(is_solvable(*puzzle) for puzzle in puzzles)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param(["--nums", "1,2"], "--nums and --target: one target, please", id="numbers without a target"),
        pytest.param(["--target", "3"], "--nums and --target: .* not 0 numbers", id="a target without numbers"),
        pytest.param([*PUZZLE_FLAGS, "--random", "2"], "not allowed with argument --nums", id="two ways to play"),
        pytest.param(["--nums", "one", "--target", "3"], "for example: --nums 44,19,35 --target 98", id="no puzzle"),
        pytest.param(["--random", "x"], "invalid int value", id="no number"),
        pytest.param(["--temperature", "-1"], "--temperature must be 0 or more", id="a temperature below zero"),
        pytest.param(["--temperature", "nan"], "--temperature must be 0 or more", id="no temperature"),
        pytest.param(["--colour"], "unrecognized arguments: --colour", id="an unknown flag"),
        pytest.param(["/no/such/folder"], "/no/such/folder is no checkpoint folder", id="no such folder"),
        pytest.param(["README.md"], "README.md holds no model", id="a file"),
        pytest.param(["--compare", "tests"], "tests holds no model", id="a second checkpoint that is none"),
    ],
)
def test_a_mistake_gets_one_line(flags: list[str], message: str):
    with pytest.raises(UserError, match=message) as refused:
        play.main(flags)
    assert "\n" not in str(refused.value)


def test_help_loads_nothing_heavy():
    code = (
        "import sys, play\ntry: play.main(['--help'])\n"
        "except SystemExit: print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, cwd=ROOT / "scripts", capture_output=True, text=True, timeout=60)
    assert "CHECKPOINT" in shown.stdout
    assert shown.stdout.endswith("\n[]\n")


@pytest.mark.parametrize(
    ("is_terminal", "no_colour", "is_coloured"),
    [(True, "", True), pytest.param(True, "1", False, id="asked not to"), pytest.param(False, "", False, id="a pipe")],
)
def test_colours_are_for_terminals_that_want_them(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool, no_colour: str, is_coloured: bool
):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    monkeypatch.setenv("NO_COLOR", no_colour)
    assert play.coloured("text", "1") == ("\033[1mtext\033[0m" if is_coloured else "text")


class ByteTokenizer:
    """One token per byte, so that one character may take several tokens."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return bytes(ids).decode("utf-8", "replace")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("written", "shown"),
    [
        pytest.param("44 × 2 = 88 → groß 🙂\nnext\tline", "44 × 2 = 88 → groß 🙂\nnext\tline\n", id="many bytes each"),
        pytest.param(
            "a\x1b[2J\x1b]0;title\x07b\rc\x08\x7f\u009b31m\u202e\n\t",
            r"a\x1b[2J\x1b]0;title\x07b\rc\x08\x7f\x9b31m\u202e" + "\n\t\n",
            id="escape sequences reach the terminal as text",
        ),
    ],
)
def test_what_a_model_writes_is_shown_whole_and_harmless(written: str, shown: str, capsys: pytest.CaptureFixture[str]):
    import numpy as np

    streamer = play.streamer(ByteTokenizer())
    streamer.put(np.array([[1, 2, 3]]))  # the prompt
    for byte in written.encode():
        streamer.put(np.array([byte]))
    streamer.end()
    assert capsys.readouterr().out == shown


# --------------------------------------------------------------------------------------------------------------------
# With the tiny model, in this process
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_puzzle_by_flags(played: Play):
    first = played(*PUZZLE_FLAGS, "--seed", 1, "--solve")
    assert "numbers [44, 19, 35], target 98\n<think>" in first
    assert first.count("<think>") == first.count("</answer>") == len(STATISTICS.findall(first)) == 1
    assert first.endswith("solver: 19 + 35 + 44 = 98\n")
    assert "\x1b" not in first
    again = played("configs/tiny-countdown", "--nums", "44", "19", "35", "--target", "98", "--seed", 1, "--solve")
    assert without_times(again) == without_times(first)
    assert len({without_times(played(*PUZZLE_FLAGS, "--seed", seed)) for seed in range(5)}) > 1


@pytest.mark.slow
def test_greedy_has_no_chance_in_it(played: Play):
    shown = [without_times(played(*PUZZLE_FLAGS, "--temperature", 0, "--seed", seed)) for seed in (1, 2)]
    assert shown[0] == shown[1]


@pytest.mark.slow
def test_a_completion_that_is_cut_off_says_so(played: Play):
    shown = played(*PUZZLE_FLAGS, "--max_completion_length", 3)
    assert "no answer" in shown
    assert re.search(r"format broken · 3 tokens · \d+\.\d s · cut off before its end\n$", shown)


@pytest.mark.slow
def test_random_puzzles_are_like_those_of_the_run_and_end_with_a_tally(played: Play, checkpoint: Path):
    recipe = {"number_counts": [4], "max_completion_length": 40}
    (checkpoint / "run.json").write_text(json.dumps({"recipe": recipe}))
    shown = played(checkpoint, "--random", 3, "--seed", 0)
    assert len(re.findall(r"numbers \[\d+, \d+, \d+, \d+\], target \d+\n", shown)) == 3
    assert len(STATISTICS.findall(shown)) == 3
    assert max(map(int, re.findall(r"(\d+) tokens ·", shown))) <= 40
    solved = shown.count("\ncorrect: ")
    assert f"\n{checkpoint}: {solved} of 3 solved, " in shown


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [{"temperature": 0.01}, {"top_k": 1}], ids=str)
def test_a_run_is_played_as_it_was_trained(recipe: dict[str, object], played: Play, checkpoint: Path):
    """Both leave nothing to chance."""
    (checkpoint / "run.json").write_text(json.dumps({"recipe": recipe}))
    shown = [without_times(played(checkpoint, *PUZZLE_FLAGS, "--seed", seed)) for seed in (1, 2, 3)]
    assert shown[0] == shown[1] == shown[2]


@pytest.mark.slow
def test_the_sampling_values_of_a_checkpoint_are_ignored(played: Play, checkpoint: Path):
    """A generation_config.json like those of instruct models, but extreme: it would make every sample the same."""
    plain = played(checkpoint, *PUZZLE_FLAGS, "--seed", 5)
    path = checkpoint / "generation_config.json"
    extreme = {"do_sample": True, "temperature": 0.01, "top_k": 1, "top_p": 0.01, "min_p": 0.9, "typical_p": 0.1}
    extreme |= {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "max_length": 130}
    path.write_text(json.dumps(json.loads(path.read_text()) | extreme))
    assert without_times(played(checkpoint, *PUZZLE_FLAGS, "--seed", 5)) == without_times(plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "damage", "message"),
    [
        pytest.param("model.safetensors", lambda data: data[:100_000], "cannot load", id="cut weights"),
        pytest.param("config.json", lambda data: data[:50], "not a valid JSON file", id="a config that is no JSON"),
        pytest.param("model.safetensors", None, "holds no model", id="no weights"),
        pytest.param("tokenizer*", None, "it has no tokenizer", id="no tokenizer"),
    ],
)
def test_a_broken_checkpoint_gets_one_line(
    pattern: str, damage: Callable[[bytes], bytes] | None, message: str, checkpoint: Path
):
    for path in checkpoint.glob(pattern):
        content = path.read_bytes()
        path.unlink()
        if damage is not None:
            path.write_bytes(damage(content))
    with pytest.raises(UserError, match=message):
        play.main([str(checkpoint), *PUZZLE_FLAGS])


@pytest.mark.slow
def test_a_device_that_is_not_there_gets_one_line():
    with pytest.raises(UserError, match="device nonsense: "):
        play.main(["--device", "nonsense", *PUZZLE_FLAGS])


@pytest.mark.slow
def test_a_session(played: Play):
    lines = {
        "hello": "that is no puzzle",
        "\udcff\udcfe\x00": "that is no puzzle",  # bytes that are no characters
        "98": "not 0 numbers",
        "solve": "solver: 19 + 35 + 44 = 98",  # the example, until another one is typed
        "help": "another attempt",
        "44, 19, 35 -> 98": "numbers [44, 19, 35], target 98\n<think>",
        "Solve": "solver: 19 + 35 + 44 = 98",
        "random": "target",
        "AGAIN": "target",
        "solve ": "solver: ",
        "2 2 = 99": "(it has no solution)",
        " solve": "solver: there is no solution",
    }
    typed = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
    shown = played("--seed", 3, typed=typed)
    opening, *answers, farewell = re.split(r"(?m)^> ", shown)
    assert "44 19 35 = 98" in opening
    assert farewell == "\n"
    said = dict(zip(lines, answers, strict=True))
    assert not [line for line, expected in lines.items() if expected not in said[line]]
    header = re.search(r"numbers \[(\d+), (\d+), (\d+)\], target (\d+)\n", said["random"])
    assert header
    assert header.group() in said["AGAIN"]
    *numbers, target = map(int, header.groups())
    solution = said["solve "].removeprefix("solver: ").partition(" = ")[0]
    assert TASK.check(solution, TASK.puzzle(numbers, target)).correct


@pytest.mark.slow
def test_ctrl_c_ends_a_series_with_the_tally_so_far(
    endless: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def press(text: str) -> str:
        if text.strip():
            signal.raise_signal(signal.SIGINT)
        return text

    monkeypatch.setattr(play, "printable", press)
    with pytest.raises(KeyboardInterrupt):
        play.main([str(endless), "--random", "50", "--max_completion_length", "900"])
    shown = capsys.readouterr().out
    assert shown.count("target") == 1
    assert f"{endless}: 0 of 0 solved" in shown


@pytest.mark.slow
def test_two_checkpoints_one_after_the_other(played: Play, checkpoint: Path):
    shown = played("--compare", checkpoint, *PUZZLE_FLAGS, "--temperature", 0)
    _, first, second = re.split(r"\n--- .*", shown)
    assert STATISTICS.search(first)
    assert without_times(first).strip() == without_times(second).strip()


# --------------------------------------------------------------------------------------------------------------------
# The program
# --------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def in_a_terminal(
    *flags: object,
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[bytes], object], Callable[..., str]]]:
    """The program as a person sits in front of it: its process, how to type, and what it shows up to a pattern."""
    screen, program_side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "scripts/play.py", *map(str, flags)],
        stdin=program_side,
        stdout=program_side,
        stderr=program_side,
        cwd=ROOT,
        env=program_environment(TERM="dumb", NO_COLOR="1"),  # dumb: without readline's own escape sequences
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C becomes a signal
    )
    os.close(program_side)
    seen = ""

    def read_until(pattern: str, seconds: float = 120) -> str:
        nonlocal seen
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, seen)):
            assert time.monotonic() < deadline, f"waited for {pattern!r}, saw {seen!r}"
            if select.select([screen], [], [], 0.2)[0]:
                seen += os.read(screen, 65536).decode(errors="replace").replace("\r", "")
        text, seen = seen[: found.end()], seen[found.end() :]
        return text

    try:
        yield process, lambda text: os.write(screen, text), read_until
    finally:
        kill_group(process)
        os.close(screen)


@pytest.mark.slow
@pytest.mark.long
def test_ctrl_c_stops_an_attempt_and_then_the_session(endless: Path):
    prompt = r"\n> $"
    with in_a_terminal(endless, "--max_completion_length", 900) as (process, type_in, read_until):
        read_until(prompt)
        type_in(b"44 19 35 = 98\n")
        read_until(r"<think>\s*\S")
        type_in(b"\x03")
        said = read_until(prompt)
        assert "stopped by Ctrl-C, not judged" in said
        assert "tokens" not in said
        assert "Traceback" not in said
        type_in(b"solve\n")  # the session continues, with its puzzle
        assert "solver: 19 + 35 + 44 = 98" in read_until(prompt)
        # Python's input() misses a Ctrl-C in the instant between the prompt and its wait for keys: press until it ends.
        for _ in range(5):
            type_in(b"\x03")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)  # a second Ctrl-C while Python shuts down would kill it
                break
        assert process.returncode == 0
