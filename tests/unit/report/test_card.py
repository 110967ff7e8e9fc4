"""The model card: what it says, and that nothing a model wrote leaves its block."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from mini_r1.report import card
from small_run import HOSTILE, make_run, sample

PROMPT = 'Combine "these" ```numbers```\n<think>'


def test_the_card_of_a_run(tmp_path: Path):
    recipe = {"model_name_or_path": "Qwen/Qwen2.5-3B", "dataset_id_or_path": "generate", "max_completion_length": 77}
    folder = make_run(tmp_path / "run", [sample(1, 1), sample(2, 1), sample(2, 2)], recipe=recipe)
    given = {"hub_token": "hf_secret1", "env": {"HF_TOKEN": "hf_secret1"}, "output_dir": "/home/me", "max_steps": 10}
    card.write(folder, given, PROMPT)
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == {"max_steps": 10}
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert not list(folder.glob(".card-*"))

    text = (folder / "README.md").read_text()
    data = ModelCard(text).data
    assert (data.base_model, data.library_name, data.license) == ("Qwen/Qwen2.5-3B", "transformers", None)
    (result,) = data.eval_results
    assert (result.metric_name, result.metric_value, result.dataset_type) == ("pass@1", 0.8, "countdown")
    for part in (
        "A fine-tune of [Qwen/Qwen2.5-3B](https://huggingface.co/Qwen/Qwen2.5-3B), trained with GRPO on generated",
        "State: step 10.",
        "![Curves of the run](curve.png)",
        "100 puzzles that were not trained on",
        "| 10 | 80.0 | 71.1 to 86.7 | 50 |",
        "max_new_tokens=77",
        "`numbers [3, 5, 2] · target 17`, step 2: solved.",
        "`numbers [44, 19, 35] · target 98`, step 2: not solved (`wrong value`).",
        "trl 1.16.0",
    ):
        assert part in text
    code = next(token.content for token in MarkdownIt().parse(text) if token.info == "python")
    compile(code, "card", "exec")
    assert "hf_secret1" not in text


@pytest.mark.parametrize(("use_peft", "base", "loads", "library"), [
    pytest.param(True, "Qwen/Qwen2.5-3B", "AutoPeftModelForCausalLM.from_pretrained", "peft", id="an adapter"),
    pytest.param(False, "models/mine/x", "AutoModelForCausalLM.from_pretrained", "transformers", id="a local base"),
])  # fmt: skip
def test_how_to_load_it(use_peft: bool, base: str, loads: str, library: str, tmp_path: Path):
    folder = make_run(tmp_path / "run", [], recipe={"use_peft": use_peft, "model_name_or_path": base})
    card.write(folder, {}, PROMPT)
    text = (folder / "README.md").read_text()
    assert f"model = {loads}(name)" in text
    data = ModelCard(text).data
    assert data.library_name == library
    assert data.base_model == (base if use_peft else None)  # a place on this machine is nothing to link to


def test_a_run_that_measured_nothing_says_so(tmp_path: Path):
    folder = make_run(tmp_path / "run", [], recipe={"model_name_or_path": "models/mine/x"})
    (folder / "trainer_state.json").unlink()
    card.write(folder, {}, PROMPT)
    text = (folder / "README.md").read_text()
    for part in ("Not measured", "No completion was kept", "State: step 0."):
        assert part in text
    assert "None" not in text
    assert "curve.png" not in text
    assert not (folder / "curve.png").exists()


def test_nothing_that_a_model_writes_leaves_its_block(tmp_path: Path):
    """Read as the Hub does, by a Markdown parser: no heading, link or HTML but the card's own."""
    records = [sample(1, response=HOSTILE, reason="<b>`x`"), sample(1, 1, response=HOSTILE * 50)]
    hostile = make_run(tmp_path / "a" / "run", records)
    tame = make_run(tmp_path / "b" / "run", [sample(1), sample(1, 1)])
    for folder in (hostile, tame):
        card.write(folder, {}, PROMPT)
    shapes = []
    for folder in (hostile, tame):
        text = (folder / "README.md").read_text()
        assert "\x1b" not in text
        tokens = [token for block in MarkdownIt().parse(text) for token in (block, *(block.children or []))]
        assert not any(token.type.startswith("html") for token in tokens)
        shapes.append([token.type for token in tokens])
    assert shapes[0] == shapes[1]
