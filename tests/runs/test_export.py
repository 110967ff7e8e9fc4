"""export.py: the folder says what the adapter said, and the Modelfile puts the question as training did."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

import export
from conftest import TINY_MODEL
from mini_r1.common import DiskError, RecipeError
from mini_r1.countdown import TASK, Puzzle
from run_r1_grpo import build_prompt
from small_run import sample

pytestmark = pytest.mark.slow
PUZZLE = Puzzle([44, 19, 35], 98)


@pytest.fixture(scope="module")
def adapter_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose only checkpoint is an adapter that changes what its base model writes, sampled at 0.7."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    run = tmp_path_factory.mktemp("run")
    recipe = {"model_name_or_path": str(TINY_MODEL), "temperature": 0.7, "top_k": -1}
    (run / "run.json").write_text(json.dumps({"name": "x", "recipe": recipe}))
    (run / "samples").mkdir()
    (run / "samples" / "completion_samples.jsonl").write_text(json.dumps(sample(1)) + "\n")
    base = shutil.copytree(TINY_MODEL, run / "base")
    description = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(description | {"dtype": "bfloat16"}))
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.copy_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(run / "checkpoint-1")
    return run


def logits(model: object, tokenizer: object) -> object:
    prompt = tokenizer(build_prompt(tokenizer, PUZZLE), return_tensors="pt")  # type: ignore[operator]
    return model(**prompt).logits.float()  # type: ignore[operator]


def test_an_adapter_is_merged(adapter_run: Path, capsys: pytest.CaptureFixture[str]):
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export.main([str(adapter_run)])
    folder = adapter_run / "export"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    merged = AutoModelForCausalLM.from_pretrained(folder)
    assert merged.dtype == torch.bfloat16
    assert not (folder / "adapter_config.json").exists()
    beside = AutoPeftModelForCausalLM.from_pretrained(adapter_run / "checkpoint-1", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(TINY_MODEL)
    with torch.no_grad():
        ours, theirs, before = (logits(model, tokenizer) for model in (merged.float(), beside, base))
    assert (ours - theirs).abs().max() < 0.1 * (before - theirs).abs().max()  # bfloat16 rounds
    assert merged.generation_config.temperature == 0.7
    assert json.loads((folder / "config.json").read_text())["rope_theta"] == 10000.0
    out = capsys.readouterr().out
    assert "checkpoint-1, merged into its base model, written to" in out
    assert "none of it was run here" in out
    assert f"convert_hf_to_gguf.py {folder} --outfile" in out
    assert f"evaluate.py {folder}\n" in out
    assert "Combine the numbers [44, 19, 35] into an equation that equals 98." in out


def test_a_full_model_stays_what_it_is(tmp_path: Path):
    from safetensors.torch import load_file

    export.main([str(TINY_MODEL), "--output", str(tmp_path / "out")])
    before, after = (load_file(folder / "model.safetensors") for folder in (TINY_MODEL, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(weight.equal(after[name]) for name, weight in before.items())


def prompt_in(modelfile: str, user: str) -> str:
    """What a program that follows a Modelfile puts to the model, before it answers."""
    template, system = (re.search(f'^{key} """(.*?)"""$', modelfile, re.M | re.S)[1] for key in ("TEMPLATE", "SYSTEM"))
    before, _, after = template.partition("{{ .Response }}")
    assert not after
    fields = {"{{ .System }}": system, "{{ .Prompt }}": user, '{{ "{{" }}': "{{"}
    return re.sub("|".join(map(re.escape, fields)), lambda found: fields[found[0]], before)


@pytest.mark.parametrize("template", ["", "{{ '{{' }}", 'a "quoted" word '], ids=["its own", "braces", "quotes"])
def test_the_modelfile_asks_as_training_did(template: str, tmp_path: Path):
    from transformers import AutoTokenizer

    model = shutil.copytree(TINY_MODEL, tmp_path / "model")
    own = (TINY_MODEL / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text(template + own)
    export.main([str(model), "--output", str(tmp_path / "out")])
    modelfile = (tmp_path / "out" / "Modelfile").read_text()
    user = TASK.user_prompt.format(nums=PUZZLE.nums, target=PUZZLE.target)
    prompt = prompt_in(modelfile, user)
    assert prompt == build_prompt(AutoTokenizer.from_pretrained(model), PUZZLE)
    assert prompt.endswith("<think>")
    lines = modelfile.splitlines()
    assert 'PARAMETER stop "<|im_end|>"' in lines
    assert {"FROM .", "PARAMETER temperature 1.0", "PARAMETER top_k 0", "PARAMETER num_ctx 1024"} <= set(lines)


def test_a_template_that_a_modelfile_cannot_hold_is_refused(tmp_path: Path):
    model = shutil.copytree(TINY_MODEL, tmp_path / "model")
    own = (TINY_MODEL / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text('"""' + own)
    with pytest.raises(RecipeError, match="chat template"):
        export.main([str(model), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(tmp_path: Path):
    (tmp_path / "mine").touch()
    for taken in (tmp_path, tmp_path / "mine"):
        with pytest.raises(DiskError, match="not empty"):
            export.main([str(TINY_MODEL), "--output", str(taken)])
