"""Reading a recipe: YAML file plus command-line overrides, checked before anything heavy happens.

The parsing is TRL's `TrlParser`. What is added here is what it does not report: values of the wrong type, keys of other
projects and versions with their successors, and one clear line instead of a page of usage or a traceback.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import math
import os
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from mini_r1.common import LIBRARY_ERRORS, ArgumentParser, RecipeError, one_line
from mini_r1.recipe import Recipe
from mini_r1.recipe.arguments import GuardArguments, HubArguments, ScriptArguments, VLLMArguments
from mini_r1.recipe.checks import as_if_there, check_values
from mini_r1.recipe.files import WRITTEN, is_read, place, read_yaml
from mini_r1.recipe.foreign import instead
from mini_r1.recipe.libraries import check_libraries
from mini_r1.task import Task

# Fields whose annotation says text although they take truth values as well.
TRUTH_VALUE_TOO = ("scale_rewards", "resume_from_checkpoint", "fsdp")


# --------------------------------------------------------------------------------------------------------------------
# Types
# --------------------------------------------------------------------------------------------------------------------


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def _accepts(hint: Any, value: Any) -> bool:
    """Whether a YAML value fits a type hint. Hints that are not understood accept everything."""
    origin, parameters = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_accepts(parameter, value) for parameter in parameters)
    if origin is typing.Literal:
        return value in parameters
    if origin is list and isinstance(value, list):
        # argparse turns text into numbers for single values only, so a list must hold the real thing.
        is_text = float in parameters and any(isinstance(item, str) for item in value)
        return not is_text and all(_accepts(parameter, item) for parameter in parameters for item in value)
    if origin is list:
        return parameters == (str,) and isinstance(value, str)  # `lora_target_modules: all-linear`
    if origin is dict:
        return isinstance(value, (dict, str))  # transformers reads a string as JSON
    if origin is float:
        return _is_number(value)
    return type(value) is origin or not isinstance(origin, type)


def check_keys_and_types(recipe: dict[str, Any], hints: dict[str, Any], source: str) -> None:
    """Checks recipe values against the fields' type hints.

    Raises:
        RecipeError: naming every key that is unknown, of an older version, or of the wrong type.
    """
    faults: list[str] = []
    for key, value in recipe.items():
        if key in hints:
            if not _accepts(hints[key], value) and not (isinstance(value, bool) and key in TRUTH_VALUE_TOO):
                bare_no = value is False and key.endswith(("_strategy", "report_to"))
                hint = ' (YAML reads a bare no as a truth value: write "no" in quotes)' if bare_no else ""
                faults.append(f"{key} must be {inspect.formatannotation(hints[key])}, got {value!r}{hint}")
        elif key != "env":
            faults.append(instead(key, hints))
    if faults:
        raise RecipeError(f"{source}: " + " -- ".join(faults))


# --------------------------------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Reading:
    """A command line that is read, before dataclasses are made of it.

    Attributes:
        parser: with the recipe file's values as its defaults.
        rest: the command line without `--config`.
        path: the recipe's file, None without one.
        values: every key.
        given: the keys whose values are not the defaults, as they were written.
    """

    parser: Any
    rest: list[str]
    path: str | None
    values: argparse.Namespace
    given: dict[str, Any]

    def instances(self) -> list[Any]:
        """The dataclasses' instances, after their own checks. Raises RecipeError."""
        try:
            return list(self.parser.parse_args_into_dataclasses(args=self.rest, look_for_args_file=False))
        except LIBRARY_ERRORS as error:
            raise RecipeError(one_line(error)) from error


def _read(argv: Sequence[str], description: str | None, own: Sequence[type], trl: Sequence[str]) -> _Reading:
    if {"--help", "-h"} & set(argv):
        print(_short_help(description or "", own))
        raise SystemExit
    import trl as library

    class OneLineParser(library.TrlParser):
        error = ArgumentParser.error

    classes = [*own, *(getattr(library, name) for name in trl)]
    parser = OneLineParser(classes, allow_abbrev=False)
    defaults = vars(parser.parse_known_args([])[0])
    options = ArgumentParser(None)
    options.add_argument("--config")
    known, rest = options.parse_known_args(argv)
    path, rest = known.config, ["--help" if word == "--help_all" else word for word in rest]
    if path is not None:
        written = read_yaml(path)
        hints = {key: hint for each in classes for key, hint in typing.get_type_hints(each).items()}
        check_keys_and_types(written, hints, source=path)
        env = written.pop("env", None) or {}
        try:
            os.environ.update({str(name): str(value) for name, value in env.items()})
        except (AttributeError, OSError, ValueError) as error:  # no mapping; an empty name, or a `=` in it
            raise RecipeError(f"{path}: env must hold `NAME: value` lines: {error}") from error
        parser.set_defaults_with_config(**written)
    written, unknown = parser.parse_known_args(rest)
    if unknown:
        raise RecipeError(f"command line: {instead(unknown[0].lstrip('-').partition('=')[0], defaults)}")
    given = {key: value for key, value in vars(written).items() if value != defaults[key]}
    for action in parser._actions:  # from here on, paths are what they mean
        if is_read(action.dest) or action.dest in WRITTEN:
            action.type = place if is_read(action.dest) else os.path.expanduser
    values = parser.parse_known_args(rest)[0]
    for action in parser._actions:  # argparse looks at the choices of command-line values only
        value = getattr(values, action.dest, None)
        if action.choices is not None and value is not None and value not in action.choices:
            raise RecipeError(f"{action.dest} must be one of {', '.join(map(str, action.choices))}, got {value!r}")
    return _Reading(parser, rest, path, values, given)


def _short_help(description: str, own: Sequence[type]) -> str:
    lines = [description.strip(), "", "Arguments of this script (as `key: value` in the recipe or `--key value`):", ""]
    for field in (field for each in own for field in dataclasses.fields(each)):
        default = field.default_factory() if callable(field.default_factory) else field.default
        lines.append(f"  --{field.name} (default: {default})\n        {field.metadata['help']}")
    end = "\nAlso --config RECIPE.yaml, and all of TRL's keys: --help_all lists them, in ten seconds."
    return "\n".join([*lines, end])


def parse(
    argv: Sequence[str],
    description: str | None,
    own: Sequence[type],
    trl: Sequence[str],
    check: Callable[[argparse.Namespace], object] = lambda values: None,
) -> list[Any]:
    """Reads `--config RECIPE.yaml` and the overrides after it into dataclass instances.

    Args:
        argv: the command line without the program's name. `--help` prints our own arguments and ends the program,
            `--help_all` those of TRL besides.
        description: what `--help` begins with.
        own: dataclasses of this project.
        trl: names of TRL's dataclasses. No two fields of all of them share a name.
        check: gets the values, by name, before the dataclasses are made, whose own checks speak of derived
            quantities. Raises RecipeError.

    Returns:
        The instances, in the order of `own` and `trl`.

    Raises:
        RecipeError: on anything that cannot be run; the message names the key.
    """
    reading = _read(argv, description, own, trl)
    check(reading.values)
    return reading.instances()


def _read_keys(argv: Sequence[str], task: Task, description: str | None) -> tuple[_Reading, Recipe]:
    own = (ScriptArguments, task.arguments, VLLMArguments, HubArguments, GuardArguments)
    reading = _read(argv, description, own, ("ModelConfig", "GRPOConfig"))
    return reading, Recipe.draft(task, reading.values)


def read_recipe(argv: Sequence[str], task: Task, description: str | None = None) -> Recipe:
    """The recipe on a command line, checked; arguments and errors as for `parse`."""
    reading, draft = _read_keys(argv, task, description)
    check_values(draft)
    with as_if_there(draft):
        instances = reading.instances()
    script, puzzles, vllm, hub, guards, model, training = instances
    resolved = {key: value for instance in instances for key, value in vars(instance).items()}
    # One process trains on one GPU; transformers would spread it over all that it sees, the server's included.
    training._n_gpu = min(training.n_gpu, 1)
    recipe = Recipe(task, model, script, puzzles, vllm, hub, guards, training, reading.path, reading.given, resolved)
    check_libraries(recipe)
    return recipe


def read_draft(argv: Sequence[str], task: Task, description: str | None = None) -> Recipe:
    """The recipe as plain values, for whatever machine; arguments and errors as for `parse`."""
    return _read_keys(argv, task, description)[1]
