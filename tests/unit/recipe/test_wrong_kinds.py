"""A value of a wrong kind, for every key of our recipes and every key of our own: one line, in dry run and run."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from conftest import QUICK, ROOT, TINY_MODEL, TINY_RECIPE
from mini_r1.common import UserError
from mini_r1.countdown import TASK
from mini_r1.recipe.arguments import GuardArguments, HubArguments, ScriptArguments, VLLMArguments
from mini_r1.recipe.files import read_yaml

pytestmark = pytest.mark.slow  # builds trainers

OWN = (ScriptArguments, TASK.arguments, VLLMArguments, HubArguments, GuardArguments)
PATHS = [path for path in sorted((ROOT / "receipes").glob("grpo-*.yaml")) if "run_r1_grpo.py" in path.read_text()]
RECIPES = [read_yaml(path) for path in PATHS]
KEYS = sorted({key for recipe in RECIPES for key in recipe} | {key for own in OWN for key in own.__dataclass_fields__})
VALUES = [None, True, -3, 2.5, "three", ["three"], [3], {"three": 3}]


class BuiltError(Exception):
    """The trainer was made: the run would train now."""


@pytest.fixture(scope="module")
def hints() -> dict[str, Any]:
    from trl import GRPOConfig, ModelConfig

    return {key: hint for each in (*OWN, ModelConfig, GRPOConfig) for key, hint in typing.get_type_hints(each).items()}


def kinds(hint: Any) -> Iterator[type]:
    """The types that a hint names: `list[int] | None` -> list, NoneType."""
    if parameters := typing.get_args(hint):
        origin = typing.get_origin(hint)
        if isinstance(origin, type) and issubclass(origin, (list, dict)):
            yield origin
        elif origin is typing.Literal:
            yield str
        else:
            for parameter in parameters:
                yield from kinds(parameter)
    else:
        yield hint


def outcome(recipe: dict[str, Any], folder: Path, dry: bool) -> str | None:
    """The one line that refuses the recipe, None where it could train."""
    from run_r1_grpo import main

    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    try:
        main(["--config", str(path), *(["--dry_run", "true"] if dry and "dry_run" not in recipe else [])])
    except UserError as error:
        return str(error)
    except BuiltError:
        pass
    return None


@pytest.mark.parametrize("key", KEYS)
def test_dry_run_and_run_agree(
    key: str, hints: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    from mini_r1.run_folder.folder import Run

    monkeypatch.setattr(Run, "open", mock.Mock(side_effect=BuiltError))
    monkeypatch.chdir(tmp_path)
    right = set(kinds(hints[key]))
    wrong = [value for value in VALUES if value is None or type(value) not in right]
    base = read_yaml(TINY_RECIPE) | QUICK | {"model_name_or_path": str(TINY_MODEL)}
    for number, value in enumerate(wrong):
        recipe = base | {"output_dir": str(tmp_path / str(number))} | {key: value}
        said = [outcome(recipe, tmp_path, dry) for dry in (True, False)]
        assert said[0] == said[1], value
        assert "\n" not in (said[0] or "")
    assert "Traceback" not in capfd.readouterr().err
