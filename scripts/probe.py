"""Will it learn? Ask before paying: samples a few groups as a run would, and says what its steps would teach.

    python scripts/probe.py --config receipes/grpo-tiny-countdown-cpu.yaml
    python scripts/probe.py --groups 64 --config receipes/grpo-qwen-2.5-3b-1x80gb.yaml --num_generations 16

Takes the recipe's model, prompt, puzzles and sampling, and any override behind them, as `run_r1_grpo.py` does
(`--processes 3` where three will train); trains nothing, writes nothing. One page: success by kind of puzzle, groups
that teach, format, lengths, entropy, the time of a step on this machine, and a verdict with the change to make.
"""

from __future__ import annotations

import random
import time
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from mini_r1.common import ArgumentParser, DataError, RecipeError, run_cli
from mini_r1.evaluation.forecast import Facts, forecast
from mini_r1.evaluation.scores import Score, score, strata, summarise
from mini_r1.evaluation.table import columns
from mini_r1.recipe import Recipe
from mini_r1.recipe.checks import batch_of
from mini_r1.recipe.machine import plural
from mini_r1.run_folder.checkpoints import Checkpoint
from mini_r1.task import load_task
from run_r1_grpo import TASK, prompt_dataset

WORDS = {"learns": "It will learn.", "slowly": "It will learn slowly.", "not": "It will not learn."}


def arguments(argv: list[str]) -> tuple[Namespace, list[str]]:
    """This script's own arguments, and those of the recipe. Raises RecipeError."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--groups", type=int, default=32, help="puzzles to sample completions for (default: 32)")
    parser.add_argument("--backend", choices=["auto", "vllm", "transformers"], default="auto", help="as in evaluate.py")
    parser.add_argument("--processes", type=int, default=1, help="that the run will train with (default: 1)")
    parser.add_argument("--price", type=float, help="of this machine, in dollars an hour")
    module = f"whose TASK the recipe is about (default: run_r1_grpo.py's, {TASK.path})"
    parser.add_argument("--task_module", default=TASK.path, metavar="MODULE", help=module)
    args, rest = parser.parse_known_args(argv)
    for name in ("groups", "processes"):
        if getattr(args, name) < 1:
            raise RecipeError(f"--{name} must be 1 or more, got {getattr(args, name)}")
    return args, rest


def main(argv: list[str]) -> None:
    args, rest = arguments(argv)
    from mini_r1.recipe.parsing import read_recipe

    task = load_task(args.task_module)
    recipe = read_recipe(rest, task, __doc__)
    batch_of(recipe, args.processes)  # refuses what does not fit, before anything is sampled
    from mini_r1.generation.sampling import choose_backend, load, load_tokenizer, sample

    model, given = recipe.model, {"recipe": recipe.resolved, "task": task.path}
    own = recipe.script.tokenizer_name_or_path
    checkpoint = Checkpoint("model", model.model_name_or_path, model.model_revision, False, own, given)
    tokenizer = load_tokenizer(checkpoint)
    train = task.load(recipe.puzzles, True).train
    train = random.Random(recipe.training.seed).sample(train, min(args.groups, len(train)))  # a file may be sorted
    rows = prompt_dataset(train, tokenizer, recipe)
    prompts, puzzles = list(rows["prompt"]), [task.puzzle_of(row) for row in rows]
    if not prompts:
        raise DataError(f"no prompt fits: raise max_prompt_tokens ({recipe.script.max_prompt_tokens})")
    backend = choose_backend(args.backend)
    begin = time.monotonic()
    drawn = sample(
        backend, checkpoint, tokenizer, prompts, sampling_of(checkpoint, recipe.training), lambda finished: None
    )
    seconds = (time.monotonic() - begin) / (len(prompts) * recipe.training.num_generations)
    scored = [
        [score(task, puzzle, prompt, one, index) for index, one in enumerate(group)]
        for puzzle, prompt, group in zip(puzzles, prompts, drawn, strict=True)
    ]
    texts = [(prompt, one.text) for prompt, group in zip(prompts, drawn, strict=True) for one in group]
    entropy, update = measure(load(checkpoint), texts, recipe.training)
    print("\n".join(page(recipe, puzzles, scored, entropy, (seconds, update), args.processes, args.price)))


def sampling_of(checkpoint: Checkpoint, training: Any) -> Any:
    """How the run would sample, with its GRPOConfig."""
    from mini_r1.generation.sampling import Sampling

    drawn, limit = checkpoint.sampling(), training.max_completion_length
    return Sampling(training.num_generations, max_tokens=limit, seed=training.seed, batch_size=128, **drawn)


def measure(loaded: Any, texts: Sequence[tuple[str, str]], training: Any) -> tuple[float, float]:
    """The policy's entropy and what an update costs, on a micro-batch of what it wrote.

    Args:
        loaded: a `sampling.Loaded`.
        texts: prompts and completions.
        training: the recipe's GRPOConfig.

    Returns:
        Nats a token, and seconds a completion of a forward and a backward pass.
    """
    import torch

    model, tokenizer = loaded.model, loaded.tokenizer
    rows = texts[:: max(1, len(texts) // training.per_device_train_batch_size)][: training.per_device_train_batch_size]
    batch = tokenizer([prompt + text for prompt, text in rows], return_tensors="pt", padding=True, padding_side="left")
    batch = batch.to(model.device)
    own = torch.tensor([len(tokenizer(text, add_special_tokens=False)["input_ids"]) for _, text in rows])
    width = batch["input_ids"].size(1)
    is_own = torch.arange(1, width) >= width - own[:, None]  # (B, T - 1): the completion's tokens
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    begin = time.monotonic()
    logps = model.train()(**batch).logits[:, :-1].div(training.temperature).log_softmax(-1)
    entropy = -(logps.exp() * logps).sum(-1)[is_own.to(model.device)]
    entropy.mean().backward()
    return float(entropy.detach().mean()), (time.monotonic() - begin) / len(rows)


def page(
    recipe: Recipe,
    puzzles: Sequence[Any],
    scored: Sequence[Sequence[Score]],
    entropy: float,
    seconds: tuple[float, float],
    processes: int,
    price: float | None,
) -> list[str]:
    """The page's lines; `seconds` a completion, of sampling and of the update."""
    training = recipe.training
    batch = batch_of(recipe, processes)
    overall = summarise(recipe.task, scored, [1])
    rewards = [[one.sample.equation_reward for one in group] for group in scored]
    groups = batch.per_step // batch.generations
    facts = Facts(rewards, overall["format"], overall["truncated"], entropy, groups)
    table = [["kind of puzzle", "puzzles", "pass@1", f"pass@{batch.generations}", "groups that teach"]]
    for kind, members in strata(recipe.task, puzzles).items():
        part = summarise(recipe.task, [scored[i] for i in members], [1, batch.generations])
        teaching = sum(min(rewards[i]) < max(rewards[i]) for i in members) / len(members)
        shares = (part["pass@1"], part[f"pass@{batch.generations}"], teaching)
        table.append([kind, str(len(members)), *(f"{share:.0%}" for share in shares)])
    sampling, updating = (batch.per_step / processes * each for each in seconds)
    step = sampling + updating
    minutes = step * training.max_steps / 60
    cost = f", {minutes / 60 * price:.2f} dollars" if price else ""
    whole = f"; {training.max_steps} steps: {minutes:,.0f} minutes{cost}" if training.max_steps > 0 else ""
    said = forecast(facts)
    return [
        columns(table),
        "",
        f"format {facts.format:.0%}, cut off {facts.cut_off:.0%}, {overall['mean_tokens']:.0f} tokens a completion, "
        f"entropy {entropy:.3f} nats a token",
        f"a step ({batch.per_step} completions, {plural(processes, 'process')}) here: about {sampling:.1f} s of "
        f"sampling (loading included) and {updating:.1f} s of updating{whole}",
        "",
        f"{WORDS[said.word]} {said.why}.",
        *(f"  change: {change}" for change in said.changes),
    ]


if __name__ == "__main__":
    run_cli(main)
