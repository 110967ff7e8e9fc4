"""Which checkpoints a word names, and which puzzles they may have been trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest

from conftest import TINY_MODEL
from mini_r1.common import RunError
from mini_r1.countdown import TASK
from mini_r1.countdown.puzzle import is_held_out
from mini_r1.run_folder.checkpoints import Checkpoint, refuse_trained_puzzles, resolve
from mini_r1.run_folder.manifest import write_manifest


def model_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(TINY_MODEL / name, folder)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder of before there were tasks, without checkpoints."""
    recipe = {"dataset_id_or_path": "generate", "number_counts": [3], "model_name_or_path": str(TINY_MODEL)}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"recipe": recipe, "split": {"share": 0.1}}))
    return tmp_path / "run"


def names_in(folder: Path) -> list[str]:
    return [checkpoint.name for checkpoint in resolve(str(folder))]


def test_a_run_folder_is_its_base_and_all_its_checkpoints_in_order(run: Path):
    for step in (10, 9, 100):
        model_folder(run / f"checkpoint-{step}")
    (run / "checkpoint-200").mkdir()  # not finished
    names = ["base", "checkpoint-9", "checkpoint-10", "checkpoint-100"]
    assert names_in(run) == names
    model_folder(run)
    (run / "trainer_state.json").write_text('{"global_step": 100}')
    assert names_in(run) == names  # the last checkpoint is the final model
    (run / "trainer_state.json").write_text('{"global_step": 120}')
    assert names_in(run) == [*names, "final model"]
    (run / "held_out.json").write_text('[{"step": 10, "final": true}, {"step": 100}]')  # load_best_model_at_end
    assert names_in(run) == [*names, "final model (step 10)"]
    (run / "trainer_state.json").unlink()  # as a run that goes on does
    assert names_in(run) == names
    for path in (run, run / "checkpoint-9"):
        assert {checkpoint.run_folder for checkpoint in resolve(str(path))} == {run}


def test_a_checkpoint_that_is_being_written_is_left_out(run: Path):
    for step in (10, 20):
        model_folder(run / f"checkpoint-{step}")
    write_manifest(run / "checkpoint-10", {"step": 10})
    assert names_in(run) == ["base", "checkpoint-10"]


@pytest.mark.parametrize(
    ("word", "revision"), [("someone/model@abc", "abc"), ("someone/model", "main"), ("model@main", "main")]
)
@pytest.mark.parametrize(
    ("answer", "is_adapter"),
    [
        pytest.param(lambda *_, **__: True, True, id="an adapter"),
        pytest.param(lambda *_, **__: False, False, id="a model"),
        pytest.param(lambda *_, **__: open("/no/such/network"), False, id="no network"),  # noqa: PTH123, SIM115
    ],
)
def test_hub_ids_with_revisions(
    word: str, revision: str, answer: Callable[..., bool], is_adapter: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(huggingface_hub, "file_exists", answer)
    found = Checkpoint(word, word.partition("@")[0], revision, is_adapter)
    assert resolve(word) == [found]


@pytest.mark.parametrize(
    ("name", "configuration"),
    [("pytorch_model-00001-of-00002.bin", "config.json"), ("adapter_model.bin", "adapter_config.json")],
)
def test_pickled_weights_are_refused(name: str, configuration: str, run: Path):
    folder = run / "checkpoint-5"
    folder.mkdir()
    (folder / configuration).write_text("{}")
    (folder / name).write_bytes(b"")
    for path in (folder, run):
        with pytest.raises(RunError, match=r"holds no model.* pickled weights"):
            resolve(str(path))
    model_folder(folder)  # safetensors beside them are what counts
    assert resolve(str(folder))[0].path == str(folder)


@pytest.mark.parametrize("word", ["./nowhere", "/nowhere/at/all", "a/b/c", "tests", "README.md"])
def test_what_is_no_checkpoint_is_refused(word: str):
    with pytest.raises(RunError, match=r"is no checkpoint folder|holds no model"):
        resolve(word)


@pytest.mark.parametrize("content", ["{}", "[]", '{"recipe": '])
def test_a_run_json_that_is_none_is_passed_over(content: str, run: Path):
    (run / "run.json").write_text(content)
    (checkpoint,) = resolve(str(model_folder(run / "checkpoint-3")))
    assert checkpoint.run == {}
    assert checkpoint.task is TASK


@pytest.mark.parametrize(
    ("split", "share"),
    [
        pytest.param({"share": 0.1}, 0.1, id="the most that is held out"),
        pytest.param({"share": 0.05}, 0.05, id="less"),
        pytest.param({}, 0.1, id="not known"),
    ],
)
def test_puzzles_of_the_training_side_are_refused(split: dict[str, float], share: float, run: Path):
    description = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**description, "split": split}))
    (checkpoint,) = resolve(str(model_folder(run / "checkpoint-5")))
    puzzles = [TASK.puzzle((a, b, 7), 50) for a in range(1, 40) for b in range(1, 40)]
    held_out = [puzzle for puzzle in puzzles if is_held_out(*puzzle, share=share)]
    assert 50 < len(held_out) < len(puzzles) / 5
    refuse_trained_puzzles([checkpoint], held_out)
    refuse_trained_puzzles([checkpoint], [TASK.puzzle((1, 2, 3, 4), 10)])  # it has only seen three numbers
    refuse_trained_puzzles([Checkpoint("unknown", "someone/model")], puzzles)
    trained = len(puzzles) - len(held_out)
    with pytest.raises(RunError, match=rf"^{trained} of 1521 puzzles .* --allow_trained_puzzles$"):
        refuse_trained_puzzles([Checkpoint("unknown", "someone/model"), checkpoint], puzzles)


def test_the_arguments_of_a_run_are_those_of_its_recipe_with_changes():
    checkpoint = Checkpoint("x", "x", run={"recipe": {"number_counts": [5], "dataset_rows": 7, "beta": 0.1}})
    arguments = checkpoint.puzzle_arguments(dataset_rows=0, number_counts=None)
    assert (arguments.number_counts, arguments.dataset_rows) == ([5], 0)
    assert arguments.dataset_seed == TASK.arguments().dataset_seed
