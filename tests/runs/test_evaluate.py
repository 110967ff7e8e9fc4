"""evaluate.py: the right numbers for known answers, the right puzzles, and the same from both backends."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import QUICK, ROOT, TINY_MODEL, Launcher, program_environment
from evaluate import ALL, arguments, columns, compare, score, settle_sampling, summarise
from mini_r1.common import RecipeError
from mini_r1.countdown.puzzle import Puzzle, is_held_out
from mini_r1.countdown.solver import stratum
from mini_r1.generation import sampling as generation
from mini_r1.generation.sampling import Completion, Sampling
from mini_r1.run_folder import resume as resumption
from mini_r1.run_folder.checkpoints import Checkpoint, refuse_trained_puzzles, resolve

PROMPT = "... <think>"


def completion(text: str, truncated: bool = False) -> Completion:
    return Completion(text, len(text), truncated)


RIGHT = completion("44+19=63, 63+35=98 yes!</think>\n<answer>44+19+35</answer>")
WRONG = completion("44-19=25 too low</think>\n<answer>44-19+35</answer>")
CUT = completion("44-19=25 too low", truncated=True)


@pytest.mark.parametrize(("nums", "target", "expected"), [
    pytest.param((44, 19, 35), 98, "3 numbers, + -", id="a sum"),
    pytest.param((3, 5, 2), 17, "3 numbers, needs * /", id="3 * 5 + 2"),
    pytest.param((1, 1, 1), 100, "3 numbers, unsolvable", id="nothing reaches it"),
    pytest.param((1, 2, 3, 4), 10, "4 numbers, + -", id="four"),
    pytest.param((10, 20, 30, 40, 50, 60), 10, "6 numbers, + -", id="six"),
    pytest.param((2, 3, 7, 11, 13, 17), 1000, "6 numbers, needs * /", id="six with products"),
])  # fmt: skip
def test_strata(nums: tuple, target: int, expected: str):
    assert stratum(nums, target) == expected


def test_scores_of_known_completions():
    puzzles = [Puzzle((44, 19, 35), 98), Puzzle((44, 19, 35), 98)]
    scored = score(puzzles, [PROMPT] * 2, [[RIGHT, WRONG], [CUT, WRONG]])
    assert [[row["reason"] for row in rows] for rows in scored] == [
        ["correct", "wrong_value"],
        ["no_answer", "wrong_value"],
    ]
    summary = summarise(scored, [1, 2])
    assert summary["pass@1"] == pytest.approx(0.25)
    assert summary["pass@2"] == pytest.approx(0.5)
    assert summary["pass@1_low"] <= 0.25 <= summary["pass@1_high"]
    assert (summary["puzzles"], summary["completions"]) == (2, 4)
    assert summary["truncated"] == 0.25
    assert summary["format"] == 0.75
    assert summary["reasons"]["wrong_value"] == 0.5
    assert sum(summary["reasons"].values()) == 1
    assert summary["verifications"] == 0.25


def test_changes_are_of_the_same_puzzles():
    puzzles = [Puzzle((44, 19, 35), 98)] * 4
    before = score(puzzles, [PROMPT] * 4, [[RIGHT], [WRONG], [WRONG], [WRONG]])
    after = score(puzzles, [PROMPT] * 4, [[RIGHT], [RIGHT], [RIGHT], [WRONG]])
    (change,) = compare(["a", "b"], {"a": before, "b": after}, {ALL: [0, 1, 2, 3]})
    assert change["change"] == 0.5
    assert change["low"] < 0.5 < change["high"]


def test_tables_are_aligned():
    assert columns([["name", "x"], ["long name", "10.5"]]) == "name          x\n---------------\nlong name  10.5"


# ---- which checkpoints, which puzzles ------------------------------------------------------------------------------


def model_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((TINY_MODEL / name).read_bytes())
    return folder


def run_folder(folder: Path, **recipe: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {"dataset_id_or_path": "generate", "number_counts": [3], "number_range": [1, 99],
              "model_name_or_path": str(TINY_MODEL), **recipe}  # fmt: skip
    (folder / "run.json").write_text(json.dumps({"name": "x", "recipe": recipe, "split": {"share": 0.1}}))
    return folder


def test_a_run_folder_is_its_base_and_all_its_checkpoints_in_order(tmp_path: Path):
    run = run_folder(tmp_path / "run")
    for step in (10, 9, 100):
        model_folder(run / f"checkpoint-{step}")
    (run / "checkpoint-200").mkdir()  # not finished
    names = [checkpoint.name for checkpoint in resolve(str(run))]
    assert names == ["base", "checkpoint-9", "checkpoint-10", "checkpoint-100"]
    model_folder(run)
    (run / "trainer_state.json").write_text('{"global_step": 100}')
    assert [checkpoint.name for checkpoint in resolve(str(run))] == names  # the last checkpoint is the final model
    (run / "trainer_state.json").write_text('{"global_step": 120}')
    assert [checkpoint.name for checkpoint in resolve(str(run))] == [*names, "final model"]
    assert resolve(str(run / "checkpoint-9"))[0].run_folder == run


def test_a_checkpoint_that_is_being_written_is_left_out(tmp_path: Path):
    run = run_folder(tmp_path / "run")
    for step in (10, 20):
        model_folder(run / f"checkpoint-{step}")
    resumption.write_manifest(run / "checkpoint-10", {"step": 10})
    assert [checkpoint.name for checkpoint in resolve(str(run))] == ["base", "checkpoint-10"]


def test_hub_ids_with_revisions():
    (checkpoint,) = resolve("someone/model@abc")
    assert (checkpoint.path, checkpoint.revision) == ("someone/model", "abc")
    assert resolve("someone/model")[0].revision == "main"


@pytest.mark.parametrize(("name", "configuration", "library"), [
    ("pytorch_model.bin", "config.json", "transformers"),
    ("pytorch_model-00001-of-00002.bin", "config.json", "transformers"),
    ("adapter_model.bin", "adapter_config.json", "peft"),
])  # fmt: skip
def test_pickled_weights_are_refused(name: str, configuration: str, library: str, tmp_path: Path):
    (tmp_path / configuration).write_text("{}")
    (tmp_path / name).write_bytes(b"")
    run = run_folder(tmp_path / "run")
    shutil.copytree(tmp_path, run / "checkpoint-5", ignore=lambda *_: ["run"])
    for folder, place in ((tmp_path, tmp_path), (run, run / "checkpoint-5")):
        with pytest.raises(RecipeError) as caught:
            resolve(str(folder))
        message = str(caught.value)
        assert f"{folder} holds pickled weights ({name}), and only safetensors are read" in message
        assert f"from {library} import" in message
        assert f"from_pretrained('{place}')" in message
    model_folder(tmp_path)  # safetensors beside them are what counts
    assert resolve(str(tmp_path))[0].path == str(tmp_path)


@pytest.mark.slow
def test_pickled_weights_are_converted_by_the_command_that_the_refusal_names(tmp_path: Path):
    import torch
    from safetensors.torch import load_file

    from mini_r1.generation.sampling import load

    model = model_folder(tmp_path / "model")
    shutil.copytree(TINY_MODEL, model, dirs_exist_ok=True)
    weights = load_file(model / "model.safetensors")
    torch.save(weights, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    with pytest.raises(RecipeError, match="safetensors"):
        load(Checkpoint("pickled", str(model)))
    with pytest.raises(RecipeError) as caught:
        resolve(str(model))
    command = str(caught.value).partition("convert them: python ")[2]
    done = subprocess.run([sys.executable, *shlex.split(command)], env=program_environment(), capture_output=True,
                          text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (checkpoint,) = resolve(str(model))
    assert torch.equal(load(checkpoint).model.lm_head.weight, weights["model.embed_tokens.weight"])


@pytest.mark.slow
def test_an_adapter_has_the_room_that_its_base_model_leaves(tmp_path: Path):
    from mini_r1.generation.sampling import load_tokenizer, room_for_completion

    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(TINY_MODEL), "revision": None})
    )
    adapter, model = Checkpoint("adapter", str(tmp_path), is_adapter=True), Checkpoint("model", str(TINY_MODEL))
    tokenizer = load_tokenizer(model)
    prompts = ["1 + 2", "1 + 2 + 3"]
    longest = len(tokenizer(prompts[1])["input_ids"])
    assert room_for_completion(adapter, tokenizer, prompts) == 1024 - longest
    for checkpoint in (adapter, model):
        with pytest.raises(RecipeError, match=rf"no room .* {checkpoint.name}'s context of 1024: choose puzzles"):
            room_for_completion(checkpoint, tokenizer, [*prompts, "1 + 2 " * 1024])
    with pytest.raises(RecipeError, match="cannot read the configuration"):
        room_for_completion(Checkpoint("nothing", str(tmp_path / "nothing")), tokenizer, prompts)


@pytest.mark.slow
def test_a_pickled_adapter_is_not_read(tmp_path: Path):
    """peft reads adapter_model.bin where there are no safetensors."""
    import torch

    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(TINY_MODEL), "target_modules": ["q_proj"]})
    )
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(RecipeError, match=r"holds no adapter_model\.safetensors"):
        generation.load(Checkpoint("adapter", str(tmp_path), is_adapter=True))


def test_vllm_is_asked_to_draw_as_transformers_does(monkeypatch: pytest.MonkeyPatch):
    asked: dict[str, dict] = {}

    def engine(**settings: object) -> SimpleNamespace:
        asked["engine"] = settings
        return SimpleNamespace(generate=lambda *args, **kwargs: [])

    fake = SimpleNamespace(LLM=engine, SamplingParams=lambda **settings: asked.update(sampling=settings))
    monkeypatch.setitem(sys.modules, "vllm", fake)
    for name in ("VLLM_LOGGING_LEVEL", "VLLM_CPU_KVCACHE_SPACE"):
        monkeypatch.setenv(name, "1")
    sampling = Sampling(2, 0.7, top_p=0.9, top_k=5, min_p=0.1, repetition_penalty=1.2, max_tokens=8)
    assert generation._vllm_outputs("model", None, "tokenizer", [[1, 2]], sampling) == []
    assert asked["sampling"] == {"n": 2, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1,
                                 "repetition_penalty": 1.2, "max_tokens": 8, "seed": None}  # fmt: skip
    assert asked["engine"]["tokenizer"] == "tokenizer"
    assert asked["engine"]["load_format"] == "safetensors"
    generation._vllm_outputs("model", None, None, [[1, 2]], Sampling())
    assert asked["sampling"]["min_p"] == 0.0  # vLLM's word for none


@pytest.mark.parametrize(("recipe", "flags", "expected"), [
    pytest.param(None, [], (1.0, 1.0, 0, None, 1.0), id="no run"),
    pytest.param({"temperature": 0.9}, [], (0.9, 1.0, 0, None, 1.0), id="a run that names one"),
    pytest.param({"top_p": 0.9, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1}, [], (1.0, 0.9, 20, 0.05, 1.1),
                 id="a run that names all"),
    pytest.param({"top_p": 0.9, "top_k": 20}, ["--top_p", "1", "--min_p", "0.2"], (1.0, 1.0, 20, 0.2, 1.0),
                 id="flags come first"),
    pytest.param({"top_p": 0.9, "generation_kwargs": {"top_p": 0.5}}, [], (1.0, 0.5, 0, None, 1.0),
                 id="generation_kwargs override, as in TRL"),
    pytest.param({"top_k": -1, "top_p": None}, [], (1.0, 1.0, 0, None, 1.0), id="other words for all"),
])  # fmt: skip
def test_a_run_is_sampled_as_it_was_trained(recipe: dict | None, flags: list[str], expected: tuple):
    args = arguments([str(TINY_MODEL), *flags])
    settle_sampling(args, Checkpoint("x", "x", run=None if recipe is None else {"recipe": recipe}))
    assert (args.temperature, args.top_p, args.top_k, args.min_p, args.repetition_penalty) == expected


@pytest.mark.slow
def test_an_evaluation_samples_and_reads_prompts_as_the_run_did(tmp_path: Path):
    """The base has no tokenizer of its own, and the only token to draw from is the most probable one."""
    base = model_folder(tmp_path / "base")
    run = run_folder(tmp_path / "run", model_name_or_path=str(base), tokenizer_name_or_path=str(TINY_MODEL), top_k=1,
                     max_completion_length=64)  # fmt: skip
    shutil.copytree(TINY_MODEL, run / "checkpoint-1")
    done = evaluate(str(run), "--backend", "transformers", "--num_puzzles", "4", "--samples", "2")
    assert done.returncode == 0, done.stderr
    assert "at temperature 1, top_k 1, by transformers" in done.stderr
    (path,) = (run / "evaluation").glob("*.json")
    settings = json.loads(path.read_text())["settings"]
    assert (settings["top_k"], settings["top_p"], settings["min_p"], settings["repetition_penalty"]) == (1, 1, None, 1)
    samples = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    assert [sample["checkpoint"] for sample in samples] == ["base"] * 8 + ["checkpoint-1"] * 8
    responses = [sample["response"] for sample in samples]
    assert responses[::2] == responses[1::2]  # twice the same answer
    assert responses[:8] == responses[8:]  # the same weights, read through the same tokenizer


@pytest.mark.parametrize("word", ["./nowhere", "/nowhere/at/all", "a/b/c", "tests"])
def test_what_is_no_checkpoint_is_refused(word: str):
    with pytest.raises(RecipeError, match=r"is no checkpoint folder|holds no model"):
        resolve(word)


def test_puzzles_of_the_training_side_are_refused(tmp_path: Path):
    run = run_folder(tmp_path / "run")
    checkpoint = resolve(str(model_folder(run / "checkpoint-5")))[0]
    puzzles = [Puzzle((a, b, 7), 50) for a in range(1, 40) for b in range(1, 40)]
    held_out = [puzzle for puzzle in puzzles if is_held_out(*puzzle, share=0.1)]
    assert 50 < len(held_out) < len(puzzles) / 5
    refuse_trained_puzzles([checkpoint], held_out)
    with pytest.raises(RecipeError, match="--allow_trained_puzzles"):
        refuse_trained_puzzles([checkpoint], puzzles)
    refuse_trained_puzzles([checkpoint], [Puzzle((1, 2, 3, 4), 10)])  # it has only seen three numbers
    refuse_trained_puzzles([Checkpoint("unknown", "someone/model")], puzzles)


# ---- the real thing ------------------------------------------------------------------------------------------------


def evaluate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "scripts/evaluate.py", *arguments],
        cwd=ROOT, env=program_environment(), capture_output=True, text=True, timeout=600,
    )  # fmt: skip


@pytest.mark.slow
def test_both_backends_measure_the_same(tmp_path: Path):
    results = {}
    for backend in ("transformers", "vllm"):
        done = evaluate(
            str(TINY_MODEL), "--backend", backend, "--num_puzzles", "256", "--samples", "4", "--k", "1", "4",
            "--number_counts", "3", "--max_completion_length", "288", "--output", str(tmp_path / backend),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "3 numbers, needs * /" in done.stdout
        (path,) = (tmp_path / backend).glob("*.json")
        results[backend] = json.loads(path.read_text())["checkpoints"][0]["strata"][ALL]
        samples = path.with_suffix(".jsonl").read_text().splitlines()
        assert len(samples) == 256 * 4
    one, other = results["transformers"], results["vllm"]
    for key in ("pass@1", "pass@4"):
        assert one[f"{key}_low"] <= other[key] <= one[f"{key}_high"]
        assert other[f"{key}_low"] <= one[key] <= other[f"{key}_high"]
    assert one["mean_tokens"] == pytest.approx(other["mean_tokens"], rel=0.1)
    assert one["pass@4"] > one["pass@1"]


@pytest.mark.slow
def test_a_run_with_an_adapter(launcher: Launcher, tmp_path: Path):
    run = tmp_path / "run"
    code, output = launcher.run(
        **{**QUICK, "number_counts": 3, "max_steps": 1}, use_peft=True, lora_r=4, eval_strategy="no",
        eval_on_start=False, output_dir=run, completion_samples_dir=tmp_path / "samples",
    )  # fmt: skip
    assert code == 0, output
    done = evaluate(str(run), "--backend", "transformers", "--num_puzzles", "16", "--max_completion_length", "64")
    assert done.returncode == 0, done.stderr
    assert "base" in done.stdout
    assert "checkpoint-1" in done.stdout
    (path,) = (run / "evaluation").glob("*.json")
    result = json.loads(path.read_text())
    assert [entry["adapter"] for entry in result["checkpoints"]] == [False, True]
    assert {row["checkpoint"] for row in result["table"]} == {"base", "checkpoint-1"}
    assert result["changes"][0]["from"] == "base"
    shutil.rmtree(run)


@pytest.mark.parametrize(("arguments", "message"), [
    pytest.param(["./nowhere"], "no checkpoint folder", id="no such folder"),
    pytest.param([str(TINY_MODEL), "--k", "4"], "--k must be between 1 and --samples (1)", id="k above the samples"),
    pytest.param([str(TINY_MODEL), "--samples", "0"], "--samples must be 1 or more", id="no samples"),
    pytest.param([str(TINY_MODEL), "--temperature", "-1"], "--temperature must be", id="negative temperature"),
    pytest.param([str(TINY_MODEL), "--top_p", "0"], "--top_p must be above 0", id="nothing to draw from"),
    pytest.param([str(TINY_MODEL), "--min_p", "nan"], "--min_p must be between 0 and 1", id="not a number"),
    pytest.param([str(TINY_MODEL), "--puzzles", "./none.jsonl"], "does not exist", id="no such puzzles"),
])  # fmt: skip
def test_bad_input_is_one_line(arguments: list[str], message: str):
    done = evaluate(*arguments)
    assert done.returncode == 2
    (error,) = done.stderr.splitlines()
    assert message in error
