"""Kills a training run at random moments until it is done, and compares it with one that was left in peace.

    python tests/tools/chaos.py --kills 50 --seed 1          # about six minutes on two CPU cores; also `make chaos`

Every start is the same command, and pushes to a Hub on 127.0.0.1. A run that ends must have the same weights,
optimizer, samples, evaluations and logs as the undisturbed one, bit by bit (only times differ), with no sample or log
entry twice and no puzzle skipped, and all of it must be on the Hub. Prints where the kills struck and what was lost;
the exit code is 0 only when that is nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [path for path in (str(ROOT / "scripts"), str(ROOT / "tests" / "tools")) if path not in sys.path]

import forked_run  # noqa: E402
from hub_server import HubServer, User  # noqa: E402
from mini_r1.run_folder import SET_ASIDE  # noqa: E402
from mini_r1.run_folder.manifest import checkpoints_in, fault_in, read_manifest  # noqa: E402

# The tiny recipe cut to some seconds: checkpoints every second step, evaluations every third, three epochs.
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "num_generations": 4,
    "max_completion_length": 48,
    "dataset_rows": 40,
    "held_out_puzzles": 16,
    "eval_puzzles": 4,
    "per_device_eval_batch_size": 4,
    "eval_steps": 3,
    "save_steps": 2,
    "save_total_limit": 3,
    "sample_share": 1.0,
    "success_sample_share": 1.0,
    "max_steps": 24,
}
# What is measured with a clock, or tells what this process did and not what the run came to.
TIMES = ("step_time", "runtime", "_per_second", "train/epoch")


def command(run: Path, **changes: Any) -> list[str]:
    """The arguments of a run in this folder; its samples lie beside it."""
    settings = {**SETTINGS, "output_dir": run, "completion_samples_dir": f"{run}-samples", **changes}
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    return ["--config", "receipes/grpo-tiny-countdown-cpu.yaml", *words]


def start(
    run: Path, fault: tuple[Any, ...] | None = None, environment: dict[str, str] | None = None, **changes: Any
) -> forked_run.ForkServerProcess:
    """Starts a run; its output is in `RUN.log`."""
    return forked_run.start(command(run, **changes), Path(f"{run}.log"), fault, **(environment or {}))


def undisturbed(run: Path, **changes: Any) -> Path:
    """A whole run. Raises AssertionError with its output when it fails."""
    code = forked_run.finish(start(run, **changes))
    assert code == 0, Path(f"{run}.log").read_text()
    return run


# --------------------------------------------------------------------------------------------------------------------
# Comparing
# --------------------------------------------------------------------------------------------------------------------


def timeless(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if not key.endswith(TIMES)}


def history(run: Path) -> list[dict[str, Any]]:
    """The log of a finished run without what a clock measured; entries of nothing else are left out."""
    entries = [timeless(entry) for entry in json.loads((run / "trainer_state.json").read_text())["log_history"]]
    return [entry for entry in entries if set(entry) - {"step", "epoch"}]


def optimizer(run: Path) -> dict[str, Any]:
    import torch

    newest = max(checkpoints_in(run).items())[1]
    return torch.load(newest / "optimizer.pt", weights_only=True)["state"]


def differences(run: Path, reference: Path) -> list[str]:
    """What two finished runs do not have in common, in words; empty when they are the same."""
    import torch

    found = []
    if (run / "model.safetensors").read_bytes() != (reference / "model.safetensors").read_bytes():
        found.append("the final weights differ")
    ours, theirs = optimizer(run), optimizer(reference)
    if not all(torch.equal(ours[i][key], theirs[i][key]) for i in theirs for key in theirs[i]):
        found.append("the optimizer's moments differ")
    if history(run) != history(reference):
        found.append("the logs differ")
    for name in ("completion_samples", "success_completion_samples"):
        lines, expected = ((r / "samples" / f"{name}.jsonl").read_text().splitlines() for r in (run, reference))
        if lines != expected:
            missing, extra = Counter(expected) - Counter(lines), Counter(lines) - Counter(expected)
            found.append(f"{name}.jsonl: {sum(missing.values())} samples missing, {sum(extra.values())} too many")
        texts = [_text(r, name) for r in (run, reference)]
        if texts[0] != texts[1]:
            found.append(f"{name}.txt differs")
    if (run / "held_out.json").read_text() != (reference / "held_out.json").read_text():
        found.append("held_out.json differs")
    if scalars(run) != scalars(reference):
        found.append("TensorBoard shows another curve")
    return found


def _text(run: Path, name: str) -> str:
    folder = json.loads((run / "run.json").read_text())["name"]
    return (Path(f"{run}-samples") / folder / f"{name}.txt").read_text()


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's curves as TensorBoard reads them, without what a clock measured."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of every restart
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    # What closes a run is said again by a start that had only the closing to do.
    left_out = (*TIMES, "train/train_loss", "train/total_flos")
    tags = [t for t in events.Tags()["scalars"] if not t.endswith(left_out) and t.startswith(("train/", "eval/"))]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


# --------------------------------------------------------------------------------------------------------------------
# Killing at random
# --------------------------------------------------------------------------------------------------------------------


def missing_on_hub(server: HubServer, repository: str, run: Path) -> list[str]:
    """What a Hub lacks of a finished run, in words."""
    found = []
    repo = server.repo(repository)
    # What save_total_limit removed before its upload began is nowhere, and said so.
    steps = {f"step-{step}" for step in checkpoints_in(run)}
    if missing := steps - set(repo.revisions()):
        return [f"not on the Hub: {', '.join(sorted(missing))}"]
    for step, path in checkpoints_in(run).items():
        files = repo.files(f"step-{step}")
        if any(files.get(name) != (path / name).read_bytes() for name in read_manifest(path)["files"]):
            found.append(f"step-{step} on the Hub is not the checkpoint")
    if repo.files()["model.safetensors"] != (run / "model.safetensors").read_bytes():
        found.append("the model on the Hub is not the final one")
    return found


def chaos(folder: Path, kills: int, seed: int, server: HubServer) -> int:
    """Kills runs `kills` times at random moments; returns how many finished runs differ from the reference."""
    environment = server.environment(folder / "home", "token")
    moments = random.Random(seed)
    undisturbed(folder / "warm-up", max_steps=2)  # loads the libraries into the fork server
    begun = time.monotonic()
    reference = undisturbed(folder / "reference")
    duration = time.monotonic() - begun
    print(f"undisturbed: {SETTINGS['max_steps']} steps in {duration:.1f} s", flush=True)
    struck: Counter[str] = Counter()
    runs = lost = killed = starts = aside = in_upload = 0
    redone: list[int] = []
    while killed < kills:
        runs += 1
        run = folder / f"run-{runs}"
        trace = folder / f"run-{runs}.stage"
        pushes = {"push_to_hub": True, "hub_model_id": f"alice/run-{runs}"}
        while True:
            starts += 1
            trace.write_text("loading".ljust(60))  # `watch` writes into its two columns
            process = start(run, ("watch", str(trace)), environment, **pushes)
            process.join(moments.uniform(0.0, duration) if killed < kills else 600)
            if process.exitcode is None and killed < kills:
                process.kill()
                process.join()
                killed += 1
                text = trace.read_text()
                stage, _, step = text[:40].strip().partition(" ")
                struck[stage] += 1
                in_upload += "uploading" in text[40:]
                complete = [n for n, path in checkpoints_in(run).items() if not fault_in(path)]
                if stage != "loading":
                    redone.append(int(step) + 1 - max(complete, default=0))
                continue
            if process.exitcode != 0:
                print(f"run {runs} failed with {process.exitcode}:\n{Path(f'{run}.log').read_text()[-3000:]}")
                return 1
            break
        found = differences(run, reference) + missing_on_hub(server, pushes["hub_model_id"], run)
        lost += bool(found)
        aside += len(list((run / SET_ASIDE).glob("*")))
        outcome = "; ".join(found) or "same as the undisturbed one"
        print(f"run {runs}: killed {killed} times so far, {outcome}", flush=True)
        if not found:
            for path in (run, Path(f"{run}-samples")):
                shutil.rmtree(path)
    digest = hashlib.sha256((reference / "model.safetensors").read_bytes()).hexdigest()[:12]
    print(
        f"\n{killed} kills in {starts} starts of {runs} runs (seed {seed}), {time.monotonic() - begun:.0f} s\n"
        f"struck while: {', '.join(f'{stage} {number}' for stage, number in struck.most_common())}; "
        f"{in_upload} of them in the middle of an upload\n"
        f"half-written checkpoints set aside: {aside}; steps begun and done again after a kill: at most "
        f"{max(redone, default=0)}, {sum(redone) / max(1, len(redone)):.1f} in the mean (saved every "
        f"{SETTINGS['save_steps']})\n"
        f"final weights of every run: sha256 {digest}...\n"
        f"runs that differ from the undisturbed one: {lost} of {runs}"
    )
    return lost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the runs go (default: a temporary folder)")
    args = parser.parse_args()
    with HubServer({"token": User("alice")}) as server:
        if args.folder:
            args.folder.mkdir(parents=True, exist_ok=True)
            sys.exit(chaos(args.folder, args.kills, args.seed, server) > 0)
        with tempfile.TemporaryDirectory() as folder:
            sys.exit(chaos(Path(folder), args.kills, args.seed, server) > 0)


if __name__ == "__main__":
    main()
