"""Which checkpoint a run goes on from, and what it refuses to go on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import ROOT, draft
from mini_r1.common import RunError
from mini_r1.recipe import Recipe
from mini_r1.run_folder import resume as resumption
from mini_r1.run_folder.manifest import fault_in, write_manifest
from mini_r1.run_folder.resume import find


def checkpoint(run: Path, step: int, *, whole: bool = True) -> Path:
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"w" * 10)
    (folder / "optimizer.pt").touch()
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    if whole:
        write_manifest(folder, {"step": step})
    return folder


def settings(run: Path, **changes: object) -> Recipe:
    values = {
        "output_dir": str(run), "resume_from_checkpoint": None, "max_steps": 100, "generation_batch_size": None,
        "steps_per_generation": None, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2,
        "num_generations": 4, "bf16": False, "max_prompt_tokens": 8, "max_completion_length": 8, "learning_rate": 1e-3,
        "seed": 42, "sync_ref_model": False, "fp16": False,
    }  # fmt: skip
    return draft(**{**values, **changes})


def path_of(resume: resumption.Resume | None) -> Path | None:
    return resume.path if resume else None


def test_an_empty_folder_starts_from_scratch(tmp_path: Path):
    assert find(settings(tmp_path / "nothing")) is None


def test_the_newest_checkpoint_is_by_number_not_by_name(tmp_path: Path):
    checkpoint(tmp_path, 9)
    newest = checkpoint(tmp_path, 10)
    (tmp_path / "checkpoint-old").mkdir()
    assert path_of(find(settings(tmp_path))) == newest


def no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def broken_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"files": {')


def missing_file(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def short_file(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"w" * 4)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (no_manifest, "it has no manifest.json"),
        (broken_manifest, "it has no manifest.json"),
        (missing_file, "model.safetensors is missing"),
        (short_file, "model.safetensors has 4 of 10 bytes"),
    ],
)
def test_incomplete_checkpoints_are_passed_over_named_and_set_aside(
    fault, why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    good = checkpoint(tmp_path, 10)
    bad = checkpoint(tmp_path, 20)
    fault(bad)
    resume = find(settings(tmp_path))
    assert resume is not None
    assert resume.path == good
    assert f"{bad} is incomplete: {why}" in caplog.text
    assert bad.is_dir()  # looking changes nothing
    resumption.set_aside(resume.aside, tmp_path)
    assert not bad.exists()
    (moved,) = (tmp_path / "set-aside").iterdir()
    assert moved.name.startswith("checkpoint-20-")
    assert good.is_dir()


def test_an_explicit_checkpoint_wins_and_newer_ones_make_way(tmp_path: Path):
    older, newer = checkpoint(tmp_path, 10), checkpoint(tmp_path, 20)
    resume = find(settings(tmp_path, resume_from_checkpoint=str(older)))
    assert resume is not None
    assert (resume.path, resume.step, resume.same_folder, resume.aside) == (older, 10, True, [newer])


def test_an_explicit_checkpoint_of_another_run_is_a_fork(tmp_path: Path):
    other = checkpoint(tmp_path / "a", 10)
    mine = checkpoint(tmp_path / "b", 20)
    resume = find(settings(tmp_path / "b", resume_from_checkpoint=str(other)))
    assert resume is not None
    assert (resume.path, resume.same_folder, resume.aside) == (other, False, [mine])


def test_resuming_can_be_turned_off_and_on(tmp_path: Path):
    newest = checkpoint(tmp_path, 20)
    assert find(settings(tmp_path, resume_from_checkpoint="false")) is None
    assert path_of(find(settings(tmp_path, resume_from_checkpoint=True))) == newest


def test_an_explicit_checkpoint_that_is_none_or_incomplete_is_refused(tmp_path: Path):
    with pytest.raises(RunError, match="resume_from_checkpoint"):
        find(settings(tmp_path, resume_from_checkpoint=str(tmp_path)))
    short_file(checkpoint(tmp_path, 20))
    with pytest.raises(RunError, match=r"incomplete: model.safetensors has 4 of 10 bytes"):
        find(settings(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-20")))


def test_a_finished_run_says_so_but_one_killed_while_closing_goes_on(tmp_path: Path):
    last = checkpoint(tmp_path, 100)
    assert path_of(find(settings(tmp_path))) == last
    (tmp_path / "trainer_state.json").write_text('{"max_steps": 100}')  # written when a run closes
    for steps, is_finished in ((100, True), (-1, True), (200, False)):  # -1: epochs, of as many steps as were planned
        resume = find(settings(tmp_path, max_steps=steps, num_train_epochs=3.0))
        assert resume is not None
        assert (resume.path, resume.is_finished) == (last, is_finished)


def describe(run: Path, **changes: object) -> None:
    (run / "run.json").write_text(json.dumps({"identity": resumption.identity(settings(run, **changes), {})}))


@pytest.mark.parametrize(
    ("environment", "change", "refusal"),
    [
        ({}, {"seed": 43}, "seed: 42 -> 43"),
        ({}, {"gradient_accumulation_steps": 4}, "completions a step: 16 -> 32"),
        ({}, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}, None),
        ({}, {"learning_rate": 1e-4}, None),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, "sharding: None -> DeepSpeed"),
    ],
)
def test_what_may_change_on_the_way(
    environment: dict[str, str], change: dict[str, object], refusal: str | None, tmp_path: Path
):
    checkpoint(tmp_path, 10)
    describe(tmp_path)
    if refusal is not None:
        with pytest.raises(RunError, match=refusal):
            find(settings(tmp_path, **change), environment)
        return
    resume = find(settings(tmp_path, **change), environment)
    assert resume is not None
    assert all(f"{key}: " in " ".join(resume.notes) for key in change if key != "gradient_accumulation_steps")


@pytest.mark.parametrize("change", [{}, {"profile": 3}, {"trim_micro_batches": False}])  # which leave the steps alone
def test_the_same_recipe_says_nothing(change: dict, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    checkpoint(tmp_path, 10)
    describe(tmp_path)
    resume = find(settings(tmp_path, **change), {})
    assert resume is not None
    assert resume.notes == []
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("every", "logged", "lacks"),
    [
        (5, [{"step": 10, "reward": 1.0}], True),
        (5, [{"step": 10, "reward": 1.0}, {"step": 10, "eval_reward": 0.5}], False),
        (5, [{"step": 5, "eval_reward": 0.5}], True),
        (4, [], False),
        (None, [], False),
        (0.1, [], False),
    ],
)
def test_an_evaluation_that_was_cut_off_is_made_again(every, logged: list, lacks: bool, tmp_path: Path):
    folder = checkpoint(tmp_path, 10)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 10, "log_history": logged}))
    assert resumption.lacks_evaluation(resumption.Resume(folder, 10), every) is lacks


def test_samples_are_cut_back_to_the_checkpoint(tmp_path: Path):
    folders = {"json": tmp_path / "json", "text": tmp_path / "text"}
    for folder in folders.values():
        folder.mkdir()
    long, short = tmp_path / "json" / "completion_samples.jsonl", tmp_path / "text" / "completion_samples.txt"
    long.write_bytes(b"0123456789")
    short.write_bytes(b"01")
    first_success = tmp_path / "text" / "success_completion_samples.txt"
    first_success.write_bytes(b"01")
    sizes = {"json/completion_samples.jsonl": 4, "text/completion_samples.txt": 4,
             "json/success_completion_samples.jsonl": 4, "text/success_completion_samples.txt": 0}  # fmt: skip
    resumption.cut_back(sizes, folders)
    assert first_success.read_bytes() == b""  # there was none yet
    assert long.read_bytes() == b"0123"
    assert short.read_bytes() == b"01"  # somebody shortened it; nothing is made up


@pytest.mark.parametrize("name", ["../../thesis.tex", "/etc/hostname", "a/../../b"])
def test_a_hostile_manifest_reaches_nothing_outside(name: str, tmp_path: Path):
    thesis = tmp_path / "thesis.tex"
    thesis.write_text("years of work")
    run = tmp_path / "runs" / "run"
    folder = checkpoint(run, 10)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "files": {name: 1}}))
    assert "outside of it" in (fault_in(folder) or "")
    folders = {"json": run / "samples", "text": run / "text"}
    resumption.cut_back({f"json/{name}": 0, "json//etc/hostname": 0, "json/completion_samples.jsonl": "0"}, folders)
    assert thesis.read_text() == "years of work"


@pytest.mark.parametrize("name", ["../..", "..", ".", "/home/me/x", "a/b", "", 7, None, "x" * 999, "é" * 128, "a\nb"])
def test_a_name_that_is_no_folders_is_none(name: object):
    assert resumption.run_name({"name": name}) is None


@pytest.mark.parametrize(
    "folder", ["run", "lr=2e-4", "try 1", "run(1)", "q+r", "a'b\"c", "[x]*?", ".hidden", "ß" * 127, "a\nb", "\udcff"]
)
def test_whatever_a_folder_is_called_its_run_keeps_its_name(folder: str, tmp_path: Path):
    name = resumption.new_name(tmp_path / folder)
    assert resumption.run_name(json.loads(json.dumps({"name": name}))) == name
    (tmp_path / name).mkdir()


@pytest.mark.parametrize("model", ["configs/tiny-countdown/", f"{ROOT}/scripts/../configs/tiny-countdown"])
def test_the_same_model_by_another_path_is_no_other_model(model: str, tmp_path: Path):
    checkpoint(tmp_path, 10)
    describe(tmp_path, model_name_or_path="configs/tiny-countdown")
    assert find(settings(tmp_path, model_name_or_path=model), {}) is not None
    with pytest.raises(RunError, match="model_name_or_path: configs/tiny-countdown -> configs"):
        find(settings(tmp_path, model_name_or_path="configs"), {})


def test_a_finished_run_that_kept_its_best_checkpoint_alone_is_finished(tmp_path: Path):
    checkpoint(tmp_path, 50)
    (tmp_path / "trainer_state.json").write_text('{"max_steps": 100, "global_step": 100}')
    for steps, is_finished in ((100, True), (200, False)):
        resume = find(settings(tmp_path, max_steps=steps))
        assert resume is not None
        assert resume.is_finished is is_finished


@pytest.mark.parametrize("description", [{"identity": 3, "split": []}, {"identity": {"fixed": 1, "free": "x"}}, []])
def test_a_broken_description_is_none(description: object, tmp_path: Path):
    checkpoint(tmp_path, 10)
    (tmp_path / "run.json").write_text(json.dumps(description))
    resume = find(settings(tmp_path), {})
    assert resume is not None
    resumption.check_same_puzzles(resume, "anything")


def test_weights_without_an_optimizer_are_nothing_to_go_on_from(tmp_path: Path):
    folder = checkpoint(tmp_path, 10)
    (folder / "optimizer.pt").unlink()
    write_manifest(folder, {"step": 10})
    with pytest.raises(RunError, match=r"save_only_model.* give it as model_name_or_path: .*/checkpoint-10$"):
        find(settings(tmp_path))
    (folder / "adapter_config.json").touch()
    write_manifest(folder, {"step": 10})
    with pytest.raises(
        RunError, match=r"save_only_model.* merge it into its base model, python scripts/export.py .*/merged$"
    ):
        find(settings(tmp_path))


def test_another_layout_is_refused_where_completions_wait_and_taken_up_elsewhere(tmp_path: Path):
    folder = checkpoint(tmp_path, 10)
    describe(tmp_path)
    changed = settings(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=4)
    assert find(changed, {}) is not None
    write_manifest(folder, {"step": 10, "buffered": True})
    with pytest.raises(RunError, match=r"another layout .*per_device_train_batch_size: 8 -> 4"):
        find(changed, {})
    assert find(settings(tmp_path), {}) is not None


def test_processes_that_see_different_checkpoints_do_not_go_on():
    resumption.check_agreement([("a", 1), ("a", 1)])
    resumption.check_agreement([None, None])
    with pytest.raises(RunError, match="share"):
        resumption.check_agreement([("a", 1), None])


def test_escape_sequences_of_a_description_are_shown_as_text(tmp_path: Path):
    checkpoint(tmp_path, 10)
    described = resumption.identity(settings(tmp_path), {})
    described["free"]["learning_rate"] = "\x1b]0;owned\x07"
    (tmp_path / "run.json").write_text(json.dumps({"identity": described}))
    resume = find(settings(tmp_path), {})
    assert resume is not None
    assert "learning_rate" in resume.notes[0]
    assert "\x1b" not in "".join(resume.notes)


def test_a_folder_in_which_a_run_goes_on_is_not_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import os

    holder = resumption.hold(tmp_path)
    monkeypatch.setattr(resumption, "_LOCK_WAIT", 0.0)
    with pytest.raises(RunError, match=f"another run uses .*process {os.getpid()}"):
        resumption.hold(tmp_path)
    os.close(holder)
    os.close(resumption.hold(tmp_path))
