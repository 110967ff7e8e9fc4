"""Whose code a run folder may start: modules of this repository, of PYTHONPATH, and what is imported already."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mini_r1.common import RunError
from mini_r1.countdown import TASK
from mini_r1.task import load_task


def test_the_task_of_a_run(monkeypatch: pytest.MonkeyPatch):
    assert load_task(None) is load_task("mini_r1.countdown") is TASK
    mine = ModuleType("my_task")
    mine.TASK = TASK  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_task", mine)
    assert load_task("my_task") is TASK


def test_a_task_where_pythonpath_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine_alone.py").write_text("from mini_r1.countdown import TASK\n")
    (tmp_path / "package_of_mine").mkdir()
    (tmp_path / "package_of_mine" / "__init__.py").write_text("from mini_r1.countdown import TASK\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("mine_alone", "package_of_mine"):
        with pytest.raises(RunError, match="name its folder in PYTHONPATH"):
            load_task(name)
    monkeypatch.setenv("PYTHONPATH", f"/nowhere:{tmp_path}")
    assert load_task("mine_alone") is load_task("package_of_mine") is TASK


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("trap", id="a module elsewhere on the path"),
        pytest.param("antigravity", id="a module of Python's that acts when imported"),
        pytest.param("mini_r1.nowhere", id="no such module"),
        pytest.param("mini_r1.countdown.solver", id="a module without a task"),
        pytest.param("..trap", id="a relative one"),
        pytest.param("mini_r1/countdown", id="a file's path"),
        pytest.param("a" * 300, id="longer than any file's name"),
        pytest.param(["mini_r1.countdown"], id="no text"),
    ],
)
def test_other_code_is_not_imported(path: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RunError, match="names the task"):
        load_task(path)
    assert not (tmp_path / "sprung").exists()
    assert "antigravity" not in sys.modules
