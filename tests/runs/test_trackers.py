"""Real runs that report to trackers, and what these have stored: curves, and a table of completions with verdicts."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import TINY_RECIPE, Launcher
from mini_r1.countdown import TASK
from mini_r1.launching import QUICK

pytestmark = pytest.mark.slow

COLUMNS = {"step", "prompt", "completion", "format_reward_func", "equation_reward_func", "split", "verdict"}
VERDICTS = {reason.value for reason in TASK.reasons}


def run(launcher: Launcher, folder: Path, tracker: str, env: dict[str, object], **overrides: object) -> str:
    """A run whose recipe names the tracker, with its settings in `env` as users write them; what it printed."""
    recipe = folder / "recipe.yaml"
    text = TINY_RECIPE.read_text().replace("report_to: tensorboard", f"report_to: [tensorboard, {tracker}]")
    recipe.write_text(f"{text}\nenv: {json.dumps({key: str(value) for key, value in env.items()})}\n")
    places = {"output_dir": folder / "run", "completion_samples_dir": folder / "samples"}
    code, output = launcher.run(recipe=recipe, **{**QUICK, **places, **overrides})
    assert code == 0, output
    return output


def name_of(folder: Path) -> str:
    return json.loads((folder / "run" / "run.json").read_text())["name"]


def check_tables(tables: list[list[dict[str, Any]]], steps: list[int]) -> None:
    """One completion per puzzle, judged as in the sample files, at these steps."""
    assert sorted({row["step"] for rows in tables for row in rows}) == steps
    for rows in tables:
        assert rows
        assert len({row["prompt"] for row in rows}) == len(rows)
        for row in rows:
            assert set(row) >= COLUMNS
            assert row["verdict"] in VERDICTS
            assert (row["verdict"] == "correct") == (row["equation_reward_func"] == 1.0)
    assert {row["split"] for rows in tables for row in rows} == {"train", "held_out"}


def test_trackio_keeps_curves_and_tables_of_an_adapters_run_that_resumes(launcher: Launcher, tmp_path: Path):
    adapter = {"use_peft": True, "lora_target_modules": "all-linear"}  # its configuration is stored as well
    store = {"TRACKIO_DIR": tmp_path / "store"}
    output = run(launcher, tmp_path, "trackio", store, **adapter)
    assert "Advantage" not in output  # TRL prints its table where a recipe asks for it
    run(launcher, tmp_path, "trackio", store, **adapter, max_steps=3)

    with sqlite3.connect(tmp_path / "store" / "mini-r1.db") as database:
        stored = database.execute("select run_name, metrics from metrics order by id").fetchall()
    assert {name for name, _ in stored} == {name_of(tmp_path)}
    entries = [json.loads(metrics) for _, metrics in stored]
    curve = {e["train/global_step"]: e["train/rewards/format_reward_func/mean"] for e in entries if "train/reward" in e}
    assert sorted(curve) == [1, 2, 3]
    assert [e["train/global_step"] for e in entries if "eval/reward" in e] == [0, 2, 3]  # the last after the training
    check_tables([entry["completions"]["_value"] for entry in entries if "completions" in entry], [0, 1, 2, 3])


def stored_records(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file: a header of 7 bytes, then LevelDB's log format in blocks of 32 kB."""
    data, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        size, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        record += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_wandb_keeps_curves_and_tables_offline(launcher: Launcher, tmp_path: Path):
    run(launcher, tmp_path, "wandb", {"WANDB_MODE": "offline"})

    from wandb.proto.wandb_internal_pb2 import Record

    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    (file,) = folder.glob("*.wandb")
    records = [Record.FromString(record) for record in stored_records(file)]
    described = next(record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (described.project, described.display_name) == ("mini-r1", name_of(tmp_path))
    entries = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    curve = {e["train/global_step"]: e["train/rewards/format_reward_func/mean"] for e in entries if "train/reward" in e}
    assert sorted(curve) == [1, 2]
    assert [entry["train/global_step"] for entry in entries if "eval/reward" in entry] == [0, 2]
    tables = [json.loads(path.read_text()) for path in (folder / "files" / "media" / "table").glob("*.json")]
    rows = [[dict(zip(table["columns"], row, strict=True)) for row in table["data"]] for table in tables]
    check_tables(rows, [0, 1, 2])
