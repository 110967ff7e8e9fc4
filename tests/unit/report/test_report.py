"""The report: what it reads, what it never lets through, and the page in a real browser."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, program_environment
from mini_r1.common import RecipeError
from mini_r1.report.page import build_page, describe_run, describe_state, embed, make_charts, thin_out
from mini_r1.responses import thinking
from mini_r1.run_folder.record import read_run, read_tensorboard
from mini_r1.signs import count_attempts, count_self_corrections

# What a model could write to harm whoever looks at it: markup, the end of the script, terminal escapes.
HOSTILE = "<think>\n</script><img src=x onerror=\"document.title='pwned'\"><!-- \x1b[2J \u2028 1+1=2 too high\n</think>"


def sample(step: int, index: int = 0, **changed: Any) -> dict[str, Any]:
    puzzle = [([44, 19, 35], 98), ([3, 5, 2], 17)][index % 2]
    return {
        "step": step, "split": "train", "nums": puzzle[0], "target": puzzle[1],
        "response": f"<think>\n44-19=25 too low\nno. {index} {step}\n44+19=63, 63+35=98 yes!\n</think>"
        "\n<answer>1</answer>",
        "reason": "correct" if index % 2 else "wrong_value", "value": None, "format_reward": 1.0,
        "equation_reward": float(index % 2), "completion_tokens": 30, "rank": 0, "index": index, **changed,
    }  # fmt: skip


def make_run(folder: Path, samples: list[dict[str, Any]], *, finished: bool = True, steps: int = 10) -> Path:
    (folder / "samples").mkdir(parents=True)
    description = {"name": folder.name, "command": ["run_r1_grpo.py"], "versions": {"trl": "1.16.0"}, "hardware": {},
                   "split": {"held_out_puzzles": 100}, "recipe": {"max_steps": steps, "eval_puzzles": 100,
                   "learning_rate": 1e-4, "sample_share": 0.1, "success_sample_share": 0.1}}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(description))
    with (folder / "samples" / "completion_samples.jsonl").open("w") as stream:
        stream.writelines(json.dumps(record) + "\n" for record in samples)
    history: list[dict[str, Any]] = [
        {"step": step, "rewards/equation_reward_func/mean": step / steps, "rewards/format_reward_func/mean": 1.0,
         "completions/mean_length": 40.0 + step, "thinking/attempts": 1.0, "entropy": 0.5, "step_time": 2.0,
         "kl": float("nan")}
        for step in range(1, steps + 1)
    ]  # fmt: skip
    history.append({"step": steps, "eval_rewards/equation_reward_func/mean": 0.8, "eval_completions/mean_length": 50.0})
    place = folder if finished else folder / f"checkpoint-{steps}"
    place.mkdir(exist_ok=True)
    (place / "trainer_state.json").write_text(json.dumps({"global_step": steps, "log_history": history}))
    return folder


def page_of(*folders: Path) -> str:
    runs = [read_run(folder) for folder in folders]
    return build_page(runs, make_charts(runs))


def test_curves_and_held_out_points_are_read(tmp_path: Path):
    run = read_run(make_run(tmp_path / "run", [sample(1)]))
    assert run.finished
    assert run.points("rewards/equation_reward_func/mean")[-1] == (10, 1.0)
    (point,) = run.held_out
    assert (point["step"], point["pass@1"]) == (10, 0.8)
    assert point["low"] < 0.8 < point["high"]
    assert not run.points("kl")  # not a number is nothing to draw


def test_a_run_that_is_still_going(tmp_path: Path):
    run = read_run(make_run(tmp_path / "run", [], finished=False))
    assert not run.finished
    assert run.step == 10
    assert "not finished, step 10 of 10" in page_of(tmp_path / "run")


@pytest.mark.parametrize(("age", "said"), [
    pytest.param(20, "last written 20 s before this report", id="still going"),
    pytest.param(3 * 3600, "last written 3.0 h before this report", id="died in the night"),
    pytest.param(-50, "last written 0 s before this report", id="another machine's clock"),
])  # fmt: skip
def test_a_run_that_died_is_told_from_one_that_is_going_by_its_age(age: float, said: str, tmp_path: Path):
    folder = make_run(tmp_path / "run", [sample(1)], finished=False)
    now = time.time()
    newest = folder / "checkpoint-10" / "trainer_state.json"
    for path in folder.rglob("*.json*"):
        os.utime(path, (now - age - (0 if path == newest else 5000), now - age - (0 if path == newest else 5000)))
    (folder / "evaluation").mkdir()
    for later in ("report.html", "report.png", "evaluation/results.json"):  # made of the run, not by it
        (folder / later).write_text("{}")
    run = read_run(folder)
    assert run.last_written == pytest.approx(now - age, abs=1)
    assert describe_state(run, now) == f"not finished, step 10 of 10, {said}"
    assert describe_run(run, 0)["state"].startswith("not finished, step 10 of 10, last written ")
    finished = make_run(tmp_path / "finished", [])
    assert describe_state(read_run(finished), now) == "finished, 10 steps"


def write_events(folder: Path, number: int, values: dict[int, float]) -> None:
    """One event file as the trainer's TensorBoard callback leaves it; `number` puts the files in order."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    folder.mkdir(exist_ok=True)
    with (folder / f"events.out.tfevents.{number}.host").open("wb") as stream:
        writer = RecordWriter(stream)
        for step, value in values.items():
            for tag in ("train/reward", "eval/reward", "other/reward"):
                summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
                writer.write(Event(step=step, wall_time=float(step), summary=summary).SerializeToString())


def test_a_resumed_run_is_read_from_tensorboard_without_what_it_took_back(tmp_path: Path):
    write_events(tmp_path, 1, {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0})
    write_events(tmp_path, 2, {3: 30.0, 5: float("nan")})
    history = read_tensorboard(tmp_path)
    assert history == [{"step": step, "reward": v, "eval_reward": v} for step, v in ((1, 1.0), (2, 2.0), (3, 30.0))]


def test_event_files_that_are_cut_off_or_broken_lose_only_their_own(tmp_path: Path):
    write_events(tmp_path, 1, {1: 1.0, 2: 2.0})
    cut = tmp_path / "events.out.tfevents.1.host"
    cut.write_bytes(cut.read_bytes()[:-5])  # into the last scalar, other/reward, which is not shown
    (tmp_path / "events.out.tfevents.2.host").write_bytes(b"no events" * 50)
    (tmp_path / "events.out.tfevents.3.host").touch()
    assert [entry["reward"] for entry in read_tensorboard(tmp_path)] == [1.0, 2.0]


def test_a_running_run_is_as_fresh_as_its_tensorboard(tmp_path: Path):
    folder = make_run(tmp_path / "run", [], finished=False, steps=10)
    write_events(folder / "tensorboard", 1, {12: 1.0})
    assert read_run(folder).step == 12


def test_training_time_counts_every_step_when_not_every_step_is_logged(tmp_path: Path):
    folder = make_run(tmp_path / "run", [])
    history = [{"step": step, "step_time": 2.0} for step in (5, 10)]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    run = read_run(folder)
    times = [value for label, value, _ in describe_run(run, 0)["tiles"] if label == "training time"]
    assert times == ["20 s"]


@pytest.mark.parametrize("name", ["{{samples}}", "{{data}}", "</title><script>alert(1)</script>"])
def test_a_run_may_have_any_name(name: str, tmp_path: Path):
    folder = make_run(tmp_path / "run", [sample(1)])
    description = json.loads((folder / "run.json").read_text()) | {"name": name}
    (folder / "run.json").write_text(json.dumps(description))
    page = page_of(folder)
    assert page.count("<script") == page.count("</script>") == 3  # data, the page's own, one run's samples
    data = page.partition('id="data">')[2].partition("</script>")[0]
    assert json.loads(data)["runs"][0]["name"] == name


def test_broken_sample_lines_are_counted_not_fatal(tmp_path: Path):
    folder = make_run(tmp_path / "run", [sample(1), sample(2, reason=3), sample(3)])
    with (folder / "samples" / "completion_samples.jsonl").open("a") as stream:
        stream.write('{"step": 4, "respon')
    run = read_run(folder)
    assert [kept.step for kept in run.samples] == [1, 3]
    assert run.skipped == 2
    assert "2 lines of the sample files" in page_of(folder)


def test_what_is_no_run_is_refused_in_one_line(tmp_path: Path):
    with pytest.raises(RecipeError, match="no run folder"):
        read_run(tmp_path)
    done = subprocess.run([sys.executable, "scripts/report.py", str(tmp_path)], cwd=ROOT, env=program_environment(),
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_model_text_cannot_leave_its_json(tmp_path: Path):
    page = page_of(make_run(tmp_path / "run", [sample(1, response=HOSTILE)]))
    assert "<img" not in page
    assert "\x1b" not in page
    assert "\u2028" not in page
    assert page.count("</script>") == page.count("<script")
    assert json.loads(embed({"text": HOSTILE}))["text"] == HOSTILE
    with pytest.raises(ValueError, match="Out of range"):
        embed(float("nan"))


def test_the_page_forbids_the_network_and_names_no_address(tmp_path: Path):
    page = page_of(make_run(tmp_path / "run", [sample(1)]))
    assert "default-src 'none'" in page
    outside = page.replace("http://www.w3.org/2000/svg", "")
    assert "http://" not in outside
    assert "https://" not in outside


def test_too_many_samples_become_an_even_choice(tmp_path: Path):
    samples = read_run(make_run(tmp_path / "run", [sample(step) for step in range(1000)])).samples
    chosen = thin_out(samples, 100, 10**9)
    assert len(chosen) == 100
    assert {later.step - earlier.step for earlier, later in itertools.pairwise(chosen)} == {10}
    assert thin_out(samples, 1000, 10**9) == samples


def test_several_runs_share_one_page_and_one_picture(tmp_path: Path):
    first, second = make_run(tmp_path / "a", [sample(1)]), make_run(tmp_path / "b", [sample(2)], steps=5)
    done = subprocess.run(
        [sys.executable, "scripts/report.py", str(first), str(second), "--output", str(tmp_path / "out")],
        cwd=ROOT, env=program_environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "report.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'id="samples-1"' in page


# ---- a real browser ------------------------------------------------------------------------------------------------


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and chromedriver):
        pytest.fail("no chromium or chromedriver on PATH (Debian: chromium, chromium-driver)")
    options.binary_location = chromium
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
                 "disable-background-networking", "disable-component-update",
                 f"user-data-dir={tmp_path / 'profile'}"):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield driver
    driver.quit()


def open_page(browser: Any, page: Path, width: int = 1280) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page.as_uri())
    deadline = time.monotonic() + 60
    while "reading" in browser.execute_script("return document.getElementById('count').textContent"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def choose(browser: Any, control: str, label: str) -> str:
    """Chooses an option by its words, or types into a field; returns what the counter says then."""
    browser.execute_script(
        """
        const control = document.getElementById(arguments[0]);
        if (control.tagName === "SELECT")
          control.value = [...control.options].find(option => option.textContent.startsWith(arguments[1])).value;
        else control.value = arguments[1];
        for (const kind of ["input", "change"]) control.dispatchEvent(new Event(kind, {bubbles: true}));
        """,
        control,
        label,
    )
    time.sleep(0.5)  # the page waits a moment for more typing
    return str(browser.execute_script("return document.getElementById('count').textContent"))


@pytest.mark.slow
def test_the_page_in_chromium(browser: Any, tmp_path: Path):
    records = [sample(step, index) for step in range(1, 11) for index in range(10)]
    records.append(sample(5, 99, response=HOSTILE, reason="malformed"))
    page = tmp_path / "report.html"
    page.write_text(page_of(make_run(tmp_path / "run", records)))
    open_page(browser, page)
    assert browser.execute_script("return document.querySelectorAll('figure svg polyline').length") >= 6
    text = browser.execute_script("return document.body.innerText")
    assert "80.0 %" in text

    # Filters: verdict, stratum, steps, text.
    assert "of 50 samples" in choose(browser, "reason", "correct")
    choose(browser, "reason", "all")
    assert "of 51 samples" in choose(browser, "stratum", "3 numbers, needs * /")
    choose(browser, "stratum", "all")
    choose(browser, "from", "3")
    assert "of 20 samples" in choose(browser, "to", "4")
    choose(browser, "from", "")
    choose(browser, "to", "")
    assert "of 10 samples" in choose(browser, "text", "no. 7")
    choose(browser, "text", "")

    # Attempts and self-corrections are marked, and what a model wrote stays text.
    assert browser.execute_script("return document.querySelectorAll('pre .attempt').length") > 0
    assert browser.execute_script("return document.querySelectorAll('pre .turn').length") > 0
    assert "of 1 sample" in choose(browser, "reason", "malformed")
    shown = browser.execute_script("return document.getElementById('samples').innerText")
    assert "onerror=" in shown
    assert browser.execute_script("return document.querySelectorAll('#samples img').length") == 0
    assert browser.title != "pwned"
    assert not browser.get_log("browser")


@pytest.mark.slow
def test_the_page_marks_what_the_metrics_count(browser: Any, tmp_path: Path):
    """`thinking/attempts` counts in Python, the page marks in JavaScript: one notion, two engines."""
    texts = [
        "<think>\n67-23=44, 44-35=9 too low\nI give up.\n</think>\n<answer>1</answer>",
        "<think>First 3 * 5 = 15. Then 15 + 2 gives 17; no wait, that doesn’t work. Let me try 5-3 = 2.5!</think>",
        "no tags; we get 5? I get -3. However it equals 4",
        "<think>never closed, 1+1=2 <answer>1+1=2 too high</answer>",
        "<answer>2=2</answer><think>actually = 7</think> = 8 wait",
        "",
    ]
    page = tmp_path / "report.html"
    page.write_text(page_of(make_run(tmp_path / "run", [sample(1, i, response=text) for i, text in enumerate(texts)])))
    open_page(browser, page)
    marked = browser.execute_script(
        """
        return arguments[0].map(markedText).map(pre =>
          [pre.querySelectorAll(".attempt").length, pre.querySelectorAll(".turn").length, pre.textContent]);
        """,
        texts,
    )
    assert marked == [[count_attempts(thinking(text)), count_self_corrections(thinking(text)), text] for text in texts]


@pytest.mark.slow
def test_a_phone_needs_no_sideways_scrolling(browser: Any, tmp_path: Path):
    folder = make_run(tmp_path / "run", [sample(1), sample(2)])
    # As wide as what evaluate.py writes: the table scrolls in its own box, and its cells stay readable.
    row = {"checkpoint": "checkpoint-40", "stratum": "3 numbers, + -", **{f"column_{i}": 0.123456 for i in range(10)}}
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "results.json").write_text(json.dumps({"table": [row]}))
    page = tmp_path / "report.html"
    page.write_text(page_of(folder))
    open_page(browser, page, width=390)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    heights = browser.execute_script(
        "return [...document.querySelectorAll('#evaluations :is(th, td)')].map(cell => cell.clientHeight)"
    )
    assert len(heights) == 24
    assert max(heights) < 40  # one line each; broken at every letter, a cell is hundreds of pixels high
    assert not browser.get_log("browser")


@pytest.mark.slow
def test_fifty_thousand_samples_stay_usable(browser: Any, tmp_path: Path):
    """Two seconds to the first paint are what a person would put up with."""
    records = [sample(step, index) for step in range(500) for index in range(100)]
    page = tmp_path / "report.html"
    page.write_text(page_of(make_run(tmp_path / "run", records)))
    open_page(browser, page)
    paints = browser.execute_script("return performance.getEntriesByType('paint').map(entry => entry.startTime)")
    assert paints
    print(f"first paint of 50 000 samples after {max(paints):.0f} ms")
    assert max(paints) < 2000
    assert "of 25000 samples" in choose(browser, "reason", "correct")
    assert not browser.get_log("browser")
