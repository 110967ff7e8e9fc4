"""The model card of a run: what it is, how it was made, how well it does, what it writes, how to load it.

Written from what the run folder says; text of the model stands in fenced blocks, escaped, and nowhere else.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from mini_r1.common import masked, printable
from mini_r1.report.charts import draw_curves
from mini_r1.report.templates import render
from mini_r1.run_folder.record import RunRecord, final_point, read_run

CARD, CURVE, RECIPE = "README.md", "curve.png", "recipe.yaml"
# Keys of a recipe that name secrets or this machine's folders.
_PRIVATE = ("token", "password", "api_key", "output_dir", "completion_samples_dir", "resume_from_checkpoint")


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
        RunError: when the folder is no run folder.
    """
    import yaml

    record = read_run(folder)
    values = record.recipe
    base, dataset = (_hub_name(values.get(key, "")) for key in ("model_name_or_path", "dataset_id_or_path"))
    name = str(values.get("hub_model_id") or record.folder.resolve().name).rpartition("/")[2]
    recipe = yaml.safe_dump(public_recipe(given), sort_keys=True, allow_unicode=True)
    # Each in one piece: an upload may read them meanwhile.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".card-") as draft:
        has_curve = draw_curves([record], Path(draft, CURVE))
        card = render(
            "card.md.jinja",
            metadata=_metadata(record, name, base, dataset),
            name=name,
            record=record,
            base=base,
            dataset=dataset,
            has_curve=has_curve,
            prompt=json.dumps(prompt),
            # The newest correct completion and the newest other one, where they were kept.
            examples=sorted({s.equation_reward == 1.0: s for s in record.samples}.items(), reverse=True),
            recipe=recipe,
            fenced=fenced,
            inline=inline,
        )
        Path(draft, RECIPE).write_text(recipe, encoding="utf-8")
        Path(draft, CARD).write_text(card, encoding="utf-8")
        for path in Path(draft).iterdir():
            path.replace(folder / path.name)


def fenced(text: str, language: str = "text") -> str:
    """Text as a Markdown code block that nothing in it can end."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{printable(text).rstrip()}\n{fence}"


def inline(text: Any) -> str:
    """Text as inline code, on one line."""
    return "`" + " ".join(printable(str(text)).replace("`", "'").split()) + "`"


def _hub_name(name: str) -> str | None:
    """A model or data set as the Hub knows it; None for what lies on this machine."""
    return name if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) and not Path(name).exists() else None


def _metadata(record: RunRecord, name: str, base: str | None, dataset: str | None) -> str:
    """What the Hub reads, as YAML."""
    from huggingface_hub import EvalResult, ModelCardData

    task = record.recipe.get("task") or record.task.path.rpartition(".")[2]
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=task,
            dataset_name=f"{task.capitalize()}, held out",
            metric_type="accuracy",
            metric_name="pass@1",
            metric_value=round(point["pass@1"], 4),
        )
        for point in ([final_point(record.held_out)] if record.held_out else [])
    ]
    data = ModelCardData(
        base_model=base,
        datasets=[dataset] if dataset else None,
        license=record.recipe.get("hub_license"),
        library_name="peft" if record.recipe.get("use_peft") else "transformers",
        pipeline_tag="text-generation",
        tags=["grpo", task, "reasoning", "trl", "mini-r1"],
        model_name=name if results else None,
        eval_results=results or None,
        language="en",
    )
    return data.to_yaml().rstrip()
