"""What a path in a recipe means, and reading YAML files; duplicate keys are refused, and 1e-7 is a number.

`python -m mini_r1.recipe.files --config RECIPE.yaml --output_dir X ...` prints the output_dir as a word of the shell.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mini_r1.common import ArgumentParser, RecipeError, run_cli
from mini_r1.launching import ROOT

# Folders that a run writes: relative to the current folder.
WRITTEN = ("output_dir", "completion_samples_dir", "vllm_weight_folder")
# What stands where a path may, and is none.
_WORDS = ("generate", "hub", "true", "false")


def is_read(key: str) -> bool:
    """Whether a key names something that a run reads: a path on this machine, or an id on the Hub."""
    return key.endswith("_or_path") or key == "resume_from_checkpoint"


def place(name: str) -> str:
    """The path that is meant by what a recipe, an adapter or a command line names; an id on the Hub stays as it is.

    A relative path counts from the current folder if it is there, else from the repository's root, and comes back
    relative only where both are the same.
    """
    if name.lower() in _WORDS:
        return name
    # os.path answers where Path raises: an unknown user behind `~`, a name longer than any file's.
    here = os.path.expanduser(name)  # noqa: PTH111
    there = os.path.join(ROOT, here)  # noqa: PTH118  # an absolute one stays
    if not os.path.exists(here):  # noqa: PTH110
        return str(Path(there)) if os.path.exists(there) else here  # noqa: PTH110
    is_both = os.path.exists(there) and os.path.samefile(here, there)  # noqa: PTH110, PTH121
    return str(Path(here) if is_both else Path(here).absolute())


def same_value(key: str, one: Any, other: Any) -> bool:
    """Whether two values of a key mean the same; of one that `is_read`, the same file, folder or id."""
    if not (is_read(key) and isinstance(one, str) and isinstance(other, str)):
        return bool(one == other)
    paths = place(one), place(other)
    return paths[0] == paths[1] or (all(map(os.path.exists, paths)) and os.path.samefile(*paths))  # noqa: PTH121


def how_to_merge(adapter: str | Path) -> str:
    """The command that makes a full model of an adapter, which a recipe can name, and the key that names it."""
    merged = Path(adapter, "merged")
    command = f"python scripts/export.py {shlex.quote(str(adapter))} --output {shlex.quote(str(merged))}"
    return f"merge it into its base model, {command}, and write model_name_or_path: {merged}"


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A recipe file, or another of `key: value` lines, as a dict.

    Raises:
        RecipeError: when it is missing, is not YAML, is not a mapping, or repeats a key.
    """
    import yaml

    class UniqueKeyLoader(yaml.SafeLoader):
        pass

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
        repeated = [str(key) for key in keys if keys.count(key) > 1]
        if repeated:
            raise RecipeError(f"{path}: duplicate key {repeated[0]}")
        return yaml.SafeLoader.construct_mapping(loader, node, deep=True)

    UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    # YAML 1.1 takes a number with an exponent but without point or sign for text.
    exponent = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
    UniqueKeyLoader.add_implicit_resolver("tag:yaml.org,2002:float", exponent, list("-+.0123456789"))
    try:
        recipe = yaml.load(Path(path).read_text(encoding="utf-8"), UniqueKeyLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: no UTF-8, or a date such as 2025-13-01
        raise RecipeError(f"cannot read {path}: {error}") from error
    if not isinstance(recipe, dict) or not all(isinstance(key, str) for key in recipe):
        raise RecipeError(f"{path} must hold `key: value` lines")
    return recipe


def main(argv: Sequence[str]) -> None:
    """Prints where a run with this command line writes, without reading the rest of its recipe."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--config")
    parser.add_argument("--output_dir", "--output-dir")
    known, _ = parser.parse_known_args(argv)
    folder = known.output_dir or (read_yaml(known.config) if known.config else {}).get("output_dir") or ""
    print(shlex.quote(os.path.expanduser(str(folder))))  # noqa: PTH111


if __name__ == "__main__":
    run_cli(main)
