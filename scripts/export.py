"""Turn a run's model into a folder that other programs read: merged, in one piece, with its prompt for Ollama.

    python scripts/export.py runs/grpo-tiny-countdown-cpu                     # the newest model of a run
    python scripts/export.py runs/x/checkpoint-40 --output exported/x         # a checkpoint, an adapter, a Hub id

An adapter is merged into its base model (in float32, then stored in the base's own precision). Beside the weights stand
the tokenizer, the sampling of the training (generation_config.json), and a `Modelfile` for Ollama. Its template is the
chat template as training rendered it, the assistant's turn begun with `<think>`; its system prompt is the task's.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from mini_r1.common import ArgumentParser, DiskError, RecipeError, printable, refuse_filled, run_cli
from mini_r1.generation.prompts import prompt_text
from mini_r1.generation.sampling import load
from mini_r1.run_folder import SAMPLES
from mini_r1.run_folder.checkpoints import Checkpoint, resolve
from mini_r1.run_folder.record import read_samples
from run_r1_grpo import ASSISTANT_PREFILL

# What stands for the two turns while the chat template is rendered.
SYSTEM, USER = "SYSTEM-PROMPT-GOES-HERE", "USER-PROMPT-GOES-HERE"
# Their names in a Modelfile where they differ. All are written, because Ollama's defaults are not the run's.
PARAMETERS = {"repetition_penalty": "repeat_penalty"}


def ollama_template(tokenizer: Any, kwargs: dict[str, Any] | None) -> str:
    """The prompt as a Go template: what training rendered, with fields where system and user prompt stood.

    Raises:
        RecipeError: when a Modelfile cannot hold it.
    """
    text = prompt_text(tokenizer, SYSTEM, USER, ASSISTANT_PREFILL, kwargs)
    text = text.replace("{{", '{{ "{{" }}').replace(SYSTEM, "{{ .System }}").replace(USER, "{{ .Prompt }}")
    if '"""' in text:
        raise RecipeError('the chat template writes """, which ends a text in a Modelfile: choose another model')
    return text + "{{ .Response }}"


def modelfile(checkpoint: Checkpoint, tokenizer: Any, stops: list[str], context: int | None) -> str:
    """The Modelfile of an exported folder, in which it stands. Raises RecipeError."""
    drawn = checkpoint.sampling()
    parameters = [f"{PARAMETERS.get(key, key)} {value or 0}" for key, value in drawn.items()]
    parameters += [f"num_ctx {context}"] * bool(context)
    parameters += [f"stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    system = checkpoint.task.system_prompt
    if '"""' in system:
        raise RecipeError('the system prompt holds """, which ends a text in a Modelfile: write it without')
    return "\n".join(
        [
            "# One question, one answer: the model was trained on single turns.",
            "FROM .",
            f'TEMPLATE """{ollama_template(tokenizer, checkpoint.recipe("chat_template_kwargs", None))}"""',
            f'SYSTEM """{system}"""',
            *(f"PARAMETER {parameter}" for parameter in parameters),
            "",
        ]
    )


def question(checkpoint: Checkpoint) -> str:
    """A user prompt to try: of a puzzle that the run kept, held out if possible, else with the fields' names in it."""
    task = checkpoint.task
    samples = read_samples(checkpoint.run_folder / SAMPLES, task)[0] if checkpoint.run_folder else []
    if not samples:
        return task.user_prompt
    return task.question(max(samples, key=lambda sample: sample.split == "held_out").puzzle)


def write(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes model, tokenizer and Modelfile. Raises DiskError, RecipeError, RunError."""
    from safetensors import SafetensorError
    from transformers import GenerationConfig

    loaded = load(checkpoint, "cpu")
    model, tokenizer = loaded.model, loaded.tokenizer
    if loaded.stored_as is not None:
        model.to(loaded.stored_as)
    drawn = checkpoint.sampling()
    model.generation_config = GenerationConfig(
        do_sample=drawn["temperature"] > 0,
        **(drawn if drawn["temperature"] > 0 else {}),
        eos_token_id=loaded.eos_ids,
        pad_token_id=tokenizer.pad_token_id,
    )
    context = getattr(model.config, "max_position_embeddings", None)
    text = modelfile(checkpoint, tokenizer, tokenizer.convert_ids_to_tokens(loaded.eos_ids), context)
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        _write_rope_theta(folder / "config.json")
        (folder / "Modelfile").write_text(text, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise DiskError(f"cannot write to {folder}: {error}; name another folder with --output") from error


def _write_rope_theta(path: Path) -> None:
    """Writes `rope_theta` where readers looked for it before transformers 5, Ollama's among them."""
    config = json.loads(path.read_text())
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        path.write_text(json.dumps(config | {"rope_theta": rope["rope_theta"]}, indent=2) + "\n")


def main(argv: list[str]) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("checkpoint", metavar="RUN", help="run, checkpoint or adapter folder, or Hub id[@revision]")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: export/ in the run folder")
    args = parser.parse_args(argv)
    checkpoint = resolve(args.checkpoint)[-1]  # of a run, its newest model
    folder = args.output or (checkpoint.run_folder or Path()) / "export"
    refuse_filled(folder)
    write(checkpoint, folder)
    name, there = "mini-r1", shlex.quote(str(folder))
    # Elsewhere than beside the run's record, task, sampling and split would be the defaults.
    is_beside = checkpoint.run_folder is None or folder.resolve().parent == checkpoint.run_folder.resolve()
    print(
        f"{checkpoint.name}{', merged into its base model,' * checkpoint.is_adapter} written to {folder}",
        "next (none of it was run here; Ollama and llama.cpp do not know every architecture):",
        *[f"  python scripts/evaluate.py {there}"] * is_beside,
        f"  ollama create {name} -f {shlex.quote(str(folder / 'Modelfile'))}",
        f"  ollama run {name} {shlex.quote(printable(question(checkpoint)))}",
        f"  python llama.cpp/convert_hf_to_gguf.py {there} --outfile {shlex.quote(str(folder / 'model.gguf'))}",
        sep="\n",
    )


if __name__ == "__main__":
    run_cli(main)
