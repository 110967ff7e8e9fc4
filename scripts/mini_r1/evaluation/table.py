"""An evaluation's result, the dict that `scripts/evaluate.py` writes as JSON, as tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from mini_r1.evaluation.scores import ALL
from mini_r1.signs import SIGNS


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as an aligned table, the first column to the left and the others to the right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    form = "  ".join([f"{{:<{first}}}", *(f"{{:>{width}}}" for width in others)])
    lines = [form.format(*row) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def as_text(result: dict[str, Any], ks: Sequence[int]) -> str:
    """The result as a person reads it: pass@k by stratum, the changes, and the rest over all puzzles."""
    tables = [_pass_table(result["checkpoints"], ks), _change_table(result["changes"]), _overall(result["checkpoints"])]
    return "\n\n".join(columns(table) for table in tables if len(table) > 1)


def _interval(form: str, numbers: Iterable[float]) -> str:
    rate, low, high = (format(100 * number, form) for number in numbers)
    return f"{rate} ({low} to {high})"


def _pass_table(checkpoints: list[dict[str, Any]], ks: Sequence[int]) -> list[list[str]]:
    table = [["pass@k in % (95 % interval)", "puzzles", "k", *(entry["name"] for entry in checkpoints)]]
    for group, first in checkpoints[0]["strata"].items():
        for k in ks:
            names = (f"pass@{k}", f"pass@{k}_low", f"pass@{k}_high")
            cells = [_interval(".1f", (entry["strata"][group][name] for name in names)) for entry in checkpoints]
            table.append([*([group, str(first["puzzles"])] if k == ks[0] else ["", ""]), str(k), *cells])
    return table


def _change_table(changes: list[dict[str, Any]]) -> list[list[str]]:
    rows: dict[str, list[str]] = {}
    for change in changes:
        row = rows.setdefault(change["stratum"], [f"{change['stratum']}, from {change['from']}"])
        row.append(_interval("+.1f", (change["change"], change["low"], change["high"])))
    return [["change of pass@1 in points", *dict.fromkeys(change["to"] for change in changes)], *rows.values()]


def _overall(checkpoints: list[dict[str, Any]]) -> list[list[str]]:
    parts = [entry["strata"][ALL] for entry in checkpoints]
    reasons = [reason for reason in parts[0]["reasons"] if any(part["reasons"][reason] for part in parts)]
    has_partial = any(not math.isclose(part["mean_score"], part["reasons"]["correct"]) for part in parts)
    return [
        [ALL, *(entry["name"] for entry in checkpoints)],
        *([f"verdict {reason}, %", *(f"{100 * part['reasons'][reason]:.1f}" for part in parts)] for reason in reasons),
        ["format, %", *(f"{100 * part['format']:.1f}" for part in parts)],
        ["cut off, %", *(f"{100 * part['truncated']:.1f}" for part in parts)],
        *([["mean score", *(f"{part['mean_score']:.3f}" for part in parts)]] if has_partial else []),
        ["tokens", *(f"{part['mean_tokens']:.1f}" for part in parts)],
        *([sign.replace("_", "-"), *(f"{part[sign]:.2f}" for part in parts)] for sign in SIGNS),
        ["puzzles a second", *(f"{entry['puzzles_per_second']:.1f}" for entry in checkpoints)],
    ]


def flat_table(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One flat record per checkpoint and stratum, for reports and data frames."""
    return [
        {"checkpoint": entry["name"], "stratum": group, **{key: v for key, v in part.items() if key != "reasons"}}
        for entry in result["checkpoints"]
        for group, part in entry["strata"].items()
    ]
