"""The page of `make demo`: the real program with the tiny model, in a real browser."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import app
import play
from conftest import ROOT, TINY_MODEL, kill_group, program_environment, set_width, wait_until
from mini_r1.common import UserError
from mini_r1.countdown import TASK
from mini_r1.countdown.puzzle import Puzzle, parse_puzzle
from mini_r1.countdown.verifier import explain
from mini_r1.responses import answers_in, judge
from mini_r1.run_folder.checkpoints import Checkpoint, resolve

SECONDS = 240  # for the program to start and for a model to answer, on a machine that does other things as well
SPACE = ROOT / "configs" / "space"
HOSTILE = (
    "=<img src=x onerror=\"document.title='pwned'\"><script>document.title='pwned'</script>${document.title='pwned'}"
)


def pins(lines: list[str]) -> dict[str, str]:
    """Packages and the versions of them that requirements allow."""
    return dict(re.findall(r"^([a-z_]+)(\S+)", "\n".join(lines), re.MULTILINE))


PINS = pins(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])


def hostile(folder: Path) -> None:
    """Every "yes" and "too" that the model writes becomes markup that runs a script, were it taken for HTML."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    model, signs = tokenizer["model"], HOSTILE.replace(" ", "Ġ")
    for word, written in (("Ġyes", f"Ġyes{signs}"), ("Ġtoo", f"Ġtoo{signs}")):
        model["vocab"][written] = model["vocab"].pop(word)
        model["merges"] = [merge for merge in model["merges"] if "".join(merge) != word]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


@contextlib.contextmanager
def serving(*arguments: object, script: Path = ROOT / "scripts" / "app.py", **environment: str) -> Iterator[str]:
    """The program; the address of its page once it can be opened."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, str(script), *map(str, arguments), "--port", str(port)],
        cwd=script.parents[1],
        env=program_environment(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    said: list[str] = []
    try:
        assert process.stdout
        for line in process.stdout:
            said.append(line)
            if line.startswith("open http"):
                break
        assert said, process.wait()
        assert f"open http://127.0.0.1:{port}" in said[-1], "".join(said)
        yield f"http://127.0.0.1:{port}/"
    finally:
        kill_group(process)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose trained model is the one that it began with."""
    folder = Path(shutil.copytree(TINY_MODEL, tmp_path_factory.mktemp("runs") / "run"))
    recipe = {"model_name_or_path": "configs/tiny-countdown", "number_counts": [3], "max_completion_length": 200}
    (folder / "run.json").write_text(json.dumps({"recipe": recipe}))
    return folder


@pytest.fixture(scope="module")
def page(run_folder: Path) -> Iterator[str]:
    with serving(run_folder) as address:
        yield address


def visit(browser: Any, address: str, width: int = 1280) -> None:
    set_width(browser, width)
    browser.get(address)
    wait_until(lambda: browser.execute_script("return !!document.querySelector('#think')"), SECONDS, "the page")


def type_in(browser: Any, text: str) -> None:
    field = browser.find_element("css selector", "#puzzle input, #puzzle textarea")
    field.clear()
    field.send_keys(text)


def press(browser: Any, button: str) -> None:
    browser.find_element("css selector", f"#{button}").click()


def shown(browser: Any, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map(one => one.textContent)"
    return list(browser.execute_script(script, selector))


def answers(browser: Any, models: int) -> list[tuple[str, str]]:
    """What each model wrote and the verdict in words, once all have answered."""
    wait_until(lambda: len(shown(browser, ".verdict")) == models, SECONDS, "verdicts")
    return list(zip(shown(browser, ".player pre"), shown(browser, ".verdict"), strict=True))


def in_words(text: str, puzzle: Puzzle) -> str:
    """The verdict that belongs to a response to a puzzle."""
    offered = answers_in(text)
    return explain(judge(TASK, text, puzzle), offered[0] if len(offered) == 1 else "", puzzle)


# --------------------------------------------------------------------------------------------------------------------
# Without a browser
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param(["/no/such/folder"], "/no/such/folder is no checkpoint folder", id="no such folder"),
        pytest.param(["tests"], "tests holds no model", id="a folder without a model"),
        pytest.param(["--port", "web"], "--port: invalid int value", id="no port"),
    ],
)
def test_a_mistake_gets_one_line(flags: list[str], message: str):
    with pytest.raises(UserError, match=message) as refused:
        app.main(flags)
    assert "\n" not in str(refused.value)


def test_without_gradio_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"needs gradio: `make demo` installs it"):
        app.main([])


def test_help_loads_nothing_heavy():
    code = (
        "import sys, app\ntry: app.main(['--help'])\n"
        "except SystemExit: print(sorted({'torch', 'transformers', 'gradio'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT / "scripts", capture_output=True, text=True, timeout=60)
    assert "CHECKPOINT" in done.stdout
    assert done.stdout.endswith("\n[]\n")


def test_a_run_stands_for_its_base_and_its_newest_model(run_folder: Path):
    def choose(checkpoint: object, compare: str | None = None) -> dict[str, Checkpoint]:
        return app.choose(Namespace(checkpoint=str(checkpoint), compare=compare))

    assert [one.path for one in choose(run_folder).values()] == ["configs/tiny-countdown", str(run_folder)]
    assert list(choose("configs/tiny-countdown")) == ["configs/tiny-countdown"]
    assert list(choose(run_folder, "configs/tiny-countdown")) == ["configs/tiny-countdown", str(run_folder)]


def test_whatever_is_shown_is_text():
    one = app.panel(HOSTILE, HOSTILE) + app.note(HOSTILE)
    assert "<img" not in one
    assert "<script" not in one


@pytest.mark.slow
def test_a_model_stops_when_its_visitor_leaves(monkeypatch: pytest.MonkeyPatch):
    """Gradio closes the generator then, and after "Stop"."""
    words: list[str] = []
    monkeypatch.setattr(play, "printable", lambda text: words.append(text) or text)
    args = Namespace(temperature=None, max_completion_length=900, device="cpu")
    checkpoint = resolve("configs/tiny-countdown")[-1]
    player = play.load_players({"tiny": checkpoint}, checkpoint, args)["tiny"]
    endless = replace(player, eos_ids=[player.tokenizer.pad_token_id])  # which it never writes
    game = app.Game({"tiny": endless}, args)
    shown = game.think("44 19 35 = 98")
    while not words:
        next(shown)
    shown.close()
    seen = len(words)
    wait_until(lambda: not game.turns["tiny"].locked(), SECONDS, "the model is free")
    assert len(words) <= seen + 3


# --------------------------------------------------------------------------------------------------------------------
# In Chromium
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_puzzle_typed_in_ends_in_a_verdict(browser: Any, page: str, run_folder: Path):
    visit(browser, page)
    names = ["before training: configs/tiny-countdown", "after training: final model"]
    assert shown(browser, ".player h3") == names
    type_in(browser, "44, 19, 35 -> 98")
    press(browser, "think")
    both = answers(browser, 2)
    assert [in_words(text, Puzzle((44, 19, 35), 98)) for text, _ in both] == [said for _, said in both]
    assert all(text.startswith("<think>") and len(text) > 20 for text, _ in both)
    assert shown(browser, "#note .tile") == ["44", "19", "35", "98"]
    press(browser, "solve")
    wait_until(lambda: "solver: 19 + 35 + 44 = 98" in shown(browser, "#note")[0], SECONDS, "the solver's answer")

    type_in(browser, "fish and chips <b>\n")  # Enter is as good as the button
    wait_until(lambda: "that is no puzzle" in shown(browser, "#note")[0], SECONDS, "what is wrong")
    assert shown(browser, ".verdict") == []
    type_in(browser, "2 2 = 99\n")
    wait_until(lambda: "it has no solution" in shown(browser, "#note")[0], SECONDS, "a word on the puzzle")
    assert not any(said.startswith("correct") for _, said in answers(browser, 2))

    outside = (
        "return performance.getEntriesByType('resource').map(one => one.name).filter(u => !u.startsWith(arguments[0]))"
    )
    assert browser.execute_script(outside, page) == []  # the page loads nothing from elsewhere


@pytest.mark.slow
def test_a_random_puzzle_and_a_tally_over_many(browser: Any, page: str):
    visit(browser, page)
    typed = "return document.querySelector('#puzzle input, #puzzle textarea').value"
    before = browser.execute_script(typed)
    press(browser, "random")
    wait_until(lambda: browser.execute_script(typed) != before, SECONDS, "a puzzle")
    puzzle = parse_puzzle(browser.execute_script(typed))
    assert len(puzzle.nums) == 3
    press(browser, "think")
    both = answers(browser, 2)
    assert shown(browser, "#note .tile") == [str(number) for number in (*puzzle.nums, puzzle.target)]
    assert [in_words(text, puzzle) for text, _ in both] == [said for _, said in both]
    press(browser, "start")
    wait_until(lambda: len(re.findall(r"of 16 solved", "".join(shown(browser, "#tally")))) == 2, SECONDS, "the tally")
    for row in shown(browser, ".tally"):
        reasons = re.search(r"on average · (.*)", row)
        assert reasons
        assert sum(map(int, re.findall(r"\d+", reasons[1]))) == 16
        solved = re.search(r": (\d+) of 16", row)
        assert solved
        assert f"{solved[1]} correct" in reasons[1] or solved[1] == "0"


@pytest.mark.slow
def test_what_a_model_writes_stays_text(browser: Any, tmp_path: Path):
    folder = Path(shutil.copytree(TINY_MODEL, tmp_path / "<img src=x onerror=alert(1)>"))
    hostile(folder)
    with serving(folder) as address:
        visit(browser, address)
        title = browser.title
        type_in(browser, "44 19 35 = 98\n")
        ((text, _),) = answers(browser, 1)
        assert HOSTILE in text
        press(browser, "start")
        wait_until(lambda: "of 16 solved" in "".join(shown(browser, "#tally")), SECONDS, "the tally")
        assert shown(browser, "img[onerror], .player script, #tally script") == []
        assert browser.title == title != "pwned"


@pytest.mark.slow
def test_a_phone_needs_no_sideways_scrolling(browser: Any, page: str):
    visit(browser, page, width=390)
    width = "return document.documentElement.scrollWidth"
    assert browser.execute_script(width) <= 390
    type_in(browser, "44 19 35 = 98")
    press(browser, "think")
    answers(browser, 2)
    press(browser, "start")
    wait_until(lambda: "of 8 solved" in "".join(shown(browser, "#tally")), SECONDS, "the tally's beginning")
    assert browser.execute_script(width) <= 390
    edges = (
        "return [...document.querySelectorAll('button, .panel, .tally')].map(one => one.getBoundingClientRect().right)"
    )
    assert max(browser.execute_script(edges)) <= 390


@pytest.mark.slow
def test_two_visitors_at_once_get_their_own_answers(browser: Any, page: str):
    puzzles = {"44 19 35 = 98": Puzzle((44, 19, 35), 98), "7 52 90 = 31": Puzzle((7, 52, 90), 31)}
    windows: dict[str, str] = {}
    first = browser.current_window_handle
    for typed in puzzles:
        browser.switch_to.new_window("window")
        windows[typed] = browser.current_window_handle
        visit(browser, page)
        type_in(browser, typed)
    browser.switch_to.window(windows["44 19 35 = 98"])
    browser.execute_script("document.querySelector('#start').click()")  # counts meanwhile
    for window in windows.values():
        browser.switch_to.window(window)
        press(browser, "think")
    for typed, puzzle in puzzles.items():
        browser.switch_to.window(windows[typed])
        both = answers(browser, 2)
        assert shown(browser, "#note .tile") == re.findall(r"\d+", typed)
        assert [in_words(text, puzzle) for text, _ in both] == [said for _, said in both]
    assert "solved" not in "".join(shown(browser, "#tally"))  # the second visitor asked for none
    browser.switch_to.window(windows["44 19 35 = 98"])
    wait_until(lambda: "of 16 solved" in "".join(shown(browser, "#tally")), SECONDS, "the first visitor's tally")
    for window in windows.values():
        browser.switch_to.window(window)
        browser.close()
    browser.switch_to.window(first)


# --------------------------------------------------------------------------------------------------------------------
# As a Space
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_space_has_all_that_the_page_needs(browser: Any, tmp_path: Path):
    """The files that its README uploads, alone in a folder; packages that it does not ask for cannot be imported."""
    space = tmp_path / "space"
    uploads = re.findall(r"^hf upload \S+ (\S+) (\S+) --type space", (SPACE / "README.md").read_text(), re.MULTILINE)
    assert len(uploads) == 3
    for source, destination in uploads:
        shutil.copytree(ROOT / source, space / destination, dirs_exist_ok=True)
    brought = {"pyyaml", "rich"}  # by transformers and Gradio
    missing = sorted(PINS.keys() - pins((space / "requirements.txt").read_text().splitlines()).keys() - brought)
    assert {"trl", "peft", "datasets"} <= set(missing)
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({missing!r}))\n")
    settings = dict(re.findall(r"^(\w+): (\S+)$", (space / "README.md").read_text(), re.MULTILINE))
    with serving(script=space / settings["app_file"], PYTHONPATH=str(tmp_path)) as address:
        visit(browser, address)
        type_in(browser, "44 19 35 = 98\n")
        ((text, said),) = answers(browser, 1)
        assert said == in_words(text, Puzzle((44, 19, 35), 98))


def test_a_space_has_the_versions_of_the_project():
    assert pins((SPACE / "requirements.txt").read_text().splitlines()).items() <= PINS.items()
    (version,) = re.findall(r"^sdk_version: (\S+)$", (SPACE / "README.md").read_text(), re.MULTILINE)
    assert f"gradio=={version}\n" in (ROOT / "configs" / "constraints.txt").read_text()
