"""The table of the benchmarks: from rows to the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import comparison
import write_table


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Two sections as they are recorded, the second one twice."""
    monkeypatch.setattr(comparison, "RESULTS", tmp_path / "runs" / "bench.json")
    about = {"date": "today", "commit": "abc", "machine": "M", "versions": {"P": "1"}}
    monkeypatch.setattr(comparison, "about", about.copy)
    rates = {"gym": [100.0, 90.0, 120.0], "here": [250.0, 240.0, 260.0]}
    comparison.record("generator", [comparison.make_row("puzzles", "puzzles/s", rates)])
    seconds = {"eval": [5.0, 5.0, 5.0], "other": [0.004] * 3, "here": [0.002, 0.001, 0.0025]}
    for _ in range(2):
        worst = comparison.make_row("worst case", "s", seconds, limit=5.0)
        rows = [worst, comparison.make_row("cost", "s", {"here": [2.0]})]
        comparison.record("rewards", rows)
    return json.loads(comparison.RESULTS.read_text())


def test_ratios_say_how_many_times_better_this_checkout_is(results: dict[str, Any]):
    assert write_table.table(results).splitlines()[2:] == [
        "| puzzles, puzzles/s | 250 (240 to 260) | gym | 100 (90 to 120) | 2.50x |",
        "| worst case | 2 ms (1 ms to 2.5 ms) | eval | over 5 s | over 2,500x |",
        "| worst case | 2 ms (1 ms to 2.5 ms) | other | 4 ms (4 ms to 4 ms) | 2.00x |",
        "| cost | 2 s (2 s to 2 s) | | | |",
        "",
        "- Measured today at abc, M; P 1 (generator, rewards).",
    ]


def test_only_the_table_of_the_page_is_replaced(results: dict[str, Any], tmp_path: Path):
    page = tmp_path / "README.md"
    page.write_text(f"before\n{write_table.BEGIN}old\n{write_table.END}after\n")
    for _ in range(2):
        write_table.write(page, results)
    text = page.read_text()
    assert text.startswith(f"before\n{write_table.BEGIN}\n| what ")
    assert text.endswith(f"(generator, rewards).\n\n{write_table.END}after\n")
    assert "old" not in text


def test_contenders_work_in_turn_and_the_first_round_does_not_count():
    order: list[tuple[str, int]] = []
    work = {name: lambda round_, name=name: order.append((name, round_)) or 1.0 for name in ("a", "here")}
    row = comparison.compare("x", "things/s", work, rounds=2)
    assert order == [(name, round_) for round_ in range(3) for name in ("a", "here")]
    assert {*row["values"]} == {"a", "here"}


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1234567.0, "things/s", "1,234,567"),
        (12.345, "things/s", "12.3"),
        (2e-5, "s", "20 µs"),
        (0.0123, "s", "12.3 ms"),
        (61.27, "s", "61.3 s"),
        (1600.4, "s", "1600 s"),
    ],
)
def test_values_have_three_digits(value: float, unit: str, text: str):
    assert comparison.shown(value, unit) == text


def test_the_page_has_both_markers():
    assert write_table.README.read_text().partition(write_table.BEGIN)[2].partition(write_table.END)[1]
