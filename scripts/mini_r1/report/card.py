"""The model card of a run: what it is, how it was made, how well it does, what it writes, how to load it.

Written from what the run folder says; text of the model stands in fenced blocks, escaped, and nowhere else.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mini_r1.common import masked, printable
from mini_r1.countdown.dataset import GENERATE
from mini_r1.run_folder.record import RunRecord, read_run
from mini_r1.run_folder.samples import Sample

CARD, CURVE, RECIPE = "README.md", "curve.png", "recipe.yaml"
# Keys of a recipe that name secrets or this machine's folders.
_PRIVATE = ("token", "password", "api_key", "output_dir", "completion_samples_dir", "resume_from_checkpoint")
# Of an example completion, in characters.
_LONGEST_EXAMPLE = 1500


def public_recipe(given: dict[str, Any]) -> dict[str, Any]:
    """A recipe's values without tokens and the like, `env` included, and without places on this machine."""
    return masked({key: value for key, value in given.items() if key != "env" and not key.endswith(_PRIVATE)})


def write(folder: Path, given: dict[str, Any], prompt: str) -> None:
    """Writes `README.md`, `curve.png` and `recipe.yaml` into a run folder.

    Args:
        folder: the run folder; `run.json` must be in it.
        given: the recipe's values as given, those that are defaults left out.
        prompt: a prompt as the model was trained on it, for the example of use.

    Raises:
        OSError: when the disk does not take them.
        RecipeError: when the folder is no run folder.
    """
    import yaml

    from mini_r1.report.page import draw_curves, make_charts

    record = read_run(folder)
    recipe = yaml.safe_dump(public_recipe(given), sort_keys=True, allow_unicode=True)
    charts = make_charts([record])
    text = as_text(record, recipe, prompt, has_curve=bool(charts))
    # Each in one piece: an upload may read them meanwhile.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".card-") as draft:
        Path(draft, RECIPE).write_text(recipe, encoding="utf-8")
        Path(draft, CARD).write_text(text, encoding="utf-8")
        draw_curves(charts, [record.name], Path(draft, CURVE))
        for path in Path(draft).iterdir():
            path.replace(folder / path.name)


def fenced(text: str, language: str = "text") -> str:
    """Text as a Markdown code block that nothing in it can end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{printable(text).rstrip()}\n{fence}"


def _inline(text: Any) -> str:
    """Text as inline code, on one line."""
    return "`" + re.sub(r"\s+", " ", printable(str(text))).replace("`", "'") + "`"


def _hub_name(name: Any) -> str | None:
    """A model or data set as the Hub knows it; None for what lies on this machine."""
    text = str(name or "")
    good = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text) and not Path(text).exists()
    return text if good else None


def as_text(record: RunRecord, recipe: str, prompt: str, *, has_curve: bool) -> str:
    """The card.

    Args:
        record: the run.
        recipe: its recipe as YAML.
        prompt: an example.
        has_curve: whether `curve.png` lies beside it.
    """
    from huggingface_hub import EvalResult, ModelCardData

    base, dataset = record.recipe.get("model_name_or_path"), record.recipe.get("dataset_id_or_path")
    adapter = bool(record.recipe.get("use_peft"))
    name = str(record.recipe.get("hub_model_id") or record.folder.resolve().name).rpartition("/")[2]
    results = []
    if record.held_out:
        last = record.held_out[-1]
        results = [
            EvalResult(task_type="text-generation", dataset_type="countdown", dataset_name="Countdown, held out",
                       metric_type="accuracy", metric_name="pass@1", metric_value=round(last["pass@1"], 4))
        ]  # fmt: skip
    data = ModelCardData(
        base_model=_hub_name(base), datasets=[hub] if (hub := _hub_name(dataset)) else None,
        license=record.recipe.get("hub_license"), library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation", tags=["grpo", "countdown", "reasoning", "trl", "mini-r1"],
        model_name=name if results else None, eval_results=results or None, language="en",
    )  # fmt: skip
    parts = ["---", data.to_yaml().rstrip(), "---", "", f"# {name}", "", *_what(record, base, dataset, adapter)]
    if has_curve:
        parts += ["", "![Curves of the run](curve.png)"]
    parts += ["", "## Held-out puzzles", "", *_table(record)]
    parts += ["", "## How to load it", "", *_usage(record, base, prompt, adapter)]
    parts += ["", "## What it writes", "", *_examples(record.samples)]
    parts += ["", "## The recipe", "", f"Everything that is not a default; the file is [{RECIPE}]({RECIPE}).", "",
              fenced(recipe, "yaml")]  # fmt: skip
    parts += ["", "## Made with", "", *_made_with(record)]
    licence = record.recipe.get("hub_license")
    inherited = f"That of the model it was trained from, {_inline(base)}: the recipe names none (`hub_license`)."
    parts += ["", "## Licence", "", _inline(licence) if licence else inherited]
    return "\n".join(parts) + "\n"


def _what(record: RunRecord, base: Any, dataset: Any, adapter: bool) -> list[str]:
    hub_base, hub_data = _hub_name(base), _hub_name(dataset)
    model = f"[{hub_base}](https://huggingface.co/{hub_base})" if hub_base else f"{_inline(base)} (a local model)"
    puzzles = (
        f"[{hub_data}](https://huggingface.co/datasets/{hub_data})" if hub_data else
        "generated puzzles" if dataset == GENERATE else "puzzles of a local file"
    )  # fmt: skip
    kind = "A LoRA adapter for" if adapter else "A fine-tune of"
    return [
        f"{kind} {model}, trained with GRPO on the Countdown numbers game ({puzzles}): combine the given numbers with "
        f"+, -, * and /, each exactly once, to reach the target. Two rules reward a completion: its format "
        f"(`<think>...</think><answer>...</answer>`), and an equation that is right. State: step {record.step}.",
    ]


def _table(record: RunRecord) -> list[str]:
    if not record.held_out:
        return ["Not measured (the recipe asked for no evaluation)."]
    temperature = record.recipe.get("temperature")
    rows = [
        f"| {point['step']} | {100 * point['pass@1']:.1f} | {100 * point['low']:.1f} to {100 * point['high']:.1f} | "
        f"{'' if point.get('mean_tokens') is None else format(point['mean_tokens'], '.0f')} |"
        for point in record.held_out
    ]
    puzzles = record.held_out[-1].get("puzzles")
    return [f"{puzzles} puzzles that were not trained on, one completion each, temperature {temperature}.", "",
            "| step | pass@1 in % | 95 % interval | mean tokens |", "|---|---|---|---|", *rows]  # fmt: skip


def _usage(record: RunRecord, base: Any, prompt: str, adapter: bool) -> list[str]:
    loads = (
        "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer\n\n"
        "model = AutoPeftModelForCausalLM.from_pretrained(name)"
        if adapter else
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        "model = AutoModelForCausalLM.from_pretrained(name)"
    )  # fmt: skip
    length = record.recipe.get("max_completion_length", 1024)
    temperature = record.recipe.get("temperature", 1.0)
    code = (
        f'{loads}  # name = this repository; revision="step-N" for a checkpoint\n'
        f"tokenizer = AutoTokenizer.from_pretrained(name)\n"
        f"prompt = {json.dumps(prompt)}\n"
        f'inputs = tokenizer(prompt, return_tensors="pt")\n'
        f"output = model.generate(**inputs, max_new_tokens={length}, do_sample=True, temperature={temperature})\n"
        f'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :]))'
    )
    return [fenced(code, "python"), "", "The prompt ends in `<think>`, which the model was trained to go on from."]


def _examples(samples: Sequence[Sample]) -> list[str]:
    """The newest right completion and the newest wrong one, where they were kept."""
    newest: dict[bool, Sample] = {sample.equation_reward == 1.0: sample for sample in samples}
    if not newest:
        return ["No completion was kept."]
    parts = []
    for right, sample in sorted(newest.items(), reverse=True):
        text = printable(sample.response)
        if len(text) > _LONGEST_EXAMPLE:
            text = text[:_LONGEST_EXAMPLE] + " [...]"
        verdict = "solved" if right else f"not solved ({sample.reason.replace('_', ' ')})"
        parts += [f"Numbers {sample.nums}, target {sample.target}, step {sample.step}: {verdict}.", ""]
        parts += [fenced(text), ""]
    return parts[:-1]


def _made_with(record: RunRecord) -> list[str]:
    hardware = record.description.get("hardware") or {}
    versions = record.description.get("versions") or {}
    gpus = hardware.get("gpus") or []
    machine = f"{len(gpus)} x {gpus[0]}" if gpus else f"{hardware.get('cpu_threads', '?')} CPU threads, no GPU"
    return [
        f"{hardware.get('processes', 1)} process(es) on {_inline(machine)}; "
        + ", ".join(f"{package} {version}" for package, version in versions.items())
        + f"; code at {_inline(record.description.get('git_commit') or 'unknown commit')}.",
    ]
