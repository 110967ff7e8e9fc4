"""The report: its curves, what the page never lets through, and the page in a real browser."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import report
from conftest import set_width
from mini_r1.common import DiskError, RunError
from mini_r1.countdown import TASK
from mini_r1.report import page as report_page
from mini_r1.report.charts import as_svg, draw_curves, make_charts
from mini_r1.report.page import build_page, describe_state, pack_samples, thin_out, tiles
from mini_r1.responses import thinking
from mini_r1.run_folder.record import read_run
from mini_r1.signs import SIGNS
from small_run import HOSTILE, make_run, sample


def page_of(*folders: Path) -> str:
    return build_page([read_run(folder) for folder in folders])


def log(folder: Path, *entries: dict[str, Any]) -> Path:
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": entries}))
    return folder


# ---- curves and figures --------------------------------------------------------------------------------------------


def test_every_curve_that_a_run_logged_is_there_once(tmp_path: Path):
    entry = {"reward": 1.0, "rewards/brevity/mean": 0.5, "rewards/brevity/std": 0.1, "thinking/doubts": 2.0, "lr": 1.0}
    first = log(make_run(tmp_path / "a", []), {"step": 1, **entry}, {"step": 2, "reward": 1.5})
    second = log(make_run(tmp_path / "b", []), {"step": 3, "kl": 0.25})
    charts = make_charts([read_run(first), read_run(second)])
    assert [(chart.title, chart.metric) for chart in charts] == [
        ("Summed reward", "reward"),
        ("KL from the starting model", "kl"),
        ("Brevity", "rewards/brevity/mean"),
        ("Doubts", "thinking/doubts"),
    ]
    assert charts[0].series == [[(1, 1.0), (2, 1.5)], []]
    assert charts[0].ends() == [(0, "1 → 1.5")]
    assert charts[1].ends() == [(1, "0.25 → 0.25")]


@pytest.mark.parametrize("entry", [
    pytest.param({"thinking/attempts": -1e100, "reward": 1e100}, id="values that are just let through"),
    pytest.param({"step": -1e100, "reward": 1.0}, id="a step that is just let through"),
    pytest.param({"thinking/\ud800": 1.0}, id="half a surrogate pair in a metric"),
    pytest.param({"rewards/$\\frac$/mean": 1.0}, id="broken mathematics in a metric"),
    pytest.param({"rewards/<script>/mean": 1.0}, id="markup in a metric"),
])  # fmt: skip
def test_odd_values_and_names_are_drawn(entry: dict[str, Any], tmp_path: Path):
    folder = log(make_run(tmp_path / "run", [], name="_$x"), {"step": 1, **entry}, {"step": 5, "reward": 0.5})
    run = read_run(folder)
    assert draw_curves([run], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert all(as_svg(chart).startswith("<svg") for chart in make_charts([run]))
    assert page_of(folder).encode("utf-8").count(b"<script") == 3


def test_nothing_logged_is_nothing_drawn(tmp_path: Path):
    folder = make_run(tmp_path / "run", [])
    (folder / "trainer_state.json").unlink()
    assert not draw_curves([read_run(folder)], tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
    assert "Nothing has been logged yet." in page_of(folder)


@pytest.mark.parametrize(("age", "said"), [
    pytest.param(20, "last written 20 s before this report", id="still running"),
    pytest.param(3 * 3600, "last written 3.0 h before this report", id="died in the night"),
    pytest.param(-50, "last written 0 s before this report", id="another machine's clock"),
])  # fmt: skip
def test_a_run_that_died_is_told_from_a_running_one_by_its_age(age: float, said: str, tmp_path: Path):
    run = read_run(make_run(tmp_path / "run", [], finished=False))
    assert describe_state(run, run.last_written + age) == f"not finished, step 10 of 10, {said}"
    assert describe_state(replace(run, finished=True), run.last_written + age) == "finished, 10 steps"


def test_training_time_counts_every_step_when_not_every_step_is_logged(tmp_path: Path):
    folder = log(make_run(tmp_path / "run", []), *({"step": step, "step_time": 2.0} for step in (5, 10)))
    assert [(label, value) for label, value, _ in tiles(read_run(folder))] == [("training time", "20 s")]


# ---- samples -------------------------------------------------------------------------------------------------------


def test_too_many_samples_become_an_even_choice(tmp_path: Path):
    samples = read_run(make_run(tmp_path / "run", [sample(step) for step in range(1000)])).samples
    chosen = thin_out(samples, 100, 10**9)
    assert len(chosen) == 100
    assert {later.step - earlier.step for earlier, later in itertools.pairwise(chosen)} == {10}
    assert thin_out(samples, 1000, 10**9) == samples


def test_each_puzzle_is_classified_once_and_others_are_named_so_when_that_takes_too_long(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    records = [sample(step, index) for step in range(5) for index in range(2)]
    records += [sample(9, nums=[35, 44, 19]), sample(9, 4, nums=[1] * 3)]  # the same in another order; unsolvable
    samples = read_run(make_run(tmp_path / "run", records)).samples
    asked = []
    counting = replace(TASK, stratum=lambda puzzle: asked.append(puzzle) or TASK.stratum(puzzle))
    packed = pack_samples(samples, counting)
    assert len(asked) == 3
    assert packed["puzzles"][:2] == ["numbers [44, 19, 35] · target 98", "numbers [3, 5, 2] · target 17"]
    assert packed["strata"] == ["3 numbers, + -", "3 numbers, needs * /", "3 numbers, unsolvable"]
    assert [row["puzzle"] for row in packed["samples"]] == [0, 1] * 5 + [0, 2]
    monkeypatch.setattr(report_page, "MAX_STRATA_SECONDS", 0.0)
    assert pack_samples(samples, TASK)["strata"] == ["not classified"] * 3


# ---- the page's text -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["{{ samples }}", "{% raw %}", "</title><script>alert(1)</script>", "\ud800\x1b[2J"])
def test_a_run_may_have_any_name(name: str, tmp_path: Path):
    page = page_of(make_run(tmp_path / "run", [sample(1)], name=name))
    assert page.count("<script") == page.count("</script>") == 3  # patterns, the page's own, one run's samples
    assert "\x1b" not in page
    assert page.encode("utf-8")


def test_model_text_cannot_leave_its_json(tmp_path: Path):
    page = page_of(make_run(tmp_path / "run", [sample(1, response=HOSTILE)]))
    assert not any(part in page for part in ("<img", "\x1b", "\u2028"))
    assert page.count("<script") == page.count("</script>") == 3
    packed = json.loads(page.partition('id="samples-0">')[2].partition("</script>")[0])
    assert packed["samples"][0]["text"] == HOSTILE.replace("\x1b", "\\x1b").replace("\u2028", "\\u2028")


def test_the_page_forbids_the_network_and_names_no_address(tmp_path: Path):
    page = page_of(make_run(tmp_path / "run", [sample(1)]))
    assert "default-src 'none'; script-src 'sha256-" in page
    outside = page.replace("http://www.w3.org/2000/svg", "").replace("http://www.w3.org/1999/xlink", "")
    assert "http://" not in outside
    assert "https://" not in outside


def test_several_runs_share_one_page_and_one_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first = make_run(tmp_path / "a", [sample(1)], recipe={"beta": 0.5, "output_dir": "a"})
    with (first / "samples" / "completion_samples.jsonl").open("a") as stream:
        stream.write('{"step": 2, "respon')
    second = make_run(tmp_path / "b", [sample(2)], steps=5, recipe={"beta": 0.25, "output_dir": "b"})
    report.main([str(first), str(second), "--output", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "a: finished, 10 steps, 1 evaluations, 1 samples\n" in printed
    assert (tmp_path / "out" / "report.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'id="samples-1"' in page
    assert '<tr class="differs"><th>beta</th><td>0.5</td><td>0.25</td></tr>' in page
    assert page.count("<th>learning_rate</th>") == page.count("<th>beta</th>") == 2  # a main key; one that differs
    assert page.count("<th>eval_puzzles</th>") == 1  # in the whole recipe only
    assert "1 lines of the sample files" in page


def test_what_cannot_be_read_or_written_is_one_clear_error(tmp_path: Path):
    with pytest.raises(RunError, match="no run folder"):
        report.main([str(tmp_path)])
    folder = make_run(tmp_path / "run", [])
    with pytest.raises(DiskError, match="--output"):
        report.main([str(folder), "--output", str(folder / "run.json" / "x")])


# ---- a real browser ------------------------------------------------------------------------------------------------


def open_page(browser: Any, page: Path, width: int = 1280) -> None:
    set_width(browser, width)
    browser.get(page.as_uri())
    deadline = time.monotonic() + 60
    while "reading" in browser.execute_script("return document.getElementById('count').textContent"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def choose(browser: Any, control: str, label: str) -> str:
    """Chooses an option by its words, or types into a field; returns what the counter says then."""
    return str(
        browser.execute_script(
            """
            const control = document.getElementById(arguments[0]);
            if (control.tagName === "SELECT")
              control.value = [...control.options].find(option => option.textContent.startsWith(arguments[1])).value;
            else control.value = arguments[1];
            control.dispatchEvent(new Event("input", {bubbles: true}));
            return document.getElementById("count").textContent;
            """,
            control,
            label,
        )
    )


@pytest.mark.slow
def test_the_page_in_chromium(browser: Any, tmp_path: Path):
    records = [sample(step, index) for step in range(1, 11) for index in range(10)]
    records.append(sample(5, 99, response=HOSTILE, reason="malformed"))
    page = tmp_path / "report.html"
    page.write_text(page_of(make_run(tmp_path / "run", records)))
    open_page(browser, page)
    assert browser.execute_script("return document.querySelectorAll('figure svg').length") == 7
    assert "80.0 %" in browser.execute_script("return document.body.innerText")

    # Filters: verdict, stratum, steps, text, one puzzle.
    assert "of 50 samples" in choose(browser, "reason", "correct")
    choose(browser, "reason", "all")
    assert "of 51 samples" in choose(browser, "stratum", "3 numbers, needs * /")
    choose(browser, "stratum", "all")
    choose(browser, "from", "3")
    assert "of 20 samples" in choose(browser, "to", "4")
    choose(browser, "from", "")
    choose(browser, "to", "")
    assert "of 10 samples" in choose(browser, "text", "NO. 7")
    choose(browser, "text", "")
    assert "1–1 of 51 samples" in choose(browser, "puzzle", "numbers [3, 5, 2] · target 17, 10 steps")
    assert browser.execute_script("return document.querySelectorAll('#timeline button').length") == 51
    choose(browser, "puzzle", "all")

    # What a model wrote stays text.
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
    page.write_text(page_of(make_run(tmp_path / "run", [sample(1)])))
    open_page(browser, page)
    marked = browser.execute_script(
        """
        return arguments[0].map(markedText).map(pre =>
          [pre.querySelectorAll(".attempt").length, pre.querySelectorAll(".turn").length, pre.textContent]);
        """,
        texts,
    )
    counts = [[SIGNS[sign](thinking(text)) for sign in ("attempts", "self_corrections")] for text in texts]
    assert marked == [[*count, text] for count, text in zip(counts, texts, strict=True)]


@pytest.mark.slow
def test_a_phone_needs_no_sideways_scrolling(browser: Any, tmp_path: Path):
    folder = make_run(tmp_path / "run", [sample(1), sample(2)])
    # As wide as what evaluate.py writes: the table scrolls in its own box, and its cells stay readable.
    row = {"checkpoint": "checkpoint-40", "stratum": "3 numbers, + -", **{f"column_{i}": 0.123456 for i in range(10)}}
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "results.json").write_text(json.dumps({"table": [row], "temperature": 1.0}))
    page = tmp_path / "report.html"
    page.write_text(page_of(folder))
    open_page(browser, page, width=390)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    heights = browser.execute_script(
        "return [...document.querySelectorAll('.evaluation :is(th, td)')].map(cell => cell.clientHeight)"
    )
    assert len(heights) == 24
    assert max(heights) < 40  # one line each; broken at every letter, a cell is hundreds of pixels high
    assert not browser.get_log("browser")


@pytest.mark.slow
@pytest.mark.long
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
