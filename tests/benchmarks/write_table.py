"""Writes the table of everything that was measured, `runs/bench.json`, into README.md beside this file.

    python tests/benchmarks/write_table.py

Only what stands between the page's two markers is replaced.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from comparison import RESULTS, cell, ratio_to

README = Path(__file__).resolve().parent / "README.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"


def table(results: dict[str, Any]) -> str:
    """Markdown: a line per row and contender, then when and where each section was measured.

    Args:
        results: `{section: {"date", "commit", "machine", "versions", "rows"}}`, as `comparison.record` leaves it.
    """
    lines = ["| what | here | against | theirs | ratio |", "|---|---:|---|---:|---:|"]
    measured: dict[str, list[str]] = {}
    for section, result in results.items():
        for row in result["rows"]:
            what = row["what"] + (f", {row['unit']}" if row["unit"] != "s" else "")
            here = cell(row, "here")
            others = [name for name in row["values"] if name != "here"]
            lines += [f"| {what} | {here} | {name} | {cell(row, name)} | {ratio_to(row, name)} |" for name in others]
            lines += [f"| {what} | {here} | | | |"] if not others else []
        versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        where = f"{result['date']} at {result['commit']}, {result['machine']}; {versions}"
        measured.setdefault(where, []).append(section)
    lines += ["", *(f"- Measured {where} ({', '.join(sections)})." for where, sections in measured.items())]
    return "\n".join(lines) + "\n"


def write(page: Path, results: dict[str, Any]) -> None:
    """Writes the table between the page's two markers. Raises ValueError when it lacks one."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} lacks {BEGIN.strip()} or {END.strip()}")
    page.write_text(before + begin + "\n" + table(results) + "\n" + end + after)


if __name__ == "__main__":
    write(README, json.loads(RESULTS.read_text()))
    print(f"written to {README}")
