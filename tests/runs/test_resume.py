"""A killed run resumes as if nothing had happened: real processes, killed at named moments, compared bit by bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import chaos
import forked_run
from mini_r1.run_folder import SET_ASIDE
from mini_r1.run_folder.manifest import fault_in, read_description

pytestmark = pytest.mark.slow
LONG = pytest.mark.long

# Eight steps of two puzzles' groups; with 28 puzzles to train on, an epoch has seven.
QUICK: dict[str, Any] = {"max_steps": 8, "dataset_rows": 31, "held_out_puzzles": 16, "number_counts": 3}
# Two steps from each generation, and a checkpoint in between; puzzles are drawn by what was solved before it.
BUFFERED = {**QUICK, "steps_per_generation": 4, "save_steps": 3, "puzzle_choice": "success", "refill_rounds": 2}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chaos.undisturbed(tmp_path_factory.mktemp("reference") / "run", **QUICK)


def finish_after(run: Path, fault: tuple[Any, ...], **changes: Any) -> str:
    """Starts a run that dies of the fault, starts it again, and returns what the second start said."""
    assert forked_run.finish(chaos.start(run, fault, **changes)) == -9, Path(f"{run}.log").read_text()
    code = forked_run.finish(chaos.start(run, **changes))
    output = Path(f"{run}.log").read_text()
    assert code == 0, output
    return output


@pytest.mark.parametrize(
    ("fault", "resumes_from"),
    [
        pytest.param(("kill_in_generation", 1), None, marks=LONG, id="first generation"),
        pytest.param(("kill_in_step", 2), None, marks=LONG, id="before the first checkpoint"),
        pytest.param(("kill_in_step", 6), 4, marks=LONG, id="in an optimizer step"),
        pytest.param(("kill_in_step", 8), 6, id="in the first step of the second epoch"),
        pytest.param(("kill_in_generation", 10), 6, marks=LONG, id="in a generation"),
        pytest.param(("kill_in_sample", 110), 2, id="in the middle of a sample"),
        pytest.param(("kill_in_checkpoint", "optimizer.pt", 2), 2, marks=LONG, id="in optimizer.pt"),
        pytest.param(("kill_in_checkpoint", "rng_state.pth", 3), 4, marks=LONG, id="in rng_state.pth"),
        pytest.param(("kill_before_manifest", 3), 4, id="before the manifest"),
        pytest.param(("kill_in_rotation", 1), 8, marks=LONG, id="while an old checkpoint is removed"),
        pytest.param(("kill_while_closing", 1), 8, marks=LONG, id="after the last step"),
    ],
)
def test_a_killed_run_ends_as_the_undisturbed_one(
    fault: tuple[Any, ...], resumes_from: int | None, reference: Path, tmp_path: Path
):
    run = tmp_path / "run"
    output = finish_after(run, fault, **QUICK)
    description = read_description(run)
    assert description["resumed_from"] == (str(run / f"checkpoint-{resumes_from}") if resumes_from else None)
    assert chaos.differences(run, reference) == []
    left = [path.name for path in run.glob("checkpoint-*") if fault_in(path)]
    assert left == []
    if fault[0] in ("kill_in_checkpoint", "kill_before_manifest", "kill_in_rotation"):
        (aside,) = (run / SET_ASIDE).iterdir()
        assert f"{run / aside.name.rsplit('-', 2)[0]} is incomplete" in output


def test_completions_that_wait_for_their_step_are_in_the_checkpoint(tmp_path: Path):
    expected = chaos.undisturbed(tmp_path / "undisturbed", **BUFFERED)
    generations = [entry for entry in chaos.history(expected) if "dead_groups" in entry]
    assert any(entry["dead_groups"] < entry["frac_reward_zero_std"] for entry in generations)  # some were refilled
    finish_after(tmp_path / "run", ("kill_in_step", 5), **BUFFERED)
    assert read_description(tmp_path / "run")["resumed_from"] == str(tmp_path / "run" / "checkpoint-3")
    assert chaos.differences(tmp_path / "run", expected) == []


@pytest.mark.long
def test_micro_batches_of_another_size_make_the_same_steps(tmp_path: Path):
    run = tmp_path / "run"
    assert forked_run.finish(chaos.start(run, ("kill_in_step", 4), **QUICK)) == -9
    changed = {**QUICK, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    assert forked_run.finish(chaos.start(run, **changed)) == 0, Path(f"{run}.log").read_text()
    assert "per_device_train_batch_size: 8 -> 4" in Path(f"{run}.log").read_text()
    lines = (run / "samples" / "completion_samples.jsonl").read_text().splitlines()
    steps = [record["step"] for record in map(json.loads, lines) if record["split"] == "train"]
    assert steps == [step for step in range(8) for _ in range(16)]


@pytest.mark.long
def test_a_checkpoint_whose_run_is_not_described_is_resumed_from(tmp_path: Path):
    run = tmp_path / "run"
    assert forked_run.finish(chaos.start(run, ("kill_in_step", 4), **QUICK)) == -9
    (run / "run.json").unlink()
    assert forked_run.finish(chaos.start(run, **QUICK)) == 0, Path(f"{run}.log").read_text()
    assert read_description(run)["resumed_from"] == f"{run}/checkpoint-2"
    assert [entry["step"] for entry in chaos.history(run) if "reward" in entry] == list(range(1, 9))


def test_every_puzzle_is_trained_on_as_often_as_the_epochs_say(reference: Path):
    records = [
        json.loads(line) for line in (reference / "samples" / "completion_samples.jsonl").read_text().splitlines()
    ]
    trained = [record for record in records if record["split"] == "train"]
    by_step = [tuple(sorted({(*r["nums"], r["target"]) for r in trained if r["step"] == step})) for step in range(8)]
    first_epoch = [puzzle for step in by_step[:7] for puzzle in step]
    assert len(first_epoch) == len(set(first_epoch)) == 28
    assert by_step[7][0] in first_epoch  # the second epoch begins


def test_a_changed_recipe_is_refused_with_the_difference_or_noted(tmp_path: Path):
    run = tmp_path / "run"
    settings = {**QUICK, "max_steps": 2, "dataset_rows": 60}
    chaos.undisturbed(run, **settings)
    checkpoint = (run / "checkpoint-2" / "manifest.json").read_text()
    for change, shown in (
        ({"num_generations": 8}, "num_generations: 4 -> 8"),
        ({"seed": 7}, "seed: 42 -> 7"),
        ({"gradient_accumulation_steps": 4}, "completions a step: 16 -> 32"),
        ({"dataset_rows": 50}, "dataset_rows: 60 -> 50"),
    ):
        assert forked_run.finish(chaos.start(run, **{**settings, "max_steps": 4, **change})) == 1
        (line,) = [line for line in Path(f"{run}.log").read_text().splitlines() if line.startswith("error: ")]
        assert shown in line
        assert "--output_dir" in line
    assert (run / "checkpoint-2" / "manifest.json").read_text() == checkpoint
    # Another learning rate is taken up, although the optimizer's state holds the old one.
    changed = {**settings, "max_steps": 4, "learning_rate": 1e-5}
    assert forked_run.finish(chaos.start(run, **changed)) == 0, Path(f"{run}.log").read_text()
    output = Path(f"{run}.log").read_text()
    assert "changed from step 2 on: learning_rate: 0.0002 -> 1e-05, max_steps: 2 -> 4" in output
    assert forked_run.finish(chaos.start(run, **changed)) == 0
    assert "is finished" in Path(f"{run}.log").read_text()
    rates = [entry["learning_rate"] for entry in chaos.history(run) if "learning_rate" in entry]
    assert rates == pytest.approx([0.0, 4e-5, 4e-6, 6e-6])  # warm-up over five steps


@pytest.mark.long
def test_puzzles_of_a_file_that_was_edited_are_refused(tmp_path: Path):
    run, puzzles = tmp_path / "run", tmp_path / "puzzles.jsonl"
    rows = [json.dumps({"nums": [n, n + 3, 5], "target": n + 10}) for n in range(1, 60)]
    puzzles.write_text("\n".join(rows))
    settings = {**QUICK, "max_steps": 2, "dataset_id_or_path": puzzles}
    chaos.undisturbed(run, **settings)
    puzzles.write_text("\n".join(rows[:-1]))
    assert forked_run.finish(chaos.start(run, **{**settings, "max_steps": 4})) == 1
    assert "these are not the puzzles" in Path(f"{run}.log").read_text()
