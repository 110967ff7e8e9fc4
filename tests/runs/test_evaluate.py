"""evaluate.py: which settings and puzzles it takes, whole evaluations in this process, and both backends alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import evaluate
from conftest import TINY_MODEL
from mini_r1.common import UserError
from mini_r1.countdown import TASK
from mini_r1.evaluation.scores import ALL
from mini_r1.run_folder.checkpoints import Checkpoint

TINY = str(TINY_MODEL)


def run_folder(folder: Path, **recipe: object) -> Path:
    folder.mkdir(parents=True)
    recipe = {"dataset_id_or_path": "generate", "dataset_rows": 300, "number_counts": [3], **recipe}
    (folder / "run.json").write_text(json.dumps({"name": "x", "recipe": recipe, "split": {"share": 0.1}}))
    return folder


def measured(folder: Path, *flags: object) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Evaluates by transformers; returns the result and the samples."""
    evaluate.main([*map(str, flags), "--backend", "transformers", "--output", str(folder)])
    (path,) = folder.glob("*.json")
    lines = path.with_suffix(".jsonl").read_text().splitlines()
    return json.loads(path.read_text()), [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("recipe", "flags", "expected"),
    [
        pytest.param({}, [], (1.0, 1.0, 0, None, 1.0), id="no run"),
        pytest.param({"temperature": 0.9}, [], (0.9, 1.0, 0, None, 1.0), id="a run that names one"),
        pytest.param(
            {"top_p": 0.9, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1},
            [],
            (1.0, 0.9, 20, 0.05, 1.1),
            id="a run that names all",
        ),
        pytest.param(
            {"top_p": 0.9, "top_k": 20}, "--top_p 1 --min_p 0.2".split(), (1.0, 1.0, 20, 0.2, 1.0), id="flags first"
        ),
        pytest.param(
            {"top_p": 0.9, "generation_kwargs": {"top_p": 0.5}}, [], (1.0, 0.5, 0, None, 1.0), id="overrides, as in TRL"
        ),
        pytest.param({"top_k": -1, "top_p": None}, [], (1.0, 1.0, 0, None, 1.0), id="other words for all"),
    ],
)
def test_a_run_is_sampled_as_it_was_trained(recipe: dict[str, Any], flags: list[str], expected: tuple):
    args = evaluate.arguments([str(TINY_MODEL), *flags])
    sampling = evaluate.settle_sampling(args, Checkpoint("x", "x", run={"recipe": recipe}))
    assert tuple(getattr(sampling, key) for key in evaluate.SAMPLING) == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param(["./nowhere"], "no checkpoint folder", id="no such folder"),
        pytest.param(["x", "--k", "4"], r"--k must be between 1 and --samples \(1\)", id="k above the samples"),
        pytest.param(["x", "--samples", "0"], r"--k must be between 1 and --samples \(0\)", id="no samples"),
        pytest.param([TINY, "--temperature", "-1"], "--temperature must be 0 or more", id="negative temperature"),
        pytest.param([TINY, "--top_p", "0"], "--top_p must be .* above 0", id="nothing to draw from"),
        pytest.param([TINY, "--min_p", "nan"], "--min_p must be between 0 and 1", id="not a number"),
        pytest.param([TINY, "--output", "README.md/out"], "cannot write to README.md/out", id="nowhere to write"),
        pytest.param([TINY, "--puzzles", "./none.jsonl"], "does not exist", id="no such puzzles"),
        pytest.param([TINY, "--number_counts", "9"], "number_counts must", id="no such number count"),
        pytest.param(["--nonsense"], "required: CHECKPOINT", id="usage"),
    ],
)
def test_bad_input_is_refused_before_anything_is_loaded(flags: list[str], message: str):
    with pytest.raises(UserError, match=message) as refused:
        evaluate.main(flags)
    assert "\n" not in str(refused.value)


def puzzles_of(known: Checkpoint, *flags: str) -> tuple[list[Any], str]:
    return evaluate.choose_puzzles(evaluate.arguments(["x", *flags]), known)


def test_puzzles_are_those_that_the_run_held_out(tmp_path: Path):
    run = Checkpoint("x", "x", run={"recipe": {"dataset_id_or_path": "generate", "dataset_rows": 300}})
    held_out = TASK.load(run.puzzle_arguments(), False).held_out
    assert puzzles_of(run) == (held_out, "held-out puzzles of generate")
    assert puzzles_of(run, "--num_puzzles", "5")[0] == held_out[:5]
    assert {len(puzzle.nums) for puzzle in puzzles_of(run, "--number_counts", "4")[0]} == {4}
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps({"nums": [a, 2, 3], "target": a + 5}) + "\n" for a in range(1, 31)))
    puzzles, source = puzzles_of(run, "--puzzles", str(own))
    assert (len(puzzles), source) == (30, f"puzzles of {own}")
    with pytest.raises(UserError, match="offers no puzzle to evaluate on"):
        puzzles_of(run, "--puzzles", str(own), "--number_counts", "4")


def test_checkpoints_of_one_name_are_called_by_their_paths(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(evaluate, "resolve", lambda word: [Checkpoint("checkpoint-1", word)])
    assert [checkpoint.name for checkpoint in evaluate.choose_checkpoints(["a", "b", "a"])] == ["a", "b"]


@pytest.mark.slow
def test_an_evaluation_samples_and_reads_prompts_as_the_run_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The base has no tokenizer of its own, and the only token to draw from is the most probable one."""
    base = Path(shutil.copytree(TINY_MODEL, tmp_path / "base", ignore=shutil.ignore_patterns("tokenizer*")))
    run = run_folder(
        tmp_path / "run",
        model_name_or_path=str(base),
        tokenizer_name_or_path=str(TINY_MODEL),
        top_k=1,
        max_completion_length=64,
    )
    shutil.copytree(TINY_MODEL, run / "checkpoint-1")
    evaluate.main([str(run), "--backend", "transformers", "--num_puzzles", "4", "--samples", "2"])
    shown = capsys.readouterr()
    assert (
        "4 held-out puzzles of generate, 2 completions each by transformers, temperature 1.0, top_p 1.0, top_k 1"
        in shown.err
    )
    (path,) = (run / "evaluation").glob("*.json")
    assert f"written to {path}" in shown.out
    result = json.loads(path.read_text())
    assert [row["checkpoint"] for row in result["table"] if row["stratum"] == ALL] == ["base", "checkpoint-1"]
    assert {change["change"] for change in result["changes"]} == {0}
    settings = result["settings"]
    assert (settings["top_k"], settings["top_p"], settings["min_p"], settings["repetition_penalty"]) == (1, 1, None, 1)
    samples = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    assert [sample["checkpoint"] for sample in samples] == ["base"] * 8 + ["checkpoint-1"] * 8
    responses = [sample["response"] for sample in samples]
    assert responses[::2] == responses[1::2]  # twice the same answer
    assert responses[:8] == responses[8:]  # the same weights, read through the same tokenizer
    assert set(samples[0]) >= {"nums", "target", "reason", "value", "equation_reward"}


@pytest.mark.slow
def test_adapters_of_a_run_are_measured_on_their_base_and_with_their_weights(tmp_path: Path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    run = run_folder(tmp_path / "run", model_name_or_path="configs/tiny-countdown", max_completion_length=48)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")  # changes nothing at first
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(TINY_MODEL), config)
    model.peft_config["default"].base_model_name_or_path = "configs/tiny-countdown"
    model.save_pretrained(run / "checkpoint-1")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn_like(weight) * 20)
    model.save_pretrained(run / "checkpoint-2")
    result, samples = measured(tmp_path / "out", run, "--num_puzzles", 8, "--temperature", 0)
    names = ["base", "checkpoint-1", "checkpoint-2"]
    assert [(e["name"], e["adapter"]) for e in result["checkpoints"]] == list(zip(names, [0, 1, 1], strict=True))
    base, nothing, much = ([s["response"] for s in samples if s["checkpoint"] == name] for name in names)
    assert base == nothing != much


@pytest.mark.slow
def test_an_adapter_has_the_room_that_its_base_model_leaves(tmp_path: Path):
    from mini_r1.generation.sampling import load_tokenizer, room_for_completion

    configuration = {"peft_type": "LORA", "base_model_name_or_path": str(TINY_MODEL), "revision": None}
    (tmp_path / "adapter_config.json").write_text(json.dumps(configuration))
    adapter, model = Checkpoint("adapter", str(tmp_path), is_adapter=True), Checkpoint("model", str(TINY_MODEL))
    tokenizer = load_tokenizer(model)
    prompts = ["1 + 2", "1 + 2 + 3"]
    longest = len(tokenizer(prompts[1])["input_ids"])
    assert room_for_completion(adapter, tokenizer, prompts) == 1024 - longest
    for checkpoint in (adapter, model):
        with pytest.raises(UserError, match=rf"no room .* {checkpoint.name}'s context of 1024: choose puzzles"):
            room_for_completion(checkpoint, tokenizer, [*prompts, "1 + 2 " * 1024])


@pytest.mark.slow
def test_pickles_are_not_read_when_loading_either(tmp_path: Path):
    """transformers and peft would read them where there are no safetensors."""
    import torch
    from safetensors.torch import load_file

    from mini_r1.generation.sampling import load

    model = Path(shutil.copytree(TINY_MODEL, tmp_path / "model"))
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    configuration = {"peft_type": "LORA", "base_model_name_or_path": str(TINY_MODEL), "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(configuration))
    torch.save({}, adapter / "adapter_model.bin")
    for checkpoint in (Checkpoint("model", str(model)), Checkpoint("adapter", str(adapter), is_adapter=True)):
        with pytest.raises(UserError, match="safetensors"):
            load(checkpoint)


@pytest.mark.slow
@pytest.mark.long
def test_both_backends_measure_the_same(tmp_path: Path):
    results = []
    for backend in ("transformers", "vllm"):
        flags = "--num_puzzles 256 --samples 4 --k 1 4 --number_counts 3 --max_completion_length 288".split()
        evaluate.main([str(TINY_MODEL), "--backend", backend, *flags, "--output", str(tmp_path / backend)])
        (path,) = (tmp_path / backend).glob("*.json")
        results.append(json.loads(path.read_text())["checkpoints"][0]["strata"][ALL])
        assert len(path.with_suffix(".jsonl").read_text().splitlines()) == 256 * 4
    one, other = results
    for key in ("pass@1", "pass@4"):
        assert one[f"{key}_low"] <= other[key] <= one[f"{key}_high"]
        assert other[f"{key}_low"] <= one[key] <= other[f"{key}_high"]
    assert one["mean_tokens"] == pytest.approx(other["mean_tokens"], rel=0.1)
    assert one["pass@4"] > one["pass@1"]
