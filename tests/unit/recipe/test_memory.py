"""What a run needs in memory and on disk: right arithmetic, held against the peak of a real run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import ROOT, TINY_MODEL, TINY_RECIPE, flags, program_environment
from mini_r1.common import RecipeError
from mini_r1.countdown import TASK
from mini_r1.recipe import Recipe, plan
from mini_r1.recipe.machine import Machine
from mini_r1.recipe.memory import checkpoint_bytes, find_shape, memory_of, read_shape
from mini_r1.recipe.parsing import read_draft
from mini_r1.recipe.placement import Placement
from mini_r1.recipe.plan import disk_lines, memory_lines

pytestmark = pytest.mark.slow  # TRL reads the recipes

# Qwen2.5-3B's config.json, as far as it counts.
QWEN = {
    "model_type": "qwen2",
    "num_hidden_layers": 36,
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "intermediate_size": 11008,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32768,
}
SHAPE = read_shape(QWEN)
assert SHAPE is not None
WEIGHTS = 2 * SHAPE.parameters  # bytes in bfloat16
ARTICLE, SMALL = "grpo-qwen-2.5-3b-deepseek-r1-countdown.yaml", "grpo-qwen-2.5-1.5b-lora-1x24gb.yaml"
ONE_GPU = "grpo-qwen-2.5-3b-1x80gb.yaml"
TRANSFORMERS, COLOCATE = Placement("transformers", on_cpu=False), Placement("colocate", on_cpu=False)


def draft(name: str, **changed: object) -> Recipe:
    recipe = read_draft(["--config", str(ROOT / "receipes" / name)], TASK)
    vars(recipe.training).update(changed)  # every subject is the same namespace
    return recipe


def gpus(processes: int, size: float = 80e9, **more: object) -> Machine:
    """A machine with as many GPUs as training processes."""
    names = tuple(map(str, range(processes)))
    return Machine(names, (size,) * processes, processes, processes, **more)  # type: ignore[arg-type]


def needed(recipe: Recipe, machine: Machine, placement: Placement = TRANSFORMERS) -> dict[str, float]:
    return memory_of(recipe, SHAPE, machine, placement)


def lines_of(recipe: Recipe, machine: Machine, placement: Placement) -> list[str]:
    return memory_lines(recipe, SHAPE, machine, placement)


# ---- the model -----------------------------------------------------------------------------------------------------


def test_parameters_are_counted_as_they_are():
    from safetensors.numpy import load_file

    assert SHAPE.parameters == 3_085_938_688  # as the Hub has it
    tiny = find_shape(str(TINY_MODEL), None, ask_hub=False)
    assert tiny is not None
    assert tiny.parameters == sum(tensor.size for tensor in load_file(TINY_MODEL / "model.safetensors").values())
    assert read_shape({"model_type": "something else"}) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("./nowhere", "./nowhere holds no model", id="no such folder"),
        pytest.param("a/b/c", "the Hub shows no model a/b/c", id="no Hub id"),
        pytest.param("two words", "the Hub shows no model two words", id="no name for the Hub"),
        pytest.param("tests", "holds no model", id="a folder without a model"),
    ],
)
def test_what_is_no_model(name: str, message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(RecipeError, match=message):
        find_shape(name, None, ask_hub=True)


def endpoint(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """As the variable HF_ENDPOINT does, which is read at import."""
    from huggingface_hub import constants

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + template)
    monkeypatch.setattr(constants, "ENDPOINT", address)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A Hub with one model, an empty cache, and the paths that were asked for."""
    from huggingface_hub import constants

    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            there = self.path == "/me/qwen/resolve/v1/config.json"
            asked.extend([self.path] if "/resolve/" in self.path else [])
            self.send_response(200 if there else 404)
            self.send_header("X-Error-Code", "" if there else "RepoNotFound")
            self.end_headers()
            self.wfile.write(json.dumps(QWEN).encode() if there else b"{}")

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    endpoint(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield asked
    server.shutdown()
    server.server_close()


def test_the_hub_is_asked_once(hub: list[str]):
    assert find_shape("me/qwen", "v1", ask_hub=False) is None
    assert find_shape("me/qwen", "v1", ask_hub=True) == SHAPE
    with pytest.raises(RecipeError, match="the Hub shows no model me/qwem"):
        find_shape("me/qwem", "v1", ask_hub=True)
    assert len(hub) == 2


@pytest.mark.parametrize("offline", [True, False], ids=["offline", "nobody answers"])
def test_without_a_network_the_shape_is_soon_unknown(offline: bool, hub: list[str], monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    endpoint(monkeypatch, "http://127.0.0.1:1")
    begin = time.monotonic()
    assert find_shape("me/qwen", "v1", ask_hub=True) is None
    assert time.monotonic() - begin < 6
    assert not hub


# ---- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "dtype", "expected"),
    [
        pytest.param(gpus(1), "float32", (4, 4, 8), id="plain float32"),
        pytest.param(gpus(4, zero_stage=1), "bfloat16", (2, 2, 12 / 4), id="ZeRO-1: optimizer, with float32 masters"),
        pytest.param(gpus(3, zero_stage=3), "bfloat16", (2 / 3, 2 / 3, 12 / 3), id="ZeRO-3 shards everything"),
        pytest.param(gpus(2, fsdp_version=2), "float32", (2, 2, 4), id="FSDP shards everything"),
    ],
)
def test_bytes_per_parameter(machine: Machine, dtype: str, expected: tuple):
    memory = needed(draft(ARTICLE, dtype=dtype), machine)
    found = tuple(memory[key] / SHAPE.parameters for key in ("weights", "gradients", "optimizer"))
    assert found == pytest.approx(expected)
    assert "reference model" in memory  # beta 0.001
    assert "reference model" not in needed(draft(ARTICLE, dtype=dtype, beta=0.0), machine)


def test_an_adapter_trains_little_and_needs_no_reference():
    memory = needed(draft(SMALL, beta=0.1), gpus(1))
    assert memory["weights"] == pytest.approx(WEIGHTS, rel=0.1)
    assert memory["optimizer"] < 0.1 * memory["weights"]
    assert "reference model" not in memory


def test_memory_that_does_not_suffice():
    recipe = draft(ONE_GPU, gradient_checkpointing=False)
    with pytest.raises(RecipeError, match="before a single activation"):  # not even the weights fit
        lines_of(recipe, gpus(1, 24e9), COLOCATE)
    assert "WARNING: that is more than fits; halve per_dev" in "\n".join(lines_of(recipe, gpus(1, 65e9), COLOCATE))
    assert "WARNING" not in "\n".join(lines_of(recipe, gpus(1, 200e9), COLOCATE))
    for offloaded in (draft(ONE_GPU, load_in_4bit=True), draft(ONE_GPU, optim="adafactor")):
        lines_of(offloaded, gpus(1, 24e9), COLOCATE)  # needs less than the arithmetic knows of


# ---- disk ----------------------------------------------------------------------------------------------------------


def test_checkpoints_that_would_fill_the_disk_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    machine, kept = gpus(3, zero_stage=3), draft(ARTICLE, output_dir=str(tmp_path / "run"))
    one = checkpoint_bytes(kept, SHAPE, machine)
    assert one == pytest.approx(43e9, rel=0.02)
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    free = 5 * one
    (line,) = disk_lines(kept, SHAPE, machine)
    assert "4 x 43.2 GB" in line  # three kept, and the new one
    all_kept = draft(ARTICLE, output_dir=str(tmp_path / "run"), save_total_limit=None)  # the article kept all 18
    line, warning = disk_lines(all_kept, SHAPE, machine)
    assert "18 x 43.2 GB" in line
    assert "WARNING: 783" in warning  # 18 checkpoints and the final model
    assert "full after 4 checkpoints; set save_total_limit: 2" in warning
    free = 0.9 * one
    with pytest.raises(RecipeError, match=r"a checkpoint of 43.2 GB and the final model .* do not fit"):
        disk_lines(kept, SHAPE, machine)


@pytest.mark.parametrize(
    ("changed", "count"),
    [
        pytest.param({"save_steps": 0.25}, 4, id="a share of the steps"),
        pytest.param({"save_steps": 30}, 4, id="the last step as well"),
        pytest.param({"save_strategy": "no"}, 0, id="none"),
        pytest.param({"max_steps": -1}, 0, id="not known"),
    ],
)
def test_how_many_checkpoints_are_kept(changed: dict, count: int):
    recipe = draft(ARTICLE, **({"save_total_limit": None, "max_steps": 100} | changed))
    (line,) = disk_lines(recipe, SHAPE, gpus(1, is_here=False))
    assert f"disk:       {count} x " in line


# ---- a real run ----------------------------------------------------------------------------------------------------


@pytest.mark.long  # the arithmetic stands above
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "gradient checkpointing"])
def test_the_memory_estimate_is_within_a_fifth_of_a_real_runs_peak(checkpointing: bool, tmp_path: Path):
    """A 27 M model from random weights, whose completions all reach their limit, so that the worst case is the case."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(TINY_MODEL)
    size = {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "layer_types": ["full_attention"] * 8,
    }
    config.update(size | {"num_attention_heads": 8, "num_key_value_heads": 8})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(TINY_MODEL).save_pretrained(tmp_path / "model")
    settings = flags(
        model_name_or_path=tmp_path / "model",
        max_prompt_tokens=40,
        max_completion_length=128,
        max_steps=2,
        per_device_train_batch_size=32,
        gradient_accumulation_steps=1,
        eval_strategy="no",
        eval_on_start=False,
        save_strategy="no",
        dataset_rows=300,
        output_dir=tmp_path / "run",
        completion_samples_dir=tmp_path / "samples",
        gradient_checkpointing=checkpointing,
        trim_micro_batches=False,  # else rows without reward, here all, skip the backward pass
    )
    measure = (
        "import resource, subprocess, sys\n"
        "code = subprocess.run(sys.argv[1:]).returncode\n"
        "print('peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, file=sys.stderr)\n"
        "sys.exit(code)"
    )
    words = [sys.executable, "-c", measure, sys.executable, "scripts/run_r1_grpo.py", "--config", str(TINY_RECIPE)]
    done = subprocess.run(
        [*words, *settings], cwd=ROOT, env=program_environment(), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    peak = int(re.search(r"peak (\d+)", done.stderr)[1])
    estimate = float(re.search(r"memory: +about ([\d.]+) GB", done.stdout)[1]) * 1e9
    assert estimate == pytest.approx(peak, rel=0.2), (estimate, peak)
