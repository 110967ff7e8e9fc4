"""Real runs of the real script: started by `accelerate launch`, as a user starts them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import chaos
import forked_run
from conftest import QUICK, ROOT, TINY_MODEL, TINY_RECIPE, Launcher, flags, kill_group, program_environment, wait_until
from mini_r1.run_folder.manifest import fault_in, read_manifest

pytestmark = pytest.mark.slow


def scalars(run: Path) -> dict[str, list[float]]:
    """TensorBoard's scalars of a run folder, by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, list[float]] = {}
    for folder in {path.parent for path in (run / "tensorboard").rglob("events*")}:
        events = EventAccumulator(str(folder)).Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, []).extend(event.value for event in events.Scalars(tag))
    return found


def jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_everything_that_readme_promises(launcher: Launcher, tmp_path: Path):
    run, samples = tmp_path / "run", tmp_path / "samples"
    code, output = launcher.run(**QUICK, output_dir=run, completion_samples_dir=samples)
    assert code == 0, output

    # The run describes itself.
    description = json.loads((run / "run.json").read_text())
    assert description["recipe"]["max_steps"] == 2
    assert description["recipe"]["num_generations"] == 4
    assert description["versions"]["trl"] == "1.16.0"
    assert description["split"]["train_puzzles"] + description["split"]["held_out_puzzles"] == 300

    # Held-out success before and after, on stdout and as JSON.
    curve = json.loads((run / "held_out.json").read_text())
    assert [point["step"] for point in curve] == [0, 2]
    assert all(0 <= point["low"] <= point["pass@1"] <= point["high"] <= 1 for point in curve)
    sums = {"3 numbers, + -", "4 numbers, + -"}
    kinds = {*sums, "3 numbers, needs * /", "4 numbers, needs * /"}
    assert all(sums <= set(point["strata"]) <= kinds for point in curve)
    assert "step        1/2 | solved" in output
    assert "held-out    2/2 | solved" in output
    assert "held-out success before" in output
    assert "held-out success after" in output
    assert str(run) in output

    # Samples: readable ones under the run's own name and behind the fixed name, the same ones as JSONL.
    text = (samples / "completion_samples.txt").read_text()
    assert text == (samples / description["name"] / "completion_samples.txt").read_text()
    records = jsonl(run / "samples" / "completion_samples.jsonl")
    trained = [record for record in records if record["split"] == "train"]
    assert len(trained) == 2 * 8  # two steps of eight completions, sample_share 1.0
    assert len(records) - len(trained) == 2 * 16  # two evaluations of sixteen puzzles
    assert text.count("verdict: ") == len(records)
    assert all(record["response"].startswith("<think>") for record in records)

    # TensorBoard shows what the glossary lists.
    logged = scalars(run)
    for tag in (
        "train/rewards/format_reward_func/mean",
        "train/rewards/equation_reward_func/mean",
        "train/completions/mean_length",
        "train/completions/clipped_ratio",
        "train/thinking/mean_length",
        "train/thinking/attempts",
        "train/thinking/self_corrections",
        "train/reason/correct",
        "train/reason/no_answer",
        "eval/rewards/equation_reward_func/mean",
        "eval/pass@1/3 numbers, + -",
    ):
        assert tag in logged, sorted(logged)
    shares = [
        sum(values) for values in zip(*(v for t, v in logged.items() if t.startswith("train/reason/")), strict=True)
    ]
    assert shares == pytest.approx([1.0] * len(shares))

    # A checkpoint, a final model, a model card.
    assert (run / "checkpoint-2" / "optimizer.pt").is_file()
    assert (run / "README.md").is_file()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    assert model.config.vocab_size == len(tokenizer)


# Two processes that share the model by DeepSpeed, with dynamic sampling; the recipe's use_cpu does the rest.
SHARDED = {
    **QUICK, "max_steps": 4, "per_device_eval_batch_size": 8, "eval_steps": 3, "save_steps": 2, "dataset_rows": 60,
    "launch_flags": ("--num_processes", "2", "--mixed_precision", "no"),
    "puzzle_choice": "success", "refill_rounds": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def zero3(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes under ZeRO-3 that was left in peace, and profiled, which changes none of its numbers."""
    folder = tmp_path_factory.mktemp("zero3")
    places = {"output_dir": folder / "run", "completion_samples_dir": folder / "samples"}
    code, output = launcher.run(config="deepspeed_zero3.yaml", **SHARDED, **places, profile=2)
    assert code == 0, output
    return folder / "run"


def check_shards(run: Path) -> None:
    """Both ranks sampled, trained and saved, and the weights were gathered."""
    records = jsonl(run / "samples" / "completion_samples.jsonl")
    assert {record["rank"] for record in records} == {0, 1}
    assert sum(record["split"] == "train" for record in records) == 4 * 2 * 8
    from safetensors import safe_open

    with safe_open(run / "model.safetensors", "pt") as weights:
        assert weights.get_tensor("model.embed_tokens.weight").numel() > 0
    shards = sorted(path.name for path in (run / "checkpoint-4").glob("global_step*/*optim_states.pt"))
    assert len(shards) == 2, shards  # DeepSpeed's optimizer states, one shard a rank
    assert "zero_pp_rank_1" in shards[1]
    success = read_manifest(run / "checkpoint-4")["puzzle_success"]
    assert sum(completions for _, completions in success.values()) > 2 * 8 * 3  # of both ranks


def test_zero3_on_two_cpu_processes(zero3: Path):
    check_shards(zero3)
    traces = sorted(path.name for path in (zero3 / "profile").glob("trace-*"))
    assert traces == ["trace-rank-0.json.gz", "trace-rank-1.json.gz"]
    (head,) = [line for line in (zero3 / "profile" / "breakdown.md").read_text().splitlines() if "slowest" in line]
    assert sorted(re.findall(r"rank (\d)", head)) == ["0", "1"]


@pytest.mark.long
def test_a_killed_run_of_two_processes_resumes_exactly(launcher: Launcher, zero3: Path, tmp_path: Path):
    """SIGKILL for the launcher and both ranks under ZeRO-3; the same command ends as a run that was left in peace."""
    run, log = tmp_path / "run", tmp_path / "log"
    settings = {**SHARDED, "output_dir": run, "completion_samples_dir": tmp_path / "samples"}
    with log.open("w") as stream:
        process = launcher.start(config="deepspeed_zero3.yaml", **settings, stdout=stream)
    first = run / "checkpoint-2"
    try:
        wait_until(lambda: not fault_in(first) or process.poll() is not None, 300, "saving")
    finally:
        kill_group(process)
    assert fault_in(first) is None, log.read_text()
    # A half-written checkpoint, as a kill in the middle of saving leaves one.
    shutil.rmtree(run / "checkpoint-4", ignore_errors=True)
    shutil.copytree(first, run / "checkpoint-4")
    (run / "checkpoint-4" / "model.safetensors").write_bytes(b"")

    code, output = launcher.run(config="deepspeed_zero3.yaml", **settings)
    assert code == 0, output
    assert "checkpoint-4 is incomplete: model.safetensors has 0 of" in output
    assert f"resuming from {first}" in output
    assert [path.name[:13] for path in (run / "set-aside").iterdir()] == ["checkpoint-4-"]
    for name in ("completion_samples.jsonl", "success_completion_samples.jsonl"):
        ours, theirs = (
            sorted(path.read_text().splitlines()) if path.is_file() else []
            for path in (run / "samples" / name, zero3 / "samples" / name)
        )
        assert ours == theirs
    assert chaos.history(run) == chaos.history(zero3)
    assert (run / "model.safetensors").read_bytes() == (zero3 / "model.safetensors").read_bytes()


@pytest.mark.parametrize("resumes", [False, pytest.param(True, marks=pytest.mark.long)])
def test_fsdp2_shards_an_adapter_on_two_cpu_processes(resumes: bool, launcher: Launcher, tmp_path: Path):
    """Evaluations leave parts of the model whole, and the reference model is sharded, too."""
    run = tmp_path / "run"
    settings = {**SHARDED, "max_steps": 3, "use_peft": True, "lora_r": 4, "beta": 0.001, "eval_steps": 1}
    places = {"output_dir": run, "completion_samples_dir": tmp_path / "samples"}
    code, output = launcher.run(config="fsdp.yaml", **settings, **places)
    assert code == 0, output
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    assert 0 <= next(entry["kl"] for entry in history if "kl" in entry) < 1e-6  # the reference is the policy's start
    assert (run / "checkpoint-2" / "pytorch_model_fsdp_0").is_dir()  # in parts
    assert json.loads((run / "adapter_config.json").read_text())["r"] == 4
    if not resumes:
        return
    shutil.rmtree(run / "checkpoint-3")
    (run / "trainer_state.json").unlink()
    code, output = launcher.run(config="fsdp.yaml", **settings, **places)
    assert code == 0, output
    assert f"resuming from {run}/checkpoint-2" in output


@pytest.mark.long
def test_two_ranks_make_the_step_of_micro_batches_that_are_neither_sorted_nor_trimmed(
    launcher: Launcher, tmp_path: Path
):
    from safetensors.torch import load_file

    weights = {"before": load_file(TINY_MODEL / "model.safetensors")}
    for trims in (True, False):
        run = tmp_path / str(trims)
        code, output = launcher.run(
            launch_flags=("--num_processes", "2"), output_dir=run, completion_samples_dir=tmp_path / "samples",
            **{**QUICK, "max_steps": 1, "eval_strategy": "no", "eval_on_start": False, "warmup_steps": 0,
               "optim": "sgd", "learning_rate": 1.0, "gradient_accumulation_steps": 4, "max_completion_length": 96,
               "trim_micro_batches": trims},
        )  # fmt: skip
        assert code == 0, output
        weights[str(trims)] = load_file(run / "model.safetensors")
    moved = max(float((weights["True"][name] - start).abs().max()) for name, start in weights["before"].items())
    apart = max(float((weights["True"][name] - weights["False"][name]).abs().max()) for name in weights["True"])
    assert apart < 1e-5 < 1e-3 < moved


def forked(folder: Path, **overrides: object) -> tuple[int, str]:
    """Exit code and output of a run without the launcher, which starts in a second."""
    argv = ["--config", str(TINY_RECIPE), *flags(**overrides)]
    code = forked_run.finish(forked_run.start(argv, folder / "log"))
    return code, (folder / "log").read_text()


def test_lora(tmp_path: Path):
    run = tmp_path / "run"
    code, output = forked(
        tmp_path,
        **QUICK,
        output_dir=run,
        completion_samples_dir=tmp_path / "samples",
        use_peft=True,
        lora_r=4,
        learning_rate=1e-3,
    )
    assert code == 0, output
    assert json.loads((run / "adapter_config.json").read_text())["r"] == 4
    assert (run / "adapter_model.safetensors").is_file()
    assert not (run / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        pytest.param({"learning_rat": 1}, "learning_rat", id="unknown key"),
        pytest.param({"learning_rate": "fast"}, "learning_rate", id="wrong type"),
        pytest.param({"temperature": 0}, "temperature must be positive", id="impossible value"),
        pytest.param({"num_generations": 7}, "no multiple of num_generations (7)", id="batch arithmetic"),
        pytest.param({"model_name_or_path": "./nowhere"}, "model_name_or_path", id="no such model"),
        pytest.param({"dataset_id_or_path": "./nowhere.jsonl"}, "does not exist", id="no such file"),
        pytest.param({"dataset_id_or_path": "nobody/nothing"}, "dataset_id_or_path: generate", id="offline"),
        pytest.param({"output_dir": "README.md/run"}, "output_dir: cannot write", id="a folder that cannot be made"),
        pytest.param({"eval_puzzles": 0}, "eval_puzzles", id="nothing to evaluate on"),
        pytest.param({"dataset_rows": 9}, "raise dataset_rows", id="fewer puzzles than one step takes"),
        pytest.param({"num_generations": "none"}, "num_generations", id="nothing where a number must be"),
        pytest.param({"attn_implementation": "flash_attention_2"}, "write sdpa", id="a package that is not there"),
        pytest.param({"number_counts": 9}, "number_counts", id="too many numbers"),
        pytest.param({"resume_from_checkpoint": "nowhere"}, "resume_from_checkpoint", id="no such checkpoint"),
    ],
)
def test_bad_input_ends_with_one_line_that_names_the_key(overrides: dict, message: str, tmp_path: Path):
    argv = ["--config", str(TINY_RECIPE), "--output_dir", str(tmp_path / "run"), *flags(**overrides)]
    assert forked_run.finish(forked_run.start(argv, tmp_path / "log")) == 1
    output = (tmp_path / "log").read_text()
    (error,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert message in error
    assert "Traceback" not in output
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_refusal_under_the_launcher_is_one_line_too(launcher: Launcher, tmp_path: Path):
    code, output = launcher.run(launch_flags=("--quiet",), temperature=0, output_dir=tmp_path / "run")
    assert code == 1
    assert [line for line in output.splitlines() if line.startswith("error: ")] == [
        "error: temperature must be positive, got 0.0"
    ]
    assert "Traceback" not in output


def test_the_tiny_model_learns_not_to_give_up(launcher: Launcher, tmp_path: Path):
    """The embedded default cut to 10 steps: held-out success rises and the reasoning gets longer."""
    run = tmp_path / "run"
    code, output = launcher.run(
        max_steps=10, eval_steps=10, eval_puzzles=192, output_dir=run, completion_samples_dir=tmp_path / "s"
    )
    assert code == 0, output
    before, after = json.loads((run / "held_out.json").read_text())
    assert after["low"] > before["high"]
    assert after["mean_tokens"] > before["mean_tokens"]


@pytest.mark.long
def test_an_unreachable_hub_names_the_offline_way(tmp_path: Path):
    environment = program_environment(HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "scripts/run_r1_grpo.py", "--config", TINY_RECIPE, "--dataset_id_or_path", "nobody/nothing"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "dataset_id_or_path: generate" in error


def test_uneven_evaluation_sets_are_cut_to_whole_batches_and_tokens_never_reach_the_disk(tmp_path: Path):
    run = tmp_path / "run"
    settings = {**QUICK, "max_steps": 1, "eval_steps": 1, "eval_puzzles": 21, "per_device_eval_batch_size": 8}
    token = "hf_" + "x" * 34
    code, output = forked(
        tmp_path, **settings, output_dir=run, completion_samples_dir=tmp_path / "samples", hub_token=token
    )
    assert code == 0, output
    assert "evaluating on 16 of 21 puzzles" in output
    assert {point["puzzles"] for point in json.loads((run / "held_out.json").read_text())} == {16}
    texts = [path.read_bytes() for path in run.rglob("*") if path.suffix in (".json", ".md", ".jsonl")]
    assert not any(token.encode() in text for text in texts)


@pytest.mark.long
def test_a_run_without_evaluation_and_a_second_run_in_the_same_folder(launcher: Launcher, tmp_path: Path):
    import torch
    from safetensors import safe_open

    run = tmp_path / "run"
    settings = {**QUICK, "max_steps": 1, "eval_strategy": "no", "save_strategy": "no", "output_dir": run}
    settings |= {"dtype": "bfloat16", "learning_rate": 1e-6}
    names = []
    for _ in range(2):
        code, output = launcher.run(**settings, completion_samples_dir=tmp_path / "samples")
        assert code == 0, output
        assert "not measured" in output
        assert "dtype: bfloat16: without DeepSpeed" in output  # such a run would learn nothing
        with safe_open(run / "model.safetensors", "pt") as weights:
            assert weights.get_tensor("model.embed_tokens.weight").dtype == torch.bfloat16  # the recipe's dtype
        assert not (run / "held_out.json").exists()
        names.append(json.loads((run / "run.json").read_text())["name"])
        assert len(jsonl(run / "samples" / "completion_samples.jsonl")) == 8  # this run's alone
    assert names[0] != names[1]
    assert len(jsonl(run / f"samples-{names[0]}" / "completion_samples.jsonl")) == 8
    assert (tmp_path / "samples" / "completion_samples.txt").resolve().parent.name == names[1]
