"""Reading a recipe: YAML file plus command-line overrides, checked before anything heavy happens.

The parsing is TRL's `TrlParser`. What is added here is what it does not tell: values of the wrong type, keys of old
TRL versions with their successors, and one clear line instead of a page of usage or a traceback.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import enum
import math
import os
import types
import typing
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

from mini_r1.common import RecipeError

# Keys of older TRL and transformers versions, as found in recipes on the web, and what to write instead.
REMOVED_KEYS = {
    "torch_dtype": "write `dtype`",
    "warmup_ratio": "write `warmup_steps`, where a value below 1 is the ratio",
    "max_prompt_length": "nothing truncates prompts any more; `max_prompt_tokens` drops puzzles with longer ones",
    "vllm_max_model_len": "write `vllm_max_model_length`",
    "dataset_splits": "write `dataset_split`",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
    "evaluation_strategy": "write `eval_strategy`",
    "no_cuda": "write `use_cpu`",
    "save_safetensors": "remove it, safetensors is the only format",
    "use_flash_attention_2": "write `attn_implementation: flash_attention_2`",
    "overwrite_output_dir": "choose another `output_dir`, or remove the old one",
}
# Keys that only recipes for TRL 0.14 and 0.15 have.
ANCIENT_KEYS = ("max_prompt_length",)
OLD_RECIPE = (
    "; if this recipe was written for TRL 0.14 or 0.15, batch sizes counted prompts there: they count completions now, "
    "so multiply per_device_train_batch_size by num_generations to keep the run the same"
)
# Fields whose annotation says text although they take truth values as well.
TRUTH_VALUE_TOO = ("scale_rewards", "resume_from_checkpoint", "fsdp")


def print_short_help(description: str, *own_arguments: type) -> None:
    """Help that needs no heavy import: the script's own arguments, and where the others are described."""
    print(description.strip(), "\n\nArguments of this script (as `key: value` in the recipe or `--key value`):\n")
    for field in (field for arguments in own_arguments for field in dataclasses.fields(arguments)):
        factory = field.default_factory
        default = factory() if callable(factory) else field.default
        print(f"  --{field.name} (default: {default})\n        {field.metadata['help']}")
    print(
        "\nAlso --config RECIPE.yaml, and every field of TRL's configuration classes (learning_rate, max_steps, ...);"
        "\n--help_all lists them all after loading TRL (about ten seconds)."
    )


# --------------------------------------------------------------------------------------------------------------------
# Types
# --------------------------------------------------------------------------------------------------------------------


def _is_number(value: Any) -> bool:
    if isinstance(value, str):  # YAML 1.1 reads 5e-7 as a string; argparse turns it into a float later
        try:
            value = float(value)
        except ValueError:
            return False
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def _accepts(hint: Any, value: Any) -> bool:
    """Whether a YAML value fits a type hint. Hints that are not understood accept everything."""
    origin, parameters = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_accepts(parameter, value) for parameter in parameters)
    if origin is typing.Literal:
        return value in parameters
    if hint is type(None):
        return value is None
    if origin is list or hint is list:
        if parameters == (str,) and isinstance(value, str):  # `lora_target_modules: all-linear`
            return True
        # Text is turned into numbers for single values only, so a list must hold the real thing.
        return isinstance(value, list) and all(
            _accepts(parameter, v) and _is_plain(v, parameter) for v in value for parameter in parameters
        )
    if origin is dict or hint is dict:
        return isinstance(value, (dict, str))  # a string is read as JSON by transformers
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return _is_number(value)
    if hint is str:
        return isinstance(value, str)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return value in [member.value for member in hint]
    return True


def _is_plain(value: Any, hint: Any) -> bool:
    return not (hint is float and isinstance(value, str))


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_describe(p) for p in typing.get_args(hint))
    names = {type(None): "null", bool: "true or false", int: "an integer", float: "a number", str: "text"}
    return names.get(hint, getattr(hint, "__name__", str(hint)) if not typing.get_args(hint) else str(hint))


# --------------------------------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------------------------------


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
            raise RecipeError(f"{path}: the key {repeated[0]} stands there twice")
        loader.flatten_mapping(node)
        return yaml.SafeLoader.construct_mapping(loader, node, deep=True)

    UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        recipe = yaml.load(Path(path).read_text(encoding="utf-8"), UniqueKeyLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read {path}: {error}") from error
    except RecipeError:
        raise
    # A tag on something else, such as `!!bool 3`, leaves PyYAML as whatever the conversion raised.
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(recipe, dict) or not all(isinstance(key, str) for key in recipe):
        raise RecipeError(f"{path} must hold `key: value` lines")
    return recipe


def check_keys_and_types(recipe: dict[str, Any], hints: dict[str, Any], source: str) -> None:
    """Checks recipe values against the fields' type hints.

    Raises:
        RecipeError: naming every key that is unknown, of an older version, or of the wrong type.
    """
    faults: list[str] = []
    for key, value in recipe.items():
        if key in hints:
            if not _accepts(hints[key], value) and not (isinstance(value, bool) and key in TRUTH_VALUE_TOO):
                hint = ""
                if value is False and key.endswith(("_strategy", "report_to")):
                    hint = ' (YAML reads a bare no as a truth value: write "no" in quotes)'
                faults.append(f"{key} must be {_describe(hints[key])}, got {value!r}{hint}")
        elif key in REMOVED_KEYS:
            faults.append(f"{key} no longer exists: {REMOVED_KEYS[key]}{OLD_RECIPE if key in ANCIENT_KEYS else ''}")
        elif key != "env":
            close = difflib.get_close_matches(key, hints, n=1)
            faults.append(f"unknown key {key}" + (f"; did you mean {close[0]}?" if close else "; remove it"))
    if faults:
        raise RecipeError(f"{source}: " + " -- ".join(faults))


def _words(argv: Sequence[str]) -> list[str]:
    """The command line with `--config=X` as two words."""
    return [part for arg in argv for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]


def _apply_environment(recipe: dict[str, Any], source: str) -> None:
    """Takes `env` out of a recipe and sets the variables it names."""
    env = recipe.pop("env", None) or {}
    if not isinstance(env, dict):
        raise RecipeError(f"{source}: env must hold `NAME: value` lines")
    for name, value in env.items():
        try:
            os.environ[str(name)] = str(value)
        except (OSError, ValueError) as error:  # an empty name, a `=` in it, a character that cannot be passed on
            raise RecipeError(f"{source}: env cannot set {name!r}: {error}") from error


def read_values(dataclass_types: Sequence[type], argv: Sequence[str]) -> argparse.Namespace:
    """Every key with its value from the command line, else from `--config RECIPE.yaml`, else by default.

    Args:
        dataclass_types: what `TrlParser` takes; their field names must not collide.
        argv: the command line without the program's name; `--help_all` prints every argument and ends the program.

    Raises:
        RecipeError: on anything that cannot be run; the message names the key.
    """
    return _read(dataclass_types, argv)[1]


def given(dataclass_types: Sequence[type], argv: Sequence[str]) -> dict[str, Any]:
    """The keys whose values are not the defaults, with these values; arguments and errors as for `read_values`."""
    defaults = vars(read_values(dataclass_types, []))
    return {key: value for key, value in vars(read_values(dataclass_types, argv)).items() if value != defaults[key]}


def _read(dataclass_types: Sequence[type], argv: Sequence[str]) -> tuple[Any, argparse.Namespace, list[str]]:
    from trl import TrlParser

    class OneLineParser(TrlParser):
        def error(self, message: str) -> NoReturn:
            raise RecipeError(f"command line: {message}")

    parser = OneLineParser(dataclass_types, allow_abbrev=False)
    args = _words(argv)
    args = ["--help" if arg == "--help_all" else arg for arg in args]
    if "--config" in args:
        at = args.index("--config")
        if at + 1 == len(args):
            raise RecipeError("command line: --config needs the path of a recipe")
        path = args[at + 1]
        del args[at : at + 2]
        hints: dict[str, Any] = {}
        for dataclass_type in dataclass_types:
            hints |= typing.get_type_hints(dataclass_type)
        recipe = read_yaml(path)
        check_keys_and_types(recipe, hints, source=path)
        _apply_environment(recipe, path)
        parser.set_defaults_with_config(**recipe)
    namespace, unknown = parser.parse_known_args(list(args))
    if unknown:
        close = difflib.get_close_matches(unknown[0], [f"--{key}" for key in vars(namespace)], n=1)
        raise RecipeError(f"command line: unknown {unknown[0]}" + (f"; did you mean {close[0]}?" if close else ""))
    for action in parser._actions:  # argparse looks at the choices of command-line values only
        value = getattr(namespace, action.dest, None)
        if action.choices is not None and value is not None and value not in action.choices:
            raise RecipeError(f"{action.dest} must be one of {', '.join(map(str, action.choices))}, got {value!r}")
    return parser, namespace, args


def path_in(argv: Sequence[str]) -> str | None:
    """The recipe's file on a command line."""
    words = _words(argv)
    return words[words.index("--config") + 1] if "--config" in words[:-1] else None


def parse(
    dataclass_types: Sequence[type],
    argv: Sequence[str],
    check: Callable[[argparse.Namespace], None] | None = None,
    surroundings: Callable[[argparse.Namespace], AbstractContextManager[Any]] = nullcontext,
) -> tuple[Any, ...]:
    """Reads `--config RECIPE.yaml` and the overrides after it into instances of the dataclasses, in order.

    Args:
        dataclass_types, argv: as for `read_values`.
        check: called with all values, by name, before the dataclasses are made; raises RecipeError on impossible ones.
        surroundings: called with all values as well; the dataclasses are made within the context that it returns.

    Raises:
        RecipeError: on anything that cannot be run; the message names the key.
    """
    parser, namespace, args = _read(dataclass_types, argv)
    if check is not None:  # GRPOConfig has checks of its own, but they speak of derived quantities
        check(namespace)
    try:
        with surroundings(namespace):
            return parser.parse_args_into_dataclasses(args=args, look_for_args_file=False)
    except RecipeError:
        raise
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise RecipeError(str(error)) from error


def merged(*arguments: Any) -> types.SimpleNamespace:
    """All keys of a recipe in one place, from the dataclass instances that `parse` returned."""
    return types.SimpleNamespace(**{key: value for argument in arguments for key, value in vars(argument).items()})


def require(condition: bool, key: str, expected: str, value: Any) -> None:
    """Raises RecipeError unless the condition holds."""
    if not condition:
        raise RecipeError(f"{key} must be {expected}, got {value!r}")


def require_at_least(values: argparse.Namespace, minimum: float, *keys: str, exclusive: bool = False) -> None:
    """Raises RecipeError unless each of the values is a number from `minimum` on, or above it when `exclusive`."""
    for key in keys:
        value = getattr(values, key)
        good = isinstance(value, (int, float)) and (value > minimum if exclusive else value >= minimum)
        expected = "positive" if exclusive and minimum == 0 else f"{minimum:g} or more"
        require(good, key, expected, value)
