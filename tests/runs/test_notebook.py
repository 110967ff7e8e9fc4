"""The notebook's cells, all of them, on the CPU: with few steps, and the tiny model in place of the one for a GPU."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

import pytest

from conftest import ROOT, program_environment
from mini_r1.launching import QUICK, flags

pytestmark = pytest.mark.slow

NOTEBOOK = ROOT / "receipes" / "mini_r1_t4.ipynb"
STEPS = 2


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """This test's environment as `make install` leaves one, so that make has nothing to install."""
    ours, folder = Path(sys.prefix), tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "lib").symlink_to(ours / "lib")
    (folder / "pyvenv.cfg").write_bytes((ours / "pyvenv.cfg").read_bytes())
    for program in (ours / "bin").iterdir():
        (folder / "bin" / program.name).symlink_to(program)
    (folder / "bin" / ".installed").unlink(missing_ok=True)
    (folder / "bin" / ".installed").touch()
    return folder


def text_of(outputs: list) -> str:
    return "".join(output.get("text", "") for output in outputs)


@pytest.mark.long
def test_every_cell_runs_on_the_cpu(installed: Path, tmp_path: Path):
    import nbformat
    from nbclient import NotebookClient

    keys = {key: value for key, value in QUICK.items() if key != "max_steps"}
    words = flags(**keys, completion_samples_dir=tmp_path / "samples")
    settings = {"MINI_R1_STEPS": str(STEPS), "MINI_R1_RUNS": str(tmp_path), "MINI_R1_ARGS": shlex.join(words)}
    os.environ.update(program_environment(VENV=str(installed), **settings))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()

    shown = [cell for cell in notebook.cells if cell.source.rstrip().splitlines()[-1].startswith("show(")]
    assert len(shown) == 2
    for cell in shown:
        assert [output for output in cell.outputs if "image/png" in output.get("data", {})]
        assert all(f"step {step}, numbers" in text_of(cell.outputs) for step in range(STEPS))
        assert ", verdict: " in text_of(cell.outputs)
    (planned,) = [cell for cell in notebook.cells if "make plan" in cell.source]
    assert "This run could start" in text_of(planned.outputs)
    for name, adapts in (("notebook-tiny", False), ("notebook-lora", True)):
        folder = tmp_path / name
        assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == STEPS
        assert (folder / "adapter_config.json").is_file() == adapts
        assert (folder / "report.html").is_file()
    assert list((tmp_path / "notebook-tiny" / "evaluation").glob("*.json"))


def test_the_notebook_is_kept_without_outputs_and_says_what_was_not_run():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []
    (second,) = [text for cell in cells if "Second half: Qwen" in (text := "".join(cell["source"]))]
    assert "**not run**" in second
