"""The commands that README and the recipes' page print: files exist, make targets exist, every key is known."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from conftest import ROOT
from mini_r1.recipe import parsing as recipe

PAGES = [ROOT / "README.md", ROOT / "receipes" / "README.md", ROOT / "configs" / "tiny-countdown" / "README.md"]


def commands_of(page: Path) -> list[str]:
    """Lines of the `bash` blocks, continued ones joined, comments gone."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.join(shlex.split(line, comments=True)) for line in lines if shlex.split(line, comments=True)]


COMMANDS = [pytest.param(command, id=command[:70]) for page in PAGES for command in commands_of(page)]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_there_are_commands():
    assert len(COMMANDS) > 8
    assert {"test", "train", "install"} <= TARGETS


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_printed_command_names_exists(command: str):
    words = shlex.split(command)
    for word in words:
        if word.endswith((".yaml", ".py", ".slurm")):
            assert (ROOT / word).exists(), word
    if words[0] == "make":
        assert words[1] in TARGETS


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if "scripts/" in c.values[0] and "--config " in c.values[0]])
def test_the_keys_of_a_printed_command_are_known(command: str):
    from trl import GRPOConfig, ModelConfig, SFTConfig

    from run_cold_start import ColdStartArguments
    from run_r1_grpo import OWN_ARGUMENTS

    words = shlex.split(command)
    (script,) = [i for i, word in enumerate(words) if word.startswith("scripts/")]
    types = (ModelConfig, *OWN_ARGUMENTS, GRPOConfig)
    if words[script].endswith("run_cold_start.py"):
        types = (ColdStartArguments, SFTConfig)
    arguments = [word for word in words[script + 1 :] if word != "--print"]
    values = recipe.read_values(types, arguments)
    assert values.output_dir
